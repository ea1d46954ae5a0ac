"""Dead letters of a running app: fixed, redriven, and handled once, whoever dies on the way."""

from __future__ import annotations

import signal
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

import fastlog
from fastlog.delivery.dead_letters import DeadLetters
from tests.delivery.lettering import DLQ, GROUP, SOURCE
from tests.delivery.operators import Operator

RECORDS = 60


class Shop:
    """An app that cannot handle every third order until somebody repairs it."""

    def __init__(self, store: fastlog.Store, order_by: str) -> None:
        self.store = store
        self.is_repaired = False
        self.calls: list[bytes] = []
        self.app = fastlog.App(store)
        declare = self.app.subscriber(
            SOURCE,
            group=GROUP,
            order_by=order_by,  # type: ignore[arg-type]
            concurrency=1 if order_by == "partition" else 4,
            retry=fastlog.Retry(2, backoff=("1ms", "1ms"), jitter=False),
        )
        declare(self.handle)

    def handle(self, record: fastlog.Record) -> None:
        value = record.value
        assert value is not None
        if int(value) % 3 == 0 and not self.is_repaired:
            raise ValueError(f"order {int(value)} is wrong")
        self.calls.append(value)

    @property
    def done(self) -> Counter[bytes]:
        """How often each order was handled."""
        return Counter(list(self.calls))

    @property
    def letters(self) -> DeadLetters:
        return DeadLetters.open(self.store, DLQ, by="tester")

    @contextmanager
    def running(self) -> Iterator[None]:
        thread = threading.Thread(target=self.app.run)
        thread.start()
        try:
            yield
        finally:
            self.app.stop()
            thread.join(60)
        assert not thread.is_alive()


@pytest.fixture
def store(folder: Path) -> Iterator[fastlog.Store]:
    with fastlog.open(folder / "store", durability="os") as store:
        store.create_topic(SOURCE, partitions=2)
        with store.producer() as producer:
            for number in range(RECORDS):
                producer.send(SOURCE, b"%d" % number, key=b"key-%d" % (number % 7), partition=number % 2)
        yield store


def until(condition: Callable[[], bool], seconds: float = 30) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


WRONG = RECORDS // 3
EACH_ONCE = Counter(b"%d" % number for number in range(RECORDS))


def wait_for_letters(shop: Shop) -> None:
    until(lambda: DLQ in shop.store.topics() and shop.letters.count() == WRONG and len(shop.done) == RECORDS - WRONG)


@pytest.mark.parametrize("order_by", ["partition", "key", "none"])
def test_repaired_and_redriven_while_the_app_runs(store: fastlog.Store, order_by: str) -> None:
    shop = Shop(store, order_by)
    with shop.running():
        wait_for_letters(shop)
        assert {letter.attempts for letter in shop.letters.list()} == {2}
        assert shop.letters.survey().exceptions == {"ValueError": WRONG}
        shop.letters.redrive(limit=5)
        until(lambda: shop.letters.count() == WRONG)  # not repaired: they come back, with an audit in between
        assert len(list(shop.letters.list(state="all"))) == WRONG + 5
        shop.is_repaired = True
        assert shop.letters.redrive(rate=500).letters == WRONG
        until(lambda: shop.done == EACH_ONCE)
    assert shop.letters.count() == 0 and shop.done == EACH_ONCE


@pytest.mark.parametrize(
    ("failpoint", "nth"), [("transaction.entered", 4), ("transaction.decided", 2), ("append.written", 6)]
)
def test_an_operator_dies_beside_the_app(folder: Path, store: fastlog.Store, failpoint: str, nth: int) -> None:
    """What it left open is ended, so that the app goes on; the next operator sends the rest."""
    shop = Shop(store, "key")
    with shop.running():
        wait_for_letters(shop)
        shop.is_repaired = True
        operator = Operator(folder / "store", "first", "retry", failpoint, "kill", nth)
        try:
            operator.go()
            assert operator.child.wait(30) == -signal.SIGKILL
        finally:
            operator.close()
        shop.letters.redrive()
        until(lambda: shop.done == EACH_ONCE)
        with store.producer() as producer:
            producer.send(SOURCE, b"%d" % RECORDS, partition=0)
        until(lambda: shop.done == EACH_ONCE + Counter([b"%d" % RECORDS]))
    assert shop.letters.count() == 0


def test_discarded_letters_are_not_handled(store: fastlog.Store) -> None:
    shop = Shop(store, "key")
    with shop.running():
        wait_for_letters(shop)
        shop.is_repaired = True
        shop.letters.discard(partition=0)
        left = shop.letters.redrive().letters
        until(lambda: sum(shop.done.values()) == RECORDS - WRONG + left)
    assert shop.letters.count() == 0 and max(shop.done.values()) == 1
    assert len(list(shop.letters.list(state="handled"))) == WRONG
