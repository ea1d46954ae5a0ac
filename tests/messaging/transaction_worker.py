"""A process with a transactional producer, told what to do on its standard input; tests kill and stop it.

Run as ``python -m tests.messaging.transaction_worker STORE NAME TIMEOUT_MS DURABILITY``. Each line is a JSON list:
a command and its arguments. Each answer is one line: ``["ok", result]``, or ``["error", class, message, outcome]``.
"""

from __future__ import annotations

import json
import sys
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


def main(path: str, name: str, timeout_ms: str, durability: str) -> None:
    worker = Worker(path, name, int(timeout_ms), durability)
    for line in sys.stdin:
        command, *arguments = json.loads(line)
        answer: list[Any]
        try:
            answer = ["ok", getattr(worker, command)(*arguments)]
        except Error as error:
            answer = ["error", type(error).__name__, str(error), error.outcome]
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
