"""Taking topics away, in steps that anybody can finish: renamed, forgotten, removed."""

from __future__ import annotations

import logging

from fastlog._core import mark_deleted
from fastlog._native import oscalls
from fastlog.errors import StorageError, UnknownTopicError
from fastlog.store import catalog, files, naming
from fastlog.store.catalog import TopicInfo

logger = logging.getLogger("fastlog.store")


def deleted_error(topic: str, partition: int | None = None) -> UnknownTopicError:
    """The error for a topic that was deleted while somebody used it."""
    return UnknownTopicError(
        f"the topic {topic!r} was deleted meanwhile: create it again, or use another one", topic, partition
    )


def delete_partitions(topics: str, config: str, info: TopicInfo, timeout: int) -> list[str]:
    """Rename the folders of a topic's partitions, forget the topic; the folders that are left to be removed.

    Its file says that it is being deleted: whoever finds it so does the rest.
    """
    renamed = []
    for name in oscalls.list_directory(topics):
        found = naming.parse_folder(name)
        if found is None or found[0] != info.name or oscalls.entry_kind(f"{topics}/{name}") != "directory":
            continue
        mark_deleted(f"{topics}/{name}", timeout)
        target = f"{topics}/{naming.deleted_name(*found)}"
        oscalls.rename(f"{topics}/{name}", target)
        renamed.append(target)
        oscalls.reach_failpoint("store.partition_renamed")
    # also where nothing was left to rename: who began it may have died, or failed, before this
    oscalls.sync_directory(topics)
    forget_checkpoints(topics, info.name)
    oscalls.remove(catalog.topic_path(config, info.name))
    oscalls.sync_directory(config)
    oscalls.reach_failpoint("store.topic_forgotten")
    return renamed


def forget_checkpoints(topics: str, topic: str) -> None:
    """What Kafka's checkpoints say of a topic must not be believed of its successor."""
    for name in files.CHECKPOINTS:
        entries = files.read_checkpoint(f"{topics}/{name}")
        kept = {key: offset for key, offset in entries.items() if key[0] != topic}
        if kept != entries:
            files.write_checkpoint(f"{topics}/{name}", kept)


def purge(topics: str) -> None:
    """Remove folders of deleted partitions that somebody left."""
    for name in oscalls.list_directory(topics):
        if naming.is_deleted_name(name) and oscalls.entry_kind(f"{topics}/{name}") == "directory":
            remove_renamed(f"{topics}/{name}")


def remove_renamed(folder: str) -> None:
    """Remove the folder of a deleted partition. What cannot be removed is left to the next who purges."""
    try:
        files.remove_tree(folder)
    except StorageError:
        logger.warning("could not remove the deleted partition %s", folder, exc_info=True)


def remove_temporary_files(folder: str) -> None:
    """Remove files that somebody was writing when he died; nobody else is there."""
    for name in oscalls.list_directory(folder):
        if name.endswith(files.TEMPORARY) and oscalls.entry_kind(f"{folder}/{name}") == "file":
            oscalls.remove(f"{folder}/{name}")
