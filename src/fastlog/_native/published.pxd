# What readers may see, as one tuple that changes as a whole: two slots and a version. The writer fills the idle slot and
# then releases the version; a reader copies the slot that the version names and looks again. A writer that dies while
# filling changes nothing. Today the page is private memory; it is laid out to be shared between processes.

from libc.stdint cimport int64_t, uint64_t
from libc.string cimport memcpy

cdef extern from *:
    """
    #define fastlog_load_version(at) __atomic_load_n(at, __ATOMIC_ACQUIRE)
    #define fastlog_store_version(at, value) __atomic_store_n(at, value, __ATOMIC_RELEASE)
    #define fastlog_read_fence() __atomic_thread_fence(__ATOMIC_ACQUIRE)
    """
    uint64_t load_version "fastlog_load_version"(const uint64_t* at) noexcept nogil
    void store_version "fastlog_store_version"(uint64_t* at, uint64_t value) noexcept nogil
    void read_fence "fastlog_read_fence"() noexcept nogil


cdef struct Published:
    int64_t active_base         # base offset of the active segment
    int64_t end_position        # bytes of it that readers may see
    int64_t end_offset
    int64_t start_offset
    int64_t durable_offset


cdef struct PublishedPage:
    uint64_t version            # even or odd names the slot
    Published[2] slots


cdef inline void publish(PublishedPage* page, const Published* state) noexcept nogil:
    """Only under the writer lock."""
    cdef uint64_t version = page.version + 1
    memcpy(&page.slots[version & 1], state, sizeof(Published))
    store_version(&page.version, version)


cdef inline void read_published(PublishedPage* page, Published* state) noexcept nogil:
    cdef uint64_t version
    while True:
        version = load_version(&page.version)
        memcpy(state, &page.slots[version & 1], sizeof(Published))
        read_fence()
        if load_version(&page.version) == version:
            return
