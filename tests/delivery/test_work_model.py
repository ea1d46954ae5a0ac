"""``PartitionWork`` against a simple model: a log of three lists, owners that die anywhere, a clock turned by hand.

The model knows what the three lists and the last commit say, what was called, and what this owner has finished. It
says: whose turn it may be, how often a record may have been called, that every record is in exactly one place, and
that a commit says what is finished, no more and no less.
"""

from __future__ import annotations

import random
from collections import Counter
from typing import Any, NamedTuple
from unittest import mock

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from fastlog import Record
from fastlog.delivery import work as work_module
from fastlog.delivery.finished import Finished, Mark
from fastlog.delivery.items import Failure, Item, Move, Stage
from fastlog.delivery.policy import Retry, RetryLater
from fastlog.delivery.work import PartitionWork

KEYS = [b"a", b"b", b"c", None]
TIGHT = {"PAUSE_BYTES": 10, "CARRY_BYTES": 6, "STOP_BYTES": 24, "WINDOW": 6, "CAREFUL_RECORDS": 5, "CARRIED": 3}
MOST_RECORDS = 80


class Retried(NamedTuple):
    """A record of the retry topic."""

    origin: int
    attempts: int
    due: int
    state: str
    is_redriven: bool


class World:
    """What is durable, the owner of the moment, and what happened so far."""

    def __init__(
        self,
        order_by: str,
        concurrency: int,
        attempts: int,
        dead_letter: bool = True,
        blocks: bool = False,
        batch: int = 1,
    ) -> None:
        self.batch = batch
        self.order_by, self.attempts, self.dead_letter, self.blocks = order_by, attempts, dead_letter, blocks
        self.concurrency = 1 if order_by == "partition" else concurrency
        self.now = 1_000_000
        self.random = random.Random(0)
        # durable; None is an offset without a record
        self.source: list[bytes | type[None] | None] = []
        self.retry: list[Retried | None] = []
        self.dead: list[int] = []
        self.nowhere: set[int] = set()
        self.committed: tuple[tuple[int, str], tuple[int, str]] = ((0, ""), (0, ""))
        # what happened
        self.succeeded: set[int] = set()
        self.calls: Counter[int] = Counter()
        self.hits: Counter[int] = Counter()
        self.ended_marked: set[int] = set()
        self.own()

    # --- owners ------------------------------------------------------------------------------------------------------

    def own(self) -> None:
        """A new owner of the partition, which knows what is committed."""
        self.work = PartitionWork(
            order_by=self.order_by,
            concurrency=self.concurrency,
            retry=Retry(self.attempts, backoff=("1s", "4s"), give_up_on=KeyError),
            dead_letter=self.dead_letter,
            random=self.random,
            max_waiting=20,
            batch=self.batch,
            several_of_lane=True,
            block_on_dead_letter=self.blocks,
        )
        source, retry = (Finished.decode(*said) for said in self.committed)
        self.restored = source, retry
        self.work.restore(source, retry)
        self.positions = [source.prefix, retry.prefix]
        self.done: tuple[set[int], set[int]] = (set(), set())
        self.in_hand: list[Item] = []
        self.under_way: list[list[Item]] = []  # call by call
        self.unsettled: set[Item] = set()  # called, and what came of it is not durable
        self.durable_marks: tuple[Mark | None, Mark | None] = (source.mark, retry.mark)
        self.open_moves: list[Move] = []
        self.blocked: set[bytes] = set()
        self.decided: set[int] = set()
        while self.poll_retry(100):
            pass
        self.work.begin()
        self.suspects = self.find_suspects(source, retry)

    def find_suspects(self, source: Finished, retry: Finished) -> set[int]:
        """Origins of the fronts of both sides that may have been in hand when the owner before this one ended."""
        if source.clean:
            return set()
        found: set[int] = set()
        seen: set[object] = set()
        for offset in sorted(self.source_open()):
            lane = self.lane(offset)
            if lane not in seen and len(seen) < self.concurrency * self.batch:
                found.add(offset)
            seen.add(lane)
        fronts: dict[object, tuple[int, int]] = {}
        for place in sorted(self.retry_open(), key=lambda place: (self.retry_at(place).origin, place)):
            fronts.setdefault(self.lane(self.retry_at(place).origin), (self.retry_at(place).due, place))
        due = sorted(front for front in fronts.values() if front[0] <= self.now)
        found |= {self.retry_at(place).origin for _, place in due[: self.concurrency * self.batch]}
        return found

    def die(self) -> None:
        """Memory is lost."""
        for item in {*self.in_hand, *self.unsettled}:
            self.hits[item.origin_offset] += 1
        for at, mark in enumerate(self.durable_marks):
            if mark is not None:  # its call may have begun, for all that the next owner knows
                self.ended_marked.add(mark.offset if at == 0 else self.retry_at(mark.offset).origin)
        self.check_sum()
        self.own()

    def let_go(self) -> None:
        """A release in good order; what is in hand comes back too late."""
        source, retry = self.work.finished(clean=True)
        assert not (source.clean and self.in_hand), "clean with something in hand"
        self.commit(source, retry)
        self.work.release()
        for item in self.in_hand:
            self.work.succeed(item)
        assert self.work.take(self.now, 10) == [] and self.work.moves() == []
        self.die()

    # --- what is true ------------------------------------------------------------------------------------------------

    def lane(self, origin: int) -> object:
        key = self.source[origin]
        if self.order_by == "partition":
            return "all"
        return key if self.order_by == "key" and key is not None else origin

    def retry_at(self, place: int) -> Retried:
        found = self.retry[place]
        assert found is not None
        return found

    @staticmethod
    def has(finished: Finished, offset: int) -> bool:
        return offset < finished.prefix or any(start <= offset < stop for start, stop in finished.runs)

    def source_open(self) -> set[int]:
        finished = Finished.decode(*self.committed[0])
        return {at for at, key in enumerate(self.source) if key is not type(None) and not self.has(finished, at)}

    def retry_open(self) -> set[int]:
        finished = Finished.decode(*self.committed[1])
        return {at for at, found in enumerate(self.retry) if found is not None and not self.has(finished, at)}

    def check_sum(self) -> None:
        """Every record is in one place: waiting in the source or in the retry topic, a dead letter, or finished."""
        waiting = Counter(self.source_open())
        waiting.update(self.retry_at(place).origin for place in self.retry_open())
        waiting.update(self.dead)
        for origin, key in enumerate(self.source):
            if key is type(None):
                continue
            assert waiting[origin] <= 1, f"{origin} is in {waiting[origin]} places"
            assert waiting[origin] or origin in self.succeeded | self.nowhere, f"{origin} is lost"

    def is_before(self, origin: int, item: Item) -> bool:
        """Whether a record that this owner has to know comes before an item in its lane, and is not finished."""
        if origin >= item.origin_offset or self.source[origin] is type(None):
            return False
        if self.lane(origin) != self.lane(item.origin_offset):
            return False
        if origin in self.source_open() - self.done[0]:
            # by partition whatever is in the retry topic was redriven, and comes between two others
            return not (self.order_by == "partition" and item.is_retry)
        places = [place for place in self.retry_open() - self.done[1] if self.retry_at(place).origin == origin]
        # what was redriven since is news, and what has a mark already goes on first
        is_marked = item.is_suspect or (self.order_by == "partition" and item.attempts > 0)
        return any(
            not self.retry_at(place).is_redriven or (place < self.positions[1] and not is_marked) for place in places
        )

    # --- what happens ------------------------------------------------------------------------------------------------

    def poll_source(self, most: int) -> int:
        if not self.work.wants_source:
            return 0
        items = []
        start = self.positions[0]
        for offset in range(start, min(start + most, len(self.source))):
            if self.source[offset] is not type(None):
                items.append(self.item(offset))
            self.positions[0] = offset + 1
        self.work.add_source(items)
        if self.random.random() < 0.5:
            self.work.reached(source=self.positions[0])
        return self.positions[0] - start

    def item(self, offset: int) -> Item:
        raw = Record("t", 0, offset, 0, self.source[offset], b"v")
        is_torn = offset % 19 == 18
        return Item.of_source(None if is_torn else raw, raw, Failure("Torn", "", "", 0) if is_torn else None)

    def poll_retry(self, most: int) -> int:
        items = []
        start = self.positions[1]
        for offset in range(start, min(start + most, len(self.retry))):
            found = self.retry[offset]
            if found is not None:
                item = self.item(found.origin)
                item.is_retry, item.offset = True, offset
                item.attempts, item.due, item.is_follower = found.attempts, found.due, found.state == "follower"
                items.append(item)
                if found.is_redriven:
                    # it lets all of its key in, also behind what is on its way to the dead letters already
                    self.blocked.discard(self.source[found.origin])  # type: ignore[arg-type]
                    self.decided |= {id(move.item) for move in (*self.work._moving, *self.work._failed)}
            self.positions[1] = offset + 1
        self.work.add_retry(items)
        return self.positions[1] - start

    def commit(self, source: Finished, retry: Finished) -> None:
        for at, finished in enumerate((source, retry)):
            text = finished.encode()
            assert len(text) <= 4000
            assert Finished.decode(finished.prefix, text) == finished
            runs = Finished(finished.prefix, finished.runs, clean=False).encode()
            assert len(runs) <= 8 + work_module.STOP_BYTES * 4 // 3
            records: list[Any] = self.source if at == 0 else self.retry
            nothing = type(None) if at == 0 else None
            for offset in range(len(records)):
                if records[offset] is nothing:
                    continue
                is_done = offset in self.done[at] or self.has(self.restored[at], offset)
                assert self.has(finished, offset) == is_done, f"{('source', 'retry')[at]} {offset}: {is_done}"
            for run in finished.runs:
                assert run[1] <= max(len(records), *(stop for _, stop in self.restored[at].runs), 0)
        self.committed = ((source.prefix, source.encode()), (retry.prefix, retry.encode()))
        self.durable_marks = (source.mark, retry.mark)
        opened = self.source_open(), self.retry_open()
        self.unsettled = {
            item
            for item in self.unsettled
            if item.offset in opened[item.is_retry] and not self.is_counted(item, self.durable_marks[item.is_retry])
        }
        self.check_sum()

    @staticmethod
    def is_counted(item: Item, mark: Mark | None) -> bool:
        """Whether it is durable how often a record was tried that is tried in its place."""
        return (
            item.stage is Stage.CLAIMED
            and mark is not None
            and mark.offset == item.offset
            and mark.attempts >= item.attempts
        )

    def commit_plainly(self) -> None:
        self.commit(*self.work.finished())

    def mark(self) -> bool:
        if not self.work.wanted_mark(self.now):
            return False
        assert self.work.take(self.now, 10) == []
        self.commit_plainly()
        self.work.marked()
        return True

    def take(self, free: int) -> list[Item]:
        wanted = self.work.wanted_mark(self.now)
        free = free if self.batch == 1 else min(free, self.batch)
        taken = self.work.take(self.now, free)
        assert not (wanted and taken)
        assert len(taken) <= free
        assert len(taken) <= 1 or not any(item.is_alone for item in taken)
        for at, item in enumerate(taken):
            self.check_turn(item, taken[:at] if self.batch > 1 else [])
            self.in_hand.append(item)
            self.calls[item.origin_offset] += 1
            limit = self.attempts + self.hits[item.origin_offset]
            assert self.calls[item.origin_offset] <= limit, f"{item.origin_offset} is called too often"
        self.under_way += [list(taken)] if self.batch > 1 and taken else [[item] for item in taken]
        assert len(self.in_hand) <= self.concurrency * self.batch
        assert self.work.in_hand == len(self.in_hand)
        if taken:
            self.check_alone(taken)
        return taken

    def check_turn(self, item: Item, same_call: list[Item]) -> None:
        origin = item.origin_offset
        assert item.record is not None, "handled though it cannot be decoded"
        if item.is_retry:
            assert item.offset in self.retry_open() - self.done[1], "finished before"
            assert self.retry_at(item.offset).due <= self.now, "too early"
        else:
            assert item.offset in self.source_open() - self.done[0], "finished before"
        assert item.due <= self.now, "too early"
        others = [other for other in self.in_hand if other not in same_call]
        assert not any(self.lane(other.origin_offset) == self.lane(origin) for other in others), "beside another"
        before = {other.origin_offset for other in same_call}
        early = [other for other in range(origin) if other not in before and self.is_before(other, item)]
        assert not early, f"{origin} begins before {early}"
        key = self.source[origin]
        assert not (self.blocks and key in self.blocked), "its predecessor is a dead letter"

    def check_alone(self, taken: list[Item]) -> None:
        """Suspects run alone, under a mark; so does what is tried in place."""
        assert not Finished.decode(*self.committed[0]).clean and not Finished.decode(*self.committed[1]).clean
        for item in taken:
            is_repeated = self.order_by == "partition" and item.attempts > 0
            if item.origin_offset in self.suspects or is_repeated:
                mark = self.durable_marks[item.is_retry]
                assert mark is not None and mark.offset == item.offset, f"{item.origin_offset} is not marked"
                assert mark.attempts == item.attempts + 1
                assert len(self.in_hand) == 1, "not alone"
                self.suspects.discard(item.origin_offset)

    def succeed(self, item: Item) -> None:
        self.end(item)
        self.work.succeed(item)
        self.done[item.is_retry].add(item.offset)
        self.succeeded.add(item.origin_offset)

    def fail(self, item: Item, error: BaseException) -> None:
        behind = next(call for call in self.under_way if item in call)
        if item is not behind[-1]:
            self.give_back(behind[behind.index(item) + 1], alone=self.random.random() < 0.5)
        self.end(item)
        self.work.fail(item, Failure.of(error, self.now), error, self.now)

    def end(self, item: Item) -> None:
        self.put_down(item)
        self.unsettled.add(item)

    def put_down(self, item: Item) -> None:
        self.in_hand.remove(item)
        for call in self.under_way:
            if item in call:
                call.remove(item)
        self.under_way = [call for call in self.under_way if call]

    def give_back(self, item: Item, alone: bool = False) -> None:
        """It, and what is behind it in its call, was not handled after all."""
        call = next(call for call in self.under_way if item in call)
        for other in call[call.index(item) :]:
            self.put_down(other)
            self.calls[other.origin_offset] -= 1
            self.work.give_back(other, alone=alone)

    def move(self, most: int, how: str = "commit") -> bool:
        """A transaction: committed, aborted, or committed by a process that dies before it hears of it."""
        moves = self.work.moves(most)
        assert len(moves) <= most
        assert self.work.moves(most) == moves
        if not moves:
            return False
        if all(move.to == "nowhere" for move in moves) and self.random.random() < 0.7:
            # nothing to write: the next commit tells of it
            for move in moves:
                self.carry_out(move)
            self.work.moved(moves, self.now)
            return True
        source, retry = self.work.after_moves(moves)
        if how == "abort":
            return True
        for move in moves:
            self.carry_out(move)
        self.commit(source, retry)
        if how == "die":
            self.die()
        else:
            self.work.moved(moves, self.now)
        return True

    def carry_out(self, move: Move) -> None:
        item, origin = move.item, move.item.origin_offset
        assert item not in self.in_hand
        self.done[item.is_retry].add(item.offset)
        self.suspects.discard(origin)
        if move.to == "retry":
            assert self.order_by != "partition" or item.is_retry, "what is retried in place is not moved"
            assert move.attempts < self.attempts or move.state == "follower"
            if item.is_retry and move.failure is None:
                assert (move.attempts, move.due) == (item.attempts, item.due)
            self.retry.append(Retried(origin, move.attempts, move.due, move.state, False))
            if self.random.random() < 0.2:
                self.retry.append(None)
            return
        assert move.failure is not None
        if move.failure.exception in ("OSError", "RetryLater", "WorkerDied"):
            # a last call that failed, and whose move was not carried out when its owner let go, is made once more
            assert self.attempts <= move.attempts <= self.attempts + self.hits[origin]
        if move.failure.exception == "WorkerDied":
            assert self.hits[origin] or origin in self.ended_marked
        if self.dead_letter:
            assert move.to == "dead_letter"
            self.dead.append(origin)
        else:
            assert move.to == "nowhere"
            self.nowhere.add(origin)
        key = self.source[origin]
        if self.blocks and self.dead_letter and isinstance(key, bytes) and id(item) not in self.decided:
            self.blocked.add(key)

    def redrive(self) -> None:
        for origin in sorted(self.dead):
            self.retry.append(Retried(origin, 0, 0, "head", True))
            self.calls[origin] = self.hits[origin] = 0
        self.dead.clear()

    # --- until all is quiet ------------------------------------------------------------------------------------------

    def settle(self) -> None:
        """Go on without failures and faults until everything is finished: nothing may wait for ever."""
        for item in list(self.in_hand):
            self.succeed(item)
        for _ in range(40 * (len(self.source) + len(self.retry) + 10)):
            is_moving = bool(self.poll_retry(3)) | bool(self.poll_source(5)) | self.mark()
            for item in self.take(10):
                self.succeed(item)
                is_moving = True
            is_moving |= self.move(10)
            if is_moving:
                continue
            assert self.work.is_idle, "it does not go on, and does not say that it is idle"
            due = self.work.next_due(self.now)
            if due is None:
                break
            assert due > self.now
            self.now = due
        self.commit(*self.work.finished(clean=True))
        assert not self.source_open() and not self.retry_open(), "something waits for ever"
        assert self.work.waiting == 0 and self.work.in_hand == 0
        assert Finished.decode(*self.committed[0]).clean


class Delivery(RuleBasedStateMachine):
    """Everything that may happen, in any order."""

    @initialize(
        order_by=st.sampled_from(["key", "key", "partition", "none"]),
        concurrency=st.integers(1, 4),
        attempts=st.integers(1, 4),
        dead_letter=st.sampled_from([True, True, True, False]),
        blocks=st.booleans(),
        batch=st.sampled_from([1, 1, 3]),
        is_tight=st.booleans(),
    )
    def begin(
        self,
        order_by: str,
        concurrency: int,
        attempts: int,
        dead_letter: bool,
        blocks: bool,
        batch: int,
        is_tight: bool,
    ) -> None:
        self.patch = mock.patch.multiple(work_module, **TIGHT) if is_tight else None
        if self.patch is not None:
            self.patch.start()
        self.world = World(order_by, concurrency, attempts, dead_letter, blocks, batch)

    def teardown(self) -> None:
        if not hasattr(self, "world"):
            return
        try:
            self.world.settle()
            self.world.check_sum()
        finally:
            if self.patch is not None:
                self.patch.stop()

    @precondition(lambda self: len(self.world.source) < MOST_RECORDS)
    @rule(keys=st.lists(st.sampled_from([*KEYS, type(None)]), min_size=1, max_size=12))
    def produce(self, keys: list[Any]) -> None:
        self.world.source += keys

    @rule(count=st.integers(1, 9))
    def read_source(self, count: int) -> None:
        self.world.poll_source(count)

    @rule(count=st.integers(1, 5))
    def read_retry(self, count: int) -> None:
        self.world.poll_retry(count)

    @rule(free=st.integers(1, 6))
    def take(self, free: int) -> None:
        self.world.take(free)

    @rule(free=st.integers(1, 6))
    def mark_and_take(self, free: int) -> None:
        self.world.mark()
        self.world.take(free)

    @precondition(lambda self: self.world.in_hand)
    @rule(at=st.integers(0, 5))
    def succeed(self, at: int) -> None:
        self.world.succeed(self.world.under_way[at % len(self.world.under_way)][0])

    @precondition(lambda self: self.world.in_hand)
    @rule(at=st.integers(0, 5), error=st.sampled_from([OSError(), OSError(), KeyError(), RetryLater(0), RetryLater(9)]))
    def fail(self, at: int, error: BaseException) -> None:
        self.world.fail(self.world.under_way[at % len(self.world.under_way)][0], error)

    @precondition(lambda self: self.world.in_hand)
    @rule(at=st.integers(0, 5))
    def give_back(self, at: int) -> None:
        self.world.give_back(self.world.under_way[at % len(self.world.under_way)][0])

    @rule()
    def mark(self) -> None:
        self.world.mark()

    @rule()
    def commit(self) -> None:
        self.world.commit_plainly()

    @rule(most=st.sampled_from([1, 2, 10]), how=st.sampled_from(["commit", "commit", "commit", "abort", "die"]))
    def move(self, most: int, how: str) -> None:
        self.world.move(most, how)

    @rule()
    def die(self) -> None:
        self.world.die()

    @rule()
    def let_go(self) -> None:
        self.world.let_go()

    @rule(milliseconds=st.sampled_from([1, 500, 1000, 10_000, -700]))
    def pass_time(self, milliseconds: int) -> None:
        self.world.now += milliseconds

    @rule()
    def redrive(self) -> None:
        self.world.redrive()

    @invariant()
    def everything_is_somewhere(self) -> None:
        if hasattr(self, "world"):
            self.world.check_sum()


TestDelivery = Delivery.TestCase
TestDelivery.settings = settings(max_examples=settings.default.max_examples * 2, stateful_step_count=60)  # type: ignore[union-attr]


@pytest.mark.parametrize("order_by", ["key", "none", "partition"])
@pytest.mark.parametrize("is_tight", [False, True])
def test_long_random_lives(seed: int, order_by: str, is_tight: bool) -> None:
    """Longer lives than the state machine draws, busy ones: hundreds of records, many of which fail."""
    rng = random.Random(f"{seed} {order_by} {is_tight}")
    with mock.patch.multiple(work_module, **(TIGHT if is_tight else {"WINDOW": 50})):
        for _ in range(3):
            world = World(order_by, rng.randint(1, 5), rng.randint(1, 4), True, rng.random() < 0.3, rng.choice([1, 4]))
            world.random = rng
            for _ in range(400):
                live(world, rng)
            world.settle()
            world.check_sum()


def live(world: World, rng: random.Random) -> None:
    """One step of a life."""
    action = rng.random()
    if action < 0.1 and len(world.source) < 200:
        world.source += rng.choices([*KEYS, type(None)], k=rng.randint(1, 10))
    elif action < 0.3:
        world.poll_source(rng.randint(1, 10))
        world.poll_retry(rng.randint(1, 10))
    elif action < 0.5:
        world.mark()
        world.take(rng.randint(1, 6))
    elif action < 0.75 and world.in_hand:
        item = rng.choice(world.under_way)[0]
        if rng.random() < 0.4:
            world.fail(item, rng.choice([OSError(), OSError(), KeyError(), RetryLater(0), RetryLater(3)]))
        else:
            world.succeed(item)
    elif action < 0.9:
        world.move(rng.choice([1, 5, 50]), rng.choices(["commit", "abort", "die"], [20, 2, 1])[0])
    elif action < 0.95:
        world.now += rng.choice([1, 100, 1000, 3000])
    elif action < 0.97:
        world.commit_plainly()
    else:
        rng.choice([world.die, world.let_go, world.redrive, world.commit_plainly])()
