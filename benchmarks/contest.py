"""How a measurement is taken.

A *contest* is one piece of work that several *contestants* do: fastlog in one or more ways, and its peers. Each
contestant plays in every *turn* of a run, one after the other, so that a slow minute of the machine hits all of them;
a turn is one warm-up round and then timed rounds. A round opens a new handle (a new folder, too, where it writes),
untimed; does its work, timed; then checks what was done and closes, untimed. The report takes the median over the
rounds of all turns.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, TypeVar

import pytest

from benchmarks.workload import Sizes, Stage

Work = Callable[[], int]
Prepare = Callable[[Stage], AbstractContextManager[Work]]


class ContestError(Exception):
    """A contestant did not do what it was timed for: its figures would mean nothing."""


@dataclass(frozen=True, slots=True)
class Contestant:
    """One way of doing the work of a contest.

    ``prepare`` is a context manager over a round: it enters with the work to time, which returns how many units it
    did, and checks and closes on the way out. ``builds`` says which Python objects the timed part makes or takes.
    One that ``needs_kafka`` finds the address of a broker on its stage, and is left out where there is no Java.
    """

    name: str
    builds: str
    prepare: Prepare
    needs_kafka: bool = False


@dataclass(frozen=True, slots=True)
class Contest:
    """The work, its unit, and who does it."""

    name: str
    title: str
    unit: str
    contestants: tuple[Contestant, ...]
    turns: Callable[[Sizes], int] = lambda sizes: sizes.turns
    rounds_per_turn: Callable[[Sizes], int] = lambda sizes: sizes.rounds_per_turn
    warm_up_rounds: int = 1


def expect(condition: bool, found: object, expected: object, where: str) -> None:
    """Raise ``ContestError`` unless ``condition`` holds."""
    if not condition:
        raise ContestError(f"{where}: found {found}, expected {expected}")


def twice(sizes: Sizes) -> int:
    """For contests whose rounds take long: turns, or rounds of a turn."""
    return 2


def once(sizes: Sizes) -> int:
    """For contests that time many single steps, or none, in a round."""
    return 1


Function = TypeVar("Function", bound=Callable[..., None])


def contest(
    name: str, title: str, *contestants: Contestant, unit: str = "records", **options: Any
) -> Callable[[Function], Function]:
    """Decorate a ``bench_*`` function that takes ``play``: it runs once per turn and contestant."""
    mark = pytest.mark.contest(Contest(name, title, unit, contestants, **options))

    def decorate(function: Function) -> Function:
        marked: Function = mark(function)
        return marked

    return decorate
