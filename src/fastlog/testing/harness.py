"""An App, run by a test: in the calling thread, by a clock that the test turns, to the moment when nothing is left."""

from __future__ import annotations

import logging
import os
from asyncio import CancelledError, _get_running_loop
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from types import TracebackType
from typing import TYPE_CHECKING, Any, Final, Self

import fastlog
from fastlog._native import oscalls
from fastlog.config import parse_duration_ms
from fastlog.delivery.dead_letters import DeadLetters, class_name
from fastlog.errors import ConfigError

from .clock import Duration, TestClock
from .stores import temporary_store

if TYPE_CHECKING:
    from fastlog import App, Producer, Record, RecordMetadata, Store
    from fastlog.delivery.calling import Call
    from fastlog.delivery.headers import DeadLetter
    from fastlog.delivery.runner import Runner, SubscriberStats
    from fastlog.delivery.subscriber import Subscriber

__all__ = ["HandlerFailure", "Harness"]

logger = logging.getLogger("fastlog.testing")

MOST_CALLS: Final = 100_000
SHOWN: Final = 20
OUR_FOLDER: Final = os.path.dirname(fastlog.__file__)


@dataclass(frozen=True, slots=True)
class HandlerFailure:
    """A call of a handler that raised.

    Attributes:
        subscriber: its name.
        record: the record; of a batch the first one.
        attempt: the how manieth call of it this was, from 1.
        error: what it raised, with its traceback.
    """

    subscriber: str
    record: Record[Any, Any]
    attempt: int
    error: BaseException


class Harness:
    """Runs the handlers of an App in a test. Nothing sleeps, nothing runs beside the test.

    The App stays as it is: a copy of it runs, with the same handlers and middleware, in another store, by another
    clock. Retries wait exactly as long as ``backoff`` and ``factor`` say, without jitter; ids of a ``Deduplicator`` are
    kept in the store of the test. Everything else is as in production: groups, offsets, transactions, the retry and the
    dead-letter topics. Handlers are called one after the other, async ones too, each to its end. When an async handler
    sleeps, its event loop passes over that time, up to its ``timeout``; the clock stands still.

    Args:
        app: what to run.
        store: an open store. Default: one of its own, which is removed at the end.
        clock: by what retries, time-outs and pauses go. Default: a ``TestClock``.
        partitions: how many a topic gets that is not there: those of the subscribers at once, others by ``send``.

    Attributes:
        app: the copy that runs.
        store, clock: as above.
        failures: every call of a handler that raised, in order.

    One thread uses it. A context manager: ``close`` ends it.
    """

    def __init__(
        self, app: App, *, store: Store | None = None, clock: TestClock | None = None, partitions: int = 1
    ) -> None:
        self.clock = TestClock() if clock is None else clock
        self.failures: list[HandlerFailure] = []
        self._partitions = partitions
        self._opened = ExitStack()
        self._producer: Producer | None = None
        self._runners: list[Runner] = []
        self._calls = 0
        self._ending: BaseException | None = None
        self.store = self._opened.enter_context(temporary_store()) if store is None else store
        try:
            self.app = app.bound_to(self.store, clock=self.clock, change=predictable)
            self.app.middleware(self._watch)
            self.app.middleware(self._watch_async)
            self._create_topics()
            self._open()
        except BaseException:
            self._opened.close()
            raise

    def _create_topics(self) -> None:
        for subscriber in self.app.subscribers:
            if isinstance(subscriber.topics, list):
                for topic in subscriber.topics:
                    self.store.create_topic(topic, self._partitions, exist_ok=True)

    def _open(self) -> None:
        self._runners = self.app.open(inline=True)
        # joins its group, and knows from where on it reads; nothing can be called yet
        for runner in self._runners:
            runner.step()

    # --- what surrounds the handlers ---------------------------------------------------------------------------------

    def _watch(self, call: Call, proceed: Callable[[], Any]) -> Any:
        self._begin(call)
        try:
            return proceed()
        except BaseException as error:
            self._note(call, error)
            raise

    async def _watch_async(self, call: Call, proceed: Callable[[], Any]) -> Any:
        self._begin(call)
        try:
            return await proceed()
        except BaseException as error:
            self._note(call, error)
            raise

    def _begin(self, call: Call) -> None:
        if self._ending is not None:
            raise self._ending  # nothing is called after the end
        self._calls += 1

    def _note(self, call: Call, error: BaseException) -> None:
        self.failures.append(HandlerFailure(call.subscriber, call.record, call.attempt, error))
        if not isinstance(error, (Exception, CancelledError)):
            self._ending = self._ending or error
        place = told_record(call.subscriber, call.record)
        logger.warning("attempt %d of %s failed", call.attempt, place, exc_info=(type(error), error, theirs(error)))

    # --- running -----------------------------------------------------------------------------------------------------

    def run_until_idle(self, *, advance: bool = False) -> int:
        """Call handlers until there is nothing left to call now. How many calls that took.

        Args:
            advance: turn the clock, too, to the next moment at which something is due, again and again, until nothing
                waits any more: every retry has had its time.

        Raises:
            HandlerTimeoutError: a handler that is not async turned the clock beyond its ``timeout``. In production the
                process ends; here ``restart`` is the next one.
            AssertionError: handlers were called 100,000 times, and there was no end.
            Error: what would end ``App.run``.
            BaseException: what a handler raised that is no ``Exception``, such as ``pytest.fail``.
        """
        self._calls = 0
        self._settle()
        while advance and (wait := self._next_change()) is not None:
            self.clock.turn(wait)
            self._settle()
        return self._calls

    def advance(self, duration: Duration) -> int:
        """Let time pass, and everything happen that is due in it, when it is due. How many calls that took.

        Errors as of ``run_until_idle``.
        """
        target = self.clock.steady() + parse_duration_ms(duration, "duration")
        if target < self.clock.steady():
            raise ConfigError(f"advance({duration!r}): time does not go back")
        self._calls = 0
        self._settle()
        while (wait := self._next_change()) is not None and self.clock.steady() + wait <= target:
            self.clock.turn(wait)
            self._settle()
        # a handler that turned the clock may be beyond it
        self.clock.turn(max(target - self.clock.steady(), 0))
        self._settle()
        return self._calls

    def _settle(self) -> None:
        self._require_no_loop()
        happened = True
        while happened:
            happened = False
            for runner in self._runners:
                happened |= runner.step()
                self._check()

    def _require_no_loop(self) -> None:
        """An event loop cannot run within another one."""
        if _get_running_loop() is None or not any(known.is_async for known in self.app.subscribers):
            return
        raise ConfigError(
            "handlers with async def cannot be called from within a test with async def: make it a test with def, or "
            "run this in a thread: await asyncio.to_thread(running.run_until_idle)"
        )

    def _check(self) -> None:
        ending, self._ending = self._ending, None
        if ending is not None:
            raise ending
        if self._calls > MOST_CALLS:
            raise AssertionError(
                f"more than {MOST_CALLS} calls of handlers in one run, and no end: does a handler send to the topic "
                f"that it handles?\n{self._told_stats()}"
            )

    def _next_change(self) -> int | None:
        """In how many milliseconds something goes on that only waits for its time."""
        waits = [wait for runner in self._runners if (wait := runner.next_change()) is not None]
        return max(min(waits), 1) if waits else None

    def restart(self) -> None:
        """End the App in good order, and begin it again: as a new process that goes on with what is committed."""
        self.app.close()
        self._open()

    def crash(self) -> None:
        """End the App as ``kill -9`` does, and begin it again.

        What was finished since the last commit comes again: that was when the clock had last gone on by a second, or a
        record was moved. What was in hand is a suspect, as always after a process has died. To die inside of a handler,
        let it raise something that is no ``Exception``; ``run_until_idle`` raises that, then comes the crash.
        """
        for runner in self._runners:
            runner.abandon()
        self.restart()

    def close(self) -> None:
        """End the App, and a store of its own. Idempotent."""
        try:
            if self._producer is not None:
                self._producer.close()
            self.app.close()
        finally:
            self._producer, self._runners = None, []
            self._opened.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    # --- topics ------------------------------------------------------------------------------------------------------

    def send(
        self,
        topic: str,
        value: bytes | None,
        *,
        key: bytes | None = None,
        headers: Mapping[str, bytes | None] | Sequence[tuple[str, bytes | None]] | None = None,
        partition: int | None = None,
        timestamp: int | None = None,
    ) -> RecordMetadata:
        """Store a record; where it is now. Calls no handler. A topic that is not there is made.

        Without a ``timestamp`` it is of the clock's time, or of the machine's when that is earlier: a topic refuses
        records from the future.
        """
        if topic not in self.store.topics():
            self.store.create_topic(topic, self._partitions, exist_ok=True)
        if self._producer is None:
            self._producer = self.store.producer()
        at = min(self.clock.wall(), oscalls.wall_clock()) if timestamp is None else timestamp
        delivery = self._producer.send(topic, value, key=key, headers=headers, timestamp=at, partition=partition)
        return delivery.result()

    def records(self, topic: str) -> list[Record]:
        """Everything in a topic, partition after partition: what handlers have sent, or what waits in a retry topic."""
        with self.store.consumer(topic, start="earliest") as consumer:
            found = list(consumer.records(until="end"))
        return sorted(found, key=lambda record: (record.partition, record.offset))

    def stats(self, subscriber: str | None = None) -> SubscriberStats:
        """Counts of a subscriber. Without a name: of the only one."""
        stats = self.app.stats()
        if subscriber is None and len(stats) == 1:
            return next(iter(stats.values()))
        return stats[self._checked(subscriber)]

    def _checked(self, subscriber: str | None) -> str:
        names = [known.name for known in self.app.subscribers]
        if subscriber is None or subscriber not in names:
            raise ConfigError(f"subscriber={subscriber!r}: expected one of {', '.join(map(repr, names))}")
        return subscriber

    # --- dead letters ------------------------------------------------------------------------------------------------

    def dead_letters(self, subscriber: str | None = None, *, topic: str | None = None) -> list[DeadLetter]:
        """The open dead letters: of all subscribers, or of one; of all their topics, or of one."""
        return [letter for letters in self._letters(subscriber, topic) for letter in letters.list()]

    def redrive(self, subscriber: str | None = None, *, topic: str | None = None) -> int:
        """Send dead letters back to be handled again, as ``fastlog dlq redrive`` does; how many. Calls no handler."""
        return sum(letters.redrive().letters for letters in self._letters(subscriber, topic))

    def _letters(self, subscriber: str | None, topic: str | None) -> list[DeadLetters]:
        if subscriber is not None:
            self._checked(subscriber)
        groups = {known.group for known in self.app.subscribers if subscriber in (None, known.name)}
        return [
            DeadLetters.open(self.store, name, by="test")
            for name, (source, group) in DeadLetters.topics(self.store).items()
            if group in groups and topic in (None, source)
        ]

    def assert_no_dead_letters(self, subscriber: str | None = None) -> None:
        """Raises AssertionError that tells of the dead letters, if there are any."""
        __tracebackhide__ = True
        found = self.dead_letters(subscriber)
        if found:
            raise AssertionError(
                f"expected no dead letters{of(subscriber)}, found {len(found)}:\n{told_letters(found)}"
            )

    def assert_dead_lettered(
        self,
        count: int | None = None,
        *,
        subscriber: str | None = None,
        exception: str | type[BaseException] | None = None,
        message: str | None = None,
        key: bytes | None = None,
        value: bytes | None = None,
        attempts: int | None = None,
    ) -> list[DeadLetter]:
        """The open dead letters that fit.

        Args:
            count: how many there have to be. Default: one at least.
            subscriber: the name of the one that gave them up.
            exception: what the last attempt failed with: a class (one derived from it fits as well), or its name.
            message: what its message contains.
            key, value: of the record, as they are stored.
            attempts: how many calls it had.

        Raises AssertionError that tells of the dead letters that there are, and of what waits.
        """
        __tracebackhide__ = True
        wanted = {"exception": exception, "message": message, "key": key, "value": value, "attempts": attempts}
        wanted = {name: given for name, given in wanted.items() if given is not None}
        everything = self.dead_letters(subscriber)
        found = [letter for letter in everything if all(self._fits(letter, *one) for one in wanted.items())]
        if len(found) == count if count is not None else found:
            return found
        number = "at least one dead letter" if count is None else f"{count} dead letter{'s' * (count != 1)}"
        conditions = "".join(f", {name}={told_value(given)}" for name, given in wanted.items())
        raise AssertionError(
            f"expected {number}{of(subscriber)}{conditions}; found {len(found)}.\n{self._told_situation(everything)}"
        )

    def _fits(self, letter: DeadLetter, name: str, wanted: Any) -> bool:
        if name == "message":
            return wanted in letter.message
        if name == "exception":
            return letter.exception in self._class_names(wanted) or letter.exception.rpartition(".")[2] == wanted
        return bool(getattr(letter, name) == wanted)

    def _class_names(self, wanted: str | type[BaseException]) -> set[str]:
        """How dead letters name this class, and those derived from it that handlers have raised."""
        if isinstance(wanted, str):
            return {wanted}
        names = {class_name(wanted)}
        return names | {class_name(type(one.error)) for one in self.failures if isinstance(one.error, wanted)}

    def _told_situation(self, letters: Sequence[DeadLetter]) -> str:
        lines = [f"All dead letters:\n{told_letters(letters)}" if letters else "There are no dead letters."]
        if any(stats.waiting for stats in self.app.stats().values()):
            lines.append("Records wait for their next attempt: run_until_idle(advance=True) gives them their time.")
        lines.append(self._told_stats())
        return "\n".join(lines)

    def _told_stats(self) -> str:
        names = ("calls", "succeeded", "failed", "retried", "dead_lettered", "waiting")
        return "\n".join(
            f"{name}: " + ", ".join(f"{getattr(stats, one)} {one.replace('_', ' ')}" for one in names)
            for name, stats in self.app.stats().items()
        )

    def __repr__(self) -> str:
        return f"<Harness of {self.app!r} at {self.clock.now:%Y-%m-%d %H:%M:%S}>"


def predictable(subscriber: Subscriber) -> dict[str, Any]:
    """What is different in tests: nothing by chance, nothing outside of the store."""
    changed: dict[str, Any] = {"retry": replace(subscriber.retry, jitter=False)}
    if subscriber.deduplicate is not None:
        changed["deduplicate"] = replace(subscriber.deduplicate, path=None)
    return changed


# --- what assertions say ---------------------------------------------------------------------------------------------


def of(subscriber: str | None) -> str:
    return "" if subscriber is None else f" of {subscriber!r}"


def told_letters(letters: Sequence[DeadLetter]) -> str:
    lines = [told_letter(letter) for letter in letters[:SHOWN]]
    if len(letters) > SHOWN:
        lines.append(f"  and {len(letters) - SHOWN} more")
    return "\n".join(lines)


def told_letter(letter: DeadLetter) -> str:
    """One line, and where it was raised."""
    times = f"{letter.attempts} attempt{'s' * (letter.attempts != 1)}"
    line = (
        f"  {letter.id} of group {letter.group!r}, key {told_value(letter.key)}, value {told_value(letter.value)}: "
        f"{letter.exception}: {letter.message} ({times})"
    )
    places = [place.strip() for place in letter.traceback.splitlines() if place.lstrip().startswith("File ")]
    told = [place for place in places if OUR_FOLDER not in place] or places
    return f"{line}\n    {told[-1]}" if told else line


def theirs(error: BaseException) -> TracebackType | None:
    """The traceback from the handler on."""
    trace = error.__traceback__
    while trace is not None and trace.tb_frame.f_code.co_filename.startswith(OUR_FOLDER):
        trace = trace.tb_next
    return trace


def told_record(subscriber: str, record: Record[Any, Any]) -> str:
    return f"{record.topic}-{record.partition}, offset {record.offset}, by {subscriber!r}"


def told_value(value: object) -> str:
    if isinstance(value, type):
        return value.__name__
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."
