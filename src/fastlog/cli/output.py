"""How the command line speaks: exit codes, one-line errors, tables, sizes, progress bars, JSON.

Results go to stdout; errors, questions and progress bars to stderr. A terminal gets colours (unless ``NO_COLOR`` is
set) and, when rich is installed, its tables and bars; a pipe or a file gets plain text of the same content.
"""

from __future__ import annotations

import base64
import functools
import json
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import Any, NoReturn, TextIO

import click

import fastlog

__all__ = [
    "EXIT_ERROR",
    "EXIT_INTERRUPTED",
    "EXIT_PIPE_CLOSED",
    "EXIT_PROBLEMS",
    "CommandLine",
    "Output",
    "bytes_as_json",
    "bytes_as_text",
    "count",
    "duration",
    "encode_json",
    "instant",
    "live_table",
    "output_options",
    "plural",
    "rate",
    "size",
    "speed",
]

EXIT_PROBLEMS = 1
EXIT_ERROR = 3
EXIT_INTERRUPTED = 130
EXIT_PIPE_CLOSED = 141


class CommandLine(click.Group):
    """The top group: turns every expected exception below it into one line on stderr and an exit code."""

    def main(self, *args: Any, **kwargs: Any) -> Any:
        for stream in (sys.stdout, sys.stderr):
            if hasattr(stream, "reconfigure"):
                stream.reconfigure(errors="backslashreplace")
        return super().main(*args, **kwargs)

    def invoke(self, ctx: click.Context) -> Any:
        if os.environ.get("NO_COLOR"):
            ctx.color = False
        try:
            result = super().invoke(ctx)
            sys.stdout.flush()
            return result
        except BrokenPipeError:
            _discard_stdout()
            ctx.exit(EXIT_PIPE_CLOSED)
        except KeyboardInterrupt:
            click.echo("fastlog: interrupted", err=True)
            ctx.exit(EXIT_INTERRUPTED)
        except fastlog.Error as error:
            _fail(ctx, str(error))
        except OSError as error:
            _fail(ctx, _describe_os_error(error))
        except MemoryError:
            _fail(ctx, "not enough memory")


def _fail(ctx: click.Context, message: str) -> NoReturn:
    line = " ".join(message.split())
    click.echo(f"{click.style('fastlog: error:', fg='red', bold=True)} {line}", err=True, color=ctx.color)
    ctx.exit(EXIT_ERROR)


def _describe_os_error(error: OSError) -> str:
    if error.filename is None:
        return error.strerror or str(error)
    return f"{os.fsdecode(error.filename)}: {error.strerror}"


def _discard_stdout() -> None:
    """Point stdout at nothing, so that the interpreter's last flush does not fail again."""
    try:
        nothing = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nothing, sys.stdout.fileno())
        os.close(nothing)
    except (OSError, ValueError):
        pass


def output_options(function: Callable[..., None]) -> Callable[..., None]:
    """``--json`` and ``--quiet``, handed to the command as ``output``."""

    @click.option("--json", "as_json", is_flag=True, help="Print JSON instead of text.")
    @click.option("--quiet", "-q", is_flag=True, help="Print nothing but errors; the exit code tells.")
    @functools.wraps(function)
    def command(*args: Any, as_json: bool, quiet: bool, **kwargs: Any) -> None:
        color = click.get_current_context().color
        function(*args, output=Output(as_json, quiet, color), **kwargs)

    return command


class Output:
    """Where one command prints. ``json`` and ``quiet`` are what the user asked for; quiet wins."""

    def __init__(self, as_json: bool = False, quiet: bool = False, color: bool | None = None) -> None:
        self.as_json = as_json
        self.quiet = quiet
        self.color = color
        self._rich: Any = None if as_json or quiet or not sys.stdout.isatty() else _rich_console()

    # -- results ---------------------------------------------------------------------------------

    def object(self, value: Any) -> None:
        """One JSON object, on one line when the output is a pipe."""
        if not self.quiet:
            click.echo(encode_json(value, indent=2 if sys.stdout.isatty() else None))

    def json_line(self, value: Any) -> None:
        """One JSON object on a line of its own."""
        if not self.quiet:
            click.echo(encode_json(value))

    def line(self, text: str = "", **style: Any) -> None:
        """A line of text; ``style`` as for ``click.style``."""
        if not self.quiet:
            click.echo(click.style(text, **style) if style else text, color=self.color)

    def heading(self, text: str) -> None:
        """A line that opens a part, with an empty line above."""
        self.line()
        self.line(text, bold=True)

    def verdict(self, ok: bool, text: str) -> None:
        """``ok`` or ``PROBLEM`` and what it is about."""
        word = click.style("ok     ", fg="green") if ok else click.style("PROBLEM", fg="red", bold=True)
        self.line(f"  {word}  {text}")

    def fields(self, rows: Sequence[tuple[str, str]]) -> None:
        """Names and values, the values aligned."""
        width = max((len(name) for name, _ in rows), default=0)
        for name, value in rows:
            self.line(f"  {click.style(name.ljust(width), dim=True)}  {value}")

    def table(self, columns: Sequence[str], rows: Sequence[Sequence[str]], align: str = "") -> None:
        """A table; ``align`` has ``l`` or ``r`` for each column, by default the first is left and the others right."""
        if self.quiet:
            return
        align = align or "l".ljust(len(columns), "r")
        widths = [max(map(len, column)) for column in zip(columns, *rows, strict=True)]
        # A terminal wraps what is too wide for it; rich would cut numbers short.
        if self._rich is not None and sum(widths) + 3 * len(widths) <= self._rich.width:
            self._rich_table(columns, rows, align)
            return

        def aligned(row: Sequence[str]) -> str:
            cells = [
                cell.ljust(width) if side == "l" else cell.rjust(width)
                for cell, width, side in zip(row, widths, align, strict=True)
            ]
            return "  " + "  ".join(cells).rstrip()

        self.line(aligned(columns), dim=True)
        for row in rows:
            self.line(aligned(row))

    def _rich_table(self, columns: Sequence[str], rows: Sequence[Sequence[str]], align: str) -> None:
        from rich.box import SIMPLE_HEAD
        from rich.padding import Padding
        from rich.table import Table
        from rich.text import Text

        table = Table(box=SIMPLE_HEAD, show_edge=False, pad_edge=False, header_style="dim")
        for column, side in zip(columns, align, strict=True):
            table.add_column(column, justify="left" if side == "l" else "right", no_wrap=True)
        for row in rows:
            table.add_row(*map(Text, row))
        self._rich.print(Padding(table, (0, 0, 0, 2)))

    # -- questions and progress --------------------------------------------------------------------

    def require_consent(self, yes: bool, refusal: dict[str, Any]) -> None:
        """Return when what was shown may be done: with ``--yes``, or when somebody at a terminal says so.

        Else say that nothing was changed, with ``refusal`` as JSON where that was asked for, and end the command with
        ``EXIT_PROBLEMS``.
        """
        if yes or (not self.as_json and not self.quiet and confirm("Go ahead?")):
            return
        if self.as_json:
            self.object(refusal)
        click.echo("fastlog: nothing was changed; add --yes to go ahead", err=True)
        click.get_current_context().exit(EXIT_PROBLEMS)

    @contextmanager
    def progress(self, label: str, total: int) -> Iterator[Callable[[int], None]]:
        """A bar on stderr while it is a terminal, else nothing. Yields a function that takes what is done so far."""
        if self.quiet or total <= 0 or not sys.stderr.isatty():
            yield lambda done: None
            return
        console = _rich_console(stderr=True)
        if console is not None:
            from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn

            columns = (TextColumn("{task.description}"), BarColumn(), TaskProgressColumn())
            with Progress(*columns, console=console, transient=True) as bar:
                task = bar.add_task(label, total=total)
                yield lambda done: bar.update(task, completed=done)
            return
        with click.progressbar(length=total, label=label, file=sys.stderr, color=self.color) as plain:
            yield lambda done: plain.update(done - plain.pos)


def confirm(question: str) -> bool:
    """Ask on a terminal; without one the answer is no."""
    if not (sys.stdin.isatty() and sys.stderr.isatty()):
        return False
    return click.confirm(question, default=False, err=True)


def _rich_console(stderr: bool = False) -> Any:
    """A rich console (it honours NO_COLOR itself), or None when rich is not installed."""
    try:
        from rich.console import Console
    except ImportError:
        return None
    return Console(stderr=stderr, highlight=False, soft_wrap=not stderr)


@contextmanager
def live_table(stream: TextIO) -> Iterator[Callable[[str, Sequence[str], Sequence[Sequence[str]]], None] | None]:
    """A function (title, columns, rows) that redraws a table in place; None where that cannot be."""
    console = _rich_console() if stream.isatty() else None
    if console is None:
        yield None
        return
    from rich.box import SIMPLE_HEAD
    from rich.live import Live
    from rich.table import Table

    with Live(console=console, transient=True, refresh_per_second=4) as live:

        def show(title: str, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
            table = Table(title=title, title_justify="left", box=SIMPLE_HEAD, header_style="dim")
            for number, column in enumerate(columns):
                table.add_column(column, justify="right" if number else "left", no_wrap=True)
            for row in rows:
                table.add_row(*row)
            live.update(table)

        yield show


def encode_json(value: Any, indent: int | None = None) -> str:
    """JSON text; times as ISO 8601. NaN and infinities are refused, because JSON has none."""
    return json.dumps(value, indent=indent, ensure_ascii=False, allow_nan=False, default=_json_default)


def _json_default(value: Any) -> Any:
    if isinstance(value, datetime):
        return value.isoformat()
    raise TypeError(f"no JSON form for {type(value).__name__}")


def bytes_as_text(content: bytes | None) -> str:
    """Bytes for a line of text: ``<null>`` for none, and what cannot be printed is escaped."""
    if content is None:
        return "<null>"
    decoded = content.decode("utf-8", "backslashreplace")
    if decoded.isprintable():
        return decoded
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in decoded)


def bytes_as_json(content: bytes | None) -> str | dict[str, str] | None:
    """Bytes for JSON: null stays null, and what is no UTF-8 becomes ``{"base64": ...}``."""
    if content is None:
        return None
    try:
        return content.decode("utf-8")
    except UnicodeDecodeError:
        return {"base64": base64.b64encode(content).decode("ascii")}


def count(number: int) -> str:
    """1234567 -> 1,234,567"""
    return f"{number:,}"


def plural(number: int, noun: str) -> str:
    """1 -> 1 record, 2 -> 2 records, 2 batch -> 2 batches"""
    if number != 1:
        noun = f"{noun}es" if noun.endswith(("ch", "x", "s")) else f"{noun}s"
    return f"{number:,} {noun}"


def size(number: float) -> str:
    """Bytes for people: 1536 -> 1.5 KiB"""
    if abs(number) < 1024:
        return f"{number:.0f} B"
    for unit in ("KiB", "MiB", "GiB", "TiB"):
        number /= 1024
        if abs(number) < 1024 or unit == "TiB":
            break
    return f"{number:.1f} {unit}"


def rate(per_second: float, unit: str) -> str:
    """Things per second for people: 8123456 -> 8.1 M records/s"""
    if per_second >= 1e6:
        return f"{per_second / 1e6:.1f} M {unit}/s"
    if per_second >= 1e4:
        return f"{per_second / 1e3:.0f} k {unit}/s"
    return f"{per_second:,.0f} {unit}/s"


def speed(bytes_per_second: float) -> str:
    """Bytes per second for people, in powers of ten as rates are: 812345678 -> 812 MB/s"""
    if bytes_per_second >= 1e9:
        return f"{bytes_per_second / 1e9:.2f} GB/s"
    return f"{bytes_per_second / 1e6:,.0f} MB/s"


def duration(seconds: float) -> str:
    """A time span for people: 0.0123 -> 12 ms, 0.0000123 -> 12.3 µs"""
    if seconds < 0.0009995:
        return f"{seconds * 1e6:.1f} µs" if seconds < 0.00009995 else f"{seconds * 1e6:.0f} µs"
    if seconds < 0.0995:
        return f"{seconds * 1e3:.1f} ms" if seconds < 0.00995 else f"{seconds * 1e3:.0f} ms"
    if seconds < 100:
        return f"{seconds:.2f} s"
    return f"{seconds / 60:.1f} min"


def instant(milliseconds: int) -> str:
    """A timestamp as ISO 8601 in UTC; ``-`` where there is none, the number where no calendar has it."""
    if milliseconds < 0:
        return "-"
    try:
        moment = datetime.fromtimestamp(milliseconds / 1000, UTC)
    except (ValueError, OverflowError, OSError):
        return str(milliseconds)
    return moment.isoformat(timespec="milliseconds").replace("+00:00", "Z")
