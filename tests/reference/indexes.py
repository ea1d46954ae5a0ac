"""The two index files of a segment, entry by entry as Kafka 4.1 writes them.

``.index``: int32 (last offset of a batch - segment base), int32 (position of that batch).
``.timeindex``: int64 (largest timestamp in the segment so far), int32 (last offset of the batch with it - base).

Kafka counts the bytes that it appends. *Before* counting a batch it looks whether more than
``index.interval.bytes`` have come together since the last entry. If so, and if there is room, the batch gets an entry
in ``.index``, and ``.timeindex`` gets the largest timestamp so far (this batch included) unless that is not larger than
the one in the last entry. The first batch of a segment is therefore never indexed. When a segment is rolled or closed,
one more entry goes to ``.timeindex``, by the same rule.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass, field

from tests.reference.batch import Batch

__all__ = ["SegmentIndexes", "parse_index", "parse_time_index"]

ENTRY = struct.Struct(">ii")
TIME_ENTRY = struct.Struct(">qi")


@dataclass
class SegmentIndexes:
    """Both indexes of one segment while batches are added to it."""

    base_offset: int
    interval_bytes: int
    index_bytes: int = 10 << 20
    entries: list[tuple[int, int]] = field(default_factory=list)
    time_entries: list[tuple[int, int]] = field(default_factory=list)
    bytes_since_last_entry: int = 0
    max_timestamp: int = -1
    max_timestamp_offset: int = 0

    def add(self, batch: Batch, position: int, size: int) -> None:
        """Take notice of a batch of ``size`` bytes that was written at ``position``.

        A batch that compaction left without records has a timestamp, but no record has it.
        """
        if batch.records and batch.max_timestamp > self.max_timestamp:
            self.max_timestamp = batch.max_timestamp
            self.max_timestamp_offset = batch.last_offset
        if self.bytes_since_last_entry > self.interval_bytes and not self.is_full():
            self.entries.append((batch.last_offset - self.base_offset, position))
            self.add_time_entry()
            self.bytes_since_last_entry = 0
        self.bytes_since_last_entry += size

    def add_time_entry(self) -> None:
        """What happens at each offset entry, and once more when the segment is rolled or closed."""
        last = self.time_entries[-1][0] if self.time_entries else -1
        if self.max_timestamp > last:
            self.time_entries.append((self.max_timestamp, self.max_timestamp_offset - self.base_offset))

    def is_full(self, incoming_batches: int = 1) -> bool:
        """Whether so many more batches, each of which may need an entry, find no room.

        A segment is rolled then. One slot of the time index stays free for the last entry.
        """
        offset_slots = self.index_bytes // ENTRY.size
        time_slots = self.index_bytes // TIME_ENTRY.size - 1
        return (
            len(self.entries) + incoming_batches > offset_slots
            or len(self.time_entries) + incoming_batches > time_slots
        )

    @property
    def index_file(self) -> bytes:
        """The bytes of ``.index`` after trimming."""
        return b"".join(ENTRY.pack(*entry) for entry in self.entries)

    @property
    def time_index_file(self) -> bytes:
        """The bytes of ``.timeindex`` after trimming."""
        return b"".join(TIME_ENTRY.pack(*entry) for entry in self.time_entries)


def parse_index(data: bytes) -> list[tuple[int, int]]:
    """(relative offset, position) of each entry."""
    return list(ENTRY.iter_unpack(data))


def parse_time_index(data: bytes) -> list[tuple[int, int]]:
    """(timestamp, relative offset) of each entry."""
    return list(TIME_ENTRY.iter_unpack(data))
