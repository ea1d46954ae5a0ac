"""What may befall a crowd: its processes are killed and frozen, at random and at every named step of the engine.

Each of these lets the crowd go on as long as it says, and leaves the checking of the history to the caller. Names of
failpoints come in the groups that need the same circumstances to be reached.
"""

from __future__ import annotations

import random
import signal
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import fastlog
from tests.histories.driver import Crowd, Worker
from tests.histories.workers import READER_KINDS, SMALL

LEVELS = ("os", "interval", "batch", "group")

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
AS_A_WRITER = [*APPEND, *ROLL, *SYNC, *DELETE, "open.attached"]
IN_THE_LOCK = [name for name in (*APPEND, *ROLL) if name != "append.unlocked"]

COMPACTED = {**SMALL, "cleanup_policy": "compact", "min_cleanable_dirty_ratio": 0.0}
IMPATIENT = {**SMALL, "lock_timeout": 0.1}  # a frozen process is told of soon


def options_for(name: str) -> dict[str, Any]:
    """What a writer has to do to come by a failpoint soon."""
    if name in DELETE:
        return {"deletes": 0.5, "durability": "os"}
    if name in SYNC:
        return {"durability": "group"}
    return {}


def killed_at_random(
    crowd: Crowd, chance: random.Random, levels: Sequence[str], kills: int, within: float, **options: Any
) -> None:
    """Until there were so many kills: of one writer or reader, or of all of them at once. ``options``: of writers."""

    def writer() -> Worker:
        return crowd.start(
            "write",
            durability=chance.choice(levels),
            threads=chance.choice([1, 2, 3]),
            reopens=chance.choice([0, 0, 0.1]),
            **{"deletes": chance.choice([0, 0, 0.02]), **options},
        )

    def reader() -> Worker:
        return crowd.start("follow", kind=chance.choice(READER_KINDS), durability=chance.choice(levels))

    writers, readers = [writer() for _ in range(3)], [reader() for _ in range(2)]
    for worker in writers:
        crowd.settled(worker)
    while crowd.kills < kills:
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
                crowd.all_go_on(survivors, writers[at].child.dead_by or 0, within)
            writers[at] = writer()


def frozen_at_random(crowd: Crowd, chance: random.Random, times: int) -> None:
    """SIGSTOP and SIGCONT; some of the frozen are killed instead. Who cannot have the lock says so, and tries again.

    The crowd is ``IMPATIENT``.
    """
    writers = [crowd.start("write", durability=level, threads=2) for level in LEVELS]
    readers = [crowd.start("follow", kind=kind) for kind in ("read", "wait")]
    for worker in (*writers, *readers):
        crowd.settled(worker)
    for _ in range(times):
        victims = chance.sample(range(len(writers)), chance.choice([1, 1, 2, 4]))
        for at in victims:
            writers[at].child.signal(signal.SIGSTOP)
        for reader in readers:
            seen = len(reader.noted())
            crowd.until(lambda r=reader, s=seen: r.count("R", s) > 0, 30, "read again", reader)
        time.sleep(chance.choice([0.0, 0.02, 0.15]) * chance.random())
        crowd.freezes += len(victims)
        for at in victims:
            if chance.random() < 0.2:
                crowd.kill(writers[at])
                writers[at] = crowd.start("write", durability=LEVELS[at], threads=2)
            else:
                writers[at].child.signal(signal.SIGCONT)
    resumed = time.monotonic_ns()
    for worker in writers:
        crowd.goes_on(worker, resumed)


def killed_as_a_writer(crowd: Crowd, chance: random.Random, names: Sequence[str], within: float) -> None:
    """At steps of ``AS_A_WRITER``, beside two writers and a reader that go on."""
    survivors = [crowd.start("write", durability=level) for level in ("group", "os")]
    reader = crowd.start("follow", kind=chance.choice(READER_KINDS))
    for worker in (*survivors, reader):
        crowd.settled(worker)
    for name in names:
        nth = 1 if name == "open.attached" else chance.choice([1, 1, 2, 5])
        victim = crowd.dies(name, nth, **options_for(name))
        crowd.all_go_on(survivors, victim.child.dead_by or 0, within)


def killed_in_a_takeover(crowd: Crowd, chance: random.Random, names: Sequence[str]) -> None:
    """One dies between its batches, the next one while it cuts what the first one left, the third one has both."""
    reader = None
    for turn, name in enumerate(names):
        both_died = crowd.folder / f"both-died-{turn}"
        survivors = [crowd.start("write", idle_until=str(both_died)) for _ in range(2)]
        for worker in survivors:
            crowd.until(lambda w=worker: w.count("O") > 0, 30, "opened", worker)
        # not before there is a log to open
        reader = reader or crowd.start("follow", kind="read")
        first = chance.choice(["append.dirty", "append.batch_written", "append.written", "roll.created"])
        dead = crowd.dies(first, chance.choice([1, 2, 3]), sizes=[60])
        crowd.dies(name)
        if name != "takeover.begun":
            check_cut(crowd)
        both_died.touch()
        for worker in survivors:
            crowd.goes_on(worker, dead.child.dead_by or 0)
        for worker in survivors:
            crowd.kill(worker)
    assert reader is not None
    assert reader.alive, reader.noted()[-3:]


def check_cut(crowd: Crowd) -> None:
    """Nothing that a dead one wrote lies behind the published end. Nobody is writing."""
    with fastlog.PartitionLog.open(crowd.path, durability="os", read_only=True) as log:
        active = log.segments()[-1]
        size = Path(active.path).stat().st_size
        assert size == active.size, f"{active.path} has {size} bytes, {active.size} are published"


def killed_in_opening_alone(crowd: Crowd, chance: random.Random, names: Sequence[str]) -> None:
    """With what a killed crowd left behind; then several open it at once."""
    for name in names:
        crowd.dies(chance.choice(APPEND), 7)
        crowd.dies(name)
        openers = [crowd.start("write") for _ in range(3)]
        # a reader that is attached keeps the page alive: there is none before somebody was alone
        reader = crowd.start("follow", kind=chance.choice(READER_KINDS))
        for worker in openers:
            crowd.settled(worker)
        for worker in (reader, *openers):
            crowd.kill(worker)


def killed_in_closing(crowd: Crowd, chance: random.Random, names: Sequence[str]) -> None:
    """As the last one to close; others open and close after it."""
    for name in names:
        crowd.dies(name, durability=chance.choice(LEVELS), appends=20, threads=2)
        others = [crowd.start("write", durability="os", appends=20, threads=1) for _ in range(2)]
        for worker in others:
            assert worker.child.wait() == 0
    crowd.start("write", durability="os", appends=1)


def killed_in_a_compaction(crowd: Crowd, names: Sequence[str], within: float) -> None:
    """The log is whole at every step of a swap: for readers, for the survivors, and for who opens it alone.

    The crowd works on a log that is ``COMPACTED``.
    """
    survivors = [crowd.start("write", threads=1) for _ in range(2)]
    reader = crowd.start("follow", kind="read")
    for worker in (*survivors, reader):
        crowd.settled(worker)
    for turn, name in enumerate(names):
        victim = crowd.dies(name, 1 + turn % 2, maintains=0.3)
        crowd.all_go_on(survivors, victim.child.dead_by or 0, within)
        if turn % 2:
            for worker in survivors:
                crowd.kill(worker)
            survivors = [crowd.start("write", threads=1) for _ in range(2)]
            for worker in survivors:
                crowd.settled(worker)


def frozen_at_steps(crowd: Crowd, steps: Sequence[tuple[str, int]]) -> None:
    """The lock is refused with an error after lock_timeout, readers go on; and when it thaws, all go on.

    ``steps``: names of ``APPEND``, ``ROLL`` and ``SYNC``, and at which time of passing. The crowd is ``IMPATIENT``.
    """
    writer, other = crowd.start("write", threads=1), crowd.start("write", threads=2)
    reader = crowd.start("follow", kind="read")
    for worker in (writer, other, reader):
        crowd.settled(worker)
    for name, nth in steps:
        victim = crowd.start("write", failpoint=[name, "stop", nth], **options_for(name))
        victim.child.wait_until_stopped()
        seen, heard = len(reader.noted()), {worker.number: len(worker.noted()) for worker in (writer, other)}
        crowd.until(lambda: reader.count("R", seen) >= 3, 30, "read again", reader)  # noqa: B023
        for worker in (writer, other):
            since = heard[worker.number]
            if name in IN_THE_LOCK:
                crowd.until(lambda w=worker, s=since: refused(w, s), 30, "was refused the lock", worker)
            else:
                # another thread of the frozen process may have had the lock
                crowd.until(lambda w=worker, s=since: w.count("A", s) or refused(w, s), 30, "went on", worker)
        thawed = time.monotonic_ns()
        victim.child.signal(signal.SIGCONT)
        for worker in (victim, writer, other):
            crowd.goes_on(worker, thawed)
        crowd.freezes += 1
        crowd.kill(victim)


def refused(worker: Worker, since: int) -> bool:
    """Whether a worker was refused the lock behind that line of its notes."""
    return any(line.startswith("F ") and line.split(" ")[5] == "LockedError" for line in worker.noted()[since:])
