# cython: annotation_typing=False, nonecheck=True
"""The storage engine's front door: ``PartitionLog``, one durable, append-only partition in Kafka's format.

Rooms: an append goes through columns → encoder → segment; a read through segment → decoder → batch. This file holds what
joins them: the writer lock, the published end, rolling, syncing, opening and closing.

Order in an append: encode and checksum outside the lock → lock → roll if needed → write → publish → index entries →
unlock → sync. An append of more than one batch is encoded inside the lock, batch by batch, through one buffer: it must
lie in one piece of the file anyway, and a buffer that stays in the cache is worth more than a shorter lock.
"""

import logging
import os
import threading
from bisect import bisect_right
from datetime import datetime

cimport cython
from cpython.pythread cimport (
    NOWAIT_LOCK, PyThread_acquire_lock, PyThread_allocate_lock, PyThread_free_lock, PyThread_release_lock, PyThread_type_lock,
    WAIT_LOCK,
)
from libc.errno cimport ENOENT, ENOMEM
from libc.stdint cimport int32_t, int64_t
from libc.stdlib cimport free
from libc.string cimport memset

from fastlog._native cimport oscalls as os_c
from fastlog._native.arrow cimport export_schema, export_stream
from fastlog._native.batch cimport BinaryColumn, Record, RecordBatch
from fastlog._native.columns cimport Column, Timestamps, make_column, make_header_column, make_timestamps
from fastlog._native.decoder cimport BatchHeader, FINE, NO_MEMORY, Problem, decode_batches
from fastlog._native.encoder cimport (
    BatchShape, EncodedBatches, Encoder, OUT_OF_MEMORY, RecordSource, encode_compressed, plan_batches,
)
from fastlog._native.index cimport IndexTracker
from fastlog._native.layout cimport TIMESTAMP_TYPE_BIT
from fastlog._native.memory cimport Block, block_release
from fastlog._native.published cimport Published, PublishedPage, publish, read_published
from fastlog._native.segment cimport Place, Segment

from fastlog._native import oscalls
from fastlog._native import batch as batch_room
from fastlog._native.inspect import read_batch, scan_index, scan_segment
from fastlog.config import DEFAULT_DURABILITY, DURABILITY_LEVELS, LogConfig
from fastlog.errors import (
    ClosedError, ConfigError, CorruptLogError, ForkedHandleError, InvalidRecordError, LockedError, NotSupportedError, OffsetOutOfRangeError,
    RecordTooLargeError, StorageError, UnsupportedFormatError,
)
from fastlog.partition import files, recovery
from fastlog.partition.repair import repair as repair_folder
from fastlog.partition.verify import verify as verify_segments
from fastlog.reports import CODECS, SegmentInfo

__all__ = [
    "BinaryColumn",
    "HeadersColumn",
    "PartitionLog",
    "Record",
    "RecordBatch",
    "RecordBatches",
    "read_batch",
    "scan_index",
    "scan_segment",
]

# a cimported class is a C name only: this is where Python finds it
globals().update({name: getattr(batch_room, name) for name in ("BinaryColumn", "HeadersColumn", "Record", "RecordBatch")})

logger = logging.getLogger("fastlog.log")

cdef int64_t NO_STOP = 0x7FFFFFFFFFFFFFFF
cdef int64_t MOST_RELATIVE_OFFSET = 0x7FFFFFFF
cdef int64_t PERSIST_INTERVAL_MS = 5000     # how far the recovery point on disk may lag behind the one in memory
cdef enum:
    VALUES_CHANGED = -100000    # below every -errno
    MOST_ENCODERS = 4
    ALLOCATE_FROM = 1 << 20     # a segment of this size gets disk blocks ahead of its end, as many as it has,
    MOST_ALLOCATED = 8 << 20    # up to so many


@cython.final
cdef class Mutex:
    """A lock that C code takes without the GIL."""
    cdef PyThread_type_lock lock

    def __cinit__(self):
        self.lock = PyThread_allocate_lock()
        if self.lock == NULL:
            raise MemoryError()

    def __dealloc__(self):
        PyThread_free_lock(self.lock)

    cdef void acquire(self) noexcept:
        """Never waits while it holds the GIL."""
        if PyThread_acquire_lock(self.lock, NOWAIT_LOCK):
            return
        with nogil:
            PyThread_acquire_lock(self.lock, WAIT_LOCK)

    cdef void release(self) noexcept:
        PyThread_release_lock(self.lock)


cdef class PartitionLog:
    """One partition: a durable, append-only log of records, in files that are Apache Kafka's own.

    Open it with ``PartitionLog.open``; use it as a context manager, or call ``close``. Every method may be called from any
    thread. One process at a time has it open (any number with ``read_only=True`` when there is no writer).

    Attributes:
        path: the folder.
        durability: ``"batch"`` or ``"os"``; see ``append``.
        read_only: whether the handle may change the log.
        config: every option, resolved.
        topic, partition: taken from the folder's name (``orders-3``), else the name itself and 0.
        recovery: what opening had to do after an unclean close, or None after a clean one.
    """

    cdef readonly str path
    cdef readonly str durability
    cdef readonly bint read_only
    cdef readonly object config
    cdef readonly str topic
    cdef readonly int partition
    cdef readonly object recovery

    cdef int lock_fd
    cdef bint is_closed
    cdef int fork_generation        # of the process that opened it
    cdef bint is_clean              # the clean marker is on disk
    cdef bint is_dirty              # bytes beyond the published end may be in the active file
    cdef bint syncs_every_append
    cdef bint reads_durably
    cdef object poison              # the error of a failed sync
    cdef object meta
    cdef object meta_file
    cdef int64_t persisted_at       # steady clock, ms
    cdef int64_t max_message_bytes
    cdef int64_t max_decompressed_bytes
    cdef int64_t segment_bytes
    cdef int64_t segment_ms
    cdef int64_t timestamp_limit
    cdef int32_t epoch
    cdef list _segments
    cdef list _bases
    cdef list encoders
    cdef Segment active
    cdef IndexTracker tracker       # of the active segment
    cdef int64_t allocated          # bytes of the active file that have disk blocks, or will not get any ahead
    cdef PublishedPage page
    cdef Mutex writer               # held while the log changes
    cdef Mutex syncer               # held while the log is synced; taken before `writer` when both are needed
    cdef object background          # thread that syncs rolled segments, or None
    cdef int64_t cursor_offset      # where the last read ended: the next one usually starts there
    cdef int64_t cursor_position
    cdef Segment cursor_segment

    def __cinit__(self):
        self.lock_fd = -1
        self.is_closed = True
        memset(&self.page, 0, sizeof(PublishedPage))

    def __init__(self):
        raise TypeError("use PartitionLog.open(path)")

    def __dealloc__(self):
        if self.lock_fd >= 0:
            oscalls.close_file(self.lock_fd)

    # --- opening and closing -----------------------------------------------------------------------------------------

    @staticmethod
    def open(
        path: str | os.PathLike[str], *, durability: str = DEFAULT_DURABILITY, read_only: bool = False,
        config: LogConfig | None = None,
    ) -> PartitionLog:
        """Open the partition in the folder ``path``; a writer creates it when it is not there.

        Args:
            path: the folder. Named ``<topic>-<number>`` it can be moved into a Kafka log directory as it is.
            durability: when an append returns: ``"batch"`` (default), after its own fdatasync: survives power loss;
                ``"os"``, when the page cache has it: survives the death of the process, not of the machine.
            read_only: change nothing, not even to recover; several such handles can be open at once.
            config: options; None = as stored, or the defaults.

        Raises:
            LockedError: another process or handle has it open; the message names its process id.
            CorruptLogError: bytes that were durable are gone. Nothing was changed; ``fastlog log repair`` goes on.
            UnsupportedFormatError: the folder holds something else, or a newer format.
            ConfigError: an option is unknown, out of range, or differs from the stored one.
            StorageError: the operating system refused.
        """
        if not isinstance(durability, str) or durability not in DURABILITY_LEVELS:
            raise ConfigError(f"durability={durability!r}: expected one of {', '.join(map(repr, DURABILITY_LEVELS))}")
        if config is not None and not isinstance(config, LogConfig):
            raise ConfigError(f"config is a {type(config).__name__}: expected a fastlog.LogConfig")
        config = config or LogConfig()
        config.resolve()
        cdef PartitionLog log = PartitionLog.__new__(PartitionLog)
        cdef str folder = os.path.abspath(os.fsdecode(path))
        lock_fd = lock_folder(folder, read_only)
        try:
            opened = recovery.open_partition(folder, config, read_only=read_only)
            if not read_only:
                files.write_control(folder)
            log.set_up(opened, durability, read_only)
        except BaseException:
            oscalls.close_file(lock_fd)
            raise
        log.lock_fd = lock_fd
        log.fork_generation = os_c.fork_generation()
        log.is_closed = False
        return log

    cdef int set_up(self, opened, str durability, bint read_only) except -1:
        cdef Published state
        self.path = opened.folder
        self.topic, self.partition = topic_partition(opened.folder)
        self.durability = durability
        self.read_only = read_only
        self.config = opened.config
        self.recovery = opened.report
        self.is_clean = opened.is_clean
        self.is_dirty = False
        self.allocated = 0
        self.syncs_every_append = durability == "batch"
        self.reads_durably = self.syncs_every_append and not read_only
        self.meta = opened.meta
        self.meta_file = None
        self.persisted_at = oscalls.steady_clock()
        self.max_message_bytes = opened.config.max_message_bytes
        self.max_decompressed_bytes = opened.config.max_decompressed_bytes
        self.segment_bytes = opened.config.segment_bytes
        self.segment_ms = opened.config.segment_ms
        self.timestamp_limit = opened.config.message_timestamp_after_max_ms
        self.epoch = opened.meta.epoch
        self._segments = opened.segments
        self._bases = [segment.base_offset for segment in self._segments]
        self.encoders = []
        self.active = self._segments[len(self._segments) - 1]
        self.active.is_durable = False      # it may grow
        self.tracker = self.active.tracker if self.active.fd >= 0 else None
        self.writer = Mutex()
        self.syncer = Mutex()
        self.cursor_offset = -1
        state.active_base = self.active.base_offset
        state.end_position = self.active.size
        state.end_offset = opened.end_offset
        state.start_offset = opened.meta.start_offset
        # a writer's recovery has synced everything; a reader's has not
        state.durable_offset = opened.end_offset
        if read_only and opened.report is not None:
            state.durable_offset = min(opened.report.recovery_point, opened.end_offset)
        publish(&self.page, &state)
        return 0

    def close(self) -> None:
        """Sync everything, mark the log as cleanly closed, and let go of it. Views stay valid. Idempotent.

        Raises StorageError when a sync or write fails: the handle is closed then too, and the next opening recovers.
        In a forked child it only lets go of the handle: the log belongs to the parent.
        """
        if self.fork_generation != os_c.fork_generation():
            # locks that the parent held at the fork stay locked here for ever
            if not self.is_closed:
                self.is_closed = True
                self.let_go()
            return
        self.syncer.acquire()
        try:
            self.writer.acquire()
            try:
                if self.is_closed:
                    return
                self.is_closed = True
                try:
                    if not self.read_only and self.poison is None and not self.is_finished():
                        self.finish()
                finally:
                    self.let_go()
            finally:
                self.writer.release()
        finally:
            self.syncer.release()

    cdef bint is_finished(self) except -1:
        """Whether what is on disk is a clean log already: nothing was appended, no index rebuilt."""
        return self.is_clean and all(
            segment.index_checksums is not None or segment.is_damaged for segment in self._segments
        )

    cdef int finish(self) except -1:
        """Everything that a clean close promises; both locks are held."""
        cdef Segment segment
        cdef Published state
        read_published(&self.page, &state)
        if self.is_dirty:
            self.cut_unpublished(&state)
        self.active.size = state.end_position
        finished = None
        if self.active.fd >= 0:
            self.active.finish_indexes()
            finished = self.active
        checksums = {}
        for segment in self._segments:
            if not segment.is_durable:
                segment.sync()
            if segment.index_checksums is None:
                if segment.fd < 0 and segment is not finished:
                    segment.load_indexes()
                    segment.force_last_time_entry()
                    segment.store_indexes()
                segment.sync_indexes()
                if segment.is_damaged:
                    # nobody vouches for indexes that had to leave something out
                    continue
                segment.index_checksums = segment.compute_checksums()
            checksums[segment.base_offset] = segment.index_checksums
        oscalls.sync_directory(self.path)
        state.durable_offset = state.end_offset
        publish(&self.page, &state)
        self.persist(&state, True)
        files.write_index_checksums(self.path, checksums)
        sizes = {f"{segment.base_offset:020d}.log": segment.size for segment in self._segments}
        files.write_clean_marker(self.path, files.CleanMarker(self.meta, state.end_offset, sizes))
        self.is_clean = True
        return 0

    cdef int let_go(self) except -1:
        cdef Segment segment
        cdef bint is_owner = self.fork_generation == os_c.fork_generation()
        if self.meta_file is not None:
            self.meta_file.close()
        for segment in self._segments:
            segment.end_appending(is_owner)
        # readers that are under way hold what they use; mappings go with the last view
        self._segments = []
        self._bases = []
        self.active = None
        self.tracker = None
        self.cursor_offset = -1
        self.cursor_segment = None
        self.encoders = []
        oscalls.close_file(self.lock_fd)
        self.lock_fd = -1
        return 0

    @property
    def closed(self) -> bool:
        """Whether ``close`` was called."""
        return self.is_closed

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

    @property
    def start_offset(self) -> int:
        """Log start offset: the first offset that can be read."""
        self.require_open()
        cdef Published state
        read_published(&self.page, &state)
        return state.start_offset

    @property
    def end_offset(self) -> int:
        """Log end offset: the offset that the next record will get."""
        self.require_open()
        cdef Published state
        read_published(&self.page, &state)
        return state.end_offset

    @property
    def durable_offset(self) -> int:
        """Records below this offset survive power loss."""
        self.require_open()
        cdef Published state
        read_published(&self.page, &state)
        return state.durable_offset

    @property
    def readable_offset(self) -> int:
        """Where reading ends: the durable offset for ``durability="batch"``, else the end offset."""
        self.require_open()
        cdef Published state
        self.read_state(&state)
        return state.end_offset

    cdef void read_state(self, Published* state) noexcept:
        """The published state, with `end_offset` lowered to what this handle may show."""
        read_published(&self.page, state)
        if self.reads_durably or self.poison is not None:
            state.end_offset = min(state.end_offset, state.durable_offset)

    # --- appending ---------------------------------------------------------------------------------------------------

    def append(
        self, values: object, keys: object = None, timestamps: object = None, headers: object = None,
        compression: str | None = None,
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

        Guarantee: when this returns, all records are there and visible, or — when it raises — none. ``"batch"``: they survive
        power loss. ``"os"``: they survive the death of this process, but not of the machine until ``flush``. After a crash
        within the call a prefix of its batches may stay.

        Raises:
            InvalidRecordError: something is no record, lengths differ, or a timestamp is over an hour ahead.
            RecordTooLargeError: a record exceeds ``max_message_bytes``, or all of them ``segment_bytes``.
            StorageFullError, StorageError: the operating system refused; the log is as it was.
            ClosedError: the log was closed.
        """
        cdef Column value_column, key_column = None, header_column = None
        cdef Timestamps stamps = None
        cdef RecordSource source
        cdef Encoder encoder
        cdef BatchShape* shapes = NULL
        cdef int64_t encoded, total, batches = 1, failed = 0, base_offset, largest, count
        cdef int64_t limit = self.max_message_bytes
        cdef EncodedBatches compressed = None
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
            return self.end_offset
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
            base_offset = self.write(&source, encoder, shapes, batches, total, largest, compressed)
        finally:
            free(shapes)
            if len(self.encoders) < MOST_ENCODERS:
                self.encoders.append(encoder)
        if self.syncs_every_append:
            self.sync_published(False)
        return base_offset

    cdef int64_t write(
        self, const RecordSource* source, Encoder encoder, BatchShape* shapes, int64_t batches, int64_t total, int64_t largest,
        EncodedBatches compressed,
    ) except -1:
        """Put encoded (one batch, or all of them `compressed`) or planned (`shapes`) batches at the end of the log, and publish them."""
        cdef Published state
        cdef int64_t result, base_offset
        cdef Segment active
        self.writer.acquire()
        try:
            self.require_writable()
            if self.poison is not None:
                raise StorageError(f"a sync of {self.path} failed before ({self.poison}): close it and open it again to recover")
            if self.is_clean or self.tracker is None:
                self.begin_changes()
            read_published(&self.page, &state)
            if self.is_dirty:
                self.cut_unpublished(&state)
            if self.must_roll(&state, source.count, batches, total, largest):
                self.roll(&state)
            active = self.active
            base_offset = state.end_offset
            with nogil:
                if compressed is not None:
                    result = self.write_compressed(active, compressed, &state)
                else:
                    result = self.write_batches(active, source, encoder, shapes, batches, total, &state)
                if result >= 0:
                    state.end_offset = base_offset + source.count
                    publish(&self.page, &state)
                    self.track(
                        active, encoder, shapes if compressed is None else compressed.shapes, batches, &state, base_offset
                    )
                    self.is_dirty = False
                elif os_c.os_ftruncate(active.fd, state.end_position) == 0:
                    self.is_dirty = False
            active.size = state.end_position
            if result < 0:
                if result == VALUES_CHANGED:
                    raise InvalidRecordError(
                        "the values were changed by another thread while they were appended: nothing was written"
                    )
                if result == -ENOMEM:
                    raise MemoryError(f"no memory left to encode {source.count} records; nothing was written")
                raise os_c.storage_error("append to", active.path, result)
            return base_offset
        finally:
            self.writer.release()

    cdef int64_t write_batches(
        self, Segment active, const RecordSource* source, Encoder encoder, BatchShape* shapes, int64_t batches, int64_t total,
        Published* state,
    ) noexcept nogil:
        """Write every batch behind the published end; on success `state.end_position` lies behind them."""
        cdef int64_t i, result, encoded, position = state.end_position, offset = state.end_offset
        self.is_dirty = True
        if position + total > self.allocated and position >= ALLOCATE_FROM:
            self.allocate(active, position, total)
        for i in range(batches):
            if shapes != NULL:
                encoded = encoder.encode(source, shapes[i].first, self.max_message_bytes)
                if encoded != shapes[i].count or encoder.size != shapes[i].size:
                    return -ENOMEM if encoded == OUT_OF_MEMORY else VALUES_CHANGED
                shapes[i].max_timestamp = encoder.max_timestamp
            encoder.stamp(offset, self.epoch)
            offset += encoder.count
            if encoder.vector_count == 1:
                result = os_c.os_pwrite(active.fd, encoder.buffer, encoder.size, position)
            else:
                result = os_c.os_pwritev(active.fd, encoder.vectors, encoder.vector_count, position)
            if result < 0:
                return result
            position += result
        state.end_position = position
        return 0

    cdef int64_t write_compressed(self, Segment active, EncodedBatches compressed, Published* state) noexcept nogil:
        """The same for batches that lie in memory already."""
        cdef int64_t result
        self.is_dirty = True
        if state.end_position + compressed.size > self.allocated and state.end_position >= ALLOCATE_FROM:
            self.allocate(active, state.end_position, compressed.size)
        compressed.stamp(state.end_offset, self.epoch)
        result = os_c.os_pwrite(active.fd, compressed.data, compressed.size, state.end_position)
        if result < 0:
            return result
        state.end_position += compressed.size
        return 0

    cdef void allocate(self, Segment active, int64_t position, int64_t total) noexcept nogil:
        """Ask for disk blocks ahead of the end, once for many appends. Closing and rolling give back what is left."""
        cdef int64_t ahead = max(total, min(position, <int64_t>MOST_ALLOCATED))
        ahead = min(ahead, self.segment_bytes - position)
        if os_c.os_allocate(active.fd, position, ahead) == 0:
            self.allocated = position + ahead
        else:
            # no room, or no such file system: plain writes will tell
            self.allocated = NO_STOP

    cdef void track(
        self, Segment active, Encoder encoder, BatchShape* shapes, int64_t batches, const Published* state, int64_t base_offset
    ) noexcept nogil:
        """Index entries for what was just published. They are hints: those that cannot be written wait in memory."""
        cdef int64_t i, position
        if shapes == NULL:
            position = state.end_position - encoder.size
            if position == 0:
                active.first_timestamp = encoder.max_timestamp
            self.tracker.track(position, encoder.size, base_offset + encoder.count - 1, encoder.max_timestamp)
        else:
            position = state.end_position
            for i in range(batches):
                position -= shapes[i].size
            if position == 0:
                active.first_timestamp = shapes[0].max_timestamp
            for i in range(batches):
                self.tracker.track(
                    position, shapes[i].size, base_offset + shapes[i].first + shapes[i].count - 1, shapes[i].max_timestamp
                )
                position += shapes[i].size
        self.tracker.offsets.write_pending()
        self.tracker.times.write_pending()

    cdef int begin_changes(self) except -1:
        """The first change of a session: the clean marker goes first, durably."""
        if self.is_clean:
            oscalls.remove(f"{self.path}/{files.CLEAN}")
            oscalls.sync_directory(self.path)
            self.is_clean = False
        if self.tracker is None:
            self.active.begin_appending()
            self.active.index_checksums = None
            self.tracker = self.active.tracker
        return 0

    cdef int cut_unpublished(self, const Published* state) except -1:
        """What a failed append left beyond the published end."""
        oscalls.truncate(self.active.fd, state.end_position, self.active.path)
        self.is_dirty = False
        return 0

    cdef bint must_roll(self, const Published* state, int64_t count, int64_t batches, int64_t total, int64_t largest) except *:
        """Kafka's conditions for a new segment, asked before an append."""
        cdef int64_t first
        if state.end_position == 0:
            return False
        if state.end_position > self.segment_bytes - total or self.tracker.lacks_room(batches):
            return True
        if state.end_offset + count - 1 - state.active_base > MOST_RELATIVE_OFFSET:
            return True
        first = self.active.first_timestamp
        if first == -2:
            first = self.active.end_of_first_batch_time
        if first >= 0:
            return largest - first > self.segment_ms
        return os_c.clock_milliseconds() - self.active.created > self.segment_ms

    cdef int roll(self, Published* state) except -1:
        """Begin a new segment at the end offset. A published step of its own; a failure leaves the old segment active."""
        cdef Segment old = self.active
        cdef Segment fresh
        path = files.segment_path(self.path, state.end_offset)
        if oscalls.file_size(path):
            raise StorageError(f"{path} is in the way of a new segment: move it out of the folder")
        fresh = recovery.new_segment(self.path, state.end_offset, 0, self.meta, self.config)
        try:
            fresh.begin_appending()
        except BaseException:
            fresh.discard()
            raise
        old.size = state.end_position
        try:
            old.finish_indexes()
        except StorageError as error:
            # they are rebuilt when they are needed, at the latest when the log is closed
            logger.warning("the indexes of %s could not be completed: %s", old.path, error)
            old.tracker = None
        self._segments.append(fresh)
        self._bases.append(fresh.base_offset)
        self.active = fresh
        self.tracker = fresh.tracker
        self.allocated = 0
        state.active_base = state.end_offset
        state.end_position = 0
        publish(&self.page, state)
        if self.background is None or not self.background.is_alive():
            self.background = threading.Thread(target=sync_in_background, args=(self,), name="fastlog-sync", daemon=True)
            self.background.start()
        return 0

    # --- durability --------------------------------------------------------------------------------------------------

    def flush(self) -> int:
        """Make every record appended so far survive power loss; return the durable offset.

        Raises StorageError when the sync fails. The log is poisoned then: reads stop at the durable offset, appends fail,
        and only closing and opening it again, which reads it back from disk, goes on.
        """
        self.require_writable()
        self.sync_published(True)
        return self.durable_offset

    cdef int sync_published(self, bint lazily) except -1:
        """Sync up to the published end, oldest segment first; `lazily`: not when it is durable already."""
        cdef Published state, latest
        cdef Segment segment
        cdef int result
        self.syncer.acquire()
        try:
            self.require_open()
            if self.poison is not None:
                raise StorageError(f"a sync of {self.path} failed before ({self.poison}): close it and open it again to recover")
            read_published(&self.page, &state)
            if lazily and state.durable_offset == state.end_offset:
                return 0
            try:
                for segment in self.unsynced():
                    if segment.base_offset > state.active_base:
                        break
                    if segment.base_offset == state.active_base:
                        # the one call that every durable append waits for
                        result = sync_without_gil(segment)
                        if result < 0:
                            raise os_c.storage_error("sync", segment.path, result)
                    else:
                        segment.sync()
                    if not segment.has_durable_name:
                        oscalls.sync_directory(self.path)
                        segment.has_durable_name = True
                    segment.is_durable = segment.base_offset < state.active_base
            except StorageError as error:
                self.poisoned(error)
                raise
            self.writer.acquire()
            try:
                read_published(&self.page, &latest)
                latest.durable_offset = max(latest.durable_offset, state.end_offset)
                publish(&self.page, &latest)
            finally:
                self.writer.release()
            try:
                self.persist(&state, False)
            except StorageError as error:
                # what was promised holds; only a recovery would begin further back
                logger.warning("the recovery point of %s could not be written: %s", self.path, error)
        finally:
            self.syncer.release()
        return 0

    cdef list unsynced(self):
        """Segments with bytes, or a name, that may not be durable: closed ones that were not synced, and the active one."""
        cdef list found = []
        cdef Segment segment
        cdef int64_t i = len(self._segments) - 1
        while i >= 0:
            segment = self._segments[i]
            if segment.is_durable:
                break
            found.append(segment)
            i -= 1
        found.reverse()
        return found

    cdef int persist(self, const Published* state, bint at_once) except -1:
        """Write the recovery point to disk, every few seconds or `at_once`; the syncer is held."""
        cdef int64_t now = oscalls.steady_clock()
        if not at_once and now - self.persisted_at < PERSIST_INTERVAL_MS:
            return 0
        self.meta.recovery_point = state.end_offset
        self.meta.recovery_segment = state.active_base
        self.meta.recovery_position = state.end_position
        self.write_meta()
        self.persisted_at = now
        return 0

    cdef int write_meta(self) except -1:
        if self.meta_file is None:
            self.meta_file = files.MetaFile(self.path)
        self.meta_file.write(self.meta)
        return 0

    cdef int poisoned(self, error) except -1:
        """A sync failed: what the kernel holds is not what the disk holds, and syncing again would lie."""
        self.poison = error
        logger.error("a sync of %s failed: %s; the log stops here until it is opened again", self.path, error)
        try:
            oscalls.replace_file(f"{self.path}/{files.POISONED}", files.sealed({"reason": str(error)}))
        except StorageError:
            logger.exception("could not leave %s behind", files.POISONED)
        return 0

    def _sync_rolled(self) -> None:
        """Sync closed segments and their indexes, and move the recovery point on disk behind them."""
        cdef Segment segment
        cdef Published state
        cdef bint changed = False
        self.syncer.acquire()
        try:
            if self.is_closed or self.poison is not None:
                return
            read_published(&self.page, &state)
            for segment in self.unsynced():
                if segment.base_offset >= state.active_base:
                    break
                try:
                    segment.sync()
                    if not segment.has_durable_name:
                        oscalls.sync_directory(self.path)
                        segment.has_durable_name = True
                except StorageError as error:
                    self.poisoned(error)
                    return
                segment.is_durable = True
                changed = True
            checksums = {}
            for segment in self._segments:
                if segment.base_offset >= state.active_base:
                    break
                if segment.index_checksums is None and segment.tracker is not None and not segment.is_damaged:
                    segment.sync_indexes()
                    segment.index_checksums = segment.compute_checksums()
                if segment.index_checksums is not None:
                    checksums[segment.base_offset] = segment.index_checksums
                segment.end_appending()
            if changed:
                oscalls.sync_directory(self.path)
                if self.meta.recovery_segment < state.active_base:
                    # whatever was durable of the active segment is synced again sooner than it is forgotten
                    self.meta.recovery_point = state.active_base
                    self.meta.recovery_segment = state.active_base
                    self.meta.recovery_position = 0
                    self.write_meta()
                files.write_index_checksums(self.path, checksums)
        except StorageError as error:
            logger.warning("bookkeeping of %s after a roll failed and is left to the next one: %s", self.path, error)
        finally:
            self.syncer.release()

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
        return self.read_range(offset, NO_STOP, max_bytes)

    def get(self, offset: int) -> Record | None:
        """The record at ``offset``; None when there is none (a control record, or compacted away).

        Raises as ``read`` does; the readable end itself is out of range here.
        """
        cdef RecordBatch batch = self.read_range(offset, <int64_t>offset + 1, 1)
        if batch.columns.count:
            return batch.record(0)
        if batch.next_offset == offset:
            raise self.out_of_range(offset)
        return None

    cdef RecordBatch read_range(self, int64_t offset, int64_t stop, int64_t max_bytes):
        """Read records in [offset, stop)."""
        cdef Published state
        cdef Segment segment
        cdef Place place
        cdef RecordBatch batch
        cdef int64_t end = 0
        if self.is_closed or self.fork_generation != os_c.fork_generation():
            self.require_open()
        if max_bytes < 1:
            raise ConfigError(f"max_bytes={max_bytes}: expected at least 1 (a whole batch is returned in any case)")
        self.read_state(&state)
        batch = RecordBatch.__new__(RecordBatch)
        batch.topic = self.topic
        batch.partition = self.partition
        batch.base_offset = offset
        batch.next_offset = offset
        if offset < state.start_offset or offset > state.end_offset:
            raise self.out_of_range(offset)
        if offset == state.end_offset:
            return batch
        stop = min(stop, state.end_offset)
        if offset == self.cursor_offset:
            segment = self.cursor_segment
            place.position = self.cursor_position
            place.expected_offset = offset
            end = state.end_position if segment.base_offset == state.active_base else segment.size
        else:
            segment = None
        try:
            return self.read_segments(batch, &state, segment, &place, end, offset, stop, max_bytes)
        except StorageError as error:
            # the file of a segment that was removed meanwhile is no fault of the storage
            if error.errno == ENOENT and offset < self.start_offset:
                raise self.out_of_range(offset) from None
            raise
        except CorruptLogError as error:
            if error.next_offset is None and error.first_offset is not None:
                # damage up to the end of a segment: reading can go on in the next one
                following = self._bases[bisect_right(self._bases, error.first_offset):]
                if following and following[0] <= state.active_base:
                    error.next_offset = following[0]
            raise

    cdef RecordBatch read_segments(
        self, RecordBatch batch, const Published* state, Segment segment, Place* place, int64_t end, int64_t offset,
        int64_t stop, int64_t max_bytes,
    ):
        """Find the batch of `offset`, unless `segment` and `place` name it, and decode from there on."""
        cdef BatchHeader header
        cdef Block* block
        cdef Problem problem
        cdef int64_t shift = 0, next_offset = offset, next_position = 0, size
        cdef Py_ssize_t i
        # as they are now: closing and removing put new lists in their place
        cdef list segments = self._segments
        cdef list bases = self._bases
        if segment is None or place.position >= end:
            i = bisect_right(bases, offset) - 1
            if i < 0:
                raise self.lost_offsets(offset, segments[0])
            segment = segments[i]
            while True:
                end = state.end_position if segment.base_offset == state.active_base else segment.size
                if segment.locate(offset, end, place):
                    break
                # behind the last batch of its segment: a hole that is legal, or lost records
                i = bisect_right(bases, segment.base_offset)
                if i >= len(segments) or segment.base_offset >= state.active_base:
                    raise self.lost_offsets(offset, segment)
                if not segment.gaps and place.expected_offset != (<Segment>segments[i]).base_offset:
                    raise self.lost_offsets(place.expected_offset, segments[i])
                segment = segments[i]
                if segment.base_offset >= stop:
                    batch.next_offset = stop
                    return batch
        size = end - place.position
        if not segment.maps:
            if segment.peek(place.position, end, &header) == FINE:
                size = min(size, max(max_bytes, header.size))
        block = segment.fetch(place.position, size, &shift)
        try:
            with nogil:
                problem = decode_batches(
                    block, place.position - shift, place.position - shift + size, offset, stop, place.expected_offset,
                    segment.gaps, segment.epoch, max_bytes, segment.max_decompressed_bytes, NULL, 0, &batch.columns, &header, &next_offset,
                    &next_position,
                )
        finally:
            block_release(block)
        if problem == NO_MEMORY:
            raise MemoryError(f"no memory left to decode a batch of {segment.path}")
        if problem != FINE:
            raise segment.damage(problem, header.position + shift, place.expected_offset, end)
        batch.is_append_time = header.attributes & TIMESTAMP_TYPE_BIT
        batch.next_offset = min(next_offset, stop)
        if next_offset <= stop:
            # dropping the last reference to a removed segment may give other threads a turn: not in the middle of this
            _previous = self.cursor_segment
            self.cursor_offset = next_offset
            self.cursor_position = next_position + shift
            self.cursor_segment = segment
        return batch

    cdef object out_of_range(self, offset):
        cdef Published state
        self.read_state(&state)
        hint = "the log is empty" if state.start_offset == state.end_offset else f"offsets {state.start_offset} to {state.end_offset - 1} can be read"
        return OffsetOutOfRangeError(
            f"offset {offset} is out of range: {hint}, and the next record gets {state.end_offset}",
            offset, state.start_offset, state.end_offset,
        )

    cdef object lost_offsets(self, int64_t offset, Segment following):
        next_offset = following.base_offset if following.base_offset > offset else None
        until = f"to {next_offset - 1} are" if next_offset is not None else "and later are"
        return CorruptLogError(
            f"offsets {offset} {until} in no segment of {self.path}: a file is missing or was replaced. "
            f"`fastlog log verify` lists all damage",
            following.path, 0, offset, next_offset,
        )

    def batches(self, start: int | None = None, stop: int | None = None, max_bytes: int = 1 << 20) -> RecordBatches:
        """Record batches from ``start`` (None = log start) up to ``stop`` (exclusive; None = readable end, as it is when the
        iteration begins). Can be iterated again and again, and read by Arrow consumers: it has ``__arrow_c_stream__``."""
        self.require_open()
        return RecordBatches(self, start, stop, max_bytes)

    def records(self, start: int | None = None, stop: int | None = None):
        """Iterate over records from ``start`` (None = log start) up to ``stop`` (exclusive; None = readable end). Never waits."""
        self.require_open()
        return iterate_records(RecordBatches(self, start, stop, 1 << 20))

    def offset_for_time(self, timestamp: int | datetime) -> int | None:
        """The first offset whose timestamp is at or after ``timestamp`` (milliseconds, or an aware datetime); None when there is none.

        Timestamps need not be ordered. Raises CorruptLogError when a batch on the way does not check out.
        """
        cdef Published state
        cdef Segment segment, previous
        cdef int64_t wanted, end, found
        self.require_open()
        if isinstance(timestamp, datetime):
            if timestamp.tzinfo is None:
                raise InvalidRecordError(f"{timestamp!r} has no time zone: pass an aware datetime, e.g. with tzinfo=UTC")
            wanted = milliseconds_of(timestamp)
        else:
            wanted = max(<int64_t>timestamp, 0)
        self.read_state(&state)
        previous = None
        for segment in list(self._segments):
            if segment.base_offset > state.active_base:
                break
            if previous is None:
                if segment.base_offset > state.start_offset and not segment.gaps:
                    raise self.lost_offsets(state.start_offset, segment)
            elif not previous.gaps and previous.end_of_closed() != segment.base_offset and self._is_current(previous):
                raise self.lost_offsets(previous.end_of_closed(), segment)
            previous = segment
            end = state.end_position if segment.base_offset == state.active_base else segment.size
            if end == 0:
                continue
            try:
                found = segment.find_time(wanted, state.start_offset, end)
            except StorageError as error:
                if error.errno == ENOENT and not self._is_current(segment):
                    continue    # removed meanwhile
                raise
            if found >= 0:
                return found if found < state.end_offset else None
        return None

    # --- upkeep ------------------------------------------------------------------------------------------------------

    def delete_records(self, before: int) -> int:
        """Raise the log start offset to ``before`` and remove segments that lie wholly below it; return the start offset.

        Durable when it returns. A ``before`` below the start changes nothing. Batches that were read stay valid.
        Raises OffsetOutOfRangeError when ``before`` lies beyond the readable end.
        """
        cdef Published state
        cdef Segment segment
        self.require_writable()
        self.syncer.acquire()
        try:
            self.writer.acquire()
            try:
                self.require_writable()
                self.read_state(&state)
                if before > state.end_offset:
                    raise self.out_of_range(before)
                before = max(before, state.start_offset)
                first = max(bisect_right(self._bases, before) - 1, 0)
                if before == state.start_offset and first == 0:
                    return before
                self.begin_changes()
                read_published(&self.page, &state)
                state.start_offset = before
                self.meta.start_offset = before
                if self.meta.recovery_segment < self._bases[first]:
                    # what is removed need not be synced any more
                    self.meta.recovery_segment = self.meta.recovery_point = self._bases[first]
                    self.meta.recovery_position = 0
                self.write_meta()
                publish(&self.page, &state)
                removed = self._segments[:first]
                self._segments = self._segments[first:]
                self._bases = self._bases[first:]
                self.cursor_offset = -1
                self.cursor_segment = None
                for segment in removed:
                    segment.end_appending()
                    for path in (segment.index_path, segment.time_index_path, segment.path):
                        oscalls.remove(path)
                if removed:
                    oscalls.sync_directory(self.path)
                return before
            finally:
                self.writer.release()
        finally:
            self.syncer.release()

    def segments(self) -> list:
        """A ``SegmentInfo`` for each segment, oldest first; the last one is the active one."""
        cdef Published state
        cdef Segment segment
        self.require_open()
        read_published(&self.page, &state)
        found = []
        for segment, following in zip(list(self._segments), [*self._bases[1:], state.end_offset], strict=True):
            size = state.end_position if segment.base_offset == state.active_base else segment.size
            try:
                found.append(
                    SegmentInfo(
                        segment.path, segment.base_offset, following, size, segment.index_entries, segment.time_index_entries,
                        segment.max_timestamp,
                    )
                )
            except StorageError:
                if self._is_current(segment):
                    raise
        return found

    def verify(self, progress: object = None) -> object:
        """Read every byte below the end and check it: batches, records, order, indexes. Changes nothing, raises nothing for
        damage: it is all in the ``VerifyReport``. ``progress(bytes_done, bytes_total)`` is called after each segment."""
        cdef Published state
        self.require_open()
        if not self.read_only:
            self.writer.acquire()
            try:
                self.require_open()
                read_published(&self.page, &state)
                self.active.size = state.end_position
            finally:
                self.writer.release()
        read_published(&self.page, &state)
        return verify_segments(
            self.path, list(self._segments), state.start_offset, state.end_offset, self._is_current, progress
        )

    def _is_current(self, segment: object) -> bool:
        """Whether a segment is still part of the log: ``delete_records`` may remove it while it is read."""
        return segment in self._segments

    @staticmethod
    def repair(path: str | os.PathLike[str]) -> object:
        """Move damaged bytes of a closed log to side files, so that the rest can be used; return a ``RepairReport``.

        Raises LockedError when somebody has the log open, StorageError when a side file cannot be written.
        """
        cdef str folder = os.path.abspath(os.fsdecode(path))
        if oscalls.is_directory(folder) is None:
            raise StorageError(f"{folder} does not exist: there is nothing to repair")
        lock_fd = lock_folder(folder, False)
        try:
            return repair_folder(folder)
        finally:
            oscalls.close_file(lock_fd)

    cdef int require_open(self) except -1:
        if self.is_closed:
            raise ClosedError(f"{self.path} was closed: open it again with PartitionLog.open")
        if self.fork_generation != os_c.fork_generation():
            raise ForkedHandleError(
                f"{self.path} was opened before a fork and belongs to the parent process: open it after the fork instead"
            )
        return 0

    cdef int require_writable(self) except -1:
        self.require_open()
        if self.read_only:
            raise NotSupportedError(f"{self.path} was opened with read_only=True: open it without to change it")
        return 0


cdef int sync_without_gil(Segment segment) except? -1:
    cdef int fd = segment.fd
    cdef int result
    with nogil:
        result = os_c.os_fdatasync(fd)
    return result


def sync_in_background(log: PartitionLog) -> None:
    log._sync_rolled()


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
        cdef int64_t stop = self.log.readable_offset
        if self.stop is not None:
            stop = min(stop, <int64_t>self.stop)
        if self.start is not None and not self.log.start_offset <= offset <= self.log.readable_offset:
            raise self.log.out_of_range(offset)
        while offset < stop:
            batch = self.log.read_range(offset, stop, self.max_bytes)
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


def topic_partition(folder: str) -> tuple:
    """Topic and partition number from a folder's name, as Kafka names them."""
    name = os.path.basename(folder)
    topic, dash, number = name.rpartition("-")
    if topic and dash and number.isascii() and number.isdigit() and len(number) < 10:
        return topic, int(number)
    return name, 0


def lock_folder(folder: str, read_only: bool) -> int:
    """Take the lock that keeps a folder to one writer, or to readers; create the folder for a writer."""
    kind = oscalls.is_directory(folder)
    if kind is None:
        if read_only:
            raise StorageError(f"{folder} does not exist: open it for writing once, or check the path")
        oscalls.make_directory(folder)
    elif not kind:
        raise UnsupportedFormatError(f"{folder} is a file: a partition is a folder; nothing was touched")
    lock_fd = oscalls.open_directory(folder)
    try:
        if oscalls.try_lock(lock_fd, shared=read_only):
            return lock_fd
        holder = files.read_holder(folder)
    except BaseException:
        oscalls.close_file(lock_fd)
        raise
    oscalls.close_file(lock_fd)
    if holder == oscalls.process_id():
        who = f"this process ({holder}) has it open in another handle: use that one, or close it"
    elif holder is not None:
        who = f"process {holder} has it open: wait until it closes it"
    else:
        who = "another process has it open: wait until it closes it"
    raise LockedError(f"{folder} is locked: {who}", holder)
