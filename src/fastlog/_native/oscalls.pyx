# cython: annotation_typing=False
"""System calls and clocks: the one seam between fastlog and the machine.

Every call can be made to fail, or to move fewer bytes than asked for, by ``inject``; the wall clock can be fixed by
``set_clock``. Both exist for tests and cost one predictable branch per call otherwise.
"""

import errno as errno_codes
import os
import stat as stat_codes

from libc.errno cimport EINTR, EIO, errno
from libc.stdint cimport int64_t, uint8_t
from libc.string cimport memset, strerror

from fastlog.errors import StorageError, StorageFullError

cdef extern from *:
    """
    #include <errno.h>
    #include <fcntl.h>
    #include <sys/file.h>
    #include <sys/mman.h>
    #include <sys/stat.h>
    #include <sys/uio.h>
    #include <time.h>
    #include <unistd.h>
    #if defined(__APPLE__)
    static int fastlog_fdatasync(int fd) { return fcntl(fd, F_FULLFSYNC) == -1 ? fsync(fd) : 0; }
    static int fastlog_fsync(int fd) { return fcntl(fd, F_FULLFSYNC) == -1 ? fsync(fd) : 0; }
    #else
    static int fastlog_fdatasync(int fd) { return fdatasync(fd); }
    static int fastlog_fsync(int fd) { return fsync(fd); }
    #endif
    #include <pthread.h>
    static int fastlog_forks = 0;
    static void fastlog_after_fork(void) { fastlog_forks++; }
    static int fastlog_watch_forks(void) { return pthread_atfork(NULL, NULL, fastlog_after_fork); }
    static int fastlog_allocate(int fd, int64_t position, int64_t size) {
    #if defined(__linux__)
        return fallocate(fd, FALLOC_FL_KEEP_SIZE, position, size);
    #else
        errno = EOPNOTSUPP;
        return -1;
    #endif
    }
    static void fastlog_prefer_huge_pages(void *address, size_t size) {
    #if defined(MADV_HUGEPAGE)
        madvise(address, size, MADV_HUGEPAGE);
    #else
        (void)address, (void)size;
    #endif
    }
    static int64_t fastlog_file_size(int fd) {
        struct stat status;
        return fstat(fd, &status) == 0 ? (int64_t)status.st_size : -1;
    }
    static int64_t fastlog_wall_clock(void) {
        struct timespec now;
        clock_gettime(CLOCK_REALTIME, &now);
        return (int64_t)now.tv_sec * 1000 + now.tv_nsec / 1000000;
    }
    static int64_t fastlog_steady_clock(void) {
        struct timespec now;
        clock_gettime(CLOCK_MONOTONIC, &now);
        return (int64_t)now.tv_sec * 1000 + now.tv_nsec / 1000000;
    }
    """
    ssize_t pread(int fd, void* data, size_t size, int64_t position) nogil
    ssize_t pwrite(int fd, const void* data, size_t size, int64_t position) nogil
    ssize_t pwritev(int fd, const iovec* vectors, int count, int64_t position) nogil
    int ftruncate(int fd, int64_t size) nogil
    int fastlog_fdatasync(int fd) nogil
    int fastlog_fsync(int fd) nogil
    int fastlog_forks
    int fastlog_watch_forks()
    int fastlog_allocate(int fd, int64_t position, int64_t size) nogil
    void fastlog_prefer_huge_pages(void* address, size_t size) nogil
    int64_t fastlog_file_size(int fd) nogil
    int64_t fastlog_wall_clock() nogil
    int64_t fastlog_steady_clock() nogil
    void* mmap(void* address, size_t size, int protection, int flags, int fd, int64_t position) nogil
    int flock(int fd, int operation) nogil
    int PROT_READ, MAP_SHARED, LOCK_SH, LOCK_EX, LOCK_NB
    void* MAP_FAILED


# --- fault injection ---------------------------------------------------------------------------------------------------

cdef enum Call:
    CALL_OPEN, CALL_PREAD, CALL_PWRITE, CALL_PWRITEV, CALL_FTRUNCATE, CALL_FDATASYNC, CALL_FSYNC, CALL_RENAME, CALL_UNLINK
    CALL_MMAP, CALL_FSTAT, CALL_FALLOCATE, CALL_LINK, CALL_COUNT

CALL_NAMES = (
    "open", "pread", "pwrite", "pwritev", "ftruncate", "fdatasync", "fsync", "rename", "unlink", "mmap", "fstat", "fallocate", "link",
)


cdef struct Fault:
    int64_t countdown       # fails when it reaches zero; 0 = not armed
    int error               # errno to report, or 0
    bint sticky             # goes on failing
    int64_t limit_bytes     # move at most so many bytes instead of failing; 0 = no limit

cdef Fault[CALL_COUNT] faults
cdef int64_t[CALL_COUNT] calls
cdef bint faults_armed = False
cdef bint clock_fixed = False
cdef int64_t clock_value = 0
memset(faults, 0, sizeof(faults))
memset(calls, 0, sizeof(calls))


cdef inline int fault(Call call) noexcept nogil:
    """The errno that this call shall fail with, or 0."""
    cdef Fault* armed = &faults[<int>call]
    calls[<int>call] += 1
    if not faults_armed or armed.countdown == 0 or armed.limit_bytes != 0:
        return 0
    armed.countdown -= 1
    if armed.countdown > 0:
        return 0
    if armed.sticky:
        armed.countdown = 1
    return armed.error


cdef inline size_t limited(Call call, size_t size) noexcept nogil:
    cdef int64_t limit = faults[<int>call].limit_bytes
    if faults_armed and limit != 0 and size > <size_t>limit:
        return <size_t>limit
    return size


def inject(call: str, errno: int = 28, nth: int = 1, sticky: bool = False, limit_bytes: int | None = None) -> None:
    """Make the ``nth`` next system call named ``call`` fail with ``errno`` (every later one too if ``sticky``), or let
    every one of them move at most ``limit_bytes`` bytes. For tests."""
    global faults_armed
    if call not in CALL_NAMES:
        raise ValueError(f"unknown system call {call!r}: expected one of {', '.join(CALL_NAMES)}")
    if nth < 1:
        raise ValueError(f"nth counts from 1, got {nth}")
    cdef Fault* armed = &faults[<int>CALL_NAMES.index(call)]
    armed.countdown = nth
    armed.error = errno
    armed.sticky = sticky
    armed.limit_bytes = limit_bytes or 0
    faults_armed = True


def clear() -> None:
    """Disarm every injected fault."""
    global faults_armed
    memset(faults, 0, sizeof(faults))
    faults_armed = False


def call_counts() -> dict:
    """How often each system call was made in this process."""
    return {name: calls[index] for index, name in enumerate(CALL_NAMES)}


# --- clocks ------------------------------------------------------------------------------------------------------------

def set_clock(milliseconds: int | None) -> None:
    """Fix the wall clock at ``milliseconds`` since the epoch, or let it run again (None). For tests."""
    global clock_fixed, clock_value
    clock_fixed = milliseconds is not None
    clock_value = milliseconds or 0


cdef int64_t clock_milliseconds() noexcept nogil:
    return clock_value if clock_fixed else fastlog_wall_clock()


cdef int fork_generation() noexcept nogil:
    return fastlog_forks


fastlog_watch_forks()


def wall_clock() -> int:
    """Milliseconds since the epoch."""
    return clock_milliseconds()


def steady_clock() -> int:
    """Milliseconds of a clock that never jumps; only differences mean something."""
    return fastlog_steady_clock()


# --- calls on open files, from C ---------------------------------------------------------------------------------------

cdef int64_t os_pread(int fd, uint8_t* data, int64_t size, int64_t position) noexcept nogil:
    cdef int64_t done = 0
    cdef ssize_t moved
    cdef int failure
    while done < size:
        failure = fault(CALL_PREAD)
        if failure != 0:
            if failure == EINTR:
                continue
            return -failure
        moved = pread(fd, data + done, limited(CALL_PREAD, min(size - done, IO_CHUNK)), position + done)
        if moved < 0:
            if errno == EINTR:
                continue
            return -errno
        if moved == 0:
            break
        done += moved
    return done


cdef int64_t os_pwrite(int fd, const uint8_t* data, int64_t size, int64_t position) noexcept nogil:
    cdef int64_t done = 0
    cdef ssize_t moved
    cdef int failure
    while done < size:
        failure = fault(CALL_PWRITE)
        if failure != 0:
            if failure == EINTR:
                continue
            return -failure
        moved = pwrite(fd, data + done, limited(CALL_PWRITE, min(size - done, IO_CHUNK)), position + done)
        if moved < 0:
            if errno == EINTR:
                continue
            return -errno
        if moved == 0:
            return -EIO
        done += moved
    return done


cdef int64_t os_pwritev(int fd, iovec* vectors, int count, int64_t position) noexcept nogil:
    cdef int64_t done = 0
    cdef size_t left
    cdef ssize_t moved
    cdef int failure
    while count > 0:
        failure = fault(CALL_PWRITEV)
        if failure != 0:
            if failure == EINTR:
                continue
            return -failure
        left = limited(CALL_PWRITEV, IO_CHUNK)
        if vectors.iov_len >= left:
            moved = pwrite(fd, vectors.iov_base, left, position + done)
        elif left < IO_CHUNK:
            moved = pwrite(fd, vectors.iov_base, vectors.iov_len, position + done)
        else:
            moved = pwritev(fd, vectors, min(count, IOV_LIMIT), position + done)
        if moved < 0:
            if errno == EINTR:
                continue
            return -errno
        if moved == 0:
            return -EIO
        done += moved
        left = moved
        while count > 0 and left >= vectors.iov_len:
            left -= vectors.iov_len
            vectors += 1
            count -= 1
        if count > 0 and left > 0:
            vectors.iov_base = <uint8_t*>vectors.iov_base + left
            vectors.iov_len -= left
    return done


cdef int os_ftruncate(int fd, int64_t size) noexcept nogil:
    cdef int failure = fault(CALL_FTRUNCATE)
    if failure != 0:
        return -failure
    while ftruncate(fd, size) != 0:
        if errno != EINTR:
            return -errno
    return 0


cdef int os_allocate(int fd, int64_t position, int64_t size) noexcept nogil:
    """Reserve blocks behind the end of a file without making it longer. Worth a third of an append on ext4."""
    cdef int failure = fault(CALL_FALLOCATE)
    if failure != 0:
        return -failure
    return -errno if fastlog_allocate(fd, position, size) != 0 else 0


cdef int os_fdatasync(int fd) noexcept nogil:
    cdef int failure = fault(CALL_FDATASYNC)
    if failure != 0:
        return -failure
    while fastlog_fdatasync(fd) != 0:
        if errno != EINTR:
            return -errno
    return 0


cdef int os_fsync(int fd) noexcept nogil:
    cdef int failure = fault(CALL_FSYNC)
    if failure != 0:
        return -failure
    while fastlog_fsync(fd) != 0:
        if errno != EINTR:
            return -errno
    return 0


cdef int64_t os_file_size(int fd) noexcept nogil:
    cdef int failure = fault(CALL_FSTAT)
    if failure != 0:
        return -failure
    cdef int64_t size = fastlog_file_size(fd)
    return size if size >= 0 else -errno


cdef int os_map(int fd, int64_t size, void** address) noexcept nogil:
    cdef int failure = fault(CALL_MMAP)
    if failure != 0:
        return -failure
    address[0] = mmap(NULL, <size_t>size, PROT_READ, MAP_SHARED, fd, 0)
    return -errno if address[0] == MAP_FAILED else 0


cdef void os_prefer_huge_pages(void* address, int64_t size) noexcept nogil:
    """Memory that is read all over the place is better mapped in large pages. A hint to the kernel."""
    fastlog_prefer_huge_pages(address, <size_t>size)


cdef object storage_error(str action, str path, int64_t result):
    cdef int code = <int>-result
    text = strerror(code).decode(errors="replace")
    if code in (errno_codes.ENOSPC, errno_codes.EDQUOT, errno_codes.EFBIG):
        return StorageFullError(
            f"could not {action} {path}: {text}; nothing was changed — free some space or raise the limit, then try again",
            code,
        )
    return StorageError(f"could not {action} {path}: {text} (errno {code})", code)


# --- calls on paths and whole files, from Python -----------------------------------------------------------------------

cdef int checked(Call call, str action, str path) except -1:
    cdef int failure = fault(call)
    if failure != 0:
        raise storage_error(action, path, -failure)
    return 0


cdef object translated(str action, str path, error):
    return storage_error(action, path, -(error.errno or errno_codes.EIO))


def open_file(path: str, writable: bool = False, create: bool = False) -> int:
    """Open a file and return its descriptor (close-on-exec, mode 0600 when created, symbolic links refused)."""
    checked(CALL_OPEN, "open", path)
    flags = os.O_CLOEXEC | os.O_NOFOLLOW | (os.O_RDWR if writable else os.O_RDONLY) | (os.O_CREAT if create else 0)
    try:
        return os.open(path, flags, 0o600)
    except OSError as error:
        raise translated("open", path, error) from None


def open_directory(path: str) -> int:
    """Open a directory for locking and syncing."""
    checked(CALL_OPEN, "open", path)
    try:
        return os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError as error:
        raise translated("open", path, error) from None


def close_file(fd: int) -> None:
    """Close a descriptor."""
    os.close(fd)


def try_lock(fd: int, shared: bool = False) -> bool:
    """Take a ``flock`` without waiting; False when somebody else has it. The kernel frees it on death."""
    cdef int operation = (LOCK_SH if shared else LOCK_EX) | LOCK_NB
    while flock(<int>fd, operation) != 0:
        if errno == EINTR:
            continue
        if errno == errno_codes.EWOULDBLOCK:
            return False
        raise storage_error("lock", f"descriptor {fd}", -errno)
    return True


def link(source: str, target: str) -> None:
    """Give a file a second name."""
    checked(CALL_LINK, "link", source)
    try:
        os.link(source, target)
    except OSError as error:
        raise translated("link", source, error) from None


def identity(path: str) -> tuple | None:
    """(size, inode) of a regular file, or None when there is no such file."""
    checked(CALL_FSTAT, "examine", path)
    try:
        status = os.stat(path, follow_symlinks=False)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise translated("examine", path, error) from None
    return status.st_size, status.st_ino


def modified_at(path: str) -> int:
    """When a file was last written to, milliseconds since the epoch."""
    checked(CALL_FSTAT, "examine", path)
    try:
        return os.stat(path).st_mtime_ns // 1_000_000
    except OSError as error:
        raise translated("examine", path, error) from None


def set_modified(path: str, milliseconds: int) -> None:
    """Let a file look as if it was last written to at that time."""
    try:
        os.utime(path, ns=(milliseconds * 1_000_000, milliseconds * 1_000_000))
    except OSError as error:
        raise translated("change the time of", path, error) from None


def file_size(path: str) -> int | None:
    """Size of a regular file in bytes, or None when there is no such file."""
    checked(CALL_FSTAT, "examine", path)
    try:
        status = os.stat(path, follow_symlinks=False)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise translated("examine", path, error) from None
    if not stat_codes.S_ISREG(status.st_mode):
        raise StorageError(f"{path} is not a regular file: fastlog does not follow links or read special files there")
    return status.st_size


def is_directory(path: str) -> bool | None:
    """Whether ``path`` is a directory; None when nothing is there."""
    try:
        return stat_codes.S_ISDIR(os.stat(path).st_mode)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise translated("examine", path, error) from None


def inode(path: str) -> int:
    """Inode number of a directory: a copy of it has another one."""
    try:
        return os.stat(path).st_ino
    except OSError as error:
        raise translated("examine", path, error) from None


def make_directory(path: str) -> None:
    """Create a directory (mode 0700) and its parents, and sync the parent so that it survives power loss."""
    try:
        os.makedirs(path, mode=0o700, exist_ok=True)
    except OSError as error:
        raise translated("create", path, error) from None
    sync_directory(os.path.dirname(os.path.abspath(path)))


def list_directory(path: str) -> list:
    """Names in a directory."""
    try:
        return os.listdir(path)
    except OSError as error:
        raise translated("list", path, error) from None


def read_bytes(fd: int, position: int, size: int) -> bytes:
    """Up to ``size`` bytes at ``position`` of an open file; fewer at its end."""
    buffer = bytearray(size)
    cdef uint8_t* data = buffer
    cdef int file = fd
    cdef int64_t start = position, length = size, result
    with nogil:
        result = os_pread(file, data, length, start)
    if result < 0:
        raise storage_error("read", f"descriptor {fd}", result)
    return bytes(buffer[:result]) if result < length else bytes(buffer)


def read_file(path: str, limit: int = 1 << 30) -> bytes | None:
    """The whole of a small file, or None when there is none."""
    if file_size(path) is None:
        return None
    cdef int64_t size
    fd = open_file(path)
    try:
        size = os_file_size(fd)
        if size < 0:
            raise storage_error("examine", path, size)
        return read_bytes(fd, 0, min(size, <int64_t>limit))
    finally:
        os.close(fd)


def write_at(fd: int, data: bytes, position: int, path: str) -> None:
    """Write ``data`` at ``position``, all of it or a StorageError."""
    cdef const uint8_t* bytes_ = data
    cdef int64_t size = len(data), start = position, result
    cdef int file = fd
    with nogil:
        result = os_pwrite(file, bytes_, size, start)
    if result < 0:
        raise storage_error("write", path, result)


def drop_cache(path: str) -> None:
    """Forget clean cached pages of a file, so that it is read from the disk again. A hint to the kernel."""
    if hasattr(os, "posix_fadvise"):
        fd = open_file(path)
        try:
            os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
        finally:
            os.close(fd)


def truncate(fd: int, size: int, path: str) -> None:
    """Cut or extend an open file."""
    result = os_ftruncate(fd, size)
    if result < 0:
        raise storage_error("truncate", path, result)


def sync_data(fd: int, path: str) -> None:
    """``fdatasync`` an open file."""
    cdef int file = fd
    cdef int result
    with nogil:
        result = os_fdatasync(file)
    if result < 0:
        raise storage_error("sync", path, result)


def sync_directory(path: str) -> None:
    """Make created, renamed and removed names in a directory durable."""
    cdef int fd = open_directory(path)
    cdef int result
    with nogil:
        result = os_fsync(fd)
    os.close(fd)
    if result < 0:
        raise storage_error("sync", path, result)


def rename(source: str, target: str) -> None:
    """Rename a file over ``target``."""
    checked(CALL_RENAME, "rename", source)
    try:
        os.rename(source, target)
    except OSError as error:
        raise translated("rename", source, error) from None


def remove(path: str) -> bool:
    """Unlink a file; False when it was not there."""
    checked(CALL_UNLINK, "remove", path)
    try:
        os.unlink(path)
    except FileNotFoundError:
        return False
    except OSError as error:
        raise translated("remove", path, error) from None
    return True


def replace_file(path: str, data: bytes) -> None:
    """Write ``path`` as a whole: temporary file, sync, rename, directory sync. Either all of it is there, or nothing changed."""
    temporary = path + ".tmp"
    fd = open_file(temporary, writable=True, create=True)
    try:
        try:
            truncate(fd, 0, temporary)
            write_at(fd, data, 0, temporary)
            sync_data(fd, temporary)
        finally:
            os.close(fd)
        rename(temporary, path)
    except BaseException:
        try:
            os.unlink(temporary)
        except OSError:
            pass
        raise
    sync_directory(os.path.dirname(path))


def process_id() -> int:
    """Id of the calling process."""
    return os.getpid()


def process_is_alive(pid: int) -> bool:
    """Whether a process with this id exists. For messages only: ids are reused."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except OSError:
        return True
    return True
