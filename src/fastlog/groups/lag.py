"""Consumer lag: how far behind the end a group, or a consumer, is."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

from fastlog._core import PartitionLog
from fastlog._native import oscalls
from fastlog.groups.offsets import OffsetStore
from fastlog.records import TopicPartition, list_of
from fastlog.store.directory import Directory
from fastlog.store.places import readable_end

__all__ = ["Lag", "group_lag", "lag_at"]


class Lag(NamedTuple):
    """How far a consumer is behind: records to come, and seconds since the oldest of them was stamped."""

    records: int
    seconds: float


def lag_at(log: PartitionLog, position: int) -> Lag:
    """The lag of a reader of ``log`` that goes on at ``position``.

    Records are counted by offsets, so those that compaction took away and markers between records count; but markers at
    the front are passed over: a reader that only has them to come has nothing to do.
    """
    end = readable_end(log)
    position = max(position, log.start_offset)
    if position < end:
        for batch in log.batches(position, max_bytes=1):
            stamp = int(batch.timestamps[0])
            seconds = 0.0 if stamp < 0 else max(oscalls.wall_clock() - stamp, 0) / 1000
            return Lag(end - int(batch.offsets[0]), seconds)
    return Lag(0, 0.0)


def group_lag(directory: Directory, group: str, topics: Iterable[str] | None = None) -> dict[TopicPartition, Lag]:
    """The lag of a group in every partition that it has committed an offset for, or in all partitions of ``topics``.

    A partition without a committed offset counts from its start. UnknownTopicError for a topic that there is not.
    """
    store = OffsetStore(directory)
    if topics is None:
        places = {one: found.offset for one, found in store.all_committed(group).items()}
    else:
        names = [
            TopicPartition(topic, number)
            for topic in list_of(topics, "topics", "names of topics, or None for all that have offsets")
            for number in range(directory.topic(topic).partitions)
        ]
        places = {one: 0 if found is None else found.offset for one, found in store.committed(group, names).items()}
    found_lag = {}
    for one, place in places.items():
        with directory.lease(*one) as lease:
            found_lag[one] = lag_at(lease.log, place)
    return found_lag
