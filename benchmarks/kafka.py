"""Apache Kafka as a contestant: one broker on this machine, and confluent-kafka (librdkafka) as its client.

The broker runs with the heap, collector and threads that Kafka's own start script and defaults give it. Its clients
get what makes them fast: ``acks=1``, no idempotence (fastlog's producers are idempotent), queues that hold a whole
round, connections made and topics known before anything is timed. ``acks=1`` answers from the page cache, as ``os``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import count
from pathlib import Path
from time import monotonic
from typing import Any

import confluent_kafka
from confluent_kafka.admin import AdminClient, NewTopic

from benchmarks.contest import Prepare, Work, expect
from benchmarks.workload import KEYED_PARTITIONS, RECORDS_PER_TRANSACTION, VALUE_BYTES, Stage, calls, keys
from tests.oracle.broker import KafkaBroker
from tests.oracle.kafka import OracleUnavailable

__all__ = ["OracleUnavailable", "running_broker"]

_JAVA_FLAGS = (
    *("-server", "-Xms1g", "-Xmx1g", "-XX:+UseG1GC", "-XX:MaxGCPauseMillis=20"),
    *("-XX:InitiatingHeapOccupancyPercent=35", "-XX:+ExplicitGCInvokesConcurrent"),
)
_SETTINGS = {"num.network.threads": 3, "num.io.threads": 8, "background.threads": 10,
             "group.initial.rebalance.delay.ms": 0}  # fmt: skip
_PATIENCE_S = 60
_numbers = count(1)
_filled: dict[tuple[str, int], str] = {}


@contextmanager
def running_broker(folder: Path) -> Iterator[str]:
    """Start a broker that keeps its topics in ``folder``; its address. Raises OracleUnavailable without Java."""
    with KafkaBroker(folder, _JAVA_FLAGS, _SETTINGS) as broker:
        broker.start()
        yield broker.bootstrap


def new_topic(address: str, partitions: int = 1) -> str:
    """Create a topic with a name of its own."""
    name = f"topic-{next(_numbers)}"
    admin = AdminClient({"bootstrap.servers": address})  # which has to live until the answer is there
    admin.create_topics([NewTopic(name, partitions, 1)])[name].result(_PATIENCE_S)
    return name


def _producer(address: str, **options: object) -> Any:
    config = {"bootstrap.servers": address, "acks": 1, "queue.buffering.max.messages": 10_000_000,
              "queue.buffering.max.kbytes": 2_000_000, "partitioner": "murmur2_random"}  # fmt: skip
    return confluent_kafka.Producer(config | {name.replace("_", "."): value for name, value in options.items()})


def _consumer(address: str, **options: object) -> Any:
    config = {"bootstrap.servers": address, "group.id": f"group-{next(_numbers)}", "enable.auto.commit": False,
              "check.crcs": True}  # fmt: skip
    return confluent_kafka.Consumer(config | {name.replace("_", "."): value for name, value in options.items()})


def _stored(consumer: Any, topic: str, partitions: int) -> int:
    """How many records the topic has."""
    total = 0
    for number in range(partitions):
        low, high = consumer.get_watermark_offsets(confluent_kafka.TopicPartition(topic, number), timeout=_PATIENCE_S)
        total += high - low
    return total


def _expect_stored(address: str, topic: str, partitions: int, total: int) -> None:
    consumer = _consumer(address)
    try:
        found = _stored(consumer, topic, partitions)
        expect(found == total, found, total, "records in Kafka after the round")
    finally:
        consumer.close()


# --- producing --------------------------------------------------------------------------------------------------------


def produce(*, keyed: bool, delivered: bool) -> Prepare:
    """``produce`` per record; with ``delivered`` until the broker has them all, else the calls alone."""

    @contextmanager
    def prepare(stage: Stage) -> Iterator[Work]:
        total, partitions = stage.sizes.sent_records, KEYED_PARTITIONS if keyed else 1
        topic, lists, names = new_topic(stage.kafka, partitions), list(calls(total, VALUE_BYTES)), keys()
        producer = _producer(stage.kafka)
        producer.list_topics(topic, timeout=_PATIENCE_S)

        def work() -> int:
            call = producer.produce
            for values in lists:
                if keyed:
                    for value, key in zip(values, names, strict=True):
                        call(topic, value, key)
                else:
                    for value in values:
                        call(topic, value)
            if delivered:
                producer.flush(_PATIENCE_S)
            return total

        yield work
        left = producer.flush(_PATIENCE_S)
        expect(left == 0, left, 0, "records that were not delivered")
        _expect_stored(stage.kafka, topic, partitions, total)

    return prepare


# --- consuming --------------------------------------------------------------------------------------------------------


def _filled_topic(stage: Stage, records: int) -> str:
    """A topic of one partition that holds ``records`` records, filled once per broker."""
    place = (stage.kafka, records)
    if place not in _filled:
        topic = new_topic(stage.kafka)
        producer = _producer(stage.kafka)
        for values in calls(records, VALUE_BYTES):
            for value in values:
                producer.produce(topic, value)
        expect(producer.flush(_PATIENCE_S) == 0, "some", "none", "records that were not delivered")
        _filled[place] = topic
    return _filled[place]


def consume(read: Callable[[Any, int], int]) -> Prepare:
    """``read`` takes so many records from a consumer, whose first one has come before the time begins."""

    @contextmanager
    def prepare(stage: Stage) -> Iterator[Work]:
        total = stage.sizes.consumed_records
        consumer = _consumer(stage.kafka)
        try:
            topic = _filled_topic(stage, total)
            consumer.assign([confluent_kafka.TopicPartition(topic, 0, 0)])
            expect(consumer.poll(_PATIENCE_S) is not None, "nothing", "a record", "the first poll")
            yield lambda: read(consumer, total - 1) + 1
        finally:
            consumer.close()

    return prepare


def read_lists(consumer: Any, total: int) -> int:
    """``consume(500)``, which waits for so many; offset and value of each asked for."""
    found = 0
    while found < total:
        for message in consumer.consume(min(500, total - found), _PATIENCE_S):
            offset, value = message.offset(), message.value()  # noqa: F841 (as a program would)
            found += 1
    expect(offset == total, offset, total, "offset of the last record")
    return found


def read_singly(consumer: Any, total: int) -> int:
    """``poll()`` per record, offset and value of each asked for."""
    for _ in range(total):
        message = consumer.poll(_PATIENCE_S)
        offset, value = message.offset(), message.value()  # noqa: F841 (as a program would)
    expect(offset == total, offset, total, "offset of the last record")
    return total


# --- from one process to another --------------------------------------------------------------------------------------


def one_by_one(stage: Stage, topic: str) -> Callable[[bytes], None]:
    """What hands one record over at once, ``linger.ms=0``."""
    producer = _producer(stage.kafka, linger_ms=0)
    producer.list_topics(topic, timeout=_PATIENCE_S)

    def send(value: bytes) -> None:
        producer.produce(topic, value)

    return send


def moments_of_records(address: str, topic: str) -> Iterator[float]:
    """When each record of the topic was there, beginning with the first after the call."""
    consumer = _consumer(address)
    try:
        consumer.assign([confluent_kafka.TopicPartition(topic, 0, 0)])
        while True:
            if consumer.poll(_PATIENCE_S) is None:
                raise SystemExit("no record came")
            yield monotonic()
    finally:
        consumer.close()


# --- transactions and commits -----------------------------------------------------------------------------------------


@contextmanager
def transactions(stage: Stage) -> Iterator[Work]:
    """Begin, produce 100 records, commit."""
    total, topic = stage.sizes.transactions, new_topic(stage.kafka)
    values = next(calls(1000, VALUE_BYTES))[:RECORDS_PER_TRANSACTION]
    producer = _producer(stage.kafka, transactional_id=f"id-{next(_numbers)}", acks="all", linger_ms=0)
    producer.init_transactions(_PATIENCE_S)

    def work() -> int:
        for _ in range(total):
            producer.begin_transaction()
            for value in values:
                producer.produce(topic, value)
            producer.commit_transaction(_PATIENCE_S)
        return total

    yield work
    # each transaction ends with a marker, which has an offset
    _expect_stored(stage.kafka, topic, 1, total * (RECORDS_PER_TRANSACTION + 1))


@contextmanager
def commits(stage: Stage) -> Iterator[Work]:
    """Commit one partition's offset, waiting for the answer."""
    total, topic = max(100, stage.sizes.commits // 20), new_topic(stage.kafka)
    consumer = _consumer(stage.kafka)
    try:
        consumer.subscribe([topic])
        deadline = monotonic() + _PATIENCE_S
        while not consumer.assignment():
            consumer.poll(0.05)
            expect(monotonic() < deadline, "nothing", "a partition", "the assignment")
        place = confluent_kafka.TopicPartition(topic, 0, 0)
        consumer.commit(offsets=[place], asynchronous=False)

        def work() -> int:
            for offset in range(total):
                place.offset = offset
                consumer.commit(offsets=[place], asynchronous=False)
            return total

        yield work
        (found,) = consumer.committed([confluent_kafka.TopicPartition(topic, 0)], timeout=_PATIENCE_S)
        expect(found.offset == total - 1, found.offset, total - 1, "the offset committed last")
    finally:
        consumer.close()
