"""One writer after the other on one log, each killed; and the witness of what they were told.

``Victims`` is the side of the test, ``kill_server`` the process that forks the writers.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.foreign import read_all
from tests.kill_server import checksum

__all__ = ["Victims", "Witness", "check_recovery"]


@dataclass
class Witness:
    """What the writers reported so far."""

    acked: dict[int, tuple[int, int]] = field(default_factory=dict)  # base offset -> count, checksum
    end_offset: int = 0
    attempted: int = 0  # records of the append under way
    unsure: int = 0  # records of appends that earlier writers died in
    durable_offset: int = 0
    starts: set[int] = field(default_factory=lambda: {0})  # start offsets that a deletion under way allows
    kills_by_stage: dict[str, int] = field(default_factory=dict)
    stage: str = ""

    def hear(self, line: str) -> None:
        word, *numbers = line.split()
        self.stage = word
        if word == "try":
            self.attempted = int(numbers[0])
        elif word == "ack":
            base, count, crc = map(int, numbers)
            assert self.end_offset <= base <= self.end_offset + self.unsure
            self.acked[base] = (count, crc)
            self.end_offset, self.attempted, self.unsure = base + count, 0, 0
        elif word == "flushed":
            self.durable_offset = int(numbers[0])
        elif word == "deleting":
            self.starts.add(int(numbers[0]))
        elif word == "deleted":
            assert int(numbers[0]) in self.starts
            self.starts = {int(numbers[0])}

    def next_writer(self) -> None:
        self.stage = "opening"
        self.unsure += self.attempted
        self.attempted = 0

    def check(self, log: Any) -> None:
        """Compare the log with everything that was acknowledged and not deleted."""
        assert log.end_offset >= self.durable_offset
        assert self.end_offset <= log.end_offset <= self.end_offset + self.unsure + self.attempted
        assert log.start_offset in self.starts
        found = read_all(log)
        assert [record.offset for record in found] == list(range(log.start_offset, log.end_offset))
        for base in [base for base, (count, _) in self.acked.items() if base + count <= log.start_offset]:
            del self.acked[base]
        for base, (count, crc) in self.acked.items():
            if base >= log.start_offset:
                records = found[base - log.start_offset :][:count]
                assert checksum((r.offset, r.timestamp, r.key, r.value, r.headers) for r in records) == crc, base
        # what is behind the acknowledged records stays from now on: it was visible here
        self.starts = {log.start_offset}
        self.end_offset, self.attempted, self.unsure = log.end_offset, 0, 0


class Victims:
    """The server process that forks the writers. ``errors``: a file for what they write to standard error."""

    def __init__(self, errors: Path | None = None) -> None:
        command = [sys.executable, "-m", "tests.kill_server"]
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)}
        root = Path(__file__).parent.parent
        with contextlib.ExitStack() as stack:
            self.process = subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=None if errors is None else stack.enter_context(errors.open("ab")),
                cwd=root,
                env=environment,
                bufsize=0,
            )
        self.rest = b""

    def lines(self, until: float | None, *, at_once: bool = False) -> list[str]:
        """What is reported until a time of the clock, until the writer is gone, or ``at_once`` what comes first."""
        assert self.process.stdout
        heard: list[str] = []
        while True:
            *complete, self.rest = self.rest.split(b"\n")
            heard += [line.decode() for line in complete]
            if heard and (at_once or heard[-1].startswith("done")):
                return heard
            wait = 30 if until is None else max(0.0, until - time.monotonic())
            ready, _, _ = select.select([self.process.stdout], [], [], wait)
            if not ready or wait == 0:
                assert until is not None, "the writer neither died nor reported"
                return heard
            data = self.process.stdout.read(1 << 16)
            assert data, "the server of the writers died"
            self.rest += data

    def run_and_kill(
        self, folder: Path, durability: str, seed: int, seconds: float, witness: Witness, failpoint: str = ""
    ) -> bool:
        """One writer from its fork to its death, at a ``failpoint`` (``name:nth``) or after so many seconds.

        Whether it killed itself.
        """
        assert self.process.stdin
        self.process.stdin.write(f"{folder} {durability} {seed} {failpoint}\n".encode())
        heard = self.lines(None, at_once=True)
        word, pid = heard.pop(0).split()
        assert word == "pid"
        if not (heard and heard[-1].startswith("done")):
            heard += self.lines(time.monotonic() + seconds)
        is_dead = bool(heard) and heard[-1].startswith("done")
        if not is_dead:
            os.kill(int(pid), signal.SIGKILL)
            heard += self.lines(None)
        assert heard.pop() == f"done {int(signal.SIGKILL)}", "the writer failed by itself: see its traceback"
        witness.next_writer()
        for line in heard:
            witness.hear(line)
        witness.kills_by_stage[witness.stage] = witness.kills_by_stage.get(witness.stage, 0) + 1
        return is_dead

    def close(self) -> None:
        assert self.process.stdin and self.process.stdout
        self.process.stdin.close()
        self.process.wait(timeout=30)
        self.process.stdout.close()


def check_recovery(report: Any, folder: Path) -> None:
    """What recovery cut off is kept aside, and nothing whole was moved."""
    if report is None:
        return
    assert report.moved_aside == ()
    for cut in report.cut:
        if cut.side_file is not None:
            side_file = folder / cut.side_file
            assert side_file.stat().st_size == cut.size
