"""The files of a partition's folder: their names, and the small state files beside the segments.

========================  ==============================================================================================
``<20 digits>.log``       a segment, named by its base offset; its ``.index``, ``.timeindex`` and ``.txnindex``
                          beside it (Kafka's format)
``<20 digits>.snapshot``  what was known of producers at that offset (Kafka's format)
``leader-epoch-checkpoint``  Kafka's list of leader epochs; our own logs have epoch 0 from their first offset
``.fastlog-meta``         format version, layout options, recovery point, start offset; two slots, each with a checksum,
                          overwritten in place one after the other: it works on a full disk, one slot is always whole
``.fastlog-clean``        written by a clean close: end offset and size of every segment. Removed, and the directory
                          synced, before the first change of the next session
``.fastlog-indexes``      checksums of finished index files; an index without one is rebuilt when it is first needed
``.fastlog-control``      the page that all who have the partition open share; worth nothing once nobody has
``.fastlog-poisoned``     a sync failed: what is on disk must be read again before it is believed
``*.torn-<position>``     bytes that recovery or repair cut from a segment at that position
========================  ==============================================================================================
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, Final

from fastlog._native import oscalls
from fastlog._native.checksum import crc32c
from fastlog._native.control import CONTROL as CONTROL
from fastlog._native.control import META as META
from fastlog._native.segment import Segment
from fastlog.config import is_layout
from fastlog.errors import ClosedError, ConfigError, CorruptLogError, StorageError, UnsupportedFormatError
from fastlog.records import is_offset

FORMAT_VERSION: Final = 1
CLEAN: Final = ".fastlog-clean"
INDEXES: Final = ".fastlog-indexes"
POISONED: Final = ".fastlog-poisoned"
EPOCHS: Final = "leader-epoch-checkpoint"
PARTITION_METADATA: Final = "partition.metadata"
LOG_STARTS: Final = "log-start-offset-checkpoint"
SLOT_BYTES: Final = 4096
PRODUCERS_UNKNOWN: Final = -2
MOST_GAP_RANGES: Final = 100
MEANT_BELOW_ZERO: Final = {
    "last_producer_offset": (-1, PRODUCERS_UNKNOWN),
    "clock_confirmed": (-1,),
    "clock_seen": (-1,),
}
COPY_BYTES: Final = 1 << 22

SEGMENT_NAME: Final = re.compile(r"(\d{20})\.log")


def segment_path(folder: str, base_offset: int) -> str:
    """Path of the ``.log`` file of the segment with this base offset."""
    return f"{folder}/{base_offset:020d}.log"


def index_paths(log_path: str) -> tuple[str, str]:
    """Paths of the offset index and the time index beside a ``.log`` (or ``.log.swap``) file."""
    stem, _, stage = log_path.rpartition(".log")
    return f"{stem}.index{stage}", f"{stem}.timeindex{stage}"


def transaction_index_path(log_path: str) -> str:
    """Path of the ``.txnindex`` beside a ``.log`` file."""
    stem, _, stage = log_path.rpartition(".log")
    return f"{stem}.txnindex{stage}"


def segment_files(log_path: str) -> tuple[str, str, str, str]:
    """Paths of everything that belongs to a segment, in the order in which to remove it: the ``.log`` file, by which
    the others are found, goes last."""
    return (*index_paths(log_path), transaction_index_path(log_path), log_path)


def segment_bases(names: Iterable[str]) -> list[int]:
    """Base offsets of the segments among the names of a folder, rising."""
    return sorted(int(match[1]) for match in map(SEGMENT_NAME.fullmatch, names) if match)


def bases_in_log(bases: list[int], start_offset: int) -> list[int]:
    """Of rising base offsets those whose segments belong to the log. What lies wholly below its start does not: a
    deletion that was cut short may have left it.
    """
    first = 0
    while first + 1 < len(bases) and bases[first + 1] <= start_offset:
        first += 1
    return bases[first:]


def sealed(payload: dict[str, Any]) -> bytes:
    """One line: checksum, then JSON."""
    text = json.dumps(payload, separators=(",", ":"), sort_keys=True).encode()
    return b"%08x %s\n" % (crc32c(text), text)


def unsealed(line: bytes) -> dict[str, Any] | None:
    """The payload of a sealed line, or None when it does not check out to the last byte."""
    line = line.rstrip(b" ")
    if len(line) < 11 or line[8:9] != b" " or line[-1:] != b"\n":
        return None
    text = line[9:-1]
    if line[:8] != b"%08x" % crc32c(text):
        return None
    return json_object(text)


def json_object(text: bytes) -> dict[str, Any] | None:
    """The object that a text says; None when it says none."""
    try:
        payload = json.loads(text)
    except (ValueError, RecursionError):
        return None
    return payload if isinstance(payload, dict) else None


def check_version(path: str, payload: dict[str, Any]) -> None:
    """Refuse files of a newer format. Raises UnsupportedFormatError."""
    version = payload.get("format")
    if version != FORMAT_VERSION:
        raise UnsupportedFormatError(
            f"{path} has format {version}, this fastlog reads up to {FORMAT_VERSION}: nothing was touched; "
            f"upgrade with `pip install --upgrade fastlog-engine`"
        )


@dataclass(slots=True)
class Meta:
    """What a partition must remember to be opened: the content of ``.fastlog-meta``.

    ``last_producer_offset``: no batch behind it, up to the recovery point, carries a producer id; -1 = none does at
    all, ``PRODUCERS_UNKNOWN`` = nobody has looked.
    Below ``cleaned_offset`` the log was compacted. ``clock_confirmed`` and ``clock_seen`` are readings of the wall
    clock, milliseconds: ``retention`` says what they are for.
    ``inode`` is the folder's: a copy of the folder has another one, and its recovery point means nothing.
    ``recovery_point`` is an offset below which everything is durable; it lies at ``recovery_position`` of the segment
    ``recovery_segment``. ``gap_ranges`` are pairs (first, last) of segment base offsets where offsets may skip:
    compacted, repaired, or written by somebody else. ``rewriting`` is the (base offset, new size) of the segment that a
    repair is putting into its place: only once it has that size may its offsets skip.
    """

    layout: dict[str, int]
    start_offset: int = 0
    recovery_point: int = 0
    recovery_segment: int = 0
    recovery_position: int = 0
    epoch: int = 0
    inode: int = 0
    last_producer_offset: int = -1
    cleaned_offset: int = 0
    clock_confirmed: int = -1
    clock_seen: int = -1
    gap_ranges: list[list[int]] = field(default_factory=list)
    rewriting: list[int] = field(default_factory=list)

    def allows_gaps(self, base_offset: int) -> bool:
        """Whether offsets may skip in the segment with this base offset."""
        return any(first <= base_offset <= last for first, last in self.gap_ranges)

    def allow_gaps(self, first: int, last: int) -> None:
        """Let offsets skip in segments with base offsets from ``first`` to ``last``."""
        ranges = sorted([*self.gap_ranges, [first, last]])
        merged: list[list[int]] = []
        for low, high in ranges:
            if merged and low <= merged[-1][1]:
                merged[-1][1] = max(merged[-1][1], high)
            else:
                merged.append([low, high])
        while len(merged) > MOST_GAP_RANGES:
            # the slot has a fixed size: join the two oldest
            merged[:2] = [[merged[0][0], merged[1][1]]]
        self.gap_ranges = merged

    def settle_rewriting(self, folder: str) -> None:
        """Find out whether a segment that was being rewritten is the new one or still the old one."""
        if self.rewriting:
            base, size = self.rewriting
            if oscalls.file_size(segment_path(folder, base)) == size:
                self.allow_gaps(base, base)
            self.rewriting = []

    def to_payload(self) -> dict[str, Any]:
        """As written to the file."""
        return {
            "format": FORMAT_VERSION,
            "layout": self.layout,
            "start_offset": self.start_offset,
            "recovery_point": self.recovery_point,
            "recovery_segment": self.recovery_segment,
            "recovery_position": self.recovery_position,
            "epoch": self.epoch,
            "inode": self.inode,
            "last_producer_offset": self.last_producer_offset,
            "cleaned_offset": self.cleaned_offset,
            "clock_confirmed": self.clock_confirmed,
            "clock_seen": self.clock_seen,
            "gap_ranges": self.gap_ranges,
            "rewriting": self.rewriting,
        }

    @classmethod
    def from_payload(cls, path: str, payload: dict[str, Any]) -> Meta:
        """From the file's content; refuses a newer format, and what no fastlog writes, whatever its checksum."""
        check_version(path, payload)
        known = {name: payload[name] for name in cls.__slots__ if name in payload}
        wrong = [name for name, value in known.items() if not is_possible(name, value)]
        if wrong or not known.get("layout"):
            name = wrong[0] if wrong else "layout"
            raise CorruptLogError(f"{path}: {name} is {known.get(name)!r}, which no fastlog writes", path, 0)
        return cls(**{"last_producer_offset": PRODUCERS_UNKNOWN, **known})


def is_possible(name: str, value: object) -> bool:
    """Whether a field of a meta file may have this value."""
    if name == "layout":
        return isinstance(value, dict) and is_layout(value)
    if name == "gap_ranges":
        return isinstance(value, list) and all(
            isinstance(pair, list) and len(pair) == 2 and all(map(is_offset, pair)) for pair in value
        )
    if name == "rewriting":
        return isinstance(value, list) and len(value) in (0, 2) and all(map(is_offset, value))
    return is_offset(value) or value in MEANT_BELOW_ZERO.get(name, ())


def read_meta(folder: str) -> Meta | None:
    """The partition's meta file; None when there is none, or an empty one: who made it died, or found the disk full,
    before he wrote to it.

    Raises UnsupportedFormatError for a newer format, CorruptLogError when neither slot checks out.
    """
    path = f"{folder}/{META}"
    content = oscalls.read_file(path)
    if not content:
        return None
    for start in (0, SLOT_BYTES):
        payload = unsealed(content[start : start + SLOT_BYTES])
        if payload is not None:
            meta = Meta.from_payload(path, payload)
            meta.settle_rewriting(folder)
            return meta
    raise CorruptLogError(
        f"{path}: neither of its two copies checks out ({len(content)} bytes found, {2 * SLOT_BYTES} expected). "
        f"Nothing was touched. `fastlog log repair {folder}` keeps it aside and rebuilds it from the segments; the log "
        f"then begins at its first segment: records that were deleted and are still in there come back",
        path,
        0,
    )


def is_unmade(bases: list[int], meta: Meta | None) -> bool:
    """Whether a folder with these segments holds no log yet: its making was not begun, or was cut short."""
    return not bases and (meta is None or meta.recovery_point == meta.recovery_position == 0)


class MetaFile:
    """The open ``.fastlog-meta`` of a writer; closed with ``close``, or when nobody has it any more."""

    def __init__(self, folder: str) -> None:
        self.path = f"{folder}/{META}"
        self._file: oscalls.Descriptor | None = oscalls.Descriptor(
            oscalls.open_file(self.path, writable=True, create=True)
        )

    def write(self, meta: Meta) -> None:
        """Write both slots, one after the other, each synced: one of them is whole at every instant."""
        file = self._file
        if file is None:
            raise ClosedError(f"{self.path} was closed by another thread")
        line = sealed(meta.to_payload())
        slot = line[:-1] + b"\n" + b" " * (SLOT_BYTES - len(line))
        for start in (0, SLOT_BYTES):
            oscalls.write_at(file.fd, slot, start, self.path)
            oscalls.sync_data(file.fd, self.path)

    def __enter__(self) -> MetaFile:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the file."""
        self._file = None


def write_meta(folder: str, meta: Meta) -> None:
    """Write the partition's meta file, durably, for who does not keep it open."""
    with MetaFile(folder) as meta_file:
        meta_file.write(meta)


@dataclass(slots=True)
class CleanMarker:
    """What a clean close vouches for: the content of ``.fastlog-clean``."""

    meta: Meta
    end_offset: int
    files: dict[str, int]


def read_clean_marker(folder: str) -> CleanMarker | None:
    """The clean marker, or None when there is none or it does not check out."""
    path = f"{folder}/{CLEAN}"
    content = oscalls.read_file(path)
    payload = unsealed(content) if content is not None else None
    if payload is None:
        return None
    meta, end_offset, sizes = payload.get("meta"), payload.get("end_offset"), payload.get("files")
    if not isinstance(meta, dict) or not is_offset(end_offset) or not isinstance(sizes, dict):
        return None
    if not all(SEGMENT_NAME.fullmatch(name) and is_offset(size) for name, size in sizes.items()):
        return None
    known = Meta.from_payload(path, meta)
    return CleanMarker(known, end_offset, sizes) if known.start_offset <= end_offset else None


def write_clean_marker(folder: str, marker: CleanMarker) -> None:
    """Write the clean marker atomically and durably."""
    payload = {"meta": marker.meta.to_payload(), "end_offset": marker.end_offset, "files": marker.files}
    oscalls.replace_file(f"{folder}/{CLEAN}", sealed(payload))


def holds_log(folder: str) -> bool:
    """Whether a folder holds a log, or what tells that it did. False while somebody is making one, or died over it."""
    names = oscalls.list_directory(folder)
    if segment_bases(names):
        return True
    if META not in names and CLEAN not in names:
        return False
    try:
        if read_clean_marker(folder) is not None:
            return True
        meta = read_meta(folder)
    except CorruptLogError:
        return False  # before its first segment exists a log has nothing to lose
    except UnsupportedFormatError:
        return True
    return meta is not None and (meta.recovery_point > 0 or meta.recovery_position > 0)


def read_index_checksums(folder: str) -> dict[int, tuple[int, ...]]:
    """Segment base offset → checksums of its offset index and its time index, the size of the segment that they speak
    for (0.1 did not write it) and the checksum of its ``.txnindex``; empty when they cannot be told. ``checksums_of``
    says which are to be believed."""
    content = oscalls.read_file(f"{folder}/{INDEXES}")
    payload = unsealed(content) if content is not None else None
    found = {}
    for base, entry in (payload or {}).items():
        if not base.isdecimal() or not isinstance(entry, list) or len(entry) < 2 or not all(map(is_offset, entry)):
            return {}
        found[int(base)] = tuple(entry)
    return found


def checksums_of(
    entries: dict[int, tuple[int, ...]], base: int, size: int, *, is_clean: bool = False
) -> tuple[int, int, int | None] | None:
    """Checksums of the three indexes of a segment of this size; None when nobody vouches for them.

    What a clean close said about the active segment is no longer true when that has grown, though after power loss its
    indexes may be on disk as they were then. An entry that names no size is believed after a clean close only.
    """
    entry = entries.get(base)
    if entry is None or entry[2:3] not in ([(size,), ()] if is_clean else [(size,)]):
        return None
    return entry[0], entry[1], entry[3] if len(entry) > 3 else None


def checksum_entry(segment: Segment) -> tuple[int, ...]:
    """What ``.fastlog-indexes`` says of the indexes of a segment, whose checksums are known."""
    offsets, times, _ = segment.index_checksums
    known = segment.transaction_checksum
    return (offsets, times, segment.size) if known is None else (offsets, times, segment.size, known)


def write_index_checksums(folder: str, entries: dict[int, tuple[int, ...]]) -> None:
    """Write ``.fastlog-indexes`` atomically."""
    oscalls.replace_file(f"{folder}/{INDEXES}", sealed({str(base): list(entry) for base, entry in entries.items()}))


def read_epochs(folder: str) -> list[tuple[int, int]] | None:
    """Pairs (epoch, start offset) of ``leader-epoch-checkpoint``; None when it is missing or malformed."""
    content = oscalls.read_file(f"{folder}/{EPOCHS}")
    if content is None:
        return None
    try:
        lines = content.decode("ascii").split("\n")
        if lines[0] != "0" or lines[-1] != "" or len(lines) != int(lines[1]) + 3:
            return None
        entries = [(int(epoch), int(start)) for epoch, start in (line.split(" ") for line in lines[2:-1])]
    except (ValueError, IndexError, UnicodeDecodeError):
        return None
    return entries


def write_epochs(folder: str, entries: list[tuple[int, int]]) -> None:
    """Write ``leader-epoch-checkpoint`` as Kafka does: version, count, one line per epoch."""
    lines = ["0", str(len(entries)), *(f"{epoch} {start}" for epoch, start in entries), ""]
    oscalls.replace_file(f"{folder}/{EPOCHS}", "\n".join(lines).encode())


def read_checkpoint(path: str) -> dict[tuple[str, int], int]:
    """(topic, partition) → offset of one of Kafka's offset checkpoints; empty when it is missing or malformed."""
    content = oscalls.read_file(path)
    try:
        lines = (content or b"").decode("ascii").splitlines()
        if not lines or lines[0].strip() != "0" or int(lines[1]) != len(lines) - 2:
            return {}
        fields = [line.rsplit(" ", 2) for line in lines[2:]]
        return {(topic, int(partition)): int(offset) for topic, partition, offset in fields}
    except (ValueError, IndexError):
        return {}


def start_for_brokers(folder: str) -> int:
    """Where a broker begins to read this log, as the checkpoint beside the folder says; 0 when it says nothing."""
    topics, _, name = folder.rpartition("/")
    starts = read_checkpoint(f"{topics}/{LOG_STARTS}")
    return next((start for (topic, number), start in starts.items() if f"{topic}-{number}" == name), 0)


# --- folders and copies ----------------------------------------------------------------------------------------------


def absolute_path(path: object, name: str) -> str:
    """A path that a caller passed as ``name``, as an absolute str. Raises ConfigError for what is none."""
    try:
        text = os.fsdecode(path)  # type: ignore[arg-type]  # TypeError is what we ask for
        encoded = os.fsencode(text)
    except (TypeError, UnicodeError):
        encoded = b"\0"
    if b"\0" in encoded:
        raise ConfigError(f"{name}={path!r}: expected a path, as a str, bytes or an object that has one")
    return os.path.abspath(text)


def require_folder(folder: str, what: str, *, read_only: bool) -> None:
    """The folder of ``what``, created for a writer. Raises StorageError, UnsupportedFormatError."""
    kind = oscalls.is_directory(folder)
    if kind is None:
        if read_only:
            raise StorageError(f"{folder} does not exist: open it for writing once, or check the path")
        oscalls.make_directory(folder)
    elif not kind:
        raise UnsupportedFormatError(f"{folder} is a file: {what} is a folder; nothing was touched")


def copy_range(path: str, position: int, size: int, target: str) -> int:
    """Copy bytes of a file into a new, durable one; how many there were, which is less where the file ends.

    When it fails there is no new file: half of one would be taken for the whole, and takes the room that was missing.
    """
    return copy_ranges(path, [(position, size)], target)


def copy_ranges(path: str, ranges: Iterable[tuple[int, int]], target: str) -> int:
    """Likewise, of several stretches, each from a position and of a size, one behind the other."""
    source = oscalls.open_file(path)
    try:
        copy = oscalls.open_file(target, writable=True, new=True)
        try:
            done = 0
            for position, size in ranges:
                stop = position + size
                while position < stop:
                    piece = oscalls.read_bytes(source, position, min(stop - position, COPY_BYTES))
                    if not piece:
                        break
                    oscalls.write_at(copy, piece, done, target)
                    done += len(piece)
                    position += len(piece)
            oscalls.sync_data(copy, target)
        except BaseException:
            oscalls.remove(target)
            raise
        finally:
            oscalls.close_file(copy)
    finally:
        oscalls.close_file(source)
    return done
