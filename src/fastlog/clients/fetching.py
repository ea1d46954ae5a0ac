"""Reading many partitions in turn: positions, fair rotation, and which bells to sleep on."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Protocol

from fastlog._core import PartitionLog, RecordBatch, bell_of
from fastlog.errors import ConfigError, OffsetOutOfRangeError, UnknownTopicError
from fastlog.groups.membership import OwnerEpoch
from fastlog.records import TopicPartition
from fastlog.store.places import readable_end

from .starting import OUT_OF_RANGE, Starting, start_offset

if TYPE_CHECKING:
    from fastlog.store.directory import Directory

    from .bounds import Bounds

__all__ = ["Assigned", "Fetcher"]

logger = logging.getLogger("fastlog.consumer")


class Held(Protocol):
    """A lease of an open partition."""

    @property
    def log(self) -> PartitionLog:
        """The open partition."""

    def release(self) -> None:
        """Give it back."""


class Assigned:
    """One partition that a consumer reads.

    Attributes:
        name: topic and partition.
        log: the open partition.
        position: offset of the next record to hand out.
        finished: everything before it is done with.
        written: ``finished`` as it was when it was last committed; None: nothing is committed.
        initial: where reading began, when nothing was committed.
        is_paused: nothing is handed out until it is resumed.
        is_sought: ``position`` was chosen by the user: outside the log it is an error, whatever is configured.
        epoch: as whose owner in the group it is read; its positions can be committed under no other.
        from_start: when its position is gone from the log, it goes on at the first record that is left.
    """

    __slots__ = (
        *("_lease", "epoch", "finished", "from_start", "initial", "is_paused", "is_sought"),
        *("log", "name", "position", "written"),
    )

    written: int | None
    epoch: OwnerEpoch | None

    def __init__(self, name: TopicPartition, lease: Held, position: int) -> None:
        self.name = name
        self._lease = lease
        self.log = lease.log
        self.position = position
        self.finished = position
        self.written = None
        self.epoch = None
        self.initial = position
        self.is_paused = False
        self.is_sought = False
        self.from_start = False

    def move(self, offset: int) -> None:
        """Go on at ``offset``, as the user wishes; what was in hand counts no more."""
        self.position = self.finished = offset
        self.is_sought = True

    def release(self) -> None:
        """Give the open partition back."""
        self._lease.release()


class Fetcher:
    """The partitions of one consumer, read in turn: one batch of each, so that a full one starves no other.

    Not thread-safe: the consumer lets one thread in at a time.

    Attributes:
        isolation: ``"read_committed"`` or ``"read_uncommitted"``.
        bells: mask of the bells that ring when one of the partitions has more.
        resets: how often a position was not in the log any more, and another was taken.
    """

    def __init__(
        self, directory: Directory, isolation: str, start: Starting, out_of_range: str, fetch_bytes: int
    ) -> None:
        self._directory = directory
        self.isolation = isolation
        self._start = start
        self._out_of_range = out_of_range
        self._fetch_bytes = fetch_bytes
        self._assigned: dict[TopicPartition, Assigned] = {}
        self._ring: list[Assigned] = []
        self._turn = 0
        self.bells = 0
        self.resets = 0

    # --- which partitions --------------------------------------------------------------------------------------------

    def add(
        self, name: TopicPartition, position: int | None, *, is_new: bool = False, from_start: bool = False
    ) -> Assigned:
        """Read a partition from ``position`` on; None: where ``start`` says. Nothing of a new one is passed over.

        ``from_start``: None is its first record, whatever ``start`` says, and so is a position that is gone.
        """
        lease = self._directory.lease(name.topic, name.partition, self.isolation)
        try:
            if position is None:
                is_whole = from_start or (is_new and self._start == "latest")
                position = start_offset(lease.log, "earliest" if is_whole else self._start)
            found = Assigned(name, lease, position)
            found.from_start = from_start
        except BaseException:
            lease.release()
            raise
        self._assigned[name] = found
        self._arrange()
        return found

    def remove(self, names: Iterable[TopicPartition]) -> None:
        """Read these no longer."""
        for name in names:
            found = self._assigned.pop(name, None)
            if found is not None:
                found.release()
        self._arrange()

    def _arrange(self) -> None:
        self._ring = list(self._assigned.values())
        self._turn = 0
        self.bells = 0
        for name in self._assigned:
            self.bells |= 1 << bell_of(name.topic, name.partition)

    def get(self, name: TopicPartition) -> Assigned | None:
        """The partition, None when it is not assigned."""
        return self._assigned.get(name)

    def names(self) -> list[TopicPartition]:
        """What is assigned, in order."""
        return sorted(self._assigned)

    def __iter__(self) -> Iterator[Assigned]:
        return iter(self._ring)

    def __len__(self) -> int:
        return len(self._ring)

    # --- reading -----------------------------------------------------------------------------------------------------

    def next_batch(self, bounds: Bounds | None = None) -> tuple[Assigned, RecordBatch] | None:
        """The next records of the next partition that has some, or None. Never waits; does not move the position."""
        count = len(self._ring)
        for step in range(count):
            found = self._ring[(self._turn + step) % count]
            if found.is_paused or (found.log.end_offset == found.position and not found.log.read_only):
                continue  # only a read shows a reader alone that writers have come, and perhaps gone
            if bounds is not None and bounds.is_reached(found):
                continue
            batch = self.read(found)
            if batch is not None:
                self._turn = (self._turn + step + 1) % count
                return found, batch
        return None

    def read(self, found: Assigned) -> RecordBatch | None:
        """Records at the position of one partition; None at its readable end. Steps over control records."""
        while True:
            try:
                batch = found.log.read(found.position, self._fetch_bytes)
            except UnknownTopicError:
                return None  # deleted: whoever follows the topics takes it away
            except OffsetOutOfRangeError as error:
                if found.log.start_offset <= found.position <= found.log.end_offset:
                    return None  # written, but not for these eyes yet
                self._reset(found, error)
                continue
            if len(batch):
                found.is_sought = False
                return batch
            if batch.next_offset == found.position:
                return None
            if found.finished == found.position:
                found.finished = batch.next_offset
            found.position = batch.next_offset

    def _reset(self, found: Assigned, error: OffsetOutOfRangeError) -> None:
        """The position is not in the log: go where ``out_of_range`` says, and log it; or raise."""
        is_below = found.position < found.log.start_offset
        choice = "earliest" if found.from_start else self._out_of_range
        if found.is_sought or choice == "raise" or (choice == "start" and not is_below):
            raise self._told(found, error)
        before = found.position
        place = self._start if choice == "start" else choice
        found.position = min(max(start_offset(found.log, place), found.log.start_offset), readable_end(found.log))
        found.finished = found.position
        self.resets += 1
        logger.warning(
            "%s-%d: offset %d is not in the log (%d to %d) any more: going on at %d, as out_of_range=%r says",
            *found.name, before, found.log.start_offset, found.log.end_offset, found.position, choice,
        )  # fmt: skip

    def _told(self, found: Assigned, error: OffsetOutOfRangeError) -> OffsetOutOfRangeError:
        reason = "it was sought" if found.is_sought else f"out_of_range={self._out_of_range!r}"
        return OffsetOutOfRangeError(
            f"{found.name.topic}-{found.name.partition}: {error} ({reason}). Seek to an offset that is there, or "
            f'open the consumer with out_of_range="earliest" or "latest"',
            error.offset, error.start_offset, error.end_offset,
        )  # fmt: skip


def checked_out_of_range(value: str) -> str:
    """``out_of_range=``, or ConfigError."""
    if value not in OUT_OF_RANGE:
        raise ConfigError(f"out_of_range={value!r}: expected one of {', '.join(map(repr, OUT_OF_RANGE))}")
    return value
