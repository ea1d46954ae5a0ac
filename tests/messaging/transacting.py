"""What tests of transactions share: a producer of the simplest kind, and what readers see."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from fastlog._core import encode_batch
from fastlog.store.directory import Directory
from fastlog.transactions import TransactionalId


class Writer:
    """Sends values as transactional batches, one batch each call; keeps the sequence numbers of its epoch."""

    def __init__(self, directory: Directory, name: str, timeout_ms: int = 60_000) -> None:
        self.directory = directory
        self.id = TransactionalId(directory, name, timeout_ms)
        self.sequences: dict[tuple[str, int], int] = {}
        self.known = (self.id.producer_id, self.id.producer_epoch)

    def begin(self) -> None:
        self.id.begin()

    def send(self, topic: str, values: Iterable[bytes], partition: int = 0) -> int:
        values = list(values)
        self.id.enter_partition(topic, partition)
        return self.send_unasked(topic, values, partition)

    def send_unasked(self, topic: str, values: list[bytes], partition: int = 0) -> int:
        """As a producer that was stopped between asking and writing."""
        now = (self.id.producer_id, self.id.producer_epoch)
        if now != self.known:
            self.sequences.clear()
            self.known = now
        sequence = self.sequences.get((topic, partition), 0)
        batch = encode_batch(
            values, producer_id=now[0], producer_epoch=now[1], base_sequence=sequence, transactional=True
        )
        with self.directory.lease(topic, partition) as lease:
            base: int = lease.log.append_batch(batch)
        self.sequences[topic, partition] = sequence + len(values)
        return base

    def transaction(self, topic: str, values: Iterable[bytes], *, commit: bool = True, partition: int = 0) -> None:
        self.begin()
        self.send(topic, values, partition)
        if commit:
            self.id.commit()
        else:
            self.id.abort()

    def close(self) -> None:
        self.id.close()


def visible(directory: Directory, topic: str, partition: int = 0) -> list[bytes]:
    """Values that a read_committed reader sees."""
    with directory.lease(topic, partition) as lease:
        return [record.value or b"" for record in lease.log.records()]


def is_settled(directory: Directory, topic: str, partition: int = 0) -> bool:
    """Whether nothing is open in the partition."""
    with directory.lease(topic, partition) as lease:
        return not lease.log.open_transactions()


def open_store(path: Path, **options: Any) -> Directory:
    options.setdefault("durability", "os")
    directory = Directory.open(path, **options)
    for topic in ("a", "b"):
        directory.create_topic(topic, 3, exist_ok=True)
    return directory
