"""Runs the demo's pipeline in processes of their own, kills them at random, and compares the results with the source.

Nothing is de-duplicated on the way to the comparison: a flight that was counted twice, or not at all, shows. Kills are
SIGKILL at random moments, and inside of a commit: a process that is started with a failpoint ends itself there.
"""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
from collections import Counter, defaultdict
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from time import monotonic, sleep

import fastlog
from fastlog.demo import pipeline
from fastlog.demo.dataset import Dataset
from fastlog.demo.job import Check
from fastlog.demo.pipeline import DELAYS, EVENTS, GROUPS, INGESTERS, TOPICS, TURNAROUNDS

__all__ = ["PipelineReport", "Snapshot", "run_pipeline"]

WORKERS_PER_GROUP = 2
LOOK_EVERY = 0.05
REPORT_EVERY = 0.5
COMMIT_FAILPOINTS = ("transaction.decided", "transaction.marked", "transaction.completed")
MOST_COMMITS_BEFORE_DEATH = 12
FAILPOINT_VARIABLE = "FASTLOG_FAILPOINT"
GIVE_UP_AFTER = 600.0


@dataclass(frozen=True, slots=True)
class Snapshot:
    """How far the pipeline is: offsets per topic, lag and members per group, processes that live, deaths so far."""

    seconds: float
    records: dict[str, int]
    lag: dict[str, int]
    members: dict[str, int]
    alive: int
    deaths: int


@dataclass(slots=True)
class PipelineReport:
    """What the pipeline did. ``ok`` is True only when every check agrees."""

    events: int
    seconds: float = 0.0
    seed: int = 0
    killed: int = 0
    died_in_commit: int = 0
    checks: list[Check] = field(default_factory=list)

    @property
    def ok(self) -> bool:
        """Whether every check agreed."""
        return bool(self.checks) and all(check.ok for check in self.checks)


@dataclass(slots=True)
class _Worker:
    """A process of the pipeline, and how to start it again."""

    role: str
    name: str
    process: subprocess.Popen[bytes] | None = None
    is_done: bool = False
    dies_in_commit: bool = False

    @property
    def is_alive(self) -> bool:
        return self.process is not None and self.process.poll() is None


def run_pipeline(
    dataset: Dataset,
    root: Path,
    *,
    seed: int,
    kills: int,
    report: Callable[[Snapshot], None] = lambda snapshot: None,
) -> PipelineReport:
    """The events of ``dataset`` through the pipeline in a new store at ``root``, with ``kills`` deaths on the way.

    Raises:
        fastlog.Error: a process failed for another reason than its death, or nothing moved for ten minutes.
    """
    events = root.parent / f"{root.name}-events"
    pipeline.write_events(events, dataset.timestamps, dataset.keys, dataset.values)
    with fastlog.open(root, durability="os") as store:
        pipeline.create_topics(store)
        supervisor = _Supervisor(store, events, len(dataset), random.Random(seed), kills, report)
        supervisor.run()
        found = PipelineReport(len(dataset), supervisor.elapsed, seed, supervisor.killed, supervisor.died_in_commit)
        found.checks = [*check_source(store, dataset), *check_delays(store, dataset),
                        *check_turnarounds(store, dataset), *check_lag(store)]  # fmt: skip
    events.unlink()
    return found


class _Supervisor:
    """Starts the processes, starts them again when they die, and sees to it that some do."""

    def __init__(
        self, store: fastlog.Store, events: Path, events_in_all: int, chance: random.Random, kills: int,
        report: Callable[[Snapshot], None],
    ) -> None:  # fmt: skip
        self.store = store
        self.events = events
        self.chance = chance
        self.events_in_all = events_in_all
        # spread over the work, so that none is over before the work begins
        self.kills_at = sorted(chance.uniform(0, 0.8) for _ in range(kills))
        self.report = report
        self.killed = 0
        self.died_in_commit = 0
        self.started = monotonic()
        self.elapsed = 0.0
        self.workers = [_Worker("ingest", str(number)) for number in range(INGESTERS)]
        self.workers += [_Worker(group, str(number)) for group in GROUPS for number in range(WORKERS_PER_GROUP)]

    def run(self) -> None:
        """Until every event is in the log and both groups are behind the last one."""
        next_report = self.started
        try:
            while not self.is_finished():
                now = monotonic()
                if now - self.started > GIVE_UP_AFTER:
                    raise fastlog.Error(f"the pipeline has not ended within {GIVE_UP_AFTER:.0f} s; {self.snapshot()}")
                self.tend()
                if self.kills_at and self.progress() >= self.kills_at[0]:
                    self.kill_one()
                if now >= next_report:
                    self.report(self.snapshot())
                    next_report = now + REPORT_EVERY
                sleep(LOOK_EVERY)
            self.elapsed = monotonic() - self.started
            self.report(self.snapshot())
        finally:
            self.end()

    def tend(self) -> None:
        """Start what is not running; a process that ended by itself with an error stops the demo."""
        for worker in self.workers:
            if worker.is_done or worker.is_alive:
                continue
            if worker.process is not None:
                code = worker.process.returncode
                if code == 0 and worker.role == "ingest":
                    worker.is_done = True
                    continue
                if code not in (0, -signal.SIGKILL):
                    raise fastlog.Error(f"process {worker.role}-{worker.name} failed with exit code {code}")
                if code == -signal.SIGKILL and worker.dies_in_commit:
                    self.died_in_commit += 1
            self.start(worker, dies_in_commit=False)

    def start(self, worker: _Worker, dies_in_commit: bool) -> None:
        environment = dict(os.environ)
        environment.pop(FAILPOINT_VARIABLE, None)
        worker.dies_in_commit = dies_in_commit
        if dies_in_commit:
            nth = self.chance.randint(1, MOST_COMMITS_BEFORE_DEATH)
            environment[FAILPOINT_VARIABLE] = f"{self.chance.choice(COMMIT_FAILPOINTS)}:kill:{nth}"
        command = [sys.executable, "-m", "fastlog.demo.worker", worker.role, self.store.path, worker.name]
        worker.process = subprocess.Popen([*command, str(self.events)], env=environment)

    def kill_one(self) -> None:
        """A random process: at once, or, started again, inside of a commit that is still to come."""
        victims = [worker for worker in self.workers if worker.is_alive and not worker.dies_in_commit]
        if not victims:
            return
        worker = self.chance.choice(victims)
        assert worker.process is not None
        worker.process.kill()
        worker.process.wait()
        self.killed += 1
        del self.kills_at[0]
        self.start(worker, dies_in_commit=self.chance.random() < 0.5)

    def is_finished(self) -> bool:
        return all(worker.is_done for worker in self.workers if worker.role == "ingest") and not any(
            lag_of(self.store, group) for group in GROUPS
        )

    def progress(self) -> float:
        """From 0 to about 1: how much of all reading and writing of flights is done."""
        written = records_in(self.store, EVENTS)
        read = sum(max(written - lag_of(self.store, group), 0) for group in GROUPS)
        return (written + read) / ((1 + len(GROUPS)) * self.events_in_all)

    def snapshot(self) -> Snapshot:
        return Snapshot(
            monotonic() - self.started,
            {topic: records_in(self.store, topic) for topic in TOPICS},
            {group: lag_of(self.store, group) for group in GROUPS},
            {group: len(self.store.describe_group(group).members) for group in GROUPS},
            sum(worker.is_alive for worker in self.workers),
            self.killed + self.died_in_commit,
        )

    def end(self) -> None:
        """Let everybody finish the transaction in hand."""
        for worker in self.workers:
            if worker.is_alive and worker.process is not None:
                worker.process.terminate()
        for worker in self.workers:
            if worker.process is not None:
                try:
                    worker.process.wait(30)
                except subprocess.TimeoutExpired:
                    worker.process.kill()
                    worker.process.wait()


def records_in(store: fastlog.Store, name: str) -> int:
    """Offsets taken in a topic; control records have some of them."""
    topic = store.topic(name)
    return sum(topic.partition(number).end_offset for number in range(topic.partitions))


def lag_of(store: fastlog.Store, group: str) -> int:
    """Records of the flights that a group has not finished."""
    return sum(lag.records for lag in store.group_lag(group, topics=[EVENTS]).values())


# --- comparing -------------------------------------------------------------------------------------------


def records_of(store: fastlog.Store, name: str) -> list[fastlog.Record]:
    """Every committed record of a topic, partition by partition."""
    topic = store.topic(name)
    return [record for number in range(topic.partitions) for record in topic.partition(number).records()]


def check_source(store: fastlog.Store, dataset: Dataset) -> list[Check]:
    """The log has each event once, and those of an aircraft in order."""
    found = records_of(store, EVENTS)
    expected = Counter(zip(dataset.timestamps, dataset.keys, dataset.values, strict=True))
    same = Counter((record.timestamp, record.key, record.value) for record in found) == expected
    by_aircraft: dict[bytes, list[int]] = defaultdict(list)
    for record in found:
        if record.key is not None:
            by_aircraft[record.key].append(record.timestamp or 0)
    ordered = all(times == sorted(times) for times in by_aircraft.values())
    return [
        Check("every event once", same, f"{len(found):,} records, {len(dataset):,} events in the source"),
        Check("in order per aircraft", ordered, f"{len(by_aircraft):,} aircraft"),
    ]


def check_delays(store: fastlog.Store, dataset: Dataset) -> list[Check]:
    """Departures and minutes per carrier, added up from the results, equal those of the source."""
    expected: dict[str, list[int]] = defaultdict(lambda: [0, 0])
    for value in dataset.values:
        event = json.loads(value)
        if event["departure_delay"] is not None:
            expected[event["carrier"]][0] += 1
            expected[event["carrier"]][1] += event["departure_delay"]
    found: dict[str, list[int]] = defaultdict(lambda: [0, 0])
    for record in records_of(store, DELAYS):
        result = json.loads(record.value or b"")
        carrier = (record.key or b"").decode()
        found[carrier][0] += result["departed"]
        found[carrier][1] += result["minutes"]
    departed = sum(count for count, _ in found.values())
    return [Check(GROUPS[DELAYS], found == expected, f"{len(found)} carriers, {departed:,} departures counted")]


def check_turnarounds(store: fastlog.Store, dataset: Dataset) -> list[Check]:
    """For each aircraft the same hours between departures, in the same order, as in the source."""
    expected: dict[bytes, list[float | None]] = defaultdict(list)
    last: dict[bytes, int] = {}
    for timestamp, key, value in zip(dataset.timestamps, dataset.keys, dataset.values, strict=True):
        if key is not None and json.loads(value)["departure_delay"] is not None:
            before = last.get(key)
            expected[key].append(None if before is None else (timestamp - before) / pipeline.HOUR_MS)
            last[key] = timestamp
    found: dict[bytes, list[float | None]] = defaultdict(list)
    for record in records_of(store, TURNAROUNDS):
        found[record.key or b""].append(json.loads(record.value or b"")["hours"])
    hours = sum(len(entries) for entries in found.values())
    return [Check(GROUPS[TURNAROUNDS], found == expected, f"{len(found):,} aircraft, {hours:,} departures")]


def check_lag(store: fastlog.Store) -> list[Check]:
    return [Check(f"group {group} is at the end", not lag_of(store, group), "lag 0") for group in GROUPS]
