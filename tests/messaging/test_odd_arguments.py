"""Arguments that make no sense: errors of fastlog that say what was expected."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import fastlog
from fastlog import TopicPartition

ODD: list[Callable[[Any, Any, Any], object]] = [
    lambda store, producer, consumer: store.topic(None),
    lambda store, producer, consumer: store.delete_topic(bytearray(b"x")),
    lambda store, producer, consumer: store.maintain([None]),
    lambda store, producer, consumer: store.producer(linger=math.nan),
    lambda store, producer, consumer: store.producer(max_block=math.inf),
    lambda store, producer, consumer: producer.flush(math.nan),
    lambda store, producer, consumer: producer.flush(2**70),
    lambda store, producer, consumer: producer.close(math.inf),
    lambda store, producer, consumer: store.consumer("lines", group="h", client_id=b"x"),
    lambda store, producer, consumer: store.consumer("lines", group="h", instance_id={}),
    lambda store, producer, consumer: consumer.poll(timeout=math.nan),
    lambda store, producer, consumer: consumer.poll(max_records=None),
    lambda store, producer, consumer: consumer.seek("lines", 0, offset=2**63),
    lambda store, producer, consumer: consumer.commit({TopicPartition("lines", 0): 2**63}),
    lambda store, producer, consumer: consumer.commit({"lines": 1}),
    lambda store, producer, consumer: consumer.committed([None]),
    lambda store, producer, consumer: consumer.pause(None),
    lambda store, producer, consumer: store.describe_group(None),
    lambda store, producer, consumer: store.group_lag(b"g"),
    lambda store, producer, consumer: store.reset_offsets("\ud800", to="earliest"),
    lambda store, producer, consumer: store.delete_group(""),
    lambda store, producer, consumer: store.consumer("lines", group="\ud800"),
    lambda store, producer, consumer: store.describe_group([]),
    lambda store, producer, consumer: store.group_lag({}),
]


def test_each_is_told_by_an_error_of_fastlog(tmp_path: Path) -> None:
    with fastlog.open(tmp_path / "store", durability="os") as store:
        store.create_topic("lines")
        producer, consumer = store.producer(), store.consumer("lines", group="g")
        for number, call in enumerate(ODD):
            try:
                call(store, producer, consumer)
            except fastlog.Error:
                continue
            pytest.fail(f"number {number} was taken as it is")
        assert not producer.closed


@pytest.mark.parametrize("position", [None, 3, "3"])
def test_the_position_of_a_source_is_bytes(tmp_path: Path, position: Any) -> None:
    with fastlog.open(tmp_path / "store", durability="os") as store, store.producer(source="lines") as producer:
        with producer.transaction() as transaction, pytest.raises(fastlog.InvalidRecordError, match="bytes"):
            transaction.commit_source(position)
        assert producer.source_position() is None


def test_an_unknown_topic_is_told_without_internal_ones(tmp_path: Path) -> None:
    with fastlog.open(tmp_path / "store", durability="os") as store:
        for name in ("lines", "orders"):
            store.create_topic(name)
        store.directory.internal_topic("__consumer_offsets")
        with pytest.raises(fastlog.UnknownTopicError) as caught:
            store.topic("nope")
        assert str(caught.value) == "there is no topic 'nope': there are 'lines', 'orders'; create_topic makes one"


def test_a_committed_record_stays_committed(tmp_path: Path) -> None:
    """What is committed of the record in hand is not taken back when the consumer is closed."""
    with fastlog.open(tmp_path / "store", durability="os") as store:
        store.create_topic("lines")
        with store.producer() as producer:
            producer.send_many("lines", [b"%d" % number for number in range(10)])
        consumer = store.consumer("lines", group="g", start="earliest")
        for record in consumer:
            if record.offset == 4:
                consumer.commit(record)
                consumer.close()
        with store.consumer("lines", group="g") as consumer:
            assert consumer.poll(timeout=5)[0].offset == 5


def test_a_lower_commit_does_not_hide_what_is_finished(tmp_path: Path) -> None:
    with fastlog.open(tmp_path / "store", durability="os") as store:
        store.create_topic("lines")
        with store.producer() as producer:
            producer.send_many("lines", [b"%d" % number for number in range(10)])
        with store.consumer("lines", group="g", start="earliest", auto_commit_interval="1h") as consumer:
            assert len(consumer.poll(timeout=5)) == 10
            assert consumer.poll(timeout=0) == []
            consumer.commit({TopicPartition("lines", 0): 3})
        with store.consumer("lines", group="g") as consumer:
            assert consumer.position("lines", 0) == 10


def test_a_backup_of_a_store(tmp_path: Path) -> None:
    with fastlog.open(tmp_path / "store", durability="os") as store:
        store.create_topic("lines")
        with store.producer() as producer:
            producer.send("lines", b"v")
        report = store.backup(tmp_path / "copy")
        assert report.path == str(tmp_path / "copy")
    with fastlog.open(tmp_path / "copy", read_only=True) as copy:
        assert [record.value for record in copy.topic("lines").partition(0).records()] == [b"v"]
