"""A store full of everything: written through the public API at random, with a model of what is in it."""

from __future__ import annotations

import random
import shutil
import time
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import fastlog
from fastlog import OffsetAndMetadata, TopicPartition
from fastlog.store.directory import TopicInfo
from tests.oracle.broker import Foundation
from tests.oracle.kafka import KafkaRecord

CODECS = (None, "gzip", "snappy", "lz4", "zstd")
# rolls with every few batches; Kafka takes no segment.bytes below 1 MiB for an ordinary topic
TINY = {"segment.bytes": 6000, "max.message.bytes": 5000, "index.interval.bytes": 200}
COMPACTED = {"cleanup.policy": "compact", "min.cleanable.dirty.ratio": 0, "delete.retention.ms": 0, **TINY}
TOPICS: dict[str, tuple[int, dict[str, Any]]] = {
    "plain": (2, TINY),
    "keyed": (3, {}),
    "codecs": (2, TINY),
    "moved": (2, TINY),
    "compacted": (1, COMPACTED),
    "trimmed": (1, TINY),
    "unused": (2, {}),
}
TRANSACTIONAL = ("pay-1", "pay-2", "ship")
FEW_KEYS = [b"key %d" % number for number in range(12)]

# (group, topic, partition) → offset and metadata
Offsets = dict[tuple[str, str, int], tuple[int, str]]


@dataclass
class Model:
    """What has to be in the store.

    Attributes:
        records: of each partition, in the order of their offsets, whatever became of their transaction.
        hidden: offsets of records of aborted transactions, by partition.
        offsets: what groups have committed.
        outcomes: of each transactional id, how its transactions ended, the oldest first.
        starts: log starts behind 0.
    """

    records: dict[TopicPartition, list[KafkaRecord]] = field(default_factory=dict)
    hidden: dict[TopicPartition, set[int]] = field(default_factory=dict)
    offsets: Offsets = field(default_factory=dict)
    outcomes: dict[str, list[bool]] = field(default_factory=dict)
    starts: dict[TopicPartition, int] = field(default_factory=dict)

    def visible(self, where: TopicPartition, isolation: str, start: int = 0) -> list[KafkaRecord]:
        hidden = self.hidden.get(where, set()) if isolation == "read_committed" else set()
        first = max(start, self.starts.get(where, 0))
        found = [one for one in self.records.get(where, []) if one.offset >= first and one.offset not in hidden]
        return sorted(found, key=lambda one: one.offset)

    def of_group(self, group: str) -> dict[tuple[str, int], tuple[int, str]]:
        return {(topic, number): where for (name, topic, number), where in self.offsets.items() if name == group}

    def add(self, deliveries: Iterable[tuple[Any, KafkaRecord]]) -> list[tuple[TopicPartition, int]]:
        """What was delivered; where it lies."""
        places = []
        for delivery, record in deliveries:
            told = delivery.result(30)
            where = TopicPartition(told.topic, told.partition)
            stored = KafkaRecord(told.offset, told.timestamp, record.key, record.value, record.headers)
            self.records.setdefault(where, []).append(stored)
            places.append((where, told.offset))
        return places

    def end(self, name: str, places: Iterable[tuple[TopicPartition, int]], offsets: Offsets, *, commit: bool) -> None:
        """A transaction ended. One that did nothing leaves no trace."""
        places = list(places)
        if places or offsets:
            self.outcomes.setdefault(name, []).append(commit)
        if commit:
            self.offsets |= offsets
            return
        for where, offset in places:
            self.hidden.setdefault(where, set()).add(offset)


@dataclass
class Running:
    """An open transaction, and what it did so far."""

    transaction: Any
    places: list[tuple[TopicPartition, int]] = field(default_factory=list)


class Workload:
    """Producers, groups and transactions that do what ``chance`` tells them; ``model`` is what has to come of it."""

    def __init__(self, store: fastlog.Store, chance: random.Random) -> None:
        self.store = store
        self.chance = chance
        self.model = Model()
        for name, (partitions, config) in TOPICS.items():
            store.create_topic(name, partitions, config=config)
        self.plain = {codec: store.producer(compression=codec) for codec in CODECS}
        self.transactional = {
            name: store.producer(transactional_id=name, compression=chance.choice(CODECS)) for name in TRANSACTIONAL
        }
        self.open: dict[str, Running] = {}
        self.reader = store.consumer("keyed", group="mail", start="earliest", auto_commit=False)
        self.mover = store.consumer("plain", group="größe", start="earliest")
        self.in_hand = [("größe", "plain", number) for number in range(TOPICS["plain"][0])]

    def run(self, steps: int = 120) -> Model:
        """Do so many things at random, then what has to happen at least once; nothing is left open."""
        actions = [self.send, self.send, self.send_keyed, self.transact, self.transact, self.transact, self.read]
        for _ in range(steps):
            self.chance.choice([*actions, self.move])()
        for name in list(self.open):
            self.end(name)
        for commit in (True, False, True):
            self.transact_at_once("ship", commit=commit)
            self.send()
            self.send_keyed()
            self.read()
            self.move(commit=commit)
        self.time_out()
        self.fence()
        self.compact()
        self.trim()
        for client in (self.reader, self.mover, *self.plain.values(), *self.transactional.values()):
            client.close()
        return self.model

    def some(self, count: int, keys: list[bytes] | None = None) -> list[KafkaRecord]:
        """Random records; compacted topics take keys only."""
        chance, found = self.chance, []
        for _ in range(count):
            key = chance.choice(keys) if keys else chance.choice([None, b"", b"key", chance.randbytes(8)])
            value = chance.choice([None, b"", chance.randbytes(chance.choice([1, 60, 400])), b"fastlog " * 40])
            names = [chance.choice(["h", "h", "trace", "ключ"]) for _ in range(chance.choice([0, 0, 1, 3]))]
            headers = tuple((name, chance.choice([None, b"", b"\x00\xff"])) for name in names)
            found.append(KafkaRecord(-1, -1, key, value, headers))
        return found

    def deliver(self, sender: Any, topic: str, records: list[KafkaRecord], partition: int | None = None) -> Any:
        sent = [
            (sender.send(topic, one.value, key=one.key, headers=one.headers, partition=partition), one)
            for one in records
        ]
        return self.model.add(sent)

    # --- what may happen ----------------------------------------------------------------------------------------------

    def send(self) -> None:
        chance = self.chance
        topic = chance.choice(["plain", "codecs", "trimmed"])
        codec = chance.choice(CODECS) if topic == "codecs" else None
        records = self.some(chance.choice([1, 1, 2, 9]))
        self.deliver(self.plain[codec], topic, records, chance.randrange(TOPICS[topic][0]))

    def send_keyed(self) -> None:
        """By its key a record finds its partition; a null key goes anywhere."""
        self.deliver(self.plain[None], "keyed", self.some(self.chance.choice([1, 4])))
        self.deliver(self.plain[None], "compacted", self.some(self.chance.choice([1, 4]), FEW_KEYS))

    def transact(self) -> None:
        """Begin a transaction, go on with it, or end it: those of several producers interleave."""
        name = self.chance.choice(TRANSACTIONAL[:2])
        running = self.open.get(name)
        if running is None:
            transaction = self.transactional[name].transaction()
            transaction.__enter__()
            self.open[name] = Running(transaction)
            return
        if self.chance.random() < 0.4:
            self.end(name)
            return
        topic = self.chance.choice(["moved", "keyed"])
        places = self.deliver(running.transaction, topic, self.some(self.chance.choice([1, 3])))
        running.places += places

    def end(self, name: str) -> None:
        running = self.open.pop(name)
        commit = self.chance.random() < 0.5
        if commit:
            running.transaction.commit()
        else:
            running.transaction.abort()
        self.model.end(name, running.places, {}, commit=commit)

    def transact_at_once(self, name: str, *, commit: bool) -> None:
        with self.transactional[name].transaction() as running:
            places = self.deliver(running, "moved", self.some(3))
            if not commit:
                running.abort()
        self.model.end(name, places, {}, commit=commit)

    def read(self) -> None:
        """A member of a group commits a record, with or without a note."""
        records = self.reader.poll(self.chance.choice([1, 5]), timeout=0)
        if not records:
            return
        last = self.chance.choice(records)
        where, note = TopicPartition(last.topic, last.partition), self.chance.choice(["", "note"])
        if note:
            self.reader.commit({where: OffsetAndMetadata(last.offset + 1, note)})
        else:
            self.reader.commit(last)
        self.model.offsets["mail", where.topic, where.partition] = (last.offset + 1, note)

    def move(self, *, commit: bool | None = None) -> None:
        """Records of one topic go to another together with the offsets of the group that read them."""
        commit = self.chance.random() < 0.7 if commit is None else commit
        offsets: Offsets = {}
        with self.transactional["ship"].transaction(self.mover) as running:
            records = self.mover.poll(6, timeout=0)
            moved = [KafkaRecord(-1, -1, one.key, one.value, tuple(one.headers)) for one in records]
            places = self.deliver(running, "moved", moved)
            if records:
                running.commit_offsets()
                # where nothing was handed out and nothing committed yet, the beginning is
                offsets = {key: self.model.offsets.get(key, (0, "")) for key in self.in_hand}
                offsets |= {("größe", one.topic, one.partition): (one.offset + 1, "") for one in records}
            if not commit:
                running.abort()
        self.model.end("ship", places, offsets, commit=commit)

    def time_out(self) -> None:
        """Nobody ends a transaction in time: somebody aborts it."""
        producer = self.store.producer(transactional_id="late", transaction_timeout="200ms")
        running = producer.transaction()
        running.__enter__()
        places = self.deliver(running, "moved", self.some(2))
        time.sleep(2)
        try:
            running.commit()
        except fastlog.Error:
            assert running.outcome == "aborted"
        else:
            raise AssertionError("a transaction was committed after its time-out")
        self.model.end("late", places, {}, commit=False)
        producer.close()

    def fence(self) -> None:
        """A second instance of a producer aborts what the first left open."""
        name = "fenced"
        first = self.store.producer(transactional_id=name)
        running = first.transaction()
        running.__enter__()
        places = self.deliver(running, "keyed", self.some(2))
        self.transactional[name] = self.store.producer(transactional_id=name)
        self.model.end(name, places, {}, commit=False)
        self.transact_at_once(name, commit=True)
        first.close()

    def compact(self) -> None:
        """Write enough that compaction has something to do; the model keeps what it kept."""
        for _ in range(60):
            self.deliver(self.plain[None], "compacted", self.some(3, FEW_KEYS))
        self.store.maintain(["compacted"])
        where = TopicPartition("compacted", 0)
        written = self.model.visible(where, "read_uncommitted")
        newest = {one.key: one for one in written}
        kept = {record.offset for batch in self.store.topic("compacted").partition(0).batches(0) for record in batch}
        self.model.records[where] = [one for one in written if one.offset in kept]
        assert len(self.model.records[where]) < len(written)
        assert {one.offset for one in newest.values() if one.value is not None} <= kept

    def trim(self) -> None:
        """The log start moves into the middle of a segment."""
        for _ in range(10):
            self.deliver(self.plain[None], "trimmed", self.some(3))
        where = TopicPartition("trimmed", 0)
        log = self.store.topic("trimmed").partition(0)
        self.model.starts[where] = log.delete_records(self.chance.randrange(1, log.end_offset))


# --- from a store to a broker ---------------------------------------------------------------------------------------


def all_topics(root: Path) -> list[TopicInfo]:
    """Every topic of a store, internal ones too."""
    with fastlog.open(root, read_only=True) as store:
        return [store.directory.topic(name) for name in store.directory.topics(internal=True)]


def options_for_kafka(info: TopicInfo) -> dict[str, object]:
    """What Kafka takes of a topic's options. Nothing expires that does not expire here; the test wants to see what our
    compaction left, so that Kafka's has to wait."""
    kept = {name: value for name, value in info.options.items() if name != "segment.bytes" or value >= 1 << 20}
    return {"retention.ms": -1, "min.compaction.lag.ms": 86_400_000, **kept}


def founded_on(directory: Path, topics: Iterable[TopicInfo]) -> Foundation:
    """A cluster that begins with the topics of a store, whose log directory is the store's."""
    told = tuple((one.name, one.topic_id, one.partitions, options_for_kafka(one)) for one in topics)
    return Foundation(directory, told)


def copy_tree(source: Path, target: Path) -> Path:
    shutil.copytree(source, target)
    return target
