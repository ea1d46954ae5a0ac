# Transactions in the log: the markers that end them, the aborted ones of a segment (`.txnindex`), and which of those a
# reader has to know.

from libc.stdint cimport int16_t, int32_t, int64_t, uint8_t

from fastlog._native.decoder cimport AbortedRange, BatchHeader, Problem

cdef enum:
    ABORT_MARKER = 0                # types of control records, as Kafka numbers them
    COMMIT_MARKER = 1
    NO_MARKER = -1                  # of another type, or emptied by compaction: nothing ends here

cdef struct Marker:
    int16_t type
    int32_t coordinator_epoch

cdef struct AbortedTransaction:     # an entry of .txnindex
    int64_t producer_id
    int64_t first_offset
    int64_t last_offset             # the marker's
    int64_t last_stable_offset      # of the log, as the marker left it

cdef struct AbortedRanges:          # zero it before use, release it with `free_ranges`
    AbortedRange* ranges
    int64_t count
    int64_t capacity

cdef Problem parse_marker(const uint8_t* bytes_, const BatchHeader* header, Marker* marker) noexcept nogil
cdef void build_marker(
    uint8_t* at, int64_t producer_id, int16_t producer_epoch, int32_t coordinator_epoch, bint commit, int64_t timestamp
) noexcept nogil

cdef void load_entry(const uint8_t* at, AbortedTransaction* entry) noexcept nogil
cdef void store_entry(uint8_t* at, const AbortedTransaction* entry) noexcept nogil
cdef int collect_entries(
    const uint8_t* entries, int64_t count, int64_t first_offset, int64_t end_offset, AbortedRanges* found
) noexcept nogil
cdef void sort_ranges(AbortedRanges* found) noexcept nogil
cdef void free_ranges(AbortedRanges* found) noexcept nogil

cdef class TransactionIndex:
    """The ``.txnindex`` file of one segment."""
    cdef readonly str path
    cdef readonly int64_t base_offset
    cdef bytes content              # entries read so far; replaced, never changed

    cpdef bytes entries(self, int64_t count)
