# cython: annotation_typing=False, nonecheck=True
"""What waits for the log of a partition, and what a producer knows of it.

Records are encoded straight into the buffer of a ``PendingAppend``: whole batches but for what only the append knows. A
pending append holds at most five batches, because that is how many a partition remembers of a producer: the same append,
repeated when its outcome is not known, is answered with its first offset (KIP-98).
"""

import threading

from cpython.exc cimport PyErr_CheckSignals
from libc.stdint cimport int16_t, int32_t, int64_t, uint8_t, uint32_t
from libc.stdlib cimport free, malloc
from libc.string cimport memcpy

from fastlog._native cimport oscalls as os_c
from fastlog._native.codecs cimport compress, compressed_room
from fastlog._native.encoder cimport BatchShape, Encoder, RECORD_TOO_LARGE, RecordSource, set_producer
from fastlog._native.layout cimport (
    ATTRIBUTES_AT, BASE_OFFSET_AT, BASE_TIMESTAMP_AT, BATCH_HEADER_SIZE, BATCH_LENGTH_AT, LAST_OFFSET_DELTA_AT, LEADER_EPOCH_AT,
    LOG_OVERHEAD, MAGIC_AT, MAGIC_V2, MAX_TIMESTAMP_AT, RECORDS_COUNT_AT, store_int16, store_int32, store_int64,
)
from fastlog._native.validator cimport ValidatedBatches

from fastlog.errors import ForkedHandleError, NotSupportedError

cdef int64_t NO_DEADLINE = 0x7FFFFFFFFFFFFFFF


# --- buffers -----------------------------------------------------------------------------------------------------------

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
        cdef uint8_t* batch
        cdef int64_t size = self.size - self.batch_start
        if self.batch_start < 0:
            return
        batch = self.data + self.batch_start
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


# --- topics and partitions ---------------------------------------------------------------------------------------------

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


# --- the thread's bell -------------------------------------------------------------------------------------------------

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
