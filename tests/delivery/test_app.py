"""Apps in one process: what is called, in which order, how often, and where records are afterwards."""

from __future__ import annotations

import asyncio
import contextlib
import random
import re
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import fastlog
from fastlog._native import oscalls
from fastlog.delivery.app import App
from tests.delivery.apps import Driven, HandClock, committed, driven, records_of, send, values_of

SECOND = 1000


@pytest.fixture
def store(folder: Path) -> Iterator[fastlog.Store]:
    with fastlog.open(folder / "store", durability="os") as opened:
        yield opened


@pytest.fixture
def clock() -> HandClock:
    return HandClock()


def plain_retry(attempts: int, backoff: Any = ("1s", "10s"), **options: Any) -> fastlog.Retry:
    return fastlog.Retry(attempts, backoff=backoff, jitter=False, **options)


# --- finished records ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("order_by", ["partition", "key", "none"])
@pytest.mark.parametrize("concurrency", [1, 7])
def test_every_record_is_handled_once_and_committed(
    store: fastlog.Store, clock: HandClock, order_by: Any, concurrency: int
) -> None:
    store.create_topic("orders", 2)
    values = [b"%d" % number for number in range(300)]
    send(store, "orders", values, [b"k%d" % (number % 20) for number in range(300)])
    app = App(store, clock=clock)
    seen = []

    @app.subscriber("orders", group="mail", concurrency=concurrency, order_by=order_by)
    def mail(record: fastlog.Record) -> None:
        seen.append((record.topic, record.partition, record.offset, record.value))

    with driven(app, clock):
        pass
    assert sorted(value for *_, value in seen) == sorted(values)
    for partition in range(2):
        own = [offset for _, number, offset, _ in seen if number == partition]
        assert own == sorted(own)
    assert not any(lag.records for lag in store.group_lag("mail", ["orders"]).values())
    again = App(store, clock=clock)
    again.subscriber("orders", group="mail")(seen.append)
    with driven(again, clock):
        pass
    assert len(seen) == 300


def test_a_clean_end_says_so_and_a_beginning_does_not(store: fastlog.Store, clock: HandClock) -> None:
    from fastlog.delivery.finished import Finished

    store.create_topic("orders")
    send(store, "orders", [b"a", b"b"])
    app = App(store, clock=clock)
    app.subscriber("orders", group="mail")(lambda record: None)
    place = fastlog.TopicPartition("orders", 0)
    with driven(app, clock):
        known = committed(store, "mail")[place]
        assert not Finished.decode(known.offset, known.metadata).clean
    known = committed(store, "mail")[place]
    assert (known.offset, known.metadata) == (2, "")


def test_what_is_finished_is_committed_every_second(store: fastlog.Store, clock: HandClock) -> None:
    store.create_topic("orders")
    app = App(store, clock=clock)
    app.subscriber("orders", group="mail")(lambda record: None)
    place = fastlog.TopicPartition("orders", 0)
    with driven(app, clock) as running:
        send(store, "orders", [b"a"])
        running.settle()
        assert committed(store, "mail")[place].offset == 0
        running.advance(SECOND)
        assert committed(store, "mail")[place].offset == 1
        send(store, "orders", [b"b"] * 2000)
        running.settle()
        assert committed(store, "mail")[place].offset >= 1000


# --- failures --------------------------------------------------------------------------------------------------------


def test_a_failing_record_is_tried_again_when_it_is_due_and_then_a_dead_letter(
    store: fastlog.Store, clock: HandClock
) -> None:
    store.create_topic("orders")
    send(store, "orders", [b"bad", b"good"], [b"a", b"b"], headers={"h": b"x"})
    app = App(store, clock=clock)
    calls: list[tuple[int, bytes | None]] = []

    @app.subscriber("orders", group="mail", retry=plain_retry(3))
    def mail(record: fastlog.Record) -> None:
        calls.append((clock.now, record.value))
        assert (record.topic, record.partition, record.headers["h"]) == ("orders", 0, b"x")
        assert list(record.headers) == [("h", b"x")]
        if record.value == b"bad":
            raise ValueError("no address")

    begin = clock.now
    with driven(app, clock) as running:
        assert [value for _, value in calls] == [b"bad", b"good"]
        running.advance(999)
        assert len(calls) == 2
        running.advance(1)
        running.advance(1999)
        assert len(calls) == 3
        running.advance(1)
        assert [(at - begin, value) for at, value in calls[2:]] == [(1000, b"bad"), (3000, b"bad")]
        stats = running.stats()["mail"]
        assert (stats.calls, stats.succeeded, stats.failed, stats.retried, stats.dead_lettered) == (4, 1, 3, 2, 1)
        running.advance(3600 * SECOND)
    assert len(calls) == 4
    letters = records_of(store, "orders.mail.dlq")
    assert [(letter.key, letter.value) for letter in letters] == [(b"a", b"bad")]
    headers = letters[0].headers
    assert (headers["fastlog.dlq.attempts"], headers["fastlog.dlq.exception"]) == (b"3", b"ValueError")
    assert headers["h"] == b"x"
    assert not any(lag.records for lag in store.group_lag("mail").values())


def test_due_times_follow_the_wall_clock_when_it_jumps(store: fastlog.Store, clock: HandClock) -> None:
    store.create_topic("orders")
    send(store, "orders", [b"1"])
    app = App(store, clock=clock)
    calls: list[int] = []

    @app.subscriber("orders", group="mail", retry=plain_retry(4, "10s"))
    def mail(record: fastlog.Record) -> None:
        calls.append(clock.wall())
        raise ValueError

    with driven(app, clock) as running:
        clock.jump(-3600 * SECOND)
        running.advance(20 * SECOND)
        assert len(calls) == 1
        clock.jump(3600 * SECOND)
        running.settle()
        assert len(calls) == 2
        clock.jump(3600 * SECOND)
        running.settle()
        assert len(calls) == 3
        clock.jump(-3600 * SECOND)
        running.advance(3610 * SECOND)
        assert len(calls) == 4
    assert len(records_of(store, "orders.mail.dlq")) == 1


def test_without_retry_there_is_one_attempt(store: fastlog.Store, clock: HandClock) -> None:
    store.create_topic("orders")
    send(store, "orders", [b"bad"] * 600)
    app = App(store, clock=clock)
    calls = []

    @app.subscriber("orders", group="mail", order_by="none")
    def mail(record: fastlog.Record) -> None:
        calls.append(record.offset)
        raise KeyError(record.offset)

    with driven(app, clock) as running:
        stats = running.stats()["mail"]
        assert stats.dead_lettered == 600
        assert stats.moves <= 6
    assert calls == list(range(600))
    assert len(records_of(store, "orders.mail.dlq")) == 600
    assert not records_of(store, "orders.mail.retry")


def test_where_a_group_begins_is_said_of_the_source_alone(store: fastlog.Store, clock: HandClock) -> None:
    """The retry topic is read from its first record on, wherever ``start`` begins with the source."""
    store.create_topic("orders")
    send(store, "orders", [b"old", b"older", b"bad"])
    app = App(store, clock=clock)
    calls = []
    starts = {fastlog.TopicPartition("orders", 0): 2}

    @app.subscriber("orders", group="mail", retry=plain_retry(2), start=lambda partition: starts[partition])
    def mail(record: fastlog.Record) -> None:
        calls.append(record.value)
        if len(calls) == 1:
            raise ValueError

    with driven(app, clock) as running:
        assert calls == [b"bad"]
        running.advance(10 * SECOND)
        assert calls == [b"bad", b"bad"]


def test_what_is_given_up_on_is_not_tried_again(store: fastlog.Store, clock: HandClock) -> None:
    store.create_topic("orders")
    send(store, "orders", [b"bad"])
    app = App(store, clock=clock)
    calls = []

    @app.subscriber("orders", group="mail", retry=plain_retry(5, give_up_on=ValueError))
    def mail(record: fastlog.Record) -> None:
        calls.append(record.offset)
        raise ValueError

    with driven(app, clock) as running:
        running.advance(3600 * SECOND)
    assert calls == [0]
    assert values_of(store, "orders.mail.dlq") == [b"bad"]


def test_a_handler_says_when_it_wants_to_be_called_again(store: fastlog.Store, clock: HandClock) -> None:
    store.create_topic("orders")
    send(store, "orders", [b"later"], [b"k"])
    app = App(store, clock=clock)
    calls = []

    @app.subscriber("orders", group="mail", retry=plain_retry(5))
    def mail(record: fastlog.Record) -> None:
        calls.append(clock.now)
        if len(calls) == 1:
            raise fastlog.RetryLater("30s")

    begin = clock.now
    with driven(app, clock) as running:
        running.advance(29_999)
        assert len(calls) == 1
        running.advance(1)
    assert [at - begin for at in calls] == [0, 30_000]


def test_without_dead_letters_a_failed_record_is_dropped_and_said(
    store: fastlog.Store, clock: HandClock, caplog: pytest.LogCaptureFixture
) -> None:
    store.create_topic("orders")
    send(store, "orders", [b"bad", b"good"])
    app = App(store, clock=clock)

    @app.subscriber("orders", group="mail", dead_letter=False)
    def mail(record: fastlog.Record) -> None:
        if record.value == b"bad":
            raise ValueError("secret payload")

    with driven(app, clock) as running:
        assert running.stats()["mail"].dropped == 1
    assert "failed for good" in caplog.text and "orders-0, offset 0" in caplog.text
    assert "orders.mail.dlq" not in store.topics()
    assert not any(lag.records for lag in store.group_lag("mail", ["orders"]).values())


# --- order -----------------------------------------------------------------------------------------------------------


def test_records_of_a_key_wait_behind_the_one_that_failed(store: fastlog.Store, clock: HandClock) -> None:
    store.create_topic("orders")
    send(store, "orders", [b"a1", b"b1", b"a2", b"b2", b"a3"], [b"a", b"b", b"a", b"b", b"a"])
    app = App(store, clock=clock)
    calls: list[bytes] = []
    broken = {b"a1"}

    @app.subscriber("orders", group="mail", retry=plain_retry(5))
    def mail(record: fastlog.Record) -> None:
        calls.append(record.value or b"")
        if record.value in broken:
            raise ValueError

    with driven(app, clock) as running:
        assert calls == [b"a1", b"b1", b"b2"]
        send(store, "orders", [b"a4"], [b"a"])
        running.settle()
        assert calls == [b"a1", b"b1", b"b2"]
        broken.clear()
        running.advance(SECOND)
        assert calls[3:] == [b"a1", b"a2", b"a3", b"a4"]
        send(store, "orders", [b"a5"], [b"a"])
        running.settle()
        assert calls[-1] == b"a5"
        assert running.stats()["mail"].waiting == 0


def test_parked_keys_survive_a_restart(store: fastlog.Store, clock: HandClock) -> None:
    store.create_topic("orders")
    send(store, "orders", [b"a1", b"a2"], [b"a", b"a"])
    calls: list[bytes] = []
    broken = {b"a1"}

    def app() -> App:
        made = App(store, clock=clock)

        @made.subscriber("orders", group="mail", retry=plain_retry(5))
        def mail(record: fastlog.Record) -> None:
            calls.append(record.value or b"")
            if record.value in broken:
                raise ValueError

        return made

    with driven(app(), clock):
        pass
    send(store, "orders", [b"a3", b"c1"], [b"a", b"c"])
    with driven(app(), clock) as running:
        assert calls == [b"a1", b"c1"]
        broken.clear()
        running.advance(SECOND)
    assert calls == [b"a1", b"c1", b"a1", b"a2", b"a3"]


def test_a_partition_in_order_waits_for_its_failing_record(store: fastlog.Store, clock: HandClock) -> None:
    store.create_topic("orders")
    send(store, "orders", [b"1", b"2", b"3"])
    app = App(store, clock=clock)
    calls: list[bytes] = []

    @app.subscriber("orders", group="mail", order_by="partition", retry=plain_retry(3))
    def mail(record: fastlog.Record) -> None:
        calls.append(record.value or b"")
        if record.value == b"1":
            raise ValueError

    with driven(app, clock) as running:
        assert calls == [b"1"]
        running.advance(SECOND)
        assert calls == [b"1", b"1"]
        running.advance(2 * SECOND)
        assert calls == [b"1", b"1", b"1", b"2", b"3"]
    assert values_of(store, "orders.mail.dlq") == [b"1"]


def test_a_dead_letter_blocks_its_key_until_it_is_redriven(store: fastlog.Store, clock: HandClock) -> None:
    store.create_topic("orders")
    send(store, "orders", [b"a1", b"b1", b"a2"], [b"a", b"b", b"a"])
    calls: list[bytes] = []
    broken = {b"a1"}

    def app() -> App:
        made = App(store, clock=clock)

        @made.subscriber("orders", group="mail", block_on_dead_letter=True)
        def mail(record: fastlog.Record) -> None:
            calls.append(record.value or b"")
            if record.value in broken:
                raise ValueError

        return made

    with driven(app(), clock):
        assert calls == [b"a1", b"b1"]
    send(store, "orders", [b"a3", b"b2"], [b"a", b"b"])
    with driven(app(), clock) as running:
        assert calls == [b"a1", b"b1", b"b2"]
        broken.clear()
        fastlog.DeadLetters.open(store, "orders", "mail").redrive()
        running.settle()
        assert calls[3:] == [b"a1", b"a2", b"a3"]


def test_redriven_records_are_handled_again(store: fastlog.Store, clock: HandClock) -> None:
    store.create_topic("orders", 2)
    send(store, "orders", [b"%d" % number for number in range(10)], partition=1)
    app = App(store, clock=clock)
    calls: list[bytes | None] = []
    is_broken = [True]

    @app.subscriber("orders", group="mail", order_by="partition")
    def mail(record: fastlog.Record) -> None:
        assert (record.topic, record.partition, list(record.headers)) == ("orders", 1, [])
        calls.append(record.value)
        if is_broken[0]:
            raise ValueError

    with driven(app, clock) as running:
        assert len(calls) == 10
        is_broken[0] = False
        fastlog.DeadLetters.open(store, "orders", "mail").redrive()
        running.settle()
        assert calls[10:] == calls[:10]
        assert running.stats()["mail"].waiting == 0
    assert not list(fastlog.DeadLetters.open(store, "orders", "mail").list())


# --- what cannot be written ------------------------------------------------------------------------------------------


def test_on_a_full_disk_moves_wait_and_nothing_is_lost(
    store: fastlog.Store, clock: HandClock, seed: int, caplog: pytest.LogCaptureFixture
) -> None:
    chance = random.Random(seed)
    store.create_topic("orders")
    app = App(store, clock=clock)
    calls: list[bytes] = []

    @app.subscriber("orders", group="mail", order_by="none", retry=plain_retry(2))
    def mail(record: fastlog.Record) -> None:
        calls.append(record.value or b"")
        if calls[-1].startswith(b"bad"):
            raise ValueError

    with driven(app, clock) as running:
        values = [(b"bad%d" if number % 2 else b"good%d") % number for number in range(20)]
        send(store, "orders", values)
        oscalls.inject("pwrite", 28, nth=chance.randint(1, 10), sticky=True)
        running.settle()
        for _ in range(3):
            running.advance(SECOND)
        stats = running.stats()["mail"]
        assert stats.failed_moves + stats.failed_commits > 0
        assert stats.problem is not None and "StorageFullError" in stats.problem
        assert "tried again" in caplog.text
        oscalls.clear()
        for _ in range(12):
            running.advance(SECOND)
        assert running.stats()["mail"].problem is None
    bad = [value for value in values if value.startswith(b"bad")]
    assert sorted(value or b"" for value in values_of(store, "orders.mail.dlq")) == sorted(bad)
    assert not any(lag.records for lag in store.group_lag("mail").values())
    assert sorted(calls) == sorted([*values, *bad])


# --- batches ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("order_by", ["none", "key", "partition"])
def test_a_batch_handler_gets_lists(store: fastlog.Store, clock: HandClock, order_by: Any) -> None:
    store.create_topic("orders")
    send(store, "orders", [b"%d" % number for number in range(25)], [b"k"] * 25)
    app = App(store, clock=clock)
    lists: list[list[bytes | None]] = []

    @app.subscriber("orders", group="mail", order_by=order_by, batch=10)
    def mail(records: list[fastlog.Record]) -> None:
        lists.append([record.value for record in records])

    with driven(app, clock):
        pass
    assert [len(values) for values in lists] == [10, 10, 5]
    assert [value for values in lists for value in values] == [b"%d" % number for number in range(25)]


def test_a_batch_error_tells_which_record_failed(store: fastlog.Store, clock: HandClock) -> None:
    store.create_topic("orders")
    send(store, "orders", [b"%d" % number for number in range(6)])
    app = App(store, clock=clock)
    lists: list[list[bytes | None]] = []

    @app.subscriber("orders", group="mail", order_by="none", batch=6)
    def mail(records: list[fastlog.Record]) -> None:
        values = [record.value for record in records]
        lists.append(values)
        if b"2" in values:
            raise fastlog.BatchError(values.index(b"2"), ValueError("two"))

    with driven(app, clock) as running:
        assert running.stats()["mail"].succeeded == 5
    assert lists == [[b"%d" % number for number in range(6)], [b"3", b"4", b"5"]]
    assert values_of(store, "orders.mail.dlq") == [b"2"]


def test_a_batch_that_fails_as_a_whole_is_called_record_by_record(store: fastlog.Store, clock: HandClock) -> None:
    store.create_topic("orders")
    send(store, "orders", [b"%d" % number for number in range(4)])
    app = App(store, clock=clock)
    lists: list[list[bytes | None]] = []

    @app.subscriber("orders", group="mail", order_by="none", batch=4)
    def mail(records: list[fastlog.Record]) -> None:
        values = [record.value for record in records]
        lists.append(values)
        if b"1" in values:
            raise ValueError

    with driven(app, clock):
        pass
    assert [len(values) for values in lists] == [4, 1, 1, 1, 1]
    assert values_of(store, "orders.mail.dlq") == [b"1"]


@pytest.mark.parametrize("order_by", ["partition", "key"])
def test_records_of_a_key_come_together_in_a_batch(store: fastlog.Store, clock: HandClock, order_by: Any) -> None:
    store.create_topic("orders")
    values = [b"%d" % number for number in range(25)]
    send(store, "orders", values, [b"k"] * 25)
    app = App(store, clock=clock)
    lists: list[list[bytes | None]] = []

    @app.subscriber("orders", group="mail", order_by=order_by, batch=10, concurrency=3)
    def mail(records: list[fastlog.Record]) -> None:
        lists.append([record.value for record in records])

    with driven(app, clock):
        pass
    assert lists == [values[:10], values[10:20], values[20:]]


@pytest.mark.parametrize("whole", [True, False])
@pytest.mark.parametrize("order_by", ["partition", "key"])
def test_a_batch_that_fails_keeps_its_order(store: fastlog.Store, clock: HandClock, order_by: Any, whole: bool) -> None:
    store.create_topic("orders")
    send(store, "orders", [b"%d" % number for number in range(6)], [b"k"] * 6)
    app = App(store, clock=clock)
    handled: list[bytes | None] = []
    is_broken = [True]

    @app.subscriber("orders", group="mail", order_by=order_by, batch=6, retry=plain_retry(3))
    def mail(records: list[fastlog.Record]) -> None:
        values = [record.value for record in records]
        if is_broken[0] and b"2" in values:
            if whole:
                raise ValueError
            handled.extend(values[: values.index(b"2")])
            raise fastlog.BatchError(values.index(b"2"), ValueError("two"))
        handled.extend(values)

    with driven(app, clock) as running:
        assert handled == [b"0", b"1"]
        is_broken[0] = False
        running.advance(SECOND)
        assert handled == [b"%d" % number for number in range(6)]
    assert not values_of(store, "orders.mail.dlq")


# --- deserializers ---------------------------------------------------------------------------------------------------


def test_a_record_that_cannot_be_decoded_is_a_dead_letter_as_it_is(store: fastlog.Store, clock: HandClock) -> None:
    store.create_topic("orders")
    send(store, "orders", [b"1", b"one", b"3"], [b"a", b"a", b"a"])
    app = App(store, clock=clock)
    seen: list[Any] = []

    @app.subscriber("orders", group="mail", retry=plain_retry(5), value_deserializer=int, key_deserializer=bytes.decode)
    def mail(record: fastlog.Record[str, int]) -> None:
        seen.append((record.key, record.value))

    with driven(app, clock):
        pass
    assert seen == [("a", 1), ("a", 3)]
    assert [(letter.key, letter.value) for letter in records_of(store, "orders.mail.dlq")] == [(b"a", b"one")]


# --- several at once -------------------------------------------------------------------------------------------------


def run_until(app: App, is_over: Any, seconds: float = 20) -> None:
    """Run an app in threads until a condition holds, then stop it."""
    app.start()
    deadline = time.monotonic() + seconds
    while not is_over() and time.monotonic() < deadline:
        time.sleep(0.005)
    app.stop()
    app.wait()
    assert is_over()


def test_threads_handle_keys_beside_each_other_and_each_in_order(store: fastlog.Store) -> None:
    store.create_topic("orders")
    send(store, "orders", [b"%d" % number for number in range(200)], [b"k%d" % (number % 8) for number in range(200)])
    app = App(store)
    lock = threading.Lock()
    order: dict[bytes | None, list[int]] = {}
    busy, most = set[bytes | None](), [0]

    @app.subscriber("orders", group="mail", concurrency=4)
    def mail(record: fastlog.Record) -> None:
        with lock:
            assert record.key not in busy
            busy.add(record.key)
            most[0] = max(most[0], len(busy))
        time.sleep(0.001)
        with lock:
            busy.discard(record.key)
            order.setdefault(record.key, []).append(int(record.value or b""))

    run_until(app, lambda: sum(map(len, order.values())) == 200)
    assert most[0] == 4
    assert all(values == sorted(values) for values in order.values())
    assert app.stats()["mail"].succeeded == 200
    assert not any(lag.records for lag in store.group_lag("mail", ["orders"]).values())


def test_async_handlers_wait_beside_each_other(store: fastlog.Store) -> None:
    store.create_topic("orders")
    send(store, "orders", [b"%d" % number for number in range(100)])
    app = App(store)
    now, most, done = [0], [0], []

    @app.subscriber("orders", group="mail", concurrency=20, order_by="none")
    async def mail(record: fastlog.Record) -> None:
        now[0] += 1
        most[0] = max(most[0], now[0])
        await asyncio.sleep(0.002)
        now[0] -= 1
        done.append(record.value)

    run_until(app, lambda: len(done) == 100)
    assert most[0] == 20
    assert sorted(done) == sorted(b"%d" % number for number in range(100))


def test_async_handlers_run_inline_without_sleeping(store: fastlog.Store, clock: HandClock) -> None:
    store.create_topic("orders")
    send(store, "orders", [b"slow", b"fast"])
    app = App(store, clock=clock)
    done = []

    @app.subscriber("orders", group="mail", order_by="none", timeout="10s")
    async def mail(record: fastlog.Record) -> None:
        await asyncio.sleep(3600 if record.value == b"slow" else 5)
        done.append(record.value)

    before = time.monotonic()
    with driven(app, clock):
        pass
    assert time.monotonic() - before < 5
    assert done == [b"fast"]
    letters = records_of(store, "orders.mail.dlq")
    assert [letter.value for letter in letters] == [b"slow"]
    assert letters[0].headers["fastlog.dlq.exception"].endswith(b"HandlerTimeoutError")


def test_records_are_handled_when_they_come_and_retried_when_they_are_due(store: fastlog.Store) -> None:
    store.create_topic("orders")
    app = App(store)
    calls: list[tuple[float, bytes | None]] = []

    @app.subscriber("orders", group="mail", concurrency=3, retry=fastlog.Retry(2, backoff="300ms", jitter=False))
    def mail(record: fastlog.Record) -> None:
        calls.append((time.time(), record.value))
        if len(calls) == 1:
            raise ValueError

    app.start()
    time.sleep(0.3)
    send(store, "orders", [b"a"], [b"k"])
    sent = time.time()
    deadline = time.monotonic() + 10
    while len(calls) < 2 and time.monotonic() < deadline:
        time.sleep(0.005)
    app.stop()
    app.wait()
    assert calls[0][0] - sent < 5
    assert 0.299 <= calls[1][0] - calls[0][0] < 5.3  # clocks count milliseconds


# --- the end ---------------------------------------------------------------------------------------------------------


def test_a_stop_waits_for_what_is_in_hand(store: fastlog.Store) -> None:
    store.create_topic("orders")
    send(store, "orders", [b"a", b"b", b"c"])
    app = App(store)
    began, ended = threading.Event(), []

    @app.subscriber("orders", group="mail", concurrency=2, order_by="none")
    def mail(record: fastlog.Record) -> None:
        began.set()
        time.sleep(0.3)
        ended.append(record.offset)

    app.start()
    assert began.wait(10)
    app.stop()
    app.wait()
    assert len(ended) in (1, 2)
    place = fastlog.TopicPartition("orders", 0)
    assert committed(store, "mail")[place].offset == len(ended)


def test_a_sync_call_that_takes_too_long_ends_the_app(store: fastlog.Store) -> None:
    store.create_topic("orders")
    send(store, "orders", [b"good", b"hangs"], [b"a", b"b"])
    app = App(store)
    release = threading.Event()

    @app.subscriber("orders", group="mail", timeout="200ms", drain_timeout="5s")
    def mail(record: fastlog.Record) -> None:
        if record.value == b"hangs":
            release.wait(30)

    before = time.monotonic()
    with pytest.raises(fastlog.HandlerTimeoutError, match="offset 1"):
        app.run()
    release.set()
    assert time.monotonic() - before < 5
    from fastlog.delivery.finished import Finished

    known = committed(store, "mail")[fastlog.TopicPartition("orders", 0)]
    assert known.offset == 1
    assert not Finished.decode(known.offset, known.metadata).clean


def test_a_stop_does_not_wait_for_ever(store: fastlog.Store, caplog: pytest.LogCaptureFixture) -> None:
    from fastlog.delivery.finished import Finished

    store.create_topic("orders")
    send(store, "orders", [b"good", b"hangs"], [b"a", b"b"])
    app = App(store)
    called, release = threading.Event(), threading.Event()

    @app.subscriber("orders", group="mail", concurrency=2, drain_timeout="200ms")
    def mail(record: fastlog.Record) -> None:
        if record.value == b"hangs":
            called.set()
            release.wait(30)

    app.start()
    assert called.wait(10)
    before = time.monotonic()
    app.stop()
    app.wait()
    assert time.monotonic() - before < 5
    release.set()
    known = committed(store, "mail")[fastlog.TopicPartition("orders", 0)]
    assert known.offset == 1
    assert not Finished.decode(known.offset, known.metadata).clean
    assert "did not end within" in caplog.text


def test_a_handler_that_exits_ends_the_app(store: fastlog.Store) -> None:
    store.create_topic("orders")
    send(store, "orders", [b"a", b"b"])
    app = App(store)
    calls: list[bytes | None] = []

    @app.subscriber("orders", group="mail", order_by="partition", retry=plain_retry(2, "20ms"))
    def mail(record: fastlog.Record) -> None:
        calls.append(record.value)
        raise SystemExit(7)

    for number in (1, 2):
        with pytest.raises(SystemExit) as caught:
            app.run()
        assert caught.value.code == 7
        assert calls == [b"a"] * number
        time.sleep(0.1)
    with pytest.raises(SystemExit):
        app.run()
    assert calls == [b"a", b"a", b"b"]


def test_a_stop_before_the_run_ends_it_at_once(store: fastlog.Store) -> None:
    store.create_topic("orders")
    app = App(store)
    app.subscriber("orders", group="mail")(lambda record: None)
    app.stop()
    app.run()


# --- around the handler ----------------------------------------------------------------------------------------------


def test_middleware_surrounds_each_call(store: fastlog.Store, clock: HandClock) -> None:
    store.create_topic("orders")
    send(store, "orders", [b"a"])
    app = App(store, clock=clock)
    told: list[str] = []

    @app.middleware
    def outer(call: Any, proceed: Any) -> Any:
        told.append(f"outer {call.subscriber} {call.attempt} {call.record.value}")
        try:
            return proceed()
        finally:
            told.append("outer ends")

    @app.middleware
    def inner(call: Any, proceed: Any) -> Any:
        told.append(f"inner {len(call.records)}")
        return proceed()

    @app.middleware
    async def other(call: Any, proceed: Any) -> Any:
        told.append("never")
        return await proceed()

    @app.subscriber("orders", group="mail")
    def mail(record: fastlog.Record) -> None:
        told.append("handler")

    with driven(app, clock):
        pass
    assert told == ["outer mail 1 b'a'", "inner 1", "handler", "outer ends"]


def test_async_middleware_surrounds_async_handlers(store: fastlog.Store, clock: HandClock) -> None:
    store.create_topic("orders")
    send(store, "orders", [b"a"])
    app = App(store, clock=clock)
    told: list[str] = []

    @app.middleware
    async def outer(call: Any, proceed: Any) -> Any:
        told.append("before")
        await proceed()
        told.append("behind")

    @app.subscriber("orders", group="mail")
    async def mail(record: fastlog.Record) -> None:
        await asyncio.sleep(0)
        told.append("handler")

    with driven(app, clock):
        pass
    assert told == ["before", "handler", "behind"]


def test_a_breaker_pauses_and_probes(store: fastlog.Store, clock: HandClock) -> None:
    store.create_topic("orders")
    send(store, "orders", [b"%d" % number for number in range(10)])
    app = App(store, clock=clock)
    calls: list[bytes | None] = []
    is_down = [True]

    @app.subscriber(
        "orders", group="mail", order_by="none", retry=plain_retry(100, "1ms"), breaker=fastlog.Breaker(3, pause="30s")
    )
    def mail(record: fastlog.Record) -> None:
        calls.append(record.value)
        if is_down[0]:
            raise ConnectionError

    with driven(app, clock) as running:
        assert len(calls) == 3
        assert running.stats()["mail"].breaker == "open"
        running.advance(30 * SECOND)
        assert len(calls) == 4
        is_down[0] = False
        running.advance(30 * SECOND)
        assert running.stats()["mail"].breaker == "closed"
        running.advance(SECOND)
        assert running.stats()["mail"].succeeded == 10


def test_a_breaker_with_nothing_to_probe_keeps_nobody_awake(store: fastlog.Store, clock: HandClock) -> None:
    store.create_topic("orders")
    send(store, "orders", [b"bad"])
    app = App(store, clock=clock)

    @app.subscriber("orders", group="mail", breaker=fastlog.Breaker(1, pause="1s"))
    def mail(record: fastlog.Record) -> None:
        raise ValueError

    with driven(app, clock) as running:
        assert running.stats()["mail"].breaker == "open"
        running.advance(5 * SECOND)
        assert running.runners[0]._patience(500) == 500


def test_known_events_are_not_handled_again(store: fastlog.Store, clock: HandClock) -> None:
    store.create_topic("orders")
    send(store, "orders", [b"1", b"2", b"3"], headers={"id": b"same"})
    send(store, "orders", [b"4"], headers={"id": b"other"})
    calls: list[bytes | None] = []

    def app() -> App:
        made = App(store, clock=clock)

        @made.subscriber("orders", group="mail", retry=plain_retry(3), deduplicate=fastlog.Deduplicator(ttl="1d"))
        def mail(record: fastlog.Record) -> None:
            calls.append(record.value)
            if len(calls) == 1:
                raise ValueError

        return made

    with driven(app(), clock) as running:
        running.advance(SECOND)
        assert calls == [b"1", b"2", b"4"]
        assert running.stats()["mail"].duplicates == 2
    send(store, "orders", [b"5"], headers={"id": b"same"})
    with driven(app(), clock):
        pass
    assert calls == [b"1", b"2", b"4"]


# --- topics ----------------------------------------------------------------------------------------------------------


def test_topics_of_a_pattern_get_their_own_retry_topics(store: fastlog.Store, clock: HandClock) -> None:
    store.create_topic("orders-a")
    app = App(store, clock=clock)
    calls: list[bytes | None] = []

    @app.subscriber(re.compile("orders-.*"), group="mail")
    def mail(record: fastlog.Record) -> None:
        calls.append(record.value)
        raise ValueError

    with driven(app, clock) as running:
        send(store, "orders-a", [b"1"])
        store.create_topic("orders-b", 2)
        send(store, "orders-b", [b"2"], partition=1)
        running.settle()
        running.settle()
    assert sorted(calls) == [b"1", b"2"]
    assert values_of(store, "orders-b.mail.dlq") == [b"2"]
    assert store.topics() == [
        *("orders-a", "orders-a.mail.dlq", "orders-a.mail.retry"),
        *("orders-b", "orders-b.mail.dlq", "orders-b.mail.retry"),
    ]


def test_two_apps_share_partitions_and_hand_them_over(store: fastlog.Store, clock: HandClock) -> None:
    store.create_topic("orders", 2)
    seen: dict[str, list[int]] = {"one": [], "two": []}

    def app(name: str) -> App:
        made = App(store, clock=clock)

        @made.subscriber("orders", group="mail", retry=plain_retry(3))
        def mail(record: fastlog.Record) -> None:
            seen[name].append(int(record.value or b""))
            if record.value in (b"3",) and len(seen["one"]) + len(seen["two"]) < 12:
                raise ValueError

        return made

    send(store, "orders", [b"%d" % number for number in range(6)], [b"k%d" % number for number in range(6)])
    with driven(app("one"), clock) as one:
        assert len(seen["one"]) == 6
        with driven(app("two"), clock) as two:
            one.settle()
            two.settle()
            assert one.stats()["mail"].partitions == two.stats()["mail"].partitions == 1
            keys: list[bytes | None] = [b"k%d" % number for number in range(6, 40)]
            send(store, "orders", [b"%d" % number for number in range(6, 40)], keys)
            one.settle()
            two.settle()
            assert seen["two"]
            clock.advance(SECOND)
            one.settle()
            two.settle()
        one.settle()
        send(store, "orders", [b"40", b"41"], [b"x", b"y"])
        one.settle()
        assert one.stats()["mail"].partitions == 2
    both = seen["one"] + seen["two"]
    assert sorted(both) == sorted([*range(42), 3])


def test_new_partitions_get_their_retry_and_dead_letter_partitions(store: fastlog.Store, clock: HandClock) -> None:
    store.create_topic("orders")
    app = App(store, clock=clock)

    @app.subscriber("orders", group="mail", retry=plain_retry(2))
    def mail(record: fastlog.Record) -> None:
        raise ValueError

    with driven(app, clock) as running:
        store.add_partitions("orders", 3)
        running.settle()
        send(store, "orders", [b"new"], partition=2)
        running.settle()
        running.advance(SECOND)
        assert running.stats()["mail"].dead_lettered == 1
    assert [record.partition for record in records_of(store, "orders.mail.dlq")] == [2]


def test_a_disk_that_is_full_when_a_partition_comes_holds_it_up_only(store: fastlog.Store, clock: HandClock) -> None:
    store.create_topic("orders")
    send(store, "orders", [b"1", b"2"])
    app = App(store, clock=clock)
    calls: list[bytes | None] = []

    @app.subscriber("orders", group="mail")
    def mail(record: fastlog.Record) -> None:
        calls.append(record.value)

    with driven(app, clock) as running:
        store.create_topic("other")
        store.add_partitions("orders", 2)
        send(store, "orders", [b"3"], partition=1)
        oscalls.inject("pwrite", 28, nth=1, sticky=True)
        running.clock.advance(1)
        for runner in running.runners:
            with contextlib.suppress(fastlog.StorageFullError):
                runner.step()
        oscalls.clear()
        for _ in range(3):
            running.advance(SECOND)
        assert calls == [b"1", b"2", b"3"]


def test_a_retry_topic_that_somebody_deletes_is_made_again(store: fastlog.Store, clock: HandClock) -> None:
    store.create_topic("orders")
    app = App(store, clock=clock)
    calls: list[bytes | None] = []

    @app.subscriber("orders", group="mail", retry=plain_retry(2))
    def mail(record: fastlog.Record) -> None:
        calls.append(record.value)
        if len(calls) == 1:
            raise ValueError

    with driven(app, clock) as running:
        store.delete_topic("orders.mail.retry")
        send(store, "orders", [b"1"])
        running.settle()
        for _ in range(5):
            running.advance(SECOND)
        assert set(calls) == {b"1"}
        assert running.stats()["mail"].succeeded == 1


def test_who_has_lost_a_partition_commits_nothing(store: fastlog.Store, clock: HandClock) -> None:
    store.create_topic("orders")
    send(store, "orders", [b"1", b"2", b"3"])
    calls: list[tuple[str, bytes | None]] = []
    others: list[Driven] = []

    def app(name: str, own: HandClock) -> App:
        made = App(store, clock=own)

        @made.subscriber("orders", group="mail", order_by="partition", retry=plain_retry(3, 0), max_poll_interval="1s")
        def mail(record: fastlog.Record) -> None:
            calls.append((name, record.value))
            if name == "slow":
                time.sleep(1.3)
                taking = time.monotonic()
                while others[0].stats()["mail"].succeeded < 3 and time.monotonic() < taking + 10:
                    others[0].advance(SECOND)
                others[0].advance(SECOND)
                raise ValueError

        return made

    standing = HandClock()
    slow = Driven(app("slow", standing), standing)
    others.append(Driven(app("quick", clock), clock))
    place = fastlog.TopicPartition("orders", 0)
    try:
        slow.settle(20)
        assert calls == [("slow", b"1"), ("quick", b"1"), ("quick", b"2"), ("quick", b"3")]
        assert committed(store, "mail")[place].offset == 3
        assert slow.stats()["mail"].failed_commits == 1
    finally:
        slow.app.close()
        others[0].app.close()


# --- mistakes --------------------------------------------------------------------------------------------------------


def test_declarations_are_checked(store: fastlog.Store) -> None:
    app = App(store)
    handler: Any = lambda record: None  # noqa: E731
    assert app.subscriber("orders", group="mail")(handler) is handler
    for options, words in [
        ({"group": "mail"}, "have a subscriber already"),
        ({"group": "b", "name": "mail"}, "name="),
        ({"group": "b", "order_by": "value"}, "order_by"),
        ({"group": "b", "concurrency": 0}, "concurrency"),
        ({"group": "b", "batch": True}, "batch"),
        ({"group": "b", "retry": 5}, "retry"),
        ({"group": "b", "timeout": 0}, "timeout"),
        ({"group": "b c"}, "group"),
        ({"group": "b", "start": "soon"}, "start"),
        ({"group": "b", "value_deserializer": 1}, "value_deserializer"),
    ]:
        with pytest.raises(fastlog.ConfigError, match=words):
            app.subscriber("orders", **options)(handler)  # type: ignore[arg-type]
    with pytest.raises(fastlog.ConfigError, match="retry_topic"):
        app.subscriber(["a", "b"], group="c", retry_topic="r")(handler)
    with pytest.raises(fastlog.ConfigError, match="no subscribers"):
        App(store).run()
    with pytest.raises(fastlog.UnknownTopicError):
        app.run()
