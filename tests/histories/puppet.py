"""A process that does what it is told, one piece of Python at a time, and answers with the result or the error.

For tests in which several processes have to do things in an exact order. Every puppet knows ``fastlog``, ``oscalls``,
``os``, ``time``, ``threading`` and ``open_log(path, **options)``; what it defines stays defined.
"""

from __future__ import annotations

import ast
import builtins
import json
import os
import socket
import sys
import tempfile
import threading
import time
import traceback
from pathlib import Path
from typing import Any

import fastlog
from fastlog._native import oscalls
from tests.histories.nursery import Child, Nursery
from tests.histories.workers import SMALL

__all__ = ["Puppet", "open_small", "play"]

PLACE = tempfile.gettempdir()


class Puppet:
    """The test's side of one puppet. An error in the puppet is raised here, as the same class where there is one."""

    def __init__(self, nursery: Nursery, name: str = "puppet") -> None:
        self.name = name
        self.rest = b""
        self.took = 0.0  # seconds of the last call, by the puppet's clock
        self.ended = 0.0  # when it was over, by the steady clock, which is the same in all processes
        with tempfile.TemporaryDirectory(dir=PLACE) as folder, socket.socket(socket.AF_UNIX) as listener:
            address = str(Path(folder) / "s")
            listener.bind(address)
            listener.listen()
            listener.settimeout(30)
            self.child: Child = nursery.start("tests.histories.puppet:play", name, address=address)
            self.socket = listener.accept()[0]

    @property
    def pid(self) -> int:
        """In its own pid namespace."""
        return self.child.pid

    def do(self, source: str, timeout: float = 30, **values: Any) -> None:
        """Run statements."""
        self.begin(source, **values)
        self.result(timeout)

    def get(self, source: str, timeout: float = 30, **values: Any) -> Any:
        """The value of an expression: numbers, texts, bytes, tuples, lists and dicts of them."""
        self.begin(source, expression=True, **values)
        return self.result(timeout)

    def begin(self, source: str, expression: bool = False, **values: Any) -> None:
        """Run statements, or an expression, without waiting for the end."""
        message = {"source": source, "expression": expression, "values": repr(values)}
        self.socket.sendall(json.dumps(message).encode() + b"\n")

    def result(self, timeout: float = 30) -> Any:
        """What was begun has come to. Raises AssertionError when it takes longer than ``timeout`` seconds."""
        until = time.monotonic() + timeout
        while b"\n" not in self.rest:
            self.socket.settimeout(max(0.001, until - time.monotonic()))
            try:
                data = self.socket.recv(1 << 16)
            except TimeoutError:
                raise AssertionError(f"{self.name} had no result within {timeout} seconds") from None
            except ConnectionResetError:
                data = b""
            if not data:
                raise ConnectionError(f"{self.name} is gone")
            self.rest += data
        line, _, self.rest = self.rest.partition(b"\n")
        answer = json.loads(line)
        self.took, self.ended = answer["took"], answer["ended"]
        if "error" in answer:
            raise rebuilt(answer)
        return ast.literal_eval(answer["value"])

    def pending(self) -> bool:
        """Whether what was begun still runs."""
        self.socket.settimeout(0.0)
        try:
            self.rest += self.socket.recv(1 << 16)
        except BlockingIOError:
            pass
        return b"\n" not in self.rest

    def signal(self, number: int) -> None:
        self.child.signal(number)

    def kill(self) -> None:
        self.child.kill()

    def wait_until_gone(self, timeout: float = 30) -> None:
        self.child.wait(timeout)


def rebuilt(answer: dict[str, Any]) -> BaseException:
    kind = getattr(fastlog, answer["error"], None) or getattr(builtins, answer["error"], RuntimeError)
    error: BaseException = kind(answer["message"])
    for name, value in answer["attributes"].items():
        setattr(error, name, value)
    error.add_note(answer["traceback"])
    return error


def open_small(path: str, **options: Any) -> Any:
    """The log, with segments so small that they roll often."""
    config = {**SMALL, **options.pop("config", {})}
    return fastlog.PartitionLog.open(path, config=fastlog.LogConfig(**config), **options)


def play(address: str) -> None:
    """The role of a puppet. It ends when the test lets go of it."""
    line = socket.socket(socket.AF_UNIX)
    line.connect(address)
    names: dict[str, Any] = {
        "fastlog": fastlog,
        "oscalls": oscalls,
        "open_log": open_small,
        "os": os,
        "sys": sys,
        "threading": threading,
        "time": time,
    }
    rest = b""
    while True:
        while b"\n" not in rest:
            data = line.recv(1 << 16)
            if not data:
                return
            rest += data
        text, _, rest = rest.partition(b"\n")
        message = json.loads(text)
        names.update(ast.literal_eval(message["values"]))
        line.sendall(json.dumps(obey(message, names)).encode() + b"\n")


def obey(message: dict[str, Any], names: dict[str, Any]) -> dict[str, Any]:
    begun = time.monotonic()
    answer: dict[str, Any]
    try:
        value = None
        if message["expression"]:
            value = eval(message["source"], names)
        else:
            exec(message["source"], names)
        answer = {"value": repr(value)}
    except BaseException as error:  # noqa: BLE001 - also an interrupted wait
        simple = {n: v for n, v in vars(error).items() if v is None or isinstance(v, (int, str))}
        text = "in the puppet: " + traceback.format_exc()
        answer = {"error": type(error).__name__, "message": str(error), "attributes": simple, "traceback": text}
    ended = time.monotonic()
    return {**answer, "took": ended - begun, "ended": ended}
