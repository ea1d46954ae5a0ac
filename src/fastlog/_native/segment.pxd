# One segment: a `.log` file, its two indexes, and how to find a batch in it.

from libc.stdint cimport int32_t, int64_t

from fastlog._native cimport oscalls as os_c
from fastlog._native.decoder cimport BatchHeader, Problem
from fastlog._native.index cimport IndexTracker
from fastlog._native.memory cimport Block
from fastlog._native.published cimport Published

cdef struct Place:                  # where to start decoding for an offset
    int64_t position
    int64_t expected_offset         # base offset that the batch there must have (or exceed, where gaps are legal)


cdef class Segment:
    cdef readonly int64_t base_offset
    cdef readonly str path
    cdef readonly str index_path
    cdef readonly str time_index_path
    cdef public int64_t size                # published bytes
    cdef readonly bint gaps                 # compacted, foreign or repaired: offsets may skip
    cdef int64_t limit                      # all offsets lie below it: where the next segment begins
    cdef public int64_t inode               # of the file; 0 = not looked at. Compaction puts another file in its place
    cdef public bint is_growing             # the active segment
    cdef public bint is_trusted             # closed while we looked on: its indexes are finished, their checksums may be unknown
    cdef public object index_checksums      # (offset, time, transaction index or None) as recorded when finished, or None
    cdef public object transaction_checksum     # of `.txnindex`, once somebody has looked, or None
    cdef public object aborted              # its entries, likewise: of a closed segment they never change
    cdef readonly int fd                    # open for appending, or -1
    cdef os_c.Descriptor reader             # open for reading: the active segment, and any one without mmap
    cdef bint stores                        # rebuilt indexes may be written to their files
    cdef int generation                     # of forks, when it was made
    cdef int64_t validated                  # the file is known to be at least so long
    cdef bint grows_tracker                 # the tracker has room for entries of others
    cdef int64_t room                       # bytes to map: growth included
    cdef int64_t index_bytes
    cdef int64_t interval
    cdef int32_t epoch
    cdef bint maps
    cdef readonly int64_t max_decompressed_bytes
    cdef Block* block
    cdef IndexTracker tracker               # None until the indexes are needed
    cdef int64_t first_timestamp            # largest of the first batch; -2 = not looked up yet
    cdef int64_t known_end                  # offset behind the last batch of a closed segment; -1 = not looked up yet
    cdef readonly bint is_damaged           # an index rebuild stepped over damage: the indexes do not tell all

    cdef int map_log(self) except -1
    cdef Block* fetch(self, int64_t position, int64_t size, int64_t* shift) except NULL
    cdef Problem peek(self, int64_t position, int64_t end, BatchHeader* header) except *
    cdef int locate(self, int64_t offset, int64_t end, Place* place) except -1
    cdef int require_whole(self, int64_t position, int64_t behind, int64_t end) except -1
    cdef Place landing(self, int64_t offset, int64_t end) except *
    cdef int64_t find_time(self, int64_t timestamp, int64_t start_offset, int64_t end) except -2
    cdef object damage(self, Problem problem, int64_t position, int64_t first_offset, int64_t end)
    cdef int64_t largest_timestamp(self) except -2
    cdef int64_t end_of_closed(self) except -1
    cdef int check_identity(self, int64_t inode) except -1
    cdef int check_length(self, int64_t actual, int64_t expected) except -1
    cdef int validate(self, int64_t end) except -1
    cdef os_c.Descriptor reading_file(self)
    cdef int forget_reader(self) except -1
    cdef int join_appending(self, const Published* state) except -1
    cdef int join_indexes(self, const Published* state, bint is_writer) except -1
    cdef int follow(self, const Published* state) except -1
    cdef int let_mapping_grow(self) except -1
    cdef int grown(self, int64_t size) except -1
    cpdef IndexTracker load_indexes(self)
    cpdef rebuild_indexes(self, int64_t end)
