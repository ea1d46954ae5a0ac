# cython: annotation_typing=False
"""Compaction: of each key only the latest record stays, by Kafka's rules.

A ``CleaningRound`` goes over a partition twice. First over its dirty segments, to learn the latest offset of each key;
then over all of them, from the front, to write each group of segments anew as one file without the records that are out
of date. What it decides about a batch:

- a batch that keeps all its records is copied as it is; of one that keeps some a new one is made, with the same offsets,
  sequence, epochs, codec and type of timestamps, and a smaller records count;
- a record behind what the map covers stays; one without a key goes; else the latest one of its key stays;
- a tombstone (no value) stays for ``delete_retention_ms`` after it was first seen here: its batch then gets a delete
  horizon, bit 6 of the attributes, with the horizon in place of the base timestamp. When that time is over it goes;
- batches of aborted transactions go. A marker stays while a batch of its transaction was seen in this round; after that it
  gets a delete horizon like a tombstone;
- a batch that keeps no record goes, but its header stays if it is the last one of a producer that is still active, if it
  ends where the round ends, or if it is the last one of its group. (The last is our own rule: the file that replaces a
  group then says itself how far the group reached, which finishing an interrupted swap depends on.)

Memory is bounded: when the map is full it ends in the middle of a segment, and the round covers that much. Nothing here
removes or renames a file, and every byte is checked before it is believed: damage ends the round with an error.
"""

from libc.stdint cimport int16_t, int32_t, int64_t, uint64_t, uint8_t
from libc.stdlib cimport calloc, free, realloc
from libc.string cimport memcpy, memset

from fastlog._native cimport oscalls as os_c
from fastlog._native import oscalls
from fastlog._native.checksum cimport crc32c_extend
from fastlog._native.codecs cimport BROKEN, NO_ROOM, compress, compressed_room, content_bound, decompress, is_bound_exceeded
from fastlog._native.decoder cimport (
    BAD_COMPRESSION, BAD_CONTROL, BatchHeader, END_OF_BYTES, FINE, NO_LIMIT, NO_MEMORY, Problem, TOO_MUCH_CONTENT, check_order, check_records,
    describe,
)
from fastlog._native.index cimport IndexFile, IndexTracker
from fastlog._native.layout cimport (
    ATTRIBUTES_AT, BASE_OFFSET_AT, BASE_SEQUENCE_AT, BASE_TIMESTAMP_AT, BATCH_HEADER_SIZE, BATCH_LENGTH_AT, CODEC_MASK, CONTROL_BIT,
    CONTROL_KEY_SIZE, CONTROL_TYPE_AT, CRC_AT, CRC_COVERS_FROM, DELETE_HORIZON_BIT, LAST_OFFSET_DELTA_AT, LEADER_EPOCH_AT,
    LOG_OVERHEAD, MAGIC_AT, MAGIC_V2, MAX_TIMESTAMP_AT, PRODUCER_EPOCH_AT, PRODUCER_ID_AT, RECORDS_COUNT_AT, TIMESTAMP_TYPE_BIT,
    TRANSACTIONAL_BIT, load_int16, store_int16, store_int32, store_int64, store_uint32,
)
from fastlog._native.scanner cimport BatchReader
from fastlog._native.varint cimport read_varint, read_varlong, varint_size, write_varint

from fastlog.config import DEFAULT_MAX_DECOMPRESSED_BYTES
from fastlog.errors import CorruptLogError, NotSupportedError

cdef extern from *:
    """
    #include <stdint.h>
    #include <stdlib.h>
    #include <string.h>
    #define fastlog_prefetch_slot(at) __builtin_prefetch(at)
    static inline uint64_t fastlog_mix(uint64_t a, uint64_t b) {
    #if defined(__SIZEOF_INT128__)
        unsigned __int128 product = (unsigned __int128)a * b;
        return (uint64_t)product ^ (uint64_t)(product >> 64);
    #else
        uint64_t product = a * b;
        product ^= product >> 29;
        return (product * b) ^ (product >> 32);
    #endif
    }
    /* Of a key, eight bytes at a time. The seed differs from process to process, so that nobody can prepare keys that collide. */
    static inline uint64_t fastlog_load_up_to_8(const uint8_t *at, int64_t size) {
        uint32_t low, high;
        if (size >= 4) {
            memcpy(&low, at, 4);
            memcpy(&high, at + size - 4, 4);
            return (uint64_t)high << 32 | low;
        }
        return size == 0 ? 0 : (uint64_t)at[0] << 16 | (uint64_t)at[size >> 1] << 8 | at[size - 1];
    }
    /* Of a key, eight bytes at a time, the last eight once more where they do not end with it. The seed differs from
     * process to process, so that nobody can prepare keys that collide. */
    static inline uint64_t fastlog_hash_key(const uint8_t *key, int64_t size, uint64_t seed) {
        uint64_t hash = fastlog_mix(seed ^ (uint64_t)size, UINT64_C(0x9E3779B97F4A7C15)), word;
        if (size < 8) {
            word = fastlog_load_up_to_8(key, size);
        } else {
            for (int64_t at = 0; at + 8 < size; at += 8) {
                memcpy(&word, key + at, 8);
                hash = fastlog_mix(hash ^ word, seed | UINT64_C(0x8000000080000001));
            }
            memcpy(&word, key + size - 8, 8);
        }
        return fastlog_mix(hash ^ word, UINT64_C(0xD6E8FEB86659FD93)) ^ (hash >> 31);
    }
    /* Most keys are short: a call would cost more than the comparison. */
    static inline int fastlog_is_same_key(const uint8_t *a, const uint8_t *b, int64_t size) {
        uint64_t one, other;
        if (size > 64)
            return memcmp(a, b, (size_t)size) == 0;
        if (size < 8)
            return fastlog_load_up_to_8(a, size) == fastlog_load_up_to_8(b, size);
        for (int64_t at = 0; at + 8 < size; at += 8) {
            memcpy(&one, a + at, 8);
            memcpy(&other, b + at, 8);
            if (one != other)
                return 0;
        }
        memcpy(&one, a + size - 8, 8);
        memcpy(&other, b + size - 8, 8);
        return one == other;
    }
    """
    void* aligned_alloc(size_t alignment, size_t size) nogil
    void prefetch "fastlog_prefetch_slot"(const void* at) noexcept nogil
    uint64_t mix "fastlog_mix"(uint64_t a, uint64_t b) noexcept nogil
    uint64_t hash_key "fastlog_hash_key"(const uint8_t* key, int64_t size, uint64_t seed) noexcept nogil
    bint is_same_key "fastlog_is_same_key"(const uint8_t* a, const uint8_t* b, int64_t size) noexcept nogil

cdef enum:
    CHUNK = 64                      # records whose look-ups wait for memory together
    FIRST_SLOTS = 1 << 10
    FIRST_ENTRIES = 1 << 16
    WRITE_SIZE = 1 << 20
    HUGE_PAGE = 2 << 20
    MOST_POSITION = 0x7FFFFFFF      # a position in a segment has 31 bits
    KEY_AT = sizeof(int64_t) + sizeof(int32_t)
    TAG_SHIFT = 48
    ABORT_MARKER = 0
    COMMIT_MARKER = 1
    NO_MARKER = -1

cdef uint64_t PLACE_MASK = (<uint64_t>1 << TAG_SHIFT) - 1

# Kafka's log.cleaner.dedupe.buffer.size
DEFAULT_MEMORY = 128 << 20


class OutputTooLargeError(Exception):
    """The output would not fit into a segment: delete horizons take more bytes than what was dropped has freed."""


cdef inline void step(const uint8_t** cursor, const uint8_t* end, int64_t base_offset, SeenRecord* record) noexcept nogil:
    """Read the record at `cursor` and move behind it. `check_records` has found all of them whole."""
    cdef const uint8_t* at = cursor[0]
    cdef int32_t size = 0, delta = 0
    record.start = at
    at = read_varint(at, end, &size)
    record.end = at + size
    at = read_varlong(at + 1, end, &record.timestamp_delta)
    at = read_varint(at, end, &delta)
    record.offset = base_offset + delta
    at = read_varint(at, end, &size)
    record.key = at
    record.key_size = size
    if size > 0:
        at += size
    read_varint(at, end, &size)
    record.is_tombstone = size < 0
    cursor[0] = record.end


cdef int no_memory() except -1 with gil:
    raise MemoryError()


cdef int grow_buffer(uint8_t** buffer, int64_t* room, int64_t size) except -1 nogil:
    """At least `size` bytes; what was in there may be gone."""
    if size > room[0]:
        free(buffer[0])
        room[0] = 0
        buffer[0] = <uint8_t*>realloc(NULL, size)
        if buffer[0] == NULL:
            no_memory()
        room[0] = size
    return 0


cdef void* allocate_large(int64_t size) except NULL nogil:
    """Memory for look-ups all over it; to be freed."""
    cdef void* memory
    if size < HUGE_PAGE:
        memory = realloc(NULL, size)
    else:
        size = (size + HUGE_PAGE - 1) & ~<int64_t>(HUGE_PAGE - 1)
        memory = aligned_alloc(HUGE_PAGE, size)
        if memory != NULL:
            os_c.os_prefer_huge_pages(memory, size)
    if memory == NULL:
        no_memory()
    return memory


# --- producer ids to numbers -------------------------------------------------------------------------------------------

cdef inline int64_t home(const NumberMap* numbers, int64_t key) noexcept nogil:
    return <int64_t>(mix(<uint64_t>key ^ <uint64_t>0x9E3779B97F4A7C15, <uint64_t>0xD6E8FEB86659FD93) & <uint64_t>(numbers.room - 1))


cdef int64_t place_of(const NumberMap* numbers, int64_t key) noexcept nogil:
    """Where `key` is, or -1."""
    cdef int64_t i
    if numbers.count == 0:
        return -1
    i = home(numbers, key)
    while numbers.used[i]:
        if numbers.keys[i] == key:
            return i
        i = (i + 1) & (numbers.room - 1)
    return -1


cdef void clear_numbers(NumberMap* numbers) noexcept nogil:
    free(numbers.keys)
    free(numbers.values)
    free(numbers.used)
    memset(numbers, 0, sizeof(NumberMap))


cdef int set_number(NumberMap* numbers, int64_t key, int64_t value) except -1 nogil:
    cdef int64_t i = place_of(numbers, key), j
    cdef NumberMap larger
    if i >= 0:
        numbers.values[i] = value
        return 0
    if 2 * numbers.count >= numbers.room:
        larger.room = max(16, 2 * numbers.room)
        larger.count = numbers.count
        larger.keys = <int64_t*>calloc(larger.room, sizeof(int64_t))
        larger.values = <int64_t*>calloc(larger.room, sizeof(int64_t))
        larger.used = <uint8_t*>calloc(larger.room, 1)
        if larger.keys == NULL or larger.values == NULL or larger.used == NULL:
            clear_numbers(&larger)
            no_memory()
        for j in range(numbers.room):
            if numbers.used[j]:
                i = home(&larger, numbers.keys[j])
                while larger.used[i]:
                    i = (i + 1) & (larger.room - 1)
                larger.used[i] = 1
                larger.keys[i] = numbers.keys[j]
                larger.values[i] = numbers.values[j]
        clear_numbers(numbers)
        numbers[0] = larger
    i = home(numbers, key)
    while numbers.used[i]:
        i = (i + 1) & (numbers.room - 1)
    numbers.used[i] = 1
    numbers.keys[i] = key
    numbers.values[i] = value
    numbers.count += 1
    return 0


cdef void remove_number(NumberMap* numbers, int64_t hole) noexcept nogil:
    """Forget the key at place `hole`; those that were pushed behind it move up."""
    cdef int64_t mask = numbers.room - 1, i = hole
    numbers.count -= 1
    while True:
        i = (i + 1) & mask
        if not numbers.used[i]:
            break
        if ((i - home(numbers, numbers.keys[i])) & mask) >= ((i - hole) & mask):
            numbers.keys[hole] = numbers.keys[i]
            numbers.values[hole] = numbers.values[i]
            hole = i
    numbers.used[hole] = 0


cdef list numbers_of(const NumberMap* numbers):
    return [(numbers.keys[i], numbers.values[i]) for i in range(numbers.room) if numbers.used[i]]


# --- keys to offsets ---------------------------------------------------------------------------------------------------

cdef class OffsetMap:
    def __cinit__(self, memory: int = DEFAULT_MEMORY):
        self.memory = memory
        self.start = self.latest = -1
        self.latest_bits = NULL
        self.seed = <uint64_t>(<int64_t>hash("offset map"))
        self.slots = <uint64_t*>calloc(FIRST_SLOTS, sizeof(uint64_t))
        self.entries = <uint8_t*>realloc(NULL, FIRST_ENTRIES)
        if self.slots == NULL or self.entries == NULL:
            raise MemoryError()
        self.slot_count = FIRST_SLOTS
        self.room = FIRST_ENTRIES

    def __dealloc__(self):
        free(self.slots)
        free(self.entries)
        free(self.latest_bits)

    def get(self, key: bytes) -> int | None:
        """The latest offset of ``key``, or None."""
        cdef const uint8_t* data = key
        cdef uint64_t hash_ = hash_key(data, len(key), self.seed)
        cdef KeyEntry* entry = self.find(data, <int32_t>len(key), hash_, <int64_t>(hash_ & <uint64_t>(self.slot_count - 1)))
        return entry.offset if entry != NULL else None

    cdef KeyEntry* find(self, const uint8_t* key, int32_t size, uint64_t hash_, int64_t slot) noexcept nogil:
        """The entry of a key, or NULL."""
        cdef uint64_t found
        cdef KeyEntry* entry
        while True:
            found = self.slots[slot]
            if found == 0:
                return NULL
            if found >> TAG_SHIFT == hash_ >> TAG_SHIFT:
                entry = <KeyEntry*>(self.entries + ((found & PLACE_MASK) - 1) * 8)
                if entry.size == size and is_same_key(<uint8_t*>entry + KEY_AT, key, size):
                    return entry
            slot = (slot + 1) & (self.slot_count - 1)

    cdef int put(self, const SeenRecord* record) except -1 nogil:
        """Remember the offset of a record as the latest one of its key. 0: the map is full and the key is not in it."""
        cdef KeyEntry* entry = self.find(record.key, record.key_size, record.hash, record.slot)
        cdef int64_t need = (KEY_AT + <int64_t>record.key_size + 7) & ~<int64_t>7, slots = self.slot_count, room, i
        cdef uint8_t* larger
        if entry != NULL:
            entry.offset = record.offset
            return 1
        if 4 * (self.count + 1) > 3 * slots:
            slots *= 2
        # one key finds room, however long it is: a round always gets on
        if self.used + need + slots * <int64_t>sizeof(uint64_t) > self.memory and self.count > 0:
            return 0
        if slots != self.slot_count:
            self.grow()
        if self.used + need > self.room:
            room = max(self.used + need, min(2 * self.room, self.memory))
            larger = <uint8_t*>allocate_large(room)
            memcpy(larger, self.entries, self.used)
            free(self.entries)
            self.entries = larger
            self.room = room
        entry = <KeyEntry*>(self.entries + self.used)
        entry.offset = record.offset
        entry.size = record.key_size
        memcpy(<uint8_t*>entry + KEY_AT, record.key, record.key_size)
        i = <int64_t>(record.hash & <uint64_t>(self.slot_count - 1))
        while self.slots[i] != 0:
            i = (i + 1) & (self.slot_count - 1)
        self.slots[i] = (record.hash >> TAG_SHIFT) << TAG_SHIFT | <uint64_t>(self.used // 8 + 1)
        self.used += need
        self.count += 1
        return 1

    cdef int grow(self) except -1 nogil:
        """Twice as many slots, filled anew from the entries."""
        cdef int64_t count = 2 * self.slot_count, at = 0, i
        cdef uint64_t* larger = <uint64_t*>allocate_large(count * sizeof(uint64_t))
        cdef KeyEntry* entry
        cdef uint64_t hash_
        memset(larger, 0, count * sizeof(uint64_t))
        while at < self.used:
            entry = <KeyEntry*>(self.entries + at)
            hash_ = hash_key(<uint8_t*>entry + KEY_AT, entry.size, self.seed)
            i = <int64_t>(hash_ & <uint64_t>(count - 1))
            while larger[i] != 0:
                i = (i + 1) & (count - 1)
            larger[i] = (hash_ >> TAG_SHIFT) << TAG_SHIFT | <uint64_t>(at // 8 + 1)
            at += (KEY_AT + <int64_t>entry.size + 7) & ~<int64_t>7
        free(self.slots)
        self.slots = larger
        self.slot_count = count
        return 0

    # A look-up waits for memory twice: for the slot, and for the entry that it names. Many are on their way together.

    cdef void fetch_slot(self, SeenRecord* record) noexcept nogil:
        record.hash = hash_key(record.key, record.key_size, self.seed)
        record.slot = <int64_t>(record.hash & <uint64_t>(self.slot_count - 1))
        prefetch(&self.slots[record.slot])

    cdef void fetch_entry(self, SeenRecord* record) noexcept nogil:
        cdef uint64_t found
        while True:
            found = self.slots[record.slot]
            if found == 0:
                return
            if found >> TAG_SHIFT == record.hash >> TAG_SHIFT:
                prefetch(self.entries + ((found & PLACE_MASK) - 1) * 8)
                return
            record.slot = (record.slot + 1) & (self.slot_count - 1)

    cdef int add_records(self, const uint8_t* at, const uint8_t* end, const BatchHeader* header, int64_t start) except -1 nogil:
        """Map the records of a batch from offset `start` on. 0: full; `latest` then says how far it came."""
        cdef SeenRecord[CHUNK] seen
        cdef SeenRecord* record
        cdef int64_t left = header.count, slots
        cdef int i, n
        while left:
            n = <int>min(left, <int64_t>CHUNK)
            slots = self.slot_count
            for i in range(n):
                step(&at, end, header.base_offset, &seen[i])
                if seen[i].key_size >= 0:
                    self.fetch_slot(&seen[i])
            for i in range(n):
                if seen[i].key_size >= 0:
                    self.fetch_entry(&seen[i])
            for i in range(n):
                record = &seen[i]
                if record.key_size < 0 or record.offset < start:
                    continue
                if slots != self.slot_count:
                    record.slot = <int64_t>(record.hash & <uint64_t>(self.slot_count - 1))
                if not self.put(record):
                    self.latest = record.offset - 1
                    return 0
            left -= n
        return 1

    cdef void mark_latest(self) noexcept nogil:
        """Once all is mapped: offsets tell by one bit whether they are the latest of their key, if bits have room.

        A mapped record then needs no look-up: it stays if its own offset is one of those in the map.
        """
        cdef int64_t span = self.latest - self.start + 1, at = 0
        cdef KeyEntry* entry
        if self.latest_bits != NULL or self.start < 0 or span <= 0 or span >> 3 > self.memory >> 2:
            return
        self.latest_bits = <uint8_t*>calloc((span >> 3) + 1, 1)
        if self.latest_bits == NULL:
            return
        while at < self.used:
            entry = <KeyEntry*>(self.entries + at)
            self.latest_bits[(entry.offset - self.start) >> 3] |= <uint8_t>(1 << ((entry.offset - self.start) & 7))
            at += (KEY_AT + <int64_t>entry.size + 7) & ~<int64_t>7

    cdef bint is_latest(self, const SeenRecord* record) noexcept nogil:
        """Whether a record that lies at or below `latest` and has a key is the latest one of it."""
        cdef KeyEntry* entry
        cdef int64_t place
        if self.latest_bits != NULL and record.offset >= self.start:
            place = record.offset - self.start
            return self.latest_bits[place >> 3] >> (place & 7) & 1
        entry = self.find(record.key, record.key_size, record.hash, record.slot)
        return entry == NULL or record.offset >= entry.offset


# --- a round -----------------------------------------------------------------------------------------------------------

cdef class Rewritten:
    pass


cdef class CleaningRound:
    """One pass over a partition: ``map_segment`` for the dirty segments, then ``rewrite`` for each group, in order.

    Args:
        now: milliseconds; delete horizons up to it have passed.
        horizon: the delete horizon that tombstones and markers get, milliseconds.
        upper_bound: offset where the round may end, the first one that must stay as it is.
        memory: bytes that the map may take.
        aborted: transactions that were taken back, as (producer id, first offset, offset of the marker, entry of
            ``.txnindex`` as bytes), rising by first offset.
        producers: active producers, as (producer id, epoch, offset of the last batch with data or -1).
        max_decompressed_bytes: a compressed batch with more content ends the round.
    """

    def __cinit__(self):
        self.fd = -1
        self.aborted = NULL
        self.buffer = NULL
        self.kept = NULL
        self.ended = NULL
        self.content = NULL
        self.content_kept = NULL

    def __init__(
        self, *, now: int, horizon: int, upper_bound: int, memory: int = DEFAULT_MEMORY, aborted=(), producers=(),
        max_decompressed_bytes: int = DEFAULT_MAX_DECOMPRESSED_BYTES,
    ):
        self.map = OffsetMap(memory)
        self.now = now
        self.horizon = horizon
        self.upper_bound = upper_bound
        self.max_decompressed_bytes = max_decompressed_bytes
        self.entries = [entry for *_, entry in aborted]
        self.aborted_count = len(self.entries)
        self.aborted = <Aborted*>calloc(max(self.aborted_count, 1), sizeof(Aborted))
        if self.aborted == NULL:
            raise MemoryError()
        for i, (producer_id, first_offset, last_offset, _) in enumerate(aborted):
            self.aborted[<int64_t>i].producer_id = producer_id
            self.aborted[<int64_t>i].first_offset = first_offset
            self.aborted[<int64_t>i].last_offset = last_offset
            if i and first_offset < self.aborted[<int64_t>i - 1].first_offset:
                raise ValueError("aborted transactions must rise by their first offset")
        for producer_id, epoch, last_offset in producers:
            set_number(&self.producer_offsets, producer_id, last_offset)
            set_number(&self.producer_epochs, producer_id, epoch)

    def __dealloc__(self):
        clear_numbers(&self.mapping.aborted)
        clear_numbers(&self.mapping.committed)
        clear_numbers(&self.rewriting.aborted)
        clear_numbers(&self.rewriting.committed)
        clear_numbers(&self.producer_offsets)
        clear_numbers(&self.producer_epochs)
        free(self.aborted)
        free(self.buffer)
        free(self.kept)
        free(self.ended)
        free(self.content)
        free(self.content_kept)
        if self.fd >= 0:
            oscalls.close_file(self.fd)

    def map_segment(self, path: str, size: int, start_offset: int, next_base: int) -> bool:
        """Map the records of a segment from ``start_offset`` on; ``next_base`` is where the next segment begins.

        True: the map is full, and covers the log up to ``map.latest``. Raises CorruptLogError at damage, StorageError.
        """
        cdef BatchReader reader = open_segment(path, size)
        cdef int64_t start = start_offset
        cdef int full
        self.expected = 0
        if self.map.start < 0:
            self.map.start = start
        with nogil:
            full = self.map_batches(reader, start)
        if full:
            return True
        # offsets at the end of a segment that no batch has are covered too
        self.map.latest = max(self.map.latest, <int64_t>next_base - 1)
        return False

    def rewrite(
        self, sources: list, target: str, *, base_offset: int, index_bytes: int, interval: int, keeps_times: bool = False
    ) -> Rewritten:
        """Write the records of ``sources``, pairs of path and size, that shall stay to the new file ``target``.

        ``keeps_times``: rewrite no timestamp and set no horizon, so that the output cannot be larger than its sources.
        Nothing is synced. Raises CorruptLogError at damage, StorageError or StorageFullError when the file cannot be written;
        ``target`` then holds garbage. OutputTooLargeError leaves the round as it was: the group may be tried again.
        """
        cdef IndexFile offsets = IndexFile(target, False, index_bytes), times = IndexFile(target, True, index_bytes)
        cdef BatchReader reader
        cdef int64_t i, last = -1
        cdef bint ends_the_group
        self.tracker = IndexTracker(offsets, times, base_offset, interval)
        self.result = Rewritten.__new__(Rewritten)
        self.result.next_offset = base_offset
        self.result.max_timestamp = -1
        self.target = target
        self.expected = base_offset
        self.map.mark_latest()
        self.pending = 0
        self.ended_count = 0
        self.keeps_times = keeps_times
        before = self.save_transactions()
        self.fd = oscalls.open_file(target, writable=True, create=True)
        try:
            oscalls.truncate(self.fd, 0, target)
            for i, (path, size) in enumerate(sources):
                if size:
                    last = i
            for i, (path, size) in enumerate(sources):
                reader = open_segment(path, size)
                ends_the_group = i == last
                with nogil:
                    self.rewrite_batches(reader, ends_the_group)
                self.result.bytes_read += size
            with nogil:
                self.flush()
        except OutputTooLargeError:
            self.restore_transactions(before)
            raise
        finally:
            oscalls.close_file(self.fd)
            self.fd = -1
        self.tracker.finish()
        if offsets.lost or times.lost:
            raise MemoryError()
        self.result.offset_index = pending_entries(offsets)
        self.result.time_index = pending_entries(times)
        self.result.transaction_index = b"".join([self.entries[self.ended[i]] for i in range(self.ended_count)])
        result, self.result, self.tracker = self.result, None, None
        return result

    # --- reading -----------------------------------------------------------------------------------------------------

    cdef int next_batch(self, BatchReader reader, BatchHeader* header) except -1 nogil:
        """The next batch, its checksum and its place checked. 0: there is none."""
        cdef int64_t failure = 0
        cdef Problem problem = reader.next(header, True, &failure)
        if problem == END_OF_BYTES:
            return 0
        if problem == FINE:
            problem = check_order(header, self.expected, True, -1, NO_LIMIT)
        if problem != FINE:
            refuse(reader, problem, header.position, self.expected, failure)
        self.expected = header.last_offset + 1
        return 1

    cdef int expand(self, BatchReader reader, const BatchHeader* header, const uint8_t** at, const uint8_t** end) except -1 nogil:
        """The records of a batch as they are without a codec; every length in them is checked."""
        cdef Problem problem
        cdef BatchHeader plain = header[0]
        cdef const uint8_t* bytes_ = reader.base()
        if header.attributes & CODEC_MASK:
            plain.position = 0
            plain.size = BATCH_HEADER_SIZE + self.decompress_content(reader, header)
            plain.attributes &= ~CODEC_MASK
            bytes_ = self.content
        problem = check_records(bytes_, &plain, MOST_POSITION)
        if problem != FINE:
            refuse(reader, problem, header.position, header.base_offset, 0)
        at[0] = bytes_ + plain.position + BATCH_HEADER_SIZE
        end[0] = bytes_ + plain.position + plain.size
        return 0

    cdef int64_t decompress_content(self, BatchReader reader, const BatchHeader* header) except -1 with gil:
        """Fill `content` with the records of a compressed batch, as many bytes as it returns."""
        cdef const uint8_t* area = reader.base() + header.position + BATCH_HEADER_SIZE
        cdef int64_t area_size = header.size - BATCH_HEADER_SIZE, size, room
        cdef int codec = header.attributes & CODEC_MASK
        if header.attributes & CONTROL_BIT:
            refuse(reader, BAD_CONTROL, header.position, header.base_offset, 0)
        room = content_bound(codec, area, area_size)
        if room == BROKEN:
            refuse(reader, BAD_COMPRESSION, header.position, header.base_offset, 0)
        room = min(room, self.max_decompressed_bytes)
        while True:
            grow_buffer(&self.content, &self.content_room, BATCH_HEADER_SIZE + room)
            size = decompress(codec, area, area_size, self.content + BATCH_HEADER_SIZE, room)
            if size >= 0:
                return size
            if size == NO_ROOM and room == self.max_decompressed_bytes:
                raise NotSupportedError(
                    f"{reader.path}, position {header.position}, offset {header.base_offset}: {describe(TOO_MUCH_CONTENT)} "
                    f"({room}). The log is not compacted and nothing was changed; raise max_decompressed_bytes"
                )
            if size == BROKEN or not is_bound_exceeded(codec):
                refuse(reader, BAD_COMPRESSION, header.position, header.base_offset, 0)
            room = min(4 * room + 4096, self.max_decompressed_bytes)

    # --- transactions ------------------------------------------------------------------------------------------------

    def save_transactions(self) -> tuple:
        """What rewriting knows of transactions at this moment, for ``restore_transactions``."""
        return (
            self.rewriting.next, numbers_of(&self.rewriting.aborted), numbers_of(&self.rewriting.committed),
            [self.aborted[i].is_observed for i in range(self.aborted_count)],
        )

    def restore_transactions(self, state: tuple) -> None:
        """Forget what came by since then."""
        cdef int64_t i
        self.rewriting.next, aborted, committed, observed = state
        clear_numbers(&self.rewriting.aborted)
        clear_numbers(&self.rewriting.committed)
        for key, value in aborted:
            set_number(&self.rewriting.aborted, key, value)
        for key, value in committed:
            set_number(&self.rewriting.committed, key, value)
        for i in range(self.aborted_count):
            self.aborted[i].is_observed = observed[i]

    cdef int come_by(self, Transactions* seen, const BatchHeader* header) except -1 nogil:
        """Take notice of the aborted transactions that have begun up to the end of this batch."""
        cdef int64_t i, place
        while seen.next < self.aborted_count and self.aborted[seen.next].first_offset <= header.last_offset:
            i = seen.next
            seen.next += 1
            if self.aborted[i].last_offset < header.base_offset:
                continue
            place = place_of(&seen.aborted, self.aborted[i].producer_id)
            # an earlier one that is over has lost its marker to an earlier round
            if place < 0 or self.aborted[seen.aborted.values[place]].last_offset < header.base_offset:
                set_number(&seen.aborted, self.aborted[i].producer_id, i)
        return 0

    cdef int begin_batch(self, Transactions* seen, const BatchHeader* header, bint observes) except -1 nogil:
        """Take notice of a batch with data. 1: its transaction was taken back."""
        cdef int64_t place, i
        self.come_by(seen, header)
        if not header.attributes & TRANSACTIONAL_BIT:
            return 0
        place = place_of(&seen.aborted, header.producer_id)
        if place >= 0:
            i = seen.aborted.values[place]
            if self.aborted[i].last_offset >= header.base_offset:
                if observes:
                    self.aborted[i].is_observed = True
                return 1
            # its marker is gone already
            remove_number(&seen.aborted, place)
        set_number(&seen.committed, header.producer_id, 0)
        return 0

    cdef int end_transaction(self, Transactions* seen, const BatchHeader* header, int marker, bint observes) except -1 nogil:
        """Take notice of a control batch. 1: no batch of what it ends came by, so that it may go."""
        cdef int64_t place, i
        cdef int64_t* larger
        self.come_by(seen, header)
        if header.count == 0:
            return 1
        if marker == COMMIT_MARKER:
            place = place_of(&seen.committed, header.producer_id)
            if place < 0:
                return 1
            remove_number(&seen.committed, place)
            return 0
        if marker != ABORT_MARKER:
            return 0
        place = place_of(&seen.aborted, header.producer_id)
        if place < 0:
            return 1
        i = seen.aborted.values[place]
        remove_number(&seen.aborted, place)
        if not observes or not self.aborted[i].is_observed:
            return 1
        if self.ended_count == self.ended_room:
            larger = <int64_t*>realloc(self.ended, (2 * self.ended_room + 16) * sizeof(int64_t))
            if larger == NULL:
                no_memory()
            self.ended = larger
            self.ended_room = 2 * self.ended_room + 16
        self.ended[self.ended_count] = i
        self.ended_count += 1
        return 0

    # --- mapping -----------------------------------------------------------------------------------------------------

    cdef int map_batches(self, BatchReader reader, int64_t start) except -1 nogil:
        """1: the map is full."""
        cdef BatchHeader header
        cdef const uint8_t* at = NULL
        cdef const uint8_t* end = NULL
        while self.next_batch(reader, &header):
            if header.last_offset < start:
                continue
            if header.attributes & CONTROL_BIT:
                if header.count:
                    self.expand(reader, &header, &at, &end)
                self.end_transaction(&self.mapping, &header, marker_type(&header, at, end), False)
            elif not self.begin_batch(&self.mapping, &header, False) and header.count:
                self.expand(reader, &header, &at, &end)
                if not self.map.add_records(at, end, &header, start):
                    return 1
            self.map.latest = max(self.map.latest, header.last_offset)
        return 0

    # --- rewriting ---------------------------------------------------------------------------------------------------

    cdef int rewrite_batches(self, BatchReader reader, bint ends_the_group) except -1 nogil:
        cdef BatchHeader header
        while self.next_batch(reader, &header):
            self.rewrite_batch(reader, &header, ends_the_group and reader.position == reader.end)
        return 0

    cdef int rewrite_batch(self, BatchReader reader, const BatchHeader* header, bint is_last) except -1 nogil:
        cdef const uint8_t* at = NULL
        cdef const uint8_t* end = NULL
        cdef bint is_control = header.attributes & CONTROL_BIT != 0, has_horizon = header.attributes & DELETE_HORIZON_BIT != 0
        cdef bint is_over, drops_all, keeps_header, tombstones = False
        cdef int64_t count = 0
        self.result.records_read += header.count
        if is_control:
            if header.count:
                self.expand(reader, header, &at, &end)
            is_over = self.end_transaction(&self.rewriting, header, marker_type(header, at, end), True)
            drops_all = is_over and has_horizon and header.base_timestamp <= self.now
        else:
            is_over = self.begin_batch(&self.rewriting, header, True)
            drops_all = is_over
        keeps_header = is_last or header.last_offset + 1 == self.upper_bound or self.is_last_of_producer(header)
        if header.count and not drops_all:
            if is_control:
                self.keep_record(0, at, end, header.max_timestamp)
                count = 1
            else:
                self.expand(reader, header, &at, &end)
                count = self.choose(at, end, header, &tombstones)
        if count == 0:
            if not keeps_header:
                self.result.is_changed = True
                return 0
            return self.write_empty(header)
        self.result.records_kept += count
        tombstones = (tombstones or (is_control and is_over)) and not has_horizon and not self.keeps_times
        if count == header.count and not tombstones:
            return self.write_verbatim(reader, header)
        return self.write_rebuilt(header, count, tombstones)

    cdef bint is_last_of_producer(self, const BatchHeader* header) noexcept nogil:
        """Whether an active producer is remembered by this batch: by its last data, or else by its marker."""
        cdef int64_t place, last_offset
        if header.producer_id < 0:
            return False
        place = place_of(&self.producer_offsets, header.producer_id)
        if place < 0:
            return False
        last_offset = self.producer_offsets.values[place]
        if last_offset >= 0:
            return header.last_offset == last_offset
        if not header.attributes & CONTROL_BIT:
            return False
        place = place_of(&self.producer_epochs, header.producer_id)
        return header.producer_epoch == self.producer_epochs.values[place]

    cdef int64_t choose(self, const uint8_t* at, const uint8_t* end, const BatchHeader* header, bint* tombstones) except -1 nogil:
        """The records of a batch that stay, in `kept`: how many. `tombstones`: whether one of them has no value."""
        cdef SeenRecord[CHUNK] seen
        cdef SeenRecord* record
        cdef int64_t left = header.count, count = 0, timestamp
        cdef int64_t latest = self.map.latest
        cdef int64_t looked_up_below = self.map.start if self.map.latest_bits != NULL else latest + 1
        cdef bint keeps_tombstones = not header.attributes & DELETE_HORIZON_BIT or self.now < header.base_timestamp
        cdef bint is_append_time = header.attributes & TIMESTAMP_TYPE_BIT != 0
        cdef int i, n
        while left:
            n = <int>min(left, <int64_t>CHUNK)
            for i in range(n):
                record = &seen[i]
                step(&at, end, header.base_offset, record)
                if record.key_size >= 0 and record.offset < looked_up_below:
                    self.map.fetch_slot(record)
            for i in range(n):
                record = &seen[i]
                if record.key_size >= 0 and record.offset < looked_up_below:
                    self.map.fetch_entry(record)
            for i in range(n):
                record = &seen[i]
                if record.offset <= latest:
                    if record.key_size < 0:
                        self.result.keyless += 1
                        continue
                    if (record.is_tombstone and not keeps_tombstones) or not self.map.is_latest(record):
                        continue
                timestamp = header.max_timestamp if is_append_time else header.base_timestamp + record.timestamp_delta
                self.keep_record(count, record.start, record.end, timestamp)
                count += 1
                if record.is_tombstone:
                    tombstones[0] = True
            left -= n
        return count

    cdef int keep_record(self, int64_t number, const uint8_t* start, const uint8_t* end, int64_t timestamp) except -1 nogil:
        cdef KeptRecord* larger
        if number == self.kept_room:
            larger = <KeptRecord*>realloc(self.kept, (2 * self.kept_room + 64) * sizeof(KeptRecord))
            if larger == NULL:
                no_memory()
            self.kept = larger
            self.kept_room = 2 * self.kept_room + 64
        self.kept[number].start = start
        self.kept[number].size = end - start
        self.kept[number].timestamp = timestamp
        return 0

    # --- writing -----------------------------------------------------------------------------------------------------

    cdef uint8_t* reserve(self, int64_t size) except NULL nogil:
        """Room for `size` more bytes behind those that wait."""
        cdef uint8_t* larger
        if self.pending and self.pending + size > WRITE_SIZE:
            self.flush()
        if self.pending + size > self.buffer_room:
            larger = <uint8_t*>realloc(self.buffer, max(self.pending + size, <int64_t>WRITE_SIZE))
            if larger == NULL:
                no_memory()
            self.buffer = larger
            self.buffer_room = max(self.pending + size, <int64_t>WRITE_SIZE)
        return self.buffer + self.pending

    cdef int flush(self) except -1 nogil:
        cdef int64_t result
        if self.pending:
            result = os_c.os_pwrite(self.fd, self.buffer, self.pending, self.result.size - self.pending)
            if result < 0:
                refuse_writing(self.target, result)
            self.pending = 0
        return 0

    cdef int finish_batch(self, const BatchHeader* header, int64_t size, int64_t records, int64_t max_timestamp) except -1 nogil:
        """Count a batch of `size` bytes in, which lies where `reserve` gave room."""
        if self.result.size + size > MOST_POSITION:
            refuse_size(self.target)
        # the timestamp of a batch without records is nobody's
        self.tracker.track(self.result.size, size, header.last_offset, max_timestamp if records else -1)
        self.result.size += size
        self.pending += size
        self.result.next_offset = header.last_offset + 1
        if records and max_timestamp > self.result.max_timestamp:
            self.result.max_timestamp = max_timestamp
        return 0

    cdef int write_verbatim(self, BatchReader reader, const BatchHeader* header) except -1 nogil:
        memcpy(self.reserve(header.size), reader.base() + header.position, header.size)
        return self.finish_batch(header, header.size, header.count, header.max_timestamp)

    cdef int write_empty(self, const BatchHeader* header) except -1 nogil:
        """The header of a batch alone, so that its offsets and its producer are remembered."""
        cdef int16_t attributes = header.attributes & (TIMESTAMP_TYPE_BIT | TRANSACTIONAL_BIT | CONTROL_BIT)
        cdef uint8_t* at = self.reserve(BATCH_HEADER_SIZE)
        if header.count or header.attributes != attributes or header.base_timestamp != -1:
            self.result.is_changed = True
        write_header(at, header, BATCH_HEADER_SIZE, attributes, -1, header.max_timestamp, 0)
        return self.finish_batch(header, BATCH_HEADER_SIZE, 0, header.max_timestamp)

    cdef int write_rebuilt(self, const BatchHeader* header, int64_t count, bint sets_horizon) except -1 nogil:
        """A batch of the first `count` of the records kept."""
        cdef int16_t attributes = header.attributes | (DELETE_HORIZON_BIT if sets_horizon else 0)
        cdef bint is_append_time = header.attributes & TIMESTAMP_TYPE_BIT != 0
        cdef int64_t base_timestamp = header.base_timestamp, max_timestamp = header.max_timestamp, size = 0, i
        cdef KeptRecord* record
        cdef uint8_t* start
        cdef uint8_t* at
        self.result.is_changed = True
        if sets_horizon:
            base_timestamp = self.horizon
        elif not header.attributes & DELETE_HORIZON_BIT and not self.keeps_times:
            base_timestamp = self.kept[0].timestamp
        if not is_append_time:
            max_timestamp = -1
        for i in range(count):
            record = &self.kept[i]
            max_timestamp = max(max_timestamp, record.timestamp)
            size += record.size
        # a timestamp delta, and the record's length with it, may take more bytes than before
        size += BATCH_HEADER_SIZE + count * 14
        if header.attributes & CODEC_MASK:
            at = start = self.kept_content(size)
        else:
            start = self.reserve(size)
            at = start + BATCH_HEADER_SIZE
        if base_timestamp == header.base_timestamp and (not is_append_time or self.keeps_times):
            for i in range(count):
                record = &self.kept[i]
                memcpy(at, record.start, record.size)
                at += record.size
        else:
            for i in range(count):
                at = write_record(at, &self.kept[i], self.kept[i].timestamp - base_timestamp)
        if header.attributes & CODEC_MASK:
            size = self.compress_content(header.attributes & CODEC_MASK, at - start)
            start = self.buffer + self.pending
        else:
            size = at - start
        if size > MOST_POSITION:
            refuse_size(self.target)
        write_header(start, header, size, attributes, base_timestamp, max_timestamp, <int32_t>count)
        return self.finish_batch(header, size, count, max_timestamp)

    cdef uint8_t* kept_content(self, int64_t size) except NULL nogil:
        """Room for records that will be compressed."""
        grow_buffer(&self.content_kept, &self.content_kept_room, size)
        return self.content_kept

    cdef int64_t compress_content(self, int codec, int64_t size) except -1 with gil:
        """Compress the first `size` bytes of that room behind room for a header; the size of the batch."""
        cdef int64_t room = compressed_room(codec, size)
        cdef uint8_t* at = self.reserve(BATCH_HEADER_SIZE + room)
        return BATCH_HEADER_SIZE + compress(codec, self.content_kept, size, at + BATCH_HEADER_SIZE, room)


cdef inline uint8_t* write_record(uint8_t* at, const KeptRecord* record, int64_t timestamp_delta) noexcept nogil:
    """The record again, with another timestamp delta."""
    cdef const uint8_t* end = record.start + record.size
    cdef const uint8_t* rest
    cdef int32_t length = 0
    cdef int64_t old_delta = 0
    cdef const uint8_t* body = read_varint(record.start, end, &length)
    rest = read_varlong(body + 1, end, &old_delta)
    at = write_varint(at, 1 + varint_size(timestamp_delta) + (end - rest))
    at[0] = body[0]
    at = write_varint(at + 1, timestamp_delta)
    memcpy(at, rest, end - rest)
    return at + (end - rest)


cdef void write_header(
    uint8_t* at, const BatchHeader* header, int64_t size, int16_t attributes, int64_t base_timestamp, int64_t max_timestamp,
    int32_t count,
) noexcept nogil:
    """The header of a batch of `size` bytes, made after `header`; its records are there already."""
    store_int64(at + BASE_OFFSET_AT, header.base_offset)
    store_int32(at + BATCH_LENGTH_AT, <int32_t>(size - LOG_OVERHEAD))
    store_int32(at + LEADER_EPOCH_AT, header.leader_epoch)
    at[MAGIC_AT] = MAGIC_V2
    store_int16(at + ATTRIBUTES_AT, attributes)
    store_int32(at + LAST_OFFSET_DELTA_AT, <int32_t>(header.last_offset - header.base_offset))
    store_int64(at + BASE_TIMESTAMP_AT, base_timestamp)
    store_int64(at + MAX_TIMESTAMP_AT, max_timestamp)
    store_int64(at + PRODUCER_ID_AT, header.producer_id)
    store_int16(at + PRODUCER_EPOCH_AT, header.producer_epoch)
    store_int32(at + BASE_SEQUENCE_AT, header.base_sequence)
    store_int32(at + RECORDS_COUNT_AT, count)
    store_uint32(at + CRC_AT, crc32c_extend(0, at + CRC_COVERS_FROM, size - CRC_COVERS_FROM))


cdef int marker_type(const BatchHeader* header, const uint8_t* at, const uint8_t* end) noexcept nogil:
    """What a control batch says; `at` and `end` enclose its record, which is whole."""
    cdef SeenRecord record
    if header.count == 0:
        return NO_MARKER
    step(&at, end, header.base_offset, &record)
    if record.key_size < CONTROL_KEY_SIZE:
        return NO_MARKER
    return load_int16(record.key + CONTROL_TYPE_AT)


cdef BatchReader open_segment(str path, int64_t size):
    """Reads the first `size` bytes of a segment, which have to be there."""
    cdef BatchReader reader = BatchReader(path, 0, size)
    if reader.end < size:
        raise CorruptLogError(
            f"{path} has {reader.end} bytes where {size} were written: its end was cut off by somebody else; nothing was changed",
            path, reader.end, None, None,
        )
    return reader


cdef bytes pending_entries(IndexFile index):
    return index.pending[:index.pending_count * index.entry_size] if index.pending_count else b""


cdef int refuse(BatchReader reader, Problem problem, int64_t position, int64_t offset, int64_t failure) except -1 with gil:
    if failure < 0:
        raise os_c.storage_error("read", reader.path, failure)
    if problem == NO_MEMORY:
        raise MemoryError()
    raise CorruptLogError(
        f"{reader.path}, position {position}, offset {offset}: {describe(problem)}. The log is not compacted and nothing was changed; "
        f"`fastlog log verify` says what is readable, `fastlog log repair` moves the damaged bytes to a side file",
        reader.path, position, offset, None,
    )


cdef int refuse_writing(str path, int64_t result) except -1 with gil:
    raise os_c.storage_error("write", path, result)


cdef int refuse_size(str path) except -1 with gil:
    raise OutputTooLargeError(path)
