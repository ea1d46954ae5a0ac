"""Pages that processes share: words, a document that changes as a whole, and what death leaves behind."""

from __future__ import annotations

import errno
import os
import random
import signal
import threading
import time
from collections.abc import Iterator
from multiprocessing.connection import Connection
from pathlib import Path

import pytest

from fastlog import errors
from fastlog._core import SharedPage
from fastlog._native import oscalls
from tests.forking import wait_until_stopped
from tests.killing.owners import LARGEST, document_of
from tests.messaging.processes import crew

RETIRED = -(1 << 63)
FAILPOINTS = ("page.filling", "page.filled", "page.published", "page.retiring")
STOPS = ("page.waiting",)

pytestmark = pytest.mark.timeout(120)


@pytest.fixture
def path(folder: Path) -> Iterator[str]:
    yield str(folder / "page")
    oscalls.clear()


# --- words ------------------------------------------------------------------------------------------------------------


def test_words_are_the_same_in_every_mapping(path: str) -> None:
    ours, theirs = SharedPage.create(path, 5, 0), SharedPage.open(path)
    assert (theirs.words, theirs.capacity, theirs.version) == (5, 0, 0)
    ours.store(3, -7)
    assert theirs.load(3) == -7
    assert theirs.exchange(3, 1 << 62) == -7
    assert ours.add(4, 5) == 5
    assert theirs.add(4, -6) == -1
    assert ours.load_many(0, 5) == [0, 0, 0, 1 << 62, -1]
    assert ours.load_many(3, 2) == [1 << 62, -1]
    assert ours.load_many(5, 0) == []


@pytest.mark.parametrize("index", [-1, 5, 1 << 40])
def test_there_are_no_other_words(path: str, index: int) -> None:
    page = SharedPage.create(path, 5, 100)
    for refused in (lambda: page.load(index), lambda: page.store(index, 1), lambda: page.add(index, 1)):
        with pytest.raises(IndexError, match="has 5"):
            refused()
    with pytest.raises(IndexError):
        page.load_many(2, 4)
    with pytest.raises(OverflowError):
        page.store(0, 1 << 63)


def count_up(connection: Connection, path: str, times: int) -> None:
    page = SharedPage.open(path)
    for _ in range(times):
        page.add(1, 1)


def test_no_addition_is_lost_between_processes(path: str) -> None:
    page = SharedPage.create(path, 2, 0)
    with crew() as start:
        workers = [start(count_up, path, 100_000) for _ in range(3)]
        assert [worker.join() for worker in workers] == [0, 0, 0]
    assert page.load(1) == 300_000


# --- the document -----------------------------------------------------------------------------------------------------


def test_a_document_is_read_as_it_was_published(path: str) -> None:
    ours, theirs = SharedPage.create(path, 1, 1000), SharedPage.open(path)
    assert theirs.read() == (0, b"")
    for number, size in enumerate((1000, 0, 1, 999, 63, 64, 65), 1):
        document = bytes(range(256)) * 4
        assert ours.publish(document[:size]) == number
        assert theirs.version == number
        assert theirs.read() == (number, document[:size])
    assert theirs.load(0) == 0


def test_a_document_that_does_not_fit_changes_nothing(path: str) -> None:
    page = SharedPage.create(path, 0, 100)
    page.publish(b"a" * 100)
    with pytest.raises(errors.RecordTooLargeError, match="101 bytes does not fit.*larger page"):
        page.publish(b"b" * 101)
    assert page.read() == (1, b"a" * 100)


def test_a_page_can_be_born_with_content(path: str) -> None:
    page = SharedPage.create(path, 4, 50, values=[1, -2], document=b"from before", version=7)
    assert page.load_many(0, 4) == [1, -2, 0, 0]
    assert page.read() == (7, b"from before")
    assert page.publish(b"next") == 8
    assert SharedPage.open(path).read() == (8, b"next")
    with pytest.raises(ValueError, match="3 values do not fit into 2 words"):
        SharedPage.create(path, 2, 0, values=[1, 2, 3])
    with pytest.raises(errors.RecordTooLargeError):
        SharedPage.create(path, 2, 5, document=b"six by")
    assert SharedPage.open(path).read() == (8, b"next")


# --- files ------------------------------------------------------------------------------------------------------------


def test_what_is_no_page_is_refused(path: str) -> None:
    with pytest.raises(errors.StorageError) as missing:
        SharedPage.open(path)
    assert missing.value.errno == errno.ENOENT
    SharedPage.create(path, 3, 100).close()
    content = Path(path).read_bytes()
    for damaged, message in (
        (b"", "has 0 bytes"),
        (content[:100], "has 100 bytes"),
        (b"not fast" + content[8:], "does not begin"),
        (content[:8] + b"\2" + content[9:], "layout 2, this fastlog knows 1"),
        (content[:16] + b"\4\2" + content[18:], "516 words"),
        (content[:24] + b"\0" * 7 + b"\x80" + content[32:], "not what 3 words"),
        (content[:-1], "has 4095 bytes"),
        (content + b"\0", "has 4097 bytes"),
    ):
        Path(path).write_bytes(damaged)
        with pytest.raises(errors.UnsupportedFormatError, match=message):
            SharedPage.open(path)


def test_a_size_of_the_document_that_cannot_be_is_an_error(path: str) -> None:
    page = SharedPage.create(path, 0, 64)
    with Path(path).open("r+b") as file:
        file.seek(128)
        file.write(b"\xff" * 8)
    with pytest.raises(errors.UnsupportedFormatError, match="document has -1 bytes, its largest is 64"):
        page.read()


@pytest.mark.parametrize(("words", "capacity"), [(-1, 0), (0, -1), (1 << 25, 0), (0, 1 << 31)])
def test_sizes_have_limits(path: str, words: int, capacity: int) -> None:
    with pytest.raises(ValueError, match="a page has 0 to"):
        SharedPage.create(path, words, capacity)


def test_a_page_has_no_holes(path: str) -> None:
    """Touching a hole when the disk is full would be a signal, not an error."""
    SharedPage.create(path, 10_000, 1 << 20)
    status = Path(path).stat()
    assert status.st_blocks * 512 >= status.st_size


@pytest.mark.parametrize("call", ["open", "pwrite", "rename"])
def test_a_page_that_cannot_be_made_leaves_the_old_one(path: str, call: str) -> None:
    SharedPage.create(path, 1, 10, values=[42])
    oscalls.inject(call, errno.ENOSPC)
    with pytest.raises(errors.StorageFullError):
        SharedPage.create(path, 1000, 1000)
    oscalls.clear()
    assert [name.name for name in Path(path).parent.iterdir()] == ["page"]
    assert SharedPage.open(path).load(0) == 42


def test_a_full_file_system_fills_no_page(path: str) -> None:
    page = SharedPage.create(path, 1, 10)
    oscalls.inject("mmap", errno.ENOMEM)
    with pytest.raises(errors.StorageError, match="could not map"):
        SharedPage.open(path)
    oscalls.clear()
    assert page.load(0) == 0


def make_sure(connection: Connection, path: str) -> None:
    connection.send("ready")
    connection.recv()
    for number in range(200):
        SharedPage.ensure(f"{path}-{number}", 1, 0).add(0, 1)


def test_one_page_though_all_make_it_at_once(path: str) -> None:
    with crew() as start:
        workers = [start(make_sure, path) for _ in range(3)]
        for worker in workers:
            worker.answer()
        for worker in workers:
            worker.tell("go")
        assert [worker.join() for worker in workers] == [0, 0, 0]
    assert [SharedPage.open(f"{path}-{number}").load(0) for number in range(200)] == [3] * 200
    assert not list(Path(path).parent.glob("*.tmp"))


def test_whoever_makes_a_page_first_has_made_it(path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Somebody makes it between the look and the making."""
    first = SharedPage.create(path, 1, 10, values=[42])
    monkeypatch.setattr(oscalls, "identity", lambda path: None)
    assert SharedPage.ensure(path, 1, 10).load(0) == 42
    monkeypatch.undo()
    assert first.is_current()
    assert [name.name for name in Path(path).parent.iterdir()] == ["page"]


def test_a_page_for_reading_refuses_changes_but_sees_them(path: str) -> None:
    ours = SharedPage.create(path, 1, 10)
    Path(path).chmod(0o400)
    theirs = SharedPage.open(path, writable=False)
    for change in (
        lambda: theirs.store(0, 1),
        lambda: theirs.add(0, 1),
        lambda: theirs.exchange(0, 1),
        lambda: theirs.publish(b""),
        theirs.retire,
    ):
        with pytest.raises(errors.StorageError, match="opened for reading"):
            change()
    ours.store(0, 9)
    assert theirs.load(0) == 9
    assert not theirs.wait(0, 20)
    ours.publish(b"seen")
    assert theirs.wait(0, 20)
    assert theirs.read() == (1, b"seen")


# --- replacing --------------------------------------------------------------------------------------------------------


def test_a_retired_page_holds_no_condition(path: str) -> None:
    ours, theirs = SharedPage.create(path, 100, 10, values=[5, 6]), SharedPage.open(path)
    assert theirs.is_current()
    larger = SharedPage.create(path, 200, 20, values=ours.load_many(0, 100), version=ours.version + 1)
    assert not theirs.is_current() and not theirs.replaced
    ours.retire()
    ours.retire()
    assert theirs.replaced and theirs.load_many(0, 100) == [RETIRED] * 100
    again = SharedPage.open(path)
    assert again.is_current() and not again.replaced and not larger.replaced
    assert again.load_many(0, 3) == [5, 6, 0]
    Path(path).unlink()
    assert not again.is_current()


def test_retiring_wakes_who_waits(path: str) -> None:
    """At once: nobody sleeps for another slice, each time."""
    spans = []
    for _ in range(6):
        page, moments = SharedPage.create(path, 1, 10), list[int]()
        other = SharedPage.open(path)

        def retire(other: SharedPage = other, moments: list[int] = moments) -> None:
            moments.append(oscalls.steady_clock())
            other.retire()

        timer = threading.Timer(0.06, retire)
        timer.start()
        assert page.wait(0, 30_000)
        spans.append(oscalls.steady_clock() - moments[0])
        assert page.replaced
        timer.join()
    # woken by the end of its slice it would come after about 40 ms
    assert min(spans) < 20, spans


def test_after_close(path: str) -> None:
    page = SharedPage.create(path, 1, 10)
    page.close()
    page.close()
    assert page.closed
    for use in (
        page.read,
        page.retire,
        page.is_current,
        lambda: page.load(0),
        lambda: page.wait(0, 1),
        lambda: page.version,
    ):
        with pytest.raises(errors.ClosedError, match="was closed"):
            use()
    assert SharedPage.open(path).read() == (0, b"")


def test_closing_ends_a_wait(path: str) -> None:
    page = SharedPage.create(path, 1, 10)
    timer = threading.Timer(0.1, page.close)
    timer.start()
    with pytest.raises(errors.ClosedError):
        page.wait(0, 30_000)
    timer.join()


def test_a_forked_child_may_not_use_it(path: str) -> None:
    page = SharedPage.create(path, 1, 10)
    pid = os.fork()
    if pid == 0:
        code = 0
        for use in (page.read, lambda: page.load(0), lambda: page.store(0, 1), lambda: page.publish(b"x"), page.retire):
            try:
                use()
            except errors.ForkedHandleError:
                continue
            code = 1
        page.close()
        SharedPage.open(path).add(0, 3)
        os._exit(code)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    assert page.load(0) == 3 and page.read() == (0, b"")


# --- death ------------------------------------------------------------------------------------------------------------


def die_at(connection: Connection, path: str, failpoint: str) -> None:
    page = SharedPage.open(path)
    oscalls.arm(failpoint)
    if failpoint == "page.retiring":
        page.retire()
    page.publish(b"B" * 5000)


@pytest.mark.parametrize("failpoint", FAILPOINTS)
def test_killed_at_a_step(path: str, failpoint: str) -> None:
    page = SharedPage.create(path, 2, 5000, document=b"first")
    page.publish(b"A" * 4000)
    with crew() as start:
        victim = start(die_at, path, failpoint)
        victim.join()
        assert victim.was_killed
    is_out = failpoint == "page.published"
    assert page.read() == ((2, b"B" * 5000) if is_out else (1, b"A" * 4000))
    assert not page.replaced
    assert page.load_many(0, 2) == ([RETIRED] * 2 if failpoint == "page.retiring" else [0, 0])
    # the heir goes on
    assert page.publish(b"C" * 4999) == page.version
    assert page.read()[1] == b"C" * 4999
    page.retire()
    assert page.replaced


def test_every_failpoint_of_a_page_has_a_test() -> None:
    assert {name for name in oscalls.FAILPOINTS if name.startswith("page.")} == {*FAILPOINTS, *STOPS}


# --- hunts ------------------------------------------------------------------------------------------------------------


def publish_on(connection: Connection, path: str, seed: int) -> None:
    """Publishes under a lock, as callers do, until it is killed; half of the processes die by a failpoint."""
    page, chance = SharedPage.open(path), random.Random(seed)
    lock = oscalls.open_file(f"{path}.lock", writable=True, create=True)
    connection.send("ready")
    if seed % 2:
        oscalls.arm(chance.choice(FAILPOINTS[:3]), "kill", chance.randrange(1, 3000))
    while True:
        while not oscalls.try_lock(lock):
            time.sleep(0)
        page.publish(document_of(page.version + 1, chance.randrange(LARGEST)))
        oscalls.unlock(lock)


def read_on(connection: Connection, path: str, seconds: float) -> None:
    """Sends how many documents it read, or the first that cannot have been published."""
    page, stop, last, count = SharedPage.open(path), time.monotonic() + seconds, 0, 0
    while time.monotonic() < stop:
        version, document = page.read()
        if version < last or document != document_of(version, len(document)):
            connection.send((version, last, document))
            return
        last, count = version, count + 1
    connection.send(count)


def test_no_reader_sees_pieces_of_two_documents(path: str, seed: int) -> None:
    chance, deaths = random.Random(seed), 0
    page = SharedPage.create(path, 0, LARGEST)
    with crew() as start:
        readers = [start(read_on, path, 2.0) for _ in range(2)]
        publishers = [start(publish_on, path, chance.randrange(1 << 30)) for _ in range(2)]
        stop = time.monotonic() + 2
        while time.monotonic() < stop:
            time.sleep(chance.uniform(0.1, 0.5))
            number = chance.randrange(2)
            if not deaths or not publishers[number].process.is_alive() or chance.random() < 0.3:
                publishers[number].kill()
                publishers[number] = start(publish_on, path, chance.randrange(1 << 30))
                deaths += 1
            version, document = page.read()
            assert document == document_of(version, len(document))
        counts = [reader.answer() for reader in readers]
    assert all(isinstance(count, int) and count > 100 for count in counts), counts
    assert deaths > 0 and page.version > 300


def wait_and_stop(connection: Connection, path: str, rounds: int) -> None:
    """Stop just before each sleep, and send how long the rest took, in milliseconds."""
    page = SharedPage.open(path)
    for number in range(rounds):
        oscalls.arm("page.waiting", "stop")
        connection.send("waiting")
        stopped = page.wait(number, 10_000)
        connection.send((stopped, oscalls.steady_clock()))


def test_a_document_published_just_before_the_sleep_ends_it(path: str) -> None:
    """A waiter that nobody knows of would sleep for a whole slice, each time."""
    page, spans = SharedPage.create(path, 0, 0), list[int]()
    with crew() as start:
        waiter = start(wait_and_stop, path, 10)
        for _ in range(10):
            assert waiter.answer() == "waiting"
            wait_until_stopped(waiter.pid)
            page.publish(b"")
            begun = oscalls.steady_clock()
            os.kill(waiter.pid, signal.SIGCONT)
            has_moved, ended = waiter.answer()
            assert has_moved
            spans.append(ended - begun)
    assert min(spans) < 45, spans


def answer_pings(connection: Connection, there: str, back: str, rounds: int) -> None:
    incoming, outgoing = SharedPage.open(there), SharedPage.open(back)
    for number in range(rounds):
        while not incoming.wait(number, 10_000):
            pass
        outgoing.publish(b"")


def test_no_wake_up_is_lost(path: str) -> None:
    """A lost one would be noticed after a slice of 50 ms; a few take that long because the machine is busy."""
    rounds = 20_000 if oscalls.has_futex() else 2_000
    there, back = SharedPage.create(f"{path}-there", 0, 0), SharedPage.create(f"{path}-back", 0, 0)
    with crew() as start:
        other = start(answer_pings, there.path, back.path, rounds)
        slow = 0
        for number in range(rounds):
            there.publish(b"")
            begun = oscalls.steady_clock()
            while not back.wait(number, 10_000):
                pass
            slow += number > 0 and oscalls.steady_clock() - begun >= 49
        assert other.join() == 0
    assert slow < rounds / 100, f"{slow} of {rounds} rounds took a slice or more"


def test_signals_end_a_wait(path: str) -> None:
    page = SharedPage.create(path, 0, 0)

    class Rung(Exception):
        pass

    def ring(*_: object) -> None:
        raise Rung

    before = signal.signal(signal.SIGALRM, ring)
    try:
        signal.setitimer(signal.ITIMER_REAL, 0.1)
        with pytest.raises(Rung):
            page.wait(0, 30_000)
    finally:
        signal.signal(signal.SIGALRM, before)
