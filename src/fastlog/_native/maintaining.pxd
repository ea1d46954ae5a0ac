# Deleting and compacting.

from libc.stdint cimport int64_t

from fastlog._native.handle cimport Handle

cdef int64_t delete_until(Handle log, int64_t before) except -1
cdef object maintain(Handle log)
