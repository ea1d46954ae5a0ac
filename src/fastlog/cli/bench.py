"""``fastlog bench append | read | latency | pipeline``: how fast a log is on this machine, with a workload like yours.

A look, for choosing a batch size, a durability level or a disk. Every figure stands beside the floor of the same
machine in the same run: bare writes, bare reads, a pipe. They take turns, after a warm-up round; the median of the
rounds counts. What does the work are processes of their own (``workers``), so that this one can show progress without
being in the way.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from array import array
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

import click

import fastlog
from fastlog.cli import output as text
from fastlog.cli.doctor import is_partition
from fastlog.cli.output import Output, output_options
from fastlog.cli.workers import Worker, WorkerError, workers
from fastlog.config import DEFAULT_DURABILITY, DURABILITY_LEVELS, parse_size

__all__ = ["bench"]

ROUNDS = 5
MOST_BYTES_PER_ROUND = 1 << 30
MOST_BYTES_PER_VALUE = 1 << 19
MOST_WAKE_UPS = 5000
SYNCED_LEVELS = ("group", "batch")
CODECS = ("none", "gzip", "snappy", "lz4", "zstd")
SECOND = 1_000_000_000


def _size(context: click.Context, parameter: click.Parameter, value: str) -> int:
    """Bytes, as options of a log take them: 100, 4KiB."""
    try:
        found = parse_size(value, "--size")
    except fastlog.ConfigError as error:
        raise click.BadParameter(str(error)) from None
    if not 0 < found <= MOST_BYTES_PER_VALUE:
        raise click.BadParameter(f"{value} is out of range: expected 1 byte to {text.size(MOST_BYTES_PER_VALUE)}")
    return found


def _workload_options(
    batch: int, records: int | None, durability: bool = True, threads: bool = True
) -> Callable[[Callable[..., None]], Any]:
    """The options that say what is done; ``batch`` and ``records`` are their defaults."""
    count = click.IntRange(min=1)
    level = click.option("--durability", type=click.Choice(DURABILITY_LEVELS), default=DEFAULT_DURABILITY,
                         show_default=True, help="When an append returns.")  # fmt: skip
    in_threads = click.option("--threads", type=click.IntRange(1, 256), default=1, show_default=True, metavar="COUNT",
                              help="Threads in each process.")  # fmt: skip
    options = [
        click.option("--records", type=count, default=records, metavar="COUNT", show_default=records is not None,
                     help="Records per round, at most."),
        click.option("--size", callback=_size, default="100", show_default=True, help="Bytes of a value."),
        click.option("--batch", type=count, default=batch, show_default=True, metavar="COUNT",
                     help="Records per call."),
        *([level] if durability else []),
        *([in_threads] if threads else []),
        click.option("--processes", type=click.IntRange(1, 64), default=1, show_default=True, metavar="COUNT",
                     help="Processes on one log." if threads else "Processes that send, and as many that consume."),
        click.option("--compression", type=click.Choice(CODECS), default="none", show_default=True,
                     help="Codec of the batches; the values are then text instead of random bytes."),
        click.option("--seconds", type=click.FloatRange(min=0.05), default=3.0, show_default=True,
                     help="How long to measure each way, about; one part in five per round."),
    ]  # fmt: skip

    def decorate(function: Callable[..., None]) -> Callable[..., None]:
        for option in reversed(options):
            function = option(function)
        return function

    return decorate


@dataclass(frozen=True, slots=True)
class _Workload:
    """What the options say."""

    records: int | None
    size: int
    batch: int
    durability: str
    threads: int
    processes: int
    compression: str
    seconds: float

    @property
    def codec(self) -> str | None:
        return None if self.compression == "none" else self.compression

    @property
    def nanoseconds(self) -> int:
        """Of one round."""
        return int(self.seconds * SECOND / ROUNDS)

    @property
    def records_per_round(self) -> int:
        room = max(1, MOST_BYTES_PER_ROUND // self.size)
        return room if self.records is None else min(room, self.records)

    def describe(self, with_durability: bool = True) -> str:
        parts = [
            text.plural(self.processes, "process"),
            text.plural(self.threads, "thread") + (" each" if self.processes > 1 else ""),
            f"{self.batch:,} x {text.size(self.size)} per call",
        ]
        if with_durability:
            parts.append(f"durability {self.durability}")
        if self.codec is not None:
            parts.append(self.codec)
        return ", ".join(parts)


@dataclass(slots=True)
class _Result:
    """One way of doing the work: a rate per round, and how long single calls took, in nanoseconds."""

    name: str
    unit: str = "records"
    rates: list[float] = field(default_factory=list)
    nanoseconds: array[int] = field(default_factory=lambda: array("q"))
    records: int = 0
    syncs: int = 0
    bytes_per_unit: float = 1

    @property
    def rate(self) -> float:
        return median(self.rates)

    @property
    def records_per_sync(self) -> float | None:
        return self.records / self.syncs if self.syncs else None

    def percentiles(self) -> dict[str, float]:
        """Seconds: half of the calls were as fast as p50, 99 of 100 as fast as p99, all as fast as max."""
        ordered = sorted(self.nanoseconds)
        last = len(ordered) - 1
        return {
            "p50": ordered[last // 2] / SECOND,
            "p99": ordered[min(last, len(ordered) * 99 // 100)] / SECOND,
            "max": ordered[-1] / SECOND,
        }

    def as_fields(self) -> dict[str, Any]:
        fields: dict[str, Any] = {"name": self.name}
        if self.rates:
            fields |= {f"{self.unit}_per_second": self.rate, f"{self.unit}_per_second_of_rounds": self.rates}
        if self.nanoseconds:
            fields |= {"calls": len(self.nanoseconds), "call_seconds": self.percentiles()}
        if self.records_per_sync is not None:
            fields["records_per_sync"] = self.records_per_sync
        return fields


@click.group(short_help="Measure appends, reads and wake-ups on this machine.")
def bench() -> None:
    """Measure a log on this machine, with a workload like yours, beside what the machine does without one.

    A round of warming up comes first, then five rounds in turns; the medians are shown. Leave the machine alone
    meanwhile: whatever else it does is in the figures.
    """


# --- where ----------------------------------------------------------------------------------------

folder_argument = click.argument(
    "path", required=False, default=".", metavar="[PATH]",
    type=click.Path(exists=True, file_okay=False, writable=True, path_type=Path),
)  # fmt: skip


@contextmanager
def _folder_in(path: Path) -> Iterator[Path]:
    """A folder of our own on the disk to measure, gone at the end."""
    if is_partition(path):
        raise click.UsageError(f"{path} is a partition: name a folder to make logs in, nothing is written into yours")
    with tempfile.TemporaryDirectory(prefix="fastlog-bench-", dir=path, ignore_cleanup_errors=True) as name:
        yield Path(name)


def _remove(folder: Path) -> None:
    """Delete what a round left, so that a run needs the room of one round only."""
    for file in folder.iterdir():
        file.unlink()
    folder.rmdir()


# --- append ---------------------------------------------------------------------------------------


@bench.command("append")
@folder_argument
@_workload_options(batch=1000, records=None)
@output_options
def append_(output: Output, path: Path, **options: Any) -> None:
    """Measure appending.

    PATH is a folder on the disk to measure, by default the current one; the logs are made in it, and deleted. A round
    ends when its time is over, --records are in, or a GiB of values. With several processes, all append to one log.
    """
    workload = _Workload(**options)
    with _folder_in(path) as home, workers(*[()] * workload.processes) as processes:
        results = _measure_appends(output, home, processes, workload)
    _show_appends(output, "append", workload, results, _append_rows(workload, results))


def _measure_appends(output: Output, home: Path, processes: list[Worker], workload: _Workload) -> list[_Result]:
    """Rounds of appends and rounds of bare writes in turns; the first of each warms up and does not count."""
    ours, floor = _Result("fastlog"), _Result(_floor_name(workload))
    with output.progress("measuring", 2 * (ROUNDS + 1)) as advance:
        for number in range(ROUNDS + 1):
            for step, (result, measure) in enumerate(((ours, _append_round), (floor, _write_round))):
                measure(home, processes, workload, result if number else _Result("warm-up"))
                advance(2 * number + step + 1)
    return [ours, floor]


def _floor_name(workload: _Workload) -> str:
    return "bare write + sync" if workload.durability in SYNCED_LEVELS else "bare write"


def _append_round(home: Path, processes: list[Worker], workload: _Workload, result: _Result) -> None:
    folder = home / "bench-0"
    for worker in processes:
        worker.ask("open", path=str(folder), durability=workload.durability)
    before = _syncs(folder)
    for number, worker in enumerate(processes):
        worker.send(
            "append", size=workload.size, batch=workload.batch, threads=workload.threads,
            records=max(1, workload.records_per_round // len(processes)), nanoseconds=workload.nanoseconds,
            compression=workload.codec, latencies=str(home / f"latencies-{number}"),
        )  # fmt: skip
    _collect(home, [worker.receive() for worker in processes], result)
    result.syncs += _syncs(folder) - before
    for worker in processes:
        worker.ask("close")
    _remove(folder)


def _write_round(home: Path, processes: list[Worker], workload: _Workload, result: _Result) -> None:
    file = home / "bare"
    answer = processes[0].ask(
        "write", path=str(file), size=workload.size, batch=workload.batch, records=workload.records_per_round,
        nanoseconds=workload.nanoseconds, synced=workload.durability in SYNCED_LEVELS,
        latencies=str(home / "latencies-0"),
    )  # fmt: skip
    _collect(home, [answer], result)
    file.unlink()


def _collect(home: Path, answers: list[dict[str, Any]], result: _Result) -> None:
    """Add up what the processes did between the first that began and the last that ended."""
    records = sum(answer["records"] for answer in answers)
    began, ended = min(answer["began"] for answer in answers), max(answer["ended"] for answer in answers)
    result.rates.append(records * SECOND / max(1, ended - began))
    result.records += records
    for number in range(len(answers)):
        file = home / f"latencies-{number}"
        result.nanoseconds.frombytes(file.read_bytes())
        file.unlink()


def _syncs(folder: Path) -> int:
    """How often the log was synced since it was opened, by whichever process."""
    count: int = fastlog.diagnose(folder)["control"]["syncs"]
    return count


def _append_rows(workload: _Workload, results: list[_Result]) -> list[tuple[str, ...]]:
    floor = results[-1]
    rows: list[tuple[str, ...]] = [("", "median rate", "values", "beside", "p50 of a call", "p99", "records per sync")]
    for result in results:
        times = result.percentiles()
        shared = result.records_per_sync
        rows.append(
            (
                result.name,
                text.rate(result.rate, "records"),
                text.speed(result.rate * workload.size),
                "" if result is floor else f"{result.rate / floor.rate:.2f}x",
                text.duration(times["p50"]),
                text.duration(times["p99"]),
                "" if shared is None else f"{shared:,.1f}",
            )
        )
    return rows


def _show_appends(
    output: Output, command: str, workload: _Workload, results: list[_Result], rows: list[tuple[str, ...]]
) -> None:
    if output.as_json:
        output.object(_as_fields(command, workload, results))
        return
    output.line(f"{command}: {workload.describe()}", bold=True)
    output.table(rows[0], rows[1:])
    _print_how(output)


def _as_fields(command: str, workload: _Workload, results: list[_Result], **more: Any) -> dict[str, Any]:
    return {
        "command": command,
        "fastlog": fastlog.__version__,
        "rounds": ROUNDS,
        "workload": asdict(workload),
        **more,
        "results": [result.as_fields() for result in results],
    }


def _print_how(output: Output) -> None:
    output.line(f"medians of {ROUNDS} rounds in turns, after one to warm up", dim=True)


# --- read -----------------------------------------------------------------------------------------

WAYS = {
    "columns": "columns: NumPy arrays",
    "lists": "list[bytes] of the values",
    "records": "Record objects",
    "bytes": "bare read of the bytes",
}


@bench.command("read")
@click.argument("path", required=False, default=".", metavar="[PATH]",
                type=click.Path(exists=True, file_okay=False, path_type=Path))  # fmt: skip
@_workload_options(batch=1000, records=1_000_000, durability=False)
@output_options
def read_(output: Output, path: Path, **options: Any) -> None:
    """Measure reading, in three ways, with every checksum checked.

    PATH is a partition, which is read and not changed; or a folder to make a log in, by default the current one, which
    is then deleted. Each process and thread reads from the start; a round ends with the log, with --records, or when
    its time is over. The bytes come from the page cache.
    """
    workload = _Workload(durability="os", **options)
    if is_partition(path):
        with workers(*[()] * workload.processes) as processes:
            results = _measure_reads(output, path, processes, workload)
    else:
        with _folder_in(path) as home, workers(*[()] * workload.processes) as processes:
            _make_log(processes[0], home, workload)
            results = _measure_reads(output, home / "bench-0", processes, workload)
    if output.as_json:
        output.object(_as_fields("read", workload, results))
        return
    output.line(f"read: {workload.describe(with_durability=False)}", bold=True)
    floor = results[-1]
    rows = []
    for result in results:
        speed = result.rate * result.bytes_per_unit
        rate = "" if result is floor else text.rate(result.rate, "records")
        ratio = "" if result is floor else f"{speed / floor.rate:.2f}x"
        rows.append((WAYS[result.name], rate, text.speed(speed), ratio))
    output.table(("", "median rate", "log", "beside"), rows)
    _print_how(output)


def _make_log(worker: Worker, home: Path, workload: _Workload) -> None:
    worker.ask("open", path=str(home / "bench-0"), durability="os")
    worker.ask(
        "append", size=workload.size, batch=workload.batch, threads=1, records=workload.records_per_round,
        nanoseconds=60 * SECOND, compression=workload.codec, latencies=str(home / "latencies-0"),
    )  # fmt: skip
    worker.ask("close")


def _measure_reads(output: Output, path: Path, processes: list[Worker], workload: _Workload) -> list[_Result]:
    found, *_ = [worker.ask("open", path=str(path), read_only=True) for worker in processes]
    if not found["records"]:
        raise click.UsageError(f"{path} holds no record: there is nothing to read")
    each = found["bytes"] / found["records"]
    results = [_Result(way, "records", bytes_per_unit=each) for way in WAYS if way != "bytes"]
    results.append(_Result("bytes", "bytes"))
    with output.progress("measuring", len(results) * (ROUNDS + 1)) as advance:
        for number in range(ROUNDS + 1):
            for step, result in enumerate(results):
                _read_round(path, processes, workload, result if number else _Result(result.name, result.unit))
                advance(number * len(results) + step + 1)
    for worker in processes:
        worker.ask("close")
    return results


def _read_round(path: Path, processes: list[Worker], workload: _Workload, result: _Result) -> None:
    enough = MOST_BYTES_PER_ROUND if result.name == "bytes" else workload.records_per_round
    for worker in processes:
        worker.send(
            "read", path=str(path), way=result.name, threads=workload.threads, enough=enough,
            nanoseconds=workload.nanoseconds,
        )  # fmt: skip
    answers = [worker.receive() for worker in processes]
    began, ended = min(answer["began"] for answer in answers), max(answer["ended"] for answer in answers)
    result.rates.append(sum(answer["units"] for answer in answers) * SECOND / max(1, ended - began))


# --- latency --------------------------------------------------------------------------------------


@bench.command()
@folder_argument
@_workload_options(batch=1, records=None)
@output_options
def latency(output: Output, path: Path, **options: Any) -> None:
    """Measure how long an append takes, and how soon a waiting reader in another process has its record.

    The first table is about appends at the durability level, with how many records each sync of the disk took along.
    The second is about one appender and one reader that waits: from just before the append, which includes its sync if
    it has one, to when the reader runs. A byte through a pipe between the same two processes takes turns with it.
    """
    workload = _Workload(**options)
    wake_ups = min(MOST_WAKE_UPS, workload.records or MOST_WAKE_UPS)
    with _folder_in(path) as home:
        with workers(*[()] * workload.processes) as processes:
            appends = _measure_appends(output, home, processes, workload)
        wakes = _measure_wake_ups(output, home, workload, wake_ups)
    if output.as_json:
        output.object(_as_fields("latency", workload, [*appends, *wakes]))
        return
    output.line(f"append: {workload.describe()}", bold=True)
    output.table(LATENCY_COLUMNS, [_latency_row(result, appends[-1]) for result in appends])
    output.heading(f"append to wake-up in another process: 1 record per call, durability {workload.durability}")
    output.table(LATENCY_COLUMNS[:-1], [_latency_row(result, wakes[-1])[:-1] for result in wakes])
    output.line(
        f"calls of {ROUNDS} rounds in turns, after one to warm up; "
        f"{len(wakes[0].nanoseconds):,} wake-ups, log and pipe in turns",
        dim=True,
    )


LATENCY_COLUMNS = ("", "p50", "p99", "max", "beside (p50)", "records per sync")


def _latency_row(result: _Result, floor: _Result) -> tuple[str, ...]:
    times, floor_times = result.percentiles(), floor.percentiles()
    shared = result.records_per_sync
    return (
        result.name,
        *(text.duration(times[name]) for name in ("p50", "p99", "max")),
        "" if result is floor else f"{times['p50'] / floor_times['p50']:.2f}x",
        "" if shared is None else f"{shared:,.1f}",
    )


def _measure_wake_ups(output: Output, home: Path, workload: _Workload, times: int) -> list[_Result]:
    """One process appends, one waits; the first tenth warms up and does not count."""
    ours, floor = _Result("append to wake-up"), _Result("byte through a pipe")
    warm_up, per_step = max(1, times // 10), max(1, times // 20)
    (hears_ready, says_ready), (hears_bell, rings_bell) = pipes = os.pipe(), os.pipe()
    with workers((hears_ready, rings_bell), (says_ready, hears_bell)) as (ringer, listener):
        for descriptor in (*pipes[0], *pipes[1]):
            os.close(descriptor)  # so that each of the two sees when the other one is gone
        ringer.ask("open", path=str(home / "wake-0"), durability=workload.durability)
        listener.ask("open", path=str(home / "wake-0"), durability=workload.durability, read_only=True)
        with output.progress("waking", warm_up + times) as advance:
            done = 0
            while done < warm_up + times:
                step = warm_up if done < warm_up else min(per_step, warm_up + times - done)
                listener.send("listen", ready=says_ready, bell=hears_bell, times=step)
                ringer.send("ring", ready=hears_ready, bell=rings_bell, times=step)
                woken, rung = listener.receive(), ringer.receive()
                if done >= warm_up:
                    for result, name in ((ours, "log"), (floor, "pipe")):
                        pairs = zip(rung[name], woken[name], strict=True)
                        result.nanoseconds.extend(then - now for now, then in pairs)
                done += step
                advance(done)
        listener.ask("close")
        ringer.ask("close")
    return [ours, floor]


# --- pipeline -------------------------------------------------------------------------------------

TOPIC = "bench"


@bench.command()
@folder_argument
@_workload_options(batch=1, records=None, threads=False)
@click.option("--partitions", type=click.IntRange(1, 1024), metavar="COUNT",
              help="Partitions of the topic; as many as processes by default.")  # fmt: skip
@output_options
def pipeline(output: Output, path: Path, partitions: int | None, **options: Any) -> None:
    """Measure records from producers to consumers, through a topic, in processes.

    So many processes send, one record or --batch of them per call, without waiting for each; so many others, one
    consumer group, take lists of up to 500 Record objects meanwhile. "sent" is until all records are delivered at the
    durability level, "consumed" until the last one is in a consumer's hand. The same bytes through a pipe, from one
    process to another, take turns with them.
    """
    workload = _Workload(threads=1, **options)
    count = partitions or workload.processes
    if count % workload.processes:
        raise click.UsageError(f"--partitions {count}: expected a multiple of the {workload.processes} processes")
    hears, says = os.pipe()
    others: list[tuple[int, ...]] = [()] * (workload.processes - 1)
    with (
        _folder_in(path) as home,
        workers((says,), *others) as producers,
        workers((hears,), *others) as consumers,
    ):
        os.close(says)
        os.close(hears)
        results = [_Result("sent"), _Result("consumed"), _Result("bytes through a pipe", "bytes")]
        with output.progress("measuring", 2 * (ROUNDS + 1)) as advance:
            for number in range(ROUNDS + 1):
                counted = results if number else [_Result(result.name, result.unit) for result in results]
                _pipeline_round(home, producers, consumers, workload, count, counted)
                advance(2 * number + 1)
                _pipe_round(home, producers[0], consumers[0], (says, hears), workload, counted[2])
                advance(2 * number + 2)
    _show_pipeline(output, workload, count, results)


def _pipeline_round(
    home: Path, producers: list[Worker], consumers: list[Worker], workload: _Workload, partitions: int,
    results: list[_Result],
) -> None:  # fmt: skip
    root, all_sent = home / "store", home / "all-sent"
    with fastlog.open(root, durability=workload.durability) as store:
        store.create_topic(TOPIC, partitions)
    at = {"path": str(root), "durability": workload.durability}
    for worker in consumers:
        worker.send("open consumer", topic=TOPIC, share=partitions // len(consumers), **at)
    for worker in producers:
        worker.send("open producer", compression=workload.codec, **at)
    for worker in (*consumers, *producers):
        worker.receive()
    for worker in consumers:
        worker.send("consume", all_sent=str(all_sent))
    for worker in producers:
        worker.send(
            "produce", topic=TOPIC, size=workload.size, batch=workload.batch, nanoseconds=workload.nanoseconds,
            records=max(1, workload.records_per_round // len(producers)), text=workload.codec is not None,
        )  # fmt: skip
    sent = [worker.receive() for worker in producers]
    all_sent.touch()
    found = [worker.receive() for worker in consumers]
    for worker in (*consumers, *producers):
        worker.ask("close store")
    all_sent.unlink()
    shutil.rmtree(root)
    _add_pipeline(sent, found, results)


def _add_pipeline(sent: list[dict[str, Any]], found: list[dict[str, Any]], results: list[_Result]) -> None:
    total, arrived = (sum(answer["records"] for answer in answers) for answers in (sent, found))
    if total != arrived:
        raise WorkerError(f"{total} records were sent, and {arrived} arrived: please report this")
    began = min(answer["began"] for answer in sent)
    for result, answers in zip(results, (sent, found), strict=False):
        ended = max(answer["ended"] for answer in answers)
        result.rates.append(total * SECOND / max(1, ended - began))
        result.records += total


def _pipe_round(
    home: Path, writer: Worker, reader: Worker, pipe: tuple[int, int], workload: _Workload, result: _Result
) -> None:
    all_sent = home / "all-sent"
    reader.send("read pipe", pipe=pipe[1], all_sent=str(all_sent))
    written = writer.ask(
        "write pipe", pipe=pipe[0], size=workload.size, batch=workload.batch, nanoseconds=workload.nanoseconds,
        records=workload.records_per_round,
    )  # fmt: skip
    all_sent.touch()
    found = reader.receive()
    all_sent.unlink()
    result.rates.append(found["bytes"] * SECOND / max(1, found["ended"] - written["began"]))


def _show_pipeline(output: Output, workload: _Workload, partitions: int, results: list[_Result]) -> None:
    if output.as_json:
        output.object(_as_fields("pipeline", workload, results, partitions=partitions))
        return
    floor = results[-1]
    rows = []
    for result in results[:-1]:
        speed = result.rate * workload.size
        rows.append((result.name, text.rate(result.rate, "records"), text.speed(speed), f"{speed / floor.rate:.2f}x"))
    rows.append((floor.name, "", text.speed(floor.rate), ""))
    output.line(f"pipeline: {workload.describe()}, {text.plural(partitions, 'partition')}", bold=True)
    output.table(("", "median rate", "values", "beside"), rows)
    _print_how(output)
