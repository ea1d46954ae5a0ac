"""Upkeep in the background: one process of all that have the store open, elected by a lock, looks after every topic."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Final

from fastlog._native import oscalls
from fastlog.errors import ClosedError, Error, UnknownTopicError
from fastlog.store.catalog import TopicInfo

logger = logging.getLogger("fastlog.store")

LOCK: Final = "maintenance.lock"


def needs_upkeep(info: TopicInfo) -> bool:
    """Whether anything of the topic can ever be deleted or compacted."""
    options = info.options
    return (
        "compact" in options.get("cleanup.policy", "delete")
        or options.get("retention.ms", -1) >= 0
        or options.get("retention.bytes", -1) >= 0
    )


class Maintainer:
    """Runs rounds of upkeep while it is the elected one. The lock is kept until ``close``: the kernel frees it on
    death.

    Args:
        control: the folder of the lock.
        run: one round.
    """

    def __init__(self, control: str, run: Callable[[], object]) -> None:
        self._path = f"{control}/{LOCK}"
        self._run = run
        self._fd = -1

    def is_elected(self) -> bool:
        """Whether this process is the one; asks for it when nobody is."""
        if self._fd >= 0:
            return True
        fd = oscalls.open_file(self._path, writable=True, create=True)
        try:
            if oscalls.try_lock(fd):
                fd, self._fd = -1, fd
        finally:
            if fd >= 0:
                oscalls.close_file(fd)
        return self._fd >= 0

    def tick(self) -> None:
        """One round, if this process is the elected one. Raises nothing."""
        try:
            if self.is_elected():
                self._run()
        except (ClosedError, UnknownTopicError):
            pass  # the store is being closed, or a topic was deleted meanwhile
        except Error:
            logger.warning("a round of upkeep failed and is tried again later", exc_info=True)

    def close(self) -> None:
        """Let somebody else be elected."""
        fd, self._fd = self._fd, -1
        if fd >= 0:
            oscalls.close_file(fd)
