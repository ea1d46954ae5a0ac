"""fastlog as a contestant, through its public interface only."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow

import fastlog
from benchmarks.contest import Prepare, Work, expect
from benchmarks.workload import (
    FIRST_TIMESTAMP_MS,
    VALUE_BYTES,
    VALUES_PER_CALL,
    Sizes,
    Stage,
    calls,
    looked_up_offsets,
)


def open_log(path: Path) -> fastlog.PartitionLog:
    return fastlog.PartitionLog.open(path, durability="os")


# --- appending --------------------------------------------------------------------------------------------------------


def append_calls(records: Callable[[Sizes], int], value_bytes: int) -> Prepare:
    """A ``list[bytes]`` of 1000 values per call."""
    return append_each(lambda sizes: list(calls(records(sizes), value_bytes)), records)


def append_each(make: Callable[[Sizes], Iterable[Any]], records: Callable[[Sizes], int]) -> Prepare:
    """One call for each of the columns that ``make`` makes, untimed."""

    @contextmanager
    def prepare(stage: Stage) -> Iterator[Work]:
        total = records(stage.sizes)
        columns = make(stage.sizes)
        with open_log(stage.directory) as log:

            def work() -> int:
                append = log.append
                for values in columns:
                    append(values)
                return total

            yield work
            expect(log.end_offset == total, log.end_offset, total, "end offset after the round")

    return prepare


# --- stored logs ------------------------------------------------------------------------------------------------------


def fill(log: fastlog.PartitionLog, records: int, values_per_call: int) -> None:
    """``records`` records of 100 bytes, ``values_per_call`` to a batch; the timestamp rises by 1 ms with the offset."""
    offset = 0
    for values in calls(records, VALUE_BYTES):
        for start in range(0, VALUES_PER_CALL, values_per_call):
            part = values[start : start + values_per_call]
            first = FIRST_TIMESTAMP_MS + offset
            offset = log.append(part, timestamps=np.arange(first, first + len(part))) + len(part)


def stored_log(stage: Stage, values_per_call: int = VALUES_PER_CALL) -> Path:
    def build(path: Path) -> None:
        with open_log(path) as log:
            fill(log, stage.sizes.stored_records, values_per_call)

    return stage.datasets.path(f"fastlog-{values_per_call}", build)


# --- reading ----------------------------------------------------------------------------------------------------------
# Each of these takes the whole log once and returns how many records it saw.


def read_columns(log: fastlog.PartitionLog) -> int:
    rows = 0
    for batch in log.batches():
        rows += len(batch.offsets)
        _ = batch.timestamps, batch.values.sizes
    return rows


def read_arrow(log: fastlog.PartitionLog) -> int:
    return sum(batch.num_rows for batch in pyarrow.RecordBatchReader.from_stream(log.batches()))


def read_lists(log: fastlog.PartitionLog) -> int:
    return sum(len(batch.values.to_list()) for batch in log.batches())


def read_records(log: fastlog.PartitionLog) -> int:
    offset = -1
    for record in log.records():
        offset, value = record.offset, record.value  # noqa: F841 (the value is asked for, as a program would)
    return offset + 1


READERS = (read_columns, read_arrow, read_lists, read_records)


def read(reader: Callable[[fastlog.PartitionLog], int]) -> Prepare:
    @contextmanager
    def prepare(stage: Stage) -> Iterator[Work]:
        path = stored_log(stage)
        stage.datasets.path("fastlog-damaged", prove_reads_check_crc)
        with open_log(path) as log:
            yield lambda: reader(log)
            rows = reader(log)
            expect(rows == stage.sizes.stored_records, rows, stage.sizes.stored_records, f"rows of {reader.__name__}")

    return prepare


def prove_reads_check_crc(path: Path) -> None:
    """One flipped bit in a stored value has to stop every way of reading: else "CRC checked" is an empty claim."""
    with open_log(path) as log:
        fill(log, 3 * VALUES_PER_CALL, VALUES_PER_CALL)
    (segment,) = path.glob("*.log")
    content = bytearray(segment.read_bytes())
    content[len(content) // 2] ^= 1
    segment.write_bytes(content)
    for reader in READERS:
        with open_log(path) as log:
            try:
                rows = reader(log)
            except (fastlog.Error, OSError, pyarrow.ArrowException):
                continue
        expect(False, f"{rows} rows", "CorruptLogError", f"{reader.__name__} over a log with a flipped bit")


# --- looking up -------------------------------------------------------------------------------------------------------


def look_up_value(values_per_call: int) -> Prepare:
    """The value, as bytes, of the record at an offset; ``read`` and its first record are the cheapest public way."""

    @contextmanager
    def prepare(stage: Stage) -> Iterator[Work]:
        offsets = looked_up_offsets(stage.sizes)
        with open_log(stored_log(stage, values_per_call)) as log:

            def work() -> int:
                read = log.read
                for offset in offsets:
                    _ = read(offset, max_bytes=1)[0].value
                return len(offsets)

            yield work
            found = log.read(offsets[0], max_bytes=1)[0].offset
            expect(found == offsets[0], found, offsets[0], "offset of a record looked up")

    return prepare


def look_up_time(values_per_call: int) -> Prepare:
    """The offset of the first record at or after a timestamp."""

    @contextmanager
    def prepare(stage: Stage) -> Iterator[Work]:
        offsets = looked_up_offsets(stage.sizes)
        timestamps = [FIRST_TIMESTAMP_MS + offset for offset in offsets]
        with open_log(stored_log(stage, values_per_call)) as log:

            def work() -> int:
                offset_for_time = log.offset_for_time
                for timestamp in timestamps:
                    offset_for_time(timestamp)
                return len(timestamps)

            yield work
            found = log.offset_for_time(timestamps[0])
            expect(found == offsets[0], found, offsets[0], "offset of a timestamp looked up")

    return prepare


# --- a large log ------------------------------------------------------------------------------------------------------


def log_of_bytes(stage: Stage, size: Callable[[Sizes], int]) -> Path:
    """A cleanly closed log whose segments hold ``size`` bytes, appended to 1000 records a call."""
    wanted = size(stage.sizes)

    return stage.datasets.path(f"fastlog-{wanted}-bytes", lambda path: fill_up(path, wanted))


def fill_up(path: Path, wanted: int) -> None:
    """A log at ``path`` of so many bytes."""
    with open_log(path) as log:
        while bytes_of(path) < wanted:
            # looks at the disk every 10 MB or so
            fill_more(log, 100)


def bytes_of(path: Path) -> int:
    """How large the segments of a log are."""
    return sum(file.stat().st_size for file in path.glob("*.log"))


def fill_more(log: fastlog.PartitionLog, call_count: int) -> None:
    for values in calls(call_count * VALUES_PER_CALL, VALUE_BYTES):
        log.append(values)


def open_large(size: Callable[[Sizes], int]) -> Prepare:
    @contextmanager
    def prepare(stage: Stage) -> Iterator[Work]:
        path = log_of_bytes(stage, size)
        opened: list[fastlog.PartitionLog] = []

        def work() -> int:
            opened.append(open_log(path))
            return 1

        yield work
        for log in opened:
            expect(log.recovery is None, "a recovery", "none", "opening a log that was closed cleanly")
            log.close()

    return prepare


def append_to_large(size: Callable[[Sizes], int]) -> Prepare:
    """The session's first append, which makes the log unclean on disk, is untimed."""

    @contextmanager
    def prepare(stage: Stage) -> Iterator[Work]:
        call_count = stage.sizes.large_log_append_calls
        with open_log(log_of_bytes(stage, size)) as log:
            fill_more(log, 1)
            before = log.end_offset

            def work() -> int:
                fill_more(log, call_count)
                return call_count * VALUES_PER_CALL

            yield work
            appended = log.end_offset - before
            expect(appended == call_count * VALUES_PER_CALL, appended, call_count * VALUES_PER_CALL, "records appended")

    return prepare
