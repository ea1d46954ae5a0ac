"""Where a bounded read ends: ``consumer.records(until=…)``."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping
from datetime import datetime

import numpy

from fastlog._core import RecordCursor
from fastlog._native import oscalls
from fastlog.errors import ConfigError
from fastlog.records import TopicPartition, is_offset, named_partition
from fastlog.store.places import aware, now, offset_at, readable_end

from .fetching import Assigned

__all__ = ["Bounds"]

logger = logging.getLogger("fastlog.consumer")

PATIENCE_MS = 10_000  # how long partitions are waited for that other members are to hand over


class Bounds:
    """An end for each partition: offsets, a time, or what the log held when the partition was first looked at."""

    def __init__(self, until: str | datetime | Mapping[TopicPartition, int]) -> None:
        if isinstance(until, datetime):
            aware(until, "until")
        elif not isinstance(until, Mapping) and until != "end":
            raise ConfigError(f'until={until!r}: expected "end", an aware datetime, or {{TopicPartition: offset}}')
        self._until = until
        self._stops: dict[TopicPartition, int] = {}
        self._waits_until: int | None = None
        if isinstance(until, Mapping):
            for name, offset in until.items():
                if not is_offset(offset):
                    raise ConfigError(f"until: {name}: {offset!r} is no offset: expected an integer from 0")
                self._stops[named_partition(name)] = offset

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
        if stop is not None and self._until == "end":
            # a sync that fails puts the end back: what was above it will not be handed out
            stop = min(stop, max(found.log.readable_offset, found.log.start_offset))
        return stop is not None and found.position >= stop

    def is_patience_over(self) -> bool:
        """Whether it was waited long enough for other members of the group, since this was asked first."""
        if self._waits_until is None:
            self._waits_until = oscalls.steady_clock() + PATIENCE_MS
        if oscalls.steady_clock() < self._waits_until:
            return False
        logger.warning("a bounded read ends without partitions that other members of the group did not hand over")
        return True

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
