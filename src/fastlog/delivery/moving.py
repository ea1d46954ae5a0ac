"""Moving records: to where they wait, or to the dead letters. One transaction for many moves and for the offsets of
where they came from: so a record is never in both places, and never in none.
"""

from __future__ import annotations

import logging
from collections import OrderedDict
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Final

from fastlog._native import oscalls
from fastlog.errors import CommitFailedError, Error, FencedError, RecordTooLargeError, TransactionError
from fastlog.groups.offsets import OffsetAndMetadata, OffsetStore
from fastlog.records import TopicPartition
from fastlog.store.internal import CONSUMER_OFFSETS
from fastlog.transactions import TransactionalId

from .headers import dead_letter_headers, retry_headers

if TYPE_CHECKING:
    from fastlog.groups.membership import Membership, OwnerEpoch
    from fastlog.store.directory import Directory

    from .items import Move

__all__ = ["MOST_OPEN", "Mover", "Movers", "Route", "mover_id"]

logger = logging.getLogger("fastlog.delivery")

MOST_OPEN: Final = 32

Offsets = Mapping[TopicPartition, OffsetAndMetadata]
Column = list[bytes | None]
Pairs = list[tuple[str, bytes | None]]


def mover_id(group: str, source: TopicPartition) -> str:
    """The transactional id of whoever owns a partition of a group: the next owner fences the one before."""
    return f"fastlog-move-{group}-{source.topic}-{source.partition}"


class Route:
    """From where to where records of one partition are moved."""

    __slots__ = ("dead_letter", "group", "retry", "source")

    def __init__(
        self, group: str, source: TopicPartition, retry: TopicPartition, dead_letter: TopicPartition | None
    ) -> None:
        self.group = group
        self.source = source
        self.retry = retry
        self.dead_letter = dead_letter


class Mover:
    """Moves records of one partition, in the name of its owner. One thread.

    Attributes:
        is_in_doubt: the last transaction may be committed or not: ``settle`` finds out, and comes before the next move.
    """

    def __init__(self, directory: Directory, route: Route) -> None:
        self.is_in_doubt = False
        self._directory = directory
        self._route = route
        self._transactional: TransactionalId | None = None

    @property
    def is_open(self) -> bool:
        """Whether its transactional id is open."""
        return self._transactional is not None

    def fence(self) -> None:
        """End what earlier owners have open: their moves are decided when this returns.

        Raises StorageError, LockedError.
        """
        self._discard()
        self._open()

    def move(self, moves: Sequence[Move], offsets: Offsets, membership: Membership, epoch: OwnerEpoch | None) -> None:
        """Append these records where they go, and commit the offsets, all or nothing; durable when it returns.

        Args:
            moves: what goes where, in the order in which it has to lie there.
            offsets: of the source and the retry partition, as they are behind these moves.
            membership, epoch: who commits, and by what it owns the source partition.

        Raises:
            CommitFailedError: the partition belongs to somebody else by now. Nothing was moved.
            Error: nothing was moved; with ``outcome == "unknown"`` it may have been: ``is_in_doubt``.
        """
        if self.is_in_doubt:
            raise TransactionError("whether the last moves are committed is not known yet: settle it first", None)
        try:
            self._append_all(self._open(), moves, offsets, membership, epoch)
        except BaseException as error:
            self.is_in_doubt = getattr(error, "outcome", None) == "unknown"
            if not self.is_in_doubt:
                self._discard()
            raise
        oscalls.reach_failpoint("move.committed")

    def _append_all(
        self,
        transactional: TransactionalId,
        moves: Sequence[Move],
        offsets: Offsets,
        membership: Membership,
        epoch: OwnerEpoch | None,
    ) -> None:
        route = self._route
        waiting = [move for move in moves if move.to == "retry"]
        dead = [move for move in moves if move.to == "dead_letter"]
        targets = [(route.retry, waiting, self._waiting_headers)] if waiting else []
        if dead:
            if route.dead_letter is None:
                raise TransactionError(f"{route.source} has no dead-letter topic to move a record to", None)
            targets.append((route.dead_letter, dead, self._dead_headers))
        store = OffsetStore(self._directory)
        commits = TopicPartition(CONSUMER_OFFSETS, store.partition_of(route.group))
        transactional.begin()
        transactional.enter_partitions([commits, *(target for target, _, _ in targets)])
        oscalls.reach_failpoint("move.entered")
        # first what only the owner may write: who is none any more leaves nothing behind
        self._append_offsets(transactional, commits, offsets, membership, epoch)
        oscalls.reach_failpoint("move.offsets")
        for target, chosen, headers in targets:
            raws = [move.item.raw for move in chosen]
            self._append(transactional, target, [raw.key for raw in raws], [raw.value for raw in raws], headers(chosen))
        oscalls.reach_failpoint("move.appended")
        transactional.commit()

    def _waiting_headers(self, moves: Sequence[Move]) -> list[Pairs]:
        return [retry_headers(move.item, move) for move in moves]

    def _dead_headers(self, moves: Sequence[Move]) -> list[Pairs]:
        group = self._route.group
        return [dead_letter_headers(move.item, move, group) for move in moves]

    def _append(
        self, transactional: TransactionalId, target: TopicPartition, keys: Column, values: Column, headers: list[Pairs]
    ) -> None:
        """As one batch, or as several when they are too large for one."""
        try:
            transactional.append_records(target, keys, values, headers=headers)
        except RecordTooLargeError:
            half = len(keys) // 2
            if not half:
                raise
            self._append(transactional, target, keys[:half], values[:half], headers[:half])
            self._append(transactional, target, keys[half:], values[half:], headers[half:])

    def _append_offsets(
        self,
        transactional: TransactionalId,
        partition: TopicPartition,
        offsets: Offsets,
        membership: Membership,
        epoch: OwnerEpoch | None,
    ) -> None:
        source = self._route.source
        epochs = {} if epoch is None else {source: epoch}
        topic_ids = {} if epoch is None else {source.topic: epoch.topic_id}
        keys, values = OffsetStore(self._directory).encode_commit(self._route.group, offsets, topic_ids)
        while True:
            conditions = membership.conditions([source], epochs)
            try:
                transactional.append_records(partition, keys, values, conditions)
                return
            except FencedError as error:
                if not membership.is_page_replaced(conditions):
                    raise CommitFailedError(
                        f"{source.topic}-{source.partition} belongs to another member of group "
                        f"{self._route.group!r} by now ({error}): nothing was moved, it does that itself"
                    ) from None

    def settle(self) -> bool:
        """After a move whose outcome is unknown: whether it is committed.

        Raises Error while that cannot be told: try again later, or give the partition up and begin it anew.
        """
        if not self.is_in_doubt or self._transactional is None:
            return False
        try:
            self._transactional.commit()
        except Error as error:
            if error.outcome == "unknown":
                raise
            self.is_in_doubt = False
            self._discard()
            if error.outcome == "aborted":
                return False
            raise
        self.is_in_doubt = False
        return True

    def close(self) -> None:
        """Let go of the transactional id; what is open is aborted."""
        self._discard()

    def _open(self) -> TransactionalId:
        if self._transactional is None:
            self._transactional = TransactionalId(self._directory, mover_id(self._route.group, self._route.source))
        return self._transactional

    def _discard(self) -> None:
        transactional, self._transactional = self._transactional, None
        self.is_in_doubt = False
        if transactional is None:
            return
        try:
            transactional.close()
        except Error as error:
            logger.warning(
                "%s could not be closed: %s. Whoever opens it next ends what it has open",
                transactional.transactional_id,
                error,
            )


class Movers:
    """The movers of one runner; of those that are not in use the last ``MOST_OPEN`` stay open. One thread."""

    def __init__(self, directory: Directory, most: int = MOST_OPEN) -> None:
        self._directory = directory
        self._most = most
        self._known: OrderedDict[TopicPartition, Mover] = OrderedDict()

    def of(self, route: Route) -> Mover:
        """The mover of a partition."""
        mover = self._known.get(route.source)
        if mover is None:
            mover = self._known[route.source] = Mover(self._directory, route)
        self._known.move_to_end(route.source)
        self._close_idle()
        return mover

    def _close_idle(self) -> None:
        surplus = sum(mover.is_open for mover in self._known.values()) - self._most
        for mover in list(self._known.values())[:-1]:
            if surplus <= 0:
                return
            if mover.is_open and not mover.is_in_doubt:
                mover.close()
                surplus -= 1

    def forget(self, sources: Iterable[TopicPartition]) -> None:
        """These partitions are somebody else's now."""
        for source in sources:
            mover = self._known.pop(source, None)
            if mover is not None:
                mover.close()

    def close(self) -> None:
        """Let go of all of them."""
        self.forget(list(self._known))
