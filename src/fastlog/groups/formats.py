"""The records of ``__consumer_offsets``: Kafka's bytes, and nothing else knows them.

::

    key    int16 version 1 | group | topic | partition int32              strings: int16 length, UTF-8
    value  int16 version 4 | offset int64 | leader epoch int32 | metadata | commit timestamp int64 | tagged fields
           metadata: varint (length + 1), UTF-8; tagged field 0: the topic's id, 16 bytes
    a null value takes the offset back (a tombstone)

An offset belongs to one life of a topic: the id says to which, so that a topic that was deleted and made again starts
without the offsets of the old one. Kafka has that field since 4.1; versions since 3.5 read the value and pass over it.
Without an id (``None``) a value is written as version 3, as Kafka 2.1 to 4.0 write it. Values of versions 0 to 4 are
read.

Keys of other versions are groups of Kafka's own coordinator (2: classic, 3 and above: the newer protocols). fastlog
keeps its members elsewhere, does not write them, and passes over them. Everything read is checked against the bytes
that are there: CorruptRecordError.
"""

from __future__ import annotations

import base64
import functools
import struct
from collections.abc import Mapping
from typing import NamedTuple

from fastlog.errors import ConfigError, CorruptRecordError, GroupError
from fastlog.records import TopicPartition, is_offset, named_partition, utf8_of
from fastlog.store.internal import CONSUMER_OFFSETS, FieldReader, short_string, varint

__all__ = [
    "CommittedOffset",
    "OffsetAndMetadata",
    "OffsetKey",
    "check_group",
    "checked_offsets",
    "decode_key",
    "decode_value",
    "encode_key",
    "encode_value",
]

MAX_METADATA = 4096  # offset.metadata.max.bytes of a broker

MOST_NAME_BYTES = 8192  # of a group: its name stands in the page of the group
_KEY_VERSION = 1
_UNTYPED_VERSION = 3
_TYPED_VERSION = 4

_INT16 = struct.Struct(">h")
_INT32 = struct.Struct(">i")
_INT64 = struct.Struct(">q")
_START = struct.Struct(">hqi")  # version, offset, leader epoch: versions 3 and 4
_PLAIN = struct.Struct(">hqiBq")  # version 4 without a note, up to the tagged fields


class OffsetAndMetadata(NamedTuple):
    """A position to commit, or one that was: the offset of the next record, and a note of at most 4,096 bytes.

    ``timestamp`` is when it was committed, in milliseconds since the epoch; 0 in what is to be committed means now.
    """

    offset: int
    metadata: str = ""
    leader_epoch: int = -1
    timestamp: int = 0


class OffsetKey(NamedTuple):
    """Whose offset a record is."""

    group: str
    topic: str
    partition: int

    @property
    def topic_partition(self) -> TopicPartition:
        return TopicPartition(self.topic, self.partition)


class CommittedOffset(NamedTuple):
    """What a value says: the position, and the id of the topic's life that it belongs to (None: not told)."""

    position: OffsetAndMetadata
    topic_id: str | None


def check_group(group: object) -> str:
    """The name itself. GroupError when it is none."""
    if not isinstance(group, str) or not group:
        raise GroupError(f"the name of a group is a str of at least one character, found {group!r}")
    found = utf8_of(group)
    if found is None:
        raise GroupError(f"the name of a group is text that has a UTF-8 form, found {group!r}")
    if len(found) > MOST_NAME_BYTES:
        raise GroupError(f"the name of a group has at most {MOST_NAME_BYTES} bytes, found {len(found)}")
    return group


def checked_offsets(offsets: object) -> dict[TopicPartition, OffsetAndMetadata]:
    """Offsets to commit, as a caller passed them: by partition, numbers or OffsetAndMetadata. Raises ConfigError."""
    if not isinstance(offsets, Mapping):
        raise ConfigError(f"{offsets!r} is no mapping: expected the next offset of each partition, by TopicPartition")
    found = {}
    for name, offset in offsets.items():
        entry = offset if isinstance(offset, OffsetAndMetadata) else OffsetAndMetadata(offset)
        if not is_offset(entry.offset):
            raise ConfigError(f"{name}: {entry.offset!r} is no offset to commit: expected an integer from 0")
        if not isinstance(entry.leader_epoch, int) or not -1 <= entry.leader_epoch < 1 << 31:
            raise ConfigError(f"{name}: leader_epoch={entry.leader_epoch!r}: expected an integer, -1 for none")
        if not is_offset(entry.timestamp):
            raise ConfigError(f"{name}: timestamp={entry.timestamp!r}: expected milliseconds since 1970, 0 for now")
        found[named_partition(name)] = entry
    return found


# --- writing -------------------------------------------------------------------------------------------------------


def encode_key(group: str, topic: str, partition: int) -> bytes:
    """The key of a committed offset."""
    return _INT16.pack(_KEY_VERSION) + short_string(group) + short_string(topic) + _INT32.pack(partition)


def encode_value(position: OffsetAndMetadata, topic_id: str | None, timestamp: int | None = None) -> bytes:
    """The value of a committed offset, with another timestamp if one is given. ConfigError for a negative offset, and
    for a note that is too long or no text.
    """
    offset, metadata, leader_epoch, own_timestamp = position
    if timestamp is None:
        timestamp = own_timestamp
    if offset < 0:
        raise ConfigError(f"a committed offset is 0 or more, found {offset}")
    note = utf8_of(metadata)
    if note is None:
        raise ConfigError(f"the metadata of an offset is text that has a UTF-8 form, found {metadata!r}: encode it")
    if len(note) > MAX_METADATA:
        raise ConfigError(f"the metadata of an offset has at most {MAX_METADATA} bytes, found {len(note)}: shorten it")
    if not note and topic_id is not None:
        return _PLAIN.pack(_TYPED_VERSION, offset, leader_epoch, 1, timestamp) + tags_of(topic_id)
    if topic_id is None:
        start = _START.pack(_UNTYPED_VERSION, offset, leader_epoch)
        return start + _INT16.pack(len(note)) + note + _INT64.pack(timestamp)
    start = _START.pack(_TYPED_VERSION, offset, leader_epoch)
    return start + varint(len(note) + 1) + note + _INT64.pack(timestamp) + tags_of(topic_id)


@functools.lru_cache(4096)
def tags_of(topic_id: str) -> bytes:
    """The tagged fields of a value: the topic's id."""
    identity = decode_id(topic_id)
    return varint(1) + varint(0) + varint(len(identity)) + identity


@functools.lru_cache(4096)
def decode_id(topic_id: str) -> bytes:
    """The 16 bytes of a topic id, which is written as 22 characters of URL-safe base64."""
    return base64.urlsafe_b64decode(topic_id + "==")


@functools.lru_cache(4096)
def encode_id(identity: bytes) -> str:
    """A topic id as Kafka writes it."""
    return base64.urlsafe_b64encode(identity).decode().rstrip("=")


# --- reading -------------------------------------------------------------------------------------------------------


def decode_key(key: bytes) -> OffsetKey | None:
    """Whose offset this is; None for a record that is about something else."""
    reader = FieldReader(key, "key", CONSUMER_OFFSETS)
    if reader.integer(2) not in (0, 1):
        return None
    return OffsetKey(reader.text(reader.integer(2)), reader.text(reader.integer(2)), reader.integer(4))


def decode_value(value: bytes) -> CommittedOffset:
    """The position that a value says. UnsupportedFormat is CorruptRecordError here too: its version is unknown."""
    reader = FieldReader(value, "value", CONSUMER_OFFSETS)
    version = reader.integer(2)
    if not 0 <= version <= _TYPED_VERSION:
        raise CorruptRecordError(
            f"an offset in {CONSUMER_OFFSETS} has version {version}, expected 0 to {_TYPED_VERSION}"
        )
    offset = reader.integer(8)
    leader_epoch = reader.integer(4) if version >= _UNTYPED_VERSION else -1
    note = reader.text(reader.varint() - 1 if version == _TYPED_VERSION else reader.integer(2))
    timestamp = reader.integer(8)
    topic_id = topic_id_of(reader) if version == _TYPED_VERSION else None
    return CommittedOffset(OffsetAndMetadata(offset, note, leader_epoch, timestamp), topic_id)


def topic_id_of(reader: FieldReader) -> str | None:
    """The topic's id among the tagged fields; unknown ones are passed over, as Kafka does."""
    topic_id = None
    for _ in range(reader.varint()):
        tag, data = reader.varint(), reader.take(reader.varint())
        if tag == 0:
            if len(data) != 16:
                raise CorruptRecordError(
                    f"an offset in {CONSUMER_OFFSETS} has a topic id of {len(data)} bytes, expected 16"
                )
            topic_id = encode_id(data)
    return topic_id
