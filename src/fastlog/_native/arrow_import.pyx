"""Import through the Arrow PyCapsule protocol: a column of any type, its structure checked, its chunks kept alive.

Here lives what holds for every Arrow type: moving arrays out of their capsules (the producer's ``release`` is then
called exactly once, by us), draining streams, looking through a table of one column, and the checks that the C data
interface permits. What the buffers mean is the business of ``columns``.
"""

cimport cython
from cpython.pycapsule cimport PyCapsule_GetPointer
from libc.stdint cimport INT64_MAX, int64_t
from libc.string cimport memcpy, memset, strerror

from fastlog._native.arrow_abi cimport ArrowArrayStream, ArrowSchema

from fastlog.errors import InvalidRecordError

cdef enum:
    MOST_NAMES = 20                 # of columns in a message


@cython.no_gc
cdef class _Stream:
    cdef ArrowArrayStream stream

    def __dealloc__(self):
        if self.stream.release != NULL:
            with nogil:  # a producer may wait for a thread of its own that needs the GIL
                self.stream.release(&self.stream)


cdef class ArrowChunk:
    def __dealloc__(self):
        if self.array.release != NULL:
            self.array.release(&self.array)


cdef class ArrowColumn:
    def __cinit__(self):
        self.chunks = []


cdef bint offers_arrow(object source):
    return hasattr(source, "__arrow_c_array__") or hasattr(source, "__arrow_c_stream__")


cdef ArrowColumn import_arrow_column(object source, str role):
    """Take over the array or the chunks that `source` offers; InvalidRecordError when they are not one column."""
    if hasattr(source, "__arrow_c_array__"):
        return _import_array(source, role)
    return _import_stream(source, role)


cdef ArrowColumn _import_array(object source, str role):
    cdef ArrowColumn column = ArrowColumn.__new__(ArrowColumn)
    cdef ArrowChunk chunk = ArrowChunk.__new__(ArrowChunk)
    cdef ArrowSchema* schema
    cdef ArrowArray* array
    schema_capsule, array_capsule = source.__arrow_c_array__()
    schema = <ArrowSchema*>PyCapsule_GetPointer(schema_capsule, "arrow_schema")
    array = <ArrowArray*>PyCapsule_GetPointer(array_capsule, "arrow_array")
    if schema.release == NULL or array.release == NULL:
        raise InvalidRecordError(f"{role}: the Arrow capsule was consumed before; export a new one")
    memcpy(&chunk.array, array, sizeof(ArrowArray))
    array.release = NULL
    column.format = _column_format(schema, role)
    _add_chunk(column, chunk, schema.format, role)
    return column


cdef ArrowColumn _import_stream(object source, str role):
    cdef ArrowColumn column = ArrowColumn.__new__(ArrowColumn)
    cdef _Stream holder = _Stream.__new__(_Stream)
    cdef ArrowChunk chunk
    cdef ArrowArrayStream* given
    cdef ArrowSchema schema
    cdef int code
    capsule = source.__arrow_c_stream__()
    given = <ArrowArrayStream*>PyCapsule_GetPointer(capsule, "arrow_array_stream")
    if given.release == NULL:
        raise InvalidRecordError(f"{role}: the Arrow stream was consumed before; export a new one")
    memcpy(&holder.stream, given, sizeof(ArrowArrayStream))
    given.release = NULL
    memset(&schema, 0, sizeof(ArrowSchema))
    with nogil:
        code = holder.stream.get_schema(&holder.stream, &schema)
    if code:
        raise _stream_failed(holder, code, role)
    try:
        column.format = _column_format(&schema, role)
        while True:
            chunk = ArrowChunk.__new__(ArrowChunk)
            with nogil:
                code = holder.stream.get_next(&holder.stream, &chunk.array)
            if code:
                chunk.array.release = NULL  # what a failed call left there is nobody's
                raise _stream_failed(holder, code, role)
            if chunk.array.release == NULL:
                return column
            _add_chunk(column, chunk, schema.format, role)
    finally:
        if schema.release != NULL:
            schema.release(&schema)


cdef object _stream_failed(_Stream holder, int code, str role):
    cdef const char* text = holder.stream.get_last_error(&holder.stream)
    if text == NULL:
        text = strerror(code)
    return InvalidRecordError(f"{role}: the Arrow stream failed: {text.decode('utf-8', 'replace')}")


cdef bytes _column_format(const ArrowSchema* schema, str role):
    """The type of the column; a struct (a table, a record batch) stands for its only column."""
    cdef int64_t i
    _check_schema(schema, role)
    if (<bytes>schema.format) == b"+s":
        if schema.n_children != 1:
            names = [_name(schema.children[i]) for i in range(min(schema.n_children, <int64_t>MOST_NAMES))]
            more = ", …" if schema.n_children > MOST_NAMES else ""
            raise InvalidRecordError(
                f"{role} is an Arrow table of {schema.n_children} columns ({', '.join(names)}{more}): pass one of its columns"
            )
        schema = schema.children[0]
        _check_schema(schema, role)
    if schema.dictionary != NULL:
        raise InvalidRecordError(
            f"{role} is dictionary-encoded Arrow data (index format {_format(schema)!r}): decode it first, "
            "e.g. array.dictionary_decode()"
        )
    return <bytes>schema.format


cdef int _check_schema(const ArrowSchema* schema, str role) except -1:
    cdef int64_t i
    if schema.format == NULL:
        raise InvalidRecordError(f"{role}: the Arrow schema names no format")
    if schema.n_children < 0 or (schema.n_children > 0 and schema.children == NULL):
        raise InvalidRecordError(f"{role}: the Arrow schema has {schema.n_children} children, and none is there")
    for i in range(min(schema.n_children, <int64_t>MOST_NAMES)):
        if schema.children[i] == NULL:
            raise InvalidRecordError(f"{role}: child {i} of the Arrow schema is not there; its producer is broken")
    return 0


cdef str _format(const ArrowSchema* schema):
    return (<bytes>schema.format).decode("utf-8", "replace")


cdef str _name(const ArrowSchema* schema):
    return "?" if schema.name == NULL else (<bytes>schema.name).decode("utf-8", "replace")


cdef int _add_chunk(ArrowColumn column, ArrowChunk chunk, const char* format, str role) except -1:
    cdef const ArrowArray* array = &chunk.array
    _check(array, role)
    chunk.first = array.offset
    chunk.length = array.length
    if (<bytes>format) == b"+s":
        array = _only_child(array, role)
        _check(array, role)
        if array.length < chunk.first + chunk.length:
            raise InvalidRecordError(f"{role}: the Arrow struct is longer than its column; its producer is broken")
        if array.offset > INT64_MAX - chunk.first:
            raise InvalidRecordError(f"{role}: the offset of the Arrow array overflows; its producer is broken")
        chunk.first += array.offset
    if array.dictionary != NULL:
        raise InvalidRecordError(f"{role}: the Arrow array has a dictionary that its schema does not have")
    chunk.column = array
    if chunk.length > INT64_MAX - column.length:
        raise InvalidRecordError(f"{role}: the lengths of the Arrow arrays overflow; their producer is broken")
    if chunk.length:
        column.chunks.append(chunk)
        column.length += chunk.length
    return 0


cdef int _check(const ArrowArray* array, str role) except -1:
    if (
        array.length < 0
        or array.offset < 0
        or array.length > INT64_MAX - array.offset - 1
        or array.null_count < -1
        or array.n_buffers < 0
        or (array.n_buffers > 0 and array.buffers == NULL)
    ):
        raise InvalidRecordError(
            f"{role}: the Arrow array makes no sense (length {array.length}, offset {array.offset}, "
            f"null count {array.null_count}, {array.n_buffers} buffers); its producer is broken"
        )
    return 0


cdef const ArrowArray* _only_child(const ArrowArray* array, str role) except NULL:
    if array.n_children != 1 or array.children == NULL or array.children[0] == NULL:
        raise InvalidRecordError(f"{role}: the Arrow struct has {array.n_children} children, its schema has 1")
    if array.null_count != 0 and array.n_buffers > 0 and array.buffers[0] != NULL:
        raise InvalidRecordError(f"{role} is an Arrow struct with null rows: pass its column instead")
    return array.children[0]
