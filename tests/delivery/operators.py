"""Operators in processes of their own, the letters that they handle, and the exact sum of what there is afterwards."""

from __future__ import annotations

import functools
import signal
import subprocess
import sys
from pathlib import Path

import fastlog
from fastlog.delivery.dead_letters import DeadLetters
from tests.delivery.lettering import DLQ, check_each_once
from tests.forking import wait_until_stopped

__all__ = ["APPENDS", "LETTERS", "STEPS", "Operator", "check", "finish"]

LETTERS = 14
# the coordinator's record of each partition, the decision, markers in two partitions, the end: of three transactions
STEPS = [
    ("transaction.opened", 1), ("transaction.entered", 2), ("transaction.entered", 4), ("transaction.decided", 1),
    ("transaction.decided", 3), ("transaction.marked", 1), ("transaction.marked", 2), ("transaction.completed", 1),
]  # fmt: skip
APPENDS = [
    ("append.written", 4), ("append.written", 6), ("append.written", 8), ("append.written", 12), ("append.dirty", 7),
    ("append.published", 9),
]  # fmt: skip


class Operator:
    """An operator in a process of its own, ready to begin."""

    def __init__(
        self, path: Path, name: str, action: str, failpoint: str = "", what: str = "kill", nth: int = 1,
        durability: str = "os", most_bytes: int | None = None,
    ) -> None:  # fmt: skip
        self.child = subprocess.Popen(
            [sys.executable, "-m", "tests.delivery.operator_worker", str(path), durability, name, action, failpoint,
             what, str(nth), *([] if most_bytes is None else [str(most_bytes)])],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        )  # fmt: skip
        assert self.line() == "ready"

    def line(self) -> str:
        assert self.child.stdout is not None
        return self.child.stdout.readline().strip()

    def go(self) -> None:
        assert self.child.stdin is not None
        self.child.stdin.write("go\n")
        self.child.stdin.flush()

    def died(self) -> None:
        assert self.child.wait(30) == -signal.SIGKILL

    def stopped(self) -> None:
        wait_until_stopped(self.child.pid)

    def close(self) -> None:
        self.child.kill()
        self.child.wait()
        for file in (self.child.stdin, self.child.stdout):
            assert file is not None
            try:
                file.close()
            except OSError:
                pass


check = functools.partial(check_each_once, LETTERS)


def finish(store: fastlog.Store, action: str) -> int:
    letters = DeadLetters.open(store, DLQ, by="second")
    return (letters.discard() if action == "discard" else letters.redrive(to=action)).letters  # type: ignore[arg-type]
