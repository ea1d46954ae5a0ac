# What a partition knows of its idempotent and transactional producers.

from libc.stdint cimport int16_t, int32_t, int64_t, uint64_t, uint8_t

from fastlog._native.decoder cimport BatchHeader, Problem
from fastlog._native.transactions cimport Marker

cdef enum:
    RETAINED_BATCHES = 5            # of each producer: so many requests a Kafka client has on the way

cdef enum Verdict:
    ACCEPTED = 0
    DUPLICATE                       # all of it was appended before: nothing is to be written
    PARTLY_DUPLICATE
    STALE_EPOCH
    NEW_EPOCH_NOT_AT_ZERO
    OUT_OF_ORDER
    OPEN_TRANSACTION                # a batch outside of the transaction that its producer has open
    UNVERIFIED_TRANSACTION
    STALE_COORDINATOR
    NOT_A_BATCH
    NO_ROOM                         # out of memory

cdef struct RetainedBatch:
    int32_t first_sequence
    int32_t last_sequence
    int64_t last_offset
    int32_t offset_delta            # to the first offset
    int64_t timestamp

cdef struct ProducerState:
    int64_t producer_id
    int16_t epoch                   # -1: none seen
    int32_t coordinator_epoch       # -1: none seen
    int64_t transaction_first_offset    # -1: no transaction is open
    int64_t last_timestamp
    int32_t batch_count
    RetainedBatch[RETAINED_BATCHES] batches     # oldest first

cdef struct ProducerTable:          # open addressing: `slots` hold indexes into `states`, -1 when free
    ProducerState* states
    int64_t count
    int64_t capacity
    int32_t* slots
    int64_t slot_mask
    uint64_t seed

cdef struct OpenTransaction:
    int64_t first_offset
    int64_t producer_id

cdef struct Rejection:              # what the message of an error is made of
    int64_t batch                   # in the buffer, from 0
    int64_t position
    BatchHeader header
    Marker marker
    Problem problem
    int16_t known_epoch
    int32_t known_coordinator_epoch
    int32_t expected_sequence
    int64_t first_offset            # of the open transaction, or of the batch that was there before

cdef class ProducerStates:
    """The producers of one partition, as the log up to ``end_offset`` tells of them."""
    cdef ProducerTable table
    cdef ProducerTable overlay      # what checked but unwritten batches would make of it
    cdef OpenTransaction* open_transactions     # rising by first offset
    cdef int64_t open_count
    cdef int64_t open_capacity
    cdef uint8_t* aborted           # entries for .txnindex that nobody took yet
    cdef int64_t aborted_count
    cdef int64_t aborted_capacity
    cdef readonly int64_t last_producer_offset      # last offset that carries a producer id, -1 when none
    cdef public int64_t end_offset
    cdef public int64_t segment_base        # the batch at `end_offset` is to be looked for in this segment
    cdef public int64_t position            # at this position, or behind it

    cdef ProducerState* find(self, int64_t producer_id) noexcept nogil
    cdef int64_t first_unstable(self) noexcept nogil
    cdef Verdict check(
        self, const uint8_t* bytes_, int64_t size, bint verified, int64_t* duplicate_offset, Rejection* rejection
    ) noexcept nogil
    cdef int apply(self, const uint8_t* bytes_, int64_t size, int64_t now) noexcept nogil
    cdef int observe(self, const BatchHeader* header, const Marker* marker, int64_t now) noexcept nogil
    cdef bint jump(
        self, int64_t last_producer_offset, int64_t end_offset, int64_t segment_base, int64_t position
    ) noexcept nogil
    cdef int reserve(self, int64_t producers, int64_t markers) noexcept nogil
    cdef int64_t snapshot_size(self) noexcept nogil
    cdef void store_snapshot(self, uint8_t* at) noexcept nogil
    cdef object rejected(self, Verdict verdict, const Rejection* rejection)
