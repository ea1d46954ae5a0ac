"""``fastlog.aio.open``: a store of topics for asyncio."""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import weakref
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import datetime
from functools import partial
from types import TracebackType
from typing import Any, Self, TypeVar, Unpack, overload

from fastlog.clients.consumer import Callback, Duration
from fastlog.clients.starting import Start
from fastlog.clients.store import ConsumerOptions, open_store
from fastlog.clients.store import Store as SynchronousStore
from fastlog.config import parse_duration_ms
from fastlog.groups.admin import GroupDescription
from fastlog.groups.lag import Lag
from fastlog.groups.offsets import OffsetAndMetadata
from fastlog.records import TopicPartition
from fastlog.reports import MaintenanceReport
from fastlog.store.backup import BackupReport

from .consumer import Consumer
from .ear import Ear
from .producer import Producer
from .topic import Topic
from .workers import Opening, Workers

__all__ = ["Store", "open_aio_store"]

K = TypeVar("K")
V = TypeVar("V")


def open_aio_store(
    path: str | os.PathLike[str],
    *,
    durability: str = "group",
    read_only: bool = False,
    flush_interval: Duration | None = None,
    lock_timeout: Duration | None = None,
) -> Opening[Store]:
    """Open the store in the folder ``path``: ``async with fastlog.aio.open(path) as store``, or ``await`` and close it.

    Arguments and errors as of ``fastlog.open``. The store belongs to the event loop that runs.
    """
    opening = partial(
        open_store,
        path,
        durability=durability,
        read_only=read_only,
        flush_interval=flush_interval,
        lock_timeout=lock_timeout,
    )
    return Opening(partial(Store.make, opening))


class Store:
    """``fastlog.Store`` for asyncio, from ``fastlog.aio.open``: what may wait for the disk is awaited.

    Producers and consumers that were opened here are closed with it. To be used in the event loop that opened it.
    """

    def __init__(self, store: SynchronousStore, workers: Workers) -> None:
        self._store = store
        self._workers = workers
        self._ear = Ear(store.directory, asyncio.get_running_loop())
        # in the order of opening; what the application drops is not kept
        self._opened: weakref.WeakKeyDictionary[Producer | Consumer[Any, Any], None] = weakref.WeakKeyDictionary()
        weakref.finalize(self, let_go, self._ear, workers).atexit = False

    @classmethod
    async def make(cls, opening: Callable[[], SynchronousStore]) -> Store:
        """What ``fastlog.aio.open`` opens."""
        workers = Workers()
        try:
            return cls(await workers.make(opening, SynchronousStore.close), workers)
        except BaseException:
            workers.stop()
            raise

    # --- the store itself --------------------------------------------------------------------------------------------

    @property
    def path(self) -> str:
        """The folder, absolute."""
        return self._store.path

    @property
    def durability(self) -> str:
        """``"group"``, ``"batch"``, ``"interval"`` or ``"os"``."""
        return self._store.durability

    @property
    def read_only(self) -> bool:
        """Whether this handle may change anything."""
        return self._store.read_only

    @property
    def cluster_id(self) -> str:
        """Kafka's id of the store, made with it."""
        return self._store.cluster_id

    @property
    def closed(self) -> bool:
        """Whether the store was closed."""
        return self._store.closed

    @property
    def synchronous(self) -> SynchronousStore:
        """The same open store, for threads and for whatever is synchronous."""
        return self._store

    async def close(self) -> None:
        """Close consumers, producers and partitions. Idempotent. Raises the first error, when all is closed.

        A cancellation is raised when all is closed.
        """
        problems: list[BaseException] = []
        for opened in reversed(list(self._opened)):
            try:
                await opened.close()
            except (Exception, asyncio.CancelledError) as error:
                problems.append(error)
        try:
            await self._workers.run(self._store.close)
        except (Exception, asyncio.CancelledError) as error:
            problems.append(error)
        self._ear.stop()
        self._workers.stop()
        # a cancellation is never swallowed
        problems.sort(key=lambda error: not isinstance(error, asyncio.CancelledError))
        if problems:
            raise problems[0]

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        exception_type: type[BaseException] | None,
        exception: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self.close()

    # --- topics ------------------------------------------------------------------------------------------------------

    async def create_topic(
        self,
        name: str,
        partitions: int = 1,
        *,
        retention: Duration | None = None,
        config: Mapping[str, Any] | None = None,
        exist_ok: bool = False,
    ) -> Topic:
        """Create a topic; see ``fastlog.Store.create_topic``."""
        create = partial(
            self._store.create_topic, name, partitions, retention=retention, config=config, exist_ok=exist_ok
        )
        return Topic(await self._workers.run(create), self._workers)

    async def alter_topic(self, name: str, config: Mapping[str, Any]) -> None:
        """Change options of a topic; None puts one back to its default. Open handles follow, in every process."""
        await self._workers.run(self._store.alter_topic, name, config)

    async def add_partitions(self, name: str, total: int) -> None:
        """Let a topic have ``total`` partitions, more than before; see ``fastlog.Store.add_partitions``."""
        await self._workers.run(self._store.add_partitions, name, total)

    async def delete_topic(self, name: str) -> None:
        """Delete a topic and its records. Whoever reads or writes it gets UnknownTopicError from then on."""
        await self._workers.run(self._store.delete_topic, name)

    async def topics(self, internal: bool = False) -> list[str]:
        """Names of all topics, sorted; fastlog's own internal ones only when asked for."""
        return await self._workers.run(self._store.topics, internal)

    async def topic(self, name: str) -> Topic:
        """A topic. Raises UnknownTopicError, which names the nearest."""
        return Topic(await self._workers.run(self._store.topic, name), self._workers)

    # --- producers and consumers -------------------------------------------------------------------------------------

    def producer(
        self,
        *,
        linger: Duration = 0,
        compression: str | None = None,
        batch_size: int | str = "1MiB",
        buffer_memory: int | str = "32MiB",
        max_block: Duration = "60s",
        delivery_timeout: Duration = "120s",
        transactional_id: str | None = None,
        transaction_timeout: Duration = "60s",
        source: str | None = None,
        key_serializer: Callable[[Any], Any] | None = None,
        value_serializer: Callable[[Any], Any] | None = None,
    ) -> Opening[Producer]:
        """Open a producer: ``async with store.producer() as producer``, or ``await`` it.

        See ``fastlog.Store.producer``.
        """

        opening = partial(
            self._store.producer,
            linger=linger,
            compression=compression,
            batch_size=batch_size,
            buffer_memory=buffer_memory,
            max_block=max_block,
            delivery_timeout=delivery_timeout,
            transactional_id=transactional_id,
            transaction_timeout=transaction_timeout,
            source=source,
            key_serializer=key_serializer,
            value_serializer=value_serializer,
        )

        async def make() -> Producer:
            longest = parse_duration_ms(max_block, "max_block")
            producer = Producer(await self._workers.make(opening, close_quietly), self._workers, longest)
            self._opened[producer] = None
            return producer

        return Opening(make)

    @overload
    def consumer(
        self,
        topics: str | Sequence[str] | re.Pattern[str],
        group: str | None = None,
        start: Start = "latest",
        **options: Unpack[ConsumerOptions],
    ) -> Opening[Consumer[bytes | None, bytes | None]]: ...
    @overload
    def consumer(
        self,
        topics: str | Sequence[str] | re.Pattern[str],
        group: str | None = None,
        start: Start = "latest",
        *,
        value_deserializer: Callable[[bytes], V],
        **options: Unpack[ConsumerOptions],
    ) -> Opening[Consumer[bytes | None, V | None]]: ...
    @overload
    def consumer(
        self,
        topics: str | Sequence[str] | re.Pattern[str],
        group: str | None = None,
        start: Start = "latest",
        *,
        key_deserializer: Callable[[bytes], K],
        **options: Unpack[ConsumerOptions],
    ) -> Opening[Consumer[K | None, bytes | None]]: ...
    @overload
    def consumer(
        self,
        topics: str | Sequence[str] | re.Pattern[str],
        group: str | None = None,
        start: Start = "latest",
        *,
        key_deserializer: Callable[[bytes], K],
        value_deserializer: Callable[[bytes], V],
        **options: Unpack[ConsumerOptions],
    ) -> Opening[Consumer[K | None, V | None]]: ...
    def consumer(
        self,
        topics: str | Sequence[str] | re.Pattern[str],
        group: str | None = None,
        start: Start = "latest",
        *,
        auto_commit: bool = True,
        auto_commit_interval: Duration = "1s",
        isolation: str = "read_committed",
        max_poll_interval: Duration = "5m",
        session_timeout: Duration = "45s",
        instance_id: str | None = None,
        assignor: str = "cooperative-sticky",
        key_deserializer: Callable[[bytes], Any] | None = None,
        value_deserializer: Callable[[bytes], Any] | None = None,
        on_assigned: Callback | None = None,
        on_revoked: Callback | None = None,
        on_lost: Callback | None = None,
        partitions: Iterable[TopicPartition | tuple[str, int] | int] | None = None,
        out_of_range: str = "start",
        fetch_bytes: int | str = "1MiB",
        client_id: str = "",
    ) -> Opening[Consumer[Any, Any]]:
        """Open a consumer: ``async with store.consumer("orders", group="mailer") as consumer``, or ``await`` it.

        See ``fastlog.Store.consumer``. Callbacks run in the event loop, and may be coroutine functions; ``start``, if
        it is a callable, and deserializers are plain functions.
        """

        options = {
            "group": group,
            "start": start,
            "auto_commit": auto_commit,
            "auto_commit_interval": auto_commit_interval,
            "isolation": isolation,
            "max_poll_interval": max_poll_interval,
            "session_timeout": session_timeout,
            "instance_id": instance_id,
            "assignor": assignor,
            "key_deserializer": key_deserializer,
            "value_deserializer": value_deserializer,
            "on_assigned": on_assigned,
            "on_revoked": on_revoked,
            "on_lost": on_lost,
            "partitions": partitions,
            "out_of_range": out_of_range,
            "fetch_bytes": fetch_bytes,
            "client_id": client_id,
        }

        async def make() -> Consumer[Any, Any]:
            consumer = await Consumer.open(self._store.directory, self._ear, self._workers, topics, dict(options))
            self._opened[consumer] = None
            return consumer

        return Opening(make)

    # --- groups ------------------------------------------------------------------------------------------------------

    async def groups(self) -> list[str]:
        """Names of all consumer groups that have members or committed offsets, sorted."""
        return await self._workers.run(self._store.groups)

    async def describe_group(self, group: str) -> GroupDescription:
        """Members of a group, what they own, and what is committed. One that there is not is ``"Dead"``."""
        return await self._workers.run(self._store.describe_group, group)

    async def group_lag(self, group: str, topics: Iterable[str] | None = None) -> dict[TopicPartition, Lag]:
        """How far a group is behind in each partition; see ``fastlog.Store.group_lag``."""
        return await self._workers.run(self._store.group_lag, group, topics)

    async def reset_offsets(
        self,
        group: str,
        topics: Iterable[TopicPartition] | Iterable[str] | None = None,
        *,
        to: str | int | datetime | Mapping[TopicPartition, int],
    ) -> dict[TopicPartition, OffsetAndMetadata]:
        """Let a group without members go on elsewhere; returns where. See ``fastlog.Store.reset_offsets``."""
        return await self._workers.run(partial(self._store.reset_offsets, group, topics, to=to))

    async def delete_group(self, group: str) -> None:
        """Forget what a group has committed. Raises GroupError when it has members."""
        await self._workers.run(self._store.delete_group, group)

    # --- upkeep ------------------------------------------------------------------------------------------------------

    async def maintain(self, topics: Iterable[str] | None = None) -> dict[TopicPartition, MaintenanceReport]:
        """Delete what retention no longer wants, and compact, now; by default in all topics."""
        return await self._workers.run(self._store.maintain, topics)

    async def backup(self, target: str | os.PathLike[str]) -> BackupReport:
        """Copy everything that is in the store now into a new or empty folder. See ``fastlog.Store.backup``."""
        return await self._workers.run(self._store.backup, target)

    def __repr__(self) -> str:
        return f"<aio {self._store!r}>"


def close_quietly(producer: Any) -> None:
    """Of a producer that nobody has sent anything with."""
    with contextlib.suppress(Exception):
        producer.close()


def let_go(ear: Ear, workers: Workers) -> None:
    """Of a store that was not closed: its threads end."""
    ear.stop()
    workers.stop()
