"""What verification, recovery and repair found: plain values, to print or to compare.

All positions and sizes are bytes, all offsets are record offsets, all paths are strings.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from fastlog.config import CODECS

__all__ = [
    "BatchInfo",
    "CompactionReport",
    "CutTail",
    "Damage",
    "IndexEntry",
    "IndexProblem",
    "MaintenanceReport",
    "OpenTransaction",
    "RecoveryReport",
    "RepairReport",
    "RetentionReport",
    "SegmentInfo",
    "TimeIndexEntry",
    "VerifyReport",
]


@dataclass(frozen=True, slots=True)
class BatchInfo:
    """The header of one batch, and where it lies in its segment file."""

    position: int
    size: int
    base_offset: int
    last_offset: int
    record_count: int
    leader_epoch: int
    crc: int
    attributes: int
    base_timestamp: int
    max_timestamp: int
    producer_id: int
    producer_epoch: int
    base_sequence: int
    is_valid: bool
    problem: str | None = None

    @property
    def codec(self) -> str:
        """Name of the compression codec: none, gzip, snappy, lz4 or zstd."""
        number = self.attributes & 0x07
        return CODECS[number] if number < len(CODECS) else f"unknown({number})"

    @property
    def is_control(self) -> bool:
        """Whether the batch holds a control record (a transaction marker)."""
        return bool(self.attributes & 0x20)

    @property
    def is_transactional(self) -> bool:
        """Whether the batch is part of a transaction."""
        return bool(self.attributes & 0x10)


class OpenTransaction(NamedTuple):
    """A transaction that has records in a partition and no marker yet; its first record is at ``first_offset``."""

    producer_id: int
    producer_epoch: int
    first_offset: int


@dataclass(frozen=True, slots=True)
class Damage:
    """A range of a segment file that does not check out."""

    path: str
    position: int
    size: int
    first_offset: int
    next_offset: int | None
    reason: str


@dataclass(frozen=True, slots=True)
class IndexProblem:
    """An index file that disagrees with its segment. Indexes are hints: they are rebuilt when next used."""

    path: str
    reason: str


@dataclass(frozen=True, slots=True)
class CutTail:
    """A torn tail that recovery cut off, and the side file that keeps its bytes (None when they were all zero)."""

    path: str
    position: int
    size: int
    reason: str
    side_file: str | None


@dataclass(frozen=True, slots=True)
class RecoveryReport:
    """What opening an uncleanly closed partition had to do."""

    recovery_point: int
    end_offset: int
    scanned_bytes: int
    scanned_batches: int
    cut: tuple[CutTail, ...]
    moved_aside: tuple[str, ...]
    rebuilt_indexes: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class VerifyReport:
    """The result of reading every byte of a partition."""

    path: str
    start_offset: int
    end_offset: int
    segments: int
    batches: int
    records: int
    bytes: int
    damages: tuple[Damage, ...]
    index_problems: tuple[IndexProblem, ...]

    @property
    def ok(self) -> bool:
        """True when neither a segment nor an index disagrees with the format."""
        return not self.damages and not self.index_problems


@dataclass(frozen=True, slots=True)
class RepairReport:
    """What ``repair`` moved aside; the side files hold the damaged bytes unchanged."""

    path: str
    damages: tuple[Damage, ...]
    side_files: tuple[str, ...]
    rebuilt_indexes: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class RetentionReport:
    """What retention deleted: segments, oldest first.

    ``start_offset`` is the log's first offset afterwards. ``held_back`` is the base offset of a segment that would
    have been next and stays only because its timestamps lie in the future; None when there is none.
    """

    segments_deleted: int
    bytes_deleted: int
    start_offset: int
    held_back: int | None


@dataclass(frozen=True, slots=True)
class CompactionReport:
    """What one round of compaction did.

    Up to ``cleaned_offset`` every key has one record, its latest, or none; a round that ran out of memory for keys, or
    was overtaken by a deletion, ends earlier than it could. Bytes and records are those of all segments that were gone
    through, before and after; ``segments_replaced`` counts the old ones.
    """

    first_dirty_offset: int
    cleaned_offset: int
    keys: int
    segments_replaced: int
    bytes_before: int
    bytes_after: int
    records_before: int
    records_after: int


@dataclass(frozen=True, slots=True)
class MaintenanceReport:
    """What ``maintain`` did. ``compaction`` is None when none was due, or the log is not compacted at all."""

    retention: RetentionReport
    compaction: CompactionReport | None


@dataclass(frozen=True, slots=True)
class SegmentInfo:
    """One segment of a partition and its indexes. ``max_timestamp`` is -1 when no record has one."""

    path: str
    base_offset: int
    end_offset: int
    size: int
    index_entries: int
    time_index_entries: int
    max_timestamp: int


@dataclass(frozen=True, slots=True)
class IndexEntry:
    """An entry of an offset index: the batch whose last offset this is begins at ``position``."""

    offset: int
    position: int


@dataclass(frozen=True, slots=True)
class TimeIndexEntry:
    """An entry of a time index: no record up to ``offset`` is younger than ``timestamp`` (milliseconds)."""

    timestamp: int
    offset: int
