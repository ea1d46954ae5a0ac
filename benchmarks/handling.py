"""Apps as contestants: handlers that do nothing, that sleep, that fail, that wait for their time. At ``os``."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import cycle, islice
from time import monotonic, sleep, time
from typing import Any

import fastlog
from benchmarks.contest import Prepare, Work, expect
from benchmarks.messaging import TOPIC, open_store
from benchmarks.workload import VALUE_BYTES, VALUES_PER_CALL, Stage, calls, keys, value_lists
from fastlog.delivery.headers import retry_headers
from fastlog.delivery.items import Item, Move
from fastlog.delivery.runner import Runner

GROUP = "handlers"
RETRY_TOPIC, DEAD_LETTER_TOPIC = f"{TOPIC}.{GROUP}.retry", f"{TOPIC}.{GROUP}.dlq"
MOVES_PER_TRANSACTION = 500
_PATIENCE_SECONDS = 120
_STEP_MS = 100
_SLEEP_SECONDS = 0.001
_HOUR_MS = 3_600_000
# between records that become due, and before the first one
_DUE_EVERY_MS, _DUE_FIRST_MS = 5, 300


@contextmanager
def _running(store: fastlog.Store, handler: Callable[..., Any], **options: Any) -> Iterator[Runner]:
    """The runner of an app with one subscriber, which has its partitions, to be stepped by who measures."""
    app = fastlog.App(store)
    app.subscriber(TOPIC, group=GROUP, **options)(handler)
    (runner,) = app.open()
    try:
        _step_until(runner, lambda: runner.stats().partitions == 1)
        while runner.step():
            pass
        yield runner
    finally:
        app.close()


def _step_until(runner: Runner, condition: Callable[[], bool]) -> None:
    deadline = monotonic() + _PATIENCE_SECONDS
    while not condition():
        runner.step(_STEP_MS)
        expect(monotonic() < deadline, "nothing any more", "progress", f"an app within {_PATIENCE_SECONDS} s")


def _append(store: fastlog.Store, total: int) -> None:
    """So many records with a thousand keys."""
    log = store.topic(TOPIC).partition(0)
    for values in calls(total, VALUE_BYTES):
        log.append(values, keys=keys())


def _handled(runner: Runner, total: int) -> int:
    """Step until so many are handled, and what is finished is committed."""

    def is_done() -> bool:
        return runner.stats().succeeded >= total

    _step_until(runner, is_done)
    return total


# --- what an app costs ------------------------------------------------------------------------------------------------


def handle(*, is_async: bool, concurrency: int) -> Prepare:
    """Records with a thousand keys through a handler that does nothing, ordered by key."""

    def nothing(record: fastlog.Record) -> None:
        pass

    async def nothing_async(record: fastlog.Record) -> None:
        pass

    @contextmanager
    def prepare(stage: Stage) -> Iterator[Work]:
        total = stage.sizes.handled_records
        handler = nothing_async if is_async else nothing
        with open_store(stage.directory / "store") as store:
            store.create_topic(TOPIC)
            with _running(store, handler, concurrency=concurrency) as runner:
                _append(store, total)
                yield lambda: _handled(runner, total)
                found = runner.stats().calls
                expect(found == total, found, total, "calls of the handler")

    return prepare


def handle_sleeping(concurrency: int) -> Prepare:
    """A handler that sleeps for a millisecond, ordered by key, in threads."""

    def nap(record: fastlog.Record) -> None:
        sleep(_SLEEP_SECONDS)

    @contextmanager
    def prepare(stage: Stage) -> Iterator[Work]:
        total = stage.sizes.slept_records
        with open_store(stage.directory / "store") as store:
            store.create_topic(TOPIC)
            with _running(store, nap, concurrency=concurrency) as runner:
                values, names = islice(cycle(value_lists(VALUE_BYTES)[0]), total), islice(cycle(keys()), total)
                store.topic(TOPIC).partition(0).append(list(values), keys=list(names))
                yield lambda: _handled(runner, total)

    return prepare


# --- dead letters -----------------------------------------------------------------------------------------------------


def fail(**options: Any) -> Prepare:
    """Records become dead letters at their first attempt."""

    def refuse(record: object) -> None:
        raise ValueError("refused")

    def undecodable(value: bytes) -> object:
        raise ValueError("refused")

    chosen = {"value_deserializer": undecodable} if options.pop("undecodable", False) else {}

    @contextmanager
    def prepare(stage: Stage) -> Iterator[Work]:
        total = stage.sizes.dead_letters
        with open_store(stage.directory / "store") as store:
            store.create_topic(TOPIC)
            with _running(store, refuse, **options, **chosen) as runner:
                _append(store, total)

                def work() -> int:
                    _step_until(runner, lambda: runner.stats().dead_lettered >= total)
                    return total

                yield work
                stage.details["moves_per_transaction"] = total / runner.stats().moves
            found = fastlog.DeadLetters.open(store, TOPIC, GROUP).count()
            expect(found == total, found, total, "dead letters after the round")

    return prepare


# --- due records ------------------------------------------------------------------------------------------------------


@contextmanager
def become_due(stage: Stage) -> Iterator[Work]:
    """From when a record is due to when its handler begins, beside many that wait for an hour."""
    total, moments = stage.sizes.due_records, list[float]()

    def note(record: fastlog.Record) -> None:
        moments.append(time() - int(record.value or b"") / 1000)

    with open_store(stage.directory / "store") as store:
        store.create_topic(TOPIC)
        with _running(store, note, retry=fastlog.Retry(2)) as runner:
            late = int(time() * 1000) + _HOUR_MS
            waiting = stage.sizes.waiting_records
            for first in range(0, waiting, VALUES_PER_CALL):
                _park(store, first, [late] * VALUES_PER_CALL)
            _step_until(runner, lambda: runner.stats().waiting == waiting)

            def work() -> int:
                begin = int(time() * 1000) + _DUE_FIRST_MS
                _park(store, waiting, [begin + number * _DUE_EVERY_MS for number in range(total)])
                _step_until(runner, lambda: len(moments) == total)
                expect(min(moments) >= 0, min(moments), "at least 0 s", "a record that began before it was due")
                stage.samples.extend(moments)
                return total

            yield work


def _park(store: fastlog.Store, first: int, due: list[int]) -> None:
    """Records in the retry topic as after their first failure, each with its own key; values say when they are due."""
    values = [b"%d" % moment for moment in due]
    names = [b"%08d" % number for number in range(first, first + len(due))]
    headers = []
    for number, (moment, key, value) in enumerate(zip(due, names, values, strict=True), first):
        record: fastlog.Record = fastlog.Record(TOPIC, 0, number, moment, key, value)
        move = Move(Item.of_source(record, record), "retry", 1, moment, "head", None)
        headers.append(retry_headers(move.item, move))
    store.topic(RETRY_TOPIC).partition(0).append(values, keys=names, headers=headers)
