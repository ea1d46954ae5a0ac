"""Consumers without a group: iteration, poll, batches, bounded reads, positions, waiting."""

from __future__ import annotations

import errno
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

import fastlog
from fastlog import TopicPartition
from fastlog._native import oscalls
from tests.messaging.processes import crew


@pytest.fixture
def store(tmp_path: Path) -> Iterator[fastlog.Store]:
    with fastlog.open(tmp_path / "store", durability="os") as opened:
        yield opened


def fill(store: fastlog.Store, topic: str, counts: list[int], **options: Any) -> None:
    """A topic with so many records in each partition; values are ``<partition>:<offset>``."""
    store.create_topic(topic, partitions=len(counts), exist_ok=True)
    for number, count in enumerate(counts):
        if count:
            log = store.topic(topic).partition(number)
            first = log.end_offset
            log.append([f"{number}:{first + i}".encode() for i in range(count)], **options)


def values(records: list[fastlog.Record]) -> list[bytes | None]:
    return [record.value for record in records]


def after(seconds: float, action: Callable[[], object]) -> threading.Timer:
    timer = threading.Timer(seconds, action)
    timer.start()
    return timer


# --- handing out -----------------------------------------------------------------------------------------------------


def test_poll_hands_out_every_record_once_in_order(store: fastlog.Store) -> None:
    fill(store, "orders", [700, 900, 0, 3])
    seen: dict[int, list[int]] = {0: [], 1: [], 2: [], 3: []}
    with store.consumer("orders", start="earliest") as consumer:
        while records := consumer.poll(max_records=100, timeout=0):
            assert len(records) <= 100
            for record in records:
                assert record.value == f"{record.partition}:{record.offset}".encode()
                seen[record.partition].append(record.offset)
    assert seen == {0: list(range(700)), 1: list(range(900)), 2: [], 3: list(range(3))}


def test_iteration_poll_and_batches_go_on_where_the_last_one_ended(store: fastlog.Store) -> None:
    fill(store, "orders", [10])
    with store.consumer("orders", start="earliest") as consumer:
        iterator = iter(consumer)
        assert next(iterator).offset == 0
        assert [record.offset for record in consumer.poll(2)] == [1, 2]
        assert next(iter(consumer)).offset == 3
        assert consumer.position("orders", 0) == 4
        batch = next(consumer.batches())
        assert list(batch.offsets) == [4, 5, 6, 7, 8, 9]
        assert consumer.poll(timeout=0) == []
        assert consumer.position("orders", 0) == 10


def test_partitions_take_turns(store: fastlog.Store) -> None:
    """A full partition starves no other: nobody waits longer than a round."""
    store.create_topic("orders", partitions=3)
    for number in range(3):
        log = store.topic("orders").partition(number)
        for _ in range(20):
            log.append([os.urandom(4096) for _ in range(8)])
    with store.consumer("orders", start="earliest", fetch_bytes="32KiB") as consumer:
        turns = [batch.partition for batch in consumer.batches(timeout=0)]
    assert sorted(turns) == sorted([0, 1, 2] * (len(turns) // 3))
    assert all(set(turns[i : i + 3]) == {0, 1, 2} for i in range(0, len(turns) - 3, 3))


def test_batches_are_columns_and_end_with_the_timeout(store: fastlog.Store) -> None:
    fill(store, "orders", [5, 5])
    with store.consumer("orders", start="earliest") as consumer:
        begun = time.monotonic()
        found = [batch.values.to_list() for batch in consumer.batches(timeout="200ms")]
        assert 0.15 < time.monotonic() - begun < 5
    assert sorted(found) == [[f"{p}:{i}".encode() for i in range(5)] for p in range(2)]


def test_deserializers_and_null(store: fastlog.Store) -> None:
    log = store.create_topic("orders").partition(0)
    log.append([b"1", None, b"3"], keys=[None, b"k", b"k"])
    with store.consumer("orders", start="earliest", key_deserializer=bytes.decode, value_deserializer=int) as consumer:
        assert [(record.key, record.value) for record in consumer.poll()] == [(None, 1), ("k", None), ("k", 3)]


@pytest.mark.parametrize("way", ["poll", "iterate"])
def test_a_record_that_cannot_be_decoded_is_named_and_can_be_passed(store: fastlog.Store, way: str) -> None:
    store.create_topic("orders").partition(0).append([b"0", b"1", b"x", b"3"])
    with store.consumer("orders", start="earliest", value_deserializer=int) as consumer:
        got: list[int] = []
        with pytest.raises(
            fastlog.InvalidRecordError, match=r"orders-0 at offset 2 .*seek\('orders', 0, offset=3\)"
        ) as error:
            while True:
                if way == "poll":
                    got += [record.value for record in consumer.poll(timeout=0)]
                else:
                    for record in consumer:
                        got.append(record.value)
        assert got == [0, 1]
        assert (error.value.topic, error.value.partition, error.value.offset) == ("orders", 0, 2)
        assert consumer.position("orders", 0) == 2
        with pytest.raises(fastlog.InvalidRecordError):  # until somebody goes past it
            consumer.poll(timeout=0)
        consumer.seek("orders", 0, offset=3)
        assert [record.value for record in consumer.poll(timeout=0)] == [3]


def test_an_interrupted_poll_loses_nothing(store: fastlog.Store) -> None:
    """Ctrl-C in the middle of a poll: what was not handed out comes again."""
    fill(store, "orders", [10, 10])

    def interrupted(data: bytes) -> bytes:
        if data == b"1:5" and not consumer.has_failed:  # type: ignore[attr-defined]
            consumer.has_failed = True  # type: ignore[attr-defined]
            raise KeyboardInterrupt
        return data

    with store.consumer("orders", start="earliest", value_deserializer=interrupted) as consumer:
        consumer.has_failed = False  # type: ignore[attr-defined]
        with pytest.raises(KeyboardInterrupt):
            consumer.poll(timeout=0)
        records = consumer.poll(timeout=0)
        assert sorted((r.partition, r.offset) for r in records) == [(p, i) for p in range(2) for i in range(10)]


# --- bounded reads ---------------------------------------------------------------------------------------------------


def test_records_until_the_end(store: fastlog.Store) -> None:
    fill(store, "orders", [3, 2])
    with store.consumer("orders", start="earliest") as consumer:
        seen = []
        for record in consumer.records(until="end"):
            seen.append((record.partition, record.offset))
            if len(seen) == 1:
                fill(store, "orders", [10, 10])  # came too late
        assert sorted(seen) == [(0, 0), (0, 1), (0, 2), (1, 0), (1, 1)]
        assert len(list(consumer.records(until="end"))) == 20
        assert list(consumer.records(until="end")) == []


def test_records_until_an_end_that_a_failed_sync_puts_back(store: fastlog.Store) -> None:
    fill(store, "orders", [1])
    log = store.topic("orders").partition(0)
    log.flush()
    fill(store, "orders", [1])
    with store.consumer("orders", start="earliest", fetch_bytes=1) as consumer:
        records = consumer.records(until="end", idle_timeout="20s")
        assert next(records).offset == 0
        oscalls.inject("fdatasync", errno=errno.EIO)
        with pytest.raises(fastlog.StorageError):
            log.flush()
        oscalls.clear()
        began = oscalls.steady_clock()
        assert list(records) == []
        assert oscalls.steady_clock() - began < 10_000


def test_records_until_offsets(store: fastlog.Store) -> None:
    fill(store, "orders", [10, 10, 10])
    with store.consumer("orders", start="earliest") as consumer:
        until = {TopicPartition("orders", 0): 3, TopicPartition("orders", 2): 1}
        assert sorted(values(list(consumer.records(until=until)))) == [b"0:0", b"0:1", b"0:2", b"2:0"]
        assert consumer.position("orders", 0) == 3
        assert consumer.position("orders", 1) == 0


def test_records_until_a_time(store: fastlog.Store) -> None:
    now = int(time.time() * 1000)
    log = store.create_topic("orders").partition(0)
    log.append([b"a", b"b", b"c"], timestamps=[now - 3000, now - 2000, now - 1000])
    moment = datetime.fromtimestamp((now - 1500) / 1000, UTC)
    with store.consumer("orders", start="earliest") as consumer:
        assert values(list(consumer.records(until=moment))) == [b"a", b"b"]
        later = datetime.now(UTC) + timedelta(milliseconds=2000)
        timer = after(0.1, lambda: log.append([b"d"]))
        assert values(list(consumer.records(until=later))) == [b"c", b"d"]
        assert datetime.now(UTC) >= later
        timer.join()


def test_records_until_idle(store: fastlog.Store) -> None:
    fill(store, "orders", [3])
    with store.consumer("orders", start="earliest") as consumer:
        timer = after(0.1, lambda: fill(store, "orders", [2]))
        assert len(list(consumer.records(until=None, idle_timeout="400ms"))) == 5
        timer.join()


def test_a_bad_end_is_refused(store: fastlog.Store) -> None:
    fill(store, "orders", [1])
    with store.consumer("orders") as consumer:
        for until in ("soon", 5, datetime(2024, 1, 1)):
            with pytest.raises(fastlog.ConfigError):
                consumer.records(until=until)  # type: ignore[arg-type]


# --- where reading begins --------------------------------------------------------------------------------------------


def test_start(store: fastlog.Store) -> None:
    now = int(time.time() * 1000)
    log = store.create_topic("orders").partition(0)
    log.append([b"old", b"new"], timestamps=[now - 3_600_000, now - 1000])

    def first(start: Any) -> bytes | None:
        with store.consumer("orders", start=start) as consumer:
            records = consumer.poll(timeout=0)
            return records[0].value if records else None

    assert first("earliest") == b"old"
    assert first("latest") is None
    assert first("-10m") == b"new"
    assert first("-2h") == b"old"
    assert first(datetime.fromtimestamp((now - 5000) / 1000, UTC)) == b"new"
    assert first(lambda partition: 1 if partition == ("orders", 0) else 0) == b"new"
    assert first(lambda partition: "earliest") == b"old"
    for wrong in ("10m", "-soon", 5, datetime(2024, 1, 1), None):
        with pytest.raises(fastlog.ConfigError):
            store.consumer("orders", start=wrong)  # type: ignore[arg-type]
    with pytest.raises(fastlog.ConfigError):
        store.consumer("orders", start=lambda partition: None)  # type: ignore[arg-type,return-value]


def test_what_is_appended_after_a_latest_consumer_was_opened_is_read(store: fastlog.Store) -> None:
    fill(store, "orders", [5])
    with store.consumer("orders") as consumer:
        fill(store, "orders", [1])
        assert values(consumer.poll()) == [b"0:5"]


def test_given_partitions(store: fastlog.Store) -> None:
    fill(store, "orders", [1, 1, 1])
    with store.consumer("orders", start="earliest", partitions=[2, 0]) as consumer:
        assert consumer.assignment() == [("orders", 0), ("orders", 2)]
        assert sorted(values(consumer.poll())) == [b"0:0", b"2:0"]
    with store.consumer(["orders"], partitions=[TopicPartition("orders", 1)]) as consumer:
        assert consumer.assignment() == [TopicPartition("orders", 1)]
    with pytest.raises(fastlog.UnknownTopicError, match="no partition 3"):
        store.consumer("orders", partitions=[3])
    with pytest.raises(fastlog.ConfigError, match="group"):
        store.consumer("orders", group="g", partitions=[0])


def test_patterns_follow_topics_that_come_and_go(store: fastlog.Store) -> None:
    import re

    fill(store, "orders-eu", [1])
    fill(store, "other", [1])
    with store.consumer(re.compile("orders-.*"), start="earliest") as consumer:
        assert values(consumer.poll()) == [b"0:0"]
        fill(store, "orders-us", [2])
        assert [record.topic for record in consumer.poll()] == ["orders-us"] * 2
        store.delete_topic("orders-eu")
        assert consumer.poll(timeout=0) == []
        assert consumer.assignment() == [("orders-us", 0)]


def test_new_partitions_are_read_from_their_start_also_at_latest(store: fastlog.Store) -> None:
    fill(store, "orders", [3])
    with store.consumer("orders") as consumer:
        store.add_partitions("orders", 2)
        fill(store, "orders", [0, 2])
        assert values(consumer.poll()) == [b"1:0", b"1:1"]


def test_unknown_topics_are_named(store: fastlog.Store) -> None:
    fill(store, "orders", [1])
    with pytest.raises(fastlog.UnknownTopicError, match="orders"):
        store.consumer("order")
    for wrong in ([], [1], 5):
        with pytest.raises((fastlog.ConfigError, TypeError)):
            store.consumer(wrong)  # type: ignore[arg-type]


# --- positions -------------------------------------------------------------------------------------------------------


def test_seek(store: fastlog.Store) -> None:
    now = int(time.time() * 1000)
    for number in range(2):
        log = store.create_topic("orders", 2, exist_ok=True).partition(number)
        log.append([f"{number}:{i}".encode() for i in range(5)], timestamps=[now - 5000 + 1000 * i for i in range(5)])
    with store.consumer("orders", start="earliest") as consumer:
        consumer.poll()
        consumer.seek("orders", 0, offset=3)
        assert values(consumer.poll(timeout=0)) == [b"0:3", b"0:4"]
        consumer.seek(timestamp=datetime.fromtimestamp((now - 1500) / 1000, UTC))
        assert sorted(values(consumer.poll(timeout=0))) == [b"0:4", b"1:4"]
        consumer.seek_to_beginning(TopicPartition("orders", 1))
        assert len(consumer.poll(timeout=0)) == 5
        consumer.seek_to_beginning()
        consumer.seek_to_end()
        assert consumer.poll(timeout=0) == []
        assert consumer.beginning_offsets() == {("orders", 0): 0, ("orders", 1): 0}
        assert consumer.end_offsets([TopicPartition("orders", 1)]) == {("orders", 1): 5}
        # while iterating, what was fetched is dropped
        consumer.seek("orders", 0, offset=0)
        iterator = iter(consumer)
        assert next(iterator).value == b"0:0"
        consumer.seek("orders", 0, offset=4)
        assert next(iterator).value == b"0:4"


def test_seek_is_checked(store: fastlog.Store) -> None:
    fill(store, "orders", [3])
    with store.consumer("orders", start="earliest", out_of_range="earliest") as consumer:
        with pytest.raises(fastlog.UnknownTopicError, match="orders-1 is not assigned"):
            consumer.seek("orders", 1, offset=0)
        for wrong in (
            {},
            {"offset": 1, "timestamp": datetime.now(UTC)},
            {"offset": -1},
            {"timestamp": datetime(2024, 1, 1)},
        ):
            with pytest.raises(fastlog.ConfigError):
                consumer.seek("orders", 0, **wrong)  # type: ignore[arg-type]
        consumer.seek("orders", 0, offset=4)  # seen when it is fetched
        with pytest.raises(fastlog.OffsetOutOfRangeError, match="orders-0"):
            consumer.poll(timeout=0)
        consumer.seek("orders", 0, offset=3)
        assert consumer.poll(timeout=0) == []


def test_pause_and_resume(store: fastlog.Store) -> None:
    fill(store, "orders", [2, 2])
    with store.consumer("orders", start="earliest") as consumer:
        consumer.pause(TopicPartition("orders", 0))
        assert consumer.paused() == [("orders", 0)]
        assert values(consumer.poll(timeout=0)) == [b"1:0", b"1:1"]
        assert consumer.poll(timeout=0) == []
        consumer.resume(TopicPartition("orders", 0))
        assert values(consumer.poll(timeout=0)) == [b"0:0", b"0:1"]
        consumer.seek_to_beginning()
        iterator = iter(consumer)
        first = next(iterator)
        consumer.pause(TopicPartition("orders", first.partition))
        assert next(iterator).partition != first.partition


def test_lag(store: fastlog.Store) -> None:
    now = int(time.time() * 1000)
    fill(store, "orders", [4, 0], timestamps=[now - 10_000 + i for i in range(4)])
    with store.consumer("orders", start="earliest") as consumer:
        lag = consumer.lag()
        assert lag[TopicPartition("orders", 0)].records == 4
        assert 9.9 < lag[TopicPartition("orders", 0)].seconds < 60
        assert lag[TopicPartition("orders", 1)] == (0, 0.0)
        consumer.poll()
        assert consumer.lag()[TopicPartition("orders", 0)] == (0, 0.0)
        stats = consumer.stats()
        assert stats.records == 4 and stats.batches == 1


# --- what falls out of the log ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("out_of_range", "start", "expected"),
    [
        ("start", "earliest", 5),
        ("start", "latest", 8),
        ("earliest", "latest", 5),
        ("latest", "earliest", 8),
        ("raise", "earliest", None),
    ],
)
def test_retention_overtakes(
    store: fastlog.Store, caplog: pytest.LogCaptureFixture, out_of_range: str, start: str, expected: int | None
) -> None:
    fill(store, "orders", [8])
    with store.consumer("orders", start=lambda _: 2, out_of_range="raise") as consumer:
        consumer.poll(1)
        consumer._fetcher._start, consumer._fetcher._out_of_range = start, out_of_range
        store.topic("orders").partition(0).delete_records(before=5)
        consumer._drop_cursor()
        if expected is None:
            with pytest.raises(fastlog.OffsetOutOfRangeError, match=r"orders-0.*out_of_range='raise'"):
                consumer.poll(timeout=0)
            return
        consumer.poll(max_records=1, timeout=0)
        assert consumer.position("orders", 0) == min(expected + 1, 8)
        assert consumer.stats().resets == 1
        assert "offset 2 is not in the log" in caplog.text or "offset 3 is not in the log" in caplog.text


def test_an_offset_beyond_the_end_is_no_silent_reset(store: fastlog.Store) -> None:
    fill(store, "orders", [3])
    with store.consumer("orders", start=lambda _: 100) as consumer, pytest.raises(fastlog.OffsetOutOfRangeError):
        consumer.poll(timeout=0)
    with store.consumer("orders", start=lambda _: 100, out_of_range="latest") as consumer:
        assert consumer.poll(timeout=0) == []
        assert consumer.position("orders", 0) == 3


# --- transactions ----------------------------------------------------------------------------------------------------


def test_isolation(store: fastlog.Store) -> None:
    from fastlog._core import encode_batch

    log = store.create_topic("orders").partition(0)
    log.append_batch(encode_batch([b"t"], producer_id=7, producer_epoch=0, base_sequence=0, transactional=True))
    log.append([b"plain"])
    with (
        store.consumer("orders", start="earliest") as committed,
        store.consumer("orders", start="earliest", isolation="read_uncommitted") as everything,
    ):
        assert committed.poll(timeout=0) == []
        assert values(everything.poll(timeout=0)) == [b"t", b"plain"]
        log.end_transaction(7, 0, commit=False)
        assert values(committed.poll()) == [b"plain"]
        assert committed.poll(timeout=0) == []
        assert committed.position("orders", 0) == 3  # behind the marker


# --- waiting ---------------------------------------------------------------------------------------------------------


def test_poll_waits_and_is_woken(store: fastlog.Store) -> None:
    store.create_topic("orders", partitions=40)
    with store.consumer("orders") as consumer:
        for number in (0, 17, 39):
            log = store.topic("orders").partition(number)
            timer = after(0.2, lambda log=log: log.append([b"x"]))
            begun = time.monotonic()
            assert [record.partition for record in consumer.poll(timeout=20)] == [number]
            assert 0.1 < time.monotonic() - begun < 5
            timer.join()
        begun = time.monotonic()
        assert consumer.poll(timeout="100ms") == []
        assert 0.09 < time.monotonic() - begun < 5


def test_waiting_costs_no_cpu(store: fastlog.Store) -> None:
    store.create_topic("orders", partitions=20)
    with store.consumer("orders") as consumer:
        consumer.poll(timeout=0)
        begun = time.thread_time()
        consumer.poll(timeout=1)
        assert time.thread_time() - begun < 0.2


def test_close_from_another_thread_ends_the_iteration(store: fastlog.Store) -> None:
    fill(store, "orders", [3])
    consumer = store.consumer("orders", start="earliest")
    timer = after(0.2, consumer.close)
    assert len(list(consumer)) == 3
    timer.join()
    assert consumer.closed
    with pytest.raises(fastlog.ClosedError):
        consumer.poll()
    with pytest.raises(fastlog.ClosedError):
        iter(consumer)
    consumer.close()


def test_close_in_the_middle_of_a_batch_ends_the_iteration(store: fastlog.Store) -> None:
    fill(store, "orders", [1000])
    consumer = store.consumer("orders", start="earliest")
    seen = 0
    for _ in consumer:
        seen += 1
        if seen == 10:
            consumer.close()
    assert seen == 10


def test_closing_the_store_closes_its_consumers(tmp_path: Path) -> None:
    store = fastlog.open(tmp_path / "store", durability="os")
    fill(store, "orders", [1])
    consumer = store.consumer("orders")
    timer = after(0.2, store.close)
    assert list(consumer) == []
    timer.join()
    assert consumer.closed and store.closed


def test_one_thread_at_a_time(store: fastlog.Store) -> None:
    fill(store, "orders", [0])
    with store.consumer("orders") as consumer:
        thread = threading.Thread(target=consumer.poll, kwargs={"timeout": 1})
        thread.start()
        time.sleep(0.2)
        with pytest.raises(fastlog.LockedError, match="another thread"):
            consumer.poll(timeout=0)
        thread.join()
        assert consumer.poll(timeout=0) == []


def interrupted(connection: Any, path: str) -> None:
    with fastlog.open(path, durability="os") as store, store.consumer("orders") as consumer:
        connection.send("waiting")
        try:
            for _ in consumer:
                pass
        except KeyboardInterrupt:
            connection.send(time.monotonic())


def test_ctrl_c_ends_the_wait_at_once(store: fastlog.Store) -> None:
    fill(store, "orders", [0])
    with crew() as start:
        worker = start(interrupted, store.path)
        assert worker.answer() == "waiting"
        time.sleep(0.3)
        begun = time.monotonic()
        os.kill(worker.pid, signal.SIGINT)
        assert worker.answer() - begun < 1
        assert worker.join() == 0


def test_a_signal_handler_may_close(store: fastlog.Store) -> None:
    fill(store, "orders", [0])
    consumer = store.consumer("orders")
    before = signal.signal(signal.SIGUSR1, lambda *_: consumer.close())
    try:
        after(0.2, lambda: os.kill(os.getpid(), signal.SIGUSR1))
        assert list(consumer) == []
        assert consumer.closed
    finally:
        signal.signal(signal.SIGUSR1, before)


def test_a_forked_child_is_refused(store: fastlog.Store) -> None:
    fill(store, "orders", [1])
    with store.consumer("orders", start="earliest") as consumer:
        child = os.fork()
        if child == 0:
            try:
                consumer.poll(timeout=0)
            except fastlog.ForkedHandleError:
                os._exit(7)
            os._exit(1)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7
        assert values(consumer.poll(timeout=0)) == [b"0:0"]


def test_a_lone_reader_sees_what_writers_leave_that_come_and_go(tmp_path: Path) -> None:
    path = tmp_path / "visited"
    with fastlog.open(path, durability="os") as writer:
        fill(writer, "orders", [1, 0])
    with fastlog.open(path, read_only=True) as reader, reader.consumer("orders", start="earliest") as consumer:
        assert values(consumer.poll(timeout=0)) == [b"0:0"]
        for expected in (b"1:0", b"1:1", b"1:2"):
            with fastlog.open(path, durability="os") as writer:
                fill(writer, "orders", [0, 1])
            assert values(consumer.poll(timeout=10)) == [expected]


def test_a_read_only_store_can_be_consumed(store: fastlog.Store) -> None:
    fill(store, "orders", [2, 0])
    with fastlog.open(store.path, read_only=True) as reader, reader.consumer("orders", start="earliest") as consumer:
        assert values(consumer.poll()) == [b"0:0", b"0:1"]
        fill(store, "orders", [0, 1])
        assert values(consumer.poll(timeout=10)) == [b"1:0"]


def test_what_needs_a_group_says_so(store: fastlog.Store) -> None:
    fill(store, "orders", [1])
    with store.consumer("orders") as consumer:
        for call in (consumer.commit, consumer.committed, consumer.enlist):
            with pytest.raises(fastlog.GroupError, match="group"):
                call()
    with pytest.raises(fastlog.GroupError):
        store.consumer("orders", group="")
    with pytest.raises(fastlog.ConfigError):
        store.consumer("orders", instance_id="a")


def test_a_topic_that_is_deleted_under_a_waiting_consumer(
    store: fastlog.Store, caplog: pytest.LogCaptureFixture
) -> None:
    fill(store, "orders", [1])
    fill(store, "others", [0])
    with store.consumer(["orders", "others"]) as consumer:
        timer = after(0.2, lambda: store.delete_topic("orders"))
        late = after(0.5, lambda: fill(store, "others", [1]))
        assert [record.topic for record in consumer.poll(timeout=20)] == ["others"]
        assert consumer.assignment() == [("others", 0)]
        assert "orders-0 were deleted" in caplog.text or "orders-0" in caplog.text
        timer.join()
        late.join()
