"""``fastlog produce TOPIC [FILE]``: lines, JSONL or CSV into a topic."""

from __future__ import annotations

import csv
import json
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from time import perf_counter
from typing import Any, BinaryIO

import click

import fastlog
from fastlog.cli import output as text
from fastlog.cli.output import Output, output_options
from fastlog.cli.store import open_store, store_option

__all__ = ["produce"]

FORMATS = {".jsonl": "jsonl", ".ndjson": "jsonl", ".csv": "csv"}
CODECS = ("gzip", "snappy", "lz4", "zstd")
RECORDS_PER_ADVANCE = 1000

Entry = tuple[bytes | None, bytes | None]
"""Key and value of a record."""


@click.command(short_help="Write lines, JSONL or CSV to a topic.")
@click.argument("topic")
@click.argument("file", required=False, type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option("--format", "form", type=click.Choice(["lines", "jsonl", "csv"]),
              help="What the input is. Default: by the ending of FILE, else lines.")  # fmt: skip
@click.option("--key", "key_field", metavar="FIELD", help="JSONL, CSV: the field that is the record's key.")
@click.option("--value", "value_field", metavar="FIELD",
              help="JSONL, CSV: the field that is the value. Default: the whole line, a CSV row as JSON.")  # fmt: skip
@click.option("--key-separator", metavar="TEXT", help="Lines: what stands between key and value, for example a colon.")
@click.option("--partition", type=click.IntRange(min=0), help="Write to this partition. Default: by the key.")
@click.option("--compression", type=click.Choice(CODECS), help="Compress batches.")
@click.option("--durability", type=click.Choice(["group", "batch", "interval", "os"]), default="group",
              show_default=True, help="When a record counts as written.")  # fmt: skip
@store_option
@output_options
def produce(
    output: Output, store: Path, topic: str, file: Path | None, form: str | None, key_field: str | None,
    value_field: str | None, key_separator: str | None, partition: int | None, compression: str | None,
    durability: str,
) -> None:  # fmt: skip
    """Write one record per line of FILE (or of standard input) to TOPIC.

    A line is a value; JSONL and CSV have fields, of which one can be the key. Records with one key stay in order. The
    topic must exist. When the command ends with 0, every record is written as --durability says.
    """
    form = form or FORMATS.get(file.suffix.lower() if file else "", "lines")
    if form == "lines" and (key_field or value_field):
        raise click.UsageError("--key and --value name fields, which lines do not have: add --format jsonl or csv")
    if form != "lines" and key_separator is not None:
        raise click.UsageError(f"--key-separator is for lines; name the key of {form} with --key FIELD")
    started = perf_counter()
    with open_store(store, durability=durability) as opened:
        opened.topic(topic)  # a missing one is said before anything is read
        with (
            opened.producer(compression=compression, linger="5ms") as producer,
            source(output, file) as (stream, advance),
        ):
            entries = read_entries(stream, form, key_field, value_field, key_separator)
            number = 0
            for number, (key, value) in enumerate(entries, 1):
                producer.send(topic, value, key=key, partition=partition)
                if number % RECORDS_PER_ADVANCE == 0:
                    advance()
            producer.flush()
    seconds = perf_counter() - started
    if output.as_json:
        output.object({"topic": topic, "records": number, "durability": durability, "seconds": seconds})
    else:
        output.line(f"{text.plural(number, 'record')} written to {topic} in {text.duration(seconds)}")


@contextmanager
def source(output: Output, file: Path | None) -> Iterator[tuple[BinaryIO, Any]]:
    """The input, and a function that moves a progress bar to where it was read to; a pipe has no bar."""
    if file is None:
        yield sys.stdin.buffer, lambda: None
        return
    with file.open("rb") as stream, output.progress(f"reading {file.name}", file.stat().st_size) as advance:
        yield stream, lambda: advance(stream.tell())


def read_entries(
    stream: BinaryIO, form: str, key_field: str | None, value_field: str | None, key_separator: str | None
) -> Iterator[Entry]:
    if form == "lines":
        return read_lines(stream, key_separator)
    if form == "jsonl":
        return read_jsonl(stream, key_field, value_field)
    return read_csv(stream, key_field, value_field)


def read_lines(stream: Iterable[bytes], key_separator: str | None) -> Iterator[Entry]:
    separator = None if key_separator is None else key_separator.encode()
    for number, line in enumerate(stream, 1):
        line = line.removesuffix(b"\n").removesuffix(b"\r")
        if separator is None:
            yield None, line
            continue
        key, found, value = line.partition(separator)
        if not found:
            raise fastlog.InvalidRecordError(
                f"line {number} has no {key_separator!r} between key and value; the lines before it were written"
            )
        yield key, value


def read_jsonl(stream: Iterable[bytes], key_field: str | None, value_field: str | None) -> Iterator[Entry]:
    for number, line in enumerate(stream, 1):
        line = line.strip()
        if not line:
            continue
        if key_field is None and value_field is None:
            check_json(line, number)
            yield None, line
            continue
        fields = check_json(line, number)
        if not isinstance(fields, dict):
            raise fastlog.InvalidRecordError(
                f"line {number} is no JSON object, so it has no fields; the lines before it were written"
            )
        value = line if value_field is None else as_bytes(named(fields, value_field, number))
        yield (None if key_field is None else as_bytes(named(fields, key_field, number))), value


def check_json(line: bytes, number: int) -> Any:
    try:
        return json.loads(line)
    except ValueError as error:
        raise fastlog.InvalidRecordError(
            f"line {number} is no JSON ({error}); the lines before it were written"
        ) from None


def read_csv(stream: BinaryIO, key_field: str | None, value_field: str | None) -> Iterator[Entry]:
    rows = csv.DictReader(text_lines(stream), restkey="")
    if not rows.fieldnames:
        return
    for number, row in enumerate(rows, 2):
        if None in row.values() or "" in row:
            raise fastlog.InvalidRecordError(
                f"row {number} has not {len(rows.fieldnames)} fields as the first row; the rows before it were written"
            )
        value = (
            json.dumps(row, ensure_ascii=False).encode()
            if value_field is None
            else as_bytes(named(row, value_field, number))
        )
        yield (None if key_field is None else as_bytes(named(row, key_field, number))), value


def text_lines(stream: BinaryIO) -> Iterator[str]:
    """Decoded line by line, so that the position of the stream stays known."""
    for line in stream:
        yield line.decode("utf-8-sig" if line.startswith(b"\xef\xbb\xbf") else "utf-8")


def named(fields: dict[str, Any], name: str, number: int) -> Any:
    if name not in fields:
        raise fastlog.InvalidRecordError(
            f"line {number} has no field {name!r}, only {', '.join(map(str, fields))}; the lines before it were written"
        )
    return fields[name]


def as_bytes(content: Any) -> bytes | None:
    """Text as it is, null as null, anything else as JSON."""
    if content is None:
        return None
    return content.encode() if isinstance(content, str) else json.dumps(content, ensure_ascii=False).encode()
