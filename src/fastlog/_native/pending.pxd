# What waits for the log of a partition: records encoded in buffers, and the queue of these.

cimport cython
from libc.stdint cimport int16_t, int32_t, int64_t, uint8_t, uint32_t
from libc.string cimport memcpy

from fastlog._native.columns cimport Span
from fastlog._native.encoder cimport Encoder, RecordSource
from fastlog._native.handle cimport Handle
from fastlog._native.validator cimport ValidatedBatches
from fastlog._native.varint cimport varint_size, write_varint

cdef enum:
    MOST_BATCHES = 5            # of one append: as many as a partition remembers of a producer, so that it can be repeated
    MOST_SEQUENCE = 0x7FFFFFFF
    ENCODER_SLACK = 256         # room behind the limit that an encoder may ask for without using it
    SLICE = 50_000_000          # nanoseconds of a wait until signals are let in

cdef int64_t NO_DEADLINE

cdef enum PendingState:
    PENDING                     # not in the log
    APPENDING                   # in the hands of the drain
    APPENDED                    # in the log, but its durability level is not reached
    DELIVERED
    FAILED


@cython.final
cdef class DrainSignal:
    """What wakes the thread that drains; lives as long as the thread does."""
    cdef uint32_t word
    cdef bint is_asleep
    cdef int fork_generation
    cdef object thread          # its identifier, None before it runs
    cdef object busy            # the accumulator while it has something to deliver: it lives until that is done

    cdef void ring(self) noexcept
    cdef int sleep(self, uint32_t heard, int64_t nanoseconds) except -1
    cdef int refuse_own_thread(self, str what) except -1


@cython.final
cdef class TopicTarget:
    """What a producer knows of a topic."""
    cdef readonly str name
    cdef object topic_id
    cdef bint is_gone
    cdef int32_t partitions
    cdef list targets           # of PartitionTarget or None
    cdef int32_t sticky         # partition that records without a key go to at present
    cdef int64_t record_limit   # bytes of a batch with one record
    cdef int64_t batch_limit
    cdef int64_t append_limit
    cdef int64_t timestamp_limit
    cdef bint needs_keys

    cdef PartitionTarget target(self, int32_t partition)


@cython.final
cdef class PartitionTarget:
    """One partition: what waits for it, and what the next batch carries."""
    cdef TopicTarget topic
    cdef readonly int32_t partition
    cdef PendingAppend open         # that records are added to, or None
    cdef PendingAppend head         # full ones and appended ones, oldest first; without `open`
    cdef PendingAppend tail
    cdef bint is_listed             # among the accumulator's `touched`
    cdef object lease               # keeps the log open
    cdef Handle log
    cdef int64_t producer_id
    cdef int16_t producer_epoch
    cdef int32_t next_sequence
    cdef int64_t entered            # the transaction that knows of this partition
    cdef int64_t retry_at           # steady clock, nanoseconds: not before
    cdef object hindrance           # why it has to be tried again

    cdef void push(self, PendingAppend pending) noexcept


cdef class PendingAppend(ValidatedBatches):
    """Records of one partition that go to its log by one append: up to MOST_BATCHES batches."""
    cdef PartitionTarget target
    cdef PendingAppend next
    cdef ValidatedBatches compressed    # what is written in its place
    cdef PendingState state
    cdef uint32_t word                  # 1 when it is done
    cdef int waiters
    cdef DrainSignal signal
    cdef int64_t batch_start            # of the batch that records are added to, -1 = none
    cdef int64_t batch_count
    cdef int64_t batch_base_timestamp
    cdef int64_t batch_max_timestamp
    cdef int64_t created                # steady clock, nanoseconds
    cdef int64_t transaction            # number of the transaction it belongs to, 0 = none
    cdef int64_t base_offset
    cdef int64_t end_offset
    cdef int64_t unseen                 # deliveries whose failure nobody has looked at
    cdef object error
    cdef list callbacks

    cdef void open_batch(self, int64_t timestamp) noexcept
    cdef void close_batch(self) noexcept
    cdef void count_batch(self, int64_t size, int64_t offsets, int64_t max_timestamp) noexcept nogil
    cdef bint wait(self, int64_t deadline) except -1
    cdef void free_data(self) noexcept


cdef int64_t encode_at(
    Encoder encoder, const RecordSource* source, int64_t* first, int64_t batch_limit, int64_t record_limit, int64_t room,
    PendingAppend pending,
) noexcept nogil
cdef void stamp_producer(ValidatedBatches written, int64_t producer_id, int16_t epoch, int32_t sequence, bint transactional) noexcept nogil
cdef ValidatedBatches compress_batches(PendingAppend pending, int codec)
cdef int release_leases(TopicTarget topic) except -1
cdef int release_lease(PartitionTarget target) except -1


# --- bytes of records ---------------------------------------------------------------------------------------------------

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


cdef inline void add_record(PendingAppend pending, Span key, Span value, Span headers, int64_t timestamp, int64_t body) noexcept:
    """Write one record into the open batch; the caller has made room for it."""
    cdef uint8_t* at = write_varint(pending.data + pending.size, body)
    at[0] = 0
    at = write_varint(at + 1, timestamp - pending.batch_base_timestamp)
    at = write_varint(at, pending.batch_count)
    at = write_content(at, key)
    at = write_content(at, value)
    if headers.data == NULL:
        at[0] = 0
        at += 1
    else:
        memcpy(at, headers.data, headers.size)
        at += headers.size
    pending.size = at - pending.data
    pending.batch_count += 1
    if timestamp > pending.batch_max_timestamp:
        pending.batch_max_timestamp = timestamp
