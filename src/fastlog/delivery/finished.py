"""Which records of a partition are finished, when they do not finish in order: kept while it changes, and as metadata.

A group commits one offset for each partition: everything before it is finished. What is finished behind it stands in
the metadata of the commit, as runs, with a flag whether the owner let go in good order, and a mark: the one record
that is handled alone, and how often that was begun. A commit says all there is to know, and needs no older one.

The metadata is text of at most 4,000 characters (Kafka allows 4,096)::

    fl1:<base64 of: flags, [offset of the mark - prefix, attempts, due, first failure], gap, run, gap, run, …>

Everything behind the flags is a varint. The empty text stands for: no gaps, no mark, clean.
"""

from __future__ import annotations

import base64
import binascii
import logging
from bisect import bisect_left, bisect_right
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final, NamedTuple

__all__ = ["METADATA_CHARACTERS", "Finished", "Mark", "Progress"]

logger = logging.getLogger("fastlog.delivery")

METADATA_CHARACTERS: Final = 4000
MAGIC: Final = "fl1:"
CLEAN: Final = 1
MARKED: Final = 2
PAYLOAD_BYTES: Final = (METADATA_CHARACTERS - len(MAGIC)) // 4 * 3
MOST: Final = 2**63 - 1
MOST_VARINT_BYTES: Final = 9  # of a number up to MOST


class Mark(NamedTuple):
    """The one record of a partition that is handled alone, or tried again in its place.

    ``attempts`` calls were begun, one of them perhaps only about to; it is not due before ``due`` (wall clock,
    milliseconds, 0 = at once) and failed first at ``first_failure`` (0 = never).
    """

    offset: int
    attempts: int
    due: int = 0
    first_failure: int = 0


@dataclass(frozen=True, slots=True)
class Finished:
    """What is finished of a partition, as it is committed. Immutable.

    Attributes:
        prefix: every record before this offset is finished; it is the offset that is committed.
        runs: what is finished behind it: first offset and the one after the last, ascending, none next to another.
        clean: whether the owner let go while nothing was in hand.
        mark: the record that is handled alone.
    """

    prefix: int
    runs: tuple[tuple[int, int], ...] = ()
    clean: bool = True
    mark: Mark | None = None

    def encode(self) -> str:
        """The metadata of the commit of ``prefix``, at most 4,000 characters.

        Runs that do not fit are left out, the last ones first: they would be handled again. ``PartitionWork`` begins
        nothing that could bring it so far.
        """
        if self.clean and self.mark is None and not self.runs:
            return ""
        payload = bytearray([(CLEAN if self.clean else 0) | (MARKED if self.mark is not None else 0)])
        if self.mark is not None:
            offset, attempts, due, first_failure = self.mark
            for number in (offset - self.prefix, attempts, due, first_failure):
                append_varint(payload, number)
        position = self.prefix
        for start, stop in self.runs:
            before = len(payload)
            append_varint(payload, start - position)
            append_varint(payload, stop - start)
            if len(payload) > PAYLOAD_BYTES:
                del payload[before:]
                logger.error("more gaps than a commit can tell of: what is finished from %d on is repeated", start)
                break
            position = stop
        return MAGIC + base64.b64encode(payload).decode("ascii")

    @classmethod
    def decode(cls, offset: int, metadata: str) -> Finished:
        """What a committed offset and its metadata say. What cannot be read says: no gaps, clean; it is logged."""
        if not metadata:
            return cls(offset)
        try:
            return decode_metadata(offset, metadata)
        except ValueError as problem:
            logger.warning(
                "the metadata of committed offset %d (%d characters) is none of fastlog, or damaged: passed over (%s)",
                offset,
                len(metadata),
                problem,
            )
            return cls(offset)


def decode_metadata(offset: int, metadata: str) -> Finished:
    """What ``encode`` wrote. ValueError for everything else."""
    if not metadata.startswith(MAGIC):
        raise ValueError(f"it does not begin with {MAGIC!r}")
    if len(metadata) > METADATA_CHARACTERS:
        raise ValueError(f"more than {METADATA_CHARACTERS} characters")
    try:
        text = metadata[len(MAGIC) :].encode("ascii")
        payload = base64.b64decode(text, validate=True)
    except (UnicodeEncodeError, binascii.Error) as error:
        raise ValueError("no base64") from error
    if base64.b64encode(payload) != text:
        raise ValueError("base64 with bits left over")
    if not payload or payload[0] & ~(CLEAN | MARKED):
        raise ValueError("unknown flags")
    numbers = varints(payload, 1)
    mark = None
    if payload[0] & MARKED:
        head = [number for _, number in zip(range(4), numbers, strict=False)]
        if len(head) < 4:
            raise ValueError("the mark ends early")
        mark = Mark(offset + head[0], *head[1:])
    runs = tuple(decode_runs(offset, numbers))
    if max(offset, mark.offset if mark is not None else 0, runs[-1][1] if runs else 0) > MOST:
        raise ValueError("an offset beyond 2^63")
    return Finished(offset, runs, bool(payload[0] & CLEAN), mark)


def decode_runs(position: int, numbers: Iterator[int]) -> Iterator[tuple[int, int]]:
    for gap in numbers:
        length = next(numbers, 0)
        if not gap or not length:
            raise ValueError("an empty run")
        start, position = position + gap, position + gap + length
        yield start, position


def append_varint(target: bytearray, number: int) -> None:
    """Seven bits to a byte, the lowest first. ``number`` is not negative."""
    while number > 127:
        target.append(number & 127 | 128)
        number >>= 7
    target.append(number)


def varints(source: bytes, position: int) -> Iterator[int]:
    """The numbers from ``position`` to the end. ValueError when one is cut off, too long, or longer than need be."""
    number = shift = 0
    for byte in source[position:]:
        number |= (byte & 127) << shift
        shift += 7
        if byte < 128:
            if not byte and shift > 7:
                raise ValueError("a number with zeros in front")
            yield number
            number = shift = 0
        elif shift >= 7 * MOST_VARINT_BYTES:
            raise ValueError("a number beyond 2^63")
    if shift:
        raise ValueError("the last number is cut off")


def varint_bytes(number: int) -> int:
    """How long a varint is."""
    return (number.bit_length() + 6) // 7 or 1


class Progress:
    """What is finished of a partition, while it changes. Used by one thread.

    Offsets that are no records (markers of transactions, what compaction took) are finished with the record before
    them: a marker behind each record makes no gaps. ``finish`` costs O(log n) of the number of gaps, and nothing to
    speak of when there is none.

    Attributes:
        position: the offset behind the last one that is known.
        size: bytes that the gaps take in the metadata, before base64.
    """

    __slots__ = ("_bounds", "_last", "_stops", "position", "size")

    def __init__(self, finished: Finished) -> None:
        # finished from the even ones to the odd ones; everything before the first odd one is
        self._bounds = [-1, finished.prefix]
        for run in finished.runs:
            self._bounds += run
        self.position = finished.prefix
        self._last = finished.prefix - 1  # the last record that is known
        self._stops: dict[int, int] = {}  # of unfinished records, behind which something is that is none
        self.size = self._cost(1, len(self._bounds) - 1)

    @property
    def prefix(self) -> int:
        """Every record before this offset is finished."""
        return self._bounds[1]

    @property
    def span(self) -> int:
        """From the prefix to the last known offset, or finished one."""
        return max(self.position, self._bounds[-1]) - self._bounds[1]

    @property
    def is_behind(self) -> bool:
        """Whether something is finished beyond the last known offset: what was committed before is being read."""
        return self.position < self._bounds[-1]

    def runs(self) -> tuple[tuple[int, int], ...]:
        """What is finished behind the prefix."""
        bounds = self._bounds
        return tuple((bounds[at], bounds[at + 1]) for at in range(2, len(bounds), 2))

    def __contains__(self, offset: int) -> bool:
        return bisect_right(self._bounds, offset) & 1 == 1

    def reach(self, offset: int) -> bool:
        """A record at ``offset`` is known. Whether it is news and not finished yet; offsets only rise."""
        if offset < self.position:
            return False
        if offset > self.position:
            self.pass_over(offset)
        self._last = offset
        self.position = offset + 1
        bounds = self._bounds
        return offset >= bounds[1] and (len(bounds) == 2 or offset not in self)

    def pass_over(self, stop: int) -> None:
        """There are no more records before ``stop``."""
        if stop <= self.position:
            return
        if self._last in self:
            self.finish(self.position, stop)
        else:
            self._stops[self._last] = stop
        self.position = stop

    def finish_record(self, offset: int) -> None:
        """The record at ``offset`` is finished."""
        self.finish(offset, self._stops.pop(offset, offset + 1) if self._stops else offset + 1)

    def finish(self, start: int, stop: int) -> None:
        """Everything from ``start`` up to ``stop`` is finished."""
        bounds = self._bounds
        if start <= bounds[1] and len(bounds) == 2:
            bounds[1] = max(bounds[1], stop)
            return
        first, last = bisect_left(bounds, start), bisect_right(bounds, stop)
        put = [offset for offset, at in ((start, first), (stop, last)) if not at & 1]
        before = self._cost(first - 1, last)
        bounds[first:last] = put
        self.size += self._cost(first - 1, first + len(put)) - before

    def copy(self) -> Progress:
        """The same, to try something out."""
        other = Progress.__new__(Progress)
        other._bounds, other.position, other.size = self._bounds.copy(), self.position, self.size
        other._last, other._stops = self._last, self._stops.copy()
        return other

    def _cost(self, first: int, last: int) -> int:
        """Bytes of the gaps and runs between the bounds from ``first`` to ``last``."""
        bounds = self._bounds
        return sum(varint_bytes(bounds[at + 1] - bounds[at]) for at in range(max(first, 1), min(last, len(bounds) - 1)))
