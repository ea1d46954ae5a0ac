"""Threads that meet where no GIL is held: encoding and writing, syncing, decoding, waiting, draining, and a close.

What they are told is checked here; what they do to each other's memory, ``scripts/sanitize --thread`` looks at.
"""

from __future__ import annotations

import contextlib
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import fastlog
from fastlog._core import Bells, SharedPage
from fastlog._native import oscalls

ROUNDS = int(os.environ.get("FASTLOG_THREAD_ROUNDS", "40"))
VALUES = [b"v" * 3000] * 20


@pytest.fixture(autouse=True)
def _take_turns_often() -> Iterator[None]:
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    yield
    sys.setswitchinterval(before)


def run_all(*actions: Callable[[], object]) -> None:
    """Each action in a thread; the first error of any is raised."""
    failures: list[BaseException] = []

    def run(action: Callable[[], object]) -> None:
        try:
            action()
        except BaseException as failure:  # noqa: BLE001 - raised below
            failures.append(failure)

    threads = [threading.Thread(target=run, args=(action,), daemon=True) for action in actions]
    for thread in threads:
        thread.start()
    deadline = time.monotonic() + 120
    while any(thread.is_alive() for thread in threads) and not failures and time.monotonic() < deadline:
        time.sleep(0.001)
    # whoever waits for one that failed would wait for ever
    if failures:
        raise failures[0]
    assert not any(thread.is_alive() for thread in threads), "a thread hangs"


def open_log(path: Path, durability: str, **options: Any) -> Any:
    config = fastlog.LogConfig(segment_bytes=1_000_000, max_message_bytes=200_000, index_interval_bytes=300)
    return fastlog.PartitionLog.open(path, durability=durability, config=config, **options)


@pytest.mark.parametrize("durability", ["os", "group", "batch", "interval"])
@pytest.mark.parametrize("handles", [1, 2])
def test_writers_readers_and_waiters(folder: Path, durability: str, handles: int) -> None:
    """Every reader sees the records of every writer, in its order."""
    writers = 3
    total = writers * ROUNDS * len(VALUES)
    with contextlib.ExitStack() as stack:
        logs = [stack.enter_context(open_log(folder / "events-0", durability)) for _ in range(handles)]

        def write(number: int) -> None:
            for i in range(ROUNDS):
                logs[number % handles].append(VALUES, keys=[b"%d:%d" % (number, i)] * len(VALUES), timestamps=i)

        def read(log: Any) -> None:
            position, seen = 0, [0] * writers
            while position < total:
                assert log.wait(position, 30)
                batch = log.read(position)
                for key in batch.keys.to_list()[:: len(VALUES)]:
                    writer, i = map(int, key.split(b":"))
                    assert i >= seen[writer]
                    seen[writer] = i
                position = batch.next_offset
            assert seen == [ROUNDS - 1] * writers

        def look(log: Any) -> None:
            while log.end_offset < total:
                log.offset_for_time(ROUNDS // 2)
                log.flush()
                assert log.durable_offset <= log.end_offset
                log.segments()

        run_all(
            *[lambda number=number: write(number) for number in range(writers)],
            *[lambda log=log: read(log) for log in [*logs, logs[0]]],
            lambda: look(logs[-1]),
        )
        assert logs[0].end_offset == total
        assert logs[0].verify().ok


@pytest.mark.parametrize("durability", ["os", "group"])
@pytest.mark.parametrize("turn", range(max(3, ROUNDS // 10)))
def test_a_close_while_others_use_it(folder: Path, durability: str, turn: int) -> None:
    """Whoever comes too late is told that it is closed; what was acknowledged before is there."""
    log = open_log(folder / "events-0", durability)
    log.append(VALUES)
    acknowledged = len(VALUES)

    def until_closed(action: Callable[[], object]) -> None:
        with contextlib.suppress(fastlog.ClosedError):
            while True:
                action()

    def read() -> None:
        assert set(log.read(log.readable_offset - 5).values.to_list()) == {VALUES[0]}

    def append() -> None:
        nonlocal acknowledged
        acknowledged = log.append(VALUES) + len(VALUES)

    def close() -> None:
        time.sleep(0.004 * turn)
        log.close()

    run_all(
        lambda: until_closed(append),
        lambda: until_closed(read),
        lambda: until_closed(lambda: log.wait(log.end_offset, 0.01)),
        lambda: until_closed(log.flush),
        close,
    )
    with open_log(folder / "events-0", durability) as again:
        assert again.recovery is None
        assert again.end_offset >= acknowledged


def test_one_producer_and_its_deliveries(folder: Path) -> None:
    """Sent by some threads, appended by one, told to others; a consumer wakes up meanwhile."""
    senders, told = 3, []
    with fastlog.open(folder / "store", durability="group") as store:
        store.create_topic("orders", partitions=4)
        with store.producer(compression="lz4") as producer:

            def send(number: int) -> None:
                for i in range(ROUNDS * 5):
                    delivery = producer.send("orders", b"%d:%d" % (number, i), key=b"%d" % number)
                    if i % 7 == 0:
                        delivery.add_done_callback(told.append)
                    if i % 50 == 0:
                        delivery.result(30)
                    if i % 20 == 0:
                        producer.send_many("orders", VALUES, partition=i % 4)
                    if i % 90 == 0:
                        producer.flush()

            def read() -> None:
                expected = senders * (ROUNDS * 5 + len(range(0, ROUNDS * 5, 20)) * len(VALUES))
                seen: dict[bytes, int] = {}
                count = 0
                with store.consumer("orders", start="earliest") as consumer:
                    while count < expected:
                        for record in consumer.poll(timeout=30):
                            count += 1
                            if record.key is not None:
                                assert seen.get(record.key, -1) + 1 == int(bytes(record.value).split(b":")[1])
                                seen[record.key] = seen.get(record.key, -1) + 1
                assert sorted(seen) == [b"%d" % number for number in range(senders)]

            run_all(*[lambda number=number: send(number) for number in range(senders)], read, read)
    assert len(told) == senders * len(range(0, ROUNDS * 5, 7))


def test_one_page_and_its_bells(folder: Path) -> None:
    """A document is read as a whole while it changes; words and bells lose nothing."""
    page = SharedPage.create(str(folder / "page"), words=4, document_bytes=100_000)
    bells = Bells.open(str(folder / "bells"))
    turns, last = ROUNDS * 5, b"%06d" % (ROUNDS * 5) * 10_000

    def publish() -> None:
        for number in range(1, turns + 1):
            page.publish(b"%06d" % number * 10_000)
            bells.ring(number % 4)

    def read(page: Any) -> None:
        document, seen = b"", 0
        while document != last:
            version, document = page.read()
            assert len({document[i : i + 6] for i in range(0, len(document), 6)}) <= 1, "a torn document"
            assert version >= seen
            seen = version
            page.wait(version, 1)

    def listen() -> None:
        waiter = bells.waiter()
        while page.read()[1] != last:
            heard = waiter.listen(0b1111)
            if page.read()[1] != last:
                waiter.sleep(heard, 20)

    def count() -> None:
        for _ in range(turns):
            page.add(0, 1)

    reader = SharedPage.open(str(folder / "page"))
    run_all(publish, lambda: read(page), lambda: read(reader), listen, count, count)
    assert page.load(0) == 2 * turns


def test_faults_that_are_armed_while_others_write(folder: Path) -> None:
    """One call fails and no other, whichever thread comes first."""
    # an index entry that cannot be written is given up in silence: let there be none
    config = fastlog.LogConfig(index_interval_bytes=1 << 30)
    with fastlog.PartitionLog.open(folder / "events-0", durability="os", config=config) as log:
        failed: list[BaseException] = []
        stop = threading.Event()

        def write() -> None:
            while not stop.is_set():
                try:
                    log.append([b"v" * 1000])
                except fastlog.StorageError as error:
                    failed.append(error)

        def arm() -> None:
            try:
                for number in range(1, 11):
                    oscalls.inject("pwrite", errno=28)
                    while len(failed) < number:
                        stop.wait(0.001)
            finally:
                oscalls.clear()
                stop.set()

        run_all(write, write, arm)
        assert len(failed) == 10
        assert log.verify().ok
