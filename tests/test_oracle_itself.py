"""Kafka's classes as an oracle: what they say of a folder whose every batch is known."""

from __future__ import annotations

import random
from dataclasses import replace
from pathlib import Path

import pytest

from tests.foreign import copy_folder, write_foreign_log
from tests.oracle.kafka import AbortedTransaction, KafkaOracle, ProducerBatch
from tests.reference.batch import TRANSACTIONAL, Batch, Record, control_batch, encode_batch, make_batch
from tests.strategies import SOME_TIME


def batch_of(offset: int, count: int, producer_id: int, sequence: int, *, transactional: bool = False) -> Batch:
    records = [Record(at, SOME_TIME + at, b"key", b"value %d" % at) for at in range(offset, offset + count)]
    attributes = TRANSACTIONAL if transactional else 0
    numbers = {"producer_id": producer_id, "producer_epoch": 0, "base_sequence": sequence}
    return replace(make_batch(records), attributes=attributes, **numbers)


def transactions() -> list[Batch]:
    """Producer 1 aborts, producer 2 commits, producer 3 only repeats itself, producer 4 stays open."""
    return [
        batch_of(0, 3, 1, 0, transactional=True),
        batch_of(3, 2, 2, 0, transactional=True),
        *(batch_of(5 + number, 1, 3, number) for number in range(7)),
        batch_of(12, 1, 1, 3, transactional=True),
        control_batch(13, SOME_TIME + 13, commit=False, producer_id=1),
        control_batch(14, SOME_TIME + 14, commit=True, producer_id=2),
        batch_of(15, 4, 4, 0, transactional=True),
    ]


def test_kafka_follows_producers_and_transactions(folder: Path, kafka: KafkaOracle) -> None:
    path = folder / "events-0"
    write_foreign_log(path, transactions())
    seen = kafka.replay(path)
    assert (seen.end_offset, seen.last_stable_offset) == (19, 15)
    assert seen.aborted == (AbortedTransaction(1, 0, 13, 3),), "producer 2 was open from offset 3 when it was aborted"
    first, second, repeated, opened = seen.producers
    assert [state.producer_id for state in seen.producers] == [1, 2, 3, 4]
    assert (first.last_sequence, first.last_offset, first.transaction_start) == (3, 12, None)
    assert (second.coordinator_epoch, repeated.coordinator_epoch) == (0, -1)
    assert [batch.first_sequence for batch in repeated.batches] == [2, 3, 4, 5, 6]
    assert opened.transaction_start == 15
    assert opened.batches == (ProducerBatch(0, 3, 15, 18, SOME_TIME + 18),)

    copy = copy_folder(path, folder / "copy" / "events-0")
    loaded = kafka.load(copy)
    assert (loaded.start_offset, loaded.end_offset, loaded.last_stable_offset) == (0, 19, 15)
    after_a_start = tuple(state.as_in_snapshot() for state in seen.producers)
    assert (loaded.producers, loaded.aborted) == (after_a_start, seen.aborted)
    assert loaded.leader_epochs == ((0, 0),)
    assert [segment["baseOffset"] for segment in loaded.segments] == [0]
    [transaction_index], [snapshot] = copy.glob("*.txnindex"), copy.glob("*.snapshot")
    assert snapshot.stem == f"{19:020}"
    assert kafka.aborted_transactions(transaction_index) == list(seen.aborted)
    assert kafka.load(copy, is_clean=True) == replace(loaded, recovery_point=19)
    a_day_later = kafka.load(copy, is_clean=True, now=SOME_TIME + 86_400_015)
    assert [state.producer_id for state in a_day_later.producers] == [4], "whose transaction is open"
    shown = sorted(kafka.snapshot(snapshot), key=lambda state: state.producer_id)
    assert shown == list(after_a_start)
    files = sorted(copy.glob("0*"))
    assert {file.suffix for file in files} == {".log", ".index", ".timeindex", ".txnindex", ".snapshot"}
    dumped, problems = kafka.check(files)
    assert problems == []
    markers = [record for batches in dumped.values() for batch in batches for record in batch.records if record.marker]
    assert [(record.offset, record.marker, record.coordinator_epoch) for record in markers] == [
        (13, "ABORT", 0),
        (14, "COMMIT", 0),
    ]


def test_kafka_reports_damaged_state_files(folder: Path, kafka: KafkaOracle) -> None:
    path = folder / "events-0"
    write_foreign_log(path, transactions())
    kafka.load(path)
    [index], [snapshot] = path.glob("*.txnindex"), path.glob("*.snapshot")
    content = bytearray(snapshot.read_bytes())
    content[20] ^= 1
    snapshot.write_bytes(content)
    with pytest.raises(ValueError, match="corrupt"):
        kafka.snapshot(snapshot)
    assert kafka.check([snapshot])[1]
    index.write_bytes(b"\x09\0" + index.read_bytes()[2:])
    with pytest.raises(ValueError, match="version"):
        kafka.aborted_transactions(index)
    assert kafka.check([index])[1]


def test_kafka_cuts_what_is_torn_only_without_the_clean_mark(folder: Path, kafka: KafkaOracle, seed: int) -> None:
    chance = random.Random(seed)
    path = folder / "events-0"
    batches = transactions()
    write_foreign_log(path, batches)
    with (path / f"{0:020}.log").open("ab") as file:
        file.write(encode_batch(batch_of(19, 5, 3, 7))[: chance.randrange(20, 100)])
    assert kafka.load(copy_folder(path, folder / "copy" / "events-0")).end_offset == 19


def test_gaps_are_reported_unless_they_may_be(folder: Path, kafka: KafkaOracle) -> None:
    file = write_foreign_log(folder / "events-0", [batch_of(0, 2, 1, 0), batch_of(7, 1, 1, 2)])
    assert kafka.check([file])[1]
    assert kafka.check([file], may_skip=True)[1] == []
