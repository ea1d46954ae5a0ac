# Finding records and waiting for them.

from libc.stdint cimport int64_t

from fastlog._native.batch cimport RecordBatch
from fastlog._native.handle cimport Handle

cdef RecordBatch read_range(Handle log, int64_t offset, int64_t stop, int64_t max_bytes)
cdef int64_t find_time(Handle log, int64_t timestamp) except -2
cdef bint wait_for(Handle log, int64_t offset, int64_t milliseconds) except -1
cdef int64_t readable_end(Handle log) except -1
cdef object out_of_range(Handle log, offset)
