# cython: annotation_typing=False
"""Index files, read through mmap and written by ``pwrite``; byte for byte what Kafka 4.1 writes.

An offset index entry is (last offset of a batch - segment base, position of the batch); a time index entry is (largest
timestamp of the segment so far, last offset of the batch that brought it - segment base). Both rise strictly in their
first number. A batch gets an entry when more than ``index.interval.bytes`` lie between it and the batch of the last
entry; the first batch of a segment never does. One time entry is forced when a segment is closed.

Indexes are hints (invariant I7): a lookup checks the batch it lands on, and a damaged or missing file is rebuilt from
the segment. Entries of the active segment count once the log has published how many there are; an entry that cannot be
written (full disk) is given up, and the indexes are rebuilt when the segment is finished: lookups only get slower.
"""

from libc.stdint cimport int32_t, int64_t, uint32_t, uint8_t
from libc.stdlib cimport free, realloc
from libc.string cimport memcpy

from fastlog._native cimport oscalls as os_c
from fastlog._native import oscalls
from fastlog._native.checksum cimport crc32c_extend
from fastlog._native.layout cimport (
    INDEX_ENTRY_POSITION_AT, INDEX_ENTRY_SIZE, TIME_INDEX_ENTRY_OFFSET_AT, TIME_INDEX_ENTRY_SIZE, load_int32, load_int64,
    store_int32, store_int64,
)
from fastlog._native.memory cimport Block, block_adopt_mapping, block_allocate, block_release
from fastlog._native.published cimport Published, load_word, store_word

# kept here for objects that go when the interpreter ends: modules are empty by then
cdef object close_file = oscalls.close_file


cdef Block* block_of_file(str path, int fd, int64_t size, int64_t room, bint map_file) except NULL:
    """A block of `room` bytes whose first `size` are those of an open file: mapped, or read once."""
    cdef void* address = NULL
    cdef int64_t result = 0
    cdef Block* block
    if map_file:
        result = os_c.os_map(fd, room, &address)
        if result < 0:
            raise os_c.storage_error("map", path, result)
        block = block_adopt_mapping(address, room)
    else:
        block = block_allocate(room)
    if block == NULL:
        raise MemoryError()
    if map_file:
        return block
    if size:
        result = os_c.os_pread(fd, block.data, size, 0)
    if result != size:
        block_release(block)
        raise os_c.storage_error("read", path, result if result < 0 else -5)
    return block


cdef class IndexFile:
    def __cinit__(self):
        self.block = NULL
        self.pending = NULL
        self.fd = -1
        self.generation = os_c.fork_generation()

    def __init__(self, path: str, is_time_index: bool, index_bytes: int):
        self.path = path
        self.entry_size = TIME_INDEX_ENTRY_SIZE if is_time_index else INDEX_ENTRY_SIZE
        self.limit = index_bytes // self.entry_size
        self.count = 0
        self.pending_count = 0
        self.pending_capacity = 0
        self.last_key = -1
        self.lost = False

    def __dealloc__(self):
        block_release(self.block)
        free(self.pending)
        self.close()

    cdef int64_t total(self) noexcept nogil:
        """Entries readable and pending."""
        return load_word(&self.count) + load_word(&self.pending_count)

    cdef const uint8_t* entry(self, int64_t i) noexcept nogil:
        return self.block.data + i * self.entry_size

    cdef OffsetEntry offset_entry(self, int64_t i) noexcept nogil:
        cdef OffsetEntry found
        cdef const uint8_t* at = self.entry(i)
        found.relative_offset = load_int32(at)
        found.position = load_int32(at + INDEX_ENTRY_POSITION_AT)
        return found

    cdef TimeEntry time_entry(self, int64_t i) noexcept nogil:
        cdef TimeEntry found
        cdef const uint8_t* at = self.entry(i)
        found.timestamp = load_int64(at)
        found.relative_offset = load_int32(at + TIME_INDEX_ENTRY_OFFSET_AT)
        return found

    cdef int64_t floor(self, int64_t key) noexcept nogil:
        """Number of the last readable entry whose key is <= `key`, or -1."""
        cdef int64_t low = 0, high = load_word(&self.count), middle, found
        while low < high:
            middle = (low + high) >> 1
            if self.entry_size == INDEX_ENTRY_SIZE:
                found = load_int32(self.entry(middle))
            else:
                found = load_int64(self.entry(middle))
            if found <= key:
                low = middle + 1
            else:
                high = middle
        return low - 1

    cdef void add(self, int64_t key, int32_t second) noexcept nogil:
        """Append an entry: (relative offset, position), or (timestamp, relative offset)."""
        cdef uint8_t* larger
        cdef int64_t capacity
        if self.pending_count == self.pending_capacity:
            capacity = max(64, 2 * self.pending_capacity)
            larger = <uint8_t*>realloc(self.pending, capacity * self.entry_size)
            if larger == NULL:
                store_word(&self.lost, True)
                return
            self.pending = larger
            self.pending_capacity = capacity
        cdef uint8_t* at = self.pending + self.pending_count * self.entry_size
        if self.entry_size == INDEX_ENTRY_SIZE:
            store_int32(at, <int32_t>key)
            store_int32(at + INDEX_ENTRY_POSITION_AT, second)
        else:
            store_int64(at, key)
            store_int32(at + TIME_INDEX_ENTRY_OFFSET_AT, second)
        store_word(&self.pending_count, self.pending_count + 1)
        self.last_key = key

    cdef int64_t write_pending(self) noexcept nogil:
        """Write the pending entries behind the readable ones; -errno gives them up."""
        cdef int64_t size = self.pending_count * self.entry_size, result
        if self.pending_count == 0 or self.fd < 0:
            return 0
        result = os_c.os_pwrite(self.fd, self.pending, size, self.count * self.entry_size)
        if result < 0:
            store_word(&self.pending_count, 0)
            store_word(&self.lost, True)
            self.last_key = self.key_of_last()
            return result
        if not self.block.is_mapping:
            memcpy(self.block.data + self.count * self.entry_size, self.pending, size)
        store_word(&self.count, self.count + self.pending_count)
        store_word(&self.pending_count, 0)
        return 0

    cdef uint32_t checksum(self) noexcept nogil:
        if self.block == NULL:
            return 0
        return crc32c_extend(0, self.block.data, self.count * self.entry_size)

    cdef int load(self, int64_t size, bint map_file) except -1:
        """Make the `size` bytes of a finished file readable."""
        cdef Block* block
        if size == 0:
            self.replace_block(NULL, 0)
            return 0
        cdef int fd = oscalls.open_file(self.path)
        try:
            block = block_of_file(self.path, fd, size, size, map_file)
        finally:
            oscalls.close_file(fd)
        self.replace_block(block, size // self.entry_size)
        return 0

    cdef int keep_pending(self) except -1:
        """Turn rebuilt entries into readable ones, in memory only."""
        cdef Block* block = NULL
        cdef int64_t count = self.pending_count
        if count:
            block = block_allocate(count * self.entry_size)
            if block == NULL:
                raise MemoryError()
            memcpy(block.data, self.pending, count * self.entry_size)
        self.pending_count = 0
        self.replace_block(block, count)
        return 0

    cdef int replace_block(self, Block* block, int64_t count) except -1:
        block_release(self.block)
        self.block = block
        store_word(&self.count, count)
        self.last_key = self.key_of_last()
        return 0

    cdef int64_t key_of_last(self) noexcept nogil:
        """Key of the last readable entry, -1 when there is none."""
        if self.count == 0:
            return -1
        return load_int32(self.entry(self.count - 1)) if self.entry_size == INDEX_ENTRY_SIZE else load_int64(self.entry(self.count - 1))

    cdef int begin_appending(self, bint map_file) except -1:
        """Open the file for entries behind the readable ones; what the file holds beyond them is cut."""
        cdef int64_t count = self.count
        cdef int fd = oscalls.open_file(self.path, writable=True, create=True)
        try:
            if os_c.os_file_size(fd) != count * self.entry_size:
                oscalls.truncate(fd, count * self.entry_size, self.path)
            if self.block != NULL and not self.block.is_mapping:
                # entries that were rebuilt in memory: the file may hold anything
                oscalls.write_at(fd, self.block.data[:count * self.entry_size], 0, self.path)
            self.map_with_room(fd, count, map_file)
        except BaseException:
            oscalls.close_file(fd)
            raise
        self.close()        # a segment that could not begin with its other index begins again
        self.fd = fd
        return 0

    cdef int join(self, int64_t count, bint is_writer, bint map_file) except -1:
        """Use the file of an active segment that others append to as well; `count` entries of it are published."""
        cdef int fd = oscalls.open_file(self.path, writable=is_writer)
        try:
            if os_c.os_file_size(fd) < count * self.entry_size:
                raise os_c.storage_error("read", self.path, -5)
            self.map_with_room(fd, count, map_file)
        except BaseException:
            oscalls.close_file(fd)
            raise
        self.fd = fd
        return 0

    cdef int map_with_room(self, int fd, int64_t count, bint map_file) except -1:
        """Make `count` entries readable, and those that follow later."""
        self.replace_block(
            block_of_file(self.path, fd, count * self.entry_size, self.limit * self.entry_size, map_file), count
        )
        return 0

    cdef int follow(self, int64_t count) noexcept nogil:
        """Entries that others have published since. Never fewer: another thread may know more already."""
        cdef int64_t size = (count - load_word(&self.count)) * self.entry_size
        if size <= 0 or self.block == NULL or count > self.limit:
            return 0
        if os_c.os_file_size(self.fd) < count * self.entry_size:
            # not the file that others write to, or somebody cut it: touching what is not there is a signal
            store_word(&self.lost, True)
            return 0
        if not self.block.is_mapping:
            if os_c.os_pread(self.fd, self.block.data + self.count * self.entry_size, size, self.count * self.entry_size) != size:
                store_word(&self.lost, True)
                return 0
        store_word(&self.count, count)
        self.last_key = self.key_of_last()
        return 0

    cdef void close(self) noexcept:
        """Close the file; what was read of it stays."""
        if self.fd >= 0 and self.generation == os_c.fork_generation():
            close_file(self.fd)
        self.fd = -1


cdef class IndexTracker:
    def __init__(self, IndexFile offsets, IndexFile times, base_offset: int, interval: int):
        self.offsets = offsets
        self.times = times
        self.base_offset = base_offset
        self.interval = interval
        self.bytes_since_entry = 0
        self.max_timestamp = -1
        self.offset_of_max = -1

    cdef void track(self, int64_t position, int64_t size, int64_t last_offset, int64_t max_timestamp) noexcept nogil:
        if max_timestamp > self.max_timestamp:
            store_word(&self.max_timestamp, max_timestamp)
            self.offset_of_max = last_offset
        if self.bytes_since_entry > self.interval:
            # an append of many batches into an empty segment may have more than an index holds: the rest goes without
            if self.offsets.total() < self.offsets.limit:
                self.offsets.add(last_offset - self.base_offset, <int32_t>position)
            if self.max_timestamp > self.times.last_key and self.times.total() < self.times.limit - 1:
                self.times.add(self.max_timestamp, <int32_t>(self.offset_of_max - self.base_offset))
            self.bytes_since_entry = 0
        self.bytes_since_entry += size

    cdef void finish(self) noexcept nogil:
        """The time entry that closing a segment forces."""
        if self.max_timestamp > self.times.last_key:
            self.times.add(self.max_timestamp, <int32_t>(self.offset_of_max - self.base_offset))

    cdef void follow(self, const Published* state) noexcept nogil:
        """What others have appended to the active segment since."""
        self.offsets.follow(state.index_entries)
        self.times.follow(state.time_index_entries)
        if state.max_timestamp > load_word(&self.max_timestamp):
            store_word(&self.max_timestamp, state.max_timestamp)
            self.offset_of_max = state.offset_of_max

    cdef void catch_up(self, const Published* state) noexcept nogil:
        """Likewise, for the owner of the writer lock."""
        self.follow(state)
        self.bytes_since_entry = state.bytes_since_entry
        store_word(&self.max_timestamp, state.max_timestamp)
        self.offset_of_max = state.offset_of_max

    cdef void tell(self, Published* state) noexcept nogil:
        """Put what appenders must know of each other's entries into the tuple to be published. Never fewer entries: one who
        cannot use the files leaves those of others alone."""
        state.index_entries = max(state.index_entries, self.offsets.count)
        state.time_index_entries = max(state.time_index_entries, self.times.count)
        state.bytes_since_entry = self.bytes_since_entry
        state.max_timestamp = self.max_timestamp
        state.offset_of_max = self.offset_of_max

    cdef bint lacks_room(self, int64_t batches) noexcept nogil:
        """Whether `batches` more batches could overfill an index; one time entry is reserved for closing."""
        return self.offsets.total() + batches > self.offsets.limit or self.times.total() + batches > self.times.limit - 1
