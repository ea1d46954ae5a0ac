"""Reading every byte of a partition and saying what does not check out. Changes nothing."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from fastlog._native import oscalls
from fastlog._native.scanner import compare_indexes, scan
from fastlog._native.segment import Segment
from fastlog.errors import StorageError
from fastlog.partition import files
from fastlog.reports import Damage, IndexProblem, VerifyReport


def damages_of(
    path: str, size: int, base_offset: int, *, gaps: bool, epoch: int, first_batch_base: int | None = None
) -> tuple[list[Damage], int, int, int]:
    """Every damaged stretch of a segment, then its batches, its records, and the offset behind its last batch.

    Checks headers, CRC, order and every record.
    """
    found: list[Damage] = []
    batches = records = position = 0
    expected = base_offset if first_batch_base is None else first_batch_base
    while True:
        result = scan(path, position, size, expected, gaps, epoch, True)
        batches += result.batches
        records += result.records
        expected = result.next_offset
        if result.problem is None:
            return found, batches, records, expected
        stop = result.resumes_at if result.resumes_at >= 0 else size
        resume = result.resume_offset if result.resumes_at >= 0 else None
        found.append(Damage(path, result.position, stop - result.position, expected, resume, result.problem))
        if resume is None:
            return found, batches, records, expected
        position = stop
        expected = resume


def verify(
    folder: str,
    segments: Sequence[Segment],
    start_offset: int,
    end_offset: int,
    progress: Callable[[int, int], object] | None = None,
) -> VerifyReport:
    """Check every batch, record and index entry below the published end.

    ``progress(bytes_done, bytes_total)`` is called after each segment. Raises StorageError when a file cannot be read.
    """
    bytes_total = sum(segment.size for segment in segments)
    damages: list[Damage] = []
    index_problems: list[IndexProblem] = []
    batches = records = total = count = 0
    previous_end: int | None = None
    previous_gaps = False
    for segment in segments:
        count += 1
        total += segment.size
        if previous_end is not None and previous_end != segment.base_offset and not previous_gaps:
            damages.append(missing(segment.path, previous_end, segment.base_offset))
        if previous_end is None and start_offset < segment.base_offset and not segment.gaps:
            damages.append(missing(segment.path, start_offset, segment.base_offset))
        actual = oscalls.file_size(segment.path)
        if actual is None or actual < segment.size:
            reason = "the file is missing" if actual is None else f"only {actual} of {segment.size} bytes are left"
            damages.append(Damage(segment.path, actual or 0, segment.size - (actual or 0), segment.base_offset, None, reason))
            previous_end, previous_gaps = None, segment.gaps
            if actual is None:
                continue
        found, batch_count, record_count, segment_end = damages_of(
            segment.path, segment.size, segment.base_offset, gaps=segment.gaps, epoch=segment.epoch_checked
        )
        damages += found
        batches += batch_count
        records += record_count
        index_problems += problems_of_indexes(segment)
        previous_end, previous_gaps = segment_end, segment.gaps
        if progress is not None:
            progress(total, bytes_total)
    return VerifyReport(
        folder, start_offset, end_offset, count, batches, records, total, tuple(damages), tuple(index_problems)
    )


def missing(path: str, first: int, following: int) -> Damage:
    """Offsets that no segment holds."""
    return Damage(path, 0, 0, first, following, f"offsets {first} to {following - 1} are in no segment before this one")


def problems_of_indexes(segment: Segment) -> list[IndexProblem]:
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
    results = compare_indexes(segment.path, segment.size, contents[0], contents[1], segment.base_offset)
    for path, problem in zip(files.index_paths(segment.path), results, strict=True):
        if problem is not None:
            found.append(IndexProblem(path, problem))
    return found
