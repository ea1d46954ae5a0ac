# Which partition a record goes to: by the hash of its key, as Kafka's Java client has it.

from libc.stdint cimport int32_t, int64_t, uint8_t, uint32_t

from fastlog._native.columns cimport Span
from fastlog._native.encoder cimport RecordSource
from fastlog._native.layout cimport load_little32

cdef enum:
    RECORD_ROOM = 40                # bytes that a record of a column can take besides its content


cdef inline int32_t murmur2_of(const uint8_t* data, int64_t size) noexcept nogil:
    """MurmurHash2, 32 bits, with the seed that Kafka's clients use."""
    cdef uint32_t m = 0x5BD1E995
    cdef uint32_t h = <uint32_t>0x9747B28C ^ <uint32_t>size, k
    cdef const uint8_t* at = data
    cdef const uint8_t* end = data + (size & ~<int64_t>3)
    while at < end:
        k = load_little32(at) * m
        k ^= k >> 24
        h = h * m ^ k * m
        at += 4
    size &= 3
    if size == 3:
        h ^= <uint32_t>at[2] << 16
    if size >= 2:
        h ^= <uint32_t>at[1] << 8
    if size >= 1:
        h = (h ^ at[0]) * m
    h ^= h >> 13
    h *= m
    h ^= h >> 15
    return <int32_t>h


cdef inline int32_t partition_of(const uint8_t* data, int64_t size, int32_t partitions) noexcept nogil:
    return (murmur2_of(data, size) & 0x7FFFFFFF) % partitions


# Sort records by partition, each partition's in their order: `starts[p + 1]` is where partition p ends.
cdef void split(
    const RecordSource* source, int32_t partitions, int32_t sticky, int32_t* chosen, int64_t* starts, int64_t* sizes,
    int64_t* order, Span* spans, int64_t* stamps,
) noexcept nogil
