"""A warm interpreter that forks processes for tests: it starts, signals and buries them.

Importing takes a hundred times as long as forking, and hundreds of processes are killed. ``Nursery`` is the side of
the test, ``main`` the server: JSON objects on standard input, one line each (``{"start": number, "role":
"module:function", "arguments": {...}}`` or ``{"signal": number, "to": number}``); lines on standard output:
``ready``, ``pid N PID``, ``stopped N``, ``continued N``, ``done N STATUS TIME``. Signals go through the server, as the
processes may live in a pid namespace of their own.
"""

from __future__ import annotations

import contextlib
import ctypes
import importlib
import json
import os
import select
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
PRELOADED = ("tests.histories.workers", "tests.histories.puppet", "tests.histories_messaging.workers")
_PR_SET_PDEATHSIG = 1


def die_with(parent: int) -> None:
    """This process, a child of ``parent``, is killed when that one dies: nobody is left over. Linux only."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != parent:
            os._exit(4)


class Stopping:
    """Whether this process was asked to end. Set by a signal handler, so there is no lock in it as in an Event."""

    def __init__(self) -> None:
        self.asked = False

    def set(self, *_: object) -> None:
        self.asked = True

    def is_set(self) -> bool:
        return self.asked

    def rest(self, seconds: float) -> None:
        time.sleep(0 if self.asked else seconds)


stopping = Stopping()


class Child:
    """One process of a nursery, as the test sees it."""

    def __init__(self, nursery: Nursery, number: int, name: str) -> None:
        self.nursery, self.number, self.name = nursery, number, name
        self.pid = 0  # in its own pid namespace
        self.status: int | None = None  # as waitpid has it; None while it lives
        self.stopped = False
        self.signalled_at = 0  # just before SIGKILL was sent
        self.dead_by: int | None = None  # by the steady clock, like the above

    def signal(self, number: int) -> None:
        if self.status is None:
            if number == signal.SIGKILL:
                self.signalled_at = time.monotonic_ns()
            self.nursery.send({"signal": int(number), "to": self.number})

    def kill(self, timeout: float = 30) -> None:
        """SIGKILL, and wait until it is gone."""
        self.signal(signal.SIGKILL)
        self.wait(timeout)

    def ask_to_stop(self) -> None:
        self.signal(signal.SIGTERM)

    def wait(self, timeout: float = 30) -> int:
        """Its status when it is gone. Raises AssertionError when that takes longer than ``timeout`` seconds."""
        self.nursery.hear_until(lambda: self.status is not None, timeout, f"{self.name} did not end")
        assert self.status is not None
        return self.status

    def wait_until_stopped(self, timeout: float = 30) -> None:
        what = f"{self.name} did not stop itself"
        self.nursery.hear_until(lambda: self.stopped or self.status is not None, timeout, what)
        assert self.stopped, f"{what}, but ended with {self.status}"

    @property
    def alive(self) -> bool:
        self.nursery.hear(0)
        return self.status is None


class Nursery:
    """A server and its children. ``prefix`` is put before its command, ``environment`` added to its own.

    ``preloaded``: modules that roles are in, besides those of histories and puppets. ``errors``: a file for what all of
    them write to standard error.
    """

    def __init__(
        self,
        prefix: list[str] | None = None,
        environment: dict[str, str] | None = None,
        preloaded: Sequence[str] = (),
        errors: Path | None = None,
    ) -> None:
        paths = [path for path in sys.path if path]
        inherited = {name: value for name, value in os.environ.items() if name != "FASTLOG_FAILPOINT"}
        self.errors = errors
        self.children: dict[int, Child] = {}
        self.ready = False
        self.rest = b""
        with contextlib.ExitStack() as stack:
            self.process = subprocess.Popen(
                [*(prefix or []), sys.executable, "-m", "tests.histories", *preloaded],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=None if errors is None else stack.enter_context(errors.open("ab")),
                cwd=ROOT,
                env={**inherited, "PYTHONPATH": os.pathsep.join(paths), **(environment or {})},
                bufsize=0,
            )

    def __enter__(self) -> Nursery:
        self.hear_until(lambda: self.ready, 60, "the nursery did not start")
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """End it: its children die with it."""
        assert self.process.stdin and self.process.stdout
        self.process.stdin.close()
        try:
            self.process.wait(timeout=30)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        self.process.stdout.close()

    def words(self) -> str:
        """The end of what all of them wrote to standard error."""
        return "" if self.errors is None else self.errors.read_text(errors="replace")[-5000:]

    def send(self, message: dict[str, Any]) -> None:
        assert self.process.stdin
        self.process.stdin.write(json.dumps(message).encode() + b"\n")

    def start(self, role: str, name: str = "", **arguments: Any) -> Child:
        """Fork a process that calls ``role`` (``"module:function"``). It runs when this returns."""
        number = len(self.children)
        child = self.children[number] = Child(self, number, name or f"{role} {number}")
        self.send({"start": number, "role": role, "arguments": arguments})
        self.hear_until(lambda: child.pid != 0, 30, f"{child.name} did not start")
        return child

    def hear_until(self, condition: Any, timeout: float, what: str) -> None:
        until = time.monotonic() + timeout
        while not condition():
            left = until - time.monotonic()
            assert left > 0, f"{what} within {timeout} seconds"
            self.hear(left)

    def hear(self, timeout: float) -> None:
        """Take in what the server says; wait for something at most so long."""
        assert self.process.stdout
        while select.select([self.process.stdout], [], [], timeout)[0]:
            data = os.read(self.process.stdout.fileno(), 1 << 16)
            assert data, "the nursery died"
            *lines, self.rest = (self.rest + data).split(b"\n")
            for line in lines:
                self.take(line.decode().split())
            timeout = 0

    def take(self, words: list[str]) -> None:
        if words[0] == "ready":
            self.ready = True
            return
        child = self.children[int(words[1])]
        if words[0] == "pid":
            child.pid = int(words[2])
        elif words[0] == "stopped":
            child.stopped = True
        elif words[0] == "continued":
            child.stopped = False
        elif words[0] == "done":
            child.status, child.dead_by = int(words[2]), int(words[3])


# --- the server -----------------------------------------------------------------------------------------------------


def say(line: str) -> None:
    os.write(1, (line + "\n").encode())


def run_child(message: dict[str, Any], server: int) -> None:
    """All of a child's life. It never returns to the server's loop."""
    status = 3
    try:
        die_with(server)
        signal.set_wakeup_fd(-1)
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        signal.signal(signal.SIGINT, signal.default_int_handler)
        signal.signal(signal.SIGTERM, stopping.set)
        say(f"pid {message['start']} {os.getpid()}")
        nothing = os.open(os.devnull, os.O_RDWR)
        os.dup2(nothing, 0)
        os.dup2(2, 1)
        module, _, function = message["role"].partition(":")
        getattr(importlib.import_module(module), function)(**message["arguments"])
        status = 0
    except BaseException:  # noqa: BLE001 - a forked child must never return to its parent's loop
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


def bury(numbers: dict[int, int]) -> None:
    while numbers:
        pid, status = os.waitpid(-1, os.WNOHANG | os.WUNTRACED | os.WCONTINUED)
        if pid == 0:
            return
        if pid not in numbers:
            continue  # a grandchild that was left to pid 1 of the namespace
        if os.WIFSTOPPED(status):
            say(f"stopped {numbers[pid]}")
        elif os.WIFCONTINUED(status):
            say(f"continued {numbers[pid]}")
        else:
            say(f"done {numbers.pop(pid)} {status} {time.monotonic_ns()}")


def main() -> None:
    for name in (*PRELOADED, *sys.argv[1:]):
        importlib.import_module(name)
    wake, waker = os.pipe()
    os.set_blocking(waker, False)
    signal.set_wakeup_fd(waker, warn_on_full_buffer=False)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    numbers: dict[int, int] = {}  # pid -> number of the child
    rest = b""
    say("ready")
    while True:
        ready, _, _ = select.select([0, wake], [], [])
        if wake in ready:
            os.read(wake, 4096)
        bury(numbers)
        if 0 not in ready:
            continue
        data = os.read(0, 1 << 16)
        if not data:
            break
        *lines, rest = (rest + data).split(b"\n")
        for line in lines:
            message = json.loads(line)
            if "start" in message:
                server = os.getpid()
                pid = os.fork()
                if pid == 0:
                    run_child(message, server)
                numbers[pid] = message["start"]
            else:
                for pid, number in numbers.items():
                    if number == message["to"]:
                        os.kill(pid, message["signal"])
    for pid in numbers:
        os.kill(pid, signal.SIGKILL)
    for pid in numbers:
        os.waitpid(pid, 0)
