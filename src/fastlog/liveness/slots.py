"""Slots: one byte of a file for each owner, locked for as long as it lives."""

from __future__ import annotations

from collections.abc import Sequence

from fastlog._core import SharedPage
from fastlog._native import oscalls
from fastlog.errors import ClosedError, ForkedHandleError, LockedError, NotSupportedError, StorageError

# Bytes that are locked need not exist: they lie behind everything that is written.
_LOCKS_AT = 1 << 20
_COUNTER = 0


class Slot:
    """A number that is locked until ``leave``, or until nobody refers to this object, or the process ends.

    Attributes:
        number: 1 and up; no other owner gets it as long as the file of slots is there.
        identity: ``pid``, ``start_time`` (ticks since the boot, 0 = unknown) and ``pid_namespace`` (0 = unknown) of the
            process: where to look for the end of the owner, as the lock says only that it has come.

    A forked child does not hold the lock: its copy of this object means nothing.
    """

    __slots__ = ("_file", "identity", "number")

    def __init__(self, number: int, identity: dict[str, int], file: oscalls.Descriptor) -> None:
        self.number = number
        self.identity = identity
        self._file: oscalls.Descriptor | None = file

    @property
    def left(self) -> bool:
        """Whether ``leave`` was called."""
        return self._file is None

    def leave(self) -> None:
        """Give up the lock: others see a dead owner. May be repeated, from any thread."""
        # closed, never unlocked: in a forked child the descriptor is closed already, and must stay untouched
        self._file = None

    def __repr__(self) -> str:
        return f"<Slot {self.number}{' (left)' if self.left else ''}>"


class Slots:
    """The file of slots of a store. Thread-safe.

    Raises ClosedError after ``close``, ForkedHandleError in a forked child.

    Numbers rise and are not given out twice: whoever has noted one cannot take another owner for the dead one.
    """

    def __init__(self, page: SharedPage, file: oscalls.Descriptor) -> None:
        self._page = page
        self._file: oscalls.Descriptor | None = file
        self._forks = oscalls.forks()
        pid = oscalls.process_id()
        self.path = page.path
        self.identity: dict[str, int] = {
            "pid": pid,
            "start_time": oscalls.process_start_time(pid),
            "pid_namespace": oscalls.pid_namespace(),
        }

    @classmethod
    def open(cls, path: str, writable: bool = True) -> Slots:
        """Open the slots at ``path``; the file is made when there is none, unless it is only opened for reading.

        NotSupportedError where the platform has no locks of open files, StorageError, UnsupportedFormatError.
        """
        if not oscalls.has_ofd_locks():
            raise NotSupportedError("sharing a store needs locks of open file descriptions, which this platform lacks")
        page = SharedPage.ensure(path, 1, 0) if writable else SharedPage.open(path, writable=False)
        return cls(page, oscalls.Descriptor(oscalls.open_file(path, writable=writable)))

    def enter(self) -> Slot:
        """Lock a number that nobody had before, through an open file of its own."""
        self._probe()
        file = oscalls.Descriptor(oscalls.open_file(self.path, writable=True))
        if not self._page.is_current():
            raise StorageError(
                f"{self.path} was removed while the store is open: close it everywhere, then open it again"
            )
        number = self._page.add(_COUNTER, 1)
        if not oscalls.lock_byte(file.fd, _LOCKS_AT + number, self.path):
            raise LockedError(
                f"{self.path} has a lock on slot {number}, which nobody was given: who else uses that file?"
            )
        return Slot(number, self.identity, file)

    def is_alive(self, number: int) -> bool:
        """Whether somebody holds the lock of a slot. One system call."""
        return not self.free([number])

    def free(self, numbers: Sequence[int]) -> list[int]:
        """Those of ``numbers`` whose lock nobody holds: their owners are dead, or never were.

        One system call for each.
        """
        places = oscalls.free_bytes(self._probe(), [_LOCKS_AT + number for number in numbers], self.path)
        return [place - _LOCKS_AT for place in places]

    def close(self) -> None:
        """Stop asking. Slots that were entered stay locked. May be repeated."""
        self._file = None
        self._page.close()

    def _probe(self) -> int:
        """Descriptor of an open file that holds no lock, so that it sees all."""
        if self._forks != oscalls.forks():
            raise ForkedHandleError(
                f"{self.path} was opened before fork and belongs to the parent: open it again in the child"
            )
        if self._file is None:
            raise ClosedError(f"{self.path} was closed: open it again")
        return self._file.fd
