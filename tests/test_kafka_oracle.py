"""I12: after a clean close Kafka's own dump tool accepts every file, and sees the records that were appended."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest

import fastlog
from tests.foreign import read_all
from tests.oracle.kafka import KafkaOracle
from tests.reference.batch import Record
from tests.strategies import SOME_TIME

CONFIGURATIONS: dict[str, dict[str, Any]] = {
    "defaults": {},
    "tiny segments": {"segment_bytes": 5000, "max_message_bytes": 4000},
    "dense index": {"segment_bytes": 20_000, "index_interval_bytes": 1, "max_message_bytes": 2000},
    "index full": {"segment_index_bytes": 120, "index_interval_bytes": 1},
    "small batches": {"max_message_bytes": 300, "segment_bytes": 20_000, "index_interval_bytes": 100},
    "rolls by time": {"segment_ms": 1500, "index_interval_bytes": 200},
}


def random_record(chance: random.Random, order: str, number: int) -> Record:
    size = chance.choice([0, 1, 10, 60, 100])
    moment = {"rising": number, "equal": 0, "unordered": chance.randint(-5000, 5000)}[order]
    headers = tuple(
        (chance.choice(["h", "h", "trace", "", "ключ"]), chance.choice([None, b"", b"\x00\xff"]))
        for _ in range(chance.choice([0, 0, 0, 1, 3]))
    )
    key = chance.choice([None, b"", b"key", chance.randbytes(8)])
    value = chance.choice([None, chance.randbytes(size)])
    return Record(0, SOME_TIME + moment, key, value, headers)


def write_random_log(path: Path, options: dict[str, Any], chance: random.Random) -> list[Record]:
    """Append until a few segments are full, with reopening in between; return what was appended."""
    expected: list[Record] = []
    order = chance.choice(["rising", "equal", "unordered"])
    config = fastlog.LogConfig(**options)
    log = fastlog.PartitionLog.open(path, durability="os", config=config)
    for _ in range(150):
        drawn = [random_record(chance, order, len(expected)) for _ in range(chance.choice([1, 1, 2, 5, 12]))]
        base = log.append(
            [record.value for record in drawn],
            keys=[record.key for record in drawn],
            timestamps=[record.timestamp for record in drawn],
            headers=[record.headers for record in drawn],
        )
        expected += [Record(base + i, r.timestamp, r.key, r.value, r.headers) for i, r in enumerate(drawn)]
        if chance.random() < 0.03:
            log.close()
            log = fastlog.PartitionLog.open(path, durability="os", config=config)
        if chance.random() < 0.05:
            log.flush()
    assert log.verify().ok
    assert read_all(log) == expected
    log.close()
    return expected


@pytest.mark.parametrize("name", list(CONFIGURATIONS))
@pytest.mark.parametrize("_round", range(3))
def test_I12_kafka_accepts_every_file(folder: Path, kafka: KafkaOracle, seed: int, name: str, _round: int) -> None:
    path = folder / "events-0"
    expected = write_random_log(path, CONFIGURATIONS[name], random.Random(f"{seed} {name} {_round}"))
    segments = sorted(path.glob("*.log"))
    if name not in ("defaults", "rolls by time"):
        assert len(segments) > 1
    files = [file for file in sorted(path.iterdir()) if file.suffix in {".log", ".index", ".timeindex"}]
    assert len(files) == 3 * len(segments)
    dumped, problems = kafka.check(files)
    assert problems == []
    batches = [batch for file in sorted(dumped) for batch in dumped[file]]
    assert {batch.fields["isvalid"] for batch in batches} == {"true"}
    assert {batch.fields["partitionLeaderEpoch"] for batch in batches} == {"0"}
    assert {batch.fields["producerId"] for batch in batches} == {"-1"}
    shown = [(r.offset, r.timestamp, r.key, r.value) for batch in batches for r in batch.records]
    assert shown == [(r.offset, r.timestamp, r.key, r.value) for r in expected]
    read = [record for segment in segments for record in kafka.records(segment)]
    assert [(r.offset, r.timestamp, r.key, r.value, r.headers) for r in read] == [
        (r.offset, r.timestamp, r.key, r.value, r.headers) for r in expected
    ]


def test_I12_kafka_accepts_a_log_that_was_recovered(folder: Path, kafka: KafkaOracle) -> None:
    path = folder / "events-0"
    config = fastlog.LogConfig(segment_bytes=4000, max_message_bytes=2000, index_interval_bytes=100)
    log = fastlog.PartitionLog.open(path, durability="os", config=config)
    for number in range(100):
        log.append([b"value %d" % number], timestamps=SOME_TIME + number)
    log.close()
    (path / ".fastlog-clean").unlink()
    with max(path.glob("*.log")).open("ab") as file:
        file.write(b"torn")
    for index in path.glob("*index"):
        index.unlink()
    with fastlog.PartitionLog.open(path, durability="os", config=config) as log:
        assert log.recovery is not None
        assert log.end_offset == 100
        assert not log.verify().damages
    with fastlog.PartitionLog.open(path, read_only=True) as log:
        assert log.verify().ok, "the close has made the lost indexes anew"
    files = [file for file in sorted(path.iterdir()) if file.suffix in {".log", ".index", ".timeindex"}]
    assert len(files) == 3 * len(list(path.glob("*.log")))
    dumped, problems = kafka.check(files)
    assert problems == []
    assert [r.offset for file in sorted(dumped) for batch in dumped[file] for r in batch.records] == list(range(100))


def test_I12_large_values_pass_through_unharmed(folder: Path, kafka: KafkaOracle, seed: int) -> None:
    chance = random.Random(seed)
    path = folder / "events-0"
    values = [chance.randbytes(size) for size in (4095, 4096, 4097, 65_536, 300_000, 1_000_000)]
    with fastlog.PartitionLog.open(path, durability="os") as log:
        log.append(values, timestamps=SOME_TIME)
        for value in values:
            log.append([value], keys=[value[:5000]], timestamps=SOME_TIME)
        assert log.verify().ok
    [segment] = path.glob("*.log")
    assert [record.value for record in kafka.records(segment)] == values + values
    assert kafka.check(sorted(path.glob("0*")))[1] == []
