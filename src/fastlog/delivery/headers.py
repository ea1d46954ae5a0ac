"""What a moved record carries besides its own headers: ``fastlog.retry.*`` and ``fastlog.dlq.*``.

Key, value and headers of the origin stay as they are; ours stand behind its own, in one run that begins with the name
of its topic. Where ours begin is found from the end: so a record whose own headers look like ours (one that came out of
a dead-letter topic, say) comes back as it was. All are text in UTF-8, numbers in decimal; a null stands for what is not
known.

What is read here may have been written by anybody: every field is checked.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Literal

from fastlog._core import Record
from fastlog.errors import InvalidRecordError, InvalidTopicError
from fastlog.records import Headers
from fastlog.store.naming import MOST_PARTITIONS, check_name

from .items import Failure, Item

if TYPE_CHECKING:
    from .items import Move

__all__ = ["DeadLetter", "dead_letter_headers", "item_of_retry", "letter_of", "redriven_headers", "retry_headers"]

RETRY_PREFIX: Final = "fastlog.retry."
DEAD_LETTER_PREFIX: Final = "fastlog.dlq."
MOST_EXCEPTION: Final = 300
MOST_MESSAGE: Final = 1000
MOST_TRACEBACK: Final = 4000
MOST_NUMBER: Final = (1 << 63) - 1
MOST_ATTEMPTS: Final = (1 << 31) - 1

Pairs = list[tuple[str, bytes | None]]
_NUMBER: Final = re.compile(rb"-?[0-9]{1,19}")


@dataclass(frozen=True, slots=True)
class DeadLetter:
    """A record that a group could not handle, as it lies in the dead-letter topic.

    Attributes:
        topic, partition, offset: where it lies: in the dead-letter topic.
        timestamp: when it was put there, ms since the epoch; None when that is not known.
        id: the origin's place, as ``topic-partition-offset``. A record that was redriven and failed again has another
            letter of the same id.
        origin_topic, origin_partition, origin_offset, origin_timestamp, timestamp_type: where the record came from.
        group: which group could not handle it.
        attempts: how many calls began, the last one included.
        first_failure, last_failure: when, ms since the epoch; None when it was never called.
        exception, message, traceback: of the last failure; the last 4,000 characters of the traceback.
        key, value, headers: the record's own, untouched.
        state: ``"open"``, ``"redriven"`` or ``"discarded"``.
    """

    topic: str
    partition: int
    offset: int
    timestamp: int | None
    id: str
    origin_topic: str
    origin_partition: int
    origin_offset: int
    origin_timestamp: int | None
    timestamp_type: Literal["create", "append"]
    group: str
    attempts: int
    first_failure: int | None
    last_failure: int | None
    exception: str
    message: str
    traceback: str
    key: bytes | None
    value: bytes | None
    headers: Headers
    state: str = "open"

    @property
    def record(self) -> Record:
        """The record as it came, with its own place, key, value and headers: for calling a handler with it."""
        return Record(
            self.origin_topic,
            self.origin_partition,
            self.origin_offset,
            self.origin_timestamp,
            self.key,
            self.value,
            self.headers,
            self.timestamp_type,
        )


# --- from what is to be moved to headers ------------------------------------------------------------------------------


def retry_headers(item: Item, move: Move) -> Pairs:
    """All headers of a record of the retry topic: the origin's, and ours behind them."""
    failure = move.failure
    return [
        *item.raw.headers,
        *_origin_pairs(
            RETRY_PREFIX,
            (item.origin_topic, item.origin_partition, item.origin_offset),
            item.raw.timestamp,
            item.raw.timestamp_type,
        ),
        (RETRY_PREFIX + "attempts", _number(move.attempts)),
        (RETRY_PREFIX + "due", _number(move.due)),
        *_failure_pairs(RETRY_PREFIX, item.first_failure, failure),
        (RETRY_PREFIX + "state", move.state.encode()),
    ]


def dead_letter_headers(item: Item, move: Move, group: str) -> Pairs:
    """All headers of a record of the dead-letter topic: the origin's, and ours behind them."""
    origin = (item.origin_topic, item.origin_partition, item.origin_offset)
    traceback = move.failure.traceback if move.failure is not None else ""
    return [
        *item.raw.headers,
        *_origin_pairs(DEAD_LETTER_PREFIX, origin, item.raw.timestamp, item.raw.timestamp_type),
        (DEAD_LETTER_PREFIX + "group", group.encode()),
        (DEAD_LETTER_PREFIX + "attempts", _number(move.attempts)),
        *_failure_pairs(DEAD_LETTER_PREFIX, item.first_failure, move.failure),
        (DEAD_LETTER_PREFIX + "traceback", _end_of(traceback, MOST_TRACEBACK)),
        (DEAD_LETTER_PREFIX + "id", id_of(*origin).encode()),
    ]


def redriven_headers(letter: DeadLetter) -> Pairs:
    """All headers of a dead letter that goes back to the retry topic: due at once, as if it had never been tried."""
    prefix = RETRY_PREFIX
    origin = (letter.origin_topic, letter.origin_partition, letter.origin_offset)
    return [
        *letter.headers,
        *_origin_pairs(prefix, origin, letter.origin_timestamp, letter.timestamp_type),
        (prefix + "attempts", b"0"),
        (prefix + "due", b"0"),
        (prefix + "first-failure", _time(letter.first_failure)),
        (prefix + "last-failure", _time(letter.last_failure)),
        (prefix + "exception", _text(letter.exception, MOST_EXCEPTION)),
        (prefix + "message", _text(letter.message, MOST_MESSAGE)),
        (prefix + "state", b"head"),
    ]


def id_of(topic: str, partition: int, offset: int) -> str:
    """The id of a dead letter: where its record came from."""
    return f"{topic}-{partition}-{offset}"


def _origin_pairs(prefix: str, origin: tuple[str, int, int], timestamp: int | None, timestamp_type: str) -> Pairs:
    topic, partition, offset = origin
    return [
        (prefix + "topic", topic.encode()),
        (prefix + "partition", _number(partition)),
        (prefix + "offset", _number(offset)),
        (prefix + "timestamp", _time(timestamp)),
        (prefix + "timestamp-type", timestamp_type.encode()),
    ]


def _failure_pairs(prefix: str, first_failure: int | None, failure: Failure | None) -> Pairs:
    last_failure = None if failure is None else failure.at
    return [
        (prefix + "first-failure", _time(last_failure if first_failure is None else first_failure)),
        (prefix + "last-failure", _time(last_failure)),
        (prefix + "exception", None if failure is None else _text(failure.exception, MOST_EXCEPTION)),
        (prefix + "message", None if failure is None else _text(failure.message, MOST_MESSAGE)),
    ]


def _number(value: int) -> bytes:
    return b"%d" % value


def _time(milliseconds: int | None) -> bytes | None:
    return None if milliseconds is None else b"%d" % milliseconds


def _text(text: str, most: int) -> bytes:
    """The beginning; an exception may say anything, also what UTF-8 cannot."""
    if len(text) > most:
        text = text[: most - 1] + "…"
    return text.encode("utf-8", "backslashreplace")


def _end_of(text: str, most: int) -> bytes:
    """The end, where a traceback says what happened."""
    if len(text) > most:
        text = "…" + text[1 - most :]
    return text.encode("utf-8", "backslashreplace")


# --- from headers to what was moved -----------------------------------------------------------------------------------


def item_of_retry(record: Record, decode: Callable[[Record], Record | None] | None = None) -> Item:
    """What waits in the retry topic, by a record of it.

    Args:
        record: as it was read there: undecoded.
        decode: makes of the origin's record what the handler sees; None, or what it returns as None, leaves
            ``Item.record`` undecoded or empty. What it raises comes out here.

    Raises InvalidRecordError for a record that no move has put there.
    """
    fields = _Fields(record, RETRY_PREFIX)
    state = fields.word("state", ("head", "follower"))
    raw = fields.origin()
    return Item(
        record=raw if decode is None else decode(raw),
        raw=raw,
        is_retry=True,
        offset=record.offset,
        origin_topic=raw.topic,
        origin_partition=raw.partition,
        origin_offset=raw.offset,
        key=raw.key,
        attempts=fields.number("attempts", 0, MOST_ATTEMPTS),
        due=fields.number("due", 0, MOST_NUMBER),
        first_failure=fields.time("first-failure"),
        is_follower=state == "follower",
        failure=fields.failure(),
    )


def letter_of(record: Record) -> DeadLetter:
    """The dead letter in a record of a dead-letter topic. Raises InvalidRecordError for a record that is none."""
    fields = _Fields(record, DEAD_LETTER_PREFIX)
    topic, partition, offset = fields.place()
    return DeadLetter(
        topic=record.topic,
        partition=record.partition,
        offset=record.offset,
        timestamp=record.timestamp,
        id=id_of(topic, partition, offset),
        origin_topic=topic,
        origin_partition=partition,
        origin_offset=offset,
        origin_timestamp=fields.time("timestamp"),
        timestamp_type="append" if fields.word("timestamp-type", ("create", "append")) == "append" else "create",
        group=fields.text("group"),
        attempts=fields.number("attempts", 0, MOST_ATTEMPTS),
        first_failure=fields.time("first-failure"),
        last_failure=fields.time("last-failure"),
        exception=fields.text("exception"),
        message=fields.text("message"),
        traceback=fields.text("traceback"),
        key=record.key,
        value=record.value,
        headers=fields.own,
    )


class _Fields:
    """The headers of a moved record, taken apart.

    Attributes:
        own: the origin's headers, as they were.
    """

    def __init__(self, record: Record, prefix: str) -> None:
        self._record = record
        self._prefix = prefix
        pairs = list(record.headers)
        first = prefix + "topic"
        start = next((at for at in reversed(range(len(pairs))) if pairs[at][0] == first), None)
        if start is None:
            raise self._wrong("topic", "is not there: no move has put the record here")
        width = len(prefix)
        self._ours = {name[width:]: value for name, value in pairs[start:] if name.startswith(prefix)}
        # what a tool has added on the way is no business of ours
        self.own = Headers([*pairs[:start], *(pair for pair in pairs[start:] if not pair[0].startswith(prefix))])

    def place(self) -> tuple[str, int, int]:
        topic = self.text("topic")
        try:
            check_name(topic)
        except InvalidTopicError as error:
            raise self._wrong("topic", f"names no topic: {error}") from None
        return topic, self.number("partition", 0, MOST_PARTITIONS - 1), self.number("offset", 0, MOST_NUMBER)

    def origin(self) -> Record:
        """The origin's record."""
        topic, partition, offset = self.place()
        is_append = self.word("timestamp-type", ("create", "append")) == "append"
        record = self._record
        return Record(
            topic,
            partition,
            offset,
            self.time("timestamp"),
            record.key,
            record.value,
            self.own,
            "append" if is_append else "create",
        )

    def text(self, name: str) -> str:
        value = self._ours.get(name)
        return "" if value is None else value.decode("utf-8", "replace")

    def word(self, name: str, expected: tuple[str, ...]) -> str:
        found = self.text(name)
        if found not in expected:
            raise self._wrong(name, f"is {found[:40]!r}: expected {' or '.join(map(repr, expected))}")
        return found

    def number(self, name: str, least: int, most: int) -> int:
        value = self._ours.get(name)
        if value is not None and _NUMBER.fullmatch(value) and least <= (found := int(value)) <= most:
            return found
        raise self._wrong(name, f"is {value[:40] if value else value!r}: expected a number from {least} to {most}")

    def time(self, name: str) -> int | None:
        """Milliseconds since the epoch; None for null."""
        if self._ours.get(name) is None:
            return None
        return self.number(name, -MOST_NUMBER, MOST_NUMBER)

    def failure(self) -> Failure | None:
        """How it failed last, without the traceback, which does not wait with it; None when it never did."""
        at = self.time("last-failure")
        return None if at is None else Failure(self.text("exception"), self.text("message"), "", at)

    def _wrong(self, name: str, problem: str) -> InvalidRecordError:
        record = self._record
        return InvalidRecordError(
            f"{record.topic}-{record.partition}, offset {record.offset}: the header {self._prefix}{name} {problem}",
            record.topic,
            record.partition,
            record.offset,
        )
