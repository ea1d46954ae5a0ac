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

from fastlog.errors import UnsupportedFormatError
from fastlog.records import TopicPartition
from fastlog.store.internal import TRANSACTION_STATE, FieldReader, short_string
from fastlog.transactions.states import TransactionState, TransactionStatus

__all__ = [
    "decode_key",
    "decode_value",
    "encode_key",
    "encode_value",
]

_HEAD = struct.Struct(">hqhib")
_TIMES = struct.Struct(">qq")


def encode_key(transactional_id: str) -> bytes:
    """The key of an id's records. ``transactional_id``: 1 to 32,767 bytes of UTF-8, which the caller has checked."""
    return struct.pack(">h", 0) + short_string(transactional_id)


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
        parts += [short_string(topic), struct.pack(f">i{len(numbers)}i", len(numbers), *numbers)]
    return b"".join(parts)


def decode_key(key: bytes | None) -> str | None:
    """The transactional id, or None for a kind of record that this version does not know (Kafka passes it over too).

    Raises CorruptRecordError.
    """
    reader = FieldReader(key or b"", "key", TRANSACTION_STATE)
    return read_text(reader, False) if reader.integer(2) == 0 else None


def decode_value(value: bytes) -> TransactionState:
    """Raises CorruptRecordError, or UnsupportedFormatError for a newer version."""
    reader = FieldReader(value, "value", TRANSACTION_STATE)
    version = reader.integer(2)
    if version not in (0, 1):
        raise UnsupportedFormatError(
            f"a record of {TRANSACTION_STATE} has version {version}, expected 0 or 1: it is from a newer Kafka"
        )
    flexible = version == 1
    producer_id, epoch, timeout, status = reader.integer(8), reader.integer(2), reader.integer(4), reader.integer(1)
    if status not in TransactionStatus._value2member_map_:
        raise reader.broken(f"has status {status}, expected 0 to 7")
    partitions = tuple(_read_partitions(reader, flexible))
    last_update, start = reader.integer(8), reader.integer(8)
    pass_tags(reader, flexible)
    return TransactionState(producer_id, epoch, timeout, TransactionStatus(status), partitions, last_update, start)


def _read_partitions(reader: FieldReader, flexible: bool) -> Iterable[TopicPartition]:
    for _ in range(read_count(reader, flexible)):
        topic = read_text(reader, flexible)
        for _ in range(read_count(reader, flexible)):
            yield TopicPartition(topic, reader.integer(4))
        pass_tags(reader, flexible)


def read_count(reader: FieldReader, flexible: bool) -> int:
    """Of an array, -1 for null; never more than there are bytes left."""
    found = reader.varint() - 1 if flexible else reader.integer(4)
    left = len(reader.data) - reader.at
    if found > left:
        raise reader.broken(f"counts {found} entries where {left} bytes are left")
    return found


def read_text(reader: FieldReader, flexible: bool) -> str:
    """A name."""
    return reader.text(reader.varint() - 1 if flexible else reader.integer(2))


def pass_tags(reader: FieldReader, flexible: bool) -> None:
    """What newer versions add."""
    for _ in range(reader.varint() if flexible else 0):
        reader.varint()
        reader.take(reader.varint())
