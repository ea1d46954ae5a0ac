"""Several processes and one store: created, changed, deleted and opened at once; killed at every step; a full disk."""

from __future__ import annotations

import os
import random
import signal
import threading
import time
from multiprocessing.connection import Connection
from pathlib import Path

import pytest

import fastlog
from fastlog._native import oscalls
from fastlog.store import files
from fastlog.store.directory import Directory
from tests.forking import SERVER, wait_until_stopped
from tests.messaging.processes import crew

POINTS = [name for name in oscalls.FAILPOINTS if name.startswith("store.")]


def change_everything(root: str, failpoint: str, nth: int) -> None:
    """Everything that changes a store, in one short life."""
    oscalls.arm(failpoint, "kill", nth)
    with Directory.open(root, durability="os") as store:
        store.create_topic("kept", partitions=2, exist_ok=True)
        store.partition_log("kept", 1).append([b"x"])
        store.create_topic("gone", partitions=2)
        store.partition_log("gone", 0).append([b"y"])
        store.partition_log("gone", 1).append([b"y"])
        store.alter_topic("kept", {"retention": "7d"})
        store.add_partitions("kept", 3)
        store.delete_topic("gone")
        store.create_topic("gone")
        store.partition_log("gone", 0).append([b"z"])


def live(root: Path, failpoint: str, nth: int = 1) -> int | None:
    """One life in a process of its own: its exit code."""
    process = SERVER.Process(target=change_everything, args=(str(root), failpoint, nth))
    process.start()
    process.join(60)
    return process.exitcode


def check_whole(root: Path) -> None:
    """Whatever happened before: the store opens, what it says is true, and it can be used."""
    with Directory.open(root, durability="os") as store:
        assert set(store.topics()) <= {"kept", "gone"}
        for name in store.topics():
            for partition in range(store.topic(name).partitions):
                log = store.partition_log(name, partition)
                assert log.end_offset in (0, 1, 2, 3) and not log.verify().damages
                log.append([b"again"])
        if "gone" in store.topics():
            store.delete_topic("gone")
        store.create_topic("gone", partitions=5)
        for partition in range(5):
            assert store.partition_log("gone", partition).end_offset == 0
        store.delete_topic("gone")
    left = sorted(
        str(path.relative_to(root)) for path in root.rglob("*") if ".tmp" in path.name or "-delete" in path.name
    )
    assert left == []
    assert (root / "topics/.kafka_cleanshutdown").exists()


@pytest.mark.parametrize("point", POINTS)
def test_I4_killed_at_every_step(folder: Path, point: str) -> None:
    deaths = 0
    for nth in range(1, 5):
        root = folder / f"store{nth}"
        code = live(root, point, nth)
        deaths += code == -signal.SIGKILL
        assert code in (0, -signal.SIGKILL)
        check_whole(root)
        if code == 0:
            break
    assert deaths, f"nobody passed {point}"


def test_the_next_opener_finishes_a_deletion(folder: Path) -> None:
    root = folder / "store"
    assert live(root, "store.partition_renamed") == -signal.SIGKILL
    before = set((root / "topics").iterdir())
    assert any(path.name.endswith("-delete") for path in before)
    with Directory.open(root, read_only=True) as reader:
        assert reader.topics() == ["kept"]
    assert set((root / "topics").iterdir()) == before
    with Directory.open(root) as store:
        assert store.topics() == ["kept"] and dict(store.topic("kept").options) == {"retention.ms": 604_800_000}
        assert [path.name for path in (root / "topics").glob("gone*")] == []


def test_others_go_on_when_a_deleter_dies(folder: Path) -> None:
    """Nobody is alone, so nobody tidies up: the next who touches the topic finishes."""
    root = folder / "store"
    with Directory.open(root, durability="os") as store:
        assert live(root, "store.topic_deleting") == -signal.SIGKILL
        time.sleep(0.2)
        assert store.topics() == ["kept"]
        with pytest.raises(fastlog.UnknownTopicError):
            store.lease("gone", 0)
        store.create_topic("gone")
        assert store.partition_log("gone", 0).end_offset == 0


def test_a_change_is_seen_though_its_maker_died_before_telling(folder: Path) -> None:
    root = folder / "store"
    with Directory.open(root, durability="os") as store:
        version = store.topics_version
        assert live(root, "store.topic_written") == -signal.SIGKILL
        time.sleep(0.2)
        assert store.topics_version != version and store.topics() == ["kept"]


# --- several at once -------------------------------------------------------------------------------------------------


def churn(connection: Connection, root: str, seed: int, rounds: int) -> None:
    """Open, create, delete, append, close, in no order; say what went wrong."""
    chance = random.Random(seed)
    appended = 0
    try:
        for _ in range(rounds):
            with Directory.open(root, durability="os") as store:
                store.create_topic("shared", partitions=2, exist_ok=True)
                for _ in range(6):
                    name = f"t{chance.randrange(3)}"
                    try:
                        what = chance.randrange(5)
                        if what == 0:
                            store.create_topic(name, partitions=chance.choice([1, 2]), exist_ok=chance.random() < 0.5)
                        elif what == 1:
                            store.delete_topic(name)
                        elif what == 2:
                            store.alter_topic(name, {"retention.ms": chance.randrange(10**9, 10**10)})
                        else:
                            with store.lease(name, 0) as lease:
                                lease.log.append([b"x"])
                    except (fastlog.UnknownTopicError, fastlog.TopicExistsError):
                        pass
                    with store.lease("shared", chance.randrange(2)) as lease:
                        lease.log.append([b"x"])
                        appended += 1
        connection.send(appended)
    except BaseException as error:
        connection.send(f"seed {seed}: {type(error).__name__}: {error}")


def test_several_processes_create_delete_and_open_the_same_topics(folder: Path) -> None:
    seed = random.SystemRandom().randrange(1 << 30)
    print(f"seed {seed}")
    with crew() as start:
        workers = [start(churn, str(folder / "store"), seed + number, 8) for number in range(4)]
        answers = [worker.answer(120) for worker in workers]
    assert all(isinstance(answer, int) for answer in answers), answers
    with Directory.open(folder / "store") as store:
        ends = [store.partition_log("shared", number).end_offset for number in range(2)]
        assert sum(ends) == sum(answers)
    assert not list((folder / "store/topics").glob("*-delete"))
    assert (folder / "store/topics/.kafka_cleanshutdown").exists()


def test_several_processes_and_kills(folder: Path) -> None:
    seed = random.SystemRandom().randrange(1 << 30)
    print(f"seed {seed}")
    chance = random.Random(seed)
    with crew() as start:
        for _ in range(2):
            workers = [start(churn, str(folder / "store"), chance.randrange(1 << 30), 50) for _ in range(2)]
            time.sleep(0.4 + chance.random())
            for worker in workers:
                worker.kill()
                if worker.connection.poll():
                    try:
                        answer = worker.connection.recv()
                    except EOFError:
                        continue
                    assert isinstance(answer, int), answer
    with Directory.open(folder / "store") as store:
        for name in store.topics():
            for partition in range(store.topic(name).partitions):
                assert not store.partition_log(name, partition).verify().damages
    assert not list((folder / "store/topics").glob("*-delete"))


def open_and_tell(connection: Connection, root: str) -> None:
    with Directory.open(root, durability="os") as store:
        connection.send(store.cluster_id)
        connection.recv()


def test_a_first_opening_by_many_makes_one_store(folder: Path) -> None:
    with crew() as start:
        workers = [start(open_and_tell, str(folder / "store")) for _ in range(5)]
        ids = {worker.answer() for worker in workers}
        assert len(ids) == 1
        for worker in workers:
            worker.tell("close")


def hold(connection: Connection, root: str) -> None:
    with Directory.open(root, durability="os") as store:
        log = store.partition_log("a", 0)
        connection.send("open")
        connection.recv()
        try:
            log.append([b"x"])
            connection.send("appended")
        except fastlog.UnknownTopicError:
            connection.send("unknown topic")
        connection.send(store.topics())


def test_another_process_notices_a_deletion(folder: Path) -> None:
    with Directory.open(folder / "store", durability="os") as store, crew() as start:
        store.create_topic("a")
        store.create_topic("b")
        worker = start(hold, str(folder / "store"))
        assert worker.answer() == "open"
        store.delete_topic("a")
        worker.tell("append")
        assert worker.answer() == "unknown topic"
        assert worker.answer() == ["b"]
        assert worker.join() == 0


# --- a full disk -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("call", ["open", "pwrite", "fdatasync", "fsync", "rename"])
def test_I9_a_full_disk_while_creating(folder: Path, call: str) -> None:
    """Every call fails once: an error, nothing half-made, and the next try is fine."""
    failures = 0
    for nth in range(1, 60):
        root = folder / f"store{nth}"
        oscalls.inject(call, errno=28, nth=nth)
        try:
            with Directory.open(root, durability="os") as store:
                store.create_topic("a", partitions=2)
                store.partition_log("a", 0).append([b"x"])
                oscalls.clear()
        except fastlog.StorageError:
            failures += 1
        else:
            break
        finally:
            oscalls.clear()
        with Directory.open(root, durability="os") as store:
            if "a" not in store.topics():
                store.create_topic("a", partitions=2)
            log = store.partition_log("a", 0)
            assert log.end_offset in (0, 1) and log.append([b"y"]) in (0, 1)
        assert not [path for path in root.rglob("*") if ".tmp" in path.name]
    else:
        pytest.fail(f"{call} is called more often than that")
    assert failures > 3


# --- frozen processes ------------------------------------------------------------------------------------------------


def open_log(connection: Connection, root: str, failpoint: str) -> None:
    oscalls.arm(failpoint, "stop")
    try:
        with Directory.open(root, durability="os") as store:
            connection.send(store.partition_log("a", 0).append([b"x"]))
    except fastlog.UnknownTopicError:
        connection.send("unknown topic")


@pytest.mark.parametrize("failpoint", ["store.partition_made", "open.recovered"])
def test_nobody_deletes_a_topic_while_a_partition_is_opened(folder: Path, failpoint: str) -> None:
    root = folder / "store"
    with Directory.open(root, durability="os", lock_timeout=0.3) as store, crew() as start:
        store.create_topic("a")
        worker = start(open_log, str(root), failpoint)
        wait_until_stopped(worker.pid)
        for change in (lambda: store.delete_topic("a"), lambda: store.alter_topic("a", {"retention": "1d"})):
            with pytest.raises(fastlog.LockedError, match="is opening a partition of 'a'"):
                change()
        assert store.topics() == ["a"]
        os.kill(worker.pid, signal.SIGCONT)
        assert worker.answer() == 0
        store.delete_topic("a")
        assert not list((root / "topics").glob("a-*"))


def test_a_lock_lies_on_the_file_that_is_there(folder: Path) -> None:
    """Who waited for the lock of a file that was replaced meanwhile holds the lock of its successor."""
    path = str(folder / "file")
    for change in (lambda: oscalls.replace_file(path, b"new"), lambda: oscalls.remove(path)):
        oscalls.replace_file(path, b"old")
        found: list[bool] = []

        def wait(found: list[bool] = found) -> None:
            with files.locked_file(path, 5000, "holds it", shared=False) as is_there:
                if is_there:
                    fd = oscalls.open_file(path)
                    found.append(not oscalls.try_lock(fd, shared=True))
                    oscalls.close_file(fd)

        with files.locked_file(path, 5000, "holds it", shared=False) as is_there:
            assert is_there
            thread = threading.Thread(target=wait)
            thread.start()
            time.sleep(0.1)
            change()
        thread.join()
        assert found == ([True] if oscalls.file_size(path) else [])
