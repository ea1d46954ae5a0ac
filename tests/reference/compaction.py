"""Compaction, record by record, as Kafka describes and does it.

A log is a list of segments, a segment a base offset and its batches. ``compact`` is one round. It is slow and plain:
the map is a dictionary over everything at once, and bytes do not occur.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from tests.reference.batch import CODEC_MASK, CONTROL, DELETE_HORIZON, LOG_APPEND_TIME, TRANSACTIONAL, Batch, Record

__all__ = ["Aborted", "Producer", "Round", "Segment", "compact"]


@dataclass(frozen=True)
class Segment:
    """A closed segment."""

    base_offset: int
    batches: tuple[Batch, ...]


@dataclass(frozen=True)
class Aborted:
    """A transaction that was taken back: its first offset, and that of its marker."""

    producer_id: int
    first_offset: int
    last_offset: int


@dataclass(frozen=True)
class Producer:
    """A producer that is still active; ``last_data_offset`` is None when it has written nothing but a marker."""

    producer_id: int
    epoch: int
    last_data_offset: int | None


@dataclass
class Round:
    """What a round left: the new segments, and the aborted transactions of each."""

    cleaned_offset: int
    latest: dict[bytes, int]
    groups: list[Segment] = field(default_factory=list)
    aborted: list[list[Aborted]] = field(default_factory=list)


@dataclass
class Transactions:
    """Follows the batches of a log in order, and says which belong to transactions that were taken back."""

    aborted: Sequence[Aborted]
    seen: set[Aborted] = field(default_factory=set)
    committed: set[int] = field(default_factory=set)

    def of(self, batch: Batch) -> Aborted | None:
        """The aborted transaction that is open for the batch's producer at its offset."""
        for transaction in self.aborted:
            if (
                transaction.producer_id == batch.producer_id
                and transaction.first_offset <= batch.last_offset
                and batch.base_offset <= transaction.last_offset
            ):
                return transaction
        return None

    def is_taken_back(self, batch: Batch) -> bool:
        if not batch.attributes & TRANSACTIONAL:
            return False
        transaction = self.of(batch)
        if transaction is None:
            self.committed.add(batch.producer_id)
            return False
        self.seen.add(transaction)
        return True

    def end(self, batch: Batch) -> tuple[bool, Aborted | None]:
        """At a control batch: whether nothing of its transaction came by, and the aborted one that it ends."""
        if not batch.records:
            return True, None
        kind = struct.unpack_from(">hh", batch.records[0].key or b"")[1]
        if kind == 0:
            transaction = self.of(batch)
            if transaction is not None and transaction in self.seen:
                return False, transaction
            return True, None
        if kind == 1:
            was_there = batch.producer_id in self.committed
            self.committed.discard(batch.producer_id)
            return not was_there, None
        return False, None


def latest_offsets(
    segments: Sequence[Segment], aborted: Sequence[Aborted], first_dirty: int, upper_bound: int, most_keys: int | None
) -> tuple[dict[bytes, int], int]:
    """The offset map, and the last offset that it covers."""
    transactions = Transactions(aborted)
    latest: dict[bytes, int] = {}
    for segment in segments:
        for batch in segment.batches:
            if batch.last_offset < first_dirty or batch.attributes & CONTROL or transactions.is_taken_back(batch):
                continue
            for record in batch.records:
                if record.key is None or record.offset < first_dirty:
                    continue
                if most_keys is not None and record.key not in latest and len(latest) == most_keys:
                    return latest, record.offset - 1
                latest[record.key] = record.offset
    return latest, upper_bound - 1


def is_remembered(batch: Batch, producers: Sequence[Producer]) -> bool:
    for producer in producers:
        if producer.producer_id == batch.producer_id:
            if producer.last_data_offset is not None:
                return batch.last_offset == producer.last_data_offset
            return bool(batch.attributes & CONTROL) and batch.producer_epoch == producer.epoch
    return False


def emptied(batch: Batch) -> Batch:
    kept = batch.attributes & (LOG_APPEND_TIME | TRANSACTIONAL | CONTROL)
    return replace(batch, attributes=kept, base_timestamp=-1, records=())


def rebuilt(batch: Batch, records: Sequence[Record], horizon: int | None) -> Batch:
    attributes = batch.attributes
    base_timestamp = records[0].timestamp
    if attributes & DELETE_HORIZON:
        base_timestamp = batch.base_timestamp
    elif horizon is not None:
        attributes |= DELETE_HORIZON
        base_timestamp = horizon
    largest = max(record.timestamp for record in records)
    if attributes & LOG_APPEND_TIME:
        largest = batch.max_timestamp
    return replace(
        batch, attributes=attributes, base_timestamp=base_timestamp, max_timestamp=largest, records=tuple(records)
    )


def compact(
    segments: Sequence[Segment],
    *,
    first_dirty: int,
    upper_bound: int,
    now: int,
    horizon: int,
    groups: Sequence[Sequence[int]],
    aborted: Sequence[Aborted] = (),
    producers: Sequence[Producer] = (),
    most_keys: int | None = None,
) -> Round:
    """One round over ``segments``; ``groups`` are lists of base offsets that become one segment each."""
    by_base = {segment.base_offset: segment for segment in segments}
    latest, covered = latest_offsets(segments, aborted, first_dirty, upper_bound, most_keys)
    result = Round(covered + 1, latest)
    transactions = Transactions(aborted)
    for bases in groups:
        batches = [batch for base in bases for batch in by_base[base].batches]
        kept: list[Batch] = []
        ended: list[Aborted] = []
        for batch in batches:
            past_horizon = bool(batch.attributes & DELETE_HORIZON) and batch.base_timestamp <= now
            if batch.attributes & CONTROL:
                is_over, transaction = transactions.end(batch)
                ended += [transaction] if transaction is not None else []
                records = () if is_over and past_horizon else batch.records
                needs_horizon = is_over and bool(records)
            elif transactions.is_taken_back(batch):
                records, needs_horizon = (), False
            else:
                records = tuple(
                    record
                    for record in batch.records
                    if record.offset > covered
                    or (
                        record.key is not None
                        and record.offset >= latest.get(record.key, -1)
                        and not (record.value is None and past_horizon)
                    )
                )
                needs_horizon = any(record.value is None for record in records)
            needs_horizon = needs_horizon and not batch.attributes & DELETE_HORIZON
            if not records:
                # the last batch of a group is kept by a rule of our own: the file then tells how far the group reached
                if batch is batches[-1] or batch.last_offset + 1 == upper_bound or is_remembered(batch, producers):
                    kept.append(emptied(batch))
            elif len(records) == len(batch.records) and not needs_horizon:
                kept.append(batch)
            else:
                kept.append(rebuilt(batch, records, horizon if needs_horizon else None))
            assert not kept or not kept[-1].attributes & CODEC_MASK or kept[-1].records
        result.groups.append(Segment(bases[0], tuple(kept)))
        result.aborted.append(ended)
    return result
