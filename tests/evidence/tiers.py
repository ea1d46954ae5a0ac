"""The engines together, each in a process of its own, up to the goals of a tier.

The tier ``ci`` runs every engine once. The tier ``long`` goes on from whatever the JSON lines already hold, in parts,
so that it can be ended and taken up again at any time: SIGINT and SIGTERM end each part after its last finished turn,
and what was done counts.
"""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.evidence import ledger
from tests.evidence.engines import ALONE, ENGINES, Entry
from tests.evidence.run import PLANTED, ROOT, environment

SAY_EVERY = 60.0
MOST_TURNS = 1 << 16  # of a part
PATIENCE = 4  # how much longer than planned an engine may take before it falls short


@dataclass
class Part:
    """One run of an engine in a process of its own."""

    entry: Entry
    options: list[str]
    lines: Path
    seconds: float = 0.0  # that it was given
    began: float = field(default_factory=time.monotonic)

    def __post_init__(self) -> None:
        command = [sys.executable, "-m", "tests.evidence", self.entry.name, *self.options, "--json", str(self.lines)]
        inherited = environment()
        inherited.pop(PLANTED, None)
        self.said = tempfile.TemporaryFile()  # noqa: SIM115 - read when the process has ended
        # a terminal's ^C is for the tier, which passes it on
        self.process = subprocess.Popen(
            command, cwd=ROOT, env=inherited, stdout=self.said, stderr=subprocess.STDOUT, start_new_session=True
        )

    def line(self) -> dict[str, Any] | None:
        """Its JSON line, when it came to an end."""
        if not self.lines.exists():
            return None
        *_, last = self.lines.read_text().splitlines()
        found: dict[str, Any] = json.loads(last)
        return found

    def words(self) -> str:
        """What it printed."""
        return os.pread(self.said.fileno(), 1 << 20, 0).decode(errors="replace")


Begin = Callable[[Path], Part]  # with the file for its line


class Ending:
    """Whether somebody asked for the end, by SIGINT or SIGTERM."""

    def __init__(self) -> None:
        self.is_asked = False

    def ask(self, *_: object) -> None:
        self.is_asked = True

    def __enter__(self) -> Ending:
        self.before = [(number, signal.signal(number, self.ask)) for number in (signal.SIGINT, signal.SIGTERM)]
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self.before:
            signal.signal(number, handler)


@dataclass
class Outcome:
    """What a tier came to."""

    ending: Ending
    lines: list[dict[str, Any]] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)

    def take(self, part: Part, say: Callable[[str], None], wanted: int | None) -> dict[str, Any] | None:
        """A part has ended: keep its line, and what is wrong with it. Returns the line, if there is one."""
        line, name = part.line(), part.entry.name
        if line is None:
            if not self.ending.is_asked:  # else it had not finished a turn
                self.problems.append(f"{name} ended with {part.process.returncode} and without a result")
                say(part.words())
            return None
        self.lines.append(line)
        ledger.append(line)
        say(ledger.sentence(line))
        done = line["counts"].get(part.entry.unit, 0)
        if line["failure"] is not None:
            self.problems.append(f"{name} found something: {line['failure']['problem']}")
            say(part.words())
        elif wanted is not None and done < wanted and not self.ending.is_asked:
            did = f"{done:,} of {wanted:,} {part.entry.unit} in {line['seconds']:.0f} s"
            self.problems.append(f"{name} did {did}: the machine, or the engine, is too slow")
        return line


def run_parts(
    next_part: Callable[[], Begin | None], jobs: int, say: Callable[[str], None], ending: Ending
) -> Iterator[Part]:
    """Run parts, ``jobs`` at a time; yields each when it has ended. Once a minute says how far those are that run.

    ``next_part`` is asked whenever there is room; None: nothing for now, and the end when nothing runs any more.
    """
    running: list[Part] = []
    with tempfile.TemporaryDirectory(prefix="fastlog-evidence-") as name:
        number, due, is_passed_on = 0, time.monotonic() + SAY_EVERY, False
        try:
            while True:
                while not ending.is_asked and len(running) < jobs and (begin := next_part()) is not None:
                    number += 1
                    running.append(begin(Path(name, f"{number}.jsonl")))
                if not running:
                    return
                if ending.is_asked and not is_passed_on:
                    is_passed_on = True
                    for part in running:
                        part.process.terminate()
                time.sleep(0.05)
                for part in [one for one in running if one.process.poll() is not None]:
                    running.remove(part)
                    yield part
                if time.monotonic() >= due:
                    due = time.monotonic() + SAY_EVERY
                    for part in running:
                        *_, last = ["", *part.words().splitlines()]
                        say(f"  {last}")
        finally:
            for part in running:
                part.process.terminate()
                part.process.wait()


def run_ci(say: Callable[[str], None], seed: int, jobs: int, names: list[str]) -> Outcome:
    """Every engine up to its goal of the tier ``ci``; the longest first, so that they end together."""
    chance = random.Random(seed)

    def begin(entry: Entry) -> Begin:
        limit = f"{PATIENCE * entry.ci_seconds}s"
        options = ["--count", f"{entry.ci}", "--budget", limit, "--seed", f"{chance.randrange(1 << 32)}"]
        return lambda lines: Part(entry, options, lines)

    entries = sorted((ENGINES[name] for name in names), key=lambda entry: -entry.ci_seconds)
    with Ending() as ending:
        outcome = Outcome(ending)
        waiting = map(begin, entries)
        for part in run_parts(lambda: next(waiting, None), jobs, say, ending):
            outcome.take(part, say, part.entry.ci)
    return outcome


@dataclass
class Course:
    """How far an engine is on its way to the goal of the tier ``long``."""

    entry: Entry
    done: int = 0
    seconds: float = 0.0  # that took
    given: float = 0.0  # seconds of this session, those of running parts included
    running: int = 0  # parts
    used: list[range] = field(default_factory=list)  # seeds of turns
    before: int = 0  # what of ``done`` belongs to rounds before this one
    is_out: bool = False  # it found something, or cannot run here

    def add(self, line: dict[str, Any]) -> None:
        """What a run has done."""
        self.used.append(range(line["seed"], line["seed"] + line["turns"]))
        if line["failure"] is None:
            self.done += line["counts"].get(self.entry.unit, 0)
            self.seconds += line["seconds"]

    @property
    def left(self) -> int:
        """How many of its units are left to do."""
        return max(0, self.entry.long - (self.done - self.before))

    @property
    def lacks(self) -> float:
        """Seconds of work that are left, as fast as it was so far; before that, as the tier ``ci`` wants it."""
        left = self.left
        if self.done and self.seconds >= self.entry.ci_seconds:
            return left * self.seconds / self.done
        return left * self.entry.ci_seconds / self.entry.ci

    @property
    def may_begin(self) -> bool:
        return self.lacks > 0 and not self.is_out and (self.running == 0 or self.entry.name not in ALONE)

    def seed(self, chance: random.Random) -> int:
        """One that no turn had, with room for a part's."""
        while True:
            seeds = range(seed := chance.randrange(1 << 32), seed + MOST_TURNS)
            if not any(seeds.start < used.stop and used.start < seeds.stop for used in self.used):
                self.used.append(seeds)
                return seed

    def begin(self, seconds: float, chance: random.Random) -> Begin:
        """The next part of it."""
        self.running += 1
        self.given += seconds
        options = ["--budget", f"{seconds:.0f}s", "--count", f"{self.left}"]
        options += ["--seed", f"{self.seed(chance)}"]
        return lambda lines: Part(self.entry, options, lines, seconds)


def choose(courses: list[Course], seconds: float) -> Course | None:
    """Who gets the next ``seconds``: time is given in proportion to what is lacked. First to who runs not yet."""
    able = [one for one in courses if one.may_begin]
    able = [one for one in able if one.running == 0] or able
    given, lacks = sum(one.given for one in courses) + seconds, sum(one.lacks for one in courses)
    return max(able, key=lambda one: given * one.lacks / lacks - one.given, default=None)


def run_long(say: Callable[[str], None], budget: float, part_seconds: float, jobs: int, names: list[str]) -> Outcome:
    """Every engine goes on towards its goal of the tier ``long``, one part after the other."""
    chance = random.SystemRandom()
    courses = {name: Course(ENGINES[name]) for name in names}
    for line in ledger.read():
        if line["planted"] is None and line["engine"] in courses:
            courses[line["engine"]].add(line)
    if not any(course.left for course in courses.values()):
        say("every goal is reached: another round begins, in which each engine gets its share of the time")
        for course in courses.values():
            course.before = course.done
    until = time.monotonic() + budget

    def next_part() -> Begin | None:
        seconds = min(until - time.monotonic(), part_seconds)
        course = choose(list(courses.values()), seconds) if seconds >= 1 else None
        return None if course is None else course.begin(seconds, chance)

    with Ending() as ending:
        outcome = Outcome(ending)
        for part in run_parts(next_part, jobs, say, ending):
            course, problems = courses[part.entry.name], len(outcome.problems)
            course.running -= 1
            course.given += time.monotonic() - part.began - part.seconds
            if (did := outcome.take(part, say, None)) is not None:
                course.add(did)
            course.is_out = len(outcome.problems) > problems
            say(f"  {part.entry.name}: {course.done:,} of {part.entry.long:,} {part.entry.unit}")
    return outcome
