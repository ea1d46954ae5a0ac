"""Transactions whose owner dies or stops at every step: all or nothing, and nobody waits for him for long."""

from __future__ import annotations

import os
import random
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import fastlog
from fastlog.liveness import Slots
from fastlog.store.directory import Directory
from fastlog.transactions import Coordinator
from tests.messaging.processes import Worker
from tests.messaging.transacting import Writer, is_settled, open_store, visible
from tests.messaging.transaction_worker import obey

STEPS = [
    ("transaction.entered", 1, False),
    ("transaction.entered", 2, False),
    ("transaction.synced", 1, False),
    ("transaction.decided", 1, True),
    ("transaction.marked", 1, True),
    ("transaction.marked", 2, True),
    ("transaction.completed", 1, True),
]
# but for an abort, which syncs no data
WAYS = [
    (*step, finish)
    for step in STEPS
    for finish in ("commit", "abort")
    if (step[0], finish) != ("transaction.synced", "abort")
]
PLACES = [("a", 0), ("b", 1)]


class Process:
    """A worker in a process of its own."""

    def __init__(self, path: Path, name: str, timeout_ms: int = 60_000, durability: str = "os") -> None:
        self.worker = Worker(obey, str(path), name, timeout_ms, durability)

    def tell(self, *command: Any) -> None:
        self.worker.tell(command)

    def answer(self) -> list[Any]:
        answer: list[Any] = self.worker.answer()
        return answer

    def ask(self, *command: Any) -> Any:
        self.tell(*command)
        answer = self.answer()
        assert answer[0] == "ok", answer
        return answer[1]

    def signal(self, number: signal.Signals) -> None:
        os.kill(self.worker.pid, number)

    def died(self) -> None:
        assert self.worker.join(20) == -signal.SIGKILL

    def close(self) -> None:
        self.worker.kill()
        self.worker.connection.close()


@pytest.fixture
def start(folder: Path) -> Iterator[Callable[..., Process]]:
    """Starts workers on the store of the test, and ends them."""
    open_store(folder / "store").close()
    started: list[Process] = []

    def begin(name: str = "pay-1", timeout_ms: int = 60_000, durability: str = "os") -> Process:
        started.append(Process(folder / "store", name, timeout_ms, durability))
        return started[-1]

    yield begin
    for process in started:
        process.close()


def until(condition: Callable[[], bool], what: str, seconds: float = 10) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, what
        time.sleep(0.01)


def settled(store: Directory) -> bool:
    return all(is_settled(store, *place) for place in PLACES)


def run_until_it_dies(process: Process, failpoint: str, nth: int, finish: str) -> None:
    """One committed transaction, then one that ends at the failpoint."""
    process.ask("open")
    process.ask("begin")
    process.ask("send", "a", 0, ["first"])
    process.ask("commit")
    process.ask("arm", failpoint, "kill", nth)
    for command in (["begin"], *(["send", topic, partition, ["x", "y"]] for topic, partition in PLACES), [finish]):
        try:
            process.tell(*command)
        except OSError:  # it is dead
            break
    process.died()


def shown(store: Directory) -> list[list[bytes]]:
    return [visible(store, *place) for place in PLACES]


def expected(committed: bool) -> list[list[bytes]]:
    return [[b"first", b"x", b"y"], [b"x", b"y"]] if committed else [[b"first"], []]


def fate(finish: str, failpoint: str, decided: bool) -> bool:
    return finish == "commit" and decided


@pytest.mark.parametrize(("failpoint", "nth", "decided", "finish"), WAYS)
def test_another_process_ends_what_a_dead_owner_left(
    folder: Path, start: Callable[..., Process], failpoint: str, nth: int, decided: bool, finish: str
) -> None:
    process = start()
    with Directory.open(folder / "store", durability="os") as store:
        Coordinator.of(store).start()
        run_until_it_dies(process, failpoint, nth, finish)
        until(lambda: settled(store) and not Coordinator.of(store).registry.running(), "a transaction stays open")
        assert shown(store) == expected(fate(finish, failpoint, decided))
        writer = Writer(store, "pay-1")
        writer.transaction("b", [b"next"], partition=1)
        assert shown(store)[1][-1] == b"next"


@pytest.mark.parametrize(("failpoint", "nth", "decided", "finish"), WAYS)
@pytest.mark.parametrize("how", ["alone", "owner"])
def test_the_next_opener_ends_what_a_dead_owner_left(
    folder: Path, start: Callable[..., Process], failpoint: str, nth: int, decided: bool, finish: str, how: str
) -> None:
    """Of the store, when nobody else is there; of the id, before anything else of it."""
    run_until_it_dies(start(), failpoint, nth, finish)
    with Directory.open(folder / "store", durability="os") as store:
        if how == "alone":
            Coordinator.of(store).attach()
        else:
            Writer(store, "pay-1").transaction("b", [b"next"], partition=2)
            assert visible(store, "b", 2) == [b"next"]
        assert settled(store)
        assert shown(store) == expected(fate(finish, failpoint, decided))


@pytest.mark.parametrize("step", ["append.written", "append.published", "append.unlocked"])
@pytest.mark.parametrize("nth", range(1, 8))
def test_killed_inside_an_append(folder: Path, start: Callable[..., Process], step: str, nth: int) -> None:
    """Two entries, two batches, the decision, two markers, the end: killed in the middle of each."""
    run_until_it_dies(start(), step, nth, "commit")
    with Directory.open(folder / "store", durability="os") as store:
        Coordinator.of(store).attach()
        assert settled(store)
        assert shown(store) in (expected(False), expected(True))
        # entries and batches come before the decision; who opens alone finds what was written and not published
        assert shown(store) == expected(nth >= 5)


@pytest.mark.parametrize("failpoint", ["transaction.decided", "transaction.marked"])
@pytest.mark.parametrize("finish", ["commit", "abort"])
def test_whoever_completes_may_die_too(
    folder: Path, start: Callable[..., Process], failpoint: str, finish: str
) -> None:
    run_until_it_dies(start(), "transaction.marked", 1, finish)
    heir = start("other")
    heir.ask("arm", failpoint, "kill", 1)
    heir.tell("attach")
    heir.died()
    with Directory.open(folder / "store", durability="os") as store:
        Coordinator.of(store).attach()
        assert settled(store)
        assert shown(store) == expected(finish == "commit")


def test_a_consumer_that_was_there_first_is_not_held_up(folder: Path, start: Callable[..., Process]) -> None:
    """It opened the store before there was any transactional id, and is told of none."""
    with fastlog.open(folder / "store", durability="os") as store, store.consumer("a", start="earliest") as consumer:
        run_until_it_dies(start(), "transaction.entered", 2, "commit")
        with store.producer() as producer:
            producer.send("a", b"behind", partition=0)
        seen: list[bytes] = []
        until(lambda: seen.extend(r.value for r in consumer.poll(timeout=0.1)) or b"behind" in seen, f"{seen}")
        assert seen == [b"first", b"behind"]


# --- the stopped ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("failpoint", ["transaction.entered", "transaction.synced"])
def test_a_stopped_owner_is_fenced_after_the_time_out(
    folder: Path, start: Callable[..., Process], failpoint: str
) -> None:
    process = start(timeout_ms=300)
    with Directory.open(folder / "store", durability="os") as store:
        Coordinator.of(store).start()
        process.ask("open")
        process.ask("begin")
        process.ask("send", "a", 0, ["x"])
        process.ask("arm", failpoint, "stop", 1)
        process.tell("send", "b", 1, ["y"])
        process.tell("commit")
        with store.lease("a", 0) as lease:
            until(lambda: lease.log.last_stable_offset == lease.log.end_offset >= 2, "the last stable offset hangs")
        assert shown(store) == [[], []]
        process.signal(signal.SIGCONT)
        answers = [process.answer(), process.answer()]
        assert answers[1][:2] == ["error", "ProducerFencedError"]
        assert answers[1][3] == "aborted"
        if failpoint == "transaction.entered":
            assert answers[0][:2] == ["error", "ProducerFencedError"]
        process.tell("begin")
        assert process.answer()[:2] == ["error", "ProducerFencedError"]
        assert settled(store)
        assert shown(store) == [[], []]


def test_a_stopped_owner_completes_what_a_dead_heir_left(folder: Path, start: Callable[..., Process]) -> None:
    """Nobody else is there when it goes on, and it goes on before its own process has looked around."""
    process = start(timeout_ms=2000)
    process.ask("open")
    process.ask("begin")
    for topic, partition in PLACES:
        process.ask("send", topic, partition, ["x"])
    process.signal(signal.SIGSTOP)
    heir = start("other")
    heir.ask("arm", "transaction.decided", "kill", 1)
    heir.tell("attach")
    heir.died()
    process.tell("commit")
    process.signal(signal.SIGCONT)
    answer = process.answer()
    assert (answer[:2], answer[3]) == (["error", "ProducerFencedError"], "aborted")
    with Directory.open(folder / "store", durability="os") as store:
        assert settled(store)
        assert shown(store) == [[], []]


def test_a_stopped_commit_is_completed_by_others(folder: Path, start: Callable[..., Process]) -> None:
    process = start(timeout_ms=300)
    with Directory.open(folder / "store", durability="os") as store:
        Coordinator.of(store).start()
        epoch = process.ask("open")
        process.ask("begin")
        for topic, partition in PLACES:
            process.ask("send", topic, partition, ["x"])
        process.ask("arm", "transaction.decided", "stop", 1)
        process.tell("commit")
        until(lambda: shown(store) == [[b"x"], [b"x"]], "nobody completes the commit")
        process.signal(signal.SIGCONT)
        assert process.answer() == ["ok", None]
        process.ask("begin")
        process.ask("send", "a", 0, ["y"])
        process.ask("commit")
        assert shown(store) == [[b"x", b"y"], [b"x"]]
        assert epoch == 0


def test_a_stopped_completer_harms_nobody(folder: Path, start: Callable[..., Process]) -> None:
    """It is stopped with markers to write; the id goes on meanwhile; then it writes them."""
    run_until_it_dies(start(), "transaction.marked", 1, "commit")
    heir = start("other")
    heir.ask("arm", "transaction.decided", "stop", 1)
    heir.tell("attach")
    time.sleep(1.0)
    # it holds the lock that makes the page: only an opener of the id itself would wait for it
    heir.signal(signal.SIGCONT)
    assert heir.answer() == ["ok", None]
    with Directory.open(folder / "store", durability="os") as store:
        Writer(store, "pay-1").transaction("b", [b"next"], partition=1)
        assert shown(store) == [[b"first", b"x", b"y"], [b"x", b"y", b"next"]]


def test_an_owner_that_goes_on_before_it_dies(
    folder: Path, start: Callable[..., Process], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its entry was read during one transaction; what it leaves open is the next one."""
    process = start()
    with Directory.open(folder / "store", durability="os") as store:
        coordinator = Coordinator.of(store)
        process.ask("open")
        process.ask("begin")
        process.ask("send", "a", 0, ["x"])
        is_alive = Slots.is_alive

        def go_on_and_die(slots: Slots, number: int) -> bool:
            if process.worker.process.is_alive():
                process.ask("commit")
                process.ask("begin")
                for topic, partition in PLACES:
                    process.ask("send", topic, partition, ["y"])
                process.worker.kill()
            return is_alive(slots, number)

        with monkeypatch.context() as patch:
            patch.setattr(Slots, "is_alive", go_on_and_die)
            coordinator.sweep()
        coordinator.start()
        until(lambda: settled(store), "a transaction stays open")
        assert shown(store) == [[b"x"], []]
        assert not coordinator.registry.running()


# --- many of everything ---------------------------------------------------------------------------------------------


def test_random_kills_leave_whole_transactions(folder: Path, start: Callable[..., Process], seed: int) -> None:
    """Each transaction writes its number to both partitions: readers see each number in both, or in none."""
    chance = random.Random(seed)
    with Directory.open(folder / "store", durability="os") as store:
        Coordinator.of(store).start()
        number = 0
        for _ in range(3):
            process = start(chance.choice(["p", "q"]))
            process.tell("open")
            for _ in range(40):
                number += 1
                process.tell("begin")
                for topic, partition in PLACES:
                    process.tell("send", topic, partition, [str(number)])
                process.tell(chance.choice(["commit", "commit", "abort"]))
            process.answer()
            for _ in range(chance.randrange(160)):
                process.answer()
            process.worker.kill()
        until(lambda: settled(store), "a transaction stays open")
        first, second = shown(store)
        assert first == second
        assert len(set(first)) == len(first)
        assert first


def test_two_owners_of_one_id_take_turns(folder: Path, start: Callable[..., Process]) -> None:
    """Whoever opened last writes; what the other had open is never seen."""
    both = [start(), start()]
    with Directory.open(folder / "store", durability="os") as store:
        for turn in range(6):
            process, other = both[turn % 2], both[1 - turn % 2]
            process.ask("open")
            if turn:
                other.tell("commit")
                assert other.answer()[1] in ("ProducerFencedError", "TransactionError")
            process.ask("begin")
            process.ask("send", "a", 0, [f"{turn} done"])
            process.ask("commit")
            process.ask("begin")
            process.ask("send", "a", 0, [f"{turn} open"])
        assert visible(store, "a") == [b"%d done" % turn for turn in range(6)]


@pytest.mark.parametrize("durability", ["group", "interval"])
def test_levels_that_sync(folder: Path, start: Callable[..., Process], durability: str) -> None:
    process = start(durability=durability)
    run_until_it_dies(process, "transaction.marked", 1, "commit")
    with Directory.open(folder / "store", durability=durability) as store:
        Coordinator.of(store).attach()
        assert shown(store) == expected(True)


def test_a_closed_store_is_no_owner(folder: Path) -> None:
    with open_store(folder / "store") as store:
        writer = Writer(store, "pay-1")
        writer.begin()
        writer.send("a", [b"x"])
    with pytest.raises(fastlog.Error):
        writer.id.commit()
    writer.close()
