"""A worker process of tests: runs an app on topic ``orders`` as group ``mail``, and writes down every call.

What the handler does the value of the record says, see ``handle``. SIGTERM ends it; then it writes down its stats.
"""

from __future__ import annotations

import json
import os
import signal
import time
from pathlib import Path
from typing import Any

import fastlog
from fastlog._native import oscalls
from fastlog.delivery.app import App
from tests.forking import SERVER


class Diary:
    """One line per event, of all workers in one file, in the order in which things happened."""

    def __init__(self, path: str) -> None:
        self._fd = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)

    def write(self, event: str, value: str) -> None:
        os.write(self._fd, f"{os.getpid()} {event} {value}\n".encode())


def read_diary(path: Path) -> list[tuple[int, str, str]]:
    """Process, event (``begin``, ``end``, ``fail``), value of the record."""
    if not path.exists():
        return []
    # the last line may be one that is being written
    *lines, _ = path.read_text().split("\n")
    return [(int(pid), event, value) for pid, event, value in (line.split(" ", 2) for line in lines)]


def handle(value: str, diary: Diary, options: dict[str, Any], attempts: dict[str, int]) -> None:
    """``poison`` kills the process, ``stop`` stops it, ``hang`` does not come back; ``bad`` fails always, ``once`` at
    its first call here, ``sick`` until there is a cure.
    """
    diary.write("begin", value)
    if options.get("sleep"):
        time.sleep(options["sleep"])
    kind = value.split("-")[0]
    attempts[value] = attempts.get(value, 0) + 1
    if kind == "poison":
        os.kill(os.getpid(), signal.SIGKILL)
    elif kind == "stop" and not Path(options["stopped"]).exists():
        Path(options["stopped"]).touch()
        os.kill(os.getpid(), signal.SIGSTOP)
        time.sleep(0.5)  # until its app has seen that it was put out
    if kind == "hang":
        time.sleep(600)
    is_sick = kind == "sick" and not Path(options["cure"]).exists()
    if kind == "bad" or is_sick or (kind == "once" and attempts[value] == 1):
        diary.write("fail", value)
        raise ValueError(value)
    diary.write("end", value)


def run_worker(folder: str, failpoint: str | None, given: dict[str, Any]) -> None:
    """The life of a worker: ``given`` are options of the subscriber, and what ``handle`` wants to know."""
    if failpoint is not None:
        name, action, nth = failpoint.split(":")
        oscalls.arm(name, action, int(nth))
    own = {name: given.pop(name, None) for name in ("sleep", "stopped", "cure")}
    retry = given.pop("retry", None)
    if retry is not None:
        given["retry"] = fastlog.Retry(retry["attempts"], backoff=retry["backoff"], jitter=False)
    diary = Diary(f"{folder}/diary")
    attempts: dict[str, int] = {}
    app = App(given.pop("store"), durability=given.pop("durability", "os"))

    @app.subscriber("orders", group="mail", **given)
    def mail(record: fastlog.Record) -> None:
        handle((record.value or b"").decode(), diary, own, attempts)

    diary.write("start", "worker")
    app.run()
    stats = {name: stats._asdict() for name, stats in app.stats().items()}
    Path(f"{folder}/stats-{os.getpid()}").write_text(json.dumps(stats))


class Worker:
    """A worker process, as the test sees it."""

    def __init__(self, folder: Path, failpoint: str | None, options: dict[str, Any]) -> None:
        self.folder = folder
        self._process = SERVER.Process(target=run_worker, args=(str(folder), failpoint, options), daemon=True)
        self._process.start()
        self.pid = self._process.pid or 0

    @property
    def code(self) -> int | None:
        """How it ended, None while it lives."""
        return self._process.exitcode

    def signal(self, number: int) -> None:
        os.kill(self.pid, number)

    def wait(self, seconds: float) -> int | None:
        """Wait for its end; the exit code, or None."""
        self._process.join(seconds)
        return self._process.exitcode

    def kill(self) -> None:
        """SIGKILL, also when it is stopped."""
        if self.code is None:
            self._process.kill()
            self._process.join()

    def end(self, seconds: float) -> dict[str, Any]:
        """Stop it in good order; its stats."""
        self.signal(signal.SIGTERM)
        assert self.wait(seconds) == 0
        found: dict[str, Any] = json.loads((self.folder / f"stats-{self.pid}").read_text())["mail"]
        return found
