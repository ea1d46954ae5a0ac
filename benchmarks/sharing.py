"""fastlog as a contestant where several threads or processes have one log, through its public interface only."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from threading import Thread
from time import monotonic, sleep
from typing import Any

import fastlog
from benchmarks.contest import Prepare, Work, expect
from benchmarks.partners import KILLED_INSIDE_THE_LOCK, SHARED_BATCH, STOPPED_INSIDE_THE_LOCK, partner
from benchmarks.workload import VALUE_BYTES, Stage, value_lists

# Long enough for a process to fall asleep, so that it has to be woken.
_PAUSE_SECONDS = 0.0003
_LONG_PAUSE_SECONDS = 0.005


def single_values() -> list[list[bytes]]:
    """Calls of one record each."""
    return [[value] for values in value_lists(VALUE_BYTES) for value in values]


# --- one record per call ----------------------------------------------------------------------------------------------


def append_single(**options: Any) -> Prepare:
    """At ``durability="os"``; ``options`` are those of ``open``."""

    @contextmanager
    def prepare(stage: Stage) -> Iterator[Work]:
        values, total = single_values(), stage.sizes.single_appends
        rounds = total // len(values)
        with fastlog.PartitionLog.open(stage.directory / "log-0", durability="os", **options) as log:

            def work() -> int:
                append = log.append
                for _ in range(rounds):
                    for one in values:
                        append(one)
                return total

            yield work
            expect(log.end_offset == total, log.end_offset, total, "end offset after the round")

    return prepare


def batch_bytes(directory: Path) -> int:
    """How many bytes a batch of one such record has in the file."""
    with fastlog.PartitionLog.open(directory / "sized-0", durability="os") as log:
        log.append(single_values()[0])
        (segment,) = log.segments()
        return segment.size


# --- durable, from several threads ------------------------------------------------------------------------------------


def in_threads(threads: int, run: Callable[[int], None]) -> None:
    """Call ``run`` with 0, 1, ... in as many threads, and raise what one of them raises."""
    failures: list[BaseException] = []

    def guarded(number: int) -> None:
        try:
            run(number)
        except BaseException as error:  # noqa: BLE001 (whatever it is, it is raised again)
            failures.append(error)

    started = [Thread(target=guarded, args=(number,)) for number in range(threads)]
    for thread in started:
        thread.start()
    for thread in started:
        thread.join()
    if failures:
        raise failures[0]


def append_durable(durability: str, threads: int) -> Prepare:
    """One record per call; the threads share the records, and start and end within the time."""

    @contextmanager
    def prepare(stage: Stage) -> Iterator[Work]:
        values, total, path = single_values(), stage.sizes.durable_appends, stage.directory / "log-0"
        with fastlog.PartitionLog.open(path, durability=durability) as log:
            log.append(values[0])  # the session's first change is an event of its own
            before = _syncs(path)

            def run(number: int) -> None:
                for call in range(total // threads):
                    log.append(values[(number + call) % len(values)])

            def work() -> int:
                in_threads(threads, run)
                return total

            yield work
            stage.details["records_per_sync"] = round(total / max(1, _syncs(path) - before), 2)
            expect(log.durable_offset == total + 1, log.durable_offset, total + 1, "durable offset after the round")

    return prepare


def _syncs(path: Path) -> int:
    count: int = fastlog.diagnose(path)["control"]["syncs"]
    return count


# --- waking -----------------------------------------------------------------------------------------------------------


def wake_by_append() -> Prepare:
    """From just before an append to when the reader's ``wait`` has returned."""

    @contextmanager
    def prepare(stage: Stage) -> Iterator[Work]:
        hears, says = os.pipe()
        path = stage.directory / "log-0"
        with (
            _closing(hears),
            fastlog.PartitionLog.open(path, durability="os") as log,
            partner("wait-for-records", path, says, descriptors=(says,)) as reader,
        ):
            os.close(says)
            log.append([b"the first change is an event of its own"])
            yield lambda: _wake(stage, reader, hears, lambda: log.append([b"wake up"]))

    return prepare


def wake_by_pipe() -> Prepare:
    """From just before a write of one byte to when the reader's ``read`` has returned."""

    @contextmanager
    def prepare(stage: Stage) -> Iterator[Work]:
        (hears, says), (bell, rings) = os.pipe(), os.pipe()
        with (
            _closing(hears, rings),
            partner("wait-for-bytes", bell, says, descriptors=(bell, says)) as reader,
        ):
            os.close(says)
            os.close(bell)
            yield lambda: _wake(stage, reader, hears, lambda: os.write(rings, b"!"))

    return prepare


@contextmanager
def _closing(*descriptors: int) -> Iterator[None]:
    try:
        yield
    finally:
        for descriptor in descriptors:
            os.close(descriptor)


def _wake(stage: Stage, reader: Any, hears: int, act: Callable[[], object]) -> int:
    times = stage.sizes.wake_ups
    reader.say(str(times))
    began = []
    for _ in range(times):
        expect(os.read(hears, 1) == b".", "nothing", "a sign", "a reader that is about to wait")
        sleep(_PAUSE_SECONDS)
        began.append(monotonic())
        act()
    woken = json.loads(reader.hear())
    expect(len(woken) == times, len(woken), times, "wake-ups")
    taken = [then - now for now, then in zip(began, woken, strict=True)]
    expect(min(taken) > 0, min(taken), "more than 0 s", "a wake-up that came before its cause")
    stage.samples.extend(taken)
    return times


# --- several processes ------------------------------------------------------------------------------------------------


def append_from_processes(processes: int) -> Prepare:
    """The same number of calls in all, shared by so many processes that have opened the log beforehand."""

    @contextmanager
    def prepare(stage: Stage) -> Iterator[Work]:
        path, calls = stage.directory / "log-0", stage.sizes.shared_calls
        with ExitStack() as stack:
            appenders = [stack.enter_context(partner("append", path)) for _ in range(processes)]
            for appender in appenders:
                _finish(appender, 1)

            def work() -> int:
                for appender in appenders:
                    appender.say(str(calls // processes))
                for appender in appenders:
                    expect(appender.hear() == "done", "something else", "done", "an appender")
                return calls * SHARED_BATCH

            yield work
        with fastlog.PartitionLog.open(path, read_only=True) as log:
            total = (calls + processes) * SHARED_BATCH
            expect(log.end_offset == total, log.end_offset, total, "end offset after the round")

    return prepare


def _finish(appender: Any, calls: int) -> None:
    appender.say(str(calls))
    expect(appender.hear() == "done", "something else", "done", "an appender")


# --- taking over ------------------------------------------------------------------------------------------------------


@contextmanager
def _beside_one_who_dies(stage: Stage, failpoint: str) -> Iterator[tuple[fastlog.PartitionLog, Any]]:
    """A log, and a process that dies or stops in it when asked; at the end the log must be whole."""
    path = stage.directory / "log-0"
    with (
        fastlog.PartitionLog.open(path, durability="os") as log,
        partner("die", path, failpoint=failpoint) as nursery,
    ):
        log.append([b"before"])
        yield log, nursery
        report = log.verify()
        expect(report.ok, report, "no damage", "the log after the takeovers")


def take_over_from_the_dead() -> Prepare:
    """From the death of a writer inside the lock having been seen, to when the next append has returned."""

    @contextmanager
    def prepare(stage: Stage) -> Iterator[Work]:
        with _beside_one_who_dies(stage, KILLED_INSIDE_THE_LOCK) as (log, nursery):

            def work() -> int:
                for _ in range(stage.sizes.takeovers):
                    nursery.say("die")
                    nursery.hear()
                    before = log.end_offset
                    began = monotonic()
                    log.append([b"after"])
                    stage.samples.append(monotonic() - began)
                    expect(log.end_offset == before + 1, log.end_offset, before + 1, "end offset after a takeover")
                return stage.sizes.takeovers

            yield work

    return prepare


def take_over_while_waiting() -> Prepare:
    """From the kill of a writer inside the lock, to when an append that waits for the lock already has returned."""

    @contextmanager
    def prepare(stage: Stage) -> Iterator[Work]:
        with _beside_one_who_dies(stage, STOPPED_INSIDE_THE_LOCK) as (log, nursery):

            def work() -> int:
                for _ in range(stage.sizes.takeovers):
                    nursery.say("stop")
                    stopped, ended = int(nursery.hear()), list[float]()

                    def append(ended: list[float] = ended) -> None:
                        log.append([b"after"])
                        ended.append(monotonic())

                    waiting = Thread(target=append)
                    waiting.start()
                    sleep(_LONG_PAUSE_SECONDS)
                    expect(not ended, "an append", "none", "while another writer holds the lock")
                    began = monotonic()
                    os.kill(stopped, signal.SIGKILL)
                    waiting.join()
                    stage.samples.append(ended[0] - began)
                return stage.sizes.takeovers

            yield work

    return prepare
