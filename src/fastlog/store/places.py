"""Where reading begins and ends: from a place, as people name it, to an offset of one partition.

A place is ``"earliest"``, ``"latest"``, an offset, an aware datetime, or a span before now such as ``"-10m"``.
"""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import TypeGuard

from fastlog._core import PartitionLog
from fastlog._native import oscalls
from fastlog.config import parse_duration_ms
from fastlog.errors import ConfigError

__all__ = ["aware", "is_place", "now", "offset_at", "offset_of", "readable_end", "time_before_now"]

WORDS = ("earliest", "latest")


def aware(moment: datetime, name: str) -> datetime:
    """``moment``, or ConfigError when it has no time zone."""
    if moment.tzinfo is None:
        raise ConfigError(f"{name}={moment!r} has no time zone: pass an aware datetime, e.g. with tzinfo=UTC")
    return moment


def now() -> datetime:
    """The wall clock's time, in UTC."""
    return datetime(1970, 1, 1, tzinfo=UTC) + timedelta(milliseconds=oscalls.wall_clock())


def time_before_now(text: str, name: str) -> datetime:
    """The time that a span such as ``"-10m"`` means now. Raises ConfigError, which calls the argument ``name``."""
    if not text.startswith("-"):
        raise ConfigError(f'{name}={text!r}: expected a span before now such as "-10m"')
    return now() - timedelta(milliseconds=parse_duration_ms(text[1:], name))


def is_place(place: object, name: str) -> TypeGuard[str | datetime]:
    """Whether it names a place in any partition: a word, a time or a span. Offsets are for the caller to look at.

    Raises ConfigError for a datetime without time zone, and for a str that is none of them.
    """
    if isinstance(place, datetime):
        aware(place, name)
        return True
    if not isinstance(place, str):
        return False
    if place not in WORDS:
        if not place.startswith("-"):
            raise ConfigError(f'{name}={place!r}: expected "earliest", "latest", or a span before now such as "-10m"')
        time_before_now(place, name)
    return True


def offset_of(log: PartitionLog, place: int | str | datetime, name: str) -> int:
    """The offset that a place means in ``log``; a number is itself. Raises ConfigError as ``is_place`` does."""
    if isinstance(place, int):
        return place
    if isinstance(place, datetime):
        return offset_at(log, aware(place, name))
    if place == "earliest":
        return log.start_offset
    if place == "latest":
        return readable_end(log)
    return offset_at(log, time_before_now(place, name))


def offset_at(log: PartitionLog, moment: datetime | int) -> int:
    """The first offset whose timestamp is at or after ``moment``, the readable end when there is none."""
    found = log.offset_for_time(moment)
    return readable_end(log) if found is None else found


def readable_end(log: PartitionLog) -> int:
    """Where reading ends now. A log that is read durably joins the sync of what others wrote, as a read would."""
    end = log.readable_offset
    if log.end_offset > end:
        log.read(max(end, log.start_offset), 1)
        end = log.readable_offset
    return max(end, log.start_offset)
