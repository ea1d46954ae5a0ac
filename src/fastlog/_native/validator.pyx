# cython: annotation_typing=False
"""What ``append_batch`` takes: record batches that somebody else encoded, checked before any of them is written.

The checks are a Kafka leader's. The bytes are copied first, so that nobody can change them between check and write.
Malformed bytes are a ``CorruptRecordError``; a well-formed batch that may not be appended is an ``InvalidRecordError``.

Base offsets and leader epochs are not looked at, they are stamped anew. A maximum timestamp that is not the largest of
the records is corrected, as Kafka does: it would spoil the time index.
"""

from cpython.buffer cimport PyBUF_SIMPLE, PyBuffer_Release, PyObject_GetBuffer
from libc.stdint cimport int32_t, int64_t, uint8_t
from libc.string cimport memcpy

from fastlog._native.checksum cimport crc32c_extend
from fastlog._native.decoder cimport (
    BAD_CONTROL, BAD_CRC, BatchHeader, FINE, NO_MEMORY, Problem, RAISED, TOO_MUCH_CONTENT, check_records, crc_matches, describe,
    open_area, parse_header,
)
from fastlog._native.encoder cimport EncodedBatches
from fastlog._native.layout cimport (
    BATCH_HEADER_SIZE, CODEC_MASK, CONTROL_BIT, CRC_AT, CRC_COVERS_FROM, DELETE_HORIZON_BIT,
    MAX_TIMESTAMP_AT, TIMESTAMP_TYPE_BIT, TRANSACTIONAL_BIT, store_int64, store_uint32,
)
from fastlog._native.memory cimport Block, block_release
from fastlog._native.transactions cimport Marker, parse_marker
from fastlog._native.varint cimport read_varint, read_varlong

from fastlog._native import oscalls
from fastlog.errors import CorruptRecordError, InvalidRecordError, RecordTooLargeError

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


cdef class ValidatedBatches(EncodedBatches):
    def stamped(self, base_offset: int, leader_epoch: int = 0) -> bytes:
        """The bytes as they go into a segment."""
        self.stamp(base_offset, leader_epoch)
        return self.data[:self.size]

    def shape(self) -> tuple:
        """(batches, offsets that they take, bytes, largest timestamp)."""
        return self.batches, self.offsets, self.size, self.max_timestamp


def validate_batches(
    buffer, max_message_bytes: int, segment_bytes: int, latest_timestamp: int | None = None, internal: bool = False,
    needs_keys: bool = False, max_decompressed_bytes: int = 64 << 20,
) -> ValidatedBatches:
    """Check one or several whole, encoded batches and copy them for appending.

    Args:
        buffer: any object with a buffer of bytes.
        max_message_bytes: largest batch, as it is stored.
        segment_bytes: largest append.
        latest_timestamp: largest timestamp allowed, in milliseconds; None: none is too large.
        internal: control batches are allowed: the log's own markers.
        needs_keys: every record has to have a key (compacted logs).
        max_decompressed_bytes: largest content of a compressed batch.

    Raises CorruptRecordError, InvalidRecordError or RecordTooLargeError; each names the batch, its
    position in the buffer, and the reason.
    """
    cdef Py_buffer view
    cdef int64_t end
    cdef ValidatedBatches plan = ValidatedBatches.__new__(ValidatedBatches)
    PyObject_GetBuffer(buffer, &view, PyBUF_SIMPLE)
    try:
        if view.len == 0:
            raise InvalidRecordError("the append is empty: expected at least one record batch")
        if view.len > <int64_t>segment_bytes:
            raise RecordTooLargeError(
                f"the append has {view.len} bytes, more than the {segment_bytes} of a segment: append it in parts; "
                f"nothing was written"
            )
        plan.reserve(view.len)
        memcpy(plan.data, view.buf, view.len)
        end = view.len
    finally:
        PyBuffer_Release(&view)
    cdef BatchHeader header
    cdef Marker marker
    cdef int64_t position = 0, limit = max_message_bytes, most_content = max_decompressed_bytes, largest = -1
    cdef int64_t latest = MOST_TIMESTAMP if latest_timestamp is None else latest_timestamp
    cdef bint internal_ = internal, needs_keys_ = needs_keys
    cdef int32_t keyless = NO_KEYLESS
    cdef Problem problem
    while position < end:
        problem = parse_header(plan.data, position, end, &header)
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
        problem = check_batch(plan.data, &header, most_content, &largest, &keyless)
        if problem == FINE and header.attributes & CONTROL_BIT:
            problem = parse_marker(plan.data, &header, &marker)
        if problem == NO_MEMORY:
            raise MemoryError()
        if problem == TOO_MUCH_CONTENT:
            raise RecordTooLargeError(
                f"{named(plan, position)} decompresses to more than max_decompressed_bytes={most_content}; nothing was written"
            )
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
        plan.add(header.size, header.count, largest)
        plan.has_producer = plan.has_producer or header.producer_id >= 0
        position += header.size
    return plan


cdef str named(ValidatedBatches plan, int64_t position):
    return f"batch {plan.batches} at position {position} of the append"


cdef Problem check_batch(
    const uint8_t* bytes_, const BatchHeader* header, int64_t max_decompressed_bytes, int64_t* largest, int32_t* keyless
) except RAISED nogil:
    """Decode every record of a batch; its largest timestamp, and the first record without a key (-1: none)."""
    cdef BatchHeader loose = header[0]
    cdef const uint8_t* at
    cdef const uint8_t* end
    cdef Block* content
    cdef Problem problem = BAD_CONTROL
    if header.attributes & CONTROL_BIT and header.attributes & CODEC_MASK:
        return problem
    problem = open_area(bytes_, header, max_decompressed_bytes, &at, &end, &content)
    if problem != FINE:
        return problem
    # as if the records had been written without a codec; and they say what the largest timestamp is
    loose.position = 0
    loose.size = BATCH_HEADER_SIZE + (end - at)
    loose.attributes &= ~CODEC_MASK
    loose.max_timestamp = MOST_TIMESTAMP
    problem = check_records(at - BATCH_HEADER_SIZE, &loose, 0)
    if problem == FINE:
        largest[0] = walk_records(at, end, &loose, keyless)
    block_release(content)
    return problem


def latest_timestamp(after_max_ms: int) -> int:
    """The largest timestamp that an append may carry now."""
    return min(oscalls.wall_clock() + after_max_ms, MOST_TIMESTAMP)
