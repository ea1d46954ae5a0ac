"""What is wrong with a history of a store: Jepsen's anomalies for Kafka, and those of groups and transactions.

Everything is judged by what the processes noted (``notes``) and by what the store holds at the end, where records of
transactions are told apart by the markers in the log, without the product's own idea of what is committed.
"""

from __future__ import annotations

import bisect
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

from tests.histories.checker import Anomaly
from tests.histories_messaging.notes import Event

KINDS = (
    "lost-write",  # an acknowledged record is not there
    "duplicate",  # a record that was sent once is there twice
    "inconsistent-offset",  # a record is not where it was acknowledged or read
    "phantom",  # a record that nobody sent
    "reorder",  # records of one producer in a partition are not in the order of sending
    "aborted-read",  # a read_committed reader saw a record of an aborted transaction (G1a)
    "precommitted-read",  # ... or one before its commit was asked for
    "torn-transaction",  # a part of a transaction is there, the rest is not
    "poll-skip",  # a reader passed over a record, within one call or between two
    "nonmonotonic-poll",  # a reader went back without being told to
    "unowned-read",  # a member was handed a record of a partition that it does not have
    "group-skip",  # the group has committed past a record that none of its members was handed
    "two-owners",  # two members had a partition at the same time
    "foreign-commit",  # a commit of somebody who was not the owner any more
    "commit-back",  # a committed offset moved back, and nobody had sought
    "lost-commit",  # an acknowledged commit is not there
    "effect-lost",  # an input that was committed has no output
    "effect-twice",  # an input has two outputs
    "hanging",  # something is left open, or cannot be read, or a worker does not come to an end
    "fork",  # a handle of the parent worked in a forked child, or hung
    "unexpected-error",  # a call raised what it must not raise
    "damage",  # the log does not verify, or a worker ended by itself
)

TopicNumber = tuple[str, int]
MARGIN = 50_000_000  # ns: what a clock reading and a note may be apart
# of topics that several processes create and delete
OF_COMMON_TOPICS = {
    "create_topic": {"TopicExistsError"},
    "append_common": {"UnknownTopicError"},
    "delete_topic": {"UnknownTopicError"},
}
ALLOWED = {
    "CommitFailedError", "LockedError", "ProducerFencedError", "TransactionError", "GroupError", "ClosedError",
    "DeliveryTimeoutError", "GiveUp",
}  # fmt: skip


@dataclass
class Process:
    """One worker: its notes, and when it was killed (ns; 0: not by a signal from outside) and was gone (None: alive
    at the end, which it came to by itself)."""

    number: int
    role: str
    events: list[Event]
    killed_at: int = 0
    dead_by: int | None = None


@dataclass
class Stored:
    """A record of the final log; ``committed`` is None when its transaction is open."""

    offset: int
    value: str
    committed: bool | None


@dataclass
class History:
    """All of it. ``commits``: by group and partition, in the order in which they took effect, with their note."""

    processes: list[Process] = field(default_factory=list)
    stored: dict[TopicNumber, list[Stored]] = field(default_factory=dict)
    ends: dict[TopicNumber, tuple[int, int]] = field(default_factory=dict)  # readable end, end
    commits: dict[tuple[str, TopicNumber], list[tuple[int, str]]] = field(default_factory=dict)
    complaints: list[Anomaly] = field(default_factory=list)
    max_poll_interval: float = 1.0
    eos: tuple[str, str, str] = ("eos", "in", "out")  # group, its input, its output


@dataclass
class Transaction:
    """What one transaction did. ``outcome`` is what its owner was told, None when it was told nothing."""

    name: tuple[int, int]
    values: list[str] = field(default_factory=list)
    asked_at: int | None = None  # to commit
    outcome: str | None = None
    offsets: list[Any] = field(default_factory=list)
    group: str | None = None


@dataclass
class Tenure:
    """A partition of a member, from on_assigned to whatever ended it.

    It was taken between ``since`` and ``start``: who is frozen before its callback runs may have lost it by then.
    """

    group: str
    partition: TopicNumber
    process: int
    consumer: int
    epoch: int
    since: int
    start: int
    end: int
    instance: str | None
    calls: list[tuple[int, int]]  # begin and end of each call that tells the group of the member


@dataclass
class Consumer:
    """A consumer while its notes are walked through."""

    number: int
    group: str | None
    isolation: str
    instance: str | None
    last: dict[TopicNumber, int] = field(default_factory=dict)
    held: dict[TopicNumber, Tenure] = field(default_factory=dict)
    sought: set[TopicNumber] = field(default_factory=set)  # it may go on anywhere
    calls: list[tuple[int, int]] = field(default_factory=list)


class Checker:
    """One check of one history; ``anomalies`` is what was found."""

    def __init__(self, history: History) -> None:
        self.history = history
        self.anomalies: list[Anomaly] = list(history.complaints)
        self.sent: dict[str, tuple[int, str, int]] = {}  # value -> process, producer, number of the sending
        self.acked: dict[str, tuple[str, int, int]] = {}
        self.transactions: dict[tuple[int, int], Transaction] = {}
        self.of_value: dict[str, Transaction] = {}
        self.tenures: dict[tuple[str, TopicNumber], list[Tenure]] = defaultdict(list)
        self.handed: dict[tuple[str, TopicNumber], set[int]] = defaultdict(set)
        self.sought: dict[tuple[str, TopicNumber], list[int]] = defaultdict(list)
        self.told: list[tuple[Tenure | None, str, TopicNumber, int, int, int]] = []
        self.isolation: dict[str, str] = {}
        self.instances: dict[str, list[int]] = defaultdict(list)
        self.counts: Counter[str] = Counter()
        self.reads = 0
        self.at = {partition: {one.offset: one for one in records} for partition, records in history.stored.items()}
        self.visible = {
            (partition, isolation): [one.offset for one in records if one.committed or isolation == "read_uncommitted"]
            for partition, records in history.stored.items()
            for isolation in ("read_committed", "read_uncommitted")
        }

    def found(self, kind: str, text: str) -> None:
        self.anomalies.append(Anomaly(kind, text))

    def check(self) -> list[Anomaly]:
        for process in self.history.processes:
            self.gather(process)
        for process in self.history.processes:
            self.follow(process)
        self.check_log()
        self.check_transactions()
        self.check_owners()
        self.check_commits()
        self.check_effects()
        self.check_ends()
        return self.anomalies

    # --- what was sent ----------------------------------------------------------------------------------------------

    def gather(self, process: Process) -> None:
        """Sendings, deliveries and transactions of one process."""
        begun: dict[int, Event] = {}
        for event in process.events:
            if event["k"] == "i":
                self.counts[event["op"]] += 1
                begun[event["n"]] = event
                self.gather_begun(process, event)
            elif event["k"] == "s":
                if event["what"] == "deliveries":
                    self.acked |= {value: (topic, part, offset) for value, topic, part, offset in event["acked"]}
                    for value, error, text in event["refused"]:
                        if error not in ALLOWED:
                            self.found("unexpected-error", f"delivery of {value}: {error}: {text}")
                elif event["what"] == "complaint":
                    self.found("damage", f"process {process.number} ({process.role}): {event['text']}")
                elif event["what"] == "child":
                    for name, answer in event["answers"].items():
                        if answer != "ForkedHandleError":
                            self.found("fork", f"process {process.number} ({process.role}): {name} gave {answer}")
            else:
                self.gather_ended(process, begun[event["n"]], event)

    def gather_begun(self, process: Process, event: Event) -> None:
        op, name = event["op"], (process.number, event.get("tx", 0))
        if op == "transaction":
            self.transactions[process.number, event["n"]] = Transaction((process.number, event["n"]))
        elif op in ("send", "send_many"):
            producer = f"tx {event['tx']}" if "tx" in event else f"producer {event['p']}"
            for value in event["values"]:
                self.sent[value] = (process.number, producer, len(self.sent))
                if "tx" in event:
                    self.transactions[name].values.append(value)
                    self.of_value[value] = self.transactions[name]
        elif op == "tx_commit":
            self.transactions[name].asked_at = event["t"]
        elif op == "open_consumer" and event.get("group") is not None:
            self.isolation[event["group"]] = event.get("isolation", "read_committed")
            if event.get("instance_id"):
                self.instances[event["instance_id"]].append(event["t"])

    def gather_ended(self, process: Process, begun: Event, event: Event) -> None:
        op = begun["op"]
        if event["k"] == "f":
            error = event["error"]
            allowed = (
                error in ALLOWED
                or (error == "UnknownTopicError" and op in ("seek", "pause", "resume"))
                or error in OF_COMMON_TOPICS.get(op, ())
            )
            if not allowed:
                self.found("unexpected-error", f"process {process.number}: {op}: {error}: {event['text']}")
        if op == "transaction":
            outcome = event.get("seen") or event.get("outcome")
            self.transactions[process.number, begun["n"]].outcome = outcome
        elif op == "fork" and event.get("status"):
            self.found("fork", f"a child of process {process.number} ended with {event['status']}")

    # --- what was read ----------------------------------------------------------------------------------------------

    def follow(self, process: Process) -> None:
        """The consumers of one process, call by call."""
        consumers: dict[int, Consumer] = {}
        begun: dict[int, Event] = {}
        since = 0
        for event in process.events:
            if event["k"] == "i":
                begun[event["n"]] = event
                since = event["t"]
                if event["op"] == "open_consumer":
                    consumers[event["c"]] = Consumer(
                        event["c"], event.get("group"), event.get("isolation", "read_committed"),
                        event.get("instance_id"),
                    )  # fmt: skip
                elif event["op"] == "close_consumer":
                    self.end_all(consumers[event["c"]], event["t"])
                elif event["op"] == "tx_offsets":
                    self.note_offsets(process, consumers[event["c"]], event)
            elif event["k"] == "s":
                if "c" in event:
                    self.follow_change(process, consumers[event["c"]], event, since)
            elif begun[event["n"]].get("c") is not None:
                self.follow_call(process, consumers[begun[event["n"]]["c"]], begun[event["n"]], event)
        last = process.events[-1]["t"] if process.events else 0
        for consumer in consumers.values():
            self.end_all(consumer, last)

    def end_all(self, consumer: Consumer, time: int) -> None:
        for tenure in consumer.held.values():
            tenure.end = time
        consumer.held.clear()

    def follow_change(self, process: Process, consumer: Consumer, event: Event, since: int) -> None:
        for topic, number, epoch in event["names"]:
            partition = (topic, number)
            consumer.last.pop(partition, None)
            if event["what"] == "assigned" and consumer.group is not None:
                tenure = Tenure(
                    consumer.group, partition, process.number, consumer.number, epoch, since, event["t"],
                    event["t"], consumer.instance, consumer.calls,
                )  # fmt: skip
                consumer.held[partition] = tenure
                self.tenures[consumer.group, partition].append(tenure)
            elif partition in consumer.held:
                consumer.held.pop(partition).end = event["t"]

    def follow_call(self, process: Process, consumer: Consumer, begun: Event, event: Event) -> None:
        op = begun["op"]
        if op in ("poll", "next", "batch"):
            consumer.calls.append((begun["t"], event["t"]))
            if event["k"] == "o":
                self.follow_records(process, consumer, event)
        elif op == "seek":
            partition = (begun["topic"], begun["partition"])
            consumer.last.pop(partition, None)
            consumer.sought.add(partition)
            if consumer.group is not None:
                self.sought[consumer.group, partition].append(begun["offset"])
        elif op == "transaction" and (event.get("seen") or event.get("outcome")) != "committed":
            consumer.last.clear()
        elif op == "commit" and event["k"] == "o" and consumer.group is not None:
            for topic, number, offset in begun["offsets"]:
                # a commit that has nothing new to say compares nothing
                held = consumer.held.get((topic, number)) if begun["marked"] else None
                self.told.append((held, consumer.group, (topic, number), offset, begun["t"], process.number))

    def note_offsets(self, process: Process, consumer: Consumer, event: Event) -> None:
        transaction = self.transactions[process.number, event["tx"]]
        transaction.group = consumer.group
        transaction.offsets += event["offsets"]

    def follow_records(self, process: Process, consumer: Consumer, event: Event) -> None:
        who = f"process {process.number} ({process.role}) consumer {consumer.number}"
        within: set[TopicNumber] = set()
        for topic, number, offset, value in event["records"]:
            partition = (topic, number)
            place = f"{who}: {topic}-{number}@{offset} {value[:60]!r}"
            self.reads += 1
            self.check_read(consumer, place, partition, offset, value, event["t"])
            beginning = -1 if consumer.group is None and partition not in consumer.sought else None
            last = consumer.last.get(partition, beginning)
            side = "internal" if partition in within else "external"
            if last is not None:
                if offset <= last:
                    self.found("nonmonotonic-poll", f"{place} after {last} ({side})")
                elif skipped := self.between(partition, consumer.isolation, last, offset):
                    self.found("poll-skip", f"{place} after {last}, passed over {skipped[:5]} ({side})")
            within.add(partition)
            consumer.last[partition] = offset
            if consumer.group is not None:
                self.handed[consumer.group, partition].add(offset)
                if partition not in consumer.held:
                    self.found("unowned-read", place)

    def between(self, partition: TopicNumber, isolation: str, after: int, before: int) -> list[int]:
        """Offsets that a reader could see between two."""
        offsets = self.visible.get((partition, isolation), [])
        return offsets[bisect.bisect_right(offsets, after) : bisect.bisect_left(offsets, before)]

    def check_read(
        self, consumer: Consumer, place: str, partition: TopicNumber, offset: int, value: str, time: int
    ) -> None:
        found = self.at.get(partition, {}).get(offset)
        if found is None:
            self.found("lost-write", f"{place} was read, and is not there at the end")
            return
        if found.value != value:
            self.found("inconsistent-offset", f"{place} was read, at the end there is {found.value!r}")
            return
        if consumer.isolation != "read_committed":
            return
        if not found.committed:
            self.found("aborted-read", place)
        transaction = self.of_value.get(value)
        if transaction is not None and (transaction.asked_at is None or transaction.asked_at > time):
            self.found("precommitted-read", f"{place}, of transaction {transaction.name}")

    # --- the log at the end -----------------------------------------------------------------------------------------

    def everything(self) -> Iterator[tuple[TopicNumber, Stored]]:
        for partition, records in self.history.stored.items():
            for one in records:
                yield partition, one

    def check_log(self) -> None:
        places: dict[str, list[TopicNumber]] = defaultdict(list)
        orders: dict[tuple[Any, ...], tuple[int, str]] = {}
        for partition, one in self.everything():
            places[one.value].append(partition)
            if len(places[one.value]) == 2:
                self.found("duplicate", f"{one.value!r}: in {places[one.value][0]} and at {partition}@{one.offset}")
            if one.value not in self.sent:
                self.found("phantom", f"{one.value!r} at {partition}@{one.offset}")
                continue
            process, producer, number = self.sent[one.value]
            before = orders.get((process, producer, partition))
            if before is not None and before[0] > number:
                self.found("reorder", f"{one.value!r} at {partition}@{one.offset} comes after {before[1]!r}")
            orders[process, producer, partition] = (number, one.value)
        for value, (topic, number, offset) in self.acked.items():
            found = self.at.get((topic, number), {}).get(offset)
            if found is not None and found.value == value:
                continue
            if value not in places:
                self.found("lost-write", f"{value!r}, acknowledged at {topic}-{number}@{offset}")
            else:
                self.found(
                    "inconsistent-offset", f"{value!r}, acknowledged at {topic}-{number}@{offset}: {places[value]}"
                )

    def check_transactions(self) -> None:
        committed = {one.value for _, one in self.everything() if one.committed}
        for transaction in self.transactions.values():
            there = [value for value in transaction.values if value in committed]
            missing = [value for value in transaction.values if value not in committed]
            what = f"transaction {transaction.name} ({transaction.outcome}), {len(there)} of {len(transaction.values)}"
            if transaction.outcome == "committed" and missing:
                self.found("torn-transaction", f"{what} are there: {missing[:3]} are not")
            elif there and (transaction.outcome == "aborted" or transaction.asked_at is None):
                self.found("torn-transaction", f"{what} are there, but it was not committed: {there[:3]}")
            elif there and missing:
                self.found("torn-transaction", f"{what} are there: {missing[:3]} are not")
            if transaction.group is None or not (there or transaction.outcome == "committed"):
                continue
            for topic, number, offset in transaction.offsets:
                entries = self.history.commits.get((transaction.group, (topic, number)), [])
                # behind a record may be markers: where reading goes on may be further on
                if all(entry[0] < offset for entry in entries):
                    self.found("torn-transaction", f"{what}: its offset {topic}-{number}@{offset} is not committed")

    # --- groups -----------------------------------------------------------------------------------------------------

    def check_owners(self) -> None:
        for (group, partition), tenures in self.tenures.items():
            tenures.sort(key=lambda one: one.start)
            for at, later in enumerate(tenures):
                for earlier in tenures[:at]:
                    if later.start < earlier.end and self.surely_owned(earlier, later):
                        self.found(
                            "two-owners",
                            f"group {group}, {partition}: process {later.process} got it while process "
                            f"{earlier.process} consumer {earlier.consumer} had it, at {later.start}",
                        )

    def surely_owned(self, tenure: Tenure, later: Tenure) -> bool:
        """Whether nobody could have taken the partition by then: its member lived, and had polled shortly before."""
        killed_at = next(one.killed_at for one in self.history.processes if one.number == tenure.process)
        if killed_at and killed_at <= later.start:
            return False
        if any(tenure.start < opened < later.start for opened in self.instances.get(tenure.instance or "", [])):
            return False  # replaced by another one of the same instance id
        oldest = max(tenure.start, later.start - int(self.history.max_poll_interval * 1e9) + MARGIN)
        return any(begin > oldest and end <= later.since for begin, end in tenure.calls)

    def check_commits(self) -> None:
        for (group, partition), entries in self.history.commits.items():
            what = f"group {group}, {partition[0]}-{partition[1]}"
            isolation = self.isolation.get(group, "read_committed")
            over: set[str] = set()
            now, highest = "", 0
            for offset, tag in entries:
                if tag:
                    if tag in over:
                        self.found("foreign-commit", f"{what}: {tag} has committed {offset} after {now}")
                    if now and now != tag:
                        over.add(now)
                    now = tag
                sought = any(to <= offset for to in self.sought.get((group, partition), []))
                # a marker is no record: 7 and 8 are the same when a marker is at 7
                if offset < highest and not sought and self.between(partition, isolation, offset - 1, highest):
                    self.found("commit-back", f"{what}: from {highest} to {offset} ({tag!r})")
                highest = offset
            self.check_handed(group, partition, entries[-1][0])
        for held, group, partition, offset, time, process in self.told:
            if all(entry[0] < offset for entry in self.history.commits.get((group, partition), [])):
                self.found("lost-commit", f"group {group}, {partition}: process {process} had {offset} committed")
            for other in self.tenures.get((group, partition), ()):
                if held is not None and held.start < other.since and other.start < time:
                    self.found(
                        "foreign-commit",
                        f"group {group}, {partition}: process {process} has committed {offset} at {time}, but process "
                        f"{other.process} had the partition since {other.start}",
                    )

    def check_handed(self, group: str, partition: TopicNumber, committed: int) -> None:
        """Whatever the group is past, some member was handed."""
        handed = self.handed.get((group, partition), set())
        visible = self.visible.get((partition, self.isolation.get(group, "read_committed")), [])
        missing = [offset for offset in visible if offset < committed and offset not in handed]
        if missing:
            self.found("group-skip", f"group {group}, {partition}: {len(missing)} below {committed}: {missing[:8]}")

    def check_effects(self) -> None:
        """Consume, transform, produce: each input has its output once."""
        group, source, sink = self.history.eos
        effects: Counter[tuple[str, int, int]] = Counter()
        for partition, one in self.everything():
            if partition[0] == sink and one.committed and "|" in one.value:
                _, topic, number, offset, value = one.value.split("|", 4)
                effects[topic, int(number), int(offset)] += 1
                found = self.at.get((topic, int(number)), {}).get(int(offset))
                if found is None or found.value != value or not found.committed:
                    self.found("aborted-read", f"{one.value!r} was made of what is not there")
        for place, count in effects.items():
            if count > 1:
                self.found("effect-twice", f"{place}: {count} times")
        for partition, records in self.history.stored.items():
            if partition[0] != source:
                continue
            entries = self.history.commits.get((group, partition), [])
            committed = entries[-1][0] if entries else 0
            for one in records:
                count = effects[*partition, one.offset]
                if one.committed and one.offset < committed and count == 0:
                    self.found("effect-lost", f"{partition}@{one.offset} {one.value!r}, committed is {committed}")
                if one.offset >= committed and count:
                    self.found("torn-transaction", f"{partition}@{one.offset} has its output, committed is {committed}")

    def check_ends(self) -> None:
        for partition, (readable, end) in self.history.ends.items():
            if readable != end:
                self.found("hanging", f"{partition}: {readable} can be read, the end is {end}")
        for partition, one in self.everything():
            if one.committed is None:
                self.found("hanging", f"{partition}@{one.offset} {one.value!r}: its transaction has no end")
        for group in self.isolation:
            for partition, records in self.history.stored.items():
                if group == self.history.eos[0] and partition[0] != self.history.eos[1]:
                    continue
                visible = [one.offset for one in records if one.committed]
                entries = self.history.commits.get((group, partition), [])
                if visible and (not entries or entries[-1][0] <= visible[-1]):
                    at = entries[-1][0] if entries else None
                    self.found("hanging", f"group {group} has not come to the end of {partition}: {at}, {visible[-1]}")


def check(history: History) -> list[Anomaly]:
    """Everything that is wrong with a history."""
    return Checker(history).check()


def kinds(anomalies: Iterable[Anomaly]) -> set[str]:
    return {anomaly.kind for anomaly in anomalies}
