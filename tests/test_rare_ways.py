"""Ways through the engine that others seldom take: unforeseen errors, old records only, other people's rights."""

from __future__ import annotations

import errno
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import fastlog
from fastlog._core import encode_batch
from fastlog._native import oscalls
from fastlog.errors import (
    ClosedError,
    CorruptRecordError,
    DeliveryTimeoutError,
    OffsetOutOfRangeError,
    RecordTooLargeError,
    UnknownTopicError,
)
from tests.strategies import SOME_TIME

SMALL: dict[str, Any] = {"segment_bytes": 10_000, "max_message_bytes": 5_000, "index_interval_bytes": 100}
DAY = 86_400_000


def open_log(folder: Path, durability: str = "os", read_only: bool = False, **config: Any) -> Any:
    options = fastlog.LogConfig(**{**SMALL, **config})
    return fastlog.PartitionLog.open(folder / "events-0", durability=durability, read_only=read_only, config=options)


@pytest.fixture
def store(folder: Path) -> Iterator[Any]:
    with fastlog.open(folder / "store", durability="os") as opened:
        opened.create_topic("orders", partitions=2)
        yield opened


# --- retention ------------------------------------------------------------------------------------------------------


def test_retention_of_old_records_only_leaves_an_empty_log(folder: Path) -> None:
    """The active segment goes too: an empty one is there before."""
    with open_log(folder, retention_ms=1000) as log:
        for _ in range(5):
            log.append([b"v" * 500] * 8, timestamps=SOME_TIME)
        log.flush()  # what is not durable is not deleted
        end = log.end_offset
        now = oscalls.wall_clock()
        try:
            for days in range(1, 10):
                oscalls.set_clock(now + days * DAY)
                log.maintain()
        finally:
            oscalls.set_clock(None)
        assert (log.start_offset, log.end_offset) == (end, end)
        assert log.append([b"w"]) == end
        assert log.verify().ok
    with open_log(folder) as log:
        assert log.recovery is None
        assert (log.start_offset, log.end_offset) == (end, end + 1)


def test_a_deletion_up_to_the_end_of_what_is_durable(folder: Path) -> None:
    with open_log(folder) as log:
        while len(log.segments()) < 3:
            log.append([b"v" * 900] * 2)
        boundary = log.segments()[1].base_offset
        log.flush_until(boundary)
        assert log.delete_records(before=boundary) == boundary
        assert log.start_offset == boundary
        assert log.durable_offset >= boundary
        assert log.verify().ok


# --- replaying ------------------------------------------------------------------------------------------------------


def test_a_batch_that_is_damaged_while_it_is_replayed(folder: Path) -> None:
    with open_log(folder, mmap=True) as log:
        log.append([b"v" * 100] * 5, compression="gzip")
        [batch] = log.replay(0)
        path = next((folder / "events-0").glob("*.log"))
        with path.open("r+b") as file:
            file.seek(80)
            file.write(b"\xff" * 8)
        with pytest.raises(CorruptRecordError):
            batch.values()


def test_a_batch_that_is_too_large_to_replay(folder: Path) -> None:
    with open_log(folder) as log:
        log.append([b"v" * 1000] * 4, compression="gzip")
    with open_log(folder, max_decompressed_bytes=1024, max_message_bytes=1000) as log:
        [batch] = log.replay(0)
        with pytest.raises(RecordTooLargeError, match="1024"):
            batch.values()


def test_a_replay_that_was_overtaken_by_a_deletion(folder: Path) -> None:
    with open_log(folder) as log:
        for _ in range(10):
            log.append([b"v" * 900] * 2)
        replay = log.replay(0)
        next(replay)
        log.delete_records(before=log.end_offset)
        with pytest.raises(OffsetOutOfRangeError):
            for _ in replay:
                pass


# --- others' rights -------------------------------------------------------------------------------------------------


def test_a_reader_who_may_not_write_the_page(folder: Path) -> None:
    """It cannot say that it waits, so it looks again and again."""
    with open_log(folder) as writer:
        writer.append([b"first"])
        for nth in range(1, 10):
            oscalls.inject("open", errno=errno.EACCES, nth=nth)
            try:
                reader = open_log(folder, read_only=True)
            except fastlog.Error:
                continue
            finally:
                oscalls.clear()
            with reader:
                timer = threading.Timer(0.02, writer.append, ([b"later"],))
                end = reader.end_offset
                timer.start()
                assert reader.wait(end, 10)
                timer.join()
                assert reader.read(end).values.to_list() == [b"later"]


# --- producers ------------------------------------------------------------------------------------------------------


def test_an_error_that_nobody_foresaw_ends_a_producer(store: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing hangs: what waits fails, and who sends more is told."""
    producer = store.producer(linger="10s")
    one = producer.send("orders", b"1", partition=0)
    many = producer.send_many("orders", [b"2"] * 3, partition=1)
    told: list[object] = []
    one.add_done_callback(told.append)

    def broken(*_: object) -> None:
        raise RuntimeError("nobody knows")

    monkeypatch.setattr("fastlog.clients.producer.DirectoryCatalog.version", broken)
    with pytest.raises(RuntimeError, match="nobody knows"):
        producer.flush()
    assert isinstance(one.exception(5), RuntimeError)
    with pytest.raises(RuntimeError):
        many.result(5)
    assert told == [one]
    assert repr(one) == "<Delivery to orders-0, failed: RuntimeError('nobody knows')>"
    with pytest.raises(ClosedError, match="ended by an error"):
        producer.send("orders", b"3")
    monkeypatch.undo()
    producer.close()
    with store.producer() as another:
        assert another.send("orders", b"4", partition=0).result(5).offset == 0


def test_deliveries_that_are_asked_too_early_and_too_late(store: Any) -> None:
    late: list[object] = []
    with store.producer(linger="10s") as producer:
        one = producer.send("orders", b"1", partition=0)
        many = producer.send_many("orders", [b"2"] * 3, partition=1)
        for delivery in (one, many):
            with pytest.raises(DeliveryTimeoutError):
                delivery.result(0)
        producer.flush()
        one.add_done_callback(late.append)
        many.add_done_callback(late.append)
        assert late == [one, many]


def test_each_of_many_failures_is_told(store: Any) -> None:
    """One is raised, with a note of the others."""
    producer = store.producer(linger="10s")
    for partition in range(2):
        producer.send("orders", b"v", partition=partition)
    producer.flush()
    for partition in range(2):
        producer.send("orders", b"v", partition=partition)
    oscalls.inject("pwrite", errno=errno.ENOSPC, sticky=True)
    try:
        with pytest.raises(fastlog.StorageFullError) as caught:
            producer.flush()
    finally:
        oscalls.clear()
    assert any("1 more appends failed" in note for note in caught.value.__notes__)
    producer.close()


def test_records_with_keys_headers_and_times_are_spread(store: Any) -> None:
    count = 3000
    keys = [b"%d" % (i % 97) for i in range(count)]
    headers = [{"n": b"%d" % i} for i in range(count)]
    with store.producer() as producer:
        sent = producer.send_many(
            "orders", [b"v%d" % i for i in range(count)], keys=keys, headers=headers, timestamps=range(1, count + 1)
        )
        assert len(sent.result(10)) == count
        without = producer.send_many("orders", [b"w"] * count)
        assert len(without.result(10)) == count
    found = {}
    for partition in range(2):
        log = store.topic("orders").partition(partition)
        for record in log.records():
            if record.key is not None:
                found[bytes(record.value)] = (record.key, dict(record.headers)["n"], record.timestamp)
    assert found == {b"v%d" % i: (keys[i], b"%d" % i, i + 1) for i in range(count)}


def test_a_topic_for_compaction_wants_keys(store: Any) -> None:
    store.create_topic("states", config={"cleanup.policy": "compact"})
    with store.producer() as producer:
        assert len(producer.send_many("states", [b"v"] * 3, keys=[b"k"] * 3).result(5)) == 3
        for keys in (None, [b"k", None, b"k"]):
            with pytest.raises(fastlog.InvalidRecordError, match="key"):
                producer.send_many("states", [b"v"] * 3, keys=keys)
    with pytest.raises(UnknownTopicError):
        store.topic("stat")


def test_markers_of_nobody_are_counted_no_record(folder: Path) -> None:
    """An empty transaction, again and again."""
    with open_log(folder) as log:
        for number in range(3):
            log.append_batch(
                encode_batch([b"v"], producer_id=9, producer_epoch=0, base_sequence=number, transactional=True)
            )
            log.end_transaction(9, 0, commit=False)
        assert log.open_transactions() == []
        assert list(log.records()) == []
