"""Columns of byte strings, headers and timestamps, prepared for an encoder that runs without the GIL.

Everything a caller passes is frozen here, while the GIL is held: lists are copied to tuples, mutable buffers, headers
and timestamps to memory of our own; ``bytes`` objects and Arrow buffers, which nobody may change, are pointed at.
NumPy arrays are pointed at too, but their owner may write to them: such a column is not `is_stable`.
Whatever cannot become records is an ``InvalidRecordError`` that says which entry, what it is and what to pass instead.
"""

import sys
from collections.abc import Mapping
from datetime import UTC, datetime

from cpython.buffer cimport PyBUF_FORMAT, PyBUF_ND, PyBuffer_Release, PyObject_CheckBuffer, PyObject_GetBuffer
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize
from cpython.object cimport PyObject
from cpython.unicode cimport PyUnicode_AsUTF8AndSize
from libc.stdint cimport INT32_MAX, INT64_MAX, INT64_MIN, int32_t, int64_t, uint8_t, uintptr_t
from libc.stdlib cimport free, malloc, realloc
from libc.string cimport memcpy, strchr

from fastlog._native.arrow_abi cimport ArrowArray
from fastlog._native.arrow_import cimport ArrowChunk, ArrowColumn, import_arrow_column, offers_arrow
from fastlog._native.varint cimport write_varint

from fastlog.errors import InvalidRecordError

cdef extern from "Python.h":
    # borrowed items, without the reference counting that Cython's own declarations bring
    ctypedef struct PyTupleObject:
        PyObject** ob_item
    ctypedef struct PyListObject:
        PyObject** ob_item
    Py_ssize_t list_size "PyList_GET_SIZE"(object items) noexcept
    object PyTuple_New(Py_ssize_t size)
    void Py_INCREF(PyObject* item) noexcept
    bint is_bytes "PyBytes_Check"(PyObject* item) noexcept
    uint8_t* bytes_data "(uint8_t*)PyBytes_AS_STRING"(PyObject* item) noexcept
    Py_ssize_t bytes_size "PyBytes_GET_SIZE"(PyObject* item) noexcept
    bint is_exact_int "PyLong_CheckExact"(object item) noexcept
    long long PyLong_AsLongLongAndOverflow(object item, int* overflow) except? -1
    PyObject* None_ "Py_None"

cdef extern from *:
    void prefetch "__builtin_prefetch"(const void* address) noexcept nogil

cdef enum:
    PREFETCH = 16                       # items looked ahead: a long list outgrows the caches
    MOST_WIDTH_DIGITS = 9               # of Arrow's fixed-size binary: no larger value fits into a record

# what an empty string points at when its producer has no buffer
cdef const uint8_t* EMPTY = <const uint8_t*><const char*>b""
EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


cdef class Column:
    def __dealloc__(self):
        free(self.own_spans)
        free(self.own_bytes)


cdef class Timestamps:
    pass


# ---- values and keys ------------------------------------------------------------------------------------------

cdef Column make_column(object values, str role):
    """See `PartitionLog.append` for what is accepted. `role` names the argument in errors."""
    if isinstance(values, (list, tuple)):
        if type(values) is not tuple and isinstance(values, tuple):
            values = tuple(values)  # of a class of its own, such as a named tuple
        return _column_of_items(values, role)
    if isinstance(values, (str, bytes, bytearray, memoryview)):
        raise InvalidRecordError(f"{role} is one {_type_name(values)}: pass a sequence of records, e.g. [value]")
    if offers_arrow(values):
        return _column_of_arrow(import_arrow_column(values, role), role)
    if _is_numpy_array(values):
        return _column_of_numpy(values, role)
    if _is_sequence(values):
        return _column_of_items(tuple(values), role)
    raise InvalidRecordError(
        f"{role} is a {_type_name(values)}: pass a list, a NumPy array or an Arrow array, e.g. list({role})"
    )


cdef Column _column_of_items(object items, str role):
    """A list is copied to a tuple in the same pass: its items must live on when another thread empties it."""
    cdef Column column = Column.__new__(Column)
    cdef bint is_list = isinstance(items, list)
    cdef Py_ssize_t i, length = list_size(items) if is_list else len(<tuple>items)
    cdef Span* spans = _reserve_spans(column, length)
    cdef PyObject** slots = (<PyListObject*>items).ob_item if is_list else (<PyTupleObject*>items).ob_item
    cdef PyObject** kept = NULL
    cdef PyObject* item
    cdef Py_ssize_t others = 0
    column.data.is_stable = True
    column.owner = items
    if is_list:
        column.owner = PyTuple_New(length)
        kept = (<PyTupleObject*>column.owner).ob_item
    for i in range(length):  # nothing in here runs Python code
        if i + PREFETCH < length:
            prefetch(slots[i + PREFETCH])
        item = slots[i]
        if is_list:
            Py_INCREF(item)
            kept[i] = item
        if is_bytes(item):
            spans[i].data = bytes_data(item)
            spans[i].size = bytes_size(item)
        else:
            spans[i].data = NULL
            spans[i].size = -1
            others += item != None_
    if others:
        _copy_others(column, spans, role)
    return column


cdef Column make_single_column(object value, str role):
    """One value that was passed alone, and is not None: errors call it `role`, without an index."""
    cdef Column column = Column.__new__(Column)
    cdef Span* spans = _reserve_spans(column, 1)
    cdef PyObject* item = <PyObject*>value
    column.data.is_stable = True
    column.owner = (value,)
    if is_bytes(item):
        spans[0].data = bytes_data(item)
        spans[0].size = bytes_size(item)
        return column
    spans[0].data = NULL
    spans[0].size = -1
    _copy_item(column, &spans[0], value, role, -1)
    _settle_own_bytes(column, spans, 1)
    return column


cdef str _place_of(str role, Py_ssize_t index):
    """How errors name an item of an argument, or with -1 the argument itself."""
    return role if index < 0 else f"{role}[{index}]"


cdef int _copy_others(Column column, Span* spans, str role) except -1:
    """The items that are neither bytes nor None: copy what they hold, for it may change while the encoder runs."""
    cdef tuple items = column.owner
    cdef Py_ssize_t i
    for i in range(len(items)):
        if spans[i].data == NULL and items[i] is not None:
            _copy_item(column, &spans[i], items[i], role, i)
    _settle_own_bytes(column, spans, len(items))
    return 0


cdef Span* _reserve_spans(Column column, int64_t length) except NULL:
    """Room for `length` spans, which the caller fills in; the column becomes one of spans."""
    cdef Span* spans = column.small_spans
    if length > SMALL_SPANS:
        spans = <Span*>malloc(<size_t>length * sizeof(Span))
        if spans == NULL:
            raise MemoryError()
        column.own_spans = spans
    column.data.kind = COLUMN_SPANS
    column.data.length = length
    column.data.spans = spans
    return spans


cdef int _copy_item(Column column, Span* span, object item, str role, Py_ssize_t index) except -1:
    cdef Py_buffer view
    if isinstance(item, str):
        raise InvalidRecordError(
            f"{_place_of(role, index)} is a str, but records hold bytes: encode it first, e.g. value.encode()"
        )
    if not PyObject_CheckBuffer(item) or (not isinstance(item, (bytearray, memoryview)) and _is_numpy_number(item)):
        raise InvalidRecordError(f"{_place_of(role, index)} is a {_type_name(item)}: pass bytes, another buffer, or None")
    _get_buffer(item, &view, role, index)
    try:
        _append_own_bytes(column, <const uint8_t*>view.buf, <size_t>view.len)
        _mark_own(span, column.own_used - <size_t>view.len, view.len)
    finally:
        PyBuffer_Release(&view)
    return 0


cdef int _get_buffer(object item, Py_buffer* view, str role, Py_ssize_t index) except -1:
    try:
        PyObject_GetBuffer(item, view, PyBUF_ND | PyBUF_FORMAT)  # without strides: contiguous or an error
    except (BufferError, ValueError) as error:
        raise InvalidRecordError(
            f"{_place_of(role, index)} is a {_type_name(item)} whose bytes cannot be read ({error}): pass bytes(value)"
        ) from error
    if view.format != NULL and strchr(view.format, c"O") != NULL:
        PyBuffer_Release(view)
        raise InvalidRecordError(f"{_place_of(role, index)} is a {_type_name(item)} of Python objects: pass bytes")
    return 0


# Own bytes move when they grow. Until the last one is there, a span of them holds the position in place of the
# pointer, and -2 - size in place of the size.

cdef int _reserve_own_bytes(Column column, size_t more) except -1:
    cdef size_t needed = column.own_used + more
    cdef void* grown
    if needed > column.own_capacity or column.own_bytes == NULL:
        needed = max(needed, 2 * column.own_capacity, <size_t>64)
        grown = realloc(column.own_bytes, needed)
        if grown == NULL:
            raise MemoryError()
        column.own_bytes = <uint8_t*>grown
        column.own_capacity = needed
    return 0


cdef int _append_own_bytes(Column column, const uint8_t* data, size_t size) except -1:
    _reserve_own_bytes(column, size)
    if size:
        memcpy(column.own_bytes + column.own_used, data, size)
        column.own_used += size
    return 0


cdef inline void _mark_own(Span* span, size_t position, int64_t size) noexcept nogil:
    span.data = <const uint8_t*>position
    span.size = -2 - size


cdef void _settle_own_bytes(Column column, Span* spans, int64_t length) noexcept nogil:
    cdef int64_t i
    if column.own_bytes == NULL:
        return
    for i in range(length):
        if spans[i].size < -1:
            spans[i].data = column.own_bytes + <size_t>spans[i].data
            spans[i].size = -2 - spans[i].size


# ---- NumPy ----------------------------------------------------------------------------------------------------

cdef Column _column_of_numpy(object array, str role):
    cdef Column column
    _check_numpy(array, role)
    dtype = array.dtype
    if dtype.kind == "O":
        return _column_of_items(tuple(array.tolist()), role)
    if dtype.kind not in "SV" or dtype.names is not None:
        advice = f"pass numpy.strings.encode({role}, 'utf-8')" if dtype.kind in "UT" else (
            f"pass {role}.view('V{dtype.itemsize}') to store the bytes of each item" if dtype.itemsize else "pass bytes"
        )
        raise InvalidRecordError(f"{role} is a NumPy array of {dtype}, not of bytes (S, V or object): {advice}")
    column = Column.__new__(Column)
    column.owner = array
    column.data.kind = COLUMN_FIXED
    column.data.length = len(array)
    column.data.is_stable = False
    column.data.base = <const uint8_t*>_numpy_address(array)
    column.data.stride = array.strides[0]
    column.data.item_size = dtype.itemsize
    column.data.strips_zeros = dtype.kind == "S"
    return column


cdef const void* _numpy_address(object array) except NULL:
    cdef uintptr_t address = array.__array_interface__["data"][0]
    return <const void*>address if address else EMPTY


cdef int _check_numpy(object array, str role) except -1:
    if array.ndim != 1:
        raise InvalidRecordError(f"{role} is a NumPy array of shape {array.shape}: pass one dimension")
    masked = sys.modules.get("numpy.ma")
    if masked is not None and isinstance(array, masked.MaskedArray):
        raise InvalidRecordError(f"{role} is a masked NumPy array: pass {role}.tolist(), where masked entries are None")
    return 0


cdef bint _is_numpy_array(object value):
    numpy = sys.modules.get("numpy")  # no array exists before NumPy was imported
    return numpy is not None and isinstance(value, numpy.ndarray)


cdef bint _is_numpy_number(object value):
    """A NumPy scalar other than bytes: a buffer, but hardly one that was meant as a record."""
    numpy = sys.modules.get("numpy")
    return numpy is not None and isinstance(value, numpy.generic) and not isinstance(value, numpy.void)


# ---- Arrow ----------------------------------------------------------------------------------------------------

cdef Column _column_of_arrow(ArrowColumn source, str role):
    cdef Column column = Column.__new__(Column)
    cdef ArrowChunk chunk
    cdef ColumnData data
    cdef Span* spans
    cdef int64_t i, at = 0
    _describe_type(&column.data, source.format, role)
    column.owner = source
    column.data.length = source.length
    column.data.is_stable = True  # Arrow data are immutable, says their specification
    if not source.chunks or column.data.kind == COLUMN_NULLS:
        column.data.kind = COLUMN_NULLS
        return column
    if len(source.chunks) == 1 and column.data.kind != COLUMN_FIXED:
        _describe_chunk(&column.data, source.chunks[0], role)
        return column
    for chunk in source.chunks:
        _require_buffers(&column.data, chunk, role)
    spans = _reserve_spans(column, source.length)
    for chunk in source.chunks:
        _describe_type(&data, source.format, role)
        _describe_chunk(&data, chunk, role)
        with nogil:
            for i in range(chunk.length):
                if data.kind == COLUMN_FIXED and _is_null(&data, chunk.first + i):
                    spans[at + i].data = NULL
                    spans[at + i].size = -1
                else:
                    spans[at + i] = span_at(&data, i)
        at += chunk.length
    return column


cdef int _describe_type(ColumnData* data, bytes type_format, str role) except -1:
    """Which kind of column an Arrow format is (a chunk's buffers come later)."""
    data.item_size = 0
    data.strips_zeros = False
    if type_format in (b"z", b"u"):
        data.kind = COLUMN_BINARY
    elif type_format in (b"Z", b"U"):
        data.kind = COLUMN_LARGE_BINARY
    elif type_format in (b"vz", b"vu"):
        data.kind = COLUMN_BINARY_VIEW
    elif type_format == b"n":
        data.kind = COLUMN_NULLS
    elif type_format.startswith(b"w:") and type_format[2:].isdigit() and len(type_format) <= 2 + MOST_WIDTH_DIGITS:
        data.kind = COLUMN_FIXED
        data.item_size = int(type_format[2:])
    else:
        raise InvalidRecordError(
            f"{role} is Arrow data of format {type_format.decode('utf-8', 'replace')!r}, not binary or text "
            "(z, Z, vz, u, U, vu, w:n): cast it first, e.g. array.cast(pyarrow.large_binary())"
        )
    return 0


cdef int _require_buffers(const ColumnData* data, ArrowChunk chunk, str role) except -1:
    """The buffers that a type wants are there."""
    cdef const ArrowArray* array = chunk.column
    cdef int64_t buffers_least = 2 if data.kind == COLUMN_FIXED else 3
    if array.n_buffers < buffers_least or array.n_children != 0:
        raise InvalidRecordError(
            f"{role}: the Arrow array has {array.n_buffers} buffers and {array.n_children} children, "
            f"its type wants {buffers_least} and 0; its producer is broken"
        )
    if array.buffers[1] == NULL and not (data.kind == COLUMN_FIXED and data.item_size == 0):
        raise InvalidRecordError(f"{role}: the Arrow array has {chunk.length} entries but no buffer for them")
    return 0


cdef int _describe_chunk(ColumnData* data, ArrowChunk chunk, str role) except -1:
    """Point `data` at the chunk's buffers, once they have passed every check that their sizes permit."""
    cdef const ArrowArray* array = chunk.column
    cdef int64_t bad
    _require_buffers(data, chunk, role)
    data.length = chunk.length
    data.first = chunk.first
    data.validity = <const uint8_t*>array.buffers[0] if array.null_count != 0 else NULL
    if data.kind == COLUMN_FIXED:
        data.base = <const uint8_t*>array.buffers[1] if array.buffers[1] != NULL else EMPTY
        data.base += chunk.first * data.item_size
        data.stride = data.item_size
        return 0
    if data.kind == COLUMN_BINARY_VIEW:
        data.views = <const uint8_t*>array.buffers[1]
        data.buffers = <const uint8_t**>&array.buffers[2]
        with nogil:
            bad = _first_bad_view(data, array)
    else:
        data.offsets = array.buffers[1]
        data.base = <const uint8_t*>array.buffers[2]
        with nogil:
            bad = _first_bad_offset(data)
        if data.base == NULL:
            data.base = EMPTY
    if bad >= 0:
        raise InvalidRecordError(
            f"{role}: entry {bad} of the Arrow array lies outside its buffers; its producer is broken"
        )
    return 0


cdef inline bint _is_null(const ColumnData* data, int64_t at) noexcept nogil:
    return data.validity != NULL and not (data.validity[at >> 3] >> (at & 7)) & 1


cdef int64_t _first_bad_offset(const ColumnData* data) noexcept nogil:
    """First entry with a negative size or position, or with bytes where there is no buffer; -1 when all are good."""
    cdef const int32_t* narrow = (<const int32_t*>data.offsets) + data.first
    cdef const int64_t* wide = (<const int64_t*>data.offsets) + data.first
    cdef bint is_narrow = data.kind == COLUMN_BINARY
    cdef int64_t i, start, stop
    cdef int falls = 0
    # the first pass has no branches, so that it is vectorised; the second finds the entry to name
    if is_narrow:
        for i in range(data.length):
            falls |= narrow[i + 1] < narrow[i]
    else:
        for i in range(data.length):
            falls |= wide[i + 1] < wide[i]
    start = narrow[0] if is_narrow else wide[0]
    stop = narrow[data.length] if is_narrow else wide[data.length]
    if not falls and start >= 0 and (data.base != NULL or start == stop):
        return -1
    for i in range(data.length):
        start = narrow[i] if is_narrow else wide[i]
        stop = narrow[i + 1] if is_narrow else wide[i + 1]
        if start < 0 or stop < start or (data.base == NULL and stop != start):
            return i
    return 0


cdef int64_t _first_bad_view(const ColumnData* data, const ArrowArray* array) noexcept nogil:
    """First non-null view that points outside its buffer; -1 when all are good."""
    cdef int64_t buffers_count = array.n_buffers - 3
    cdef const int64_t* sizes = <const int64_t*>array.buffers[array.n_buffers - 1]
    cdef const int32_t* view
    cdef int64_t i
    if buffers_count > 0 and sizes == NULL:
        buffers_count = 0
    for i in range(data.length):
        view = <const int32_t*>(data.views + (data.first + i) * 16)
        if 0 <= view[0] <= 12 or _is_null(data, data.first + i):
            continue
        if (
            view[0] < 0
            or view[2] < 0
            or view[2] >= buffers_count
            or view[3] < 0
            or <int64_t>view[3] + view[0] > sizes[view[2]]
            or data.buffers[view[2]] == NULL
        ):
            return i
    return -1


# ---- headers --------------------------------------------------------------------------------------------------

cdef Column make_header_column(object headers, int64_t length):
    """One entry per record: headersCount and the headers as a record holds them, or null for none.

    A mapping, a `Headers` or a sequence of pairs is meant for every record; another sequence has one entry per record.
    """
    cdef Column column = Column.__new__(Column)
    column.data.length = length
    column.data.is_stable = True
    column.data.kind = COLUMN_NULLS
    if headers is None:
        return column
    if _is_for_all(headers):
        if _encode_headers(column, headers, -1):
            column.data.kind = COLUMN_FIXED
            column.data.base = column.own_bytes
            column.data.stride = 0
            column.data.item_size = <int64_t>column.own_used
        return column
    if isinstance(headers, (str, bytes, bytearray, memoryview)) or not _is_sequence(headers):
        raise InvalidRecordError(
            f"headers is a {_type_name(headers)}: pass a dict or (str, bytes) pairs for all records, "
            "or a list with one of them (or None) per record"
        )
    _encode_entries(column, tuple(headers), length)
    return column


cdef bint _is_for_all(object headers):
    if isinstance(headers, Mapping) or hasattr(headers, "get_all"):
        return True
    if not isinstance(headers, (list, tuple)):
        return False
    if len(headers) == 0:
        return True
    first = headers[0]
    return isinstance(first, (list, tuple)) and len(first) == 2 and isinstance(first[0], (str, bytes))


cdef int _encode_entries(Column column, tuple entries, int64_t length) except -1:
    cdef Span* spans
    cdef size_t start
    cdef int64_t i
    if len(entries) != length:
        raise InvalidRecordError(
            f"headers has {len(entries)} entries for {length} values: pass one per record, or one dict for all"
        )
    spans = _reserve_spans(column, length)
    for i in range(length):
        start = column.own_used
        if _encode_headers(column, entries[i], i):
            _mark_own(&spans[i], start, <int64_t>(column.own_used - start))
        else:
            spans[i].data = NULL
            spans[i].size = -1
    _settle_own_bytes(column, spans, length)
    return 0


cdef Py_ssize_t _encode_headers(Column column, object headers, int64_t index) except -1:
    """Append the headers of record `index` (-1: of all records) to the own bytes; return how many they are."""
    cdef tuple pairs = _header_pairs(headers, index)
    cdef Py_ssize_t count = len(pairs)
    if count:
        _append_varint(column, count)
    for pair in pairs:
        if not isinstance(pair, (tuple, list)) or len(pair) != 2:
            raise InvalidRecordError(f"{_entry(index)} has a {_type_name(pair)} where a (str, bytes) pair is expected")
        _encode_header(column, pair[0], pair[1], index)
    return count


cdef tuple _header_pairs(object headers, int64_t index):
    if headers is None:
        return ()
    if isinstance(headers, (tuple, list)) or hasattr(headers, "get_all"):
        return tuple(headers)
    if isinstance(headers, Mapping):
        return tuple(headers.items())
    raise InvalidRecordError(
        f"{_entry(index)} is a {_type_name(headers)}: pass None, a dict, or a sequence of (str, bytes) pairs"
    )


cdef int _encode_header(Column column, object key, object value, int64_t index) except -1:
    cdef const char* text
    cdef Py_ssize_t size
    cdef Py_buffer view
    cdef bytes escaped
    if not isinstance(key, str):
        raise InvalidRecordError(f"{_entry(index)} has the key {key!r}, a {_type_name(key)}: header keys are str")
    try:
        text = PyUnicode_AsUTF8AndSize(key, &size)
    except UnicodeEncodeError as error:
        escaped = _bytes_read_as(key)
        if escaped is None:
            raise InvalidRecordError(
                f"{_entry(index)} has the key {key!r}, which UTF-8 cannot express: {error.reason}"
            ) from error
        text, size = escaped, len(escaped)
    _append_sized(column, <const uint8_t*>text, size, index)
    if value is None:
        _append_varint(column, -1)
        return 0
    if isinstance(value, bytes):
        _append_sized(column, bytes_data(<PyObject*>value), bytes_size(<PyObject*>value), index)
        return 0
    if isinstance(value, str) or not PyObject_CheckBuffer(value) or _is_numpy_number(value):
        advice = "encode it first, e.g. value.encode()" if isinstance(value, str) else "pass bytes or None"
        raise InvalidRecordError(f"{_entry(index)} has a {_type_name(value)} as the value of {key!r}: {advice}")
    _get_buffer(value, &view, "headers", index)
    try:
        _append_sized(column, <const uint8_t*>view.buf, view.len, index)
    finally:
        PyBuffer_Release(&view)
    return 0


cdef bytes _bytes_read_as(str key):
    """The bytes of another writer's header that was read under this name: they are no UTF-8, and go on as they are. None for
    a name that was never read."""
    try:
        return key.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError:
        return None


cdef int _append_sized(Column column, const uint8_t* data, Py_ssize_t size, int64_t index) except -1:
    if size > INT32_MAX:
        raise InvalidRecordError(f"{_entry(index)} has a header of {size} bytes; {INT32_MAX} are the most it may have")
    _append_varint(column, size)
    return _append_own_bytes(column, data, <size_t>size)


cdef int _append_varint(Column column, int64_t value) except -1:
    _reserve_own_bytes(column, 10)
    column.own_used = <size_t>(write_varint(column.own_bytes + column.own_used, value) - column.own_bytes)
    return 0


cdef str _entry(int64_t index):
    return "headers" if index < 0 else f"headers[{index}]"


# ---- timestamps -----------------------------------------------------------------------------------------------

cdef Timestamps make_timestamps(object timestamps, int64_t length, int64_t now):
    """Milliseconds since 1970 for `length` records: `now` for None, one for all, or one each. None and NaT are -1."""
    if timestamps is None:
        return _constant(now, length)
    if is_exact_int(timestamps):
        return _constant(_milliseconds(timestamps, -1), length)
    if isinstance(timestamps, (list, tuple)):
        return _timestamps_of_items(tuple(timestamps), length)
    if offers_arrow(timestamps):
        return _timestamps_of_arrow(import_arrow_column(timestamps, "timestamps"), length)
    if _is_numpy_array(timestamps):
        if timestamps.ndim == 0:
            return _constant(_milliseconds(timestamps[()], -1), length)
        return _timestamps_of_numpy(timestamps, length)
    if not isinstance(timestamps, (str, bytes, bytearray)) and _is_sequence(timestamps):
        return _timestamps_of_items(tuple(timestamps), length)
    return _constant(_milliseconds(timestamps, -1), length)


cdef Timestamps _constant(int64_t value, int64_t length):
    cdef Timestamps result = Timestamps.__new__(Timestamps)
    result.constant = value
    result.length = length
    result.largest = value
    return result


cdef Timestamps _own_values(int64_t length, int64_t** values):
    """A Timestamps with room for `length` values, which the caller fills in through `values`."""
    cdef Timestamps result = Timestamps.__new__(Timestamps)
    result.owner = PyBytes_FromStringAndSize(NULL, length * 8)
    values[0] = <int64_t*>PyBytes_AS_STRING(result.owner)
    result.values = values[0]
    result.length = length
    return result


cdef int _check_count(int64_t found, int64_t length) except -1:
    if found != length:
        raise InvalidRecordError(
            f"timestamps has {found} entries for {length} values: pass one per record, one for all, or None"
        )
    return 0


cdef int64_t _largest(const int64_t* values, int64_t length) noexcept nogil:
    cdef int64_t i, largest = -1
    for i in range(length):
        largest = values[i] if values[i] > largest else largest
    return largest


cdef object _bad_timestamp(object value, int64_t index, str problem):
    where = "timestamps" if index < 0 else f"timestamps[{index}]"
    return InvalidRecordError(f"{where} is {value}{problem}: pass milliseconds since 1970, or -1 for none")


cdef Timestamps _timestamps_of_items(tuple items, int64_t length):
    cdef int64_t* values = NULL
    cdef Timestamps result
    cdef int64_t i
    _check_count(len(items), length)
    result = _own_values(length, &values)
    for i in range(length):
        values[i] = _milliseconds(items[i], i)
    result.largest = _largest(values, length)
    return result


cdef int64_t _milliseconds(object item, int64_t index) except? -2:
    cdef int overflow = 0
    cdef int64_t value
    if is_exact_int(item):
        value = PyLong_AsLongLongAndOverflow(item, &overflow)
        if overflow or value < -1:
            raise _bad_timestamp(item, index, "")
        return value
    if item is None:
        return -1
    if isinstance(item, datetime):
        return _milliseconds_of_datetime(item, index)
    numpy = sys.modules.get("numpy")
    if numpy is not None and isinstance(item, numpy.datetime64):
        converted = _numpy_milliseconds(numpy.array([item]), index)
        return (<const int64_t*>_numpy_address(converted))[0]
    if isinstance(item, bool) or not hasattr(item, "__index__"):
        raise _bad_timestamp(repr(item), index, f", a {_type_name(item)}")
    return _milliseconds(int(item.__index__()), index)


cdef int64_t _milliseconds_of_datetime(object moment, int64_t index) except? -2:
    if moment.utcoffset() is None:
        raise _bad_timestamp(
            repr(moment), index, " without a time zone, so it could be any moment (value.astimezone() sets one)"
        )
    elapsed = moment - EPOCH
    if elapsed.days < 0:
        raise _bad_timestamp(moment, index, ", before 1970")
    return <int64_t>elapsed.days * 86_400_000 + <int64_t>elapsed.seconds * 1000 + <int64_t>elapsed.microseconds // 1000


cdef Timestamps _timestamps_of_numpy(object array, int64_t length):
    cdef Timestamps result = Timestamps.__new__(Timestamps)
    cdef int64_t lowest = -1
    cdef int64_t i
    _check_numpy(array, "timestamps")
    _check_count(len(array), length)
    kind = array.dtype.kind
    if kind == "O":
        return _timestamps_of_items(tuple(array.tolist()), length)
    if kind == "M":
        result.owner = _numpy_milliseconds(array, 0)
    elif kind in "iu":
        result.owner = array.astype("int64", order="C")
        lowest = 0 if kind == "u" else -1  # uint64 beyond int64 have come out negative
    else:
        raise InvalidRecordError(
            f"timestamps is a NumPy array of {array.dtype}: pass integers (milliseconds since 1970) or datetime64"
        )
    result.values = <const int64_t*>_numpy_address(result.owner)
    result.length = length
    for i in range(length):
        if result.values[i] < lowest:
            raise _bad_timestamp(array[i], i, "")
    result.largest = _largest(result.values, length)
    return result


cdef object _numpy_milliseconds(object array, int64_t index):
    """datetime64 of any unit as a new int64 array of milliseconds, rounded down; NaT is -1. `index` is entry 0's."""
    cdef int64_t* values
    cdef int64_t i, limit
    numpy = sys.modules["numpy"]
    unit, multiple = numpy.datetime_data(array.dtype)
    result = array.astype(array.dtype.newbyteorder("="), order="C").view("int64")
    # NumPy wraps silently where a coarse unit leaves the range of milliseconds
    limit = INT64_MAX // (COARSE_UNITS_MS.get(unit, 1) * multiple)
    if unit == "generic":
        limit = -1  # only NaT can do without a unit
    values = <int64_t*>_numpy_address(result)
    for i in range(len(result)):
        if values[i] > limit or INT64_MIN < values[i] < 0:
            raise _bad_timestamp(array[i], index + i if index >= 0 else -1, ", before 1970 or too far ahead")
    result = array.astype("datetime64[ms]", order="C").view("int64")
    values = <int64_t*>_numpy_address(result)
    for i in range(len(result)):
        if values[i] == INT64_MIN:
            values[i] = -1
    return result


# NumPy's units that are coarser than a millisecond; years and months at their longest
COARSE_UNITS_MS = {
    "Y": 366 * 86_400_000, "M": 31 * 86_400_000, "W": 7 * 86_400_000, "D": 86_400_000,
    "h": 3_600_000, "m": 60_000, "s": 1000,
}


cdef Timestamps _timestamps_of_arrow(ArrowColumn source, int64_t length):
    cdef int64_t* values = NULL
    cdef int64_t times = 1, divisor = 1, lowest = 0, at = 0, bad
    cdef Timestamps result
    cdef ArrowChunk chunk
    _check_count(source.length, length)
    if source.format == b"l":
        lowest = -1
    elif source.format[:3] in ARROW_UNITS and source.format[3:4] == b":":
        times, divisor = ARROW_UNITS[source.format[:3]]
    elif source.format != b"n":
        raise InvalidRecordError(
            f"timestamps is Arrow data of format {source.format.decode('utf-8', 'replace')!r}: "
            "pass int64 (milliseconds since 1970) or timestamp"
        )
    result = _own_values(length, &values)
    cdef bint has_values = source.format != b"n"
    for chunk in source.chunks:
        if has_values and (chunk.column.n_buffers != 2 or chunk.column.buffers[1] == NULL):
            raise InvalidRecordError("timestamps: the Arrow array has no buffer of values; its producer is broken")
        with nogil:
            bad = _convert_chunk(chunk, has_values, values + at, times, divisor, lowest)
        if bad >= 0:
            raise _bad_timestamp(
                (<const int64_t*>chunk.column.buffers[1])[chunk.first + bad], at + bad, ", before 1970 or too far ahead"
            )
        at += chunk.length
    result.largest = _largest(values, length)
    return result


# what an int64 of each unit is multiplied with, and divided by
ARROW_UNITS = {b"tss": (1000, 1), b"tsm": (1, 1), b"tsu": (1, 1000), b"tsn": (1, 1_000_000)}


cdef int64_t _convert_chunk(
    ArrowChunk chunk, bint has_values, int64_t* values, int64_t times, int64_t divisor, int64_t lowest
) noexcept nogil:
    """Write the chunk's milliseconds to `values`; return the first entry out of range, -1 when there is none."""
    cdef const ArrowArray* array = chunk.column
    cdef const uint8_t* validity = NULL
    cdef const int64_t* given = NULL
    cdef int64_t limit = INT64_MAX // times
    cdef int64_t i, at
    if has_values:
        given = <const int64_t*>array.buffers[1]
        if array.null_count != 0:
            validity = <const uint8_t*>array.buffers[0]
    for i in range(chunk.length):
        at = chunk.first + i
        if given == NULL or (validity != NULL and not (validity[at >> 3] >> (at & 7)) & 1):
            values[i] = -1
        elif given[at] < lowest or given[at] > limit:
            return i
        else:
            values[i] = given[at] * times // divisor if given[at] > 0 else given[at]
    return -1


# ---- what was passed ------------------------------------------------------------------------------------------

cdef bint _is_sequence(object value):
    if not hasattr(value, "__len__") or not hasattr(value, "__getitem__"):
        return False
    # one after the other: of a tuple with a class that is none of C's, Cython takes an error for True
    return not isinstance(value, type) and not isinstance(value, Mapping)


cdef str _type_name(object value):
    kind = type(value)
    return kind.__qualname__ if kind.__module__ == "builtins" else f"{kind.__module__}.{kind.__qualname__}"
