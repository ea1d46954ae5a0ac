"""What a log has to hold that is opened on a disk that power loss left.

Every record that was promised is there, byte for byte and in order; what follows is what was tried next, without a
hole; a reader who may not change anything sees the same; and the log goes on as if nothing had happened.
"""

from __future__ import annotations

import contextlib
import logging
import os
import random
from bisect import bisect_left
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import fastlog
from tests.crash.recording import Record
from tests.crash.workloads import CONFIG, NAME, SOME_TIME, Stored, make_records

AFTERWARDS: Stored = (SOME_TIME, b"afterwards", b"it goes on", ())
READ_FIRST, READ_AGAIN = 0.4, 0.3  # shares of disks that are opened more than once: disks are many


@dataclass(slots=True)
class Promise:
    """What holds at one moment of a record."""

    end: int = 0  # records below this offset are there
    starts: frozenset[int] = frozenset({0})  # start offsets that the log may have
    tries: int = 0  # so many appends were begun
    earlier: int = 1 << 62  # records below this offset may be those of an earlier record


@dataclass(slots=True)
class History:
    """The marks of a record: which record has which offset, and what was promised when.

    ``earlier`` and ``base`` are for a folder that was not empty: its history, and what is promised of that.
    """

    recorded: Record
    seed: int
    earlier: History | None = None
    base: Promise = field(default_factory=Promise)
    stored: dict[int, tuple[Stored, int]] = field(default_factory=dict)  # offset -> record, number of its append
    tries: dict[tuple[int, int], int] = field(default_factory=dict)  # (writer, append) -> its number among all
    unanswered: set[tuple[int, int]] = field(default_factory=set)
    make: Callable[[int, int, int], list[Stored]] = make_records
    _moments: list[int] = field(default_factory=list)
    _promises: list[Promise] = field(default_factory=list)

    def __post_init__(self) -> None:
        now = self.base
        self._moments.append(0)
        self._promises.append(now)
        for at, facts in self.recorded.marks():
            now = self._after(now, facts)
            self._moments.append(at + 1)
            self._promises.append(now)

    def _after(self, now: Promise, facts: dict[str, Any]) -> Promise:
        what = facts["what"]
        end, starts, tries, earlier = now.end, now.starts, now.tries, now.earlier
        if what in ("try", "operate"):
            append = (facts["writer"], facts["number"])
            self.tries[append] = tries
            self.unanswered.add(append)
            tries += 1
        elif what == "ack":
            append = (facts["writer"], facts["number"])
            self.unanswered.remove(append)
            records = self.records_of(append)
            for offset, record in enumerate(records, facts["base"]):
                assert offset not in self.stored, f"offset {offset} was given away twice"
                self.stored[offset] = (record, self.tries[append])
            if facts["durable"]:
                end = max(end, facts["base"] + len(records))
        elif what == "durable":
            end = max(end, facts["end"])
            # what opening showed is how much of an earlier life is left
            earlier = min(earlier, facts["end"])
        elif what == "deleting":
            starts |= {facts["before"]}
        elif what == "maintaining":
            starts |= frozenset(facts["starts"])
        elif what == "deleted":
            starts = frozenset(start for start in starts if start > facts["start"]) | {facts["start"]}
        else:
            raise AssertionError(f"unknown mark {facts}")
        return Promise(end, starts, tries, earlier)

    def records_of(self, append: tuple[int, int]) -> list[Stored]:
        """What an append has stored."""
        return self.make(self.seed, *append)

    def check(self, root: Path, at: int, seed: int) -> None:
        """Check a disk that may be left after ``at`` entries, put into the folder ``root``."""
        check_disk(partition(root), self, at, seed)

    def told(self, at: int) -> str:
        """What was promised by then, for people."""
        return str(self.promise(at))

    def promise(self, at: int) -> Promise:
        """What was promised when ``at`` entries had happened."""
        return self._promises[bisect_left(self._moments, at + 1) - 1]

    def check_records(self, at: int, start: int, found: list[Stored]) -> None:
        """Every record is the one that has its offset, and its append had begun."""
        promise = self.promise(at)
        previous: tuple[int, int, int] | None = None
        for offset, record in enumerate(found, start):
            known = self.stored.get(offset)
            if known is not None and known[1] < promise.tries and known[0] == record:
                previous = None
                continue
            if self.earlier is not None and offset < promise.earlier:
                known = self.earlier.stored.get(offset)
                if known is not None and known[0] == record:
                    continue
            # an append that never returned: nobody knows which offsets it got, but it is all or a beginning
            writer, number, index = map(int, (record[1] or b"").split(b"."))
            where = f"offset {offset}: {record}"
            for history in (self, self.earlier):
                if history is not None and (writer, number) in history.unanswered:
                    seed = history.seed
                    assert history is not self or self.tries[writer, number] < promise.tries, where
                    break
            else:
                wanted = self.stored.get(offset)
                raise AssertionError(f"{where} does not belong there; expected {wanted}")
            # what was deleted may end in the middle of it
            is_first = index == 0 or offset == start > 0
            assert is_first or previous == (writer, number, index - 1), f"{where} follows {previous}"
            assert make_records(seed, writer, number)[index] == record, where
            previous = (writer, number, index)


def read_all(log: Any) -> list[Stored]:
    """Every record from the start to the readable end; offsets are checked for holes."""
    found: list[Stored] = []
    expected = log.start_offset
    for batch in log.batches():
        count = len(batch)
        assert batch.offsets.tolist() == list(range(expected, expected + count)), "a hole"
        expected += count
        headers = map(tuple, batch.headers)
        found += zip(batch.timestamps.tolist(), batch.keys.to_list(), batch.values.to_list(), headers, strict=True)
    assert expected == log.readable_offset, "records are missing at the end"
    return found


def skim(log: Any) -> list[tuple[int, bytes | None, bytes | None]]:
    """The same without headers, which take most of the time: what was read once is there again."""
    found: list[tuple[int, bytes | None, bytes | None]] = []
    for batch in log.batches():
        found += zip(batch.timestamps.tolist(), batch.keys.to_list(), batch.values.to_list(), strict=True)
    assert log.start_offset + len(found) == log.readable_offset, "records are missing at the end, or too many"
    return found


def list_files(path: Path) -> dict[str, tuple[int, int]]:
    if not path.exists():
        return {}
    with os.scandir(path) as entries:
        return {entry.name: ((status := entry.stat()).st_size, status.st_mtime_ns) for entry in entries}


def check_times(log: Any, found: list[Stored], chance: random.Random) -> None:
    """Looking for a time gives the first record that is young enough."""
    wanted = SOME_TIME + chance.randint(-1001, 1001)
    offsets = (offset for offset, record in enumerate(found, log.start_offset) if record[0] >= wanted)
    first = next(offsets, None)
    told = log.offset_for_time(wanted)
    assert told == first, f"the first record from {wanted} on has offset {first}, not {told}: {log}"


def check_extent(log: Any, found: list[Stored], promise: Promise) -> None:
    start, end = log.start_offset, log.end_offset
    assert end - start == len(found)
    assert end >= promise.end, f"the log ends at {end}, and {promise.end} was promised: {log.recovery}"
    assert start in promise.starts, f"it starts at {start}: {promise.starts}"


def check_disk(path: Path, history: History, at: int, seed: int = 0) -> None:
    """Open the log in ``path``, a disk that may be left after ``at`` entries, and use it.

    Sometimes somebody who may not change anything reads it before, and once more when it was closed. Raises
    AssertionError, or what fastlog raises.
    """
    chance = random.Random(seed)
    config = fastlog.LogConfig(**CONFIG)
    promise = history.promise(at)
    shown = read_first(path, history, at, chance) if chance.random() < READ_FIRST else None
    with fastlog.PartitionLog.open(path, durability="batch", config=config) as log:
        if shown is None:
            found = read_all(log)
            history.check_records(at, log.start_offset, found)
            seen = [record[:3] for record in found]
        else:
            found = shown[1]
            seen = [record[:3] for record in found]
            assert skim(log) == seen, "a reader saw something else than the next writer"
            assert log.start_offset == shown[0]
        check_extent(log, found, promise)
        check_times(log, found, chance)
        check_report(log.recovery)
        start, end = log.start_offset, log.end_offset
        timestamp, key, value, headers = AFTERWARDS
        assert log.append([value], keys=[key], timestamps=timestamp, headers=[headers]) == end
        check_verified(log)
    if chance.random() < READ_AGAIN:
        with fastlog.PartitionLog.open(path, read_only=True) as log:
            assert log.recovery is None
            assert log.start_offset == start
            assert skim(log) == [*seen, AFTERWARDS[:3]]
            check_verified(log)


def read_first(path: Path, history: History, at: int, chance: random.Random) -> tuple[int, list[Stored]] | None:
    """What a reader sees before anybody has repaired anything: the start, and the records. None: there is no log yet,
    the next writer will make it.
    """
    promise = history.promise(at)
    before = list_files(path)
    shown: tuple[int, list[Stored]] | None = None
    with unless_missing(promise.end), fastlog.PartitionLog.open(path, read_only=True) as log:
        found = read_all(log)
        check_extent(log, found, promise)
        history.check_records(at, log.start_offset, found)
        check_times(log, found, chance)
        assert log.durable_offset <= log.end_offset
        assert not log.verify().damages
        shown = (log.start_offset, found)
    assert list_files(path) == before, "a read-only handle changed the disk"
    return shown


@contextlib.contextmanager
def unless_missing(promised: int) -> Iterator[None]:
    """Where nothing was promised, there may be no log yet."""
    try:
        yield
    except fastlog.StorageError as error:
        if promised or not any(words in str(error) for words in ("holds no log yet", "does not exist")):
            raise


def check_verified(log: Any) -> None:
    report = log.verify()
    assert report.ok, f"{report.damages} {report.index_problems}"


def check_report(report: Any) -> None:
    """What recovery cut is kept aside."""
    for cut in report.cut if report is not None else ():
        if cut.side_file is not None:
            assert os.path.getsize(cut.side_file) == cut.size


def partition(root: Path) -> Path:
    return root / NAME


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Without the warnings of thousands of recoveries."""
    logger = logging.getLogger("fastlog")
    level = logger.level
    logger.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        logger.setLevel(level)
