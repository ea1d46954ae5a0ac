"""Worker processes on one store, what they wrote into their diary, and where records are in the end."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any

import fastlog
from tests.delivery.apps import values_of
from tests.delivery.worker import Worker, read_diary

__all__ = ["PATIENCE", "Fleet", "check_order", "everything", "until"]

PATIENCE = 25.0


class Fleet:
    """Worker processes on one store. What they write down is in ``folder``, by default the store too."""

    def __init__(self, folder: Path, store: Path | None = None) -> None:
        self.folder = folder
        self.store = store or folder / "store"
        self.diary = folder / "diary"
        self.workers: list[Worker] = []

    def start(self, failpoint: str | None = None, **options: Any) -> Worker:
        """A worker, as soon as it has come to its app."""
        worker = Worker(self.folder, failpoint, {"store": str(self.store), **options})
        self.workers.append(worker)
        until(lambda: worker.code is not None or (worker.pid, "start", "worker") in read_diary(self.diary), "started")
        return worker

    def kill(self) -> None:
        for worker in self.workers:
            worker.kill()

    def calls(self, event: str = "begin") -> list[str]:
        return [value for _, found, value in read_diary(self.diary) if found == event]


def until(condition: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < deadline, what
        time.sleep(0.01)


def everything(store: fastlog.Store, fleet: Fleet) -> Counter[str]:
    """How often each record came to an end: handled, or a dead letter."""
    dead = [(value or b"").decode() for value in values_of(store, "orders.mail.dlq")]
    return Counter(fleet.calls("end")) + Counter(dead)


def check_order(diary: list[tuple[int, str, str]], dead: Collection[str] = ()) -> None:
    """No record of a key begins before the one before it has ended for good; those ``dead`` were put aside."""
    ended: dict[int, int] = {}
    put_aside = {value.partition("-")[2] for value in dead}
    for _, event, value in diary:
        if event == "start":
            continue
        _, key, number = value.split("-")
        if event == "begin":
            between = range(ended.get(int(key), -1) + 1, int(number))
            assert all(f"{key}-{one}" in put_aside for one in between), f"{value} began after {ended.get(int(key))}"
        elif event == "end":
            ended[int(key)] = max(ended.get(int(key), -1), int(number))
