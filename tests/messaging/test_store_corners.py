"""Corners of stores, consumers, groups and harnesses: what others do between two steps, and errors that are told."""

from __future__ import annotations

import errno
import fcntl
import gc
import itertools
import json
import os
import struct
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

import fastlog
from fastlog import OffsetAndMetadata, TopicPartition
from fastlog._native import oscalls
from fastlog.clients.producer import deliver_all
from fastlog.clients.progress import Pulse
from fastlog.errors import (
    ClosedError,
    CommitFailedError,
    ConfigError,
    CorruptLogError,
    CorruptRecordError,
    InvalidTopicError,
    LockedError,
    NotSupportedError,
    StorageError,
    TopicExistsError,
    UnknownTopicError,
    UnsupportedFormatError,
)
from fastlog.groups.formats import decode_value, encode_key
from fastlog.groups.membership import Membership
from fastlog.groups.offsets import OffsetStore
from fastlog.groups.table import FIRST_OWNERS, FORMAT, LIVE, MOVING, STATE, peek
from fastlog.liveness import Slots, Watcher
from fastlog.store import backup, deleting, files, naming
from fastlog.store.catalog import TopicOwner
from fastlog.store.directory import LOOK_MS, Directory
from fastlog.store.internal import FieldReader
from fastlog.store.leases import Key, LogPool
from fastlog.store.maintenance import LOCK, Maintainer
from fastlog.testing import Harness, stores
from fastlog.transactions import Coordinator
from tests.messaging.transacting import Writer

CHECKPOINT = "recovery-point-offset-checkpoint"
ROLLS = {"segment.bytes": 2000}

Moment = Callable[..., None]


@pytest.fixture
def root(folder: Path) -> Path:
    return folder / "store"


@pytest.fixture
def directory(root: Path) -> Iterator[Directory]:
    with Directory.open(root, durability="os") as opened:
        yield opened


@pytest.fixture
def store(root: Path) -> Iterator[fastlog.Store]:
    with fastlog.open(root, durability="os") as opened:
        yield opened


@pytest.fixture
def moment(monkeypatch: pytest.MonkeyPatch) -> Moment:
    """Has somebody act once, just before or after a system call for a path that ends so."""

    def arrange(call: str, ending: str, act: Callable[[], object], *, before: bool = False) -> None:
        original = getattr(oscalls, call)

        def watched(path: str, *arguments: Any, **options: Any) -> Any:
            is_it = path.endswith(ending)
            if is_it:
                monkeypatch.setattr(oscalls, call, original)
            if is_it and before:
                act()
            result = original(path, *arguments, **options)
            if is_it and not before:
                act()
            return result

        monkeypatch.setattr(oscalls, call, watched)

    return arrange


def fill(store: Directory, topic: str, count: int = 30, options: dict[str, Any] | None = None) -> Any:
    """A topic of one partition in several segments; its log."""
    store.create_topic(topic, options=ROLLS if options is None else options)
    log = store.partition_log(topic, 0)
    for number in range(count):
        log.append([b"%05d" % number + bytes(100)], keys=[b"%d" % (number % 3)])
    return log


def values(store: Directory, topic: str) -> list[int]:
    with store.lease(topic, 0) as lease:
        return [int((record.value or b"")[:5]) for record in lease.log.records()]


# --- topics ----------------------------------------------------------------------------------------------------------


def test_a_topic_is_kept_for_one_owner(directory: Directory) -> None:
    ours, theirs = (TopicOwner("orders", group, "retry") for group in ("mail", "post"))
    directory.create_topic("again")
    assert directory.own_topic("again", ours).owner == ours
    assert directory.own_topic("again", ours).owner == ours
    with pytest.raises(TopicExistsError, match="the topic 'again' is kept for .*'mail'.*, not for .*'post'"):
        directory.own_topic("again", theirs)
    assert directory.topic("again").owner == ours


def test_a_change_that_changes_nothing_is_not_written(directory: Directory, root: Path) -> None:
    directory.create_topic("a", options={"retention.ms": 5000})
    inode, version = (root / "config/a.json").stat().st_ino, directory.topics_version
    assert directory.alter_topic("a", {"retention": "5s"}) == directory.topic("a")
    assert (root / "config/a.json").stat().st_ino == inode, "a file that is written is another one"
    assert directory.topics_version == version


def test_what_is_repeated_is_durable_though_it_was_there_already(
    directory: Directory, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Who wrote it may have failed, or died, before the sync."""
    sync, durable = oscalls.sync_directory, []

    def note(path: str) -> None:
        sync(path)
        durable.append(path)

    monkeypatch.setattr(oscalls, "sync_directory", note)
    for change in (
        lambda: directory.create_topic("a", exist_ok=True).name,
        lambda: directory.alter_topic("a", {"retention": "1h"}).options["retention.ms"],
    ):
        oscalls.inject("fsync", errno=errno.EIO)
        with pytest.raises(StorageError, match="could not sync .*/config"):
            change()
        oscalls.clear()
        assert not durable
        assert change() in ("a", 3_600_000)
        assert durable.pop() == f"{root}/config"


def test_a_deletion_that_failed_half_way_is_finished_by_the_next(
    directory: Directory, moment: Moment, root: Path
) -> None:
    fill(directory, "a")
    moment("rename", "/topics/a-0", lambda: oscalls.inject("rename", errno=errno.EIO), before=True)
    with pytest.raises(StorageError):
        directory.delete_topic("a")
    assert "a" not in directory.topics() and (root / "config/a.json").exists()
    directory.delete_topic("a")
    assert not (root / "config/a.json").exists()
    assert not list((root / "topics").glob("a-0*"))
    with pytest.raises(UnknownTopicError):
        directory.delete_topic("a")


def test_a_topic_is_forgotten_when_its_folders_are_durably_renamed(
    directory: Directory, moment: Moment, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else a power cut brings back folders of no topic, in whose way nobody may create it anew."""
    sync, durable = oscalls.sync_directory, {}

    def note(path: str) -> None:
        sync(path)
        durable[path] = os.listdir(path)

    monkeypatch.setattr(oscalls, "sync_directory", note)
    fill(directory, "a")
    assert "a-0" in durable[f"{root}/topics"]
    moment("rename", "/topics/a-0", lambda: oscalls.inject("fsync", errno=errno.EIO))
    with pytest.raises(StorageError, match="could not sync .*/topics: "):
        directory.delete_topic("a")
    oscalls.clear()
    found: list[list[str]] = []
    moment("remove", "/config/a.json", lambda: found.append(durable[f"{root}/topics"]), before=True)
    directory.delete_topic("a")
    (there,) = found
    assert "a-0" not in there


def test_a_topic_that_was_changed_is_no_error_though_others_cannot_be_told(
    directory: Directory, root: Path, caplog: pytest.LogCaptureFixture, moment: Moment
) -> None:
    for change, is_done in (
        (lambda: directory.create_topic("a"), lambda: directory.topics() == ["a"]),
        (lambda: directory.add_partitions("a", 2), lambda: directory.topic("a").partitions == 2),
        (lambda: directory.delete_topic("a"), lambda: directory.topics() == []),
    ):
        caplog.clear()
        moment("entry_kind", "/control/bells", lambda: oscalls.inject("getdents", errno=errno.EIO))
        change()
        assert oscalls.injected() == 1
        oscalls.clear()
        assert f"topics of {root} changed, which is noticed a little later" in caplog.text
        assert is_done()
    assert os.listdir(root / "config") == []


def test_a_topic_is_deleted_though_its_folders_cannot_be_removed_now(
    root: Path, caplog: pytest.LogCaptureFixture, moment: Moment
) -> None:
    with Directory.open(root, durability="os") as store:
        fill(store, "a")
        moment("remove", "/config/a.json", lambda: oscalls.inject("unlink", errno=errno.EIO))
        store.delete_topic("a")
        assert oscalls.injected() == 1
        oscalls.clear()
        assert f"could not remove the deleted partition {root}/topics/a-0." in caplog.text
        store.create_topic("a")
        assert list((root / "topics").glob("a-0.*-delete"))
    assert not list((root / "topics").glob("a-0.*-delete")), "the last to close removes them"


def test_a_checkpoint_that_cannot_be_read_does_not_keep_a_topic(directory: Directory, root: Path) -> None:
    fill(directory, "a")
    for content in ("0\nmany\n", "0\n", "0\n1\na 0\n"):
        (root / "topics" / CHECKPOINT).write_text(content)
        assert files.read_checkpoint(f"{root}/topics/{CHECKPOINT}") == {}
    directory.delete_topic("a")
    assert (root / "topics" / CHECKPOINT).read_text() == content


def test_a_topic_that_goes_while_the_folder_is_read_is_none(directory: Directory, moment: Moment, root: Path) -> None:
    directory.create_topic("a")
    directory.create_topic("b")
    with Directory.open(root, read_only=True) as reader:
        directory.create_topic("c")
        moment("list_directory", "/config", lambda: directory.delete_topic("b"))
        assert reader.topics() == ["a", "c"]


def test_a_topic_whose_file_could_not_be_read_is_there_again_when_it_can(directory: Directory, root: Path) -> None:
    directory.create_topic("a")
    with Directory.open(root, durability="os") as other:
        directory.create_topic("b")
        oscalls.inject("pread", errno=errno.EIO)
        with pytest.raises(StorageError, match="could not read"):
            other.topic("b")
        assert oscalls.injected() == 1
        oscalls.clear()
        time.sleep(2 * LOOK_MS / 1000)
        assert other.topic("b") == directory.topic("b")
        assert other.topics() == ["a", "b"]


@pytest.mark.parametrize(
    ("call", "number"), [("pread", errno.EIO), ("open", errno.EMFILE), ("open", errno.EACCES), ("open", errno.ENOMEM)]
)
def test_a_topic_stays_as_it_was_while_its_changed_file_cannot_be_read(
    directory: Directory, root: Path, caplog: pytest.LogCaptureFixture, call: str, number: int
) -> None:
    directory.create_topic("a")
    with Directory.open(root, durability="os") as other:
        before, log = other.topic("a"), other.partition_log("a", 0)
        directory.alter_topic("a", {"retention": "1h"})
        time.sleep(2 * LOOK_MS / 1000)
        for _ in range(2):
            oscalls.inject(call, errno=number)
            assert other.topics() == ["a"]
            assert oscalls.injected() == 1
            oscalls.clear()
            assert other.topic("a") == before
            other._looked_at = 0
        assert caplog.text.count("the topic 'a' goes on as it was until its file can be read") == 1
        assert other.topic("a") == directory.topic("a")
        assert log.append([b"x"]) == 0, "who has it open goes on"
        assert log.config.retention_ms == 3_600_000


def test_topics_are_there_when_their_folder_can_be_read_again(directory: Directory, root: Path) -> None:
    with Directory.open(root, durability="os") as other:
        time.sleep(0.2)  # the clock of the file system went on: the folder does not look changed by itself
        directory.create_topic("a")
        oscalls.inject("getdents", errno=errno.EIO)
        with pytest.raises(StorageError):
            other.topics()
        oscalls.clear()
        assert other.topics() == ["a"]


def test_a_damaged_topic_that_is_mended_in_place_is_there_again(directory: Directory, root: Path) -> None:
    """The time of the folder says nothing of it."""
    info = directory.create_topic("a")
    path = root / "config/a.json"
    sound = path.read_bytes()
    path.write_bytes(b"?" + sound[1:])
    with Directory.open(root, durability="os") as other:
        time.sleep(2 * LOOK_MS / 1000)
        with pytest.raises(CorruptLogError, match="a.json is damaged"):
            other.topic("a")
        time.sleep(2 * LOOK_MS / 1000)
        with path.open("r+b") as file:
            file.write(sound)
        assert other.topic("a") == info


def test_an_error_about_a_topic_keeps_nobody_alive_who_asked(directory: Directory, root: Path) -> None:
    class Caller:
        pass

    def ask() -> weakref.ref[Caller]:
        caller = Caller()
        with pytest.raises(CorruptLogError, match="is damaged"):
            directory.topic("a")
        return weakref.ref(caller)

    (root / "config/a.json").write_text("{")
    asked = [ask(), ask()]
    gc.collect()
    assert [caller() for caller in asked] == [None, None]


def test_a_topic_that_goes_while_its_partition_is_opened_is_unknown(
    directory: Directory, moment: Moment, root: Path
) -> None:
    directory.create_topic("a")
    with Directory.open(root, durability="os") as other:
        moment("entry_kind", "/config/a.json", lambda: directory.delete_topic("a"))
        with pytest.raises(UnknownTopicError, match="'a' was deleted meanwhile"):
            other.lease("a", 0)
    assert not (root / "topics/a-0").exists()


def test_an_open_partition_goes_on_when_its_options_cannot_be_followed(
    directory: Directory, root: Path, caplog: pytest.LogCaptureFixture
) -> None:
    log = fill(directory, "a")
    path = root / "config/a.json"
    content = json.loads(path.read_text())
    content.pop("crc32c", None)
    content = {name: value for name, value in content.items() if name != files.CHECKSUM}
    path.write_text(json.dumps({**content, "options": {"retention.ms": "soon"}}))
    directory.create_topic("b")
    assert f"{log.path} goes on with the options that it was opened with" in caplog.text
    assert log.append([b"x"]) == 30


def test_a_partition_that_is_opened_while_its_topic_changes_follows(directory: Directory, root: Path) -> None:
    directory.create_topic("a")
    with Directory.open(root, durability="os") as other:
        open_log = other._pool._open_log

        def open_and_look(key: Key) -> Any:
            log = open_log(key)
            directory.alter_topic("a", {"retention": "1h"})
            assert other.topic("a").options, "another thread has seen the change"
            return log

        other._pool._open_log = open_and_look
        log = other.partition_log("a", 0)
        assert log.config.retention_ms == 3_600_000


def test_the_last_options_hold_though_who_follows_the_first_comes_late(
    directory: Directory, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    directory.create_topic("a")
    with Directory.open(root, durability="os") as other:
        log = other.partition_log("a", 0)
        drop, is_late, may_go_on = other._pool.drop, threading.Event(), threading.Event()

        def wait(is_stale: Callable[[Key], bool]) -> None:
            monkeypatch.setattr(other._pool, "drop", drop)
            is_late.set()
            assert may_go_on.wait(10)
            drop(is_stale)

        monkeypatch.setattr(other._pool, "drop", wait)
        directory.alter_topic("a", {"retention": "1h"})
        late = threading.Thread(target=other.topics)
        late.start()
        assert is_late.wait(10)
        directory.alter_topic("a", {"retention": "2h"})
        other.topics()
        may_go_on.set()
        late.join()
        assert other.topic("a").options["retention.ms"] == log.config.retention_ms == 7_200_000


def test_options_that_could_not_be_followed_are_followed_later(
    directory: Directory, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    directory.create_topic("a")
    with Directory.open(root, durability="os") as other:
        log = other.partition_log("a", 0)
        directory.alter_topic("a", {"retention": "1h"})

        def fail(*_: object) -> None:
            raise MemoryError

        with monkeypatch.context() as patched:
            patched.setattr(other, "_follow_options", fail)
            with pytest.raises(MemoryError):
                other.topics()
        assert other.topic("a").options
        assert log.config.retention_ms == 3_600_000


# --- opening and closing ---------------------------------------------------------------------------------------------


def test_a_store_whose_id_is_damaged_is_refused(root: Path) -> None:
    Directory.open(root).close()
    for wrong in ("short", "A" * 22, 7):
        (root / files.STORE).write_text(json.dumps({"format": 1, "cluster_id": wrong}))
        with pytest.raises(CorruptLogError, match=r"its cluster_id is .*expected 22 characters; nothing was touched"):
            Directory.open(root)
        assert json.loads((root / files.STORE).read_text())["cluster_id"] == wrong


def test_what_a_broker_wants_to_know_is_written_again(root: Path) -> None:
    with Directory.open(root) as store:
        cluster_id = store.cluster_id
    path = root / "topics" / files.META_PROPERTIES
    path.unlink()
    Directory.open(root).close()
    assert files.read_properties(str(path))["cluster.id"] == cluster_id


def test_files_that_somebody_was_writing_when_he_died_go(root: Path) -> None:
    Directory.open(root).close()
    names = [root / folder / f"some.json{files.TEMPORARY}" for folder in ("", "topics", "config")]
    for name in names:
        name.write_text("half")
    Directory.open(root).close()
    assert not any(name.exists() for name in names)


def test_a_deleted_partition_that_cannot_be_removed_is_left_to_the_next(
    root: Path, caplog: pytest.LogCaptureFixture
) -> None:
    Directory.open(root).close()
    left = root / "topics" / naming.deleted_name("a", 0)
    left.mkdir()
    oscalls.inject("getdents", errno=errno.EIO, nth=2)
    deleting.purge(f"{root}/topics")
    oscalls.clear()
    assert f"could not remove the deleted partition {root}/topics/{left.name}" in caplog.text
    assert left.exists()
    Directory.open(root).close()
    assert not left.exists()


def test_a_closer_that_fails_keeps_nothing_open(root: Path) -> None:
    store = Directory.open(root, durability="os")
    log = fill(store, "a")
    called: list[str] = []

    def fail() -> None:
        called.append("fails")
        raise ValueError("not today")

    store.add_closer(lambda: called.append("first"))
    store.add_closer(fail)
    with pytest.raises(ValueError, match="not today"):
        store.close()
    assert called == ["fails", "first"]
    assert store.closed and log.closed


def test_a_closer_may_close_the_store(root: Path) -> None:
    store = Directory.open(root, durability="os")
    log = fill(store, "a")
    store.add_closer(store.close)
    store.close()
    assert store.closed and log.closed
    assert (root / "topics" / files.CLEAN_SHUTDOWN).exists()


def test_a_store_closes_though_nothing_can_be_told_to_a_broker(root: Path, caplog: pytest.LogCaptureFixture) -> None:
    store = Directory.open(root, durability="os")
    store.create_topic("a")
    oscalls.inject("rename", errno=errno.ENOSPC, sticky=True)
    store.close()
    oscalls.clear()
    assert f"could not write Kafka's checkpoints in {root}/topics: a broker will check the files" in caplog.text
    assert not (root / "topics" / files.CLEAN_SHUTDOWN).exists()
    Directory.open(root).close()
    assert (root / "topics" / files.CLEAN_SHUTDOWN).exists()


def test_a_partition_whose_sync_failed_is_opened_anew_once_nobody_uses_it(tmp_path: Path) -> None:
    path = tmp_path / "store"
    with Directory.open(path) as first, Directory.open(path) as second:
        first.create_topic("t")
        with second.lease("t", 0) as idle:
            pass
        with first.lease("t", 0) as lease:
            lease.log.append([b"kept"])
            try:
                oscalls.inject("fdatasync", errno=errno.EIO)
                with pytest.raises(StorageError):
                    lease.log.append([b"in doubt"])
            finally:
                oscalls.clear()
            assert lease.log.is_poisoned
            assert not lease.log.closed, "who leases it may read what is durable"
        assert lease.log.closed
        with second.lease("t", 0) as again:
            assert idle.log.closed
            again.log.append([b"next"])
            values = [record.value for record in again.log.records(0)]
        assert (values[0], values[-1]) == (b"kept", b"next")


def test_a_closed_pool_opens_nothing() -> None:
    pool = LogPool(lambda key: pytest.fail("somebody opens a partition"))
    assert pool.close() == []
    with pytest.raises(ClosedError, match="the store was closed"):
        pool.lease(Key("a", "id", 0, "read_committed"))
    assert pool.each_open() == []


# --- upkeep ----------------------------------------------------------------------------------------------------------


def test_a_round_of_upkeep_that_fails_is_told_and_comes_again(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    problems: list[Exception] = [ClosedError("closing"), UnknownTopicError("gone"), StorageError("no room")]

    def run() -> None:
        if problems:
            raise problems.pop(0)

    maintainer = Maintainer(str(folder), run)
    for _ in range(2):
        maintainer.tick()
    assert not caplog.records, "a store that is closed and a topic that is gone are nobody's fault"
    maintainer.tick()
    assert "a round of upkeep failed and is tried again later" in caplog.text and "no room" in caplog.text
    assert not problems and maintainer.is_elected()
    maintainer.close()
    assert (folder / LOCK).exists()


def test_an_election_that_fails_leaves_no_descriptor(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    maintainer, other = (Maintainer(str(folder), lambda: None) for _ in range(2))
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(3):
        oscalls.inject("flock", errno=errno.ENOLCK)
        maintainer.tick()
        assert oscalls.injected() == 1
        oscalls.clear()
    assert "a round of upkeep failed and is tried again later" in caplog.text
    assert len(os.listdir("/proc/self/fd")) == before
    assert other.is_elected() and not maintainer.is_elected()
    other.close()
    assert maintainer.is_elected()
    maintainer.close()
    assert len(os.listdir("/proc/self/fd")) == before


def test_upkeep_begins_though_its_thread_could_not_be_started_at_first(root: Path) -> None:
    with Directory.open(root, durability="os", maintenance_interval="10ms") as store:
        fill(store, "a", options={**ROLLS, "retention.bytes": 2000})
        oscalls.inject("pipe", errno=errno.EMFILE)
        with pytest.raises(StorageError, match="could not open a pipe"):
            store.watcher  # noqa: B018 - it is made when it is asked for
        oscalls.clear()
        assert not store.watcher.closed
        log, deadline = store.partition_log("a", 0), time.monotonic() + 10
        while not log.start_offset:
            assert time.monotonic() < deadline, "nothing is kept up"
            time.sleep(0.01)


def test_upkeep_of_the_other_topics_goes_on(root: Path, caplog: pytest.LogCaptureFixture) -> None:
    with Directory.open(root, durability="os") as store:
        for topic in ("a", "b"):
            fill(store, topic, options={**ROLLS, "retention.bytes": 2000})
    (root / "topics/a-0" / files.PARTITION_METADATA).write_text(f"version: 0\ntopic_id: {naming.new_id()}")
    with Directory.open(root, durability="os") as store:
        store._background_round()
        assert "the upkeep of the topic 'a' failed and is tried again later" in caplog.text
        assert "the upkeep of the topic 'b'" not in caplog.text
        assert store.partition_log("b", 0).start_offset > 0


@pytest.mark.parametrize("is_asked_for", [True, False])
def test_a_topic_that_goes_before_its_upkeep_keeps_nobody_from_the_others(
    directory: Directory, monkeypatch: pytest.MonkeyPatch, is_asked_for: bool
) -> None:
    for topic in ("a", "b"):
        fill(directory, topic, options={**ROLLS, "retention.bytes": 2000})
    names = directory.topics()
    directory.delete_topic("a")
    monkeypatch.setattr(Directory, "topics", lambda self, internal=False: names)
    if is_asked_for:
        assert set(directory.maintain()) == {("b", 0)}
    else:
        directory._background_round()
    assert directory.partition_log("b", 0).start_offset > 0


def test_a_topic_that_goes_during_upkeep_is_passed_over(directory: Directory, moment: Moment) -> None:
    fill(directory, "a")
    fill(directory, "b")
    moment("list_directory", "/topics/a-0", lambda: directory.delete_topic("a"))
    assert set(directory.maintain()) == {("b", 0)}


# --- backups ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("is_made_again", [False, True])
def test_a_topic_that_goes_during_a_backup_is_left_out(
    directory: Directory, moment: Moment, folder: Path, is_made_again: bool
) -> None:
    """Before its files are linked."""
    fill(directory, "a")
    fill(directory, "passing")

    def delete() -> None:
        directory.delete_topic("passing")
        if is_made_again:
            fill(directory, "passing", 3)

    moment("link", "/topics/passing-0/" + "0" * 20 + ".log" if not is_made_again else ".log", delete, before=True)
    report = directory.backup(folder / "copy")
    assert (report.topics, report.partitions) == (1, 1)
    with Directory.open(folder / "copy", read_only=True) as copy:
        assert copy.topics() == ["a"] and values(copy, "a") == list(range(30))
    assert not list((folder / "copy/topics").glob("passing-*"))


@pytest.mark.parametrize("links", [True, False])
def test_a_topic_that_goes_after_its_files_were_linked_is_left_out(
    directory: Directory, moment: Moment, folder: Path, links: bool
) -> None:
    fill(directory, "a")
    fill(directory, "passing")
    moment("reach_failpoint", "backup.linked", lambda: directory.delete_topic("passing"))
    if not links:
        oscalls.inject("link", errno=errno.EXDEV)
    assert directory.backup(folder / "copy").topics == 1
    assert [name.name for name in (folder / "copy/topics").glob("*-0")] == ["a-0"]
    assert not list((folder / "store/control").glob("backup.*"))


def test_a_backup_begins_anew_with_a_partition_that_changes(directory: Directory, moment: Moment, folder: Path) -> None:
    """Segments go before they are linked, or after it; one that was compacted is another file of the same name."""
    log = fill(directory, "a")
    last = f"{log.segments()[-1].base_offset:020}.log"
    moment("link", f"/topics/a-0/{last}", lambda: log.delete_records(20), before=True)
    directory.backup(folder / "first")
    moment("link", f"/topics/a-0/{last}", lambda: log.delete_records(25))
    directory.backup(folder / "second")
    for name, start in (("first", 20), ("second", 25)):
        with Directory.open(folder / name, read_only=True) as copy:
            assert values(copy, "a") == list(range(start, 30))


@pytest.mark.parametrize("before", [True, False])
def test_a_backup_takes_a_segment_that_is_compacted_meanwhile(
    directory: Directory, moment: Moment, folder: Path, before: bool
) -> None:
    """Before it is linked, or after it."""
    options = {**ROLLS, "cleanup.policy": "compact", "min.cleanable.dirty.ratio": 0}
    log = fill(directory, "a", 20, options)
    assert len(log.segments()) == 2
    first = Path(log.segments()[0].path)
    inode = first.stat().st_ino
    moment("link", f"/topics/a-0/{first.name}", log.maintain, before=before)
    report = directory.backup(folder / "copy")
    assert first.stat().st_ino != inode
    assert report.linked_bytes == (folder / "copy/topics/a-0" / first.name).stat().st_size
    with Directory.open(folder / "copy", read_only=True) as copy:
        assert values(copy, "a") == values(directory, "a") != list(range(20))


def test_a_backup_of_a_partition_that_changes_again_and_again_is_given_up(
    directory: Directory, moment: Moment, folder: Path
) -> None:
    log = fill(directory, "a")
    oscalls.inject("link", errno=errno.ENOENT, nth=2, sticky=True)
    with pytest.raises(StorageError, match="changed 20 times while it was backed up: try again"):
        directory.backup(folder / "copy")
    oscalls.clear()
    assert list((folder / "copy").iterdir()) == []
    active = Path(log.segments()[-1].path)
    whole = active.read_bytes()
    moment("reach_failpoint", "backup.linked", lambda: os.truncate(active, 100))
    with pytest.raises(StorageError, match=r"has only 100 of \d+ bytes: something else changes it"):
        directory.backup(folder / "copy")
    active.write_bytes(whole)
    assert list((folder / "copy").iterdir()) == []


def test_a_reader_cannot_back_up_to_another_file_system(root: Path, folder: Path) -> None:
    Directory.open(root).close()
    with Directory.open(root, read_only=True) as store:
        oscalls.inject("link", errno=errno.EXDEV)
        with pytest.raises(NotSupportedError, match="another file system.*open the store for writing"):
            store.backup(folder / "copy")
        oscalls.clear()
    assert list((folder / "copy").iterdir()) == []


def test_a_reader_backs_up_transactions_without_a_writer_beside_it(root: Path, folder: Path) -> None:
    with Directory.open(root, durability="os") as store:
        store.create_topic("a")
        writer = Writer(store, "pay")
        writer.transaction("a", [b"00001", b"00002"])
        writer.close()
    with Directory.open(root, read_only=True) as store:
        store.backup(folder / "copy")
    with Directory.open(folder / "copy", durability="os") as copy:
        assert values(copy, "a") == [1, 2]


# --- records of internal topics --------------------------------------------------------------------------------------


def test_fields_that_kafka_would_not_write_are_refused() -> None:
    with pytest.raises(CorruptRecordError, match=r"the value of a record in x has a varint of more than 5 bytes"):
        FieldReader(b"\xff" * 6, "value", "x").varint()
    short_id = struct.pack(">hqiBq", 4, 7, -1, 1, 0) + bytes([1, 0, 3]) + b"abc"
    with pytest.raises(CorruptRecordError, match="has a topic id of 3 bytes, expected 16"):
        decode_value(short_id)
    with pytest.raises(ConfigError, match="have at most 32767 bytes, found 40000"):
        encode_key("g" * 40_000, "a", 0)


# --- consumers -------------------------------------------------------------------------------------------------------


def sent(store: fastlog.Store, topic: str, count: int) -> None:
    store.create_topic(topic, exist_ok=True)
    store.topic(topic).partition(0).append([b"%d" % number for number in range(count)])


def test_arguments_of_consumers_that_make_no_sense(store: fastlog.Store) -> None:
    sent(store, "a", 1)
    store.create_topic("b", partitions=2)
    with pytest.raises(ConfigError, match=r"partitions=\[1, …\] with 2 topics: say which one"):
        store.consumer(["a", "b"], partitions=[1])
    with pytest.raises(ConfigError, match="value_deserializer is a int: expected a callable that takes bytes"):
        store.consumer("a", value_deserializer=5)  # type: ignore[call-overload]
    with store.consumer("a") as consumer:
        with pytest.raises(ConfigError, match="timestamp=5: expected an aware datetime"):
            consumer.seek("a", 0, timestamp=5)  # type: ignore[arg-type]
        with pytest.raises(ConfigError, match="'a', None: expected a topic and a partition's number"):
            consumer.seek("a", offset=0)
    with pytest.raises(UnknownTopicError, match="topic 'b' has partitions 0 to 1, found 2"):
        store.reset_offsets("g", to="earliest", topics=[TopicPartition("b", 2)])


def test_a_time_is_sought_in_a_partition_or_in_all_of_a_topic(store: fastlog.Store) -> None:
    start = datetime(2026, 1, 1, tzinfo=UTC)
    first = int(start.timestamp() * 1000)
    for topic in ("a", "b"):
        store.create_topic(topic, partitions=2)
        for number in range(2):
            store.topic(topic).partition(number).append([b"x"] * 5, timestamps=[first + 1000 * i for i in range(5)])
    with store.consumer(["a", "b"], start="earliest") as consumer:
        consumer.seek("a", timestamp=start + timedelta(seconds=2))
        consumer.seek("b", 1, timestamp=start + timedelta(seconds=4))
        found = [consumer.position(topic, number) for topic in ("a", "b") for number in range(2)]
        assert found == [2, 2, 0, 4]
        with pytest.raises(UnknownTopicError, match="c is not assigned to this consumer, which reads a-0, a-1, b-0"):
            consumer.seek("c", timestamp=start)


def test_ends_are_told_of_partitions_that_are_not_read(store: fastlog.Store) -> None:
    sent(store, "a", 3)
    sent(store, "b", 5)
    store.topic("b").partition(0).delete_records(2)
    where = TopicPartition("b", 0)
    with store.consumer("a") as consumer:
        assert consumer.end_offsets([where]) == {where: 5}
        assert consumer.beginning_offsets([where]) == {where: 2}


def test_iterations_end_with_the_consumer(store: fastlog.Store) -> None:
    sent(store, "a", 3)
    with store.consumer("a", start="earliest") as consumer:
        batches = consumer.batches()
        assert len(next(batches)) == 3
    assert list(batches) == []
    with store.consumer("a", start="earliest") as consumer:
        records = consumer.records(until=None)
        assert next(records).offset == 0
    assert list(records) == []


def test_an_end_that_lies_in_a_gap_is_reached(store: fastlog.Store) -> None:
    """A marker of a transaction takes an offset, and is no record."""
    store.create_topic("a")
    with store.producer(transactional_id="pay") as producer:
        for _ in range(2):
            with producer.transaction() as transaction:
                transaction.send_many("a", [b"x", b"y"])
    with store.consumer("a", start="earliest") as consumer:
        assert [record.offset for record in consumer.records(until={TopicPartition("a", 0): 2})] == [0, 1]
        consumer.seek("a", 0, offset=2)
        assert list(consumer.records(until={TopicPartition("a", 0): 3})) == []
        assert [record.offset for record in consumer.poll(timeout=0)] == [3, 4]


def test_a_position_among_records_of_an_open_transaction_waits_for_its_end(store: fastlog.Store) -> None:
    store.create_topic("a")
    with (
        store.producer(transactional_id="pay") as producer,
        store.consumer("a", start="earliest", out_of_range="raise") as consumer,
    ):
        with producer.transaction() as transaction:
            transaction.send_many("a", [b"x", b"y", b"z"])
            producer.flush()
            consumer.seek("a", 0, offset=2)
            assert consumer.poll(timeout=0) == []
            assert consumer.position("a", 0) == 2
        assert [record.value for record in consumer.poll(timeout=0)] == [b"z"]


def test_a_bounded_read_waits_for_a_transaction_that_may_move_its_offsets(store: fastlog.Store) -> None:
    sent(store, "a", 5)
    with store.producer(transactional_id="pay") as producer:
        first = store.consumer("a", group="g", start="earliest")
        with producer.transaction(first) as transaction:
            assert len(first.poll(2, timeout=0)) == 2
            transaction.commit_offsets()
            first.close()
            with store.consumer("a", group="g", start="earliest") as second:
                assert list(second.records(until="end", idle_timeout=0.1)) == [], "not known yet from where on"
                transaction.commit()
                assert [record.offset for record in second.records(until="end")] == [2, 3, 4]


def test_a_deserializer_that_moves_its_consumer_fails_with_its_own_error(store: fastlog.Store) -> None:
    sent(store, "a", 3)

    def decode(data: bytes) -> str:
        if data == b"1":
            consumer.seek_to_beginning()
            raise ValueError("not one of mine")
        return data.decode()

    with store.consumer("a", start="earliest", value_deserializer=decode) as consumer:
        records = iter(consumer)
        assert next(records).value == "0"
        with pytest.raises(ValueError, match="not one of mine"):
            next(records)
        assert consumer.position("a", 0) == 0


def test_a_topic_that_goes_while_others_are_read_is_passed_over(store: fastlog.Store) -> None:
    for topic in ("a", "b"):
        sent(store, topic, 2)

    def decode(data: bytes) -> bytes:
        if "b" in store.topics():
            store.delete_topic("b")
        return data

    with store.consumer(["a", "b"], start="earliest", value_deserializer=decode) as consumer:
        assert [(record.topic, record.offset) for record in consumer.poll(timeout=0)] == [("a", 0), ("a", 1)]
        assert consumer.poll(timeout=0) == [] and consumer.assignment() == [TopicPartition("a", 0)]


def test_committing_nothing_writes_nothing(store: fastlog.Store) -> None:
    sent(store, "a", 3)
    with store.consumer("a", group="g", start="earliest", auto_commit=False) as consumer:
        consumer.poll(timeout=0)
        consumer.commit({})
        assert consumer.stats().commits == 0
        assert consumer.committed() == {TopicPartition("a", 0): None}


def test_an_automatic_commit_that_fails_costs_repeats_only(
    store: fastlog.Store, caplog: pytest.LogCaptureFixture
) -> None:
    sent(store, "a", 3)
    consumer = store.consumer("a", group="g", start="earliest", auto_commit_interval="1h")
    assert len(consumer.poll(2, timeout=0)) == 2
    consumer.commit()
    assert len(consumer.poll(timeout=0)) == 1
    assert consumer.poll(timeout=0) == []
    oscalls.inject("pwrite", errno=errno.EIO)
    consumer.close()
    assert oscalls.injected() == 1
    oscalls.clear()
    assert "group 'g': an automatic commit failed: " in caplog.text
    with store.consumer("a", group="g", start="earliest") as consumer:
        assert [record.offset for record in consumer.poll(timeout=0)] == [2]


def test_offsets_of_a_deleted_topic_that_cannot_be_taken_back_count_for_nothing(
    store: fastlog.Store, moment: Moment, caplog: pytest.LogCaptureFixture
) -> None:
    sent(store, "a", 3)
    with store.consumer("a", group="g", start="earliest") as consumer:
        consumer.poll(timeout=0)
        consumer.commit()
    moment("reach_failpoint", "store.topic_forgotten", lambda: oscalls.inject("pwrite", errno=errno.EIO))
    store.delete_topic("a")
    assert oscalls.injected() == 1
    oscalls.clear()
    assert "offsets of the deleted topic 'a' were not taken back: " in caplog.text
    sent(store, "a", 1)
    with store.consumer("a", group="g", start="earliest") as consumer:
        assert consumer.poll(timeout=0)[0].offset == 0


def test_records_that_retention_by_size_will_take_are_warned_of(
    store: fastlog.Store, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("fastlog.clients.consumer.RETENTION_CHECK_MS", 0)
    logs = []
    for topic, policy in (("kept", "compact"), ("short", "delete")):
        options = {"retention.bytes": 3000, "cleanup.policy": policy, **ROLLS}
        logs.append(store.create_topic(topic, config=options).partition(0))
    with store.consumer(["kept", "short"], group="g", start="earliest", auto_commit=False) as consumer:
        consumer.poll(timeout=0)
        assert "about to lose" not in caplog.text
        for log in logs:
            for _ in range(4):
                log.append([bytes(900)], keys=[b"k"])
        assert consumer.poll(1, timeout=0)
        warnings = [record.getMessage() for record in caplog.records if "about to lose" in record.getMessage()]
        sizes = sum(segment.size for segment in logs[1].segments())
        assert [text for text in warnings if "short-0" not in text] == [], "a compacted topic loses no last values"
        assert warnings[0].startswith("group 'g' is about to lose records of short-0")
        assert f"{sizes} bytes are still to be read, and retention.bytes is 3000" in warnings[0]


class Member:
    """What a pulse looks after; the first beat fails."""

    is_busy = False

    def __init__(self) -> None:
        self.beats = 0
        self.has_recovered = threading.Event()

    def beat(self) -> None:
        self.beats += 1
        if self.beats == 1:
            raise ValueError("a bug")
        self.has_recovered.set()

    def interrupt(self) -> None:
        raise AssertionError("nobody is busy")


class Sleeper:
    """What a pulse sleeps by."""

    def listen(self, bells: int) -> int:
        return 0

    def sleep(self, heard: int, milliseconds: float) -> bool:
        return False

    def wake(self) -> None:
        return


def test_the_upkeep_of_a_consumer_goes_on_after_a_failure(caplog: pytest.LogCaptureFixture) -> None:
    member = Member()
    pulse = Pulse(weakref.ref(member), Sleeper(), 0, 10)
    assert member.has_recovered.wait(10)
    pulse.stop()
    assert "the upkeep of a consumer failed, and is tried again" in caplog.text and "a bug" in caplog.text


def test_what_cannot_be_delivered_at_the_end_of_the_process_is_told(
    store: fastlog.Store, caplog: pytest.LogCaptureFixture
) -> None:
    store.create_topic("a")
    producer = store.producer(linger="1h")
    delivery = producer.send("a", b"x")
    oscalls.inject("pwrite", errno=errno.EIO)
    deliver_all()
    oscalls.clear()
    assert "records were not delivered before the process ended: " in caplog.text
    assert producer.closed and isinstance(delivery.exception(0), StorageError)


def test_a_consumer_that_was_put_out_in_a_transaction_cannot_move_its_offsets(store: fastlog.Store) -> None:
    sent(store, "a", 5)
    store.create_topic("b")
    with (
        store.producer(transactional_id="pay") as producer,
        store.consumer("a", group="g", start="earliest", max_poll_interval="1s") as slow,
    ):
        transaction = producer.transaction(slow)
        with pytest.raises(CommitFailedError, match="is no owner any more .* the records come again"), transaction:
            records = slow.poll(2, timeout=0)
            transaction.send_many("b", [record.value for record in records])
            with store.consumer("a", group="g", start="earliest", auto_commit=False) as other:
                assert [record.offset for record in other.poll(timeout=10)] == [0, 1, 2, 3, 4]
                transaction.commit_offsets()
        assert transaction.outcome == "aborted"
    with store.consumer("b", start="earliest") as reader:
        assert reader.poll(timeout=0) == []


def test_a_transaction_is_aborted_though_its_consumer_is_busy(store: fastlog.Store) -> None:
    sent(store, "a", 2)
    with store.producer(transactional_id="pay") as producer, store.consumer("a", group="g") as consumer:
        transaction = producer.transaction(consumer)
        transaction.__enter__()
        consumer.poll(timeout=0)

        def poll() -> None:
            while True:
                try:
                    consumer.poll()
                    return
                except LockedError:
                    time.sleep(0.001)  # the other thread asks whether this one is there

        thread = threading.Thread(target=poll)
        thread.start()
        with pytest.raises(LockedError, match="another thread is using this consumer"):
            while True:
                consumer.lag()
                time.sleep(0.001)
        with pytest.raises(LockedError, match="another thread is using this consumer"):
            transaction.abort()
        assert transaction.outcome == "aborted"
        consumer.wakeup()
        thread.join()
        with producer.transaction() as following:
            following.send("a", b"x")
        assert following.outcome == "committed"


# --- groups ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def group(directory: Directory) -> Iterator[Membership]:
    """The only member of a group, which owns both partitions of a topic."""
    directory.create_topic("t", 2)
    member = Membership(directory, "g", topics=["t"])
    member.poll()
    assert len(member.owned()) == 2
    yield member
    member.leave()


def test_a_lock_that_is_not_let_go_of_is_named(
    directory: Directory, group: Membership, caplog: pytest.LogCaptureFixture
) -> None:
    """As by a process that was stopped."""
    table = group._table
    with table.locked(), pytest.raises(LockedError, match=r"is changing the group 'g' for more than 0\.01 s"):
        table.update(timeout_ms=10)
    with open(table._lock_path) as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        with pytest.raises(LockedError, match=r"/lock is locked: .* for more than 0\.01 s; it may be stopped"):
            table.update(timeout_ms=10)
        directory.add_partitions("t", 3)
        assert group.poll() is None, "the others go on with what they have"
        assert len(group.owned()) == 2
        table._is_due = True
        table._update_patiently()
        assert f"group 'g': cannot look after its members now: {table._lock_path} is locked" in caplog.text
    deadline = time.monotonic() + 10
    while len(group.owned()) < 3:  # the lock may be somebody else's for a moment, or the change not yet seen
        assert time.monotonic() < deadline, "the new partition is not taken"
        group.poll()


def test_the_table_of_another_version_is_not_guessed_at(
    directory: Directory, group: Membership, caplog: pytest.LogCaptureFixture
) -> None:
    page, _, _ = group._table.view()
    _, known = page.read()
    page.publish(json.dumps({**json.loads(known), "format": FORMAT + 1}).encode())
    with pytest.raises(UnsupportedFormatError, match=f"has format {FORMAT + 1}, this fastlog knows {FORMAT}: let all"):
        peek(directory, "g")
    group._table.tick()
    assert "group 'g': cannot read its table now: the table of a group has format" in caplog.text
    page.publish(known)
    group._table.tick()
    assert len(group.owned()) == 2


def test_a_group_stays_as_it_was_when_its_table_cannot_grow(directory: Directory, group: Membership) -> None:
    before = group.owned()
    directory.create_topic("many", FIRST_OWNERS)
    oscalls.inject("pwrite", errno=errno.ENOSPC, sticky=True)
    with pytest.raises(StorageError):
        Membership(directory, "g", topics=["t", "many"])
    oscalls.clear()
    assert sorted(os.listdir(group._table.folder)) == ["lock", "table"]
    assert group._table.view().page.load(STATE) == LIVE
    assert group.poll() is None and group.owned() == before
    group.commit(dict.fromkeys(before, OffsetAndMetadata(1)))
    other = Membership(directory, "g", topics=["t", "many"])
    assert len(group._table.view().table.indexes) == FIRST_OWNERS + 2
    other.leave()


def test_letting_go_waits_for_who_replaces_the_page(directory: Directory, group: Membership) -> None:
    """And ends what somebody began who died in it."""
    page, _, _ = group._table.view()
    OffsetStore(directory).log("g").exchange([(page, STATE, LIVE)], [(page, STATE, MOVING)])
    group.release([TopicPartition("t", 0)])
    assert page.load(STATE) == LIVE
    assert list(group.owned()) == [TopicPartition("t", 1)]
    view = peek(directory, "g")
    assert view is not None and view.owner_value(TopicPartition("t", 0)) == 0
    view.page.close()


def test_a_topic_that_goes_while_a_group_follows_is_left_out(
    directory: Directory, monkeypatch: pytest.MonkeyPatch
) -> None:
    directory.create_topic("t", 1)
    directory.create_topic("gone", 1)
    member = Membership(directory, "g", topics=["t", "gone"])
    member.poll()
    names = directory.topics()
    directory.delete_topic("gone")
    monkeypatch.setattr(Directory, "topics", lambda self, internal=False: names)
    changes = member.poll()
    assert changes is not None and changes.lost == [TopicPartition("gone", 0)]
    assert list(member.owned()) == [TopicPartition("t", 0)]
    member.leave()


def test_nobody_is_looked_after_when_the_last_member_has_left(
    directory: Directory, caplog: pytest.LogCaptureFixture
) -> None:
    directory.create_topic("t", 1)
    member = Membership(directory, "g", topics=["t"])
    table = member._table
    member.leave()
    table._is_due = True
    table._update_patiently()
    assert table.users == 0 and not caplog.records


def test_members_leave_and_stores_close_though_threads_could_not_be_started(root: Path) -> None:
    def refuse(_: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    with Directory.open(root, durability="os") as store:
        store.create_topic("t", 1)
        member = Membership(store, "g", topics=["t"])
        coordinator = Coordinator.of(store)
        with pytest.MonkeyPatch.context() as patched:
            patched.setattr(threading.Thread, "start", refuse)
            for begin in (member._table._update_aside, coordinator._begin_sweep):
                with pytest.raises(RuntimeError, match="can't start new thread"):
                    begin()
        member.leave()
        coordinator.close()


def test_looking_at_a_table_that_is_being_replaced_does_not_wait_for_ever(directory: Directory) -> None:
    directory.create_topic("t", 1)
    member = Membership(directory, "g", topics=["t"])
    member._table.view().page.retire()
    with pytest.raises(
        LockedError, match="the table of group 'g' .* is being replaced, and its process does not go on"
    ):
        peek(directory, "g")
    Path(member._table.path).unlink()


# --- who lives -------------------------------------------------------------------------------------------------------


def test_a_slot_that_somebody_else_has_locked_is_not_entered(folder: Path) -> None:
    slots = Slots.open(str(folder / "slots"))
    first = slots.enter()
    assert repr(first) == f"<Slot {first.number}>"
    with open(slots.path, "r+b") as file:
        assert oscalls.lock_byte(file.fileno(), (1 << 20) + first.number + 1, slots.path)
        with pytest.raises(LockedError, match=f"has a lock on slot {first.number + 1}, which nobody was given"):
            slots.enter()
    third = slots.enter()
    assert third.number == first.number + 2
    third.leave()
    assert repr(third) == f"<Slot {third.number} (left)>"
    first.leave()
    slots.close()


def test_a_timer_that_closes_the_watcher_is_the_last(folder: Path) -> None:
    slots = Slots.open(str(folder / "slots"))
    watcher = Watcher(slots)
    called: list[str] = []
    closed = threading.Event()
    both_due = threading.Event()

    def close() -> None:
        called.append("closes")
        watcher.close()
        closed.set()

    watcher.every(0.001, lambda: both_due.wait(10))
    watcher.every(0.02, close)
    watcher.every(0.02, lambda: called.append("late"))
    time.sleep(0.05)
    both_due.set()
    assert closed.wait(10)
    watcher.close()
    assert called == ["closes"]
    slots.close()


# --- tests of applications -------------------------------------------------------------------------------------------


@pytest.fixture
def app() -> fastlog.App:
    return fastlog.App("a folder that nobody opens")


def test_a_harness_that_cannot_begin_leaves_nothing(
    app: fastlog.App, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stores, "MEMORY", str(folder))

    @app.subscriber("orders", group="mail")
    def mail(record: fastlog.Record) -> None:
        raise AssertionError("nothing is called")

    with pytest.raises(InvalidTopicError):
        Harness(app, partitions=0)
    assert list(folder.iterdir()) == []


def test_time_in_a_harness_does_not_go_back(app: fastlog.App) -> None:
    @app.subscriber("orders", group="mail")
    def mail(record: fastlog.Record) -> None:
        raise AssertionError("nothing is called")

    with Harness(app) as harness:
        before = harness.clock.now
        assert repr(harness) == f"<Harness of {harness.app!r} at {before:%Y-%m-%d %H:%M:%S}>"
        with pytest.raises(ConfigError, match=r"advance\(-1\): time does not go back"):
            harness.advance(-1)
        assert harness.clock.now == before


def test_of_many_dead_letters_some_are_told(app: fastlog.App) -> None:
    @app.subscriber("orders", group="mail", retry=None)
    def mail(record: fastlog.Record) -> None:
        raise ValueError(f"no letter {record.value!r}")

    with Harness(app) as harness:
        for number in range(23):
            harness.send("orders", b"%d" % number)
        harness.run_until_idle()
        with pytest.raises(AssertionError) as caught:
            harness.assert_no_dead_letters()
    assert "found 23:" in str(caught.value) and str(caught.value).endswith("\n  and 3 more")


def test_stores_of_tests_are_on_disk_where_there_is_no_memory(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stores, "MEMORY", str(folder))
    assert stores.folder_in_memory() == str(folder)
    monkeypatch.setattr(stores, "MEMORY", str(folder / "none"))
    assert stores.folder_in_memory() is None
    with stores.temporary_store() as store:
        assert not store.path.startswith(str(folder))


# --- backups --------------------------------------------------------------------------------------------------------


def test_a_store_in_which_deciders_come_all_the_time_is_not_copied(
    directory: Directory, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    directory.create_topic("t", 1)
    comers = itertools.count()
    monkeypatch.setattr(backup, "deciding", lambda directory: {"somebody": next(comers)})
    with pytest.raises(StorageError, match="transactions were decided in new partitions .* each of the 20 times"):
        directory.backup(folder / "copy")
    assert list((folder / "copy").iterdir()) == []


def test_a_long_note_with_an_offset(directory: Directory) -> None:
    """Its length takes two bytes."""
    directory.create_topic("t", 1)
    offsets = OffsetStore(directory)
    offsets.commit("g", {TopicPartition("t", 0): OffsetAndMetadata(0, "n" * 300)})
    found = offsets.all_committed("g")[TopicPartition("t", 0)]
    assert (found.offset, found.metadata) == (0, "n" * 300)


def test_a_reader_of_a_store_without_the_topic_of_its_offsets(folder: Path) -> None:
    """Its folders are there: somebody has removed a file."""
    with Directory.open(folder / "store", durability="os") as store:
        store.create_topic("t", 1)
        OffsetStore(store).commit("g", {TopicPartition("t", 0): OffsetAndMetadata(0)})
    path = folder / "store" / "config" / "__consumer_offsets.json"
    path.unlink()
    with (
        Directory.open(folder / "store", read_only=True) as store,
        pytest.raises(fastlog.UnknownTopicError, match=f"{path} is not there"),
    ):
        OffsetStore(store).all_committed("g")
