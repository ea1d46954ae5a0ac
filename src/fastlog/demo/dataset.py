"""What the job needs to know about any source of events: the events in order, and questions with known answers."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from datetime import datetime

__all__ = ["Dataset", "Landmark", "Question"]


@dataclass(frozen=True, slots=True)
class Question:
    """A question answered in SQL from the log, and the answer worked out from the source without SQL.

    ``sql`` reads the view named like the dataset's topic; its rows must equal ``expected``, in the same order.
    """

    title: str
    columns: tuple[str, ...]
    sql: str
    expected: tuple[tuple[object, ...], ...]


@dataclass(frozen=True, slots=True)
class Landmark:
    """An instant that a reader can picture, to look up in the log."""

    label: str
    instant: datetime


@dataclass(frozen=True, slots=True)
class Dataset:
    """Events sorted by time: ``timestamps`` in milliseconds, ``keys`` and ``values`` as bytes, all of one length.

    ``view_sql`` is a SELECT over the relation ``log`` that turns records into rows for the questions;
    ``describe`` says in a few words what one value means; ``facts`` are counts worth printing.
    """

    name: str
    topic: str
    source: str
    timestamps: list[int]
    keys: list[bytes | None]
    values: list[bytes]
    view_sql: str
    questions: tuple[Question, ...]
    describe: Callable[[bytes], str]
    landmarks: tuple[Landmark, ...] = ()
    facts: dict[str, int] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.values)

    def first(self, count: int) -> Dataset:
        """The first ``count`` events alone. The questions go: their answers are those of all events."""
        parts = {name: getattr(self, name)[:count] for name in ("timestamps", "keys", "values")}
        return replace(self, **parts, questions=(), facts={"events": min(count, len(self))})

    @property
    def payload_bytes(self) -> int:
        """Bytes of all keys and values."""
        return sum(map(len, self.values)) + sum(len(key) for key in self.keys if key is not None)
