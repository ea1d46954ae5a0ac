# What tells of records that were sent: where they are, or why they are not.

cimport cython
from libc.stdint cimport int64_t

from fastlog._native.pending cimport PendingAppend


@cython.final
@cython.freelist(512)
@cython.no_gc
cdef class Delivery:
    cdef PendingAppend pending
    cdef int64_t index
    cdef int64_t timestamp
    cdef bint is_seen

    cdef int see(self) except -1


cdef class BatchDelivery:
    cdef object topic
    cdef list parts             # of (PendingAppend, records); in the order of `order`
    cdef object order           # indexes of the records, partition by partition; None = as they were passed
    cdef object timestamps
    cdef int64_t count
    cdef bint is_seen

    cdef int see(self) except -1
    cdef object metadata(self)


cdef Delivery new_delivery()                            # empty: faster from here, where its free list is
cdef int64_t deadline_of(object timeout) except -1      # steady nanoseconds
cdef object again(object error)
cdef object undecided(object timeout)
cdef int run_callback(object fn, object delivery) except -1
cdef int call_after(list waiting, object fn, object delivery) except -1
