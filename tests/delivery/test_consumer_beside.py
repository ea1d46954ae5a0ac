"""What handlers need of a consumer: to be woken up; partitions read and committed beside those of the group."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

import fastlog
from fastlog import OffsetAndMetadata, TopicPartition
from tests.delivery.apps import committed, send

SOURCE, BESIDE = TopicPartition("orders", 0), TopicPartition("beside", 0)


@pytest.fixture
def store(folder: Path) -> Iterator[fastlog.Store]:
    with fastlog.open(folder / "store", durability="os") as opened:
        opened.create_topic("orders")
        opened.create_topic("beside")
        yield opened


def test_wakeup_ends_a_poll_that_waits_and_the_next_one_that_would(store: fastlog.Store) -> None:
    with store.consumer("orders", group="mail", start="earliest") as consumer:
        threading.Timer(0.1, consumer.wakeup).start()
        before = time.monotonic()
        assert consumer.poll(timeout=30) == []
        assert time.monotonic() - before < 10
        consumer.wakeup()
        send(store, "orders", [b"a"])
        assert [record.value for record in consumer.poll(timeout=30)] == [b"a"]
        before = time.monotonic()
        assert consumer.poll(timeout=30) == []
        assert list(consumer.batches(timeout=0)) == []
        assert time.monotonic() - before < 10


def test_an_iteration_goes_on_after_wakeup(store: fastlog.Store) -> None:
    consumer = store.consumer("orders", group="mail", start="earliest")

    def act() -> None:
        time.sleep(0.1)
        consumer.wakeup()
        time.sleep(0.1)
        send(store, "orders", [b"a"])

    thread = threading.Thread(target=act)
    thread.start()
    assert next(iter(consumer)).value == b"a"
    thread.join()
    consumer.close()


def test_partitions_beside_are_read_but_not_assigned(store: fastlog.Store) -> None:
    send(store, "beside", [b"1", b"2"])
    with store.consumer("orders", group="mail", start="latest", auto_commit=False) as consumer:
        consumer.poll(timeout=0)
        reading = consumer.add_beside(BESIDE, None)
        assert consumer.assignment() == [SOURCE]
        assert [record.value for record in consumer.poll(timeout=5)] == [b"1", b"2"]
        consumer.commit()
        assert BESIDE not in committed(store, "mail")
        send(store, "beside", [b"3"])
        batch = consumer.read_beside(reading)
        assert batch is not None and batch.values.to_list() == [b"3"]
        assert consumer.read_beside(reading) is None
        consumer.remove_beside([BESIDE, SOURCE])
        assert consumer.reading(BESIDE) is None and consumer.reading(SOURCE) is not None


def test_offsets_beside_are_committed_by_the_owner_only(store: fastlog.Store) -> None:
    offsets = {SOURCE: OffsetAndMetadata(3, "note"), BESIDE: OffsetAndMetadata(7)}
    with store.consumer("orders", group="mail", auto_commit=False) as owner:
        owner.poll(timeout=0)
        owner.commit_beside(offsets, SOURCE)
        known = committed(store, "mail")
        assert (known[SOURCE].offset, known[SOURCE].metadata, known[BESIDE].offset) == (3, "note", 7)
        with store.consumer("orders", group="mail", auto_commit=False) as other:
            other.poll(timeout=0)
            with pytest.raises(fastlog.CommitFailedError):
                other.commit_beside({BESIDE: OffsetAndMetadata(9)}, [SOURCE])
        with pytest.raises(fastlog.CommitFailedError):
            owner.commit_beside({BESIDE: OffsetAndMetadata(9)}, BESIDE)
        with pytest.raises(fastlog.CommitFailedError, match="deleted"):
            owner.commit_beside({TopicPartition("gone", 0): OffsetAndMetadata(9)}, SOURCE)
        assert committed(store, "mail")[BESIDE].offset == 7
    with store.consumer("orders") as alone, pytest.raises(fastlog.GroupError):
        alone.commit_beside(offsets, SOURCE)
