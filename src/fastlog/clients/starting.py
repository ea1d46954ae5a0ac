"""From where a consumer starts where nothing was committed, and what it does when its offset is no longer there."""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime
from typing import TypeAlias

from fastlog._core import PartitionLog
from fastlog.errors import ConfigError
from fastlog.records import TopicPartition
from fastlog.store.places import is_place, offset_of

__all__ = ["OUT_OF_RANGE", "Start", "Starting", "start_of", "start_offset"]

Start: TypeAlias = "str | datetime | Callable[[TopicPartition], int | str | datetime]"
Starting: TypeAlias = "str | int | datetime | Callable[[TopicPartition], int | str | datetime]"

OUT_OF_RANGE = ("start", "earliest", "latest", "raise")


def start_of(start: object) -> Starting:
    """``start=`` of a consumer, checked: a place is looked up only when a partition asks for it. Raises ConfigError."""
    if is_place(start, "start") or callable(start):
        return start
    raise ConfigError(
        f'start={start!r}: expected "earliest", "latest", an aware datetime, a span such as "-10m", or a callable'
    )


def start_offset(log: PartitionLog, start: Starting) -> int:
    """The offset at which reading ``log`` begins. Raises ConfigError for what a callable should not have returned."""
    if callable(start):
        start = start(TopicPartition(log.topic, log.partition))
    if isinstance(start, bool) or not isinstance(start, (int, str, datetime)):
        raise ConfigError(f"start(...) returned {start!r}: expected an offset, a str or an aware datetime")
    return offset_of(log, start, "start")
