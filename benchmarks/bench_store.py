"""What a store costs that does nothing: memory, threads; and what many partitions cost."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from benchmarks.contest import Contestant, Prepare, Work, contest, once
from benchmarks.messaging import open_store
from benchmarks.workload import IDLE_TOPIC, Sizes, Stage

_ROOT = Path(__file__).parents[1]


def _ask(what: str, path: Path, count: int = 0) -> dict[str, float]:
    command = [sys.executable, "-m", "benchmarks.store_probe", what, str(path), str(count)]
    found: dict[str, float] = json.loads(subprocess.check_output(command, cwd=_ROOT, text=True))
    return found


def _many_partitions(step: str) -> Prepare:
    """One step of the probe, which takes its steps once in a run, one after the other: each follows from the last."""

    @contextmanager
    def prepare(stage: Stage) -> Iterator[Work]:
        answer = stage.datasets.path("many-partitions", lambda path: _probe(path, stage.sizes)) / "found"

        def work() -> int:
            found = json.loads(answer.read_text())
            stage.details["bytes_each"] = found["bytes_each"]
            stage.samples.append(found[step])
            return 1

        yield work

    return prepare


def _probe(path: Path, sizes: Sizes) -> None:
    with open_store(path / "store") as store:
        store.create_topic(IDLE_TOPIC, sizes.idle_partitions)
    found = _ask("partitions", path / "store", sizes.used_partitions)
    (path / "found").write_text(json.dumps(found))
    shutil.rmtree(path / "store")


@contest(
    "many-partitions",
    "A topic of 10,000 partitions, and 2,000 of them used once",
    Contestant("open", "a Store", _many_partitions("open")),
    Contestant("written to once", "a Delivery each", _many_partitions("written to once")),
    Contestant("consumer", "a Consumer of 2,000", _many_partitions("consumer")),
    unit="steps",
    turns=once,
    rounds_per_turn=once,
    warm_up_rounds=0,
)
def bench_many_partitions(play: Callable[[], None]) -> None:
    play()


@contextmanager
def _idle_store(stage: Stage) -> Iterator[Work]:
    def work() -> int:
        stage.details.update(_ask("idle", stage.directory / "store"))
        return 1

    yield work


@contest(
    "idle-store",
    "A store with one topic, a producer and a member of a group at rest",
    Contestant("store", "a Store, a Producer, a Consumer", _idle_store),
    unit="stores",
    turns=once,
    rounds_per_turn=once,
    warm_up_rounds=0,
)
def bench_idle_store(play: Callable[[], None]) -> None:
    play()
