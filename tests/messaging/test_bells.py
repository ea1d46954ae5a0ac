"""Bells of a store: who listens to several of them misses none, and who rings pays nothing when nobody listens."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections import Counter
from collections.abc import Iterator
from multiprocessing.connection import Connection
from pathlib import Path

import pytest

from fastlog import errors
from fastlog._core import Bells, SharedPage, Waiter, bell_of
from fastlog._native import oscalls
from tests.messaging.processes import crew

ALL = (1 << 64) - 1
LONG = 30_000

pytestmark = pytest.mark.timeout(120)


@pytest.fixture
def path(folder: Path) -> Iterator[str]:
    yield str(folder / "bells")
    oscalls.clear()


def is_woken(waiter: Waiter, heard: int) -> bool:
    return waiter.sleep(heard, 0)


def test_a_ring_wakes_who_listens_to_that_bell(path: str) -> None:
    ours, theirs = Bells.open(path), Bells.open(path)
    waiter, other = ours.waiter(), theirs.waiter()
    heard, others = waiter.listen(1 << 3 | 1 << 63), other.listen(1 << 4)
    theirs.ring(5)
    assert not is_woken(waiter, heard) and not is_woken(other, others)
    theirs.ring(63)
    assert is_woken(waiter, heard) and not is_woken(other, others)
    # it is still said that it listens to bell 3
    heard = waiter.listen(0)
    ours.ring(3)
    assert is_woken(waiter, heard)
    # but each ring is told once
    heard = waiter.listen(0)
    ours.ring(3)
    ours.ring(63)
    assert not is_woken(waiter, heard)
    ours.ring(4)
    assert is_woken(other, others)


def test_a_ring_before_listening_is_not_remembered(path: str) -> None:
    bells = Bells.open(path)
    waiter = bells.waiter()
    bells.ring(1)
    assert not is_woken(waiter, waiter.listen(ALL))


def test_a_ring_between_listening_and_sleeping_ends_the_sleep(path: str) -> None:
    bells = Bells.open(path)
    waiter = bells.waiter()
    heard = waiter.listen(ALL)
    bells.ring(40)
    begun = oscalls.steady_clock()
    assert waiter.sleep(heard, LONG)
    assert waiter.sleep(heard, LONG)
    assert oscalls.steady_clock() - begun < 10_000


def test_a_sleep_is_short_whatever_is_asked_for(path: str) -> None:
    waiter = Bells.open(path).waiter()
    heard = waiter.listen(1)
    begun = oscalls.steady_clock()
    assert not waiter.sleep(heard, LONG)
    assert 40 <= oscalls.steady_clock() - begun < 10_000


def test_waking_from_another_thread(path: str) -> None:
    waiter = Bells.open(path).waiter()
    heard = waiter.listen(0)
    waiter.wake()
    assert is_woken(waiter, heard)
    heard = waiter.listen(0)
    timer = threading.Timer(0.02, waiter.wake)
    timer.start()
    while not waiter.sleep(heard, LONG):
        pass
    timer.join()


def test_which_bells_have_rung(path: str) -> None:
    bells = Bells.open(path)
    waiter, late = bells.waiter(), None
    assert waiter.rung() == 0
    waiter.listen(ALL)
    for bell in (7, 9, 9, 63):
        bells.ring(bell)
    late = bells.waiter()
    assert waiter.rung() == 1 << 7 | 1 << 9 | 1 << 63
    assert waiter.rung() == 0 and late.rung() == 0
    # who has not said again that it listens is not told
    bells.ring(7)
    assert waiter.rung() == 0


def test_the_65th_waiter_shares_a_word(path: str) -> None:
    bells = Bells.open(path)
    waiters = [bells.waiter() for _ in range(65)]
    assert sorted({waiter.number for waiter in waiters}) == list(range(64))
    first, last = (waiter for waiter in waiters if waiter.number == waiters[-1].number)
    ours, theirs = first.listen(1 << 1), last.listen(1 << 2)
    bells.ring(2)
    assert is_woken(last, theirs)
    assert is_woken(first, ours), "spurious, and it must not hide the next"
    ours = first.listen(1 << 1)
    bells.ring(1)
    assert is_woken(first, ours)


def test_every_waiter_of_a_bell_is_woken(path: str) -> None:
    bells = Bells.open(path)
    waiters = [bells.waiter() for _ in range(64)]
    heard = [waiter.listen(1 << 11) for waiter in waiters]
    bells.ring(11)
    assert all(is_woken(waiter, word) for waiter, word in zip(waiters, heard, strict=True))


def test_bells_of_partitions_are_spread_and_never_change() -> None:
    assert [bell_of("events", 0), bell_of("events", 1), bell_of("orders", 0), bell_of("größe", 49)] == [10, 11, 30, 53]
    assert len({bell_of("events", partition) for partition in range(64)}) == 64
    counted = Counter(bell_of(f"topic-{number}", 0) for number in range(6400))
    assert len(counted) == 64 and max(counted.values()) < 200


def test_there_are_64_bells(path: str) -> None:
    bells = Bells.open(path)
    for number in (-1, 64):
        with pytest.raises(IndexError, match="no bell"):
            bells.ring(number)
    with pytest.raises(OverflowError):
        bells.waiter().listen(1 << 64)


def test_what_are_no_bells_is_refused(path: str) -> None:
    Bells.open(path).close()
    content = Path(path).read_bytes()
    for damaged in (b"", content[:4096], b"fastlogp" + content[8:], content[:8] + b"\2" + content[9:], content + b"\0"):
        Path(path).write_bytes(damaged)
        with pytest.raises(errors.UnsupportedFormatError):
            Bells.open(path)


def test_after_close_and_fork(path: str) -> None:
    bells = Bells.open(path)
    waiter = bells.waiter()
    pid = os.fork()
    if pid == 0:
        code = 0
        for use in (lambda: bells.ring(1), bells.waiter, lambda: waiter.listen(1), lambda: waiter.sleep(0, 1)):
            try:
                use()
            except errors.ForkedHandleError:
                continue
            code = 1
        waiter.wake()
        os._exit(code)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    bells.close()
    for use in (lambda: bells.ring(1), bells.waiter, lambda: waiter.listen(1), lambda: waiter.sleep(0, 1)):
        with pytest.raises(errors.ClosedError):
            use()
    waiter.wake()


def test_whoever_makes_the_bells_first_has_made_them(path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Somebody makes them between the look and the making."""
    first = Bells.open(path).waiter()
    monkeypatch.setattr(oscalls, "identity", lambda path: None)
    bells = Bells.open(path)
    heard = first.listen(1)
    bells.ring(0)
    assert is_woken(first, heard)
    assert [name.name for name in Path(path).parent.iterdir()] == ["bells"]


def open_at_once(connection: Connection, path: str) -> None:
    connection.send("ready")
    connection.recv()
    connection.send([Bells.open(f"{path}-{number}").waiter().number for number in range(100)])


def test_one_file_though_all_make_it_at_once(path: str) -> None:
    with crew() as start:
        workers = [start(open_at_once, path) for _ in range(3)]
        for worker in workers:
            worker.answer()
        for worker in workers:
            worker.tell("go")
        numbers = [worker.answer() for worker in workers]
    assert [sorted(each) for each in zip(*numbers, strict=True)] == [[0, 1, 2]] * 100


# --- hunts ------------------------------------------------------------------------------------------------------------


def wait_for(page: SharedPage, waiter: Waiter, mask: int, word: int, value: int) -> int:
    """Wait until a word has a value, as a consumer waits for a partition; how many slices ran out before."""
    slices = 0
    while True:
        heard = waiter.listen(mask)
        if page.load(word) >= value:
            return slices
        slices += not waiter.sleep(heard, LONG)


def answer_rings(connection: Connection, path: str, rounds: int) -> None:
    page, bells = SharedPage.open(f"{path}-page"), Bells.open(path)
    waiter, slices = bells.waiter(), 0
    connection.send("ready")
    for number in range(1, rounds + 1):
        slices += wait_for(page, waiter, ALL, 0, number)
        page.store(1, number)
        bells.ring(17)
    connection.send(slices)


def test_no_wake_up_is_lost(path: str) -> None:
    """A lost one would cost a slice; a few run out because the machine is busy."""
    rounds = 20_000 if oscalls.has_futex() else 2_000
    page, bells = SharedPage.create(f"{path}-page", 2, 0), Bells.open(path)
    waiter, slices = bells.waiter(), 0
    with crew() as start:
        other = start(answer_rings, path, rounds)
        other.answer()
        for number in range(1, rounds + 1):
            page.store(0, number)
            bells.ring(number % 64)
            slices += wait_for(page, waiter, 1 << 17, 1, number)
        slices += other.answer()
    assert slices < 2 * rounds / 100, f"{slices} slices ran out in {rounds} rounds"


def ring_many(connection: Connection, path: str, first: int, rounds: int) -> None:
    """Raise each of four words in turn, each with a bell of its own, and wait until somebody has seen all."""
    page, bells = SharedPage.open(f"{path}-page"), Bells.open(path)
    waiter, slices = bells.waiter(), 0
    connection.send("ready")
    connection.recv()
    for number in range(1, rounds + 1):
        for word in range(first, first + 4):
            page.store(word, number)
            bells.ring(word)
        slices += wait_for(page, waiter, 1 << 40 + first, 32 + first, number)
    connection.send(slices)


def test_looking_only_at_bells_that_rang_misses_nothing(path: str) -> None:
    """Two ringers, one who looks at nothing but what ``rung`` names, and at all only after a slice ran out."""
    rounds = 3_000 if oscalls.has_futex() else 300
    page, bells = SharedPage.create(f"{path}-page", 64, 0), Bells.open(path)
    waiter, seen, slices = bells.waiter(), [0] * 8, 0
    done = {0: 0, 4: 0}
    with crew() as start:
        ringers = [start(ring_many, path, first, rounds) for first in (0, 4)]
        for ringer in ringers:
            ringer.answer()
        for ringer in ringers:
            ringer.tell("go")
        look_at_all = True
        while min(done.values()) < rounds:
            heard = waiter.listen(0xFF)
            rung = waiter.rung() | (ALL if look_at_all else 0)
            before = list(seen)
            for word in range(8):
                if rung >> word & 1:
                    seen[word] = page.load(word)
            for first in done:
                number = min(seen[first : first + 4])
                if number > done[first]:
                    done[first] = number
                    page.store(32 + first, number)
                    bells.ring(40 + first)
            look_at_all = False
            if seen == before and min(done.values()) < rounds:
                look_at_all = not waiter.sleep(heard, LONG)
                slices += look_at_all
        for ringer in ringers:
            slices += ringer.answer()
    assert slices < rounds / 10, f"{slices} slices ran out in {rounds} rounds"


def ring_and_die(connection: Connection, path: str) -> None:
    page, bells = SharedPage.open(f"{path}-page"), Bells.open(path)
    while True:
        page.add(0, 1)
        bells.ring(0)


def test_who_dies_before_it_rings_delays_nobody_for_long(path: str) -> None:
    page, bells = SharedPage.create(f"{path}-page", 1, 0), Bells.open(path)
    waiter = bells.waiter()
    with crew() as start:
        for _ in range(3):
            ringer = start(ring_and_die, path)
            wait_for(page, waiter, 1, 0, page.load(0) + 1000)
            time.sleep(0.01)
            ringer.kill()
            last = page.load(0)
            assert wait_for(page, waiter, 1, 0, last) <= 1
            page.add(0, 1)
            bells.ring(0)
            assert wait_for(page, waiter, 1, 0, last + 1) <= 1


def test_signals_end_a_sleep(path: str) -> None:
    waiter = Bells.open(path).waiter()

    class Rung(Exception):
        pass

    def ring(*_: object) -> None:
        raise Rung

    before = signal.signal(signal.SIGALRM, ring)
    try:
        signal.setitimer(signal.ITIMER_REAL, 0.1)
        with pytest.raises(Rung):
            while True:
                waiter.sleep(waiter.listen(1), LONG)
    finally:
        signal.signal(signal.SIGALRM, before)
