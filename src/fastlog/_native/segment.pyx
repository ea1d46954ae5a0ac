# cython: annotation_typing=False, nonecheck=True
"""Segments: files, mapping, indexes and look-ups.

A closed segment never changes. The active one grows, and every process may append to it in its turn; only the part below
the published end, which the caller passes as ``end``, is ever looked at. A segment is mapped once, with room to grow, and
its mapping is shared by every view.
"""

from libc.errno cimport ENOENT
from libc.stdint cimport int32_t, int64_t

from fastlog._native cimport oscalls as os_c
from fastlog._native import oscalls
from fastlog._native.decoder cimport (
    BAD_COMPRESSION, BAD_CRC, BAD_RECORD_LENGTH, BatchHeader, FINE, NO_LIMIT, NO_MEMORY, Problem, TOO_MUCH_CONTENT, TRAILING_BYTES,
    check_order, crc_matches, describe, find_timestamp, parse_header,
)
from fastlog._native.index cimport IndexFile, IndexTracker, OffsetEntry, TimeEntry
from fastlog._native.layout cimport BATCH_HEADER_SIZE, CODEC_MASK
from fastlog._native.memory cimport Block, block_adopt_mapping, block_allocate, block_release, block_retain
from fastlog._native.published cimport Published, UNKNOWN_ENTRIES, load_word
from fastlog._native.scanner cimport BatchReader
from fastlog._native.scanner import scan

import logging

from fastlog.config import CODECS, DEFAULT_MAX_DECOMPRESSED_BYTES
from fastlog.errors import CorruptLogError, CorruptRecordError, RecordTooLargeError, StorageError

# kept here for objects that go when the interpreter ends: modules are empty by then
cdef object close_file = oscalls.close_file

cdef extern from *:
    """
    static inline void fastlog_prefetch(const unsigned char *data, long long size) {
        for (long long at = 0; at < size; at += 64)
            __builtin_prefetch(data + at);
    }
    """
    void prefetch "fastlog_prefetch"(const unsigned char* data, long long size) noexcept nogil

cdef enum:
    SMALL_BATCH = 4096      # a batch that is worth fetching whole before its checksum asks for it line by line

logger = logging.getLogger("fastlog.segment")

cdef int64_t MOST_RELATIVE_OFFSET = 0x7FFFFFFF


cdef class Segment:
    def __cinit__(self):
        self.block = NULL
        self.fd = -1
        self.generation = os_c.fork_generation()

    def __init__(
        self, path: str, size: int, *, segment_bytes: int, index_bytes: int, interval: int, epoch: int, gaps: bool,
        maps: bool, stores: bool, index_checksums: tuple | None = None, inode: int = 0,
        max_decompressed_bytes: int = DEFAULT_MAX_DECOMPRESSED_BYTES,
    ):
        # behind ".log" there may be ".swap": a compacted segment that nobody has put in its place yet
        stem, _, stage = path.rpartition(".log")
        self.path = path
        self.index_path = f"{stem}.index{stage}"
        self.time_index_path = f"{stem}.timeindex{stage}"
        self.base_offset = int(stem[-20:])
        self.size = size
        self.room = max(<int64_t>size, <int64_t>segment_bytes)
        self.index_bytes = index_bytes
        self.interval = interval
        self.epoch = epoch
        self.gaps = gaps
        self.limit = NO_LIMIT
        self.maps = maps
        self.stores = stores
        self.max_decompressed_bytes = max_decompressed_bytes
        self.index_checksums = index_checksums
        self.transaction_checksum = None if index_checksums is None else index_checksums[2]
        self.aborted = None
        self.inode = inode
        self.is_growing = False
        self.is_trusted = False
        self.grows_tracker = False
        self.validated = 0
        self.tracker = None
        self.first_timestamp = -2
        self.known_end = -1
        self.is_damaged = False

    def __dealloc__(self):
        block_release(self.block)
        self.close_files()

    # --- bytes -------------------------------------------------------------------------------------------------------

    cdef int map_log(self) except -1:
        """Map the file once. A file that is shorter than published is damage, found here and not by a signal."""
        cdef void* address = NULL
        cdef int64_t result, actual, size, least
        cdef int fd = oscalls.open_file(self.path)
        try:
            # opening gave other threads a turn: nothing that was read before it counts
            if self.block != NULL:
                return 0
            size = self.room if self.is_growing else max(self.size, 1)
            # known before the file is measured: it may grow, and be closed, while others have their turn
            least = 0 if self.is_growing else self.size
            actual = os_c.os_file_size(fd)
            if actual < 0:
                raise os_c.storage_error("examine", self.path, actual)
            self.check_identity(oscalls.inode_of(fd))
            self.check_length(actual, least)
            result = os_c.os_map(fd, size, &address)
            if result < 0:
                raise os_c.storage_error("map", self.path, result)
        finally:
            oscalls.close_file(fd)
        self.block = block_adopt_mapping(address, size)
        if self.block == NULL:
            raise MemoryError(f"no memory left to map {self.path}")
        return 0

    cdef int check_identity(self, int64_t inode) except -1:
        """A name may have come to mean another file since the segment was listed: compaction puts one in its place."""
        if self.inode and inode != self.inode:
            raise StorageError(f"{self.path} was replaced by another file while the log was open: open it again", ENOENT)
        return 0

    cdef int check_length(self, int64_t actual, int64_t expected) except -1:
        if actual < expected:
            raise CorruptLogError(
                f"{self.path} has {actual} bytes where {expected} were written: its end was cut off by somebody else. "
                f"Records before the cut stay readable after `fastlog log repair`",
                self.path, actual, None, None,
            )
        return 0

    cdef int validate(self, int64_t end) except -1:
        """Before anything up to `end` is touched for the first time: is the file that long? Else touching it is a signal."""
        cdef int64_t actual
        if end <= self.validated:
            return 0
        if self.is_growing:
            actual = os_c.os_file_size(self.reading_file().fd)
        else:
            found = oscalls.identity(self.path)
            actual = -ENOENT
            if found is not None:
                actual, inode = found
                self.check_identity(inode)
        if actual < 0:
            raise os_c.storage_error("examine", self.path, actual)
        self.check_length(actual, end)
        self.validated = end
        return 0

    cdef os_c.Descriptor reading_file(self):
        """A descriptor to read from, or to sync by."""
        cdef os_c.Descriptor found = self.reader
        if found is None:
            found = os_c.Descriptor(oscalls.open_file(self.path))
            self.check_identity(oscalls.inode_of(found.fd))
            self.reader = found
        return found

    cdef int forget_reader(self) except -1:
        """A mapped segment that no longer grows needs none: a log of many segments shall not hold as many descriptors."""
        if self.maps and not self.is_growing:
            self.reader = None
        return 0

    cdef Block* fetch(self, int64_t position, int64_t size, int64_t* shift) except NULL:
        """A reference to a block that holds [position, position + size); `shift` is the file position of its byte 0."""
        cdef Block* block
        cdef int64_t result
        cdef os_c.Descriptor file
        if self.maps:
            if self.block == NULL:
                self.map_log()
            shift[0] = 0
            block_retain(self.block)
            return self.block
        file = self.reading_file()
        block = block_allocate(size)
        if block == NULL:
            raise MemoryError()
        with nogil:
            result = os_c.os_pread(file.fd, block.data, size, position)
        if result != size:
            block_release(block)
            if result < 0:
                raise os_c.storage_error("read", self.path, result)
            self.check_length(position + result, position + size)
            raise StorageError(f"could not read {size} bytes at {position} of {self.path}: it ended after {result}")
        shift[0] = position
        return block

    cdef Problem peek(self, int64_t position, int64_t end, BatchHeader* header) except *:
        """The batch header at `position`, checked against `end`."""
        cdef int64_t shift, size = min(<int64_t>BATCH_HEADER_SIZE, end - position)
        cdef Block* block
        if self.maps:
            if self.block == NULL:
                self.map_log()
            return parse_header(self.block.data, position, end, header)
        block = self.fetch(position, max(size, 0), &shift)
        problem = parse_header(block.data - shift, position, end if size == BATCH_HEADER_SIZE else position + size, header)
        block_release(block)
        return problem

    # --- looking up --------------------------------------------------------------------------------------------------

    cdef Place landing(self, int64_t offset, int64_t end) except *:
        """The batch that the offset index names for `offset`, verified; the start of the segment when it names none."""
        cdef Place place
        cdef BatchHeader header
        cdef OffsetEntry entry
        cdef IndexFile offsets
        cdef int64_t i
        while True:
            offsets = self.load_indexes().offsets
            i = offsets.floor(offset - self.base_offset)
            while i >= 0:
                entry = offsets.offset_entry(i)
                if entry.position < end:
                    break
                i -= 1      # the index may be ahead of what this reader may see
            if i < 0:
                break
            if (
                # where the index does not rise, what was found may lie behind the offset
                entry.relative_offset <= offset - self.base_offset
                and 0 <= entry.position
                and self.peek(entry.position, end, &header) == FINE
                and header.last_offset == self.base_offset + entry.relative_offset
                and header.base_offset >= self.base_offset
            ):
                place.position = entry.position
                place.expected_offset = header.base_offset
                return place
            if self.is_growing or not (self.is_trusted or self.index_checksums is not None):
                # of the active segment the writer takes care, when it finishes the indexes; else they were rebuilt just now
                offsets.lost = True
                break
            logger.warning("%s does not match its segment and is rebuilt", self.index_path)
            self.rebuild_indexes(self.size)
        place.position = 0
        place.expected_offset = self.base_offset
        return place

    cdef int locate(self, int64_t offset, int64_t end, Place* place) except -1:
        """Find the batch that holds `offset`, or the first one behind it where gaps are legal.

        1: found. 0: it lies behind the last batch, and `place` is the end. Damage on the way is stepped over when a valid
        batch with a smaller offset follows it, else it is a CorruptLogError.
        """
        cdef BatchHeader header
        cdef Problem problem
        cdef BatchReader reader
        cdef int64_t passed = -1
        place[0] = self.landing(offset, end)
        while place.position < end:
            problem = self.peek(place.position, end, &header)
            if problem == FINE:
                problem = check_order(&header, place.expected_offset, self.gaps, -1, load_word(&self.limit))
            if problem != FINE:
                reader = BatchReader(self.path, place.position, end)
                if reader.resynchronise(place.position + 1, place.expected_offset, &header) < 0 or header.base_offset > offset:
                    raise self.damage(problem, place.position, place.expected_offset, end)
                place.position = header.position
                place.expected_offset = header.base_offset
            if header.last_offset >= offset:
                if header.base_offset > offset:
                    self.require_whole(passed, place.position, end)
                if self.maps and header.size <= SMALL_BATCH:
                    prefetch(self.block.data + header.position, header.size)
                return 1
            passed = place.position
            place.position += header.size
            place.expected_offset = header.last_offset + 1
            if self.maps and place.position + 2 * header.size < end:
                # neighbours tend to have one size: fetch the next headers at once instead of one after the other
                prefetch(self.block.data + place.position + header.size, BATCH_HEADER_SIZE)
                prefetch(self.block.data + place.position + 2 * header.size, BATCH_HEADER_SIZE)
        self.require_whole(passed, place.position, end)
        return 0

    cdef int require_whole(self, int64_t position, int64_t behind, int64_t end) except -1:
        """Before offsets count as compacted away: the batch in front of the hole, if any was passed, ends where it says."""
        cdef BatchHeader header
        cdef Problem problem
        cdef Block* block
        cdef int64_t shift
        if not self.gaps or position < 0:
            return 0
        block = self.fetch(position, behind - position, &shift)
        problem = parse_header(block.data - shift, position, behind, &header)
        if problem == FINE and not crc_matches(block.data - shift, &header):
            problem = BAD_CRC
        block_release(block)
        if problem != FINE:
            raise self.damage(problem, position, header.base_offset, end)
        return 0

    cdef int64_t end_of_closed(self) except -1:
        """Offset behind the last batch of a closed segment. Raises CorruptLogError when damage hides it."""
        cdef Place place
        if self.known_end < 0:
            self.locate(self.base_offset + MOST_RELATIVE_OFFSET + 1, self.size, &place)
            self.known_end = place.expected_offset
        return self.known_end

    cdef int64_t find_time(self, int64_t timestamp, int64_t start_offset, int64_t end) except -2:
        """First offset >= `start_offset` whose timestamp is >= `timestamp`, or -1. Every batch on the way is checked."""
        cdef IndexTracker tracker = self.load_indexes()
        cdef Place place
        cdef BatchHeader header
        cdef Problem problem
        cdef Block* block
        cdef int64_t i, shift, older, found = -1
        if load_word(&tracker.max_timestamp) < timestamp and not self.is_damaged:
            return -1
        # everything up to the entry's batch is older than `timestamp`: the index was verified when it was loaded
        i = tracker.times.floor(timestamp - 1)
        place.position = 0
        place.expected_offset = self.base_offset
        if i >= 0 and not self.is_damaged:
            older = self.base_offset + tracker.times.time_entry(i).relative_offset
            place = self.landing(older, end)
            if place.position and self.peek(place.position, end, &header) == FINE and header.last_offset <= older:
                # as old as the entry: its size is all that is needed, and the next base offset proves that
                place.position += header.size
                place.expected_offset = header.last_offset + 1
        while place.position < end:
            problem = self.peek(place.position, end, &header)
            if problem != FINE:
                raise self.damage(problem, place.position, place.expected_offset, end)
            block = self.fetch(header.position, header.size, &shift)
            try:
                with nogil:
                    problem = check_order(&header, place.expected_offset, self.gaps, self.epoch, load_word(&self.limit))
                    if problem == FINE and not crc_matches(block.data - shift, &header):
                        problem = BAD_CRC
                    if problem == FINE and header.max_timestamp >= timestamp and header.last_offset >= start_offset:
                        problem = find_timestamp(
                            block.data - shift, &header, self.max_decompressed_bytes, timestamp, start_offset, &found
                        )
            finally:
                block_release(block)
            if problem != FINE:
                raise self.damage(problem, place.position, place.expected_offset, end)
            if found >= 0:
                return found
            place.position += header.size
            place.expected_offset = header.last_offset + 1
        return -1

    cdef int64_t largest_timestamp(self) except -2:
        """Largest timestamp of the segment, -1 when no record has one."""
        cdef IndexTracker tracker = self.load_indexes()
        return load_word(&tracker.max_timestamp)

    @property
    def max_timestamp(self) -> int:
        return self.largest_timestamp()

    @property
    def index_entries(self) -> int:
        return self.load_indexes().offsets.total()

    @property
    def time_index_entries(self) -> int:
        return self.load_indexes().times.total()

    @property
    def end_of_first_batch_time(self) -> int:
        """Largest timestamp of the first batch: what Kafka measures ``segment.ms`` from. -1 = none."""
        cdef BatchHeader header
        if self.first_timestamp == -2:
            if self.size == 0 or self.peek(0, self.size, &header) != FINE:
                return -1
            self.first_timestamp = header.max_timestamp
        return self.first_timestamp

    # --- errors ------------------------------------------------------------------------------------------------------

    cdef object damage(self, Problem problem, int64_t position, int64_t first_offset, int64_t end):
        """The exception for a problem at `position`; it names where reading can go on."""
        cdef BatchReader reader
        cdef BatchHeader header
        cdef int64_t resumed
        reason = describe(problem)
        if problem in (BAD_COMPRESSION, TOO_MUCH_CONTENT) and self.peek(position, end, &header) == FINE:
            reason += f" ({CODECS[header.attributes & CODEC_MASK]})"
        if problem == NO_MEMORY:
            return MemoryError(f"no memory left to read {self.path}")
        if problem == TOO_MUCH_CONTENT:
            # nothing is wrong with it, so that nobody should step over it unasked
            return RecordTooLargeError(
                f"{self.path}, position {position}, offset {first_offset}: {reason}: open the log with a "
                f"max_decompressed_bytes above {self.max_decompressed_bytes} to read it, or go on at offset {header.last_offset + 1}"
            )
        reader = BatchReader(self.path, position, end)
        resumed = reader.resynchronise(position + 1, first_offset + 1, &header)
        next_offset = header.base_offset if resumed >= 0 else None
        until = f"reading can go on at offset {next_offset}" if resumed >= 0 else "no valid batch follows in this segment"
        kind = CorruptRecordError if BAD_RECORD_LENGTH <= problem <= TRAILING_BYTES else CorruptLogError
        return kind(
            f"{self.path}, position {position}, offset {first_offset}: {reason}; {until}. "
            f"`fastlog log verify` lists all damage, `fastlog log repair` moves it to a side file",
            self.path, position, first_offset, next_offset,
        )

    # --- indexes -----------------------------------------------------------------------------------------------------

    def new_tracker(self) -> IndexTracker:
        """An empty pair of indexes for this segment, in memory."""
        return IndexTracker(
            IndexFile(self.index_path, False, self.index_bytes), IndexFile(self.time_index_path, True, self.index_bytes),
            self.base_offset, self.interval,
        )

    cpdef IndexTracker load_indexes(self):
        """The indexes: from their files when a clean close vouches for them, else rebuilt from the segment."""
        cdef IndexTracker tracker
        cdef int64_t entries
        cdef TimeEntry last
        if self.tracker is not None:
            return self.tracker
        if self.index_checksums is not None or self.is_trusted:
            tracker = self.new_tracker()
            expected = self.index_checksums or (None, None, None)
            if load_checked(tracker.offsets, self.maps, expected[0]) and load_checked(tracker.times, self.maps, expected[1]):
                if tracker.times.count:
                    last = tracker.times.time_entry(tracker.times.count - 1)
                    tracker.max_timestamp = last.timestamp
                    tracker.offset_of_max = self.base_offset + last.relative_offset
                entries = tracker.offsets.count
                tracker.bytes_since_entry = self.size - (tracker.offsets.offset_entry(entries - 1).position if entries else 0)
                self.tracker = tracker
                return tracker
            logger.warning("%s or its time index is damaged or missing, and is rebuilt", self.index_path)
        self.rebuild_indexes(self.size)
        if self.stores and not self.is_growing:
            self.force_last_time_entry()
            try:
                self.store_indexes()
            except StorageError as error:
                logger.warning("rebuilt indexes of %s stay in memory: %s", self.path, error)
        return self.tracker

    cpdef rebuild_indexes(self, int64_t end):
        """Read the segment up to ``end`` and make its indexes anew, in memory; damaged stretches are stepped over."""
        cdef IndexTracker tracker = self.new_tracker()
        cdef int64_t position = 0, offset = self.base_offset
        self.is_damaged = False
        while True:
            result = scan(self.path, position, end, offset, self.gaps, self.epoch, False, tracker)
            if result.problem is not None:
                self.is_damaged = True
            if result.resumes_at < 0:
                break
            position = result.resumes_at
            offset = result.resume_offset
        tracker.offsets.keep_pending()
        tracker.times.keep_pending()
        self.tracker = tracker
        self.index_checksums = None
        self.is_trusted = False

    @property
    def is_appended(self) -> bool:
        """Whether the indexes may be ahead of what is published, and lack their last entry."""
        return self.fd >= 0 or self.grows_tracker

    @property
    def epoch_checked(self) -> int:
        """Leader epoch that every batch must have; -1 = any."""
        return self.epoch

    def force_last_time_entry(self) -> None:
        """Add the time entry that closing a segment forces, to rebuilt indexes."""
        cdef IndexTracker tracker = self.load_indexes()
        cdef IndexTracker fresh
        cdef int64_t i
        if tracker.max_timestamp <= tracker.times.last_key:
            return
        fresh = self.new_tracker()
        for i in range(tracker.times.count):
            entry = tracker.times.time_entry(i)
            fresh.times.add(entry.timestamp, <int32_t>entry.relative_offset)
        fresh.times.add(tracker.max_timestamp, <int32_t>(tracker.offset_of_max - self.base_offset))
        fresh.times.keep_pending()
        tracker.times = fresh.times

    def store_indexes(self) -> None:
        """Write both index files as a whole; the segment must be closed."""
        cdef IndexFile index
        cdef IndexTracker tracker = self.load_indexes()
        for index in (tracker.offsets, tracker.times):
            content = b"" if index.count == 0 else <bytes>index.block.data[:index.count * index.entry_size]
            oscalls.replace_file(index.path, content)

    def compute_checksums(self) -> tuple:
        """Checksums of both index files, for the clean marker; forces the final time entry's presence beforehand."""
        cdef IndexTracker tracker = self.load_indexes()
        return (tracker.offsets.checksum(), tracker.times.checksum(), self.transaction_checksum)

    # --- life of the active segment ----------------------------------------------------------------------------------

    def begin_appending(self) -> None:
        """Open the files for appending behind ``size``; what lies beyond is cut. Nobody else may be appending."""
        cdef IndexTracker tracker
        fd = self.fd if self.fd >= 0 else oscalls.open_file(self.path, writable=True, create=True)
        try:
            # also frees blocks that were allocated ahead and never used
            oscalls.truncate(fd, self.size, self.path)
            if self.tracker is None and self.index_checksums is None:
                self.rebuild_indexes(self.size)
            tracker = self.load_indexes()
            tracker.offsets.begin_appending(self.maps)
            tracker.times.begin_appending(self.maps)
            if not self.inode:
                self.inode = oscalls.inode_of(fd)
        except BaseException:
            if self.fd < 0:
                oscalls.close_file(fd)
            raise
        self.fd = fd
        self.tracker = tracker      # another thread may have loaded them as well
        self.is_growing = True
        self.grows_tracker = True
        self.index_checksums = None
        self.let_mapping_grow()

    cdef int join_appending(self, const Published* state) except -1:
        """Open the files of the active segment, which others append to as well, for appending."""
        if self.fd < 0:
            self.fd = oscalls.open_file(self.path, writable=True)
        self.is_growing = True
        self.join_indexes(state, True)
        self.let_mapping_grow()
        return 0

    cdef int join_indexes(self, const Published* state, bint is_writer) except -1:
        """Take the active segment's indexes as far as they are published."""
        cdef IndexTracker tracker = self.new_tracker()
        try:
            tracker.offsets.join(state.index_entries, is_writer, self.maps)
            tracker.times.join(state.time_index_entries, is_writer, self.maps)
        except StorageError as error:
            # hints only (I7): without them look-ups begin at the start of the segment
            logger.warning("the indexes of %s are not used until they are rebuilt: %s", self.path, error)
            tracker = self.new_tracker()
            tracker.offsets.lost = True
        tracker.catch_up(state)
        self.tracker = tracker
        self.grows_tracker = True
        self.index_checksums = None
        return 0

    cdef int follow(self, const Published* state) except -1:
        """Before the indexes of the active segment are looked at: what others have put in since."""
        if state.index_entries == UNKNOWN_ENTRIES:
            return 0        # nobody has appended: they are as the last clean close left them
        if not self.grows_tracker or self.tracker is None:
            self.join_indexes(state, False)
        self.tracker.follow(state)
        return 0

    cdef int let_mapping_grow(self) except -1:
        if self.block != NULL and self.block.size < <size_t>self.room:
            block_release(self.block)
            self.block = NULL
        return 0

    cdef int grown(self, int64_t size) except -1:
        """The segment is closed: somebody else has rolled to the next one and finished the indexes."""
        self.size = size
        self.is_growing = False
        self.is_trusted = True
        self.tracker = None
        self.grows_tracker = False
        self.aborted = None
        self.transaction_checksum = None
        self.forget_reader()
        return 0

    def forget_indexes(self) -> None:
        """Whatever is known of the active segment's indexes: their files were cut."""
        self.tracker = None
        self.grows_tracker = False

    def discard(self) -> bool:
        """Remove the files of a segment that never became part of the log; whether they are gone."""
        is_gone = True
        for path in (self.path, self.index_path, self.time_index_path):
            try:
                oscalls.remove(path)
            except StorageError as error:
                is_gone = False
                logger.warning("an empty file stays behind until the next change of the log: %s", error)
        return is_gone

    def finish_indexes(self) -> None:
        """Force the final time entry and complete both index files; raises StorageError when that cannot be done."""
        cdef IndexTracker tracker = self.tracker
        tracker.finish()
        if not (tracker.offsets.lost or tracker.times.lost):
            tracker.offsets.write_pending()
            tracker.times.write_pending()
        if tracker.offsets.lost or tracker.times.lost:
            tracker.offsets.close()
            tracker.times.close()
            self.rebuild_indexes(self.size)
            self.force_last_time_entry()
            self.store_indexes()
            return
        tracker.offsets.close()
        tracker.times.close()

    def sync(self) -> None:
        """Make the segment's bytes durable."""
        if self.fd >= 0:
            oscalls.sync_data(self.fd, self.path)
        else:
            oscalls.sync_file(self.path)

    def sync_indexes(self) -> None:
        """Make both (finished) index files durable."""
        for path in (self.index_path, self.time_index_path):
            oscalls.sync_file(path)

    def trim(self, end: int) -> None:
        """Free what was allocated ahead of the published end; only the owner of the writer lock may."""
        if self.fd >= 0:
            os_c.os_ftruncate(self.fd, end)

    def close_files(self) -> None:
        """Close what is open for appending; mappings stay."""
        if self.fd >= 0 and self.generation == os_c.fork_generation():
            close_file(self.fd)
        self.fd = -1


cdef bint load_checked(IndexFile index, bint maps, expected) except *:
    """Load a finished index file, and check it when its checksum is known; False when it is missing or differs."""
    size = oscalls.file_size(index.path)
    if size is None or size % index.entry_size or size > index.limit * index.entry_size:
        return False
    index.load(size, maps)
    return expected is None or index.checksum() == expected
