# Offset index and time index of a segment: Kafka's `.index` and `.timeindex`.

from libc.stdint cimport int32_t, int64_t, uint32_t, uint8_t

from fastlog._native.memory cimport Block
from fastlog._native.published cimport Published

cdef struct OffsetEntry:
    int64_t relative_offset
    int64_t position

cdef struct TimeEntry:
    int64_t timestamp
    int64_t relative_offset


cdef class IndexFile:
    """Entries of one index file: the readable ones in `block`, new ones in `pending` until they are written.

    Who owns the writer lock adds entries without the GIL, while other threads look things up: both counts and `lost` are
    stored and loaded as words.
    """
    cdef readonly str path
    cdef readonly int entry_size
    cdef readonly int64_t limit         # most entries that the file may have
    cdef readonly int64_t count         # entries in `block`
    cdef Block* block
    cdef int fd                         # -1 unless entries are, or were, appended while it was looked at
    cdef uint8_t* pending
    cdef int64_t pending_count
    cdef int64_t pending_capacity
    cdef int generation                 # of forks, when it was made
    cdef int64_t last_key               # relative offset, or timestamp, of the newest entry; -1 = none
    cdef int64_t lost                   # an entry could not be kept: rebuild before the file is called complete

    cdef int64_t total(self) noexcept nogil
    cdef const uint8_t* entry(self, int64_t i) noexcept nogil
    cdef OffsetEntry offset_entry(self, int64_t i) noexcept nogil
    cdef TimeEntry time_entry(self, int64_t i) noexcept nogil
    cdef int64_t floor(self, int64_t key) noexcept nogil
    cdef void add(self, int64_t key, int32_t second) noexcept nogil
    cdef int64_t write_pending(self) noexcept nogil
    cdef uint32_t checksum(self) noexcept nogil
    cdef int load(self, int64_t size, bint map_file) except -1
    cdef int keep_pending(self) except -1
    cdef int begin_appending(self, bint map_file) except -1
    cdef int join(self, int64_t count, bint is_writer, bint map_file) except -1
    cdef int map_with_room(self, int fd, int64_t count, bint map_file) except -1
    cdef int follow(self, int64_t count) noexcept nogil
    cdef int64_t key_of_last(self) noexcept nogil
    cdef void close(self) noexcept
    cdef int replace_block(self, Block* block, int64_t count) except -1


cdef class IndexTracker:
    """Decides which batches get an index entry, exactly as Kafka 4.1 does; used by append, recovery and rebuild alike."""
    cdef IndexFile offsets
    cdef IndexFile times
    cdef int64_t base_offset
    cdef int64_t interval               # index.interval.bytes
    cdef int64_t bytes_since_entry
    cdef int64_t max_timestamp          # largest of the segment so far, -1 = none; looked at meanwhile, as the counts are
    cdef int64_t offset_of_max          # last offset of the batch that brought it

    cdef void track(self, int64_t position, int64_t size, int64_t last_offset, int64_t max_timestamp) noexcept nogil
    cdef void finish(self) noexcept nogil
    cdef void follow(self, const Published* state) noexcept nogil
    cdef void catch_up(self, const Published* state) noexcept nogil
    cdef void tell(self, Published* state) noexcept nogil
    cdef bint lacks_room(self, int64_t batches) noexcept nogil
