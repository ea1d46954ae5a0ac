"""Runs the demo's handlers in processes of their own, kills some, has dead letters redriven, and checks the outcome.

The workers are those of ``fastlog run``, which starts them again when they die. Before them two processes come that are
to die at a place that matters: inside of a transaction that moves failing records, and in a call of a handler. So they
do, however short the demo is. The operator who redrives dies half-way, too.
"""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from time import monotonic, sleep
from typing import Any

import fastlog
from fastlog.demo.accounts import DEAD_LETTER_TOPIC, RETRY_TOPIC, check_all, lag_of
from fastlog.demo.dataset import Dataset
from fastlog.demo.handlers import DELAYS, EFFECTS_VARIABLE, EVENTS, GROUPS
from fastlog.demo.job import Check
from fastlog.demo.supervisor import FAILPOINT_VARIABLE, GIVE_UP_AFTER, LOOK_EVERY, REPORT_EVERY, records_in

__all__ = ["HandlersDemo", "HandlersReport", "HandlersSnapshot"]

PARTITIONS = 6
WORKERS = 2
EVENTS_PER_CALL = 2000
MOVE_FAILPOINTS = ("move.entered", "move.offsets", "move.appended", "move.committed")
OPERATOR_FAILPOINTS = ("transaction.entered", "transaction.decided", "transaction.marked", "transaction.completed")
KILLS_AFTER_REDRIVE = 1
PATIENCE = 60.0
LAST_LINES = 20

FIRST = "fastlog.demo.handlers:first"
SECOND = "fastlog.demo.handlers:second"


@dataclass(frozen=True, slots=True)
class HandlersSnapshot:
    """How far it is: what goes on, records per topic, lag and members per group, open dead letters, deaths so far."""

    seconds: float
    doing: str
    records: dict[str, int]
    lag: dict[str, int]
    members: dict[str, int]
    open_letters: int
    deaths: int


@dataclass(slots=True)
class HandlersReport:
    """What was done. ``ok`` is True only when every check agrees."""

    events: int
    seed: int
    seconds: float = 0.0
    killed: int = 0
    died_in_move: int = 0
    died_in_call: int = 0
    operators_died: int = 0
    letters: int = 0
    exceptions: dict[str, int] = field(default_factory=dict)
    carriers: dict[str, int] = field(default_factory=dict)
    checks: list[Check] = field(default_factory=list)

    @property
    def ok(self) -> bool:
        """Whether every check agreed."""
        return bool(self.checks) and all(check.ok for check in self.checks)


class HandlersDemo:
    """The flights through handlers in a new store at ``root``: ``fail``, then ``redrive``, then ``check``.

    Args:
        dataset: the flights.
        root: where the store is to be; diaries of effects lie beside it.
        seed: of the kills.
        kills: how many workers are killed at random; 0: nobody dies at all.
        first, second: the app with the mistake, and the one without, as ``fastlog run`` takes them.

    All of them raise fastlog.Error when a process fails for another reason than its death, or when nothing comes to an
    end within ten minutes.
    """

    def __init__(
        self, dataset: Dataset, root: Path, *, seed: int, kills: int, first: str = FIRST, second: str = SECOND
    ) -> None:
        self.report = HandlersReport(len(dataset), seed)
        self.folder = root.parent / f"{root.name}-effects"
        self._dataset = dataset
        self._root = root
        self._chance = random.Random(seed)
        self._kills = kills
        self._targets = (first, second)
        self._show: Callable[[HandlersSnapshot], None] = lambda snapshot: None
        self._doing = ""
        self._started = monotonic()
        self._next_report = 0.0
        self._environment = {**os.environ, EFFECTS_VARIABLE: str(self.folder)}
        self._environment.pop(FAILPOINT_VARIABLE, None)
        self._fleet: Fleet | None = None
        self._store: fastlog.Store | None = None

    @property
    def store(self) -> fastlog.Store:
        """The store, open from ``__enter__`` to ``__exit__``."""
        if self._store is None:
            raise fastlog.ClosedError("the demo's store is open inside of `with` only")
        return self._store

    def __enter__(self) -> HandlersDemo:
        self.folder.mkdir(exist_ok=True)
        for diary in self.folder.iterdir():
            diary.unlink()
        self._store = fastlog.open(self._root, durability="os")
        return self

    def __exit__(self, *exception: object) -> None:
        if self._fleet is not None:
            self._fleet.kill()
        self.store.close()

    # --- the steps -----------------------------------------------------------------------------------------

    def fail(self, show: Callable[[HandlersSnapshot], None] = lambda snapshot: None) -> fastlog.DeadLetters:
        """Produce the flights, and have them handled by the version with the mistake, until nothing waits any more.

        Returns the dead letters that this leaves.
        """
        self._show = show
        self._doing = "producing"
        produce(self.store, self._dataset)
        self._doing = "handling"
        if self._kills:
            self._die_in_move()
            self._die_in_call()
        self._fleet = Fleet(self._targets[0], self._root, self._environment)
        # spread over what is left, so that none is over before the work begins
        behind = max(self._behind(), 1)
        kills_at = sorted(self._chance.uniform(0.05, 0.8) for _ in range(self._kills - KILLS_AFTER_REDRIVE))
        while not self._is_finished():
            self._look()
            if kills_at and 1 - self._behind() / behind >= kills_at[0] and self._kill_one():
                del kills_at[0]
        self._end_fleet()
        return self._inspect()

    def redrive(self, show: Callable[[HandlersSnapshot], None] = lambda snapshot: None) -> None:
        """Have the dead letters redriven, and handled by the version without the mistake."""
        self._show = show
        self._doing = "redriving"
        self._fleet = Fleet(self._targets[1], self._root, self._environment)
        self._wait(lambda: len(self._workers()) == WORKERS, "the workers of the second version")
        if self._kills:
            self._operate(f"{self._chance.choice(OPERATOR_FAILPOINTS)}:kill:{self._chance.randint(1, 3)}")
            self._kill_one()
        self._operate()
        while not self._is_finished():
            self._look()
        self._end_fleet()

    def check(self) -> HandlersReport:
        """Compare everything with the source."""
        self.report.seconds = monotonic() - self._started
        self.report.checks = check_all(self.store, self.folder, self._dataset)
        if self._kills:
            report = self.report
            detail = (
                f"{report.died_in_move} while it moved failing records, {report.died_in_call} in a handler, "
                f"{report.killed} at random, {report.operators_died} while redriving"
            )
            ok = report.died_in_move > 0 and report.died_in_call > 0
            report.checks.append(Check("processes were killed", ok, detail))
        return self.report

    def _inspect(self) -> fastlog.DeadLetters:
        letters = fastlog.DeadLetters.open(self.store, EVENTS, DELAYS)
        exceptions: Counter[str] = Counter()
        carriers: Counter[str] = Counter()
        for letter in letters.list():
            exceptions[letter.exception] += 1
            carriers[json.loads(letter.value or b"")["carrier"]] += 1
        self.report.letters = exceptions.total()
        self.report.exceptions, self.report.carriers = dict(exceptions.most_common()), dict(carriers.most_common())
        return letters

    # --- processes that are to die ---------------------------------------------------------------------------

    def _die_in_move(self) -> None:
        """Alone with everything, a process dies inside of a move; not always of the first one."""
        nth = self._chance.randint(1, 1 + self.report.events // 10_000)
        self.report.died_in_move += self._run_to_death(0, f"{self._chance.choice(MOVE_FAILPOINTS)}:kill:{nth}")

    def _die_in_call(self) -> None:
        """So does one in a call of a handler."""
        self.report.died_in_call += self._run_to_death(self._chance.randint(1, 1 + self.report.events // 20))

    def _run_to_death(self, nth_call: int, failpoint: str | None = None) -> bool:
        environment = dict(self._environment)
        if failpoint is not None:
            environment[FAILPOINT_VARIABLE] = failpoint
        command = [sys.executable, "-m", "fastlog.demo.handlers", str(self._root), str(nth_call)]
        process = subprocess.Popen(command, env=environment)
        try:
            while process.poll() is None and not self._is_finished():
                self._look()
        finally:
            process.terminate()
            code = process.wait()
        if code not in (0, -signal.SIGKILL):
            raise fastlog.Error(f"a process with handlers failed with exit code {code}")
        return code == -signal.SIGKILL

    def _operate(self, failpoint: str | None = None) -> None:
        """Redrive by the command line."""
        environment = dict(self._environment)
        if failpoint is not None:
            environment[FAILPOINT_VARIABLE] = failpoint
        command = ["dlq", "redrive", EVENTS, "--group", DELAYS, "--yes", "--quiet", "--store", str(self._root)]
        process = subprocess.Popen([sys.executable, "-m", "fastlog", *command], env=environment)
        while process.poll() is None:
            self._look()
        if process.returncode not in (0, -signal.SIGKILL):
            raise fastlog.Error(f"`fastlog {' '.join(command)}` failed with exit code {process.returncode}")
        self.report.operators_died += process.returncode == -signal.SIGKILL

    # --- the fleet --------------------------------------------------------------------------------------------

    def _workers(self) -> list[int]:
        return [] if self._fleet is None else self._fleet.pids()

    def _kill_one(self) -> bool:
        """Kill a random worker, when there is one."""
        workers = self._workers()
        if workers and self._fleet is not None:
            self._fleet.kill_worker(self._chance.choice(workers))
            self.report.killed += 1
        return bool(workers)

    def _end_fleet(self) -> None:
        fleet, self._fleet = self._fleet, None
        if fleet is not None:
            fleet.stop()

    def _behind(self) -> int:
        return sum(lag_of(self.store, group) for group in GROUPS)

    def _is_finished(self) -> bool:
        """Whether nothing waits. Two looks, as one looks at two topics in turn, and records move between them."""
        return not self._behind() and not self._behind()

    def _wait(self, condition: Callable[[], bool], what: str) -> None:
        deadline = monotonic() + PATIENCE
        while not condition():
            if monotonic() > deadline:
                raise fastlog.Error(f"{what}: not there within {PATIENCE:.0f} s")
            self._look()

    def _look(self) -> None:
        """Sleep a little; tell how far it is, now and then."""
        if self._fleet is not None:
            self._fleet.check()
        now = monotonic()
        if now - self._started > GIVE_UP_AFTER:
            raise fastlog.Error(f"the demo has not ended within {GIVE_UP_AFTER:.0f} s; {self.snapshot()}")
        if now >= self._next_report:
            self._show(self.snapshot())
            self._next_report = now + REPORT_EVERY
        sleep(LOOK_EVERY)

    def snapshot(self) -> HandlersSnapshot:
        """How far it is."""
        store = self.store
        topics = [name for name in (EVENTS, RETRY_TOPIC, DEAD_LETTER_TOPIC) if name in store.topics()]
        has_letters = DEAD_LETTER_TOPIC in topics
        report = self.report
        return HandlersSnapshot(
            monotonic() - self._started,
            self._doing,
            {name: records_in(store, name) for name in topics},
            {group: lag_of(store, group) for group in GROUPS},
            {group: members_of(store, group) for group in GROUPS},
            fastlog.DeadLetters.open(store, DEAD_LETTER_TOPIC).count() if has_letters else 0,
            report.killed + report.died_in_call + report.died_in_move + report.operators_died,
        )


def produce(store: fastlog.Store, dataset: Dataset) -> None:
    """The flights, keyed by aircraft; a header says which row of the source each is."""
    store.create_topic(EVENTS, partitions=PARTITIONS, exist_ok=True)
    with store.producer() as producer:
        for first in range(0, len(dataset), EVENTS_PER_CALL):
            values = dataset.values[first : first + EVENTS_PER_CALL]
            producer.send_many(
                EVENTS,
                values,
                keys=dataset.keys[first : first + EVENTS_PER_CALL],
                timestamps=dataset.timestamps[first : first + EVENTS_PER_CALL],
                headers=[[("id", b"%d" % number)] for number in range(first, first + len(values))],
            )


def members_of(store: fastlog.Store, group: str) -> int:
    return len(store.describe_group(group).members) if group in store.groups() else 0


class Fleet:
    """``fastlog run`` in a process of its own, and what it tells of its workers."""

    def __init__(self, target: str, root: Path, environment: dict[str, str]) -> None:
        command = [sys.executable, "-m", "fastlog", "run", target, "--workers", str(WORKERS), "--store", str(root)]
        command += ["--json", "--log-level", "error"]
        self._process = subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True)
        self._alive: dict[int, int] = {}  # pids of workers that have begun, by their numbers
        self._lines: list[str] = []
        self._problem = ""
        self._reader = threading.Thread(target=self._read, name="fastlog-demo-fleet", daemon=True)
        self._reader.start()

    def _read(self) -> None:
        for line in self._process.stderr or ():
            try:
                event: dict[str, Any] = json.loads(line)
                kind = event["event"]
            except (ValueError, KeyError, TypeError):
                self._lines = [*self._lines, line.rstrip()][-LAST_LINES:]
                continue
            if kind == "loaded":
                self._alive[event["worker"]] = event["pid"]
            elif kind in ("died", "ended"):
                self._alive.pop(event["worker"], None)
                if kind == "died" and event["code"] != -signal.SIGKILL:
                    self._problem = event["text"]

    def pids(self) -> list[int]:
        """Workers that live and have begun."""
        return [pid for _, pid in sorted(self._alive.items())]

    def kill_worker(self, pid: int) -> None:
        """SIGKILL."""
        for number, one in list(self._alive.items()):
            if one == pid:
                del self._alive[number]
        os.kill(pid, signal.SIGKILL)

    def check(self) -> None:
        """Raises fastlog.Error when it, or a worker, failed by itself."""
        if self._problem or self._process.poll() is not None:
            told = self._problem or f"`fastlog run` ended with exit code {self._process.returncode}"
            raise fastlog.Error(" / ".join([told, *self._lines]))

    def stop(self) -> None:
        """Let workers finish what they have in hand. Raises fastlog.Error when one did not."""
        self.check()
        self._process.terminate()
        code = self._process.wait(PATIENCE)
        self._reader.join(PATIENCE)
        if code:
            raise fastlog.Error(" / ".join([f"`fastlog run` ended with exit code {code}", *self._lines]))

    def kill(self) -> None:
        """End it, whatever it does. Workers end when their parent is gone."""
        if self._process.poll() is None:
            self._process.terminate()
            try:
                self._process.wait(PATIENCE)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()
