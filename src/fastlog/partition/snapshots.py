"""Snapshots of producer state: ``<20 digits>.snapshot``, named by the end offset of the log that they tell of.

The format is Kafka's: version, CRC-32C, then 46 bytes for each producer. One is written at each roll and each clean
close, so that opening a log replays a segment at most. A snapshot that does not check out is passed over, and reported
in the program's log: an older one and more replay give the same state.

``rebuild`` is the way from files to state. It is also the way back when a log was cut: producer state cannot be undone
batch by batch.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

from fastlog._native import oscalls
from fastlog._native.producers import ProducerStates
from fastlog._native.transactions import check_entries
from fastlog.partition import files

logger = logging.getLogger("fastlog.producers")

SNAPSHOT_NAME: Final = re.compile(r"([0-9]{20})\.snapshot")
TRANSACTION_INDEX_NAME: Final = re.compile(r"([0-9]{20})\.txnindex")
PRODUCER_EXPIRATION_MS: Final = 24 * 3600 * 1000
LARGEST_OFFSET: Final = 2**63 - 1


def snapshot_path(folder: str, offset: int) -> str:
    """Path of the snapshot that tells of the log up to ``offset``, exclusive."""
    return f"{folder}/{offset:020d}.snapshot"


def snapshot_offsets(names: Iterable[str]) -> list[int]:
    """Offsets of the snapshots among the names of a folder, rising."""
    found = (int(match[1]) for match in map(SNAPSHOT_NAME.fullmatch, names) if match)
    return sorted(offset for offset in found if offset <= LARGEST_OFFSET)


def stray_transaction_indexes(names: Iterable[str], bases: Iterable[int]) -> list[int]:
    """Base offsets of the ``.txnindex`` files that lie beside no segment, rising."""
    found = {int(match[1]) for match in map(TRANSACTION_INDEX_NAME.fullmatch, names) if match}
    return sorted(found.difference(bases))


def load_newest(folder: str, names: Iterable[str], end_offset: int, states: ProducerStates) -> int | None:
    """Load the newest snapshot at or below ``end_offset`` that checks out; its offset, or None when there is none.

    ``states`` knows nobody and ends at offset 0 when there is none.
    """
    for offset in reversed(snapshot_offsets(names)):
        if offset > end_offset:
            continue
        path = snapshot_path(folder, offset)
        content = oscalls.read_file(path)
        if content is None:
            continue
        problem = states.load(content, offset)
        if problem is None:
            return offset
        logger.warning("%s is passed over: %s; an older snapshot and the log tell the same", path, problem)
    states.clear()
    return None


def write_snapshot(folder: str, states: ProducerStates) -> str:
    """Write the snapshot of ``states`` atomically and durably; its path."""
    path = snapshot_path(folder, states.end_offset)
    oscalls.replace_file(path, states.snapshot())
    return path


def forget_idle(folder: str, states: ProducerStates, segments: Sequence[tuple[int, int]], now: int) -> None:
    """Forget producers that have been idle for a day, as Kafka does after ``producer.id.expiration.ms``.

    By their records' timestamps and by the times at which segments were last appended to: old records that were
    appended just now do not cost their producer its state.
    """
    below = 0
    for index, (base, _) in enumerate(segments):
        if now - oscalls.modified_at(files.segment_path(folder, base)) < PRODUCER_EXPIRATION_MS:
            break
        below = segments[index + 1][0] if index + 1 < len(segments) else states.end_offset
    states.expire(now, PRODUCER_EXPIRATION_MS, below)


def stale_snapshots(offsets: Iterable[int], segment_bases: Iterable[int], end_offset: int) -> list[int]:
    """Offsets of the snapshots that may go: those beyond the end, and those that belong to no segment.

    As Kafka, keep the ones that are named as a segment is, and the newest of all when it lies behind the last
    segment's base. One beyond ``end_offset`` tells of records that were cut: remove it before anything is appended, or
    it would be believed when other records take their place.
    """
    bases = set(segment_bases)
    within = {offset for offset in offsets if offset <= end_offset}
    kept = within & bases
    newest = max(within, default=-1)
    if newest > max(bases, default=-1):
        kept.add(newest)
    return sorted(set(offsets) - kept)


def remove_snapshots(folder: str, offsets: Iterable[int]) -> None:
    """Remove these snapshots; the caller syncs the folder."""
    for offset in offsets:
        oscalls.remove(snapshot_path(folder, offset))


def renew(folder: str, names: Sequence[str], segments: Sequence[tuple[int, int]], offset: int, end_offset: int) -> None:
    """Write the snapshot of the log up to ``offset``, where ``segments`` end, unless it is there; remove those that may
    go. ``names``: what is in the folder."""
    offsets = snapshot_offsets(names)
    if offset not in offsets:
        states = rebuild(folder, names, segments, offset).states
        forget_idle(folder, states, segments, oscalls.wall_clock())
        write_snapshot(folder, states)
    remove_snapshots(folder, stale_snapshots([*offsets, offset], files.segment_bases(names), end_offset))


@dataclass(slots=True)
class RebuiltStates:
    """Producer state read from files.

    Attributes:
        states: the producers, up to the end offset that was asked for.
        snapshot_offset: offset of the snapshot it began with; None: it began with the first segment.
        transactions: segment base offset to what its ``.txnindex`` has to hold (``b""``: no file), for each segment
            that was replayed from its beginning.
        damages: stretches of the log that could not be read; what they said of producers is missing.
        last_end: offset behind the last batch that was read.
    """

    states: ProducerStates
    snapshot_offset: int | None = None
    transactions: dict[int, bytes] = field(default_factory=dict)
    damages: int = 0
    last_end: int = 0


def rebuild(
    folder: str,
    names: Sequence[str],
    segments: Sequence[tuple[int, int]],
    end_offset: int,
    *,
    now: int = -1,
    from_offset: int | None = None,
    paths: Mapping[int, str] | None = None,
) -> RebuiltStates:
    """Producer state at ``end_offset``: the newest snapshot that checks out, and the batches behind it.

    Args:
        folder: of the partition.
        names: what is in it.
        segments: (base offset, size up to which it is valid) of every segment, rising.
        end_offset: where the log ends.
        now: milliseconds, when what is replayed may have been written just before; -1 when only its timestamps tell. A
            producer expires by the later of the two.
        from_offset: use no snapshot above this offset, so that ``.txnindex`` entries are told from there on.
        paths: of segments, by base offset, when they may have other names (``compaction.current_segments``).

    Raises StorageError when a segment cannot be read.
    """
    found = RebuiltStates(ProducerStates())
    newest = end_offset if from_offset is None else min(end_offset, from_offset)
    found.snapshot_offset = load_newest(folder, names, newest, found.states)
    found.damages = read_on(
        folder, found.states, segments, end_offset, now=now, transactions=found.transactions, paths=paths
    )
    found.last_end, found.states.end_offset = found.states.end_offset, end_offset
    return found


def catch_up(
    folder: str,
    states: ProducerStates,
    segments: Sequence[tuple[int, int]],
    end_offset: int,
    *,
    check_crc: bool = True,
) -> int:
    """Read what was appended since ``states.end_offset``. Returns how many stretches of the log could not be read.

    ``check_crc``: False where the batches were written by others who are alive: they have checked them.
    """
    damages = read_on(folder, states, segments, end_offset, check_crc=check_crc)
    states.end_offset = end_offset
    return damages


def read_on(
    folder: str,
    states: ProducerStates,
    segments: Sequence[tuple[int, int]],
    end_offset: int,
    *,
    now: int = -1,
    check_crc: bool = True,
    transactions: dict[int, bytes] | None = None,
    paths: Mapping[int, str] | None = None,
) -> int:
    """Likewise, but ``states.end_offset`` is where the last batch ended.

    Args: as of ``rebuild`` and ``catch_up``, and
        transactions: filled with what the ``.txnindex`` of each segment has to hold that was read from its beginning.
    """
    damages, start = 0, states.end_offset
    for index, (base, size) in enumerate(segments):
        behind = segments[index + 1][0] if index + 1 < len(segments) else end_offset
        if behind <= start or base >= end_offset:
            continue
        if states.segment_base != base:
            states.segment_base, states.position = base, 0
        path = (paths and paths.get(base)) or files.segment_path(folder, base)
        damages += states.replay(path, states.position, size, end_offset, now, check_crc)
        if transactions is not None:
            entries = states.take_aborted()
            if base >= start:
                transactions[base] = entries
    return damages


def read_transaction_index(log_path: str, base_offset: int, end_offset: int) -> bytes | None:
    """The entries of a segment's ``.txnindex``, ``b""`` when there is no file; None when they cannot be right.

    None says: rebuild it. Entries that could be right but are not are found only by comparing with the log, or by a
    checksum kept elsewhere.
    """
    path = files.transaction_index_path(log_path)
    content = oscalls.read_file(path)
    if content is None:
        return b""
    problem = check_entries(content, base_offset, end_offset)
    if problem is None:
        return content
    logger.warning("%s is not believed: %s; it is rebuilt from the log", path, problem)
    return None
