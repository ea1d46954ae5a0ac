"""The demos of processes while they run: a live table on a terminal, a line now and then elsewhere."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Protocol, TypeVar

from fastlog.cli import output as text
from fastlog.cli.output import Output, live_table
from fastlog.demo.pipeline import EVENTS
from fastlog.demo.supervisor import Snapshot

if TYPE_CHECKING:
    from fastlog.demo.fleet import HandlersSnapshot

__all__ = ["watching", "watching_handlers"]

LINE_EVERY = 2.0
SHORTEST_SPAN = 0.05
COLUMNS = ("", "records", "records/s", "lag", "members")

Rows = Sequence[Sequence[str]]


class Seen(Protocol):
    """What every snapshot has."""

    @property
    def seconds(self) -> float:
        """Since the beginning."""

    @property
    def records(self) -> Mapping[str, int]:
        """Offsets per topic."""

    @property
    def lag(self) -> Mapping[str, int]:
        """Lag per group."""

    @property
    def members(self) -> Mapping[str, int]:
        """Members per group."""

    @property
    def deaths(self) -> int:
        """Processes that died."""


S = TypeVar("S", bound=Seen)


@contextmanager
def watching(output: Output) -> Iterator[Callable[[Snapshot], None]]:
    """A function that shows snapshots of the pipeline: nothing with ``--json`` or ``--quiet``."""

    def title(snapshot: Snapshot) -> str:
        return f"{snapshot.seconds:.0f} s, {snapshot.alive} processes, {text.plural(snapshot.deaths, 'death')}"

    with _watching(output, title, rows, told) as show:
        yield show


@contextmanager
def watching_handlers(output: Output) -> Iterator[Callable[[HandlersSnapshot], None]]:
    """A function that shows snapshots of the handlers: nothing with ``--json`` or ``--quiet``."""

    def title(snapshot: HandlersSnapshot) -> str:
        letters = text.plural(snapshot.open_letters, "open dead letter")
        return f"{snapshot.seconds:.0f} s, {snapshot.doing}, {letters}, {text.plural(snapshot.deaths, 'death')}"

    def line(snapshot: HandlersSnapshot, speed: Mapping[str, float]) -> str:
        moved = {name: count for name, count in snapshot.records.items() if name != EVENTS}
        topics = ", ".join(f"{name.removeprefix(EVENTS + '.')} {count:,}" for name, count in moved.items())
        return "; ".join(
            part
            for part in (
                f"{snapshot.doing}: " + ", ".join(f"{group} {lag:,} behind" for group, lag in snapshot.lag.items()),
                topics,
                text.plural(snapshot.open_letters, "open dead letter"),
                text.plural(snapshot.deaths, "death"),
            )
            if part
        )

    with _watching(output, title, rows, line) as show:
        yield show


@contextmanager
def _watching(
    output: Output,
    title: Callable[[S], str],
    table: Callable[[S, Mapping[str, float]], Rows],
    line: Callable[[S, Mapping[str, float]], str],
) -> Iterator[Callable[[S], None]]:
    if output.as_json or output.quiet:
        yield lambda snapshot: None
        return
    rates = _Rates()
    with live_table(sys.stdout) as show:
        if show is not None:
            yield lambda snapshot: show(title(snapshot), COLUMNS, table(snapshot, rates.of(snapshot)))
            return
    next_line = 0.0

    def tell(snapshot: S) -> None:
        nonlocal next_line
        if snapshot.seconds >= next_line:
            next_line = snapshot.seconds + LINE_EVERY
            output.line(f"  {snapshot.seconds:5.1f} s  {line(snapshot, rates.of(snapshot))}", dim=True)

    yield tell


def rows(snapshot: Seen, speed: Mapping[str, float]) -> Rows:
    """One row per topic, one per group."""
    topics = [
        (f"topic {topic}", text.count(records), text.count(round(speed[topic])), "", "")
        for topic, records in snapshot.records.items()
    ]
    groups = [
        (f"group {group}", "", "", text.count(lag), str(snapshot.members[group])) for group, lag in snapshot.lag.items()
    ]
    return topics + groups


def told(snapshot: Seen, speed: Mapping[str, float]) -> str:
    """The same as a line."""
    topics = ", ".join(f"{topic} {records:,} ({speed[topic]:,.0f}/s)" for topic, records in snapshot.records.items())
    groups = ", ".join(f"{group} {lag:,} behind" for group, lag in snapshot.lag.items())
    return f"{topics}; {groups}; {text.plural(snapshot.deaths, 'death')}"


class _Rates:
    """Records per second since the snapshot before."""

    def __init__(self) -> None:
        self._last: tuple[float, Mapping[str, int]] | None = None

    def of(self, snapshot: Seen) -> dict[str, float]:
        before, self._last = self._last, (snapshot.seconds, snapshot.records)
        if before is None:
            return dict.fromkeys(snapshot.records, 0.0)
        span = max(snapshot.seconds - before[0], SHORTEST_SPAN)
        return {topic: (count - before[1].get(topic, 0)) / span for topic, count in snapshot.records.items()}
