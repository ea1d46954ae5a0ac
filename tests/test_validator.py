"""What encoded batches have to be, so that they are appended as they are: each rule by itself, then random lies."""

from __future__ import annotations

import gzip
import random
import struct
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

import fastlog
from fastlog._native import oscalls
from fastlog._native.transactions import end_transaction_marker
from fastlog._native.validator import latest_timestamp, validate_batches
from tests import strategies
from tests.reference.batch import (
    CONTROL,
    CRC_AT,
    DELETE_HORIZON,
    LOG_APPEND_TIME,
    TRANSACTIONAL,
    Batch,
    FormatError,
    Record,
    decode_batch,
    decode_log,
    encode_batch,
    encode_record,
    fix_crc,
    make_batch,
    seal,
)

TIME = 1_700_000_000_000
MOST = 2**63 - 1
LIMITS: dict[str, Any] = {"max_message_bytes": 1 << 20, "segment_bytes": 1 << 24}


def some_batch(**changes: Any) -> Batch:
    records = [Record(i, TIME + i % 2, b"key %d" % i, b"value", (("a", b"b"),)) for i in range(3)]
    return replace(make_batch(records), **changes)


def idempotent(**changes: Any) -> Batch:
    return some_batch(**{"producer_id": 7, "producer_epoch": 0, "base_sequence": 0, **changes})


def test_good_batches_are_stamped_and_nothing_else() -> None:
    batches = [some_batch(), idempotent(attributes=TRANSACTIONAL), some_batch(base_offset=500, last_offset=502)]
    batches[2] = replace(batches[2], records=tuple(replace(r, offset=500 + r.offset) for r in batches[2].records))
    buffer = b"".join(map(encode_batch, batches))
    plan = validate_batches(buffer, **LIMITS)
    assert plan.shape() == (3, 9, len(buffer), TIME + 1)
    assert plan.has_producer
    stamped = decode_log(plan.stamped(1000, 4))
    assert [batch.base_offset for _, batch in stamped] == [1000, 1003, 1006]
    assert {batch.leader_epoch for _, batch in stamped} == {4}
    for (_, found), batch in zip(stamped, batches, strict=True):
        shift = found.base_offset - batch.base_offset
        moved = tuple(replace(record, offset=record.offset + shift) for record in batch.records)
        assert found == replace(
            batch, records=moved, base_offset=found.base_offset, last_offset=found.last_offset, leader_epoch=4
        )
    assert not validate_batches(encode_batch(some_batch()), **LIMITS).has_producer


@pytest.mark.parametrize("wrap", [bytes, bytearray, memoryview])
def test_any_buffer_is_taken_and_copied(wrap: Any) -> None:
    source = bytearray(encode_batch(some_batch()))
    plan = validate_batches(wrap(source), **LIMITS)
    source[70] ^= 1
    assert decode_batch(plan.stamped(0, 0))[0].records == some_batch().records
    with pytest.raises(TypeError):
        validate_batches("text", **LIMITS)


INVALID = fastlog.InvalidRecordError
CORRUPT = fastlog.CorruptRecordError
REFUSED: dict[str, tuple[bytes, type[fastlog.Error], str]] = {
    "nothing": (b"", INVALID, "empty"),
    "a torn header": (encode_batch(some_batch())[:60], CORRUPT, "cut off"),
    "a torn batch": (encode_batch(some_batch())[:-1], CORRUPT, "cut off"),
    "the largest length": (
        encode_batch(some_batch())[:8] + (2**31 - 1).to_bytes(4, "big") + encode_batch(some_batch())[12:],
        CORRUPT,
        "cut off",
    ),
    "bytes behind": (encode_batch(some_batch()) + b"\0", CORRUPT, "batch 1 at position"),
    "magic 1": (seal(some_batch(), b"", count=0, magic=1), CORRUPT, "magic"),
    "magic 3": (seal(some_batch(), b"", count=0, magic=3), CORRUPT, "magic"),
    "unknown attributes": (seal(some_batch(attributes=0x80), b"", count=0), CORRUPT, "attributes"),
    "codec 5": (seal(some_batch(attributes=5), b"x"), CORRUPT, "attributes"),
    "a count below the offsets": (encode_batch(some_batch(last_offset=3)), INVALID, "3 records for 4 offsets"),
    "no records": (seal(some_batch(), b"", count=0), INVALID, "0 records"),
    "a control batch": (end_transaction_marker(7, 0, 0, True, TIME), INVALID, "control batch"),
    "log append times": (encode_batch(some_batch(attributes=LOG_APPEND_TIME)), INVALID, "log append times"),
    "a delete horizon": (encode_batch(some_batch(attributes=DELETE_HORIZON)), INVALID, "delete horizon"),
    "no base sequence": (encode_batch(idempotent(base_sequence=-1)), INVALID, "base sequence -1"),
    "no epoch": (encode_batch(idempotent(producer_epoch=-1)), INVALID, "epoch -1"),
    "a producer id below -1": (encode_batch(idempotent(producer_id=-2)), INVALID, "producer id is -2"),
    "a transaction of nobody": (encode_batch(some_batch(attributes=TRANSACTIONAL)), INVALID, "no producer id"),
    "offset deltas with a gap": (
        encode_batch(replace(some_batch(last_offset=2), records=tuple(Record(i, TIME) for i in (0, 1, 3)))),
        CORRUPT,
        "offset deltas",
    ),
    "offset deltas from 1": (
        encode_batch(replace(some_batch(), records=tuple(Record(i, TIME) for i in (1, 2, 3)))),
        CORRUPT,
        "offset deltas",
    ),
    "offset deltas twice": (
        encode_batch(replace(some_batch(), records=tuple(Record(i, TIME) for i in (0, 0, 1)))),
        CORRUPT,
        "offset deltas",
    ),
    "a timestamp below -1": (
        encode_batch(replace(some_batch(), records=tuple(Record(i, -2) for i in range(3)))),
        CORRUPT,
        "timestamp",
    ),
    "bytes behind the records": (
        seal(some_batch(), b"".join(encode_record(r, 0, TIME) for r in some_batch().records) + b"x"),
        CORRUPT,
        "left over",
    ),
    "records cut off": (
        seal(some_batch(), b"".join(encode_record(Record(i, TIME), 0, TIME) for i in (0, 1)) + b"\x50" * 7),
        CORRUPT,
        "length",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_each_rule_refuses_and_says_where(name: str) -> None:
    buffer, error, reason = REFUSED[name]
    with pytest.raises(error, match=reason) as caught:
        validate_batches(buffer, **LIMITS)
    assert type(caught.value) is error
    good = encode_batch(some_batch())
    if buffer:
        with pytest.raises(error, match=rf"batch (1 at position {len(good)}|2 at position \d+) of the append"):
            validate_batches(good + buffer, **LIMITS)
        if error is CORRUPT and name != "bytes behind":
            assert caught.value.position == 0  # type: ignore[attr-defined]


def test_sizes_are_limited() -> None:
    buffer = encode_batch(some_batch())
    assert validate_batches(buffer, max_message_bytes=len(buffer), segment_bytes=len(buffer)).shape()[0] == 1
    with pytest.raises(fastlog.RecordTooLargeError, match=f"has {len(buffer)} bytes, more than max_message_bytes"):
        validate_batches(buffer, max_message_bytes=len(buffer) - 1, segment_bytes=1 << 20)
    with pytest.raises(fastlog.RecordTooLargeError, match="of a segment"):
        validate_batches(buffer * 2, max_message_bytes=len(buffer), segment_bytes=2 * len(buffer) - 1)


def test_timestamps_are_limited_and_corrected() -> None:
    buffer = encode_batch(some_batch())
    assert validate_batches(buffer, **LIMITS, latest_timestamp=TIME + 1).shape()[3] == TIME + 1
    with pytest.raises(INVALID, match=f"the timestamp {TIME + 1}, later than the {TIME}"):
        validate_batches(buffer, **LIMITS, latest_timestamp=TIME)
    for wrong in (TIME, TIME + 2, TIME + 10**9, 2**62):
        plan = validate_batches(encode_batch(some_batch(max_timestamp=wrong)), **LIMITS, latest_timestamp=TIME + 1)
        assert decode_batch(plan.stamped(0))[0] == some_batch()
        assert plan.shape()[3] == TIME + 1
    none = replace(make_batch([Record(0, -1)]))
    assert validate_batches(encode_batch(none), **LIMITS, latest_timestamp=0).shape()[3] == -1
    oscalls.set_clock(TIME)
    assert latest_timestamp(5) == TIME + 5
    assert latest_timestamp(2**63 - 1) == 2**63 - 1


def test_compacted_logs_need_keys() -> None:
    keyed = encode_batch(some_batch())
    keyless = encode_batch(replace(some_batch(), records=(*some_batch().records[:2], Record(2, TIME, None, b"v"))))
    empty = encode_batch(replace(some_batch(), records=tuple(Record(i, TIME, b"", None) for i in range(3))))
    assert validate_batches(keyless, **LIMITS).shape()[0] == 1
    assert validate_batches(keyed + empty, **LIMITS, needs_keys=True).shape()[0] == 2
    with pytest.raises(INVALID, match="batch 1 at position .*, record 2: it has no key"):
        validate_batches(keyed + keyless, **LIMITS, needs_keys=True)


def test_the_logs_own_markers_are_allowed_to_itself() -> None:
    markers = end_transaction_marker(7, 0, 0, True, TIME) + end_transaction_marker(8, 0, 0, False, TIME)
    plan = validate_batches(markers, **LIMITS, internal=True, needs_keys=True)
    assert (plan.shape()[:2], plan.has_producer) == ((2, 2), True)
    broken = replace(decode_batch(markers)[0], records=(Record(0, TIME, b"", b""),))
    with pytest.raises(CORRUPT, match="control batch"):
        validate_batches(encode_batch(broken), **LIMITS, internal=True)
    with pytest.raises(INVALID, match="sequence 0"):
        validate_batches(encode_batch(replace(decode_batch(markers)[0], base_sequence=0)), **LIMITS, internal=True)


def compressed(records: tuple[Record, ...], **changes: Any) -> bytes:
    area = b"".join(encode_record(record, 0, TIME) for record in records)
    return seal(some_batch(**{"attributes": 1, **changes}), gzip.compress(area, mtime=0), count=3)


def test_compressed_batches_are_looked_into() -> None:
    records = some_batch().records
    buffer = compressed(records)
    plan = validate_batches(buffer * 2, **LIMITS)
    assert plan.stamped(0, 0) == buffer + struct.pack(">q", 3) + buffer[8:]
    assert plan.shape() == (2, 6, 2 * len(buffer), TIME + 1)
    with pytest.raises(CORRUPT, match="offset deltas"):
        validate_batches(compressed((*records[:2], Record(3, TIME))), **LIMITS)
    with pytest.raises(CORRUPT, match="record"):
        validate_batches(compressed(records[:2]), **LIMITS)
    with pytest.raises(CORRUPT, match="left over"):
        validate_batches(compressed((*records, Record(3, TIME))), **LIMITS)
    corrected = validate_batches(compressed(records, max_timestamp=TIME + 77), **LIMITS)
    assert corrected.stamped(0, 0) == buffer
    with pytest.raises(CORRUPT, match="CRC"):
        validate_batches(buffer[:-1] + bytes([buffer[-1] ^ 1]), **LIMITS)
    with pytest.raises(CORRUPT, match="compress"):
        validate_batches(seal(some_batch(attributes=1), b"no gzip, but long enough for its head", count=3), **LIMITS)
    bomb = compressed((Record(0, TIME, None, bytes(10_000_000)), *records[1:]))
    assert len(bomb) < 20_000
    with pytest.raises(fastlog.RecordTooLargeError, match="batch 0 at position 0 .*more than max_decompressed_b"):
        validate_batches(bomb, **LIMITS, max_decompressed_bytes=1000)
    keyless = compressed((Record(0, TIME, None, b"v"), *records[1:]))
    with pytest.raises(INVALID, match="record 0: it has no key"):
        validate_batches(keyless, **LIMITS, needs_keys=True)
    marker = decode_batch(end_transaction_marker(7, 0, 0, True, TIME))[0]
    with pytest.raises(CORRUPT, match="control batch"):
        validate_batches(encode_batch(replace(marker, attributes=marker.attributes | 1)), **LIMITS, internal=True)


def test_every_flipped_bit_is_refused_or_not_stored() -> None:
    """Base offset and leader epoch are stamped anew; every other bit is covered by a check."""
    buffer = encode_batch(idempotent())
    for at in range(8 * len(buffer)):
        changed = bytearray(buffer)
        changed[at // 8] ^= 1 << at % 8
        try:
            plan = validate_batches(bytes(changed), **LIMITS)
        except (CORRUPT, INVALID):
            continue
        assert at // 8 < 8 or 12 <= at // 8 < 16, f"bit {at} passes"
        assert plan.stamped(0, 0) == buffer


def acceptable(batch: Batch) -> bool:
    return (
        not batch.attributes & (CONTROL | LOG_APPEND_TIME | DELETE_HORIZON)
        and len(batch.records) == batch.last_offset - batch.base_offset + 1
        and batch.producer_id >= -1
        and (batch.producer_id >= 0 or not batch.attributes & TRANSACTIONAL)
        and (batch.producer_id < 0 or min(batch.producer_epoch, batch.base_sequence) >= 0)
    )


@pytest.mark.parametrize("_round", range(4))
def test_I13_random_lies_in_an_append_are_judged_as_the_reference_judges_them(seed: int, _round: int) -> None:
    chance = random.Random(f"{seed} {_round}")
    outcomes = {"taken": 0, "refused": 0}
    for _ in range(3000):
        batch = idempotent(attributes=chance.choice([0, 0, TRANSACTIONAL]))
        changed = bytearray(encode_batch(batch))
        for _ in range(chance.randint(1, 3)):
            at = chance.choice([chance.randrange(21, len(changed)), chance.randrange(8, 61)])
            if not 17 <= at < 21:
                changed[at] = chance.choice([0, 1, 0x7F, 0x80, 0xFF, changed[at] ^ 1 << chance.randrange(8)])
        lie = fix_crc(bytes(changed))
        # the largest timestamp is corrected, so that any will do that can be one
        largest = struct.unpack_from(">q", lie, 35)[0]
        try:
            expected, end = decode_batch(fix_crc(lie[:35] + struct.pack(">q", MOST) + lie[43:]))
            is_good = end == len(lie) and acceptable(expected) and largest >= -1
        except FormatError as problem:
            if "UTF-8" in str(problem):
                continue  # Kafka stores any bytes there, and so does fastlog
            is_good = False
        try:
            plan = validate_batches(lie, **LIMITS)
        except (CORRUPT, INVALID, fastlog.NotSupportedError):
            assert not is_good
            outcomes["refused"] += 1
            continue
        assert is_good
        found = decode_batch(plan.stamped(0, 0))[0]
        assert found.max_timestamp == max(record.timestamp for record in found.records) == plan.shape()[3]
        outcomes["taken"] += 1
    assert min(outcomes.values()) > 50, outcomes


@given(st.lists(strategies.records(), min_size=1, max_size=3))
def test_what_the_reference_encodes_is_taken(drawn: list[list[Record]]) -> None:
    buffer = b"".join(encode_batch(make_batch(records)) for records in drawn)
    plan = validate_batches(buffer, **LIMITS)
    assert plan.shape()[1] == sum(map(len, drawn))
    offset, found = 40, [batch for _, batch in decode_log(plan.stamped(40, 0))]
    for records, batch in zip(drawn, found, strict=True):
        assert batch.records == tuple(replace(r, offset=r.offset + offset) for r in records)
        offset += len(records)


def test_the_crc_is_looked_at_before_what_it_covers() -> None:
    buffer = bytearray(encode_batch(some_batch(last_offset=3)))
    buffer[CRC_AT] ^= 1
    with pytest.raises(CORRUPT, match="CRC"):
        validate_batches(bytes(buffer), **LIMITS)
