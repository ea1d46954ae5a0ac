"""Rows 8 to 11, 7, 23 and 25 of the failure catalogue: what the operating system may do to an embedded log.

Faults are injected below the one room that makes system calls; where the kernel can be made to refuse for real
(a small tmpfs, resource limits, missing rights) it is, in a process of its own.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import crc32c
import pytest

import fastlog
from fastlog._native import oscalls  # type: ignore[attr-defined]
from tests.foreign import as_reference, copy_folder, read_all
from tests.reference.batch import Record
from tests.strategies import SOME_TIME
from tests.trials import CONFIG, FULL, SWEEP, WRITES, Trial, fault_was_hit

OpenLog = Callable[..., Any]


def run_python(script: str, *arguments: object, **options: Any) -> subprocess.CompletedProcess[str]:
    """Run a script in a process of its own, with the same import path."""
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join([str(Path(__file__).parent.parent), *filter(None, sys.path)]),
    }
    command = [sys.executable, "-X", "faulthandler", "-c", textwrap.dedent(script), *map(str, arguments)]
    return subprocess.run(command, check=False, capture_output=True, text=True, timeout=120, env=environment, **options)


@pytest.mark.slow
@pytest.mark.parametrize("sticky", [False, True], ids=["once", "sticky"])
@pytest.mark.parametrize(
    ("call", "code"), SWEEP, ids=lambda value: errno.errorcode.get(value, value) if isinstance(value, int) else value
)
def test_I9_every_call_may_fail(folder: Path, call: str, code: int, sticky: bool) -> None:
    met = 0
    nth = 1
    while True:
        trial = Trial(folder / f"events-{nth}", "batch" if nth % 2 else "os")
        before = oscalls.call_counts()
        oscalls.inject(call, errno=code, nth=nth, sticky=sticky)
        trial.live()
        hit = fault_was_hit(call, nth, before)
        met += len(trial.failures)
        if code in FULL and call in WRITES:
            kinds = {type(failure) for failure in trial.failures}
            assert kinds <= {fastlog.StorageFullError, fastlog.StorageError}
            assert not trial.failures or type(trial.failures[0]) is fastlog.StorageFullError
        trial.settle()
        shutil.rmtree(trial.path)
        if not hit:
            break
        nth += 1 if nth < 40 else 7
    assert nth > 1, f"the scenario never calls {call}"
    print(f"{call} {errno.errorcode[code]}: {nth - 1} places, {met} errors")


@pytest.mark.parametrize("error", [errno.EIO, errno.ENOMEM])
def test_I6_bytes_that_cannot_be_read_are_not_taken_for_the_end(folder: Path, error: int) -> None:
    """What lies behind damage decides whether it is a torn tail: who cannot read it may not cut."""
    path = folder / "events-0"
    config = fastlog.LogConfig(max_message_bytes=4 << 20)
    with fastlog.PartitionLog.open(path, durability="os", config=config) as log:
        for size in (10, 2 << 20, 3 << 20, 10):
            log.append([b"x" * size], timestamps=SOME_TIME)
    [segment] = path.glob("*.log")
    content = bytearray(segment.read_bytes())
    content[1 << 20] ^= 1
    for file in path.iterdir():
        file.unlink()
    segment.write_bytes(content)  # as another program has written it: nothing says how much of it is durable
    for nth in range(1, 30):
        before = oscalls.call_counts()
        oscalls.inject("pread", errno=error, nth=nth)
        with pytest.raises((fastlog.StorageError, fastlog.CorruptLogError)) as caught:
            fastlog.PartitionLog.open(path, durability="os", config=config)
        was_hit = fault_was_hit("pread", nth, before)
        oscalls.clear()
        assert segment.read_bytes() == content
        assert [file.name for file in path.glob("*.torn*")] == []
        if not was_hit:
            break
        assert isinstance(caught.value, fastlog.StorageError), nth
    assert nth > 4
    assert "valid batches follow" in str(caught.value)


@pytest.mark.parametrize(("call", "code"), [("open", errno.EMFILE), ("mmap", errno.ENOMEM)])
def test_I9_a_segment_that_could_not_begin_leaves_nothing_open(folder: Path, call: str, code: int) -> None:
    config = fastlog.LogConfig(segment_bytes=2_000, index_interval_bytes=100)
    met = 0
    for nth in range(1, 12):
        path = folder / f"events-{nth}"
        log = fastlog.PartitionLog.open(path, durability="os", config=config)
        oscalls.inject(call, errno=code, nth=nth)
        for number in range(12):
            with contextlib.suppress(fastlog.StorageError):
                log.append([b"x" * 300])
            met += number == 11 and log.end_offset < 12
        oscalls.clear()
        log.close()
        del log
        links = [Path(f"/proc/self/fd/{name}") for name in os.listdir("/proc/self/fd")]
        left = [os.readlink(link) for link in links if link.is_symlink()]
        assert [name for name in left if name.startswith(str(path))] == [], nth
    assert met


@pytest.mark.parametrize("call", ["pread", "pwrite", "pwritev"])
@pytest.mark.parametrize("limit", [1, 2, 7, 60, 61, 4095, 4096])
def test_I9_short_reads_and_writes_are_continued(folder: Path, call: str, limit: int) -> None:
    trial = Trial(folder / "events-0", "os")
    trial.config = fastlog.LogConfig(**CONFIG, mmap=call != "pread")
    oscalls.inject(call, limit_bytes=limit)
    trial.live()
    assert trial.failures == []
    trial.settle()


def test_I9_a_failed_append_leaves_the_file_as_it_was(folder: Path, checked_log: OpenLog) -> None:
    log = checked_log()
    log.append([b"before"], timestamps=SOME_TIME)
    [segment] = Path(log.path).glob("*.log")
    content = segment.read_bytes()
    oscalls.inject("pwrite", limit_bytes=10)
    oscalls.inject("pwritev", errno=errno.ENOSPC)
    with pytest.raises(fastlog.StorageFullError) as caught:
        log.append([b"x" * 10_000], timestamps=SOME_TIME)
    assert caught.value.errno == errno.ENOSPC
    assert caught.value.retriable
    assert str(segment) in str(caught.value)
    oscalls.clear()
    assert log.end_offset == 1
    assert segment.read_bytes() == content
    assert log.append([b"x" * 10_000], timestamps=SOME_TIME) == 1


def test_I1_I9_an_append_that_fails_half_way_leaves_none_of_its_batches(folder: Path) -> None:
    """Whole batches behind the end would come back to life in a recovery."""
    config = fastlog.LogConfig(max_message_bytes=300)
    with fastlog.PartitionLog.open(folder / "events-0", durability="os", config=config) as log:
        log.append([b"before"], timestamps=SOME_TIME)
        [segment] = Path(log.path).glob("*.log")
        content = segment.read_bytes()
        oscalls.inject("pwrite", errno=errno.ENOSPC, nth=3)
        with pytest.raises(fastlog.StorageFullError):
            log.append([b"x" * 100] * 10, timestamps=SOME_TIME)
        oscalls.clear()
        assert segment.read_bytes() == content
        # where even cutting back fails, the next append does it first
        oscalls.inject("pwrite", errno=errno.ENOSPC, nth=3)
        oscalls.inject("ftruncate", errno=errno.EIO)
        with pytest.raises(fastlog.StorageFullError):
            log.append([b"x" * 100] * 10, timestamps=SOME_TIME)
        oscalls.clear()
        assert segment.read_bytes() != content
        assert log.append([b"y"], timestamps=SOME_TIME) == 1
        assert len(segment.read_bytes()) < len(content) + 100
        assert [record.value for record in log.records()] == [b"before", b"y"]
        assert log.verify().ok


def test_I3_a_failed_sync_poisons_until_reopened(folder: Path) -> None:
    path = folder / "events-0"
    log = fastlog.PartitionLog.open(path, durability="batch")
    log.append([b"durable"])
    oscalls.inject("fdatasync", errno=errno.EIO)
    with pytest.raises(fastlog.StorageError) as caught:
        log.append([b"doubtful"])
    assert caught.value.errno == errno.EIO
    oscalls.clear()
    assert log.durable_offset == 1
    assert log.readable_offset == 1
    assert [record.value for record in log.records()] == [b"durable"]
    for action in (lambda: log.append([b"later"]), log.flush):
        with pytest.raises(fastlog.StorageError, match="(?i)open"):
            action()
    assert (path / ".fastlog-poisoned").exists()
    log.close()
    assert not (path / ".fastlog-clean").exists()
    with fastlog.PartitionLog.open(path, durability="batch") as log:
        assert log.recovery is not None, "after a failed sync the disk has to be read again"
        assert log.recovery.scanned_bytes > 0
        assert not (path / ".fastlog-poisoned").exists()
        assert next(log.records()).value == b"durable"
        log.append([b"later"])
        assert log.verify().ok


def test_a_recovery_reads_no_more_than_was_written_since_the_recovery_point(folder: Path) -> None:
    """Which moves with the bytes that were written, too: a fast disk takes much in five seconds."""
    script = """
        import os, sys, fastlog
        log = fastlog.PartitionLog.open(sys.argv[1])
        for _ in range(100):
            log.append([bytes(1_000_000)])
        os._exit(0)
    """
    assert run_python(script, folder / "events-0").returncode == 0
    with fastlog.PartitionLog.open(folder / "events-0") as log:
        assert log.end_offset == 100
        assert log.recovery is not None
        assert 0 < log.recovery.scanned_bytes < (64 << 20) + 2_000_000


def test_I9_a_full_file_system(folder: Path) -> None:
    mounted = folder / "small"
    mounted.mkdir()
    mount = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=400k", "fastlog-test", str(mounted)],
        check=False,
        capture_output=True,
        text=True,
    )
    if mount.returncode:
        pytest.skip(f"a small file system cannot be mounted here: {mount.stderr.strip()}")
    try:
        fill_and_go_on(mounted / "events-0", spare=mounted / "spare")
    finally:
        subprocess.run(["umount", "-l", str(mounted)], check=True)


def fill_and_go_on(path: Path, spare: Path) -> None:
    spare.write_bytes(bytes(50_000))
    values = [b"v" * 900] * 10
    log = fastlog.PartitionLog.open(path, durability="os", config=fastlog.LogConfig(segment_bytes=60_000))
    appended = 0
    with pytest.raises(fastlog.StorageFullError):
        for _ in range(200):
            log.append(values, timestamps=SOME_TIME)
            appended += 10
    assert appended > 100
    for _ in range(3):
        with pytest.raises(fastlog.StorageFullError):
            log.append(values, timestamps=SOME_TIME)
        assert log.end_offset == appended
    assert [record.offset for record in read_all(log)] == list(range(appended))
    assert log.verify().damages == ()
    spare.unlink()
    assert log.append(values, timestamps=SOME_TIME) == appended
    with pytest.raises(fastlog.StorageFullError):
        for _ in range(200):
            log.append(values, timestamps=SOME_TIME)
            appended += 10
    kept = log.end_offset
    assert log.delete_records(before=kept // 2) == kept // 2, "deleting has to work when nothing is left"
    assert log.append(values, timestamps=SOME_TIME) == kept
    log.close()
    with fastlog.PartitionLog.open(path, durability="os") as log:
        assert (log.start_offset, log.end_offset) == (kept // 2, kept + 10)
        assert log.verify().ok


def test_I9_a_file_size_limit(folder: Path) -> None:
    script = """
        import resource, sys, fastlog
        log = fastlog.PartitionLog.open(sys.argv[1], durability="os")
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, resource.RLIM_INFINITY))
        appended = 0
        try:
            while appended < 10_000:
                log.append([b"v" * 700] * 10)
                appended += 10
        except fastlog.StorageFullError as error:
            print(appended, error.errno, log.end_offset, sum(1 for _ in log.records()))
        resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
        print(log.append([b"after"]))
        assert log.verify().ok
        log.close()
    """
    result = run_python(script, folder / "events-0")
    assert result.returncode == 0, result.stderr
    appended, code, end, readable, base = map(int, result.stdout.split())
    assert appended > 50
    assert code == errno.EFBIG
    assert appended == end == readable == base


def test_row23_no_descriptors_left(folder: Path) -> None:
    script = """
        import os, resource, sys, fastlog
        config = fastlog.LogConfig(segment_bytes=2000, max_message_bytes=1000)
        log = fastlog.PartitionLog.open(sys.argv[1], durability="os", config=config)
        log.append([b"first"])
        resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64))
        held = []
        try:
            while True:
                held.append(os.open("/dev/null", os.O_RDONLY))
        except OSError:
            pass
        failed, appended = 0, 1
        for number in range(30):
            try:
                log.append([b"v" * 200])
                appended += 1
            except fastlog.StorageError as error:
                failed += 1
        assert log.end_offset == appended
        for descriptor in held:
            os.close(descriptor)
        assert sum(1 for _ in log.records()) == appended
        assert log.append([b"after"]) == appended
        assert log.verify().ok
        log.close()
        print(failed)
    """
    result = run_python(script, folder / "events-0")
    assert result.returncode == 0, result.stderr
    assert int(result.stdout) > 0


def test_row23_no_memory_left(folder: Path) -> None:
    script = """
        import resource, sys, fastlog
        log = fastlog.PartitionLog.open(sys.argv[1], durability="os")
        log.append([b"first"])
        assert log.read(0)[0].offset == 0
        value = bytes(900_000)
        values = [memoryview(bytearray(value)) for _ in range(1)] * 900     # mutable: has to be copied
        used = int(open("/proc/self/statm").read().split()[0]) * 4096
        resource.setrlimit(resource.RLIMIT_AS, (used + 200_000_000, resource.RLIM_INFINITY))
        try:
            log.append(values)
        except MemoryError:
            print("MemoryError", log.end_offset)
        resource.setrlimit(resource.RLIMIT_AS, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
        end = log.end_offset
        assert log.append([b"after"]) == end
        assert log.verify().ok
        log.close()
    """
    result = run_python(script, folder / "events-0")
    assert result.returncode == 0, result.stderr
    assert result.stdout.strip() in ("MemoryError 1", "")


def closed_log(path: Path, appends: int = 60) -> None:
    config = fastlog.LogConfig(segment_bytes=3000, max_message_bytes=2000, index_interval_bytes=200)
    with fastlog.PartitionLog.open(path, durability="os", config=config) as log:
        for number in range(appends):
            log.append([b"value %d" % number, b"x" * 90], timestamps=SOME_TIME + number)


@pytest.mark.parametrize("mmap", [True, False])
@pytest.mark.parametrize("left", [0, 1, 61, 1000])
def test_row10_a_file_shortened_before_it_is_mapped_is_an_error(folder: Path, mmap: bool, left: int) -> None:
    """In a process of its own: a SIGBUS would end it."""
    closed_log(folder / "events-0")
    script = """
        import glob, os, sys, fastlog
        folder, mmap, left = sys.argv[1], sys.argv[2] == "True", int(sys.argv[3])
        log = fastlog.PartitionLog.open(folder, durability="os", config=fastlog.LogConfig(mmap=mmap))
        for name in glob.glob(folder + "/*.log"):
            os.truncate(name, left)
        failed = 0
        for offset in range(log.start_offset, log.end_offset):
            try:
                batch = log.read(offset)
                [(record.key, record.value, record.headers) for record in batch]
            except fastlog.CorruptLogError as error:
                assert error.path and error.path.endswith(".log"), error
                failed += 1
        for time in range(1_700_000_000_000, 1_700_000_000_060, 7):
            try:
                log.offset_for_time(time)
            except fastlog.CorruptLogError:
                pass
        report = log.verify()
        assert report.damages, "verify has to see it as well"
        print(failed)
    """
    result = run_python(script, folder / "events-0", mmap, left)
    assert result.returncode == 0, f"{result.returncode} {result.stderr}"
    assert int(result.stdout) >= 90


def test_row10_without_mmap_a_file_may_shrink_under_the_reader(folder: Path) -> None:
    closed_log(folder / "events-0")
    script = """
        import glob, os, sys, fastlog
        folder = sys.argv[1]
        log = fastlog.PartitionLog.open(folder, durability="os", config=fastlog.LogConfig(mmap=False))
        segment = sorted(glob.glob(folder + "/*.log"))[0]
        held = log.read(0, max_bytes=100_000)
        before = held.values.to_list()
        for left in range(os.path.getsize(segment) - 1, -1, -37):
            os.truncate(segment, left)
            try:
                log.read(0, max_bytes=100_000).values.to_list()
            except fastlog.CorruptLogError:
                pass
            try:
                log.read(10, max_bytes=1).values.to_list()
            except fastlog.CorruptLogError:
                pass
        try:
            log.read(0)
        except fastlog.CorruptLogError as error:
            print("refused")
        assert held.values.to_list() == before
    """
    result = run_python(script, folder / "events-0")
    assert result.returncode == 0, f"{result.returncode} {result.stderr}"
    assert result.stdout.strip() == "refused"


def test_row9_signals_interrupt_nothing(folder: Path, checked_log: OpenLog) -> None:
    log = checked_log(durability="batch")
    rung = 0

    def ring(*_: object) -> None:
        nonlocal rung
        rung += 1

    previous = signal.signal(signal.SIGALRM, ring)
    signal.setitimer(signal.ITIMER_REAL, 0.0005, 0.0005)
    try:
        for number in range(200):
            log.append([b"v" * 20_000] * 5, timestamps=SOME_TIME + number)
            log.read(log.end_offset - 1)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, previous)
    assert rung > 0
    assert log.end_offset == 1000


@pytest.mark.parametrize("mmap", [True, False])
@pytest.mark.parametrize("_round", range(4))
def test_row11_a_storm_of_threads(folder: Path, seed: int, mmap: bool, _round: int) -> None:
    """Appends, reads, searches, deletions and a close, all at once; whoever comes too late gets ClosedError."""
    config = fastlog.LogConfig(segment_bytes=30_000, max_message_bytes=9000, index_interval_bytes=300, mmap=mmap)
    log = fastlog.PartitionLog.open(folder / "events-0", durability="os", config=config)
    log.append([b"first"], timestamps=SOME_TIME)
    storm = Storm(log, seed)
    threads = [threading.Thread(target=storm.run, args=(number,)) for number in range(6)]
    for thread in threads:
        thread.start()
    time.sleep(0.25)
    storm.closed.set()
    log.close()
    for thread in threads:
        thread.join(timeout=30)
        assert not thread.is_alive(), "a thread hangs"
    assert not storm.failures, storm.failures
    for batch, values in storm.held:
        assert batch.values.to_list() == values, "a view changed after the close"
    with fastlog.PartitionLog.open(folder / "events-0", durability="os") as again:
        assert again.recovery is None
        found = {record.offset: record.value for record in again.records()}
        assert {o: v for o, v in storm.acked.items() if o >= again.start_offset}.items() <= found.items()
        assert sorted(found) == list(range(again.start_offset, again.end_offset))
        assert again.verify().ok


def test_row11_a_close_between_any_two_steps_of_another_thread(folder: Path, seed: int) -> None:
    """Each method in a thread of its own, again and again, while the log is closed: an answer or ClosedError."""
    chance = random.Random(seed)
    config = fastlog.LogConfig(segment_bytes=4000, max_message_bytes=2000, index_interval_bytes=100)
    for _ in range(30):
        log = fastlog.PartitionLog.open(folder / "events-0", durability=chance.choice(["os", "batch"]), config=config)
        log.append([b"first"] * 10, timestamps=SOME_TIME)
        failures: list[BaseException] = []
        actions: list[Callable[[Any], Any]] = [
            lambda log: log.verify(),
            lambda log: log.read(log.start_offset).values.to_list(),
            lambda log: log.append([b"v" * 300], timestamps=SOME_TIME),
            lambda log: log.offset_for_time(SOME_TIME),
            lambda log: log.segments(),
            lambda log: log.flush(),
            lambda log: sum(1 for _ in log.records(log.start_offset)),
            lambda log: log.delete_records(before=max(log.start_offset, log.readable_offset - 30)),
        ]
        threads = [threading.Thread(target=until_closed, args=(log, action, failures)) for action in actions]
        for thread in threads:
            thread.start()
        time.sleep(chance.random() * 0.01)
        log.close()
        for thread in threads:
            thread.join(timeout=30)
            assert not thread.is_alive(), "a thread hangs"
        assert not failures, failures
    # a field that is written through a handle without segments lands on None: look whether its type is whole
    assert repr(type(None)) == "<class 'NoneType'>"
    with fastlog.PartitionLog.open(folder / "events-0", durability="os") as log:
        assert log.recovery is None
        assert log.verify().ok


@pytest.mark.parametrize("turn", [1, 2, 3, 4])
@pytest.mark.parametrize("read", [lambda log: log.read(0), lambda log: list(log.records(0))], ids=["read", "records"])
def test_row11_an_append_and_a_close_while_a_file_is_measured(
    folder: Path, turn: int, read: Callable[[Any], Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Measured before it grew, judged after it was closed: that is no damage."""
    log = fastlog.PartitionLog.open(folder / "events-0", durability="os")
    log.append([b"first"], timestamps=SOME_TIME)
    inode_of, calls = oscalls.inode_of, []

    def others_have_a_turn(fd: int) -> int:
        calls.append(fd)
        if len(calls) == turn:
            log.append([b"second"], timestamps=SOME_TIME)
            log.close()
        return inode_of(fd)

    monkeypatch.setattr(oscalls, "inode_of", others_have_a_turn)
    with contextlib.suppress(fastlog.ClosedError):
        assert len(read(log)) in (1, 2)
    monkeypatch.undo()
    log.close()
    assert calls
    with fastlog.PartitionLog.open(folder / "events-0", read_only=True) as again:
        assert len(again.read(0)) == (2 if len(calls) >= turn else 1)


def until_closed(log: Any, action: Callable[[Any], Any], failures: list[BaseException]) -> None:
    try:
        while True:
            try:
                action(log)
            except fastlog.OffsetOutOfRangeError:
                pass  # deleted by somebody in between
    except fastlog.ClosedError:
        pass
    except BaseException as failure:
        failures.append(failure)


class Storm:
    """What the threads share."""

    def __init__(self, log: Any, seed: int) -> None:
        self.log = log
        self.seed = seed
        self.closed = threading.Event()
        self.acked: dict[int, bytes] = {}
        self.held: list[tuple[Any, list[bytes | None]]] = []
        self.failures: list[BaseException] = []

    def run(self, number: int) -> None:
        chance = random.Random(self.seed + number)
        try:
            for _ in range(20_000):
                try:
                    self.step(chance, number)
                except fastlog.OffsetOutOfRangeError:
                    pass  # deleted by somebody in between
        except fastlog.ClosedError as error:
            if not self.closed.is_set():
                self.failures.append(error)
        except BaseException as failure:  # noqa: BLE001 - reported by the main thread
            self.failures.append(failure)

    def step(self, chance: random.Random, number: int) -> None:
        log = self.log
        dice = chance.random()
        if dice < 0.5:
            values = [b"%d %d" % (number, chance.randrange(10**9)) * chance.choice([1, 20])] * chance.choice([1, 5])
            base = log.append(values, timestamps=SOME_TIME + chance.randint(-50, 50))
            self.acked.update({base + i: value for i, value in enumerate(values)})
        elif dice < 0.9:
            start = log.start_offset
            batch = log.read(chance.randint(start, max(start, log.end_offset)), max_bytes=chance.choice([1, 5000]))
            read = batch.values.to_list()
            assert len(read) == len(batch)
            if chance.random() < 0.02:
                self.held.append((batch, read))
        elif dice < 0.95:
            log.offset_for_time(SOME_TIME + chance.randint(-60, 60))
        elif dice < 0.97:
            log.flush()
        elif dice < 0.98:
            log.delete_records(before=max(log.start_offset, log.end_offset - 2000))
        else:
            assert not log.verify().damages


@pytest.fixture
def live_log(folder: Path) -> Iterator[Any]:
    with fastlog.PartitionLog.open(folder / "live-0", durability="os") as log:
        yield log


def test_row25_a_copy_of_a_live_directory_opens_as_a_crash_image(live_log: Any, folder: Path) -> None:
    for number in range(50):
        live_log.append([b"value %d" % number], timestamps=SOME_TIME + number)
    expected = read_all(live_log)
    copy = copy_folder(Path(live_log.path), folder / "copy-0")
    with fastlog.PartitionLog.open(copy, durability="os") as log:
        assert log.recovery is not None
        assert read_all(log) == expected
        assert log.verify().ok
        assert log.append([b"in the copy"]) == 50
    assert live_log.append([b"in the original"]) == 50


def test_row25_a_copy_made_while_somebody_appends_is_a_prefix(live_log: Any, folder: Path) -> None:
    stop = threading.Event()

    def append() -> None:
        for number in range(0, 200_000, 20):
            live_log.append([b"value %d" % (number + i) for i in range(20)], timestamps=SOME_TIME)
            if stop.wait(0.0005):
                return

    writer = threading.Thread(target=append)
    writer.start()
    try:
        for number in range(15):
            time.sleep(0.01)
            acked = live_log.end_offset
            copy = copy_folder(Path(live_log.path), folder / f"copy-{number}")
            with fastlog.PartitionLog.open(copy, durability="os") as log:
                assert log.end_offset >= acked
                values = [record.value for record in log.records()]
                assert values == [b"value %d" % i for i in range(log.end_offset)]
                assert not log.verify().damages
            shutil.rmtree(copy)
    finally:
        stop.set()
        writer.join()


def sealed_slot(payload: dict[str, Any]) -> bytes:
    text = json.dumps(payload).encode()
    return (b"%08x %s\n" % (crc32c.crc32c(text), text)).ljust(4096)


@pytest.mark.parametrize("damage_clean_marker", [False, True])
def test_row25_a_newer_format_is_refused_by_name(folder: Path, damage_clean_marker: bool) -> None:
    closed_log(folder / "events-0")
    path = folder / "events-0"
    meta = path / ".fastlog-meta"
    payload = json.loads(meta.read_bytes()[:4096].strip()[9:])
    meta.write_bytes(sealed_slot({**payload, "format": 99}) * 2)
    if damage_clean_marker:
        (path / ".fastlog-clean").unlink()
    before = {file.name: file.read_bytes() for file in path.iterdir() if file.name != ".fastlog-control"}
    with pytest.raises(fastlog.UnsupportedFormatError, match="99") as caught:
        fastlog.PartitionLog.open(path)
    assert ".fastlog-meta" in str(caught.value)
    after = {file.name: file.read_bytes() for file in path.iterdir() if file.name != ".fastlog-control"}
    assert after == before


def test_foreign_files_are_refused_and_left_alone(folder: Path) -> None:
    file = folder / "a-file"
    file.write_text("hello")
    with pytest.raises(fastlog.Error, match="a-file"):
        fastlog.PartitionLog.open(file)
    assert file.read_text() == "hello"

    text = folder / "text-0"
    text.mkdir()
    (text / f"{0:020}.log").write_text("2026-11-21 12:00:00 INFO a log, but of another kind\n" * 20)
    with pytest.raises(fastlog.Error, match=f"{0:020}.log"):
        fastlog.PartitionLog.open(text)
    assert (text / f"{0:020}.log").read_text().startswith("2026")
    assert (text / f"{0:020}.log").stat().st_size == 52 * 20

    old = folder / "old-0"
    old.mkdir()
    # message format v1, as Kafka 0.10 wrote it
    message = bytes.fromhex("000000000000000000000018") + bytes(4) + b"\x01" + bytes(19)
    (old / f"{0:020}.log").write_bytes(message)
    with pytest.raises(fastlog.UnsupportedFormatError, match="(?i)magic|format"):
        fastlog.PartitionLog.open(old)
    assert (old / f"{0:020}.log").read_bytes() == message


def test_a_missing_folder_is_an_error_when_read_only(folder: Path) -> None:
    with pytest.raises(fastlog.Error, match="nowhere-0"):
        fastlog.PartitionLog.open(folder / "nowhere-0", read_only=True)
    assert not (folder / "nowhere-0").exists()


def test_an_unreadable_directory_is_named(folder: Path) -> None:
    """As another user, because root may read everything."""
    closed_log(folder / "events-0")
    os.chmod(folder, 0o755)
    os.chmod(folder / "events-0", 0)
    script = """
        import os, sys, fastlog
        if os.geteuid() == 0:
            os.setgroups([]); os.setgid(65534); os.setuid(65534)
        for options in ({}, {"read_only": True}):
            try:
                fastlog.PartitionLog.open(sys.argv[1], **options)
            except fastlog.StorageError as error:
                print(error.errno, sys.argv[1] in str(error))
    """
    result = run_python(script, folder / "events-0")
    os.chmod(folder / "events-0", 0o755)
    if result.returncode and "PermissionError" in result.stderr and "import" in result.stderr:
        pytest.skip("another user cannot import the package here")
    assert result.returncode == 0, result.stderr
    assert result.stdout.splitlines() == [f"{errno.EACCES} True"] * 2


def test_a_directory_that_may_not_be_written_can_be_read(folder: Path) -> None:
    closed_log(folder / "events-0")
    expected = read_all_of(folder / "events-0")
    os.chmod(folder, 0o755)
    for file in (folder / "events-0").iterdir():
        os.chmod(file, 0o444)
    os.chmod(folder / "events-0", 0o555)
    script = """
        import os, sys, fastlog
        if os.geteuid() == 0:
            os.setgroups([]); os.setgid(65534); os.setuid(65534)
        with fastlog.PartitionLog.open(sys.argv[1], read_only=True) as log:
            print(sum(1 for _ in log.records()), log.verify().ok)
        try:
            fastlog.PartitionLog.open(sys.argv[1])
        except fastlog.StorageError as error:
            print(error.errno)
    """
    result = run_python(script, folder / "events-0")
    os.chmod(folder / "events-0", 0o755)
    assert result.returncode == 0, result.stderr
    assert result.stdout.split() == [str(len(expected)), "True", str(errno.EACCES)]


def read_all_of(path: Path) -> list[Record]:
    with fastlog.PartitionLog.open(path, read_only=True) as log:
        return [as_reference(record) for record in log.records()]
