"""Export of decoded batches through the Arrow C data and C stream interfaces.

A batch becomes one struct array of offset, timestamp, key, value and headers, or of chosen ones. Offsets, timestamps and the bytes of keys
and values are shared with the batch (its blocks are retained); views, validity bitmaps and headers are built in a block
of their own. A variadic buffer spans exactly the long entries of its column in this batch, never the whole mapping:
consumers copy or touch buffers whole. One buffer always suffices, because positions are int32.

Consumers release arrays and schemas on any thread, without the GIL and after the interpreter: those callbacks touch C
memory and blocks only. A stream holds a Python iterator, which cannot be dropped like that: its release puts it into
the graveyard, emptied under the GIL by a pending call, or by the next export or pull.
"""

from cpython.object cimport PyObject
from cpython.pycapsule cimport PyCapsule_GetPointer, PyCapsule_New
from cpython.ref cimport Py_INCREF, Py_XDECREF
from libc.errno cimport EIO, ENOMEM
from libc.stdint cimport INT32_MAX, int32_t, int64_t, uint8_t, uint32_t, uint64_t
from libc.stdlib cimport calloc, free, malloc
from libc.string cimport memcpy, memset, strcmp

from fastlog._native.arrow_abi cimport ARROW_FLAG_NULLABLE, ArrowArray, ArrowArrayStream, ArrowSchema
from fastlog._native.memory cimport Block, BatchColumns, ColumnarBatch, block_allocate, block_release, block_retain
from fastlog._native.varint cimport read_varint

from fastlog.errors import CorruptRecordError, RecordTooLargeError

cdef extern from "Python.h":
    bint Py_IsInitialized() noexcept nogil
    int Py_AddPendingCall(int (*call)(void*) noexcept, void* argument) noexcept nogil
    object PyUnicode_DecodeUTF8(const char* text, Py_ssize_t size, const char* errors)

cdef extern from *:
    """
    #define fastlog_push(head, next_field, item) do { \\
        *(next_field) = __atomic_load_n(head, __ATOMIC_RELAXED); \\
    } while (!__atomic_compare_exchange_n(head, next_field, item, 1, __ATOMIC_RELEASE, __ATOMIC_RELAXED))
    #define fastlog_take_all(head) __atomic_exchange_n(head, NULL, __ATOMIC_ACQUIRE)
    """
    void atomic_push "fastlog_push"(Stream** head, Stream** next_field, Stream* item) noexcept nogil
    Stream* atomic_take_all "fastlog_take_all"(Stream** head) noexcept nogil


# How a column of keys or values is laid out; what a requested schema may choose.
cdef enum Layout:
    LAYOUT_VIEW             # vz
    LAYOUT_BINARY           # z
    LAYOUT_LARGE_BINARY     # Z


cdef enum Column:
    OFFSET_COLUMN
    TIMESTAMP_COLUMN
    KEY_COLUMN
    VALUE_COLUMN
    HEADERS_COLUMN
    PARTITION_COLUMN
    COLUMN_KINDS


cdef struct Layouts:
    Layout key
    Layout value
    int count                       # of columns, and which, in order
    Column columns[6]


cdef struct Stream:
    PyObject* iterator      # NULL once exhausted
    Layouts layouts
    char* error             # text of the last failure, malloc'd
    Stream* next            # in the graveyard


# ---- what the core calls --------------------------------------------------------------------------------------

cdef object export_schema():
    """A capsule "arrow_schema" with the schema of every batch."""
    drain_graveyard()
    return _schema_capsule(_requested_layouts(None, None))


cdef object export_schema_of(tuple names):
    """A capsule "arrow_schema" of these columns."""
    drain_graveyard()
    return _schema_capsule(_requested_layouts(None, names))


cdef tuple export_array(ColumnarBatch batch, object requested_schema):
    """Capsules "arrow_schema" and "arrow_array" of one batch.

    `requested_schema` may ask for binary or large_binary keys and values, which are then copied; every other wish is
    passed over, as the PyCapsule protocol permits.
    """
    cdef Layouts layouts = _requested_layouts(requested_schema, None)
    cdef ArrowArray* array
    drain_graveyard()
    # binary ends at 2 GiB: a larger column stays what it would have been without the request
    if layouts.key == LAYOUT_BINARY and _is_beyond_binary(batch.columns.key_sizes, batch.columns.count):
        layouts.key = LAYOUT_VIEW
    if layouts.value == LAYOUT_BINARY and _is_beyond_binary(batch.columns.value_sizes, batch.columns.count):
        layouts.value = LAYOUT_VIEW
    schema = _schema_capsule(layouts)
    array = <ArrowArray*>calloc(1, sizeof(ArrowArray))
    if array == NULL:
        raise MemoryError()
    try:
        capsule = PyCapsule_New(array, "arrow_array", _destroy_array_capsule)
    except BaseException:
        free(array)
        raise
    _build_batch(array, &batch.columns, batch.partition, layouts)
    return schema, capsule


cdef object export_stream(object batches, object requested_schema, tuple names=None):
    """A capsule "arrow_array_stream" over an iterable of ColumnarBatch, pulled as the consumer asks for more.

    `names` are the columns, "partition" among them; None: those of a single partition.
    """
    cdef Layouts layouts = _requested_layouts(requested_schema, names)
    cdef ArrowArrayStream* out
    cdef Stream* stream
    drain_graveyard()
    iterator = iter(batches)
    out = <ArrowArrayStream*>calloc(1, sizeof(ArrowArrayStream))
    stream = <Stream*>calloc(1, sizeof(Stream))
    if out == NULL or stream == NULL:
        free(out)
        free(stream)
        raise MemoryError()
    try:
        capsule = PyCapsule_New(out, "arrow_array_stream", _destroy_stream_capsule)
    except BaseException:
        free(out)
        free(stream)
        raise
    Py_INCREF(iterator)
    stream.iterator = <PyObject*>iterator
    stream.layouts = layouts
    out.get_schema = _stream_schema
    out.get_next = _stream_next
    out.get_last_error = _stream_error
    out.release = _release_stream
    out.private_data = stream
    return capsule


# ---- schema ---------------------------------------------------------------------------------------------------

COLUMN_NAMES = ("offset", "timestamp", "key", "value", "headers", "partition")


cdef Layouts _requested_layouts(object requested_schema, tuple names) except *:
    cdef Layouts layouts
    cdef const ArrowSchema* wanted
    cdef int64_t i
    layouts.key = layouts.value = LAYOUT_VIEW
    layouts.count = 0
    for name in COLUMN_NAMES[:PARTITION_COLUMN] if names is None else names:
        layouts.columns[layouts.count] = COLUMN_NAMES.index(name)
        layouts.count += 1
    if requested_schema is None:
        return layouts
    wanted = <const ArrowSchema*>PyCapsule_GetPointer(requested_schema, "arrow_schema")
    if wanted.release == NULL or wanted.format == NULL or strcmp(wanted.format, "+s") != 0:
        return layouts
    for i in range(wanted.n_children):
        if wanted.children[i].name == NULL or wanted.children[i].format == NULL:
            continue
        if strcmp(wanted.children[i].name, "key") == 0:
            layouts.key = _layout_of(wanted.children[i].format)
        elif strcmp(wanted.children[i].name, "value") == 0:
            layouts.value = _layout_of(wanted.children[i].format)
    return layouts


cdef Layout _layout_of(const char* format) noexcept nogil:
    if strcmp(format, "z") == 0:
        return LAYOUT_BINARY
    if strcmp(format, "Z") == 0:
        return LAYOUT_LARGE_BINARY
    return LAYOUT_VIEW


cdef const char* _format_of(Layout layout) noexcept nogil:
    if layout == LAYOUT_BINARY:
        return "z"
    return "Z" if layout == LAYOUT_LARGE_BINARY else "vz"


cdef object _schema_capsule(Layouts layouts):
    cdef ArrowSchema* schema = <ArrowSchema*>calloc(1, sizeof(ArrowSchema))
    if schema == NULL:
        raise MemoryError()
    try:
        capsule = PyCapsule_New(schema, "arrow_schema", _destroy_schema_capsule)
    except BaseException:
        free(schema)
        raise
    if _build_schema(schema, &layouts):
        raise MemoryError()
    return capsule


cdef void _destroy_schema_capsule(object capsule) noexcept:
    cdef ArrowSchema* schema = <ArrowSchema*>PyCapsule_GetPointer(capsule, "arrow_schema")
    if schema.release != NULL:
        schema.release(schema)
    free(schema)


cdef int _build_schema(ArrowSchema* schema, const Layouts* layouts) noexcept nogil:
    """0, or ENOMEM with nothing left behind."""
    cdef int i
    if _describe(schema, "+s", "", 0, layouts.count):
        return ENOMEM
    for i in range(layouts.count):
        if _describe_column(schema.children[i], layouts, layouts.columns[i]):
            schema.release(schema)
            return ENOMEM
    return 0


cdef int _describe_column(ArrowSchema* schema, const Layouts* layouts, Column column) noexcept nogil:
    if column == OFFSET_COLUMN:
        return _describe(schema, "l", "offset", 0, 0)
    if column == TIMESTAMP_COLUMN:
        return _describe(schema, "tsm:UTC", "timestamp", ARROW_FLAG_NULLABLE, 0)
    if column == KEY_COLUMN:
        return _describe(schema, _format_of(layouts.key), "key", ARROW_FLAG_NULLABLE, 0)
    if column == VALUE_COLUMN:
        return _describe(schema, _format_of(layouts.value), "value", ARROW_FLAG_NULLABLE, 0)
    if column == PARTITION_COLUMN:
        return _describe(schema, "i", "partition", 0, 0)
    return _describe_headers(schema)


cdef int _describe_headers(ArrowSchema* headers) noexcept nogil:
    cdef ArrowSchema* item
    if _describe(headers, "+l", "headers", ARROW_FLAG_NULLABLE, 1):
        return ENOMEM
    item = headers.children[0]
    if _describe(item, "+s", "item", ARROW_FLAG_NULLABLE, 2):
        return ENOMEM
    _describe(item.children[0], "u", "key", 0, 0)
    return _describe(item.children[1], "z", "value", ARROW_FLAG_NULLABLE, 0)


cdef int _describe(
    ArrowSchema* schema, const char* format, const char* name, int64_t flags, int64_t children
) noexcept nogil:
    """Fill in one node; its children live in one block behind its pointers to them, and may be moved out."""
    cdef ArrowSchema* storage
    cdef int64_t i
    memset(schema, 0, sizeof(ArrowSchema))
    if children:
        schema.private_data = calloc(<size_t>children, sizeof(ArrowSchema*) + sizeof(ArrowSchema))
        if schema.private_data == NULL:
            return ENOMEM
        schema.children = <ArrowSchema**>schema.private_data
        storage = <ArrowSchema*>(schema.children + children)
        for i in range(children):
            schema.children[i] = &storage[i]
    schema.format = format
    schema.name = name
    schema.flags = flags
    schema.n_children = children
    schema.release = _release_schema
    return 0


cdef void _release_schema(ArrowSchema* schema) noexcept nogil:
    cdef int64_t i
    for i in range(schema.n_children):
        if schema.children[i].release != NULL:
            schema.children[i].release(schema.children[i])
    free(schema.private_data)
    schema.release = NULL


# ---- arrays: nodes --------------------------------------------------------------------------------------------

cdef struct Node:
    # private data of one array; pointers to children and their structs follow
    Block* built
    Block* shared
    const void* buffers[4]


cdef void _destroy_array_capsule(object capsule) noexcept:
    cdef ArrowArray* array = <ArrowArray*>PyCapsule_GetPointer(capsule, "arrow_array")
    if array.release != NULL:
        array.release(array)
    free(array)


cdef Node* _make_node(
    ArrowArray* array, int64_t length, int64_t nulls, int64_t buffers, int64_t children, Block* built, Block* shared
) except NULL:
    """Fill in one array that keeps two blocks alive; the caller sets the buffers of the node and the children."""
    cdef Node* node = <Node*>calloc(1, sizeof(Node) + <size_t>children * (sizeof(ArrowArray*) + sizeof(ArrowArray)))
    cdef ArrowArray* storage
    cdef int64_t i
    if node == NULL:
        raise MemoryError()
    memset(array, 0, sizeof(ArrowArray))
    array.children = <ArrowArray**>(node + 1)
    storage = <ArrowArray*>(array.children + children)
    for i in range(children):
        array.children[i] = &storage[i]
    if children == 0:
        array.children = NULL
    node.built = built
    node.shared = shared
    if built != NULL:
        block_retain(built)
    if shared != NULL:
        block_retain(shared)
    array.length = length
    array.null_count = nulls
    array.n_buffers = buffers
    array.n_children = children
    array.buffers = node.buffers
    array.release = _release_array
    array.private_data = node
    return node


cdef void _release_array(ArrowArray* array) noexcept nogil:
    cdef Node* node = <Node*>array.private_data
    cdef int64_t i
    for i in range(array.n_children):
        if array.children[i].release != NULL:
            array.children[i].release(array.children[i])
    block_release(node.built)
    block_release(node.shared)
    free(node)
    array.release = NULL


cdef struct Shelf:
    # hands out pieces of the built block: first only adds up their sizes, then gives their addresses
    uint8_t* data
    size_t used


cdef uint8_t* _piece(Shelf* shelf, size_t size) noexcept nogil:
    cdef size_t at = shelf.used
    shelf.used += (size + 63) & ~<size_t>63
    return shelf.data + at if shelf.data != NULL else NULL


# ---- arrays: one batch ----------------------------------------------------------------------------------------

cdef struct Bytes:
    # one column of keys or values, from measuring to building
    const int32_t* positions
    const int32_t* sizes
    Layout layout
    bint is_wanted
    int64_t nulls
    int64_t total               # bytes of all entries
    int64_t long_first          # where the entries that do not fit into a view begin and end in the batch's bytes
    int64_t long_stop
    uint8_t* validity
    uint8_t* entries            # views, or offsets
    uint8_t* copied             # the bytes behind offsets
    int64_t* variadic_size


cdef struct HeaderLists:
    bint is_wanted
    int64_t count               # of all records
    int64_t nulls
    int64_t key_bytes           # room for all keys, including what repairing broken UTF-8 may add
    int64_t value_bytes
    int32_t* list_offsets
    int32_t* key_offsets
    int32_t* value_offsets
    uint8_t* value_validity
    uint8_t* keys
    uint8_t* values


cdef int _build_batch(ArrowArray* array, const BatchColumns* columns, int partition, Layouts layouts) except -1:
    """Fill in `array`; when it fails, `array` is released."""
    cdef Bytes keys, values
    cdef HeaderLists headers
    cdef Block* built
    cdef Shelf shelf
    cdef int64_t unknown_times = 0
    cdef uint8_t* times_validity = NULL
    cdef int32_t* partitions = NULL
    cdef bint has_partitions = False
    cdef int64_t i
    memset(&keys, 0, sizeof(Bytes))
    memset(&values, 0, sizeof(Bytes))
    memset(&headers, 0, sizeof(HeaderLists))
    keys.positions, keys.sizes, keys.layout = columns.key_positions, columns.key_sizes, layouts.key
    values.positions, values.sizes, values.layout = columns.value_positions, columns.value_sizes, layouts.value
    for i in range(layouts.count):
        keys.is_wanted |= layouts.columns[i] == KEY_COLUMN
        values.is_wanted |= layouts.columns[i] == VALUE_COLUMN
        headers.is_wanted |= layouts.columns[i] == HEADERS_COLUMN
        has_partitions |= layouts.columns[i] == PARTITION_COLUMN
    with nogil:
        _measure_bytes(&keys, columns.count)
        _measure_bytes(&values, columns.count)
        for i in range(columns.count):
            unknown_times += columns.timestamps[i] == -1
    if (keys.layout == LAYOUT_BINARY and keys.total > INT32_MAX) or (
        values.layout == LAYOUT_BINARY and values.total > INT32_MAX
    ):
        raise RecordTooLargeError("a batch of 2 GiB does not fit into Arrow's binary type: request large_binary")
    if headers.is_wanted:
        _measure_headers(&headers, columns)
    shelf.data = NULL
    shelf.used = 0
    partitions = _lay_out(&shelf, columns.count, &keys, &values, &headers, has_partitions, &times_validity, unknown_times)
    built = block_allocate(shelf.used)
    if built == NULL:
        raise MemoryError()
    try:
        shelf.data = built.data
        shelf.used = 0
        partitions = _lay_out(&shelf, columns.count, &keys, &values, &headers, has_partitions, &times_validity, unknown_times)
        with nogil:
            _fill_bytes(&keys, columns)
            _fill_bytes(&values, columns)
            if times_validity != NULL:
                memset(times_validity, 0, <size_t>(columns.count + 7) >> 3)
                for i in range(columns.count):
                    times_validity[i >> 3] |= <uint8_t>((columns.timestamps[i] != -1) << (i & 7))
            if has_partitions:
                for i in range(columns.count):
                    partitions[i] = partition
        if headers.is_wanted:
            _fill_headers(&headers, columns)
        _assemble(array, columns, built, times_validity, unknown_times, &keys, &values, &headers, partitions, &layouts)
    except BaseException:
        if array.release != NULL:
            array.release(array)
        raise
    finally:
        block_release(built)
    return 0


cdef int32_t* _lay_out(
    Shelf* shelf, int64_t count, Bytes* keys, Bytes* values, HeaderLists* headers, bint has_partitions,
    uint8_t** times_validity, int64_t unknown_times
) noexcept nogil:
    """Give every piece its place; the one for numbers of partitions is returned."""
    cdef int32_t* partitions = <int32_t*>_piece(shelf, <size_t>count * 4 if has_partitions else 0)
    if unknown_times:
        times_validity[0] = _piece(shelf, <size_t>(count + 7) >> 3)
    _lay_out_bytes(shelf, count, keys)
    _lay_out_bytes(shelf, count, values)
    if headers.is_wanted:
        headers.list_offsets = <int32_t*>_piece(shelf, <size_t>(count + 1) * 4)
        headers.key_offsets = <int32_t*>_piece(shelf, <size_t>(headers.count + 1) * 4)
        headers.value_offsets = <int32_t*>_piece(shelf, <size_t>(headers.count + 1) * 4)
        headers.value_validity = _piece(shelf, <size_t>(headers.count + 7) >> 3)
        headers.keys = _piece(shelf, <size_t>headers.key_bytes)
        headers.values = _piece(shelf, <size_t>headers.value_bytes)
    return partitions


cdef void _lay_out_bytes(Shelf* shelf, int64_t count, Bytes* column) noexcept nogil:
    if not column.is_wanted:
        return
    if column.nulls:
        column.validity = _piece(shelf, <size_t>(count + 7) >> 3)
    if column.layout == LAYOUT_VIEW:
        column.entries = _piece(shelf, <size_t>count * 16)
        column.variadic_size = <int64_t*>_piece(shelf, 8)
        return
    column.entries = _piece(shelf, <size_t>(count + 1) * (8 if column.layout == LAYOUT_LARGE_BINARY else 4))
    column.copied = _piece(shelf, <size_t>column.total)


cdef int _assemble(
    ArrowArray* array, const BatchColumns* columns, Block* built, uint8_t* times_validity, int64_t unknown_times,
    Bytes* keys, Bytes* values, HeaderLists* headers, const int32_t* partitions, const Layouts* layouts
) except -1:
    cdef int64_t count = columns.count
    cdef Node* node
    cdef ArrowArray* child
    cdef Column column
    cdef int i
    _make_node(array, count, 0, 1, layouts.count, NULL, NULL)
    for i in range(layouts.count):
        child = array.children[i]
        column = layouts.columns[i]
        # a length of zero still wants buffers that are there
        if column == OFFSET_COLUMN:
            node = _make_node(child, count, 0, 2, 0, built, columns.arrays)
            node.buffers[1] = columns.offsets if count else <const void*>built.data
        elif column == TIMESTAMP_COLUMN:
            node = _make_node(child, count, unknown_times, 2, 0, built, columns.arrays)
            node.buffers[0] = times_validity
            node.buffers[1] = columns.timestamps if count else <const void*>built.data
        elif column == KEY_COLUMN:
            _assemble_bytes(child, columns, built, keys)
        elif column == VALUE_COLUMN:
            _assemble_bytes(child, columns, built, values)
        elif column == PARTITION_COLUMN:
            node = _make_node(child, count, 0, 2, 0, built, NULL)
            node.buffers[1] = partitions
        else:
            _assemble_headers(child, count, built, headers)
    return 0


cdef int _assemble_headers(ArrowArray* lists, int64_t count, Block* built, HeaderLists* headers) except -1:
    cdef ArrowArray* pairs
    cdef Node* node = _make_node(lists, count, 0, 2, 1, built, NULL)
    node.buffers[1] = headers.list_offsets
    pairs = lists.children[0]
    _make_node(pairs, headers.count, 0, 1, 2, NULL, NULL)
    node = _make_node(pairs.children[0], headers.count, 0, 3, 0, built, NULL)
    node.buffers[1] = headers.key_offsets
    node.buffers[2] = headers.keys
    node = _make_node(pairs.children[1], headers.count, headers.nulls, 3, 0, built, NULL)
    node.buffers[0] = headers.value_validity if headers.nulls else NULL
    node.buffers[1] = headers.value_offsets
    node.buffers[2] = headers.values
    return 0


cdef int _assemble_bytes(ArrowArray* array, const BatchColumns* columns, Block* built, Bytes* column) except -1:
    cdef bint is_view = column.layout == LAYOUT_VIEW
    cdef bint has_long = is_view and column.long_stop > column.long_first
    cdef Node* node = _make_node(
        array, columns.count, column.nulls, 4 if has_long else 3, 0, built, columns.bytes if has_long else NULL
    )
    node.buffers[0] = column.validity
    node.buffers[1] = column.entries
    if not is_view:
        node.buffers[2] = column.copied
        return 0
    column.variadic_size[0] = column.long_stop - column.long_first
    if has_long:
        node.buffers[2] = columns.bytes.data + column.long_first
        node.buffers[3] = column.variadic_size
    else:
        node.buffers[2] = column.variadic_size
    return 0


# ---- arrays: keys and values ----------------------------------------------------------------------------------

cdef bint _is_beyond_binary(const int32_t* sizes, int64_t count) noexcept nogil:
    cdef int64_t i, total = 0
    if sizes != NULL:
        for i in range(count):
            total += sizes[i] if sizes[i] > 0 else 0
    return total > INT32_MAX


cdef void _measure_bytes(Bytes* column, int64_t count) noexcept nogil:
    cdef int64_t i, size, position
    cdef int64_t first = INT32_MAX, stop = 0, nulls = 0, total = 0
    if not column.is_wanted:
        return
    if column.sizes == NULL:
        column.nulls = count
        return
    for i in range(count):
        size = column.sizes[i]
        if size < 0:
            nulls += 1
            continue
        total += size
        if size > 12:
            position = column.positions[i]
            first = position if position < first else first
            stop = position + size if position + size > stop else stop
    column.nulls = nulls
    column.total = total
    if stop:
        column.long_first = first
        column.long_stop = stop


cdef void _fill_bytes(Bytes* column, const BatchColumns* columns) noexcept nogil:
    cdef int64_t i
    if not column.is_wanted:
        return
    if column.nulls:
        memset(column.validity, 0, <size_t>(columns.count + 7) >> 3)
        if column.sizes != NULL:
            for i in range(columns.count):
                column.validity[i >> 3] |= <uint8_t>((column.sizes[i] >= 0) << (i & 7))
    if column.layout != LAYOUT_VIEW:
        _fill_copied(column, columns)
    elif column.sizes == NULL:
        memset(column.entries, 0, <size_t>columns.count * 16)
    else:
        _fill_views(column, columns)


cdef void _fill_views(Bytes* column, const BatchColumns* columns) noexcept nogil:
    cdef const uint8_t* bytes_start = columns.bytes.data if columns.bytes != NULL else NULL
    cdef const uint8_t* source
    cdef uint64_t* view = <uint64_t*>column.entries
    cdef uint32_t prefix
    cdef int32_t size
    cdef int64_t i
    for i in range(columns.count):
        size = column.sizes[i]
        source = bytes_start + column.positions[i]
        if size > 12:  # size, prefix; buffer 0, position in it
            memcpy(&prefix, source, 4)
            view[0] = <uint64_t>size | <uint64_t>prefix << 32
            view[1] = <uint64_t>(column.positions[i] - column.long_first) << 32
        else:
            view[0] = <uint64_t>size if size > 0 else 0
            view[1] = 0
            if size > 0:
                _copy_short(<uint8_t*>view + 4, source, size)
        view += 2


cdef inline void _copy_short(uint8_t* target, const uint8_t* source, int32_t size) noexcept nogil:
    """1 to 12 bytes, by copies of fixed size that may overlap: never outside of source[:size]."""
    if size >= 8:
        memcpy(target, source, 8)
        memcpy(target + size - 4, source + size - 4, 4)
    elif size >= 4:
        memcpy(target, source, 4)
        memcpy(target + size - 4, source + size - 4, 4)
    else:
        target[0] = source[0]
        target[size >> 1] = source[size >> 1]
        target[size - 1] = source[size - 1]


cdef void _fill_copied(Bytes* column, const BatchColumns* columns) noexcept nogil:
    cdef int32_t* narrow = <int32_t*>column.entries
    cdef int64_t* wide = <int64_t*>column.entries
    cdef bint is_narrow = column.layout == LAYOUT_BINARY
    cdef int64_t i, at = 0
    for i in range(columns.count):
        if is_narrow:
            narrow[i] = <int32_t>at
        else:
            wide[i] = at
        if column.sizes != NULL and column.sizes[i] > 0:
            memcpy(column.copied + at, columns.bytes.data + column.positions[i], <size_t>column.sizes[i])
            at += column.sizes[i]
    if is_narrow:
        narrow[columns.count] = <int32_t>at
    else:
        wide[columns.count] = at


# ---- arrays: headers ------------------------------------------------------------------------------------------

cdef struct HeaderCursor:
    const uint8_t* at
    const uint8_t* end
    const uint8_t* key
    int32_t key_size
    const uint8_t* value
    int32_t value_size          # -1 = null


cdef bint _next_header(HeaderCursor* cursor) noexcept nogil:
    """Step over one header; False when it leaves the batch (the decoder has checked that none does)."""
    cursor.at = read_varint(cursor.at, cursor.end, &cursor.key_size)
    if cursor.at == NULL or cursor.key_size < 0 or cursor.key_size > cursor.end - cursor.at:
        return False
    cursor.key = cursor.at
    cursor.at = read_varint(cursor.at + cursor.key_size, cursor.end, &cursor.value_size)
    if cursor.at == NULL or cursor.value_size < -1 or cursor.value_size > cursor.end - cursor.at:
        return False
    cursor.value = cursor.at
    if cursor.value_size > 0:
        cursor.at += cursor.value_size
    return True


cdef bint _is_ascii(const uint8_t* text, int64_t size) noexcept nogil:
    cdef uint8_t bits = 0
    cdef int64_t i
    for i in range(size):
        bits |= text[i]
    return bits < 0x80


cdef int _measure_headers(HeaderLists* headers, const BatchColumns* columns) except -1:
    cdef HeaderCursor cursor
    cdef int64_t i
    cdef int32_t j
    cdef bint good = True
    if columns.header_positions == NULL or columns.count == 0:
        return 0
    cursor.end = columns.bytes.data + columns.bytes.size
    with nogil:
        for i in range(columns.count):
            cursor.at = columns.bytes.data + columns.header_positions[i]
            for j in range(columns.header_counts[i]):
                good = _next_header(&cursor)
                if not good:
                    break
                # a byte that is no UTF-8 grows to the three of U+FFFD
                headers.key_bytes += cursor.key_size if _is_ascii(cursor.key, cursor.key_size) else 3 * cursor.key_size
                headers.value_bytes += cursor.value_size if cursor.value_size > 0 else 0
                headers.nulls += cursor.value_size < 0
                headers.count += 1
            if not good:
                break
    if not good:
        raise CorruptRecordError(f"the headers of the record at offset {columns.offsets[i]} run beyond their batch")
    if headers.count > INT32_MAX - 1 or headers.key_bytes > INT32_MAX or headers.value_bytes > INT32_MAX:
        raise RecordTooLargeError("the headers of a batch exceed the 2 GiB of an Arrow list: read smaller batches")
    return 0


cdef int _fill_headers(HeaderLists* headers, const BatchColumns* columns) except -1:
    cdef HeaderCursor cursor
    cdef int64_t i, count = 0
    cdef int32_t j
    cdef int32_t key_at = 0, value_at = 0
    memset(headers.value_validity, 0, <size_t>(headers.count + 7) >> 3)
    headers.key_offsets[0] = headers.value_offsets[0] = 0
    headers.list_offsets[0] = 0
    if columns.header_positions == NULL or columns.count == 0:
        memset(headers.list_offsets, 0, <size_t>(columns.count + 1) * 4)
        return 0
    cursor.end = columns.bytes.data + columns.bytes.size
    for i in range(columns.count):
        cursor.at = columns.bytes.data + columns.header_positions[i]
        for j in range(columns.header_counts[i]):
            _next_header(&cursor)
            key_at += _copy_key(headers.keys + key_at, cursor.key, cursor.key_size)
            if cursor.value_size >= 0:
                memcpy(headers.values + value_at, cursor.value, <size_t>cursor.value_size)
                value_at += cursor.value_size
                headers.value_validity[count >> 3] |= <uint8_t>(1 << (count & 7))
            count += 1
            headers.key_offsets[count] = key_at
            headers.value_offsets[count] = value_at
        headers.list_offsets[i + 1] = <int32_t>count
    return 0


cdef int32_t _copy_key(uint8_t* target, const uint8_t* key, int32_t size) except -1:
    """Copy a header's key, with U+FFFD for what is no UTF-8: Kafka stores any bytes, Arrow consumers rely on UTF-8."""
    cdef bytes repaired
    if _is_ascii(key, size):
        memcpy(target, key, <size_t>size)
        return size
    repaired = (<str>PyUnicode_DecodeUTF8(<const char*>key, size, "replace")).encode("utf-8")
    memcpy(target, <const uint8_t*><const char*>repaired, <size_t>len(repaired))
    return <int32_t>len(repaired)


# ---- stream ---------------------------------------------------------------------------------------------------

cdef Stream* _graveyard = NULL


cdef void drain_graveyard() noexcept:
    """Drop the iterators of released streams. Needs the GIL; may run their clean-up code."""
    cdef Stream* stream = atomic_take_all(&_graveyard)
    cdef Stream* next_stream
    while stream != NULL:
        next_stream = stream.next
        Py_XDECREF(stream.iterator)
        free(stream)
        stream = next_stream


cdef int _drain_pending(void* argument) noexcept:
    drain_graveyard()
    return 0


cdef void _destroy_stream_capsule(object capsule) noexcept:
    cdef ArrowArrayStream* stream = <ArrowArrayStream*>PyCapsule_GetPointer(capsule, "arrow_array_stream")
    if stream.release != NULL:
        stream.release(stream)
        drain_graveyard()
    free(stream)


cdef void _release_stream(ArrowArrayStream* out) noexcept nogil:
    cdef Stream* stream = <Stream*>out.private_data
    free(stream.error)
    stream.error = NULL
    out.release = NULL
    if stream.iterator == NULL or not Py_IsInitialized():
        free(stream)
        return
    atomic_push(&_graveyard, &stream.next, stream)
    Py_AddPendingCall(_drain_pending, NULL)  # best effort: a full queue leaves it to the next export


cdef int _stream_schema(ArrowArrayStream* out, ArrowSchema* schema) noexcept nogil:
    return _build_schema(schema, &(<Stream*>out.private_data).layouts)


cdef const char* _stream_error(ArrowArrayStream* out) noexcept nogil:
    return (<Stream*>out.private_data).error


cdef int _stream_next(ArrowArrayStream* out, ArrowArray* array) noexcept nogil:
    memset(array, 0, sizeof(ArrowArray))
    if (<Stream*>out.private_data).iterator == NULL:
        return 0
    if not Py_IsInitialized():
        return EIO
    return _pull(<Stream*>out.private_data, array)


cdef int _pull(Stream* stream, ArrowArray* array) noexcept with gil:
    """0, or EIO: nothing that goes wrong may look like the end of the stream."""
    drain_graveyard()
    try:
        _pull_batch(stream, array)
        return 0
    except BaseException as error:
        try:
            _keep_error(stream, error)
        except BaseException:
            pass
        return EIO


cdef int _pull_batch(Stream* stream, ArrowArray* array) except -1:
    cdef ColumnarBatch batch
    try:
        item = next(<object>stream.iterator)
    except StopIteration:
        _drop_iterator(stream)
        return 0
    if not isinstance(item, ColumnarBatch):
        raise TypeError(f"expected batches in an Arrow stream, found {type(item).__qualname__}")
    batch = item
    return _build_batch(array, &batch.columns, batch.partition, stream.layouts)


cdef void _drop_iterator(Stream* stream) noexcept:
    cdef PyObject* iterator = stream.iterator
    stream.iterator = NULL
    Py_XDECREF(iterator)


cdef int _keep_error(Stream* stream, object error) except -1:
    """Consumers get a text, so it has to carry the type as well."""
    free(stream.error)
    stream.error = NULL
    kind = type(error)
    name = kind.__qualname__ if kind.__module__ == "builtins" else f"{kind.__module__}.{kind.__qualname__}"
    try:
        message = f"{name}: {error}"
    except BaseException:  # an exception that cannot even say what it is
        message = name
    cdef bytes text = message.encode("utf-8", "backslashreplace")
    stream.error = <char*>malloc(<size_t>len(text) + 1)
    if stream.error != NULL:
        memcpy(stream.error, <const char*>text, <size_t>len(text) + 1)
    return 0
