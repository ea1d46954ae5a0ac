"""Our encoder and decoder against the reference model, byte by byte and record by record."""

from __future__ import annotations

import itertools
import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

import fastlog
from fastlog._native import oscalls  # type: ignore[attr-defined]
from tests.folders import MEMORY
from tests.foreign import as_reference, read_all, write_foreign_log
from tests.reference.batch import (
    DELETE_HORIZON,
    LOG_APPEND_TIME,
    Batch,
    Record,
    control_batch,
    decode_batch,
    decode_log,
    encode_batch,
    make_batch,
)
from tests.strategies import SOME_TIME, records

OpenLog = Callable[..., Any]


def append_records(log: Any, drawn: list[Record]) -> int:
    base_offset: int = log.append(
        [record.value for record in drawn],
        keys=[record.key for record in drawn],
        timestamps=[record.timestamp for record in drawn],
        headers=[record.headers for record in drawn],
    )
    return base_offset


def segment_bytes(path: Path) -> bytes:
    return b"".join(file.read_bytes() for file in sorted(path.glob("*.log")))


@given(appends=st.lists(records(), min_size=1, max_size=4))
def test_encoded_bytes_are_those_of_the_reference(appends: list[list[Record]]) -> None:
    expected = b""
    with tempfile.TemporaryDirectory(dir=MEMORY) as name:
        path = Path(name) / "t-0"
        with fastlog.PartitionLog.open(path, durability="os") as log:
            for drawn in appends:
                base_offset = append_records(log, drawn)
                numbered = [replace(record, offset=base_offset + i) for i, record in enumerate(drawn)]
                expected += encode_batch(make_batch(numbered))
            assert log.verify().ok
        assert segment_bytes(path) == expected


@given(records(max_size=6), st.sampled_from([256, 1000, 5000]))
def test_appends_are_split_into_batches_like_the_reference(drawn: list[Record], max_message_bytes: int) -> None:
    from tests.reference.log import ModelConfig, ModelError, ModelLog

    model = ModelLog(ModelConfig(max_message_bytes=max_message_bytes))
    try:
        model.append(drawn, SOME_TIME)
        too_large = False
    except ModelError:
        too_large = True
    with tempfile.TemporaryDirectory(dir=MEMORY) as name:
        path = Path(name) / "t-0"
        config = fastlog.LogConfig(max_message_bytes=max_message_bytes)
        with fastlog.PartitionLog.open(path, durability="os", config=config) as log:
            if too_large:
                with pytest.raises(fastlog.RecordTooLargeError):
                    append_records(log, drawn)
                assert log.end_offset == 0
            else:
                append_records(log, drawn)
            assert log.verify().ok
        assert segment_bytes(path) == (b"" if too_large else model.segments[0].log_file)


@st.composite
def foreign_batches(draw: st.DrawFn) -> list[Batch]:
    """Batches as compaction, transactions and log-append-time topics leave them behind."""
    batches: list[Batch] = []
    offset = draw(st.sampled_from([0, 0, 3, 2**31 - 20]))
    for _ in range(draw(st.integers(1, 5))):
        kind = draw(st.sampled_from(["plain", "gaps", "empty", "control", "append-time", "horizon"]))
        drawn = draw(records(first_offset=offset, max_size=4))
        batch = make_batch(drawn)
        if kind == "gaps":
            kept = tuple(record for record in drawn if draw(st.booleans()))
            batch = replace(batch, records=kept, last_offset=batch.last_offset + draw(st.integers(0, 3)))
        elif kind == "empty":
            batch = replace(batch, records=(), base_timestamp=-1)
        elif kind == "control":
            batch = control_batch(offset, drawn[0].timestamp, commit=draw(st.booleans()))
        elif kind == "append-time":
            stamped = tuple(replace(record, timestamp=SOME_TIME) for record in drawn)
            batch = replace(make_batch(stamped), attributes=LOG_APPEND_TIME)
        elif kind == "horizon":
            batch = replace(batch, attributes=DELETE_HORIZON, base_timestamp=SOME_TIME + 86_400_000)
        batches.append(batch)
        offset = batch.last_offset + 1 + draw(st.sampled_from([0, 0, 0, 7]))
    return batches


@given(foreign_batches(), st.sampled_from([1, 200, 1 << 20]))
def test_decoded_records_are_those_of_the_reference(batches: list[Batch], max_bytes: int) -> None:
    encoded = b"".join(map(encode_batch, batches))
    expected = [record for _, batch in decode_log(encoded) for record in batch.visible_records]
    end_offset = batches[-1].last_offset + 1
    with tempfile.TemporaryDirectory(dir=MEMORY) as name:
        path = Path(name) / "t-0"
        write_foreign_log(path, [encoded])
        with fastlog.PartitionLog.open(path, durability="os") as log:
            assert log.end_offset == end_offset
            assert read_all(log, max_bytes=max_bytes) == expected
            assert [as_reference(record) for record in log.records()] == expected
            for timestamp in {record.timestamp for record in expected}:
                first = next(record.offset for record in expected if record.timestamp >= timestamp)
                assert log.offset_for_time(timestamp) == first
            assert not log.verify().damages
        assert (path / f"{0:020}.log").read_bytes() == encoded


def test_control_batches_are_never_shown(folder: Path, checked_log: OpenLog) -> None:
    batches = [
        make_batch([Record(0, SOME_TIME, b"k", b"v")]),
        control_batch(1, SOME_TIME, commit=True),
        make_batch([Record(2, SOME_TIME, b"k", b"w")]),
        control_batch(3, SOME_TIME, commit=False),
    ]
    write_foreign_log(folder / "t-0", batches)
    log = checked_log(folder / "t-0")
    assert [record.offset for record in log.records()] == [0, 2]
    marker = log.read(3)
    assert (len(marker), marker.next_offset) == (0, 4)
    assert log.end_offset == 4
    assert log.append([b"next"]) == 4


def test_empty_batches_are_skipped_with_the_right_next_offset(folder: Path, checked_log: OpenLog) -> None:
    empty = Batch(1, 40, -1, SOME_TIME)
    batches = [make_batch([Record(0, SOME_TIME, b"k", b"v")]), empty, make_batch([Record(41, SOME_TIME, b"k", b"w")])]
    write_foreign_log(folder / "t-0", batches)
    log = checked_log(folder / "t-0")
    only_empty = log.read(1, max_bytes=1)
    assert (len(only_empty), only_empty.next_offset) == (0, 41)
    assert log.read(17, max_bytes=1).next_offset == 41
    assert [record.offset for record in log.records(start=5)] == [41]


def test_a_last_batch_without_records_still_moves_the_end(folder: Path, checked_log: OpenLog) -> None:
    write_foreign_log(folder / "t-0", [make_batch([Record(0, SOME_TIME, b"k")]), Batch(1, 9, -1, SOME_TIME)])
    log = checked_log(folder / "t-0")
    assert log.end_offset == 10
    assert log.append([b"v"]) == 10


def test_log_append_time_rules_all_records_of_a_batch(folder: Path, checked_log: OpenLog) -> None:
    written = [Record(0, 5, b"k", b"v"), Record(1, 900, None, b"w")]
    batch = replace(make_batch(written), attributes=LOG_APPEND_TIME, max_timestamp=SOME_TIME)
    write_foreign_log(folder / "t-0", [batch])
    log = checked_log(folder / "t-0")
    assert log.read(0).timestamps.tolist() == [SOME_TIME, SOME_TIME]
    assert [record.timestamp_type for record in log.records()] == ["append", "append"]
    assert log.offset_for_time(1000) == 0


def test_the_delete_horizon_is_no_timestamp(folder: Path, checked_log: OpenLog) -> None:
    written = [Record(0, SOME_TIME, b"k", None), Record(1, SOME_TIME + 3, b"l", None)]
    batch = replace(make_batch(written), attributes=DELETE_HORIZON, base_timestamp=SOME_TIME + 10**9)
    write_foreign_log(folder / "t-0", [batch])
    log = checked_log(folder / "t-0")
    assert log.read(0).timestamps.tolist() == [SOME_TIME, SOME_TIME + 3]
    assert log.read(0).values.to_list() == [None, None]


def test_records_without_a_timestamp_read_as_none(folder: Path, checked_log: OpenLog) -> None:
    write_foreign_log(folder / "t-0", [make_batch([Record(0, -1, None, b"v")])])
    log = checked_log(folder / "t-0")
    assert log.read(0).timestamps.tolist() == [-1]
    assert log.read(0)[0].timestamp is None
    assert log.read(0)[0].datetime is None
    assert log.offset_for_time(0) is None


@given(drawn=records(max_size=5))
def test_scan_segment_shows_each_header(drawn: list[Record]) -> None:
    batches = [make_batch([replace(record, offset=10 * i)]) for i, record in enumerate(drawn)]
    with tempfile.TemporaryDirectory(dir=MEMORY) as name:
        path = write_foreign_log(Path(name) / "t-0", batches)
        infos = list(fastlog.scan_segment(path))
    assert [(i.base_offset, i.last_offset, i.record_count) for i in infos] == [
        (b.base_offset, b.last_offset, 1) for b in batches
    ]
    sizes = [len(encode_batch(batch)) for batch in batches]
    assert [info.size for info in infos] == sizes
    assert [info.position for info in infos] == list(itertools.accumulate([0, *sizes[:-1]]))
    assert all(info.is_valid and info.problem is None for info in infos)
    assert [(i.base_timestamp, i.max_timestamp) for i in infos] == [
        (b.base_timestamp, b.max_timestamp) for b in batches
    ]
    assert [info.crc for info in infos] == [int.from_bytes(encode_batch(b)[17:21], "big") for b in batches]


def test_what_is_read_can_be_decoded_by_the_reference_again(folder: Path, checked_log: OpenLog) -> None:
    log = checked_log()
    log.append([b"a", None, b""], keys=[None, b"", b"k"], timestamps=SOME_TIME, headers={"trace": b"1", "none": None})
    log.close()
    data = segment_bytes(Path(log.path))
    batch, size = decode_batch(data)
    assert size == len(data)
    assert [record.value for record in batch.records] == [b"a", None, b""]
    assert {record.headers for record in batch.records} == {(("trace", b"1"), ("none", None))}


def test_the_start_of_an_adopted_log_is_found_again(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The file that keeps it is new in the folder: its name is synced before anything can be deleted."""
    path = write_foreign_log(folder / "t-0", [make_batch([Record(0, SOME_TIME, b"k", b"v")])]).parent
    was_there: list[bool] = []
    sync_directory = oscalls.sync_directory

    def noting(folder: str) -> None:
        was_there.append(Path(folder, ".fastlog-meta").exists())
        sync_directory(folder)

    monkeypatch.setattr(oscalls, "sync_directory", noting)
    with fastlog.PartitionLog.open(path):
        assert was_there[-1]
