"""Where a bounded read ends: ``consumer.records(until=…)``."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from datetime import datetime

import numpy

from fastlog._core import RecordCursor
from fastlog.errors import ConfigError
from fastlog.groups.lag import readable_end
from fastlog.records import TopicPartition

from .fetching import Assigned
from .starting import aware, now, offset_at

__all__ = ["Bounds"]


class Bounds:
    """An end for each partition: offsets, a time, or what the log held when the partition was first looked at."""

    def __init__(self, until: str | datetime | Mapping[TopicPartition, int]) -> None:
        if isinstance(until, datetime):
            aware(until, "until")
        elif not isinstance(until, Mapping) and until != "end":
            raise ConfigError(f'until={until!r}: expected "end", an aware datetime, or {{TopicPartition: offset}}')
        self._until = until
        self._stops: dict[TopicPartition, int] = {}
        if isinstance(until, Mapping):
            self._stops = {TopicPartition(*name): offset for name, offset in until.items()}

    def _stop_of(self, found: Assigned) -> int | None:
        """The first offset that is not handed out; None while the time has not come yet."""
        stop = self._stops.get(found.name)
        if stop is None:
            if isinstance(self._until, datetime):
                if now() <= self._until:
                    return None
                stop = offset_at(found.log, self._until)
            elif isinstance(self._until, str):
                stop = readable_end(found.log)
            else:
                stop = 0
            self._stops[found.name] = stop
        return stop

    def look(self, partitions: Iterable[Assigned]) -> None:
        """Note the ends of partitions that are seen for the first time: all as they are now."""
        for found in partitions:
            self._stop_of(found)

    def is_reached(self, found: Assigned) -> bool:
        """Whether nothing of this partition is left to hand out."""
        stop = self._stop_of(found)
        return stop is not None and found.position >= stop

    def allowed(self, found: Assigned, cursor: RecordCursor) -> int:
        """How many of the cursor's records lie before the end. With none of them, the partition is done."""
        stop = self._stop_of(found)
        offsets = cursor.batch.offsets[cursor.next_index :]
        if stop is None:
            return len(offsets)
        count = int(numpy.searchsorted(offsets, stop))
        if count == 0:
            self._stops[found.name] = found.position
        return count
