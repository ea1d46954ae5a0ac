"""The reference model itself, held against Kafka: an oracle has to be right before it judges others."""

from __future__ import annotations

import random
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.oracle.kafka import KafkaOracle
from tests.reference.batch import (
    DELETE_HORIZON,
    LOG_APPEND_TIME,
    Batch,
    Record,
    control_batch,
    decode_batch,
    encode_batch,
    make_batch,
)
from tests.reference.indexes import parse_index, parse_time_index
from tests.reference.log import ModelConfig, ModelLog
from tests.reference.varint import FormatError, read_varint, write_varint
from tests.strategies import SOME_TIME, records

EDGES = [0, -1, 1, 63, 64, -64, -65, 2**31 - 1, -(2**31), 2**63 - 1, -(2**63)]


@given(st.one_of(st.sampled_from(EDGES), st.integers(-(2**63), 2**63 - 1)))
def test_varints_survive_the_round_trip(value: int) -> None:
    encoded = write_varint(value)
    assert read_varint(encoded, 0, len(encoded), bits=64) == (value, len(encoded))
    with pytest.raises(FormatError):
        read_varint(encoded, 0, len(encoded) - 1, bits=64)


@pytest.mark.parametrize(
    ("value", "encoded"), [(0, "00"), (-1, "01"), (1, "02"), (-65, "8101"), (2**31 - 1, "feffffff0f")]
)
def test_varints_have_the_documented_bytes(value: int, encoded: str) -> None:
    assert write_varint(value).hex() == encoded


@given(records())
def test_batches_survive_the_round_trip(drawn: list[Record]) -> None:
    batch = make_batch(drawn)
    encoded = encode_batch(batch)
    assert decode_batch(encoded) == (batch, len(encoded))


def test_every_flipped_bit_behind_the_crc_is_found() -> None:
    encoded = encode_batch(make_batch([Record(0, SOME_TIME, b"k", b"value", (("h", None),))]))
    for bit in range(16 * 8, len(encoded) * 8):
        damaged = bytearray(encoded)
        damaged[bit // 8] ^= 1 << bit % 8
        with pytest.raises(FormatError):
            decode_batch(bytes(damaged))


def write_segment(
    folder: Path, base_offset: int, log: bytes, index: bytes = b"", time_index: bytes = b""
) -> list[Path]:
    paths = [folder / f"{base_offset:020}{suffix}" for suffix in (".log", ".index", ".timeindex")]
    for path, data in zip(paths, (log, index, time_index), strict=True):
        path.write_bytes(data)
    return paths


def test_kafka_accepts_special_batches_of_the_model(kafka: KafkaOracle, folder: Path) -> None:
    first = make_batch(
        [Record(0, SOME_TIME, None, b""), Record(1, SOME_TIME - 5, b"", None, (("a", None), ("a", b"")))]
    )
    gaps = Batch(5, 9, SOME_TIME, SOME_TIME + 2, (Record(6, SOME_TIME + 2, b"k", b"v"),))
    stamped = replace(make_batch([Record(10, 77, None, b"v")]), attributes=LOG_APPEND_TIME, max_timestamp=SOME_TIME)
    horizon = replace(
        make_batch([Record(11, SOME_TIME, b"k")]), attributes=DELETE_HORIZON, base_timestamp=SOME_TIME + 9
    )
    empty = Batch(12, 14, -1, SOME_TIME)
    batches = [first, gaps, stamped, horizon, empty, control_batch(15, SOME_TIME, commit=True)]
    [path, *_] = write_segment(folder, 0, b"".join(map(encode_batch, batches)))
    dumped, problems = kafka.check([path])
    assert [line for line in problems if "Non-consecutive" not in line and "is followed by" not in line] == []
    [found] = dumped.values()
    assert [batch.fields["isvalid"] for batch in found] == ["true"] * 6
    assert [int(batch.fields["lastOffset"]) for batch in found] == [1, 9, 10, 11, 14, 15]
    assert found[2].records[0].timestamp == SOME_TIME
    assert found[3].records[0].timestamp == SOME_TIME
    assert found[5].fields["isControl"] == "true"
    seen = [(r.offset, r.timestamp, r.key, r.value, r.headers) for r in kafka.records(path)]
    ours = [decode_batch(encode_batch(batch))[0] for batch in batches]
    assert seen == [(r.offset, r.timestamp, r.key, r.value, r.headers) for batch in ours for r in batch.records]


def test_kafka_finds_the_damage_that_it_is_asked_about(kafka: KafkaOracle, folder: Path) -> None:
    encoded = encode_batch(make_batch([Record(0, SOME_TIME, b"k", b"v")]))
    following = encode_batch(make_batch([Record(1, SOME_TIME + 1, b"k", b"v")]))
    [log, index, time_index] = write_segment(folder, 0, encoded[:-1] + b"!" + following)
    assert any("isvalid: false" in line for line in kafka.check([log])[1])
    [log, index, time_index] = write_segment(folder, 0, encoded + following[:-1])
    assert any("invalid bytes" in line for line in kafka.check([log])[1])
    wrong_position = (1).to_bytes(4, "big") + (0).to_bytes(4, "big")
    write_segment(folder, 0, encoded + following, wrong_position)
    assert any("Mismatches in" in line for line in kafka.check([index])[1])
    wrong_timestamp = SOME_TIME.to_bytes(8, "big") + (1).to_bytes(4, "big")
    write_segment(folder, 0, encoded + following, b"", wrong_timestamp)
    assert any("timestamp mismatch" in line for line in kafka.check([time_index])[1])


def test_kafka_accepts_random_logs_of_the_model(kafka: KafkaOracle, folder: Path, seed: int) -> None:
    chance = random.Random(seed)
    model = ModelLog(ModelConfig(segment_bytes=6000, index_interval_bytes=200, segment_index_bytes=256))
    for _ in range(200):
        count = chance.randint(1, 8)
        drawn = [Record(0, SOME_TIME + chance.randint(-500, 500), b"k", chance.randbytes(20)) for _ in range(count)]
        model.append(drawn, SOME_TIME)
    model.close()
    assert len(model.segments) > 3
    paths = []
    for segment in model.segments:
        indexes = segment.indexes
        assert parse_index(indexes.index_file) == indexes.entries
        assert parse_time_index(indexes.time_index_file) == indexes.time_entries
        assert len(indexes.time_index_file) <= 256
        paths += write_segment(
            folder, segment.base_offset, segment.log_file, indexes.index_file, indexes.time_index_file
        )
    dumped, problems = kafka.check(paths)
    assert problems == []
    found = [r for path in sorted(dumped) for batch in dumped[path] for r in batch.records]
    assert [(r.offset, r.timestamp, r.value) for r in found] == [
        (r.offset, r.timestamp, r.value) for r in model.records
    ]
