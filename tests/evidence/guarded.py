"""Work in a forked child: a signal and a hang are found like anything else, and nothing is left behind here."""

from __future__ import annotations

import faulthandler
import json
import os
import select
import signal
import time
import traceback
from collections import Counter
from collections.abc import Callable
from pathlib import Path

from tests.evidence.run import Turn
from tests.histories.nursery import die_with

Tell = Callable[[str, int], None]


def guarded(turn: Turn, work: Callable[[Tell], None], seconds: float) -> None:
    """Do ``work`` in a child, which has so long; what it tells is counted, whatever becomes of it.

    What the child raises is an AssertionError here, with its traceback; so is a signal that ends it, and no end.
    """
    told, telling = os.pipe()
    output = turn.folder / "child.txt"
    parent = os.getpid()
    pid = os.fork()
    if pid == 0:
        die_with(parent)
        os.close(told)
        live(work, telling, output)
    os.close(telling)
    counts: Counter[str] = Counter()
    answer = b""
    deadline = time.monotonic() + seconds
    try:
        while select.select([told], [], [], max(0.0, deadline - time.monotonic()))[0]:
            piece = os.read(told, 1 << 16)
            if not piece:
                break
            answer += piece
        else:
            os.kill(pid, signal.SIGABRT)  # its stack is written down
            raise AssertionError(f"no end after {seconds:g} s:\n{wait_for(pid, output)}")
    except KeyboardInterrupt:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        raise
    finally:
        os.close(told)
        lines = [json.loads(line) for line in answer.decode().splitlines()]
        for what, number in lines:
            if isinstance(number, int):
                counts[what] += number
        for what, number in counts.items():
            turn.count(what, number)
    status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    problems = [text for what, text in lines if not isinstance(text, int)]
    if problems:
        raise AssertionError(problems[0])
    assert status == 0, f"the process ended with {status}:\n{text_of(output)}"


def live(work: Callable[[Tell], None], telling: int, output: Path) -> None:
    """The child's life; it does not return."""
    errors = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    os.dup2(errors, 2)
    faulthandler.enable(errors)
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_DFL)

    def tell(what: str, number: int | str) -> None:
        line = (json.dumps([what, number]) + "\n").encode()
        while line:
            line = line[os.write(telling, line) :]

    try:
        work(tell)
    except BaseException as problem:  # noqa: BLE001 - whatever it is, it is told
        tell("problem", "".join(traceback.format_exception(problem))[-20_000:])
    finally:
        os._exit(0)


def wait_for(pid: int, output: Path) -> str:
    """What a process that was told to end has left to say."""
    for _ in range(100):
        if os.waitpid(pid, os.WNOHANG)[0]:
            return text_of(output)
        time.sleep(0.05)
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    return text_of(output)


def text_of(output: Path) -> str:
    return output.read_text(errors="replace")[-5000:] if output.exists() else ""
