# cython: annotation_typing=False
"""gzip, snappy, lz4 and zstd: the records area of a batch in, its content out, and back.

The codecs themselves are those of the ``cramjam`` package, which is imported when the first compressed batch is written
or read. It works on whole streams in memory and holds the GIL. What is done here is what it leaves open:

- **Framing.** Kafka puts snappy blocks of 32 KiB into xerial's framing, and lz4 blocks of 64 KiB that do not refer to
  each other into lz4's frame format (its Java reader refuses linked blocks, which cramjam writes by default). Read are both
  snappy framings (xerial and one raw block) and every lz4 frame.
- **Room.** A decompressor writes into memory of the caller, never beyond it, so that nobody can make it take more than
  the caller allows. How much that has to be is found without decompressing, by walking over the blocks of the stream;
  no number that a stream states about itself is believed beyond what its bytes can hold.

A stream has to end where the bytes end. Concatenated gzip members, zstd and lz4 frames and xerial streams count as one.
"""

from cpython.buffer cimport PyBUF_READ, PyBUF_WRITE
from cpython.memoryview cimport PyMemoryView_FromMemory
from libc.stdint cimport int64_t, uint32_t, uint64_t, uint8_t
from libc.string cimport memcpy

from fastlog._native.layout cimport (
    GZIP_CONTENT_SIZE_FROM_END, GZIP_LEAST_SIZE, LZ4_BLOCK_CHECKSUMS, LZ4_BLOCK_SIZE_AT, LZ4_CHECKSUM_AT, LZ4_CONTENT_CHECKSUM,
    LZ4_CONTENT_SIZE, LZ4_DICTIONARY, LZ4_FLAGS_AT, LZ4_HEADER_SIZE, LZ4_INDEPENDENT_BLOCKS, LZ4_MAGIC, LZ4_STORED, LZ4_VERSION,
    LZ4_VERSION_MASK, SKIPPABLE_HEADER_SIZE, SKIPPABLE_MAGIC, SKIPPABLE_MASK, SKIPPABLE_SIZE_AT, XERIAL_COMPATIBLE_AT,
    XERIAL_HEADER_SIZE, XERIAL_MAGIC_HEAD, XERIAL_MAGIC_TAIL, XERIAL_MAGIC_TAIL_AT, XERIAL_VERSION_AT, ZSTD_BLOCK_HEADER_SIZE,
    ZSTD_CHECKSUM, ZSTD_DESCRIPTOR_AT, ZSTD_HEADER_REST_AT, ZSTD_MAGIC, ZSTD_SINGLE_SEGMENT, load_int32, load_little,
    load_little32, load_uint32, store_int32, store_little32, store_uint32,
)

cdef enum:
    SNAPPY_CHUNK = 32 << 10         # as xerial's and Kafka's writers cut it
    LZ4_CHUNK = 64 << 10
    LZ4_CHUNK_CODE = 0x40           # 64 KiB
    LZ4_HEADER_CHECKSUM = 0x82      # of exactly the two bytes that are written
    LZ4_MOST_RATIO = 255            # content bytes that one byte of an lz4 block can stand for
    SNAPPY_MOST_RATIO = 22          # a copy of 64 bytes takes 3
    GZIP_MOST_RATIO = 1032
    ZSTD_MOST_BLOCK = 128 << 10
    ZSTD_MOST_WINDOW_LOG = 27       # what zstd itself allows by default, and Kafka with it: 128 MiB
    CHECKSUM_SIZE = 4

cdef int64_t NOT_KNOWN = 0x7FFFFFFFFFFFFFFF

# functions of cramjam, once it is needed
cdef object gzip_compress = None
cdef object gzip_decompress = None
cdef object snappy_compress = None
cdef object snappy_decompress = None
cdef object lz4_compress = None
cdef object lz4_decompress = None
cdef object zstd_compress = None
cdef object zstd_decompress = None
cdef object CompressionError = None
cdef object DecompressionError = None


cdef int load_cramjam() except -1:
    global gzip_compress, gzip_decompress, snappy_compress, snappy_decompress, lz4_compress, lz4_decompress, zstd_compress
    global zstd_decompress, CompressionError, DecompressionError
    import cramjam
    CompressionError = cramjam.CompressionError
    gzip_compress = cramjam.gzip.compress_into
    gzip_decompress = cramjam.gzip.decompress_into
    snappy_compress = cramjam.snappy.compress_raw_into
    snappy_decompress = cramjam.snappy.decompress_raw_into
    lz4_compress = cramjam.lz4.compress_block_into
    lz4_decompress = cramjam.lz4.decompress_into
    zstd_compress = cramjam.zstd.compress_into
    zstd_decompress = cramjam.zstd.decompress_into
    DecompressionError = cramjam.DecompressionError     # last: it says that all are there
    return 0


# --- how much content there can be ---------------------------------------------------------------------------------------


cdef int64_t content_bound(int codec, const uint8_t* data, int64_t size) noexcept nogil:
    """How many bytes a stream decompresses to at most, by the structure of its blocks; BROKEN when it has none.

    Exact where the stream names its size. Only gzip has no blocks that can be walked: there it is what the last member
    says, which `is_bound_exceeded` tells.
    """
    if codec == ZSTD:
        return frames_bound(data, size, zstd_frame_bound)
    if codec == LZ4:
        return frames_bound(data, size, lz4_frame_bound)
    if codec == SNAPPY:
        return xerial_bound(data, size) if is_xerial(data, size) else snappy_size(data, size)
    if size < GZIP_LEAST_SIZE:
        return BROKEN
    return min(<int64_t>load_little32(data + size - GZIP_CONTENT_SIZE_FROM_END), size * GZIP_MOST_RATIO)


cdef bint is_bound_exceeded(int codec) noexcept nogil:
    """Whether a valid stream may hold more than `content_bound` says."""
    return codec == GZIP


cdef int64_t skippable_size(const uint8_t* data, int64_t size) noexcept nogil:
    """Size of the skippable frame at `data`, 0 when there is none."""
    cdef int64_t whole
    if size < SKIPPABLE_HEADER_SIZE or load_little32(data) & SKIPPABLE_MASK != SKIPPABLE_MAGIC:
        return 0
    whole = SKIPPABLE_HEADER_SIZE + <int64_t>load_little32(data + SKIPPABLE_SIZE_AT)
    return whole if whole <= size else 0


ctypedef int64_t (*FrameBound)(const uint8_t* data, int64_t size, int64_t* cursor) noexcept nogil


cdef int64_t frames_bound(const uint8_t* data, int64_t size, FrameBound bound) noexcept nogil:
    """The bound of a stream of frames, between which others may lie that hold nothing."""
    cdef int64_t at = 0, total = 0, frame, skipped
    if size == 0:
        return BROKEN
    while at < size:
        skipped = skippable_size(data + at, size - at)
        if skipped:
            at += skipped
            continue
        frame = bound(data, size, &at)
        if frame < 0:
            return BROKEN
        total += frame
    return total


cdef int64_t zstd_frame_bound(const uint8_t* data, int64_t size, int64_t* cursor) noexcept nogil:
    """The bound of the frame at `cursor`, which moves behind it."""
    cdef int64_t at = cursor[0], frame = 0, most_block, content, bits, stored, rest
    cdef uint64_t window, stated
    cdef uint32_t descriptor, block
    cdef int content_width, dictionary_width
    if size - at < ZSTD_HEADER_REST_AT or load_little32(data + at) != ZSTD_MAGIC:
        return BROKEN
    descriptor = data[at + ZSTD_DESCRIPTOR_AT]
    content_width = 1 << (descriptor >> 6)
    if content_width == 1 and not descriptor & ZSTD_SINGLE_SEGMENT:
        content_width = 0
    dictionary_width = (1 << (descriptor & 3)) >> 1
    rest = dictionary_width + content_width + (0 if descriptor & ZSTD_SINGLE_SEGMENT else 1)
    at += ZSTD_HEADER_REST_AT
    if rest > size - at:
        return BROKEN
    window = 0
    if not descriptor & ZSTD_SINGLE_SEGMENT:
        bits = 10 + (data[at] >> 3)
        window = (<uint64_t>1 << bits) + (<uint64_t>(data[at] & 7) << (bits - 3))
        at += 1
    if dictionary_width and load_little(data + at, dictionary_width):
        return BROKEN
    at += dictionary_width
    stated = load_little(data + at, content_width) + (256 if content_width == 2 else 0)
    at += content_width
    if descriptor & ZSTD_SINGLE_SEGMENT:
        window = stated
    if window > <uint64_t>1 << ZSTD_MOST_WINDOW_LOG:
        return BROKEN
    most_block = min(<int64_t>window, <int64_t>ZSTD_MOST_BLOCK)
    while True:
        if size - at < ZSTD_BLOCK_HEADER_SIZE:
            return BROKEN
        block = <uint32_t>load_little(data + at, ZSTD_BLOCK_HEADER_SIZE)
        at += ZSTD_BLOCK_HEADER_SIZE
        stored = content = block >> 3
        if (block >> 1) & 3 == 1:       # one byte, repeated
            stored = 1
        elif (block >> 1) & 3 == 2:     # compressed
            content = most_block
        elif (block >> 1) & 3 == 3:
            return BROKEN
        if stored > size - at or content > most_block:
            return BROKEN
        at += stored
        frame += content
        if block & 1:
            break
    if descriptor & ZSTD_CHECKSUM:
        if size - at < CHECKSUM_SIZE:
            return BROKEN
        at += CHECKSUM_SIZE
    if content_width:
        if stated > <uint64_t>frame:
            return BROKEN
        frame = <int64_t>stated
    cursor[0] = at
    return frame


cdef int64_t lz4_frame_bound(const uint8_t* data, int64_t size, int64_t* cursor) noexcept nogil:
    """The bound of the frame at `cursor`, which moves behind it."""
    cdef int64_t at = cursor[0], frame = 0, most_block, rest, block_rest
    cdef uint32_t flags, code, block
    cdef uint64_t stated
    if size - at < LZ4_HEADER_SIZE or load_little32(data + at) != LZ4_MAGIC:
        return BROKEN
    flags = data[at + LZ4_FLAGS_AT]
    code = data[at + LZ4_BLOCK_SIZE_AT] >> 4
    # 64 KiB, 256 KiB, 1 MiB, 4 MiB; nobody has agreed on a dictionary
    if flags & LZ4_VERSION_MASK != LZ4_VERSION or flags & LZ4_DICTIONARY or not 4 <= code <= 7:
        return BROKEN
    most_block = <int64_t>1 << (8 + 2 * code)
    stated = 0
    rest = LZ4_HEADER_SIZE
    if flags & LZ4_CONTENT_SIZE:
        rest += sizeof(uint64_t)
        if rest > size - at:
            return BROKEN
        stated = load_little(data + at + LZ4_CHECKSUM_AT, sizeof(uint64_t))
    at += rest
    block_rest = CHECKSUM_SIZE if flags & LZ4_BLOCK_CHECKSUMS else 0
    while True:
        if size - at < <int64_t>sizeof(uint32_t):
            return BROKEN
        block = load_little32(data + at)
        at += sizeof(uint32_t)
        if block == 0:
            break
        rest = block & ~<uint32_t>LZ4_STORED
        if rest > most_block or rest + block_rest > size - at:
            return BROKEN
        frame += rest if block & LZ4_STORED else min(most_block, rest * LZ4_MOST_RATIO)
        at += rest + block_rest
    if flags & LZ4_CONTENT_CHECKSUM:
        if size - at < CHECKSUM_SIZE:
            return BROKEN
        at += CHECKSUM_SIZE
    if flags & LZ4_CONTENT_SIZE:
        if stated > <uint64_t>frame:
            return BROKEN
        frame = <int64_t>stated
    cursor[0] = at
    return frame


cdef int64_t snappy_size(const uint8_t* data, int64_t size) noexcept nogil:
    """The size that a raw snappy block states: an unsigned varint of 32 bits in front of it."""
    cdef uint64_t stated = 0
    cdef int64_t at = 0
    cdef int shift = 0
    while at < size and shift < 35:
        stated |= <uint64_t>(data[at] & 0x7F) << shift
        if not data[at] & 0x80:
            return <int64_t>stated if stated <= <uint64_t>(size * SNAPPY_MOST_RATIO) else BROKEN
        shift += 7
        at += 1
    return BROKEN


cdef bint is_xerial(const uint8_t* data, int64_t size) noexcept nogil:
    return (
        size >= XERIAL_HEADER_SIZE and load_uint32(data) == XERIAL_MAGIC_HEAD
        and load_uint32(data + XERIAL_MAGIC_TAIL_AT) == XERIAL_MAGIC_TAIL
    )


cdef int64_t next_chunk(const uint8_t* data, int64_t size, int64_t* cursor, int64_t* content) noexcept nogil:
    """Size of the xerial chunk behind `cursor`, which moves to its block; 0 at the end. `content` is what the block states."""
    cdef int64_t at = cursor[0], chunk
    # a stream may be several, one behind the other
    while is_xerial(data + at, size - at):
        if load_int32(data + at + XERIAL_VERSION_AT) < 1:
            return BROKEN
        at += XERIAL_HEADER_SIZE
    if at == size:
        cursor[0] = at
        return 0
    if size - at < <int64_t>sizeof(uint32_t):
        return BROKEN
    chunk = load_int32(data + at)
    at += sizeof(uint32_t)
    if chunk <= 0 or chunk > size - at:
        return BROKEN
    content[0] = snappy_size(data + at, chunk)
    if content[0] < 0:
        return BROKEN
    cursor[0] = at
    return chunk


cdef int64_t xerial_bound(const uint8_t* data, int64_t size) noexcept nogil:
    cdef int64_t at = 0, total = 0, chunk, content = 0
    while True:
        chunk = next_chunk(data, size, &at, &content)
        if chunk <= 0:
            return total if chunk == 0 else BROKEN
        at += chunk
        total += content


# --- decompressing -------------------------------------------------------------------------------------------------------


cdef int64_t decompress(int codec, const uint8_t* data, int64_t size, uint8_t* target, int64_t room) except -3:
    """Decompress a whole stream into `target`: the size of its content, BROKEN or NO_ROOM; what lies in `target` then is
    of no use. Nothing is written beyond `room`."""
    if DecompressionError is None:
        load_cramjam()
    try:
        if codec == SNAPPY:
            if is_xerial(data, size):
                return decompress_xerial(data, size, target, room)
            return snappy_decompress(readable(data, size), writable(target, room))
        if codec == LZ4:
            return lz4_decompress(readable(data, size), writable(target, room))
        if codec == ZSTD:
            return zstd_decompress(readable(data, size), writable(target, room))
        return gzip_decompress(readable(data, size), writable(target, room))
    except DecompressionError as error:
        # the only thing to tell a small buffer from a broken stream by; a test holds it
        return NO_ROOM if "whole buffer" in str(error) or "smaller than required" in str(error) else BROKEN
    except BaseException as error:
        # what Rust calls a panic is none of Python's exceptions
        if type(error).__name__ == "PanicException":
            return BROKEN
        raise


cdef int64_t decompress_xerial(const uint8_t* data, int64_t size, uint8_t* target, int64_t room) except -3:
    cdef int64_t at = 0, done = 0, chunk, content = 0
    while True:
        chunk = next_chunk(data, size, &at, &content)
        if chunk <= 0:
            return done if chunk == 0 else BROKEN
        if content > room - done:
            return NO_ROOM
        snappy_decompress(readable(data + at, chunk), writable(target + done, content))
        done += content
        at += chunk


cdef inline object readable(const uint8_t* data, int64_t size):
    return PyMemoryView_FromMemory(<char*>data, size, PyBUF_READ)


cdef inline object writable(uint8_t* data, int64_t size):
    return PyMemoryView_FromMemory(<char*>data, size, PyBUF_WRITE)


# --- compressing ---------------------------------------------------------------------------------------------------------


cdef int64_t compressed_room(int codec, int64_t size) noexcept nogil:
    """Room that `compress` needs for `size` bytes, whatever they are."""
    # every codec can store what it cannot shrink; snappy and lz4 ask for room for their worst case beforehand
    if codec == SNAPPY:
        return size + (size // SNAPPY_CHUNK + 1) * (SNAPPY_CHUNK // 6 + 64)
    return size + size // 64 + 4096


cdef int64_t compress(int codec, const uint8_t* data, int64_t size, uint8_t* target, int64_t room) except -1:
    """Compress into `target`, as Kafka frames it, at the codec's default level; the size. `room`: see `compressed_room`."""
    if DecompressionError is None:
        load_cramjam()
    if codec == SNAPPY:
        return compress_xerial(data, size, target, room)
    if codec == LZ4:
        return compress_lz4(data, size, target, room)
    if codec == ZSTD:
        return zstd_compress(readable(data, size), writable(target, room))
    return gzip_compress(readable(data, size), writable(target, room))


cdef int64_t compress_xerial(const uint8_t* data, int64_t size, uint8_t* target, int64_t room) except -1:
    cdef int64_t at = 0, done = XERIAL_HEADER_SIZE, chunk, made
    store_uint32(target, XERIAL_MAGIC_HEAD)
    store_uint32(target + XERIAL_MAGIC_TAIL_AT, XERIAL_MAGIC_TAIL)
    store_int32(target + XERIAL_VERSION_AT, 1)
    store_int32(target + XERIAL_COMPATIBLE_AT, 1)
    while at < size:
        chunk = min(size - at, <int64_t>SNAPPY_CHUNK)
        made = snappy_compress(
            readable(data + at, chunk), writable(target + done + sizeof(uint32_t), room - done - sizeof(uint32_t))
        )
        store_int32(target + done, made)
        done += sizeof(uint32_t) + made
        at += chunk
    return done


cdef int64_t compress_lz4(const uint8_t* data, int64_t size, uint8_t* target, int64_t room) except -1:
    cdef int64_t at = 0, done = LZ4_HEADER_SIZE, chunk, made
    store_little32(target, LZ4_MAGIC)
    target[LZ4_FLAGS_AT] = LZ4_VERSION | LZ4_INDEPENDENT_BLOCKS
    target[LZ4_BLOCK_SIZE_AT] = LZ4_CHUNK_CODE
    target[LZ4_CHECKSUM_AT] = LZ4_HEADER_CHECKSUM
    while at < size:
        chunk = min(size - at, <int64_t>LZ4_CHUNK)
        made = lz4_compress(
            readable(data + at, chunk), writable(target + done + sizeof(uint32_t), room - done - sizeof(uint32_t)),
            store_size=False,
        )
        if made < chunk:
            store_little32(target + done, made)
        else:
            made = chunk
            memcpy(target + done + sizeof(uint32_t), data + at, chunk)
            store_little32(target + done, <uint32_t>chunk | <uint32_t>LZ4_STORED)
        done += sizeof(uint32_t) + made
        at += chunk
    store_little32(target + done, 0)
    return done + sizeof(uint32_t)
