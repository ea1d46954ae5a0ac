"""Producers: records in, deliveries out. The compiled half is ``_native/accumulator``; this one reads options."""

from __future__ import annotations

import atexit
import logging
import sys
import weakref
from collections.abc import Callable
from datetime import timedelta
from typing import Any, Final

from fastlog._core import Accumulator, BatchDelivery, Delivery, murmur2, partition_for_key
from fastlog.clients.transaction import Transaction, source_id, source_position
from fastlog.config import CODECS, KIB, MIB, LogConfig, ResolvedConfig, parse_duration_ms, parse_size
from fastlog.errors import ConfigError, Error, NotSupportedError, TransactionError
from fastlog.transactions import TransactionalId

__all__ = ["BatchDelivery", "Delivery", "Producer", "murmur2", "partition_for_key"]

logger = logging.getLogger("fastlog.producer")

DEFAULT_BATCH_SIZE: Final = MIB
DEFAULT_BUFFER_MEMORY: Final = 32 * MIB
DEFAULT_MAX_BLOCK: Final = "60s"
DEFAULT_DELIVERY_TIMEOUT: Final = "120s"
DEFAULT_TRANSACTION_TIMEOUT: Final = "60s"
LEAST_BUFFER_MEMORY: Final = 4 * KIB


class Producer(Accumulator):
    """Sends records to the topics of a store. Every method may be called from any thread.

    ``send`` puts a record into a buffer and returns its ``Delivery``; a thread of the producer appends what is in
    there and brings it to the store's durability level. What arrives while it is busy makes the next batches, so they
    grow with the load. Use it as a context manager, or call ``close``; else the end of the interpreter delivers what
    was sent.

    Producers are idempotent: each record is stored once, in the order of sending per partition, also when an append
    has to be repeated.

    Args:
        directory: the opened store (``store.producer(...)`` fills it in).
        linger: how long records wait for company before they are appended; 0 (default) appends as soon as the last
            append is done.
        compression: ``"gzip"``, ``"snappy"``, ``"lz4"``, ``"zstd"``, or None (default).
        batch_size: bytes of a batch, before compression, at which the next one begins: int or ``"64KiB"``. Default 1
            MiB; ``max.message.bytes`` of the topic is a limit in any case.
        buffer_memory: bytes that may wait to be appended. Default 32 MiB. When it is full, ``send`` blocks.
        max_block: how long ``send`` blocks at most, before a BufferFullError. Default 60 seconds.
        delivery_timeout: how long a locked log, or a want of open files or memory, is tried again, before the delivery
            fails. Default 120 seconds.
        transactional_id: a name for this producer's transactions. Opening it again fences whoever had it before
            (ProducerFencedError there), and ends what was left open.
        transaction_timeout: after how long an open transaction is aborted. Default 60 seconds.
        source: name of what is imported, once and exactly: the position in it is committed with the records. Sets the
            transactional id.
        transactional: what ``transactional_id`` opens, when it is open already.
        key_serializer, value_serializer: called with each key (but None) and value; what they return is stored.

    Raises ConfigError for an option out of range, NotSupportedError for a read-only store.
    """

    def __init__(
        self,
        directory: Any,
        *,
        linger: float | str | timedelta = 0,
        compression: str | None = None,
        batch_size: int | str = DEFAULT_BATCH_SIZE,
        buffer_memory: int | str = DEFAULT_BUFFER_MEMORY,
        max_block: float | str | timedelta = DEFAULT_MAX_BLOCK,
        delivery_timeout: float | str | timedelta = DEFAULT_DELIVERY_TIMEOUT,
        transactional_id: str | None = None,
        transaction_timeout: float | str | timedelta = DEFAULT_TRANSACTION_TIMEOUT,
        source: str | None = None,
        transactional: Any = None,
        key_serializer: Callable[[Any], Any] | None = None,
        value_serializer: Callable[[Any], Any] | None = None,
    ) -> None:
        if directory.read_only:
            raise NotSupportedError("the store was opened with read_only=True: open it without to send records")
        if compression is not None and compression not in CODECS:
            raise ConfigError(f"compression={compression!r}: expected one of {', '.join(map(repr, CODECS))}, or None")
        if source is not None:
            if transactional_id is not None:
                raise ConfigError(
                    f"transactional_id={transactional_id!r} with source={source!r}: the source sets the id; "
                    f"leave one of them out"
                )
            transactional_id = source_id(source)
        self.source = source
        self._transactional = transactional
        self._directory = directory
        super().__init__(
            DirectoryCatalog(directory),
            linger_ms=_duration(linger, "linger"),
            codec=0 if compression is None else CODECS.index(compression),
            batch_size=_size(batch_size, "batch_size", 1),
            buffer_memory=_size(buffer_memory, "buffer_memory", LEAST_BUFFER_MEMORY),
            max_block_ms=_duration(max_block, "max_block"),
            delivery_timeout_ms=_duration(delivery_timeout, "delivery_timeout"),
            key_serializer=key_serializer,
            value_serializer=value_serializer,
        )
        _deliver_at_exit(self)
        self._closer = _closer_of(weakref.ref(self))
        directory.add_closer(self._closer)
        weakref.finalize(self, directory.remove_closer, self._closer).atexit = False
        if transactional_id is not None:
            try:
                self._transactional = TransactionalId(
                    directory, transactional_id, _duration(transaction_timeout, "transaction_timeout")
                )
            except BaseException:
                self.close()
                raise
        if self._transactional is not None:
            self.set_transactional(self._transactional)

    @property
    def transactional_id(self) -> str | None:
        """The name of this producer's transactions, None when it has none."""
        return None if self._transactional is None else self._transactional.transactional_id

    def transaction(self, consumer: Any = None) -> Transaction:
        """A transaction, to be used as a context manager: the end of the block commits, an exception aborts.

        With a consumer its offsets can move with the transaction; see ``Transaction``. One at a time.

        Raises TransactionError for a producer without a ``transactional_id`` or ``source``.
        """
        return Transaction(self, self._require_transactional(), consumer, self.source)

    def source_position(self) -> bytes | None:
        """The position that the last committed transaction of this source has left; None when there is none.

        Whoever imported before is fenced by then. Raises TransactionError for a producer without a ``source``.
        """
        if self.source is None:
            raise TransactionError("the producer has no source: open it with producer(source=...)")
        return source_position(self._require_transactional(), self.source)

    def _require_transactional(self) -> TransactionalId:
        if self._transactional is None:
            raise TransactionError("the producer has no transactions: open it with producer(transactional_id=...)")
        transactional: TransactionalId = self._transactional
        return transactional

    def close(self, timeout: float | str | timedelta | None = None) -> None:
        """Deliver what was sent, then let go of everything. Idempotent; any thread may call it; blocked sends end.

        Args:
            timeout: how long to wait; what is not delivered by then fails with ClosedError, but for what is being
                appended at that moment, which is decided a little later. None = until everything is decided, which
                takes at most ``delivery_timeout``.

        Raises the first failure that nobody has looked at, once. In a forked child it only lets go of the handle.
        """
        try:
            super().close(timeout)
        except Error:
            self._let_go()
            raise
        # Ctrl-C ends the waiting, not the delivery: the end of the store or the process waits again
        self._let_go()

    def _let_go(self) -> None:
        _open.discard(self)
        self._directory.remove_closer(self._closer)
        if self._transactional is not None:
            self._transactional.close()

    def __repr__(self) -> str:
        counts = self.counts()
        state = "closed" if self.closed else f"{self.buffered_bytes} bytes buffered"
        return f"<Producer: {counts['records']} records sent, {state}>"


class DirectoryCatalog:
    """What the accumulator asks of a store: what topics there are, and open partitions."""

    def __init__(self, directory: Any) -> None:
        self._directory = directory

    def version(self) -> int:
        """Changes when any process creates, changes or deletes a topic."""
        version: int = self._directory.topics_version
        return version

    def describe(self, topic: str) -> tuple[int, ResolvedConfig, object]:
        """Number of partitions, options, identity of a topic. Raises UnknownTopicError."""
        info = self._directory.topic(topic)
        if info.internal:
            raise NotSupportedError(f"{topic} is an internal topic: only fastlog itself writes to it")
        return info.partitions, LogConfig.from_options(info.options).resolve(), info.topic_id

    def lease(self, topic: str, partition: int) -> Any:
        """An open partition: ``.log``, and ``.release()``."""
        return self._directory.lease(topic, partition)


def _duration(value: float | str | timedelta, name: str) -> int:
    milliseconds = parse_duration_ms(value, name)
    if milliseconds < 0:
        raise ConfigError(f"{name}={value!r}: expected no less than 0")
    return milliseconds


def _size(value: int | str, name: str, least: int) -> int:
    size = parse_size(value, name)
    if size < least:
        raise ConfigError(f"{name}={value!r}: expected at least {least} bytes")
    return size


# --- the end of the interpreter ---------------------------------------------------------------------------------------

_open: weakref.WeakSet[Producer] = weakref.WeakSet()
_watched_process: list[Any] = [None]


def _closer_of(reference: weakref.ref[Producer]) -> Callable[[], None]:
    """What the store calls when it is closed; it keeps no producer alive."""

    def close() -> None:
        producer = reference()
        if producer is not None:
            producer.close()

    return close


def _deliver_at_exit(producer: Producer) -> None:
    """Note a producer that has to deliver before the process ends.

    ``atexit`` comes after threads of the application have ended. Workers of ``multiprocessing`` end without it, but run
    its finalizers; these have to be registered in the worker itself.
    """
    _open.add(producer)
    processes = sys.modules.get("multiprocessing.process")
    parent = processes.parent_process() if processes is not None else None
    if parent is not None and _watched_process[0] is not processes.current_process():  # type: ignore[union-attr]
        from multiprocessing.util import Finalize

        _watched_process[0] = processes.current_process()  # type: ignore[union-attr]
        Finalize(None, deliver_all, exitpriority=0)


def deliver_all() -> None:
    """Close every producer of this process: deliver what was sent."""
    for producer in list(_open):
        try:
            producer.close()
        except Error as error:
            logger.warning("records were not delivered before the process ended: %s", error)


atexit.register(deliver_all)
