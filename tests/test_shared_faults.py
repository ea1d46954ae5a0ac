"""Threads and handles of one process that get in each other's way, and steps of the shared log that fail half-way.

Each test puts one such moment on stage: a seam is patched so that threads meet where they otherwise meet by chance, or
a system call fails at the one place that matters.
"""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import fastlog
from fastlog._native import oscalls, syncing
from fastlog.partition import files, snapshots
from tests.histories.driver import SLOWNESS
from tests.histories.nursery import Nursery
from tests.histories.puppet import Puppet
from tests.reference.batch import TRANSACTIONAL, Batch, Record, encode_batch, make_batch
from tests.small_logs import SMALL, VALUE, fill, open_log, segments

pytestmark = pytest.mark.timeout(120)


@pytest.fixture
def path(folder: Path) -> Iterator[str]:
    yield str(folder / "events-0")
    oscalls.clear()
    oscalls.set_clock(None)


@pytest.fixture
def puppets() -> Iterator[Callable[[str], Puppet]]:
    """Makes puppets, and ends them when the test is over."""
    made: list[Puppet] = []

    def make(name: str) -> Puppet:
        made.append(Puppet(nursery, name))
        return made[-1]

    with Nursery() as nursery:
        yield make
        for puppet in made:
            puppet.signal(signal.SIGCONT)
            puppet.kill()


def transactional() -> bytes:
    batch: Batch = make_batch([Record(0, 0, None, b"of a transaction")])
    return encode_batch(replace(batch, attributes=TRANSACTIONAL, producer_id=7, producer_epoch=0, base_sequence=0))


# --- closing ----------------------------------------------------------------------------------------------------------


def test_closing_names_the_end_though_a_transaction_is_open(path: str) -> None:
    """The last to close finds its list of segments stale: what it may show is not where the log ends."""
    log, other = open_log(path), open_log(path)
    fill(log, 3)
    log.append_batch(transactional())
    log.append([b"behind it"])
    end = log.end_offset
    other.delete_records(int(segments(path)[1][:20]))
    other.close()
    log.close()
    with open_log(path, isolation="read_uncommitted") as log:
        assert log.end_offset == end
        assert log.append([b"next"]) == end


# --- threads of one handle --------------------------------------------------------------------------------------------


def test_two_threads_list_the_segments_at_once(path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another handle has rolled; a reader and an appender of this one look at the folder at the same moment."""
    other, log = open_log(path), open_log(path)
    log.append([b"first"])
    fill(other, 2)
    has_listed = threading.Event()
    list_directory = oscalls.list_directory
    appender = threading.Thread(target=log.append, args=([VALUE],))

    def list_together(folder: str) -> list[str]:
        found = list_directory(folder)
        if threading.current_thread() is appender:
            has_listed.set()
        else:
            # the appender lists, joins the new segment and appends to it before this listing counts
            appender.start()
            has_listed.wait(10)
            appender.join()
        return found

    with monkeypatch.context() as patched:
        patched.setattr(oscalls, "list_directory", list_together)
        log.read(log.readable_offset - 1)
    assert has_listed.is_set()
    for _ in range(3):
        log.append([VALUE])
    end = log.end_offset
    other.close()
    log.close()
    with open_log(path) as log:
        assert log.recovery is None
        assert log.end_offset == end
        assert sum(1 for _ in log.records()) == end


def test_a_lookup_of_aborted_transactions_that_failed_is_made_again(path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    log = open_log(path)
    log.append_batch(transactional())
    log.end_transaction(7, 0, commit=False)
    fill(log, 2)

    def fail(*arguments: Any) -> bytes:
        raise fastlog.StorageError("not now", 5)

    with monkeypatch.context() as patched:
        patched.setattr(snapshots, "read_transaction_index", fail)
        with pytest.raises(fastlog.StorageError):
            log.read(0)
    assert b"of a transaction" not in [record.value for record in log.records()]
    log.close()


def test_closing_waits_for_the_sync_that_a_reader_leads(path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """One thread leads a sync while another closes the handle: the sync owner's lock lasts until it is published."""
    log, reader = open_log(path), open_log(path, durability="group", read_only=True)
    log.append([VALUE])
    order: list[str] = []
    open_file = oscalls.open_file
    closer = threading.Thread(target=lambda: (reader.close(), order.append("closed")))

    def open_while_closing(file: str, *arguments: Any, **options: Any) -> int:
        if not order:
            order.append("syncing")
            closer.start()
            closer.join(0.3)
            order.append("synced")
        return open_file(file, *arguments, **options)

    with monkeypatch.context() as patched:
        patched.setattr(oscalls, "open_file", open_while_closing)
        assert reader.wait(0, timeout=5)
    closer.join()
    assert order == ["syncing", "synced", "closed"]
    log.close()


def test_a_log_that_comes_while_the_flusher_looks(path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The flush interval of a log is kept though it came just when the flusher had looked at the others."""
    flusher = syncing.Flusher()
    is_waiting, looked_at = threading.Event(), threading.Event()
    looks = []

    def look(log: Any) -> int:
        looks.append(log)
        if len(looks) == 1:
            assert is_waiting.wait(10)
            flusher.keep(second)
        elif log is second:
            looked_at.set()
        return 0

    first, second = open_log(path), open_log(path)
    monkeypatch.setattr(syncing, "flush_if_due", look)
    flusher.keep(first)
    is_waiting.set()
    assert looked_at.wait(10)
    for log in (first, second):
        log.close()


def test_a_roll_while_the_segment_before_is_synced(path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The background syncs what was closed while it was busy, too: nobody else may come for a long time."""
    log = open_log(path)
    is_busy, may_go_on = threading.Event(), threading.Event()
    open_directory = oscalls.open_directory

    def open_slowly(folder: str) -> int:
        if threading.current_thread().name == "fastlog-sync":
            is_busy.set()
            may_go_on.wait(10)
        return int(open_directory(folder))

    monkeypatch.setattr(oscalls, "open_directory", open_slowly)
    fill(log, 2)
    assert is_busy.wait(10)
    fill(log, 3)
    may_go_on.set()
    active = int(segments(path)[-1][:20])
    deadline = time.monotonic() + 10
    while (meta := files.read_meta(path)) is None or meta.recovery_point < active:
        assert time.monotonic() < deadline, "the recovery point stays behind"
        time.sleep(0.01)
    log.close()


# --- steps that fail half-way -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("step", ["a failed append", "a takeover"])
def test_a_sync_that_fails_while_something_is_cut_back_poisons(path: str, step: str) -> None:
    """What was appended before may be lost with it, and the next sync would report success."""
    log, other = open_log(path), open_log(path, durability="group")
    log.append([b"durable"])
    other.flush()
    log.append([b"lost"])
    if step == "a takeover":
        oscalls.inject("ftruncate", errno=5, nth=1)
    oscalls.inject("pwrite", errno=28)
    oscalls.inject("fdatasync", errno=5)
    with pytest.raises(fastlog.StorageFullError):
        log.append([b"fails"])
    if step == "a takeover":
        with pytest.raises(fastlog.StorageError):
            log.append([b"takes over"])
    oscalls.clear()
    with pytest.raises(fastlog.StorageError):
        other.flush()
    assert other.durable_offset == 1
    with pytest.raises(fastlog.StorageError):
        log.append([b"more"])
    for handle in (log, other):
        handle.close()


@pytest.mark.parametrize("is_stuck", [False, True], ids=["once", "and nothing can be removed"])
@pytest.mark.parametrize("call", ["open", "fstat", "mmap", "ftruncate"])
def test_a_roll_that_fails_at_any_step(folder: Path, call: str, is_stuck: bool) -> None:
    """The old segment stays the active one, for everybody; what the roll has left behind is in nobody's way."""
    failures = 0
    for nth in range(1, 20):
        log = open_log(str(folder / f"events-{nth}"))
        log.append_batch(transactional())
        oscalls.set_clock(1)
        log.end_transaction(7, 0, commit=False)
        oscalls.set_clock(None)
        for timestamp in range(2, 15):
            # rising, so that closing the segment forces a last time entry
            log.append([VALUE], timestamps=timestamp)
        oscalls.inject(call, errno=5, nth=nth)
        if is_stuck:
            oscalls.inject("unlink", errno=5, sticky=True)
        try:
            log.append([VALUE] * 4, timestamps=100)
        except fastlog.StorageError:
            failures += 1
        oscalls.clear()
        log.append([b"fits"], timestamps=101)
        with open_log(log.path) as other:
            assert sum(1 for _ in other.records()) == other.end_offset - 2
            other.append([b"fits, too"])
            fill(log, 3)
            for handle in (log, other):
                assert sum(1 for _ in handle.records()) == log.end_offset - 2
        log.close()
        with open_log(log.path) as log:
            assert log.recovery is None
            assert log.verify().ok
            assert sum(1 for _ in log.records()) == log.end_offset - 2
    assert failures


def test_a_roll_that_ends_between_the_indexes_and_its_publication(path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The old segment's last time entry is written then, and cut off again: nobody may count it."""
    log = open_log(path)
    for timestamp in range(14):
        # the last two are so small that only one of them gets an entry of its own
        log.append([VALUE if timestamp < 12 else b"small"], timestamps=timestamp)

    def fail() -> int:
        raise MemoryError

    with monkeypatch.context() as patched:
        patched.setattr(oscalls, "wall_clock", fail)
        with pytest.raises(MemoryError):
            log.append([VALUE] * 4, timestamps=100)
    log.append([b"fits"], timestamps=101)
    with open_log(path) as other:
        other.append([b"fits, too"], timestamps=102)
        for handle in (log, other):
            times = (0, 13, 14, 101, 102, 103)
            assert [handle.offset_for_time(timestamp) for timestamp in times] == [0, 13, 14, 14, 15, None]
            assert sum(1 for _ in handle.records()) == 16
    log.close()
    with open_log(path) as log:
        assert log.recovery is None
        assert log.verify().ok


@pytest.mark.parametrize("damage", ["gone", "another file"])
def test_I7_indexes_are_hints_while_the_log_is_open(path: str, damage: str) -> None:
    log = open_log(path)
    for _ in range(10):
        log.append([b"y" * 300])
    for name in Path(path).glob("*index"):
        name.unlink()
        if damage == "another file":
            name.write_bytes(b"")
    other, reader = open_log(path), open_log(path, read_only=True)
    assert sum(1 for _ in reader.records()) == 10
    for handle in (other, log) * 10:
        handle.append([b"y" * 300])
    for handle in (other, reader, log):
        assert handle.get(20).value == b"y" * 300
        assert handle.offset_for_time(0) == 0
    fill(other, 3)
    for handle in (reader, log, other):
        assert sum(1 for _ in handle.records()) == other.end_offset
        handle.close()
    with open_log(path) as log:
        assert log.recovery is None
        assert log.verify().ok


def test_a_clean_marker_that_did_not_agree_is_gone(path: str) -> None:
    with open_log(path) as log:
        log.append([b"1", b"2"])
    (Path(path) / files.POISONED).write_bytes(files.sealed({"reason": "a test"}))
    log = open_log(path)
    assert log.recovery is not None
    log.append([b"3"])
    assert not (Path(path) / files.CLEAN).exists()
    log.close()


# --- a process that is frozen -----------------------------------------------------------------------------------------


def test_I4_readers_go_on_while_the_sync_owner_is_frozen(path: str, puppets: Callable[[str], Puppet]) -> None:
    frozen = puppets("frozen")
    with open_log(path) as writer, open_log(path, durability="group", read_only=True) as reader:
        frozen.do("log = fastlog.PartitionLog.open(path)", path=path)
        frozen.do("log.append([b'1'])")
        frozen.do("oscalls.arm('sync.locked', 'stop')")
        frozen.begin("log.append([b'2'])", expression=True)
        frozen.child.wait_until_stopped()
        begun = time.monotonic()
        assert not reader.wait(1, timeout=0.1)
        assert time.monotonic() - begun < 1 * SLOWNESS
        begun = time.monotonic()
        assert reader.read(1).next_offset == 1
        assert [record.value for record in reader.records()] == [b"1"]
        assert time.monotonic() - begun < 5 * SLOWNESS
        assert writer.append([b"3"]) == 2
        with open_log(path, durability="group", config=replace(SMALL, lock_timeout=0.2)) as group:
            with pytest.raises(fastlog.LockedError, match="is there") as caught:
                group.append([b"4"])
            assert caught.value.pid == frozen.pid
            assert group.end_offset == 4
            frozen.signal(signal.SIGCONT)
            assert frozen.result() == 1
            assert reader.wait(3, timeout=30)
