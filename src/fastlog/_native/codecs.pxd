# The four codecs of Kafka's format. The codec's number is the one in a batch's attributes (`CODECS` in reports.py).

from libc.stdint cimport int64_t, uint8_t

cdef enum:
    GZIP = 1
    SNAPPY = 2
    LZ4 = 3
    ZSTD = 4

cdef enum:
    BROKEN = -1             # results of decompress and content_bound below zero: no such stream,
    NO_ROOM = -2            # or more content than there is room for

cdef int64_t content_bound(int codec, const uint8_t* data, int64_t size) noexcept nogil
cdef bint is_bound_exceeded(int codec) noexcept nogil
cdef int64_t decompress(int codec, const uint8_t* data, int64_t size, uint8_t* target, int64_t room) except -3
cdef int64_t compressed_room(int codec, int64_t size) noexcept nogil
cdef int64_t compress(int codec, const uint8_t* data, int64_t size, uint8_t* target, int64_t room) except -1
