"""What a worker writes down: one JSON object a line, each with one write, so that a kill takes nothing of it back.

``k`` is the kind: ``i`` a call begins (``n`` its number, ``op`` its name), ``o`` it returned, ``f`` it raised; ``s``
something that was told (a callback, deliveries, the answer of a forked child). ``t`` is the steady clock in ns, which
is the same for all processes. Calls and callbacks of one consumer are in the order in which they happened.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

Event = dict[str, Any]


class Notes:
    """The notes of one process."""

    def __init__(self, path: str) -> None:
        self.file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        self.calls = 0

    def _write(self, event: Event) -> None:
        event["t"] = time.monotonic_ns()
        os.write(self.file, json.dumps(event, separators=(",", ":")).encode() + b"\n")

    def begin(self, op: str, **facts: Any) -> int:
        """A call begins; its number."""
        self.calls += 1
        self._write({"k": "i", "n": self.calls, "op": op, **facts})
        return self.calls

    def ok(self, number: int, **facts: Any) -> None:
        """The call returned."""
        self._write({"k": "o", "n": number, **facts})

    def failed(self, number: int, error: BaseException, **facts: Any) -> None:
        """The call raised."""
        outcome = getattr(error, "outcome", None)
        text = f"{error}"[:300]
        self._write({"k": "f", "n": number, "error": type(error).__name__, "text": text, "outcome": outcome, **facts})

    @contextmanager
    def call(self, op: str, **facts: Any) -> Iterator[dict[str, Any]]:
        """A call of the product. What it answers goes into what is given; an error is noted, and goes on."""
        number = self.begin(op, **facts)
        answer: dict[str, Any] = {}
        try:
            yield answer
        except BaseException as error:
            self.failed(number, error, **answer)
            raise
        self.ok(number, **answer)

    def say(self, what: str, **facts: Any) -> None:
        """Something that is no call."""
        self._write({"k": "s", "what": what, **facts})


def read_notes(path: Path, most: int | None = None) -> list[Event]:
    """All complete lines of a process, or of ``most`` bytes; the last one may be torn, when the disk was full."""
    if not path.exists():
        return []
    complete = path.read_bytes()[:most].rpartition(b"\n")[0]
    return [json.loads(line) for line in complete.split(b"\n") if line]
