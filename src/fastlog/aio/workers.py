"""Threads for what has to wait for the disk: a few for each store, none for each message."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Generator
from concurrent.futures import ThreadPoolExecutor
from types import TracebackType
from typing import Any, Final, Generic, Protocol, TypeVar

__all__ = ["Opening", "Workers", "settled"]

T = TypeVar("T")
THREADS: Final = 4


class Workers:
    """The threads of one store."""

    def __init__(self) -> None:
        self._pool = ThreadPoolExecutor(THREADS, thread_name_prefix="fastlog-aio")
        # one thread stays free of work that may wait for a callback in the loop, which may want a thread itself
        self._running = 0
        self._is_stopped = False
        self._waiting_ones = asyncio.Semaphore(THREADS - 1)

    async def run(self, work: Callable[..., T], *arguments: Any) -> T:
        """``work(*arguments)`` in a thread. What was begun is ended, also when this is cancelled meanwhile."""
        return await settled(self._begin(work, *arguments))

    def _begin(self, work: Callable[..., T], *arguments: Any) -> asyncio.Future[T]:
        loop = asyncio.get_running_loop()
        if self._is_stopped:
            # of a closed store: nothing waits any more, and most of it is a ClosedError
            future: asyncio.Future[T] = loop.create_future()
            try:
                future.set_result(work(*arguments))
            except Exception as error:
                future.set_exception(error)
            return future
        future = loop.run_in_executor(self._pool, work, *arguments)
        self._running += 1
        future.add_done_callback(self._end)
        return future

    def _end(self, _: asyncio.Future[Any]) -> None:
        self._running -= 1

    async def run_with_callbacks(
        self, work: Callable[..., T], *arguments: Any, on_cancel: Callable[[], object] | None = None
    ) -> T:
        """The same for work that may call the user's callbacks."""
        async with self._waiting_ones:
            return await settled(self._begin(work, *arguments), on_cancel)

    async def make(self, make: Callable[[], T], undo: Callable[[T], object]) -> T:
        """Something new, made in a thread, that is undone when nobody is left to get it."""
        future = self._begin(make)
        try:
            return await settled(future)
        except asyncio.CancelledError:
            if not future.cancelled() and future.exception() is None:
                await self.run(undo, future.result())
            raise

    def stop(self) -> None:
        """Let the threads end; what they have begun they end first."""
        self._is_stopped = True
        self._pool.shutdown(wait=not self._running)


async def settled(future: asyncio.Future[T], on_cancel: Callable[[], object] | None = None) -> T:
    """What a thread returns. A cancellation is raised when the thread is through, as nobody can stop it."""
    cancelled: asyncio.CancelledError | None = None
    while not future.done():
        try:
            await asyncio.wait([future])
        except asyncio.CancelledError as error:
            cancelled = error
            if on_cancel is not None:
                on_cancel()
    if cancelled is None:
        return future.result()
    problem = None if future.cancelled() else future.exception()
    raise cancelled from problem


class Closable(Protocol):
    async def close(self) -> None: ...
    async def __aexit__(
        self,
        exception_type: type[BaseException] | None,
        exception: BaseException | None,
        traceback: TracebackType | None,
        /,
    ) -> None: ...


C = TypeVar("C", bound=Closable)


class Opening(Generic[C]):
    """What opens something: ``async with`` it, which also closes; or ``await`` it, and close the result yourself."""

    def __init__(self, make: Callable[[], Awaitable[C]]) -> None:
        self._make = make
        self._opened: C | None = None

    async def _open(self) -> C:
        return await self._make()

    def __await__(self) -> Generator[Any, None, C]:
        return self._open().__await__()

    async def __aenter__(self) -> C:
        self._opened = await self._make()
        return self._opened

    async def __aexit__(
        self,
        exception_type: type[BaseException] | None,
        exception: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._opened is not None:
            await self._opened.__aexit__(exception_type, exception, traceback)
