"""A crowd of writers and readers on one folder, what befalls them, and the history of it all."""

from __future__ import annotations

import os
import random
import signal
import time
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import fastlog
from tests.histories.checker import Anomaly, check
from tests.histories.events import History, read_lines
from tests.histories.nursery import Child, Nursery
from tests.histories.toy import ToyLog
from tests.histories.workers import SMALL, final_runs

# Bounds of the design are multiplied by it where code is instrumented.
SLOWNESS = 10 if os.environ.get("FASTLOG_SANITIZED") else 1


@dataclass
class Worker:
    """One process of the crowd."""

    number: int
    role: str
    child: Child
    notes: Path
    lines: list[str] = field(default_factory=list)
    read_to: int = 0

    def noted(self) -> list[str]:
        """The lines that it has written so far."""
        if self.notes.exists():
            with self.notes.open("rb") as file:
                file.seek(self.read_to)
                data = file.read()
            complete = data.rpartition(b"\n")[0]
            if complete:
                self.read_to += len(complete) + 1
                self.lines += complete.decode().split("\n")
        return self.lines

    @property
    def alive(self) -> bool:
        return self.child.alive

    def count(self, letter: str, since: int = 0) -> int:
        """How many events of a kind it has noted behind the line number ``since``."""
        return sum(line.startswith(letter) for line in self.noted()[since:])


class WorkerEnded(AssertionError):
    """A worker came to an end that nobody asked for; it says why in its notes."""


@dataclass
class Crowd:
    """Processes on one folder. ``options`` are those of every worker that does not say otherwise."""

    nursery: Nursery
    folder: Path
    seed: int
    options: dict[str, Any] = field(default_factory=dict)
    workers: list[Worker] = field(default_factory=list)
    kills: int = 0
    freezes: int = 0
    deaths: Counter[str] = field(default_factory=Counter)  # by the failpoint that somebody killed himself at
    waits: list[float] = field(default_factory=list)  # seconds from a death to an append of somebody else
    summary: str = ""

    def __post_init__(self) -> None:
        self.path = self.folder / "events-0"
        self.notes = self.folder / "notes"
        self.notes.mkdir(exist_ok=True)
        self.chance = random.Random(self.seed)

    def start(self, role: str, **options: Any) -> Worker:
        """One more process: ``role`` is ``write`` or ``follow`` (see ``workers``)."""
        number = len(self.workers)
        notes = self.notes / f"{number}"
        settings = {**self.options, "path": str(self.path), "seed": self.seed, **options}
        if role == "follow":
            for name in ("threads", "reopens", "flushes", "deletes", "maintains", "conditions", "sizes", "stubborn"):
                settings.pop(name, None)
        name = f"{role} {number}"
        child = self.nursery.start(f"tests.histories.workers:{role}", name, number=number, notes=str(notes), **settings)
        worker = Worker(number, role, child, notes)
        self.workers.append(worker)
        return worker

    def writers(self) -> list[Worker]:
        return [worker for worker in self.workers if worker.role == "write" and worker.alive]

    def living(self) -> list[Worker]:
        return [worker for worker in self.workers if worker.alive]

    def kill(self, worker: Worker) -> None:
        worker.child.kill()
        self.kills += 1

    def dies(self, name: str, nth: int = 1, **options: Any) -> Worker:
        """A writer that kills itself when it passes a failpoint for the ``nth`` time; when this returns it is dead."""
        worker = self.start("write", failpoint=[name, "kill", nth], **options)
        status = worker.child.wait(30)
        words = self.last_words(worker)
        assert status == signal.SIGKILL, f"{worker.child.name} ended with {status} without reaching {name}: {words}"
        self.kills += 1
        self.deaths[name] += 1
        return worker

    def settled(self, worker: Worker, timeout: float = 30) -> None:
        """Wait until a worker has its first acknowledgement, or its first read."""
        wanted = "A " if worker.role == "write" else "R "
        self.until(lambda: worker.count(wanted) > 0, timeout, "began", worker)

    def until(self, condition: Any, timeout: float, what: str, worker: Worker) -> Any:
        """Wait for something that a living worker will do; what ``condition`` returned."""
        limit = time.monotonic() + timeout
        while not (result := condition()):
            if not worker.alive:
                raise WorkerEnded(f"{worker.child.name} ended: {self.last_words(worker)}")
            assert time.monotonic() < limit, f"{worker.child.name}: never {what}; {self.last_words(worker)}"
            time.sleep(0.002)
        return result

    def last_words(self, worker: Worker) -> str:
        return "\n".join(worker.noted()[-3:])

    def goes_on(self, worker: Worker, after: int, timeout: float = 30) -> float:
        """Wait for an append of ``worker`` that began and was acknowledged after a moment; seconds until then."""
        begun: dict[str, int] = {}
        at = 0

        def ended() -> int:
            nonlocal at
            lines = worker.noted()
            while at < len(lines):
                letter, *words = lines[at].split(" ")
                at += 1
                if letter == "T":
                    begun[" ".join(words[:3])] = int(words[4])
                elif letter == "A" and int(words[4]) > after and begun[" ".join(words[:3])] > after:
                    return int(words[4])
            return 0

        seconds: float = (self.until(ended, timeout, "acknowledged an append again", worker) - after) / 1e9
        return seconds

    def all_go_on(self, workers: Iterable[Worker], after: int, within: float) -> None:
        """Each of the survivors has an append through within so many seconds of a death."""
        for worker in workers:
            seconds = self.goes_on(worker, after)
            assert seconds < within, f"{worker.child.name} went on only after {seconds:.2f} s"
            self.waits.append(seconds)

    def __enter__(self) -> Crowd:
        return self

    def __exit__(self, *_: object) -> None:
        for worker in self.living():
            worker.child.kill()

    def stop(self, timeout: float = 60) -> None:
        """Ask everybody to end, and see that all do."""
        for worker in self.living():
            worker.child.ask_to_stop()
        for worker in self.living():
            status = worker.child.wait(timeout)
            assert status == 0, f"{worker.child.name} ended with {status}: {self.last_words(worker)}"

    def history(self) -> History:
        """What everybody noted, and what the log holds now. Opens the log: nobody else should have it by now."""
        history = History()
        for worker in self.workers:
            history.add(read_lines(worker.notes), worker.child.signalled_at, worker.child.dead_by)
        mistake = self.options.get("mistake")
        if mistake is not None:
            with ToyLog(self.path) as toy:
                try:
                    history.final, history.end_offset = final_runs(toy), toy.end_offset
                except ValueError as problem:
                    history.complaints.append(str(problem))
            return history
        config = fastlog.LogConfig(**self.options.get("config", SMALL))
        with fastlog.PartitionLog.open(self.path, durability="os", config=config) as log:
            report = log.verify()
            assert report.ok, (report.damages, report.index_problems)
            history.final = final_runs(log)
            history.start_offset, history.end_offset = log.start_offset, log.end_offset
        return history

    def check(self, **options: Any) -> list[Anomaly]:
        """Stop everybody and check what happened."""
        self.stop()
        history = self.history()
        self.summary = (
            f"{self.kills} kills, {self.freezes} freezes, {len(self.workers)} processes, "
            f"{len(history.appends)} appends, "
            f"{sum(a.base is not None for a in history.appends.values())} acknowledged, "
            f"{sum(a.error is not None for a in history.appends.values())} refused, {len(history.reads)} reads, "
            f"{history.end_offset} records"
        )
        return check(history, **options)
