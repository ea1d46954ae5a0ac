# cython: annotation_typing=False, nonecheck=True
"""Durability: group commit, the levels, the recovery point, and what happens when a sync fails.

One process syncs at a time, the sync owner. It looks at the published end, syncs every segment from the durable one to the
active one, oldest first — the folder before that, when files are new —, and publishes how far it came. Whoever waits for an
offset either becomes the owner or sleeps until the owner has published: a sync is shared by all who appended before it began.

A failed sync poisons the log for all processes: what the kernel holds is then not what the disk holds, and a second sync
would report success for bytes that are gone. Only a recovery, which reads the disk again, goes on.
"""

import logging
import threading
import weakref

from libc.stdint cimport int64_t, uint32_t

from fastlog._native cimport oscalls as os_c
from fastlog._native.control cimport Control, listen, sleep_on
from fastlog._native.handle cimport AT_INTERVAL, Handle, SegmentList, wake_readers
from fastlog._native.published cimport (
    DELETED, Durable, Published, SYNC_FAILED, load_word, publish_durable, read_durable, read_published, store_word,
)
from fastlog._native.segment cimport Segment

from fastlog._native import oscalls
from fastlog.errors import CorruptLogError, StorageError
from fastlog.partition import files, snapshots

logger = logging.getLogger("fastlog.log")

cdef enum:
    SYNC_SLICE = 50_000_000         # nanoseconds: how long a death in the middle of a sync can go unnoticed
    REWRITE_BYTES = 1 << 20
    # how far the recovery point on disk may lag behind, which is what a recovery reads
    PERSIST_INTERVAL = 5000         # milliseconds
    PERSIST_BYTES = 64 << 20


cdef object poisoned_error(Handle log):
    if load_word(&log.control.page.poisoned) == DELETED:
        return log.deleted_error()
    return StorageError(
        f"a sync of {log.path} failed before: what was not durable then may be lost. Close it everywhere and open it again: that "
        f"reads it back from disk"
    )


# --- group commit ------------------------------------------------------------------------------------------------------

cdef int sync_until(Handle log, int64_t offset) except -1:
    """Return when everything below `offset` survives power loss. Leads a sync, or waits for one that is under way.

    Raises StorageError when the sync fails or failed before, LockedError when its owner does not go on.
    """
    if not sync_within(log, offset, log.control.lock_timeout):
        raise log.control.locked_out("is syncing", log.control.page.sync_owner_pid)
    return 0


cdef bint sync_within(Handle log, int64_t offset, int64_t milliseconds) except -1:
    """Likewise; False when somebody else syncs for longer than that."""
    cdef Control control = log.control
    cdef Durable durable
    cdef uint32_t heard
    cdef int64_t stop = 0
    while True:
        # a lone reader may get company meanwhile, and with it another page
        control = log.control
        read_durable(control.page, &durable)
        if durable.offset >= offset:
            return True
        if load_word(&control.page.poisoned):
            raise poisoned_error(log)
        heard = listen(&control.page.sync_bell)
        # what an owner who died in a sync has left only a writer can put right: it has to be written again
        if not (log.read_only and load_word(&control.page.syncing)) and control.try_sync_owner():
            try:
                if control is log.control:
                    lead(log, False)
            finally:
                control.unlock_sync_owner()
                os_c.reach(os_c.SYNC_UNLOCKED)
        read_durable(control.page, &durable)
        if durable.offset >= offset:
            return True
        if stop == 0:
            stop = os_c.steady_milliseconds() + milliseconds
        elif os_c.steady_milliseconds() >= stop:
            return False
        sleep_on(&control.page.sync_bell, heard, SYNC_SLICE)


cdef int sync_own(Handle log) except -1:
    """A sync of one's own, whatever others do."""
    log.control.lock_sync_owner()
    try:
        lead(log, True)
    finally:
        log.control.unlock_sync_owner()
        os_c.reach(os_c.SYNC_UNLOCKED)
    return 0


cdef int lead(Handle log, bint always) except -1:
    """Sync up to the published end, as the sync owner; not when it is durable already, unless `always`."""
    cdef Control control = log.control
    cdef Published state
    cdef Durable durable
    os_c.reach(os_c.SYNC_LOCKED)
    log.require_open()
    if load_word(&control.page.poisoned):
        raise poisoned_error(log)
    read_published(control.page, &state)
    read_durable(control.page, &durable)
    if durable.offset >= state.end_offset and not always:
        return 0
    if log.read_only and load_word(&control.page.syncing):
        return 0
    sync_all(log, &state)
    try:
        persist(log, False)
    except (StorageError, CorruptLogError) as error:
        # what was promised holds; only a recovery would begin further back
        logger.warning("the recovery point of %s could not be written: %s", log.path, error)
    return 0


cdef int sync_all(Handle log, const Published* state) except -1:
    """Sync everything up to a published end and publish that; poisons the log when it fails. The sync owner's."""
    cdef Control control = log.control
    cdef Published current = state[0]
    cdef Durable durable, reached
    cdef SegmentList list_
    cdef Segment segment
    cdef int fd, result
    read_durable(control.page, &durable)
    reached.base = state.active_base
    reached.position = state.end_position
    reached.offset = reached.last_stable_offset = state.end_offset
    if state.first_unstable_offset >= 0:
        reached.last_stable_offset = min(state.end_offset, max(state.first_unstable_offset, state.start_offset))
    # what fails here, for want of descriptors say, has lost nothing
    try:
        list_ = log.segments_at(&current)
        unsynced = [
            (segment, segment.reading_file()) for segment in list_.segments
            if durable.base <= segment.base_offset < state.active_base
            # in the background, after a roll, nothing of the active one is asked for
            or segment.base_offset == state.active_base and state.end_position > 0
        ]
        if load_word(&control.page.syncing):
            # the last sync owner died in the middle. Had its sync failed, the kernel would take the pages for clean
            write_again(log, &durable, state)
        folder_fd = oscalls.open_directory(log.path) if durable.base != state.active_base else -1
    except StorageError as error:
        raise log.blamed(error)
    try:
        store_word(&control.page.syncing, 1)
        if folder_fd >= 0:
            # the names of new segments, before their bytes count
            fd = folder_fd
            with nogil:
                result = os_c.os_fsync(fd)
            if result < 0:
                raise os_c.storage_error("sync", log.path, result)
        for segment, file in unsynced:
            # the one call that every durable append waits for; by a descriptor that no other thread closes
            fd = (<os_c.Descriptor>file).fd
            with nogil:
                result = os_c.os_fdatasync(fd)
            if result < 0:
                raise os_c.storage_error("sync", segment.path, result)
        os_c.reach(os_c.SYNC_SYNCED)
    except StorageError as error:
        poison(log, error)
        raise
    finally:
        if folder_fd >= 0:
            oscalls.close_file(folder_fd)
    if load_word(&control.page.poisoned):
        # by who cut something back meanwhile: that sync may have taken the error away from this one
        raise poisoned_error(log)
    if reached.offset >= durable.offset:
        publish_durable(control.page, &reached)
    store_word(&control.page.syncing, 0)
    for segment, file in unsynced:
        segment.forget_reader()
    control.page.synced_at = os_c.steady_milliseconds()
    store_word(&control.page.syncs, control.page.syncs + 1)
    os_c.reach(os_c.SYNC_PUBLISHED)
    # readers that read durably wait at the same bell as all others
    wake_readers(log, control)
    return 0


cdef int write_again(Handle log, const Durable* durable, const Published* state) except -1:
    """Write the bytes between the durable and the published end once more, as they are, so that a sync must bring them to disk."""
    cdef Published current = state[0]
    cdef int64_t position, stop
    logger.warning("a sync of %s was cut short: what it was about is written again", log.path)
    for base, size in log.sizes_at(&current):
        if not durable.base <= base <= state.active_base:
            continue
        path = files.segment_path(log.path, base)
        position = durable.position if base == durable.base else 0
        stop = state.end_position if base == state.active_base else size
        fd = oscalls.open_file(path, writable=True)
        try:
            while position < stop:
                piece = oscalls.read_bytes(fd, position, min(stop - position, <int64_t>REWRITE_BYTES))
                if not piece:
                    break
                oscalls.write_at(fd, piece, position, path)
                position += len(piece)
        finally:
            oscalls.close_file(fd)
    return 0


cdef int poison(Handle log, error) except -1:
    """A sync failed: from here on nobody, in any process, takes the page cache for the disk."""
    if load_word(&log.control.page.poisoned) == DELETED:
        return 0
    store_word(&log.control.page.poisoned, SYNC_FAILED)
    logger.error("a sync of %s failed: %s; the log stops here until it is opened again", log.path, error)
    wake_readers(log, log.control)
    if log.read_only:
        return 0
    try:
        oscalls.replace_file(f"{log.path}/{files.POISONED}", files.sealed({"reason": str(error)}))
    except StorageError:
        logger.exception("could not leave %s behind", files.POISONED)
    return 0


# --- the recovery point ------------------------------------------------------------------------------------------------

cdef int persist(Handle log, bint at_once) except -1:
    """Write the recovery point to disk, every few seconds and MiB, or `at_once`; the sync owner's."""
    cdef int64_t now = os_c.steady_milliseconds()
    cdef Durable durable
    cdef Published state
    if log.read_only:
        return 0
    read_durable(log.control.page, &durable)
    if not at_once and now - log.control.page.persisted_at < PERSIST_INTERVAL and not is_far_ahead(&durable, log.meta):
        return 0
    meta = files.read_meta(log.path) or log.meta
    meta.recovery_point = durable.offset
    meta.recovery_segment = durable.base
    meta.recovery_position = durable.position
    read_published(log.control.page, &state)
    meta.last_producer_offset = state.last_producer_offset
    write_meta(log, meta)
    log.control.page.persisted_at = now
    return 0


cdef bint is_far_ahead(const Durable* durable, meta) except *:
    """Whether a recovery would have much to read. `meta` may be older than what others have written: then it is written early."""
    return durable.position - (meta.recovery_position if durable.base == meta.recovery_segment else 0) >= PERSIST_BYTES


def write_meta(Handle log, meta: object) -> None:
    """Write ``.fastlog-meta``; the sync owner's, since all processes share the file."""
    if log.meta_file is None:
        log.meta_file = files.MetaFile(log.path)
    log.meta_file.write(meta)
    log.meta = meta


cdef int write_producers(Handle log, const Published* state) except -1:
    """The snapshot of producers that belongs to the active segment; from what is closed, which never changes."""
    cdef Published current = state[0]
    closed = [pair for pair in log.sizes_at(&current) if pair[0] < state.active_base]
    snapshots.renew(log.path, oscalls.list_directory(log.path), closed, state.active_base, state.end_offset)
    return 0


# --- in the background -------------------------------------------------------------------------------------------------

cdef int sync_rolled_later(Handle log) except -1:
    """After a roll, at every level: sync what is closed, and move the recovery point behind it."""
    log.has_rolled = True
    if log.background is None or not log.background.is_alive():
        log.background = threading.Thread(target=sync_rolled, args=(log,), name="fastlog-sync", daemon=True)
        try:
            log.background.start()
        except RuntimeError as error:
            # too many threads, or Python is about to end: the log has rolled all the same
            log.background = None
            logger.warning("closed segments of %s are not synced yet: %s", log.path, error)
    return 0


def sync_rolled(Handle log) -> None:
    """What is done in the background after a roll, and once more when there was another one meanwhile."""
    while True:
        log.has_rolled = False
        sync_closed(log)
        if not log.has_rolled:
            # the GIL is held: no roll comes between looking and letting go
            log.background = None
            return


cdef int sync_closed(Handle log) except -1:
    """Sync closed segments and their indexes, and move the recovery point on disk behind them."""
    cdef Control control = log.control
    cdef Published state
    cdef Durable durable
    cdef Segment segment
    cdef SegmentList list_
    try:
        control.lock_sync_owner()
    except Exception as error:
        logger.warning("closed segments of %s are not synced yet: %s", log.path, error)
        return 0
    try:
        if log.is_closed or load_word(&control.page.poisoned):
            return 0
        read_published(control.page, &state)
        read_durable(control.page, &durable)
        if durable.base < state.active_base:
            # all that is closed: up to the first byte of the active one
            state.end_position = 0
            state.end_offset = state.active_base
            sync_all(log, &state)
            read_published(control.page, &state)
            if state.last_producer_offset >= 0:
                write_producers(log, &state)
        read_published(control.page, &state)
        list_ = log.segments_at(&state)
        checksums = {}
        for segment in list_.segments:
            if segment.base_offset >= state.active_base:
                break
            if segment.index_checksums is None and segment.tracker is not None and not segment.is_damaged:
                segment.sync_indexes()
                segment.index_checksums = segment.compute_checksums()
            if segment.index_checksums is not None:
                checksums[segment.base_offset] = files.checksum_entry(segment)
            if segment is not log.active:
                segment.close_files()
        if not log.read_only and checksums:
            checksums = {**files.read_index_checksums(log.path), **checksums}
            files.write_index_checksums(log.path, {base: checksums[base] for base in list_.bases if base in checksums})
        persist(log, True)
    except (StorageError, CorruptLogError, MemoryError) as error:
        logger.warning("bookkeeping of %s after a roll failed and is left to the next one: %s", log.path, error)
    finally:
        control.unlock_sync_owner()
    return 0


# --- durability="interval" ---------------------------------------------------------------------------------------------

class Flusher:
    """The thread of a process that keeps the flush interval of every log it has open, also on behalf of the dead."""

    def __init__(self):
        self.logs = weakref.WeakSet()
        self.generation = os_c.fork_generation()
        self.wanted = threading.Event()
        self.lock = threading.Lock()
        self.thread = None

    def keep(self, Handle log):
        with self.lock:
            self.logs.add(log)
            if self.thread is None:
                thread = threading.Thread(target=self.run, name="fastlog-flush", daemon=True)
                thread.start()
                self.thread = thread
        self.wanted.set()

    def known(self):
        with self.lock:
            return list(self.logs)

    def run(self):
        while True:
            # before looking: a log that comes meanwhile is looked at next
            self.wanted.clear()
            spans = [span for span in map(flush_if_due, self.known()) if span]
            self.wanted.wait(min(spans) / 1000 if spans else None)


cdef object flusher = None


cdef int keep_interval(Handle log) except -1:
    """Somebody has asked for a flush interval: keep it as long as this handle is open."""
    global flusher
    if flusher is None or flusher.generation != os_c.fork_generation():
        flusher = Flusher()
    flusher.keep(log)
    log.keeps_interval = True
    return 0


def flush_if_due(Handle log) -> int:
    """Sync a log whose interval is over; milliseconds until it should be looked at again, 0 = never."""
    cdef Published state
    cdef Durable durable
    cdef Control control = log.control
    cdef int64_t interval, since
    if log.is_closed:
        return 0
    interval = load_word(&control.page.flush_interval)
    if log.level == AT_INTERVAL:
        # two may have asked at the same moment
        interval = min(interval, <int64_t>log.config.flush_interval)
    if interval == 0 or load_word(&control.page.poisoned):
        return 0
    read_published(control.page, &state)
    read_durable(control.page, &durable)
    since = os_c.steady_milliseconds() - control.page.synced_at
    if durable.offset < state.end_offset and since >= interval:
        try:
            sync_until(log, state.end_offset)
        except Exception as error:
            logger.warning("the flush interval of %s could not be kept: %s", log.path, error)
        since = 0
    return max(min(interval - since, interval), 1) if since < interval else interval


def wake_flusher() -> None:
    """A log was closed or its interval changed."""
    if flusher is not None and flusher.generation == os_c.fork_generation():
        flusher.wanted.set()
