# Every system call and every clock of fastlog. Nothing else in the project talks to the kernel
# (memory.pyx unmaps, because a view may be released by any thread at any time).
#
# C functions return a result >= 0, or -errno. They retry EINTR, and loop over short reads and writes.

from libc.stdint cimport int64_t, uint8_t

cdef extern from "<sys/uio.h>" nogil:
    cdef struct iovec:
        void* iov_base
        size_t iov_len

cdef enum:
    IOV_LIMIT = 1024               # IOV_MAX on every platform we run on
    IO_CHUNK = 1 << 30             # the kernel moves at most 2 GiB - 4 KiB a call

cdef int64_t os_pread(int fd, uint8_t* data, int64_t size, int64_t position) noexcept nogil     # short at end of file
cdef int64_t os_pwrite(int fd, const uint8_t* data, int64_t size, int64_t position) noexcept nogil
cdef int64_t os_pwritev(int fd, iovec* vectors, int count, int64_t position) noexcept nogil     # consumes `vectors`
cdef int os_ftruncate(int fd, int64_t size) noexcept nogil
cdef int os_allocate(int fd, int64_t position, int64_t size) noexcept nogil                     # keeps the file size
cdef int os_fdatasync(int fd) noexcept nogil
cdef int os_fsync(int fd) noexcept nogil
cdef int64_t os_file_size(int fd) noexcept nogil
cdef int os_map(int fd, int64_t size, void** address) noexcept nogil                            # read-only, shared
cdef void os_prefer_huge_pages(void* address, int64_t size) noexcept nogil
cdef int64_t clock_milliseconds() noexcept nogil
cdef int fork_generation() noexcept nogil       # changes in every forked child

cdef object storage_error(str action, str path, int64_t result)    # an exception for a negative result
