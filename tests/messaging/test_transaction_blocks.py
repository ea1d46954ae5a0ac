"""``with producer.transaction() as tx``: what applications see of transactions."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest

import fastlog
from fastlog._native import oscalls
from fastlog.clients.producer import Producer
from fastlog.clients.transaction import SOURCES_TOPIC
from fastlog.store.directory import Directory
from fastlog.transactions import Coordinator, TransactionalId
from tests.messaging.transacting import is_settled, open_store, visible


@pytest.fixture
def store(folder: Path) -> Iterator[Directory]:
    with open_store(folder / "store") as directory:
        yield directory


def everything(store: Directory, topic: str) -> list[bytes]:
    return sorted(value for partition in range(3) for value in visible(store, topic, partition))


def test_a_block_commits_and_an_exception_aborts(store: Directory) -> None:
    with Producer(store, transactional_id="pay-1") as producer:
        with producer.transaction() as tx:
            delivery = tx.send("a", b"1", b"key")
            tx.send_many("b", [b"2", b"3"])
            assert delivery.result(5).topic == "a"
            assert everything(store, "a") == []
        assert tx.outcome == "committed"
        assert (everything(store, "a"), everything(store, "b")) == ([b"1"], [b"2", b"3"])
        with pytest.raises(ZeroDivisionError), producer.transaction() as tx:
            tx.send("a", b"lost")
            raise ZeroDivisionError
        assert tx.outcome == "aborted"
        with producer.transaction() as tx:
            tx.send("a", b"4", b"key")
            tx.commit()
        assert everything(store, "a") == [b"1", b"4"]
    assert all(is_settled(store, topic, partition) for topic in ("a", "b") for partition in range(3))


def test_many_transactions_in_a_row(store: Directory) -> None:
    with Producer(store, transactional_id="pay-1") as producer:
        for number in range(30):
            with producer.transaction() as tx:
                for part in range(20):
                    tx.send("a", b"%d-%d" % (number, part))
                if number % 3 == 2:
                    tx.abort()
    assert len(everything(store, "a")) == 20 * 20


def test_outside_of_a_block_nothing_is_sent(store: Directory) -> None:
    with Producer(store, transactional_id="pay-1") as producer:
        with pytest.raises(fastlog.TransactionError):
            producer.send("a", b"1")
        tx = producer.transaction()
        with pytest.raises(fastlog.TransactionError, match="context manager"):
            tx.send("a", b"1")
        with tx:
            pass
        with pytest.raises(fastlog.TransactionError, match="another one"):
            tx.send("a", b"1")
        with pytest.raises(fastlog.TransactionError, match="committed"):
            tx.commit()
        with (
            pytest.raises(fastlog.TransactionError, match="open already"),
            producer.transaction(),
            producer.transaction(),
        ):
            pass
        with producer.transaction() as tx:
            tx.send("a", b"2")
    assert everything(store, "a") == [b"2"]


def test_plain_producers_have_no_transactions(store: Directory) -> None:
    with Producer(store) as producer:
        with pytest.raises(fastlog.TransactionError, match="transactional_id"):
            producer.transaction()
        with pytest.raises(fastlog.TransactionError, match="source"):
            producer.source_position()
    with pytest.raises(fastlog.ConfigError, match="source"):
        Producer(store, transactional_id="a", source="b")
    with pytest.raises(fastlog.ConfigError, match="transactional_id"):
        Producer(store, transactional_id="")


def test_closing_in_the_middle_aborts(store: Directory) -> None:
    producer = Producer(store, transactional_id="pay-1")
    tx = producer.transaction()
    with pytest.raises(fastlog.Error), tx:
        tx.send("a", b"1").result(5)
        producer.close()
    producer.close()
    assert everything(store, "a") == []
    assert all(is_settled(store, "a", partition) for partition in range(3))


def test_a_replaced_producer_learns_it_and_leaves_nothing(store: Directory) -> None:
    old = Producer(store, transactional_id="pay-1")
    with pytest.raises(fastlog.ProducerFencedError) as caught, old.transaction() as tx:
        tx.send("a", b"lost").result(5)
        with Producer(store, transactional_id="pay-1") as new, new.transaction() as other:
            other.send("a", b"1")
        tx.send("a", b"late")
    assert caught.value.outcome == "aborted"
    assert tx.outcome == "aborted"
    with pytest.raises(fastlog.ProducerFencedError), old.transaction():
        pass
    old.close()
    assert everything(store, "a") == [b"1"]


def test_a_failed_delivery_aborts(store: Directory) -> None:
    with Producer(store, transactional_id="pay-1") as producer:
        store.create_topic("c")
        with pytest.raises(fastlog.Error) as caught, producer.transaction() as tx:
            tx.send("a", b"1").result(5)
            tx.send("c", b"x").result(5)
            store.delete_topic("c")
            oscalls.inject("pwrite", sticky=True)
            tx.send("a", b"2")
            try:
                producer.flush(5)
            except fastlog.Error:
                pass
            oscalls.clear()
        assert caught.value.outcome == "aborted", caught.value
        assert everything(store, "a") == []
        with producer.transaction() as tx:
            tx.send("a", b"3")
    assert everything(store, "a") == [b"3"]


@pytest.mark.parametrize("nth", range(1, 6))
def test_after_a_full_disk_the_next_block_goes_on(store: Directory, nth: int) -> None:
    """Also when not even the abort could be written down; while the disk is full, the next block says so as well."""
    with Producer(store, transactional_id="pay-1") as producer:
        with producer.transaction() as tx:
            tx.send("a", b"1", partition=0)
        oscalls.inject("pwrite", nth=nth, sticky=True)
        tx = producer.transaction()
        with pytest.raises(fastlog.StorageFullError), tx:
            tx.send("a", b"2", partition=0).result(5)
            tx.send("b", b"2", partition=0).result(5)
        if tx.outcome == "aborted":
            with pytest.raises(fastlog.StorageFullError), producer.transaction() as following:
                following.send("a", b"3", partition=0).result(5)
        oscalls.clear()
        if tx.outcome == "unknown":
            tx.commit()
        with producer.transaction() as following:
            following.send("a", b"4", partition=0)
        assert visible(store, "a") == ([b"1", b"2", b"4"] if tx.outcome == "committed" else [b"1", b"4"])
        assert visible(store, "b") == ([b"2"] if tx.outcome == "committed" else [])
    assert is_settled(store, "a") and is_settled(store, "b")


def test_offsets_need_an_enlisted_consumer(store: Directory) -> None:
    with Producer(store, transactional_id="pay-1") as producer, producer.transaction() as tx:
        with pytest.raises(fastlog.TransactionError, match="consumer"):
            tx.commit_offsets()
        with pytest.raises(fastlog.TransactionError, match="source"):
            tx.commit_source(b"7")


def test_a_decision_that_cannot_be_synced_is_unknown(folder: Path) -> None:
    store = open_store(folder / "store", durability="interval")
    producer = Producer(store, transactional_id="pay-1")
    tx = producer.transaction()
    tx.__enter__()
    tx.send("a", b"1", partition=0).result(5)
    # data first: the one behind that is of the decision
    oscalls.inject("fdatasync", errno=5, nth=2)
    with pytest.raises(fastlog.StorageError) as caught:
        tx.commit()
    oscalls.clear()
    assert caught.value.outcome == "unknown" == tx.outcome
    with pytest.raises(fastlog.Error) as caught:
        tx.commit()
    assert caught.value.outcome == "unknown", "the state partition is poisoned until it is opened anew"
    with pytest.raises(fastlog.StorageError):
        producer.close()
    store.close()
    with open_store(folder / "store", durability="interval") as store:
        Coordinator.of(store).attach()
        assert is_settled(store, "a")
        assert visible(store, "a") == [b"1"], "the record of the decision was still there"


# --- sources --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("call", "closes", "told"),
    [
        ("pwrite", "producer", "committed"),
        ("pwrite", "store", "unknown"),
        ("fdatasync", "producer", "unknown"),
        ("fdatasync", "store", "unknown"),
    ],
)
def test_an_unknown_commit_of_a_closed_producer_is_not_called_aborted(
    folder: Path, call: str, closes: str, told: str
) -> None:
    """It is decided. A marker that could not be written is written by who closes the producer; a sync stays failed."""
    store = open_store(folder / "store", durability="group")
    producer = Producer(store, transactional_id="pay-1")
    tx = producer.transaction().__enter__()
    tx.send("a", b"1", partition=0).result(5)
    oscalls.inject(call, 5, nth=2 if call == "pwrite" else 1)
    with pytest.raises(fastlog.StorageError):
        tx.commit()
    oscalls.clear()
    assert tx.outcome == "unknown"
    with suppress(fastlog.Error):
        producer.close() if closes == "producer" else store.close()
    if told == "committed":
        tx.commit()
    for _ in range(2 * (told == "unknown")):
        with pytest.raises(fastlog.ClosedError) as caught:
            tx.commit()
        assert caught.value.outcome == "unknown"
    assert tx.outcome == told
    producer.close()
    store.close()
    with open_store(folder / "store") as again:
        Coordinator.of(again).attach()
        assert visible(again, "a") == [b"1"]


@pytest.mark.parametrize("times", [1, 2])
def test_a_commit_that_is_interrupted_when_it_is_done_is_committed(
    store: Directory, monkeypatch: pytest.MonkeyPatch, times: int
) -> None:
    """By Ctrl-C; the second one comes while it is found out what the first one has interrupted."""
    with Producer(store, transactional_id="pay-1") as producer:
        tx = producer.transaction().__enter__()
        tx.send("a", b"1", partition=0)
        end, discard = TransactionalId._end, producer.discard_transaction

        def ended(self: TransactionalId) -> None:
            end(self)
            raise KeyboardInterrupt

        def discarded() -> None:
            discard()
            if times == 2:
                raise KeyboardInterrupt

        with monkeypatch.context() as patch:
            patch.setattr(TransactionalId, "_end", ended)
            patch.setattr(tx, "_producer", Interrupted(producer, discarded))
            with pytest.raises(KeyboardInterrupt):
                tx.commit()
        if times == 2:
            with pytest.raises(fastlog.TransactionError, match="the transaction is committed"):
                tx.abort()
        assert tx.outcome == "committed"
        assert visible(store, "a") == [b"1"]
        with producer.transaction() as following:
            following.send("a", b"2", partition=0)
        assert visible(store, "a") == [b"1", b"2"]


class Interrupted:
    """A producer whose transactions are discarded otherwise."""

    def __init__(self, producer: Producer, discard_transaction: Callable[[], None]) -> None:
        self.discard_transaction = discard_transaction
        self.drain_transaction, self.end_transactional = producer.drain_transaction, producer.end_transactional


def test_a_source_is_read_exactly_once(store: Directory) -> None:
    """Importers die and are replaced at any moment: every line is there once, in order."""
    lines = [b"%d" % number for number in range(50)]
    for turn in range(12):
        producer = Producer(store, source="flights.csv")
        start = int(producer.source_position() or b"0")
        for at in range(start, min(start + 6, len(lines)), 2):
            tx = producer.transaction()
            tx.__enter__()
            for line in lines[at : at + 2]:
                tx.send("a", line, partition=0)
            tx.commit_source(b"%d" % (at + 2))
            if at == start + 4 and turn % 2:
                break  # left open: the next importer aborts it
            tx.commit()
    producer = Producer(store, source="flights.csv")
    assert producer.source_position() == b"50"
    assert visible(store, "a") == lines


def test_positions_of_sources_are_apart(store: Directory) -> None:
    with Producer(store, source="x") as x, Producer(store, source="y") as y:
        assert x.source_position() is None
        for producer, position in ((x, b"1"), (y, b"2")):
            with producer.transaction() as tx:
                tx.commit_source(b"0")
                tx.commit_source(position)
        assert (x.source_position(), y.source_position()) == (b"1", b"2")
    assert SOURCES_TOPIC in store.topics()
    assert store.topic(SOURCES_TOPIC).options["cleanup.policy"] == "compact"
