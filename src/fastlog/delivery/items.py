"""Records on their way through a handler: what waits for its turn, how it failed, and where it has to go."""

from __future__ import annotations

import functools
import linecache
import traceback
from dataclasses import dataclass, field
from enum import IntEnum
from typing import Any, Literal

from fastlog._core import Record

__all__ = ["Failure", "Item", "Move", "Stage"]

TRACEBACK_CHARACTERS = 4000
MESSAGE_CHARACTERS = 1000
MOST_FRAMES = 40
OWN_FOLDER = __file__.rpartition("/")[0] + "/"


@dataclass(slots=True)
class Failure:
    """How a call of a handler ended.

    Attributes:
        exception: the class of the exception, with its module unless that is ``builtins``.
        message: what it said, at most 1,000 characters.
        traceback: the last 4,000 characters of its traceback, ``""`` when there is none.
        at: wall clock, milliseconds.
    """

    exception: str
    message: str
    traceback: str
    at: int

    @classmethod
    def of(cls, error: BaseException, at: int) -> Failure:
        """What is kept of an exception. An exception that cannot even be printed is named by its class alone."""
        name = name_of(type(error))
        try:
            message = str(error)[:MESSAGE_CHARACTERS]
        except Exception:
            message = ""
        try:
            told = told_of(error, name, message)[-TRACEBACK_CHARACTERS:]
        except Exception:
            told = ""
        return cls(name, message, told, at)


def name_of(kind: type[BaseException]) -> str:
    """The name of an exception's class as dead letters have it: with its module, unless that is ``builtins``."""
    return kind.__qualname__ if kind.__module__ == "builtins" else f"{kind.__module__}.{kind.__qualname__}"


def told_of(error: BaseException, name: str, message: str) -> str:
    """The traceback as Python prints it, from the handler on; in a twentieth of the time, as many may fail at once."""
    is_chained = error.__cause__ is not None or (error.__context__ is not None and not error.__suppress_context__)
    if is_chained or isinstance(error, (BaseExceptionGroup, SyntaxError)) or hasattr(error, "__notes__"):
        return "".join(traceback.format_exception(error))
    lines = ["Traceback (most recent call last):\n"]
    places = []
    step = error.__traceback__
    while step is not None:
        if not step.tb_frame.f_code.co_filename.startswith(OWN_FOLDER):
            places.append((step.tb_frame.f_code, step.tb_lineno))
        step = step.tb_next
    lines += [place_of(code.co_filename, number, code.co_name) for code, number in places[-MOST_FRAMES:]]
    lines.append(f"{name}: {message}\n" if message else f"{name}\n")
    return "".join(lines)


@functools.lru_cache(1024)
def place_of(file_name: str, number: int, function: str) -> str:
    """A place in a traceback, with its line where the file can be read."""
    line = linecache.getline(file_name, number).strip()
    shown = f"    {line}\n" if line else ""
    return f'  File "{file_name}", line {number}, in {function}\n{shown}'


class Stage(IntEnum):
    """Where an item stands, for whoever decides about its partition; nobody else has to look."""

    NEW = 0
    QUEUED = 1  # others come first
    DELAYED = 2  # nothing comes first, but its time has not come
    READY = 3  # may be taken
    CLAIMED = 4  # runs alone, when that is durable or its time has come
    IN_HAND = 5
    MOVING = 6  # has to go to another place, or is on its way
    EXPECTED = 7  # has gone to the retry topic, and was not read there yet
    DONE = 8


@dataclass(slots=True, eq=False)
class Item:
    """One record that waits for its turn, has it, or waits again. Compared by identity.

    Attributes:
        record: as the handler sees it, with the origin's topic, partition, offset, timestamp and headers; None when it
            could not be decoded: then it is never handled, and goes to the dead letters with ``failure``.
        raw: key and value as they are stored, with the origin's headers.
        is_retry: whether it lies in the retry topic, or in the source.
        offset: its place there.
        origin_topic: where it was sent to first, as ``origin_partition`` and ``origin_offset``.
        key: as it is stored.
        attempts: calls begun before the one that comes next or is under way, as far as is durable.
        due: wall clock in milliseconds before which it must not be handled; 0 = as soon as its turn comes.
        first_failure: wall clock in milliseconds, None when it never failed.
        is_follower: whether it lies in the retry topic only because one before it does.
        is_suspect: whether it may have ended the process that had it before.
        is_alone: whether it was given back to be handled in a call of its own.
        failure: how it failed last, as far as is known; also why it cannot be decoded.
        stage: where it stands.
        lane: what it has to wait in line with.
    """

    record: Record[Any, Any] | None
    raw: Record
    is_retry: bool
    offset: int
    origin_topic: str
    origin_partition: int
    origin_offset: int
    key: bytes | None
    attempts: int = 0
    due: int = 0
    first_failure: int | None = None
    is_follower: bool = False
    is_suspect: bool = False
    failure: Failure | None = None
    is_alone: bool = False
    stage: Stage = Stage.NEW
    lane: Any = field(default=None, repr=False)

    @classmethod
    def of_source(cls, record: Record[Any, Any] | None, raw: Record, failure: Failure | None = None) -> Item:
        """A record as it was read from the source. ``failure`` says why it could not be decoded."""
        key = raw.key
        return cls(record, raw, False, raw.offset, raw.topic, raw.partition, raw.offset, key, failure=failure)


@dataclass(slots=True)
class Move:
    """What has to become of an item, in one transaction with the commit of the place where it lies.

    Attributes:
        item: the record, with where it lies.
        to: the retry topic, the dead letters, or nowhere: a failure that nobody wants to keep; log and count it.
        attempts: calls begun so far.
        due: wall clock in milliseconds, 0 = as soon as its turn comes.
        state: ``"head"`` of its key's queue when it was handled itself, ``"follower"`` when it only waits for others.
        failure: how it failed last; None for a follower that never did.
    """

    item: Item
    to: Literal["retry", "dead_letter", "nowhere"]
    attempts: int
    due: int
    state: Literal["head", "follower"]
    failure: Failure | None
