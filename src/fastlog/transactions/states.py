"""What a transactional id can be in, and which change may follow which: values and rules, no files and no clocks.

::

    Empty ──► Ongoing ──► PrepareCommit ──► CompleteCommit ──► Ongoing …
                 │  ▲          └─ taken over: PrepareCommit with the next epoch
                 │  └─ more partitions
                 └──────► PrepareAbort ───► CompleteAbort ───► Ongoing …
                               └─ taken over: PrepareAbort with the next epoch

    Empty, CompleteCommit, CompleteAbort ──► Empty with the next epoch, or a new producer id (opened again) ──► Dead

A decision is never changed: what is prepared is only ever completed, the same way. **Markers of one epoch have one
writer**: whoever wrote the Prepare record with that epoch. Who completes what another prepared, prepares it again with
the next epoch first; so a marker that comes late meets a newer epoch in the partition, and cannot end the next
transaction.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from enum import IntEnum

from fastlog.errors import ProducerFencedError, TransactionError
from fastlog.records import TopicPartition

__all__ = ["LAST_EPOCH", "MOST_EPOCH", "TransactionState", "TransactionStatus", "legal"]

MOST_EPOCH = 32767  # the last one that fences; nothing is produced with it
LAST_EPOCH = MOST_EPOCH - 1  # the last one that a producer may have: a new producer id follows


class TransactionStatus(IntEnum):
    """The status byte of a record, Kafka's numbers."""

    EMPTY = 0
    ONGOING = 1
    PREPARE_COMMIT = 2
    PREPARE_ABORT = 3
    COMPLETE_COMMIT = 4
    COMPLETE_ABORT = 5
    DEAD = 6
    PREPARE_EPOCH_FENCE = 7  # Kafka never writes it down


_IDLE = frozenset({TransactionStatus.EMPTY, TransactionStatus.COMPLETE_COMMIT, TransactionStatus.COMPLETE_ABORT})
_PREPARED = frozenset({TransactionStatus.PREPARE_COMMIT, TransactionStatus.PREPARE_ABORT})
_FOLLOWERS: dict[TransactionStatus, frozenset[TransactionStatus]] = {
    **{idle: frozenset({TransactionStatus.EMPTY, TransactionStatus.ONGOING, TransactionStatus.DEAD}) for idle in _IDLE},
    TransactionStatus.ONGOING: _PREPARED | {TransactionStatus.ONGOING},
    TransactionStatus.PREPARE_COMMIT: frozenset({TransactionStatus.PREPARE_COMMIT, TransactionStatus.COMPLETE_COMMIT}),
    TransactionStatus.PREPARE_ABORT: frozenset({TransactionStatus.PREPARE_ABORT, TransactionStatus.COMPLETE_ABORT}),
    TransactionStatus.DEAD: frozenset(),
    TransactionStatus.PREPARE_EPOCH_FENCE: frozenset(),
}


def legal(before: TransactionStatus, after: TransactionStatus) -> bool:
    """Whether a record with the status ``after`` may follow one with ``before``."""
    return after in _FOLLOWERS[before]


@dataclass(frozen=True, slots=True)
class TransactionState:
    """What ``__transaction_state`` says of one transactional id. Immutable: every change is a new value.

    Attributes:
        producer_id, producer_epoch: who may write; in a Prepare record: with which epoch the markers are written.
        timeout_ms: after how many milliseconds anybody may abort.
        status: see the module.
        partitions: those of the transaction, without duplicates; none unless it is ongoing or prepared.
        last_update: milliseconds since the epoch.
        start: when the transaction began, milliseconds since the epoch; -1 before the first.
    """

    producer_id: int
    producer_epoch: int
    timeout_ms: int
    status: TransactionStatus = TransactionStatus.EMPTY
    partitions: tuple[TopicPartition, ...] = ()
    last_update: int = -1
    start: int = -1

    @property
    def is_ongoing(self) -> bool:
        return self.status is TransactionStatus.ONGOING

    @property
    def is_prepared(self) -> bool:
        """Decided; markers may be missing."""
        return self.status in _PREPARED

    @property
    def is_open(self) -> bool:
        """Whether partitions may hold undecided records, or records whose marker is missing."""
        return self.is_ongoing or self.is_prepared

    @property
    def commits(self) -> bool:
        """What was decided, of one that is prepared or complete."""
        return self.status in (TransactionStatus.PREPARE_COMMIT, TransactionStatus.COMPLETE_COMMIT)

    @property
    def next_epoch(self) -> int:
        return min(self.producer_epoch + 1, MOST_EPOCH)

    def require(self, producer_id: int, producer_epoch: int) -> None:
        """ProducerFencedError unless this producer is still the one that may write."""
        if (self.producer_id, self.producer_epoch) != (producer_id, producer_epoch):
            raise ProducerFencedError(
                f"producer id {producer_id}, epoch {producer_epoch}: the transactional id now has producer id "
                f"{self.producer_id}, epoch {self.producer_epoch}: another instance was opened, or the transaction "
                f"timed out; close this producer",
                producer_id,
                producer_epoch,
                self.producer_epoch,
            )

    def entered(self, partitions: Iterable[TopicPartition], now: int) -> TransactionState:
        """Ongoing, with these partitions too."""
        self._must_allow(TransactionStatus.ONGOING, "take in a partition")
        known = self.partitions if self.is_ongoing else ()
        added = tuple(dict.fromkeys(partition for partition in partitions if partition not in known))
        start = self.start if self.is_ongoing else now
        return replace(self, status=TransactionStatus.ONGOING, partitions=known + added, last_update=now, start=start)

    def prepared(self, now: int, *, commit: bool, by_owner: bool) -> TransactionState:
        """Decided: no way back. An abort, and whatever anybody but the owner decides or takes over, bumps the epoch."""
        status = TransactionStatus.PREPARE_COMMIT if commit else TransactionStatus.PREPARE_ABORT
        self._must_allow(status, "be decided")
        epoch = self.producer_epoch if commit and by_owner and self.is_ongoing else self.next_epoch
        return replace(self, status=status, producer_epoch=epoch, last_update=now)

    def completed(self, now: int) -> TransactionState:
        """Every partition has its marker."""
        status = TransactionStatus.COMPLETE_COMMIT if self.commits else TransactionStatus.COMPLETE_ABORT
        self._must_allow(status, "be completed")
        return replace(self, status=status, partitions=(), last_update=now)

    def opened(self, timeout_ms: int, now: int, fresh_producer_id: int, *, renews: bool = False) -> TransactionState:
        """For the next instance: the epoch is bumped; at its end, or when asked to, the fresh producer id takes its
        place.
        """
        self._must_allow(TransactionStatus.EMPTY, "be opened")
        if renews or self.producer_epoch >= LAST_EPOCH:
            return TransactionState(fresh_producer_id, 0, timeout_ms, last_update=now)
        return TransactionState(self.producer_id, self.producer_epoch + 1, timeout_ms, last_update=now)

    def _must_allow(self, after: TransactionStatus, wanted: str) -> None:
        if not legal(self.status, after):
            raise TransactionError(
                f"a transaction that is {self.status.name} cannot {wanted}: {after.name} does not follow",
                self.producer_id,
            )
