"""A run of an engine: turns with a seed each, until a budget or a goal is reached, and one JSON line about it."""

from __future__ import annotations

import contextlib
import datetime
import os
import platform
import random
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn

from tests.folders import MEMORY

ROOT = Path(__file__).resolve().parents[2]
PLANTED = "FASTLOG_PLANTED"  # names the mistake that the imported build has in it
NOT_HERE = 3  # what a process ends with that could not run its engine
KEPT = ROOT / "build" / "evidence"  # folders of turns that failed


class NotHere(Exception):
    """This machine lacks what an engine needs; the message says what, and how to get it."""


@dataclass
class Turn:
    """One try. All that is random in it comes from ``seed``, so that it can be had again.

    ``folder`` is fresh and removed afterwards, unless the turn fails. ``count`` is what it did, by name; names are
    the units of the ledger.
    """

    seed: int
    folder: Path
    counts: Counter[str] = field(default_factory=Counter)
    measures: dict[str, list[float]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.chance = random.Random(self.seed)

    def count(self, what: str, number: int = 1) -> None:
        """``number`` more of ``what`` was done, and checked."""
        self.counts[what] += number

    def measure(self, what: str, value: float) -> None:
        """One figure, of which the JSON line has number, median, 99th percentile and largest."""
        self.measures.setdefault(what, []).append(value)


@dataclass(frozen=True)
class Scenario:
    """One kind of turn of an engine. ``weight`` turns of it come in a round."""

    name: str
    take: Callable[[Turn], None]
    weight: int = 1


Engine = Callable[[], AbstractContextManager[list[Scenario]]]


@dataclass(frozen=True)
class Failure:
    """A turn that found something."""

    scenario: str
    seed: int
    problem: str
    kept: str
    again: str


@dataclass
class Run:
    """``engine`` is the name on the command line, ``unit`` the count that ``goal`` is about."""

    engine: str
    unit: str
    seed: int
    budget: float | None = None  # seconds
    goal: int | None = None
    turns_wanted: int | None = None
    scenario: str | None = None
    tell: Callable[[Run], None] = lambda run: None
    turns: int = 0
    counts: Counter[str] = field(default_factory=Counter)
    measures: dict[str, list[float]] = field(default_factory=dict)
    failure: Failure | None = None
    began: float = field(default_factory=time.time)
    seconds: float = 0.0
    is_interrupted: bool = False

    planted: str | None = field(default_factory=lambda: os.environ.get(PLANTED))

    def is_over(self) -> bool:
        """Whether what was asked for is done, or the time is used up; never before one turn."""
        if self.turns == 0:
            return False
        if self.turns_wanted is not None and self.turns >= self.turns_wanted:
            return True
        if self.goal is not None and self.counts[self.unit] >= self.goal:
            return True
        return self.budget is not None and self.seconds >= self.budget

    def go(self, scenarios: list[Scenario]) -> bool:
        """Take turns; whether none of them found anything. An interruption ends the run early, not with a failure: the
        turn that was under way is not counted.
        """
        chosen = [one for one in scenarios if self.scenario in (None, one.name)]
        if not chosen:
            names = ", ".join(one.name for one in scenarios)
            raise NotHere(f"{self.engine} has no scenario {self.scenario!r}: expected one of {names}")
        order = [one for one in chosen for _ in range(one.weight)]
        random.Random(self.seed).shuffle(order)
        started = time.monotonic()
        with contextlib.suppress(KeyboardInterrupt):
            while not self.is_over() and self.failure is None:
                self._take(order[self.turns % len(order)], self.seed + self.turns)
                self.seconds = time.monotonic() - started
                self.tell(self)
        return self.failure is None

    def _take(self, scenario: Scenario, seed: int) -> None:
        folder = Path(tempfile.mkdtemp(prefix=f"fastlog-{self.engine.replace(' ', '-')}-", dir=MEMORY))
        turn = Turn(seed, folder)
        try:
            scenario.take(turn)
        except (KeyboardInterrupt, NotHere):
            raise
        except BaseException as problem:  # whatever a turn raises is what it found
            if self.is_interrupted:
                raise KeyboardInterrupt from problem  # in the middle of it processes are gone, say
            self.failure = self._keep(scenario, turn, problem)
        finally:
            shutil.rmtree(folder, ignore_errors=True)
        self.turns += 1
        self.counts += turn.counts
        for what, values in turn.measures.items():
            self.measures.setdefault(what, []).extend(values)

    def _keep(self, scenario: Scenario, turn: Turn, problem: BaseException) -> Failure:
        kept = KEPT / f"{self.engine.replace(' ', '-')}-{scenario.name}-{turn.seed}"
        shutil.rmtree(kept, ignore_errors=True)
        if self.planted is None:
            shutil.copytree(turn.folder, kept, symlinks=True, ignore_dangling_symlinks=True)
            (kept / "traceback.txt").write_text("".join(traceback.format_exception(problem)))
        again = f"python -m tests.evidence {self.engine} --scenario {scenario.name} --seed {turn.seed} --turns 1"
        if self.planted is not None:
            again = f"{PLANTED}={self.planted} {again}"
        where = str(kept.relative_to(ROOT)) if self.planted is None else ""
        return Failure(scenario.name, turn.seed, f"{type(problem).__name__}: {problem}", where, again)

    def interrupt(self, *_: object) -> NoReturn:
        """For SIGINT and SIGTERM: end soon. What comes later is ignored: there is a line to be written."""
        self.is_interrupted = True
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, signal.SIG_IGN)
        raise KeyboardInterrupt

    def line(self) -> dict[str, Any]:
        """What the ledger keeps of this run."""
        return {
            "engine": self.engine, "unit": self.unit, "seed": self.seed, "turns": self.turns,
            "counts": dict(sorted(self.counts.items())),
            "measures": {what: summary(values) for what, values in sorted(self.measures.items())},
            "began": datetime.datetime.fromtimestamp(self.began, datetime.UTC).isoformat(timespec="seconds"),
            "seconds": round(self.seconds, 1), "scenario": self.scenario, "planted": self.planted,
            "failure": None if self.failure is None else vars(self.failure),
            "commit": commit(), "machine": machine(),
        }  # fmt: skip


def summary(values: list[float]) -> dict[str, float]:
    """Number, median, 99th percentile and largest of some figures."""
    ordered = sorted(values)

    def at(share: float) -> float:
        return ordered[min(len(ordered) - 1, int(share * len(ordered)))]

    return {"n": len(ordered), "median": at(0.5), "p99": at(0.99), "max": ordered[-1]}


def commit() -> str:
    """The commit that was run, with ``+`` behind it when files differ from it."""
    try:
        name = _git("rev-parse", "--short=12", "HEAD")
        return name + ("+" if _git("status", "--porcelain", "--untracked-files=no") else "")
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


def is_of_this_history(name: str) -> bool:
    """Whether it names a commit, by its number, that the one that is checked out comes from."""
    try:
        _git("merge-base", "--is-ancestor", name, "HEAD")
    except (OSError, subprocess.CalledProcessError):
        return False
    return re.fullmatch("[0-9a-f]+", name) is not None


def _git(*arguments: str) -> str:
    return subprocess.run(["git", *arguments], cwd=ROOT, check=True, capture_output=True, text=True).stdout.strip()


def machine() -> dict[str, Any]:
    """What figures depend on; nothing that names a machine."""
    return {
        "cpus": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "system": f"{platform.system()} {platform.release().split('-')[0]} {platform.machine()}",
        "python": platform.python_version(),
    }


def environment(**more: str) -> dict[str, str]:
    """For processes that shall import what this one does."""
    return {**os.environ, "PYTHONPATH": os.pathsep.join(path or os.getcwd() for path in sys.path), **more}


@contextlib.contextmanager
def one_scenario(take: Callable[[Turn], None], name: str = "all") -> Iterator[list[Scenario]]:
    """For engines that need no setting up."""
    yield [Scenario(name, take)]
