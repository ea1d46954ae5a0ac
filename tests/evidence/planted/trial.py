"""The engines against planted mistakes: each in a process of its own, which imports the build with the mistakes in it.

A mistake is caught when its engine ends with a turn that found something. Without any mistake switched on the same
build has to come through the very turns that caught one, or what they found says nothing of the mistake.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.evidence import ledger
from tests.evidence.planted import MISTAKES
from tests.evidence.planted.mistake import Mistake
from tests.evidence.run import NOT_HERE, PLANTED, ROOT, Run, commit, environment

GRACE = 120.0  # seconds beyond its budget in which a turn has to come to its end
LARGE = 1 << 30  # bytes of the log that the engine ``reopen`` makes here
TURN = 30.0  # seconds that a turn without a mistake may take


@dataclass(frozen=True)
class Outcome:
    """What became of one run of an engine: on a mistake, or on the same build without one."""

    engine: str
    scenario: str
    mistake: Mistake | None
    seed: int
    seconds: float
    status: int
    line: dict[str, Any] | None
    said: str

    @property
    def name(self) -> str:
        return "(none)" if self.mistake is None else self.mistake.name

    @property
    def turns(self) -> int:
        """How many it took."""
        return 0 if self.line is None else int(self.line["turns"])

    @property
    def problem(self) -> str | None:
        """What the engine found."""
        failure = None if self.line is None else self.line["failure"]
        return None if failure is None else str(failure["problem"])

    @property
    def is_right(self) -> bool:
        """Whether a mistake was caught, or nothing was found where there is none. What this machine cannot run is
        neither."""
        return self.line is not None and (self.problem is None) == (self.mistake is None)

    @property
    def verdict(self) -> str:
        """In words."""
        if self.line is None:
            return "cannot be run here" if self.status == NOT_HERE else f"NO RESULT, ended with {self.status}"
        if self.mistake is None:
            return "passes" if self.problem is None else "FAILS WITHOUT A MISTAKE"
        return "SURVIVED" if self.problem is None else f"caught after {self.seconds:.0f} s, in turn {self.turns}"

    @property
    def again(self) -> str:
        """The command for the same once more."""
        if self.mistake is not None:
            return f"python -m tests.evidence planted {self.mistake.name} --seed {self.seed}"
        command = f"python -m tests.evidence {self.engine} --scenario {self.scenario} --seed {self.seed}"
        return f"PYTHONPATH=build/planted/lib {command} --turns {max(1, self.turns)}"


def seed_of_commit() -> int:
    """Another one for each commit, and the same for all who try that commit; without git one for each day."""
    name = commit().rstrip("+")
    return int(name[:8], 16) if name != "unknown" else int(time.time() // 86_400)


def sample(count: int, seed: int) -> list[Mistake]:
    """Some of the mistakes: one part of as many as it takes, ``seed`` modulo their number, so that all of them come.

    Which part a mistake is in changes with nothing but the list; those that take long are spread over all parts.
    """
    mixed = sorted(MISTAKES.values(), key=lambda one: (-one.budget, random.Random(one.name).random()))
    count = min(count, len(mixed))
    parts = -(-len(mixed) // count)
    part = seed % parts
    return (mixed[part::parts] + mixed[(part + 1) % parts :: parts])[:count]


def end_group(leader: int) -> None:
    """End a process and all that it has started."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(leader, signal.SIGKILL)


@dataclass
class Trials:
    """A run over some mistakes."""

    chosen: Sequence[Mistake]
    seed: int
    jobs: int = 2
    lines: Path | None = None
    outcomes: list[Outcome] = field(default_factory=list)
    running: set[int] = field(default_factory=set)  # processes of engines

    def go(self, library: Path, tell: Callable[[Outcome], None]) -> bool:
        """Try every mistake, and every scenario without one; whether all of it is right."""
        with ThreadPoolExecutor(self.jobs) as pool:
            try:
                for attempts in (self._on_mistakes, self._on_none):
                    waiting = [pool.submit(self.attempt, library, *arguments) for arguments in attempts()]
                    for done in as_completed(waiting):
                        self.outcomes.append(done.result())
                        ledger.append(self.line(self.outcomes[-1]), self.lines)
                        tell(self.outcomes[-1])
            except BaseException:
                pool.shutdown(wait=False, cancel_futures=True)
                for leader in list(self.running):
                    end_group(leader)
                raise
        return all(one.is_right for one in self.outcomes)

    def _on_mistakes(self) -> Iterator[tuple[str, str, Mistake | None, int]]:
        # the longest first, so that they end together
        for one in sorted(self.chosen, key=lambda one: -one.budget):
            yield one.engine, one.scenario, one, 0

    def _on_none(self) -> Iterator[tuple[str, str, Mistake | None, int]]:
        """As many turns as were taken, and of the same seed."""
        turns: dict[tuple[str, str], int] = {}
        for one in self.outcomes:
            turns[one.engine, one.scenario] = max(1, one.turns, turns.get((one.engine, one.scenario), 0))
        for (engine, scenario), taken in sorted(turns.items(), key=lambda one: -one[1]):
            yield engine, scenario, None, taken

    def attempt(self, library: Path, engine: str, scenario: str, planted: Mistake | None, turns: int) -> Outcome:
        """Run one scenario of an engine on the build: with a mistake as long as that may take, without one so many
        turns."""
        budget = 0.0 if planted is None else planted.budget
        path = os.pathsep.join([str(library), environment()["PYTHONPATH"]])
        inherited = {
            **os.environ,
            "PYTHONPATH": path,
            "FASTLOG_REOPEN_BYTES": str(LARGE),
            PLANTED: planted.name if planted is not None else "",
        }
        with tempfile.TemporaryDirectory(prefix="fastlog-planted-") as name, tempfile.TemporaryFile("w+") as said:
            lines = Path(name, "line.jsonl")
            command = [sys.executable, "-m", "tests.evidence", engine, "--scenario", scenario, "--seed", f"{self.seed}"]
            command += ["--turns", f"{turns}"] if planted is None else ["--budget", f"{budget:g}s"]
            command += ["--json", str(lines)]
            began = time.monotonic()
            process = subprocess.Popen(
                command, cwd=ROOT, env=inherited, stdout=said, stderr=subprocess.STDOUT, start_new_session=True
            )
            self.running.add(process.pid)
            try:
                with contextlib.suppress(subprocess.TimeoutExpired):
                    process.wait(max(budget, turns * TURN) + GRACE)
            finally:
                end_group(process.pid)  # with whatever it has left behind
                self.running.discard(process.pid)
                process.wait()
            seconds = time.monotonic() - began
            line = json.loads(lines.read_text().splitlines()[-1]) if lines.exists() else None
            said.seek(0)
            return Outcome(engine, scenario, planted, self.seed, seconds, process.returncode, line, said.read())

    def line(self, outcome: Outcome) -> dict[str, Any]:
        """What the ledger keeps of one of them."""
        run = Run("planted", "mistakes", outcome.seed, planted=outcome.mistake.name if outcome.mistake else "none")
        run.turns = outcome.turns
        run.began, run.seconds = time.time() - outcome.seconds, outcome.seconds
        run.scenario = f"{outcome.engine}:{outcome.scenario}"
        if outcome.mistake is not None:
            run.counts.update({"mistakes": 1, "caught": int(outcome.problem is not None)})
        return {**run.line(), "is_right": outcome.is_right, "problem": outcome.problem}
