"""The command line of the evidence suite."""

from __future__ import annotations

import contextlib
import random
import signal
import sys
import time
from pathlib import Path
from typing import Any

import click

from fastlog.cli import output as show
from fastlog.config import parse_duration_ms
from tests.evidence import ledger, tiers
from tests.evidence.engines import BESIDE, ENGINES
from tests.evidence.peers import engines as on_peers
from tests.evidence.peers.peers import PEERS
from tests.evidence.planted.command import run_planted
from tests.evidence.planted.trial import seed_of_commit
from tests.evidence.run import KEPT, NOT_HERE, NotHere, Run

TELL_EVERY = 60.0  # seconds between lines where there is no terminal


class Seconds(click.ParamType):  # type: ignore[type-arg]
    """A duration such as 10m, as seconds."""

    name = "duration"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        try:
            return parse_duration_ms(value, "budget") / 1000
        except ValueError as problem:
            self.fail(str(problem), param, ctx)


class CannotRun(click.ClickException):
    """This machine lacks what an engine needs: another end than that of a run that found something."""

    exit_code = NOT_HERE


class Watcher:
    """Says how far a run is: on one line of a terminal that is written again and again, else now and then."""

    def __init__(self) -> None:
        self.again_in_place = sys.stderr.isatty()
        self.due = time.monotonic() + (0.2 if self.again_in_place else TELL_EVERY)

    def __call__(self, run: Run) -> None:
        if time.monotonic() < self.due:
            return
        self.due = time.monotonic() + (0.2 if self.again_in_place else TELL_EVERY)
        done = ", ".join(f"{number:,} {what}" for what, number in run.counts.most_common())
        text = f"{run.engine}: {show.duration(run.seconds)}, turn {run.turns:,}, {done}{self._share(run)}"
        click.echo(f"\r\x1b[K{text[:150]}" if self.again_in_place else text, err=True, nl=not self.again_in_place)

    @staticmethod
    def _share(run: Run) -> str:
        shares = []
        if run.goal:
            shares.append(run.counts[run.unit] / run.goal)
        if run.budget:
            shares.append(run.seconds / run.budget)
        return f" ({min(1.0, max(shares)):.0%})" if shares else ""

    def clear(self) -> None:
        if self.again_in_place:
            click.echo("\r\x1b[K", err=True, nl=False)


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
def main() -> None:
    """Make the evidence again: what fastlog survives, tried many times over."""


@main.command("list")
def list_engines() -> None:
    """Show the engines, and how much of each a tier wants."""
    rows = [[one.name, f"{one.ci:,}", f"{one.long:,}", one.unit, one.title] for one in ENGINES.values()]
    show.Output().table(["engine", "ci", "long", "of", "what befalls fastlog"], rows, align="lrrll")


def engine_command(name: str) -> click.Command:
    """The command that runs one engine."""
    entry = (ENGINES | BESIDE)[name]

    @click.command(name, help=f"{entry.title[0].upper()}{entry.title[1:]}. Ends with 1 when something was found.")
    @click.option("--budget", type=Seconds(), help="Stop after so long, such as 10m.")
    @click.option("--count", type=click.IntRange(1), help=f"Stop after so many {entry.unit}.")
    @click.option("--turns", type=click.IntRange(1), help="Stop after so many turns.")
    @click.option("--seed", type=int, help="What everything random comes from; turn n has the seed N + n.")
    @click.option("--scenario", help="Take turns of this kind only.")
    @click.option("--json", "lines", type=click.Path(path_type=Path), help="Append the JSON line to this file.")
    def command(
        budget: float | None, count: int | None, turns: int | None, seed: int | None, scenario: str | None,
        lines: Path | None,
    ) -> None:  # fmt: skip
        if budget is None and count is None and turns is None:
            budget = 60.0
        watcher = Watcher()
        chosen = random.SystemRandom().randrange(1 << 32) if seed is None else seed
        run = Run(name, entry.unit, chosen, budget, count, turns, scenario, watcher)
        click.echo(f"{name}: seed {chosen}", err=True)
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, run.interrupt)
        try:
            with contextlib.suppress(KeyboardInterrupt), entry.load()() as scenarios:
                run.go(scenarios)
        except NotHere as problem:
            raise CannotRun(str(problem)) from problem
        watcher.clear()
        if run.turns:
            ledger.append(run.line(), lines)
        click.echo(ledger.sentence(run.line()))
        if run.failure is not None:
            failure = run.failure
            click.secho(f"found in {failure.scenario}: {failure.problem}", fg="red", err=True)
            click.echo(f"again: {failure.again}" + (f"\nkept:  {failure.kept}" if failure.kept else ""), err=True)
            sys.exit(1)

    return command


for known in ENGINES | BESIDE:
    main.add_command(engine_command(known))

main.add_command(run_planted)

only = click.option("--only", multiple=True, type=click.Choice(list(ENGINES)), help="This engine; may be given again.")
jobs_option = click.option("--jobs", default=2, show_default=True, type=click.IntRange(1), help="Engines at a time.")


def end(outcome: tiers.Outcome) -> None:
    """What a tier came to; 1 for anything that was found or is missing."""
    for problem in outcome.problems:
        click.secho(problem, fg="red", err=True)
    click.echo(f"{len(outcome.lines)} runs; {len(outcome.problems) or 'no'} problems; kept in {ledger.LINES.name}")
    sys.exit(1 if outcome.problems else 0)


@main.command("ci")
@click.option("--seed", type=int, help="What the seeds of the engines come from; that of the commit by default.")
@jobs_option
@only
def run_ci(seed: int | None, jobs: int, only: tuple[str, ...]) -> None:
    """Run every engine up to the goals of its short tier."""
    chosen = seed_of_commit() if seed is None else seed
    click.echo(f"seed {chosen}")
    end(tiers.run_ci(click.echo, chosen, jobs, list(only or ENGINES)))


@main.command("long")
@click.option("--budget", type=Seconds(), default="1h", show_default=True, help="Begin no part after so long.")
@click.option("--part", type=Seconds(), default="10m", show_default=True, help="How long one part takes at most.")
@jobs_option
@only
def run_long(budget: float, part: float, jobs: int, only: tuple[str, ...]) -> None:
    """Go on with the long tier. What every engine lacks to its goal decides what part of the time it gets.

    What was done before counts: it stands in build/evidence/runs.jsonl. So does what is done until SIGINT or SIGTERM
    ends this; the same command goes on, with other seeds.
    """
    end(tiers.run_long(click.echo, budget, part, jobs, list(only or ENGINES)))


def run_cell(
    peer: str, engine: str, turns: int | None, budget: float | None, seed: int, records: int, lines: Path
) -> bool:
    """One engine on one peer; whether the harness had nothing to complain of. What a peer did is no failure."""
    entry, watcher, said = on_peers.PEER_ENGINES[engine], Watcher(), dict[str, str]()
    run = Run(f"peers {peer} {engine}", entry.unit, seed, budget, None, turns, None, watcher)
    with on_peers.ground_of(peer, said) as ground, on_peers.engine(ground, engine, records) as scenarios:
        run.go(scenarios)
    watcher.clear()
    line = {**run.line(), **on_peers.cell(peer, engine, records, said)}
    ledger.append(line, lines)
    click.echo(ledger.sentence(line).rpartition(": ")[0])  # whether anything was found is for the table to say
    for outcome, example in said.items():
        click.echo(f"  {outcome}: {example}")
    if run.failure is not None:
        click.secho(f"failed: {run.failure.problem}\nagain: {run.failure.again}", fg="red", err=True)
    return run.failure is None


@main.command("peers")
@click.argument("peer", type=click.Choice([*PEERS, "all"]))
@click.argument("engine", type=click.Choice([*on_peers.PEER_ENGINES, "all"]))
@click.option("--turns", type=click.IntRange(1), help="Stop after so many turns.")
@click.option("--budget", type=Seconds(), help="Stop after so long, such as 10m.")
@click.option("--seed", type=int, default=1, show_default=True, help="As for the engines; the same for every peer.")
@click.option("--records", type=click.IntRange(1), default=on_peers.RECOVERED_RECORDS, show_default=True,
              help="In the store that is recovered.")  # fmt: skip
@click.option("--scenario", hidden=True, help="There is one, called all.")
@click.option("--json", "lines", type=click.Path(path_type=Path), default=KEPT / "peers.jsonl",
              help="Append the JSON lines to this file.")  # fmt: skip
def run_peers(
    peer: str, engine: str, turns: int | None, budget: float | None, seed: int, records: int, scenario: str | None,
    lines: Path,
) -> None:  # fmt: skip
    """Run an engine on a peer, or all of them: python -m tests.evidence.peers.table makes the table of the lines."""
    if turns is None and budget is None:
        turns = 10
    well = True
    for one in PEERS if peer == "all" else [peer]:
        for name in on_peers.PEER_ENGINES if engine == "all" else [engine]:
            try:
                well = run_cell(one, name, turns, budget, seed, records, lines) and well
            except Exception as problem:  # noqa: BLE001 - the next cell is of another store
                click.secho(f"{one} {name}: {type(problem).__name__}: {problem}", fg="red", err=True)
                well = False
    sys.exit(0 if well else 1)


@main.command("ledger")
@click.option("--add", "lines", type=click.Path(exists=True, path_type=Path), help="Publish the runs in this file.")
@click.option("--check", is_flag=True, help="Change nothing; end with 1 when the page is not up to date.")
def write_ledger(lines: Path | None, check: bool) -> None:
    """Add up the published runs into docs/evidence.md."""
    if lines is not None:
        added, left_out = ledger.publish(ledger.read(lines))
        click.echo(f"{added} runs added" + "".join(f"\nleft out: {why}" for why in left_out))
    page = ledger.PAGE.read_text()
    written = ledger.written(page)
    if check and written != page:
        raise click.ClickException("docs/evidence.md is not what its lines add up to; run without --check")
    if written != page:
        ledger.PAGE.write_text(written)


if __name__ == "__main__":
    main(prog_name="python -m tests.evidence")
