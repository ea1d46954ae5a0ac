"""The contract of ``PartitionLog``, ``RecordBatch``, ``Record`` and ``Headers``, method by method."""

from __future__ import annotations

import fcntl
import gc
import json
import os
import shutil
import signal
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import fastlog
from fastlog._native import oscalls  # type: ignore[attr-defined]
from fastlog._native.checksum import crc32c
from fastlog.partition import files
from tests.foreign import read_all
from tests.strategies import SOME_TIME

OpenLog = Callable[..., Any]
SMALL: dict[str, Any] = {"segment_bytes": 2000, "max_message_bytes": 1500, "index_interval_bytes": 100}


# --- opening and closing ----------------------------------------------------------------------------------------------


def test_open_creates_the_folder(folder: Path) -> None:
    path = folder / "deep" / "orders-7"
    with fastlog.PartitionLog.open(path) as log:
        assert Path(log.path) == path
        assert log.durability == "group"
        assert not log.read_only
        assert not log.closed
        assert (log.topic, log.partition) == ("orders", 7)
        assert (log.start_offset, log.end_offset, log.durable_offset, log.readable_offset) == (0, 0, 0, 0)
        assert log.recovery is None
        assert log.verify().ok
    assert log.closed
    assert {file.name for file in path.iterdir()} >= {f"{0:020}.log", ".fastlog-meta", ".fastlog-clean"}


def test_topic_and_partition_come_from_the_last_dash(folder: Path, checked_log: OpenLog) -> None:
    log = checked_log(folder / "a-b.c-12")
    log.append([b"v"])
    [record] = log.records()
    assert (log.topic, log.partition) == ("a-b.c", 12)
    assert (record.topic, record.partition) == ("a-b.c", 12)


def test_any_name_will_do_for_a_folder(folder: Path, checked_log: OpenLog) -> None:
    log = checked_log(folder / "wal")
    assert (log.topic, log.partition) == ("wal", 0)


@pytest.mark.parametrize("path_type", [str, Path, os.fsencode])
def test_paths_of_every_kind(folder: Path, path_type: Callable[[Path], Any]) -> None:
    with fastlog.PartitionLog.open(path_type(folder / "wal-0")) as log:
        log.append([b"v"])


def test_config_shows_every_value(checked_log: OpenLog) -> None:
    log = checked_log(
        config=fastlog.LogConfig(segment_bytes="64MiB", segment_ms="2h", message_timestamp_after_max_ms=5)
    )
    assert log.config.segment_bytes == 64 << 20
    assert log.config.segment_ms == 2 * 3600 * 1000
    assert log.config.message_timestamp_after_max_ms == 5
    assert log.config.segment_index_bytes == 10 << 20
    assert log.config.index_interval_bytes == 4096
    assert log.config.max_message_bytes == 1_048_588
    assert log.config.mmap is True


def test_stored_options_come_back_and_others_are_refused(folder: Path) -> None:
    path = folder / "events-0"
    with fastlog.PartitionLog.open(path, config=fastlog.LogConfig(segment_bytes=5000)) as log:
        log.append([b"v"])
    with fastlog.PartitionLog.open(path) as log:
        assert log.config.segment_bytes == 5000
    with pytest.raises(fastlog.ConfigError, match="segment_bytes.*6000.*5000"):
        fastlog.PartitionLog.open(path, config=fastlog.LogConfig(segment_bytes=6000))
    with fastlog.PartitionLog.open(path, config=fastlog.LogConfig(max_message_bytes=777)) as log:
        assert log.config.max_message_bytes == 777


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"segment_bytes": 10}, "segment_bytes=10"),
        ({"segment_bytes": "1 parsec"}, "parsec"),
        ({"segment_bytes": 1 << 31}, "out of range"),
        ({"segment_ms": "soon"}, "soon"),
        ({"segment_ms": 0}, "segment_ms"),
        ({"max_message_bytes": 1}, "max_message_bytes"),
        ({"index_interval_bytes": -1}, "index_interval_bytes"),
        ({"segment_index_bytes": 1}, "segment_index_bytes"),
        ({"mmap": "yes"}, "mmap"),
    ],
)
def test_bad_options_are_named(folder: Path, options: dict[str, Any], message: str) -> None:
    with pytest.raises(fastlog.ConfigError, match=message):
        fastlog.PartitionLog.open(folder / "wal-0", config=fastlog.LogConfig(**options))
    assert not (folder / "wal-0").exists()


@pytest.mark.parametrize("durability", ["none", "OS", ""])
def test_unknown_durability_is_named(folder: Path, durability: Any) -> None:
    with pytest.raises(fastlog.ConfigError, match="durability"):
        fastlog.PartitionLog.open(folder / "wal-0", durability=durability)
    assert not (folder / "wal-0").exists()


def test_close_twice_and_use_afterwards(folder: Path) -> None:
    log = fastlog.PartitionLog.open(folder / "events-0")
    log.append([b"v"])
    iterator = log.records()
    log.close()
    log.close()
    assert log.closed
    for action in (
        lambda: log.append([b"v"]), lambda: log.read(0), log.flush, log.verify, log.segments,
        lambda: log.offset_for_time(0), lambda: log.delete_records(before=0), lambda: list(log.records()),
        lambda: list(log.batches()), lambda: list(iterator),
    ):  # fmt: skip
        with pytest.raises(fastlog.ClosedError):
            action()


@pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")
@pytest.mark.parametrize("mmap", [True, False])
@pytest.mark.parametrize("read_only", [True, False])
def test_a_closed_log_holds_no_descriptor(folder: Path, mmap: bool, read_only: bool) -> None:
    """Neither of its active segment nor, without maps, of those that were read, though somebody still knows it."""
    path = folder / "events-0"
    log = fastlog.PartitionLog.open(path, durability="os", config=fastlog.LogConfig(**SMALL, mmap=mmap))
    for _ in range(5):
        log.append([b"x" * 400] * 3)
    if read_only:
        log.close()
        log = fastlog.PartitionLog.open(path, read_only=True, config=fastlog.LogConfig(mmap=mmap))
    assert len(log.segments()) > 3 and len(list(log.records())) == 15
    held = descriptors_of(path)
    log.close()
    assert held and not descriptors_of(path)


@pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")
def test_a_forgotten_log_holds_no_descriptor(folder: Path) -> None:
    path = folder / "events-0"
    log = fastlog.PartitionLog.open(path, durability="os", config=fastlog.LogConfig(**SMALL))
    for _ in range(5):
        log.append([b"x" * 400] * 3)
    log.delete_records(before=7)
    assert sum(".fastlog-meta" in name for name in descriptors_of(path)) > 1
    log.flush()  # nobody in the background has it any more
    del log
    gc.collect()
    assert not descriptors_of(path)


def descriptors_of(path: Path) -> list[str]:
    """What this process has open below a folder."""
    links = [f"/proc/self/fd/{name}" for name in os.listdir("/proc/self/fd")]
    return [os.readlink(link) for link in links if os.path.lexists(link) and str(path) in os.readlink(link)]


def test_an_unclosed_log_is_closed_by_the_garbage_collector(folder: Path) -> None:
    log = fastlog.PartitionLog.open(folder / "events-0")
    log.append([b"v"])
    del log
    gc.collect()
    with fastlog.PartitionLog.open(folder / "events-0") as again:
        assert again.end_offset == 1


def test_LockedError_for_a_second_handle_beside_an_exclusive_one(folder: Path, checked_log: OpenLog) -> None:
    log = checked_log(exclusive=True)
    with pytest.raises(fastlog.LockedError, match=str(os.getpid())) as caught:
        fastlog.PartitionLog.open(log.path)
    assert caught.value.pid == os.getpid()
    assert caught.value.retriable
    link = folder / "link-0"
    link.symlink_to(log.path)
    with pytest.raises(fastlog.LockedError):
        fastlog.PartitionLog.open(link)
    assert log.append([b"still mine"]) == 0


def test_LockedError_names_the_process_that_holds_the_log(folder: Path) -> None:
    script = (
        "import sys, fastlog\n"
        "log = fastlog.PartitionLog.open(sys.argv[1], exclusive=True)\n"
        "log.append([b'theirs'])\n"
        "print('ready', flush=True)\n"
        "sys.stdin.read()\n"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)}
    with subprocess.Popen(
        [sys.executable, "-c", script, str(folder / "events-0")],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment,
    ) as holder:  # fmt: skip
        assert holder.stdout and holder.stdin
        assert holder.stdout.readline() == b"ready\n"
        with pytest.raises(fastlog.LockedError, match=str(holder.pid)) as caught:
            fastlog.PartitionLog.open(folder / "events-0")
        assert caught.value.pid == holder.pid
        with pytest.raises(fastlog.LockedError):
            fastlog.PartitionLog.repair(folder / "events-0")
        holder.kill()
        holder.wait()
    with fastlog.PartitionLog.open(folder / "events-0") as log:
        assert log.end_offset == 1, "a lock dies with its owner"


# --- append -----------------------------------------------------------------------------------------------------------


def test_append_returns_base_offsets(checked_log: OpenLog) -> None:
    log = checked_log()
    assert log.append([b"a", b"b"]) == 0
    assert log.append([b"c"]) == 2
    assert log.append((b"d", None)) == 3
    assert log.end_offset == 5
    assert log.read(0).values.to_list() == [b"a", b"b", b"c", b"d", None]


def test_an_empty_append_writes_nothing(checked_log: OpenLog) -> None:
    log = checked_log()
    assert log.append([]) == 0
    log.append([b"v"])
    size = sum(file.stat().st_size for file in Path(log.path).glob("*.log"))
    empties: list[Any] = [[], (), np.array([], dtype="S3"), np.array([], dtype=object)]
    for empty in empties:
        assert log.append(empty) == 1
    assert sum(file.stat().st_size for file in Path(log.path).glob("*.log")) == size


@pytest.mark.parametrize(
    "value",
    [b"bytes", bytearray(b"bytes"), memoryview(b"bytes"), memoryview(b"xbytesx")[1:6], np.frombuffer(b"bytes", "u1")],
)
def test_append_takes_bytes_like_values_and_keys(checked_log: OpenLog, value: Any) -> None:
    log = checked_log()
    log.append([value], keys=[value])
    assert log.read(0).values.to_list() == [b"bytes"]
    assert log.read(0).keys.to_list() == [b"bytes"]


def test_null_and_empty_are_different_everywhere(checked_log: OpenLog) -> None:
    log = checked_log()
    log.append([None, b"", None], keys=[b"", None, None], headers=[{"h": None}, {"h": b""}, None])
    batch = log.read(0)
    assert batch.values.to_list() == [None, b"", None]
    assert batch.keys.to_list() == [b"", None, None]
    assert batch.values.sizes.tolist() == [-1, 0, -1]
    assert batch.values[0] is None
    assert bytes(batch.values[1]) == b""
    assert [tuple(headers) for headers in batch.headers] == [(("h", None),), (("h", b""),), ()]


@pytest.mark.parametrize(
    ("array", "expected"),
    [
        (np.array([b"a", b"bcd", b""], dtype="S5"), [b"a", b"bcd", b""]),
        (np.array([b"ab\0\0", b"\0c\0\0"], dtype="V4"), [b"ab\0\0", b"\0c\0\0"]),
        (np.array([b"a", None, bytearray(b"b")], dtype=object), [b"a", None, b"b"]),
        (np.array([b"a", b"b", b"c", b"d"], dtype="S1")[::2], [b"a", b"c"]),
    ],
)
def test_append_takes_numpy_arrays(checked_log: OpenLog, array: Any, expected: list[bytes | None]) -> None:
    log = checked_log()
    assert log.append(array, keys=array) == 0
    assert log.read(0).values.to_list() == expected
    assert log.read(0).keys.to_list() == expected


@pytest.mark.parametrize("values", [["text"], [b"fine", "text"], [1], [b"a", 1.5], [[b"a"]], [object()]])
def test_values_of_the_wrong_type_are_refused(checked_log: OpenLog, values: Any) -> None:
    log = checked_log()
    with pytest.raises(fastlog.InvalidRecordError, match=type(values[-1]).__name__):
        log.append(values)
    with pytest.raises(fastlog.InvalidRecordError):
        log.append([b"v"] * len(values), keys=values)
    assert log.end_offset == 0


@pytest.mark.parametrize("values", ["text", b"one value", 5, None, {b"a": 1}, np.array([1, 2, 3]), np.array([["a"]])])
def test_what_is_no_sequence_of_bytes_is_refused(checked_log: OpenLog, values: Any) -> None:
    log = checked_log()
    with pytest.raises(fastlog.InvalidRecordError):
        log.append(values)
    assert log.end_offset == 0


@pytest.mark.parametrize(
    "arguments",
    [
        {"keys": [b"k"]},
        {"keys": [b"k"] * 3},
        {"keys": []},
        {"timestamps": [1]},
        {"timestamps": np.array([1, 2, 3])},
        {"headers": [{"a": b""}]},
        {"headers": [None, None, None]},
        {"keys": np.array([b"k"], dtype="S1")},
    ],
)
def test_unequal_lengths_are_refused(checked_log: OpenLog, arguments: dict[str, Any]) -> None:
    log = checked_log()
    with pytest.raises(fastlog.InvalidRecordError, match="2"):
        log.append([b"a", b"b"], **arguments)
    assert log.end_offset == 0


@pytest.mark.parametrize(
    "headers",
    [
        {1: b"x"},
        {"h": "text"},
        {"h": 1},
        [("h",)],
        [("h", b"x", b"y")],
        "h",
        5,
        [[("h", "text")]],
        {b"h": b"x"},
        {"\ud800": b""},
    ],
)
def test_malformed_headers_are_refused(checked_log: OpenLog, headers: Any) -> None:
    log = checked_log()
    with pytest.raises(fastlog.InvalidRecordError):
        log.append([b"v"], headers=headers)
    assert log.end_offset == 0


def test_headers_for_all_and_for_each(checked_log: OpenLog) -> None:
    log = checked_log()
    log.append([b"a", b"b"], headers={"shared": b"1"})
    log.append([b"c", b"d"], headers=[("x", b"1"), ("x", None)])
    log.append([b"e", b"f", b"g"], headers=[{"own": b"e"}, None, [("y", b""), ("y", b"2")]])
    log.append([b"h"], headers=[fastlog.Headers([("z", b"3")])])
    found = [tuple(record.headers) for record in log.records()]
    assert found == [
        (("shared", b"1"),), (("shared", b"1"),), (("x", b"1"), ("x", None)), (("x", b"1"), ("x", None)),
        (("own", b"e"),), (), (("y", b""), ("y", b"2")), (("z", b"3"),),
    ]  # fmt: skip


def test_timestamps_of_every_kind(checked_log: OpenLog) -> None:
    oscalls.set_clock(SOME_TIME)
    log = checked_log()
    log.append([b"a"])
    log.append([b"b", b"c"], timestamps=SOME_TIME - 1)
    log.append([b"d", b"e"], timestamps=[SOME_TIME - 2, SOME_TIME + 5])
    log.append([b"f", b"g"], timestamps=np.array([1, 2], dtype=np.int64))
    log.append([b"h", b"i"], timestamps=np.array([3, 4], dtype=np.int32))
    moments = np.array(["2023-11-14T22:13:20", "1970-01-01T00:00:00.007"], dtype="datetime64[ms]")
    log.append([b"j", b"k"], timestamps=moments)
    log.append([b"l"], timestamps=np.array(["2023-11-14T22:13:20"], dtype="datetime64[s]"))
    expected = [
        SOME_TIME,
        SOME_TIME - 1,
        SOME_TIME - 1,
        SOME_TIME - 2,
        SOME_TIME + 5,
        1,
        2,
        3,
        4,
        SOME_TIME,
        7,
        SOME_TIME,
    ]
    assert log.read(0).timestamps.tolist() == expected
    assert {record.timestamp_type for record in log.records()} == {"create"}


@pytest.mark.parametrize("timestamps", [1.5, "now", [1.5], ["x"], np.array([1.5]), -2, [-2], 2**63, [2**63]])
def test_timestamps_of_the_wrong_kind_are_refused(checked_log: OpenLog, timestamps: Any) -> None:
    log = checked_log()
    with pytest.raises(fastlog.InvalidRecordError):
        log.append([b"v"], timestamps=timestamps)
    assert log.end_offset == 0


def test_timestamps_more_than_an_hour_ahead_are_refused(checked_log: OpenLog) -> None:
    oscalls.set_clock(SOME_TIME)
    log = checked_log()
    hour = 3_600_000
    assert log.append([b"v"], timestamps=SOME_TIME + hour) == 0
    for timestamps in (SOME_TIME + hour + 1, [SOME_TIME, SOME_TIME + hour + 1]):
        with pytest.raises(fastlog.InvalidRecordError, match=str(SOME_TIME + hour + 1)):
            log.append([b"v"] * (2 if isinstance(timestamps, list) else 1), timestamps=timestamps)
    assert log.end_offset == 1


def test_a_record_may_have_no_timestamp(checked_log: OpenLog) -> None:
    log = checked_log()
    log.append([b"a", b"b", b"c"], timestamps=[None, -1, SOME_TIME])
    assert log.read(0).timestamps.tolist() == [-1, -1, SOME_TIME]
    assert [record.timestamp for record in log.records()] == [None, None, SOME_TIME]
    assert log.offset_for_time(0) == 2


def test_one_reading_of_the_clock_per_append(checked_log: OpenLog) -> None:
    log = checked_log()
    before = time.time_ns() // 1_000_000
    log.append([b"v"] * 5000)
    after = time.time_ns() // 1_000_000
    assert len(set(log.read(0).timestamps.tolist())) == 1
    assert before <= log.read(0).timestamps[0] <= after


def test_unknown_codecs_are_refused(checked_log: OpenLog) -> None:
    log = checked_log()
    for codec in ("brotli", "", "ZSTD", 4, ["zstd"]):
        with pytest.raises(fastlog.ConfigError, match="zstd"):
            log.append([b"v"], compression=codec)  # type: ignore[arg-type]
    assert log.append([b"v"], compression="none") == 0


def test_large_values_take_the_path_without_copies(checked_log: OpenLog) -> None:
    log = checked_log()
    values = [bytes([i]) * size for i, size in enumerate([4095, 4096, 10_000, 100, 70_000, 0, 4096])]
    for _ in range(3):
        log.append([*values, None], keys=[*values, None])
    assert [r.value for r in read_all(log)] == [*values, None] * 3
    assert oscalls.call_counts()["pwritev"] > 0


def test_mutable_values_may_change_after_the_append(checked_log: OpenLog) -> None:
    log = checked_log()
    value = bytearray(b"a" * 10_000)
    log.append([value])
    value[:] = b"b" * 10_000
    assert log.read(0).values.to_list() == [b"a" * 10_000]


def test_batches_are_split_at_max_message_bytes(checked_log: OpenLog) -> None:
    log = checked_log(config=fastlog.LogConfig(max_message_bytes=1000))
    log.append([b"v" * 100] * 50, timestamps=SOME_TIME)
    [path] = Path(log.path).glob("*.log")
    infos = list(fastlog.scan_segment(path))
    assert len(infos) > 5
    assert all(900 < info.size <= 1000 for info in infos[:-1])
    assert sum(info.record_count for info in infos) == 50


def test_a_record_over_the_limit_is_refused(checked_log: OpenLog) -> None:
    log = checked_log(config=fastlog.LogConfig(max_message_bytes=1000))
    assert log.append([b"v" * 900]) == 0
    for values in ([b"v" * 1000], [b"fine", b"v" * 1000, b"fine"], [b"fine"] * 100 + [b"v" * 5000]):
        with pytest.raises(fastlog.RecordTooLargeError, match="max_message_bytes"):
            log.append(values)
    with pytest.raises(fastlog.RecordTooLargeError, match="max_message_bytes"):
        log.append([b"v"], keys=[b"k" * 1000])
    with pytest.raises(fastlog.RecordTooLargeError, match="max_message_bytes"):
        log.append([b"v"], headers={"h": b"x" * 1000})
    assert log.end_offset == 1
    assert log.append([b"next"]) == 1


def test_an_append_larger_than_a_segment_is_refused(checked_log: OpenLog) -> None:
    log = checked_log(config=fastlog.LogConfig(**SMALL))
    with pytest.raises(fastlog.RecordTooLargeError, match="segment_bytes"):
        log.append([b"v" * 100] * 30)
    assert log.end_offset == 0
    assert log.append([b"v" * 100] * 10) == 0


def test_I1_one_append_never_straddles_two_segments(checked_log: OpenLog) -> None:
    log = checked_log(config=fastlog.LogConfig(segment_bytes=2000, max_message_bytes=400))
    bases = [log.append([b"v" * 90] * count, timestamps=SOME_TIME) for count in (12, 3, 12, 9, 1, 1, 12)]
    starts = {segment.base_offset for segment in log.segments()}
    assert len(starts) > 2
    assert starts <= set(bases)


# --- reading ----------------------------------------------------------------------------------------------------------


def test_read_starts_exactly_at_the_offset(checked_log: OpenLog) -> None:
    log = checked_log()
    log.append([b"%d" % i for i in range(10)], keys=[b"k%d" % i for i in range(10)])
    log.append([b"10", b"11"])
    batch = log.read(7)
    assert batch.offsets.tolist() == [7, 8, 9, 10, 11]
    assert (batch.base_offset, batch.next_offset, len(batch)) == (7, 12, 5)
    assert batch.keys.to_list() == [b"k7", b"k8", b"k9", None, None]
    only = log.read(7, max_bytes=1)
    assert only.offsets.tolist() == [7, 8, 9], "at least one whole batch"
    assert only.next_offset == 10


def test_read_at_the_end_is_empty(checked_log: OpenLog) -> None:
    log = checked_log()
    for end in (0, 2):
        batch = log.read(end)
        assert (len(batch), batch.next_offset, batch.base_offset) == (0, end, end)
        assert batch.offsets.tolist() == batch.timestamps.tolist() == list(batch) == []
        assert batch.keys.to_list() == batch.values.to_list() == []
        log.append([b"v", b"w"])


@pytest.mark.parametrize("offset", [-1, 4, 2**62, -(2**62)])
def test_read_outside_says_what_there_is(checked_log: OpenLog, offset: int) -> None:
    log = checked_log()
    log.append([b"v"] * 3)
    with pytest.raises(fastlog.OffsetOutOfRangeError, match=str(offset)) as caught:
        log.read(offset)
    error = caught.value
    assert (error.offset, error.start_offset, error.end_offset) == (offset, 0, 3)


def test_read_refuses_what_is_no_offset(checked_log: OpenLog) -> None:
    log = checked_log()
    for offset in ("0", 1.5, None):
        with pytest.raises((TypeError, fastlog.Error)):
            log.read(offset)


def test_read_only_columns_cannot_be_written(checked_log: OpenLog) -> None:
    log = checked_log()
    log.append([b"value"], keys=[b"key"])
    batch = log.read(0)
    assert batch.offsets.dtype == batch.timestamps.dtype == np.int64
    assert batch.values.sizes.dtype == np.int32
    for array in (batch.offsets, batch.timestamps, batch.values.sizes):
        assert not array.flags.writeable
    assert batch.values[0].readonly
    with pytest.raises(TypeError):
        batch.values[0][0] = 1


def test_columns_are_sequences(checked_log: OpenLog) -> None:
    log = checked_log()
    log.append([b"a", None, b"ccc"], headers=[{"h": b"1"}, None, None])
    batch = log.read(0)
    assert len(batch.values) == len(batch.keys) == len(batch.headers) == 3
    assert [None if v is None else bytes(v) for v in batch.values] == [b"a", None, b"ccc"]
    assert bytes(batch.values[-1]) == b"ccc"
    assert batch[-1].offset == 2
    assert batch.headers[0]["h"] == b"1"
    for column in (batch.values, batch.keys, batch.headers, batch):
        for index in (3, -4):
            with pytest.raises(IndexError):
                column[index]


def test_nbytes_counts_keys_and_values(checked_log: OpenLog) -> None:
    log = checked_log()
    log.append([b"v" * 100, None, b""] * 10, keys=[b"key", None, None] * 10)
    batch = log.read(0)
    assert (batch.nbytes, batch.values.nbytes, batch.keys.nbytes) == (1030, 1000, 30)
    assert log.read(30).nbytes == 0


def test_records_carry_everything(checked_log: OpenLog) -> None:
    log = checked_log()
    log.append([b"value", None], keys=[b"key", None], timestamps=[SOME_TIME, SOME_TIME + 1], headers={"h": b"x"})
    first, second = log.records()
    assert (first.offset, first.timestamp, first.key, first.value) == (0, SOME_TIME, b"key", b"value")
    assert isinstance(first.key, bytes)
    assert isinstance(first.value, bytes)
    assert first.datetime == datetime.fromtimestamp(SOME_TIME / 1000, UTC)
    assert first.datetime.tzinfo is not None
    assert first.headers["h"] == b"x"
    assert first.timestamp_type == "create"
    assert (second.key, second.value) == (None, None)
    assert "offset=0" in repr(first)


def test_records_and_batches_keep_to_their_bounds(checked_log: OpenLog) -> None:
    log = checked_log(config=fastlog.LogConfig(**SMALL))
    for i in range(40):
        log.append([b"%d" % (2 * i), b"%d" % (2 * i + 1)], timestamps=SOME_TIME)
    assert len(log.segments()) > 1
    for start, stop in ((None, None), (0, 80), (3, 77), (5, 5), (79, None), (80, None), (None, 1), (10, 1000)):
        expected = list(range(80))[slice(start, stop)]
        assert [record.offset for record in log.records(start, stop)] == expected
        for max_bytes in (1, 500, 1 << 20):
            batches = list(log.batches(start, stop, max_bytes=max_bytes))
            assert [int(offset) for batch in batches for offset in batch.offsets] == expected
            assert all(len(batch) for batch in batches)
    for iterate in (log.records, lambda start: list(log.batches(start))):
        with pytest.raises(fastlog.OffsetOutOfRangeError):
            list(iterate(81))


def test_iteration_ends_at_the_end_that_it_started_with_or_later(checked_log: OpenLog) -> None:
    log = checked_log()
    log.append([b"a", b"b"])
    iterator = log.records()
    assert next(iterator).offset == 0
    assert [record.offset for record in iterator] == [1]
    batches = log.batches()
    assert [len(batch) for batch in batches] == [2]
    assert [len(batch) for batch in batches] == [2], "batches may be iterated again"


def test_offset_for_time_finds_the_first_record_not_older(checked_log: OpenLog) -> None:
    log = checked_log(config=fastlog.LogConfig(**SMALL))
    for i in range(100):
        log.append([b"v" * 20], timestamps=SOME_TIME + 10 * i)
    assert len(log.segments()) > 2
    for i in range(100):
        assert log.offset_for_time(SOME_TIME + 10 * i) == i
        assert log.offset_for_time(SOME_TIME + 10 * i - 9) == i
    assert log.offset_for_time(0) == 0
    assert log.offset_for_time(-1) == 0
    assert log.offset_for_time(SOME_TIME + 991) is None
    moment = datetime.fromtimestamp(SOME_TIME / 1000, UTC) + timedelta(milliseconds=500)
    assert log.offset_for_time(moment) == 50
    with pytest.raises(fastlog.Error, match="(?i)aware|time zone|timezone"):
        log.offset_for_time(moment.replace(tzinfo=None))


def test_offset_for_time_on_unordered_timestamps(checked_log: OpenLog) -> None:
    log = checked_log(config=fastlog.LogConfig(**SMALL))
    times = [SOME_TIME + (i * 37) % 101 for i in range(300)]
    for i in range(0, 300, 3):
        log.append([b"v"] * 3, timestamps=times[i : i + 3])
    for wanted in range(SOME_TIME - 1, SOME_TIME + 103):
        assert log.offset_for_time(wanted) == next((i for i, t in enumerate(times) if t >= wanted), None)


# --- durability -------------------------------------------------------------------------------------------------------


def test_I3_batch_syncs_each_append(folder: Path) -> None:
    with fastlog.PartitionLog.open(folder / "events-0", durability="batch") as log:
        for i in range(5):
            before = oscalls.call_counts()["fdatasync"]
            log.append([b"v"])
            assert oscalls.call_counts()["fdatasync"] > before
            assert log.durable_offset == log.readable_offset == i + 1


def test_I3_os_syncs_only_when_asked(folder: Path) -> None:
    with fastlog.PartitionLog.open(folder / "events-0", durability="os") as log:
        log.append([b"first"])
        before = oscalls.call_counts()["fdatasync"]
        for _ in range(50):
            log.append([b"v"])
        assert oscalls.call_counts()["fdatasync"] == before
        assert log.durable_offset <= 1
        assert log.readable_offset == 51
        assert log.flush() == 51
        assert log.durable_offset == 51
        assert oscalls.call_counts()["fdatasync"] > before


# --- segments and deletion --------------------------------------------------------------------------------------------


def test_segments_describe_the_files(checked_log: OpenLog) -> None:
    log = checked_log(config=fastlog.LogConfig(**SMALL))
    for i in range(60):
        log.append([b"v" * 50], timestamps=SOME_TIME + i)
    segments = log.segments()
    assert len(segments) > 2
    assert [segment.base_offset for segment in segments[1:]] == [segment.end_offset for segment in segments[:-1]]
    assert (segments[0].base_offset, segments[-1].end_offset) == (0, 60)
    for segment in segments:
        path = Path(segment.path)
        assert path.name == f"{segment.base_offset:020}.log"
        assert path.stat().st_size == segment.size
        assert segment.max_timestamp == SOME_TIME + segment.end_offset - 1
    for segment in segments[:-1]:
        assert segment.index_entries == Path(segment.path).with_suffix(".index").stat().st_size // 8 > 0
        assert segment.time_index_entries == Path(segment.path).with_suffix(".timeindex").stat().st_size // 12 > 0


@pytest.mark.parametrize("options", [
    {"segment_bytes": 1000}, {"segment_ms": 5}, {"segment_index_bytes": 80, "index_interval_bytes": 0},
])  # fmt: skip
def test_a_segment_is_rolled_for_each_reason(checked_log: OpenLog, options: dict[str, Any]) -> None:
    log = checked_log(config=fastlog.LogConfig(max_message_bytes=900, **options))
    for i in range(40):
        log.append([b"v" * 30], timestamps=SOME_TIME + i)
    assert 3 < len(log.segments()) < 20
    assert read_all(log)[39].offset == 39


def test_what_is_deleted_is_durable_first(folder: Path) -> None:
    """A start above what power loss leaves could not be kept: its offsets would be given out once more."""
    with fastlog.PartitionLog.open(folder / "events-0", durability="os") as log:
        log.append([b"v"] * 10)
        log.append([b"v"] * 10)
        assert log.durable_offset == 0
        log.delete_records(before=15)
        assert log.durable_offset >= 15


def test_delete_records_raises_the_start(checked_log: OpenLog) -> None:
    log = checked_log(config=fastlog.LogConfig(**SMALL))
    for i in range(60):
        log.append([b"v" * 50], timestamps=SOME_TIME + i)
    bases = [segment.base_offset for segment in log.segments()]
    assert log.delete_records(before=bases[1] + 1) == bases[1] + 1
    assert log.start_offset == bases[1] + 1
    assert [segment.base_offset for segment in log.segments()] == bases[1:]
    assert not (Path(log.path) / f"{0:020}.log").exists()
    assert not (Path(log.path) / f"{0:020}.index").exists()
    with pytest.raises(fastlog.OffsetOutOfRangeError) as caught:
        log.read(bases[1])
    assert caught.value.start_offset == bases[1] + 1
    assert next(log.records()).offset == bases[1] + 1
    assert log.offset_for_time(0) == bases[1] + 1
    assert log.delete_records(before=3) == bases[1] + 1, "the start never goes back"
    assert log.delete_records(before=60) == 60
    assert list(log.records()) == []
    assert log.append([b"next"]) == 60
    with pytest.raises(fastlog.OffsetOutOfRangeError):
        log.delete_records(before=62)
    log.close()
    with fastlog.PartitionLog.open(log.path, durability="os") as again:
        assert (again.start_offset, again.end_offset) == (60, 61)


def test_what_an_interrupted_deletion_leaves_is_no_damage(folder: Path) -> None:
    """Power was lost before the directory was synced: some of the removed files are back, others are gone."""
    path = folder / "events-0"
    with fastlog.PartitionLog.open(path, config=fastlog.LogConfig(**SMALL)) as log:
        for i in range(60):
            log.append([b"v" * 50], timestamps=SOME_TIME + i)
        files = sorted(path.glob("*.log"))
        assert len(files) > 3
        left = files[0].read_bytes()
        start = log.delete_records(before=int(files[2].stem))
    files[0].write_bytes(left)
    for read_only in (True, False, True):
        with fastlog.PartitionLog.open(path, read_only=read_only) as log:
            assert log.start_offset == start
            assert log.offset_for_time(0) == start
            assert log.offset_for_time(SOME_TIME + 59) == 59
            assert log.verify().damages == ()
            assert len(read_all(log)) == 60 - start


def test_a_start_beyond_the_end_is_lowered_for_readers_too(folder: Path) -> None:
    """A deletion is durable at once; at "os" the records that it passed over need not be, when power is lost."""
    path = folder / "events-0"
    with fastlog.PartitionLog.open(path, durability="os") as log:
        log.append([b"kept"])
        log.flush()
        size = log.segments()[0].size
        log.append([b"lost"] * 9)
        log.delete_records(before=8)
    (path / ".fastlog-clean").unlink()
    os.truncate(next(path.glob("*.log")), size)
    meta = files.read_meta(str(path))
    assert meta is not None
    meta.recovery_point, meta.recovery_position = 1, size
    with files.MetaFile(str(path)) as meta_file:
        meta_file.write(meta)
    for read_only in (True, False, True):
        with fastlog.PartitionLog.open(path, read_only=read_only) as log:
            assert (log.start_offset, log.end_offset) == (1, 1)
            assert list(log.records()) == []


def test_I7_a_checksum_speaks_for_the_size_of_its_segment(folder: Path) -> None:
    """A clean close vouches for the indexes of the active segment too. When that has grown and was rolled since, and
    power is lost, they may be on disk as they were at that close."""
    path = folder / "events-0"
    with fastlog.PartitionLog.open(path, config=fastlog.LogConfig(**SMALL)) as log:
        log.append([b"v" * 50], timestamps=SOME_TIME)
    first = f"{0:020}"
    indexes = {
        name: (path / name).read_bytes() for name in (f"{first}.index", f"{first}.timeindex", ".fastlog-indexes")
    }
    with fastlog.PartitionLog.open(path) as log:
        for i in range(1, 60):
            log.append([b"v" * 50], timestamps=SOME_TIME + i)
        assert len(log.segments()) > 1
    (path / ".fastlog-clean").unlink()
    for name, content in indexes.items():
        (path / name).write_bytes(content)
    rewind(path)
    for read_only in (True, False, True):
        with fastlog.PartitionLog.open(path, read_only=read_only) as log:
            assert [log.offset_for_time(SOME_TIME + i) for i in range(60)] == list(range(60))


def rewind(path: Path) -> None:
    """Put the recovery point of a log back to its beginning."""
    meta = files.read_meta(str(path))
    assert meta is not None
    meta.recovery_point = meta.recovery_segment = meta.recovery_position = 0
    with files.MetaFile(str(path)) as meta_file:
        meta_file.write(meta)


def test_a_reader_that_was_alone_waits_for_a_sync_as_others_do(folder: Path) -> None:
    path = folder / "events-0"
    with fastlog.PartitionLog.open(path) as log:
        log.append([b"first"])
    with (
        fastlog.PartitionLog.open(path, read_only=True) as reader,
        fastlog.PartitionLog.open(path, durability="os") as writer,
    ):
        writer.append([b"second"])
        with open(path / ".fastlog-meta", "rb") as syncing:
            fcntl.flock(syncing, fcntl.LOCK_EX)
            release = threading.Timer(0.2, fcntl.flock, (syncing, fcntl.LOCK_UN))
            release.start()
            assert reader.wait(1, timeout=20)
            release.join()
        assert reader.get(1).value == b"second"


@pytest.mark.parametrize("mmap", [True, False])
def test_I8_views_outlive_close_and_deletion(folder: Path, mmap: bool) -> None:
    path = folder / "events-0"
    log = fastlog.PartitionLog.open(path, durability="os", config=fastlog.LogConfig(mmap=mmap, **SMALL))
    for i in range(60):
        log.append([b"value %2d" % i * 5], keys=[b"key"], timestamps=SOME_TIME + i, headers={"h": b"%d" % i})
    first, last = log.read(0), log.read(59)
    view, offsets = first.values[0], first.offsets
    assert view is not None
    expected = first.values.to_list()
    log.delete_records(before=60)
    assert first.values.to_list() == expected
    log.close()
    del log
    for file in path.iterdir():
        file.unlink()
    gc.collect()
    assert bytes(view) == b"value  0" * 5
    assert first.values.to_list() == expected
    assert first[0].headers["h"] == b"0"
    assert last[0].value == b"value 59" * 5
    assert offsets.tolist() == list(range(len(first)))
    column = first.values
    del first
    gc.collect()
    assert column.to_list() == expected
    assert bytes(view) == b"value  0" * 5


def test_I8_views_see_no_later_append(checked_log: OpenLog) -> None:
    log = checked_log()
    log.append([b"a" * 100])
    batch = log.read(0)
    empty = log.read(1)
    log.append([b"b" * 100] * 1000)
    assert batch.values.to_list() == [b"a" * 100]
    assert len(empty) == 0


# --- read-only --------------------------------------------------------------------------------------------------------


def test_read_only_writes_nothing(folder: Path) -> None:
    path = folder / "events-0"
    with fastlog.PartitionLog.open(path, durability="os", config=fastlog.LogConfig(**SMALL)) as log:
        for i in range(50):
            log.append([b"v" * 30], timestamps=SOME_TIME + i)
    before = {file.name: (file.read_bytes(), file.stat().st_mtime_ns) for file in path.iterdir()}
    with fastlog.PartitionLog.open(path, read_only=True) as log:
        assert log.read_only
        assert log.end_offset == 50
        assert [record.offset for record in log.records()] == list(range(50))
        assert log.verify().ok
        for action in (lambda: log.append([b"v"]), lambda: log.delete_records(before=1)):
            with pytest.raises(fastlog.NotSupportedError, match="read_only"):
                action()
    assert {file.name: (file.read_bytes(), file.stat().st_mtime_ns) for file in path.iterdir()} == before


def test_read_only_recovers_in_memory(folder: Path) -> None:
    path = folder / "events-0"
    with fastlog.PartitionLog.open(path, durability="os") as log:
        for i in range(5):
            log.append([b"v" * 30], timestamps=SOME_TIME + i)
    (path / ".fastlog-clean").unlink()
    with (path / f"{0:020}.log").open("ab") as file:
        file.write(b"torn tail")
    before = {file.name: file.read_bytes() for file in path.iterdir()}
    with fastlog.PartitionLog.open(path, read_only=True) as log:
        assert log.recovery is not None
        assert [cut.size for cut in log.recovery.cut] == [9]
        assert [record.offset for record in log.records()] == list(range(5))
        assert log.offset_for_time(SOME_TIME + 3) == 3
    assert {file.name: file.read_bytes() for file in path.iterdir()} == before
    with fastlog.PartitionLog.open(path) as log:
        assert log.recovery is not None
        [cut] = log.recovery.cut
        assert cut.side_file is not None
        assert (path / Path(cut.side_file).name).read_bytes() == b"torn tail"
        assert log.verify().ok


# --- reports ----------------------------------------------------------------------------------------------------------


def test_verify_counts_what_it_read(checked_log: OpenLog) -> None:
    log = checked_log(config=fastlog.LogConfig(**SMALL))
    for i in range(50):
        log.append([b"v" * 30, b"w"], timestamps=SOME_TIME + i)
    report = log.verify()
    assert report.ok
    assert (report.start_offset, report.end_offset, report.records, report.batches) == (0, 100, 100, 50)
    assert report.segments == len(log.segments())
    assert report.bytes == sum(segment.size for segment in log.segments())
    assert Path(report.path) == Path(log.path)


def test_I7_indexes_are_rebuilt_when_lost(folder: Path) -> None:
    path = folder / "events-0"
    with fastlog.PartitionLog.open(path, durability="os", config=fastlog.LogConfig(**SMALL)) as log:
        for i in range(100):
            log.append([b"v" * 30], timestamps=SOME_TIME + i)
    indexes = {file.name: file.read_bytes() for file in path.glob("*index")}
    assert len(indexes) > 4
    for damage in ("delete", "empty", "garbage", "longer"):
        for name, content in indexes.items():
            (path / name).unlink()
            if damage != "delete":
                (path / name).write_bytes(
                    {"empty": b"", "garbage": b"\xff" * 33, "longer": content + bytes(24)}[damage]
                )
        with fastlog.PartitionLog.open(path, durability="os") as log:
            assert [log.offset_for_time(SOME_TIME + i) for i in range(100)] == list(range(100))
            assert [int(log.read(i, 1).offsets[0]) for i in range(100)] == list(range(100))
            assert not log.verify().damages
        assert {file.name: file.read_bytes() for file in path.glob("*index")} == indexes, damage
        with fastlog.PartitionLog.open(path, read_only=True) as log:
            assert log.recovery is None
            assert log.verify().ok


def test_I7_an_index_that_does_not_rise_finds_the_right_batch(folder: Path) -> None:
    """Its checksum is right: whoever wrote the files wrote that too."""
    path = folder / "events-0"
    with fastlog.PartitionLog.open(path, durability="os", config=fastlog.LogConfig(index_interval_bytes=1)) as log:
        for i in range(12):
            log.append([b"v" * 30, b"w"], timestamps=SOME_TIME + i)
    index = path / f"{0:020d}.index"
    entries = [index.read_bytes()[at : at + 8] for at in range(0, index.stat().st_size, 8)]
    beyond = entries[0][:4] + b"\x7f\xff\xff\xff"
    for lies in ([*entries[5:], *entries[:5]], entries[::-1], [entries[6], beyond, beyond, beyond]):
        index.write_bytes(b"".join(lies))
        ((base, known),) = files.read_index_checksums(str(path)).items()
        files.write_index_checksums(str(path), {base: (crc32c(index.read_bytes()), *known[1:])})
        with fastlog.PartitionLog.open(path, read_only=True) as log:
            assert [int(log.read(i, 1).offsets[0]) for i in range(24)] == list(range(24))


# --- state files that say what no fastlog writes ----------------------------------------------------------------------

FIELDS = (
    *("layout", "start_offset", "recovery_position", "epoch", "inode", "cleaned_offset", "clock_seen", "gap_ranges"),
    "rewriting",
)


def with_meta(path: Path, payload: bytes) -> None:
    line = b"%08x %s\n" % (crc32c(payload), payload)
    (path / ".fastlog-meta").write_bytes(line.ljust(4096) * 2)


@pytest.mark.parametrize("name", FIELDS)
@pytest.mark.parametrize("value", ["text", None, -7, 2**63, [1], {"segment_bytes": "1"}], ids=str)
def test_a_meta_file_with_impossible_values_is_damaged(folder: Path, name: str, value: object) -> None:
    path = folder / "events-0"
    with fastlog.PartitionLog.open(path, durability="os") as log:
        log.append([b"a"])
    (path / ".fastlog-clean").unlink()
    payload = json.loads((path / ".fastlog-meta").read_bytes()[9:4096])
    with_meta(path, json.dumps({**payload, name: value}).encode())
    with pytest.raises(fastlog.CorruptLogError, match=f"fastlog-meta: {name} is .*, which no fastlog writes"):
        fastlog.PartitionLog.open(path)


@pytest.mark.parametrize(
    "payload", [b"\xff", b"[" * 100_000, b"{}", b"7", b'{"format":1}'], ids=["utf-8", "deep", "{}", "7", "bare"]
)
def test_sealed_files_may_say_anything(folder: Path, payload: bytes) -> None:
    path = folder / "events-0"
    with fastlog.PartitionLog.open(path, durability="os") as log:
        log.append([b"a"])
    line = b"%08x %s\n" % (crc32c(payload), payload)
    for name in (".fastlog-clean", ".fastlog-indexes"):
        (path / name).write_bytes(line)
    with fastlog.PartitionLog.open(path, durability="os") as log:
        assert log.recovery is not None
        assert [record.value for record in log.records()] == [b"a"]
    (path / ".fastlog-clean").unlink()
    (path / ".fastlog-meta").write_bytes(line * 2)
    with pytest.raises((fastlog.CorruptLogError, fastlog.UnsupportedFormatError), match="fastlog-meta"):
        fastlog.PartitionLog.open(path)


@pytest.mark.parametrize(
    "change",
    [
        {"meta": 5},
        {"meta": None},
        {"end_offset": -1},
        {"files": []},
        {"files": {"x.log": 5}},
        {"files": {f"{0:020d}.log": "1"}},
    ],
    ids=str,
)
def test_a_clean_marker_with_impossible_values_vouches_for_nothing(folder: Path, change: dict[str, object]) -> None:
    path = folder / "events-0"
    with fastlog.PartitionLog.open(path, durability="os") as log:
        log.append([b"a"])
    payload = {**json.loads((path / ".fastlog-clean").read_bytes()[9:]), **change}
    text = json.dumps(payload).encode()
    (path / ".fastlog-clean").write_bytes(b"%08x %s\n" % (crc32c(text), text))
    with fastlog.PartitionLog.open(path, durability="os") as log:
        assert log.recovery is not None
        assert [record.value for record in log.records()] == [b"a"]


# --- headers, errors --------------------------------------------------------------------------------------------------


def test_headers_are_ordered_pairs() -> None:
    headers = fastlog.Headers([("a", b"1"), ("b", None), ("a", b"2")])
    assert headers["a"] == b"2"
    assert headers.get_all("a") == (b"1", b"2")
    assert headers.get("c") is None
    assert headers.get("c", b"x") == b"x"
    assert headers.get("b", b"x") is None
    assert list(headers) == [("a", b"1"), ("b", None), ("a", b"2")]
    assert len(headers) == 3
    assert "a" in headers
    assert "c" not in headers
    assert headers == fastlog.Headers([("a", b"1"), ("b", None), ("a", b"2")])
    assert headers != fastlog.Headers([("a", b"2"), ("b", None), ("a", b"1")])
    assert hash(headers) == hash(fastlog.Headers(tuple(headers)))
    assert fastlog.Headers({"k": b"v"}) == fastlog.Headers([("k", b"v")])
    with pytest.raises(KeyError):
        headers["c"]
    with pytest.raises((AttributeError, TypeError)):
        headers["a"] = b"3"  # type: ignore[index]
    for bad in ([("a", "text")], [(1, b"x")], [("a",)]):
        with pytest.raises(fastlog.InvalidRecordError):
            fastlog.Headers(bad)  # type: ignore[arg-type]


def test_errors_say_what_a_caller_can_do() -> None:
    codes = {
        fastlog.CorruptRecordError: 2, fastlog.CorruptLogError: 2, fastlog.OffsetOutOfRangeError: 1,
        fastlog.RecordTooLargeError: 10, fastlog.InvalidRecordError: 87, fastlog.StorageError: 56,
    }  # fmt: skip
    for kind, code in codes.items():
        assert issubclass(kind, fastlog.Error)
        assert kind.kafka_code == code
        assert kind.retriable is False
    assert fastlog.LockedError.retriable
    assert fastlog.StorageFullError.retriable
    assert issubclass(fastlog.StorageFullError, fastlog.StorageError)


def test_two_partitions_do_not_know_each_other(folder: Path, checked_log: OpenLog) -> None:
    one, two = checked_log(folder / "one-0"), checked_log(folder / "two-0")
    one.append([b"1"])
    two.append([b"2", b"3"])
    assert (one.end_offset, two.end_offset) == (1, 2)
    one.close()
    assert two.append([b"4"]) == 2


def test_I10_a_forked_child_cannot_use_the_handle(checked_log: OpenLog) -> None:
    log = checked_log()
    log.append([b"parent"] * 10)
    child = os.fork()
    if child == 0:
        refused = 0
        try:
            for action in (
                lambda: log.append([b"child"]), lambda: log.read(0), log.flush, log.verify, lambda: log.end_offset,
                lambda: list(log.records()), lambda: log.delete_records(before=1),
            ):  # fmt: skip
                try:
                    action()
                except fastlog.ForkedHandleError:
                    refused += 1
            log.close()
        finally:
            os._exit(refused)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7
    # what the child's close would have cut off, and what it would have unlocked
    assert log.append([b"parent"]) == 10
    assert len(list(log.records())) == 11
    with pytest.raises(fastlog.LockedError):
        fastlog.PartitionLog.open(log.path, exclusive=True)


def test_I12_an_index_entry_needs_more_than_the_interval(folder: Path) -> None:
    """Kafka compares with ``>``: exactly index.interval.bytes since the last entry are not enough."""
    with fastlog.PartitionLog.open(folder / "probe-0", durability="os") as log:
        log.append([b"v" * 50], timestamps=SOME_TIME)
        [segment] = log.segments()
    config = fastlog.LogConfig(index_interval_bytes=segment.size)
    with fastlog.PartitionLog.open(folder / "events-0", durability="os", config=config) as log:
        for _ in range(7):
            log.append([b"v" * 50], timestamps=SOME_TIME)
        path = log.segments()[0].path
    entries = fastlog.scan_index(path.replace(".log", ".index"))
    assert [(entry.offset, entry.position) for entry in entries] == [(i, i * segment.size) for i in (2, 4, 6)]


def test_I3_a_new_segment_counts_once_its_name_is_durable(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Idle:
        """In place of the thread that syncs rolled segments: what is synced is synced by the append itself."""

        def __init__(self, **options: object) -> None: ...

        def start(self) -> None: ...

        def is_alive(self) -> bool:
            return True

    monkeypatch.setattr(threading, "Thread", Idle)
    config = fastlog.LogConfig(segment_bytes=400, max_message_bytes=400)
    with fastlog.PartitionLog.open(folder / "events-0", durability="batch", config=config) as log:
        log.append([b"v" * 200])
        for _ in range(3):
            before = oscalls.call_counts()
            log.append([b"v" * 200])
            after = oscalls.call_counts()
            assert after["fsync"] - before["fsync"] == 1, "the folder, for the name of the new segment"
            assert after["fdatasync"] - before["fdatasync"] == 2, "the rolled segment once more, and the new one"
        assert len(log.segments()) == 4


def test_what_a_dead_process_was_about_to_name_is_removed(folder: Path) -> None:
    """By whoever has the log alone and may write; a store may be writing the metadata of the partition just now."""
    path = folder / "events-0"
    fastlog.PartitionLog.open(path).close()
    kept = ["partition.metadata.01234567.tmp", "notes.01234567.tmp", ".fastlog-clean.tmp", ".fastlog-clean.old.tmp"]
    left = [f"{name}.89abcdef.tmp" for name in (".fastlog-clean", ".fastlog-indexes", "leader-epoch-checkpoint")]
    left += [f"{0:020}.{kind}.89abcdef.tmp" for kind in ("snapshot", "txnindex")]
    for name in (*kept, *left):
        (path / name).write_bytes(b"half")
    with fastlog.PartitionLog.open(path, read_only=True):
        pass
    assert {file.name for file in path.iterdir()} >= {*kept, *left}
    with fastlog.PartitionLog.open(path) as log:
        assert log.recovery is None
        (path / left[0]).write_bytes(b"of somebody who is there, too")
        fastlog.PartitionLog.open(path).close()
        assert sorted(file.name for file in path.glob("*.tmp")) == sorted([*kept, left[0]])


def test_a_clean_log_stays_clean_when_its_first_segment_falls_below_the_start(folder: Path) -> None:
    """The start lies at the end; the next append rolls there, and what lies before is no part of the log any more."""
    path = str(folder / "events-0")
    config = fastlog.LogConfig(segment_bytes=1024)
    with fastlog.PartitionLog.open(path, durability="os", config=config) as log:
        log.append([bytes(600)])
        log.delete_records(before=1)
        log.append([bytes(600)])
        assert [segment.base_offset for segment in log.segments()][-1] == 1
    assert sorted(name.name for name in Path(path).glob("*.log")) == [f"{1:020d}.log"], "what the marker vouches for"
    with fastlog.PartitionLog.open(path, durability="os") as log:
        assert log.recovery is None
        assert [record.offset for record in log.records()] == [1]
        assert log.verify().ok


def test_a_clean_log_without_its_first_segment_is_not_clean(folder: Path) -> None:
    path, copy = folder / "events-0", folder / "copy-0"
    with fastlog.PartitionLog.open(path, durability="os", config=fastlog.LogConfig(segment_bytes=1024)) as log:
        for _ in range(3):
            log.append([bytes(600)])
    shutil.copytree(path, copy)
    for each in (path, copy):
        (each / f"{0:020d}.log").unlink()
    with fastlog.PartitionLog.open(path, durability="os") as log:
        assert log.recovery is not None
        with pytest.raises(fastlog.CorruptLogError):
            log.read(0)
    with pytest.raises(fastlog.CorruptLogError, match="incomplete copy"):
        fastlog.PartitionLog.open(copy, durability="os")


@pytest.mark.parametrize("read_only", [True, False])
def test_a_log_that_was_emptied_and_rolled_over_opens_after_a_kill(folder: Path, read_only: bool) -> None:
    """The recovery point lies in a segment that was deleted to its end before the next one began."""
    script = f"""
        import fastlog
        from fastlog._native import oscalls
        config = fastlog.LogConfig(segment_bytes=4000, max_message_bytes=2000)
        log = fastlog.PartitionLog.open({str(folder / "events-0")!r}, durability="batch", config=config)
        log.append([b"v" * 1000] * 3)
        log.delete_records(before=3)
        oscalls.arm("roll.published")
        log.append([b"v" * 1000] * 3)
    """
    killed = subprocess.run([sys.executable, "-c", textwrap.dedent(script)], check=False)
    assert killed.returncode == -signal.SIGKILL
    with fastlog.PartitionLog.open(folder / "events-0", read_only=read_only) as log:
        assert (log.start_offset, log.end_offset) == (3, 3)
    with fastlog.PartitionLog.open(folder / "events-0") as log:
        assert log.append([b"next"]) == 3
