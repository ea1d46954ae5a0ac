"""fastlog's own topics, which are Kafka's: their names, the partition that keeps a name, the fields of their records.

What their records say is known to ``groups.formats`` and ``transactions.records``. Here is what both are made of:
strings with an int16 length, unsigned varints, and a reader that never passes the end.
"""

from __future__ import annotations

import functools
import struct
from typing import Final

from fastlog.errors import ConfigError, CorruptRecordError

__all__ = [
    "CONSUMER_OFFSETS",
    "INTERNAL_OPTIONS",
    "INTERNAL_PARTITIONS",
    "INTERNAL_TOPICS",
    "MOST_STRING",
    "TRANSACTION_STATE",
    "FieldReader",
    "partition_for_name",
    "short_string",
    "varint",
]

CONSUMER_OFFSETS: Final = "__consumer_offsets"
TRANSACTION_STATE: Final = "__transaction_state"
INTERNAL_TOPICS: Final = (CONSUMER_OFFSETS, TRANSACTION_STATE)
INTERNAL_PARTITIONS: Final = 50
INTERNAL_OPTIONS: Final = {"cleanup.policy": "compact", "segment.bytes": 100 * 1024 * 1024}

MOST_STRING: Final = 0x7FFF  # bytes: a length of 16 bits, with a sign

_INT16: Final = struct.Struct(">h")


@functools.lru_cache(4096)
def partition_for_name(name: str, partitions: int = INTERNAL_PARTITIONS) -> int:
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


def short_string(text: str) -> bytes:
    """An int16 length and UTF-8. ConfigError when it does not fit."""
    data = text.encode()
    if len(data) > MOST_STRING:
        raise ConfigError(f"names in Kafka's records have at most {MOST_STRING} bytes, found {len(data)}")
    return _INT16.pack(len(data)) + data


def varint(number: int) -> bytes:
    """An unsigned number, seven bits a byte, the lowest first."""
    encoded = bytearray()
    while number > 0x7F:
        encoded.append(number & 0x7F | 0x80)
        number >>= 7
    encoded.append(number)
    return bytes(encoded)


# --- reading -------------------------------------------------------------------------------------------------------


class FieldReader:
    """Walks over the fields of a record that nobody vouches for, and never past its end: CorruptRecordError instead.

    ``what`` and ``topic`` say in errors what is read: the "key" or the "value" of a record in which internal topic.
    """

    __slots__ = ("at", "data", "topic", "what")

    def __init__(self, data: bytes, what: str, topic: str) -> None:
        self.data = data
        self.what = what
        self.topic = topic
        self.at = 0

    def take(self, size: int) -> bytes:
        """The next ``size`` bytes."""
        left = len(self.data) - self.at
        if not 0 <= size <= left:
            raise self.broken(f"has a field of {size} bytes where {left} are left: {self.data!r}")
        self.at += size
        return self.data[self.at - size : self.at]

    def integer(self, size: int) -> int:
        """A number of ``size`` bytes, big-endian, with a sign."""
        return int.from_bytes(self.take(size), "big", signed=True)

    def varint(self) -> int:
        """An unsigned number of at most five bytes, seven bits in each."""
        number = 0
        for shift in range(0, 35, 7):
            byte = self.take(1)[0]
            number |= (byte & 0x7F) << shift
            if byte < 0x80:
                return number
        raise self.broken("has a varint of more than 5 bytes")

    def text(self, size: int) -> str:
        """UTF-8 of ``size`` bytes."""
        try:
            return self.take(size).decode()
        except UnicodeDecodeError as error:
            raise self.broken(f"has text that is no UTF-8: {error}") from None

    def broken(self, problem: str) -> CorruptRecordError:
        """The error for what was found at this place."""
        return CorruptRecordError(f"the {self.what} of a record in {self.topic} {problem}", None, self.at)
