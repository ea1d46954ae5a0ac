"""``RecordCursor``: the records of a batch one by one, and where that is, at any time and from any thread."""

from __future__ import annotations

import json
import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import fastlog
from fastlog._core import RecordCursor, encode_batch
from fastlog._native.oscalls import wall_clock
from tests.foreign import write_foreign_log
from tests.reference.batch import Record, make_batch

PRODUCER = 1 << 41


def batch_of(folder: Path, count: int = 10, **options: Any) -> fastlog.RecordBatch:
    with fastlog.PartitionLog.open(folder / "events-3", durability="os") as log:
        base = log.append([b"%d" % i for i in range(count)], keys=[b"k%d" % i for i in range(count)], **options)
        return log.read(base)


def test_a_cursor_hands_out_what_iterating_does(folder: Path) -> None:
    batch = batch_of(folder, headers={"trace": b"1"}, compression="zstd")
    cursor = batch.cursor()
    assert list(cursor) == list(batch)
    assert cursor.batch is batch
    assert (cursor.next_index, cursor.next_offset, cursor.current_offset) == (10, 10, 9)
    with pytest.raises(StopIteration):
        next(cursor)
    with pytest.raises(TypeError):
        RecordCursor()


def test_it_knows_its_place_after_every_record(folder: Path) -> None:
    batch = batch_of(folder)
    cursor = batch.cursor()
    assert (cursor.next_offset, cursor.current_offset, cursor.__length_hint__()) == (0, None, 10)
    for i, record in enumerate(cursor):
        assert record.offset == i == cursor.current_offset
        assert (cursor.next_index, cursor.next_offset) == (i + 1, i + 1)
        assert cursor.__length_hint__() == 9 - i
    assert batch.cursor().next_offset == 0, "each cursor has its own place"


def test_positions_step_over_gaps_and_markers(folder: Path) -> None:
    """Offsets that compaction took away; and behind the last record what no consumer is shown."""
    path = folder / "events-0"
    batch = replace(make_batch([Record(offset, wall_clock(), b"k", b"v") for offset in (0, 4, 7)]), last_offset=9)
    write_foreign_log(path, [batch])
    with fastlog.PartitionLog.open(path, durability="os") as log:
        log.append_batch(
            encode_batch([b"10"], producer_id=PRODUCER, producer_epoch=0, base_sequence=0, transactional=True)
        )
        log.end_transaction(PRODUCER, 0, commit=True)
        cursor = log.read(2).cursor()
        assert (cursor.next_offset, cursor.batch.base_offset) == (2, 2)
        seen = [(record.offset, cursor.next_offset) for record in cursor]
    assert seen == [(4, 7), (7, 10), (10, 12)]


def test_an_empty_batch_ends_at_its_next_offset(folder: Path) -> None:
    with fastlog.PartitionLog.open(folder / "events-0", durability="os") as log:
        log.append_batch(
            encode_batch([b"0"], producer_id=PRODUCER, producer_epoch=0, base_sequence=0, transactional=True)
        )
        log.end_transaction(PRODUCER, 0, commit=False)
        cursor = log.read(0).cursor()
    assert list(cursor) == []
    assert (cursor.next_offset, cursor.current_offset) == (2, None)


def test_deserializers(folder: Path) -> None:
    with fastlog.PartitionLog.open(folder / "events-0", durability="os") as log:
        log.append([b'{"a": 1}', None, b"[2]"], keys=[b"1", b"22", None])
        found = [(record.key, record.value) for record in log.read(0).cursor(len, json.loads)]
        assert found == [(1, {"a": 1}), (2, None), (None, [2])]
        assert [record.value for record in log.read(0).cursor(value_deserializer=bytes.decode)] == [
            '{"a": 1}',
            None,
            "[2]",
        ]
        for wrong in ({"key_deserializer": "json"}, {"value_deserializer": 5}):
            with pytest.raises(fastlog.ConfigError):
                log.read(0).cursor(**wrong)  # type: ignore[arg-type]


def test_a_record_that_cannot_be_deserialized_was_not_handed_out(folder: Path) -> None:
    with fastlog.PartitionLog.open(folder / "events-0", durability="os") as log:
        log.append([b"1", b"not json", b"3"])
        cursor = log.read(0).cursor(value_deserializer=json.loads)
    assert next(cursor).value == 1
    for _ in range(2):
        with pytest.raises(json.JSONDecodeError):
            next(cursor)
        assert (cursor.next_offset, cursor.current_offset) == (1, 0)
    assert cursor.skip() == 1
    assert (cursor.next_offset, cursor.current_offset) == (2, 1)
    assert next(cursor).value == 3
    with pytest.raises(IndexError):
        cursor.skip()


def test_stop_ends_it_before_the_next_record(folder: Path) -> None:
    cursor = batch_of(folder).cursor()
    seen = []
    for record in cursor:
        seen.append(record.offset)
        if record.offset == 3:
            cursor.stop()
    assert seen == [0, 1, 2, 3]
    assert cursor.stopped
    assert (cursor.next_offset, cursor.current_offset, list(cursor)) == (4, 3, [])


def test_another_thread_stops_it(folder: Path) -> None:
    cursor = batch_of(folder, 200_000).cursor()
    begun, seen = threading.Event(), []

    def iterate() -> None:
        for record in cursor:
            seen.append(record.offset)
            begun.set()
            if len(seen) == 1000:
                stopped.wait(30)

    stopped = threading.Event()
    thread = threading.Thread(target=iterate)
    thread.start()
    begun.wait(30)
    cursor.stop()
    stopped.set()
    thread.join(30)
    assert seen == list(range(len(seen)))
    assert len(seen) <= 1000
    assert cursor.next_offset == len(seen)


def test_a_cursor_outlives_the_log(folder: Path) -> None:
    cursor = batch_of(folder).cursor()
    for entry in (folder / "events-3").iterdir():
        entry.unlink()
    assert [record.value for record in cursor] == [b"%d" % i for i in range(10)]
