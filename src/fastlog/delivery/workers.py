"""The processes of ``fastlog run``: spawned, started again when they die, stopped together.

They are new interpreters, not forks: no lock, thread or open store of one reaches another. Each lies in a process group
of its own, so that Ctrl-C reaches the parent alone, which stops all of them once, by SIGTERM.
"""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from queue import Empty, SimpleQueue
from types import FrameType
from typing import Any, Final

from fastlog._native import oscalls
from fastlog.errors import ConfigError, Error

from .policy import Retry
from .worker import EXIT_SIGNALLED, EXIT_STUCK

__all__ = ["Event", "Workers"]

DEFAULT_GRACE_MS: Final = 40_000  # longer than the drain_timeout of a subscriber
# a worker that lived so long had a good start: its next death is the first one again
HEALTHY_MS: Final = 10_000
RESTARTS: Final = Retry(backoff=("100ms", "30s"), factor=2, jitter=True)
SIGNALS: Final = (signal.SIGTERM, signal.SIGINT)
PIPE_BYTES: Final = 1 << 16
# timeout(1) signals a process, and then its group: that is one signal, not two
SAME_SIGNAL_MS: Final = 500


@dataclass(frozen=True, slots=True)
class Event:
    """Something that happened to the workers.

    Attributes:
        kind: "started", "loaded", "died", "ended" (by itself, with code 0, or after a stop), "stopping" or "killed".
            One that somebody else stopped by a signal has died.
        text: a sentence for people.
        worker: its number, from 1; None when it is about all.
        pid: its process id.
        code: how it ended: an exit code, or the negative number of a signal.
        delay_ms: in how many milliseconds it is started again.
        alive: how many workers there are now.
        restarts: how often workers were started again so far.
    """

    kind: str
    text: str
    worker: int | None = None
    pid: int | None = None
    code: int | None = None
    delay_ms: int | None = None
    alive: int = 0
    restarts: int = 0


@dataclass(slots=True)
class _Worker:
    """One place for a process, and when it gets the next one."""

    number: int
    process: subprocess.Popen[bytes] | None = None
    started_at: int = 0
    deaths: int = 0
    due: int | None = None
    is_done: bool = False

    @property
    def is_alive(self) -> bool:
        return self.process is not None


class Workers:
    """Runs an app in processes until it is told to stop. ``run`` may be called once, in the main thread.

    Args:
        target: ``module:attribute`` of the app; looked for in the current folder first.
        count: how many processes; from 1.
        store: a store that takes the place of the app's own.
        grace_ms: after a stop, how long processes have before they are killed.
        log_level: of the lines that workers write when the app has no logging of its own.
        tell: called with what happens, in the main thread.
    """

    def __init__(
        self,
        target: str,
        count: int = 1,
        *,
        store: str | None = None,
        grace_ms: int = DEFAULT_GRACE_MS,
        log_level: str = "warning",
        tell: Callable[[Event], None] = lambda event: None,
    ) -> None:
        self._target = target
        self._store = store
        self._grace_ms = grace_ms
        self._log_level = log_level
        self._tell = tell
        self._workers = [_Worker(number) for number in range(1, count + 1)]
        self._happened: SimpleQueue[tuple[str, Any, Any]] = SimpleQueue()
        self._random = random.Random()
        self._life: int | None = None  # read end of the pipe that ends with us
        self._restarts = 0
        self._has_loaded = False
        self._problem: dict[str, Any] = {}
        self._is_stopping = False
        self._stopped_at = 0
        self._kill_at: int | None = None
        self._failures = 0

    def run(self) -> int:
        """Start the workers and see to them until all have ended.

        Returns:
            0 when all ended as they should, after a stop or by themselves; 1 when one had to be killed, or failed while
            it was stopping.

        Raises:
            ConfigError: there is no such app; the first worker found out, and the others were not started.
            Error: the app could not be loaded; its traceback is on stderr.
        """
        self._life, our_end = os.pipe()
        try:
            with self._signals():
                # one first: what is wrong with the app is said once
                self._start(self._workers[0])
                while not self._is_over():
                    self._handle(self._next())
                    self._upkeep()
        finally:
            self._kill()
            os.close(our_end)
            os.close(self._life)
        return 1 if self._failures else 0

    # --- what happens ------------------------------------------------------------------------------------------------

    @contextmanager
    def _signals(self) -> Iterator[None]:
        def tell(number: int, frame: FrameType | None) -> None:
            self._happened.put(("signal", number, None))

        before = {number: signal.signal(number, tell) for number in SIGNALS}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def _next(self) -> tuple[str, Any, Any] | None:
        """What happened next; None when something is due before that."""
        due = [worker.due for worker in self._workers if worker.due is not None]
        if self._kill_at is not None:
            due.append(self._kill_at)
        timeout = max(min(due) - oscalls.steady_clock(), 0) / 1000 if due else None
        try:
            return self._happened.get(timeout=timeout)
        except Empty:
            return None

    def _handle(self, happened: tuple[str, Any, Any] | None) -> None:
        if happened is None:
            return
        kind, what, detail = happened
        if kind == "signal":
            self._stop(what)
        elif kind == "answer":
            self._answered(what, detail)
        else:
            self._ended(what, detail)

    def _upkeep(self) -> None:
        """What is due by now."""
        now = oscalls.steady_clock()
        if self._kill_at is not None and now >= self._kill_at:
            self._say("killed", f"not all have ended within {self._grace_ms / 1000:g} s: the rest is killed")
            self._kill_at = None
            self._kill()
        for worker in self._workers:
            if worker.due is not None and now >= worker.due:
                self._start(worker)
                self._restarts += worker.is_alive

    def _is_over(self) -> bool:
        if any(worker.is_alive for worker in self._workers):
            return False
        return self._is_stopping or all(worker.is_done for worker in self._workers)

    # --- one worker --------------------------------------------------------------------------------------------------

    def _start(self, worker: _Worker) -> None:
        answers, ready = os.pipe()
        command = [sys.executable, "-m", "fastlog.delivery.worker", self._target, str(worker.number)]
        command += [str(self._life), str(ready), str(self._grace_ms), self._log_level]
        command += [] if self._store is None else [self._store]
        try:
            worker.process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, pass_fds=(self._life or 0, ready), process_group=0
            )
        except OSError as error:
            os.close(answers)
            self._start_later(worker, error)
            return
        finally:
            os.close(ready)
        worker.due, worker.started_at = None, oscalls.steady_clock()
        threading.Thread(
            target=self._watch, args=(worker, worker.process, answers), name=f"fastlog-worker-{worker.number}",
            daemon=True,
        ).start()  # fmt: skip
        self._say("started", f"worker {worker.number} (pid {worker.process.pid}) starts", worker)

    def _start_later(self, worker: _Worker, error: OSError) -> None:
        """The system has no process to give, or no memory: ask again."""
        if not self._has_loaded:
            raise Error(f"no worker can be started: {error}") from error
        worker.deaths += 1
        delay = RESTARTS.delay(worker.deaths, self._random)
        worker.due = oscalls.steady_clock() + delay
        text = f"worker {worker.number} cannot be started: {error}; it is tried again in {delay / 1000:.1f} s"
        self._say("died", text, worker, delay_ms=delay)

    def _watch(self, worker: _Worker, process: subprocess.Popen[bytes], answers: int) -> None:
        """A thread for each process: it reads what the process answers, and waits for its end."""
        line = b""
        while not line.endswith(b"\n") and (piece := os.read(answers, PIPE_BYTES)):
            line += piece
        os.close(answers)
        if line.endswith(b"\n"):
            self._happened.put(("answer", worker, json.loads(line)))
        self._happened.put(("end", worker, process.wait()))

    def _answered(self, worker: _Worker, answer: dict[str, Any]) -> None:
        if answer:
            self._problem = answer
            return
        self._say("loaded", f"worker {worker.number} runs {self._target}", worker)
        if not self._has_loaded:
            self._has_loaded = True
            for other in self._workers:
                if not other.is_alive and not self._is_stopping:
                    self._start(other)

    def _ended(self, worker: _Worker, code: int) -> None:
        process, worker.process = worker.process, None
        pid = process.pid if process is not None else None
        how = f"worker {worker.number} (pid {pid}) {described(code)}"
        # one that has not begun has no handler for the signal, and nothing in hand
        if self._is_stopping:
            self._failures += code not in (0, EXIT_SIGNALLED, -signal.SIGTERM)
            self._say("ended", how, worker, pid=pid, code=code)
        elif not self._has_loaded:
            self._refuse(how)
        elif code == 0:
            worker.is_done = True
            self._say("ended", f"{how}, by itself", worker, pid=pid, code=code)
        else:
            self._plan(worker, how, pid, code)

    def _plan(self, worker: _Worker, how: str, pid: int | None, code: int) -> None:
        """Start it again, later if it has died before."""
        now = oscalls.steady_clock()
        lived = now - worker.started_at
        worker.deaths = 1 if lived >= HEALTHY_MS else worker.deaths + 1
        delay = RESTARTS.delay(worker.deaths, self._random)
        worker.due = now + delay
        reason = f": {self._problem['error']}" if self._problem else ""
        self._problem = {}
        text = f"{how} after {lived / 1000:.1f} s{reason}; it starts again in {delay / 1000:.1f} s"
        self._say("died", text, worker, pid=pid, code=code, delay_ms=delay)

    def _refuse(self, how: str) -> None:
        if not self._problem:
            raise Error(f"{how} while it was loading {self._target!r}: no other worker was started")
        raise (ConfigError if self._problem["is_usage"] else Error)(self._problem["error"])

    # --- all of them -------------------------------------------------------------------------------------------------

    def _stop(self, number: int) -> None:
        """The first signal stops, the second kills."""
        name = signal.Signals(number).name
        alive = [worker for worker in self._workers if worker.process is not None]
        now = oscalls.steady_clock()
        if self._is_stopping:
            if now - self._stopped_at < SAME_SIGNAL_MS:
                return
            self._say("killed", f"{name} again: {plural(len(alive))} killed")
            self._kill()
            return
        self._is_stopping = True
        self._stopped_at = now
        self._kill_at = now + self._grace_ms
        for worker in self._workers:
            worker.due = None
            if worker.process is not None:
                worker.process.send_signal(signal.SIGTERM)
        self._say("stopping", f"{name}: {plural(len(alive))} stopped, for at most {self._grace_ms / 1000:g} s")

    def _kill(self) -> None:
        for worker in self._workers:
            if worker.process is not None:
                worker.process.kill()

    def _say(self, kind: str, text: str, worker: _Worker | None = None, **fields: Any) -> None:
        number = None
        if worker is not None:
            number = worker.number
            if worker.process is not None:
                fields.setdefault("pid", worker.process.pid)
        alive = sum(other.is_alive for other in self._workers)
        self._tell(Event(kind, text, number, alive=alive, restarts=self._restarts, **fields))


def described(code: int) -> str:
    """How a process ended, in words."""
    if code == EXIT_STUCK:
        return f"ended because a handler did not (exit code {code})"
    if code == EXIT_SIGNALLED:
        return "ended as a signal told it to"
    if code >= 0:
        return f"ended with exit code {code}"
    try:
        return f"was killed by {signal.Signals(-code).name}"
    except ValueError:
        return f"was killed by signal {-code}"


def plural(count: int) -> str:
    """``1 worker is``, ``2 workers are``."""
    return "1 worker is" if count == 1 else f"{count} workers are"
