"""Logs to compact: random ones, made of the reference model's batches, in files."""

from __future__ import annotations

import random
import struct
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from fastlog.partition import compaction
from fastlog.reports import CompactionReport
from tests.reference.batch import (
    LOG_APPEND_TIME,
    TRANSACTIONAL,
    Batch,
    Record,
    control_batch,
    decode_log,
    encode_batch,
    make_batch,
)
from tests.reference.compaction import Aborted, Producer, Segment
from tests.reference.indexes import SegmentIndexes
from tests.strategies import SOME_TIME

__all__ = [
    "Writer",
    "aborted_for",
    "check_indexes",
    "compact_folder",
    "producers_for",
    "read_segments",
    "write_segments",
]

INTERVAL = 200
TRANSACTION_ENTRY = struct.Struct(">hqqqq")


@dataclass
class Writer:
    """Writes random batches: plain, idempotent, transactional, of both types of timestamps."""

    chance: random.Random
    keys: int = 6
    codecs: tuple[int, ...] = (0, 0, 0, 1, 2, 3, 4)
    offset: int = 0
    open_since: dict[int, int] = field(default_factory=dict)
    sequences: dict[int, int] = field(default_factory=dict)
    aborted: list[Aborted] = field(default_factory=list)

    def record(self, offset: int) -> Record:
        chance = self.chance
        key = None if chance.random() < 0.05 else b"key-%d" % chance.randrange(self.keys)
        if key is not None and chance.random() < 0.1:
            key = key * 30
        value = None if chance.random() < 0.2 else chance.randbytes(chance.choice([0, 1, 5, 40, 200]))
        headers = ((chance.choice(["a", "trace"]), chance.choice([None, b"", b"xyz"])),) * chance.choice([0, 0, 0, 2])
        moment = SOME_TIME + chance.choice([offset, -offset, chance.randint(-(10**6), 10**6)])
        return Record(offset, moment, key, value, headers)

    def data(self, producer_id: int = -1, *, transactional: bool = False) -> Batch:
        count = self.chance.choice([1, 1, 2, 3, 8, 40])
        batch = make_batch(
            [self.record(self.offset + i) for i in range(count)], leader_epoch=self.chance.choice([0, 3])
        )
        if producer_id >= 0:
            sequence = self.sequences.get(producer_id, 0)
            self.sequences[producer_id] = sequence + count
            batch = replace(batch, producer_id=producer_id, producer_epoch=1, base_sequence=sequence)
        if transactional:
            self.open_since.setdefault(producer_id, batch.base_offset)
            batch = replace(batch, attributes=batch.attributes | TRANSACTIONAL)
        if self.chance.random() < 0.1:
            records = tuple(replace(record, timestamp=batch.max_timestamp) for record in batch.records)
            batch = replace(batch, attributes=batch.attributes | LOG_APPEND_TIME, records=records)
        batch = replace(batch, attributes=batch.attributes | self.chance.choice(self.codecs))
        self.offset += count
        return batch

    def marker(self, producer_id: int) -> Batch:
        first = self.open_since.pop(producer_id, None)
        commit = first is None or self.chance.random() < 0.5
        if first is not None and not commit:
            self.aborted.append(Aborted(producer_id, first, self.offset))
        batch = control_batch(
            self.offset, SOME_TIME + self.offset, commit=commit, producer_id=producer_id, producer_epoch=1
        )
        self.offset += 1
        return batch

    def batches(self, count: int) -> list[Batch]:
        """So many, each behind the other; every transaction has ended with the last."""
        found = []
        for _ in range(count):
            kind = self.chance.random()
            if kind < 0.55:
                found.append(self.data())
            elif kind < 0.65:
                found.append(self.data(self.chance.choice([20, 21])))
            elif kind < 0.85:
                found.append(self.data(self.chance.choice([7, 8, 9]), transactional=True))
            else:
                found.append(self.marker(self.chance.choice([*self.open_since, 7])))
            if self.chance.random() < 0.05:
                self.offset += self.chance.randrange(5)  # a gap, as an earlier compaction leaves it
        found += [self.marker(producer_id) for producer_id in list(self.open_since)]
        return found

    def segments(self, count: int) -> list[Segment]:
        """The next segments of the log."""
        found = []
        for _ in range(count):
            base = self.offset
            found.append(Segment(base, tuple(self.batches(self.chance.choice([0, 1, 3, 10])))))
            if not found[-1].batches:
                self.offset += 1  # two segments cannot have one name
        return found


def encode_aborted(transaction: Aborted) -> bytes:
    return TRANSACTION_ENTRY.pack(
        0, transaction.producer_id, transaction.first_offset, transaction.last_offset, transaction.last_offset + 1
    )


def aborted_for(found: Sequence[Aborted]) -> list[compaction.AbortedTransaction]:
    """Aborted transactions as the engine takes them."""
    ordered = sorted(found, key=lambda transaction: transaction.first_offset)
    return [(item.producer_id, item.first_offset, item.last_offset, encode_aborted(item)) for item in ordered]


def producers_for(found: Sequence[Producer]) -> list[compaction.ActiveProducer]:
    """Active producers as the engine takes them."""
    return [
        (item.producer_id, item.epoch, -1 if item.last_data_offset is None else item.last_data_offset) for item in found
    ]


def write_segments(folder: Path, segments: Sequence[Segment]) -> None:
    """Write the ``.log`` files of closed segments."""
    for segment in segments:
        path = folder / f"{segment.base_offset:020}.log"
        path.write_bytes(b"".join(map(encode_batch, segment.batches)))


def read_segments(folder: Path) -> list[Segment]:
    """What is there, by the names in the folder."""
    return [
        Segment(int(path.stem), tuple(batch for _, batch in decode_log(path.read_bytes())))
        for path in sorted(folder.glob("*.log"))
    ]


def sources_of(folder: Path) -> list[compaction.Source]:
    """The segments of a folder as compaction takes them."""
    found = []
    for path in sorted(folder.glob("*.log")):
        batches = [batch for _, batch in decode_log(path.read_bytes())]
        largest = max((batch.max_timestamp for batch in batches), default=-1)
        first = batches[0].max_timestamp if batches else -1
        found.append(compaction.Source(int(path.stem), path.stat().st_size, largest, first))
    return found


def compact_folder(
    folder: Path,
    *,
    upper_bound: int,
    now: int,
    first_dirty: int = 0,
    horizon: int = 0,
    segment_bytes: int = 1 << 20,
    aborted: Sequence[Aborted] = (),
    producers: Sequence[Producer] = (),
    memory: int = 1 << 20,
    reach: compaction.Reach = compaction.nothing,
) -> CompactionReport:
    """One round over every segment of a folder."""

    def swap_in(replacement: compaction.Replacement) -> bool:
        compaction.swap(replacement, lambda: None, reach)
        return True

    return compaction.compact(
        str(folder),
        sources_of(folder),
        compaction.Dirt(first_dirty, upper_bound, 0, 1, True),
        swap_in,
        segment_bytes=segment_bytes,
        index_bytes=1 << 20,
        interval=INTERVAL,
        now=now,
        horizon=horizon,
        aborted=aborted_for(aborted),
        producers=producers_for(producers),
        memory=memory,
        reach=reach,
    )


def check_indexes(folder: Path, segment: Segment, aborted: Sequence[Aborted]) -> None:
    """The indexes beside a segment are those that the reference model makes."""
    expected = SegmentIndexes(segment.base_offset, INTERVAL, 1 << 20)
    stem = folder / f"{segment.base_offset:020}"
    content = stem.with_suffix(".log").read_bytes()
    found = decode_log(content)
    ends = [*(position for position, _ in found[1:]), len(content)]
    for (position, batch), end in zip(found, ends, strict=True):
        expected.add(batch, position, end - position)
    expected.add_time_entry()
    assert stem.with_suffix(".index").read_bytes() == expected.index_file
    assert stem.with_suffix(".timeindex").read_bytes() == expected.time_index_file
    entries = b"".join(map(encode_aborted, aborted))
    transactions = stem.with_suffix(".txnindex")
    assert (transactions.read_bytes() if transactions.exists() else b"") == entries
