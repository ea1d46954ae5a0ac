"""A shared log of one file, right in its plain form, and wrong in one way for each name in ``MISTAKES``.

It has just enough of ``PartitionLog`` for the workers, and shows that the driver finds what it is there to find: a
harness that passes everything proves nothing. One file of records, a header with two published states in front of
it, one ``flock`` for writers.
"""

from __future__ import annotations

import fcntl
import os
import random
import struct
import threading
import time
from pathlib import Path
from typing import Any, NamedTuple

MISTAKES = {
    "acks first": "acknowledges an append, and writes it a little later, or never",
    "no lock": "writers do not exclude each other",
    "no takeover": "writes behind what a dead writer left, which thereby appears",
    "publishes each record": "readers see a part of an append",
    "publishes first": "readers see the end before the records",
    "retries": "writes again what it had already written",
    "fails after publishing": "raises an error although the append is there",
    "forgets the end": "goes back to an older end now and then",
}
_HEADER = 4096
_STATE = struct.Struct("<QQQ")  # version, end position, end offset
_LENGTH = struct.Struct("<I")


class ToyError(Exception):
    """The append failed."""


class State(NamedTuple):
    version: int
    position: int
    offset: int


class ToyRecord(NamedTuple):
    offset: int
    value: bytes


class ToyBatch(list[ToyRecord]):
    """Records from a read, and the offset to go on at."""

    next_offset: int


class ToyLog:
    """Like ``PartitionLog``, where the workers look."""

    start_offset = 0

    def __init__(self, path: Path | str, mistake: str = "", read_only: bool = False) -> None:
        assert not mistake or mistake in MISTAKES
        self.mistake = mistake
        self.chance = random.Random()
        self.mutex = threading.Lock()  # of the threads of this process, which share the file lock
        Path(path).mkdir(exist_ok=True, parents=True)
        self.fd = os.open(Path(path) / "toy", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        self.positions = [_HEADER]  # of the records, by offset, as far as they have been read

    def close(self) -> None:
        os.close(self.fd)

    def __enter__(self) -> ToyLog:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # --- the published state: two slots, the younger one counts; each is written at once ------------------------------

    def state(self) -> State:
        while True:
            data = os.pread(self.fd, 2 * _STATE.size, 0).ljust(2 * _STATE.size, b"\0")
            state = max(State(*_STATE.unpack_from(data, slot * _STATE.size)) for slot in (0, 1))
            again = os.pread(self.fd, 2 * _STATE.size, 0).ljust(2 * _STATE.size, b"\0")
            if data == again:
                return state if state.version else State(0, _HEADER, 0)

    def publish(self, position: int, offset: int) -> None:
        version = self.state().version + 1
        os.pwrite(self.fd, _STATE.pack(version, position, offset), (version % 2) * _STATE.size)

    @property
    def end_offset(self) -> int:
        if self.mistake == "forgets the end" and self.chance.random() < 0.2:
            return max(0, self.state().offset - 1)
        return self.state().offset

    readable_offset = durable_offset = end_offset

    # --- writing ------------------------------------------------------------------------------------------------------

    def flush(self) -> int:
        return self.end_offset

    def append(self, values: list[bytes], **_: Any) -> int:
        unlucky = self.chance.random() < 0.1
        if self.mistake == "no lock":
            return self.write(values)
        with self.mutex:
            fcntl.flock(self.fd, fcntl.LOCK_EX)
            try:
                return self.append_locked(values, unlucky)
            finally:
                fcntl.flock(self.fd, fcntl.LOCK_UN)

    def append_locked(self, values: list[bytes], unlucky: bool) -> int:
        if self.mistake == "acks first" and unlucky:
            return self.state().offset
        base = self.write(values)
        if self.mistake == "retries" and unlucky:
            self.write(values)
        if self.mistake == "fails after publishing" and unlucky:
            raise ToyError("failed, or so it says")
        return base

    def write(self, values: list[bytes]) -> int:
        state = self.state()
        if self.mistake == "no takeover":
            state = self.take_over_wrongly(state)
        position, offset = state.position, state.offset
        end = position + sum(_LENGTH.size + len(value) for value in values)
        if self.mistake == "publishes first":
            self.publish(end, state.offset + len(values))
            time.sleep(0.0005)
        for value in values:
            os.pwrite(self.fd, _LENGTH.pack(len(value)), position)
            os.pwrite(self.fd, value, position + _LENGTH.size)
            position, offset = position + _LENGTH.size + len(value), offset + 1
            if self.mistake == "no takeover":
                time.sleep(0.0005)  # to be killed here
            if self.mistake == "publishes each record":
                self.publish(position, offset)
        if self.mistake not in ("publishes first", "publishes each record"):
            self.publish(position, offset)
        return state.offset

    def take_over_wrongly(self, state: State) -> State:
        """What lies behind the end is taken for published."""
        size = os.fstat(self.fd).st_size
        position, offset = state.position, state.offset
        while position + _LENGTH.size <= size:
            length = _LENGTH.unpack(os.pread(self.fd, _LENGTH.size, position))[0]
            if length == 0 or position + _LENGTH.size + length > size:
                break
            position, offset = position + _LENGTH.size + length, offset + 1
        return State(state.version, position, offset)

    # --- reading ------------------------------------------------------------------------------------------------------

    def read(self, offset: int, max_bytes: int = 1 << 20) -> ToyBatch:
        state = self.state()
        found = ToyBatch()
        taken = 0
        while len(self.positions) <= offset:
            at = self.positions[-1]
            self.positions.append(at + _LENGTH.size + _LENGTH.unpack(os.pread(self.fd, _LENGTH.size, at))[0])
        position = self.positions[offset]
        while offset < state.offset and taken < max_bytes:
            data = os.pread(self.fd, _LENGTH.size, position)
            length = _LENGTH.unpack(data)[0] if len(data) == _LENGTH.size else 0
            found.append(ToyRecord(offset, os.pread(self.fd, length, position + _LENGTH.size)))
            position, offset, taken = position + _LENGTH.size + length, offset + 1, taken + length
        found.next_offset = offset
        return found

    def wait(self, offset: int, timeout: float = 0) -> bool:
        until = time.monotonic() + timeout
        while self.state().offset <= offset and time.monotonic() < until:
            time.sleep(0.001)
        return self.state().offset > offset
