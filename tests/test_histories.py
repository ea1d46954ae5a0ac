"""I1, I3, I4 with several processes: kills and freezes, at random and at every named step, and then the history.

Writers of several threads and readers of every kind work on one folder until the test has had enough of them; what
each of them did is checked as a whole (``tests/histories``). After every kill the survivors go on at once.
"""

from __future__ import annotations

import errno
import os
import random
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import fastlog
from tests.histories.driver import SLOWNESS, Crowd, Worker
from tests.histories.nursery import Nursery
from tests.histories.workers import READER_KINDS, SMALL

KILLS = int(os.environ.get("FASTLOG_KILLS", "300"))  # in all; a third is the share of test_kill.py
LEVELS = ("os", "interval", "batch", "group")
DURABLE = {"batch", "group"}
TAKEOVER_SECONDS = 1.0 * SLOWNESS

APPEND = [
    f"append.{step}"
    for step in ("locked", "dirty", "batch_written", "written", "indexed", "published", "unlocked")
]  # fmt: skip
ROLL = ["roll.begun", "roll.created", "roll.published"]
TAKEOVER = ["takeover.begun", "takeover.cut", "takeover.done"]
SYNC = ["sync.locked", "sync.synced", "sync.published", "sync.unlocked"]
OPEN_ALONE = ["open.exclusive", "open.page_unlinked", "open.recovered", "open.page_written", "open.shared"]
CLOSE = ["close.exclusive", "close.synced", "close.marked"]
DELETE = ["delete.published", "delete.removed"]
COMPACTION = [
    f"compaction.{step}"
    for step in (
        *("swapped", "odd", "indexes_unlinked", "moved", "sources_unlinked", "indexes_installed", "swap_unlinked"),
        "even",
    )
]
NAMES = [*APPEND, *ROLL, *TAKEOVER, *SYNC, *OPEN_ALONE, "open.attached", *CLOSE, *DELETE]
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


def all_go_on(crowd: Crowd, workers: list[Worker], after: int) -> None:
    """Each of the survivors has an append through within a second of a death."""
    for worker in workers:
        seconds = crowd.goes_on(worker, after)
        assert seconds < TAKEOVER_SECONDS, f"{worker.child.name} went on only after {seconds:.2f} s"


# --- at random ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("level", [*LEVELS, "mixed"])
def test_I4_kills_at_random_points(nursery: Nursery, folder: Path, seed: int, level: str) -> None:
    chance = random.Random(seed)
    levels = LEVELS if level == "mixed" else (level,)

    def writer() -> Worker:
        return crowd.start(
            "write",
            durability=chance.choice(levels),
            threads=chance.choice([1, 2, 3]),
            reopens=chance.choice([0, 0, 0.1]),
            deletes=chance.choice([0, 0, 0.02]),
        )

    def reader() -> Worker:
        return crowd.start("follow", kind=chance.choice(READER_KINDS), durability=chance.choice(levels))

    with Crowd(nursery, folder, seed) as crowd:
        writers, readers = [writer() for _ in range(3)], [reader() for _ in range(2)]
        for worker in writers:
            crowd.settled(worker)
        while crowd.kills < RANDOM_KILLS:
            time.sleep(chance.choice([0.005, 0.02, 0.05]) * chance.random())
            dice = chance.random()
            if dice < 0.1:
                for worker in [*writers, *readers]:
                    crowd.kill(worker)
                writers, readers = [writer() for _ in range(3)], [reader() for _ in range(2)]
                crowd.settled(writers[0])
            elif dice < 0.25:
                at = chance.randrange(len(readers))
                crowd.kill(readers[at])
                readers[at] = reader()
            else:
                at = chance.randrange(len(writers))
                crowd.kill(writers[at])
                survivors = writers[:at] + writers[at + 1 :]
                if dice < 0.5:
                    all_go_on(crowd, survivors, writers[at].child.dead_by or 0)
                writers[at] = writer()
        finish(crowd, durable_levels=level in DURABLE)


def test_I4_freezes_at_random_points(nursery: Nursery, folder: Path, seed: int) -> None:
    """SIGSTOP and SIGCONT; some of the frozen are killed instead. Who cannot have the lock says so, and tries again."""
    chance = random.Random(seed)
    options = {"lock_timeout": 0.1}
    with Crowd(nursery, folder, seed, {"durability": "os", "config": {**SMALL, **options}}) as crowd:
        writers = [crowd.start("write", durability=level, threads=2) for level in LEVELS]
        readers = [crowd.start("follow", kind=kind) for kind in ("read", "wait")]
        for worker in (*writers, *readers):
            crowd.settled(worker)
        for _ in range(max(5, RANDOM_KILLS // 2)):
            victims = chance.sample(range(len(writers)), chance.choice([1, 1, 2, 4]))
            for at in victims:
                writers[at].child.signal(signal.SIGSTOP)
            for reader in readers:
                seen = len(reader.noted())
                crowd.until(lambda r=reader, s=seen: r.count("R", s) > 0, 30, "read again", reader)
            time.sleep(chance.choice([0.0, 0.02, 0.15]) * chance.random())
            for at in victims:
                if chance.random() < 0.2:
                    crowd.kill(writers[at])
                    writers[at] = crowd.start("write", durability=LEVELS[at], threads=2)
                else:
                    writers[at].child.signal(signal.SIGCONT)
        resumed = time.monotonic_ns()
        for worker in writers:
            crowd.goes_on(worker, resumed)
        finish(crowd)


# --- at named steps -------------------------------------------------------------------------------------------------


def test_every_failpoint_has_a_test() -> None:
    """The names here are those that the engine knows; pages, conditions and stores have test files of their own."""
    from fastlog._native import oscalls

    elsewhere = ("page.", "store.", "backup.", "exchange.", "group.", "transaction.", "move.")
    engine = {name for name in oscalls.FAILPOINTS if not name.startswith(elsewhere)}
    assert engine == {*NAMES, *COMPACTION}


def test_enough_is_killed() -> None:
    """FASTLOG_KILLS counts the kills of this file and of test_kill.py together."""
    steps = len([*APPEND, *ROLL, *SYNC, *DELETE, "open.attached", *CLOSE]) + 4 * len(TAKEOVER) + 6 * len(OPEN_ALONE)
    assert 5 * RANDOM_KILLS + REPEATS * steps >= KILLS - KILLS // 3


def options_for(name: str) -> dict[str, Any]:
    """What a writer has to do to come by a failpoint soon."""
    if name in DELETE:
        return {"deletes": 0.5, "durability": "os"}
    if name in SYNC:
        return {"durability": "group"}
    return {}


@pytest.mark.parametrize("name", [*APPEND, *ROLL, *SYNC, *DELETE, "open.attached"])
def test_I4_killed_at_a_step_of_a_writer(nursery: Nursery, folder: Path, seed: int, name: str) -> None:
    chance = random.Random(seed)
    with Crowd(nursery, folder, seed, {"durability": "os"}) as crowd:
        survivors = [crowd.start("write", durability=level) for level in ("group", "os")]
        reader = crowd.start("follow", kind=chance.choice(READER_KINDS))
        for worker in (*survivors, reader):
            crowd.settled(worker)
        for _ in range(REPEATS):
            nth = 1 if name == "open.attached" else chance.choice([1, 1, 2, 5])
            victim = crowd.start("write", failpoint=[name, "kill", nth], **options_for(name))
            crowd.died_by_itself(victim)
            all_go_on(crowd, survivors, victim.child.dead_by or 0)
        finish(crowd)


@pytest.mark.parametrize("name", TAKEOVER)
def test_I4_killed_in_a_takeover(nursery: Nursery, folder: Path, seed: int, name: str) -> None:
    """One dies between its batches, the next one while it cuts what the first one left, the third one has both."""
    chance = random.Random(seed)
    with Crowd(nursery, folder, seed, {"durability": "os"}) as crowd:
        reader = None
        for turn in range(REPEATS):
            both_died = folder / f"both-died-{turn}"
            survivors = [crowd.start("write", idle_until=str(both_died)) for _ in range(2)]
            for worker in survivors:
                crowd.until(lambda w=worker: w.count("O") > 0, 30, "opened", worker)
            # not before there is a log to open
            reader = reader or crowd.start("follow", kind="read")
            first = chance.choice(["append.dirty", "append.batch_written", "append.written", "roll.created"])
            dead = crowd.start("write", failpoint=[first, "kill", chance.choice([1, 2, 3])], sizes=[60])
            crowd.died_by_itself(dead)
            crowd.died_by_itself(crowd.start("write", failpoint=[name, "kill", 1]))
            both_died.touch()
            for worker in survivors:
                crowd.goes_on(worker, dead.child.dead_by or 0)
            for worker in survivors:
                crowd.kill(worker)
        assert reader is not None
        assert reader.alive, reader.noted()[-3:]
        finish(crowd)


@pytest.mark.parametrize("name", OPEN_ALONE)
def test_I4_killed_in_opening_alone(nursery: Nursery, folder: Path, seed: int, name: str) -> None:
    """With what a killed crowd left behind; then several open it at once."""
    chance = random.Random(seed)
    with Crowd(nursery, folder, seed, {"durability": "os"}) as crowd:
        for _ in range(REPEATS):
            crowd.died_by_itself(crowd.start("write", failpoint=[chance.choice(APPEND), "kill", 7]))
            crowd.died_by_itself(crowd.start("write", failpoint=[name, "kill", 1]))
            openers = [crowd.start("write") for _ in range(3)]
            # a reader that is attached keeps the page alive: there is none before somebody was alone
            reader = crowd.start("follow", kind=chance.choice(READER_KINDS))
            for worker in openers:
                crowd.settled(worker)
            for worker in (reader, *openers):
                crowd.kill(worker)
        finish(crowd)


@pytest.mark.parametrize("name", CLOSE)
def test_I4_killed_in_closing(nursery: Nursery, folder: Path, seed: int, name: str) -> None:
    chance = random.Random(seed)
    with Crowd(nursery, folder, seed) as crowd:
        for _ in range(REPEATS):
            level = chance.choice(LEVELS)
            victim = crowd.start("write", durability=level, failpoint=[name, "kill", 1], appends=20, threads=2)
            crowd.died_by_itself(victim)
            others = [crowd.start("write", durability="os", appends=20, threads=1) for _ in range(2)]
            for worker in others:
                assert worker.child.wait() == 0
        crowd.start("write", durability="os", appends=1)
        finish(crowd)


IN_THE_LOCK = [name for name in (*APPEND, *ROLL) if name != "append.unlocked"]


@pytest.mark.parametrize("name", [*APPEND, *ROLL, *SYNC])
def test_I4_frozen_at_a_step(nursery: Nursery, folder: Path, seed: int, name: str) -> None:
    """The lock is refused with an error after lock_timeout, readers go on; and when it thaws, all go on."""
    config = {**SMALL, "lock_timeout": 0.1}
    with Crowd(nursery, folder, seed, {"durability": "os", "config": config}) as crowd:
        writer, other = crowd.start("write", threads=1), crowd.start("write", threads=2)
        reader = crowd.start("follow", kind="read")
        for worker in (writer, other, reader):
            crowd.settled(worker)
        for nth in (1, 4):
            victim = crowd.start("write", failpoint=[name, "stop", nth], **options_for(name))
            victim.child.wait_until_stopped()
            seen, heard = len(reader.noted()), {worker.number: len(worker.noted()) for worker in (writer, other)}
            crowd.until(lambda: reader.count("R", seen) >= 3, 30, "read again", reader)  # noqa: B023
            for worker in (writer, other):
                if name in IN_THE_LOCK:
                    since = heard[worker.number]
                    crowd.until(lambda w=worker, s=since: refused(w, s), 30, "was refused the lock", worker)
                else:
                    # another thread of the frozen process may have had the lock
                    since = heard[worker.number]
                    crowd.until(lambda w=worker, s=since: w.count("A", s) or refused(w, s), 30, "went on", worker)
            thawed = time.monotonic_ns()
            victim.child.signal(signal.SIGCONT)
            for worker in (victim, writer, other):
                crowd.goes_on(worker, thawed)
            crowd.kill(victim)
        finish(crowd)


def refused(worker: Worker, since: int) -> bool:
    return any(line.startswith("F ") and line.split(" ")[5] == "LockedError" for line in worker.noted()[since:])


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


@pytest.mark.skipif(not hasattr(fastlog.PartitionLog, "maintain"), reason="compaction is not there yet")
@pytest.mark.parametrize("name", COMPACTION)
def test_I4_killed_in_a_compaction(nursery: Nursery, folder: Path, seed: int, name: str) -> None:
    """The log is whole at every step of a swap: for readers, for the survivors, and for who opens it alone."""
    config = {**SMALL, "cleanup_policy": "compact", "min_cleanable_dirty_ratio": 0.0}
    with Crowd(nursery, folder, seed, {"durability": "os", "config": config}) as crowd:
        survivors = [crowd.start("write", threads=1) for _ in range(2)]
        reader = crowd.start("follow", kind="read")
        for worker in (*survivors, reader):
            crowd.settled(worker)
        for turn in range(REPEATS):
            victim = crowd.start("write", failpoint=[name, "kill", 1 + turn % 2], maintains=0.3)
            crowd.died_by_itself(victim)
            all_go_on(crowd, survivors, victim.child.dead_by or 0)
            if turn % 2:
                for worker in survivors:
                    crowd.kill(worker)
                survivors = [crowd.start("write", threads=1) for _ in range(2)]
                for worker in survivors:
                    crowd.settled(worker)
        finish(crowd, compacted=True)
