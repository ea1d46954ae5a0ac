"""Producers of a partition, slowly: what is known of each one is read out of the list of all batches, every time.

Nothing is kept but the log itself. Whether a batch may be appended, what its producer's last batches are, which
transactions are open, what was aborted: each question walks the log from its beginning. Also the two files that Kafka
makes of the answers: ``.snapshot`` and ``.txnindex``.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

import crc32c

from tests.reference.batch import CONTROL, TRANSACTIONAL, Batch, Record, make_batch

__all__ = [
    "COORDINATOR_FENCED", "DUPLICATE", "FENCED", "INVALID_STATE", "OUT_OF_ORDER", "Known", "Producers", "data_batch",
    "marker", "pack_snapshot", "pack_transactions", "parse_snapshot", "sequence_after",
]  # fmt: skip

OUT_OF_ORDER, FENCED, INVALID_STATE, COORDINATOR_FENCED = 45, 47, 48, 52  # Kafka's error codes
DUPLICATE = "duplicate"
SEQUENCES = 2**31

SNAPSHOT_HEAD = struct.Struct(">hIi")
SNAPSHOT_PRODUCER = struct.Struct(">qhiqiqiq")
TRANSACTION = struct.Struct(">hqqqq")


def sequence_after(sequence: int, steps: int) -> int:
    """``steps`` further on: after 2147483647 comes 0."""
    return (sequence + steps) % SEQUENCES


@dataclass(frozen=True)
class Known:
    """What the log tells of one producer; ``batches`` are its last five of this epoch, oldest first."""

    epoch: int
    coordinator_epoch: int
    transaction_start: int
    last_timestamp: int
    batches: tuple[Batch, ...]

    @property
    def next_sequence(self) -> int:
        """The first sequence number expected next."""
        if not self.batches:
            return 0
        last = self.batches[-1]
        return sequence_after(last.base_sequence, last.last_offset - last.base_offset + 1)


def data_batch(
    offset: int, count: int, producer_id: int, epoch: int, sequence: int, *, transactional: bool, timestamp: int = 1000
) -> Batch:
    """A client's batch of ``count`` records."""
    batch = make_batch([Record(offset + i, timestamp + i, None, b"%d" % i) for i in range(count)])
    return replace(
        batch,
        attributes=TRANSACTIONAL if transactional else 0,
        producer_id=producer_id,
        producer_epoch=epoch,
        base_sequence=sequence,
    )


def marker(
    offset: int, producer_id: int, epoch: int, coordinator_epoch: int, *, commit: bool, timestamp: int = 1000
) -> Batch:
    """The control batch that ends a transaction."""
    key = struct.pack(">hh", 0, 1 if commit else 0)
    batch = make_batch([Record(offset, timestamp, key, struct.pack(">hi", 0, coordinator_epoch))])
    return replace(
        batch, attributes=TRANSACTIONAL | CONTROL, producer_id=producer_id, producer_epoch=epoch, base_sequence=-1
    )


def end_of_transaction(batch: Batch) -> tuple[bool, int] | None:
    """(is commit, coordinator epoch) when the batch is a marker."""
    if not batch.attributes & CONTROL or not batch.records:
        return None
    key, value = batch.records[0].key, batch.records[0].value
    assert key is not None
    assert value is not None
    kind = struct.unpack(">hh", key[:4])[1]
    if kind not in (0, 1):
        return None
    return kind == 1, struct.unpack(">hi", value[:6])[1]


class Producers:
    """The log of one partition, as a list of batches with offsets."""

    def __init__(self, batches: Iterable[Batch] = (), forgotten: Iterable[int] = ()) -> None:
        self.batches = list(batches)
        # how many batches there were when a producer was last forgotten
        self.forgotten = dict.fromkeys(forgotten, 0)

    @property
    def end_offset(self) -> int:
        """Where the next batch goes."""
        return self.batches[-1].last_offset + 1 if self.batches else 0

    def known(self, producer_id: int) -> Known | None:
        """What the log tells of a producer; None when nothing."""
        found: Known | None = None
        for batch in self.batches[self.forgotten.get(producer_id, 0) :]:
            if batch.producer_id != producer_id:
                continue
            ended = end_of_transaction(batch)
            if batch.attributes & CONTROL and ended is None:
                continue
            known = found or Known(-1, -1, -1, -1, ())
            kept = known.batches if known.epoch == batch.producer_epoch else ()
            known = replace(known, epoch=batch.producer_epoch, last_timestamp=batch.max_timestamp, batches=kept)
            if ended is not None:
                found = replace(known, coordinator_epoch=ended[1], transaction_start=-1)
                continue
            if batch.attributes & TRANSACTIONAL and known.transaction_start < 0:
                known = replace(known, transaction_start=batch.base_offset)
            found = replace(known, batches=(*kept, batch)[-5:])
        return found

    def producer_ids(self) -> list[int]:
        """All producers of which something is known."""
        ids = dict.fromkeys(batch.producer_id for batch in self.batches if batch.producer_id >= 0)
        return [producer_id for producer_id in ids if self.known(producer_id)]

    def judge(self, batch: Batch) -> int | tuple[str, int] | None:
        """None: append it. A Kafka error code. Or ``(DUPLICATE, base offset of the first time)``."""
        known = self.known(batch.producer_id) if batch.producer_id >= 0 else None
        ended = end_of_transaction(batch)
        if known is None or (batch.attributes & CONTROL and ended is None):
            return None
        if ended is not None:
            if batch.producer_epoch < known.epoch:
                return FENCED
            return COORDINATOR_FENCED if ended[1] < known.coordinator_epoch else None
        if batch.producer_epoch == known.epoch:
            span = batch.last_offset - batch.base_offset
            for earlier in known.batches:
                if earlier.base_sequence == batch.base_sequence and earlier.last_offset - earlier.base_offset == span:
                    return (DUPLICATE, earlier.base_offset)
        if batch.producer_epoch < known.epoch:
            return FENCED
        expected = known.next_sequence if batch.producer_epoch == known.epoch else 0
        if batch.base_sequence != expected:
            return OUT_OF_ORDER
        if known.transaction_start >= 0 and not batch.attributes & TRANSACTIONAL:
            return INVALID_STATE
        return None

    def judge_all(self, batches: Sequence[Batch]) -> int | tuple[str, int] | None:
        """The same for several batches of one append: all are appended, or none."""
        trial = Producers(self.batches)
        trial.forgotten = dict(self.forgotten)
        answers = []
        for batch in batches:
            answer = trial.judge(batch)
            if isinstance(answer, int):
                return answer
            answers.append(answer)
            if answer is None:
                trial.batches.append(batch)
            elif None in answers:
                return OUT_OF_ORDER
        return answers[0] if answers and None not in answers else OUT_OF_ORDER if any(answers) else None

    def open_transactions(self) -> list[tuple[int, int]]:
        """(first offset, producer id) of each open transaction, rising."""
        found = []
        for producer_id in self.producer_ids():
            known = self.known(producer_id)
            if known is not None and known.transaction_start >= 0:
                found.append((known.transaction_start, producer_id))
        return sorted(found)

    def last_stable_offset(self) -> int:
        """Up to here every transaction is decided."""
        return min([self.end_offset, *(start for start, _ in self.open_transactions())])

    def aborted(self) -> list[tuple[int, int, int, int]]:
        """(producer id, first offset, last offset, last stable offset after it) of each aborted transaction."""
        found = []
        for count, batch in enumerate(self.batches):
            ended = end_of_transaction(batch)
            if ended is None or ended[0]:
                continue
            before = Producers(self.batches[:count])
            before.forgotten = self.forgotten
            known = before.known(batch.producer_id)
            if known is not None and known.transaction_start >= 0:
                after = Producers(self.batches[: count + 1])
                after.forgotten = self.forgotten
                found.append(
                    (batch.producer_id, known.transaction_start, batch.base_offset, after.last_stable_offset())
                )
        return found

    def expire(self, now: int, idle_ms: int) -> int:
        """Forget producers without an open transaction whose last batch is so old."""
        idle = [
            producer_id
            for producer_id in self.producer_ids()
            if (known := self.known(producer_id))
            and known.transaction_start < 0
            and now - known.last_timestamp >= idle_ms
        ]
        self.forgotten.update(dict.fromkeys(idle, len(self.batches)))
        return len(idle)

    def committed_records(self) -> list[Record]:
        """What a reader of committed records gets up to the last stable offset."""
        aborted = self.aborted()
        return [
            record
            for batch in self.batches
            if batch.last_offset < self.last_stable_offset()
            and not (
                batch.attributes & TRANSACTIONAL
                and any(
                    pid == batch.producer_id and first <= batch.base_offset <= last for pid, first, last, _ in aborted
                )
            )
            for record in batch.visible_records
        ]

    def snapshot(self) -> bytes:
        """The ``.snapshot`` file at the end offset; producers in the order of their ids."""
        return pack_snapshot({producer_id: self.known(producer_id) for producer_id in self.producer_ids()})


def pack_snapshot(producers: dict[int, Known | None]) -> bytes:
    """The bytes of a ``.snapshot`` file, by producer id."""
    body = b""
    for producer_id, known in sorted(producers.items()):
        assert known is not None
        sequence, last_offset, delta = -1, -1, 0
        if known.batches:
            last = known.batches[-1]
            delta = last.last_offset - last.base_offset
            sequence, last_offset = sequence_after(last.base_sequence, delta), last.last_offset
        body += SNAPSHOT_PRODUCER.pack(
            producer_id, known.epoch, sequence, last_offset, delta, known.last_timestamp, known.coordinator_epoch,
            known.transaction_start,
        )  # fmt: skip
    return seal_snapshot(len(producers), body)


def seal_snapshot(count: int, body: bytes) -> bytes:
    """A head with the right checksum in front of the producers."""
    crc = crc32c.crc32c(struct.pack(">i", count) + body)
    return SNAPSHOT_HEAD.pack(1, crc, count) + body


def parse_snapshot(content: bytes) -> list[tuple[int, ...]]:
    """The producers of a ``.snapshot`` file, by id; raises ValueError when it is none."""
    version, crc, count = SNAPSHOT_HEAD.unpack_from(content)
    producers = list(SNAPSHOT_PRODUCER.iter_unpack(content[SNAPSHOT_HEAD.size :]))
    if version != 1 or crc != crc32c.crc32c(content[6:]) or count != len(producers):
        raise ValueError("no snapshot")
    return sorted(producers)


def pack_transactions(entries: Iterable[tuple[int, int, int, int]]) -> bytes:
    """The bytes of a ``.txnindex`` file."""
    return b"".join(TRANSACTION.pack(0, *entry) for entry in entries)
