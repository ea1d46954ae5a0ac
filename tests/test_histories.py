"""I1, I3, I4 with several processes: kills and freezes, at random and at every named step, and then the history.

Writers of several threads and readers of every kind work on one folder until the test has had enough of them; what
each of them did is checked as a whole (``tests/histories``). After every kill the survivors go on at once. Each named
step once or a few times: thousands of kills are the business of ``python -m tests.evidence kills``.
"""

from __future__ import annotations

import errno
import os
import random
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.histories import strikes
from tests.histories.driver import SLOWNESS, Crowd
from tests.histories.nursery import Nursery
from tests.histories.strikes import (
    APPEND,
    AS_A_WRITER,
    CLOSE,
    COMPACTED,
    COMPACTION,
    IMPATIENT,
    LEVELS,
    OPEN_ALONE,
    ROLL,
    SYNC,
    TAKEOVER,
)
from tests.kill_server import DURABLE

KILLS = int(os.environ.get("FASTLOG_KILLS", "100"))  # about as many in this file
TAKEOVER_SECONDS = 1.0 * SLOWNESS

REPEATS = max(1, KILLS // 100)  # of each name
RANDOM_KILLS = max(4, KILLS // 12)  # of each of the five tests

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]


@pytest.fixture(scope="module")
def nursery() -> Iterator[Nursery]:
    with Nursery() as server:
        yield server


def finish(crowd: Crowd, **options: Any) -> None:
    """The end of every test here: all of them stop, the log verifies, the history is possible."""
    # a sync owner that is frozen: the records are there, but whether they are durable nobody can say
    anomalies = crowd.check(unsure={"LockedErrorInSync"}, **options)
    print(crowd.summary)
    assert not anomalies, "\n".join(f"{a.kind}: {a.text}" for a in anomalies[:10])


# --- at random ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("level", [*LEVELS, "mixed"])
def test_I4_kills_at_random_points(nursery: Nursery, folder: Path, seed: int, level: str) -> None:
    levels = LEVELS if level == "mixed" else (level,)
    with Crowd(nursery, folder, seed) as crowd:
        strikes.killed_at_random(crowd, random.Random(seed), levels, RANDOM_KILLS, TAKEOVER_SECONDS)
        finish(crowd, durable_levels=level in DURABLE)


def test_I4_freezes_at_random_points(nursery: Nursery, folder: Path, seed: int) -> None:
    with Crowd(nursery, folder, seed, {"durability": "os", "config": IMPATIENT}) as crowd:
        strikes.frozen_at_random(crowd, random.Random(seed), max(5, RANDOM_KILLS // 2))
        finish(crowd)


# --- at named steps -------------------------------------------------------------------------------------------------


def test_every_failpoint_has_a_test() -> None:
    """The names here are those that the engine knows; pages, conditions and stores have test files of their own."""
    from fastlog._native import oscalls

    elsewhere = ("page.", "store.", "backup.", "exchange.", "group.", "transaction.", "move.")
    engine = {name for name in oscalls.FAILPOINTS if not name.startswith(elsewhere)}
    assert engine == {*AS_A_WRITER, *TAKEOVER, *OPEN_ALONE, *CLOSE, *COMPACTION}


@pytest.mark.parametrize("name", AS_A_WRITER)
def test_I4_killed_at_a_step_of_a_writer(nursery: Nursery, folder: Path, seed: int, name: str) -> None:
    with Crowd(nursery, folder, seed, {"durability": "os"}) as crowd:
        strikes.killed_as_a_writer(crowd, random.Random(seed), [name] * REPEATS, TAKEOVER_SECONDS)
        finish(crowd)


@pytest.mark.parametrize("name", TAKEOVER)
def test_I4_killed_in_a_takeover(nursery: Nursery, folder: Path, seed: int, name: str) -> None:
    with Crowd(nursery, folder, seed, {"durability": "os"}) as crowd:
        strikes.killed_in_a_takeover(crowd, random.Random(seed), [name] * REPEATS)
        finish(crowd)


@pytest.mark.parametrize("name", OPEN_ALONE)
def test_I4_killed_in_opening_alone(nursery: Nursery, folder: Path, seed: int, name: str) -> None:
    with Crowd(nursery, folder, seed, {"durability": "os"}) as crowd:
        strikes.killed_in_opening_alone(crowd, random.Random(seed), [name] * REPEATS)
        finish(crowd)


@pytest.mark.parametrize("name", CLOSE)
def test_I4_killed_in_closing(nursery: Nursery, folder: Path, seed: int, name: str) -> None:
    with Crowd(nursery, folder, seed) as crowd:
        strikes.killed_in_closing(crowd, random.Random(seed), [name] * REPEATS)
        finish(crowd)


@pytest.mark.parametrize("name", [*APPEND, *ROLL, *SYNC])
def test_I4_frozen_at_a_step(nursery: Nursery, folder: Path, seed: int, name: str) -> None:
    with Crowd(nursery, folder, seed, {"durability": "os", "config": IMPATIENT}) as crowd:
        strikes.frozen_at_steps(crowd, [(name, 1), (name, 4)])
        finish(crowd)


@pytest.mark.parametrize("call", ["pwrite", "open", "rename"])
def test_an_append_that_failed_is_not_there(nursery: Nursery, folder: Path, seed: int, call: str) -> None:
    """A disk that is full now and then, for one of three processes at a time."""
    with Crowd(nursery, folder, seed, {"durability": "os"}) as crowd:
        writers = [crowd.start("write") for _ in range(2)]
        crowd.start("follow", kind="read")
        for worker in writers:
            crowd.settled(worker)
        refused_before = 0
        for nth in (1, 2, 3, 5, 8, 13, 21, 34):
            inject = {"call": call, "errno": errno.ENOSPC, "nth": nth}
            crowd.start("write", sizes=[1, 60], appends=60, inject_when_open=inject, threads=1).child.wait()
            refused_before += crowd.workers[-1].count("F")
            for worker in writers:
                crowd.goes_on(worker, time.monotonic_ns())
        assert refused_before > 0 or call != "pwrite"
        finish(crowd)


# --- compaction -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", COMPACTION)
def test_I4_killed_in_a_compaction(nursery: Nursery, folder: Path, seed: int, name: str) -> None:
    with Crowd(nursery, folder, seed, {"durability": "os", "config": COMPACTED}) as crowd:
        strikes.killed_in_a_compaction(crowd, [name] * REPEATS, TAKEOVER_SECONDS)
        finish(crowd, compacted=True)
