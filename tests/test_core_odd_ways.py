"""Ways through the compiled core that users seldom take: locks that others hold, limits of the machine, odd bytes."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import fcntl
import logging
import mmap
import os
import resource
import shutil
import signal
import struct
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import fastlog
from fastlog._core import encode_batch, mark_deleted
from fastlog._native import control, oscalls
from fastlog._native.inspect import decode
from fastlog._native.producers import ProducerStates
from fastlog._native.scanner import compare_indexes, scan
from fastlog._native.transactions import aborted_ranges, pack_entries
from fastlog.errors import (
    CorruptLogError,
    CorruptRecordError,
    InvalidRecordError,
    LockedError,
    OutOfOrderSequenceError,
    RecordTooLargeError,
    StorageError,
    StorageFullError,
    UnknownTopicError,
)
from tests.foreign import write_foreign_log
from tests.reference import batch as reference
from tests.reference.batch import Batch, Record, make_batch, seal
from tests.reference.varint import write_varint
from tests.strategies import SOME_TIME

SMALL: dict[str, Any] = {"segment_bytes": 10_000, "max_message_bytes": 5_000, "index_interval_bytes": 100}
FIRST = f"{0:020d}.log"
PAGE = ".fastlog-control"
META = ".fastlog-meta"


def open_log(folder: Path, durability: str = "os", read_only: bool = False, **config: Any) -> Any:
    options = fastlog.LogConfig(**{**SMALL, **config})
    return fastlog.PartitionLog.open(folder / "events-0", durability=durability, read_only=read_only, config=options)


def fill(log: Any, segments: int) -> None:
    while len(log.segments()) < segments:
        log.append([b"v" * 900] * 2, timestamps=SOME_TIME)


@contextlib.contextmanager
def locked(path: Path) -> Iterator[None]:
    """As if another process had taken the ``flock`` of a file, and did not go on."""
    fd = os.open(path, os.O_RDONLY)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX)
        yield
    finally:
        os.close(fd)


@contextlib.contextmanager
def limited(kind: int, most: int) -> Iterator[None]:
    """A limit of this process."""
    before = resource.getrlimit(kind)
    resource.setrlimit(kind, (most, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(kind, before)


@pytest.fixture
def threads() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(4) as pool:
        yield pool


def soon(condition: Callable[[], bool]) -> None:
    """Wait for what another thread is about to do."""
    end = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.002)


def calls_follow(call: str, more: int) -> Callable[[], bool]:
    """Whether so many system calls were made since: somebody tries again and again."""
    before = oscalls.call_counts()[call]
    return lambda: oscalls.call_counts()[call] >= before + more


# --- locks that somebody holds --------------------------------------------------------------------------------------


def test_a_lock_that_cannot_be_asked_for_while_it_is_waited_for(folder: Path) -> None:
    """Somebody else has it at first; then the system call fails."""
    with open_log(folder) as log:
        log.append([b"1"])
        with locked(folder / "events-0" / PAGE):
            oscalls.inject("flock", errno=errno.EIO, nth=2, sticky=True)
            with pytest.raises(StorageError, match=r"could not lock .*/\.fastlog-control") as caught:
                log.append([b"2"])
            oscalls.clear()
        assert caught.value.errno == errno.EIO
        assert log.append([b"2"]) == 1


def test_a_thread_that_waits_for_another_of_its_process(folder: Path, threads: ThreadPoolExecutor) -> None:
    """The other one waits for a process that holds the lock; it goes on when that does."""
    with open_log(folder, lock_timeout="20s") as log:
        with locked(folder / "events-0" / PAGE):
            waits = calls_follow("flock", 20)
            first = threads.submit(log.append, [b"1"])
            soon(waits)
            log.reconfigure(fastlog.LogConfig(**SMALL, lock_timeout=0.03))
            with pytest.raises(
                LockedError, match=r"is writing for more than lock_timeout=0\.03 s.*nothing was written"
            ):
                log.append([b"2"])
            assert not first.done()
        assert first.result(10) == 0
        assert log.append([b"2"]) == 1


def test_two_threads_that_close_a_log_at_once(folder: Path, threads: ThreadPoolExecutor) -> None:
    log = open_log(folder)
    log.append([b"1"])
    with locked(folder / "events-0" / META):
        waits = calls_follow("flock", 5)
        closing = [threads.submit(log.close) for _ in range(2)]
        soon(waits)
        assert not any(future.done() for future in closing)
    assert [future.result(10) for future in closing] == [None, None]
    assert log.closed
    with open_log(folder) as again:
        assert again.recovery is None
        assert again.end_offset == 1


def test_maintenance_is_done_by_one_thread_at_a_time(folder: Path, threads: ThreadPoolExecutor) -> None:
    with open_log(folder, retention_bytes=10_000) as log:
        fill(log, 4)
        log.flush()
        with locked(folder / "events-0" / META):
            waits = calls_follow("flock", 5)
            first = threads.submit(log.maintain)
            soon(waits)
            second = log.maintain()
            assert (second.retention.segments_deleted, second.compaction) == (0, None)
            assert second.retention.start_offset == log.start_offset == 0
        assert first.result(10).retention.segments_deleted > 0
        assert log.start_offset > 0


def test_maintenance_is_done_by_one_handle_at_a_time(folder: Path, threads: ThreadPoolExecutor) -> None:
    with open_log(folder, retention_bytes=10_000) as log, open_log(folder, retention_bytes=10_000) as other:
        fill(log, 4)
        log.flush()
        with locked(folder / "events-0" / META):
            waits = calls_follow("flock", 5)
            first = threads.submit(log.maintain)
            soon(waits)
            second = other.maintain()
            assert (second.retention.segments_deleted, second.retention.start_offset) == (0, 0)
        deleted = first.result(10).retention
        assert deleted.segments_deleted > 0
        assert other.start_offset == deleted.start_offset
        assert other.maintain().retention.segments_deleted == 0


def test_maintenance_whose_lock_cannot_be_asked_for(folder: Path) -> None:
    with open_log(folder) as log:
        log.append([b"1"])
        oscalls.inject("fcntl", errno=errno.ENOLCK)
        with pytest.raises(StorageError, match=r"could not lock .*/\.fastlog-control") as caught:
            log.maintain()
        oscalls.clear()
        assert caught.value.errno == errno.ENOLCK
        assert log.maintain().compaction is None


def test_whoever_comes_second_finds_faults_of_the_system(folder: Path) -> None:
    """It is told which file it is about, and whoever was there first goes on."""
    with open_log(folder) as first:
        first.append([b"1"])
        told = set()
        for call, code in (("open", errno.EACCES), ("fcntl", errno.ENOLCK)):
            for nth in range(1, 30):
                oscalls.inject(call, errno=code, nth=nth)
                try:
                    open_log(folder).close()
                except StorageError as error:
                    assert error.errno == code
                    told.add(str(error))
                else:
                    break
                finally:
                    oscalls.clear()
            assert 1 < nth < 29
        page = folder / "events-0" / PAGE
        assert f"could not open {page}: Permission denied (errno {errno.EACCES})" in told
        assert f"could not examine the locks of {page}: No locks available (errno {errno.ENOLCK})" in told
        assert first.append([b"2"]) == 1


def test_a_byte_that_another_open_file_has_locked(folder: Path) -> None:
    path = folder / "locks"
    path.write_bytes(b"12345678")
    first, second = (oscalls.Descriptor(oscalls.open_file(str(path), writable=True)) for _ in range(2))
    assert oscalls.lock_byte(first.fd, 3, str(path))
    assert not oscalls.lock_byte(second.fd, 3, str(path))
    assert oscalls.lock_byte(second.fd, 4, str(path))
    assert oscalls.free_bytes(second.fd, [2, 3, 4], str(path)) == [2, 4]


def test_a_deletion_before_closed_segments_are_synced(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    """What was durable ended with the first segment; now the log begins, and is durable, where the second one does."""
    with open_log(folder, lock_timeout=0.05) as log:
        while len(log.segments()) == 1:
            log.flush()
            with locked(folder / "events-0" / META):
                log.append([b"v" * 900], timestamps=SOME_TIME)
                if len(log.segments()) == 2:
                    with caplog.at_level(logging.WARNING, logger="fastlog"):
                        soon(lambda: "are not synced yet: " in caplog.text)
        boundary = log.segments()[1].base_offset
        assert log.durable_offset == boundary
        assert log.delete_records(before=boundary) == boundary
        assert (log.start_offset, log.durable_offset, log.end_offset) == (boundary, boundary, boundary + 1)
        assert [segment.base_offset for segment in log.segments()] == [boundary]
        log.flush()
        assert log.durable_offset == boundary + 1
        assert log.verify().ok
    with open_log(folder) as log:
        assert (log.start_offset, log.end_offset) == (boundary, boundary + 1)


# --- a reader without company ---------------------------------------------------------------------------------------


def test_a_lone_reader_whose_partition_is_deleted(folder: Path) -> None:
    with open_log(folder) as log:
        log.append([b"1"])
    with open_log(folder, read_only=True) as reader:
        batch = reader.read(0)
        shutil.rmtree(folder / "events-0")
        time.sleep(0.01)  # it does not look each time
        with pytest.raises(UnknownTopicError, match="was deleted with its topic while it was open"):
            reader.read(1)
        assert batch.values.to_list() == [b"1"]


def test_a_lone_reader_does_not_wait_for_a_recovery(folder: Path) -> None:
    with open_log(folder) as log:
        log.append([b"1"])
    with open_log(folder, read_only=True) as reader:
        assert reader.read(0).next_offset == 1
        (folder / "events-0" / "something-new").touch()
        with locked(folder / "events-0"):
            time.sleep(0.01)
            begun = time.monotonic()
            assert len(reader.read(1)) == 0
            assert time.monotonic() - begun < 5
        with open_log(folder) as writer:
            writer.append([b"2"])
            time.sleep(0.01)
            assert reader.read(1).values.to_list() == [b"2"]


# --- files that somebody else removed or replaced -------------------------------------------------------------------


def test_a_control_file_of_another_version(folder: Path) -> None:
    """Nothing is told of it, and whoever deletes the partition does not touch it."""
    partition = folder / "events-0"
    with open_log(folder) as log:
        log.append([b"1"])
        content = bytearray((partition / PAGE).read_bytes())
        told = control.describe(str(partition))
        assert told is not None
        assert told["end_offset"] == 1
    content[8:12] = struct.pack("=i", 77)
    (partition / PAGE).write_bytes(content)
    assert control.describe(str(partition)) is None
    assert not mark_deleted(str(partition), 1000)
    assert (partition / PAGE).read_bytes() == content
    with open_log(folder) as log:
        assert log.end_offset == 1


def test_a_second_handle_finds_no_active_segment(folder: Path) -> None:
    with open_log(folder) as first:
        first.append([b"1"])
        segment = folder / "events-0" / FIRST
        segment.rename(folder / "aside")
        with pytest.raises(StorageError, match="while it was listed: something is wrong with its segments"):
            open_log(folder)
        (folder / "aside").rename(segment)
        with open_log(folder) as second:
            assert second.append([b"2"]) == 1


def test_a_segment_that_was_replaced_by_a_copy(folder: Path) -> None:
    """What was appended to the other file is not said to be durable by a sync of this one."""
    with open_log(folder) as log:
        log.append([b"1"])
        segment = folder / "events-0" / FIRST
        segment.rename(folder / "aside")
        shutil.copyfile(folder / "aside", segment)
        with pytest.raises(StorageError, match="was replaced by another file while the log was open"):
            log.flush()
        assert log.durable_offset == 0
        (folder / "aside").rename(segment)


def test_the_index_of_aborted_transactions_is_written_again(folder: Path) -> None:
    """Somebody removed the file of a closed segment while the log was open."""
    with open_log(folder) as log:
        log.append_batch(
            encode_batch([b"taken back"], producer_id=5, producer_epoch=0, base_sequence=0, transactional=True)
        )
        log.end_transaction(5, 0, commit=False)
        fill(log, 3)
        index = folder / "events-0" / f"{0:020d}.txnindex"
        content = index.read_bytes()
        assert content
        index.unlink()
    assert index.read_bytes() == content
    with open_log(folder) as log:
        assert log.recovery is None
        assert b"taken back" not in [bytes(record.value) for record in log.records()]


def cut_index(folder: Path) -> None:
    for index in (folder / "events-0").glob("*.index"):
        os.truncate(index, 0)


def fail_to_read(_: Path) -> None:
    oscalls.inject("pread", errno=errno.EIO)


@pytest.mark.parametrize("fault", [cut_index, fail_to_read])
def test_an_index_that_cannot_be_followed_is_done_without(folder: Path, fault: Callable[[Path], None]) -> None:
    with open_log(folder, mmap=False) as writer, open_log(folder, mmap=False, read_only=True) as reader:
        for number in range(4):
            writer.append([b"%d" % number * 100], timestamps=SOME_TIME)
        assert reader.read(2).values[0] == b"2" * 100
        for number in range(4, 8):
            writer.append([b"%d" % number * 100], timestamps=SOME_TIME)
        fault(folder)
        try:
            assert reader.read(6).values[0] == b"6" * 100
        finally:
            oscalls.clear()
        assert [bytes(record.value)[:1] for record in reader.records()] == [b"%d" % number for number in range(8)]


def test_an_index_that_cannot_be_read_is_rebuilt_or_done_without(
    folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Whatever the first fault hits: nothing that was appended is lost, and the next try succeeds."""
    with open_log(folder, mmap=False) as writer:
        for number in range(6):
            writer.append([b"%d" % number * 100], timestamps=SOME_TIME)
        with caplog.at_level(logging.WARNING, logger="fastlog"):
            for nth in range(1, 10):
                with open_log(folder, mmap=False, read_only=True) as reader:
                    oscalls.inject("pread", errno=errno.EIO, nth=nth)
                    try:
                        assert reader.read(5).values[0] == b"5" * 100
                    except StorageError as error:
                        assert error.errno == errno.EIO
                    finally:
                        oscalls.clear()
                    assert reader.read(5).values[0] == b"5" * 100
        assert "are not used until they are rebuilt: could not read" in caplog.text


# --- limits of the machine ------------------------------------------------------------------------------------------


def test_a_limit_on_the_size_of_files(folder: Path) -> None:
    with open_log(folder, segment_bytes=1 << 20, max_message_bytes=1 << 20) as log:
        log.append([b"first"])
        size = (folder / "events-0" / FIRST).stat().st_size
        with limited(resource.RLIMIT_FSIZE, 100_000):
            with pytest.raises(StorageFullError, match="raise the limit") as caught:
                log.append([b"x" * 40_000] * 5)
            assert caught.value.errno == errno.EFBIG
            assert log.end_offset == 1
        assert log.append([b"x" * 40_000] * 5) == 1
        assert log.verify().ok
        assert log.segments()[0].size > size + 200_000


def test_no_more_descriptors(folder: Path) -> None:
    one, other = oscalls.open_pipe()
    with limited(resource.RLIMIT_NOFILE, 1):
        with pytest.raises(StorageError, match="could not open a pipe") as caught:
            oscalls.open_pipe()
        assert caught.value.errno == errno.EMFILE
        with pytest.raises(StorageError, match="could not wait for files") as caught:
            oscalls.wait_for_files([one, other], 0)
        assert caught.value.errno == errno.EINVAL
    oscalls.fill_pipe(other)
    assert oscalls.wait_for_files([one], 10_000) == [one]


def test_a_signal_ends_the_wait_for_files() -> None:
    end, other = oscalls.open_pipe()
    main, is_over = threading.main_thread().ident, threading.Event()
    assert main is not None
    heard: list[int] = []
    before = signal.signal(signal.SIGUSR1, lambda number, _: heard.append(number))

    def tell() -> None:
        while not is_over.wait(0.02):
            signal.pthread_kill(main, signal.SIGUSR1)

    thread = threading.Thread(target=tell)
    thread.start()
    try:
        begun = time.monotonic()
        assert oscalls.wait_for_files([end], 20_000) == []
        assert time.monotonic() - begun < 10
    finally:
        is_over.set()
        thread.join()
        signal.signal(signal.SIGUSR1, before)
    assert signal.SIGUSR1 in heard
    del other


def test_a_file_that_may_not_be_written_is_not_cut(folder: Path) -> None:
    path = folder / "file"
    path.write_bytes(b"content")
    file = oscalls.Descriptor(oscalls.open_file(str(path)))
    with pytest.raises(StorageError, match=str(path)) as caught:
        oscalls.truncate(file.fd, 3, str(path))
    assert caught.value.errno == errno.EINVAL
    assert path.read_bytes() == b"content"


@pytest.mark.skipif(sys.platform != "linux", reason="a file system that cannot be synced is needed")
def test_a_folder_that_cannot_be_synced() -> None:
    with pytest.raises(StorageError, match="could not sync /proc/self: ") as caught:
        oscalls.sync_directory("/proc/self")
    assert caught.value.errno == errno.EINVAL


@pytest.mark.skipif(
    struct.calcsize("P") < 8 or "FASTLOG_SANITIZED" in os.environ, reason="wants gigabytes that are never touched"
)
def test_more_than_two_gigabytes() -> None:
    """Nobody looks at them: they are refused by their size."""
    huge = bytes(1 << 31)
    with pytest.raises(InvalidRecordError, match=r"headers has a header of 2147483648 bytes; 2147483647 are the most"):
        encode_batch([b"v"], headers={"h": huge})
    del huge
    with pytest.raises(
        RecordTooLargeError, match="1 records take more than the 2147483647 bytes that one batch can hold"
    ):
        encode_batch([bytes((1 << 31) - 60)])


# --- memory that is short -------------------------------------------------------------------------------------------


LARGEST_FREE = 64 << 10


@contextlib.contextmanager
def memory(more: int) -> Iterator[None]:
    """Room for so many bytes beside what this process has, and no other: also what malloc has kept of earlier tests in
    large pieces is taken.
    """
    library = ctypes.CDLL(None)
    library.malloc.restype, library.malloc.argtypes = ctypes.c_void_p, [ctypes.c_size_t]
    library.free.restype, library.free.argtypes = None, [ctypes.c_void_p]
    taken = []
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    try:
        with limited(resource.RLIMIT_AS, pages * mmap.PAGESIZE):
            size = 1 << 30
            while size >= LARGEST_FREE:
                piece = library.malloc(size)
                if piece is None:
                    size //= 2
                else:
                    taken.append(piece)
        with limited(resource.RLIMIT_AS, pages * mmap.PAGESIZE + more):
            yield
    finally:
        for piece in taken:
            library.free(piece)


BOMB = 96 << 20
ROOM = 48 << 20
ROOMY: dict[str, Any] = {"max_decompressed_bytes": 1 << 30}
limits_memory = pytest.mark.skipif(
    sys.platform != "linux" or "FASTLOG_SANITIZED" in os.environ, reason="limits its address space by what /proc says"
)


@limits_memory
def test_a_record_for_which_there_is_no_memory(folder: Path) -> None:
    """A small batch that gets large: whoever meets it is told, and everything else can be read and appended."""
    bomb = encode_batch([b"v", bytes(BOMB)], timestamps=SOME_TIME, compression="zstd")
    with open_log(folder, **ROOMY, max_message_bytes=1 << 20, segment_bytes=1 << 20) as log:
        with memory(ROOM), pytest.raises(MemoryError):
            log.append_batch(bomb)
        assert log.end_offset == 0
        log.append_batch(bomb)
        log.append([b"next"], timestamps=SOME_TIME + 1)
        with memory(ROOM):
            with pytest.raises(MemoryError, match=f"no memory left to read .*{FIRST}"):
                log.offset_for_time(SOME_TIME)
            with pytest.raises(MemoryError):
                log.read(0)
            with pytest.raises(MemoryError):
                decode(bomb, max_decompressed_bytes=1 << 30)
            assert log.read(2).values.to_list() == [b"next"]
        assert log.offset_for_time(SOME_TIME) == 0


@limits_memory
def test_a_call_for_which_there_is_no_memory() -> None:
    large = bytes(BOMB)
    end, other = oscalls.open_pipe()
    many = [end] * (BOMB // 8)
    entries = pack_entries([(7, 0, 9, 10)]) * (1 << 21)
    with memory(ROOM):
        with pytest.raises(MemoryError):
            decode(large)
        with pytest.raises(MemoryError, match=r"no memory left .*; nothing was written"):
            encode_batch([large], compression="gzip")
        with pytest.raises(MemoryError):
            oscalls.wait_for_files(many, 0)
        assert oscalls.wait_for_files([end], 0) == []
    with memory(ROOM // 8), pytest.raises(MemoryError):
        aborted_ranges([entries], 0, 100)
    del other


@limits_memory
def test_producers_for_whom_there_is_no_memory() -> None:
    """However much is missing: what the log knows of its producers is what it was."""
    count = 1 << 18
    template = reference.encode_batch(replace(plain(0), producer_id=0, producer_epoch=0, base_sequence=0))
    place = reference.HEADER_SIZE - 18  # of the producer's id; behind it are epoch, sequence, and count
    batches = b"".join(template[:place] + struct.pack(">q", number) + template[place + 8 :] for number in range(count))
    refused = 0
    states = ProducerStates()
    known = states.snapshot()
    for more in range(16, 1024, 16):
        try:
            with memory(more << 20):
                assert states.check_append(batches) is None
            break
        except MemoryError:
            refused += 1
            assert states.snapshot() == known
    assert refused > 1
    with memory(16 << 20), pytest.raises(MemoryError):
        ProducerStates().append(batches)
    states.append(batches)
    newcomer = reference.encode_batch(replace(plain(1), producer_id=count, producer_epoch=0, base_sequence=0))
    with memory(16 << 20), pytest.raises(MemoryError):
        states.check_append(newcomer)
    assert len(states.producer_ids()) == count
    assert states.check_append(newcomer) is None


# --- odd bytes ------------------------------------------------------------------------------------------------------


def plain(offset: int, count: int = 1) -> Batch:
    return make_batch([Record(offset + i, SOME_TIME, None, b"plain") for i in range(count)])


@pytest.mark.parametrize(
    "delta",
    [b"\xff" * 10 + b"\x01", b"\xff" * 9 + b"\x02", b"\xff" * 9],
    ids=["eleven bytes", "more than 64 bits", "cut off"],
)
def test_a_timestamp_that_is_no_varint(delta: bytes) -> None:
    body = b"\0" + delta
    if len(delta) > 9:
        body += b"\0\x01\x01\0"
    area = write_varint(len(body)) + body
    with pytest.raises(CorruptRecordError, match="timestamp"):
        decode(seal(plain(0), area))


def test_a_damaged_batch_of_control_is_told_by_its_checksum() -> None:
    content = bytearray(seal(replace(plain(0, 2), attributes=reference.CONTROL), b"\0" * 20))
    with pytest.raises(CorruptRecordError, match="control"):
        decode(bytes(content))
    content[-1] ^= 1
    with pytest.raises(CorruptRecordError, match="CRC|checksum"):
        decode(bytes(content))


def test_producers_are_told_of_what_is_no_batch_and_no_marker() -> None:
    states = ProducerStates()
    with pytest.raises(CorruptRecordError, match="batch 0 at position 0 of the append.*nothing was written"):
        states.check_append(b"\0" * 61)
    unknown = replace(
        make_batch([Record(0, SOME_TIME, struct.pack(">hh", 0, 2), b"")]),
        attributes=reference.TRANSACTIONAL | reference.CONTROL,
        producer_id=7,
        producer_epoch=0,
    )
    broken = replace(unknown, records=(Record(0, SOME_TIME, b"\0", b""),))
    assert states.check_append(reference.encode_batch(unknown)) is None  # a kind of marker that a later Kafka may write
    with pytest.raises(CorruptRecordError, match="batch 0 at position 0 of the append.*nothing was written"):
        states.check_append(reference.encode_batch(broken))


def test_a_batch_that_has_a_producer_and_no_sequence() -> None:
    """What is in a log is not judged, but what follows is."""
    states = ProducerStates()
    unnumbered = replace(plain(0), producer_id=7, producer_epoch=0, base_sequence=-1)
    states.append(reference.encode_batch(unnumbered))
    with pytest.raises(OutOfOrderSequenceError, match="starts at sequence 5, expected 0: "):
        states.check_append(reference.encode_batch(replace(plain(1), producer_id=7, producer_epoch=0, base_sequence=5)))
    following = reference.encode_batch(replace(plain(1), producer_id=7, producer_epoch=0, base_sequence=0))
    assert states.check_append(following) is None


def test_producers_of_a_file_whose_end_is_damaged(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = folder / FIRST
    sent = [encode_batch([b"v"], producer_id=7, producer_epoch=0, base_sequence=number) for number in range(3)]
    content = bytearray(b"".join(struct.pack(">q", number) + batch[8:] for number, batch in enumerate(sent)))
    content[-1] ^= 1
    path.write_bytes(content)
    states = ProducerStates()
    with caplog.at_level(logging.WARNING, logger="fastlog"):
        assert states.replay(str(path), 0, len(content), 3) == 1
    assert (states.end_offset, states.position) == (2, len(content))
    assert "what it said of producers and transactions is not known" in caplog.text


BEGINS_NO_BATCH = (
    b"\xff" * ((1 << 20) - 20) + b"\x02" + b"\xff" * (1 << 20)
)  # looked for by the byte, at the end of what is read at once


@pytest.mark.parametrize(
    "damage", [b"", bytes(3 << 20), BEGINS_NO_BATCH], ids=["a bit", "zeros", "what begins no batch"]
)
def test_a_scan_goes_on_behind_damage_or_says_why_not(folder: Path, damage: bytes) -> None:
    """Each read fails once: an error, and never another result."""
    batches = [reference.encode_batch(make_batch([Record(i, SOME_TIME, None, b"x" * 700_000)])) for i in range(6)]
    content = bytearray(b"".join(batches))
    if damage:
        content[len(batches[0]) :] = damage
    else:
        content[len(batches[0]) + 1000] ^= 1
    path = folder / FIRST
    path.write_bytes(content)
    whole = scan(str(path), 0, len(content), 0, False, -1, False)
    assert (whole.batches, whole.resume_offset) == (1, -1 if damage else 2)
    assert whole.is_all_zero == (damage[:1] == b"\0")
    for nth in range(1, 30):
        oscalls.inject("pread", errno=errno.EIO, nth=nth)
        try:
            found = scan(str(path), 0, len(content), 0, False, -1, False)
        except StorageError as error:
            assert error.errno == errno.EIO
        else:
            assert (found.position, found.resumes_at) == (whole.position, whole.resumes_at)
            break
        finally:
            oscalls.clear()
    assert 2 < nth < 29


GOOD = reference.encode_record(Record(0, SOME_TIME, None, b"plain"), 0, SOME_TIME)


@pytest.mark.parametrize(
    ("attributes", "area", "words"),
    [
        (1, b"no gzip at all", "gzip"),
        (0, b"\x02" + GOOD[1:], "length"),
        (0, GOOD + b"\0", "behind|trailing"),
    ],
)
def test_a_search_for_a_time_meets_records_that_are_none(
    folder: Path, attributes: int, area: bytes, words: str
) -> None:
    """The checksum holds: another program wrote it so."""
    wrong = replace(plain(0), attributes=attributes, max_timestamp=SOME_TIME + 1)
    write_foreign_log(folder / "events-0", [seal(wrong, area), plain(1)])
    with open_log(folder) as log:
        with pytest.raises((CorruptRecordError, CorruptLogError), match=words) as caught:
            log.offset_for_time(SOME_TIME + 1)
        assert (caught.value.position, caught.value.next_offset) == (0, 1)
        assert [bytes(record.value) for record in log.records(1)] == [b"plain"]


def test_the_time_of_a_marker_is_nobodys(folder: Path) -> None:
    with open_log(folder) as log:
        batch = encode_batch(
            [b"v"], timestamps=SOME_TIME, producer_id=5, producer_epoch=0, base_sequence=0, transactional=True
        )
        log.append_batch(batch)
        log.end_transaction(5, 0, commit=True)
        assert log.offset_for_time(SOME_TIME) == 0
        assert log.offset_for_time(SOME_TIME + 1) is None
        assert log.end_offset == 2


def test_a_batch_of_another_leader(folder: Path) -> None:
    """No checksum covers the epoch."""
    with open_log(folder) as log:
        log.append([b"1"])
        log.append([b"2"])
    path = folder / "events-0" / FIRST
    content = bytearray(path.read_bytes())
    content[15] ^= 1
    path.write_bytes(content)
    with open_log(folder, read_only=True) as log:
        with pytest.raises(CorruptLogError, match="leader epoch") as caught:
            log.read(0)
        assert caught.value.next_offset == 1
        assert log.read(1).values.to_list() == [b"2"]


def test_a_batch_that_reaches_less_far_than_it_did(folder: Path) -> None:
    """Compaction had taken its last record; then its last offset was changed, which only the checksum would tell."""
    write_foreign_log(folder / "events-0", [replace(plain(0), last_offset=1)])
    with open_log(folder) as log:
        assert (log.end_offset, log.read(1).next_offset) == (2, 2)
        with (folder / "events-0" / FIRST).open("r+b") as file:
            file.seek(26)
            file.write(b"\0")
        with pytest.raises(CorruptLogError, match="the CRC-32C does not match"):
            list(log.records(1))


def test_compaction_of_a_segment_that_begins_with_damage(folder: Path) -> None:
    with open_log(folder, cleanup_policy="compact", min_cleanable_dirty_ratio=0) as log:
        while len(log.segments()) < 2:
            log.append([b"v" * 900], keys=[b"k"], timestamps=SOME_TIME)
    path = folder / "events-0" / FIRST
    with path.open("r+b") as file:
        file.seek(16)
        file.write(b"\x09")
    content = path.read_bytes()
    with open_log(folder, cleanup_policy="compact", min_cleanable_dirty_ratio=0) as log:
        with pytest.raises((CorruptRecordError, CorruptLogError), match=FIRST):
            log.maintain()
        assert log.segments()[0].size == len(content)
    assert path.read_bytes() == content


def test_indexes_are_compared_on_both_sides_of_damage(folder: Path) -> None:
    with open_log(folder) as log:
        for number in range(6):
            log.append([b"%d" % number * 100], timestamps=SOME_TIME)
    path = folder / "events-0" / FIRST
    content = bytearray(path.read_bytes())
    content[len(content) // 2 : len(content) // 2 + 70] = b"\xff" * 70
    path.write_bytes(content)
    offsets, times = (path.with_suffix(suffix).read_bytes() for suffix in (".index", ".timeindex"))
    assert offsets
    about_offsets, about_times = compare_indexes(str(path), len(content), offsets, times, 0, False)
    assert about_offsets is not None
    assert about_times is None


# --- arrays of broken producers -------------------------------------------------------------------------------------


def test_arrays_without_the_buffers_of_their_type(folder: Path) -> None:
    pa = pytest.importorskip("pyarrow")
    from tests.test_arrow import OneShot, release_nothing, struct_of

    def without(array: Any, number: int) -> OneShot:
        producer = OneShot(array)
        found = struct_of(producer)
        release_nothing(found)
        ctypes.c_void_p.from_address(found.buffers + number * ctypes.sizeof(ctypes.c_void_p)).value = None
        return producer

    with open_log(folder) as log:
        with pytest.raises(InvalidRecordError, match="has 2 entries but no buffer for them"):
            log.append(without(pa.array([b"a", b"b"]), 1))
        with pytest.raises(InvalidRecordError, match="entry 0 of the Arrow array lies outside its buffers"):
            log.append(without(pa.array([b"longer than twelve bytes"], pa.binary_view()), 3))
        with pytest.raises(InvalidRecordError, match="timestamps: the Arrow array has no buffer of values"):
            log.append([b"a"], timestamps=without(pa.array([SOME_TIME]), 1))
        assert log.end_offset == 0


# --- where nothing is left ------------------------------------------------------------------------------------------


def test_a_log_whose_last_records_compaction_has_taken(folder: Path) -> None:
    """Kafka has rolled to a segment in which there is nothing yet, then compacted: nothing lies before the end."""
    partition = folder / "events-0"
    write_foreign_log(partition, [plain(0)])
    write_foreign_log(partition, [], 10)
    with open_log(folder) as log:
        assert (log.start_offset, log.end_offset) == (0, 10)
        assert [record.offset for record in log.records()] == [0]
        batch = log.read(1)
        assert (len(batch), batch.next_offset) == (0, 10)
        replay = log.replay(0)
        assert [found.values() for found in replay] == [[b"plain"]]
        assert replay.next_offset == 10
        assert log.append([b"next"]) == 10
        assert next(replay).values() == [b"next"]


def test_a_replay_after_a_sync_that_failed(folder: Path) -> None:
    """It ends at what is durable: what lies behind may be gone after the next opening."""
    log = open_log(folder)
    log.append([b"durable"])
    log.flush()
    log.append([b"perhaps"])
    oscalls.inject("fdatasync", errno=errno.EIO, sticky=True)
    with pytest.raises(StorageError):
        log.flush()
    oscalls.clear()
    replay = log.replay(0)
    assert [batch.values() for batch in replay] == [[b"durable"]]
    assert replay.next_offset == 1
    log.close()


# --- intervals and deliveries ---------------------------------------------------------------------------------------


def test_whoever_waits_keeps_the_interval_of_others(folder: Path) -> None:
    with open_log(folder) as first, open_log(folder, durability="interval", flush_interval=0.02) as second:
        assert not first.wait(0, 0.001)
        assert second.append([b"1"]) == 0
        assert first.wait(0, 10)
        soon(lambda: bool(first.durable_offset == 1))


class CannotBeCopied(Exception):
    def __init__(self, one: str, two: str) -> None:
        super().__init__(one + two)


class LosesItsNotes(Exception):
    def __reduce__(self) -> tuple[type[Exception], tuple[object, ...]]:
        return type(self), self.args


@pytest.mark.parametrize(
    "error", [CannotBeCopied("nobody ", "knows"), LosesItsNotes("nobody knows"), ValueError("nobody knows")], ids=repr
)
def test_an_odd_error_reaches_whoever_asks(folder: Path, monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    error.add_note("nobody asked")
    with fastlog.open(folder / "store", durability="os") as store:
        store.create_topic("orders")
        producer = store.producer(linger="10s")
        delivery = producer.send("orders", b"1")

        def broken(*_: object) -> None:
            raise error

        monkeypatch.setattr("fastlog.clients.producer.DirectoryCatalog.version", broken)
        with pytest.raises(type(error), match="nobody knows"):
            producer.flush()
        monkeypatch.undo()
        found = delivery.exception(5)
        assert type(found) is type(error)
        assert found is not None
        assert found.__notes__ == ["nobody asked"]
        producer.close()


def test_who_only_wants_to_be_woken_is_told_at_once_of_what_is_done(folder: Path) -> None:
    with fastlog.open(folder / "store", durability="os") as store:
        store.create_topic("orders")
        told: list[object] = []
        with store.producer() as producer:
            delivery: Any = producer.send("orders", b"1")
            assert delivery.result(5).offset == 0
            delivery._when_done(told.append)
        assert told == [delivery]


def test_many_records_of_which_two_fill_a_segment(folder: Path) -> None:
    """To the last byte: each append holds two batches, and there is no room for the header of another."""
    with fastlog.open(folder / "store", durability="os") as store:
        topic = store.create_topic("orders", config={"segment.bytes": 10_000, "max.message.bytes": 5_000})
        overhead = len(encode_batch([b"x" * 4900])) - 4900
        values = [b"%d" % number * (5_000 - overhead) for number in range(5)]
        with store.producer(linger="10s") as producer:
            delivery = producer.send_many("orders", values, partition=0)
            producer.flush()
            assert list(delivery.result(5).offsets) == list(range(5))
        log = topic.partition(0)
        assert [segment.size for segment in log.segments()] == [10_000, 10_000, 5_000]
        assert [record.value for record in log.records()] == values
