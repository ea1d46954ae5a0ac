"""Power cuts for real: file systems of our own that lose, at one moment, whatever no sync has brought to their disk.

Each lies in a file and is mounted through a loop device. The ioctl that shuts a file system down without flushing its
journal drops all of that at once; mounted again it is what a machine finds after a power cut. ext4 and xfs have the
ioctl under one number. A bare ``fdatasync`` that is under way at the very moment may report success for bytes that are
gone, which no disk that loses power can do: so only what was *heard before the cut* counts as promised.

Mounting needs root: elsewhere ``CannotMount`` says so.
"""

from __future__ import annotations

import contextlib
import fcntl
import gc
import os
import shutil
import signal
import struct
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import fastlog
from tests.foreign import read_all
from tests.kill_server import CONFIG, DURABLE, checksum
from tests.victims import Victims, Witness

__all__ = ["FILE_SYSTEMS", "CannotMount", "Disk", "FileSystem", "check_after_cut", "mounted", "run_until_cut"]

SHUTDOWN = 0x8004587D  # _IOR('X', 125, __u32): EXT4_IOC_SHUTDOWN, XFS_IOC_GOINGDOWN
WITHOUT_FLUSHING = 2


class CannotMount(Exception):
    """A file system cannot be made or mounted on this machine; the message says why."""


@dataclass(frozen=True)
class FileSystem:
    """How a file system is made and mounted."""

    name: str
    make: tuple[str, ...]
    options: str
    image_bytes: int  # sparse


FILE_SYSTEMS = {
    one.name: one
    for one in (
        FileSystem("ext4-ordered", ("mkfs.ext4", "-q", "-F"), "loop,data=ordered", 96 << 20),
        # Blocks are allocated, and sizes grow, as soon as something is written, without the data: what another file's
        # sync commits of a log is then longer than its bytes. Nor does a rename wait for the data.
        FileSystem(
            "ext4-writeback",
            ("mkfs.ext4", "-q", "-F"),
            "loop,data=writeback,nodelalloc,noauto_da_alloc",
            96 << 20,
        ),
        FileSystem("xfs", ("mkfs.xfs", "-q", "-f"), "loop", 320 << 20),  # smaller ones are refused
    )
}


@dataclass
class Disk:
    """One of them: ``image`` is the file that it lies in, ``place`` where it is mounted."""

    kind: FileSystem
    image: Path
    place: Path

    def make(self) -> None:
        """Make it, empty, and mount it. Raises CannotMount."""
        self.place.mkdir(exist_ok=True)
        with self.image.open("wb") as file:
            file.truncate(self.kind.image_bytes)
        run(*self.kind.make, str(self.image))
        self.mount()

    def mount(self) -> None:
        run("mount", "-o", self.kind.options, str(self.image), str(self.place))

    def unmount(self) -> None:
        """Wait until nobody uses it any more."""
        gc.collect()  # what this process has read keeps its files mapped
        for _ in range(200):
            if subprocess.run(["umount", str(self.place)], check=False, capture_output=True).returncode == 0:
                return
            time.sleep(0.05)
        users = subprocess.run(["fuser", "-vm", str(self.place)], check=False, capture_output=True, text=True)
        raise AssertionError(f"{self.place} stays busy: {users.stdout} {users.stderr}")

    def cut_power(self) -> None:
        """From now on nothing is written, and nothing can be read that was not."""
        fd = os.open(self.place, os.O_RDONLY)
        try:
            fcntl.ioctl(fd, SHUTDOWN, struct.pack("I", WITHOUT_FLUSHING))
        finally:
            os.close(fd)

    def restore_power(self) -> None:
        """Whoever used it is gone; what the cut has left is there."""
        self.unmount()
        self.mount()

    def clear(self) -> None:
        """Remove everything, for good."""
        for path in self.place.iterdir():
            if path.is_file():
                path.unlink()
            elif path.name != "lost+found":
                shutil.rmtree(path)
        sync(self.place)

    def folder(self, name: str) -> Path:
        """A folder in it that no cut takes away again."""
        made = self.place / name
        made.mkdir()
        sync(self.place)
        return made

    def loses_what_is_not_synced(self) -> bool:
        """Whether a cut does what it is for: what was synced is there afterwards, and what was not is not."""
        kept, lost = self.place / "kept", self.place / "lost"
        kept.write_bytes(b"kept" * 2000)
        sync(kept)
        sync(self.place)
        lost.write_bytes(b"lost" * 2000)
        with kept.open("ab") as file:
            file.write(b"more" * 2000)
        self.cut_power()
        self.restore_power()
        is_lost = not lost.exists() or lost.read_bytes().count(b"lost") == 0
        content = kept.read_bytes()
        self.clear()
        return is_lost and content.startswith(b"kept" * 2000) and content.count(b"more") == 0


def sync(path: Path) -> None:
    """Bring a file, or the names in a folder, to the disk."""
    fd = os.open(path, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def run(*command: str) -> None:
    """Run a command that only root may run."""
    path = f"{os.environ.get('PATH', os.defpath)}:/usr/sbin:/sbin"
    try:
        subprocess.run(command, check=True, capture_output=True, text=True, env={**os.environ, "PATH": path})
    except FileNotFoundError as problem:
        raise CannotMount(f"there is no {command[0]} here: {problem}") from problem
    except subprocess.CalledProcessError as problem:
        raise CannotMount(f"{command[0]}: {(problem.stderr or problem.stdout).strip()}") from problem


@contextlib.contextmanager
def mounted(kind: FileSystem, folder: Path) -> Iterator[Disk]:
    """A fresh one in ``folder``, as long as it is used. Raises CannotMount."""
    disk = Disk(kind, folder / f"{kind.name}.img", folder / kind.name)
    try:
        disk.make()
        yield disk
    finally:
        subprocess.run(["umount", "-l", str(disk.place)], check=False, capture_output=True)


# --- one writer -------------------------------------------------------------------------------------------------------


def run_until_cut(
    victims: Victims, disk: Disk, path: Path, durability: str, seed: int, seconds: float, witness: Witness
) -> int:
    """One writer from its fork to the power cut. Returns the end of what it was promised by then."""
    assert victims.process.stdin
    victims.process.stdin.write(f"{path} {durability} {seed}\n".encode())
    heard = victims.lines(None, at_once=True)
    word, pid = heard.pop(0).split()
    assert word == "pid"
    heard += victims.lines(time.monotonic() + seconds)
    assert not (heard and heard[-1].startswith("done")), "the writer failed by itself: see its traceback"
    disk.cut_power()
    with contextlib.suppress(ProcessLookupError):  # it may have failed by itself already: its disk is gone
        os.kill(int(pid), signal.SIGKILL)
    untold = victims.lines(None)
    assert untold.pop().startswith("done")
    witness.next_writer()
    promised = witness.durable_offset
    for line in heard:
        witness.hear(line)
        promised = max(promised, witness.durable_offset, witness.end_offset if durability in DURABLE else 0)
    for line in untold:
        if not line.startswith(("deleted", "flushed")):
            witness.hear(line)
    return promised


def check_after_cut(path: Path, durability: str, witness: Witness, promised: int) -> int:
    """Open the log, compare it with what its writers were told, and go on with it. How many records were lost.

    Raises AssertionError, or what fastlog raises.
    """
    if not path.exists():
        assert promised == 0
        lost, witness.end_offset, witness.acked = witness.end_offset, 0, {}
        return lost
    with fastlog.PartitionLog.open(path, durability=durability, config=fastlog.LogConfig(**CONFIG)) as log:
        start, end = log.start_offset, log.end_offset
        assert end >= promised, f"the log ends at {end}, and {promised} was promised: {log.recovery}"
        assert end <= witness.end_offset + witness.unsure + witness.attempted
        assert start in witness.starts, f"{start}, not {witness.starts}"
        found = read_all(log)
        assert [record.offset for record in found] == list(range(start, end))
        for base, (count, crc) in witness.acked.items():
            if base >= start and base + count <= end:
                records = found[base - start :][:count]
                assert checksum((r.offset, r.timestamp, r.key, r.value, r.headers) for r in records) == crc, base
        assert not log.verify().damages
        assert log.append([b"afterwards"]) == end
    with fastlog.PartitionLog.open(path) as log:
        assert log.recovery is None
        assert log.verify().ok
    lost = max(0, witness.end_offset - end)
    witness.acked = {base: ack for base, ack in witness.acked.items() if base + ack[0] <= end}
    witness.starts, witness.end_offset, witness.attempted, witness.unsure = {start}, end + 1, 0, 0
    witness.durable_offset = end + 1
    return lost
