"""Processes that take part in a measurement: they append, wait for a record, or die inside the writer lock.

``python -m benchmarks.partners ROLE ARGUMENTS``: a partner says ``ready``, then does one thing per line that it reads,
and answers each with a line. It ends when its input does.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from time import monotonic
from typing import NoReturn

import fastlog
from benchmarks.workload import VALUE_BYTES, value_lists

_ROOT = Path(__file__).parents[1]
SHARED_BATCH = 100
# a failpoint of fastlog: everything is written and nothing published, the lock is held
_INSIDE_THE_LOCK = "append.written"
KILLED_INSIDE_THE_LOCK, STOPPED_INSIDE_THE_LOCK = f"{_INSIDE_THE_LOCK}:kill:1", f"{_INSIDE_THE_LOCK}:stop:1"
_WAIT_SECONDS = 10
GROUP = "readers"


class Partner:
    """The other process, seen from the one that measures."""

    def __init__(
        self, role: str, *arguments: object, descriptors: tuple[int, ...] = (), failpoint: str | None = None
    ) -> None:
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(os.path.abspath(entry) for entry in sys.path)}
        if failpoint is not None:
            environment["FASTLOG_FAILPOINT"] = failpoint
        command = [sys.executable, "-m", "benchmarks.partners", role, *map(str, arguments)]
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=_ROOT, env=environment,
            pass_fds=descriptors,
        )  # fmt: skip

    def say(self, line: str) -> None:
        assert self._process.stdin is not None
        print(line, file=self._process.stdin, flush=True)

    def hear(self) -> str:
        """The next line; an error when the process is gone."""
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError(f"a partner of the measurement ended with exit code {self._process.wait()}")
        return line.rstrip("\n")

    def end(self) -> None:
        """Let it finish, by itself if it can."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        try:
            self._process.stdin.close()
            self._process.wait(_WAIT_SECONDS)
        except (BrokenPipeError, subprocess.TimeoutExpired):
            self._process.kill()
            self._process.wait()
        self._process.stdout.close()


@contextmanager
def partner(
    role: str, *arguments: object, descriptors: tuple[int, ...] = (), failpoint: str | None = None
) -> Iterator[Partner]:
    """A partner that is ready."""
    started = Partner(role, *arguments, descriptors=descriptors, failpoint=failpoint)
    try:
        answer = started.hear()
        if answer != "ready":
            raise RuntimeError(f"a partner of the measurement said {answer!r} instead of being ready")
        yield started
    finally:
        started.end()


# --- roles ------------------------------------------------------------------------------------------------------------


def _lines() -> Iterator[str]:
    print("ready", flush=True)
    for line in sys.stdin:
        yield line.rstrip("\n")


def append(path: str) -> None:
    """Each line is a number of calls: that many appends of 100 x 100 B."""
    parts = [values[start : start + SHARED_BATCH] for values in value_lists(VALUE_BYTES)
             for start in range(0, len(values), SHARED_BATCH)]  # fmt: skip
    with fastlog.PartitionLog.open(path, durability="os") as log:
        for line in _lines():
            for number in range(int(line)):
                log.append(parts[number % len(parts)])
            print("done", flush=True)


def wait_for_records(path: str, asleep: str) -> None:
    """Each line is a number of records to wait for, one by one; the answer says when each was there."""
    with fastlog.PartitionLog.open(path, durability="os", read_only=True) as log:
        for line in _lines():
            moments, offset = list[float](), log.end_offset
            for _ in range(int(line)):
                os.write(int(asleep), b".")
                if not log.wait(offset, timeout=_WAIT_SECONDS):
                    raise SystemExit("no record came")
                moments.append(monotonic())
                offset += 1
            print(json.dumps(moments), flush=True)


def wait_for_bytes(bell: str, asleep: str) -> None:
    """The same, for bytes through a pipe."""
    for line in _lines():
        moments = []
        for _ in range(int(line)):
            os.write(int(asleep), b".")
            os.read(int(bell), 1)
            moments.append(monotonic())
        print(json.dumps(moments), flush=True)


def die(path: str) -> None:
    """Each line starts a writer that meets the failpoint inside the lock; the answer is its process id.

    With ``kill`` it is dead when the answer comes; with ``stop`` it is stopped and waits to be killed. A child of this
    process, which has imported fastlog already, so that it costs no start of Python.
    """
    for _ in _lines():
        child = os.fork()
        if child == 0:
            fastlog.PartitionLog.open(path, durability="os").append([b"never published"])
            os._exit(3)
        _, status = os.waitpid(child, os.WUNTRACED)
        if not (os.WIFSIGNALED(status) or os.WIFSTOPPED(status)):
            raise SystemExit(f"the writer got past the failpoint {_INSIDE_THE_LOCK} (status {status})")
        print(child, flush=True)
        if os.WIFSTOPPED(status):
            os.waitpid(child, 0)


def consume_from_store(path: str, asleep: str) -> None:
    """Each line is a number of records to wait for, one by one; the answer says when each was there."""
    with (
        fastlog.open(path, durability="os") as store,
        store.consumer("events", start="earliest") as consumer,
    ):
        _tell_moments((monotonic() for _ in consumer), int(asleep))


def consume_from_kafka(place: str, asleep: str) -> None:
    """The same, from a topic of a broker."""
    from benchmarks.kafka import moments_of_records  # which nobody else here needs

    address, topic = place.split("/")
    _tell_moments(moments_of_records(address, topic), int(asleep))


def _tell_moments(moments: Iterator[float], asleep: int) -> None:
    for line in _lines():
        found = []
        for _ in range(int(line)):
            os.write(asleep, b".")
            found.append(next(moments))
        print(json.dumps(found), flush=True)


def members(path: str) -> None:
    """Each line starts a member of the group in a process of its own, a child of this one, which has imported all.

    One that polls does so for ever. One that holds takes a record, in a transaction or not, says its process id, and
    waits to be killed; a second answer says that it is gone. All end with this process.
    """
    _ = fastlog.Store, fastlog.Producer  # which are imported when they are asked for
    children = []
    try:
        for line in _lines():
            wish = json.loads(line)
            child = os.fork()
            if child == 0:
                _be_a_member(path, **wish)
            if wish["do"] == "hold":
                os.waitpid(child, 0)
            else:
                children.append(child)
            print(child, flush=True)
    finally:
        for child in children:
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)


def _be_a_member(path: str, do: str, number: int, transaction: bool = False) -> NoReturn:
    try:
        store = fastlog.open(path, durability="os")
        consumer = store.consumer("events", group=GROUP, start="earliest", auto_commit=False)
        if do == "poll":
            while True:
                consumer.poll(timeout=1)
        while not consumer.poll(1, timeout=1):
            pass
        if transaction:
            with store.producer(transactional_id=f"copier-{number}").transaction(consumer) as copying:
                copying.send("copies", b"of a record")
                copying.commit_offsets()
                _wait_to_be_killed()
        _wait_to_be_killed()
    except BaseException:  # noqa: BLE001 (a child that goes on would be a second nursery)
        traceback.print_exc()
    os._exit(3)


def _wait_to_be_killed() -> NoReturn:
    print(os.getpid(), flush=True)
    while True:
        signal.pause()


ROLES: dict[str, Callable[..., None]] = {
    "append": append, "wait-for-records": wait_for_records, "wait-for-bytes": wait_for_bytes, "die": die,
    "consume-from-store": consume_from_store, "consume-from-kafka": consume_from_kafka,
    "members": members,
}  # fmt: skip


if __name__ == "__main__":
    ROLES[sys.argv[1]](*sys.argv[2:])
