"""Tiers can be ended at any time and go on later; what was done counts."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import ClassVar

import pytest

from tests.evidence import ledger, tiers
from tests.evidence.engines import ENGINES
from tests.evidence.run import Run, Scenario, Turn

# an engine: it writes its line when it is told to end
ENGINE = """
import json, signal, sys, time
name, lines, seed = sys.argv[1:]
def end(*_):
    line = {"engine": name, "unit": "kills", "seed": int(seed), "turns": 2, "counts": {"kills": 5}, "measures": {},
            "seconds": 1.0, "planted": None, "failure": None}
    open(lines, "w").write(json.dumps(line) + "\\n")
    sys.exit()
signal.signal(signal.SIGTERM, end)
print("ready", flush=True)
time.sleep(60)
"""


@pytest.fixture
def signals() -> Iterator[None]:
    """Whoever listened to signals listens again."""
    before = [(number, signal.getsignal(number)) for number in (signal.SIGINT, signal.SIGTERM)]
    yield
    for number, handler in before:
        signal.signal(number, handler)


@pytest.mark.usefixtures("signals")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_run_keeps_its_turns(number: signal.Signals) -> None:
    run = Run("kills", "kills", 1, turns_wanted=9)
    signal.signal(number, run.interrupt)

    def take(turn: Turn) -> None:
        if turn.seed == 3:
            try:
                os.kill(os.getpid(), number)
                time.sleep(10)
            finally:
                raise AssertionError("a process is gone that the turn cannot do without")
        turn.count("kills", 5)

    assert run.go([Scenario("all", take)])
    assert (run.turns, run.line()["counts"], run.failure) == (2, {"kills": 10}, None)


class FakePart(tiers.Part):
    """One that takes a minute."""

    made: ClassVar[list[FakePart]] = []

    def __post_init__(self) -> None:
        self.said = tempfile.TemporaryFile()  # noqa: SIM115 - as the real one's
        command = [sys.executable, "-c", ENGINE, self.entry.name, str(self.lines), self.options[-1]]
        self.process = subprocess.Popen(command, stdout=self.said)
        self.made.append(self)


def interrupt_when(count: int) -> None:
    """Let SIGTERM reach this process when so many parts are under way."""
    until = time.monotonic() + 60
    while sum("ready" in part.words() for part in list(FakePart.made)) < count and time.monotonic() < until:
        time.sleep(0.05)
    os.kill(os.getpid(), signal.SIGTERM)


def test_an_interrupted_tier_goes_on_later(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tiers, "Part", FakePart)
    monkeypatch.setattr(ledger, "LINES", tmp_path / "runs.jsonl")
    FakePart.made.clear()
    for session in (1, 2):
        said: list[str] = []
        thread = threading.Thread(target=interrupt_when, args=(2 * session,))
        thread.start()
        outcome = tiers.run_long(said.append, 60, 60, 2, ["kills", "disks"])
        thread.join()
        assert not outcome.problems
        assert f"  kills: {5 * session} of {ENGINES['kills'].long:,} kills" in said
    assert len({line["seed"] for line in ledger.read()}) == 4, "a seed came twice"


def test_when_every_goal_is_reached_another_round_begins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tiers, "Part", FakePart)
    monkeypatch.setattr(ledger, "LINES", tmp_path / "runs.jsonl")
    FakePart.made.clear()
    goal = ENGINES["kills"].long
    ledger.append(
        {
            "engine": "kills", "unit": "kills", "seed": 7, "turns": 1, "counts": {"kills": goal}, "seconds": 60.0,
            "planted": None, "failure": None,
        }
    )  # fmt: skip
    said: list[str] = []
    thread = threading.Thread(target=interrupt_when, args=(1,))
    thread.start()
    assert not tiers.run_long(said.append, 60, 60, 1, ["kills"]).problems
    thread.join()
    assert said[0].startswith("every goal is reached") and f"  kills: {goal + 5:,} of {goal:,} kills" in said
    (part,) = FakePart.made
    assert part.options[part.options.index("--count") + 1] == f"{goal}"


def test_a_run_ends_with_its_turns_or_with_its_budget() -> None:
    for turns, budget, taken in ((3, None, 3), (3, 3600.0, 3), (1000, 0.0, 1)):
        run = Run("kills", "kills", 1, budget, turns_wanted=turns)
        assert run.go([Scenario("all", lambda turn: turn.count("kills"))]) and run.turns == taken


def test_time_is_given_in_proportion_to_what_is_lacked() -> None:
    courses = [tiers.Course(ENGINES[name]) for name in ("disks", "damage", "histories")]
    for hours, course in enumerate(courses, 1):
        course.done, course.seconds = course.entry.long // 2, hours * 3600
    for _ in range(600):
        chosen = tiers.choose(courses, 10)
        assert chosen is not None
        chosen.given += 10
    assert [course.given for course in courses] == pytest.approx([1000, 2000, 3000], abs=20)


def test_no_seed_comes_twice() -> None:
    course = tiers.Course(ENGINES["kills"])
    chance = random.Random(1)
    first = course.seed(chance)
    assert course.seed(random.Random(1)) not in range(first - tiers.MOST_TURNS, first + tiers.MOST_TURNS)
