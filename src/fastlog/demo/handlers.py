"""The demo's handlers: two groups on the flights, one of them with a mistake that a second version mends.

```text
  topic flights ──► group delays     the delay of each departure; fails on the flights that never departed
                └─► group airports   the airport and the hour of each flight; async, in batches, takes all of them
```

``first`` and ``second`` are apps as users write them: ``fastlog run fastlog.demo.handlers:first --store PATH``. A
handler's effect is a line in a diary: the flight, by its number in the source, and what the handler made of it. So an
effect that is repeated can be told from the one before, and whoever adds up counts a flight once; nothing is hidden, as
every call that ended has its line. Each process has a diary of its own, whose last line says that the process ended in
good order: the diary of one that was killed has none.
"""

from __future__ import annotations

import atexit
import json
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from time import monotonic_ns, time_ns
from typing import Any

import fastlog

__all__ = [
    "AIRPORTS",
    "ATTEMPTS",
    "CANCELLED",
    "DELAYS",
    "EFFECTS_VARIABLE",
    "EVENTS",
    "GROUPS",
    "Effects",
    "add_airports",
    "add_delay",
    "add_delay_or_cancellation",
    "app_of",
    "effects",
    "first",
    "read_diary",
    "second",
]

EVENTS = "flights"
DELAYS = "delays"
AIRPORTS = "airports"
GROUPS = (DELAYS, AIRPORTS)
ATTEMPTS = 3
# so short that the demo takes seconds
RETRY = fastlog.Retry(ATTEMPTS, backoff=("50ms", "200ms"))
# this group fails never, but its processes are killed: that uses up an attempt of what they may have had in hand
PATIENT = fastlog.Retry(10, backoff="50ms")
CANCELLED = "cancelled"
EFFECTS_VARIABLE = "FASTLOG_DEMO_EFFECTS"
GOOD_END = b"end\n"


# --- effects -----------------------------------------------------------------------------------------


class Effects:
    """What handlers did, in diaries: a file for each group and process. ``kill -9`` takes nothing that was written.

    A handler may write from any thread, a group from one at a time.

    Args:
        folder: where diaries are made; None: where ``FASTLOG_DEMO_EFFECTS`` says.
    """

    def __init__(self, folder: Path | None = None) -> None:
        self.folder = folder
        self._files: dict[str, int] = {}

    def write(self, group: str, record: fastlog.Record, *found: object) -> None:
        """One line: when, which flight, what was found."""
        line = b"%d %s %s\n" % (monotonic_ns(), record.headers["id"], " ".join(map(str, found)).encode())
        os.write(self._files.get(group) or self._open(group), line)

    def _open(self, group: str) -> int:
        folder = self.folder or Path(os.environ[EFFECTS_VARIABLE])
        name = f"{group}-{os.getpid()}-{time_ns()}"
        self._files[group] = os.open(folder / name, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o666)
        return self._files[group]

    def close(self) -> None:
        """The diaries end in good order."""
        while self._files:
            _, file = self._files.popitem()
            os.write(file, GOOD_END)
            os.close(file)


def read_diary(path: Path) -> tuple[list[tuple[int, int, str]], bool]:
    """The lines of a diary, as (when, flight, what was found), and whether its process ended in good order."""
    content = path.read_bytes()
    has_ended = content.endswith(GOOD_END)
    split = (line.split(" ", 2) for line in content.removesuffix(GOOD_END).decode().splitlines())
    return [(int(when), int(flight), found) for when, flight, found in split], has_ended


effects = Effects()
atexit.register(effects.close)


# --- handlers ----------------------------------------------------------------------------------------


def add_delay(record: fastlog.Record) -> None:
    """The delay of a departure; the first version, which does not think of flights that never departed."""
    event = json.loads(record.value or b"")
    effects.write(DELAYS, record, event["carrier"], int(event["departure_delay"]))


def add_delay_or_cancellation(record: fastlog.Record) -> None:
    """The second version: a flight that never departed is a cancelled one."""
    event = json.loads(record.value or b"")
    delay = event["departure_delay"]
    effects.write(DELAYS, record, event["carrier"], CANCELLED if delay is None else int(delay))


async def add_airports(records: list[fastlog.Record]) -> None:
    """Where and in which hour of the day flights were to leave, departed or not."""
    for record in records:
        event = json.loads(record.value or b"")
        effects.write(AIRPORTS, record, event["origin"], event["hour"])


def app_of(handler: Callable[[fastlog.Record], None], store: str | fastlog.Store = "data") -> fastlog.App:
    """Both groups, with this handler of delays."""
    app = fastlog.App(store, durability="os")
    app.subscriber(EVENTS, group=DELAYS, order_by="key", retry=RETRY)(handler)
    app.subscriber(EVENTS, group=AIRPORTS, order_by="none", concurrency=4, batch=100, retry=PATIENT)(add_airports)
    return app


first = app_of(add_delay)
second = app_of(add_delay_or_cancellation)


# --- a process that is to die --------------------------------------------------------------------------


def dying(nth: int) -> Callable[..., Any]:
    """A middleware that kills the process in its nth call: the effect is written, and nobody is told."""
    calls = 0

    def die(call: object, proceed: Callable[[], Any]) -> Any:
        nonlocal calls
        result = proceed()
        calls += 1
        if calls == nth:
            os.kill(os.getpid(), signal.SIGKILL)
        return result

    return die


def main(root: str, nth: str) -> None:
    """``STORE NTH``: run the first version; die in the nth call of ``delays`` that ends without an error, 0: do not."""
    first.use_store(root)
    if int(nth):
        first.middleware(dying(int(nth)))
    first.run()


if __name__ == "__main__":
    main(*sys.argv[1:])
