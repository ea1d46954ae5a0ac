"""The pipeline of ``fastlog demo`` while it runs: a live table on a terminal, a line now and then elsewhere."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

from fastlog.cli import output as text
from fastlog.cli.output import Output, live_table
from fastlog.demo.pipeline import GROUPS, TOPICS
from fastlog.demo.supervisor import Snapshot

__all__ = ["watching"]

LINE_EVERY = 2.0
SHORTEST_SPAN = 0.05


@contextmanager
def watching(output: Output) -> Iterator[Callable[[Snapshot], None]]:
    """A function that shows snapshots: nothing with ``--json`` or ``--quiet``."""
    if output.as_json or output.quiet:
        yield lambda snapshot: None
        return
    rates = _Rates()
    with live_table(sys.stdout) as show:
        if show is not None:
            yield lambda snapshot: show(title(snapshot), COLUMNS, rows(snapshot, rates))
            return
    yield _Lines(output, rates).show


COLUMNS = ("", "records", "records/s", "lag", "members")


def title(snapshot: Snapshot) -> str:
    """What stands above the table."""
    return f"{snapshot.seconds:.0f} s, {snapshot.alive} processes, {text.plural(snapshot.deaths, 'death')}"


def rows(snapshot: Snapshot, rates: _Rates) -> Sequence[Sequence[str]]:
    """One row per topic, one per group."""
    speed = rates.of(snapshot)
    topics = [
        (f"topic {topic}", text.count(snapshot.records[topic]), text.count(round(speed[topic])), "", "")
        for topic in TOPICS
    ]
    members = [
        (f"group {group}", "", "", text.count(snapshot.lag[group]), str(snapshot.members[group])) for group in GROUPS
    ]
    return topics + members


class _Rates:
    """Records per second since the snapshot before."""

    def __init__(self) -> None:
        self._last: Snapshot | None = None

    def of(self, snapshot: Snapshot) -> dict[str, float]:
        before, self._last = self._last, snapshot
        if before is None:
            return dict.fromkeys(snapshot.records, 0.0)
        span = max(snapshot.seconds - before.seconds, SHORTEST_SPAN)
        return {topic: (count - before.records[topic]) / span for topic, count in snapshot.records.items()}


class _Lines:
    """Plain lines for a file or a pipe."""

    def __init__(self, output: Output, rates: _Rates) -> None:
        self._output = output
        self._rates = rates
        self._next = 0.0

    def show(self, snapshot: Snapshot) -> None:
        if snapshot.seconds < self._next:
            return
        self._next = snapshot.seconds + LINE_EVERY
        speed = self._rates.of(snapshot)
        topics = ", ".join(f"{topic} {snapshot.records[topic]:,} ({speed[topic]:,.0f}/s)" for topic in TOPICS)
        groups = ", ".join(f"{group} {snapshot.lag[group]:,} behind" for group in GROUPS)
        self._output.line(
            f"  {snapshot.seconds:5.1f} s  {topics}; {groups}; {text.plural(snapshot.deaths, 'death')}", dim=True
        )
