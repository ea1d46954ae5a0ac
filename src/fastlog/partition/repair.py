"""Moving damaged bytes to side files, so that the rest of a log works again.

Besides deletion and compaction this is the only code that removes durable bytes.

Every damaged stretch of a segment is copied to ``<segment>.log.torn-<position>`` and synced; then the segment is
written anew without it, under a temporary name, and renamed over the old one. The offsets stay: a repaired segment has
a hole, which ``.fastlog-meta`` records as legal. The end offset never goes back, so that no offset is used twice.
"""

from __future__ import annotations

import logging

from fastlog._native import oscalls
from fastlog.config import MOST_MAX_DECOMPRESSED_BYTES, LogConfig
from fastlog.errors import CorruptLogError
from fastlog.partition import files
from fastlog.partition.files import Meta
from fastlog.partition.recovery import ANY_EPOCH, new_segment, refuse_foreign, side_file
from fastlog.partition.verify import damages_of, missing
from fastlog.reports import Damage, RepairReport

logger = logging.getLogger("fastlog.repair")


def repair(folder: str) -> RepairReport:
    """Repair the files of a locked folder. Raises StorageError when a side file cannot be written: nothing is lost."""
    names = oscalls.list_directory(folder)
    bases = files.segment_bases(names)
    refuse_foreign(folder, names, bases)
    side_files: list[str] = []
    damages: list[Damage] = []
    meta = usable_meta(folder, bases, side_files, damages)
    config = LogConfig().resolve(meta.layout)
    end_offset = bases[0] if bases else meta.start_offset
    rebuilt: list[str] = []
    files_remove_clean(folder)
    if bases and meta.start_offset < bases[0]:
        damages.append(missing(files.segment_path(folder, bases[0]), meta.start_offset, bases[0]))
        meta.start_offset = bases[0]
    for base in bases:
        path = files.segment_path(folder, base)
        if base > end_offset:
            damages.append(missing(path, end_offset, base))
            meta.allow_gaps(max(other for other in bases if other < base), base)
        size = oscalls.file_size(path) or 0
        gaps = meta.allows_gaps(base)
        found, _, _, end_offset = damages_of(
            path,
            size,
            base,
            gaps=gaps,
            epoch=ANY_EPOCH if gaps else meta.epoch,
            # what somebody could read with another setting is not damaged
            max_decompressed_bytes=MOST_MAX_DECOMPRESSED_BYTES,
        )
        if found:
            damages += found
            for damage in found:
                if damage.size:
                    target = side_file(path, damage.position)
                    files.copy_range(path, damage.position, damage.size, target)
                    side_files.append(target)
            oscalls.sync_directory(folder)
            rewrite(path, size, found)
            meta.allow_gaps(base, base)
        segment = new_segment(folder, base, oscalls.file_size(path) or 0, meta, config)
        segment.rebuild_indexes(segment.size)
        segment.force_last_time_entry()
        segment.store_indexes()
        rebuilt += [segment.index_path, segment.time_index_path]
    last = bases[-1] if bases else None
    if end_offset < meta.recovery_point or last is None:
        # records that were durable are gone: their offsets are not used again
        lost_from = end_offset
        end_offset = max(end_offset, meta.recovery_point)
        if lost_from < end_offset:
            damages.append(missing(files.segment_path(folder, end_offset), lost_from, end_offset))
        if last is not None:
            meta.allow_gaps(last, end_offset)
        if last != end_offset:
            segment = new_segment(folder, end_offset, 0, meta, config)
            segment.begin_appending()
            segment.sync()
            last = end_offset
    size = oscalls.file_size(files.segment_path(folder, last)) or 0
    meta.recovery_point, meta.recovery_segment, meta.recovery_position = end_offset, last, size
    meta.start_offset = min(meta.start_offset, end_offset)
    meta.inode = oscalls.inode(folder)
    oscalls.sync_directory(folder)
    with files.MetaFile(folder) as meta_file:
        meta_file.write(meta)
    files.write_epochs(folder, files.read_epochs(folder) or [(meta.epoch, meta.start_offset)])
    oscalls.remove(f"{folder}/{files.POISONED}")
    oscalls.remove(f"{folder}/{files.INDEXES}")
    oscalls.sync_directory(folder)
    for damage in damages:
        logger.warning("%s, position %d: %s", damage.path, damage.position, damage.reason)
    return RepairReport(folder, tuple(damages), tuple(side_files), tuple(rebuilt))


def usable_meta(folder: str, bases: list[int], side_files: list[str], damages: list[Damage]) -> Meta:
    """The meta file, its copy in the clean marker, or one made from the segments; an unreadable file is kept aside.

    It stays where it is until the new one is written over it: whoever opens the log after a crash is still refused.
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
    if meta is not None:
        return meta
    marker = files.read_clean_marker(folder)
    if marker is not None:
        # before the marker goes: it has the only copy
        with files.MetaFile(folder) as meta_file:
            meta_file.write(marker.meta)
        return marker.meta
    epochs = files.read_epochs(folder)
    first = bases[0] if bases else 0
    if damaged:
        reason = "neither of its two copies checks out: the log begins at its first segment, deleted records come back"
        damages.append(Damage(path, 0, damaged, first, first, reason))
    meta = Meta(
        LogConfig().resolve().layout(),
        start_offset=first,
        recovery_point=first,
        recovery_segment=first,
        epoch=epochs[-1][0] if epochs else 0,
        last_producer_offset=files.PRODUCERS_UNKNOWN,
    )
    if bases:
        meta.allow_gaps(bases[0], bases[-1])
    return meta


def files_remove_clean(folder: str) -> None:
    """A repaired log was not closed cleanly."""
    if oscalls.remove(f"{folder}/{files.CLEAN}"):
        oscalls.sync_directory(folder)


def rewrite(path: str, size: int, damages: list[Damage]) -> None:
    """Write a segment without its damaged stretches and rename it over the old one."""
    temporary = path + ".repair.tmp"
    source = oscalls.open_file(path)
    try:
        copy = oscalls.open_file(temporary, writable=True, create=True)
        try:
            oscalls.truncate(copy, 0, temporary)
            done = position = 0
            for damage in [*damages, Damage(path, size, 0, 0, None, "")]:
                while position < damage.position:
                    piece = oscalls.read_bytes(source, position, min(damage.position - position, 1 << 24))
                    oscalls.write_at(copy, piece, done, temporary)
                    done += len(piece)
                    position += len(piece)
                position = damage.position + damage.size
            oscalls.sync_data(copy, temporary)
        finally:
            oscalls.close_file(copy)
    finally:
        oscalls.close_file(source)
    oscalls.rename(temporary, path)
