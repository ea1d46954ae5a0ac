"""Every allocation, and every system call, that a call makes fails once: it raises an error of fastlog's, or does its
job.

``python -m tests.each_fault`` does so with each of ``CALLS``, in a process that was started with the library of
``tests.injector``, and writes one line of JSON for each: its name, how many allocations and how many system calls
failed, what was wrong. Faults are not drawn, as those of ``tests.faults`` are: all are taken, one after the other.
"""

from __future__ import annotations

import functools
import gc
import json
import logging
import random
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import fastlog
from fastlog._core import Bells, SharedPage, encode_batch, read_batch, scan_index, scan_segment
from fastlog._native import oscalls
from fastlog._native.cleaner import CleaningRound
from tests.compacting import Writer, aborted_for, write_segments
from tests.folders import MEMORY
from tests.injector import NATIVE, PYTHON, Injector, Pressure
from tests.reference.batch import Record, make_batch
from tests.reference.compaction import Segment
from tests.strategies import SOME_TIME
from tests.trials import FITTING

SMALL: dict[str, Any] = {"segment_bytes": 20_000, "index_interval_bytes": 100, "max_message_bytes": 3_000}
MOST = 120  # faults of one kind in one call
# a sync that fails poisons the log, and a cut that fails is done by the next one: tests.trials
SYSTEM_CALLS = [name for name in oscalls.CALL_NAMES if name not in ("fdatasync", "fsync", "ftruncate")]
REFUSES = (MemoryError, fastlog.Error)
# where Python's own allocations fail too. Not everywhere: Cython's code cannot catch what has no memory for a traceback
PYTHON_TOO = ("read_in_arrow",)

Call = Callable[[], object]


class Prepared:
    """A call, and what is done before it without faults."""

    def __init__(self, before: Call, action: Call) -> None:
        self.before = before
        self.action = action

    def __call__(self) -> object:
        self.before()
        return self.action()


def prepared(action: Call) -> Call:
    """What is left to do once it is prepared."""
    if isinstance(action, Prepared):
        action.before()
        return action.action
    return action


# what makes ready in a folder, and then gives calls: each of them in another state
Made = Callable[[Path], "contextmanager[Call]"]
CALLS: dict[str, Callable[[Path], Any]] = {}


def call(make: Callable[[Path], Iterator[Call]]) -> Callable[[Path], Iterator[Call]]:
    CALLS[make.__name__] = contextmanager(make)
    return make


def open_log(folder: Path, **config: Any) -> fastlog.PartitionLog:
    mmap = config.pop("mmap", True)
    return fastlog.PartitionLog.open(
        folder / "events-0", durability="os", config=fastlog.LogConfig(**{**SMALL, **config}, mmap=mmap)
    )


def appending(folder: Path, **arguments: Any) -> Iterator[Call]:
    with open_log(folder) as log:
        log.append([b"first"])
        yield lambda: log.append(**arguments)
        end = log.end_offset
        assert log.append([b"last"]) == end
        require_intact(log)


def require_intact(log: fastlog.PartitionLog) -> None:
    """Indexes may be missing: who rolled while they could not be written leaves them to be made again when used."""
    assert log.verify().damages == ()


VALUES: list[bytes | None] = [b"v" * 100, None, b"", b"w" * 300] * 20
KEYS: list[bytes | None] = [b"key", None, b"k", b""] * 20
HEADERS = [{"trace": b"1", "none": None}] * 80


@call
def append_lists(folder: Path) -> Iterator[Call]:
    yield from appending(folder, values=VALUES, keys=KEYS, headers=HEADERS, timestamps=[SOME_TIME] * 80)


@call
def append_views(folder: Path) -> Iterator[Call]:
    yield from appending(folder, values=[bytearray(b"text")] * 40 + [memoryview(b"x" * 200)] * 40, headers={"a": b"b"})


@call
def append_large_values(folder: Path) -> Iterator[Call]:
    yield from appending(folder, values=[b"v" * 2000] * 8)


@call
def append_one_large_batch(folder: Path) -> Iterator[Call]:
    with open_log(folder, segment_bytes=1_000_000, max_message_bytes=500_000) as log:
        yield lambda: log.append([b"v" * 3000] * 100)
        require_intact(log)


for codec in ("gzip", "snappy", "lz4", "zstd"):
    CALLS[f"append_{codec}"] = contextmanager(functools.partial(appending, values=VALUES, keys=KEYS, compression=codec))


@call
def append_encoded(folder: Path) -> Iterator[Call]:
    encoded = [
        encode_batch([b"v" * 50] * 5, producer_id=1 << 41, producer_epoch=0, base_sequence=5 * i, transactional=True)
        for i in range(MOST + 2)
    ]
    with open_log(folder) as log:
        done = 0

        def append() -> None:
            nonlocal done
            log.append_batch(encoded[done])
            done += 1

        yield append
        log.end_transaction(1 << 41, 0, commit=False)
        require_intact(log)


@call
def begin_transactions(folder: Path) -> Iterator[Call]:
    """Of many producers, which have to be remembered."""
    with open_log(folder) as log:
        number = 0

        def append() -> None:
            nonlocal number
            number += 1
            for producer in range(number * 100, number * 100 + 20):
                batch = encode_batch(
                    [b"v"], producer_id=producer, producer_epoch=0, base_sequence=0, transactional=True
                )
                log.append_batch(batch)

        yield append
        require_intact(log)


@call
def exchange_many_conditions(folder: Path) -> Iterator[Call]:
    page = SharedPage.create(str(folder / "page"), 100, 0)
    with open_log(folder) as log:
        yield lambda: log.append([b"v"], conditions=[(page, i, 0) for i in range(100)])


def filled(folder: Path, **config: Any) -> fastlog.PartitionLog:
    log = open_log(folder, **config)
    for codec in (None, "gzip", "snappy", "lz4", "zstd"):
        log.append(VALUES, keys=KEYS, headers=HEADERS, compression=codec, timestamps=[SOME_TIME] * 80)
    for producer in range(3):
        for sequence in range(2):
            log.append_batch(
                encode_batch(
                    [b"t"], producer_id=producer + 1, producer_epoch=0, base_sequence=sequence, transactional=True
                )
            )
        log.end_transaction(producer + 1, 0, commit=producer == 1)
    log.append(VALUES)
    return log


def everything(log: fastlog.PartitionLog) -> int:
    return sum(len(batch.values.to_list()) for batch in log.batches())


@call
def read_mapped(folder: Path) -> Iterator[Call]:
    with filled(folder) as log:
        yield lambda: everything(log)
        assert everything(log) == 482


@call
def read_copied(folder: Path) -> Iterator[Call]:
    with filled(folder, mmap=False) as log:
        yield lambda: everything(log)
        assert everything(log) == 482


@call
def read_in_arrow(folder: Path) -> Iterator[Call]:
    with filled(folder) as log:
        batch = log.read(0)
        yield lambda: (batch.__arrow_c_array__(), batch.__arrow_c_schema__(), batch.__arrow_c_stream__())


@call
def import_from_arrow(folder: Path) -> Iterator[Call]:
    import pyarrow

    table = pyarrow.table({"values": [b"a" * 100, None] * 50, "texts": ["x", "y"] * 50})
    chunks = pyarrow.chunked_array([pyarrow.array([b"a", None]), pyarrow.array([b"c" * 500])])
    views = pyarrow.array([b"a" * 100, None, b"short"] * 10, pyarrow.binary_view())
    with open_log(folder) as log:

        def append() -> None:
            log.append(table["values"], keys=table["texts"])
            log.append(chunks)
            log.append(views)

        yield append
        require_intact(log)


@call
def export_to_arrow(folder: Path) -> Iterator[Call]:
    import pyarrow

    with filled(folder) as log:
        yield lambda: pyarrow.RecordBatchReader.from_stream(log.batches()).read_all().num_rows
        assert pyarrow.RecordBatchReader.from_stream(log.batches()).read_all().num_rows == 482


@call
def replay(folder: Path) -> Iterator[Call]:
    with filled(folder) as log:
        yield lambda: [(batch.keys(), batch.values()) for batch in log.replay(0) if not batch.is_control]


@call
def look_up_times(folder: Path) -> Iterator[Call]:
    with filled(folder) as log:
        yield lambda: log.offset_for_time(SOME_TIME + 1)


@call
def verify(folder: Path) -> Iterator[Call]:
    with filled(folder) as log:
        yield log.verify
        require_intact(log)


@call
def inspect_files(folder: Path) -> Iterator[Call]:
    filled(folder).close()
    segment = sorted((folder / "events-0").glob("*.log"))[0]

    def look() -> None:
        for found in scan_segment(segment):
            if not found.is_control:
                read_batch(segment, found.position)
        for suffix in (".index", ".timeindex"):
            scan_index(segment.with_suffix(suffix))

    yield look


@call
def open_after_a_crash(folder: Path) -> Iterator[Call]:
    filled(folder).close()
    path = folder / "events-0"

    def reopen() -> None:
        (path / ".fastlog-clean").unlink(missing_ok=True)
        with open_log(folder) as log:
            log.append([b"one more"])

    yield reopen
    with open_log(folder) as log:
        require_intact(log)


@call
def open_read_only(folder: Path) -> Iterator[Call]:
    filled(folder).close()

    def look() -> None:
        with fastlog.PartitionLog.open(folder / "events-0", read_only=True) as log:
            everything(log)

    yield look


@call
def compact(folder: Path) -> Iterator[Call]:
    with open_log(folder, cleanup_policy="compact", min_cleanable_dirty_ratio=0.0, segment_bytes=6_000) as log:

        def append() -> None:
            for codec in (None, "zstd"):
                log.append([b"v" * 200] * 20, keys=[b"key-%d" % (i % 15) for i in range(20)], compression=codec)

        yield Prepared(append, log.maintain)
        require_intact(log)


@call
def compact_transactions(folder: Path) -> Iterator[Call]:
    with open_log(folder, cleanup_policy="compact", min_cleanable_dirty_ratio=0.0) as log:
        sequence = 0

        def append() -> None:
            nonlocal sequence
            for producer in range(20):
                batch = encode_batch(
                    [b"v" * 200] * 4, keys=[b"key-%d" % i for i in range(4)], producer_id=producer + 1,
                    producer_epoch=0, base_sequence=sequence, transactional=True,
                )  # fmt: skip
                log.append_batch(batch)
                log.end_transaction(producer + 1, 0, commit=producer % 2 == 0)
            sequence += 4

        yield Prepared(append, log.maintain)


@call
def clean(folder: Path) -> Iterator[Call]:
    """One round of compaction, of a log that was written before."""
    writer = Writer(random.Random(1), codecs=(0,))
    batches = [writer.data(producer, transactional=True) for producer in range(40)]
    batches += [writer.marker(producer) for producer in range(40)]
    for codec in (0, 2, 2):  # more keys than the map begins with, some of them long, and each of them twice
        keys = [b"%d" % i * (60 if i % 10 == 0 else 1) for i in range(900)]
        records = [Record(writer.offset + i, SOME_TIME, key, b"v" if i % 2 else None) for i, key in enumerate(keys)]
        batches.append(replace(make_batch(records), attributes=codec))
        writer.offset += len(records)
    batches.append(make_batch([Record(writer.offset, SOME_TIME, b"k" * 100_000, bytes(1 << 20))]))
    write_segments(folder, [Segment(0, tuple(batches))])
    path, end = folder / f"{0:020}.log", writer.offset + 1
    size = path.stat().st_size

    def rewrite() -> bytes:
        work = CleaningRound(
            now=0, horizon=SOME_TIME, upper_bound=end, aborted=aborted_for(writer.aborted),
            producers=[(producer, 1, -1) for producer in range(40)],
        )  # fmt: skip
        work.map_segment(str(path), size, 0, end)
        work.rewrite([(str(path), size)], f"{path}.cleaned", base_offset=0, index_bytes=1 << 20, interval=100)
        return Path(f"{path}.cleaned").read_bytes()

    expected = rewrite()
    yield rewrite
    assert rewrite() == expected


@call
def abort_transactions(folder: Path) -> Iterator[Call]:
    with open_log(folder) as log:
        number = 0

        def begin() -> None:
            nonlocal number
            number += 1
            log.append_batch(
                encode_batch([b"v"], producer_id=number, producer_epoch=0, base_sequence=0, transactional=True)
            )

        yield Prepared(begin, lambda: log.end_transaction(number, 0, commit=False))
        require_intact(log)


@call
def append_to_a_new_log(folder: Path) -> Iterator[Call]:
    """Two batches at once, for which no memory is there yet: of the first one hardly any is needed."""
    number, log = 0, open_log(folder / "0")

    def open_next() -> None:
        nonlocal number, log
        number += 1
        log.close()
        log = open_log(folder / str(number), segment_bytes=1_000_000, max_message_bytes=200_000)

    yield Prepared(open_next, lambda: log.append([b"v" * 190_000] + [b"w" * 100] * 1500))
    require_intact(log)
    log.close()


@call
def produce(folder: Path) -> Iterator[Call]:
    with fastlog.open(folder / "store", durability="os") as store:
        store.create_topic("orders", partitions=3)
        with store.producer(batch_size="2KB") as producer:

            def send() -> None:
                many = producer.send_many("orders", VALUES, keys=KEYS, headers=HEADERS)
                one = producer.send("orders", b"v" * 3000, key=b"k", headers={"h": b"1"})
                last = producer.send_many("orders", [b"v"] * 50, partition=1)
                for sent in (many, one, last):
                    sent.result(10)

            yield send
            assert producer.send("orders", b"last").result(10).offset >= 0


@call
def produce_at_first(folder: Path) -> Iterator[Call]:
    """By producers that have sent nothing before."""
    with fastlog.open(folder / "store", durability="os") as store:
        store.create_topic("orders", partitions=3)
        producer = store.producer()

        def begin() -> None:
            nonlocal producer
            producer.close()
            producer = store.producer()

        yield Prepared(begin, lambda: producer.send_many("orders", VALUES, keys=KEYS, headers=HEADERS).result(10))
        producer.close()


@call
def consume(folder: Path) -> Iterator[Call]:
    with fastlog.open(folder / "store", durability="os") as store:
        store.create_topic("orders", partitions=3)
        with store.producer() as producer:
            producer.send_many("orders", VALUES, keys=KEYS).result(10)

        def poll() -> None:
            with store.consumer("orders", start="earliest") as consumer:
                consumer.poll(timeout=0)

        yield poll


@call
def ring(folder: Path) -> Iterator[Call]:
    def listen() -> None:
        bells = Bells.open(str(folder / "bells"))
        waiter = bells.waiter()
        waiter.sleep(waiter.listen(1), 0)
        page = SharedPage.create(str(folder / "page"), 10, 100, document=b"d")
        assert page.read() == (0, b"d")

    yield listen


# --- one after the other ----------------------------------------------------------------------------------------------


def fail_each_allocation(library: Injector, kinds: Sequence[int], action: Call) -> int:
    """How many were made to fail."""
    failed = 0
    for kind in kinds:
        for nth in range(1, MOST):
            met = Pressure()
            rest = prepared(action)
            with refusing():
                library.during(rest, kind, nth, 1, met)
            gc.collect()
            if met.failed == 0:
                break
            failed += 1
    return failed


def fail_each_system_call(action: Call) -> int:
    """Likewise."""
    failed = 0
    for call in SYSTEM_CALLS:
        for nth in range(1, MOST):
            rest = prepared(action)
            oscalls.inject(call, errno=FITTING[call][0], nth=nth)
            try:
                with refusing():
                    rest()
                was_hit = oscalls.injected()
            finally:
                oscalls.clear()
            if not was_hit:
                break
            failed += 1
    return failed


@contextmanager
def refusing() -> Iterator[None]:
    try:
        yield
    except REFUSES as error:
        error.__traceback__ = None
    except OSError as error:  # what pyarrow makes of the error of a stream
        if not str(error).startswith(("MemoryError", *(f"{name}:" for name in fastlog.__all__))):
            raise


def main() -> None:
    logging.getLogger("fastlog").setLevel(logging.CRITICAL)
    library = Injector()
    for name in sys.argv[1:] or CALLS:
        problem = None
        failed = [0, 0]
        kinds = (NATIVE, PYTHON) if name in PYTHON_TOO else (NATIVE,)
        with tempfile.TemporaryDirectory(prefix="fastlog-each-fault-", dir=MEMORY) as folder:
            try:
                for number, fail in enumerate(
                    (functools.partial(fail_each_allocation, library, kinds), fail_each_system_call)
                ):
                    path = Path(folder) / str(number)
                    path.mkdir()
                    with CALLS[name](path) as action:
                        action()  # imports what is imported late
                        failed[number] = fail(action)
                        action()  # as if nothing had been
            except ImportError as missing:
                problem = f"skipped: {missing}"
            except BaseException as error:  # noqa: BLE001 - told
                problem = repr(error)
        print(json.dumps([name, *failed, problem]), flush=True)


if __name__ == "__main__":
    main()
