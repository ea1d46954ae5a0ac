"""fastlog: durable event streaming inside a Python process, in Apache Kafka's own log format.

import fastlog

with fastlog.PartitionLog.open("events", durability="batch") as log:
    log.append([b"created", b"paid"], keys=[b"order-1", b"order-1"])
    for record in log.records():
        print(record.offset, record.key, record.value)
"""

import logging as _logging

from fastlog._core import (
    BinaryColumn,
    HeadersColumn,
    PartitionLog,
    Record,
    RecordBatch,
    RecordBatches,
    diagnose,
    read_batch,
    scan_index,
    scan_segment,
)
from fastlog.config import LogConfig
from fastlog.errors import (
    BufferFullError,
    ClosedError,
    CommitFailedError,
    ConfigError,
    CorruptLogError,
    CorruptRecordError,
    DeliveryTimeoutError,
    Error,
    FencedError,
    ForkedHandleError,
    GroupError,
    InvalidRecordError,
    InvalidTopicError,
    LockedError,
    NotSupportedError,
    OffsetOutOfRangeError,
    OutOfOrderSequenceError,
    ProducerFencedError,
    RecordTooLargeError,
    StorageError,
    StorageFullError,
    TopicExistsError,
    TransactionError,
    UnknownTopicError,
    UnsupportedFormatError,
)
from fastlog.records import BatchMetadata, Headers, RecordMetadata, TopicPartition
from fastlog.reports import (
    BatchInfo,
    CompactionReport,
    CutTail,
    Damage,
    IndexEntry,
    IndexProblem,
    MaintenanceReport,
    RecoveryReport,
    RepairReport,
    RetentionReport,
    SegmentInfo,
    TimeIndexEntry,
    VerifyReport,
)

__version__ = "0.1.0"

__all__ = [
    "BatchInfo",
    "BatchMetadata",
    "BinaryColumn",
    "BufferFullError",
    "ClosedError",
    "CommitFailedError",
    "CompactionReport",
    "ConfigError",
    "CorruptLogError",
    "CorruptRecordError",
    "CutTail",
    "Damage",
    "DeliveryTimeoutError",
    "Error",
    "FencedError",
    "ForkedHandleError",
    "GroupError",
    "Headers",
    "HeadersColumn",
    "IndexEntry",
    "IndexProblem",
    "InvalidRecordError",
    "InvalidTopicError",
    "LockedError",
    "LogConfig",
    "MaintenanceReport",
    "NotSupportedError",
    "OffsetOutOfRangeError",
    "OutOfOrderSequenceError",
    "PartitionLog",
    "ProducerFencedError",
    "Record",
    "RecordBatch",
    "RecordBatches",
    "RecordMetadata",
    "RecordTooLargeError",
    "RecoveryReport",
    "RepairReport",
    "RetentionReport",
    "SegmentInfo",
    "StorageError",
    "StorageFullError",
    "TimeIndexEntry",
    "TopicExistsError",
    "TopicPartition",
    "TransactionError",
    "UnknownTopicError",
    "UnsupportedFormatError",
    "VerifyReport",
    "__version__",
    "diagnose",
    "read_batch",
    "scan_index",
    "scan_segment",
]

_logging.getLogger("fastlog").addHandler(_logging.NullHandler())
