# cython: annotation_typing=False, nonecheck=True
"""What producers collect until it is appended, and the thread that appends it.

``send`` encodes a record straight into the buffer of its partition and returns a ``Delivery``, a small object that knows
its place in there. One thread per producer, the drain, takes what was collected since it last looked, appends it partition
by partition, brings each partition to its durability level by one sync, and marks whole appends as done: nothing happens
per record. While the drain is busy the next batches grow, so load makes the batches.

Everything in here is guarded by the GIL, which ``send`` holds from choosing a place to having written there; nothing in
between runs Python code. The drain lets go of it while it waits, computes checksums, writes and syncs; ``send_many`` while
it hashes and encodes into a buffer that nobody else knows yet.

A pending append holds at most five batches, because that is how many a partition remembers of a producer: the same append,
repeated when its outcome is not known, is answered with its first offset (KIP-98).
"""

import copy
import errno
import logging
import threading
import weakref
from operator import index

cimport cython
from cpython.exc cimport PyErr_CheckSignals
from libc.stdint cimport int16_t, int32_t, int64_t, uint8_t, uint32_t, uint64_t
from libc.stdlib cimport calloc, free, malloc, realloc
from libc.string cimport memcpy

from fastlog._native cimport oscalls as os_c
from fastlog._native.appending cimport Append, append
from fastlog._native.codecs cimport compress, compressed_room
from fastlog._native.columns cimport (
    COLUMN_SPANS, Column, ColumnData, Span, Timestamps, make_column, make_header_column, make_single_column, make_timestamps,
    span_at,
)
from fastlog._native.encoder cimport BatchShape, Encoder, OUT_OF_MEMORY, RECORD_TOO_LARGE, RecordSource, set_producer
from fastlog._native.handle cimport AT_BATCH, AT_GROUP
from fastlog._native.layout cimport (
    ATTRIBUTES_AT, BASE_OFFSET_AT, BASE_TIMESTAMP_AT, BATCH_HEADER_SIZE, BATCH_LENGTH_AT, LAST_OFFSET_DELTA_AT, LEADER_EPOCH_AT,
    LOG_OVERHEAD, MAGIC_AT, MAGIC_V2, MAX_TIMESTAMP_AT, RECORDS_COUNT_AT, load_little32, store_int16, store_int32, store_int64,
)
from fastlog._native.syncing cimport sync_own, sync_until
from fastlog._native.validator cimport ValidatedBatches
from fastlog._native.varint cimport varint_size, write_varint

from fastlog._native import oscalls
from fastlog.config import parse_duration_ms
from fastlog.errors import (
    BufferFullError, ClosedError, ConfigError, DeliveryTimeoutError, Error, ForkedHandleError, InvalidRecordError, LockedError,
    NotSupportedError, RecordTooLargeError, StorageError, StorageFullError, TransactionError, UnknownTopicError,
)
from fastlog.records import BatchMetadata, RecordMetadata

logger = logging.getLogger("fastlog.producer")

cdef extern from "Python.h":
    bint is_bytes "PyBytes_CheckExact"(object item) noexcept
    const uint8_t* bytes_data "(const uint8_t*)PyBytes_AS_STRING"(object item) noexcept
    Py_ssize_t bytes_size "PyBytes_GET_SIZE"(object item) noexcept
    bint is_exact_int "PyLong_CheckExact"(object item) noexcept
    long long PyLong_AsLongLongAndOverflow(object item, int* overflow) except? -1

cdef enum:
    LEAST_CAPACITY = 512            # bytes of a new buffer
    ENCODER_SLACK = 256             # room behind the limit that an encoder may ask for without using it
    MOST_FAILURES = 1000            # that are kept for flush and close to tell of
    MOST_ENCODERS = 4
    RECORD_ROOM = 40                # bytes that a record of a column can take besides its content
    SMALL = 1 << 16                 # bytes whose CRC is not worth letting go of the GIL: getting it back takes longer
    SMALL_ENCODE = 1 << 18          # likewise, of records to encode
    FEW = 10_000                    # likewise, records to look at
    SLICE = 50_000_000              # nanoseconds of a wait until signals are let in
    MOST_SLEEP = 1_000_000_000      # nanoseconds
    RETRY_AFTER = 20_000_000        # nanoseconds until a locked partition is tried again
    MOST_SEQUENCE = 0x7FFFFFFF
    MOST_EPOCH = 0x7FFF
TOO_MANY_OPEN = (errno.ENFILE, errno.EMFILE)
cdef int64_t NO_DEADLINE = 0x7FFFFFFFFFFFFFFF


# --- partitions of keys ------------------------------------------------------------------------------------------------

cdef int32_t murmur2_of(const uint8_t* data, int64_t size) noexcept nogil:
    """MurmurHash2, 32 bits, with the seed that Kafka's clients use."""
    cdef uint32_t m = 0x5BD1E995
    cdef uint32_t h = <uint32_t>0x9747B28C ^ <uint32_t>size, k
    cdef const uint8_t* at = data
    cdef const uint8_t* end = data + (size & ~<int64_t>3)
    while at < end:
        k = load_little32(at) * m
        k ^= k >> 24
        h = h * m ^ k * m
        at += 4
    size &= 3
    if size == 3:
        h ^= <uint32_t>at[2] << 16
    if size >= 2:
        h ^= <uint32_t>at[1] << 8
    if size >= 1:
        h = (h ^ at[0]) * m
    h ^= h >> 13
    h *= m
    h ^= h >> 15
    return <int32_t>h


cdef inline int32_t partition_of(const uint8_t* data, int64_t size, int32_t partitions) noexcept nogil:
    return (murmur2_of(data, size) & 0x7FFFFFFF) % partitions


def murmur2(key: bytes) -> int:
    """The hash that Kafka's Java client takes of a key: a signed 32-bit number."""
    cdef Column column
    cdef Span span
    if key is None:
        raise InvalidRecordError("key is None: only bytes have a hash")
    column = make_single_column(key, "key")
    span = span_at(&column.data, 0)
    return murmur2_of(span.data, span.size)


def partition_for_key(key: bytes, partitions: int) -> int:
    """The partition, from 0 to ``partitions`` - 1, that records with this key go to, as Kafka's Java client chooses it."""
    if partitions < 1:
        raise ConfigError(f"partitions={partitions!r}: expected at least 1")
    return (murmur2(key) & 0x7FFFFFFF) % partitions


# --- the buffer of a partition -----------------------------------------------------------------------------------------

cdef inline Span null_span() noexcept nogil:
    cdef Span span
    span.data = NULL
    span.size = -1
    return span


cdef inline int64_t content_size(Span span) noexcept nogil:
    return 1 if span.data == NULL else varint_size(span.size) + span.size


cdef inline int64_t body_size(Span key, Span value, Span headers, int64_t timestamp_delta, int64_t offset_delta) noexcept nogil:
    """Bytes of a record behind its length."""
    return (
        1 + varint_size(timestamp_delta) + varint_size(offset_delta) + content_size(key) + content_size(value)
        + (1 if headers.data == NULL else headers.size)
    )


cdef inline uint8_t* write_content(uint8_t* at, Span span) noexcept nogil:
    if span.data == NULL:
        at[0] = 1
        return at + 1
    at = write_varint(at, span.size)
    memcpy(at, span.data, span.size)
    return at + span.size


cdef class PendingAppend(ValidatedBatches):
    def __cinit__(self):
        self.batch_start = -1
        self.has_producer = True
        self.shapes = <BatchShape*>malloc(MOST_BATCHES * sizeof(BatchShape))
        self.shape_capacity = MOST_BATCHES
        if self.shapes == NULL:
            raise MemoryError()

    cdef void open_batch(self, int64_t timestamp) noexcept:
        """Begin a batch behind the others; the caller has made room for its header."""
        self.batch_start = self.size
        self.batch_count = 0
        self.batch_base_timestamp = timestamp
        self.batch_max_timestamp = timestamp
        self.size += BATCH_HEADER_SIZE

    cdef void close_batch(self) noexcept:
        """Finish the batch that records were added to: all of its header but what the append stamps."""
        cdef uint8_t* batch = self.data + self.batch_start
        cdef int64_t size = self.size - self.batch_start
        if self.batch_start < 0:
            return
        store_int64(batch + BASE_OFFSET_AT, 0)
        store_int32(batch + BATCH_LENGTH_AT, <int32_t>(size - LOG_OVERHEAD))
        store_int32(batch + LEADER_EPOCH_AT, -1)
        batch[MAGIC_AT] = MAGIC_V2
        store_int16(batch + ATTRIBUTES_AT, 0)
        store_int32(batch + LAST_OFFSET_DELTA_AT, <int32_t>(self.batch_count - 1))
        store_int64(batch + BASE_TIMESTAMP_AT, self.batch_base_timestamp)
        store_int64(batch + MAX_TIMESTAMP_AT, self.batch_max_timestamp)
        store_int32(batch + RECORDS_COUNT_AT, <int32_t>self.batch_count)
        self.size = self.batch_start
        self.batch_start = -1
        self.count_batch(size, self.batch_count, self.batch_max_timestamp)

    cdef void count_batch(self, int64_t size, int64_t offsets, int64_t max_timestamp) noexcept nogil:
        """Likewise ``add``; the caller adds no more than MOST_BATCHES."""
        cdef BatchShape* shape = &self.shapes[self.batches]
        shape.first = self.offsets
        shape.count = offsets
        shape.size = size
        shape.max_timestamp = max_timestamp
        self.batches = self.batches + 1
        self.size = self.size + size
        self.offsets = self.offsets + offsets
        self.max_timestamp = max(self.max_timestamp, max_timestamp)

    cdef void add_record(self, Span key, Span value, Span headers, int64_t timestamp, int64_t body) noexcept:
        """Write one record into the open batch; the caller has made room for it."""
        cdef uint8_t* at = write_varint(self.data + self.size, body)
        at[0] = 0
        at = write_varint(at + 1, timestamp - self.batch_base_timestamp)
        at = write_varint(at, self.batch_count)
        at = write_content(at, key)
        at = write_content(at, value)
        if headers.data == NULL:
            at[0] = 0
            at += 1
        else:
            memcpy(at, headers.data, headers.size)
            at += headers.size
        self.size = at - self.data
        self.batch_count += 1
        if timestamp > self.batch_max_timestamp:
            self.batch_max_timestamp = timestamp

    cdef bint wait(self, int64_t deadline) except -1:
        """Wait until it is done, at most to `deadline` (steady nanoseconds); whether it is."""
        cdef int64_t left
        if self.state >= DELIVERED:
            return True
        self.signal.refuse_own_thread("wait for a delivery")
        self.waiters += 1
        try:
            while self.state < DELIVERED:
                if self.signal.fork_generation != os_c.fork_generation():
                    raise ForkedHandleError(
                        "the record was sent before a fork, by a producer of the parent process: only the parent learns of its delivery"
                    )
                left = SLICE
                if deadline != NO_DEADLINE:
                    left = min(left, deadline - os_c.steady_nanoseconds())
                    if left <= 0:
                        return False
                with nogil:
                    os_c.os_wait(&self.word, 0, left)
                PyErr_CheckSignals()
        finally:
            self.waiters -= 1
        return True

    cdef void free_data(self) noexcept:
        free(self.data)
        self.data = NULL
        self.capacity = 0
        free(self.shapes)
        self.shapes = NULL
        self.compressed = None


cdef void stamp_producer(ValidatedBatches written, int64_t producer_id, int16_t epoch, int32_t sequence, bint transactional) noexcept nogil:
    """Say in each batch whose it is and where in the producer's sequence it stands; then its CRC."""
    cdef uint8_t* batch = written.data
    cdef int64_t i
    for i in range(written.batches):
        set_producer(
            batch, written.shapes[i].size, producer_id, epoch, <int32_t>((sequence + written.shapes[i].first) & MOST_SEQUENCE),
            transactional,
        )
        batch += written.shapes[i].size


cdef ValidatedBatches compress_batches(PendingAppend pending, int codec):
    """The same batches with their records compressed; one that a codec makes larger stays as it is."""
    cdef ValidatedBatches result = ValidatedBatches()
    cdef uint8_t* plain = pending.data
    cdef uint8_t* batch
    cdef int64_t i, size, room
    for i in range(pending.batches):
        size = pending.shapes[i].size
        room = max(compressed_room(codec, size - BATCH_HEADER_SIZE), size)
        result.reserve(BATCH_HEADER_SIZE + room)
        batch = result.data + result.size
        memcpy(batch, plain, BATCH_HEADER_SIZE)
        size = BATCH_HEADER_SIZE + compress(
            codec, plain + BATCH_HEADER_SIZE, size - BATCH_HEADER_SIZE, batch + BATCH_HEADER_SIZE, room
        )
        if size < pending.shapes[i].size:
            store_int16(batch + ATTRIBUTES_AT, codec)
        else:
            size = pending.shapes[i].size
            memcpy(batch, plain, size)
        store_int32(batch + BATCH_LENGTH_AT, <int32_t>(size - LOG_OVERHEAD))
        plain += pending.shapes[i].size
        result.add(size, pending.shapes[i].count, pending.shapes[i].max_timestamp)
    result.has_producer = True
    return result


cdef class TopicTarget:
    cdef PartitionTarget target(self, int32_t partition):
        cdef PartitionTarget found = self.targets[partition]
        if found is None:
            found = PartitionTarget.__new__(PartitionTarget)
            found.topic = self
            found.partition = partition
            found.producer_id = -1
            self.targets[partition] = found
        return found


cdef class PartitionTarget:
    cdef void push(self, PendingAppend pending) noexcept:
        if self.tail is None:
            self.head = pending
        else:
            self.tail.next = pending
        self.tail = pending


cdef class DrainSignal:
    def __cinit__(self):
        self.fork_generation = os_c.fork_generation()

    cdef void ring(self) noexcept:
        self.is_asleep = False
        self.word += 1
        os_c.os_wake(&self.word)

    cdef int sleep(self, uint32_t heard, int64_t nanoseconds) except -1:
        self.is_asleep = True
        with nogil:
            os_c.os_wait(&self.word, heard, nanoseconds)
        self.is_asleep = False
        return 0

    cdef int refuse_own_thread(self, str what) except -1:
        if self.thread is not None and self.thread == threading.get_ident():
            raise NotSupportedError(
                f"a callback of a delivery cannot {what}: it runs in the thread that delivers; do it in another thread"
            )
        return 0


# --- deliveries --------------------------------------------------------------------------------------------------------

cdef int64_t deadline_of(object timeout) except -1:
    if timeout is None:
        return NO_DEADLINE
    return os_c.steady_nanoseconds() + max(parse_duration_ms(timeout, "timeout"), 0) * <int64_t>1_000_000


cdef object again(object error):
    """A copy of a stored error to raise: its traceback shall keep nothing alive, and several threads may raise it."""
    try:
        copied = copy.copy(error)
        for note in getattr(error, "__notes__", ()):
            if note not in getattr(copied, "__notes__", ()):
                copied.add_note(note)
    except Exception:
        return error
    copied.__cause__ = error.__cause__
    return copied


@cython.final
@cython.freelist(512)
@cython.no_gc
cdef class Delivery:
    """The future outcome of one ``Producer.send``. Every method may be called from any thread."""
    cdef PendingAppend pending
    cdef int64_t index
    cdef int64_t timestamp
    cdef bint is_seen

    def __init__(self):
        raise TypeError("Producer.send returns deliveries")

    cdef int see(self) except -1:
        if not self.is_seen:
            self.is_seen = True
            self.pending.unseen -= 1
        return 0

    def done(self) -> bool:
        """Whether the record was delivered, or failed."""
        return self.pending.state >= DELIVERED

    def result(self, timeout: object = None) -> RecordMetadata:
        """Wait for the record to be delivered: where it is.

        Args:
            timeout: seconds, a ``timedelta`` or a string such as ``"5s"``; None = until it is decided.

        Guarantee: the log's durability level holds for the record when this returns. Signals (Ctrl-C) are let in within
        100 ms.

        Raises:
            DeliveryTimeoutError: not decided yet; the record is still on its way.
            StorageFullError, StorageError, LockedError, ...: why the append of its batch failed, as of ``PartitionLog.append``.
        """
        error = self.exception(timeout)
        if error is not None:
            raise error
        return RecordMetadata(
            self.pending.target.topic.name, self.pending.target.partition, self.pending.base_offset + self.index, self.timestamp
        )

    def exception(self, timeout: object = None) -> Exception | None:
        """Wait for the outcome: None when the record was delivered, else the error that ``result`` would raise."""
        cdef PendingAppend pending = self.pending
        if pending.state < DELIVERED and not pending.wait(deadline_of(timeout)):
            raise undecided(timeout)
        self.see()
        return None if pending.state == DELIVERED else again(pending.error)

    def add_done_callback(self, fn: object) -> None:
        """Call ``fn(delivery)`` when the outcome is there: in the producer's own thread, or at once when it is there already.

        The thread delivers nothing else meanwhile, so callbacks have to be short. What they raise is logged.
        """
        self.see()
        if self.pending.state >= DELIVERED:
            run_callback(fn, self)
            return
        self._when_done(fn)

    def _when_done(self, fn: object) -> None:
        """``add_done_callback`` of one who only wants to be woken: that alone does not count as a look at the outcome."""
        if self.pending.state >= DELIVERED:
            run_callback(fn, self)
            return
        on_done(self.pending, fn, self)

    def __repr__(self):
        cdef PendingAppend pending = self.pending
        outcome = "pending"
        if pending.state == DELIVERED:
            outcome = f"offset {pending.base_offset + self.index}"
        elif pending.state == FAILED:
            outcome = f"failed: {pending.error!r}"
        return f"<Delivery to {pending.target.topic.name}-{pending.target.partition}, {outcome}>"


cdef object undecided(object timeout):
    return DeliveryTimeoutError(
        f"not delivered within timeout={timeout!r}: the record is still on its way; wait for it again, or with a longer timeout"
    )


cdef int run_callback(object fn, object delivery) except -1:
    try:
        fn(delivery)
    except BaseException:
        # SystemExit too: the thread goes on delivering for everybody else
        logger.exception("a callback of %r failed", delivery)
    return 0


cdef int call_after(list waiting, object fn, object delivery) except -1:
    """Call ``fn(delivery)`` once, when the last of these pending appends is done."""
    cdef PendingAppend pending
    left = [len(waiting)]

    def one_done(_):
        left[0] -= 1
        if not left[0]:
            fn(delivery)

    for pending in waiting:
        on_done(pending, one_done, delivery)
    return 0


cdef int on_done(PendingAppend pending, object fn, object delivery) except -1:
    """Call ``fn(delivery)`` when a pending append is done; now, if it is."""
    callback = fn, delivery
    callbacks = []
    # nothing is created from here on: that might run code of others
    if pending.state >= DELIVERED:
        run_callback(fn, delivery)
        return 0
    if pending.callbacks is None:
        pending.callbacks = callbacks
    pending.callbacks.append(callback)
    return 0


cdef class BatchDelivery:
    """The future outcome of one ``Producer.send_many``: one for all of its records. Any thread may use it.

    Records of one partition are stored in the order in which they were passed. Each partition's part succeeds or fails in
    pieces of up to five batches; ``result`` raises the first failure.
    """
    cdef object topic
    cdef list parts             # of (PendingAppend, records); in the order of `order`
    cdef object order           # indexes of the records, partition by partition; None = as they were passed
    cdef object timestamps
    cdef int64_t count
    cdef bint is_seen

    def __init__(self):
        raise TypeError("Producer.send_many returns these")

    def __len__(self):
        return self.count

    def done(self) -> bool:
        """Whether every record was delivered, or failed."""
        cdef PendingAppend pending
        for pending, _ in self.parts:
            if pending.state < DELIVERED:
                return False
        return True

    def result(self, timeout: object = None) -> BatchMetadata:
        """Wait for all records to be delivered: where they are, as columns. Arguments, guarantee, errors as ``Delivery.result``."""
        error = self.exception(timeout)
        if error is not None:
            raise error
        return self.metadata()

    def exception(self, timeout: object = None) -> Exception | None:
        """Wait for the outcome: None when all were delivered, else the first error; others may have been delivered."""
        cdef PendingAppend pending
        cdef int64_t deadline = deadline_of(timeout)
        for pending, _ in self.parts:
            if pending.state < DELIVERED and not pending.wait(deadline):
                raise undecided(timeout)
        self.see()
        for pending, _ in self.parts:
            if pending.state == FAILED:
                return again(pending.error)
        return None

    cdef int see(self) except -1:
        cdef PendingAppend pending
        if not self.is_seen:
            self.is_seen = True
            for pending, _ in self.parts:
                pending.unseen -= 1
        return 0

    def add_done_callback(self, fn: object) -> None:
        """Call ``fn(delivery)`` once, when every outcome is there; see ``Delivery.add_done_callback``."""
        self.see()
        self._when_done(fn)

    def _when_done(self, fn: object) -> None:
        """``add_done_callback`` of one who only wants to be woken: that alone does not count as a look at the outcome."""
        cdef PendingAppend pending
        waiting = [pending for pending, _ in self.parts if (<PendingAppend>pending).state < DELIVERED]
        if waiting:
            call_after(waiting, fn, self)
        else:
            run_callback(fn, self)

    cdef object metadata(self):
        import numpy
        cdef PendingAppend pending
        partitions = numpy.empty(self.count, dtype=numpy.int32)
        offsets = numpy.empty(self.count, dtype=numpy.int64)
        at = 0
        for pending, records in self.parts:
            partitions[at:at + records] = pending.target.partition
            offsets[at:at + records] = numpy.arange(pending.base_offset, pending.base_offset + records, dtype=numpy.int64)
            at += records
        if self.order is not None:
            for column in (partitions, offsets):
                column[self.order] = column.copy()
        timestamps = numpy.broadcast_to(numpy.asarray(self.timestamps, dtype=numpy.int64), (self.count,))
        for column in (partitions, offsets):
            column.flags.writeable = False
        return BatchMetadata(self.topic, partitions, offsets, timestamps)

    def __repr__(self):
        return f"<BatchDelivery of {self.count} records to {self.topic}, {'done' if self.done() else 'pending'}>"


# --- the accumulator ---------------------------------------------------------------------------------------------------

cdef class Accumulator:
    """The compiled half of ``Producer``: see there."""

    def __cinit__(self):
        self.signal = DrainSignal()
        self.topics = {}
        self.touched = []
        self.failures = []
        self.encoders = []
        self.room_callbacks = []
        self.is_closed = self.is_closing = self.has_ended = True

    def __init__(
        self, catalog: object, *, linger_ms: int, codec: int, batch_size: int, buffer_memory: int, max_block_ms: int,
        delivery_timeout_ms: int, key_serializer: object, value_serializer: object,
    ):
        self.catalog = catalog
        self.linger = <int64_t>linger_ms * 1_000_000
        self.codec = codec
        self.batch_size = batch_size
        self.buffer_memory = buffer_memory
        self.max_block = max_block_ms
        self.delivery_timeout = <int64_t>delivery_timeout_ms * 1_000_000
        self.key_serializer = key_serializer
        self.value_serializer = value_serializer
        self.topics_version = catalog.version()
        # never counted from 0: a broker that adopts the files hands out small ids, and takes a known one for a repetition
        self.producer_id = random_producer_id()
        self.random_state = random_number() | 1
        self.thread = threading.Thread(
            target=run_drain, args=(weakref.ref(self, ringer(self.signal)), self.signal, self.topics), name="fastlog-producer", daemon=True
        )
        self.is_closed = self.is_closing = self.has_ended = False
        self.thread.start()

    cdef int require_open(self) except -1:
        if self.signal.fork_generation != os_c.fork_generation():
            raise ForkedHandleError(
                "the producer was made before a fork and belongs to the parent process, which also sends what is in its buffer: "
                "make a new one after the fork"
            )
        if self.is_closing:
            raise ClosedError("the producer was closed: make a new one with store.producer()")
        if self.has_ended:
            raise ClosedError("the thread of this producer has ended by an error, see the log: make a new producer")
        return 0

    cdef int require_transaction(self) except -1:
        if self.transactional is not None and self.transaction == 0:
            raise TransactionError("the producer is transactional and no transaction is open: send inside of producer.transaction()")
        return 0

    # --- topics ------------------------------------------------------------------------------------------------------

    cdef TopicTarget topic_target(self, object topic):
        cdef TopicTarget found
        if not isinstance(topic, str):
            raise InvalidRecordError(f"topic is a {type(topic).__name__}: expected a str")
        found = self.topics.get(topic)
        while found is None:
            self.refresh_topics()
            version = self.topics_version
            described = self.described(topic)
            # another thread may have been here meanwhile: two targets would count the same sequence numbers twice
            found = self.topics.get(topic)
            if found is None and version == self.topics_version:
                found = self.topics[topic] = described
        return found

    cdef TopicTarget described(self, str topic):
        """What the catalog says of a topic. Raises UnknownTopicError."""
        cdef TopicTarget found = TopicTarget.__new__(TopicTarget)
        partitions, config, found.topic_id = self.catalog.describe(topic)
        found.name = topic
        found.partitions = partitions
        found.targets = [None] * partitions
        found.sticky = -1
        found.timestamp_limit = config.message_timestamp_after_max_ms
        found.needs_keys = config.compacts
        found.record_limit = min(config.max_message_bytes, config.segment_bytes, config.max_decompressed_bytes)
        found.batch_limit = min(found.record_limit, self.batch_size)
        found.append_limit = min(config.segment_bytes, MOST_BATCHES * max(found.batch_limit, BATCH_HEADER_SIZE))
        return found

    cdef int refresh_topics(self) except -1:
        """Look again at every known topic, when one was created, changed or deleted: by anybody."""
        cdef TopicTarget known, found
        version = self.catalog.version()
        if version == self.topics_version:
            return 0
        self.topics_version = version
        for name in list(self.topics):
            try:
                found = self.described(name)
            except UnknownTopicError:
                found = None
            # another thread may have looked meanwhile, and at something newer
            known = self.topics.get(name)
            if known is None:
                continue
            if found is not None and found.topic_id == known.topic_id:
                if found.partitions > known.partitions:
                    known.targets += [None] * (found.partitions - known.partitions)
                    known.partitions = found.partitions
                known.record_limit, known.batch_limit, known.append_limit = found.record_limit, found.batch_limit, found.append_limit
                known.timestamp_limit, known.needs_keys = found.timestamp_limit, found.needs_keys
                continue
            known.is_gone = True
            self.topics.pop(name, None)
            if self.last_topic is known:
                self.last_topic = None
            release_leases(known)
        return 0

    cdef int32_t checked_partition(self, TopicTarget topic, object partition) except -1:
        cdef int64_t number
        if isinstance(partition, bool) or not hasattr(partition, "__index__"):
            raise InvalidRecordError(f"partition={partition!r} is a {type(partition).__name__}: expected an int, or None")
        wanted = index(partition)
        if not 0 <= wanted < topic.partitions:
            self.refresh_topics()
            if not 0 <= wanted < topic.partitions:
                raise InvalidRecordError(
                    f"partition={wanted}: topic {topic.name!r} has the partitions 0 to {topic.partitions - 1}; nothing was sent"
                )
        number = wanted
        return <int32_t>number

    cdef int32_t choose_sticky(self, TopicTarget topic, bint change) noexcept:
        """The partition for records without a key; another one (uniformly) at the first look, and when `change` asks for it."""
        cdef uint64_t x
        if change or topic.sticky < 0:
            x = <uint64_t>self.random_state
            x ^= x << 13
            x ^= x >> 7
            x ^= x << 17
            self.random_state = <int64_t>x
            topic.sticky = <int32_t>((x >> 33) % <uint64_t>topic.partitions)
        return topic.sticky

    # --- sending -----------------------------------------------------------------------------------------------------

    def send(
        self, topic: str, value: object, key: object = None, headers: object = None, timestamp: object = None,
        partition: int | None = None,
    ) -> Delivery:
        """Send one record; return its delivery. Never waits for the disk.

        Args:
            topic: name of an existing topic.
            value: bytes, another buffer, or None (a tombstone); with a ``value_serializer``, what that takes.
            key: the same, by ``key_serializer``. It decides the partition, as in Kafka's Java client; without one, records go
                to one partition until its batch is done, then to another.
            headers: a mapping, ``Headers``, or (str, bytes | None) pairs.
            timestamp: milliseconds since the epoch, or an aware datetime; None = now.
            partition: the number of a partition, in place of the one that the key decides.

        Guarantee: records of one partition are stored in the order in which one thread has sent them, each once, also when
        an append has to be repeated. What became of a record its delivery tells; ``flush`` and ``close`` raise the first
        failure that nobody has looked at.

        Blocks only while ``buffer_memory`` is full, at most for ``max_block``; Ctrl-C is let in within 100 ms.

        Raises:
            UnknownTopicError: there is no such topic; producers create none.
            InvalidRecordError: something is no record, the partition does not exist, the timestamp is over an hour ahead, or
                a compacted topic gets a record without a key.
            RecordTooLargeError: the record exceeds ``max.message.bytes`` of its topic, before compression.
            BufferFullError: ``buffer_memory`` was full for ``max_block``.
            ClosedError, ForkedHandleError: the producer was closed, or is the parent process'.
            TransactionError: the producer is transactional, and no transaction is open.
        """
        cdef TopicTarget known = self.last_topic
        cdef PartitionTarget target
        cdef PendingAppend pending
        cdef Delivery delivery
        cdef Column value_column, key_column, header_column
        cdef Span value_span, key_span = null_span(), header_span = null_span()
        cdef int64_t now, moment, body, record, deadline = 0
        cdef int32_t number = -1
        cdef bint has_chosen = False, changes = False, rings = self.linger == 0
        if self.is_closing or self.has_ended or self.signal.fork_generation != os_c.fork_generation():
            self.require_open()
        if known is None or topic is not known.name:
            known = self.topic_target(topic)
            self.last_topic = known
        if self.value_serializer is not None:
            value = self.value_serializer(value)
        if self.key_serializer is not None and key is not None:
            key = self.key_serializer(key)
        if is_bytes(value):
            value_span.data = bytes_data(value)
            value_span.size = bytes_size(value)
        elif value is None:
            value_span = null_span()
        else:
            value_column = make_single_column(value, "value")
            value_span = span_at(&value_column.data, 0)
        if key is not None:
            if is_bytes(key):
                key_span.data = bytes_data(key)
                key_span.size = bytes_size(key)
            else:
                key_column = make_single_column(key, "key")
                key_span = span_at(&key_column.data, 0)
        if headers is not None:
            header_column = make_header_column(headers, 1)
            header_span = span_at(&header_column.data, 0)
        now = moment = os_c.clock_milliseconds()
        if timestamp is not None:
            moment = moment_of(timestamp, now)
            if moment > now + known.timestamp_limit:
                raise InvalidRecordError(
                    f"timestamp {moment} lies {moment - now} ms ahead of the clock, more than the {known.timestamp_limit} that "
                    f"message.timestamp.after.max.ms of {topic} allows: timestamps are milliseconds since 1970; nothing was sent"
                )
        if known.needs_keys and key_span.data == NULL:
            raise InvalidRecordError(f"topic {topic!r} is compacted, so every record needs a key; nothing was sent")
        self.require_transaction()
        if partition is not None:
            number = self.checked_partition(known, partition)
        record = body_size(key_span, value_span, header_span, 0, 0)
        record += varint_size(record) + BATCH_HEADER_SIZE
        if record > known.record_limit or record > self.buffer_memory:
            raise self.too_large(known, record)
        delivery = Delivery.__new__(Delivery)
        delivery.timestamp = moment

        # from here to the record in its place nothing runs Python code, but new_pending and the waits: after these, again
        while True:
            if partition is None:
                if key_span.data != NULL:
                    number = partition_of(key_span.data, key_span.size, known.partitions)
                else:
                    target = known.targets[known.sticky] if known.sticky >= 0 else None
                    if not has_chosen and (changes or target is None or target.open is None):
                        number = self.choose_sticky(known, True)
                        has_chosen = True
                    else:
                        number = self.choose_sticky(known, False)
            target = known.targets[number]
            if target is None:
                target = known.target(number)
            pending = target.open
            if pending is None:
                rings = True
                if self.new_pending(target) is None:
                    # the topic is another one now, or the number of its partitions
                    known = self.topic_target(topic)
                    if partition is not None:
                        number = self.checked_partition(known, partition)
                continue
            if pending.batch_start >= 0:
                body = body_size(key_span, value_span, header_span, moment - pending.batch_base_timestamp, pending.batch_count)
                record = varint_size(body) + body
                if pending.size - pending.batch_start + record > known.batch_limit and pending.batch_count:
                    # the batch is full
                    pending.close_batch()
                    if pending.batches == MOST_BATCHES:
                        self.seal(target)
                        rings = True
                    changes = True
                    continue
            else:
                body = body_size(key_span, value_span, header_span, 0, 0)
                record = varint_size(body) + body + BATCH_HEADER_SIZE
            if pending.size + record > known.append_limit and pending.size:
                self.seal(target)
                rings = True
                continue
            if pending.size + record > pending.capacity and not self.grow(pending, record):
                self.wait_for_memory(record, &deadline)
                if known.is_gone:
                    known = self.topic_target(topic)
                    if partition is not None:
                        number = self.checked_partition(known, partition)
                continue
            # a serializer, or another thread meanwhile, may have closed the producer or ended the transaction
            if self.is_closing or self.has_ended:
                self.require_open()
            if pending.transaction != self.transaction or self.transactional is not None and self.transaction == 0:
                self.require_transaction()
                self.seal(target)
                rings = True
                continue
            break
        if pending.batch_start < 0:
            pending.open_batch(moment)
        delivery.pending = pending
        delivery.index = pending.offsets + pending.batch_count
        pending.add_record(key_span, value_span, header_span, moment, body)
        pending.unseen += 1
        self.records += 1
        if rings and self.signal.is_asleep:
            self.signal.ring()
        return delivery

    cdef object too_large(self, TopicTarget topic, int64_t size):
        if size > topic.record_limit:
            return RecordTooLargeError(
                f"the record takes a batch of {size} bytes, more than the {topic.record_limit} that max.message.bytes "
                f"(or segment.bytes) of topic {topic.name!r} allows; nothing was sent"
            )
        return RecordTooLargeError(
            f"the record takes a batch of {size} bytes, more than buffer_memory={self.buffer_memory}; nothing was sent"
        )

    cdef PendingAppend new_pending(self, PartitionTarget target):
        """Begin a pending append; None when that found the topic changed, and everything has to be looked at again."""
        cdef PendingAppend pending
        self.refresh_topics()
        if target.topic.is_gone:
            return None
        pending = PendingAppend.__new__(PendingAppend)
        pending.target = target
        pending.signal = self.signal
        pending.created = os_c.steady_nanoseconds()
        pending.transaction = self.transaction
        if target.open is not None:
            return target.open
        target.open = pending
        self.list_target(target)
        return pending

    cdef int list_target(self, PartitionTarget target) except -1:
        if not target.is_listed:
            self.touched.append(target)
            target.is_listed = True
            self.signal.busy = self
        return 0

    cdef void seal(self, PartitionTarget target) noexcept:
        """Nothing more goes into the open pending append: it is queued."""
        cdef PendingAppend pending = target.open
        if pending is None:
            return
        pending.close_batch()
        target.open = None
        if pending.batches:
            target.push(pending)
        else:
            self.give_back(pending.capacity)
            pending.free_data()

    cdef bint grow(self, PendingAppend pending, int64_t needed) except -1:
        """Make room for `needed` more bytes in a buffer; False when `buffer_memory` is used up."""
        cdef int64_t least = pending.size + needed
        cdef int64_t capacity = min(max(2 * pending.capacity, max(least, <int64_t>LEAST_CAPACITY)), max(least, pending.target.topic.append_limit))
        cdef uint8_t* larger
        if self.used + capacity - pending.capacity > self.buffer_memory:
            capacity = least
            if self.used + capacity - pending.capacity > self.buffer_memory:
                return False
        larger = <uint8_t*>realloc(pending.data, capacity)
        if larger == NULL:
            raise MemoryError(f"no memory left for {capacity} bytes of records; nothing was sent")
        self.used += capacity - pending.capacity
        pending.data = larger
        pending.capacity = capacity
        return True

    cdef int wait_for_memory(self, int64_t needed, int64_t* deadline) except -1:
        """Wait a while for buffers to be given back; `deadline` is kept from one call to the next (0 at first)."""
        cdef int64_t now = os_c.steady_nanoseconds()
        cdef uint32_t heard
        self.signal.refuse_own_thread("send while buffer_memory is full")
        if deadline[0] == 0:
            deadline[0] = now + self.max_block * <int64_t>1_000_000
        if now >= deadline[0] or self.never_waits():
            raise BufferFullError(
                f"buffer_memory={self.buffer_memory} was full for max_block={self.max_block / 1000.0:g} s ({self.used} bytes wait to be "
                f"appended): the disk is slower than the sender, or a log is locked; nothing was sent"
            )
        heard = self.memory_word
        self.memory_waiters += 1
        try:
            self.signal.ring()
            with nogil:
                os_c.os_wait(&self.memory_word, heard, min(<int64_t>SLICE, deadline[0] - now))
            PyErr_CheckSignals()
        finally:
            self.memory_waiters -= 1
        return self.require_open()

    cdef bint never_waits(self) noexcept:
        return self.loop_thread is not None and self.loop_thread == threading.get_ident()

    def _never_wait_in(self, thread: int) -> None:
        """Let ``send`` and ``send_many`` raise BufferFullError at once when this thread calls them: it runs an event loop.

        ``send_many`` then sends nothing, unless there is room for all of it.
        """
        self.loop_thread = thread

    def _when_room(self, fn: object) -> None:
        """Call ``fn()`` once, in the producer's thread, when memory has been given back; at once when nothing waits."""
        if not self.touched:
            fn()
            return
        self.room_callbacks.append(fn)
        self.memory_waiters += 1
        self.signal.ring()

    cdef int tell_room(self) except -1:
        """Whoever waits for memory looks again."""
        self.memory_word += 1
        os_c.os_wake(&self.memory_word)
        if self.room_callbacks:
            callbacks, self.room_callbacks = self.room_callbacks, []
            self.memory_waiters -= len(callbacks)
            for fn in callbacks:
                try:
                    fn()
                except BaseException:
                    logger.exception("a callback of who waits for buffer_memory failed")
        return 0

    cdef void give_back(self, int64_t size) noexcept:
        self.used -= size

    # --- columns -----------------------------------------------------------------------------------------------------

    def send_many(
        self, topic: str, values: object, keys: object = None, timestamps: object = None, headers: object = None,
        partition: int | None = None,
    ) -> BatchDelivery:
        """Send many records by one call; return one delivery for all of them.

        Args:
            topic: name of an existing topic.
            values, keys, timestamps, headers: as of ``PartitionLog.append``: lists, NumPy arrays or Arrow columns; no Python
                code runs per record, but the serializers, if there are any.
            partition: the number of a partition for all; None = by each record's key. Records without a key go to one
                partition together.

        Guarantee and errors as of ``send``; a record that cannot be sent is told of before any is sent. While ``buffer_memory``
        is full it blocks; when that takes longer than ``max_block``, a part has been sent already (the error has a note).
        """
        cdef TopicTarget known
        cdef Column value_column, key_column = None, header_column = None
        cdef Timestamps stamps
        cdef RecordSource source
        cdef BatchDelivery delivery = BatchDelivery.__new__(BatchDelivery)
        cdef int64_t count, now, largest_record = 0, total = 0
        cdef int32_t number = -1
        self.require_open()
        known = self.topic_target(topic)
        self.refresh_topics()
        known = self.topic_target(topic)
        if self.value_serializer is not None:
            values = [self.value_serializer(value) for value in values]
        if self.key_serializer is not None and keys is not None:
            keys = [None if key is None else self.key_serializer(key) for key in keys]
        value_column = make_column(values, "values")
        count = value_column.data.length
        source.values = &value_column.data
        source.keys = source.headers = NULL
        source.count = count
        if keys is not None:
            key_column = make_column(keys, "keys")
            if key_column.data.length != count:
                raise InvalidRecordError(f"{count} values but {key_column.data.length} keys: expected as many, nothing was sent")
            source.keys = &key_column.data
        if headers is not None:
            header_column = make_header_column(headers, count)
            source.headers = &header_column.data
        now = os_c.clock_milliseconds()
        stamps = make_timestamps(timestamps, count, now)
        if count and stamps.largest > now + known.timestamp_limit:
            raise InvalidRecordError(
                f"timestamp {stamps.largest} lies {stamps.largest - now} ms ahead of the clock, more than the {known.timestamp_limit} "
                f"that message.timestamp.after.max.ms of {topic} allows: timestamps are milliseconds since 1970; nothing was sent"
            )
        source.timestamps = stamps.values
        source.timestamp = stamps.constant
        self.require_transaction()
        if partition is not None:
            number = self.checked_partition(known, partition)
        if count < FEW:
            measure(&source, &total, &largest_record)
        else:
            with nogil:
                measure(&source, &total, &largest_record)
        if known.needs_keys and count and lacks_keys(source.keys, count):
            raise InvalidRecordError(f"topic {topic!r} is compacted, so every record needs a key; nothing was sent")
        if largest_record + BATCH_HEADER_SIZE > min(known.record_limit, self.buffer_memory):
            self.find_too_large(known, &source)
        if count and self.never_waits():
            # whole or not at all: of a part that was sent already nobody could be told
            needed = total + (ENCODER_SLACK * 2 + BATCH_HEADER_SIZE * MOST_BATCHES) * min(count, known.partitions)
            if self.used + needed > self.buffer_memory:
                raise BufferFullError(f"no room for {needed} bytes in buffer_memory={self.buffer_memory} now; nothing was sent")
        delivery.topic = known.name
        delivery.parts = []
        delivery.count = count
        delivery.timestamps = constant_or_values(stamps)
        if count == 0:
            return delivery
        try:
            if partition is None and source.keys != NULL:
                delivery.order = self.scatter(known, &source, delivery.parts)
            else:
                if partition is None:
                    number = self.choose_sticky(known, True)
                self.write_source(known.target(number), &source, 0, count, total, delivery.parts)
        except (BufferFullError, ClosedError, TransactionError, KeyboardInterrupt) as error:
            sent = sum(records for _, records in delivery.parts)
            error.add_note(f"{sent} of {count} records had been sent before")
            raise
        return delivery

    cdef int find_too_large(self, TopicTarget topic, const RecordSource* source) except -1:
        """Name the record that does not fit; the estimate may have been too large, and then none does."""
        cdef int64_t i, size
        cdef Span key = null_span(), value, headers = null_span()
        for i in range(source.count):
            value = span_at(source.values, i)
            if source.keys != NULL:
                key = span_at(source.keys, i)
            if source.headers != NULL:
                headers = span_at(source.headers, i)
            size = body_size(key, value, headers, 0, 0)
            size += varint_size(size) + BATCH_HEADER_SIZE
            if size > min(topic.record_limit, self.buffer_memory):
                error = self.too_large(topic, size)
                raise RecordTooLargeError(f"record {i}: {error}")
        return 0

    cdef object scatter(self, TopicTarget topic, const RecordSource* source, list parts):
        """Send each record to the partition of its key; the indexes of the records in the order of `parts`."""
        import numpy
        cdef int32_t partitions = topic.partitions, number, sticky = self.choose_sticky(topic, True)
        cdef int64_t count = source.count, at
        cdef RecordSource gathered
        cdef ColumnData values, keys, headers
        order = numpy.empty(count, dtype=numpy.int64)
        cdef int64_t[::1] order_ = order
        cdef int64_t* where = &order_[0]
        cdef Span* spans = <Span*>malloc(<size_t>count * 3 * sizeof(Span))
        cdef int64_t* stamps = <int64_t*>malloc(<size_t>count * sizeof(int64_t)) if source.timestamps != NULL else NULL
        cdef int32_t* chosen = <int32_t*>malloc(<size_t>count * sizeof(int32_t))
        cdef int64_t* starts = <int64_t*>calloc(<size_t>partitions + 2, sizeof(int64_t))
        cdef int64_t* sizes = <int64_t*>calloc(<size_t>partitions + 1, sizeof(int64_t))
        try:
            if spans == NULL or chosen == NULL or starts == NULL or sizes == NULL or (stamps == NULL and source.timestamps != NULL):
                raise MemoryError(f"no memory left to sort {count} records by partition; nothing was sent")
            if count < FEW:
                split(source, partitions, sticky, chosen, starts, sizes, where, spans, stamps)
            else:
                with nogil:
                    split(source, partitions, sticky, chosen, starts, sizes, where, spans, stamps)
            values = source.values[0]
            values.kind = COLUMN_SPANS
            values.spans = spans
            gathered.values = &values
            keys = values
            keys.spans = spans + count
            gathered.keys = &keys
            gathered.headers = NULL
            if source.headers != NULL:
                headers = values
                headers.spans = spans + 2 * count
                gathered.headers = &headers
            gathered.timestamps = stamps
            gathered.timestamp = source.timestamp
            at = 0
            for number in range(partitions):
                if starts[number + 1] > at:
                    gathered.count = starts[number + 1]
                    self.write_source(topic.target(number), &gathered, at, starts[number + 1] - at, sizes[number], parts)
                    at = starts[number + 1]
        finally:
            free(spans)
            free(stamps)
            free(chosen)
            free(starts)
            free(sizes)
        return order

    cdef int32_t write_source(
        self, PartitionTarget target, const RecordSource* source, int64_t first, int64_t count, int64_t estimate, list parts
    ) except -1:
        """Encode records `first` to `first` + `count` of a source into pending appends of their own, and queue these."""
        cdef PendingAppend pending
        cdef Encoder encoder = self.encoders.pop() if self.encoders else Encoder()
        cdef TopicTarget topic = target.topic
        cdef RecordSource part = source[0]
        cdef int64_t stop = first + count, room, encoded = 0, deadline = 0, begun
        part.count = stop
        try:
            while first < stop:
                begun = first
                room = min(estimate + ENCODER_SLACK + BATCH_HEADER_SIZE * MOST_BATCHES, topic.append_limit)
                room = max(min(room, self.buffer_memory // 2), min(topic.record_limit, self.buffer_memory))
                room = min(room, estimate + ENCODER_SLACK + BATCH_HEADER_SIZE * MOST_BATCHES)
                pending = PendingAppend.__new__(PendingAppend)
                pending.target = target
                pending.signal = self.signal
                pending.transaction = self.transaction
                while not self.grow_to(pending, room + ENCODER_SLACK):
                    self.wait_for_memory(room, &deadline)
                deadline = 0
                try:
                    if room < SMALL_ENCODE:
                        encoded = encode_at(encoder, &part, &first, topic.batch_limit, topic.record_limit, room, pending)
                    else:
                        with nogil:
                            encoded = encode_at(encoder, &part, &first, topic.batch_limit, topic.record_limit, room, pending)
                    if encoded < 0:
                        if encoded == OUT_OF_MEMORY:
                            raise MemoryError(f"no memory left to encode {count} records")
                        raise InvalidRecordError("the values were changed by another thread while they were sent")
                    self.require_open()
                    if pending.transaction != self.transaction:
                        raise TransactionError("the transaction was ended by another thread while records were sent in it")
                except BaseException:
                    self.give_back(pending.capacity)
                    raise
                estimate = max(estimate - pending.size, (stop - first) * RECORD_ROOM)
                if first < stop:
                    estimate = max(estimate, room)
                pending.created = os_c.steady_nanoseconds()
                pending.unseen = 1
                self.seal(target)
                target.push(pending)
                self.list_target(target)
                self.records += first - begun
                parts.append((pending, first - begun))
                if self.signal.is_asleep:
                    self.signal.ring()
        finally:
            if len(self.encoders) < MOST_ENCODERS:
                self.encoders.append(encoder)
        return 0

    cdef bint grow_to(self, PendingAppend pending, int64_t capacity) except -1:
        """A first buffer of `capacity` bytes; a larger one than there is memory for only when nothing else is buffered."""
        if self.used and self.used + capacity > self.buffer_memory:
            return False
        pending.data = <uint8_t*>malloc(capacity)
        if pending.data == NULL:
            raise MemoryError(f"no memory left for {capacity} bytes of records")
        pending.capacity = capacity
        self.used += capacity
        return True

    # --- the drain ---------------------------------------------------------------------------------------------------

    cdef bint is_ready(self, PartitionTarget target, int64_t now) noexcept:
        """Whether what waits for a partition shall be written now."""
        if target.retry_at > now:
            return False
        if target.head is not None or self.linger == 0 or self.flushing or self.is_closing or self.memory_waiters:
            return True
        return target.open is not None and now >= target.open.created + self.linger

    cdef int64_t drain_cycle(self) except -2:
        """Append what is ready, sync it, tell of it. Nanoseconds until there is more to do; -1: nothing waits at all."""
        cdef PartitionTarget target
        cdef int64_t now = os_c.steady_nanoseconds(), next_look = NO_DEADLINE
        cdef list ready = []
        if self.touched:
            try:
                self.refresh_topics()
            except Error as error:
                logger.warning("what topics there are cannot be told: %s", error)
        for target in list(self.touched):
            if self.is_ready(target, now):
                ready.append(target)
                self.append_queue(target)
                if self.lacks_files:
                    # what was appended so far is brought to its level first, and its logs given back
                    self.lacks_files = False
                    break
        for target in ready:
            self.reach_level(target)
        if self.memory_waiters:
            self.tell_room()
        now = os_c.steady_nanoseconds()
        kept = []
        for target in self.touched:
            if target.head is None and target.open is None:
                target.is_listed = False
                if target.topic.is_gone and target.lease is not None:
                    target.log = None
                    target.lease.release()
                    target.lease = None
                continue
            kept.append(target)
            if self.is_ready(target, now):
                next_look = 0
            elif target.retry_at > now:
                next_look = min(next_look, target.retry_at - now)
            else:
                next_look = min(next_look, target.open.created + self.linger - now)
        self.touched = kept
        if not kept:
            self.signal.busy = None
        return -1 if next_look == NO_DEADLINE else next_look

    cdef int append_queue(self, PartitionTarget target) except -1:
        """Append everything that waits for a partition, in order. What fails is failed, and the next goes on."""
        cdef PendingAppend pending, following
        self.seal(target)
        following = target.head
        while following is not None:
            pending = following
            following = pending.next
            if pending.state != PENDING:
                continue
            pending.state = APPENDING
            failure = None
            try:
                self.append_one(target, pending)
            except Exception as error:
                failure = error
            # as it is now; when somebody finishes that one too meanwhile, the rest has its turn in the next cycle
            following = pending.next
            hindrance = self.hindrance_of(target, pending, failure)
            if hindrance is not None:
                pending.state = PENDING
                self.try_later(target, pending, hindrance)
                if pending.state != FAILED:
                    return 0
            elif failure is not None or target.log.level < AT_BATCH:
                self.finish(target, pending, failure)
        return 0

    cdef int append_one(self, PartitionTarget target, PendingAppend pending) except -1:
        cdef Append request
        cdef ValidatedBatches written
        cdef int64_t producer_id = self.producer_id
        cdef int16_t epoch = target.producer_epoch
        if target.topic.is_gone:
            raise UnknownTopicError(f"topic {target.topic.name!r} was deleted before the record was appended; it was not sent")
        if target.log is None:
            lease = self.catalog.lease(target.topic.name, target.partition)
            target.log = lease.log
            target.lease = lease
            # a partition keeps the size of segments that it was made with
            target.topic.append_limit = min(target.topic.append_limit, target.log.segment_bytes)
            target.topic.record_limit = min(target.topic.record_limit, target.log.segment_bytes)
        if pending.size > target.log.segment_bytes:
            raise RecordTooLargeError(
                f"the records take {pending.size} bytes, more than segment.bytes={target.log.segment_bytes} of {target.log.path}; they "
                f"were not sent"
            )
        if pending.transaction:
            if pending.transaction != self.transaction:
                raise TransactionError("the transaction that the record was sent in has ended; it was not sent")
            producer_id, epoch = self.transactional.producer_id, self.transactional.producer_epoch
            if target.entered != pending.transaction:
                self.transactional.enter_partition(target.topic.name, target.partition)
                target.entered = pending.transaction
        if target.producer_id != producer_id or target.producer_epoch != epoch:
            target.producer_id, target.producer_epoch, target.next_sequence = producer_id, epoch, 0
        if self.codec and pending.compressed is None:
            pending.compressed = compress_batches(pending, self.codec)
        written = pending if pending.compressed is None else pending.compressed
        target.log.require_writable()
        if written.size < SMALL:
            stamp_producer(written, producer_id, epoch, target.next_sequence, pending.transaction != 0)
        else:
            with nogil:
                stamp_producer(written, producer_id, epoch, target.next_sequence, pending.transaction != 0)
        request.source = NULL
        request.shapes = written.shapes
        request.batches = written.batches
        request.offsets = written.offsets
        request.size = written.size
        request.largest_timestamp = written.max_timestamp
        request.expected_end_offset = -1
        pending.base_offset = append(target.log, &request, None, written, &pending.end_offset)
        target.next_sequence = <int32_t>((target.next_sequence + written.offsets) & MOST_SEQUENCE)
        target.hindrance = None
        pending.state = APPENDED
        self.appends += 1
        return 0

    cdef object hindrance_of(self, PartitionTarget target, PendingAppend pending, error):
        """What is worth another try, as a LockedError: too many open files are, when others have been given back; else None."""
        if error is None or isinstance(error, LockedError):
            return error
        if not isinstance(error, StorageError) or error.errno not in TOO_MANY_OPEN:
            return None
        for topic in list(self.topics.values()):
            release_leases(topic)
        if target.lease is not None and target.head is pending:
            # who could be opened, but not appended to, shall not stand in the way of the others
            release_lease(target)
        self.lacks_files = True
        hindrance = LockedError(f"{error}: raise the limit of open files (ulimit -n)")
        hindrance.__cause__ = error
        return hindrance

    cdef int reach_level(self, PartitionTarget target) except -1:
        """One sync for everything that was appended to a partition; then it is delivered."""
        cdef PendingAppend pending = target.head, last = None
        while pending is not None and pending.state == APPENDED:
            last = pending
            pending = pending.next
        if last is None:
            return 0
        failure = None
        try:
            if target.log.level == AT_GROUP:
                sync_until(target.log, last.end_offset)
            elif target.log.level == AT_BATCH:
                sync_own(target.log)
        except Exception as error:
            failure = error
        hindrance = self.hindrance_of(target, None, failure)
        self.lacks_files = False
        if hindrance is not None:
            self.try_later(target, target.head, hindrance)
            return 0
        while target.head is not None and target.head.state == APPENDED:
            pending = target.head
            self.finish(target, pending, failure)
            if pending is last:
                break
        return 0

    cdef int try_later(self, PartitionTarget target, PendingAppend pending, error) except -1:
        """A log that somebody else has locked is tried again, until `delivery_timeout` is over."""
        cdef int64_t now = os_c.steady_nanoseconds()
        if now < pending.created + self.delivery_timeout and not self.has_given_up:
            target.retry_at = now + RETRY_AFTER
            target.hindrance = error
            return 0
        failure = DeliveryTimeoutError(f"not delivered within delivery_timeout={self.delivery_timeout / 1e9:g} s: {error}")
        failure.__cause__ = error
        return self.finish(target, pending, failure)

    cdef int finish(self, PartitionTarget target, PendingAppend pending, error) except -1:
        """Delivered, or failed with `error`: take it out of its queue and tell everybody."""
        cdef PendingAppend before
        if target.head is pending:
            target.head = pending.next
            if target.head is None:
                target.tail = None
        else:
            # a failure behind others that wait for their sync
            before = target.head
            while before.next is not pending:
                before = before.next
            before.next = pending.next
            if target.tail is pending:
                target.tail = before
        # who keeps an old delivery shall not keep all that came after it
        pending.next = None
        if error is not None:
            if pending.state == APPENDED or pending.state == APPENDING and not isinstance(error, StorageFullError):
                self.begin_epoch(target)
            if pending.transaction and pending.transaction == self.transaction and self.transaction_error is None:
                self.transaction_error = error
            pending.error = error
            self.failures.append(pending)
            if len(self.failures) > MOST_FAILURES:
                self.failures = [failed for failed in self.failures if (<PendingAppend>failed).unseen > 0][:MOST_FAILURES]
            logger.warning("%d records for %s-%d failed: %s", pending.offsets, target.topic.name, target.partition, error)
        self.give_back(pending.capacity)
        pending.free_data()
        pending.state = DELIVERED if error is None else FAILED
        pending.word = 1
        if pending.waiters:
            os_c.os_wake(&pending.word)
        if self.memory_waiters and 4 * self.used <= 3 * self.buffer_memory:
            self.tell_room()
        if pending.callbacks is not None:
            callbacks, pending.callbacks = pending.callbacks, None
            for fn, delivery in callbacks:
                run_callback(fn, delivery)
        return 0

    cdef int begin_epoch(self, PartitionTarget target) except -1:
        """After a failure of which it is not known what it left: sequence numbers begin anew, so that nothing is missed."""
        if self.transactional is not None:
            return 0
        target.next_sequence = 0
        if target.producer_epoch < MOST_EPOCH:
            target.producer_epoch += 1
        else:
            # epochs are used up: another producer, for every partition
            target.producer_epoch = 0
            self.producer_id = random_producer_id()
        return 0

    cdef int fail_everything(self, error) except -1:
        cdef PartitionTarget target
        for target in self.touched:
            self.seal(target)
            while target.head is not None:
                self.finish(target, target.head, error)
            target.is_listed = False
        self.touched = []
        self.signal.busy = None
        self.tell_room()
        return 0

    cdef bint drain(self) except -1:
        """The thread's work: returns False when the producer was closed and everything is done, True when nothing waits."""
        cdef int64_t pause
        cdef uint32_t heard
        while True:
            heard = self.signal.word
            pause = self.drain_cycle()
            if pause < 0:
                if self.is_closing:
                    return False
                return True
            if pause > 0 and heard == self.signal.word:
                self.signal.sleep(heard, min(pause, <int64_t>MOST_SLEEP))

    cdef int end(self, error) except -1:
        """The thread ends by an error that nobody foresaw."""
        self.has_ended = True
        return self.fail_everything(error)

    # --- flush and close ---------------------------------------------------------------------------------------------

    cdef list unfinished(self):
        """Every pending append that is not done, open ones too."""
        cdef PartitionTarget target
        cdef PendingAppend pending
        found = []
        for target in self.touched:
            pending = target.head
            while pending is not None:
                found.append(pending)
                pending = pending.next
            if target.open is not None and (target.open.batches or target.open.batch_start >= 0):
                found.append(target.open)
        return found

    def wait_until_sent(self, timeout: object = None) -> bool:
        """Have everything that was sent so far written now, and wait until it is done; False when the timeout was first."""
        cdef PendingAppend pending
        cdef int64_t deadline = deadline_of(timeout)
        self.signal.refuse_own_thread("flush")
        self.flushing += 1
        try:
            self.signal.ring()
            for pending in self.unfinished():
                if not pending.wait(deadline):
                    return False
        finally:
            self.flushing -= 1
        return True

    cdef int raise_failure(self) except -1:
        """Raise the first failure that nobody has looked at, and forget all of them."""
        cdef PendingAppend failed
        failures, self.failures = self.failures, []
        unseen = [failed for failed in failures if (<PendingAppend>failed).unseen > 0]
        if not unseen:
            return 0
        failed = unseen[0]
        error = again(failed.error)
        if len(unseen) > 1:
            error.add_note(f"{len(unseen) - 1} more appends failed, the last one by {(<PendingAppend>unseen[-1]).error!r}")
        raise error

    def _when_sent(self, fn: object) -> None:
        """Have everything that was sent so far written now; call ``fn()`` once when it is done: in the producer's thread, or
        at once when nothing waits. The failures among it are ``_raise_failure``'s to tell."""
        self.require_open()
        waiting = self.unfinished()
        if not waiting:
            fn()
            return
        self.flushing += 1

        def all_done(_):
            self.flushing -= 1
            fn()

        call_after(waiting, all_done, None)
        self.signal.ring()

    def _raise_failure(self) -> None:
        """Raise the first failure that nobody has looked at, and forget all of them."""
        self.raise_failure()

    def flush(self, timeout: object = None) -> None:
        """Wait until every record sent so far is delivered, or has failed; ``linger`` does not hold for them.

        Args:
            timeout: seconds, a ``timedelta`` or a string such as ``"5s"``; None = until everything is decided.

        Raises the first failure that nobody has looked at (by ``result``, ``exception`` or a callback), once; and
        DeliveryTimeoutError when the timeout is over first: everything is still on its way then.
        """
        self.require_open()
        if not self.wait_until_sent(timeout):
            raise undecided(timeout)
        self.raise_failure()

    def close(self, timeout: object = None) -> None:
        """Deliver what was sent, then let go of everything. Idempotent; any thread may call it, and it ends blocked sends.

        Args:
            timeout: how long to wait; what is not delivered by then fails with ClosedError. None = until everything is decided,
                which takes at most ``delivery_timeout``.

        Raises the first failure that nobody has looked at, once. In a forked child it only lets go of the handle.
        """
        if self.signal.fork_generation != os_c.fork_generation() or self.catalog is None:
            self.is_closed = self.is_closing = True
            return
        cdef int64_t deadline = deadline_of(timeout)
        self.is_closing = True
        self.signal.ring()
        self.memory_word += 1
        os_c.os_wake(&self.memory_word)
        if self.signal.thread == threading.get_ident():
            return
        while self.thread.is_alive():
            self.thread.join(0.05 if deadline == NO_DEADLINE else max(0, min(0.05, (deadline - os_c.steady_nanoseconds()) / 1e9)))
            if os_c.steady_nanoseconds() >= deadline and self.thread.is_alive():
                self.give_up(timeout)
                break
        self.is_closed = True
        self.raise_failure()

    cdef int give_up(self, timeout) except -1:
        """Fail what waits; an append that is under way ends by itself."""
        cdef PartitionTarget target
        cdef PendingAppend pending
        self.has_given_up = True
        error = ClosedError(f"the producer was closed, and the record not appended within timeout={timeout!r}: it was not sent")
        for target in list(self.touched):
            self.seal(target)
            waiting = []
            pending = target.head
            while pending is not None:
                if pending.state == PENDING:
                    waiting.append(pending)
                pending = pending.next
            for pending in waiting:
                self.finish(target, pending, error)
        return 0

    @property
    def closed(self) -> bool:
        """Whether ``close`` was called."""
        return self.is_closing

    @property
    def buffered_bytes(self) -> int:
        """Bytes of ``buffer_memory`` in use."""
        return self.used

    def counts(self) -> dict[str, int]:
        """Numbers since the producer was made: ``records`` sent, ``appends`` done, ``failures`` not told of yet."""
        return {"records": self.records, "appends": self.appends, "failures": len(self.failures)}

    def __enter__(self):
        self.require_open()
        return self

    def __exit__(self, exception_type: object, exception: object, traceback: object) -> None:
        try:
            self.close()
        except Error as error:
            if exception_type is None:
                raise
            # what is on its way to the caller says more
            logger.warning("a delivery failed while the producer was closed by %r: %s", exception, error)

    # --- transactions ------------------------------------------------------------------------------------------------

    def set_transactional(self, transactional: object) -> None:
        """Whose producer id, epoch and transactions the batches carry from now on."""
        self.transactional = transactional

    def begin_transactional(self) -> None:
        """From here on records belong to a transaction."""
        self.require_open()
        if self.transaction:
            raise TransactionError("a transaction of this producer is open already: end it first")
        self.transactions += 1
        self.transaction_error = None
        self.transaction = self.transactions

    def drain_transaction(self, timeout: object = None) -> None:
        """Deliver everything that the transaction has sent; raises the first failure, whether somebody has looked at it or not."""
        if not self.wait_until_sent(timeout):
            raise undecided(timeout)
        if self.transaction_error is not None:
            self.forget_failures_of(self.transaction)
            raise again(self.transaction_error)

    cdef int forget_failures_of(self, int64_t number) except -1:
        """They are told of by the outcome of the transaction."""
        cdef PendingAppend failed
        self.failures = [failed for failed in self.failures if (<PendingAppend>failed).transaction != number]
        return 0

    def discard_transaction(self) -> None:
        """Before an abort: what the transaction has sent and nobody has appended yet fails; what is being appended is waited for."""
        number, self.transaction = self.transaction, 0
        # the drain finds that the transaction is over
        self.wait_until_sent()
        self.forget_failures_of(number)

    def end_transactional(self) -> None:
        """Records belong to no transaction any more; those of the last one were drained or discarded before."""
        self.transaction = 0


cdef int64_t moment_of(object timestamp, int64_t now) except? -2:
    """Milliseconds from what a caller passed as the timestamp of one record."""
    cdef int overflow = 0
    cdef int64_t value
    cdef Timestamps stamps
    if is_exact_int(timestamp):
        value = PyLong_AsLongLongAndOverflow(timestamp, &overflow)
        if not overflow and value >= -1:
            return value
    stamps = make_timestamps((timestamp,), 1, now)
    return stamps.values[0]


cdef object constant_or_values(Timestamps stamps):
    if stamps.values == NULL:
        return stamps.constant
    import numpy
    result = numpy.empty(stamps.length, dtype=numpy.int64)
    cdef int64_t[::1] view = result
    if stamps.length:
        memcpy(&view[0], stamps.values, stamps.length * sizeof(int64_t))
    result.flags.writeable = False
    return result


cdef object random_number():
    """From 0 to 2^63 - 1."""
    cdef bytes random = oscalls.random_bytes(8)
    cdef const uint8_t* at = random
    cdef uint64_t value
    memcpy(&value, at, 8)
    return <int64_t>(value >> 1)


cdef object random_producer_id():
    """From 2^40 to 2^62 - 1."""
    return (1 << 40) + random_number() % ((1 << 62) - (1 << 40))


cdef void measure(const RecordSource* source, int64_t* total, int64_t* largest) noexcept nogil:
    """More than the bytes that all records take in batches, but for headers of batches; and more than the largest takes."""
    cdef int64_t i, size
    for i in range(source.count):
        size = RECORD_ROOM + max(span_at(source.values, i).size, 0)
        if source.keys != NULL:
            size += max(span_at(source.keys, i).size, 0)
        if source.headers != NULL:
            size += max(span_at(source.headers, i).size, 0)
        total[0] += size
        largest[0] = max(largest[0], size)


cdef bint lacks_keys(const ColumnData* keys, int64_t count) noexcept nogil:
    cdef int64_t i
    if keys == NULL:
        return True
    for i in range(count):
        if span_at(keys, i).data == NULL:
            return True
    return False


cdef void split(
    const RecordSource* source, int32_t partitions, int32_t sticky, int32_t* chosen, int64_t* starts, int64_t* sizes,
    int64_t* order, Span* spans, int64_t* stamps,
) noexcept nogil:
    """Sort records by partition, each partition's in their order: `starts[p + 1]` is where partition p ends."""
    cdef int64_t i, at, count = source.count
    cdef Span key, value, headers
    for i in range(count):
        key = span_at(source.keys, i)
        chosen[i] = sticky if key.data == NULL else partition_of(key.data, key.size, partitions)
        starts[chosen[i] + 2] += 1
    for i in range(2, partitions + 2):
        starts[i] += starts[i - 1]
    for i in range(count):
        # starts[p + 1] walks from the start of partition p to its end
        at = starts[chosen[i] + 1]
        starts[chosen[i] + 1] += 1
        order[at] = i
        value = span_at(source.values, i)
        key = span_at(source.keys, i)
        spans[at] = value
        spans[count + at] = key
        sizes[chosen[i]] += RECORD_ROOM + max(value.size, 0) + max(key.size, 0)
        if source.headers != NULL:
            headers = span_at(source.headers, i)
            spans[2 * count + at] = headers
            sizes[chosen[i]] += max(headers.size, 0)
        if stamps != NULL:
            stamps[at] = source.timestamps[i]


cdef int64_t encode_at(
    Encoder encoder, const RecordSource* source, int64_t* first, int64_t batch_limit, int64_t record_limit, int64_t room,
    PendingAppend pending,
) noexcept nogil:
    """Encode batches from record `first` on into a pending append with `room` bytes, until that or the source is used up.

    `first` moves behind what was encoded. Zero, or below it what the encoder says when not even one record fits.
    """
    cdef int64_t limit, encoded = 0
    cdef uint8_t* kept_buffer = encoder.buffer
    cdef int64_t kept_capacity = encoder.capacity
    encoder.in_one_piece = True
    while first[0] < source.count and pending.batches < MOST_BATCHES:
        limit = min(batch_limit, room - pending.size)
        if limit <= BATCH_HEADER_SIZE:
            break
        # the encoder never asks for more than limit + one record's overhead, so that it does not move what is not its own
        encoder.buffer = pending.data + pending.size
        encoder.capacity = limit + ENCODER_SLACK
        encoded = encoder.encode(source, first[0], limit)
        if encoded == RECORD_TOO_LARGE and pending.batches == 0 and limit < min(record_limit, room):
            # larger than a batch shall be, and yet allowed: a batch of its own
            limit = min(encoder.size, min(record_limit, room))
            encoder.capacity = limit + ENCODER_SLACK
            encoded = encoder.encode(source, first[0], limit)
        if encoded < 0:
            break
        pending.count_batch(encoder.size, encoded, encoder.max_timestamp)
        first[0] += encoded
    encoder.buffer = kept_buffer
    encoder.capacity = kept_capacity
    encoder.in_one_piece = False
    return 0 if pending.batches else encoded


# --- the thread --------------------------------------------------------------------------------------------------------

def ringer(signal: DrainSignal):
    """What wakes the drain when its producer is gone."""
    return lambda _: ring_signal(signal)


def ring_signal(signal: DrainSignal) -> None:
    (<DrainSignal>signal).ring()


def run_drain(reference: object, signal: DrainSignal, topics: dict) -> None:
    """What the thread of a producer does until it is closed, or nobody has it any more and everything is delivered."""
    try:
        drain_for_life(reference, signal)
    finally:
        for topic in list(topics.values()):
            release_leases(topic)


cdef int drain_for_life(object reference, DrainSignal signal) except -1:
    cdef Accumulator accumulator
    cdef uint32_t heard
    signal.thread = threading.get_ident()
    while True:
        accumulator = reference()
        if accumulator is None:
            return 0
        heard = signal.word
        try:
            if not accumulator.drain():
                return 0
        except BaseException as error:
            logger.exception("the thread of a producer ends: nothing more can be sent with it")
            accumulator.end(error)
            return 0
        if accumulator.touched:
            continue
        accumulator = None
        # nobody else ran between the last look and this: it would have needed the GIL
        if heard == signal.word:
            signal.sleep(heard, MOST_SLEEP)


cdef int release_leases(TopicTarget topic) except -1:
    """Let go of the logs of a topic that have nothing to do."""
    cdef PartitionTarget target
    for target in topic.targets:
        if target is not None and target.lease is not None and target.head is None:
            release_lease(target)
    return 0


cdef int release_lease(PartitionTarget target) except -1:
    lease, target.lease, target.log = target.lease, None, None
    lease.release()
    return 0
