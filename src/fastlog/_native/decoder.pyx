"""The decoder and validator of record batches, version 2."""

from libc.stdint cimport int16_t, int32_t, int64_t, uint8_t
from libc.string cimport memset

from fastlog._native.checksum cimport crc32c_extend
from fastlog._native.layout cimport (
    ATTRIBUTES_AT, BASE_OFFSET_AT, BASE_SEQUENCE_AT, BASE_TIMESTAMP_AT, BATCH_HEADER_SIZE, BATCH_LENGTH_AT, CODEC_MASK,
    CONTROL_BIT, CRC_AT, CRC_COVERS_FROM, LAST_OFFSET_DELTA_AT, LEADER_EPOCH_AT, LOG_OVERHEAD, MAGIC_AT,
    MAGIC_V2, MAX_TIMESTAMP_AT, MIN_RECORD_SIZE, PRODUCER_EPOCH_AT, PRODUCER_ID_AT, RECORDS_COUNT_AT,
    TIMESTAMP_TYPE_BIT, TRANSACTIONAL_BIT, UNUSED_ATTRIBUTES, load_int16, load_int32, load_int64, load_uint32,
)
from fastlog._native.memory cimport BatchColumns, Block, block_allocate, block_release, block_retain
from fastlog._native.varint cimport read_varint, read_varlong

DESCRIPTIONS = {
    FINE: "fine",
    END_OF_BYTES: "nothing there",
    CUT_OFF: "the batch is cut off: it claims more bytes than there are",
    BAD_LENGTH: "the batch length is impossible (a batch has at least 61 bytes)",
    BAD_MAGIC: "the magic byte is not 2 (record batch format v2)",
    OLD_MAGIC: "the magic byte says message format 0 or 1, which Kafka 4 and fastlog do not read",
    BAD_CRC: "the CRC-32C does not match",
    BAD_ATTRIBUTES: "unknown bits are set in the batch attributes",
    BAD_COUNT: "the records count is impossible for the batch's bytes or offsets",
    BAD_OFFSET_DELTA: "the last offset delta is negative or too large",
    BAD_BASE_OFFSET: "the base offset does not continue the batch before it",
    BAD_EPOCH: "the leader epoch differs from leader-epoch-checkpoint",
    BAD_TIMESTAMP: "a timestamp lies below -1",
    BAD_RECORD_LENGTH: "a record's length does not fit its batch",
    BAD_RECORD_ATTRIBUTES: "a record's attributes are not 0",
    BAD_RECORD_OFFSET: "the records' offset deltas do not rise within the batch's range",
    BAD_RECORD_TIMESTAMP: "a record's timestamp overflows or exceeds the batch's largest",
    BAD_KEY_LENGTH: "a key's length does not fit its record",
    BAD_VALUE_LENGTH: "a value's length does not fit its record",
    BAD_HEADERS: "a record's headers do not fit it",
    TRAILING_BYTES: "bytes are left over behind the last record",
    BAD_CONTROL: "the control batch is not one uncompressed record",
    COMPRESSED: "the batch is compressed, which this version cannot read",
    TRANSACTIONAL: "the batch belongs to a transaction, which this version cannot read",
    NO_MEMORY: "out of memory",
}


cdef str describe(Problem problem):
    return DESCRIPTIONS[problem]


cdef Problem parse_header(const uint8_t* bytes_, int64_t position, int64_t end, BatchHeader* header) noexcept nogil:
    """Read and check the header at `position`; bytes up to `end` may be touched. Neither CRC nor order are checked."""
    cdef const uint8_t* at = bytes_ + position
    cdef int64_t left = end - position
    cdef int32_t length, last_delta
    header.position = position
    header.size = 0
    if left <= 0:
        return END_OF_BYTES
    if left < LOG_OVERHEAD:
        return CUT_OFF
    header.base_offset = load_int64(at + BASE_OFFSET_AT)
    length = load_int32(at + BATCH_LENGTH_AT)
    if length < BATCH_HEADER_SIZE - LOG_OVERHEAD:
        # formats 0 and 1 have shorter messages: name them when the magic byte is there to see
        if length >= 14 and left > MAGIC_AT and at[MAGIC_AT] < MAGIC_V2:
            return OLD_MAGIC
        return BAD_LENGTH
    if left > MAGIC_AT and at[MAGIC_AT] != MAGIC_V2:
        return OLD_MAGIC if at[MAGIC_AT] < MAGIC_V2 else BAD_MAGIC
    header.size = <int64_t>length + LOG_OVERHEAD
    if header.size > left:
        return CUT_OFF
    header.leader_epoch = load_int32(at + LEADER_EPOCH_AT)
    header.crc = load_uint32(at + CRC_AT)
    header.attributes = load_int16(at + ATTRIBUTES_AT)
    last_delta = load_int32(at + LAST_OFFSET_DELTA_AT)
    header.base_timestamp = load_int64(at + BASE_TIMESTAMP_AT)
    header.max_timestamp = load_int64(at + MAX_TIMESTAMP_AT)
    header.producer_id = load_int64(at + PRODUCER_ID_AT)
    header.producer_epoch = load_int16(at + PRODUCER_EPOCH_AT)
    header.base_sequence = load_int32(at + BASE_SEQUENCE_AT)
    header.count = load_int32(at + RECORDS_COUNT_AT)
    if header.base_offset < 0 or last_delta < 0 or header.base_offset > <int64_t>0x7FFFFFFFFFFFFFFF - last_delta - 1:
        return BAD_OFFSET_DELTA
    header.last_offset = header.base_offset + last_delta
    if header.attributes & UNUSED_ATTRIBUTES or (header.attributes & CODEC_MASK) > 4:
        return BAD_ATTRIBUTES
    if header.count < 0 or header.count > <int64_t>last_delta + 1:
        return BAD_COUNT
    if not header.attributes & CODEC_MASK and header.count > (header.size - BATCH_HEADER_SIZE) // MIN_RECORD_SIZE:
        return BAD_COUNT
    if header.count == 0 and header.size != BATCH_HEADER_SIZE:
        return BAD_COUNT
    if header.max_timestamp < -1 or header.base_timestamp < -1:
        return BAD_TIMESTAMP
    return FINE


cdef Problem check_order(const BatchHeader* header, int64_t expected_offset, bint gaps, int32_t epoch) noexcept nogil:
    """What the CRC does not cover: the base offset (by continuity) and the leader epoch (`epoch` < 0: any)."""
    if header.base_offset != expected_offset and not (gaps and header.base_offset > expected_offset):
        return BAD_BASE_OFFSET
    if epoch >= 0 and header.leader_epoch != epoch:
        return BAD_EPOCH
    return FINE


cdef bint crc_matches(const uint8_t* bytes_, const BatchHeader* header) noexcept nogil:
    return crc32c_extend(0, bytes_ + header.position + CRC_COVERS_FROM, header.size - CRC_COVERS_FROM) == header.crc


cdef const uint8_t* skip_headers(const uint8_t* at, const uint8_t* end, int32_t count) noexcept nogil:
    cdef int32_t size
    cdef int32_t i
    for i in range(count):
        at = read_varint(at, end, &size)
        if at == NULL or size < 0 or size > end - at:
            return NULL
        at = read_varint(at + size, end, &size)
        if at == NULL or size < -1 or size > end - at:
            return NULL
        if size > 0:
            at += size
    return at


cdef struct RecordView:
    int64_t offset
    int64_t timestamp
    const uint8_t* key
    int32_t key_size
    const uint8_t* value
    int32_t value_size
    const uint8_t* headers
    int32_t header_count


cdef inline Problem read_record(
    const uint8_t** cursor, const uint8_t* end, const BatchHeader* header, int64_t previous_offset, RecordView* record
) noexcept nogil:
    """Decode the record at `cursor` and move behind it."""
    cdef const uint8_t* at = cursor[0]
    cdef const uint8_t* stop
    cdef int32_t length, offset_delta, size
    cdef int64_t timestamp_delta
    at = read_varint(at, end, &length)
    if at == NULL or length < 0 or length > end - at:
        return BAD_RECORD_LENGTH
    stop = at + length
    if length < MIN_RECORD_SIZE - 1:
        return BAD_RECORD_LENGTH
    if at[0] != 0:
        return BAD_RECORD_ATTRIBUTES
    at = read_varlong(at + 1, stop, &timestamp_delta)
    if at == NULL:
        return BAD_RECORD_TIMESTAMP
    at = read_varint(at, stop, &offset_delta)
    if at == NULL or offset_delta < 0:
        return BAD_RECORD_OFFSET
    record.offset = header.base_offset + offset_delta
    if record.offset <= previous_offset or record.offset > header.last_offset:
        return BAD_RECORD_OFFSET
    if header.attributes & TIMESTAMP_TYPE_BIT:
        record.timestamp = header.max_timestamp
    else:
        # base timestamps are -1 or above, so that the sum can only overflow upwards
        if timestamp_delta > 0 and header.base_timestamp > <int64_t>0x7FFFFFFFFFFFFFFF - timestamp_delta:
            return BAD_RECORD_TIMESTAMP
        record.timestamp = header.base_timestamp + timestamp_delta
        if record.timestamp < -1 or record.timestamp > header.max_timestamp:
            return BAD_RECORD_TIMESTAMP
    at = read_varint(at, stop, &size)
    if at == NULL or size < -1 or size > stop - at:
        return BAD_KEY_LENGTH
    record.key = at
    record.key_size = size
    if size > 0:
        at += size
    at = read_varint(at, stop, &size)
    if at == NULL or size < -1 or size > stop - at:
        return BAD_VALUE_LENGTH
    record.value = at
    record.value_size = size
    if size > 0:
        at += size
    at = read_varint(at, stop, &size)
    if at == NULL or size < 0 or size > (stop - at) // 2:
        return BAD_HEADERS
    record.headers = at
    record.header_count = size
    if size > 0:
        at = skip_headers(at, stop, size)
        if at == NULL:
            return BAD_HEADERS
    if at != stop:
        return BAD_RECORD_LENGTH
    cursor[0] = at
    return FINE


cdef Problem readable(const BatchHeader* header) noexcept nogil:
    """Whether this version can show the records of a valid batch."""
    if header.attributes & CONTROL_BIT:
        if header.attributes & CODEC_MASK or header.count > 1:
            return BAD_CONTROL
        return FINE
    if header.count == 0:
        return FINE
    if header.attributes & CODEC_MASK:
        return COMPRESSED
    if header.attributes & TRANSACTIONAL_BIT:
        return TRANSACTIONAL
    return FINE


cdef Problem check_records(const uint8_t* bytes_, const BatchHeader* header) noexcept nogil:
    """Decode every record of an uncompressed batch without keeping anything."""
    cdef const uint8_t* at = bytes_ + header.position + BATCH_HEADER_SIZE
    cdef const uint8_t* end = bytes_ + header.position + header.size
    cdef int64_t previous = header.base_offset - 1
    cdef RecordView record
    cdef Problem problem
    cdef int32_t i
    if header.attributes & CODEC_MASK:
        return BAD_CONTROL if header.attributes & CONTROL_BIT else FINE
    if header.attributes & CONTROL_BIT and header.count > 1:
        return BAD_CONTROL
    for i in range(header.count):
        problem = read_record(&at, end, header, previous, &record)
        if problem != FINE:
            return problem
        previous = record.offset
    return FINE if at == end else TRAILING_BYTES


cdef Problem find_timestamp(
    const uint8_t* bytes_, const BatchHeader* header, int64_t timestamp, int64_t start_offset, int64_t* found
) noexcept nogil:
    """The first offset >= `start_offset` in this batch whose timestamp is >= `timestamp`, or -1."""
    cdef const uint8_t* at = bytes_ + header.position + BATCH_HEADER_SIZE
    cdef const uint8_t* end = bytes_ + header.position + header.size
    cdef int64_t previous = header.base_offset - 1
    cdef RecordView record
    cdef Problem problem = readable(header)
    cdef int32_t i
    found[0] = -1
    if problem != FINE or header.attributes & CONTROL_BIT:
        return problem
    for i in range(header.count):
        problem = read_record(&at, end, header, previous, &record)
        if problem != FINE:
            return problem
        previous = record.offset
        if record.timestamp >= timestamp and record.offset >= start_offset:
            found[0] = record.offset
            return FINE
    return FINE if at == end else TRAILING_BYTES


cdef Problem decode_batches(
    Block* block, int64_t position, int64_t end, int64_t start_offset, int64_t stop_offset, int64_t expected_offset,
    bint gaps, int32_t epoch, int64_t max_bytes, BatchColumns* columns, BatchHeader* header, int64_t* next_offset,
    int64_t* next_position,
) noexcept nogil:
    """Decode whole batches from `position` on: at least one, then as many as fit into `max_bytes`.

    Records below `start_offset` and from `stop_offset` on are left out. On a problem nothing is kept, `header` is the batch
    that has it — unless batches before it are fine: then those are the result and the problem waits for the next call.
    `next_offset` and `next_position` say where to go on.
    """
    cdef const uint8_t* bytes_ = block.data
    cdef int64_t at = position, limit, total = 0, n = 0, expected = expected_offset
    cdef int batches = 0
    cdef int16_t timestamp_type = -1
    cdef Problem problem
    cdef BatchHeader seen
    cdef const uint8_t* cursor
    cdef const uint8_t* stop
    cdef int64_t previous
    cdef RecordView record
    cdef int32_t i
    cdef int64_t* offsets
    cdef int64_t* timestamps
    cdef int32_t* key_positions
    cdef int32_t* key_sizes
    cdef int32_t* value_positions
    cdef int32_t* value_sizes
    cdef int32_t* header_positions
    cdef int32_t* header_counts
    cdef bint have_keys = False, have_headers = False
    cdef int64_t j
    memset(columns, 0, sizeof(BatchColumns))
    limit = position + max_bytes
    # First the headers alone: how many batches, how many records. Checksums wait until a batch is decoded, so that its
    # bytes come from memory once.
    while at < end:
        problem = parse_header(bytes_, at, end, &seen)
        if problem == FINE:
            if batches and (seen.position + seen.size > limit or seen.base_offset >= stop_offset):
                break
            problem = check_order(&seen, expected, gaps, epoch)
        if problem == FINE:
            problem = readable(&seen)
        if problem != FINE:
            if batches:
                break
            # of an unreadable batch a failing checksum is the better reason
            if problem in (BAD_CONTROL, COMPRESSED, TRANSACTIONAL) and not crc_matches(bytes_, &seen):
                problem = BAD_CRC
            header[0] = seen
            return problem
        if seen.count and not seen.attributes & CONTROL_BIT:
            # one RecordBatch has one timestamp type
            if timestamp_type >= 0 and timestamp_type != (seen.attributes & TIMESTAMP_TYPE_BIT):
                break
            timestamp_type = seen.attributes & TIMESTAMP_TYPE_BIT
            total += seen.count
        header[0] = seen
        expected = seen.last_offset + 1
        at += seen.size
        batches += 1
    next_offset[0] = expected
    next_position[0] = at
    end = at
    columns.arrays = block_allocate(<size_t>total * 40)
    if columns.arrays == NULL:
        return NO_MEMORY
    offsets = <int64_t*>columns.arrays.data
    timestamps = offsets + total
    value_positions = <int32_t*>(timestamps + total)
    value_sizes = value_positions + total
    key_positions = value_sizes + total
    key_sizes = key_positions + total
    header_positions = key_sizes + total
    header_counts = header_positions + total
    # Then the records.
    at = position
    while at < end:
        parse_header(bytes_, at, end, &seen)
        at += seen.size
        problem = FINE if crc_matches(bytes_, &seen) else BAD_CRC
        if problem == FINE and (seen.attributes & CONTROL_BIT or seen.count == 0):
            continue
        cursor = bytes_ + seen.position + BATCH_HEADER_SIZE
        stop = bytes_ + at
        previous = seen.base_offset - 1
        for i in range(seen.count if problem == FINE else 0):
            problem = read_record(&cursor, stop, &seen, previous, &record)
            if problem != FINE:
                break
            previous = record.offset
            if record.offset < start_offset or record.offset >= stop_offset:
                continue
            offsets[n] = record.offset
            timestamps[n] = record.timestamp
            value_positions[n] = <int32_t>(record.value - bytes_)
            value_sizes[n] = record.value_size
            if record.key_size >= 0 and not have_keys:
                have_keys = True
                for j in range(n):
                    key_sizes[j] = -1
                    key_positions[j] = 0
            if have_keys:
                key_positions[n] = <int32_t>(record.key - bytes_)
                key_sizes[n] = record.key_size
            if record.header_count and not have_headers:
                have_headers = True
                for j in range(n):
                    header_counts[j] = 0
                    header_positions[j] = 0
            if have_headers:
                header_positions[n] = <int32_t>(record.headers - bytes_)
                header_counts[n] = record.header_count
            n += 1
        if problem == FINE and cursor != stop:
            problem = TRAILING_BYTES
        if problem != FINE:
            if n and seen.position > position:
                # keep the good batches before it: drop what this one contributed
                while n and offsets[n - 1] >= seen.base_offset:
                    n -= 1
            if seen.position == position:
                header[0] = seen
                block_release(columns.arrays)
                memset(columns, 0, sizeof(BatchColumns))
                return problem
            next_offset[0] = seen.base_offset
            next_position[0] = seen.position
            break
    if n == 0:
        block_release(columns.arrays)
        memset(columns, 0, sizeof(BatchColumns))
        return FINE
    columns.count = n
    columns.offsets = offsets
    columns.timestamps = timestamps
    columns.value_positions = value_positions
    columns.value_sizes = value_sizes
    if have_keys:
        columns.key_positions = key_positions
        columns.key_sizes = key_sizes
    if have_headers:
        columns.header_positions = header_positions
        columns.header_counts = header_counts
    columns.bytes = block
    block_retain(block)
    return FINE
