"""``fastlog demo handlers``: handlers that fail, processes that are killed, flights that are all accounted for, and
checks that can fail.
"""

from __future__ import annotations

import json
import os
import random
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import fastlog
from fastlog.delivery import runner
from fastlog.delivery.headers import redriven_headers
from fastlog.demo import accounts, fleet, flights, handlers
from fastlog.demo.dataset import Dataset
from tests.cli.support import run, run_process, write_flights

ROWS = 3000
FEW = 400
PATIENCE = 30.0
SEEDS = int(os.environ.get("FASTLOG_DEMO_SEEDS", "2"))


@pytest.fixture
def table(folder: Path, seed: int) -> Path:
    return write_flights(folder / "flights.csv", ROWS, random.Random(seed))


@pytest.mark.timeout(300)
@pytest.mark.parametrize("attempt", range(SEEDS))
def test_each_flight_is_accounted_for_whoever_dies(table: Path, folder: Path, seed: int, attempt: int) -> None:
    arguments = ("--data", table, "--keep", folder / "kept", "--seed", seed + attempt, "--kills", 3, "--json")
    result = run_process("demo", "handlers", *arguments)
    assert result.returncode == 0, result.stdout + result.stderr
    found = json.loads(result.stdout)
    assert found["ok"]
    assert [check["name"] for check in found["checks"] if not check["ok"]] == []
    assert len(found["checks"]) == 12
    cancelled = flights.load_flights(table).facts["never departed"]
    exceptions = found["exceptions"]
    assert set(exceptions) in ({"TypeError"}, {"TypeError", "WorkerDied"})
    assert cancelled <= found["letters"] <= cancelled + exceptions.get("WorkerDied", 0)
    assert found["letters"] == sum(exceptions.values()) == sum(found["carriers"].values())
    assert found["events"] == ROWS
    assert (found["died_in_move"], found["died_in_call"], found["killed"] >= 1) == (1, 1, True)
    listed = run("dlq", "list", "flights", "--group", "delays", "--state", "all", "--store", found["store"], "--json")
    letters = [json.loads(line) for line in listed.stdout.splitlines()]
    assert {letter["state"] for letter in letters} == {"redriven"}
    assert len(letters) == found["letters"]


@pytest.mark.timeout(300)
def test_plain_lines_where_there_is_no_terminal(table: Path, folder: Path) -> None:
    arguments = ("--data", table, "--keep", folder / "kept", "--kills", 0, "--events", FEW)
    result = run_process("demo", "handlers", *arguments)
    assert result.returncode == 0, result.stdout + result.stderr
    assert "\x1b" not in result.stdout
    for words in (
        *("400 flights", "seed", "fastlog dlq list flights --group delays", "TypeError", "carrier", "exactly once"),
        *("an effect of every flight", "0 repeated", "each once", "lag 0", "fastlog dlq list flights"),
    ):
        assert words in result.stdout
    assert "killed:" not in result.stdout  # nobody dies, so nothing is said of deaths


# --- the checks can fail --------------------------------------------------------------------------


class Stage:
    """The demo in this process: nobody is killed, and what is wrong was planted."""

    def __init__(self, folder: Path, dataset: Dataset) -> None:
        self.dataset = dataset
        self.folder = folder / "effects"
        self.folder.mkdir()
        handlers.effects.folder = self.folder
        self.store = fastlog.open(folder / "store", durability="os")
        fleet.produce(self.store, dataset)

    def handle(self, handler: Callable[[fastlog.Record], None]) -> None:
        """Run both groups until nothing waits."""
        app = handlers.app_of(handler, self.store)
        app.start()
        deadline = time.monotonic() + PATIENCE
        while any(accounts.lag_of(self.store, group) for group in handlers.GROUPS):
            assert time.monotonic() < deadline, app.stats()
            time.sleep(0.02)
        app.stop()
        app.wait()
        handlers.effects.close()

    def number(self, *, departed: bool) -> int:
        """A flight from the middle that departed, or did not."""
        events = [json.loads(value)["departure_delay"] for value in self.dataset.values]
        return [number for number, delay in enumerate(events) if (delay is not None) == departed][3 if departed else 0]

    def mend(self) -> None:
        """The rest of the demo, after a first version of the handler."""
        self.letters.redrive()
        self.handle(handlers.add_delay_or_cancellation)

    @property
    def letters(self) -> fastlog.DeadLetters:
        return fastlog.DeadLetters.open(self.store, handlers.EVENTS, handlers.DELAYS)

    def partition_with_letters(self) -> int:
        return next(iter(self.letters.survey().partitions))

    def problems(self) -> list[str]:
        checks = accounts.check_all(self.store, self.folder, self.dataset)
        return [check.name for check in checks if not check.ok]

    def close(self) -> None:
        handlers.effects.close()
        handlers.effects.folder = None
        self.store.close()


@pytest.fixture
def stage(table: Path, folder: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Stage]:
    monkeypatch.setattr(runner, "COMMIT_INTERVAL_MS", 20)  # what is waited for is that all is committed
    found = Stage(folder, flights.load_flights(table).first(FEW))
    yield found
    found.close()


SOURCE = "topic flights"
EFFECT, CARRIERS = "group delays: an effect of every flight", "group delays: delay per carrier"
ORDER, REPEATS = "group delays: in order per aircraft", "group delays: repeated effects"
RETRIES, LETTERS = "topic flights.delays.retry: each move once", "topic flights.delays.dlq: each once"


def is_flight(record: fastlog.Record, number: int) -> bool:
    return record.headers["id"] == b"%d" % number


def test_nothing_is_wrong_when_nothing_was_planted(stage: Stage) -> None:
    stage.handle(handlers.add_delay)
    assert stage.problems() == [EFFECT, CARRIERS, RETRIES, LETTERS]  # before the redrive
    stage.mend()
    assert stage.problems() == []


@pytest.mark.parametrize("departed", [True, False])
def test_a_handler_that_loses_one_flight_is_noticed(stage: Stage, departed: bool) -> None:
    lost = stage.number(departed=departed)

    def losing(record: fastlog.Record) -> None:
        if not is_flight(record, lost):
            version(record)

    version = handlers.add_delay
    stage.handle(losing if departed else version)
    stage.letters.redrive()
    version = handlers.add_delay_or_cancellation
    stage.handle(version if departed else losing)
    assert stage.problems() == [EFFECT, CARRIERS]


def test_a_redrive_that_runs_twice_is_noticed(stage: Stage) -> None:
    stage.handle(handlers.add_delay)
    stage.mend()
    letter = next(stage.letters.list(state="handled"))
    with stage.store.producer() as producer:  # by hand: what the audit would have kept from happening
        producer.send(
            accounts.RETRY_TOPIC, letter.value, key=letter.key, headers=redriven_headers(letter),
            partition=letter.partition,
        )  # fmt: skip
    stage.handle(handlers.add_delay_or_cancellation)
    assert stage.problems() == [REPEATS, RETRIES]


def test_a_dead_letter_that_is_there_twice_is_noticed(stage: Stage) -> None:
    stage.handle(handlers.add_delay)
    record = next(
        iter(stage.store.topic(accounts.DEAD_LETTER_TOPIC).partition(stage.partition_with_letters()).records())
    )
    with stage.store.producer() as producer:
        producer.send(
            record.topic, record.value, key=record.key, headers=record.headers, partition=record.partition
        )  # fmt: skip
    stage.mend()
    assert stage.problems() == [REPEATS, RETRIES, LETTERS]


def test_a_flight_that_was_sent_twice_is_noticed(stage: Stage) -> None:
    again = stage.number(departed=True)
    data = stage.dataset
    with stage.store.producer() as producer:
        producer.send(
            handlers.EVENTS, data.values[again], key=data.keys[again], timestamp=data.timestamps[again],
            headers={"id": b"%d" % again},
        )  # fmt: skip
    stage.handle(handlers.add_delay)
    stage.mend()
    assert stage.problems() == [SOURCE, REPEATS, "group airports: repeated effects"]


def test_wrong_and_repeated_effects_are_noticed(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    wrong = stage.number(departed=True)

    def twice(record: fastlog.Record) -> None:
        handlers.add_delay(record)
        if is_flight(record, wrong):
            handlers.add_delay(record)

    stage.handle(twice)
    stage.mend()
    assert stage.problems() == [REPEATS]
    # a process that was killed may have left such effects, but only the last of its time
    for diary in stage.folder.glob("delays-*"):
        diary.write_bytes(diary.read_bytes().removesuffix(handlers.GOOD_END))
    assert stage.problems() == []
    monkeypatch.setattr(accounts, "MOST_NOT_COMMITTED", 0)
    monkeypatch.setattr(accounts, "LONGEST_NOT_COMMITTED_NS", 0)
    assert stage.problems() == [REPEATS]
    line = b" %d " % wrong
    for diary in stage.folder.glob("delays-*"):
        lines = diary.read_bytes().splitlines(keepends=True)
        diary.write_bytes(b"".join(one.replace(b"\n", b"7\n") if line in one else one for one in lines))
    assert stage.problems()[:2] == [EFFECT, CARRIERS]


def test_flights_that_overtake_are_noticed(stage: Stage) -> None:
    data = stage.dataset
    events = [json.loads(value) for value in data.values]
    by_aircraft: dict[bytes, list[int]] = {}
    for number, key in enumerate(data.keys):
        if key is not None and events[number]["departure_delay"] is not None:
            by_aircraft.setdefault(key, []).append(number)
    early, late = next(numbers for numbers in by_aircraft.values() if len(numbers) > 1)[:2]
    order = list(range(len(data)))
    effects = [accounts.Effect(when, number, "", 1, 1, False) for when, number in enumerate(order)]
    assert accounts.check_order(effects, data, ()).ok
    order[early], order[late] = late, early
    effects = [accounts.Effect(when, number, "", 1, 1, False) for when, number in enumerate(order)]
    assert not accounts.check_order(effects, data, ()).ok
