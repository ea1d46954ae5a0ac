"""``replay`` tells every batch of a log as it was written: compared with the model, which reads the segment files."""

from __future__ import annotations

import multiprocessing
import random
import time
from pathlib import Path
from typing import Any

import pytest

import fastlog
from fastlog._core import ReplayedBatch, encode_batch
from fastlog.reports import CODECS, OpenTransaction
from tests.reference.batch import CONTROL, TRANSACTIONAL, Batch, decode_batch, decode_log

SMALL = fastlog.LogConfig(segment_bytes=6_000, index_interval_bytes=300, max_message_bytes=3_000)
COMPACTED = fastlog.LogConfig(
    segment_bytes=6_000,
    index_interval_bytes=300,
    max_message_bytes=3_000,
    cleanup_policy="compact",
    min_cleanable_dirty_ratio=0.0,
)
FIRST_PRODUCER = 1 << 41


def stored(folder: Path) -> list[Batch]:
    """Every batch of the closed log in ``folder``, as the model reads it."""
    return [batch for path in sorted(folder.glob("*.log")) for _, batch in decode_log(path.read_bytes())]


def told(batch: Any) -> tuple[Any, ...]:
    """A replayed batch, in comparable terms."""
    return (
        batch.base_offset,
        batch.last_offset,
        batch.record_count,
        batch.producer_id,
        batch.producer_epoch,
        batch.base_sequence,
        batch.is_transactional,
        batch.is_control,
        batch.commits,
        batch.timestamp,
        batch.offsets,
        batch.keys(),
        batch.values(),
    )


def expected(batch: Batch) -> tuple[Any, ...]:
    """The same of a batch of the model."""
    shown = batch.visible_records
    is_control = bool(batch.attributes & CONTROL)
    commits = (batch.records[0].key or b"")[3] == 1 if is_control and batch.records else None
    return (
        batch.base_offset,
        batch.last_offset,
        len(batch.records),
        batch.producer_id,
        batch.producer_epoch,
        batch.base_sequence,
        bool(batch.attributes & TRANSACTIONAL),
        is_control,
        commits,
        batch.max_timestamp,
        [record.offset for record in shown],
        [record.key for record in shown],
        [record.value for record in shown],
    )


class Producer:
    """Appends random batches of all kinds, transactions of a few producers among them."""

    def __init__(self, log: fastlog.PartitionLog, chance: random.Random) -> None:
        self.log, self.chance = log, chance
        self.sequences: dict[int, int] = {}
        self.open: set[int] = set()

    def append(self) -> None:
        chance = self.chance
        count = chance.choice([1, 1, 2, 9])
        values = [chance.choice([None, b"", chance.randbytes(chance.randrange(150))]) for _ in range(count)]
        keys = [b"key-%d" % chance.randrange(6) for _ in range(count)]
        codec = chance.choice([None, None, *CODECS])
        kind = chance.random()
        if kind < 0.4:
            self.log.append(values, keys=keys, compression=codec)
        elif kind < 0.6 and self.open:
            producer = chance.choice(sorted(self.open))
            self.log.end_transaction(producer, 0, commit=chance.random() < 0.5)
            self.open.remove(producer)
        else:
            producer = FIRST_PRODUCER + chance.randrange(4)
            sequence = self.sequences.get(producer, 0)
            transactional = producer % 2 == 0
            self.log.append_batch(
                encode_batch(
                    values,
                    keys,
                    producer_id=producer,
                    producer_epoch=0,
                    base_sequence=sequence,
                    compression=codec,
                    transactional=transactional,
                    headers={"h": b"1"} if chance.random() < 0.2 else None,
                )
            )
            self.sequences[producer] = sequence + count
            if transactional:
                self.open.add(producer)


@pytest.mark.parametrize("config", [SMALL, COMPACTED], ids=["plain", "compacted"])
@pytest.mark.parametrize("mmap", [True, False], ids=["mapped", "read"])
def test_replay_tells_what_the_files_hold(folder: Path, seed: int, config: fastlog.LogConfig, mmap: bool) -> None:
    chance = random.Random(seed)
    options = fastlog.LogConfig(**{**{k: v for k, v in vars_of(config).items() if v is not None}, "mmap": mmap})
    with fastlog.PartitionLog.open(folder / "state-0", durability="os", config=options) as log:
        producer = Producer(log, chance)
        for _ in range(250):
            producer.append()
            if chance.random() < 0.02:
                log.maintain()
        live = [told(batch) for batch in log.replay()]
        assert live[-1][1] == log.end_offset - 1
        assert len(log.segments()) > 2
        starts = [chance.randrange(log.end_offset + 1) for _ in range(40)]
        from_starts = [[batch.base_offset for batch in log.replay(start)] for start in starts]
        held = list(log.replay())
    found = [expected(batch) for batch in stored(folder / "state-0")]
    assert live == found
    for start, bases in zip(starts, from_starts, strict=True):
        assert bases == [batch[0] for batch in found if batch[1] >= start]
    assert [told(batch) for batch in held] == found, "batches outlive the log"
    with fastlog.PartitionLog.open(folder / "state-0", read_only=True) as log:
        assert [told(batch) for batch in log.replay()] == found


def vars_of(config: fastlog.LogConfig) -> dict[str, Any]:
    return {name: getattr(config, name) for name in config.__dataclass_fields__}


def test_replay_ends_where_the_log_ends_when_it_gets_there(folder: Path) -> None:
    with fastlog.PartitionLog.open(folder / "state-0", durability="os", config=SMALL) as log:
        assert list(log.replay()) == []
        for i in range(10):
            log.append([b"%d" % i])
        replay = log.replay()
        next(replay)
        assert replay.next_offset == 1
        for i in range(300):
            log.append([b"%0100d" % i])  # and rolls
        assert [batch.base_offset for batch in replay] == list(range(1, 310))
        assert replay.next_offset == 310
        log.append([b"310"])
        assert [batch.base_offset for batch in replay] == [310], "it can go on"
        assert list(log.replay(log.end_offset)) == []
        assert [batch.base_offset for batch in log.replay(309)] == [309, 310]


def test_replay_steps_over_what_compaction_took_away(folder: Path) -> None:
    with fastlog.PartitionLog.open(folder / "state-0", durability="os", config=COMPACTED) as log:
        end = 0
        while len(log.segments()) < 3:
            end = log.append([b"x" * 1000], keys=[b"key"]) + 1
        log.append([None], keys=[b"key"])
        log.maintain()
        replay = log.replay()
        bases = [batch.base_offset for batch in replay]
        assert replay.next_offset == log.end_offset == end + 1
        assert len(bases) < end
        last = log.replay(bases[-2] + 1)
        assert next(last).base_offset == bases[-1], "from an offset that is gone"
        log.append([b"next"], keys=[b"key"], expected_end_offset=replay.next_offset)


def test_replay_shows_what_is_neither_durable_nor_decided(folder: Path) -> None:
    with (
        fastlog.PartitionLog.open(folder / "state-0", durability="os") as writer,
        fastlog.PartitionLog.open(folder / "state-0", durability="group") as log,
    ):
        batch = encode_batch(
            [b"open"], producer_id=FIRST_PRODUCER, producer_epoch=3, base_sequence=0, transactional=True
        )
        writer.append_batch(batch)
        assert log.durable_offset == 0
        assert [told.values() for told in log.replay()] == [[b"open"]]
        assert log.durable_offset == 0, "replay waits for no disk"


@pytest.mark.parametrize("start", [-1, 4, 11])
def test_a_start_outside_of_the_log_is_refused(folder: Path, start: int) -> None:
    with fastlog.PartitionLog.open(folder / "state-0", durability="os", config=SMALL) as log:
        for i in range(10):
            log.append([b"%01000d" % i])
        log.delete_records(5)
        with pytest.raises(fastlog.OffsetOutOfRangeError, match=r"from 5 up to 10") as caught:
            log.replay(start)
        assert (caught.value.start_offset, caught.value.end_offset) == (5, 10)
        with pytest.raises(fastlog.InvalidRecordError):
            log.replay("5")  # type: ignore[arg-type]


def test_damage_is_named_and_the_rest_can_be_replayed(folder: Path) -> None:
    path = folder / "state-0"
    with fastlog.PartitionLog.open(path, durability="os") as log:
        positions = []
        for i in range(5):
            positions.append(log.segments()[-1].size)
            log.append([b"%0100d" % i])
    segment = path / f"{0:020}.log"
    content = bytearray(segment.read_bytes())
    content[positions[2] + 100] ^= 1
    with fastlog.PartitionLog.open(path, durability="os") as log:
        segment.write_bytes(content)  # in place: the same file is mapped
        found = []
        with pytest.raises(fastlog.CorruptLogError) as caught:
            found.extend(batch.base_offset for batch in log.replay(1))
        assert caught.value.next_offset == 3
        assert [batch.base_offset for batch in log.replay(3)] == [3, 4]


def test_a_closed_log_ends_a_replay(folder: Path) -> None:
    log = fastlog.PartitionLog.open(folder / "state-0", durability="os")
    log.append([b"1"])
    log.append([b"2"])
    replay = log.replay()
    batch = next(replay)
    log.close()
    with pytest.raises(fastlog.ClosedError):
        next(replay)
    assert batch.values() == [b"1"]
    for cls in (type(replay), ReplayedBatch):
        with pytest.raises(TypeError):
            cls()  # type: ignore[call-arg]


def append_many(path: str, worker: int, count: int) -> None:
    with fastlog.PartitionLog.open(path, durability="os", config=SMALL) as log:
        for i in range(count):
            log.append([b"%d %d" % (worker, i)] * (1 + i % 3), keys=[b"%d" % worker] * (1 + i % 3))


def test_replay_beside_appenders_of_other_processes(folder: Path) -> None:
    """Offsets follow each other, each appender's batches are in order, and every replay begins as the last one did."""
    path, workers, count = folder / "state-0", 3, 400
    spawn = multiprocessing.get_context("spawn")
    with fastlog.PartitionLog.open(path, durability="os", config=SMALL) as log:
        processes = [spawn.Process(target=append_many, args=(str(path), i, count)) for i in range(workers)]
        for process in processes:
            process.start()
        seen: list[tuple[int, bytes | None]] = []
        while True:
            is_last = not any(process.is_alive() for process in processes)
            position = 0
            found = []
            for batch in log.replay():
                assert batch.base_offset == position
                assert len(set(batch.values())) == 1
                position = batch.last_offset + 1
                found.append((batch.base_offset, batch.values()[0]))
            assert found[: len(seen)] == seen
            seen = found
            if is_last:
                break
        for process in processes:
            process.join(30)
            assert process.exitcode == 0
        for worker in range(workers):
            mine = [value for _, value in seen if value and value.startswith(b"%d " % worker)]
            assert mine == [b"%d %d" % (worker, i) for i in range(count)]


def write_and_compact(path: str, seed: int, stopped: Any) -> None:
    """Count up under a few keys, and compact all the time."""
    chance = random.Random(seed)
    with fastlog.PartitionLog.open(path, durability="os", config=COMPACTED) as log:
        count = 0
        while not stopped.is_set():
            for _ in range(20):
                count += 1
                log.append([b"%d" % count + b" " * chance.randrange(400)], keys=[b"key-%d" % (count % 10)])
            log.maintain()


def test_replay_beside_compaction_in_another_process(folder: Path, seed: int) -> None:
    """Whatever comes and goes meanwhile: offsets rise, and what was told last of each key are the last ten counts."""
    path = folder / "state-0"
    spawn = multiprocessing.get_context("spawn")
    stopped = spawn.Event()
    process = spawn.Process(target=write_and_compact, args=(str(path), seed, stopped))
    process.start()
    try:
        with fastlog.PartitionLog.open(path, durability="os", config=COMPACTED) as log:
            replays, deadline = 0, time.monotonic() + 3
            while replays < 50 or time.monotonic() < deadline:
                state: dict[bytes | None, int] = {}
                last = -1
                for batch in log.replay():
                    assert batch.base_offset > last
                    last = batch.last_offset
                    state.update(zip(batch.keys(), [int(value or b"0") for value in batch.values()], strict=True))
                newest = max(state.values(), default=0)
                assert set(state.values()) == set(range(max(newest - 9, 1), newest + 1)) or newest == 0
                replays += 1
    finally:
        stopped.set()
        process.join(30)
    assert process.exitcode == 0


# --- open transactions ----------------------------------------------------------------------------------------------


def test_open_transactions(folder: Path, seed: int) -> None:
    chance = random.Random(seed)
    path = folder / "state-0"
    with (
        fastlog.PartitionLog.open(path, durability="os", config=SMALL) as log,
        fastlog.PartitionLog.open(path, durability="os") as other,
        fastlog.PartitionLog.open(path, durability="os", read_only=True) as reader,
    ):
        assert log.open_transactions() == []
        producer = Producer(log, chance)
        for _ in range(120):
            producer.append()
            if chance.random() < 0.2:
                first: dict[int, int] = {}
                for batch in log.replay():
                    if batch.is_control:
                        first.pop(batch.producer_id)
                    elif batch.is_transactional:
                        first.setdefault(batch.producer_id, batch.base_offset)
                wanted = sorted((OpenTransaction(pid, 0, at) for pid, at in first.items()), key=lambda one: one[2])
                assert log.open_transactions() == other.open_transactions() == reader.open_transactions() == wanted
        for open_one in other.open_transactions():
            other.end_transaction(open_one.producer_id, open_one.producer_epoch, commit=False)
        assert log.open_transactions() == reader.open_transactions() == []


# --- encoding one batch ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("codec", [None, *CODECS])
def test_an_encoded_batch_is_what_was_asked_for(codec: str | None) -> None:
    values = [b"x" * 5000, None, b""]
    encoded = encode_batch(
        values,
        [b"k", None, b""],
        [5, 3, 9],
        {"h": None},
        producer_id=1 << 61,
        producer_epoch=7,
        base_sequence=2**31 - 1,
        transactional=True,
        compression=codec,
    )
    batch, end = decode_batch(encoded)
    assert end == len(encoded)
    assert [(record.key, record.value, record.timestamp) for record in batch.records] == [
        (b"k", values[0], 5),
        (None, None, 3),
        (b"", b"", 9),
    ]
    assert batch.records[0].headers == (("h", None),)
    assert (batch.producer_id, batch.producer_epoch, batch.base_sequence) == (1 << 61, 7, 2**31 - 1)
    assert batch.attributes == TRANSACTIONAL | (0 if codec is None else CODECS.index(codec))
    assert batch.max_timestamp == 9


def test_a_plain_encoded_batch_has_no_producer() -> None:
    batch, _ = decode_batch(encode_batch([b"v"]))
    assert (batch.producer_id, batch.producer_epoch, batch.base_sequence, batch.attributes) == (-1, -1, -1, 0)


@pytest.mark.parametrize(
    "wrong",
    [
        {"values": []},
        {"values": ["text"]},
        {"values": [b"1"], "keys": [b"1", b"2"]},
        {"values": [b"1"], "transactional": True},
        {"values": [b"1"], "producer_id": 5},
        {"values": [b"1"], "producer_id": 1 << 63, "producer_epoch": 0, "base_sequence": 0},
        {"values": [b"1"], "producer_id": 5, "producer_epoch": 1 << 15, "base_sequence": 0},
        {"values": [b"1"], "producer_id": 5, "producer_epoch": 0, "base_sequence": 1 << 31},
        {"values": [b"1"], "producer_id": 5, "producer_epoch": 0, "base_sequence": -1},
    ],
)
def test_what_is_no_batch_is_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(fastlog.InvalidRecordError):
        encode_batch(**wrong)
    with pytest.raises(fastlog.ConfigError):
        encode_batch([b"1"], compression="brotli")


# --- flushing up to an offset -------------------------------------------------------------------------------------


def test_flush_until(folder: Path) -> None:
    with fastlog.PartitionLog.open(folder / "state-0", durability="os") as log:
        log.append([b"1", b"2"])
        log.flush_until(0)
        assert log.durable_offset == 0, "what is durable costs no sync"
        log.flush_until(1)
        assert log.durable_offset == 2, "a sync covers all that is there"
        with pytest.raises(fastlog.OffsetOutOfRangeError):
            log.flush_until(3)
    with (
        fastlog.PartitionLog.open(folder / "state-0", read_only=True) as reader,
        pytest.raises(fastlog.NotSupportedError),
    ):
        reader.flush_until(1)
