# Reading segment files from front to back by `pread`: recovery, verification, repair, dumps, index rebuilds.

from libc.stdint cimport int64_t, uint8_t

from fastlog._native.decoder cimport BatchHeader, Problem


cdef class BatchReader:
    """Whole batches of a file, one after the other; a bad sector is an error number here, not a signal."""
    cdef readonly str path
    cdef readonly int64_t position      # of the next batch
    cdef readonly int64_t end           # where the file, or the part to read, ends
    cdef int fd
    cdef uint8_t* buffer
    cdef int64_t capacity
    cdef int64_t buffered_from          # file position of buffer[0]
    cdef int64_t buffered

    cdef int64_t fill(self, int64_t position, int64_t size) noexcept nogil
    cdef const uint8_t* base(self) noexcept nogil
    cdef Problem next(self, BatchHeader* header, bint check_crc, int64_t* failure) noexcept nogil
    cdef int64_t resynchronise(self, int64_t position, int64_t expected_offset, BatchHeader* header) except -2 nogil
    cdef int refuse(self, int64_t result) except -1 with gil
