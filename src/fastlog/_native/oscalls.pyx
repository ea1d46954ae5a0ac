# cython: annotation_typing=False
"""System calls and clocks: the one seam between fastlog and the machine.

Every call can be made to fail, or to move fewer bytes than asked for, by ``inject``; the wall clock can be fixed by
``set_clock``. Both exist for tests and cost one predictable branch per call otherwise.
"""

import errno as errno_codes
import os
import resource
import stat as stat_codes

from cpython.exc cimport PyErr_CheckSignals
from libc.errno cimport EACCES, EAGAIN, EINTR, EIO, errno
from libc.stdint cimport int64_t, uint8_t, uint32_t
from libc.stdlib cimport calloc, free
from libc.string cimport memset, strerror

from fastlog._native.published cimport load_word, store_word

from fastlog.errors import StorageError, StorageFullError

cdef extern from *:
    """
    #include <errno.h>
    #include <fcntl.h>
    #include <poll.h>
    #include <sys/file.h>
    #include <sys/mman.h>
    #include <sys/stat.h>
    #include <sys/uio.h>
    #include <sched.h>
    #include <signal.h>
    #include <string.h>
    #include <time.h>
    #include <unistd.h>
    #if defined(__linux__)
    #include <linux/futex.h>
    #include <sys/statfs.h>
    #include <sys/syscall.h>
    #else
    #include <sys/mount.h>
    #include <sys/param.h>
    #endif
    #if defined(__APPLE__)
    static int fastlog_fdatasync(int fd) { return fcntl(fd, F_FULLFSYNC) == -1 ? fsync(fd) : 0; }
    static int fastlog_fsync(int fd) { return fcntl(fd, F_FULLFSYNC) == -1 ? fsync(fd) : 0; }
    #else
    static int fastlog_fdatasync(int fd) { return fdatasync(fd); }
    static int fastlog_fsync(int fd) { return fsync(fd); }
    #endif
    #include <pthread.h>
    /* Descriptors of ours, one bit each: a forked child closes them all, so that no lock outlives its owner there.
     * Bits change while the GIL is held, and the child has one thread. */
    enum { FASTLOG_MOST_DESCRIPTORS = 1 << 20 };
    static uint64_t fastlog_descriptors[FASTLOG_MOST_DESCRIPTORS / 64];
    static int fastlog_largest_descriptor = -1;
    static int fastlog_forks = 0;
    static void fastlog_note_descriptor(int fd, int is_open) {
        if (fd < 0 || fd >= FASTLOG_MOST_DESCRIPTORS)
            return;
        if (fd > fastlog_largest_descriptor)
            fastlog_largest_descriptor = fd;
        if (is_open)
            fastlog_descriptors[fd / 64] |= (uint64_t)1 << (fd % 64);
        else
            fastlog_descriptors[fd / 64] &= ~((uint64_t)1 << (fd % 64));
    }
    static void fastlog_after_fork(void) {
        fastlog_forks++;
        for (int word = 0; word <= fastlog_largest_descriptor / 64; word++) {
            for (int bit = 0; fastlog_descriptors[word] >> bit; bit++) {
                if (fastlog_descriptors[word] >> bit & 1)
                    close(word * 64 + bit);
                if (bit == 63)
                    break;
            }
            fastlog_descriptors[word] = 0;
        }
        fastlog_largest_descriptor = -1;
    }
    static int fastlog_watch_forks(void) { return pthread_atfork(NULL, NULL, fastlog_after_fork); }
    static int fastlog_open(const char *path, int flags, int mode) {
        int fd = open(path, flags | O_CLOEXEC, mode);
        fastlog_note_descriptor(fd, 1);
        return fd;
    }
    /* A descriptor that can be read once the process has ended. */
    #if defined(SYS_pidfd_open)
    static int fastlog_open_process(int pid) {
        int fd = (int)syscall(SYS_pidfd_open, pid, 0);
        fastlog_note_descriptor(fd, 1);
        return fd;
    }
    #else
    static int fastlog_open_process(int pid) { (void)pid; errno = ENOSYS; return -1; }
    #endif
    static int fastlog_open_pipe(int *ends) {
        if (pipe(ends) != 0)
            return -1;
        for (int i = 0; i < 2; i++) {
            fcntl(ends[i], F_SETFD, FD_CLOEXEC);
            fcntl(ends[i], F_SETFL, O_NONBLOCK);
            fastlog_note_descriptor(ends[i], 1);
        }
        return 0;
    }
    static int fastlog_close(int fd) {
        fastlog_note_descriptor(fd, 0);
        return close(fd);
    }
    /* An OFD read lock on the first byte says: I use the page in this file. */
    #if defined(F_OFD_SETLK)
    static int fastlog_attach(int fd) {
        struct flock lock;
        memset(&lock, 0, sizeof lock);
        lock.l_type = F_RDLCK;
        lock.l_whence = SEEK_SET;
        lock.l_len = 1;
        return fcntl(fd, F_OFD_SETLK, &lock);
    }
    static int fastlog_others_attached(int fd) {
        struct flock lock;
        memset(&lock, 0, sizeof lock);
        lock.l_type = F_WRLCK;
        lock.l_whence = SEEK_SET;
        lock.l_len = 1;
        return fcntl(fd, F_OFD_GETLK, &lock) != 0 ? -1 : lock.l_type != F_UNLCK;
    }
    /* A write lock on the second byte: the one who compacts and deletes. */
    static int fastlog_lock_maintenance(int fd, int kind) {
        struct flock lock;
        memset(&lock, 0, sizeof lock);
        lock.l_type = kind;
        lock.l_whence = SEEK_SET;
        lock.l_start = 1;
        lock.l_len = 1;
        return fcntl(fd, F_OFD_SETLK, &lock);
    }
    /* One byte of a file: who holds it lives. */
    static int fastlog_lock_byte(int fd, int64_t position) {
        struct flock lock;
        memset(&lock, 0, sizeof lock);
        lock.l_type = F_WRLCK;
        lock.l_whence = SEEK_SET;
        lock.l_start = position;
        lock.l_len = 1;
        return fcntl(fd, F_OFD_SETLK, &lock);
    }
    static int fastlog_byte_is_free(int fd, int64_t position) {
        struct flock lock;
        memset(&lock, 0, sizeof lock);
        lock.l_type = F_WRLCK;
        lock.l_whence = SEEK_SET;
        lock.l_start = position;
        lock.l_len = 1;
        return fcntl(fd, F_OFD_GETLK, &lock) != 0 ? -1 : lock.l_type == F_UNLCK;
    }
    enum { FASTLOG_HAS_OFD_LOCKS = 1 };
    #else
    static int fastlog_lock_byte(int fd, int64_t position) { (void)fd; (void)position; errno = ENOTSUP; return -1; }
    static int fastlog_byte_is_free(int fd, int64_t position) { (void)fd; (void)position; errno = ENOTSUP; return -1; }
    static int fastlog_attach(int fd) { (void)fd; return 0; }
    static int fastlog_others_attached(int fd) { (void)fd; return 1; }
    static int fastlog_lock_maintenance(int fd, int kind) { (void)fd; (void)kind; return 0; }
    enum { FASTLOG_HAS_OFD_LOCKS = 0 };
    #endif
    #if defined(__linux__)
    enum { FASTLOG_HAS_FUTEX = 1 };
    static void fastlog_futex_wait(uint32_t *word, uint32_t expected, int64_t nanoseconds) {
        struct timespec span = { nanoseconds / 1000000000, nanoseconds % 1000000000 };
        syscall(SYS_futex, word, FUTEX_WAIT, expected, &span, NULL, 0);
    }
    static void fastlog_futex_wake(uint32_t *word) { syscall(SYS_futex, word, FUTEX_WAKE, 0x7FFFFFFF, NULL, NULL, 0); }
    static int64_t fastlog_file_system(const char *path, char *name, size_t size) {
        struct statfs status;
        (void)name; (void)size;
        return statfs(path, &status) == 0 ? (int64_t)(uint32_t)status.f_type : -1;
    }
    #else
    enum { FASTLOG_HAS_FUTEX = 0 };
    static void fastlog_futex_wait(uint32_t *word, uint32_t expected, int64_t nanoseconds) {
        (void)word; (void)expected; (void)nanoseconds;
    }
    static void fastlog_futex_wake(uint32_t *word) { (void)word; }
    static int64_t fastlog_file_system(const char *path, char *name, size_t size) {
        struct statfs status;
        if (statfs(path, &status) != 0)
            return -1;
        strncpy(name, status.f_fstypename, size - 1);
        return status.f_type;
    }
    #endif
    #define fastlog_replace(at, old, fresh) __sync_bool_compare_and_swap(at, old, fresh)
    static void fastlog_pause(void) {
        for (int i = 0; i < 50; i++) {
    #if defined(__x86_64__) || defined(__i386__)
            __builtin_ia32_pause();
    #elif defined(__aarch64__)
            __asm__ volatile("yield");
    #endif
        }
    }
    static void fastlog_nap(int64_t nanoseconds) {
        struct timespec span = { nanoseconds / 1000000000, nanoseconds % 1000000000 };
        nanosleep(&span, NULL);
    }
    static int64_t fastlog_steady_nanoseconds(void) {
        struct timespec now;
        clock_gettime(CLOCK_MONOTONIC, &now);
        return (int64_t)now.tv_sec * 1000000000 + now.tv_nsec;
    }
    static void fastlog_signal_self(int number) { raise(number); }  /* this thread: it shall not run on */
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
    int munmap(void* address, size_t size) nogil
    int PROT_READ, PROT_WRITE, MAP_SHARED, LOCK_SH, LOCK_EX, LOCK_UN, LOCK_NB
    int SIGKILL, SIGSTOP
    void* MAP_FAILED
    int fastlog_open(const char* path, int flags, int mode)
    int fastlog_close(int fd) nogil
    int fastlog_attach(int fd) nogil
    int fastlog_others_attached(int fd) nogil
    int fastlog_lock_maintenance(int fd, int kind) nogil
    int F_WRLCK, F_UNLCK
    int fastlog_lock_byte(int fd, int64_t position) nogil
    int fastlog_byte_is_free(int fd, int64_t position) nogil
    int fastlog_open_process(int pid)
    int fastlog_open_pipe(int* ends)
    cdef struct pollfd:
        int fd
        short events
        short revents
    int poll(pollfd* files, unsigned long count, int milliseconds) nogil
    short POLLIN
    void fastlog_futex_wait(uint32_t* word, uint32_t expected, int64_t nanoseconds) nogil
    void fastlog_futex_wake(uint32_t* word) nogil
    int64_t fastlog_file_system(const char* path, char* name, size_t size)
    void fastlog_nap(int64_t nanoseconds) nogil
    void fastlog_pause() nogil
    bint replace_word "fastlog_replace"(int64_t* at, int64_t old, int64_t fresh) noexcept nogil
    int64_t fastlog_steady_nanoseconds() nogil
    void fastlog_signal_self(int number) nogil
    int FASTLOG_HAS_FUTEX, FASTLOG_HAS_OFD_LOCKS


# --- fault injection ---------------------------------------------------------------------------------------------------

# calls are made without the GIL by any thread, also while another one arms or disarms: what they look at is atomic

cdef enum Call:
    CALL_OPEN, CALL_PREAD, CALL_PWRITE, CALL_PWRITEV, CALL_FTRUNCATE, CALL_FDATASYNC, CALL_FSYNC, CALL_RENAME, CALL_UNLINK
    CALL_MMAP, CALL_FSTAT, CALL_FALLOCATE, CALL_FLOCK, CALL_LINK, CALL_MKDIR, CALL_GETDENTS, CALL_FCNTL, CALL_UTIMENSAT, CALL_STATFS
    CALL_POLL, CALL_PIPE, CALL_PIDFD_OPEN

cdef enum:
    CALL_COUNT = CALL_PIDFD_OPEN + 1       # an array of Cython 3.2 wants an enum without a name

CALL_NAMES = (
    "open", "pread", "pwrite", "pwritev", "ftruncate", "fdatasync", "fsync", "rename", "unlink", "mmap", "fstat", "fallocate", "flock",
    "link", "mkdir", "getdents", "fcntl", "utimensat", "statfs", "poll", "pipe", "pidfd_open",
)

ctypedef void (*Observer)(int call, int error) noexcept nogil

cdef extern from *:
    """
    #define fastlog_add_one(counter) __atomic_add_fetch(counter, 1, __ATOMIC_RELAXED)
    #define fastlog_take_one(counter) __atomic_sub_fetch(counter, 1, __ATOMIC_RELAXED)
    """
    int64_t add_one "fastlog_add_one"(int64_t* counter) noexcept nogil
    int64_t take_one "fastlog_take_one"(int64_t* counter) noexcept nogil


cdef struct Fault:
    int64_t countdown       # fails when it reaches zero
    int64_t error           # errno to report; 0 = not armed. Set last
    int64_t sticky          # goes on failing
    int64_t limit_bytes     # move at most so many bytes instead of failing; 0 = no limit

cdef Fault[CALL_COUNT] faults
cdef int64_t[CALL_COUNT] calls
cdef int64_t failed_calls = 0
cdef int64_t faults_armed = False
cdef int64_t observer = 0    # an Observer
cdef int64_t clock_fixed = False
cdef int64_t clock_value = 0
memset(faults, 0, sizeof(faults))
memset(calls, 0, sizeof(calls))


cdef inline int fault(Call call) noexcept nogil:
    """The errno that this call shall fail with, or 0."""
    add_one(&calls[<int>call])
    return armed_fault(call) if load_word(&faults_armed) else 0


cdef int armed_fault(Call call) noexcept nogil:
    cdef Fault* armed = &faults[<int>call]
    cdef int error = 0, armed_error = <int>load_word(&armed.error)
    cdef int64_t left
    cdef Observer told = <Observer><size_t>load_word(&observer)
    if armed_error != 0 and load_word(&armed.limit_bytes) == 0:
        left = take_one(&armed.countdown)
        if left == 0 or left < 0 and load_word(&armed.sticky):
            error = armed_error
            add_one(&failed_calls)
    if told != NULL:
        told(call, error)
    return error


cdef inline size_t limited(Call call, size_t size) noexcept nogil:
    cdef int64_t limit
    if load_word(&faults_armed):
        limit = load_word(&faults[<int>call].limit_bytes)
        if limit != 0 and size > <size_t>limit:
            return <size_t>limit
    return size


def inject(call: str, errno: int = 28, nth: int = 1, sticky: bool = False, limit_bytes: int | None = None) -> None:
    """Make the ``nth`` next system call named ``call`` fail with ``errno`` (every later one too if ``sticky``), or let
    every one of them move at most ``limit_bytes`` bytes. For tests."""
    if call not in CALL_NAMES:
        raise ValueError(f"unknown system call {call!r}: expected one of {', '.join(CALL_NAMES)}")
    if nth < 1:
        raise ValueError(f"nth counts from 1, got {nth}")
    cdef Fault* armed = &faults[<int>CALL_NAMES.index(call)]
    store_word(&armed.error, 0)
    store_word(&armed.sticky, sticky)
    store_word(&armed.limit_bytes, limit_bytes or 0)
    store_word(&armed.countdown, nth)
    store_word(&armed.error, errno)
    store_word(&faults_armed, True)


def observe(address: int) -> None:
    """Let a C function, ``void (int call, int errno)``, know of every system call and of what was injected into it; 0: no
    more. ``call`` counts ``CALL_NAMES``. For tests."""
    store_word(&observer, address)
    store_word(&faults_armed, True)


def clear() -> None:
    """Disarm every injected fault."""
    cdef int call
    for call in range(<int>CALL_COUNT):
        store_word(&faults[call].error, 0)
        store_word(&faults[call].limit_bytes, 0)
    store_word(&failed_calls, 0)
    store_word(&faults_armed, load_word(&observer) != 0)


def injected() -> int:
    """How many system calls were made to fail since the last ``clear``."""
    return load_word(&failed_calls)


def call_counts() -> dict:
    """How often each system call was made in this process."""
    return {name: load_word(&calls[<int>index]) for index, name in enumerate(CALL_NAMES)}


# --- failpoints --------------------------------------------------------------------------------------------------------

FAILPOINTS = (
    "append.locked", "append.dirty", "append.batch_written", "append.written", "append.indexed", "append.published",
    "append.unlocked", "roll.begun", "roll.created", "roll.published", "takeover.begun", "takeover.cut", "takeover.done",
    "sync.locked", "sync.synced", "sync.published", "sync.unlocked", "open.exclusive", "open.page_unlinked", "open.recovered",
    "open.page_written", "open.shared", "open.attached", "close.exclusive", "close.synced", "close.marked", "delete.published",
    "delete.removed", "page.filling", "page.filled", "page.published", "page.retiring", "page.waiting", "exchange.compared", "exchange.stored",
    "compaction.swapped", "compaction.odd", "compaction.indexes_unlinked", "compaction.moved",
    "compaction.sources_unlinked", "compaction.indexes_installed", "compaction.swap_unlinked", "compaction.even",
    "store.folders_made", "store.made", "store.topic_written", "store.topic_altering", "store.topic_altered", "store.topic_deleting",
    "store.partition_made", "store.partition_named", "store.partition_renamed", "store.topic_forgotten", "store.closing",
    "store.checkpoints_written", "store.marked", "backup.linked", "backup.copied", "backup.finished",
    "transaction.opened", "transaction.entered", "transaction.synced", "transaction.decided", "transaction.marked",
    "transaction.completed",
    "group.stripped", "group.seated", "group.published", "group.moving", "group.copied", "group.retired", "group.taken",
    "group.released",
    "group.layout",
    "move.entered", "move.offsets", "move.appended", "move.committed",
)
FAILPOINT_ACTIONS = ("kill", "stop")
cdef int64_t failpoint_armed = -1
cdef int failpoint_action = 0
cdef int64_t failpoint_countdown = 0


cdef void reach(Failpoint point) noexcept nogil:
    if <int64_t>point == load_word(&failpoint_armed):
        act_on_failpoint()


cdef void act_on_failpoint() noexcept nogil:
    cdef int64_t left = load_word(&failpoint_countdown)
    while not replace_word(&failpoint_countdown, left, left - 1):
        left = load_word(&failpoint_countdown)
    if left != 1:
        return
    store_word(&failpoint_armed, -1)
    fastlog_signal_self(SIGKILL if failpoint_action == 0 else SIGSTOP)


def reach_failpoint(name: str) -> None:
    """Pass the failpoint ``name``; for code that is written in Python."""
    if load_word(&failpoint_armed) >= 0:
        reach(<Failpoint><int>FAILPOINTS.index(name))


def arm(name: str | None, action: str = "kill", nth: int = 1) -> None:
    """Let this process kill (``kill``) or stop (``stop``) itself when it passes the failpoint ``name`` for the ``nth`` time;
    None disarms. For tests: also ``FASTLOG_FAILPOINT=name:action:nth`` in the environment when fastlog is imported."""
    global failpoint_action
    if name is None:
        store_word(&failpoint_armed, -1)
        return
    if name not in FAILPOINTS or action not in FAILPOINT_ACTIONS:
        raise ValueError(f"unknown failpoint {name!r} or action {action!r}: expected one of {FAILPOINTS} and {FAILPOINT_ACTIONS}")
    store_word(&failpoint_countdown, nth)
    failpoint_action = FAILPOINT_ACTIONS.index(action)
    store_word(&failpoint_armed, FAILPOINTS.index(name))


def arm_from_environment() -> None:
    """What ``FASTLOG_FAILPOINT`` asks for."""
    wanted = os.environ.get("FASTLOG_FAILPOINT")
    if wanted:
        name, action, nth = (wanted.split(":") + ["kill", "1"])[:3]
        arm(name, action, int(nth))


arm_from_environment()


# --- clocks ------------------------------------------------------------------------------------------------------------

def set_clock(milliseconds: int | None) -> None:
    """Fix the wall clock at ``milliseconds`` since the epoch, or let it run again (None). For tests."""
    store_word(&clock_value, milliseconds or 0)
    store_word(&clock_fixed, milliseconds is not None)


cdef int64_t clock_milliseconds() noexcept nogil:
    return load_word(&clock_value) if load_word(&clock_fixed) else fastlog_wall_clock()


cdef int fork_generation() noexcept nogil:
    return fastlog_forks


def forks() -> int:
    """How many forks lie between this process and the one that imported this: a handle that remembers another number is inherited."""
    return fastlog_forks


fastlog_watch_forks()


def wall_clock() -> int:
    """Milliseconds since the epoch."""
    return clock_milliseconds()


cdef int64_t steady_nanoseconds() noexcept nogil:
    return fastlog_steady_nanoseconds()


cdef int64_t steady_milliseconds() noexcept nogil:
    return fastlog_steady_clock()


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


# --- shared memory, locks, wake-ups ------------------------------------------------------------------------------------

cdef int os_map_shared(int fd, int64_t size, bint writable, void** address) noexcept nogil:
    cdef int failure = fault(CALL_MMAP)
    if failure != 0:
        return -failure
    address[0] = mmap(NULL, <size_t>size, PROT_READ | PROT_WRITE if writable else PROT_READ, MAP_SHARED, fd, 0)
    return -errno if address[0] == MAP_FAILED else 0


cdef void os_unmap(void* address, int64_t size) noexcept nogil:
    munmap(address, <size_t>size)


cdef int os_lock(int fd, LockKind kind) noexcept nogil:
    """``flock`` without waiting: 1, 0 when somebody else has it, or -errno. The kernel frees it when the last descriptor of
    this open file is closed, so at the latest on death."""
    cdef int failure = fault(CALL_FLOCK) if kind != UNLOCK else 0      # letting go never fails
    if failure != 0:
        return -failure
    cdef int operation = LOCK_UN if kind == UNLOCK else (LOCK_SH if kind == LOCK_SHARED else LOCK_EX) | LOCK_NB
    while flock(fd, operation) != 0:
        if errno == EINTR:
            continue
        if errno == EAGAIN:
            return 0
        return -errno
    return 1


cdef int os_attach(int fd) noexcept nogil:
    """Say that this open file is used: 0 or -errno."""
    cdef int failure = fault(CALL_FCNTL)
    if failure != 0:
        return -failure
    return -errno if fastlog_attach(fd) != 0 else 0


cdef int os_others_attached(int fd) noexcept nogil:
    """Whether somebody else says so: 1, 0 or -errno. Where the platform cannot tell: 1."""
    cdef int failure = fault(CALL_FCNTL), result
    if failure != 0:
        return -failure
    result = fastlog_others_attached(fd)
    return result if result >= 0 else -errno


cdef int os_lock_maintenance(int fd, bint take) noexcept nogil:
    """Take (1, or 0 when somebody else has it) or let go of the lock of whoever compacts and deletes; or -errno."""
    cdef int failure = fault(CALL_FCNTL) if take else 0
    if failure != 0:
        return -failure
    if fastlog_lock_maintenance(fd, F_WRLCK if take else F_UNLCK) == 0:
        return 1
    return 0 if errno == EAGAIN or errno == EACCES else -errno


def lock_byte(fd: int, position: int, path: str) -> bool:
    """Take a write lock on one byte, without waiting; False when another open file has it. It goes with this open file.

    StorageError where the platform has no such locks.
    """
    cdef int failure = fault(CALL_FCNTL)
    if failure == 0 and fastlog_lock_byte(fd, position) == 0:
        return True
    failure = failure or errno
    if failure == EAGAIN or failure == EACCES:
        return False
    raise storage_error("lock", path, -failure)


def free_bytes(fd: int, positions: list, path: str) -> list:
    """Those of ``positions`` that no other open file has locked."""
    cdef int file = fd, result
    cdef int64_t position
    unlocked = []
    for position in positions:
        checked(CALL_FCNTL, "examine the locks of", path)
        result = fastlog_byte_is_free(file, position)
        if result < 0:
            raise storage_error("examine the locks of", path, -errno)
        if result:
            unlocked.append(position)
    return unlocked


cdef bint polls = not FASTLOG_HAS_FUTEX or bool(os.environ.get("FASTLOG_PORTABLE"))


cdef void os_wait(uint32_t* word, uint32_t expected, int64_t nanoseconds) noexcept nogil:
    """Sleep until ``os_wake`` on the word, at most so long; not at all when it differs from ``expected``.

    Without futexes: look again and again, at growing distances of up to half a millisecond.
    """
    cdef int64_t stop, nap
    if not polls:
        fastlog_futex_wait(word, expected, nanoseconds)
        return
    stop = fastlog_steady_nanoseconds() + nanoseconds
    nap = 5_000
    while (<volatile_word*>word)[0] == expected:
        if fastlog_steady_nanoseconds() >= stop:
            return
        fastlog_nap(nap)
        nap = min(2 * nap, 500_000)


cdef void os_wake(uint32_t* word) noexcept nogil:
    """Wake everybody who sleeps on the word, in every process."""
    if not polls:
        fastlog_futex_wake(word)


cdef void os_pause() noexcept nogil:
    """Some dozen cycles for whoever shares the core."""
    fastlog_pause()


cdef void os_nap(int64_t nanoseconds) noexcept nogil:
    fastlog_nap(nanoseconds)


def has_futex() -> bool:
    """Whether waiting processes are woken by the kernel; otherwise they look again and again."""
    return not polls


def has_ofd_locks() -> bool:
    """Whether the platform has locks of open file descriptions that can be asked about."""
    return bool(FASTLOG_HAS_OFD_LOCKS)


LOCAL_FILE_SYSTEMS = {
    0xEF53: "ext4", 0x58465342: "xfs", 0x9123683E: "btrfs", 0xF2F52010: "f2fs", 0x2FC12FC1: "zfs", 0x01021994: "tmpfs",
    0x794C7630: "overlayfs",
}
OTHER_FILE_SYSTEMS = {
    0x6969: "nfs", 0x01021997: "9p", 0x65735546: "fuse", 0xFF534D42: "cifs", 0xFE534D42: "smb2", 0x6A656A63: "virtiofs",
}
_fake_file_system = None


def fake_file_system(magic: int | None) -> None:
    """Let every path lie on a file system with this magic number, or on its own again (None). For tests."""
    global _fake_file_system
    _fake_file_system = magic


def file_system(path: str) -> tuple:
    """(number, name, whether locks and syncs are known to hold there) of the file system under ``path``."""
    cdef char[64] name
    memset(name, 0, sizeof(name))
    encoded = os.fsencode(path)
    checked(CALL_STATFS, "examine the file system of", path)
    cdef int64_t magic = fastlog_file_system(encoded, name, sizeof(name))
    if magic < 0:
        raise storage_error("examine the file system of", path, -errno)
    if _fake_file_system is not None:
        magic = _fake_file_system
    elif name[0]:
        text = name.decode()
        return magic, text, text == "apfs"
    if magic in LOCAL_FILE_SYSTEMS:
        return magic, LOCAL_FILE_SYSTEMS[magic], True
    return magic, OTHER_FILE_SYSTEMS.get(magic, "unknown"), False


def boot_id() -> str:
    """An id of this boot of the machine, "" where there is none. For messages only."""
    if fault(CALL_OPEN):
        return ""
    try:
        fd = os.open("/proc/sys/kernel/random/boot_id", os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return ""
    try:
        return os.read(fd, 100).strip().decode()
    finally:
        os.close(fd)


def random_bytes(count: int) -> bytes:
    """Bytes that nobody else has."""
    return os.urandom(count)


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


cdef class Descriptor:
    def __init__(self, fd: int):
        self.fd = fd
        self.generation = fastlog_forks

    def __dealloc__(self):
        if self.generation == fastlog_forks:
            fastlog_close(self.fd)


# --- calls on paths and whole files, from Python -----------------------------------------------------------------------

cdef int checked(Call call, str action, str path) except -1:
    cdef int failure = fault(call)
    if failure != 0:
        raise storage_error(action, path, -failure)
    return 0


cdef object translated(str action, str path, error):
    if isinstance(error, MemoryError):
        return error    # there was none left for the OSError that was caught
    return storage_error(action, path, -(error.errno or errno_codes.EIO))


def open_file(path: str, writable: bool = False, create: bool = False, new: bool = False) -> int:
    """Open a file and return its descriptor (close-on-exec, mode 0600 when created, symbolic links refused).

    ``create``: make it when it is not there; ``new``: it must not be there.
    """
    checked(CALL_OPEN, "open", path)
    cdef int flags = os.O_NOFOLLOW | (os.O_RDWR if writable else os.O_RDONLY) | (os.O_CREAT if create or new else 0)
    if new:
        flags |= os.O_EXCL
    return opened(path, flags)


def open_directory(path: str) -> int:
    """Open a directory for locking and syncing."""
    checked(CALL_OPEN, "open", path)
    return opened(path, os.O_RDONLY | os.O_DIRECTORY)


cdef int opened(str path, int flags) except -1:
    """The GIL is held from opening to noting: no fork comes between."""
    encoded = os.fsencode(path)
    cdef const char* name = encoded
    cdef int fd
    while True:
        fd = fastlog_open(name, flags, 0o600)
        if fd >= 0:
            return fd
        if errno != EINTR:
            raise storage_error("open", path, -errno)


def close_file(fd: int) -> None:
    """Close a descriptor."""
    fastlog_close(<int>fd)


def try_lock(fd: int, shared: bool = False) -> bool:
    """Take a ``flock`` without waiting; False when somebody else has it, and then a lock that was held before is gone.
    The kernel frees it on death."""
    result = os_lock(fd, LOCK_SHARED if shared else LOCK_EXCLUSIVE)
    if result < 0:
        raise storage_error("lock", f"descriptor {fd}", result)
    return result == 1


def unlock(fd: int) -> None:
    """Let go of a ``flock``."""
    os_lock(fd, UNLOCK)


cdef object examined(str path, bint is_expected=True, bint follows=True):
    """What ``stat`` says of a path; None when nothing is there, unless that is an error."""
    checked(CALL_FSTAT, "examine", path)
    try:
        return os.stat(path, follow_symlinks=follows)
    except OSError as error:
        if isinstance(error, (FileNotFoundError, NotADirectoryError)) and not is_expected:
            return None
        raise translated("examine", path, error) from None


def link(source: str, target: str) -> None:
    """Give a file a second name."""
    checked(CALL_LINK, "link", source)
    try:
        os.link(source, target)
    except OSError as error:
        raise translated("link", source, error) from None


def identity(path: str) -> tuple | None:
    """(size, inode) of a regular file, or None when there is no such file."""
    status = examined(path, is_expected=False, follows=False)
    return None if status is None else (status.st_size, status.st_ino)


def inode_of(fd: int) -> int:
    """Inode number of an open file."""
    path = f"descriptor {fd}"
    checked(CALL_FSTAT, "examine", path)
    try:
        return os.fstat(fd).st_ino
    except OSError as error:
        raise translated("examine", path, error) from None


def change_time(path: str) -> int:
    """When the entries of a directory last changed, in nanoseconds."""
    return examined(path).st_mtime_ns


def modified_at(path: str) -> int:
    """When a file was last written to, milliseconds since the epoch."""
    return examined(path).st_mtime_ns // 1_000_000


def set_modified(path: str, milliseconds: int) -> None:
    """Let a file look as if it was last written to at that time."""
    checked(CALL_UTIMENSAT, "change the time of", path)
    try:
        os.utime(path, ns=(milliseconds * 1_000_000, milliseconds * 1_000_000))
    except OSError as error:
        raise translated("change the time of", path, error) from None


def file_size(path: str) -> int | None:
    """Size of a regular file in bytes, or None when there is no such file."""
    status = examined(path, is_expected=False, follows=False)
    if status is None:
        return None
    if not stat_codes.S_ISREG(status.st_mode):
        raise StorageError(f"{path} is not a regular file: fastlog does not follow links or read special files there")
    return status.st_size


def is_directory(path: str) -> bool | None:
    """Whether ``path`` is a directory; None when nothing is there."""
    status = examined(path, is_expected=False)
    return None if status is None else stat_codes.S_ISDIR(status.st_mode)


def inode(path: str) -> int:
    """Inode number of a directory: a copy of it has another one."""
    return examined(path).st_ino


def make_directory(path: str) -> None:
    """Create a directory (mode 0700) and its parents, and sync the parent of each so that it survives power loss."""
    make_with_parents(os.path.abspath(path), 0o700)


cdef int make_with_parents(str path, int mode) except -1:
    parent = os.path.dirname(path)
    if parent != path and examined(parent, is_expected=False) is None:
        make_with_parents(parent, 0o777)
    if not make_one(path, mode) and not is_directory(path):
        raise storage_error("create", path, -errno_codes.EEXIST)
    sync_directory(parent)
    return 0


cdef int make_one(str path, int mode) except -1:
    checked(CALL_MKDIR, "create", path)
    try:
        os.mkdir(path, mode)
    except FileExistsError:
        return False
    except OSError as error:
        raise translated("create", path, error) from None
    return True


def list_directory(path: str) -> list:
    """Names in a directory."""
    checked(CALL_GETDENTS, "list", path)
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
    cdef int64_t size
    if file_size(path) is None:
        return None
    try:
        fd = open_file(path)
    except StorageError as error:
        if error.errno == errno_codes.ENOENT:
            return None     # removed since
        raise
    try:
        size = os_file_size(fd)
        if size < 0:
            raise storage_error("examine", path, size)
        return read_bytes(fd, 0, min(size, <int64_t>limit))
    finally:
        close_file(fd)


def write_at(fd: int, data: bytes, position: int, path: str) -> None:
    """Write ``data`` at ``position``, all of it or a StorageError."""
    cdef const uint8_t* bytes_ = data
    cdef int64_t size = len(data), start = position, result
    cdef int file = fd
    with nogil:
        result = os_pwrite(file, bytes_, size, start)
    if result < 0:
        raise storage_error("write", path, result)


def drop_cache(path: str, position: int = 0) -> None:
    """Forget clean cached pages of a file from ``position`` on, so that they are read from the disk again. A hint to the kernel."""
    if hasattr(os, "posix_fadvise"):
        fd = open_file(path)
        try:
            os.posix_fadvise(fd, position, 0, os.POSIX_FADV_DONTNEED)
        finally:
            close_file(fd)


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


def sync_file(path: str) -> None:
    """Make the bytes of a closed file durable."""
    cdef int fd = open_file(path)
    try:
        sync_data(fd, path)
    finally:
        close_file(fd)


def sync_directory(path: str) -> None:
    """Make created, renamed and removed names in a directory durable."""
    cdef int fd = open_directory(path)
    cdef int result
    with nogil:
        result = os_fsync(fd)
    close_file(fd)
    if result < 0:
        raise storage_error("sync", path, result)


def sync_parents(path: str) -> None:
    """Make the names of a directory and of those above it durable, up to the mount point: who made one of them may not
    have synced it yet. One that may not be opened is passed over."""
    found = examined(path)
    while True:
        path += "/.."  # where a link leads to, which the text of a path does not say
        below, found = found, examined(path)
        if found.st_dev != below.st_dev or found.st_ino == below.st_ino:
            return
        try:
            sync_directory(path)
        except StorageError as error:
            if error.errno not in (errno_codes.EACCES, errno_codes.EPERM):
                raise


def rename(source: str, target: str) -> None:
    """Rename a file over ``target``."""
    checked(CALL_RENAME, "rename", source)
    try:
        os.rename(source, target)
    except OSError as error:
        raise translated("rename", source, error) from None


def remove(path: str) -> bool:
    """Unlink a file; False when it was not there."""
    return remove_by(os.unlink, path)


def remove_directory(path: str) -> bool:
    """Remove an empty directory; False when it was not there."""
    return remove_by(os.rmdir, path)


cdef bint remove_by(object call, str path) except -1:
    checked(CALL_UNLINK, "remove", path)
    try:
        call(path)
    except FileNotFoundError:
        return False
    except OSError as error:
        raise translated("remove", path, error) from None
    return True


def replace_file(path: str, data: bytes) -> None:
    """Write ``path`` as a whole: temporary file, sync, rename, directory sync. Either all of it is there, or nothing changed."""
    # a name of its own: other processes may be replacing the same file
    folder, name = os.path.split(path)
    temporary = f"{folder}/{name[:200]}.{os.urandom(4).hex()}.tmp"
    fd = open_file(temporary, writable=True, new=True)
    try:
        try:
            write_at(fd, data, 0, temporary)
            sync_data(fd, temporary)
        finally:
            close_file(fd)
        rename(temporary, path)
    except BaseException:
        try:
            os.unlink(temporary)
        except OSError:
            pass
        raise
    sync_directory(os.path.dirname(path))


def entry_kind(path: str) -> str | None:
    """``"file"``, ``"directory"``, ``"link"`` or ``"other"``; None when nothing is there. Links are not followed."""
    status = examined(path, is_expected=False, follows=False)
    if status is None:
        return None
    mode = status.st_mode
    if stat_codes.S_ISREG(mode):
        return "file"
    if stat_codes.S_ISDIR(mode):
        return "directory"
    return "link" if stat_codes.S_ISLNK(mode) else "other"


def file_stamp(path: str) -> tuple | None:
    """(inode, size, times of the last change in nanoseconds): another one once the file was replaced or written to. None when
    there is no such file."""
    status = examined(path, is_expected=False, follows=False)
    return None if status is None else (status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns)


def create_directory(path: str) -> bool:
    """Create one directory (mode 0700) below an existing one; False when something of that name is there. Not synced."""
    return make_one(path, 0o700) != 0


def try_share(fd: int, path: str) -> bool:
    """Hold an OFD read lock on the first byte of an open file: others may share it, nobody (a Java ``FileChannel.lock`` included)
    may lock the file alone. False when somebody does. The kernel frees it when the file is closed, at the latest on death."""
    cdef int result = os_attach(fd)
    if result == -EAGAIN or result == -EACCES:
        return False
    if result < 0:
        raise storage_error("lock", path, result)
    return True


def nap(milliseconds: float) -> None:
    """Sleep, and let signals in afterwards. Other threads run meanwhile."""
    cdef int64_t nanoseconds = <int64_t>(milliseconds * 1_000_000)
    with nogil:
        fastlog_nap(nanoseconds)
    PyErr_CheckSignals()


def descriptor_limit() -> int:
    """How many files this process may have open at once."""
    soft = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    return (1 << 20) if soft == resource.RLIM_INFINITY else soft


def process_id() -> int:
    """Id of the calling process."""
    return os.getpid()


# --- processes ---------------------------------------------------------------------------------------------------------

def process_start_time(pid: int) -> int:
    """When a process began, in ticks since the boot: with its id it names it, as ids are used again. 0 when unknown."""
    if fault(CALL_OPEN):
        return 0
    try:
        fd = os.open(f"/proc/{pid}/stat", os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return 0
    try:
        # the second field is the name in parentheses, with whatever characters
        return int(os.read(fd, 4096).rpartition(b")")[2].split()[19])
    except (OSError, IndexError, ValueError):
        return 0
    finally:
        os.close(fd)


def pid_namespace() -> int:
    """Number of the namespace that process ids of this process mean something in; 0 when unknown."""
    if fault(CALL_FSTAT):
        return 0
    try:
        return os.stat("/proc/self/ns/pid").st_ino
    except OSError:
        return 0


def open_process(pid: int) -> Descriptor | None:
    """Something for ``wait_for_files``, ready once the process has ended; None when it has, or cannot be watched."""
    if os.environ.get("FASTLOG_PORTABLE") or fault(CALL_PIDFD_OPEN):
        return None
    fd = fastlog_open_process(pid)
    return Descriptor(fd) if fd >= 0 else None


def open_pipe() -> tuple:
    """(end to read, end to write) of a pipe that never blocks: for waking who sleeps in ``wait_for_files``."""
    cdef int[2] ends
    checked(CALL_PIPE, "open", "a pipe")
    if fastlog_open_pipe(ends) != 0:
        raise storage_error("open", "a pipe", -errno)
    return Descriptor(ends[0]), Descriptor(ends[1])


def fill_pipe(pipe: Descriptor) -> None:
    """Make the other end ready."""
    try:
        os.write(pipe.fd, b"!")
    except BlockingIOError:
        pass


def empty_pipe(pipe: Descriptor) -> None:
    """Make this end unready."""
    try:
        while len(os.read(pipe.fd, 512)) == 512:
            pass
    except BlockingIOError:
        pass


def wait_for_files(files: list, milliseconds: int) -> list:
    """Sleep without the GIL until one of the ``Descriptor`` objects is ready, or for so long (-1: forever); those that are."""
    cdef unsigned long count = len(files), index
    cdef int timeout = min(milliseconds, 1 << 30), result
    cdef Descriptor file
    cdef pollfd* polled = <pollfd*>calloc(count + 1, sizeof(pollfd))
    if polled == NULL:
        raise MemoryError()
    try:
        checked(CALL_POLL, "wait for", "files")
        for index in range(count):
            file = files[index]
            polled[index].fd = file.fd
            polled[index].events = POLLIN
        with nogil:
            result = poll(polled, count, timeout)
        if result < 0:
            if errno == EINTR:
                return []
            raise storage_error("wait for", "files", -errno)
        return [files[index] for index in range(count) if polled[index].revents != 0]
    finally:
        free(polled)
