# cython: annotation_typing=False, nonecheck=True
"""Deliveries: small objects that know the place of what was sent in a pending append, and are done when that is."""

import copy
import logging

cimport cython
from libc.stdint cimport int64_t

from fastlog._native cimport oscalls as os_c
from fastlog._native.pending cimport DELIVERED, FAILED, NO_DEADLINE, PendingAppend

from fastlog.config import parse_duration_ms
from fastlog.errors import DeliveryTimeoutError
from fastlog.records import BatchMetadata, RecordMetadata

logger = logging.getLogger("fastlog.producer")


@cython.final
@cython.freelist(512)
@cython.no_gc
cdef class Delivery:
    """The future outcome of one ``Producer.send``. Every method may be called from any thread."""

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


cdef Delivery new_delivery():
    return Delivery.__new__(Delivery)


cdef class BatchDelivery:
    """The future outcome of one ``Producer.send_many``: one for all of its records. Any thread may use it.

    Records of one partition are stored in the order in which they were passed. Each partition's part succeeds or fails in
    pieces of up to five batches; ``result`` raises the first failure.
    """

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


# --- waiting and being told ---------------------------------------------------------------------------------------------

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
