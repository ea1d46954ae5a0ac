"""What was reached, against the goals, and what was not, against its reasons.

``reasons.toml`` holds groups of lines that no test reaches, or not every time, by file and text: a line that moves
stays listed, and one that changes does not. A text stands as often as it is not reached.
"""

from __future__ import annotations

import json
import tomllib
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.evidence.lines.marking import reached_lines

REASONS = Path(__file__).parent / "reasons.toml"
GOALS = {"Python package": 95.0, "compiled core": 98.0}

Lines = Mapping[str, Mapping[int, bool]]


@dataclass(frozen=True)
class Listed:
    """Lines that nobody has to reach: those that none does, and those that may be reached or not."""

    never: Counter[tuple[str, str]] = field(default_factory=Counter)
    sometimes: Counter[tuple[str, str]] = field(default_factory=Counter)


def read_reasons(file: Path = REASONS) -> Listed:
    """Every listed (file, text of the line), by whether it is reached sometimes."""
    listed = Listed()
    for group in tomllib.loads(file.read_text())["reason"]:
        assert group["why"]
        into = listed.sometimes if group.get("sometimes", False) else listed.never
        for name, texts in group["lines"].items():
            into.update((name, text) for text in texts)
    return listed


def of_package(report: dict[str, Any]) -> dict[str, dict[int, bool]]:
    """The lines in a JSON report of coverage.py."""
    return {
        name.replace("\\", "/"): {
            **dict.fromkeys(file["missing_lines"], False),
            **dict.fromkeys(file["executed_lines"], True),
        }
        for name, file in report["files"].items()
    }


def share(lines: Lines) -> tuple[int, int]:
    """How many lines were reached, of how many."""
    return sum(sum(of_file.values()) for of_file in lines.values()), sum(map(len, lines.values()))


def problems(lines: Lines, listed: Listed, source: Path) -> list[str]:
    """Lines that were not reached and are not listed; listed ones that were reached, or are gone."""
    found = []
    missed: dict[tuple[str, str], list[int]] = {}
    present: Counter[tuple[str, str]] = Counter()
    for name, of_file in lines.items():
        texts = (source / name).read_text().splitlines() or [""]
        for line, is_reached in sorted(of_file.items()):
            key = name, texts[line - 1].strip()
            present[key] += 1
            if not is_reached:
                missed.setdefault(key, []).append(line)
    for (name, text), numbers in sorted(missed.items()):
        allowed = listed.never[name, text] + listed.sometimes[name, text]
        if len(numbers) > allowed:
            places = ", ".join(map(str, numbers))
            found.append(
                f"{name}:{places}: not reached ({len(numbers)} of {present[name, text]}, {allowed} listed): {text}"
            )
    for (name, text), count in sorted(listed.never.items()):
        here = len(missed.get((name, text), []))
        if here < count:
            found.append(
                f"{name}: listed, but {'reached' if present[name, text] else 'gone'} ({here} of {count}): {text}"
            )
    for (name, text), count in sorted(listed.sometimes.items()):
        if present[name, text] < count:
            found.append(f"{name}: listed, but gone: {text}")
    return found


def judge(copy: Path) -> tuple[dict[str, Any], list[str]]:
    """The figures of a copy of the tree in which the tests have run, and everything that is wrong with them."""
    core = reached_lines(copy / "build" / "lines")
    package = of_package(json.loads((copy / "coverage.json").read_text()))
    figures, wrong = {}, problems({**core, **package}, read_reasons(), copy)
    for (what, goal), lines in zip(GOALS.items(), (package, core), strict=True):
        reached, total = share(lines)
        figures[what] = {"reached": reached, "lines": total}
        if total == 0 or 100 * reached / total < goal:
            wrong.append(f"{what}: {reached} of {total} lines reached, the goal is {goal:g} %")
    return figures, wrong
