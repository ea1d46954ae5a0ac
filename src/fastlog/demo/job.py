"""The demo's job on any dataset: append, read back, look up by time, ask in SQL, verify; each step timed and checked.

Nothing is taken on trust: what the log gives back is compared with the source event by event, and every answer with one
that was worked out without the log. ``DemoReport.ok`` is True only when all of them agree.
"""

from __future__ import annotations

import importlib
import math
import shutil
from bisect import bisect_left
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy

import fastlog
from fastlog.demo.dataset import Dataset

__all__ = ["Answer", "Check", "DemoReport", "Lookup", "Step", "prepare_folder", "require_duckdb", "run"]

MARKER = ".fastlog-demo"
PARTITION_FILE = ".fastlog-meta"
RECORDS_PER_APPEND = 1000
# Small enough that the demo's log has more than one segment, as a log in use has. Events of a whole year would else
# begin a new segment each week, because segments roll by the time of their records, too.
SEGMENTS = fastlog.LogConfig(segment_bytes="32MiB", segment_ms="1000d")
LOOKUPS = 1000
# Below this a clock says nothing; it also keeps rates finite.
CLOCK_STEP = 1e-9

Progress = Callable[[str, int, int], None]
"""Told the step's name, what is done and the total, often enough to move a bar."""


@dataclass(frozen=True, slots=True)
class Step:
    """What one step did and how long it took; ``count`` or ``bytes`` are None where a rate says nothing."""

    name: str
    seconds: float
    count: int | None = None
    unit: str = "records"
    bytes: int | None = None
    note: str = ""

    @property
    def per_second(self) -> float | None:
        """``count`` per second, None without it."""
        return None if self.count is None else self.count / max(self.seconds, CLOCK_STEP)

    @property
    def bytes_per_second(self) -> float | None:
        """``bytes`` per second, None without them."""
        return None if self.bytes is None else self.bytes / max(self.seconds, CLOCK_STEP)


@dataclass(frozen=True, slots=True)
class Check:
    """One comparison of the log with the source."""

    name: str
    ok: bool
    detail: str


@dataclass(frozen=True, slots=True)
class Lookup:
    """A landmark, and the first record at or after it (None when the log ends before it)."""

    label: str
    instant: datetime
    offset: int | None
    description: str


@dataclass(frozen=True, slots=True)
class Answer:
    """What SQL answered from the log, and whether the source gives the same."""

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[object, ...], ...]
    sql: str
    seconds: float
    agrees: bool


@dataclass(frozen=True, slots=True)
class DemoReport:
    """All that the demo did. ``files`` are the log's segment files, in order."""

    dataset: str
    topic: str
    source: str
    facts: dict[str, int]
    records: int
    payload_bytes: int
    log_path: str
    log_bytes: int
    files: tuple[str, ...]
    steps: tuple[Step, ...]
    lookups: tuple[Lookup, ...]
    view_sql: str
    answers: tuple[Answer, ...]
    checks: tuple[Check, ...]

    @property
    def ok(self) -> bool:
        """Whether every check agreed."""
        return all(check.ok for check in self.checks)


def require_duckdb() -> Any:
    """The module ``duckdb``.

    Raises:
        fastlog.NotSupportedError: it is not installed; the message has the command that helps.
    """
    try:
        return importlib.import_module("duckdb")
    except ImportError as error:
        raise fastlog.NotSupportedError(
            "the demo asks its questions in SQL and needs DuckDB, which is not installed; "
            "install it with: pip install duckdb"
        ) from error


def prepare_folder(folder: str | Path, name: str) -> Path:
    """Make ``folder`` ready to take the demo's log, or its store, and return the path of that inside it.

    An empty or missing folder, or one that an earlier demo left, is taken (what ``name`` it left there is removed); any
    other is left alone.

    Raises:
        fastlog.ConfigError: the folder holds something else.
        fastlog.LockedError: the earlier demo's log is open.
        OSError: the folder cannot be made or emptied.
    """
    folder = Path(folder)
    marker = folder / MARKER
    place = folder / name
    if folder.exists() and not folder.is_dir():
        raise fastlog.ConfigError(f"{folder} is a file; name a folder for the demo's log with --keep")
    if folder.is_dir() and any(folder.iterdir()) and not marker.is_file():
        raise fastlog.ConfigError(
            f"{folder} is not empty and was not made by the demo, so it is left alone; name another folder with --keep"
        )
    folder.mkdir(parents=True, exist_ok=True)
    marker.write_text("This folder holds the log of `fastlog demo`. The next demo replaces it.\n", encoding="utf-8")
    if (place / PARTITION_FILE).exists():
        try:
            fastlog.PartitionLog.open(place, exclusive=True).close()
        except fastlog.LockedError:
            raise
        except fastlog.Error:
            pass  # nobody has it open, and a log that will not open is replaced like any other
    if place.exists():
        shutil.rmtree(place)
    return place


def run(dataset: Dataset, path: str | Path, progress: Progress | None = None) -> DemoReport:
    """Do the whole job: the events of ``dataset`` into a new log at ``path``, and every answer out of it again.

    Raises:
        fastlog.NotSupportedError: DuckDB is not installed (checked before anything is written).
        fastlog.Error: the log could not be written or read.
    """
    job = _Job(dataset, Path(path), require_duckdb(), progress or (lambda name, done, total: None))
    job.append()
    with fastlog.PartitionLog.open(job.path, read_only=True) as log:
        job.check("closed cleanly", log.recovery is None, "opened again without recovery")
        job.read_columns(log)
        job.compare(log)
        job.look_up(log)
        job.query(log)
        job.verify(log)
        return job.report(log)


class _Job:
    """The steps of ``run`` in order, and what they found so far."""

    def __init__(self, dataset: Dataset, path: Path, duckdb: Any, progress: Progress) -> None:
        self.dataset = dataset
        self.path = path
        self.duckdb = duckdb
        self.progress = progress
        self.payload_bytes = dataset.payload_bytes
        self.steps: list[Step] = []
        self.checks: list[Check] = []
        self.lookups: list[Lookup] = []
        self.answers: list[Answer] = []

    def check(self, name: str, ok: bool, detail: str) -> None:
        self.checks.append(Check(name, bool(ok), detail))

    def append(self) -> None:
        data, total, appends = self.dataset, len(self.dataset), 0
        with fastlog.PartitionLog.open(self.path, durability="os", config=SEGMENTS) as log:
            seconds = 0.0
            for first in range(0, total, RECORDS_PER_APPEND):
                last = first + RECORDS_PER_APPEND
                values, keys, times = data.values[first:last], data.keys[first:last], data.timestamps[first:last]
                started = perf_counter()
                log.append(values, keys=keys, timestamps=times)
                seconds += perf_counter() - started
                appends += 1
                self.progress("append", min(last, total), total)
            note = f"{appends:,} calls of {RECORDS_PER_APPEND:,}"
            self.steps.append(Step("append", seconds, total, "records", self.payload_bytes, note))
            started = perf_counter()
            durable = log.flush()
            self.steps.append(Step("flush", perf_counter() - started, note="durable from here"))
            self.check(
                "appended", log.end_offset == total and durable == total, f"offsets 0 to {total:,}, all of them durable"
            )

    def read_columns(self, log: fastlog.PartitionLog) -> None:
        count = size = 0
        offset = log.start_offset
        started = perf_counter()
        while offset < log.readable_offset:
            batch = log.read(offset)
            count += len(batch)
            # A null has the size -1.
            size += int(numpy.maximum(batch.keys.sizes, 0).sum()) + int(numpy.maximum(batch.values.sizes, 0).sum())
            offset = batch.next_offset
        seconds = perf_counter() - started
        self.steps.append(Step("read columns", seconds, count, "records", size, "every CRC checked"))
        self.check(
            "read back",
            (count, size) == (len(self.dataset), self.payload_bytes),
            f"{count:,} records and {size:,} bytes of keys and values, as in the source",
        )

    def compare(self, log: fastlog.PartitionLog) -> None:
        data, total, equal, done = self.dataset, len(self.dataset), True, 0
        timestamps = numpy.array(data.timestamps, dtype=numpy.int64)
        started = perf_counter()
        for batch in log.batches():
            last = done + len(batch)
            equal = (
                equal
                and bool(numpy.array_equal(batch.offsets, numpy.arange(done, last)))
                and bool(numpy.array_equal(batch.timestamps, timestamps[done:last]))
                and batch.keys.to_list() == data.keys[done:last]
                and batch.values.to_list() == data.values[done:last]
            )
            done = last
            self.progress("compare", done, total)
        seconds = perf_counter() - started
        self.steps.append(Step("compare", seconds, done, "records", self.payload_bytes, "as Python objects"))
        self.check("equal", equal and done == total, "every offset, timestamp, key and value equals its source")

    def look_up(self, log: fastlog.PartitionLog) -> None:
        times = self.dataset.timestamps
        instants = _instants(times)
        started = perf_counter()
        found = [log.offset_for_time(instant) for instant in instants]
        seconds = perf_counter() - started
        self.steps.append(
            Step("look up by time", seconds, len(instants), "lookups", note=f"{len(instants):,} instants")
        )
        expected = [_first_at_or_after(times, instant) for instant in instants]
        for landmark in self.dataset.landmarks:
            offset = log.offset_for_time(landmark.instant)
            found.append(offset)
            expected.append(_first_at_or_after(times, int(landmark.instant.timestamp() * 1000)))
            description = "behind the last record"
            if offset is not None:
                description = self.dataset.describe(log.read(offset)[0].value or b"")
            self.lookups.append(Lookup(landmark.label, landmark.instant, offset, description))
        agreed = sum(left == right for left, right in zip(found, expected, strict=True))
        self.check(
            "looked up", agreed == len(expected), f"{agreed:,} of {len(expected):,} instants lead to the right offset"
        )

    def query(self, log: fastlog.PartitionLog) -> None:
        with self.duckdb.connect() as connection:
            connection.register("log", log.batches())
            connection.execute(f'CREATE VIEW "{self.dataset.topic}" AS {self.dataset.view_sql}')
            for question in self.dataset.questions:
                started = perf_counter()
                rows = tuple(tuple(row) for row in connection.execute(question.sql).fetchall())
                seconds = perf_counter() - started
                agrees = _same_rows(rows, question.expected)
                name = f"SQL query {len(self.answers) + 1}"
                self.steps.append(Step(name, seconds, len(self.dataset), "records", self.payload_bytes))
                self.answers.append(Answer(question.title, question.columns, rows, question.sql, seconds, agrees))
            connection.unregister("log")
        for number, answer in enumerate(self.answers, 1):
            self.check(f"answer {number}", answer.agrees, "SQL on the log and plain Python on the source agree")

    def verify(self, log: fastlog.PartitionLog) -> None:
        started = perf_counter()
        verified = log.verify()
        seconds = perf_counter() - started
        self.steps.append(
            Step("verify", seconds, verified.records, "records", verified.bytes, f"{verified.batches:,} batches")
        )
        self.check(
            "verified",
            verified.ok and verified.records == len(self.dataset),
            f"{verified.segments} segments and their indexes check out",
        )

    def report(self, log: fastlog.PartitionLog) -> DemoReport:
        segments = log.segments()
        return DemoReport(
            dataset=self.dataset.name,
            topic=self.dataset.topic,
            source=self.dataset.source,
            facts=dict(self.dataset.facts),
            records=len(self.dataset),
            payload_bytes=self.payload_bytes,
            log_path=str(self.path),
            log_bytes=sum(segment.size for segment in segments),
            files=tuple(str(self.path / Path(segment.path).name) for segment in segments),
            steps=tuple(self.steps),
            lookups=tuple(self.lookups),
            view_sql=self.dataset.view_sql,
            answers=tuple(self.answers),
            checks=tuple(self.checks),
        )


def _instants(times: list[int]) -> list[int]:
    """Instants of every kind: on a record, between records, at both ends and beyond them."""
    if not times:
        return [0]
    stride = max(1, len(times) * 2 // LOOKUPS)
    chosen = times[::stride]
    return [*chosen, *(time + 1 for time in chosen), times[0] - 1, times[-1], times[-1] + 1]


def _first_at_or_after(times: list[int], instant: int) -> int | None:
    index = bisect_left(times, instant)
    return index if index < len(times) else None


def _same_rows(found: tuple[tuple[object, ...], ...], expected: tuple[tuple[object, ...], ...]) -> bool:
    """Equal, but for the last bits of a mean."""
    if len(found) != len(expected):
        return False
    return all(
        len(left) == len(right) and all(map(_same_value, left, right))
        for left, right in zip(found, expected, strict=True)
    )


def _same_value(left: object, right: object) -> bool:
    if isinstance(left, float) and isinstance(right, float):
        return math.isclose(left, right, rel_tol=1e-12)
    return left == right
