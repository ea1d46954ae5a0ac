"""I9, row 23 of the failure catalogue: each allocation and system call fails once (``tests.each_fault``)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from tests.each_fault import CALLS


def test_each_fault_of_each_call(run_injected: Callable[..., list[Any]]) -> None:
    told = {name: rest for name, *rest in run_injected("-m", "tests.each_fault")}
    assert told.keys() == CALLS.keys()
    problems = {name: rest[-1] for name, rest in told.items() if rest[-1]}
    assert {name for name, problem in problems.items() if not problem.startswith("skipped")} == set(), problems
    allocations, system_calls = (sum(rest[number] for rest in told.values()) for number in (0, 1))
    assert allocations > 300
    assert system_calls > 300
