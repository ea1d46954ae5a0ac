"""Retention: which segments of a log may go. Decisions only; nothing here touches a file.

Three rules, all of which go from the oldest segment on and stop at the first one that stays:

- **time**: a segment goes when its age is more than ``retention_ms``. Its age is the time since its largest timestamp
  or since its file was last appended to, whichever is later. So neither a record that carries an old event time nor a
  clock that was slow when it was written lets it go early. A timestamp in the future keeps its segment, and all behind
  it.
- **size**: segments go while what is left still has at least ``retention_bytes``.
- **log start**: segments wholly below the log start offset go, whatever the policy: ``delete_records`` gave them up.

No rule touches a record from ``keep_from`` on: what is not durable yet, or belongs to an open transaction.

**The clock.** A wall clock that jumps ahead makes everything look old. Therefore time counts only when it was
*confirmed*: a reading of the clock is believed once a later look, at least ``grace`` after it, finds the clock still
beyond it. A jump so deletes nothing at once, and nothing at all if the clock is set right again within the grace: one
hour, or the retention time if that is shorter. The price is that expired segments stay up to two such periods longer.
A clock that goes back takes back what was confirmed. The two readings live in ``.fastlog-meta``, since a log that is
opened once a day by a job must be able to confirm yesterday's reading.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from fastlog.config import HOUR_MS

UNLIMITED: Final = -1
UNKNOWN: Final = -1


@dataclass(frozen=True, slots=True)
class Clock:
    """Two readings of the wall clock, milliseconds: the one that is believed, and the next one to be; -1 = none yet."""

    confirmed: int = UNKNOWN
    seen: int = UNKNOWN


def grace_of(retention_ms: int) -> int:
    """How long a reading of the clock has to wait until it is believed: milliseconds."""
    return HOUR_MS if retention_ms < 0 else min(HOUR_MS, retention_ms)


def look(clock: Clock, now: int, grace: int) -> Clock:
    """The clock after a look at ``now``. ``confirmed`` never lies beyond ``now``, and never within ``grace`` of it
    unless the clock went back."""
    if clock.seen == UNKNOWN or now < clock.seen:
        # the first look, or the reading that was to be confirmed is refuted
        return Clock(min(clock.confirmed, now), now)
    if now - clock.seen >= grace:
        return Clock(clock.seen, now)
    return clock


@dataclass(frozen=True, slots=True)
class Candidate:
    """A segment, as retention sees it.

    Attributes:
        end_offset: base offset of the next segment; the end of the log for the active one.
        max_timestamp: largest timestamp of its records, -1 when none has one.
        appended: when its file was last appended to, by the wall clock, milliseconds.
    """

    base_offset: int
    end_offset: int
    size: int
    max_timestamp: int
    appended: int


@dataclass(frozen=True, slots=True)
class Decision:
    """What may go: the first ``segments`` of the log, ``bytes`` together, so that it starts at ``start_offset``.

    ``is_all`` means that the active segment is among them: a new one has to be begun first. ``held_back`` is the base
    offset of the segment at which the rule of time has stopped because of a time in the future, or None.
    """

    segments: int
    bytes: int
    start_offset: int
    is_all: bool
    held_back: int | None


def decide(
    candidates: Sequence[Candidate],
    *,
    start_offset: int,
    keep_from: int,
    clock: Clock,
    now: int,
    retention_ms: int,
    retention_bytes: int,
    deletes: bool,
) -> Decision:
    """Which segments may go.

    Args:
        candidates: every segment, rising, the active one last.
        start_offset: first offset of the log.
        keep_from: records from this offset on stay.
        clock: after this look (see ``look``).
        now: what the clock says, to tell which times lie in the future.
        retention_ms, retention_bytes: -1 for unlimited.
        deletes: whether ``cleanup_policy`` contains "delete"; else only segments below the log start go.
    """
    below_start = sum(1 for candidate in candidates[:-1] if candidate.end_offset <= start_offset)
    by_time, held_back = expired(candidates, clock=clock, now=now, retention_ms=retention_ms) if deletes else (0, None)
    by_size = surplus(candidates, retention_bytes) if deletes else 0
    gone = max(below_start, by_time, by_size)
    while gone and candidates[gone - 1].end_offset > keep_from:
        gone -= 1
    if gone == len(candidates) and gone and not candidates[-1].size:
        # an empty active segment is no burden
        gone -= 1
    start = max(start_offset, candidates[gone - 1].end_offset) if gone else start_offset
    total = sum(candidate.size for candidate in candidates[:gone])
    return Decision(gone, total, start, gone > 0 and gone == len(candidates), held_back)


def expired(candidates: Sequence[Candidate], *, clock: Clock, now: int, retention_ms: int) -> tuple[int, int | None]:
    """How many segments are over their time, and the base offset of the one held back by a time in the future."""
    if retention_ms < 0 or clock.confirmed == UNKNOWN:
        return 0, None
    for i, candidate in enumerate(candidates):
        latest = max(candidate.max_timestamp, candidate.appended)
        if clock.confirmed - latest <= retention_ms:
            return i, candidate.base_offset if latest > now else None
    return len(candidates), None


def surplus(candidates: Sequence[Candidate], retention_bytes: int) -> int:
    """How many segments can go so that at least ``retention_bytes`` are left."""
    if retention_bytes < 0:
        return 0
    left = sum(candidate.size for candidate in candidates) - retention_bytes
    for i, candidate in enumerate(candidates):
        left -= candidate.size
        if left < 0:
            return i
    return len(candidates)
