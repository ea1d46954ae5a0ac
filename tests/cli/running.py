"""``fastlog run`` as users run it: a process of its own, in a folder with the modules of the test."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import fastlog

PACKAGE = str(Path(fastlog.__file__).resolve().parents[1])
PATIENCE = 30.0


class Running:
    """``fastlog run`` in a process of its own, in a folder with the modules of the test."""

    def __init__(self, folder: Path, *arguments: str, **options: Any) -> None:
        self.folder = folder
        environment = {**os.environ, "PYTHONPATH": PACKAGE, "PYTHONUNBUFFERED": "1"}
        environment.update(options.pop("variables", {}))
        self.process = subprocess.Popen(
            [sys.executable, "-m", "fastlog", "run", *arguments],
            cwd=folder, env=environment, stdout=options.pop("stdout", subprocess.PIPE), stderr=subprocess.PIPE,
            text=True, **options,
        )  # fmt: skip

    def happened(self, word: str) -> list[int]:
        """Process ids of those whom ``word`` happened to, in order."""
        path = self.folder / "happened.txt"
        lines = path.read_text().splitlines() if path.exists() else []
        return [int(pid) for found, _, pid in (line.partition(" ") for line in lines) if found == word]

    def wait_for(self, word: str, count: int) -> list[int]:
        until(lambda: len(self.happened(word)) >= count or self.process.poll() is not None)
        found = self.happened(word)
        assert len(found) >= count, self.end()
        return found

    def read_until(self, words: str) -> str:
        """What it tells, up to the line that has these words; ``end`` gives the rest."""
        assert self.process.stderr is not None
        told = ""
        while words not in told:
            line = self.process.stderr.readline()
            assert line, f"it ended; stderr: {told}"
            told += line
        return told

    def signal(self, number: int) -> None:
        self.process.send_signal(number)

    def end(self, timeout: float = PATIENCE) -> tuple[int, str]:
        """Exit code and stderr, when it has ended by itself."""
        try:
            errors = self.process.communicate(timeout=timeout)[1]
        except subprocess.TimeoutExpired:
            self.process.terminate()
            errors = self.process.communicate(timeout=timeout)[1]
            raise AssertionError(f"it did not end; stderr: {errors}") from None
        return self.process.returncode, errors


def until(condition: Callable[[], object], patience: float = PATIENCE) -> None:
    stop = time.monotonic() + patience
    while not condition():
        assert time.monotonic() < stop, "it does not happen"
        time.sleep(0.01)


def is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return Path("/proc").is_dir() is False
    return state != "Z"


@contextmanager
def runners(folder: Path) -> Iterator[Callable[..., Running]]:
    """A function that starts ``fastlog run``; whoever still lives at the end is killed."""
    running: list[Running] = []

    def start(*arguments: str, **options: Any) -> Running:
        running.append(Running(folder, *arguments, **options))
        return running[-1]

    try:
        yield start
    finally:
        for each in running:
            if each.process.poll() is None:
                each.process.kill()
                each.process.communicate()
            for pid in {*each.happened("runs")}:
                if is_alive(pid):
                    os.kill(pid, signal.SIGKILL)
