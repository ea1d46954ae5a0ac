# Encoded batches from outside, checked as a leader checks what its clients send.

from fastlog._native.encoder cimport EncodedBatches


cdef class ValidatedBatches(EncodedBatches):
    """Encoded batches that somebody else made."""
    cdef readonly bint has_producer         # whether any of them carries a producer id
