"""Producers: what is sent is stored, once and in order, and its delivery tells where, or why not."""

from __future__ import annotations

import errno
import gc
import logging
import os
import threading
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy
import pytest

import fastlog
from fastlog._core import partition_for_key
from fastlog._native import oscalls
from fastlog.clients.producer import DirectoryCatalog, Producer
from fastlog.errors import (
    ClosedError,
    ConfigError,
    DeliveryTimeoutError,
    InvalidRecordError,
    LockedError,
    NotSupportedError,
    RecordTooLargeError,
    StorageError,
    StorageFullError,
    TransactionError,
    UnknownTopicError,
)
from fastlog.records import BatchMetadata, Headers, RecordMetadata
from fastlog.store.directory import Directory


@pytest.fixture
def store(folder: Path) -> Iterator[Directory]:
    with Directory.open(folder / "store", durability="os") as opened:
        opened.create_topic("one", partitions=1)
        opened.create_topic("orders", partitions=4)
        yield opened


def stored(store: Directory, topic: str, partition: int = 0) -> list[Any]:
    return list(store.partition_log(topic, partition).records())


def values(store: Directory, topic: str) -> list[list[bytes | None]]:
    return [
        [record.value for record in stored(store, topic, partition)]
        for partition in range(store.topic(topic).partitions)
    ]


# --- sending ----------------------------------------------------------------------------------------------------------


def test_a_record_as_it_was_sent(store: Directory) -> None:
    with Producer(store) as producer:
        sent = producer.send(
            "orders", b"value", key=b"key", headers={"a": b"1", "b": None}, timestamp=1234, partition=2
        )
        assert sent.result(5) == RecordMetadata("orders", 2, 0, 1234)
        assert sent.done()
        assert sent.exception() is None
        assert repr(sent) == "<Delivery to orders-2, offset 0>"
    [record] = stored(store, "orders", 2)
    assert (record.key, record.value, record.timestamp, record.topic) == (b"key", b"value", 1234, "orders")
    assert record.headers == Headers([("a", b"1"), ("b", None)])


def test_null_and_empty_are_different(store: Directory) -> None:
    with Producer(store) as producer:
        for key in (None, b""):
            for value in (None, b""):
                producer.send("one", value, key=key)
    assert [(r.key, r.value) for r in stored(store, "one")] == [(None, None), (None, b""), (b"", None), (b"", b"")]


@pytest.mark.parametrize("kind", [bytes, bytearray, memoryview, numpy.bytes_])
def test_bytes_of_every_kind(store: Directory, kind: Any) -> None:
    with Producer(store) as producer:
        producer.send("one", kind(b"value"), key=kind(b"key"))
    assert [(r.key, r.value) for r in stored(store, "one")] == [(b"key", b"value")]


def test_a_mutable_value_is_copied_at_once(store: Directory) -> None:
    value = bytearray(b"before")
    with Producer(store, linger=60) as producer:
        producer.send("one", value)
        value[:] = b"after!"
    assert values(store, "one") == [[b"before"]]


def test_keys_choose_partitions_as_kafka_does(store: Directory) -> None:
    keys = [b"key-%d" % i for i in range(200)]
    with Producer(store) as producer:
        sent = [producer.send("orders", key, key=key) for key in keys]
    for key, delivery in zip(keys, sent, strict=True):
        assert delivery.result().partition == partition_for_key(key, 4)
    assert sum(map(len, values(store, "orders"))) == 200
    for partition, found in enumerate(values(store, "orders")):
        assert found == [key for key in keys if partition_for_key(key, 4) == partition]


def test_records_without_a_key_stay_together_and_spread_over_time(store: Directory) -> None:
    with Producer(store, linger=60) as producer:
        first = [producer.send("orders", b"%d" % i) for i in range(50)]
        producer.flush()
        assert len({delivery.result().partition for delivery in first}) == 1
        seen = set()
        for _ in range(64):
            delivery = producer.send("orders", b"x")
            producer.flush()
            seen.add(delivery.result().partition)
        assert seen == {0, 1, 2, 3}


def test_a_full_batch_changes_the_sticky_partition(store: Directory) -> None:
    with Producer(store, linger=60, batch_size=1000) as producer:
        sent = [producer.send("orders", b"x" * 90) for _ in range(300)]
        producer.flush()
        partitions = [delivery.result().partition for delivery in sent]
    assert set(partitions) == {0, 1, 2, 3}
    changes = sum(a != b for a, b in pairwise(partitions))
    assert changes < 40, "about nine records fit into a batch"


@pytest.mark.parametrize(
    ("timestamp", "expected"),
    [
        (0, 0),
        (-1, None),
        (1_700_000_000_123, 1_700_000_000_123),
        (datetime(2023, 11, 14, 22, 13, 20, tzinfo=UTC), 1_700_000_000_000),
        (datetime(1970, 1, 1, 1, tzinfo=UTC), 3_600_000),
    ],
)
def test_timestamps(store: Directory, timestamp: Any, expected: int | None) -> None:
    with Producer(store) as producer:
        producer.send("one", b"v", timestamp=timestamp)
    assert [record.timestamp for record in stored(store, "one")] == [expected]


def test_without_a_timestamp_the_clock_tells(store: Directory) -> None:
    oscalls.set_clock(1_800_000_000_000)
    with Producer(store) as producer:
        assert producer.send("one", b"v").result().timestamp == 1_800_000_000_000
        oscalls.set_clock(None)
        assert producer.send("one", b"v").result().timestamp != 1_800_000_000_000


def test_timestamps_inside_a_batch_may_go_back(store: Directory) -> None:
    moments = [5000, 1, 7000, 7000, 0]
    with Producer(store, linger=60) as producer:
        for moment in moments:
            producer.send("one", b"v", timestamp=moment)
    assert [record.timestamp for record in stored(store, "one")] == moments
    assert store.partition_log("one", 0).offset_for_time(6000) == 2


def test_serializers(store: Directory) -> None:
    def to_bytes(item: Any) -> bytes:
        return str(item).encode()

    with Producer(store, key_serializer=to_bytes, value_serializer=to_bytes) as producer:
        producer.send("one", 17, key=3)
        producer.send("one", None)
        producer.send_many("one", [1, 2], keys=["a", None])
        with pytest.raises(ZeroDivisionError):
            Producer(store, value_serializer=lambda value: 1 / value).send("one", 0)
    assert [(r.key, r.value) for r in stored(store, "one")] == [
        (b"3", b"17"),
        (None, b"None"),
        (b"a", b"1"),
        (None, b"2"),
    ]


# --- what is refused --------------------------------------------------------------------------------------------------


def test_an_unknown_topic(store: Directory) -> None:
    with Producer(store) as producer, pytest.raises(UnknownTopicError, match="orders"):
        producer.send("order", b"v")


@pytest.mark.parametrize("partition", [-1, 4, 1 << 40])
def test_an_unknown_partition(store: Directory, partition: int) -> None:
    with Producer(store) as producer:
        with pytest.raises(InvalidRecordError, match="partitions 0 to 3"):
            producer.send("orders", b"v", partition=partition)
        with pytest.raises(InvalidRecordError, match="partitions 0 to 3"):
            producer.send_many("orders", [b"v"], partition=partition)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"value": "text"}, "str"),
        ({"value": 3}, "int"),
        ({"value": b"v", "key": "text"}, "str"),
        ({"value": b"v", "headers": 7}, "headers"),
        ({"value": b"v", "headers": {"a": "text"}}, "str"),
        ({"value": b"v", "timestamp": datetime(2023, 1, 1)}, "time zone"),
        ({"value": b"v", "timestamp": -2}, "milliseconds"),
        ({"value": b"v", "timestamp": 1 << 62}, "ahead of the clock"),
        ({"value": b"v", "partition": "0"}, "partition"),
        ({"value": b"v", "partition": True}, "partition"),
        ({"value": b"v", "topic": b"one"}, "topic"),
        ({"value": b"v", "topic": []}, "topic"),
    ],
)
def test_what_is_no_record(store: Directory, arguments: dict[str, Any], message: str) -> None:
    with Producer(store) as producer:
        with pytest.raises(InvalidRecordError, match=message):
            producer.send(**{"topic": "one", **arguments})
        assert producer.counts()["records"] == 0
    assert values(store, "one") == [[]]


def test_a_record_that_is_too_large(store: Directory) -> None:
    store.create_topic("small", options={"max.message.bytes": 1000})
    with Producer(store) as producer:
        with pytest.raises(RecordTooLargeError, match=r"max\.message\.bytes"):
            producer.send("small", b"x" * 1000)
        with pytest.raises(RecordTooLargeError, match="record 1"):
            producer.send_many("small", [b"a", b"x" * 1000, b"b"])
        exact = 1000 - 61 - 2 - 1 - 1 - 1 - 1 - 2 - 1
        producer.send("small", b"x" * exact).result()
        with pytest.raises(RecordTooLargeError):
            producer.send("small", b"x" * (exact + 1))
        assert len(producer.send_many("small", [b"x" * exact] * 3).result()) == 3
    with Producer(store, buffer_memory=5000) as producer, pytest.raises(RecordTooLargeError, match="buffer_memory"):
        producer.send("one", b"x" * 5000)


def test_a_compacted_topic_wants_keys(store: Directory) -> None:
    store.create_topic("table", options={"cleanup.policy": "compact"})
    with Producer(store) as producer:
        with pytest.raises(InvalidRecordError, match="needs a key"):
            producer.send("table", b"v")
        with pytest.raises(InvalidRecordError, match="needs a key"):
            producer.send_many("table", [b"v", b"w"], keys=[b"k", None])
        producer.send("table", b"v", key=b"")
    assert values(store, "table") == [[b"v"]]


@pytest.mark.parametrize(
    "options",
    [
        {"linger": -1},
        {"linger": "soon"},
        {"compression": "zip"},
        {"batch_size": 0},
        {"buffer_memory": 10},
        {"max_block": -1},
    ],
)
def test_options_out_of_range(store: Directory, options: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=next(iter(options))):
        Producer(store, **options)


def test_a_read_only_store_and_internal_topics(store: Directory) -> None:
    with Directory.open(store.root, read_only=True) as reader, pytest.raises(NotSupportedError, match="read_only"):
        Producer(reader)
    store.internal_topic("__consumer_offsets")
    with Producer(store) as producer, pytest.raises(NotSupportedError, match="internal"):
        producer.send("__consumer_offsets", b"v", key=b"k")


# --- topics that change -----------------------------------------------------------------------------------------------


def test_partitions_that_are_added_are_seen(store: Directory) -> None:
    with Producer(store) as producer:
        producer.send("one", b"a").result()
        store.add_partitions("one", 3)
        assert producer.send("one", b"b", partition=2).result().partition == 2
        keys = [b"%d" % i for i in range(20)]
        for key in keys:
            assert producer.send("one", b"", key=key).result().partition == partition_for_key(key, 3)


def test_partitions_that_are_added_are_seen_though_a_look_failed(
    store: Directory, monkeypatch: pytest.MonkeyPatch
) -> None:
    describe, refused = DirectoryCatalog.describe, []

    def refuse(catalog: DirectoryCatalog, topic: str) -> Any:
        refused.append(topic)
        if topic == "one":
            raise StorageError("could not examine config: Input/output error", errno.EIO)
        return describe(catalog, topic)

    with Producer(store) as producer:
        for topic in ("one", "orders"):
            producer.send(topic, b"x").result(5)
        for topic in ("one", "orders"):
            store.add_partitions(topic, 5)
        with monkeypatch.context() as patched:
            patched.setattr(DirectoryCatalog, "describe", refuse)
            with pytest.raises(StorageError, match="could not examine"):
                producer.send("one", b"y", partition=4)
        assert refused == ["one", "orders"], "one that cannot be looked at keeps nobody from the others"
        assert producer.send("one", b"y", partition=4).result(5).partition == 4
        assert producer.send("orders", b"y", partition=4).result(5).partition == 4


def test_a_topic_that_was_deleted(store: Directory) -> None:
    with Producer(store) as producer:
        producer.send("one", b"a").result()
        store.delete_topic("one")
        with pytest.raises(UnknownTopicError):
            producer.send("one", b"b")
        with pytest.raises(UnknownTopicError):
            producer.send_many("one", [b"b"])
        store.create_topic("one", partitions=2)
        assert producer.send("one", b"c", partition=1).result().offset == 0
    assert values(store, "one") == [[], [b"c"]]


@pytest.mark.parametrize("at_once", [False, True], ids=["send", "send_many"])
def test_a_topic_that_was_created_anew_with_more_partitions(store: Directory, at_once: bool) -> None:
    with Producer(store) as sender:
        sender.send("one", b"old", partition=0).result(10)
        store.delete_topic("one")
        store.create_topic("one", 3)
        if at_once:
            assert [told.offset for told in sender.send_many("one", [b"new"], partition=2).result(10)] == [0]
        else:
            assert sender.send("one", b"new", partition=2).result(10).offset == 0
        with pytest.raises(fastlog.InvalidRecordError, match="0 to 2"):
            sender.send("one", b"new", partition=3)


def test_what_waits_for_a_topic_that_is_deleted_fails(store: Directory) -> None:
    with Producer(store, linger=60) as producer:
        delivery = producer.send("one", b"a")
        store.delete_topic("one")
        store.create_topic("one")
        with pytest.raises(UnknownTopicError, match="deleted"):
            producer.flush()
        assert isinstance(delivery.exception(), UnknownTopicError)
    assert values(store, "one") == [[]]


# --- deliveries -------------------------------------------------------------------------------------------------------


def test_deliveries_are_made_by_the_producer_only() -> None:
    with pytest.raises(TypeError):
        fastlog._core.Delivery()
    with pytest.raises(TypeError):
        fastlog._core.BatchDelivery()


def test_result_gives_up_after_its_timeout(store: Directory) -> None:
    with Producer(store, linger=60) as producer:
        delivery = producer.send("one", b"v")
        begun = time.monotonic()
        with pytest.raises(DeliveryTimeoutError, match="still on its way"):
            delivery.result(timeout=0.05)
        with pytest.raises(TimeoutError):
            delivery.exception(timeout="10ms")
        assert 0.05 < time.monotonic() - begun < 5
        assert not delivery.done()
        assert "pending" in repr(delivery)
        producer.flush()
        assert delivery.result(0).offset == 0


def test_callbacks_run_once_in_the_thread_of_the_producer(store: Directory) -> None:
    calls: list[tuple[Any, str]] = []

    def note(delivery: Any) -> None:
        calls.append((delivery, threading.current_thread().name))

    with Producer(store, linger=60) as producer:
        first, second = producer.send("one", b"a"), producer.send("one", b"b")
        first.add_done_callback(note)
        second.add_done_callback(note)
        many = producer.send_many("one", [b"c"] * 3)
        many.add_done_callback(note)
        producer.flush()
        assert calls == [(first, "fastlog-producer"), (second, "fastlog-producer"), (many, "fastlog-producer")]
        first.add_done_callback(note)
        assert calls[3] == (first, threading.current_thread().name)


def test_a_callback_that_fails_is_logged_and_harms_nobody(store: Directory, caplog: pytest.LogCaptureFixture) -> None:
    done = threading.Event()

    def fail(_: Any) -> None:
        raise RuntimeError("of the callback")

    with Producer(store, linger=60) as producer, caplog.at_level(logging.ERROR, "fastlog.producer"):
        delivery = producer.send("one", b"a")
        delivery.add_done_callback(fail)
        delivery.add_done_callback(lambda _: done.set())
        producer.flush()
        assert done.wait(5)
        assert delivery.result().offset == 0
    assert "of the callback" in caplog.text


def test_a_callback_must_not_wait_for_its_own_thread(store: Directory) -> None:
    refused: list[BaseException] = []

    def wait(producer: Producer) -> None:
        for call in (producer.wait_until_sent, producer.send("one", b"b").result):
            try:
                call()
            except NotSupportedError as error:
                refused.append(error)

    with Producer(store, linger=60) as producer:
        delivery = producer.send("one", b"a")
        delivery.add_done_callback(lambda _: wait(producer))
        producer.flush()
    assert len(refused) == 2
    assert values(store, "one") == [[b"a", b"b"]]


def test_a_callback_may_send_and_close(store: Directory) -> None:
    producer = Producer(store, linger=60)
    delivery = producer.send("one", b"a")
    delivery.add_done_callback(lambda _: producer.send("one", b"b"))
    delivery.add_done_callback(lambda _: producer.close())
    producer.wait_until_sent(10)
    producer.close()
    assert values(store, "one") == [[b"a", b"b"]]


# --- many at a time ---------------------------------------------------------------------------------------------------


def test_send_many_to_one_partition(store: Directory) -> None:
    with Producer(store) as producer:
        sent = producer.send_many(
            "orders", [b"a", None, b"c"], timestamps=[1, 2, -1], headers=[None, {"h": b"x"}, None]
        )
        found = sent.result()
        assert isinstance(found, BatchMetadata)
        assert (len(sent), len(found), found.topic) == (3, 3, "orders")
        assert len(set(found.partitions.tolist())) == 1
        assert found.offsets.tolist() == [0, 1, 2]
        assert found.timestamps.tolist() == [1, 2, -1]
        assert found[1] == RecordMetadata("orders", int(found.partitions[0]), 1, 2)
        assert list(found)[2] == found[2]
        assert sent.done()
    records = stored(store, "orders", int(found.partitions[0]))
    assert [(r.value, r.timestamp) for r in records] == [(b"a", 1), (None, 2), (b"c", None)]
    assert records[1].headers == Headers({"h": b"x"})


@pytest.mark.parametrize("kind", ["list", "numpy", "arrow"])
def test_send_many_splits_by_key(store: Directory, kind: str) -> None:
    keys: Any = [b"key-%d" % (i % 37) for i in range(1000)]
    sent_values: Any = [b"value-%d" % i for i in range(1000)]
    plain = list(zip(keys, sent_values, strict=True))
    if kind == "numpy":
        keys, sent_values = numpy.array(keys), numpy.array(sent_values)
    elif kind == "arrow":
        pyarrow = pytest.importorskip("pyarrow")
        keys, sent_values = pyarrow.array(keys), pyarrow.array(sent_values)
    with Producer(store) as producer:
        found = producer.send_many("orders", sent_values, keys=keys, timestamps=list(range(1000))).result()
    for partition in range(4):
        records = stored(store, "orders", partition)
        mine = [i for i, (key, _) in enumerate(plain) if partition_for_key(key, 4) == partition]
        assert [(r.key, r.value) for r in records] == [plain[i] for i in mine]
        assert [r.timestamp for r in records] == mine
        assert found.offsets[mine].tolist() == list(range(len(mine)))
        assert set(found.partitions[mine].tolist()) <= {partition}


def test_send_many_keeps_order_with_send(store: Directory) -> None:
    with Producer(store, linger=60) as producer:
        producer.send("one", b"0")
        producer.send_many("one", [b"1", b"2"])
        producer.send("one", b"3")
        producer.send_many("one", [b"4"], keys=[b"k"])
    assert values(store, "one") == [[b"0", b"1", b"2", b"3", b"4"]]


def test_send_many_larger_than_the_buffer(store: Directory) -> None:
    sent_values = [b"%d-" % i + b"x" * (i * 37 % 900) for i in range(5000)]
    with Producer(store, buffer_memory="64KiB", batch_size=4000) as producer:
        assert producer.send_many("one", sent_values).result(30).offsets.tolist() == list(range(5000))
        keyed = producer.send_many("orders", sent_values, keys=sent_values).result(30)
        assert producer.buffered_bytes == 0
    assert values(store, "one") == [sent_values]
    assert sorted(value or b"" for part in values(store, "orders") for value in part) == sorted(sent_values)
    assert len(keyed) == 5000


def test_send_many_of_nothing_and_of_what_does_not_fit_together(store: Directory) -> None:
    with Producer(store) as producer:
        empty = producer.send_many("one", [])
        assert empty.done()
        assert len(empty.result()) == 0
        with pytest.raises(InvalidRecordError, match="2 values but 1 keys"):
            producer.send_many("one", [b"a", b"b"], keys=[b"k"])
        with pytest.raises(InvalidRecordError, match="headers"):
            producer.send_many("one", [b"a", b"b"], headers=[None])
        with pytest.raises(InvalidRecordError, match="one bytes"):
            producer.send_many("one", b"a")
        with pytest.raises(InvalidRecordError, match="ahead of the clock"):
            producer.send_many("one", [b"a"], timestamps=[1 << 50])
        with pytest.raises(UnknownTopicError):
            producer.send_many("two", [b"a"])
    assert values(store, "one") == [[]]


# --- load makes the batches -------------------------------------------------------------------------------------------


def test_fewer_appends_than_records_under_load(store: Directory) -> None:
    with Producer(store) as producer:
        for i in range(20_000):
            producer.send("one", b"%d" % i)
        producer.flush()
        assert producer.counts()["appends"] < 4000
    assert values(store, "one") == [[b"%d" % i for i in range(20_000)]]


def test_linger_waits_for_company_and_no_longer(store: Directory) -> None:
    with Producer(store, linger="600ms") as producer:
        begun = time.monotonic()
        sent = [producer.send("one", b"%d" % i) for i in range(10)]
        time.sleep(0.03)
        assert not sent[0].done()
        sent[0].result(10)
        assert 0.59 < time.monotonic() - begun < 5
        assert all(delivery.done() for delivery in sent)
        assert producer.counts()["appends"] == 1


@pytest.mark.parametrize("codec", ["gzip", "snappy", "lz4", "zstd"])
def test_compression(store: Directory, codec: str) -> None:
    with Producer(store, compression=codec, linger=60) as producer:
        for i in range(1000):
            producer.send("one", b"always the same words, and %d" % (i % 3), key=b"k", headers={"h": b"x"})
        incompressible = os.urandom(5000)
        producer.flush()
        producer.send("one", incompressible)
        producer.send_many("one", [b"z" * 500] * 10)
    records = stored(store, "one")
    assert records[1000].value == incompressible
    assert [r.value for r in records[:3]] == [b"always the same words, and %d" % i for i in range(3)]
    assert len(records) == 1011
    assert store.partition_log("one", 0).segments()[0].size < 40_000


# --- closing ----------------------------------------------------------------------------------------------------------


def test_a_closed_producer(store: Directory) -> None:
    producer = Producer(store)
    producer.send("one", b"v")
    producer.close()
    producer.close()
    assert producer.closed
    for call in (lambda: producer.send("one", b"v"), lambda: producer.send_many("one", [b"v"]), producer.flush):
        with pytest.raises(ClosedError):
            call()
    assert values(store, "one") == [[b"v"]]


@pytest.mark.parametrize("number", [errno.ENOMEM, errno.EMFILE])
def test_what_fails_once_for_want_of_something_is_sent_again_in_order(store: Directory, number: int) -> None:
    store.create_topic("small", options={"segment.bytes": 4000})
    sent = []
    with Producer(store, batch_size=1000) as producer:
        for round in range(20):
            # first where a partition is opened, then where a segment begins
            oscalls.inject("open", errno=number)
            sent += [producer.send("small", b"%04d" % (100 * round + i)) for i in range(100)]
            producer.flush(timeout=60)
            assert round or oscalls.injected() == 1
            oscalls.clear()
        assert [delivery.result(0).offset for delivery in sent] == list(range(2000))
    assert values(store, "small") == [[b"%04d" % number for number in range(2000)]]


def test_what_finds_no_memory_is_sent_again(
    store: Directory, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    version, lease, missing = DirectoryCatalog.version, DirectoryCatalog.lease, ["version", "lease"]

    def find_none(what: str) -> None:
        if threading.current_thread().name == "fastlog-producer" and what in missing:
            missing.remove(what)
            raise MemoryError

    def look(catalog: DirectoryCatalog) -> int:
        find_none("version")
        return version(catalog)

    def open_one(catalog: DirectoryCatalog, topic: str, partition: int) -> Any:
        find_none("lease")
        return lease(catalog, topic, partition)

    with Producer(store) as producer:
        monkeypatch.setattr(DirectoryCatalog, "version", look)
        monkeypatch.setattr(DirectoryCatalog, "lease", open_one)
        assert producer.send("one", b"x").result(30).offset == 0
        assert not missing
    assert "what topics there are cannot be told" in caplog.text


def test_what_never_finds_memory_fails_in_the_end(store: Directory, monkeypatch: pytest.MonkeyPatch) -> None:
    def find_none(_: DirectoryCatalog, topic: str, partition: int) -> Any:
        raise MemoryError

    monkeypatch.setattr(DirectoryCatalog, "lease", find_none)
    with Producer(store, delivery_timeout="50ms") as producer:
        error = producer.send("one", b"x").exception(30)
        assert isinstance(error, DeliveryTimeoutError) and isinstance(error.__cause__, LockedError)
        assert "no memory left: leave this process more memory" in str(error)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_everybody_is_told_though_nothing_can_be_logged(store: Directory, monkeypatch: pytest.MonkeyPatch) -> None:
    """The thread of the producer ends then, but not before."""

    def fail(_: object) -> bool:
        raise ValueError("not today")

    def refuse(_: DirectoryCatalog, topic: str, partition: int) -> Any:
        raise StorageError("no disk", errno.EIO)

    logger, told = logging.getLogger("fastlog.producer"), []
    monkeypatch.setattr(DirectoryCatalog, "lease", refuse)
    producer = Producer(store, linger="10s")
    sent = [producer.send("orders", b"x", partition=number) for number in range(4)]
    sent += [producer.send_many("orders", [b"y"] * 10, partition=number) for number in range(4)]
    for delivery in sent:
        delivery.add_done_callback(told.append)
    logger.addFilter(fail)
    try:
        producer.flush(timeout=30)
        for delivery in sent:
            assert isinstance(delivery.exception(0), (StorageError, ValueError))
        deadline = time.monotonic() + 30
        while len(told) < len(sent):
            assert time.monotonic() < deadline, "some callbacks are not called"
            time.sleep(0.01)
        with pytest.raises(ClosedError):
            producer.send("orders", b"z")
        producer.close()
    finally:
        logger.removeFilter(fail)


def test_an_exception_in_the_block_is_the_one_that_is_raised(store: Directory) -> None:
    with pytest.raises(ZeroDivisionError), Producer(store, linger=60) as producer:
        producer.send("one", b"v")
        _ = 1 / 0
    assert values(store, "one") == [[b"v"]]


def test_a_producer_that_nobody_has_any_more_delivers_and_ends(store: Directory) -> None:
    before = threading.active_count()
    producer = Producer(store)
    producer.send("one", b"v")
    del producer
    gc.collect()
    deadline = time.monotonic() + 10
    while threading.active_count() > before and time.monotonic() < deadline:
        time.sleep(0.01)
    assert threading.active_count() <= before  # some of an earlier test may have ended meanwhile, too
    assert values(store, "one") == [[b"v"]]


# --- as part of a store -----------------------------------------------------------------------------------------------


def test_a_store_closes_its_producers(folder: Path) -> None:
    with fastlog.open(folder / "store", durability="os") as store:
        store.create_topic("one")
        producer = store.producer(linger=60)
        producer.send("one", b"v")
    assert producer.closed
    with fastlog.open(folder / "store", durability="os") as store:
        assert [r.value for r in store.topic("one").partition(0).records()] == [b"v"]


def test_transactions_of_a_producer(folder: Path) -> None:
    with fastlog.open(folder / "store", durability="os") as store:
        store.create_topic("one")
        with store.producer(transactional_id="pay-1") as producer:
            assert producer.transactional_id == "pay-1"
            with pytest.raises(TransactionError, match="no transaction is open"):
                producer.send("one", b"outside")
            with pytest.raises(TransactionError, match="no transaction is open"):
                producer.send_many("one", [b"outside"])
            for number in range(3):
                with producer.transaction() as transaction:
                    transaction.send("one", b"%d" % number)
                    transaction.send_many("one", [b"x"] * 2)
            with pytest.raises(ZeroDivisionError), producer.transaction() as transaction:
                transaction.send("one", b"aborted").result()
                _ = 1 / 0
            with pytest.raises(ZeroDivisionError), producer.transaction() as transaction:
                transaction.send("one", b"aborted in the buffer")
                _ = 1 / 0
        expected = [b"0", b"x", b"x", b"1", b"x", b"x", b"2", b"x", b"x"]
        assert [r.value for r in store.topic("one").partition(0).records()] == expected
        with store.producer() as producer, pytest.raises(TransactionError, match="transactional_id"):
            producer.transaction()


def test_a_delivery_that_fails_lets_the_commit_fail(folder: Path) -> None:
    with fastlog.open(folder / "store", durability="os") as store:
        store.create_topic("one", partitions=2)
        with store.producer(transactional_id="pay-1", linger=60) as producer:
            with pytest.raises(StorageFullError), producer.transaction() as transaction:
                delivery = transaction.send("one", b"a", partition=0)
                oscalls.inject("pwrite", 28)
                producer.wait_until_sent()
                assert isinstance(delivery.exception(), StorageFullError), "looking at it changes nothing"
                transaction.send("one", b"b", partition=1)
            with producer.transaction() as transaction:
                transaction.send("one", b"c", partition=0)
        assert [r.value for r in store.topic("one").partition(0).records()] == [b"c"]
        assert [r.value for r in store.topic("one").partition(1).records()] == []


def test_the_position_of_a_source(folder: Path) -> None:
    with fastlog.open(folder / "store", durability="os") as store:
        store.create_topic("one")
        with store.producer(source="flights.csv") as producer:
            assert producer.source_position() is None
            with producer.transaction() as transaction:
                transaction.send("one", b"line")
                transaction.commit_source(b"1")
        with store.producer(source="flights.csv") as producer:
            assert producer.source_position() == b"1"
        with pytest.raises(ConfigError, match="source"):
            store.producer(source="a", transactional_id="b")
