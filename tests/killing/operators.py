"""Operators that die while they send dead letters back, or discard them."""

from __future__ import annotations

from typing import Any

import fastlog
from fastlog.delivery import dead_letters
from fastlog.delivery.dead_letters import DeadLetters
from tests.delivery.lettering import DLQ
from tests.delivery.operator_worker import PORTION, act
from tests.killing.lives import Desk

# once in each portion
ONCE = ["transaction.opened", "transaction.decided", "transaction.completed"]
POINTS = [
    *(*ONCE, "transaction.entered", "transaction.marked"),
    *("append.dirty", "append.written", "append.published", "append.unlocked"),
]


def operate(
    number: int, notes: str, seed: int, failpoint: list[Any] | None, path: str, work: str, durability: str = "os"
) -> None:
    """All letters, in small portions."""
    dead_letters.MOST_AT_ONCE = PORTION  # type: ignore[misc]
    with fastlog.open(path, durability=durability) as store:
        letters = DeadLetters.open(store, DLQ, by=f"operator {number}")
        desk = Desk(number, notes, seed, failpoint)
        with desk.call(work) as answer:
            answer["letters"] = act(letters, work)
