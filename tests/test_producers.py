"""Producer state: each rule of idempotence and transactions by itself, then all of them against the model."""

from __future__ import annotations

import logging
import random
import struct
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

import fastlog
from fastlog._native.producers import ProducerStates
from fastlog._native.transactions import unpack_entries
from fastlog.partition import snapshots
from tests.reference import producers as model
from tests.reference.batch import Batch, Record, encode_batch, make_batch
from tests.reference.producers import Producers, data_batch, marker

MOST = 2**31 - 1
ERRORS: dict[int, type[fastlog.Error]] = {
    45: fastlog.OutOfOrderSequenceError,
    47: fastlog.ProducerFencedError,
    48: fastlog.TransactionError,
    52: fastlog.FencedError,
}


def encoded(batches: Sequence[Batch]) -> bytes:
    return b"".join(map(encode_batch, batches))


def data(offset: int, sequence: int, *, count: int = 1, epoch: int = 0, txn: bool = False, pid: int = 7) -> Batch:
    return data_batch(offset, count, pid, epoch, sequence, transactional=txn)


def commit(offset: int, *, epoch: int = 0, coordinator: int = 0, pid: int = 7) -> Batch:
    return marker(offset, pid, epoch, coordinator, commit=True)


def abort(offset: int, *, epoch: int = 0, coordinator: int = 0, pid: int = 7) -> Batch:
    return marker(offset, pid, epoch, coordinator, commit=False)


def plain(offset: int, count: int = 1) -> Batch:
    return make_batch([Record(offset + i, 1000, None, b"plain") for i in range(count)])


def answer_of(states: ProducerStates, batches: Sequence[Batch], *, verified: bool = True) -> Any:
    """As the model answers: None, (DUPLICATE, offset), or Kafka's code."""
    try:
        offset = states.check_append(encoded(batches), verified)
    except fastlog.Error as error:
        assert error.kafka_code is not None
        assert isinstance(error, ERRORS[error.kafka_code])
        assert "nothing was written" in str(error)
        return error.kafka_code
    return None if offset is None else (model.DUPLICATE, offset)


def run(rows: Sequence[Batch]) -> ProducerStates:
    states = ProducerStates()
    states.append(encoded(rows))
    return states


FIVE = [data(i, i) for i in range(6)]  # the first of them is forgotten
WRAPPED = [data(0, MOST - 1, count=2), data(2, 0, count=3)]
OPEN = [data(0, 0, txn=True)]
BUMPED = [data(0, 0, txn=True), commit(1, epoch=1)]  # the marker carries the next epoch (KIP-890)

RULES: dict[str, tuple[list[Batch], list[Batch], Any]] = {
    "an exact duplicate of the last": ([data(0, 0, count=3)], [data(3, 0, count=3)], ("duplicate", 0)),
    "an exact duplicate of the fifth last": (FIVE, [data(6, 1)], ("duplicate", 1)),
    "a duplicate older than five": (FIVE, [data(6, 0)], 45),
    "a duplicate that begins alike but is longer": ([data(0, 0, count=3)], [data(3, 0, count=4)], 45),
    "a duplicate that ends alike but is shorter": ([data(0, 0, count=3)], [data(3, 1, count=2)], 45),
    "a duplicate over the wrap": (WRAPPED, [data(5, MOST - 1, count=2)], ("duplicate", 0)),
    "a duplicate whose sequence wraps inside": (
        [data(0, MOST, count=2), data(2, 1)],
        [data(3, MOST, count=2)],
        ("duplicate", 0),
    ),
    "a duplicate of an older epoch": ([data(0, 0), data(1, 0, epoch=1)], [data(2, 0)], 47),
    "a duplicate inside an open transaction": (OPEN, [data(1, 0, txn=True)], ("duplicate", 0)),
    "an older epoch": ([data(0, 0, epoch=5)], [data(1, 1, epoch=4)], 47),
    "an older epoch that starts at 0": ([data(0, 0, epoch=5)], [data(1, 0, epoch=4)], 47),
    "a newer epoch from 0": ([data(0, 0)], [data(1, 0, epoch=1)], None),
    "a newer epoch not from 0": ([data(0, 0)], [data(1, 1, epoch=1)], 45),
    "a much newer epoch from 0": ([data(0, 0)], [data(1, 0, epoch=32766)], None),
    "an unknown producer from 0": ([], [data(0, 0)], None),
    "an unknown producer from anywhere": ([data(0, 0, pid=8)], [data(1, 12345)], None),
    "an unknown producer with any epoch": ([], [data(0, 9, epoch=9)], None),
    "the next sequence": ([data(0, 0, count=3)], [data(3, 3)], None),
    "0 after 2147483647": ([data(0, MOST)], [data(1, 0)], None),
    "0 after a batch that ends at 2147483647": ([data(0, MOST - 2, count=3)], [data(3, 0)], None),
    "not 0 after 2147483647": ([data(0, MOST)], [data(1, 1)], 45),
    "0 without a wrap": ([data(0, 5)], [data(1, 0)], 45),
    "the next after a wrap inside a batch": ([data(0, MOST, count=3)], [data(3, 2)], None),
    "a gap": ([data(0, 0)], [data(1, 2)], 45),
    "a step back": (FIVE, [data(6, 4, count=2)], 45),
    "other producers do not matter": ([data(0, 0), data(1, 77, pid=8)], [data(2, 1)], None),
    "plain batches do not matter": ([data(0, 0), plain(1, 4)], [data(5, 1)], None),
    "a plain batch beside an open transaction": (OPEN, [plain(1)], None),
    "outside of its open transaction": (OPEN, [data(1, 1)], 48),
    "outside of its open transaction, newer epoch": (OPEN, [data(1, 0, epoch=1)], 48),
    "on in its open transaction": (OPEN, [data(1, 1, txn=True)], None),
    "a gap in its open transaction": (OPEN, [data(1, 2, txn=True)], 45),
    "outside after a commit": ([*OPEN, commit(1)], [data(2, 1)], None),
    "a new transaction after an abort": ([*OPEN, abort(1)], [data(2, 1, txn=True)], None),
    "the first of an epoch that a marker began": (BUMPED, [data(2, 0, epoch=1, txn=True)], None),
    "not the first of an epoch that a marker began": (BUMPED, [data(2, 1, epoch=1, txn=True)], 45),
    "the old epoch after a marker began a new one": (BUMPED, [data(2, 1, txn=True)], 47),
    "a producer known by a marker only": ([commit(0, epoch=3)], [data(1, 0, epoch=3)], None),
    "a producer known by a marker only, not from 0": ([commit(0, epoch=3)], [data(1, 1, epoch=3)], 45),
    "a marker of the same epoch": (OPEN, [commit(1)], None),
    "a marker of a newer epoch": (OPEN, [abort(1, epoch=1)], None),
    "a marker of an older epoch": ([data(0, 0, epoch=2, txn=True)], [abort(1, epoch=1)], 47),
    "a marker of an unknown producer": ([], [commit(0, epoch=4, coordinator=9)], None),
    "a marker without a transaction": ([data(0, 0)], [commit(1)], None),
    "a marker of the same coordinator": ([*OPEN, commit(1, coordinator=4)], [abort(2, coordinator=4)], None),
    "a marker of an older coordinator": ([*OPEN, commit(1, coordinator=4)], [abort(2, coordinator=3)], 52),
    "several that follow each other": ([], [data(0, 0), data(1, 1, count=2), data(3, 3)], None),
    "several with a gap": ([], [data(0, 0), data(1, 2)], 45),
    "several that were all appended": (FIVE, [data(6, 3), data(7, 4), data(8, 5)], ("duplicate", 3)),
    "several of which one was appended": ([data(0, 0)], [data(1, 0), data(2, 1)], 45),
    "several, the last of them old": ([data(0, 0)], [data(1, 1), data(2, 0)], 45),
    "the same twice in one append": ([], [data(0, 0), data(1, 0)], 45),
    "a duplicate beside a plain batch": ([data(0, 0)], [plain(1), data(2, 0)], 45),
    "several of two producers": ([data(0, 0)], [data(1, 1), data(2, 9, pid=8), data(3, 2), data(4, 10, pid=8)], None),
    "a whole transaction in one append": ([], [data(0, 0, txn=True), commit(1), data(2, 1)], None),
    "open in the middle of an append": ([], [data(0, 0, txn=True), data(1, 1)], 48),
    "a newer epoch in the middle of an append": ([data(0, 0)], [data(1, 1), data(2, 0, epoch=1), data(3, 2)], 47),
}


@pytest.mark.parametrize("name", RULES)
def test_each_rule_of_an_append(name: str) -> None:
    before, batches, expected = RULES[name]
    states = run(before)
    known = {producer_id: states.state(producer_id) for producer_id in states.producer_ids()}
    assert answer_of(states, batches) == expected
    assert Producers(before).judge_all(batches) == expected, "the model has it otherwise"
    assert {producer_id: states.state(producer_id) for producer_id in states.producer_ids()} == known
    assert (states.end_offset, len(states.take_aborted()) // 34) == (len_of(before), len(Producers(before).aborted()))


def len_of(batches: Sequence[Batch]) -> int:
    return batches[-1].last_offset + 1 if batches else 0


@pytest.mark.parametrize(
    ("before", "batch", "expected"),
    [
        ([], data(0, 0, txn=True), 48),
        ([data(0, 0)], data(1, 1, txn=True), 48),
        (OPEN, data(1, 1, txn=True), None),
        (OPEN, data(1, 0, txn=True), ("duplicate", 0)),
        (OPEN, data(1, 0, epoch=1, txn=True), 48),
        ([*OPEN, commit(1)], data(2, 1, txn=True), 48),
        ([], data(0, 0), None),
    ],
)
def test_a_transaction_that_nobody_verified(before: list[Batch], batch: Batch, expected: Any) -> None:
    assert answer_of(run(before), [batch], verified=False) == expected


def test_errors_carry_what_a_caller_needs() -> None:
    states = run([data(0, 4, epoch=3)])
    with pytest.raises(fastlog.OutOfOrderSequenceError, match=r"starts at sequence 9, expected 5") as gap:
        states.check_append(encoded([data(1, 9, epoch=3)]))
    assert (gap.value.producer_id, gap.value.sequence, gap.value.expected_sequence) == (7, 9, 5)
    with pytest.raises(fastlog.ProducerFencedError, match=r"the log has seen epoch 3") as stale:
        states.check_append(encoded([data(1, 5, epoch=2)]))
    assert (stale.value.producer_id, stale.value.producer_epoch, stale.value.current_epoch) == (7, 2, 3)
    states = run([*OPEN, commit(1, coordinator=8), data(2, 1, txn=True)])
    with pytest.raises(fastlog.TransactionError, match="open since offset 2") as outside:
        states.check_append(encoded([data(3, 2)]))
    assert outside.value.producer_id == 7
    with pytest.raises(fastlog.FencedError, match="has coordinator epoch 7, the log has seen 8") as fenced:
        states.check_append(encoded([abort(3, coordinator=7)]))
    assert (fenced.value.kafka_code, fastlog.FencedError.kafka_code) == (52, None)
    assert [error.kafka_code for error in (gap.value, stale.value, outside.value)] == [45, 47, 48]
    with pytest.raises(fastlog.CorruptRecordError, match="batch 1 at position 69"):
        states.check_append(encoded([data(3, 2, txn=True)]) + b"torn")


def test_only_five_batches_are_kept_over_all_epochs() -> None:
    states = run([data(i, i) for i in range(9)])
    state = states.state(7)
    assert state is not None
    assert [batch[:4] for batch in state["batches"]] == [(i, i, i, i) for i in range(4, 9)]
    states.append(encoded([data(9, 0, epoch=1, count=4)]))
    state = states.state(7)
    assert state is not None
    assert [batch[:4] for batch in state["batches"]] == [(0, 3, 9, 12)]


def test_what_is_in_the_log_is_not_judged() -> None:
    """Replay believes the log, as Kafka's followers do: gaps, older epochs, anything."""
    log = [data(0, 9, epoch=4), data(1, 3, epoch=4), data(2, 5, epoch=1), abort(3, epoch=0)]
    states = run(log)
    state = states.state(7)
    assert state is not None
    assert (state["epoch"], state["batches"]) == (0, [])


def test_open_transactions_hold_the_last_stable_offset() -> None:
    states = ProducerStates()
    steps: list[tuple[Batch, int]] = [
        (plain(0, 3), 3),
        (data(3, 0, txn=True, pid=1, count=2), 3),
        (data(5, 0, txn=True, pid=2), 3),
        (plain(6), 3),
        (commit(7, pid=1), 5),
        (data(8, 2, txn=True, pid=1), 5),
        (abort(9, pid=2), 8),
        (commit(10, pid=1), 11),
        (data(11, 0, pid=3), 12),
    ]
    for batch, stable in steps:
        states.append(encode_batch(batch))
        assert states.last_stable_offset(states.end_offset) == stable
        assert states.first_unstable_offset == (None if stable == states.end_offset else stable)
    assert unpack_entries(states.take_aborted()) == [(2, 5, 9, 8)]
    assert states.take_aborted() == b""
    # the start of the log may have moved past where a transaction begins
    states.append(encode_batch(data(12, 1, pid=3, txn=True)))
    states.append(encode_batch(plain(13, 10)))
    assert [states.last_stable_offset(23, start) for start in (0, 12, 15, 23)] == [12, 12, 15, 23]


def test_idle_producers_expire_but_never_within_a_transaction() -> None:
    states = ProducerStates()
    for pid in range(100):
        states.append(encode_batch(data_batch(pid, 1, pid, 0, 0, transactional=pid % 10 == 0, timestamp=1000 + pid)))
    assert states.expire(1000 + 50 + 500, 500) == 51 - 6
    assert [states.state(pid) is None for pid in range(100)] == [pid <= 50 and pid % 10 != 0 for pid in range(100)]
    assert states.expire(10**15, 500) == 49 - 4
    assert states.producer_ids() == list(range(0, 100, 10))
    assert [pid for _, pid in states.open_transactions_by_offset] == list(range(0, 100, 10))
    # the others are still found, and may go on
    assert answer_of(states, [data(100, 1, pid=50, txn=True)]) is None
    assert answer_of(states, [data(100, 1, pid=51)]) is None


def test_a_producer_of_old_records_is_not_idle() -> None:
    """Timestamps are the user's: the time of the append counts too, where it is known."""
    states = ProducerStates()
    states.append(encode_batch(data(0, 0)), now=10_000_000)
    assert states.expire(10_000_000 + 499, 500) == 0
    again = ProducerStates()
    assert again.load(states.snapshot(), 1) is None
    assert again.expire(10_000_000 + 499, 500) == 0
    assert again.expire(10_000_000 + 500, 500) == 1
    assert states.expire(10_000_000 + 500, 500) == 1


def test_many_producers(seed: int) -> None:
    chance = random.Random(seed)
    ids = chance.sample(range(2**63 - 1), 5000) + [i << 32 for i in range(1, 3000)]
    states = ProducerStates()
    for offset, pid in enumerate(ids):
        states.append(encode_batch(data_batch(offset, 1, pid, 3, offset, transactional=False)))
    assert len(states) == len(ids)
    for offset, pid in enumerate(ids):
        state = states.state(pid)
        assert state is not None
        assert state["batches"] == [(offset, offset, offset, offset, 1000)]
    again = ProducerStates()
    assert again.load(states.snapshot(), len(ids)) is None
    assert all(again.state(pid) == states.state(pid) for pid in ids)
    # one append that touches all of them
    batches = encoded([data_batch(len(ids) + i, 1, pid, 3, i + 1, transactional=True) for i, pid in enumerate(ids)])
    assert again.check_append(batches) is None
    again.append(batches)
    assert len(again.open_transactions_by_offset) == len(ids)


def test_which_batches_compaction_has_to_keep() -> None:
    states = run([data(0, 0, count=2), data(2, 2, count=2), commit(4, pid=9, epoch=2), data(5, 0, pid=5)])
    assert states.is_last_batch(7, 0, 3, False)
    assert not states.is_last_batch(7, 0, 1, False)
    assert states.is_last_batch(9, 2, 4, True)
    assert not states.is_last_batch(9, 1, 4, True)
    assert not states.is_last_batch(1, 0, 4, True)


# --- snapshots ------------------------------------------------------------------------------------------------------

SOME_LOG = [
    data(0, MOST - 1, count=5, pid=3),
    data(5, 0, pid=2**62, epoch=32767, txn=True),
    commit(6, pid=1, epoch=2, coordinator=77),
    data(7, 4, pid=3, txn=True),
]


def test_a_snapshot_is_kafkas_to_the_byte() -> None:
    states = run(SOME_LOG)
    content = states.snapshot()
    expected = struct.pack(">hIi", 1, struct.unpack_from(">I", content, 2)[0], 3)
    expected += struct.pack(">qhiqiqiq", 3, 0, 4, 7, 0, 1000, -1, 7)
    expected += struct.pack(">qhiqiqiq", 2**62, 32767, 0, 5, 0, 1000, -1, 5)
    expected += struct.pack(">qhiqiqiq", 1, 2, -1, -1, 0, 1000, 77, -1)
    assert content == expected
    assert model.parse_snapshot(content) == model.parse_snapshot(Producers(SOME_LOG).snapshot())
    assert ProducerStates().snapshot() == model.pack_snapshot({})


def test_a_loaded_snapshot_knows_the_last_batch() -> None:
    states = ProducerStates()
    content = run([data(0, MOST - 1, count=5)]).snapshot()
    assert states.load(content, 5) is None
    state = states.state(7)
    assert state is not None
    assert state["batches"] == [(MOST - 1, 2, 0, 4, 1004)]
    assert answer_of(states, [data(5, MOST - 1, count=5)]) == ("duplicate", 0)
    assert answer_of(states, [data(5, 3)]) is None
    assert (states.end_offset, states.last_producer_offset) == (5, 4)


def test_every_flipped_bit_and_every_cut_of_a_snapshot_is_noticed() -> None:
    content = run(SOME_LOG).snapshot()
    states = run([data(0, 0, pid=99)])
    before = states.snapshot()
    damaged = [
        content[: at // 8] + bytes([content[at // 8] ^ 1 << at % 8]) + content[at // 8 + 1 :]
        for at in range(8 * len(content))
    ]
    damaged += [content[:size] for size in range(len(content))]
    damaged += [content + b"\0", content + bytes(46)]
    for wrong in damaged:
        assert states.load(wrong, 8) is not None
        assert (states.snapshot(), states.end_offset) == (before, 1), "a refused snapshot has changed something"
    assert states.load(content, 8) is None


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("producer_id", -1), ("sequence", -2), ("last_offset", 8), ("last_offset", -2), ("offset_delta", -1),
        ("offset_delta", 8), ("timestamp", -2), ("transaction", 8), ("transaction", -2),
    ],
)  # fmt: skip
def test_a_snapshot_with_an_impossible_producer_is_refused(name: str, value: int) -> None:
    names = (
        "producer_id",
        "epoch",
        "sequence",
        "last_offset",
        "offset_delta",
        "timestamp",
        "coordinator",
        "transaction",
    )
    fields = dict(zip(names, (3, 0, 4, 7, 0, 1000, -1, 7), strict=True))
    pack = struct.Struct(">qhiqiqiq").pack
    assert ProducerStates().load(model.seal_snapshot(1, pack(*fields.values())), 8) is None
    fields[name] = value
    problem = ProducerStates().load(model.seal_snapshot(1, pack(*fields.values())), 8)
    assert problem is not None
    assert "impossible" in problem


def test_a_snapshot_with_a_producer_twice_or_a_lying_count_is_refused() -> None:
    body = struct.pack(">qhiqiqiq", 3, 0, 4, 7, 0, 1000, -1, 7)
    assert ProducerStates().load(model.seal_snapshot(2, body * 2), 8) is not None
    for count in (0, 2, -1, 2**31 - 1, -(2**31)):
        problem = ProducerStates().load(model.seal_snapshot(count, body), 8)
        assert problem is not None
        assert "do not hold" in problem


def write_segments(folder: Path, batches: Sequence[Batch], every: int) -> list[tuple[int, int]]:
    """Segment files with so many batches each; (base offset, size) of each one."""
    segments = []
    for first in range(0, len(batches), every):
        content = encoded(batches[first : first + every])
        base = batches[first].base_offset
        (folder / f"{base:020d}.log").write_bytes(content)
        segments.append((base, len(content)))
    return segments


def random_log(chance: random.Random, count: int) -> list[Batch]:
    """Batches that a log may hold: every append was judged by the model."""
    log = Producers()
    while len(log.batches) < count:
        pid = chance.randrange(4)
        known = log.known(pid)
        end = log.end_offset
        kind = chance.random()
        if kind < 0.15:
            batch = plain(end, chance.randint(1, 3))
        elif kind < 0.4:
            epoch = max(0, known.epoch if known else 0) + (chance.random() < 0.1)
            batch = marker(end, pid, epoch, 0, commit=chance.random() < 0.5, timestamp=1000 + end)
        else:
            sequence = known.next_sequence if known else chance.choice([0, 5, MOST - 2])
            within = known is not None and known.transaction_start >= 0
            batch = data_batch(
                end, chance.randint(1, 3), pid, known.epoch if known else 0, sequence,
                transactional=within or chance.random() < 0.4, timestamp=1000 + end,
            )  # fmt: skip
        if log.judge(batch) is None:
            log.batches.append(batch)
    return log.batches


def same_as_model(states: ProducerStates, log: Producers, *, whole: bool = True) -> None:
    """States equal the model; after a snapshot was loaded (not ``whole``) fewer than five batches may be known."""
    assert sorted(states.producer_ids()) == sorted(log.producer_ids())
    for pid in log.producer_ids():
        known, state = log.known(pid), states.state(pid)
        assert known is not None
        assert state is not None
        assert state["epoch"] == known.epoch
        assert state["coordinator_epoch"] == known.coordinator_epoch
        assert state["transaction_first_offset"] == known.transaction_start
        assert state["last_timestamp"] == known.last_timestamp
        expected = [
            (
                b.base_sequence,
                model.sequence_after(b.base_sequence, b.last_offset - b.base_offset),
                b.base_offset,
                b.last_offset,
            )
            for b in known.batches
        ]
        found = [batch[:4] for batch in state["batches"]]
        assert found == expected if whole else found == expected[len(expected) - len(found) :]
        assert bool(found) == bool(expected)
    assert states.open_transactions_by_offset == log.open_transactions()
    assert states.end_offset == log.end_offset
    assert states.last_stable_offset(states.end_offset) == log.last_stable_offset()
    assert model.parse_snapshot(states.snapshot()) == model.parse_snapshot(log.snapshot())


def names_in(folder: Path) -> list[str]:
    return [file.name for file in folder.iterdir()]


@pytest.mark.parametrize("_round", range(10))
def test_rebuilding_from_any_snapshot_gives_the_same(folder: Path, seed: int, _round: int) -> None:
    chance = random.Random(f"{seed} {_round}")
    batches = random_log(chance, 40)
    log = Producers(batches)
    segments = write_segments(folder, batches, chance.randint(1, 15))
    end = log.end_offset
    rebuilt = snapshots.rebuild(str(folder), names_in(folder), segments, end)
    same_as_model(rebuilt.states, log)
    assert rebuilt.snapshot_offset is None
    expected = {
        base: model.pack_transactions(
            e for e in log.aborted() if base <= e[2] < (segments[i + 1][0] if i + 1 < len(segments) else end)
        )
        for i, (base, _) in enumerate(segments)
    }
    assert rebuilt.transactions == expected
    # every place a snapshot may be taken at, one at a time; some lie in the middle of a segment
    for count in range(1, len(batches) + 1):
        at = batches[count - 1].last_offset + 1
        path = snapshots.write_snapshot(str(folder), run(batches[:count]))
        assert path == snapshots.snapshot_path(str(folder), at)
        rebuilt = snapshots.rebuild(str(folder), names_in(folder), segments, end)
        same_as_model(rebuilt.states, log, whole=False)
        assert rebuilt.snapshot_offset == at
        assert rebuilt.transactions == {base: content for base, content in expected.items() if base >= at}
        Path(path).unlink()


@pytest.mark.parametrize("_round", range(5))
def test_cutting_a_log_takes_back_what_its_batches_said(folder: Path, seed: int, _round: int) -> None:
    chance = random.Random(f"{seed} {_round}")
    batches = random_log(chance, 30)
    segments = write_segments(folder, batches, 7)
    for count in range(0, len(batches), 7):
        snapshots.write_snapshot(str(folder), run(batches[:count]) if count else ProducerStates())
    for count in range(len(batches), -1, -1):
        end = batches[count - 1].last_offset + 1 if count else 0
        rebuilt = snapshots.rebuild(str(folder), names_in(folder), segments, end)
        same_as_model(rebuilt.states, Producers(batches[:count]), whole=False)
        stale = snapshots.stale_snapshots(
            snapshots.snapshot_offsets(names_in(folder)), [base for base, _ in segments], end
        )
        assert all(offset > end for offset in stale)
        snapshots.remove_snapshots(str(folder), stale)
        assert max(snapshots.snapshot_offsets(names_in(folder)), default=0) <= end


def test_a_damaged_snapshot_is_passed_over_and_reported(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    batches = [data(i, i) for i in range(10)]
    segments = write_segments(folder, batches, 5)
    for count in (5, 8):
        snapshots.write_snapshot(str(folder), run(batches[:count]))
    newest = folder / f"{8:020d}.snapshot"
    newest.write_bytes(newest.read_bytes()[:-1] + b"\0")
    with caplog.at_level(logging.WARNING, logger="fastlog"):
        rebuilt = snapshots.rebuild(str(folder), names_in(folder), segments, 10)
    assert rebuilt.snapshot_offset == 5
    assert str(newest) in caplog.text
    same_as_model(rebuilt.states, Producers(batches), whole=False)
    (folder / f"{5:020d}.snapshot").write_bytes(b"")
    newest.unlink()
    rebuilt = snapshots.rebuild(str(folder), names_in(folder), segments, 10)
    assert rebuilt.snapshot_offset is None
    same_as_model(rebuilt.states, Producers(batches))


def test_damage_in_the_log_is_passed_over_and_counted(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    batches = [data(i, i) for i in range(10)]
    [(_, size)] = write_segments(folder, batches, 10)
    segment = folder / f"{0:020d}.log"
    content = bytearray(segment.read_bytes())
    content[4 * 69 + 65] ^= 1
    segment.write_bytes(content)
    with caplog.at_level(logging.WARNING, logger="fastlog"):
        rebuilt = snapshots.rebuild(str(folder), names_in(folder), [(0, size)], 10)
    assert rebuilt.damages == 1
    assert f"{segment}, position {4 * 69}" in caplog.text
    state = rebuilt.states.state(7)
    assert state is not None
    assert [batch[0] for batch in state["batches"]] == [5, 6, 7, 8, 9]
    # a control batch whose record is no marker's: its checksum holds
    broken = replace(commit(10), records=(Record(10, 1000, b"\0", b""),))
    with segment.open("ab") as file:
        file.write(encode_batch(broken))
    rebuilt = snapshots.rebuild(str(folder), names_in(folder), [(0, segment.stat().st_size)], 11)
    assert (rebuilt.damages, rebuilt.states.end_offset) == (2, 11)


@pytest.mark.parametrize("_round", range(5))
def test_catching_up_with_what_others_append(folder: Path, seed: int, _round: int) -> None:
    """A growing log, read in steps: each batch once, and nothing at all while only plain batches were appended."""
    chance = random.Random(f"{seed} {_round}")
    batches = random_log(chance, 60)
    log = Producers()
    states = ProducerStates()
    entries = b""
    segments: list[tuple[int, int]] = []
    for number, batch in enumerate(batches):
        if number % 13 == 0:
            segments.append((batch.base_offset, 0))
        base = segments[-1][0]
        with (folder / f"{base:020d}.log").open("ab") as file:
            file.write(encode_batch(batch))
            segments[-1] = (base, file.tell())
        log.batches.append(batch)
        if chance.random() < 0.3:
            newest = max((b.last_offset for b in log.batches if b.producer_id >= 0), default=-1)
            if not states.jump_to(newest, log.end_offset, *segments[-1]):
                assert snapshots.catch_up(str(folder), states, segments, log.end_offset, check_crc=False) == 0
            same_as_model(states, log)
            entries += states.take_aborted()
            assert unpack_entries(entries) == log.aborted()
            assert (states.segment_base, states.position) == segments[-1]
    # by hand: the same from memory
    own = ProducerStates()
    for batch in batches:
        own.append(encode_batch(batch))
    assert own.position == sum(size for _, size in segments)


def test_a_jump_is_refused_where_a_producer_has_written() -> None:
    states = run([data(0, 0), plain(1)])
    assert states.jump_to(0, 10, 0, 999)
    assert (states.end_offset, states.position) == (10, 999)
    assert not states.jump_to(10, 20, 0, 1999)
    assert (states.end_offset, states.position) == (10, 999)


def test_names_of_snapshots() -> None:
    names = [
        "00000000000000000012.snapshot",
        "12.snapshot",
        "00000000000000000012.snapshot.tmp",
        "x",
        "٠" * 20 + ".snapshot",
    ]
    names += ["99999999999999999999.snapshot", "00000000000000000007.snapshot", "00000000000000000007.snapshot.deleted"]
    assert snapshots.snapshot_offsets(names) == [7, 12]
    assert snapshots.snapshot_path("a/b-0", 12) == "a/b-0/00000000000000000012.snapshot"


@pytest.mark.parametrize(
    ("offsets", "bases", "end", "stale"),
    [
        ([], [0], 0, []),
        ([10, 20], [0, 10, 20], 30, []),
        ([10, 20, 25], [0, 10, 20], 30, []),  # the newest, from a clean close
        ([10, 20, 23, 25], [0, 10, 20], 30, [23]),
        ([10, 15, 20], [0, 10, 20], 30, [15]),
        ([10, 20, 25], [20], 30, [10]),  # its segment is gone
        ([10, 20, 31], [0, 10, 20], 30, [31]),  # beyond the end
        ([10, 20, 30], [0, 10, 20], 30, []),
    ],
)
def test_which_snapshots_may_go(offsets: list[int], bases: list[int], end: int, stale: list[int]) -> None:
    assert snapshots.stale_snapshots(offsets, bases, end) == stale


def test_a_failing_disk_leaves_the_old_snapshot(folder: Path) -> None:
    from fastlog._native import oscalls

    states = run([data(0, 0)])
    path = Path(snapshots.write_snapshot(str(folder), states))
    content = path.read_bytes()
    for call in ("open", "pwrite", "fdatasync", "rename"):
        oscalls.inject(call, errno=28)
        with pytest.raises(fastlog.StorageFullError):
            snapshots.write_snapshot(str(folder), states)
        oscalls.clear()
        assert names_in(folder) == [path.name]
        assert path.read_bytes() == content


# --- against the model ----------------------------------------------------------------------------------------------


class ProducersMachine(RuleBasedStateMachine):
    """Random appends, right and wrong, of few producers; restarts from snapshots; cuts; expiry."""

    producers = st.integers(0, 3)

    @initialize()
    def begin(self) -> None:
        self.log = Producers()
        self.states = ProducerStates()
        self.taken: list[tuple[int, ...]] = []
        self.is_whole = True
        self.cut_or_expired = False

    def draw(self, pid: int, kind: str, step: int, epoch_step: int, count: int, txn: bool, offset: int) -> Batch:
        known = self.log.known(pid)
        epoch = min(max(0, (known.epoch if known else 0) + epoch_step), 32767)
        if kind in ("commit", "abort"):
            coordinator = max(0, (known.coordinator_epoch if known else 0) + step)
            return marker(offset, pid, epoch, coordinator, commit=kind == "commit", timestamp=1000 + offset)
        if kind == "plain":
            return plain(offset, count)
        if kind == "again" and known and known.batches:
            earlier = known.batches[step % len(known.batches)]
            count = earlier.last_offset - earlier.base_offset + 1
            return data_batch(offset, count, pid, epoch, earlier.base_sequence, transactional=txn)
        start = known.next_sequence if known and epoch == known.epoch else 0
        sequence = model.sequence_after(start, step if kind == "gap" else 0)
        if known is None and kind == "high":
            sequence = MOST - max(step, 0)
        return data_batch(offset, count, pid, epoch, sequence, transactional=txn, timestamp=1000 + offset)

    batches = st.lists(
        st.tuples(
            producers,
            st.sampled_from(["data", "data", "data", "high", "commit", "abort", "plain", "again", "gap"]),
            st.sampled_from([0, 0, 1, 2, 4, -1]),
            st.sampled_from([0, 0, 0, 0, 1, -1]),
            st.integers(1, 4),
            st.booleans(),
        ),
        min_size=1,
        max_size=4,
    )

    @rule(drawn=batches)
    def append(self, drawn: list[tuple[int, str, int, int, int, bool]]) -> None:
        offset = self.log.end_offset
        batches: list[Batch] = []
        kept = list(self.log.batches)
        for pid, kind, step, epoch_step, count, txn in drawn:
            batches.append(self.draw(pid, kind, step, epoch_step, count, txn, offset))
            offset = batches[-1].last_offset + 1
            self.log.batches.append(batches[-1])  # later ones follow it, whether it is allowed or not
        self.log.batches = kept
        expected = self.log.judge_all(batches)
        found = answer_of(self.states, batches)
        if self.is_whole or found == expected:
            assert found == expected
        else:
            # after a restart only the last batch of each producer is known: an older duplicate is no longer seen
            assert found == 45
            assert any(isinstance(self.log.judge(batch), tuple) for batch in batches)
        if found is None:
            self.states.append(encoded(batches))
            self.log.batches += batches

    @rule()
    def restart(self) -> None:
        again = ProducerStates()
        self.taken += unpack_entries(self.states.take_aborted())
        assert again.load(self.states.snapshot(), self.states.end_offset) is None
        self.states = again
        self.is_whole = False

    @rule()
    def replay(self) -> None:
        if self.log.forgotten:
            return
        self.states = run(self.log.batches)
        self.taken = []
        self.is_whole = True

    @precondition(lambda self: self.log.batches and not self.log.forgotten)
    @rule(share=st.floats(0, 1))
    def cut(self, share: float) -> None:
        del self.log.batches[int(share * len(self.log.batches)) :]
        self.replay()

    @rule(age=st.integers(0, 60))
    def expire(self, age: int) -> None:
        now = 1000 + self.log.end_offset
        expected = self.log.expire(now, age)
        assert self.states.expire(now, age) == expected

    @invariant()
    def equal(self) -> None:
        if not hasattr(self, "log"):
            return
        same_as_model(self.states, self.log, whole=self.is_whole)
        self.taken += unpack_entries(self.states.take_aborted())

    def teardown(self) -> None:
        if hasattr(self, "log") and not self.log.forgotten:
            assert self.taken == self.log.aborted()


ProducersMachine.TestCase.settings = settings(stateful_step_count=25)
TestProducersMachine = ProducersMachine.TestCase
