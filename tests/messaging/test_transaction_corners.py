"""Corners of transactions and of asyncio: decisions that nobody can tell, ids that were forgotten, loops that close."""

from __future__ import annotations

import asyncio
import logging
import os
import struct
import threading
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from contextlib import ExitStack, asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any

import pytest

import fastlog
from fastlog import TopicPartition
from fastlog._core import encode_batch
from fastlog._native import oscalls
from fastlog.store.directory import Directory
from fastlog.store.internal import TRANSACTION_STATE, partition_for_name
from fastlog.transactions import Coordinator, TransactionalId, registry
from fastlog.transactions.records import decode_value, encode_key, encode_value
from fastlog.transactions.states import LAST_EPOCH, TransactionState, TransactionStatus
from tests.messaging.transacting import Writer, is_settled, open_store, visible

ENOSPC, EIO = 28, 5
A = TopicPartition("a", 0)


@pytest.fixture
def store(folder: Path) -> Iterator[Directory]:
    with open_store(folder / "store") as opened:
        yield opened


def until(condition: Callable[[], object], what: str, seconds: float = 10) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, what
        time.sleep(0.01)


def append_state(store: Directory, name: str, key: bytes, value: bytes | None) -> None:
    """A record in the state partition of an id, as another program leaves it."""
    store.partition_log(TRANSACTION_STATE, partition_for_name(name)).append_batch(encode_batch([value], [key]))


def refuse_decision(writer: Writer, nth: int = 1) -> None:
    """A commit whose ``nth`` write fails: the first is the decision, those behind it are markers."""
    oscalls.inject("pwrite", ENOSPC, nth=nth)
    try:
        with pytest.raises(fastlog.StorageFullError) as caught:
            writer.id.commit()
    finally:
        oscalls.clear()
    assert caught.value.outcome == "unknown"


# --- ids -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("timeout_ms", [0, -1, 2**31])
def test_a_time_out_that_kafka_cannot_write_is_refused(store: Directory, timeout_ms: int) -> None:
    with pytest.raises(fastlog.ConfigError, match="expected 1 ms to 24 days"):
        TransactionalId(store, "pay-1", timeout_ms)


def test_only_so_many_ids_are_open_at_once(store: Directory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry, "_MOST_ENTRIES", 2)
    first, second = (TransactionalId(store, name) for name in ("pay-1", "pay-2"))
    with pytest.raises(fastlog.TransactionError, match="2 transactional producers are open in this store: close some"):
        TransactionalId(store, "pay-3")
    first.close()
    TransactionalId(store, "pay-3").close()
    second.close()


def test_a_registry_that_somebody_holds_is_told(store: Directory) -> None:
    TransactionalId(store, "pay-1").close()
    mine, held = (registry.Registry(store.control, lock_timeout_ms=20) for _ in range(2))
    with (
        mine.locked(),
        pytest.raises(fastlog.LockedError, match=r"is locked: another process is changing .* for more than 0\.02 s"),
        held.locked(),
    ):
        pass
    with held.locked():
        assert not held.running()


def test_an_id_of_the_parent_is_none_of_the_childs(store: Directory) -> None:
    writer = Writer(store, "pay-1")
    writer.begin()
    writer.send("a", [b"1"])
    child = os.fork()
    if not child:
        code = 1
        try:
            writer.id.commit()
        except fastlog.ForkedHandleError as error:
            code = 0 if "pay-1 was opened before a fork" in str(error) else 2
        writer.close()
        writer.close()
        os._exit(code)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    writer.id.commit()
    assert visible(store, "a") == [b"1"]


def test_a_forgotten_id_is_fenced_and_begins_anew(store: Directory) -> None:
    """Kafka forgets ids that were not used for a week, by a record without a value."""
    writer = Writer(store, "pay-1")
    writer.transaction("a", [b"1"])
    append_state(store, "pay-1", encode_key("pay-1"), None)
    writer.begin()
    with pytest.raises(fastlog.ProducerFencedError, match="but nothing counts now"):
        writer.send("a", [b"lost"])
    before = writer.id.producer_id
    writer.close()
    again = Writer(store, "pay-1")
    assert again.id.producer_id != before and again.id.producer_epoch == 0
    again.transaction("a", [b"2"])
    assert visible(store, "a") == [b"1", b"2"]


def test_records_of_a_newer_kind_are_passed_over(store: Directory) -> None:
    """Kafka may write keys of other versions beside those of ids."""
    writer = Writer(store, "pay-1")
    append_state(store, "pay-1", struct.pack(">h", 1) + b"of a newer kind", b"value")
    writer.transaction("a", [b"1"])
    assert visible(store, "a") == [b"1"]


def test_a_status_that_nobody_knows_is_damage() -> None:
    value = struct.pack(">hqhibiqq", 0, 9, 0, 1, 8, -1, 2, -1)
    with pytest.raises(fastlog.CorruptRecordError, match="has status 8, expected 0 to 7"):
        decode_value(value)


@pytest.mark.parametrize("ends", ["commit", "abort"])
def test_a_transaction_that_could_not_begin_does_not_run(store: Directory, ends: str) -> None:
    """Its time-out would be looked after for as long as the producer is open."""
    writer = Writer(store, "pay-1")
    writer.transaction("a", [b"1"])
    writer.begin()
    oscalls.inject("pwrite", ENOSPC)
    with pytest.raises(fastlog.StorageFullError):
        writer.send("a", [b"2"])
    oscalls.clear()
    getattr(writer.id, ends)()
    assert [entry.start for entry in Coordinator.of(store).registry.running()] == [0]
    writer.transaction("a", [b"3"])
    assert visible(store, "a") == [b"1", b"3"]


def test_who_cannot_give_its_entry_back_gives_its_partitions_back(folder: Path) -> None:
    with open_store(folder / "store", lock_timeout=0.05) as store:
        writer = Writer(store, "pay-1")
        writer.transaction("a", [b"1"])
        with held(Path(store.control) / "transactions.lock"), pytest.raises(fastlog.LockedError):
            writer.close()
        assert not [entry for entry in store._pool._entries.values() if entry.leases and entry.key.topic == "a"]


# --- decisions that nobody can tell ----------------------------------------------------------------------------------


def test_what_is_decided_is_not_aborted(store: Directory) -> None:
    writer = Writer(store, "pay-1")
    writer.begin()
    writer.send("a", [b"1"])
    refuse_decision(writer, nth=2)
    with pytest.raises(fastlog.TransactionError, match="is decided, it will be committed") as caught:
        writer.id.abort()
    assert caught.value.outcome == "unknown"
    writer.id.commit()
    assert visible(store, "a") == [b"1"]


def test_a_commit_in_doubt_that_the_next_instance_aborted_says_so(store: Directory) -> None:
    writer = Writer(store, "pay-1")
    writer.begin()
    writer.send("a", [b"1"])
    refuse_decision(writer)
    other = Writer(store, "pay-1")
    other.transaction("a", [b"2"])
    with pytest.raises(fastlog.ProducerFencedError, match="another instance was opened") as caught:
        writer.id.commit()
    assert caught.value.outcome == "aborted"
    assert not writer.id.in_transaction
    assert visible(store, "a") == [b"2"]


def test_a_commit_in_doubt_whose_records_are_gone_stays_unknown(store: Directory) -> None:
    """The id was used again, and nothing is left of the time between."""
    writer = Writer(store, "pay-1")
    writer.begin()
    writer.send("a", [b"1"])
    refuse_decision(writer)
    append_state(store, "pay-1", encode_key("pay-1"), None)
    with pytest.raises(fastlog.TransactionError, match="cannot be told any more") as caught:
        writer.id.commit()
    assert caught.value.outcome == "unknown"
    assert not writer.id.in_transaction
    for again in (writer.id.commit, writer.begin):
        with pytest.raises(fastlog.ProducerFencedError) as fenced:
            again()
        assert fenced.value.outcome == "unknown"


@contextmanager
def held(path: Path) -> Iterator[None]:
    """A lock that somebody else has, and does not give back."""
    descriptor = oscalls.open_file(str(path))
    assert oscalls.try_lock(descriptor)
    try:
        yield
    finally:
        oscalls.close_file(descriptor)


@contextmanager
def unsynced_decision(folder: Path) -> Iterator[tuple[Writer, Directory]]:
    """A commit whose decision is written, and may be lost: another process is stopped while it syncs."""
    options: Any = {"durability": "interval", "lock_timeout": 0.05}
    number = partition_for_name("pay-1")
    with open_store(folder / "store", **options) as store, open_store(folder / "store") as other:
        writer = Writer(store, "pay-1")
        other.partition_log(TRANSACTION_STATE, number)
        writer.begin()
        writer.send("a", [b"1"])
        with held(folder / "store" / "topics" / f"{TRANSACTION_STATE}-{number}" / ".fastlog-meta"):
            with pytest.raises(fastlog.LockedError, match="not known to be durable") as caught:
                writer.id.commit()
            assert caught.value.outcome == "unknown"
            assert visible(other, "a") == []
        yield writer, other


def test_a_commit_in_doubt_finds_its_decision_and_goes_on(folder: Path) -> None:
    with unsynced_decision(folder) as (writer, other):
        writer.id.commit()
        assert visible(other, "a") == [b"1"]
        writer.transaction("a", [b"2"])
        assert visible(other, "a") == [b"1", b"2"]


def test_an_abort_in_doubt_finds_that_it_is_decided(folder: Path) -> None:
    with unsynced_decision(folder) as (writer, other):
        with pytest.raises(fastlog.TransactionError, match="is decided, it will be committed"):
            writer.id.abort()
        writer.id.commit()
        assert visible(other, "a") == [b"1"]


def test_a_close_in_doubt_finds_that_it_is_decided_and_finishes_it(folder: Path) -> None:
    with unsynced_decision(folder) as (writer, other):
        writer.close()
        assert writer.id.is_committed
        assert visible(other, "a") == [b"1"]
        assert not Coordinator.of(other).registry.running()


def test_a_close_in_doubt_aborts_what_is_not_decided(store: Directory) -> None:
    writer = Writer(store, "pay-1")
    writer.begin()
    writer.send("a", [b"1"])
    refuse_decision(writer)
    writer.close()
    assert not writer.id.is_committed
    assert is_settled(store, "a") and visible(store, "a") == []


def test_a_commit_in_doubt_that_the_next_instance_completed_is_committed(folder: Path) -> None:
    """Another process has found the decision, and carried it out."""
    with unsynced_decision(folder) as (writer, other):
        again = Writer(other, "pay-1")
        assert visible(other, "a") == [b"1"]
        again.transaction("a", [b"2"])
        writer.id.commit()
        assert not writer.id.in_transaction
        with pytest.raises(fastlog.ProducerFencedError):
            writer.begin()
        assert visible(other, "a") == [b"1", b"2"]


@pytest.mark.parametrize("call", ["open", "mmap", "fstat", "pread", "flock"])
def test_a_commit_in_doubt_stays_unknown_until_it_can_be_told(folder: Path, call: str) -> None:
    """The next instance has completed it. What fails are looks at the decision, and at what became of it."""
    with unsynced_decision(folder) as (writer, other):
        again = Writer(other, "pay-1")
        oscalls.inject(call, EIO, sticky=True)
        try:
            for _ in range(3):
                with pytest.raises(fastlog.StorageError) as caught:
                    writer.id.commit()
                assert caught.value.outcome == "unknown"
        finally:
            oscalls.clear()
        writer.id.commit()
        assert visible(other, "a") == [b"1"]
        again.transaction("a", [b"2"])
        assert visible(other, "a") == [b"1", b"2"]


def forget_all_but(store: Directory, count: int) -> None:
    """Let only the newest records of the id's partition be left, as compaction does."""
    log = Coordinator.of(store).log_of("pay-1").log
    log.flush()
    log.delete_records(log.end_offset - count)


def test_a_commit_in_doubt_is_not_taken_for_that_of_the_next_instance(store: Directory) -> None:
    """The next instance has aborted it, and what is left says that it has committed a transaction of its own."""
    writer = Writer(store, "pay-1")
    writer.begin()
    writer.send("a", [b"1"])
    refuse_decision(writer)
    Writer(store, "pay-1").transaction("a", [b"2"])
    forget_all_but(store, 2)
    with pytest.raises(fastlog.TransactionError, match="cannot be told any more") as caught:
        writer.id.commit()
    assert caught.value.outcome == "unknown"
    assert not writer.id.is_committed
    assert visible(store, "a") == [b"2"]


def test_a_commit_in_doubt_is_told_by_its_end(folder: Path) -> None:
    """Others have completed it, and only that is left."""
    with unsynced_decision(folder) as (writer, other):
        assert Coordinator.of(other).settle("pay-1")
        assert Coordinator.of(writer.directory).find_producer(writer.id.producer_id)
        forget_all_but(other, 1)
        writer.id.commit()
        assert visible(other, "a") == [b"1"]
        writer.transaction("a", [b"2"])
        assert visible(other, "a") == [b"1", b"2"]


def test_a_commit_in_doubt_leaves_markers_to_who_took_over(folder: Path) -> None:
    """He has failed half-way, and may go on at any time: nobody writes markers with his epoch but him."""
    with unsynced_decision(folder) as (writer, other):
        coordinator = Coordinator.of(other)
        oscalls.inject("pwrite", ENOSPC, nth=2)
        with pytest.raises(fastlog.StorageFullError):
            coordinator.settle("pay-1")
        oscalls.clear()
        theirs = coordinator.log_of("pay-1").state("pay-1")
        assert theirs is not None and theirs.is_prepared and theirs.producer_epoch == writer.id.producer_epoch + 1
        forget_all_but(other, 1)
        writer.id.commit()
        assert visible(other, "a") == [b"1"]
        assert writer.id.producer_epoch > theirs.producer_epoch
        writer.begin()
        writer.send("a", [b"2"])
        coordinator.finish("pay-1", theirs)
        assert visible(other, "a") == [b"1"]
        writer.id.commit()
        assert visible(other, "a") == [b"1", b"2"]


def test_a_commit_may_be_repeated_after_an_abort_that_found_it_decided(folder: Path) -> None:
    with unsynced_decision(folder) as (writer, other):
        Writer(other, "pay-1")
        for _ in range(2):
            with pytest.raises(fastlog.TransactionError, match="is decided, it will be committed") as caught:
                writer.id.abort()
            assert caught.value.outcome == "unknown"
        writer.id.commit()
        assert not writer.id.in_transaction
        assert visible(other, "a") == [b"1"]


@pytest.mark.parametrize("call", ["pwrite", "flock", "fdatasync"])
def test_a_commit_that_others_have_completed_is_one_when_its_owner_cannot_go_on(folder: Path, call: str) -> None:
    with open_store(folder / "store", durability="group") as store:
        writer = Writer(store, "pay-1")
        writer.begin()
        writer.send("a", [b"1"])
        refuse_decision(writer, nth=2)
        assert Coordinator.of(store).settle("pay-1")
        # what fails is the next epoch: after the look at a-0, where the marker is refused
        oscalls.inject(call, EIO, nth=2 if call == "flock" else 1)
        writer.id.commit()
        assert oscalls.injected() == 1
        oscalls.clear()
        with pytest.raises(fastlog.ProducerFencedError):
            writer.begin()
        assert visible(store, "a") == [b"1"]


def test_who_was_taken_for_dead_at_his_last_epoch_does_not_go_on(store: Directory) -> None:
    """Others have completed what was decided, which took the last epoch: a new producer id is needed."""
    TransactionalId(store, "other").close()
    state = TransactionState(7, LAST_EPOCH - 2, 60_000, last_update=1)
    append_state(store, "pay-1", encode_key("pay-1"), encode_value(state))
    writer = Writer(store, "pay-1")
    assert (writer.id.producer_id, writer.id.producer_epoch) == (7, LAST_EPOCH - 1)
    writer.begin()
    writer.send("a", [b"1"])
    refuse_decision(writer, nth=2)
    assert Coordinator.of(store).settle("pay-1")
    writer.id.commit()
    assert visible(store, "a") == [b"1"]
    with pytest.raises(fastlog.ProducerFencedError, match=f"but producer id 7, epoch {LAST_EPOCH} counts now"):
        writer.begin()
    writer.close()
    again = Writer(store, "pay-1")
    assert again.id.producer_id != 7
    again.transaction("a", [b"2"])
    assert visible(store, "a") == [b"1", b"2"]


# --- the dead and the late -------------------------------------------------------------------------------------------


def test_what_could_not_be_ended_is_ended_by_the_next_try(store: Directory) -> None:
    """The decision to abort stands; its marker failed, and only that is repeated."""
    writer = Writer(store, "pay-1")
    writer.begin()
    writer.send("a", [b"1"])
    coordinator = Coordinator.of(store)
    oscalls.inject("pwrite", ENOSPC, nth=2)
    with pytest.raises(fastlog.StorageFullError):
        coordinator.settle("pay-1")
    oscalls.clear()
    states = coordinator.log_of("pay-1")
    decided = states.state("pay-1")
    assert decided is not None and decided.status is TransactionStatus.PREPARE_ABORT
    assert not coordinator.settle("pay-1", lambda state: False), "whoever asks may have lost the right to it"
    assert not is_settled(store, "a")
    assert coordinator.settle("pay-1")
    assert is_settled(store, "a") and visible(store, "a") == []
    ended = states.state("pay-1")
    assert ended is not None and ended.producer_epoch == decided.producer_epoch
    assert not coordinator.settle("pay-1")


def fails_half_way(store: Directory, how: str) -> None:
    """Others end the transaction of pay-1: it is decided, and no marker can be written."""
    oscalls.inject("pwrite", ENOSPC, nth=2)
    with pytest.raises(fastlog.StorageFullError):
        if how == "sweep":
            Coordinator.of(store).settle("pay-1")
        else:
            TransactionalId(store, "pay-1")
    oscalls.clear()
    assert not is_settled(store, "a")


@pytest.mark.parametrize("how", ["sweep", "open"])
@pytest.mark.parametrize("call", ["send", "commit", "abort", "close"])
def test_who_is_fenced_completes_what_others_have_begun_to_end(store: Directory, how: str, call: str) -> None:
    """Nobody else would: they go by the entry of the owner."""
    writer = Writer(store, "pay-1")
    writer.begin()
    writer.send("a", [b"1"])
    fails_half_way(store, how)
    if call == "send":
        with pytest.raises(fastlog.ProducerFencedError):
            writer.send("b", [b"2"])
    elif call == "commit":
        with pytest.raises(fastlog.ProducerFencedError) as caught:
            writer.id.commit()
        assert caught.value.outcome == "aborted"
    elif call == "abort":
        writer.id.abort()
    writer.close()
    assert is_settled(store, "a") and visible(store, "a") == []
    assert not Coordinator.of(store).registry.running()


def test_who_is_fenced_leaves_what_cannot_be_completed_to_the_time_out(
    store: Directory, caplog: pytest.LogCaptureFixture
) -> None:
    writer = Writer(store, "pay-1", timeout_ms=1000)
    writer.begin()
    writer.send("a", [b"1"])
    fails_half_way(store, "sweep")
    oscalls.inject("pwrite", ENOSPC, sticky=True)
    with pytest.raises(fastlog.ProducerFencedError):
        writer.id.commit()
    writer.close()
    oscalls.clear()
    assert caplog.text.count("the end of a transaction of pay-1 is left to its time-out") == 2
    until(lambda: is_settled(store, "a"), "it stays open")
    assert visible(store, "a") == []


def test_a_late_transaction_that_cannot_be_ended_is_tried_again(
    store: Directory, caplog: pytest.LogCaptureFixture
) -> None:
    writer = Writer(store, "pay-1", timeout_ms=500)
    writer.begin()
    writer.send("a", [b"late"])
    oscalls.inject("pwrite", ENOSPC, sticky=True)
    until(lambda: "could not be ended, the next try is in a second" in caplog.text, "nobody tried to end it")
    assert not is_settled(store, "a")
    oscalls.clear()
    until(lambda: is_settled(store, "a"), "it stays open")
    with pytest.raises(fastlog.ProducerFencedError):
        writer.id.commit()
    assert visible(store, "a") == []


def unknown(producer_id: int) -> bytes:
    """A batch of a transaction that no state record tells of, as after power loss."""
    return encode_batch([b"x"], producer_id=producer_id, producer_epoch=0, base_sequence=0, transactional=True)


def test_transactions_that_nobody_knows_are_ended_one_by_one(store: Directory) -> None:
    with store.lease(*A) as lease:
        for number in range(4):
            lease.log.append_batch(unknown(1000 + number))
        coordinator = Coordinator.of(store)
        assert not coordinator.resolve_partition(A, lease.log), "three at a time"
        assert len(lease.log.open_transactions()) == 1
        assert coordinator.wait_until_stable(A, lease.log, lease.log.end_offset)
        assert not lease.log.open_transactions()


def test_who_waits_for_a_transaction_of_the_living_waits_so_long_only(store: Directory) -> None:
    writer = Writer(store, "pay-1")
    writer.begin()
    writer.send("a", [b"1"])
    coordinator = Coordinator.of(store)
    with store.lease(*A) as lease:
        assert not coordinator.wait_until_stable(A, lease.log, 1, timeout_ms=20)
        writer.id.commit()
        assert coordinator.wait_until_stable(A, lease.log, 1, timeout_ms=20)


def test_a_closed_store_takes_no_part(folder: Path) -> None:
    store = open_store(folder / "store")
    coordinator = Coordinator.of(store)
    coordinator.start()
    store.close()
    coordinator.close()
    coordinator.sweep()
    with pytest.raises(fastlog.ClosedError, match=r"the store .* is closed"):
        _ = coordinator.slot


# --- asyncio ---------------------------------------------------------------------------------------------------------


@asynccontextmanager
async def opened(path: Path, partitions: int = 1, **options: Any) -> AsyncIterator[fastlog.aio.Store]:
    """A store with a topic."""
    async with fastlog.aio.open(path / "store", **{"durability": "os", **options}) as store:
        await store.create_topic("orders", partitions, exist_ok=True)
        yield store


def run(main: Coroutine[Any, Any, Any], seconds: float = 30) -> None:
    async def bounded() -> None:
        async with asyncio.timeout(seconds):
            await main

    asyncio.run(bounded())


async def fill(store: fastlog.aio.Store, count: int) -> None:
    async with store.producer() as producer:
        await (await producer.send_many("orders", [b"%d" % number for number in range(count)]))


def test_a_callback_may_close_its_consumer(folder: Path) -> None:
    async def main() -> None:
        async with opened(folder) as store:
            await fill(store, 3)
            consumer: fastlog.aio.Consumer[Any, Any]

            async def on_assigned(names: list[TopicPartition]) -> None:
                await consumer.close()

            consumer = await store.consumer("orders", group="g", start="earliest", on_assigned=on_assigned)
            assert await consumer.poll(timeout=5) == []
            assert consumer.closed
            with pytest.raises(fastlog.ClosedError):
                await consumer.poll()
            assert not (await store.describe_group("g")).members

    run(main())


def test_what_a_callback_asks_for_in_vain_is_raised_in_it(folder: Path) -> None:
    async def main() -> None:
        told: list[str] = []
        async with opened(folder) as store:
            await fill(store, 3)
            consumer: fastlog.aio.Consumer[Any, Any]

            async def on_assigned(names: list[TopicPartition]) -> None:
                with pytest.raises(fastlog.UnknownTopicError):
                    await consumer.seek("orders", 7, offset=0)
                told.append("raised")

            async with await store.consumer("orders", group="g", start="earliest", on_assigned=on_assigned) as consumer:
                assert len(await consumer.poll(timeout=5)) == 3
        assert told == ["raised"]

    run(main())


def test_a_member_that_never_polled_asks_the_group_first(folder: Path) -> None:
    async def main() -> None:
        async with opened(folder, 2) as store, store.consumer("orders", group="g") as consumer:
            assert await consumer.assignment() == [("orders", 0), ("orders", 1)]

    run(main())


def test_an_iterator_of_a_closed_consumer_has_ended(folder: Path) -> None:
    async def main() -> None:
        async with opened(folder) as store:
            await fill(store, 3)
            consumer = await store.consumer("orders", start="earliest")
            iterator, batches = aiter(consumer), consumer.batches()
            await consumer.close()
            assert [record async for record in iterator] == []
            assert [batch async for batch in batches] == []

    run(main())


def test_who_sends_many_times_lets_others_have_their_turn(folder: Path) -> None:
    async def main() -> None:
        turns = 0
        async with opened(folder) as store, store.producer() as producer:

            async def other() -> None:
                nonlocal turns
                while True:
                    turns += 1
                    await asyncio.sleep(0)

            task = asyncio.create_task(other())
            deliveries = [await producer.send_many("orders", [b"x"]) for _ in range(2000)]
            assert turns == 2
            task.cancel()
            await producer.flush()
            assert sum([len((await delivery).offsets) for delivery in deliveries]) == 2000

    run(main())


def test_a_producer_that_is_closed_in_time_has_delivered(folder: Path) -> None:
    async def main() -> None:
        async with opened(folder) as store:
            producer = await store.producer(linger="10s")
            delivery = await producer.send("orders", b"x")
            await producer.close(timeout="5s")
            assert producer.closed and (await delivery).offset == 0

    run(main())


@asynccontextmanager
async def stopped(folder: Path, **options: Any) -> AsyncIterator[tuple[fastlog.aio.Producer, Callable[[], None]]]:
    """A producer whose partition is locked by somebody who does not go on, until the function is called."""
    async with opened(folder) as store, fastlog.aio.open(folder / "store", durability="os") as other:
        await fill(store, 1)
        await fill(other, 1)
        async with store.producer(**options) as producer:
            with ExitStack() as locks:
                locks.enter_context(held(folder / "store" / "topics" / "orders-0" / ".fastlog-control"))
                yield producer, locks.close


def test_a_buffer_that_stays_full_is_told_after_a_while(folder: Path) -> None:
    async def main() -> None:
        async with stopped(folder, buffer_memory="4KiB", max_block="30ms") as (producer, go_on):
            sent = [await producer.send("orders", bytes(3000))]
            with pytest.raises(fastlog.BufferFullError):
                await producer.send("orders", bytes(3000))
            go_on()
            sent.append(await producer.send("orders", bytes(1)))
            assert [(await delivery).offset for delivery in sent] == [2, 3]

    run(main())


def test_a_flush_and_a_close_wait_so_long_only(folder: Path) -> None:
    async def main() -> None:
        async with stopped(folder) as (producer, go_on):
            delivery = await producer.send("orders", b"x")
            with pytest.raises(fastlog.DeliveryTimeoutError, match="not delivered within timeout='500ms'"):
                await producer.flush(timeout="500ms")
            closing = asyncio.create_task(producer.close(timeout="20ms"))
            await asyncio.wait([closing], timeout=5)
            assert producer.closed and closing.done() and not delivery.done(), "it is in the middle of an append"
            go_on()
            assert (await delivery).offset == 2

    run(main())


def test_an_error_says_more_than_what_cannot_be_delivered(folder: Path) -> None:
    async def main() -> None:
        async with opened(folder) as store:
            with pytest.raises(ValueError, match="mine"):
                async with store.producer(linger="10s") as producer:
                    await producer.send("orders", b"x")
                    store.synchronous.close()
                    raise ValueError("mine")

    run(main())


def test_closing_a_store_tells_what_was_not_delivered(folder: Path) -> None:
    """Everything is closed all the same."""

    async def main() -> None:
        store = await fastlog.aio.open(folder / "store", durability="os")
        await store.create_topic("orders")
        await fill(store, 1)
        producer = await store.producer(linger="10s")
        await producer.send("orders", b"x")
        await store.delete_topic("orders")
        with pytest.raises(fastlog.UnknownTopicError):
            await store.close()
        assert producer.closed and store.closed
        await store.close()

    run(main())


def test_closing_a_store_on_a_full_disk_says_so(folder: Path) -> None:
    async def main() -> None:
        store = await fastlog.aio.open(folder / "store", durability="os")
        await store.create_topic("orders")
        await fill(store, 10)
        oscalls.inject("pwrite", ENOSPC, sticky=True)
        with pytest.raises(fastlog.StorageFullError):
            await store.close()
        oscalls.clear()
        assert store.closed

    run(main())
    with fastlog.open(folder / "store", durability="os") as store, store.consumer("orders", start="earliest") as found:
        assert len(found.poll(timeout=5)) == 10


def test_the_timer_of_a_consumer_whose_store_was_closed_ends(folder: Path) -> None:
    async def main() -> None:
        async with opened(folder) as store:
            await fill(store, 3)
            consumer = await store.consumer("orders", group="g", start="earliest", auto_commit_interval="20ms")
            assert len(await consumer.poll()) == 3
            store.synchronous.close()
            timer = consumer._beat_timer
            await asyncio.sleep(0.1)
            assert consumer.closed and consumer._beat_timer is timer
            with pytest.raises(fastlog.ClosedError):
                await consumer.poll()

    run(main())


def test_a_read_is_arrow_data(folder: Path) -> None:
    async def main() -> None:
        async with opened(folder) as store:
            await fill(store, 3)
            read = (await store.topic("orders")).read(columns=["offset", "value"])
            assert "arrow_schema" in repr(read.__arrow_c_schema__())
            assert "arrow_array_stream" in repr(read.__arrow_c_stream__())

    run(main())


def test_a_transaction_that_is_cancelled_as_it_begins_is_aborted(folder: Path) -> None:
    async def main() -> None:
        async with opened(folder) as store, store.producer(transactional_id="t") as producer:
            tx = producer.transaction()
            assert repr(tx).startswith("<aio <")
            beginning = asyncio.create_task(tx.__aenter__())
            await asyncio.sleep(0)
            beginning.cancel()
            with pytest.raises(asyncio.CancelledError):
                await beginning
            assert not tx.is_open and tx.outcome == "aborted"
            async with producer.transaction() as following:
                await following.send("orders", b"x")
            assert following.outcome == "committed"

    run(main())


# --- loops that are closed too early ---------------------------------------------------------------------------------


def test_a_loop_that_was_closed_is_not_told_of_deliveries(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    """The record is delivered all the same, and the threads go on."""
    loop = asyncio.new_event_loop()

    async def begin() -> tuple[fastlog.aio.Store, fastlog.aio.Producer]:
        store = await fastlog.aio.open(folder / "store", durability="os")
        await store.create_topic("orders")
        producer = await store.producer(linger="50ms")
        delivery = await producer.send("orders", b"x")
        delivery.add_done_callback(lambda _: None)
        return store, producer

    with caplog.at_level(logging.ERROR):
        store, producer = loop.run_until_complete(begin())
        loop.close()
        with store.synchronous.consumer("orders", start="earliest") as consumer:
            assert [record.value for record in consumer.poll(timeout=5)] == [b"x"]
        until(lambda: producer.buffered_bytes == 0, "it is still on its way")
        store.synchronous.close()
    assert caplog.text == ""


@pytest.mark.parametrize("is_told", [False, True], ids=["", "told of something it never carries out"])
def test_the_thread_that_listens_ends_with_its_loop(folder: Path, is_told: bool) -> None:
    before = set(threading.enumerate())
    loop = asyncio.new_event_loop()

    async def begin() -> fastlog.aio.Store:
        store = await fastlog.aio.open(folder / "store", durability="os")
        await store.create_topic("orders")
        consumer = await store.consumer("orders", start="earliest")
        waiting = asyncio.create_task(consumer.poll())
        await asyncio.sleep(0.05)
        waiting.cancel()
        # somebody who waits still
        store._ear.attend(lambda: True)
        return store

    store = loop.run_until_complete(begin())
    (thread,) = [found for found in set(threading.enumerate()) - before if found.name == "fastlog-aio-ear"]
    if is_told:
        store._ear.nudge()
    loop.close()
    with store.synchronous.producer() as producer:
        producer.send("orders", b"x")
    thread.join(5)
    assert not thread.is_alive()
    store.synchronous.close()


def test_a_callback_of_a_loop_that_was_closed_is_an_error_and_no_standstill(folder: Path) -> None:
    loop = asyncio.new_event_loop()

    async def on_revoked(names: list[TopicPartition]) -> None:
        raise AssertionError("it cannot run any more")

    async def begin() -> tuple[fastlog.aio.Store, fastlog.aio.Consumer[Any, Any]]:
        store = await fastlog.aio.open(folder / "store", durability="os")
        await store.create_topic("orders")
        consumer = await store.consumer("orders", group="g", on_revoked=on_revoked)
        assert await consumer.assignment() == [("orders", 0)]
        return store, consumer

    store, consumer = loop.run_until_complete(begin())
    loop.close()
    with pytest.raises(RuntimeError, match="Event loop is closed"):
        store.synchronous.close()
    assert consumer.closed
