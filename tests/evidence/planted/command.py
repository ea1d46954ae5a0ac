"""``python -m tests.evidence planted``."""

from __future__ import annotations

import contextlib
import re
import signal
import sys
import time
from pathlib import Path

import click

from fastlog.cli import output as show
from tests.evidence.fuzz.building import build_instrumented
from tests.evidence.planted import MISTAKES
from tests.evidence.planted.build import build
from tests.evidence.planted.trial import Outcome, Trials, sample, seed_of_commit
from tests.evidence.run import NotHere

SAID = 3000  # characters of what an engine said that did not do what it should


@click.command("planted")
@click.argument("names", nargs=-1, type=click.Choice(list(MISTAKES)), metavar="[NAME]...")
@click.option("--all", "every", is_flag=True, help="All of them.")
@click.option("--sample", "count", type=click.IntRange(1), help="So many: the part of them that the seed chooses.")
@click.option("--seed", type=int, help="What engines draw from, and which part it is; that of the commit by default.")
@click.option("--jobs", default=2, show_default=True, type=click.IntRange(1), help="Mistakes at a time.")
@click.option("--json", "lines", type=click.Path(path_type=Path), help="Append the JSON lines to this file.")
def run_planted(
    names: tuple[str, ...], every: bool, count: int | None, seed: int | None, jobs: int, lines: Path | None
) -> None:
    """Put mistakes into a build of their own, and see that the engines find them. Ends with 1 when one survives."""
    if bool(names) + every + (count is not None) != 1:
        raise click.UsageError("name some mistakes, or say --sample 10, or --all")
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # else engines would outlive it
    began = time.monotonic()
    chosen_seed = seed_of_commit() if seed is None else seed
    chosen = [one for one in MISTAKES.values() if every or one.name in names]
    if count is not None:
        chosen = sample(count, chosen_seed)
    click.echo(f"{len(chosen)} planted mistakes, seed {chosen_seed}; compiling", err=True)
    library = build()
    if any(one.engine == "fuzz" for one in chosen):
        with contextlib.suppress(NotHere):  # which its trial will say
            build_instrumented()  # takes minutes the first time: not in the time of the trial
    click.echo(f"compiled in {time.monotonic() - began:.0f} s", err=True)
    trials = Trials(chosen, chosen_seed, jobs, lines)
    is_right = trials.go(library, tell)
    ordered = sorted(trials.outcomes, key=lambda one: (one.mistake is None, one.engine, one.scenario))
    rows = [[one.name, f"{one.engine} {one.scenario}", one.verdict] for one in ordered]
    show.Output().table(["mistake", "engine", "what became of it"], rows, align="lll")
    caught = sum(one.mistake is not None and one.problem is not None for one in trials.outcomes)
    took = time.monotonic() - began
    click.echo(f"{caught} of {len(chosen)} planted mistakes were caught; seed {chosen_seed}, {took:.0f} s")
    sys.exit(0 if is_right else 1)


def tell(outcome: Outcome) -> None:
    """What became of one, as soon as it is known; all that its engine said when it should have been something else."""
    found = "" if outcome.problem is None else f": {essence(outcome.problem):.120}"
    click.echo(f"{outcome.name}: {outcome.engine} {outcome.scenario}: {outcome.verdict}{found}", err=True)
    if not outcome.is_right:
        click.echo(f"{outcome.said[-SAID:]}\nagain: {outcome.again}", err=True)


def essence(problem: str) -> str:
    """The line of a problem that says what it was: of a traceback the last that names an error."""
    return ([line for line in problem.splitlines() if re.match(r"[\w.]+(?:Error|Exception): ", line)] or [problem])[-1]
