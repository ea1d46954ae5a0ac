"""What a process notes while it works on a log, one line per event, each written by a single ``write``.

A line begins with one letter. Times are nanoseconds of the steady clock, which all processes of a machine share.

========================================================  ==================================================
``O handle mode begun opened``                            a handle is open; mode is ``w`` or ``r``
``C handle time``                                         it is about to be closed
``T writer thread sequence count time``                   an append of ``count`` records is about to begin
``A writer thread sequence base time``                    it returned ``base``
``F writer thread sequence time error text``              it raised ``error``, and said ``text``
``R handle begun ended from end readable durable runs``   a read from offset ``from``; the three ends were looked
                                                          at when it was over
``X text``                                                something that must not happen
========================================================  ==================================================

A run names records of one append that lie one behind another: ``offset:writer:thread:sequence:index:records:count``.
"""

from __future__ import annotations

import os
import struct
import time
import zlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple

_IDENTITY = struct.Struct(">IHIHHI")  # writer, thread, sequence, index, count, CRC-32 of all of it and the filler


class AppendId(NamedTuple):
    """Which append: unique among all processes of a history."""

    writer: int
    thread: int
    sequence: int


class Run(NamedTuple):
    """``records`` records of one append from ``offset`` on, the first of them being number ``index`` of ``count``."""

    offset: int
    append: AppendId
    index: int  # type: ignore[assignment]  # of a tuple that is never searched
    records: int
    count: int  # type: ignore[assignment]


@dataclass(slots=True)
class Append:
    """One call of ``append``: acknowledged (``base``), failed (``error``), or neither when its process died in it."""

    id: AppendId
    count: int
    begun: int
    base: int | None = None
    ended: int | None = None
    error: str | None = None


@dataclass(slots=True)
class Handle:
    """A handle of the log, from the moment it was surely there until it was perhaps no longer.

    ``dead_by`` is when its process was surely dead, None for a handle that was closed.
    """

    name: str
    writable: bool
    begun: int
    opened: int
    gone: int = 0
    dead_by: int | None = None


@dataclass(slots=True)
class Read:
    """One read, and the ends of the log as its handle saw them right after it."""

    handle: str
    begun: int
    ended: int
    start: int
    end_offset: int
    readable_offset: int
    durable_offset: int
    runs: tuple[Run, ...] = ()


@dataclass(slots=True)
class History:
    """Everything that was noted, and what the log held in the end."""

    appends: dict[AppendId, Append] = field(default_factory=dict)
    handles: dict[str, Handle] = field(default_factory=dict)
    reads: list[Read] = field(default_factory=list)
    complaints: list[str] = field(default_factory=list)
    final: list[Run] = field(default_factory=list)
    start_offset: int = 0
    end_offset: int = 0

    def add(self, lines: Iterable[str], alive_until: int = 0, dead_by: int | None = None) -> None:
        """Take over the notes of one process that surely lived until a time, and was surely dead at another."""
        mine: list[Handle] = []
        latest = 0
        for line in lines:
            letter, _, rest = line.partition(" ")
            if letter == "X":
                self.complaints.append(rest)
                continue
            if letter == "R":
                handle, *numbers = rest.split(" ", 8)
                runs = numbers.pop() if len(numbers) == 7 else ""
                begun, latest, start, end, readable, durable = map(int, numbers)
                found = tuple(parse_runs(runs))
                self.reads.append(Read(handle, begun, latest, start, end, readable, durable, found))
                continue
            words = rest.split(" ")
            if letter == "O":
                latest = int(words[3])
                mine.append(Handle(words[0], words[1] == "w", int(words[2]), latest))
            elif letter == "C":
                latest = int(words[1])
                next(handle for handle in mine if handle.name == words[0]).gone = latest
            else:
                which = AppendId(*map(int, words[:3]))
                if letter == "T":
                    self.appends[which] = Append(which, int(words[3]), latest := int(words[4]))
                elif letter == "A":
                    self.appends[which].base, self.appends[which].ended = int(words[3]), (latest := int(words[4]))
                elif letter == "F":
                    self.appends[which].ended, self.appends[which].error = (latest := int(words[3])), words[4]
                else:
                    raise ValueError(f"unknown event {line!r}")
        for one in mine:
            if one.gone == 0:
                one.gone = max(latest, alive_until)
                one.dead_by = one.gone if dead_by is None else dead_by
            self.handles[one.name] = one

    def copy(self) -> History:
        """A history of its own, to be spoilt by a test of the checker."""
        return History(
            {which: replace(append) for which, append in self.appends.items()},
            {name: replace(handle) for name, handle in self.handles.items()},
            [replace(read) for read in self.reads],
            [*self.complaints],
            [*self.final],
            self.start_offset,
            self.end_offset,
        )


class Notebook:
    """Where one process writes its events. A line is in the file before the next thing is done."""

    def __init__(self, path: Path | str) -> None:
        self.fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)

    def write(self, line: str) -> None:
        os.write(self.fd, (line + "\n").encode())

    def opened(self, handle: str, writable: bool, begun: int) -> None:
        self.write(f"O {handle} {'w' if writable else 'r'} {begun} {now()}")

    def closing(self, handle: str) -> None:
        self.write(f"C {handle} {now()}")

    def attempt(self, which: AppendId, count: int) -> None:
        self.write(f"T {which.writer} {which.thread} {which.sequence} {count} {now()}")

    def acked(self, which: AppendId, base: int) -> None:
        self.write(f"A {which.writer} {which.thread} {which.sequence} {base} {now()}")

    def failed(self, which: AppendId, error: BaseException) -> None:
        text = str(error).replace("\n", " | ")
        name = type(error).__name__
        if "is syncing" in text:
            name += "InSync"  # not of the writer lock: the append itself was over
        self.write(f"F {which.writer} {which.thread} {which.sequence} {now()} {name} {text}")

    def read(self, handle: str, begun: int, start: int, log: Any, runs: Iterable[Run]) -> None:
        """Note a read that is over. The ends are looked at here, the largest last: each may only grow meanwhile."""
        durable, readable = log.durable_offset, log.readable_offset
        ends = f"{log.end_offset} {readable} {durable}"
        self.write(f"R {handle} {begun} {now()} {start} {ends} {','.join(map(format_run, runs))}")

    def complain(self, text: str) -> None:
        self.write("X " + text.replace("\n", " | "))


def now() -> int:
    """The steady clock, in nanoseconds."""
    return time.monotonic_ns()


def format_run(run: Run) -> str:
    offset, append, index, records, count = run
    return f"{offset}:{append.writer}:{append.thread}:{append.sequence}:{index}:{records}:{count}"


def parse_runs(text: str) -> Iterator[Run]:
    for word in text.split(",") if text else ():
        offset, writer, thread, sequence, index, records, count = map(int, word.split(":"))
        yield Run(offset, AppendId(writer, thread, sequence), index, records, count)


def read_lines(path: Path) -> list[str]:
    """The complete lines of a notebook: the last one may have been cut by a kill."""
    text = path.read_text() if path.exists() else ""
    return text.split("\n")[:-1]


def encode_values(which: AppendId, fillers: list[bytes]) -> list[bytes]:
    """One value per filler: who wrote it, which one of how many it is, and a checksum over all of that."""
    values = []
    for index, filler in enumerate(fillers):
        plain = _IDENTITY.pack(*which, index, len(fillers), 0)
        values.append(_IDENTITY.pack(*which, index, len(fillers), zlib.crc32(filler, zlib.crc32(plain))) + filler)
    return values


def key_of(which: AppendId, index: int) -> bytes:
    """The key of a record: three of four are of fifty that repeat, the fourth is nobody else's."""
    number = which.writer * 7 + which.thread * 3 + which.sequence * 13 + index
    if number % 4:
        return b"shared-%d" % (number % 50)
    return b"own-%d-%d-%d-%d" % (*which, index)


def decode_value(value: bytes) -> tuple[AppendId, int, int]:
    """(append, index, count) of a value. Raises ValueError when it is not as it was written."""
    if len(value) < _IDENTITY.size:
        raise ValueError(f"a value of {len(value)} bytes")
    writer, thread, sequence, index, count, crc = _IDENTITY.unpack_from(value)
    plain = _IDENTITY.pack(writer, thread, sequence, index, count, 0)
    if zlib.crc32(value[_IDENTITY.size :], zlib.crc32(plain)) != crc:
        raise ValueError("a value whose checksum does not match")
    return AppendId(writer, thread, sequence), index, count


def runs_of(records: Iterable[tuple[int, bytes]]) -> list[Run]:
    """Runs of (offset, value) in the order of reading. Raises ValueError when a value is not as it was written."""
    runs: list[Run] = []
    for offset, value in records:
        which, index, count = decode_value(value)
        if runs:
            last = runs[-1]
            if (which, offset, index) == (last.append, last.offset + last.records, last.index + last.records):
                runs[-1] = last._replace(records=last.records + 1)
                continue
        runs.append(Run(offset, which, index, 1, count))
    return runs
