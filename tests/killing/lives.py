"""Lives: processes that write down what they do until they are killed, or frozen for a while.

The side of the processes is ``Desk``, the side of whoever kills them ``Lives``. Kills and freezes count when the block
of ``Lives`` ends well: by then what they left has been checked.
"""

from __future__ import annotations

import random
import signal
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, suppress
from pathlib import Path
from types import TracebackType
from typing import Any

from fastlog._native import oscalls
from tests.histories.nursery import Child, Nursery
from tests.histories_messaging.notes import Event, Notes, read_notes

PATIENCE = 60.0  # seconds until something that has to happen is missed


class Desk:
    """What every life has: its notes, its dice, its failpoint."""

    def __init__(self, number: int, notes: str, seed: int, failpoint: list[Any] | None) -> None:
        self.number = number
        self.notes = Notes(notes)
        self.chance = random.Random(f"{seed}.{number}")
        if failpoint is not None:
            oscalls.arm(*failpoint)

    def call(self, op: str, **facts: Any) -> AbstractContextManager[dict[str, Any]]:
        """A call of the product, noted: ``Notes.call``."""
        return self.notes.call(op, **facts)


class Life:
    """One process, as its killer sees it."""

    def __init__(self, number: int, child: Child, notes: Path) -> None:
        self.number, self.child, self.notes = number, child, notes
        self._read_to = 0
        self._returned = 0

    def events(self) -> list[Event]:
        """Everything that it has noted so far."""
        return read_notes(self.notes)

    def returned(self) -> int:
        """How many of its calls have returned so far."""
        if self.notes.exists():
            with self.notes.open("rb") as file:
                file.seek(self._read_to)
                data = file.read()
            self._read_to += len(data)
            self._returned += data.count(b'"k":"o"')
        return self._returned

    def last_words(self) -> str:
        return " ".join(self.notes.read_text().splitlines()[-3:]) if self.notes.exists() else "nothing"


class Lives:
    """The lives of one turn. A context manager: at its end nobody is left."""

    def __init__(self, nursery: Nursery, folder: Path, seed: int) -> None:
        self.nursery, self.folder, self.seed = nursery, folder, seed
        self.chance = random.Random(seed)
        self.all: list[Life] = []
        self.kills = 0
        self.freezes = 0
        self.deaths: Counter[str] = Counter()  # by the failpoint that somebody killed himself at
        self.waits: list[float] = []  # seconds from a death to a call of somebody else that has returned
        (folder / "notes").mkdir(exist_ok=True)

    def __enter__(self) -> Lives:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for life in self.all:
            if life.child.alive:
                life.child.kill()

    # --- beginning and end ------------------------------------------------------------------------------------------

    def start(self, role: str, failpoint: str | None = None, action: str = "kill", nth: int = 1, **given: Any) -> Life:
        """A process that leads this life, ``module:function`` below ``tests.killing``."""
        number = len(self.all)
        notes = self.folder / "notes" / f"{number}"
        child = self.nursery.start(
            f"tests.killing.{role}", f"{role} {number}", number=number, notes=str(notes), seed=self.seed,
            failpoint=None if failpoint is None else [failpoint, action, nth], **given,
        )  # fmt: skip
        life = Life(number, child, notes)
        self.all.append(life)
        return life

    def kill(self, life: Life) -> None:
        """Now, wherever it is."""
        life.child.kill()
        assert life.child.status == signal.SIGKILL, f"{life.child.name} ended by itself: {life.last_words()}"
        self.kills += 1

    def died(self, life: Life, name: str) -> None:
        """Wait until it has killed itself at its failpoint."""
        status = life.child.wait(PATIENCE)
        assert status == signal.SIGKILL, f"{life.child.name} did not come by {name}: {status}, {life.last_words()}"
        self.kills += 1
        self.deaths[name] += 1

    def dies(self, role: str, name: str, nth: int = 1, **given: Any) -> Life:
        """A life that ends at a failpoint; when this returns it has."""
        life = self.start(role, name, nth=nth, **given)
        self.died(life, name)
        return life

    def may_die(self, life: Life, name: str, seconds: float = PATIENCE) -> bool:
        """Wait so long for its death at a failpoint, or for its end because it has done everything.

        Whether it was the former.
        """
        with suppress(AssertionError):
            life.child.wait(seconds)
        if life.child.alive:
            return False
        assert life.child.status in (0, signal.SIGKILL), f"{life.child.name}: {life.child.status}, {life.last_words()}"
        if life.child.status == 0:
            return False
        self.kills += 1
        self.deaths[name] += 1
        return True

    def finish(self, life: Life, name: str = "", seconds: float = 0.0) -> None:
        """Its end within so many seconds, at a failpoint or because all is done; else it is killed."""
        if (name and self.may_die(life, name, seconds)) or life.child.status == 0:
            return
        if life.child.alive:
            life.child.kill()
        assert life.child.status in (0, signal.SIGKILL), f"{life.child.name}: {life.child.status}, {life.last_words()}"
        self.kills += life.child.status == signal.SIGKILL

    def end(self, life: Life) -> None:
        """Ask it to end, and see that it does."""
        life.child.ask_to_stop()
        status = life.child.wait(PATIENCE)
        assert status == 0, f"{life.child.name} ended with {status}: {life.last_words()}"

    # --- on the way -------------------------------------------------------------------------------------------------

    def stopped(self, life: Life) -> None:
        """Wait until it has stopped itself at its failpoint."""
        life.child.wait_until_stopped(PATIENCE)

    def freeze(self, life: Life) -> None:
        """Now, wherever it is."""
        life.child.signal(signal.SIGSTOP)
        life.child.wait_until_stopped(PATIENCE)

    def thaw(self, life: Life) -> None:
        """Let a frozen one go on."""
        self.freezes += 1
        life.child.stopped = False
        life.child.signal(signal.SIGCONT)

    def begins(self, life: Life, calls: int = 1) -> None:
        """Wait until so many of its calls have returned."""
        self.until(life, lambda: life.returned() >= calls)

    def goes_on(self, life: Life, since: int | None = None, calls: int = 2) -> None:
        """Wait until ``calls`` more have returned: the second one began after this was called.

        ``since``: of the steady clock, a death whose distance is to be measured.
        """
        wanted = life.returned() + calls
        self.until(life, lambda: life.returned() >= wanted)
        if since is not None:
            self.waits.append((time.monotonic_ns() - since) / 1e9)

    def until(self, life: Life, condition: Callable[[], bool]) -> None:
        limit = time.monotonic() + PATIENCE
        while not condition():
            assert life.child.alive, f"{life.child.name} ended with {life.child.status}: {life.last_words()}"
            assert time.monotonic() < limit, f"{life.child.name} does not go on: {life.last_words()}"
            time.sleep(0.002)

    def rest(self, seconds: float) -> None:
        """Somewhere between no time and so long, and mostly short."""
        time.sleep(seconds * self.chance.random() ** 2)


def until(condition: Callable[[], bool], what: str, seconds: float = PATIENCE) -> None:
    """Wait for something that has to happen."""
    limit = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < limit, f"{what} within {seconds} s"
        time.sleep(0.003)


def calls(events: list[Event]) -> Iterator[tuple[Event, Event | None]]:
    """Each call with its end; None for the one that its process died in."""
    ends = {event["n"]: event for event in events if event["k"] in "of"}
    for event in events:
        if event["k"] == "i":
            yield event, ends.get(event["n"])
