"""A store of topics: what there is, how partitions are opened, what is refused."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import random
import re
import subprocess
import sys
import threading
import time
import tracemalloc
from functools import partial
from pathlib import Path
from typing import Any

import pytest

import fastlog
from fastlog._core import bell_of, encode_batch
from fastlog._native import oscalls
from fastlog.liveness import Watcher
from fastlog.store import naming
from fastlog.store.catalog import read_topic
from fastlog.store.directory import Directory
from tests.dying import dies_at_change


def test_topics_are_created_described_and_deleted(tmp_path: Path) -> None:
    with Directory.open(tmp_path / "store") as store:
        info = store.create_topic("orders", partitions=4, options={"retention": "7d", "segment.bytes": "1MiB"})
        assert info == store.topic("orders")
        assert info.partitions == 4 and len(info.topic_id) == 22 and not info.internal
        assert dict(info.options) == {"retention.ms": 7 * 86_400_000, "segment.bytes": 1 << 20}
        assert store.topics() == ["orders"]
        before = store.topics_version
        store.delete_topic("orders")
        assert store.topics() == [] and store.topics_version != before
        with pytest.raises(fastlog.UnknownTopicError):
            store.topic("orders")


def test_a_lease_opens_a_partition_and_makes_its_folder(tmp_path: Path) -> None:
    with Directory.open(tmp_path / "store", durability="os") as store:
        info = store.create_topic("orders", partitions=2)
        folder = tmp_path / "store/topics/orders-1"
        assert not folder.exists() and not store.is_created("orders", 1)
        with store.lease("orders", 1) as lease:
            assert lease.log.append([b"a"]) == 0
            assert (lease.log.topic, lease.log.partition) == ("orders", 1)
        assert store.is_created("orders", 1)
        assert (folder / "partition.metadata").read_text() == f"version: 0\ntopic_id: {info.topic_id}"
        log = store.partition_log("orders", 1)
        assert log is store.partition_log("orders", 1) and log.end_offset == 1
    assert log.closed
    with Directory.open(tmp_path / "store") as store, store.lease("orders", 1) as lease:
        assert [bytes(record.value) for record in lease.log.records()] == [b"a"]


def test_a_partition_that_is_being_made_is_empty_for_readers(tmp_path: Path) -> None:
    """Somebody makes it just now, or has died over it: its files are not all there."""
    root = tmp_path / "store"
    with fastlog.open(root) as store:
        store.create_topic("orders", 1)
        log = store.topic("orders").partition(0)
        folder = Path(log.path)
        with fastlog.open(root, read_only=True) as reader:
            for path in sorted(folder.iterdir()):
                if path.suffix in (".log", ".index", ".timeindex"):
                    path.rename(tmp_path / path.name)
            assert not reader.directory.is_created("orders", 0)
            assert list(reader.topic("orders").read()) == []
            with reader.consumer("orders", start="earliest") as consumer:
                assert consumer.poll(timeout=0) == []
                for path in tmp_path.glob("0*"):
                    path.rename(folder / path.name)
                log.append([b"first"])
                assert [record.value for record in consumer.poll(timeout=10)] == [b"first"]
    # a log that has lost its segments is none that is being made
    for path in folder.glob("*.log"):
        path.unlink()
    with fastlog.open(root, read_only=True) as reader:
        assert reader.directory.is_created("orders", 0)
        with pytest.raises(fastlog.CorruptLogError):
            list(reader.topic("orders").read())


def test_names_are_kafkas(tmp_path: Path) -> None:
    with Directory.open(tmp_path / "store") as store:
        for name in ("", ".", "..", "a b", "a/b", "ä", "x" * 250, 7):
            with pytest.raises(fastlog.InvalidTopicError):
                store.create_topic(name)  # type: ignore[arg-type]
        store.create_topic("x" * 249)
        with store.lease("x" * 249, 0) as lease:
            lease.log.append([b"a"])
        store.create_topic("a.b")
        with pytest.raises(fastlog.InvalidTopicError, match="collides with the topic 'a.b'"):
            store.create_topic("a_b")
        with pytest.raises(fastlog.TopicExistsError):
            store.create_topic("a.b")
        assert store.create_topic("a.b", partitions=9, exist_ok=True).partitions == 1
        with pytest.raises(fastlog.InvalidTopicError, match="fastlog's own"):
            store.create_topic("__consumer_offsets")


def test_unknown_names_tell_the_nearest(tmp_path: Path) -> None:
    with Directory.open(tmp_path / "store") as store:
        store.create_topic("orders")
        with pytest.raises(fastlog.UnknownTopicError, match="did you mean 'orders'"):
            store.lease("order", 0)
        with pytest.raises(fastlog.UnknownTopicError, match="it has 1, numbered from 0"):
            store.lease("orders", 1)
        with pytest.raises(fastlog.ConfigError, match=r"did you mean 'retention\.ms'"):
            store.create_topic("other", options={"retentoin.ms": 5})
        with pytest.raises(fastlog.ConfigError, match="out of range"):
            store.create_topic("other", options={"retention.ms": -2})
        assert store.topics() == ["orders"]


def test_layout_of_a_new_store(tmp_path: Path) -> None:
    root = tmp_path / "store"
    with Directory.open(root) as store:
        assert {path.name for path in root.iterdir()} == {"fastlog.json", "topics", "config", "control"}
        content = json.loads((root / "fastlog.json").read_text())
        assert content["format"] == 1 and content["cluster_id"] == store.cluster_id
        store.create_topic("orders")
        store.partition_log("orders", 0).append([b"a"])
    properties = dict(line.split("=") for line in (root / "topics/meta.properties").read_text().split())
    assert properties.keys() == {"version", "cluster.id", "node.id", "directory.id"}
    assert properties["cluster.id"] == content["cluster_id"] and naming.is_id(properties["directory.id"])
    for folder, names, files in os.walk(root):
        assert all((Path(folder) / name).stat().st_mode & 0o777 == 0o700 for name in names)
        assert all((Path(folder) / name).stat().st_mode & 0o777 == 0o600 for name in files), folder


# --- options ---------------------------------------------------------------------------------------------------------


def test_options_are_kafkas_and_convenient(tmp_path: Path) -> None:
    with Directory.open(tmp_path / "store", durability="os") as store:
        info = store.create_topic(
            "a", options={"retention.ms": "604800000", "retention_bytes": "1GiB", "min.cleanable.dirty.ratio": "0.2"}
        )
        assert dict(info.options) == {
            "min.cleanable.dirty.ratio": 0.2,
            "retention.bytes": 1 << 30,
            "retention.ms": 604_800_000,
        }
        with pytest.raises(fastlog.ConfigError, match="given twice"):
            store.alter_topic("a", {"retention": "7d", "retention.ms": 5})
        with pytest.raises(fastlog.ConfigError, match="exceeds max_compaction_lag_ms"):
            store.alter_topic("a", {"min_compaction_lag": "2h", "max.compaction.lag.ms": 1000})
        with pytest.raises(fastlog.ConfigError, match="unknown topic option 'lock_timeout'"):
            store.alter_topic("a", {"lock_timeout": 5})
        changed = store.alter_topic("a", {"retention.ms": None, "retention_bytes": None, "cleanup.policy": "compact"})
        assert dict(changed.options) == {"cleanup.policy": "compact", "min.cleanable.dirty.ratio": 0.2}
        assert store.topic("a") == changed


def test_changed_options_reach_open_logs_and_layout_only_new_partitions(tmp_path: Path) -> None:
    with (
        Directory.open(tmp_path / "store", durability="os") as store,
        Directory.open(tmp_path / "store", durability="os") as other,
    ):
        store.create_topic("a", options={"segment.bytes": 1 << 20})
        log = other.partition_log("a", 0)
        assert log.config.retention_bytes == -1
        store.alter_topic("a", {"retention.bytes": 1000, "max.message.bytes": 500, "segment.bytes": 1 << 21})
        store.add_partitions("a", 2)
        assert other.topic("a").partitions == 2
        assert (log.config.retention_bytes, log.config.segment_bytes) == (1000, 1 << 20)
        with pytest.raises(fastlog.RecordTooLargeError):
            log.append([bytes(600)])
        assert other.partition_log("a", 1).config.segment_bytes == 1 << 21
        with pytest.raises(fastlog.InvalidTopicError, match="never taken away"):
            store.add_partitions("a", 2)


# --- deleting --------------------------------------------------------------------------------------------------------


def test_open_logs_of_a_deleted_topic_raise(tmp_path: Path) -> None:
    with (
        Directory.open(tmp_path / "store", durability="os") as store,
        Directory.open(tmp_path / "store", durability="group") as other,
    ):
        old = store.create_topic("a", partitions=2)
        leases = [each.lease("a", 0, isolation) for each in (store, other) for isolation in fastlog_isolations()]
        held = other.partition_log("a", 1)
        leases[0].log.append([b"x"])
        woken: list[BaseException | bool] = []

        def wait() -> None:
            try:
                woken.append(held.wait(0, timeout=30))
            except fastlog.Error as error:
                woken.append(error)

        waiter = threading.Thread(target=wait)
        waiter.start()
        store.delete_topic("a")
        waiter.join(10)
        assert isinstance(woken[0], fastlog.UnknownTopicError)
        for lease in leases:
            for use in (lambda log: log.append([b"y"]), lambda log: log.read(0), lambda log: log.flush()):
                with pytest.raises(fastlog.UnknownTopicError, match="was deleted with its topic"):
                    use(lease.log)
        with pytest.raises(fastlog.UnknownTopicError):
            other.lease("a", 0)
        assert list((tmp_path / "store/topics").glob("a-*")) == []
        new = store.create_topic("a")
        assert new.topic_id != old.topic_id
        with store.lease("a", 0) as fresh, other.lease("a", 0) as theirs:
            assert fresh.log.append([b"new"]) == 0
            assert theirs.log.end_offset == 1
        for lease in leases:
            lease.release()
            assert lease.log.closed
        with other.lease("a", 0) as again:
            assert bytes(again.log.read(0)[0].value) == b"new"


@pytest.mark.parametrize("step", ["append", "sync", "read"])
def test_a_file_that_went_with_its_topic_is_no_fault_of_the_storage(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    """The topic is deleted by somebody else just when a file of it is about to be looked at."""
    level = "group" if step == "sync" else "os"
    with (
        # the lock that it waits for belongs to who is being interrupted
        Directory.open(tmp_path, durability="os", lock_timeout="300ms") as store,
        Directory.open(tmp_path, durability=level) as other,
    ):
        store.create_topic("orders")
        log = other.lease("orders", 0).log
        batch = encode_batch([b"x"], producer_id=7, producer_epoch=0, base_sequence=0)
        with store.lease("orders", 0) as lease:
            lease.log.append_batch(batch)
        call, act = {
            "append": ("list_directory", lambda: log.append_batch(batch)),
            "sync": ("open_file", log.flush),
            "read": ("open_file", lambda: log.read(0)),
        }[step]
        original = getattr(oscalls, call)

        def delete_before(path: str, *arguments: Any, **options: Any) -> Any:
            if path.startswith(log.path) and "orders" in store.topics():
                monkeypatch.setattr(oscalls, call, original)
                store.delete_topic("orders")
            return original(path, *arguments, **options)

        monkeypatch.setattr(oscalls, call, delete_before)
        with pytest.raises(fastlog.UnknownTopicError, match="was deleted with its topic"):
            act()
        assert "orders" not in store.topics()


def fastlog_isolations() -> tuple[str, str]:
    return ("read_committed", "read_uncommitted")


def test_deleted_folders_have_kafkas_names_and_go(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from fastlog.store import files

    name = "x" * 249
    with Directory.open(tmp_path / "store", durability="os") as store:
        store.create_topic(name, partitions=11)
        with store.lease(name, 10) as lease:
            lease.log.append([b"a"])
        with monkeypatch.context() as patch:
            patch.setattr(files, "remove_tree", lambda folder: None)
            store.delete_topic(name)
        (left,) = (tmp_path / "store/topics").glob("x*")
        assert re.fullmatch(r"x{212}-10\.[0-9a-f]{32}-delete", left.name) and len(left.name) == 255
    assert not left.exists()


# --- open handles ----------------------------------------------------------------------------------------------------


def test_idle_logs_are_bounded_and_leased_ones_stay(tmp_path: Path) -> None:
    with Directory.open(tmp_path / "store", durability="os") as store:
        store.create_topic("a", partitions=20)
        store._pool._most_idle = 3
        kept = store.lease("a", 0)
        logs = []
        for number in range(1, 20):
            with store.lease("a", number) as lease:
                logs.append(lease.log)
                lease.log.append([b"%d" % number])
        assert [log.closed for log in logs] == [True] * 16 + [False] * 3
        assert not kept.log.closed and kept.log.append([b"0"]) == 0
        with store.lease("a", 19) as lease:
            assert lease.log is logs[-1]
        kept.release()
        kept.release()


def test_the_descriptor_limit_bounds_idle_logs(tmp_path: Path) -> None:
    script = (
        "import resource, sys; from fastlog.store.directory import Directory\n"
        "resource.setrlimit(resource.RLIMIT_NOFILE, (80, 80))\n"
        "with Directory.open(sys.argv[1], durability='os') as store:\n"
        "    store.create_topic('a', partitions=40)\n"
        "    for _ in range(2):\n"
        "        for number in range(40):\n"
        "            with store.lease('a', number) as lease: lease.log.append([b'x'])\n"
        "    assert all(store.lease('a', n).log.end_offset == 2 for n in range(8))\n"
    )
    subprocess.run([sys.executable, "-c", script, str(tmp_path / "store")], check=True)


def test_threads_lease_the_same_logs(tmp_path: Path) -> None:
    with Directory.open(tmp_path / "store", durability="os") as store:
        store.create_topic("a", partitions=6)
        store._pool._most_idle = 1
        failures: list[BaseException] = []

        def work(seed: int) -> None:
            chance = random.Random(seed)
            try:
                for _ in range(60):
                    with store.lease("a", chance.randrange(6)) as lease:
                        lease.log.append([b"x"])
            except BaseException as error:
                failures.append(error)

        threads = [threading.Thread(target=work, args=(seed,)) for seed in range(6)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert not failures
        assert sum(store.partition_log("a", number).end_offset for number in range(6)) == 360


def test_ten_thousand_partitions_cost_next_to_nothing(tmp_path: Path) -> None:
    with Directory.open(tmp_path / "store") as store:
        store.create_topic("many", partitions=10_000)
    assert sum(path.is_dir() for path in (tmp_path / "store/topics").iterdir()) == 0
    tracemalloc.start()
    begun = time.monotonic()
    with Directory.open(tmp_path / "store") as store:
        assert store.topic("many").partitions == 10_000
        assert time.monotonic() - begun < 2
        assert tracemalloc.get_traced_memory()[0] < 10_000 * 10 * 1024
    tracemalloc.stop()


# --- read-only -------------------------------------------------------------------------------------------------------


def tree(root: Path) -> dict[str, tuple[int, int, int]]:
    return {
        str(path.relative_to(root)): (status.st_size, status.st_mtime_ns, status.st_ino)
        for path in [root, *sorted(root.rglob("*"))]
        for status in [path.lstat()]
    }


def test_a_reader_alone_writes_nothing_at_all(tmp_path: Path) -> None:
    root = tmp_path / "store"
    with pytest.raises(fastlog.StorageError, match="does not exist"):
        Directory.open(root, read_only=True)
    with Directory.open(root) as store:
        store.create_topic("a", partitions=2)
        store.partition_log("a", 0).append([b"x"])
    before = tree(root)
    with Directory.open(root, read_only=True) as store:
        assert store.topics() == ["a"]
        with store.lease("a", 0) as lease:
            assert [bytes(record.value) for record in lease.log.records()] == [b"x"]
        assert not store.is_created("a", 1)
        with pytest.raises(fastlog.StorageError, match="nothing was written to this partition yet"):
            store.lease("a", 1)
        for change in (
            lambda: store.create_topic("b"),
            lambda: store.delete_topic("a"),
            lambda: store.alter_topic("a", {}),
            store.maintain,
        ):
            with pytest.raises(fastlog.NotSupportedError, match="read_only"):
                change()
    assert tree(root) == before


def test_a_reader_beside_writers_sees_new_topics_and_records(tmp_path: Path) -> None:
    root = tmp_path / "store"
    with (
        Directory.open(root, durability="os") as store,
        Directory.open(root, read_only=True, durability="os") as reader,
    ):
        for number in range(20):
            version = reader.topics_version
            store.create_topic(f"t{number}")
            assert reader.topics_version != version and f"t{number}" in reader.topics()
            store.partition_log(f"t{number}", 0).append([b"x"])
            with reader.lease(f"t{number}", 0) as lease:
                assert lease.log.end_offset == 1
        lease = reader.lease("t0", 0)
        store.delete_topic("t0")
        assert "t0" not in reader.topics()
        with pytest.raises(fastlog.UnknownTopicError):
            lease.log.read(0)


def test_a_reader_keeps_no_writer_from_being_alone(tmp_path: Path) -> None:
    root = tmp_path / "store"
    Directory.open(root).close()
    with Directory.open(root, read_only=True):
        (root / "control/stale").write_bytes(b"of the dead")
        with Directory.open(root):
            assert not (root / "control/stale").exists()


# --- Kafka's files ---------------------------------------------------------------------------------------------------


def test_the_last_to_leave_tells_kafka_where_logs_end(tmp_path: Path) -> None:
    root = tmp_path / "store"
    topics = root / "topics"
    with Directory.open(root, durability="os") as store:
        with Directory.open(root, durability="os") as other:
            other.create_topic("a", partitions=3, options={"segment.bytes": 1000})
            log = other.partition_log("a", 0)
            for _ in range(5):
                log.append([bytes(400)])
            log.delete_records(1)
            other.partition_log("a", 2).append([b"x", b"y"])
        assert not (topics / ".kafka_cleanshutdown").exists()
        store.create_topic("b")
        store.partition_log("b", 0).append([b"z"])
    assert (topics / ".kafka_cleanshutdown").read_text() == '{"version":0,"brokerEpoch":-1}'
    assert (topics / "recovery-point-offset-checkpoint").read_text() == "0\n3\na 0 5\na 2 2\nb 0 1\n"
    assert (topics / "replication-offset-checkpoint").read_text() == "0\n3\na 0 5\na 2 2\nb 0 1\n"
    assert (topics / "log-start-offset-checkpoint").read_text() == "0\n1\na 0 1\n"
    assert list((root / "control").iterdir()) == []
    with Directory.open(root) as store:
        assert not (topics / ".kafka_cleanshutdown").exists()
        store.delete_topic("a")
    assert (topics / "recovery-point-offset-checkpoint").read_text() == "0\n1\nb 0 1\n"
    (topics / "b-0/.fastlog-clean").unlink()
    with Directory.open(root):
        pass
    assert not (topics / ".kafka_cleanshutdown").exists()


def use_partition(root: Path) -> None:
    """Another process is the first to use it."""
    with Directory.open(root, durability="os") as store:
        store.partition_log("a", 1)


def test_a_partition_whose_making_was_cut_short_keeps_no_other_from_being_clean(tmp_path: Path) -> None:
    """Wherever that was: no meta file, an empty one, a whole one without a segment."""
    left = set()
    for nth in range(1, 40):
        root = tmp_path / f"store-{nth}"
        with Directory.open(root, durability="os") as store:
            store.create_topic("a", partitions=2)
            store.partition_log("a", 0).append([b"x"])
            if not dies_at_change(nth, partial(use_partition, root)):
                break
            made = root / "topics/a-1"
            left.add(tuple((path.name, path.stat().st_size) for path in sorted(made.glob(".fastlog-meta"))))
        marked = (root / "topics/.kafka_cleanshutdown").exists()
        assert marked or list(made.glob("*.log")), f"after call {nth}, with {os.listdir(made)}"
    assert left == {(), *(((".fastlog-meta", size),) for size in (0, 4096, 8192))}


def test_a_broker_keeps_us_out_and_we_keep_it_out(tmp_path: Path) -> None:
    root = tmp_path / "store"
    Directory.open(root).close()
    lock = root / "topics/.lock"
    for read_only in (False, True):
        with lock.open("r+b") as file:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            with pytest.raises(fastlog.LockedError, match="Kafka broker"):
                Directory.open(root, read_only=read_only)
    with Directory.open(root), Directory.open(root), lock.open("r+b") as file, pytest.raises(OSError):
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)


# --- what is refused -------------------------------------------------------------------------------------------------


def test_no_flipped_bit_changes_a_topic(tmp_path: Path) -> None:
    """Fewer partitions, or a shorter retention, would take records away without a word."""
    root = tmp_path / "store"
    with Directory.open(root) as store:
        info = store.create_topic("a", 3, options={"retention": "7d"})
    file = root / "config/a.json"
    content = file.read_bytes()
    refused = 0
    for bit in range(8 * len(content)):
        changed = bytearray(content)
        changed[bit // 8] ^= 1 << bit % 8
        file.write_bytes(changed)
        try:
            found = read_topic(str(root / "config"), "a")
        except fastlog.Error as error:
            assert "a.json" in str(error)
            refused += 1
        else:
            assert found == (info, False)
    assert refused > 6 * len(content)
    # who changes one by hand leaves the checksum out
    payload = json.loads(content)
    payload["partitions"] = 5
    file.write_text(json.dumps(payload))
    with Directory.open(root) as store, pytest.raises(fastlog.CorruptLogError, match="crc32c"):
        store.topic("a")
    del payload["crc32c"]
    file.write_text(json.dumps(payload))
    with Directory.open(root) as store:
        assert store.topic("a").partitions == 5


def test_newer_formats_and_damage_are_refused_by_name(tmp_path: Path) -> None:
    root = tmp_path / "store"
    with Directory.open(root) as store:
        store.create_topic("a")
        store.create_topic("b")
    (root / "config/a.json").write_text(json.dumps({"format": 2, "name": "a"}))
    (root / "config/b.json").write_text("{")
    before = tree(root / "config")
    with Directory.open(root) as store:
        assert store.topics() == []
        with pytest.raises(fastlog.UnsupportedFormatError, match="a.json has format 2, this fastlog reads up to 1"):
            store.topic("a")
        for use in (store.topic, store.create_topic, store.delete_topic):
            with pytest.raises(fastlog.CorruptLogError, match="b.json is damaged"):
                use("b")
    assert tree(root / "config") == before
    (root / "fastlog.json").write_text(json.dumps({"format": 7}))
    for read_only in (False, True):
        with pytest.raises(fastlog.UnsupportedFormatError, match="fastlog.json has format 7"):
            Directory.open(root, read_only=read_only)
    for content in ("no JSON", "[" * 100_000):
        (root / "fastlog.json").write_text(content)
        with pytest.raises(fastlog.CorruptLogError, match="fastlog.json is damaged"):
            Directory.open(root)


def test_other_folders_are_not_made_stores(tmp_path: Path) -> None:
    root = tmp_path / "store"
    with Directory.open(root) as store:
        store.create_topic("a")
    (root / "fastlog.json").unlink()
    for folder, stranger in ((root, "config/a.json"), (tmp_path, "store")):
        before = tree(folder)
        with pytest.raises(fastlog.UnsupportedFormatError, match=re.escape(stranger)):
            Directory.open(folder)
        assert tree(folder) == before
    (tmp_path / "file").write_text("")
    with pytest.raises(fastlog.UnsupportedFormatError, match="is a file"):
        Directory.open(tmp_path / "file")


def test_links_are_not_followed(tmp_path: Path) -> None:
    root, elsewhere = tmp_path / "store", tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "precious").write_text("x")
    with Directory.open(root) as store:
        store.create_topic("a", partitions=2)
        (root / "topics/a-0").symlink_to(elsewhere)
        (root / "control/link").symlink_to(elsewhere)
        (root / "config/b.json").symlink_to(elsewhere / "b.json")
        with pytest.raises(fastlog.UnsupportedFormatError, match="symbolic link"):
            store.lease("a", 0)
        store.delete_topic("a")
    (root / "control/link").symlink_to(elsewhere)
    Directory.open(root).close()
    assert [path.name for path in elsewhere.iterdir()] == ["precious"]
    (root / "config/b.json").unlink()
    (root / "config").rename(tmp_path / "config")
    (root / "config").symlink_to(tmp_path / "config")
    with pytest.raises(fastlog.UnsupportedFormatError, match="symbolic link"):
        Directory.open(root)


def test_strange_folders_are_nobodys_topic(tmp_path: Path) -> None:
    root = tmp_path / "store"
    with Directory.open(root) as store:
        (root / "topics/a-1").mkdir()
        with pytest.raises(fastlog.TopicExistsError, match="belongs to no topic"):
            store.create_topic("a", partitions=2)
        store.create_topic("a")
        with pytest.raises(fastlog.TopicExistsError, match="belongs to no topic"):
            store.add_partitions("a", 2)
        folder = root / "topics/a-0"
        folder.mkdir()
        (folder / "partition.metadata").write_text(f"version: 0\ntopic_id: {naming.new_id()}")
        with pytest.raises(fastlog.UnsupportedFormatError, match="belongs to a topic with the id"):
            store.lease("a", 0)


def test_closed_and_forked_handles_refuse(tmp_path: Path) -> None:
    root = tmp_path / "store"
    store = Directory.open(root)
    store.create_topic("a")
    store.partition_log("a", 0)
    child = os.fork()
    if not child:
        code = 0
        for use in (store.topics, lambda: store.lease("a", 0), lambda: store.create_topic("b"), lambda: store.bells):
            try:
                use()
                code = 1
            except fastlog.ForkedHandleError:
                pass
        store.close()
        os._exit(code)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert store.topics() == ["a"]
    called = []
    store.add_closer(lambda: called.append(1))
    store.add_closer(lambda: called.append(2))
    store.close()
    store.close()
    assert called == [2, 1]
    for use in (store.topics, lambda: store.lease("a", 0), lambda: store.topics_version):
        with pytest.raises(fastlog.ClosedError):
            use()
    assert (root / "topics/.kafka_cleanshutdown").exists()


class Unclosable:
    """A log that no memory is left for when it is closed."""

    def close(self) -> None:
        raise MemoryError


def test_closing_goes_on_when_memory_is_missing(tmp_path: Path) -> None:
    root = tmp_path / "store"
    store = Directory.open(root)
    store.create_topic("orders", partitions=2)
    logs = [store.partition_log("orders", number) for number in range(2)]
    entry = next(iter(store._pool._entries.values()))
    broken, entry.log = entry.log, Unclosable()  # type: ignore[assignment]
    with pytest.raises(MemoryError):
        store.close()
    assert broken is not None
    broken.close()
    assert all(log.closed for log in logs)
    links = [Path(f"/proc/self/fd/{name}") for name in os.listdir("/proc/self/fd")]
    left = [os.readlink(link) for link in links if link.is_symlink()]
    assert [name for name in left if name.startswith(str(root))] == []


def test_each_folder_on_the_way_to_a_store_is_synced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    synced: list[str] = []
    real = oscalls.sync_directory
    monkeypatch.setattr(oscalls, "sync_directory", lambda path: (synced.append(path), real(path)))
    fastlog.open(tmp_path / "a" / "b" / "store").close()
    assert synced[:3] == [str(tmp_path), str(tmp_path / "a"), str(tmp_path / "a" / "b")]


@pytest.mark.parametrize("what", ["store", "log"])
def test_folders_that_somebody_else_makes_just_now_are_synced_before_anything_is_promised(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    (tmp_path / "a" / "b" / what).mkdir(parents=True)
    (tmp_path / "link").symlink_to(tmp_path / "a" / "b")
    root = tmp_path / "link" / what
    first = "fastlog.json" if what == "store" else ".fastlog-meta"
    synced: list[str] = []
    real = oscalls.sync_directory

    def noting(path: str) -> None:
        if not (root / first).exists():
            synced.append(os.path.realpath(path))
        if os.path.realpath(path) == str(tmp_path / "a"):  # whose entries we may not read
            raise fastlog.StorageError("could not open it", errno.EACCES)
        real(path)

    monkeypatch.setattr(oscalls, "sync_directory", noting)
    (fastlog.open(root) if what == "store" else fastlog.PartitionLog.open(root)).close()
    assert {str(tmp_path), str(tmp_path / "a"), str(tmp_path / "a" / "b")} <= set(synced)
    synced.clear()
    (fastlog.open(root) if what == "store" else fastlog.PartitionLog.open(root)).close()
    assert not synced
    monkeypatch.setattr(oscalls, "sync_directory", real)
    oscalls.inject("fsync", errno=errno.EIO)
    with pytest.raises(fastlog.StorageError, match="could not sync"):
        oscalls.sync_parents(str(root))
    oscalls.clear()


def test_other_file_systems_are_refused(tmp_path: Path) -> None:
    try:
        oscalls.fake_file_system(0x6969)
        with pytest.raises(fastlog.NotSupportedError, match="nfs"):
            Directory.open(tmp_path / "store")
    finally:
        oscalls.fake_file_system(None)


# --- upkeep ----------------------------------------------------------------------------------------------------------


def test_maintain_deletes_what_is_over(tmp_path: Path) -> None:
    with Directory.open(tmp_path / "store", durability="os") as store:
        store.create_topic("a", partitions=3, options={"segment.bytes": 1000, "retention.bytes": 1500})
        store.create_topic("b")
        log = store.partition_log("a", 1)
        for _ in range(10):
            log.append([bytes(400)])
        store.partition_log("b", 0).append([b"x"])
        reports = store.maintain()
        assert set(reports) == {("a", 1), ("b", 0)}
        assert reports[fastlog.TopicPartition("a", 1)].retention.segments_deleted > 0 and log.start_offset > 0
        with pytest.raises(fastlog.UnknownTopicError):
            store.maintain(["c"])


def test_one_of_all_does_the_upkeep_and_another_when_it_is_gone(tmp_path: Path) -> None:
    def is_deleted(store: Directory) -> bool:
        stop = time.monotonic() + 5
        while store.partition_log("a", 0).start_offset == 0 and time.monotonic() < stop:
            time.sleep(0.01)
        return store.partition_log("a", 0).start_offset > 0

    root = tmp_path / "store"
    first = Directory.open(root, durability="os", maintenance_interval=0.02)
    with Directory.open(root, durability="os", maintenance_interval=0.02) as second:
        first.create_topic("a", options={"segment.bytes": 1000})
        for store in (first, second):
            assert not store.watcher.closed
        for _ in range(10):
            second.partition_log("a", 0).append([bytes(400)])
        elected: list[Directory] = []
        stop = time.monotonic() + 5
        while not elected and time.monotonic() < stop:
            time.sleep(0.1)
            elected = [one for one in (first, second) if one._maintainer is not None and one._maintainer._fd >= 0]
        assert len(elected) == 1
        first.close()
        assert second.partition_log("a", 0).start_offset == 0
        second.alter_topic("a", {"retention.bytes": 1500})
        assert is_deleted(second)
        assert second._maintainer is not None and second._maintainer._fd >= 0
    with pytest.raises(fastlog.ConfigError, match="maintenance_interval=0"):
        Directory.open(root, maintenance_interval=0)


def test_options_reach_a_process_that_asks_for_nothing(tmp_path: Path) -> None:
    with (
        Directory.open(tmp_path / "store", durability="os") as store,
        Directory.open(tmp_path / "store", durability="os") as other,
    ):
        store.create_topic("a")
        log = other.partition_log("a", 0)
        assert not other.watcher.closed
        store.alter_topic("a", {"max.message.bytes": 500})
        stop = time.monotonic() + 10
        while log.config.max_message_bytes != 500 and time.monotonic() < stop:
            time.sleep(0.02)
        assert log.config.max_message_bytes == 500


def test_a_store_in_which_nothing_changes_starts_no_threads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    started = threading.Semaphore(0)
    monkeypatch.setattr("fastlog.store.directory.FOLLOW_SECONDS", 0.01)
    monkeypatch.setattr(Watcher, "_start_aside", lambda watcher, timer: (started.release(), timer.callback()))
    with Directory.open(tmp_path / "s", maintenance_interval=None) as store:
        store.create_topic("a")
        assert store.watcher is store.watcher
        time.sleep(0.3)  # until the change is older than a tick of the file system's clock
        while started.acquire(blocking=False):
            pass
        assert not started.acquire(timeout=0.3)
        with Directory.open(tmp_path / "s") as other:
            other.create_topic("b")
            assert started.acquire(timeout=30)


def test_who_sleeps_on_a_bell_is_woken_by_appends_and_by_changes_of_topics(tmp_path: Path) -> None:
    with (
        Directory.open(tmp_path / "store", durability="os") as store,
        Directory.open(tmp_path / "store", durability="os") as other,
    ):
        store.create_topic("a")
        log = store.partition_log("a", 0)
        waiter = other.bells.waiter()
        for change in (lambda: log.append([b"x"]), lambda: store.create_topic("b"), lambda: store.delete_topic("a")):
            heard = waiter.listen(1 << bell_of("a", 0))
            timer = threading.Timer(0.05, change)
            timer.start()
            begun = time.monotonic()
            while waiter.rung() == heard and time.monotonic() < begun + 10:
                waiter.sleep(heard, 10_000)
            assert time.monotonic() < begun + 5
            timer.join()
