# cython: annotation_typing=False
"""What ``append_batch`` takes: record batches that somebody else encoded, checked before any of them is written.

The checks are a Kafka leader's. The bytes are copied first, so that nobody can change them between check and write.
Malformed bytes are a ``CorruptRecordError``; a well-formed batch that may not be appended is an ``InvalidRecordError``.

Base offsets and leader epochs are not looked at, they are stamped anew. A maximum timestamp that is not the largest of
the records is corrected, as Kafka does: it would spoil the time index.
"""

from cpython.buffer cimport PyBUF_SIMPLE, PyBuffer_Release, PyObject_GetBuffer
from libc.stdint cimport int32_t, int64_t, uint8_t
from libc.stdlib cimport free, malloc, realloc
from libc.string cimport memcpy

from fastlog._native.checksum cimport crc32c_extend
from fastlog._native.decoder cimport (
    BAD_CRC, BatchHeader, FINE, Problem, check_records, crc_matches, describe, parse_header,
)
from fastlog._native.encoder cimport BatchShape
from fastlog._native.layout cimport (
    BASE_OFFSET_AT, BATCH_HEADER_SIZE, CODEC_MASK, CONTROL_BIT, CRC_AT, CRC_COVERS_FROM, DELETE_HORIZON_BIT,
    LEADER_EPOCH_AT, MAX_TIMESTAMP_AT, TIMESTAMP_TYPE_BIT, TRANSACTIONAL_BIT, store_int32, store_int64, store_uint32,
)
from fastlog._native.transactions cimport Marker, parse_marker
from fastlog._native.varint cimport read_varint, read_varlong

from fastlog._native import oscalls
from fastlog.errors import CorruptRecordError, InvalidRecordError, NotSupportedError, RecordTooLargeError

cdef enum:
    MOST_OFFSETS = 0x7FFFFFFF       # in one append: it lies in one segment, whose indexes hold 32-bit offsets
    NO_KEYLESS = -1

cdef int64_t MOST_TIMESTAMP = 0x7FFFFFFFFFFFFFFF


cdef str refused(const BatchHeader* header, bint internal):
    """Why a whole, well-formed header may not be appended; None when it may."""
    cdef int64_t offsets = header.last_offset - header.base_offset + 1
    control = header.attributes & CONTROL_BIT
    if header.count == 0 or header.count != offsets:
        return f"it counts {header.count} records for {offsets} offsets: expected one record for each, and at least one"
    if control and not internal:
        return "it is a control batch, which only the log itself writes"
    if header.attributes & TIMESTAMP_TYPE_BIT:
        return "its timestamps are log append times, which only the log itself sets: expected create times"
    if header.attributes & DELETE_HORIZON_BIT:
        return "it has a delete horizon, which only compaction sets"
    if header.producer_id < -1:
        return f"its producer id is {header.producer_id}: expected -1 for none, or 0 and above"
    if header.producer_id < 0:
        if header.attributes & TRANSACTIONAL_BIT:
            return "it is transactional, but has no producer id"
        return None
    if header.producer_epoch < 0:
        return f"its producer id is {header.producer_id}, but its epoch {header.producer_epoch}: expected 0 or above"
    if control:
        return None if header.base_sequence == -1 else f"it is a control batch with sequence {header.base_sequence}: expected -1"
    if header.base_sequence < 0:
        return f"its producer id is {header.producer_id}, but its base sequence {header.base_sequence}: expected 0 or above"
    return None


cdef int64_t walk_records(const uint8_t* records, const uint8_t* end, const BatchHeader* header, int32_t* keyless) noexcept nogil:
    """Largest timestamp of records that `check_records` found whole; `keyless` is the first one without a key, or -1."""
    cdef const uint8_t* at = records
    cdef const uint8_t* next_record
    cdef int32_t length = 0, offset_delta = 0, key_size = 0, i
    cdef int64_t timestamp_delta = 0, largest = -1
    keyless[0] = NO_KEYLESS
    for i in range(header.count):
        at = read_varint(at, end, &length)
        next_record = at + length
        at = read_varlong(at + 1, end, &timestamp_delta)
        at = read_varint(at, end, &offset_delta)
        read_varint(at, end, &key_size)
        if header.base_timestamp + timestamp_delta > largest:
            largest = header.base_timestamp + timestamp_delta
        if key_size < 0 and keyless[0] == NO_KEYLESS:
            keyless[0] = i
        at = next_record
    return largest


cdef class BatchPlan:
    def __dealloc__(self):
        free(self.data)
        free(self.shapes)

    cdef void stamp(self, int64_t base_offset, int32_t leader_epoch) noexcept nogil:
        """Give the batches their offsets; the CRC does not cover what is written."""
        cdef uint8_t* at = self.data
        cdef int64_t i
        for i in range(self.batches):
            store_int64(at + BASE_OFFSET_AT, base_offset + self.shapes[i].first)
            store_int32(at + LEADER_EPOCH_AT, leader_epoch)
            at += self.shapes[i].size

    def stamped(self, base_offset: int, leader_epoch: int = 0) -> bytes:
        """The bytes as they go into a segment."""
        self.stamp(base_offset, leader_epoch)
        return self.data[:self.size]


def validate_batches(
    buffer, max_message_bytes: int, segment_bytes: int, latest_timestamp: int | None = None, internal: bool = False,
    needs_keys: bool = False, decompress=None,
) -> BatchPlan:
    """Check one or several whole, encoded batches and copy them for appending.

    Args:
        buffer: any object with a buffer of bytes.
        max_message_bytes: largest batch, as it is stored.
        segment_bytes: largest append.
        latest_timestamp: largest timestamp allowed, in milliseconds; None: none is too large.
        internal: control batches are allowed: the log's own markers.
        needs_keys: every record has to have a key (compacted logs).
        decompress: called with (codec, compressed bytes) of each compressed batch, returns the bytes of its records, and
            caps their size. None: compressed batches are not supported.

    Raises CorruptRecordError, InvalidRecordError, RecordTooLargeError or NotSupportedError; each names the batch, its
    position in the buffer, and the reason.
    """
    cdef Py_buffer view
    cdef BatchPlan plan = BatchPlan.__new__(BatchPlan)
    PyObject_GetBuffer(buffer, &view, PyBUF_SIMPLE)
    try:
        if view.len > <int64_t>segment_bytes:
            raise RecordTooLargeError(
                f"the append has {view.len} bytes, more than the {segment_bytes} of a segment: append it in parts; "
                f"nothing was written"
            )
        plan.data = <uint8_t*>malloc(max(view.len, 1))
        if plan.data == NULL:
            raise MemoryError()
        memcpy(plan.data, view.buf, view.len)
        plan.size = view.len
    finally:
        PyBuffer_Release(&view)
    if plan.size == 0:
        raise InvalidRecordError("the append is empty: expected at least one record batch")
    plan.max_timestamp = -1
    cdef BatchHeader header
    cdef Marker marker
    cdef int64_t position = 0, limit = max_message_bytes, capacity = 0, largest
    cdef int64_t latest = MOST_TIMESTAMP if latest_timestamp is None else latest_timestamp
    cdef bint internal_ = internal, needs_keys_ = needs_keys
    cdef int32_t keyless
    cdef BatchShape* shapes
    cdef Problem problem
    while position < plan.size:
        problem = parse_header(plan.data, position, plan.size, &header)
        # of a batch that is too large the size is the better reason, whatever else it is
        if problem == FINE and header.size > limit:
            raise RecordTooLargeError(
                f"{named(plan, position)} has {header.size} bytes, more than max_message_bytes={limit}; nothing was written"
            )
        if problem == FINE and not crc_matches(plan.data, &header):
            problem = BAD_CRC
        if problem != FINE:
            raise CorruptRecordError(f"{named(plan, position)}: {describe(problem)}; nothing was written", None, position)
        reason = refused(&header, internal_)
        if reason is not None:
            raise InvalidRecordError(f"{named(plan, position)} cannot be appended: {reason}; nothing was written")
        problem = check_batch(plan, &header, decompress, &largest, &keyless)
        if problem == FINE and header.attributes & CONTROL_BIT:
            problem = parse_marker(plan.data, &header, &marker)
        if problem != FINE:
            raise CorruptRecordError(f"{named(plan, position)}: {describe(problem)}; nothing was written", None, position)
        if needs_keys_ and keyless != NO_KEYLESS and not header.attributes & CONTROL_BIT:
            raise InvalidRecordError(
                f"{named(plan, position)}, record {keyless}: it has no key, which a compacted log needs; nothing was written"
            )
        if largest > latest:
            raise InvalidRecordError(
                f"{named(plan, position)} has the timestamp {largest}, later than the {latest} that message_timestamp_after_max_ms "
                f"allows: timestamps are milliseconds; nothing was written"
            )
        if header.max_timestamp != largest:
            store_int64(plan.data + position + MAX_TIMESTAMP_AT, largest)
            store_uint32(
                plan.data + position + CRC_AT,
                crc32c_extend(0, plan.data + position + CRC_COVERS_FROM, header.size - CRC_COVERS_FROM),
            )
        if plan.offsets + header.count > MOST_OFFSETS:
            raise RecordTooLargeError(f"the append has more than {MOST_OFFSETS} records: append it in parts; nothing was written")
        if plan.batches == capacity:
            capacity = max(<int64_t>4, 2 * capacity)
            shapes = <BatchShape*>realloc(plan.shapes, capacity * sizeof(BatchShape))
            if shapes == NULL:
                raise MemoryError()
            plan.shapes = shapes
        shapes = &plan.shapes[plan.batches]
        shapes.first = plan.offsets
        shapes.count = header.count
        shapes.size = header.size
        shapes.max_timestamp = largest
        plan.batches += 1
        plan.offsets += header.count
        plan.max_timestamp = max(plan.max_timestamp, largest)
        plan.has_producer = plan.has_producer or header.producer_id >= 0
        position += header.size
    return plan


cdef str named(BatchPlan plan, int64_t position):
    return f"batch {plan.batches} at position {position} of the append"


cdef Problem check_batch(BatchPlan plan, const BatchHeader* header, decompress, int64_t* largest, int32_t* keyless) except *:
    """Decode every record of a batch; its largest timestamp, and the first record without a key (-1: none)."""
    cdef BatchHeader loose = header[0]
    cdef const uint8_t* data = plan.data
    cdef Problem problem
    cdef bytes records
    # the records say what the largest timestamp is
    loose.max_timestamp = MOST_TIMESTAMP
    if header.attributes & CODEC_MASK and not header.attributes & CONTROL_BIT:
        codec = header.attributes & CODEC_MASK
        if decompress is None:
            raise NotSupportedError(f"{named(plan, header.position)} is compressed (codec {codec}), which is not supported here")
        body = data[header.position + BATCH_HEADER_SIZE:header.position + header.size]
        # room for a header in front: the decoder finds records behind one
        records = bytes(BATCH_HEADER_SIZE) + decompress(codec, body)
        data = records
        loose.position = 0
        loose.size = len(records)
        loose.attributes &= ~CODEC_MASK
    with nogil:
        problem = check_records(data, &loose)
        if problem == FINE:
            largest[0] = walk_records(
                data + loose.position + BATCH_HEADER_SIZE, data + loose.position + loose.size, &loose, keyless
            )
    return problem


def latest_timestamp(after_max_ms: int) -> int:
    """The largest timestamp that an append may carry now."""
    return min(oscalls.wall_clock() + after_max_ms, MOST_TIMESTAMP)
