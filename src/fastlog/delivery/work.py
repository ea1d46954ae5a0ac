"""All decisions about one source partition and its retry partition: what may be handled now, and what becomes of it.

Nothing here reads, writes, waits or looks at a clock: whoever owns the partition adds records, takes them, tells how
they ended, commits what ``finished`` says, and carries out moves. What is decided survives that owner in three places:
the source, the retry topic, and the two commits.

**Marks.** A record that is handled alone is named in the commit with the number of calls begun, before its call
begins: the one that is tried again in its place (``order_by="partition"``), and each suspect. So a record that ends its
process is counted, though nobody is left to count.

**Suspects.** After an owner that did not let go in good order, the first ``concurrency`` fronts of the source and of
the retry topic may have ended its process. They run one at a time, under a mark, and nothing else beside them.
The dead owner may have been further than its last commit says. So the next thousand records are begun in steps: no
more than ``concurrency``, no two of one lane, and a commit before each step. Whatever ends the process there is among
the next owner's suspects. After that steps grow, until they are longer than anything that is begun between commits.

**Dead letters that block.** With ``block_on_dead_letter`` records of the key of a dead letter are dead letters too when
their turn comes, with the exception ``PredecessorDeadLettered``, uncounted and unhandled, until one of its key comes
back by a redrive. Redriven together they come in order: by their origin offsets. That lasts as long as this owner has
the partition; the next one begins with the keys that ``block`` names. Records without a key block nobody.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from heapq import nsmallest
from itertools import islice
from random import Random
from typing import Final, Literal

from fastlog.delivery.finished import METADATA_CHARACTERS, Finished, Mark, Progress, varint_bytes
from fastlog.delivery.items import Failure, Item, Move, Stage
from fastlog.delivery.ordering import Lanes
from fastlog.delivery.policy import BatchError, Retry, RetryLater
from fastlog.errors import ConfigError

__all__ = ["ORDERS", "PartitionWork"]

ORDERS: Final = ("partition", "key", "none")

# of the metadata, in bytes before base64
PAUSE_BYTES: Final = 3000 // 4 * 3  # no more records are asked for
CARRY_BYTES: Final = 2000 // 4 * 3  # what waits at the low end of the retry topic is moved to its high end
SPARSE_OFFSETS: Final = 100_000  # so much finished behind what waits, and it is moved too: the next owner reads it all
STOP_BYTES: Final = (METADATA_CHARACTERS - 200) // 4 * 3  # nothing is begun that could go beyond, flags and mark apart

CAREFUL_RECORDS: Final = 1000  # begun in steps of ``concurrency`` after an unclean end
STEPPED_RECORDS: Final = 100_000  # then in steps that grow, until so many were begun
WINDOW: Final = 1000  # records of the source that wait, at least
CARRIED: Final = 500  # at most so many are carried at a time

WAITING: Final = frozenset({Stage.QUEUED, Stage.DELAYED, Stage.READY})
GONE: Final = frozenset({Stage.EXPECTED, Stage.DONE})

Marks = tuple[Mark | None, Mark | None]
UNMARKED: Final[Marks] = (None, None)


def mark_of(item: Item, attempts: int) -> Mark:
    return Mark(item.offset, attempts, item.due, item.first_failure or 0)


def due_and_place(item: Item) -> tuple[int, int]:
    return item.due, item.offset


def expected_turn(item: Item) -> tuple[int, int]:
    """By which items that wait are to be sorted, so that they finish in about this order."""
    front = item.lane.front() if item.lane is not None else None
    return max(item.due, front.due if front is not None else 0), item.origin_offset


class Side:
    """The source, or the retry partition: what is finished of it, and what is known and not finished."""

    __slots__ = ("kept_mark", "known", "progress", "suspects_left", "under_way")

    def __init__(self) -> None:
        self.progress = Progress(Finished(0))
        self.known = 0  # unfinished
        self.under_way = 0  # of these, in hand or to be moved: they will finish, in any order
        self.kept_mark: Mark | None = None  # as it was committed, until its record is finished
        self.suspects_left = 0

    def restore(self, finished: Finished, suspects: int) -> None:
        self.progress = Progress(finished)
        self.kept_mark = finished.mark
        self.suspects_left = 0 if finished.clean else suspects

    def room(self) -> int:
        """How many more may be begun until the metadata could get too long."""
        progress = self.progress
        return (STOP_BYTES - progress.size) // (2 * varint_bytes(2 * progress.span)) - self.under_way

    def finish(self, item: Item) -> None:
        self.progress.finish_record(item.offset)
        self.known -= 1
        self.under_way -= 1

    def mark(self) -> Mark | None:
        """The mark that was committed before, as long as its record is not finished."""
        if self.kept_mark is not None and self.kept_mark.offset in self.progress:
            self.kept_mark = None
        return self.kept_mark

    def snapshot(self, clean: bool, mark: Mark | None) -> Finished:
        progress = self.progress
        return Finished(progress.prefix, progress.runs(), clean, mark)


class PartitionWork:
    """What is to be done for one source partition of one subscriber. Used by one thread.

    In this order: ``restore`` what is committed; ``add_retry`` all there is, ``begin``; then in any order
    ``add_source`` and ``add_retry`` in the order of offsets, ``take``, ``succeed`` or ``fail``, and the commits: a
    plain one of ``finished``, or a transaction of ``moves`` with ``after_moves``, and ``moved`` when it is committed.
    When ``wanted_mark``, the next ``take`` gives nothing until ``finished`` is committed and ``marked`` called.
    A transaction that fails is no news: ``moves`` gives the same again. Every call costs O(log n) for each record.

    Args:
        order_by: ``"partition"``, ``"key"`` or ``"none"``.
        concurrency: calls at once, at least 1.
        retry: how often and when a failing record is tried again.
        dead_letter: whether what is given up becomes a dead letter, or goes nowhere.
        random: spreads the waits.
        max_waiting: when so many wait in the retry topic, no more of the source is wanted.
        batch: how many records one call is given. With more than one, everything of one ``take`` belongs to one call.
        several_of_lane: whether there may be several of a lane in a call, in order. Whoever calls then gives back those
            behind one that failed, before anything else is taken.
        block_on_dead_letter: whether records behind a dead letter of their key are dead letters too.

    Raises:
        ConfigError: ``order_by`` is none of the three.
    """

    def __init__(
        self,
        *,
        order_by: str,
        concurrency: int,
        retry: Retry,
        dead_letter: bool,
        random: Random,
        max_waiting: int = 100_000,
        batch: int = 1,
        several_of_lane: bool = False,
        block_on_dead_letter: bool = False,
    ) -> None:
        if order_by not in ORDERS:
            raise ConfigError(f"order_by={order_by!r}: expected one of {', '.join(map(repr, ORDERS))}")
        self._in_place = order_by == "partition"
        self._calls = 1 if self._in_place else concurrency
        self._most_in_hand = self._calls * batch
        self._joins = several_of_lane and batch > 1
        self._retry, self._dead_letter, self._random = retry, dead_letter, random
        self._max_waiting = max_waiting
        self._window = max(WINDOW, 4 * self._most_in_hand)
        self._blocks = block_on_dead_letter
        self._blocked: set[bytes] = set()
        self._lanes = Lanes(order_by)
        self._source, self._retry_side = Side(), Side()
        self._retry_order: deque[Item] = deque()  # by offset, to be carried from the low end
        self._in_hand = 0
        self._failed: deque[Move] = deque()
        self._moving: list[Move] = []
        self._has_begun = self._is_released = False
        # what runs alone, and what is durable of it
        self._claim: Item | None = None
        self._claim_begins = False
        self._durable = self._offered = UNMARKED
        self._offered_by_moves: Marks | None = None
        self._is_announced = False
        self._is_plain = False  # nothing has to be looked at before the next is taken
        self._may_repeat = False  # by ``order_by="partition"``: something was begun by an earlier owner
        self._now = 0
        # after an unclean end
        self._is_careful = self._is_looking = False
        self._retry_fronts: list[Item] = []  # as they were at the beginning
        self._lines_seen: set[bytes] = set()
        self._suspects: list[Item] = []
        self._killers: set[Item] = set()
        self._begun_since = 0
        self._allowance = 0

    # --- what there is -----------------------------------------------------------------------------------------------

    def restore(self, source: Finished, retry: Finished) -> None:
        """What is committed of the two partitions, before any record is added."""
        self._source.restore(source, self._most_in_hand)
        self._retry_side.restore(retry, self._most_in_hand)
        self._durable = self._offered = (source.mark, retry.mark)
        self._is_careful = not (source.clean and retry.clean)
        self._is_looking = self._is_careful
        self._is_announced = not (source.clean or retry.clean)

    def block(self, keys: Iterable[bytes]) -> None:
        """Keys that have open dead letters, with ``block_on_dead_letter``. Before any record is added."""
        if self._blocks:
            self._blocked.update(keys)

    def add_source(self, items: Iterable[Item]) -> None:
        """Records of the source, in the order of their offsets. What is finished is passed over."""
        side, lanes = self._source, self._lanes
        reach, arrive = side.progress.reach, lanes.arrive
        is_plain = not self._is_careful and side.kept_mark is None
        for item in items:
            if not reach(item.offset):
                continue
            side.known += 1
            if is_plain:
                arrive(item)
            else:
                self._add_carefully(item)

    def add_retry(self, items: Iterable[Item]) -> None:
        """Records of the retry partition, in the order of their offsets. What is finished is passed over."""
        side = self._retry_side
        for item in items:
            if not side.progress.reach(item.offset):
                continue
            self._apply_mark(side, item)
            self._note_repeated(item)
            self._retry_order.append(item)
            if not self._lanes.admit_retry(item):
                side.known += 1
                if item.attempts == 0 and not item.is_follower and item.key is not None:
                    self._blocked.discard(item.key)  # redriven
        if len(self._retry_order) > 2 * side.known + 1000:
            # who waits for long at the low end keeps nobody in memory who is through
            self._retry_order = deque(item for item in self._retry_order if item.stage not in GONE)

    def reached(self, source: int | None = None, retry: int | None = None) -> None:
        """The reader is here: whatever lies before it and was not added is no record (a marker, a compacted one)."""
        for side, offset in ((self._source, source), (self._retry_side, retry)):
            if offset is not None:
                side.progress.pass_over(offset)

    def begin(self) -> None:
        """The retry partition was read to its end: records may be taken."""
        self._has_begun = True
        if self._retry_side.suspects_left:
            self._retry_fronts = self._lanes.fronts_of_retry()

    def _add_carefully(self, item: Item) -> None:
        self._apply_mark(self._source, item)
        self._note_repeated(item)
        if self._source.suspects_left and self._is_first_of_lane(item):
            self._source.suspects_left -= 1
            if not item.is_suspect:
                self._suspect(item)
        self._lanes.admit(item)

    def _is_first_of_lane(self, item: Item) -> bool:
        """Whether no other record of the source was added before it to its lane, by this owner."""
        line = self._lanes.line(item)
        if line is None:
            return True
        is_first = line not in self._lines_seen
        self._lines_seen.add(line)
        return is_first

    def _apply_mark(self, side: Side, item: Item) -> None:
        mark = side.kept_mark
        if mark is None or mark.offset != item.offset:
            return
        item.attempts, item.due = mark.attempts, max(mark.due, item.due)
        item.first_failure = mark.first_failure or item.first_failure
        if self._is_careful:
            self._suspect(item)
            self._killers.add(item)

    def _note_repeated(self, item: Item) -> None:
        if self._in_place and item.attempts:
            self._may_repeat, self._is_plain = True, False

    def _suspect(self, item: Item) -> None:
        item.is_suspect = True
        self._suspects.append(item)

    # --- what may be taken -------------------------------------------------------------------------------------------

    def take(self, now: int, free: int) -> list[Item]:
        """What is to be handled now, at most ``free``; it is in hand from here on.

        With ``batch`` more than 1 all of it belongs to one call.
        """
        free = min(free, self._most_in_hand - self._in_hand)
        if free <= 0 or not self._has_begun or self._is_released or self._comes_to_a_commit(now):
            return []
        if self._claim is not None:
            return self._take_claim(self._claim)
        if self._suspects:
            return []
        if self._is_careful:
            free = min(free, self._allowance)
        if self._joins and not self._is_careful:
            self._lanes.begin_call()
        taken = self._take_from(self._retry_side, now, free, [])
        if self._claim is None:
            taken = self._take_from(self._source, now, free, taken)
        self._lanes.end_call()
        if self._is_careful:
            self._allowance -= len(taken)
            self._count_careful(len(taken))
        return taken

    def wanted_mark(self, now: int) -> bool:
        """Whether ``finished`` has to be committed, and ``marked`` called, before the next is given by ``take``."""
        return self._comes_to_a_commit(now)

    def marked(self) -> None:
        """What ``finished`` said last is durable."""
        self._durable = self._offered
        self._is_announced = True
        if self._is_careful and self._allowance <= 0:
            self._allowance = max(self._most_in_hand, self._begun_since - CAREFUL_RECORDS)

    def _take_claim(self, claim: Item) -> list[Item]:
        if claim.stage is not Stage.CLAIMED or not self._claim_begins or self._in_hand:
            return []
        claim.stage = Stage.IN_HAND
        self._in_hand += 1
        self._side(claim).kept_mark = mark_of(claim, claim.attempts + 1)
        self._count_careful(1)
        return [claim]

    def _take_from(self, side: Side, now: int, most: int, taken: list[Item]) -> list[Item]:
        """Take what is ready, as long as its gaps fit into the commit."""
        is_retry = side is self._retry_side
        following = self._lanes.next_retry if is_retry else self._lanes.next_source
        room = side.room()
        while len(taken) < most and not (taken and taken[0].is_alone):
            if room <= 0 and not self._is_next_at_prefix(side):
                break
            item = following()
            if item is None:
                break
            side.under_way += 1
            room -= 1
            if self._gives_up_unhandled(item, now):
                continue
            if self._in_place and (item.attempts or item.is_suspect):
                self._claim_item(item)
                break
            if item.is_alone and taken:
                side.under_way -= 1
                self._lanes.give_back(item)
                break
            taken.append(item)
            self._in_hand += 1
        return taken

    def _is_next_at_prefix(self, side: Side) -> bool:
        """Whether the next one is the first unfinished: to finish it makes no gap."""
        item = self._lanes.first_source() if side is self._source else None
        return item is not None and item.offset == side.progress.prefix

    def _gives_up_unhandled(self, item: Item, now: int) -> bool:
        """Whether an item whose turn has come is not handled at all; then it is set aside."""
        if item.record is None:
            failure = item.failure or Failure("InvalidRecordError", "the record cannot be decoded", "", now)
            self._give_up(item, item.attempts, failure)
        elif item in self._killers and item.attempts >= self._retry.attempts:
            message = f"the process ended in the last of {item.attempts} calls"
            self._give_up(item, item.attempts, Failure("WorkerDied", message, "", now))
        elif self._blocked and item.key is not None and item.key in self._blocked:
            message = "a record of the same key before it is a dead letter: redrive them together"
            # those behind it wait until that is durable: a redrive may let them in meanwhile
            self._give_up(item, item.attempts, Failure("PredecessorDeadLettered", message, "", now))
        else:
            return False
        return True

    # --- marks and suspects ------------------------------------------------------------------------------------------

    def _comes_to_a_commit(self, now: int) -> bool:
        """Let in who is due, and find out what comes next; whether a commit has to come before that."""
        if not self._has_begun or self._is_released:
            return False
        self._now = now
        self._lanes.wake(now)
        if self._is_plain:
            return False
        if self._is_looking:
            self._look_for_suspects(now)
        if self._suspects and self._claim is None:
            self._choose_suspect(now)
        if self._in_place and self._claim is None:
            self._claim_repeated()
        claim = self._claim
        if claim is not None:
            if claim.stage is Stage.IN_HAND or self._in_hand or claim.due > now:
                return False
            self._claim_begins = True
            return self._durable != self._marks(True)
        if self._suspects or not self._lanes.has_ready():
            return False
        marks = self._marks(True)
        self._is_plain = (
            self._is_announced and not self._is_careful and not self._may_repeat and self._durable == UNMARKED == marks
        )
        if not self._is_announced or self._durable != marks:
            return True
        return self._is_careful and self._allowance <= 0 and self._is_step_over()

    def _is_step_over(self) -> bool:
        return self._begun_since > CAREFUL_RECORDS or not (self._in_hand or self._failed or self._moving)

    def _look_for_suspects(self, now: int) -> None:
        """The fronts of the retry topic that are due first: one of them may have been in hand."""
        self._is_looking = False
        due = (item for item in self._retry_fronts if item.due <= now and item.stage in WAITING)
        for item in nsmallest(self._retry_side.suspects_left, due, key=due_and_place):
            if not item.is_suspect:
                self._suspect(item)
        self._retry_fronts.clear()

    def _choose_suspect(self, now: int) -> None:
        """The next that runs alone: a suspect, or whoever stands before one."""
        if self._in_hand or self._failed or self._moving:
            return
        self._suspects = [item for item in self._suspects if item.is_suspect and item.stage in WAITING]
        if not self._suspects:
            return
        killers = [item for item in self._suspects if item in self._killers]
        for item in (*killers, *self._suspects):
            if self._lanes.take_this(item):
                self._claim_suspect(item, now)
                return
        other = self._lanes.next_retry() or self._lanes.next_source()
        if other is not None:
            self._claim_suspect(other, now)

    def _drop_claim(self) -> None:
        """One before it failed: it was behind it in a call, and waits."""
        claim, self._claim = self._claim, None
        if claim is not None:
            self._side(claim).under_way -= 1
            self._lanes.give_back(claim)
            self._may_repeat = True

    def _claim_repeated(self) -> None:
        """Who comes next was begun before, by an earlier owner: it needs a mark."""
        item = self._lanes.first_retry() or self._lanes.first_source()
        if item is not None and item.attempts and self._lanes.take_this(item):
            self._side(item).under_way += 1
            self._claim_item(item)

    def _claim_suspect(self, item: Item, now: int) -> None:
        self._side(item).under_way += 1
        if not self._gives_up_unhandled(item, now):
            self._claim_item(item)

    def _claim_item(self, item: Item) -> None:
        item.stage = Stage.CLAIMED
        self._claim, self._claim_begins = item, False
        self._is_plain = False

    def _count_careful(self, count: int) -> None:
        self._begun_since += count
        if self._is_careful and self._begun_since >= STEPPED_RECORDS:
            self._is_careful = False

    def _close_step(self) -> None:
        """A call of a careful step came back: who becomes ready by that belongs to the next step."""
        if self._begun_since <= CAREFUL_RECORDS:
            self._allowance = 0

    def _marks(self, begins: bool) -> Marks:
        """The marks that a commit has to have now."""
        source, retry = self._source.mark(), self._retry_side.mark()
        claim = self._claim
        if claim is None:
            return source, retry
        is_begun = claim.stage is Stage.IN_HAND or (begins and self._claim_begins)
        mark = None
        if claim.attempts or is_begun:
            mark = mark_of(claim, claim.attempts + is_begun)
        return (source, mark) if claim.is_retry else (mark, retry)

    # --- how calls end -----------------------------------------------------------------------------------------------

    def succeed(self, item: Item) -> None:
        """The call came back: the record is finished. Nothing happens when it is not in hand any more."""
        if item.stage is not Stage.IN_HAND or self._is_released:
            return
        self._put_down(item)
        (self._retry_side if item.is_retry else self._source).finish(item)
        self._lanes.leave(item)

    def fail(self, item: Item, failure: Failure, error: BaseException | None, now: int) -> None:
        """The call failed with ``error``: the record is tried again, in place or in the retry topic, or given up.

        ``error`` is None when there is none to look at: then only the number of attempts decides. Nothing happens when
        the record is not in hand any more.
        """
        if item.stage is not Stage.IN_HAND or self._is_released:
            return
        self._put_down(item)
        attempts = item.attempts + 1
        if item.first_failure is None:
            item.first_failure = failure.at
        if isinstance(error, BatchError):
            error = error.cause
        if attempts >= self._retry.attempts or (error is not None and self._retry.gives_up(error)):
            self._give_up(item, attempts, failure)
            return
        wait = error.delay_ms if isinstance(error, RetryLater) else self._retry.delay(attempts, self._random)
        item.failure = failure
        if self._in_place:
            item.attempts, item.due = attempts, now + wait
            self._drop_claim()
            self._claim_item(item)
        else:
            self._set_aside(Move(item, "retry", attempts, now + wait, "head", failure))

    def give_back(self, item: Item, *, alone: bool = False) -> None:
        """An item in hand was not handled: it comes again, uncounted, before those behind it.

        ``alone``: in a call of its own, as nobody knows which one of a batch has failed.
        """
        if item.stage is not Stage.IN_HAND or self._is_released:
            return
        side = self._side(item)
        if item is self._claim:
            side.kept_mark = mark_of(item, item.attempts) if item.attempts else None
        self._put_down(item)
        item.is_alone = alone
        side.under_way -= 1
        self._lanes.give_back(item)

    def release(self) -> None:
        """The partition is given up: whatever comes for its items later counts no more."""
        self._is_released = True

    def _put_down(self, item: Item) -> None:
        self._in_hand -= 1
        if item is self._claim:
            self._claim = None
        item.is_suspect = False
        if self._is_careful:
            self._close_step()

    def _give_up(self, item: Item, attempts: int, failure: Failure) -> None:
        to: Literal["dead_letter", "nowhere"] = "dead_letter" if self._dead_letter else "nowhere"
        item.failure = failure
        if self._blocks and self._dead_letter and item.key is not None:
            self._blocked.add(item.key)
        self._set_aside(Move(item, to, attempts, 0, "head", failure))

    def _set_aside(self, move: Move) -> None:
        self._lanes.set_aside(move.item, move.to == "retry")
        self._failed.append(move)

    def _side(self, item: Item) -> Side:
        return self._retry_side if item.is_retry else self._source

    # --- moves -------------------------------------------------------------------------------------------------------

    def moves(self, most: int = 500) -> list[Move]:
        """What has to be moved now, in the order in which it has to be appended. The same again until it is ``moved``.

        Records that failed come before the followers of their keys. What waits at the low end of the retry topic is
        moved to its high end, as it is, when the gaps behind it become too many.
        """
        if self._is_released:
            return []
        moving = self._moving
        is_fresh = not moving
        while len(moving) < most and self._failed:
            moving.append(self._failed.popleft())
        if not self._failed:
            self._add_followers(most)
            if is_fresh:
                self._add_carried(most)
        return moving[:most]

    def after_moves(self, moves: list[Move]) -> tuple[Finished, Finished]:
        """(source, retry) as they are when these moves are committed, for their transaction."""
        sides = []
        marks = self._offered_by_moves = self._marks_after(moves)
        for side, mark in zip((self._source, self._retry_side), marks, strict=True):
            progress = side.progress.copy()
            for move in moves:
                if self._side(move.item) is side:
                    progress.finish_record(move.item.offset)
            sides.append(Finished(progress.prefix, progress.runs(), False, mark))
        return sides[0], sides[1]

    def moved(self, moves: list[Move], now: int) -> None:
        """The transaction of these moves is committed: their places are finished, those behind them go on.

        Moves to nowhere alone need no transaction: without ``after_moves`` the next commit tells of them.
        Who went to the retry topic counts as waiting there; its lane goes on when ``add_retry`` has shown it.
        """
        if self._is_released:
            return
        if self._offered_by_moves is not None:
            self._durable, self._offered_by_moves = self._offered_by_moves, None
            self._is_announced = True
        for move in moves:
            item = move.item
            self._side(item).finish(item)
            self._lanes.moved(item, move.to == "retry")
            if move.to == "retry":
                self._retry_side.known += 1
        self._moving = self._moving[len(moves) :] if self._moving[: len(moves)] == moves else self._left(moves)

    def _left(self, moves: list[Move]) -> list[Move]:
        gone = {id(move) for move in moves}
        return [move for move in self._moving if id(move) not in gone]

    def _marks_after(self, moves: list[Move]) -> Marks:
        places = {(move.item.is_retry, move.item.offset) for move in moves}
        source, retry = self._marks(True)
        return (
            None if source is not None and (False, source.offset) in places else source,
            None if retry is not None and (True, retry.offset) in places else retry,
        )

    def _add_followers(self, most: int) -> None:
        """Followers of parked keys, lowest offsets first, as long as their gaps fit into the commit."""
        side, lanes = self._source, self._lanes
        room = side.room()
        while len(self._moving) < most:
            item = lanes.first_follower()
            if item is None or (room <= 0 and item.offset != side.progress.prefix):
                return
            lanes.move_first_follower()
            item.is_suspect = False
            side.under_way += 1
            room -= 1
            self._moving.append(Move(item, "retry", item.attempts, item.due, "follower", item.failure))

    def _add_carried(self, most: int) -> None:
        """What waits at the low end of the retry topic, when there are many gaps behind it.

        It is appended in the order of its due times: what is carried once finishes in order, and makes no gaps again.
        """
        side, order = self._retry_side, self._retry_order
        while order and order[0].stage in GONE:
            order.popleft()
        is_sparse = side.progress.span > SPARSE_OFFSETS + 100 * side.known
        if self._suspects or not (is_sparse or side.progress.size > CARRY_BYTES):
            return
        waiting = (item for item in islice(order, 4 * CARRIED) if item.stage in WAITING)
        chosen = list(islice(waiting, min(CARRIED, max(most - len(self._moving), 0))))
        side.under_way += len(chosen)
        for item in sorted(chosen, key=expected_turn):
            self._lanes.carry(item)
            state: Literal["head", "follower"] = "follower" if item.is_follower else "head"
            self._moving.append(Move(item, "retry", item.attempts, item.due, state, item.failure))

    # --- how it stands -----------------------------------------------------------------------------------------------

    def finished(self, *, clean: bool = False) -> tuple[Finished, Finished]:
        """(source, retry) as they are now, for a plain commit.

        ``clean`` is asked for when the partition is given up in good order. It is granted when nothing is in hand and
        nothing is left that may have ended the process before this one: a record that was marked may not be read yet.
        """
        marks = self._marks(not clean)
        is_clean = clean and not self._in_hand
        if self._is_careful and (self._source.known or self._suspects or self._is_looking or marks != UNMARKED):
            is_clean = False
        if not clean:
            self._offered = marks
        return self._source.snapshot(is_clean, marks[0]), self._retry_side.snapshot(is_clean, marks[1])

    def next_due(self, now: int) -> int | None:
        """Wall clock, in milliseconds, of the earliest that waits for nothing but its time; None when nothing does."""
        self._lanes.wake(now)
        earliest = self._lanes.next_due()
        claim = self._claim
        if claim is not None and claim.stage is Stage.CLAIMED and claim.due > now:
            earliest = claim.due if earliest is None else min(claim.due, earliest)
        return earliest

    @property
    def in_hand(self) -> int:
        """How many were taken, and did not come back."""
        return self._in_hand

    @property
    def waiting(self) -> int:
        """How many are known, in the source and in the retry topic, and neither finished nor in hand."""
        return self._source.known + self._retry_side.known - self._in_hand

    @property
    def is_idle(self) -> bool:
        """Nothing in hand, nothing to move, nothing that could be taken by the time of the last ``take``."""
        if self._in_hand or self._failed or self._moving or self._lanes.first_follower() is not None:
            return False
        if self._claim is not None:
            return self._claim.due > self._now
        return not self._lanes.has_ready()

    @property
    def wants_source(self) -> bool:
        """Whether more records of the source are welcome: not while too many wait, or gaps come near the limit."""
        source, retry = self._source, self._retry_side
        return (
            source.known - source.under_way < self._window
            and retry.known < self._max_waiting
            and (source.progress.size < PAUSE_BYTES or source.progress.is_behind)
            and retry.progress.size < PAUSE_BYTES
        )
