"""What a planted mistake is."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

SWITCH = "PLANTED"  # where a new text asks whether its mistake is wanted


class Edit(NamedTuple):
    """``new`` takes the place of ``old``, which occurs once in ``file``, a path below ``src/fastlog``."""

    file: str
    old: str
    new: str


@dataclass(frozen=True)
class Mistake:
    """One mistake, and what has to find it.

    Attributes:
        breaks: what goes wrong, in one sentence.
        edits: its text; a new text asks ``PLANTED``, and is the old one where that is false.
        engine, scenario: what finds it.
        budget: by a turn that begins within so many seconds; several times what it took on two slow cores.
    """

    name: str
    breaks: str
    edits: tuple[Edit, ...]
    engine: str
    scenario: str
    budget: float


def mistake(
    name: str, breaks: str, file: str, old: str, new: str, engine: str, scenario: str, budget: float, *more: Edit
) -> Mistake:
    """One that is a single edit, most of the time."""
    return Mistake(name, breaks, (Edit(file, old, new), *more), engine, scenario, budget)
