"""The files of a store: where they are, what is in them, and the locks that lie on them.

========================  ==============================================================================================
``fastlog.json``          format version, cluster id, time of creation: written last, a folder without it is no store
``config/<topic>.json``   a topic: number of partitions, id, options. Its presence is what makes a topic exist
``topics/``               a log directory as Kafka has it: one folder a partition, ``meta.properties``, ``.lock``,
checkpoints
``control/``              shared pages and locks of who is there; worth nothing once nobody is
========================  ==============================================================================================

Locks, all of the kernel: ``flock`` on ``control`` says who has the store open, on the root that it is being set up or
taken down, on ``config`` who changes topics, on ``config/<topic>.json`` (shared) who is opening one of its partitions;
an
OFD read lock on ``topics/.lock`` keeps a Kafka broker out.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Final

from fastlog._native import oscalls
from fastlog._native.checksum import crc32c
from fastlog.errors import CorruptLogError, LockedError, StorageError, UnsupportedFormatError
from fastlog.partition.files import LOG_STARTS as LOG_STARTS
from fastlog.partition.files import PARTITION_METADATA as PARTITION_METADATA
from fastlog.partition.files import read_checkpoint as read_checkpoint
from fastlog.store import naming

FORMAT_VERSION: Final = 1
CHECKSUM: Final = "crc32c"
STORE: Final = "fastlog.json"
TOPICS: Final = "topics"
CONFIG: Final = "config"
CONTROL: Final = "control"
META_PROPERTIES: Final = "meta.properties"
BROKER_LOCK: Final = ".lock"
RECOVERY_POINTS: Final = "recovery-point-offset-checkpoint"
HIGH_WATERMARKS: Final = "replication-offset-checkpoint"
CHECKPOINTS: Final = (RECOVERY_POINTS, HIGH_WATERMARKS, LOG_STARTS)
CLEAN_SHUTDOWN: Final = ".kafka_cleanshutdown"
UNFINISHED_BACKUP: Final = "backup.unfinished"
TEMPORARY: Final = ".tmp"

POLL_MS: Final = 2


# --- JSON ------------------------------------------------------------------------------------------------------------


def read_json(path: str) -> dict[str, Any] | None:
    """A file of ours; None when it is not there. Raises UnsupportedFormatError for a newer one, CorruptLogError for
    none."""
    content = oscalls.read_file(path)
    if content is None:
        return None
    try:
        payload = json.loads(content)
    except (ValueError, RecursionError):
        payload = None
    if not isinstance(payload, dict) or not isinstance(payload.get("format"), int):
        raise CorruptLogError(
            f"{path} is damaged: expected a JSON object with a format version, found {content[:40]!r}; nothing was "
            "touched. "
            f"Bring the file back from a backup",
            path,
            0,
        )
    if payload["format"] > FORMAT_VERSION:
        raise UnsupportedFormatError(
            f"{path} has format {payload['format']}, this fastlog reads up to {FORMAT_VERSION}: nothing was touched; "
            "upgrade "
            f"with `pip install --upgrade fastlog-engine`"
        )
    found = payload.pop(CHECKSUM, None)  # who writes one by hand leaves it out
    if found is not None and found != checksum_of(payload):
        raise CorruptLogError(
            f"{path} is damaged: its {CHECKSUM} is {found!r}, expected {checksum_of(payload)!r}; nothing was touched. "
            f"Bring the file back from a backup; if it was changed by hand, take the {CHECKSUM} out of it",
            path,
            0,
        )
    return payload


def write_json(path: str, payload: Mapping[str, Any]) -> None:
    """Write a file of ours as a whole, durably: either all of it is there, or nothing changed."""
    content = {"format": FORMAT_VERSION, **payload}
    content[CHECKSUM] = checksum_of(content)
    oscalls.replace_file(path, json.dumps(content, indent=1).encode() + b"\n")


def checksum_of(content: Mapping[str, Any]) -> str:
    """CRC-32C of what a file of ours says, as eight hex digits."""
    return f"{crc32c(json.dumps(content, sort_keys=True).encode()):08x}"


# --- Kafka's small files ---------------------------------------------------------------------------------------------


def read_properties(path: str) -> dict[str, str]:
    """A Java properties file as Kafka writes them; empty when it is not there."""
    content = oscalls.read_file(path)
    found: dict[str, str] = {}
    for line in (content or b"").decode("utf-8", "replace").splitlines():
        name, equals, value = line.strip().partition("=")
        if equals and not name.startswith(("#", "!")):
            found[name.strip()] = value.strip()
    return found


def write_meta_properties(topics: str, cluster_id: str, directory_id: str) -> None:
    """``meta.properties``: what a Kafka broker wants to know of its log directory."""
    lines = ("version=1", f"cluster.id={cluster_id}", "node.id=1", f"directory.id={directory_id}", "")
    oscalls.replace_file(f"{topics}/{META_PROPERTIES}", "\n".join(lines).encode())


def write_partition_metadata(folder: str, topic_id: str) -> None:
    """``partition.metadata``: durable before the first record of the partition."""
    oscalls.replace_file(f"{folder}/{PARTITION_METADATA}", f"version: 0\ntopic_id: {topic_id}".encode())


def read_partition_topic_id(folder: str) -> str | None:
    """The topic id of a partition's folder; None when the file is not there or cannot be read."""
    content = oscalls.read_file(f"{folder}/{PARTITION_METADATA}")
    for line in (content or b"").decode("utf-8", "replace").splitlines():
        name, colon, value = line.partition(":")
        if colon and name.strip() == "topic_id" and naming.is_id(value.strip()):
            return value.strip()
    return None


def write_checkpoint(path: str, entries: Mapping[tuple[str, int], int]) -> None:
    """Write one of Kafka's offset checkpoints: version, count, one line a partition."""
    lines = [f"{topic} {partition} {offset}" for (topic, partition), offset in sorted(entries.items())]
    oscalls.replace_file(path, "\n".join(["0", str(len(lines)), *lines, ""]).encode())


# --- folders ---------------------------------------------------------------------------------------------------------


def require_folder(path: str) -> None:
    """A folder of the store that is one: links are not followed. Raises UnsupportedFormatError."""
    kind = oscalls.entry_kind(path)
    if kind != "directory":
        found = {None: "missing", "link": "a symbolic link"}.get(kind, f"a {kind}")
        raise UnsupportedFormatError(f"{path} is {found}, expected a folder of a store; nothing was touched")


def remove_tree(path: str) -> None:
    """Remove a folder and everything in it; links in it go, what they point to stays. What is gone already is no
    error."""
    try:
        names = oscalls.list_directory(path)
    except StorageError:
        if oscalls.entry_kind(path) is None:
            return
        raise
    for name in names:
        inner = f"{path}/{name}"
        if oscalls.entry_kind(inner) == "directory":
            remove_tree(inner)
        else:
            oscalls.remove(inner)
    oscalls.remove_directory(path)


def empty_folder(path: str) -> None:
    """Remove everything in a folder."""
    for name in oscalls.list_directory(path):
        inner = f"{path}/{name}"
        if oscalls.entry_kind(inner) == "directory":
            remove_tree(inner)
        else:
            oscalls.remove(inner)


# --- locks -----------------------------------------------------------------------------------------------------------


def wait_for_lock(fd: int, path: str, timeout: float, what: str, *, shared: bool = False) -> None:
    """Take a ``flock``, within ``timeout`` milliseconds; asks often at first. Raises LockedError."""
    stop = oscalls.steady_clock() + timeout
    pause = POLL_MS / 20
    while not oscalls.try_lock(fd, shared):
        if oscalls.steady_clock() >= stop:
            raise still_locked(path, timeout, what)
        oscalls.nap(pause)
        pause = min(pause * 1.5, POLL_MS)


def still_locked(path: str, timeout: float, what: str) -> LockedError:
    """The error for who waited ``timeout`` milliseconds in vain."""
    return LockedError(
        f"{path} is locked: another process {what} for more than {timeout / 1000:g} s; it may be stopped (a debugger, "
        f"SIGSTOP): let it go on, or end it; lock_timeout says how long to wait. Nothing was changed"
    )


@contextmanager
def locked_folder(path: str, timeout: int, what: str) -> Iterator[None]:
    """Hold a folder's lock alone. Raises LockedError after ``timeout`` milliseconds."""
    fd = oscalls.open_directory(path)
    try:
        wait_for_lock(fd, path, timeout, what)
        yield
    finally:
        oscalls.close_file(fd)


@contextmanager
def locked_file(path: str, timeout: int, what: str, *, shared: bool) -> Iterator[bool]:
    """Hold the lock of a file that others may replace or remove; False when it is not there (then nothing is held)."""
    while True:
        if oscalls.entry_kind(path) != "file":
            yield False
            return
        try:
            fd = oscalls.open_file(path)
        except StorageError:
            if oscalls.entry_kind(path) is None:
                continue
            raise
        try:
            wait_for_lock(fd, path, timeout, what, shared=shared)
            found = oscalls.identity(path)
            if found is not None and found[1] == oscalls.inode_of(fd):
                yield True
                return
        finally:
            oscalls.close_file(fd)
