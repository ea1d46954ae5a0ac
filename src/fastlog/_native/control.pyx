# cython: annotation_typing=False
"""Who has a partition open, and who may change it: presence, the shared page, the writer lock, the sync owner, bells.

Everything rests on locks of the kernel, which it takes from the dead; nothing on what a dead process, or another boot of
the machine, left in a file.

Presence    every attached handle holds ``flock`` shared on the folder; who gets it exclusively is alone
Page        ``.fastlog-control``, mapped; made by who is alone, unlinked before that and by the last to close. It is
            believed only while somebody else is attached to it, which an OFD read lock on its first byte says
Writer      ``flock`` exclusive on the control file, behind a mutex for the threads of a handle
Maintainer  an OFD write lock on the second byte of the control file, behind a mutex: one process compacts and deletes
Sync owner  ``flock`` exclusive on ``.fastlog-meta``, behind a mutex: one sync at a time; also guards that file
Bells       a word to sleep on and a flag that somebody does. Bells are hints: every sleep is short, and looks again

Order: maintainer, sync owner, writer, when several are needed. Nobody waits for any of them while holding the GIL.
"""

from errno import ENOENT

from cpython.exc cimport PyErr_CheckSignals
from cpython.pythread cimport (
    NOWAIT_LOCK, PyThread_acquire_lock, PyThread_allocate_lock, PyThread_free_lock, PyThread_release_lock, PyThread_type_lock,
)
from libc.stdint cimport int64_t, uint32_t
from libc.stdlib cimport calloc, free
from libc.string cimport memcmp, memcpy, memset

from fastlog._native cimport oscalls as os_c
from fastlog._native import oscalls
from fastlog._native.published cimport (
    Bell, ControlPage, DELETED, Durable, PAGE_BYTES, PAGE_LAYOUT, Published, exchange_bell, full_fence, increment_bell, load_bell, load_word,
    store_word,
    read_durable, read_published,
)

from fastlog.errors import LockedError, StorageError

# kept here for objects that go when the interpreter ends: modules are empty by then
cdef object close_file = oscalls.close_file

cdef extern from "pythread.h" nogil:
    ctypedef enum PyLockStatus:
        PY_LOCK_ACQUIRED
    PyLockStatus PyThread_acquire_lock_timed(PyThread_type_lock lock, long long microseconds, int interruptible)

CONTROL = ".fastlog-control"
META = ".fastlog-meta"
MAGIC = b"fastlog\0"

cdef enum:
    LOCK_SLICE = 2_000_000          # nanoseconds: an owner who dies rings no bell, and delays nobody for longer
    SPIN = 40_000                   # nanoseconds
    MUTEX_SLICE = 50                # milliseconds
    BUSY_PATIENCE = 1000            # milliseconds to wait for somebody who will hardly go away


cdef class Mutex:
    def __cinit__(self):
        self.lock = PyThread_allocate_lock()
        if self.lock == NULL:
            raise MemoryError()

    def __dealloc__(self):
        PyThread_free_lock(self.lock)

    cdef bint try_acquire(self) noexcept:
        return PyThread_acquire_lock(self.lock, NOWAIT_LOCK)

    cdef bint acquire_within(self, int64_t milliseconds) except -1:
        """Never waits while it holds the GIL; signals are looked at meanwhile."""
        cdef int64_t stop, left
        cdef PyLockStatus status
        if PyThread_acquire_lock(self.lock, NOWAIT_LOCK):
            return True
        stop = os_c.steady_milliseconds() + milliseconds
        while True:
            left = min(max(stop - os_c.steady_milliseconds(), 0), <int64_t>MUTEX_SLICE)
            with nogil:
                status = PyThread_acquire_lock_timed(self.lock, left * 1000, 0)
            if status == PY_LOCK_ACQUIRED:
                return True
            PyErr_CheckSignals()
            if os_c.steady_milliseconds() >= stop:
                return False

    cdef void release(self) noexcept:
        PyThread_release_lock(self.lock)


# --- bells -------------------------------------------------------------------------------------------------------------

cdef void ring(Bell* bell) noexcept nogil:
    """Wake everybody who sleeps, or is about to. What they wait for must have been stored before."""
    full_fence()
    if load_bell(&bell.waiters) != 0 and exchange_bell(&bell.waiters, 0) != 0:
        increment_bell(&bell.count)
        os_c.os_wake(&bell.count)


cdef uint32_t listen(Bell* bell) noexcept nogil:
    """Say that somebody will sleep; look at what is waited for after this, and sleep with what it returns."""
    cdef uint32_t heard = load_bell(&bell.count)
    exchange_bell(&bell.waiters, 1)
    return heard


cdef int sleep_on(Bell* bell, uint32_t heard, int64_t nanoseconds) except -1:
    """Sleep until the bell rings, at most so long. Lets signals in."""
    with nogil:
        os_c.os_wait(&bell.count, heard, nanoseconds)
    PyErr_CheckSignals()
    return 0


# --- the page and its locks --------------------------------------------------------------------------------------------

cdef class Control:
    def __cinit__(self):
        self.page = NULL
        self.folder_fd = self.control_fd = self.sync_fd = -1
        self.generation = os_c.fork_generation()

    def __init__(self, folder: str, lock_timeout: int):
        self.folder = folder
        self.lock_timeout = lock_timeout
        self.process = oscalls.process_id()
        self.writer = Mutex()
        self.syncer = Mutex()
        self.maintainer = Mutex()

    def __dealloc__(self):
        self.let_go()
        if self.page != NULL:
            # only here: another thread may have been looking at it
            if self.is_shared:
                os_c.os_unmap(self.page, PAGE_BYTES)
            else:
                free(self.page)

    cdef void let_go(self) noexcept:
        """Close every descriptor: the kernel frees the locks. In a forked child they are closed already."""
        cdef int fd
        if self.generation == os_c.fork_generation():
            for fd in (self.sync_fd, self.control_fd, self.folder_fd):
                if fd >= 0:
                    close_file(fd)
        self.folder_fd = self.control_fd = self.sync_fd = -1

    cdef int lock_writer(self) except -1:
        """Take the writer lock. Raises LockedError after ``lock_timeout``."""
        cdef int result
        if not self.writer.try_acquire():
            self.wait_for_writer_lock(False)
        elif not self.is_exclusive and self.control_fd >= 0:
            result = os_c.os_lock(self.control_fd, os_c.LOCK_EXCLUSIVE)
            if result != 1:
                if result < 0:
                    self.writer.release()
                    raise os_c.storage_error("lock", f"{self.folder}/{CONTROL}", result)
                self.wait_for_writer_lock(True)
        self.page.owner_pid = self.process
        return 0

    cdef int wait_for_writer_lock(self, bint has_mutex) except -1:
        cdef int64_t stop = os_c.steady_milliseconds() + self.lock_timeout, begun = os_c.steady_nanoseconds()
        cdef uint32_t heard
        cdef int result
        if not has_mutex:
            if not self.writer.acquire_within(self.lock_timeout):
                raise self.locked_out("is writing", self.page.owner_pid)
        try:
            # appends are short: a few more tries often are all that is needed, and cheaper than to sleep and be woken
            with nogil:
                while not self.is_exclusive and self.control_fd >= 0 and os_c.steady_nanoseconds() < begun + SPIN:
                    if os_c.os_lock(self.control_fd, os_c.LOCK_EXCLUSIVE) == 1:
                        return 0
                    os_c.os_pause()
            # a handle that was closed meanwhile has no lock to take: its callers are told so next
            while not self.is_exclusive and self.control_fd >= 0:
                heard = listen(&self.page.lock_bell)
                result = os_c.os_lock(self.control_fd, os_c.LOCK_EXCLUSIVE)
                if result == 1:
                    return 0
                if result < 0:
                    raise os_c.storage_error("lock", f"{self.folder}/{CONTROL}", result)
                if os_c.steady_milliseconds() >= stop:
                    raise self.locked_out("is writing", self.page.owner_pid)
                sleep_on(&self.page.lock_bell, heard, LOCK_SLICE)
        except BaseException:
            self.writer.release()
            raise
        return 0

    cdef object locked_out(self, str what, int64_t pid):
        outcome = "nothing was written" if what == "is writing" else "what was appended is there, but not known to be durable"
        return LockedError(
            f"{self.folder} is locked: process {pid} {what} for more than lock_timeout={self.lock_timeout / 1000.0:g} s. It may be "
            f"stopped (a debugger, SIGSTOP): let it go on, or end it; {outcome}", pid,
        )

    cdef void unlock_writer(self) noexcept:
        if not self.is_exclusive:
            os_c.os_lock(self.control_fd, os_c.UNLOCK)
            ring(&self.page.lock_bell)
        self.writer.release()

    cdef bint try_sync_owner(self) except -1:
        """Become the one who syncs, unless somebody is."""
        cdef int result
        if not self.syncer.try_acquire():
            return False
        if not self.is_exclusive and self.sync_fd >= 0:
            result = os_c.os_lock(self.sync_fd, os_c.LOCK_EXCLUSIVE)
            if result != 1:
                self.syncer.release()
                if result < 0:
                    raise os_c.storage_error("lock", f"{self.folder}/{META}", result)
                return False
        self.page.sync_owner_pid = self.process
        return True

    cdef int lock_sync_owner(self) except -1:
        """Likewise, waiting for it. Raises LockedError after ``lock_timeout``."""
        cdef int64_t stop = os_c.steady_milliseconds() + self.lock_timeout
        cdef uint32_t heard
        while True:
            heard = listen(&self.page.sync_bell)
            if self.try_sync_owner():
                return 0
            if os_c.steady_milliseconds() >= stop:
                raise self.locked_out("is syncing", self.page.sync_owner_pid)
            sleep_on(&self.page.sync_bell, heard, LOCK_SLICE)

    cdef void unlock_sync_owner(self) noexcept:
        if not self.is_exclusive:
            os_c.os_lock(self.sync_fd, os_c.UNLOCK)
        self.syncer.release()
        ring(&self.page.sync_bell)

    cdef bint try_maintenance(self) except -1:
        """Become the one who compacts and deletes, unless somebody is."""
        cdef int result = 1
        if not self.maintainer.try_acquire():
            return False
        if not self.is_exclusive:
            result = os_c.os_lock_maintenance(self.control_fd, True)
            if result != 1:
                self.maintainer.release()
            if result < 0:
                raise os_c.storage_error("lock", f"{self.folder}/{CONTROL}", result)
        return result == 1

    cdef void end_maintenance(self) noexcept:
        if not self.is_exclusive:
            os_c.os_lock_maintenance(self.control_fd, False)
        self.maintainer.release()

    # --- coming and going ------------------------------------------------------------------------------------------------

    def leave(self) -> None:
        """Let go of everything. The page stays readable for whoever holds this object."""
        self.let_go()

    def try_alone(self) -> bool:
        """Ask for the folder exclusively, giving up the shared presence: whether nobody else is there."""
        return self.is_exclusive or not self.is_shared or oscalls.try_lock(self.folder_fd)

    def remove_page(self) -> None:
        """The last to close takes the page away."""
        if self.is_shared:
            oscalls.remove(f"{self.folder}/{CONTROL}")

    def is_replaced(self) -> bool:
        """Whether the control file in the folder is not the one that is mapped."""
        found = oscalls.identity(f"{self.folder}/{CONTROL}")
        return found is None or found[1] != oscalls.inode_of(self.control_fd)


def take_presence(folder: str, wants_exclusive: bool, lock_timeout: int, is_read_only: bool) -> tuple:
    """Take part in the life of a partition: (descriptor of the folder, whether nobody else is there).

    Alone: the lock is exclusive. In company: it is shared. Raises LockedError when neither can be had.
    """
    cdef int64_t begun = os_c.steady_milliseconds(), waited
    fd = oscalls.open_directory(folder)
    try:
        while True:
            if oscalls.try_lock(fd):
                os_c.reach(os_c.OPEN_EXCLUSIVE)
                return fd, True
            if not wants_exclusive and oscalls.try_lock(fd, shared=True):
                return fd, False
            waited = os_c.steady_milliseconds() - begun
            holder = describe(folder)
            pid = holder.get("opener_pid") if holder else None
            patience = min(<int64_t>lock_timeout, <int64_t>BUSY_PATIENCE) if wants_exclusive or (holder and holder["is_exclusive"]) else lock_timeout
            if waited >= patience:
                raise busy(folder, pid, wants_exclusive)
            nap()
    except BaseException:
        oscalls.close_file(fd)
        raise


cdef object busy(str folder, pid, bint wants_exclusive):
    if pid == oscalls.process_id():
        who = f"this process ({pid}) has it open in another handle"
    elif pid is not None:
        who = f"process {pid} has it open"
    else:
        who = "another process has it open"
    why = "exclusive=True needs it alone" if wants_exclusive else "and keeps everybody else out"
    return LockedError(f"{folder} is locked: {who}, {why}; wait until it is closed", pid)


def nap() -> None:
    """Some milliseconds, not the same for everybody."""
    cdef int64_t nanoseconds = 1_000_000 + 60_000 * <int64_t>oscalls.random_bytes(1)[0]
    with nogil:
        os_c.os_nap(nanoseconds)
    PyErr_CheckSignals()


def private_page(folder: str, lock_timeout: int) -> Control:
    """A page of our own, for a reader that found nobody there."""
    cdef Control control = Control(folder, lock_timeout)
    control.page = <ControlPage*>calloc(1, PAGE_BYTES)
    if control.page == NULL:
        raise MemoryError()
    control.is_writable = True
    control.is_exclusive = True
    return control


def unlink_page(folder: str) -> None:
    """Whatever page is there belongs to nobody alive; only who is alone in the folder may say so."""
    oscalls.remove(f"{folder}/{CONTROL}")
    os_c.reach(os_c.OPEN_PAGE_UNLINKED)


def create_page(folder: str, folder_fd: int, lock_timeout: int, is_exclusive: bool) -> Control:
    """A fresh page, filled by writes and synced before it is mapped, and attached to. Nobody else may be in the folder.

    The descriptor of the folder belongs to the result from now on. The page is not in the folder yet: ``install_page``.
    """
    cdef Control control = Control(folder, lock_timeout)
    cdef ControlPage page
    cdef bytes magic = MAGIC, instance = oscalls.random_bytes(16), boot = oscalls.boot_id().encode()[:47]
    memset(&page, 0, sizeof(ControlPage))
    memcpy(page.magic, <const char*>magic, 8)
    page.layout = PAGE_LAYOUT
    memcpy(page.instance_id, <const char*>instance, 16)
    memcpy(page.boot_id, <const char*>boot, len(boot))
    page.opener_pid = oscalls.process_id()
    page.opened = oscalls.wall_clock()
    page.is_exclusive = is_exclusive
    content = (<const char*>&page)[:sizeof(ControlPage)]
    path = f"{folder}/{CONTROL}.tmp"
    oscalls.remove(path)
    control.control_fd = oscalls.open_file(path, writable=True, new=True)
    oscalls.write_at(control.control_fd, content + bytes(PAGE_BYTES - len(content)), 0, path)
    oscalls.sync_data(control.control_fd, path)
    map_page(control, path, True)
    attach(control, path)
    control.is_exclusive = is_exclusive
    control.sync_fd = oscalls.open_file(f"{folder}/{META}")
    control.folder_fd = folder_fd
    return control


def install_page(control: Control) -> None:
    """Put a filled page into the folder, for others to find."""
    oscalls.rename(f"{control.folder}/{CONTROL}.tmp", f"{control.folder}/{CONTROL}")
    os_c.reach(os_c.OPEN_PAGE_WRITTEN)


def share(control: Control) -> bool:
    """From alone to in company. Not atomic: False when somebody came in between and made a page of his own."""
    cdef Control opened = control
    stop = oscalls.steady_clock() + opened.lock_timeout
    while not oscalls.try_lock(opened.folder_fd, shared=True):
        if oscalls.steady_clock() >= stop:
            raise busy(opened.folder, None, False)
        nap()
    os_c.reach(os_c.OPEN_SHARED)
    return not opened.is_replaced()


def join_page(folder: str, folder_fd: int, lock_timeout: int, is_read_only: bool) -> Control | None:
    """Map the page that others use, and attach to it; None when nobody is attached to it any more.

    The descriptor of the folder belongs to the result, if there is one. Raises LockedError for a page that is none of ours.
    """
    cdef Control control = Control(folder, lock_timeout)
    path = f"{folder}/{CONTROL}"
    is_writable = True
    try:
        control.control_fd = oscalls.open_file(path, writable=True)
    except StorageError as error:
        if error.errno == ENOENT:
            return None
        if not is_read_only:
            raise
        control.control_fd = oscalls.open_file(path)
        is_writable = False
    size = oscalls.identity(path)
    if size is None:
        return None
    if size[0] != PAGE_BYTES:
        raise foreign(path, f"has {size[0]} bytes, expected {PAGE_BYTES}")
    map_page(control, path, is_writable)
    cdef bytes magic = MAGIC
    if memcmp(control.page.magic, <const char*>magic, 8) != 0:
        raise foreign(path, "does not begin as it should")
    if control.page.layout != PAGE_LAYOUT:
        raise foreign(path, f"has layout {control.page.layout}, this fastlog knows {PAGE_LAYOUT}: let all processes use one version")
    cdef int others = os_c.os_others_attached(control.control_fd)
    if others < 0:
        raise os_c.storage_error("examine the locks of", path, others)
    if others == 0 or control.is_replaced():
        return None
    attach(control, path)
    control.sync_fd = oscalls.open_file(f"{folder}/{META}")
    control.folder_fd = folder_fd
    os_c.reach(os_c.OPEN_ATTACHED)
    return control


def retire(folder: str, lock_timeout: int) -> bool:
    """Tell all who have a partition open that it is deleted: they can do nothing with it from then on. Whether there is a page.

    Under the writer lock, so that no append is under way. Takes no part in the life of the partition: the page may go, or make
    room for another one, at any moment.
    """
    cdef Control control
    path = f"{folder}/{CONTROL}"
    while True:
        found = oscalls.identity(path)
        if found is None or found[0] != PAGE_BYTES:
            return False
        control = Control(folder, lock_timeout)
        try:
            if not retire_page(control, path):
                return False
            if not control.is_replaced():
                return True
        except StorageError as error:
            if error.errno != ENOENT:
                raise
        except LockedError:
            if control.page != NULL:
                raise
        finally:
            control.leave()


cdef bint retire_page(Control control, str path) except *:
    """Whether it was one of ours. LockedError with nothing mapped: another one took its place."""
    cdef bytes magic = MAGIC
    control.control_fd = oscalls.open_file(path, writable=True)
    map_page(control, path, True)
    if memcmp(control.page.magic, <const char*>magic, 8) != 0 or control.page.layout != PAGE_LAYOUT:
        return False
    control.lock_writer()
    try:
        store_word(&control.page.poisoned, DELETED)
    finally:
        control.unlock_writer()
    ring(&control.page.append_bell)
    ring(&control.page.sync_bell)
    return True


def foreign(path: str, what: str) -> LockedError:
    """The error for a control file that cannot be believed while others have the partition open."""
    return LockedError(f"{path} {what}, while others have the partition open: close it everywhere, then open it again")


cdef int map_page(Control control, path, bint is_writable) except -1:
    """By a descriptor of its own: a mapping keeps its open file alive, and with it every lock, in forked children too."""
    cdef void* address = NULL
    cdef int result
    fd = oscalls.open_file(path, writable=is_writable)
    try:
        if oscalls.inode_of(fd) != oscalls.inode_of(control.control_fd):
            raise foreign(path, "was just replaced")
        result = os_c.os_map_shared(fd, PAGE_BYTES, is_writable, &address)
    finally:
        oscalls.close_file(fd)
    if result < 0:
        raise os_c.storage_error("map", path, result)
    control.page = <ControlPage*>address
    control.is_shared = True
    control.is_writable = is_writable
    return 0


cdef int attach(Control control, path) except -1:
    cdef int result = os_c.os_attach(control.control_fd)
    if result < 0:
        raise os_c.storage_error("lock", path, result)
    return 0


def describe(folder: str) -> dict | None:
    """What the control file of a partition says, for people; None when there is none that can be read."""
    cdef ControlPage page
    cdef Published state
    cdef Durable durable
    cdef bytes content
    try:
        content = oscalls.read_file(f"{folder}/{CONTROL}", PAGE_BYTES)
    except StorageError:
        return None
    if content is None or len(content) != PAGE_BYTES or content[:8] != MAGIC:
        return None
    memcpy(&page, <const char*>content, sizeof(ControlPage))
    if page.layout != PAGE_LAYOUT:
        return None
    read_published(&page, &state)
    read_durable(&page, &durable)
    return {
        "instance_id": (<const char*>page.instance_id)[:16].hex(),
        "boot_id": page.boot_id.decode("ascii", "replace"),
        "opener_pid": page.opener_pid,
        "opened": page.opened,
        "is_exclusive": bool(page.is_exclusive),
        "writer_pid": page.owner_pid,
        "sync_owner_pid": page.sync_owner_pid,
        "syncs": page.syncs,
        "is_dirty": bool(page.dirty),
        "is_poisoned": bool(load_word(&page.poisoned)),
        "start_offset": state.start_offset,
        "end_offset": state.end_offset,
        "durable_offset": durable.offset,
        "flush_interval_ms": page.flush_interval,
    }
