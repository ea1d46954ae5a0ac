"""What a consumer sleeps with: the bells of the store, or short naps where a store is only read."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from fastlog.store.directory import Directory

__all__ = ["Napper", "Sleeper", "waiter_of"]

NAP_MS = 5


class Sleeper(Protocol):
    """Sleeps until something may have changed."""

    def listen(self, bells: int) -> int:
        """Say what is waited for; look at it after this. Returns what ``sleep`` wants."""

    def sleep(self, heard: int, timeout_ms: float) -> bool:
        """Sleep, for so long at most. Whether it was woken."""

    def wake(self) -> None:
        """End the sleep, from any thread."""


class Napper:
    """Sleeps a few milliseconds at a time: a reader that may write nothing cannot ask to be woken."""

    def __init__(self) -> None:
        self._woken = threading.Event()

    def listen(self, bells: int) -> int:
        """There is nobody to tell."""
        self._woken.clear()
        return 0

    def sleep(self, heard: int, timeout_ms: float) -> bool:
        """A nap."""
        return self._woken.wait(min(timeout_ms, NAP_MS) / 1000)

    def wake(self) -> None:
        """End the nap."""
        self._woken.set()


def waiter_of(directory: Directory) -> Sleeper:
    """A waiter of the store's bells, or one that naps."""
    return Napper() if directory.read_only else directory.bells.waiter()
