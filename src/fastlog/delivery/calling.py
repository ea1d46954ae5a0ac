"""How handlers are called: in threads, as tasks of an event loop, or right here; with middleware around them.

Executors take calls and report each exactly once, through ``report``, from whatever thread. What a call came to is in
the call; nothing here decides about it.
"""

from __future__ import annotations

import asyncio
import inspect
import logging
import selectors
import threading
from collections.abc import Callable, Coroutine, Sequence
from functools import partial
from queue import SimpleQueue
from typing import TYPE_CHECKING, Any, Final, Protocol, TypeVar, TypeVarTuple

from fastlog.errors import ConfigError, HandlerTimeoutError

from .clock import Clock, SystemClock

if TYPE_CHECKING:
    from fastlog._core import Record

    from .items import Item
    from .subscriber import Subscriber

__all__ = ["Call", "Executor", "Inline", "Middleware", "Tasks", "Threads", "executor_of", "surrounded"]

logger = logging.getLogger("fastlog.delivery")

Middleware = Callable[..., Any]
Report = Callable[["Call"], object]
T = TypeVar("T")
Ts = TypeVarTuple("Ts")

GLANCE_S: Final = 0.005  # for what other threads hand to an event loop that does not sleep


class Call:
    """One call of a handler. Middleware gets it as its first argument.

    Attributes:
        subscriber: the subscriber's name.
        group: its consumer group.
        records: what the handler is called with: one record, or those of a batch.
        attempt: the how manieth call of the (first) record this is, from 1.
        error: what it raised, None when it came back; known when the call is over.
    """

    __slots__ = ("attempt", "deadline", "error", "group", "is_done", "items", "place", "records", "subscriber")

    def __init__(self, subscriber: Subscriber, place: Any, items: Sequence[Item]) -> None:
        self.subscriber = subscriber.name
        self.group = subscriber.group
        self.place = place
        self.items = items
        self.records: list[Record[Any, Any]] = [item.record for item in items if item.record is not None]
        self.attempt = items[0].attempts + 1
        self.error: BaseException | None = None
        self.is_done = False
        self.deadline = 0

    @property
    def record(self) -> Record[Any, Any]:
        """The record; of a batch the first one."""
        return self.records[0]

    def __repr__(self) -> str:
        record = self.record
        return f"<Call of {self.subscriber!r} with {len(self.records)} from {record.topic}-{record.partition}>"


# --- middleware ------------------------------------------------------------------------------------------------------


def surrounded(subscriber: Subscriber, middleware: Sequence[Middleware]) -> Callable[[Call], Any]:
    """The handler with everything around it: the first of ``middleware`` is the outermost.

    A middleware is called with the call and ``proceed``, which calls what is inside. One that was written with
    ``async def`` surrounds async handlers only, one with ``def`` the others.
    """
    handler = subscriber.handler
    step: Callable[[Call], Any]
    if subscriber.batch is None:

        def one(call: Call) -> Any:
            return handler(call.records[0])

        step = one
    else:

        def many(call: Call) -> Any:
            return handler(call.records)

        step = many
    for layer in reversed(middleware):
        if not callable(layer):
            raise ConfigError(f"a middleware is a function of a call and of proceed, found {layer!r}")
        if inspect.iscoroutinefunction(layer) == subscriber.is_async:
            step = around(layer, step)
    return step


def around(layer: Middleware, step: Callable[[Call], Any]) -> Callable[[Call], Any]:
    def surround(call: Call) -> Any:
        return layer(call, partial(step, call))

    return surround


# --- executors -------------------------------------------------------------------------------------------------------


class Executor(Protocol):
    """Where handlers run."""

    def start(self, call: Call) -> None:
        """Begin a call, by the next ``flush`` at the latest; it is reported when it is over."""

    def flush(self) -> None:
        """Begin what was started."""

    def close(self) -> None:
        """Nothing is called any more. Calls that do not end are left alone."""


class Inline:
    """Calls at once, in the thread that asks, and reports before ``start`` returns.

    Async handlers run to their end in an event loop of their own. With a clock that is not the machine's the loop does
    not sleep: when all its tasks wait for a time, that time has come.
    """

    def __init__(
        self, step: Callable[[Call], Any], report: Report, timeout_ms: int | None, clock: Clock, *, is_async: bool
    ) -> None:
        self._step = step
        self._report = report
        self._timeout_ms = timeout_ms
        self._clock = clock
        self._is_async = is_async
        self._loop: asyncio.AbstractEventLoop | None = None

    def start(self, call: Call) -> None:
        """Begin a call, and end it."""
        try:
            result = self._step(call)
            if self._is_async:
                self._complete(result)
        except BaseException as error:
            call.error = error
        self._report(call)

    def flush(self) -> None:
        """Nothing waits here."""

    def _complete(self, coroutine: Coroutine[Any, Any, Any]) -> None:
        if self._loop is None:
            self._loop = (
                asyncio.new_event_loop() if isinstance(self._clock, SystemClock) else UnsleepingLoop(self._clock)
            )
        self._loop.run_until_complete(limited(coroutine, self._timeout_ms))

    def close(self) -> None:
        """End the event loop."""
        if self._loop is not None:
            self._loop.close()
            self._loop = None


class Threads:
    """Calls in daemon threads, at most ``most`` at once; a thread is started when all others are busy."""

    def __init__(self, step: Callable[[Call], Any], report: Report, most: int, name: str) -> None:
        self._step = step
        self._report = report
        self._most = most
        self._name = name
        self._queue: SimpleQueue[Call | None] = SimpleQueue()
        self._lock = threading.Lock()
        self._threads = 0
        self._waiting = 0  # calls that are begun, and not reported
        self._closed = False

    def start(self, call: Call) -> None:
        """Begin a call."""
        with self._lock:
            self._waiting += 1
            grows = self._waiting > self._threads and self._threads < self._most
            self._threads += grows
        if grows:
            threading.Thread(target=self._run, name=f"fastlog-{self._name}", daemon=True).start()
        self._queue.put(call)

    def flush(self) -> None:
        """Nothing waits here."""

    def _run(self) -> None:
        step, report, queue = self._step, self._report, self._queue
        while (call := queue.get()) is not None:
            try:
                step(call)
            except BaseException as error:
                call.error = error
            with self._lock:
                self._waiting -= 1
            report(call)
            del call

    def close(self) -> None:
        """Threads end when their handlers do."""
        if not self._closed:
            self._closed = True
            for _ in range(self._threads):
                self._queue.put(None)


class Tasks:
    """Calls as tasks of an event loop, which has a thread of its own. A call that takes too long is cancelled."""

    def __init__(self, step: Callable[[Call], Any], report: Report, timeout_ms: int | None, name: str) -> None:
        self._step = step
        self._report = report
        self._timeout_ms = timeout_ms
        self._tasks: set[asyncio.Task[None]] = set()
        self._begun: list[Call] = []
        self._closed = False
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._run, name=f"fastlog-{name}", daemon=True)
        self._thread.start()

    def _run(self) -> None:
        asyncio.set_event_loop(self._loop)
        self._loop.run_forever()
        self._loop.run_until_complete(self._cancel())
        self._loop.run_until_complete(self._loop.shutdown_asyncgens())
        self._loop.close()

    async def _cancel(self) -> None:
        for task in self._tasks:
            task.cancel()
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=1)

    def start(self, call: Call) -> None:
        """Begin a call."""
        self._begun.append(call)

    def flush(self) -> None:
        """Begin what was started. Many at once, as the loop is woken up each time."""
        if self._begun:
            begun, self._begun = self._begun, []
            self._loop.call_soon_threadsafe(self._begin, begun)

    def _begin(self, begun: list[Call]) -> None:
        for call in begun:
            task = self._loop.create_task(self._call(call))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def _call(self, call: Call) -> None:
        try:
            if self._timeout_ms is None:
                await self._step(call)
            else:
                await limited(self._step(call), self._timeout_ms)
        except BaseException as error:
            call.error = error
        self._report(call)

    def close(self) -> None:
        """Cancel what is left, and end the loop. Waits for tasks that take notice, at most a second."""
        if not self._closed:
            self._closed = True
            self._loop.call_soon_threadsafe(self._loop.stop)
            if threading.current_thread() is not self._thread:
                self._thread.join(2)


async def limited(coroutine: Coroutine[Any, Any, Any], timeout_ms: int | None) -> None:
    """Wait for it, but not too long. Raises HandlerTimeoutError."""
    if timeout_ms is None:
        await coroutine
        return
    timeout = asyncio.timeout(timeout_ms / 1000)
    try:
        async with timeout:
            await coroutine
    except TimeoutError as error:
        if not timeout.expired():
            raise
        raise timed_out(timeout_ms, "it was cancelled") from error


def timed_out(timeout_ms: int, outcome: str) -> HandlerTimeoutError:
    return HandlerTimeoutError(f"the handler took longer than its timeout of {timeout_ms / 1000:g} s: {outcome}")


class Unsleeping(selectors.DefaultSelector):
    """Does not wait for a time, but has it pass. For what comes from outside it waits, as long as it is asked to."""

    def __init__(self, has_guests: Callable[[], bool], pass_over: Callable[[float], None]) -> None:
        super().__init__()
        self._has_guests = has_guests
        self._pass_over = pass_over

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        """What is ready. When nothing is, the time has come."""
        if timeout is None or timeout <= 0:
            return super().select(timeout)
        # the loop itself has one file registered, by which it is woken
        is_alone = len(self.get_map()) <= 1 and not self._has_guests()
        found = super().select(min(timeout, GLANCE_S) if is_alone else timeout)
        if not found:
            self._pass_over(timeout)
        return found


class UnsleepingLoop(asyncio.SelectorEventLoop):
    """An event loop beside a clock that stands still: when all tasks wait for a time, that time has come, here alone.

    Sockets and threads of ``run_in_executor`` are waited for, in earnest.
    """

    def __init__(self, clock: Clock) -> None:
        self._of_clock = clock
        self._begun_at = clock.steady()
        self._ahead = 0.0
        self._guests = 0
        super().__init__(Unsleeping(lambda: self._guests > 0, self._pass_over))
        # asyncio's own, a nanosecond, is less than what a float can tell apart after some months
        self._clock_resolution = 1e-6

    def time(self) -> float:
        """Seconds of the clock, and those that were passed over."""
        return (self._of_clock.steady() - self._begun_at) / 1000 + self._ahead

    def _pass_over(self, seconds: float) -> None:
        self._ahead += seconds

    def run_in_executor(self, executor: Any, func: Callable[[*Ts], T], *args: *Ts) -> asyncio.Future[T]:
        """As of any loop; what is in a thread is waited for."""
        future = super().run_in_executor(executor, func, *args)
        self._guests += 1
        future.add_done_callback(self._let_go)
        return future

    def _let_go(self, future: object) -> None:
        self._guests -= 1


def executor_of(
    subscriber: Subscriber, middleware: Sequence[Middleware], report: Report, clock: Clock, *, inline: bool
) -> Executor:
    """Where this subscriber's handler runs. One sync call at a time without a limit needs no thread of its own."""
    step = surrounded(subscriber, middleware)
    if inline:
        return Inline(step, report, subscriber.timeout_ms, clock, is_async=subscriber.is_async)
    if subscriber.is_async:
        return Tasks(step, report, subscriber.timeout_ms, subscriber.name)
    if subscriber.concurrency == 1 and subscriber.timeout_ms is None:
        return Inline(step, report, None, clock, is_async=False)
    return Threads(step, report, subscriber.concurrency, subscriber.name)
