"""``fastlog consume TOPIC...``: records of topics on standard output."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import click

import fastlog
from fastlog.cli import output as text
from fastlog.cli.output import Output, output_options
from fastlog.cli.store import Moment, MomentType, open_store, store_option

__all__ = ["consume"]

FIELDS: dict[str, Callable[[fastlog.Record], str]] = {
    "topic": lambda record: record.topic,
    "partition": lambda record: str(record.partition),
    "offset": lambda record: str(record.offset),
    "timestamp": lambda record: text.instant(-1 if record.timestamp is None else record.timestamp),
    "key": lambda record: text.bytes_as_text(record.key),
    "value": lambda record: text.bytes_as_text(record.value),
    "headers": lambda record: " ".join(f"{name}={text.bytes_as_text(content)}" for name, content in record.headers),
}


def parse_fields(context: click.Context, parameter: click.Parameter, value: str) -> list[str]:
    names = [name.strip() for name in value.split(",")]
    if unknown := [name for name in names if name not in FIELDS]:
        raise click.BadParameter(f"{', '.join(unknown)}: expected some of {', '.join(FIELDS)}")
    return names


@click.command(short_help="Print the records of topics.")
@click.argument("topics", nargs=-1, required=True, metavar="TOPIC...")
@click.option("--from", "start", type=MomentType(), metavar="PLACE",
              help="Where to begin: earliest, latest, -10m, @OFFSET or an ISO time. Default: earliest; with --follow "
              "latest; with --group where the group is.")  # fmt: skip
@click.option("--follow", "-f", is_flag=True, help="Wait for more; end with Ctrl-C.")
@click.option("--group", metavar="NAME", help="Read as a member of this group, and commit what was printed.")
@click.option("--partition", "-p", "partitions", type=click.IntRange(min=0), multiple=True,
              help="Only this partition; may be repeated.")  # fmt: skip
@click.option("--max", "-n", "most", type=click.IntRange(min=1), metavar="N", help="End after N records.")
@click.option("--show", callback=parse_fields, default="value", show_default=True, metavar="FIELDS",
              help=f"What to print of a record, tabs in between: some of {', '.join(FIELDS)}.")  # fmt: skip
@click.option("--isolation", type=click.Choice(["read_committed", "read_uncommitted"]), default="read_committed",
              show_default=True, help="Whether records of open and aborted transactions are left out.")  # fmt: skip
@store_option
@output_options
def consume(
    output: Output, store: Path, topics: tuple[str, ...], start: Moment | None, follow: bool, group: str | None,
    partitions: tuple[int, ...], most: int | None, show: list[str], isolation: str,
) -> None:  # fmt: skip
    """Print the records of TOPICs up to their end, one line each.

    With --json each line is an object; bytes that are no text become {"base64": ...}. With --group what was printed is
    committed when the command ends, so that the next one goes on there.
    """
    if group is not None and partitions:
        raise click.UsageError("--partition: a group shares out the partitions itself; leave out one of the two")
    with (
        open_store(store, read_only=group is None) as opened,
        open_consumer(opened, topics, start, follow, group, partitions, isolation) as consumer,
    ):
        for number, record in enumerate(records(consumer, follow), 1):
            if output.as_json:
                output.json_line(as_fields(record))
            else:
                output.line("\t".join(FIELDS[name](record) for name in show))
            if number == most:
                break


def open_consumer(
    store: fastlog.Store, topics: tuple[str, ...], start: Moment | None, follow: bool, group: str | None,
    partitions: tuple[int, ...], isolation: str,
) -> fastlog.Consumer:  # fmt: skip
    chosen = [fastlog.TopicPartition(topic, number) for topic in topics for number in partitions] or None
    begin: Any = "latest" if follow and group is None else "earliest"
    if start is not None:
        begin = start.name or start.time or begin
    consumer = store.consumer(list(topics), group=group, start=begin, partitions=chosen, isolation=isolation)
    if start is not None and (group is not None or start.offset is not None):
        try:
            seek(consumer, start)
        except BaseException:
            consumer.close()
            raise
    return consumer


def seek(consumer: fastlog.Consumer, start: Moment) -> None:
    """A member of a group begins where the group is, unless it is told otherwise."""
    consumer.poll(max_records=1, timeout=0)
    if start.offset is not None:
        for topic, partition in consumer.assignment():
            consumer.seek(topic, partition, offset=start.offset)
    elif start.time is not None:
        consumer.seek(timestamp=start.time)
    elif start.name == "earliest":
        consumer.seek_to_beginning()
    else:
        consumer.seek_to_end()


def records(consumer: fastlog.Consumer, follow: bool) -> Iterator[fastlog.Record]:
    yield from consumer if follow else consumer.records(until="end")


def as_fields(record: fastlog.Record) -> dict[str, Any]:
    return {
        "topic": record.topic,
        "partition": record.partition,
        "offset": record.offset,
        "timestamp": record.timestamp,
        "timestamp_type": record.timestamp_type,
        "key": text.bytes_as_json(record.key),
        "value": text.bytes_as_json(record.value),
        "headers": [[name, text.bytes_as_json(content)] for name, content in record.headers],
    }
