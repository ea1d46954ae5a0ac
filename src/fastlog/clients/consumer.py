"""Consumers: records of many partitions, by iteration, poll or batches, alone or as a member of a group."""

from __future__ import annotations

import logging
import re
import threading
import weakref
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from datetime import datetime, timedelta
from itertools import chain, islice
from types import TracebackType
from typing import TYPE_CHECKING, Any, Generic, NamedTuple, NoReturn, Self

from fastlog._core import Record, RecordBatch, RecordCursor
from fastlog._native import oscalls
from fastlog.config import ISOLATION_LEVELS, parse_duration_ms, parse_size
from fastlog.errors import (
    ClosedError,
    CommitFailedError,
    ConfigError,
    Error,
    ForkedHandleError,
    GroupError,
    InvalidRecordError,
    LockedError,
    UnknownTopicError,
)
from fastlog.groups.formats import checked_offsets
from fastlog.groups.lag import Lag, lag_at
from fastlog.groups.membership import Membership, OwnerEpoch
from fastlog.groups.offsets import OffsetAndMetadata, OffsetStore
from fastlog.records import TopicPartition, is_offset, list_of, named_partition, utf8_of
from fastlog.store.places import aware, offset_at, readable_end
from fastlog.transactions import Coordinator, resolve_pending

from .bounds import Bounds
from .fetching import Assigned, Fetcher, checked_out_of_range
from .progress import Pulse, retention_warnings
from .starting import Start, start_of
from .subscriptions import Subscription
from .waiting import waiter_of

if TYPE_CHECKING:
    from typing_extensions import TypeVar

    from fastlog.store.directory import Directory

    K = TypeVar("K", default=bytes | None)
    V = TypeVar("V", default=bytes | None)
else:
    from typing import TypeVar

    K, V = TypeVar("K"), TypeVar("V")


__all__ = ["Consumer", "ConsumerStats"]

logger = logging.getLogger("fastlog.consumer")

Duration = float | str | timedelta
Callback = Callable[[list[TopicPartition]], object]

SLICE_MS = 50  # a writer that is killed before it rings delays nobody for longer
RETENTION_CHECK_MS = 60_000


class ConsumerStats(NamedTuple):
    """What a consumer did since it was opened: plain counts."""

    records: int
    batches: int
    commits: int
    failed_commits: int
    rebalances: int
    resets: int


class Call:
    """A call of a consumer, from its beginning to its end: nobody else is inside meanwhile."""

    __slots__ = ("_consumer", "_raises")

    def __init__(self, consumer: Consumer[Any, Any], *, raises: bool = True) -> None:
        self._consumer = consumer
        self._raises = raises

    def __enter__(self) -> bool:
        return self._consumer._begin_call(self._raises)

    def __exit__(self, *exception: object) -> None:
        self._consumer._end_call()


class Consumer(Generic[K, V]):
    """Reads topics: alone, or as a member of a group that shares their partitions and remembers how far it is.

    Opened by ``Store.consumer``. Iterate over it, or call ``poll``, ``batches`` or ``records``: all go on where the
    last one ended. A record, list or batch is *finished* when the next is asked for, or by ``commit()``; an iterated
    record also when the ``with`` block ends without an exception. What is finished is committed every
    ``auto_commit_interval``, when partitions go to another member, and at the end: whatever dies, nothing is skipped,
    and what was in hand comes again.

    One thread at a time; another one meanwhile gets a LockedError. Only ``close`` and ``wakeup`` may be called from any
    thread: the first ends the iteration.
    """

    def __init__(
        self,
        directory: Directory,
        topics: str | Sequence[str] | re.Pattern[str],
        *,
        group: str | None = None,
        start: Start = "latest",
        auto_commit: bool = True,
        auto_commit_interval: Duration = "1s",
        isolation: str = "read_committed",
        max_poll_interval: Duration = "5m",
        session_timeout: Duration = "45s",
        instance_id: str | None = None,
        assignor: str = "cooperative-sticky",
        key_deserializer: Callable[[bytes], K] | None = None,
        value_deserializer: Callable[[bytes], V] | None = None,
        on_assigned: Callback | None = None,
        on_revoked: Callback | None = None,
        on_lost: Callback | None = None,
        partitions: Iterable[TopicPartition | tuple[str, int] | int] | None = None,
        out_of_range: str = "start",
        fetch_bytes: int | str = "1MiB",
        client_id: str = "",
    ) -> None:
        if isolation not in ISOLATION_LEVELS:
            raise ConfigError(f"isolation={isolation!r}: expected one of {', '.join(map(repr, ISOLATION_LEVELS))}")
        if group is not None and (not isinstance(group, str) or not group):
            raise GroupError(f"group={group!r}: expected a name, or None to read without a group")
        for option, text in (("instance_id", instance_id), ("client_id", client_id)):
            if text is not None and utf8_of(text) is None:
                raise ConfigError(f"{option}={text!r}: expected a str that has a UTF-8 form")
        if group is None and instance_id is not None:
            raise ConfigError(f"instance_id={instance_id!r} without a group: name the group, or leave it out")
        if group is not None and partitions is not None:
            raise ConfigError(
                f"partitions= together with group={group!r}: a group shares out the partitions itself. Leave one of "
                "them out"
            )
        self._directory = directory
        self._group = group
        self._forks = oscalls.forks()
        self._gate = threading.RLock()
        self._state = threading.RLock()
        self._depth = 0
        self._closing = False
        self._closed = False
        self._is_finishing = False
        if not isinstance(auto_commit, bool):
            raise ConfigError(
                f"auto_commit={auto_commit!r}: expected True or False; how often it commits is auto_commit_interval"
            )
        self._auto_commit = auto_commit and group is not None
        self._commit_interval = parse_duration_ms(auto_commit_interval, "auto_commit_interval")
        self._committed_at = oscalls.steady_clock()
        self._polled_at = self._committed_at
        self._checked_at = self._committed_at
        self._max_poll_interval = parse_duration_ms(max_poll_interval, "max_poll_interval")
        self._key_deserializer = self._decoder(key_deserializer, "key")
        self._value_deserializer = self._decoder(value_deserializer, "value")
        self._on_assigned, self._on_revoked, self._on_lost = on_assigned, on_revoked, on_lost
        self._cursor: RecordCursor | None = None
        self._reading: Assigned | None = None
        self._iterating = False
        self._attention = False
        self._touched: list[Assigned] = []
        self._counts = dict.fromkeys(ConsumerStats._fields, 0)
        self._counted = 0
        self._enlisted = False
        self._group_bell = 0
        self._misses_partitions = False
        self._unresolved: list[TopicPartition] = []
        self._beside: set[TopicPartition] = set()
        self._woken = False
        self._has_joined = group is None
        self._is_told = True
        self._has_to_rewind = False
        self._membership: Membership | None = None
        self._offsets: OffsetStore | None = None
        self._pulse: Pulse | None = None
        self._fetcher = Fetcher(
            directory,
            isolation,
            start_of(start),
            checked_out_of_range(out_of_range),
            parse_size(fetch_bytes, "fetch_bytes"),
        )
        self._subscription = Subscription(directory, topics, partitions)
        self._waiter = waiter_of(directory)
        if not directory.read_only:
            # transactions of owners that died would hide what comes behind them
            Coordinator.of(directory).follow()
        if group is None:
            try:
                self._follow_topics()
            except BaseException:
                self._fetcher.remove(self._fetcher.names())
                raise
        else:
            self._join(
                group, topics, instance_id, assignor, parse_duration_ms(session_timeout, "session_timeout"), client_id
            )
        # nobody but the application keeps a consumer alive: one that it drops has left its group
        closer = weakly(self.close)
        directory.add_closer(closer)
        self._forget_closer = weakref.finalize(self, directory.remove_closer, closer)
        self._forget_closer.atexit = False

    # --- opening and closing -----------------------------------------------------------------------------------------

    def _join(
        self,
        group: str,
        topics: str | Sequence[str] | re.Pattern[str],
        instance_id: str | None,
        assignor: str,
        session_timeout_ms: int,
        client_id: str,
    ) -> None:
        self._offsets = OffsetStore(self._directory)
        self._membership = Membership(
            self._directory,
            group,
            topics=topics if isinstance(topics, re.Pattern) else self._subscription.topics,
            instance_id=instance_id,
            assignor=assignor,
            session_timeout_ms=session_timeout_ms,
            max_poll_interval_ms=self._max_poll_interval,
            client_id=client_id,
        )
        self._membership.set_wake(weakly(self._interrupt))
        self._group_bell = 1 << self._membership.bell
        self._pulse = self._start_pulse()

    def _start_pulse(self) -> Pulse | None:
        """What commits while a handler takes its time, and looks at the group."""
        return Pulse(
            weakref.ref(self),
            waiter_of(self._directory),
            self._group_bell,
            self._commit_interval,
        )

    def close(self) -> None:
        """End the iteration, commit what is finished, leave the group, and give everything back. Idempotent.

        May be called from any thread, and from a signal handler. What is in hand is not finished: it comes again.
        A commit that fails here is logged.
        """
        if self._closed or oscalls.forks() != self._forks:
            return
        self._closing = True
        self._interrupt()
        with self._gate:
            if self._depth == 0:  # else inside a call of this very thread: its end does the rest
                self._finish()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        exception_type: type[BaseException] | None,
        exception: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        is_ours = oscalls.forks() == self._forks
        if exception_type is None and is_ours and not self._closed and self._iterating:
            with self._gate, self._state:
                self._ask()
        self.close()

    @property
    def closed(self) -> bool:
        """Whether the consumer was closed."""
        return self._closed

    def wakeup(self) -> None:
        """Let a ``poll`` or ``batches`` that waits, or the next one that would, end at once with nothing.

        May be called from any thread, and from a signal handler. An iteration goes on.
        """
        self._woken = True
        self._waiter.wake()

    def _finish(self) -> None:
        """The end of this consumer; the gate is held."""
        with self._state:
            if self._closed or self._is_finishing:
                return  # the latter: a callback uses the consumer once more
            self._is_finishing = True
            try:
                try:
                    self._note_progress()
                    self._drop_cursor()
                finally:  # others wait for what it has, whatever comes in between
                    if self._membership is not None:
                        self._leave(self._membership)
            finally:
                self._closed = True
                self._fetcher.remove(self._fetcher.names())
                self._forget_closer()
                if self._pulse is not None:
                    self._pulse.stop()

    def _leave(self, membership: Membership) -> None:
        try:
            names = self._own_names()
            self._commit_quietly()
            if names and self._on_revoked is not None and membership.fatal is None:
                self._on_revoked(names)
        finally:
            membership.leave()

    # --- who is inside -----------------------------------------------------------------------------------------------

    def _begin_call(self, raises: bool) -> bool:
        """One thread at a time. Whether the consumer is open: ``close`` ends an iteration without an error."""
        self._require_ours()
        if not self._gate.acquire(blocking=False):
            raise LockedError(
                "another thread is using this consumer: a consumer is used by one thread at a time, only close() may "
                "be called from others. Open one consumer for each thread"
            )
        try:
            self._state.acquire()
        except BaseException:
            self._gate.release()
            raise
        self._depth += 1
        is_open = not self._closed
        if raises or is_open:
            try:
                self._require_open()
            except BaseException:
                self._end_call()
                raise
        return is_open

    def _end_call(self) -> None:
        try:
            self._depth -= 1
            if self._closing and self._depth == 0:
                self._finish()
        finally:
            self._state.release()
            self._gate.release()

    def _require_ours(self) -> None:
        """Before any lock: in a forked child a thread that is not there may have it for ever."""
        if oscalls.forks() != self._forks:
            raise ForkedHandleError("this consumer was opened before the fork: open the store anew in the child")

    def _require_open(self) -> None:
        self._require_ours()
        if self._closed:
            raise ClosedError("the consumer is closed: open a new one with store.consumer(…)")

    def _interrupt(self) -> None:
        """From any thread: let the thread that iterates or waits look at the group, and at whether it has to end."""
        self._attention = True
        cursor = self._cursor
        if cursor is not None and self._iterating:
            cursor.stop()
        self._waiter.wake()

    @property
    def is_busy(self) -> bool:
        """Whether somebody iterates, and may be in the middle of a handler."""
        return self._iterating

    def interrupt(self) -> None:
        """From any thread: have the group looked at before the next record is handed out."""
        self._interrupt()

    def beat(self) -> None:
        """Every now and then, on a thread of its own: commit what is finished while a handler takes its time."""
        if not self._state.acquire(blocking=False):
            return  # a call is under way, which does this itself
        try:
            if self._closed or self._closing:
                return
            self._note_progress()
            self._commit_if_due(oscalls.steady_clock())
        finally:
            self._state.release()
        # whoever iterates shall look at the group now and then, also in the middle of a batch
        self._interrupt()

    # --- what is in hand ---------------------------------------------------------------------------------------------

    def _ask(self) -> None:
        """The next is asked for: whatever was handed out is finished."""
        cursor, reading = self._cursor, self._reading
        if cursor is not None and reading is not None:
            self._count(cursor)
            reading.position = reading.finished = cursor.next_offset
            if cursor.stopped or cursor.next_index == len(cursor.batch):
                self._cursor = self._reading = None
        for found in self._touched:
            found.finished = found.position
        self._touched.clear()
        self._iterating = False

    def _note_progress(self) -> None:
        """Bring positions up to date, without calling finished what is in hand."""
        cursor, reading = self._cursor, self._reading
        if cursor is None or reading is None:
            return
        self._count(cursor)
        reading.position = cursor.next_offset
        if self._iterating and cursor.current_offset is not None:
            reading.finished = max(reading.finished, cursor.current_offset)

    def _count(self, cursor: RecordCursor) -> None:
        self._counts["records"] += cursor.next_index - self._counted
        self._counted = cursor.next_index

    def _drop_cursor(self) -> None:
        """Forget what was fetched, but not handed out."""
        if self._cursor is not None:
            self._cursor.stop()
        self._cursor = self._reading = None

    # --- fetching ----------------------------------------------------------------------------------------------------

    def _wait_for_batch(
        self, deadline: int | None, bounds: Bounds | None = None, *, wakes: bool = False
    ) -> tuple[Assigned, RecordBatch] | None:
        """The next batch of any partition; None at the deadline (steady ms), at the bounds, or when closing.

        ``wakes``: also after ``wakeup``.
        """
        heard = -1
        while True:
            self._attention = False
            if heard != -1:
                heard = self._waiter.listen(self._fetcher.bells | self._group_bell)
            self._housekeep()
            if self._closing:
                return None
            found = self._look(bounds)
            if found is not None:
                return found
            if bounds is not None and self._is_done(bounds):
                return None
            if wakes and self._woken:
                self._woken = False
                return None
            left = SLICE_MS if deadline is None else min(deadline - oscalls.steady_clock(), SLICE_MS)
            if left <= 0:
                return None
            if heard == -1:
                heard = 0  # look once more after the bells know of us
                continue
            self._waiter.sleep(heard, left)

    def _look(self, bounds: Bounds | None = None) -> tuple[Assigned, RecordBatch] | None:
        """The next batch of any partition, None when there is none now."""
        if bounds is not None:
            bounds.look(self._fetcher)
        found = self._fetcher.next_batch(bounds)
        if found is not None:
            self._counts["batches"] += 1
        return found

    def _is_done(self, bounds: Bounds) -> bool:
        if not self._has_joined or self._unresolved:
            return False
        if not all(bounds.is_reached(found) for found in self._fetcher):
            return False
        # what the group gives to this member may still be with others, who let go of it at their next record
        return self._membership is None or self._membership.is_settled or bounds.is_patience_over()

    def _open_cursor(self, found: Assigned, batch: RecordBatch) -> RecordCursor:
        cursor = batch.cursor(self._key_deserializer, self._value_deserializer)
        self._reading, self._cursor, self._counted = found, cursor, 0
        return cursor

    def _rest(self) -> RecordCursor | None:
        """What was fetched and not handed out yet."""
        cursor, reading = self._cursor, self._reading
        if cursor is None or reading is None or cursor.stopped or reading.is_paused:
            return None
        return cursor if cursor.next_index < len(cursor.batch) else None

    def _rest_after_upkeep(self) -> RecordCursor | None:
        """What is left to hand out, after the group had its say about it."""
        if self._rest() is None:
            return None
        self._attention = False
        self._housekeep()
        return self._rest()

    def _cursors(self) -> Iterator[Iterable[Record[K, V]]]:
        """For iteration: one cursor after the other. Between two of them everything else is seen to."""
        while True:
            with Call(self, raises=False) as is_open:
                if not is_open:
                    return
                self._ask()
                cursor = self._rest_after_upkeep()
                if cursor is None:
                    found = self._wait_for_batch(None)
                    if found is None:
                        return
                    cursor = self._open_cursor(*found)
                self._iterating = True
                if self._attention:
                    cursor.stop()
            yield cursor

    def __iter__(self) -> Iterator[Record[K, V]]:
        """Records, one after the other; waits for more. ``close`` ends it."""
        self._require_open()
        return chain.from_iterable(self._cursors())

    def poll(self, max_records: int = 500, timeout: Duration | None = None) -> list[Record[K, V]]:
        """Up to ``max_records`` records, as soon as there are any; an empty list when ``timeout`` passes (None: never).

        All of the list is finished when the next call asks for more, or by ``commit()``.

        Raises:
            InvalidRecordError: a deserializer failed on the next record; it names it, and ``seek`` goes past it.
            OffsetOutOfRangeError: the position is not in the log any more, and ``out_of_range`` says to raise.
            CorruptLogError: the next records do not check out; ``next_offset`` of the error is where to seek.
            GroupError: another consumer with the same ``instance_id`` took its place.
            LockedError: another thread is using this consumer.
            ClosedError: the consumer was closed.
        """
        if not is_offset(max_records) or max_records < 1:
            raise ConfigError(f"max_records={max_records!r}: expected an integer from 1")
        with Call(self):
            self._ask()
            deadline = self._deadline(timeout)
            if self._rest_after_upkeep() is None:
                found = self._wait_for_batch(deadline, wakes=True)
                if found is None:
                    return []
                self._open_cursor(*found)
            return self._gather(max_records)

    def _gather(self, max_records: int) -> list[Record[K, V]]:
        """Records of what is fetched and of what can be fetched without waiting. All or nothing moves the positions."""
        records: list[Record[K, V]] = []
        before: list[tuple[Assigned, int]] = []
        try:
            while True:
                cursor, reading = self._rest(), self._reading
                if cursor is None or reading is None:
                    found = self._fetcher.next_batch()
                    if found is None:
                        break
                    self._counts["batches"] += 1
                    reading, cursor = found[0], self._open_cursor(*found)
                before.append((reading, reading.position))
                try:
                    records.extend(islice(cursor, max_records - len(records)))
                except InvalidRecordError:
                    if not records:
                        raise
                    break  # the records before it first
                finally:
                    self._count(cursor)
                    reading.position = cursor.next_offset
                if len(records) >= max_records:
                    break
        except BaseException:
            self._drop_cursor()
            for reading, position in reversed(before):
                reading.position = position
            raise
        self._touched += [reading for reading, _ in before]
        return records

    def batches(self, timeout: Duration | None = None) -> Iterator[RecordBatch]:
        """Record batches as columns, one partition after the other; ends when nothing comes for ``timeout``.

        A batch is finished when the next one is asked for, or by ``commit()``. Deserializers are not called. Without a
        ``timeout`` it waits for ever.
        """
        self._require_open()
        return self._batches(timeout)

    def _batches(self, timeout: Duration | None) -> Iterator[RecordBatch]:
        while True:
            with Call(self, raises=False) as is_open:
                if not is_open:
                    return
                self._ask()
                self._drop_cursor()
                found = self._wait_for_batch(self._deadline(timeout), wakes=True)
                if found is None:
                    return
                batch = self._hand_out(*found)
            yield batch

    def _hand_out(self, reading: Assigned, batch: RecordBatch) -> RecordBatch:
        """A whole batch is in hand now."""
        reading.position = batch.next_offset
        self._touched.append(reading)
        self._counts["records"] += len(batch)
        return batch

    def records(
        self,
        until: str | datetime | Mapping[TopicPartition, int] | None = "end",
        idle_timeout: Duration | None = None,
    ) -> Iterator[Record[K, V]]:
        """Records up to an end, one after the other, then stop.

        Args:
            until: ``"end"``: what is there when the iteration begins; an aware datetime: records before that time,
                waiting for it when it lies ahead; offsets by partition (exclusive): only these partitions; None: no
                end.
            idle_timeout: stop as well when nothing comes for so long.

        In a group these are the partitions that this member has; when others have them all there is nothing to hand
        out. For those that others are to hand over to it, it waits up to 10 s after the rest is read.
        """
        self._require_open()
        bounds = None if until is None else Bounds(until)
        return chain.from_iterable(self._bounded_cursors(bounds, idle_timeout))

    def _bounded_cursors(
        self, bounds: Bounds | None, idle_timeout: Duration | None
    ) -> Iterator[Iterable[Record[K, V]]]:
        while True:
            with Call(self, raises=False) as is_open:
                if not is_open:
                    return
                self._ask()
                self._drop_cursor()
                found = self._wait_for_batch(self._deadline(idle_timeout), bounds)
                if found is None:
                    return
                records = self._bounded(*found, bounds)
            yield records

    def _bounded(self, reading: Assigned, batch: RecordBatch, bounds: Bounds | None) -> Iterator[Record[K, V]]:
        """Those records of a batch that lie before the end."""
        cursor = self._open_cursor(reading, batch)
        count = len(cursor.batch) if bounds is None else bounds.allowed(reading, cursor)
        self._iterating = True
        if self._attention:
            cursor.stop()
        return islice(cursor, count)

    @staticmethod
    def _deadline(timeout: Duration | None) -> int | None:
        return None if timeout is None else oscalls.steady_clock() + parse_duration_ms(timeout, "timeout")

    # --- upkeep between two batches ----------------------------------------------------------------------------------

    def _housekeep(self) -> None:
        """Everything that has its time between two batches: the group, new partitions, commits, warnings."""
        now = oscalls.steady_clock()
        self._polled_at = now
        if self._membership is not None:
            self._go_back()
            self._follow_group(self._membership)
        elif self._subscription.has_changed() or self._misses_partitions:
            self._follow_topics()
        self._commit_if_due(now)
        if self._group is not None and now - self._checked_at >= RETENTION_CHECK_MS:
            self._checked_at = now
            retention_warnings(self._group, self._fetcher)

    def _follow_topics(self) -> None:
        """Without a group: read what the subscription names now."""
        wanted = self._subscription.partitions()
        gone = [name for name in self._fetcher.names() if name not in wanted]
        if gone:
            logger.warning("%s were deleted: not read any longer", ", ".join(f"{name[0]}-{name[1]}" for name in gone))
            self._forget(gone)
        self._misses_partitions = True  # until all are there: one that cannot be opened is tried again
        missing = [name for name in wanted if self._fetcher.get(name) is None]
        for name in missing:
            # where nothing may be written there is nothing to open before somebody writes to it
            if not self._directory.read_only or self._directory.is_created(*name):
                self._fetcher.add(name, None, is_new=self._subscription.is_following)
        self._misses_partitions = len(self._fetcher) < len(wanted)
        self._subscription.is_following = True

    def _follow_group(self, membership: Membership) -> None:
        """Let go of what others shall have, take what is ours now. Callbacks run here."""
        if not self._is_told:
            # cut off between what the group was told and what was noted here: what is read says what is known
            self._unresolved = []
            membership.tell_anew(self._epochs(self._own_names()))
        self._is_told = False
        try:
            changes = membership.poll()
        except GroupError:
            self._forget(self._fetcher.names())  # for good: somebody else has its place
            raise
        self._has_joined = True
        if changes is not None:
            self._counts["rebalances"] += 1
            # what callbacks raise must not keep anything from being taken or let go of: it is told only once. One that
            # is lost may be assigned, too: its old position goes before anything is committed by the new epoch
            self._forget(changes.lost)
            self._unresolved += changes.assigned
            try:
                if changes.lost:
                    self._tell_lost(changes.lost)
            finally:
                if changes.revoked:
                    self._let_go(membership, changes.revoked)
        self._is_told = True
        if self._unresolved:
            self._take_resolved(membership)

    def _tell_lost(self, names: list[TopicPartition]) -> None:
        logger.warning("group %r: lost %s", self._group, ", ".join(f"{topic}-{number}" for topic, number in names))
        if self._on_lost is not None:
            self._on_lost(names)

    def _let_go(self, membership: Membership, names: list[TopicPartition]) -> None:
        try:
            self._note_progress()
            self._commit_quietly()
            if self._on_revoked is not None:
                self._on_revoked(names)
        finally:
            self._forget(names)
            membership.release(names)

    def _take_resolved(self, membership: Membership) -> None:
        """Begin to read new partitions, unless a transaction that is open yet may move the group's offsets."""
        if not resolve_pending(self._directory, self._group or "", self._unresolved, timeout_ms=0):
            return
        epochs = membership.owned()
        committed = self._committed_offsets(self._unresolved)
        taken = []
        try:
            while self._unresolved:
                name = self._unresolved[0]
                known = committed.get(name)
                found = self._fetcher.add(name, None if known is None else known.offset)
                found.written = None if known is None else known.offset
                found.epoch = epochs.get(name)
                taken.append(self._unresolved.pop(0))
        finally:
            # one that cannot be opened is tried again by the next call
            if taken and self._on_assigned is not None:
                self._on_assigned(taken)

    def _forget(self, names: list[TopicPartition]) -> None:
        """Read these no longer, and drop what was fetched of them."""
        if self._reading is not None and self._reading.name in names:
            self._drop_cursor()
        self._touched = [found for found in self._touched if found.name not in names]
        self._unresolved = [name for name in self._unresolved if name not in names]
        self._beside.difference_update(names)
        self._fetcher.remove(names)

    # --- commits -----------------------------------------------------------------------------------------------------

    def commit(
        self,
        what: Record[Any, Any] | RecordBatch | Mapping[TopicPartition, int | OffsetAndMetadata] | None = None,
    ) -> None:
        """Remember for the group how far it is; durable when it returns, as the store's level says.

        Args:
            what: None: everything that was handed out, which is finished then; a Record: its partition up to and
                including it; a RecordBatch: its partition up to its end; offsets by partition: the next offset to read
                of each.

        Raises:
            CommitFailedError: a partition belongs to another member by now; nothing was committed.
            GroupError: the consumer has no group.
            StorageError: the commit could not be written.
        """
        with Call(self):
            if self._membership is None:
                raise GroupError("this consumer has no group, so there is nobody to remember: open it with group=…")
            self._go_back()
            if what is None:
                iterating = self._iterating
                self._ask()
                self._iterating = iterating
                self._commit_finished()
            else:
                self._commit_given(self._offsets_of(what))

    def _offsets_of(self, what: object) -> dict[TopicPartition, OffsetAndMetadata]:
        if isinstance(what, Record):
            return {TopicPartition(what.topic, what.partition): OffsetAndMetadata(what.offset + 1)}
        if isinstance(what, RecordBatch):
            return {TopicPartition(what.topic, what.partition): OffsetAndMetadata(what.next_offset)}
        if not isinstance(what, Mapping):
            raise ConfigError(
                f"commit({type(what).__name__}): expected a Record, a RecordBatch, {{TopicPartition: offset}} or "
                "nothing"
            )
        return checked_offsets(what)

    def _commit_given(self, offsets: dict[TopicPartition, OffsetAndMetadata]) -> None:
        # of the record in hand too, so that what is committed of it is finished
        self._note_progress()
        self._write(offsets)
        for name, entry in offsets.items():
            found = self._fetcher.get(name)
            if found is not None:
                found.finished = max(found.finished, min(entry.offset, found.position))
                # before what is finished: that is still to be written; beyond: it stays, until there is more
                found.written = min(entry.offset, found.finished)

    def _write(
        self, offsets: Mapping[TopicPartition, OffsetAndMetadata], owners: Collection[TopicPartition] | None = None
    ) -> None:
        """Commit, as the owner of these partitions; None: of those whose offsets they are."""
        if self._membership is None or not offsets:
            return
        try:
            self._membership.commit(offsets, self._epochs(offsets if owners is None else owners), owners)
        except BaseException:
            self._counts["failed_commits"] += 1
            raise
        self._counts["commits"] += 1

    def _epochs(self, names: Iterable[TopicPartition]) -> dict[TopicPartition, OwnerEpoch]:
        """By what these partitions are owned while they are read; those that are not are left out."""
        epochs = {}
        for name in names:
            found = self._fetcher.get(name)
            if found is not None and found.epoch is not None:
                epochs[name] = found.epoch
        return epochs

    def _commit_finished(self) -> None:
        """Write what is finished and was not written yet."""
        self._committed_at = oscalls.steady_clock()
        due = [found for found in self._fetcher if found.finished != found.written and found.name not in self._beside]
        if not due:
            return
        self._write({found.name: OffsetAndMetadata(found.finished) for found in due})
        for found in due:
            found.written = found.finished

    def _commit_if_due(self, now: int) -> None:
        if self._auto_commit and now - self._committed_at >= self._commit_interval:
            self._commit_quietly()

    def _commit_quietly(self) -> None:
        """An automatic commit: what goes wrong is logged, and costs repeats, no records."""
        if not self._auto_commit:
            return
        try:
            self._commit_finished()
        except CommitFailedError as error:
            logger.warning("group %r: an automatic commit was refused: %s", self._group, error)
        except Error as error:
            logger.error("group %r: an automatic commit failed: %s", self._group, error)

    def committed(
        self, partitions: Iterable[TopicPartition] | None = None
    ) -> dict[TopicPartition, OffsetAndMetadata | None]:
        """What the group has committed for these partitions, by default those assigned; None where there is nothing.

        Raises GroupError without a group.
        """
        with Call(self):
            return self._committed_offsets(self._chosen(partitions))

    def _committed_offsets(self, names: list[TopicPartition]) -> dict[TopicPartition, OffsetAndMetadata | None]:
        if self._offsets is None or self._group is None:
            raise GroupError("this consumer has no group, so nothing is committed: open it with group=…")
        return self._offsets.committed(self._group, names)

    # --- where it is -------------------------------------------------------------------------------------------------

    def assignment(self) -> list[TopicPartition]:
        """The partitions that this consumer reads, sorted. In a group those that it was given so far."""
        with Call(self):
            self._settle()
            return self._own_names()

    def _own_names(self) -> list[TopicPartition]:
        """What is assigned, in order: without what is read beside it."""
        return [name for name in self._fetcher.names() if name not in self._beside]

    def position(self, topic: str | TopicPartition, partition: int | None = None) -> int:
        """Offset of the record that comes next. Raises UnknownTopicError for a partition that is not assigned."""
        with Call(self):
            self._settle()
            self._note_progress()
            return self._assigned(topic, partition).position

    def seek(
        self,
        topic: str | TopicPartition | None = None,
        partition: int | None = None,
        *,
        offset: int | None = None,
        timestamp: datetime | None = None,
    ) -> None:
        """Go on elsewhere: at an offset of one partition, or in one or all of them at the first record from a time on.

        What is in hand of these partitions counts no more; the next commit writes the new position. Whether the offset
        is in the log is seen when it is fetched: OffsetOutOfRangeError. A time after the last record means the end.

        Raises:
            ConfigError: neither or both of ``offset`` and ``timestamp``, or an offset without a partition.
            UnknownTopicError: the partition is not assigned.
        """
        if (offset is None) == (timestamp is None):
            raise ConfigError("seek takes either offset= or timestamp=")
        with Call(self):
            self._settle()
            if offset is not None:
                if not is_offset(offset):
                    raise ConfigError(f"offset={offset!r}: expected an integer from 0 to 2**63 - 1")
                self._move(self._assigned(topic, partition), offset)
                return
            if timestamp is None or not isinstance(timestamp, datetime):
                raise ConfigError(f"timestamp={timestamp!r}: expected an aware datetime")
            aware(timestamp, "timestamp")
            for found in self._targets(topic, partition):
                self._move(found, offset_at(found.log, timestamp))

    def seek_to_beginning(self, *partitions: TopicPartition) -> None:
        """Go on at the first record of these partitions, of all of them when none is named."""
        with Call(self):
            self._settle()
            for found in self._named(partitions):
                self._move(found, found.log.start_offset)

    def seek_to_end(self, *partitions: TopicPartition) -> None:
        """Go on behind the last readable record of these partitions, of all of them when none is named."""
        with Call(self):
            self._settle()
            for found in self._named(partitions):
                self._move(found, readable_end(found.log))

    def _move(self, found: Assigned, offset: int) -> None:
        self._note_progress()
        if self._reading is found:
            self._drop_cursor()
        self._touched = [other for other in self._touched if other is not found]
        found.move(offset)

    def pause(self, *partitions: TopicPartition) -> None:
        """Hand out nothing of these partitions, of all when none is named, until ``resume``. They stay assigned."""
        with Call(self):
            self._settle()
            for found in self._named(partitions):
                found.is_paused = True
                if self._reading is found and self._iterating and self._cursor is not None:
                    self._cursor.stop()

    def resume(self, *partitions: TopicPartition) -> None:
        """Undo ``pause``."""
        with Call(self):
            for found in self._named(partitions):
                found.is_paused = False

    def paused(self) -> list[TopicPartition]:
        """The partitions that are paused, sorted."""
        with Call(self):
            return sorted(found.name for found in self._fetcher if found.is_paused)

    def beginning_offsets(self, partitions: Iterable[TopicPartition] | None = None) -> dict[TopicPartition, int]:
        """The first offset of each of these partitions, by default of those assigned."""
        with Call(self):
            return self._looked_up(partitions, lambda log: log.start_offset)

    def end_offsets(self, partitions: Iterable[TopicPartition] | None = None) -> dict[TopicPartition, int]:
        """The readable end of each of these partitions, by default of those assigned."""
        with Call(self):
            return self._looked_up(partitions, readable_end)

    def lag(self) -> dict[TopicPartition, Lag]:
        """How far this consumer is behind in each partition: records to come, and the age of the oldest of them."""
        with Call(self):
            self._settle()
            self._note_progress()
            return {found.name: lag_at(found.log, found.position) for found in self._fetcher}

    def stats(self) -> ConsumerStats:
        """Counts since the consumer was opened."""
        with Call(self):
            self._note_progress()
            return ConsumerStats(**self._counts | {"resets": self._fetcher.resets})

    def _settle(self) -> None:
        """A member of a group that was never polled looks what it was given; one that has to go back does."""
        self._go_back()
        if not self._has_joined:
            self._housekeep()

    def _looked_up(
        self, partitions: Iterable[TopicPartition] | None, look: Callable[[Any], int]
    ) -> dict[TopicPartition, int]:
        self._settle()
        result = {}
        for name in self._chosen(partitions):
            found = self._fetcher.get(name)
            if found is not None:
                result[name] = look(found.log)
                continue
            with self._directory.lease(*name, self._fetcher.isolation) as lease:
                result[name] = look(lease.log)
        return result

    def _chosen(self, partitions: Iterable[TopicPartition] | None) -> list[TopicPartition]:
        if partitions is None:
            self._settle()
            return self._own_names()
        return [named_partition(name) for name in list_of(partitions, "partitions", "TopicPartitions")]

    def _named(self, partitions: Sequence[TopicPartition]) -> list[Assigned]:
        if not partitions:
            return list(self._fetcher)
        return [self._assigned(named_partition(name), None) for name in partitions]

    def _targets(self, topic: str | TopicPartition | None, partition: int | None) -> list[Assigned]:
        if topic is None:
            return list(self._fetcher)
        if isinstance(topic, str) and partition is None:
            return [found for found in self._fetcher if found.name.topic == topic] or self._unassigned(topic)
        return [self._assigned(topic, partition)]

    def _assigned(self, topic: str | TopicPartition | None, partition: int | None) -> Assigned:
        if isinstance(topic, tuple) and partition is None:
            name = named_partition(topic)
        elif isinstance(topic, str) and isinstance(partition, int):
            name = TopicPartition(topic, partition)
        else:
            raise ConfigError(
                f"{topic!r}, {partition!r}: expected a topic and a partition's number, or a TopicPartition"
            )
        return self._fetcher.get(name) or self._unassigned(f"{name.topic}-{name.partition}")

    def _unassigned(self, what: str) -> NoReturn:
        names = ", ".join(f"{topic}-{number}" for topic, number in self._fetcher.names()) or "nothing so far"
        raise UnknownTopicError(f"{what} is not assigned to this consumer, which reads {names}")

    # --- deserializers -----------------------------------------------------------------------------------------------

    def _decoder(self, deserializer: Callable[[bytes], Any] | None, what: str) -> Callable[[bytes], Any] | None:
        """The user's callable, with errors that name the record."""
        if deserializer is None:
            return None
        if not callable(deserializer):
            raise ConfigError(
                f"{what}_deserializer is a {type(deserializer).__name__}: expected a callable that takes bytes"
            )
        return lambda data: self._decode(deserializer, what, data)

    def _decode(self, deserializer: Callable[[bytes], Any], what: str, data: bytes) -> Any:
        try:
            return deserializer(data)
        except Exception as error:
            cursor = self._cursor
            if cursor is None:
                raise
            batch = cursor.batch
            offset = int(batch.offsets[cursor.next_index])
            raise InvalidRecordError(
                f"the {what} of {batch.topic}-{batch.partition} at offset {offset} cannot be decoded "
                f"({type(error).__name__}: {error}): repair the deserializer, or go past the record with "
                f"seek({batch.topic!r}, {batch.partition}, offset={offset + 1})",
                batch.topic, batch.partition, offset,
            ) from error  # fmt: skip

    # --- for what is built on it -------------------------------------------------------------------------------------

    def awaited(self) -> list[TopicPartition]:
        """Partitions that are this member's, and wait for the end of a transaction that may move their offsets."""
        return list(self._unresolved)

    def reading(self, name: TopicPartition) -> Assigned | None:
        """How a partition is read: its log, position, and whether it is paused; None for one that is not read."""
        return self._fetcher.get(name)

    def add_beside(self, name: TopicPartition, position: int | None) -> Assigned:
        """Read a partition beside those of the group, from ``position`` on (None: from its start).

        Its records come out of ``batches`` and ``poll`` with the others. It belongs to nobody: no group hands it out,
        only ``commit_beside`` commits it, and ``remove_beside`` ends it.
        """
        with Call(self):
            found = self._fetcher.add(name, position, from_start=True)
            self._beside.add(name)
            return found

    def read_beside(self, found: Assigned) -> RecordBatch | None:
        """The next records of one partition, None at its readable end. Its position moves behind them."""
        with Call(self):
            batch = self._fetcher.read(found)
            if batch is not None:
                found.position = found.finished = batch.next_offset
            return batch

    def remove_beside(self, names: Iterable[TopicPartition]) -> None:
        """Read these no longer. Those that are not read beside are passed over."""
        with Call(self):
            self._forget([name for name in names if name in self._beside])

    def commit_beside(
        self,
        offsets: Mapping[TopicPartition, OffsetAndMetadata],
        owner: TopicPartition | Iterable[TopicPartition],
    ) -> None:
        """Commit offsets of any partitions, all or none, as the owner of these: fenced by their owner epochs.

        Raises CommitFailedError when one of ``owner`` is not this member's any more, or a topic is gone; StorageError.
        """
        with Call(self):
            if self._membership is None:
                raise GroupError("this consumer has no group, so there is nobody to remember: open it with group=…")
            owners = [owner] if isinstance(owner, TopicPartition) else list(owner)
            self._write(offsets, owners)

    def epochs_of(self, names: Iterable[TopicPartition]) -> dict[TopicPartition, OwnerEpoch]:
        """By what these partitions are owned while they are read. Those that are not are left out."""
        return self._epochs(names)

    # --- for transactions --------------------------------------------------------------------------------------------

    @property
    def group(self) -> str | None:
        """The group's name, None without one."""
        return self._group

    @property
    def directory(self) -> Directory:
        """The store that is read."""
        return self._directory

    @property
    def membership(self) -> Membership | None:
        """The place in the group, for transactions; None without a group."""
        return self._membership

    def enlist(self) -> None:
        """Commits belong to transactions from now on: automatic ones end, for the life of this consumer."""
        with Call(self):
            if self._membership is None:
                raise GroupError(
                    "a consumer without a group has no offsets to commit in a transaction: open it with group=…"
                )
            if not self._enlisted:
                self._note_progress()
                self._commit_quietly()
                self._enlisted = True
                self._auto_commit = False

    @property
    def is_enlisted(self) -> bool:
        """Whether a transaction has taken over the commits."""
        return self._enlisted

    def epochs(self) -> dict[TopicPartition, OwnerEpoch]:
        """Owner epochs of what is read. Ask before ``offsets_in_hand``: they count under these only."""
        with Call(self):
            return self._epochs(self._fetcher.names())

    def offsets_in_hand(self) -> dict[TopicPartition, OffsetAndMetadata]:
        """The next offset of each partition whose position moved since the last commit: what a transaction commits."""
        with Call(self):
            self._go_back()
            self._note_progress()
            return {
                found.name: OffsetAndMetadata(found.position)
                for found in self._fetcher
                if found.position != (found.initial if found.written is None else found.written)
            }

    def note_committed(self, offsets: Mapping[TopicPartition, OffsetAndMetadata]) -> None:
        """A transaction has committed these: they need not be committed again."""
        with Call(self, raises=False):  # closed meanwhile, it has nothing to keep in mind
            for name, entry in offsets.items():
                found = self._fetcher.get(name)
                if found is not None:
                    found.finished = max(found.finished, min(entry.offset, found.position))
                    found.written = entry.offset

    def rewind(self) -> None:
        """Go back to what is committed, and drop what was fetched: a transaction was aborted.

        When it fails it is tried again before anything else is handed out or committed.
        """
        with Call(self, raises=False) as is_open:
            if not is_open:
                return
            self._drop_cursor()
            self._touched.clear()
            self._has_to_rewind = True
            self._go_back()

    def _go_back(self) -> None:
        """What ``rewind`` asks for, if it is not done: one that failed is done before anything is handed out or
        committed."""
        if not self._has_to_rewind:
            return
        committed = self._committed_offsets(self._fetcher.names())
        for found in self._fetcher:
            known = committed.get(found.name)
            found.position = found.finished = found.initial if known is None else known.offset
            found.written = None if known is None else known.offset
        self._has_to_rewind = False

    def __repr__(self) -> str:
        whose = f" of group {self._group!r}" if self._group else ""
        return f"<Consumer{whose}: {len(self._fetcher)} partitions{', closed' if self._closed else ''}>"


def weakly(method: Callable[[], object]) -> Callable[[], None]:
    """The same call, which does not keep its object alive, and does nothing once that is gone."""
    reference = weakref.WeakMethod(method)

    def call() -> None:
        alive = reference()
        if alive is not None:
            alive()

    return call
