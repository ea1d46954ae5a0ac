"""Backups of a store in use: a prefix of each partition, that opens; half ones do not."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import pytest

import fastlog
from fastlog._native import oscalls
from fastlog.partition import files as partition_files
from fastlog.store import backup
from fastlog.store.directory import Directory
from fastlog.store.internal import partition_for_name
from tests.messaging.processes import crew
from tests.messaging.transacting import Writer, visible

BACKUPS = 8
SMALL = {"segment.bytes": 2000}


def values(store: Directory, topic: str, partition: int = 0) -> list[bytes]:
    with store.lease(topic, partition) as lease:
        return [bytes(record.value) for record in lease.log.records()]


def numbers(count: int) -> list[bytes]:
    return [b"%05d" % number + bytes(100) for number in range(count)]


def filled(root: Path) -> Directory:
    store = Directory.open(root, durability="os")
    store.create_topic("a", partitions=3, options=SMALL)
    store.create_topic("empty", partitions=2, options={"retention": "7d"})
    for value in numbers(60):
        store.partition_log("a", 0).append([value])
        store.partition_log("a", 2).append([value])
    store.partition_log("a", 2).delete_records(30)
    return store


def test_a_backup_is_a_store(folder: Path) -> None:
    with filled(folder / "store") as store:
        report = store.backup(folder / "copy")
        assert (report.topics, report.partitions) == (2, 2) and report.linked_bytes > report.copied_bytes > 0
        store.partition_log("a", 0).append([b"later"])
        with Directory.open(folder / "copy", durability="os") as copy:
            assert copy.topics() == ["a", "empty"] and copy.cluster_id == store.cluster_id
            assert copy.topic("a") == store.topic("a") and copy.topic("empty") == store.topic("empty")
            assert values(copy, "a") == numbers(60) and values(copy, "a", 2) == numbers(60)[30:]
            log = copy.partition_log("a", 0)
            # nothing had to be read again
            assert log.recovery is None or log.recovery.scanned_bytes == 0
            assert log.config.segment_bytes == 2000 and not log.verify().damages
            assert copy.partition_log("a", 2).start_offset == 30
            log.append([b"only here"])
            assert copy.partition_log("a", 1).append([b"x"]) == 0
        assert values(store, "a") == [*numbers(60), b"later"] and not store.is_created("a", 1)
    assert not (folder / "copy/backup.unfinished").exists()
    assert (folder / "copy/topics/.kafka_cleanshutdown").exists()


def test_a_reader_backs_up_without_writing(folder: Path) -> None:
    root = folder / "store"
    filled(root).close()
    names = sorted(path for path in root.rglob("*"))
    with Directory.open(root, read_only=True) as store:
        store.backup(folder / "copy")
    assert sorted(path for path in root.rglob("*")) == names
    with Directory.open(folder / "copy", read_only=True) as copy:
        assert values(copy, "a") == numbers(60)


def test_links_are_copies_on_another_file_system(folder: Path) -> None:
    with filled(folder / "store") as store:
        oscalls.inject("link", errno=18)
        try:
            report = store.backup(folder / "copy")
        finally:
            oscalls.clear()
        assert report.linked_bytes == 0 and report.copied_bytes > 0
        assert not list((folder / "store/control").glob("backup.*"))
    shared = {path.stat().st_nlink for path in (folder / "copy/topics").rglob("*.log")}
    assert shared == {1}
    with Directory.open(folder / "copy") as copy:
        assert values(copy, "a") == numbers(60)


def test_targets_that_hold_something_are_refused(folder: Path) -> None:
    with filled(folder / "store") as store:
        (folder / "full").mkdir()
        (folder / "full/x").write_text("x")
        for target in (folder / "full", folder / "store", folder / "store/topics/copy", folder / "full/x"):
            with pytest.raises(fastlog.UnsupportedFormatError):
                store.backup(target)
        assert (folder / "full/x").read_text() == "x"
        (folder / "new").mkdir()
        store.backup(folder / "new")


@pytest.mark.parametrize("call", ["pwrite", "fdatasync", "fsync", "rename", "link"])
def test_I9_a_full_disk_leaves_nothing(folder: Path, call: str) -> None:
    with filled(folder / "store") as store:
        failures = 0
        for nth in (1, 2, 3, 5, 8, 13, 21, 34):
            oscalls.inject(call, errno=28, nth=nth)
            try:
                store.backup(folder / f"copy{nth}")
            except fastlog.StorageFullError:
                failures += 1
                assert list((folder / f"copy{nth}").iterdir()) == []
            finally:
                oscalls.clear()
        assert failures
        assert store.partition_log("a", 0).append([b"goes on"]) == 60


@pytest.mark.parametrize("call", ["sync_data", "rename", "sync_directory"])
def test_I4_the_first_name_in_a_backup_says_that_it_is_unfinished(
    folder: Path, call: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    listed: list[list[str]] = []
    original = getattr(oscalls, call)

    def look(*arguments: Any) -> None:
        if (folder / "copy").exists():
            listed.append(os.listdir(folder / "copy"))
        original(*arguments)

    with filled(folder / "store") as store:
        monkeypatch.setattr(oscalls, call, look)
        store.backup(folder / "copy")
    assert any(listed)
    assert all({"backup.unfinished", "fastlog.json"} & set(names) for names in listed if names), listed[0]


@pytest.mark.parametrize("point", ["backup.linked", "backup.copied", "backup.finished"])
def test_I4_killed_in_mid_backup(folder: Path, point: str) -> None:
    filled(folder / "store").close()
    script = (
        "import sys; from fastlog.store.directory import Directory\n"
        "Directory.open(sys.argv[1], durability='os').backup(sys.argv[2])"
    )
    command = [sys.executable, "-c", script, str(folder / "store"), str(folder / "copy")]
    run = subprocess.run(command, env={**os.environ, "FASTLOG_FAILPOINT": point}, check=False)
    assert run.returncode == -signal.SIGKILL
    if point == "backup.finished":
        with Directory.open(folder / "copy") as copy:
            assert values(copy, "a") == numbers(60)
        assert not (folder / "copy/backup.unfinished").exists()
    else:
        for read_only in (False, True):
            with pytest.raises(fastlog.UnsupportedFormatError):
                Directory.open(folder / "copy", read_only=read_only)
    with Directory.open(folder / "store") as store:
        assert values(store, "a") == numbers(60)


def append_for_ever(connection: Connection, root: str) -> None:
    with Directory.open(root, durability="os") as store:
        logs = [store.partition_log("a", number) for number in range(2)]
        connection.send("going")
        number = 0
        while not connection.poll():
            # first the one, then the other: at no moment is the second ahead of the first
            for log in logs:
                log.append([b"%d" % number])
            number += 1
            if number % 50 == 0:
                logs[0].maintain()
        connection.send(number)


def test_backups_of_a_busy_store_are_prefixes(folder: Path) -> None:
    root = folder / "store"
    with Directory.open(root, durability="os") as store, crew() as start:
        store.create_topic("a", partitions=2, options={"segment.bytes": 3000, "retention.bytes": 20_000})
        worker = start(append_for_ever, str(root))
        worker.answer()
        stop = threading.Event()

        def come_and_go() -> None:
            while not stop.is_set():
                store.create_topic("passing")
                store.partition_log("passing", 0).append([b"x"])
                store.delete_topic("passing")

        passing = threading.Thread(target=come_and_go)
        passing.start()
        for number in range(8):
            store.backup(folder / f"copy{number}")
        stop.set()
        passing.join()
        worker.tell("stop")
        count = worker.answer()
    ends = []
    for number in range(8):
        with Directory.open(folder / f"copy{number}", durability="os") as copy:
            for partition in range(2):
                log: Any = copy.partition_log("a", partition)
                found = [int(bytes(record.value)) for record in log.records()]
                assert found == list(range(log.start_offset, log.end_offset))
                assert log.recovery is None or not log.recovery.cut
            ends.append(copy.partition_log("a", 0).end_offset)
    assert ends == sorted(ends) and ends[-1] <= count


def transact_for_ever(connection: Connection, root: str) -> None:
    with Directory.open(root, durability="os") as store:
        writer = Writer(store, "pay")
        number = 0
        while not connection.poll():
            writer.begin()
            for partition in range(3):
                writer.send("a", [b"%d" % number], partition)
            writer.id.commit()
            number += 1
            if number == 1:
                connection.send("going")
        writer.close()
        connection.send(number)


def test_no_transaction_is_in_a_backup_by_halves(folder: Path) -> None:
    root = folder / "store"
    with Directory.open(root, durability="os") as store, crew() as start:
        store.create_topic("a", partitions=3)
        worker = start(transact_for_ever, str(root))
        worker.answer()
        for number in range(BACKUPS):
            store.backup(folder / f"copy{number}")
        worker.tell("stop")
        count = worker.answer()
    found = []
    for number in range(BACKUPS):
        with Directory.open(folder / f"copy{number}", durability="os") as copy:
            # finishes what was decided, takes back what was not
            Writer(copy, "pay").close()
            seen = [visible(copy, "a", partition) for partition in range(3)]
            assert seen[0] == seen[1] == seen[2] == [b"%d" % each for each in range(len(seen[0]))]
            found.append(len(seen[0]))
    assert found == sorted(found) and 0 < found[-1] <= count


@pytest.mark.parametrize("earlier", [[], ["pay-1"]])
def test_decisions_in_a_partition_that_is_made_meanwhile(
    folder: Path, monkeypatch: pytest.MonkeyPatch, earlier: list[str]
) -> None:
    """Nobody had a lock on it when the backup began: all is copied once more."""
    root = folder / "store"
    left = ["pay-2", "pay-3"]
    original = backup.capture_partition
    with Directory.open(root, durability="os") as store, Directory.open(root, durability="os") as other:
        store.create_topic("a", partitions=3)

        def transact(transactional_id: str) -> None:
            writer = Writer(other, transactional_id)
            writer.begin()
            for partition in range(3):
                writer.send("a", [transactional_id.encode()], partition)
            writer.id.commit()
            writer.close()

        def capture(info: Any, partition: int, log: Any, stage: str) -> Any:
            found = original(info, partition, log, stage)
            if (info.name, partition) == ("a", 1) and left:
                transact(left.pop(0))
            return found

        for transactional_id in earlier:
            transact(transactional_id)
        for partition in range(3):
            store.partition_log("a", partition).append([b"first"])
        monkeypatch.setattr(backup, "capture_partition", capture)
        store.backup(folder / "copy")
    assert not left
    with Directory.open(folder / "copy", durability="os") as copy:
        expected = [one.encode() for one in [*earlier, "first", "pay-2", "pay-3"]]
        assert [visible(copy, "a", partition) for partition in range(3)] == [expected] * 3


def test_a_topic_that_goes_while_topics_are_listed_is_left_out(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    filled(folder / "store").close()
    with Directory.open(folder / "store", durability="os") as store:
        store.create_topic("passing")
        names = store.topics(internal=True)
        monkeypatch.setattr(Directory, "topics", lambda self, internal=False: names)
        store.delete_topic("passing")
        store.backup(folder / "copy")
    monkeypatch.undo()
    with Directory.open(folder / "copy", read_only=True) as copy:
        assert "passing" not in copy.topics()


def test_folders_without_our_files_count_too(folder: Path) -> None:
    """As a broker leaves them: its segments, and no dot file. What cannot be backed up is not left out in silence."""
    filled(folder / "store").close()
    for path in (folder / "store" / "topics" / "a-0").glob(".fastlog*"):
        path.unlink()
    with Directory.open(folder / "store", read_only=True) as store:
        assert store.is_created("a", 0) and not store.is_created("a", 1)
        assert values(store, "a") == numbers(60)
        with pytest.raises(fastlog.StorageError, match="was written by a broker"):
            store.backup(folder / "refused")
    with Directory.open(folder / "store", durability="os") as store:
        assert store.backup(folder / "copy").partitions == 2
    with Directory.open(folder / "copy", read_only=True) as copy:
        assert values(copy, "a") == numbers(60)


def test_a_writer_who_comes_beside_a_reader_that_backs_up(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In the moment after the reader saw that nobody may decide: all is copied once more."""
    root = folder / "store"
    with Directory.open(root, durability="os") as store:
        store.create_topic("a", partitions=2)
        Writer(store, "pay").close()
    original = oscalls.entry_kind
    writers: list[Directory] = []

    def entry_kind(path: str) -> str | None:
        found = original(path)
        if path.endswith(partition_files.CONTROL) and found is None and not writers:
            writers.append(Directory.open(root, durability="os"))
            writers[0].partition_log("__transaction_state", partition_for_name("pay"))
        return found

    attempts: list[Path] = []
    capture = backup.capture
    monkeypatch.setattr(backup, "capture", lambda *given: attempts.append(folder) or capture(*given))
    monkeypatch.setattr(oscalls, "entry_kind", entry_kind)
    with Directory.open(root, read_only=True) as reader:
        reader.backup(folder / "copy")
    monkeypatch.undo()
    writers[0].close()
    assert len(attempts) == 2
