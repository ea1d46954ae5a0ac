# The page that all processes with a partition open share: what readers may see, and the words they wake each other with.
#
# Two tuples change as a whole, each by two slots and a version: the writer fills the idle slot and then releases the
# version; a reader copies the slot that the version names and looks again. A writer that dies while filling changes nothing.
#
#   Published   the log as readers may see it; only ever published under the writer lock
#   Durable     how much of it survives power loss; only ever published under the sync owner's lock, so that a sync
#               waits for no writer
#
# The page has no pointers, no locks of a C library and no sizes that differ between builds: processes of different
# builds share it. Its layout has a version.

from libc.stdint cimport int64_t, uint8_t, uint32_t, uint64_t

cdef extern from *:
    """
    #include <string.h>
    #define fastlog_load(at) __atomic_load_n(at, __ATOMIC_ACQUIRE)
    #define fastlog_store(at, value) __atomic_store_n(at, value, __ATOMIC_RELEASE)
    #define fastlog_read_fence() __atomic_thread_fence(__ATOMIC_ACQUIRE)
    #define fastlog_write_fence() __atomic_thread_fence(__ATOMIC_RELEASE)
    #define fastlog_full_fence() __atomic_thread_fence(__ATOMIC_SEQ_CST)
    #define fastlog_exchange(at, value) __atomic_exchange_n(at, value, __ATOMIC_SEQ_CST)
    #define fastlog_increment(at) __atomic_add_fetch(at, 1, __ATOMIC_SEQ_CST)

    /* To and from memory that others read or write meanwhile: word by word, what is left byte by byte. What comes out may
       be torn, and its version tells; a memcpy of it would be a data race. */
    static inline void fastlog_put(void *shared, const void *own, size_t size) {
        size_t at = 0;
        uint64_t word;
        for (; at + 8 <= size; at += 8) {
            memcpy(&word, (const char *)own + at, 8);
            __atomic_store_n((uint64_t *)((char *)shared + at), word, __ATOMIC_RELAXED);
        }
        for (; at < size; at++)
            __atomic_store_n((char *)shared + at, ((const char *)own)[at], __ATOMIC_RELAXED);
    }
    static inline void fastlog_take(void *own, const void *shared, size_t size) {
        size_t at = 0;
        uint64_t word;
        for (; at + 8 <= size; at += 8) {
            word = __atomic_load_n((const uint64_t *)((const char *)shared + at), __ATOMIC_RELAXED);
            memcpy((char *)own + at, &word, 8);
        }
        for (; at < size; at++)
            ((char *)own)[at] = __atomic_load_n((const char *)shared + at, __ATOMIC_RELAXED);
    }
    """
    void put_shared "fastlog_put"(void* shared, const void* own, size_t size) noexcept nogil     # `shared` at a word
    void take_shared "fastlog_take"(void* own, const void* shared, size_t size) noexcept nogil   # likewise
    uint64_t load_version "fastlog_load"(const uint64_t* at) noexcept nogil
    void store_version "fastlog_store"(uint64_t* at, uint64_t value) noexcept nogil
    int64_t load_word "fastlog_load"(const int64_t* at) noexcept nogil
    void store_word "fastlog_store"(int64_t* at, int64_t value) noexcept nogil
    uint32_t load_bell "fastlog_load"(const uint32_t* at) noexcept nogil
    uint32_t exchange_bell "fastlog_exchange"(uint32_t* at, uint32_t value) noexcept nogil
    uint32_t increment_bell "fastlog_increment"(uint32_t* at) noexcept nogil
    void read_fence "fastlog_read_fence"() noexcept nogil
    void write_fence "fastlog_write_fence"() noexcept nogil
    void full_fence "fastlog_full_fence"() noexcept nogil


cdef enum:
    PAGE_BYTES = 4096
    PAGE_LAYOUT = 1
    SYNC_FAILED = 1                 # why a log is poisoned: what is in the page cache may never get to the disk
    DELETED = 2                     # or: its topic was deleted, and whoever still has it open must not go on
    UNKNOWN_ENTRIES = -1            # of the active segment's indexes: they are as the last clean close left them


cdef struct Published:
    int64_t active_base             # base offset of the active segment
    int64_t end_position            # bytes of it that readers may see
    int64_t end_offset
    int64_t start_offset
    int64_t first_unstable_offset   # of the oldest open transaction; -1 = none is open
    int64_t last_producer_offset    # of the newest batch that carries a producer id; -1 = none
    int64_t generation              # of the list of segments: grows when it changes; odd while a compaction replaces some
    int64_t index_entries           # of the active segment, as is all below; UNKNOWN_ENTRIES until it is appended to
    int64_t time_index_entries
    int64_t transaction_entries
    int64_t bytes_since_entry
    int64_t max_timestamp
    int64_t offset_of_max
    int64_t first_timestamp         # largest of its first batch; -2 = not known
    int64_t created                 # wall clock, milliseconds


cdef struct Durable:
    int64_t base                    # the segment in which the durable part ends,
    int64_t position                # the position there,
    int64_t offset                  # and the offset
    int64_t last_stable_offset      # as far as that is known to be durable: power loss takes back no outcome below it


cdef struct Bell:
    uint32_t waiters                # somebody sleeps, or is about to
    uint32_t count                  # the word slept on


cdef struct ControlPage:
    char[8] magic
    int64_t layout
    uint8_t[16] instance_id         # random: one life of the log, from its first opener to its last closer
    char[48] boot_id                # shown, never believed
    int64_t opener_pid
    int64_t opened                  # wall clock, milliseconds
    int64_t is_exclusive
    int64_t trusted_base            # indexes of segments from this base on were written in this life
    uint8_t[16] gap_a
    # the writer's line
    int64_t owner_pid               # of the writer lock: for messages only
    int64_t dirty                   # bytes beyond the published end may be in the files
    int64_t has_clean_marker        # the clean marker is on disk
    int64_t has_lost_entries        # an index entry of the active segment is missing or wrong: rebuild them when it is finished
    int64_t allocated               # bytes of the active file that have disk blocks, or will not get any ahead
    Bell lock_bell
    uint8_t[16] gap_b
    uint64_t version
    uint8_t[56] gap_c
    Published[2] slots
    # the sync owner's lines
    uint64_t durable_version
    Durable[2] durable_slots
    int64_t sync_owner_pid
    int64_t syncs                   # done in this life
    int64_t synced_at               # steady clock, milliseconds
    int64_t persisted_at            # likewise: when the recovery point was last written to disk
    int64_t syncing                 # a sync is under way, or its owner died in it
    int64_t poisoned                # 0, SYNC_FAILED or DELETED
    int64_t flush_interval          # milliseconds; 0 = nobody asked for one
    Bell sync_bell
    uint8_t[8] gap_d
    Bell append_bell


cdef inline void fill_slot(uint64_t* version, void* slots, const void* source, size_t size) noexcept nogil:
    """Fill the idle one of two slots, then release the version that names it; for one process at a time."""
    cdef uint64_t next_version = version[0] + 1
    # the last version must be out before its other slot changes again
    write_fence()
    put_shared(<char*>slots + (next_version & 1) * size, source, size)
    store_version(version, next_version)


cdef inline uint64_t copy_slot(const uint64_t* version, const void* slots, void* target, size_t size) noexcept nogil:
    """Copy the slot that the version names; returns that version."""
    cdef uint64_t found
    while True:
        found = load_version(version)
        take_shared(target, <const char*>slots + (found & 1) * size, size)
        read_fence()
        if load_version(version) == found:
            return found


cdef inline void publish(ControlPage* page, const Published* state) noexcept nogil:
    """Only under the writer lock."""
    fill_slot(&page.version, &page.slots, state, sizeof(Published))


cdef inline uint64_t read_published(ControlPage* page, Published* state) noexcept nogil:
    """Copy the published tuple; returns its version."""
    return copy_slot(&page.version, &page.slots, state, sizeof(Published))


cdef inline void publish_durable(ControlPage* page, const Durable* durable) noexcept nogil:
    """Only under the sync owner's lock."""
    fill_slot(&page.durable_version, &page.durable_slots, durable, sizeof(Durable))


cdef inline void read_durable(ControlPage* page, Durable* durable) noexcept nogil:
    copy_slot(&page.durable_version, &page.durable_slots, durable, sizeof(Durable))
