"""A real Kafka 4.1 broker, one node, that keeps its topics in a folder the tests can reach.

``KafkaBroker`` runs broker and controller in one virtual machine (KRaft), on free ports of the loopback address. It can
be stopped cleanly and started again in the same machine, which takes about a second; or be killed, like a crash.
Between the two its folders can be read, or be filled with segments that fastlog wrote: ``adopt``.

Records come and go through Kafka's own clients, which live in the virtual machine of ``KafkaOracle``: ``KafkaClients``.
"""

from __future__ import annotations

import base64
import json
import os
import select
import shutil
import signal
import socket
import subprocess
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from tests.oracle.kafka import JAVA_FLAGS, KafkaOracle, KafkaRecord, prepare

__all__ = ["Foundation", "KafkaBroker", "KafkaClients"]

PATIENCE_S = 90
OF_A_SEGMENT = {".log", ".index", ".timeindex", ".txnindex", ".snapshot"}
EPOCHS = "leader-epoch-checkpoint"
TOPIC_ID = "partition.metadata"  # a folder with another id than its topic's is moved aside by the broker


def free_ports(count: int) -> list[int]:
    """Ports of the loopback address that nobody listens on."""
    holders = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [holder.getsockname()[1] for holder in holders]
    for holder in holders:
        holder.close()
    return ports


def settings(folder: Path, broker_port: int, controller_port: int) -> dict[str, object]:
    """One node that answers fast and deletes, expires and rebalances nothing by itself."""
    return {
        "process.roles": "broker,controller",
        "node.id": 1,
        "controller.quorum.voters": f"1@127.0.0.1:{controller_port}",
        "listeners": f"PLAINTEXT://127.0.0.1:{broker_port},CONTROLLER://127.0.0.1:{controller_port}",
        "advertised.listeners": f"PLAINTEXT://127.0.0.1:{broker_port}",
        "controller.listener.names": "CONTROLLER",
        "log.dirs": folder / "topics",
        # a start after a kill has to wait until the controller gives the old broker up
        "broker.session.timeout.ms": 1000,
        "broker.heartbeat.interval.ms": 100,
        "controller.quorum.election.timeout.ms": 100,
        "controller.quorum.fetch.timeout.ms": 1000,
        "auto.create.topics.enable": "false",
        "offsets.topic.num.partitions": 1,
        "offsets.topic.replication.factor": 1,
        "transaction.state.log.num.partitions": 1,
        "transaction.state.log.replication.factor": 1,
        "transaction.state.log.min.isr": 1,
        "share.coordinator.state.topic.num.partitions": 1,
        "share.coordinator.state.topic.replication.factor": 1,
        "log.retention.ms": -1,
        "log.segment.delete.delay.ms": 0,
        "log.cleaner.backoff.ms": 50,
        "log.cleaner.dedupe.buffer.size": 2_000_000,
        "num.network.threads": 1,
        "num.io.threads": 2,
        "background.threads": 2,
        "num.recovery.threads.per.data.dir": 1,
    }


@dataclass(frozen=True)
class Foundation:
    """What a new cluster begins with: a log directory that is there already, and the topics that lie in it.

    ``topics``: name, id, number of partitions and options of each.
    """

    directory: Path
    topics: tuple[tuple[str, str, int, Mapping[str, object]], ...]

    def properties(self) -> dict[str, str]:
        """``meta.properties`` of the log directory."""
        lines = (self.directory / "meta.properties").read_text().splitlines()
        return dict(line.split("=", 1) for line in lines if "=" in line)

    def as_json(self) -> str:
        directory = self.properties()["directory.id"]
        return json.dumps(
            [
                {"name": name, "id": uuid, "directory": directory, "partitions": partitions, "options": dict(options)}
                for name, uuid, partitions, options in self.topics
            ]
        )


class KafkaBroker:
    """A broker of its own in ``folder``. Close it, or use it as a context manager.

    With a ``foundation`` its log directory is the one named there, and the topics have the ids that they have there;
    only the metadata lie in ``folder``. ``overrides`` are settings of the broker by Kafka's names, instead of those of
    ``settings``.
    """

    def __init__(
        self,
        folder: Path,
        java_flags: Iterable[str] = JAVA_FLAGS,
        overrides: Mapping[str, object] | None = None,
        foundation: Foundation | None = None,
    ) -> None:
        self.folder = folder
        self._java_flags = [flag for flag in java_flags if "simpleLogger" not in flag]
        self.log = folder / "broker.log"
        broker_port, controller_port = free_ports(2)
        self.bootstrap = f"127.0.0.1:{broker_port}"
        self.is_running = False
        self._properties = folder / "server.properties"
        self._cluster = base64.urlsafe_b64encode(os.urandom(16)).decode().rstrip("=").replace("-", "a")
        self._arguments: list[str] = []
        chosen = settings(folder, broker_port, controller_port)
        if foundation is not None:
            chosen |= {"log.dirs": foundation.directory, "metadata.log.dir": folder / "metadata"}
            self._cluster = foundation.properties()["cluster.id"]
            (folder / "topics.json").write_text(foundation.as_json())
            self._arguments = [str(folder / "topics.json")]
        chosen |= overrides or {}
        self.topics = Path(str(chosen["log.dirs"]))
        self._properties.write_text("".join(f"{name}={value}\n" for name, value in chosen.items()))
        self._machine: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def start(self) -> None:
        """Start the broker; returns when it is ready for clients."""
        assert not self.is_running
        if self._machine is None:
            home = prepare()
            class_path = f"{home / 'classes'}:{home / 'jars'}/*"
            with self.log.open("ab") as log:
                self._machine = subprocess.Popen(
                    [
                        "java",
                        *self._java_flags,
                        "-cp",
                        class_path,
                        "BrokerServer",
                        str(self._properties),
                        self._cluster,
                        *self._arguments,
                    ],
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    stderr=log,
                )
        self._ask("start")
        self.is_running = True

    def stop(self) -> None:
        """A clean shutdown: every log is flushed, the checkpoints and the clean mark are written."""
        self._ask("stop")
        self.is_running = False

    def kill(self) -> None:
        """``kill -9``: what Kafka had not yet written to its files is lost, the clean mark is not there."""
        assert self._machine is not None
        self._machine.send_signal(signal.SIGKILL)
        self._forget()

    def close(self) -> None:
        """End the virtual machine, without a clean shutdown of the broker."""
        if self._machine is not None:
            self._machine.kill()
            self._forget()

    def topic_folder(self, topic: str, partition: int = 0) -> Path:
        """The folder of a partition. Its files are complete and at rest while the broker is not running."""
        return self.topics / f"{topic}-{partition}"

    def adopt(
        self, source: Path, topic: str, partition: int = 0, *, start_offset: int = 0, everything: bool = False
    ) -> None:
        """Put the files of another log into the folder of an empty topic, while the broker is stopped.

        Args:
            source: the folder of the log; its segments with what belongs to them, and its leader epochs, are copied.
            start_offset: its log start, if that is not the base offset of its first segment.
            everything: copy every other file too; Kafka has to leave alone what it does not know.
        """
        assert not self.is_running, "a folder is adopted between a stop and a start"
        target = self.topic_folder(topic, partition)
        assert all(file.stat().st_size == 0 for file in target.glob("*.log")), f"{target} is not empty"
        for file in target.iterdir():
            if file.name != TOPIC_ID:
                file.unlink()
        for file in source.iterdir():
            if file.name != TOPIC_ID and (everything or file.suffix in OF_A_SEGMENT or file.name == EPOCHS):
                shutil.copyfile(file, target / file.name)
        for kind in ("recovery-point", "replication", "cleaner", "log-start"):
            offset = start_offset if kind == "log-start" else 0
            self._set_checkpoint(f"{kind}-offset-checkpoint", f"{topic} {partition}", offset)

    def adopt_start(self, topic: str, start_offset: int, partition: int = 0) -> None:
        """Tell the broker, while it is stopped, where the log of a partition begins, as a store does that is closed."""
        self._set_checkpoint("log-start-offset-checkpoint", f"{topic} {partition}", start_offset)

    def forget_clean_stop(self) -> None:
        """Remove the mark of the clean stop: the next start recovers every log from its recovery point on."""
        (self.topics / ".kafka_cleanshutdown").unlink()

    def complaints(self) -> str:
        """The last warnings and errors that the broker has logged."""
        if self._machine is None or self._machine.poll() is not None:
            return f"(it is not running) {self.log.read_text(errors='replace')[-4000:]}"
        lines = self.log.read_text(errors="replace").splitlines()
        return "\n".join([line for line in lines if " WARN " in line or " ERROR " in line][-30:])

    def _set_checkpoint(self, name: str, partition: str, offset: int) -> None:
        """Set the entry of a partition in one of Kafka's checkpoint files; 0 removes it."""
        path = self.topics / name
        lines = path.read_text().splitlines()[2:] if path.exists() else []
        lines = [line for line in lines if line.rpartition(" ")[0] != partition]
        lines += [f"{partition} {offset}"] if offset else []
        path.write_text("\n".join(["0", str(len(lines)), *lines]) + "\n")

    def _forget(self) -> None:
        assert self._machine is not None and self._machine.stdin is not None and self._machine.stdout is not None
        self._machine.wait()
        self._machine.stdin.close()
        self._machine.stdout.close()
        self._machine = None
        self.is_running = False

    def _ask(self, request: str) -> None:
        assert self._machine is not None and self._machine.stdin is not None and self._machine.stdout is not None
        self._machine.stdin.write(f"{request}\n".encode())
        self._machine.stdin.flush()
        heard, _, _ = select.select([self._machine.stdout], [], [], PATIENCE_S)
        answer = self._machine.stdout.readline().decode().strip() if heard else f"no answer in {PATIENCE_S} s"
        if answer != "ok":
            tail = self.log.read_text(errors="replace")[-6000:]
            raise RuntimeError(f"the broker could not {request}: {answer or 'it died'}; the end of its log:\n{tail}")


Step = dict[str, Any]


class KafkaClients:
    """Kafka's own clients, speaking to one broker. They live in the oracle's virtual machine and survive the broker.

    Producers are known by the names that the caller gives them and stay open until they are closed.
    """

    def __init__(self, oracle: KafkaOracle, broker: KafkaBroker) -> None:
        self._oracle = oracle
        self._broker = broker

    def run(self, steps: Iterable[Step]) -> list[Any]:
        """Do several steps with one question; see ``Clients.java`` for what a step is."""
        script = json.dumps([{"bootstrap": self._broker.bootstrap, **step} for step in steps])
        try:
            answers: list[Any] = self._oracle.ask_json("clients", script)
        except ValueError as problem:
            raise ValueError(f"{problem}\nthe broker has logged:\n{self._broker.complaints()}") from None
        return answers

    def create_topic(self, topic: str, partitions: int = 1, **options: object) -> None:
        """Options are named as in Kafka, with an underscore for each dot: ``cleanup_policy="compact"``."""
        self.run([{"do": "create", "topic": topic, "partitions": partitions, "options": named(options)}])

    def configure_topic(self, topic: str, **options: object) -> None:
        self.run([{"do": "configure", "topic": topic, "options": named(options)}])

    def producer(self, name: str, **config: object) -> None:
        """Open a producer; with ``transactional_id`` it fences its predecessor and aborts what that one left open."""
        self.run([{"do": "producer", "producer": name, "config": named(config)}])

    def send(self, producer: str, topic: str, records: Iterable[KafkaRecord], partition: int = 0) -> list[int]:
        """Send records, wait until the broker has them, return their offsets. Their own offsets do not matter."""
        offsets: list[int] = self.run([send(producer, topic, records, partition)])[0]
        return offsets

    def begin(self, producer: str) -> None:
        self.run([{"do": "begin", "producer": producer}])

    def commit(self, producer: str) -> None:
        self.run([{"do": "commit", "producer": producer}])

    def abort(self, producer: str) -> None:
        self.run([{"do": "abort", "producer": producer}])

    def close(self, producer: str) -> None:
        """Close a producer at once: its transaction stays open."""
        self.run([{"do": "close", "producer": producer}])

    def consume(
        self, topic: str, partition: int = 0, *, isolation: str = "read_uncommitted", start: int | None = None
    ) -> list[KafkaRecord]:
        """Everything that a consumer gets, from ``start`` or the log start to the end its isolation level allows."""
        step: Step = {"do": "consume", "topic": topic, "partition": partition, "config": {"isolation.level": isolation}}
        if start is not None:
            step["from"] = start
        return [record_of(row) for row in self.run([step])[0]]

    def delete_records(self, topic: str, before: int, partition: int = 0) -> int:
        """Raise the log start; returns the new one."""
        step = {"do": "delete_records", "topic": topic, "partition": partition, "before": before}
        return int(self.run([step])[0])

    def offsets(self, topic: str, partition: int = 0) -> tuple[int, int, int]:
        """Log start, last stable offset and end."""
        start, stable, end = self.run([{"do": "offsets", "topic": topic, "partition": partition}])[0]
        return start, stable, end

    def offset_for_time(self, topic: str, timestamp: int, partition: int = 0) -> int | None:
        """The first record that is not older than ``timestamp``, milliseconds."""
        found = self.run([{"do": "offset_for_time", "topic": topic, "partition": partition, "timestamp": timestamp}])
        return None if found[0] < 0 else int(found[0])

    def active_producers(self, topic: str, partition: int = 0) -> list[dict[str, int | None]]:
        """What the broker remembers of the producers of a partition."""
        found: list[dict[str, int | None]] = self.run([{"do": "producers", "topic": topic, "partition": partition}])[0]
        return found

    def committed(self, group: str) -> dict[tuple[str, int], tuple[int, str]]:
        """What a group has committed, as the broker tells: offset and metadata by topic and partition."""
        found = self.run([{"do": "committed", "group": group}])[0]
        return {(topic, partition): (offset, metadata) for topic, partition, offset, metadata in found}

    def commit_offsets(
        self, group: str, offsets: Mapping[tuple[str, int], tuple[int, str]], producer: str | None = None
    ) -> None:
        """Commit for a group without members; with a producer as part of its transaction."""
        rows = [[*partition, *position] for partition, position in offsets.items()]
        step: Step = {"do": "commit_offsets", "group": group, "offsets": rows}
        self.run([step if producer is None else {**step, "producer": producer}])

    def resume(self, group: str, topic: str) -> dict[int, list[KafkaRecord]]:
        """What a member that subscribes gets by partition, from the group's offsets to the ends, which it commits."""
        found: dict[int, list[KafkaRecord]] = {}
        for partition, row in self.run([{"do": "resume", "group": group, "topic": topic}])[0]:
            found.setdefault(partition, []).append(record_of(row))
        return found

    def transactions(self, ids: Sequence[str]) -> dict[str, tuple[str, int, int]]:
        """State, producer id and epoch of transactional ids, as their coordinator tells."""
        return {name: tuple(told) for name, told in self.run([{"do": "transactions", "ids": list(ids)}])[0].items()}

    def forget(self) -> None:
        """Close all clients."""
        self.run([{"do": "forget"}])


def named(options: Mapping[str, object]) -> dict[str, str]:
    return {name.replace("_", "."): str(value) for name, value in options.items()}


def send(producer: str, topic: str, records: Iterable[KafkaRecord], partition: int = 0) -> Step:
    """A step that sends records, for ``KafkaClients.run``."""
    rows = [[r.timestamp, hex_of(r.key), hex_of(r.value), [[n, hex_of(v)] for n, v in r.headers]] for r in records]
    return {"do": "send", "producer": producer, "topic": topic, "partition": partition, "records": rows}


def hex_of(content: bytes | None) -> str | None:
    return None if content is None else content.hex()


def bytes_of(digits: str | None) -> bytes | None:
    return None if digits is None else bytes.fromhex(digits)


def record_of(row: list[Any]) -> KafkaRecord:
    offset, timestamp, key, value, headers = row
    pairs = tuple((name, bytes_of(content)) for name, content in headers)
    return KafkaRecord(offset, timestamp, bytes_of(key), bytes_of(value), pairs)
