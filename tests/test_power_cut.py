"""I5 (row 2 of the failure catalogue): power loss, for real, on an ext4 of our own.

The file system lies in a file and is mounted through a loop device. ``EXT4_IOC_SHUTDOWN`` without flushing the journal
drops at once everything that no sync has brought to the "disk"; after mounting it again the log has to hold whatever
``durability="batch"`` acknowledged or ``flush`` covered, and behind it a prefix.

Mounting needs root. Elsewhere the tests are skipped with the reason, unless FASTLOG_REQUIRE_POWER_CUTS is set.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import random
import shutil
import signal
import struct
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

import fastlog
from tests.foreign import read_all
from tests.kill_server import CONFIG, checksum
from tests.test_kill import Victims, Witness

CUTS = int(os.environ.get("FASTLOG_CUTS", "10"))
REQUIRED = bool(os.environ.get("FASTLOG_REQUIRE_POWER_CUTS"))
SHUTDOWN = 0x8004587D  # _IOR('X', 125, __u32)
WITHOUT_FLUSHING = 2
IMAGE_BYTES = 96 << 20


@dataclass
class Disk:
    """An ext4 file system in a file."""

    image: Path
    place: Path

    def mount(self) -> None:
        subprocess.run(["mount", "-o", "loop", str(self.image), str(self.place)], check=True, capture_output=True)

    def unmount(self) -> None:
        for _ in range(50):
            if subprocess.run(["umount", str(self.place)], check=False, capture_output=True).returncode == 0:
                return
            time.sleep(0.1)
        users = subprocess.run(["fuser", "-vm", str(self.place)], check=False, capture_output=True, text=True)
        raise AssertionError(f"{self.place} stays busy: {users.stdout} {users.stderr}")

    def cut_power(self) -> None:
        fd = os.open(self.place, os.O_RDONLY)
        try:
            fcntl.ioctl(fd, SHUTDOWN, struct.pack("I", WITHOUT_FLUSHING))
        finally:
            os.close(fd)


@pytest.fixture
def disk(folder: Path) -> Iterator[Disk]:
    made = Disk(folder / "disk.img", folder / "disk")
    made.place.mkdir()
    try:
        with made.image.open("wb") as file:
            file.truncate(IMAGE_BYTES)
        subprocess.run(["mkfs.ext4", "-q", "-F", str(made.image)], check=True, capture_output=True)
        made.mount()
    except (OSError, subprocess.CalledProcessError) as problem:
        reason = f"no file system can be mounted here: {problem}"
        if REQUIRED:
            pytest.fail(reason)
        pytest.skip(reason)
    try:
        yield made
    finally:
        subprocess.run(["umount", "-l", str(made.place)], check=False, capture_output=True)


def run_until_cut(
    victims: Victims, disk: Disk, path: Path, durability: str, seed: int, seconds: float
) -> tuple[Witness, int]:
    """One writer from its fork to the power cut; what it reported, and what of it counts.

    Only what was heard before the cut counts as promised: a bare ``fdatasync`` that is under way at the very moment of
    this ioctl may report success for bytes that are gone, which no disk that loses power can do.
    """
    assert victims.process.stdin
    victims.process.stdin.write(f"{path} {durability} {seed}\n".encode())
    heard = victims.lines(None, at_once=True)
    word, pid = heard.pop(0).split()
    assert word == "pid"
    heard += victims.lines(time.monotonic() + seconds)
    before = len(heard)
    disk.cut_power()
    if not heard or not heard[-1].startswith("done"):
        with contextlib.suppress(ProcessLookupError):  # it may have failed by itself already: its disk is gone
            os.kill(int(pid), signal.SIGKILL)
        heard += victims.lines(None)
    assert heard.pop().startswith("done")
    witness = Witness()
    promised = 0
    for number, line in enumerate(heard):
        witness.hear(line)
        if number < before:
            promised = max(witness.durable_offset, witness.end_offset if durability == "batch" else 0)
    return witness, promised


def check_after_cut(path: Path, durability: str, witness: Witness, promised: int) -> None:
    if not path.exists():
        assert promised == 0
        return
    with fastlog.PartitionLog.open(path, durability=durability, config=fastlog.LogConfig(**CONFIG)) as log:
        assert log.end_offset >= promised, log.recovery
        assert log.start_offset in witness.starts or durability == "os"
        found = read_all(log)
        assert [record.offset for record in found] == list(range(log.start_offset, log.end_offset))
        for base, (count, crc) in witness.acked.items():
            if base >= log.start_offset and base + count <= log.end_offset:
                records = found[base - log.start_offset :][:count]
                assert checksum((r.offset, r.timestamp, r.key, r.value, r.headers) for r in records) == crc, base
        assert not log.verify().damages
        end = log.end_offset
        assert log.append([b"afterwards"]) == end
    with fastlog.PartitionLog.open(path) as log:
        assert log.recovery is None
        assert log.verify().ok


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("durability", ["batch", "os"])
def test_I5_power_cuts_keep_what_was_durable(disk: Disk, durability: str, seed: int) -> None:
    chance = random.Random(seed)
    victims = Victims()
    acked = 0
    try:
        for cycle in range(CUTS):
            path = disk.place / f"events-{cycle}"
            seconds = chance.choice([0.05, 0.15, 0.3]) * chance.random()
            witness, promised = run_until_cut(victims, disk, path, durability, seed + cycle, seconds)
            disk.unmount()
            disk.mount()
            check_after_cut(path, durability, witness, promised)
            acked += promised
            shutil.rmtree(path, ignore_errors=True)
    finally:
        victims.close()
    print(f"{CUTS} power cuts at {durability}, {acked} records promised before them")
    assert acked > 0
