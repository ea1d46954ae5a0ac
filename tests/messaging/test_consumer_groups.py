"""Members of groups: what counts as finished, commits, hand-over, and what is repeated when somebody dies."""

from __future__ import annotations

import errno
import gc
import logging
import os
import random
import signal
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from itertools import islice
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import pytest

import fastlog
from fastlog import OffsetAndMetadata, TopicPartition
from fastlog._native import oscalls
from fastlog.groups.offsets import OffsetStore
from fastlog.groups.table import GroupTable
from tests.messaging.processes import Worker, crew

FIRST = TopicPartition("orders", 0)


@pytest.fixture
def store(tmp_path: Path) -> Iterator[fastlog.Store]:
    with fastlog.open(tmp_path / "store", durability="os") as opened:
        yield opened


def fill(store: fastlog.Store, count: int, partitions: int = 1) -> None:
    topic = store.create_topic("orders", partitions=partitions, exist_ok=True)
    for number in range(partitions):
        log = topic.partition(number)
        first = log.end_offset
        log.append([f"{number}:{first + i}".encode() for i in range(count)])


def committed(store: fastlog.Store, group: str = "g", partition: TopicPartition = FIRST) -> int | None:
    """What everybody else sees."""
    found = OffsetStore(store.directory).committed(group, [partition])[partition]
    return None if found is None else found.offset


def wait_until(condition: Callable[[], object], timeout: float = 20) -> None:
    deadline = time.monotonic() + timeout
    while not condition():
        assert time.monotonic() < deadline, "it never came to that"
        time.sleep(0.01)


def member(store: fastlog.Store, **options: Any) -> fastlog.Consumer[Any, Any]:
    return store.consumer("orders", **{"group": "g", "start": "earliest", **options})


# --- what is finished ------------------------------------------------------------------------------------------------


class Broken(Exception):
    """Of a handler."""


def iterate_and_break(consumer: fastlog.Consumer[Any, Any]) -> None:
    with consumer:
        for record in consumer:
            if record.offset == 4:
                break


def iterate_and_fail(consumer: fastlog.Consumer[Any, Any]) -> None:
    with pytest.raises(Broken), consumer:
        for record in consumer:
            if record.offset == 4:
                raise Broken


def iterate_and_interrupt(consumer: fastlog.Consumer[Any, Any]) -> None:
    with pytest.raises(KeyboardInterrupt), consumer:
        for record in consumer:
            if record.offset == 4:
                raise KeyboardInterrupt


def iterate_and_close(consumer: fastlog.Consumer[Any, Any]) -> None:
    for record in consumer:
        if record.offset == 4:
            consumer.close()


def iterate_to_the_end(consumer: fastlog.Consumer[Any, Any]) -> None:
    with consumer:
        assert len(list(consumer.records(until="end"))) == 10


def poll_once(consumer: fastlog.Consumer[Any, Any]) -> None:
    with consumer:
        assert len(consumer.poll(5)) == 5


def poll_twice(consumer: fastlog.Consumer[Any, Any]) -> None:
    with consumer:
        consumer.poll(5)
        consumer.poll(2)


def poll_and_commit(consumer: fastlog.Consumer[Any, Any]) -> None:
    with pytest.raises(Broken), consumer:
        consumer.poll(5)
        consumer.commit()
        consumer.poll(2)
        raise Broken


def batches_and_fail(consumer: fastlog.Consumer[Any, Any]) -> None:
    with pytest.raises(Broken), consumer:
        for _ in consumer.batches():
            raise Broken


def batches_to_the_end(consumer: fastlog.Consumer[Any, Any]) -> None:
    with consumer:
        assert sum(len(batch) for batch in consumer.batches(timeout=0)) == 10


def commit_in_the_middle_of_an_iteration(consumer: fastlog.Consumer[Any, Any]) -> None:
    with pytest.raises(Broken), consumer:
        for record in consumer:
            if record.offset == 4:
                consumer.commit()
                raise Broken


def poll_then_iterate(consumer: fastlog.Consumer[Any, Any]) -> None:
    with pytest.raises(Broken), consumer:
        consumer.poll(3)
        for record in consumer:
            assert record.offset == 3
            raise Broken


@pytest.mark.parametrize(
    ("handle", "finished"),
    [
        (iterate_and_break, 5),
        (iterate_and_fail, 4),
        (iterate_and_interrupt, 4),
        (iterate_and_close, 4),
        (iterate_to_the_end, 10),
        (poll_once, 0),
        (poll_twice, 5),
        (poll_and_commit, 5),
        (batches_and_fail, 0),
        (batches_to_the_end, 10),
        (commit_in_the_middle_of_an_iteration, 5),
        (poll_then_iterate, 3),
    ],
)
def test_what_is_finished_is_committed_and_nothing_else(
    store: fastlog.Store, handle: Callable[[fastlog.Consumer[Any, Any]], None], finished: int
) -> None:
    fill(store, 10)
    handle(member(store))
    assert committed(store) == finished
    with member(store) as consumer:
        rest = [record.offset for record in consumer.poll(timeout=0)]
    assert rest == list(range(finished, 10))


def test_without_auto_commit_only_commit_counts(store: fastlog.Store) -> None:
    fill(store, 10)
    with member(store, auto_commit=False) as consumer:
        for record in consumer:
            if record.offset == 4:
                break
    assert committed(store) is None
    with member(store, auto_commit=False) as consumer:
        assert len(consumer.poll(6)) == 6
        consumer.commit()
        consumer.poll(2)
    assert committed(store) == 6


def test_a_latest_member_that_read_nothing_still_keeps_its_place(store: fastlog.Store) -> None:
    fill(store, 3)
    with member(store, start="latest") as consumer:
        assert consumer.poll(timeout=0) == []
    fill(store, 2)
    with member(store, start="latest") as consumer:
        assert [record.offset for record in consumer.poll(timeout=0)] == [3, 4]


# --- commits ---------------------------------------------------------------------------------------------------------


def test_commit_of_a_record_a_batch_or_offsets(store: fastlog.Store) -> None:
    fill(store, 10)
    with pytest.raises(Broken), member(store, auto_commit=False) as consumer:
        records = consumer.poll(5)
        consumer.commit(records[2])
        assert committed(store) == 3
        batch = next(consumer.batches())
        consumer.commit(batch)
        assert committed(store) == 10
        consumer.commit({FIRST: 7})
        assert committed(store) == 7
        consumer.commit({FIRST: OffsetAndMetadata(8, "note")})
        for found in (consumer.committed(), consumer.committed([TopicPartition("orders", 0)])):
            assert found[FIRST] is not None and found[FIRST][:3] == (8, "note", -1)
        for wrong in ("orders", {FIRST: -1}, {FIRST: "1"}, [records[0]]):
            with pytest.raises(fastlog.ConfigError):
                consumer.commit(wrong)  # type: ignore[arg-type]
        raise Broken


def test_an_automatic_commit_does_not_take_back_what_commit_has_said(store: fastlog.Store) -> None:
    """The record in hand of an iteration is not finished; but commit(record) says that it is."""
    fill(store, 10)
    with member(store, auto_commit_interval=0.02) as consumer:
        for record in consumer:
            if record.offset == 6:
                consumer.commit(record)
                assert committed(store) == 7
                time.sleep(0.2)
                assert committed(store) == 7
                break


def test_auto_commit_follows_the_interval_also_while_a_handler_takes_its_time(store: fastlog.Store) -> None:
    """kill -9 in a slow handler repeats what is in hand, not what was finished before it."""
    fill(store, 10)
    with member(store, auto_commit_interval="50ms") as consumer:
        for record in consumer:
            if record.offset == 6:
                wait_until(lambda: committed(store) == 6)  # no call of the consumer meanwhile
                break
    with member(store, auto_commit_interval="50ms") as consumer:
        assert len(consumer.poll(2)) == 2
        assert len(consumer.poll(1)) == 1
        wait_until(lambda: committed(store) == 9)


def test_a_commit_that_fails_is_logged_and_costs_repeats_only(
    store: fastlog.Store, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    fill(store, 10)
    consumer = member(store)
    consumer.poll(5)
    consumer.poll(1)

    def refuse(*_: Any) -> None:
        raise fastlog.CommitFailedError("somebody else owns it")

    monkeypatch.setattr(consumer.membership, "commit", refuse)
    with pytest.raises(fastlog.CommitFailedError):
        consumer.commit()
    consumer.close()
    assert "automatic commit was refused" in caplog.text
    assert committed(store) is None


def test_seek_moves_what_is_committed(store: fastlog.Store) -> None:
    fill(store, 10)
    with member(store) as consumer:
        consumer.poll(5)
        consumer.seek("orders", 0, offset=2)
    assert committed(store) == 2


def test_a_stored_offset_that_fell_out_of_retention(store: fastlog.Store, caplog: pytest.LogCaptureFixture) -> None:
    fill(store, 10)
    with member(store) as consumer:
        consumer.poll(2)
        consumer.commit()
    store.topic("orders").partition(0).delete_records(before=5)
    with (
        member(store, out_of_range="raise") as consumer,
        pytest.raises(fastlog.OffsetOutOfRangeError, match="orders-0"),
    ):
        consumer.poll(timeout=0)
    with member(store) as consumer:
        assert [record.offset for record in consumer.poll(1, timeout=0)] == [5]
    assert "offset 2 is not in the log" in caplog.text


# --- several members -------------------------------------------------------------------------------------------------


def test_two_members_share_and_hand_over(store: fastlog.Store) -> None:
    """In one process: what the first had in hand when the second came is handled once, and committed at the revoke."""
    fill(store, 5, partitions=4)
    revoked: list[TopicPartition] = []
    seen: list[tuple[int, int]] = []

    def take(records: list[fastlog.Record]) -> None:
        seen.extend((record.partition, record.offset) for record in records)

    def on_revoked(names: list[TopicPartition]) -> None:
        for name in names:
            assert committed(store, partition=name) in (5, 6), "committed before the callback"
        revoked.extend(names)

    with member(store, on_revoked=on_revoked, auto_commit_interval="1h") as first:
        take(first.poll(timeout=0))
        assert len(first.assignment()) == 4
        with member(store) as second:
            assert second.assignment() == []
            take(first.poll(timeout=0))  # lets go
            assert len(first.assignment()) == 2 and len(revoked) == 2
            take(second.poll(timeout=0))
            assert sorted(second.assignment()) == sorted(revoked)
            fill(store, 1, partitions=4)
            take(first.poll())
            take(second.poll())
            take(first.poll(timeout=0))
            take(second.poll(timeout=0))
        take(first.poll(timeout=0))
        assert len(first.assignment()) == 4
    assert sorted(seen) == [(number, offset) for number in range(4) for offset in range(6)]


def test_a_callback_commits_at_close(store: fastlog.Store) -> None:
    fill(store, 5)
    revoked: list[TopicPartition] = []

    def on_revoked(names: list[TopicPartition]) -> None:
        revoked.extend(names)
        consumer.commit()

    with member(store, on_revoked=on_revoked, auto_commit=False) as consumer:
        assert len(consumer.poll()) == 5
    assert revoked == [FIRST] and committed(store) == 5


def test_callbacks(store: fastlog.Store) -> None:
    fill(store, 5, partitions=2)
    told: list[tuple[str, list[TopicPartition]]] = []

    def note(what: str) -> Callable[[list[TopicPartition]], None]:
        return lambda names: told.append((what, list(names)))

    consumer: fastlog.Consumer[Any, Any]

    def on_assigned(names: list[TopicPartition]) -> None:
        told.append(("assigned", list(names)))
        for name in names:
            consumer.seek(name, offset=3)

    consumer = member(store, on_assigned=on_assigned, on_revoked=note("revoked"), on_lost=note("lost"))
    with consumer:
        assert sorted(record.offset for record in consumer.poll(timeout=0)) == [3, 3, 4, 4]
    both = [TopicPartition("orders", 0), TopicPartition("orders", 1)]
    assert told == [("assigned", both), ("revoked", both)]


def test_a_member_that_does_not_poll_is_put_out_and_cannot_commit(store: fastlog.Store) -> None:
    fill(store, 10)
    lost: list[TopicPartition] = []
    with member(store, max_poll_interval="300ms", on_lost=lost.extend, auto_commit=False) as slow:
        assert len(slow.poll(5)) == 5
        with member(store, auto_commit=False) as other:
            wait_until(lambda: other.poll(timeout="50ms"))
            with pytest.raises(fastlog.CommitFailedError):
                slow.commit()
            other.commit()
            assert slow.poll(timeout=0) == []
            assert lost == [FIRST]
    assert committed(store) == 10


def test_a_newer_member_of_the_same_instance_wins(store: fastlog.Store) -> None:
    fill(store, 10)
    older = member(store, instance_id="a", auto_commit=False)
    assert len(older.poll(2)) == 2
    with member(store, instance_id="a", auto_commit=False) as newer:
        wait_until(lambda: newer.poll(timeout="50ms"))
        with pytest.raises(fastlog.GroupError, match="instance"):
            while True:
                older.poll(timeout=0)
        assert older.assignment() == [] if not older.closed else True
        older.close()


def test_waiting_members_are_woken_by_the_group(store: fastlog.Store) -> None:
    fill(store, 10)
    first = member(store)
    first.poll(2)
    got: list[fastlog.Record] = []

    def wait() -> None:
        with member(store) as second:
            got.extend(second.poll(timeout=30))

    thread = threading.Thread(target=wait)
    thread.start()
    time.sleep(0.3)
    begun = time.monotonic()
    first.close()
    thread.join()
    assert time.monotonic() - begun < 5
    assert got[0].offset in (0, 2)


def test_describe_and_reset(store: fastlog.Store) -> None:
    fill(store, 10)
    with member(store, client_id="me") as consumer:
        consumer.poll()
        consumer.commit()
        found = store.describe_group("g")
        assert found.state == "Stable" and found.members[0].partitions == [FIRST]
        assert store.groups() == ["g"]
        with pytest.raises(fastlog.GroupError, match="members"):
            store.reset_offsets("g", to="earliest")
    assert store.reset_offsets("g", to=4)[FIRST].offset == 4
    with member(store) as consumer:
        assert consumer.poll(1)[0].offset == 4
    store.delete_group("g")
    assert store.groups() == []


def test_records_until_the_end_in_a_group(store: fastlog.Store) -> None:
    fill(store, 10, partitions=3)
    with member(store) as consumer:
        assert len(list(consumer.records(until="end"))) == 30
    assert [committed(store, partition=TopicPartition("orders", n)) for n in range(3)] == [10, 10, 10]


def test_records_until_the_end_wait_for_what_others_hand_over(store: fastlog.Store) -> None:
    fill(store, 10, partitions=2)
    with member(store, auto_commit=False) as first:
        assert len(first.assignment()) == 2
        with member(store, auto_commit=False) as second:
            timer = threading.Timer(0.3, lambda: first.poll(timeout=0))  # only here it lets go of a partition
            timer.start()
            assert len(list(second.records(until="end"))) == 10
            timer.join()


def test_records_until_the_end_do_not_wait_for_ever(
    store: fastlog.Store, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("fastlog.clients.bounds.PATIENCE_MS", 100)
    fill(store, 10, partitions=2)
    with member(store, auto_commit=False) as first:
        assert len(first.assignment()) == 2
        with member(store, auto_commit=False) as second:
            assert list(second.records(until="end")) == []
    assert "did not hand over" in caplog.text


def test_what_a_callback_raises_keeps_nothing_from_being_taken(store: fastlog.Store) -> None:
    fill(store, 10)

    def fail(names: list[TopicPartition]) -> None:
        raise Broken

    with member(store, on_lost=fail) as consumer:
        assert len(consumer.poll(5)) == 5
        store.directory.delete_topic("orders")
        fill(store, 3)
        with pytest.raises(Broken):
            consumer.poll(timeout=0)
        assert [record.offset for record in consumer.poll(timeout="5s")] == [0, 1, 2]
        consumer.commit()
    assert committed(store) == 3


def test_a_position_of_a_lost_partition_is_not_committed_when_it_is_taken_anew(store: fastlog.Store) -> None:
    """What was read by an earlier epoch counts no more, though the member is the owner again."""
    fill(store, 10)
    with member(store, max_poll_interval="200ms", auto_commit=False) as slow:
        records = slow.poll(5)
        with member(store, auto_commit=False) as other:
            wait_until(lambda: other.poll(timeout="50ms"))
            other.commit()
        membership = slow.membership
        assert membership is not None
        changes = membership.poll()  # as if it was interrupted before it heard of it
        assert changes is not None and changes.lost == changes.assigned == [FIRST]
        for what in (None, records[-1], {FIRST: 5}):
            with pytest.raises(fastlog.CommitFailedError):
                slow.commit(what)
    assert committed(store) == 10


def test_retention_that_comes_close_is_warned_of(store: fastlog.Store, caplog: pytest.LogCaptureFixture) -> None:
    from fastlog.clients.progress import retention_warnings

    topic = store.create_topic("orders", retention="10m")
    now = int(time.time() * 1000)
    topic.partition(0).append([b"a", b"b"], timestamps=[now - 560_000, now])
    with member(store) as consumer, caplog.at_level(logging.WARNING, "fastlog.consumer"):
        consumer.poll(1, timeout=0)
        retention_warnings("g", consumer._fetcher)
        assert "about to lose" not in caplog.text
        consumer.seek("orders", 0, offset=0)
        retention_warnings("g", consumer._fetcher)
        assert "group 'g' is about to lose records of orders-0" in caplog.text


# --- for transactions ------------------------------------------------------------------------------------------------


def test_enlisting_ends_automatic_commits_and_rewind_goes_back(store: fastlog.Store) -> None:
    fill(store, 10)
    with member(store, auto_commit_interval="20ms") as consumer:
        iterator = iter(consumer)
        for _ in range(3):
            next(iterator)
        consumer.enlist()
        assert committed(store) == 2  # what was finished before; the third is in hand
        assert consumer.offsets_in_hand() == {FIRST: (3, "", -1, 0)}
        for _ in range(3):
            next(iterator)
        assert consumer.offsets_in_hand()[FIRST].offset == 6
        time.sleep(0.2)
        assert committed(store) == 2
        consumer.rewind()
        assert next(iterator).offset == 2
        consumer.rewind()
        assert [record.offset for record in consumer.poll(4)] == [2, 3, 4, 5]
        assert consumer.offsets_in_hand()[FIRST].offset == 6
    assert committed(store) == 2


def test_a_rewind_that_failed_is_done_before_anything_is_handed_out_or_committed(store: fastlog.Store) -> None:
    """What a transaction that was taken back has read comes again, also when nobody could look up where that is."""
    fill(store, 10)
    store.create_topic("results")
    with member(store) as consumer, store.producer(transactional_id="t") as producer:

        def move(count: int) -> None:
            with producer.transaction(consumer) as transaction:
                for record in consumer.poll(count):
                    transaction.send("results", record.value)
                transaction.commit_offsets()

        move(2)
        try:
            with pytest.raises(Broken), producer.transaction(consumer) as transaction:
                consumer.poll(3)
                transaction.commit_offsets()
                oscalls.inject("mmap", errno=errno.ENOMEM, sticky=True)  # only reading needs it
                raise Broken
            assert oscalls.injected()
            calls: list[Callable[[], object]] = [
                consumer.commit, consumer.offsets_in_hand, lambda: consumer.position(FIRST), lambda: consumer.poll(1),
            ]  # fmt: skip
            for call in calls:
                with pytest.raises(fastlog.StorageError):
                    call()
        finally:
            oscalls.clear()
        assert consumer.offsets_in_hand() == {}
        assert consumer.position(FIRST) == 2
        for _ in range(4):
            move(2)
        values = [record.value for record in store.topic("results").partition(0).records(0)]
        assert values == [f"0:{number}".encode() for number in range(10)]


def test_rewind_without_a_commit_goes_back_to_where_reading_began(store: fastlog.Store) -> None:
    fill(store, 10)
    with member(store, start=lambda _: 4, auto_commit=False) as consumer:
        consumer.poll(3)
        consumer.rewind()
        assert consumer.poll(1)[0].offset == 4


# --- processes -------------------------------------------------------------------------------------------------------


def handle_slowly(connection: Connection, path: str, interval: str, pause: float) -> None:
    """Tells of each record when it was handled; says "in hand" before."""
    with (
        fastlog.open(path, durability="os") as store,
        store.consumer("orders", group="g", start="earliest", auto_commit_interval=interval) as consumer,
    ):
        connection.send("ready")
        for record in consumer:
            time.sleep(pause)
            connection.send((record.partition, record.offset))


def drain(worker: Worker, found: list[Any], seconds: float = 0) -> None:
    deadline = time.monotonic() + seconds
    try:
        while worker.connection.poll(max(deadline - time.monotonic(), 0)):
            found.append(worker.connection.recv())
    except EOFError:
        pass


def test_kill_9_loses_nothing_and_repeats_little(store: fastlog.Store) -> None:
    """Ten kills in a row: every record is handled, and each kill repeats what one interval finished and one in hand."""
    fill(store, 400, partitions=2)
    handled: list[tuple[int, int]] = []
    kills = 0
    with crew() as start:
        while len(set(handled)) < 800 and kills < 100:
            worker = start(handle_slowly, store.path, "20ms", 0.001)
            assert worker.answer() == "ready"
            drain(worker, handled, 0.4 if kills < 10 else 5)
            worker.kill()
            drain(worker, handled)
            kills += 1
    assert len(set(handled)) == 800
    repeated = len(handled) - len(set(handled))
    # 20 ms at 1 ms each, and room for a machine that is busy
    assert repeated <= kills * 150, (repeated, kills)


def test_a_dead_member_is_taken_over_at_once(store: fastlog.Store) -> None:
    fill(store, 1000)
    with crew() as start:
        dead = start(handle_slowly, store.path, "10ms", 0.02)
        assert dead.answer() == "ready"
        assert dead.answer() == (0, 0)
        heir = start(handle_slowly, store.path, "10ms", 0)
        assert heir.answer() == "ready"
        dead.kill()
        killed = time.monotonic()
        first = heir.answer()
        assert time.monotonic() - killed < 5
        handled: list[Any] = [(0, 0), first]
        drain(dead, handled)
        wait_until(lambda: drain(heir, handled, 0.1) or len(set(handled)) >= 1000)
    assert set(handled) == {(0, offset) for offset in range(1000)}


def handle_politely(connection: Connection, path: str) -> None:
    """Polls until told to leave; sends what it handled at the end."""
    handled = []
    with (
        fastlog.open(path, durability="os") as store,
        store.consumer("orders", group="g", start="earliest", auto_commit_interval="100ms") as consumer,
    ):
        connection.send("ready")
        while not connection.poll(0):
            handled += [(record.partition, record.offset) for record in consumer.poll(20, timeout="20ms")]
        connection.recv()
        consumer.commit()
    connection.send(handled)


def test_members_that_come_and_go_politely_handle_everything_once(store: fastlog.Store) -> None:
    fill(store, 300, partitions=6)
    handled: list[tuple[int, int]] = []
    with crew() as start:
        workers = []
        for _ in range(3):
            workers.append(start(handle_politely, store.path))
            assert workers[-1].answer() == "ready"
            fill(store, 100, partitions=6)
        for _ in range(2):
            leaving = workers.pop(0)
            leaving.tell("leave")
            handled += leaving.answer()
            fill(store, 50, partitions=6)
        last = workers.pop()
        ends = [store.topic("orders").partition(number).end_offset for number in range(6)]
        wait_until(lambda: [committed(store, partition=TopicPartition("orders", n)) for n in range(6)] == ends)
        last.tell("leave")
        handled += last.answer()
    everything = [(number, offset) for number in range(6) for offset in range(ends[number])]
    assert sorted(set(handled)) == everything
    assert len(handled) == len(everything), "handled twice without a death"


def test_a_member_in_the_middle_of_a_batch_lets_go_at_its_next_record(store: fastlog.Store) -> None:
    """Its handlers are slow, and what it fetched would last for a minute."""
    fill(store, 2000, partitions=2)
    with crew() as start:
        slow = start(handle_slowly, store.path, "10s", 0.03)
        assert slow.answer() == "ready"
        slow.answer()
        slow.answer()
        begun = time.monotonic()
        with member(store) as second:
            assert second.poll(timeout=20)
            assert time.monotonic() - begun < 1.5


def test_a_partition_that_cannot_be_opened_is_tried_again(
    store: fastlog.Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    fill(store, 5, partitions=3)
    lease, failures = store.directory.lease, [fastlog.LockedError("somebody holds it")]

    def failing(topic: str, partition: int, *rest: Any) -> Any:
        if topic == "orders" and partition == 1 and failures:
            raise failures.pop()
        return lease(topic, partition, *rest)

    told: list[TopicPartition] = []
    with member(store, on_assigned=told.extend) as consumer:
        monkeypatch.setattr(store.directory, "lease", failing)
        with pytest.raises(fastlog.LockedError):
            consumer.poll(timeout=0)
        assert len(list(consumer.records(until="end"))) == 15
        assert sorted(told) == [TopicPartition("orders", number) for number in range(3)]


def test_partitions_whose_handing_over_failed_are_handed_over_at_the_next_poll(store: fastlog.Store) -> None:
    fill(store, 5, partitions=4)
    revoked: list[TopicPartition] = []
    with member(store, on_revoked=revoked.extend, auto_commit=False) as first:
        first.poll(1)
        with member(store) as second:
            try:
                oscalls.inject("flock", errno=errno.EIO, sticky=True)
                with pytest.raises(fastlog.StorageError):
                    first.poll(1)
            finally:
                oscalls.clear()
            told = list(revoked)
            assert len(told) == 2
            wait_until(lambda: first.poll(1, timeout=0) is not None and second.poll(1, timeout=0))
            assert second.assignment() == sorted(told)
            assert revoked == told, "it is told once"


@pytest.mark.parametrize("change", ["assigned", "revoked", "lost"])
def test_what_an_interrupt_kept_from_the_consumer_it_is_told_at_the_next_poll(
    store: fastlog.Store, monkeypatch: pytest.MonkeyPatch, change: str
) -> None:
    """The member has told the group, and been told, and then comes Ctrl-C."""
    fill(store, 5, partitions=4)
    with member(store) as first, member(store) as second:
        membership = first.membership
        assert membership is not None
        if change == "revoked":
            second.close()
            first.poll(1)
            second = member(store)
        elif change == "lost":
            first.poll(1, timeout=0)
            store.delete_topic("orders")
            fill(store, 5, partitions=4)
        poll = membership.poll

        def interrupted() -> Any:
            changes = poll()
            assert getattr(changes, change)
            monkeypatch.undo()
            raise KeyboardInterrupt

        monkeypatch.setattr(membership, "poll", interrupted)
        with pytest.raises(KeyboardInterrupt):
            first.poll(1, timeout=0)
        found: list[tuple[int, int]] = []

        def read_all() -> bool:
            for consumer in (first, second):
                found.extend((record.partition, record.offset) for record in consumer.poll(timeout=0))
            return len(first.assignment()) == len(second.assignment()) == 2

        wait_until(read_all)
        for consumer in (first, second):
            assert consumer.membership is not None
            assert consumer.assignment() == sorted(consumer.membership.owned())
            consumer.commit()
        wait_until(lambda: read_all() and len(set(found)) >= 19)
        second.close()


@pytest.mark.parametrize("step", ["_note_progress", "_own_names", "_commit_quietly", "on_revoked"])
def test_a_close_that_is_interrupted_leaves_the_group_all_the_same(store: fastlog.Store, step: str) -> None:
    fill(store, 5, partitions=4)

    def interrupt(*arguments: object) -> None:
        raise KeyboardInterrupt

    with member(store) as second:
        before = held_by(store)
        first = member(store, on_revoked=interrupt if step == "on_revoked" else None)
        wait_until(lambda: second.poll(1, timeout=0) is not None and first.poll(1, timeout=0))
        if step != "on_revoked":
            setattr(first, step, interrupt)
        with pytest.raises(KeyboardInterrupt):
            first.close()
        assert first.closed
        wait_until(lambda: second.poll(1, timeout=0) is not None and len(second.assignment()) == 4)
        wait_until(lambda: held_by(store)[1:] == before[1:])
        first.close()


def stopped_handler(connection: Connection, path: str) -> None:
    """Polls; handles the second list only after it was stopped and continued; tells what came of it."""
    lost: list[TopicPartition] = []
    with (
        fastlog.open(path, durability="os") as store,
        store.consumer(
            "orders", group="g", start="earliest", max_poll_interval="500ms", on_lost=lost.extend, auto_commit=False
        ) as consumer,
    ):
        consumer.poll(5)
        consumer.commit()
        connection.send([record.offset for record in consumer.poll(5)])
        connection.recv()
        try:
            consumer.commit()
            connection.send("committed")
        except fastlog.CommitFailedError:
            connection.send("refused")
        consumer.poll(timeout=0)
        connection.send(lost)


def test_a_member_that_was_stopped_cannot_move_the_group_when_it_goes_on(store: fastlog.Store) -> None:
    fill(store, 20)
    with crew() as start:
        zombie = start(stopped_handler, store.path)
        assert zombie.answer() == [5, 6, 7, 8, 9]
        os.kill(zombie.pid, signal.SIGSTOP)
        with member(store, auto_commit=False) as heir:
            records = heir.poll(timeout=20)
            assert [record.offset for record in records] == list(range(5, 20))
            heir.commit(records[9])
            zombie.tell("go on")
            os.kill(zombie.pid, signal.SIGCONT)
            assert zombie.answer() == "refused"
            assert zombie.answer() == [FIRST]
            assert committed(store) == 15


def live_somehow(connection: Connection, path: str, seed: int) -> None:
    """Handles records in one way or another, until told to stop; tells of each after it was handled."""
    chance = random.Random(seed)
    with fastlog.open(path, durability="os") as store:
        connection.send("ready")
        while True:
            with store.consumer("orders", group="g", start="earliest", auto_commit_interval="30ms") as consumer:
                way = chance.choice(["iterate", "poll", "batches", "commit"])
                for _ in range(chance.randrange(1, 30)):
                    if connection.poll(0):
                        return
                    if way == "iterate":
                        for record in islice(consumer.records(until=None, idle_timeout="20ms"), 50):
                            connection.send((record.partition, record.offset))
                    elif way == "batches":
                        for batch in islice(consumer.batches(timeout="20ms"), 2):
                            for offset in batch.offsets:
                                connection.send((batch.partition, int(offset)))
                    else:
                        for record in consumer.poll(chance.randrange(1, 100), timeout="20ms"):
                            connection.send((record.partition, record.offset))
                        if way == "commit":
                            try:
                                consumer.commit()
                            except fastlog.CommitFailedError:
                                pass


def test_random_lives_and_deaths_lose_nothing(store: fastlog.Store, seed: int) -> None:
    """Members come, leave, are killed and stopped at random while records are written: each record is handled."""
    chance = random.Random(seed)
    fill(store, 100, partitions=5)
    handled: list[Any] = []
    with crew() as start:
        workers: list[Worker] = []
        until = time.monotonic() + 8
        while time.monotonic() < until:
            if len(workers) < 3:
                workers.append(start(live_somehow, store.path, chance.randrange(1 << 32)))
            victim = chance.choice(workers)
            what = chance.random()
            if what < 0.2:
                victim.kill()
                drain(victim, handled)
                workers.remove(victim)
            elif what < 0.4:
                os.kill(victim.pid, signal.SIGSTOP)
                time.sleep(0.2)
                os.kill(victim.pid, signal.SIGCONT)
            fill(store, chance.randrange(1, 20), partitions=5)
            for worker in workers:
                drain(worker, handled, 0.05)
        ends = [store.topic("orders").partition(number).end_offset for number in range(5)]
        everything = {(number, offset) for number in range(5) for offset in range(ends[number])}

        def is_all_handled() -> bool:
            for worker in workers:
                drain(worker, handled)
            return everything <= set(handled)

        wait_until(is_all_handled, 60)
        assert set(handled) - {"ready"} == everything


def test_a_consumer_that_nobody_refers_to_has_left(store: fastlog.Store) -> None:
    fill(store, 10)
    dropped = member(store)
    assert dropped.poll(2)
    gone = weakref.ref(dropped)
    del dropped
    gc.collect()
    assert gone() is None
    with member(store) as other:
        assert other.poll(timeout=20)
    wait_until(lambda: not [thread for thread in threading.enumerate() if thread.name == "fastlog-consumer"])


def held_by(store: fastlog.Store) -> tuple[int, list[str], int, int]:
    """Leases, groups, closers and threads."""
    directory = store.directory
    threads = [thread for thread in threading.enumerate() if thread.name in ("fastlog-consumer", "fastlog-group")]
    leases = sum(entry.leases for entry in directory._pool._entries.values())
    return leases, list(directory.companions[GroupTable]), len(directory._closers), len(threads)


@pytest.mark.parametrize("group", [None, "g"])
def test_a_consumer_that_nobody_refers_to_gives_back_what_it_held(store: fastlog.Store, group: str | None) -> None:
    fill(store, 10, partitions=3)
    with member(store) as polite:
        polite.poll(2)
    before = held_by(store)
    dropped = member(store, group=group)
    assert dropped.poll(2)
    assert held_by(store) != before
    gone = weakref.ref(dropped)
    del dropped
    gc.collect()
    assert gone() is None
    wait_until(lambda: held_by(store) == before)
    with member(store) as other:
        assert other.poll(timeout=20)


def test_a_consumer_that_nobody_refers_to_may_go_wherever_a_thread_is(store: fastlog.Store) -> None:
    """In the middle of all that its end is about, with every lock held."""
    fill(store, 10, partitions=3)
    before = member(store)
    before.poll(2)
    held, dropped = held_by(store)[0], [member(store), member(store, group=None)]
    wait_until(lambda: before.poll(1, timeout=0) is not None and dropped[0].poll(1, timeout=0))
    pool, table = store.directory._pool, store.directory.companions[GroupTable]["g"]
    with store.directory.making, table._mutex, table._watch_lock, pool._mutex:
        dropped.clear()
        gc.collect()
        assert len(table.dropped) == 1
        assert len(pool.dropped) > 3
    wait_until(lambda: before.poll(timeout=0) is not None and len(before.assignment()) == 3 and table.users == 1)
    wait_until(lambda: held_by(store)[0] == held)
    before.close()


def test_closing_a_store_ends_what_dropped_consumers_held(tmp_path: Path) -> None:
    with fastlog.open(tmp_path / "closed", durability="os") as store:
        fill(store, 1)
        dropped = member(store)
        dropped.poll(1)
        table = store.directory.companions[GroupTable]["g"]
        with table._watch_lock:  # nobody else ends it
            del dropped
            gc.collect()
            assert len(table.dropped) == 1
    assert not table.dropped
    assert table.users == 0
