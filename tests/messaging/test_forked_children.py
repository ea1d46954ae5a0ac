"""A child that was forked while another thread held a lock: that thread is not there, and nobody lets go."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

import fastlog
from fastlog.store.directory import Directory
from fastlog.transactions.transactional_id import TransactionalId

ENDED, REFUSED = 0, 7


@contextmanager
def held(*locks: Any) -> Iterator[None]:
    """Another thread is inside of them."""
    inside, over = threading.Event(), threading.Event()

    def hold() -> None:
        for lock in locks:
            lock.acquire()
        inside.set()
        over.wait(30)
        for lock in locks:
            lock.release()

    thread = threading.Thread(target=hold)
    thread.start()
    assert inside.wait(30)
    try:
        yield
    finally:
        over.set()
        thread.join()


def in_child(call: Callable[[], object]) -> int:
    """How a forked child ends that makes this call; minus SIGALRM when it hangs."""
    child = os.fork()
    if not child:
        signal.signal(signal.SIGALRM, signal.SIG_DFL)
        signal.alarm(10)
        try:
            call()
        except fastlog.ForkedHandleError:
            os._exit(REFUSED)
        except BaseException:
            os._exit(1)
        os._exit(ENDED)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


@pytest.fixture
def path(tmp_path: Path) -> Path:
    with fastlog.open(tmp_path / "store", durability="os") as store:
        store.create_topic("orders")
        with store.producer() as producer:
            producer.send("orders", b"x")
    return tmp_path / "store"


def test_a_consumer_whose_pulse_commits(path: Path) -> None:
    with (
        fastlog.open(path, durability="os") as store,
        store.consumer("orders", group="g", start="earliest") as consumer,
    ):
        consumer.poll(timeout=0)
        iteration = iter(consumer)

        def leave() -> None:
            consumer._iterating = True
            consumer.__exit__(None, None, None)

        with held(consumer._state):
            assert in_child(lambda: consumer.poll(timeout=0)) == REFUSED
            assert in_child(lambda: next(iteration)) == REFUSED
            assert in_child(consumer.commit) == REFUSED
            assert in_child(leave) == ENDED


def test_a_transaction_that_another_thread_ends(path: Path) -> None:
    with Directory.open(path, durability="os") as store:
        one = TransactionalId(store, "pay-1", 60_000)
        one.begin()
        calls: list[Callable[[], object]] = [
            one.begin,
            one.commit,
            one.abort,
            lambda: one.enter_partitions([("orders", 0)]),
            lambda: one.append_records(fastlog.TopicPartition("orders", 0), [None], [b"x"]),
        ]
        with held(one._lock):
            assert [in_child(call) for call in calls] == [REFUSED] * len(calls)
            assert in_child(one.close) == ENDED
        one.commit()
        one.close()


def test_a_store_that_the_child_opens_for_itself(path: Path) -> None:
    def work() -> None:
        with (
            fastlog.open(path, durability="os") as store,
            store.consumer("orders", group="g", start="earliest") as consumer,
            store.producer(transactional_id="pay-1") as producer,
            producer.transaction(consumer) as running,
        ):
            assert [record.value for record in consumer.poll()] == [b"x"]
            running.commit_offsets()

    with fastlog.open(path, durability="os") as store, held(store.directory.making):
        assert in_child(work) == ENDED
        assert in_child(lambda: store.consumer("orders", group="g")) == REFUSED
        assert in_child(lambda: store.producer(transactional_id="pay-1")) == REFUSED
        assert in_child(store.close) == ENDED
