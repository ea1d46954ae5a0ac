"""What size costs: opening, appending to and reading a log of 10 GiB (``FASTLOG_BENCH_LOG_BYTES``)."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from benchmarks import ours
from benchmarks.contest import Contestant, Work, contest, expect
from benchmarks.workload import Sizes, Stage

_ROOT = Path(__file__).parents[1]


def _small(sizes: Sizes) -> int:
    return sizes.small_log_bytes


def _large(sizes: Sizes) -> int:
    return sizes.large_log_bytes


@contest(
    "large-open",
    "Open a cleanly closed log",
    Contestant("small log", "a PartitionLog", ours.open_large(_small)),
    Contestant("large log", "a PartitionLog", ours.open_large(_large)),
    unit="opens",
)
def bench_open_a_large_log(play: Callable[[], None]) -> None:
    play()


@contest(
    "large-append",
    "Append 1000 x 100 B per call to a log that holds much",
    Contestant("small log", "takes a list of bytes", ours.append_to_large(_small)),
    Contestant("large log", "takes a list of bytes", ours.append_to_large(_large)),
    rounds_per_turn=lambda sizes: sizes.rounds_per_turn + 1,
)
def bench_append_to_a_large_log(play: Callable[[], None]) -> None:
    play()


@contextmanager
def _read_in_a_fresh_process(stage: Stage) -> Iterator[Work]:
    path = ours.log_of_bytes(stage, _large)

    def work() -> int:
        command = [sys.executable, "-m", "benchmarks.memory_probe", str(path)]
        found = json.loads(subprocess.run(command, cwd=_ROOT, check=True, capture_output=True, text=True).stdout)
        expect(found["bytes"] >= stage.sizes.large_log_bytes * 0.85, found["bytes"], "the whole log", "bytes read")
        stage.details.update(found)
        return int(found["records"])

    yield work


@contest(
    "large-memory",
    "Read a large log in batches, in a fresh process",
    Contestant("fastlog columns", "three NumPy arrays per MiB", _read_in_a_fresh_process),
    turns=lambda sizes: 1,
    rounds_per_turn=lambda sizes: 5,
)
def bench_read_a_large_log(play: Callable[[], None]) -> None:
    play()
