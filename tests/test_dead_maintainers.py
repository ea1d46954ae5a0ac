"""What others see, and find later, when a process dies or is slow in the upkeep of a log."""

from __future__ import annotations

import ctypes
import errno
import os
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

import fastlog
from fastlog import LogConfig, PartitionLog
from fastlog._core import encode_batch
from fastlog._native import oscalls
from tests.forking import wait_until_stopped

SMALL = LogConfig(segment_bytes=4096, max_message_bytes=2048, index_interval_bytes=64, segment_index_bytes=4096)
COMPACTED = LogConfig(
    segment_bytes=4096, max_message_bytes=2048, index_interval_bytes=64, segment_index_bytes=4096,
    cleanup_policy="compact", min_cleanable_dirty_ratio=0, delete_retention_ms=0,
)  # fmt: skip
BEGAN = int(time.time() * 1000) - 1_000_000


def child(work: Callable[[], object]) -> int:
    """A process that does something with the log; its id."""
    pid = os.fork()
    if pid == 0:
        try:
            work()
            os._exit(0)
        finally:
            os._exit(1)
    return pid


def end_of(pid: int) -> int:
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def fill(log: PartitionLog, count: int, keys: int = 3) -> None:
    for number in range(count):
        log.append([b"v" * 300], keys=[b"key %d" % (number % keys)])


def add_aborted(log: PartitionLog) -> None:
    """A record of a transaction that is taken back."""
    log.append_batch(
        encode_batch([b"aborted"], keys=[b"a"], producer_id=77, producer_epoch=0, base_sequence=0, transactional=True)
    )
    log.end_transaction(77, 0, commit=False)


def upkeep(path: Path, step: str, action: str = "kill") -> None:
    """In another process: a round of upkeep that ends, or stops, at a step."""
    log = PartitionLog.open(path, config=COMPACTED, durability="os")
    oscalls.arm(step, action)
    log.maintain()
    log.close()


@contextmanager
def before_call(name: str, nth: int, act: Callable[[], object]) -> Iterator[None]:
    """Have something done when this process comes to its nth system call of a kind."""
    calls = 0

    def observe(call: int, error: int) -> None:
        nonlocal calls
        calls += oscalls.CALL_NAMES[call] == name
        if oscalls.CALL_NAMES[call] == name and calls == nth:
            act()

    watch = ctypes.CFUNCTYPE(None, ctypes.c_int, ctypes.c_int)(observe)
    oscalls.observe(ctypes.cast(watch, ctypes.c_void_p).value or 0)
    try:
        yield
    finally:
        oscalls.observe(0)
    assert calls >= nth, f"there were only {calls} calls"


def values(log: PartitionLog, start: int = 0) -> list[bytes]:
    return [bytes(record.value or b"") for record in log.records(start)]


def test_I3_the_recovery_point_names_no_segment_that_is_compacted(folder: Path) -> None:
    """A writer dies in a roll before its sync is made; another one compacts, and is killed."""
    path = folder / "log-0"

    def roll_and_die() -> None:
        log = PartitionLog.open(path, config=COMPACTED)
        fill(log, 15)
        oscalls.arm("roll.published", "kill")
        fill(log, 100)

    def compact_and_die() -> None:
        log = PartitionLog.open(path, config=COMPACTED)
        assert end_of(child(roll_and_die)) == -signal.SIGKILL
        before = len(log.segments())
        log.maintain()
        assert len(log.segments()) < before or log.segments()[0].size < 4000
        os.kill(os.getpid(), signal.SIGKILL)

    assert end_of(child(compact_and_die)) == -signal.SIGKILL
    with PartitionLog.open(path, config=COMPACTED) as log:
        found = {record.key for record in log.records()}
        assert found == {b"key 0", b"key 1", b"key 2"} and log.verify().ok


def test_I7_the_index_of_a_segment_that_was_replaced_is_believed_by_nobody(folder: Path) -> None:
    """A reader rebuilds it while a swap is under way, and stores it when that is over."""
    path = folder / "log-0"
    marks = {1: b"one", 13: b"two", 25: b"three", 37: b"four"}
    reader = PartitionLog.open(path, config=COMPACTED, durability="os")

    def write() -> None:
        with PartitionLog.open(path, config=COMPACTED, durability="os") as log:
            for number in range(90):
                key = marks.get(number, b"same")
                log.append([b"v" * 300], keys=[key], timestamps=BEGAN + number * 1000)
                if number == 60:
                    log.flush()
                    log.maintain()
            log.flush()

    assert end_of(child(write)) == 0
    pid = child(lambda: upkeep(path, "compaction.indexes_unlinked", "stop"))
    wait_until_stopped(pid)

    def let_it_go_on() -> None:
        os.kill(pid, signal.SIGCONT)
        assert end_of(pid) == 0

    with before_call("rename", 1, let_it_go_on):
        assert reader.read(1).base_offset == 1
    assert reader.offset_for_time(BEGAN + 13_000) == 13
    reader.close()
    with PartitionLog.open(path, config=COMPACTED, durability="os") as log:
        assert log.recovery is None
        assert log.offset_for_time(BEGAN + 13_000) == 13
        assert log.verify().ok


@pytest.mark.parametrize("step", ["indexes_unlinked", "moved", "sources_unlinked", "indexes_installed"])
def test_aborted_records_stay_hidden_when_a_maintainer_dies(folder: Path, step: str) -> None:
    """Also while the file that says which they are has no name."""
    path = folder / "log-0"
    reader = PartitionLog.open(path, config=COMPACTED, durability="os")

    def write_and_die() -> None:
        log = PartitionLog.open(path, config=COMPACTED, durability="os")
        add_aborted(log)
        fill(log, 60)
        log.flush()
        oscalls.arm(f"compaction.{step}", "kill")
        log.maintain()

    assert end_of(child(write_and_die)) == -signal.SIGKILL
    with PartitionLog.open(path, config=COMPACTED, durability="os") as other:
        for log in (other, reader):
            assert set(values(log)) == {b"v" * 300}
    reader.close()


def test_aborted_records_stay_hidden_when_their_segment_is_deleted_during_the_read(folder: Path) -> None:
    path = folder / "log-0"
    reader = PartitionLog.open(path, config=SMALL, durability="os")

    def write() -> None:
        with PartitionLog.open(path, config=SMALL, durability="os") as log:
            add_aborted(log)
            fill(log, 60)

    def delete() -> None:
        with PartitionLog.open(path, config=SMALL, durability="os") as log:
            log.delete_records(40)

    assert end_of(child(write)) == 0
    # the first listing is of the segments, the second one of what says which records were taken back
    with (
        before_call("getdents", 2, lambda: end_of(child(delete))),
        pytest.raises(fastlog.OffsetOutOfRangeError, match="offsets 40 to 61"),
    ):
        reader.read(0)
    reader.close()


@pytest.mark.parametrize("step", ["compaction.moved", "compaction.sources_unlinked"])
def test_whoever_finishes_the_swap_of_a_dead_maintainer_may_die_in_it_too(folder: Path, step: str) -> None:
    """The swap files were there before any file was moved; who has the log open is not told of damage."""
    path = folder / "log-0"
    log = PartitionLog.open(path, config=COMPACTED, durability="os")
    fill(log, 40)
    log.flush()
    assert end_of(child(lambda: upkeep(path, "compaction.swapped"))) == -signal.SIGKILL
    assert len(list(log.records())) == 40
    assert end_of(child(lambda: upkeep(path, step))) == -signal.SIGKILL
    assert list(path.glob("*.swap"))
    assert log.read(15).base_offset >= 15 and not log.verify().damages
    kept = len(list(log.records()))
    assert 3 <= kept <= 40
    log.append([b"more"], keys=[b"new"])
    assert len(list(log.records())) <= kept + 1 and log.verify().ok and not list(path.glob("*.swap"))
    log.close()


@pytest.mark.parametrize("step", ["swapped", "moved", "sources_unlinked"])
def test_a_lone_reader_in_the_middle_of_a_swap_misses_no_transaction(folder: Path, step: str) -> None:
    """A segment with aborted transactions is merged into the one before it: what says so is still there."""
    path = folder / "log-0"

    def write_and_die() -> None:
        log = PartitionLog.open(path, config=COMPACTED, durability="os")
        fill(log, 20)
        add_aborted(log)
        fill(log, 40)
        log.flush()
        log.maintain()
        fill(log, 20)
        log.flush()
        oscalls.arm(f"compaction.{step}", "kill")
        log.maintain()

    assert end_of(child(write_and_die)) == -signal.SIGKILL
    with PartitionLog.open(path, read_only=True) as log:
        assert set(values(log)) == {b"v" * 300} and len(values(log)) >= 20


@pytest.mark.parametrize("stays", [False, True])
@pytest.mark.parametrize("compacts", [False, True])
def test_a_lone_reader_looks_again_when_a_segment_is_gone(folder: Path, compacts: bool, stays: bool) -> None:
    """A writer comes, and takes segments away, or others in their place; it may have left again."""
    path = folder / "log-0"
    with PartitionLog.open(path, config=COMPACTED) as log:
        fill(log, 60)
    reader = PartitionLog.open(path, read_only=True)
    assert reader.read(0, 1).base_offset == 0

    def take_away() -> None:
        log = PartitionLog.open(path, config=COMPACTED)
        if compacts:
            log.maintain()
        else:
            log.delete_records(30)
        if stays:
            os.kill(os.getpid(), signal.SIGSTOP)
        log.close()

    pid = child(take_away)
    if stays:
        wait_until_stopped(pid)
    else:
        assert end_of(pid) == 0
    if compacts:
        assert reader.read(15).base_offset >= 15
        assert len(values(reader)) < 60
    else:
        with pytest.raises(fastlog.OffsetOutOfRangeError, match="offsets 30 to 59"):
            reader.read(15)
        assert len(values(reader, 30)) == 30
    reader.close()
    if stays:
        os.kill(pid, signal.SIGCONT)
        assert end_of(pid) == 0


def test_want_of_descriptors_poisons_nothing_behind_a_sync_that_was_cut_short(folder: Path) -> None:
    """What a dead sync owner was about is written again: where that is not possible now, it is later."""
    path = folder / "log-0"
    log = PartitionLog.open(path, config=SMALL)
    log.append([b"a"])

    def sync_and_die() -> None:
        other = PartitionLog.open(path, config=SMALL)
        oscalls.arm("sync.synced", "kill")
        other.append([b"b"])

    assert end_of(child(sync_and_die)) == -signal.SIGKILL
    oscalls.inject("open", errno=errno.EMFILE)
    with pytest.raises(fastlog.StorageError, match="Too many open files"):
        log.flush()
    assert oscalls.injected() == 1
    oscalls.clear()
    assert log.flush() == 2 == log.durable_offset
    assert log.append([b"c"]) == 2
    assert not (path / ".fastlog-poisoned").exists()
    log.close()
