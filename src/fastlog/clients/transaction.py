"""A transaction of a producer: a block whose records, offsets and source position become visible together, or not at
all.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from datetime import datetime
from types import TracebackType
from typing import TYPE_CHECKING, Any, Protocol

from fastlog._core import BatchDelivery, Delivery
from fastlog.errors import CommitFailedError, ConfigError, Error, FencedError, InvalidRecordError, TransactionError
from fastlog.groups.formats import checked_offsets
from fastlog.groups.offsets import OffsetAndMetadata, OffsetStore
from fastlog.records import TopicPartition, utf8_of
from fastlog.store.internal import CONSUMER_OFFSETS
from fastlog.transactions import Coordinator, TransactionalId
from fastlog.transactions.transactional_id import outcome_of

if TYPE_CHECKING:
    from fastlog.store.directory import Directory

__all__ = ["SOURCES_TOPIC", "Transaction", "source_id", "source_position"]

logger = logging.getLogger("fastlog.transactions")

SOURCES_TOPIC = "fastlog.sources"


class Sender(Protocol):
    """What a transaction asks of its producer."""

    @property
    def send(self) -> Callable[..., Delivery]: ...
    @property
    def send_many(self) -> Callable[..., BatchDelivery]: ...
    def begin_transactional(self) -> None: ...
    def drain_transaction(self) -> None: ...
    def discard_transaction(self) -> None: ...
    def end_transactional(self) -> None: ...


class Enlisted(Protocol):
    """What a transaction asks of its consumer."""

    @property
    def group(self) -> str | None: ...
    @property
    def membership(self) -> Any: ...
    @property
    def directory(self) -> Directory: ...
    def enlist(self) -> None: ...
    def epochs(self) -> Mapping[TopicPartition, Any]: ...
    def offsets_in_hand(self) -> dict[TopicPartition, OffsetAndMetadata]: ...
    def note_committed(self, offsets: Mapping[TopicPartition, OffsetAndMetadata]) -> None: ...
    def rewind(self) -> None: ...


def source_id(source: str) -> str:
    """The transactional id of whoever ingests a source: two importers of one source fence each other.

    Raises ConfigError for what cannot be its name.
    """
    if not utf8_of(source):
        raise ConfigError(f"source={source!r}: expected a str of at least one character that has a UTF-8 form")
    return f"fastlog-source-{source}"


class Transaction:
    """Made by ``producer.transaction()``; used as a context manager: the end of the block commits, an exception aborts.

    What is sent becomes visible to ``read_committed`` readers with the commit, partition by partition, and survives
    power loss from then on (at the level ``"os"``: a killed process only). One thread at a time.

    Attributes:
        outcome: None while open; then ``"committed"``, ``"aborted"``, or ``"unknown"``: ``commit`` may be repeated
        then.
    """

    def __init__(
        self,
        producer: Sender,
        transactional: TransactionalId,
        consumer: Enlisted | None = None,
        source: str | None = None,
    ) -> None:
        if consumer is not None and not hasattr(consumer, "enlist"):
            raise ConfigError(f"consumer={consumer!r}: expected a consumer of the same store, or None")
        self.outcome: str | None = None
        self._producer = producer
        self._transactional = transactional
        self._consumer = consumer
        self._source = source
        self._position: bytes | None = None
        self._offsets: dict[TopicPartition, OffsetAndMetadata] = {}  # written for the consumer's group
        self._began = False

    @property
    def is_open(self) -> bool:
        """Whether records can be sent."""
        return self._began and self.outcome is None

    def __enter__(self) -> Transaction:
        """Begin. The consumer is enlisted: from its first transaction on, its automatic commits are off for good.

        Raises ProducerFencedError when another instance of the producer was opened, TransactionError when a transaction
        is open.
        """
        if self._began:
            raise TransactionError("a transaction is used once: ask the producer for another one")
        if self._consumer is not None:
            self._consumer.enlist()
        self._transactional.begin()
        try:
            self._producer.begin_transactional()
        except BaseException:
            self._transactional.abort()
            raise
        self._began = True
        return self

    def __exit__(
        self,
        exception_type: type[BaseException] | None,
        exception: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self.outcome is not None:
            return
        if exception is None:
            self.commit()
            return
        try:
            self.abort()
        except Error as error:
            # what is on its way to the caller says more; nothing was decided, so the time-out aborts
            logger.warning(
                "the transaction of %s could not be aborted: %s", self._transactional.transactional_id, error
            )

    # --- what belongs to it -------------------------------------------------------------------------------------------

    def send(
        self,
        topic: str,
        value: Any,
        key: Any = None,
        headers: Any = None,
        timestamp: int | datetime | None = None,
        partition: int | None = None,
    ) -> Delivery:
        """``Producer.send``, as part of the transaction. A delivery that fails lets the commit fail."""
        self._require_open()
        return self._producer.send(topic, value, key, headers, timestamp, partition)

    def send_many(
        self,
        topic: str,
        values: Any,
        keys: Any = None,
        timestamps: Any = None,
        headers: Any = None,
        partition: int | None = None,
    ) -> BatchDelivery:
        """``Producer.send_many``, as part of the transaction."""
        self._require_open()
        return self._producer.send_many(topic, values, keys, timestamps, headers, partition)

    def commit_offsets(self, offsets: Mapping[TopicPartition, OffsetAndMetadata | int] | None = None) -> None:
        """Let the consumer's offsets move with this transaction.

        Args:
            offsets: the next offset of each partition; None: behind everything that the consumer handed out, what is in
                hand included.

        Raises:
            TransactionError: the transaction has no consumer: pass it to ``producer.transaction(consumer)``; or the
                consumer belongs to another store.
            CommitFailedError: the consumer has lost one of the partitions.
        """
        self._require_open()
        consumer = self._consumer
        if consumer is None:
            raise TransactionError(
                "the transaction has no consumer to commit offsets of: begin it with producer.transaction(consumer)",
                self._transactional.producer_id,
            )
        membership, group = consumer.membership, consumer.group
        if membership is None or group is None:
            raise TransactionError("the consumer has no group: open it with group=…", self._transactional.producer_id)
        self._require_same_store(consumer)
        epochs = consumer.epochs()  # before the positions: of a partition that is taken anew in between none counts
        wanted = consumer.offsets_in_hand() if offsets is None else checked_offsets(offsets)
        if not wanted:
            return
        store = OffsetStore(self._transactional.directory)
        conditions = membership.conditions(wanted, epochs)
        keys, values = store.encode_commit(group, wanted, {one.topic: epochs[one].topic_id for one in wanted})
        partition = TopicPartition(CONSUMER_OFFSETS, store.partition_of(group))
        while True:
            try:
                self._transactional.append_records(partition, keys, values, conditions)
                self._offsets.update(wanted)
                return
            except FencedError as error:
                if membership.is_page_replaced(conditions):
                    conditions = membership.conditions(wanted, epochs)
                    continue
                raise CommitFailedError(
                    f"the consumer is no owner any more of a partition that it read from ({error}): the transaction "
                    f"has to be aborted; the records come again, to the new owner"
                ) from error

    def commit_source(self, position: bytes) -> None:
        """Remember how far the producer's source was read, with this transaction; ``producer.source_position()`` reads
        it.

        ``position``: any bytes; the last call of a transaction counts. Raises TransactionError when the producer has no
        source, InvalidRecordError for what is no bytes.
        """
        self._require_open()
        if self._source is None:
            raise TransactionError(
                "the producer has no source to commit a position of: open it with producer(source=…)",
                self._transactional.producer_id,
            )
        if not isinstance(position, (bytes, bytearray, memoryview)):
            raise InvalidRecordError(f"the position of a source is bytes, found {position!r}: encode it first")
        self._position = bytes(position)

    # --- the end ------------------------------------------------------------------------------------------------------

    def commit(self) -> None:
        """Deliver what was sent, and make it visible. The end of the block does it, unless it was done before.

        Raises:
            Error: the first delivery that failed, or what hindered the commit, with ``.outcome``: ``"aborted"``; or
                ``"unknown"``: then ``commit`` may be repeated, and finds out.
            TransactionError: the transaction has ended.
        """
        if not self._began or self.outcome not in (None, "unknown"):
            raise TransactionError(f"there is nothing to commit: {self._told()}", self._transactional.producer_id)
        try:
            if self.outcome is None:
                self._append_position()
                self._producer.drain_transaction()
            self._transactional.commit()
        except Error as error:
            outcome = getattr(error, "outcome", None)
            if outcome == "unknown":
                self.outcome = outcome
                self._producer.end_transactional()
                raise
            self._take_back(quietly=True)
            if self.outcome != "committed":
                raise outcome_of(error, self.outcome) from None
        except BaseException:
            # interrupted before anything was decided, or after: taking it back says which
            self._take_back(quietly=True)
            raise
        else:
            self._note_commit()

    def _note_commit(self) -> None:
        self.outcome = "committed"
        self._producer.end_transactional()
        if self._consumer is not None and self._offsets:
            self._consumer.note_committed(self._offsets)

    def _append_position(self) -> None:
        if self._position is None or self._source is None:
            return
        require_sources(self._transactional.directory)
        self._transactional.append_records(TopicPartition(SOURCES_TOPIC, 0), [self._source.encode()], [self._position])
        self._position = None

    def abort(self) -> None:
        """Take back what was sent; an enlisted consumer goes back to what was committed.

        Raises TransactionError when the transaction has ended, StorageError when it could not be written down: the
        time-out aborts then.
        """
        self._require_open()
        self._take_back(quietly=False)

    def _take_back(self, *, quietly: bool) -> None:
        problem: Error | None = None
        try:
            self._producer.discard_transaction()
            if self._transactional.in_transaction:
                self._transactional.abort()
        except Error as error:
            problem = error
        if problem is None and self._transactional.is_committed:
            # the commit was finished when it was interrupted, or by who closed the producer
            self._note_commit()
            if not quietly:
                raise TransactionError(
                    f"{self._transactional.transactional_id}: the transaction is committed: it cannot be taken back",
                    self._transactional.producer_id,
                )
            return
        # of a commit that was unknown before a problem tells only what its outcome says: the producer may be closed
        stays_unknown = self.outcome is not None and problem is not None
        self.outcome = getattr(problem, "outcome", None) or ("unknown" if stays_unknown else "aborted")
        self._producer.end_transactional()
        if self._consumer is not None and self.outcome == "aborted":
            try:
                self._consumer.rewind()
            except Error as error:
                problem = problem or error
        if problem is not None:
            if not quietly:
                raise problem
            logger.warning(
                "the transaction of %s was not taken back: %s", self._transactional.transactional_id, problem
            )

    def _require_same_store(self, consumer: Enlisted) -> None:
        """A group's offsets lie in its own store: a transaction of another one cannot move them."""
        ours, theirs = self._transactional.directory, consumer.directory
        if not ours.is_same_store(theirs):
            raise TransactionError(
                f"the consumer reads the store {theirs.root}, but the producer writes to {ours.root}: one transaction "
                f"is in one store; open both from the same one",
                self._transactional.producer_id,
            )

    def _require_open(self) -> None:
        if not self.is_open:
            raise TransactionError(f"the transaction is not open: {self._told()}", self._transactional.producer_id)

    def _told(self) -> str:
        if not self._began:
            return "use it as a context manager: with producer.transaction() as tx"
        return f"it is {self.outcome or 'open'}; ask the producer for another one"


# --- sources ----------------------------------------------------------------------------------------------------------


def require_sources(directory: Directory) -> None:
    """The compacted topic of positions is there."""
    if SOURCES_TOPIC not in directory.topics():
        directory.create_topic(SOURCES_TOPIC, 1, options={"cleanup.policy": "compact"}, exist_ok=True)


def source_position(transactional: TransactionalId, source: str) -> bytes | None:
    """The last committed position of a source, None when there is none.

    The transactional id is open: so whoever imported before is fenced, and what it had open or decided ends now. Waits
    until the last stable offset has passed the end of the moment of the call; other sources' transactions time out at
    last.
    """
    directory = transactional.directory
    require_sources(directory)
    key = source.encode()
    found: bytes | None = None
    with directory.lease(SOURCES_TOPIC, 0) as lease:
        log = lease.log
        end = log.end_offset
        Coordinator.of(directory).wait_until_stable(TopicPartition(SOURCES_TOPIC, 0), log, end)
        for batch in log.batches():
            for name, value in zip(batch.keys.to_list(), batch.values.to_list(), strict=True):
                if name == key:
                    found = value
    return found
