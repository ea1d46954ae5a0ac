"""A transaction for asyncio: ``async with producer.transaction(consumer) as tx``."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from datetime import datetime
from types import TracebackType
from typing import TYPE_CHECKING, Any, TypeVar

from fastlog.clients.transaction import Transaction as SynchronousTransaction
from fastlog.groups.offsets import OffsetAndMetadata
from fastlog.records import TopicPartition

from .workers import Workers

if TYPE_CHECKING:
    from .consumer import Consumer
    from .producer import BatchDelivery, Delivery, Producer

__all__ = ["Transaction"]

T = TypeVar("T")


class Transaction:
    """``fastlog.Transaction`` for asyncio. The end of the block commits; an exception, or a cancellation, aborts.

    What was begun with the log is ended before a cancellation goes on: ``outcome`` then says how it ended.
    """

    def __init__(
        self,
        producer: Producer,
        transaction: SynchronousTransaction,
        consumer: Consumer[Any, Any] | None,
        workers: Workers,
    ) -> None:
        self._producer = producer
        self._transaction = transaction
        self._consumer = consumer
        self._workers = workers

    @property
    def outcome(self) -> str | None:
        """None while open; then ``"committed"``, ``"aborted"``, or ``"unknown"``: ``commit`` may be repeated then."""
        return self._transaction.outcome

    @property
    def is_open(self) -> bool:
        """Whether records can be sent."""
        return self._transaction.is_open

    async def _run(self, work: Callable[..., T], *arguments: Any) -> T:
        """In a thread; not while another one is at work for the consumer."""
        if self._consumer is None:
            return await self._workers.run(work, *arguments)
        return await self._consumer.run_alone(work, *arguments)

    async def __aenter__(self) -> Transaction:
        try:
            await self._run(self._transaction.__enter__)
        except asyncio.CancelledError:
            if self._transaction.is_open:
                await self._run(self._transaction.abort)
            raise
        return self

    async def __aexit__(
        self,
        exception_type: type[BaseException] | None,
        exception: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._transaction.outcome is not None:
            return
        if exception_type is None:
            try:
                await self.commit()
            except asyncio.CancelledError as error:
                if self._transaction.is_open:
                    await self._run(self._transaction.__exit__, type(error), error, error.__traceback__)
                raise
            return
        await self._run(self._transaction.__exit__, exception_type, exception, traceback)

    async def send(
        self,
        topic: str,
        value: Any,
        key: Any = None,
        headers: Any = None,
        timestamp: int | datetime | None = None,
        partition: int | None = None,
    ) -> Delivery:
        """``Producer.send``, as part of the transaction. A delivery that fails lets the commit fail."""
        self._transaction._require_open()
        return await self._producer.send(topic, value, key, headers, timestamp, partition)

    async def send_many(
        self,
        topic: str,
        values: Any,
        keys: Any = None,
        timestamps: Any = None,
        headers: Any = None,
        partition: int | None = None,
    ) -> BatchDelivery:
        """``Producer.send_many``, as part of the transaction."""
        self._transaction._require_open()
        return await self._producer.send_many(topic, values, keys, timestamps, headers, partition)

    async def commit_offsets(self, offsets: Mapping[TopicPartition, OffsetAndMetadata | int] | None = None) -> None:
        """Let the consumer's offsets move with this transaction; see ``fastlog.Transaction.commit_offsets``."""
        await self._run(self._transaction.commit_offsets, offsets)

    async def commit_source(self, position: bytes) -> None:
        """Remember how far the producer's source was read, with this transaction."""
        self._transaction.commit_source(position)

    async def commit(self) -> None:
        """Deliver what was sent, and make it visible. The end of the block does it, unless it was done before.

        Cancelled while records are being delivered, nothing is decided yet, and the end of the block aborts. Errors as
        of ``fastlog.Transaction.commit``.
        """
        if self._transaction.is_open:
            await self._producer.sent()
        await self._run(self._transaction.commit)

    async def abort(self) -> None:
        """Take back what was sent; an enlisted consumer goes back to what was committed."""
        await self._run(self._transaction.abort)

    def __repr__(self) -> str:
        return f"<aio {self._transaction!r}>"
