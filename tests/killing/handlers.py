"""Handlers whose processes die while they move records to where these wait, or to the dead letters."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import fastlog
from fastlog.delivery.headers import letter_of
from tests.delivery.apps import records_of, send
from tests.delivery.worker import read_diary, run_worker
from tests.killing.lives import Desk

POINTS = ["move.entered", "move.offsets", "move.appended", "move.committed"]

OPTIONS: dict[str, Any] = {"retry": {"attempts": 3, "backoff": "5ms"}, "concurrency": 2}


def handle(number: int, notes: str, seed: int, failpoint: list[Any] | None, folder: str, durability: str) -> None:
    """An app, until it is asked to stop."""
    desk = Desk(number, notes, seed, None)
    with desk.call("run"):
        place = None if failpoint is None else ":".join(map(str, failpoint))
        run_worker(folder, place, {**OPTIONS, "store": f"{folder}/store", "durability": durability})


def prepare(folder: Path) -> None:
    """A store with what is handled."""
    with fastlog.open(folder / "store", durability="os") as store:
        store.create_topic("orders", 2)


class Orders:
    """Records, of which every third one cannot be handled."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.values: list[str] = []

    def send(self, store: fastlog.Store, count: int) -> None:
        first = len(self.values)
        values = [f"{'bad' if number % 3 == 0 else 'good'}-{number}" for number in range(first, first + count)]
        send(store, "orders", [value.encode() for value in values], [b"k%d" % (n % 4) for n in range(count)])
        self.values += values

    def check(self, store: fastlog.Store, deaths: int) -> None:
        """Each record was handled, or is a dead letter once; a death makes some be handled again.

        A record that was in hand in each of several deaths is taken for their cause, though it can be handled.
        """
        handled = Counter(value for _, event, value in read_diary(self.folder / "diary") if event == "end")
        letters = [letter_of(record) for record in records_of(store, "orders.mail.dlq")]
        dead = Counter((letter.value or b"").decode() for letter in letters)
        suspected = {(letter.value or b"").decode() for letter in letters if letter.exception == "WorkerDied"}
        for value in self.values:
            found = f"{value}: handled {handled[value]} times, {dead[value]} dead letters, {deaths} deaths"
            if value.startswith("bad"):
                assert (handled[value], dead[value]) == (0, 1), found
            else:
                assert handled[value] <= 1 + deaths and handled[value] + dead[value] >= 1, found
                assert dead[value] == (value in suspected), found
        assert set(dead) | set(handled) == set(self.values)
