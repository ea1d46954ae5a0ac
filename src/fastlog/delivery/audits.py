"""Audit records: what became of dead letters, told in their own partition. Pure.

An audit record has a null key and one header alone, ``fastlog.dlq.audit``; a dead letter has more than one of ours, so
no record that somebody sent can pass for an audit. It is written in the transaction that does what it tells of.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import numpy

from fastlog.errors import InvalidRecordError
from fastlog.records import is_offset

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from fastlog._core import Record, RecordBatch

__all__ = ["AUDIT_HEADER", "AUDIT_PAIRS", "Audit", "Handled", "audit_value", "audits_in", "runs_of"]

AUDIT_HEADER: Final = "fastlog.dlq.audit"
AUDIT_PAIRS: Final = ((AUDIT_HEADER, b"1"),)
# how every value of an audit begins: what does not is no candidate
BEGINNING: Final = b'{"action": "'


@dataclass(frozen=True, slots=True)
class Audit:
    """What an operator did with dead letters of one partition.

    Attributes:
        topic, partition, offset: where the audit record lies, in the dead-letter topic.
        action: ``"redrive"`` or ``"discard"``.
        target: the topic that redriven records went to; None for discarded ones.
        offsets: runs of offsets of dead letters, as (first, how many).
        at: when, ms since the epoch.
        by: who, as the operator was named.
    """

    topic: str
    partition: int
    offset: int
    action: str
    target: str | None
    offsets: tuple[tuple[int, int], ...]
    at: int
    by: str

    @property
    def letters(self) -> int:
        """How many dead letters it speaks of."""
        return sum(length for _, length in self.offsets)


def runs_of(offsets: Iterable[int]) -> list[tuple[int, int]]:
    """Ascending offsets as runs: (first, how many)."""
    runs: list[tuple[int, int]] = []
    for offset in offsets:
        if runs and runs[-1][0] + runs[-1][1] == offset:
            runs[-1] = (runs[-1][0], runs[-1][1] + 1)
        else:
            runs.append((offset, 1))
    return runs


def audit_value(action: str, target: str | None, offsets: Iterable[int], at: int, by: str) -> bytes:
    """The value of an audit record. ``offsets``: of the dead letters, ascending."""
    told = {"action": action, "to": target, "offsets": runs_of(offsets), "at": at, "by": by}
    return json.dumps(told).encode()


def audits_in(batch: RecordBatch) -> list[Audit]:
    """The audit records among these records of a dead-letter topic.

    Raises InvalidRecordError for one that cannot be read: the dead letters that it tells of would count as open.
    """
    found = []
    values = batch.values
    for index in numpy.flatnonzero(batch.keys.sizes < 0).tolist():
        value = values[index]
        if value is None or bytes(value[: len(BEGINNING)]) != BEGINNING:
            continue
        if batch.headers[index].keys() == (AUDIT_HEADER,):
            found.append(audit_of(batch[index]))
    return found


def audit_of(record: Record) -> Audit:
    """The audit that a record is. Raises InvalidRecordError."""
    try:
        told = json.loads(record.value or b"")
        runs = tuple((_number(first), _number(length)) for first, length in told["offsets"])
        for first, length in runs:
            _number(first + length)
        target, by = told.get("to"), told["by"]
        if not isinstance(by, str) or not (target is None or isinstance(target, str)):
            raise TypeError("names are text")
        return Audit(
            record.topic, record.partition, record.offset, str(told["action"]), target, runs, _number(told["at"]), by
        )
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise InvalidRecordError(
            f"{record.topic}-{record.partition}, offset {record.offset}: this audit record cannot be read ({error}), "
            f"so nobody can tell which dead letters were handled; something else has written it",
            record.topic,
            record.partition,
            record.offset,
        ) from error


def _number(value: Any) -> int:
    if not is_offset(value):
        raise ValueError(f"expected a number, found {value!r:.40}")
    return int(value)


class Handled:
    """Which dead letters of one partition were handled, by its audit records.

    Attributes:
        audits: as they lie in the partition.
    """

    def __init__(self, audits: Sequence[Audit]) -> None:
        self.audits = audits
        self._own = numpy.array(sorted(audit.offset for audit in audits), dtype=numpy.int64)
        self._runs = sorted(
            (first, first + length, audit.action) for audit in audits for first, length in audit.offsets
        )
        self._starts = numpy.array([start for start, _, _ in self._runs], dtype=numpy.int64)
        stops = numpy.array([stop for _, stop, _ in self._runs], dtype=numpy.int64)
        # the furthest stop of this run and those before: also right should runs ever overlap
        self._stops = numpy.maximum.accumulate(stops) if len(stops) else stops

    def mask(self, offsets: NDArray[numpy.int64]) -> NDArray[numpy.bool_]:
        """Which of these offsets are of dead letters that were handled."""
        if not len(self._starts):
            return numpy.zeros(len(offsets), dtype=numpy.bool_)
        before = numpy.searchsorted(self._starts, offsets, "right")
        return (before > 0) & (offsets < self._stops[numpy.maximum(before - 1, 0)])

    def audit_mask(self, offsets: NDArray[numpy.int64]) -> NDArray[numpy.bool_]:
        """Which of these offsets are of audit records."""
        return numpy.isin(offsets, self._own)

    def action_at(self, offset: int) -> str | None:
        """What was done with the dead letter at this offset; None when nothing was."""
        # the first run that ends behind the offset: whatever comes later begins later
        at = int(numpy.searchsorted(self._stops, offset, "right"))
        return self._runs[at][2] if at < len(self._runs) and self._runs[at][0] <= offset else None
