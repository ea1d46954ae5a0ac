# Columns of byte strings in, encoded record batches out. No Python object is touched below this line of the engine.

from libc.stdint cimport int16_t, int32_t, int64_t, uint8_t

from fastlog._native.columns cimport ColumnData
from fastlog._native.oscalls cimport iovec

cdef enum:
    IN_PLACE_SIZE = 4096        # values of stable memory from this size on are written from where they are
    RECORD_TOO_LARGE = -2       # results of encode_batch and plan_batches below zero
    OUT_OF_MEMORY = -1

cdef struct RecordSource:
    const ColumnData* values
    const ColumnData* keys              # NULL = all null
    const ColumnData* headers           # NULL = none; entries are encoded headers, their count in front
    const int64_t* timestamps           # NULL = the constant
    int64_t timestamp
    int64_t count

cdef struct BatchShape:                 # one batch of an append
    int64_t first                       # its first record; in offsets, from the base offset of the append
    int64_t count                       # offsets that it takes
    int64_t size
    int64_t max_timestamp

cdef class Encoder:
    """Reusable room for one batch at a time: the encoded bytes lie in `vectors`, in order."""
    cdef uint8_t* buffer
    cdef int64_t capacity
    cdef iovec* vectors
    cdef int vector_capacity
    cdef int vector_count
    cdef int64_t size                   # of the batch, all vectors together
    cdef int64_t max_timestamp
    cdef int64_t count
    cdef bint in_one_piece              # for a codec: one vector, and no CRC yet

    cdef int64_t encode(self, const RecordSource* source, int64_t first, int64_t limit) noexcept nogil
    cdef void stamp(self, int64_t base_offset, int32_t leader_epoch) noexcept nogil
    cdef int reserve(self, int64_t capacity, int64_t used) noexcept nogil
    cdef int add_vector(self, const uint8_t* data, int64_t size) noexcept nogil

cdef class EncodedBatches:
    """Whole batches, one behind the other in memory of their own: all that is missing is their place in a log."""
    cdef uint8_t* data
    cdef int64_t size
    cdef int64_t capacity
    cdef BatchShape* shapes
    cdef int64_t shape_capacity
    cdef int64_t batches
    cdef int64_t offsets                # that all of them take
    cdef int64_t max_timestamp

    cdef void stamp(self, int64_t base_offset, int32_t leader_epoch) noexcept nogil
    cdef int reserve(self, int64_t more) except -1
    cdef int add(self, int64_t size, int64_t offsets, int64_t max_timestamp) except -1

cdef EncodedBatches encode_compressed(
    Encoder encoder, const RecordSource* source, int codec, int64_t max_message_bytes, int64_t max_decompressed_bytes
)
cdef int64_t plan_batches(const RecordSource* source, int64_t limit, BatchShape** shapes, int64_t* total, int64_t* failed) noexcept nogil
cdef void set_producer(
    uint8_t* batch, int64_t size, int64_t producer_id, int16_t producer_epoch, int32_t base_sequence, bint is_transactional
) noexcept nogil
