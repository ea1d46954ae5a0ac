"""Calls of the core that make no sense, and what its objects look like, are compared by, and are copied as."""

from __future__ import annotations

import copy
import errno
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import fastlog
from fastlog._core import encode_batch, scan_index, scan_segment
from fastlog._native import checksum, oscalls
from fastlog.errors import (
    ConfigError,
    FencedError,
    InvalidRecordError,
    OffsetOutOfRangeError,
    StorageError,
    UnsupportedFormatError,
)
from tests.strategies import SOME_TIME


@pytest.fixture
def log(folder: Path) -> Iterator[Any]:
    with fastlog.PartitionLog.open(folder / "orders-3", durability="os") as opened:
        yield opened


@pytest.fixture
def batch(log: Any) -> Any:
    log.append([b"a", None, b"ccc"], keys=[b"k", b"l", None], headers={"h": b"1"}, timestamps=SOME_TIME)
    return log.read(0)


# --- opening and asking ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "what"),
    [
        ({"isolation": "serializable"}, "isolation='serializable'"),
        ({"config": {"segment_bytes": 5}}, "config is a dict"),
        ({"read_only": True, "exclusive": True}, "a reader keeps nobody out"),
    ],
)
def test_options_that_are_none_are_refused(folder: Path, options: dict[str, Any], what: str) -> None:
    with pytest.raises(ConfigError, match=what):
        fastlog.PartitionLog.open(folder / "orders-0", **options)
    assert not (folder / "orders-0").exists()


def test_nothing_to_repair(folder: Path) -> None:
    with pytest.raises(StorageError, match="nothing to repair"):
        fastlog.PartitionLog.repair(folder / "orders-0")


def test_objects_of_the_core_come_from_calls(batch: Any) -> None:
    for made in (fastlog.PartitionLog, fastlog.RecordBatch, type(batch.values), type(batch.headers)):
        with pytest.raises(TypeError):
            made()


@pytest.mark.parametrize("expected", [-1, "3", 1.5])
def test_an_expected_end_is_an_offset(log: Any, expected: Any) -> None:
    with pytest.raises(InvalidRecordError, match="expected_end_offset"):
        log.append([b"v"], expected_end_offset=expected)
    assert log.end_offset == 0


def test_an_empty_append_is_fenced_too(log: Any) -> None:
    assert log.append([], expected_end_offset=0) == 0
    log.append([b"v"])
    with pytest.raises(FencedError):
        log.append([], expected_end_offset=0)
    assert log.end_offset == 1


def test_a_size_to_read_is_positive(log: Any) -> None:
    with pytest.raises(ConfigError, match="max_bytes=0"):
        log.read(0, max_bytes=0)


def test_get_of_no_record(log: Any) -> None:
    """Nothing is at an offset that a marker has; there is no offset at the end."""
    log.append_batch(encode_batch([b"v"], producer_id=1, producer_epoch=0, base_sequence=0, transactional=True))
    log.end_transaction(1, 0, commit=True)
    assert log.get(0).value == b"v"
    with pytest.raises(OffsetOutOfRangeError):
        log.get(2)
    log.append([b"w"])
    assert log.get(1) is None
    assert log.get(2).value == b"w"


def test_a_compacted_log_wants_every_key(folder: Path) -> None:
    config = fastlog.LogConfig(cleanup_policy="compact")
    with fastlog.PartitionLog.open(folder / "orders-0", durability="os", config=config) as log:
        for keys, keyless in (([b"k", None], 1), (None, 0)):
            with pytest.raises(InvalidRecordError, match=f"record {keyless} has no key"):
                log.append([b"a", b"b"], keys=keys)
        assert log.end_offset == 0


# --- what objects look like -----------------------------------------------------------------------------------------


def test_what_objects_look_like(log: Any, batch: Any) -> None:
    assert repr(log) == f"<PartitionLog {log.path!r}: offsets 0 to 3>"
    assert repr(batch) == "<RecordBatch: 3 records from offset 0, next_offset=3>"
    assert repr(batch.values) == "<BinaryColumn: 3 entries, 4 bytes>"
    assert repr(log.batches(1, 2)) == f"<RecordBatches of {log.path!r} from 1 to 2>"
    cursor = batch.cursor()
    next(cursor)
    assert repr(cursor) == "<RecordCursor at offset 1, 1 of 3 records handed out>"
    log.close()
    assert repr(log) == f"<PartitionLog {log.path!r}, closed>"


def test_slices_are_lists(batch: Any) -> None:
    records = [batch[i] for i in range(3)]
    assert batch[:] == records
    assert batch[::-2] == [records[2], records[0]]
    assert [value if value is None else bytes(value) for value in batch.values[1:]] == [None, b"ccc"]
    assert [list(headers) for headers in batch.headers[:2]] == [[("h", b"1")]] * 2
    assert batch[3:] == batch.values[3:] == batch.headers[3:] == []


def test_records_are_values(log: Any, batch: Any) -> None:
    first = batch[0]
    assert copy.copy(first) == first == log.read(0)[0]
    assert hash(copy.copy(first)) == hash(first)
    assert first != batch[1]
    assert first != first.fields()
    assert batch.timestamp_type == first.timestamp_type == "create"


def test_a_replayed_batch(log: Any) -> None:
    log.append_batch(encode_batch([b"v", b"w"], producer_id=7, producer_epoch=0, base_sequence=0, transactional=True))
    log.end_transaction(7, 0, commit=True, coordinator_epoch=5)
    data, marker = log.replay(0)
    assert len(data) == 2
    assert data.records().values.to_list() == [b"v", b"w"]
    assert marker.coordinator_epoch == 5
    assert repr(data) == "<ReplayedBatch: batch of 2 records, offsets 0 to 1, producer 7>"
    assert repr(marker) == "<ReplayedBatch: control batch, offsets 2 to 2, producer 7>"


# --- files ----------------------------------------------------------------------------------------------------------


def test_files_that_are_no_index(folder: Path) -> None:
    for name, content, what in (
        ("00.log", b"", "is no index"),
        ("00.index", None, "does not exist"),
        ("00.index", b"123", "no whole number of 8-byte entries"),
        ("00.timeindex", b"123", "no whole number of 12-byte entries"),
    ):
        if content is not None:
            (folder / name).write_bytes(content)
        with pytest.raises(UnsupportedFormatError, match=what):
            scan_index(folder / name)


@pytest.mark.parametrize("data", [b"", b"1", b"123456789", bytes(range(256)) * 9], ids=len)
def test_the_checksum_of_machines_without_the_instruction(data: bytes) -> None:
    assert checksum.crc32c_in_software(data) == checksum.crc32c(data)
    assert checksum.crc32c_in_software(b"123456789") == 0xE3069283


# --- interrupted calls ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("call", ["pread", "pwrite", "pwritev"])
def test_an_interrupted_call_is_made_again(folder: Path, call: str) -> None:
    config = fastlog.LogConfig(mmap=False)
    before = oscalls.call_counts()[call]
    oscalls.inject(call, errno=errno.EINTR)
    try:
        with fastlog.PartitionLog.open(folder / "orders-0", durability="os", config=config) as log:
            log.append([b"v" * 5000] * 10)
            assert log.read(0).values.to_list() == [b"v" * 5000] * 10
        assert oscalls.injected() == 1
    finally:
        oscalls.clear()
    assert oscalls.call_counts()[call] > before


def test_faults_and_failpoints_have_names() -> None:
    with pytest.raises(ValueError, match="unknown system call 'read'"):
        oscalls.inject("read")
    with pytest.raises(ValueError, match="nth counts from 1"):
        oscalls.inject("pread", nth=0)
    for name, action in (("append.nowhere", "kill"), ("append.locked", "explode")):
        with pytest.raises(ValueError, match="unknown failpoint"):
            oscalls.arm(name, action)
    oscalls.arm("append.locked")
    oscalls.arm(None)  # or the next append would end this


def test_a_scan_of_an_empty_file(folder: Path) -> None:
    (folder / "00000000000000000000.log").write_bytes(b"")
    assert list(scan_segment(folder / "00000000000000000000.log")) == []
