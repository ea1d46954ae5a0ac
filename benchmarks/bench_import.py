"""What ``import fastlog`` adds to a program that imports NumPy anyway: whole processes, taking turns.

Modules are compiled to byte code before, as an installation does it, whatever this environment says about writing it.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from benchmarks.contest import Contestant, Prepare, Work, contest
from benchmarks.workload import Stage


def _run(statement: str) -> Prepare:
    @contextmanager
    def prepare(stage: Stage) -> Iterator[Work]:
        environment = {**os.environ, "PYTHONPYCACHEPREFIX": str(stage.directory / "bytecode")}
        environment.pop("PYTHONDONTWRITEBYTECODE", None)

        def work() -> int:
            subprocess.run([sys.executable, "-c", statement], check=True, env=environment)
            return 1

        work()
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
