# cython: annotation_typing=False
"""What transactions leave in a partition: control batches that end them, and ``.txnindex`` files of the aborted ones.

A marker is a control batch of one record, 78 bytes. ABORT takes back, COMMIT makes visible what its producer wrote in
transactional batches since its last marker.

A ``.txnindex`` holds one entry for each ABORT marker in its segment: 34 bytes, rising by the marker's offset. It exists
only where there is an entry. It has no checksum, so that it is believed only where something else vouches for it; the
log tells the same (``ProducerStates.replay``). Unlike the other indexes it is no hint: a reader that misses an entry
shows records that were taken back. Entries are therefore written before the end that covers their marker is published.
"""

from libc.stdint cimport int16_t, int32_t, int64_t, uint8_t
from libc.stdlib cimport free, qsort, realloc
from libc.string cimport memset

from fastlog._native import oscalls
from fastlog._native.checksum cimport crc32c_extend
from fastlog._native.decoder cimport AbortedRange, BAD_CONTROL, BatchHeader, FINE, Problem, check_records, describe, parse_header
from fastlog._native.layout cimport (
    ATTRIBUTES_AT, BASE_OFFSET_AT, BASE_SEQUENCE_AT, BASE_TIMESTAMP_AT, BATCH_HEADER_SIZE, BATCH_LENGTH_AT, CODEC_MASK,
    CONTROL_BIT, CONTROL_KEY_SIZE, CONTROL_TYPE_AT, CONTROL_VERSION_AT, CRC_AT, CRC_COVERS_FROM, END_MARKER_BATCH_SIZE,
    END_MARKER_EPOCH_AT, END_MARKER_RECORD_SIZE, END_MARKER_VALUE_SIZE, END_MARKER_VERSION_AT, LAST_OFFSET_DELTA_AT,
    LEADER_EPOCH_AT, LOG_OVERHEAD, MAGIC_AT, MAGIC_V2, MAX_TIMESTAMP_AT, PRODUCER_EPOCH_AT, PRODUCER_ID_AT,
    RECORDS_COUNT_AT, TRANSACTIONAL_BIT, TRANSACTION_ENTRY_SIZE, TRANSACTION_ENTRY_VERSION, TRANSACTION_FIRST_OFFSET_AT,
    TRANSACTION_LAST_OFFSET_AT, TRANSACTION_PRODUCER_ID_AT, TRANSACTION_STABLE_OFFSET_AT, TRANSACTION_VERSION_AT,
    load_int16, load_int32, load_int64, store_int16, store_int32, store_int64, store_uint32,
)
from fastlog._native.varint cimport read_varint, read_varlong, write_varint

from fastlog.errors import CorruptRecordError

ENTRY_SIZE = TRANSACTION_ENTRY_SIZE


# --- markers -----------------------------------------------------------------------------------------------------------

cdef Problem parse_marker(const uint8_t* bytes_, const BatchHeader* header, Marker* marker) noexcept nogil:
    """What the control batch at `header` says. FINE with `NO_MARKER` for one that ends no transaction.

    The header was parsed and the CRC checked before; every length of the record is checked here.
    """
    cdef const uint8_t* at = bytes_ + header.position + BATCH_HEADER_SIZE
    cdef const uint8_t* end = bytes_ + header.position + header.size
    cdef const uint8_t* key
    cdef int32_t size = 0
    cdef int64_t delta
    cdef int16_t kind
    cdef Problem problem
    marker.type = NO_MARKER
    marker.coordinator_epoch = -1
    if not header.attributes & CONTROL_BIT or header.attributes & CODEC_MASK or header.count > 1:
        return BAD_CONTROL
    if header.count == 0:
        return FINE
    # it is not compressed, so that this neither decompresses nor raises
    problem = check_records(bytes_, header, 0)
    if problem != FINE:
        return problem
    # the record is whole: what is read here lies inside
    at = read_varint(at, end, &size)
    at = read_varlong(at + 1, end, &delta)
    at = read_varint(at, end, &size)
    at = read_varint(at, end, &size)
    if size < CONTROL_KEY_SIZE:
        return BAD_CONTROL
    key = at
    if load_int16(key + CONTROL_VERSION_AT) < 0:
        return BAD_CONTROL
    kind = load_int16(key + CONTROL_TYPE_AT)
    if kind != ABORT_MARKER and kind != COMMIT_MARKER:
        return FINE
    at = read_varint(at + size, end, &size)
    if size < END_MARKER_VALUE_SIZE or load_int16(at + END_MARKER_VERSION_AT) < 0:
        return BAD_CONTROL
    if not header.attributes & TRANSACTIONAL_BIT or header.producer_id < 0:
        return BAD_CONTROL
    marker.type = kind
    marker.coordinator_epoch = load_int32(at + END_MARKER_EPOCH_AT)
    return FINE


cdef void build_marker(
    uint8_t* at, int64_t producer_id, int16_t producer_epoch, int32_t coordinator_epoch, bint commit, int64_t timestamp
) noexcept nogil:
    """Write a marker batch of `END_MARKER_BATCH_SIZE` bytes; base offset and leader epoch are for the log to stamp."""
    cdef uint8_t* record = at + BATCH_HEADER_SIZE
    store_int64(at + BASE_OFFSET_AT, 0)
    store_int32(at + BATCH_LENGTH_AT, END_MARKER_BATCH_SIZE - LOG_OVERHEAD)
    store_int32(at + LEADER_EPOCH_AT, -1)
    at[MAGIC_AT] = MAGIC_V2
    store_int16(at + ATTRIBUTES_AT, TRANSACTIONAL_BIT | CONTROL_BIT)
    store_int32(at + LAST_OFFSET_DELTA_AT, 0)
    store_int64(at + BASE_TIMESTAMP_AT, timestamp)
    store_int64(at + MAX_TIMESTAMP_AT, timestamp)
    store_int64(at + PRODUCER_ID_AT, producer_id)
    store_int16(at + PRODUCER_EPOCH_AT, producer_epoch)
    store_int32(at + BASE_SEQUENCE_AT, -1)
    store_int32(at + RECORDS_COUNT_AT, 1)
    record = write_varint(record, END_MARKER_RECORD_SIZE - 1)
    memset(record, 0, 3)                            # attributes and both deltas
    record = write_varint(record + 3, CONTROL_KEY_SIZE)
    store_int16(record + CONTROL_VERSION_AT, 0)
    store_int16(record + CONTROL_TYPE_AT, COMMIT_MARKER if commit else ABORT_MARKER)
    record = write_varint(record + CONTROL_KEY_SIZE, END_MARKER_VALUE_SIZE)
    store_int16(record + END_MARKER_VERSION_AT, 0)
    store_int32(record + END_MARKER_EPOCH_AT, coordinator_epoch)
    write_varint(record + END_MARKER_VALUE_SIZE, 0)
    store_uint32(at + CRC_AT, crc32c_extend(0, at + CRC_COVERS_FROM, END_MARKER_BATCH_SIZE - CRC_COVERS_FROM))


def end_transaction_marker(
    producer_id: int, producer_epoch: int, coordinator_epoch: int, commit: bool, timestamp: int
) -> bytes:
    """The batch that ends a transaction; ``timestamp`` in milliseconds. Append it flagged as internal."""
    cdef uint8_t[END_MARKER_BATCH_SIZE] batch
    build_marker(batch, producer_id, producer_epoch, coordinator_epoch, commit, timestamp)
    return batch[:END_MARKER_BATCH_SIZE]


def read_marker(batch: bytes) -> tuple | None:
    """(is commit, coordinator epoch) of an encoded control batch; None when it ends no transaction.

    Raises CorruptRecordError when it is no whole control batch. The CRC is not checked.
    """
    cdef BatchHeader header
    cdef Marker marker
    cdef const uint8_t* data = batch
    cdef Problem problem = parse_header(data, 0, len(batch), &header)
    if problem == FINE:
        problem = parse_marker(data, &header, &marker)
    if problem != FINE:
        raise CorruptRecordError(f"no control batch: {describe(problem)}")
    return None if marker.type == NO_MARKER else (marker.type == COMMIT_MARKER, marker.coordinator_epoch)


# --- entries -----------------------------------------------------------------------------------------------------------

cdef void load_entry(const uint8_t* at, AbortedTransaction* entry) noexcept nogil:
    entry.producer_id = load_int64(at + TRANSACTION_PRODUCER_ID_AT)
    entry.first_offset = load_int64(at + TRANSACTION_FIRST_OFFSET_AT)
    entry.last_offset = load_int64(at + TRANSACTION_LAST_OFFSET_AT)
    entry.last_stable_offset = load_int64(at + TRANSACTION_STABLE_OFFSET_AT)


cdef void store_entry(uint8_t* at, const AbortedTransaction* entry) noexcept nogil:
    store_int16(at + TRANSACTION_VERSION_AT, TRANSACTION_ENTRY_VERSION)
    store_int64(at + TRANSACTION_PRODUCER_ID_AT, entry.producer_id)
    store_int64(at + TRANSACTION_FIRST_OFFSET_AT, entry.first_offset)
    store_int64(at + TRANSACTION_LAST_OFFSET_AT, entry.last_offset)
    store_int64(at + TRANSACTION_STABLE_OFFSET_AT, entry.last_stable_offset)


cdef int64_t entries_below(const uint8_t* entries, int64_t count, int64_t offset) noexcept nogil:
    """How many entries end below `offset`: they rise by their last offset."""
    cdef int64_t low = 0, high = count, middle
    while low < high:
        middle = (low + high) >> 1
        if load_int64(entries + middle * TRANSACTION_ENTRY_SIZE + TRANSACTION_LAST_OFFSET_AT) < offset:
            low = middle + 1
        else:
            high = middle
    return low


cdef int collect_entries(
    const uint8_t* entries, int64_t count, int64_t first_offset, int64_t end_offset, AbortedRanges* found
) noexcept nogil:
    """Add what a reader of [first_offset, end_offset) has to know of one segment's entries.

    1 when no later segment can have more, 0 when the next one has to be asked too, -1 when out of memory.
    """
    cdef AbortedTransaction entry
    cdef AbortedRange* larger
    cdef AbortedRange* added
    cdef int64_t i, capacity
    for i in range(entries_below(entries, count, first_offset), count):
        load_entry(entries + i * TRANSACTION_ENTRY_SIZE, &entry)
        if entry.first_offset < end_offset:
            if found.count == found.capacity:
                capacity = max(16, 2 * found.capacity)
                larger = <AbortedRange*>realloc(found.ranges, capacity * sizeof(AbortedRange))
                if larger == NULL:
                    return -1
                found.ranges = larger
                found.capacity = capacity
            added = &found.ranges[found.count]
            added.producer_id = entry.producer_id
            added.first_offset = entry.first_offset
            added.last_offset = entry.last_offset
            found.count += 1
        # everything below its stable offset was decided when this marker was written
        if entry.last_stable_offset >= end_offset:
            return 1
    return 0


cdef int compare_ranges(const void* left, const void* right) noexcept nogil:
    cdef int64_t a = (<const AbortedRange*>left).first_offset, b = (<const AbortedRange*>right).first_offset
    return (a > b) - (a < b)


cdef void sort_ranges(AbortedRanges* found) noexcept nogil:
    """By first offset, as the decoder wants them."""
    if found.count > 1:
        qsort(found.ranges, found.count, sizeof(AbortedRange), compare_ranges)


cdef void free_ranges(AbortedRanges* found) noexcept nogil:
    free(found.ranges)
    memset(found, 0, sizeof(AbortedRanges))


def aborted_ranges(segments: list, first_offset: int, end_offset: int) -> list:
    """(producer id, first offset, last offset) of aborted transactions that touch [first_offset, end_offset).

    ``segments`` are the entries of the segment with ``first_offset`` and of those behind it, in order.
    """
    cdef AbortedRanges found
    cdef bytes entries
    cdef int64_t i, count
    cdef int done = 0
    memset(&found, 0, sizeof(AbortedRanges))
    try:
        for entries in segments:
            count = len(entries) // TRANSACTION_ENTRY_SIZE
            done = collect_entries(<const uint8_t*>entries, count, first_offset, end_offset, &found)
            if done < 0:
                raise MemoryError()
            if done:
                break
        sort_ranges(&found)
        return [
            (found.ranges[i].producer_id, found.ranges[i].first_offset, found.ranges[i].last_offset) for i in range(found.count)
        ]
    finally:
        free_ranges(&found)


def pack_entries(entries: list) -> bytes:
    """The bytes of (producer id, first offset, last offset, last stable offset) tuples."""
    cdef AbortedTransaction entry
    result = bytearray(len(entries) * TRANSACTION_ENTRY_SIZE)
    cdef uint8_t* at = result
    for entry.producer_id, entry.first_offset, entry.last_offset, entry.last_stable_offset in entries:
        store_entry(at, &entry)
        at += TRANSACTION_ENTRY_SIZE
    return bytes(result)


def unpack_entries(content: bytes) -> list:
    """(producer id, first offset, last offset, last stable offset) of each whole entry."""
    cdef AbortedTransaction entry
    cdef const uint8_t* at = content
    cdef int64_t i
    result = []
    for i in range(len(content) // TRANSACTION_ENTRY_SIZE):
        load_entry(at + i * TRANSACTION_ENTRY_SIZE, &entry)
        result.append((entry.producer_id, entry.first_offset, entry.last_offset, entry.last_stable_offset))
    return result


def check_entries(content: bytes, base_offset: int, end_offset: int) -> str | None:
    """What is wrong with the entries of a segment that has offsets from ``base_offset`` up to ``end_offset``; or None.

    Finds what no writer writes. An entry that is possible but false cannot be told without the log.
    """
    cdef const uint8_t* at = content
    cdef AbortedTransaction entry
    cdef int64_t previous = <int64_t>base_offset - 1, end = end_offset, i
    cdef int16_t version
    if len(content) % TRANSACTION_ENTRY_SIZE:
        return f"{len(content)} bytes are no whole number of {TRANSACTION_ENTRY_SIZE}-byte entries"
    for i in range(len(content) // TRANSACTION_ENTRY_SIZE):
        version = load_int16(at + TRANSACTION_VERSION_AT)
        if version != TRANSACTION_ENTRY_VERSION:
            return f"entry {i} has version {version}, expected {TRANSACTION_ENTRY_VERSION}"
        load_entry(at, &entry)
        if not previous < entry.last_offset < end:
            return f"entry {i} ends at offset {entry.last_offset}, expected one above {previous} and below {end}"
        if not 0 <= entry.first_offset < entry.last_offset:
            return f"entry {i} begins at offset {entry.first_offset}, expected one from 0 to below {entry.last_offset}"
        if entry.producer_id < 0:
            return f"entry {i} has producer id {entry.producer_id}, expected 0 or more"
        if not 0 <= entry.last_stable_offset <= entry.last_offset + 1:
            return f"entry {i} has the last stable offset {entry.last_stable_offset}, expected 0 to {entry.last_offset + 1}"
        previous = entry.last_offset
        at += TRANSACTION_ENTRY_SIZE
    return None


# --- the file ----------------------------------------------------------------------------------------------------------

cdef class TransactionIndex:
    """The ``.txnindex`` file of one segment, made when the first entry comes.

    How many entries count is said by whoever publishes them (``count``), not by the length of the file: what a dead
    writer left behind them means nothing and is written over. Writing wants the writer lock, reading none.
    """

    def __init__(self, path: str, base_offset: int):
        self.path = path
        self.base_offset = base_offset
        self.content = b""

    cpdef bytes entries(self, int64_t count):
        """The first ``count`` entries. Raises StorageError, or CorruptRecordError when the file has fewer.

        What was read once is kept: published entries never change.
        """
        cdef int64_t size = count * TRANSACTION_ENTRY_SIZE
        held = self.content
        if len(held) > size:
            return held[:size]
        if len(held) < size:
            held = oscalls.read_file(self.path, size) or b""
            if len(held) < size:
                raise CorruptRecordError(
                    f"{self.path} has {len(held)} bytes where {count} aborted transactions need {size}: "
                    f"delete it and open the log again, it is rebuilt from the segment", self.path, len(held),
                )
            self.content = held
        return held

    def write(self, count: int, entries: bytes) -> int:
        """Put ``entries`` behind the first ``count`` ones and return the new count; StorageError when that fails.

        Nothing is synced: after a crash the log tells the same.
        """
        held = self.entries(count)
        fd = oscalls.open_file(self.path, writable=True, create=True)
        try:
            oscalls.write_at(fd, entries, len(held), self.path)
        finally:
            oscalls.close_file(fd)
        self.content = held + entries
        return <int64_t>count + len(entries) // TRANSACTION_ENTRY_SIZE

    def truncate(self, count: int) -> None:
        """Cut the file behind the first ``count`` entries; without any it is removed."""
        cdef int64_t size = <int64_t>count * TRANSACTION_ENTRY_SIZE
        self.content = self.content[:size]
        if count == 0:
            oscalls.remove(self.path)
            return
        if (oscalls.file_size(self.path) or 0) <= size:
            return
        fd = oscalls.open_file(self.path, writable=True)
        try:
            oscalls.truncate(fd, size, self.path)
        finally:
            oscalls.close_file(fd)

    def replace(self, entries: bytes) -> int:
        """Write the whole file anew, synced, or remove it when there are no entries. Returns the count."""
        if entries:
            oscalls.replace_file(self.path, entries)
        else:
            oscalls.remove(self.path)
        self.content = entries
        return len(entries) // TRANSACTION_ENTRY_SIZE

    def count_below(self, content: bytes, offset: int) -> int:
        """How many of the entries in ``content`` end below ``offset``: what is left when the log is cut there."""
        return entries_below(<const uint8_t*>content, len(content) // TRANSACTION_ENTRY_SIZE, offset)
