"""Every error fastlog raises, by what a caller can do about it.

::

    Error
    ├── ConfigError                 an option is unknown, out of range, or differs from the stored one
    ├── NotSupportedError           this build, platform or file cannot do what was asked
    ├── ClosedError                 the handle was closed
    ├── ForkedHandleError           the handle was inherited by a forked child
    ├── LockedError                 another process (or handle) holds what is needed         retriable
    ├── StorageError                the operating system refused a read, write or sync
    │   └── StorageFullError        no space, quota or file-size limit left                  retriable
    ├── BufferFullError             a producer's buffer stayed full: the disk is slower      kafka 7, retriable
    ├── DeliveryTimeoutError        a delivery, or a flush, was not decided in time          kafka 7, retriable
    ├── UnsupportedFormatError      the files are newer, older or somebody else's
    ├── CorruptLogError             stored bytes no longer check out                         kafka 2
    │   └── CorruptRecordError      the checksum holds, but the format is broken             kafka 2
    ├── InvalidRecordError          what was passed to append cannot become records          kafka 87
    ├── RecordTooLargeError         a record, an append or a content exceeds its limit       kafka 10
    ├── OffsetOutOfRangeError       the offset is below the start or beyond the end          kafka 1
    ├── UnknownTopicError           there is no topic, or no partition, of that name         kafka 3
    ├── TopicExistsError            a topic of that name is there already                    kafka 36
    ├── InvalidTopicError           the name, or the number of partitions, is not allowed    kafka 17
    ├── FencedError                 somebody else was there first: a condition of the append does not hold
    ├── ProducerFencedError         a newer epoch of the same producer id has written        kafka 47
    ├── OutOfOrderSequenceError     a batch of an idempotent producer is missing or too old  kafka 45
    ├── TransactionError            the state of the transaction does not allow this         kafka 48
    ├── CommitFailedError           the partitions belong to somebody else by now            kafka 22
    ├── GroupError                  the member cannot go on in its consumer group
    ├── HandlerTimeoutError         a handler took longer than its subscriber allows         retriable
    ├── RetryLater                  raised by a handler: call me again later                 retriable
    └── BatchError                  raised by a handler: one record of the batch failed

The last two stand in ``fastlog.delivery``: they are words of handlers, and fastlog raises neither.

``retriable`` says whether the same call may succeed later without a change by the caller;
``kafka_code`` is the error code of the Kafka protocol, where Kafka has one.
"""

from __future__ import annotations

from typing import ClassVar

__all__ = [
    "BufferFullError",
    "ClosedError",
    "CommitFailedError",
    "ConfigError",
    "CorruptLogError",
    "CorruptRecordError",
    "DeliveryTimeoutError",
    "Error",
    "FencedError",
    "ForkedHandleError",
    "GroupError",
    "HandlerTimeoutError",
    "InvalidRecordError",
    "InvalidTopicError",
    "LockedError",
    "NotSupportedError",
    "OffsetOutOfRangeError",
    "OutOfOrderSequenceError",
    "ProducerFencedError",
    "RecordTooLargeError",
    "StorageError",
    "StorageFullError",
    "TopicExistsError",
    "TransactionError",
    "UnknownTopicError",
    "UnsupportedFormatError",
]


class Error(Exception):
    """Root of every error that fastlog raises on purpose."""

    retriable: ClassVar[bool] = False
    kafka_code: ClassVar[int | None] = None

    outcome: str | None = None
    """What became of the transaction that could not be committed: ``"aborted"``, or ``"unknown"``: then ``commit`` may
    be repeated, and finds out. None when the error does not speak of a whole transaction."""


class ConfigError(Error):
    """An option is unknown, malformed, out of range, or differs from the one stored with the partition."""

    kafka_code = 40


class NotSupportedError(Error):
    """What was asked for is not available in this version, on this platform or for this file."""

    kafka_code = 35


class ClosedError(Error):
    """The handle was closed. Views and batches that were read from it stay valid."""


class ForkedHandleError(Error):
    """The handle was opened before ``fork`` and belongs to the parent. Open the log again in the child."""


class LockedError(Error):
    """Another process, or another handle of this one, holds what is needed: the partition, or one of its locks.

    Attributes:
        pid: process id of the holder, or None when it could not be told.
    """

    retriable = True

    def __init__(self, message: str, pid: int | None = None) -> None:
        super().__init__(message)
        self.pid = pid


class StorageError(Error):
    """The operating system refused a read, a write or a sync.

    Attributes:
        errno: the operating system's error number, or None.
    """

    kafka_code = 56

    def __init__(self, message: str, errno: int | None = None) -> None:
        super().__init__(message)
        self.errno = errno


class StorageFullError(StorageError):
    """No space, quota or file-size limit is left. Nothing was appended; the log stays usable."""

    retriable = True


class BufferFullError(Error):
    """A producer's ``buffer_memory`` was full for ``max_block``: the record was not sent. Send it again later."""

    retriable = True
    kafka_code = 7


class DeliveryTimeoutError(Error, TimeoutError):
    """What became of a record was not decided in time. Whether it is still on its way the message tells."""

    retriable = True
    kafka_code = 7


class UnsupportedFormatError(Error):
    """The files were written by a newer fastlog, by an old Kafka, or are no log at all. Nothing was touched."""

    kafka_code = 43


class CorruptLogError(Error):
    """Stored bytes no longer check out. Nothing was changed; the rest of the log stays readable.

    Attributes:
        path: the damaged file.
        position: byte position of the damage in that file.
        first_offset: first offset that cannot be read, or None when the damage is not in records.
        next_offset: first offset behind the damage that can be read again, or None when there is none.
    """

    kafka_code = 2

    def __init__(
        self,
        message: str,
        path: str | None = None,
        position: int | None = None,
        first_offset: int | None = None,
        next_offset: int | None = None,
    ) -> None:
        super().__init__(message)
        self.path = path
        self.position = position
        self.first_offset = first_offset
        self.next_offset = next_offset


class CorruptRecordError(CorruptLogError):
    """An encoded batch breaks Kafka's record format v2 although its checksum holds: it was written that way."""


class InvalidRecordError(Error):
    """What was passed to ``append`` cannot become records. Nothing was written.

    When consuming: a deserializer failed on a record, which the attributes name.

    Attributes:
        topic, partition, offset: of the record that cannot be decoded; None when writing.
    """

    kafka_code = 87

    def __init__(
        self, message: str, topic: str | None = None, partition: int | None = None, offset: int | None = None
    ) -> None:
        super().__init__(message)
        self.topic = topic
        self.partition = partition
        self.offset = offset


class RecordTooLargeError(Error):
    """A record exceeds ``max_message_bytes``, or an append exceeds a segment: nothing was written.

    When reading: a compressed batch holds more than ``max_decompressed_bytes``, and nothing else is wrong with it.
    """

    kafka_code = 10


class OffsetOutOfRangeError(Error):
    """The offset lies below the log start offset or beyond the end offset.

    Attributes:
        offset: the offset asked for.
        start_offset: first offset of the log at that moment.
        end_offset: readable end of the log at that moment.
    """

    kafka_code = 1

    def __init__(
        self,
        message: str,
        offset: int | None = None,
        start_offset: int | None = None,
        end_offset: int | None = None,
    ) -> None:
        super().__init__(message)
        self.offset = offset
        self.start_offset = start_offset
        self.end_offset = end_offset


class FencedError(Error):
    """A condition of the append does not hold any more, because somebody else was there first. Nothing was written.

    ``kafka_code`` is None, but 52 where the coordinator of a transaction was overtaken by a newer one.

    Attributes:
        expected_end_offset: the end offset that the caller expected, or None when that was not the condition.
        end_offset: the end offset of the log at that moment, or None.
        condition: which one of the ``conditions`` that were passed does not hold, counted from 0, or None.
        coordinator_epoch: the epoch of a coordinator that the log has seen, where a marker is behind it, or None.
    """

    def __init__(
        self,
        message: str,
        expected_end_offset: int | None = None,
        end_offset: int | None = None,
        condition: int | None = None,
        coordinator_epoch: int | None = None,
    ) -> None:
        super().__init__(message)
        self.coordinator_epoch = coordinator_epoch
        self.expected_end_offset = expected_end_offset
        self.end_offset = end_offset
        self.condition = condition


class ProducerFencedError(Error):
    """A newer epoch of the same producer id has written: this producer was replaced. Nothing was written.

    ``kafka_code`` is 47 (INVALID_PRODUCER_EPOCH), which a Kafka broker answers to an append since version 2.7. 90
    (PRODUCER_FENCED) is what the coordinator of transactions answers to other requests.

    Attributes:
        producer_id: the producer.
        producer_epoch: the epoch that the batch carries.
        current_epoch: the newest epoch that the log has seen.
    """

    kafka_code = 47

    def __init__(
        self,
        message: str,
        producer_id: int | None = None,
        producer_epoch: int | None = None,
        current_epoch: int | None = None,
    ) -> None:
        super().__init__(message)
        self.producer_id = producer_id
        self.producer_epoch = producer_epoch
        self.current_epoch = current_epoch


class OutOfOrderSequenceError(Error):
    """The sequence number of an idempotent producer's batch does not follow its last one. Nothing was written.

    A batch before it is missing; or it was appended before, but too long ago for the log to know at which offset.

    Attributes:
        producer_id: the producer.
        sequence: the first sequence number of the batch.
        expected_sequence: the one that the log expects.
    """

    kafka_code = 45

    def __init__(
        self,
        message: str,
        producer_id: int | None = None,
        sequence: int | None = None,
        expected_sequence: int | None = None,
    ) -> None:
        super().__init__(message)
        self.producer_id = producer_id
        self.sequence = sequence
        self.expected_sequence = expected_sequence


class TransactionError(Error):
    """The state of the producer's transaction does not allow this; when appending: nothing was written.

    Attributes:
        producer_id: the producer, or None.
        outcome: what is known of the transaction: ``"aborted"``, or ``"unknown"`` (then the commit may be repeated);
        None
            when the error does not speak of a whole transaction.
    """

    kafka_code = 48

    def __init__(self, message: str, producer_id: int | None = None, outcome: str | None = None) -> None:
        super().__init__(message)
        self.producer_id = producer_id
        self.outcome = outcome


class UnknownTopicError(Error):
    """There is no such topic, or it has no such partition; it may have been deleted while it was open.

    Attributes:
        topic: the name that was asked for.
        partition: the partition that was asked for, or None.
    """

    kafka_code = 3

    def __init__(self, message: str, topic: str | None = None, partition: int | None = None) -> None:
        super().__init__(message)
        self.topic = topic
        self.partition = partition


class TopicExistsError(Error):
    """A topic of that name is there already. Nothing was changed."""

    kafka_code = 36


class InvalidTopicError(Error):
    """A topic cannot have that name or that number of partitions. Nothing was changed."""

    kafka_code = 17


class CommitFailedError(Error):
    """The offsets were not committed: the partitions were given to another member of the group meanwhile.

    What was handled since the last commit will be handled again, by that member.
    """

    kafka_code = 22


class GroupError(Error):
    """This member cannot go on in its consumer group: it was replaced or removed. Close it, and open another one."""


class HandlerTimeoutError(Error, TimeoutError):
    """A handler took longer than the ``timeout`` of its subscriber: the call counts as a failed attempt.

    An async handler was cancelled. A sync one cannot be: ``App.run`` raises this error when it has stopped, and the
    process has to end, for the handler may still be running in it.
    """

    retriable = True
