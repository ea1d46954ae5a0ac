# cython: annotation_typing=False, nonecheck=True
"""The drain: one thread per producer, which appends what was collected since it last looked.

It goes partition by partition, brings each to its durability level by one sync, and marks whole appends as done: nothing
happens per record. It lets go of the GIL while it waits, computes checksums, writes and syncs.
"""

import errno
import logging
import threading

from libc.stdint cimport int16_t, int32_t, int64_t, uint8_t, uint32_t, uint64_t
from libc.string cimport memcpy

from fastlog._native cimport oscalls as os_c
from fastlog._native.appending cimport Append, append, request_ready
from fastlog._native.deliveries cimport run_callback
from fastlog._native.handle cimport AT_BATCH, AT_GROUP
from fastlog._native.layout cimport BATCH_HEADER_SIZE
from fastlog._native.pending cimport (
    APPENDED, APPENDING, DELIVERED, DrainSignal, FAILED, MOST_BATCHES, MOST_SEQUENCE, NO_DEADLINE, PENDING, PartitionTarget,
    PendingAppend, TopicTarget, compress_batches, release_lease, release_leases, stamp_producer,
)
from fastlog._native.syncing cimport sync_own, sync_until
from fastlog._native.validator cimport ValidatedBatches

from fastlog._native import oscalls
from fastlog.errors import (
    DeliveryTimeoutError, Error, LockedError, RecordTooLargeError, StorageError, StorageFullError, TransactionError,
    UnknownTopicError,
)

logger = logging.getLogger("fastlog.producer")

cdef enum:
    MOST_FAILURES = 1000            # that are kept for flush and close to tell of
    SMALL = 1 << 16                 # bytes whose CRC is not worth letting go of the GIL: getting it back takes longer
    MOST_SLEEP = 1_000_000_000      # nanoseconds
    RETRY_AFTER = 20_000_000        # nanoseconds until a locked partition is tried again
    MOST_EPOCH = 0x7FFF
# what goes by, when others let go of something
ADVICE = {
    errno.ENFILE: "raise the limit of open files (ulimit -n)", errno.EMFILE: "raise the limit of open files (ulimit -n)",
    errno.ENOMEM: "leave this process more memory",
}


cdef class Drain:
    """What a producer has collected, partition by partition, and the appending of it. ``Accumulator`` fills it."""

    def __cinit__(self):
        self.signal = DrainSignal()
        self.topics = {}
        self.touched = []
        self.failures = []
        self.room_callbacks = []
        self.is_closing = self.has_ended = True

    # --- topics and memory -------------------------------------------------------------------------------------------

    cdef int refresh_topics(self) except -1:
        """Look again at every known topic, when one was created, changed or deleted: by anybody."""
        cdef TopicTarget known, found
        version = self.catalog.version()
        if version == self.topics_version:
            return 0
        self.topics_version = version
        problem = None
        for name in list(self.topics):
            try:
                found = self.described(name)
            except UnknownTopicError:
                found = None
            except StorageError as error:
                # what changed is seen by the next look
                problem, self.topics_version = error, None
                continue
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
        if problem is not None:
            raise problem
        return 0

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

    cdef void give_back(self, int64_t size) noexcept:
        self.used -= size

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

    # --- one round ---------------------------------------------------------------------------------------------------

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
            except (Error, MemoryError) as error:
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
        request_ready(&request, written, -1)
        pending.base_offset = append(target.log, &request, None, written, &pending.end_offset)
        target.next_sequence = <int32_t>((target.next_sequence + written.offsets) & MOST_SEQUENCE)
        target.hindrance = None
        pending.state = APPENDED
        self.appends += 1
        return 0

    cdef object hindrance_of(self, PartitionTarget target, PendingAppend pending, error):
        """What is worth another try, as a LockedError: too many open files are, and too little memory, when others have been
        given back; else None."""
        if error is None or isinstance(error, LockedError):
            return error
        number = errno.ENOMEM if isinstance(error, MemoryError) else getattr(error, "errno", None)
        if number not in ADVICE:
            return None
        for topic in list(self.topics.values()):
            release_leases(topic)
        if target.lease is not None and target.head is pending:
            # who could be opened, but not appended to, shall not stand in the way of the others
            release_lease(target)
        self.lacks_files = True
        hindrance = LockedError(f"{str(error) or 'no memory left'}: {ADVICE[number]}")
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
        self.give_back(pending.capacity)
        pending.free_data()
        # whoever waits goes on, whatever else fails
        pending.state = DELIVERED if error is None else FAILED
        pending.word = 1
        if pending.waiters:
            os_c.os_wake(&pending.word)
        if error is not None:
            self.failures.append(pending)
            if len(self.failures) > MOST_FAILURES:
                self.failures = [failed for failed in self.failures if (<PendingAppend>failed).unseen > 0][:MOST_FAILURES]
        if self.memory_waiters and 4 * self.used <= 3 * self.buffer_memory:
            self.tell_room()
        if pending.callbacks is not None:
            callbacks, pending.callbacks = pending.callbacks, None
            for fn, delivery in callbacks:
                run_callback(fn, delivery)
        if error is not None:
            logger.warning("%d records for %s-%d failed: %s", pending.offsets, target.topic.name, target.partition, error)
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
                try:
                    self.finish(target, target.head, error)
                except Exception:
                    continue    # it is told; what cannot be said of it keeps the others waiting no longer
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
    cdef Drain producer
    cdef uint32_t heard
    signal.thread = threading.get_ident()
    while True:
        producer = reference()
        if producer is None:
            return 0
        heard = signal.word
        try:
            if not producer.drain():
                return 0
        except BaseException as error:
            producer.end(error)
            logger.error("the thread of a producer ends: nothing more can be sent with it", exc_info=error)
            return 0
        if producer.touched:
            continue
        producer = None
        # nobody else ran between the last look and this: it would have needed the GIL
        if heard == signal.word:
            signal.sleep(heard, MOST_SLEEP)


# --- who it is ---------------------------------------------------------------------------------------------------------

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
