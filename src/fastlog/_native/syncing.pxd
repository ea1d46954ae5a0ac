# Making what was appended survive power loss.

from libc.stdint cimport int64_t

from fastlog._native.handle cimport Handle
from fastlog._native.published cimport Published

cdef int sync_until(Handle log, int64_t offset) except -1
cdef bint sync_within(Handle log, int64_t offset, int64_t milliseconds) except -1
cdef int sync_own(Handle log) except -1
cdef int lead(Handle log, bint always) except -1
cdef int sync_all(Handle log, const Published* state) except -1
cdef int persist(Handle log, bint at_once) except -1
cdef int poison(Handle log, error) except -1
cdef object poisoned_error(Handle log)
cdef int keep_interval(Handle log) except -1
cdef int sync_rolled_later(Handle log) except -1
