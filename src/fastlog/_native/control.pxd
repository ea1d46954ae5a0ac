# The page and the locks that processes with one partition open share.

from cpython.pythread cimport PyThread_type_lock
from libc.stdint cimport int64_t, uint32_t

from fastlog._native.published cimport Bell, ControlPage


cdef class Mutex:
    """A lock that C code takes without the GIL."""
    cdef PyThread_type_lock lock

    cdef bint try_acquire(self) noexcept
    cdef bint acquire_within(self, int64_t milliseconds) except -1
    cdef void release(self) noexcept


cdef class Control:
    cdef ControlPage* page
    cdef readonly str folder
    cdef readonly bint is_shared            # the page is a mapping of the control file; else it is memory of our own
    cdef readonly bint is_writable
    cdef readonly bint is_exclusive         # nobody else can get in: no lock needs to be taken
    cdef int folder_fd                      # presence
    cdef int control_fd                     # the writer lock, and the sign of being attached
    cdef int sync_fd                        # the sync owner's lock
    cdef int64_t lock_timeout               # milliseconds
    cdef int64_t process                    # id of this process, for messages
    cdef int generation                     # of forks, when it was made
    cdef Mutex writer
    cdef Mutex syncer
    cdef Mutex maintainer

    cdef int lock_writer(self) except -1
    cdef int wait_for_writer_lock(self, bint has_mutex) except -1
    cdef void unlock_writer(self) noexcept
    cdef bint try_sync_owner(self) except -1
    cdef int lock_sync_owner(self) except -1
    cdef void unlock_sync_owner(self) noexcept
    cdef bint try_maintenance(self) except -1
    cdef void end_maintenance(self) noexcept
    cdef void let_go(self) noexcept
    cdef object locked_out(self, str what, int64_t pid)


cdef void ring(Bell* bell) noexcept nogil
cdef uint32_t listen(Bell* bell) noexcept nogil
cdef int sleep_on(Bell* bell, uint32_t heard, int64_t nanoseconds) except -1
