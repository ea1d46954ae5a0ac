"""Apps in processes that are killed, stopped and replaced: what is handled, how often, in which order, and where
records are in the end.
"""

from __future__ import annotations

import random
import signal
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import fastlog
from fastlog.delivery.app import SAME_SIGNAL_MS
from fastlog.delivery.headers import letter_of
from tests.delivery.apps import is_read, records_of, send, values_of
from tests.delivery.fleet import PATIENCE, Fleet, check_order, everything, until
from tests.delivery.worker import read_diary


@pytest.fixture
def fleet(folder: Path) -> Iterator[Fleet]:
    found = Fleet(folder)
    yield found
    found.kill()


@pytest.fixture
def store(folder: Path) -> Iterator[fastlog.Store]:
    with fastlog.open(folder / "store", durability="os") as opened:
        yield opened


# --- death -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("order_by", ["key", "partition", "none"])
def test_a_record_that_kills_its_process_is_a_dead_letter_in_the_end(
    store: fastlog.Store, fleet: Fleet, order_by: str
) -> None:
    store.create_topic("orders")
    values = [f"good-{number}".encode() for number in range(60)]
    values.insert(30, b"poison-1")
    send(store, "orders", values, [b"k%d" % (number % 7) for number in range(61)])
    options: dict[str, Any] = {"order_by": order_by, "concurrency": 3, "retry": {"attempts": 3, "backoff": "20ms"}}
    deaths = 0
    worker = fleet.start(**options)
    deadline = time.monotonic() + PATIENCE
    while not is_read(store) and time.monotonic() < deadline:
        if worker.code is not None:
            assert worker.code == -signal.SIGKILL
            deaths += 1
            worker = fleet.start(**options)
        time.sleep(0.02)
    stats = worker.end(PATIENCE)
    assert stats["dead_lettered"] == 1
    (letter,) = [letter_of(record) for record in records_of(store, "orders.mail.dlq")]
    assert (letter.value, letter.exception) == (b"poison-1", "WorkerDied")
    # three attempts are its right; the ones before it was under suspicion nobody could count
    assert 3 <= deaths <= 5
    assert fleet.calls().count("poison-1") == deaths
    assert set(fleet.calls("end")) == {value.decode() for value in values if value != b"poison-1"}


def test_a_record_whose_call_does_not_end_is_a_dead_letter_in_the_end(store: fastlog.Store, fleet: Fleet) -> None:
    store.create_topic("orders")
    send(store, "orders", [b"good-1", b"hang-2", b"good-3"], [b"a", b"b", b"c"])
    options: dict[str, Any] = {"timeout": "300ms", "retry": {"attempts": 2, "backoff": "10ms"}, "concurrency": 2}
    codes = []
    while not is_read(store) and len(codes) < 5:
        worker = fleet.start(**options)
        until(lambda: worker.code is not None or is_read(store), "an end")  # noqa: B023  # it is called here only
        if worker.code is None:
            worker.end(PATIENCE)
        else:
            codes.append(worker.code)
    assert codes == [1] * len(codes) and 2 <= len(codes) <= 3
    (letter,) = [letter_of(record) for record in records_of(store, "orders.mail.dlq")]
    assert (letter.value, letter.exception) == (b"hang-2", "WorkerDied")
    assert fleet.calls().count("hang-2") == len(codes)
    assert {"good-1", "good-3"} == set(fleet.calls("end"))


def test_what_waits_for_its_next_attempt_survives_kill(store: fastlog.Store, fleet: Fleet) -> None:
    store.create_topic("orders")
    send(store, "orders", [b"once-1", b"good-2", b"good-3"], [b"a", b"a", b"a"])
    options: dict[str, Any] = {"retry": {"attempts": 5, "backoff": "2s"}}
    first = fleet.start(**options)
    until(
        lambda: len(values_of(store, "orders.mail.retry")) == 3 if "orders.mail.retry" in store.topics() else False,
        "parked",
    )
    first.kill()
    assert fleet.calls("end") == []
    send(store, "orders", [b"good-4"], [b"a"])
    send(store, "orders", [b"good-b"], [b"b"])
    second = fleet.start(**options)
    until(lambda: len(fleet.calls("end")) >= 1, "the other key")
    assert fleet.calls("end")[0] == "good-b" or fleet.calls("fail").count("once-1") == 2
    until(lambda: len(fleet.calls("end")) == 5, f"all: {fleet.calls('end')}")
    assert [value for value in fleet.calls("end") if value != "good-b"] == ["once-1", "good-2", "good-3", "good-4"]
    second.end(PATIENCE)


FAILPOINTS = [
    *("move.entered", "move.offsets", "move.appended", "move.committed"),
    *("transaction.entered", "transaction.synced", "transaction.decided", "transaction.marked"),
    *("transaction.completed",),
]


@pytest.mark.parametrize("failpoint", FAILPOINTS)
def test_a_move_that_is_killed_anywhere_loses_and_doubles_nothing(
    store: fastlog.Store, fleet: Fleet, failpoint: str, seed: int
) -> None:
    nth = random.Random(seed).choice([1, 2])
    store.create_topic("orders")
    values = [(b"bad-%d" if number % 3 == 0 else b"good-%d") % number for number in range(30)]
    send(store, "orders", values, [b"k%d" % (number % 6) for number in range(30)])
    options: dict[str, Any] = {"retry": {"attempts": 2, "backoff": "30ms"}, "concurrency": 2}
    first = fleet.start(f"{failpoint}:kill:{nth}", **options)
    assert first.wait(PATIENCE) == -signal.SIGKILL
    second = fleet.start(**options)
    until(lambda: is_read(store), "everything is read")
    second.end(PATIENCE)
    ends = everything(store, fleet)
    bad = [value.decode() for value in values if value.startswith(b"bad")]
    assert set(ends) == {value.decode() for value in values}
    # dead letters are moved exactly once; what is handled comes again at most once after a kill
    assert {value: ends[value] for value in bad} == dict.fromkeys(bad, 1)
    assert max(ends.values()) <= 2
    # two attempts, and one more of those that were in hand or not yet committed
    assert all(2 <= fleet.calls().count(value) <= 3 for value in bad)


# --- late ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("concurrency", [1, 2])
def test_results_of_a_process_that_was_stopped_too_long_do_not_count(
    store: fastlog.Store, fleet: Fleet, concurrency: int
) -> None:
    store.create_topic("orders")
    send(store, "orders", [b"good-1", b"stop-2", b"good-3"])
    options: dict[str, Any] = {
        "order_by": "partition",
        "concurrency": concurrency,
        "max_poll_interval": "1s",
        "stopped": str(fleet.folder / "stopped"),
        "retry": {"attempts": 3, "backoff": "10ms"},
    }
    first = fleet.start(**options)
    until((fleet.folder / "stopped").exists, "stopped")
    second = fleet.start(**options)
    until(lambda: is_read(store), "the second has taken over")
    before = values_of(store, "orders.mail.retry"), values_of(store, "orders.mail.dlq")
    first.signal(signal.SIGCONT)
    until(lambda: fleet.calls("end").count("stop-2") == 2, "the first has gone on")
    time.sleep(0.3)
    late = first.end(PATIENCE)
    second.end(PATIENCE)
    assert late["late"] == 1 or concurrency == 1
    ends = Counter(fleet.calls("end"))
    # what was finished less than a second before the stop was not committed yet
    assert (ends["stop-2"], ends["good-3"]) == (2, 1) and ends["good-1"] <= 2
    assert (values_of(store, "orders.mail.retry"), values_of(store, "orders.mail.dlq")) == before
    assert is_read(store)


@pytest.mark.parametrize("failpoint", ["move.entered", "move.offsets", "move.appended"])
def test_a_move_of_a_process_that_was_stopped_too_long_does_not_count(
    store: fastlog.Store, fleet: Fleet, failpoint: str
) -> None:
    store.create_topic("orders")
    send(store, "orders", [b"good-1", b"sick-2", b"good-3"], [b"a", b"a", b"a"])
    cure = fleet.folder / "cure"
    options: dict[str, Any] = {
        "max_poll_interval": "1s",
        "retry": {"attempts": 3, "backoff": "10ms"},
        "cure": str(cure),
    }
    first = fleet.start(f"{failpoint}:stop:1", **options)
    until(lambda: fleet.calls("fail") == ["sick-2"], "failed")
    time.sleep(0.2)
    cure.touch()
    second = fleet.start(**options)
    until(lambda: "good-3" in fleet.calls("end") and is_read(store), "the second has taken over")
    first.signal(signal.SIGCONT)
    time.sleep(0.5)
    first.end(PATIENCE)
    until(lambda: is_read(store), "still")
    second.end(PATIENCE)
    assert is_read(store)
    assert not values_of(store, "orders.mail.retry")
    assert not values_of(store, "orders.mail.dlq")
    ends = Counter(fleet.calls("end"))
    assert (ends["sick-2"], ends["good-3"]) == (1, 1) and ends["good-1"] <= 2


# --- order -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kills", [False, True])
def test_keys_stay_in_order_while_workers_come_and_go(
    store: fastlog.Store, fleet: Fleet, seed: int, kills: bool
) -> None:
    chance = random.Random(seed)
    keys, each = 12, 40
    store.create_topic("orders", 4)
    options: dict[str, Any] = {"retry": {"attempts": 8, "backoff": "15ms"}, "concurrency": 4, "sleep": 0.001}
    workers = [fleet.start(**options), fleet.start(**options)]
    for number in range(each):
        values = [f"{'once' if chance.random() < 0.1 else 'good'}-{key}-{number}".encode() for key in range(keys)]
        send(store, "orders", values, [b"key %d" % key for key in range(keys)])
        if number % 10 == 9:
            leaving = workers.pop(0)
            if kills:
                leaving.kill()
            else:
                assert leaving.end(PATIENCE)["late"] == 0
            workers.append(fleet.start(**options))
    until(lambda: len(set(fleet.calls("end"))) == keys * each and is_read(store), "everything is handled")
    for worker in workers:
        worker.end(PATIENCE)
    check_order(read_diary(fleet.diary))
    ends = Counter(fleet.calls("end"))
    if not kills:
        assert set(ends.values()) == {1}
    assert not values_of(store, "orders.mail.dlq")


# --- signals ---------------------------------------------------------------------------------------------------------


def test_a_second_signal_ends_a_worker_at_once(store: fastlog.Store, fleet: Fleet) -> None:
    store.create_topic("orders")
    send(store, "orders", [b"good-1"])
    worker = fleet.start(sleep=60, concurrency=2)
    until(lambda: fleet.calls() == ["good-1"], "called")
    worker.signal(signal.SIGTERM)
    time.sleep(2 * SAME_SIGNAL_MS / 1000)
    assert worker.code is None
    before = time.monotonic()
    worker.signal(signal.SIGTERM)
    assert worker.wait(PATIENCE) == 128 + signal.SIGTERM
    assert time.monotonic() - before < 5
