"""Running a program under the recorder, and its record as Python values."""

from __future__ import annotations

import contextlib
import ctypes
import importlib
import json
import os
import platform
import shutil
import struct
import subprocess
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from enum import IntEnum
from pathlib import Path
from typing import Any

from tests.histories.nursery import Nursery

CAPACITY = 1 << 30  # bytes of the record; sparse, so that only what is written counts
SOURCE = Path(__file__).with_name("recorder.c")
ROOT = Path(__file__).resolve().parents[2]

HEAD = struct.Struct("<QQQQ")
ENTRY = struct.Struct("<IHHiiQqIIQ")
FIRST = 4096
LATENCY = 200  # microseconds of a sync
MAGIC = 0x31646F6365526C66


class RecorderUnavailable(Exception):
    """A library that stands in front of others cannot be built on this machine; the message says why."""


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

    ``inodes`` are those of the directories that were there, by path: a log knows the folder that it was written in.
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
    return build_library(SOURCE, folder)


def build_library(source: Path, folder: Path) -> Path:
    """Compile a library for LD_PRELOAD into ``folder``. Raises RecorderUnavailable."""
    if sys.platform != "linux" or platform.libc_ver()[0] != "glibc":
        raise RecorderUnavailable(f"{source.name} stands in front of glibc's functions: Linux with glibc only")
    compiler = os.environ.get("CC") or next(filter(shutil.which, ("gcc", "cc", "clang")), None)
    if compiler is None:
        raise RecorderUnavailable(f"{source.name} is compiled when it is needed, and there is no C compiler")
    library = folder / f"{source.stem}.so"
    options = ["-O2", "-Wall", "-shared", "-fPIC", "-o", str(library), str(source), "-pthread", "-ldl"]
    command = [*compiler.split(), *options]
    result = subprocess.run(command, check=False, capture_output=True, text=True)
    if result.returncode != 0:
        raise RecorderUnavailable(f"{source.name} does not compile: {result.stderr}")
    return library


def record_run(
    library: Path,
    root: Path,
    trace: Path,
    arguments: list[str],
    inodes: Mapping[int, int] | None = None,
    timeout: float = 120,
) -> Record:
    """Run ``python <arguments>`` with everything recorded that it does below ``root``; the record is made at ``trace``.

    ``inodes``: of directories that the program takes for others. Raises AssertionError when the program fails, or did
    something that cannot be replayed.
    """
    root = root.resolve()
    recorded = Record([])
    look_at_folder(root, recorded, inodes or {})
    make_trace(trace)
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join([str(ROOT), *(name for name in sys.path if name)]),
        "LD_PRELOAD": preloading(library),
        **told_to_record(root, trace),
    }
    result = subprocess.run(
        [sys.executable, *arguments], check=False, capture_output=True, text=True, env=environment, timeout=timeout
    )
    assert result.returncode == 0, f"the workload failed with {result.returncode}:\n{result.stdout}\n{result.stderr}"
    recorded.entries = read_entries(trace, root)
    return recorded


def make_trace(trace: Path) -> None:
    with trace.open("wb") as file:
        file.truncate(CAPACITY)


def preloading(library: Path) -> str:
    """What LD_PRELOAD has to be, for the recorder to stand in front of whatever else does."""
    return " ".join([*os.environ.get("LD_PRELOAD", "").split(), str(library)])


def told_to_record(root: Path, trace: Path) -> dict[str, str]:
    return {
        "FASTLOG_RECORD": str(trace),
        "FASTLOG_RECORD_FOLDER": str(root),
        "FASTLOG_RECORD_LATENCY": str(LATENCY),
    }


@contextlib.contextmanager
def recorders(library: Path, errors: Path) -> Iterator[Nursery]:
    """A server whose children may record: all of them have imported everything already.

    ``errors`` is a file for what they write to standard error.
    """
    with Nursery(environment={"LD_PRELOAD": preloading(library)}, preloaded=["tests.crash.store_life"],
                 errors=errors) as nursery:  # fmt: skip
        yield nursery


def record_child(
    nursery: Nursery,
    root: Path,
    trace: Path,
    role: str,
    arguments: dict[str, Any],
    inodes: Mapping[int, int] | None = None,
) -> Record:
    """As ``record_run``, of a child of ``recorders``, which calls ``role`` (``"module:function"``)."""
    root = root.resolve()
    recorded = Record([])
    look_at_folder(root, recorded, inodes or {})
    make_trace(trace)
    told = told_to_record(root, trace)
    child = nursery.start("tests.crash.recording:be_recorded", told=told, work=role, arguments=arguments)
    status = child.wait(120)
    assert status == 0, f"the workload failed with {os.waitstatus_to_exitcode(status)}:\n{nursery.words()}"
    recorded.entries = read_entries(trace, root)
    return recorded


def be_recorded(told: dict[str, str], work: str, arguments: dict[str, Any]) -> None:
    """The life of such a child."""
    os.environ.update(told)
    ctypes.CDLL(None).fastlog_record()
    module, _, function = work.partition(":")
    getattr(importlib.import_module(module), function)(**arguments)


def look_at_folder(root: Path, recorded: Record, inodes: Mapping[int, int]) -> None:
    """Note what is in the folder."""
    for path in (root, *sorted(root.rglob("*"))):
        name = path.relative_to(root).as_posix() if path != root else ""
        if path.is_dir():
            inode = path.stat().st_ino
            recorded.inodes[name] = inodes.get(inode, inode)
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


# --- marks alone ----------------------------------------------------------------------------------------------------


def marks_after_a_cut(file: Path, heard: int) -> Record:
    """What the marks of a run say (``workloads.run_marking``) whose power was cut when ``heard`` bytes of them were
    there.

    What was told later was promised to nobody, but what was tried then may be on the disk.
    """
    entries: list[Entry] = []
    lines = file.read_bytes().splitlines(keepends=True) if file.exists() else []
    position = 0
    for line in lines:
        position += len(line)
        thread, _, text = line.partition(b" ")
        if not line.endswith(b"\n"):
            break
        facts = json.loads(text)
        if position > heard:
            if facts["what"] in ("durable", "deleted", "end", "failed"):
                continue
            if facts["what"] == "ack":
                facts["durable"] = False
        data = json.dumps(facts).encode()
        entries.append(Entry(len(entries), Kind.MARK, 0, int(thread), 0, 0, "", "", data, False))
    return Record(entries)


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
