# What one open handle of a partition knows.

from libc.stdint cimport int32_t, int64_t, uint64_t

from fastlog._native.control cimport Control, ring
from fastlog._native.index cimport IndexTracker
from fastlog._native.producers cimport ProducerStates
from fastlog._native.published cimport Published
from fastlog._native.segment cimport Segment
from fastlog._native.shared cimport Bells, ring_bell

cdef enum Level:                # of durability: when an append returns
    AT_OS                       # the page cache has it
    AT_INTERVAL                 # likewise, and a sync follows within the flush interval
    AT_BATCH                    # its own sync is done
    AT_GROUP                    # a sync that covers it is done


cdef class SegmentList:
    """The segments as they were at one generation. Never changed: another one takes its place."""
    cdef list segments          # rising; the last one is the active one
    cdef list bases
    cdef int64_t generation
    cdef int has_aborted        # whether a closed segment knows of aborted transactions; -1 = nobody has looked

    cdef Segment last(self)


cdef class Handle:
    cdef object __weakref__
    cdef readonly str path
    cdef readonly str durability
    cdef readonly str isolation
    cdef readonly bint read_only
    cdef readonly object config
    cdef object options                 # as they were given
    cdef readonly str topic
    cdef readonly int partition
    cdef readonly object recovery

    cdef Control control
    cdef bint is_closed
    cdef int fork_generation            # of the process that opened it
    cdef Level level
    cdef bint reads_durably
    cdef bint reads_committed
    cdef bint compacts                  # every record needs a key
    cdef object meta                    # as last read, or written, by this handle
    cdef object meta_file
    cdef int64_t max_message_bytes
    cdef int64_t max_decompressed_bytes
    cdef int64_t segment_bytes
    cdef int64_t segment_ms
    cdef int64_t timestamp_limit
    cdef int32_t epoch
    cdef SegmentList list_
    cdef list encoders
    # the appender's, guarded by the writer lock
    cdef Segment active                 # open for appending, or None
    cdef IndexTracker tracker           # of `active`
    cdef ProducerStates producers       # as the log up to some offset tells of them, or None
    cdef uint64_t seen_version          # of the published tuple that `tracker` agrees with
    cdef Bells bells                    # of the store, for whoever waits for many partitions, or None
    cdef int bell                       # which of them is rung with this partition's own
    cdef bint keeps_interval            # the flush interval that somebody asked for is watched by this process
    cdef object background              # thread that syncs rolled segments, or None
    cdef bint has_rolled                # since that thread began to look
    # readers': where the last read ended; the next one usually starts there
    cdef int64_t cursor_offset
    cdef int64_t cursor_position
    cdef Segment cursor_segment
    cdef int64_t looked_at              # steady clock, ms: when a reader without company last looked for some
    cdef object last_change             # of the folder, when it did

    cdef int require_open(self) except -1
    cdef int require_writable(self) except -1
    cdef object deleted_error(self)
    cdef object blamed(self, error)
    cdef int read_state(self, Published* state) except -1
    cdef SegmentList segments_at(self, Published* state)
    cdef SegmentList list_segments(self, Published* state)
    cdef bint has_moved(self, const Published* state, SegmentList used) except -1
    cdef int64_t end_of(self, Segment segment, const Published* state) noexcept
    cdef int prepare(self, Segment segment, const Published* state) except -1
    cdef int forget_cursor(self) except -1
    cdef list sizes_at(self, Published* state)
    cdef int look_for_company(self) except -1
    cdef list look_at_segments(self, int64_t active_base, int64_t start_offset, bint is_untouched)


cdef inline void wake_readers(Handle log, Control control) noexcept nogil:
    """More can be read: wake who waits for this partition, and who waits for any of the store's. No lock is held."""
    ring(&control.page.append_bell)
    if log.bells is not None:
        ring_bell(log.bells, log.bell)
