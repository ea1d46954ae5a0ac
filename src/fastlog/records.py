"""Plain values around a record: headers, topic partitions, delivery metadata."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple, TypeGuard, overload

from fastlog.errors import ConfigError, InvalidRecordError

if TYPE_CHECKING:
    import numpy
    from numpy.typing import NDArray

__all__ = [
    "BatchMetadata",
    "Headers",
    "RecordMetadata",
    "TopicPartition",
    "is_offset",
    "list_of",
    "named_partition",
    "utf8_of",
]

_MOST_OFFSET = 2**63 - 1


class TopicPartition(NamedTuple):
    """A topic's name and the number of one of its partitions."""

    topic: str
    partition: int


def named_partition(name: object) -> TopicPartition:
    """A TopicPartition that a caller passed, or a pair like one. Raises ConfigError for anything else."""
    match name:
        case (str(topic), int(number)) if not isinstance(number, bool):
            return TopicPartition(topic, number)
    raise ConfigError(f"{name!r} is no partition: expected a TopicPartition, or a topic and a number")


def list_of(values: object, name: str, expected: str) -> list[Any]:
    """What a caller passed as ``name``, as a list. Raises ConfigError for what is one thing, text included."""
    if isinstance(values, (str, bytes, bytearray)) or not isinstance(values, Iterable):
        raise ConfigError(f"{name}={values!r}: expected {expected}")
    return list(values)


def is_offset(value: object) -> TypeGuard[int]:
    """Whether a caller passed what can be an offset: an integer from 0 to 2**63 - 1."""
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= _MOST_OFFSET


def utf8_of(text: object) -> bytes | None:
    """UTF-8 of a str that a caller passed; None for anything else, and where lone surrogates have none."""
    if not isinstance(text, str):
        return None
    try:
        return text.encode()
    except UnicodeEncodeError:
        return None


class RecordMetadata(NamedTuple):
    """Where a record was stored. ``timestamp`` is in milliseconds since the epoch."""

    topic: str
    partition: int
    offset: int
    timestamp: int


class BatchMetadata:
    """Where the records of one ``send_many`` were stored: a column for each fact, one entry per record, as passed.

    ``len``, indexing and iterating give a ``RecordMetadata`` per record. Immutable.

    Attributes:
        topic: the topic's name.
        partitions: NumPy int32.
        offsets: NumPy int64.
        timestamps: NumPy int64, milliseconds since the epoch, -1 = none.
    """

    __slots__ = ("offsets", "partitions", "timestamps", "topic")

    def __init__(
        self,
        topic: str,
        partitions: NDArray[numpy.int32],
        offsets: NDArray[numpy.int64],
        timestamps: NDArray[numpy.int64],
    ) -> None:
        self.topic = topic
        self.partitions = partitions
        self.offsets = offsets
        self.timestamps = timestamps

    def __len__(self) -> int:
        return len(self.offsets)

    def __getitem__(self, index: int) -> RecordMetadata:
        return RecordMetadata(
            self.topic, int(self.partitions[index]), int(self.offsets[index]), int(self.timestamps[index])
        )

    def __iter__(self) -> Iterator[RecordMetadata]:
        columns = (self.partitions.tolist(), self.offsets.tolist(), self.timestamps.tolist())
        for partition, offset, timestamp in zip(*columns, strict=True):
            yield RecordMetadata(self.topic, partition, offset, timestamp)

    def __repr__(self) -> str:
        return f"<BatchMetadata of {len(self)} records in {self.topic}>"


class Headers:
    """The headers of a record: ordered pairs of a string and bytes (or None). Immutable; duplicates are kept.

    ``headers["k"]`` is the value of the last pair with that key (KeyError when there is none), ``get_all("k")`` all of
    them, and iterating yields the pairs. Built from a mapping or from pairs.
    """

    __slots__ = ("_pairs",)

    def __init__(self, pairs: Mapping[str, bytes | None] | Iterable[tuple[str, bytes | None]] = ()) -> None:
        items = pairs.items() if isinstance(pairs, Mapping) else pairs
        checked = []
        for pair in items:
            if not isinstance(pair, tuple) or len(pair) != 2:
                raise InvalidRecordError(f"a header is a pair (str, bytes | None), found {pair!r}")
            key, value = pair
            if not isinstance(key, str):
                raise InvalidRecordError(f"a header's key is a str, found {type(key).__name__}")
            if value is not None and not isinstance(value, bytes):
                try:
                    value = bytes(memoryview(value))
                except TypeError:
                    found = type(value).__name__
                    raise InvalidRecordError(f"a header's value is bytes or None, found {found} for {key!r}") from None
            checked.append((key, value))
        self._pairs: tuple[tuple[str, bytes | None], ...] = tuple(checked)

    def __getitem__(self, key: str) -> bytes | None:
        for name, value in reversed(self._pairs):
            if name == key:
                return value
        raise KeyError(key)

    @overload
    def get(self, key: str) -> bytes | None: ...
    @overload
    def get(self, key: str, default: bytes) -> bytes: ...
    def get(self, key: str, default: bytes | None = None) -> bytes | None:
        """Value of the last header named ``key``, or ``default`` when there is none."""
        return self[key] if key in self else default

    def get_all(self, key: str) -> tuple[bytes | None, ...]:
        """Values of every header named ``key``, in order."""
        return tuple(value for name, value in self._pairs if name == key)

    def keys(self) -> tuple[str, ...]:
        """Keys in order, duplicates included."""
        return tuple(name for name, _ in self._pairs)

    def __contains__(self, key: object) -> bool:
        return any(name == key for name, _ in self._pairs)

    def __iter__(self) -> Iterator[tuple[str, bytes | None]]:
        return iter(self._pairs)

    def __len__(self) -> int:
        return len(self._pairs)

    def __eq__(self, other: object) -> bool:
        if isinstance(other, Headers):
            return self._pairs == other._pairs
        return NotImplemented

    def __hash__(self) -> int:
        return hash(self._pairs)

    def __repr__(self) -> str:
        return f"Headers({list(self._pairs)!r})"

    def __reduce__(self) -> tuple[type[Headers], tuple[tuple[tuple[str, bytes | None], ...]]]:
        return Headers, (self._pairs,)
