"""What a log of producers has to hold after power loss: outcomes of transactions, and what each appended last."""

from __future__ import annotations

import dataclasses
import os
import random
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import fastlog
from tests.crash.checker import (
    READ_AGAIN,
    READ_FIRST,
    History,
    check_report,
    check_verified,
    list_files,
    partition,
    unless_missing,
)
from tests.crash.keyed import Kept, read_kept
from tests.crash.workloads import CONFIG, Operation, Stored, in_processes, make_records

DIES = 0.1  # share of disks that somebody goes on with who does not close


@dataclass(slots=True)
class Expected:
    """What the operations below an end say."""

    end: int = 0
    visible: Kept = field(default_factory=list)  # what a reader of everything gets
    aborted: set[int] = field(default_factory=set)  # offsets
    pending: dict[int, list[int]] = field(default_factory=dict)  # producer -> offsets in its open transaction
    last: dict[int, tuple[int, Operation, list[Stored]]] = field(default_factory=dict)  # the last batch of a producer

    @property
    def stable(self) -> int:
        """The last stable offset."""
        return min([self.end, *(offsets[0] for offsets in self.pending.values())])

    @property
    def committed(self) -> Kept:
        """What a reader of committed records gets."""
        stable = self.stable
        return [(offset, it) for offset, it in self.visible if offset < stable and offset not in self.aborted]

    def apply(self, base: int, operation: Operation, records: list[Stored]) -> None:
        """The next operation."""
        producer = operation.producer
        if operation.is_end:
            self.end = base + 1
            offsets = self.pending.pop(producer, [])
            if operation.kind == "abort":
                self.aborted.update(offsets)
            return
        self.end = base + len(records)
        self.visible += enumerate(records, base)
        if producer >= 0:
            self.last[producer] = (base, operation, records)
        if operation.kind == "transactional":
            self.pending.setdefault(producer, []).extend(range(base, self.end))


class ProducedHistory(History):
    """The marks of a record of what producers did, one after another."""

    def __post_init__(self) -> None:
        self.operations: dict[tuple[int, int], Operation] = {}
        self.records: dict[tuple[int, int], list[Stored]] = {}
        self.bases: dict[int, tuple[int, int]] = {}
        for _, facts in self.recorded.marks():
            if facts["what"] == "operate":
                names = ("kind", "producer", "epoch", "sequence")
                operation = Operation(*(facts[name] for name in names))
                self.operations[facts["writer"], facts["number"]] = operation
                records = make_records(self.seed, facts["writer"], facts["number"])
                self.records[facts["writer"], facts["number"]] = records[:1] if operation.is_end else records
            elif facts["what"] == "ack":
                self.bases[facts["base"]] = (facts["writer"], facts["number"])
        if self.operations and (last := next(reversed(self.operations))) not in self.bases.values():
            # its producer was killed in it: if it is there, then behind everything else
            self.bases[max((base + len(self.records[one]) for base, one in self.bases.items()), default=0)] = last
        super().__post_init__()

    def records_of(self, append: tuple[int, int]) -> list[Stored]:
        """What an operation has stored; the marker of a transaction stands for one record."""
        return self.records[append]

    def expected(self, at: int, end: int) -> Expected:
        """What a log that ends at ``end`` has to say."""
        expected = Expected()
        tries = self.promise(at).tries
        for base, append in sorted(self.bases.items()):
            if base >= end:
                break
            assert base == expected.end, "the record has a hole"
            assert self.tries[append] < tries, f"offset {base}: {self.operations[append]} is of the future"
            expected.apply(base, self.operations[append], self.records_of(append))
        return expected

    def check(self, root: Path, at: int, seed: int) -> None:
        """Open the log on a disk; let its producers repeat what they did last, end their transactions, go on.

        Raises AssertionError, or what fastlog raises.
        """
        path = partition(root)
        chance = random.Random(seed)
        config = fastlog.LogConfig(**{**CONFIG, "segment_bytes": 6_000})
        promise = self.promise(at)
        isolation = ["read_uncommitted", "read_committed"][seed % 2]
        shown: int | None = None
        if chance.random() < READ_FIRST:
            before = list_files(path)
            with unless_missing(promise.end):
                shown = self.check_view(path, at, promise.end, isolation)
            assert list_files(path) == before, "a read-only handle changed the disk"
        with fastlog.PartitionLog.open(path, durability="os", config=config) as log:
            assert shown in (None, log.end_offset), "a reader saw something else than the next writer"
            expected = self.expected(at, log.end_offset)
            check_view(log, expected)
            assert expected.end >= promise.end, f"the log ends at {expected.end}, and {promise.end} was promised"
            check_report(log.recovery)
            check_verified(log)
            for base, operation, records in expected.last.values():
                assert operation.perform(log, records) == base, f"{operation} at {base} is not known any more"
            assert log.end_offset == expected.end, "a retry was appended"
            following = plan(expected, chance)
            dies = chance.random() < DIES
            if not dies:
                go_on(log, following, expected.end)
        if dies:
            # the snapshot of a clean close would hide what older ones say
            in_processes([lambda: go_on_and_die(path, following, expected.end)])
        for operation, records in following:
            expected.apply(expected.end, operation, records)
        if dies:
            with fastlog.PartitionLog.open(path, durability="os", config=config) as log:
                check_view(log, expected)
                for base, operation, records in expected.last.values():
                    assert operation.perform(log, records) == base, f"{operation} at {base} is forgotten after death"
                assert log.end_offset == expected.end, "a retry was appended"
        if not dies and chance.random() >= READ_AGAIN:
            return
        with fastlog.PartitionLog.open(path, read_only=True, isolation=isolation) as log:
            assert log.recovery is None
            check_view(log, expected)
            check_verified(log)

    def check_view(self, path: Path, at: int, promised: int, isolation: str) -> int:
        """What a reader sees; where the log ends."""
        with fastlog.PartitionLog.open(path, read_only=True, isolation=isolation) as log:
            end = int(log.end_offset)
            assert end >= promised, f"the log ends at {end}, and {promised} was promised"
            check_view(log, self.expected(at, end))
            assert not log.verify().damages
        return end


def plan(expected: Expected, chance: random.Random) -> list[tuple[Operation, list[Stored]]]:
    """Open transactions end, and every producer has a next batch."""
    found: list[tuple[Operation, list[Stored]]] = []
    is_open = set(expected.pending)
    for producer in sorted(is_open):
        if chance.random() < 0.7:
            kind = chance.choice(["commit", "abort"])
            found.append((Operation(kind, producer, expected.last[producer][1].epoch), []))
            is_open.remove(producer)
    for producer, (_, last, records) in sorted(expected.last.items()):
        kind = "transactional" if producer in is_open else last.kind
        found.append((Operation(kind, producer, last.epoch, last.sequence + len(records)), records))
    chance.shuffle(found)
    return found


def go_on(log: Any, following: list[tuple[Operation, list[Stored]]], end: int) -> None:
    """Append what was planned, and nothing that skips a sequence number."""
    for operation, records in following:
        if operation.repeats:
            skipping = dataclasses.replace(operation, sequence=operation.sequence + 1)
            try:
                skipping.perform(log, records)
            except fastlog.OutOfOrderSequenceError:
                pass
            else:
                raise AssertionError(f"{skipping} skips a sequence number and was appended")
        assert operation.perform(log, records) == end, operation
        end += 1 if operation.is_end else len(records)


def go_on_and_die(path: Path, following: list[tuple[Operation, list[Stored]]], end: int) -> None:
    """The same in a process that does not close the log."""
    log = fastlog.PartitionLog.open(path, durability="os")
    go_on(log, following, end)
    os._exit(0)


def check_view(log: Any, expected: Expected) -> None:
    """What a handle reads, and up to where."""
    assert log.end_offset == expected.end, f"an append is there in part: {log}"
    assert log.last_stable_offset == expected.stable, f"{log.last_stable_offset}, expected {expected.stable}: {log}"
    found = read_kept(log)
    wanted = expected.committed if log.isolation == "read_committed" else expected.visible
    assert found == wanted, f"{log}: {first_difference(found, wanted)}"


def first_difference(found: Kept, wanted: Kept) -> str:
    """Where two lists part."""
    for one, other in zip(found, wanted, strict=False):
        if one != other:
            return f"found {one}, expected {other}"
    return f"found {len(found)} records, expected {len(wanted)}"
