"""The figures of a run: rounds of all turns put together, medians, goals judged. Pure functions over parsed JSON."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from statistics import median
from typing import Any

from benchmarks.goals import Goal, Kind, goals


@dataclass(slots=True)
class Figure:
    """What one contestant did in one contest. ``seconds`` holds every timed round, in the order they ran.

    ``samples`` holds the single steps that a contestant timed itself; where there are any, the figures are theirs.
    """

    contest: str
    title: str
    unit: str
    contestant: str
    builds: str
    units: int
    seconds: list[float] = field(default_factory=list)
    details: dict[str, float] = field(default_factory=dict)
    samples: list[float] = field(default_factory=list)

    @property
    def times(self) -> list[float]:
        """What the figures are computed from, in seconds."""
        return self.samples or self.seconds

    @property
    def median_seconds(self) -> float:
        return median(self.times)

    @property
    def p99_seconds(self) -> float:
        """99 of 100 were as fast."""
        return sorted(self.times)[min(len(self.times) - 1, len(self.times) * 99 // 100)]

    @property
    def rate(self) -> float:
        """Units per second at the median."""
        return self.units / self.median_seconds

    @property
    def spread(self) -> float:
        """Distance from the fastest to the slowest round, as a share of the median."""
        return (max(self.times) - min(self.times)) / self.median_seconds

    @property
    def text(self) -> str:
        """The median, for a table; with the 99th percentile where single steps were timed."""
        if self.samples:
            return f"{span_text(self.median_seconds)}, p99 {span_text(self.p99_seconds)}"
        return rate_text(self.units, self.median_seconds, self.unit)


# units of which the rate is shown; of others the time
COUNTED = ("records", "lookups", "transactions", "commits")


def span_text(seconds: float) -> str:
    """A time span: 0.0000123 -> 12.3 µs"""
    return f"{seconds * 1e6:.3g} µs" if seconds < 0.0009995 else f"{seconds * 1000:.3g} ms"


def rate_text(units: int, seconds: float, unit: str) -> str:
    """How fast so many units in so many seconds are: as a rate where the unit is one to count, else the time itself."""
    rate = units / seconds
    if unit == "bytes":
        return f"{rate / 1e6:.0f} MB/s"
    if unit not in COUNTED:
        return span_text(seconds)
    return f"{rate / 1e6:.3g} M {unit}/s" if rate >= 5e4 else f"{rate / 1e3:.3g} k {unit}/s"


Figures = dict[str, dict[str, Figure]]


def collect(raw: Mapping[str, Any]) -> Figures:
    """From pytest-benchmark's JSON to contest -> contestant -> figure."""
    figures: Figures = {}
    for entry in sorted(raw["benchmarks"], key=lambda entry: int(entry["extra_info"]["turn"])):
        info = entry["extra_info"]
        contestants = figures.setdefault(info["contest"], {})
        figure = contestants.get(info["contestant"])
        if figure is None:
            names = ("contest", "title", "unit", "contestant", "builds", "units")
            figure = contestants[info["contestant"]] = Figure(*(info[name] for name in names))
        figure.seconds += entry["stats"]["data"]
        figure.samples += info.get("samples", ())
        figure.details |= info["details"]
    return figures


@dataclass(frozen=True, slots=True)
class Judgement:
    """A goal beside what was measured. ``found`` has the unit of the goal's kind."""

    goal: Goal
    peer: str
    found: float

    @property
    def falls_short(self) -> bool:
        if self.goal.bound is None:
            return False
        return self.found < self.goal.bound if self.goal.is_least else self.found > self.goal.bound

    @property
    def verdict(self) -> str:
        if self.goal.bound is None:
            return "shown apart"
        return "falls short" if self.falls_short else "reached"

    @property
    def text(self) -> str:
        return _text(self.found, self.goal.kind)

    @property
    def bound_text(self) -> str:
        if self.goal.bound is None:
            return ""
        sign = "≥" if self.goal.is_least else "≤"
        return f"{sign} {_text(self.goal.bound, self.goal.kind)}"


def _text(number: float, kind: Kind) -> str:
    match kind:
        case Kind.RATE | Kind.COST | Kind.P99_COST:
            return f"{number:.3g}x" if number < 0.095 else f"{number:.2f}x"
        case Kind.PEAK_MEBIBYTES:
            return f"{number:.1f} MiB"
        case Kind.P99_MICROSECONDS:
            return f"{number:.0f} µs"
        case Kind.RECORDS_PER_SYNC:
            return f"{number:.1f}"
        case Kind.MILLIONS_PER_SECOND:
            return f"{number:.2f} M/s"
        case Kind.MICROSECONDS_EACH:
            return f"{number:.1f} µs"
        case Kind.KIBIBYTES_EACH:
            return f"{number:.1f} KiB"
        case Kind.PERCENT_OF_A_CORE:
            return f"{number:.2g} %"
        case _:
            return f"{number:.1f} ms"


def judge(figures: Figures) -> list[Judgement]:
    """One judgement per goal whose contestants were all measured."""
    judgements = []
    for goal in goals():
        contestants = figures.get(goal.contest, {})
        if goal.ours not in contestants or not all(name in contestants for name in goal.against):
            continue
        ours = contestants[goal.ours]
        peer = max((contestants[name] for name in goal.against), key=lambda figure: figure.rate, default=None)
        judgements.append(Judgement(goal, peer.contestant if peer else "", _found(goal.kind, ours, peer)))
    return judgements


def _found(kind: Kind, ours: Figure, peer: Figure | None) -> float:
    match kind, peer:
        case Kind.RATE, Figure():
            return ours.rate / peer.rate
        case Kind.COST, Figure():
            return peer.rate / ours.rate
        case Kind.P99_COST, Figure():
            return ours.p99_seconds / peer.p99_seconds
        case Kind.EXTRA_MILLISECONDS, Figure():
            return (ours.median_seconds - peer.median_seconds) * 1000
        case Kind.MILLISECONDS, None:
            return ours.median_seconds * 1000
        case Kind.PEAK_MEBIBYTES, None:
            return ours.details["peak_bytes"] / (1 << 20)
        case Kind.P99_MICROSECONDS, None:
            return ours.p99_seconds * 1e6
        case Kind.RECORDS_PER_SYNC, None:
            return ours.details["records_per_sync"]
        case Kind.MILLIONS_PER_SECOND, None:
            return ours.rate / 1e6
        case Kind.MICROSECONDS_EACH, None:
            return 1e6 / ours.rate
        case Kind.KIBIBYTES_EACH, None:
            return ours.details["bytes_each"] / 1024
        case Kind.PERCENT_OF_A_CORE, None:
            return ours.details["share_of_a_core"] * 100
    raise ValueError(f"a goal of the kind {kind.name} with peer {peer}")
