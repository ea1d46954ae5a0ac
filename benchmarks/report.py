"""From pytest-benchmark's JSON to what is kept: ``results/<name>.json``, ``<name>.md`` and pictures.

python -m benchmarks.report raw.json --name full
"""

from __future__ import annotations

import argparse
import json
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.figures import Figures, Judgement, collect, judge
from benchmarks.goals import Kind

RESULTS = Path(__file__).parent / "results"
_SHORTFALLS = Path(__file__).parent / "shortfalls.toml"
_NO_REASON = "reason not found yet"
_NO_TIME = (Kind.PEAK_MEBIBYTES, Kind.RECORDS_PER_SYNC, Kind.KIBIBYTES_EACH, Kind.PERCENT_OF_A_CORE)


def _reason(judgement: Judgement, reasons: Mapping[str, str]) -> str:
    return reasons.get(judgement.goal.key, _NO_REASON) if judgement.falls_short else ""


def trimmed(raw: Mapping[str, Any], figures: Figures, judgements: Sequence[Judgement]) -> dict[str, Any]:
    """What a later reader needs to check every number in the table: every timed round, nothing about whose machine."""
    return {
        "measured": raw["datetime"][:10],
        "commit": {key: raw["commit_info"].get(key) for key in ("id", "dirty")},
        "machine": raw["machine_info"],
        "goals": [
            {
                "key": judgement.goal.key,
                "work": judgement.goal.work,
                "ours": judgement.goal.ours,
                "peer": judgement.peer,
                "kind": judgement.goal.kind.name.lower(),
                "bound": judgement.goal.bound,
                "found": round(judgement.found, 4),
                "verdict": judgement.verdict,
            }
            for judgement in judgements
        ],
        "contests": {
            contest: {
                name: {
                    "title": figure.title,
                    "builds": figure.builds,
                    figure.unit: figure.units,
                    "median_seconds": float(f"{figure.median_seconds:.6g}"),
                    "rounds_seconds": [float(f"{seconds:.6g}") for seconds in figure.seconds],
                    **({"samples_seconds": figure.samples} if figure.samples else {}),
                    **figure.details,
                }
                for name, figure in contestants.items()
            }
            for contest, contestants in figures.items()
        },
    }


def _table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> Iterator[str]:
    yield f"| {' | '.join(header)} |"
    yield f"|{'---|' * len(header)}"
    for row in rows:
        yield f"| {' | '.join(cell.replace('|', '/') for cell in row)} |"
    yield ""


def _goal_rows(figures: Figures, judgements: Sequence[Judgement], reasons: Mapping[str, str]) -> Iterator[list[str]]:
    for judgement in judgements:
        goal = judgement.goal
        ours = figures[goal.contest][goal.ours]
        peer = figures[goal.contest].get(judgement.peer)
        figure = judgement.text if goal.kind in _NO_TIME else ours.text
        yield [
            goal.work,
            figure,
            f"{judgement.peer}: {peer.text}" if peer else "",
            judgement.text if peer or goal.kind is Kind.P99_MICROSECONDS else "",
            judgement.bound_text,
            f"**{judgement.verdict}**" if judgement.falls_short else judgement.verdict,
            _reason(judgement, reasons),
        ]


def _machine_lines(machine: Mapping[str, Any]) -> Iterator[str]:
    flags = ", ".join(machine["cpu_flags"]) or "none of interest"
    yield f"- {machine['cores']} cores of {machine['cpu']} ({flags}), {machine['memory_gib']} GiB of memory"
    yield f"- {machine['kernel']}, {machine['file_system']}"
    yield "- " + ", ".join(f"{name} {version}" for name, version in machine["versions"].items())


def markdown(
    name: str, raw: Mapping[str, Any], figures: Figures, judgements: Sequence[Judgement], reasons: Mapping[str, str]
) -> str:
    machine = raw["machine_info"]
    rounds = [len(figure.seconds) for contest in figures.values() for figure in contest.values()]
    sizes = machine["sizes"]
    lines = ["# Measured", ""]
    if machine["quick"]:
        lines += ["A quick look with small sizes; not figures to rely on.", ""]
    lines += _machine_lines(machine)
    how = f"medians of {min(rounds)} to {max(rounds)} rounds in turns, after warm-up rounds"
    level = "durability `os` and its like where nothing else is said"
    lines += [
        f"- {raw['datetime'][:10]}; {level}; {how}; a new handle each round; warm page cache",
        f"- large log: {sizes['large_log_bytes'] / (1 << 30):.3g} GiB, small log: {sizes['small_log_bytes'] >> 20} MiB",
        "",
        "## Against the goals",
        "",
    ]
    header = ("Work", "fastlog", "Beside", "Figure", "Goal", "", "Why short")
    lines += _table(header, list(_goal_rows(figures, judgements, reasons)))
    lines += [
        "## Everything that was measured",
        "",
        "Spread: slowest minus fastest round, by the median. Rounds: or single steps, where those were timed.",
        "",
    ]
    for contest in figures.values():
        lines += [f"### {next(iter(contest.values())).title}", ""]
        ranked = sorted(contest.values(), key=lambda figure: figure.median_seconds / figure.units)
        rows = [
            [figure.contestant, figure.text, f"{figure.spread:.0%}", str(len(figure.times)), figure.builds]
            for figure in ranked
        ]
        lines += _table(("Contestant", "Median", "Spread", "Rounds", "Python objects in the timed part"), rows)
    return "\n".join(lines)


def write(raw_path: Path, name: str, directory: Path = RESULTS) -> list[Path]:
    """Write JSON, table and pictures of the run in ``raw_path``; the paths written."""
    from benchmarks import plots

    raw = json.loads(raw_path.read_text())
    figures = collect(raw)
    judgements = judge(figures)
    reasons = tomllib.loads(_SHORTFALLS.read_text())
    directory.mkdir(parents=True, exist_ok=True)
    data, table = directory / f"{name}.json", directory / f"{name}.md"
    data.write_text(json.dumps(trimmed(raw, figures, judgements), indent=1) + "\n")
    table.write_text(markdown(name, raw, figures, judgements, reasons))
    return [data, table, *plots.draw(figures, directory, name)]


def summary(raw_path: Path) -> str:
    """The goals as lines of plain text."""
    figures = collect(json.loads(raw_path.read_text()))
    lines = []
    for judgement in judge(figures):
        goal = judgement.goal
        peer = f" beside {judgement.peer}" if judgement.peer else ""
        lines.append(f"{goal.work + peer:62} {judgement.text:>10}  {judgement.bound_text:>10}  {judgement.verdict}")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.report", description=__doc__)
    parser.add_argument("raw", type=Path, help="what --benchmark-json wrote")
    parser.add_argument("--name", default="full", help="name of the files in results/ (default: full)")
    arguments = parser.parse_args()
    for path in write(arguments.raw, arguments.name):
        print(path.name)
    print(summary(arguments.raw))


if __name__ == "__main__":
    main()
