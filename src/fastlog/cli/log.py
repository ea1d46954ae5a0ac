"""``fastlog log dump | verify | repair | stats``: look into one partition's files, prove them, mend them.

``dump`` and ``stats`` read the files as they are, without opening the partition, so that they also work on a log that
is in use, damaged or copied from somewhere. ``verify`` opens it for reading; only ``repair`` changes anything.
"""

from __future__ import annotations

import base64
import re
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from time import perf_counter
from typing import Any

import click

import fastlog
from fastlog.cli import output as text
from fastlog.cli.output import EXIT_PROBLEMS, Output, output_options

__all__ = ["log"]

SEGMENT_NAME = re.compile(r"\d{20}\.log")
META_NAME = ".fastlog-meta"
GAPS_SHOWN = 5
BYTES_WORTH_A_BAR = 1 << 28
BATCHES_PER_ADVANCE = 1000
BATCH_LINE = "{:>12}  {:>10}  {:<25}  {:>7}  {:<24}  {:<6}  {}"

partition_argument = click.argument("path", type=click.Path(exists=True, file_okay=False, path_type=Path))


@click.group(short_help="Look into one partition's files, verify and repair them.")
def log() -> None:
    """Look into one partition: a folder of .log, .index and .timeindex files."""


# --- dump -----------------------------------------------------------------------------------------


@log.command()
@click.argument("path", type=click.Path(exists=True, path_type=Path))
@click.option("--records", is_flag=True, help="Print the records of each batch too.")
@click.option("--format", "form", type=click.Choice(["text", "hex", "base64"]), default="text", show_default=True,
              help="How keys, values and header values are printed.")  # fmt: skip
@click.option("--start", type=click.IntRange(min=0), metavar="OFFSET", help="First offset to print.")
@click.option("--stop", type=click.IntRange(min=0), metavar="OFFSET", help="First offset not to print.")
@output_options
def dump(output: Output, path: Path, records: bool, form: str, start: int | None, stop: int | None) -> None:
    """Print the batches of a partition or of one of its files.

    PATH is a partition's folder, or a single .log, .index or .timeindex file. With --json each line is an object
    whose "kind" is batch, record, index_entry or time_index_entry. Damaged stretches are shown where they are; the
    exit code is then 1.
    """
    if start is not None and stop is not None and stop < start:
        raise click.UsageError(f"--stop {stop} lies before --start {start}")
    chosen = range(start or 0, stop if stop is not None else 1 << 63)
    if path.suffix in (".index", ".timeindex") and path.is_file():
        if records:
            raise click.UsageError("--records: an index file holds no records; name the .log file beside it")
        _dump_index(output, path, chosen)
        return
    dumper = _Dumper(output, _encoder(form, output.as_json) if records else None, chosen)
    for segment, last in _segments_from(path, chosen):
        dumper.segment(segment, last)
    if dumper.problems:
        click.get_current_context().exit(EXIT_PROBLEMS)


class _Dumper:
    """Prints segment after segment and counts the damaged stretches on the way."""

    def __init__(self, output: Output, encode: Callable[[bytes | None], Any] | None, chosen: range) -> None:
        self.output = output
        self.encode = encode
        self.chosen = chosen
        self.problems = 0

    def segment(self, path: Path, is_last: bool) -> None:
        if not self.output.as_json:
            self.output.line(path.name, bold=True)
            self.output.line(
                BATCH_LINE.format("position", "size", "offsets", "records", "largest timestamp", "codec", "crc"),
                dim=True,
            )
        for batch in fastlog.scan_segment(path):
            if batch.is_valid and (batch.last_offset < self.chosen.start or batch.base_offset >= self.chosen.stop):
                if is_last and batch.base_offset >= self.chosen.stop:
                    return
                continue
            self.problems += not batch.is_valid
            self.batch(path, batch)
            if self.encode is not None and batch.is_valid:
                self.records(path, batch, self.encode)

    def batch(self, path: Path, batch: fastlog.BatchInfo) -> None:
        if self.output.as_json:
            fields = {"kind": "batch", "file": str(path), **asdict(batch), "codec": batch.codec,
                      "is_control": batch.is_control, "is_transactional": batch.is_transactional}  # fmt: skip
            self.output.json_line(fields)
            return
        if not batch.is_valid:
            self.output.line(f"{batch.position:>12}  {batch.size:>10}  damaged: {batch.problem}", fg="red")
            return
        offsets = f"{batch.base_offset}-{batch.last_offset}"
        largest = text.instant(batch.max_timestamp)
        line = BATCH_LINE.format(batch.position, batch.size, offsets, batch.record_count, largest, batch.codec, "ok")
        if batch.producer_id >= 0:
            line += f"  producer {batch.producer_id} epoch {batch.producer_epoch} sequence {batch.base_sequence}"
        if batch.is_transactional:
            line += "  transactional"
        if batch.is_control:
            line += "  control"
        self.output.line(line)

    def records(self, path: Path, batch: fastlog.BatchInfo, encode: Callable[[bytes | None], Any]) -> None:
        for record in fastlog.read_batch(path, batch.position):
            if record.offset not in self.chosen:
                continue
            key, value = encode(record.key), encode(record.value)
            headers = [(name, encode(content)) for name, content in record.headers]
            if self.output.as_json:
                self.output.json_line(
                    {"kind": "record", "offset": record.offset, "timestamp": record.timestamp,
                     "timestamp_type": record.timestamp_type, "key": key, "value": value, "headers": headers}
                )  # fmt: skip
                continue
            moment = text.instant(-1 if record.timestamp is None else record.timestamp)
            line = f"{'':12}  {record.offset:>10}  {moment:<24}  {key}  {value}"
            if headers:
                line += "  " + " ".join(f"{name}={content}" for name, content in headers)
            self.output.line(line)


def _encoder(form: str, as_json: bool) -> Callable[[bytes | None], Any]:
    """How bytes are printed. In JSON a null stays a null, and bytes that are no text become {"base64": ...}."""

    def encode(content: bytes | None) -> Any:
        if content is not None and form == "hex":
            return content.hex()
        if content is not None and form == "base64":
            return base64.b64encode(content).decode("ascii")
        if as_json:
            return text.bytes_as_json(content)
        return text.bytes_as_text(content) or "<empty>"

    return encode


def _dump_index(output: Output, path: Path, chosen: range) -> None:
    for entry in fastlog.scan_index(path):
        if entry.offset not in chosen:
            continue
        if output.as_json:
            kind = "index_entry" if isinstance(entry, fastlog.IndexEntry) else "time_index_entry"
            output.json_line({"kind": kind, **asdict(entry)})
        elif isinstance(entry, fastlog.IndexEntry):
            output.line(f"offset {entry.offset:>12}  position {entry.position:>12}")
        else:
            output.line(f"timestamp {text.instant(entry.timestamp)}  offset {entry.offset:>12}")


def _segment_files(folder: Path) -> list[Path]:
    files = sorted(path for path in folder.iterdir() if SEGMENT_NAME.fullmatch(path.name))
    if not files:
        raise fastlog.UnsupportedFormatError(
            f"{folder} holds no segment (a file like {0:020d}.log); name the folder of a partition"
        )
    return files


def _segments_from(path: Path, chosen: range) -> Iterator[tuple[Path, bool]]:
    """The segments that can hold chosen offsets, and whether no later one can."""
    if not path.is_dir():
        if path.suffix != ".log":
            raise click.UsageError(f"{path}: expected a partition's folder or a .log, .index or .timeindex file")
        yield path, True
        return
    files = _segment_files(path)
    bases = [int(file.stem) for file in files[1:]] + [1 << 63]
    for file, next_base in zip(files, bases, strict=True):
        if next_base > chosen.start and int(file.stem) < chosen.stop:
            yield file, next_base >= chosen.stop


# --- verify ---------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Findings:
    """What reading a partition without changing it showed; ``obstacle`` is why it could not even be opened."""

    report: fastlog.VerifyReport | None
    recovery: fastlog.RecoveryReport | None
    obstacle: str | None
    seconds: float

    @property
    def ok(self) -> bool:
        return self.report is not None and self.report.ok

    def as_fields(self, path: Path) -> dict[str, Any]:
        return {
            "path": str(path),
            **({} if self.report is None else asdict(self.report)),
            "ok": self.ok,
            "obstacle": self.obstacle,
            "recovery": None if self.recovery is None else asdict(self.recovery),
            "seconds": self.seconds,
        }

    def problems(self) -> Iterator[str]:
        """One sentence for each thing that does not check out, naming the file."""
        if self.obstacle is not None:
            yield self.obstacle
        if self.report is not None:
            for damage in self.report.damages:
                yield f"{damage.path}, position {damage.position}: {_damage_sentence(damage)}"
            for problem in self.report.index_problems:
                yield f"{problem.path}: {problem.reason}"

    def recoveries(self) -> Iterator[str]:
        """What the next opening for writing will complete."""
        if self.recovery is None:
            return
        yield "the log was not closed cleanly; the next opening for writing completes its recovery"
        for cut in self.recovery.cut:
            yield (
                f"{cut.path}, position {cut.position}: a torn tail of {text.plural(cut.size, 'byte')} will be cut off "
                f"and kept aside ({cut.reason})"
            )


def _examine(path: Path) -> _Findings:
    if not (path / META_NAME).exists():
        _segment_files(path)
    started = perf_counter()
    try:
        with fastlog.PartitionLog.open(path, read_only=True) as partition:
            report = partition.verify()
            return _Findings(report, partition.recovery, None, perf_counter() - started)
    except fastlog.CorruptLogError as error:
        return _Findings(None, None, str(error), perf_counter() - started)


def _damage_sentence(damage: fastlog.Damage) -> str:
    if not damage.size:
        return damage.reason
    if damage.next_offset is None:
        offsets = f"offset {damage.first_offset} and all behind it in this file"
    elif damage.next_offset <= damage.first_offset + 1:
        offsets = f"offset {damage.first_offset}"
    else:
        offsets = f"offsets {damage.first_offset} to {damage.next_offset - 1}"
    return f"{text.plural(damage.size, 'byte')} damaged ({offsets}): {damage.reason}"


@log.command()
@partition_argument
@output_options
def verify(output: Output, path: Path) -> None:
    """Read every byte of a partition and check it: CRCs, lengths, offsets, indexes.

    Changes nothing. The exit code is 0 when everything checks out and 1 when something does not.
    """
    found = _examine(path)
    if output.as_json:
        output.object(found.as_fields(path))
    else:
        _print_findings(output, path, found)
    if not found.ok:
        click.get_current_context().exit(EXIT_PROBLEMS)


def _print_findings(output: Output, path: Path, found: _Findings) -> None:
    report = found.report
    if report is not None:
        output.line(
            f"{path}: {text.plural(report.segments, 'segment')}, {text.plural(report.batches, 'batch')}, "
            f"{text.plural(report.records, 'record')}, {text.size(report.bytes)} read in {text.duration(found.seconds)}"
        )
    for sentence in found.recoveries():
        output.line(f"  note     {sentence}")
    for sentence in found.problems():
        output.verdict(False, sentence)
    if found.ok:
        output.verdict(True, "every batch and every index entry checks out")
    elif report is not None and report.damages:
        output.line()
        output.line("The rest of the log stays readable.")
        output.line(f"To move the damaged bytes aside: fastlog log repair {path}")
    elif report is not None:
        output.line()
        output.line("The records are fine; indexes are hints and are rebuilt when they are next used.")


# --- repair ---------------------------------------------------------------------------------------


@log.command()
@partition_argument
@click.option("--yes", is_flag=True, help="Do it, without asking.")
@output_options
def repair(output: Output, path: Path, yes: bool) -> None:
    """Move damaged bytes into side files, so that the rest is a sound log again.

    Shows what it would do and asks first; without a terminal it wants --yes and else changes nothing (exit code 1). The
    log must not be open anywhere. Records in damaged batches are gone from the log; the side files keep their bytes.
    """
    plan = _examine(path)
    if plan.ok:
        if output.as_json:
            output.object({"path": str(path), "plan": plan.as_fields(path), "repaired": False, "report": None})
        else:
            for sentence in plan.recoveries():
                output.line(f"  note     {sentence}")
            output.verdict(True, f"{path}: nothing to repair")
        return
    if not output.as_json:
        output.line(f"To repair in {path}, the damaged bytes being moved to side files:", bold=True)
        for sentence in (*plan.problems(), *plan.recoveries()):
            output.line(f"  {sentence}")
    refusal = {"path": str(path), "plan": plan.as_fields(path), "repaired": False, "report": None}
    output.require_consent(yes, refusal)
    report = fastlog.PartitionLog.repair(path)
    if output.as_json:
        fields = {"path": str(path), "plan": plan.as_fields(path), "repaired": True, "report": asdict(report)}
        output.object(fields)
        return
    output.line()
    for side_file in report.side_files:
        output.line(f"  kept the damaged bytes in {side_file}")
    if report.rebuilt_indexes:
        output.line(f"  rebuilt {text.plural(len(report.rebuilt_indexes), 'index file')}")
    output.verdict(True, f"{path}: repaired")


# --- stats ----------------------------------------------------------------------------------------


@dataclass(slots=True)
class _Statistics:
    """What the headers of all batches add up to."""

    batches: int = 0
    records: int = 0
    bytes: int = 0
    damaged_bytes: int = 0
    start_offset: int | None = None
    end_offset: int = 0
    first_timestamp: int = -1
    largest_timestamp: int = -1
    codecs: Counter[str] = field(default_factory=Counter)
    gaps: list[tuple[int, int]] = field(default_factory=list)
    segments: list[dict[str, Any]] = field(default_factory=list)

    def add_segment(self, path: Path, advance: Callable[[int], None]) -> None:
        batches, records, base = self.batches, self.records, int(path.stem)
        if self.start_offset is None:
            self.start_offset = self.end_offset = base
        self.go_on_at(base)
        largest = -1
        for batch in fastlog.scan_segment(path):
            self.add_batch(batch)
            if self.batches % BATCHES_PER_ADVANCE == 0:
                advance(self.bytes + batch.position)
            largest = max(largest, batch.max_timestamp if batch.is_valid else -1)
        length = path.stat().st_size
        self.bytes += length
        self.segments.append(
            {
                "file": path.name,
                "base_offset": base,
                "bytes": length,
                "batches": self.batches - batches,
                "records": self.records - records,
                "largest_timestamp": None if largest < 0 else largest,
                "index_entries": _entries(path.with_suffix(".index")),
                "time_index_entries": _entries(path.with_suffix(".timeindex")),
            }
        )

    def add_batch(self, batch: fastlog.BatchInfo) -> None:
        if not batch.is_valid:
            self.damaged_bytes += batch.size
            return
        self.batches += 1
        self.records += batch.record_count
        self.codecs[batch.codec] += 1
        self.go_on_at(batch.base_offset)
        self.end_offset = batch.last_offset + 1
        if batch.base_timestamp >= 0 and (self.first_timestamp < 0 or batch.base_timestamp < self.first_timestamp):
            self.first_timestamp = batch.base_timestamp
        self.largest_timestamp = max(self.largest_timestamp, batch.max_timestamp)

    def go_on_at(self, offset: int) -> None:
        """The next batch or segment begins here; what lies between is a gap."""
        if offset > self.end_offset:
            self.gaps.append((self.end_offset, offset))
            self.end_offset = offset

    def as_fields(self, path: Path) -> dict[str, Any]:
        return {
            "path": str(path),
            "start_offset": self.start_offset or 0,
            "end_offset": self.end_offset,
            "records": self.records,
            "batches": self.batches,
            "bytes": self.bytes,
            "bytes_per_record": self.bytes / self.records if self.records else None,
            "damaged_bytes": self.damaged_bytes,
            "first_timestamp": None if self.first_timestamp < 0 else self.first_timestamp,
            "largest_timestamp": None if self.largest_timestamp < 0 else self.largest_timestamp,
            "codecs": dict(self.codecs),
            "gaps": [{"offset": first, "next_offset": after} for first, after in self.gaps],
            "segments": self.segments,
        }


def _entries(path: Path) -> int | None:
    """How many entries an index file holds, None when it is missing or not readable as one."""
    try:
        return len(fastlog.scan_index(path))
    except fastlog.Error:
        return None


@log.command()
@partition_argument
@output_options
def stats(output: Output, path: Path) -> None:
    """Count what a partition holds: segments, batches, records, bytes, times, index entries, gaps.

    Reads the files as they are, also while a process appends to them. Damage is counted, not judged: that is what
    verify is for.
    """
    files = _segment_files(path)
    statistics = _Statistics()
    total = sum(file.stat().st_size for file in files)
    with output.progress("reading", total if total >= BYTES_WORTH_A_BAR else 0) as advance:
        for file in files:
            statistics.add_segment(file, advance)
    if output.as_json:
        output.object(statistics.as_fields(path))
    else:
        _print_stats(output, path, statistics)


def _print_stats(output: Output, path: Path, found: _Statistics) -> None:
    output.line(str(path), bold=True)
    each = f", {found.bytes / found.records:.1f} bytes per record" if found.records else ""
    missing = sum(after - first for first, after in found.gaps)
    gaps = "none"
    if found.gaps:
        shown = ", ".join(f"{first}-{after - 1}" for first, after in found.gaps[:GAPS_SHOWN])
        more = f" and {len(found.gaps) - GAPS_SHOWN} more" if len(found.gaps) > GAPS_SHOWN else ""
        gaps = f"{text.plural(len(found.gaps), 'gap')}, {text.plural(missing, 'offset')} missing: {shown}{more}"
    rows = [
        ("offsets", f"{text.count(found.start_offset or 0)} to {text.count(found.end_offset)} (not included)"),
        ("records", f"{text.count(found.records)} in {text.plural(found.batches, 'batch')}"),
        ("size", f"{text.size(found.bytes)} in {text.plural(len(found.segments), 'segment')}{each}"),
        ("time", _time_range(found)),
        ("codecs", ", ".join(f"{name} ({count:,})" for name, count in found.codecs.most_common()) or "-"),
        ("gaps", gaps),
    ]
    if found.damaged_bytes:
        rows.append(("damaged", f"{text.plural(found.damaged_bytes, 'byte')}; see: fastlog log verify {path}"))
    output.fields(rows)
    output.line()
    output.table(
        ("segment", "batches", "records", "size", "largest timestamp", "index", "time index"),
        [
            (
                segment["file"],
                text.count(segment["batches"]),
                text.count(segment["records"]),
                text.size(segment["bytes"]),
                text.instant(-1 if segment["largest_timestamp"] is None else segment["largest_timestamp"]),
                _entries_text(segment["index_entries"]),
                _entries_text(segment["time_index_entries"]),
            )
            for segment in found.segments
        ],
    )


def _time_range(found: _Statistics) -> str:
    if found.largest_timestamp < 0:
        return "no timestamps"
    return f"{text.instant(found.first_timestamp)} to {text.instant(found.largest_timestamp)}"


def _entries_text(entries: int | None) -> str:
    return "missing" if entries is None else text.count(entries)
