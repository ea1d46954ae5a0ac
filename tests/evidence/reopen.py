"""How long it takes to open a large log whose writer was killed.

The log is as the benchmarks have it: real records of 100 bytes, 1000 to an append, until its segments hold 10 GiB
(``FASTLOG_REOPEN_BYTES``), or what fits; how large it is stands beside the seconds. It lies on a disk, not in memory,
since a recovery reads back what it does not know to be durable.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import struct
import sys
import tempfile
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import fastlog
from benchmarks.ours import bytes_of, fill_up
from benchmarks.workload import VALUE_BYTES, VALUES_PER_CALL, value_lists
from tests.crash.checker import quiet
from tests.evidence.run import KEPT, NotHere, Scenario, Turn
from tests.histories.nursery import Nursery

__all__ = ["reopen", "write_until_killed"]

BYTES = int(os.environ.get("FASTLOG_REOPEN_BYTES", str(10 << 30)))
LEAST = 1 << 30
GROWTH = 4 << 30  # what may come to it between two openings
LONGEST = 6.0  # seconds that a writer lives: the recovery point on disk may trail by five
OFFSET = struct.Struct("<q")


def write_until_killed(path: str, durability: str, told: str) -> None:
    """One append after the other, as fast as it goes; the end offset that each was told is put into a file."""
    answers = os.open(told, os.O_WRONLY | os.O_CREAT)
    calls = value_lists(VALUE_BYTES)
    with fastlog.PartitionLog.open(path, durability=durability) as log:
        while True:
            for values in calls:
                base = log.append(values)
                os.pwrite(answers, OFFSET.pack(base + len(values)), 0)


def opened_after_a_kill(nursery: Nursery, path: Path, wanted: int, durability: str, of: str, turn: Turn) -> None:
    """One writer lives for some seconds and is killed in the middle of an append; then the log is opened."""
    told = turn.folder / "told"
    writer = nursery.start(
        "tests.evidence.reopen:write_until_killed", path=str(path), durability=durability, told=str(told)
    )
    deadline = time.monotonic() + 60
    while not (told.exists() and told.stat().st_size == OFFSET.size):
        assert writer.alive and time.monotonic() < deadline, "the writer does not write"
        time.sleep(0.01)
    time.sleep(turn.chance.uniform(0.2, LONGEST))
    writer.kill()
    (promised,) = OFFSET.unpack(told.read_bytes())
    size = bytes_of(path)
    began = time.perf_counter()
    log = fastlog.PartitionLog.open(path, durability=durability)
    seconds = time.perf_counter() - began
    with log:
        report = log.recovery
        assert report is not None, "the log was closed cleanly: nobody was killed"
        assert promised <= log.end_offset <= promised + VALUES_PER_CALL, (promised, log.end_offset)
        for offset in (log.start_offset, promised - 1, turn.chance.randrange(log.start_offset, promised)):
            # each writer begins with the first list
            known = {values[offset % VALUES_PER_CALL] for values in value_lists(VALUE_BYTES)}
            assert log.read(offset)[0].value in known, f"another record is at offset {offset}"
        turn.measure(f"seconds to open{of}", seconds)
        turn.measure("GiB in the log", size / (1 << 30))
        turn.measure(f"MiB scanned{of}", report.scanned_bytes / (1 << 20))
        turn.count("reopens")
        trim(log, size - wanted)


def trim(log: fastlog.PartitionLog, surplus: int) -> None:
    """Let the oldest segments go, as far as they are more than is wanted."""
    for segment in log.segments()[:-1]:
        surplus -= segment.size
        if surplus < 0:
            break
        log.delete_records(segment.end_offset)


@contextlib.contextmanager
def reopen() -> Iterator[list[Scenario]]:
    """The engine: makes the log, which takes longer than all the rest."""
    KEPT.mkdir(parents=True, exist_ok=True)
    free = shutil.disk_usage(KEPT).free
    wanted = min(BYTES, free - 2 * GROWTH)
    if wanted < LEAST:
        raise NotHere(f"{free >> 30} GiB are free, and a large log with what comes to it does not fit there")
    if wanted < BYTES:
        print(f"reopen: a log of {wanted >> 30} GiB, for no more than {free >> 30} are free", file=sys.stderr)
    with quiet(), tempfile.TemporaryDirectory(prefix="reopen-", dir=KEPT) as folder, Nursery() as nursery:
        path = Path(folder) / "events-0"
        fill_up(path, wanted)
        take = partial(opened_after_a_kill, nursery, path, wanted)
        yield [
            Scenario("group", partial(take, "group", ""), 2),
            Scenario("os", partial(take, "os", " at os")),
        ]
