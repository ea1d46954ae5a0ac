"""Processes of tests: forked, watched and ended."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from typing import Any

from tests.forking import SERVER


class Worker:
    """A process that runs ``target(connection, *arguments)``; the test talks with it over ``connection``."""

    def __init__(self, target: Callable[..., None], *arguments: Any) -> None:
        self.connection, theirs = SERVER.Pipe()
        self.process: BaseProcess = SERVER.Process(target=_run, args=(target, theirs, arguments), daemon=True)
        self.process.start()
        theirs.close()

    @property
    def pid(self) -> int:
        assert self.process.pid is not None
        return self.process.pid

    def tell(self, what: Any) -> None:
        self.connection.send(what)

    def answer(self, timeout: float = 60) -> Any:
        """What the worker sends next."""
        assert self.connection.poll(timeout), f"process {self.pid} says nothing"
        return self.connection.recv()

    def kill(self) -> None:
        self.process.kill()
        self.process.join(30)

    def join(self, timeout: float = 60) -> int:
        """Wait for its end: the exit code."""
        self.process.join(timeout)
        assert self.process.exitcode is not None, f"process {self.pid} does not end"
        return self.process.exitcode

    @property
    def was_killed(self) -> bool:
        return self.process.exitcode == -signal.SIGKILL


def _run(target: Callable[..., None], connection: Connection, arguments: tuple[Any, ...]) -> None:
    target(connection, *arguments)
    connection.close()


@contextmanager
def crew() -> Iterator[Callable[..., Worker]]:
    """Starts workers; whoever still lives at the end is killed."""
    workers: list[Worker] = []

    def start(target: Callable[..., None], *arguments: Any) -> Worker:
        workers.append(Worker(target, *arguments))
        return workers[-1]

    try:
        yield start
    finally:
        for worker in workers:
            if worker.process.is_alive():
                worker.kill()
