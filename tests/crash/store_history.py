"""What a store has to hold, by what was told of its lives (``store_life``): after power loss, in a copy, after errors.

A topic that was created is there, with its options; one that was deleted is gone, and can be made anew. Records that
were acknowledged at a durable level are at their offsets, all others are a beginning of what was sent, each once.
Transactions are there with all their records and offsets, or not at all; nothing is left open. What a group committed
last counts. A backup that was finished opens, and holds what was acknowledged before it began; others do not open. What
is left for a Kafka broker is true.
"""

from __future__ import annotations

import hashlib
import json
import os
import random
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import fastlog
from fastlog.delivery.dead_letters import DeadLetters
from fastlog.groups.offsets import OffsetStore
from fastlog.store import files as store_files
from fastlog.store import naming
from fastlog.transactions import Coordinator
from tests.crash.recording import Record
from tests.crash.store_life import CALLS, KEYED, MAIL, ORDERS, STORE, identity_of, make_value
from tests.kill_server import DURABLE

NEVER = 1 << 62
# shares of disks that are also read before anybody may write, whose partitions are read byte for byte, that are used
# further, and that are read once more when they were closed
READ_FIRST, VERIFIED, GOES_ON, READ_AGAIN = 0.2, 0.2, 0.1, 0.1
DEAD_LETTERS = f"{ORDERS}.{MAIL}.dlq"

Place = tuple[str, int]  # the id of a topic, and a partition


class State(NamedTuple):
    """A topic that may be there. None: anything."""

    topic_id: str | None
    partitions: int
    options: str | None


class Sent(NamedTuple):
    """The calls that sent a record to one place, and its key. What a move that failed had sent, a later one sends."""

    calls: list[Call]
    key: str | None


@dataclass
class Call:
    """One call: when it began and when it returned, and what it did so far. ``failed`` is what it raised."""

    number: int
    kind: str
    facts: dict[str, Any]
    begin: int
    end: int = NEVER
    answer: dict[str, Any] = field(default_factory=dict)
    failed: str | None = None
    # of a transaction
    sending: list[tuple[int, dict[str, Any]]] = field(default_factory=list)  # when, what
    offsets: list[dict[str, Any]] = field(default_factory=list)
    letters: list[str] = field(default_factory=list)
    deciding: int = NEVER
    commits: bool = False

    @property
    def answered(self) -> int:
        """When it returned; never, if it raised."""
        return self.end if self.failed is None else NEVER


class Span(NamedTuple):
    """What is looked at: everything that had returned before ``least`` happened, nothing that began at ``most``."""

    least: int
    most: int

    def is_begun(self, call: Call) -> bool:
        return call.begin < self.most

    def is_done(self, call: Call) -> bool:
        return call.answered < self.least


class StoreHistory:
    """The lives of a store.

    ``earlier`` is that of a disk that this one was recorded on, which held what was left of it at ``earlier_at``.
    ``loses``: power was lost, so that what was acknowledged at other levels than the durable ones may be gone.
    """

    def __init__(
        self,
        recorded: Record,
        seed: int,
        earlier: StoreHistory | None = None,
        earlier_at: int = 0,
        *,
        loses: bool = True,
    ) -> None:
        self.loses = loses
        self.recorded = recorded
        self.seed = seed
        self.earlier = earlier
        self.earlier_at = earlier_at
        self.calls: list[Call] = [] if earlier is None else earlier.calls_until(earlier_at)
        self.known: set[tuple[object, ...]] = set()  # backups that were checked
        self.read(recorded.marks())
        if earlier is not None:
            self.require_positions()
        self.sort()

    # --- what was told ------------------------------------------------------------------------------------------------

    def calls_until(self, at: int) -> list[Call]:
        """What had happened by then, for somebody who comes later, to whom all of it is before moment 0; nothing that
        is under way will ever return.
        """
        found: list[Call] = []
        for one in self.calls:
            if one.begin >= at:
                continue
            is_over = one.end < at
            answer = dict(one.answer) if is_over else {}
            if not one.facts.get("durable", True):
                answer.pop("offsets", None)  # of what was lost another record may have them
            found.append(
                Call(
                    one.number, one.kind, one.facts, one.begin - at, one.end - at if is_over else NEVER, answer,
                    one.failed if is_over else None,
                    [(when - at, what) for when, what in one.sending if when < at], one.offsets, one.letters,
                    one.deciding - at if one.deciding < at else NEVER, one.commits,
                )
            )  # fmt: skip
        return found

    def read(self, marks: Iterable[tuple[int, Mapping[str, Any]]]) -> None:
        """Take in what was told, and when."""
        by_number = {one.number: one for one in self.calls}
        for at, told in marks:
            facts = dict(told)
            what, number = facts.pop("what"), facts.pop("n")
            if what == "begin":
                assert number not in by_number, f"call {number} began twice"
                by_number[number] = Call(number, facts.pop("kind"), facts, at)
                self.calls.append(by_number[number])
                continue
            call = by_number[number]
            if what == "sending":
                call.sending.append((at, facts))
            elif what == "offsets":
                call.offsets.append(facts)
            elif what == "handling":
                call.letters += facts["ids"]
            elif what == "deciding":
                call.deciding, call.commits = at, facts["commit"]
            else:
                call.failed = facts.pop("error") if what == "failed" else None
                call.end, call.answer = at, facts

    def require_positions(self) -> None:
        """No group is beyond the end of a log all of whose records were acknowledged at a durable level."""
        is_durable = all(call.facts["durability"] in DURABLE for call in self.calls if call.kind == "open")
        for call in self.calls:
            is_beyond = (call.failed or "").startswith(fastlog.OffsetOutOfRangeError.__name__)
            assert not (is_beyond and is_durable), f"an offset that was committed is gone: {call}"

    def sort(self) -> None:
        """What a check looks up."""
        self.sent: dict[tuple[Place, str], Sent] = {}
        self.acked: dict[Place, list[tuple[int, str, Call]]] = {}
        self.order: dict[tuple[Place, int], list[str]] = {}  # by producer: ids as they were sent
        for call in self.calls:
            sendings = [call.facts] if call.kind == "send" else [what for _, what in call.sending]
            for facts in sendings:
                place = (facts["topic_id"], facts["partition"])
                keys = facts.get("keys") or [None] * len(facts["ids"])
                for identity, key in zip(facts["ids"], keys, strict=True):
                    self.sent.setdefault((place, identity), Sent([], key)).calls.append(call)
                if call.kind == "send":
                    self.order.setdefault((place, call.number // CALLS), []).extend(facts["ids"])
            for answer in [{**call.facts, **call.answer}] if call.kind == "send" else call.answer.get("places", ()):
                place = (answer["topic_id"], answer["partition"])
                for identity, offset in zip(answer["ids"], answer.get("offsets", ()), strict=False):
                    if offset is not None:
                        self.acked.setdefault(place, []).append((offset, identity, call))

    def told(self, at: int) -> str:
        """What was under way, for people."""
        under_way = [one for one in self.calls if one.begin < at <= one.end]
        return "\n".join(["by then these were under way:", *(f"  {one}" for one in under_way)])

    # --- what is there ------------------------------------------------------------------------------------------------

    def topics(self, span: Span) -> dict[str, set[State | None]]:
        """What each topic may be."""
        states: dict[str, set[State | None]] = {}
        for call in self.calls:
            if call.kind not in ("create", "alter", "grow", "delete") or not span.is_begun(call):
                continue
            before = states.setdefault(call.facts["topic"], {None})
            after: set[State | None]
            if call.kind == "create":
                options = call.facts["options"]
                told = None if options is None else json.dumps(options, sort_keys=True)
                after = {State(call.answer.get("id"), call.facts["partitions"], told)}
            elif call.kind == "delete":
                after = {None}
            else:
                after = {changed(state, call) for state in before}
            states[call.facts["topic"]] = after if span.is_done(call) else before | after
        return states

    def check_topics(self, store: fastlog.Store, span: Span) -> dict[str, str]:
        """The topics that are there are those that may be; their ids."""
        found: dict[str, str] = {}
        there = set(store.topics())
        states = self.topics(span)
        assert there <= set(states), f"topics that nobody made: {there - set(states)}"
        for name, allowed in states.items():
            if name not in there:
                assert None in allowed, f"the topic {name} is gone: {allowed}"
                continue
            topic = store.topic(name)
            found[name] = topic.topic_id
            is_one = [
                state is not None
                and state.topic_id in (None, topic.topic_id)
                and state.partitions == topic.partitions
                and state.options in (None, json.dumps(topic.config, sort_keys=True))
                for state in allowed
            ]
            assert any(is_one), f"{name} has {topic.partitions} partitions, {topic.config}; it should be of {allowed}"
        return found

    def check_content(self, store: fastlog.Store, span: Span, *, is_settled: bool = True) -> dict[Place, list[str]]:
        """Everything in an open store; the ids of what is visible. ``is_settled``: what was left open is ended."""
        ids = self.check_topics(store, span)
        visible: dict[Place, list[str]] = {}
        for name, topic_id in ids.items():
            for partition in range(store.topic(name).partitions):
                place = (topic_id, partition)
                visible[place] = self.check_partition(store, name, place, span, is_settled=is_settled)
        if not is_settled:
            return visible
        there = {(place, identity) for place, found in visible.items() for identity in found}
        committed = {
            call.number: self.check_transaction(call, span, set(ids.values()), there)
            for call in self.calls
            if call.kind == "transaction" and span.is_begun(call)
        }
        self.check_offsets(store, span, committed, ids)
        self.check_letters(store, span, committed, ids)
        return visible

    def check_partition(
        self, store: fastlog.Store, name: str, place: Place, span: Span, *, is_settled: bool
    ) -> list[str]:
        """One partition: the ids of its visible records."""
        if store.read_only and not store.directory.is_created(name, place[1]):
            start, end, is_open = 0, 0, False
            found: dict[int, str] = {}
        else:
            with store.directory.lease(name, place[1]) as lease:
                log = lease.log
                if is_settled and log.last_stable_offset < log.end_offset:
                    # what ``__transaction_state`` does not know is ended for whoever waits for it
                    Coordinator.of(store.directory).resolve_partition(fastlog.TopicPartition(name, place[1]), log)
                start, end = log.start_offset, log.end_offset
                found = self.read_log(log, name, place, span)
                is_open = log.last_stable_offset < end
                assert not (is_open and is_settled), f"something is left open in {name}-{place[1]}: {log}"
        self.check_start(name, place, span, start)
        where = f"{name}-{place[1]}, from {start} to {end}"
        self.check_acknowledged(name, place, span, found, start, where, is_settled=is_settled, is_open=is_open)
        if name != KEYED:
            self.check_order(place, set(found.values()), start, where)
        return list(found.values())

    def check_acknowledged(
        self,
        name: str,
        place: Place,
        span: Span,
        found: dict[int, str],
        start: int,
        where: str,
        *,
        is_settled: bool,
        is_open: bool,
    ) -> None:
        """What was acknowledged is at its offset; of what was not safe the end may be missing."""
        newest = {self.sent[place, identity].key: offset for offset, identity in found.items()}
        lost: str | None = None
        for offset, identity, call in sorted(self.acked.get(place, ()), key=lambda one: one[0]):
            is_visible = call.kind == "send" or (call.answer.get("outcome") == "committed" and is_settled)
            if offset < start or not is_visible:
                continue
            is_safe = (call.facts.get("durable", True) or not self.loses) and call.end < span.least
            if name == KEYED:
                key = self.sent[place, identity].key
                is_there = newest.get(key, -1) >= offset
                assert is_there or not is_safe, f"{identity} is the newest of {key}, and gone: {where}"
                assert found.get(offset, identity) == identity, f"at {offset} is {found[offset]}, not {identity}"
                continue
            stable = found.get(offset)
            assert stable in (identity, None), f"{stable} at {offset}, where {identity} was acknowledged: {where}"
            if stable is None:
                assert is_open or not is_safe, f"{identity} was acknowledged at {offset}, and is gone: {where}"
                lost = lost or identity
            else:
                assert lost is None, f"{lost} is missing before {identity}, which was acknowledged later: {where}"

    def read_log(self, log: Any, name: str, place: Place, span: Span) -> dict[int, str]:
        """Ids by offset; each was sent here, once."""
        found: dict[int, str] = {}
        for batch in log.batches():
            for offset, value in zip(batch.offsets.tolist(), batch.values.to_list(), strict=True):
                identity = identity_of(value)
                if identity is None and name == DEAD_LETTERS:
                    continue  # an audit
                sent = self.sent.get((place, identity or ""))
                where = f"{name}-{place[1]} at {offset}: {value!r}"
                assert sent is not None, f"nobody sent this: {where}"
                assert any(map(span.is_begun, sent.calls)), f"this is of the future: {where}"
                assert offset not in found
                found[offset] = identity or ""
        assert len(set(found.values())) == len(found), f"a record is there twice: {sorted(found.values())}"
        return found

    def check_start(self, name: str, place: Place, span: Span, start: int) -> None:
        allowed = {0}
        for call in self.calls:
            if call.kind == "trim" and span.is_begun(call):
                if (call.facts["topic_id"], call.facts["partition"]) != place:
                    continue
                before = call.facts["before"]
                allowed = {max(before, one) for one in allowed} | (set() if span.is_done(call) else allowed)
        assert start in allowed, f"{name}-{place[1]} starts at {start}, expected one of {allowed}"

    def check_order(self, place: Place, found: set[str], start: int, where: str) -> None:
        """Of each producer a beginning of what it sent is there, but for what was deleted."""
        for (of, _), ids in self.order.items():
            if of != place or any(call.failed for call in self.calls):
                continue
            there = [identity in found for identity in ids]
            if start:
                while there and not there[0]:
                    there.pop(0)
            last = max((at for at, is_there in enumerate(there) if is_there), default=-1)
            missing = [ids[len(ids) - len(there) + at] for at in range(last + 1) if not there[at]]
            assert not missing, f"{missing} are missing before what was sent later: {where}"

    def check_transaction(self, call: Call, span: Span, topics: set[str], there: set[tuple[Place, str]]) -> bool | None:
        """All of it or nothing: whether it is committed; None when its records do not tell."""
        expected = [
            ((facts["topic_id"], facts["partition"]), identity)
            for _, facts in call.sending
            for identity in facts["ids"]
            if facts["topic_id"] in topics and self.last_sender(facts, identity, span) is call
        ]
        kept = [one for one in expected if not self.may_be_trimmed(one[0], span)]
        visible = [one for one in expected if one in there]
        outcome = call.answer.get("outcome") if call.end < span.least else None
        may_commit = call.commits and call.deciding < span.most and outcome != "aborted"
        assert not visible or may_commit, f"{visible} of a transaction that was not committed: {call}"
        if visible or (outcome == "committed" and call.failed is None):
            missing = [one for one in kept if one not in there]
            assert not missing, f"of a transaction that is committed {missing} are missing: {call}"
            return True
        return None if may_commit and not kept else False

    def last_sender(self, facts: dict[str, Any], identity: str, span: Span) -> Call:
        sent = self.sent[(facts["topic_id"], facts["partition"]), identity]
        return [call for call in sent.calls if span.is_begun(call)][-1]

    def may_be_trimmed(self, place: Place, span: Span) -> bool:
        return any(
            call.kind == "trim" and span.is_begun(call) and (call.facts["topic_id"], call.facts["partition"]) == place
            for call in self.calls
        )

    def check_offsets(
        self, store: fastlog.Store, span: Span, committed: dict[int, bool | None], ids: dict[str, str]
    ) -> None:
        """Each group is where it committed last."""
        allowed: dict[tuple[str, str, int], set[int | None]] = {}
        for call in self.calls:
            if not span.is_begun(call):
                continue
            commits = [call.facts] if call.kind == "commit" else call.offsets
            for facts in commits:
                for topic, topic_id, partition, offset in facts["offsets"]:
                    if ids.get(topic) != topic_id:
                        continue
                    before = allowed.setdefault((facts["group"], topic, partition), {None})
                    if call.kind == "commit":
                        is_certain: bool | None = (
                            True if span.is_done(call) and (facts["durable"] or not self.loses) else None
                        )
                    else:
                        is_certain = committed[call.number]
                    if is_certain is None:
                        before.add(offset)
                    elif is_certain:
                        before.clear()
                        before.add(offset)
        offsets = OffsetStore(store.directory)
        known: dict[str, Any] = {}
        for (group, topic, partition), one_of in allowed.items():
            if group not in known:
                known[group] = offsets.all_committed(group)
            found = known[group].get(fastlog.TopicPartition(topic, partition))
            at = None if found is None else found.offset
            assert at in one_of, f"{group} is at {at} in {topic}-{partition}, expected one of {one_of}"

    def check_letters(
        self, store: fastlog.Store, span: Span, committed: dict[int, bool | None], ids: dict[str, str]
    ) -> None:
        """A dead letter is open until somebody has handled it."""
        if not {ORDERS, DEAD_LETTERS} <= ids.keys():
            return
        is_open = {identity_of(letter.value) for letter in DeadLetters.open(store, ORDERS, MAIL, by="check").list()}
        calls = [call for call in self.calls if span.is_begun(call) and call.letters]
        gone = {letter for call in calls for letter in call.letters} - is_open
        # what failed may have been done all the same, or done again
        by = [
            call
            for call in calls
            if committed[call.number] or (committed[call.number] is None and gone >= set(call.letters))
        ]
        handled = {letter for call in by for letter in call.letters}
        assert gone == handled, f"{handled - gone} are still open, {gone - handled} are not open any more: {calls}"

    # --- disks --------------------------------------------------------------------------------------------------------

    def check(self, root: Path, at: int, seed: int) -> None:
        """Check a disk that may be left after ``at`` entries, put into the folder ``root``; use it.

        Raises AssertionError, or what fastlog raises.
        """
        chance = random.Random(seed)
        path = root / STORE
        span = Span(at, at)
        check_handover(path)
        if chance.random() < READ_FIRST:
            self.check_as_reader(path, span)
        for call in self.calls:
            if call.kind == "backup" and span.is_begun(call):
                self.check_backup(root / call.facts["target"], call, span)
        level = chance.choice(["group", "os"])
        with fastlog.open(path, durability=level) as store:
            visible = self.check_content(store, span)
            if chance.random() < VERIFIED:
                check_logs(store)
            more = self.go_on(store, chance, span) if chance.random() < GOES_ON else {}
        if more or chance.random() < READ_AGAIN:
            with fastlog.open(path, read_only=True) as store:
                check_again(store, {**visible, **more})
                check_logs(store)
            check_handover(path)

    def check_as_reader(self, path: Path, span: Span) -> None:
        """Who may not write sees no more than there is, and changes nothing."""
        before = list_tree(path)
        try:
            with fastlog.open(path, read_only=True) as store:
                self.check_content(store, span, is_settled=False)
        except (fastlog.UnsupportedFormatError, fastlog.StorageError) as error:
            is_made = any(call.kind == "open" and span.is_done(call) for call in self.calls)
            if is_made or not any(words in str(error) for words in ("is no store", "does not exist")):
                raise
        assert list_tree(path) == before, "a read-only handle changed the disk"

    def check_backup(self, path: Path, call: Call, span: Span) -> None:
        """A backup that is finished opens, and has what was acknowledged when it began."""
        content = (call.number, span.is_done(call), min(span.most, call.end), content_of(path))
        if content in self.known:
            return  # most disks hold the same ones
        self.known.add(content)
        try:
            store = fastlog.open(path, read_only=True)
        except (fastlog.UnsupportedFormatError, fastlog.StorageError) as error:
            assert not span.is_done(call), f"a finished backup does not open: {error}"
            return
        store.close()
        with fastlog.open(path) as store:
            self.check_content(store, Span(call.begin, min(span.most, call.end)))

    def go_on(self, store: fastlog.Store, chance: random.Random, span: Span) -> dict[Place, list[str]]:
        """Use what is there: a deleted topic made anew, records, a transaction; what is where then."""
        gone = [name for name, states in self.topics(span).items() if name not in store.topics()]
        name = chance.choice(gone) if gone else "afterwards"
        topic = store.create_topic(name, 2)
        ids = [f"{999 * CALLS}.{index}" for index in range(4)]
        with store.producer() as producer:
            producer.send(name, make_value(ids[0]), partition=0).result(30)
        with (
            store.producer(transactional_id=chance.choice(["pay-any", "new"])) as paying,
            store.consumer(name, group="afterwards", start="earliest", auto_commit=False) as consumer,
        ):
            assert [identity_of(one.value) for one in consumer.poll(timeout=10)] == ids[:1]
            with paying.transaction(consumer) as transaction:
                transaction.send(name, make_value(ids[1]), partition=0)
                transaction.send(name, make_value(ids[2]), partition=1)
                transaction.commit_offsets()
            with paying.transaction() as transaction:
                transaction.send(name, make_value(ids[3]), partition=1)
                transaction.abort()
        committed = OffsetStore(store.directory).all_committed("afterwards")
        assert committed[fastlog.TopicPartition(name, 0)].offset == 1
        return {(topic.topic_id, 0): ids[:2], (topic.topic_id, 1): ids[2:3]}


def changed(state: State | None, call: Call) -> State | None:
    """A topic after it was altered."""
    if state is None:
        return None
    if call.kind == "grow":
        return state._replace(partitions=call.facts["partitions"])
    if state.options is None:
        return state
    return state._replace(options=json.dumps({**json.loads(state.options), **call.facts["changes"]}, sort_keys=True))


def check_again(store: fastlog.Store, visible: dict[Place, list[str]]) -> None:
    """A store that was closed holds what was seen in it."""
    for name in store.topics():
        topic = store.topic(name)
        for partition in range(topic.partitions):
            found: list[str] = []
            if store.directory.is_created(name, partition):
                with store.directory.lease(name, partition) as lease:
                    values = [value for batch in lease.log.batches() for value in batch.values.to_list()]
                found = [identity for identity in map(identity_of, values) if identity is not None]
            assert found == visible.get((topic.topic_id, partition), []), f"{name}-{partition} has changed by closing"


def check_logs(store: fastlog.Store) -> None:
    """Every partition checks out, those of fastlog's own topics too."""
    for name in store.topics(internal=True):
        for partition in range(store.directory.topic(name).partitions):
            if store.directory.is_created(name, partition):
                with store.directory.lease(name, partition) as lease:
                    report = lease.log.verify()
                    assert not report.damages, f"{name}-{partition}: {report.damages}"


def check_handover(path: Path) -> None:
    """Where the mark of a clean stop lies, a broker believes every file: it may."""
    topics = path / store_files.TOPICS
    if not (topics / store_files.CLEAN_SHUTDOWN).exists():
        return
    points = store_files.read_checkpoint(str(topics / store_files.RECOVERY_POINTS))
    for folder in topics.iterdir():
        key = naming.parse_folder(folder.name)
        segments = sorted(folder.glob("*.log")) if folder.is_dir() else []
        if key is None or not segments:
            continue
        end = 0
        for segment in segments:
            infos = list(fastlog.scan_segment(segment))
            assert all(info.is_valid for info in infos), f"{segment} does not check out, and is said to be clean"
            assert sum(info.size for info in infos) == segment.stat().st_size, f"{segment} ends with something else"
            end = infos[-1].last_offset + 1 if infos else int(segment.stem)
        assert points.get(key) == end, f"{folder.name} ends at {end}, and its recovery point is {points.get(key)}"


def list_tree(path: Path) -> dict[str, tuple[int, int]]:
    """Sizes and times of the files of a store."""
    found = {}
    for file in path.rglob("*"):
        if file.is_file():
            status = file.stat()
            found[file.relative_to(path).as_posix()] = (status.st_size, status.st_mtime_ns)
    return found


def content_of(path: Path) -> frozenset[tuple[str, bytes]]:
    """Names of all files and digests of what is in them."""
    return frozenset(
        (os.path.join(above, name), hashlib.blake2b(Path(above, name).read_bytes(), digest_size=16).digest())
        for above, _, names in os.walk(path)
        for name in names
    )
