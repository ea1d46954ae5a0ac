"""Kafka 4.1 itself as the oracle of producer state: the same batches are offered to its classes and to fastlog's.

``ProducerOracle.java`` asks ``ProducerStateManager`` as a leader does, and lets it write the snapshot and the
transaction index that fastlog's have to equal.
"""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest

from fastlog._native.producers import ProducerStates
from fastlog._native.transactions import TransactionIndex, unpack_entries
from fastlog.partition import snapshots
from tests.oracle.kafka import KafkaOracle
from tests.reference import producers as model
from tests.reference.batch import Batch, encode_batch
from tests.reference.producers import Producers, data_batch, marker
from tests.test_producers import MOST, RULES, answer_of, data, encoded, plain, random_log, run, same_as_model

INDEX = "00000000000000000000.txnindex"


def ask_kafka(kafka: KafkaOracle, folder: Path, batches: list[Batch], end: int = 0) -> list[Any]:
    """Kafka's answers to the batches, in the form that ``answer_of`` gives; a place in the list for each."""
    (folder / "batches").write_bytes(encoded(batches))
    # Kafka forgets the snapshots at or below the start of the log: it starts before everything
    output, errors = kafka.ask("producers", str(folder / "batches"), str(folder), "-1", str(end))
    assert not errors
    answers: list[Any] = []
    for line in output.splitlines():
        kind, number = line.split()
        answers.append({"ok": None, "duplicate": (model.DUPLICATE, int(number)), "refused": int(number)}[kind])
    return answers


def offered(chance: random.Random, log: Producers) -> Batch:
    """A batch, right or wrong, that somebody might send now."""
    pid, end = chance.randrange(4), log.end_offset
    known = log.known(pid)
    kind = chance.random()
    epoch = (known.epoch if known else 0) + chance.choice([0] * 12 + [1, 1, -1])
    epoch = max(epoch, 0)
    if kind < 0.05:
        return plain(end, chance.randint(1, 3))
    if kind < 0.25:
        coordinator = max(0, (known.coordinator_epoch if known else 0) + chance.choice([0, 0, 0, 1, -1]))
        return marker(end, pid, epoch, coordinator, commit=chance.random() < 0.5, timestamp=1000 + end)
    count = chance.randint(1, 4)
    sequence = known.next_sequence if known and epoch == known.epoch else 0
    if known is None:
        sequence = chance.choice([0, 7, MOST - 2, MOST])
    elif kind < 0.4 and known.batches:
        earlier = chance.choice(known.batches)
        count = earlier.last_offset - earlier.base_offset + chance.choice([1, 1, 1, 2])
        sequence = earlier.base_sequence
    elif kind < 0.5:
        sequence = model.sequence_after(sequence, chance.choice([1, 2, 5, MOST, MOST - 4]))
    transactional = chance.random() < 0.5
    if known is not None and known.transaction_start >= 0 and chance.random() < 0.85:
        transactional = True
    return data_batch(end, count, pid, epoch, sequence, transactional=transactional, timestamp=1000 + end)


@pytest.mark.parametrize("_round", range(20))
def test_kafka_judges_as_fastlog_does(folder: Path, kafka: KafkaOracle, seed: int, _round: int) -> None:
    chance = random.Random(f"{seed} {_round}")
    log, states = Producers(), ProducerStates()
    batches: list[Batch] = []
    answers: list[Any] = []
    for _ in range(150):
        batches.append(offered(chance, log))
        answers.append(answer_of(states, batches[-1:]))
        assert log.judge(batches[-1]) == answers[-1]
        if answers[-1] is None:
            states.append(encode_batch(batches[-1]))
            log.batches.append(batches[-1])
    assert ask_kafka(kafka, folder, batches) == answers
    assert len({str(answer)[:5] for answer in answers}) >= 4, "the batches were too well-behaved to tell anything"
    same_as_model(states, log)
    snapshot = Path(snapshots.snapshot_path(str(folder), states.end_offset))
    assert model.parse_snapshot(snapshot.read_bytes()) == model.parse_snapshot(states.snapshot())
    aborted = states.take_aborted()
    assert unpack_entries(aborted) == log.aborted()
    assert ((folder / INDEX).read_bytes() if aborted else b"") == aborted
    # Kafka goes on from what fastlog writes, fastlog from what Kafka wrote
    theirs = ProducerStates()
    assert theirs.load(snapshot.read_bytes(), states.end_offset) is None
    snapshots.write_snapshot(str(folder), states)
    more: list[Batch] = []
    answers = []
    for _ in range(60):
        more.append(offered(chance, log))
        answers.append(answer_of(theirs, more[-1:]))
        if answers[-1] is None:
            theirs.append(encode_batch(more[-1]))
            log.batches.append(more[-1])
    assert ask_kafka(kafka, folder, more, states.end_offset) == answers
    same_as_model(theirs, log, whole=False)


@pytest.mark.parametrize("name", [name for name, (_, batches, _) in RULES.items() if len(batches) == 1])
def test_kafka_has_each_rule(folder: Path, kafka: KafkaOracle, name: str) -> None:
    before, batches, expected = RULES[name]
    assert ask_kafka(kafka, folder, [*before, *batches]) == [None] * len(before) + [expected]


@pytest.mark.parametrize("_round", range(5))
def test_I12_kafkas_tool_accepts_snapshots_and_transaction_indexes(
    folder: Path, kafka: KafkaOracle, seed: int, _round: int
) -> None:
    log = Producers(random_log(random.Random(f"{seed} {_round}"), 80))
    states = run(log.batches)
    path = snapshots.write_snapshot(str(folder), states)
    output, problems = kafka.dump([path])
    assert problems == []
    assert output.count("producerId: ") == len(log.producer_ids())
    for pid in log.producer_ids():
        known = log.known(pid)
        assert known is not None
        start = f"OptionalLong[{known.transaction_start}]" if known.transaction_start >= 0 else "OptionalLong.empty"
        shown = f"producerId: {pid} producerEpoch: {known.epoch} coordinatorEpoch: {known.coordinator_epoch} "
        shown += f"currentTxnFirstOffset: {start} lastTimestamp: {known.last_timestamp} "
        if known.batches:
            last = known.batches[-1]
            sequence = model.sequence_after(last.base_sequence, last.last_offset - last.base_offset)
            shown += f"firstSequence: {last.base_sequence} lastSequence: {sequence} lastOffset: {last.last_offset} "
        assert shown in output
    entries = states.take_aborted()
    if entries:
        index = TransactionIndex(str(folder / INDEX), 0)
        index.write(0, entries)
        output, problems = kafka.dump([folder / INDEX])
        assert problems == []
        assert [line for line in output.splitlines() if "producerId" in line] == [
            f"version: 0 producerId: {pid} firstOffset: {first} lastOffset: {last} lastStableOffset: {stable}"
            for pid, first, last, stable in unpack_entries(entries)
        ]
    segment = folder / f"{0:020d}.log"
    segment.write_bytes(encoded(log.batches))
    dumped, problems = kafka.check([segment])
    assert problems == []
    assert len(dumped[str(segment)]) == len(log.batches)


def test_kafkas_tool_refuses_what_is_refused_here(folder: Path, kafka: KafkaOracle) -> None:
    path = Path(snapshots.write_snapshot(str(folder), run([data(0, 0)])))
    content = bytearray(path.read_bytes())
    content[20] ^= 1
    path.write_bytes(content)
    assert kafka.dump([path])[1]
    assert ProducerStates().load(bytes(content), 1) == "the CRC-32C does not match"
