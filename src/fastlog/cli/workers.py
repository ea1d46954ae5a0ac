"""The processes that ``fastlog bench`` measures: each takes jobs as lines of JSON, does them, and answers in a line.

A worker lives through all rounds of a run, so that starting Python is nobody's figure. What it measures it times
itself, by the monotonic clock that all processes of a machine share: nanoseconds, as the answers have them.
"""

from __future__ import annotations

import json
import os
import select
import subprocess
import sys
from array import array
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from threading import Barrier, Thread
from time import monotonic_ns, sleep
from typing import Any

import fastlog

__all__ = ["Worker", "WorkerError", "workers"]

READ_BYTES = 1 << 20
# Long enough for the other side to fall asleep, so that it has to be woken.
PAUSE_SECONDS = 0.0003
WAIT_SECONDS = 10
SENDS_PER_LOOK = 1000  # at the clock


class WorkerError(fastlog.Error):
    """A worker could not do its job; the message is the worker's."""


# --- the side that asks ---------------------------------------------------------------------------


class Worker:
    """One process. ``send`` gives it a job, ``receive`` waits for the answer; jobs are the functions in ``JOBS``."""

    def __init__(self, descriptors: tuple[int, ...] = ()) -> None:
        # as a spawned process of multiprocessing would: it finds the modules that this one finds
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(os.path.abspath(entry) for entry in sys.path)}
        self._process = subprocess.Popen(
            [sys.executable, "-c", "from fastlog.cli.workers import serve; serve()"],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment, text=True, pass_fds=descriptors,
            process_group=0,  # Ctrl-C is for this process, which ends the others
        )  # fmt: skip

    def send(self, job: str, **arguments: Any) -> None:
        assert self._process.stdin is not None
        try:
            print(json.dumps({"job": job, **arguments}), file=self._process.stdin, flush=True)
        except BrokenPipeError:
            raise self._death() from None

    def receive(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise self._death()
        answer: dict[str, Any] = json.loads(line)
        if "error" in answer:
            raise WorkerError(answer["error"])
        return answer

    def ask(self, job: str, **arguments: Any) -> dict[str, Any]:
        self.send(job, **arguments)
        return self.receive()

    def _death(self) -> WorkerError:
        return WorkerError(f"a process of the measurement ended with exit code {self._process.wait()}")

    def stop(self) -> None:
        """End the process, whatever it is doing."""
        self._process.kill()
        self._process.wait()
        for stream in (self._process.stdin, self._process.stdout):
            if stream is not None:
                try:
                    stream.close()
                except BrokenPipeError:
                    pass


@contextmanager
def workers(*descriptors: tuple[int, ...]) -> Iterator[list[Worker]]:
    """A worker for each tuple of descriptors that it inherits; ended when the block is left."""
    started: list[Worker] = []
    try:
        started.extend(map(Worker, descriptors))
        yield started
    finally:
        for worker in started:
            worker.stop()


# --- the side that works --------------------------------------------------------------------------


class _State:
    """What a worker keeps from job to job."""

    log: fastlog.PartitionLog | None = None
    store: fastlog.Store | None = None
    producer: fastlog.Producer | None = None
    consumer: fastlog.Consumer[bytes | None, bytes | None] | None = None

    @property
    def opened(self) -> fastlog.PartitionLog:
        assert self.log is not None
        return self.log


def serve() -> None:
    """Take jobs from standard input until it ends."""
    state = _State()
    for line in sys.stdin:
        arguments = json.loads(line)
        try:
            answer = JOBS[arguments.pop("job")](state, **arguments)
        except (fastlog.Error, OSError) as error:
            answer = {"error": str(error)}
        print(json.dumps(answer), flush=True)


def open_log(state: _State, path: str, **options: Any) -> dict[str, Any]:
    state.log = log = fastlog.PartitionLog.open(path, **options)
    return {"records": log.end_offset - log.start_offset, "bytes": sum(segment.size for segment in log.segments())}


def close_log(state: _State) -> dict[str, Any]:
    state.opened.close()
    state.log = None
    return {}


def values_of(size: int, count: int, text: bool) -> list[bytes]:
    """``count`` different values of ``size`` bytes: random ones, or text, in which a codec finds something."""
    if not text:
        content = os.urandom(size * count)
        return [content[start : start + size] for start in range(0, size * count, size)]
    words = (b"created", b"paid", b"shipped", b"returned")
    made = []
    for number in range(count):
        head = b'{"order":%d,"customer":%d,"state":"%s","note":"' % (number, number * 7919 % 1000, words[number % 4])
        made.append((head + b"the quick brown fox jumps over the lazy dog " * (size // 40 + 1))[:size])
    return made


def append(
    state: _State, *, size: int, batch: int, threads: int, records: int, nanoseconds: int, compression: str | None,
    latencies: str,
) -> dict[str, Any]:  # fmt: skip
    """Append in ``threads`` threads until ``records`` of them are in or the time is over.

    Each call's time goes into the file ``latencies``. The answer says when the first began and the last ended.
    """
    values = values_of(size, batch, compression is not None)
    log = state.opened

    def call() -> None:
        log.append(values, compression=compression)

    took, began, ended = _storm(call, threads, max(1, records // (batch * threads)), nanoseconds)
    with open(latencies, "wb") as file:
        took.tofile(file)
    return {"records": len(took) * batch, "began": began, "ended": ended}


def write(
    state: _State, *, path: str, size: int, batch: int, records: int, nanoseconds: int, synced: bool, latencies: str
) -> dict[str, Any]:
    """The floor: the same values in a bare file, each call one write, and a sync where the durability wants one."""
    content = b"".join(values_of(size, batch, False))
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT, 0o600)
    sync = getattr(os, "fdatasync", os.fsync)

    def call() -> None:
        os.write(descriptor, content)
        if synced:
            sync(descriptor)

    try:
        took, began, ended = _storm(call, 1, max(1, records // batch), nanoseconds)
    finally:
        os.close(descriptor)
    with open(latencies, "wb") as file:
        took.tofile(file)
    return {"records": len(took) * batch, "began": began, "ended": ended}


def _storm(call: Callable[[], object], threads: int, count: int, nanoseconds: int) -> tuple[array[int], int, int]:
    """Make ``call`` up to ``count`` times in each thread; how long each took, and when all began and ended."""
    took = [array("q") for _ in range(threads)]
    began, ended, failures = [0] * threads, [0] * threads, list[Exception]()
    start = Barrier(threads)

    def run(number: int) -> None:
        add, clock = took[number].append, monotonic_ns
        start.wait()
        then = began[number] = clock()
        deadline = then + nanoseconds
        try:
            for _ in range(count):
                call()
                now = clock()
                add(now - then)
                then = now
                if now >= deadline:
                    break
        except (fastlog.Error, OSError) as error:
            failures.append(error)
        ended[number] = then

    _in_threads(run, threads, failures)
    return sum(took[1:], took[0]), min(began), max(ended)


def _in_threads(run: Callable[[int], None], threads: int, failures: list[Exception]) -> None:
    """Run ``run`` in this thread and in others, by number; raises the first of the failures that they noted."""
    others = [Thread(target=run, args=(number,)) for number in range(1, threads)]
    for thread in others:
        thread.start()
    run(0)
    for thread in others:
        thread.join()
    if failures:
        raise failures[0]


def read(state: _State, *, path: str, way: str, threads: int, enough: int, nanoseconds: int) -> dict[str, Any]:
    """Read the log from its start in ``threads`` threads, each until it has ``enough`` or the time is over."""
    log = None if way == "bytes" else state.opened
    counts, began, ended, failures = [0] * threads, [0] * threads, [0] * threads, list[Exception]()
    start = Barrier(threads)

    def run(number: int) -> None:
        start.wait()
        began[number] = monotonic_ns()
        try:
            for done in _WAYS[way](path if log is None else log):
                counts[number] += done
                if counts[number] >= enough or monotonic_ns() - began[number] >= nanoseconds:
                    break
        except (fastlog.Error, OSError) as error:
            failures.append(error)
        ended[number] = monotonic_ns()

    _in_threads(run, threads, failures)
    return {"units": sum(counts), "began": min(began), "ended": max(ended)}


def _read_columns(log: fastlog.PartitionLog) -> Iterator[int]:
    for batch in log.batches():
        _ = batch.offsets, batch.timestamps, batch.values.sizes
        yield len(batch)


def _read_lists(log: fastlog.PartitionLog) -> Iterator[int]:
    for batch in log.batches():
        yield len(batch.values.to_list())


def _read_records(log: fastlog.PartitionLog) -> Iterator[int]:
    done = 0
    for record in log.records():
        _ = record.offset, record.value
        done += 1
        if done == 1000:
            yield done
            done = 0
    yield done


def _read_bytes(path: str) -> Iterator[int]:
    """The floor: the segments' bytes, one buffer after the other, looked at by nobody."""
    buffer = bytearray(READ_BYTES)
    for segment in sorted(Path(path).glob("*.log")):
        with open(segment, "rb", buffering=0) as file:
            while done := file.readinto(buffer):
                yield done


_WAYS: dict[str, Callable[[Any], Iterator[int]]] = {
    "columns": _read_columns, "lists": _read_lists, "records": _read_records, "bytes": _read_bytes,
}  # fmt: skip


# Waking takes two workers. The listener says that it is about to wait; the other one lets it fall asleep, looks at
# the clock, and appends a record, or writes a byte into a pipe; the listener looks at the clock when it wakes.
# Record and byte take turns, so that whatever else the machine does hits both.


def ring(state: _State, *, ready: int, bell: int, times: int) -> dict[str, Any]:
    """Append, and write into the pipe, each ``times`` times in turns; when each of them began."""
    log, appended, written = state.opened, list[int](), list[int]()
    for _ in range(times):
        _let_it_sleep(ready)
        appended.append(monotonic_ns())
        log.append([b"wake up"])
        _let_it_sleep(ready)
        written.append(monotonic_ns())
        os.write(bell, b"!")
    return {"log": appended, "pipe": written}


def _let_it_sleep(ready: int) -> None:
    if not os.read(ready, 1):
        raise WorkerError("the process that waits is gone")
    sleep(PAUSE_SECONDS)


def listen(state: _State, *, ready: int, bell: int, times: int) -> dict[str, Any]:
    """Wait for a record, and for a byte in the pipe, each ``times`` times in turns; when each of them was there."""
    log, from_log, from_pipe = state.opened, list[int](), list[int]()
    offset = log.end_offset
    for _ in range(times):
        os.write(ready, b".")
        if not log.wait(offset, timeout=WAIT_SECONDS):
            raise WorkerError(f"no record came within {WAIT_SECONDS} s")
        from_log.append(monotonic_ns())
        offset += 1
        os.write(ready, b".")
        if not os.read(bell, 1):
            raise WorkerError("the process that appends is gone")
        from_pipe.append(monotonic_ns())
    return {"log": from_log, "pipe": from_pipe}


# A pipeline takes producing workers and consuming ones, which are one group. Time runs from the first that sends to the
# last that has a record in hand. A consumer ends when there is a file that says that all is sent, and no record after.


def open_producer(state: _State, *, path: str, durability: str, compression: str | None) -> dict[str, Any]:
    state.store = fastlog.open(path, durability=durability)
    state.producer = state.store.producer(compression=compression)
    return {}


def open_consumer(state: _State, *, path: str, durability: str, topic: str, share: int) -> dict[str, Any]:
    """Join the group; the answer comes when ``share`` partitions are there, so all members have to be asked at once."""
    state.store = fastlog.open(path, durability=durability)
    state.consumer = state.store.consumer(topic, group="bench", start="earliest")
    deadline = monotonic_ns() + WAIT_SECONDS * 1_000_000_000
    while len(state.consumer.assignment()) != share:
        state.consumer.poll(timeout=0.01)
        if monotonic_ns() > deadline:
            raise WorkerError(f"a consumer has no {share} partitions after {WAIT_SECONDS} s")
    return {}


def close_store(state: _State) -> dict[str, Any]:
    assert state.store is not None
    state.store.close()
    state.store = state.producer = state.consumer = None
    return {}


def produce(
    state: _State, *, topic: str, size: int, batch: int, records: int, nanoseconds: int, text: bool
) -> dict[str, Any]:
    """Send until ``records`` are sent or the time is over, then wait until all are delivered."""
    assert state.producer is not None
    send, send_many = state.producer.send, state.producer.send_many
    values = values_of(size, batch if batch > 1 else min(records, SENDS_PER_LOOK), text)
    sent, began = 0, monotonic_ns()
    while sent < records and monotonic_ns() - began < nanoseconds:
        if batch > 1:
            send_many(topic, values)
            sent += batch
        else:
            some = values[: records - sent]
            for value in some:
                send(topic, value)
            sent += len(some)
    state.producer.flush()
    return {"records": sent, "began": began, "ended": monotonic_ns()}


def consume(state: _State, *, all_sent: str) -> dict[str, Any]:
    """Take lists of up to 500 records until there is the file ``all_sent`` and no record after it."""
    assert state.consumer is not None
    found, ended = 0, 0
    while True:
        is_last = os.path.exists(all_sent)
        records = state.consumer.poll(500, timeout=0.02)
        if records:
            found += len(records)
            ended = monotonic_ns()
        elif is_last:
            return {"records": found, "ended": ended}


def write_pipe(state: _State, *, pipe: int, size: int, batch: int, records: int, nanoseconds: int) -> dict[str, Any]:
    """The floor: the same values through a pipe, each call one write."""
    content, written, began = b"".join(values_of(size, batch, False)), 0, monotonic_ns()
    while written < records * size and monotonic_ns() - began < nanoseconds:
        at = 0
        while at < len(content):
            at += os.write(pipe, content[at:])
        written += len(content)
    return {"bytes": written, "began": began}


def read_pipe(state: _State, *, pipe: int, all_sent: str) -> dict[str, Any]:
    """Read until there is the file ``all_sent`` and no byte after it."""
    found, ended = 0, 0
    while True:
        is_last = os.path.exists(all_sent)
        if select.select([pipe], [], [], 0.02)[0]:
            found += len(os.read(pipe, READ_BYTES))
            ended = monotonic_ns()
        elif is_last:
            return {"bytes": found, "ended": ended}


JOBS: dict[str, Callable[..., dict[str, Any]]] = {
    "open": open_log, "close": close_log, "append": append, "write": write, "read": read, "ring": ring,
    "listen": listen, "open producer": open_producer, "open consumer": open_consumer, "close store": close_store,
    "produce": produce, "consume": consume, "write pipe": write_pipe, "read pipe": read_pipe,
}  # fmt: skip
