"""A real Kafka broker and fastlog read each other's partitions.

Kafka to fastlog: Kafka's clients write topics of every kind; the broker is stopped, or killed; fastlog opens copies of
its folders and finds what Kafka's consumer found, record by record.

fastlog to Kafka: the segments of a log go into the folder of an empty topic; the broker starts, trusting the files or
recovering them; its consumer finds what was appended; Kafka appends to it; fastlog reads all of that again.

What fastlog cannot do yet is expected to be refused: see ``READY``. All of this file runs in one worker (conftest).
"""

from __future__ import annotations

import os
import random
import re
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, replace
from functools import partial, reduce
from pathlib import Path
from typing import Any

import pytest

import fastlog
from tests.folders import MEMORY
from tests.foreign import copy_folder
from tests.oracle.broker import KafkaBroker, KafkaClients, Step, send
from tests.oracle.kafka import KafkaOracle, KafkaRecord
from tests.reference.batch import TRANSACTIONAL, Record, encode_batch, make_batch
from tests.strategies import SOME_TIME

# What fastlog can do, of: "codecs" (compressed batches), "transactions" (their isolation, when reading),
# "append_batch" (batches of idempotent and transactional producers), "compaction" (its own), "turns" (a folder with its
# own files in it to which Kafka appended).
# A test of what is not named here must fail, by refusing; when it passes, it is time to name it.
READY: set[str] = {"codecs", "transactions", "append_batch", "compaction", "turns"}

ISOLATIONS = ("read_uncommitted", "read_committed")
REFUSED = (fastlog.NotSupportedError, fastlog.ConfigError, fastlog.CorruptLogError, AttributeError, TypeError)


def requires(*features: str, raises: Any = REFUSED) -> list[pytest.MarkDecorator]:
    missing = [feature for feature in features if feature not in READY]
    if not missing:
        return []
    return [pytest.mark.xfail(reason=f"not built yet: {', '.join(missing)}", strict=True, raises=raises)]


def marked(marks: list[pytest.MarkDecorator]) -> Callable[[Any], Any]:
    """The marks as a decorator."""

    def mark(test: Any) -> Any:
        return reduce(lambda marked, each: each(marked), marks, test)

    return mark


def open_log(path: Path, isolation: str = "read_uncommitted", **options: Any) -> Any:
    """Open a partition; the isolation level is named where fastlog knows of such a thing."""
    if "transactions" in READY:
        options["isolation"] = isolation
    return fastlog.PartitionLog.open(path, **options)


def seen(log: Any, start: int | None = None) -> list[KafkaRecord]:
    """Everything readable, as Kafka's consumer would tell it."""
    found: list[KafkaRecord] = []
    for batch in log.batches(start):
        for record in batch:
            key, value = (None if content is None else bytes(content) for content in (record.key, record.value))
            timestamp = -1 if record.timestamp is None else record.timestamp
            found.append(KafkaRecord(record.offset, timestamp, key, value, tuple(record.headers)))
    return found


def some_records(chance: random.Random, count: int, *, keys: int = 0, large: bool = False) -> list[KafkaRecord]:
    """Random records; ``keys`` counts the different keys of a topic to be compacted, where none may be null."""
    found = []
    for _ in range(count):
        size = chance.choice([5000, 20_000, 70_000, 200_000]) if large else chance.choice([0, 1, 10, 60, 100, 700])
        key = b"key %d" % chance.randrange(keys) if keys else chance.choice([None, b"", b"key", chance.randbytes(8)])
        value = chance.choice([None, chance.randbytes(size), (b"fastlog " * (size // 8 + 1))[:size]])
        headers = tuple(
            (chance.choice(["h", "h", "trace", "", "ключ"]), chance.choice([None, b"", b"\x00\xff"]))
            for _ in range(chance.choice([0, 0, 0, 1, 3]))
        )
        found.append(KafkaRecord(-1, SOME_TIME + chance.randrange(-100_000, 100_000), key, value, headers))
    return found


# --- Kafka to fastlog ---------------------------------------------------------------------------------------------


SMALL = {"internal_segment_bytes": 5000, "segment_index_bytes": 4000, "index_interval_bytes": 200}
COMPACTED = {
    "cleanup_policy": "compact", "min_cleanable_dirty_ratio": 0.0001, "delete_retention_ms": 0, **SMALL,
}  # fmt: skip
PLAIN = {"enable_idempotence": "false", "batch_size": 600, "linger_ms": 20}


@dataclass
class Kind:
    """A kind of topic: its options, how its producers are made, and what is written to it in one go."""

    name: str
    options: dict[str, Any] = field(default_factory=dict)
    producers: list[dict[str, Any]] = field(default_factory=lambda: [{}])
    needs: tuple[str, ...] = ()
    keys: int = 0
    large: bool = False
    delete: bool = False

    def producer_names(self) -> list[str]:
        return [f"{self.name}-{number}" for number in range(len(self.producers))]

    def steps(self, chance: random.Random) -> Iterator[Step]:
        """Sends by all producers in turn; those that are transactional begin, commit and abort in between."""
        names = self.producer_names()
        is_transactional = ["transactional_id" in config for config in self.producers]
        is_open = [False] * len(names)
        for _ in range(4 if self.large else 50):
            chosen = chance.randrange(len(names))
            if is_transactional[chosen] and not is_open[chosen]:
                is_open[chosen] = True
                yield {"do": "begin", "producer": names[chosen]}
            records = some_records(chance, chance.choice([1, 1, 2, 5, 12]), keys=self.keys, large=self.large)
            yield send(names[chosen], self.name, records)
            if is_open[chosen] and chance.random() < 0.4:
                is_open[chosen] = False
                yield {"do": chance.choice(["commit", "abort"]), "producer": names[chosen]}
        if self.keys:  # an open transaction would keep the cleaner away
            yield from (
                {"do": "commit", "producer": name} for name, opened in zip(names, is_open, strict=True) if opened
            )


def transactional(*names: str, **config: Any) -> list[dict[str, Any]]:
    return [{"transactional_id": name, "batch_size": 600, "linger_ms": 20, **config} for name in names]


CODECS = ("gzip", "snappy", "lz4", "zstd")
KINDS = [
    Kind("plain", SMALL, [PLAIN]),
    Kind("large", {}, [PLAIN], large=True),
    Kind("append-time", {"message_timestamp_type": "LogAppendTime", **SMALL}, [PLAIN]),
    Kind("idempotent", SMALL, [{**PLAIN, "enable_idempotence": "true"}] * 2),
    Kind("deleted", SMALL, [PLAIN], delete=True),
    Kind("compacted", COMPACTED, [PLAIN], keys=20),
    *(Kind(codec, SMALL, [{**PLAIN, "compression_type": codec}], ("codecs",)) for codec in CODECS),
    *(Kind(f"large-{codec}", {}, [{**PLAIN, "compression_type": codec}], ("codecs",), large=True) for codec in CODECS),
    Kind("mixed", SMALL, [PLAIN, *({**PLAIN, "compression_type": codec} for codec in CODECS)], ("codecs",)),
    Kind("recompressed", {"compression_type": "zstd", **SMALL}, [PLAIN], ("codecs",)),
    Kind("compacted-codec", COMPACTED, [{**PLAIN, "compression_type": "lz4"}], ("codecs",), keys=20),
    Kind("transactions", SMALL, [*transactional("a", "b", "c"), PLAIN], ("transactions",)),
    Kind("zstd-transactions", SMALL, transactional("d", "e", compression_type="zstd"), ("transactions", "codecs")),
    Kind("compacted-transactions", COMPACTED, [*transactional("f", "g"), PLAIN], ("transactions",), keys=20),
]
BY_NAME = {kind.name: kind for kind in KINDS}


@dataclass
class Written:
    """A folder that Kafka left, and what Kafka's consumer saw in it: records by isolation level."""

    folder: Path
    records: dict[str, list[KafkaRecord]]
    start_offset: int
    last_stable_offset: int
    end_offset: int
    offsets_for_times: dict[int, int | None]
    seed: int


def await_cleaner(broker: KafkaBroker, topic: str) -> None:
    """Wait until Kafka has compacted everything up to the active segment."""
    patience = time.monotonic() + 30
    while time.monotonic() < patience:
        active = max(int(file.stem) for file in broker.topic_folder(topic).glob("*.log"))
        checkpoint = (broker.topics / "cleaner-offset-checkpoint").read_text().splitlines()
        if f"{topic} 0 {active}" in checkpoint:
            return
        time.sleep(0.02)
    raise AssertionError(f"Kafka did not compact {topic} up to {active}: {checkpoint}")


def write_kind(broker: KafkaBroker, clients: KafkaClients, kind: Kind, chance: random.Random) -> None:
    for name, config in zip(kind.producer_names(), kind.producers, strict=True):
        clients.producer(name, **config)
    clients.run(kind.steps(chance))
    if "compact" in str(kind.options.get("cleanup_policy")):
        await_cleaner(broker, kind.name)
        clients.run(kind.steps(chance))
        await_cleaner(broker, kind.name)
    if kind.delete:
        start, _, end = clients.offsets(kind.name)
        clients.delete_records(kind.name, chance.randrange(start + 1, end))
    clients.run([{"do": "close", "producer": name} for name in kind.producer_names()])


def consumed(clients: KafkaClients, kind: Kind, chance: random.Random, seed: int) -> Written:
    everything = clients.consume(kind.name)
    is_transactional = "transactions" in kind.needs
    committed = clients.consume(kind.name, isolation="read_committed") if is_transactional else everything
    times = [SOME_TIME + chance.randrange(-101_000, 101_000) for _ in range(3)] + [0, 2 * SOME_TIME]
    times += [chance.choice(everything).timestamp for _ in range(2)]
    if is_transactional or kind.delete:
        times = []  # Kafka finds markers by their time too, and knows its log start
    found = {moment: clients.offset_for_time(kind.name, moment) for moment in times}
    records = dict(zip(ISOLATIONS, (everything, committed), strict=True))
    return Written(Path(), records, *clients.offsets(kind.name), found, seed)


@pytest.fixture(scope="module")
def from_kafka(started_broker: KafkaBroker, clients: KafkaClients) -> Iterator[dict[str, dict[str, Written]]]:
    """Every kind of topic as a clean stop left it, and, with as much again appended, as kill -9 left it."""
    seed = int(os.environ.get("FASTLOG_SEED", random.SystemRandom().randrange(1 << 32)))
    print(f"FASTLOG_SEED={seed}")
    chance = random.Random(seed)
    if not started_broker.is_running:
        started_broker.start()
    for kind in KINDS:
        clients.create_topic(kind.name, **kind.options)
    found: dict[str, dict[str, Written]] = {}
    with tempfile.TemporaryDirectory(prefix="fastlog-from-kafka-", dir=MEMORY) as name:
        for end in ("stopped", "killed"):
            for kind in KINDS:
                write_kind(started_broker, clients, kind, chance)
            found[end] = {kind.name: consumed(clients, kind, chance, seed) for kind in KINDS}
            if end == "stopped":
                started_broker.stop()
            else:
                started_broker.kill()
            for topic, written in found[end].items():
                written.folder = copy_folder(started_broker.topic_folder(topic), Path(name, end, f"{topic}-0"))
            if end == "stopped":
                started_broker.start()
        yield found


def contents(folder: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in folder.iterdir()}


@pytest.mark.parametrize("end", ["stopped", "killed"])
@pytest.mark.parametrize("name", [pytest.param(kind.name, marks=requires(*kind.needs)) for kind in KINDS])
def test_fastlog_reads_what_kafka_wrote(
    from_kafka: dict[str, dict[str, Written]], folder: Path, kafka: KafkaOracle, name: str, end: str
) -> None:
    written = from_kafka[end][name]
    print(f"FASTLOG_SEED={written.seed}")
    path = copy_folder(written.folder, folder / f"{name}-0")
    before = contents(path)
    for isolation in ISOLATIONS:
        with open_log(path, isolation, read_only=True) as log:
            compare(log, written, isolation)
            report = log.verify()
            assert report.damages == ()
            # indexes that a killed Kafka left are full of zeros; a reader does not rely on them, and writes no others
            assert report.ok or end == "killed"
    assert contents(path) == before, "a reader changed a file of Kafka's"
    for isolation in ISOLATIONS:
        with open_log(path, isolation, durability="os") as log:
            compare(log, written, isolation)
            assert log.verify().ok
    with fastlog.PartitionLog.open(path, durability="os") as log:
        assert log.append([b"from fastlog"] * 3, timestamps=SOME_TIME) == written.end_offset
    loaded = kafka.load(path, is_clean=True)
    assert (loaded.end_offset, loaded.complaints) == (written.end_offset + 3, ())
    dumped, problems = kafka.check(path.glob("0*"), may_skip=True)
    assert problems == []
    assert dumped[str(max(path.glob("*.log")))][-1].fields["lastOffset"] == str(written.end_offset + 2)


def compare(log: Any, written: Written, isolation: str) -> None:
    kind = BY_NAME[log.topic]
    assert log.end_offset == written.end_offset
    assert log.start_offset <= written.start_offset
    assert seen(log, written.start_offset) == written.records[isolation]
    if "transactions" in READY:
        assert log.last_stable_offset == written.last_stable_offset
    for moment, offset in written.offsets_for_times.items():
        # of a segment that a compaction has emptied Kafka takes the time of the file for that of a record
        if offset is not None or not kind.keys:
            assert log.offset_for_time(moment) == offset


def test_kafka_wrote_topics_of_every_kind(from_kafka: dict[str, dict[str, Written]], kafka: KafkaOracle) -> None:
    """What the names of the topics promise is there, so that reading them proves something."""
    for kind in KINDS:
        written = from_kafka["stopped"][kind.name]
        print(f"FASTLOG_SEED={written.seed} {kind.name}")
        segments = sorted(written.folder.glob("*.log"))
        assert kind.large or len(segments) > (1 if kind.keys else 2)
        dumped, problems = kafka.check(segments, may_skip=True)
        assert problems == []
        batches = [batch for path in sorted(dumped) for batch in dumped[path]]
        everything = [record.offset for batch in batches for record in batch.records if record.marker is None]
        uncommitted, committed = ([record.offset for record in written.records[name]] for name in ISOLATIONS)
        assert uncommitted == [offset for offset in everything if offset >= written.start_offset]
        assert (written.start_offset > 0) == kind.delete
        codecs = {batch.fields["compresscodec"] for batch in batches}
        configured = {str(config.get("compression_type", "none")) for config in kind.producers}
        assert codecs >= {"zstd"} if kind.name == "recompressed" else codecs >= configured - {"none"}
        replayed = kafka.replay(written.folder)
        assert replayed.last_stable_offset == written.last_stable_offset
        if "transactions" in kind.needs:
            markers = {record.marker for batch in batches for record in batch.records}
            assert markers >= {"COMMIT"} if kind.keys else {"COMMIT", "ABORT"}
            assert set(committed) < set(uncommitted) or kind.keys
        else:
            assert committed == uncommitted
        if kind.keys:
            assert len(everything) < written.end_offset / 2


# --- fastlog to Kafka ---------------------------------------------------------------------------------------------


@dataclass
class Ours:
    """A log of fastlog's, closed or crashed, and what is to be read from it; ``hidden`` from committed readers."""

    folder: Path
    records: list[KafkaRecord]
    start_offset: int = 0
    end_offset: int = 0
    hidden: set[int] = field(default_factory=set)
    first_open: int | None = None
    is_compacted: bool = False

    @property
    def last_stable_offset(self) -> int:
        return self.end_offset if self.first_open is None else self.first_open

    def visible(self, isolation: str) -> list[KafkaRecord]:
        if isolation == "read_uncommitted":
            return self.records
        stable = self.last_stable_offset
        return [record for record in self.records if record.offset < stable and record.offset not in self.hidden]


def append(log: Any, records: list[KafkaRecord], **options: Any) -> list[KafkaRecord]:
    """Append records at once; return them with their offsets."""
    base = log.append(
        [record.value for record in records],
        keys=[record.key for record in records],
        timestamps=[record.timestamp for record in records],
        headers=[record.headers for record in records],
        **options,
    )
    return [replace(record, offset=base + number) for number, record in enumerate(records)]


def write_some(log: Any, chance: random.Random, *, appends: int = 60, **kinds: Any) -> list[KafkaRecord]:
    written: list[KafkaRecord] = []
    for _ in range(appends):
        written += append(log, some_records(chance, chance.choice([1, 1, 2, 5, 12]), **kinds))
    return written


TINY = {"segment_bytes": 6000, "max_message_bytes": 5000, "index_interval_bytes": 200}


def write_plain(path: Path, chance: random.Random, **options: Any) -> Ours:
    with fastlog.PartitionLog.open(path, durability="os", config=fastlog.LogConfig(**options)) as log:
        return Ours(path, write_some(log, chance), 0, log.end_offset)


def write_large(path: Path, chance: random.Random) -> Ours:
    with fastlog.PartitionLog.open(path, durability="os") as log:
        return Ours(path, write_some(log, chance, appends=10, large=True), 0, log.end_offset)


def write_and_crash(path: Path, chance: random.Random) -> Ours:
    """What lies in the folder of a writer that died: no clean mark, unfinished indexes, half a batch at the end."""
    with fastlog.PartitionLog.open(path.with_name("live-0"), durability="os", config=fastlog.LogConfig(**TINY)) as log:
        records = write_some(log, chance)
        copy_folder(path.with_name("live-0"), path)
        torn = max(path.with_name("live-0").glob("*.log")).stat().st_size
        end_offset = log.end_offset
        append(log, some_records(chance, 1))
    last = max(path.with_name("live-0").glob("*.log")).read_bytes()[torn:] or b"\0" * 100
    with max(path.glob("*.log")).open("ab") as file:
        file.write(last[: chance.randrange(1, len(last))])
    return Ours(path, records, 0, end_offset)


def write_crash_and_recover(path: Path, chance: random.Random) -> Ours:
    ours = write_and_crash(path, chance)
    for index in chance.sample(sorted(path.glob("*index")), 3):
        index.unlink()
    with fastlog.PartitionLog.open(path, durability="os", config=fastlog.LogConfig(**TINY)) as log:
        assert log.recovery is not None
        assert log.end_offset == ours.end_offset
        ours.records += write_some(log, chance, appends=5)
        ours.end_offset = log.end_offset
    return ours


def write_and_delete(path: Path, chance: random.Random) -> Ours:
    ours = write_plain(path, chance, **TINY)
    with fastlog.PartitionLog.open(path, durability="os") as log:
        start = log.delete_records(chance.randrange(1, log.end_offset))
    return Ours(path, [record for record in ours.records if record.offset >= start], start, ours.end_offset)


def write_nothing(path: Path, chance: random.Random) -> Ours:
    fastlog.PartitionLog.open(path).close()
    return Ours(path, [])


WRITERS: dict[str, Callable[[Path, random.Random], Ours]] = {
    "one segment": write_plain,
    "tiny segments": lambda path, chance: write_plain(path, chance, **TINY),
    "dense index": lambda path, chance: write_plain(path, chance, **{**TINY, "index_interval_bytes": 1}),
    "index full": lambda path, chance: write_plain(path, chance, segment_index_bytes=120, index_interval_bytes=1),
    "large values": write_large,
    "recovered": write_crash_and_recover,
    "deleted": write_and_delete,
    "empty": write_nothing,
}


class Exchange:
    """Hands logs to the broker and takes them back: one partition each of one topic, in the order of the logs."""

    def __init__(
        self, broker: KafkaBroker, clients: KafkaClients, kafka: KafkaOracle, topic: str, chance: random.Random
    ) -> None:
        self.broker = broker
        self.clients = clients
        self.kafka = kafka
        self.topic = topic
        self.chance = chance

    def hand_over(self, logs: list[Ours], *, trust: bool = True, everything: bool = False, **options: object) -> None:
        """Let a new, empty topic adopt the logs; Kafka's consumer has to find all of them."""
        if not self.broker.is_running:
            self.broker.start()
        self.clients.create_topic(self.topic, len(logs), **options)
        self.broker.stop()
        for partition, ours in enumerate(logs):
            self.broker.adopt(ours.folder, self.topic, partition, start_offset=ours.start_offset, everything=everything)
        if not trust:
            self.broker.forget_clean_stop()
        self.broker.start()
        for partition, ours in enumerate(logs):
            self.compare(partition, ours)

    def compare(self, partition: int, ours: Ours) -> None:
        offsets = (ours.start_offset, ours.last_stable_offset, ours.end_offset)
        assert self.clients.offsets(self.topic, partition) == offsets
        is_plain = not ours.hidden and ours.first_open is None
        for isolation in ISOLATIONS[:1] if is_plain else ISOLATIONS:
            assert self.clients.consume(self.topic, partition, isolation=isolation) == ours.visible(isolation)
        # by offset and by time, which needs the indexes
        start = self.chance.randint(ours.start_offset, ours.end_offset)
        expected = [record for record in ours.records if record.offset >= start]
        assert self.clients.consume(self.topic, partition, start=start) == expected
        # Kafka looks no further than the first segment whose largest timestamp fits, though compaction took its record
        if is_plain and not ours.start_offset and not ours.is_compacted:
            for moment in (SOME_TIME + self.chance.randrange(-100_000, 100_000) for _ in range(4)):
                first = next((record.offset for record in ours.records if record.timestamp >= moment), None)
                assert self.clients.offset_for_time(self.topic, moment, partition) == first

    def append(self, logs: list[Ours], chance: random.Random, **config: object) -> None:
        """Let Kafka append to each of them."""
        self.clients.producer(self.topic, **{"batch_size": 600, "linger_ms": 20, **config})
        for partition, ours in enumerate(logs):
            drawn = some_records(chance, chance.randrange(1, 30))
            offsets = self.clients.send(self.topic, self.topic, drawn, partition)
            assert offsets == list(range(ours.end_offset, ours.end_offset + len(drawn)))
            ours.records += [replace(r, offset=offset) for r, offset in zip(drawn, offsets, strict=True)]
            ours.end_offset += len(drawn)
        self.clients.close(self.topic)

    def take_back(self, logs: list[Ours], folder: Path, *, stop: bool = True) -> None:
        """Stop or kill the broker, copy its folders, and read them with fastlog."""
        if stop:
            self.broker.stop()
        else:
            self.broker.kill()
        for partition, ours in enumerate(logs):
            ours.folder = copy_folder(self.broker.topic_folder(self.topic, partition), folder / f"events-{partition}")
            for isolation in ISOLATIONS:
                with open_log(ours.folder, isolation, read_only=True) as log:
                    assert log.end_offset == ours.end_offset
                    assert seen(log, ours.start_offset) == ours.visible(isolation)
                    report = log.verify()
                    assert report.ok if stop else not report.damages
            # of batches that compaction emptied Kafka rebuilds time entries that its own dump tool refuses
            if stop and not ours.is_compacted:
                assert self.kafka.check(ours.folder.glob("0*"), may_skip=True)[1] == []


@pytest.fixture
def exchange(
    broker: KafkaBroker, clients: KafkaClients, kafka: KafkaOracle, seed: int, request: pytest.FixtureRequest
) -> Exchange:
    topic = re.sub(r"[^a-zA-Z0-9-]", "-", request.node.name)
    return Exchange(broker, clients, kafka, topic, random.Random(f"{seed} {topic}"))


def go_there_and_back(
    exchange: Exchange, logs: list[Ours], folder: Path, chance: random.Random, *, trust: bool = True, **options: Any
) -> None:
    """Twice there and back, both sides appending in between; the second time the broker may be killed."""
    topic = exchange.topic
    for turn in range(2):
        exchange.topic = f"{topic}-{turn}"
        exchange.hand_over(logs, trust=trust, **options)
        exchange.append(logs, chance)
        exchange.take_back(logs, folder / f"turn {turn}", stop=trust or turn == 0)
        for ours in logs:
            with open_log(ours.folder, durability="os") as log:
                ours.records += write_some(log, chance, appends=5)
                ours.end_offset = log.end_offset
                assert seen(log, ours.start_offset) == ours.records


def write_all(
    writers: Iterable[Callable[[Path, random.Random], Ours]], folder: Path, chance: random.Random
) -> list[Ours]:
    return [write(folder / f"{number}" / f"events-{number}", chance) for number, write in enumerate(writers)]


@pytest.mark.parametrize("trust", [True, False], ids=["trusted", "recovered"])
def test_kafka_adopts_what_fastlog_wrote(exchange: Exchange, folder: Path, seed: int, trust: bool) -> None:
    chance = random.Random(f"{seed} {trust}")
    go_there_and_back(exchange, write_all(WRITERS.values(), folder, chance), folder, chance, trust=trust)


@marked(requires("turns"))
def test_kafka_leaves_the_files_of_fastlog_alone(exchange: Exchange, folder: Path, seed: int) -> None:
    """The whole folder is handed over, and comes back with its dot files, which know nothing of what Kafka appended."""
    chance = random.Random(seed)
    go_there_and_back(exchange, write_all(WRITERS.values(), folder, chance), folder, chance, everything=True)


@marked(requires("turns", raises=AssertionError))  # what Kafka appended is cut off and put aside
def test_kafka_and_fastlog_take_turns_in_one_folder(exchange: Exchange, folder: Path, seed: int) -> None:
    """fastlog opens the folder of the stopped broker itself, not a copy."""
    chance = random.Random(seed)
    ours = Ours(exchange.broker.topic_folder(exchange.topic), [])
    exchange.clients.create_topic(exchange.topic, **SMALL)
    for _ in range(3):
        exchange.append([ours], chance)
        exchange.broker.stop()
        with open_log(ours.folder, durability="os") as log:
            assert log.end_offset == ours.end_offset
            assert seen(log) == ours.records
            ours.records += write_some(log, chance, appends=20)
            ours.end_offset = log.end_offset
        assert not list(ours.folder.glob("*.torn-*"))
        exchange.broker.start()
        exchange.compare(0, ours)


@marked(requires("turns"))
def test_what_was_deleted_stays_so_whoever_has_the_folder(exchange: Exchange, folder: Path, seed: int) -> None:
    """A broker deletes records, and does nothing else, or appends as well; then fastlog opens the folder, twice."""
    chance = random.Random(seed)
    ours = Ours(exchange.broker.topic_folder(exchange.topic), [])
    exchange.clients.create_topic(exchange.topic)
    exchange.append([ours], chance)
    exchange.broker.stop()
    with open_log(ours.folder, durability="os") as log:
        ours.records += write_some(log, chance)
        ours.end_offset = log.end_offset
        ours.start_offset = log.delete_records(5)
    exchange.broker.adopt_start(exchange.topic, ours.start_offset)
    for deletes, appends in ((False, True), (True, False), (True, True)):
        exchange.broker.start()
        if appends:
            exchange.append([ours], chance)
        if deletes:
            ours.start_offset = exchange.clients.delete_records(exchange.topic, ours.start_offset + 5)
        exchange.broker.stop()
        ours.records = [record for record in ours.records if record.offset >= ours.start_offset]
        for _ in range(2):
            with open_log(ours.folder, durability="os") as log:
                assert (log.start_offset, log.end_offset) == (ours.start_offset, ours.end_offset)
                assert seen(log) == ours.records
    exchange.broker.start()
    exchange.compare(0, ours)


def write_compressed(path: Path, chance: random.Random, codecs: tuple[str | None, ...], **kinds: Any) -> Ours:
    config = fastlog.LogConfig() if kinds else fastlog.LogConfig(**TINY)
    ours = Ours(path, [])
    with fastlog.PartitionLog.open(path, durability="os", config=config) as log:
        for _ in range(6 if kinds else 60):
            drawn = some_records(chance, chance.choice([1, 1, 2, 5, 12]), **kinds)
            ours.records += append(log, drawn, compression=chance.choice(codecs))
        ours.end_offset = log.end_offset
    return ours


@pytest.mark.parametrize("trust", [pytest.param(x, marks=requires("codecs")) for x in (True, False)])
def test_kafka_adopts_what_fastlog_compressed(exchange: Exchange, folder: Path, seed: int, trust: bool) -> None:
    chance = random.Random(f"{seed} {trust}")
    choices = [*((codec,) for codec in CODECS), (None, *CODECS)]
    writers = [partial(write_compressed, codecs=choice) for choice in choices]
    writers += [partial(write_compressed, codecs=choice, large=True) for choice in choices]
    go_there_and_back(exchange, write_all(writers, folder, chance), folder, chance, trust=trust)


# --- producers and transactions of fastlog's ----------------------------------------------------------------------


def write_transactions(path: Path, chance: random.Random, *, leave_open: bool) -> Ours:
    """Interleaved transactions of some producers, idempotent batches of another, plain appends; by ``append_batch``."""
    ours = Ours(path, [])
    sequences = dict.fromkeys(range(1000, 1004), 0)
    opened: dict[int, list[int]] = {}
    with open_log(path, durability="os", config=fastlog.LogConfig(**TINY)) as log:

        def end_transaction(producer_id: int) -> None:
            commit = chance.random() < 0.5
            offsets = opened.pop(producer_id)
            log.end_transaction(producer_id, 0, commit=commit)
            ours.hidden |= set() if commit else set(offsets)

        for _ in range(120):
            if chance.random() < 0.2:
                ours.records += append(log, some_records(chance, 2))
                continue
            producer_id = chance.choice(list(sequences))
            drawn = some_records(chance, chance.choice([1, 2, 5]))
            records = [Record(i, r.timestamp, r.key, r.value, r.headers) for i, r in enumerate(drawn)]
            is_transactional = producer_id != 1000
            batch = replace(
                make_batch(records),
                attributes=TRANSACTIONAL if is_transactional else 0,
                producer_id=producer_id, producer_epoch=0, base_sequence=sequences[producer_id],
            )  # fmt: skip
            base = log.append_batch(encode_batch(batch))
            ours.records += [replace(record, offset=base + i) for i, record in enumerate(drawn)]
            sequences[producer_id] += len(drawn)
            if is_transactional:
                opened.setdefault(producer_id, []).extend(range(base, base + len(drawn)))
                if chance.random() < 0.3:
                    end_transaction(producer_id)
        for producer_id in list(opened):
            if not leave_open or chance.random() < 0.5:
                end_transaction(producer_id)
        ours.first_open = min((min(offsets) for offsets in opened.values()), default=None)
        ours.end_offset = log.end_offset
        assert log.last_stable_offset == ours.last_stable_offset
    return ours


@pytest.mark.parametrize(
    "trust", [pytest.param(x, marks=requires("append_batch", "transactions")) for x in (True, False)]
)
def test_kafka_adopts_transactions_of_fastlog(
    exchange: Exchange, folder: Path, kafka: KafkaOracle, seed: int, trust: bool
) -> None:
    chance = random.Random(f"{seed} {trust}")
    writers = [partial(write_transactions, leave_open=leave_open) for leave_open in (False, True)]
    logs = write_all(writers, folder, chance)
    states = []
    for ours in logs:
        replayed = kafka.replay(ours.folder)
        assert (replayed.end_offset, replayed.last_stable_offset) == (ours.end_offset, ours.last_stable_offset)
        indexes = sorted(ours.folder.glob("*.txnindex"))
        assert tuple(entry for index in indexes for entry in kafka.aborted_transactions(index)) == replayed.aborted
        # a clean start believes the newest snapshot, and so tells what is in it
        loaded = kafka.load(copy_folder(ours.folder, folder / "copy" / ours.folder.name), is_clean=True)
        assert loaded.producers == tuple(state.as_in_snapshot() for state in replayed.producers)
        assert kafka.check(ours.folder.glob("0*"))[1] == []
        states.append(replayed.producers)
    exchange.hand_over(logs, trust=trust)
    for partition, expected in enumerate(states):
        shown = exchange.clients.active_producers(exchange.topic, partition)
        found = {each["producerId"]: (each["lastSequence"], each["currentTxnFirstOffset"]) for each in shown}
        # those that did nothing for a day and have no open transaction are forgotten: the times of the records are old,
        # those of the markers are not
        assert found == {
            s.producer_id: (s.last_sequence, s.transaction_start)
            for s in expected
            if s.transaction_start or s.coordinator_epoch >= 0
        }
    exchange.append(logs, chance)
    exchange.take_back(logs, folder / "back", stop=trust)


def living(records: Iterable[KafkaRecord]) -> dict[bytes | None, KafkaRecord]:
    """The newest record of each key, unless that is a tombstone."""
    newest = {record.key: record for record in records}
    return {key: record for key, record in newest.items() if record.value is not None}


@pytest.mark.parametrize("trust", [pytest.param(x, marks=requires("compaction")) for x in (True, False)])
def test_kafka_adopts_what_fastlog_compacted(exchange: Exchange, folder: Path, seed: int, trust: bool) -> None:
    chance = random.Random(f"{seed} {trust}")
    path = folder / "events-0"
    config = fastlog.LogConfig(**TINY, cleanup_policy="compact", min_cleanable_dirty_ratio=0, delete_retention_ms=0)
    newest: dict[bytes | None, KafkaRecord] = {}
    with fastlog.PartitionLog.open(path, durability="os", config=config) as log:
        for _ in range(3):
            written = write_some(log, chance, keys=30)
            newest |= {record.key: record for record in written}
            log.maintain()
        kept = seen(log)
        assert len(kept) < log.end_offset
        assert living(kept) == living(newest.values())
        ours = Ours(path, kept, 0, log.end_offset, is_compacted=True)
    exchange.hand_over([ours], trust=trust)
    exchange.append([ours], chance)
    exchange.take_back([ours], folder / "back")


# --- crashes --------------------------------------------------------------------------------------------------------


def test_kafka_recovers_what_fastlog_left_in_a_crash(exchange: Exchange, folder: Path, seed: int) -> None:
    chance = random.Random(seed)
    logs = [write_and_crash(folder / f"{number}" / f"events-{number}", chance) for number in range(4)]
    exchange.hand_over(logs, trust=False)
    exchange.append(logs, chance)
    exchange.take_back(logs, folder / "back")


@pytest.mark.parametrize("_round", range(10))
def test_kafka_and_fastlog_recover_alike(folder: Path, kafka: KafkaOracle, seed: int, _round: int) -> None:
    """A log cut anywhere in its last segment, or with a flipped bit there: both keep the same batches."""
    chance = random.Random(f"{seed} {_round}")
    ours = write_and_crash(folder / "events-0", chance)
    last = max(ours.folder.glob("*.log"))
    content = bytearray(last.read_bytes())
    content = content[: chance.randrange(len(content) + 1)]
    last.write_bytes(content)
    theirs = copy_folder(ours.folder, folder / "theirs" / "events-0")
    loaded = kafka.load(theirs)
    with fastlog.PartitionLog.open(ours.folder, durability="os") as log:
        assert log.end_offset == loaded.end_offset
        assert seen(log) == [record for record in ours.records if record.offset < loaded.end_offset]
    kept = {file.name: file.read_bytes() for file in theirs.glob("*.log")}
    assert {file.name: file.read_bytes() for file in ours.folder.glob("*.log")} == kept
    assert kafka.check(ours.folder.glob("0*"))[1] == []
