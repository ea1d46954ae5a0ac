# What producers collect, partition by partition, until it is appended; and the deliveries that tell of it.

cimport cython
from libc.stdint cimport int16_t, int32_t, int64_t, uint8_t, uint32_t

from fastlog._native.columns cimport Span
from fastlog._native.encoder cimport EncodedBatches, Encoder, RecordSource
from fastlog._native.handle cimport Handle
from fastlog._native.validator cimport ValidatedBatches

cdef enum:
    MOST_BATCHES = 5            # of one append: as many as a partition remembers of a producer, so that it can be repeated

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


@cython.no_gc                       # callbacks and errors, which could close a cycle, go when it is done
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
    cdef void add_record(self, Span key, Span value, Span headers, int64_t timestamp, int64_t body) noexcept
    cdef bint wait(self, int64_t deadline) except -1
    cdef void free_data(self) noexcept


cdef class Accumulator:
    cdef object __weakref__
    cdef object catalog
    cdef DrainSignal signal
    cdef object thread
    cdef object key_serializer
    cdef object value_serializer
    cdef dict topics
    cdef TopicTarget last_topic
    cdef list touched               # targets with something that is not done
    cdef list failures              # of PendingAppend
    cdef list encoders
    cdef object topics_version
    cdef int codec
    cdef int64_t linger             # nanoseconds
    cdef int64_t batch_size
    cdef int64_t buffer_memory
    cdef int64_t used               # bytes of buffers
    cdef int64_t max_block          # milliseconds
    cdef int64_t delivery_timeout   # nanoseconds
    cdef uint32_t memory_word
    cdef int memory_waiters
    cdef list room_callbacks        # of who waits for memory without blocking, counted as waiters
    cdef object loop_thread         # that runs an event loop and never waits; None = there is none
    cdef int flushing               # callers who want everything written now
    cdef bint is_closing
    cdef bint is_closed
    cdef bint has_ended             # the thread
    cdef bint lacks_files           # too many are open
    cdef bint has_given_up          # nothing is tried again
    cdef object transaction_error   # the first failure of the open transaction
    cdef int64_t producer_id
    cdef int64_t random_state
    cdef object transactional
    cdef int64_t transaction        # number of the one that is open, 0 = none
    cdef int64_t transactions       # how many there were
    cdef int64_t appends
    cdef int64_t records

    cdef int require_open(self) except -1
    cdef int require_transaction(self) except -1
    cdef TopicTarget topic_target(self, object topic)
    cdef int refresh_topics(self) except -1
    cdef int list_target(self, PartitionTarget target) except -1
    cdef void seal(self, PartitionTarget target) noexcept
    cdef PendingAppend new_pending(self, PartitionTarget target)
    cdef int32_t choose_sticky(self, TopicTarget topic, bint change) noexcept
    cdef int32_t checked_partition(self, TopicTarget topic, object partition) except -1
    cdef bint grow(self, PendingAppend pending, int64_t needed) except -1
    cdef int wait_for_memory(self, int64_t needed, int64_t* deadline) except -1
    cdef bint never_waits(self) noexcept
    cdef int tell_room(self) except -1
    cdef void give_back(self, int64_t size) noexcept
    cdef bint grow_to(self, PendingAppend pending, int64_t capacity) except -1
    cdef int find_too_large(self, TopicTarget topic, const RecordSource* source) except -1
    cdef object scatter(self, TopicTarget topic, const RecordSource* source, list parts)
    cdef bint is_ready(self, PartitionTarget target, int64_t now) noexcept
    cdef int64_t drain_cycle(self) except -2
    cdef int append_queue(self, PartitionTarget target) except -1
    cdef int append_one(self, PartitionTarget target, PendingAppend pending) except -1
    cdef object hindrance_of(self, PartitionTarget target, PendingAppend pending, error)
    cdef int reach_level(self, PartitionTarget target) except -1
    cdef int finish(self, PartitionTarget target, PendingAppend pending, error) except -1
    cdef int begin_epoch(self, PartitionTarget target) except -1
    cdef TopicTarget described(self, str topic)
    cdef bint drain(self) except -1
    cdef int end(self, error) except -1
    cdef int forget_failures_of(self, int64_t number) except -1
    cdef int give_up(self, timeout) except -1
    cdef int raise_failure(self) except -1
    cdef object too_large(self, TopicTarget topic, int64_t size)
    cdef int try_later(self, PartitionTarget target, PendingAppend pending, error) except -1
    cdef int fail_everything(self, error) except -1
    cdef list unfinished(self)
    cdef int32_t write_source(
        self, PartitionTarget target, const RecordSource* source, int64_t first, int64_t count, int64_t estimate, list parts
    ) except -1

cdef int32_t murmur2_of(const uint8_t* data, int64_t size) noexcept nogil
