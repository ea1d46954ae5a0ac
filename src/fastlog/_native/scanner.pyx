# cython: annotation_typing=False
"""Sequential reading of segment files, and what recovery, verification and repair build on it.

Nothing here maps a file. Nothing here changes one.
"""

from libc.stdint cimport int32_t, int64_t, uint8_t
from libc.stdlib cimport free, malloc
from libc.string cimport memchr, memcpy, memmove

from fastlog._native cimport oscalls as os_c
from fastlog._native import oscalls
from fastlog._native.decoder cimport (
    BAD_CRC, BatchHeader, CUT_OFF, END_OF_BYTES, FINE, NO_LIMIT, NO_MEMORY, OLD_MAGIC, Problem, check_order, check_records,
    crc_matches, describe, parse_header,
)
from fastlog._native.index cimport IndexTracker
from fastlog._native.layout cimport (
    BATCH_HEADER_SIZE, INDEX_ENTRY_POSITION_AT, INDEX_ENTRY_SIZE, MAGIC_AT, MAGIC_V2, TIME_INDEX_ENTRY_OFFSET_AT,
    TIME_INDEX_ENTRY_SIZE, load_int32, load_int64,
)

from fastlog.config import DEFAULT_MAX_DECOMPRESSED_BYTES

cdef enum:
    READ_AHEAD = 1 << 20
    MOST_SKIPPED_OFFSETS = 0x7FFFFFFF   # a segment spans no more (its indexes hold 32-bit offsets)


cdef class BatchReader:
    def __cinit__(self):
        self.fd = -1
        self.buffer = NULL

    def __init__(self, path: str, position: int = 0, end: int | None = None):
        self.path = path
        self.fd = oscalls.open_file(path)
        cdef int64_t size = os_c.os_file_size(self.fd)
        if size < 0:
            raise os_c.storage_error("examine", path, size)
        self.end = size if end is None else min(<int64_t>end, size)
        self.position = position
        self.capacity = 0
        self.buffered_from = 0
        self.buffered = 0

    def __dealloc__(self):
        free(self.buffer)
        if self.fd >= 0:
            oscalls.close_file(self.fd)

    cdef const uint8_t* base(self) noexcept nogil:
        """Pointer such that base + file position is that byte; only buffered bytes may be touched."""
        return self.buffer - self.buffered_from

    cdef int64_t fill(self, int64_t position, int64_t size) noexcept nogil:
        """Buffer [position, position + size), which lies before `end`. Bytes there, -errno, or -12 (no memory)."""
        cdef int64_t ahead, kept, result
        cdef uint8_t* larger
        if position >= self.buffered_from and position + size <= self.buffered_from + self.buffered:
            return size
        ahead = min(max(size, READ_AHEAD), self.end - position)
        if ahead > self.capacity:
            larger = <uint8_t*>malloc(ahead)
            if larger == NULL:
                return -12
            if self.buffered:
                memcpy(larger, self.buffer, self.buffered)
            free(self.buffer)
            self.buffer = larger
            self.capacity = ahead
        kept = 0
        if self.buffered_from <= position < self.buffered_from + self.buffered:
            kept = self.buffered_from + self.buffered - position
            memmove(self.buffer, self.buffer + (position - self.buffered_from), kept)
        self.buffered_from = position
        self.buffered = kept
        result = os_c.os_pread(self.fd, self.buffer + kept, ahead - kept, position + kept)
        if result < 0:
            return result
        self.buffered += result
        return min(size, self.buffered)

    cdef Problem next(self, BatchHeader* header, bint check_crc, int64_t* failure) noexcept nogil:
        """The batch at `position`, wholly buffered; moves behind it only when it is fine.

        `failure` is a negative result of the operating system, or 0.
        """
        cdef Problem problem
        cdef int64_t got
        failure[0] = 0
        header.position = self.position
        if self.position >= self.end:
            return END_OF_BYTES
        got = self.fill(self.position, min(<int64_t>BATCH_HEADER_SIZE, self.end - self.position))
        if got < 0:
            failure[0] = got
            return CUT_OFF
        # a header is checked against the end of the file; its body is buffered afterwards
        problem = parse_header(self.base(), self.position, self.position + got if got < BATCH_HEADER_SIZE else self.end, header)
        if problem != FINE:
            return problem
        got = self.fill(self.position, header.size)
        if got < 0:
            failure[0] = got
            return CUT_OFF
        if got < header.size:
            return CUT_OFF
        if check_crc and not crc_matches(self.base(), header):
            return BAD_CRC
        self.position += header.size
        return FINE

    cdef int64_t resynchronise(self, int64_t position, int64_t expected_offset, BatchHeader* header) except -2 nogil:
        """Position of the first valid batch from `position` on whose base offset is >= `expected_offset`; -1 when none.

        Raises StorageError: bytes that could not be read may hold one.
        """
        cdef int64_t at = position, window, got, failure
        cdef const uint8_t* found
        while self.end - at >= BATCH_HEADER_SIZE:
            got = self.fill(at, BATCH_HEADER_SIZE)
            if got < 0:
                self.refuse(got)
            if got < BATCH_HEADER_SIZE:
                return -1
            # no more is read before all that is buffered was looked at: a magic byte may be anywhere, or everywhere
            window = self.buffered_from + self.buffered - at
            found = <const uint8_t*>memchr(self.base() + at + MAGIC_AT, MAGIC_V2, window - MAGIC_AT)
            if found == NULL:
                at += window - MAGIC_AT
                continue
            at = (found - self.base()) - MAGIC_AT
            # the header must be plausible before a checksum is computed: hostile bytes cannot make this quadratic
            got = self.fill(at, BATCH_HEADER_SIZE)
            if got < 0:
                self.refuse(got)
            if (
                got == BATCH_HEADER_SIZE
                and parse_header(self.base(), at, self.end, header) == FINE
                and 0 <= header.base_offset - expected_offset <= MOST_SKIPPED_OFFSETS
            ):
                self.position = at
                if self.next(header, True, &failure) == FINE:
                    self.position = at
                    return at
                if failure < 0:
                    self.refuse(failure)
            at += 1
        return -1

    cdef int refuse(self, int64_t result) except -1 with gil:
        raise os_c.storage_error("read", self.path, result)


cdef class ScanResult:
    """Where a scan came to, and why it stopped."""
    cdef readonly int64_t position          # behind the last good batch
    cdef readonly int64_t next_offset       # behind the last good batch
    cdef readonly int64_t batches
    cdef readonly int64_t records
    cdef readonly str problem               # None: the end was reached
    cdef readonly bint is_old_format
    cdef readonly bint is_torn              # as an interrupted write leaves it: cut off, or a checksum that fails
    cdef readonly bint is_all_zero          # every byte from `position` to the end is zero
    cdef readonly int64_t resumes_at        # position of the next valid batch behind the problem, or -1
    cdef readonly int64_t resume_offset     # its base offset, or -1
    cdef readonly int32_t first_epoch       # leader epoch of the first batch, or -1
    cdef readonly int64_t last_producer_offset      # last offset that carries a producer id, or -1


def scan(
    path: str, position: int, end: int, next_offset: int, gaps: bool, epoch: int, deep: bool, IndexTracker tracker=None,
    max_decompressed_bytes: int = DEFAULT_MAX_DECOMPRESSED_BYTES,
) -> ScanResult:
    """Check the batches of ``path`` in [position, end): headers, CRC, order, and every record if ``deep``.

    Stops at the first problem and looks for a valid batch behind it. ``tracker`` collects index entries.
    """
    cdef BatchReader reader = BatchReader(path, position, end)
    cdef ScanResult result = ScanResult.__new__(ScanResult)
    cdef BatchHeader header
    cdef Problem problem = FINE
    cdef int64_t expected = next_offset, failure = 0, batches = 0, records = 0
    cdef bint gaps_ = gaps, deep_ = deep
    cdef int32_t epoch_ = epoch
    cdef int64_t max_decompressed_bytes_ = max_decompressed_bytes
    result.first_epoch = -1
    result.last_producer_offset = -1
    with nogil:
        while True:
            problem = reader.next(&header, True, &failure)
            if problem != FINE:
                break
            problem = check_order(&header, expected, gaps_, epoch_, NO_LIMIT)
            if problem == FINE and deep_:
                problem = check_records(reader.base(), &header, max_decompressed_bytes_)
            if problem != FINE:
                reader.position = header.position
                break
            if header.producer_id >= 0:
                result.last_producer_offset = header.last_offset
            if batches == 0:
                result.first_epoch = header.leader_epoch
            if tracker is not None:
                # the timestamp of a batch that compaction left without records is nobody's
                tracker.track(header.position, header.size, header.last_offset, header.max_timestamp if header.count else -1)
            expected = header.last_offset + 1
            batches += 1
            records += header.count
    if failure < 0:
        raise os_c.storage_error("read", path, failure)
    if problem == NO_MEMORY:
        raise MemoryError()
    result.position = reader.position
    result.next_offset = expected
    result.batches = batches
    result.records = records
    result.resumes_at = -1
    result.resume_offset = -1
    if problem == END_OF_BYTES:
        return result
    result.problem = describe(problem)
    result.is_old_format = problem == OLD_MAGIC
    result.is_torn = problem == CUT_OFF or problem == BAD_CRC
    cdef int64_t bad = result.position
    result.is_all_zero = is_zero(reader, bad)
    if not result.is_all_zero:
        with nogil:
            failure = reader.resynchronise(bad + 1, expected, &header)
        if failure >= 0:
            result.resumes_at = failure
            result.resume_offset = header.base_offset
    return result


cdef bint is_zero(BatchReader reader, int64_t position) except -1:
    cdef int64_t got, i
    while position < reader.end:
        got = reader.fill(position, min(reader.end - position, <int64_t>READ_AHEAD))
        if got < 0:
            raise os_c.storage_error("read", reader.path, got)
        if got == 0:
            break
        for i in range(got):
            if reader.base()[position + i] != 0:
                return False
        position += got
    return True


cdef class IndexChecker:
    """Compares the index files of a segment with its batches, the way Kafka's dump tool does."""
    cdef bytes offsets
    cdef bytes times
    cdef int64_t base_offset
    cdef int64_t offset_at
    cdef int64_t time_at
    cdef int64_t max_timestamp
    cdef int64_t max_of_headers         # batches without records included: Kafka's own indexes count them in
    cdef readonly str offset_problem
    cdef readonly str time_problem

    def __init__(self, offsets: bytes, times: bytes, base_offset: int):
        self.offsets = offsets
        self.times = times
        self.base_offset = base_offset
        self.max_timestamp = self.max_of_headers = -1
        if len(offsets) % INDEX_ENTRY_SIZE:
            self.offset_problem = f"{len(offsets)} bytes are no whole number of {INDEX_ENTRY_SIZE}-byte entries"
        if len(times) % TIME_INDEX_ENTRY_SIZE:
            self.time_problem = f"{len(times)} bytes are no whole number of {TIME_INDEX_ENTRY_SIZE}-byte entries"

    cdef int observe(self, const BatchHeader* header) except -1:
        cdef const uint8_t* entry
        cdef int64_t relative = header.last_offset - self.base_offset
        if header.max_timestamp > self.max_of_headers:
            self.max_of_headers = header.max_timestamp
        if header.max_timestamp > self.max_timestamp and header.count:
            self.max_timestamp = header.max_timestamp
        if self.offset_problem is None and self.offset_at < len(self.offsets):
            entry = <const uint8_t*>self.offsets + self.offset_at
            if load_int32(entry) <= relative:
                if load_int32(entry) != relative or load_int32(entry + INDEX_ENTRY_POSITION_AT) != header.position:
                    self.offset_problem = (
                        f"entry {self.offset_at // INDEX_ENTRY_SIZE} says offset {self.base_offset + load_int32(entry)} at "
                        f"position {load_int32(entry + INDEX_ENTRY_POSITION_AT)}, where the segment has offset {header.last_offset} at {header.position}"
                    )
                self.offset_at += INDEX_ENTRY_SIZE
        if self.time_problem is None and self.time_at < len(self.times):
            entry = <const uint8_t*>self.times + self.time_at
            if load_int32(entry + TIME_INDEX_ENTRY_OFFSET_AT) <= relative:
                if load_int32(entry + TIME_INDEX_ENTRY_OFFSET_AT) != relative or load_int64(entry) not in (self.max_timestamp, self.max_of_headers):
                    self.time_problem = (
                        f"entry {self.time_at // TIME_INDEX_ENTRY_SIZE} says timestamp {load_int64(entry)} at offset "
                        f"{self.base_offset + load_int32(entry + TIME_INDEX_ENTRY_OFFSET_AT)}, where the segment's largest is {self.max_timestamp} at "
                        f"offset {header.last_offset}"
                    )
                self.time_at += TIME_INDEX_ENTRY_SIZE
        return 0

    cdef int finish(self) except -1:
        """Entries that no batch answered to."""
        if self.offset_problem is None and self.offset_at < len(self.offsets):
            self.offset_problem = f"entry {self.offset_at // INDEX_ENTRY_SIZE} points behind the last batch"
        if self.time_problem is None and self.time_at < len(self.times):
            self.time_problem = f"entry {self.time_at // TIME_INDEX_ENTRY_SIZE} points behind the last batch"
        return 0


def compare_indexes(path: str, end: int, offsets: bytes, times: bytes, base_offset: int, is_growing: bool) -> tuple:
    """What is wrong with the two index files of a segment: (offset index problem or None, time index problem or None).

    While a segment ``is_growing`` its indexes may be ahead of ``end``.
    """
    cdef BatchReader reader = BatchReader(path, 0, end)
    cdef IndexChecker checker = IndexChecker(offsets, times, base_offset)
    cdef BatchHeader header
    cdef int64_t failure = 0, expected = base_offset
    while True:
        if reader.next(&header, False, &failure) != FINE:
            if failure < 0:
                raise os_c.storage_error("read", path, failure)
            if reader.resynchronise(reader.position + 1, expected, &header) < 0:
                break
            continue
        expected = header.last_offset + 1
        checker.observe(&header)
    if not is_growing:
        checker.finish()
    return checker.offset_problem, checker.time_problem
