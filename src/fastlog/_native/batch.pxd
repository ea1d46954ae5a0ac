# Decoded batches as Python sees them: columns, records, headers.

from libc.stdint cimport int32_t, int64_t

from fastlog._native.memory cimport Block, ColumnarBatch


cdef class Window:
    """A read-only buffer over part of a block; it pins the block."""
    cdef Block* block
    cdef int64_t start
    cdef int64_t size

    @staticmethod
    cdef Window over(Block* block, int64_t start, int64_t size)


cdef class Record:
    cdef readonly str topic
    cdef readonly int partition
    cdef readonly int64_t offset
    cdef int64_t milliseconds
    cdef bint is_append_time
    cdef readonly object key
    cdef readonly object value
    cdef readonly object headers


cdef class BinaryColumn:
    cdef RecordBatch batch
    cdef const int32_t* positions       # NULL: every entry is null
    cdef const int32_t* sizes


cdef class HeadersColumn:
    cdef RecordBatch batch


cdef class RecordBatch(ColumnarBatch):
    cdef readonly str topic
    cdef readonly int64_t base_offset
    cdef readonly int64_t next_offset
    cdef bint is_append_time

    cdef Record record(self, int64_t i)
    cdef object headers_at(self, int64_t i)


cdef class RecordCursor:
    cdef readonly RecordBatch batch
    cdef readonly int64_t next_index
    cdef readonly bint stopped
    cdef object key_deserializer
    cdef object value_deserializer
