# Every batch of a log, in order, as it was written: for those who keep state in a topic.

from libc.stdint cimport int64_t

from fastlog._native.batch cimport RecordBatch
from fastlog._native.decoder cimport BatchHeader
from fastlog._native.handle cimport Handle
from fastlog._native.memory cimport Block
from fastlog._native.published cimport Published
from fastlog._native.segment cimport Segment
from fastlog._native.transactions cimport Marker


cdef class ReplayedBatch:
    cdef Block* block               # holds the whole batch; pinned
    cdef int64_t shift              # file position of the block's first byte
    cdef BatchHeader header
    cdef Marker marker
    cdef int64_t max_decompressed_bytes
    cdef str path
    cdef str topic
    cdef int partition
    cdef RecordBatch decoded        # None until somebody asks

    cdef RecordBatch decode(self)


cdef class Replay:
    cdef Handle log
    cdef int64_t offset             # where the next batch begins, or ahead of that
    cdef int64_t stop               # where the log ended when it was last looked at
    # where the last batch ended, if the list of segments is still the same
    cdef Segment segment
    cdef int64_t position
    cdef int64_t generation

    cdef int look(self, Published* state) except -1
    cdef ReplayedBatch step(self, Published* state)


cdef Replay replay(Handle log, start)
