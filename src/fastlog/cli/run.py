"""``fastlog run``: an app in processes of its own, that are started again when they die."""

from __future__ import annotations

import os
import sys
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

import fastlog
from fastlog.cli.output import EXIT_PROBLEMS, encode_json
from fastlog.cli.store import StorePath, given_store
from fastlog.config import parse_duration_ms

if TYPE_CHECKING:
    from fastlog.delivery.workers import Event

__all__ = ["run"]

LEVELS = ("debug", "info", "warning", "error")
MOST_WORKERS = 1024
LOUD = {"died": "yellow", "killed": "red"}


class Duration(click.ParamType):  # type: ignore[type-arg]  # generic only in newer versions of click
    """``30s``, ``500ms``, ``2m``; a bare number is seconds. Milliseconds."""

    name = "duration"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        if isinstance(value, int):
            return value
        try:
            number = float(value)
        except ValueError:
            number = value
        try:
            milliseconds = parse_duration_ms(number, "duration")
        except fastlog.ConfigError:
            milliseconds = -1
        if milliseconds < 0:
            self.fail(f"{value!r} is no duration: expected one such as 30s, 500ms or 2m", param, ctx)
        return milliseconds


@click.command(short_help="Run an app in processes that are started again when they die.")
@click.argument("target", metavar="MODULE:APP")
@click.option("--workers", "-w", type=click.IntRange(1, MOST_WORKERS), default=1, show_default=True, metavar="N",
              help="How many processes.")  # fmt: skip
@click.option("--grace", type=Duration(), default="40s", show_default=True, metavar="TIME",
              help="After a stop: how long workers have before they are killed.")  # fmt: skip
@click.option("--store", type=StorePath(), metavar="PATH", help="Folder of a store, in place of the app's own.")
@click.option("--log-level", type=click.Choice(LEVELS), default="warning", show_default=True,
              help="What workers write to stderr, when the app does not set up logging itself.")  # fmt: skip
@click.option("--json", "as_json", is_flag=True, help="Tell what happens as lines of JSON, on stderr.")
@click.option("--quiet", "-q", is_flag=True, help="Tell nothing but of deaths and errors.")
def run(
    target: str, workers: int, grace: int, store: Path | None, log_level: str, as_json: bool, quiet: bool
) -> None:  # fmt: skip
    """Run the subscribers of an app: MODULE:APP, such as shop.handlers:app, looked for in the current folder first.

    SIGTERM or Ctrl-C stops: workers finish what they have in hand, commit it, and end; the exit code is 0. The second
    one kills, and so does the end of --grace; then the exit code is 1. A worker that dies is started again, at once the
    first time, then later and later. A worker whose app ends by itself is not.

    Everything that is told goes to stderr; stdout belongs to the app.
    """
    from fastlog.delivery.workers import Workers

    given = given_store(store)
    crew = Workers(
        target,
        workers,
        store=None if given is None else os.path.abspath(given),
        grace_ms=grace,
        log_level=log_level,
        tell=_Teller(workers, as_json, quiet, click.get_current_context().color),
    )
    try:
        code = crew.run()
    except fastlog.ConfigError as error:
        raise click.UsageError(str(error)) from None
    if code:
        click.get_current_context().exit(EXIT_PROBLEMS)


class _Teller:
    """Writes what happens to stderr: sentences, and on a terminal colours and how many run now; or JSON."""

    def __init__(self, workers: int, as_json: bool, quiet: bool, color: bool | None) -> None:
        self._workers = workers
        self._as_json = as_json
        self._quiet = quiet
        self._color = color
        self._on_terminal = sys.stderr.isatty()
        self._last = ""

    def __call__(self, event: Event) -> None:
        try:
            self._write(event)
        except OSError:
            pass  # nobody reads it any more, which is no reason to end

    def _write(self, event: Event) -> None:
        if self._quiet and event.kind not in LOUD:
            return
        if self._as_json:
            found = {name: value for name, value in asdict(event).items() if value is not None}
            click.echo(encode_json({"event": found.pop("kind"), **found}), err=True)
            return
        prefix = click.style("fastlog run:", dim=True)
        click.echo(f"{prefix} {click.style(event.text, fg=LOUD.get(event.kind))}", err=True, color=self._color)
        if self._on_terminal and not self._quiet and event.kind in ("loaded", "died", "ended"):
            self._status(event)

    def _status(self, event: Event) -> None:
        """One line on how things stand, when that has changed."""
        restarts = f", {event.restarts} started again" if event.restarts else ""
        line = f"  {event.alive} of {self._workers} running{restarts}; Ctrl-C stops"
        if line != self._last:
            self._last = line
            click.echo(click.style(line, dim=True), err=True, color=self._color)
