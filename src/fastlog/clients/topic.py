"""A topic as applications see it: its partitions one by one, and its records as a table."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from datetime import datetime
from typing import TYPE_CHECKING, Any, Final

from fastlog._core import PartitionLog, RecordBatch, arrow_schema, arrow_stream
from fastlog.errors import ConfigError, UnknownTopicError
from fastlog.records import list_of
from fastlog.store.places import aware, offset_of, readable_end, time_before_now

if TYPE_CHECKING:
    from fastlog.store.directory import Directory, TopicOwner

__all__ = ["Topic", "TopicRead"]

COLUMNS: Final = ("partition", "offset", "timestamp", "key", "value", "headers")
READ_BYTES: Final = 1 << 20


class Topic:
    """One topic of a store, from ``Store.topic``. Thread-safe; shows what is so now, whoever changed it.

    Attributes:
        name: the topic's name.
    """

    def __init__(self, directory: Directory, name: str) -> None:
        self._directory = directory
        self.name = directory.topic(name).name

    @property
    def partitions(self) -> int:
        """How many partitions it has."""
        return self._directory.topic(self.name).partitions

    @property
    def topic_id(self) -> str:
        """Kafka's id of this life of the topic: another one after it was deleted and created again."""
        return self._directory.topic(self.name).topic_id

    @property
    def config(self) -> Mapping[str, Any]:
        """The options that it was given, by Kafka's names."""
        return dict(self._directory.topic(self.name).options)

    @property
    def owner(self) -> TopicOwner | None:
        """Of a retry or dead-letter topic: the topic and the group that it is kept for, and its kind. Else None."""
        return self._directory.topic(self.name).owner

    def partition(self, number: int) -> PartitionLog:
        """One partition, open until the store is closed. UnknownTopicError when there is none of that number."""
        return self._directory.partition_log(self.name, number)

    def __len__(self) -> int:
        """How many partitions it has."""
        return self.partitions

    def read(
        self,
        start: int | str | datetime | None = None,
        stop: int | str | datetime | None = None,
        columns: Iterable[str] | None = None,
        *,
        partitions: Iterable[int] | None = None,
        isolation: str = "read_committed",
    ) -> TopicRead:
        """Records as a table, read when somebody asks for it: by pyarrow, Polars, DuckDB and pandas, or batch by batch.

        Args:
            start: an offset, which holds for every partition; an aware datetime, or a span before now such as
                ``"-1h"``: the first record from then on; None: the first record.
            stop: the same, exclusive; None: what is readable when reading begins.
            columns: which, in order: of ``"partition"``, ``"offset"``, ``"timestamp"``, ``"key"``, ``"value"``,
                ``"headers"``. By default all; the partition only for topics with several.
            partitions: which ones; by default all, one after the other.
            isolation: ``"read_committed"`` or ``"read_uncommitted"``.

        Raises:
            ConfigError: a column or a place is unknown.
            UnknownTopicError: there is no such partition.
        """
        count = self.partitions
        chosen = list(range(count)) if partitions is None else list_of(partitions, "partitions", "numbers")
        for number in chosen:
            if isinstance(number, bool) or not isinstance(number, int) or not 0 <= number < count:
                raise UnknownTopicError(f"the topic {self.name!r} has no partition {number!r}: it has {count}, from 0")
        names: tuple[str, ...] = COLUMNS if count > 1 else COLUMNS[1:]
        if columns is not None:
            names = checked_columns(columns)
        return TopicRead(
            self._directory, self.name, chosen, place_of(start, "start"), place_of(stop, "stop"), names, isolation
        )

    def __repr__(self) -> str:
        return f"<Topic {self.name!r}: {self.partitions} partitions>"


class TopicRead:
    """Records of a topic, from ``Topic.read``: an Arrow stream, and an iterable of RecordBatch. Nothing is read before.

    Each use reads anew: iterating twice, or two Arrow consumers, see what is there at their time. The places are looked
    up in each partition when its turn comes; partitions follow each other.
    """

    def __init__(
        self,
        directory: Directory,
        topic: str,
        partitions: list[int],
        start: int | str | datetime | None,
        stop: int | str | datetime | None,
        columns: tuple[str, ...],
        isolation: str,
    ) -> None:
        self._directory = directory
        self._topic = topic
        self._partitions = partitions
        self._start = start
        self._stop = stop
        self._columns = columns
        self._isolation = isolation

    @property
    def columns(self) -> tuple[str, ...]:
        """Names of the columns, in order."""
        return self._columns

    def __iter__(self) -> Iterator[RecordBatch]:
        # one moment for all partitions
        start, stop = moment_of(self._start, "start"), moment_of(self._stop, "stop")
        for number in self._partitions:
            if self._directory.read_only and not self._directory.is_created(self._topic, number):
                continue
            with self._directory.lease(self._topic, number, self._isolation) as lease:
                log = lease.log
                end = readable_end(log)
                first = max(log.start_offset if start is None else offset_of(log, start, "start"), log.start_offset)
                last = end if stop is None else min(offset_of(log, stop, "stop"), end)
                if first < last:
                    yield from log.batches(first, last, READ_BYTES)

    def __arrow_c_schema__(self) -> object:
        """The Arrow schema, as a PyCapsule."""
        return arrow_schema(self._columns)

    def __arrow_c_stream__(self, requested_schema: object | None = None) -> object:
        """A fresh Arrow stream, as a PyCapsule; values are not copied unless another type is requested."""
        return arrow_stream(self, self._columns, requested_schema)

    def __repr__(self) -> str:
        return f"<TopicRead of {self._topic!r}: {', '.join(self._columns)}>"


def checked_columns(columns: Iterable[str]) -> tuple[str, ...]:
    """Names of columns. Raises ConfigError."""
    names = (columns,) if isinstance(columns, str) else tuple(list_of(columns, "columns", "names of columns"))
    wrong = [name for name in names if name not in COLUMNS]
    if wrong or not names or len(set(names)) < len(names):
        raise ConfigError(f"columns={list(names)!r}: expected some of {', '.join(map(repr, COLUMNS))}, each once")
    return names


def place_of(place: object, name: str) -> int | str | datetime | None:
    """``start=`` or ``stop=``, checked. Raises ConfigError."""
    if place is None or (isinstance(place, int) and not isinstance(place, bool) and place >= 0):
        return place
    if isinstance(place, datetime):
        return aware(place, name)
    if isinstance(place, str):
        time_before_now(place, name)
        return place
    raise ConfigError(f'{name}={place!r}: expected an offset, an aware datetime, a span such as "-1h", or None')


def moment_of(place: int | str | datetime | None, name: str) -> int | datetime | None:
    """Spans become times."""
    return time_before_now(place, name) if isinstance(place, str) else place
