"""Consumers for asyncio: what the synchronous consumer hands out, awaited."""

from __future__ import annotations

import asyncio
import inspect
import queue
import weakref
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from datetime import datetime
from functools import partial
from types import TracebackType
from typing import TYPE_CHECKING, Any, Final, Generic, Self, TypeVar

from fastlog._core import Record, RecordBatch
from fastlog._native import oscalls
from fastlog.clients.bounds import Bounds
from fastlog.clients.consumer import Callback, ConsumerStats, Duration
from fastlog.clients.consumer import Consumer as SynchronousConsumer
from fastlog.errors import ClosedError, ConfigError, LockedError
from fastlog.groups.lag import Lag
from fastlog.groups.offsets import OffsetAndMetadata
from fastlog.records import TopicPartition

from .ear import Ear, Listener
from .stepping import SteppingConsumer
from .workers import Workers

if TYPE_CHECKING:
    from fastlog.groups.membership import Membership
    from fastlog.store.directory import Directory

__all__ = ["Consumer"]

K = TypeVar("K")
V = TypeVar("V")
T = TypeVar("T")

TURN_MS: Final = 5  # for so long records may be handed out before other tasks have their turn
LONGEST_BEAT_MS: Final = 1000
SHORTEST_BEAT_MS: Final = 10
CALLBACKS: Final = ("on_assigned", "on_revoked", "on_lost")


class Consumer(Generic[K, V]):
    """``fastlog.Consumer`` for asyncio: every method is awaited, iterators are asynchronous, the rest is the same.

    Opened by ``store.consumer``. A cancelled await hands out nothing: the next one goes on where the last one ended.
    Callbacks run in the event loop and may be coroutine functions. Leaving the ``async with`` block by an exception, a
    cancellation included, leaves what is in hand unfinished: it comes again.

    One task at a time; another one meanwhile gets a LockedError. Only ``close`` may be called by any task: it ends the
    iteration.
    """

    def __init__(self, stepping: SteppingConsumer[K, V], ear: Ear, workers: Workers, calls: Calls) -> None:
        self._stepping = stepping
        self._ear = ear
        self._workers = workers
        self._calls = calls
        self._loop = asyncio.get_running_loop()
        self._is_used = False
        self._errand: asyncio.Future[None] | None = None
        self._turned_at = oscalls.steady_clock()
        self._beat_timer: asyncio.TimerHandle | None = None
        self._beating: asyncio.Task[None] | None = None
        self._group_listener: Listener | None = None
        if stepping.group is not None:
            self._start_beats()

    @classmethod
    async def open(
        cls, directory: Directory, ear: Ear, workers: Workers, topics: Any, options: dict[str, Any]
    ) -> Consumer[Any, Any]:
        """What ``Store.consumer`` opens."""
        calls = Calls(asyncio.get_running_loop())
        for name in CALLBACKS:
            if options.get(name) is not None:
                options[name] = calls.wrapped(options[name])
        stepping: SteppingConsumer[Any, Any] = await workers.make(
            partial(SteppingConsumer, directory, topics, nudge=ear.nudge, **options), SteppingConsumer.close
        )
        return cls(stepping, ear, workers, calls)

    # --- the end -----------------------------------------------------------------------------------------------------

    async def close(self) -> None:
        """End the iteration, commit what is finished, leave the group, and give everything back. Idempotent.

        Any task may call it. What is in hand is not finished: it comes again. A commit that fails here is logged.
        """
        if self._beat_timer is not None:
            self._beat_timer.cancel()
        if self._group_listener is not None:
            self._ear.dismiss(self._group_listener)
        if self._calls.is_own_task():
            await self._calls.run(self._stepping.close)
            return
        self._stepping.begin_close()
        await self._workers.run_with_callbacks(self._stepping.close)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        exception_type: type[BaseException] | None,
        exception: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        try:
            if exception_type is None:
                await self._idle()
                self._stepping.finish_iteration()
        finally:
            await self.close()

    @property
    def closed(self) -> bool:
        """Whether the consumer was closed."""
        return self._stepping.closed

    @property
    def group(self) -> str | None:
        """The group's name, None without one."""
        return self._stepping.group

    # --- one task at a time, and one thread --------------------------------------------------------------------------

    @contextmanager
    def _used(self) -> Iterator[None]:
        if self._is_used:
            raise LockedError(
                "another task is using this consumer: a consumer is used by one task at a time, only close() may be "
                "called by others. Open one consumer for each task"
            )
        self._is_used = True
        try:
            yield
        finally:
            self._is_used = False

    async def _idle(self) -> None:
        """No thread is at work for this consumer any more."""
        while self._errand is not None:
            await asyncio.wait([self._errand])

    async def run_alone(self, work: Callable[..., T], *arguments: Any) -> T:
        """Work in a thread that may wait for the disk and call callbacks. Not beside other work of this consumer."""
        await self._idle()
        errand = self._errand = self._loop.create_future()
        try:
            return await self._workers.run_with_callbacks(work, *arguments, on_cancel=self._calls.cancel)
        finally:
            self._errand = None
            errand.set_result(None)

    async def _do(self, work: Callable[..., T], *arguments: Any) -> T:
        """Something that may wait for the disk."""
        if self._calls.is_own_task():
            return await self._calls.run(work, *arguments)
        self._require_open()
        with self._used():
            return await self.run_alone(work, *arguments)

    async def _tell(self, look: Callable[..., T], *arguments: Any) -> T:
        """Something that waits for nothing, once a member of a group has looked what it was given."""
        if self._calls.is_own_task():
            return await self._calls.run(look, *arguments)
        self._require_open()
        with self._used():
            if not self._stepping.has_joined:
                await self.run_alone(self._stepping.join)
            await self._idle()
            self._require_open()
            return look(*arguments)

    def _start_beats(self) -> None:
        """Commits and the group also have their time while a handler is at work."""
        listener = self._group_listener = self._ear.attend(partial(heard_of, weakref.ref(self)))
        listener.listen(self._stepping.group_bell)
        weakref.finalize(self, self._ear.dismiss, listener).atexit = False
        self._set_timer()

    def _set_timer(self) -> None:
        interval = max(min(self._stepping.commit_interval, LONGEST_BEAT_MS), SHORTEST_BEAT_MS)
        self._beat_timer = self._loop.call_later(interval / 1000, beat_of, weakref.ref(self))

    def hear_group(self) -> None:
        """A bell of the group rang: a batch that is being iterated ends, so that the iteration looks at the group."""
        if self._errand is None:
            self._stepping.owes_beat()

    def beat(self) -> None:
        """Called by a timer of the loop: commit what is finished, if it is time."""
        if self._stepping.is_ending:
            return
        self._set_timer()
        if self._errand is None and self._stepping.owes_beat():
            self._beating = self._loop.create_task(self.run_alone(self._stepping.beat), name="fastlog-commit")

    # --- handing out -------------------------------------------------------------------------------------------------

    async def _next(
        self,
        step: Callable[[], T | None],
        timeout: Duration | None,
        *,
        bounds: Bounds | None = None,
        drops: bool = False,
    ) -> T | None:
        """What ``step`` hands out as soon as there is something; None at the deadline, the bounds, or the end.

        Between the step and the caller nothing is awaited: what is handed out arrives, or nothing is.
        """
        stepping = self._stepping
        await self._take_turns()
        await self._idle()
        if stepping.is_ending or not stepping.ask(drops=drops):
            return None
        deadline = None if timeout is None else SynchronousConsumer._deadline(timeout)
        found = await self._look(step)
        if found is not None:
            return found
        with self._ear.attend(partial(stepping.has_news, bounds)) as listener:
            while True:
                listener.listen(stepping.bells)
                found = await self._look(step)
                if found is not None or stepping.is_through(bounds):
                    return found
                left = None if deadline is None else deadline - oscalls.steady_clock()
                if left is not None and left <= 0:
                    return None
                await listener.wait(left)

    async def _look(self, step: Callable[[], T | None]) -> T | None:
        while True:
            await self._idle()
            if self._stepping.is_ending:
                return None
            if not self._stepping.needs_upkeep():
                return step()
            await self.run_alone(self._stepping.upkeep)
            if self._errand is None and not self._stepping.is_ending:
                return step()

    async def _take_turns(self) -> None:
        """Let others have their turn now and then, even if there is always something to hand out."""
        now = oscalls.steady_clock()
        if now - self._turned_at >= TURN_MS:
            await asyncio.sleep(0)
            self._turned_at = oscalls.steady_clock()

    async def poll(self, max_records: int = 500, timeout: Duration | None = None) -> list[Record[K, V]]:
        """Up to ``max_records`` records, as soon as there are any; an empty list when ``timeout`` passes (None: never).

        All of the list is finished when the next call asks for more, or by ``commit()``. A cancelled poll hands out
        nothing. Errors as of ``fastlog.Consumer.poll``.
        """
        if max_records < 1:
            raise ConfigError(f"max_records={max_records}: expected at least 1")
        self._require_open()
        with self._used():
            return await self._next(partial(self._stepping.step_list, max_records), timeout) or []

    def __aiter__(self) -> AsyncIterator[Record[K, V]]:
        """Records, one after the other; waits for more. ``close`` ends it."""
        self._require_open()
        return Records(self._next_records)

    async def _next_records(self) -> Iterator[Record[K, V]] | None:
        with self._used():
            return await self._next(self._stepping.step_records, None)

    def records(
        self,
        until: str | datetime | Mapping[TopicPartition, int] | None = "end",
        idle_timeout: Duration | None = None,
    ) -> AsyncIterator[Record[K, V]]:
        """Records up to an end, one after the other, then stop; arguments as of ``fastlog.Consumer.records``."""
        self._require_open()
        return Records(partial(self._next_bounded, None if until is None else Bounds(until), idle_timeout))

    async def _next_bounded(self, bounds: Bounds | None, timeout: Duration | None) -> Iterator[Record[K, V]] | None:
        with self._used():
            step = partial(self._stepping.step_bounded, bounds)
            return await self._next(step, timeout, bounds=bounds, drops=True)

    def batches(self, timeout: Duration | None = None) -> AsyncIterator[RecordBatch]:
        """Record batches as columns, one partition after the other; ends when nothing comes for ``timeout``.

        A batch is finished when the next one is asked for, or by ``commit()``. Deserializers are not called.
        """
        self._require_open()
        return Batches(partial(self._next_batch, timeout))

    async def _next_batch(self, timeout: Duration | None) -> RecordBatch | None:
        with self._used():
            return await self._next(self._stepping.step_batch, timeout, drops=True)

    def _require_open(self) -> None:
        if self._stepping.is_ending:
            raise ClosedError("the consumer is closed: open a new one with store.consumer(…)")

    # --- commits and positions, as of the synchronous consumer --------------------------------------------------------

    async def commit(
        self,
        what: Record[Any, Any] | RecordBatch | Mapping[TopicPartition, int | OffsetAndMetadata] | None = None,
    ) -> None:
        """Remember for the group how far it is; see ``fastlog.Consumer.commit``.

        When it is cancelled, what was begun is ended first: the commit is whole.
        """
        await self._do(self._stepping.commit, what)

    async def committed(
        self, partitions: Iterable[TopicPartition] | None = None
    ) -> dict[TopicPartition, OffsetAndMetadata | None]:
        """What the group has committed for these partitions, by default those assigned; None where there is nothing."""
        return await self._do(self._stepping.committed, partitions)

    async def assignment(self) -> list[TopicPartition]:
        """The partitions that this consumer reads, sorted. In a group those that it was given so far."""
        return await self._tell(self._stepping.assignment)

    async def position(self, topic: str | TopicPartition, partition: int | None = None) -> int:
        """Offset of the record that comes next. Raises UnknownTopicError for a partition that is not assigned."""
        return await self._tell(self._stepping.position, topic, partition)

    async def seek(
        self,
        topic: str | TopicPartition | None = None,
        partition: int | None = None,
        *,
        offset: int | None = None,
        timestamp: datetime | None = None,
    ) -> None:
        """Go on elsewhere: at an offset of one partition, or in one or all at the first record from a time on."""
        seek = partial(self._stepping.seek, topic, partition, offset=offset, timestamp=timestamp)
        await (self._tell(seek) if timestamp is None else self._do(seek))

    async def seek_to_beginning(self, *partitions: TopicPartition) -> None:
        """Go on at the first record of these partitions, of all of them when none is named."""
        await self._tell(self._stepping.seek_to_beginning, *partitions)

    async def seek_to_end(self, *partitions: TopicPartition) -> None:
        """Go on behind the last readable record of these partitions, of all of them when none is named."""
        await self._tell(self._stepping.seek_to_end, *partitions)

    async def pause(self, *partitions: TopicPartition) -> None:
        """Hand out nothing of these partitions, of all when none is named, until ``resume``. They stay assigned."""
        await self._tell(self._stepping.pause, *partitions)

    async def resume(self, *partitions: TopicPartition) -> None:
        """Undo ``pause``."""
        await self._tell(self._stepping.resume, *partitions)

    async def paused(self) -> list[TopicPartition]:
        """The partitions that are paused, sorted."""
        return await self._tell(self._stepping.paused)

    async def beginning_offsets(self, partitions: Iterable[TopicPartition] | None = None) -> dict[TopicPartition, int]:
        """The first offset of each of these partitions, by default of those assigned."""
        return await self._do(self._stepping.beginning_offsets, partitions)

    async def end_offsets(self, partitions: Iterable[TopicPartition] | None = None) -> dict[TopicPartition, int]:
        """The readable end of each of these partitions, by default of those assigned."""
        return await self._do(self._stepping.end_offsets, partitions)

    async def lag(self) -> dict[TopicPartition, Lag]:
        """How far this consumer is behind in each partition: records to come, and the age of the oldest of them."""
        return await self._do(self._stepping.lag)

    async def stats(self) -> ConsumerStats:
        """Counts since the consumer was opened."""
        return await self._tell(self._stepping.stats)

    # --- for transactions --------------------------------------------------------------------------------------------

    @property
    def stepping(self) -> SteppingConsumer[K, V]:
        """The consumer that a transaction enlists."""
        return self._stepping

    @property
    def membership(self) -> Membership | None:
        """The place in the group; None without a group."""
        return self._stepping.membership

    async def enlist(self) -> None:
        """Commits belong to transactions from now on: automatic ones end, for the life of this consumer."""
        await self._do(self._stepping.enlist)

    async def offsets_in_hand(self) -> dict[TopicPartition, OffsetAndMetadata]:
        """The next offset of each partition that records were handed out of: what a transaction commits."""
        return await self._tell(self._stepping.offsets_in_hand)

    async def rewind(self) -> None:
        """Go back to what is committed, and drop what was fetched."""
        await self._do(self._stepping.rewind)

    @property
    def is_enlisted(self) -> bool:
        """Whether a transaction has taken over the commits."""
        return self._stepping.is_enlisted

    def __repr__(self) -> str:
        return f"<aio {self._stepping!r}>"


def beat_of(reference: weakref.ref[Consumer[Any, Any]]) -> None:
    consumer = reference()
    if consumer is not None:
        consumer.beat()


def heard_of(reference: weakref.ref[Consumer[Any, Any]]) -> bool:
    consumer = reference()
    if consumer is not None:
        consumer.hear_group()
    return False


class Records(Generic[K, V]):
    """Records, one after the other. Goes on after an await of it was cancelled."""

    def __init__(self, more: Callable[[], Any]) -> None:
        self._more = more
        self._records: Iterator[Record[K, V]] = iter(())

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Record[K, V]:
        while True:
            for record in self._records:
                return record
            records = await self._more()
            if records is None:
                raise StopAsyncIteration
            self._records = records


class Batches:
    """Batches, one after the other. Goes on after an await of it was cancelled."""

    def __init__(self, more: Callable[[], Any]) -> None:
        self._more = more

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> RecordBatch:
        batch: RecordBatch | None = await self._more()
        if batch is None:
            raise StopAsyncIteration
        return batch


class Calls:
    """The user's callbacks: they run in the loop, while the thread that wants them called waits.

    What a callback asks of its own consumer is done by that thread, which is inside of the consumer.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._task: asyncio.Task[Any] | None = None
        self._inbox: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()

    def wrapped(self, callback: Callback) -> Callback:
        """What the synchronous consumer calls, in a thread."""
        return partial(self._call, callback)

    def is_own_task(self) -> bool:
        """Whether a callback is asking."""
        return self._task is not None and asyncio.current_task() is self._task

    def cancel(self) -> None:
        """End the callback that is under way."""
        if self._task is not None:
            self._task.cancel()

    async def run(self, work: Callable[..., T], *arguments: Any) -> T:
        """Something that a callback asks for."""
        answer: asyncio.Future[T] = self._loop.create_future()

        def errand() -> None:
            try:
                result = work(*arguments)
            except BaseException as error:
                self._loop.call_soon_threadsafe(fulfil, answer, None, error)
            else:
                self._loop.call_soon_threadsafe(fulfil, answer, result, None)

        self._inbox.put(errand)
        return await answer

    def _call(self, callback: Callback, names: list[TopicPartition]) -> None:
        coroutine = self._run_callback(callback, names)
        try:
            future = asyncio.run_coroutine_threadsafe(coroutine, self._loop)
        except RuntimeError:  # the loop was closed
            coroutine.close()
            raise
        future.add_done_callback(lambda _: self._inbox.put(None))
        while True:
            try:
                errand = self._inbox.get(timeout=1)
            except queue.Empty:
                if self._loop.is_closed():
                    raise ClosedError("the event loop was closed, so callbacks of the consumer cannot run") from None
                continue
            if errand is None:
                break
            errand()
        future.result()

    async def _run_callback(self, callback: Callback, names: list[TopicPartition]) -> None:
        self._task = asyncio.current_task()
        try:
            result = callback(names)
            if inspect.isawaitable(result):
                await result
        finally:
            self._task = None


def fulfil(answer: asyncio.Future[Any], result: object, error: BaseException | None) -> None:
    if answer.done():
        return
    if error is None:
        answer.set_result(result)
    else:
        answer.set_exception(error)
