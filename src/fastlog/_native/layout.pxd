# Byte offsets of Kafka's log format. No other file of the project knows one.
#
# Record batch, version 2 (KIP-98; all integers big-endian):
#
#    0        8      12     16 17    21  23        27              35             43
#    +--------+------+------+--+-----+---+---------+---------------+--------------+-----
#    | base   | batch|leader|ma|crc  |att|lastOff- | base          | max          | ...
#    | offset |length|epoch |2 |32c  |rib|setDelta | timestamp     | timestamp    |
#    +--------+------+------+--+-----+---+---------+---------------+--------------+-----
#   43           51    53      57      61
#   -+-----------+-----+-------+-------+----------------
#    | producer  |epoch| base  |records| records or one
#    | id        |     | seq.  |count  | compressed blob
#   -+-----------+-----+-------+-------+----------------
#
# batchLength counts the bytes behind itself (total = 12 + length).
# The CRC covers byte 21 to the end: base offset and leader epoch may be stamped later.
#
# Record: length, attributes(int8 = 0), timestampDelta, offsetDelta, keyLength, key, valueLength, value,
# headersCount, { keyLength, key, valueLength, value } — every number a zigzag varint but the attributes.

from libc.stdint cimport int16_t, int32_t, int64_t, uint16_t, uint32_t, uint64_t, uint8_t
from libc.string cimport memcpy

cdef extern from *:
    """
    #include <stdint.h>
    static inline uint16_t fastlog_bswap16(uint16_t v) { return __builtin_bswap16(v); }
    static inline uint32_t fastlog_bswap32(uint32_t v) { return __builtin_bswap32(v); }
    static inline uint64_t fastlog_bswap64(uint64_t v) { return __builtin_bswap64(v); }
    #if __BYTE_ORDER__ != __ORDER_LITTLE_ENDIAN__
    #error "fastlog supports little-endian machines only"
    #endif
    """
    uint16_t bswap16 "fastlog_bswap16"(uint16_t v) noexcept nogil
    uint32_t bswap32 "fastlog_bswap32"(uint32_t v) noexcept nogil
    uint64_t bswap64 "fastlog_bswap64"(uint64_t v) noexcept nogil

cdef enum:
    # batch header
    BASE_OFFSET_AT = 0
    BATCH_LENGTH_AT = 8
    LEADER_EPOCH_AT = 12
    MAGIC_AT = 16
    CRC_AT = 17
    ATTRIBUTES_AT = 21
    LAST_OFFSET_DELTA_AT = 23
    BASE_TIMESTAMP_AT = 27
    MAX_TIMESTAMP_AT = 35
    PRODUCER_ID_AT = 43
    PRODUCER_EPOCH_AT = 51
    BASE_SEQUENCE_AT = 53
    RECORDS_COUNT_AT = 57
    BATCH_HEADER_SIZE = 61
    LOG_OVERHEAD = 12              # base offset and batch length: not counted by batch length
    CRC_COVERS_FROM = 21
    MAGIC_V2 = 2
    # attributes
    CODEC_MASK = 0x07
    TIMESTAMP_TYPE_BIT = 0x08      # set: log append time
    TRANSACTIONAL_BIT = 0x10
    CONTROL_BIT = 0x20
    DELETE_HORIZON_BIT = 0x40
    UNUSED_ATTRIBUTES = 0xFF80
    # record
    MIN_RECORD_SIZE = 7            # length, attributes, two deltas, two lengths, headers count
    # index files
    INDEX_ENTRY_SIZE = 8           # int32 relative offset (of the batch's last record), int32 position
    INDEX_ENTRY_POSITION_AT = 4
    TIME_INDEX_ENTRY_SIZE = 12     # int64 timestamp, int32 relative offset
    TIME_INDEX_ENTRY_OFFSET_AT = 8
    # record of a control batch
    CONTROL_VERSION_AT = 0         # key: int16 version, int16 type
    CONTROL_TYPE_AT = 2
    CONTROL_KEY_SIZE = 4
    END_MARKER_VERSION_AT = 0      # value of ABORT and COMMIT: int16 version, int32 coordinator epoch
    END_MARKER_EPOCH_AT = 2
    END_MARKER_VALUE_SIZE = 6
    END_MARKER_RECORD_SIZE = 17    # with its length; every varint in it takes one byte
    END_MARKER_BATCH_SIZE = 78
    # .txnindex: int16 version, then four int64
    TRANSACTION_ENTRY_SIZE = 34
    TRANSACTION_ENTRY_VERSION = 0
    TRANSACTION_VERSION_AT = 0
    TRANSACTION_PRODUCER_ID_AT = 2
    TRANSACTION_FIRST_OFFSET_AT = 10
    TRANSACTION_LAST_OFFSET_AT = 18
    TRANSACTION_STABLE_OFFSET_AT = 26
    # .snapshot: int16 version, uint32 CRC-32C of what follows it, int32 number of producers, producers
    SNAPSHOT_VERSION = 1
    SNAPSHOT_VERSION_AT = 0
    SNAPSHOT_CRC_AT = 2
    SNAPSHOT_CRC_COVERS_FROM = 6
    SNAPSHOT_COUNT_AT = 6
    SNAPSHOT_HEADER_SIZE = 10
    SNAPSHOT_ENTRY_SIZE = 46
    SNAPSHOT_PRODUCER_ID_AT = 0
    SNAPSHOT_EPOCH_AT = 8
    SNAPSHOT_LAST_SEQUENCE_AT = 10
    SNAPSHOT_LAST_OFFSET_AT = 14
    SNAPSHOT_OFFSET_DELTA_AT = 22
    SNAPSHOT_TIMESTAMP_AT = 26
    SNAPSHOT_COORDINATOR_EPOCH_AT = 34
    SNAPSHOT_TRANSACTION_OFFSET_AT = 38

# Frames of the codecs, as far as they have to be walked or written here (their numbers are little-endian, but xerial's):
#
#    gzip    ... | crc32 | size of the content modulo 2^32, of the last member
#    xerial  magic(8) | version | compatible | { chunk size | raw snappy block: content size as a varint, ... }
#    lz4     magic | flags(1) | block size code(1) | [content size(8)] | [dictionary(4)] | checksum(1) |
#            { block size, high bit = stored | block | [checksum(4)] } | 0 | [checksum(4)]
#    zstd    magic | descriptor(1) | [window(1)] | [dictionary(0-4)] | [content size(1-8)] | { block header(3) | block } | [checksum(4)]
#    both    skippable frames: magic | size | ignored bytes
cdef enum:
    GZIP_LEAST_SIZE = 18
    GZIP_CONTENT_SIZE_FROM_END = 4
    XERIAL_MAGIC_HEAD = 0x82534E41
    XERIAL_MAGIC_TAIL = 0x50505900
    XERIAL_MAGIC_TAIL_AT = 4
    XERIAL_VERSION_AT = 8
    XERIAL_COMPATIBLE_AT = 12
    XERIAL_HEADER_SIZE = 16
    SKIPPABLE_MAGIC = 0x184D2A50            # and 15 more
    SKIPPABLE_MASK = 0xFFFFFFF0
    SKIPPABLE_SIZE_AT = 4
    SKIPPABLE_HEADER_SIZE = 8
    LZ4_MAGIC = 0x184D2204
    LZ4_FLAGS_AT = 4
    LZ4_BLOCK_SIZE_AT = 5
    LZ4_CHECKSUM_AT = 6                     # where neither a content size nor a dictionary is named
    LZ4_HEADER_SIZE = 7                     # likewise
    LZ4_VERSION_MASK = 0xC0
    LZ4_VERSION = 0x40
    LZ4_INDEPENDENT_BLOCKS = 0x20
    LZ4_BLOCK_CHECKSUMS = 0x10
    LZ4_CONTENT_SIZE = 0x08
    LZ4_CONTENT_CHECKSUM = 0x04
    LZ4_DICTIONARY = 0x01
    LZ4_STORED = 0x80000000
    ZSTD_MAGIC = 0xFD2FB528
    ZSTD_DESCRIPTOR_AT = 4
    ZSTD_HEADER_REST_AT = 5
    ZSTD_SINGLE_SEGMENT = 0x20
    ZSTD_CHECKSUM = 0x04
    ZSTD_BLOCK_HEADER_SIZE = 3

cdef inline uint32_t load_little32(const uint8_t* at) noexcept nogil:
    cdef uint32_t v
    memcpy(&v, at, 4)
    return v

cdef inline uint64_t load_little(const uint8_t* at, int size) noexcept nogil:
    """A little-endian number of 0 to 8 bytes."""
    cdef uint64_t v = 0
    memcpy(&v, at, size)
    return v

cdef inline void store_little32(uint8_t* at, uint32_t value) noexcept nogil:
    memcpy(at, &value, 4)

cdef inline int16_t load_int16(const uint8_t* at) noexcept nogil:
    cdef uint16_t v
    memcpy(&v, at, 2)
    return <int16_t>bswap16(v)

cdef inline int32_t load_int32(const uint8_t* at) noexcept nogil:
    cdef uint32_t v
    memcpy(&v, at, 4)
    return <int32_t>bswap32(v)

cdef inline uint32_t load_uint32(const uint8_t* at) noexcept nogil:
    cdef uint32_t v
    memcpy(&v, at, 4)
    return bswap32(v)

cdef inline int64_t load_int64(const uint8_t* at) noexcept nogil:
    cdef uint64_t v
    memcpy(&v, at, 8)
    return <int64_t>bswap64(v)

cdef inline void store_int16(uint8_t* at, int16_t value) noexcept nogil:
    cdef uint16_t v = bswap16(<uint16_t>value)
    memcpy(at, &v, 2)

cdef inline void store_int32(uint8_t* at, int32_t value) noexcept nogil:
    cdef uint32_t v = bswap32(<uint32_t>value)
    memcpy(at, &v, 4)

cdef inline void store_uint32(uint8_t* at, uint32_t value) noexcept nogil:
    cdef uint32_t v = bswap32(value)
    memcpy(at, &v, 4)

cdef inline void store_int64(uint8_t* at, int64_t value) noexcept nogil:
    cdef uint64_t v = bswap64(<uint64_t>value)
    memcpy(at, &v, 8)
