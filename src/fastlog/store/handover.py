"""What the last process to leave a store tells Kafka: where each partition ends, and that nothing needs to be checked.

All of it is derived from the partitions' own state, and written when it is true of all of them. fastlog keeps the truth
in each partition: it reads but the log starts, of partitions that a broker had since (``recovery``).
"""

from __future__ import annotations

import logging

from fastlog._native import oscalls
from fastlog.errors import CorruptLogError, Error
from fastlog.partition import files as partition_files
from fastlog.store import files, naming

logger = logging.getLogger("fastlog.store")

# as Kafka 4 writes it; -1: no broker has registered
CLEAN_CONTENT = b'{"version":0,"brokerEpoch":-1}'


def clean_marker(folder: str) -> partition_files.CleanMarker | None:
    """What a clean close left in a partition's folder, when the files still are as it says."""
    marker = partition_files.read_clean_marker(folder)
    if marker is None:
        return None
    sizes = {name: oscalls.file_size(f"{folder}/{name}") for name in marker.files}
    bases = partition_files.segment_bases(oscalls.list_directory(folder))
    return marker if sizes == marker.files and len(bases) == len(sizes) else None


def is_untouched(folder: str) -> bool:
    """Whether the folder was made, and no log in it yet: who made it died, or could not go on."""
    bases = partition_files.segment_bases(oscalls.list_directory(folder))
    if bases or partition_files.read_clean_marker(folder) is not None:
        return False
    try:
        return partition_files.is_unmade(bases, partition_files.read_meta(folder))
    except CorruptLogError:  # cut short before the first segment
        return True


def write_clean_state(topics: str) -> bool:
    """Write Kafka's checkpoints and the mark of a clean stop, if every partition is clean; whether it was. Nobody else
    is
    there. Raises StorageError; then there is no mark."""
    ends: dict[tuple[str, int], int] = {}
    starts: dict[tuple[str, int], int] = {}
    for name in oscalls.list_directory(topics):
        key, folder = naming.parse_folder(name), f"{topics}/{name}"
        if key is None or oscalls.entry_kind(folder) != "directory" or is_untouched(folder):
            continue
        marker = clean_marker(folder)
        if marker is None:
            logger.info("%s was not closed cleanly: a broker that takes over checks the files", folder)
            return False
        ends[key] = marker.end_offset
        # Kafka names the start only where it lies behind the first byte
        if marker.meta.start_offset > min(map(base_of, marker.files)):
            starts[key] = marker.meta.start_offset
    for name, entries in (
        (files.RECOVERY_POINTS, ends),
        (files.HIGH_WATERMARKS, ends),
        (files.LOG_STARTS, starts),
    ):
        files.write_checkpoint(f"{topics}/{name}", entries)
    oscalls.reach_failpoint("store.checkpoints_written")
    oscalls.replace_file(f"{topics}/{files.CLEAN_SHUTDOWN}", CLEAN_CONTENT)
    oscalls.reach_failpoint("store.marked")
    return True


def base_of(name: str) -> int:
    """Base offset in the name of a segment."""
    return int(name.removesuffix(".log"))


def try_to_write_clean_state(topics: str) -> None:
    """Likewise; what goes wrong costs a broker time, and nobody else anything."""
    try:
        write_clean_state(topics)
    except Error:
        logger.warning(
            "could not write Kafka's checkpoints in %s: a broker will check the files", topics, exc_info=True
        )
