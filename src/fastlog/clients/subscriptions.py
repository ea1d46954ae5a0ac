"""What a consumer without a group reads: names, a pattern or partitions, followed as topics come and go."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from fastlog.errors import ConfigError, UnknownTopicError
from fastlog.records import TopicPartition, list_of, named_partition

if TYPE_CHECKING:
    from fastlog.store.directory import Directory

__all__ = ["Subscription"]


class Subscription:
    """Topics by name or pattern, or single partitions.

    A pattern has to match the whole name, as in Kafka; internal, retry and dead-letter topics are never matched.

    Attributes:
        topics: the names, for a pattern those that match now.
        is_following: whether partitions that appear from now on are new ones.
    """

    def __init__(
        self,
        directory: Directory,
        topics: str | Sequence[str] | re.Pattern[str],
        partitions: Iterable[TopicPartition | tuple[str, int] | int] | None,
    ) -> None:
        self._directory = directory
        self._pattern = topics if isinstance(topics, re.Pattern) else None
        self._named = [] if isinstance(topics, re.Pattern) else names_of(topics)
        self._version = directory.topics_version
        self._given = None if partitions is None else self._check(partitions)
        self.is_following = False
        for name in self._named:
            directory.topic(name)  # UnknownTopicError names the nearest

    def _check(self, partitions: Iterable[TopicPartition | tuple[str, int] | int]) -> list[TopicPartition]:
        found = []
        for given in list_of(partitions, "partitions", "TopicPartitions, or numbers with a single topic"):
            if isinstance(given, int) and not isinstance(given, bool):
                if len(self._named) != 1:
                    raise ConfigError(
                        f"partitions=[{given}, …] with {len(self._named)} topics: say which one, by "
                        "TopicPartition(topic, number)"
                    )
                given = (self._named[0], given)
            name = named_partition(given)
            count = self._directory.topic(name.topic).partitions
            if not 0 <= name.partition < count:
                raise UnknownTopicError(
                    f"topic {name.topic!r} has no partition {name.partition}: it has {count}, numbered from 0"
                )
            found.append(name)
        return found

    @property
    def topics(self) -> list[str]:
        """The names; for a pattern those that match now."""
        if self._pattern is None:
            return self._named
        owned = self._directory.owned_topics()
        return [name for name in self._directory.topics() if name not in owned and self._pattern.fullmatch(name)]

    @property
    def is_outdated(self) -> bool:
        """Whether ``has_changed`` would say so."""
        return self._directory.topics_version != self._version

    def has_changed(self) -> bool:
        """Whether topics came or went since the last look. Cheap."""
        version = self._directory.topics_version
        if version == self._version:
            return False
        self._version = version
        return True

    def partitions(self) -> list[TopicPartition]:
        """Every partition to read now; of topics that are gone, none."""
        there = set(self._directory.topics(internal=True))
        if self._given is not None:
            return [name for name in self._given if name.topic in there]
        return [
            TopicPartition(topic, number)
            for topic in self.topics
            if topic in there
            for number in range(self._directory.topic(topic).partitions)
        ]


def names_of(topics: str | Sequence[str]) -> list[str]:
    """Names of topics, each once. Raises ConfigError."""
    given: list[str] = []
    if isinstance(topics, Iterable):
        given = [topics] if isinstance(topics, str) else list(topics)
    if not given or not all(isinstance(name, str) for name in given):
        raise ConfigError(f"topics={topics!r}: expected a name, a list of names, or a compiled pattern")
    return list(dict.fromkeys(given))
