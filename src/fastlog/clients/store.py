"""``fastlog.open``: the face of a store of topics."""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import datetime
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self, TypedDict, TypeVar, Unpack, overload

from fastlog.errors import Error
from fastlog.groups.admin import GroupDescription, delete_group, describe, list_groups, reset_offsets
from fastlog.groups.lag import Lag, group_lag
from fastlog.groups.offsets import OffsetAndMetadata, OffsetStore
from fastlog.records import TopicPartition
from fastlog.reports import MaintenanceReport
from fastlog.store.backup import BackupReport
from fastlog.store.directory import Directory
from fastlog.store.options import checked
from fastlog.transactions import Coordinator

from .consumer import Callback, Consumer, Duration
from .starting import Start
from .topic import Topic

if TYPE_CHECKING:
    from .producer import Producer

__all__ = ["ConsumerOptions", "Store", "open_store"]

logger = logging.getLogger("fastlog.store")

K = TypeVar("K")
V = TypeVar("V")


class ConsumerOptions(TypedDict, total=False):
    """Options of ``Store.consumer`` that do not shape its type."""

    auto_commit: bool
    auto_commit_interval: Duration
    isolation: str
    max_poll_interval: Duration
    session_timeout: Duration
    instance_id: str | None
    assignor: str
    on_assigned: Callback | None
    on_revoked: Callback | None
    on_lost: Callback | None
    partitions: Iterable[TopicPartition | tuple[str, int] | int] | None
    out_of_range: str
    fetch_bytes: int | str
    client_id: str


def open_store(
    path: str | os.PathLike[str],
    *,
    durability: str = "group",
    read_only: bool = False,
    flush_interval: Duration | None = None,
    lock_timeout: Duration | None = None,
) -> Store:
    """Open the store in the folder ``path``; a writer creates it when it is not there.

    Args:
        path: the folder. Any number of processes may have it open at once, there is no server.
        durability: when writing counts: ``"group"`` (default), after an fdatasync that all waiting writers share;
            ``"batch"``, after one of its own; ``"interval"``, when the page cache has it, and a sync follows within
            ``flush_interval``; ``"os"``, when the page cache has it. The first two survive power loss, all survive the
            death of the process.
        read_only: change nothing at all. Beside writers it sees what they write.
        flush_interval: with ``durability="interval"``; default one second.
        lock_timeout: how long to wait for locks that other processes hold; default 30 seconds.

    Raises:
        LockedError: a Kafka broker uses the folder, or a lock was not to be had in time.
        UnsupportedFormatError: the folder holds something else, or a newer format; nothing was touched.
        NotSupportedError: the file system is not known to hold locks between processes.
        ConfigError, CorruptLogError, StorageError: an option is wrong; a file is damaged; the operating system refused.
    """
    return Store(
        Directory.open(
            path,
            durability=durability,
            read_only=read_only,
            flush_interval=flush_interval,
            lock_timeout=lock_timeout,
        )
    )


class Store:
    """Topics in a folder, opened with ``fastlog.open``: a context manager, or call ``close``. Thread-safe.

    Producers and consumers that were opened here are closed with it.
    """

    def __init__(self, directory: Directory) -> None:
        self._directory = directory
        if not directory.read_only:
            # what owners left open when they died would hide what comes behind it
            Coordinator.of(directory).attach()

    # --- the store itself --------------------------------------------------------------------------------------------

    @property
    def path(self) -> str:
        """The folder, absolute."""
        return self._directory.root

    @property
    def durability(self) -> str:
        """``"group"``, ``"batch"``, ``"interval"`` or ``"os"``."""
        return self._directory.durability

    @property
    def read_only(self) -> bool:
        """Whether this handle may change anything."""
        return self._directory.read_only

    @property
    def cluster_id(self) -> str:
        """Kafka's id of the store, made with it."""
        return self._directory.cluster_id

    @property
    def closed(self) -> bool:
        """Whether the store was closed."""
        return self._directory.closed

    @property
    def directory(self) -> Directory:
        """What the store is made of, for what is built on it."""
        return self._directory

    def close(self) -> None:
        """Close consumers, producers and partitions. Idempotent. Raises the first error, when all is closed."""
        self._directory.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        exception_type: type[BaseException] | None,
        exception: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    # --- topics ------------------------------------------------------------------------------------------------------

    def create_topic(
        self,
        name: str,
        partitions: int = 1,
        *,
        retention: Duration | None = None,
        config: Mapping[str, Any] | None = None,
        exist_ok: bool = False,
    ) -> Topic:
        """Create a topic; its partitions cost nothing until they are used.

        Args:
            name: 1 to 249 letters and digits of ASCII, ``.``, ``_`` and ``-``, as Kafka has it.
            partitions: how many. More can be added later, none taken away.
            retention: how long records are kept at least, such as ``"7d"``; None: for ever.
            config: options by Kafka's names (``{"cleanup.policy": "compact"}``) or with underscores.
            exist_ok: take a topic of that name as it is, whatever its partitions and options.

        Raises:
            TopicExistsError, InvalidTopicError: there is one; Kafka would not take the name.
            ConfigError: an option is unknown (the nearest is named) or out of range.
        """
        options = {} if config is None else dict(checked(config))
        if retention is not None:
            options["retention"] = retention
        self._directory.create_topic(name, partitions, options=options, exist_ok=exist_ok)
        return Topic(self._directory, name)

    def alter_topic(self, name: str, config: Mapping[str, Any]) -> None:
        """Change options of a topic; None puts one back to its default. Open handles follow, in every process.

        Raises ConfigError, UnknownTopicError.
        """
        self._directory.alter_topic(name, config)

    def add_partitions(self, name: str, total: int) -> None:
        """Let a topic have ``total`` partitions, more than before. The order of a key's records ends there, as in
        Kafka: it may go to another partition from then on. Raises InvalidTopicError, UnknownTopicError."""
        self._directory.add_partitions(name, total)

    def delete_topic(self, name: str) -> None:
        """Delete a topic and its records. Whoever reads or writes it gets UnknownTopicError from then on.

        What groups have committed for it is taken back; if that fails it is logged, and those offsets count for nothing
        all the same.
        """
        self._directory.delete_topic(name)
        try:
            OffsetStore(self._directory).forget_topic(name)
        except Error as error:
            logger.warning("offsets of the deleted topic %r were not taken back: %s", name, error)

    def topics(self, internal: bool = False) -> list[str]:
        """Names of all topics, sorted; fastlog's own internal ones only when asked for."""
        return self._directory.topics(internal=internal)

    def topic(self, name: str) -> Topic:
        """A topic. Raises UnknownTopicError, which names the nearest."""
        return Topic(self._directory, name)

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
    ) -> Producer:
        """Open a producer, idempotent by itself.

        Args:
            linger: how long records wait for company; 0 appends as soon as the last append is done.
            compression: ``"gzip"``, ``"snappy"``, ``"lz4"``, ``"zstd"``, or None.
            batch_size: bytes of a batch at which the next one begins.
            buffer_memory: bytes that may wait; when it is full, ``send`` blocks.
            max_block: how long ``send`` blocks at most, before a BufferFullError.
            delivery_timeout: how long a locked log, or a want of open files or memory, is tried again, before the
                delivery fails.
            transactional_id: a name for its transactions; opening it again fences whoever had it before, and aborts
                what that one left open.
            transaction_timeout: after how long an open transaction is aborted.
            source: what is imported, exactly once: its position is committed with the records.
            key_serializer, value_serializer: called with each key and value; what they return is stored.

        Raises ConfigError for an option out of range, NotSupportedError for a read-only store.
        """
        from .producer import Producer

        return Producer(
            self._directory,
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

    @overload
    def consumer(
        self,
        topics: str | Sequence[str] | re.Pattern[str],
        group: str | None = None,
        start: Start = "latest",
        **options: Unpack[ConsumerOptions],
    ) -> Consumer[bytes | None, bytes | None]: ...
    @overload
    def consumer(
        self,
        topics: str | Sequence[str] | re.Pattern[str],
        group: str | None = None,
        start: Start = "latest",
        *,
        value_deserializer: Callable[[bytes], V],
        **options: Unpack[ConsumerOptions],
    ) -> Consumer[bytes | None, V | None]: ...
    @overload
    def consumer(
        self,
        topics: str | Sequence[str] | re.Pattern[str],
        group: str | None = None,
        start: Start = "latest",
        *,
        key_deserializer: Callable[[bytes], K],
        **options: Unpack[ConsumerOptions],
    ) -> Consumer[K | None, bytes | None]: ...
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
    ) -> Consumer[K | None, V | None]: ...
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
    ) -> Consumer[Any, Any]:
        """Open a consumer: alone, or as a member of a group.

        Args:
            topics: a name, names, or a compiled pattern that has to match whole names, and follows new topics.
            group: members of a group share the partitions, and what they finished is remembered for it. None: all
                partitions, or the given ones, and nothing is remembered.
            start: where nothing was committed: ``"latest"``, ``"earliest"``, an aware datetime, a span before now such
                as ``"-10m"``, or a callable that is given a TopicPartition and returns an offset or any of these.
            auto_commit: commit what is finished every ``auto_commit_interval``, when partitions go to another member,
                and at the end: everything is handled at least once. False: only ``commit()`` does.
            isolation: ``"read_committed"`` hands out records of transactions once they are committed;
                ``"read_uncommitted"`` everything.
            max_poll_interval: a member that asks for nothing for so long loses its partitions to others.
            session_timeout: how long the partitions of an ``instance_id`` that is gone are kept for it.
            instance_id: a name of this member that outlives it: when it comes back in time, nothing moves.
            assignor: how the group shares out partitions: ``"cooperative-sticky"``, ``"range"`` or ``"round-robin"``.
            key_deserializer, value_deserializer: callables that are given bytes; null stays None.
            on_assigned, on_revoked, on_lost: called with a list of TopicPartition, inside of ``poll`` and iteration:
                after partitions came; before they go, when commits still count; after they are gone, when no commit
                counts.
            partitions: without a group, only these: TopicPartitions, or numbers with a single topic.
            out_of_range: what to do when the offset to go on at is not in the log any more: ``"start"`` (default)
                begins where ``start`` says when retention took it away, and raises when it lies beyond the end;
                ``"earliest"``, ``"latest"``, or ``"raise"``. Any reset is logged.
            fetch_bytes: how much is read at a time.
            client_id: a name for descriptions of the group.

        Raises:
            UnknownTopicError: a topic or partition is not there.
            GroupError: the name of the group is none, or it is used with another assignor.
            ConfigError: an option is unknown or out of range, or options exclude each other.
        """
        return Consumer(
            self._directory,
            topics,
            group=group,
            start=start,
            auto_commit=auto_commit,
            auto_commit_interval=auto_commit_interval,
            isolation=isolation,
            max_poll_interval=max_poll_interval,
            session_timeout=session_timeout,
            instance_id=instance_id,
            assignor=assignor,
            key_deserializer=key_deserializer,
            value_deserializer=value_deserializer,
            on_assigned=on_assigned,
            on_revoked=on_revoked,
            on_lost=on_lost,
            partitions=partitions,
            out_of_range=out_of_range,
            fetch_bytes=fetch_bytes,
            client_id=client_id,
        )

    # --- groups ------------------------------------------------------------------------------------------------------

    def groups(self) -> list[str]:
        """Names of all consumer groups that have members or committed offsets, sorted."""
        return list_groups(self._directory)

    def describe_group(self, group: str) -> GroupDescription:
        """Members of a group, what they own, and what is committed. One that there is not is ``"Dead"``."""
        return describe(self._directory, group)

    def group_lag(self, group: str, topics: Iterable[str] | None = None) -> dict[TopicPartition, Lag]:
        """How far a group is behind in each partition that it has committed an offset for, or in all partitions of
        ``topics``, where it counts from the start if it has none. Raises UnknownTopicError."""
        return group_lag(self._directory, group, topics)

    def reset_offsets(
        self,
        group: str,
        topics: Iterable[TopicPartition] | Iterable[str] | None = None,
        *,
        to: str | int | datetime | Mapping[TopicPartition, int],
    ) -> dict[TopicPartition, OffsetAndMetadata]:
        """Let a group without members go on elsewhere; returns where.

        Args:
            group: its name.
            topics: names of topics, or partitions; None: all that it has an offset for.
            to: ``"earliest"``, ``"latest"``, an offset, an aware datetime, a span before now such as ``"-10m"``, or
                offsets by partition, which then are all.

        Raises GroupError when it has members, or when there is no such group and ``topics`` names nothing either;
        UnknownTopicError, ConfigError.
        """
        return reset_offsets(self._directory, group, topics, to=to)

    def delete_group(self, group: str) -> None:
        """Forget what a group has committed. Raises GroupError when it has members, or there is no such group."""
        delete_group(self._directory, group)

    # --- upkeep ------------------------------------------------------------------------------------------------------

    def maintain(self, topics: Iterable[str] | None = None) -> dict[TopicPartition, MaintenanceReport]:
        """Delete what retention no longer wants, and compact, now; by default in all topics. One process at a time does
        it; it also happens by itself every few minutes. Raises StorageError."""
        return self._directory.maintain(topics)

    def backup(self, target: str | os.PathLike[str]) -> BackupReport:
        """Copy everything that is in the store now into a new or empty folder, which opens as a store of its own.

        Others go on appending meanwhile: each partition ends at one offset, and no transaction is in the copy by
        halves. Closed segments are hard links where the file system allows it, which share their bytes with the
        original: a copy on another disk survives the loss of this one. Durable when this returns; when it fails,
        nothing is left. With ``read_only=True`` too.

        Raises UnsupportedFormatError for a target that holds something, StorageError, StorageFullError.
        """
        return self._directory.backup(target)

    def __repr__(self) -> str:
        return f"<Store {self.path!r}{', closed' if self.closed else ''}>"
