# What a producer has collected, and how it gets into the logs.

from libc.stdint cimport int64_t, uint32_t

from fastlog._native.pending cimport DrainSignal, PartitionTarget, PendingAppend, TopicTarget


cdef class Drain:
    cdef object __weakref__
    cdef object catalog
    cdef DrainSignal signal
    cdef dict topics
    cdef TopicTarget last_topic
    cdef list touched               # targets with something that is not done
    cdef list failures              # of PendingAppend
    cdef object topics_version
    cdef int codec
    cdef int64_t linger             # nanoseconds
    cdef int64_t batch_size
    cdef int64_t buffer_memory
    cdef int64_t used               # bytes of buffers
    cdef int64_t delivery_timeout   # nanoseconds
    cdef uint32_t memory_word
    cdef int memory_waiters
    cdef list room_callbacks        # of who waits for memory without blocking, counted as waiters
    cdef int flushing               # callers who want everything written now
    cdef bint is_closing
    cdef bint has_ended             # the thread
    cdef bint lacks_files           # too many are open
    cdef bint has_given_up          # nothing is tried again
    cdef object transaction_error   # the first failure of the open transaction
    cdef int64_t producer_id
    cdef object transactional
    cdef int64_t transaction        # number of the one that is open, 0 = none
    cdef int64_t appends

    cdef int refresh_topics(self) except -1
    cdef void seal(self, PartitionTarget target) noexcept
    cdef int tell_room(self) except -1
    cdef void give_back(self, int64_t size) noexcept
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
    cdef int try_later(self, PartitionTarget target, PendingAppend pending, error) except -1
    cdef int fail_everything(self, error) except -1


cdef object random_number()
cdef object random_producer_id()
