"""Operators that die, stop, meet each other or a full disk in the middle: each letter is handled once all the same.

What is compared is an exact sum over the retry topic, the source and the open letters; and the audits, which name each
letter once.
"""

from __future__ import annotations

import random
import signal
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import fastlog
from fastlog._native import oscalls
from fastlog.delivery import dead_letters
from fastlog.delivery.dead_letters import DeadLetters
from tests.delivery import lettering
from tests.delivery.lettering import DLQ, SOURCE, content, exact_sum, fill, prepare
from tests.delivery.operator_worker import PORTION
from tests.delivery.operators import APPENDS, LETTERS, STEPS, Operator, check, finish


@pytest.fixture
def start(folder: Path) -> Iterator[Callable[..., Operator]]:
    """Starts operators on a store of 14 letters, which they handle by fives, and ends them."""
    with fastlog.open(folder / "store", durability="os") as store:
        prepare(store)
        fill(store, LETTERS)
    started: list[Operator] = []

    def begin(name: str = "first", action: str = "retry", *arguments: Any, **options: Any) -> Operator:
        started.append(Operator(folder / "store", name, action, *arguments, **options))
        return started[-1]

    yield begin
    for operator in started:
        operator.close()


# --- death ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("failpoint", "nth"), [*STEPS, *APPENDS])
def test_killed_and_repeated(folder: Path, start: Callable[..., Operator], failpoint: str, nth: int) -> None:
    operator = start("first", "retry", failpoint, "kill", nth)
    operator.go()
    operator.died()
    with fastlog.open(folder / "store", durability="os") as store:
        assert finish(store, "retry") in (0, LETTERS - 2 * PORTION, LETTERS - PORTION, LETTERS)
        assert check(store, done=True) == LETTERS
        assert finish(store, "retry") == 0
        check(store, done=True)


@pytest.mark.parametrize(
    ("action", "failpoint", "nth"), [("source", "transaction.entered", 4), ("discard", "transaction.decided", 2)]
)
def test_killed_at_other_work(
    folder: Path, start: Callable[..., Operator], failpoint: str, nth: int, action: str
) -> None:
    operator = start("first", action, failpoint, "kill", nth)
    operator.go()
    operator.died()
    with fastlog.open(folder / "store", durability="os") as store:
        finish(store, action)
        check(store, done=True)
        assert len(content(store, SOURCE)) == (LETTERS if action == "source" else 0)


@pytest.mark.parametrize(("failpoint", "nth"), [("transaction.synced", 2), ("transaction.marked", 3)])
def test_killed_where_everything_is_synced(
    folder: Path, start: Callable[..., Operator], failpoint: str, nth: int
) -> None:
    operator = start("first", "retry", failpoint, "kill", nth, durability="group")
    operator.go()
    operator.died()
    with fastlog.open(folder / "store") as store:
        finish(store, "retry")
        check(store, done=True)


@pytest.mark.parametrize(("failpoint", "nth"), [("transaction.entered", 4), ("transaction.decided", 2)])
def test_what_a_dead_operator_left_ends_by_itself(
    folder: Path, start: Callable[..., Operator], failpoint: str, nth: int
) -> None:
    """Somebody who has the store open sees it: half a portion never, a whole one once it is decided."""
    operator = start("first", "retry", failpoint, "kill", nth)
    with fastlog.open(folder / "store", durability="os") as store:
        operator.go()
        operator.died()
        deadline = time.monotonic() + 10
        wanted = PORTION if failpoint == "transaction.entered" else 2 * PORTION
        while (handled := check_while_open(store)) != wanted:
            assert time.monotonic() < deadline, f"{handled} letters handled, expected {wanted}"
            time.sleep(0.02)
        assert check(store, done=False) == wanted
        assert finish(store, "retry") == LETTERS - wanted
        check(store, done=True)


def check_while_open(store: fastlog.Store) -> int:
    return len(list(DeadLetters.open(store, DLQ).list(state="handled")))


def test_killed_again_and_again(folder: Path, start: Callable[..., Operator], seed: int) -> None:
    """Until nothing is left; at any of the points, wherever the one before it died."""
    chance = random.Random(seed)
    points = [*{name for name, _ in (*STEPS, *APPENDS)}]
    for number in range(4):
        operator = start(f"operator {number}", "retry", chance.choice(sorted(points)), "kill", chance.randrange(1, 9))
        operator.go()
        operator.child.wait(30)
        if number % 4 == 3:
            with fastlog.open(folder / "store", durability="os") as store:
                DeadLetters.open(store, DLQ).redrive(limit=1)
                check(store, done=False)
    with fastlog.open(folder / "store", durability="os") as store:
        finish(store, "retry")
        check(store, done=True)


# --- two at once ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("failpoint", "nth"), [("transaction.entered", 4), ("append.written", 7), ("transaction.decided", 2)]
)
def test_one_that_was_stopped_cannot_go_on(
    folder: Path, start: Callable[..., Operator], failpoint: str, nth: int
) -> None:
    """It wakes up when another one has done everything."""
    operator = start("first", "retry", failpoint, "stop", nth)
    operator.go()
    operator.stopped()
    with fastlog.open(folder / "store", durability="os", lock_timeout="500ms") as store:
        try:
            finish(store, "retry")
            is_done = True
        except fastlog.LockedError:
            is_done = False  # it was stopped in the middle of an append, and has its lock
            assert failpoint.startswith("append.")
        operator.child.send_signal(signal.SIGCONT)
        said = operator.line()
        assert said == "ProducerFencedError" or not is_done
        finish(store, "retry")
        check(store, done=True)


def test_a_crowd_of_processes(folder: Path, start: Callable[..., Operator]) -> None:
    with fastlog.open(folder / "store", durability="os") as store:
        fill(store, 400, first=LETTERS)
        crowd = [start(f"operator {number}") for number in range(3)]
        for operator in crowd:
            operator.go()
        said = [operator.line() for operator in crowd]
        assert all(one.isdigit() or one in ("ProducerFencedError", "TransactionError") for one in said), said
        finish(store, "retry")
        letters = DeadLetters.open(store, DLQ)
        assert letters.count() == 0
        assert exact_sum(store, letters) == Counter(lettering.raw_of(one, 0).value for one in range(LETTERS + 400))


# --- a disk that is full ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("call", ["pwrite", "pwritev", "fdatasync"])
def test_every_write_may_fail(folder: Path, monkeypatch: pytest.MonkeyPatch, call: str) -> None:
    """A clean error, what was done before stays done, and the next call goes on."""
    monkeypatch.setattr(dead_letters, "MOST_AT_ONCE", PORTION)
    durability = "group" if call == "fdatasync" else "os"
    failures = 0
    for nth in (1, 2, 3, 4, 5, 6, 7, 8, 10, 13, 17, 22, 30):
        path = folder / f"store-{nth}"
        with fastlog.open(path, durability=durability) as store:
            prepare(store)
            fill(store, LETTERS)
            oscalls.inject(call, errno=28, nth=nth)
            try:
                finish(store, "retry")
            except fastlog.Error:
                failures += 1
            finally:
                oscalls.clear()
            if call != "fdatasync":
                finish(store, "retry")
                check(store, done=True)
        # a failed sync stops a log until everybody has closed it
        with fastlog.open(path, durability=durability) as store:
            finish(store, "retry")
            check(store, done=True)
    assert failures or call == "pwritev"


def test_a_disk_that_stays_full(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dead_letters, "MOST_AT_ONCE", PORTION)
    with fastlog.open(folder / "store", durability="os") as store:
        letters = prepare(store)
        fill(store, LETTERS)
        letters.redrive(limit=PORTION)
        oscalls.inject("pwrite", errno=28, sticky=True)
        try:
            for _ in range(2):
                with pytest.raises(fastlog.StorageError):
                    letters.redrive()
        finally:
            oscalls.clear()
        assert check(store, done=False) == PORTION
        assert letters.redrive().letters == LETTERS - PORTION
        check(store, done=True)


def test_files_that_may_not_grow(folder: Path, start: Callable[..., Operator]) -> None:
    """A limit of the process, in the middle of a redrive; with room again another one goes on."""
    size = max(path.stat().st_size for path in (folder / "store/topics").rglob("*.log"))
    operator = start("first", "retry", most_bytes=size + 700)
    operator.go()
    assert operator.line() in ("StorageFullError", "StorageError")
    operator.child.wait(30)
    with fastlog.open(folder / "store", durability="os") as store:
        handled = check(store, done=False)
        assert finish(store, "retry") == LETTERS - handled > 0
        check(store, done=True)


def test_the_points_are_reached() -> None:
    """A name that no longer exists would kill nobody."""
    assert {name for name, _ in (*STEPS, *APPENDS)} <= set(oscalls.FAILPOINTS)
