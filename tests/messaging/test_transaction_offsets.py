"""Consume, transform, produce: offsets that move with a transaction, and who may move them."""

from __future__ import annotations

from pathlib import Path

import pytest

import fastlog
from fastlog.clients.consumer import Consumer
from fastlog.clients.producer import Producer
from fastlog.groups.offsets import OffsetAndMetadata, OffsetStore
from fastlog.records import TopicPartition
from fastlog.store.directory import Directory
from fastlog.transactions import Coordinator, resolve_pending
from tests.messaging.transacting import open_store, visible

SOURCE = TopicPartition("a", 0)


def fill(store: Directory, count: int) -> None:
    with Producer(store) as producer:
        producer.send_many("a", [b"%d" % number for number in range(count)], partition=0)


def committed(store: Directory, group: str = "g") -> int | None:
    found = OffsetStore(store).committed(group, [SOURCE])[SOURCE]
    return None if found is None else found.offset


def test_every_record_is_transformed_once_though_blocks_fail(folder: Path) -> None:
    with open_store(folder / "store") as store:
        fill(store, 60)
        with (
            Consumer(store, ["a"], group="g", start="earliest") as consumer,
            Producer(store, transactional_id="t") as producer,
        ):
            turn = 0
            while committed(store) != 60:
                turn += 1
                try:
                    with producer.transaction(consumer) as tx:
                        for record in consumer.poll(max_records=7, timeout=5):
                            tx.send("b", b"<" + record.value + b">", partition=0)
                        tx.commit_offsets()
                        if turn % 3 == 0:
                            raise ZeroDivisionError
                except ZeroDivisionError:
                    pass
                assert turn < 40
        assert visible(store, "b") == [b"<%d>" % number for number in range(60)]


def test_offsets_of_an_open_transaction_are_pending_and_an_abort_forgets_them(folder: Path) -> None:
    with open_store(folder / "store") as store:
        fill(store, 10)
        with (
            Consumer(store, ["a"], group="g", start="earliest") as consumer,
            Producer(store, transactional_id="t") as producer,
        ):
            tx = producer.transaction(consumer)
            tx.__enter__()
            consumer.poll(max_records=4, timeout=5)
            tx.commit_offsets()
            offsets = OffsetStore(store)
            assert SOURCE in offsets.pending("g")
            assert not resolve_pending(store, "g", [SOURCE], timeout_ms=50)
            assert resolve_pending(store, "g", [TopicPartition("b", 1)])
            tx.abort()
            assert resolve_pending(store, "g", [SOURCE])
            assert committed(store) is None
            assert [record.value for record in consumer.poll(max_records=2, timeout=5)] == [b"0", b"1"]


def test_the_next_owner_ends_what_a_dead_one_left_pending(folder: Path) -> None:
    with open_store(folder / "store") as store:
        fill(store, 10)
        other = Directory.open(folder / "store", durability="os")
        consumer = Consumer(other, ["a"], group="g", start="earliest")
        producer = Producer(other, transactional_id="t")
        tx = producer.transaction(consumer)
        tx.__enter__()
        assert len(consumer.poll(max_records=4, timeout=5)) == 4
        tx.commit_offsets()
        assert SOURCE in OffsetStore(store).pending("g")
        other.close()
        assert resolve_pending(store, "g", [SOURCE], timeout_ms=5000)
        assert committed(store) is None
        with Consumer(store, ["a"], group="g", start="earliest") as heir:
            assert [record.value for record in heir.poll(max_records=1, timeout=10)] == [b"0"]


def test_a_new_owner_waits_for_a_transaction_that_may_move_its_offsets(folder: Path) -> None:
    with open_store(folder / "store") as store, Producer(store, transactional_id="t") as producer:
        fill(store, 10)
        first = Consumer(store, ["a"], group="g", start="earliest")
        tx = producer.transaction(first)
        tx.__enter__()
        assert len(first.poll(max_records=4, timeout=5)) == 4
        tx.commit_offsets()
        first.close()
        with Consumer(store, ["a"], group="g", start="earliest") as second:
            assert second.poll(timeout=0.3) == []
            tx.commit()
            assert tx.outcome == "committed"
            assert second.poll(timeout=5)[0].offset == 4


def test_a_consumer_may_be_closed_before_its_transaction_is_aborted(folder: Path) -> None:
    with open_store(folder / "store") as store, Producer(store, transactional_id="t") as producer:
        fill(store, 3)
        consumer = Consumer(store, ["a"], group="g", start="earliest")
        tx = producer.transaction(consumer)
        tx.__enter__()
        consumer.poll(timeout=5)
        tx.commit_offsets()
        consumer.close()
        tx.abort()
        assert committed(store) is None


def test_a_consumer_that_lost_its_partition_cannot_commit(folder: Path) -> None:
    with open_store(folder / "store") as store:
        fill(store, 10)
        store.create_topic("one", 1)
        with Producer(store) as producer:
            producer.send_many("one", [b"x"] * 5)
        with (
            Consumer(store, ["one"], group="g", start="earliest") as consumer,
            Producer(store, transactional_id="t") as producer,
        ):
            with pytest.raises(fastlog.CommitFailedError) as caught, producer.transaction(consumer) as tx:
                tx.send("b", b"lost")
                tx.commit_offsets({TopicPartition("a", 1): 5})
            assert tx.outcome == "aborted"
            assert caught.value is not None
        assert visible(store, "b") == []


def test_explicit_offsets_and_metadata(folder: Path) -> None:
    with open_store(folder / "store") as store:
        fill(store, 10)
        with (
            Consumer(store, ["a"], group="g", start="earliest") as consumer,
            Producer(store, transactional_id="t") as producer,
        ):
            with producer.transaction(consumer) as tx:
                assert consumer.poll(max_records=4, timeout=5)
                tx.commit_offsets({SOURCE: OffsetAndMetadata(3, "note")})
                assert committed(store) is None
            assert committed(store) == 3
            with producer.transaction(consumer) as tx:
                tx.commit_offsets({SOURCE: 9})
            assert committed(store) == 9
        assert not Coordinator.of(store).registry.running()


def test_only_what_moved_is_committed(folder: Path) -> None:
    with open_store(folder / "store") as store:
        fill(store, 10)
        offsets = OffsetStore(store)
        with (
            Consumer(store, ["a"], group="g", start="earliest") as consumer,
            Producer(store, transactional_id="t") as producer,
        ):
            with producer.transaction(consumer) as tx:
                assert consumer.offsets_in_hand() == {}
                assert consumer.poll(max_records=4, timeout=5)
                assert consumer.offsets_in_hand() == {SOURCE: OffsetAndMetadata(4)}
                tx.commit_offsets()
            assert {name for name, found in offsets.committed("g", consumer.assignment()).items() if found} == {SOURCE}
            with producer.transaction(consumer) as tx:
                assert consumer.offsets_in_hand() == {}
                consumer.seek("a", 1, offset=0)  # where it is
                consumer.seek(SOURCE, offset=2)
                assert consumer.offsets_in_hand() == {SOURCE: OffsetAndMetadata(2)}
                tx.commit_offsets()
            assert committed(store) == 2


def test_what_a_transaction_committed_is_not_committed_again(folder: Path) -> None:
    with open_store(folder / "store") as store:
        fill(store, 10)
        with Consumer(store, ["a"], group="g", start="earliest") as consumer:
            assert len(consumer.assignment()) == 3
            consumer.commit()
            with Producer(store, transactional_id="t") as producer, producer.transaction(consumer) as tx:
                assert consumer.poll(max_records=4, timeout=5)
                tx.commit_offsets()
            with store.lease("__consumer_offsets", OffsetStore(store).partition_of("g")) as lease:
                end = lease.log.end_offset
                consumer.commit()
                assert lease.log.end_offset == end
                assert consumer.poll(max_records=1, timeout=5)
                consumer.commit()
                assert lease.log.end_offset == end + 1
            assert committed(store) == 5


def test_a_transaction_moves_offsets_of_its_own_store_only(folder: Path) -> None:
    with open_store(folder / "store") as store, open_store(folder / "other") as other:
        fill(other, 3)
        (folder / "link").symlink_to(folder / "store")
        with (
            Consumer(other, ["a"], group="g", start="earliest") as stranger,
            Producer(store, transactional_id="t") as producer,
            producer.transaction(stranger) as tx,
        ):
            assert stranger.poll(timeout=5)
            with pytest.raises(fastlog.TransactionError, match="one transaction is in one store"):
                tx.commit_offsets()
        assert OffsetStore(store).groups() == []
        fill(store, 3)
        with (
            open_store(folder / "link") as same,
            Consumer(same, ["a"], group="g", start="earliest") as consumer,
            Producer(store, transactional_id="t") as producer,
        ):
            with producer.transaction(consumer) as tx:
                assert consumer.poll(timeout=5)
                tx.commit_offsets()
            assert committed(store) == 3
