"""From where a consumer starts where nothing was committed, and what it does when its offset is no longer there."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import TypeAlias

from fastlog._core import PartitionLog
from fastlog._native import oscalls
from fastlog.config import parse_duration_ms
from fastlog.errors import ConfigError
from fastlog.groups.lag import readable_end
from fastlog.records import TopicPartition

__all__ = ["OUT_OF_RANGE", "Start", "Starting", "aware", "offset_at", "start_of", "start_offset"]

Start: TypeAlias = "str | datetime | Callable[[TopicPartition], int | str | datetime]"
Starting: TypeAlias = "str | int | datetime | Callable[[TopicPartition], int | str | datetime]"

OUT_OF_RANGE = ("start", "earliest", "latest", "raise")


def aware(moment: datetime, name: str) -> datetime:
    """``moment``, or ConfigError when it has no time zone."""
    if moment.tzinfo is None:
        raise ConfigError(f"{name}={moment!r} has no time zone: pass an aware datetime, e.g. with tzinfo=UTC")
    return moment


def start_of(start: object) -> Starting:
    """``start=`` of a consumer, checked: a place is looked up only when a partition asks for it. Raises ConfigError."""
    if isinstance(start, datetime):
        return aware(start, "start")
    if isinstance(start, str):
        if start not in ("earliest", "latest"):
            span_before_now(start)
        return start
    if callable(start):
        return start
    raise ConfigError(
        f'start={start!r}: expected "earliest", "latest", an aware datetime, a span such as "-10m", or a callable'
    )


def span_before_now(text: str) -> int:
    """Milliseconds of a span such as ``"-10m"``. Raises ConfigError."""
    if not text.startswith("-"):
        raise ConfigError(f'start={text!r}: expected "earliest", "latest", or a span before now such as "-10m"')
    return parse_duration_ms(text[1:], "start")


def start_offset(log: PartitionLog, start: Starting) -> int:
    """The offset at which reading ``log`` begins. Raises ConfigError for what a callable should not have returned."""
    if callable(start):
        start = start(TopicPartition(log.topic, log.partition))
    if isinstance(start, bool) or not isinstance(start, (int, str, datetime)):
        raise ConfigError(f"start(...) returned {start!r}: expected an offset, a str or an aware datetime")
    if isinstance(start, int):
        return start
    if isinstance(start, datetime):
        return offset_at(log, aware(start, "start"))
    if start == "earliest":
        return log.start_offset
    if start == "latest":
        return readable_end(log)
    return offset_at(log, now() - timedelta(milliseconds=span_before_now(start)))


def now() -> datetime:
    """The wall clock's time, in UTC."""
    return datetime(1970, 1, 1, tzinfo=UTC) + timedelta(milliseconds=oscalls.wall_clock())


def offset_at(log: PartitionLog, moment: datetime | int) -> int:
    """The first offset whose timestamp is at or after ``moment``, the readable end when there is none."""
    found = log.offset_for_time(moment)
    return readable_end(log) if found is None else found
