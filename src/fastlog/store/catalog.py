"""Which topics there are: ``config/<topic>.json``, read again when somebody changed them."""

from __future__ import annotations

import copy
import logging
from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, Final, NamedTuple

from fastlog._native import oscalls
from fastlog.errors import CorruptLogError, Error, StorageError
from fastlog.store import files, naming

logger = logging.getLogger("fastlog.store")

SUFFIX: Final = ".json"
# a change in the same tick of the file system's clock could not be told from the one before
TICK_MS: Final = 50
NEVER: Final = (-1, -1)
UNREAD: Final = ()  # of a file that the operating system did not let us read: it is tried again


class TopicOwner(NamedTuple):
    """For whom a topic is kept that nobody subscribes to by chance: what a group could not handle yet, or at all.

    Attributes:
        topic, group: whose records, and which group's.
        kind: ``"retry"`` or ``"dead-letter"``.
    """

    topic: str
    group: str
    kind: str


@dataclass(frozen=True, slots=True)
class TopicInfo:
    """One topic, as it was when this was made.

    Attributes:
        name: its name.
        topic_id: 22 characters, as Kafka writes ids; a topic that was deleted and created again has another one.
        partitions: how many it has.
        options: the options that were given, under Kafka's dotted names; sizes in bytes, durations in milliseconds.
        internal: whether fastlog keeps it for itself.
        owner: of a retry or dead-letter topic: whose it is; else None.
    """

    name: str
    topic_id: str
    partitions: int
    options: Mapping[str, Any] = field(default_factory=lambda: MappingProxyType({}))
    internal: bool = False
    owner: TopicOwner | None = None


def topic_path(config: str, name: str) -> str:
    """Path of a topic's file."""
    return f"{config}/{name}{SUFFIX}"


def write_topic(config: str, info: TopicInfo, *, deleting: bool = False) -> None:
    """Write a topic's file, atomically and durably."""
    payload: dict[str, Any] = {
        "name": info.name,
        "topic_id": info.topic_id,
        "partitions": info.partitions,
        "internal": info.internal,
        "options": dict(info.options),
    }
    if info.owner is not None:
        payload["owner"] = info.owner._asdict()
    if deleting:
        payload["deleting"] = True
    files.write_json(topic_path(config, info.name), payload)


def read_topic(config: str, name: str) -> tuple[TopicInfo, bool] | None:
    """A topic and whether its deletion has begun; None when there is none. Raises CorruptLogError,
    UnsupportedFormatError."""
    path = topic_path(config, name)
    payload = files.read_json(path)
    if payload is None:
        return None
    partitions, options, owner = payload.get("partitions"), payload.get("options", {}), payload.get("owner")
    if (
        payload.get("name") != name
        or not naming.is_id(payload.get("topic_id"))
        or isinstance(partitions, bool)
        or not isinstance(partitions, int)
        or not 1 <= partitions <= naming.MOST_PARTITIONS
        or not isinstance(options, dict)
        or not is_owner(owner)
    ):
        raise CorruptLogError(
            f"{path} is damaged: its name, topic_id, partitions, options or owner are not what a topic has; nothing "
            f"was touched. Bring the file back from a backup",
            path,
            0,
        )
    info = TopicInfo(
        name,
        payload["topic_id"],
        partitions,
        MappingProxyType(options),
        bool(payload.get("internal", False)),
        None if owner is None else TopicOwner(**{name: owner[name] for name in TopicOwner._fields}),
    )
    return info, bool(payload.get("deleting", False))


def is_owner(found: Any) -> bool:
    """Whether this is what a topic's file says of its owner: nothing, or a name for each field."""
    if found is None:
        return True
    return isinstance(found, dict) and all(
        isinstance(found.get(name), str) and found[name] for name in TopicOwner._fields
    )


class Catalog:
    """The topics of a store as last read. Not thread-safe: its directory guards it.

    Attributes:
        topics: what there is.
        deleting: topics whose deletion was begun, and not finished by who began it.
        damaged: topics whose file cannot be used, and why; ``require_sound`` raises it.
    """

    def __init__(self, config: str) -> None:
        self.config = config
        self.topics: dict[str, TopicInfo] = {}
        self.deleting: dict[str, TopicInfo] = {}
        self.damaged: dict[str, Error] = {}
        self._stamps: dict[str, tuple[int, ...]] = {}
        self._read_at = NEVER

    def looks_changed(self) -> bool:
        """Whether the folder changed since it was last read, as far as its time tells, or somebody mended a damaged
        file in place; one system call, and one for each of these."""
        changed, read_at = self._read_at
        now = oscalls.change_time(self.config)
        if now != changed or abs(read_at - changed // 1_000_000) <= TICK_MS:
            return True
        # other threads may read meanwhile
        stamps = self._stamps
        return any(oscalls.file_stamp(topic_path(self.config, name)) != stamps.get(name) for name in list(self.damaged))

    def read(self) -> bool:
        """Read what changed; whether anything did."""
        now = oscalls.wall_clock()
        changed = oscalls.change_time(self.config)
        # until all was read, it looks changed: an error on the way loses nothing
        self._read_at = NEVER
        before = self._stamps
        stamps: dict[str, tuple[int, ...]] = {}
        for file_name in oscalls.list_directory(self.config):
            name = file_name.removesuffix(SUFFIX)
            if name == file_name or file_name.startswith("."):
                continue
            stamp = oscalls.file_stamp(f"{self.config}/{file_name}")
            if stamp is None:
                continue
            stamps[name] = stamp
            if stamp != before.get(name) and not self._read_one(name):
                stamps[name] = UNREAD
        for name in before.keys() - stamps.keys():
            self._forget(name)
        self._stamps = stamps
        if UNREAD not in stamps.values():
            self._read_at = changed, now
        return stamps != before

    def require_sound(self, name: str) -> None:
        """Raises why a topic's file cannot be used, if it cannot: an error of its own for each caller."""
        if name in self.damaged:
            raise copy.copy(self.damaged[name])

    def _forget(self, name: str) -> None:
        for known in (self.topics, self.deleting, self.damaged):
            known.pop(name, None)

    def _read_one(self, name: str) -> bool:
        """Whether the operating system let us read it. Where it did not, a topic that is known stays as it is."""
        try:
            naming.check_name(name)
            found = read_topic(self.config, name)
        except StorageError as error:
            if name not in self.topics and name not in self.deleting:
                self.damaged[name] = copy.copy(error)
            elif self._stamps[name] != UNREAD:
                logger.warning("the topic %r goes on as it was until its file can be read: %s", name, error)
            return False
        except Error as error:
            self._forget(name)
            self.damaged[name] = copy.copy(error)  # without the stack, which would keep our callers alive
            return True
        self._forget(name)
        if found is not None:
            (self.deleting if found[1] else self.topics)[name] = found[0]
        return True
