# Every system call and every clock of fastlog. Nothing else in the project talks to the kernel
# (memory.pyx unmaps, because a view may be released by any thread at any time).
#
# C functions return a result >= 0, or -errno. They retry EINTR, and loop over short reads and writes.

from libc.stdint cimport int64_t, uint8_t, uint32_t

cdef extern from "<sys/uio.h>" nogil:
    cdef struct iovec:
        void* iov_base
        size_t iov_len

cdef enum:
    IOV_LIMIT = 1024               # IOV_MAX on every platform we run on
    IO_CHUNK = 1 << 30             # the kernel moves at most 2 GiB - 4 KiB a call

cdef enum LockKind:
    UNLOCK, LOCK_SHARED, LOCK_EXCLUSIVE

cdef enum Failpoint:               # in the order of FAILPOINTS
    APPEND_LOCKED, APPEND_DIRTY, APPEND_BATCH_WRITTEN, APPEND_WRITTEN, APPEND_INDEXED, APPEND_PUBLISHED
    APPEND_UNLOCKED, ROLL_BEGUN, ROLL_CREATED, ROLL_PUBLISHED, TAKEOVER_BEGUN, TAKEOVER_CUT, TAKEOVER_DONE
    SYNC_LOCKED, SYNC_SYNCED, SYNC_PUBLISHED, SYNC_UNLOCKED, OPEN_EXCLUSIVE, OPEN_PAGE_UNLINKED, OPEN_RECOVERED
    OPEN_PAGE_WRITTEN, OPEN_SHARED, OPEN_ATTACHED, CLOSE_EXCLUSIVE, CLOSE_SYNCED, CLOSE_MARKED, DELETE_PUBLISHED
    DELETE_REMOVED, PAGE_FILLING, PAGE_FILLED, PAGE_PUBLISHED, PAGE_RETIRING, PAGE_WAITING
    EXCHANGE_COMPARED, EXCHANGE_STORED

ctypedef volatile uint32_t volatile_word

cdef class Descriptor:
    """An open file that is closed when nobody uses it any more: who uses ``fd`` without the GIL holds a reference."""
    cdef readonly int fd
    cdef int generation             # of forks: in a child it is closed already

cdef int64_t os_pread(int fd, uint8_t* data, int64_t size, int64_t position) noexcept nogil     # short at end of file
cdef int64_t os_pwrite(int fd, const uint8_t* data, int64_t size, int64_t position) noexcept nogil
cdef int64_t os_pwritev(int fd, iovec* vectors, int count, int64_t position) noexcept nogil     # consumes `vectors`
cdef int os_ftruncate(int fd, int64_t size) noexcept nogil
cdef int os_allocate(int fd, int64_t position, int64_t size) noexcept nogil                     # keeps the file size
cdef int os_fdatasync(int fd) noexcept nogil
cdef int os_fsync(int fd) noexcept nogil
cdef int64_t os_file_size(int fd) noexcept nogil
cdef int os_map(int fd, int64_t size, void** address) noexcept nogil                            # read-only, shared
cdef int os_map_shared(int fd, int64_t size, bint writable, void** address) noexcept nogil
cdef void os_unmap(void* address, int64_t size) noexcept nogil
cdef int os_lock(int fd, LockKind kind) noexcept nogil                                          # never waits
cdef int os_attach(int fd) noexcept nogil
cdef int os_others_attached(int fd) noexcept nogil
cdef int os_lock_maintenance(int fd, bint take) noexcept nogil
cdef void os_wait(uint32_t* word, uint32_t expected, int64_t nanoseconds) noexcept nogil
cdef void os_wake(uint32_t* word) noexcept nogil
cdef void os_pause() noexcept nogil
cdef void os_nap(int64_t nanoseconds) noexcept nogil
cdef void reach(Failpoint point) noexcept nogil                                                 # tests may end the process here
cdef void os_prefer_huge_pages(void* address, int64_t size) noexcept nogil
cdef int64_t clock_milliseconds() noexcept nogil
cdef int64_t steady_nanoseconds() noexcept nogil
cdef int64_t steady_milliseconds() noexcept nogil
cdef int fork_generation() noexcept nogil       # changes in every forked child

cdef object storage_error(str action, str path, int64_t result)    # an exception for a negative result
