"""What a transactional id can be in: the rules of the state machine, and Kafka's bytes for it."""

from __future__ import annotations

import struct
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as draw

import fastlog
from fastlog.records import TopicPartition
from fastlog.store.internal import partition_for_name
from fastlog.transactions.records import decode_key, decode_value, encode_key, encode_value
from fastlog.transactions.states import LAST_EPOCH, MOST_EPOCH, TransactionState, TransactionStatus, legal
from tests.oracle.kafka import KafkaOracle

EMPTY, ONGOING = TransactionStatus.EMPTY, TransactionStatus.ONGOING
PREPARE_COMMIT, PREPARE_ABORT = TransactionStatus.PREPARE_COMMIT, TransactionStatus.PREPARE_ABORT
COMPLETE_COMMIT, COMPLETE_ABORT = TransactionStatus.COMPLETE_COMMIT, TransactionStatus.COMPLETE_ABORT

partitions = draw.lists(
    draw.builds(
        TopicPartition, draw.sampled_from(["a", "orders", "__consumer_offsets", "x" * 249]), draw.integers(0, 99)
    ),
    unique=True,
    max_size=12,
).map(tuple)
times = draw.integers(-1, 2**62)


@draw.composite
def states(pick: draw.DrawFn) -> TransactionState:
    status = pick(draw.sampled_from([s for s in TransactionStatus if s is not TransactionStatus.PREPARE_EPOCH_FENCE]))
    return TransactionState(
        pick(draw.integers(0, 2**63 - 1)), pick(draw.integers(0, MOST_EPOCH)), pick(draw.integers(1, 2**31 - 1)),
        status, () if status is EMPTY else pick(partitions), pick(times), pick(times),
    )  # fmt: skip


def by_topic(state: TransactionState) -> TransactionState:
    """Partitions in the order that a record has them: grouped by topic, topics by first appearance."""
    topics = list(dict.fromkeys(partition.topic for partition in state.partitions))
    return replace(state, partitions=tuple(sorted(state.partitions, key=lambda one: topics.index(one.topic))))


@given(states())
def test_what_is_written_is_read(state: TransactionState) -> None:
    assert decode_value(encode_value(state)) == by_topic(state)


@given(states(), draw.data())
def test_every_cut_and_flipped_bit_is_an_answer_or_a_clean_error(
    state: TransactionState, data: draw.DataObject
) -> None:
    value = encode_value(state)
    for size in range(len(value)):
        with pytest.raises(fastlog.CorruptRecordError):
            decode_value(value[:size])
    flipped = bytearray(value)
    flipped[data.draw(draw.integers(0, len(value) - 1))] ^= 1 << data.draw(draw.integers(0, 7))
    try:
        decode_value(bytes(flipped))
    except (fastlog.CorruptRecordError, fastlog.UnsupportedFormatError):
        pass


@given(draw.text(min_size=1, max_size=40).filter(lambda text: text.isprintable()))
def test_a_key_is_read_back(name: str) -> None:
    assert decode_key(encode_key(name)) == name
    assert 0 <= partition_for_name(name) < 50


@pytest.mark.parametrize(
    "key", [None, b"", b"\0", b"\0\0", b"\0\0\0", b"\0\0\0\5abc", b"\0\0\xff\xff", b"\0\0\0\1\xff"]
)
def test_a_broken_key_is_refused(key: bytes | None) -> None:
    with pytest.raises(fastlog.CorruptRecordError):
        decode_key(key)


def test_bytes_are_kafkas() -> None:
    state = TransactionState(
        2**40, 3, 60_000, ONGOING, (TopicPartition("b", 1), TopicPartition("a", 0), TopicPartition("b", 0)), 7, 5
    )
    assert encode_value(state) == (
        struct.pack(">hqhib", 0, 2**40, 3, 60_000, 1)
        + struct.pack(">i", 2)
        + struct.pack(">h1sii i", 1, b"b", 2, 1, 0)
        + struct.pack(">h1sii", 1, b"a", 1, 0)
        + struct.pack(">qq", 7, 5)
    )
    empty = TransactionState(9, 0, 1, last_update=2)
    assert encode_value(empty) == struct.pack(">hqhibiqq", 0, 9, 0, 1, 0, -1, 2, -1)
    assert encode_key("pay-1") == b"\0\0\0\5pay-1"


def test_version_1_is_read_too() -> None:
    flexible = (
        struct.pack(">hqhib", 1, 5, 1, 100, 1) + b"\2" + b"\2t" + b"\3" + struct.pack(">ii", 4, 2) + b"\0"
        + struct.pack(">qq", 8, 6) + b"\2" + b"\0\x08" + bytes(8) + b"\2\2" + b"\0\2"
    )  # fmt: skip
    expected = TransactionState(5, 1, 100, ONGOING, (TopicPartition("t", 4), TopicPartition("t", 2)), 8, 6)
    assert decode_value(flexible) == expected
    with pytest.raises(fastlog.UnsupportedFormatError, match="version 2"):
        decode_value(b"\0\2" + flexible[2:])


@pytest.mark.parametrize(
    ("name", "hashed"),
    [("", 0), ("a", 97), ("hello", 99_162_322), ("polygenelubricants", -(2**31)), ("käse", 0), ("🙂x", 0)],
)
def test_partitions_are_those_of_javas_hash(name: str, hashed: int) -> None:
    units = struct.unpack(f">{len(name.encode('utf-16-be')) // 2}H", name.encode("utf-16-be"))
    value = 0
    for unit in units:
        value = (value * 31 + unit) % 2**32
    signed = value - 2**32 if value >= 2**31 else value
    if hashed:
        assert signed == hashed
    assert partition_for_name(name) == (0 if signed == -(2**31) else abs(signed) % 50)


# --- the state machine ----------------------------------------------------------------------------------------------


def test_the_table_of_changes() -> None:
    allowed = {(before, after) for before in TransactionStatus for after in TransactionStatus if legal(before, after)}
    idle = (EMPTY, COMPLETE_COMMIT, COMPLETE_ABORT)
    assert allowed == {
        *((one, after) for one in idle for after in (EMPTY, ONGOING, TransactionStatus.DEAD)),
        (ONGOING, ONGOING), (ONGOING, PREPARE_COMMIT), (ONGOING, PREPARE_ABORT),
        (PREPARE_COMMIT, PREPARE_COMMIT), (PREPARE_COMMIT, COMPLETE_COMMIT),
        (PREPARE_ABORT, PREPARE_ABORT), (PREPARE_ABORT, COMPLETE_ABORT),
    }  # fmt: skip


steps = draw.lists(
    draw.sampled_from(["enter", "commit", "abort", "take commit", "take abort", "complete", "open"]), max_size=40
)


def step(state: TransactionState, name: str, now: int) -> TransactionState:
    if name == "enter":
        return state.entered([TopicPartition("t", now % 3)], now)
    if name == "complete":
        return state.completed(now)
    if name == "open":
        return state.opened(1000, now, 2**41 + now)
    return state.prepared(now, commit=name.endswith("commit"), by_owner=not name.startswith("take"))


@given(steps, draw.sampled_from([0, LAST_EPOCH - 1, LAST_EPOCH]))
def test_no_walk_breaks_a_rule(names: list[str], epoch: int) -> None:
    state = TransactionState(2**40, epoch, 1000)
    decided: bool | None = None
    for now, name in enumerate(names):
        try:
            after = step(state, name, now)
        except fastlog.TransactionError:
            with pytest.raises(fastlog.TransactionError):
                step(state, name, now)
            continue
        assert legal(state.status, after.status)
        same = after.producer_id == state.producer_id
        assert (
            (after.producer_epoch >= state.producer_epoch) if same else (after.producer_epoch == 0 and name == "open")
        )
        assert same or state.producer_epoch >= LAST_EPOCH, "ids are changed at the end of the epochs only"
        if decided is not None and after.is_prepared:
            assert after.commits == decided, "a decision is never changed"
            assert after.producer_epoch > state.producer_epoch or state.producer_epoch == MOST_EPOCH
        decided = after.commits if after.is_prepared else None
        if after.is_prepared:
            assert set(after.partitions) == set(state.partitions)
            if not after.commits:
                assert after.producer_epoch > state.producer_epoch or state.producer_epoch == MOST_EPOCH
        else:
            assert after.is_ongoing or not after.partitions
        if after.is_ongoing:
            assert after.start == (state.start if state.is_ongoing else now)
            assert set(after.partitions) >= set(state.partitions)
        state = after


def test_a_fenced_producer_learns_who_fenced_it() -> None:
    state = TransactionState(7, 3, 1000)
    state.require(7, 3)
    with pytest.raises(fastlog.ProducerFencedError, match="epoch 3") as caught:
        state.require(7, 2)
    assert (caught.value.producer_id, caught.value.producer_epoch, caught.value.current_epoch) == (7, 2, 3)


# --- Kafka reads it -------------------------------------------------------------------------------------------------


def test_kafka_reads_the_records(folder: Path, kafka: KafkaOracle) -> None:
    """The dump tool's decoder shows every field as it was meant."""
    told = [
        TransactionState(
            2**40 + 5, 3, 60_000, ONGOING, (TopicPartition("orders", 1), TopicPartition("mail", 0)), 1_000, 900
        ),
        TransactionState(2**40 + 5, 3, 60_000, PREPARE_COMMIT, (TopicPartition("orders", 1),), 1_001, 900),
        TransactionState(2**40 + 5, 3, 60_000, COMPLETE_COMMIT, (), 1_002, 900),
        TransactionState(2**40 + 5, 4, 60_000, EMPTY, (), 1_003, -1),
    ]
    path = folder / "__transaction_state-7"
    with fastlog.PartitionLog.open(path, durability="os") as log:
        log.append([encode_value(state) for state in told], keys=[encode_key("pay-1")] * len(told))
    output, problems = kafka.dump(sorted(path.glob("*.log")), "--transaction-log-decoder")
    assert not problems
    lines = [line for line in output.splitlines() if "payload:" in line]
    assert len(lines) == len(told)
    for line, state in zip(lines, told, strict=True):
        assert '"transactionalId":"pay-1"' in line
        fields = {
            "producerId": state.producer_id, "producerEpoch": state.producer_epoch, "transactionTimeoutMs": 60_000,
            "transactionStatus": int(state.status), "transactionLastUpdateTimestampMs": state.last_update,
            "transactionStartTimestampMs": state.start,
        }  # fmt: skip
        for name, value in fields.items():
            assert f'"{name}":{value}' in line, name
        for topic, partition in state.partitions:
            assert f'"topic":"{topic}","partitionIds":[{partition}]' in line
