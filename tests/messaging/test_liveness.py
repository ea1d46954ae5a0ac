"""Locked slots, and the watcher that tells of those who died."""

from __future__ import annotations

import errno
import gc
import logging
import os
import random
import signal
import threading
import time
from collections.abc import Callable, Iterator
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import pytest

from fastlog import errors
from fastlog._native import oscalls
from fastlog.liveness import Slot, Slots, Watcher, watcher
from tests.messaging.processes import Worker, crew

pytestmark = pytest.mark.timeout(120)

needs_pidfd = pytest.mark.skipif(
    oscalls.open_process(os.getpid()) is None, reason="the kernel tells of no process that ends"
)


@pytest.fixture
def path(folder: Path) -> Iterator[str]:
    yield str(folder / "slots")
    oscalls.clear()


@pytest.fixture
def slots(path: str) -> Iterator[Slots]:
    slots = Slots.open(path)
    yield slots
    slots.close()


@pytest.fixture
def watching(slots: Slots) -> Iterator[Watcher]:
    watching = Watcher(slots)
    yield watching
    watching.close()


@pytest.fixture
def start() -> Iterator[Callable[..., Worker]]:
    with crew() as start:
        yield start


class Deaths:
    """Callbacks for a watcher that remember what they were told."""

    def __init__(self) -> None:
        self.numbers: list[int] = []
        self._told = threading.Condition()

    def __call__(self, number: int) -> None:
        with self._told:
            self.numbers.append(number)
            self._told.notify_all()

    def wait_for(self, count: int, seconds: float = 30) -> bool:
        with self._told:
            return self._told.wait_for(lambda: len(self.numbers) >= count, seconds)


def hold(connection: Connection, path: str, count: int = 1) -> None:
    """Enter slots, say which, and keep them until told to end."""
    slots = Slots.open(path)
    entered = [slots.enter() for _ in range(count)]
    connection.send([(slot.number, slot.identity) for slot in entered])
    connection.recv()


def elsewhere(identity: dict[str, int]) -> dict[str, int]:
    """As if the process was in another container: its id means nothing here."""
    return {**identity, "pid_namespace": identity["pid_namespace"] + 1}


# --- slots ------------------------------------------------------------------------------------------------------------


def test_a_slot_is_alive_until_it_is_left(slots: Slots, path: str) -> None:
    first, second = slots.enter(), Slots.open(path).enter()
    assert (first.number, second.number) == (1, 2)
    assert slots.is_alive(1) and slots.is_alive(2) and not slots.is_alive(3)
    first.leave()
    first.leave()
    assert first.left and not slots.is_alive(1) and slots.is_alive(2)
    assert slots.free([1, 2, 3]) == [1, 3]
    del second
    gc.collect()
    assert slots.free([1, 2]) == [1, 2]


def test_a_slot_names_its_process(slots: Slots) -> None:
    slot = slots.enter()
    assert slot.identity["pid"] == os.getpid()
    if Path("/proc/self/stat").exists():
        assert slot.identity["start_time"] > 0 and slot.identity["pid_namespace"] > 0


def test_numbers_are_given_out_once(slots: Slots, path: str, start: Callable[..., Worker]) -> None:
    """Also when their owners are dead: who watches the number of a dead one must not find another owner's lock."""
    workers = [start(hold, path, 100) for _ in range(3)]
    numbers = [number for worker in workers for number, _ in worker.answer()]
    for worker in workers:
        worker.kill()
    again = [slots.enter() for _ in range(100)]
    numbers += [slot.number for slot in again]
    assert sorted(numbers) == list(range(1, 401))
    assert slots.free(range(1, 401)) == list(range(1, 301))


def test_the_lock_goes_with_the_process(slots: Slots, path: str, start: Callable[..., Worker]) -> None:
    worker = start(hold, path)
    ((number, _),) = worker.answer()
    assert slots.is_alive(number)
    os.kill(worker.pid, signal.SIGSTOP)
    time.sleep(0.05)
    assert slots.is_alive(number), "a frozen process lives"
    worker.kill()
    assert not slots.is_alive(number)


def hold_and_fork(connection: Connection, path: str) -> None:
    slot = Slots.open(path).enter()
    told, tell = os.pipe()
    child = os.fork()
    if child == 0:
        os.write(tell, b"!")
        time.sleep(60)
        os._exit(0)
    # what a child inherits is closed before its first line, but not before it runs at all
    os.read(told, 1)
    connection.send((slot.number, child))
    connection.recv()


def test_a_forked_child_holds_no_lock(slots: Slots, path: str, start: Callable[..., Worker]) -> None:
    worker = start(hold_and_fork, path)
    number, child = worker.answer()
    try:
        assert slots.is_alive(number)
        worker.kill()
        assert not slots.is_alive(number)
    finally:
        os.kill(child, signal.SIGKILL)


def test_a_forked_child_leaves_nothing_of_its_parent(slots: Slots, watching: Watcher) -> None:
    slot, deaths = slots.enter(), Deaths()
    watching.watch(slot.number, slot.identity, deaths)
    timer = watching.every(60, deaths)
    pid = os.fork()
    if pid == 0:
        code = 0
        for refused in (
            slots.enter,
            lambda: slots.is_alive(1),
            lambda: watching.watch(1, slot.identity, deaths),
            lambda: watching.every(1, deaths),
        ):
            try:
                refused()
            except errors.ForkedHandleError:
                continue
            code = 1
        reused = [os.open("/dev/null", os.O_RDONLY) for _ in range(20)]
        slot.leave()
        watching.unwatch(slot.number)
        timer()
        watching.close()
        for fd in reused:
            os.fstat(fd)
        os._exit(code)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    assert slots.is_alive(slot.number) and not deaths.numbers
    slot.leave()
    assert deaths.wait_for(1)


def test_slots_after_close(slots: Slots) -> None:
    slot = slots.enter()
    again = Slots.open(slots.path)
    slots.close()
    slots.close()
    for use in (slots.enter, lambda: slots.is_alive(1)):
        with pytest.raises(errors.ClosedError):
            use()
    assert again.is_alive(slot.number)


def test_slots_for_reading(path: str) -> None:
    with pytest.raises(errors.StorageError):
        Slots.open(path, writable=False)
    slot = Slots.open(path).enter()
    reading = Slots.open(path, writable=False)
    assert reading.is_alive(slot.number)
    with pytest.raises(errors.StorageError, match="opened for reading"):
        reading.enter()


def test_slots_whose_file_was_removed(slots: Slots) -> None:
    Path(slots.path).unlink()
    with pytest.raises(errors.StorageError):
        slots.enter()
    Slots.open(slots.path)
    with pytest.raises(errors.StorageError, match="was removed while the store is open"):
        slots.enter()


def test_a_lock_that_cannot_be_had_leaves_nothing(slots: Slots) -> None:
    oscalls.inject("fcntl", errno.ENOLCK)
    with pytest.raises(errors.StorageError, match="could not lock"):
        slots.enter()
    oscalls.clear()
    slot = slots.enter()
    assert slot.number == 2 and slots.free([1, 2]) == [1]


# --- deaths -----------------------------------------------------------------------------------------------------------


@needs_pidfd
def test_the_kernel_tells_of_a_death(
    slots: Slots, watching: Watcher, start: Callable[..., Worker], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Looking at locks is put off for hours, so that nothing else can tell."""
    monkeypatch.setattr(watcher, "SELDOM", 10_000_000)
    monkeypatch.setattr(watcher, "OFTEN", 10_000_000)
    worker, other = start(hold, slots.path, 3), start(hold, slots.path)
    deaths, others = Deaths(), Deaths()
    numbers = []
    for number, identity in worker.answer():
        watching.watch(number, identity, deaths)
        numbers.append(number)
    for number, identity in other.answer():
        watching.watch(number, identity, others)
    assert not deaths.wait_for(1, 0.2)
    worker.kill()
    assert deaths.wait_for(3)
    assert sorted(deaths.numbers) == numbers and not others.numbers


def test_a_death_elsewhere_is_found_by_its_lock(
    slots: Slots, watching: Watcher, start: Callable[..., Worker], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(watcher, "SELDOM", 10_000_000)
    monkeypatch.setattr(oscalls, "open_process", lambda pid: pytest.fail("its id means nothing here"))
    worker, deaths = start(hold, slots.path, 3), Deaths()
    for number, identity in worker.answer():
        watching.watch(number, elsewhere(identity), deaths)
    assert not deaths.wait_for(1, 0.2)
    os.kill(worker.pid, signal.SIGSTOP)
    assert not deaths.wait_for(1, 0.2), "a frozen process lives"
    worker.kill()
    assert deaths.wait_for(3)


def test_an_owner_may_go_without_its_process(slots: Slots, watching: Watcher) -> None:
    slot: Slot | None = slots.enter()
    assert slot is not None
    deaths = Deaths()
    watching.watch(slot.number, slot.identity, deaths)
    assert not deaths.wait_for(1, 0.4)
    slot = None
    assert deaths.wait_for(1)


def leave_when_told(connection: Connection, path: str) -> None:
    slot = Slots.open(path).enter()
    connection.send((slot.number, slot.identity))
    connection.recv()
    slot.leave()
    connection.recv()


def test_an_owner_elsewhere_may_go_without_its_process(
    slots: Slots, watching: Watcher, start: Callable[..., Worker]
) -> None:
    worker, deaths = start(leave_when_told, slots.path), Deaths()
    watching.watch(*worker.answer(), deaths)
    worker.tell("leave")
    assert deaths.wait_for(1)
    assert worker.process.is_alive()


def test_a_death_is_believed_once_the_lock_is_free(
    slots: Slots, watching: Watcher, start: Callable[..., Worker]
) -> None:
    """Somebody may be there who holds the lock of an ended process: it is not dead before that one is."""
    worker, slot, deaths = start(hold, slots.path), slots.enter(), Deaths()
    ((_, identity),) = worker.answer()
    watching.watch(slot.number, identity, deaths)
    worker.kill()
    assert not deaths.wait_for(1, 0.6)
    slot.leave()
    assert deaths.wait_for(1)


def test_an_id_that_is_used_again_is_no_sign_of_life(
    slots: Slots, watching: Watcher, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nor one of death: the lock is asked for often."""
    monkeypatch.setattr(watcher, "SELDOM", 10_000_000)
    parent = {**slots.identity, "pid": os.getppid(), "start_time": 1}
    slot, deaths = slots.enter(), Deaths()
    watching.watch(slot.number, parent, deaths)
    assert not deaths.wait_for(1, 0.2)
    slot.leave()
    assert deaths.wait_for(1)


def test_who_is_dead_already_is_told_of_at_once(
    slots: Slots, watching: Watcher, start: Callable[..., Worker], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(watcher, "SELDOM", 10_000_000)
    monkeypatch.setattr(watcher, "OFTEN", 10_000_000)
    worker, deaths = start(hold, slots.path, 2), Deaths()
    (first, identity), (second, _) = worker.answer()
    worker.kill()
    watching.watch(first, identity, deaths)
    assert deaths.wait_for(1)
    watching.watch(second, elsewhere(identity), deaths)
    assert deaths.wait_for(2)
    watching.watch(12345, slots.identity, deaths)
    assert deaths.wait_for(3)
    assert deaths.numbers == [first, second, 12345]


def test_several_may_watch_one_slot(slots: Slots, watching: Watcher) -> None:
    slot, one, two, three = slots.enter(), Deaths(), Deaths(), Deaths()
    for deaths in (one, two, three):
        watching.watch(slot.number, slot.identity, deaths)
    watching.unwatch(slot.number, two)
    watching.unwatch(slot.number, two)
    watching.unwatch(99)
    slot.leave()
    assert one.wait_for(1) and three.wait_for(1)
    assert not two.numbers


def test_who_is_not_watched_any_more_dies_quietly(slots: Slots, watching: Watcher) -> None:
    slot, other, deaths, others = slots.enter(), slots.enter(), Deaths(), Deaths()
    watching.watch(slot.number, slot.identity, deaths)
    watching.watch(slot.number, slot.identity, deaths)
    watching.watch(other.number, other.identity, others)
    watching.unwatch(slot.number)
    slot.leave()
    other.leave()
    assert others.wait_for(1)
    assert not deaths.wait_for(1, 0.3)


@pytest.mark.parametrize("is_elsewhere", [False, True])
def test_a_storm_of_deaths(slots: Slots, watching: Watcher, seed: int, is_elsewhere: bool) -> None:
    """Each is told once, none too early, none forgotten."""
    chance, told, living = random.Random(seed), Deaths(), dict[int, Slot]()
    early: list[int] = []

    def on_death(number: int) -> None:
        if number in living:
            early.append(number)
        told(number)

    def come() -> None:
        slot = slots.enter()
        living[slot.number] = slot
        watching.watch(slot.number, elsewhere(slot.identity) if is_elsewhere else slot.identity, on_death)

    gone = 0
    for _ in range(300):
        if chance.random() < 0.6 or not living:
            come()
        else:
            living.pop(chance.choice(list(living))).leave()
            gone += 1
        if chance.random() < 0.1:
            time.sleep(chance.random() / 20)
    assert told.wait_for(gone)
    assert not told.wait_for(gone + 1, 0.3)
    assert len(set(told.numbers)) == gone and not early


def watch_and_tell(connection: Connection, path: str) -> None:
    slots, deaths = Slots.open(path), Deaths()
    watching = Watcher(slots)
    for number, identity in connection.recv():
        watching.watch(number, identity, deaths)
    connection.send("watching")
    connection.send((deaths.wait_for(3), sorted(deaths.numbers)))
    watching.close()


def test_every_process_is_told(slots: Slots, start: Callable[..., Worker]) -> None:
    watchers = [start(watch_and_tell, slots.path) for _ in range(3)]
    owners = [start(hold, slots.path) for _ in range(4)]
    entered = [answer for owner in owners for answer in owner.answer()]
    for each in watchers:
        each.tell(entered)
        each.answer()
    for owner in owners[:3]:
        owner.kill()
    for each in watchers:
        assert each.answer() == (True, sorted(number for number, _ in entered[:3]))


# --- callbacks and timers ---------------------------------------------------------------------------------------------


def test_a_callback_that_fails_is_logged_and_ends_nothing(
    slots: Slots, watching: Watcher, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(*_: Any) -> None:
        raise SystemExit("cannot bury it")

    slot, other, deaths, ticks = slots.enter(), slots.enter(), Deaths(), threading.Event()
    watching.every(0.01, fail)
    watching.watch(slot.number, slot.identity, fail)
    watching.watch(slot.number, slot.identity, deaths)
    with caplog.at_level(logging.ERROR, "fastlog.liveness"):
        slot.leave()
        assert deaths.wait_for(1)
        watching.watch(other.number, other.identity, deaths)
        watching.every(0.01, ticks.set)
        other.leave()
        assert deaths.wait_for(2)
        assert ticks.wait(30)
    assert "cannot bury it" in caplog.text and "failed; the watcher goes on" in caplog.text


def test_trouble_with_locks_is_logged_and_ends_nothing(
    slots: Slots, watching: Watcher, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: Any) -> list[int]:
        raise errors.StorageError("no lock today", errno.ENOLCK)

    slot, deaths, ticks = slots.enter(), Deaths(), threading.Event()
    with caplog.at_level(logging.ERROR, "fastlog.liveness"), monkeypatch.context() as patched:
        patched.setattr(oscalls, "free_bytes", refuse)
        watching.watch(slot.number, slot.identity, deaths)
        slot.leave()
        watching.every(0.3, ticks.set)
        assert ticks.wait(30)
    assert "no lock today" in caplog.text
    assert deaths.wait_for(1)


def refuse(_thread: threading.Thread) -> None:
    raise RuntimeError("can't start new thread")


@pytest.mark.parametrize("what", ["pipe", "thread"])
def test_a_watcher_that_cannot_begin_is_begun_by_the_next_who_needs_it(
    slots: Slots, monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    watching, deaths, ticks = Watcher(slots), Deaths(), Deaths()
    gone = slots.enter()
    gone.leave()
    for _ in range(2):
        with monkeypatch.context() as patched:
            if what == "thread":
                patched.setattr(threading.Thread, "start", refuse)
            for need in (
                lambda: watching.watch(gone.number, gone.identity, deaths),
                lambda: watching.every(0.001, lambda: ticks(1)),
            ):
                if what == "pipe":
                    oscalls.inject("pipe", errno=errno.EMFILE)
                with pytest.raises((errors.StorageError, RuntimeError), match="could not open a pipe|new thread"):
                    need()
                oscalls.clear()
    watching.watch(gone.number, gone.identity, deaths)
    assert deaths.wait_for(1) and deaths.numbers == [gone.number], "what was refused is not noted"
    assert not ticks.numbers
    timer = watching.every(0.001, lambda: ticks(2))
    assert ticks.wait_for(3)
    timer.cancel()
    watching.close()
    assert set(ticks.numbers) == {2}


def test_a_watcher_that_could_not_begin_closes(slots: Slots, monkeypatch: pytest.MonkeyPatch) -> None:
    watching = Watcher(slots)
    with monkeypatch.context() as patched, pytest.raises(RuntimeError):
        patched.setattr(threading.Thread, "start", refuse)
        watching.every(1, print)
    watching.close()
    assert watching.closed


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_watcher_that_an_error_has_ended_begins_again(slots: Slots) -> None:
    def fail(_: object = None) -> bool:
        raise ValueError("not today")

    watching, deaths, logger = Watcher(slots), Deaths(), logging.getLogger("fastlog.liveness")
    logger.addFilter(fail)  # who cannot even be told of an error does not go on
    timer = watching.every(0.001, fail)
    ended = watching._thread
    assert ended is not None
    ended.join(30)
    assert not ended.is_alive()
    logger.removeFilter(fail)
    timer.cancel()
    gone = slots.enter()
    gone.leave()
    watching.watch(gone.number, gone.identity, deaths)
    assert deaths.wait_for(1)
    watching.close()


def test_work_aside_that_cannot_begin_holds_nothing_up(watching: Watcher, caplog: pytest.LogCaptureFixture) -> None:
    ticks, work = Deaths(), Deaths()
    with pytest.MonkeyPatch.context() as patched:
        with watching._guard:  # nothing begins meanwhile
            watching.every(0.01, lambda: work(1), aside=True)
            watching.every(0.01, lambda: ticks(1))
            patched.setattr(threading.Thread, "start", refuse)
        assert ticks.wait_for(3)
        assert not work.numbers
    assert "can't start new thread" in caplog.text and "the watcher goes on" in caplog.text
    assert work.wait_for(2)


def test_a_watcher_closes_though_work_aside_could_not_begin(slots: Slots) -> None:
    watching, ticks = Watcher(slots), Deaths()
    with pytest.MonkeyPatch.context() as patched:
        with watching._guard:
            watching.every(0.001, print, aside=True)
            watching.every(0.001, lambda: ticks(1))
            patched.setattr(threading.Thread, "start", refuse)
        assert ticks.wait_for(1)
        watching.close()


def test_a_timer_calls_until_it_is_cancelled(watching: Watcher) -> None:
    calls, enough = [0, 0], threading.Event()

    def count() -> None:
        calls[0] += 1
        if calls[0] == 5:
            timer.cancel()
        if calls[0] > 5:
            enough.set()

    def count_others() -> None:
        calls[1] += 1
        if calls[1] == 20:
            enough.set()

    timer = watching.every(0.005, count)
    other = watching.every(0.01, count_others)
    assert enough.wait(30)
    other()
    other()
    seen = calls[1]
    time.sleep(0.1)
    assert calls[0] == 5 and calls[1] <= seen + 1


@pytest.mark.parametrize("seconds", [0, -1, float("nan")])
def test_a_timer_needs_time(watching: Watcher, seconds: float) -> None:
    with pytest.raises(ValueError, match="needs some time"):
        watching.every(seconds, print)


def test_work_aside_delays_no_death(slots: Slots, watching: Watcher) -> None:
    slot, deaths, begun, may_end = slots.enter(), Deaths(), threading.Semaphore(0), threading.Event()

    def work() -> None:
        begun.release()
        may_end.wait(60)

    watching.every(0.01, work, aside=True)
    assert begun.acquire(timeout=30)
    watching.watch(slot.number, slot.identity, deaths)
    slot.leave()
    assert deaths.wait_for(1)
    assert not begun.acquire(timeout=0.1), "not twice at a time"
    may_end.set()
    assert begun.acquire(timeout=30)


def test_a_timer_with_a_reason_is_called_when_it_holds(watching: Watcher) -> None:
    asked, called, holds = threading.Semaphore(0), threading.Event(), threading.Event()

    def reason() -> bool:
        asked.release()
        return holds.is_set()

    watching.every(0.001, called.set, aside=True, when=reason)
    for _ in range(10):
        assert asked.acquire(timeout=30)
    assert not called.is_set()
    holds.set()
    assert called.wait(30)


def test_a_reason_that_fails_is_none(watching: Watcher) -> None:
    asked, called = threading.Semaphore(0), threading.Event()

    def reason() -> bool:
        asked.release()
        raise OSError("no reason")

    watching.every(0.001, called.set, when=reason)
    for _ in range(3):
        assert asked.acquire(timeout=30)
    assert not called.is_set()


def test_closing_waits_for_what_runs(slots: Slots) -> None:
    watching, ended = Watcher(slots), list[str]()
    begun = {"aside": threading.Event(), "inside": threading.Event()}

    def work(name: str) -> None:
        begun[name].set()
        time.sleep(0.2)
        ended.append(name)

    watching.every(0.001, lambda: work("aside"), aside=True)
    assert begun["aside"].wait(30)
    watching.every(0.001, lambda: work("inside"))
    assert begun["inside"].wait(30)
    watching.close()
    seen = list(ended)
    assert "inside" in seen and "aside" in seen
    watching.close()
    time.sleep(0.3)
    assert ended == seen and watching.closed
    assert not [thread for thread in threading.enumerate() if thread.name in ("fastlog-watcher", "fastlog-upkeep")]
    with pytest.raises(errors.ClosedError):
        watching.every(1, print)
    with pytest.raises(errors.ClosedError):
        watching.watch(1, slots.identity, print)
    watching.unwatch(1)


def test_closing_from_within_a_callback(slots: Slots) -> None:
    watching, closed = Watcher(slots), threading.Event()

    def close() -> None:
        watching.close()
        closed.set()

    watching.every(0.001, close)
    assert closed.wait(30)
    watching.close()
    assert not [thread for thread in threading.enumerate() if thread.name == "fastlog-watcher"]


def test_closing_what_was_never_used(slots: Slots) -> None:
    Watcher(slots).close()


def test_no_descriptor_is_left(slots: Slots, start: Callable[..., Worker]) -> None:
    watching, worker, deaths = Watcher(slots), start(hold, slots.path, 5), Deaths()
    opened = len(os.listdir("/dev/fd"))
    for number, identity in worker.answer():
        watching.watch(number, identity, deaths)
    # the kernel's word for one process, and both ends of a pipe
    assert len(os.listdir("/dev/fd")) <= opened + 3
    worker.kill()
    assert deaths.wait_for(5)
    watching.close()
    assert len(os.listdir("/dev/fd")) <= opened
