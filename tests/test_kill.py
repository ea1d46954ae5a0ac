"""I3, I4 (row 1 of the failure catalogue): SIGKILL at random points loses nothing that was acknowledged.

One folder lives through all the kills. After each one the log is opened here, read-only or for writing, and what the
writer had acknowledged has to be there, in order and byte by byte; behind it at most a part of the one append that
was under way. Now and then nobody repairs, so that the next writer finds what several kills left.
"""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
from pathlib import Path

import pytest

import fastlog
from tests.foreign import as_reference, read_all
from tests.kill_server import CONFIG
from tests.oracle.kafka import KafkaOracle
from tests.reference.batch import Record
from tests.victims import Victims, Witness, check_recovery

KILLS = (
    int(os.environ.get("FASTLOG_KILLS", "300")) // 3
)  # the others are several processes at a time: test_histories.py


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
