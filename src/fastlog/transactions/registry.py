"""Who runs which transactional id since when: ``control/transactions.page``, words in a file that all processes share.

The page decides nothing, ``__transaction_state`` does. It is how everybody learns that an owner died, or that a
transaction takes longer than it may, without reading the log of every state partition all the time.

::

    header   8 words: entries used so far, whether producer ids are renewed in this session
    entry    10 words: slot + 1 (0 = free) | name | producer id | epoch | start | time-out | claim
             | pid, start time and pid namespace of the owner's process

``slot`` is the lock slot of the owner's process (``liveness.slots``); ``name`` the hashed transactional id above the
number of its state partition; ``start`` the steady clock in milliseconds when the transaction began, 0 when none is
open, and stored before anything of it is written; ``claim`` when somebody last set out to end it, so that not everybody
does. Entries are taken and freed under a lock on ``transactions.lock``; an owner changes its own without one.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from fastlog._core import SharedPage
from fastlog._native import oscalls
from fastlog.errors import TransactionError
from fastlog.liveness import Slot
from fastlog.store import files
from fastlog.store.internal import partition_for_name

__all__ = ["Entry", "Registry", "Running", "name_word"]

_HEADER = 8
_USED, _RENEWS = 0, 1
_ENTRY = 10
_SLOT, _NAME, _PRODUCER_ID, _EPOCH, _START, _TIMEOUT, _CLAIM, _PID, _PROCESS_START, _NAMESPACE = range(_ENTRY)
_MOST_ENTRIES = 4096
_PARTITION_BITS = 6
CLAIM_MS = 1000  # how long others leave it to whoever claimed it


def name_word(transactional_id: str) -> int:
    """56 bits of a hash of the id, above the number of its state partition; positive, so never that of a free entry."""
    hashed = int(hashlib.sha256(transactional_id.encode()).hexdigest()[:14], 16)
    return hashed << _PARTITION_BITS | partition_for_name(transactional_id)


@dataclass(frozen=True, slots=True)
class Running:
    """What an entry said when it was read. Times in milliseconds of the steady clock."""

    index: int
    slot: int
    name: int
    producer_id: int
    epoch: int
    start: int
    timeout: int
    claim: int
    pid: int
    process_start: int
    namespace: int

    @property
    def identity(self) -> dict[str, int]:
        """Of the owner's process, as ``Slot.identity`` has it."""
        return {"pid": self.pid, "start_time": self.process_start, "pid_namespace": self.namespace}

    @property
    def state_partition(self) -> int:
        return self.name & ((1 << _PARTITION_BITS) - 1)

    def expired(self, now: int) -> bool:
        return self.start != 0 and now - self.start > self.timeout


class Registry:
    """The open page. Any thread."""

    def __init__(self, control: str, lock_timeout_ms: int) -> None:
        """``control``: the store's ``control`` folder. ``lock_timeout_ms``: how long to wait for the page's lock. Opens
        nothing yet."""
        self._page_path = f"{control}/transactions.page"
        self._lock_path = f"{control}/transactions.lock"
        self._lock_timeout = lock_timeout_ms
        self._page: SharedPage | None = None

    @property
    def is_made(self) -> bool:
        """Whether somebody has made the page since the store was opened alone."""
        return self._page is not None or oscalls.file_size(self._page_path) is not None

    @property
    def page(self) -> SharedPage:
        if self._page is None:
            self._page = SharedPage.open(self._page_path)
        return self._page

    def create(self, renews: bool) -> None:
        """Make the page; the caller holds ``locked`` and has seen that there is none."""
        page = SharedPage.create(self._page_path, _HEADER + _ENTRY * _MOST_ENTRIES, 0, values=(0, int(renews)))
        self._page = page

    @property
    def renews(self) -> bool:
        """Whether instances get a new producer id, since power loss may have taken records of the old one."""
        return bool(self.page.load(_RENEWS))

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Hold the lock of the page; the kernel takes it back from the dead. Raises LockedError after the lock
        time-out.
        """
        fd = oscalls.open_file(self._lock_path, writable=True, create=True)
        try:
            files.wait_for_lock(fd, self._lock_path, self._lock_timeout, "is changing the transactions under way")
            yield
        finally:
            oscalls.close_file(fd)

    def enter(self, slot: Slot, transactional_id: str, timeout_ms: int) -> Entry:
        """An entry for an id that the process with this slot opens. Raises TransactionError when all are taken."""
        page = self.page
        with self.locked():
            used = page.load(_USED)
            index = next((i for i in range(used) if page.load(_HEADER + _ENTRY * i + _SLOT) == 0), used)
            if index == _MOST_ENTRIES:
                raise TransactionError(
                    f"{_MOST_ENTRIES} transactional producers are open in this store: close some first"
                )
            base = _HEADER + _ENTRY * index
            for word, value in (
                (_NAME, name_word(transactional_id)), (_PRODUCER_ID, -1), (_EPOCH, -1), (_START, 0),
                (_TIMEOUT, timeout_ms), (_CLAIM, 0), (_PID, slot.identity["pid"]),
                (_PROCESS_START, slot.identity["start_time"]), (_NAMESPACE, slot.identity["pid_namespace"]),
                (_SLOT, slot.number + 1),
            ):  # fmt: skip
                page.store(base + word, value)
            if index == used:
                page.store(_USED, used + 1)
        return Entry(self, index)

    def running(self) -> list[Running]:
        """Every entry that is taken."""
        count = self.page.load(_USED)
        if not count:
            return []
        words = self.page.load_many(_HEADER, _ENTRY * count)
        return [
            Running(at // _ENTRY, words[at] - 1, *words[at + _NAME : at + _ENTRY])
            for at in range(0, len(words), _ENTRY)
            if words[at]
        ]

    def latest(self, seen: Running) -> Running | None:
        """The entry as it is now; None when it is another process's, or another id's."""
        found = self._entry(seen.index)
        is_its = (found.slot, found.name, found.identity) == (seen.slot, seen.name, seen.identity)
        return found if is_its else None

    def is_same(self, seen: Running) -> bool:
        """Whether the entry still is of the same owner and transaction."""
        found = self._entry(seen.index)
        return (found.slot, found.name, found.producer_id, found.epoch, found.start) == (
            seen.slot, seen.name, seen.producer_id, seen.epoch, seen.start,
        )  # fmt: skip

    def _entry(self, index: int) -> Running:
        slot, *words = self.page.load_many(_HEADER + _ENTRY * index, _ENTRY)
        return Running(index, slot - 1, *words)

    def claim(self, seen: Running) -> bool:
        """True for one of those who set out to end the same transaction at the same time, and again a second later."""
        word = _HEADER + _ENTRY * seen.index + _CLAIM
        now = oscalls.steady_clock()
        if now - self.page.load(word) < CLAIM_MS:
            return False
        return now - self.page.exchange(word, now) >= CLAIM_MS

    def free(self, seen: Running) -> None:
        """Free the entry of a dead owner, unless it is somebody else's by now, or of a transaction that began later."""
        with self.locked():
            if self.is_same(seen):
                self.page.store(_HEADER + _ENTRY * seen.index + _SLOT, 0)

    def close(self) -> None:
        if self._page is not None:
            self._page.close()


class Entry:
    """The own entry of an open transactional id."""

    def __init__(self, registry: Registry, index: int) -> None:
        self._page = registry.page
        self._registry = registry
        self._base = _HEADER + _ENTRY * index

    def identify(self, producer_id: int, producer_epoch: int) -> None:
        """Say which producer it is; no transaction is open."""
        self._page.store(self._base + _PRODUCER_ID, producer_id)
        self._page.store(self._base + _EPOCH, producer_epoch)

    def begin(self) -> None:
        """A transaction begins: from now on the time-out counts."""
        self._page.store(self._base + _START, max(1, oscalls.steady_clock()))

    @property
    def is_running(self) -> bool:
        """Whether a transaction has begun, and not ended."""
        return self._page.load(self._base + _START) != 0

    def end(self) -> None:
        """Nothing of the transaction is left to do."""
        self._page.store(self._base + _START, 0)

    def release(self) -> None:
        """Give the entry back."""
        with self._registry.locked():
            self._page.store(self._base + _SLOT, 0)
