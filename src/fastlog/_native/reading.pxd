# Finding records and waiting for them.

from libc.stdint cimport int64_t

from fastlog._native.batch cimport RecordBatch
from fastlog._native.handle cimport Handle, SegmentList
from fastlog._native.published cimport Published
from fastlog._native.segment cimport Place, Segment

cdef enum:
    MOST_RETRIES = 100              # of a read whose segment went away

cdef RecordBatch read_range(Handle log, int64_t offset, int64_t stop, int64_t max_bytes)
cdef int64_t find_time(Handle log, int64_t timestamp) except -2
cdef bint wait_for(Handle log, int64_t offset, int64_t milliseconds) except -1
cdef int64_t readable_end(Handle log) except -1
cdef object out_of_range(Handle log, offset)
cdef bytes aborted_entries(Handle log, SegmentList list_, Py_ssize_t i)
cdef Segment find_batch(Handle log, Published* state, int64_t offset, int64_t stop, Place* place, int64_t* end)
cdef int complete_damage(Handle log, error, const Published* state) except -1
