"""Compaction of one partition: when, what, and how rewritten segments take the place of the old ones.

What is kept of a batch is decided in ``_native/cleaner``. Here is the work with whole files.

**Picking** follows Kafka: the log below ``cleaned_offset`` is clean, from there to the first offset that must stay as
it is it is dirty, and a round begins when the dirty part is large or old enough.

**Replacing.** The segments of a group become one, in files that are complete and synced before anything changes::

    <base>.log.cleaned   <base>.index.cleaned  …      being written: rubbish for whoever finds them
    <base>.log.swap      <base>.index.swap     …      all renamed: they stand for their group from now on

The swap then happens under the writer lock, and at every instant the files in the folder cover the whole log: the new
segment is moved over the first source while the others are still there, and the ``.swap`` names go last. A crash leaves
``.swap`` files that say what was meant: ``finish_swaps`` goes on from wherever it was, and so does a Kafka broker,
whose rules these are. The last batch of a new segment ends where its group ended, so that the file alone tells which
segments it stands for.

**Reading** a folder in which nobody finishes a swap, as a read-only handle has to: ``current_segments``.
"""

from __future__ import annotations

import errno
import logging
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Final

from fastlog._native import oscalls
from fastlog._native.checksum import crc32c
from fastlog._native.cleaner import DEFAULT_MEMORY, CleaningRound, OutputTooLargeError, Rewritten
from fastlog._native.scanner import scan
from fastlog.config import DEFAULT_MAX_DECOMPRESSED_BYTES
from fastlog.errors import CorruptLogError, StorageError
from fastlog.partition import files
from fastlog.reports import CompactionReport

logger = logging.getLogger("fastlog.compaction")

INDEX_SUFFIXES: Final = (".index", ".timeindex", ".txnindex")
CLEANED: Final = ".cleaned"
MOST_LINKS: Final = 100  # tries to name an index that readers store again
SWAP: Final = ".swap"
DELETED: Final = ".deleted"
MOST_OFFSETS: Final = 2**31 - 1  # a segment spans no more: its indexes hold 32-bit offsets

# (producer id, first offset, offset of the marker, entry of .txnindex as bytes)
AbortedTransaction = tuple[int, int, int, bytes]
# (producer id, epoch, offset of the last batch with data or -1)
ActiveProducer = tuple[int, int, int]
# told at each step that tests may want to stop at
Reach = Callable[[str], None]

_FILE: Final = re.compile(r"(\d{20})(\.log|\.index|\.timeindex|\.txnindex|\.snapshot)(\.cleaned|\.swap|\.deleted)?")


@dataclass(frozen=True, slots=True)
class Source:
    """A closed segment, as compaction sees it.

    ``max_timestamp`` is the largest of its records, ``first_timestamp`` that of its first batch; -1 when there is none.
    """

    base_offset: int
    size: int
    max_timestamp: int = -1
    first_timestamp: int = -1
    index_bytes: int = 0
    time_index_bytes: int = 0


# --- picking ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Dirt:
    """How much of a log waits for compaction, and whether it has to wait longer."""

    first_dirty: int
    first_uncleanable: int
    clean_bytes: int
    dirty_bytes: int
    is_due: bool

    @property
    def ratio(self) -> float:
        """Dirty bytes in relation to all that could be cleaned."""
        total = self.clean_bytes + self.dirty_bytes
        return self.dirty_bytes / total if total else 0.0


def measure(
    sources: Sequence[Source],
    *,
    cleaned_offset: int,
    start_offset: int,
    active_base: int,
    end_offset: int,
    limit: int,
    now: int,
    min_ratio: float,
    min_lag_ms: int,
    max_lag_ms: int,
) -> Dirt:
    """How dirty a log is, by Kafka's rules.

    Args:
        sources: every closed segment, rising.
        cleaned_offset: below it the log was compacted before; out of the log's range it means nothing.
        limit: nothing from this offset on may be touched: the smallest of last stable offset, durable offset and
            recovery point. Records that could still be taken back must not cost an older record its place.
        now: milliseconds, as confirmed (``retention.Clock``).
        min_ratio, min_lag_ms, max_lag_ms: ``min_cleanable_dirty_ratio``, ``min_compaction_lag_ms``,
        ``max_compaction_lag_ms``.
    """
    first_dirty = cleaned_offset if start_offset <= cleaned_offset <= end_offset else start_offset
    bases = [source.base_offset for source in sources]
    ends = [*bases, active_base][1:]
    uncleanable = min(limit, active_base)
    if min_lag_ms > 0:
        for source, end in zip(sources, ends, strict=True):
            if end > first_dirty and source.max_timestamp > now - min_lag_ms:
                uncleanable = min(uncleanable, source.base_offset)
                break
    # a segment is compacted as a whole or not at all
    uncleanable = next((base for base, end in zip(bases, ends, strict=True) if end > uncleanable), active_base)
    clean_bytes = sum(source.size for source in sources if source.base_offset < first_dirty)
    dirty = [s for s, end in zip(sources, ends, strict=True) if end > first_dirty and s.base_offset < uncleanable]
    dirty_bytes = sum(source.size for source in dirty)
    dirt = Dirt(first_dirty, uncleanable, clean_bytes, dirty_bytes, False)
    oldest = min((source.first_timestamp for source in dirty if source.first_timestamp > 0), default=None)
    is_old = oldest is not None and oldest < now - max(max_lag_ms, 0)
    is_due = dirty_bytes > 0 and uncleanable > first_dirty and (is_old or dirt.ratio > min_ratio)
    return Dirt(first_dirty, uncleanable, clean_bytes, dirty_bytes, is_due)


def group(
    sources: Sequence[Source], *, segment_bytes: int, index_bytes: int, first_uncleanable: int
) -> list[list[Source]]:
    """Neighbours that fit into one segment together: its bytes, its indexes, and the range of its offsets."""
    groups: list[list[Source]] = []
    for i, source in enumerate(sources):
        last_offset = (sources[i + 1].base_offset if i + 1 < len(sources) else first_uncleanable) - 1
        if groups:
            current = groups[-1]
            if (
                sum(member.size for member in current) + source.size <= segment_bytes
                and sum(member.index_bytes for member in current) + source.index_bytes <= index_bytes
                and sum(member.time_index_bytes for member in current) + source.time_index_bytes <= index_bytes
                and (source.size == 0 or last_offset - current[0].base_offset <= MOST_OFFSETS)
            ):
                current.append(source)
                continue
        groups.append([source])
    return groups


# --- a round ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Replacement:
    """One segment in ``.swap`` files, complete and synced, and the segments whose place it is to take.

    ``index_checksums`` are those of its offset index and time index, as ``.fastlog-indexes`` has them.
    """

    folder: str
    base_offset: int
    sources: tuple[int, ...]
    size: int
    max_timestamp: int
    next_offset: int
    index_checksums: tuple[int, int]


def nothing(_name: str) -> None:
    """A failpoint that nobody waits at."""


def compact(
    folder: str,
    sources: Sequence[Source],
    dirt: Dirt,
    swap_in: Callable[[Replacement], bool],
    *,
    segment_bytes: int,
    index_bytes: int,
    interval: int,
    now: int,
    horizon: int,
    aborted: Sequence[AbortedTransaction] = (),
    producers: Iterable[ActiveProducer] = (),
    memory: int = DEFAULT_MEMORY,
    max_decompressed_bytes: int = DEFAULT_MAX_DECOMPRESSED_BYTES,
    reach: Reach = nothing,
) -> CompactionReport:
    """Compact the log up to ``dirt.first_uncleanable``, or as far as ``memory`` allows.

    No lock is needed but that against a second compaction; ``swap_in`` is called for each new segment, takes the writer
    lock, checks that the sources are still there, and calls ``swap``. It returns False when the round has to end
    because they are not; the replacement is then discarded.

    Args:
        sources: every closed segment from the log's first one on, rising, up to ``dirt.first_uncleanable``.
        now: delete horizons up to it have passed: milliseconds, as confirmed (``retention.Clock``).
        horizon: the delete horizon of tombstones seen for the first time, milliseconds.
        aborted: transactions that were taken back, rising by first offset, as far as they concern ``sources``.
        producers: those that have not expired.

    Raises:
        CorruptLogError: damage; what was swapped in before stays, nothing else was changed.
        NotSupportedError: a batch has more content than ``max_decompressed_bytes``; likewise.
        StorageError: files cannot be read or written; likewise.
    """
    sources = [source for source in sources if source.base_offset < dirt.first_uncleanable]
    work = CleaningRound(
        now=now,
        horizon=horizon,
        upper_bound=dirt.first_uncleanable,
        memory=memory,
        aborted=list(aborted),
        producers=list(producers),
        max_decompressed_bytes=max_decompressed_bytes,
    )
    for i, source in enumerate(sources):
        next_base = sources[i + 1].base_offset if i + 1 < len(sources) else dirt.first_uncleanable
        if next_base <= dirt.first_dirty:
            continue
        path = files.segment_path(folder, source.base_offset)
        if work.map_segment(path, source.size, dirt.first_dirty, next_base):
            break
    end = work.map.latest + 1
    bytes_before = bytes_after = records_before = records_after = replaced = 0
    is_complete = True
    parts = group(
        [source for source in sources if source.base_offset < end],
        segment_bytes=segment_bytes,
        index_bytes=index_bytes,
        first_uncleanable=dirt.first_uncleanable,
    )
    for part in parts:
        rewritten, replacement = replace(work, folder, part, index_bytes=index_bytes, interval=interval, reach=reach)
        if replacement is not None and not swap_in(replacement):
            discard(folder, replacement.base_offset)
            is_complete = False
            break
        bytes_before += rewritten.bytes_read
        bytes_after += rewritten.size
        records_before += rewritten.records_read
        records_after += rewritten.records_kept
        replaced += len(part) if replacement is not None else 0
    return CompactionReport(
        first_dirty_offset=dirt.first_dirty,
        cleaned_offset=end if is_complete else dirt.first_dirty,
        keys=work.map.count,
        segments_replaced=replaced,
        bytes_before=bytes_before,
        bytes_after=bytes_after,
        records_before=records_before,
        records_after=records_after,
    )


def replace(
    work: CleaningRound, folder: str, part: Sequence[Source], *, index_bytes: int, interval: int, reach: Reach = nothing
) -> tuple[Rewritten, Replacement | None]:
    """Write the files that replace a group. No replacement when the one segment of the group would not change.

    An error leaves nothing behind, if the file system allows that much.
    """
    base = part[0].base_offset
    stem = f"{folder}/{base:020d}"
    paths = [(files.segment_path(folder, source.base_offset), source.size) for source in part]
    target = f"{stem}.log{CLEANED}"
    try:
        try:
            done = work.rewrite(paths, target, base_offset=base, index_bytes=index_bytes, interval=interval)
        except OutputTooLargeError:
            logger.warning("%s: no room for delete horizons, tombstones stay longer", target)
            done = work.rewrite(
                paths, target, base_offset=base, index_bytes=index_bytes, interval=interval, keeps_times=True
            )
        if not done.is_changed and len(part) == 1:
            oscalls.remove(target)
            return done, None
        oscalls.set_modified(target, oscalls.modified_at(paths[-1][0]))
        contents = {".index": done.offset_index, ".timeindex": done.time_index}
        if done.transaction_index or any(
            oscalls.file_size(path.removesuffix(".log") + ".txnindex") is not None for path, _ in paths
        ):
            contents[".txnindex"] = done.transaction_index
        for suffix, content in contents.items():
            write_file(f"{stem}{suffix}{CLEANED}", content)
        oscalls.sync_file(target)
        # all the names have to be there before the first one says that all is complete
        oscalls.sync_directory(folder)
        for suffix in (*contents, ".log"):
            oscalls.rename(f"{stem}{suffix}{CLEANED}", f"{stem}{suffix}{SWAP}")
        oscalls.sync_directory(folder)
    except OutputTooLargeError as error:
        discard_quietly(folder, base)
        raise StorageError(
            f"{paths[0][0]} cannot be compacted: compressed anew it would exceed 2 GiB. Nothing was changed; choose a "
            f"smaller segment_bytes for the next log",
            errno.EFBIG,
        ) from error
    except BaseException:
        discard_quietly(folder, base)
        raise
    reach("compaction.swapped")
    checksums = (crc32c(done.offset_index), crc32c(done.time_index))
    bases = tuple(source.base_offset for source in part)
    return done, Replacement(folder, base, bases, done.size, done.max_timestamp, done.next_offset, checksums)


def write_file(path: str, content: bytes) -> None:
    """A new file of this content, synced."""
    fd = oscalls.open_file(path, writable=True, create=True)
    try:
        oscalls.truncate(fd, 0, path)
        oscalls.write_at(fd, content, 0, path)
        oscalls.sync_data(fd, path)
    finally:
        oscalls.close_file(fd)


# --- swapping ---------------------------------------------------------------------------------------------------------


def swap(replacement: Replacement, change_generation: Callable[[], None], reach: Reach = nothing) -> None:
    """Put a replacement in the place of its sources. Only under the writer lock, with the sources checked to be there.

    ``change_generation`` is called twice: it publishes an odd generation first and an even one at the end. An error in
    between leaves it odd: whoever gets the writer lock next has to call ``finish_swaps`` and publish an even one.
    """
    change_generation()
    reach("compaction.odd")
    install(replacement.folder, replacement.base_offset, replacement.sources[1:], reach)
    change_generation()
    reach("compaction.even")


def install(folder: str, base: int, others: Iterable[int], reach: Reach = nothing) -> None:
    """Let the ``.swap`` files of a segment take its place, and that of the segments ``others``. May be interrupted and
    repeated.

    Between any two steps the folder covers the whole log, by its names and by the rule for ``.swap`` files alike, and
    what is read before the sync is not gone before it.
    """
    stem = f"{folder}/{base:020d}"
    new = f"{stem}.log{SWAP}"
    spare = f"{stem}.log{DELETED}"
    is_moved = is_same_file(new, stem + ".log")
    if not is_moved:
        # a second name first: where there are no hard links this fails before anything changes
        oscalls.remove(spare)
        oscalls.link(new, spare)
    waiting = [suffix for suffix in INDEX_SUFFIXES if oscalls.file_size(f"{stem}{suffix}{SWAP}") is not None]
    for suffix in INDEX_SUFFIXES:
        # behind the move an index without a .swap file is the new one already
        if suffix in waiting or not is_moved:
            oscalls.remove(stem + suffix)
    reach("compaction.indexes_unlinked")
    if not is_moved:
        oscalls.rename(spare, stem + ".log")
    reach("compaction.moved")
    for other in others:
        for suffix in (".log", *INDEX_SUFFIXES, ".snapshot"):
            oscalls.remove(f"{folder}/{other:020d}{suffix}")
    reach("compaction.sources_unlinked")
    for suffix in waiting:
        put_index(f"{stem}{suffix}{SWAP}", stem + suffix)
    reach("compaction.indexes_installed")
    # without it a power cut could keep the loss of the .swap name and forget the move
    oscalls.sync_directory(folder)
    for suffix in (".log", *waiting):
        oscalls.remove(f"{stem}{suffix}{SWAP}")
    reach("compaction.swap_unlinked")
    oscalls.sync_directory(folder)


def put_index(swap: str, path: str) -> None:
    """Give an index its name. A reader that missed the old one may just have stored it again: what it stored goes."""
    for attempt in range(MOST_LINKS):
        try:
            oscalls.link(swap, path)
            return
        except StorageError as error:
            if error.errno != errno.EEXIST or attempt + 1 == MOST_LINKS:
                raise
            oscalls.remove(path)


def is_same_file(first: str, second: str) -> bool:
    """Whether two names are of one file."""
    one, other = oscalls.identity(first), oscalls.identity(second)
    return one is not None and other is not None and one[1] == other[1]


def discard(folder: str, base: int) -> None:
    """Give up a replacement that was not swapped in."""
    stem = f"{folder}/{base:020d}"
    if oscalls.file_size(f"{stem}.log{SWAP}") is not None:
        # until the last of them is gone, something has to say that they are not to be believed
        oscalls.rename(f"{stem}.log{SWAP}", f"{stem}.log{CLEANED}")
        oscalls.sync_directory(folder)
    found = [oscalls.remove(f"{stem}{suffix}{SWAP}") for suffix in INDEX_SUFFIXES]
    if any(found):
        oscalls.sync_directory(folder)
    for suffix in (*INDEX_SUFFIXES, ".log"):
        oscalls.remove(f"{stem}{suffix}{CLEANED}")


def discard_quietly(folder: str, base: int) -> None:
    """Give up a replacement after an error; what cannot be removed now goes when swaps are finished next."""
    try:
        discard(folder, base)
    except StorageError as error:
        logger.warning("could not remove an unfinished compaction from %s: %s", folder, error)


# --- after a crash ----------------------------------------------------------------------------------------------------


def unfinished(names: Iterable[str]) -> bool:
    """Whether a folder with these names has something for ``finish_swaps``."""
    return any(match[3] for match in map(_FILE.fullmatch, names) if match)


def finish_swaps(folder: str, reach: Reach = nothing) -> list[tuple[int, int]]:
    """Finish or discard what an interrupted compaction, of fastlog or of a Kafka broker, has left in a folder.

    To be called by whoever has the log to itself, before segments are looked at, and by the owner of the writer lock
    who finds the generation odd. ``.cleaned`` files go, and with them ``.swap`` files from the smallest of their base
    offsets on. The remaining ``.swap`` files take the place of the segments that they cover. At last files with the
    suffix ``.deleted`` go.

    Returns:
        the offsets covered by each segment that was swapped in: (base offset, offset behind its last batch).

    Raises:
        CorruptLogError: a ``.swap`` file is damaged. Nothing that it should have replaced was touched.
        StorageError: files cannot be read, renamed or removed. Calling it again goes on where it was.
    """
    names = oscalls.list_directory(folder)
    if not unfinished(names):
        return []
    by_kind: dict[str, list[tuple[int, str, str]]] = {CLEANED: [], SWAP: [], DELETED: []}
    for name in names:
        match = _FILE.fullmatch(name)
        if match and match[3]:
            by_kind[match[3]].append((int(match[1]), match[2], f"{folder}/{name}"))
    swaps = by_kind[SWAP]
    if by_kind[CLEANED]:
        first = min(base for base, _, _ in by_kind[CLEANED])
        for _, _, path in (item for item in swaps if item[0] >= first):
            oscalls.remove(path)
        swaps = [item for item in swaps if item[0] < first]
        # a .swap file that comes back must find a .cleaned one that says not to believe it
        oscalls.sync_directory(folder)
        for _, _, path in by_kind[CLEANED]:
            oscalls.remove(path)
    finished = []
    for base in sorted(base for base, kind, _ in swaps if kind == ".log"):
        end = finish_swap(folder, base, reach)
        if end is not None:
            finished.append((base, end))
    for base, kind, path in swaps:
        if kind != ".log" and oscalls.file_size(path) is not None:
            finish_index(f"{folder}/{base:020d}", kind, path)
    # last: until here they could have been all that is left of something
    for _, _, path in by_kind[DELETED]:
        oscalls.remove(path)
    oscalls.sync_directory(folder)
    return finished


def finish_swap(folder: str, base: int, reach: Reach = nothing) -> int | None:
    """Swap in what ``<base>.log.swap`` stands for: the offset behind it. None when it was given up."""
    path = f"{folder}/{base:020d}.log"
    end = swap_end(path + SWAP, base)
    old_size = oscalls.file_size(path)
    if end == base and old_size and not is_same_file(path, path + SWAP):
        # Nothing says what an empty file has replaced. Old records more do no harm, the next round finds them again.
        logger.warning("%s is empty and not used: %s still has its records", path + SWAP, path)
        discard(folder, base)
        return None
    names = oscalls.list_directory(folder)
    others = [other for other in numbered(names) if base < other < end]
    logger.warning("finishing a compaction: %s%s takes the place of offsets %d to %d", path, SWAP, base, end - 1)
    install(folder, base, others, reach)
    return end


def numbered(names: Iterable[str]) -> list[int]:
    """Base offsets in the names of ordinary segments, indexes and snapshots, rising."""
    return sorted({int(match[1]) for match in map(_FILE.fullmatch, names) if match and not match[3]})


def finish_index(stem: str, suffix: str, path: str) -> None:
    """An index whose segment was swapped in already."""
    if oscalls.file_size(stem + ".log") is None or is_same_file(path, stem + suffix):
        oscalls.remove(path)
    else:
        oscalls.rename(path, stem + suffix)


def swap_end(path: str, base: int) -> int:
    """Offset behind the last batch of a ``.swap`` file, every checksum in it verified. Raises CorruptLogError."""
    size = oscalls.file_size(path) or 0
    result = scan(path, 0, size, base, True, -1, False)
    if result.problem is not None:
        raise CorruptLogError(
            f"{path}, position {result.position}: {result.problem}. It was to take the place of segments that are "
            f"still there, and nothing was touched: move it out of the folder to go on without it",
            path,
            result.position,
            result.next_offset,
            None,
        )
    return int(result.next_offset)


def current_segments(folder: str) -> dict[int, str]:
    """The segment files to read, by base offset, rising: also in the middle of a swap, which is not touched.

    A file that vanishes after that, or offsets that repeat, mean that a swap went on: look again.
    """
    for _ in range(100):
        names = oscalls.list_directory(folder)
        try:
            return covering(folder, names)
        except StorageError as error:
            if error.errno != errno.ENOENT:
                raise
    raise StorageError(f"{folder} changed while it was looked at, again and again: try again", errno.EAGAIN)


def covering(folder: str, names: Iterable[str]) -> dict[int, str]:
    """The segment files to read among these names of a folder. Raises StorageError (ENOENT) when one has vanished."""
    names = list(names)
    found = {base: files.segment_path(folder, base) for base in files.segment_bases(names)}
    parts = [match for match in map(_FILE.fullmatch, names) if match]
    first_rubbish = min((int(match[1]) for match in parts if match[3] == CLEANED), default=None)
    for match in sorted(parts, key=lambda part: part[1]):
        base = int(match[1])
        if match[2] != ".log" or match[3] != SWAP or (first_rubbish is not None and base >= first_rubbish):
            continue
        path = f"{folder}/{match[0]}"
        end = swap_end(path, base)
        if end == base and base in found:
            continue
        for other in [other for other in found if base <= other < end]:
            del found[other]
        found[base] = path
    return dict(sorted(found.items()))
