# What producers collect: records that are sent, one by one or in columns.

from libc.stdint cimport int32_t, int64_t

from fastlog._native.drain cimport Drain
from fastlog._native.encoder cimport RecordSource
from fastlog._native.pending cimport PartitionTarget, PendingAppend, TopicTarget


cdef class Accumulator(Drain):
    cdef object thread
    cdef object key_serializer
    cdef object value_serializer
    cdef list encoders
    cdef int64_t max_block          # milliseconds
    cdef object loop_thread         # that runs an event loop and never waits; None = there is none
    cdef bint is_closed
    cdef int64_t random_state
    cdef int64_t transactions       # how many there were
    cdef int64_t records

    cdef int require_open(self) except -1
    cdef int require_transaction(self) except -1
    cdef TopicTarget topic_target(self, object topic)
    cdef int list_target(self, PartitionTarget target) except -1
    cdef PendingAppend new_pending(self, PartitionTarget target)
    cdef int32_t choose_sticky(self, TopicTarget topic, bint change) noexcept
    cdef TopicTarget with_partition(self, TopicTarget topic, object partition, int32_t* number)
    cdef bint grow(self, PendingAppend pending, int64_t needed) except -1
    cdef int wait_for_memory(self, int64_t needed, int64_t* deadline) except -1
    cdef bint never_waits(self) noexcept
    cdef bint grow_to(self, PendingAppend pending, int64_t capacity) except -1
    cdef int find_too_large(self, TopicTarget topic, const RecordSource* source) except -1
    cdef object scatter(self, TopicTarget topic, const RecordSource* source, list parts)
    cdef int forget_failures_of(self, int64_t number) except -1
    cdef int give_up(self, timeout) except -1
    cdef int raise_failure(self) except -1
    cdef object too_large(self, TopicTarget topic, int64_t size)
    cdef list unfinished(self)
    cdef int32_t write_source(
        self, PartitionTarget target, const RecordSource* source, int64_t first, int64_t count, int64_t estimate, list parts
    ) except -1
