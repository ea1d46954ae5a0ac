"""One subscriber in one process: reads, has handlers called, commits, moves what failed.

One thread does everything but call handlers: it alone touches the consumer, the work of the partitions and the movers.
Calls run elsewhere (``calling``) and come back through a queue. The thread sleeps in the consumer until there is more
to read, a call is over, or the next record is due; whatever it decides about records, ``PartitionWork`` has decided.

A partition goes through this: taken (what is committed is read, earlier owners' moves are ended, the retry partition is
read to its end, and the commit says: not clean any more) — at work — let go of (what is in hand ends, the commit says:
clean) or lost (everything known of it is dropped).
"""

from __future__ import annotations

import logging
import random
import re
import threading
from collections import deque
from collections.abc import Iterable, Sequence
from queue import Empty, SimpleQueue
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from fastlog._core import Record, RecordBatch
from fastlog.clients.consumer import Consumer
from fastlog.errors import (
    CommitFailedError,
    Error,
    HandlerTimeoutError,
    InvalidRecordError,
    LockedError,
    StorageError,
    UnknownTopicError,
)
from fastlog.groups.offsets import OffsetAndMetadata, OffsetStore
from fastlog.records import TopicPartition
from fastlog.transactions import resolve_pending

from .calling import Call, Middleware, executor_of, timed_out
from .clock import Clock, SystemClock
from .dead_letters import DeadLetters
from .finished import Finished
from .headers import item_of_retry
from .items import Failure, Item, Move
from .moving import Movers, Route
from .naming import DEAD_LETTER, RETRY, check_names, require_topic
from .policy import BatchError, BreakerState
from .work import PartitionWork

if TYPE_CHECKING:
    from fastlog.clients.fetching import Assigned
    from fastlog.store.directory import Directory

    from .subscriber import Handler, Subscriber

__all__ = ["Runner", "SubscriberStats"]

logger = logging.getLogger("fastlog.delivery")

COMMIT_INTERVAL_MS: Final = 1000
COMMIT_RECORDS: Final = 1000  # not many more finished ones come again after a crash
MOST_MOVES: Final = 500  # in one transaction
MOST_INLINE: Final = 500  # calls of one round, so that the group and due records have their turn
INLINE_MS: Final = 10
MOST_REST_MS: Final = 50
FETCH_MS: Final = 5  # while all calls are begun, the group and the topics are looked at so often
SHORT_WAIT_MS: Final = 20
LONG_WAIT_MS: Final = 1000
FIRST_PAUSE_MS: Final = 100
LONGEST_PAUSE_MS: Final = 5000
FETCH_BYTES: Final = 256 * 1024


class SubscriberStats(NamedTuple):
    """What a subscriber did in this process since it was started, and what it is at. Counts, unless said otherwise.

    Attributes:
        name, group: whose these are.
        partitions: how many it owns.
        calls: calls of the handler that have ended.
        succeeded: records that are finished by a call.
        failed: attempts that failed.
        retried, dead_lettered, followers: records moved to wait for their next attempt, to the dead letters, behind one
            of their key that waits.
        dropped: failed for good, without a dead-letter topic.
        duplicates: finished without a call, as their id was known.
        late: results that came when the partition belonged to somebody else.
        in_hand: records that are with the handler now.
        waiting: records that wait in the retry topic for their time or their turn.
        commits, moves: commits of offsets; transactions that moved records.
        failed_commits, failed_moves: those that could not be written, and are tried again.
        breaker: ``"closed"``, ``"open"``, ``"probing"``; None without one.
        problem: why moves or commits cannot be written at the moment; None when they can.
    """

    name: str
    group: str
    partitions: int
    calls: int
    succeeded: int
    failed: int
    retried: int
    dead_lettered: int
    followers: int
    dropped: int
    duplicates: int
    late: int
    in_hand: int
    waiting: int
    commits: int
    moves: int
    failed_commits: int
    failed_moves: int
    breaker: str | None
    problem: str | None


COUNTED: Final = (
    *("calls", "succeeded", "failed", "retried", "dead_lettered", "followers", "dropped", "duplicates", "late"),
    *("commits", "moves", "failed_commits", "failed_moves"),
)


class Place:
    """A source partition that is owned, with what belongs to it.

    Attributes:
        source, retry, dead_letter: its names.
        work: what is to be done; None before it has begun.
        reading, retry_reading: how the source and the retry partition are read.
        is_over: whatever comes for it counts no more.
        is_leaving: nothing is taken of it any more.
        in_hand: records that are with the handler.
        alone: how many of the next records are called one by one, as a batch with them failed.
        is_suspicious: the owner before died, and what comes next may be why.
        stuck: calls that took too long, and do not end.
        changed: records finished since the last commit.
        doubtful: moves of which nobody knows whether they are committed.
        resume_at: steady ms before which nothing is written, after something could not be.
        pause: how long the next such pause is.
    """

    __slots__ = (
        *(
            "alone",
            "is_suspicious",
            "changed",
            "dead_letter",
            "doubtful",
            "in_hand",
            "is_leaving",
            "is_over",
            "pause",
            "reading",
        ),
        *("resume_at", "retry", "retry_reading", "route", "source", "stuck", "work", "written"),
    )

    def __init__(self, route: Route, reading: Assigned) -> None:
        self.route = route
        self.source, self.retry, self.dead_letter = route.source, route.retry, route.dead_letter
        self.reading = reading
        self.retry_reading: Assigned | None = None
        self.work: PartitionWork | None = None
        self.is_over = False
        self.is_leaving = False
        self.in_hand = 0
        self.alone = 0
        self.is_suspicious = False
        self.stuck = 0
        self.changed = 0
        self.doubtful: list[Move] | None = None
        self.resume_at = 0
        self.pause = FIRST_PAUSE_MS
        self.written: dict[TopicPartition, OffsetAndMetadata] = {}

    @property
    def title(self) -> str:
        """The source's name in messages."""
        return f"{self.source.topic}-{self.source.partition}"

    def __repr__(self) -> str:
        return f"<Place {self.title}>"


class Runner:
    """Runs one subscriber. ``run`` until ``stop``; or ``step`` by ``step``, by tests.

    Args:
        directory: the opened store.
        subscriber: what to run.
        clock: by what records are due, and time-outs end.
        middleware: what surrounds the handler, the outermost first.
        client_id: a name for descriptions of the group.
        inline: call handlers in the thread that steps, one after the other.
        chance: where jitter comes from.

    Attributes:
        error: why it had to end; None when it was asked to.

    ``stop``, ``stats`` and ``wake`` may be called from any thread, everything else from one.
    """

    def __init__(
        self,
        directory: Directory,
        subscriber: Subscriber,
        *,
        clock: Clock | None = None,
        middleware: Sequence[Middleware] = (),
        client_id: str = "",
        inline: bool = False,
        chance: random.Random | None = None,
    ) -> None:
        self.error: BaseException | None = None
        self.subscriber = subscriber
        self._directory = directory
        self._clock: Clock = SystemClock() if clock is None else clock
        self._chance = random.Random() if chance is None else chance
        self._places: dict[TopicPartition, Place] = {}
        self._by_retry: dict[TopicPartition, Place] = {}
        self._opening: list[Place] = []
        self._suspect_place: Place | None = None  # whose suspect is called, or was and is to be written down
        self._has_changed = False
        self._turn = 0
        self._done: SimpleQueue[Call] = SimpleQueue()
        self._sleeps = False
        self._stopping = threading.Event()
        self._closed = False
        self._calls = 0  # that are with the executor
        self._timed: deque[Call] = deque()
        self._counts = dict.fromkeys(COUNTED, 0)
        self._problem: str | None = None
        self._committed_at = self._clock.steady()
        self._breaker = None if subscriber.breaker is None else BreakerState(subscriber.breaker)
        self._memory = (
            None
            if subscriber.deduplicate is None
            else subscriber.deduplicate.open(directory.root, subscriber.group, directory.durability)
        )
        self._ids: dict[Item, bytes | None] = {}  # of what is in hand
        self._fresh_ids: dict[bytes, None] = {}  # a set that keeps its order
        self._dispatched_at = self._clock.wall()
        self._fetched_at = 0
        self._move_again_at = 0
        self._is_full = False
        self._plain = self._plain_handler(middleware, inline=inline)
        self._is_inline = inline
        self._topics = subscriber.topics
        self._movers = Movers(directory)
        self._offsets = OffsetStore(directory)
        self._executor = executor_of(subscriber, middleware, self._report, self._clock, inline=inline)
        try:
            if not isinstance(self._topics, re.Pattern):
                for topic in self._topics:
                    self._require_topics(topic)
            self._consumer: Consumer[Any, Any] = Consumer(
                directory,
                self._topics,
                group=subscriber.group,
                start=subscriber.start,
                auto_commit=False,
                max_poll_interval=subscriber.max_poll_interval,
                on_assigned=self._take_over,
                on_revoked=self._let_go,
                on_lost=self._lose,
                fetch_bytes=FETCH_BYTES,
                client_id=client_id,
            )
        except BaseException:
            self._executor.close()
            raise

    # --- its life ----------------------------------------------------------------------------------------------------

    def run(self) -> None:
        """Go on until ``stop``, or until something happens after which it cannot: that is raised, and ``error``."""
        try:
            while not self._stopping.is_set():
                self._round()
        except BaseException as error:
            self.error = error
        finally:
            try:
                self.close()
            except Error as error:
                self.error = self.error or error
        if self.error is not None:
            raise self.error

    def _round(self) -> None:
        try:
            self.step(LONG_WAIT_MS)
        except Error as error:
            if not (error.retriable or isinstance(error, StorageError)) or isinstance(error, HandlerTimeoutError):
                raise
            self._note_problem(f"{type(error).__name__}: {error}")
            logger.error("subscriber %r: %s. It goes on in a second", self.subscriber.name, error)
            self._stopping.wait(1)

    def stop(self) -> None:
        """Let it end: nothing new is called, what is in hand ends. From any thread, and from a signal handler."""
        self._stopping.set()
        self._consumer.wakeup()

    def close(self) -> None:
        """Wait for what is in hand (as long as ``drain_timeout``), commit, leave the group. Idempotent."""
        if self._closed:
            return
        self._closed = True
        self._stopping.set()
        try:
            self._consumer.close()
        finally:
            self._lose([place.source for place in self._places.values()])
            self._executor.close()
            self._movers.close()
            if self._memory is not None:
                self._memory.close()

    def abandon(self) -> None:
        """Leave things as a process does that dies: nothing is committed or moved any more. For tests. Idempotent."""
        if not self._closed:
            self._lose(list(self._places))
            self.close()

    def step(self, max_wait_ms: int = 0) -> bool:
        """One round: take in what came back, move, commit, call, read. Whether anything happened.

        Waits up to ``max_wait_ms`` when there is nothing to do: until there is, or something is due.
        """
        happened = self._collect()
        happened |= self._watch_calls()
        happened |= self._move_all()
        happened |= self._commit_if_due()
        happened |= self._begin_places()
        happened |= self._dispatch()
        self._flush_ids()
        happened = happened or self._has_moves()
        waits_for_calls = self._is_full and max_wait_ms > 0 and self._clock.steady() - self._fetched_at < FETCH_MS
        # the next to happen is most likely that a call ends: nothing is cheaper to wait for
        if waits_for_calls and self._collect(min(max_wait_ms, FETCH_MS)):
            return True
        happened |= self._fetch(0 if happened else self._patience(max_wait_ms))
        if self.error is not None:
            raise self.error
        return happened

    def stats(self) -> SubscriberStats:
        """Counts and states of now. Any thread."""
        places = [place for place in list(self._places.values()) if place.work is not None]
        return SubscriberStats(
            name=self.subscriber.name,
            group=self.subscriber.group,
            partitions=len(self._places),
            in_hand=sum(place.in_hand for place in places),
            waiting=sum(place.work.waiting for place in places if place.work is not None),
            breaker=None if self._breaker is None else self._breaker.state,
            problem=self._problem,
            **self._counts,
        )

    def next_due(self) -> int | None:
        """Wall ms of the earliest record that only waits for its time, None when there is none."""
        now = self._clock.wall()
        found = [place.work.next_due(now) for place in self._busy() if place.work is not None]
        return min((due for due in found if due is not None), default=None)

    def next_change(self) -> int | None:
        """In how many ms something goes on that only waits for time to pass; None when nothing does.

        That is a record that waits for its next attempt, the end of a breaker's pause, or the next try to write what
        could not be written.
        """
        waits = []
        due, wall, steady = self.next_due(), self._clock.wall(), self._clock.steady()
        if due is not None and due > wall:
            waits.append(due - wall)
        works = [place.work for place in self._places.values() if place.work is not None]
        if self._breaker is not None and (change := self._breaker.next_change()) is not None:
            waits += [change - steady] if any(work.waiting for work in works) else []
        waits += [place.resume_at - steady for place in self._places.values() if place.resume_at > steady]
        return max(min(waits), 0) if waits else None

    def _busy(self) -> list[Place]:
        """Partitions at work that have records which are not finished. Of many most have none."""
        return [place for place in self._places.values() if place.work is not None and place.work.waiting]

    # --- reading -----------------------------------------------------------------------------------------------------

    def _patience(self, most: int) -> int:
        """How long there is nothing to do, in ms, if nothing comes."""
        waits = [most]
        due = self.next_due()
        # what was due when calls were last begun waits for something else: a call that ends, or a pause
        if due is not None and due > self._dispatched_at and self._calls < self.subscriber.concurrency:
            waits.append(due - self._clock.wall())
        now = self._clock.steady()
        change = None if self._breaker is None else self._breaker.next_change()
        if change is not None and change > now:
            waits.append(change - now)
        if any(place.changed for place in self._places.values()):
            waits.append(self._committed_at + COMMIT_INTERVAL_MS - now)
        if self._move_again_at > now:
            waits.append(self._move_again_at - now)
        if self._timed:
            waits.append(self._timed[0].deadline - now)
        if self._opening or self._consumer.awaited():
            waits.append(SHORT_WAIT_MS)
        waits += [place.resume_at - now for place in self._places.values() if place.resume_at > now]
        return max(min(waits), 0)

    def _fetch(self, wait_ms: int) -> bool:
        """Read the next records of any partition; the group has its say meanwhile."""
        for place in self._places.values():
            work = place.work
            is_halted = work is None or place.is_over or place.is_leaving or place.doubtful is not None
            place.reading.is_paused = is_halted or work is None or not work.wants_source
            if place.retry_reading is not None:
                place.retry_reading.is_paused = is_halted
        self._sleeps = True
        if wait_ms and not self._done.empty():
            wait_ms = 0
        try:
            batch = next(self._consumer.batches(timeout=wait_ms / 1000), None)
        finally:
            self._sleeps = False
        self._fetched_at = self._clock.steady()
        has_changed, self._has_changed = self._has_changed, False
        if batch is None:
            self._fence_awaited()
            return has_changed
        self._take_in(batch)
        return True

    def _take_in(self, batch: RecordBatch) -> None:
        name = TopicPartition(batch.topic, batch.partition)
        place = self._places.get(name)
        if place is not None and place.work is not None:
            place.work.add_source(self._source_items(batch))
            place.work.reached(source=batch.next_offset)
            return
        place = self._by_retry.get(name)
        if place is not None and place.work is not None:
            place.work.add_retry(self._retry_items(batch))
            place.work.reached(retry=batch.next_offset)

    def _source_items(self, batch: RecordBatch) -> list[Item]:
        if self.subscriber.decodes:
            return [Item.of_source(*self._decoded(record)) for record in batch]
        return [Item.of_source(record, record) for record in batch]

    def _retry_items(self, batch: RecordBatch) -> list[Item]:
        return [self._retry_item(record) for record in batch]

    def _retry_item(self, record: Record) -> Item:
        try:
            item = item_of_retry(record)
        except InvalidRecordError as error:
            # it goes to the dead letters as it is: whoever has put it there finds it again
            logger.error("subscriber %r: a record that does not belong there: %s", self.subscriber.name, error)
            item = Item.of_source(None, record, Failure.of(error, self._clock.wall()))
            item.is_retry = True
            return item
        if self.subscriber.decodes:
            item.record, _, item.failure = self._decoded(item.raw)
        return item

    def _decoded(self, raw: Record) -> tuple[Record[Any, Any] | None, Record, Failure | None]:
        """What the handler sees of a record; None, and why, when a deserializer fails on it."""
        decode_key, decode_value = self.subscriber.key_deserializer, self.subscriber.value_deserializer
        topic, partition, offset, timestamp, key, value, headers, kind = raw.fields()
        decoded_key: Any = key
        decoded_value: Any = value
        try:
            if decode_key is not None and key is not None:
                decoded_key = decode_key(key)
            if decode_value is not None and value is not None:
                decoded_value = decode_value(value)
        except Exception as error:
            return None, raw, Failure.of(error, self._clock.wall())
        is_append = kind == "append"
        record = Record(
            topic, partition, offset, timestamp, decoded_key, decoded_value, headers,
            "append" if is_append else "create",
        )  # fmt: skip
        return record, raw, None

    # --- calling -----------------------------------------------------------------------------------------------------

    def _dispatch(self) -> bool:
        """Have called what may be called now, in turn over the partitions."""
        self._dispatched_at = self._clock.wall()
        places = [place for place in self._busy() if not place.is_leaving]
        self._is_full = self._calls >= self.subscriber.concurrency
        if not places or self._stopping.is_set():
            return False
        places = self._those_beside_suspects(places)
        if not places:
            return False
        self._turn = (self._turn + 1) % len(places)
        happened = False
        until = self._clock.steady() + INLINE_MS
        for place in places[self._turn :] + places[: self._turn]:
            if self._plain is not None:
                happened |= self._call_here(place, self._plain, until)
            else:
                happened |= self._dispatch_place(place, until)
            if self._suspect_place is not None:
                break
        self._is_full = self._calls >= self.subscriber.concurrency
        return happened

    def _those_beside_suspects(self, places: list[Place]) -> list[Place]:
        """Who may be called now: a suspect runs alone in all of the process. Else it would be blamed for what another
        partition's record does to the process.
        """
        held = self._suspect_place
        if held is not None:
            if held.in_hand and not held.is_over:
                return []
            self._suspect_place = None
            self._write_down(held)
        now = self._clock.wall()
        wanting = [
            place
            for place in places
            if place.is_suspicious and self._may_go_on(place) and place.work is not None and place.work.wanted_mark(now)
        ]
        if not wanting:
            return places
        return [] if self._calls else wanting[:1]

    def _write_down(self, place: Place) -> None:
        """What became of a suspect is durable, before anything else runs that may end the process."""
        while place.work is not None and self._move(place):
            pass
        self._commit([place])

    def _plain_handler(self, middleware: Sequence[Middleware], *, inline: bool) -> Handler | None:
        """The handler, when all there is to do with a record is to call it with it, in this thread."""
        subscriber = self.subscriber
        is_plain = (
            not subscriber.is_async
            and (inline or subscriber.concurrency == 1)
            and not middleware
            and subscriber.batch is subscriber.timeout_ms is subscriber.breaker is subscriber.deduplicate is None
        )
        return subscriber.handler if is_plain else None

    def _call_here(self, place: Place, handler: Handler, until: int) -> bool:
        """The short way: record after record, with nothing around the calls."""
        work = place.work
        if work is None or not self._may_go_on(place):
            return False
        take, succeed, clock, stops = work.take, work.succeed, self._clock, self._stopping.is_set
        calls = succeeded = 0
        while calls < MOST_INLINE and not stops():
            items = take(clock.wall(), 1)
            if not items:
                if work.wanted_mark(clock.wall()) and self._commit([place]):
                    continue
                break
            calls += 1
            place.in_hand = 1
            place.is_suspicious = is_suspect = items[0].is_suspect
            try:
                handler(items[0].record)
            except BaseException as error:
                place.in_hand = 0
                self._fail(place, items[0], error)
                if self.error is not None:
                    break
            else:
                place.in_hand = 0
                succeed(items[0])
                succeeded += 1
            if is_suspect:
                self._write_down(place)
            if clock.steady() > until:
                break
        place.changed += succeeded
        self._counts["calls"] += calls
        self._counts["succeeded"] += succeeded
        return calls > 0

    def _dispatch_place(self, place: Place, until: int) -> bool:
        happened = False
        batch = self.subscriber.batch
        for _ in range(MOST_INLINE):
            free = self.subscriber.concurrency - self._calls
            if self._breaker is not None:
                free = self._breaker.allowed(self._clock.steady(), free)
            if free <= 0 or not self._may_call(place) or place.work is None:
                break
            most = free if batch is None else 1 if place.alone else batch
            items = place.work.take(self._clock.wall(), most)
            if not items:
                break
            place.is_suspicious = items[0].is_suspect
            if place.is_suspicious:
                self._suspect_place = place
            if place.alone:
                place.alone -= 1
            happened = True
            if self._memory is not None:
                items = self._unknown(place, items)
            if batch is not None:
                self._begin(place, items)
            else:
                for item in items:
                    self._begin(place, [item])
            self._executor.flush()
            self._collect()
            if self._suspect_place is not None:
                break
            if self._clock.steady() > until:
                break
        return happened

    def _may_call(self, place: Place) -> bool:
        """Whether a partition may go on now; a mark that it wants before is written."""
        if place.work is None or not self._may_go_on(place) or (place.is_suspicious and self._calls):
            return False
        if place.work.wanted_mark(self._clock.wall()):
            return self._commit([place])
        return True

    def _may_go_on(self, place: Place) -> bool:
        """Whether nothing keeps a partition from going on: its end, or something that could not be written."""
        if place.is_over or place.is_leaving or place.doubtful is not None or self.error is not None:
            return False
        return place.resume_at <= self._clock.steady()

    def _begin(self, place: Place, items: Sequence[Item]) -> None:
        """Begin a call with these; none: there is nothing to begin."""
        if not items:
            return
        call = Call(self.subscriber, place, items)
        place.in_hand += len(items)
        self._calls += 1
        if self.subscriber.timeout_ms is not None:
            call.deadline = self._clock.steady() + self.subscriber.timeout_ms
            if not self.subscriber.is_async:
                self._timed.append(call)
        if self._breaker is not None:
            self._breaker.begun(call)
        self._executor.start(call)

    def _unknown(self, place: Place, items: list[Item]) -> list[Item]:
        """Those whose id is not known. The others are finished without a call."""
        deduplicator, memory, work = self.subscriber.deduplicate, self._memory, place.work
        if deduplicator is None or memory is None or work is None:
            return items
        ids: dict[Item, bytes | None] = {}
        for item in items:
            try:
                ids[item] = None if item.record is None else deduplicator.id_of(item.record)
            except Exception as error:
                self._fail(place, item, error)
        wanted = [one for one in ids.values() if one is not None]
        known = (self._fresh_ids.keys() & set(wanted)) | memory.known(wanted, self._clock.wall())
        called = []
        for item, one in ids.items():
            if one in known:
                self._counts["duplicates"] += 1
                place.changed += 1
                work.succeed(item)
            else:
                called.append(item)
                self._ids[item] = one
        return called

    def _flush_ids(self) -> None:
        """Before anything says that they are finished: write down the ids of what is."""
        if not self._fresh_ids or self._memory is None:
            return
        ids, self._fresh_ids = list(self._fresh_ids), {}
        try:
            self._memory.remember(ids, self._clock.wall())
        except Error as error:
            # their records are handled: to do that again would be worse than to forget it
            self._note_problem(f"ids of events: {type(error).__name__}: {error}")
            logger.error("subscriber %r: %d ids of events were not kept: %s", self.subscriber.name, len(ids), error)

    # --- what came back ----------------------------------------------------------------------------------------------

    def _report(self, call: Call) -> None:
        """From any thread: a call is over."""
        self._done.put(call)
        if self._sleeps:
            self._sleeps = False
            self._consumer.wakeup()

    def _collect(self, timeout_ms: float = 0) -> bool:
        """Take in the calls that are over; for the first one it waits so long."""
        happened = False
        done = self._done
        while True:
            try:
                call = done.get(timeout=timeout_ms / 1000) if timeout_ms > 0 else done.get_nowait()
            except Empty:
                return happened
            timeout_ms = 0
            happened = True
            self._end_call(call)

    def _end_call(self, call: Call) -> None:
        call.is_done = True
        place: Place = call.place
        self._calls -= 1
        self._counts["calls"] += 1
        place.in_hand -= len(call.items)
        if place.is_over or place.work is None:
            self._counts["late"] += len(call.items)
            if self._breaker is not None:
                self._breaker.dropped(call)
            logger.warning(
                "subscriber %r: a call with %d records of %s-%d ended when the partition belonged to somebody else: "
                "they come again there", self.subscriber.name, len(call.items), *place.source,
            )  # fmt: skip
        elif self._is_inline and call.deadline and self._clock.steady() > call.deadline:
            self._give_up(call)
        elif call.error is None:
            if self._breaker is not None:
                self._breaker.succeeded(call)
            self._succeed(place, call.items)
        else:
            self._end_failed(place, call, call.error)
        for item in call.items if self._ids else ():
            self._ids.pop(item, None)

    def _succeed(self, place: Place, items: Sequence[Item]) -> None:
        work = place.work
        if work is None:
            return
        for item in items:
            work.succeed(item)
            if self._memory is not None and (known := self._ids.get(item)) is not None:
                self._fresh_ids[known] = None
        self._counts["succeeded"] += len(items)
        place.changed += len(items)

    def _end_failed(self, place: Place, call: Call, error: BaseException) -> None:
        if isinstance(error, (KeyboardInterrupt, SystemExit)):
            self.error = self.error or error
        if self._breaker is not None:
            if isinstance(error, Exception) and self.subscriber.retry.gives_up(error):
                self._breaker.dropped(call)
            else:
                self._breaker.failed(call, self._clock.steady())
        items = call.items
        if self.subscriber.batch is None:
            self._fail(place, items[0], error)
        elif isinstance(error, BatchError) and error.index < len(items):
            self._give_back(place, items[error.index + 1 :])
            self._succeed(place, items[: error.index])
            self._fail(place, items[error.index], error.cause)
        elif len(items) == 1:
            self._fail(place, items[0], error)
        else:
            # whose fault it was nobody knows: the next ones are called one by one
            place.alone += len(items)
            self._give_back(place, items)

    def _give_back(self, place: Place, items: Sequence[Item]) -> None:
        """These were not handled: they come again, in their order, and it counts as no attempt."""
        for item in items:
            if place.work is not None:
                place.work.give_back(item)

    def _fail(self, place: Place, item: Item, error: BaseException) -> None:
        if place.work is None:
            return
        if isinstance(error, (KeyboardInterrupt, SystemExit)):
            self.error = self.error or error
        now = self._clock.wall()
        self._counts["failed"] += 1
        place.changed += 1
        if logger.isEnabledFor(logging.INFO):
            logger.info(
                "subscriber %r: attempt %d of %s-%d, offset %d, failed: %s", self.subscriber.name, item.attempts + 1,
                item.origin_topic, item.origin_partition, item.origin_offset, type(error).__name__,
            )  # fmt: skip
        place.work.fail(item, Failure.of(error, now), error, now)

    def _watch_calls(self) -> bool:
        """Sync calls that take too long cannot be ended: the partition is given up, and the process has to end."""
        now = self._clock.steady()
        happened = False
        while self._timed and (self._timed[0].is_done or self._timed[0].deadline <= now):
            call = self._timed.popleft()
            if not call.is_done:
                happened = True
                self._give_up(call)
        return happened

    def _give_up(self, call: Call) -> None:
        place: Place = call.place
        place.stuck += 1
        timeout_ms = self.subscriber.timeout_ms or 0
        record = call.items[0].raw
        self.error = self.error or timed_out(
            timeout_ms,
            f"{record.topic}-{record.partition}, offset {record.offset}, subscriber {self.subscriber.name!r}. A thread "
            f"cannot be stopped, so the process has to end; the next one knows the record as a suspect",
        )

    # --- moving ------------------------------------------------------------------------------------------------------

    def _move_all(self) -> bool:
        """Move what there is to move. Then nothing for as long as it took: meanwhile more comes together, so that half
        of the time is left for calls, however slow the disk is.
        """
        begun = self._clock.steady()
        if begun < self._move_again_at:
            return False
        happened = False
        for place in self._busy():
            if place.resume_at <= begun:
                happened |= self._settle(place) and self._move(place)
        if happened:
            now = self._clock.steady()
            self._move_again_at = now + min(now - begun, MOST_REST_MS)
        return happened

    def _has_moves(self) -> bool:
        """Whether records that were about to be called have to be moved instead: nobody can decode them, or they have
        ended the process too often."""
        now = self._clock.steady()
        return now >= self._move_again_at and any(
            place.work.moves(MOST_MOVES)
            for place in self._places.values()
            if place.work is not None and place.doubtful is None and place.resume_at <= now
        )

    def _move(self, place: Place) -> bool:
        """Move what has to be moved, one transaction. Whether something was."""
        work = place.work
        if work is None or place.is_over:
            return False
        moves = work.moves(MOST_MOVES)
        if not moves:
            return False
        if any(move.to != "nowhere" for move in moves):
            self._flush_ids()
            offsets = self._encoded(place, work.after_moves(moves))
            membership = self._consumer.membership
            epoch = self._consumer.epochs_of([place.source]).get(place.source)
            if membership is None:
                return False
            mover = self._movers.of(place.route)
            try:
                mover.move(moves, offsets, membership, epoch)
            except Error as error:
                self._note_failed_move(place, moves, error, in_doubt=mover.is_in_doubt)
                return False
            place.written = offsets
            place.changed = 0
            self._counts["moves"] += 1
        self._note_moved(place, moves)
        return True

    def _note_moved(self, place: Place, moves: list[Move]) -> None:
        self._recover(place)
        for move in moves:
            if move.to == "dead_letter":
                self._counts["dead_lettered"] += 1
            elif move.to == "nowhere":
                self._note_dropped(move)
            else:
                self._counts["followers" if move.state == "follower" else "retried"] += 1
        if place.work is not None:
            place.work.moved(moves, self._clock.wall())

    def _note_dropped(self, move: Move) -> None:
        self._counts["dropped"] += 1
        item, failure = move.item, move.failure
        logger.error(
            "subscriber %r: %s-%d, offset %d, failed for good after %d attempts and is dropped (dead_letter=False): %s",
            self.subscriber.name, item.origin_topic, item.origin_partition, item.origin_offset, move.attempts,
            None if failure is None else failure.exception,
        )  # fmt: skip

    def _note_failed_move(self, place: Place, moves: list[Move], error: Error, *, in_doubt: bool) -> None:
        self._counts["failed_moves"] += 1
        if isinstance(error, (CommitFailedError, UnknownTopicError)):
            self._refuse(place, error)
            return
        if in_doubt:
            place.doubtful = moves
        self._back_off(place, f"{len(moves)} records of {place.title} could not be moved", error)

    def _settle(self, place: Place) -> bool:
        """Find out what became of moves whose outcome is unknown. Whether the next ones may come."""
        moves = place.doubtful
        if moves is None:
            return True
        try:
            is_committed = self._movers.of(place.route).settle()
        except Error as error:
            if error.outcome == "unknown":
                self._back_off(place, "whether records were moved is not known", error)
            elif not place.in_hand:
                self._begin_anew(place)
            return False
        place.doubtful = None
        if is_committed:
            self._note_moved(place, moves)
        return not is_committed or place.work is not None

    def _refuse(self, place: Place, error: Error) -> None:
        """The partition is somebody else's, or its topic is gone, which the consumer will hear of. If it does not, one
        of the topics beside it was deleted: it is begun anew after a while.
        """
        logger.warning("subscriber %r: %s", self.subscriber.name, error)
        self._drop(place)
        place.resume_at = self._clock.steady() + LONG_WAIT_MS

    def _back_off(self, place: Place, what: str, error: Error) -> None:
        """Something could not be written: wait a while with this partition, longer each time."""
        place.resume_at = self._clock.steady() + place.pause
        place.pause = min(2 * place.pause, LONGEST_PAUSE_MS)
        self._note_problem(f"{what}: {type(error).__name__}: {error}")
        logger.error("subscriber %r: %s: %s. Nothing is lost, it is tried again", self.subscriber.name, what, error)

    def _recover(self, place: Place) -> None:
        place.resume_at, place.pause = 0, FIRST_PAUSE_MS
        self._problem = None

    def _note_problem(self, problem: str) -> None:
        self._problem = problem

    # --- committing --------------------------------------------------------------------------------------------------

    def _commit_if_due(self) -> bool:
        now = self._clock.steady()
        changed = [place for place in self._places.values() if place.changed and place.resume_at <= now]
        if now - self._committed_at < COMMIT_INTERVAL_MS:
            changed = [place for place in changed if place.changed >= COMMIT_RECORDS]
        else:
            self._committed_at = now
        return bool(changed) and self._commit(changed)

    def _commit(self, places: Sequence[Place], *, clean: bool = False) -> bool:
        """Write how far these partitions are, those of them that have changed, by one append. Whether it is written."""
        self._flush_ids()
        offsets: dict[TopicPartition, OffsetAndMetadata] = {}
        chosen = [place for place in places if not place.is_over and place.doubtful is None and place.work is not None]
        encoded = {}
        for place in chosen:
            if place.work is not None:
                encoded[place.source] = self._encoded(place, place.work.finished(clean=clean))
                offsets.update(
                    (name, one) for name, one in encoded[place.source].items() if place.written.get(name) != one
                )
        try:
            if offsets:
                owners = [one.source for one in chosen if encoded[one.source] != one.written]
                self._consumer.commit_beside(offsets, owners)
                self._counts["commits"] += 1
        except CommitFailedError as error:
            return self._commit_apart(chosen, error, clean=clean)
        except Error as error:
            self._counts["failed_commits"] += 1
            for place in chosen:
                self._back_off(place, f"offsets of {place.title} were not committed", error)
            return False
        for place in chosen:
            place.written = encoded[place.source]
            place.changed = 0
            if place.resume_at:
                self._recover(place)
            if place.work is not None and not clean:
                place.work.marked()
        return True

    def _commit_apart(self, places: list[Place], error: CommitFailedError, *, clean: bool) -> bool:
        """One of several partitions is lost: the others are still to be committed."""
        self._counts["failed_commits"] += 1
        if len(places) == 1:
            self._refuse(places[0], error)
            return False
        outcomes = [self._commit([place], clean=clean) for place in places]
        return all(outcomes)

    def _encoded(self, place: Place, finished: tuple[Finished, Finished]) -> dict[TopicPartition, OffsetAndMetadata]:
        source, retry = finished
        return {
            place.source: OffsetAndMetadata(source.prefix, source.encode()),
            place.retry: OffsetAndMetadata(retry.prefix, retry.encode()),
        }

    # --- partitions come ---------------------------------------------------------------------------------------------

    def _require_topics(self, topic: str) -> None:
        """The retry and the dead-letter topic of a topic are there, with as many partitions."""
        subscriber = self.subscriber
        require_topic(self._directory, topic, subscriber.group, RETRY, subscriber.retry_topic)
        if subscriber.dead_letter:
            require_topic(self._directory, topic, subscriber.group, DEAD_LETTER, subscriber.dead_letter_topic)

    def _has_topics(self, place: Place) -> bool:
        """Whether they are there, as far as can be told without a lock."""
        there = set(self._directory.topics())
        wanted = [place.retry] if place.dead_letter is None else [place.retry, place.dead_letter]
        return all(
            name.topic in there and self._directory.topic(name.topic).partitions > name.partition for name in wanted
        )

    def _take_over(self, names: list[TopicPartition]) -> None:
        """The consumer has got partitions: they begin in the next rounds."""
        self._has_changed = True
        self._consumer.wakeup()  # it may be about to sleep, with partitions that wait to be begun
        for name in names:
            reading = self._consumer.reading(name)
            if reading is None:
                continue
            reading.is_paused = True
            place = self._places[name] = Place(self._route_of(name), reading)
            self._opening.append(place)

    def _route_of(self, source: TopicPartition) -> Route:
        """Where records of a partition go. The topics need not be there yet."""
        subscriber = self.subscriber
        retry, dead = check_names(source.topic, subscriber.group, subscriber.retry_topic, subscriber.dead_letter_topic)
        return Route(
            subscriber.group,
            source,
            TopicPartition(retry, source.partition),
            TopicPartition(dead, source.partition) if subscriber.dead_letter else None,
        )

    def _fence_awaited(self) -> None:
        """A transaction of an earlier owner, who may be stopped, holds up partitions of ours: end it."""
        for name in self._consumer.awaited():
            mover = self._movers.of(self._route_of(name))
            if not mover.is_open:
                mover.fence()

    def _begin_places(self) -> bool:
        """Begin the partitions that can be; then say durably that they are not clean any more."""
        now = self._clock.steady()
        for place in list(self._places.values()):
            if place.is_over and not place.in_hand and place.resume_at <= now:
                self._begin_anew(place)
        if not self._opening:
            return False
        begun = []
        for place in list(self._opening):
            if place.resume_at > now:
                continue
            try:
                is_begun = self._begin_place(place)
            except (StorageError, LockedError, UnknownTopicError) as error:
                self._end_reading(place)
                self._back_off(place, f"{place.title} could not be begun", error)
                continue
            if is_begun:
                begun.append(place)
        if not begun or not self._commit(begun):
            for place in begun:
                self._end_reading(place)
            return False
        for place in begun:
            if not place.is_over:
                self._opening.remove(place)
                self._by_retry[place.retry] = place
        return True

    def _begin_place(self, place: Place) -> bool:
        """Find out how a partition was left; False when that cannot be told yet."""
        if not self._has_topics(place):
            self._require_topics(place.source.topic)
        names = [place.source, place.retry]
        mover = self._movers.of(place.route)
        if not resolve_pending(self._directory, self.subscriber.group, names, timeout_ms=0):
            mover.fence()
            if not resolve_pending(self._directory, self.subscriber.group, names, timeout_ms=0):
                return False
        committed = self._offsets.committed(self.subscriber.group, names)
        source = self._finished_of(place.source, committed, place.reading.position)
        known = committed[place.retry]
        reading = self._consumer.add_beside(place.retry, None if known is None else known.offset)
        retry = self._finished_of(place.retry, committed, reading.position)
        subscriber = self.subscriber
        work = PartitionWork(
            order_by=subscriber.order_by,
            concurrency=subscriber.concurrency,
            retry=subscriber.retry,
            dead_letter=subscriber.dead_letter,
            random=self._chance,
            batch=subscriber.batch or 1,
            several_of_lane=True,
            block_on_dead_letter=subscriber.block_on_dead_letter,
        )
        work.restore(source, retry)
        place.is_suspicious = not (source.clean and retry.clean)
        place.work, place.retry_reading = work, reading
        known = committed[place.source]
        # where it is read from already, unless it is begun once more
        place.reading.position = place.reading.finished = place.reading.initial if known is None else known.offset
        place.written = {name: one for name, one in committed.items() if one is not None}
        if not self._read_retry(place, work, reading):
            self._end_reading(place)
            return False
        if subscriber.block_on_dead_letter and place.dead_letter is not None:
            work.block(self._blocked_keys(place.dead_letter))
        work.begin()
        return True

    def _blocked_keys(self, dead_letter: TopicPartition) -> set[bytes]:
        """Keys that have dead letters which nobody has redriven or discarded."""
        topic, number = dead_letter
        owner = self._directory.topic(topic).owner
        letters = DeadLetters(self._directory, topic, "" if owner is None else owner.topic, self.subscriber.group, "")
        return {letter.key for letter in letters.list(partition=number) if letter.key is not None}

    def _read_retry(self, place: Place, work: PartitionWork, reading: Assigned) -> bool:
        """Read the retry partition to its end; False while transactions hide some of it."""
        end = reading.log.end_offset
        if reading.log.last_stable_offset < end:
            self._movers.of(place.route).fence()
        while reading.position < end:
            batch = self._consumer.read_beside(reading)
            if batch is None:
                break
            work.add_retry(self._retry_items(batch))
        work.reached(retry=reading.position)
        return reading.position >= end

    def _finished_of(
        self, name: TopicPartition, committed: dict[TopicPartition, OffsetAndMetadata | None], position: int
    ) -> Finished:
        known = committed[name]
        if known is None:
            return Finished.decode(position, "")
        return Finished.decode(known.offset, known.metadata)

    def _begin_anew(self, place: Place) -> None:
        """Forget what is known of a partition, and begin it again with what is committed."""
        fresh = Place(place.route, place.reading)
        place.reading.is_paused = True
        self._drop(place)
        self._end_reading(place)
        self._places[place.source] = fresh
        self._opening.append(fresh)
        self._movers.forget([place.source])

    def _end_reading(self, place: Place) -> None:
        place.work = place.retry_reading = None
        self._by_retry.pop(place.retry, None)
        self._consumer.remove_beside([place.retry])

    # --- partitions go -----------------------------------------------------------------------------------------------

    def _let_go(self, names: list[TopicPartition]) -> None:
        """Others shall have these: let end what is in hand, and say how far they are. Commits still count."""
        places = [self._places[name] for name in names if name in self._places]
        for place in places:
            place.is_leaving = True
        self._drain(places)
        for place in places:
            if place.work is not None and not place.is_over:
                while self._settle(place) and self._move(place):
                    pass
        ended = [place for place in places if not place.in_hand and not place.stuck]
        self._commit(ended, clean=True)
        self._commit([place for place in places if place.in_hand or place.stuck])
        self._lose(names)

    def _drain(self, places: list[Place]) -> None:
        """Wait for what is in hand of these partitions; the others go on meanwhile."""
        deadline = self._clock.steady() + self.subscriber.drain_ms
        while any(place.in_hand for place in places):
            left = deadline - self._clock.steady()
            if left <= 0:
                waited = [place for place in places if place.in_hand]
                logger.warning(
                    "subscriber %r: %d calls did not end within %d ms, their records come again: %s",
                    self.subscriber.name, sum(place.in_hand for place in waited), self.subscriber.drain_ms, waited,
                )  # fmt: skip
                return
            self._collect(min(left, SHORT_WAIT_MS))
            self._watch_calls()
            if all(place.in_hand == 0 or place.stuck for place in places):
                return
            self._move_all()
            self._dispatch()

    def _lose(self, names: Iterable[TopicPartition]) -> None:
        """These are somebody else's: drop everything."""
        self._has_changed = True
        gone = [self._places.pop(name) for name in list(names) if name in self._places]
        for place in gone:
            self._drop(place)
            self._by_retry.pop(place.retry, None)
        self._consumer.remove_beside([place.retry for place in gone]) if not self._consumer.closed else None
        self._movers.forget([place.source for place in gone])

    def _drop(self, place: Place) -> None:
        """Whatever comes for it counts no more."""
        place.is_over = place.is_leaving = True
        place.doubtful = None
        if place in self._opening:
            self._opening.remove(place)
        if place.work is not None:
            place.work.release()
