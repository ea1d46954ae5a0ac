"""The engines' side of ``server``: whoever opens a store is forked from a warm process, can be killed, and may die."""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from tests.evidence.run import ROOT, environment

LIMIT_S = 60.0


@dataclass
class Ended:
    """How a forked process ended: what it had said, and its wait status; None when it had to be killed for hanging."""

    lines: list[str]
    status: int | None

    @property
    def signal(self) -> int:
        """The signal that it died of by itself, or 0."""
        return os.WTERMSIG(self.status) if self.status is not None and os.WIFSIGNALED(self.status) else 0

    def told(self, word: str) -> str | None:
        """What came behind a word, on the last line that begins with it."""
        found = [line.partition(" ")[2] for line in self.lines if line.partition(" ")[0] == word]
        return found[-1] if found else None


class Forks:
    """The server of one peer, and the process that it forked last."""

    def __init__(self, peer: str, errors: Path) -> None:
        self.errors = errors
        with errors.open("ab") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "tests.evidence.peers.server", peer],
                stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log, cwd=ROOT, env=environment(), bufsize=0,
            )  # fmt: skip
        self.rest = b""
        self.pid = 0
        self.errors_before = 0  # bytes of them when the process was forked

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        assert self.process.stdin and self.process.stdout
        self.end()
        self.process.stdin.close()
        self.process.wait(timeout=30)
        self.process.stdout.close()

    def begin(self, order: dict[str, Any]) -> None:
        """Fork a process that does what ``order`` says."""
        assert self.process.stdin
        self.errors_before = self.errors.stat().st_size
        self.process.stdin.write(json.dumps(order).encode() + b"\n")
        heard = self.lines(time.monotonic() + LIMIT_S, word="pid")
        assert heard and heard[0].startswith("pid"), self.complaints()
        self.pid = int(heard[0].split()[1])
        self.rest = b"".join(line.encode() + b"\n" for line in heard[1:]) + self.rest

    def lines(self, until: float, word: str = "done") -> list[str]:
        """What is said until a time of the clock, or until a line begins with ``word`` or with ``done``."""
        assert self.process.stdout
        heard: list[str] = []
        while True:
            *complete, self.rest = self.rest.split(b"\n")
            heard += [line.decode() for line in complete]
            if any(line.partition(" ")[0] in (word, "done") for line in heard):
                return heard
            wait = max(0.0, until - time.monotonic())
            ready, _, _ = select.select([self.process.stdout], [], [], wait)
            if not ready:
                return heard
            data = self.process.stdout.read(1 << 16)
            assert data, f"the server of {self.errors.stem} died: {self.complaints()}"
            self.rest += data

    def kill(self) -> None:
        """SIGKILL to the forked process, if there is one."""
        if self.pid:
            with contextlib.suppress(ProcessLookupError):  # it may be gone; the server has waited for it
                os.kill(self.pid, signal.SIGKILL)

    def ended(self, limit: float = LIMIT_S) -> Ended:
        """Wait until the process has ended by itself; kill it when it does not."""
        heard = self.lines(time.monotonic() + limit)
        is_hung = not heard or not heard[-1].startswith("done")
        if is_hung:
            self.kill()
            heard += self.lines(time.monotonic() + LIMIT_S)
        assert heard[-1].startswith("done"), f"a killed process does not end: {self.complaints()}"
        self.pid = 0
        return Ended(heard[:-1], None if is_hung else int(heard[-1].split()[1]))

    def end(self) -> None:
        """Make sure that no process is left."""
        if self.pid:
            self.kill()
            self.ended()

    def ask(self, order: dict[str, Any], limit: float = LIMIT_S) -> Ended:
        """Begin, and wait for the end."""
        self.begin(order)
        return self.ended(limit)

    def complaints(self) -> str:
        """The last that the server and its children wrote to standard error."""
        return self.errors.read_text(errors="replace")[-3000:]

    def last_words(self) -> str:
        """The last line that the process forked last wrote to standard error."""
        return self.errors.read_bytes()[self.errors_before :].decode(errors="replace").strip().rpartition("\n")[2]
