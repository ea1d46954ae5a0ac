"""A subscriber: a handler with its topics, its group and its policies, checked when it is declared."""

from __future__ import annotations

import copy
import inspect
import re
from collections.abc import Callable, Sequence
from typing import Any, Final, Literal

from fastlog.clients.starting import Start, start_of
from fastlog.config import parse_duration_ms
from fastlog.errors import ConfigError

from .deduplicator import Deduplicator
from .naming import check_group, check_names
from .policy import Breaker, Duration, Retry
from .work import ORDERS

__all__ = ["ORDERS", "Duration", "Handler", "Subscriber"]

Handler = Callable[..., Any]

MOST_AT_ONCE: Final = 10_000


class Subscriber:
    """What ``App.subscriber`` declares. Immutable; may be shared.

    Attributes:
        handler: the function as it was written.
        name: how it is called in messages and ``stats``; the group, unless given.
        topics: names, or a compiled pattern.
        group: the consumer group.
        concurrency: calls at once, in each process.
        order_by: ``"partition"``, ``"key"`` or ``"none"``.
        retry: how often and when a failed record is tried; one attempt when ``None`` was given.
        dead_letter: whether records without attempts left go to the dead-letter topic.
        retry_topic, dead_letter_topic: names in place of those that follow from topic and group.
        timeout_ms: how long a call may take; None: for ever.
        batch: the most records of a call that takes lists; None: one record a call.
        is_async: whether the handler is a coroutine function.
    """

    def __init__(
        self,
        handler: Handler,
        topics: str | Sequence[str] | re.Pattern[str],
        *,
        group: str,
        name: str | None,
        concurrency: int,
        order_by: Literal["partition", "key", "none"],
        retry: Retry | None,
        dead_letter: bool,
        retry_topic: str | None,
        dead_letter_topic: str | None,
        timeout: Duration | None,
        batch: int | None,
        start: Start,
        block_on_dead_letter: bool,
        breaker: Breaker | None,
        deduplicate: Deduplicator | None,
        key_deserializer: Callable[[bytes], Any] | None,
        value_deserializer: Callable[[bytes], Any] | None,
        drain_timeout: Duration,
        max_poll_interval: Duration,
    ) -> None:
        if not callable(handler):
            raise ConfigError(f"a subscriber is a function, found {handler!r}")
        self.handler = handler
        self.topics = checked_topics(topics)
        self.group = check_group(group)
        self.name = group if name is None else checked_kind(name, "name", str)
        self.concurrency = checked_count(concurrency, "concurrency")
        if order_by not in ORDERS:
            raise ConfigError(f"order_by={order_by!r}: expected one of {', '.join(map(repr, ORDERS))}")
        self.order_by = order_by
        self.retry = Retry(1) if retry is None else checked_kind(retry, "retry", Retry)
        self.dead_letter = checked_kind(dead_letter, "dead_letter", bool)
        self.retry_topic, self.dead_letter_topic = retry_topic, dead_letter_topic
        self._check_names()
        self.timeout_ms = None if timeout is None else positive(timeout, "timeout")
        self.batch = None if batch is None else checked_count(batch, "batch")
        self.start: Start = start
        start_of(start)
        self.block_on_dead_letter = checked_kind(block_on_dead_letter, "block_on_dead_letter", bool)
        self.breaker = None if breaker is None else checked_kind(breaker, "breaker", Breaker)
        self.deduplicate = None if deduplicate is None else checked_kind(deduplicate, "deduplicate", Deduplicator)
        for option, given in (("key_deserializer", key_deserializer), ("value_deserializer", value_deserializer)):
            if given is not None and not callable(given):
                raise ConfigError(f"{option} is a {type(given).__name__}: expected a callable that takes bytes")
        self.key_deserializer, self.value_deserializer = key_deserializer, value_deserializer
        self.max_poll_interval = max_poll_interval
        # who waits longer is put out meanwhile, and could not commit
        longest = positive(max_poll_interval, "max_poll_interval") * 4 // 5
        self.drain_ms = min(positive(drain_timeout, "drain_timeout", least=0), longest)
        self.is_async = inspect.iscoroutinefunction(handler) or inspect.iscoroutinefunction(
            getattr(handler, "__call__", None)  # noqa: B004  # not whether it can be called, but how
        )

    def _check_names(self) -> None:
        for option, given in (("retry_topic", self.retry_topic), ("dead_letter_topic", self.dead_letter_topic)):
            if given is not None and (isinstance(self.topics, re.Pattern) or len(self.topics) > 1):
                raise ConfigError(
                    f"{option}={given!r} for more than one topic: each has its own, so leave it out, or declare a "
                    f"subscriber for each topic"
                )
        if not isinstance(self.topics, re.Pattern):
            for topic in self.topics:
                check_names(topic, self.group, self.retry_topic, self.dead_letter_topic)

    def changed(self, **attributes: Any) -> Subscriber:
        """The same with other attributes; they are not checked again."""
        found = copy.copy(self)
        for name, value in attributes.items():
            setattr(found, name, value)
        return found

    @property
    def decodes(self) -> bool:
        """Whether there is a deserializer."""
        return self.key_deserializer is not None or self.value_deserializer is not None

    def claims(self) -> list[tuple[str, str]]:
        """Topic and group, or the pattern's text and the group: no other subscriber of the app may have one of them."""
        topics = [self.topics.pattern] if isinstance(self.topics, re.Pattern) else self.topics
        return [(topic, self.group) for topic in topics]

    def __repr__(self) -> str:
        return f"<Subscriber {self.name!r}: {self.topics!r}, group {self.group!r}, ordered by {self.order_by}>"


def checked_topics(topics: str | Sequence[str] | re.Pattern[str]) -> list[str] | re.Pattern[str]:
    if isinstance(topics, re.Pattern):
        if not isinstance(topics.pattern, str):
            raise ConfigError(f"the pattern {topics!r} matches bytes: topics have names of str")
        return topics
    names = [topics] if isinstance(topics, str) else list(topics) if isinstance(topics, (list, tuple, set)) else []
    if not names or not all(isinstance(name, str) for name in names):
        raise ConfigError(f"topics={topics!r}: expected a name, a list of names, or a compiled pattern")
    return list(dict.fromkeys(names))


def checked_count(value: object, name: str) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= MOST_AT_ONCE:
        raise ConfigError(f"{name}={value!r}: expected an integer from 1 to {MOST_AT_ONCE}")
    return value


def checked_kind(value: Any, name: str, kind: type) -> Any:
    if not isinstance(value, kind):
        raise ConfigError(f"{name}={value!r} is a {type(value).__name__}: expected a {kind.__name__}")
    return value


def positive(value: Duration, name: str, least: int = 1) -> int:
    milliseconds = parse_duration_ms(value, name)
    if milliseconds < least:
        raise ConfigError(f"{name}={value!r}: expected at least {least} ms")
    return milliseconds
