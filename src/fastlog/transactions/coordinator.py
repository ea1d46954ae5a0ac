"""The coordinator of transactions: it lives in every process that has the store open, and needs none of the others
alive.

The truth is ``__transaction_state``: every change there is a conditional append, so that of two who decide, one does.
What
was decided is carried out by whoever decided it, and if he dies by anybody else: the next instance of the id, the
watcher of any process that sees his death or his time-out, whoever waits for the partition, or the next one to open the
store.

Why a marker that comes late does no harm: see ``states``. Markers go to every partition of a transaction, also where
nothing is open: they carry the epoch that keeps a stopped producer's batches out.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING, TypeVar

from fastlog._core import PartitionLog
from fastlog._native import oscalls
from fastlog.errors import ClosedError, Error, FencedError, ProducerFencedError, UnknownTopicError
from fastlog.records import TopicPartition
from fastlog.store.internal import INTERNAL_PARTITIONS, TRANSACTION_STATE, partition_for_name
from fastlog.transactions.registry import Registry, Running, name_word
from fastlog.transactions.statelog import StateLog
from fastlog.transactions.states import TransactionState

if TYPE_CHECKING:
    from fastlog.liveness import Slot
    from fastlog.liveness.watcher import Timer
    from fastlog.store.directory import Directory

__all__ = ["Coordinator", "fresh_producer_id"]

logger = logging.getLogger("fastlog.transactions")
_T = TypeVar("_T")

TICK_SECONDS = 0.1
FOLLOW_SECONDS = 0.5
TICKS_PER_LOOK = 5  # at partitions that are open here
STUCK_MS = 1000  # a last stable offset that stands still for so long is looked into
_FIRST_ID, _LIMIT_ID = 1 << 40, 1 << 62


def fresh_producer_id() -> int:
    """A random producer id, from where no broker starts counting."""
    return _FIRST_ID + int(oscalls.random_bytes(8).hex(), 16) % (_LIMIT_ID - _FIRST_ID)


class Coordinator:
    """Transactions of one open store. One for each ``Directory``; any thread."""

    def __init__(self, directory: Directory) -> None:
        self.directory = directory
        self.registry = Registry(directory.control, directory.lock_timeout)
        self.syncs = directory.durability != "os"
        self._logs: dict[int, StateLog] = {}
        self._lock = threading.RLock()
        self._logs_lock = threading.Lock()
        self._settling = threading.RLock()
        self._started = False
        self._closed = False
        self._slot: Slot | None = None
        self._prepared_here: dict[str, TransactionState] = {}
        self._watched: set[int] = set()
        self._dead: set[int] = set()
        self._stable: dict[TopicPartition, tuple[int, int]] = {}  # last stable offset, and since when
        self._suspects: set[TopicPartition] = set()
        self._ticks = 0
        self._runner: threading.Thread | None = None
        self._timer: Timer | None = None

    @staticmethod
    def of(directory: Directory) -> Coordinator:
        """The coordinator of this directory, made when it is first asked for; closed with the directory."""
        with directory.making:
            found = directory.companions.get(Coordinator)
            if not isinstance(found, Coordinator):
                found = directory.companions[Coordinator] = Coordinator(directory)
                directory.add_closer(found.close)
            return found

    # --- beginning and end --------------------------------------------------------------------------------------------

    def attach(self) -> None:
        """Take part in ending what others leave behind, if the store has ever had a transaction."""
        if (
            not self._started
            and not self.directory.read_only
            and TRANSACTION_STATE in self.directory.topics(internal=True)
        ):
            self.start()

    def follow(self) -> None:
        """``attach`` now, or when somebody opens the store's first transactional id. For who waits for records."""
        self.attach()
        with self._lock:
            if self._timer is None and not self._closed and not self.directory.read_only:
                self._timer = self.directory.watcher.every(FOLLOW_SECONDS, self.attach)

    def start(self) -> None:
        """Make ready: what was open when the store's last process ended is ended now, before anything new begins."""
        with self._lock:
            if self._started:
                return
            directory = self.directory
            directory.internal_topic(TRANSACTION_STATE)
            if not self.registry.is_made:
                with self.registry.locked():
                    if not self.registry.is_made:
                        self.registry.create(self._recover())
            self._slot = directory.slots.enter()
            self._started = True
            if self._timer is not None:
                self._timer.cancel()
            self._timer = directory.watcher.every(TICK_SECONDS, self._tick)

    def close(self) -> None:
        """Stop taking part. Entries of ids that are still open stay until this process ends or closes its slot."""
        with self._lock:
            if self._closed:
                return
            self._closed = True
            if self._timer is not None:
                self._timer.cancel()
            runner = self._runner
        if runner is not None and runner is not threading.current_thread():
            runner.join()
        with self._lock:
            if self._slot is not None:
                self._slot.leave()
            self.registry.close()

    @property
    def closed(self) -> bool:
        return self._closed

    @property
    def slot(self) -> Slot:
        """The lock slot of this handle of the store."""
        self.start()
        if self._slot is None or self._closed:
            raise ClosedError(f"the store {self.directory.root} is closed")
        return self._slot

    def _recover(self) -> bool:
        """Nobody else is there: end every transaction. Whether power loss may have taken records of producers."""
        unclean = False
        for number in self._used_partitions():
            log = self._log(number)
            unclean |= log.log.recovery is not None
            for transactional_id, state in log.states().items():
                if state.is_open:
                    logger.warning("ending the transaction that %s left open: %s", transactional_id, state.status.name)
                    self.settle(transactional_id)
        return unclean

    # --- states -------------------------------------------------------------------------------------------------------

    def log_of(self, transactional_id: str) -> StateLog:
        return self._log(partition_for_name(transactional_id))

    def _log(self, number: int) -> StateLog:
        found = self._logs.get(number)
        if found is None:
            with self._logs_lock:
                found = self._logs.get(number)
                if found is None:
                    found = self._logs[number] = StateLog(self.directory.partition_log(TRANSACTION_STATE, number))
        return found

    def _used_partitions(self) -> list[int]:
        """Numbers of the state partitions that have a folder."""
        return [number for number in range(INTERNAL_PARTITIONS) if self.directory.is_created(TRANSACTION_STATE, number)]

    def find_producer(self, producer_id: int) -> tuple[str, TransactionState] | None:
        """The transactional id that has this producer id now; reads what is new in every state partition."""
        for number in self._used_partitions():
            for transactional_id, state in self._log(number).states().items():
                if state.producer_id == producer_id:
                    return transactional_id, state
        return None

    def open(self, transactional_id: str, timeout_ms: int) -> TransactionState:
        """A new instance of the id: the one before is fenced, its open transaction aborted, or completed when it was
        decided.

        Raises StorageError, LockedError, as appends do.
        """
        fresh = fresh_producer_id()
        renews = self.registry.renews

        def decide(state: TransactionState | None) -> TransactionState:
            now = oscalls.wall_clock()
            if state is None:
                return TransactionState(fresh, 0, timeout_ms, last_update=now)
            if state.is_open:
                return state.prepared(now, commit=state.commits, by_owner=False)
            return state.opened(timeout_ms, now, fresh, renews=renews)

        log = self.log_of(transactional_id)
        while True:
            state, _ = log.change(transactional_id, decide, durable=self.syncs)
            if state is None or not state.is_prepared:
                break
            self.finish(transactional_id, state)
        oscalls.reach_failpoint("transaction.opened")
        if state is None:
            raise AssertionError("an id that was opened has a state")
        return state

    def settle(self, transactional_id: str, may: Callable[[TransactionState], bool] = lambda _: True) -> bool:
        """End what the id's owner does not end: abort what is ongoing, complete what is prepared. Whether it was open.

        ``may`` is asked for every state that is about to be changed, after it was read: it must look anew at what it
        goes by.
        """

        def decide(state: TransactionState | None) -> TransactionState | None:
            if state is None or not state.is_open or not may(state):
                return None
            if state == self._prepared_here.get(transactional_id):
                return None
            return state.prepared(oscalls.wall_clock(), commit=state.commits, by_owner=False)

        with self._settling:
            state, written = self.log_of(transactional_id).change(transactional_id, decide, durable=self.syncs)
            if state is None or not state.is_prepared:
                return False
            if written:
                self._prepared_here[transactional_id] = state
            elif state != self._prepared_here.get(transactional_id) or not may(state):
                return False
            oscalls.reach_failpoint("transaction.decided")
            self.finish(transactional_id, state)
            self._prepared_here.pop(transactional_id, None)
            return True

    def finish(
        self,
        transactional_id: str,
        prepared: TransactionState,
        log_at: Callable[[TopicPartition], PartitionLog] | None = None,
    ) -> TransactionState | None:
        """Write the markers of a decision that was written here, and that all of them are there; the id's state then.

        At every level but ``os`` the markers of a commit survive power loss before it is written that they are there.
        Those of an abort need not: records that are left open are aborted anyway.

        A partition whose topic is gone needs none. ``log_at`` gives logs that are open already. What cannot be written,
        or not be synced, is raised when all the others are; the transaction stays prepared then, and this may be called
        again.
        """
        problem: Error | None = None
        marked: list[tuple[TopicPartition, int]] = []
        for partition in prepared.partitions:
            try:
                end = self._at(partition, log_at, partial(end_transaction, prepared=prepared))
                if end is not None:
                    marked.append((partition, end))
            except Error as error:
                logger.warning("no marker in %s-%d for %s: %s", *partition, transactional_id, error)
                problem = problem or error
            oscalls.reach_failpoint("transaction.marked")
        if prepared.commits and self.syncs:
            # only when all are there: so partitions become visible right after one another
            for partition, end in marked:
                try:
                    self._at(partition, log_at, partial(flush_until, end=end))
                except Error as error:
                    logger.warning("the marker in %s-%d for %s is not synced: %s", *partition, transactional_id, error)
                    problem = problem or error
        if problem is not None:
            raise problem

        def decide(state: TransactionState | None) -> TransactionState | None:
            # whoever took over completes it himself
            return state.completed(oscalls.wall_clock()) if state == prepared else None

        state, _ = self.log_of(transactional_id).change(transactional_id, decide)
        oscalls.reach_failpoint("transaction.completed")
        return state

    def _at(
        self,
        partition: TopicPartition,
        log_at: Callable[[TopicPartition], PartitionLog] | None,
        work: Callable[[PartitionLog], _T],
    ) -> _T | None:
        """``work`` with the partition's log; None when nothing is to be done there."""
        try:
            if log_at is not None:
                return work(log_at(partition))
            with self.directory.lease(*partition) as lease:
                return work(lease.log)
        except UnknownTopicError:
            logger.warning("%s-%d was deleted in the middle of a transaction", *partition)
        except ProducerFencedError:
            pass  # marked by whoever took over, with a newer epoch
        return None

    # --- the dead and the late ----------------------------------------------------------------------------------------

    def _tick(self) -> None:
        """Called by the watcher, so it only looks; what there is to do another thread does."""
        if self._closed:
            return
        now = oscalls.steady_clock()
        own = -1 if self._slot is None else self._slot.number
        due = False
        slots = set()
        for running in self.registry.running():
            slots.add(running.slot)
            if running.slot != own and running.slot not in self._watched:
                self._watched.add(running.slot)
                self.directory.watcher.watch(running.slot, running.identity, self._on_death)
            due |= running.slot in self._dead or running.expired(now)
        for gone in self._watched - slots:
            self.directory.watcher.unwatch(gone, self._on_death)
        self._watched &= slots
        self._dead &= slots
        self._ticks += 1
        if self._ticks % TICKS_PER_LOOK == 0:
            self._look_at_partitions(now)
        if due or self._suspects:
            self._begin_sweep()

    def _look_at_partitions(self, now: int) -> None:
        """Partitions whose last stable offset stands still for too long."""
        seen: dict[TopicPartition, tuple[int, int]] = {}
        for partition, log in self.directory.open_logs():
            try:
                stable = log.last_stable_offset
                if stable == log.end_offset:
                    continue
            except Error:
                continue  # closed meanwhile
            offset, since = self._stable.get(partition, (-1, now))
            if offset != stable:
                since = now
            elif now - since > STUCK_MS:
                self._suspects.add(partition)
                since = now
            seen[partition] = (stable, since)
        self._stable = seen

    def _on_death(self, slot: int) -> None:
        self._dead.add(slot)
        self._begin_sweep()

    def _begin_sweep(self) -> None:
        with self._lock:
            if self._closed or (self._runner is not None and self._runner.is_alive()):
                return
            runner = threading.Thread(target=self.sweep, name="fastlog-transactions", daemon=True)
            runner.start()
            self._runner = runner

    def sweep(self) -> None:
        """End the transactions of dead owners, those that take too long, and those that nobody knows. Never raises."""
        if self._closed:
            return
        try:
            self._sweep()
            while self._suspects:
                partition = self._suspects.pop()
                with self.directory.lease(*partition) as lease:
                    self._resolve(partition, lease.log)
        except ClosedError:
            pass
        except Exception:
            logger.exception("open transactions of %s could not be looked through", self.directory.root)

    def _sweep(self) -> None:
        now = oscalls.steady_clock()
        alive: dict[int, bool] = {} if self._slot is None else {self._slot.number: True}
        for running in self.registry.running():
            if running.slot not in alive:
                alive[running.slot] = self.directory.slots.is_alive(running.slot)
            dead = not alive[running.slot]
            if dead:
                # it may have gone on to another transaction before it died
                latest = self.registry.latest(running)
                if latest is None:
                    continue
                running = latest
            if (dead or running.expired(now)) and self.registry.claim(running):
                try:
                    self._attend(running, dead=dead)
                except ClosedError:
                    raise
                except Error as error:
                    logger.warning("a transaction could not be ended, the next try is in a second: %s", error)

    def _attend(self, running: Running, *, dead: bool) -> None:
        """End what the owner of this entry has open, if it still is the same."""

        def may(state: TransactionState) -> bool:
            is_its = (state.producer_id, state.producer_epoch) == (running.producer_id, running.epoch)
            return self.registry.is_same(running) and (state.is_prepared or is_its)

        for transactional_id in list(self._log(running.state_partition).states()):
            if name_word(transactional_id) == running.name and self.settle(transactional_id, may):
                logger.warning(
                    "ended the transaction of %s: %s",
                    transactional_id,
                    "its process died" if dead else "it took too long",
                )
        if dead:
            self.registry.free(running)

    # --- partitions that wait -----------------------------------------------------------------------------------------

    def resolve_partition(self, partition: TopicPartition, log: PartitionLog) -> bool:
        """End what is open in this partition and nobody will end: of dead owners, and what ``__transaction_state`` does
        not know.

        The latter is left when power loss took a state record and not the data. True when nothing is open any more.
        """
        self.start()
        self._sweep()
        return self._resolve(partition, log)

    def _resolve(self, partition: TopicPartition, log: PartitionLog) -> bool:
        for _ in range(3):
            end = log.end_offset
            still = log.open_transactions()
            for found in still:
                if self._is_known(found.producer_id, partition):
                    continue
                with suppress(FencedError, ProducerFencedError):
                    # nobody may have written to the partition since: it could be the first batch of a new transaction
                    write_marker(log, found.producer_id, found.producer_epoch, commit=False, expected_end_offset=end)
                    logger.warning("aborted a transaction in %s-%d that nobody knows: %s", *partition, found)
                end = -1
                break
            if end >= 0:
                return not still
        return not log.open_transactions()

    def _is_known(self, producer_id: int, partition: TopicPartition) -> bool:
        for running in self.registry.running():
            if running.producer_id == producer_id:
                states = self._log(running.state_partition).states()
                if any(is_part(state, producer_id, partition) for state in states.values()):
                    return True
        found = self.find_producer(producer_id)
        return found is not None and is_part(found[1], producer_id, partition)

    def wait_until_stable(
        self, partition: TopicPartition, log: PartitionLog, offset: int, timeout_ms: float | None = None
    ) -> bool:
        """Wait until every transaction that began below ``offset`` has ended; False when the time is over first.

        Owners that live may take as long as their time-out.
        """
        deadline = None if timeout_ms is None else oscalls.steady_clock() + timeout_ms
        pause = 1  # ms
        while log.last_stable_offset < offset:
            self.resolve_partition(partition, log)
            if log.last_stable_offset >= offset:
                return True
            if deadline is not None and oscalls.steady_clock() >= deadline:
                return False
            oscalls.nap(pause)
            pause = min(2 * pause, 50)
        return True


def is_part(state: TransactionState, producer_id: int, partition: TopicPartition) -> bool:
    """Whether the partition is part of the open transaction of this producer."""
    return state.producer_id == producer_id and state.is_open and partition in state.partitions


def flush_until(log: PartitionLog, end: int) -> None:
    """Make everything below ``end`` durable."""
    log.flush_until(end)


def end_transaction(log: PartitionLog, prepared: TransactionState) -> int:
    """Write the marker of a decision, not synced; the offset behind it. Raises ProducerFencedError when the partition
    has seen a newer epoch.

    While the state says Prepare, a marker that is lost is written again.
    """
    return 1 + write_marker(log, prepared.producer_id, prepared.producer_epoch, commit=prepared.commits, durable=False)


def write_marker(
    log: PartitionLog,
    producer_id: int,
    producer_epoch: int,
    *,
    commit: bool,
    durable: bool = True,
    expected_end_offset: int | None = None,
) -> int:
    """Append a marker; its offset. Raises as ``PartitionLog.end_transaction``.

    A log refuses markers of a coordinator that was overtaken, which their epoch tells. Here the records of
    ``__transaction_state`` decide who may write one, and the epoch is 0; but a partition that was with a Kafka broker
    has seen the epochs of its coordinators.
    """
    epoch = 0
    while True:
        try:
            return log.end_transaction(
                producer_id,
                producer_epoch,
                commit=commit,
                durable=durable,
                expected_end_offset=expected_end_offset,
                coordinator_epoch=epoch,
            )
        except FencedError as error:
            if error.coordinator_epoch is None or error.coordinator_epoch <= epoch:
                raise
            epoch = error.coordinator_epoch
