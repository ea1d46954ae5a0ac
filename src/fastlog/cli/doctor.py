"""``fastlog doctor``: what this machine gives to a log, and the state of a partition as it lies there.

Locks and syncs are tried out, on a file of its own in the file system that was named; who has a partition open, the
kernel tells; everything else is asked of ``fastlog.diagnose``. Nothing in a partition is changed, and no lock of it is
taken. What is printed holds no record, so that it can go into a report of a problem as it is.
"""

from __future__ import annotations

import fcntl
import os
import platform
import re
import struct
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import Any

import click

import fastlog
from fastlog.cli import output as text
from fastlog.cli.output import EXIT_PROBLEMS, Output, output_options

__all__ = ["doctor", "is_partition"]

PROBE_BYTES = 4096
PROBE_ROUNDS = 15
PROBE_WARM_UPS = 3
SLOW_SYNC_SECONDS = 0.02
FAST_SYNC_SECONDS = 10e-6
IN_MEMORY = ("tmpfs", "ramfs")
SEGMENT_NAME = re.compile(r"\d{20}\.log")
META, CONTROL, POISONED = ".fastlog-meta", ".fastlog-control", ".fastlog-poisoned"
LOCKS = Path("/proc/locks")
PLATFORM_FACTS = ("crc32c", "futex", "ofd_locks", "boot_id", "file_system", "file_system_magic", "is_allowed")
# what struct flock looks like where open file descriptions have locks of their own: 64-bit Linux
FLOCK_FORMAT = "hhqqi4x"


# --- the command ----------------------------------------------------------------------------------


@click.command(short_help="What this machine gives to a log, and the state of a partition.")
@click.argument("path", required=False, default=".", metavar="[PATH]",
                type=click.Path(exists=True, file_okay=False, path_type=Path))  # fmt: skip
@output_options
def doctor(output: Output, path: Path) -> None:
    """Say what this machine gives to a log: versions, file system, locks, wake-ups, what a sync costs.

    PATH is a folder on the disk in question, or a partition, whose state is then shown too: who has it open, was it
    closed cleanly, where it ends. Nothing in it is changed. The exit code is 0 when all is as it should be, and 1 when
    something is missing or worse than it could be.
    """
    examination = _examine(path)
    if output.as_json:
        output.object(examination.as_fields())
    else:
        _print_examination(output, examination)
    if examination.problems:
        click.get_current_context().exit(EXIT_PROBLEMS)


@dataclass(slots=True)
class _Probe:
    """What was tried out in a file of our own. None: it could not be tried, ``obstacle`` says why."""

    flock: bool | None = None
    open_file_locks: bool | None = None
    sync_seconds: list[float] = field(default_factory=list)
    obstacle: str | None = None

    @property
    def median_seconds(self) -> float | None:
        return median(self.sync_seconds) if self.sync_seconds else None


@dataclass(frozen=True, slots=True)
class _Finding:
    """One sentence of the judgement. ``ok`` is None for what is worth knowing and no problem."""

    ok: bool | None
    sentence: str


@dataclass(slots=True)
class _Examination:
    path: Path
    versions: dict[str, str | None]
    facts: dict[str, Any]
    partition: dict[str, Any] | None
    probe: _Probe

    @property
    def findings(self) -> list[_Finding]:
        return [
            *_of_platform(self.facts),
            *_of_file_system(self.facts),
            *_of_probe(self.probe),
            *_of_partition(self.partition),
        ]

    @property
    def problems(self) -> list[str]:
        return [finding.sentence for finding in self.findings if finding.ok is False]

    def as_fields(self) -> dict[str, Any]:
        return {
            "ok": not self.problems,
            "path": str(self.path),
            "versions": self.versions,
            **{name: self.facts[name] for name in PLATFORM_FACTS},
            "partition": self.partition,
            "locks": {"flock": self.probe.flock, "open_file_description": self.probe.open_file_locks},
            "sync": {
                "bytes": PROBE_BYTES,
                "median_seconds": self.probe.median_seconds,
                "seconds": self.probe.sync_seconds,
                "obstacle": self.probe.obstacle,
            },
            "problems": self.problems,
            "notes": [finding.sentence for finding in self.findings if finding.ok is None],
        }


def _examine(path: Path) -> _Examination:
    facts = fastlog.diagnose(path)
    versions = {
        "python": f"{platform.python_version()} ({platform.python_implementation()})",
        "platform": f"{platform.system()} {platform.release()} on {platform.machine()}",
        "fastlog": f"{fastlog.__version__}, compiled for {_compiled_for()}",
        "numpy": _version("numpy"),
        "cramjam": _version("cramjam"),
    }
    partition = _state_of(path, facts) if is_partition(path) else None
    return _Examination(path, versions, facts, partition, _probe(path, partition is not None))


def is_partition(folder: Path) -> bool:
    """Whether a folder holds a log, fastlog's or another's."""
    return any(entry.name == META or SEGMENT_NAME.fullmatch(entry.name) for entry in folder.iterdir())


def _state_of(folder: Path, facts: dict[str, Any]) -> dict[str, Any]:
    """The state of a partition. Its page is believed while somebody is attached to it, and at no other time."""
    is_open = _is_attached(folder)
    page = dict(facts["control"] or {}) if is_open is not False else {}
    return {
        "is_open": is_open,
        "pids": _lock_holders(folder) if is_open is not False else [],
        "is_clean": facts["is_clean"],
        "is_poisoned": page.pop("is_poisoned", False) or (folder / POISONED).exists(),
        "start_offset": page.pop("start_offset", facts["clean_start_offset"]),
        "end_offset": page.pop("end_offset", facts["clean_end_offset"]),
        "durable_offset": page.pop("durable_offset", facts["clean_end_offset"]),
        "page": page or None,
    }


def _is_attached(folder: Path) -> bool | None:
    """Whether somebody has the partition open: every handle has a lock on the first byte of the control file.

    Asking for a lock that cannot be had shows it, and takes none. None where the platform cannot be asked.
    """
    get_lock = getattr(fcntl, "F_OFD_GETLK", None)
    if get_lock is None or sys.platform != "linux":
        return None
    try:
        with open(folder / CONTROL, "rb") as file:
            wanted = struct.pack(FLOCK_FORMAT, fcntl.F_WRLCK, os.SEEK_SET, 0, 1, 0)
            found: int = struct.unpack(FLOCK_FORMAT, fcntl.fcntl(file, get_lock, wanted))[0]
    except FileNotFoundError:
        return False
    except OSError:
        return None
    return found != fcntl.F_UNLCK


def _lock_holders(folder: Path) -> list[int]:
    """Processes that hold a lock on the folder, as far as the kernel tells: not those of another container."""
    try:
        lines = LOCKS.read_text().splitlines()
    except OSError:
        return []
    inode = str(folder.stat().st_ino)
    held = [line.split() for line in lines if " FLOCK " in line and "->" not in line]
    return sorted({int(words[4]) for words in held if words[5].rpartition(":")[2] == inode and int(words[4]) > 0})


def _compiled_for() -> str:
    """What the compiled core names as its platform: ``cpython-311-x86_64-linux-gnu``."""
    return Path(fastlog._core.__file__ or "").name.partition(".")[2].rpartition(".")[0]


def _version(distribution: str) -> str | None:
    from importlib import metadata

    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return None


# --- trying out -----------------------------------------------------------------------------------


def _probe(path: Path, is_partition: bool) -> _Probe:
    """Try locks and syncs in a file of our own in that file system; a partition's own folder is left alone."""
    folder = path.absolute()
    if is_partition:
        if folder.parent.stat().st_dev != folder.stat().st_dev:
            return _Probe(obstacle=f"{path} is where its file system begins, and nothing is written into a partition")
        folder = folder.parent
    probe = _Probe()
    try:
        with tempfile.NamedTemporaryFile(prefix=".fastlog-doctor-", dir=folder) as file:
            probe.flock = _flock_holds(file.name)
            probe.open_file_locks = _open_file_locks_hold(file.name)
            probe.sync_seconds = _sync_times(file.fileno())
    except OSError as error:
        probe.obstacle = f"no file could be written in {folder}: {error.strerror}"
    return probe


def _flock_holds(name: str) -> bool:
    """Whether a second open file is refused the lock that a first one has."""
    with open(name, "rb") as first, open(name, "rb") as second:
        try:
            fcntl.flock(first, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            return False
        try:
            fcntl.flock(second, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        return False


def _open_file_locks_hold(name: str) -> bool:
    """The same for locks of open file descriptions; asking whether one is there must show it, too."""
    set_lock, get_lock = getattr(fcntl, "F_OFD_SETLK", None), getattr(fcntl, "F_OFD_GETLK", None)
    if set_lock is None or get_lock is None or sys.platform != "linux":
        return False
    with open(name, "rb") as first, open(name, "r+b") as second:
        try:
            fcntl.fcntl(first, set_lock, struct.pack(FLOCK_FORMAT, fcntl.F_RDLCK, os.SEEK_SET, 0, 1, 0))
            wanted = struct.pack(FLOCK_FORMAT, fcntl.F_WRLCK, os.SEEK_SET, 0, 1, 0)
            found = struct.unpack(FLOCK_FORMAT, fcntl.fcntl(second, get_lock, wanted))
            if found[0] != fcntl.F_RDLCK:
                return False
            fcntl.fcntl(second, set_lock, wanted)
        except BlockingIOError:
            return True
        except OSError:
            return False
        return False


def _sync_times(descriptor: int) -> list[float]:
    """How long an append of 4 KiB and its sync take, as a log does them."""
    sync = getattr(os, "fdatasync", None) or _full_sync
    block = os.urandom(PROBE_BYTES)
    seconds = []
    for number in range(PROBE_WARM_UPS + PROBE_ROUNDS):
        started = perf_counter()
        os.pwrite(descriptor, block, number * PROBE_BYTES)
        sync(descriptor)
        seconds.append(perf_counter() - started)
    return seconds[PROBE_WARM_UPS:]


def _full_sync(descriptor: int) -> None:
    """macOS leaves data in the drive's cache unless it is told not to."""
    fcntl.fcntl(descriptor, getattr(fcntl, "F_FULLFSYNC", 51))


# --- judging --------------------------------------------------------------------------------------


def _of_platform(facts: dict[str, Any]) -> Iterator[_Finding]:
    if facts["crc32c"] == "software":
        yield _Finding(False, "CRC-32C is computed by tables: this processor has no instruction for it, all is slower")
    else:
        yield _Finding(True, f"CRC-32C by the processor ({facts['crc32c']})")
    if facts["futex"]:
        yield _Finding(True, "waiting readers are woken by futex")
    else:
        yield _Finding(False, "waiting readers poll: this platform has no futex that processes share")


def _of_file_system(facts: dict[str, Any]) -> Iterator[_Finding]:
    if facts["is_allowed"]:
        yield _Finding(True, f"several processes may share a log on {facts['file_system']}")
    else:
        yield _Finding(
            False,
            f"{_file_system_text(facts)} is not known to keep locks and maps as a shared log needs them: "
            f"a log opens there with exclusive=True only",
        )
    if facts["file_system"] in IN_MEMORY:
        yield _Finding(None, f"{facts['file_system']} is memory: nothing there survives a restart, whatever is synced")


def _of_probe(probe: _Probe) -> Iterator[_Finding]:
    if probe.obstacle is not None:
        yield _Finding(None, f"locks and syncs were not tried: {probe.obstacle}")
        return
    for name, holds in (("flock", probe.flock), ("locks of open file descriptions", probe.open_file_locks)):
        yield _Finding(holds, f"{name}: in force" if holds else f"{name}: not in force")
    if probe.median_seconds is not None:
        sentence = f"append of 4 KiB with its sync: {text.duration(probe.median_seconds)} (median)"
        if probe.median_seconds > SLOW_SYNC_SECONDS:
            yield _Finding(None, f"{sentence}; that is slow, and a durable append waits for it")
        elif probe.median_seconds < FAST_SYNC_SECONDS:
            yield _Finding(None, f"{sentence}; no disk is that fast: what is synced there may not survive a power cut")
        else:
            yield _Finding(True, sentence)


def _of_partition(found: dict[str, Any] | None) -> Iterator[_Finding]:
    if found is None:
        return
    if found["is_poisoned"]:
        yield _Finding(
            False, "a sync of this partition failed: close it everywhere, the next opening reads from the disk again"
        )
    if not found["is_clean"] and found["is_open"] is False:
        yield _Finding(None, "it was not closed cleanly; the next opening for writing completes its recovery")
    if found["page"] is not None and found["page"]["is_dirty"]:
        yield _Finding(None, "an append is under way, or its writer died; the next writer takes over")


# --- printing -------------------------------------------------------------------------------------


def _print_examination(output: Output, examination: _Examination) -> None:
    output.fields([(name, version or "not installed") for name, version in examination.versions.items()])
    output.heading(str(examination.path))
    facts = examination.facts
    rows = [("file system", _file_system_text(facts)), ("boot id", facts["boot_id"] or "unknown")]
    if examination.partition is not None:
        rows += _partition_rows(examination.partition)
    output.fields(rows)
    output.line()
    for finding in examination.findings:
        if finding.ok is None:
            output.line(f"  note     {finding.sentence}")
        else:
            output.verdict(finding.ok, finding.sentence)


def _file_system_text(facts: dict[str, Any]) -> str:
    return f"{facts['file_system']} (0x{facts['file_system_magic']:X})"


def _partition_rows(found: dict[str, Any]) -> list[tuple[str, str]]:
    holders = ", ".join(map(str, found["pids"]))
    opened = {None: "cannot be told", False: "nowhere", True: f"process {holders}" if holders else "somewhere"}
    rows = [
        ("open", opened[found["is_open"]]),
        ("closed cleanly", "yes" if found["is_clean"] else "no"),
        ("start offset", _offset_text(found["start_offset"])),
        ("end offset", _offset_text(found["end_offset"])),
        ("durable offset", _offset_text(found["durable_offset"])),
    ]
    for name, value in (found["page"] or {}).items():
        shown = text.instant(value) if name == "opened" else {True: "yes", False: "no"}.get(value, str(value))
        rows.append((name.removeprefix("is_").replace("_", " "), shown))
    return rows


def _offset_text(offset: int | None) -> str:
    return "cannot be told without opening it" if offset is None else text.count(offset)
