"""A topic for asyncio."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable, Iterator, Mapping
from datetime import datetime
from typing import TYPE_CHECKING, Any

from fastlog._core import PartitionLog, RecordBatch
from fastlog.clients.topic import Topic as SynchronousTopic
from fastlog.clients.topic import TopicRead as SynchronousTopicRead

from .workers import Workers

if TYPE_CHECKING:
    from fastlog.store.directory import TopicOwner

__all__ = ["Topic", "TopicRead"]


class Topic:
    """``fastlog.Topic`` for asyncio, from ``await store.topic(name)``.

    Attributes:
        name: the topic's name.
    """

    def __init__(self, topic: SynchronousTopic, workers: Workers) -> None:
        self._topic = topic
        self._workers = workers
        self.name = topic.name

    @property
    def partitions(self) -> int:
        """How many partitions it has."""
        return self._topic.partitions

    @property
    def topic_id(self) -> str:
        """Kafka's id of this life of the topic: another one after it was deleted and created again."""
        return self._topic.topic_id

    @property
    def config(self) -> Mapping[str, Any]:
        """The options that it was given, by Kafka's names."""
        return self._topic.config

    @property
    def owner(self) -> TopicOwner | None:
        """Of a retry or dead-letter topic: the topic and the group that it is kept for, and its kind. Else None."""
        return self._topic.owner

    async def partition(self, number: int) -> PartitionLog:
        """One partition, open until the store is closed. Its own methods are synchronous, and may wait for the disk."""
        return await self._workers.run(self._topic.partition, number)

    def __len__(self) -> int:
        """How many partitions it has."""
        return len(self._topic)

    def read(
        self,
        start: int | str | datetime | None = None,
        stop: int | str | datetime | None = None,
        columns: Iterable[str] | None = None,
        *,
        partitions: Iterable[int] | None = None,
        isolation: str = "read_committed",
    ) -> TopicRead:
        """Records as a table, read when somebody asks for it; see ``fastlog.Topic.read``. ``async for`` gives batches.

        As an Arrow stream it is synchronous: hand it to ``asyncio.to_thread``.
        """
        return TopicRead(
            self._topic.read(start, stop, columns, partitions=partitions, isolation=isolation), self._workers
        )

    def __repr__(self) -> str:
        return f"<aio {self._topic!r}>"


class TopicRead:
    """Records of a topic, from ``Topic.read``: an Arrow stream, and an asynchronous iterable of RecordBatch."""

    def __init__(self, read: SynchronousTopicRead, workers: Workers) -> None:
        self._read = read
        self._workers = workers

    @property
    def columns(self) -> tuple[str, ...]:
        """Names of the columns, in order."""
        return self._read.columns

    async def __aiter__(self) -> AsyncIterator[RecordBatch]:
        batches: Iterator[RecordBatch] = iter(self._read)
        while (batch := await self._workers.run(next, batches, None)) is not None:
            yield batch

    def __arrow_c_schema__(self) -> object:
        """The Arrow schema, as a PyCapsule."""
        return self._read.__arrow_c_schema__()

    def __arrow_c_stream__(self, requested_schema: object | None = None) -> object:
        """A fresh Arrow stream, as a PyCapsule; values are not copied unless another type is requested."""
        return self._read.__arrow_c_stream__(requested_schema)

    def __repr__(self) -> str:
        return f"<aio {self._read!r}>"
