"""What objects of a store look like, are compared by and are copied as; and that asyncio passes everything on."""

from __future__ import annotations

import asyncio
import copy
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import fastlog
from fastlog import TopicPartition
from fastlog.errors import (
    ClosedError,
    ConfigError,
    InvalidTopicError,
    TopicExistsError,
    TransactionError,
)
from fastlog.records import Headers
from fastlog.store.directory import Directory


@pytest.fixture
def store(folder: Path) -> Iterator[Any]:
    with fastlog.open(folder / "store", durability="os") as opened:
        opened.create_topic("orders", partitions=2, config={"retention.ms": 60_000})
        yield opened


def test_what_a_store_looks_like(store: Any) -> None:
    assert repr(store) == f"<Store {store.path!r}>"
    assert repr(store.directory) == f"<Directory {store.path!r}>"
    topic = store.topic("orders")
    assert repr(topic) == "<Topic 'orders': 2 partitions>"
    read = topic.read(columns=["offset", "value"])
    assert read.columns == ("offset", "value")
    assert repr(read) == "<TopicRead of 'orders': offset, value>"
    with store.directory.lease("orders", 1) as lease:
        assert repr(lease) == "<Lease of orders-1>"
    assert repr(lease) == "<Lease of orders-1, released>"
    assert len(store.cluster_id) == 22
    with pytest.raises(TypeError):
        Directory()
    store.close()
    assert repr(store) == f"<Store {store.path!r}, closed>"
    assert repr(store.directory) == f"<Directory {store.path!r}, closed>"


def test_what_a_producer_looks_like(store: Any) -> None:
    producer = store.producer()
    sent = producer.send_many("orders", [b"v"] * 3, partition=1)
    assert len(sent.result(10)) == 3
    assert repr(sent) == "<BatchDelivery of 3 records to orders, done>"
    assert repr(sent.result()) == "<BatchMetadata of 3 records in orders>"
    assert repr(producer) == "<Producer: 3 records sent, 0 bytes buffered>"
    producer.close()
    assert repr(producer) == "<Producer: 3 records sent, closed>"


def test_headers_are_values() -> None:
    headers = Headers([("a", b"1"), ("b", None)])
    assert copy.copy(headers) == headers
    assert headers != [("a", b"1"), ("b", None)]
    assert headers != Headers([("a", b"1")])


def test_one_transaction_at_a_time(store: Any) -> None:
    with store.producer(transactional_id="t") as producer:
        used = producer.transaction()
        with used:
            producer.send("orders", b"v")
            with pytest.raises(TransactionError, match="is open"), producer.transaction():
                pass
        with pytest.raises(TransactionError, match="used once"), used:
            pass


def test_names_that_are_taken_and_numbers_that_make_no_sense(store: Any) -> None:
    for partitions in (0, True, "3", 10**9):
        with pytest.raises(InvalidTopicError, match="partitions="):
            store.create_topic("more", partitions=partitions)
    with pytest.raises(TopicExistsError):
        store.create_topic("orders")
    for durability in ("never", 5):
        with pytest.raises(ConfigError, match="durability="):
            fastlog.open(Path(store.path).parent / "other", durability=durability)
    with pytest.raises(ConfigError, match="isolation="):
        store.consumer("orders", isolation="serializable")
    with pytest.raises(ConfigError, match="isolation="):
        store.directory.lease("orders", 0, "serializable")
    with pytest.raises(ConfigError, match="out_of_range="):
        store.consumer("orders", out_of_range="first")
    with pytest.raises(ConfigError, match="expected a number"):
        store.create_topic("more", config={"min.cleanable.dirty.ratio": "much"})


def test_topics_of_fastlog_stay_as_they_are(store: Any) -> None:
    with store.consumer("orders", group="g") as consumer:
        consumer.poll(timeout=0)
        consumer.commit({TopicPartition("orders", 0): 0})
    [internal] = set(store.topics(internal=True)) - set(store.topics())
    with pytest.raises(InvalidTopicError, match="fastlog's own"):
        store.delete_topic(internal)
    with pytest.raises(InvalidTopicError, match="fastlog's own"):
        store.add_partitions(internal, 100)


# --- the twin ---------------------------------------------------------------------------------------------------------


def test_the_asyncio_store_passes_everything_on(folder: Path) -> None:
    async def main() -> None:
        opened = await fastlog.aio.open(folder / "store", durability="os")
        async with opened as store:
            same = store.synchronous
            assert (store.path, store.durability, store.read_only, store.cluster_id) == (
                same.path, same.durability, same.read_only, same.cluster_id,
            )  # fmt: skip
            assert repr(store) == f"<aio {same!r}>"
            await store.create_topic("orders", 1)
            await store.alter_topic("orders", {"retention.ms": 60_000})
            await store.add_partitions("orders", 2)
            topic = await store.topic("orders")
            twin = same.topic("orders")
            assert len(topic) == topic.partitions == twin.partitions == 2
            assert (topic.topic_id, topic.config, topic.owner) == (twin.topic_id, twin.config, None)
            assert topic.config["retention.ms"] == 60_000
            assert repr(topic) == f"<aio {twin!r}>"
            producer = await store.producer()
            async with producer:
                sent = await producer.send_many("orders", [b"%d" % i for i in range(20)], partition=1)
                await sent
                assert repr(sent) == "<aio <BatchDelivery of 20 records to orders, done>>"
                assert producer.counts()["records"] == 20
                assert producer.buffered_bytes == 0
                assert repr(producer) == "<aio <Producer: 20 records sent, 0 bytes buffered>>"
            log = await topic.partition(1)
            assert log.end_offset == 20
            read = topic.read(columns=["value"], partitions=[1])
            assert read.columns == ("value",)
            assert repr(read).startswith("<aio <TopicRead of ")
            assert [value async for batch in read for value in batch.values.to_list()] == [b"%d" % i for i in range(20)]
            await consume(store)
            assert await store.groups() == same.groups() == ["readers"]
            ends = {TopicPartition("orders", 1): 0}
            lag = await store.group_lag("readers", ["orders"])
            assert {name: one.records for name, one in lag.items()} | ends == {
                TopicPartition("orders", 0): 0, TopicPartition("orders", 1): 0,
            }  # fmt: skip
            reset = await store.reset_offsets("readers", to="earliest")
            assert reset[TopicPartition("orders", 1)].offset == 0
            await store.delete_group("readers")
            assert await store.groups() == []
            assert set(await store.maintain(["orders"])) == {TopicPartition("orders", 0), TopicPartition("orders", 1)}
            report = await store.backup(folder / "copy")
            assert report.partitions >= 2
        assert store.closed
        with pytest.raises(ClosedError):
            await store.groups()

    async def consume(store: Any) -> None:
        opened = await store.consumer("orders", group="readers", start="earliest")
        async with opened as consumer:
            assert consumer.group == "readers"
            assert consumer.membership is not None
            assert not consumer.is_enlisted
            with pytest.raises(ConfigError, match="max_records=0"):
                await consumer.poll(max_records=0)
            assert len(await consumer.poll(timeout=10)) == 20
            one = TopicPartition("orders", 1)
            assert (await consumer.offsets_in_hand())[one].offset == 20
            assert await consumer.beginning_offsets([one]) == {one: 0}
            assert await consumer.end_offsets([one]) == {one: 20}
            await consumer.seek_to_beginning(one)
            assert await consumer.position(one) == 0
            await consumer.seek_to_end(one)
            assert await consumer.position(one) == 20
            await consumer.commit()
            await consumer.rewind()
            assert await consumer.position(one) == 20
            assert repr(consumer).startswith("<aio ")
            await consumer.enlist()
            assert consumer.is_enlisted

    asyncio.run(asyncio.wait_for(main(), 60))
    with fastlog.open(folder / "copy", durability="os") as copied:
        assert copied.topic("orders").partition(1).end_offset == 20
