"""Record batches, version 2.

Header of 61 bytes, big-endian::

    base offset i64 | batch length i32 | leader epoch i32 | magic i8 | crc u32
    | attributes i16 | last offset delta i32 | base timestamp i64 | max timestamp i64
    | producer id i64 | producer epoch i16 | base sequence i32 | records count i32

``batch length`` counts the bytes behind itself: the whole batch has 12 more. ``crc`` is the CRC-32C of everything
behind it, so the base offset and the leader epoch can be stamped without a new CRC.

A record::

    length varint | attributes i8 | timestamp delta varlong | offset delta varint
    | key length varint, key | value length varint, value | headers count varint
    | each header: key length varint, key (UTF-8) | value length varint, value

In a compressed batch all of that behind the header is one stream of a codec (``codecs.py``), which the lowest three
bits of the batch's attributes name.

A length of -1 stands for null; a null value is a tombstone; a header's key cannot be null.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import crc32c

from tests.reference import codecs
from tests.reference.varint import FormatError, read_varint, write_varint

__all__ = [
    "Batch",
    "FormatError",
    "Record",
    "control_batch",
    "decode_batch",
    "decode_log",
    "encode_batch",
    "make_batch",
]

HEADER = struct.Struct(">qiibIhiqqqhii")
HEADER_SIZE = HEADER.size  # 61
CRC_AT = 17
CRC_COVERS_FROM = 21
LENGTH_EXCLUDES = 12

CODEC_MASK = 0x07
LOG_APPEND_TIME = 0x08
TRANSACTIONAL = 0x10
CONTROL = 0x20
DELETE_HORIZON = 0x40
KNOWN_ATTRIBUTES = 0x7F

Headers = tuple[tuple[str, bytes | None], ...]


@dataclass(frozen=True)
class Record:
    """One record; ``timestamp`` in milliseconds, -1 for none."""

    offset: int
    timestamp: int
    key: bytes | None = None
    value: bytes | None = None
    headers: Headers = ()


@dataclass(frozen=True)
class Batch:
    """One batch with its header fields; the numbers of a batch without an idempotent producer are -1."""

    base_offset: int
    last_offset: int
    base_timestamp: int
    max_timestamp: int
    records: tuple[Record, ...] = field(default=())
    attributes: int = 0
    leader_epoch: int = 0
    producer_id: int = -1
    producer_epoch: int = -1
    base_sequence: int = -1

    @property
    def visible_records(self) -> tuple[Record, ...]:
        """What a reader gets to see: never a control record."""
        return () if self.attributes & CONTROL else self.records


def make_batch(records: Sequence[Record], leader_epoch: int = 0) -> Batch:
    """The batch that a producer makes of consecutive records."""
    return Batch(
        base_offset=records[0].offset,
        last_offset=records[-1].offset,
        base_timestamp=records[0].timestamp,
        max_timestamp=max(record.timestamp for record in records),
        records=tuple(records),
        leader_epoch=leader_epoch,
    )


def control_batch(offset: int, timestamp: int, *, commit: bool, producer_id: int = 7, producer_epoch: int = 0) -> Batch:
    """The marker that ends a transaction; it takes one offset and readers never see it."""
    key = struct.pack(">hh", 0, 1 if commit else 0)
    value = struct.pack(">hi", 0, 0)
    marker = make_batch([Record(offset, timestamp, key, value)])
    return replace(marker, attributes=TRANSACTIONAL | CONTROL, producer_id=producer_id, producer_epoch=producer_epoch)


def encode_nullable(content: bytes | None) -> bytes:
    return write_varint(-1) if content is None else write_varint(len(content)) + content


def encode_record(record: Record, base_offset: int, base_timestamp: int) -> bytes:
    body = b"\0" + write_varint(record.timestamp - base_timestamp) + write_varint(record.offset - base_offset)
    body += encode_nullable(record.key) + encode_nullable(record.value) + write_varint(len(record.headers))
    for name, value in record.headers:
        body += encode_nullable(name.encode()) + encode_nullable(value)
    return write_varint(len(body)) + body


def pack(batch: Batch, area: bytes) -> bytes:
    """The record area as it is stored: compressed when the batch's attributes say so."""
    codec = batch.attributes & CODEC_MASK
    return codecs.compress(codec, area) if codec else area


def seal(batch: Batch, area: bytes, *, count: int | None = None, magic: int = 2) -> bytes:
    """Put a header with the right length and CRC before a record area, whatever the area holds."""
    fields = [
        batch.base_offset, HEADER_SIZE - LENGTH_EXCLUDES + len(area), batch.leader_epoch, magic, 0,
        batch.attributes, batch.last_offset - batch.base_offset, batch.base_timestamp, batch.max_timestamp,
        batch.producer_id, batch.producer_epoch, batch.base_sequence, len(batch.records) if count is None else count,
    ]  # fmt: skip
    return fix_crc(HEADER.pack(*fields) + area)


def fix_crc(encoded: bytes) -> bytes:
    """The same bytes with the CRC that they ought to have."""
    crc = crc32c.crc32c(encoded[CRC_COVERS_FROM:])
    return encoded[:CRC_AT] + struct.pack(">I", crc) + encoded[CRC_COVERS_FROM:]


def encode_batch(batch: Batch) -> bytes:
    """The bytes of a batch as they lie in a segment file."""
    area = b"".join(encode_record(record, batch.base_offset, batch.base_timestamp) for record in batch.records)
    return seal(batch, pack(batch, area) if batch.records else b"")


def read_nullable(data: bytes, position: int, end: int) -> tuple[bytes | None, int]:
    size, position = read_varint(data, position, end)
    if size == -1:
        return None, position
    if not 0 <= size <= end - position:
        raise FormatError(f"a length of {size} where {end - position} bytes remain")
    return data[position : position + size], position + size


def read_header(data: bytes, position: int, end: int) -> tuple[tuple[str, bytes | None], int]:
    name, position = read_nullable(data, position, end)
    if name is None:
        raise FormatError("the key of a header is null")
    value, position = read_nullable(data, position, end)
    try:
        return (name.decode(), value), position
    except UnicodeDecodeError as problem:
        raise FormatError("the key of a header is not UTF-8") from problem


def read_record(data: bytes, position: int, batch: Batch) -> tuple[Record, int]:
    size, position = read_varint(data, position, len(data))
    if not 0 <= size <= len(data) - position:
        raise FormatError(f"a record of {size} bytes where {len(data) - position} remain")
    end = position + size
    if position == end:
        raise FormatError("a record without attributes")
    if data[position]:
        raise FormatError(f"unknown attributes of a record: {data[position]:#x}")
    timestamp_delta, position = read_varint(data, position + 1, end, bits=64)
    offset_delta, position = read_varint(data, position, end)
    key, position = read_nullable(data, position, end)
    value, position = read_nullable(data, position, end)
    count, position = read_varint(data, position, end)
    if not 0 <= count <= end - position:
        raise FormatError(f"{count} headers where {end - position} bytes remain")
    headers = []
    for _ in range(count):
        header, position = read_header(data, position, end)
        headers.append(header)
    if position != end:
        raise FormatError(f"{end - position} bytes behind a record")
    timestamp = batch.base_timestamp + timestamp_delta
    if batch.attributes & LOG_APPEND_TIME:
        timestamp = batch.max_timestamp
    if not -1 <= timestamp <= batch.max_timestamp:
        raise FormatError(f"timestamp {timestamp} in a batch whose largest is {batch.max_timestamp}")
    return Record(batch.base_offset + offset_delta, timestamp, key, value, tuple(headers)), position


def check_header(encoded: bytes, magic: int, crc: int, count: int, batch: Batch) -> None:
    if magic != 2:
        raise FormatError(f"magic {magic}, expected 2")
    if crc != crc32c.crc32c(encoded[CRC_COVERS_FROM:]):
        raise FormatError("the CRC does not match")
    if batch.attributes & ~KNOWN_ATTRIBUTES:
        raise FormatError(f"unknown attributes of a batch: {batch.attributes:#x}")
    if batch.attributes & CODEC_MASK > codecs.ZSTD:
        raise FormatError(f"codec {batch.attributes & CODEC_MASK}")
    if batch.attributes & CONTROL and (count > 1 or batch.attributes & CODEC_MASK):
        raise FormatError(f"a control batch of {count} records, attributes {batch.attributes:#x}")
    if not 0 <= batch.base_offset <= batch.last_offset < 2**63 - 1:
        raise FormatError(f"offsets from {batch.base_offset} to {batch.last_offset}")
    if batch.max_timestamp < -1 or batch.base_timestamp < -1:
        raise FormatError(f"timestamps from {batch.base_timestamp} to {batch.max_timestamp}")
    if not 0 <= count <= batch.last_offset - batch.base_offset + 1:
        raise FormatError(f"{count} records in {batch.last_offset - batch.base_offset + 1} offsets")


def decode_batch(data: bytes, position: int = 0) -> tuple[Batch, int]:
    """Decode and check the batch at ``position``: the batch, and the position of the next one."""
    if len(data) - position < HEADER_SIZE:
        raise FormatError(f"{len(data) - position} bytes are no batch header")
    base_offset, length, epoch, magic, crc, attributes, delta, base_timestamp, max_timestamp, *producer, count = (
        HEADER.unpack_from(data, position)
    )
    end = position + LENGTH_EXCLUDES + length
    if not HEADER_SIZE - LENGTH_EXCLUDES <= length <= len(data) - position - LENGTH_EXCLUDES:
        raise FormatError(f"a batch length of {length} where {len(data) - position - LENGTH_EXCLUDES} bytes remain")
    last_offset = base_offset + delta
    batch = Batch(base_offset, last_offset, base_timestamp, max_timestamp, (), attributes & 0xFFFF, epoch, *producer)
    encoded = data[position:end]
    check_header(encoded, magic, crc, count, batch)
    records: list[Record] = []
    area = encoded[HEADER_SIZE:]
    if batch.attributes & CODEC_MASK and count:
        area = codecs.decompress(batch.attributes & CODEC_MASK, area)
    at = 0
    for _ in range(count):
        record, at = read_record(area, at, batch)
        if not (records[-1].offset if records else base_offset - 1) < record.offset <= last_offset:
            raise FormatError(f"offset {record.offset} is out of order or out of the batch")
        records.append(record)
    if at != len(area):
        raise FormatError(f"{len(area) - at} bytes behind the last record")
    return replace(batch, records=tuple(records)), end


def decode_log(data: bytes) -> list[tuple[int, Batch]]:
    """All batches of a segment file with their positions."""
    found = []
    position = 0
    while position < len(data):
        batch, after = decode_batch(data, position)
        found.append((position, batch))
        position = after
    return found
