"""A gang of workers on one store, what befalls them, and the history of it all."""

from __future__ import annotations

import random
import signal
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import fastlog
from fastlog.groups import formats
from fastlog.store.internal import CONSUMER_OFFSETS, partition_for_name
from tests.histories.checker import Anomaly
from tests.histories.nursery import Child, Nursery
from tests.histories_messaging.checker import Checker, History, Process, Stored
from tests.histories_messaging.notes import Event, read_notes
from tests.histories_messaging.workers import EOS_GROUP, IN, OUT

MODULE = "tests.histories_messaging.workers"
MAX_POLL_INTERVAL = 1.0
TRANSACTION_TIMEOUT = 1.2
APPEND = [f"append.{step}" for step in ("locked", "dirty", "batch_written", "written", "published", "unlocked")]
TRANSACTION = [f"transaction.{step}" for step in ("opened", "entered", "synced", "decided", "marked", "completed")]
GROUP = [f"group.{step}" for step in ("stripped", "seated", "published", "taken", "released")]
EXCHANGE = ["exchange.compared", "exchange.stored"]
PAGE = ["page.filling", "page.filled", "page.published", "group.moving", "group.copied", "group.retired"]
STORE = [
    *("store.topic_written", "store.topic_deleting", "store.partition_made", "store.partition_named"),
    *("store.partition_renamed", "store.topic_forgotten"),
]
FAILPOINTS = {
    "produce": APPEND,
    "transact": APPEND + TRANSACTION * 2,
    "transform": APPEND + TRANSACTION * 2 + GROUP + EXCHANGE + PAGE,
    "consume": APPEND + GROUP * 2 + EXCHANGE * 2 + PAGE,
    "follow": [],
    "garden": APPEND + STORE * 2,
}
POSTS: dict[str, tuple[str, dict[str, Any]]] = {
    "producer": ("produce", {"topics": [IN, IN, OUT]}),
    "transactions": ("transact", {"transactional_id": "tx"}),
    "transformer a": ("transform", {"transactional_id": "eos-a"}),
    "transformer b": ("transform", {"transactional_id": "eos-b"}),
    "member a": ("consume", {"group": "plain", "instance_id": "static"}),
    "member b": ("consume", {"group": "plain"}),
    "seeker": ("consume", {"group": "seeking", "seeks": True}),
    "reader": ("follow", {}),
}
# beside them, or in their place: tasks of asyncio, and topics that come and go
MORE_POSTS: dict[str, tuple[str, dict[str, Any]]] = {
    "async producer": ("produce", {"topics": [IN, OUT], "asynchronous": True}),
    "async transformer": ("transform", {"transactional_id": "eos-c", "asynchronous": True}),
    "async member": ("consume", {"group": "plain", "asynchronous": True}),
    "gardener": ("garden", {}),
    "async gardener": ("garden", {"asynchronous": True}),
}


@dataclass
class Worker:
    """One process of the gang; ``post`` is what it does there, others may have done so before."""

    number: int
    role: str
    post: str
    child: Child
    notes: Path
    failpoint: list[Any] | None
    wakes_at: float | None = None  # when a frozen one is let go on
    read_to: int = 0
    calls: int = 0
    heard: int | None = None  # bytes of its notes that count as told, when power was cut under it

    def count(self) -> int:
        """Calls that it has noted so far."""
        if self.notes.exists():
            with self.notes.open("rb") as file:
                file.seek(self.read_to)
                data = file.read()
            self.read_to += len(data)
            self.calls += data.count(b'"k":"i"')
        return self.calls


@dataclass
class Gang:
    """Processes on one store. ``options`` are those of every worker.

    The store lies in ``place``; the notes, and by default the store too, in ``folder``.
    """

    nursery: Nursery
    folder: Path
    seed: int
    options: dict[str, Any] = field(default_factory=dict)
    place: Path | None = None
    durability: str = "os"
    posts: dict[str, tuple[str, dict[str, Any]]] = field(default_factory=lambda: dict(POSTS))
    workers: list[Worker] = field(default_factory=list)
    at_post: dict[str, Worker] = field(default_factory=dict)
    counts: Counter[str] = field(default_factory=Counter)
    complaints: list[Anomaly] = field(default_factory=list)
    failpoints: bool = True
    wait_seconds: float = 30  # for a worker to end
    drained: list[tuple[str, Worker]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.path = (self.place or self.folder) / "store"
        self.notes = self.folder / "notes"
        self.notes.mkdir(exist_ok=True)
        self.chance = random.Random(self.seed)
        self.partitions = {IN: 3, OUT: 3}
        self.summary = ""
        # what takes locks that a frozen worker may hold happens beside the thread that wakes the frozen
        self.beside = ThreadPoolExecutor(1)
        self.growing: Future[None] | None = None
        with fastlog.open(self.path, durability=self.durability) as store:
            for topic, count in self.partitions.items():
                store.create_topic(topic, count)

    def __enter__(self) -> Gang:
        return self

    def __exit__(self, *_: object) -> None:
        for worker in self.living():
            worker.child.kill()
        self.beside.shutdown()

    # --- processes --------------------------------------------------------------------------------------------------

    def start(self, post: str, **options: Any) -> Worker:
        """A process for a post."""
        role, settings = self.posts[post]
        number = len(self.workers)
        failpoint = None
        names = FAILPOINTS[role] if self.failpoints and not options else []
        if names and self.chance.random() < 0.5:
            nth = int(10 ** (self.chance.random() * 2.3))
            failpoint = [self.chance.choice(names), self.chance.choice(["kill", "kill", "stop"]), nth]
        everything: dict[str, Any] = {
            "max_poll_interval": MAX_POLL_INTERVAL, "transaction_timeout": TRANSACTION_TIMEOUT, "failpoint": failpoint,
            "durability": self.durability, **self.options, **settings, **options,
        }  # fmt: skip
        notes = self.notes / f"{number}"
        child = self.nursery.start(
            f"{MODULE}:{role}", f"{post} {number}", number=number, notes=str(notes), path=str(self.path),
            seed=self.seed, **everything,
        )  # fmt: skip
        worker = Worker(number, role, post, child, notes, failpoint)
        self.workers.append(worker)
        self.at_post[post] = worker
        self.counts["processes"] += 1
        return worker

    def living(self) -> list[Worker]:
        return [worker for worker in self.workers if worker.child.alive]

    def operations(self) -> int:
        return sum(worker.count() for worker in self.workers)

    def kill(self, worker: Worker) -> None:
        worker.child.kill()
        self.counts["kills"] += 1

    def freeze(self, worker: Worker, seconds: float) -> None:
        worker.child.signal(signal.SIGSTOP)
        worker.wakes_at = time.monotonic() + seconds
        self.counts["long pauses" if seconds > MAX_POLL_INTERVAL else "short pauses"] += 1

    # --- what befalls them ------------------------------------------------------------------------------------------

    def run(self, operations: int, least: float = 0, most: float = 60, calm: bool = False) -> None:
        """Let them work until they have made so many calls, and for ``least`` to ``most`` seconds."""
        begun = time.monotonic()
        for post in self.posts:
            self.start(post)
        while (past := time.monotonic() - begun) < most and (past < least or self.operations() < operations):
            time.sleep(self.chance.choice([0.01, 0.05, 0.2]) * self.chance.random() + 0.01)
            self.look_after()
            if not calm:
                self.strike()
        while self.growing is not None:
            self.look_after()
            time.sleep(0.01)

    def look_after(self) -> None:
        """Wake who has slept long enough, and fill empty posts."""
        now = time.monotonic()
        if self.growing is not None and self.growing.done():
            self.growing.result()
            self.growing = None
        for worker in self.living():
            if worker.wakes_at is None and worker.child.stopped:
                worker.wakes_at = now + self.chance.choice([0.05, 0.3, 1.5])  # at a failpoint
                self.counts["stops at failpoints"] += 1
            if worker.wakes_at is not None and worker.wakes_at <= now:
                worker.wakes_at = None
                worker.child.stopped = False
                worker.child.signal(signal.SIGCONT)
                if self.at_post[worker.post] is not worker and self.chance.random() < 0.5:
                    worker.child.ask_to_stop()
        for post, worker in list(self.at_post.items()):
            if not worker.child.alive:
                if worker.child.status == signal.SIGKILL and not worker.child.signalled_at:
                    self.counts["kills at failpoints"] += 1
                self.start(post)
        for worker in self.living():
            if self.at_post[worker.post] is not worker and worker.wakes_at is None and self.chance.random() < 0.1:
                worker.child.ask_to_stop()

    def strike(self) -> None:
        dice = self.chance.random()
        worker = self.chance.choice(list(self.at_post.values()))
        if worker.wakes_at is not None or not worker.child.alive:
            return
        if dice < 0.12:
            self.kill(worker)
        elif dice < 0.3:
            self.freeze(worker, self.chance.choice([0.01, 0.1, 0.4]))
        elif dice < 0.36:
            self.freeze(worker, 1.3 + self.chance.random() * 0.7)
            if self.chance.random() < 0.6:
                self.counts["replaced while frozen"] += 1
                self.start(worker.post)  # the frozen one wakes up as a zombie
        elif dice < 0.42:
            worker.child.ask_to_stop()
            self.counts["asked to stop"] += 1
        elif dice < 0.43:
            topic = self.chance.choice([IN, OUT])
            if self.partitions[topic] < 5 and self.growing is None:
                self.partitions[topic] += 1
                self.growing = self.beside.submit(self.grow, topic, self.partitions[topic])
                self.counts["partitions added"] += 1

    def grow(self, topic: str, partitions: int) -> None:
        with fastlog.open(self.path, durability=self.durability) as store:
            store.add_partitions(topic, partitions)

    def lose_power(self, cut: Callable[[], None]) -> None:
        """Power is cut under all of them: what they have noted by now was promised, if the level is a durable one."""
        living = self.living()
        for worker in living:
            worker.heard = worker.notes.stat().st_size if worker.notes.exists() else 0
        cut()
        for worker in living:
            worker.child.kill()
        self.counts["power cuts"] += 1

    # --- the end ----------------------------------------------------------------------------------------------------

    def stop(self) -> None:
        """All of them end; who does not is a finding."""
        for worker in self.living():
            if worker.role not in ("produce", "transact") and self.chance.random() < 0.5:
                self.kill(worker)
                continue
            worker.child.signal(signal.SIGCONT)
            worker.child.ask_to_stop()
        self.wait_for(self.living())

    def wait_for(self, workers: list[Worker]) -> None:
        until = time.monotonic() + self.wait_seconds
        for worker in workers:
            while worker.child.alive and time.monotonic() < until:
                if worker.child.stopped:  # at a failpoint
                    worker.child.stopped = False
                    worker.child.signal(signal.SIGCONT)
                time.sleep(0.005)
            if worker.child.alive:
                last = worker.notes.read_text().splitlines()[-2:]
                self.complaints.append(Anomaly("hanging", f"{worker.child.name} does not end: {last}"))
                worker.child.kill()

    def drain(self) -> None:
        """Fresh processes bring every group to the end."""
        self.failpoints = False
        for post, worker in list(self.at_post.items()):
            if worker.role in ("transform", "consume"):
                group = self.posts[post][1].get("group", EOS_GROUP)
                if any(group == one for one, _ in self.drained):
                    continue
                options: dict[str, Any] = {"drains": True, "drained": [IN] if group == EOS_GROUP else [IN, OUT]}
                options["asynchronous"] = False
                if "transactional_id" in self.posts[post][1]:
                    options["transactional_id"] = "drain"
                drain = self.start(post, **options)
                self.drained.append((group, drain))
                if group == EOS_GROUP:
                    self.wait_for([drain])  # what it writes the others have to read
        self.wait_for([worker for _, worker in self.drained])

    def history(self) -> History:
        """What everybody noted, and what the store holds now."""
        history = History(complaints=list(self.complaints), max_poll_interval=MAX_POLL_INTERVAL)
        for worker in self.workers:
            child = worker.child
            if worker.heard is None and child.status not in (0, signal.SIGKILL):
                last = worker.notes.read_text().splitlines()[-2:] if worker.notes.exists() else []
                history.complaints.append(Anomaly("damage", f"{child.name} ended with {child.status}: {last}"))
        with fastlog.open(self.path, durability="os") as store:
            for topic in (IN, OUT):
                for number in range(store.topic(topic).partitions):
                    read_partition(history, store, topic, number)
            for group in {EOS_GROUP, *(settings.get("group", EOS_GROUP) for _, settings in self.posts.values())}:
                read_commits(history, store, group)
            topics = set(store.topics())
        for worker in self.workers:
            events = read_notes(worker.notes)
            if worker.heard is not None:
                told = len(read_notes(worker.notes, worker.heard))
                events[told:] = untold(events, told, history)
            history.processes.append(
                Process(worker.number, worker.role, events, worker.child.signalled_at, worker.child.dead_by)
            )
            if worker.role == "garden":
                check_topics(history, events, topics)
        return history

    def check(self) -> list[Anomaly]:
        """Stop everybody, drain, and check what happened."""
        self.stop()
        self.drain()
        history = self.history()
        checker = Checker(history)
        anomalies = checker.check()
        records = sum(len(records) for records in history.stored.values())
        events = ", ".join(f"{count} {name}" for name, count in sorted(self.counts.items()))
        calls = ", ".join(f"{count} {name}" for name, count in checker.counts.most_common())
        outcomes = Counter(one.outcome for one in checker.transactions.values())
        self.summary = (
            f"{self.operations()} calls ({calls}); {records} records; {dict(outcomes)} transactions; {events}; "
            f"{checker.reads} records read, {len(checker.told)} offsets committed"
        )
        return anomalies


def untold(events: list[Event], told: int, history: History) -> Iterator[Event]:
    """What is left of the notes behind the first ``told`` ones, which were made when power was cut, or after that.

    What was tried may be there; what was handed out or answered then was promised to nobody.
    """
    begun = {event["n"]: event for event in events if event["k"] == "i"}
    there = {(*partition, one.offset): one.value for partition, records in history.stored.items() for one in records}
    for event in events[told:]:
        if event["k"] == "i" or (event["k"] == "s" and event["what"] not in ("deliveries", "complaint")):
            yield event
            continue
        op = begun[event["n"]]["op"] if event["k"] in "of" else ""
        if op == "transaction":
            outcome = event.get("outcome") if event["k"] == "o" else None
            yield {"k": "o", "t": event["t"], "n": event["n"], "outcome": outcome if outcome == "aborted" else None}
        elif op == "seek":
            yield {"k": "o", "t": event["t"], "n": event["n"]}
        elif event["k"] == "o" and op in ("poll", "next", "batch"):
            records = [one for one in event["records"] if there.get(tuple(one[:3])) == one[3]]
            yield {**event, "records": records}
        elif event["k"] == "o" and op != "commit":
            yield event


# --- what the store holds ---------------------------------------------------------------------------------------------


def read_partition(history: History, store: fastlog.Store, topic: str, number: int) -> None:
    """Every record, and by the markers what became of it."""
    log = store.topic(topic).partition(number)
    until = time.monotonic() + TRANSACTION_TIMEOUT + 3
    while log.readable_offset != log.end_offset and time.monotonic() < until:
        time.sleep(0.02)
    report = log.verify()
    if not report.ok:
        history.complaints.append(Anomaly("damage", f"{topic}-{number}: {report.damages} {report.index_problems}"))
    records: list[Stored] = []
    pending: dict[int, list[Stored]] = {}
    for batch in log.replay(0):
        if batch.is_control:
            for one in pending.pop(batch.producer_id, []):
                one.committed = bool(batch.commits)
            continue
        found = [
            Stored(offset, (value or b"").decode(), None if batch.is_transactional else True)
            for offset, value in zip(batch.offsets, batch.values(), strict=True)
        ]
        records += found
        if batch.is_transactional:
            pending.setdefault(batch.producer_id, []).extend(found)
    history.stored[topic, number] = records
    history.ends[topic, number] = (log.readable_offset, log.end_offset)


def check_topics(history: History, events: list[Event], there: set[str]) -> None:
    """A topic that nobody else touches is there from its creation to its deletion."""
    begun = {event["n"]: event for event in events if event["k"] == "i" and event["op"] in ("create_own", "delete_own")}
    done = {event["n"] for event in events if event["k"] == "o"}
    last = {event["topic"]: event for event in begun.values()}  # what befell it last
    for topic, event in last.items():
        if event["n"] in done and (event["op"] == "create_own") != (topic in there):
            state = "is there" if topic in there else "is not there"
            history.complaints.append(Anomaly("damage", f"the topic {topic} {state}, after {event['op']}"))


def read_commits(history: History, store: fastlog.Store, group: str) -> None:
    """Every offset that a group has committed, in the order in which they took effect."""
    number = partition_for_name(group)
    store.directory.internal_topic(CONSUMER_OFFSETS)
    log = store.directory.partition_log(CONSUMER_OFFSETS, number)
    pending: dict[int, list[Any]] = {}
    for batch in log.replay(0):
        if batch.is_control:
            found = pending.pop(batch.producer_id, [])
            for entry in found if batch.commits else ():
                history.commits.setdefault((group, entry[0]), []).append(entry[1])
            continue
        for key, value in zip(batch.keys(), batch.values(), strict=True):
            subject = formats.decode_key(key or b"")
            if subject is None or subject.group != group or value is None:
                continue
            position = formats.decode_value(value).position
            entry = ((subject.topic, subject.partition), (position.offset, position.metadata))
            if batch.is_transactional:
                pending.setdefault(batch.producer_id, []).append(entry)
            else:
                history.commits.setdefault((group, entry[0]), []).append(entry[1])
    if pending:
        history.complaints.append(Anomaly("hanging", f"offsets of group {group} are pending: {pending}"))
