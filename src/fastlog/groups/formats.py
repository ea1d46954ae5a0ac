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
from typing import NamedTuple

from fastlog.errors import ConfigError, CorruptRecordError, GroupError
from fastlog.records import TopicPartition

__all__ = [
    "OFFSETS_PARTITIONS",
    "OFFSETS_TOPIC",
    "CommittedOffset",
    "OffsetAndMetadata",
    "OffsetKey",
    "decode_key",
    "decode_value",
    "encode_key",
    "encode_value",
    "partition_for_name",
]

OFFSETS_TOPIC = "__consumer_offsets"
OFFSETS_PARTITIONS = 50
MAX_METADATA = 4096  # offset.metadata.max.bytes of a broker

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
    try:
        group.encode()
    except UnicodeEncodeError:
        raise GroupError(f"the name of a group is text that has an UTF-8 form, found {group!r}") from None
    return group


@functools.lru_cache(4096)
def partition_for_name(name: str, partitions: int = OFFSETS_PARTITIONS) -> int:
    """The partition of an internal topic that keeps a group or a transactional id: Java's hash of the string, its sign
    taken away as Kafka does it (the smallest int becomes 0).
    """
    units = name.encode("utf-16-be", "surrogatepass")
    hashed = 0
    for high, low in zip(units[::2], units[1::2], strict=True):
        hashed = (hashed * 31 + (high << 8 | low)) & 0xFFFFFFFF
    if hashed >= 1 << 31:
        hashed = 0 if hashed == 1 << 31 else (1 << 32) - hashed
    return hashed % partitions


# --- writing -------------------------------------------------------------------------------------------------------


def encode_key(group: str, topic: str, partition: int) -> bytes:
    """The key of a committed offset."""
    return _INT16.pack(_KEY_VERSION) + short_string(group) + short_string(topic) + _INT32.pack(partition)


def encode_value(position: OffsetAndMetadata, topic_id: str | None, timestamp: int | None = None) -> bytes:
    """The value of a committed offset, with another timestamp if one is given. ConfigError for a negative offset or a
    note that is too long.
    """
    offset, metadata, leader_epoch, own_timestamp = position
    if timestamp is None:
        timestamp = own_timestamp
    if offset < 0:
        raise ConfigError(f"a committed offset is 0 or more, found {offset}")
    if not metadata and topic_id is not None:
        return _PLAIN.pack(_TYPED_VERSION, offset, leader_epoch, 1, timestamp) + tags_of(topic_id)
    note = metadata.encode()
    if len(note) > MAX_METADATA:
        raise ConfigError(f"the metadata of an offset has at most {MAX_METADATA} bytes, found {len(note)}: shorten it")
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


def short_string(text: str) -> bytes:
    """An int16 length and UTF-8. ConfigError when it does not fit."""
    data = text.encode()
    if len(data) > 0x7FFF:
        raise ConfigError(f"names in Kafka's records have at most 32767 bytes, found {len(data)}")
    return _INT16.pack(len(data)) + data


def varint(number: int) -> bytes:
    """An unsigned number, seven bits a byte, the lowest first."""
    encoded = bytearray()
    while number > 0x7F:
        encoded.append(number & 0x7F | 0x80)
        number >>= 7
    encoded.append(number)
    return bytes(encoded)


@functools.lru_cache(4096)
def decode_id(topic_id: str) -> bytes:
    """The 16 bytes of a topic id, which is written as 22 characters of URL-safe base64."""
    return base64.urlsafe_b64decode(topic_id + "==")


@functools.lru_cache(4096)
def encode_id(identity: bytes) -> str:
    """A topic id as Kafka writes it."""
    return base64.urlsafe_b64encode(identity).decode().rstrip("=")


# --- reading -------------------------------------------------------------------------------------------------------


class Reader:
    """Walks over the fields of a record, and never past its end."""

    __slots__ = ("at", "data", "what")

    def __init__(self, data: bytes, what: str) -> None:
        self.data = data
        self.what = what
        self.at = 0

    def take(self, size: int) -> bytes:
        """The next ``size`` bytes."""
        if size < 0 or size > len(self.data) - self.at:
            left = len(self.data) - self.at
            raise CorruptRecordError(
                f"the {self.what} of a record in {OFFSETS_TOPIC} wants {size} bytes at {self.at}, "
                f"found {left}: {self.data!r}"
            )
        self.at += size
        return self.data[self.at - size : self.at]

    def int16(self) -> int:
        return int(_INT16.unpack(self.take(2))[0])

    def int32(self) -> int:
        return int(_INT32.unpack(self.take(4))[0])

    def int64(self) -> int:
        return int(_INT64.unpack(self.take(8))[0])

    def varint(self) -> int:
        number = 0
        for shift in range(0, 35, 7):
            byte = self.take(1)[0]
            number |= (byte & 0x7F) << shift
            if byte < 0x80:
                return number
        raise CorruptRecordError(f"the {self.what} of a record in {OFFSETS_TOPIC} has a varint of more than 5 bytes")

    def text(self, size: int) -> str:
        try:
            return self.take(size).decode()
        except UnicodeDecodeError as error:
            raise CorruptRecordError(f"the {self.what} of a record in {OFFSETS_TOPIC} is no UTF-8: {error}") from None


def decode_key(key: bytes) -> OffsetKey | None:
    """Whose offset this is; None for a record that is about something else."""
    reader = Reader(key, "key")
    if reader.int16() not in (0, 1):
        return None
    return OffsetKey(reader.text(reader.int16()), reader.text(reader.int16()), reader.int32())


def decode_value(value: bytes) -> CommittedOffset:
    """The position that a value says. UnsupportedFormat is CorruptRecordError here too: its version is unknown."""
    reader = Reader(value, "value")
    version = reader.int16()
    if not 0 <= version <= _TYPED_VERSION:
        raise CorruptRecordError(f"an offset in {OFFSETS_TOPIC} has version {version}, expected 0 to {_TYPED_VERSION}")
    offset = reader.int64()
    leader_epoch = reader.int32() if version >= _UNTYPED_VERSION else -1
    note = reader.text(reader.varint() - 1 if version == _TYPED_VERSION else reader.int16())
    timestamp = reader.int64()
    topic_id = topic_id_of(reader) if version == _TYPED_VERSION else None
    return CommittedOffset(OffsetAndMetadata(offset, note, leader_epoch, timestamp), topic_id)


def topic_id_of(reader: Reader) -> str | None:
    """The topic's id among the tagged fields; unknown ones are passed over, as Kafka does."""
    topic_id = None
    for _ in range(reader.varint()):
        tag, data = reader.varint(), reader.take(reader.varint())
        if tag == 0:
            if len(data) != 16:
                raise CorruptRecordError(
                    f"an offset in {OFFSETS_TOPIC} has a topic id of {len(data)} bytes, expected 16"
                )
            topic_id = encode_id(data)
    return topic_id
