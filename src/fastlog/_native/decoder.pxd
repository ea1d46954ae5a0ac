# Encoded record batches in, columns out. Everything here treats its bytes as hostile: a length or a count is compared
# with what remains (`length <= end - at`) before it is used, and nothing is read at or beyond `end`.

from libc.stdint cimport int16_t, int32_t, int64_t, uint32_t, uint8_t

from fastlog._native.memory cimport BatchColumns, Block

cdef enum Problem:
    FINE = 0
    END_OF_BYTES                # nothing left, not even one byte
    CUT_OFF                     # a header or a batch runs past the end
    BAD_LENGTH
    BAD_MAGIC
    OLD_MAGIC                   # message format 0 or 1
    BAD_CRC
    BAD_ATTRIBUTES
    BAD_COUNT
    BAD_OFFSET_DELTA
    BAD_BASE_OFFSET             # a hole, an overlap, or offsets that go back
    BAD_EPOCH
    BAD_TIMESTAMP
    BAD_RECORD_LENGTH
    BAD_RECORD_ATTRIBUTES
    BAD_RECORD_OFFSET
    BAD_RECORD_TIMESTAMP
    BAD_KEY_LENGTH
    BAD_VALUE_LENGTH
    BAD_HEADERS
    BAD_COMPRESSION
    TRAILING_BYTES
    BAD_CONTROL
    TOO_MUCH_CONTENT            # no damage: the reader allows less than the batch decompresses to
    NO_MEMORY
    RAISED                      # a Python exception is set

cdef struct BatchHeader:
    int64_t position
    int64_t size                # whole batch, the first 12 bytes included
    int64_t base_offset
    int64_t last_offset
    int32_t leader_epoch
    uint32_t crc
    int16_t attributes
    int64_t base_timestamp
    int64_t max_timestamp
    int64_t producer_id
    int16_t producer_epoch
    int32_t base_sequence
    int32_t count

cdef int64_t NO_LIMIT             # of offsets, for ``check_order``

cdef struct AbortedRange:           # a transaction that was given up: its producer, and the offsets from its first record to its marker
    int64_t producer_id
    int64_t first_offset
    int64_t last_offset

cdef Problem parse_header(const uint8_t* bytes_, int64_t position, int64_t end, BatchHeader* header) noexcept nogil
cdef Problem check_order(const BatchHeader* header, int64_t expected_offset, bint gaps, int32_t epoch, int64_t limit) noexcept nogil
cdef bint crc_matches(const uint8_t* bytes_, const BatchHeader* header) noexcept nogil
cdef Problem decode_batches(
    Block* block, int64_t position, int64_t end, int64_t start_offset, int64_t stop_offset, int64_t expected_offset,
    bint gaps, int32_t epoch, int64_t offset_limit, int64_t max_bytes, int64_t max_decompressed_bytes, const AbortedRange* aborted,
    int64_t aborted_count, BatchColumns* columns, BatchHeader* header, int64_t* next_offset, int64_t* next_position,
) except RAISED nogil
cdef Problem find_timestamp(
    const uint8_t* bytes_, const BatchHeader* header, int64_t max_decompressed_bytes, int64_t timestamp, int64_t start_offset,
    int64_t* found,
) except RAISED nogil
cdef Problem check_records(const uint8_t* bytes_, const BatchHeader* header, int64_t max_decompressed_bytes) except RAISED nogil
cdef Problem open_area(
    const uint8_t* bytes_, const BatchHeader* header, int64_t max_decompressed_bytes, const uint8_t** at, const uint8_t** end,
    Block** content,
) except RAISED nogil
cdef str describe(Problem problem)
