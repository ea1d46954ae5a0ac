"""Conditions on shared words: compared under the writer lock, so that who was replaced writes nothing more.

The promise: owners change by ``exchange`` alone, under the lock of the log that they write to. What an owner's append
wrote is in the log before the exchange that replaces him, and nothing of his comes behind it.
"""

from __future__ import annotations

import os
import random
import signal
import threading
import time
from collections.abc import Iterator
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import pytest

import fastlog
from fastlog._core import Bells, SharedPage, encode_batch
from fastlog._native import oscalls
from tests.forking import SERVER, wait_until_stopped

NOTHING = -(2**63)  # every word of a page that was retired
PRODUCER = 1 << 41
APPEND_STEPS = [name for name in oscalls.FAILPOINTS if name.startswith("append.")]
BEHIND_THE_END = {"append.published", "append.unlocked"}


@pytest.fixture
def page(folder: Path) -> Iterator[SharedPage]:
    page = SharedPage.create(str(folder / "owners"), 64, 0)
    yield page
    page.close()


@pytest.fixture
def log(folder: Path) -> Iterator[fastlog.PartitionLog]:
    with open_log(folder) as log:
        yield log


def open_log(folder: Path, **options: Any) -> fastlog.PartitionLog:
    return fastlog.PartitionLog.open(folder / "offsets-0", **{"durability": "os", **options})


def values_of(log: fastlog.PartitionLog) -> list[bytes | None]:
    return [value for batch in log.replay() for value in batch.values()]


def transactional(value: bytes, sequence: int = 0) -> bytes:
    return encode_batch([value], producer_id=PRODUCER, producer_epoch=0, base_sequence=sequence, transactional=True)


# --- what is compared -----------------------------------------------------------------------------------------------


def test_every_append_compares_its_conditions(log: fastlog.PartitionLog, page: SharedPage) -> None:
    page.store(3, 7)
    page.store(5, -1)
    holds = [(page, 3, 7), (page, 5, -1)]
    assert log.append([b"1"], conditions=holds) == 0
    assert log.append([b"2", b"3"], compression="lz4", conditions=tuple(holds)) == 1
    assert log.append_batch(transactional(b"4"), conditions=holds) == 3
    assert log.end_transaction(PRODUCER, 0, commit=True, conditions=holds) == 4
    assert log.append([], conditions=holds) == 5
    page.store(5, 0)
    for attempt in (
        lambda: log.append([b"no"], conditions=holds),
        lambda: log.append([b"x" * 5000] * 3, compression="zstd", conditions=holds),
        lambda: log.append([b"x" * 400_000] * 5, conditions=holds),
        lambda: log.append_batch(transactional(b"no", 1), conditions=holds),
        lambda: log.end_transaction(PRODUCER, 0, commit=False, conditions=holds),
        lambda: log.append([], conditions=holds),
        lambda: log.exchange(holds, [(page, 3, 99)]),
    ):
        with pytest.raises(
            fastlog.FencedError, match=r"word 5 of .*owners is 0, expected -1.*nothing was written"
        ) as caught:
            attempt()
        assert caught.value.condition == 1
        assert caught.value.end_offset is None
    assert values_of(log) == [b"1", b"2", b"3", b"4"]
    assert (log.end_offset, page.load(3)) == (5, 7)
    assert not log.open_transactions()


def test_a_repetition_of_who_was_replaced_is_refused(log: fastlog.PartitionLog, page: SharedPage) -> None:
    """The log knows the batch, and would answer with its offset: but not to this caller any more."""
    batch = transactional(b"1")
    assert log.append_batch(batch, conditions=[(page, 0, 0)]) == 0
    assert log.append_batch(batch, conditions=[(page, 0, 0)]) == 0
    log.exchange([(page, 0, 0)], [(page, 0, 1)])
    with pytest.raises(fastlog.FencedError):
        log.append_batch(batch, conditions=[(page, 0, 0)])


def test_conditions_and_the_end_offset_go_together(log: fastlog.PartitionLog, page: SharedPage) -> None:
    log.append([b"1"], expected_end_offset=0, conditions=[(page, 0, 0)])
    with pytest.raises(fastlog.FencedError) as caught:
        log.append([b"2"], expected_end_offset=0, conditions=[(page, 0, 0)])
    assert (caught.value.condition, caught.value.expected_end_offset, caught.value.end_offset) == (None, 0, 1)
    with pytest.raises(fastlog.FencedError) as caught:
        log.append([b"2"], expected_end_offset=0, conditions=[(page, 0, 1)])
    assert caught.value.condition == 0


def test_many_conditions_on_several_pages(log: fastlog.PartitionLog, folder: Path) -> None:
    pages = [SharedPage.create(str(folder / f"owners-{i}"), 64, 0) for i in range(3)]
    conditions = [(page, i, 100 * n + i) for n, page in enumerate(pages) for i in range(64)]
    log.exchange([(page, 0, 0) for page in pages], conditions)
    assert log.append([b"1"], conditions=conditions) == 0
    for wrong in (0, 63, 64, 191):
        wanted = list(conditions)
        wanted[wrong] = (*conditions[wrong][:2], -5)
        with pytest.raises(fastlog.FencedError) as caught:
            log.append([b"2"], conditions=wanted)
        assert caught.value.condition == wrong
    assert log.end_offset == 1


def test_a_page_that_was_retired_holds_for_nobody(log: fastlog.PartitionLog, page: SharedPage) -> None:
    page.store(1, 5)
    page.retire()
    for attempt in (
        lambda: log.append([b"no"], conditions=[(page, 1, 5)]),
        lambda: log.exchange([(page, 1, 5)], [(page, 1, 6)]),
        lambda: log.exchange([], [(page, 1, 6)]),
    ):
        with pytest.raises(fastlog.FencedError, match="was replaced") as caught:
            attempt()
        assert caught.value.condition == 0
    for wrong in (
        lambda: log.append([b"no"], conditions=[(page, 1, NOTHING)]),
        lambda: log.exchange([], [(page, 1, NOTHING)]),
    ):
        with pytest.raises(fastlog.InvalidRecordError, match="retired"):
            wrong()
    assert (log.end_offset, page.load(1)) == (0, NOTHING)


@pytest.mark.parametrize("wrong", [[1], [(1, 2, 3)], [("page", 1)], 7, [(None, 0, 0)]])
def test_what_is_no_condition_is_refused(log: fastlog.PartitionLog, wrong: Any) -> None:
    for attempt in (
        lambda: log.append([b"no"], conditions=wrong),
        lambda: log.exchange(wrong, []),
        lambda: log.exchange([], wrong),
    ):
        with pytest.raises((fastlog.InvalidRecordError, TypeError)):
            attempt()
    assert log.end_offset == 0


def test_a_page_that_cannot_be_used(log: fastlog.PartitionLog, page: SharedPage) -> None:
    for index in (-1, 64, 1 << 40):
        with pytest.raises(IndexError):
            log.append([b"no"], conditions=[(page, index, 0)])
    with pytest.raises((TypeError, OverflowError)):
        log.append([b"no"], conditions=[(page, 0, "0")])  # type: ignore[list-item]
    with pytest.raises(OverflowError):
        log.append([b"no"], conditions=[(page, 0, 1 << 63)])
    page.close()
    with pytest.raises(fastlog.ClosedError):
        log.append([b"no"], conditions=[(page, 0, 0)])
    assert log.end_offset == 0


def test_who_may_not_write_exchanges_nothing(folder: Path, log: fastlog.PartitionLog, page: SharedPage) -> None:
    with (
        fastlog.PartitionLog.open(folder / "offsets-0", read_only=True, durability="os") as reader,
        pytest.raises(fastlog.NotSupportedError),
    ):
        reader.exchange([], [(page, 0, 1)])
    log.close()
    with pytest.raises(fastlog.ClosedError):
        log.exchange([], [(page, 0, 1)])
    assert page.load(0) == 0


# --- under the lock -------------------------------------------------------------------------------------------------


class Child:
    """A process with the log and the page open that does one thing, with a failpoint armed; then it ends."""

    def __init__(self, folder: Path, action: str, failpoint: str, how: str) -> None:
        heard, told = SERVER.Pipe(duplex=False)
        self.process: BaseProcess = SERVER.Process(target=act, args=(str(folder), action, failpoint, how, told))
        self.process.start()
        told.close()
        self.heard = heard

    def stopped(self) -> None:
        """Wait until it has stopped itself."""
        assert self.process.pid is not None
        wait_until_stopped(self.process.pid)

    def go_on(self) -> None:
        assert self.process.pid is not None
        os.kill(self.process.pid, signal.SIGCONT)

    def ended(self) -> Any:
        """What it told, or ``"killed"``."""
        try:
            result = self.heard.recv() if self.heard.poll(30) else "silent"
        except EOFError:
            result = "killed"
        self.process.join(30)
        return result


def act(folder: str, action: str, failpoint: str, how: str, told: Any) -> None:
    log = open_log(Path(folder))
    page = SharedPage.open(f"{folder}/owners")
    oscalls.arm(failpoint, how)
    try:
        if action == "append":
            log.append([b"child"] * 3, conditions=[(page, 0, 0)])
        else:
            log.exchange([(page, 0, 0)], [(page, 0, 1), (page, 1, 2)])
        told.send("done")
    except fastlog.FencedError:
        told.send("fenced")
    log.close()


def test_an_exchange_waits_for_the_append_whose_conditions_held(folder: Path, page: SharedPage) -> None:
    """It is frozen between comparing and writing: nobody takes its place before it has written."""
    config = fastlog.LogConfig(lock_timeout=0.2)
    with open_log(folder, config=config) as log:
        child = Child(folder, "append", "append.locked", "stop")
        child.stopped()
        with pytest.raises(fastlog.LockedError):
            log.exchange([(page, 0, 0)], [(page, 0, 1)])
        assert page.load(0) == 0
        child.go_on()
        assert child.ended() == "done"
        log.exchange([(page, 0, 0)], [(page, 0, 1)])
        assert values_of(log) == [b"child"] * 3


@pytest.mark.parametrize("kind", ["append", "append_batch", "end_transaction", "exchange"])
def test_conditions_are_compared_when_the_lock_is_there(folder: Path, page: SharedPage, kind: str) -> None:
    """They held when the append was called; the owner changed while it waited for the lock."""
    with open_log(folder) as log:
        log.append_batch(transactional(b"open"))
        old = [(page, 0, 0)]
        attempt = {
            "append": lambda: log.append([b"no"], conditions=old),
            "append_batch": lambda: log.append_batch(transactional(b"no", 1), conditions=old),
            "end_transaction": lambda: log.end_transaction(PRODUCER, 0, commit=True, conditions=old),
            "exchange": lambda: log.exchange(old, [(page, 0, 5)]),
        }[kind]
        child = Child(folder, "exchange", "exchange.compared", "stop")
        child.stopped()
        outcome: list[Any] = []

        def run() -> None:
            try:
                outcome.append(attempt())
            except fastlog.FencedError as error:
                outcome.append(error)

        waiting = threading.Thread(target=run)
        waiting.start()
        time.sleep(0.05)
        assert not outcome, "it waits for the lock"
        child.go_on()
        waiting.join(30)
        assert child.ended() == "done"
        assert isinstance(outcome[0], fastlog.FencedError) and outcome[0].condition == 0
        assert (page.load(0), page.load(1)) == (1, 2)
        assert values_of(log) == [b"open"]


@pytest.mark.parametrize("step", APPEND_STEPS)
def test_I4_killed_inside_an_append_with_conditions(folder: Path, page: SharedPage, step: str) -> None:
    """Its records are there wholly or not at all, before the exchange that replaces it; and never behind it."""
    with open_log(folder) as log:
        log.append([b"before"])
        child = Child(folder, "append", step, "kill")
        assert child.ended() == "killed"
        assert child.process.exitcode == -signal.SIGKILL
        log.exchange([(page, 0, 0)], [(page, 0, 1)])
        written = [b"child"] * 3 if step in BEHIND_THE_END else []
        assert values_of(log) == [b"before", *written]
        with pytest.raises(fastlog.FencedError):
            log.append([b"no"], conditions=[(page, 0, 0)])
        log.append([b"after"], conditions=[(page, 0, 1)])
        assert values_of(log) == [b"before", *written, b"after"]
        assert log.verify().ok


@pytest.mark.parametrize(("step", "words"), [("exchange.compared", (0, 0)), ("exchange.stored", (1, 2))])
def test_I4_killed_inside_an_exchange(folder: Path, page: SharedPage, step: str, words: tuple[int, int]) -> None:
    with open_log(folder) as log:
        child = Child(folder, "exchange", step, "kill")
        assert child.ended() == "killed"
        assert (page.load(0), page.load(1)) == words
        log.exchange([(page, 0, words[0])], [(page, 0, 10)])
        log.append([b"goes on"], conditions=[(page, 0, 10)])


def compete(folder: str, seed: int, worker: int, seconds: float) -> None:
    """Take the place of whoever owns the log, write as its owner until replaced, and again."""
    chance = random.Random(seed)
    page = SharedPage.open(f"{folder}/owners")
    with open_log(Path(folder)) as log:
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            found = page.load(0)
            try:
                log.exchange([(page, 0, found)], [(page, 0, found + 1)])
                for _ in range(chance.choice([1, 5, 50])):
                    log.append(
                        [b"%d %d" % (found + 1, worker)] * chance.choice([1, 3]), conditions=[(page, 0, found + 1)]
                    )
            except fastlog.FencedError:
                continue


def test_no_owner_writes_behind_the_next_one(folder: Path, seed: int, page: SharedPage) -> None:
    workers = [SERVER.Process(target=compete, args=(str(folder), seed + i, i, 1.5)) for i in range(3)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(60)
        assert worker.exitcode == 0
    with open_log(folder) as log:
        owners: dict[int, bytes] = {}
        newest = 0
        for value in values_of(log):
            assert value is not None
            epoch, worker_name = int(value.split()[0]), value.split()[1]
            assert epoch >= newest, f"owner {epoch} wrote behind owner {newest}"
            assert owners.setdefault(epoch, worker_name) == worker_name
            newest = epoch
        assert newest > 20, "too few took over for this to say anything"


# --- bells -----------------------------------------------------------------------------------------------------------


def test_appends_markers_and_syncs_ring_the_bell_of_the_store(folder: Path) -> None:
    bells = Bells.open(str(folder / "bells"))
    waiter = bells.waiter()
    with open_log(folder, bells=bells, bell=17) as log, open_log(folder) as bare:
        for action in (
            lambda: log.append([b"1"]),
            lambda: log.append_batch(transactional(b"2")),
            lambda: log.end_transaction(PRODUCER, 0, commit=True),
            log.flush,
        ):
            waiter.listen(1 << 17)
            waiter.rung()
            action()
            assert waiter.rung() == 1 << 17
            action_heard = waiter.listen(1 << 16)
            assert not waiter.sleep(action_heard, 1)
        waiter.rung()
        waiter.listen(1 << 17)
        log.flush()
        assert waiter.rung() == 0, "nothing has become durable"
        bare.append([b"3"])
        assert waiter.rung() == 0, "who opened it without the bells does not know of them"
        waiter.listen((1 << 17) - 1)
        log.append([b"4"])
    with fastlog.PartitionLog.open(folder / "offsets-0", durability="group", bells=bells, bell=63) as log:
        waiter.listen(1 << 63)
        waiter.rung()
        log.append([b"5"])
        assert waiter.rung() == 1 << 63


def test_who_takes_over_rings_for_the_dead(folder: Path, page: SharedPage) -> None:
    bells = Bells.open(str(folder / "bells"))
    with open_log(folder, bells=bells, bell=1) as log:
        child = Child(folder, "append", "append.written", "kill")
        assert child.ended() == "killed"
        waiter = bells.waiter()
        waiter.listen(1 << 1)
        waiter.rung()
        with pytest.raises(fastlog.FencedError):
            log.append([b"no"], expected_end_offset=5)
        assert waiter.rung() == 1 << 1


@pytest.mark.parametrize("wrong", [{"bell": -1}, {"bell": 64}, {"bells": "bells"}])
def test_what_is_no_bell_is_refused(folder: Path, wrong: dict[str, Any]) -> None:
    with pytest.raises(fastlog.ConfigError):
        open_log(folder, **wrong)
