"""The records of ``__transaction_state``: Kafka's bytes for what a transactional id is in.

::

    key    version i16 = 0 | transactional id: length i16, UTF-8
    value  version i16 = 0 | producer id i64 | producer epoch i16 | timeout i32 | status i8
           | partitions: count i32 (-1 = null, of Empty) of { topic: length i16, UTF-8 | count i32 | partition i32 … }
           | last update i64 | start i64

A null value is a tombstone. Version 1 of the value ("flexible", Kafka 4 with newer features) is read too; what it adds
is passed over. All integers are big-endian; timestamps are milliseconds since the epoch.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable

from fastlog.errors import CorruptRecordError, UnsupportedFormatError
from fastlog.records import TopicPartition
from fastlog.transactions.states import TransactionState, TransactionStatus

__all__ = [
    "STATE_PARTITIONS",
    "STATE_TOPIC",
    "decode_key",
    "decode_value",
    "encode_key",
    "encode_value",
    "partition_of",
]

STATE_TOPIC = "__transaction_state"
STATE_PARTITIONS = 50

_HEAD = struct.Struct(">hqhib")
_TIMES = struct.Struct(">qq")
_LONGEST_ID = 0x7FFF


def partition_of(transactional_id: str, partitions: int = STATE_PARTITIONS) -> int:
    """The partition of ``__transaction_state`` that an id lives in: its Java string hash, as Kafka's coordinator has
    it.
    """
    value = 0
    units = transactional_id.encode("utf-16-be", "surrogatepass")
    for at in range(0, len(units), 2):
        value = (31 * value + (units[at] << 8 | units[at + 1])) & 0xFFFFFFFF
    signed = value - (1 << 32) if value & 0x80000000 else value
    # the smallest int has no absolute value: Kafka takes 0
    return 0 if signed == -(1 << 31) else abs(signed) % partitions


def encode_key(transactional_id: str) -> bytes:
    """The key of an id's records. ``transactional_id``: 1 to 32,767 bytes of UTF-8, which the caller has checked."""
    encoded = transactional_id.encode()
    return struct.pack(">hh", 0, len(encoded)) + encoded


def encode_value(state: TransactionState) -> bytes:
    """The value that says ``state``; version 0."""
    head = _HEAD.pack(0, state.producer_id, state.producer_epoch, state.timeout_ms, state.status)
    return head + _encode_partitions(state) + _TIMES.pack(state.last_update, state.start)


def _encode_partitions(state: TransactionState) -> bytes:
    if state.status is TransactionStatus.EMPTY:
        return struct.pack(">i", -1)
    by_topic: dict[str, list[int]] = {}
    for topic, partition in state.partitions:
        by_topic.setdefault(topic, []).append(partition)
    parts = [struct.pack(">i", len(by_topic))]
    for topic, numbers in by_topic.items():
        name = topic.encode()
        parts.append(struct.pack(f">h{len(name)}si{len(numbers)}i", len(name), name, len(numbers), *numbers))
    return b"".join(parts)


class _Reader:
    """Takes fields from bytes that nobody vouches for: every length is compared with what remains."""

    def __init__(self, data: bytes) -> None:
        self.data = data
        self.at = 0

    def take(self, size: int) -> bytes:
        if not 0 <= size <= len(self.data) - self.at:
            raise CorruptRecordError(
                f"a record of {STATE_TOPIC} has a field of {size} bytes where {len(self.data) - self.at} remain",
                None,
                self.at,
            )
        self.at += size
        return self.data[self.at - size : self.at]

    def integer(self, size: int) -> int:
        return int.from_bytes(self.take(size), "big", signed=True)

    def varint(self) -> int:
        """An unsigned number in groups of seven bits, as flexible versions have it."""
        value = shift = 0
        while True:
            byte = self.take(1)[0]
            value |= (byte & 0x7F) << shift
            if byte < 0x80:
                return value
            shift += 7
            if shift > 28:
                raise CorruptRecordError(f"a record of {STATE_TOPIC} has a length that never ends", None, self.at)

    def count(self, flexible: bool) -> int:
        """Of an array, -1 for null; never more than there are bytes left."""
        found = self.varint() - 1 if flexible else self.integer(4)
        if found > len(self.data) - self.at:
            raise CorruptRecordError(
                f"a record of {STATE_TOPIC} counts {found} entries where {len(self.data) - self.at} bytes remain",
                None,
                self.at,
            )
        return found

    def text(self, flexible: bool) -> str:
        size = self.varint() - 1 if flexible else self.integer(2)
        try:
            return self.take(size).decode()
        except UnicodeDecodeError as problem:
            raise CorruptRecordError(
                f"a record of {STATE_TOPIC} has a name that is not UTF-8", None, self.at
            ) from problem

    def pass_tags(self, flexible: bool) -> None:
        for _ in range(self.varint() if flexible else 0):
            self.varint()
            self.take(self.varint())


def decode_key(key: bytes | None) -> str | None:
    """The transactional id, or None for a kind of record that this version does not know (Kafka passes it over too).

    Raises CorruptRecordError.
    """
    reader = _Reader(key or b"")
    return reader.text(False) if reader.integer(2) == 0 else None


def decode_value(value: bytes) -> TransactionState:
    """Raises CorruptRecordError, or UnsupportedFormatError for a newer version."""
    reader = _Reader(value)
    version = reader.integer(2)
    if version not in (0, 1):
        raise UnsupportedFormatError(
            f"a record of {STATE_TOPIC} has version {version}, expected 0 or 1: it is from a newer Kafka"
        )
    flexible = version == 1
    producer_id, epoch, timeout, status = reader.integer(8), reader.integer(2), reader.integer(4), reader.integer(1)
    if status not in TransactionStatus._value2member_map_:
        raise CorruptRecordError(f"a record of {STATE_TOPIC} has status {status}, expected 0 to 7", None, reader.at)
    partitions = tuple(_read_partitions(reader, flexible))
    last_update, start = reader.integer(8), reader.integer(8)
    reader.pass_tags(flexible)
    return TransactionState(producer_id, epoch, timeout, TransactionStatus(status), partitions, last_update, start)


def _read_partitions(reader: _Reader, flexible: bool) -> Iterable[TopicPartition]:
    for _ in range(reader.count(flexible)):
        topic = reader.text(flexible)
        for _ in range(reader.count(flexible)):
            yield TopicPartition(topic, reader.integer(4))
        reader.pass_tags(flexible)
