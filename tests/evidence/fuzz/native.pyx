# cython: annotation_typing=False
"""Targets of the fuzzer that stand beside the compiled core: hostile bytes in, and every check there is of what comes out.

Compiled for tests only: with clang, libFuzzer's hooks and the sanitizers to search, with any C compiler to take the
kept inputs again. An error of fastlog's is an answer; anything else that is raised is a finding, and so is every report
of a sanitizer.

The first eight bytes of most inputs are options of the target: what a caller, or other files, would say. What parses
from memory gets it in a block of exactly its size, so that AddressSanitizer sees one byte too many.
"""

import os
import sys
import traceback

from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize
from cpython.pycapsule cimport PyCapsule_GetPointer, PyCapsule_New
from libc.stdint cimport INT64_MAX, int32_t, int64_t, intptr_t, uint64_t, uint8_t
from libc.stdio cimport FILE, fclose, fopen, fwrite
from libc.stdlib cimport abort, calloc, free, malloc
from libc.string cimport memcpy, memset

from fastlog._native.arrow_abi cimport ArrowArray, ArrowArrayStream, ArrowSchema
from fastlog._native.batch cimport RecordBatch
from fastlog._native.checksum cimport crc32c_extend
from fastlog._native.codecs cimport (
    BROKEN, compress, compressed_room, content_bound, decompress, is_bound_exceeded,
)
from fastlog._native.columns cimport COLUMN_NULLS, Column, Span, Timestamps, make_column, make_timestamps, span_at
from fastlog._native.decoder cimport (
    AbortedRange, BAD_CONTROL, BAD_CRC, BatchHeader, FINE, NO_LIMIT, NO_MEMORY, Problem, check_order, check_records, crc_matches,
    decode_batches, find_timestamp, parse_header,
)
from fastlog._native.layout cimport (
    BATCH_HEADER_SIZE, BATCH_LENGTH_AT, CODEC_MASK, CONTROL_BIT, CRC_AT, CRC_COVERS_FROM, INDEX_ENTRY_SIZE, LOG_OVERHEAD,
    SNAPSHOT_CRC_AT, SNAPSHOT_CRC_COVERS_FROM, SNAPSHOT_HEADER_SIZE, TIMESTAMP_TYPE_BIT, TIME_INDEX_ENTRY_SIZE,
    TRANSACTIONAL_BIT, TRANSACTION_ENTRY_SIZE, load_int32, load_int64, store_int32, store_uint32,
)
from fastlog._native.memory cimport BatchColumns, Block, block_release
from fastlog._native.segment cimport Place, Segment
from fastlog._native.varint cimport read_varint

from fastlog._native.cleaner import CleaningRound
from fastlog._native.inspect import scan_index, scan_segment
from fastlog._native.producers import ProducerStates
from fastlog._native.scanner import compare_indexes, scan
from fastlog._native.shared import Bells, SharedPage
from fastlog._native.transactions import aborted_ranges, check_entries, pack_entries, read_marker, unpack_entries
from fastlog._native.validator import validate_batches
from fastlog.errors import Error
from tests.evidence.fuzz import FOLDER

cdef extern from *:
    """
    static volatile unsigned char fastlog_seen;
    static void fastlog_look_at(const unsigned char* at, long size) {
        for (long i = 0; i < size; i++) fastlog_seen = at[i];
    }
    """
    # no compiler may leave it out
    void look_at "fastlog_look_at"(const uint8_t* at, int64_t size) noexcept nogil

cdef enum:
    OPTIONS = 8                     # bytes in front of most inputs
    MOST_CONTENT = 1 << 18          # of a compressed batch
    MOST_FILE = 1 << 20

ctypedef int (*Target)(const uint8_t* data, int64_t size) except -1


class Wrong(Exception):
    """What a target found: not an error of fastlog's."""


cdef int require(bint holds, str what) except -1:
    if not holds:
        raise Wrong(what)
    return 0


# --- inputs ------------------------------------------------------------------------------------------------------------

cdef struct Input:
    const uint8_t* at
    const uint8_t* end


cdef uint8_t take(Input* given) noexcept nogil:
    """The next byte, 0 behind the end."""
    if given.at == given.end:
        return 0
    given.at += 1
    return given.at[-1]


cdef int64_t take_many(Input* given, int bytes_) noexcept nogil:
    cdef int64_t value = 0
    cdef int i
    for i in range(bytes_):
        value = <int64_t>(<uint64_t>value << 8 | take(given))
    return value


cdef int64_t take_odd(Input* given) noexcept nogil:
    """A number: mostly small, sometimes at an edge, sometimes anything."""
    cdef uint8_t kind = take(given)
    if kind < 200:
        return kind & 15
    if kind < 210:
        return -<int64_t>(kind - 199)
    if kind < 230:
        return INT64_MAX - (kind - 210)
    if kind < 240:
        return (<int64_t>1 << 31) - 5 + (kind - 230)
    return take_many(given, 8)


cdef uint8_t* exact_copy(const uint8_t* data, int64_t size) except NULL:
    """A block of its own that ends with the last byte."""
    cdef uint8_t* copy = <uint8_t*>malloc(max(size, <int64_t>1))
    if copy == NULL:
        raise MemoryError()
    memcpy(copy, data, size)
    return copy


cdef void seal(uint8_t* data, int64_t size, bint lengths) noexcept nogil:
    """Give every batch the checksum of its bytes, so that what is behind the checksum is reached.

    ``lengths``: also give a batch whose length is impossible the rest of the bytes.
    """
    cdef int64_t at = 0, batch
    while size - at >= BATCH_HEADER_SIZE:
        batch = <int64_t>load_int32(data + at + BATCH_LENGTH_AT) + LOG_OVERHEAD
        if batch < BATCH_HEADER_SIZE or batch > size - at:
            if not lengths:
                return
            batch = size - at
            store_int32(data + at + BATCH_LENGTH_AT, <int32_t>(batch - LOG_OVERHEAD))
        store_uint32(data + at + CRC_AT, crc32c_extend(0, data + at + CRC_COVERS_FROM, batch - CRC_COVERS_FROM))
        at += batch


cdef bytes sealed_bytes(const uint8_t* data, int64_t size, uint8_t flags):
    cdef bytes content = PyBytes_FromStringAndSize(<const char*>data, size)
    if flags & SEAL:
        seal(<uint8_t*>PyBytes_AS_STRING(content), size, flags & LENGTHS)
    return content


cdef enum:
    # of the first option, wherever batches are read
    SEAL = 1
    LENGTHS = 2
    GAPS = 4
    SOME_EPOCH = 8
    # of the decoder
    ABORTED = 16
    WINDOW = 32
    LITTLE_CONTENT = 64
    AS_OBJECTS = 128
    # of the validator and of producers
    INTERNAL = 16
    KEYED = 32
    TIMED = 64


# --- files -------------------------------------------------------------------------------------------------------------

def path_of(name):
    """A file for the one input that is being looked at, in memory; who starts a fuzzer removes the folder."""
    return f"{os.environ[FOLDER]}/{name}"


cdef str put_file(str name, const uint8_t* data, int64_t size):
    cdef str path = path_of(name)
    cdef bytes encoded = path.encode()
    cdef FILE* file = fopen(encoded, b"wb")
    if file == NULL:
        raise OSError(f"cannot write {path}")
    cdef bint written = fwrite(data, 1, size, file) == <size_t>size
    fclose(file)
    if not written:
        raise OSError(f"cannot write {path}")
    return path


# --- batches read: what every reader stands on ---------------------------------------------------------------------------

cdef struct Walk:                   # batch by batch, as `decode_batches` documents itself
    int64_t position                # of the first batch that does not check out, or the end
    int64_t records                 # that are shown, in batches before it
    Problem problem


cdef struct Reading:
    int64_t start
    int64_t stop
    int64_t expected
    bint gaps
    int32_t epoch
    int64_t limit
    int64_t max_bytes
    int64_t most
    AbortedRange[2] aborted
    int64_t aborted_count


cdef bint is_hidden(const BatchHeader* header, const Reading* how) noexcept nogil:
    cdef int64_t i
    if header.count == 0 or header.attributes & CONTROL_BIT:
        return True
    if header.attributes & TRANSACTIONAL_BIT:
        for i in range(how.aborted_count):
            if (
                how.aborted[i].producer_id == header.producer_id
                and how.aborted[i].first_offset <= header.base_offset <= how.aborted[i].last_offset
            ):
                return True
    return False


cdef Walk walk(const uint8_t* bytes_, int64_t size, const Reading* how) except *:
    cdef Walk found
    cdef BatchHeader header
    cdef int64_t expected = how.expected
    found.position = found.records = 0
    found.problem = FINE
    while found.position < size:
        found.problem = parse_header(bytes_, found.position, size, &header)
        if found.problem == FINE:
            found.problem = check_order(&header, expected, how.gaps, how.epoch, how.limit)
        if found.problem == FINE and header.attributes & CONTROL_BIT and (header.attributes & CODEC_MASK or header.count > 1):
            found.problem = BAD_CONTROL
        if found.problem == FINE and not crc_matches(bytes_, &header):
            found.problem = BAD_CRC
        if found.problem == FINE and not is_hidden(&header, how):
            found.problem = check_records(bytes_, &header, how.most)
            if found.problem == FINE:
                found.records += header.count
        if found.problem != FINE:
            break
        expected = header.last_offset + 1
        found.position += header.size
    return found


cdef int touch(const BatchColumns* columns, const Reading* how) except -1:
    """Look at every byte that the columns name, and at what must hold of them."""
    cdef int64_t i, j, previous = -1, size = <int64_t>columns.bytes.size
    cdef const uint8_t* at
    cdef const uint8_t* end = columns.bytes.data + size
    cdef int32_t length = 0, side
    cdef const int32_t* positions
    cdef const int32_t* sizes
    for i in range(columns.count):
        require(columns.offsets[i] > previous, "offsets do not rise")
        require(how.start <= columns.offsets[i] < how.stop, "an offset that was not asked for")
        require(columns.timestamps[i] >= -1, "a timestamp below -1")
        previous = columns.offsets[i]
        for side in range(2):
            positions = columns.value_positions if side else columns.key_positions
            sizes = columns.value_sizes if side else columns.key_sizes
            if sizes == NULL or sizes[i] < 0:
                require(side == 0 or sizes != NULL, "no values")
                continue
            require(0 <= positions[i] and sizes[i] <= size - positions[i], "a key or value lies outside")
            look_at(columns.bytes.data + positions[i], sizes[i])
        if columns.header_counts != NULL:
            at = columns.bytes.data + columns.header_positions[i]
            for j in range(2 * columns.header_counts[i]):
                at = read_varint(at, end, &length)
                require(at != NULL and length >= -(j & 1) and length <= end - at, "a header lies outside")
                look_at(at, length)
                at += max(length, 0)
    return 0


cdef const uint8_t* read_number(const uint8_t* at, const uint8_t* end, int64_t* value) except NULL:
    """A varint, read as simply as can be: the decoder shall not be compared with itself."""
    cdef uint64_t z = 0
    cdef int shift = 0
    while True:
        require(at < end and shift < 70, "a number is cut off, or too long")
        z |= <uint64_t>(at[0] & 0x7F) << shift
        at += 1
        if at[-1] < 0x80:
            break
        shift += 7
    value[0] = <int64_t>(z >> 1) ^ -<int64_t>(z & 1)
    return at


cdef int compare_field(
    const uint8_t** cursor, const uint8_t* end, const uint8_t* base, const int32_t* positions, const int32_t* sizes, int64_t i
) except -1:
    """A key or a value; ``sizes`` is NULL for a column of nulls alone, or when nothing is asked."""
    cdef int64_t size = 0
    cursor[0] = read_number(cursor[0], end, &size)
    require(-1 <= size <= end - cursor[0], "a key or a value runs out of its record")
    if sizes == NULL:
        require(i < 0 or size == -1, "a key is missing")
    else:
        require(sizes[i] == size, "a key or a value has another size")
        require(size < 0 or positions[i] == cursor[0] - base, "a key or a value lies elsewhere")
    cursor[0] += max(size, <int64_t>0)
    return 0


cdef int compare_batch(const BatchHeader* header, const BatchColumns* columns, const Reading* how, int64_t* next_one) except -1:
    """Read the records of a plain batch a second time, and compare them with the columns from ``next_one`` on."""
    cdef const uint8_t* base = columns.bytes.data
    cdef const uint8_t* at = base + header.position + BATCH_HEADER_SIZE
    cdef const uint8_t* end = base + header.position + header.size
    cdef const uint8_t* stop
    cdef int64_t length = 0, time_ = 0, delta = 0, headers = 0, size = 0, i, j, k
    for k in range(header.count):
        at = read_number(at, end, &length)
        require(0 < length <= end - at, "a record runs out of its batch")
        stop = at + length
        require(at[0] == 0, "attributes of a record")
        at = read_number(at + 1, stop, &time_)
        at = read_number(at, stop, &delta)
        delta += header.base_offset
        i = next_one[0] if how.start <= delta < how.stop else -1
        if i >= 0:
            require(i < columns.count and columns.offsets[i] == delta, "a record is missing, or has another offset")
            time_ = header.max_timestamp if header.attributes & TIMESTAMP_TYPE_BIT else header.base_timestamp + time_
            require(columns.timestamps[i] == time_, "another timestamp")
        compare_field(&at, stop, base, columns.key_positions, columns.key_sizes if i >= 0 else NULL, i)
        compare_field(&at, stop, base, columns.value_positions, columns.value_sizes if i >= 0 else NULL, i)
        at = read_number(at, stop, &headers)
        require(headers >= 0, "a negative number of headers")
        if i >= 0 and columns.header_counts == NULL:
            require(headers == 0, "headers are missing")
        elif i >= 0:
            require(columns.header_counts[i] == headers, "another number of headers")
            require(headers == 0 or columns.header_positions[i] == at - base, "headers lie elsewhere")
        for j in range(2 * headers):
            at = read_number(at, stop, &size)
            require(-(j & 1) <= size <= stop - at, "a header runs out of its record")
            at += max(size, <int64_t>0)
        require(at == stop, "a record ends before or behind its end")
        next_one[0] += i >= 0
    require(at == end, "a batch ends before or behind its end")
    return 0


cdef int compare_run(
    Block* block, int64_t position, int64_t end, const BatchColumns* columns, const Reading* how
) except -1:
    """Read plain batches a second time; those that are compressed have their positions in another block."""
    cdef BatchHeader header
    cdef int64_t found = 0
    if columns.bytes != block:
        return 0
    while position < end:
        require(parse_header(block.data, position, end, &header) == FINE, "a batch that is none was read")
        if not is_hidden(&header, how):
            compare_batch(&header, columns, how, &found)
        position += header.size
    require(found == columns.count, "records that are in no batch")
    return 0


cdef int look_at_objects(RecordBatch batch) except -1:
    """The same batch as Python sees it, and through the Arrow interface."""
    cdef Column column
    cdef int64_t i
    cdef Span span
    batch.topic = "fuzz"
    records = list(batch)
    require(len(records) == len(batch), "records are missing")
    values, keys = batch.values.to_list(), batch.keys.to_list()
    for i in range(len(records)):
        record = records[i]
        require(record.value == values[i] and record.key == keys[i], "a column differs from its records")
        require(list(record.headers) == list(batch.headers[i]), "headers differ")
        record.fields()
    try:
        offered = OneColumn(*batch.__arrow_c_array__(), VALUE_COLUMN)
    except Error:
        return 0                    # Arrow takes only names of headers that are UTF-8
    column = make_column(offered, "values")
    require(column.data.length == len(batch), "Arrow has another number of values")
    for i in range(column.data.length):
        span = span_at(&column.data, i)
        if values[i] is None:
            require(span.data == NULL, "a null that is none in Arrow")
        else:
            require(span.data != NULL and (<const char*>span.data)[:span.size] == values[i], "a value differs in Arrow")
    return 0


cdef int decoder(const uint8_t* data, int64_t size) except -1:
    """``decode_batches``, ``check_records`` and ``find_timestamp`` on the same bytes: they have to agree."""
    cdef Input given
    cdef Reading how
    cdef uint8_t flags, sizes
    cdef uint8_t* bytes_
    cdef Block* block
    if size < OPTIONS:
        return 0
    given.at, given.end = data, data + OPTIONS
    memset(&how, 0, sizeof(how))
    flags = take(&given)
    sizes = take(&given)
    how.max_bytes = <int64_t>1 << (sizes & 15)
    how.limit = <int64_t>4 << (sizes >> 5) if sizes & 16 else NO_LIMIT
    how.stop = INT64_MAX
    how.most = 300 if flags & LITTLE_CONTENT else MOST_CONTENT
    how.gaps = flags & GAPS
    how.epoch = -1 if flags & SOME_EPOCH else 0
    how.aborted[0].producer_id = take(&given)
    how.aborted[0].first_offset = take(&given)
    how.aborted[0].last_offset = how.aborted[0].first_offset + take(&given)
    how.aborted[1].producer_id = how.aborted[0].producer_id ^ 1
    how.aborted[1].first_offset = how.aborted[0].first_offset + 2
    how.aborted[1].last_offset = how.aborted[0].last_offset + 9
    how.aborted_count = 2 if flags & ABORTED else 0
    if flags & WINDOW:
        how.start = take(&given)
        how.stop = how.start + take(&given)
    size -= OPTIONS
    bytes_ = exact_copy(data + OPTIONS, size)
    if flags & SEAL:
        seal(bytes_, size, flags & LENGTHS)
    block = <Block*>calloc(1, sizeof(Block))        # released by the last batch that points into it
    block.data, block.size, block.references = bytes_, size, 1
    try:
        read_all(block, size, &how, flags)
        look_for_times(bytes_, size, &how, take(&given))
    finally:
        require(block.references == 1, "a batch still holds the block")
        block_release(block)
        free(bytes_)
    return 0


cdef int read_all(Block* block, int64_t size, const Reading* how, uint8_t flags) except -1:
    cdef Walk expected = walk(block.data, size, how)
    cdef BatchColumns columns
    cdef BatchHeader header
    cdef RecordBatch batch
    cdef Problem problem = FINE
    cdef int64_t position = 0, offset = how.expected, next_offset = 0, next_position = 0, records = 0
    while position < size:
        problem = decode_batches(
            block, position, size, how.start, how.stop, offset, how.gaps, how.epoch, how.limit, how.max_bytes, how.most,
            how.aborted, how.aborted_count, &columns, &header, &next_offset, &next_position,
        )
        if problem != FINE:
            require(columns.count == 0 and columns.bytes == NULL and columns.arrays == NULL, "a problem, and columns")
            require(problem != NO_MEMORY, "out of memory")
            require(header.position == expected.position, "the problem lies elsewhere")
            break
        require(position < next_position <= size, "no progress, or too much")
        require(next_offset > offset or how.gaps, "offsets do not go on")
        records += columns.count
        if columns.count:
            batch = None
            if flags & AS_OBJECTS:
                batch = RecordBatch.__new__(RecordBatch)
                batch.columns = columns
                batch.base_offset, batch.next_offset = offset, next_offset
            try:
                touch(&columns, how)
                compare_run(block, position, next_position, &columns, how)
                if batch is not None:
                    look_at_objects(batch)
            finally:
                if batch is None:
                    block_release(columns.arrays)
                    block_release(columns.bytes)
        position, offset = next_position, next_offset
    require((problem == FINE) == (expected.problem == FINE), "decoder and check_records disagree")
    require(flags & WINDOW or records == expected.records, "decoder and check_records count differently")
    return 0


cdef int look_for_times(const uint8_t* bytes_, int64_t size, const Reading* how, uint8_t delay) except -1:
    """Every batch that checks out has to find what it says that it has."""
    cdef BatchHeader header
    cdef int64_t at = 0, found = 0, time_
    cdef Problem problem
    while at < size and parse_header(bytes_, at, size, &header) == FINE:
        at += header.size
        if not crc_matches(bytes_, &header):
            continue
        time_ = header.base_timestamp + delay if header.base_timestamp < INT64_MAX - 255 else header.base_timestamp
        problem = find_timestamp(bytes_, &header, how.most, time_, how.start, &found)
        if problem != FINE:
            continue
        require(found == -1 or (header.base_offset <= found <= header.last_offset and found >= how.start), "a time lies outside")
        require(found == -1 or header.max_timestamp >= time_, "a time above the largest")
    return 0



# --- encoded batches from outside ------------------------------------------------------------------------------------------

cdef Walk walk_strictly(bytes content, int64_t expected, int32_t epoch) except *:
    """What a reader makes of batches that were taken."""
    cdef Reading how
    memset(&how, 0, sizeof(how))
    how.expected, how.epoch, how.limit, how.most, how.stop = expected, epoch, NO_LIMIT, MOST_CONTENT, INT64_MAX
    return walk(<const uint8_t*>content, len(content), &how)


cdef int validator(const uint8_t* data, int64_t size) except -1:
    """``append_batch``: what is taken has to be read back, all of it."""
    cdef Walk found
    cdef uint8_t flags
    if size < OPTIONS:
        return 0
    flags = data[0]
    plan = validate_batches(
        sealed_bytes(data + OPTIONS, size - OPTIONS, flags), 1 << 12, 1 << 14,
        latest_timestamp=(<int64_t>1 << 41) + data[1] if flags & TIMED else None,
        internal=bool(flags & INTERNAL), needs_keys=bool(flags & KEYED), max_decompressed_bytes=MOST_CONTENT,
    )
    batches, offsets, bytes_, largest = plan.shape()
    stamped = plan.stamped(1000, 3)
    require(len(stamped) == bytes_ == size - OPTIONS and batches > 0, "another size")
    found = walk_strictly(stamped, 1000, 3)
    require(found.problem == FINE, "what was taken cannot be read")
    require(flags & INTERNAL or found.records == offsets, "records that have no offset, or offsets without a record")
    require(largest >= -1, "a timestamp below -1")
    return 0


cdef int producers(const uint8_t* data, int64_t size) except -1:
    """Batches of producers: judged, noticed, written to a snapshot and read from it."""
    cdef BatchHeader header
    cdef int64_t at = 0
    if size < OPTIONS:
        return 0
    content = sealed_bytes(data + OPTIONS, size - OPTIONS, data[0] | SEAL)
    cdef const uint8_t* bytes_ = content
    size -= OPTIONS
    states = ProducerStates()
    while at < size and parse_header(bytes_, at, size, &header) == FINE:
        batch, at = content[at:at + header.size], at + header.size
        try:
            plan = validate_batches(batch, 1 << 20, 1 << 20, internal=True, max_decompressed_bytes=MOST_CONTENT)
            before = states.end_offset
            stamped = plan.stamped(before, 0)
            duplicate = states.check_append(stamped, verified=not data[1] & 1)
        except Error:
            continue
        if duplicate is not None:
            require(0 <= duplicate < before, "a duplicate of what is not there")
            continue
        states.append(stamped, now=-1 if data[1] & 2 else 1 << 41)
        require(states.end_offset == before + plan.shape()[1], "the end is elsewhere")
        require(0 <= states.last_stable_offset(states.end_offset) <= states.end_offset, "the last stable offset lies outside")
    check_snapshot(states)
    return 0


cdef int check_snapshot(object states) except -1:
    """A snapshot says of every producer what is known of it, but for batches before its last one."""
    again = ProducerStates()
    content = states.snapshot()
    require(len(set(states.producer_ids())) == len(states), "a producer twice")
    problem = again.load(content, states.end_offset)
    require(problem is None, f"an own snapshot is refused: {problem}")
    require(again.snapshot() == content, "a snapshot of a snapshot differs")
    require(
        sorted(again.open_transactions_by_offset) == sorted(states.open_transactions_by_offset), "open transactions differ"
    )
    for producer_id in states.producer_ids():
        known, read = states.state(producer_id), again.state(producer_id)
        for name in ("epoch", "coordinator_epoch", "transaction_first_offset"):
            require(known[name] == read[name], f"{name} of a producer differs")
        if known["batches"]:
            require(known["batches"][-1][1::2] == read["batches"][-1][1::2], "the last batch of a producer differs")
    return 0


cdef int snapshot(const uint8_t* data, int64_t size) except -1:
    """A ``.snapshot`` file."""
    cdef uint8_t* inside
    cdef int64_t end
    if size < OPTIONS:
        return 0
    end = data[1] << 8 | data[2] if data[0] & LENGTHS else load_int64(data) & INT64_MAX
    size -= OPTIONS
    content = PyBytes_FromStringAndSize(<const char*>data + OPTIONS, size)
    inside = <uint8_t*>PyBytes_AS_STRING(content)
    if data[0] & SEAL and size >= SNAPSHOT_HEADER_SIZE:
        store_uint32(inside + SNAPSHOT_CRC_AT, crc32c_extend(0, inside + SNAPSHOT_CRC_COVERS_FROM, size - SNAPSHOT_CRC_COVERS_FROM))
    states = ProducerStates()
    problem = states.load(content, end)
    if problem is not None:
        require(len(states) == 0 and states.end_offset == 0, "refused, and changed")
        return 0
    require(states.end_offset == end, "another end")
    check_snapshot(states)
    states.expire(1 << 41, 1000)
    check_snapshot(states)
    return 0


cdef int markers(const uint8_t* data, int64_t size) except -1:
    """A control batch."""
    if size < OPTIONS:
        return 0
    told = read_marker(sealed_bytes(data + OPTIONS, size - OPTIONS, data[0]))
    require(told is None or isinstance(told[0], bool), "neither commit nor abort")
    return 0


# --- codecs ----------------------------------------------------------------------------------------------------------------

cdef int codecs(const uint8_t* data, int64_t size) except -1:
    """The framings: a stream never holds more than was promised, and what was compressed comes back."""
    cdef int codec
    cdef int64_t bound, room, made
    cdef uint8_t* stream
    cdef uint8_t* content = NULL
    if size < 1:
        return 0
    codec = 1 + (data[0] & 3)
    size -= 1
    stream = exact_copy(data + 1, size)
    try:
        if data[0] & 4:
            room = compressed_room(codec, size)
            content = fenced(room)
            made = compress(codec, stream, size, content, room)
            require(0 < made <= room, "more than there was room for")
            require_fence(content, room)
            return comes_back(codec, content, made, stream, size)
        bound = content_bound(codec, stream, size)
        if bound == BROKEN:
            return 0
        require(0 <= bound <= size * MOST_RATIOS[codec], "a bound that no stream of this size can reach")
        room = min(bound, <int64_t>MOST_CONTENT)
        if data[0] & 8:
            room = room * (data[0] >> 4) // 16      # less than it may want
        content = fenced(room)
        made = decompress(codec, stream, size, content, room)
        require(made <= room, "more than there was room for")
        require_fence(content, room)
        if made < 0 or is_bound_exceeded(codec):
            return 0
        comes_back(codec, stream, size, content, made)
    finally:
        free(stream)
        free(content)
    return 0


cdef enum:
    FENCE = 64                      # bytes behind what a codec may write: it is not instrumented itself

# content bytes that one byte of a stream can stand for: gzip, snappy, lz4, zstd
cdef int64_t* MOST_RATIOS = [0, 1032, 22, 255, 1 << 17]


cdef uint8_t* fenced(int64_t room) except NULL:
    cdef uint8_t* content = <uint8_t*>malloc(room + FENCE)
    require(content != NULL, "out of memory")
    memset(content + room, 0xA5, FENCE)
    return content


cdef int require_fence(const uint8_t* content, int64_t room) except -1:
    cdef int i
    for i in range(FENCE):
        require(content[room + i] == 0xA5, "written beyond the room")
    return 0


cdef int comes_back(int codec, const uint8_t* stream, int64_t size, const uint8_t* expected, int64_t length) except -1:
    """A stream has this content, also where there is more room than it needs."""
    cdef int64_t bound = content_bound(codec, stream, size)
    cdef uint8_t* content
    require(bound >= length or is_bound_exceeded(codec), "more content than its bound")
    content = fenced(length + 16)
    try:
        require(decompress(codec, stream, size, content, length + 16) == length, "another length the second time")
        require_fence(content, length + 16)
        require((<const char*>content)[:length] == (<const char*>expected)[:length], "other bytes the second time")
    finally:
        free(content)
    return 0


# --- files beside a segment ------------------------------------------------------------------------------------------------

cdef int txnindex(const uint8_t* data, int64_t size) except -1:
    """A ``.txnindex``: only what no writer writes is refused, and what is taken has an order."""
    cdef int64_t first, end
    if size < OPTIONS:
        return 0
    first, end = data[0], <int64_t>1 << (data[1] & 63 if data[1] & 63 < 63 else 62)
    content = PyBytes_FromStringAndSize(<const char*>data + OPTIONS, size - OPTIONS)
    entries = unpack_entries(content)
    ranges = aborted_ranges([content, content[TRANSACTION_ENTRY_SIZE:]], first, end)
    require(ranges == sorted(ranges, key=first_of), "ranges that do not rise")
    if check_entries(content, first, end) is not None:
        return 0
    require(pack_entries(entries) == content, "entries differ when they are written again")
    lasts = [last for _, _, last, _ in entries]
    require(lasts == sorted(set(lasts)), "entries that do not rise")
    wanted = {entry[:3] for entry in entries if entry[2] >= first}
    require(set(aborted_ranges([content], first, end)) <= wanted, "a range that no entry has")
    return 0


def first_of(found):
    return found[1]


PRISTINE = {}       # the segment that hostile indexes stand beside: made once


def use_pristine(content):
    """Look things up in this segment: whole batches from offset 0, as the engine writes them."""
    PRISTINE["content"] = content
    PRISTINE["headers"] = headers_of(content)
    PRISTINE["path"] = path_of("00000000000000000000.log")
    with open(PRISTINE["path"], "wb") as file:
        file.write(content)


def headers_of(content):
    """(position, base offset, last offset) of each batch."""
    cdef BatchHeader header
    cdef const uint8_t* bytes_ = content
    cdef int64_t at = 0, size = len(content)
    found = []
    while at < size:
        require(parse_header(bytes_, at, size, &header) == FINE, "the pristine segment is none")
        found.append((at, header.base_offset, header.last_offset))
        at += header.size
    return found


cdef int indexes(const uint8_t* data, int64_t size) except -1:
    """Offset and time index that lie, beside a segment that does not: a look-up is right or slow, never wrong."""
    cdef Segment segment
    cdef Place place
    cdef int64_t cut, end, offset, found
    if size < OPTIONS:
        return 0
    path = PRISTINE["path"]
    content = PRISTINE["content"]
    end = len(content)
    cut = min((<int64_t>data[1] << 8 | data[2]) * INDEX_ENTRY_SIZE, size - OPTIONS) if data[0] & LENGTHS else (size - OPTIONS) // 2
    put_file("00000000000000000000.index", data + OPTIONS, cut)
    put_file("00000000000000000000.timeindex", data + OPTIONS + cut, size - OPTIONS - cut)
    segment = Segment(
        path, end, segment_bytes=1 << 16, index_bytes=1 << 12, interval=data[3], epoch=0, gaps=bool(data[0] & GAPS),
        maps=bool(data[0] & SEAL), stores=False,
    )
    segment.is_trusted = True
    for position, base, last in PRISTINE["headers"]:
        for offset in (base, last):
            require(segment.locate(offset, end, &place) == 1, "an offset is not found")
            require(place.position == position and place.expected_offset == base, "another batch is found")
    require(segment.locate(PRISTINE["headers"][-1][2] + 1, end, &place) == 0, "an offset behind the last one is found")
    require(segment.end_of_closed() == PRISTINE["headers"][-1][2] + 1, "another end")
    found = segment.find_time(load_int64(data) & INT64_MAX, data[7], end)
    require(found == -1 or data[7] <= found < segment.end_of_closed(), "a time outside of the segment")
    segment.largest_timestamp()
    for name in ("index", "timeindex"):
        try:
            scan_index(path_of(f"00000000000000000000.{name}"))
        except Error:
            pass
    compare_indexes(
        path, end, PyBytes_FromStringAndSize(<const char*>data + OPTIONS, cut),
        PyBytes_FromStringAndSize(<const char*>data + OPTIONS + cut, size - OPTIONS - cut), 0, bool(data[0] & 16),
    )
    return 0


cdef int segments(const uint8_t* data, int64_t size) except -1:
    """A ``.log`` file: scanned by recovery, by ``scan_segment``, by producers, by compaction; all of it accounted for."""
    cdef int64_t end = size - OPTIONS, at = 0
    if size < OPTIONS:
        return 0
    content = sealed_bytes(data + OPTIONS, end, data[0])
    path = put_file("00000000000000000000.log", <const uint8_t*>content, end)
    gaps, deep = bool(data[0] & GAPS), bool(data[0] & 16)
    result = scan(path, 0, end, 0, gaps, -1 if data[0] & SOME_EPOCH else 0, deep, max_decompressed_bytes=MOST_CONTENT)
    require(0 <= result.position <= end and (result.problem is None) == (result.position == end), "a scan that ends elsewhere")
    require(result.resumes_at == -1 or result.position < result.resumes_at < end, "a scan that goes on elsewhere")
    valid = 0
    for info in scan_segment(path, max_decompressed_bytes=MOST_CONTENT):
        require(info.position == at and info.size > 0, "a stretch that is not accounted for")
        at += info.size
        valid += info.is_valid
    require(at == end, "the end is not accounted for")
    require(not deep or valid >= result.batches, "scan_segment finds less than scan")
    states = ProducerStates()
    states.replay(path, 0, end, INT64_MAX, -1, True)
    check_replayed(states)
    if data[0] & 32:
        compact(path, end, data[1])
    return 0


cdef int check_replayed(object states) except -1:
    """What was read of a log that may lie holds together all the same."""
    entries = states.take_aborted()
    require(len(entries) % TRANSACTION_ENTRY_SIZE == 0, "half an entry")
    for first, _ in states.open_transactions_by_offset:
        require(first >= 0, "a transaction before the log")
    states.snapshot()
    return 0


cdef int compact(str path, int64_t size, uint8_t options) except -1:
    """What compaction writes is a segment."""
    target = path_of("00000000000000000000.log.cleaned")
    work = CleaningRound(
        now=1 << 41 if options & 1 else 0, horizon=1 << 42, upper_bound=INT64_MAX, memory=1 << 16,
        max_decompressed_bytes=MOST_CONTENT,
    )
    if work.map_segment(path, size, 0, 1):
        return 0
    rewritten = work.rewrite(
        [(path, size)], target, base_offset=0, index_bytes=1 << 12, interval=64, keeps_times=bool(options & 2),
    )
    result = scan(target, 0, rewritten.size, 0, True, -1, True, max_decompressed_bytes=MOST_CONTENT)
    require(result.problem is None, f"what compaction wrote is no segment: {result.problem}")
    require(rewritten.records_kept <= rewritten.records_read, "more records than there were")
    require(len(rewritten.offset_index) % INDEX_ENTRY_SIZE == 0, "half an index entry")
    require(len(rewritten.time_index) % TIME_INDEX_ENTRY_SIZE == 0, "half a time index entry")
    return 0


# --- pages that processes share ----------------------------------------------------------------------------------------------

cdef int pages(const uint8_t* data, int64_t size) except -1:
    """A page of words with its document, and a file of bells."""
    cdef int64_t words
    if size < OPTIONS:
        return 0
    path = put_file("page", data + OPTIONS, size - OPTIONS)
    if data[0] & 1:
        bells = Bells.open(path)
        bells.ring(data[1] & 63)
        bells.close()
        return 0
    page = SharedPage.open(path, bool(data[0] & 2))
    words = page.words
    require(0 <= words and 0 <= page.capacity, "negative sizes")
    page.load_many(0, words)
    version, document = page.read()
    require(len(document) <= page.capacity and version == page.version, "a document that does not belong there")
    if data[0] & 2:
        if words:
            page.add(words - 1, 1)
            page.exchange(0, 7)
        published = page.publish(document[::-1])
        require(page.read() == (published, document[::-1]), "another document than was published")
        page.retire()
        require(page.replaced, "retired, and still in use")
    page.close()
    return 0


# --- Arrow arrays whose producers lie ----------------------------------------------------------------------------------------
#
# Only what the interface lets its consumer see may be a lie: it names no size of a buffer. So buffers are as large as
# lengths and offsets claim, as long as these can be real at all; else there is no memory behind them.

cdef enum:
    MOST_ENTRIES = 64
    MOST_VARIADIC = 4

cdef int64_t given_out = 0
cdef int64_t taken_back = 0

cdef struct Piece:
    Piece* next
    void* data


cdef struct Owner:
    Piece* pieces


cdef void* keep(Owner* owner, int64_t size) except NULL:
    """Zeroed memory that goes when its array, or schema, is released."""
    cdef Piece* piece = <Piece*>malloc(sizeof(Piece))
    cdef void* memory = calloc(1, max(size, <int64_t>1))
    if piece == NULL or memory == NULL:
        abort()
    piece.data, piece.next = memory, owner.pieces
    owner.pieces = piece
    return memory


cdef void drop(Owner* owner) noexcept nogil:
    cdef Piece* piece = owner.pieces
    cdef Piece* next_one
    while piece != NULL:
        next_one = piece.next
        free(piece.data)
        free(piece)
        piece = next_one
    free(owner)


cdef Owner* new_owner() except NULL:
    cdef Owner* owner = <Owner*>calloc(1, sizeof(Owner))
    if owner == NULL:
        abort()
    return owner


cdef void release_array(ArrowArray* array) noexcept nogil:
    global taken_back
    drop(<Owner*>array.private_data)
    array.release = NULL
    taken_back += 1


cdef void release_schema(ArrowSchema* schema) noexcept nogil:
    global taken_back
    drop(<Owner*>schema.private_data)
    schema.release = NULL
    taken_back += 1


cdef const char** FORMATS = [
    b"z", b"u", b"Z", b"U", b"vz", b"vu", b"w:3", b"n", b"l", b"tss:", b"tsm:", b"tsu:UTC", b"tsn:", b"w:0", b"+l", b"i",
]


cdef int fill_schema(ArrowSchema* schema, Input* given, bytes format_, bint is_struct) except -1:
    cdef Owner* owner = new_owner()
    cdef ArrowSchema* child
    cdef int64_t i
    cdef uint8_t lies = take(given)
    global given_out
    memset(schema, 0, sizeof(ArrowSchema))
    schema.private_data = owner
    schema.release = release_schema
    given_out += 1
    schema.format = keep_text(owner, b"+s" if is_struct else format_)
    schema.name = keep_text(owner, b"name") if lies & 1 else NULL
    if is_struct:
        schema.n_children = lies >> 3 & 3 if lies & 6 == 6 else 1
        schema.children = <ArrowSchema**>keep(owner, MOST_VARIADIC * sizeof(ArrowSchema*))
        for i in range(schema.n_children):
            child = <ArrowSchema*>keep(owner, sizeof(ArrowSchema))
            child.format = keep_text(owner, format_)
            child.name = schema.name
            if lies & 0xE0 == 0xE0:
                child.format = NULL
            schema.children[i] = child
        if lies & 0xE0 == 0xC0:
            schema.children[0] = NULL
        elif lies & 0xE0 == 0xA0:
            schema.children = NULL
        elif lies & 0xE0 == 0x80 and schema.n_children:
            schema.children[0].dictionary = schema.children[0]
    elif lies & 0xE0 == 0xE0:
        schema.format = NULL
    elif lies & 0xE0 == 0x80:
        schema.dictionary = schema
    return 0


cdef const char* keep_text(Owner* owner, bytes text) except NULL:
    cdef char* memory = <char*>keep(owner, len(text) + 1)
    memcpy(memory, <const char*>text, len(text))
    return memory


cdef int64_t reach_of(const ArrowArray* array) noexcept nogil:
    """How many entries its buffers need to have; -1 when its numbers can be no array's."""
    if array.length < 0 or array.offset < 0 or array.length > INT64_MAX - array.offset - 1:
        return -1
    return array.length + array.offset


cdef int fill_array(ArrowArray* array, Owner* owner, Input* given, bytes format_) except -1:
    """One array without children, its buffers of the size that its numbers claim."""
    cdef uint8_t lies = take(given)
    cdef int64_t i, entries, width, most = 0, right = 3
    cdef const void** buffers
    cdef int64_t* sizes
    cdef bint is_views = format_ in (b"vz", b"vu"), is_wide = format_ in (b"Z", b"U"), is_narrow = format_ in (b"z", b"u")
    memset(array, 0, sizeof(ArrowArray))
    array.length, array.offset = take_odd(given), take_odd(given)
    entries = reach_of(array)
    if entries > MOST_ENTRIES and format_ != b"n":      # nulls need no memory
        array.length &= MOST_ENTRIES // 2 - 1
        array.offset &= MOST_ENTRIES // 2 - 1
        entries = reach_of(array)
    entries = max(entries, <int64_t>0) if format_ != b"n" else 0
    array.null_count = take_odd(given) if lies & 1 else -1 if lies & 2 else 0
    width = 8
    if format_.startswith(b"w:"):
        width, right = (int(format_[2:]) if format_[2:].isdigit() and len(format_) < 5 else 1), 2
    elif not (is_views or is_wide or is_narrow):
        right = 2
    if is_views:
        right += take(given) % MOST_VARIADIC
    array.n_buffers = take_odd(given) if lies & 4 else right
    if array.n_buffers > 16:
        array.n_buffers &= 15
    buffers = <const void**>keep(owner, max(array.n_buffers, <int64_t>4) * sizeof(void*))
    array.buffers = NULL if lies & 8 and lies & 16 else buffers
    array.n_children = take_odd(given) if lies & 32 else 0
    if lies & 64 and lies & 32:
        array.dictionary = array
    if array.n_buffers < 1:
        return 0
    buffers[0] = fill(keep(owner, entries // 8 + 1), entries // 8 + 1, given)
    if array.n_buffers < 2:
        return 0
    if is_views:
        sizes = <int64_t*>keep(owner, max(array.n_buffers - 3, <int64_t>1) * sizeof(int64_t))
        for i in range(2, array.n_buffers - 1):
            sizes[i - 2] = take(given) & 31
            buffers[i] = keep(owner, sizes[i - 2])
            if lies & 128 and i == 2:
                buffers[i] = NULL
        buffers[1] = fill_views(keep(owner, entries * 16), entries, array.n_buffers - 3, sizes, given)
        if array.n_buffers > 2:
            buffers[array.n_buffers - 1] = NULL if lies & 128 and lies & 16 else sizes
    elif is_wide or is_narrow:
        buffers[1] = fill_offsets(keep(owner, (entries + 1) * (8 if is_wide else 4)), entries, is_wide, &most, given)
        if array.n_buffers > 2 and not lies & 128:
            buffers[2] = keep(owner, most)
    else:
        buffers[1] = fill(keep(owner, entries * width), entries * width, given)
    if lies & 144 == 144 and not is_views:
        buffers[1] = NULL
    if not lies & 3:
        buffers[0] = NULL
    elif array.null_count != 0 and take(given) & 1:
        buffers[0] = NULL
    return 0


cdef void* fill(void* memory, int64_t size, Input* given) noexcept nogil:
    cdef int64_t i
    for i in range(size):
        (<uint8_t*>memory)[i] = take(given)
    return memory


cdef enum:
    MOST_REAL = 1 << 16             # bytes that offsets can stand for


cdef void* fill_offsets(void* memory, int64_t entries, bint is_wide, int64_t* most, Input* given) noexcept nogil:
    """Mostly rising. ``most`` is what the buffer behind them has to hold: whatever any two neighbours that rise say, for
    a struct around them may show only these."""
    cdef int64_t i, value = take(given) & 3, previous = 0
    cdef bint is_real = True
    most[0] = 0
    for i in range(entries + 1):
        if i:
            previous = value
            value = <int64_t>(<uint64_t>value + (take(given) & 7)) if take(given) < 250 else take_odd(given)
            if not is_wide:
                value = <int32_t>value
            if 0 <= previous <= value and value > MOST_REAL:
                is_real = False
        if value <= MOST_REAL:
            most[0] = max(most[0], value)
        put_offset(memory, i, is_wide, value)
    if not is_real:                 # nobody has the memory for them
        for i in range(entries + 1):
            put_offset(memory, i, is_wide, i)
        most[0] = entries
    return memory


cdef inline void put_offset(void* memory, int64_t i, bint is_wide, int64_t value) noexcept nogil:
    if is_wide:
        (<int64_t*>memory)[i] = value
    else:
        (<int32_t*>memory)[i] = <int32_t>value


cdef void* fill_views(void* memory, int64_t entries, int64_t variadic, const int64_t* sizes, Input* given) noexcept nogil:
    cdef int32_t* view
    cdef int64_t i
    for i in range(entries):
        view = <int32_t*>memory + 4 * i
        view[0] = <int32_t>(take(given) & 31 if take(given) < 240 else take_odd(given))
        if 0 <= view[0] <= 12:
            fill(view + 1, 12, given)
        else:
            view[2] = <int32_t>(take(given) & 3 if take(given) < 240 else take_odd(given))
            view[3] = <int32_t>(take(given) & 15 if take(given) < 240 else take_odd(given))
    return memory


cdef int fill_any(ArrowArray* array, Input* given, bytes format_, bint is_struct) except -1:
    cdef Owner* owner = new_owner()
    cdef ArrowArray* child
    cdef uint8_t lies
    global given_out
    given_out += 1
    if not is_struct:
        fill_array(array, owner, given, format_)
    else:
        memset(array, 0, sizeof(ArrowArray))
        lies = take(given)
        child = <ArrowArray*>keep(owner, sizeof(ArrowArray))
        fill_array(child, owner, given, format_)
        array.length = take_odd(given) if lies & 1 else child.length
        array.offset = take_odd(given) if lies & 2 else 0
        array.null_count = take_odd(given) if lies & 4 else 0
        array.n_buffers = 1
        array.buffers = <const void**>keep(owner, sizeof(void*))
        if lies & 8:
            array.buffers[0] = keep(owner, 64)
        array.n_children = take_odd(given) if lies & 16 else 1
        array.children = <ArrowArray**>keep(owner, sizeof(ArrowArray*))
        array.children[0] = NULL if lies & 96 == 96 else child
        if lies & 160 == 160:
            array.children = NULL
    array.private_data = owner
    array.release = release_array
    return 0


cdef class Offer:
    """An array, or a stream of some, offered as any library offers them."""
    cdef ArrowSchema schema
    cdef list chunks                # of ArrowChunkOffer

    def __dealloc__(self):
        if self.schema.release != NULL:
            self.schema.release(&self.schema)

    cdef ArrowChunkOffer next_chunk(self):
        return self.chunks.pop(0) if self.chunks else None


cdef class ArrowChunkOffer:
    cdef ArrowArray array

    def __dealloc__(self):
        if self.array.release != NULL:
            self.array.release(&self.array)


cdef class ArrayOffer(Offer):
    def __arrow_c_array__(self, requested_schema=None):
        cdef ArrowChunkOffer chunk = self.chunks[0]
        return PyCapsule_New(&self.schema, "arrow_schema", NULL), PyCapsule_New(&chunk.array, "arrow_array", NULL)


cdef class StreamOffer(Offer):
    cdef ArrowArrayStream stream
    cdef int fails_at               # which call fails; -1 = none

    def __arrow_c_stream__(self, requested_schema=None):
        global given_out
        given_out += 1
        self.stream.get_schema = stream_schema
        self.stream.get_next = stream_next
        self.stream.get_last_error = stream_error
        self.stream.release = release_stream
        self.stream.private_data = <void*>self
        return PyCapsule_New(&self.stream, "arrow_array_stream", NULL)


cdef int stream_schema(ArrowArrayStream* stream, ArrowSchema* out) noexcept nogil:
    with gil:
        return give_schema(<StreamOffer>stream.private_data, out)


cdef int give_schema(StreamOffer offer, ArrowSchema* out):
    if offer.fails_at == 0:
        return 5
    memcpy(out, &offer.schema, sizeof(ArrowSchema))
    offer.schema.release = NULL
    return 0


cdef int stream_next(ArrowArrayStream* stream, ArrowArray* out) noexcept nogil:
    with gil:
        return give_next(<StreamOffer>stream.private_data, out)


cdef int give_next(StreamOffer offer, ArrowArray* out):
    cdef ArrowChunkOffer chunk
    offer.fails_at -= 1
    if offer.fails_at == 0:
        memset(out, 0xFF, sizeof(ArrowArray))
        return 12
    chunk = offer.next_chunk()
    if chunk is None:
        out.release = NULL
        return 0
    memcpy(out, &chunk.array, sizeof(ArrowArray))
    chunk.array.release = NULL
    return 0


cdef const char* stream_error(ArrowArrayStream* stream) noexcept nogil:
    return NULL


cdef void release_stream(ArrowArrayStream* stream) noexcept nogil:
    global taken_back
    stream.release = NULL
    taken_back += 1


cdef int arrow(const uint8_t* data, int64_t size) except -1:
    """Arrow import: refused, or every entry can be read; and everything is released once."""
    cdef Input given
    global given_out, taken_back
    given.at, given.end = data, data + size
    given_out = taken_back = 0
    try:
        import_offer(&given)
    finally:
        require(given_out == taken_back, "something was not released, or twice")
    return 0


cdef int import_offer(Input* given) except -1:
    cdef uint8_t how = take(given), kind = take(given)
    cdef bint is_struct = how & 1
    cdef ArrowChunkOffer chunk
    cdef StreamOffer stream
    cdef ArrayOffer array
    cdef Offer offer
    cdef Column column
    cdef Timestamps times
    cdef int64_t i
    cdef int n
    cdef Span span
    format_ = FORMATS[kind & 15]
    if kind & 0xE0 == 0xE0:
        format_ = b"w:" + bytes([take(given) for _ in range(kind & 31)]).partition(b"\0")[0]
        if format_[2:].isdigit():
            format_ = format_[:4]       # nobody has the memory for wider ones
    if how & 2:
        stream = StreamOffer()
        stream.fails_at = (how >> 2 & 3) - 1
        offer = stream
    else:
        array = ArrayOffer()
        offer = array
    offer.chunks = []
    fill_schema(&offer.schema, given, format_, is_struct)
    for n in range(1 + (how >> 4 & 3) if how & 2 else 1):
        chunk = ArrowChunkOffer()
        fill_any(&chunk.array, given, format_, is_struct if not how & 128 else not is_struct)
        offer.chunks.append(chunk)
    if how & 64:
        length = take(given) & MOST_ENTRIES - 1
        times = make_timestamps(offer, length, 5)
        for i in range(times.length):
            require(times.values == NULL or times.values[i] >= -1, "a time below -1")
        return 0
    column = make_column(offer, "values")
    if column.data.kind != COLUMN_NULLS:
        for i in range(column.data.length):
            span = span_at(&column.data, i)
            require(span.size >= 0 if span.data != NULL else span.size == -1, "a size that does not fit")
            look_at(span.data, span.size)
    return 0


cdef class OneColumn:
    """One column of a struct that somebody else holds."""
    cdef ArrowSchema schema
    cdef ArrowArray array
    cdef ArrowSchema* schema_child
    cdef ArrowArray* array_child
    cdef object held

    def __init__(self, schema_capsule, array_capsule, name):
        cdef ArrowSchema* schema = <ArrowSchema*>PyCapsule_GetPointer(schema_capsule, "arrow_schema")
        cdef ArrowArray* array = <ArrowArray*>PyCapsule_GetPointer(array_capsule, "arrow_array")
        cdef int64_t i
        self.held = schema_capsule, array_capsule
        memcpy(&self.schema, schema, sizeof(ArrowSchema))
        memcpy(&self.array, array, sizeof(ArrowArray))
        for i in range(schema.n_children):
            if <bytes>schema.children[i].name == name:
                self.schema_child, self.array_child = schema.children[i], array.children[i]
        require(self.array_child != NULL, "there is no such column")
        self.schema.n_children = self.array.n_children = 1
        self.schema.children, self.array.children = &self.schema_child, &self.array_child
        self.schema.release, self.array.release = let_go_of_schema, let_go_of_array

    def __arrow_c_array__(self, requested_schema=None):
        return PyCapsule_New(&self.schema, "arrow_schema", NULL), PyCapsule_New(&self.array, "arrow_array", NULL)


cdef void let_go_of_schema(ArrowSchema* schema) noexcept nogil:
    schema.release = NULL


cdef void let_go_of_array(ArrowArray* array) noexcept nogil:
    array.release = NULL


VALUE_COLUMN = b"value"


# --- running them ------------------------------------------------------------------------------------------------------------

cdef Target target_named(str name) except NULL:
    if name == "decoder":
        return decoder
    if name == "validator":
        return validator
    if name == "producers":
        return producers
    if name == "snapshot":
        return snapshot
    if name == "markers":
        return markers
    if name == "codecs":
        return codecs
    if name == "txnindex":
        return txnindex
    if name == "indexes":
        return indexes
    if name == "segments":
        return segments
    if name == "pages":
        return pages
    if name == "arrow":
        return arrow
    raise ValueError(f"there is no compiled target {name!r}")


def take_input(name: str, content: bytes) -> Error | None:
    """One input, outside of a fuzzer. An error of fastlog's is an answer; everything else comes out."""
    try:
        target_named(name)(<const uint8_t*>content, len(content))
    except Error as answer:
        return answer
    return None


cdef Target chosen = NULL
cdef object called = None


cdef int one_input(const uint8_t* data, size_t size) noexcept:
    """What libFuzzer calls: it takes an abort for a finding, and keeps the input."""
    try:
        if chosen != NULL:
            chosen(data, <int64_t>size)
        else:
            called((<const char*>data)[:size])
    except Error:
        pass
    except BaseException:
        traceback.print_exc()
        sys.stderr.flush()
        abort()
    return 0


def entry_point(target) -> int:
    """Address of the function to hand to libFuzzer; ``target`` is a name here, or a function of bytes."""
    global chosen, called
    if isinstance(target, str):
        chosen = target_named(target)
    else:
        called = target
    return <intptr_t>&one_input
