"""A worker process of tests: runs an app on topic ``orders`` as group ``mail``, and writes down every call.

``python -m tests.delivery.worker STORE LOG OPTIONS``: options of the subscriber as JSON. What the handler does the
value of the record says, see ``handle``. SIGTERM ends it; then it prints its stats.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from pathlib import Path
from typing import Any

import fastlog
from fastlog.delivery.app import App


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
    lines = path.read_text().splitlines()
    return [(int(pid), event, value) for pid, event, value in (line.split(" ", 2) for line in lines)]


def handle(value: str, diary: Diary, options: dict[str, Any], attempts: dict[str, int]) -> None:
    """``poison`` kills the process, ``stop`` stops it, ``bad`` fails always, ``once`` at its first call here."""
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
        time.sleep(0.01)
    if kind == "bad" or (kind == "once" and attempts[value] == 1):
        diary.write("fail", value)
        raise ValueError(value)
    diary.write("end", value)


def main() -> None:
    store, log, given = sys.argv[1], sys.argv[2], json.loads(sys.argv[3])
    own = {name: given.pop(name, None) for name in ("sleep", "stopped")}
    retry = given.pop("retry", None)
    if retry is not None:
        given["retry"] = fastlog.Retry(retry["attempts"], backoff=retry["backoff"], jitter=False)
    diary = Diary(log)
    attempts: dict[str, int] = {}
    app = App(store, durability=given.pop("durability", "os"))

    @app.subscriber("orders", group="mail", **given)
    def mail(record: fastlog.Record) -> None:
        handle((record.value or b"").decode(), diary, own, attempts)

    app.run()
    print(json.dumps({name: stats._asdict() for name, stats in app.stats().items()}))


if __name__ == "__main__":
    main()
