"""Arguments that make no sense: errors of fastlog that say what was expected."""

from __future__ import annotations

import asyncio
import fcntl
import math
from collections.abc import Callable
from contextlib import ExitStack
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest

import fastlog
import fastlog.aio
from fastlog import OffsetAndMetadata, TopicPartition

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
    lambda store, producer, consumer: store.group_lag("g", topics=5),
    lambda store, producer, consumer: store.maintain("lines"),
    lambda store, producer, consumer: store.create_topic("more", config=b"x"),
    lambda store, producer, consumer: store.create_topic("more", config={5: 5}),
    lambda store, producer, consumer: store.alter_topic("lines", config=None),
    lambda store, producer, consumer: store.backup(None),
    lambda store, producer, consumer: fastlog.open(None),
    lambda store, producer, consumer: fastlog.open("a\0b"),
    lambda store, producer, consumer: fastlog.PartitionLog.open(None),
    lambda store, producer, consumer: fastlog.open("\ud800"),
    lambda store, producer, consumer: store.topic("lines").partition(bytearray(b"0")),
    lambda store, producer, consumer: store.topic("lines").partition(True),
    lambda store, producer, consumer: store.topic("lines").read(partitions=0),
    lambda store, producer, consumer: store.topic("lines").read(columns=5),
    lambda store, producer, consumer: store.producer(batch_size=2**63),
    lambda store, producer, consumer: store.producer(buffer_memory="1" * 400 + "GiB"),
    lambda store, producer, consumer: store.producer(transactional_id="\ud800"),
    lambda store, producer, consumer: store.producer(transactional_id=b"x"),
    lambda store, producer, consumer: store.producer(source="\ud800"),
    lambda store, producer, consumer: store.producer(source=5),
    lambda store, producer, consumer: producer.send_many("lines", TopicPartition("lines", 0)),
    lambda store, producer, consumer: store.consumer(None),
    lambda store, producer, consumer: store.consumer(b"lines"),
    lambda store, producer, consumer: store.consumer("lines", partitions=5),
    lambda store, producer, consumer: store.consumer("lines", partitions=[None]),
    lambda store, producer, consumer: store.consumer("lines", partitions=[("lines",)]),
    lambda store, producer, consumer: store.consumer("lines", partitions=[True]),
    lambda store, producer, consumer: store.consumer("lines", fetch_bytes=2**63),
    lambda store, producer, consumer: store.consumer("lines", group="h", assignor=bytearray(b"range")),
    lambda store, producer, consumer: store.consumer("lines", group="h", instance_id="\ud800"),
    lambda store, producer, consumer: consumer.poll(max_records=2**70, timeout=0),
    lambda store, producer, consumer: consumer.records(until={TopicPartition("lines", 0): "x"}),
    lambda store, producer, consumer: consumer.records(until={"lines": 5}),
    lambda store, producer, consumer: consumer.position(("lines",)),
    lambda store, producer, consumer: consumer.end_offsets(5),
    lambda store, producer, consumer: consumer.commit({TopicPartition("lines", 0): OffsetAndMetadata(0, b"x")}),
    lambda store, producer, consumer: consumer.commit({TopicPartition("lines", 0): OffsetAndMetadata(0, "\ud800")}),
    lambda store, producer, consumer: consumer.commit({TopicPartition("lines", 0): OffsetAndMetadata(0, "", "x")}),
    lambda store, producer, consumer: consumer.commit({TopicPartition("lines", 0): OffsetAndMetadata(0, "", -1, -1)}),
    lambda store, producer, consumer: store.reset_offsets("h", ["lines"], to=None),
    lambda store, producer, consumer: store.reset_offsets("h", ["lines"], to="yesterday"),
    lambda store, producer, consumer: store.reset_offsets("h", ["lines"], to=-1),
    lambda store, producer, consumer: store.reset_offsets("h", ["lines"], to=datetime(2026, 1, 1)),
    lambda store, producer, consumer: store.reset_offsets("h", to={TopicPartition("lines", 0): "x"}),
    lambda store, producer, consumer: store.reset_offsets("h", to={"lines": 1}),
    lambda store, producer, consumer: store.reset_offsets("h", "lines", to="earliest"),
    lambda store, producer, consumer: store.reset_offsets("h", 5, to="earliest"),
    lambda store, producer, consumer: store.reset_offsets("h", [5], to="earliest"),
    lambda store, producer, consumer: store.reset_offsets("h", to="earliest"),
    lambda store, producer, consumer: store.delete_group("h"),
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


def test_transactions_take_consumers_and_offsets_only(tmp_path: Path) -> None:
    with (
        fastlog.open(tmp_path / "store", durability="os") as store,
        store.producer(transactional_id="pay") as producer,
    ):
        store.create_topic("lines")
        with pytest.raises(fastlog.ConfigError, match="expected a consumer"):
            producer.transaction(b"x")
        with store.consumer("lines", group="g") as consumer:
            for odd in (5, {"lines": 1}, {TopicPartition("lines", 0): "x"}):
                with producer.transaction(consumer) as transaction:
                    with pytest.raises(fastlog.ConfigError, match="expected"):
                        transaction.commit_offsets(odd)  # type: ignore[arg-type]
                    transaction.abort()


def test_transactions_of_asyncio_take_its_own_consumers(tmp_path: Path) -> None:
    async def ask(other: fastlog.Store) -> None:
        async with (
            fastlog.aio.open(tmp_path / "store", durability="os") as store,
            store.producer(transactional_id="pay") as producer,
        ):
            for odd in (b"x", other.consumer("lines", group="g")):
                with pytest.raises(fastlog.ConfigError, match=r"expected a consumer of fastlog\.aio"):
                    producer.transaction(odd)  # type: ignore[arg-type]

    with fastlog.open(tmp_path / "other", durability="os") as other:
        other.create_topic("lines")
        asyncio.run(ask(other))


@pytest.mark.parametrize("role", ["value", "key"])
def test_one_value_is_named_without_a_number(tmp_path: Path, role: str) -> None:
    with fastlog.open(tmp_path / "store", durability="os") as store, store.producer() as producer:
        store.create_topic("lines")
        for odd, found in (("text", "is a str"), (5, "is a int"), (memoryview(b"abcd")[::2], "cannot be read")):
            with pytest.raises(fastlog.InvalidRecordError, match=rf"^{role} .*{found}"):
                producer.send("lines", **{"value": b"v", role: odd})
        assert producer.send("lines", **{"value": b"v", role: bytearray(b"")}).result(10).offset == 0
        with pytest.raises(fastlog.InvalidRecordError, match=r"^values\[1\] is a str"):
            producer.send_many("lines", [b"v", "text"])


def test_an_unknown_group_is_told_with_the_nearest(tmp_path: Path) -> None:
    with fastlog.open(tmp_path / "store", durability="os") as store:
        store.create_topic("lines")
        with pytest.raises(fastlog.GroupError, match="there is no group 'bill': no group has members or offsets"):
            store.delete_group("bill")
        assert store.reset_offsets("billing", ["lines"], to=0)[TopicPartition("lines", 0)].offset == 0
        for call in (lambda: store.delete_group("biling"), lambda: store.reset_offsets("biling", to="latest")):
            with pytest.raises(fastlog.GroupError, match=r"there is no group 'biling': did you mean 'billing'\?"):
                call()
        assert store.groups() == ["billing"]
        store.delete_group("billing")
        assert store.groups() == []


def test_a_reset_to_a_span_before_now(tmp_path: Path) -> None:
    with fastlog.open(tmp_path / "store", durability="os") as store:
        store.create_topic("lines")
        with store.producer() as producer:
            producer.send("lines", b"old", timestamp=1_700_000_000_000)
            producer.send("lines", b"new")
        for to, offset in (("-1h", 1), ("earliest", 0), ("latest", 2), (7, 2)):
            assert store.reset_offsets("g", ["lines"], to=to)[TopicPartition("lines", 0)].offset == offset


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


def test_automatic_commits_are_on_or_off(tmp_path: Path) -> None:
    with fastlog.open(tmp_path / "store", durability="os") as store:
        store.create_topic("lines")
        with pytest.raises(fastlog.ConfigError, match="auto_commit='1h': expected True or False"):
            store.consumer("lines", group="g", auto_commit="1h")  # type: ignore[arg-type]


def test_a_name_that_is_too_long_for_a_group(tmp_path: Path) -> None:
    with fastlog.open(tmp_path / "store", durability="os") as store:
        store.create_topic("lines")
        with store.consumer("lines", group="g" * 8192) as consumer:
            consumer.poll(timeout=0)
            consumer.commit({TopicPartition("lines", 0): 0})
        with pytest.raises(fastlog.GroupError, match="at most 8192 bytes, found 8194"):
            store.consumer("lines", group="ö" * 4097).poll(timeout=0)


def test_every_lock_is_waited_for_as_long_as_the_store_says(tmp_path: Path) -> None:
    with fastlog.open(tmp_path / "store", durability="os", lock_timeout=0.05) as store:
        store.create_topic("lines")
        store.producer(transactional_id="first").close()
        store.consumer("lines", group="g").close()
        with ExitStack() as stack:
            locks = [*(tmp_path / "store" / "control").rglob("lock"), *tmp_path.rglob("transactions.lock")]
            assert len(locks) == 2
            for path in locks:
                file = stack.enter_context(path.open("rb"))
                fcntl.flock(file, fcntl.LOCK_EX)
            with pytest.raises(fastlog.LockedError, match=r"transactions\.lock is locked: .* for more than 0\.05 s"):
                store.producer(transactional_id="second")
            with pytest.raises(fastlog.LockedError, match=r"is changing the group 'g' for more than 0\.05 s"):
                store.consumer("lines", group="g").poll(timeout=0)


def test_a_backup_of_a_store(tmp_path: Path) -> None:
    with fastlog.open(tmp_path / "store", durability="os") as store:
        store.create_topic("lines")
        with store.producer() as producer:
            producer.send("lines", b"v")
        report = store.backup(tmp_path / "copy")
        assert report.path == str(tmp_path / "copy")
    with fastlog.open(tmp_path / "copy", read_only=True) as copy:
        assert [record.value for record in copy.topic("lines").partition(0).records()] == [b"v"]
