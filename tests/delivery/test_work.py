"""What is decided about a partition: who may be handled, what becomes of failures, what a commit says."""

from __future__ import annotations

import random
from collections.abc import Iterable

import pytest

from fastlog import ConfigError, Record
from fastlog.delivery import work as work_module
from fastlog.delivery.finished import Finished, Mark
from fastlog.delivery.items import Failure, Item, Move
from fastlog.delivery.policy import Retry, RetryLater
from fastlog.delivery.work import PartitionWork

NOW = 1_000_000


def source(offset: int, key: bytes | None = b"k", *, readable: bool = True) -> Item:
    record = Record("orders", 0, offset, NOW, key, b"v")
    return Item.of_source(record if readable else None, record, None if readable else Failure("E", "torn", "", NOW))


def retried(
    offset: int, origin: int, key: bytes | None = b"k", attempts: int = 1, due: int = 0, is_follower: bool = False
) -> Item:
    record = Record("orders", 0, origin, NOW, key, b"v")
    return Item(record, record, True, offset, "orders", 0, origin, key, attempts, due, is_follower=is_follower)


def failure(at: int = NOW) -> Failure:
    return Failure("ValueError", "no", "", at)


def work(
    order_by: str = "key",
    concurrency: int = 4,
    attempts: int = 3,
    committed: tuple[Finished, Finished] | None = None,
    in_retry: Iterable[Item] = (),
    **options: object,
) -> PartitionWork:
    """One that has begun, its first commit made."""
    made = PartitionWork(
        order_by=order_by,
        concurrency=concurrency,
        retry=Retry(attempts, backoff="1s", jitter=False),
        dead_letter=bool(options.pop("dead_letter", True)),
        random=random.Random(0),
        **options,  # type: ignore[arg-type]
    )
    clean = committed is None
    made.restore(*(committed or (Finished(0), Finished(0))))
    made.add_retry(in_retry)
    made.begin()
    if clean:
        made.finished()
        made.marked()
    return made


def offsets(items: Iterable[Item]) -> list[int]:
    return [item.offset for item in items]


def commit(made: PartitionWork) -> tuple[Finished, Finished]:
    said = made.finished()
    made.marked()
    return said


def move_all(made: PartitionWork, next_offset: int = 100) -> list[Move]:
    """Carry out what has to be moved; what goes to the retry topic is there from ``next_offset`` on."""
    moves = made.moves()
    made.after_moves(moves)
    made.moved(moves, NOW)
    shown = [move for move in moves if move.to == "retry"]
    made.add_retry(
        retried(
            next_offset + at,
            move.item.origin_offset,
            move.item.key,
            move.attempts,
            move.due,
            is_follower=move.state == "follower",
        )
        for at, move in enumerate(shown)
    )
    return moves


def test_an_order_that_there_is_not() -> None:
    with pytest.raises(ConfigError, match="order_by='keys': expected one of 'partition', 'key', 'none'"):
        work("keys")


def test_nothing_before_the_first_commit() -> None:
    """A death from here on leaves a commit that is not clean."""
    made = PartitionWork(order_by="key", concurrency=1, retry=Retry(1), dead_letter=True, random=random.Random(0))
    made.restore(Finished(0), Finished(0))
    made.add_source([source(0)])
    assert not made.wanted_mark(NOW) and made.take(NOW, 1) == []  # the retry topic is not read yet
    made.begin()
    assert made.wanted_mark(NOW) and made.take(NOW, 1) == []
    assert commit(made) == (Finished(0, clean=False), Finished(0, clean=False))
    assert offsets(made.take(NOW, 1)) == [0]


@pytest.mark.parametrize(
    ("order_by", "first", "then"),
    [("none", [0, 1, 2, 3], [4]), ("key", [0, 2, 4, 5], [1]), ("partition", [0], [1])],
)
def test_who_may_go_beside_whom(order_by: str, first: list[int], then: list[int]) -> None:
    made = work(order_by)
    made.add_source(source(offset, key) for offset, key in enumerate([b"a", b"a", b"b", b"b", None, None, b"c"]))
    taken = made.take(NOW, 10)
    assert offsets(taken) == first and made.take(NOW, 10) == []
    made.succeed(taken[0])
    assert offsets(made.take(NOW, 10)) == then
    assert made.in_hand == len(first) and made.waiting == 6 - len(first)


def test_a_failing_key_parks_and_its_followers_with_it() -> None:
    made = work()
    made.add_source(source(offset, key) for offset, key in enumerate([b"a", b"b", b"a", b"b", b"a"]))
    a, b = made.take(NOW, 10)
    made.fail(a, failure(), ValueError(), NOW)
    moves = made.moves()
    assert [(move.item.offset, move.to, move.attempts, move.due, move.state) for move in moves] == [
        (0, "retry", 1, NOW + 1000, "head"),
        (2, "retry", 0, 0, "follower"),
        (4, "retry", 0, 0, "follower"),
    ]
    assert made.moves() == moves  # until they are moved
    assert made.after_moves(moves)[0] == Finished(1, ((2, 3), (4, 5)), clean=False)
    move_all(made)
    made.succeed(b)
    (b,) = made.take(NOW, 10)
    made.succeed(b)
    assert made.take(NOW + 999, 10) == [] and made.next_due(NOW + 999) == NOW + 1000 and made.is_idle
    for offset in (100, 101, 102):  # by origin, the next as soon as the one before it is finished
        (item,) = made.take(NOW + 1000, 10)
        assert item.offset == offset and item.is_retry
        made.succeed(item)
    assert made.finished() == (Finished(5, clean=False), Finished(103, clean=False)) and made.waiting == 0


def test_who_was_moved_waits_until_it_is_shown() -> None:
    made = work()
    made.add_source([source(0), source(1)])
    (item,) = made.take(NOW, 10)
    made.fail(item, failure(), RetryLater(0), NOW)
    moves = made.moves()
    made.moved(moves, NOW)
    made.add_source([source(2)])
    assert made.take(NOW, 10) == [] and made.waiting == 3
    made.add_retry([retried(7, 0, due=NOW), retried(8, 1, attempts=0, is_follower=True)])
    assert offsets(made.take(NOW, 10)) == [7]


def test_attempts_used_up_and_given_up() -> None:
    made = work(attempts=2)
    made.add_source(source(offset, None) for offset in range(3))
    first, second, third = made.take(NOW, 10)
    made.fail(first, failure(), OSError(), NOW)
    made.fail(second, failure(), None, NOW)
    made.succeed(third)
    assert [(move.to, move.attempts) for move in move_all(made)] == [("retry", 1), ("retry", 1)]
    again = made.take(NOW + 1000, 10)
    assert offsets(again) == [100, 101]
    for item in again:
        made.fail(item, failure(NOW + 5), RetryLater("1h"), NOW)
    assert [(move.to, move.attempts, move.item.offset) for move in move_all(made)] == [
        ("dead_letter", 2, 100),
        ("dead_letter", 2, 101),
    ]
    assert made.is_idle and made.waiting == 0


def test_give_up_on() -> None:
    made = PartitionWork(
        order_by="key",
        concurrency=1,
        retry=Retry(9, give_up_on=KeyError),
        dead_letter=False,
        random=random.Random(0),
    )
    made.restore(Finished(0), Finished(0))
    made.begin()
    commit(made)
    made.add_source([source(0), source(1)])
    (item,) = made.take(NOW, 10)
    made.fail(item, failure(), KeyError(), NOW)
    assert made.take(NOW, 10) == []  # its key waits until that is durable
    assert [(move.to, move.attempts, move.failure) for move in move_all(made)] == [("nowhere", 1, failure())]
    assert offsets(made.take(NOW, 10)) == [1]


def test_partition_order_tries_in_place_under_a_mark() -> None:
    made = work("partition", attempts=3)
    made.add_source([source(0), source(1, b"other")])
    (item,) = made.take(NOW, 10)
    made.fail(item, failure(), OSError(), NOW)
    assert made.moves() == [] and made.take(NOW + 999, 10) == [] and made.is_idle
    assert not made.wanted_mark(NOW + 999) and made.next_due(NOW) == NOW + 1000
    assert made.finished()[0].mark == Mark(0, 1, NOW + 1000, NOW)
    assert made.wanted_mark(NOW + 1000) and made.take(NOW + 1000, 10) == []
    assert commit(made)[0].mark == Mark(0, 2, NOW + 1000, NOW)
    assert made.take(NOW + 1000, 10) == [item] and made.in_hand == 1
    made.succeed(item)
    # its mark has to go before another one runs: a death would be counted against it
    assert made.wanted_mark(NOW + 1000) and made.take(NOW + 1000, 10) == []
    assert commit(made)[0] == Finished(1, clean=False)
    assert offsets(made.take(NOW + 1000, 10)) == [1]


def test_partition_order_over_a_clean_release() -> None:
    made = work("partition", attempts=3)
    made.add_source([source(0), source(1)])
    (item,) = made.take(NOW, 10)
    made.fail(item, failure(), OSError(), NOW)
    said = made.finished(clean=True)
    assert said[0].clean
    made = work("partition", attempts=3, committed=said)
    made.add_source([source(0), source(1)])
    assert made.take(NOW + 999, 10) == [] and made.next_due(NOW + 999) == NOW + 1000
    assert made.wanted_mark(NOW + 1000) and not made.is_idle
    assert commit(made)[0].mark == Mark(0, 2, NOW + 1000, NOW)
    (item,) = made.take(NOW + 1000, 10)
    assert item.attempts == 1 and item.first_failure == NOW


def test_suspects_run_alone_and_counted() -> None:
    dead = (Finished(0, clean=False), Finished(50, clean=False))
    waiting = [retried(50, 1, b"z"), retried(51, 2, b"y", due=NOW + 1), retried(52, 3, b"x")]
    made = work(concurrency=2, committed=dead, in_retry=waiting)
    made.add_source(source(offset, b"%d" % offset) for offset in range(10, 14))
    seen = []
    for _ in range(4):
        assert made.wanted_mark(NOW) and made.take(NOW, 10) == []
        said = commit(made)
        (item,) = made.take(NOW, 10)
        mark = said[item.is_retry].mark
        assert mark is not None and (mark.offset, mark.attempts) == (item.offset, item.attempts + 1)
        assert made.take(NOW, 10) == [] and not made.wanted_mark(NOW)
        seen.append(item.offset)
        made.succeed(item)
        assert not made.finished(clean=True)[0].clean  # the next owner has to be as careful
    assert sorted(seen) == [10, 11, 50, 52]
    assert made.wanted_mark(NOW)
    assert commit(made)[0].mark is None
    assert offsets(made.take(NOW + 1, 10)) == [51, 12]


def test_a_record_that_ended_its_process_too_often() -> None:
    dead = (Finished(3, clean=False, mark=Mark(5, 2)), Finished(0, clean=False))
    made = work(attempts=2, committed=dead)
    made.add_source(source(offset, None) for offset in range(3, 8))
    assert made.take(NOW, 10) == []
    (move,) = move_all(made)
    assert (move.item.offset, move.to, move.attempts) == (5, "dead_letter", 2)
    assert move.failure is not None and move.failure.exception == "WorkerDied" and move.failure.at == NOW


@pytest.mark.parametrize("mark", [None, Mark(0, 1)])
def test_an_owner_that_has_not_looked_leaves_the_suspects_to_the_next(mark: Mark | None) -> None:
    """Released before anything was read, or before the record with the mark was."""
    dead = (Finished(0, clean=False, mark=mark), Finished(0, clean=False))
    said = work(attempts=1, committed=dead).finished(clean=True)
    assert said == dead
    made = work(attempts=1, committed=said)
    made.take(NOW, 10)
    assert made.finished(clean=True)[0] == Finished(0, clean=mark is None, mark=mark), (
        "there is nothing to be suspected"
    )
    if mark is not None:
        made.add_source([source(0, b"a")])
        assert made.take(NOW, 10) == [] and [move.to for move in move_all(made)] == ["dead_letter"]


@pytest.mark.parametrize("free", [1, 10])
def test_careful_steps_after_the_suspects(free: int) -> None:
    """Whatever is begun between two commits would be a suspect, had the process ended in it."""
    dead = (Finished(0, clean=False), Finished(0, clean=False))
    made = work(concurrency=2, committed=dead)
    made.add_source(source(offset, b"%d" % (offset // 3 % 3)) for offset in range(12))
    finished = 0
    while finished < 12:
        if made.wanted_mark(NOW):
            heads, keys = commit(made), set()
        taken = made.take(NOW, free)
        assert taken
        assert not keys & {item.key for item in taken}
        keys |= {item.key for item in taken}
        assert len(keys) <= 2 and heads[0].prefix >= finished - 2
        for item in taken:
            made.succeed(item)
            finished += 1
    assert made.finished(clean=True)[0] == Finished(12)


def test_what_cannot_be_decoded_is_not_handled() -> None:
    made = work()
    made.add_source([source(0, readable=False), source(1)])
    assert made.take(NOW, 10) == []
    (move,) = move_all(made)
    assert (move.to, move.attempts) == ("dead_letter", 0)
    assert move.failure == Failure("E", "torn", "", NOW)
    assert offsets(made.take(NOW, 10)) == [1]


@pytest.mark.parametrize("order_by", ["key", "partition"])
def test_followers_of_a_dead_letter(order_by: str) -> None:
    made = work(order_by, attempts=1, block_on_dead_letter=True)
    made.add_source(source(offset, key) for offset, key in enumerate([b"a", b"a", b"b", b"a", None]))
    handled = []
    for _ in range(8):
        for item in made.take(NOW, 10):
            handled.append(item.offset)
            if item.offset == 0:
                made.fail(item, failure(), OSError(), NOW)
            else:
                made.succeed(item)
        for move in move_all(made):
            assert move.to == "dead_letter" and move.failure is not None
            expected = ("ValueError", 1) if move.item.offset == 0 else ("PredecessorDeadLettered", 0)
            assert (move.failure.exception, move.attempts) == expected
        if made.wanted_mark(NOW):
            commit(made)
    assert sorted(handled) == [0, 2, 4] and made.finished()[0].prefix == 5
    # redriven they come in order
    made.add_retry([retried(9, 1, b"a", 0), retried(10, 0, b"a", 0), retried(11, 3, b"a", 0)])
    for offset in (10, 9, 11):
        (item,) = made.take(NOW, 10)
        assert item.offset == offset
        made.succeed(item)


def test_late_results_count_no_more() -> None:
    made = work()
    made.add_source([source(0), source(1, b"b")])
    one, other = made.take(NOW, 10)
    made.succeed(one)
    made.fail(one, failure(), OSError(), NOW)
    made.succeed(one)
    assert made.in_hand == 1 and made.moves() == []
    made.release()
    made.succeed(other)
    assert made.finished()[0] == Finished(1, clean=False) and made.take(NOW, 10) == []


def test_an_unclean_release_while_something_is_in_hand() -> None:
    made = work()
    made.add_source([source(0), source(1)])
    made.take(NOW, 10)
    assert not made.finished(clean=True)[0].clean


def test_what_is_given_back_comes_again_in_order() -> None:
    made = work("none", concurrency=3)
    made.add_source(source(offset, None) for offset in range(5))
    taken = made.take(NOW, 10)
    for item in taken[1:]:
        made.give_back(item)
    assert made.in_hand == 1
    assert offsets(made.take(NOW, 10)) == [1, 2]
    assert [item.attempts for item in taken] == [0, 0, 0]


def test_the_partition_pauses_before_the_gaps_do_not_fit() -> None:
    made = work("none", concurrency=16)
    offset = 0
    while made.wants_source:
        made.add_source(source(offset + at, None) for at in range(100))
        offset += 100
        for item in made.take(NOW, 16):
            if item.offset % 2:
                made.succeed(item)
    said = made.finished()[0]
    assert len(said.encode()) <= 4000 and Finished.decode(said.prefix, said.encode()) == said


def test_no_more_is_begun_than_the_commit_can_tell_of() -> None:
    made = work("none", concurrency=5000)
    made.add_source(source(offset, None) for offset in range(9000))
    handled = 0
    for _ in range(50):
        for item in made.take(NOW, 5000):
            if item.offset % 2:
                made.succeed(item)
                handled += 1
    said = made.finished()[0]
    assert handled > 200 and len(said.encode()) <= 4000
    assert sum(stop - start for start, stop in Finished.decode(said.prefix, said.encode()).runs) == handled


def test_what_lies_before_the_reader_and_is_no_record() -> None:
    made = work()
    made.add_source([source(3), source(5, b"b")])
    for item in made.take(NOW, 10):
        made.succeed(item)
    made.reached(source=9, retry=4)
    assert made.finished() == (Finished(9, clean=False), Finished(4, clean=False))


@pytest.mark.parametrize(("order_by", "concurrency"), [("key", 4), ("none", 16), ("partition", 1)])
@pytest.mark.parametrize("poison", [3, 700, 2600])
def test_a_record_that_ends_its_process_is_found_soon(order_by: str, concurrency: int, poison: int) -> None:
    """Though nothing is committed unless it has to be: the careful steps lead to it, and only it is blamed."""
    committed = (Finished(0), Finished(0))
    dead: list[Move] = []
    deaths = 0
    while not dead and deaths < 20:
        made = PartitionWork(
            order_by=order_by, concurrency=concurrency, retry=Retry(3), dead_letter=True, random=random.Random(0)
        )
        made.restore(*committed)
        made.begin()
        items = (source(offset, b"%d" % (offset % 10)) for offset in range(committed[0].prefix, 3000))
        made.add_source(items)
        while True:
            if made.wanted_mark(NOW):
                committed = commit(made)
            taken = made.take(NOW, 1000)
            if any(item.offset == poison for item in taken):
                deaths += 1
                break
            for item in taken:
                made.succeed(item)
            dead += made.moves()
            if dead or not taken:
                break
    assert [(move.item.offset, move.to, move.failure and move.failure.exception) for move in dead] == [
        (poison, "dead_letter", "WorkerDied")
    ]
    # once unseen, once or twice on the way to it, then as often as it may be tried
    assert deaths <= 3 + {3: 2, 700: 2, 2600: 4}[poison]


def test_many_that_wait_with_any_due_times(seed: int) -> None:
    """They start when they are due, the commit stays short, and each is carried to the end about once."""
    rng = random.Random(seed)
    dues = {offset: NOW + wait for offset, wait in enumerate(rng.sample(range(1, 100_000), 4000))}
    made = work(in_retry=(retried(offset, offset, b"%d" % offset, 1, dues[offset]) for offset in dues))
    now, carried, end, started = NOW, 0, len(dues), 0
    for _ in range(10 * len(dues)):
        if not made.waiting:
            break
        due = made.next_due(now)
        now = now if due is None else max(now, due)
        for item in made.take(now, 10):
            assert dues[item.origin_offset] == item.due == now
            made.succeed(item)
            started += 1
        moves = made.moves()
        if moves:
            assert all((move.to, move.state, move.attempts) == ("retry", "head", 1) for move in moves)
            made.after_moves(moves)
            made.moved(moves, now)
            made.add_retry(
                retried(end + at, move.item.origin_offset, move.item.key, 1, move.due) for at, move in enumerate(moves)
            )
            carried, end = carried + len(moves), end + len(moves)
        assert started == len(dues) or made.next_due(now) is not None or not made.is_idle, "stuck"
        if not started % 50:
            assert len(made.finished()[1].encode()) < 3000
    assert started == len(dues) and 0 < carried <= 2 * len(dues)


def test_several_of_a_lane_in_one_call() -> None:
    made = work("partition", batch=4, several_of_lane=True)
    made.add_source(source(offset) for offset in range(7))
    taken = made.take(NOW, 4)
    assert offsets(taken) == [0, 1, 2, 3] and made.take(NOW, 4) == []
    made.succeed(taken[0])
    for item in taken[2:]:
        made.give_back(item)
    made.fail(taken[1], failure(), OSError(), NOW)
    assert made.in_hand == 0 and made.take(NOW, 4) == []
    assert made.wanted_mark(NOW + 1000)
    commit(made)
    assert made.take(NOW + 1000, 4) == [taken[1]]
    made.succeed(taken[1])
    commit(made)
    assert offsets(made.take(NOW + 1000, 4)) == [2, 3, 4, 5]


def test_a_batch_taken_apart() -> None:
    """Nobody knows which one has failed: each comes in a call of its own, in order."""
    made = work(batch=5, several_of_lane=True)
    made.add_source(source(offset, key) for offset, key in enumerate([b"a", b"a", b"b", None, b"a", b"b"]))
    taken = made.take(NOW, 5)
    assert offsets(taken) == [0, 1, 2, 3, 4]
    for item in taken:
        made.give_back(item, alone=True)
    seen = []
    for _ in range(5):
        (item,) = made.take(NOW, 5)
        seen.append(item.offset)
        if item.offset == 0:
            made.fail(item, failure(), OSError(), NOW)
            assert [move.item.offset for move in move_all(made)] == [0, 1, 4]
        else:
            made.succeed(item)
        if len(seen) == 3:
            break
    assert seen == [0, 2, 3]
    assert offsets(made.take(NOW, 5)) == [5]


def test_who_waits_long_is_carried_past_what_is_finished(monkeypatch: pytest.MonkeyPatch) -> None:
    """Else the next owner would read, and this one keep, all that went by meanwhile."""
    monkeypatch.setattr(work_module, "SPARSE_OFFSETS", 3000)
    made = work(in_retry=[retried(0, 0, b"slow", 1, NOW + 10**6)])
    carried: list[Move] = []
    for offset in range(1, 5000):
        made.add_retry([retried(offset, offset, b"quick")])
        for item in made.take(NOW, 10):
            made.succeed(item)
        carried += made.moves()
        if carried:
            break
    (move,) = carried
    assert 3000 < offset < 3200 and (move.item.offset, move.due, move.attempts) == (0, NOW + 10**6, 1)
    assert len(made._retry_order) < 1100
    made.after_moves(carried)
    made.moved(carried, NOW)
    assert made.finished()[1].prefix == offset + 1
    made.add_retry([retried(offset + 1, 0, b"slow", 1, NOW + 10**6)])
    assert made.next_due(NOW) == NOW + 10**6 and made.moves() == []


def test_one_fails_before_one_that_was_begun_by_an_earlier_owner() -> None:
    waiting = [retried(50, 2, attempts=0), retried(51, 3, attempts=1)]
    made = work("partition", batch=4, several_of_lane=True, in_retry=waiting)
    for _ in range(2):
        if made.wanted_mark(NOW):
            commit(made)
    (item,) = made.take(NOW, 4)
    assert item is waiting[0]
    made.fail(item, failure(), OSError(), NOW)
    assert made.next_due(NOW) == NOW + 1000 and made.wanted_mark(NOW + 1000)
    assert commit(made)[1].mark == Mark(50, 2, NOW + 1000, NOW)
    assert made.take(NOW + 1000, 4) == [item]
    made.succeed(item)
    assert made.take(NOW + 1000, 4) == [] and made.wanted_mark(NOW + 1000)
    assert commit(made)[1].mark == Mark(51, 2, 0, 0)
    assert made.take(NOW + 1000, 4) == [waiting[1]]


def test_followers_stay_behind_one_in_hand_that_lies_in_the_source() -> None:
    """The next owner reads the retry topic first: there it would find them, and the one before them nowhere."""
    made = work()
    made.add_source([source(5), source(6)])
    (item,) = made.take(NOW, 10)
    made.add_retry([retried(0, 2, attempts=0)])  # redriven
    assert made.moves() == []
    made.fail(item, failure(), OSError(), NOW)
    assert [move.item.offset for move in made.moves()] == [5, 6]


def test_the_source_pauses_while_too_many_wait_in_the_retry_topic() -> None:
    waiting = [retried(offset, offset, b"%d" % offset, 1, NOW + 1000) for offset in range(3)]
    made = work(max_waiting=3, in_retry=waiting)
    assert not made.wants_source and made.waiting == 3
    for item in made.take(NOW + 1000, 1):
        made.succeed(item)
    assert made.wants_source
