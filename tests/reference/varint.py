"""Variable-length integers as Kafka's record format uses them: zigzag, then seven bits a byte, low group first.

Zigzag maps 0, -1, 1, -2 ... to 0, 1, 2, 3 ..., so that small negative numbers stay short. A set high bit means
that another byte follows. A 32-bit number takes at most five bytes, a 64-bit number at most ten.
"""

from __future__ import annotations

__all__ = ["FormatError", "read_varint", "write_varint"]


class FormatError(ValueError):
    """The bytes are no valid record batch."""


def write_varint(value: int) -> bytes:
    """Encode a signed integer of at most 64 bits in as few bytes as it takes."""
    if not -(1 << 63) <= value < 1 << 63:
        raise ValueError(f"{value} has more than 64 bits")
    zigzag = value * 2 if value >= 0 else -value * 2 - 1
    encoded = bytearray()
    while zigzag >= 0x80:
        encoded.append(zigzag & 0x7F | 0x80)
        zigzag >>= 7
    encoded.append(zigzag)
    return bytes(encoded)


def read_varint(data: bytes, position: int, end: int, bits: int = 32) -> tuple[int, int]:
    """Decode the number at ``position``, reading no byte at or behind ``end``: the value, and the next position."""
    zigzag = 0
    shift = 0
    while True:
        if position >= end:
            raise FormatError("a number is cut off")
        byte = data[position]
        position += 1
        zigzag |= (byte & 0x7F) << shift
        shift += 7
        if byte < 0x80:
            break
        if shift >= bits:
            raise FormatError(f"a number goes on after {shift} bits")
    if zigzag >= 1 << bits:
        raise FormatError(f"a number has more than {bits} bits")
    return (zigzag >> 1) ^ -(zigzag & 1), position
