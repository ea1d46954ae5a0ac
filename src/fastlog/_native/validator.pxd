# Encoded batches from outside, checked as a leader checks what its clients send.

from libc.stdint cimport int32_t, int64_t, uint8_t

from fastlog._native.encoder cimport BatchShape


cdef class BatchPlan:
    """Whole batches, one behind another, in memory of their own, ready to be stamped and written."""
    cdef uint8_t* data
    cdef readonly int64_t size
    cdef BatchShape* shapes
    cdef readonly int64_t batches
    cdef readonly int64_t offsets           # how many offsets they take
    cdef readonly int64_t max_timestamp
    cdef readonly bint has_producer         # whether any of them carries a producer id

    cdef void stamp(self, int64_t base_offset, int32_t leader_epoch) noexcept nogil
