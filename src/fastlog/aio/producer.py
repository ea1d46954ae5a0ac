"""Producers for asyncio: records in without blocking the loop, deliveries to await."""

from __future__ import annotations

import asyncio
import threading
from collections import deque
from collections.abc import Callable, Generator
from datetime import datetime, timedelta
from functools import partial
from types import TracebackType
from typing import Any, Final, Generic, Self, TypeVar

from fastlog._core import BatchDelivery as SynchronousBatchDelivery
from fastlog._core import Delivery as SynchronousDelivery
from fastlog._native import oscalls
from fastlog.clients.producer import Producer as SynchronousProducer
from fastlog.config import parse_duration_ms
from fastlog.errors import BufferFullError, ClosedError, ConfigError, DeliveryTimeoutError, Error
from fastlog.records import BatchMetadata, RecordMetadata

from .consumer import Consumer
from .transaction import Transaction
from .workers import Workers

__all__ = ["BatchDelivery", "Delivery", "Producer"]

D = TypeVar("D", SynchronousDelivery, SynchronousBatchDelivery)
M = TypeVar("M")
T = TypeVar("T")

TURN: Final = 1000  # so many records may be sent before other tasks have their turn
LONGEST_NAP_MS: Final = 50

Duration = float | str | timedelta


class Completions:
    """Wakes tasks that wait for deliveries: whatever is done by then is told to the loop by one callback."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._done: deque[asyncio.Future[None]] = deque()
        self._is_told = False

    def future(self) -> asyncio.Future[None]:
        """Something to await until it is ``complete``."""
        return self._loop.create_future()

    def complete(self, future: asyncio.Future[None], *_: object) -> None:
        """From any thread."""
        self._done.append(future)
        if self._is_told:
            return
        self._is_told = True
        try:
            self._loop.call_soon_threadsafe(self._wake)
        except RuntimeError:  # the loop was closed, and nobody waits any more
            self._done.clear()

    def _wake(self) -> None:
        self._is_told = False
        while self._done:
            future = self._done.popleft()
            if not future.done():
                future.set_result(None)


class Awaited(Generic[M]):
    """What deliveries of one record and of many have in common."""

    __slots__ = ("_completions", "_delivery")

    def __init__(self, delivery: Any, completions: Completions) -> None:
        self._delivery = delivery
        self._completions = completions

    def done(self) -> bool:
        """Whether it was delivered, or failed."""
        done: bool = self._delivery.done()
        return done

    def __await__(self) -> Generator[Any, None, M]:
        if not self._delivery.done():
            yield from self._woken()
        result: M = self._delivery.result(0)
        return result

    def _woken(self) -> asyncio.Future[None]:
        future = self._completions.future()
        # a cancelled await has not looked: flush and close still tell of a failure
        self._delivery._when_done(partial(self._completions.complete, future))
        return future

    async def result(self, timeout: Duration | None = None) -> M:
        """``await delivery``, for so long at most: DeliveryTimeoutError then, and it is still on its way."""
        await self._decided(timeout)
        result: M = self._delivery.result(0)
        return result

    async def exception(self, timeout: Duration | None = None) -> Exception | None:
        """The outcome: None when it was delivered, else the error that awaiting it would raise."""
        await self._decided(timeout)
        error: Exception | None = self._delivery.exception(0)
        return error

    async def _decided(self, timeout: Duration | None) -> None:
        if self._delivery.done():
            return
        try:
            async with asyncio.timeout(seconds_of(timeout)):
                await self._woken()
        except TimeoutError:
            raise undecided(timeout) from None

    def add_done_callback(self, fn: Callable[[Self], object]) -> None:
        """Call ``fn(delivery)`` in the event loop when the outcome is there."""
        future = self._completions.future()
        future.add_done_callback(lambda _: fn(self))
        self._delivery.add_done_callback(partial(self._completions.complete, future))

    def __repr__(self) -> str:
        return f"<aio {self._delivery!r}>"


class Delivery(Awaited[RecordMetadata]):
    """The future outcome of one ``Producer.send``: ``metadata = await delivery``. Raises why it failed.

    The store's durability level holds for the record then. A cancelled await leaves the record on its way, and may be
    repeated.
    """

    __slots__ = ()


class BatchDelivery(Awaited[BatchMetadata]):
    """The future outcome of one ``Producer.send_many``, to be awaited like a ``Delivery``."""

    __slots__ = ()

    def __len__(self) -> int:
        return len(self._delivery)


class Producer:
    """``fastlog.Producer`` for asyncio, from ``store.producer(...)``.

    ``await producer.send(...)`` puts a record into the buffer, and waits only while that is full; what it returns is
    awaited in turn when the outcome matters. All tasks of the loop may share a producer.
    """

    def __init__(self, producer: SynchronousProducer, workers: Workers, max_block_ms: int) -> None:
        self._producer = producer
        self._workers = workers
        self._max_block = max_block_ms
        self._completions = Completions(asyncio.get_running_loop())
        self._queue = asyncio.Lock()
        self._in_a_row = 0
        producer._never_wait_in(threading.get_ident())

    async def send(
        self,
        topic: str,
        value: Any,
        key: Any = None,
        headers: Any = None,
        timestamp: int | datetime | None = None,
        partition: int | None = None,
    ) -> Delivery:
        """Send one record; see ``fastlog.Producer.send``. While ``buffer_memory`` is full the task waits, not the loop.

        A cancelled send has sent nothing.
        """
        self._in_a_row += 1
        if self._in_a_row >= TURN:
            await self._take_turns()
        if not self._queue.locked():
            try:
                delivery = self._producer.send(topic, value, key, headers, timestamp, partition)
            except BufferFullError:
                pass
            else:
                return Delivery(delivery, self._completions)
        send = partial(self._producer.send, topic, value, key, headers, timestamp, partition)
        return Delivery(await self._when_there_is_room(send), self._completions)

    async def send_many(
        self,
        topic: str,
        values: Any,
        keys: Any = None,
        timestamps: Any = None,
        headers: Any = None,
        partition: int | None = None,
    ) -> BatchDelivery:
        """Send many records by one call; see ``fastlog.Producer.send_many``.

        Waits until there is room for all of them, and sends nothing when it is cancelled meanwhile. Only records that
        are more than the whole buffer are sent bit by bit, and all of them, also when that is cancelled.
        """
        self._in_a_row += 1
        if self._in_a_row >= TURN:
            await self._take_turns()
        send = partial(self._producer.send_many, topic, values, keys, timestamps, headers, partition)
        if not self._queue.locked():
            try:
                return BatchDelivery(send(), self._completions)
            except BufferFullError:
                pass
        return BatchDelivery(await self._when_there_is_room(send, by_parts=True), self._completions)

    async def _take_turns(self) -> None:
        self._in_a_row = 0
        await asyncio.sleep(0)

    async def _when_there_is_room(self, send: Callable[[], T], *, by_parts: bool = False) -> T:
        """In the order of asking. BufferFullError after ``max_block``."""
        deadline = oscalls.steady_clock() + self._max_block
        async with self._queue:
            while True:
                try:
                    return send()
                except BufferFullError:
                    if by_parts and not self._producer.buffered_bytes:
                        return await self._workers.run(send)
                    if oscalls.steady_clock() >= deadline:
                        raise
                await self._room()

    async def _room(self) -> None:
        """Until memory is given back, or a moment has passed."""
        future = self._completions.future()
        self._producer._when_room(partial(self._completions.complete, future))
        await asyncio.wait([future], timeout=LONGEST_NAP_MS / 1000)

    async def flush(self, timeout: Duration | None = None) -> None:
        """Wait until every record sent so far is delivered, or has failed; ``linger`` does not hold for them.

        Raises the first failure that nobody has looked at, once; DeliveryTimeoutError when the timeout is over first. A
        cancelled flush leaves everything on its way.
        """
        await self.sent(timeout)
        self._producer._raise_failure()

    async def sent(self, timeout: Duration | None = None) -> None:
        """The outcome of everything that was sent so far is there."""
        future = self._completions.future()
        self._producer._when_sent(partial(self._completions.complete, future))
        try:
            async with asyncio.timeout(seconds_of(timeout)):
                await future
        except TimeoutError:
            raise undecided(timeout) from None

    async def close(self, timeout: Duration | None = None) -> None:
        """Deliver what was sent, then let go of everything. Idempotent.

        Args:
            timeout: how long to wait; what is not delivered by then fails with ClosedError, but for what is being
                appended at that moment, which is decided a little later. None = until everything is decided, which
                takes at most ``delivery_timeout``.

        Raises the first failure that nobody has looked at, once. Cancelled, it leaves the producer to the store's
        ``close``, and the records on their way.
        """
        left: Duration | None = timeout
        if not self._producer.closed:
            begun = oscalls.steady_clock()
            try:
                await self.sent(timeout)
            except (DeliveryTimeoutError, ClosedError):
                pass
            if timeout is not None:
                left = max(parse_duration_ms(timeout, "timeout") - (oscalls.steady_clock() - begun), 0) / 1000
        await self._workers.run(self._producer.close, left)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        exception_type: type[BaseException] | None,
        exception: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if exception_type is None:
            await self.close()
            return
        try:
            await self.sent()
        except Error:
            pass
        # what is on its way to the caller says more than a delivery that failed: that one is logged
        await self._workers.run(self._producer.__exit__, exception_type, exception, traceback)

    @property
    def closed(self) -> bool:
        """Whether ``close`` was called."""
        return self._producer.closed

    @property
    def buffered_bytes(self) -> int:
        """Bytes of ``buffer_memory`` in use."""
        return self._producer.buffered_bytes

    def counts(self) -> dict[str, int]:
        """Numbers since the producer was made: ``records`` sent, ``appends`` done, ``failures`` not told of yet."""
        return self._producer.counts()

    @property
    def source(self) -> str | None:
        """Name of the source that is imported, None without one."""
        return self._producer.source

    @property
    def transactional_id(self) -> str | None:
        """The name of this producer's transactions, None when it has none."""
        return self._producer.transactional_id

    def transaction(self, consumer: Consumer[Any, Any] | None = None) -> Transaction:
        """A block whose records become visible together, or not at all: ``async with producer.transaction() as tx``.

        The end of the block commits; an exception aborts, a cancellation included. See
        ``fastlog.Producer.transaction``. ConfigError for a consumer that is none of ``fastlog.aio``.
        """
        if consumer is not None and not isinstance(consumer, Consumer):
            raise ConfigError(f"consumer={consumer!r}: expected a consumer of fastlog.aio, or None")
        stepping = None if consumer is None else consumer.stepping
        return Transaction(self, self._producer.transaction(stepping), consumer, self._workers)

    async def source_position(self) -> bytes | None:
        """The position that the last committed transaction of this source has left; None when there is none."""
        return await self._workers.run(self._producer.source_position)

    def __repr__(self) -> str:
        return f"<aio {self._producer!r}>"


def seconds_of(timeout: Duration | None) -> float | None:
    return None if timeout is None else parse_duration_ms(timeout, "timeout") / 1000


def undecided(timeout: Duration | None) -> DeliveryTimeoutError:
    return DeliveryTimeoutError(
        f"not delivered within timeout={timeout!r}: it is still on its way; wait for it again, or with a longer timeout"
    )
