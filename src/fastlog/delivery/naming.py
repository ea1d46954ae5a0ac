"""The topics beside a topic: what a group tries again, and what it gave up. Their names, and whose they are.

The names follow from topic and group, unless they are given. Two pairs may lead to one name (topic ``a.b`` and group
``c``, topic ``a`` and group ``b.c``); so each of these topics says in the store's catalog whose it is, and serves
nobody else.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final, Literal, TypeAlias

from fastlog.config import LogConfig
from fastlog.errors import ConfigError, InvalidTopicError, TopicExistsError
from fastlog.store import naming
from fastlog.store.catalog import TopicInfo, TopicOwner

if TYPE_CHECKING:
    from fastlog.store.directory import Directory

__all__ = [
    "DEAD_LETTER",
    "HEADERS_ROOM",
    "RETRY",
    "check_group",
    "check_names",
    "dead_letter_topic_name",
    "dead_letter_topics",
    "owned_topic",
    "require_topic",
    "retry_topic_name",
]

Kind: TypeAlias = Literal["retry", "dead-letter"]

RETRY: Final = "retry"
DEAD_LETTER: Final = "dead-letter"
SUFFIXES: Final = {RETRY: "retry", DEAD_LETTER: "dlq"}
OPTIONS: Final = {RETRY: "retry_topic", DEAD_LETTER: "dead_letter_topic"}
# the headers that a moved record gets, at most; see delivery/headers.py
HEADERS_ROOM: Final = 64 * 1024
# what a compressed batch may hold in a single record, by default: it is moved as it is, and not compressed
LARGEST_RECORD: Final = 64 * 1024 * 1024
LIMIT: Final = "max.message.bytes"

_GROUP: Final = re.compile(r"[a-zA-Z0-9._-]+")


def check_group(group: object) -> str:
    """The group, when names of topics can be made of it. Raises ConfigError."""
    if not isinstance(group, str):
        raise ConfigError(f"the group of handlers is a str, found {type(group).__name__}")
    if not _GROUP.fullmatch(group):
        wrong = next((character for character in group if not _GROUP.fullmatch(character)), "nothing")
        raise ConfigError(
            f"the group {group[:40]!r} contains {wrong!r}: a group of handlers is named by letters and digits of "
            f"ASCII, '.', '_' and '-', as its retry and dead-letter topics are named after it"
        )
    return group


def retry_topic_name(topic: str, group: str) -> str:
    """``<topic>.<group>.retry``. Raises ConfigError when that is no legal name."""
    return _derived(topic, group, RETRY)


def dead_letter_topic_name(topic: str, group: str) -> str:
    """``<topic>.<group>.dlq``. Raises ConfigError when that is no legal name."""
    return _derived(topic, group, DEAD_LETTER)


def _derived(topic: str, group: str, kind: Kind) -> str:
    naming.check_name(topic)
    name = f"{topic}.{check_group(group)}.{SUFFIXES[kind]}"
    if len(name) > naming.MOST_NAME:
        raise ConfigError(
            f"the {kind} topic of topic {topic[:40]!r} and group {group[:40]!r} would have a name of {len(name)} "
            f"characters, expected at most {naming.MOST_NAME}: choose shorter ones, or name it by {OPTIONS[kind]}="
        )
    return name


def _given(name: object, kind: Kind) -> str:
    try:
        return naming.check_name(name)
    except InvalidTopicError as error:
        raise ConfigError(f"{OPTIONS[kind]}={name!r}: {error}") from None


def check_names(
    topic: str, group: str, retry_topic: str | None = None, dead_letter_topic: str | None = None
) -> tuple[str, str]:
    """The names of the retry and the dead-letter topic of a group: the given ones, else those that follow.

    Looks at names only, at no store. Raises ConfigError for a group or a name that cannot be, or that is taken twice;
    InvalidTopicError for the topic.
    """
    naming.check_name(topic)
    check_group(group)
    retry = retry_topic_name(topic, group) if retry_topic is None else _given(retry_topic, RETRY)
    dead = dead_letter_topic_name(topic, group) if dead_letter_topic is None else _given(dead_letter_topic, DEAD_LETTER)
    if len({topic, retry, dead}) < 3:
        raise ConfigError(
            f"topic {topic!r}, retry_topic={retry!r} and dead_letter_topic={dead!r}: expected three different names"
        )
    return retry, dead


def owned_topic(directory: Directory, topic: str, group: str, kind: Kind) -> TopicInfo | None:
    """The retry or dead-letter topic of a topic and a group, whatever its name; None when there is none."""
    owner = TopicOwner(topic, group, kind)
    name = next((name for name, found in directory.owned_topics().items() if found == owner), None)
    return None if name is None else directory.topic(name)


def dead_letter_topics(directory: Directory) -> dict[str, TopicOwner]:
    """Every dead-letter topic of the store and whose it is, sorted by name."""
    return {name: owner for name, owner in sorted(directory.owned_topics().items()) if owner.kind == DEAD_LETTER}


def require_topic(directory: Directory, topic: str, group: str, kind: Kind, name: str | None = None) -> TopicInfo:
    """The retry or dead-letter topic of a topic and a group, made when it is not there.

    It has as many partitions as its topic, and gets more when that got more; its records may be larger by the headers
    of a move. A topic of that name that belongs to nobody is taken when it is empty. Any process may call it at any
    time.

    Args:
        directory: the store.
        topic, group: whose it is.
        kind: ``RETRY`` or ``DEAD_LETTER``.
        name: its name; None for the one that follows from topic and group.

    Raises:
        ConfigError: the name cannot be, or is taken by something else; the pair has one of another name; the topic is
            internal.
        UnknownTopicError: there is no such topic.
        NotSupportedError: the store is read-only.
    """
    source = directory.topic(topic)
    if source.internal:
        raise ConfigError(f"the topic {topic!r} is fastlog's own: handlers cannot subscribe to it")
    if name is None:
        name = _derived(topic, group, kind)
    else:
        check_group(group)
        name = _given(name, kind)
    if name == topic:
        raise ConfigError(f"{OPTIONS[kind]}={name!r} is the topic itself: expected another one")
    owner = TopicOwner(topic, group, kind)
    try:
        info = directory.create_topic(
            name, source.partitions, options={LIMIT: record_limit(source)}, exist_ok=True, owner=owner
        )
        if info.owner != owner:
            info = _taken(directory, info, owner)
    except (TopicExistsError, InvalidTopicError) as error:
        raise ConfigError(f"{OPTIONS[kind]}={name!r} for topic {topic!r} and group {group!r}: {error}") from error
    return _fitted(directory, info, source)


def record_limit(source: TopicInfo) -> int:
    """``max.message.bytes`` of a topic in which any record of ``source`` finds room, with the headers of a move."""
    given = LogConfig.from_options({LIMIT: source.options[LIMIT]} if LIMIT in source.options else {}).resolve()
    return min(max(given.max_message_bytes, LARGEST_RECORD) + HEADERS_ROOM, 1 << 30)


def _taken(directory: Directory, info: TopicInfo, owner: TopicOwner) -> TopicInfo:
    """A topic that was there already, for its owner from now on: only an empty one that belongs to nobody."""
    if info.owner is not None:
        raise ConfigError(
            f"the topic {info.name!r} is the {info.owner.kind} topic of topic {info.owner.topic!r} and group "
            f"{info.owner.group!r}: name another one by {OPTIONS[owner.kind]}= for topic {owner.topic!r} and group "
            f"{owner.group!r}"
        )
    if (
        info.internal
        or "compact" in str(info.options.get("cleanup.policy", "delete"))
        or not _is_empty(directory, info)
    ):
        raise ConfigError(
            f"the topic {info.name!r} is there already, and holds something else or is compacted: expected an empty "
            f"topic, or none; name another one by {OPTIONS[owner.kind]}="
        )
    return directory.own_topic(info.name, owner)


def _is_empty(directory: Directory, info: TopicInfo) -> bool:
    for partition in range(info.partitions):
        if directory.is_created(info.name, partition):
            with directory.lease(info.name, partition) as lease:
                if lease.log.end_offset:
                    return False
    return True


def _fitted(directory: Directory, info: TopicInfo, source: TopicInfo) -> TopicInfo:
    """With room for what the source has by now."""
    limit = record_limit(source)
    if int(info.options.get(LIMIT, 0)) < limit:
        info = directory.alter_topic(info.name, {LIMIT: limit})
    if info.partitions < source.partitions:
        try:
            info = directory.add_partitions(info.name, source.partitions)
        except InvalidTopicError:
            info = directory.topic(info.name)  # somebody else was faster
            if info.partitions < source.partitions:
                raise
    return info
