"""Moving damaged bytes to side files, so that the rest of a log works again.

Besides deletion and compaction this is the only code that removes durable bytes.

Every damaged stretch of a segment is copied to ``<segment>.log.torn-<position>`` and synced; then the segment is
written anew without it, under a temporary name, and renamed over the old one. The offsets stay: a repaired segment has
a hole, which ``.fastlog-meta`` records as legal. The end offset never goes back, so that no offset is used twice.

A repair may be cut short anywhere: what it leaves is the log as it was, with fewer damages. Everything is read first.
Then the clean marker goes, and a damaged log gets a new segment behind the others, so that the recovery point lies in
none that is rewritten: recovery takes no byte away below it. Of each segment ``.fastlog-meta`` says
beforehand that it is being rewritten: its holes are legal in the new file, and still damage in the old one.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from typing import Final

from fastlog._native import oscalls
from fastlog._native.checksum import crc32c
from fastlog._native.inspect import scan_segment
from fastlog._native.transactions import TransactionIndex, pack_entries, unpack_entries
from fastlog.config import MOST_MAX_DECOMPRESSED_BYTES, LogConfig
from fastlog.errors import CorruptLogError
from fastlog.partition import files, snapshots
from fastlog.partition.files import Meta
from fastlog.partition.recovery import (
    ANY_EPOCH,
    forget_clean_marker,
    new_segment,
    refuse_foreign,
    remove_temporary_files,
    side_file,
)
from fastlog.partition.verify import damages_of, missing
from fastlog.reports import Damage, RepairReport

logger = logging.getLogger("fastlog.repair")

NO_CHECKSUM: Final = 1 << 32  # of an index file that is not there yet: no CRC-32C is that large


def repair(folder: str) -> RepairReport:
    """Repair the files of a locked folder. Raises StorageError when a side file cannot be written: nothing is lost."""
    names = oscalls.list_directory(folder)
    bases = files.segment_bases(names)
    refuse_foreign(folder, names, bases)
    remove_temporary_files(folder, names)
    side_files: list[str] = []
    damages: list[Damage] = []
    meta = usable_meta(folder, bases, side_files, damages)
    config = LogConfig().resolve(meta.layout)
    end_offset = bases[0] if bases else meta.start_offset
    if bases and meta.start_offset < bases[0]:
        damages.append(missing(files.segment_path(folder, bases[0]), meta.start_offset, bases[0]))
        meta.start_offset = bases[0]
    sizes = {base: oscalls.file_size(files.segment_path(folder, base)) or 0 for base in bases}
    damaged: dict[int, list[Damage]] = {}
    holes: list[tuple[int, int]] = []
    for base in bases:
        path = files.segment_path(folder, base)
        if base > end_offset:
            damages.append(missing(path, end_offset, base))
            holes.append((max(other for other in bases if other < base), base))
        # it may never have been synced, and what is in memory need not be what the disk has
        oscalls.sync_file(path)
        oscalls.drop_cache(path)
        gaps = meta.allows_gaps(base)
        found, _, _, end_offset, last_producer_offset = damages_of(
            path,
            sizes[base],
            base,
            gaps=gaps,
            epoch=ANY_EPOCH if gaps else meta.epoch,
            # what somebody could read with another setting is not damaged
            max_decompressed_bytes=MOST_MAX_DECOMPRESSED_BYTES,
        )
        if found:
            damages += found
            damaged[base] = found
        if meta.last_producer_offset != files.PRODUCERS_UNKNOWN:
            # the next opening begins at the recovery point that is written now: it will not see these batches
            meta.last_producer_offset = max(meta.last_producer_offset, last_producer_offset)
    lost_from, end_offset = end_offset, max(end_offset, meta.recovery_point)
    forget_clean_marker(folder)
    if not files.read_epochs(folder):
        # before the meta file: who does not find it after that goes by the list
        tell_epochs(folder, bases, meta, end_offset)
    last = bases[-1] if bases else None
    if lost_from < end_offset:
        # records that were durable are gone: their offsets are not used again
        damages.append(missing(files.segment_path(folder, end_offset), lost_from, end_offset))
        if last is not None:
            holes.append((last, end_offset))
    if last is None or (last != end_offset and (lost_from < end_offset or damaged)):
        # behind whatever is rewritten, and behind the snapshot of a clean close, which knows what is cut out
        segment = new_segment(folder, end_offset, 0, meta, config)
        segment.begin_appending()
        segment.sync()
        last, sizes[end_offset] = end_offset, 0
    meta.recovery_point, meta.recovery_segment = end_offset, last
    meta.recovery_position = sizes[last] - sum(damage.size for damage in damaged.get(last, ()))
    meta.start_offset = min(meta.start_offset, end_offset)
    meta.inode = oscalls.inode(folder)
    oscalls.sync_directory(folder)
    rebuilt: list[str] = []
    with files.MetaFile(folder) as meta_file:
        meta_file.write(meta)
        for base, found in damaged.items():
            behind = min((other for other in sizes if other > base), default=end_offset)
            side_files += rewrite(folder, base, behind, sizes, found, meta, meta_file)
        checksums = files.read_index_checksums(folder)
        for first, behind in holes:
            meta.allow_gaps(first, behind)
        for base in bases:
            segment = new_segment(folder, base, oscalls.file_size(files.segment_path(folder, base)) or 0, meta, config)
            segment.rebuild_indexes(segment.size)
            segment.force_last_time_entry()
            segment.store_indexes()
            known = files.checksums_of(checksums, base, segment.size)
            segment.transaction_checksum = known[2] if known is not None else None
            segment.index_checksums = segment.compute_checksums()
            checksums[base] = files.checksum_entry(segment)
            rebuilt += [segment.index_path, segment.time_index_path]
        files.write_index_checksums(folder, {base: checksums[base] for base in bases if base != last})
        meta_file.write(meta)
    oscalls.remove(f"{folder}/{files.POISONED}")
    oscalls.sync_directory(folder)
    for damage in damages:
        logger.warning("%s, position %d: %s", damage.path, damage.position, damage.reason)
    return RepairReport(folder, tuple(damages), tuple(side_files), tuple(rebuilt))


def usable_meta(folder: str, bases: list[int], side_files: list[str], damages: list[Damage]) -> Meta:
    """The meta file, its copy in the clean marker, or one made from the segments; an unreadable file is copied aside.

    It stays where it is until the new one is written over it: without any the log would be taken for one that Kafka
    wrote.
    """
    path = f"{folder}/{files.META}"
    damaged = 0
    try:
        meta = files.read_meta(folder)
    except CorruptLogError:
        target = side_file(path, 0)
        damaged = files.copy_range(path, 0, oscalls.file_size(path) or 0, target)
        side_files.append(target)
        oscalls.sync_directory(folder)
        meta = None
    if meta is None:
        marker = files.read_clean_marker(folder)
        if marker is not None:
            meta = marker.meta
            # before the marker goes: it has the only copy
            files.write_meta(folder, meta)
    epochs = files.read_epochs(folder)
    if meta is not None and (not epochs or epochs[-1][0] == meta.epoch):
        return meta
    first = bases[0] if bases else 0
    if meta is None and damaged:
        reason = "neither of its two copies checks out: the log begins at its first segment, deleted records come back"
        damages.append(Damage(path, 0, damaged, first, first, reason))
    made = Meta(
        LogConfig().resolve().layout(),
        start_offset=first,
        recovery_point=first,
        recovery_segment=first,
        epoch=epochs[-1][0] if epochs else ANY_EPOCH,
        last_producer_offset=files.PRODUCERS_UNKNOWN,
    )
    if meta is not None:
        # a broker had the log in the meantime: no more than this holds still
        made.layout = meta.layout
        made.start_offset, made.recovery_point = max(first, meta.start_offset), max(first, meta.recovery_point)
    if bases:
        made.allow_gaps(bases[0], bases[-1])
    return made


def tell_epochs(folder: str, bases: list[int], meta: Meta, end_offset: int) -> None:
    """Write the list of leader epochs anew, as the batches tell it; ``meta`` takes the last one where it has none."""
    epochs: list[tuple[int, int]] = []
    for base in bases:
        for batch in scan_segment(files.segment_path(folder, base), MOST_MAX_DECOMPRESSED_BYTES):
            # none beyond a known one: no checksum covers it
            is_known = meta.epoch == ANY_EPOCH or batch.leader_epoch <= meta.epoch
            if is_known and batch.leader_epoch > (epochs[-1][0] if epochs else ANY_EPOCH):
                epochs.append((batch.leader_epoch, batch.base_offset))
    meta.epoch = max(meta.epoch, epochs[-1][0] if epochs else 0)
    if not epochs or epochs[-1][0] < meta.epoch:
        epochs.append((meta.epoch, end_offset))
    files.write_epochs(folder, epochs)


def rewrite(
    folder: str,
    base: int,
    behind: int,
    sizes: dict[int, int],
    damages: list[Damage],
    meta: Meta,
    meta_file: files.MetaFile,
) -> list[str]:
    """Put a segment without its damaged stretches into the place of the old one; the side files that hold these.

    That its offsets may skip is in ``meta`` then, to be written, and its size in ``sizes``. ``behind``: where it ends.
    """
    path = files.segment_path(folder, base)
    side_files = []
    for damage in damages:
        target = side_file(path, damage.position)
        files.copy_range(path, damage.position, damage.size, target)
        side_files.append(target)
    temporary = path + ".repair.tmp"
    try:
        sizes[base] = files.copy_ranges(path, sound_ranges(sizes[base], damages), temporary)
        if meta.last_producer_offset != -1:
            keep_aborted(folder, base, behind, sizes, damages, temporary)
        meta.rewriting = [base, sizes[base]]
        meta_file.write(meta)
        for index in files.index_paths(path):
            # positions in the old file: not even Kafka, which believes indexes, may find them beside the new one
            oscalls.remove(index)
        oscalls.sync_directory(folder)
        oscalls.rename(temporary, path)
    except BaseException:
        oscalls.remove(temporary)
        raise
    oscalls.sync_directory(folder)
    meta.allow_gaps(base, base)
    meta.rewriting = []
    return side_files


def keep_aborted(
    folder: str, base: int, behind: int, sizes: dict[int, int], damages: list[Damage], temporary: str
) -> None:
    """Keep what the ``.txnindex`` of a segment says of markers that are cut out: the log does not tell it any more, and
    what was taken back would be shown. It is vouched for beside the size of the new segment, which is ``temporary``."""
    path = files.segment_path(folder, base)
    index = TransactionIndex(files.transaction_index_path(path), base)
    known = snapshots.read_transaction_index(path, base, behind) or b""
    up_to = [(other, size) for other, size in sizes.items() if other <= base]
    names = oscalls.list_directory(folder)
    told = snapshots.rebuild(folder, names, up_to, behind, from_offset=base, paths={base: temporary})
    entries = {entry[2]: entry for entry in unpack_entries(told.transactions.get(base, b""))}
    for entry in unpack_entries(known):
        # where a marker is missing the log tells a later one's transaction as too long
        if entry[2] in entries or any(is_within(entry[2], damage) for damage in damages):
            entries[entry[2]] = entry
    content = pack_entries([entries[last_offset] for last_offset in sorted(entries)])
    if content != known:
        index.replace(content)
    checksums = files.read_index_checksums(folder)
    checksums[base] = (NO_CHECKSUM, NO_CHECKSUM, sizes[base], crc32c(content))
    files.write_index_checksums(folder, checksums)


def is_within(offset: int, damage: Damage) -> bool:
    """Whether a damaged stretch may have held this offset."""
    return damage.first_offset <= offset and (damage.next_offset is None or offset < damage.next_offset)


def sound_ranges(size: int, damages: list[Damage]) -> Iterator[tuple[int, int]]:
    """What is left of a segment without its damaged stretches: positions and sizes."""
    position = 0
    for damage in damages:
        yield position, damage.position - position
        position = damage.position + damage.size
    yield position, size - position
