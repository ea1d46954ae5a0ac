# Memory that views may outlive everything else with: reference-counted blocks, released from any thread without
# the GIL (an Arrow consumer frees its arrays wherever it likes), and the columns of a decoded batch on top of them.

from libc.stdint cimport int32_t, int64_t, uint8_t


cdef struct Block:
    uint8_t* data
    size_t size
    bint is_mapping                # unmapped on release, else freed
    int references                 # atomic


cdef Block* block_allocate(size_t size) noexcept nogil          # NULL when out of memory
cdef Block* block_adopt_mapping(void* address, size_t size) noexcept nogil
cdef void block_retain(Block* block) noexcept nogil
cdef void block_release(Block* block) noexcept nogil            # NULL is ignored


cdef struct BatchColumns:
    int64_t count
    Block* bytes                   # what positions point into: a segment mapping, or one owned buffer
    Block* arrays                  # owns every array below
    int64_t* offsets
    int64_t* timestamps            # milliseconds, -1 = none
    int32_t* key_positions         # NULL (with key_sizes) when every key is null
    int32_t* key_sizes             # -1 = null
    int32_t* value_positions
    int32_t* value_sizes           # -1 = null
    int32_t* header_positions      # NULL when no record has headers; first byte behind the record's headersCount
    int32_t* header_counts


cdef class ColumnarBatch:
    """Owner of one `BatchColumns`; `fastlog.RecordBatch` is its public face."""
    cdef BatchColumns columns
    cdef readonly int partition
