# cython: annotation_typing=False, nonecheck=True
"""What a read returns. Columns are views of the segment's mapping; Python objects are made only when asked for."""

cimport cython
from cpython.buffer cimport PyBUF_FORMAT, PyBUF_ND, PyBUF_STRIDES, PyBUF_WRITABLE
from cpython.bytes cimport PyBytes_FromStringAndSize
from cpython.list cimport PyList_New, PyList_SET_ITEM
from cpython.ref cimport Py_INCREF
from libc.stdint cimport int32_t, int64_t, uint8_t

from fastlog._native.arrow cimport export_array, export_schema, export_stream
from fastlog._native.memory cimport BatchColumns, Block, ColumnarBatch, block_release, block_retain
from fastlog._native.varint cimport read_varint

from fastlog.errors import ConfigError
from fastlog.records import Headers

NO_HEADERS = Headers()

cdef char* UNSIGNED_BYTES = b"B"


cdef class Window:
    def __cinit__(self):
        self.block = NULL

    @staticmethod
    cdef Window over(Block* block, int64_t start, int64_t size):
        cdef Window window = Window.__new__(Window)
        block_retain(block)
        window.block = block
        window.start = start
        window.size = size
        return window

    def __dealloc__(self):
        block_release(self.block)

    def __getbuffer__(self, Py_buffer* view, int flags):
        if flags & PyBUF_WRITABLE:
            raise BufferError("these bytes are part of a log: they cannot be changed, copy them first")
        view.buf = self.block.data + self.start
        view.obj = self
        view.len = <Py_ssize_t>self.size
        view.itemsize = 1
        view.readonly = 1
        view.format = UNSIGNED_BYTES if flags & PyBUF_FORMAT else NULL
        view.ndim = 1
        view.shape = &view.len if flags & PyBUF_ND else NULL
        view.strides = &view.itemsize if flags & PyBUF_STRIDES == PyBUF_STRIDES else NULL
        view.suboffsets = NULL
        view.internal = NULL


@cython.freelist(128)
cdef class Record:
    """One record of a partition. Immutable; key and value are bytes, or None for null.

    Attributes:
        topic: name of the topic; for a partition opened by itself, the name of its folder.
        partition: number of the partition.
        offset: position in the partition.
        timestamp: milliseconds since the epoch, or None.
        timestamp_type: ``"create"`` (set by the producer) or ``"append"`` (set by the log).
        key, value: bytes or None.
        headers: ``Headers``.
    """

    def __init__(
        self, topic: str, partition: int, offset: int, timestamp: int | None, key: bytes | None, value: bytes | None,
        headers: object = NO_HEADERS, timestamp_type: str = "create",
    ) -> None:
        self.topic = topic
        self.partition = partition
        self.offset = offset
        self.milliseconds = -1 if timestamp is None else timestamp
        self.key = key
        self.value = value
        self.headers = headers if isinstance(headers, Headers) else Headers(headers)
        self.is_append_time = timestamp_type == "append"

    def __class_getitem__(cls, item):
        """``Record[K, V]`` for annotations."""
        import types
        return types.GenericAlias(cls, item)

    @property
    def timestamp(self):
        """Milliseconds since the epoch, or None."""
        return None if self.milliseconds == -1 else self.milliseconds

    @property
    def datetime(self):
        """The timestamp as an aware datetime in UTC, or None."""
        if self.milliseconds == -1:
            return None
        from datetime import UTC, datetime, timedelta
        return datetime(1970, 1, 1, tzinfo=UTC) + timedelta(milliseconds=self.milliseconds)

    @property
    def timestamp_type(self):
        """``"create"`` or ``"append"``."""
        return "append" if self.is_append_time else "create"

    def __reduce__(self):
        return Record, self.fields()

    def fields(self):
        """The constructor's arguments, in order."""
        return (
            self.topic, self.partition, self.offset, self.timestamp, self.key, self.value, self.headers, self.timestamp_type,
        )

    def __eq__(self, other):
        if not isinstance(other, Record):
            return NotImplemented
        return self.fields() == (<Record>other).fields()

    def __hash__(self):
        return hash((self.topic, self.partition, self.offset))

    def __repr__(self):
        return (
            f"Record(topic={self.topic!r}, partition={self.partition}, offset={self.offset}, timestamp={self.timestamp}, "
            f"key={self.key!r}, value={self.value!r}, headers={list(self.headers)!r})"
        )


cdef int64_t position_of(index, int64_t count) except -1:
    """An index of Python, counted from the end when negative, as a number in [0, count)."""
    cdef int64_t i = index
    if i < 0:
        i += count
    if not 0 <= i < count:
        raise IndexError(f"index {index} is out of range for {count} records")
    return i


cdef class BinaryColumn:
    """The keys or the values of a batch.

    ``column[i]`` is a read-only memoryview over the segment itself, or None for null; it stays valid for as long as it is
    held, also after the log was closed, rolled or deleted.
    """

    def __init__(self):
        raise TypeError("a BinaryColumn comes from RecordBatch.keys or RecordBatch.values")

    def __len__(self) -> int:
        return self.batch.columns.count

    def __getitem__(self, index):
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(self.batch.columns.count))]
        cdef int64_t i = position_of(index, self.batch.columns.count)
        if self.positions == NULL or self.sizes[i] < 0:
            return None
        return memoryview(Window.over(self.batch.columns.bytes, self.positions[i], self.sizes[i]))

    def __iter__(self):
        cdef int64_t i
        for i in range(self.batch.columns.count):
            yield self[i]

    @property
    def sizes(self):
        """Bytes per entry, -1 for null: NumPy int32, read-only."""
        import numpy
        if self.positions == NULL:
            nulls = numpy.full(self.batch.columns.count, -1, dtype=numpy.int32)
            nulls.flags.writeable = False
            return nulls
        return as_array(self.batch.columns.arrays, <const void*>self.sizes, self.batch.columns.count, "int32")

    @property
    def nbytes(self) -> int:
        """Bytes of all entries together."""
        cdef int64_t i, total = 0
        if self.positions != NULL:
            for i in range(self.batch.columns.count):
                if self.sizes[i] > 0:
                    total += self.sizes[i]
        return total

    def to_list(self) -> list:
        """Every entry as bytes or None: copies."""
        cdef int64_t i, count = self.batch.columns.count
        cdef const uint8_t* bytes_
        if self.positions == NULL:
            return [None] * count
        bytes_ = self.batch.columns.bytes.data
        cdef list result = PyList_New(count)
        cdef object item
        for i in range(count):
            if self.sizes[i] >= 0:
                item = PyBytes_FromStringAndSize(<const char*>bytes_ + self.positions[i], self.sizes[i])
            else:
                item = None
            Py_INCREF(item)
            PyList_SET_ITEM(result, i, item)
        return result

    def __repr__(self):
        return f"<BinaryColumn: {len(self)} entries, {self.nbytes} bytes>"


cdef object as_array(Block* block, const void* data, int64_t count, str dtype):
    import numpy
    if count == 0:
        return numpy.frombuffer(b"", dtype=dtype)
    cdef int64_t width = 8 if dtype == "int64" else 4
    return numpy.frombuffer(Window.over(block, <const uint8_t*>data - block.data, count * width), dtype=dtype)


cdef class HeadersColumn:
    """The headers of a batch's records, decoded one by one when asked for."""

    def __init__(self):
        raise TypeError("a HeadersColumn comes from RecordBatch.headers")

    def __len__(self) -> int:
        return self.batch.columns.count

    def __getitem__(self, index):
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(self.batch.columns.count))]
        cdef int64_t i = position_of(index, self.batch.columns.count)
        return self.batch.headers_at(i)

    def __iter__(self):
        cdef int64_t i
        for i in range(self.batch.columns.count):
            yield self.batch.headers_at(i)


cdef class RecordBatch(ColumnarBatch):
    """Records read together, as columns. From any thread; valid for as long as it is held (invariant I8).

    Attributes:
        topic, partition: where the records come from.
        base_offset: the offset that was asked for.
        next_offset: where to read next; also behind control records, which are never shown.
    """

    def __init__(self):
        raise TypeError("a RecordBatch comes from PartitionLog.read or PartitionLog.batches")

    def __len__(self) -> int:
        return self.columns.count

    @property
    def offsets(self):
        """Offsets: NumPy int64, read-only."""
        return as_array(self.columns.arrays, self.columns.offsets, self.columns.count, "int64")

    @property
    def timestamps(self):
        """Milliseconds since the epoch, -1 = none: NumPy int64, read-only."""
        return as_array(self.columns.arrays, self.columns.timestamps, self.columns.count, "int64")

    @property
    def timestamp_type(self) -> str:
        """``"create"`` or ``"append"``."""
        return "append" if self.is_append_time else "create"

    @property
    def keys(self) -> BinaryColumn:
        """The keys."""
        return column_of(self, self.columns.key_positions, self.columns.key_sizes)

    @property
    def values(self) -> BinaryColumn:
        """The values."""
        return column_of(self, self.columns.value_positions, self.columns.value_sizes)

    @property
    def headers(self) -> HeadersColumn:
        """The headers of each record."""
        cdef HeadersColumn column = HeadersColumn.__new__(HeadersColumn)
        column.batch = self
        return column

    @property
    def nbytes(self) -> int:
        """Bytes of keys and values."""
        return self.keys.nbytes + self.values.nbytes

    def __getitem__(self, index):
        if isinstance(index, slice):
            return [self.record(i) for i in range(*index.indices(self.columns.count))]
        cdef int64_t i = position_of(index, self.columns.count)
        return self.record(i)

    def __iter__(self):
        cdef int64_t i
        for i in range(self.columns.count):
            yield self.record(i)

    def cursor(self, key_deserializer=None, value_deserializer=None) -> RecordCursor:
        """An iterator over the records that knows where it is; see ``RecordCursor``. The deserializers are called with bytes."""
        for name, given in (("key_deserializer", key_deserializer), ("value_deserializer", value_deserializer)):
            if given is not None and not callable(given):
                raise ConfigError(f"{name} is a {type(given).__name__}: expected a callable that takes bytes, or None")
        cdef RecordCursor cursor = RecordCursor.__new__(RecordCursor)
        cursor.batch = self
        cursor.key_deserializer = key_deserializer
        cursor.value_deserializer = value_deserializer
        return cursor

    cdef Record record(self, int64_t i):
        cdef Record record = Record.__new__(Record)
        cdef BatchColumns* columns = &self.columns
        record.topic = self.topic
        record.partition = self.partition
        record.offset = columns.offsets[i]
        record.milliseconds = columns.timestamps[i]
        record.is_append_time = self.is_append_time
        record.key = None
        record.value = None
        if columns.key_sizes != NULL and columns.key_sizes[i] >= 0:
            record.key = PyBytes_FromStringAndSize(<const char*>columns.bytes.data + columns.key_positions[i], columns.key_sizes[i])
        if columns.value_sizes[i] >= 0:
            record.value = PyBytes_FromStringAndSize(
                <const char*>columns.bytes.data + columns.value_positions[i], columns.value_sizes[i]
            )
        record.headers = NO_HEADERS if columns.header_counts == NULL else self.headers_at(i)
        return record

    cdef object headers_at(self, int64_t i):
        """Decode the headers of record `i`; their bounds were checked when the batch was decoded."""
        cdef BatchColumns* columns = &self.columns
        cdef const uint8_t* at
        cdef const uint8_t* end
        cdef int32_t size = 0, j
        if columns.header_counts == NULL or columns.header_counts[i] == 0:
            return NO_HEADERS
        at = columns.bytes.data + columns.header_positions[i]
        end = columns.bytes.data + columns.bytes.size
        pairs = []
        for j in range(columns.header_counts[i]):
            at = read_varint(at, end, &size)
            key = (<const char*>at)[:size].decode("utf-8", "surrogateescape")
            at = read_varint(at + size, end, &size)
            value = None
            if size >= 0:
                value = PyBytes_FromStringAndSize(<const char*>at, size)
                at += size
            pairs.append((key, value))
        found = Headers.__new__(Headers)  # what was decoded is right: nothing to check
        found._pairs = tuple(pairs)
        return found

    def __arrow_c_schema__(self):
        """The Arrow schema, as a PyCapsule."""
        return export_schema()

    def __arrow_c_array__(self, requested_schema=None):
        """The batch as an Arrow struct array, as PyCapsules; values are not copied unless another type is requested."""
        return export_array(self, requested_schema)

    def __arrow_c_stream__(self, requested_schema=None):
        """The batch as an Arrow stream of one array, as a PyCapsule."""
        return export_stream([self], requested_schema)

    def __repr__(self):
        return f"<RecordBatch: {len(self)} records from offset {self.base_offset}, next_offset={self.next_offset}>"


cdef class RecordCursor:
    """Hands out the records of a batch one by one, and says at any time how far that is: positions cost nothing per record.

    Null keys and values stay None and reach no deserializer. When a deserializer raises, the record counts as not handed
    out: the next step meets it again, unless ``skip`` steps over it. One thread at a time iterates; ``stop`` may be called
    from any.

    Attributes:
        batch: the RecordBatch.
        next_index: of the next record in the batch; how many were handed out or skipped.
        stopped: whether ``stop`` was called.
    """

    def __init__(self):
        raise TypeError("a RecordCursor comes from RecordBatch.cursor")

    def __iter__(self):
        return self

    def __next__(self):
        cdef Record record
        cdef int64_t i = self.next_index
        if self.stopped or i >= self.batch.columns.count:
            raise StopIteration
        record = self.batch.record(i)
        if self.key_deserializer is not None and record.key is not None:
            record.key = self.key_deserializer(record.key)
        if self.value_deserializer is not None and record.value is not None:
            record.value = self.value_deserializer(record.value)
        self.next_index = i + 1
        return record

    def __length_hint__(self) -> int:
        return 0 if self.stopped else self.batch.columns.count - self.next_index

    @property
    def next_offset(self) -> int:
        """Offset of the record behind the last one that was handed out; the batch's ``next_offset`` behind its last record, and
        its ``base_offset`` before the first."""
        if self.next_index == self.batch.columns.count:
            return self.batch.next_offset
        if self.next_index == 0:
            return self.batch.base_offset
        return self.batch.columns.offsets[self.next_index]

    @property
    def current_offset(self) -> int | None:
        """Offset of the record that was handed out, or skipped, last; None before the first."""
        return None if self.next_index == 0 else self.batch.columns.offsets[self.next_index - 1]

    def skip(self) -> int:
        """Step over the next record without making it; its offset. Raises IndexError when there is none."""
        if self.next_index >= self.batch.columns.count:
            raise IndexError(f"all {self.batch.columns.count} records of the batch were handed out: there is none to skip")
        self.next_index += 1
        return self.batch.columns.offsets[self.next_index - 1]

    def stop(self) -> None:
        """End the iteration before the next record; ``next_offset`` stays what it is. From any thread, idempotent."""
        self.stopped = True

    def __repr__(self):
        return f"<RecordCursor at offset {self.next_offset}, {self.next_index} of {self.batch.columns.count} records handed out>"


cdef BinaryColumn column_of(RecordBatch batch, const int32_t* positions, const int32_t* sizes):
    cdef BinaryColumn column = BinaryColumn.__new__(BinaryColumn)
    column.batch = batch
    column.positions = positions
    column.sizes = sizes
    return column
