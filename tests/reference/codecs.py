"""The codecs of Kafka's format, each by something else than the package that the engine uses.

gzip is Python's own, lz4 and zstd are packages of their own. Snappy is written out here, as it is small: a block is its
content's length as an unsigned varint, then literals and copies; xerial's framing puts a header before such blocks::

    82 'SNAPPY' 00 | version i32 | compatible version i32 | { size i32, block }
"""

from __future__ import annotations

import gzip
import struct
import zlib

import lz4.frame  # type: ignore[import-untyped]
import zstandard

from tests.reference.varint import FormatError

__all__ = [
    "CODEC_NAMES",
    "GZIP",
    "LZ4",
    "SNAPPY",
    "ZSTD",
    "compress",
    "decompress",
    "snappy_block",
    "unpack_snappy_block",
    "xerial",
]

GZIP, SNAPPY, LZ4, ZSTD = 1, 2, 3, 4
CODEC_NAMES = {GZIP: "gzip", SNAPPY: "snappy", LZ4: "lz4", ZSTD: "zstd"}
XERIAL_MAGIC = b"\x82SNAPPY\x00"
XERIAL_CHUNK = 32 * 1024


def write_unsigned(value: int) -> bytes:
    out = bytearray()
    while value >= 0x80:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def literal(content: bytes) -> bytes:
    size = len(content) - 1
    if size < 60:
        return bytes([size << 2]) + content
    width = (size.bit_length() + 7) // 8
    return bytes([(59 + width) << 2]) + size.to_bytes(width, "little") + content


def snappy_block(content: bytes) -> bytes:
    """A valid block: literals, and copies where the last bytes are repeated at once."""
    out = bytearray(write_unsigned(len(content)))
    at = 0
    while at < len(content):
        piece = content[at : at + 16]
        out += literal(piece)
        at += len(piece)
        while len(piece) == 16 and content[at : at + 16] == piece:
            out += bytes([2 | 15 << 2, 16, 0])  # a copy of 16 bytes from 16 bytes before
            at += 16
    return bytes(out)


def unpack_snappy_block(block: bytes) -> bytes:
    """The content of a block. Raises FormatError."""
    expected = shift = at = 0
    while True:
        if at == len(block) or shift > 28:
            raise FormatError("a snappy block without a length")
        expected |= (block[at] & 0x7F) << shift
        at += 1
        if not block[at - 1] & 0x80:
            break
        shift += 7
    out = bytearray()
    while at < len(block):
        tag = block[at]
        at += 1
        if tag & 3 == 0:
            size = tag >> 2
            if size >= 60:
                width = size - 59
                size = int.from_bytes(block[at : at + width], "little")
                at += width
            if size + 1 > len(block) - at:
                raise FormatError("a snappy literal beyond its block")
            out += block[at : at + size + 1]
            at += size + 1
            continue
        width = (0, 1, 2, 4)[tag & 3]
        if width > len(block) - at:
            raise FormatError("a snappy copy is cut off")
        distance = int.from_bytes(block[at : at + width], "little")
        at += width
        size = (tag >> 2) + 1
        if tag & 3 == 1:
            size = (tag >> 2 & 7) + 4
            distance |= (tag >> 5) << 8
        if not 0 < distance <= len(out) or len(out) + size > expected:
            raise FormatError("a snappy copy from nowhere")
        for _ in range(size):
            out.append(out[-distance])
    if len(out) != expected:
        raise FormatError(f"a snappy block of {len(out)} bytes that states {expected}")
    return bytes(out)


def xerial(content: bytes, chunk: int = XERIAL_CHUNK) -> bytes:
    """Snappy as Kafka's producers write it."""
    out = XERIAL_MAGIC + struct.pack(">ii", 1, 1)
    for at in range(0, len(content), chunk):
        block = snappy_block(content[at : at + chunk])
        out += struct.pack(">i", len(block)) + block
    return out


def unpack_snappy(stream: bytes) -> bytes:
    if not stream.startswith(XERIAL_MAGIC) or len(stream) < 16:
        return unpack_snappy_block(stream)
    at = 0
    out = b""
    while at < len(stream):
        if stream.startswith(XERIAL_MAGIC, at) and len(stream) - at >= 16:
            if struct.unpack_from(">i", stream, at + 8)[0] < 1:
                raise FormatError("a xerial stream of version 0")
            at += 16
            continue
        if len(stream) - at < 4:
            raise FormatError("a xerial chunk is cut off")
        [size] = struct.unpack_from(">i", stream, at)
        at += 4
        if not 0 < size <= len(stream) - at:
            raise FormatError(f"a xerial chunk of {size} bytes where {len(stream) - at} remain")
        out += unpack_snappy_block(stream[at : at + size])
        at += size
    return out


def compress(codec: int, content: bytes) -> bytes:
    """A stream of the kind that Kafka's producers write."""
    if codec == GZIP:
        return gzip.compress(content, mtime=0)
    if codec == SNAPPY:
        return xerial(content)
    if codec == LZ4:
        return bytes(lz4.frame.compress(content, block_size=4, block_linked=False, store_size=False))
    if codec == ZSTD:
        stream = zstandard.ZstdCompressor(write_content_size=False).compressobj()
        return stream.compress(content) + stream.flush()
    raise FormatError(f"codec {codec}")


def decompress(codec: int, stream: bytes) -> bytes:
    """The content of a stream, or of several behind each other. Raises FormatError for anything else."""
    try:
        if codec == GZIP:
            out = b""
            while stream:
                member = zlib.decompressobj(16 + zlib.MAX_WBITS)
                out += member.decompress(stream)
                if not member.eof:
                    raise FormatError("a gzip stream is cut off")
                stream = member.unused_data
            return out
        if codec == SNAPPY:
            return unpack_snappy(stream)
        if codec == LZ4:
            out = b""
            while stream:
                frame = lz4.frame.LZ4FrameDecompressor()
                out += frame.decompress(stream)
                if not frame.eof:
                    raise FormatError("an lz4 frame is cut off")
                stream = frame.unused_data or b""
            return out
        if codec == ZSTD:
            out = b""
            while stream:
                whole = zstandard.ZstdDecompressor().decompressobj()
                out += whole.decompress(stream)
                if not whole.eof:
                    raise FormatError("a zstd frame is cut off")
                stream = whole.unused_data
            return out
    except (zlib.error, RuntimeError, zstandard.ZstdError, EOFError) as problem:
        raise FormatError(f"{CODEC_NAMES[codec]}: {problem}") from problem
    raise FormatError(f"codec {codec}")
