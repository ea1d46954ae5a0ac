# cython: annotation_typing=False, nonecheck=True
"""Replaying a log: every batch up to the published end, control batches and open transactions included, as it was written.

This is for state that lives in a topic: offsets of groups, decisions about transactions. Such a reader is no consumer: what it
builds must agree with what the owner of the writer lock sees, whether it is durable, committed, or not.

It goes on to where the log ends when it gets there, not to where it ended when it began: compaction may meanwhile take away
the record of a key ahead of it, for the sake of a newer one. Who had stopped before that one would know nothing of the key.
"""

from libc.stdint cimport int64_t
from libc.string cimport memset

from fastlog._native.batch cimport RecordBatch
from fastlog._native.decoder cimport BAD_CRC, BatchHeader, FINE, NO_LIMIT, NO_MEMORY, Problem, TOO_MUCH_CONTENT, check_order, crc_matches, decode_batches, describe
from fastlog._native.handle cimport Handle
from fastlog._native.layout cimport CONTROL_BIT, TIMESTAMP_TYPE_BIT, TRANSACTIONAL_BIT
from fastlog._native.memory cimport block_release
from fastlog._native.published cimport Durable, Published, load_word, read_durable, read_published
from fastlog._native.reading cimport MOST_RETRIES, complete_damage, find_batch
from fastlog._native.segment cimport Place, Segment
from fastlog._native.transactions cimport COMMIT_MARKER, NO_MARKER, parse_marker

from fastlog.errors import CorruptLogError, CorruptRecordError, InvalidRecordError, OffsetOutOfRangeError, RecordTooLargeError, StorageError

cdef int64_t NO_STOP = 0x7FFFFFFFFFFFFFFF


cdef class ReplayedBatch:
    """One record batch of a log, as it was written. It stays valid whatever becomes of the log (invariant I8).

    Attributes:
        base_offset, last_offset: of its records; the next batch begins behind ``last_offset``.
        record_count: how many records it holds; compaction may have left none.
        producer_id, producer_epoch, base_sequence: -1 when it comes from no idempotent producer.
        is_transactional: part of a transaction of that producer, which may be open, committed or aborted.
        is_control: written by the log itself: it has no keys and values to show.
        commits: of a marker that ends a transaction, whether it commits; None for everything else.
        coordinator_epoch: of such a marker, else -1.
        timestamp: the largest of its records, in milliseconds; -1 = none.
    """

    def __init__(self):
        raise TypeError("a ReplayedBatch comes from PartitionLog.replay")

    def __cinit__(self):
        self.block = NULL

    def __dealloc__(self):
        block_release(self.block)

    @property
    def base_offset(self) -> int:
        return self.header.base_offset

    @property
    def last_offset(self) -> int:
        return self.header.last_offset

    @property
    def record_count(self) -> int:
        return self.header.count

    @property
    def producer_id(self) -> int:
        return self.header.producer_id

    @property
    def producer_epoch(self) -> int:
        return self.header.producer_epoch

    @property
    def base_sequence(self) -> int:
        return self.header.base_sequence

    @property
    def is_transactional(self) -> bool:
        return self.header.attributes & TRANSACTIONAL_BIT != 0

    @property
    def is_control(self) -> bool:
        return self.header.attributes & CONTROL_BIT != 0

    @property
    def commits(self) -> bool | None:
        return None if self.marker.type == NO_MARKER else self.marker.type == COMMIT_MARKER

    @property
    def coordinator_epoch(self) -> int:
        return self.marker.coordinator_epoch

    @property
    def timestamp(self) -> int:
        return self.header.max_timestamp

    @property
    def offsets(self) -> list:
        """The offset of each record: compaction leaves gaps."""
        cdef RecordBatch batch = self.decode()
        cdef int64_t i
        return [batch.columns.offsets[i] for i in range(batch.columns.count)]

    def keys(self) -> list:
        """The key of each record, bytes or None. Raises as ``records``."""
        return self.decode().keys.to_list()

    def values(self) -> list:
        """The value of each record, bytes or None. Raises as ``records``."""
        return self.decode().values.to_list()

    def records(self) -> RecordBatch:
        """The records, decoded once; of a control batch there are none.

        Raises CorruptLogError for records that are malformed, and RecordTooLargeError when compressed ones take more than
        ``max_decompressed_bytes``.
        """
        return self.decode()

    cdef RecordBatch decode(self):
        cdef RecordBatch batch
        cdef BatchHeader header
        cdef Problem problem
        cdef int64_t next_offset = 0, next_position = 0, position = self.header.position - self.shift
        if self.decoded is not None:
            return self.decoded
        batch = RecordBatch.__new__(RecordBatch)
        batch.topic = self.topic
        batch.partition = self.partition
        batch.base_offset = self.header.base_offset
        batch.next_offset = self.header.last_offset + 1
        batch.is_append_time = self.header.attributes & TIMESTAMP_TYPE_BIT
        with nogil:
            problem = decode_batches(
                self.block, position, position + self.header.size, 0, NO_STOP, self.header.base_offset, True, -1, NO_LIMIT,
                self.header.size, self.max_decompressed_bytes, NULL, 0, &batch.columns, &header, &next_offset, &next_position,
            )
        if problem == NO_MEMORY:
            raise MemoryError(f"no memory left to decode a batch of {self.path}")
        what = f"{self.path}, position {self.header.position}, offsets {self.header.base_offset} to {self.header.last_offset}"
        if problem == TOO_MUCH_CONTENT:
            raise RecordTooLargeError(f"{what}: {describe(problem)} ({self.max_decompressed_bytes})")
        if problem != FINE:
            raise CorruptRecordError(
                f"{what}: {describe(problem)}", self.path, self.header.position, self.header.base_offset, self.header.last_offset + 1,
            )
        self.decoded = batch
        return batch

    def __len__(self) -> int:
        return self.header.count

    def __repr__(self):
        kind = "control batch" if self.is_control else f"batch of {self.header.count} records"
        return f"<ReplayedBatch: {kind}, offsets {self.header.base_offset} to {self.header.last_offset}, producer {self.header.producer_id}>"


cdef Replay replay(Handle log, start):
    """Begin at `start` (None: at the log start)."""
    cdef Published state
    cdef Replay found = Replay.__new__(Replay)
    log.require_open()
    if log.read_only and not log.control.is_shared:
        log.look_for_company()
    if start is not None and not isinstance(start, int):
        raise InvalidRecordError(f"start={start!r}: expected an offset, or None for the log start")
    found.log = log
    found.look(&state)
    found.offset = state.start_offset if start is None else start
    if not state.start_offset <= found.offset <= found.stop:
        raise outside(log, found.offset, state.start_offset, found.stop)
    return found


cdef object outside(Handle log, int64_t offset, int64_t start_offset, int64_t end_offset):
    return OffsetOutOfRangeError(
        f"offset {offset} is out of range: {log.path} can be replayed from {start_offset} up to {end_offset}", offset, start_offset, end_offset,
    )


cdef class Replay:
    """The batches of a log, one after the other: an iterator. Used by one thread at a time; others may append, delete and compact.

    Attributes:
        next_offset: up to where it has come. When it has ended that is where the log ended at that moment, also where
            compaction has left nothing of the last batches.
    """

    @property
    def next_offset(self) -> int:
        return self.offset

    def __init__(self):
        raise TypeError("a Replay comes from PartitionLog.replay")

    def __iter__(self):
        return self

    def __next__(self):
        cdef Published state, before
        cdef ReplayedBatch batch
        cdef Handle log = self.log
        cdef int attempt = 0
        while True:
            log.require_open()
            self.look(&state)
            if self.offset >= self.stop:
                raise StopIteration
            if self.offset < state.start_offset:
                raise outside(log, self.offset, state.start_offset, self.stop)
            before = state
            used = log.list_
            try:
                batch = self.step(&state)
            except (StorageError, CorruptLogError) as error:
                # the file of a segment that was removed or replaced meanwhile is no fault of the storage
                attempt += 1
                if attempt <= MOST_RETRIES and log.has_moved(&before, used):
                    self.segment = None
                    continue
                if isinstance(error, CorruptLogError):
                    complete_damage(log, error, &state)
                raise
            if batch is not None:
                return batch
            # nothing is left of what was there, and perhaps more has come
            self.offset = self.stop

    cdef int look(self, Published* state) except -1:
        """Where the log begins and ends now."""
        cdef Durable durable
        read_published(self.log.control.page, state)
        self.stop = state.end_offset
        if load_word(&self.log.control.page.poisoned):
            # what lies behind may be gone when somebody opens the log again
            read_durable(self.log.control.page, &durable)
            self.stop = min(self.stop, durable.offset)
        return 0

    cdef ReplayedBatch step(self, Published* state):
        """The batch of `offset`, or the first one behind it; None when that begins at `stop`."""
        cdef ReplayedBatch batch
        cdef Segment segment = None
        cdef Place place
        cdef BatchHeader header
        cdef Problem problem
        cdef int64_t end = 0
        if self.segment is not None and self.generation == state.generation:
            end = self.log.end_of(self.segment, state)
            if self.position < end:
                segment = self.segment
                place.position = self.position
                place.expected_offset = self.offset
                if end > segment.validated:
                    segment.validate(end)
        if segment is None:
            segment = find_batch(self.log, state, self.offset, self.stop, &place, &end)
            if segment is None:
                return None
        batch = ReplayedBatch.__new__(ReplayedBatch)
        problem = segment.peek(place.position, end, &header)
        if problem == FINE:
            problem = check_order(&header, place.expected_offset, segment.gaps, segment.epoch, load_word(&segment.limit))
        if problem == FINE:
            if header.base_offset >= self.stop:
                return None
            batch.block = segment.fetch(header.position, header.size, &batch.shift)
            with nogil:
                if not crc_matches(batch.block.data - batch.shift, &header):
                    problem = BAD_CRC
        memset(&batch.marker, 0, sizeof(batch.marker))
        batch.marker.type, batch.marker.coordinator_epoch = NO_MARKER, -1
        if problem == FINE and header.attributes & CONTROL_BIT:
            problem = parse_marker(batch.block.data - batch.shift, &header, &batch.marker)
        if problem != FINE:
            raise segment.damage(problem, place.position, place.expected_offset, end)
        batch.header = header
        batch.max_decompressed_bytes = segment.max_decompressed_bytes
        batch.path = segment.path
        batch.topic = self.log.topic
        batch.partition = self.log.partition
        self.segment = segment
        self.position = header.position + header.size
        self.offset = header.last_offset + 1
        self.generation = state.generation
        return batch
