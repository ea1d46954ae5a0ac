"""From a folder to a store: made, checked, and left so that Kafka can take over."""

from __future__ import annotations

from typing import Final

from fastlog._native import oscalls
from fastlog.errors import CorruptLogError, LockedError, NotSupportedError, UnsupportedFormatError
from fastlog.store import files, naming

FOLDERS: Final = (files.TOPICS, files.CONFIG, files.CONTROL)
# what setting up may have left, and what file systems put into their roots
HARMLESS: Final = (*FOLDERS, "lost+found")


def require_local(root: str) -> None:
    """Locks between processes are only known to hold on local file systems. Raises NotSupportedError."""
    magic, name, is_allowed = oscalls.file_system(root)
    if not is_allowed:
        raise NotSupportedError(
            f"{root} lies on a file system ({name}, number {magic:#x}) whose locks are not known to work between "
            "processes: "
            f"use a local one ({', '.join(oscalls.LOCAL_FILE_SYSTEMS.values())})"
        )


def read_store(root: str) -> str | None:
    """The cluster id of the store in a folder; None when there is no store yet.

    Raises UnsupportedFormatError for a newer format or folders that are none, CorruptLogError for a damaged file.
    """
    path = f"{root}/{files.STORE}"
    payload = files.read_json(path)
    if payload is None:
        return None
    cluster_id = payload.get("cluster_id")
    if not isinstance(cluster_id, str) or not naming.is_id(cluster_id):
        raise CorruptLogError(
            f"{path} is damaged: its cluster_id is {cluster_id!r}, expected 22 characters; nothing was touched. Bring "
            "the "
            f"file back from a backup",
            path,
            0,
        )
    for name in (files.TOPICS, files.CONFIG):
        files.require_folder(f"{root}/{name}")
    return cluster_id


def set_up(root: str) -> str:
    """Make a folder a store, or finish what a predecessor who died began; the cluster id. The root is locked.

    ``fastlog.json`` comes last: without it a folder is no store, and is only made one when nothing in it could be lost.
    """
    cluster_id = read_store(root)
    if cluster_id is None:
        refuse_other_content(root)
        cluster_id = naming.new_id()
        for name in FOLDERS:
            oscalls.create_directory(f"{root}/{name}")
            files.require_folder(f"{root}/{name}")
        files.write_meta_properties(f"{root}/{files.TOPICS}", cluster_id, naming.new_id())
        oscalls.reach_failpoint("store.folders_made")
        oscalls.sync_directory(root)
        # somebody else may have made the root, and be about to sync the one above
        oscalls.sync_parents(root)
        payload = {"cluster_id": cluster_id, "created": oscalls.wall_clock()}
        files.write_json(f"{root}/{files.STORE}", payload)
        oscalls.reach_failpoint("store.made")
    if oscalls.create_directory(f"{root}/{files.CONTROL}"):
        oscalls.sync_directory(root)
    files.require_folder(f"{root}/{files.CONTROL}")
    if not files.read_properties(f"{root}/{files.TOPICS}/{files.META_PROPERTIES}"):
        files.write_meta_properties(f"{root}/{files.TOPICS}", cluster_id, naming.new_id())
    return cluster_id


def refuse_other_content(root: str) -> None:
    """Raise UnsupportedFormatError for a folder that holds something that is no empty, half-made store."""
    strangers = [
        name for name in oscalls.list_directory(root) if name not in HARMLESS and not name.endswith(files.TEMPORARY)
    ]
    if files.UNFINISHED_BACKUP in strangers:
        raise UnsupportedFormatError(
            f"{root} is a backup that was not finished: nothing was touched; remove it, and make the backup again"
        )
    for folder, leftovers in ((files.TOPICS, (files.META_PROPERTIES, files.BROKER_LOCK)), (files.CONFIG, ())):
        path = f"{root}/{folder}"
        if oscalls.entry_kind(path) == "directory":
            strangers += [
                f"{folder}/{name}"
                for name in oscalls.list_directory(path)
                if name not in leftovers and not name.endswith(files.TEMPORARY)
            ]
    if strangers:
        raise UnsupportedFormatError(
            f"{root} is no store: it has no {files.STORE} but holds {min(strangers)!r}; nothing was touched — name an "
            "empty or "
            f"a new folder"
        )


def keep_brokers_out(root: str, *, read_only: bool) -> int:
    """Hold the lock that a Kafka broker takes on its log directory; the descriptor, or -1 when a reader finds no lock.

    Everybody who has the store open shares it. Raises LockedError when a broker has it.
    """
    path = f"{root}/{files.TOPICS}/{files.BROKER_LOCK}"
    if read_only and oscalls.entry_kind(path) is None:
        return -1
    fd = oscalls.open_file(path, writable=not read_only, create=not read_only)
    try:
        if not oscalls.try_share(fd, path):
            raise LockedError(f"{path} is locked: a Kafka broker uses this log directory; stop it first")
    except BaseException:
        oscalls.close_file(fd)
        raise
    return fd
