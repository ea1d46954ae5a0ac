"""What is recorded: short lives of a log, one function each.

``python -m tests.crash.workloads NAME FOLDER SEED INODES`` runs one below FOLDER; INODES is a file that says what its
folders have to be taken for. Functions mark what was promised, and what is about to be tried, in the record;
``checker.History`` reads the marks:

==================================  ===================================================================================
``try WRITER NUMBER COUNT``         an append of ``make_records(seed, writer, number)`` is about to start
``ack WRITER NUMBER BASE DURABLE``  it returned BASE; DURABLE: at a level that survives power loss
``durable END``                     ``flush`` returned END, or ``durable_offset`` or a durable reader showed it
``deleting BEFORE``                 ``delete_records(BEFORE)`` is about to start
``deleted START``                   it returned
``maintaining STARTS``              ``maintain`` is about to start; the log may begin at any of STARTS from now on
``operate WRITER NUMBER …``         what a producer is about to append; its ``ack`` follows (``produced.Operation``)
==================================  ===================================================================================
"""

from __future__ import annotations

import ctypes
import dataclasses
import functools
import json
import os
import random
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from threading import Thread, get_native_id
from typing import Any

import fastlog
from fastlog._native import oscalls
from tests.crash.replayer import pretending
from tests.histories.nursery import die_with
from tests.reference.batch import TRANSACTIONAL, Record, encode_batch, make_batch

SOME_TIME = 1_700_000_000_000
NAME = "events-0"
KNOWN = 4000  # appends whose records are kept in mind: they are wanted again for every disk
CONFIG: dict[str, Any] = {"segment_bytes": 12_000, "index_interval_bytes": 500, "max_message_bytes": 5_500}

COMPACTED: dict[str, Any] = {
    "cleanup_policy": "compact", "min_cleanable_dirty_ratio": 0, "delete_retention_ms": 0, "segment_bytes": 6_000,
}  # fmt: skip

Stored = tuple[int, bytes | None, bytes | None, tuple[tuple[str, bytes | None], ...]]


@functools.lru_cache(KNOWN)
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
        if index == 0 and count <= 2 and chance.random() < 0.15:
            value = chance.randbytes(4500)  # written from where it is, by pwritev; two would not fit a batch
        headers = chance.choice([(), (("h", b"1"), ("h", None))])
        key = b"%d.%d.%d" % (writer, number, index)
        records.append((SOME_TIME + chance.randint(-1000, 1000), key, value, headers))
    return records


def mark(what: str, **facts: Any) -> None:
    """Leave a mark in the record, or as a line of the file of ``run_marking``; nothing happens when nobody records."""
    text = json.dumps({"what": what, **facts}).encode()
    if MARKER is not None:
        MARKER(text, len(text))
    elif MARKS >= 0:
        os.write(MARKS, b"%d %b\n" % (get_native_id(), text))


try:
    MARKER: Any = ctypes.CDLL(None).fastlog_mark
    MARKER.argtypes = [ctypes.c_char_p, ctypes.c_size_t]
except AttributeError:
    MARKER = None
MARKS = -1


@functools.lru_cache(KNOWN)
def make_keyed_records(seed: int, writer: int, number: int) -> list[Stored]:
    """The same for a log that is compacted: few keys, many tombstones; a header tells which one it is."""
    chance = random.Random(f"keyed {seed} {writer} {number}")
    records: list[Stored] = []
    for index in range(chance.choice([1, 2, 5, 20])):
        value = chance.choice([None, b"", *[chance.randbytes(chance.randint(1, 150))] * 3])
        identity = b"%d.%d.%d" % (writer, number, index)
        key = b"key %d" % min(chance.randrange(12), chance.randrange(12))
        records.append((SOME_TIME + chance.randint(-1000, 1000), key, value, (("id", identity),)))
    return records


class Writer:
    """Appends that mark what they do. Several writers of a run have different numbers."""

    make = staticmethod(make_records)

    def __init__(self, folder: Path, seed: int, number: int = 0) -> None:
        self.path = folder / NAME
        self.seed = seed
        self.number = number
        self.appends = 0
        self.hours = 0
        self.chance = random.Random(f"{seed} writer {number}")

    def open(self, durability: str, *, read_only: bool = False, **options: Any) -> Any:
        config = fastlog.LogConfig(**{**CONFIG, **options})
        return fastlog.PartitionLog.open(self.path, durability=durability, read_only=read_only, config=config)

    def append(self, log: Any, times: int = 1) -> None:
        for _ in range(times):
            number = self.appends
            self.appends += 1
            timestamps, keys, values, headers = zip(*self.make(self.seed, self.number, number), strict=True)
            mark("try", writer=self.number, number=number, count=len(keys))
            base = log.append(values, keys=keys, timestamps=timestamps, headers=headers)
            mark("ack", writer=self.number, number=number, base=base, durable=log.durability in ("batch", "group"))

    def flush(self, log: Any) -> None:
        mark("durable", end=log.flush())

    def delete(self, log: Any) -> None:
        before = self.chance.randint(log.start_offset, log.readable_offset)
        mark("deleting", before=before)
        mark("deleted", start=log.delete_records(before=before))

    def maintain(self, log: Any) -> None:
        """Upkeep, three hours later than the last one, so that the clock is believed."""
        bases = [segment.base_offset for segment in log.segments()]
        mark("maintaining", starts=[base for base in bases if base > log.start_offset] + [log.end_offset])
        self.hours += 3
        oscalls.set_clock(int(time.time() * 1000) + self.hours * 3_600_000)
        try:
            log.maintain()
        finally:
            oscalls.set_clock(None)
        mark("durable", end=log.durable_offset)


class KeyedWriter(Writer):
    """The same on a log that is compacted."""

    make = staticmethod(make_keyed_records)

    def open(self, durability: str, *, read_only: bool = False, **options: Any) -> Any:
        return super().open(durability, read_only=read_only, **{**COMPACTED, **options})


@dataclasses.dataclass(frozen=True, slots=True)
class Operation:
    """What a producer does: kind "plain", "idempotent", "transactional" (batches), "commit" or "abort"."""

    kind: str
    producer: int = -1
    epoch: int = -1
    sequence: int = -1

    @property
    def repeats(self) -> bool:
        """Whether doing it twice is the same as once."""
        return self.kind in ("idempotent", "transactional")

    @property
    def is_end(self) -> bool:
        """Whether it ends a transaction: one record, which nobody sees."""
        return self.kind in ("commit", "abort")

    def perform(self, log: Any, records: list[Stored]) -> int:
        """Do it, on a log; the base offset. ``records`` are left out of the end of a transaction."""
        if self.is_end:
            return int(log.end_transaction(self.producer, self.epoch, commit=self.kind == "commit"))
        return int(log.append_batch(self.encoded(tuple(records))))

    @functools.lru_cache(KNOWN)  # noqa: B019 - as for records
    def encoded(self, records: tuple[Stored, ...]) -> bytes:
        """The batch of it."""
        batch = make_batch([Record(offset, *record) for offset, record in enumerate(records)])
        return encode_batch(
            dataclasses.replace(
                batch,
                attributes=TRANSACTIONAL if self.kind == "transactional" else 0,
                producer_id=self.producer,
                producer_epoch=self.epoch,
                base_sequence=self.sequence,
            )
        )


class Producer(Writer):
    """Batches of clients, with and without producer ids and transactions."""

    def __init__(self, folder: Path, seed: int, number: int = 0) -> None:
        super().__init__(folder, seed, number)
        self.epochs: dict[int, int] = {}
        self.sequences: dict[int, int] = {}
        self.in_transaction: set[int] = set()

    def operate(self, log: Any, times: int = 1) -> None:
        """Append what some producer does next; sometimes twice, as a client does whose answer was lost."""
        for _ in range(times):
            operation = self.choose()
            number = self.appends
            self.appends += 1
            mark("operate", writer=self.number, number=number, **dataclasses.asdict(operation))
            records = make_records(self.seed, self.number, number)
            base = operation.perform(log, records)
            mark("ack", writer=self.number, number=number, base=base, durable=log.durability in ("batch", "group"))
            if operation.repeats and self.chance.random() < 0.1:
                assert operation.perform(log, records) == base, "a retry was not known again"

    def choose(self) -> Operation:
        chance = self.chance
        # ids of different writers differ
        producer = 10 * self.number + chance.randrange(4) if chance.random() < 0.9 else -1
        if producer < 0:
            return Operation("plain")
        if producer in self.in_transaction and chance.random() < 0.35:
            self.in_transaction.remove(producer)
            return Operation(chance.choice(["commit", "abort"]), producer, self.epochs[producer])
        if producer not in self.epochs or (producer not in self.in_transaction and chance.random() < 0.1):
            self.epochs[producer] = self.epochs.get(producer, -1) + 1
            self.sequences[producer] = 0
        sequence = self.sequences[producer]
        self.sequences[producer] += len(make_records(self.seed, self.number, self.appends))
        kind = "transactional" if producer in self.in_transaction or producer % 2 else "idempotent"
        if kind == "transactional":
            self.in_transaction.add(producer)
        return Operation(kind, producer, self.epochs[producer], sequence)


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
        assert os.waitpid(in_child(die, writer), 0)[1] == 0
    writer = Writer(folder, seed, 9)
    with writer.open("batch") as log:
        mark("durable", end=log.end_offset)
        writer.append(log, 3)


def in_child(function: Callable[..., None], *arguments: Any) -> int:
    """Run it in a forked child; its process id. It never returns to what its parent was doing, nor outlives it."""
    parent = os.getpid()
    pid = os.fork()
    if pid:
        return pid
    status = 1
    try:
        die_with(parent)
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


def retention(folder: Path, seed: int) -> None:
    """Old segments go by size, at both levels; sometimes all of them."""
    writer = Writer(folder, seed)
    for durability in ("os", "batch", "os", "group"):
        with writer.open(durability, retention_bytes=writer.chance.choice([0, 10_000, 20_000])) as log:
            mark("durable", end=log.end_offset)
            for _ in range(3):
                writer.append(log, writer.chance.randint(5, 25))
                writer.maintain(log)
                mark("deleted", start=log.start_offset)


def compaction(folder: Path, seed: int) -> None:
    """Values and tombstones of few keys, compacted again and again; the start is raised now and then."""
    writer = KeyedWriter(folder, seed)
    for durability in ("batch", "os", "group", "os"):
        with writer.open(durability) as log:
            mark("durable", end=log.end_offset)
            for _ in range(3):
                writer.append(log, writer.chance.randint(3, 12))
                writer.maintain(log)
                if writer.chance.random() < 0.15:
                    writer.delete(log)


def transactions(folder: Path, seed: int) -> None:
    """Transactions of several producers across segments, flushes, clean closes and deaths."""
    writer = Producer(folder, seed, 1)
    for durability in ("batch", "os", "group", "os"):
        with writer.open(durability, segment_bytes=6_000) as log:
            mark("durable", end=log.end_offset)
            for _ in range(3):
                writer.operate(log, writer.chance.randint(3, 10))
                if writer.chance.random() < 0.5:
                    writer.flush(log)


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


def watch(folder: Path, seed: int, kind: type[Writer] = Writer) -> None:
    """Somebody who acts on what is durable."""
    writer = kind(folder, seed, 999)
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
    processes = [in_child(life) for life in lives]
    allowed = {0, -signal.SIGKILL} if may_die else {0}
    ends = [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in processes]
    assert set(ends) <= allowed, f"processes ended with {ends}"


def compaction_deaths(folder: Path, seed: int) -> None:
    """Some append, some compact and are killed at named places; whoever is left goes on with it."""
    chance = random.Random(seed)
    in_processes([lambda: live_compacting(folder, seed, 0)])
    lives: list[Callable[[], None]] = []
    for number in range(1, 6):
        place = chance.choice([None, *COMPACTING_PLACES, *COMPACTING_PLACES])
        lives.append(lambda number=number, place=place: live_compacting(folder, seed, number, place))  # type: ignore[misc]
    in_processes([*lives, lambda: watch(folder, seed, KeyedWriter)], may_die=True)
    in_processes([lambda: live_compacting(folder, seed, 9)])


COMPACTING_PLACES = [
    f"compaction.{step}"
    for step in (
        *("swapped", "odd", "indexes_unlinked", "moved", "sources_unlinked", "indexes_installed", "swap_unlinked"),
        "even",
    )
]


def live_compacting(folder: Path, seed: int, number: int, place: str | None = None) -> None:
    """The life of one process of several that share a log to be compacted."""
    writer = KeyedWriter(folder, seed, number + 10)
    writer.hours = 50 * number
    if place is not None:
        oscalls.arm(place, "kill", writer.chance.randint(1, 2))
    with writer.open("group" if number % 3 else "os") as log:
        for _ in range(3):
            writer.append(log, writer.chance.randint(3, 8))
            if number % 2 or number == 0:
                writer.maintain(log)


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


ALONE = [
    *("durable_appends", "lazy_appends", "deletions", "clean_closes", "deaths", "threads"),
    *("retention", "compaction", "transactions"),
]
SHARED = ["group_threads", "group_processes", "group_deaths", "intervals", "compaction_deaths"]
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
        retention,
        compaction,
        compaction_deaths,
        transactions,
        recovery,
    )
}


def run_marking(workload: str, folder: str, seed: int, marks: str) -> None:
    """A workload as a process of a nursery: each mark is written to a file as it happens."""
    global MARKS
    MARKS = os.open(marks, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
    from tests.crash.store_life import STORE_LIVES  # which imports this module

    {**WORKLOADS, **STORE_LIVES}[workload](Path(folder), seed)


def run_recorded(workload: str, folder: str, seed: int, inodes: list[Any]) -> None:
    """A workload as a process of ``recording.recorders``."""
    from tests.crash.store_life import STORE_LIVES  # which imports this module

    assert MARKER is not None, "nobody records"
    with pretending(dict(inodes)):
        {**WORKLOADS, **STORE_LIVES}[workload](Path(folder), seed)


def main() -> None:
    workload, folder, seed, inodes = sys.argv[1:]
    run_recorded(workload, folder, int(seed), json.loads(Path(inodes).read_text()))


if __name__ == "__main__":
    main()
