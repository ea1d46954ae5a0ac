"""Producers whose threads, serializers and callbacks come at the wrong moment; and with fewer files than partitions."""

from __future__ import annotations

import os
import resource
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from fastlog.clients.producer import DirectoryCatalog, Producer
from fastlog.errors import ClosedError, TransactionError
from fastlog.store.directory import Directory


@pytest.fixture
def store(folder: Path) -> Iterator[Directory]:
    with Directory.open(folder / "store", durability="os") as opened:
        opened.create_topic("orders", partitions=2)
        yield opened


def values(store: Directory, topic: str, partition: int = 0) -> list[bytes | None]:
    return [record.value for record in store.partition_log(topic, partition).records()]


describe = DirectoryCatalog.describe


def describe_slowly(catalog: DirectoryCatalog, topic: str) -> Any:
    """Lets other threads run in the middle of a look at a topic."""
    described = describe(catalog, topic)
    time.sleep(0.1)
    return described


def test_threads_that_meet_at_a_new_topic(store: Directory, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each described the topic for itself and counted from sequence 0: one's records were taken for repetitions."""
    monkeypatch.setattr(DirectoryCatalog, "describe", describe_slowly)
    with Producer(store) as producer:
        offsets = []
        threads = [
            threading.Thread(target=lambda: offsets.append(producer.send("orders", b"v", partition=0).result(5).offset))
            for _ in range(4)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert sorted(offsets) == [0, 1, 2, 3]
    assert values(store, "orders") == [b"v"] * 4


def test_partitions_that_are_added_while_somebody_looks(store: Directory, monkeypatch: pytest.MonkeyPatch) -> None:
    """An old look at a topic that comes last takes nothing away."""
    with Producer(store) as producer:
        producer.send("orders", b"0", partition=0).result(5)
        monkeypatch.setattr(DirectoryCatalog, "describe", describe_slowly)
        store.add_partitions("orders", 3)
        first = threading.Thread(target=lambda: producer.send("orders", b"1", partition=0).result(5))
        first.start()
        time.sleep(0.05)
        store.add_partitions("orders", 4)
        producer.send("orders", b"2", partition=3).result(5)
        first.join()
        producer.send("orders", b"3", partition=0).result(5)
    assert values(store, "orders") == [b"0", b"1", b"3"]
    assert values(store, "orders", 3) == [b"2"]


def test_a_serializer_that_closes_the_producer(store: Directory) -> None:
    """What is sent after the thread has ended would wait for ever."""

    def closing(value: bytes) -> bytes:
        producer.close()
        return value

    producer = Producer(store, value_serializer=closing)
    with pytest.raises(ClosedError):
        producer.send("orders", b"v")


def test_a_serializer_that_ends_the_transaction(store: Directory) -> None:
    """The record would go to the log outside of any transaction."""

    def ending(value: bytes) -> bytes:
        if value == b"late":
            producer.drain_transaction()
            producer.end_transactional()
        return value

    producer = Producer(store, transactional_id="t", value_serializer=ending)
    producer.begin_transactional()
    with pytest.raises(TransactionError):
        producer.send("orders", b"late")
    with pytest.raises(TransactionError):
        producer.send_many("orders", [b"late"])
    producer.close()
    assert values(store, "orders") == []


def test_old_deliveries_keep_nothing_alive(tmp_path: Path) -> None:
    """A chain of all that was sent after them would be freed by as many nested calls: more than a stack has."""
    code = f"""
        import threading
        from fastlog.clients.producer import Producer
        from fastlog.store.directory import Directory
        with Directory.open({str(tmp_path / "store")!r}, durability="os") as store:
            store.create_topic("orders")
            with Producer(store, buffer_memory="64MiB") as producer:
                held = threading.Event()
                producer.send("orders", b"v").add_done_callback(lambda _: held.wait(60))
                deliveries = [producer.send_many("orders", [b"v"]) for _ in range(30_000)]
                first = deliveries[:1]
                del deliveries
                held.set()
                producer.flush()
                threading.stack_size(64 << 10)
                thread = threading.Thread(target=first.clear)
                thread.start()
                thread.join()
        print("done")
    """
    command = [sys.executable, "-c", textwrap.dedent(code)]
    done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout) == (0, "done\n"), done.stderr


@pytest.mark.parametrize("durability", ["os", "group"])
def test_more_partitions_than_files(tmp_path: Path, durability: str) -> None:
    """Logs with nothing to do are given back when too many files are open."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with Directory.open(tmp_path / "store", durability=durability) as store:
        store.create_topic("many", partitions=40)
        # beside those of the tests that ran in this process before
        resource.setrlimit(resource.RLIMIT_NOFILE, (len(os.listdir("/proc/self/fd")) + 70, hard))
        try:
            with Producer(store) as producer:
                deliveries = [producer.send("many", b"v", partition=number) for number in range(40)]
                for delivery in deliveries:
                    delivery.result(60)
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        assert all(values(store, "many", number) == [b"v"] for number in range(40))


def test_a_callback_for_room_that_fails(store: Directory) -> None:
    """The thread goes on delivering."""

    def fail() -> None:
        raise RuntimeError("the event loop is closed")

    with Producer(store, linger="50ms") as producer:
        producer.send("orders", b"v", partition=0)
        producer._when_room(fail)
        producer.flush(5)
        producer.send("orders", b"w", partition=0).result(5)
    assert values(store, "orders") == [b"v", b"w"]


def test_the_end_of_the_interpreter_is_quiet(tmp_path: Path) -> None:
    """Of what is still open nothing is left to say: files were closed by a function whose module was empty by then."""
    code = f"""
        import fastlog, time
        store = fastlog.open({str(tmp_path / "store")!r}, durability="os")
        store.create_topic("orders", partitions=3)
        producer = store.producer()
        for _ in range(100):
            producer.send("orders", b"v")

        def hold(delivery):
            time.sleep(0.1)

        producer.send("orders", b"v").add_done_callback(hold)
    """
    command = [sys.executable, "-c", textwrap.dedent(code)]
    done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr) == (0, "")
