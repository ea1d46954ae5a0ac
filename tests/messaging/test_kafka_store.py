"""A whole store and a real Kafka broker: the broker takes over the store's log directory, and gives it back.

The store was written through the public API, at random: see ``moving.py``, whose model says what has to be found. The
functions of docs/kafka.md do the same with a broker that has topics of its own. All of this file runs in one worker.
"""

from __future__ import annotations

import contextlib
import copy
import io
import itertools
import json
import os
import random
import re
import shlex
import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

import fastlog
from fastlog import TopicPartition
from fastlog.store.directory import TopicInfo
from tests.folders import MEMORY
from tests.messaging.moving import (
    TOPICS,
    TRANSACTIONAL,
    Model,
    Offsets,
    Workload,
    all_topics,
    copy_tree,
    founded_on,
)
from tests.oracle.broker import KafkaBroker, KafkaClients
from tests.oracle.kafka import KafkaOracle, KafkaRecord
from tests.test_docs import ROOT, blocks

ISOLATIONS = ("read_uncommitted", "read_committed")
SETTINGS = {
    "offsets.topic.num.partitions": 50,
    "transaction.state.log.num.partitions": 50,
    # it is not killed; a busy machine takes its time
    "broker.session.timeout.ms": 9000,
}
# Kafka's numbers of what a transactional id can be in
EMPTY, ONGOING, PREPARE_COMMIT, PREPARE_ABORT, COMPLETE_COMMIT, COMPLETE_ABORT = range(6)


@dataclass
class Written:
    """A store that was closed cleanly."""

    root: Path
    model: Model
    topics: list[TopicInfo]

    def partitions(self) -> list[TopicPartition]:
        return [TopicPartition(name, number) for name, (count, _) in TOPICS.items() for number in range(count)]


@pytest.fixture(scope="module")
def written() -> Iterator[Written]:
    seed = int(os.environ.get("FASTLOG_SEED", random.SystemRandom().randrange(1 << 32)))
    print(f"FASTLOG_SEED={seed}")
    with tempfile.TemporaryDirectory(prefix="fastlog-moving-", dir=MEMORY, ignore_cleanup_errors=True) as name:
        root = Path(name, "store")
        with fastlog.open(root, durability="os") as store:
            model = Workload(store, random.Random(seed)).run()
        yield Written(root, model, all_topics(root))


def read(store: fastlog.Store, where: TopicPartition, isolation: str, start: int | None = None) -> list[KafkaRecord]:
    """A partition as fastlog's consumer hands it out."""
    beginning: Any = "earliest" if start is None else (lambda _: start)
    with store.consumer(where.topic, start=beginning, partitions=[where.partition], isolation=isolation) as consumer:
        return [as_kafka_tells(one) for one in consumer.records(until="end")]


def as_kafka_tells(record: Any) -> KafkaRecord:
    timestamp = -1 if record.timestamp is None else record.timestamp
    return KafkaRecord(record.offset, timestamp, record.key, record.value, tuple(record.headers))


# --- the files ------------------------------------------------------------------------------------------------------


def test_I12_kafka_accepts_every_file_of_a_store(written: Written, kafka: KafkaOracle) -> None:
    for folder in sorted((written.root / "topics").glob("*-*/")):
        _, problems = kafka.check(folder.glob("0*"), may_skip=folder.name == "compacted-0")
        assert problems == [], folder.name


def dumped_rows(kafka: KafkaOracle, root: Path, topic: str, decoder: str) -> Iterator[tuple[dict[str, Any], Any, Any]]:
    """(header of the batch, key, value) of every record that counts, as the dump tool decodes them: those of aborted
    transactions are left out, those of committed ones come with their marker."""
    logs = sorted(path for path in root.glob(f"topics/{topic}-*/*.log") if path.stat().st_size)
    output, problems = kafka.dump(logs, "--deep-iteration", "--print-data-log", decoder)
    assert problems == []
    header: dict[str, str] = {}
    pending: dict[str, list[tuple[dict[str, str], Any, Any]]] = {}
    for line in output.splitlines():
        if line.startswith("Dumping "):
            assert not any(pending.values()), f"a transaction is open before {line}"
        elif line.startswith("baseOffset: "):
            header = dict(re.findall(r"(\w+): (\S+)", line))
        elif marker := re.search(r"endTxnMarker: (\w+)", line):
            rows = pending.pop(header["producerId"], [])
            yield from rows if marker[1] == "COMMIT" else ()
        elif found := re.search(r" key: (\{.*\}) payload: (.*)$", line):
            value = json.loads(found[2]) if found[2].startswith("{") else None
            row = (header, json.loads(found[1]), value)
            if header["isTransactional"] == "true":
                pending.setdefault(header["producerId"], []).append(row)
            else:
                yield row
    assert not any(pending.values())


def test_kafka_decodes_the_offsets_that_groups_committed(written: Written, kafka: KafkaOracle) -> None:
    found: Offsets = {}
    ids = {info.name: info.topic_id for info in written.topics}
    for _, key, value in dumped_rows(kafka, written.root, "__consumer_offsets", "--offsets-decoder"):
        name, data = key["data"], value["data"]
        assert data["topicId"] == ids[name["topic"]]
        found[name["group"], name["topic"], name["partition"]] = (data["offset"], data["metadata"])
    assert found == written.model.offsets
    assert len({group for group, _, _ in found}) == 2


def test_kafka_decodes_the_states_of_transactions(written: Written, kafka: KafkaOracle) -> None:
    """Every transaction went through the states that Kafka gives it, to the end that the model knows."""
    told: dict[str, list[dict[str, Any]]] = {}
    for _, key, value in dumped_rows(kafka, written.root, "__transaction_state", "--transaction-log-decoder"):
        told.setdefault(key["data"]["transactionalId"], []).append(value["data"])
    assert set(told) == set(written.model.outcomes)
    for name, rows in told.items():
        outcomes, former = [], None
        for row in rows:
            status = row["transactionStatus"]
            assert (former, status) in {
                (None, EMPTY), (EMPTY, EMPTY), (EMPTY, ONGOING), (ONGOING, ONGOING),
                (ONGOING, PREPARE_COMMIT), (ONGOING, PREPARE_ABORT),
                (PREPARE_COMMIT, COMPLETE_COMMIT), (PREPARE_ABORT, COMPLETE_ABORT),
                *((done, after) for done in (COMPLETE_COMMIT, COMPLETE_ABORT) for after in (EMPTY, ONGOING)),
            }, name  # fmt: skip
            assert row["producerId"] >= 1 << 40
            assert bool(row["transactionPartitions"]) == (status in {ONGOING, PREPARE_COMMIT, PREPARE_ABORT})
            if status in {COMPLETE_COMMIT, COMPLETE_ABORT}:
                outcomes.append(status == COMPLETE_COMMIT)
            former = status
        assert outcomes == written.model.outcomes[name], name


# --- a broker on the log directory of a store -----------------------------------------------------------------------


@dataclass
class TakenOver:
    """A broker that has just started on the store's log directory, and what its clients saw."""

    broker: KafkaBroker
    clients: KafkaClients
    log: str
    records: dict[tuple[TopicPartition, str], list[KafkaRecord]]
    extents: dict[TopicPartition, tuple[int, int, int]]
    offsets: Offsets
    transactions: dict[str, tuple[str, int, int]]


@pytest.fixture(scope="module")
def taken_over(written: Written, kafka: KafkaOracle) -> Iterator[TakenOver]:
    """The broker's log directory is a copy of the store's, and the topics have the same ids; nothing was changed."""
    with tempfile.TemporaryDirectory(prefix="fastlog-broker-", dir=MEMORY, ignore_cleanup_errors=True) as name:
        directory = copy_tree(written.root / "topics", Path(name, "topics"))
        with KafkaBroker(Path(name), overrides=SETTINGS, foundation=founded_on(directory, written.topics)) as broker:
            broker.start()
            clients = KafkaClients(kafka, broker)
            records = {
                (where, isolation): clients.consume(*where, isolation=isolation)
                for where in written.partitions()
                for isolation in ISOLATIONS
            }
            extents = {where: clients.offsets(*where) for where in written.partitions()}
            offsets = {
                (group, *where): position
                for group in ("mail", "größe")
                for where, position in clients.committed(group).items()
            }
            told = clients.transactions(list(written.model.outcomes))
            log = broker.log.read_text(errors="replace")
            yield TakenOver(broker, clients, log, records, extents, offsets, told)
            clients.forget()


def test_a_broker_trusts_the_files_of_a_store(taken_over: TakenOver) -> None:
    """It finds the mark of the clean stop, recovers nothing, and moves nothing aside."""
    assert re.search(r"Skipping recovery of \d+ logs from \S+ since clean shutdown file was found", taken_over.log)
    of_logs = [line for line in taken_over.log.splitlines() if "storage.internals" in line or "kafka.log." in line]
    strange = re.compile(r" WARN | ERROR |Recovering (unflushed segment|\d+ logs)|stray|corrupt", re.IGNORECASE)
    assert [line for line in of_logs if strange.search(line)] == []


def test_a_broker_serves_the_records_of_a_store(written: Written, taken_over: TakenOver) -> None:
    for where in written.partitions():
        for isolation in ISOLATIONS:
            assert taken_over.records[where, isolation] == written.model.visible(where, isolation), (where, isolation)
        start, stable, end = taken_over.extents[where]
        assert start == written.model.starts.get(where, 0)
        assert stable == end


def test_a_broker_knows_what_groups_and_transactions_have_done(written: Written, taken_over: TakenOver) -> None:
    assert taken_over.offsets == written.model.offsets
    ends = {True: "CompleteCommit", False: "CompleteAbort"}
    for name, outcomes in written.model.outcomes.items():
        state, producer_id, _ = taken_over.transactions[name]
        # an instance that was opened and closed again leaves the id empty
        assert state in {ends[outcomes[-1]], "Empty"}
        assert producer_id >= 1 << 40


# --- the broker goes on, and the store after it ---------------------------------------------------------------------


@dataclass
class GivenBack:
    """The store with what the broker made of its log directory, and with one more topic of the broker's."""

    root: Path
    model: Model
    resumed: dict[int, list[KafkaRecord]]
    expected: dict[int, list[KafkaRecord]]


def send(clients: KafkaClients, model: Model, producer: str, where: TopicPartition, count: int = 3) -> list[int]:
    """Kafka's producer appends; the offsets follow the last one, and the model learns of it."""
    now = max((one.timestamp for one in model.records.get(where, [])), default=1_700_000_000_000)
    drawn = [KafkaRecord(-1, now + n, b"key %d" % n, b"%s %d" % (producer.encode(), n), ()) for n in range(count)]
    offsets = clients.send(producer, where.topic, drawn, where.partition)
    stored = [
        KafkaRecord(offset, one.timestamp, one.key, one.value, ()) for offset, one in zip(offsets, drawn, strict=True)
    ]
    model.records.setdefault(where, []).extend(stored)
    return offsets


@pytest.fixture(scope="module")
def given_back(written: Written, taken_over: TakenOver) -> Iterator[GivenBack]:
    clients, broker = taken_over.clients, taken_over.broker
    model = copy.deepcopy(written.model)
    # new producers of Kafka's, with the small ids that it hands out
    clients.producer("new", enable_idempotence="true")
    for where in written.partitions():
        before = clients.offsets(*where)[2]
        assert send(clients, model, "new", where) == list(range(before, before + 3))
    # a transactional id of the store's goes on
    clients.producer("ours", transactional_id=TRANSACTIONAL[0])
    state, producer_id, epoch = clients.transactions([TRANSACTIONAL[0]])[TRANSACTIONAL[0]]
    _, former_id, former_epoch = taken_over.transactions[TRANSACTIONAL[0]]
    assert (state, producer_id) == ("Empty", former_id)
    assert epoch > former_epoch
    transact(clients, model, "ours", TopicPartition("moved", 0), ("größe", "plain", 0))
    # the group goes on where it was
    expected = {}
    for number in range(TOPICS["keyed"][0]):
        where = TopicPartition("keyed", number)
        start, _ = model.offsets.get(("mail", *where), (0, ""))
        expected[number] = model.visible(where, "read_committed", start)
        model.offsets["mail", *where] = (clients.offsets(*where)[2], "")
    resumed = clients.resume("mail", "keyed")
    # a topic, and a group, that never saw fastlog
    clients.create_topic("kafkas", 2)
    clients.producer("theirs", transactional_id="theirs", compression_type="zstd")
    for number in range(2):
        send(clients, model, "new", TopicPartition("kafkas", number))
        transact(clients, model, "theirs", TopicPartition("kafkas", number), ("new", "kafkas", 0))
    clients.commit_offsets("new", {("kafkas", 1): (4, "note")})
    model.offsets["new", "kafkas", 1] = (4, "note")
    for name in ("new", "ours", "theirs"):
        clients.close(name)
    broker.stop()
    with tempfile.TemporaryDirectory(prefix="fastlog-given-back-", dir=MEMORY, ignore_cleanup_errors=True) as name:
        root = copy_tree(written.root, Path(name, "store"))
        shutil.rmtree(root / "topics")
        copy_tree(broker.topics, root / "topics")
        told = (root / "topics" / "kafkas-0" / "partition.metadata").read_text()
        topic = {"format": 1, "name": "kafkas", "topic_id": told.split()[-1], "partitions": 2, "options": {}}
        (root / "config" / "kafkas.json").write_text(json.dumps(topic))
        yield GivenBack(root, model, resumed, expected)


def transact(
    clients: KafkaClients, model: Model, producer: str, where: TopicPartition, place: tuple[str, str, int]
) -> None:
    """One transaction that is committed, and one that is aborted; both move the offset of a group."""
    for commit in (True, False):
        clients.begin(producer)
        offsets = send(clients, model, producer, where)
        position = (1 if commit else 2, "moved")
        clients.commit_offsets(place[0], {place[1:]: position}, producer)
        if commit:
            clients.commit(producer)
            model.offsets[place] = position
        else:
            clients.abort(producer)
            model.hidden.setdefault(where, set()).update(offsets)


def test_a_group_goes_on_in_kafka_where_it_was(given_back: GivenBack) -> None:
    assert any(given_back.expected.values())
    assert given_back.resumed == {number: records for number, records in given_back.expected.items() if records}


def test_a_store_reads_what_the_broker_wrote(given_back: GivenBack) -> None:
    with fastlog.open(given_back.root, durability="os") as store:
        assert store.topics() == sorted([*TOPICS, "kafkas"])
        for where in given_back.model.records:
            for isolation in ISOLATIONS:
                expected = given_back.model.visible(where, isolation)
                assert read(store, where, isolation) == expected, (where, isolation)


def test_a_reader_and_a_backup_have_what_the_broker_wrote(given_back: GivenBack, folder: Path) -> None:
    """Before any fastlog has opened the folders for writing, which no dot file tells anything about."""
    root = copy_tree(given_back.root, folder / "store")
    partitions = [TopicPartition("kafkas", number) for number in range(2)]
    with fastlog.open(root, read_only=True) as store:
        assert store.groups() == sorted(["mail", "größe", "new"])
        for where in partitions:
            assert read(store, where, "read_committed") == given_back.model.visible(where, "read_committed")
    with fastlog.open(root, durability="os") as store:
        store.directory.backup(folder / "backup")
    with fastlog.open(folder / "backup", read_only=True) as store:
        assert store.groups() == sorted(["mail", "größe", "new"])
        for where in partitions:
            assert read(store, where, "read_committed") == given_back.model.visible(where, "read_committed")


def test_a_group_goes_on_in_the_store_where_kafka_committed(given_back: GivenBack) -> None:
    model = given_back.model
    with fastlog.open(given_back.root, durability="os") as store:
        assert set(store.groups()) == {"mail", "größe", "new"}
        for group, topic in (("new", "kafkas"), ("mail", "keyed"), ("größe", "plain")):
            with store.consumer(topic, group=group, start="earliest", auto_commit=False) as consumer:
                consumer.poll(timeout=0)
                told = consumer.committed()
                assert {(group, *where): (at.offset, at.metadata) for where, at in told.items() if at} == {
                    place: position for place, position in model.offsets.items() if place[:2] == (group, topic)
                }
        with store.consumer("kafkas", group="new", start="earliest") as consumer:
            found = [as_kafka_tells(one) for one in consumer.records(until="end")]
        expected = [
            one
            for number in range(2)
            for one in model.visible(
                TopicPartition("kafkas", number), "read_committed", model.offsets["new", "kafkas", number][0]
            )
        ]
        assert sorted(found, key=str) == sorted(expected, key=str)


def test_transactional_ids_go_on_in_the_store(given_back: GivenBack) -> None:
    """Ids that Kafka has used last: its own and ours."""
    where = TopicPartition("kafkas", 0)
    with fastlog.open(given_back.root, durability="os") as store:
        before = len(read(store, where, "read_committed"))
        for name in ("theirs", TRANSACTIONAL[0]):
            with store.producer(transactional_id=name) as producer, producer.transaction() as running:
                running.send("kafkas", name.encode(), partition=0)
        values = [one.value for one in read(store, where, "read_committed")]
    assert values[before:] == [b"theirs", TRANSACTIONAL[0].encode()]


# --- as the page says -----------------------------------------------------------------------------------------------


@dataclass
class ByThePage:
    """A broker with topics of its own into which the store's files were put; and a new store made of its folders."""

    records: dict[tuple[TopicPartition, str], list[KafkaRecord]]
    starts: dict[TopicPartition, int]
    offsets: Offsets
    resumed: dict[int, list[KafkaRecord]]
    log: str
    root: Path


@pytest.fixture(scope="module")
def page() -> dict[str, Any]:
    """The functions that docs/kafka.md prints."""
    names: dict[str, Any] = {"__name__": "__main__"}
    text = (ROOT / "docs" / "kafka.md").read_text(encoding="utf-8")
    with (
        tempfile.TemporaryDirectory(dir=MEMORY) as name,
        contextlib.chdir(name),
        contextlib.redirect_stdout(io.StringIO()),
    ):
        for _, body, _ in blocks(text):
            exec(compile(body, "docs/kafka.md", "exec"), names)
    return names


def create_by_command(clients: KafkaClients, command: str) -> None:
    """What ``kafka-topics.sh`` does; its jar is not among those of the tests."""
    program, *words = shlex.split(command)
    given = list(itertools.pairwise(words))
    one = {name: value for name, value in given if name.startswith("--") and name != "--config"}
    options = dict(value.split("=", 1) for name, value in given if name == "--config")
    assert (program, "--create" in words, one["--replication-factor"]) == ("kafka-topics.sh", True, "1")
    step = {"do": "create", "topic": one["--topic"], "partitions": int(one["--partitions"]), "options": options}
    clients.run([step])


@pytest.fixture(scope="module")
def by_the_page(written: Written, kafka: KafkaOracle, page: dict[str, Any]) -> Iterator[ByThePage]:
    with tempfile.TemporaryDirectory(prefix="fastlog-by-the-page-", dir=MEMORY, ignore_cleanup_errors=True) as name:
        root = Path(name, "again")
        with KafkaBroker(Path(name), overrides=SETTINGS) as broker:
            broker.start()
            clients = KafkaClients(kafka, broker)
            for command in page["commands"](written.root):
                create_by_command(clients, command)
            broker.stop()
            page["hand_over"](written.root, broker.topics)
            with pytest.raises(SystemExit, match="has records already"):
                page["hand_over"](written.root, broker.topics)
            broker.start()
            records = {
                (where, isolation): clients.consume(*where, isolation=isolation)
                for where in written.partitions()
                for isolation in ISOLATIONS
            }
            starts = {where: clients.offsets(*where)[0] for where in written.partitions()}
            offsets = {
                (group, *where): position
                for group in ("mail", "größe")
                for where, position in clients.committed(group).items()
            }
            resumed = clients.resume("mail", "keyed")
            clients.forget()
            broker.stop()
            log = broker.log.read_text(errors="replace")
            page["bring_over"](broker.topics, root)
        yield ByThePage(records, starts, offsets, resumed, log, root)


def newest(records: list[KafkaRecord]) -> dict[bytes | None, KafkaRecord]:
    """What compaction has to keep."""
    return {key: one for key, one in {one.key: one for one in records}.items() if one.value is not None}


def test_the_page_moves_a_store_to_a_broker(written: Written, by_the_page: ByThePage) -> None:
    model = written.model
    for (where, isolation), records in by_the_page.records.items():
        expected = model.visible(where, isolation)
        if where.topic == "compacted":  # Kafka's cleaner is faster than its clients
            assert newest(records) == newest(expected)
        else:
            assert records == expected, (where, isolation)
    assert by_the_page.starts == {where: model.starts.get(where, 0) for where in written.partitions()}
    assert by_the_page.offsets == model.offsets
    resumed = {
        number: model.visible(where, "read_committed", model.offsets.get(("mail", *where), (0, ""))[0])
        for number, where in ((number, TopicPartition("keyed", number)) for number in range(TOPICS["keyed"][0]))
    }
    assert by_the_page.resumed == {number: records for number, records in resumed.items() if records}
    assert "stray" not in by_the_page.log
    assert "since clean shutdown file was found" in by_the_page.log


def test_the_page_brings_topics_to_a_store(written: Written, by_the_page: ByThePage) -> None:
    with fastlog.open(by_the_page.root, durability="os") as store:
        assert store.topics() == sorted(TOPICS)
        for where in written.partitions():
            for isolation in ISOLATIONS:
                found = [one for one in read(store, where, isolation) if one.offset >= by_the_page.starts[where]]
                if where.topic == "compacted":
                    assert newest(found) == newest(written.model.visible(where, isolation))
                else:
                    assert found == written.model.visible(where, isolation)
        assert store.groups() == sorted(["mail", "größe"])
        with store.consumer("keyed", group="mail", auto_commit=False) as consumer:
            assert list(consumer.records(until="end")) == []
            assert all(consumer.committed().values())
