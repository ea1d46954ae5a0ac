"""fastlog as a contestant with topics: producers, consumers, transactions, commits. Durability ``os``, public face."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from time import monotonic, sleep
from typing import Any

import fastlog
from benchmarks import kafka
from benchmarks.contest import Prepare, Work, expect
from benchmarks.partners import partner
from benchmarks.workload import (
    KEYED_PARTITIONS,
    RECORDS_PER_TRANSACTION,
    VALUE_BYTES,
    VALUES_PER_CALL,
    Stage,
    calls,
    keys,
    value_lists,
)

TOPIC = "events"
# Long enough for either side's reader to be asleep, or to have its request at the broker.
_PAUSE_SECONDS = 0.002


def open_store(path: Path) -> fastlog.Store:
    return fastlog.open(path, durability="os")


def _stored(store: fastlog.Store, topic: str = TOPIC) -> int:
    """How many offsets the topic has."""
    found = store.topic(topic)
    return sum(found.partition(number).end_offset for number in range(found.partitions))


# --- producing --------------------------------------------------------------------------------------------------------


def send(*, keyed: bool, delivered: bool) -> Prepare:
    """``send`` per record; with ``delivered`` until all are in the log, else the calls alone, which may block."""

    @contextmanager
    def prepare(stage: Stage) -> Iterator[Work]:
        total, names = stage.sizes.sent_records, keys()
        lists = list(calls(total, VALUE_BYTES))
        with open_store(stage.directory / "store") as store:
            store.create_topic(TOPIC, KEYED_PARTITIONS if keyed else 1)
            with store.producer() as producer:

                def work() -> int:
                    call = producer.send
                    for values in lists:
                        if keyed:
                            for value, key in zip(values, names, strict=True):
                                call(TOPIC, value, key)
                        else:
                            for value in values:
                                call(TOPIC, value)
                    if delivered:
                        producer.flush()
                    return total

                yield work
            found = _stored(store)
            expect(found == total, found, total, "records after the round")

    return prepare


@contextmanager
def send_many(stage: Stage) -> Iterator[Work]:
    """A list of 1000 values per call, until all are in the log."""
    total = stage.sizes.append_records
    lists = list(calls(total, VALUE_BYTES))
    with open_store(stage.directory / "store") as store:
        store.create_topic(TOPIC)
        with store.producer() as producer:

            def work() -> int:
                for values in lists:
                    producer.send_many(TOPIC, values)
                producer.flush()
                return total

            yield work
        found = _stored(store)
        expect(found == total, found, total, "records after the round")


# --- consuming --------------------------------------------------------------------------------------------------------


def filled_store(stage: Stage) -> Path:
    """A store with a topic of one partition, 1000 records to a batch."""

    def build(path: Path) -> None:
        with open_store(path) as store:
            store.create_topic(TOPIC)
            log = store.topic(TOPIC).partition(0)
            for values in calls(stage.sizes.consumed_records, VALUE_BYTES):
                log.append(values)

    return stage.datasets.path("store", build)


def consume(read: Callable[[Any, int], int]) -> Prepare:
    """``read`` takes so many records from a consumer, whose first one has come before the time begins."""

    @contextmanager
    def prepare(stage: Stage) -> Iterator[Work]:
        total = stage.sizes.consumed_records
        with open_store(filled_store(stage)) as store, store.consumer(TOPIC, start="earliest") as consumer:
            expect(len(consumer.poll(1)) == 1, "nothing", "a record", "the first poll")
            yield lambda: read(consumer, total - 1) + 1

    return prepare


def read_iterated(consumer: Any, total: int) -> int:
    """Record by record, offset and value of each asked for."""
    for record in islice(consumer, total):
        offset, value = record.offset, record.value  # noqa: F841 (as a program would)
    expect(offset == total, offset, total, "offset of the last record")
    return total


def read_lists(consumer: Any, total: int) -> int:
    """``poll(500)``, offset and value of each asked for."""
    found = 0
    while found < total:
        for record in consumer.poll(500):
            offset, value = record.offset, record.value  # noqa: F841 (as a program would)
            found += 1
    expect(offset == total, offset, total, "offset of the last record")
    return found


def _columns(batches: Any, total: int) -> int:
    """All columns of so many records; returns how many there were."""
    found = 0
    for batch in batches:
        _ = batch.timestamps, batch.values.sizes
        found += len(batch.offsets)
        if found >= total:
            return found
    return found


@contextmanager
def consumer_batches(stage: Stage) -> Iterator[Work]:
    total = stage.sizes.consumed_records
    with open_store(filled_store(stage)) as store, store.consumer(TOPIC, start="earliest") as consumer:
        yield lambda: _checked(_columns(consumer.batches(), total), total)


@contextmanager
def log_batches(stage: Stage) -> Iterator[Work]:
    total = stage.sizes.consumed_records
    with open_store(filled_store(stage)) as store:
        log = store.topic(TOPIC).partition(0)
        yield lambda: _checked(_columns(log.batches(), total), total)


def _checked(found: int, total: int) -> int:
    expect(found == total, found, total, "records read")
    return found


# --- from one process to another --------------------------------------------------------------------------------------


@contextmanager
def deliver(stage: Stage) -> Iterator[Work]:
    """From just before ``send`` to when the consumer in another process has the record."""
    path = stage.directory / "store"
    with open_store(path) as store:
        store.create_topic(TOPIC)
        with (
            store.producer() as producer,
            _deliveries(stage, "consume-from-store", path, lambda value: producer.send(TOPIC, value)) as work,
        ):
            yield work


@contextmanager
def deliver_through_kafka(stage: Stage) -> Iterator[Work]:
    """From just before ``produce`` to when ``poll`` in another process has returned the record."""
    topic = kafka.new_topic(stage.kafka)
    with _deliveries(stage, "consume-from-kafka", f"{stage.kafka}/{topic}", kafka.one_by_one(stage, topic)) as work:
        yield work


@contextmanager
def _deliveries(stage: Stage, role: str, place: object, send: Callable[[bytes], object]) -> Iterator[Work]:
    hears, says = os.pipe()
    try:
        with partner(role, place, says, descriptors=(says,)) as reader:
            os.close(says)
            reader.say("1")
            _sent(hears, send)  # the first one makes connections, and changes that are events of their own
            json.loads(reader.hear())

            def work() -> int:
                times = stage.sizes.deliveries
                reader.say(str(times))
                began = [_sent(hears, send) for _ in range(times)]
                there = json.loads(reader.hear())
                taken = [then - now for now, then in zip(began, there, strict=True)]
                expect(min(taken) > 0, min(taken), "more than 0 s", "a record that came before it was sent")
                stage.samples.extend(taken)
                return times

            yield work
    finally:
        os.close(hears)


def _sent(hears: int, send: Callable[[bytes], object]) -> float:
    """Send a record when the reader says that it waits; the moment before."""
    expect(os.read(hears, 1) == b".", "nothing", "a sign", "a reader that is about to wait")
    sleep(_PAUSE_SECONDS)
    began = monotonic()
    send(value_lists(VALUE_BYTES)[0][0])
    return began


# --- transactions and commits -----------------------------------------------------------------------------------------


def transactions(*, many: bool) -> Prepare:
    """Begin, send 100 records one by one or as a list, commit."""

    @contextmanager
    def prepare(stage: Stage) -> Iterator[Work]:
        total, values = stage.sizes.transactions, value_lists(VALUE_BYTES)[0][:RECORDS_PER_TRANSACTION]
        with open_store(stage.directory / "store") as store:
            store.create_topic(TOPIC)
            with store.producer(transactional_id="importer") as producer:

                def work() -> int:
                    for _ in range(total):
                        with producer.transaction() as transaction:
                            if many:
                                transaction.send_many(TOPIC, values)
                            else:
                                for value in values:
                                    transaction.send(TOPIC, value)
                    return total

                yield work
            # each transaction ends with a marker, which has an offset
            found, expected = _stored(store), total * (RECORDS_PER_TRANSACTION + 1)
            expect(found == expected, found, expected, "offsets after the round")

    return prepare


@contextmanager
def commits(stage: Stage) -> Iterator[Work]:
    """Commit one partition's offset."""
    total, place = stage.sizes.commits, fastlog.TopicPartition(TOPIC, 0)
    with open_store(stage.directory / "store") as store:
        store.create_topic(TOPIC)
        store.topic(TOPIC).partition(0).append(value_lists(VALUE_BYTES)[0][:VALUES_PER_CALL])
        with store.consumer(TOPIC, group="readers", start="earliest", auto_commit=False) as consumer:
            expect(len(consumer.poll(1)) == 1, "nothing", "a record", "the first poll")

            def work() -> int:
                for offset in range(total):
                    consumer.commit({place: offset})
                return total

            yield work
            found = consumer.committed([place])[place]
            expect(found is not None and found.offset == total - 1, found, total - 1, "the offset committed last")
