"""Lives of a log, or of a store, in each of which one system call or allocation fails, once or from then on.

A life without faults says where calls and allocations are made (``tests.injector``); the others have a fault at one of
these places, each as likely as another. Whatever fails is an error of fastlog's or a MemoryError, what was acknowledged
is there afterwards, later calls work, and nothing is left open, mapped or allocated.

``python -m tests.faults FOLDER SEED KIND COUNT`` lives COUNT such lives; KIND is one of ``KINDS``. One line of JSON for
each: 1 when something was made to fail.
"""

from __future__ import annotations

import gc
import json
import logging
import os
import random
import shutil
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import fastlog
from fastlog._native import oscalls
from tests import injector
from tests.foreign import read_all
from tests.injector import ALL, ALLOCATION, FAILED, NATIVE, NEVER, PYTHON, Injector, Places, Pressure
from tests.trials import FITTING, FULL, WRITES, StoreTrial, Trial

LEVELS = ("os", "batch", "group")
REFUSES = (fastlog.Error, MemoryError)

Tell = Callable[[str, int], None]


@dataclass
class Witness:
    """What is told of the lives: how much was made to fail, and where."""

    tell: Tell
    reached: set[str] = field(default_factory=set)
    failed: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Fault:
    """The ``nth`` call fails with ``code``, and the ones behind it: so ``many`` in all."""

    call: str
    nth: int
    code: int
    many: int
    place: str

    @property
    def is_full(self) -> bool:
        """Whether it says that there is no room left."""
        return self.call in WRITES and self.code in FULL

    def __str__(self) -> str:
        often = {1: "once", NEVER: "from then on"}.get(self.many, f"{self.many} times")
        code = "" if self.call == ALLOCATION else f" with {os.strerror(self.code)}"
        return f"{self.call} number {self.nth} failing {often}{code}, in {self.place}"


def draw(places: Places, chance: random.Random) -> Fault:
    """A fault at one of the places."""
    call, place = chance.choice(places.different())
    nth = chance.choice(places.nths(call, place))
    if call == ALLOCATION:
        return Fault(call, nth, 0, chance.choice([1, 1, 1, 3, NEVER]), places.names[place])
    return Fault(call, nth, chance.choice(FITTING[call]), chance.choice([1, 1, NEVER]), places.names[place])


class Possessions:
    """What this process has open."""

    def __init__(self) -> None:
        self.before = self.now()

    @staticmethod
    def now() -> dict[str, str]:
        found = {}
        for name in os.listdir("/proc/self/fd"):
            try:
                found[name] = os.readlink(f"/proc/self/fd/{name}")
            except FileNotFoundError:
                continue  # of the list itself
        return found

    def require_none_left(self, folder: Path, seconds: float = 10) -> None:
        """Everything that was opened since is closed, and nothing of the folder is mapped.

        A thread in the background may come to its end a moment later.
        """
        stop = time.monotonic() + seconds
        while (left := self.left_of(folder)) and time.monotonic() < stop:
            time.sleep(0.02)
            gc.collect()
        assert left == [], f"left open, or mapped: {left}"

    def left_of(self, folder: Path) -> list[str]:
        """What is open or mapped now.

        But for bells: a thread that naps beside a consumer finds out later that this is closed.
        """
        left = [name for number, name in self.now().items() if self.before.get(number) != name]
        naps = any(thread.name == "fastlog-consumer" for thread in threading.enumerate())
        lines = [line for line in Path("/proc/self/maps").read_text().splitlines() if str(folder) in line]
        return left + [line for line in lines if not (naps and "/control/bells" in line)]


def live(trial: Trial | StoreTrial, folder: Path, fault: Fault | None, library: Injector) -> tuple[bool, Places]:
    """One life, and what comes after it: whether something was made to fail, and the places."""
    own = Possessions()
    met = Pressure()
    if isinstance(trial, StoreTrial):
        trial.is_hit = lambda: oscalls.injected() + library.failed() > 0
    library.note(ALL if fault is None else FAILED)
    nth, many = NEVER, 0
    failures: list[Any] = []
    if fault is not None and fault.call == ALLOCATION:
        nth, many = fault.nth, fault.many
    elif fault is not None:
        oscalls.inject(fault.call, errno=fault.code, nth=fault.nth, sticky=fault.many != 1)
    try:
        try:
            library.during(trial.live, NATIVE, nth, many, met)
        finally:
            places = library.noted()
        was_hit = met.failed + oscalls.injected() > 0
        assert was_hit or not trial.failures, "errors without a fault"
        if fault is not None and fault.is_full and isinstance(trial, Trial) and trial.failures:
            assert type(trial.failures[0]) is fastlog.StorageFullError
        failures = [str(failure) for failure in trial.failures]
        trial.settle()
        trial.failures.clear()
        gc.collect()
        own.require_none_left(folder)
        assert library.held() == 0, f"{library.held()} allocations are left"
    except BaseException as problem:
        raise AssertionError(f"{fault}: {problem!r}; raised before: {failures or trial.failures}") from problem
    return was_hit, places


def lives(
    make: Callable[[Path], Trial | StoreTrial], folder: Path, count: int, chance: random.Random, witness: Witness
) -> None:
    """One life as it should be, and ``count`` with a fault."""
    library = Injector()
    places = Places([])
    for name in ("first", "clean"):  # the first one imports what is imported late
        path = folder / name
        path.mkdir()
        _, places = live(make(path), path, None, library)
        shutil.rmtree(path)
    witness.reached.update(places.seen())
    for number in range(count):
        path = folder / f"life-{number}"
        path.mkdir()
        was_hit, hit = live(make(path), path, draw(places, chance), library)
        shutil.rmtree(path)
        witness.failed += hit.seen()
        witness.tell("injections", int(was_hit))
        witness.tell("failed allocations" if ALLOCATION in hit.of else "failed system calls", int(was_hit))


def lives_of_log(folder: Path, count: int, chance: random.Random, witness: Witness) -> None:
    level, maps = chance.choice(LEVELS), chance.random() < 0.7
    lives(lambda path: Trial(path / "events", level, mmap=maps, refuses=REFUSES), folder, count, chance, witness)


def lives_of_store(folder: Path, count: int, chance: random.Random, witness: Witness) -> None:
    level, seed = chance.choice(LEVELS), chance.randrange(1 << 32)
    lives(lambda path: StoreTrial(path, seed, level, REFUSES), folder, count, chance, witness)


# --- allocations of Python --------------------------------------------------------------------------------------------


class AllocationTrial(Trial):
    """The life of a log in which one call meets a lack of memory for Python's objects: the ``at``-th one that may
    fail; ``met`` is what each of them met.
    """

    def __init__(self, path: Path, library: Injector, at: int, nth: int, count: int) -> None:
        super().__init__(path, "os" if at % 2 else "batch", refuses=REFUSES)
        self.library = library
        self.at, self.nth, self.count = at, nth, count
        self.met: list[Pressure] = []

    @property
    def failed(self) -> int:
        """How many allocations were made to fail."""
        return sum(one.failed for one in self.met)

    def attempt(self, action: Callable[[], Any]) -> Any:
        return super().attempt(lambda: self.under_pressure(action))

    def under_pressure(self, action: Callable[[], Any]) -> Any:
        nth = self.nth if len(self.met) == self.at else NEVER
        self.met.append(Pressure())
        return self.library.during(action, PYTHON, nth, self.count, self.met[-1])

    def look(self, action: Callable[[], Any]) -> Any:
        return action()

    def look_around(self) -> None:
        super().look_around()
        if self.log is None:
            return
        log = self.log
        end = log.end_offset
        self.attempt(
            lambda: log.append([b"k" * 20] * 30, keys=[b"key"] * 30, headers=[{"h": b"1"}] * 30, compression="zstd")
        )
        if log.end_offset > end:
            self.expected += [*(record for record in self.unsure if record.offset < end), *read_all(log, end)]
            self.unsure = []


def lives_of_python(folder: Path, count: int, chance: random.Random, witness: Witness) -> None:
    """Lives of a log; an allocation of Python fails in a call."""
    library = Injector()
    own = Pressure()  # what this takes for itself, before and behind
    library.during(lambda: None, PYTHON, NEVER, 0, own)
    places: list[tuple[int, int]] = []
    for name in ("first", "clean"):
        clean = AllocationTrial(folder / name, library, -1, NEVER, 0)
        clean.live()
        assert clean.failures == [], clean.failures
        ends = [met.asked - own.asked for met in clean.met]
        places = [(at, nth) for at, end in enumerate(ends) for nth in range(own.asked + 1, end + 1)]
        clean.settle()
    for number, (at, nth) in enumerate(chance.sample(places, min(count, len(places)))):
        path = folder / f"life-{number}"
        # when nothing at all is left Python 3.11 goes on for ever, looking for room for an exception
        many = chance.choice([1, 1, 1, 3, 30])
        trial = AllocationTrial(path, library, at, nth, many)
        try:
            trial.live()
            gc.collect()
            trial.settle()
        except BaseException as problem:
            text = f"call {at}, {many} allocations from {nth} on: {problem!r}; raised before: {trial.failures}"
            raise AssertionError(text) from problem
        shutil.rmtree(path)
        witness.tell("injections", int(trial.failed > 0))
        witness.tell("failed allocations of Python", int(trial.failed > 0))


KINDS = {"log": lives_of_log, "store": lives_of_store, "python": lives_of_python}


def main() -> None:
    folder, seed, kind, count = sys.argv[1:]
    logging.getLogger("fastlog").setLevel(logging.CRITICAL)
    injector.prepare()

    def tell(what: str, number: int) -> None:
        if what == "injections":
            print(json.dumps(number), flush=True)

    KINDS[kind](Path(folder), int(count), random.Random(int(seed)), Witness(tell))


if __name__ == "__main__":
    main()
