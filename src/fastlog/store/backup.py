"""A copy of a store that is in use: a prefix of every partition, as they were at one moment, that opens as a store.

Closed segments never change, so they are linked, or copied to another file system; of the active one everything that
was
published is copied. While the ends are noted no transaction is decided, so that none is whole in one partition and
missing
in another. ``fastlog.json`` is written last: what a crash leaves behind does not open.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from fastlog._core import PartitionLog
from fastlog._native import oscalls
from fastlog.errors import NotSupportedError, StorageError, UnknownTopicError, UnsupportedFormatError
from fastlog.partition import files as partition_files
from fastlog.reports import SegmentInfo
from fastlog.store import catalog, files, naming
from fastlog.store.catalog import TopicInfo
from fastlog.store.internal import CONSUMER_OFFSETS, TRANSACTION_STATE

if TYPE_CHECKING:
    from fastlog.store.directory import Directory

logger = logging.getLogger("fastlog.store")

MOST_ATTEMPTS: Final = 20
Decider = int | list[int | None]
# EPERM, EXDEV, EMLINK, EOPNOTSUPP: no link can be made there
NO_LINKS: Final = (1, 18, 31, 95)


@dataclass(frozen=True, slots=True)
class BackupReport:
    """What a backup holds. ``linked_bytes`` take no space until the original is deleted."""

    path: str
    topics: int
    partitions: int
    linked_bytes: int
    copied_bytes: int


@dataclass(slots=True)
class _Captured:
    """One partition at one moment: links to its files, and how much of the last one counts."""

    info: TopicInfo
    partition: int
    stage: str
    start_offset: int
    end_offset: int
    sizes: dict[int, int]
    meta: partition_files.Meta
    checksums: dict[int, tuple[int, ...]] = field(default_factory=dict)


def back_up(directory: Directory, target: str, lock_timeout: int) -> BackupReport:
    """Copy what the store holds now into the folder ``target``, which is new or empty. Appends go on meanwhile."""
    require_empty(directory.root, target)
    oscalls.make_directory(target)
    try:
        mark_unfinished(target)
        with staging(directory, target) as stage:
            infos, captured = capture_at_once(directory, stage, lock_timeout)
            oscalls.reach_failpoint("backup.linked")
            report = write_store(directory, target, infos, captured)
    except BaseException:
        # what makes it a store goes first
        oscalls.remove(f"{target}/{files.STORE}")
        files.empty_folder(target)
        raise
    return report


def capture_at_once(directory: Directory, stage: str, lock_timeout: int) -> tuple[list[TopicInfo], list[_Captured]]:
    """All partitions while no transaction was decided. Who decides in a partition that was made, or opened, meanwhile
    has not been kept from it: then all of it again."""
    for _ in range(MOST_ATTEMPTS):
        infos = list(topics_of(directory))
        with decisions_paused(directory, infos, lock_timeout) as paused:
            captured = capture(directory, infos, stage)
            if deciding(directory) == paused:
                return infos, captured
        files.empty_folder(stage)
    raise StorageError(
        f"transactions were decided in new partitions of {TRANSACTION_STATE} each of the {MOST_ATTEMPTS} times that "
        f"{directory.root} was backed up: try again"
    )


def deciding(directory: Directory) -> dict[int, Decider]:
    """Who may write to each partition that decisions are in: those who use this control file. Where there is none: how
    much everybody has written."""
    topic = catalog.read_topic(f"{directory.root}/{files.CONFIG}", TRANSACTION_STATE)
    found: dict[int, Decider] = {}
    for partition in range(0 if topic is None else topic[0].partitions):
        if directory.is_created(TRANSACTION_STATE, partition):
            folder = f"{directory.root}/{files.TOPICS}/{naming.folder_name(TRANSACTION_STATE, partition)}"
            control = oscalls.identity(f"{folder}/{partition_files.CONTROL}")
            found[partition] = written(folder) if control is None else control[1]
    return found


def written(folder: str) -> list[int | None]:
    """The sizes of a partition's segments."""
    bases = partition_files.segment_bases(oscalls.list_directory(folder))
    return [oscalls.file_size(partition_files.segment_path(folder, base)) for base in bases]


def topics_of(directory: Directory) -> Iterator[TopicInfo]:
    """All topics, but for those that go while they are listed."""
    for name in directory.topics(internal=True):
        try:
            info = directory.topic(name)
        except UnknownTopicError:
            continue
        yield info


def mark_unfinished(target: str) -> None:
    """From the first name in it on, the folder is refused: a temporary file alone would make it look like a new one."""
    oscalls.close_file(oscalls.open_file(f"{target}/{files.UNFINISHED_BACKUP}", writable=True, new=True))
    oscalls.sync_directory(target)


def require_empty(root: str, target: str) -> None:
    """Raise UnsupportedFormatError for a target that holds something, or lies within the store."""
    if target == root or target.startswith(f"{root}/"):
        raise UnsupportedFormatError(f"{target} lies in the store that is to be backed up: name a folder outside of it")
    kind = oscalls.entry_kind(target)
    if kind is not None and (kind != "directory" or oscalls.list_directory(target)):
        raise UnsupportedFormatError(
            f"{target} is there already: a backup wants a new or an empty folder; nothing was touched"
        )


@contextmanager
def staging(directory: Directory, target: str) -> Iterator[str]:
    """A folder on the file system of the store for links that keep files while they are copied."""
    probe = f"{target}/probe"
    try:
        oscalls.link(f"{directory.root}/{files.STORE}", probe)
        oscalls.remove(probe)
        stage = f"{target}/{files.TOPICS}"
    except StorageError as error:
        if error.errno not in NO_LINKS:
            raise
        if directory.read_only:
            raise NotSupportedError(
                f"{target} lies on another file system than {directory.root}: copying needs links beside the "
                "original, which "
                f"read_only=True does not allow; open the store for writing"
            ) from None
        stage = f"{directory.control}/backup.{oscalls.random_bytes(8).hex()}"
    oscalls.create_directory(stage)
    try:
        yield stage
    finally:
        if not stage.startswith(f"{target}/"):
            files.remove_tree(stage)


@contextmanager
def decisions_paused(directory: Directory, infos: list[TopicInfo], lock_timeout: int) -> Iterator[dict[int, Decider]]:
    """Let no transaction be decided: hold the writer locks of the topic that decisions are written to. As long as
    ``deciding`` returns what this returns there is nobody else."""
    paused: dict[int, Decider] = {}
    with ExitStack() as stack:
        for info in infos:
            if info.name != TRANSACTION_STATE:
                continue
            for partition in range(info.partitions):
                if not directory.is_created(info.name, partition):
                    continue
                log = stack.enter_context(directory.lease(info.name, partition, "read_uncommitted")).log
                path = f"{log.path}/{partition_files.CONTROL}"
                if oscalls.entry_kind(path) is None:
                    paused[partition] = written(log.path)
                    continue  # a reader, and no writer beside it
                fd = oscalls.open_file(path)
                stack.callback(oscalls.close_file, fd)
                files.wait_for_lock(fd, path, lock_timeout, "is writing")
                paused[partition] = oscalls.inode_of(fd)
        yield paused


def capture(directory: Directory, infos: list[TopicInfo], stage: str) -> list[_Captured]:
    """Every partition that has files. Committed offsets first: they must not speak of records that are not there."""
    captured = []
    for info in sorted(infos, key=lambda info: info.name != CONSUMER_OFFSETS):
        for partition in range(info.partitions):
            if not directory.is_created(info.name, partition):
                continue
            try:
                with directory.lease(info.name, partition, "read_uncommitted") as lease:
                    if lease.key.topic_id != info.topic_id:
                        break
                    captured.append(capture_partition(info, partition, lease.log, stage))
            except (UnknownTopicError, StorageError):
                files.remove_tree(f"{stage}/{naming.folder_name(info.name, partition)}")
                if is_there(directory, info):
                    raise
                break  # deleted meanwhile
    return captured


def is_there(directory: Directory, info: TopicInfo) -> bool:
    """Whether the topic still exists, and is no other one of the same name."""
    # from the file: what is known of topics may be a moment old
    found = catalog.read_topic(f"{directory.root}/{files.CONFIG}", info.name)
    return found is not None and found[0].topic_id == info.topic_id and not found[1]


def capture_partition(info: TopicInfo, partition: int, log: PartitionLog, stage: str) -> _Captured:
    """Link the files of a partition; again when segments were replaced or deleted meanwhile."""
    folder = f"{stage}/{naming.folder_name(info.name, partition)}"
    for _ in range(MOST_ATTEMPTS):
        oscalls.create_directory(folder)
        segments = log.segments()
        start_offset = log.start_offset
        try:
            for segment in segments:
                oscalls.link(segment.path, files_path(folder, segment.base_offset))
            link_beside(log.path, folder, segments[-1].base_offset)
            checksums = partition_files.read_index_checksums(log.path)
            meta = partition_files.read_meta(log.path)
        except StorageError as error:
            if error.errno != 2:
                raise
            files.remove_tree(folder)
            continue
        if meta is not None and is_as_listed(log, segments, folder):
            sizes = {segment.base_offset: segment.size for segment in segments}
            return _Captured(info, partition, folder, start_offset, segments[-1].end_offset, sizes, meta, checksums)
        files.remove_tree(folder)
        if meta is None:
            raise StorageError(
                f"{log.path} was written by a broker, and no fastlog has had it open for writing since: open the store "
                "without read_only=True, then back it up"
            )
    raise StorageError(f"{log.path} changed {MOST_ATTEMPTS} times while it was backed up: try again")


def is_as_listed(log: PartitionLog, segments: list[SegmentInfo], folder: str) -> bool:
    """Whether the links are of the files that were listed, and all of them were there at one moment."""
    if not {segment.base_offset for segment in segments} <= {segment.base_offset for segment in log.segments()}:
        return False
    for segment in segments:
        link = oscalls.identity(files_path(folder, segment.base_offset))
        found = oscalls.identity(segment.path)
        if link is None or found is None or link[1] != found[1]:
            return False
        # a closed segment has the size that it was closed with; the active one may have grown
        if link[0] < segment.size or (segment is not segments[-1] and link[0] != segment.size):
            return False
    return True


def files_path(folder: str, base_offset: int) -> str:
    """Path of a segment."""
    return partition_files.segment_path(folder, base_offset)


def link_beside(source: str, folder: str, active_base: int) -> None:
    """Link indexes of closed segments and snapshots: hints, which are checked or made again when they are used."""
    for name in oscalls.list_directory(source):
        stem, dot, suffix = name.partition(".")
        is_index = suffix in ("index", "timeindex", "txnindex") and stem.isdigit() and int(stem) < active_base
        is_snapshot = suffix == "snapshot" and stem.isdigit() and int(stem) <= active_base
        if dot and (is_index or is_snapshot):
            try:
                oscalls.link(f"{source}/{name}", f"{folder}/{name}")
            except StorageError as error:
                if error.errno != 2:
                    raise


def write_store(directory: Directory, target: str, infos: list[TopicInfo], captured: list[_Captured]) -> BackupReport:
    """From links to a store; ``fastlog.json`` last."""
    topics, config = f"{target}/{files.TOPICS}", f"{target}/{files.CONFIG}"
    for folder in (topics, config, f"{target}/{files.CONTROL}"):
        oscalls.create_directory(folder)
    linked = copied = 0
    kept = [info for info in infos if is_there(directory, info)]
    for partition in captured:
        if partition.info not in kept:
            if partition.stage.startswith(f"{topics}/"):
                files.remove_tree(partition.stage)
            continue
        more_linked, more_copied = write_partition(partition, topics)
        linked += more_linked
        copied += more_copied
    files.write_meta_properties(topics, directory.cluster_id, naming.new_id())
    for info in kept:
        catalog.write_topic(config, info)
    for folder in (topics, config, target):
        oscalls.sync_directory(folder)
    oscalls.reach_failpoint("backup.copied")
    payload = {"cluster_id": directory.cluster_id, "created": oscalls.wall_clock()}
    files.write_json(f"{target}/{files.STORE}", payload)
    oscalls.reach_failpoint("backup.finished")
    oscalls.remove(f"{target}/{files.UNFINISHED_BACKUP}")
    oscalls.sync_directory(target)
    partitions = sum(partition.info in kept for partition in captured)
    return BackupReport(target, len(kept), partitions, linked, copied)


def write_partition(partition: _Captured, topics: str) -> tuple[int, int]:
    """The folder of one partition, durable: (bytes that were linked, bytes that were copied)."""
    folder = f"{topics}/{naming.folder_name(partition.info.name, partition.partition)}"
    is_linked = folder == partition.stage
    oscalls.create_directory(folder)
    active = max(partition.sizes)
    linked = copied = 0
    for name in oscalls.list_directory(partition.stage):
        source, path = f"{partition.stage}/{name}", f"{folder}/{name}"
        base = int(name.partition(".")[0])
        if name.endswith(".log") and base < active and is_linked:
            oscalls.sync_file(path)
            linked += partition.sizes[base]
            continue
        size = oscalls.file_size(source) if not name.endswith(".log") else partition.sizes[base]
        copy_file(source, path, size or 0)
        copied += size or 0
    files.write_partition_metadata(folder, partition.info.topic_id)
    closed = {base: entry for base, entry in partition.checksums.items() if base < active and base in partition.sizes}
    partition_files.write_index_checksums(folder, closed)
    meta = partition.meta
    partition_files.write_epochs(folder, [(meta.epoch, meta.start_offset)])
    # everything up to the end is durable here, and was checked when it was written
    meta.start_offset = partition.start_offset
    meta.recovery_segment, meta.recovery_position = active, partition.sizes[active]
    meta.recovery_point = partition.end_offset
    meta.last_producer_offset = partition_files.PRODUCERS_UNKNOWN
    meta.inode = oscalls.inode(folder)
    partition_files.write_meta(folder, meta)
    oscalls.sync_directory(folder)
    return linked, copied


def copy_file(source: str, target: str, size: int) -> None:
    """Copy the first ``size`` bytes into a file of its own, durable, with the time of the last change; over a link to
    it too."""
    temporary = f"{target}{files.TEMPORARY}"
    done = partition_files.copy_range(source, 0, size, temporary)
    if done < size:
        raise StorageError(f"{source} has only {done} of {size} bytes: something else changes it")
    oscalls.set_modified(temporary, oscalls.modified_at(source))
    oscalls.rename(temporary, target)
