"""What is recorded: short lives of a log, one function each.

``python -m tests.crash.workloads NAME FOLDER SEED`` runs one below FOLDER. Functions mark what was promised, and what
is about to be tried, in the record; ``checker.History`` reads the marks:

==================================  ===================================================================================
``try WRITER NUMBER COUNT``         an append of ``make_records(seed, writer, number)`` is about to start
``ack WRITER NUMBER BASE DURABLE``  it returned BASE; DURABLE: at a level that survives power loss
``durable END``                     ``flush`` returned END, or ``durable_offset`` or a durable reader showed it
``deleting BEFORE``                 ``delete_records(BEFORE)`` is about to start
``deleted START``                   it returned
==================================  ===================================================================================
"""

from __future__ import annotations

import ctypes
import json
import os
import random
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from threading import Thread
from typing import Any

import fastlog
from fastlog._native import oscalls

SOME_TIME = 1_700_000_000_000
NAME = "events-0"
CONFIG: dict[str, Any] = {"segment_bytes": 12_000, "index_interval_bytes": 500, "max_message_bytes": 5_500}

Stored = tuple[int, bytes | None, bytes | None, tuple[tuple[str, bytes | None], ...]]


def make_records(seed: int, writer: int, number: int) -> list[Stored]:
    """The records of one append: (timestamp, key, value, headers) each. The key tells which one it is."""
    chance = random.Random(f"{seed} {writer} {number}")
    count = chance.choice([1, 1, 2, 5, 20])
    largest = chance.choice([20, 150])
    if chance.random() < 0.1:
        count, largest = 60, 200  # more than one batch
    records: list[Stored] = []
    for index in range(count):
        value = chance.choice([None, b"", chance.randbytes(chance.randint(1, largest))])
        if count <= 2 and chance.random() < 0.08:
            value = chance.randbytes(4500)  # written from where it is, by pwritev
        headers = chance.choice([(), (("h", b"1"), ("h", None))])
        key = b"%d.%d.%d" % (writer, number, index)
        records.append((SOME_TIME + chance.randint(-1000, 1000), key, value, headers))
    return records


def mark(what: str, **facts: Any) -> None:
    """Leave a mark in the record; nothing happens when nobody records."""
    text = json.dumps({"what": what, **facts}).encode()
    if MARKER is not None:
        MARKER(text, len(text))


try:
    MARKER: Any = ctypes.CDLL(None).fastlog_mark
    MARKER.argtypes = [ctypes.c_char_p, ctypes.c_size_t]
except AttributeError:
    MARKER = None


class Writer:
    """Appends that mark what they do. Several writers of a run have different numbers."""

    def __init__(self, folder: Path, seed: int, number: int = 0) -> None:
        self.path = folder / NAME
        self.seed = seed
        self.number = number
        self.appends = 0
        self.chance = random.Random(f"{seed} writer {number}")

    def open(self, durability: str, *, read_only: bool = False, **options: Any) -> Any:
        config = fastlog.LogConfig(**{**CONFIG, **options})
        return fastlog.PartitionLog.open(self.path, durability=durability, read_only=read_only, config=config)

    def append(self, log: Any, times: int = 1) -> None:
        for _ in range(times):
            number = self.appends
            self.appends += 1
            timestamps, keys, values, headers = zip(*make_records(self.seed, self.number, number), strict=True)
            mark("try", writer=self.number, number=number, count=len(keys))
            base = log.append(values, keys=keys, timestamps=timestamps, headers=headers)
            mark("ack", writer=self.number, number=number, base=base, durable=log.durability in ("batch", "group"))

    def flush(self, log: Any) -> None:
        mark("durable", end=log.flush())

    def delete(self, log: Any) -> None:
        before = self.chance.randint(log.start_offset, log.readable_offset)
        mark("deleting", before=before)
        mark("deleted", start=log.delete_records(before=before))


# --- one process ------------------------------------------------------------------------------------------------------


def durable_appends(folder: Path, seed: int) -> None:
    """Segments roll while every append is synced."""
    writer = Writer(folder, seed)
    with writer.open("batch") as log:
        writer.append(log, 60)


def lazy_appends(folder: Path, seed: int) -> None:
    """Appends that nobody syncs, a flush now and then, segments that the background syncs."""
    writer = Writer(folder, seed)
    with writer.open("os") as log:
        for _ in range(5):
            writer.append(log, writer.chance.randint(5, 20))
            if writer.chance.random() < 0.7:
                writer.flush(log)
            mark("durable", end=log.durable_offset)


def deletions(folder: Path, seed: int) -> None:
    """Old records go, one or several segments at a time, between appends of both levels."""
    writer = Writer(folder, seed)
    for durability in ("batch", "os", "batch"):
        with writer.open(durability) as log:
            for _ in range(3):
                writer.append(log, writer.chance.randint(5, 30))
                if writer.chance.random() < 0.5:
                    # else the start may lie beyond what is durable
                    writer.flush(log)
                writer.delete(log)


def clean_closes(folder: Path, seed: int) -> None:
    """Many short sessions: clean marker, its removal, the first append, sessions that change nothing."""
    writer = Writer(folder, seed)
    for _ in range(8):
        with writer.open(writer.chance.choice(["batch", "os"])) as log:
            mark("durable", end=log.end_offset)
            writer.append(log, writer.chance.choice([0, 1, 2, 8]))
        with writer.open("os", read_only=True) as log:
            mark("durable", end=log.end_offset)  # what a clean close left is durable


def deaths(folder: Path, seed: int) -> None:
    """Sessions that die without closing, some in the middle of a write, and the recovery by the next one."""
    for generation in range(5):
        writer = Writer(folder, seed, generation)
        pid = os.fork()
        if pid == 0:
            run_and_exit(die, writer)
        assert os.waitpid(pid, 0)[1] == 0
    writer = Writer(folder, seed, 9)
    with writer.open("batch") as log:
        mark("durable", end=log.end_offset)
        writer.append(log, 3)


def run_and_exit(function: Callable[..., None], *arguments: Any) -> None:
    """The life of a forked child: it never returns to what its parent was doing."""
    status = 1
    try:
        function(*arguments)
        status = 0
    except BaseException:  # noqa: BLE001 - whatever it is, it is told and the child ends
        import traceback

        traceback.print_exc()
    finally:
        sys.stderr.flush()
        os._exit(status)


def die(writer: Writer) -> None:
    log = writer.open(writer.chance.choice(["batch", "os"]))
    # what was recovered was synced first
    mark("durable", end=log.end_offset)
    writer.append(log, writer.chance.randint(1, 15))
    if writer.chance.random() < 0.7:
        # the last append gets half-way
        records = make_records(writer.seed, writer.number, writer.appends)
        mark("try", writer=writer.number, number=writer.appends, count=len(records))
        tear_tail(log, writer.chance)


def tear_tail(log: Any, chance: random.Random) -> None:
    """Leave something behind the end of the active segment that a killed writer could have left."""
    fd = oscalls.open_file(log.segments()[-1].path, writable=True)
    size = os.fstat(fd).st_size
    os.pwrite(fd, chance.choice([bytes(700), chance.randbytes(700)]), size)
    os.close(fd)


def threads(folder: Path, seed: int) -> None:
    """Four threads append to one handle, a fifth flushes and deletes; each sync runs while others write."""
    first = Writer(folder, seed)
    with first.open("batch") as log:
        working = [Thread(target=Writer(folder, seed, number).append, args=(log, 12)) for number in range(1, 5)]
        for thread in working:
            thread.start()
        while any(thread.is_alive() for thread in working):
            first.append(log)
            first.flush(log)
            if first.chance.random() < 0.2:
                first.delete(log)
        for thread in working:
            thread.join()


# --- several processes ------------------------------------------------------------------------------------------------


def group_threads(folder: Path, seed: int) -> None:
    """Eight threads of one handle share syncs."""
    with Writer(folder, seed).open("group") as log:
        share_among_threads(log, [Writer(folder, seed, number) for number in range(1, 9)], 8)


def share_among_threads(log: Any, writers: list[Writer], times: int) -> None:
    working = [Thread(target=writer.append, args=(log, times)) for writer in writers]
    for thread in working:
        thread.start()
    for thread in working:
        thread.join()


def group_processes(folder: Path, seed: int) -> None:
    """Processes come and go: two threads each, at every level, one that deletes, one that only reads."""
    chance = random.Random(seed)
    levels = ["group", "group", "batch", "interval", "os"]
    chance.shuffle(levels)
    lives = [
        lambda number=number, level=level: live(folder, seed, number, level) for number, level in enumerate(levels)
    ]
    in_processes([*lives, lambda: watch(folder, seed)])


def group_deaths(folder: Path, seed: int) -> None:
    """Some processes are killed at named places; the others take over, and power is lost meanwhile."""
    chance = random.Random(seed)
    in_processes([lambda: live(folder, seed, 0, "group")])
    lives: list[Callable[[], None]] = []
    for number in range(1, 7):
        place = chance.choice([None, *PLACES])
        lives.append(lambda number=number, place=place: live(folder, seed, number, "group", place))  # type: ignore[misc]
    in_processes([*lives, lambda: watch(folder, seed)], may_die=True)
    in_processes([lambda: live(folder, seed, 9, "group")])


PLACES = [
    *("append.dirty", "append.batch_written", "append.written", "append.indexed", "append.published"),
    *("roll.begun", "roll.created", "roll.published", "sync.locked", "sync.synced", "sync.published"),
    *("open.recovered", "open.page_written", "close.exclusive", "close.synced"),
]


def live(folder: Path, seed: int, number: int, durability: str, place: str | None = None) -> None:
    """The life of one process among others."""
    first, second = Writer(folder, seed, 2 * number + 10), Writer(folder, seed, 2 * number + 11)
    if place is not None:
        oscalls.arm(place, "kill", first.chance.randint(1, 6) if place.startswith("append") else 1)
    with first.open(durability) as log:
        share_among_threads(log, [first, second], first.chance.randint(1, 6))
        mark("durable", end=log.durable_offset)
        if first.chance.random() < 0.3:
            first.flush(log)
        if number == 1:
            first.delete(log)


def watch(folder: Path, seed: int) -> None:
    """Somebody who acts on what is durable."""
    writer = Writer(folder, seed, 999)
    for _ in range(10):
        try:
            with writer.open("group", read_only=True) as log:
                mark("durable", end=log.durable_offset)
                log.wait(log.durable_offset, 0.01)
                mark("durable", end=log.durable_offset)
        except fastlog.StorageError as error:
            assert "holds no log yet" in str(error) or "does not exist" in str(error), error


def in_processes(lives: list[Callable[[], None]], *, may_die: bool = False) -> None:
    """Run each in a process of its own, all at once."""
    processes = []
    for life in lives:
        pid = os.fork()
        if pid == 0:
            run_and_exit(life)
        processes.append(pid)
    allowed = {0, -signal.SIGKILL} if may_die else {0}
    ends = [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in processes]
    assert set(ends) <= allowed, f"processes ended with {ends}"


def intervals(folder: Path, seed: int) -> None:
    """Appends that somebody syncs some time later; what is durable is shown."""
    writer = Writer(folder, seed)
    with writer.open("interval", flush_interval="5ms") as log:
        for _ in range(60):
            writer.append(log)
            mark("durable", end=log.durable_offset)
            log.wait(log.end_offset, 0.002)


# --- on what power loss left ------------------------------------------------------------------------------------------


def recovery(folder: Path, seed: int) -> None:
    """Opening what power loss left, and going on; the folder holds a disk of another record."""
    writer = Writer(folder, seed, 1000 + seed % 1000)
    with writer.open("batch") as log:
        mark("durable", end=log.end_offset)
        writer.append(log, 2)


ALONE = ["durable_appends", "lazy_appends", "deletions", "clean_closes", "deaths", "threads"]
SHARED = ["group_threads", "group_processes", "group_deaths", "intervals"]
WORKLOADS: dict[str, Callable[[Path, int], None]] = {
    function.__name__: function
    for function in (
        durable_appends,
        lazy_appends,
        deletions,
        clean_closes,
        deaths,
        threads,
        group_threads,
        group_processes,
        group_deaths,
        intervals,
        recovery,
    )
}


def main() -> None:
    name, folder, seed = sys.argv[1:]
    assert MARKER is not None, "nobody records"
    WORKLOADS[name](Path(folder), int(seed))


if __name__ == "__main__":
    main()
