"""``fastlog dlq list | show | redrive | discard``."""

from __future__ import annotations

import functools
import getpass
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import click

import fastlog
from fastlog.cli import output as text
from fastlog.cli.output import EXIT_PROBLEMS, Output, output_options
from fastlog.cli.store import Moment, MomentType, open_store, store_option
from fastlog.delivery.audits import Audit

__all__ = ["dlq"]

MOST_ROWS = 50
MOST_OFFSETS = 1_000_000
MESSAGE_WIDTH = 60


@click.group(short_help="Dead letters: look at them, redrive, discard.")
def dlq() -> None:
    """The dead letters of a store: records that a group could not handle.

    TOPIC is a dead-letter topic; or, with --group, the topic whose records the group handles.
    """


# --- which letters ------------------------------------------------------------------------------------


class OffsetsType(click.ParamType):  # type: ignore[type-arg]  # generic only in newer versions of click
    """``17``, ``3,7`` or ``100-199``: both ends belong to it."""

    name = "offsets"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        if not isinstance(value, str):
            return value
        spans = []
        for part in value.split(","):
            first, dash, last = part.strip().partition("-")
            if not first.isdecimal() or (dash and not last.isdecimal()):
                self.fail(f"{value!r}: expected offsets such as 17, or 3,7, or 100-199", param, ctx)
            spans.append(range(int(first), int(last if dash else first) + 1))
        if len(spans) == 1:
            return spans[0]
        if sum(map(len, spans)) > MOST_OFFSETS:
            self.fail(f"{value!r}: more than {MOST_OFFSETS:,} offsets in several parts; give one span", param, ctx)
        return [offset for span in spans for offset in span]


class TimeType(MomentType):
    """A time or an age."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Moment:
        moment = super().convert(value, param, ctx)
        if moment.time is None:
            self.fail(f"{value!r}: expected an age such as -10m, or a time such as 2026-01-31T12:00:00Z", param, ctx)
        return moment


def letters_options(function: Callable[..., None]) -> Callable[..., None]:
    """``TOPIC``, ``--group`` and the filters, which are handed to the command as ``filters``."""

    @click.option("--group", "-g", metavar="NAME", help="The group whose dead letters of TOPIC are meant.")
    @click.option("--partition", "-p", "partition", type=click.IntRange(min=0), multiple=True,
                  help="Only this partition; may be repeated.")  # fmt: skip
    @click.option("--offsets", type=OffsetsType(), metavar="OFFSETS",
                  help="Only these offsets of the dead-letter topic: 17, or 3,7, or 100-199.")  # fmt: skip
    @click.option("--id", "ids", multiple=True, metavar="ID",
                  help="Only this id: the origin's topic-partition-offset; may be repeated.")  # fmt: skip
    @click.option("--key", metavar="TEXT", help="Only records with this key.")
    @click.option("--exception", metavar="CLASS", help="Only this class of exception, with its module or without.")
    @click.option("--message", metavar="TEXT", help="Only if the message of the exception contains this.")
    @click.option("--since", type=TimeType(), metavar="TIME", help="Only if put there since: -10m, or an ISO time.")
    @click.option("--until", type=TimeType(), metavar="TIME", help="Only if put there before: -10m, or an ISO time.")
    @functools.wraps(function)
    def command(
        *args: Any, partition: tuple[int, ...], offsets: Any, ids: tuple[str, ...], key: str | None,
        exception: str | None, message: str | None, since: Moment | None, until: Moment | None, **kwargs: Any,
    ) -> None:  # fmt: skip
        filters = {
            "partition": partition or None,
            "offsets": offsets,
            "ids": ids or None,
            "key": None if key is None else key.encode(),
            "exception": exception,
            "message": message,
            "since": since and since.time,
            "until": until and until.time,
        }
        given = {name: value for name, value in filters.items() if value is not None}
        function(*args, filters=given, **kwargs)

    return command


# --- list ---------------------------------------------------------------------------------------------


@dlq.command("list", short_help="List dead letters, or the topics that have some.")
@click.argument("topic", required=False)
@letters_options
@click.option("--state", type=click.Choice(["open", "handled", "all"]), default="open", show_default=True,
              help="Whether letters that were redriven or discarded are listed.")  # fmt: skip
@click.option("--max", "-n", "rows", type=click.IntRange(min=1), metavar="N",
              help=f"List so many at most. Default: {MOST_ROWS}; with --json all.")  # fmt: skip
@click.option("--most", type=click.IntRange(min=0), metavar="N",
              help="Exit with 1 when there are more than N: for monitoring.")  # fmt: skip
@store_option
@output_options
def list_letters(
    output: Output, store: Path, topic: str | None, group: str | None, filters: dict[str, Any], state: str,
    rows: int | None, most: int | None,
) -> None:  # fmt: skip
    """List the dead letters of TOPIC; without it, the dead-letter topics of the store and how many are open in each.

    With --json each letter is a line of its own.
    """
    with open_store(store, read_only=True) as opened:
        if topic is None:
            if filters or group is not None or state != "open":
                raise click.UsageError("name the TOPIC whose dead letters are meant")
            total = list_topics(output, opened, store)
        else:
            letters = fastlog.DeadLetters.open(opened, topic, group)
            found = letters.list(state=state, **filters)  # type: ignore[arg-type]
            if output.as_json:
                total = print_json(output, found, rows)
            else:
                total = print_table(output, letters, found, rows, state)
    if most is not None and total > most:
        click.get_current_context().exit(EXIT_PROBLEMS)


def list_topics(output: Output, store: fastlog.Store, path: Path) -> int:
    """Every dead-letter topic; how many open letters there are in all."""
    found: list[dict[str, Any]] = [
        {"topic": name, "source": source, "group": group, "open": fastlog.DeadLetters.open(store, name).count()}
        for name, (source, group) in fastlog.DeadLetters.topics(store).items()
    ]
    if output.as_json:
        output.object({"store": str(path), "topics": found})
    elif not found:
        output.line(f"no dead-letter topics in {path}: a group's handlers make them")
    else:
        output.table(
            ("dead letters", "topic", "group", "open"),
            [(row["topic"], row["source"], row["group"], text.count(row["open"])) for row in found],
            "lllr",
        )
    return sum(int(row["open"]) for row in found)


def print_json(output: Output, found: Iterator[fastlog.DeadLetter], rows: int | None) -> int:
    """Each letter on a line of its own; how many there are."""
    total = 0
    for letter in found:
        total += 1
        if rows is None or total <= rows:
            output.json_line(letter_fields(letter))
    return total


def print_table(
    output: Output, letters: fastlog.DeadLetters, found: Iterator[fastlog.DeadLetter], rows: int | None, state: str
) -> int:
    """The first letters in a table, and how many there are of each kind."""
    kinds: Counter[str] = Counter()
    shown: list[fastlog.DeadLetter] = []
    for letter in found:
        kinds[letter.exception] += 1
        if len(shown) < (rows or MOST_ROWS):
            shown.append(letter)
    total = kinds.total()
    word = {"open": "open dead letter", "handled": "handled dead letter", "all": "dead letter"}[state]
    output.line(f"{letters.topic}: {text.plural(total, word)}", bold=True)
    if not total:
        return 0
    columns = ("partition", "offset", "id", "key", "attempts", "last failure", "exception", "message")
    table = [row_of(letter) for letter in shown]
    if state == "open":
        output.table(columns, table, "rrllrlll")
    else:
        output.table(
            (*columns, "state"), [(*row, one.state) for row, one in zip(table, shown, strict=True)], "rrllrllll"
        )
    if total > len(shown):
        output.line(f"  … and {text.count(total - len(shown))} more: --max N shows them, filters choose")
    if len(kinds) > 1:
        print_kinds(output, kinds)
    return total


def row_of(letter: fastlog.DeadLetter) -> tuple[str, ...]:
    message = plain(letter.message)
    return (
        str(letter.partition),
        str(letter.offset),
        letter.id,
        shortened(text.bytes_as_text(letter.key), 20),
        str(letter.attempts),
        text.instant(-1 if letter.last_failure is None else letter.last_failure),
        shortened(plain(letter.exception) or "-", 40),
        shortened(message, MESSAGE_WIDTH),
    )


def print_kinds(output: Output, kinds: Mapping[str, int]) -> None:
    output.line()
    output.table(
        ("exception", "letters"),
        [
            (shortened(plain(name) or "-", 60), text.count(number))
            for name, number in sorted(kinds.items(), key=lambda kind: -kind[1])
        ],
    )


def plain(content: str) -> str:
    """Text of others, on one line, without anything that a terminal would obey."""
    return text.bytes_as_text(content.encode("utf-8", "backslashreplace"))


def shortened(content: str, most: int) -> str:
    return content if len(content) <= most else content[: most - 1] + "…"


def letter_fields(letter: fastlog.DeadLetter) -> dict[str, Any]:
    """A letter as JSON has it."""
    return {
        "id": letter.id,
        "state": letter.state,
        "topic": letter.topic,
        "partition": letter.partition,
        "offset": letter.offset,
        "timestamp": letter.timestamp,
        "origin": {
            "topic": letter.origin_topic,
            "partition": letter.origin_partition,
            "offset": letter.origin_offset,
            "timestamp": letter.origin_timestamp,
            "timestamp_type": letter.timestamp_type,
        },
        "group": letter.group,
        "attempts": letter.attempts,
        "first_failure": letter.first_failure,
        "last_failure": letter.last_failure,
        "exception": letter.exception,
        "message": letter.message,
        "traceback": letter.traceback,
        "key": text.bytes_as_json(letter.key),
        "value": text.bytes_as_json(letter.value),
        "headers": [[name, text.bytes_as_json(content)] for name, content in letter.headers],
    }


# --- show ---------------------------------------------------------------------------------------------


@dlq.command(short_help="Show one dead letter: why it is there, and all that is in it.")
@click.argument("topic")
@click.argument("id")
@click.option("--group", "-g", metavar="NAME", help="The group whose dead letters of TOPIC are meant.")
@store_option
@output_options
def show(output: Output, store: Path, topic: str, id: str, group: str | None) -> None:
    """Show one dead letter of TOPIC: where it came from, why it is there, and all that is in it.

    ID is the origin's topic-partition-offset, as ``dlq list`` shows it.
    """
    with open_store(store, read_only=True) as opened:
        letters = fastlog.DeadLetters.open(opened, topic, group)
        letter = letters.show(id)
        audits = [audit for audit in letters.audits() if audit.partition == letter.partition and holds(audit, letter)]
    if output.as_json:
        told = [{"action": one.action, "to": one.target, "at": one.at, "by": one.by} for one in audits]
        output.object({**letter_fields(letter), "audits": told})
        return
    output.line(letter.id, bold=True)
    output.fields(
        [
            ("state", state_of(letter, audits)),
            ("lies in", f"{letter.topic}-{letter.partition}, offset {letter.offset}"),
            ("since", text.instant(-1 if letter.timestamp is None else letter.timestamp)),
            ("sent", text.instant(-1 if letter.origin_timestamp is None else letter.origin_timestamp)),
            ("group", letter.group),
            ("attempts", str(letter.attempts)),
            ("first failure", text.instant(-1 if letter.first_failure is None else letter.first_failure)),
            ("last failure", text.instant(-1 if letter.last_failure is None else letter.last_failure)),
            ("exception", plain(letter.exception) or "-"),
            ("message", plain(letter.message) or "-"),
            ("key", text.bytes_as_text(letter.key)),
            ("value", text.bytes_as_text(letter.value)),
            *((f"header {plain(name)}", text.bytes_as_text(content)) for name, content in letter.headers),
        ]
    )
    if letter.traceback:
        output.heading("traceback")
        for line in letter.traceback.splitlines():
            output.line(f"  {plain(line)}")


def holds(audit: Audit, letter: fastlog.DeadLetter) -> bool:
    return any(first <= letter.offset < first + length for first, length in audit.offsets)


def state_of(letter: fastlog.DeadLetter, audits: Sequence[Audit]) -> str:
    if not audits:
        return letter.state
    last = audits[-1]
    where = f" to {last.target}" if last.target else ""
    return f"{last.action}{where} at {text.instant(last.at)} by {plain(last.by)}"


# --- redrive and discard ------------------------------------------------------------------------------


def acting_options(function: Callable[..., None]) -> Callable[..., None]:
    """What both have that change something."""
    for option in (
        click.option("--yes", is_flag=True, help="Do it, without asking."),
        click.option("--limit", "-n", type=click.IntRange(min=1), metavar="N", help="So many at most."),
        click.option("--by", metavar="NAME", help="Who does it, for the audit. Default: the name of the user."),
    ):
        function = option(function)
    return function


@dlq.command(short_help="Let dead letters be handled again, each once.")
@click.argument("topic")
@letters_options
@click.option("--to", type=click.Choice(["retry", "source"]), default="retry", show_default=True,
              help="To the group's retry topic, where only this group sees them again; or to the topic where they came "
              "from, where every group does.")  # fmt: skip
@click.option("--rate", type=click.FloatRange(min=0, min_open=True), metavar="N", help="So many a second at most.")
@acting_options
@store_option
@output_options
def redrive(
    output: Output, store: Path, topic: str, group: str | None, filters: dict[str, Any], to: str, rate: float | None,
    limit: int | None, yes: bool, by: str | None,
) -> None:  # fmt: skip
    """Let dead letters of TOPIC be handled again, with all their attempts.

    Each goes back once, however often this is called or interrupted; what was done stays in the audit. Shows what would
    go and asks first; without a terminal it wants --yes and else changes nothing (exit code 1).
    """
    with open_store(store) as opened:
        letters = fastlog.DeadLetters.open(opened, topic, group, by=by or user())
        target = letters.source if to == "source" else f"the retry topic of group {letters.group}"
        act: Callable[..., Any] = functools.partial(letters.redrive, to=to, rate=rate)  # type: ignore[arg-type]
        carry_out(output, letters, filters, limit, yes, act, ("redrive", "redriven"), f" to {target}")


@dlq.command(short_help="Give dead letters up.")
@click.argument("topic")
@letters_options
@acting_options
@store_option
@output_options
def discard(
    output: Output, store: Path, topic: str, group: str | None, filters: dict[str, Any], limit: int | None, yes: bool,
    by: str | None,
) -> None:  # fmt: skip
    """Give dead letters of TOPIC up: they are not open any more, and are never redriven.

    Their records stay in the dead-letter topic until its retention takes them. Shows what would go and asks first;
    without a terminal it wants --yes and else changes nothing (exit code 1).
    """
    with open_store(store) as opened:
        letters = fastlog.DeadLetters.open(opened, topic, group, by=by or user())
        carry_out(output, letters, filters, limit, yes, letters.discard, ("discard", "discarded"), "")


def user() -> str | None:
    """Who sits here, if that can be told."""
    try:
        return getpass.getuser()
    except (OSError, KeyError, ImportError):
        return None


def carry_out(
    output: Output, letters: fastlog.DeadLetters, filters: dict[str, Any], limit: int | None, yes: bool,
    act: Callable[..., fastlog.DeadLetterReport], words: tuple[str, str], where: str,
) -> None:  # fmt: skip
    """Show the plan, ask, do it, and say what was done. Letters that come meanwhile are left alone."""
    verb, past = words
    survey = letters.survey(**filters)
    total = survey.letters if limit is None else min(limit, survey.letters)
    plan = {"topic": letters.topic, "letters": total, "exceptions": survey.exceptions}
    if not total:
        if output.as_json:
            output.object({**plan, "action": verb, "done": 0})
        else:
            output.line(f"{letters.topic}: no open dead letters {'match' if filters else 'are there'}")
        return
    if not output.as_json:
        of = "" if total == survey.letters else f" of {text.count(survey.letters)}"
        output.line(f"To {verb} from {letters.topic}{where}: {text.count(total)}{of} dead letters", bold=True)
        print_kinds(output, survey.exceptions)
        output.line()
    output.require_consent(yes, {**plan, "action": verb, "done": 0})
    done = 0
    with output.progress(past, total) as show_progress:

        def follow(number: int) -> None:
            nonlocal done
            done = number
            show_progress(number)

        try:
            report = act(limit=limit, before=survey.ends, progress=follow, **filters)
        except (fastlog.Error, KeyboardInterrupt):
            click.echo(
                f"fastlog: {text.plural(done, 'dead letter')} {past} before it ended; call again to go on", err=True
            )
            raise
    if output.as_json:
        output.object({**plan, "action": verb, "to": report.target, "done": report.letters})
    else:
        to = f" to {report.target}" if report.target else ""
        output.verdict(True, f"{text.plural(report.letters, 'dead letter')} {past}{to}")
