"""fastlog: durable event streaming inside a Python process, in Apache Kafka's own log format.

import fastlog

with fastlog.PartitionLog.open("events", durability="batch") as log:
    log.append([b"created", b"paid"], keys=[b"order-1", b"order-1"])
    for record in log.records():
        print(record.offset, record.key, record.value)

Names of the store, its producers and consumers are loaded when they are first asked for.
"""

import importlib as _importlib
import logging as _logging
import typing as _typing

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
    HandlerTimeoutError,
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

if _typing.TYPE_CHECKING:
    from fastlog import aio
    from fastlog.clients.consumer import Consumer, ConsumerStats
    from fastlog.clients.producer import BatchDelivery, Delivery, Producer
    from fastlog.clients.store import Store
    from fastlog.clients.store import open_store as open
    from fastlog.clients.topic import Topic, TopicRead
    from fastlog.clients.transaction import Transaction
    from fastlog.delivery.app import App
    from fastlog.delivery.dead_letters import DeadLetterReport, DeadLetters, DeadLetterSurvey
    from fastlog.delivery.deduplicator import Deduplicator
    from fastlog.delivery.headers import DeadLetter
    from fastlog.delivery.policy import BatchError, Breaker, Retry, RetryLater
    from fastlog.delivery.runner import SubscriberStats
    from fastlog.groups.admin import GroupDescription, MemberDescription
    from fastlog.groups.formats import OffsetAndMetadata
    from fastlog.groups.lag import Lag
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
    from fastlog.store.backup import BackupReport

__version__ = "0.1.0"

__all__ = [
    "App",
    "BackupReport",
    "BatchDelivery",
    "BatchError",
    "BatchInfo",
    "BatchMetadata",
    "BinaryColumn",
    "Breaker",
    "BufferFullError",
    "ClosedError",
    "CommitFailedError",
    "CompactionReport",
    "ConfigError",
    "Consumer",
    "ConsumerStats",
    "CorruptLogError",
    "CorruptRecordError",
    "CutTail",
    "Damage",
    "DeadLetter",
    "DeadLetterReport",
    "DeadLetterSurvey",
    "DeadLetters",
    "Deduplicator",
    "Delivery",
    "DeliveryTimeoutError",
    "Error",
    "FencedError",
    "ForkedHandleError",
    "GroupDescription",
    "GroupError",
    "HandlerTimeoutError",
    "Headers",
    "HeadersColumn",
    "IndexEntry",
    "IndexProblem",
    "InvalidRecordError",
    "InvalidTopicError",
    "Lag",
    "LockedError",
    "LogConfig",
    "MaintenanceReport",
    "MemberDescription",
    "NotSupportedError",
    "OffsetAndMetadata",
    "OffsetOutOfRangeError",
    "OutOfOrderSequenceError",
    "PartitionLog",
    "Producer",
    "ProducerFencedError",
    "Record",
    "RecordBatch",
    "RecordBatches",
    "RecordMetadata",
    "RecordTooLargeError",
    "RecoveryReport",
    "RepairReport",
    "RetentionReport",
    "Retry",
    "RetryLater",
    "SegmentInfo",
    "StorageError",
    "StorageFullError",
    "Store",
    "SubscriberStats",
    "TimeIndexEntry",
    "Topic",
    "TopicExistsError",
    "TopicPartition",
    "TopicRead",
    "Transaction",
    "TransactionError",
    "UnknownTopicError",
    "UnsupportedFormatError",
    "VerifyReport",
    "__version__",
    "aio",
    "diagnose",
    "open",
    "read_batch",
    "scan_index",
    "scan_segment",
]

# what is not needed to open a partition and use it
_LATER = {
    "App": "fastlog.delivery.app:App",
    "BatchInfo": "fastlog.reports:BatchInfo",
    "CompactionReport": "fastlog.reports:CompactionReport",
    "CutTail": "fastlog.reports:CutTail",
    "Damage": "fastlog.reports:Damage",
    "IndexEntry": "fastlog.reports:IndexEntry",
    "IndexProblem": "fastlog.reports:IndexProblem",
    "MaintenanceReport": "fastlog.reports:MaintenanceReport",
    "RecoveryReport": "fastlog.reports:RecoveryReport",
    "RepairReport": "fastlog.reports:RepairReport",
    "RetentionReport": "fastlog.reports:RetentionReport",
    "SegmentInfo": "fastlog.reports:SegmentInfo",
    "TimeIndexEntry": "fastlog.reports:TimeIndexEntry",
    "VerifyReport": "fastlog.reports:VerifyReport",
    "BatchDelivery": "fastlog.clients.producer:BatchDelivery",
    "BatchError": "fastlog.delivery.policy:BatchError",
    "Breaker": "fastlog.delivery.policy:Breaker",
    "Consumer": "fastlog.clients.consumer:Consumer",
    "ConsumerStats": "fastlog.clients.consumer:ConsumerStats",
    "DeadLetter": "fastlog.delivery.headers:DeadLetter",
    "DeadLetterReport": "fastlog.delivery.dead_letters:DeadLetterReport",
    "DeadLetterSurvey": "fastlog.delivery.dead_letters:DeadLetterSurvey",
    "DeadLetters": "fastlog.delivery.dead_letters:DeadLetters",
    "Deduplicator": "fastlog.delivery.deduplicator:Deduplicator",
    "Delivery": "fastlog.clients.producer:Delivery",
    "GroupDescription": "fastlog.groups.admin:GroupDescription",
    "BackupReport": "fastlog.store.backup:BackupReport",
    "Lag": "fastlog.groups.lag:Lag",
    "MemberDescription": "fastlog.groups.admin:MemberDescription",
    "OffsetAndMetadata": "fastlog.groups.formats:OffsetAndMetadata",
    "Producer": "fastlog.clients.producer:Producer",
    "Retry": "fastlog.delivery.policy:Retry",
    "RetryLater": "fastlog.delivery.policy:RetryLater",
    "Store": "fastlog.clients.store:Store",
    "SubscriberStats": "fastlog.delivery.runner:SubscriberStats",
    "Topic": "fastlog.clients.topic:Topic",
    "TopicRead": "fastlog.clients.topic:TopicRead",
    "Transaction": "fastlog.clients.transaction:Transaction",
    "open": "fastlog.clients.store:open_store",
}


def __getattr__(name: str) -> _typing.Any:
    if name == "aio":
        return _importlib.import_module("fastlog.aio")
    place = _LATER.get(name)
    if place is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module, _, attribute = place.partition(":")
    value = globals()[name] = getattr(_importlib.import_module(module), attribute)
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_LATER, "aio"})


_logging.getLogger("fastlog").addHandler(_logging.NullHandler())
