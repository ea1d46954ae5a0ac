# What a caller passes to append, seen as columns of byte strings that the encoder reads without the GIL.

cimport cython
from libc.stdint cimport int32_t, int64_t, uint8_t


cdef enum ColumnKind:
    COLUMN_NULLS            # every entry is null
    COLUMN_SPANS            # one pointer and size per entry
    COLUMN_FIXED            # NumPy: base + i * stride, item_size bytes each
    COLUMN_BINARY           # Arrow: int32 offsets (binary, utf8)
    COLUMN_LARGE_BINARY     # Arrow: int64 offsets
    COLUMN_BINARY_VIEW      # Arrow: 16-byte views (binary_view, utf8_view)


cdef struct Span:
    const uint8_t* data     # NULL = null; an empty string has a non-NULL pointer
    int64_t size


cdef struct ColumnData:
    ColumnKind kind
    int64_t length
    bint is_stable          # nobody can change the bytes while the column lives: large values are written in place
    const Span* spans
    const uint8_t* base     # FIXED: first item; BINARY kinds: the data buffer
    int64_t stride
    int64_t item_size
    bint strips_zeros       # FIXED: NumPy "S" drops trailing zero bytes when read
    const uint8_t* validity # Arrow bitmap, NULL = no nulls
    int64_t first           # Arrow array offset: index of entry 0 in the buffers below
    const void* offsets     # BINARY: int32[length + 1 + first], LARGE_BINARY: int64[...]
    const uint8_t* views    # BINARY_VIEW: 16 bytes an entry
    const uint8_t** buffers # BINARY_VIEW: variadic buffers


cdef enum:
    SMALL_SPANS = 8                 # up to so many entries need no allocation of their own


@cython.final
@cython.no_gc                       # lives inside one append, where no cycle can reach it
cdef class Column:
    """A column and everything that keeps its bytes alive."""
    cdef ColumnData data
    cdef object owner               # what must stay alive: objects, NumPy arrays, imported Arrow arrays
    cdef Span* own_spans            # malloc'd, freed with the column; NULL while small_spans do
    cdef uint8_t* own_bytes         # malloc'd copies of mutable buffers and encoded headers, freed with the column
    cdef size_t own_used
    cdef size_t own_capacity
    cdef Span[SMALL_SPANS] small_spans


@cython.final
@cython.no_gc
cdef class Timestamps:
    """Milliseconds per record, -1 = none: one constant, or an int64 array."""
    cdef int64_t constant
    cdef const int64_t* values      # NULL = constant
    cdef int64_t length
    cdef int64_t largest            # -1 when there is no entry
    cdef object owner               # what values points into: nobody else has it


cdef Column make_column(object values, str role)                           # role: "values" or "keys", for messages
cdef Column make_single_column(object value, str role)                      # one value; role: "value" or "key"
cdef Column make_header_column(object headers, int64_t length)             # each entry: headersCount + headers, encoded
cdef Timestamps make_timestamps(object timestamps, int64_t length, int64_t now)


cdef inline Span span_at(const ColumnData* column, int64_t i) noexcept nogil:
    """Entry `i`; the caller keeps 0 <= i < length."""
    cdef Span span
    cdef int64_t at, start, stop
    cdef const int32_t* view
    if column.kind == COLUMN_SPANS:
        return column.spans[i]
    if column.kind == COLUMN_NULLS:
        span.data = NULL
        span.size = -1
        return span
    if column.kind == COLUMN_FIXED:
        span.data = column.base + i * column.stride
        span.size = column.item_size
        if column.strips_zeros:
            while span.size > 0 and span.data[span.size - 1] == 0:
                span.size -= 1
        return span
    at = column.first + i
    if column.validity != NULL and not (column.validity[at >> 3] >> (at & 7)) & 1:
        span.data = NULL
        span.size = -1
        return span
    if column.kind == COLUMN_BINARY:
        start = (<const int32_t*>column.offsets)[at]
        stop = (<const int32_t*>column.offsets)[at + 1]
        span.data = column.base + start
        span.size = stop - start
        return span
    if column.kind == COLUMN_LARGE_BINARY:
        start = (<const int64_t*>column.offsets)[at]
        stop = (<const int64_t*>column.offsets)[at + 1]
        span.data = column.base + start
        span.size = stop - start
        return span
    view = <const int32_t*>(column.views + at * 16)
    span.size = view[0]
    if view[0] <= 12:
        span.data = <const uint8_t*>(view + 1)
    else:
        span.data = column.buffers[view[2]] + view[3]
    return span
