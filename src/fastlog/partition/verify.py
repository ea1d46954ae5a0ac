"""Reading every byte of a partition and saying what does not check out. Changes nothing."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from errno import ENOENT

from fastlog._native import oscalls
from fastlog._native.scanner import compare_indexes, scan
from fastlog._native.segment import Segment
from fastlog.errors import StorageError
from fastlog.partition import files
from fastlog.reports import Damage, IndexProblem, VerifyReport


def damages_of(
    path: str, size: int, base_offset: int, *, gaps: bool, epoch: int, max_decompressed_bytes: int
) -> tuple[list[Damage], int, int, int, int]:
    """Every damaged stretch of a segment, then its batches, its records, the offset behind its last batch, and the last
    offset that carries a producer id, or -1.

    Checks headers, CRC, order and every record.
    """
    found: list[Damage] = []
    batches = records = position = 0
    expected, last_producer_offset = base_offset, -1
    while True:
        result = scan(path, position, size, expected, gaps, epoch, True, None, max_decompressed_bytes)
        batches += result.batches
        records += result.records
        last_producer_offset = max(last_producer_offset, result.last_producer_offset)
        expected = result.next_offset
        if result.problem is None:
            return found, batches, records, expected, last_producer_offset
        stop = result.resumes_at if result.resumes_at >= 0 else size
        resume = result.resume_offset if result.resumes_at >= 0 else None
        found.append(Damage(path, result.position, stop - result.position, expected, resume, result.problem))
        if resume is None:
            return found, batches, records, expected, last_producer_offset
        position = stop
        expected = resume


def verify(
    folder: str,
    segments: Sequence[Segment],
    start_offset: int,
    end_offset: int,
    is_current: Callable[[Segment], bool],
    progress: Callable[[int, int], object] | None = None,
    *,
    is_swapping: bool = False,
) -> VerifyReport:
    """Check every batch, record and index entry below the published end.

    A segment that ``is_current`` no longer knows was removed meanwhile: what was found in it does not count.
    ``is_swapping``: compaction puts a segment into its place, or died in that. Its sources may still be there, and
    indexes may be missing.
    ``progress(bytes_done, bytes_total)`` is called after each segment. Raises StorageError when a file cannot be read.
    """
    bytes_total = sum(segment.size for segment in segments)
    damages: list[Damage] = []
    index_problems: list[IndexProblem] = []
    batches = records = total = count = 0
    previous_end: int | None = start_offset
    previous_gaps = False
    for segment in segments:
        found: list[Damage] = []
        may_skip = segment.gaps or previous_gaps
        if is_swapping and previous_end is not None:
            previous_end = min(previous_end, segment.base_offset)
        if previous_end is not None and is_hole(previous_end, segment, count, start_offset, may_skip=may_skip):
            found.append(missing(segment.path, previous_end, segment.base_offset))
        check = check_segment(segment)
        total += segment.size
        if progress is not None:
            progress(total, bytes_total)
        if not is_current(segment):
            previous_end = None
            continue
        count += 1
        damages += [*found, *check.damages]
        index_problems += [] if is_swapping else check.index_problems
        batches += check.batches
        records += check.records
        previous_end, previous_gaps = check.end_offset, segment.gaps
    return VerifyReport(
        folder, start_offset, end_offset, count, batches, records, total, tuple(damages), tuple(index_problems)
    )


@dataclass(slots=True)
class SegmentCheck:
    """What was found in one segment; ``end_offset`` is None when it cannot be told."""

    damages: list[Damage]
    index_problems: list[IndexProblem]
    batches: int
    records: int
    end_offset: int | None


def is_hole(previous_end: int, segment: Segment, position: int, start_offset: int, *, may_skip: bool) -> bool:
    """Whether offsets are missing before a segment, or there twice. The first one may begin below the log start offset,
    and what an interrupted deletion left below it may have holes."""
    base: int = segment.base_offset
    return position > 0 if base < previous_end else not may_skip and base > max(previous_end, start_offset)


def check_segment(segment: Segment) -> SegmentCheck:
    """Check one segment file and its indexes."""
    path = segment.path
    # the active segment may grow, and be rolled, meanwhile
    is_growing = segment.is_appended
    size = segment.size
    actual = oscalls.file_size(path)
    damages = []
    if actual is None or actual < size:
        reason = "the file is missing" if actual is None else f"only {actual} of {size} bytes are left"
        damages.append(Damage(path, actual or 0, size - (actual or 0), segment.base_offset, None, reason))
    try:
        found, batches, records, end_offset, _ = damages_of(
            path,
            size,
            segment.base_offset,
            gaps=segment.gaps,
            epoch=segment.epoch_checked,
            max_decompressed_bytes=segment.max_decompressed_bytes,
        )
        index_problems = problems_of_indexes(segment, size, is_growing=is_growing)
    except StorageError as error:
        if actual is not None and error.errno != ENOENT:
            raise
        # removed, before or meanwhile
        return SegmentCheck(damages, [], 0, 0, None)
    return SegmentCheck([*damages, *found], index_problems, batches, records, None if damages else end_offset)


def missing(path: str, first: int, following: int) -> Damage:
    """Offsets that no segment holds."""
    return Damage(path, 0, 0, first, following, f"offsets {first} to {following - 1} are in no segment before this one")


def problems_of_indexes(segment: Segment, size: int, *, is_growing: bool) -> list[IndexProblem]:
    """Index files of a segment that disagree with it."""
    found = []
    contents = []
    for path in files.index_paths(segment.path):
        try:
            content = oscalls.read_file(path)
        except StorageError as error:
            found.append(IndexProblem(path, str(error)))
            content = b""
        if content is None:
            found.append(IndexProblem(path, "the file is missing"))
        contents.append(content or b"")
    results = compare_indexes(segment.path, size, contents[0], contents[1], segment.base_offset, is_growing)
    for path, problem in zip(files.index_paths(segment.path), results, strict=True):
        if problem is not None:
            found.append(IndexProblem(path, problem))
    return found
