"""Transactions of a store: all or nothing, one owner of an id at a time, nothing of one that was replaced."""

from __future__ import annotations

import random
import re
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

import fastlog
from fastlog._core import encode_batch
from fastlog._native import oscalls
from fastlog.clients.producer import Producer
from fastlog.records import TopicPartition
from fastlog.store.directory import Directory
from fastlog.store.internal import TRANSACTION_STATE, partition_for_name
from fastlog.transactions import Coordinator, TransactionalId, TransactionState, TransactionStatus
from fastlog.transactions.records import decode_key, decode_value
from fastlog.transactions.states import LAST_EPOCH, MOST_EPOCH, legal
from tests.messaging.transacting import Writer, is_settled, open_store, visible
from tests.oracle.kafka import KafkaOracle


@pytest.fixture
def store(folder: Path) -> Iterator[Directory]:
    with open_store(folder / "store") as directory:
        yield directory


def state_of(directory: Directory, name: str) -> TransactionState:
    state = Coordinator.of(directory).log_of(name).state(name)
    assert state is not None
    return state


# --- one producer ---------------------------------------------------------------------------------------------------


def test_a_commit_shows_everything_and_an_abort_nothing(store: Directory) -> None:
    writer = Writer(store, "pay-1")
    writer.begin()
    writer.send("a", [b"1", b"2"])
    writer.send("b", [b"3"], partition=2)
    writer.send("a", [b"4"])
    assert visible(store, "a") == [] == visible(store, "b", 2)
    assert state_of(store, "pay-1").partitions == (TopicPartition("a", 0), TopicPartition("b", 2))
    writer.id.commit()
    assert visible(store, "a") == [b"1", b"2", b"4"]
    assert visible(store, "b", 2) == [b"3"]
    writer.transaction("a", [b"5"], commit=False)
    writer.transaction("a", [b"6"])
    assert visible(store, "a") == [b"1", b"2", b"4", b"6"]
    assert is_settled(store, "a")
    writer.close()


def test_markers_go_on_where_a_brokers_coordinator_has_counted_further(store: Directory) -> None:
    """The partition comes back from a broker, whose markers carry the epochs of its coordinators."""
    writer = Writer(store, "pay-1")
    writer.transaction("a", [b"1"])
    with store.lease("a", 0) as lease:
        lease.log.end_transaction(writer.id.producer_id, writer.id.producer_epoch, commit=True, coordinator_epoch=7)
        with pytest.raises(fastlog.FencedError, match="coordinator epoch 6") as caught:
            lease.log.end_transaction(writer.id.producer_id, writer.id.producer_epoch, commit=True, coordinator_epoch=6)
        assert (caught.value.kafka_code, caught.value.coordinator_epoch) == (52, 7)
    writer.transaction("a", [b"2"])
    writer.transaction("a", [b"3"], commit=False)
    writer.transaction("a", [b"4"])
    assert visible(store, "a") == [b"1", b"2", b"4"]
    assert is_settled(store, "a")
    writer.close()


def test_what_is_written_down(store: Directory) -> None:
    writer = Writer(store, "pay-1", timeout_ms=5000)
    for commit in (True, False, True):
        writer.transaction("a", [b"x"], commit=commit)
    with store.lease(TRANSACTION_STATE, partition_for_name("pay-1")) as lease:
        states = [decode_value(value) for batch in lease.log.replay() for value in batch.values() if value]
    shown = [(state.status.name, state.producer_epoch, len(state.partitions)) for state in states]
    assert shown == [
        ("EMPTY", 0, 0),
        ("ONGOING", 0, 1), ("PREPARE_COMMIT", 0, 1), ("COMPLETE_COMMIT", 0, 0),
        ("ONGOING", 0, 1), ("PREPARE_ABORT", 1, 1), ("COMPLETE_ABORT", 1, 0),
        ("ONGOING", 1, 1), ("PREPARE_COMMIT", 1, 1), ("COMPLETE_COMMIT", 1, 0),
    ]  # fmt: skip
    assert {state.timeout_ms for state in states} == {5000}
    assert len({state.producer_id for state in states}) == 1
    assert 1 << 40 <= states[0].producer_id < 1 << 62


def test_an_empty_transaction_writes_nothing(store: Directory) -> None:
    writer = Writer(store, "pay-1")
    with store.lease(TRANSACTION_STATE, partition_for_name("pay-1")) as lease:
        end = lease.log.end_offset
        for finish in (writer.id.commit, writer.id.abort):
            writer.begin()
            finish()
        assert lease.log.end_offset == end


def test_a_transaction_of_one_partition_takes_five_appends(store: Directory) -> None:
    writer = Writer(store, "pay-1")
    writer.transaction("a", [b"0"])
    before = oscalls.call_counts()["pwrite"]
    writer.transaction("a", [b"1"] * 100)
    # batches, with their index entries at most
    assert oscalls.call_counts()["pwrite"] - before <= 6


def test_calls_in_the_wrong_order_are_refused(store: Directory) -> None:
    writer = Writer(store, "pay-1")
    for call in (writer.id.commit, writer.id.abort, lambda: writer.id.enter_partition("a", 0)):
        with pytest.raises(fastlog.TransactionError, match="no transaction is open"):
            call()
    writer.begin()
    with pytest.raises(fastlog.TransactionError, match="open already"):
        writer.begin()
    writer.close()
    writer.close()
    with pytest.raises(fastlog.ClosedError):
        writer.begin()


@pytest.mark.parametrize("name", ["", "x" * 40_000, 7])
def test_unusable_ids_are_refused(store: Directory, name: str) -> None:
    with pytest.raises(fastlog.ConfigError, match="transactional_id"):
        TransactionalId(store, name)


def test_closing_aborts(store: Directory) -> None:
    writer = Writer(store, "pay-1")
    writer.begin()
    writer.send("a", [b"1"])
    writer.close()
    assert is_settled(store, "a")
    assert visible(store, "a") == []
    assert Coordinator.of(store).registry.running() == []


def test_levels_sync_data_before_the_decision(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with open_store(folder / "store", durability="interval") as store:
        writer = Writer(store, "pay-1")
        with store.lease("a", 0) as data, store.lease(TRANSACTION_STATE, partition_for_name("pay-1")) as states:
            durable: dict[str, int] = {}

            def look(step: str) -> None:
                durable[step] = data.log.durable_offset

            # markers are synced, too, and the data with them: afterwards nobody can tell what was synced when
            with monkeypatch.context() as patched:
                patched.setattr(oscalls, "reach_failpoint", look)
                writer.transaction("a", [b"1"])
            assert durable["transaction.entered"] == 0
            assert durable["transaction.synced"] == 1
            assert states.log.durable_offset >= states.log.end_offset - 1
        assert visible(store, "a") == [b"1"]
    with open_store(folder / "store", durability="group") as store:
        writer = Writer(store, "pay-1")
        writer.transaction("a", [b"2"])
        assert visible(store, "a") == [b"1", b"2"]


# --- two owners -----------------------------------------------------------------------------------------------------


def test_opening_again_fences_and_aborts(store: Directory) -> None:
    old = Writer(store, "pay-1")
    old.transaction("a", [b"0"])
    old.begin()
    old.send("a", [b"1"])
    new = Writer(store, "pay-1")
    assert new.id.producer_id == old.id.producer_id
    assert new.id.producer_epoch == old.id.producer_epoch + 2  # one for the abort, one for the new owner
    assert visible(store, "a") == [b"0"] and is_settled(store, "a")
    new.transaction("a", [b"2"])
    with pytest.raises(fastlog.ProducerFencedError):
        old.send_unasked("a", [b"late"])
    with pytest.raises(fastlog.ProducerFencedError):
        old.send("b", [b"late"])
    with pytest.raises(fastlog.ProducerFencedError):
        old.begin()
    old.close()
    new.transaction("a", [b"3"])
    assert visible(store, "a") == [b"0", b"2", b"3"]


def test_a_fenced_commit_says_that_it_is_aborted(store: Directory) -> None:
    old = Writer(store, "pay-1")
    old.begin()
    old.send("a", [b"1"])
    Writer(store, "pay-1")
    with pytest.raises(fastlog.ProducerFencedError) as caught:
        old.id.commit()
    assert caught.value.outcome == "aborted"
    assert visible(store, "a") == []


def test_a_zombie_does_not_touch_what_its_successor_has_open(store: Directory) -> None:
    """It looks into a partition for the first time, and finds records of its own producer id there."""
    store.create_topic("t")
    zombie, owner = Writer(store, "pay"), Writer(store, "pay")
    owner.begin()
    owner.send("t", [b"first"])
    zombie.begin()
    with pytest.raises(fastlog.ProducerFencedError):
        zombie.send("t", [b"late"])
    owner.send("t", [b"second"])
    owner.id.commit()
    assert visible(store, "t") == [b"first", b"second"]


def test_an_idle_owner_is_fenced_too(store: Directory) -> None:
    old, new = Writer(store, "pay-1"), Writer(store, "pay-1")
    old.begin()
    with pytest.raises(fastlog.ProducerFencedError):
        old.send("a", [b"1"])
    new.transaction("a", [b"2"])
    assert visible(store, "a") == [b"2"]


def test_an_aborted_partition_is_closed_to_the_old_epoch_even_when_nothing_was_sent_there(store: Directory) -> None:
    """Stopped between entering a partition and its first batch: that must not begin a transaction."""
    old = Writer(store, "pay-1")
    old.begin()
    old.id.enter_partitions([("a", 0), ("a", 1)])
    old.send_unasked("a", [b"1"])
    Writer(store, "pay-1")
    with pytest.raises(fastlog.ProducerFencedError):
        old.send_unasked("a", [b"late"], partition=1)
    assert is_settled(store, "a", 1)


def test_a_replaced_instance_does_not_end_what_the_next_has_open(store: Directory) -> None:
    """It enters a partition for the first time, where its successor, with the same producer id, has a transaction."""
    old = Writer(store, "pay-1")
    old.begin()
    old.send("a", [b"lost"])
    new = Writer(store, "pay-1")
    new.begin()
    new.send("b", [b"1"])
    with pytest.raises(fastlog.ProducerFencedError):
        old.send("b", [b"late"])
    new.id.commit()
    assert (visible(store, "a"), visible(store, "b")) == ([], [b"1"])


def test_a_marker_that_comes_late_does_not_end_the_next_transaction(store: Directory) -> None:
    """Whoever completes in the place of another and is stopped half-way: the id has gone on meanwhile."""
    old = Writer(store, "pay-1")
    old.begin()
    old.send("a", [b"1"])
    coordinator = Coordinator.of(store)
    log = coordinator.log_of("pay-1")
    stopped, _ = log.change("pay-1", lambda state: state.prepared(1, commit=False, by_owner=False) if state else None)
    assert stopped is not None
    new = Writer(store, "pay-1")
    new.begin()
    new.send("a", [b"2"])
    assert coordinator.finish("pay-1", stopped) == state_of(store, "pay-1")
    assert state_of(store, "pay-1").is_ongoing
    assert not is_settled(store, "a")
    new.id.commit()
    assert visible(store, "a") == [b"2"]


def test_a_commit_that_others_complete_is_a_commit(store: Directory, monkeypatch: pytest.MonkeyPatch) -> None:
    writer = Writer(store, "pay-1")
    writer.begin()
    writer.send("a", [b"1"])
    coordinator = Coordinator.of(store)
    finish = coordinator.finish

    def stopped_first(*arguments: object) -> object:
        monkeypatch.undo()
        assert coordinator.settle("pay-1")
        return finish(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(coordinator, "finish", stopped_first)
    epoch = writer.id.producer_epoch
    writer.id.commit()
    assert visible(store, "a") == [b"1"]
    assert writer.id.producer_epoch == epoch + 2
    writer.transaction("a", [b"2"])
    assert visible(store, "a") == [b"1", b"2"]


def test_at_the_end_of_the_epochs_comes_a_new_producer_id(store: Directory) -> None:
    writer = Writer(store, "pay-1")
    log = Coordinator.of(store).log_of("pay-1")
    producer_id = writer.id.producer_id
    writer.close()
    log.change("pay-1", lambda state: TransactionState(producer_id, LAST_EPOCH - 1, 1000))
    writer = Writer(store, "pay-1")
    assert (writer.id.producer_id, writer.id.producer_epoch) == (producer_id, LAST_EPOCH)
    writer.begin()
    writer.send("a", [b"1"])
    writer.id.abort()
    assert writer.id.producer_epoch == MOST_EPOCH
    writer.transaction("a", [b"2"])
    assert writer.id.producer_id != producer_id
    assert writer.id.producer_epoch == 0
    assert visible(store, "a") == [b"2"]


# --- time-outs ------------------------------------------------------------------------------------------------------


def test_a_transaction_that_takes_too_long_is_aborted(store: Directory) -> None:
    late, other = Writer(store, "late", timeout_ms=10_000), Writer(store, "other", timeout_ms=10_000)
    late.begin()
    late.send("a", [b"1"])
    other.begin()
    other.send("b", [b"2"])
    coordinator = Coordinator.of(store)
    coordinator.sweep()
    assert not is_settled(store, "a")
    age(coordinator, "late", 11_000)
    coordinator.sweep()
    assert is_settled(store, "a") and not is_settled(store, "b")
    with pytest.raises(fastlog.ProducerFencedError):
        late.send_unasked("a", [b"late"])
    with pytest.raises(fastlog.ProducerFencedError) as caught:
        late.id.commit()
    assert caught.value.outcome == "aborted"
    other.id.commit()
    assert visible(store, "a") == [] and visible(store, "b") == [b"2"]


def test_the_wall_clock_ages_nothing(store: Directory) -> None:
    writer = Writer(store, "pay-1", timeout_ms=1000)
    writer.begin()
    writer.send("a", [b"1"])
    oscalls.set_clock(oscalls.wall_clock() + 10**10)
    Coordinator.of(store).sweep()
    oscalls.set_clock(None)
    writer.id.commit()
    assert visible(store, "a") == [b"1"]


def test_time_counts_from_the_first_record_of_each_transaction(store: Directory) -> None:
    writer = Writer(store, "pay-1", timeout_ms=10_000)
    coordinator = Coordinator.of(store)
    for value in (b"1", b"2"):
        age(coordinator, "pay-1", 11_000)
        writer.begin()
        coordinator.sweep()
        writer.send("a", [value])
        coordinator.sweep()
        writer.id.commit()
    assert visible(store, "a") == [b"1", b"2"]


def age(coordinator: Coordinator, name: str, milliseconds: int) -> None:
    """Let a transaction have begun earlier."""
    from fastlog.transactions import registry

    for running in coordinator.registry.running():
        if running.name == registry.name_word(name) and running.start:
            word = registry._HEADER + registry._ENTRY * running.index + registry._START
            coordinator.registry.page.store(word, running.start - milliseconds)


# --- what nobody knows ----------------------------------------------------------------------------------------------


def hanging(store: Directory, producer_id: int = 12345) -> None:
    """What power loss leaves when it takes the state record and not the data."""
    batch = encode_batch([b"lost"], producer_id=producer_id, producer_epoch=3, base_sequence=0, transactional=True)
    with store.lease("a", 0) as lease:
        lease.log.append_batch(batch)


def test_a_hanging_transaction_is_aborted_and_others_are_not(store: Directory) -> None:
    hanging(store)
    writer = Writer(store, "pay-1")
    writer.begin()
    writer.send("a", [b"1"])
    with store.lease("a", 0) as lease:
        assert not Coordinator.of(store).resolve_partition(TopicPartition("a", 0), lease.log)
        assert [found.producer_id for found in lease.log.open_transactions()] == [writer.id.producer_id]
        writer.id.commit()
        assert Coordinator.of(store).resolve_partition(TopicPartition("a", 0), lease.log)
    assert visible(store, "a") == [b"1"]


def test_a_hanging_transaction_of_the_same_producer_does_not_become_part_of_the_next(store: Directory) -> None:
    writer = Writer(store, "pay-1")
    hanging(store, writer.id.producer_id)
    with store.lease("a", 0) as lease:
        assert lease.log.open_transactions()[0].producer_epoch == 3
    coordinator = Coordinator.of(store)
    coordinator.log_of("pay-1").change("pay-1", lambda _: TransactionState(writer.id.producer_id, 5, 1000))
    writer = Writer(store, "pay-1")
    writer.transaction("a", [b"1"])
    assert visible(store, "a") == [b"1"]


@pytest.mark.parametrize("again", [True, False])
def test_a_partition_that_was_entered_half_way_is_not_committed(
    store: Directory, monkeypatch: pytest.MonkeyPatch, again: bool
) -> None:
    """What an earlier instance left there could not be ended: no marker of this one may commit it."""
    writer = Writer(store, "pay-1")
    hanging(store, writer.id.producer_id)
    Coordinator.of(store).log_of("pay-1").change("pay-1", lambda _: TransactionState(writer.id.producer_id, 5, 1000))
    writer = Writer(store, "pay-1")
    writer.begin()

    def fail(log: object) -> None:
        raise fastlog.StorageFullError("no space")

    with monkeypatch.context() as patch:
        patch.setattr(writer.id, "_clear", fail)
        with pytest.raises(fastlog.StorageFullError):
            writer.id.enter_partitions([("b", 0), ("a", 0)])
    with pytest.raises(fastlog.TransactionError, match="failed half-way"):
        writer.id.commit()
    if again:
        writer.send("a", [b"1"])
        writer.send("b", [b"1"])
        writer.id.commit()
    else:
        writer.id.abort()
        writer.transaction("b", [b"1"])
    assert (visible(store, "a"), visible(store, "b")) == ([b"1"] if again else [], [b"1"])
    assert is_settled(store, "a")


# --- the next opener ------------------------------------------------------------------------------------------------


def test_opening_alone_ends_what_was_left(folder: Path) -> None:
    with open_store(folder / "store") as store:
        left = {name: Writer(store, name) for name in ("ongoing", "committing", "aborting")}
        for writer in left.values():
            writer.begin()
            writer.send("a", [writer.id.transactional_id.encode()])
        coordinator = Coordinator.of(store)
        for name, commit in (("committing", True), ("aborting", False)):
            coordinator.log_of(name).change(
                name, lambda state, commit=commit: state and state.prepared(1, commit=commit, by_owner=True)
            )
        assert visible(store, "a") == []
    with open_store(folder / "store") as store:
        Coordinator.of(store).attach()
        assert visible(store, "a") == [b"committing"]
        assert is_settled(store, "a")
        for name in left:
            assert not state_of(store, name).is_open
            Writer(store, name).transaction("b", [name.encode()])
        assert sorted(visible(store, "b")) == [b"aborting", b"committing", b"ongoing"]


def test_a_store_without_transactions_is_not_touched(folder: Path) -> None:
    with open_store(folder / "store") as store:
        Coordinator.of(store).attach()
        assert TRANSACTION_STATE not in store.topics(internal=True)


# --- offsets --------------------------------------------------------------------------------------------------------


def test_offsets_are_part_of_the_transaction(store: Directory) -> None:
    writer = Writer(store, "pay-1")
    partition = TopicPartition("a", 1)
    for number, commit in enumerate((True, False, True, True)):
        writer.begin()
        writer.id.append_records(partition, [b"key"], [b"%d" % number])
        if commit:
            writer.id.commit()
        else:
            writer.id.abort()
    assert visible(store, "a", 1) == [b"0", b"2", b"3"]


# --- topics that go -------------------------------------------------------------------------------------------------


def test_a_topic_that_is_deleted_in_the_middle_does_not_hold_up_the_rest(store: Directory) -> None:
    writer = Writer(store, "pay-1")
    writer.begin()
    writer.send("a", [b"1"])
    writer.send("b", [b"gone"])
    store.delete_topic("b")
    writer.id.commit()
    store.create_topic("b", 3)
    writer.sequences.clear()
    writer.begin()
    writer.send("b", [b"2"])
    writer.id.commit()
    assert (visible(store, "a"), visible(store, "b")) == ([b"1"], [b"2"])
    assert is_settled(store, "b")


def test_a_topic_that_is_made_again_in_the_middle_is_another_one(store: Directory) -> None:
    writer = Writer(store, "pay-1")
    writer.begin()
    writer.send("b", [b"gone"])
    store.delete_topic("b")
    store.create_topic("b", 3)
    writer.sequences.clear()
    writer.send("b", [b"1"])
    writer.id.commit()
    assert visible(store, "b") == [b"1"]
    assert is_settled(store, "b")


# --- what cannot be written -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("commit", [True, False])
@pytest.mark.parametrize("nth", range(1, 5))
def test_a_full_disk_at_any_step(store: Directory, nth: int, commit: bool) -> None:
    """Whatever fails, repeating or aborting leads to all or nothing."""
    writer = Writer(store, "pay-1")
    writer.transaction("a", [b"0"])
    writer.begin()
    writer.send("a", [b"1"])
    writer.send("b", [b"1"])
    oscalls.inject("pwrite", nth=nth)
    outcome = None
    try:
        (writer.id.commit if commit else writer.id.abort)()
    except fastlog.StorageError as error:
        outcome = error.outcome
        oscalls.clear()
        if not commit or outcome is None:
            writer.id.abort()
        else:
            assert outcome == "unknown"
            try:
                writer.id.commit()
            except fastlog.TransactionError:
                writer.id.abort()
    oscalls.clear()
    first, second = visible(store, "a"), visible(store, "b")
    assert first[1:] == second
    if not commit:
        assert second == []
    assert is_settled(store, "a") and is_settled(store, "b")
    writer.transaction("a", [b"2"])
    assert visible(store, "a")[-1] == b"2"


def test_an_abort_that_failed_is_no_commit(store: Directory) -> None:
    writer = Writer(store, "pay-1")
    writer.begin()
    writer.send("a", [b"1"])
    oscalls.inject("pwrite", nth=2)
    with pytest.raises(fastlog.StorageError):
        writer.id.abort()
    oscalls.clear()
    with pytest.raises(fastlog.TransactionError) as caught:
        writer.id.commit()
    assert caught.value.outcome == "aborted"
    writer.id.abort()
    assert visible(store, "a") == []
    assert is_settled(store, "a")


# --- Kafka reads it -------------------------------------------------------------------------------------------------


def test_kafka_reads_what_transactions_leave(folder: Path, kafka: KafkaOracle, seed: int) -> None:
    """Every file, and the decoder's story of each id is the one that happened."""
    chance = random.Random(seed)
    story: dict[str, list[tuple[int, int]]] = {"x": [], "y": [], "pay-1": []}
    with open_store(folder / "store") as store:
        for name, told in story.items():
            writer = Writer(store, name)
            told.append((0, writer.id.producer_epoch))
            for _ in range(12):
                writer.begin()
                writer.send("a", [b"value"] * chance.randint(1, 3), chance.randrange(3))
                told.append((1, writer.id.producer_epoch))
                if chance.random() < 0.5:
                    writer.id.commit()
                    told += [(2, writer.id.producer_epoch), (4, writer.id.producer_epoch)]
                else:
                    writer.id.abort()
                    told += [(3, writer.id.producer_epoch), (5, writer.id.producer_epoch)]
    for path in sorted((folder / "store" / "topics").glob("*-*")):
        if not path.is_dir():
            continue
        files = [
            file for file in path.iterdir() if file.suffix in {".log", ".index", ".timeindex", ".txnindex", ".snapshot"}
        ]
        assert kafka.check(sorted(files))[1] == [], path.name
    for name, told in story.items():
        path = folder / "store" / "topics" / f"{TRANSACTION_STATE}-{partition_for_name(name)}"
        output, problems = kafka.dump(sorted(path.glob("*.log")), "--transaction-log-decoder")
        assert not problems
        pattern = re.compile(rf'"transactionalId":"{name}".*"producerEpoch":(\d+),.*"transactionStatus":(\d+),')
        found = [(int(match[2]), int(match[1])) for match in map(pattern.search, output.splitlines()) if match]
        assert found == told


# --- one decision ---------------------------------------------------------------------------------------------------


def test_of_two_who_decide_at_once_one_does(folder: Path, store: Directory) -> None:
    writer = Writer(store, "pay-1")
    writer.begin()
    writer.send("a", [b"1"])
    seen: list[TransactionStatus] = []

    def time_out(state: TransactionState | None) -> TransactionState | None:
        assert state is not None
        seen.append(state.status)
        if len(seen) == 1:
            writer.id.commit()
        return state.prepared(1, commit=False, by_owner=False) if state.is_open else None

    with Directory.open(folder / "store", durability="os") as other:
        _, written = Coordinator.of(other).log_of("pay-1").change("pay-1", time_out)
    assert not written
    assert seen == [TransactionStatus.ONGOING, TransactionStatus.COMPLETE_COMMIT]
    assert visible(store, "a") == [b"1"]


def test_ids_that_share_a_partition_do_not_disturb_each_other(folder: Path, store: Directory) -> None:
    """Two handles, two threads, one state partition: every change follows from the one before it."""
    names = [name for name in map(str, range(1000)) if partition_for_name(name) == 7][:2]

    def work(name: str, topic: str) -> None:
        with Directory.open(folder / "store", durability="os") as handle:
            writer = Writer(handle, name)
            for number in range(40):
                writer.transaction(topic, [b"%d" % number], commit=number % 4 != 3)
            writer.close()

    threads = [threading.Thread(target=work, args=pair) for pair in zip(names, ("a", "b"), strict=True)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    expected = [b"%d" % number for number in range(40) if number % 4 != 3]
    assert visible(store, "a") == expected == visible(store, "b")
    last: dict[str, TransactionState] = {}
    with store.lease(TRANSACTION_STATE, 7) as lease:
        for batch in lease.log.replay():
            for key, value in zip(batch.keys(), batch.values(), strict=True):
                name, state = decode_key(key), decode_value(value or b"")
                assert name is not None
                assert name not in last or legal(last[name].status, state.status)
                last[name] = state
    assert set(last) == set(names)


def test_a_hanging_transaction_is_not_aborted_when_the_partition_moves_on(
    store: Directory, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between the look and the marker a new transaction may have begun: then it looks again."""
    coordinator = Coordinator.of(store)
    coordinator.start()
    hanging(store)
    answers = [False, True]

    def is_known(producer_id: int, partition: TopicPartition) -> bool:
        with Producer(store) as producer:
            producer.send("a", b"meanwhile", partition=0)
        return answers.pop(0)

    monkeypatch.setattr(coordinator, "_is_known", is_known)
    with store.lease("a", 0) as lease:
        coordinator.resolve_partition(TopicPartition("a", 0), lease.log)
        assert answers == []
        assert lease.log.open_transactions()


# --- random walks ---------------------------------------------------------------------------------------------------


def test_random_transactions_agree_with_a_list(store: Directory, seed: int) -> None:
    """Three ids, opened again and again, timed out, aborted and committed: readers see the committed ones, in order."""
    chance = random.Random(seed)
    coordinator = Coordinator.of(store)
    names = ["x", "y", "z"]
    writers = {name: Writer(store, name) for name in names}
    pending: dict[str, list[tuple[int, int, bytes]]] = {}
    committed: dict[int, dict[int, bytes]] = {0: {}, 1: {}, 2: {}}
    for number in range(400):
        name = chance.choice(names)
        writer = writers[name]
        action = chance.choice(["send", "send", "send", "commit", "commit", "abort", "open", "expire", "settle"])
        if action == "send":
            if name not in pending:
                writer.begin()
                pending[name] = []
            partition, value = chance.randrange(3), b"%s-%d" % (name.encode(), number)
            pending[name].append((partition, writer.send("a", [value], partition), value))
        elif action in ("commit", "abort") and name in pending:
            (writer.id.commit if action == "commit" else writer.id.abort)()
            for partition, offset, value in pending.pop(name) if action == "commit" else ():
                committed[partition][offset] = value
            pending.pop(name, None)
        elif action == "open" or (action == "expire" and name in pending):
            if action == "expire":
                age(coordinator, name, 100_000)
                coordinator.sweep()
            writers[name] = Writer(store, name)
            pending.pop(name, None)
        elif action == "settle" and name in pending:
            assert coordinator.settle(name)
            with pytest.raises(fastlog.ProducerFencedError):
                writer.id.commit()
            pending.pop(name)
            writers[name] = Writer(store, name)
    for writer in writers.values():
        writer.close()
    for partition, expected in committed.items():
        assert visible(store, "a", partition) == [expected[offset] for offset in sorted(expected)]
        assert is_settled(store, "a", partition)
        with store.lease("a", partition) as lease:
            assert lease.log.verify().ok


def test_state_of_an_unknown_status_is_never_made(store: Directory) -> None:
    writer = Writer(store, "pay-1")
    writer.transaction("a", [b"1"])
    assert state_of(store, "pay-1").status is TransactionStatus.COMPLETE_COMMIT
