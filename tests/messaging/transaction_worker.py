"""A process with a transactional producer that does what it is told; tests kill and stop it.

It is told commands with their arguments, and answers each with ``["ok", result]``, or with ``["error", class, message,
outcome]``.
"""

from __future__ import annotations

from multiprocessing.connection import Connection
from typing import Any

from fastlog._native import oscalls
from fastlog.errors import Error
from fastlog.store.directory import Directory
from fastlog.transactions import Coordinator
from tests.messaging.transacting import Writer


class Worker:
    def __init__(self, path: str, name: str, timeout_ms: int, durability: str) -> None:
        self.directory = Directory.open(path, durability=durability)
        self.name = name
        self.timeout_ms = timeout_ms
        self.writer: Writer | None = None

    def open(self) -> int:
        self.writer = Writer(self.directory, self.name, self.timeout_ms)
        return self.writer.id.producer_epoch

    def attach(self) -> None:
        Coordinator.of(self.directory).attach()

    def arm(self, name: str, action: str, nth: int) -> None:
        oscalls.arm(name, action, nth)

    def begin(self) -> None:
        assert self.writer is not None
        self.writer.begin()

    def send(self, topic: str, partition: int, values: list[str]) -> int:
        assert self.writer is not None
        return self.writer.send(topic, [value.encode() for value in values], partition)

    def send_unasked(self, topic: str, partition: int, values: list[str]) -> int:
        assert self.writer is not None
        return self.writer.send_unasked(topic, [value.encode() for value in values], partition)

    def commit(self) -> None:
        assert self.writer is not None
        self.writer.id.commit()

    def abort(self) -> None:
        assert self.writer is not None
        self.writer.id.abort()

    def close(self) -> None:
        self.directory.close()


def obey(connection: Connection, path: str, name: str, timeout_ms: int, durability: str) -> None:
    """Do what is told, until nobody tells anything any more."""
    worker = Worker(path, name, timeout_ms, durability)
    while True:
        try:
            command, *arguments = connection.recv()
        except EOFError:
            return
        answer: list[Any]
        try:
            answer = ["ok", getattr(worker, command)(*arguments)]
        except Error as error:
            answer = ["error", type(error).__name__, str(error), error.outcome]
        connection.send(answer)
