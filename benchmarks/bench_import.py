"""What ``import fastlog`` adds to a program that imports NumPy anyway: whole processes, taking turns."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from benchmarks.contest import Contestant, Prepare, Work, contest
from benchmarks.workload import Stage


def _run(statement: str) -> Prepare:
    @contextmanager
    def prepare(stage: Stage) -> Iterator[Work]:
        def work() -> int:
            subprocess.run([sys.executable, "-c", statement], check=True)
            return 1

        yield work

    return prepare


@contest(
    "import",
    "Start Python and import",
    Contestant("nothing", "a process", _run("pass")),
    Contestant("numpy", "a process", _run("import numpy")),
    Contestant("fastlog", "a process", _run("import numpy, fastlog")),
    unit="processes",
    turns=lambda sizes: sizes.import_turns,
    rounds_per_turn=lambda sizes: 1,
)
def bench_import(play: Callable[[], None]) -> None:
    play()
