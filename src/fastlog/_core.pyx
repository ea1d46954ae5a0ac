# cython: annotation_typing=False, nonecheck=True
"""The storage engine's front door: ``PartitionLog``, one durable, append-only partition in Kafka's format.

Any number of processes and threads may have one partition open; there is no server. This file opens and closes, and takes
what callers pass; the rooms behind it do the rest: ``control`` knows who is there, ``appending`` changes the end of the log,
``syncing`` makes it survive power loss, ``reading`` finds records and waits for them.
"""

import logging
import os
from datetime import datetime

from libc.errno cimport ENOENT
from libc.stdint cimport int64_t
from libc.stdlib cimport free

from fastlog._native cimport oscalls as os_c
from fastlog._native.appending cimport (
    Append, Conditions, append_if, begin_change, exchange, fenced, make_conditions, open_transactions, request_ready,
)
from fastlog._native.arrow cimport export_schema, export_schema_of, export_stream
from fastlog._native.batch cimport BinaryColumn, Record, RecordBatch
from fastlog._native.columns cimport Column, ColumnData, Timestamps, make_column, make_header_column, make_timestamps, span_at
from fastlog._native.control cimport Control
from fastlog._native.encoder cimport (
    BatchShape, EncodedBatches, Encoder, OUT_OF_MEMORY, RecordSource, encode_compressed, plan_batches,
)
from fastlog._native.layout cimport TRANSACTION_ENTRY_SIZE
from fastlog._native.handle cimport AT_BATCH, AT_GROUP, AT_INTERVAL, AT_OS, Handle, Level, SegmentList, wake_readers
from fastlog._native.maintaining cimport delete_until, maintain
from fastlog._native.published cimport (
    Durable, Published, SYNC_FAILED, UNKNOWN_ENTRIES, load_word, publish, publish_durable, read_durable, read_published, store_word,
)
from fastlog._native.reading cimport MOST_RETRIES, aborted_entries, find_time, out_of_range, read_range, readable_end, wait_for
from fastlog._native.replaying cimport replay
from fastlog._native.segment cimport Segment
from fastlog._native.shared cimport BELL_COUNT, Bells
from fastlog._native.validator cimport ValidatedBatches
from fastlog._native.syncing cimport keep_interval, persist, poisoned_error, sync_all, sync_own, sync_until

from fastlog._native import accumulator as accumulator_room
from fastlog._native import control as presence
from fastlog._native import deliveries as deliveries_room
from fastlog._native import oscalls
from fastlog._native import partitioning as partitioning_room
from fastlog._native.checksum import crc32c
from fastlog._native import batch as batch_room
from fastlog._native import replaying as replaying_room
from fastlog._native import shared as shared_room
from fastlog._native.checksum import IMPLEMENTATION as CHECKSUM_IMPLEMENTATION
from fastlog._native.encoder import encode_batch
from fastlog._native.inspect import read_batch, scan_index, scan_segment
from fastlog._native.shared import SharedPage, Waiter, bell_of
from fastlog._native.syncing import wake_flusher
from fastlog._native.transactions import TransactionIndex, end_transaction_marker
from fastlog._native.validator import validate_batches
from fastlog.config import CODECS, DEFAULT_DURABILITY, DURABILITY_LEVELS, ISOLATION_LEVELS, LogConfig, parse_duration_ms
from fastlog.errors import (
    ConfigError, CorruptLogError, InvalidRecordError, LockedError, NotSupportedError, OffsetOutOfRangeError, RecordTooLargeError,
    StorageError, UnsupportedFormatError,
)
from fastlog.partition import files, recovery, snapshots

__all__ = [
    "Accumulator",
    "BatchDelivery",
    "Bells",
    "BinaryColumn",
    "Delivery",
    "HeadersColumn",
    "PartitionLog",
    "Record",
    "RecordBatch",
    "RecordBatches",
    "RecordCursor",
    "Replay",
    "ReplayedBatch",
    "SharedPage",
    "Waiter",
    "arrow_schema",
    "arrow_stream",
    "bell_of",
    "diagnose",
    "encode_batch",
    "mark_deleted",
    "murmur2",
    "partition_for_key",
    "read_batch",
    "scan_index",
    "scan_segment",
]

# a cimported class is a C name only: this is where Python finds it
globals().update(Accumulator=accumulator_room.Accumulator)
globals().update({name: getattr(deliveries_room, name) for name in ("BatchDelivery", "Delivery")})
globals().update({name: getattr(partitioning_room, name) for name in ("murmur2", "partition_for_key")})
globals().update(
    {name: getattr(batch_room, name) for name in ("BinaryColumn", "HeadersColumn", "Record", "RecordBatch", "RecordCursor")}
)
globals().update(Bells=shared_room.Bells)
Replay, ReplayedBatch = replaying_room.Replay, replaying_room.ReplayedBatch

logger = logging.getLogger("fastlog.log")

cdef int64_t NO_STOP = 0x7FFFFFFFFFFFFFFF
cdef enum:
    MOST_ENCODERS = 4
    PAGE_PATIENCE = 1000        # milliseconds to wait for a page while others are there
    COMPANY_INTERVAL = 5        # milliseconds between two looks of a lone reader
    UNKNOWN_TIMESTAMP = -2


cdef class PartitionLog(Handle):
    """One partition: a durable, append-only log of records, in files that are Apache Kafka's own.

    Open it with ``PartitionLog.open``; use it as a context manager, or call ``close``. Every method may be called from any
    thread. Any number of processes, and of handles in one process, may have it open at once, for writing too.

    Attributes:
        path: the folder.
        durability: ``"group"``, ``"batch"``, ``"interval"`` or ``"os"``; see ``append``.
        isolation: ``"read_committed"`` or ``"read_uncommitted"``.
        read_only: whether the handle may change the log.
        config: every option, resolved.
        topic, partition: taken from the folder's name (``orders-3``), else the name itself and 0.
        recovery: what opening had to do after an unclean close; None after a clean one, and when others had it open.
    """

    def __cinit__(self):
        self.is_closed = True

    def __init__(self):
        raise TypeError("use PartitionLog.open(path)")

    # --- opening and closing -----------------------------------------------------------------------------------------

    @staticmethod
    def open(
        path: str | os.PathLike[str], *, durability: str = DEFAULT_DURABILITY, read_only: bool = False, exclusive: bool = False,
        config: LogConfig | None = None, isolation: str = "read_committed", bells: object = None, bell: int = 0,
    ) -> PartitionLog:
        """Open the partition in the folder ``path``; a writer creates it when it is not there.

        Args:
            path: the folder. Named ``<topic>-<number>`` it can be moved into a Kafka log directory as it is.
            durability: when an append returns: ``"group"`` (default), after an fdatasync that all waiting writers share;
                ``"batch"``, after an fdatasync of its own; ``"interval"``, when the page cache has it, and a sync follows within
                ``flush_interval``; ``"os"``, when the page cache has it. The first two survive power loss, all survive the
                death of the process. A handle at the first two also reads durably: it shows what power loss cannot take back.
            read_only: change nothing, not even to recover. Beside writers it sees what they append.
            exclusive: keep everybody else out while the handle is open: appends then need no lock between processes, and file
                systems on which such locks are not known to work (network, FUSE) are accepted.
            config: options; None = as stored, or the defaults.
            isolation: ``"read_committed"`` (default) shows records of a transaction once it is committed, and nothing behind
                an open one; ``"read_uncommitted"`` shows everything.
            bells, bell: of a store: this bell is rung as well, whenever more can be read. Only handles that were opened with it
                ring it.

        Raises:
            LockedError: somebody has it open exclusively, or exclusive was asked for while it is open; names the process id.
            CorruptLogError: bytes that were durable are gone. Nothing was changed; ``fastlog log repair`` goes on.
            UnsupportedFormatError: the folder holds something else, or a newer format.
            NotSupportedError: the file system is not known to hold locks and syncs; ``exclusive=True`` accepts it.
            ConfigError: an option is unknown, out of range, or differs from the stored one.
            StorageError: the operating system refused.
        """
        cdef PartitionLog log
        if not isinstance(durability, str) or durability not in DURABILITY_LEVELS:
            raise ConfigError(f"durability={durability!r}: expected one of {', '.join(map(repr, DURABILITY_LEVELS))}")
        if isolation not in ISOLATION_LEVELS:
            raise ConfigError(f"isolation={isolation!r}: expected one of {', '.join(map(repr, ISOLATION_LEVELS))}")
        if config is not None and not isinstance(config, LogConfig):
            raise ConfigError(f"config is a {type(config).__name__}: expected a fastlog.LogConfig")
        if read_only and exclusive:
            raise ConfigError("exclusive=True with read_only=True: a reader keeps nobody out; leave one of them away")
        if bells is not None and not isinstance(bells, Bells):
            raise ConfigError(f"bells is a {type(bells).__name__}: expected the Bells of a store, or None")
        if not 0 <= bell < BELL_COUNT:
            raise ConfigError(f"bell={bell!r}: expected 0 to {BELL_COUNT - 1}")
        config = config or LogConfig()
        resolved = config.resolve()
        folder = files.absolute_path(path, "path")
        files.require_folder(folder, "a partition", read_only=read_only)
        if not exclusive:
            require_local(folder)
        log = PartitionLog.__new__(PartitionLog)
        log.path = folder
        log.topic, log.partition = topic_partition(folder)
        log.durability = durability
        log.isolation = isolation
        log.level = level_of(durability)
        log.reads_durably = log.level >= AT_BATCH
        log.reads_committed = isolation == "read_committed"
        log.read_only = read_only
        log.options = config
        log.bells, log.bell = bells, bell
        log.join(config, exclusive, resolved.lock_timeout)
        log.fork_generation = os_c.fork_generation()
        log.is_closed = False
        if read_only and log.reads_durably:
            # after a crash the end of the log may be in the page cache alone
            readable_end(log)
        if log.level == AT_INTERVAL and not read_only:
            log.ask_for_interval()
        return log

    cdef int join(self, config, bint exclusive, int64_t lock_timeout) except -1:
        """Become one of those who have the partition open: alone after a recovery, or in company by their page."""
        cdef int64_t begun = os_c.steady_milliseconds()
        while True:
            folder_fd, alone = presence.take_presence(self.path, exclusive, lock_timeout, self.read_only)
            try:
                if alone:
                    if self.open_alone(config, folder_fd, exclusive, lock_timeout):
                        return 0
                elif self.open_in_company(config, folder_fd, lock_timeout):
                    return 0
            except BaseException:
                if self.control is None or not self.control.is_shared:
                    oscalls.close_file(folder_fd)
                self.control = None
                raise
            if self.control is None:
                oscalls.close_file(folder_fd)
            self.control = None
            if not alone and os_c.steady_milliseconds() - begun > PAGE_PATIENCE:
                raise LockedError(
                    f"{self.path} is in use, but its control file is missing or was replaced: somebody removed it. Close the "
                    f"partition everywhere, then open it again"
                )
            presence.nap()

    cdef bint open_alone(self, config, int folder_fd, bint exclusive, int64_t lock_timeout) except -1:
        """Nobody else is there, so no page is believed: recover from disk, then make a page. False: start over."""
        cdef Control control
        if self.read_only:
            opened = recovery.open_partition(self.path, config, read_only=True)
            self.use(opened)
            self.control = presence.private_page(self.path, lock_timeout)
            self.publish_opened(opened)
            # this reader is nobody whom others must wait for, and looks for company now and then
            oscalls.close_file(folder_fd)
            return True
        presence.unlink_page(self.path)
        opened = recovery.open_partition(self.path, config, read_only=False)
        os_c.reach(os_c.OPEN_RECOVERED)
        self.use(opened)
        control = presence.create_page(self.path, folder_fd, lock_timeout, exclusive)
        self.control = control
        self.publish_opened(opened)
        presence.install_page(control)
        if exclusive:
            return True
        if not presence.share(control):
            # somebody came in between, and recovered for himself
            self.forget_files()
            return False
        return True

    cdef bint open_in_company(self, config, int folder_fd, int64_t lock_timeout) except -1:
        """Others are there: use their page, if it is theirs. False: start over."""
        cdef Published state
        control = presence.join_page(self.path, folder_fd, lock_timeout, self.read_only)
        if control is None:
            return False
        self.control = control
        meta = files.read_meta(self.path)
        if meta is None:
            raise UnsupportedFormatError(f"{self.path}/{files.META} is gone while others have the partition open: close it everywhere")
        self.use_meta(meta, config.resolve(meta.layout))
        self.list_ = SegmentList([], -1)
        self.list_segments(&state)
        return True

    cdef int use(self, opened) except -1:
        """Take over what a recovery found."""
        cdef Segment active
        self.use_meta(opened.meta, opened.config)
        self.recovery = opened.report
        self.list_ = SegmentList(opened.segments, 0)
        active = self.list_.last()
        active.is_growing = True
        if active.fd >= 0:
            self.active = active
            self.tracker = active.tracker
        return 0

    cdef int use_meta(self, meta, resolved) except -1:
        self.meta = meta
        self.epoch = meta.epoch
        self.use_config(resolved)
        self.encoders = []
        self.forget_cursor()
        return 0

    cdef int use_config(self, resolved) except -1:
        self.config = resolved
        self.max_message_bytes = resolved.max_message_bytes
        self.max_decompressed_bytes = resolved.max_decompressed_bytes
        self.segment_bytes = resolved.segment_bytes
        self.segment_ms = resolved.segment_ms
        self.compacts = resolved.compacts
        if self.compacts:
            self.segment_ms = min(self.segment_ms, <int64_t>resolved.max_compaction_lag_ms)
        self.timestamp_limit = resolved.message_timestamp_after_max_ms
        return 0

    def reconfigure(self, config: LogConfig) -> None:
        """Go on with other options. Those that shape the files must be left out, or be as stored; ``flush_interval`` stays.

        Appends that are under way in other threads finish with the options that they began with. Raises ConfigError.
        """
        self.require_open()
        resolved = config.resolve(self.meta.layout)
        self.options = config
        self.use_config(resolved)
        self.control.lock_timeout = resolved.lock_timeout

    cdef int publish_opened(self, opened) except -1:
        """Fill a page that nobody else sees yet with what a recovery found."""
        cdef Published state
        cdef Durable durable
        cdef Segment active = self.list_.last()
        cdef Control control = self.control
        state.active_base = active.base_offset
        state.end_position = active.size
        state.end_offset = opened.end_offset
        state.start_offset = opened.meta.start_offset
        state.first_unstable_offset = opened.first_unstable_offset
        state.last_producer_offset = opened.last_producer_offset
        state.generation = self.list_.generation
        state.index_entries = UNKNOWN_ENTRIES
        state.time_index_entries = UNKNOWN_ENTRIES
        state.transaction_entries = len(opened.aborted) // TRANSACTION_ENTRY_SIZE
        state.bytes_since_entry = 0
        state.max_timestamp = -1
        state.offset_of_max = -1
        state.first_timestamp = UNKNOWN_TIMESTAMP
        state.created = oscalls.wall_clock()
        if self.tracker is not None:
            self.tracker.tell(&state)
        control.page.trusted_base = active.base_offset
        control.page.has_clean_marker = opened.is_clean
        control.page.persisted_at = os_c.steady_milliseconds()
        control.page.synced_at = control.page.persisted_at
        publish(control.page, &state)
        self.seen_version = control.page.version
        durable.base = active.base_offset
        durable.position = active.size
        durable.offset = durable.last_stable_offset = opened.end_offset
        if state.first_unstable_offset >= 0:
            durable.last_stable_offset = max(state.first_unstable_offset, state.start_offset)
        active.aborted = opened.aborted if self.read_only else None
        if self.read_only and opened.report is not None and opened.report.recovery_point < opened.end_offset:
            # a writer's recovery has synced everything; a reader's has not
            durable.base = opened.meta.recovery_segment
            durable.position = opened.meta.recovery_position
            durable.offset = opened.report.recovery_point
            durable.last_stable_offset = min(durable.last_stable_offset, durable.offset)
        publish_durable(control.page, &durable)
        return 0

    cdef int look_for_company(self) except -1:
        """A reader that was alone looks whether somebody has come, or has come and gone."""
        cdef PartitionLog other
        cdef int64_t now = os_c.steady_milliseconds()
        if now - self.looked_at < COMPANY_INTERVAL:
            return 0
        self.looked_at = now
        if oscalls.entry_kind(self.path) is None:
            raise self.deleted_error()
        change = (oscalls.change_time(self.path), presence.describe(self.path) is not None, self.sizes())
        if change == self.last_change:
            return 0
        other = PartitionLog.__new__(PartitionLog)
        other.path, other.read_only = self.path, True
        try:
            other.join(self.options, False, 0)
        except LockedError:
            return 0    # somebody is recovering it just now
        if self.is_closed:
            return 0    # by another thread, meanwhile
        # what was read before stays what it was: a recovery only ever takes away what nobody was shown as durable
        self.meta, self.epoch = other.meta, other.epoch
        self.list_ = other.list_
        self.control = other.control
        self.control.lock_timeout = self.config.lock_timeout    # only the look was not to wait
        self.forget_cursor()
        self.last_change = change
        return 0

    cdef object sizes(self):
        return oscalls.identity((<Segment>self.list_.last()).path)

    cdef int ask_for_interval(self) except -1:
        """Let everybody who has the log open keep this flush interval, and any shorter one."""
        cdef int64_t wanted = self.config.flush_interval, current = load_word(&self.control.page.flush_interval)
        if current == 0 or wanted < current:
            store_word(&self.control.page.flush_interval, wanted)
        wake_readers(self, self.control)
        keep_interval(self)
        return 0

    def close(self) -> None:
        """Let go of the log; who is the last to do so syncs everything and marks it as cleanly closed. Idempotent.

        What this handle appended is synced by every close, at every level. Views stay valid.
        Raises StorageError when a sync or write fails: the handle is closed then too, and the next opening recovers.
        Raises LockedError, or StorageError where the system has no locks left, when it cannot get the locks that it needs:
        then the handle is still open, and can be closed again.
        In a forked child it only lets go of the handle: the log belongs to the parent.
        """
        cdef Control control = self.control
        if self.is_closed:
            return
        if self.fork_generation != os_c.fork_generation():
            # locks that the parent held at the fork stay locked here for ever
            self.is_closed = True
            self.forget_files()
            return
        if self.read_only:
            # another thread may be leading a sync: its lock has to last until it has published
            if not control.syncer.acquire_within(control.lock_timeout):
                raise control.locked_out("is syncing", control.process)
            try:
                self.is_closed = True
                self.forget_files()
                self.control.leave()
            finally:
                control.syncer.release()
            return
        control.lock_sync_owner()
        try:
            control.lock_writer()
            try:
                if self.is_closed:
                    return
                try:
                    self.leave()
                except StorageError as error:
                    # its topic was deleted while it was closed: there is nothing to leave behind
                    if error.errno != ENOENT or oscalls.entry_kind(self.path) is not None:
                        raise
                finally:
                    self.is_closed = True
                    self.forget_files()
                    control.leave()
            finally:
                control.unlock_writer()
        finally:
            control.unlock_sync_owner()
            wake_flusher()

    cdef int leave(self) except -1:
        """Both locks are held. Sync; the last one finishes the log, unless there is nothing to finish."""
        cdef Control control = self.control
        cdef Published state
        cdef Durable durable
        if not load_word(&control.page.poisoned):
            read_published(control.page, &state)
            read_durable(control.page, &durable)
            if durable.offset < state.end_offset:
                sync_all(self, &state)
        # asking for the folder alone gives up the share of it first: somebody may have come, and gone, in between
        if not control.try_alone() or control.is_shared and not control.is_exclusive and control.is_replaced():
            return 0
        os_c.reach(os_c.CLOSE_EXCLUSIVE)
        read_published(control.page, &state)
        if not load_word(&control.page.poisoned) and not self.is_finished(&state):
            self.finish(&state)
        else:
            control.remove_page()
        return 0

    cdef bint is_finished(self, Published* state) except -1:
        """Whether what is on disk is a clean log already: nothing was appended, no index rebuilt."""
        if not self.control.page.has_clean_marker:
            return False
        for segment in self.segments_at(state).segments:
            if segment.index_checksums is None and not segment.is_damaged:
                return False
        return True

    cdef int finish(self, Published* state) except -1:
        """Everything that a clean close promises; nobody else is there."""
        cdef Segment segment
        cdef Control control = self.control
        cdef Durable durable
        if state.index_entries != UNKNOWN_ENTRIES or load_word(&control.page.dirty):
            begin_change(self, state)
        active = self.segments_at(state).last()
        (<Segment>active).size = state.end_position
        read_durable(control.page, &durable)
        finished = None
        if self.active is not None and self.active.fd >= 0:
            self.active.trim(state.end_position)
            if control.page.has_lost_entries:
                self.tracker.offsets.lost = True
            self.active.finish_indexes()
            finished = self.active
        if state.last_producer_offset >= 0:
            self.finish_producers(state)
        checksums = {}
        for segment in self.list_.segments:
            if segment.base_offset >= durable.base:
                segment.sync()
            segment.is_growing = False
            if segment.index_checksums is None:
                if segment is not finished:
                    segment.load_indexes()
                    if not segment.is_trusted:
                        segment.force_last_time_entry()
                        segment.store_indexes()
                segment.sync_indexes()
                if segment.is_damaged:
                    # nobody vouches for indexes that had to leave something out
                    continue
                segment.index_checksums = segment.compute_checksums()
            checksums[segment.base_offset] = files.checksum_entry(segment)
        oscalls.sync_directory(self.path)
        durable.base = state.active_base
        durable.position = state.end_position
        durable.offset = state.end_offset
        durable.last_stable_offset = min(durable.last_stable_offset, durable.offset)
        publish_durable(control.page, &durable)
        os_c.reach(os_c.CLOSE_SYNCED)
        self.meta = files.read_meta(self.path) or self.meta
        persist(self, True)
        files.write_index_checksums(self.path, checksums)
        # a roll may have left a segment wholly below the log start: what opening would take away is not vouched for
        kept = recovery.leave_out_deleted(self.path, self.meta, self.list_.bases, read_only=False)
        sizes = {f"{segment.base_offset:020d}.log": segment.size for segment in self.list_.segments[-len(kept):]}
        # first the page: a death in between leaves an unclean log, and never a page beside the marker
        control.remove_page()
        files.write_clean_marker(self.path, files.CleanMarker(self.meta, state.end_offset, sizes))
        os_c.reach(os_c.CLOSE_MARKED)
        return 0

    cdef int finish_producers(self, Published* state) except -1:
        """The snapshot that opening begins with, and the transaction indexes; nobody else is there."""
        cdef SegmentList list_ = self.list_
        cdef Segment segment = list_.last()
        cdef Py_ssize_t i
        index = TransactionIndex(files.transaction_index_path(segment.path), segment.base_offset)
        index.truncate(state.transaction_entries)
        segment.transaction_checksum = crc32c(index.entries(state.transaction_entries))
        for i in range(len(list_.segments) - 1):
            segment = list_.segments[i]
            try:
                known = aborted_entries(self, list_, i)
            except CorruptLogError as error:
                # what is in the file may be all that is left of it; nobody vouches for it
                logger.warning("%s", error)
                segment.transaction_checksum = None
                continue
            if known != snapshots.read_transaction_index(segment.path, segment.base_offset, list_.bases[i + 1]):
                TransactionIndex(files.transaction_index_path(segment.path), segment.base_offset).replace(known)
        names = oscalls.list_directory(self.path)
        for name in names:
            if name.endswith(".txnindex"):
                oscalls.sync_file(f"{self.path}/{name}")
        snapshots.renew(self.path, names, self.sizes_at(state), state.end_offset, state.end_offset)
        return 0

    cdef int forget_files(self) except -1:
        """Close every descriptor. Readers that are under way hold what they use; mappings go with the last view."""
        cdef Segment segment
        if self.meta_file is not None and self.fork_generation == os_c.fork_generation():
            self.meta_file.close()
        self.meta_file = None
        if self.active is not None:
            self.active.close_files()
        if self.list_ is not None:
            for segment in self.list_.segments:
                segment.close_files()
                segment.reader = None
        self.active = None
        self.tracker = None
        self.producers = None
        self.encoders = []
        self.forget_cursor()
        return 0

    @property
    def closed(self) -> bool:
        """Whether ``close`` was called."""
        return self.is_closed

    @property
    def is_poisoned(self) -> bool:
        """Whether a sync failed, in any process, and nothing can be appended until all have closed it."""
        return load_word(&self.control.page.poisoned) == SYNC_FAILED

    def __enter__(self):
        self.require_open()
        return self

    def __exit__(self, *exception):
        self.close()

    def __repr__(self):
        if self.is_closed:
            return f"<PartitionLog {self.path!r}, closed>"
        return f"<PartitionLog {self.path!r}: offsets {self.start_offset} to {self.end_offset}>"

    # --- offsets -----------------------------------------------------------------------------------------------------

    cdef Published published(self) except *:
        cdef Published state
        self.require_open()
        read_published(self.control.page, &state)
        return state

    @property
    def start_offset(self) -> int:
        """Log start offset: the first offset that can be read."""
        return self.published().start_offset

    @property
    def end_offset(self) -> int:
        """Log end offset: the offset that the next record will get."""
        return self.published().end_offset

    @property
    def durable_offset(self) -> int:
        """Records below this offset survive power loss."""
        self.require_open()
        cdef Durable durable
        read_durable(self.control.page, &durable)
        return durable.offset

    @property
    def last_stable_offset(self) -> int:
        """Offset of the first record of the oldest open transaction; the end offset when none is open."""
        cdef Published state = self.published()
        return state.end_offset if state.first_unstable_offset < 0 else max(state.first_unstable_offset, state.start_offset)

    @property
    def readable_offset(self) -> int:
        """Where reading ends: the smallest of the end offset, the last stable offset (``read_committed``) and the durable
        offset (``"group"`` and ``"batch"``)."""
        self.require_open()
        cdef Published state
        self.read_state(&state)
        return state.end_offset

    def wait(self, offset: int, timeout: object = None) -> bool:
        """Wait until the record at ``offset`` can be read: True once ``readable_offset > offset``.

        Args:
            offset: the record to wait for; the one behind the last is ``readable_offset``.
            timeout: seconds, a ``timedelta`` or a string such as ``"5s"``; None = for ever. False when it is over first.

        Another process that appends wakes the waiter in microseconds; signals (Ctrl-C) are let in within 100 ms.
        """
        cdef int64_t milliseconds = -1
        if timeout is not None:
            milliseconds = max(parse_duration_ms(timeout, "timeout"), 0)
        return wait_for(self, offset, milliseconds)

    # --- appending ---------------------------------------------------------------------------------------------------

    def append(
        self, values: object, keys: object = None, timestamps: object = None, headers: object = None,
        compression: str | None = None, expected_end_offset: int | None = None, conditions: object = (),
    ) -> int:
        """Append records and return the offset of the first one; the others follow without gaps.

        Args:
            values: list or tuple of bytes-like objects and None (a tombstone), a NumPy array of kind ``S``, ``V`` or ``O``, or
                an Arrow array, chunked array or stream of a binary or string type.
            keys: the same, as many as values; None = no record has a key.
            timestamps: milliseconds since the epoch: one int for all, or one per record (sequence, NumPy or Arrow array);
                None = one reading of the clock.
            headers: one mapping or sequence of (str, bytes | None) pairs for all records, or one entry per record.
            compression: ``"gzip"``, ``"snappy"``, ``"lz4"``, ``"zstd"``, or None. Batches hold up to ``max_message_bytes`` before
                compression. Codecs hold the GIL while they work.
            expected_end_offset: append only if this is the end offset; compared under the writer lock.
            conditions: (SharedPage, word index, value) triples: append only if each of these words has this value; compared
                under the writer lock, under which alone ``exchange`` changes them. A word of a page that was retired equals nothing.

        Guarantee: when this returns, all records are there. ``"group"`` and ``"batch"``: they survive power loss. ``"interval"``:
        they do once ``flush_interval`` is over. ``"os"``: they survive the death of this process, but not of the machine until
        ``flush``. When it raises, none of them is there; only when it was the sync that failed, they may be, and when that could
        not begin, they are (the error has a note). After a crash within the call a prefix of its batches may stay.

        Raises:
            InvalidRecordError: something is no record, lengths differ, or a timestamp is over an hour ahead.
            RecordTooLargeError: a record exceeds ``max_message_bytes``, or all of them ``segment_bytes``.
            FencedError: the end offset is another one, or a condition does not hold (``condition`` says which); nothing was written.
            LockedError: another process holds the writer lock for longer than ``lock_timeout``; or the sync owner's, and then
                the records are there.
            StorageFullError, StorageError: the operating system refused; the log is as it was. A failed sync poisons it: see
                ``flush``.
            ClosedError: the log was closed.
        """
        cdef Column value_column, key_column = None, header_column = None
        cdef Timestamps stamps = None
        cdef RecordSource source
        cdef Append request
        cdef Encoder encoder
        cdef BatchShape* shapes = NULL
        cdef int64_t encoded, total, batches = 1, failed = 0, base_offset, largest, count, end_offset = 0
        cdef int64_t limit = self.max_message_bytes
        cdef EncodedBatches compressed = None
        cdef Conditions required = make_conditions(conditions, False) if conditions else None
        cdef int codec = 0
        self.require_writable()
        if compression is not None:
            if compression not in CODECS:
                raise ConfigError(f"compression={compression!r}: expected one of {', '.join(map(repr, CODECS))}")
            codec = CODECS.index(compression)
        value_column = make_column(values, "values")
        count = value_column.data.length
        source.values = &value_column.data
        source.keys = NULL
        source.headers = NULL
        source.timestamps = NULL
        source.count = count
        if keys is not None:
            key_column = make_column(keys, "keys")
            if key_column.data.length != count:
                raise InvalidRecordError(f"{count} values but {key_column.data.length} keys: expected as many, nothing was written")
            source.keys = &key_column.data
        if self.compacts and count:
            require_keys(source.keys, count)
        if headers is not None:
            header_column = make_header_column(headers, count)
            source.headers = &header_column.data
        source.timestamp = largest = os_c.clock_milliseconds()
        if timestamps is not None:
            stamps = make_timestamps(timestamps, count, largest)
            if count and stamps.largest > largest + self.timestamp_limit:
                raise InvalidRecordError(
                    f"timestamp {stamps.largest} lies {stamps.largest - largest} ms ahead of the clock, more than the "
                    f"{self.timestamp_limit} that message_timestamp_after_max_ms allows: timestamps are milliseconds "
                    f"since 1970; nothing was written"
                )
            source.timestamps = stamps.values
            source.timestamp = stamps.constant
            largest = stamps.largest
        if count == 0:
            if required is not None:
                exchange(self, required, None)
            end_offset = self.end_offset
            if expected_end_offset is not None and expected_end_offset != end_offset:
                raise fenced(self, end_offset, expected_end_offset)
            return end_offset
        encoder = self.encoders.pop() if self.encoders else Encoder()
        try:
            if codec:
                compressed = encode_compressed(encoder, &source, codec, limit, self.max_decompressed_bytes)
                total = compressed.size
                batches = encoded = compressed.batches
            else:
                with nogil:
                    encoded = encoder.encode(&source, 0, limit)
                    if encoded > 0:
                        total = encoder.size
                        if encoded < count:
                            batches = encoded = plan_batches(&source, limit, &shapes, &total, &failed)
            if encoded < 0:
                if encoded == OUT_OF_MEMORY:
                    raise MemoryError(f"no memory left to encode {count} records; nothing was written")
                raise RecordTooLargeError(
                    f"record {failed} takes a batch of {total if failed else encoder.size} bytes, more than "
                    f"max_message_bytes={limit}; nothing was written"
                )
            if total > self.segment_bytes:
                raise RecordTooLargeError(
                    f"{count} records take {total} bytes, more than segment_bytes={self.segment_bytes}: one append lies in one "
                    f"segment; append in smaller parts. Nothing was written"
                )
            request.source = &source
            request.shapes = shapes if compressed is None else compressed.shapes
            request.batches = batches
            request.offsets = count
            request.size = total
            request.largest_timestamp = largest
            request.expected_end_offset = expected_offset(expected_end_offset)
            base_offset = append_if(self, &request, encoder, compressed, required, &end_offset)
        finally:
            free(shapes)
            if len(self.encoders) < MOST_ENCODERS:
                self.encoders.append(encoder)
        self.reach_level(end_offset)
        return base_offset

    cdef int reach_level(self, int64_t end_offset) except -1:
        """After an append: what its durability level promises."""
        try:
            if self.level == AT_GROUP:
                sync_until(self, end_offset)
            elif self.level == AT_BATCH:
                sync_own(self)
        except (StorageError, LockedError) as error:
            if not load_word(&self.control.page.poisoned):
                # nothing is wrong with the records, and the next sync covers them
                error.add_note(
                    f"the records are in {self.path}, up to offset {end_offset - 1}, but were not synced: do not append them again, "
                    f"call flush() until it succeeds"
                )
            raise
        return 0

    def append_batch(
        self, buffer: object, expected_end_offset: int | None = None, conditions: object = (), durable: bool = True,
    ) -> int:
        """Append record batches that are encoded already; return the offset of the first record.

        Args:
            buffer: one or several whole record batches, version 2, in any object with a buffer. They are checked as a Kafka
                leader checks its clients': lengths, CRC, every record, timestamps; then stamped with offset and leader epoch,
                and written as they are, compressed ones too. All of them are appended, or none.
            expected_end_offset, conditions: as of ``append``. They are compared before repetitions are looked for.
            durable: False: return as at the level ``"os"``, whatever the level; ``flush_until`` makes up for it.

        Batches with a producer id are idempotent: an exact repetition of one of the producer's last five batches is not
        written again, its first offset is returned. Batches that are marked transactional become readable for
        ``read_committed`` with ``end_transaction``.

        Guarantee and errors as of ``append``, and:

        Raises:
            CorruptRecordError: a batch does not check out.
            OutOfOrderSequenceError: the producer's sequence numbers skip, or go back further than five batches.
            ProducerFencedError: a newer epoch of the same producer id has written.
            TransactionError: a batch outside of a transaction while its producer has one open.
        """
        cdef ValidatedBatches batches
        cdef Conditions required = make_conditions(conditions, False) if conditions else None
        self.require_writable()
        batches = validate_batches(
            buffer, self.max_message_bytes, self.segment_bytes, os_c.clock_milliseconds() + self.timestamp_limit, internal=False,
            needs_keys=self.compacts, max_decompressed_bytes=self.max_decompressed_bytes,
        )
        return self.append_validated(batches, expected_offset(expected_end_offset), required, durable)

    cdef int64_t append_validated(
        self, ValidatedBatches batches, int64_t expected_end_offset, Conditions required, bint durable,
    ) except -1:
        cdef Append request
        cdef int64_t end_offset = 0, base_offset
        request_ready(&request, batches, expected_end_offset)
        base_offset = append_if(self, &request, None, batches, required, &end_offset)
        if durable:
            self.reach_level(end_offset)
        return base_offset

    def end_transaction(
        self, producer_id: int, producer_epoch: int, *, commit: bool, coordinator_epoch: int = 0,
        expected_end_offset: int | None = None, conditions: object = (), durable: bool = True,
    ) -> int:
        """End the open transaction of a producer in this partition: append its marker; return the marker's offset.

        ``commit=True`` lets ``read_committed`` readers see its records, False takes them away from them for ever. Readers see
        neither marker. Guarantee, conditions and errors as of ``append_batch``; FencedError for a ``coordinator_epoch`` that is
        overtaken. Source: KIP-98.
        """
        self.require_writable()
        required = make_conditions(conditions, False) if conditions else None
        marker = end_transaction_marker(producer_id, producer_epoch, coordinator_epoch, commit, os_c.clock_milliseconds())
        return self.append_validated(
            validate_batches(marker, self.max_message_bytes, self.segment_bytes, None, internal=True),
            expected_offset(expected_end_offset), required, durable,
        )

    def exchange(self, conditions: object, stores: object) -> None:
        """Compare shared words and set shared words, under the writer lock: no append with ``conditions`` is under way meanwhile.

        Args:
            conditions: (SharedPage, word index, value) triples, as of ``append``.
            stores: likewise: each of these words gets this value, if every condition holds.

        Whatever an append wrote whose conditions held before is in the log when this returns; none of later date is. The log
        itself is not changed. Each word is set whole, one after the other: a death in between leaves the first ones set. Whoever
        retires one of the pages keeps this from being called meanwhile.

        Raises FencedError when a condition does not hold, or a page of ``stores`` was retired: nothing was set. LockedError as
        ``append`` does.
        """
        exchange(self, make_conditions(conditions, False), make_conditions(stores, True))

    def open_transactions(self) -> list:
        """An ``OpenTransaction`` for each transaction without a marker in this partition, the oldest first.

        As the log stands when it is asked, whatever is durable. One word is looked at when none is open; else the writer lock is
        taken for a moment. Raises LockedError and StorageError as ``append_batch`` does.
        """
        from fastlog.reports import OpenTransaction
        return [OpenTransaction(*found) for found in open_transactions(self)]

    def flush(self) -> int:
        """Make every record appended so far survive power loss; return the durable offset.

        Raises StorageError when the sync fails. The log is poisoned then, for all processes: reads stop at the durable
        offset, appends fail, and only closing it everywhere and opening it again, which reads it back from disk, goes on.
        """
        cdef Published state
        self.require_writable()
        if load_word(&self.control.page.poisoned):
            raise poisoned_error(self)
        read_published(self.control.page, &state)
        sync_until(self, state.end_offset)
        return self.durable_offset

    def flush_until(self, offset: int) -> None:
        """Make every record below ``offset`` survive power loss. Costs nothing when they do already; else it shares the sync of
        whoever is at it, and leads one when nobody is.

        Raises OffsetOutOfRangeError when ``offset`` lies beyond the end, and as ``flush`` does.
        """
        cdef Published state
        self.require_writable()
        read_published(self.control.page, &state)
        if offset > state.end_offset:
            raise OffsetOutOfRangeError(
                f"offset {offset} lies beyond the end of {self.path}, {state.end_offset}: what is not there cannot be synced",
                offset, state.start_offset, state.end_offset,
            )
        sync_until(self, offset)

    # --- reading -----------------------------------------------------------------------------------------------------

    def read(self, offset: int, max_bytes: int = 1 << 20) -> RecordBatch:
        """Read records from ``offset`` on: whole batches of one segment, at least one, then up to ``max_bytes``.

        Empty at the readable end. It may also be empty before it, where only control records lie: then ``next_offset`` says
        where to go on. Every checksum and length is checked.

        Raises:
            OffsetOutOfRangeError: ``offset`` lies below ``start_offset`` or beyond ``readable_offset``.
            CorruptLogError: the batch does not check out; ``next_offset`` of the error is where reading can go on.
            ClosedError: the log was closed.
        """
        return read_range(self, offset, NO_STOP, max_bytes)

    def get(self, offset: int) -> Record | None:
        """The record at ``offset``; None when there is none (a control record, or compacted away).

        Raises as ``read`` does; the readable end itself is out of range here.
        """
        cdef RecordBatch batch = read_range(self, offset, <int64_t>offset + 1, 1)
        if batch.columns.count:
            return batch.record(0)
        if batch.next_offset == offset:
            raise out_of_range(self, offset)
        return None

    def batches(self, start: int | None = None, stop: int | None = None, max_bytes: int = 1 << 20) -> RecordBatches:
        """Record batches from ``start`` (None = log start) up to ``stop`` (exclusive; None = readable end, as it is when the
        iteration begins). Can be iterated again and again, and read by Arrow consumers: it has ``__arrow_c_stream__``."""
        self.require_open()
        return RecordBatches(self, start, stop, max_bytes)

    def records(self, start: int | None = None, stop: int | None = None):
        """Iterate over records from ``start`` (None = log start) up to ``stop`` (exclusive; None = readable end). Never waits."""
        self.require_open()
        return iterate_records(RecordBatches(self, start, stop, 1 << 20))

    def replay(self, start: int | None = None):
        """Iterate over every batch from ``start`` (None = log start) up to the end offset, as a ``ReplayedBatch``.

        Everything is there: what is not durable yet, open and aborted transactions, and control batches. This is for state that is
        kept in a topic; ``batches`` is for consumers. The batch that holds ``start`` comes whole. Each checksum is compared.
        Others may append, delete and compact meanwhile; it ends where the log ends when it gets there: so it misses no key.
        The iterator's ``next_offset`` says where that is, for a next replay, or as an ``expected_end_offset``.

        Raises:
            OffsetOutOfRangeError: ``start`` lies below the log start or beyond the end; or what comes next was deleted meanwhile.
            CorruptLogError: a batch does not check out; ``next_offset`` of the error is where a new replay can go on.
            ClosedError: the log was closed.
        """
        return replay(self, start)

    def offset_for_time(self, timestamp: int | datetime) -> int | None:
        """The first offset whose timestamp is at or after ``timestamp`` (milliseconds, or an aware datetime); None when there is none.

        Timestamps need not be ordered. Raises CorruptLogError when a batch on the way does not check out.
        """
        cdef int64_t wanted, found
        self.require_open()
        if isinstance(timestamp, datetime):
            if timestamp.tzinfo is None:
                raise InvalidRecordError(f"{timestamp!r} has no time zone: pass an aware datetime, e.g. with tzinfo=UTC")
            wanted = milliseconds_of(timestamp)
        else:
            wanted = max(<int64_t>timestamp, 0)
        readable_end(self)
        found = find_time(self, wanted)
        return found if found >= 0 else None

    # --- upkeep ------------------------------------------------------------------------------------------------------

    def delete_records(self, before: int) -> int:
        """Raise the log start offset to ``before`` and remove segments that lie wholly below it; return the start offset.

        Durable when it returns, and with it the records below ``before``, which are synced first where they were not: an
        offset that was deleted is never given out again. A ``before`` below the start changes nothing. Batches that were
        read stay valid. Raises OffsetOutOfRangeError when ``before`` lies beyond the readable end.
        """
        return delete_until(self, before)

    def maintain(self) -> object:
        """Delete what retention no longer wants, and compact, as ``cleanup_policy`` says; return a ``MaintenanceReport``.

        One process at a time does it; when another one is at it the report is empty. Others may append and read meanwhile;
        what was read before stays valid. With the default options it deletes nothing. A jump of the clock deletes nothing at
        once: see the guide. Call it every few minutes, from any process.

        Raises StorageError when files cannot be read or written: what was done before stays done, the log is whole.
        """
        return maintain(self)

    def segments(self) -> list:
        """A ``SegmentInfo`` for each segment, oldest first; the last one is the active one."""
        from fastlog.reports import SegmentInfo
        cdef Published state
        cdef Segment segment
        cdef SegmentList list_
        cdef int attempt = 0
        self.require_open()
        while True:
            read_published(self.control.page, &state)
            list_ = self.segments_at(&state)
            found = []
            try:
                for segment, following in zip(list_.segments, [*list_.bases[1:], state.end_offset], strict=True):
                    self.prepare(segment, &state)
                    found.append(
                        SegmentInfo(
                            segment.path, segment.base_offset, following, self.end_of(segment, &state), segment.index_entries,
                            segment.time_index_entries, segment.max_timestamp,
                        )
                    )
                return found
            except (StorageError, CorruptLogError):
                # removed or replaced meanwhile is no fault of the storage
                attempt += 1
                if attempt > MOST_RETRIES or not self.has_moved(&state, list_):
                    raise

    def verify(self, progress: object = None) -> object:
        """Read every byte below the end and check it: batches, records, order, indexes. Changes nothing, raises nothing for
        damage: it is all in the ``VerifyReport``. ``progress(bytes_done, bytes_total)`` is called after each segment."""
        from fastlog.partition.verify import verify
        cdef Published state
        cdef SegmentList list_
        self.require_open()
        read_published(self.control.page, &state)
        list_ = self.segments_at(&state)
        list_.last().size = state.end_position
        return verify(
            self.path, list_.segments, state.start_offset, state.end_offset, self._is_current, progress,
            is_swapping=bool(state.generation & 1),
        )

    def _is_current(self, segment: object) -> bool:
        """Whether a segment is still part of the log: it may be removed while it is read."""
        cdef Published state
        cdef SegmentList list_
        read_published(self.control.page, &state)
        # while segments are being swapped files move, and the generation tells only at the end
        list_ = self.list_segments(&state) if state.generation & 1 else self.segments_at(&state)
        return segment in list_.segments

    @staticmethod
    def repair(path: str | os.PathLike[str]) -> object:
        """Move damaged bytes of a closed log to side files, so that the rest can be used; return a ``RepairReport``.

        Raises LockedError when somebody has the log open, StorageError when a side file cannot be written.
        """
        from fastlog.partition.repair import repair
        cdef str folder = files.absolute_path(path, "path")
        if oscalls.is_directory(folder) is None:
            raise StorageError(f"{folder} does not exist: there is nothing to repair")
        folder_fd, _ = presence.take_presence(folder, True, 1000, False)
        try:
            presence.unlink_page(folder)
            return repair(folder)
        finally:
            oscalls.close_file(folder_fd)


cdef int64_t expected_offset(given) except -2:
    """What a caller passed as ``expected_end_offset``, -1 for None."""
    if given is None:
        return -1
    if not isinstance(given, int) or given < 0:
        raise InvalidRecordError(f"expected_end_offset={given!r}: expected an offset or None")
    return given


cdef int require_keys(const ColumnData* keys, int64_t count) except -1:
    """Compaction keeps the latest record of each key: one without a key would be lost."""
    cdef int64_t i, keyless = -1 if keys != NULL else 0
    if keys != NULL:
        with nogil:
            for i in range(count):
                if span_at(keys, i).data == NULL:
                    keyless = i
                    break
    if keyless >= 0:
        raise InvalidRecordError(f"record {keyless} has no key, which cleanup_policy \"compact\" needs; nothing was written")
    return 0


cdef Level level_of(str durability):
    return {"os": AT_OS, "interval": AT_INTERVAL, "batch": AT_BATCH, "group": AT_GROUP}[durability]


def iterate_records(RecordBatches batches):
    cdef RecordBatch batch
    cdef int64_t i
    for batch in batches:
        for i in range(batch.columns.count):
            yield batch.record(i)


cdef class RecordBatches:
    """Record batches of a range of offsets: iterable, and an Arrow stream for pyarrow, Polars and DuckDB."""

    cdef PartitionLog log
    cdef object start
    cdef object stop
    cdef int64_t max_bytes

    def __init__(self, PartitionLog log not None, start, stop, max_bytes: int):
        self.log = log
        self.start = start
        self.stop = stop
        self.max_bytes = max_bytes

    def __iter__(self):
        cdef RecordBatch batch
        cdef int64_t offset = self.log.start_offset if self.start is None else self.start
        cdef int64_t stop = readable_end(self.log)
        if self.stop is not None:
            stop = min(stop, <int64_t>self.stop)
        if self.start is not None and not self.log.start_offset <= offset <= self.log.readable_offset:
            raise out_of_range(self.log, offset)
        while offset < stop:
            batch = read_range(self.log, offset, stop, self.max_bytes)
            if batch.next_offset == offset:
                return  # a sync has failed since, and the log ends here, with what is durable
            offset = batch.next_offset
            if batch.columns.count:
                yield batch

    def __arrow_c_schema__(self):
        """The Arrow schema, as a PyCapsule."""
        return export_schema()

    def __arrow_c_stream__(self, requested_schema=None):
        """A fresh Arrow stream over the range, as a PyCapsule; one array per batch."""
        return export_stream(self, requested_schema)

    def __repr__(self):
        return f"<RecordBatches of {self.log.path!r} from {self.start} to {self.stop}>"


cdef int64_t milliseconds_of(moment) except? -1:
    from datetime import UTC, timedelta
    # rounded up: the first record at or after the moment
    return -((datetime(1970, 1, 1, tzinfo=UTC) - moment) // timedelta(milliseconds=1))


def arrow_schema(columns: tuple[str, ...]) -> object:
    """The Arrow schema of chosen columns, as a PyCapsule: of "offset", "timestamp", "key", "value", "headers", "partition"."""
    return export_schema_of(tuple(columns))


def arrow_stream(batches: object, columns: tuple[str, ...], requested_schema: object = None) -> object:
    """An Arrow stream of chosen columns over an iterable of RecordBatch, as a PyCapsule; pulled as the consumer asks for more."""
    return export_stream(batches, requested_schema, tuple(columns))


def topic_partition(folder: str) -> tuple:
    """Topic and partition number from a folder's name, as Kafka names them."""
    name = os.path.basename(folder)
    topic, dash, number = name.rpartition("-")
    if topic and dash and number.isascii() and number.isdigit() and len(number) < 10:
        return topic, int(number)
    return name, 0


def require_local(folder: str) -> None:
    """Locks and syncs between processes are only known to hold on local file systems. Raises NotSupportedError."""
    magic, name, is_allowed = oscalls.file_system(folder)
    if not is_allowed:
        raise NotSupportedError(
            f"{folder} lies on a file system ({name}, number {magic:#x}) whose locks are not known to work between processes: use a "
            f"local one ({', '.join(oscalls.LOCAL_FILE_SYSTEMS.values())}), or open it with exclusive=True"
        )


def mark_deleted(path: str, lock_timeout_ms: int) -> bool:
    """Let every process that has the partition in the folder ``path`` open know that it is deleted: from then on appends, reads and
    waits raise UnknownTopicError, and closing does nothing to files. Whether anybody may have it open.

    Raises LockedError when a writer does not let go of the log within the timeout.
    """
    return presence.retire(path, lock_timeout_ms)


def diagnose(path: str | os.PathLike[str] | None = None) -> dict:
    """What this platform gives a log, and what the control file of the partition in ``path`` says: plain values for people.

    Keys: ``futex``, ``ofd_locks``, ``boot_id``, ``crc32c``; with a path ``file_system``, ``file_system_magic``, ``is_allowed``, and
    ``control`` (None when there is no such file, or none that can be read), ``is_clean``, ``clean_start_offset`` and
    ``clean_end_offset`` (None unless it is).
    """
    found = {
        "futex": oscalls.has_futex(), "ofd_locks": oscalls.has_ofd_locks(), "boot_id": oscalls.boot_id(),
        "crc32c": CHECKSUM_IMPLEMENTATION,
    }
    if path is not None:
        folder = files.absolute_path(path, "path")
        magic, name, is_allowed = oscalls.file_system(folder)
        found |= {"file_system": name, "file_system_magic": magic, "is_allowed": is_allowed}
        found["control"] = presence.describe(folder) if oscalls.is_directory(folder) else None
        marker = files.read_clean_marker(folder) if oscalls.is_directory(folder) else None
        found["is_clean"] = marker is not None
        found["clean_start_offset"] = None if marker is None else marker.meta.start_offset
        found["clean_end_offset"] = None if marker is None else marker.end_offset
    return found
