"""Which record may be handled now: lines of records that wait for each other, due times, and whom to move after whom.

Records that must not overtake each other stand in one *lane*, in the order of their origin offsets: by ``order_by``
all of the partition, those of one key, or each record alone. The front of a lane may lie in the retry topic, be on its
way there (then the lane waits until it is read there), or wait for its due time. What lies in the source behind a front
in the retry topic is a *follower*: it may be moved there too, so that the source can go on.

A key that nobody waits for costs no lane: it is a name in a dictionary while its record is in hand.
"""

from __future__ import annotations

from collections import deque
from heapq import heappop, heappush
from itertools import count

from fastlog.delivery.items import Item, Stage

__all__ = ["Lane", "Lanes"]

NEW, QUEUED, DELAYED, READY = Stage.NEW, Stage.QUEUED, Stage.DELAYED, Stage.READY
CLAIMED, IN_HAND, MOVING = Stage.CLAIMED, Stage.IN_HAND, Stage.MOVING
EXPECTED, DONE = Stage.EXPECTED, Stage.DONE
WHOLE_PARTITION = b""


class Lane:
    """Records that wait in line.

    Attributes:
        key: its name among the lanes.
        ahead: heap by origin offset: what lies in the retry topic or is on its way to another place.
        source: what lies in the source, in order.
        in_hand: how many are taken: the others wait for them.
        source_in_hand: how many of these lie in the source. Who is behind them stays there: the next owner, which reads
            the retry topic first, would take it for the first one.
        parked: how many of ``ahead`` lie in the retry topic, or will.
        is_listed: whether it is among those whose followers may be moved.
    """

    __slots__ = ("ahead", "in_hand", "is_listed", "key", "parked", "source", "source_in_hand")

    def __init__(self, key: bytes) -> None:
        self.key = key
        self.ahead: list[tuple[int, int, Item]] = []
        self.source: deque[Item] = deque()
        self.in_hand = 0
        self.source_in_hand = 0
        self.parked = 0
        self.is_listed = False

    def front(self) -> Item | None:
        """Who comes first. What lies ahead comes before what lies in the source at the same origin offset."""
        ahead, source = self.ahead, self.source
        while ahead and ahead[0][2].stage is DONE:
            heappop(ahead)
        if not ahead:
            return source[0] if source else None
        if source and source[0].origin_offset < ahead[0][0]:
            return source[0]
        return ahead[0][2]

    def pop(self, item: Item) -> None:
        """Take the front out."""
        if self.source and self.source[0] is item:
            self.source.popleft()
            self.source_in_hand += 1
        else:
            heappop(self.ahead)
            self.parked -= item.is_retry
        self.in_hand += 1

    def put_back(self, item: Item) -> None:
        """Put one of the source where it was: before all but those that were taken with it, and put back already."""
        source = self.source
        before = []
        while source and source[0].offset < item.offset:
            before.append(source.popleft())
        source.appendleft(item)
        source.extendleft(reversed(before))


class Lanes:
    """All lanes of a partition. Used by one thread; every call costs O(log n), what it hands over to others apart."""

    def __init__(self, order_by: str) -> None:
        self._order_by = order_by
        # an item alone stands for a lane in which nobody waits
        self._lanes: dict[bytes, Lane | Item] = {}
        self._arrived: deque[Item] = deque()
        self._ready_retry: list[tuple[int, int, int, Item]] = []
        self._ready_source: list[tuple[int, int, Item]] = []
        self._delayed: list[tuple[int, int, Item]] = []
        self._listed: list[tuple[int, int, Lane]] = []
        self._expected: dict[int, deque[Item]] = {}
        self._together: set[Lane] | None = None  # of whom the call that is put together may have several
        self._number = count()

    # --- who comes ---------------------------------------------------------------------------------------------------

    def arrive(self, item: Item) -> None:
        """A record of the source, behind all others; looked at when its turn may have come."""
        self._arrived.append(item)

    def admit(self, item: Item) -> None:
        """A record of the source, into its lane at once, behind all who arrived."""
        while self._arrived:
            self._admit(self._arrived.popleft())
        self._admit(item)

    def _admit(self, item: Item) -> None:
        lane = self._lane_of(item)
        if lane is None:
            self._offer(item)
            return
        item.stage = QUEUED
        lane.source.append(item)
        self._offer_front(lane)
        self._list_followers(lane)

    def admit_retry(self, item: Item) -> bool:
        """A record of the retry topic. Whether it is one that was moved there by this owner."""
        is_expected = self._forget_expected(item)
        lane = self._lane_of(item)
        if lane is None:
            self._offer(item)
        else:
            self._push_ahead(lane, item)
            lane.parked += 1
            self._list_followers(lane)
            self._offer_front(lane)
        return is_expected

    def _forget_expected(self, item: Item) -> bool:
        """Of an item that was moved the new place is known now."""
        waiting = self._expected.get(item.origin_offset)
        if waiting is None:
            return False
        before = waiting.popleft()
        if not waiting:
            del self._expected[item.origin_offset]
        before.stage = DONE
        if before.lane is not None:
            before.lane.parked -= 1
            item.lane = before.lane
        return True

    def line(self, item: Item) -> bytes | None:
        """The name of the lane of an item; None when it waits for nobody."""
        if self._order_by == "key":
            return item.key
        return WHOLE_PARTITION if self._order_by == "partition" else None

    def _lane_of(self, item: Item) -> Lane | None:
        """The lane of an item, made where there is none; None when it waits for nobody."""
        if item.lane is not None:
            return item.lane  # type: ignore[no-any-return]
        key = self.line(item)
        if key is None:
            return None
        found = self._lanes.get(key)
        if not isinstance(found, Lane):
            lane = self._lanes[key] = Lane(key)
            if found is not None:
                found.lane, lane.in_hand, lane.source_in_hand = lane, 1, 1
            found = lane
        item.lane = found
        return found

    def begin_call(self) -> None:
        """What is taken from here on goes into one call, one after the other: several of a lane may."""
        self._together = set()

    def end_call(self) -> None:
        """The call is put together."""
        self._together = None

    # --- who may be taken --------------------------------------------------------------------------------------------

    def wake(self, now: int) -> None:
        """Let in whose time has come."""
        delayed = self._delayed
        while delayed and delayed[0][0] <= now:
            item = heappop(delayed)[2]
            if item.stage is DELAYED:
                item.stage = QUEUED
                if self._is_front(item):
                    self._make_ready(item)

    def next_due(self) -> int | None:
        """When ``wake`` will let in somebody, None when nobody waits for it."""
        delayed = self._delayed
        while delayed and not (delayed[0][2].stage is DELAYED and self._is_front(delayed[0][2])):
            item = heappop(delayed)[2]
            if item.stage is DELAYED:
                item.stage = QUEUED
        return delayed[0][0] if delayed else None

    def has_ready(self) -> bool:
        """Whether somebody may be taken; of those who arrived it is not known yet."""
        return bool(self._arrived) or self.first_retry() is not None or self.first_source() is not None

    def next_retry(self) -> Item | None:
        """Take who waits longest of the retry topic: by due time, then by offset."""
        item = self.first_retry()
        if item is not None:
            heappop(self._ready_retry)
            self._take(item)
        return item

    def next_source(self) -> Item | None:
        """Take the lowest offset of the source."""
        item = self.first_source()
        if item is not None:
            heappop(self._ready_source)
            self._take(item)
            return item
        lanes, arrived = self._lanes, self._arrived
        while arrived:
            item = arrived.popleft()
            key = self.line(item)
            if key is not None:
                if key in lanes or self._together is not None:
                    self._admit(item)
                    if item.stage is READY:
                        return self.next_source()
                    continue
                lanes[key] = item
            item.stage = IN_HAND
            return item
        return None

    def take_this(self, item: Item) -> bool:
        """Take this one, if it may be taken."""
        if item.stage is not READY or not self._is_front(item):
            return False
        self._take(item)
        return True

    def fronts_of_retry(self) -> list[Item]:
        """Those of the retry topic before whom nobody stands."""
        waiting = [*(entry[-1] for entry in self._ready_retry), *(entry[-1] for entry in self._delayed)]
        return [item for item in waiting if item.is_retry and item.stage in (READY, DELAYED) and self._is_front(item)]

    def first_retry(self) -> Item | None:
        """Who waits longest of the retry topic, and may be taken."""
        ready = self._ready_retry
        while ready:
            item = ready[0][3]
            if self._may_be_taken(item):
                return item
            heappop(ready)
        return None

    def first_source(self) -> Item | None:
        """The lowest offset of the source that may be taken, of those who were looked at."""
        ready = self._ready_source
        while ready:
            item = ready[0][2]
            if self._may_be_taken(item):
                return item
            heappop(ready)
        return None

    def _may_be_taken(self, item: Item) -> bool:
        if item.stage is not READY:
            return False
        if self._is_front(item):
            return True
        item.stage = QUEUED  # somebody came before it: it is offered again
        return False

    def _is_front(self, item: Item) -> bool:
        lane: Lane | None = item.lane
        return lane is None or (not self._is_busy(lane) and lane.front() is item)

    def _is_busy(self, lane: Lane) -> bool:
        """Whether those in a lane wait for one that is taken."""
        return lane.in_hand > 0 and (self._together is None or lane not in self._together)

    def _take(self, item: Item) -> None:
        item.stage = IN_HAND
        lane: Lane | None = item.lane
        if lane is not None:
            lane.pop(item)
            if self._together is not None:
                self._together.add(lane)
                self._offer_front(lane)

    # --- what becomes of them ----------------------------------------------------------------------------------------

    def leave(self, item: Item) -> None:
        """An item in hand is finished: whoever is behind it is next."""
        item.stage = DONE
        lane = item.lane
        if lane is not None:
            self._let_go(lane, item)
        else:
            key = self.line(item)
            if key is not None:
                del self._lanes[key]

    def give_back(self, item: Item) -> None:
        """An item in hand was not handled: it comes again, before those behind it."""
        item.stage = QUEUED
        lane = self._lane_of(item)
        if lane is None:
            self._offer(item)
            return
        if item.is_retry:
            self._push_ahead(lane, item)
            lane.parked += 1
        else:
            lane.put_back(item)
        self._list_followers(lane)
        self._let_go(lane, item)

    def set_aside(self, item: Item, to_retry: bool) -> None:
        """An item in hand has to be moved. Those behind it wait until it is."""
        item.stage = MOVING
        lane = self._lane_of(item)
        if lane is None:
            return
        self._push_ahead(lane, item)
        if to_retry:
            lane.parked += 1
            self._list_followers(lane)
        self._let_go(lane, item)

    def moved(self, item: Item, to_retry: bool) -> None:
        """An item was moved: it is expected from the retry topic, or gone."""
        if to_retry:
            item.stage = EXPECTED
            self._expected.setdefault(item.origin_offset, deque()).append(item)
            return
        item.stage = DONE
        if item.lane is not None:
            self._offer_front(item.lane)

    def carry(self, item: Item) -> None:
        """An item that waits in the retry topic is moved to its end."""
        item.stage = MOVING

    def _let_go(self, lane: Lane, item: Item) -> None:
        lane.in_hand -= 1
        lane.source_in_hand -= not item.is_retry
        if not lane.in_hand:
            self._offer_front(lane)

    def _push_ahead(self, lane: Lane, item: Item) -> None:
        if item.stage is NEW:
            item.stage = QUEUED
        heappush(lane.ahead, (item.origin_offset, next(self._number), item))

    def _offer_front(self, lane: Lane) -> None:
        """Whoever is in front may be taken, at once or at its time; an empty lane is given up."""
        if self._is_busy(lane):
            return
        front = lane.front()
        if front is None:
            if not lane.in_hand:
                del self._lanes[lane.key]
        else:
            if front.stage is QUEUED:
                self._offer(front)
            self._list_followers(lane)

    def _offer(self, item: Item) -> None:
        if item.due:
            item.stage = DELAYED
            heappush(self._delayed, (item.due, next(self._number), item))
        else:
            self._make_ready(item)

    def _make_ready(self, item: Item) -> None:
        item.stage = READY
        if item.is_retry:
            heappush(self._ready_retry, (item.due, item.offset, next(self._number), item))
        else:
            heappush(self._ready_source, (item.offset, next(self._number), item))

    # --- followers ---------------------------------------------------------------------------------------------------

    def _list_followers(self, lane: Lane) -> None:
        if lane.parked and lane.source and not lane.is_listed and self._order_by == "key":
            lane.is_listed = True
            heappush(self._listed, (lane.source[0].offset, next(self._number), lane))

    def first_follower(self) -> Item | None:
        """The follower at the lowest offset of the source, None when nobody is to be moved."""
        listed = self._listed
        while listed:
            offset, _, lane = listed[0]
            source = lane.source
            if lane.parked and source and not lane.source_in_hand and lane.front() is not source[0]:
                if source[0].offset == offset:
                    return source[0]
                heappop(listed)
                heappush(listed, (source[0].offset, next(self._number), lane))
            else:
                heappop(listed)
                lane.is_listed = False
        return None

    def move_first_follower(self) -> Item:
        """Take out whom ``first_follower`` names: it keeps its place in the lane, as one that is moved."""
        lane = self._listed[0][2]
        item = lane.source.popleft()
        item.stage = MOVING
        self._push_ahead(lane, item)
        lane.parked += 1
        return item
