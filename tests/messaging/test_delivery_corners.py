"""Corners of delivery that few programs meet: wrong declarations, disks that refuse, marks that are damaged."""

from __future__ import annotations

import asyncio
import base64
import logging
import os
import random
import re
import signal
import sqlite3
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import fastlog
from fastlog import OffsetAndMetadata, TopicPartition
from fastlog._native import oscalls
from fastlog.clients.consumer import Consumer
from fastlog.delivery import app as app_module
from fastlog.delivery import deduplicator, finished
from fastlog.delivery import work as work_module
from fastlog.delivery.app import App
from fastlog.delivery.calling import Call
from fastlog.delivery.items import Failure, Item, Move
from fastlog.delivery.moving import Mover, Route
from fastlog.delivery.policy import Retry
from fastlog.delivery.work import PartitionWork
from fastlog.delivery.worker import answer, leave
from fastlog.delivery.workers import Event, Workers, described
from fastlog.groups.offsets import OffsetStore
from fastlog.store.internal import CONSUMER_OFFSETS
from fastlog.transactions import TransactionalId
from tests.delivery.apps import Driven, HandClock, committed, driven, records_of, send, values_of

SECOND = 1000
ENOSPC = 28
ORDERS = TopicPartition("orders", 0)


@pytest.fixture
def store(folder: Path) -> Iterator[fastlog.Store]:
    with fastlog.open(folder / "store", durability="os") as opened:
        opened.create_topic("orders")
        yield opened


@pytest.fixture
def clock() -> HandClock:
    return HandClock()


def nothing(record: fastlog.Record) -> None:
    """A handler that does nothing."""


def until(condition: Callable[[], object], what: str, seconds: float = 10) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, what
        time.sleep(0.005)


# --- declarations ----------------------------------------------------------------------------------------------------


def test_wrong_declarations_are_named(store: fastlog.Store) -> None:
    app = App(store)
    wrong: Any = 5
    with pytest.raises(fastlog.ConfigError, match="a subscriber is a function, found 5"):
        app.subscriber("orders", group="mail")(wrong)
    with pytest.raises(fastlog.ConfigError, match="matches bytes: topics have names of str"):
        app.subscriber(re.compile(b"orders"), group="mail")(nothing)  # type: ignore[arg-type]
    for topics in ([], 5, ["orders", 5]):
        with pytest.raises(fastlog.ConfigError, match="expected a name, a list of names, or a compiled pattern"):
            app.subscriber(topics, group="mail")(nothing)  # type: ignore[arg-type]
    for middleware in (wrong, Call):
        with pytest.raises(fastlog.ConfigError, match="a middleware is a function of a call and of proceed, found"):
            app.middleware(middleware)
    with pytest.raises(fastlog.ConfigError, match="store=5 is a int: expected a path or an open Store"):
        App(wrong)
    assert app.subscribers == []


def test_an_app_that_runs_is_not_started_again_nor_given_another_store(
    folder: Path, store: fastlog.Store, clock: HandClock
) -> None:
    app = App(store, clock=clock)
    app.subscriber("orders", group="mail")(nothing)
    with driven(app, clock):
        with pytest.raises(fastlog.ConfigError, match="the app runs already: stop it first"):
            app.open()
        with pytest.raises(fastlog.ConfigError, match="stop it before it is given another store"):
            app.use_store(folder / "other")
        assert app.stats()["mail"].partitions == 1
    assert not (folder / "other").exists()


def test_what_was_declared_can_be_read_in_messages(store: fastlog.Store, clock: HandClock) -> None:
    app = App(store, clock=clock)
    told: list[str] = []

    @app.middleware
    def noting(call: Call, proceed: Callable[[], Any]) -> Any:
        told.append(repr(call))
        return proceed()

    app.subscriber("orders", group="mail", order_by="partition")(nothing)
    send(store, "orders", [b"a"])
    with driven(app, clock):
        pass
    assert told == ["<Call of 'mail' with 1 from orders-0>"]
    assert repr(app.subscribers[0]) == "<Subscriber 'mail': ['orders'], group 'mail', ordered by partition>"
    letters = fastlog.DeadLetters.open(store, "orders", "mail")
    assert repr(letters) == "<DeadLetters 'orders.mail.dlq' of topic 'orders' and group 'mail'>"


def test_dead_letters_of_other_programs_are_found_by_what_they_tell(store: fastlog.Store, clock: HandClock) -> None:
    """One who moved it has left out the id and the message: the id follows from its place, no message fits."""
    app = App(store, clock=clock)
    app.subscriber("orders", group="mail")(nothing)
    with driven(app, clock):
        pass
    headers = {"topic": b"orders", "partition": b"0", "offset": b"7", "timestamp-type": b"create"}
    headers |= {"attempts": b"2", "group": b"mail"}
    own = {f"fastlog.dlq.{name}": value for name, value in headers.items()}
    send(store, "orders.mail.dlq", [b"moved"], headers=own)
    letters = fastlog.DeadLetters.open(store, "orders", "mail")
    assert [letter.value for letter in letters.list(ids="orders-0-7")] == [b"moved"]
    assert list(letters.list(ids="orders-0-8")) == []
    assert list(letters.list(message="slow")) == []


# --- how calls end ---------------------------------------------------------------------------------------------------


def test_a_handler_that_never_ends_is_left_behind(store: fastlog.Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """A single sync handler has no thread of its own: `run` cannot wait for it for ever."""
    monkeypatch.setattr(app_module, "GRACE_MS", 50)
    monkeypatch.setattr(app_module, "GLANCE_S", 0.02)
    send(store, "orders", [b"hangs"])
    app = App(store)
    called, release = threading.Event(), threading.Event()

    @app.subscriber("orders", group="mail", drain_timeout="50ms")
    def mail(record: fastlog.Record) -> None:
        called.set()
        release.wait(30)

    app.start()
    threads = list(app._threads)
    assert called.wait(10)
    app.stop()
    with pytest.raises(fastlog.HandlerTimeoutError, match="fastlog-mail: a handler did not end within drain_timeout"):
        app.wait()
    assert not store.closed and ORDERS not in values_committed(store)
    release.set()
    for thread in threads:
        thread.join(10)
    assert values_committed(store)[ORDERS] == 1


def values_committed(store: fastlog.Store, group: str = "mail") -> dict[TopicPartition, int]:
    return {name: found.offset for name, found in committed(store, group).items() if found.offset}


def test_a_second_interrupt_ends_the_run_at_once(store: fastlog.Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(app_module, "SAME_SIGNAL_MS", 20)
    send(store, "orders", [b"hangs"])
    app = App(store)
    called, release = threading.Event(), threading.Event()

    @app.subscriber("orders", group="mail")
    def mail(record: fastlog.Record) -> None:
        called.set()
        release.wait(30)

    def interrupt() -> None:
        called.wait(10)
        os.kill(os.getpid(), signal.SIGINT)
        while not app._is_stopping:  # the second one would be taken for the first
            time.sleep(0.01)
        time.sleep(0.1)
        os.kill(os.getpid(), signal.SIGINT)

    killer = threading.Thread(target=interrupt)
    killer.start()
    try:
        with pytest.raises(KeyboardInterrupt):
            app.run()
    finally:
        killer.join()
        release.set()
        app.wait()
    assert app.stats()["mail"].succeeded == 1


def test_async_calls_that_do_not_end_in_time_are_cancelled(store: fastlog.Store) -> None:
    send(store, "orders", [b"hangs"])
    app = App(store)
    told: list[str] = []

    @app.subscriber("orders", group="mail", drain_timeout="50ms")
    async def mail(record: fastlog.Record) -> None:
        told.append("called")
        try:
            await asyncio.sleep(60)
        except asyncio.CancelledError:
            told.append("cancelled")
            raise

    app.start()
    until(lambda: told, "nothing was called")
    app.stop()
    app.wait()
    assert told == ["called", "cancelled"]
    assert ORDERS not in values_committed(store)


def test_a_timeout_of_the_handlers_own_is_told_as_its_own(store: fastlog.Store, clock: HandClock) -> None:
    app = App(store, clock=clock)

    @app.subscriber("orders", group="mail", timeout="10s")
    async def mail(record: fastlog.Record) -> None:
        raise TimeoutError("the mail server is slow")

    send(store, "orders", [b"a"])
    with driven(app, clock):
        pass
    letter = next(fastlog.DeadLetters.open(store, "orders", "mail").list())
    assert (letter.exception, letter.message) == ("TimeoutError", "the mail server is slow")


def test_a_batch_error_of_a_handler_of_single_records_counts_as_its_cause(
    store: fastlog.Store, clock: HandClock
) -> None:
    app = App(store, clock=clock)
    calls: list[bytes | None] = []

    @app.subscriber("orders", group="mail", retry=Retry(3, backoff=0, give_up_on=[KeyError]))
    def mail(record: fastlog.Record) -> None:
        calls.append(record.value)
        raise fastlog.BatchError(0, KeyError("no such customer"))

    send(store, "orders", [b"a"])
    with driven(app, clock) as running:
        running.advance(SECOND)
        assert running.stats()["mail"].dead_lettered == 1
    assert calls == [b"a"]


def test_a_handler_with_a_breaker_that_exits_ends_the_app(store: fastlog.Store, clock: HandClock) -> None:
    app = App(store, clock=clock)

    @app.subscriber("orders", group="mail", breaker=fastlog.Breaker(5))
    def mail(record: fastlog.Record) -> None:
        raise SystemExit(7)

    send(store, "orders", [b"a", b"b"])
    running = Driven(app, clock)
    with pytest.raises(SystemExit):
        running.settle()
    assert running.stats()["mail"].calls == 1
    app.close()


def test_failures_are_told_to_who_asks_for_them(
    store: fastlog.Store, clock: HandClock, caplog: pytest.LogCaptureFixture
) -> None:
    app = App(store, clock=clock)

    @app.subscriber("orders", group="mail")
    def mail(record: fastlog.Record) -> None:
        raise KeyError(record.value)

    send(store, "orders", [b"secret"])
    with caplog.at_level(logging.INFO, "fastlog.delivery"), driven(app, clock):
        pass
    assert "subscriber 'mail': attempt 1 of orders-0, offset 0, failed: KeyError" in caplog.text
    assert "secret" not in caplog.text


def test_an_exception_that_cannot_be_printed_is_named_by_its_class() -> None:
    class Odd(Exception):
        @property
        def __notes__(self) -> list[str]:  # type: ignore[override]
            raise ValueError("not even its notes can be read")

    failure = Failure.of(Odd("said"), 5)
    assert failure.exception.endswith("Odd")
    assert (failure.message, failure.traceback, failure.at) == ("said", "", 5)


# --- ids of events ---------------------------------------------------------------------------------------------------


def test_an_id_that_cannot_be_told_counts_as_a_failure_of_the_record(store: fastlog.Store, clock: HandClock) -> None:
    app = App(store, clock=clock)
    calls: list[bytes | None] = []

    def id_of(record: fastlog.Record) -> bytes:
        if record.value == b"bad":
            raise LookupError("no id in it")
        return record.value or b""

    @app.subscriber("orders", group="mail", deduplicate=fastlog.Deduplicator(id=id_of))
    def mail(record: fastlog.Record) -> None:
        calls.append(record.value)

    send(store, "orders", [b"good", b"bad", b"good"])
    with driven(app, clock) as running:
        stats = running.stats()["mail"]
        assert (stats.duplicates, stats.failed, stats.dead_lettered) == (1, 1, 1)
    assert calls == [b"good"]
    letter = next(fastlog.DeadLetters.open(store, "orders", "mail").list())
    assert (letter.value, letter.exception) == (b"bad", "LookupError")


def test_a_batch_of_known_events_alone_is_not_called(store: fastlog.Store, clock: HandClock) -> None:
    app = App(store, clock=clock)
    calls: list[list[bytes | None]] = []

    @app.subscriber(
        "orders", group="mail", batch=5, deduplicate=fastlog.Deduplicator(id=lambda record: record.value or b"")
    )
    def mail(records: list[fastlog.Record]) -> None:
        calls.append([record.value for record in records])

    send(store, "orders", [b"a", b"b"])
    with driven(app, clock) as running:
        send(store, "orders", [b"b", b"a"])
        running.advance(SECOND)
        assert running.stats()["mail"].duplicates == 2
    assert calls == [[b"a", b"b"]]


def test_ids_that_cannot_be_kept_hold_nobody_up(
    store: fastlog.Store, clock: HandClock, caplog: pytest.LogCaptureFixture
) -> None:
    app = App(store, clock=clock)
    calls: list[bytes | None] = []

    @app.subscriber("orders", group="mail", deduplicate=fastlog.Deduplicator())
    def mail(record: fastlog.Record) -> None:
        calls.append(record.value)

    with driven(app, clock) as running:
        memory = running.runners[0]._memory
        assert memory is not None
        memory._connection.execute("PRAGMA query_only = 1")
        send(store, "orders", [b"a", b"b"])
        running.settle()
        problem = running.stats()["mail"].problem
        assert problem is not None and problem.startswith("ids of events: StorageError: cannot write")
        assert "2 ids of events were not kept" in caplog.text
        running.advance(SECOND)
    assert calls == [b"a", b"b"]
    assert values_committed(store)[ORDERS] == 2


def test_a_file_that_cannot_be_shared_is_refused() -> None:
    """As on a network's file system: SQLite answers with another mode."""
    with pytest.raises(fastlog.NotSupportedError, match="cannot share a write-ahead log.*'memory'"):
        deduplicator.connect(":memory:", "group")


def test_an_error_of_the_disk_says_that_nothing_was_changed() -> None:
    error = sqlite3.OperationalError("disk I/O error")
    error.sqlite_errorcode = sqlite3.SQLITE_IOERR_WRITE
    told = deduplicator.as_error(error, "/ids.sqlite", "write")
    assert type(told) is fastlog.StorageError
    assert str(told) == "cannot write /ids.sqlite: disk I/O error; nothing was changed"


# --- marks that are damaged ------------------------------------------------------------------------------------------

MARKED, LAST = 2, bytes([0xFF] * 8 + [0x7F])


@pytest.mark.parametrize(
    ("payload", "reason"),
    [
        (bytes([0]) + bytes([0xFF] * 10), "a number beyond 2"),
        (bytes([0, 0x81, 0x00]), "a number with zeros in front"),
        (bytes([0, 1, 0]), "an empty run"),
        (bytes([0, 1]), "an empty run"),
        (bytes([0]) + LAST + b"\x01", "an offset beyond 2"),
        (bytes([0, 1, 0x81]), "the last number is cut off"),
        (bytes([MARKED, 1, 1]), "the mark ends early"),
        (bytes([0x80]), "unknown flags"),
        (bytes(5000), "more than [0-9]+ characters"),
    ],
)
def test_a_damaged_mark_is_passed_over_with_its_reason(
    payload: bytes, reason: str, caplog: pytest.LogCaptureFixture
) -> None:
    text = "fl1:" + base64.b64encode(payload).decode()
    with caplog.at_level(logging.WARNING, "fastlog.delivery"):
        assert finished.Finished.decode(7, text) == finished.Finished(7)
    assert re.search(rf"committed offset 7 .*passed over \({reason}", caplog.text)


def test_a_record_that_does_not_belong_into_the_retry_topic_is_a_dead_letter_as_it_is(
    store: fastlog.Store, clock: HandClock, caplog: pytest.LogCaptureFixture
) -> None:
    app = App(store, clock=clock)
    app.subscriber("orders", group="mail", retry=Retry(3))(nothing)
    with driven(app, clock) as running:
        send(store, "orders.mail.retry", [b"by hand"], [b"k"])
        running.settle()
        assert "subscriber 'mail': a record that does not belong there" in caplog.text
        assert running.stats()["mail"].dead_lettered == 1
    found = records_of(store, "orders.mail.dlq")
    assert [(record.key, record.value) for record in found] == [(b"k", b"by hand")]
    assert found[0].headers["fastlog.dlq.exception"] == b"fastlog.errors.InvalidRecordError"


# --- what cannot be written ------------------------------------------------------------------------------------------


def failing_app(store: fastlog.Store, clock: HandClock, **options: Any) -> App:
    """Its handler fails on ``bad``, and is called once more a second later."""
    app = App(store, clock=clock)

    @app.subscriber("orders", group="mail", retry=Retry(2, backoff="1s", jitter=False), **options)
    def mail(record: fastlog.Record) -> None:
        if (record.value or b"").startswith(b"bad"):
            raise ValueError("bad")

    return app


def test_offsets_that_cannot_be_written_are_written_later(
    store: fastlog.Store, clock: HandClock, caplog: pytest.LogCaptureFixture
) -> None:
    app = failing_app(store, clock)
    with driven(app, clock) as running:
        send(store, "orders", [b"a", b"b"])
        running.settle()
        oscalls.inject("pwrite", ENOSPC, sticky=True)
        running.advance(SECOND)
        stats = running.stats()["mail"]
        assert stats.failed_commits == 1
        assert stats.problem is not None and stats.problem.startswith("offsets of orders-0 were not committed")
        oscalls.clear()
        assert ORDERS not in values_committed(store)
        running.advance(SECOND)
        running.advance(SECOND)
        assert running.stats()["mail"].problem is None
        assert values_committed(store)[ORDERS] == 2
    assert "Nothing is lost, it is tried again" in caplog.text


@pytest.mark.parametrize("stays_full", [False, True])
@pytest.mark.parametrize("nth", range(1, 8))
def test_moves_whose_outcome_is_unknown_are_settled_before_the_next_ones(
    store: fastlog.Store, clock: HandClock, nth: int, stays_full: bool
) -> None:
    """Whichever write of a move fails, once or for a while: every record goes where it belongs, once."""
    app = failing_app(store, clock)
    with driven(app, clock) as running:
        send(store, "orders", [b"bad"])
        running.settle()
        running.advance(SECOND)
        assert running.stats()["mail"].dead_lettered == 1
        send(store, "orders", [b"bad 1", b"good", b"bad 2"], [b"a", b"b", b"c"])
        oscalls.inject("pwrite", ENOSPC, nth=nth, sticky=stays_full)
        running.settle()
        assert running.stats()["mail"].failed_moves == 1
        running.advance(10)
        oscalls.clear()
        for _ in range(5):
            running.advance(SECOND)
        stats = running.stats()["mail"]
        assert stats.problem is None and stats.succeeded == 1 and stats.dead_lettered == 3
    assert sorted(value or b"" for value in values_of(store, "orders.mail.dlq")) == [b"bad", b"bad 1", b"bad 2"]
    assert len(values_of(store, "orders.mail.retry")) == 3
    assert values_committed(store)[ORDERS] == 4


def step_until(running: Driven, condition: Callable[[], bool]) -> None:
    for _ in range(50):
        if condition():
            return
        running.runners[0].step()
    raise AssertionError("it does not come to that")


def test_a_partition_that_cannot_be_begun_is_begun_later(store: fastlog.Store, clock: HandClock) -> None:
    app = failing_app(store, clock)
    with driven(app, clock) as running:
        store.add_partitions("orders", 2)
        send(store, "orders", [b"a"], partition=1)
        step_until(running, lambda: running.stats()["mail"].partitions == 2)
        # its retry and dead-letter partitions are not there yet
        oscalls.inject("pwrite", ENOSPC, sticky=True)
        running.settle()
        running.settle()
        problem = running.stats()["mail"].problem
        assert problem is not None and problem.startswith("orders-1 could not be begun: StorageFullError")
        oscalls.clear()
        assert running.stats()["mail"].succeeded == 0
        running.advance(SECOND)
        running.advance(SECOND)
        assert running.stats()["mail"].succeeded == 1 and running.stats()["mail"].problem is None


def test_a_beginning_that_cannot_be_written_down_is_repeated(store: fastlog.Store, clock: HandClock) -> None:
    """Nothing is called before it stands somewhere that the partition was begun."""
    with driven(failing_app(store, clock), clock):
        pass
    running = Driven(failing_app(store, clock), clock)
    send(store, "orders", [b"a"])
    step_until(running, lambda: running.stats()["mail"].partitions == 1)
    oscalls.inject("pwrite", ENOSPC, sticky=True)
    running.settle()
    stats = running.stats()["mail"]
    assert (stats.calls, stats.failed_commits) == (0, 1)
    oscalls.clear()
    running.advance(SECOND)
    running.advance(SECOND)
    assert running.stats()["mail"].succeeded == 1
    running.app.close()


def test_a_full_disk_does_not_end_an_app_that_runs(store: fastlog.Store, caplog: pytest.LogCaptureFixture) -> None:
    """It cannot end what an earlier owner has left open, says so, and goes on when there is room."""
    app = App(store)
    app.subscriber("orders", group="mail")(nothing)
    app.open()
    app.close()
    moving = Moving(store)
    moving.doubt()
    moving.consumer.close()
    runner = app.open()[0]
    oscalls.inject("pwrite", ENOSPC, sticky=True)
    thread = threading.Thread(target=runner.run)
    thread.start()
    until(lambda: runner.stats().problem is not None, "no problem was told")
    oscalls.clear()
    until(lambda: runner.stats().succeeded == 1, "it did not go on")
    runner.stop()
    thread.join(10)
    app.close()
    moving.close()
    assert re.search("subscriber 'mail': could not .*No space left.* It goes on in a second", caplog.text)
    assert values_of(store, RETRY.topic) == [] and values_committed(store)[ORDERS] == 1


def require_waits_for(stranger: TransactionalId, store: fastlog.Store, clock: HandClock) -> None:
    """Nothing is handled before somebody else's transaction is over."""
    send(store, "orders", [b"a"])
    with driven(failing_app(store, clock), clock) as running:
        assert running.stats()["mail"].calls == 0
        stranger.abort()
        running.advance(SECOND)
        running.advance(SECOND)
        assert running.stats()["mail"].succeeded == 1
    stranger.close()


def test_records_behind_an_open_transaction_in_the_retry_topic_are_waited_for(
    store: fastlog.Store, clock: HandClock
) -> None:
    """Somebody else's transaction, which a new owner must not end: it may be alive."""
    with driven(failing_app(store, clock), clock):
        pass
    stranger = TransactionalId(store.directory, "stranger")
    stranger.begin()
    stranger.append_records(TopicPartition("orders.mail.retry", 0), [b"k"], [b"by hand"])
    require_waits_for(stranger, store, clock)


def test_offsets_that_another_transaction_may_move_are_waited_for(store: fastlog.Store, clock: HandClock) -> None:
    with driven(failing_app(store, clock), clock):
        pass
    offsets = OffsetStore(store.directory)
    commits = TopicPartition(CONSUMER_OFFSETS, offsets.partition_of("mail"))
    stranger = TransactionalId(store.directory, "stranger")
    stranger.begin()
    retry = TopicPartition("orders.mail.retry", 0)
    stranger.append_records(commits, *offsets.encode_commit("mail", {retry: OffsetAndMetadata(0)}, {}))
    require_waits_for(stranger, store, clock)


def test_moves_in_doubt_whose_topic_is_deleted_begin_anew(folder: Path, clock: HandClock) -> None:
    """Nobody can find out what became of them: the records are handled again, from what is committed."""
    with fastlog.open(folder / "synced", durability="batch") as store:
        store.create_topic("orders")
        with driven(failing_app(store, clock), clock) as running:
            send(store, "orders", [b"bad"])
            running.settle()
            running.advance(SECOND)
            assert running.stats()["mail"].dead_lettered == 1
            send(store, "orders", [b"bad again"])
            for nth in range(1, 10):
                oscalls.inject("pwrite", ENOSPC, nth=nth)
                running.advance(10 * SECOND)
                oscalls.clear()
                if running.runners[0]._places[ORDERS].doubtful is not None:
                    break
            oscalls.inject("pwrite", ENOSPC, sticky=True)
            running.advance(10 * SECOND)
            oscalls.clear()
            problem = running.stats()["mail"].problem
            assert problem is not None and problem.startswith("whether records were moved is not known: StorageFull")
            store.delete_topic("orders.mail.retry")
            for _ in range(20):
                running.advance(SECOND)
            assert running.stats()["mail"].dead_lettered == 2 and running.stats()["mail"].problem is None
        assert values_of(store, "orders.mail.dlq") == [b"bad", b"bad again"]
        assert values_committed(store)[ORDERS] == 2


# --- partitions that go while a call is on its way -------------------------------------------------------------------


def test_calls_that_end_too_late_count_for_nobody(store: fastlog.Store) -> None:
    """Their partitions went to another app meanwhile, and the records come again there."""
    store.add_partitions("orders", 2)
    send(store, "orders", [b"a"], partition=0)
    send(store, "orders", [b"b"], partition=1)
    release = threading.Event()
    app = App(store)

    @app.subscriber("orders", group="mail", concurrency=2, drain_timeout="50ms", breaker=fastlog.Breaker(2))
    def mail(record: fastlog.Record) -> None:
        release.wait(10)
        raise ValueError

    runner = app.open()[0]
    deadline = time.monotonic() + 10
    while runner.stats().in_hand < 2 and time.monotonic() < deadline:
        runner.step(10)
    assert runner.stats().in_hand == 2
    with Consumer(store.directory, "orders", group="mail", auto_commit=False) as other:
        while not other.assignment() and time.monotonic() < deadline:
            other.poll(timeout=0)
            runner.step(10)
        assert len(other.assignment()) == 1
        release.set()
        while runner.stats().late + runner.stats().failed < 2 and time.monotonic() < deadline:
            runner.step(10)
        stats = runner.stats()
        assert (stats.late, stats.failed, stats.breaker) == (1, 1, "closed")
    app.close()


def test_offsets_of_several_partitions_that_were_lost_are_not_written(store: fastlog.Store, clock: HandClock) -> None:
    """One of several may be lost, so each is tried by itself; here the others have all of them."""
    store.add_partitions("orders", 2)
    for partition in (0, 1):
        send(store, "orders", [b"%d" % partition], partition=partition)

    def app(own: HandClock) -> App:
        made = App(store, clock=own)
        made.subscriber("orders", group="mail", max_poll_interval="1s")(nothing)
        return made

    other_clock = HandClock()
    stopped = Driven(app(clock), clock)
    stopped.settle()
    assert stopped.stats()["mail"].succeeded == 2 and values_committed(store) == {}
    other = Driven(app(other_clock), other_clock)
    deadline = time.monotonic() + 10
    while other.stats()["mail"].succeeded < 2 and time.monotonic() < deadline:
        time.sleep(0.02)
        other.advance(SECOND)
    clock.advance(SECOND)
    stopped.runners[0].step()
    assert stopped.stats()["mail"].failed_commits == 3
    other.advance(SECOND)
    other.advance(SECOND)
    assert values_committed(store) == {ORDERS: 1, TopicPartition("orders", 1): 1}
    stopped.app.close()
    other.app.close()


# --- moves -----------------------------------------------------------------------------------------------------------

RETRY, DEAD = TopicPartition("orders.mail.retry", 0), TopicPartition("orders.mail.dlq", 0)


class Moving:
    """A mover and who owns its partition, with one record to move."""

    def __init__(self, store: fastlog.Store, dead: TopicPartition | None = DEAD, to: Any = "retry") -> None:
        for topic in (RETRY.topic, DEAD.topic):
            store.create_topic(topic, exist_ok=True)
        send(store, "orders", [b"a"])
        self.route = Route("mail", ORDERS, RETRY, dead)
        self.mover = Mover(store.directory, self.route)
        self.consumer = Consumer[Any, Any](store.directory, "orders", group="mail", auto_commit=False)
        self.consumer.poll(timeout=0)
        record = records_of(store, "orders")[0]
        self.moves = [Move(Item.of_source(record, record), to, 1, 6_000, "head", Failure("E", "no", "", 5))]

    def move(self) -> None:
        membership = self.consumer.membership
        assert membership is not None
        offsets = {ORDERS: OffsetAndMetadata(1), RETRY: OffsetAndMetadata(0)}
        self.mover.move(self.moves, offsets, membership, self.consumer.epochs_of([ORDERS]).get(ORDERS))

    def doubt(self) -> None:
        """Let the decision fail, so that nobody knows what became of it."""
        for nth in range(1, 10):
            oscalls.inject("pwrite", ENOSPC, nth=nth, sticky=True)
            with pytest.raises(fastlog.StorageFullError):
                self.move()
            oscalls.clear()
            if self.mover.is_in_doubt:
                return
        raise AssertionError("no write of a move leaves it in doubt")

    def close(self) -> None:
        self.mover.close()
        self.consumer.close()


def test_moves_wait_until_what_became_of_the_last_ones_is_known(store: fastlog.Store) -> None:
    moving = Moving(store)
    assert moving.mover.settle() is False, "nothing is in doubt"
    moving.doubt()
    with pytest.raises(fastlog.TransactionError, match="not known yet: settle it first"):
        moving.move()
    # another owner has ended it meanwhile
    other = Mover(store.directory, moving.route)
    other.fence()
    assert moving.mover.settle() is False
    assert not moving.mover.is_in_doubt and not moving.mover.is_open
    assert values_of(store, RETRY.topic) == [] and ORDERS not in values_committed(store)
    moving.move()
    assert values_of(store, RETRY.topic) == [b"a"]
    other.close()
    moving.close()


def test_a_move_that_can_neither_be_settled_nor_is_in_doubt_says_why(folder: Path) -> None:
    """Its topic was deleted while nobody knew: the transaction is given up."""
    with fastlog.open(folder / "synced", durability="batch") as store:
        store.create_topic("orders")
        moving = Moving(store)
        moving.doubt()
        store.delete_topic(RETRY.topic)
        with pytest.raises(fastlog.UnknownTopicError):
            moving.mover.settle()
        assert not moving.mover.is_in_doubt and not moving.mover.is_open
        assert ORDERS not in values_committed(store)
        moving.close()


def test_a_record_without_a_dead_letter_topic_is_not_moved(store: fastlog.Store) -> None:
    moving = Moving(store, dead=None, to="dead_letter")
    with pytest.raises(fastlog.TransactionError, match="has no dead-letter topic to move a record to"):
        moving.move()
    assert not moving.mover.is_in_doubt
    moving.close()


# --- what is decided about a partition -------------------------------------------------------------------------------


def new_work(order_by: str = "key") -> PartitionWork:
    return PartitionWork(
        order_by=order_by,
        concurrency=4,
        retry=Retry(3, backoff="1s", jitter=False),
        dead_letter=True,
        random=random.Random(0),
    )


def of_source(offset: int, key: bytes) -> Item:
    record: fastlog.Record = fastlog.Record("orders", 0, offset, 1, key, b"v")
    return Item.of_source(record, record)


def work_of(records: int) -> PartitionWork:
    """A partition that has begun, with so many records of different keys."""
    made = new_work()
    made.restore(finished.Finished(0), finished.Finished(0))
    made.begin()
    made.finished()
    made.marked()
    made.add_source([of_source(offset, b"k%d" % offset) for offset in range(records)])
    return made


def test_what_comes_back_for_a_partition_that_was_given_up_counts_no_more() -> None:
    work = work_of(4)
    failure = Failure("E", "no", "", 5)
    first, second, third, fourth = work.take(1, 4)
    work.fail(first, failure, ValueError(), 1)
    moves = work.moves()
    assert [move.item for move in moves] == [first]
    before = work.finished()
    work.release()
    work.moved(moves, 1)
    work.succeed(second)
    work.fail(third, failure, ValueError(), 1)
    work.give_back(fourth)
    assert work.moves() == [] and work.in_hand == 3
    assert work.finished() == before


def test_moves_are_done_in_any_order() -> None:
    work = work_of(3)
    for item in work.take(1, 3):
        work.fail(item, Failure("E", "no", "", 5), ValueError(), 1)
    moves = work.moves()
    work.moved([moves[1]], 1)
    assert work.moves() == [moves[0], moves[2]] and not work.is_idle


def retried(offset: int, origin: int) -> Item:
    """One of key ``k`` that waits in the retry topic."""
    record: fastlog.Record = fastlog.Record("orders", 0, origin, 1, b"k", b"v")
    return Item(record, record, True, offset, "orders", 0, origin, b"k", 1, 1000)


def test_after_a_step_back_older_records_of_a_key_come_before_those_that_wait() -> None:
    """As when somebody resets a group: what was there first is handled first."""
    work = new_work()
    work.restore(finished.Finished(3), finished.Finished(0))
    work.add_retry([retried(0, 5)])
    work.begin()
    work.finished()
    work.marked()
    work.add_source([of_source(offset, b"k") for offset in (3, 4, 6)])
    order = []
    for now in (10, 10, 1000, 1000):
        (item,) = work.take(now, 4)
        order.append((item.is_retry, item.origin_offset))
        work.succeed(item)
    assert order == [(False, 3), (False, 4), (True, 5), (False, 6)]


def test_after_an_unclean_end_the_care_ends_when_enough_went_well(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(work_module, "CAREFUL_RECORDS", 4)
    monkeypatch.setattr(work_module, "STEPPED_RECORDS", 12)
    work = new_work()
    work.restore(finished.Finished(0, clean=False), finished.Finished(0, clean=False))
    work.begin()
    work.add_source([of_source(offset, b"%d" % offset) for offset in range(30)])
    handled = 0
    clean = []
    while handled < 20:
        taken = work.take(10, 4)
        if not taken:
            assert work.wanted_mark(10)
            work.finished()
            work.marked()
        for item in taken:
            work.succeed(item)
        handled += len(taken)
        clean.append((handled >= 12, work.finished(clean=True)[0].clean))
    assert {is_enough for is_enough, _ in clean} == {False, True}
    assert all(is_enough == is_clean for is_enough, is_clean in clean)


def test_a_record_tried_in_place_that_is_given_back_keeps_its_attempts() -> None:
    work = new_work("partition")
    work.restore(finished.Finished(0), finished.Finished(0))
    work.begin()
    work.finished()
    work.marked()
    work.add_source([of_source(offset, b"k") for offset in (0, 1)])
    (item,) = work.take(1, 1)
    work.fail(item, Failure("E", "no", "", 5), ValueError(), 1)
    assert work.wanted_mark(5000)
    work.finished()
    work.marked()
    assert work.take(5000, 1) == [item]
    work.give_back(item)
    mark = work.finished()[0].mark
    assert mark is not None and (mark.offset, mark.attempts) == (0, 1)
    work.marked()
    # those that come meanwhile stay behind it
    work.add_source([of_source(2, b"k")])
    order: list[tuple[int, int]] = []
    while len(order) < 3:
        taken = work.take(5000, 1)
        if not taken:
            assert work.wanted_mark(5000)
            work.finished()
            work.marked()
        for found in taken:
            order.append((found.offset, found.attempts))
            work.succeed(found)
    assert order == [(0, 1), (1, 0), (2, 0)]


# --- processes -------------------------------------------------------------------------------------------------------


def test_a_parent_that_is_gone_is_not_answered() -> None:
    read, ready = os.pipe()
    os.close(read)
    answer(ready)
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(ready)


def test_a_worker_leaves_though_its_output_is_closed() -> None:
    child = os.fork()
    if not child:
        sys.stdout = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115
        sys.stdout.close()
        leave(75)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 75


@pytest.mark.parametrize(
    ("code", "words"),
    [(0, "ended with exit code 0"), (-9, "was killed by SIGKILL"), (-99, "was killed by signal 99")],
)
def test_how_a_process_ended_is_said_in_words(code: int, words: str) -> None:
    assert described(code) == words


def test_a_first_worker_that_cannot_be_started_ends_the_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", "/missing/python")
    told: list[Event] = []
    files = len(os.listdir("/proc/self/fd"))
    with pytest.raises(fastlog.Error, match="no worker can be started: .*No such file"):
        Workers("module:app", tell=told.append).run()
    assert told == [] and len(os.listdir("/proc/self/fd")) <= files


SLEEPY = """
import time

class Sleepy:
    def run(self):
        time.sleep(60)

    def stop(self):
        pass

    def use_store(self, store):
        pass

app = Sleepy()
"""


def test_a_worker_that_cannot_be_started_again_is_tried_later(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The system has no process to give for a moment; the stop still ends everything."""
    (folder / "sleepy.py").write_text(SLEEPY)
    monkeypatch.setenv("PYTHONPATH", f"{Path(fastlog.__file__).parents[1]}{os.pathsep}{folder}")
    told: list[Event] = []

    def tell(event: Event) -> None:
        told.append(event)
        if event.kind == "loaded" and event.pid is not None:
            monkeypatch.setattr(sys, "executable", "/missing/python")
            os.kill(event.pid, signal.SIGKILL)
        elif "cannot be started" in event.text:
            os.kill(os.getpid(), signal.SIGTERM)

    Workers("sleepy:app", grace_ms=2000, tell=tell).run()
    kinds = [event.kind for event in told]
    assert kinds == ["started", "loaded", "died", "died", "stopping"]
    assert re.fullmatch(r"worker 1 cannot be started: .*No such file.*; it is tried again in [0-9.]+ s", told[3].text)
    assert told[3].delay_ms is not None and told[3].alive == 0
