"""From the files of a folder to a partition that can be used, after a clean close and after everything else.

Clean close: ``.fastlog-clean`` names every segment and its size; when they agree nothing is read.

Otherwise the segments are scanned from the recovery point on: lengths, magic, CRC, leader epoch, base offsets rising
without holes. The log ends where that stops holding. What follows was never acknowledged as durable: it is cut, but the
bytes are kept in a side file, later segments are moved aside, and everything is reported. Bytes *below* the recovery
point are never cut (invariant I6): missing ones refuse the opening, damaged ones are a CorruptLogError when read.

A folder without ``.fastlog-meta`` was written by somebody else (Kafka). It has no recovery point, so it is scanned as a
whole, and only a torn tail at its very end is cut. It begins where the checkpoint beside the folder says.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from fastlog._native import oscalls
from fastlog._native.checksum import crc32c
from fastlog._native.scanner import ScanResult, scan
from fastlog._native.segment import Segment
from fastlog._native.transactions import TransactionIndex
from fastlog.config import LogConfig, ResolvedConfig
from fastlog.errors import CorruptLogError, StorageError, UnsupportedFormatError
from fastlog.partition import files, snapshots
from fastlog.partition.files import Meta

if TYPE_CHECKING:
    from fastlog.reports import CutTail, RecoveryReport

logger = logging.getLogger("fastlog.recovery")

ANY_EPOCH = -1
KNOWN_SUFFIXES = (".log", ".index", ".timeindex", ".txnindex", ".snapshot", ".tmp", ".deleted")
KNOWN_NAMES = (
    files.META,
    files.CLEAN,
    files.INDEXES,
    files.CONTROL,
    files.POISONED,
    files.EPOCHS,
    files.PARTITION_METADATA,
)
# as ``oscalls.replace_file``, and a repair, name what gets its own name in a moment
_TEMPORARY = re.compile(r"(.+)\.(?:[0-9a-f]{8}|repair)\.tmp")


@dataclass(slots=True)
class OpenedPartition:
    """A partition ready for use: ``segments`` rise by base offset, the last one is the active one."""

    folder: str
    meta: Meta
    config: ResolvedConfig
    segments: list[Segment]
    end_offset: int
    is_clean: bool
    report: RecoveryReport | None
    first_unstable_offset: int = -1
    last_producer_offset: int = -1
    aborted: bytes = b""


@dataclass(slots=True)
class _Findings:
    """What a recovery did, as it goes."""

    scanned_bytes: int = 0
    scanned_batches: int = 0
    cut: list[CutTail] = field(default_factory=list)
    moved_aside: list[str] = field(default_factory=list)
    last_producer_offset: int = -1


def new_segment(
    folder: str,
    base_offset: int,
    size: int,
    meta: Meta,
    config: ResolvedConfig,
    *,
    stores: bool = True,
    index_checksums: tuple[int, int, int | None] | None = None,
    path: str | None = None,
) -> Segment:
    """A Segment object for a file of this partition; opens nothing. ``stores``: it may write rebuilt indexes.

    ``path``: where it is, when its name is not that of a segment (``compaction.current_segments``).
    """
    gaps = meta.allows_gaps(base_offset)
    path = path or files.segment_path(folder, base_offset)
    identity = oscalls.identity(path)
    return Segment(
        path,
        size,
        segment_bytes=config.segment_bytes,
        index_bytes=config.segment_index_bytes,
        interval=config.index_interval_bytes,
        epoch=ANY_EPOCH if gaps else meta.epoch,
        gaps=gaps,
        maps=config.mmap,
        stores=stores,
        index_checksums=index_checksums,
        inode=identity[1] if identity is not None else 0,
        max_decompressed_bytes=config.max_decompressed_bytes,
    )


def open_partition(folder: str, config: LogConfig, *, read_only: bool) -> OpenedPartition:
    """Open the files of a locked folder; a read-only opening changes nothing on disk.

    Raises CorruptLogError, UnsupportedFormatError, ConfigError or StorageError; nothing was changed then.
    """
    opened = open_segments(folder, config, read_only=read_only)
    recover_producers(opened, read_only=read_only)
    return opened


def has_unfinished_compaction(names: list[str]) -> bool:
    """Whether a folder with these names holds files that an interrupted compaction has left."""
    return any(name.endswith((".swap", ".cleaned", ".deleted")) for name in names)


def recover_producers(opened: OpenedPartition, *, read_only: bool) -> None:
    """What the log tells of producers and transactions; nothing is read when no batch carries a producer id."""
    meta, folder, active = opened.meta, opened.folder, opened.segments[-1]
    known = meta.last_producer_offset
    last = max(known, opened.last_producer_offset)
    if last == -1 and known != files.PRODUCERS_UNKNOWN:
        for segment in opened.segments:
            segment.aborted, segment.transaction_checksum = b"", 0
        meta.last_producer_offset = -1
        return
    names = oscalls.list_directory(folder)
    offsets = snapshots.snapshot_offsets(names)
    beyond = [offset for offset in offsets if offset > opened.end_offset]
    if beyond and not read_only:
        # they tell of records that were cut, and would be believed when others take their place
        snapshots.remove_snapshots(folder, beyond)
        oscalls.sync_directory(folder)
    sizes = [(segment.base_offset, segment.size) for segment in opened.segments]
    paths = {segment.base_offset: segment.path for segment in opened.segments}
    content = snapshots.read_transaction_index(active.path, active.base_offset, opened.end_offset)
    is_vouched = opened.is_clean and content is not None and active.transaction_checksum == crc32c(content)
    now = oscalls.wall_clock() if known != files.PRODUCERS_UNKNOWN else -1
    rebuilt = snapshots.rebuild(
        folder,
        names,
        sizes,
        opened.end_offset,
        now=now,
        from_offset=None if is_vouched else active.base_offset,
        paths=paths,
    )
    if rebuilt.damages:
        logger.warning("%s: %d damaged stretches: transactions that ended there look open", folder, rebuilt.damages)
    if not is_vouched:
        found = rebuilt.transactions.get(active.base_offset, b"")
        if found != content and not read_only:
            TransactionIndex(files.transaction_index_path(active.path), active.base_offset).replace(found)
        content = found
    opened.aborted = content or b""
    active.transaction_checksum = crc32c(opened.aborted)
    unstable = rebuilt.states.first_unstable_offset
    opened.first_unstable_offset = -1 if unstable is None else unstable
    opened.last_producer_offset = meta.last_producer_offset = max(last, rebuilt.states.last_producer_offset, -1)


def open_segments(folder: str, config: LogConfig, *, read_only: bool) -> OpenedPartition:
    """Find the segments of a locked folder and where the log ends."""
    names = oscalls.list_directory(folder)
    if not read_only:
        remove_temporary_files(folder, names)
    replaced: list[tuple[int, int]] = []
    paths: dict[int, str] = {}
    is_between = False
    if has_unfinished_compaction(names):
        from fastlog.partition import compaction  # which few logs ever need

        if read_only:
            # nobody finishes a swap for a reader: it goes by what the files say
            is_between = True
            paths = compaction.current_segments(folder)
        else:
            if any(name.endswith(compaction.SWAP) for name in names):
                forget_clean_marker(folder)
            replaced = compaction.finish_swaps(folder)
            names = oscalls.list_directory(folder)
    bases = list(paths) if is_between else files.segment_bases(names)
    marker = None if is_between else files.read_clean_marker(folder)
    try:
        meta = files.read_meta(folder)
    except CorruptLogError:
        # before its first segment exists a log has nothing to lose: its creation was interrupted
        if marker is None and bases:
            raise
        meta = None
    is_copied = False
    if meta is None and marker is not None:
        logger.warning("%s/%s is lost or damaged: its copy in %s is used", folder, files.META, files.CLEAN)
        meta = marker.meta
        is_copied = True
    elif meta is None and bases and files.META in names:
        logger.warning(
            "%s/%s is empty, as if who made it had died: all of the log is checked; it begins at its first segment, or "
            "where %s beside the folder says",
            folder,
            files.META,
            files.LOG_STARTS,
        )
    if meta is None:
        refuse_foreign(folder, names, bases)
    resolved = config.resolve(meta.layout if meta is not None else None)
    if files.is_unmade(bases, meta):
        return create(folder, names, resolved, read_only=read_only)
    if meta is not None:
        for first, end in replaced:
            meta.allow_gaps(first, end)
    if meta is not None:
        bases = leave_out_deleted(folder, meta, bases, read_only=read_only)
        if bases and meta.recovery_segment < bases[0] <= meta.start_offset:
            # deleted to its end, and rolled over after that: what is left begins behind it
            meta.recovery_segment = meta.recovery_point = bases[0]
            meta.recovery_position = 0
        is_short = oscalls.file_size(f"{folder}/{files.META}") != 2 * files.SLOT_BYTES
        if bases and not read_only and (is_copied or is_short):
            # lost or damaged: everybody locks it and reads it, and the marker that has its copy goes before any change
            files.write_meta(folder, meta)
    sizes = {base: oscalls.file_size(paths.get(base) or files.segment_path(folder, base)) or 0 for base in bases}
    epochs = files.read_epochs(folder)
    # each session of a broker has an epoch of its own, though it may have changed nothing but the start
    leader = epochs[-1][0] if meta is not None and bases and epochs and epochs[-1][0] != meta.epoch else None
    if meta is not None and marker is not None and files.POISONED not in names and leader is None:
        by_name = {f"{base:020d}.log": size for base, size in sizes.items()}
        is_all = marker.meta.recovery_point == marker.end_offset >= meta.start_offset
        if by_name == marker.files and is_all:
            if not read_only and meta.inode != oscalls.inode(folder):
                meta = take_over_copy(folder, marker)
            checksums = files.read_index_checksums(folder)
            segments = [
                new_segment(
                    folder,
                    base,
                    size,
                    meta,
                    resolved,
                    stores=not read_only,
                    index_checksums=files.checksums_of(checksums, base, size, is_clean=True),
                )
                for base, size in sizes.items()
            ]
            return OpenedPartition(folder, meta, resolved, segments, marker.end_offset, True, None)
    if meta is not None and leader is not None:
        # what is known of the log does not hold any more
        logger.warning("%s was written by a leader of epoch %d: all of it is checked", folder, leader)
        start = meta.start_offset
        return recover(folder, names, None, sizes, resolved, read_only=read_only, paths=paths, start_offset=start)
    if meta is not None and marker is not None:
        if meta.inode != oscalls.inode(folder):
            refuse_incomplete_copy(folder, marker, sizes)
        refuse_unnoticed_loss(folder, meta, marker, sizes)
    return recover(folder, names, meta, sizes, resolved, read_only=read_only, paths=paths)


def take_over_copy(folder: str, marker: files.CleanMarker) -> Meta:
    """The meta file of a copy of a log that was closed cleanly, which is a log like any other from now on.

    Nobody knows whether the copy is on the disk: its recovery point holds when it is.
    """
    for name in marker.files:
        oscalls.sync_file(f"{folder}/{name}")
    oscalls.sync_directory(folder)
    oscalls.sync_parents(folder)
    # what was copied of the meta file may be newer than the segments
    meta = marker.meta
    meta.inode = oscalls.inode(folder)
    files.write_meta(folder, meta)
    return meta


def forget_clean_marker(folder: str) -> None:
    """Before an interrupted compaction is finished: the marker names the sizes of segments that go in it, and who comes
    after a crash would miss their bytes. Its copy of the meta file takes the place of one that is lost or damaged."""
    marker = files.read_clean_marker(folder)
    if marker is None:
        return
    try:
        is_there = files.read_meta(folder) is not None
    except CorruptLogError:
        is_there = False
    if not is_there:
        logger.warning("%s/%s is damaged: its copy in %s is used", folder, files.META, files.CLEAN)
        files.write_meta(folder, marker.meta)
    oscalls.remove(f"{folder}/{files.CLEAN}")
    oscalls.sync_directory(folder)


def remove_temporary_files(folder: str, names: list[str]) -> None:
    """Remove files that somebody was writing when he died."""
    for name in names:
        match = _TEMPORARY.fullmatch(name) if name.endswith(".tmp") else None
        # a store may be writing the metadata of a partition just now
        if match is None or match[1] == files.PARTITION_METADATA:
            continue
        if match[1] in KNOWN_NAMES or match[1].endswith(KNOWN_SUFFIXES):
            oscalls.remove(f"{folder}/{name}")


def refuse_foreign(folder: str, names: list[str], bases: list[int]) -> None:
    """Raise UnsupportedFormatError for a folder that holds something else than a log."""
    strangers = [name for name in names if name not in KNOWN_NAMES and not name.endswith(KNOWN_SUFFIXES)]
    if not bases and strangers:
        raise UnsupportedFormatError(
            f"{folder} is not a log: it has no segment (<20 digits>.log) but holds {min(strangers)!r}; "
            f"nothing was touched — name an empty or a new folder"
        )
    unfinished = [name for name in names if name.endswith((".swap", ".cleaned"))]
    if unfinished:
        raise UnsupportedFormatError(
            f"{folder} holds an unfinished compaction ({min(unfinished)}): open it once for writing, which finishes it"
        )


def create(folder: str, names: list[str], config: ResolvedConfig, *, read_only: bool) -> OpenedPartition:
    """A new, empty partition."""
    if read_only:
        raise StorageError(f"{folder} holds no log yet: open it for writing once, or check the path")
    if files.PARTITION_METADATA not in names:
        # who made the folder may be about to sync the one above; a store has done so when it has named a folder
        oscalls.sync_parents(folder)
    meta = Meta(layout=config.layout())
    segment = new_segment(folder, 0, 0, meta, config)
    meta.inode = oscalls.inode(folder)
    files.write_epochs(folder, [(meta.epoch, 0)])
    files.write_meta(folder, meta)
    segment.begin_appending()
    oscalls.sync_directory(folder)
    return OpenedPartition(folder, meta, config, [segment], 0, False, None)


def recover(
    folder: str,
    names: list[str],
    meta: Meta | None,
    sizes: dict[int, int],
    config: ResolvedConfig,
    *,
    read_only: bool,
    paths: Mapping[int, str],
    start_offset: int = 0,
) -> OpenedPartition:
    """Find the end of a log that was not closed cleanly, and put everything behind it aside.

    ``paths``: of segments that a reader finds under another name (``compaction.current_segments``).
    ``start_offset``: of a log without ``meta``, where it began before somebody else had it.
    """
    is_foreign = is_unknown = meta is None
    bases = list(sizes)
    if meta is None:
        epochs = files.read_epochs(folder)
        meta = Meta(
            layout=config.layout(),
            start_offset=max(bases[0], start_offset),
            recovery_point=bases[0],
            recovery_segment=bases[0],
            epoch=epochs[-1][0] if epochs else 0,
        )
        meta.allow_gaps(bases[0], bases[-1])
    elif bases and meta.inode != oscalls.inode(folder):
        # a copy, perhaps made while somebody appended: nothing is known to be whole
        logger.warning("%s is a copy of a log: all of it is checked", folder)
        is_unknown = True
        meta.recovery_point = meta.recovery_segment = bases[0]
        meta.recovery_position = 0
    meta.inode = oscalls.inode(folder)
    check_durable_bytes(folder, meta, sizes)
    read_from_disk(folder, meta, bases)
    findings = _Findings()
    kept: dict[int, int] = {base: size for base, size in sizes.items() if base < meta.recovery_segment}
    end_offset = meta.recovery_point
    position = meta.recovery_position
    remaining = [base for base in bases if base >= meta.recovery_segment]
    while remaining:
        base = remaining.pop(0)
        path = paths.get(base) or files.segment_path(folder, base)
        gaps = meta.allows_gaps(base)
        if base != meta.recovery_segment:
            if not sizes[base] and base < end_offset:
                # left behind by a roll that failed
                if not read_only:
                    remove_segment(path)
                continue
            if base != end_offset and not (gaps and base > end_offset):
                # a hole or an overlap between segments: the log ends before it
                if is_unknown:
                    raise incomplete(folder, end_offset, base)
                move_aside([base, *remaining], folder, findings, read_only=read_only)
                break
            end_offset = base
        result = scan(path, position, sizes[base], end_offset, gaps, ANY_EPOCH if gaps else meta.epoch, False)
        findings.scanned_bytes += result.position - position
        findings.scanned_batches += result.batches
        findings.last_producer_offset = max(findings.last_producer_offset, result.last_producer_offset)
        end_offset = result.next_offset
        kept[base] = result.position
        position = 0
        if result.problem is not None:
            if is_unknown:
                refuse_damage(path, result, is_first_look=is_foreign and base == bases[0])
                if any(sizes[later] for later in remaining):
                    raise incomplete(folder, end_offset, remaining[0])
            cut_tail(path, result, sizes[base], findings, read_only=read_only)
            move_aside(remaining, folder, findings, read_only=read_only)
            break
    checksums = files.read_index_checksums(folder)
    active = max(kept)
    segments = [
        new_segment(
            folder,
            base,
            size,
            meta,
            config,
            stores=not read_only,
            index_checksums=files.checksums_of(checksums, base, size) if base != active else None,
            path=paths.get(base),
        )
        for base, size in kept.items()
    ]
    recovery_point = meta.recovery_point
    # the start may have been raised over records that power loss took
    meta.start_offset = min(meta.start_offset, end_offset)
    theirs = files.start_for_brokers(folder) if is_foreign else 0
    if meta.start_offset < theirs <= end_offset:
        meta.start_offset = theirs
    if meta.last_producer_offset != files.PRODUCERS_UNKNOWN:
        # the next recovery begins at the point that is written now: it will not see these batches
        meta.last_producer_offset = max(meta.last_producer_offset, findings.last_producer_offset)
    if not read_only:
        settle(folder, names, meta, segments, end_offset)
    from fastlog.reports import RecoveryReport

    report = RecoveryReport(
        recovery_point,
        end_offset,
        findings.scanned_bytes,
        findings.scanned_batches,
        tuple(findings.cut),
        tuple(findings.moved_aside),
        (segments[-1].index_path, segments[-1].time_index_path),
    )
    for tail in report.cut:
        kept_in = f"kept in {tail.side_file}" if tail.side_file else "all of them zero"
        logger.warning("cut %d bytes at %d of %s (%s), %s", tail.size, tail.position, tail.path, tail.reason, kept_in)
    for path in report.moved_aside:
        logger.warning("moved a segment beyond the end of the log aside: %s", path)
    opened = OpenedPartition(folder, meta, config, segments, end_offset, False, report)
    opened.last_producer_offset = findings.last_producer_offset
    return opened


def leave_out_deleted(folder: str, meta: Meta, bases: list[int], *, read_only: bool) -> list[int]:
    """Finish a deletion that was cut short: segments wholly below the log start are no part of the log any more."""
    kept = files.bases_in_log(bases, meta.start_offset)
    if not read_only:
        for base in bases[: len(bases) - len(kept)]:
            remove_segment(files.segment_path(folder, base))
    return kept


def read_from_disk(folder: str, meta: Meta, bases: list[int]) -> None:
    """What is not known to be durable is read from the disk, not from the page cache.

    A sync may have failed and its process have died before it could say so: the kernel then keeps pages that the disk
    never got and takes them for clean.
    """
    for base in bases:
        if base < meta.recovery_segment:
            continue
        path = files.segment_path(folder, base)
        oscalls.sync_file(path)
        oscalls.drop_cache(path, meta.recovery_position if base == meta.recovery_segment else 0)


def check_durable_bytes(folder: str, meta: Meta, sizes: dict[int, int]) -> None:
    """Raise CorruptLogError when bytes below the recovery point are missing."""
    path = files.segment_path(folder, meta.recovery_segment)
    found = sizes.get(meta.recovery_segment)
    if found is None or found < meta.recovery_position:
        state = "is missing" if found is None else f"has only {found} bytes"
        raise CorruptLogError(
            f"{path} {state}, but {meta.recovery_position} bytes of it (records up to offset {meta.recovery_point}) "
            f"were durable: nothing was touched. Bring the file back, or give those records up with "
            f"`fastlog log repair {folder}`",
            path,
            found or 0,
            None,
            None,
        )


def incomplete(folder: str, end_offset: int, following: int) -> CorruptLogError:
    """The error for a log of unknown history whose segments do not continue each other."""
    return CorruptLogError(
        f"offsets {end_offset} to {following - 1} are in no segment of {folder}: a file is missing or was cut off, "
        f"perhaps while it was copied; nothing was touched. Copy it again, or give those records up with "
        f"`fastlog log repair`",
        files.segment_path(folder, following),
        0,
        end_offset,
        following,
    )


def refuse_incomplete_copy(folder: str, marker: files.CleanMarker, sizes: dict[int, int]) -> None:
    """A copy of a cleanly closed log has every file that its marker names, whole. Raises CorruptLogError."""
    for name, size in marker.files.items():
        found = sizes.get(int(name.removesuffix(".log")))
        if found is None or found < size:
            state = "is missing" if found is None else f"has only {found} of {size} bytes"
            raise CorruptLogError(
                f"{folder} is an incomplete copy of a log: {name} {state}; nothing was touched. Copy it again, or give "
                f"those records up with `fastlog log repair`",
                f"{folder}/{name}",
                found or 0,
            )


def refuse_unnoticed_loss(folder: str, meta: Meta, marker: files.CleanMarker, sizes: dict[int, int]) -> None:
    """Where offsets may skip nobody would notice that the end of a segment, or all of it, is missing. Raises
    CorruptLogError; in other places the rest can be read, up to the hole."""
    for name, size in marker.files.items():
        base = int(name.removesuffix(".log"))
        found = sizes.get(base)
        before = max((other for other in sizes if other <= base), default=None)
        if before is not None and meta.allows_gaps(before) and (found is None or found < size):
            state = "is missing" if found is None else f"has only {found} bytes"
            raise CorruptLogError(
                f"{folder}/{name} {state}, but {size} bytes of it were durable: nothing was touched. Bring the file "
                f"back, or give those records up with `fastlog log repair {folder}`",
                f"{folder}/{name}",
                found or 0,
            )


def refuse_damage(path: str, result: ScanResult, *, is_first_look: bool) -> None:
    """In a log without a recovery point only the torn tail of a segment may be cut; the rest is somebody's data.

    ``is_first_look``: the file is the first one of a folder that fastlog has not written.
    """
    if result.is_old_format:
        raise UnsupportedFormatError(
            f"{path}, position {result.position}: message format 0 or 1 (before Kafka 0.11), expected batches v2; "
            f"nothing was touched — let Kafka 3 or older rewrite the topic first"
        )
    if is_first_look and result.position == 0 and result.resumes_at < 0 and not result.is_all_zero:
        raise UnsupportedFormatError(f"{path} is no Kafka log: {result.problem} at position 0; nothing was touched")
    if result.resumes_at >= 0 or not (result.is_torn or result.is_all_zero):
        why = "valid batches follow" if result.resumes_at >= 0 else "it does not look like an interrupted write"
        raise CorruptLogError(
            f"{path}, position {result.position}, offset {result.next_offset}: {result.problem}, and {why}; "
            f"nothing was touched. `fastlog log repair` moves the damaged bytes to a side file",
            path,
            result.position,
            result.next_offset,
            result.resume_offset if result.resumes_at >= 0 else None,
        )


def side_file(path: str, position: int) -> str:
    """A free name for bytes cut from ``path`` at ``position``."""
    name = candidate = f"{path}.torn-{position}"
    number = 1
    while oscalls.file_size(candidate) is not None:
        number += 1
        candidate = f"{name}.{number}"
    return candidate


def cut_tail(path: str, result: ScanResult, size: int, findings: _Findings, *, read_only: bool) -> None:
    """Cut a segment behind its last good batch; the bytes go to a side file unless they are all zero."""
    kept_in = None
    if not read_only:
        if not result.is_all_zero:
            kept_in = side_file(path, result.position)
            files.copy_range(path, result.position, size - result.position, kept_in)
            oscalls.sync_directory(path.rpartition("/")[0])
        fd = oscalls.open_file(path, writable=True)
        try:
            oscalls.truncate(fd, result.position, path)
            oscalls.sync_data(fd, path)
        finally:
            oscalls.close_file(fd)
    from fastlog.reports import CutTail

    findings.cut.append(CutTail(path, result.position, size - result.position, result.problem or "", kept_in))


def move_aside(bases: list[int], folder: str, findings: _Findings, *, read_only: bool) -> None:
    """Rename segments beyond the end of the log; their indexes go: a segment made anew must not find them beside it."""
    for base in bases:
        path = files.segment_path(folder, base)
        if read_only:
            findings.moved_aside.append(path)
            continue
        target = side_file(path, 0)
        oscalls.rename(path, target)
        for index in (*files.index_paths(path), files.transaction_index_path(path)):
            oscalls.remove(index)
        findings.moved_aside.append(target)


def remove_segment(path: str) -> None:
    """Remove a segment with its indexes."""
    for name in files.segment_files(path):
        oscalls.remove(name)


def settle(folder: str, names: list[str], meta: Meta, segments: list[Segment], end_offset: int) -> None:
    """Make what recovery found the durable truth, so that it need not be found again."""
    active = segments[-1]
    active.begin_appending()
    present = set(names)
    for segment in segments[:-1]:
        indexes = {path.rpartition("/")[2] for path in files.index_paths(segment.path)}
        if segment.index_checksums is None or not indexes <= present:
            segment.load_indexes()
    for segment in segments:
        if segment.base_offset >= meta.recovery_segment:
            segment.sync()
    for base in snapshots.stray_transaction_indexes(names, ()):
        if base > active.base_offset:
            # of a segment that was moved aside: there may be another one of that name
            oscalls.remove(files.transaction_index_path(files.segment_path(folder, base)))
    # it did not agree with the files: they must not grow to agree with it
    oscalls.remove(f"{folder}/{files.CLEAN}")
    oscalls.sync_directory(folder)
    if files.read_epochs(folder) is None:
        files.write_epochs(folder, [(meta.epoch, meta.start_offset)])
    advance_recovery_point(meta, active, end_offset)
    files.write_meta(folder, meta)
    if files.META not in names:
        # a start that is raised later is kept in it, and has to be found again
        oscalls.sync_directory(folder)
    if files.POISONED in names:
        oscalls.remove(f"{folder}/{files.POISONED}")
        oscalls.sync_directory(folder)


def advance_recovery_point(meta: Meta, active: Segment, end_offset: int) -> None:
    """Move the recovery point to the published end of the active segment."""
    meta.recovery_point = end_offset
    meta.recovery_segment = active.base_offset
    meta.recovery_position = active.size
