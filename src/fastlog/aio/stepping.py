"""The consumer as an event loop uses it: in steps that never wait, and upkeep that may and is done in a thread."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, TypeVar

from fastlog._core import Record, RecordBatch
from fastlog._native import oscalls
from fastlog.clients.bounds import Bounds
from fastlog.clients.consumer import RETENTION_CHECK_MS, Call, Consumer
from fastlog.clients.progress import Pulse

if TYPE_CHECKING:
    from fastlog.store.directory import Directory

__all__ = ["SteppingConsumer"]

K = TypeVar("K")
V = TypeVar("V")


class SteppingConsumer(Consumer[K, V]):
    """A synchronous consumer, taken apart. What finished, committed and lost mean is all decided there.

    ``needs_upkeep`` before each step: when it says so, ``upkeep`` comes first, in a thread. Steps return None when
    there is nothing to hand out now.
    """

    def __init__(self, directory: Directory, topics: Any, *, nudge: Callable[[], None], **options: Any) -> None:
        self._nudge = nudge
        super().__init__(directory, topics, **options)

    def _start_pulse(self) -> Pulse | None:
        return None  # timers of the loop do it

    def _interrupt(self) -> None:
        super()._interrupt()
        self._nudge()

    # --- upkeep ------------------------------------------------------------------------------------------------------

    @property
    def is_ending(self) -> bool:
        """Whether ``close`` was called."""
        return self._closing or self._closed

    @property
    def commit_interval(self) -> int:
        """Milliseconds between automatic commits."""
        return self._commit_interval

    @property
    def bells(self) -> int:
        """What rings when there is something to do."""
        return self._fetcher.bells | self._group_bell

    @property
    def group_bell(self) -> int:
        """What rings when the group changes."""
        return self._group_bell

    def begin_close(self) -> None:
        """Nothing is handed out any more; ``close`` does the rest, in a thread."""
        self._closing = True
        self._interrupt()

    def needs_upkeep(self) -> bool:
        """Whether there is something to see to that may wait for the disk or call the user's callbacks.

        If not, the group is told that its member is at work.
        """
        if self.is_ending:
            return False
        now = oscalls.steady_clock()
        membership = self._membership
        if membership is None:
            return self._subscription.is_outdated or self._misses_partitions
        if not (self._has_joined and self._is_told) or self._has_to_rewind or self._unresolved:
            return True
        if not membership.is_settled:
            return True
        membership.stamp()
        return self._owes_commit(now) or now - self._checked_at >= RETENTION_CHECK_MS

    def _owes_commit(self, now: int) -> bool:
        return (
            self._auto_commit
            and now - self._committed_at >= self._commit_interval
            and any(found.finished != found.written for found in self._fetcher)
        )

    def upkeep(self) -> None:
        """The group, new partitions, commits, warnings; the user's callbacks are called from here."""
        with Call(self, raises=False) as is_open:
            if is_open:
                self._attention = False
                self._housekeep()

    def join(self) -> None:
        """Look what the group gives to a member that was never polled."""
        with Call(self):
            self._settle()

    @property
    def has_joined(self) -> bool:
        """Whether the group was asked for partitions."""
        return self._has_joined

    def owes_beat(self) -> bool:
        """Every now and then while a handler is at work: whether ``beat`` has to commit. A group that has changed ends
        the batch, so that the iteration sees to it."""
        if self.is_ending or self._membership is None:
            return False
        if self._iterating and not self._membership.is_settled:
            self._interrupt()
        with self._state:
            self._note_progress()
            return self._owes_commit(oscalls.steady_clock())

    # --- steps -------------------------------------------------------------------------------------------------------

    def ask(self, *, drops: bool) -> bool:
        """The next is asked for. Whether the consumer is open."""
        with Call(self, raises=False) as is_open:
            if is_open:
                self._ask()
                if drops:
                    self._drop_cursor()
            return is_open

    def finish_iteration(self) -> None:
        """The block has ended well: what the iteration has handed out last is finished."""
        if self._iterating and not self.is_ending:
            self.ask(drops=False)

    def step_list(self, max_records: int) -> list[Record[K, V]] | None:
        """Records for ``poll``."""
        with Call(self):
            if self._rest() is None:
                found = self._look()
                if found is None:
                    return None
                self._open_cursor(*found)
            return self._gather(max_records)

    def step_batch(self) -> RecordBatch | None:
        """A batch for ``batches``."""
        with Call(self):
            found = self._look()
            return None if found is None else self._hand_out(*found)

    def step_records(self) -> Iterator[Record[K, V]] | None:
        """Records for iteration."""
        with Call(self):
            self._attention = False
            cursor = self._rest()
            if cursor is None:
                found = self._look()
                if found is None:
                    return None
                cursor = self._open_cursor(*found)
            self._iterating = True
            return cursor

    def step_bounded(self, bounds: Bounds | None) -> Iterator[Record[K, V]] | None:
        """Records for iteration up to an end."""
        with Call(self):
            self._attention = False
            found = self._look(bounds)
            return None if found is None else self._bounded(*found, bounds)

    def is_through(self, bounds: Bounds | None) -> bool:
        """Whether nothing more comes: all before the end was handed out, or ``close`` was called."""
        return self.is_ending or (bounds is not None and self._is_done(bounds))

    def has_news(self, bounds: Bounds | None = None) -> bool:
        """Whether a task that waits should look."""
        if self.is_ending or bounds is not None or self.needs_upkeep():
            return True
        return any(not found.is_paused and found.log.end_offset != found.position for found in self._fetcher)
