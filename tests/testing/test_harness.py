"""Handlers in a harness: run to the end of what there is, by a clock that is turned, without sleeping."""

from __future__ import annotations

import asyncio
import re
import threading
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

import fastlog
from fastlog.testing import Harness, TestClock

MINUTE = 60_000


@pytest.fixture
def app() -> fastlog.App:
    return fastlog.App("a folder that nobody opens")


@pytest.fixture
def run(folder: Path) -> Iterator[Callable[..., Harness]]:
    """Runs apps; closed at the end."""
    running = []

    def start(app: fastlog.App, **options: Any) -> Harness:
        harness = Harness(app, **options)
        running.append(harness)
        return harness

    yield start
    for harness in running:
        harness.close()
    assert not Path("a folder that nobody opens").exists()


@pytest.fixture(autouse=True)
def nothing_sleeps(monkeypatch: pytest.MonkeyPatch) -> None:
    def sleep(seconds: float) -> None:
        raise AssertionError(f"somebody sleeps for {seconds} s")

    monkeypatch.setattr(time, "sleep", sleep)


def retry(attempts: int = 3, backoff: Any = ("1s", "1m"), **options: Any) -> fastlog.Retry:
    return fastlog.Retry(attempts, backoff=backoff, **options)


# --- running ---------------------------------------------------------------------------------------------------------


def test_a_handler_is_called_in_this_thread(app: fastlog.App, run: Callable[..., Harness]) -> None:
    seen = []

    @app.subscriber("orders", group="mail")
    def mail(record: fastlog.Record) -> None:
        seen.append((record.value, threading.current_thread()))

    running = run(app)
    assert running.run_until_idle() == 0
    place = running.send("orders", b"one", key=b"k", headers={"h": b"x"})
    assert (place.topic, place.partition, place.offset, place.timestamp) == ("orders", 0, 0, running.clock.wall())
    assert not seen
    assert running.run_until_idle() == 1
    assert seen == [(b"one", threading.main_thread())]
    assert running.run_until_idle(advance=True) == 0
    assert running.stats().succeeded == running.stats("mail").succeeded == 1
    (record,) = running.records("orders")
    assert (record.key, record.value, record.headers["h"]) == (b"k", b"one", b"x")


def test_the_app_itself_stays_as_it_is(app: fastlog.App, run: Callable[..., Harness]) -> None:
    chosen = retry(jitter=True)
    deduplicator = fastlog.Deduplicator(path="somewhere/else.sqlite")
    app.subscriber("orders", group="mail", retry=chosen, deduplicate=deduplicator)(lambda record: None)
    first, second = run(app), run(app)
    app.subscriber("more", group="another")(lambda record: None)
    first.send("orders", b"for the first")
    assert (first.run_until_idle(), second.run_until_idle()) == (1, 0)
    assert app.subscribers[0].retry is chosen
    assert app.subscribers[0].deduplicate is deduplicator
    assert len(first.app.subscribers) == 1
    assert not first.app.subscribers[0].retry.jitter
    assert not Path("somewhere").exists()
    assert app.stats() == {}
    assert app._middleware == []


def test_retries_come_when_they_are_due_and_not_before(app: fastlog.App, run: Callable[..., Harness]) -> None:
    running: Harness
    seen = []

    @app.subscriber("orders", group="mail", retry=retry(4, ("1s", "3s")))
    def mail(record: fastlog.Record) -> None:
        seen.append(running.clock.steady())
        raise OSError("the mail server is down")

    running = run(app)
    running.send("orders", b"one")
    assert running.run_until_idle() == 1
    assert running.run_until_idle() == 0
    assert running.advance(timedelta(milliseconds=999)) == 0
    assert running.advance(0.001) == 1
    assert running.advance("1h") == 2
    assert seen == [0, 1000, 3000, 6000]  # 1 s, 2 s, then 3 s at most, each when it was due
    assert running.clock.steady() == 3_601_000
    assert [failure.attempt for failure in running.failures] == [1, 2, 3, 4]
    assert {type(failure.error) for failure in running.failures} == {OSError}


def test_everything_to_its_end_in_one_call(app: fastlog.App, run: Callable[..., Harness]) -> None:
    @app.subscriber("orders", group="mail", retry=retry(5, ("1s", "5m")))
    def mail(record: fastlog.Record) -> None:
        if record.value == b"bad":
            raise fastlog.RetryLater("7d") if len(running.failures) == 2 else ValueError

    running = run(app)
    for value in (b"good", b"bad", b"good"):
        running.send("orders", value)
    assert running.run_until_idle(advance=True) == 7
    (letter,) = running.assert_dead_lettered(1, value=b"bad", attempts=5)
    assert letter.exception == "ValueError"
    assert running.clock.steady() == 1000 + 2000 + 7 * 24 * 60 * MINUTE + 8000


def test_a_restart_goes_on_with_what_is_committed(app: fastlog.App, run: Callable[..., Harness]) -> None:
    seen = []

    @app.subscriber("orders", group="mail", retry=retry())
    def mail(record: fastlog.Record) -> None:
        seen.append(record.value)
        if record.value == b"bad":
            raise ValueError

    running = run(app)
    running.send("orders", b"bad")
    running.send("orders", b"good")
    running.run_until_idle()
    running.restart()
    assert sorted(seen) == [b"bad", b"good"]
    running.send("orders", b"new")
    assert running.run_until_idle(advance=True) == 3
    assert len(running.dead_letters()) == 1


def test_nothing_is_called_before_it_is_run(app: fastlog.App, run: Callable[..., Harness], folder: Path) -> None:
    first, last = [], []
    app.subscriber("orders", group="first")(lambda record: first.append(record.value))
    app.subscriber("orders", group="last", start="latest")(lambda record: last.append(record.value))
    with fastlog.open(folder / "store", durability="os") as store:
        store.create_topic("orders", 3)
        with store.producer() as producer:
            producer.send("orders", b"before")
        running = run(app, store=store)
        running.send("orders", b"after")
        assert (first, last) == ([], [])
        running.run_until_idle()
        running.restart()
        assert (sorted(first), last) == ([b"after", b"before"], [b"after"])
        running.close()


def test_a_crash_repeats_what_was_not_committed(app: fastlog.App, run: Callable[..., Harness]) -> None:
    seen: dict[str, list[Any]] = {"plain": [], "careful": []}
    app.subscriber("orders", group="plain")(lambda record: seen["plain"].append(record.value))
    app.subscriber("orders", group="careful", deduplicate=fastlog.Deduplicator())(
        lambda record: seen["careful"].append(record.value)
    )
    running = run(app)
    running.send("orders", b"one")
    running.run_until_idle()
    running.advance("1s")
    running.send("orders", b"two")
    running.run_until_idle()
    running.crash()
    running.run_until_idle()
    assert seen == {"plain": [b"one", b"two", b"two"], "careful": [b"one", b"two"]}
    running.restart()
    assert running.run_until_idle() == 0


class Killed(BaseException):
    """Stands for the end of the process."""


def test_a_record_that_ends_its_process_is_found_out(app: fastlog.App, run: Callable[..., Harness]) -> None:
    seen = []

    @app.subscriber("orders", group="mail", order_by="none", concurrency=3, retry=retry(2))
    def mail(record: fastlog.Record) -> None:
        if record.value == b"poison":
            raise Killed
        seen.append(record.value)

    running = run(app)
    for value in (b"a", b"poison", b"b", b"c"):
        running.send("orders", value)
    for _ in range(3):
        with pytest.raises(Killed):
            running.run_until_idle()
        running.crash()
    running.run_until_idle()
    (letter,) = running.assert_dead_lettered(1, exception="WorkerDied", attempts=2)
    assert letter.value == b"poison"
    assert set(seen) == {b"a", b"b", b"c"}
    assert (seen.count(b"b"), seen.count(b"c")) == (1, 1)


def test_what_is_parked_survives_a_crash(app: fastlog.App, run: Callable[..., Harness]) -> None:
    seen = []

    @app.subscriber("orders", group="mail", retry=retry(4, "10s"))
    def mail(record: fastlog.Record) -> None:
        if record.value == b"first" and len(running.failures) < 2:
            raise ValueError
        seen.append(record.value)

    running = run(app)
    for value in (b"first", b"second"):
        running.send("orders", value, key=b"k")
    running.run_until_idle()
    running.crash()
    running.send("orders", b"third", key=b"k")
    running.run_until_idle()
    assert (seen, running.stats().waiting) == ([], 3)
    running.advance("10s")
    running.crash()
    running.run_until_idle()
    assert seen == []
    running.advance("10s")
    assert seen == [b"first", b"second", b"third"]
    running.assert_no_dead_letters()


def test_two_harnesses_are_two_members(app: fastlog.App, run: Callable[..., Harness]) -> None:
    seen = []

    @app.subscriber("orders", group="mail", retry=retry(3, "1m"))
    def mail(record: fastlog.Record) -> None:
        seen.append(record.value)
        if record.value == b"0" and seen.count(b"0") < 3:
            raise ValueError

    first = run(app, partitions=4)
    for number in range(8):
        first.send("orders", b"%d" % number, partition=number % 4)
    assert (first.run_until_idle(), first.stats().partitions) == (8, 4)
    with Harness(app, store=first.store, clock=first.clock) as second:
        for harness in (first, second):
            harness.run_until_idle()
        assert (first.stats().partitions, second.stats().partitions) == (2, 2)
        for number in range(8, 16):
            first.send("orders", b"%d" % number, partition=number % 4)
        assert (first.run_until_idle(), second.run_until_idle()) == (4, 4)
        first.clock.advance("1m")
        assert first.run_until_idle() + second.run_until_idle() == 1  # whoever has the partition has its retries, too
    first.run_until_idle()
    assert first.advance("1m") == 1
    assert (first.stats().partitions, seen.count(b"0"), len(seen)) == (4, 3, 18)
    first.assert_no_dead_letters()


def test_a_handler_that_feeds_itself_is_found_out(
    app: fastlog.App, run: Callable[..., Harness], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fastlog.testing.harness.MOST_CALLS", 700)

    @app.subscriber("orders", group="mail")
    def mail(record: fastlog.Record) -> None:
        running.send("orders", record.value)

    running = run(app)
    running.send("orders", b"again and again")
    with pytest.raises(AssertionError, match="does a handler send to the topic that it handles"):
        running.run_until_idle()


class Outcome(BaseException):
    """As ``pytest.fail`` raises one."""


@pytest.mark.parametrize("is_async", [False, True])
def test_what_is_no_failure_of_a_handler_ends_the_test(
    app: fastlog.App, run: Callable[..., Harness], is_async: bool
) -> None:
    async def wait(record: fastlog.Record) -> None:
        raise Outcome

    def work(record: fastlog.Record) -> None:
        raise Outcome

    app.subscriber("orders", group="mail", retry=retry())(wait if is_async else work)
    running = run(app)
    running.send("orders", b"one")
    with pytest.raises(Outcome):
        running.run_until_idle()


# --- kinds of handlers -----------------------------------------------------------------------------------------------


def test_async_handlers_do_not_sleep(app: fastlog.App, run: Callable[..., Harness]) -> None:
    seen = []

    @app.subscriber("orders", group="mail", timeout="5s", retry=retry(2, "1m"))
    async def mail(record: fastlog.Record) -> None:
        await asyncio.sleep(4)
        seen.append((record.value, 4))
        if record.value == b"slow":
            await asyncio.sleep(2)
            seen.append((record.value, 6))

    running = run(app)
    begun = time.monotonic()
    running.send("orders", b"quick")
    assert running.run_until_idle() == 1
    assert running.clock.steady() == 0
    running.send("orders", b"slow")
    assert running.run_until_idle(advance=True) == 2
    assert seen == [(b"quick", 4), (b"slow", 4), (b"slow", 4)]
    running.advance("3000d")
    running.send("orders", b"quick")
    assert running.run_until_idle() == 1
    (letter,) = running.assert_dead_lettered(exception=fastlog.HandlerTimeoutError, message="timeout of 5 s")
    assert letter.last_failure - letter.first_failure == MINUTE
    assert time.monotonic() - begun < 3


def test_what_comes_from_outside_is_waited_for(app: fastlog.App, run: Callable[..., Harness]) -> None:
    """A time-out does not come while a thread works, though nothing else is to be done."""
    may_end = threading.Event()
    seen = []

    @app.subscriber("orders", group="mail", timeout="30s")
    async def mail(record: fastlog.Record) -> None:
        threading.Timer(0.1, may_end.set).start()
        seen.append(await asyncio.to_thread(may_end.wait, 10))
        reader, writer = await asyncio.open_connection(*server.address)
        seen.append(await reader.read())
        writer.close()

    running = run(app)
    running.send("orders", b"one")
    with SlowServer() as server:
        assert running.run_until_idle() == 1
    running.assert_no_dead_letters()
    assert seen == [True, b"late"]
    assert running.clock.steady() == 0


class SlowServer:
    """Answers one connection, after a while."""

    def __enter__(self) -> SlowServer:
        import socket

        self._listening = socket.create_server(("127.0.0.1", 0))
        self.address = self._listening.getsockname()
        self._thread = threading.Thread(target=self._answer)
        self._thread.start()
        return self

    def _answer(self) -> None:
        connection, _ = self._listening.accept()
        threading.Event().wait(0.1)
        connection.sendall(b"late")
        connection.close()

    def __exit__(self, *error: object) -> None:
        self._thread.join()
        self._listening.close()


def test_async_tests_run_it_in_a_thread(app: fastlog.App, run: Callable[..., Harness]) -> None:
    seen = []

    @app.subscriber("orders", group="mail")
    async def mail(record: fastlog.Record) -> None:
        await asyncio.sleep(1)
        seen.append(record.value)

    running = run(app)
    running.send("orders", b"one")

    async def test() -> int:
        with pytest.raises(fastlog.ConfigError, match="asyncio.to_thread"):
            running.run_until_idle()
        return await asyncio.to_thread(running.run_until_idle)

    assert asyncio.run(test()) == 1
    assert seen == [b"one"]


def test_batches(app: fastlog.App, run: Callable[..., Harness]) -> None:
    seen = []

    @app.subscriber("orders", group="mail", batch=10, order_by="none", retry=retry(2))
    def mail(records: list[fastlog.Record]) -> None:
        seen.append([record.value for record in records])
        for index, record in enumerate(records):
            if record.value == b"bad":
                raise fastlog.BatchError(index, ValueError("bad"))

    running = run(app)
    for value in (b"a", b"bad", b"c"):
        running.send("orders", value)
    running.run_until_idle(advance=True)
    assert seen[:2] == [[b"a", b"bad", b"c"], [b"c"]]
    assert seen[2:] == [[b"bad"]]
    running.assert_dead_lettered(1, exception=ValueError, value=b"bad", attempts=2)


def test_a_sync_handler_that_takes_too_long_ends_the_run(app: fastlog.App, run: Callable[..., Harness]) -> None:
    """As in production, where the process ends, and the next one takes the record for a suspect."""

    @app.subscriber("orders", group="mail", timeout="5s", retry=retry(2))
    def mail(record: fastlog.Record) -> None:
        if record.value == b"slow":
            running.clock.advance("6s")

    running = run(app)
    running.send("orders", b"quick")
    running.send("orders", b"slow")
    for _ in range(3):  # the first time nobody has written down that it begins
        with pytest.raises(fastlog.HandlerTimeoutError, match=r"longer than its timeout of 5 s"):
            running.run_until_idle(advance=True)
        running.restart()
    running.send("orders", b"quick")
    running.run_until_idle(advance=True)
    running.assert_dead_lettered(1, exception="WorkerDied", value=b"slow", attempts=2)
    assert running.stats().succeeded == 1


# --- policies --------------------------------------------------------------------------------------------------------


def test_a_parked_key_keeps_its_order_and_holds_up_nobody(app: fastlog.App, run: Callable[..., Harness]) -> None:
    seen = []
    down = True

    @app.subscriber("orders", group="mail", order_by="key", retry=retry(3, "10s"))
    def mail(record: fastlog.Record) -> None:
        if record.key == b"parked" and down:
            raise OSError
        seen.append(record.value)

    running = run(app)
    for number in range(3):
        running.send("orders", b"parked %d" % number, key=b"parked")
        running.send("orders", b"other %d" % number, key=b"other")
    running.run_until_idle()
    assert seen == [b"other 0", b"other 1", b"other 2"]
    assert [record.value for record in running.records("orders.mail.retry")] == [b"parked %d" % at for at in range(3)]
    assert running.stats().waiting == 3
    down = False
    running.advance("10s")
    assert seen[3:] == [b"parked 0", b"parked 1", b"parked 2"]
    assert running.stats().waiting == 0


def test_two_subscribers_of_a_topic(app: fastlog.App, run: Callable[..., Harness]) -> None:
    seen: dict[str, list[Any]] = {"mail": [], "audit": []}

    @app.subscriber("orders", group="mail", retry=retry())
    def mail(record: fastlog.Record) -> None:
        seen["mail"].append(record.value)
        raise ValueError("no address")

    @app.subscriber("orders", group="audit")
    def audit(record: fastlog.Record) -> None:
        seen["audit"].append(record.value)

    running = run(app, partitions=2)
    for number in range(4):
        running.send("orders", b"%d" % number, partition=number % 2)
    running.run_until_idle(advance=True)
    assert {name: len(values) for name, values in seen.items()} == {"mail": 12, "audit": 4}
    running.assert_no_dead_letters("audit")
    assert len(running.assert_dead_lettered(subscriber="mail")) == 4
    assert len(running.dead_letters(topic="orders")) == 4
    assert running.dead_letters(topic="payments") == []
    assert running.redrive("mail") == 4
    running.assert_no_dead_letters()
    running.run_until_idle(advance=True)
    assert {name: len(values) for name, values in seen.items()} == {"mail": 24, "audit": 4}
    with pytest.raises(fastlog.ConfigError, match="'mail', 'audit'"):
        running.dead_letters("post")
    with pytest.raises(fastlog.ConfigError, match="'mail', 'audit'"):
        running.stats()


def test_the_breaker_goes_by_the_clock(app: fastlog.App, run: Callable[..., Harness]) -> None:
    down = True
    calls = []

    @app.subscriber(
        "orders", group="mail", order_by="none", retry=retry(9, "1s"), breaker=fastlog.Breaker(3, pause="30s")
    )
    def mail(record: fastlog.Record) -> None:
        calls.append(running.clock.steady())
        if down:
            raise OSError

    running = run(app)
    for number in range(5):
        running.send("orders", b"%d" % number)
    running.run_until_idle()
    assert (len(calls), running.stats().breaker) == (3, "open")
    running.advance("29s")
    assert len(calls) == 3
    running.advance("1s")
    assert (len(calls), running.stats().breaker) == (4, "open")
    down = False
    assert running.run_until_idle(advance=True) == 5
    assert (running.stats().breaker, running.stats().succeeded) == ("closed", 5)
    assert calls[3:5] == [30_000, 60_000]


def test_a_breaker_without_work_needs_no_time(app: fastlog.App, run: Callable[..., Harness]) -> None:
    @app.subscriber("orders", group="mail", breaker=fastlog.Breaker(1))
    def mail(record: fastlog.Record) -> None:
        raise OSError

    running = run(app)
    running.send("orders", b"one")
    running.run_until_idle(advance=True)
    assert (running.stats().breaker, running.clock.steady()) == ("open", 0)


def test_known_events_are_not_handled_again(app: fastlog.App, run: Callable[..., Harness]) -> None:
    seen = []
    app.subscriber("orders", group="mail", deduplicate=fastlog.Deduplicator(ttl="1d"))(seen.append)
    running = run(app)
    for _ in range(2):
        running.send("orders", b"one", headers={"id": b"7"})
        running.run_until_idle()
    assert (len(seen), running.stats().duplicates) == (1, 1)
    running.advance("2d")
    running.send("orders", b"one", headers={"id": b"7"})
    running.run_until_idle()
    assert len(seen) == 2


def test_a_pattern_finds_topics_that_are_made_later(app: fastlog.App, run: Callable[..., Harness]) -> None:
    seen = []

    @app.subscriber(re.compile(r"orders\..*"), group="mail")
    def mail(record: fastlog.Record) -> None:
        seen.append((record.topic, record.value))
        if record.value == b"bad":
            raise ValueError

    running = run(app)
    running.send("orders.eu", b"one")
    running.send("orders.us", b"bad")
    running.send("payments", b"no")
    running.run_until_idle()
    assert sorted(seen) == [("orders.eu", b"one"), ("orders.us", b"bad")]
    assert [letter.origin_topic for letter in running.dead_letters("mail")] == ["orders.us"]


def test_what_cannot_be_decoded_is_a_dead_letter_at_once(app: fastlog.App, run: Callable[..., Harness]) -> None:
    seen = []
    app.subscriber("orders", group="mail", retry=retry(), value_deserializer=int)(
        lambda record: seen.append(record.value)
    )
    running = run(app)
    for value in (b"1", b"one", None):
        running.send("orders", value)
    assert running.run_until_idle() == 2
    assert seen == [1, None]
    running.assert_dead_lettered(1, exception=ValueError, value=b"one", attempts=0)


# --- the clock -------------------------------------------------------------------------------------------------------


def test_the_clock_stands_still() -> None:
    clock = TestClock(datetime(2026, 1, 31, 12, tzinfo=UTC))
    assert (clock.wall(), clock.steady()) == (1_769_860_800_000, 0)
    clock.advance("1h")
    assert clock.now == datetime(2026, 1, 31, 13, tzinfo=UTC)
    clock.jump(timedelta(days=-1))
    assert clock.now == datetime(2026, 1, 30, 13, tzinfo=UTC)
    assert clock.steady() == 3_600_000
    assert repr(clock) == "<TestClock 2026-01-30 13:00:00.000000>"
    with pytest.raises(fastlog.ConfigError, match="time does not go back"):
        clock.advance(-1)
    with pytest.raises(fastlog.ConfigError, match="aware datetime"):
        TestClock(datetime(2026, 1, 31))
    assert abs(TestClock().wall() - time.time() * 1000) < 10_000


def test_a_wall_clock_that_is_set_back_makes_records_wait_and_loses_none(
    app: fastlog.App, run: Callable[..., Harness]
) -> None:
    @app.subscriber("orders", group="mail", retry=retry(2, "1m"))
    def mail(record: fastlog.Record) -> None:
        if len(running.failures) == 0:
            raise ValueError

    running = run(app)
    running.send("orders", b"one")
    running.run_until_idle()
    running.clock.jump(timedelta(hours=-1))
    assert running.advance("59m") == 0
    assert running.advance("2m") == 1
    running.assert_no_dead_letters()


# --- assertions ------------------------------------------------------------------------------------------------------


class CardError(ValueError):
    """One of an application's own."""


@pytest.fixture
def three_letters(app: fastlog.App, run: Callable[..., Harness]) -> Harness:
    @app.subscriber("orders", group="mail", retry=retry(2, give_up_on=KeyError))
    def mail(record: fastlog.Record) -> None:
        errors = {b"card": CardError("card refused"), b"key": KeyError("name"), b"other": ValueError("no address")}
        if record.value in errors:
            raise errors[record.value]

    running = run(app)
    for value in (b"card", b"fine", b"key", b"other"):
        running.send("orders", value, key=b"of " + value)
    running.run_until_idle(advance=True)
    return running


def test_assertions_choose(three_letters: Harness) -> None:
    for options, expected in (
        ({}, 3),
        ({"exception": ValueError}, 2),
        ({"exception": CardError}, 1),
        ({"exception": "CardError"}, 1),
        ({"exception": f"{__name__}.CardError"}, 1),
        ({"message": "refused"}, 1),
        ({"attempts": 1}, 1),
        ({"attempts": 2, "key": b"of other"}, 1),
        ({"value": b"card", "subscriber": "mail"}, 1),
    ):
        assert len(three_letters.assert_dead_lettered(**options)) == expected, options
        three_letters.assert_dead_lettered(expected, **options)
        with pytest.raises(AssertionError):
            three_letters.assert_dead_lettered(expected + 1, **options)
    three_letters.assert_dead_lettered(0, exception=OSError)
    with pytest.raises(fastlog.ConfigError, match="expected the class of an exception"):
        three_letters.assert_dead_lettered(exception=int)  # type: ignore[arg-type]


def test_what_a_failed_assertion_says(three_letters: Harness) -> None:
    with pytest.raises(AssertionError) as caught:
        three_letters.assert_no_dead_letters("mail")
    lines = str(caught.value).splitlines()
    assert lines[0] == "expected no dead letters of 'mail', found 3:"
    assert lines[1].startswith(
        "  orders-0-2 of group 'mail', key b'of key', value b'key': KeyError: 'name' (1 attempt)"
    )
    assert re.match(rf'    File "{re.escape(__file__)}", line \d+, in mail', lines[2])
    assert "card refused (2 attempts)" in str(caught.value)
    with pytest.raises(AssertionError) as caught:
        three_letters.assert_dead_lettered(exception=OSError, key=b"x" * 100)
    lines = str(caught.value).splitlines()
    assert lines[0].startswith("expected at least one dead letter, exception=OSError, key=b'xxxx")
    assert lines[0].endswith("...; found 0.")
    assert lines[1] == "All dead letters:"
    assert lines[-1] == "mail: 6 calls, 1 succeeded, 5 failed, 2 retried, 3 dead lettered, 0 waiting"


def test_a_failed_assertion_tells_of_what_waits(app: fastlog.App, run: Callable[..., Harness]) -> None:
    @app.subscriber("orders", group="mail", retry=retry())
    def mail(record: fastlog.Record) -> None:
        raise ValueError

    running = run(app)
    running.send("orders", b"one")
    running.run_until_idle()
    with pytest.raises(AssertionError, match=r"There are no dead letters\.\nRecords wait .*advance=True"):
        running.assert_dead_lettered()


def test_handlers_that_fail_are_in_the_log(
    app: fastlog.App, run: Callable[..., Harness], caplog: pytest.LogCaptureFixture
) -> None:
    @app.subscriber("orders", group="mail")
    def mail(record: fastlog.Record) -> None:
        raise ValueError("no address")

    running = run(app)
    running.send("orders", b"one")
    running.run_until_idle()
    assert "attempt 1 of orders-0, offset 0, by 'mail' failed" in caplog.text
    assert "ValueError: no address" in caplog.text


def test_a_harness_ends_with_its_block(app: fastlog.App) -> None:
    app.subscriber("orders", group="mail")(lambda record: None)
    with Harness(app) as running:
        root = Path(running.store.directory.root)
        assert root.exists()
        running.send("orders", b"one")
    assert running.store.closed
    assert not root.exists()
    running.close()


def test_a_store_of_somebody_else_stays_open(app: fastlog.App, folder: Path) -> None:
    app.subscriber("orders", group="mail")(lambda record: None)
    with fastlog.open(folder / "store", durability="os") as store:
        with Harness(app, store=store) as running:
            assert running.store is store
        assert store.topics() == ["orders", "orders.mail.dlq", "orders.mail.retry"]
