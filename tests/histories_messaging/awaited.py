"""A store of ``fastlog.aio`` with the face of a synchronous one: so the same workers drive either.

Each call runs in an event loop, in a thread beside, and is waited for. Now and then a poll is cancelled, which has to
hand out nothing.
"""

from __future__ import annotations

import asyncio
import inspect
import random
import threading
from collections.abc import Callable, Iterator
from types import TracebackType
from typing import Any

import fastlog.aio

__all__ = ["open_store"]


class Loop:
    """An event loop in a thread."""

    def __init__(self, chance: random.Random, cancels: float) -> None:
        self.chance, self.cancels = chance, cancels
        self.loop = asyncio.new_event_loop()
        threading.Thread(target=self.loop.run_forever, daemon=True).start()

    def call(self, function: Callable[..., Any], *arguments: Any, **options: Any) -> Any:
        """What a function or a coroutine function returns, called in the loop."""

        async def calling() -> Any:
            found = function(*map(inner, arguments), **{name: inner(value) for name, value in options.items()})
            return await found if inspect.isawaitable(found) else found

        return self.outer(asyncio.run_coroutine_threadsafe(calling(), self.loop).result())

    def poll(self, function: Callable[..., Any], *arguments: Any, **options: Any) -> Any:
        """The same for a poll; some are cancelled after a moment, and have handed out nothing then."""
        if self.chance.random() >= self.cancels:
            return self.call(function, *arguments, **options)
        seconds = self.chance.choice([0, 0, 0.001, 0.01, 0.05])

        async def cancelling() -> Any:
            task = asyncio.ensure_future(function(*arguments, **options))
            await asyncio.sleep(seconds)
            task.cancel()
            try:
                return await task
            except asyncio.CancelledError:
                return []

        return self.call(cancelling)

    def outer(self, found: Any) -> Any:
        """What workers get to see: what waits is wrapped, values are not."""
        if type(found).__module__.startswith("fastlog.aio."):
            return (Many if hasattr(found, "__len__") else Awaited)(found, self)
        return found


def inner(found: Any) -> Any:
    return found._inner if isinstance(found, Awaited) else found


class Awaited:
    """One object of ``fastlog.aio``."""

    def __init__(self, found: Any, loop: Loop) -> None:
        self._inner, self._loop = found, loop

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        found = getattr(self._inner, name)
        if not callable(found):
            return found
        run = self._loop.poll if name == "poll" else self._loop.call
        return lambda *arguments, **options: run(found, *arguments, **options)

    def __iter__(self) -> Iterator[Any]:
        following = self._loop.call(self._inner.__aiter__)
        while True:
            try:
                yield self._loop.call(following._inner.__anext__)
            except StopAsyncIteration:
                return

    def __enter__(self) -> Awaited:
        self._loop.call(self._inner.__aenter__)
        return self

    def __exit__(
        self,
        exception_type: type[BaseException] | None,
        exception: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._loop.call(self._inner.__aexit__, exception_type, exception, traceback)


class Many(Awaited):
    """One that has a length."""

    def __len__(self) -> int:
        return len(self._inner)


def open_store(path: str, chance: random.Random, cancels: float = 0.05, **options: Any) -> Any:
    """``fastlog.open`` by way of ``fastlog.aio.open``."""
    return Loop(chance, cancels).call(fastlog.aio.open, path, **options)
