"""Kafka as a peer: a real broker, one node, beside the writer; and what else stands beside a store: nothing."""

from __future__ import annotations

import re
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Protocol

from tests.evidence.peers.stores import Peer, package_version
from tests.evidence.peers.workload import StuckError
from tests.evidence.run import NotHere
from tests.oracle.broker import KafkaBroker
from tests.oracle.kafka import HERE, OracleUnavailable, prepare

TOPIC = "events"
PATIENCE_S = 15
STUCK_S = 10.0  # without a record, an error or the end
# What the oracle's broker has set for the sake of its tests, back at Kafka's defaults. What is left shortens how long a
# controller believes in a dead broker, which only makes a recovery faster.
DEFAULTS = {
    "num.network.threads": 3,
    "num.io.threads": 8,
    "background.threads": 10,
    "num.recovery.threads.per.data.dir": 2,
    "log.retention.ms": 604_800_000,
    "log.segment.delete.delay.ms": 60_000,
    "log.cleaner.backoff.ms": 15_000,
    "log.cleaner.dedupe.buffer.size": 134_217_728,
}


class Beside(Protocol):
    """What runs beside a store whose files are in a folder. ``place`` is what the store is opened by."""

    place: str
    is_writer: bool  # whether the store lives in its writer, and dies with it

    def begin(self) -> None:
        """Start for the first time, and make what a writer needs."""

    def start(self) -> None:
        """Start again; raises RuntimeError when it does not come up."""

    def stop(self) -> None:
        """A clean stop: the files are at rest."""

    def kill(self) -> None:
        """kill -9."""


class Nothing:
    """Beside an embedded store."""

    is_writer = True

    def __init__(self, folder: Path) -> None:
        self.place = str(folder)

    def begin(self) -> None: ...

    def start(self) -> None: ...

    def stop(self) -> None: ...

    def kill(self) -> None: ...


class Broker:
    """A broker with its topics, and its metadata, in ``folder``; its settings and its log are in ``scratch``."""

    is_writer = False

    def __init__(self, folder: Path, scratch: Path) -> None:
        scratch.mkdir(parents=True, exist_ok=True)
        self.folder = folder
        try:
            prepare()
        except OracleUnavailable as problem:
            raise NotHere(f"no Kafka: {problem}") from problem
        self.broker = KafkaBroker(scratch, overrides={**DEFAULTS, "log.dirs": folder})
        self.place = self.broker.bootstrap

    def begin(self) -> None:
        from confluent_kafka.admin import AdminClient, NewTopic

        self.folder.mkdir(parents=True, exist_ok=True)
        self.broker.start()
        admin = AdminClient({"bootstrap.servers": self.place, "log_level": 3})
        admin.create_topics([NewTopic(TOPIC, 1, 1)])[TOPIC].result(PATIENCE_S)

    def start(self) -> None:
        if not (self.folder / "meta.properties").exists():
            # the oracle's server would format the folder anew; Kafka's own does not start
            raise RuntimeError("No readable meta.properties files found")
        self.broker.start()

    def stop(self) -> None:
        if self.broker.is_running:
            self.broker.stop()

    def kill(self) -> None:
        self.broker.close()


class Kafka:
    """A topic of one partition, by confluent-kafka. Several records are produced, and then waited for together."""

    def __init__(self, place: str) -> None:
        import confluent_kafka

        self.library: Any = confluent_kafka
        self.place = place
        self.producer: Any = confluent_kafka.Producer(
            {"bootstrap.servers": place, "acks": "all", "enable.idempotence": True}
        )
        self.producer.list_topics(TOPIC, timeout=PATIENCE_S)

    def append(self, values: list[bytes]) -> None:
        delivered: list[Any] = []
        for value in values:
            self.producer.produce(TOPIC, value, partition=0, on_delivery=lambda error, _: delivered.append(error))
        self.producer.flush()
        for error in delivered:
            if error is not None:
                raise self.library.KafkaException(error)
        assert len(delivered) == len(values)

    def read_all(self) -> Iterator[tuple[int, bytes]]:
        partition = self.library.TopicPartition
        consumer: Any = self.library.Consumer(
            {"bootstrap.servers": self.place, "group.id": "judge", "enable.auto.commit": False, "check.crcs": True}
        )
        first, end = consumer.get_watermark_offsets(partition(TOPIC, 0), timeout=PATIENCE_S)
        consumer.assign([partition(TOPIC, 0, first)])
        position, deadline = first, time.monotonic() + STUCK_S
        while position < end:
            for message in consumer.consume(1000, 0.2):
                if message.error() is not None:
                    raise self.library.KafkaException(message.error())
                yield message.offset(), message.value()
                position, deadline = message.offset() + 1, time.monotonic() + STUCK_S
            if time.monotonic() > deadline:
                raise StuckError(f"the consumer stays at {position}, before {end}")

    def close(self) -> None:
        self.producer.flush(PATIENCE_S)


def kafka_version() -> str:
    versions = re.findall("<version>(.*)</version>", (HERE / "pom.xml").read_text().partition("kafka_2")[2])
    return f"Apache Kafka {versions[0]}, {package_version('confluent-kafka')}"


KAFKA = Peer(
    "kafka", "Apache Kafka, one node",
    "the defaults: `log.flush.interval.messages` and `.ms` unset, so nothing is synced before an acknowledgement; one "
    "replica; producer `acks=all`, idempotent; consumer `check.crcs=true`, which is the default of the Java client and "
    "not of confluent-kafka",
    "https://kafka.apache.org/documentation/#brokerconfigs_log.flush.interval.messages", "no", Kafka,
    ("events-0/*.log",), "confluent-kafka", "confluent_kafka", kafka_version,
)  # fmt: skip
