"""A partition as plain lists: what ``PartitionLog`` has to look like from outside, and on disk.

Rules taken from Kafka 4.1:

* the records of one append become batches of at most ``max_message_bytes``, filled one after the other;
* all batches of one append go into one segment;
* before an append, the log rolls to a new segment when the append does not fit any more
  (``size > segment_bytes - incoming``), when the segment holds something and its first batch is more than
  ``segment_ms`` older than the append (by the batches' largest timestamps; by the clock when the first batch has
  none), when an index is full, or when an offset no longer fits into 31 bits above the segment's base offset;
* the first segment is named after offset 0, each later one after the first offset appended to it.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace

from tests.reference.batch import HEADER_SIZE, Batch, Record, encode_batch, encode_record, make_batch
from tests.reference.indexes import SegmentIndexes

__all__ = ["ModelConfig", "ModelError", "ModelLog", "ModelSegment"]


class ModelError(Exception):
    """The call has to fail; the message names the kind of error."""


@dataclass(frozen=True)
class ModelConfig:
    """Kafka's limits, in bytes and milliseconds."""

    segment_bytes: int = 1 << 30
    segment_ms: int = 7 * 24 * 3600 * 1000
    segment_index_bytes: int = 10 << 20
    index_interval_bytes: int = 4096
    max_message_bytes: int = 1_048_588


@dataclass
class ModelSegment:
    """One segment: its batches with their bytes, and its indexes."""

    base_offset: int
    created: int
    indexes: SegmentIndexes
    batches: list[tuple[Batch, bytes]] = field(default_factory=list)

    @property
    def log_file(self) -> bytes:
        """The bytes of the ``.log`` file."""
        return b"".join(encoded for _, encoded in self.batches)

    @property
    def size(self) -> int:
        return sum(len(encoded) for _, encoded in self.batches)

    @property
    def end_offset(self) -> int:
        return self.batches[-1][0].last_offset + 1 if self.batches else self.base_offset

    def write(self, batch: Batch, encoded: bytes) -> None:
        self.indexes.add(batch, self.size, len(encoded))
        self.batches.append((batch, encoded))


class ModelLog:
    """The oracle of the property tests. Clocks are passed in; nothing touches a disk."""

    def __init__(self, config: ModelConfig, now: int = 0) -> None:
        self.config = config
        self.start_offset = 0
        self.segments: list[ModelSegment] = []
        self._add_segment(0, now)

    @property
    def end_offset(self) -> int:
        return self.segments[-1].end_offset

    @property
    def batches(self) -> Iterator[Batch]:
        """All batches in offset order, also those below the log start offset that still lie in a segment."""
        return (batch for segment in self.segments for batch, _ in segment.batches)

    @property
    def records(self) -> list[Record]:
        """Everything a reader can see."""
        visible = itertools.chain.from_iterable(batch.visible_records for batch in self.batches)
        return [record for record in visible if record.offset >= self.start_offset]

    def append(self, records: Sequence[Record], now: int) -> int:
        """Append records (their own offsets do not matter) at the time ``now``; return the base offset."""
        base_offset = self.end_offset
        if not records:
            return base_offset
        numbered = [replace(record, offset=base_offset + i) for i, record in enumerate(records)]
        batches = [make_batch(group) for group in self._split(numbered)]
        encoded = [encode_batch(batch) for batch in batches]
        incoming = sum(map(len, encoded))
        if incoming > self.config.segment_bytes:
            raise ModelError("RecordTooLargeError")
        if self._must_roll(batches, incoming, now):
            self.segments[-1].indexes.add_time_entry()
            self._add_segment(base_offset, now)
        for batch, content in zip(batches, encoded, strict=True):
            self.segments[-1].write(batch, content)
        return base_offset

    def read(self, offset: int, max_bytes: int) -> tuple[list[Record], int]:
        """Records from ``offset`` on, of whole batches of one segment: the records, and the offset to go on with."""
        if not self.start_offset <= offset <= self.end_offset:
            raise ModelError("OffsetOutOfRangeError")
        found: list[Record] = []
        next_offset, taken = offset, 0
        for segment in self.segments:
            for batch, encoded in segment.batches:
                if batch.last_offset < offset:
                    continue
                if taken and taken + len(encoded) > max_bytes:
                    return found, next_offset
                taken += len(encoded)
                found += [record for record in batch.visible_records if record.offset >= offset]
                next_offset = batch.last_offset + 1
            if taken:
                break
        return found, next_offset

    def offset_for_time(self, timestamp: int) -> int | None:
        """The first offset, not below the start, whose record has this timestamp or a later one."""
        return next((record.offset for record in self.records if record.timestamp >= timestamp), None)

    def delete_records(self, before: int) -> int:
        """Raise the log start offset, or leave it; segments wholly below it disappear then, never the last one."""
        if before > self.end_offset:
            raise ModelError("OffsetOutOfRangeError")
        self.start_offset = max(self.start_offset, before)
        self._leave_out_deleted()
        return self.start_offset

    def close(self) -> None:
        """A clean close leaves one more entry in the active segment's time index, and no segment below the start."""
        self.segments[-1].indexes.add_time_entry()
        self._leave_out_deleted()

    def _leave_out_deleted(self) -> None:
        while len(self.segments) > 1 and self.segments[1].base_offset <= self.start_offset:
            del self.segments[0]

    def _add_segment(self, base_offset: int, now: int) -> None:
        indexes = SegmentIndexes(base_offset, self.config.index_interval_bytes, self.config.segment_index_bytes)
        self.segments.append(ModelSegment(base_offset, now, indexes))

    def _split(self, records: list[Record]) -> Iterator[list[Record]]:
        """Fill batches one after the other."""
        group: list[Record] = []
        size = HEADER_SIZE
        for record in records:
            first = group[0] if group else record
            cost = len(encode_record(record, first.offset, first.timestamp))
            if group and size + cost > self.config.max_message_bytes:
                yield group
                group, size = [], HEADER_SIZE
                cost = len(encode_record(record, record.offset, record.timestamp))
            if size + cost > self.config.max_message_bytes:
                raise ModelError("RecordTooLargeError")
            group.append(record)
            size += cost
        yield group

    def _must_roll(self, batches: list[Batch], incoming: int, now: int) -> bool:
        segment = self.segments[-1]
        if not segment.batches:
            return False
        if segment.size > self.config.segment_bytes - incoming:
            return True
        first = segment.batches[0][0].max_timestamp
        latest = max(batch.max_timestamp for batch in batches)
        waited = latest - first if first >= 0 else now - segment.created
        if waited > self.config.segment_ms:
            return True
        if segment.indexes.is_full(len(batches)):
            return True
        return batches[-1].last_offset - segment.base_offset > 2**31 - 1
