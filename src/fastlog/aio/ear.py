"""How an event loop hears of new records: one thread sleeps on the bells of a store for all consumers."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Callable
from typing import TYPE_CHECKING, Final

from fastlog.clients.waiting import waiter_of
from fastlog.errors import Error

if TYPE_CHECKING:
    from fastlog.store.directory import Directory

__all__ = ["Ear", "Listener"]

SLICE_MS: Final = 50  # a writer that is killed before it rings delays nobody for longer
ALL_BELLS: Final = (1 << 64) - 1


class Ear:
    """Wakes tasks when bells of a store ring. Belongs to one event loop; only ``nudge`` may be called from any thread.

    The thread starts with the first listener, sleeps without a tick while there are none, and tells the loop of all
    that has rung by one callback.
    """

    def __init__(self, directory: Directory, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._waiter = waiter_of(directory)
        self._rung = getattr(self._waiter, "rung", lambda: ALL_BELLS)
        self._listeners: dict[Listener, None] = {}
        self._mutex = threading.Lock()
        self._heard = 0
        self._is_told = False
        self._is_needed = threading.Event()
        self._is_stopped = False
        self._thread: threading.Thread | None = None

    def attend(self, look: Callable[[], bool]) -> Listener:
        """Somebody who wants to be woken when ``look()``, called in the loop after a bell of his, says so."""
        listener = Listener(self, look)
        if self._thread is None and not self._is_stopped:
            thread = threading.Thread(target=self._run, name="fastlog-aio-ear", daemon=True)
            thread.start()  # where that fails, the next one tries again
            self._thread = thread
        self._listeners[listener] = None
        self._is_needed.set()
        return listener

    def dismiss(self, listener: Listener) -> None:
        """He listens no more."""
        self._listeners.pop(listener, None)

    def listen(self, bells: int) -> None:
        """The thread hears these bells, once: look at what is waited for after this."""
        self._waiter.listen(bells)

    def nudge(self) -> None:
        """Have everybody look, from any thread."""
        self._tell(ALL_BELLS)

    def stop(self) -> None:
        """End the thread. May be repeated."""
        self._is_stopped = True
        self._is_needed.set()
        with contextlib.suppress(Error):
            self._waiter.wake()
        if self._thread is not None and self._thread is not threading.current_thread():
            self._thread.join()

    def _run(self) -> None:
        with contextlib.suppress(Error):  # the store was closed
            while not self._is_stopped:
                if self._listeners:
                    self._hear()
                else:
                    self._rest()

    def _rest(self) -> None:
        self._is_needed.clear()
        if not self._listeners and not self._is_stopped:
            self._is_needed.wait()

    def _hear(self) -> None:
        # in this order: what rings after the word was read ends the sleep, what rang before is in the mask
        heard = self._waiter.listen(0)
        self._tell(self._rung())
        if not self._waiter.sleep(heard, SLICE_MS):
            self._tell(ALL_BELLS)

    def _tell(self, bells: int) -> None:
        with self._mutex:
            self._heard |= bells
            # a loop that is closed carries out nothing it was told before
            if not bells or (self._is_told and not self._loop.is_closed()):
                return
            self._is_told = True
        try:
            self._loop.call_soon_threadsafe(self._wake_listeners)
        except RuntimeError:  # the loop was closed, and nobody waits any more
            self._is_stopped = True

    def _wake_listeners(self) -> None:
        with self._mutex:
            heard, self._heard = self._heard, 0
            self._is_told = False
        for listener in list(self._listeners):
            listener.hear(heard)


class Listener:
    """One who waits: ``listen`` for bells, look at what is waited for, ``wait``; and again. ``with`` ends it."""

    def __init__(self, ear: Ear, look: Callable[[], bool]) -> None:
        self._ear = ear
        self._look = look
        self._bells = 0
        self._is_woken = False
        self._future: asyncio.Future[None] | None = None

    def __enter__(self) -> Listener:
        return self

    def __exit__(self, *_: object) -> None:
        self._ear.dismiss(self)

    def listen(self, bells: int) -> None:
        """From now on these bells end ``wait``."""
        self._is_woken = False
        self._bells = bells
        self._ear.listen(bells)

    async def wait(self, milliseconds: int | None) -> None:
        """Until there is something to look at, or for so long at most."""
        if self._is_woken:
            return
        loop = asyncio.get_running_loop()
        self._future = loop.create_future()
        timer = None if milliseconds is None else loop.call_later(milliseconds / 1000, self.wake)
        try:
            await self._future
        finally:
            self._future = None
            if timer is not None:
                timer.cancel()

    def hear(self, bells: int) -> None:
        """Bells rang: look whether it is worth waking up."""
        if self._is_woken or not bells & self._bells:
            return
        try:
            # whoever rang has forgotten the ear; what comes from now on rings again
            self._ear.listen(self._bells & bells)
            is_worth = self._look()
        except Exception:
            is_worth = True  # the task finds out what is wrong
        if is_worth:
            self.wake()

    def wake(self) -> None:
        """End ``wait``."""
        self._is_woken = True
        if self._future is not None and not self._future.done():
            self._future.set_result(None)
