"""Running a program under the recorder, and its record as Python values."""

from __future__ import annotations

import json
import os
import platform
import shutil
import struct
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from enum import IntEnum
from pathlib import Path
from typing import Any

CAPACITY = 1 << 30  # bytes of the record; sparse, so that only what is written counts
SOURCE = Path(__file__).with_name("recorder.c")
ROOT = Path(__file__).resolve().parents[2]

HEAD = struct.Struct("<QQQQ")
ENTRY = struct.Struct("<IHHiiQqIIQ")
FIRST = 4096
LATENCY = 200  # microseconds of a sync
MAGIC = 0x31646F6365526C66


class RecorderUnavailable(Exception):
    """The recorder cannot be built on this machine; the message says why."""


class Kind(IntEnum):
    """What an entry of the record says; the same numbers stand in ``recorder.c``."""

    CREATE = 1
    TRUNCATE = 2
    WRITE = 3
    RENAME = 4
    LINK = 5
    UNLINK = 6
    MKDIR = 7
    RMDIR = 8
    SYNC_BEGIN = 9
    SYNC_END = 10
    MARK = 11
    PAGE = 12
    UNSUPPORTED = 13


@dataclass(frozen=True, slots=True)
class Entry:
    """One thing that happened. Paths are relative to the recorded folder, ``""`` is the folder itself.

    ``position`` is where a write begins, the new size of a file, or the number of the entry that a sync began with.
    """

    number: int
    kind: Kind
    process: int
    thread: int
    inode: int
    position: int
    path: str
    target: str
    data: bytes
    is_directory: bool

    def __str__(self) -> str:
        name = self.kind.name.lower().replace("_", " ")
        if self.kind == Kind.WRITE:
            what = f"{len(self.data)} bytes at {self.position} of {self.path}"
        elif self.kind == Kind.TRUNCATE:
            what = f"{self.path} to {self.position} bytes"
        elif self.kind == Kind.MARK:
            what = self.data.decode()
        elif self.target:
            what = f"{self.path} to {self.target}"
        elif self.kind in (Kind.SYNC_BEGIN, Kind.SYNC_END):
            what = self.path or "the folder"
        else:
            what = self.path
        return f"{self.number}: {name} {what} (thread {self.thread})"


@dataclass(slots=True)
class Record:
    """Everything that happened in a run, and what was in the folder before it.

    ``inodes`` are those of the directories, by path: a log knows the folder that it was written in.
    """

    entries: list[Entry]
    files: dict[str, bytes] = field(default_factory=dict)
    file_inodes: dict[str, int] = field(default_factory=dict)
    inodes: dict[str, int] = field(default_factory=dict)

    def marks(self) -> Iterator[tuple[int, dict[str, Any]]]:
        """(position in ``entries``, payload) of each mark."""
        for at, entry in enumerate(self.entries):
            if entry.kind == Kind.MARK:
                yield at, json.loads(entry.data)


def build_recorder(folder: Path) -> Path:
    """Compile the recorder into ``folder``; return the library. Raises RecorderUnavailable."""
    if sys.platform != "linux" or platform.libc_ver()[0] != "glibc":
        raise RecorderUnavailable("the recorder stands in front of glibc's system calls: Linux with glibc only")
    compiler = os.environ.get("CC") or next(filter(shutil.which, ("gcc", "cc", "clang")), None)
    if compiler is None:
        raise RecorderUnavailable("the recorder is compiled when it is needed, and there is no C compiler")
    library = folder / "recorder.so"
    command = [*compiler.split(), "-O2", "-Wall", "-shared", "-fPIC", "-o", str(library), str(SOURCE), "-pthread"]
    result = subprocess.run(command, check=False, capture_output=True, text=True)
    if result.returncode != 0:
        raise RecorderUnavailable(f"the recorder does not compile: {result.stderr}")
    return library


def record_run(library: Path, root: Path, trace: Path, arguments: list[str], timeout: float = 120) -> Record:
    """Run ``python <arguments>`` with everything recorded that it does below ``root``; the record is made at ``trace``.

    Raises AssertionError when the program fails, or did something that cannot be replayed.
    """
    root = root.resolve()
    recorded = Record([])
    look_at_folder(root, recorded)
    with trace.open("wb") as file:
        file.truncate(CAPACITY)
    preloaded = [name for name in os.environ.get("LD_PRELOAD", "").split() if name]
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join([str(ROOT), *(name for name in sys.path if name)]),
        "LD_PRELOAD": " ".join([*preloaded, str(library)]),
        "FASTLOG_RECORD": str(trace),
        "FASTLOG_RECORD_FOLDER": str(root),
        "FASTLOG_RECORD_LATENCY": str(LATENCY),
    }
    result = subprocess.run(
        [sys.executable, *arguments], check=False, capture_output=True, text=True, env=environment, timeout=timeout
    )
    assert result.returncode == 0, f"the workload failed with {result.returncode}:\n{result.stdout}\n{result.stderr}"
    recorded.entries = read_entries(trace, root)
    for entry in recorded.entries:
        if entry.kind == Kind.MKDIR:
            recorded.inodes[entry.path] = entry.inode
    return recorded


def look_at_folder(root: Path, recorded: Record) -> None:
    """Note what is in the folder."""
    recorded.inodes[""] = root.stat().st_ino
    for path in sorted(root.rglob("*")):
        name = path.relative_to(root).as_posix()
        if path.is_dir():
            recorded.inodes[name] = path.stat().st_ino
        else:
            recorded.files[name] = path.read_bytes()
            recorded.file_inodes[name] = path.stat().st_ino


def read_entries(trace: Path, root: Path) -> list[Entry]:
    """The entries of a record's file."""
    prefix = str(root)

    def relative(path: bytes) -> str:
        text = path.decode().removesuffix(" (deleted)")
        if not text:
            return ""
        assert text == prefix or text.startswith(prefix + "/"), text
        return text[len(prefix) + 1 :]

    entries: list[Entry] = []
    with trace.open("rb") as file:
        magic, _, tail, count = HEAD.unpack(file.read(HEAD.size))
        assert magic == MAGIC, "nothing was recorded: was the library loaded?"
        file.seek(FIRST)
        content = file.read(tail - FIRST)
    at = 0
    while at < len(content):
        size, kind, is_directory, process, thread, inode, position, path_size, target_size, data_size = (
            ENTRY.unpack_from(content, at)
        )
        begin = at + ENTRY.size
        path = content[begin : begin + path_size]
        begin += path_size
        target = content[begin : begin + target_size]
        begin += target_size
        assert kind != Kind.UNSUPPORTED, f"this cannot be replayed: {target.decode()} of {path.decode()}"
        entries.append(
            Entry(
                len(entries),
                Kind(kind),
                process,
                thread,
                inode,
                position,
                relative(path),
                relative(target),
                content[begin : begin + data_size],
                bool(is_directory),
            )
        )
        at += size
    assert len(entries) == count
    return entries


# --- a record that is kept ------------------------------------------------------------------------------------------


def save_record(recorded: Record, folder: Path) -> None:
    """Keep a record, so that a failure can be looked at later."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "entries.jsonl").open("w") as file:
        for entry in recorded.entries:
            fields = {name: getattr(entry, name) for name in Entry.__slots__} | {"data": entry.data.hex()}
            file.write(json.dumps(fields) + "\n")
    before = {
        "files": {name: content.hex() for name, content in recorded.files.items()},
        "file_inodes": recorded.file_inodes,
        "inodes": recorded.inodes,
    }
    (folder / "before.json").write_text(json.dumps(before))


def load_record(folder: Path) -> Record:
    """The record that ``save_record`` kept."""
    entries = []
    for line in (folder / "entries.jsonl").read_text().splitlines():
        fields = json.loads(line)
        entries.append(Entry(**{**fields, "kind": Kind(fields["kind"]), "data": bytes.fromhex(fields["data"])}))
    before = json.loads((folder / "before.json").read_text())
    files = {name: bytes.fromhex(content) for name, content in before["files"].items()}
    return Record(entries, files, before["file_inodes"], before["inodes"])
