"""I3, I4 (row 1 of the failure catalogue): SIGKILL at random points loses nothing that was acknowledged.

One folder lives through all the kills. After each one the log is opened here, read-only or for writing, and what the
writer had acknowledged has to be there, in order and byte by byte; behind it at most a part of the one append that
was under way. Now and then nobody repairs, so that the next writer finds what several kills left.
"""

from __future__ import annotations

import os
import random
import select
import signal
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

import fastlog
from tests.foreign import as_reference, read_all
from tests.kill_server import CONFIG, checksum
from tests.oracle.kafka import KafkaOracle
from tests.reference.batch import Record

KILLS = (
    int(os.environ.get("FASTLOG_KILLS", "300")) // 3
)  # the others are several processes at a time: test_histories.py


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
    """The server process that forks the writers."""

    def __init__(self) -> None:
        command = [sys.executable, "-m", "tests.kill_server"]
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)}
        root = Path(__file__).parent.parent
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd=root, env=environment, bufsize=0
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

    def run_and_kill(self, folder: Path, durability: str, seed: int, seconds: float, witness: Witness) -> None:
        """One writer from its fork to its death."""
        assert self.process.stdin
        self.process.stdin.write(f"{folder} {durability} {seed}\n".encode())
        heard = self.lines(None, at_once=True)
        word, pid = heard.pop(0).split()
        assert word == "pid"
        heard += self.lines(time.monotonic() + seconds)
        if not heard or not heard[-1].startswith("done"):
            os.kill(int(pid), signal.SIGKILL)
            heard += self.lines(None)
        assert heard.pop() == f"done {int(signal.SIGKILL)}", "the writer failed by itself: see its traceback"
        witness.next_writer()
        for line in heard:
            witness.hear(line)
        witness.kills_by_stage[witness.stage] = witness.kills_by_stage.get(witness.stage, 0) + 1

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


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_I4_kills_lose_nothing_that_was_acknowledged(folder: Path, kafka: KafkaOracle, seed: int) -> None:
    chance = random.Random(seed)
    path = folder / "events-0"
    witness = Witness()
    victims = Victims()
    recovered = 0
    try:
        for cycle in range(KILLS):
            durability = chance.choice(["os", "batch"])
            seconds = chance.choice([0.002, 0.01, 0.02, 0.04]) * chance.random()
            victims.run_and_kill(path, durability, seed + cycle, seconds, witness)
            if not path.exists() or chance.random() < 0.1:
                continue
            read_only = chance.random() < 0.4
            if read_only and not any(path.glob("*.log")):
                continue
            config = fastlog.LogConfig(**CONFIG)
            with fastlog.PartitionLog.open(path, durability=durability, read_only=read_only, config=config) as log:
                recovered += log.recovery is not None
                check_recovery(log.recovery, path)
                if cycle % 10 == 0:
                    assert not log.verify().damages
                witness.check(log)
    finally:
        victims.close()
    fastlog.PartitionLog.open(path).close()
    with fastlog.PartitionLog.open(path) as log:
        assert log.recovery is None
        assert log.verify().ok
        witness.check(log)
        expected = read_all(log)
    print(f"{KILLS} kills, {recovered} recoveries, {witness.end_offset} records, stages: {witness.kills_by_stage}")
    check_with_kafka(kafka, path, expected)


def check_with_kafka(kafka: KafkaOracle, path: Path, expected: list[Record]) -> None:
    files = sorted(file for file in path.iterdir() if file.suffix in {".log", ".index", ".timeindex"})
    dumped, problems = kafka.check(files)
    assert problems == []
    found = [record for file in sorted(dumped) for batch in dumped[file] for record in batch.records]
    start = expected[0].offset if expected else 0
    seen = [(r.offset, r.timestamp, r.key, r.value) for r in found if r.offset >= start]
    assert seen == [(r.offset, r.timestamp, r.key, r.value) for r in expected]


def test_I4_the_last_words_of_a_killed_writer_are_readable_by_records(folder: Path) -> None:
    """One kill in slow motion: the acknowledged append of a process that dies without closing."""
    path = folder / "events-0"
    script = (
        "import os, signal, sys, fastlog\n"
        "log = fastlog.PartitionLog.open(sys.argv[1], durability='os')\n"
        "log.append([b'a', None, b''], timestamps=1700000000000)\n"
        "os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)}
    result = subprocess.run([sys.executable, "-c", script, str(path)], check=False, env=environment)
    assert result.returncode == -signal.SIGKILL
    with fastlog.PartitionLog.open(path) as log:
        assert log.recovery is not None
        assert log.recovery.end_offset == 3
        assert log.recovery.cut == ()
        assert [as_reference(record).value for record in log.records()] == [b"a", None, b""]
        assert log.verify().ok
