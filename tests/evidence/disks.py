"""E2: every disk that a power cut may leave.

A turn records one life and makes some hundreds of disks of the record; each is opened, compared with what was promised
by then, and used again (``tests/crash``).
"""

from __future__ import annotations

import contextlib
import functools
import gc
import tempfile
from collections.abc import Iterator
from pathlib import Path

from tests.crash.checker import History, Promise, quiet
from tests.crash.recording import RecorderUnavailable, build_recorder, recorders
from tests.crash.replayer import Replayer, choose_disks
from tests.crash.running import Run, record, record_again
from tests.crash.store_history import StoreHistory
from tests.crash.store_life import STORES
from tests.crash.workloads import ALONE, SHARED
from tests.evidence.guarded import Tell, guarded
from tests.evidence.run import NotHere, Scenario, Turn
from tests.histories.nursery import Nursery

OF_A_LOG = 300  # disks of one life
OF_A_STORE = 200
RECOVERIES = 3  # recorded in one turn
SECONDS = 300.0  # nothing takes so long


@contextlib.contextmanager
def disks() -> Iterator[list[Scenario]]:
    """One scenario for each life; two in which power is lost again while what it left is opened."""
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="fastlog-recorder-")))
        try:
            recorder = stack.enter_context(recorders(build_recorder(folder), folder / "errors"))
        except RecorderUnavailable as problem:
            raise NotHere(str(problem)) from problem
        lives = [(life, OF_A_LOG, 2) for life in (*ALONE, *SHARED)] + [(life, OF_A_STORE, 1) for life in STORES]
        scenarios = [
            Scenario(life, functools.partial(check_life, recorder, life, count), weight)
            for life, count, weight in lives
        ]
        scenarios.append(Scenario("recovery", functools.partial(check_recoveries, recorder, "lazy_appends", OF_A_LOG)))
        scenarios.append(
            Scenario("store_recovery", functools.partial(check_recoveries, recorder, "store_transactions", OF_A_STORE))
        )
        yield scenarios


def check_life(recorder: Nursery, life: str, count: int, turn: Turn) -> None:
    """The disks of one life."""
    run = record(recorder, turn.folder, life, turn.seed)
    run.failures = turn.folder / "failure"
    guarded(turn, functools.partial(check_disks, run, count, turn), SECONDS)


def check_disks(run: Run, count: int, turn: Turn, tell: Tell) -> None:
    gc.freeze()  # a record is many objects, and all of them stay
    with quiet():
        run.check_disks(count, turn.chance, checked=lambda: tell("disks", 1))


def check_recoveries(recorder: Nursery, life: str, count: int, turn: Turn) -> None:
    """Disks of a life are opened under the recorder, and each recovery is cut off in turn."""
    first = record(recorder, turn.folder, life, turn.seed)
    replayer = Replayer(first.recorded)
    for number in range(RECOVERIES):
        # one with something to recover: several operations were lost, or torn
        found = choose_disks(replayer, 60, turn.chance, at_least=len(first.recorded.entries) // 3)
        at, _, disk = max(found, key=lambda one: len(one[1]) * turn.chance.random())
        first.place.put(disk)
        name = "store_recovery" if life in STORES else "recovery"
        second = record_again(recorder, first.place, name, turn.seed + number, turn.folder / "trace")
        second.failures = turn.folder / "failure"
        if isinstance(first.history, StoreHistory):
            second.history = StoreHistory(second.recorded, second.seed, first.history, at)
        else:
            promise = first.history.promise(at)
            base = Promise(promise.end, promise.starts | {0}, 0)
            second.history = History(second.recorded, second.seed, first.history, base)
        guarded(turn, functools.partial(check_disks, second, count // RECOVERIES, turn), SECONDS)
        turn.count("recoveries recorded")
