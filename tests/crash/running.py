"""A workload that was recorded, and its disks checked one after the other."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.crash.failures import AnyHistory, history_of, keep_failure
from tests.crash.recording import Record, record_child, record_run
from tests.crash.replayer import Place, Replayer, choose_disks
from tests.histories.nursery import Nursery


@dataclass
class Run:
    """A recorded workload, and the folder that its disks are put into.

    ``failures`` is where a disk that fails is kept; None: a new temporary folder.
    """

    name: str
    seed: int
    place: Place
    recorded: Record
    history: AnyHistory
    failures: Path | None = None

    def check_disks(
        self,
        count: int,
        chance: random.Random,
        replayer: Replayer | None = None,
        checked: Callable[[], None] = lambda: None,
    ) -> int:
        """Check up to ``count`` disks; return how many there were. A failure is kept, and says how to see it again.

        ``checked`` is called after each.
        """
        replayer = replayer or Replayer(self.recorded)
        number = 0
        with self.place.believed():
            for number, (at, losses, disk) in enumerate(choose_disks(replayer, count, chance), 1):
                self.place.put(disk)
                try:
                    self.history.check(self.place.root, at, number)
                except Exception as problem:
                    kept = keep_failure(
                        self.recorded, self.history, self.name, at, losses, number, folder=self.failures
                    )
                    raise AssertionError(
                        f"{self.name}, seed {self.seed}, disk {number}: {type(problem).__name__}: {problem}\n"
                        f"{replayer.describe(at, losses)}\n"
                        f"promised: {self.history.told(at)}\n"
                        f"again: python -m tests.crash {kept}"
                    ) from problem
                checked()
        return number


def record(recorder: Path | Nursery, folder: Path, name: str, seed: int) -> Run:
    """Record a workload in a new folder. ``recorder`` is the library, or a server that has loaded it."""
    root = folder / "root"
    root.mkdir(exist_ok=True)
    return record_again(recorder, Place(root), name, seed, folder / "trace")


def record_again(recorder: Path | Nursery, place: Place, name: str, seed: int, trace: Path) -> Run:
    """Record a workload in a folder as it is."""
    inodes = list(place.inodes.items())
    if isinstance(recorder, Nursery):
        facts: dict[str, Any] = {"workload": name, "folder": str(place.root), "seed": seed, "inodes": inodes}
        role = "tests.crash.workloads:run_recorded"
        recorded = record_child(recorder, place.root, trace, role, facts, place.inodes)
    else:
        told = trace.with_name("inodes.json")
        told.write_text(json.dumps(inodes))
        arguments = ["-m", "tests.crash.workloads", name, str(place.root), str(seed), str(told)]
        recorded = record_run(recorder, place.root, trace, arguments, place.inodes)
        told.unlink()
    trace.unlink()
    return Run(name, seed, place, recorded, history_of(name, recorded, seed))
