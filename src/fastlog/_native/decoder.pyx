"""The decoder and validator of record batches, version 2.

Plain batches are decoded where they lie, without the GIL. Compressed ones, which the codecs need the GIL for, are first
decompressed one behind the other into a block of their own, with the GIL, and decoded there, without it. The result of
one call is of one kind: its positions point into one block.
"""

from libc.stdint cimport int16_t, int32_t, int64_t, uint8_t
from libc.stdlib cimport calloc, free
from libc.string cimport memset

from fastlog._native.checksum cimport crc32c_extend
from fastlog._native.codecs cimport BROKEN, NO_ROOM, content_bound, decompress, is_bound_exceeded
from fastlog._native.layout cimport (
    ATTRIBUTES_AT, BASE_OFFSET_AT, BASE_SEQUENCE_AT, BASE_TIMESTAMP_AT, BATCH_HEADER_SIZE, BATCH_LENGTH_AT, CODEC_MASK,
    CONTROL_BIT, CRC_AT, CRC_COVERS_FROM, LAST_OFFSET_DELTA_AT, LEADER_EPOCH_AT, LOG_OVERHEAD, MAGIC_AT,
    MAGIC_V2, MAX_TIMESTAMP_AT, MIN_RECORD_SIZE, PRODUCER_EPOCH_AT, PRODUCER_ID_AT, RECORDS_COUNT_AT,
    TIMESTAMP_TYPE_BIT, TRANSACTIONAL_BIT, UNUSED_ATTRIBUTES, load_int16, load_int32, load_int64, load_uint32,
)
from fastlog._native.memory cimport BatchColumns, Block, block_allocate, block_release, block_retain
from fastlog._native.varint cimport read_varint, read_varlong

cdef enum:
    MOST_CONTENT = 0x7FFFFFFF       # positions within a result have 32 bits

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
    BAD_COMPRESSION: "the records do not decompress",
    TRAILING_BYTES: "bytes are left over behind the last record",
    BAD_CONTROL: "the control batch is not one uncompressed record",
    TOO_MUCH_CONTENT: "the records decompress to more than max_decompressed_bytes allows",
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


NO_LIMIT = 0x7FFFFFFFFFFFFFFF

cdef Problem check_order(const BatchHeader* header, int64_t expected_offset, bint gaps, int32_t epoch, int64_t limit) noexcept nogil:
    """What the CRC does not cover: the base offset (by continuity; where offsets may skip, it lies below `limit`, where the next
    segment begins) and the leader epoch (`epoch` < 0: any)."""
    if header.base_offset != expected_offset and not (gaps and header.base_offset > expected_offset):
        return BAD_BASE_OFFSET
    if gaps and header.last_offset >= limit:
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


cdef Problem check_kind(const BatchHeader* header) noexcept nogil:
    """What a control batch has to be."""
    if header.attributes & CONTROL_BIT and (header.attributes & CODEC_MASK or header.count > 1):
        return BAD_CONTROL
    return FINE


cdef inline bint is_aborted(const BatchHeader* header, const AbortedRange* aborted, int64_t aborted_count) noexcept nogil:
    cdef int64_t i
    if not header.attributes & TRANSACTIONAL_BIT:
        return False
    for i in range(aborted_count):
        if aborted[i].first_offset > header.base_offset:
            break
        if aborted[i].producer_id == header.producer_id and header.base_offset <= aborted[i].last_offset:
            return True
    return False


cdef inline bint is_shown(const BatchHeader* header, const AbortedRange* aborted, int64_t aborted_count) noexcept nogil:
    """Whether readers get to see records of this batch."""
    return (
        header.count != 0 and not header.attributes & CONTROL_BIT
        and (aborted_count == 0 or not is_aborted(header, aborted, aborted_count))
    )


cdef Problem decompress_batch(
    const uint8_t* bytes_, const BatchHeader* header, int64_t max_decompressed_bytes, int64_t capacity, Block** content, int64_t* used
) except RAISED with gil:
    """The records area of a compressed batch, whose checksum holds, at the front of a new block of at least `capacity` bytes."""
    cdef const uint8_t* area = bytes_ + header.position + BATCH_HEADER_SIZE
    cdef int64_t area_size = header.size - BATCH_HEADER_SIZE, size
    cdef int codec = header.attributes & CODEC_MASK
    cdef int64_t room = content_bound(codec, area, area_size)
    cdef Block* block
    content[0] = NULL
    if room == BROKEN:
        return BAD_COMPRESSION
    room = min(room, max_decompressed_bytes)
    while True:
        block = block_allocate(<size_t>max(room, capacity))
        if block == NULL:
            return NO_MEMORY
        try:
            size = decompress(codec, area, area_size, block.data, room)
        except BaseException:
            block_release(block)
            raise
        if size >= 0 and header.count <= size // MIN_RECORD_SIZE:
            content[0] = block
            used[0] = size
            return FINE
        block_release(block)
        if size >= 0:
            return BAD_COUNT
        if size == NO_ROOM and room == max_decompressed_bytes:
            return TOO_MUCH_CONTENT
        if size == BROKEN or not is_bound_exceeded(codec):
            return BAD_COMPRESSION
        room = min(4 * room + 4096, max_decompressed_bytes)


cdef struct Piece:              # the content of one compressed batch, in the block of a run
    int64_t bound
    int64_t start
    int64_t size


cdef Problem decompress_run(
    const uint8_t* bytes_, int64_t position, int64_t* run_end, int64_t shown, int64_t max_bytes, int64_t max_decompressed_bytes,
    const AbortedRange* aborted, int64_t aborted_count, Piece** pieces, Block** content, int64_t* total, BatchHeader* header,
) except RAISED with gil:
    """Decompress the `shown` batches in [position, run_end) into one block: at least one, then as many as fit into `max_bytes`.

    `run_end` becomes the end of what was taken, `total` its number of records; `pieces` (to be freed) has an entry per batch.
    Any problem ends the run before its batch, unless that is the batch at `position`: then it is the result. The headers were
    checked by the caller.
    """
    cdef BatchHeader seen
    cdef Block* block = NULL
    cdef Piece* found = <Piece*>calloc(shown, sizeof(Piece))
    cdef int64_t at = position, end, wanted = 0, capacity = 0, used = 0, size = 0, n = 0
    cdef const uint8_t* area
    cdef Problem problem = FINE
    if found == NULL:
        return NO_MEMORY
    while at < run_end[0] and wanted < max_bytes:
        parse_header(bytes_, at, run_end[0], &seen)
        at += seen.size
        if is_shown(&seen, aborted, aborted_count):
            area = bytes_ + seen.position + BATCH_HEADER_SIZE
            found[n].bound = content_bound(seen.attributes & CODEC_MASK, area, seen.size - BATCH_HEADER_SIZE)
            wanted += min(max(found[n].bound, 0), max_decompressed_bytes)
            n += 1
    end = at
    capacity = min(wanted, max_bytes, <int64_t>MOST_CONTENT)
    at = position
    n = 0
    total[0] = 0
    try:
        while at < end:
            parse_header(bytes_, at, end, &seen)
            problem = FINE if crc_matches(bytes_, &seen) else BAD_CRC
            if problem == FINE and is_shown(&seen, aborted, aborted_count):
                if block == NULL:
                    problem = decompress_batch(bytes_, &seen, max_decompressed_bytes, capacity, &block, &size)
                elif found[n].bound < 0 or found[n].bound > min(<int64_t>block.size - used, max_decompressed_bytes):
                    problem = TOO_MUCH_CONTENT      # for this run
                else:
                    area = bytes_ + seen.position + BATCH_HEADER_SIZE
                    size = decompress(
                        seen.attributes & CODEC_MASK, area, seen.size - BATCH_HEADER_SIZE, block.data + used, found[n].bound
                    )
                    if size < 0 or seen.count > size // MIN_RECORD_SIZE:
                        problem = BAD_COMPRESSION
                if problem == FINE:
                    found[n].start = used
                    found[n].size = size
                    used += size
                    total[0] += seen.count
                    n += 1
            if problem != FINE:
                break
            at += seen.size
    except BaseException:
        block_release(block)
        free(found)
        raise
    if problem != FINE and at == position:
        header[0] = seen
        free(found)
        return problem
    run_end[0] = at
    if block != NULL:
        block.size = used
    pieces[0] = found
    content[0] = block
    return FINE


cdef Problem open_area(
    const uint8_t* bytes_, const BatchHeader* header, int64_t max_decompressed_bytes, const uint8_t** at, const uint8_t** end,
    Block** content,
) except RAISED nogil:
    """Where the records of a batch lie: in place, or in `content`, which the caller releases."""
    cdef Problem problem
    cdef int64_t size = 0
    content[0] = NULL
    at[0] = bytes_ + header.position + BATCH_HEADER_SIZE
    end[0] = bytes_ + header.position + header.size
    if header.count and header.attributes & CODEC_MASK:
        problem = decompress_batch(bytes_, header, max_decompressed_bytes, 0, content, &size)
        if problem != FINE:
            return problem
        at[0] = content[0].data
        end[0] = at[0] + size
    return FINE


cdef Problem check_records(const uint8_t* bytes_, const BatchHeader* header, int64_t max_decompressed_bytes) except RAISED nogil:
    """Decode every record of a batch whose checksum holds without keeping anything."""
    cdef const uint8_t* at
    cdef const uint8_t* end
    cdef int64_t previous = header.base_offset - 1
    cdef RecordView record
    cdef Block* content
    cdef Problem problem = check_kind(header)
    cdef int32_t i
    if problem == FINE:
        problem = open_area(bytes_, header, max_decompressed_bytes, &at, &end, &content)
    if problem != FINE:
        return problem
    for i in range(header.count):
        problem = read_record(&at, end, header, previous, &record)
        if problem != FINE:
            break
        previous = record.offset
    if problem == FINE and at != end:
        problem = TRAILING_BYTES
    block_release(content)
    return problem


cdef Problem find_timestamp(
    const uint8_t* bytes_, const BatchHeader* header, int64_t max_decompressed_bytes, int64_t timestamp, int64_t start_offset,
    int64_t* found,
) except RAISED nogil:
    """The first offset >= `start_offset` in this batch, whose checksum holds, with a timestamp >= `timestamp`, or -1."""
    cdef const uint8_t* at
    cdef const uint8_t* end
    cdef int64_t previous = header.base_offset - 1
    cdef RecordView record
    cdef Block* content
    cdef Problem problem = check_kind(header)
    cdef int32_t i
    found[0] = -1
    if problem != FINE or header.attributes & CONTROL_BIT:
        return problem
    problem = open_area(bytes_, header, max_decompressed_bytes, &at, &end, &content)
    if problem != FINE:
        return problem
    for i in range(header.count):
        problem = read_record(&at, end, header, previous, &record)
        if problem != FINE:
            break
        previous = record.offset
        if record.timestamp >= timestamp and record.offset >= start_offset:
            found[0] = record.offset
            break
    if problem == FINE and found[0] < 0 and at != end:
        problem = TRAILING_BYTES
    block_release(content)
    return problem


cdef Problem decode_batches(
    Block* block, int64_t position, int64_t end, int64_t start_offset, int64_t stop_offset, int64_t expected_offset,
    bint gaps, int32_t epoch, int64_t offset_limit, int64_t max_bytes, int64_t max_decompressed_bytes, const AbortedRange* aborted,
    int64_t aborted_count, BatchColumns* columns, BatchHeader* header, int64_t* next_offset, int64_t* next_position,
) except RAISED nogil:
    """Decode whole batches from `position` on: at least one, then as many as fit into `max_bytes`.

    Records below `start_offset` and from `stop_offset` on are left out, and so are control batches and those transactional
    ones that an entry of `aborted` (sorted by first offset) covers. Of compressed batches `max_bytes` limits the content, too.
    A run of compressed batches and one of plain batches are never in one result.

    On a problem nothing is kept, `header` is the batch that has it — unless batches before it are fine: then those are the
    result and the problem waits for the next call. Else `header` is the last batch with records that are shown, if any.
    `next_offset` and `next_position` say where to go on.
    """
    cdef const uint8_t* bytes_ = block.data
    cdef const uint8_t* base = bytes_           # what positions of the result count from
    cdef Block* content = NULL                  # of compressed batches
    cdef Piece* pieces = NULL
    cdef int64_t at = position, limit, total = 0, n = 0, k = 0, expected = expected_offset
    cdef int64_t batches = 0, shown = 0
    cdef bint is_compressed = False
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
            problem = check_order(&seen, expected, gaps, epoch, offset_limit)
        if problem == FINE:
            problem = check_kind(&seen)
        if problem != FINE:
            if batches:
                break
            # a failing checksum is the better reason
            if problem == BAD_CONTROL and not crc_matches(bytes_, &seen):
                problem = BAD_CRC
            header[0] = seen
            return problem
        if is_shown(&seen, aborted, aborted_count):
            # one RecordBatch has one timestamp type, and its bytes lie in one block
            if shown and (
                timestamp_type != (seen.attributes & TIMESTAMP_TYPE_BIT) or is_compressed != (seen.attributes & CODEC_MASK != 0)
            ):
                break
            timestamp_type = seen.attributes & TIMESTAMP_TYPE_BIT
            is_compressed = seen.attributes & CODEC_MASK != 0
            total += seen.count
            shown += 1
            header[0] = seen
        elif shown == 0:
            header[0] = seen
        expected = seen.last_offset + 1
        at += seen.size
        batches += 1
    if is_compressed:
        problem = decompress_run(
            bytes_, position, &at, shown, max_bytes, max_decompressed_bytes, aborted, aborted_count, &pieces, &content, &total, header
        )
        if problem != FINE:
            return problem
        if content != NULL:
            base = content.data
    next_offset[0] = expected
    next_position[0] = at
    end = at
    columns.arrays = block_allocate(<size_t>total * 40)
    if columns.arrays == NULL:
        block_release(content)
        free(pieces)
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
        # of compressed batches that came before they were decompressed
        problem = FINE if is_compressed or crc_matches(bytes_, &seen) else BAD_CRC
        next_offset[0] = seen.last_offset + 1
        if problem == FINE and not is_shown(&seen, aborted, aborted_count):
            continue
        if is_compressed:
            cursor = base + pieces[k].start
            stop = cursor + pieces[k].size
            k += 1
        else:
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
            value_positions[n] = <int32_t>(record.value - base)
            value_sizes[n] = record.value_size
            if record.key_size >= 0 and not have_keys:
                have_keys = True
                for j in range(n):
                    key_sizes[j] = -1
                    key_positions[j] = 0
            if have_keys:
                key_positions[n] = <int32_t>(record.key - base)
                key_sizes[n] = record.key_size
            if record.header_count and not have_headers:
                have_headers = True
                for j in range(n):
                    header_counts[j] = 0
                    header_positions[j] = 0
            if have_headers:
                header_positions[n] = <int32_t>(record.headers - base)
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
                block_release(content)
                free(pieces)
                memset(columns, 0, sizeof(BatchColumns))
                return problem
            next_offset[0] = seen.base_offset
            next_position[0] = seen.position
            break
    free(pieces)
    if n == 0:
        block_release(columns.arrays)
        block_release(content)
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
    if is_compressed:
        columns.bytes = content
    else:
        columns.bytes = block
        block_retain(block)
    return FINE
