"""Offsets that an open transaction is about to commit: whoever takes over a partition needs to know how that ends."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from fastlog._native import oscalls
from fastlog.records import TopicPartition
from fastlog.store.internal import CONSUMER_OFFSETS
from fastlog.transactions.coordinator import Coordinator

if TYPE_CHECKING:
    from fastlog.store.directory import Directory

__all__ = ["resolve_pending"]


def resolve_pending(
    directory: Directory, group: str, partitions: Iterable[TopicPartition], timeout_ms: float | None = None
) -> bool:
    """Let every transaction end that has offsets of the group for these partitions; True when none is left.

    Those of dead owners, those that take too long and those that nobody knows are ended here. Others are waited for, at
    most ``timeout_ms`` (None: as long as their own time-outs allow). Costs one look when nothing is pending. Any
    thread.
    """
    from fastlog.groups.offsets import OffsetStore

    wanted = {TopicPartition(*partition) for partition in partitions}
    offsets = OffsetStore(directory)
    if not wanted & offsets.pending(group).keys():
        return True
    coordinator = Coordinator.of(directory)
    partition = TopicPartition(CONSUMER_OFFSETS, offsets.partition_of(group))
    deadline = None if timeout_ms is None else oscalls.steady_clock() + timeout_ms
    pause = 1  # ms
    with directory.lease(*partition) as lease:
        while True:
            coordinator.resolve_partition(partition, lease.log)
            if not wanted & offsets.pending(group).keys():
                return True
            if deadline is not None and oscalls.steady_clock() >= deadline:
                return False
            oscalls.nap(pause)
            pause = min(2 * pause, 50)
