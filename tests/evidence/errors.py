"""E5: system calls and allocations that fail, at every place where a life makes them.

What fails is one call, once or from then on: below the one room that makes system calls (``oscalls``), or an
allocation of the compiled modules, or one of Python within their calls. Each life of a log or of a store is as good as
without a fault before; whatever was acknowledged is there afterwards, later calls work, no error comes without a name,
and nothing stays open (``tests/trials``, ``tests/faults``). Its processes are forked by one that was started with the
library that lets allocations fail: this module as a program.

``strace`` is the check upon this one: it lets calls fail without that room's help, and its record of a life has to hold
no call that could not have been made to fail.

Which places a run has reached, and let fail how often, stands in ``build/evidence/errors-places.txt``.
"""

from __future__ import annotations

import contextlib
import functools
import gc
import json
import logging
import shutil
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from tests import faults, injector, traced
from tests.crash.checker import quiet
from tests.crash.recording import RecorderUnavailable, build_library
from tests.evidence.guarded import Tell, guarded
from tests.evidence.run import KEPT, NotHere, Scenario, Turn, environment
from tests.trials import Trial

INJECTIONS = {"log": 60, "store": 10, "python": 60}  # of one turn
WEIGHTS = {"log": 12, "store": 4, "python": 3}
TRACED = {
    "fdatasync": ("EIO", 60),
    "fsync": ("EIO", 8),
    "pwrite64": ("ENOSPC", 60),
    "ftruncate": ("EIO", 12),
}  # what strace makes fail, and about how often it is called
SECONDS = 300.0
PLACES = KEPT / "errors-places.txt"


@contextlib.contextmanager
def errors() -> Iterator[list[Scenario]]:
    """One scenario for each thing that something fails under, and for each way of failing."""
    if shutil.which("strace") is None:
        raise NotHere("strace is missing, which sees every system call: apt-get install strace")
    with tempfile.TemporaryDirectory(prefix="fastlog-errors-") as name:
        try:
            library = build_library(injector.SOURCE, Path(name))
        except RecorderUnavailable as problem:
            raise NotHere(str(problem)) from problem
        places = Path(name) / "places"
        with Server(library, places) as server:
            yield [
                *(Scenario(kind, functools.partial(server.take, kind), WEIGHTS[kind]) for kind in faults.KINDS),
                Scenario("strace", lambda turn: guarded(turn, functools.partial(fail_under_strace, turn), SECONDS)),
                Scenario("complete", see_all_calls),
            ]
        write_places(places)


# --- below oscalls, and below the allocators --------------------------------------------------------------------------


class Server:
    """A process that was started with the injector, and forks one for each turn."""

    def __init__(self, library: Path, places: Path) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-m", "tests.evidence.errors", str(places)],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment(**injector.environment(library)),
        )  # fmt: skip

    def __enter__(self) -> Server:
        return self

    def __exit__(self, *exception: object) -> None:
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.wait()

    def take(self, kind: str, turn: Turn) -> None:
        """One turn in there."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        print(json.dumps([kind, turn.seed, str(turn.folder)]), file=self.process.stdin, flush=True)
        line = self.process.stdout.readline()
        assert line, f"the server of turns ended with {self.process.wait()}"
        counts, problem = json.loads(line)
        for what, number in counts.items():
            turn.count(what, number)
        if problem is not None:
            raise AssertionError(problem)


def serve(places: Path) -> None:
    """Take turns that lines on standard input ask for, each in a process of its own."""
    logging.getLogger("fastlog").setLevel(logging.CRITICAL)
    injector.prepare()
    gc.collect()
    gc.freeze()
    for line in sys.stdin:
        kind, seed, folder = json.loads(line)
        turn = Turn(seed, Path(folder))
        problem = None
        try:
            guarded(turn, functools.partial(live, kind, turn, places), SECONDS)
        except AssertionError as failure:
            problem = str(failure)
        print(json.dumps([turn.counts, problem]), flush=True)


def live(kind: str, turn: Turn, places: Path, tell: Tell) -> None:
    witness = faults.Witness(tell)
    folder = turn.folder / "lives"
    folder.mkdir()
    try:
        faults.KINDS[kind](folder, INJECTIONS[kind], turn.chance, witness)
    finally:
        with places.open("a") as file:
            file.write(json.dumps([kind, sorted(witness.reached), witness.failed]) + "\n")


def write_places(places: Path) -> None:
    """What was reached and let fail in all turns, and how often; and a line about it."""
    reached: set[str] = set()
    failed: Counter[str] = Counter()
    for line in places.read_text().splitlines() if places.exists() else ():
        kind, seen, let_fail = json.loads(line)
        reached |= {f"{kind}: {place}" for place in seen}
        failed.update(f"{kind}: {place}" for place in let_fail)
    if not reached:
        return
    PLACES.parent.mkdir(parents=True, exist_ok=True)
    rows = [f"{failed[place]:7}  {place}" for place in sorted(reached | set(failed))]
    text = f"{len(reached | set(failed))} places were reached, {len(failed)} of them have failed"
    PLACES.write_text("\n".join([text, "", " failed  place", *rows, ""]))
    print(f"{text}: {PLACES.name}", file=sys.stderr)


# --- by strace --------------------------------------------------------------------------------------------------------


def fail_under_strace(turn: Turn, tell: Tell) -> None:
    """The life of a log whose system calls a tracer lets fail: it asks nothing of the room that makes them."""
    call = turn.chance.choice(list(TRACED))
    error, most = TRACED[call]
    nth = f"{turn.chance.randint(1, most)}{turn.chance.choice(['', '+'])}"
    path, trace, level = turn.folder / "events", turn.folder / "trace.txt", turn.chance.choice(faults.LEVELS)
    command = [
        "strace", "-f", "-qq", "-o", str(trace), "-e", f"trace={call}", "-e", f"inject={call}:error={error}:when={nth}",
        sys.executable, "-m", "tests.trials", str(path), level,
    ]  # fmt: skip
    result = subprocess.run(command, check=False, capture_output=True, text=True, env=environment(), timeout=SECONDS)
    assert result.returncode == 0, f"{call}, the {nth}th: {result.stderr[-5000:]}"
    was_hit = "(INJECTED)" in trace.read_text()
    trial = Trial(path, level)
    failures = trial.take_over(result.stdout)
    assert was_hit or not failures, failures
    with quiet():
        trial.settle()
    tell("injections", int(was_hit))
    tell("injections by strace", int(was_hit))


def see_all_calls(turn: Turn) -> None:
    """The life of a log and that of a store leave no trace of a system call that could not have been made to fail."""
    number = traced.require_all_injectable(turn.folder, turn.seed, environment())
    turn.count("system calls seen by strace", number)


if __name__ == "__main__":
    serve(Path(sys.argv[1]))
