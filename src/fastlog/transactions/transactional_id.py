"""One open instance of a transactional id: the only one that may write, until the next one is opened."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

from fastlog._core import PartitionLog, encode_batch
from fastlog._native import oscalls
from fastlog.errors import (
    ClosedError,
    ConfigError,
    Error,
    ForkedHandleError,
    ProducerFencedError,
    TransactionError,
    UnknownTopicError,
)
from fastlog.records import TopicPartition, utf8_of
from fastlog.store.internal import MOST_STRING
from fastlog.transactions.coordinator import Coordinator, write_marker
from fastlog.transactions.states import LAST_EPOCH, TransactionState, TransactionStatus

if TYPE_CHECKING:
    from fastlog.store.directory import Directory
    from fastlog.store.leases import Lease

__all__ = ["DEFAULT_TIMEOUT_MS", "TransactionalId"]

logger = logging.getLogger("fastlog.transactions")

DEFAULT_TIMEOUT_MS = 60_000  # Kafka's transaction.timeout.ms
_LONGEST_TIMEOUT = 0x7FFFFFFF  # Kafka's field has 32 bits
_E = TypeVar("_E", bound=Error)


class TransactionalId:
    """Opening it fences the instance before, and aborts what that has open (or completes what it had decided).

    The life of a transaction: ``begin``, ``enter_partition`` before its first batch goes to a partition, ``commit`` or
    ``abort``. Methods may be called from any thread; one transaction is open at a time.

    Attributes:
        directory, transactional_id, timeout_ms: as given.
        producer_id, producer_epoch: what transactional batches have to carry, now. The epoch changes with an abort:
            sequence numbers of every partition then start at 0 again.
        in_transaction: between ``begin`` and the end of the transaction.
    """

    def __init__(self, directory: Directory, transactional_id: str, timeout_ms: int = DEFAULT_TIMEOUT_MS) -> None:
        """Raises ConfigError for an unusable id or time-out; LockedError, StorageError."""
        if not 1 <= len(utf8_of(transactional_id) or b"") <= MOST_STRING:
            raise ConfigError(
                f"transactional_id={transactional_id!r}: expected a str of 1 to {MOST_STRING} bytes in UTF-8"
            )
        if not 1 <= timeout_ms <= _LONGEST_TIMEOUT:
            raise ConfigError(
                f"transaction_timeout is {timeout_ms} ms: expected 1 ms to {_LONGEST_TIMEOUT // 86_400_000} days"
            )
        self.transactional_id = transactional_id
        self.timeout_ms = timeout_ms
        self.in_transaction = False
        self.directory = directory
        self._coordinator = Coordinator.of(directory)
        self._coordinator.start()
        self._log = self._coordinator.log_of(transactional_id)
        self._lock = threading.RLock()
        self._closed = False
        self._forks = oscalls.forks()
        self._leases: dict[TopicPartition, Lease] = {}
        self._topics_version = directory.topics_version
        self._entered: set[TopicPartition] = set()
        self._uncleared: set[TopicPartition] = set()  # where an earlier instance may have left something open
        self._is_written = False  # whether the state log knows of this transaction
        self._sequences: dict[TopicPartition, int] = {}
        self._decided: TransactionState | None = None  # the Prepare record of this transaction, once it was written
        self._in_doubt = False  # whether a decision was made cannot be told, before it is asked again
        self._is_given_up = False  # it is to be aborted, and that could not be written down yet
        self._first_change = 0  # the transaction's records lie here or behind, in the state partition
        self._fenced: ProducerFencedError | None = None
        self._entry = self._coordinator.registry.enter(self._coordinator.slot, transactional_id, timeout_ms)
        try:
            self._take(self._coordinator.open(transactional_id, timeout_ms))
        except BaseException:
            self._entry.release()
            raise

    def _take(self, state: TransactionState) -> None:
        """Go on as this producer."""
        if (state.producer_id, state.producer_epoch) != (
            getattr(self, "producer_id", None), getattr(self, "producer_epoch", None),
        ):  # fmt: skip
            self._sequences.clear()
        self.producer_id, self.producer_epoch = state.producer_id, state.producer_epoch
        self._entry.identify(state.producer_id, state.producer_epoch)

    @property
    def is_committed(self) -> bool:
        """Whether the last transaction has ended, by a commit."""
        return not self.in_transaction and self._decided is not None and self._decided.commits

    # --- the life of a transaction ------------------------------------------------------------------------------------

    def begin(self) -> None:
        """Begin a transaction. Nothing is written before its first batch, but what is left of an abort that failed.

        Raises TransactionError when one is open, ProducerFencedError when another instance was opened, StorageError
        when the abort fails again.
        """
        with self._own_lock():
            self._require_usable()
            if self.in_transaction and self._is_given_up:
                self.abort()
                self._require_usable()
            if self.in_transaction:
                raise TransactionError(
                    f"{self.transactional_id}: a transaction is open already: commit or abort it first",
                    self.producer_id,
                )
            if self.producer_epoch > LAST_EPOCH:
                # all epochs are used up: a new producer id
                self._take(self._coordinator.open(self.transactional_id, self.timeout_ms))
            self._entered.clear()
            self._is_written = False
            self._decided, self._in_doubt, self._is_given_up = None, False, False
            self._first_change = self._log.log.end_offset
            self.in_transaction = True

    def enter_partition(self, topic: str, partition: int) -> None:
        """Make a partition part of the transaction; before its first batch there. Costs nothing the second time.

        Raises TransactionError when no transaction is open, ProducerFencedError when it timed out or another instance
        was opened.
        """
        if TopicPartition(topic, partition) not in self._entered or not self.in_transaction:
            self.enter_partitions([(topic, partition)])

    def enter_partitions(self, partitions: Iterable[tuple[str, int]]) -> None:
        """``enter_partition`` for several, in one record.

        The first one of a transaction survives power loss when this returns, at every level but ``os``: else power
        could take it together with the end of the transaction before it, whose decision would then be carried out on
        the records of this one. Those that are lost later leave records that nobody knows, which are aborted.
        """
        with self._own_lock():
            self._require_usable()
            if not self.in_transaction or self._decided is not None:
                raise TransactionError(
                    f"{self.transactional_id}: no transaction is open: begin one before sending", self.producer_id
                )
            added = [one for given in partitions if (one := TopicPartition(*given)) not in self._entered]
            if not added:
                return
            self._uncleared.update(one for one in added if one not in self._leases)
            for one in added:
                self._log_at(one)
            if not self._is_written:
                # before anything of it can be seen: from here on it can time out
                self._entry.begin()

            def decide(state: TransactionState | None) -> TransactionState:
                return self._own(state).entered(added, oscalls.wall_clock())

            try:
                self._change(decide, durable=self._coordinator.syncs and not self._entered)
            except ProducerFencedError:
                raise
            except Error:
                # one that could not be synced is there
                self._is_written = self._is_written or self._is_ongoing()
                raise
            self._is_written = True
            for one in added:
                if one in self._uncleared:
                    # only now: who was replaced must not touch what the next instance has open
                    self._clear(self._log_at(one))
                    self._uncleared.discard(one)
            oscalls.reach_failpoint("transaction.entered")
            self._entered.update(added)

    def append_records(
        self,
        partition: TopicPartition,
        keys: Sequence[bytes | None],
        values: Sequence[bytes | None],
        conditions: Sequence[Any] = (),
        headers: Sequence[Any] | None = None,
    ) -> int:
        """Append records, offsets for example, as one transactional batch at once; its base offset.

        The partition becomes part of the transaction. ``conditions``: as of ``PartitionLog.append_batch``. Raises
        FencedError when one does not hold, RecordTooLargeError when the batch is larger than one of the topic may be;
        then nothing was written.
        """
        with self._own_lock():
            self.enter_partitions([partition])
            sequence = self._sequences.get(partition, 0)
            batch = encode_batch(
                list(values), list(keys), None, headers, producer_id=self.producer_id,
                producer_epoch=self.producer_epoch, base_sequence=sequence, transactional=True,
            )  # fmt: skip
            base: int = self._log_at(partition).append_batch(batch, conditions=conditions, durable=False)
            self._sequences[partition] = (sequence + len(keys)) & 0x7FFFFFFF
            return base

    def commit(self) -> None:
        """Make everything of the transaction visible, or nothing. Everything sent has to be appended by now.

        At every level but ``os`` power loss takes nothing of it back once this returns. Partitions become visible one
        by one. When the error's ``outcome`` is ``"unknown"`` the call may be repeated, and finds out.

        Raises:
            ProducerFencedError: another instance was opened, or the transaction timed out: it is aborted.
            TransactionError: no transaction is open; or it is aborted.
            StorageError: with ``outcome`` ``"unknown"``, or None while nothing was decided: ``abort`` is possible then.
        """
        with self._own_lock():
            self._require_open_transaction()
            if not self._is_written:
                self._end()
                return
            if self._decided is None:
                self._decide_to_commit()
            elif not self._decided.commits:
                raise outcome_of(
                    TransactionError(f"{self.transactional_id}: the transaction is being aborted", self.producer_id),
                    "aborted",
                )
            self._finish()

    def abort(self) -> None:
        """Take everything of the transaction back. Harmless when it was aborted by others meanwhile.

        Raises TransactionError when the transaction is decided already: to be committed. StorageError: then the call
        may be repeated, and ``begin`` does it.
        """
        with self._own_lock():
            self._require_open_transaction()
            if not self._is_written:
                self._end()
                return
            if self._decided is None and self._in_doubt:
                self._find_out()
            self._is_given_up = self._decided is None or not self._decided.commits
            if self._decided is None:
                try:
                    self._decided = self._change(
                        lambda state: self._own(state).prepared(oscalls.wall_clock(), commit=False, by_owner=True)
                    )
                except ProducerFencedError:
                    # whoever fences has aborted it first
                    return
            if self._decided.commits:
                raise outcome_of(
                    TransactionError(
                        f"{self.transactional_id}: the transaction is decided, it will be committed", self.producer_id
                    ),
                    "unknown",
                )
            oscalls.reach_failpoint("transaction.decided")
            self._finish()

    def _decide_to_commit(self) -> None:
        if self._in_doubt:
            self._find_out()
            if self._decided is not None:
                return
        self._require_cleared()
        if self._coordinator.syncs:
            for partition in self._entered:
                log = self._log_at(partition)
                log.flush_until(log.end_offset)
        oscalls.reach_failpoint("transaction.synced")
        self._in_doubt = True
        try:
            self._decided = self._change(
                lambda state: self._own(state).prepared(oscalls.wall_clock(), commit=True, by_owner=True),
                durable=self._coordinator.syncs,
            )
        except (ProducerFencedError, TransactionError):
            raise
        except Error as error:
            raise outcome_of(error, "unknown") from None
        self._in_doubt = False
        oscalls.reach_failpoint("transaction.decided")

    def _require_cleared(self) -> None:
        """A COMMIT marker must not meet what an earlier instance left open."""
        state = self._log.state(self.transactional_id)
        left = () if state is None else [one for one in state.partitions if one in self._uncleared]
        if left:
            raise TransactionError(
                f"{self.transactional_id}: entering {left[0].topic}-{left[0].partition} failed half-way, and what an "
                f"earlier instance may have open there would be committed too: enter it again, or abort",
                self.producer_id,
            )

    def _find_out(self) -> None:
        """Writing or syncing a decision failed: is it there? Sets ``_decided`` when it is.

        What hinders the look says nothing of the transaction: it stays unknown, and may be asked again.
        """
        try:
            state = self._log.state(self.transactional_id)
            if state is not None and state.producer_id == self.producer_id:
                if state.is_ongoing and state.producer_epoch == self.producer_epoch:
                    self._in_doubt = False
                    return
                if state.is_prepared and state.producer_epoch == self.producer_epoch:
                    if self._coordinator.syncs:
                        self._log.log.flush_until(self._log.log.end_offset)
                    self._decided, self._in_doubt = state, False
                    return
            decision = self._log.first_decision(
                self.transactional_id, self._first_change, self.producer_id, self.producer_epoch
            )
        except Error as error:
            raise outcome_of(error, "unknown") from None
        if decision is not None and decision.commits:
            # by others, who may not be done with it: it is over when all of it is visible
            self._decided, self._in_doubt = decision, False
            return
        self._fenced = outcome_of(self._fenced_error(state), "unknown" if decision is None else "aborted")
        self._give_way()
        if decision is None:
            raise outcome_of(
                TransactionError(
                    f"{self.transactional_id}: what became of the transaction cannot be told any more", self.producer_id
                ),
                "unknown",
            )
        raise self._fenced

    def _finish(self) -> None:
        """Markers, and the record that they are there."""
        decided = self._decided
        if decided is None:
            raise AssertionError("a transaction is finished once it is decided")
        try:
            if decided.commits and decided.producer_epoch != self.producer_epoch:
                # by who took over, and so are its markers
                self._coordinator.settle(self.transactional_id, lambda state: state.is_prepared)
                state = self._log.state(self.transactional_id)
            else:
                state = self._coordinator.finish(self.transactional_id, decided, self._log_at)
        except Error as error:
            raise outcome_of(error, "unknown" if decided.commits else None) from None
        self._end()
        if state is not None and state.producer_id == decided.producer_id:
            if state.producer_epoch == decided.producer_epoch and not state.is_open:
                self._take(state)
                return
            if (
                state.producer_epoch == decided.next_epoch
                and not state.is_open
                and state.status is not TransactionStatus.EMPTY
            ):
                # somebody took it for dead, and has completed it: nobody else was opened, so this instance may go on
                self._resume(state)
                return
        self._fence(state)

    def _resume(self, left: TransactionState) -> None:
        def decide(state: TransactionState | None) -> TransactionState:
            if state != left:
                raise self._fenced_error(state)
            return left.opened(self.timeout_ms, oscalls.wall_clock(), left.producer_id)

        if left.producer_epoch >= LAST_EPOCH:
            self._fence(left)
            return
        try:
            state, _ = self._log.change(self.transactional_id, decide, durable=self._coordinator.syncs)
        except ProducerFencedError as error:
            self._fenced = error
            return
        except Error as error:
            # the transaction has ended all the same
            logger.warning("%s has to be opened again: %s", self.transactional_id, error)
            self._fence(left)
            return
        if state is not None:
            self._take(state)

    def close(self) -> None:
        """Abort what is open, or finish what is decided, and let go. Idempotent. The id may be opened again by anybody,
        at any time.

        Raises StorageError when that fails: then the transaction is left to its time-out.
        """
        if self._forks != oscalls.forks():
            self._closed = True
            return
        with self._lock:
            if self._closed:
                return
            settled = False
            try:
                # of a closed store the slot is free: others abort
                if not self._coordinator.closed:
                    if self.in_transaction and self._decided is None and self._in_doubt:
                        self._find_out()
                    if not self.in_transaction:
                        if self._entry.is_running:
                            self._give_way()
                    elif self._decided is None:
                        self.abort()
                    else:
                        self._finish()
                    settled = not self._entry.is_running
            finally:
                self._closed = True
                for lease in self._leases.values():
                    lease.release()
                self._leases.clear()
                if settled:
                    self._entry.release()

    # --- helpers ------------------------------------------------------------------------------------------------------

    def _log_at(self, partition: TopicPartition) -> PartitionLog:
        """The partition's log, open for as long as this instance, or until the topic is deleted."""
        version = self.directory.topics_version
        if version != self._topics_version:
            # a topic may have been deleted, and made again
            self._topics_version = version
            for known, held in list(self._leases.items()):
                if not self._is_current(held):
                    del self._leases[known]
                    held.release()
        lease = self._leases.get(partition)
        if lease is None:
            lease = self.directory.lease(partition.topic, partition.partition)
            self._leases[partition] = lease
        return lease.log

    def _is_current(self, lease: Lease) -> bool:
        try:
            return self.directory.topic(lease.topic).topic_id == lease.key.topic_id
        except UnknownTopicError:
            return False

    def _clear(self, log: PartitionLog) -> None:
        """An earlier instance cannot have anything open here, unless its state record was lost: it must not become part
        of this one. What a later one has open is not to be touched: this one is fenced, and will be told so.
        """
        for found in log.open_transactions():
            if found.producer_id == self.producer_id and found.producer_epoch <= self.producer_epoch:
                write_marker(log, self.producer_id, self.producer_epoch, commit=False)

    def _change(
        self, decide: Callable[[TransactionState | None], TransactionState], *, durable: bool = False
    ) -> TransactionState:
        """A change as the owner. Fenced: the transaction is over, others have aborted it."""
        try:
            state, _ = self._log.change(self.transactional_id, decide, durable=durable)
        except ProducerFencedError as error:
            self._fenced = outcome_of(error, "aborted")
            self._give_way()
            raise
        if state is None:
            raise AssertionError("a change leaves a state")
        return state

    def _is_ongoing(self) -> bool:
        """Whether the state log knows of a transaction of this instance."""
        state = self._log.state(self.transactional_id)
        return (
            state is not None
            and state.is_ongoing
            and (state.producer_id, state.producer_epoch) == (self.producer_id, self.producer_epoch)
        )

    def _own(self, state: TransactionState | None) -> TransactionState:
        """The state, if this instance may change it."""
        if state is None:
            raise self._fenced_error(state)
        state.require(self.producer_id, self.producer_epoch)
        return state

    def _end(self) -> None:
        self.in_transaction = False
        self._entry.end()

    def _give_way(self) -> None:
        """Others have ended the transaction. They may have died or failed half-way, and who looks after that goes by
        this entry: it stays until all markers are there.
        """
        self.in_transaction = False
        try:
            self._coordinator.settle(self.transactional_id, lambda state: state.is_prepared)
        except Error as error:
            logger.warning("the end of a transaction of %s is left to its time-out: %s", self.transactional_id, error)
        else:
            self._entry.end()

    def _fence(self, state: TransactionState | None) -> None:
        self._fenced = self._fenced_error(state)

    def _fenced_error(self, state: TransactionState | None) -> ProducerFencedError:
        found = "nothing" if state is None else f"producer id {state.producer_id}, epoch {state.producer_epoch}"
        return ProducerFencedError(
            f"{self.transactional_id}: this instance has producer id {self.producer_id}, epoch {self.producer_epoch}, "
            f"but {found} counts now: another instance was opened, or the transaction timed out; close this producer",
            self.producer_id,
            self.producer_epoch,
            None if state is None else state.producer_epoch,
        )

    def _own_lock(self) -> threading.RLock:
        """The lock, for the process that opened it: in a child, a thread that is not there may have it for ever."""
        if self._forks != oscalls.forks():
            raise ForkedHandleError(
                f"the producer with transactional id {self.transactional_id} was opened before a fork and belongs to "
                f"the parent process: open another one in the child"
            )
        return self._lock

    def _require_usable(self) -> None:
        if self._closed:
            raise ClosedError(f"the producer with transactional id {self.transactional_id} is closed")
        if self._fenced is not None:
            raise self._fenced

    def _require_open_transaction(self) -> None:
        self._require_usable()
        if not self.in_transaction:
            raise TransactionError(
                f"{self.transactional_id}: no transaction is open: begin one first", self.producer_id
            )


def outcome_of(error: _E, outcome: str | None) -> _E:
    """The error, which says what became of the transaction: ``"aborted"``, ``"unknown"``, or None while it is open."""
    error.outcome = outcome
    return error
