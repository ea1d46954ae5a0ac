# cython: annotation_typing=False
"""Looking into files of a partition without opening it: no lock is taken, nothing is changed.

What another process appends meanwhile is seen or not; a batch that is being written may look cut off.
"""

import os

from libc.stdint cimport int64_t
from libc.stdlib cimport free, malloc
from libc.string cimport memcpy

from fastlog._native cimport oscalls as os_c
from fastlog._native import oscalls
from fastlog._native.batch cimport RecordBatch
from fastlog._native.decoder cimport (
    AbortedRange, BatchHeader, END_OF_BYTES, FINE, NO_LIMIT, NO_MEMORY, Problem, TOO_MUCH_CONTENT, check_order, check_records, decode_batches,
    describe,
)
from fastlog._native.layout cimport (
    INDEX_ENTRY_POSITION_AT, INDEX_ENTRY_SIZE, TIMESTAMP_TYPE_BIT, TIME_INDEX_ENTRY_OFFSET_AT, TIME_INDEX_ENTRY_SIZE,
    load_int32, load_int64,
)
from fastlog._native.memory cimport Block, block_allocate, block_release
from fastlog._native.scanner cimport BatchReader

from fastlog.config import DEFAULT_MAX_DECOMPRESSED_BYTES
from fastlog.errors import CorruptRecordError, RecordTooLargeError, UnsupportedFormatError


cdef int64_t base_offset_of(str path) except -1:
    """Base offset from a file's name; 0 when it has none."""
    digits = os.path.basename(path).partition(".")[0]
    return int(digits) if digits.isascii() and digits.isdigit() and len(digits) == 20 else 0


def scan_segment(path, max_decompressed_bytes: int = DEFAULT_MAX_DECOMPRESSED_BYTES):
    """Headers of the batches in a ``.log`` file, as ``BatchInfo`` values, checked down to every record.

    Opens no partition and takes no lock. A stretch that does not check out is one BatchInfo with ``is_valid`` False and
    the reason in ``problem``; the scan goes on at the next valid batch. A compressed batch with more than
    ``max_decompressed_bytes`` of content is one, too.
    """
    from fastlog.reports import BatchInfo
    path = os.fsdecode(path)
    cdef int64_t expected = base_offset_of(path)
    cdef BatchReader reader = BatchReader(path)
    cdef BatchHeader header
    cdef Problem problem
    cdef int64_t failure, start, resumed
    while True:
        start = reader.position
        problem = reader.next(&header, True, &failure)
        if failure < 0:
            raise os_c.storage_error("read", path, failure)
        if problem == END_OF_BYTES:
            return
        if problem == FINE:
            problem = check_order(&header, expected, True, -1, NO_LIMIT)
            if problem == FINE:
                problem = check_records(reader.base(), &header, max_decompressed_bytes)
        if problem == FINE:
            expected = header.last_offset + 1
            yield batch_info(&header, header.size, None)
            continue
        resumed = reader.resynchronise(start + 1, expected, &header)
        if resumed < 0:
            reader.position = reader.end
        yield BatchInfo(
            start, reader.position - start, expected, (header.base_offset if resumed >= 0 else expected) - 1, 0, -1, 0, 0,
            -1, -1, -1, -1, -1, False, describe(problem),
        )


cdef object batch_info(const BatchHeader* header, int64_t size, problem):
    from fastlog.reports import BatchInfo
    return BatchInfo(
        header.position, size, header.base_offset, header.last_offset, header.count, header.leader_epoch, header.crc,
        header.attributes, header.base_timestamp, header.max_timestamp, header.producer_id, header.producer_epoch,
        header.base_sequence, problem is None, problem,
    )


def read_batch(path, position: int, max_decompressed_bytes: int = DEFAULT_MAX_DECOMPRESSED_BYTES) -> RecordBatch:
    """The batch at ``position`` of a ``.log`` file, as ``scan_segment`` names it; a control batch comes out empty.

    Raises CorruptRecordError when it does not check out, and RecordTooLargeError when it is compressed and its content
    takes more than ``max_decompressed_bytes``.
    """
    path = os.fsdecode(path)
    cdef BatchReader reader = BatchReader(path, position)
    cdef BatchHeader header
    cdef RecordBatch batch
    cdef Block* block
    cdef int64_t failure = 0, next_offset = 0, next_position = 0
    cdef Problem problem = reader.next(&header, True, &failure)
    if failure < 0:
        raise os_c.storage_error("read", path, failure)
    if problem == FINE:
        block = block_allocate(header.size)
        if block == NULL:
            raise MemoryError()
        memcpy(block.data, reader.base() + header.position, header.size)
        batch = RecordBatch.__new__(RecordBatch)
        batch.topic = os.path.basename(os.path.dirname(os.path.abspath(path)))
        batch.base_offset = header.base_offset
        problem = decode_batches(
            block, 0, header.size, 0, 0x7FFFFFFFFFFFFFFF, header.base_offset, True, -1, NO_LIMIT, header.size, max_decompressed_bytes,
            NULL, 0, &batch.columns, &header, &next_offset, &next_position,
        )
        block_release(block)
        if problem == FINE:
            batch.next_offset = next_offset
            batch.is_append_time = header.attributes & TIMESTAMP_TYPE_BIT
            return batch
        if problem == NO_MEMORY:
            raise MemoryError()
        if problem == TOO_MUCH_CONTENT:
            raise RecordTooLargeError(f"{path}, position {position}: {describe(problem)} ({max_decompressed_bytes})")
    raise CorruptRecordError(f"{path}, position {position}: {describe(problem)}", path, position)


def decode(
    data: bytes, *, start_offset: int = 0, stop_offset: int = 0x7FFFFFFFFFFFFFFF, max_bytes: int = 1 << 20,
    max_decompressed_bytes: int = DEFAULT_MAX_DECOMPRESSED_BYTES, aborted: tuple = (),
) -> RecordBatch:
    """What one read of the encoded batches ``data`` gives, offsets that skip included. For tests.

    ``aborted``: (producer id, first offset, last offset) of transactions whose records are left out, by first offset.
    Raises CorruptRecordError with the position of the batch that does not check out.
    """
    cdef int64_t size = len(data), next_offset = start_offset, next_position = 0, count = len(aborted), i
    cdef AbortedRange* ranges = <AbortedRange*>malloc((count + 1) * sizeof(AbortedRange))
    cdef Block* block = block_allocate(size)
    cdef RecordBatch batch = RecordBatch.__new__(RecordBatch)
    cdef BatchHeader header
    cdef Problem problem
    try:
        if block == NULL or ranges == NULL:
            raise MemoryError()
        memcpy(block.data, <const char*>data, size)
        for i in range(count):
            ranges[i].producer_id, ranges[i].first_offset, ranges[i].last_offset = aborted[i]
        batch.topic = ""
        batch.base_offset = start_offset
        header.attributes = 0
        problem = decode_batches(
            block, 0, size, start_offset, stop_offset, 0, True, -1, NO_LIMIT, max_bytes, max_decompressed_bytes, ranges, count,
            &batch.columns, &header, &next_offset, &next_position,
        )
    finally:
        block_release(block)
        free(ranges)
    if problem == NO_MEMORY:
        raise MemoryError()
    if problem != FINE:
        raise CorruptRecordError(f"position {header.position}: {describe(problem)}", None, header.position)
    batch.next_offset = next_offset
    batch.is_append_time = header.attributes & TIMESTAMP_TYPE_BIT
    return batch


def scan_index(path):
    """Entries of an ``.index`` or ``.timeindex`` file: a list of ``IndexEntry`` or of ``TimeIndexEntry``, absolute offsets.

    Raises UnsupportedFormatError when the file is neither, or no whole number of entries.
    """
    from fastlog.reports import IndexEntry, TimeIndexEntry
    path = os.fsdecode(path)
    cdef int64_t base = base_offset_of(path), i
    cdef bint is_time = path.endswith(".timeindex")
    cdef int64_t width = TIME_INDEX_ENTRY_SIZE if is_time else INDEX_ENTRY_SIZE
    cdef const unsigned char* at
    if not is_time and not path.endswith(".index"):
        raise UnsupportedFormatError(f"{path} is no index: expected a name ending in .index or .timeindex")
    content = oscalls.read_file(path)
    if content is None:
        raise UnsupportedFormatError(f"{path} does not exist")
    if len(content) % width:
        raise UnsupportedFormatError(f"{path} has {len(content)} bytes, no whole number of {width}-byte entries")
    entries = []
    for i in range(len(content) // width):
        at = <const unsigned char*>content + i * width
        if is_time:
            entries.append(TimeIndexEntry(load_int64(at), base + load_int32(at + TIME_INDEX_ENTRY_OFFSET_AT)))
        else:
            entries.append(IndexEntry(base + load_int32(at), load_int32(at + INDEX_ENTRY_POSITION_AT)))
    return entries
