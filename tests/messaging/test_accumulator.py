"""Producers when things go wrong: full disks, locks, deaths, forks; and every record against the reference decoder."""

from __future__ import annotations

import os
import random
import resource
import signal
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Iterator
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import fastlog
from fastlog._native import oscalls
from fastlog.clients.producer import Producer
from fastlog.errors import (
    BufferFullError,
    ClosedError,
    DeliveryTimeoutError,
    ForkedHandleError,
    StorageError,
    StorageFullError,
)
from fastlog.store.directory import Directory
from tests import strategies
from tests.forking import wait_until_stopped
from tests.messaging.processes import crew
from tests.reference.batch import decode_log

ENOSPC, EIO = 28, 5


@pytest.fixture
def store(folder: Path) -> Iterator[Directory]:
    with Directory.open(folder / "store", durability="os") as opened:
        opened.create_topic("one", partitions=1)
        opened.create_topic("orders", partitions=4)
        yield opened


def values(store: Directory, topic: str, partition: int = 0) -> list[bytes | None]:
    return [record.value for record in store.partition_log(topic, partition).records()]


def batches(store: Directory, topic: str, partition: int = 0) -> list[Any]:
    """What the reference decoder makes of the partition's segments."""
    segments = sorted(Path(store.partition_log(topic, partition).path).glob("*.log"))
    return [batch for path in segments for _, batch in decode_log(path.read_bytes())]


# --- the bytes --------------------------------------------------------------------------------------------------------


@settings(max_examples=30)
@given(
    records=st.lists(
        st.tuples(strategies.content, strategies.content, strategies.headers, strategies.timestamps), max_size=40
    ),
    batch_size=st.sampled_from([100, 500, 3000, 1 << 20]),
    buffer_memory=st.sampled_from([16 << 10, 1 << 20]),
    at_once=st.booleans(),
)
def test_every_record_against_the_reference(
    tmp_path_factory: pytest.TempPathFactory, records: Any, batch_size: int, buffer_memory: int, at_once: bool
) -> None:
    folder = tmp_path_factory.mktemp("store")
    with Directory.open(folder / "s", durability="os") as store:
        store.create_topic("one")
        with Producer(store, batch_size=batch_size, buffer_memory=buffer_memory) as producer:
            if at_once:
                producer.send_many(
                    "one",
                    [value for _, value, _, _ in records],
                    keys=[key for key, _, _, _ in records],
                    headers=[headers for _, _, headers, _ in records],
                    timestamps=[timestamp for _, _, _, timestamp in records],
                )
            else:
                for key, value, headers, timestamp in records:
                    producer.send("one", value, key=key, headers=headers, timestamp=timestamp)
        found = batches(store, "one") if records else []
        assert [(r.key, r.value, r.headers, r.timestamp) for batch in found for r in batch.records] == records
        assert [r.offset for batch in found for r in batch.records] == list(range(len(records)))
        sequence = 0
        for batch in found:
            assert batch.base_sequence == sequence
            assert 1 << 40 <= batch.producer_id < 1 << 62
            assert batch.producer_epoch == 0
            sequence += len(batch.records)
            if len(batch.records) > 1:
                assert len(batch_bytes(batch)) <= batch_size
        assert store.partition_log("one", 0).verify().ok


def batch_bytes(batch: Any) -> bytes:
    from tests.reference.batch import encode_batch

    return encode_batch(batch)


@pytest.mark.parametrize("extra", range(-2, 3))
def test_sizes_around_the_limit_of_a_batch(store: Directory, extra: int) -> None:
    """Two records that just fit together, and that just do not."""
    limit = 400
    # attributes, two deltas, null key, no headers: 5 bytes; the lengths of body and value take 2 each
    size = (limit - 61) // 2 - 9
    with Producer(store, linger=60, batch_size=limit) as producer:
        producer.send("one", b"a" * size)
        producer.send("one", b"b" * (size + (limit - 61) % 2 + extra))
    assert len(batches(store, "one")) == (1 if extra <= 0 else 2)


def test_sequence_numbers_go_on_in_each_partition(store: Directory) -> None:
    with Producer(store, batch_size=200) as producer:
        for i in range(300):
            producer.send("orders", b"%d" % i, partition=i % 3)
        producer.flush()
        producer.send_many("orders", [b"x"] * 50, partition=1)
    for partition, expected in enumerate([100, 150, 100]):
        sequence = 0
        for batch in batches(store, "orders", partition):
            assert batch.base_sequence == sequence
            sequence += len(batch.records)
        assert sequence == expected


# --- repetition -------------------------------------------------------------------------------------------------------


def test_an_append_that_is_repeated_is_stored_once(store: Directory) -> None:
    """Exactly as often as it was sent: the largest append that there is, of five batches, too."""
    with Producer(store, linger=60, batch_size=300) as producer:
        for i in range(10):
            producer.send("one", b"%d" % i + b"x" * 100)
        producer.flush()
        assert producer.counts()["appends"] == 1
        for i in range(12):
            producer.send("orders", b"%d" % i + b"x" * 100, partition=0)
        producer.flush()
        assert producer.counts()["appends"] == 3, "a sixth batch would be one too many to be remembered"
    log = store.partition_log("one", 0)
    content = (Path(log.path) / f"{0:020d}.log").read_bytes()
    assert len(batches(store, "one")) == 5
    assert log.append_batch(content) == 0
    assert log.end_offset == 10


# --- a full disk ------------------------------------------------------------------------------------------------------


def test_a_full_disk_fails_a_batch_and_the_next_goes_on(store: Directory) -> None:
    with Producer(store, linger=60) as producer:
        producer.send("one", b"before")
        producer.flush()
        oscalls.inject("pwrite", ENOSPC)
        failed = [producer.send("one", b"lost"), producer.send("one", b"lost")]
        with pytest.raises(StorageFullError):
            producer.flush()
        assert all(isinstance(delivery.exception(), StorageFullError) for delivery in failed)
        with pytest.raises(StorageFullError):
            failed[1].result()
        producer.flush()
        assert producer.send_many("one", [b"after"]).result is not None
        producer.flush()
    assert values(store, "one") == [b"before", b"after"]
    assert [batch.base_sequence for batch in batches(store, "one")] == [0, 1], "what failed takes no sequence number"


def test_a_failure_that_nobody_looked_at_is_raised_by_close(store: Directory) -> None:
    producer = Producer(store, linger=60)
    producer.send("one", b"lost")
    oscalls.inject("pwrite", ENOSPC)
    with pytest.raises(StorageFullError):
        producer.close()
    producer.close()


def test_a_failure_that_somebody_looked_at_is_not_raised_again(store: Directory) -> None:
    with Producer(store, linger=60) as producer:
        delivery = producer.send("one", b"lost")
        oscalls.inject("pwrite", ENOSPC)
        producer.wait_until_sent()
        assert isinstance(delivery.exception(), StorageFullError)


def test_looking_at_one_of_two_failures_is_not_enough(store: Directory) -> None:
    with Producer(store, linger=60) as producer:
        seen, _ = producer.send("one", b"lost"), producer.send("one", b"lost too")
        oscalls.inject("pwrite", ENOSPC)
        producer.wait_until_sent()
        assert seen.exception() is not None
        with pytest.raises(StorageFullError):
            producer.flush()


def limited(connection: Connection, root: str) -> None:
    """A process whose files may not grow beyond 100,000 bytes."""
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    with Directory.open(root, durability="os") as store:
        store.create_topic("full")
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, resource.RLIM_INFINITY))
        producer = Producer(store, batch_size=8000)
        sent = [producer.send("full", b"%06d" % i + b"x" * 94) for i in range(3000)]
        producer.wait_until_sent()
        failures = [type(delivery.exception()).__name__ for delivery in sent]
        resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
        after = producer.send("full", b"after").result().offset
        producer.close()
        connection.send((failures, after, values(store, "full")))


def test_a_file_size_limit(folder: Path) -> None:
    with crew() as start:
        worker = start(limited, str(folder / "store"))
        failures, after, found = worker.answer()
    delivered = [i for i, name in enumerate(failures) if name == "NoneType"]
    assert set(failures) == {"NoneType", "StorageFullError"}
    assert found == [b"%06d" % i + b"x" * 94 for i in delivered] + [b"after"]
    assert after == len(delivered)


def test_a_sync_that_fails_fails_the_delivery(folder: Path) -> None:
    with Directory.open(folder / "store", durability="group") as store:
        store.create_topic("one")
        producer = Producer(store, linger=60)
        producer.send("one", b"a")
        producer.flush()
        delivery = producer.send("one", b"b")
        oscalls.inject("fdatasync", EIO)
        with pytest.raises(StorageError):
            producer.flush()
        assert isinstance(delivery.exception(), StorageError)
        producer.close()


# --- back-pressure ----------------------------------------------------------------------------------------------------


class Stalled:
    """Stops the drain of a producer: inside of a callback."""

    def __init__(self, producer: Producer) -> None:
        self.go_on = threading.Event()
        self.reached = threading.Event()
        delivery = producer.send("one", b"stall")
        delivery.add_done_callback(self.stop)
        threading.Thread(target=producer.wait_until_sent, daemon=True).start()
        assert self.reached.wait(10)

    def stop(self, _: Any) -> None:
        self.reached.set()
        self.go_on.wait(60)


def test_send_blocks_while_the_buffer_is_full_and_then_gives_up(store: Directory) -> None:
    producer = Producer(store, buffer_memory=20_000, max_block=0.2)
    stalled = Stalled(producer)
    begun = time.monotonic()
    with pytest.raises(BufferFullError, match="buffer_memory=20000"):
        for _ in range(1000):
            producer.send("one", b"x" * 1000)
    assert 0.2 <= time.monotonic() - begun < 10
    assert producer.buffered_bytes <= 20_000
    with pytest.raises(BufferFullError, match="buffer_memory") as caught:
        producer.send_many("one", [b"y" * 1000] * 10)
    assert caught.value.__notes__ == ["0 of 10 records had been sent before"]
    stalled.go_on.set()
    producer.send("one", b"z")
    producer.close()
    assert values(store, "one")[-1] == b"z"
    assert producer.buffered_bytes == 0


def test_a_blocked_send_goes_on_when_there_is_room(store: Directory) -> None:
    producer = Producer(store, buffer_memory=20_000)
    stalled = Stalled(producer)
    sender = threading.Thread(target=lambda: [producer.send("one", b"x" * 1000) for _ in range(100)])
    sender.start()
    sender.join(0.2)
    assert sender.is_alive()
    stalled.go_on.set()
    sender.join(20)
    assert not sender.is_alive()
    producer.close()
    assert len(values(store, "one")) == 101


def test_close_from_another_thread_ends_a_blocked_send(store: Directory) -> None:
    producer = Producer(store, buffer_memory=20_000)
    stalled = Stalled(producer)
    caught: list[BaseException] = []
    sent = 0

    def send() -> None:
        nonlocal sent
        try:
            while True:
                producer.send("one", b"x" * 1000)
                sent += 1
        except ClosedError as error:
            caught.append(error)

    sender = threading.Thread(target=send)
    sender.start()
    sender.join(0.2)
    closer = threading.Thread(target=producer.close)
    closer.start()
    sender.join(10)
    assert len(caught) == 1
    stalled.go_on.set()
    closer.join(10)
    assert not closer.is_alive()
    assert len(values(store, "one")) == 1 + sent


def test_close_with_a_timeout_fails_what_was_not_sent(store: Directory) -> None:
    producer = Producer(store, linger=60)
    stalled = Stalled(producer)
    late = producer.send("one", b"late")
    with pytest.raises(DeliveryTimeoutError):
        producer.flush(timeout=0.05)
    with pytest.raises(ClosedError, match="timeout"):
        producer.close(timeout=0.1)
    assert isinstance(late.exception(), ClosedError)
    stalled.go_on.set()
    producer.close()
    assert values(store, "one") == [b"stall"]


def test_ctrl_c_ends_a_wait(store: Directory) -> None:
    with Producer(store, linger=60) as producer:
        delivery = producer.send("one", b"v")
        timer = threading.Timer(0.1, os.kill, (os.getpid(), signal.SIGINT))
        timer.start()
        begun = time.monotonic()
        with pytest.raises(KeyboardInterrupt):
            delivery.result()
        assert time.monotonic() - begun < 5
        timer.join()


# --- locks ------------------------------------------------------------------------------------------------------------


def hold_lock(connection: Connection, root: str) -> None:
    """Stops itself in an append, with the writer lock."""
    with Directory.open(root, durability="os") as store:
        oscalls.arm("append.locked", "stop")
        connection.send("ready")
        store.partition_log("one", 0).append([b"of the stopped"])
        connection.send("done")


def test_a_locked_log_is_tried_again(folder: Path) -> None:
    root = folder / "store"
    with Directory.open(root, durability="os", lock_timeout=0.05) as store, crew() as start:
        store.create_topic("one")
        store.create_topic("other")
        producer = Producer(store, delivery_timeout=30)
        producer.send("one", b"a").result()
        worker = start(hold_lock, str(root))
        worker.answer()
        wait_until_stopped(worker.pid)
        delivery = producer.send("one", b"b")
        assert producer.send("other", b"c").result(20).offset == 0, "other partitions go on"
        assert not delivery.done()
        os.kill(worker.pid, signal.SIGCONT)
        assert delivery.result(30).offset == 2
        producer.close()
        assert values(store, "one") == [b"a", b"of the stopped", b"b"]


def test_a_locked_log_fails_after_the_delivery_timeout(folder: Path) -> None:
    root = folder / "store"
    with Directory.open(root, durability="os", lock_timeout=0.05) as store, crew() as start:
        store.create_topic("one")
        producer = Producer(store, delivery_timeout=0.3)
        producer.send("one", b"a").result()
        worker = start(hold_lock, str(root))
        worker.answer()
        wait_until_stopped(worker.pid)
        delivery = producer.send("one", b"b")
        with pytest.raises(DeliveryTimeoutError, match="delivery_timeout") as caught:
            delivery.result(30)
        assert isinstance(caught.value.__cause__, fastlog.LockedError)
        os.kill(worker.pid, signal.SIGCONT)
        assert worker.answer() == "done"
        assert producer.send("one", b"c").result(30).offset == 2
        producer.close()


# --- threads and processes --------------------------------------------------------------------------------------------


def test_many_threads_send_through_one_producer(store: Directory) -> None:
    def send(number: int) -> None:
        for i in range(2000):
            if i % 100 == 99:
                producer.send_many("one", [b"%d:%d" % (number, i)])
            else:
                producer.send("one", b"%d:%d" % (number, i))

    with Producer(store, batch_size=2000, buffer_memory=50_000) as producer:
        threads = [threading.Thread(target=send, args=(number,)) for number in range(6)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    found = [value.split(b":") for value in values(store, "one") if value is not None]
    assert len(found) == 12_000
    for number in range(6):
        assert [int(i) for n, i in found if int(n) == number] == list(range(2000))


def produce(connection: Connection, root: str, name: bytes, count: int) -> None:
    with Directory.open(root, durability="os") as store, Producer(store) as producer:
        sent = [producer.send("one", b"%s:%d" % (name, i)) for i in range(count)]
        producer.flush()
        connection.send([delivery.result().offset for delivery in sent])


def test_producers_in_several_processes(folder: Path) -> None:
    root = folder / "store"
    with Directory.open(root, durability="os") as store, crew() as start:
        store.create_topic("one")
        workers = [start(produce, str(root), b"abc"[i : i + 1], 3000) for i in range(3)]
        offsets = [worker.answer() for worker in workers]
        found = values(store, "one")
        assert len(found) == 9000
        for number, mine in enumerate(offsets):
            assert mine == sorted(mine)
            assert [found[offset] for offset in mine] == [
                b"%s:%d" % (b"abc"[number : number + 1], i) for i in range(3000)
            ]


def produce_for_ever(connection: Connection, root: str, durability: str) -> None:
    """Tells of each delivery that was resolved."""
    with Directory.open(root, durability=durability) as store:
        producer = Producer(store, batch_size=2000)
        connection.send("ready")
        number = 0
        while True:
            sent = [producer.send("one", b"%d" % (number + i)) for i in range(50)]
            number += 50
            connection.send_bytes(b"%d %d" % (sent[-1].result().offset, number - 1))


@pytest.mark.parametrize("durability", ["os", "group"])
def test_a_killed_producer_loses_nothing_that_was_delivered(folder: Path, seed: int, durability: str) -> None:
    source = random.Random(seed)
    root = folder / "store"
    with Directory.open(root, durability=durability) as store, crew() as start:
        store.create_topic("one")
        begin = 0
        for _ in range(3):
            worker = start(produce_for_ever, str(root), durability)
            worker.answer()
            time.sleep(source.uniform(0.02, 0.3))
            worker.kill()
            told = []
            try:
                while worker.connection.poll(0):
                    told.append([int(part) for part in worker.connection.recv_bytes().split()])
            except EOFError:
                pass
            log = store.partition_log("one", 0)
            log.append([b"mark"])
            found = [int(value or b"0") for value in values(store, "one")[begin:-1]]
            assert found == list(range(len(found))), "each once, in order, nothing in between"
            for offset, number in told:
                assert found[offset - begin] == number
            begin = log.end_offset


# --- the end of the process -------------------------------------------------------------------------------------------

UNCLOSED = """
    import sys, threading, time
    from fastlog.clients.producer import Producer
    from fastlog.store.directory import Directory
    store = Directory.open(sys.argv[1], durability="os")
    producer = Producer(store, linger=60)
    for i in range(1000):
        producer.send("one", b"%d" % i)
"""
LATER = """
    def later():
        time.sleep(0.3)
        for i in range(1000, 1010):
            producer.send("one", b"%d" % i)
    threading.Thread(target=later).start()
"""
ENDS = {
    "returns": ("", 0, 1000),
    "sys.exit": ("    sys.exit(3)\n", 3, 1000),
    "raises": ("    raise ValueError\n", 1, 1000),
    "a thread goes on": (LATER, 0, 1010),
}


@pytest.mark.parametrize("end", ENDS)
def test_a_process_that_ends_without_close_delivers(store: Directory, end: str) -> None:
    more, code, expected = ENDS[end]
    program = textwrap.dedent(UNCLOSED + more)
    done = subprocess.run(
        [sys.executable, "-c", program, str(store.root)], timeout=60, capture_output=True, text=True, check=False
    )
    assert done.returncode == code, done.stderr
    assert values(store, "one") == [b"%d" % i for i in range(expected)]


def send_and_return(connection: Connection, root: str) -> None:
    store = Directory.open(root, durability="os")
    producer = Producer(store, linger=60)
    producer.send("one", b"of the worker")


def test_a_worker_of_multiprocessing_delivers(store: Directory) -> None:
    with crew() as start:
        assert start(send_and_return, str(store.root)).join() == 0
    assert values(store, "one") == [b"of the worker"]


# --- fork -------------------------------------------------------------------------------------------------------------


def in_child(work: Any) -> str:
    """What a forked child finds out."""
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            try:
                told = repr(work())
            except BaseException as error:
                told = type(error).__name__
            os.write(writer, told.encode())
        finally:
            os._exit(0)
    os.close(writer)
    with os.fdopen(reader, "rb") as pipe:
        told = pipe.read().decode()
    os.waitpid(pid, 0)
    return told


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_forked_child_cannot_use_the_producer_and_sends_nothing(store: Directory) -> None:
    producer = Producer(store, linger=60)
    delivery = producer.send("one", b"a")
    name = ForkedHandleError.__name__
    assert in_child(lambda: producer.send("one", b"b")) == name
    assert in_child(lambda: producer.send_many("one", [b"b"])) == name
    assert in_child(producer.flush) == name
    assert in_child(delivery.result) == name
    assert in_child(producer.close) == "None"
    producer.close()
    assert values(store, "one") == [b"a"]
