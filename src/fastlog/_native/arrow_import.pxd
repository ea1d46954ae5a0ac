# Arrow arrays taken over from whoever offers them through the PyCapsule protocol.

cimport cython
from libc.stdint cimport int64_t

from fastlog._native.arrow_abi cimport ArrowArray


@cython.final
@cython.no_gc
cdef class ArrowChunk:
    """One imported array, released with this object."""
    cdef ArrowArray array
    cdef const ArrowArray* column   # the array, or the only child of a struct
    cdef int64_t first              # index of entry 0 in the column's buffers
    cdef int64_t length


@cython.final
cdef class ArrowColumn:
    """One column in as many chunks as the producer chose."""
    cdef bytes format               # as the C data interface spells types
    cdef list chunks                # of ArrowChunk, none of them empty
    cdef int64_t length


cdef bint offers_arrow(object source)
cdef ArrowColumn import_arrow_column(object source, str role)              # role: "values", "keys" ..., for messages
