"""Open partitions: leased while they are used, kept for a while afterwards, closed when there are too many.

A log that is leased is never closed behind its user's back. Of the others as many stay open as descriptors allow, the
longest unused go first; one whose sync failed goes at once, as it has to be opened anew. A process may hold several
handles of one partition for a moment: while an old one closes, a new one opens.
"""

from __future__ import annotations

import logging
import threading
from collections import OrderedDict, deque
from collections.abc import Callable
from types import TracebackType
from typing import Any, Final, NamedTuple

from fastlog._core import PartitionLog
from fastlog._native import oscalls
from fastlog.errors import ClosedError, Error, StorageError

logger = logging.getLogger("fastlog.store")

DESCRIPTORS_PER_LOG: Final = 8
LEAST_IDLE: Final = 4
MOST_IDLE: Final = 512
TOO_MANY_OPEN: Final = (23, 24)  # ENFILE, EMFILE


class Key(NamedTuple):
    """What makes two leases share a handle."""

    topic: str
    topic_id: str
    partition: int
    isolation: str


class _Entry:
    """One handle, opened by the first who leases it."""

    __slots__ = ("is_stale", "key", "leases", "lock", "log")

    def __init__(self, key: Key) -> None:
        self.key = key
        self.lock = threading.Lock()
        self.log: PartitionLog | None = None
        self.leases = 0
        self.is_stale = False


class Lease:
    """The right to use an open partition: a context manager, or call ``release``. One that nobody refers to any more is
    given back a little later.

    Attributes:
        log: the open partition; not to be closed by its user.
        topic, partition: which one.
    """

    __slots__ = ("_entry", "_pool", "key", "log", "partition", "topic")

    def __init__(self, pool: LogPool, entry: _Entry, log: PartitionLog) -> None:
        self._entry: _Entry | None = entry
        self._pool = pool
        self.log = log
        self.key = entry.key
        self.topic = entry.key.topic
        self.partition = entry.key.partition

    def release(self) -> None:
        """Give the partition back. Idempotent, from any thread."""
        entry, self._entry = self._entry, None
        if entry is not None:
            self._pool.give_back(entry)

    def __enter__(self) -> Lease:
        return self

    def __exit__(
        self,
        exception_type: type[BaseException] | None,
        exception: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.release()

    def __del__(self) -> None:
        # wherever any thread is, in the middle of the pool too: it is noted, and nothing else
        if self._entry is not None:
            self._pool.dropped.append(self._entry)

    def __repr__(self) -> str:
        return f"<Lease of {self.topic}-{self.partition}{'' if self._entry else ', released'}>"


class LogPool:
    """The open partitions of a directory. Thread-safe.

    Args:
        open_log: opens the partition of a key.
        most_idle: how many unused handles stay open; None = a part of the descriptors that the process may have.

    Attributes:
        dropped: what was leased by who is gone, until ``collect`` or the next lease gives it back.
    """

    def __init__(self, open_log: Callable[[Key], PartitionLog], most_idle: int | None = None) -> None:
        self._open_log = open_log
        self._most_idle = most_idle
        self._mutex = threading.Lock()
        self._entries: dict[Key, _Entry] = {}
        self._idle: OrderedDict[Key, _Entry] = OrderedDict()
        self._stale: set[_Entry] = set()  # leased, and not to be leased again
        self._leased = 0
        self._is_closed = False
        self.dropped: deque[_Entry] = deque()

    def most_idle(self) -> int:
        """How many unused handles may stay open now."""
        if self._most_idle is not None:
            return self._most_idle
        spare = oscalls.descriptor_limit() // 2 // DESCRIPTORS_PER_LOG - self._leased
        return max(LEAST_IDLE, min(spare, MOST_IDLE))

    def lease(self, key: Key) -> Lease:
        """Open the partition, or use the handle that is open. Raises what opening raises."""
        if self.dropped:
            self.collect()
        with self._mutex:
            if self._is_closed:
                raise ClosedError("the store was closed: open it again")
            entry = self._entries.get(key)
            idle = self._idle.pop(key, None)
            closing = [idle] if idle is not None and has_failed(idle) else []
            if entry is None or closing:
                entry = self._entries[key] = _Entry(key)
            entry.leases += 1
            self._leased += entry.leases == 1
        try:
            self._close_all(closing)
            with entry.lock:
                log = entry.log
                if log is None:
                    log = entry.log = self._open(key)
        except BaseException:
            self.give_back(entry)
            raise
        return Lease(self, entry, log)

    def collect(self) -> None:
        """Give back what was leased by those who are gone without a word."""
        while True:
            try:
                entry = self.dropped.popleft()
            except IndexError:
                return
            self.give_back(entry)

    def _open(self, key: Key) -> PartitionLog:
        try:
            return self._open_log(key)
        except StorageError as error:
            if error.errno not in TOO_MANY_OPEN:
                raise
        # what nobody uses may make room
        self._close_all(self._take_idle(0))
        return self._open_log(key)

    def give_back(self, entry: _Entry) -> None:
        """A lease ends."""
        with self._mutex:
            entry.leases -= 1
            if entry.leases:
                return
            self._leased -= 1
            is_current = self._entries.get(entry.key) is entry
            if is_current and not has_failed(entry) and not entry.is_stale and not self._is_closed:
                self._idle[entry.key] = entry
                closing = []
            else:
                if is_current:
                    del self._entries[entry.key]
                self._stale.discard(entry)
                closing = [entry]
        self._close_all([*closing, *self._take_idle(self.most_idle())])

    def _take_idle(self, most: int) -> list[_Entry]:
        """Take unused handles out until so many are left."""
        taken = []
        with self._mutex:
            while len(self._idle) > most:
                key, entry = self._idle.popitem(last=False)
                if self._entries.get(key) is entry:
                    del self._entries[key]
                taken.append(entry)
        return taken

    def _close_all(self, entries: list[_Entry]) -> None:
        for entry in entries:
            if entry.log is not None:
                try:
                    entry.log.close()
                except Error:
                    # it was synced as its level asks when it was appended to; the next opening recovers
                    logger.warning("could not close %s cleanly", entry.log.path, exc_info=True)

    def drop(self, is_stale: Callable[[Key], bool]) -> None:
        """Use some handles no more: unused ones are closed now, leased ones when they are given back."""
        with self._mutex:
            found = [entry for key, entry in self._entries.items() if is_stale(key)]
            for entry in found:
                entry.is_stale = True
                del self._entries[entry.key]
                self._idle.pop(entry.key, None)
            closing = [entry for entry in found if not entry.leases]
            self._stale.update(entry for entry in found if entry.leases)
        self._close_all(closing)

    def each_open(self) -> list[tuple[Key, PartitionLog]]:
        """The handles that are open now."""
        with self._mutex:
            entries = [*self._entries.values(), *self._stale]
        return [(entry.key, entry.log) for entry in entries if entry.log is not None]

    def close(self) -> list[Exception]:
        """Close every handle, leased ones too; what went wrong."""
        with self._mutex:
            self._is_closed = True
            entries = [*self._entries.values(), *self._stale]
            self._entries.clear()
            self._stale.clear()
            self._idle.clear()
        errors: list[Exception] = []
        for entry in entries:
            with entry.lock:
                log: Any = entry.log
            if log is not None:
                try:
                    log.close()
                except Exception as error:
                    errors.append(error)
        return errors


def has_failed(entry: _Entry) -> bool:
    """Whether it could not be opened, or a sync of it has failed."""
    return entry.log is None or entry.log.is_poisoned
