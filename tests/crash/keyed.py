"""What a log that is compacted has to hold after power loss: the newest of every key, and nothing in a new place."""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import fastlog
from fastlog._native import oscalls
from tests.crash.checker import (
    AFTERWARDS,
    READ_AGAIN,
    READ_FIRST,
    History,
    check_report,
    check_verified,
    list_files,
    partition,
    unless_missing,
)
from tests.crash.workloads import COMPACTED, CONFIG, SOME_TIME, Stored, make_keyed_records

FAR_AHEAD = 2_500_000_000_000  # milliseconds; every delete horizon has passed

Kept = list[tuple[int, Stored]]  # offset, record


def read_kept(log: Any) -> Kept:
    """Every record with its offset, rising; there may be gaps."""
    found: Kept = []
    for batch in log.batches():
        columns = (batch.timestamps.tolist(), batch.keys.to_list(), batch.values.to_list(), map(tuple, batch.headers))
        found += zip(batch.offsets.tolist(), zip(*columns, strict=True), strict=True)
    offsets = [offset for offset, _ in found]
    assert all(one < other for one, other in itertools.pairwise(offsets)), f"out of order: {offsets}"
    assert not found or log.start_offset <= offsets[0] <= offsets[-1] < log.end_offset
    return found


def newest(kept: Iterable[tuple[int, Stored]]) -> dict[bytes | None, tuple[int, bytes | None]]:
    """Offset and value of the last record of each key."""
    return {key: (offset, value) for offset, (_, key, value, _) in kept}


class KeyedHistory(History):
    """The marks of a record whose log is compacted."""

    def __post_init__(self) -> None:
        self.make = make_keyed_records
        self.tried_at: list[int] = []  # moment of each append, in their order
        self.rounds: list[list[int]] = []  # begin and end of each ``maintain``
        under_way: dict[int, list[int]] = {}  # by thread
        for at, facts in self.recorded.marks():
            thread = self.recorded.entries[at].thread
            if thread in under_way:
                under_way.pop(thread)[1] = at
            if facts["what"] == "try":
                self.tried_at.append(at)
            elif facts["what"] == "maintaining":
                under_way[thread] = [at, 1 << 62]
                self.rounds.append(under_way[thread])
        super().__post_init__()

    def may_be_removed(self, at: int, offset: int) -> bool:
        """Whether a tombstone may be gone: one round gives it a horizon, and a later one removes it."""
        tried_at = self.tried_at[self.stored[offset][1]]
        return sum(1 for begin, end in self.rounds if begin < at and end > tried_at) >= 2

    def check_kept(self, at: int, start: int, end: int, found: Kept) -> None:
        """What is found below ``end`` is what was appended there, and only what a later one replaces is missing."""
        promise = self.promise(at)
        identities = set()
        for offset, record in found:
            identity = record[3][0][1] or b""
            assert identity not in identities, f"{record} is there twice"
            identities.add(identity)
            writer, number, index = map(int, identity.split(b"."))
            assert self.tries[writer, number] < promise.tries, f"offset {offset}: {record} is of the future"
            assert make_keyed_records(self.seed, writer, number)[index] == record, f"offset {offset}: {record}"
            known = self.stored.get(offset)
            assert known[0] == record if known else (writer, number) in self.unanswered, f"offset {offset}: {record}"
        there = dict(found)
        last = newest(found)
        removed: dict[bytes | None, int] = {}  # key -> offset of its last tombstone, which is gone
        for offset in sorted(self.stored, reverse=True):
            if not start <= offset < end or offset in there:
                continue
            (_, key, value, _), _ = self.stored[offset]
            if offset < last.get(key, (-1, None))[0] or offset < removed.get(key, -1):
                continue
            where = f"{key!r} at offset {offset} is missing, the last one found is at {last.get(key)}"
            assert value is None, where
            assert self.may_be_removed(at, offset), f"a tombstone: {where}"
            assert key not in last, f"older than a removed tombstone: {where}"
            removed[key] = offset

    def check(self, root: Path, at: int, seed: int) -> None:
        """Open the log on a disk, read-only and for writing, compact it again, go on with it.

        Raises AssertionError, or what fastlog raises.
        """
        path = partition(root)
        chance = random.Random(seed)
        config = fastlog.LogConfig(**{**CONFIG, **COMPACTED})
        promise = self.promise(at)
        shown = self.read_first(path, at) if chance.random() < READ_FIRST else None
        with fastlog.PartitionLog.open(path, durability="batch", config=config) as log:
            found = read_kept(log)
            start, end = log.start_offset, log.end_offset
            # what a swap that is finished now replaces may have been there still
            assert shown is None or (shown[:2] == (start, end) and set(found) <= set(shown[2])), differ(
                shown, (start, end, found)
            )
            assert end >= promise.end, f"the log ends at {end}, and {promise.end} was promised: {log.recovery}"
            assert start in promise.starts or start == end < max(promise.starts), f"{start} is not {promise.starts}"
            self.check_kept(at, start, end, found)
            check_report(log.recovery)
            first = chance.randint(start, end)
            some = [offset for batch in log.batches(first) for offset in batch.offsets.tolist()]
            assert some == [offset for offset, _ in found if offset >= first]
            if chance.random() < 0.3:
                check_verified(log)
                self.compact_again(log, found)
            timestamp, key, value, headers = AFTERWARDS
            assert log.append([value], keys=[key], timestamps=timestamp, headers=[headers]) == end
            found = read_kept(log)
            check_times_of(log, found, chance)
            check_verified(log)
        if chance.random() < READ_AGAIN:
            with fastlog.PartitionLog.open(path, read_only=True) as log:
                assert log.recovery is None
                assert read_kept(log) == found
                assert found[-1] == (end, AFTERWARDS)
                check_verified(log)

    def read_first(self, path: Path, at: int) -> tuple[int, int, Kept] | None:
        """What a reader sees before anybody has repaired anything: start, end, records. None: there is no log yet."""
        before = list_files(path)
        shown: tuple[int, int, Kept] | None = None
        with unless_missing(self.promise(at).end), fastlog.PartitionLog.open(path, read_only=True) as log:
            found = read_kept(log)
            shown = (log.start_offset, log.end_offset, found)
            self.check_kept(at, *shown)
            assert not log.verify().damages
        assert list_files(path) == before, "a read-only handle changed the disk"
        return shown

    def compact_again(self, log: Any, found: Kept) -> None:
        """Compaction goes on with what it finds, and keeps the newest of every key."""
        old = newest(found)
        for hours in (0, 3, 6):
            oscalls.set_clock(FAR_AHEAD + hours * 3_600_000)
            try:
                log.maintain()
            finally:
                oscalls.set_clock(None)
        new = newest(read_kept(log))
        assert {key: value for key, value in old.items() if value[1] is not None} == {
            key: value for key, value in new.items() if value[1] is not None
        }
        assert new.items() <= old.items()


def differ(shown: tuple[int, int, Kept] | None, found: tuple[int, int, Kept]) -> str:
    """What a reader saw, and what the next writer sees."""
    assert shown is not None
    only = [
        sorted({offset for offset, _ in one[2]} - {offset for offset, _ in other[2]})
        for one, other in ((shown, found), (found, shown))
    ]
    return f"a reader saw {shown[:2]} with {only[0]}, the next writer {found[:2]} with {only[1]}"


def check_times_of(log: Any, found: Kept, chance: random.Random) -> None:
    """As ``check_times``, with gaps."""
    wanted = SOME_TIME + chance.randint(-1001, 1001)
    first = next((offset for offset, record in found if record[0] >= wanted), None)
    told = log.offset_for_time(wanted)
    assert told == first, f"the first record from {wanted} on has offset {first}, not {told}: {log}"
