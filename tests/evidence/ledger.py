"""JSON lines of runs: kept, read, and added up into ``docs/evidence.md``.

The lines of this machine are in ``build/evidence/runs.jsonl``; those that are published, and the bugs that were found,
in ``docs/evidence/``. The page's tables stand between two marks each, and are never written by hand.
"""

from __future__ import annotations

import json
import re
import statistics
import tomllib
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.evidence.engines import ENGINES
from tests.evidence.lines.judging import GOALS, REASONS
from tests.evidence.peers import table as peers
from tests.evidence.planted import MISTAKES
from tests.evidence.planted.mistake import Mistake
from tests.evidence.run import KEPT, ROOT, is_of_this_history
from tests.evidence.suite import TESTS

LINES = KEPT / "runs.jsonl"
PAGE = ROOT / "docs" / "evidence.md"
PUBLISHED = ROOT / "docs" / "evidence" / "runs.jsonl"
TRIALS = ROOT / "docs" / "evidence" / "planted.jsonl"
PEERS = ROOT / "docs" / "evidence" / "peers.jsonl"
LINES_REACHED = ROOT / "docs" / "evidence" / "lines.json"
BUGS = ROOT / "docs" / "evidence" / "bugs.toml"
FIGURES = {"median": "median", "p99": "p99", "largest": "max"}
PATHS = re.compile(r"(?<![\w.-])/(?:[\w.+@-]+/)+")
# runs that began before name commits that were joined into others when they were published
COMMITS_SINCE = "2026-11-22T05:31"


def append(line: dict[str, Any], file: Path | None = None) -> None:
    """Add one run to a file, by default that of this machine."""
    file = file or LINES
    file.parent.mkdir(parents=True, exist_ok=True)
    with file.open("a") as lines:
        lines.write(json.dumps(line) + "\n")


def read(file: Path | None = None) -> list[dict[str, Any]]:
    """The runs in a file, by default those of this machine."""
    file = file or LINES
    return [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []


def publish(lines: Iterable[dict[str, Any]]) -> tuple[int, list[str]]:
    """Add runs to those that are published; how many were new, and why others were left out.

    Only what can be had again counts: runs of a commit of this history, not of files that differ from it. Trials of
    planted mistakes and cells of the peers have files of their own; what was found with a mistake elsewhere says
    nothing.
    """
    known = {identity(line) for file in (PUBLISHED, TRIALS, PEERS) for line in read(file)}
    added, left_out = 0, []
    for line in lines:
        is_trial = line["engine"] == "planted" and "mistakes" in line["counts"]
        if identity(line) in known or not (is_trial or line["planted"] is None):
            continue
        if not is_of_this_history(line["commit"]):
            left_out.append(f"{line['engine']} of {line['began']}: its commit is {line['commit']!r}")
            continue
        if is_trial and not line["turns"]:
            left_out.append(f"{line['planted']} of {line['began']}: no turn of it came to its end")
            continue
        append(without_folders(line), TRIALS if is_trial else PEERS if "peer" in line else PUBLISHED)
        added += 1
    return added, left_out


def without_folders(line: dict[str, Any]) -> dict[str, Any]:
    """A line that names no folder of its machine. Of what an engine found it keeps the seed, which takes it again."""
    kept: dict[str, Any] = json.loads(PATHS.sub("…/", json.dumps(line, ensure_ascii=False)))
    if kept.get("problem"):
        kept["problem"] = kept["problem"].splitlines()[0][:200]
    if line["failure"] is not None:
        kept["failure"] = {key: line["failure"][key] for key in ("scenario", "seed") if key in line["failure"]}
    return kept


def identity(line: dict[str, Any]) -> tuple[Any, ...]:
    """What tells a run from every other."""
    return line["engine"], line["planted"], line["seed"], line["began"]


def sentence(line: dict[str, Any]) -> str:
    """What a person is told of a run."""
    counts = ", ".join(f"{number:,} {what}" for what, number in line["counts"].items()) or "nothing counted"
    figures = "".join(f"; {what}: {told(one)}" for what, one in line["measures"].items())
    found = "nothing found" if line["failure"] is None else "FOUND SOMETHING"
    return f"{line['engine']}: {counts} in {line['turns']:,} turns, {line['seconds']:,} s{figures}: {found}"


@dataclass
class Sum:
    """All runs of one engine. What runs did that ended with a finding stands by itself: ``besides``."""

    runs: int = 0
    seconds: float = 0.0
    found: int = 0
    counts: Counter[str] = field(default_factory=Counter)
    besides: Counter[str] = field(default_factory=Counter)
    recent: Counter[str] = field(default_factory=Counter)  # of ``counts``, of commits that are in this history
    measures: dict[str, list[dict[str, float]]] = field(default_factory=dict)

    def add(self, line: dict[str, Any]) -> None:
        self.runs += 1
        self.seconds += line["seconds"]
        self.found += line["failure"] is not None
        (self.counts if line["failure"] is None else self.besides).update(line["counts"])
        if line["failure"] is None and line["began"] >= COMMITS_SINCE:
            self.recent.update(line["counts"])
        for what, measured in line["measures"].items():
            self.measures.setdefault(what, []).append(measured)


def add_up(lines: Iterable[dict[str, Any]]) -> dict[str, Sum]:
    """Runs of the product as it is, by engine."""
    sums: dict[str, Sum] = {}
    for line in lines:
        if line["planted"] is None:
            sums.setdefault(line["engine"], Sum()).add(line)
    return sums


def runs_table() -> list[str]:
    """What was run: one row for each engine."""
    sums = add_up(read(PUBLISHED))
    rows = [
        "| Engine | What befalls fastlog | Done | of these at commits of this history | Goal | Runs | Hours | Found |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for entry in ENGINES.values():
        one = sums.get(entry.name, Sum())
        more = "".join(f"<br>{number:,} {what}" for what, number in sorted(one.counts.items()) if what != entry.unit)
        more += "".join(f"<br>{what}: {told_of_all(runs)}" for what, runs in sorted(one.measures.items()))
        if one.besides[entry.unit]:
            more = f"<br>and {one.besides[entry.unit]:,} in runs that ended with a finding{more}"
        rows.append(
            f"| `{entry.name}` | {entry.title} | {one.counts[entry.unit]:,} {entry.unit}{more} "
            f"| {one.recent[entry.unit]:,} | {entry.long:,} | {one.runs} | {one.seconds / 3600:.1f} | {one.found} |"
        )
    return rows


def told_of_all(runs: list[dict[str, float]]) -> str:
    """What several runs have measured. The median of several is not kept: that of the run that measured most stands."""
    most = max(runs, key=lambda one: one["n"])
    number, largest = sum(one["n"] for one in runs), max(one["max"] for one in runs)
    text = f"median {most['median']:.4g}, p99 {most['p99']:.4g} (the {most['n']:,} of one run)"
    return f"{text}, largest of all {number:,}: {largest:.4g}"


def told(measured: dict[str, float]) -> str:
    """What was measured, for people."""
    return ", ".join(f"{name} {measured[key]:.4g}" for name, key in FIGURES.items())


def lines_table() -> list[str]:
    """Which lines the tests reach, and why they do not reach the others."""
    published = json.loads(LINES_REACHED.read_text())
    rows = ["| Of the | Lines | Reached | Share | Goal |", "|---|---|---|---|---|"]
    for what, one in published["figures"].items():
        share = 100 * one["reached"] / one["lines"]
        rows.append(f"| {what} | {one['lines']:,} | {one['reached']:,} | {share:.1f} % | {GOALS[what]:g} % |")
    rows += ["", "| Lines | In files | Why no test reaches them |", "|---|---|---|"]
    for group in tomllib.loads(REASONS.read_text())["reason"]:
        number = sum(map(len, group["lines"].values()))
        rows.append(f"| {number} | {len(group['lines'])} | {group['why']} |")
    return rows


def bugs_table() -> list[str]:
    """Every bug of the product that was found, and how many of them by whom."""
    bugs = tomllib.loads(BUGS.read_text())["bug"]
    finders = Counter(bug["engine"] for bug in bugs).most_common()
    summary = f"{len(bugs)} bugs, found by: {', '.join(f'{name} {number}' for name, number in finders)}."
    rows = [f"| {bug['what']} | {bug['engine']} | `{bug['command']}` | `{bug['fixed']}` |" for bug in bugs]
    return [summary, "", "| What was wrong | Found by | Seen with | Fix |", "|---|---|---|---|", *rows]


def planted_table() -> list[str]:
    """Every mistake that is planted, what has to find it, and how often and how soon it did."""
    trials: dict[str, list[dict[str, Any]]] = {}
    for line in read(TRIALS):
        trials.setdefault(line["planted"], []).append(line)
    rows = []
    for one in MISTAKES.values():
        hunted_by = f"{one.engine}:{one.scenario}"  # another one may have had to find it before
        lines = [line for line in trials.get(one.name, []) if line["scenario"] == hunted_by]
        took = [line["seconds"] for line in lines if line["counts"]["caught"]]
        rows.append(
            f"| `{one.name}` | {one.breaks} | {hunter(one)} | {one.budget:.0f} s "
            f"| {f'{statistics.median(took):.0f} s' if took else ''} | {len(took)} of {len(lines)} |"
        )
    head = ["| Mistake | What it breaks | Found by | Within | Took | Caught |", "|---|---|---|---|---|---|"]
    return [*head, *rows]


def hunter(one: Mistake) -> str:
    """The engine that has to find a mistake, or the test."""
    if one.engine == "tests":
        file, _, name = TESTS[one.scenario].partition("::")
        return f"test `{name or file}`"
    return f"`{one.engine} --scenario {one.scenario}`"


def peers_tables() -> list[str]:
    """What was lost, damaged and refused by others under the same."""
    return peers.tables(read(PEERS))


TABLES: dict[str, Callable[[], list[str]]] = {
    "runs": runs_table, "planted": planted_table, "bugs": bugs_table, "peers": peers_tables, "lines": lines_table
}  # fmt: skip


def written(page: str) -> str:
    """The page with its tables made anew."""
    for name, table in TABLES.items():
        begin, end = f"<!-- {name}:begin -->", f"<!-- {name}:end -->"
        head, found, rest = page.partition(begin)
        _, closed, tail = rest.partition(end)
        assert found and closed, f"docs/evidence.md lacks {begin} or {end}"
        page = "\n".join([head + begin, *table(), end]) + tail
    return page
