"""Folders to be damaged: partitions and stores of every kind, closed cleanly, or as they were while they were open.

``make_all`` makes them in a process of its own, as whoever forks afterwards should have no threads; ``load_all`` reads
them. Each is a ``Disk``: it is put anywhere, and looks like the folder that it was made in.
"""

from __future__ import annotations

import json
import random
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import fastlog
from fastlog.delivery.deduplicator import Deduplicator
from fastlog.groups.offsets import OffsetStore
from tests.crash.recording import Record, load_record, look_at_folder, save_record
from tests.crash.replayer import Disk, Replayer
from tests.crash.store_life import STORE, Life
from tests.crash.workloads import NAME, KeyedWriter, Producer
from tests.foreign import copy_folder
from tests.strategies import SOME_TIME
from tests.sweeping import Content, plain

KINDS = ("clean", "crashed", "copied")
META = ".fastlog-meta"
ISOLATIONS = ("read_committed", "read_uncommitted")
GROUPS = ("group-any", "mail", "stands still")
IDS = [b"id %d" % number for number in range(400)]


@dataclass(frozen=True)
class Specimen:
    """A pristine folder: ``name`` is that of a partition in it, ``store`` or ``ids``; ``told`` is what is in it."""

    name: str
    kind: str
    disk: Disk
    told: dict[str, Any]

    def content(self, isolation: str) -> Content:
        """What a reader of a partition has to see."""
        told = self.told
        return Content(
            told[isolation], told["durable"], self.kind, told["gaps"], isolation, is_all=self.name != "producers"
        )


def small_log(path: Path, batches: int) -> Any:
    """Two segments of a few hundred bytes, every batch but the first indexed; the first lies below the recovery
    point."""
    config = fastlog.LogConfig(segment_bytes=900, index_interval_bytes=1)
    log = fastlog.PartitionLog.open(path, durability="os", config=config)
    for number in range(batches):
        values = [b"first %d" % number, None if number % 3 else b""]
        headers = [(("h", b"x"), ("h", None)), ()]
        times = [SOME_TIME + (number * 7) % 5 * 10, SOME_TIME + number]
        codec = "lz4" if number % 4 == 2 else None
        log.append(values, keys=[b"key", None], timestamps=times, headers=headers, compression=codec)
        if number == 9:
            assert len(log.segments()) == 2
            wait_for_recovery_point(path, log.segments()[1].base_offset)
    return log


def wait_for_recovery_point(path: Path, offset: int) -> int:
    """A closed segment is synced in the background."""
    deadline = time.monotonic() + 20
    while (found := recovery_point_of(path)) < offset:
        assert time.monotonic() < deadline, "the recovery point did not move behind a closed segment"
        time.sleep(0.001)
    return found


def recovery_point_of(path: Path) -> int:
    return int(json.loads((path / META).read_bytes()[9:4096])["recovery_point"])


# --- partitions -------------------------------------------------------------------------------------------------------


def small(path: Path) -> Any:
    return small_log(path, 11)


def codecs(path: Path) -> Any:
    """Every codec, in batches that compress well and in some that do not."""
    chance = random.Random(1)
    log = fastlog.PartitionLog.open(
        path, durability="os", config=fastlog.LogConfig(segment_bytes=3_000, index_interval_bytes=100)
    )
    for number in range(15):
        codec = (None, "gzip", "snappy", "lz4", "zstd")[number % 5]
        values = [b"%d " % number * chance.choice([1, 40]) + chance.randbytes(chance.choice([0, 30])) for _ in range(6)]
        log.append(
            values, keys=[b"k%d" % index for index in range(6)], timestamps=SOME_TIME + number, compression=codec
        )
    return log


def producers(path: Path) -> Any:
    """Idempotent and transactional producers: snapshots, indexes of aborted transactions, markers."""
    writer = Producer(path.parent, 5, 1)
    assert writer.path == path
    log = writer.open("os", segment_bytes=6_000)
    writer.operate(log, 60)
    return log


def compacted(path: Path) -> Any:
    """A log in which offsets skip."""
    writer = KeyedWriter(path.parent, 7)
    log = writer.open("os", segment_bytes=2_500)
    for _ in range(3):
        writer.append(log, 8)
        writer.maintain(log)
    return log


def trimmed(path: Path) -> Any:
    """A log that begins in the middle of a segment, and whose values are large."""
    log = fastlog.PartitionLog.open(
        path, durability="os", config=fastlog.LogConfig(segment_bytes=6_000, index_interval_bytes=500)
    )
    for number in range(20):
        log.append([b"%d" % number * 300, b"", None], timestamps=SOME_TIME + number * 7 % 11)
    log.flush()
    log.delete_records(before=13)
    return log


PARTITIONS: dict[str, Callable[[Path], Any]] = {
    function.__name__: function for function in (small, codecs, producers, compacted, trimmed)
}


def make_partition(name: str, folder: Path) -> None:
    path = folder / NAME
    log = PARTITIONS[name](path)
    point = wait_for_recovery_point(path, log.segments()[-1].base_offset)
    told: dict[str, Any] = {"durable": point, "gaps": name == "compacted"}
    told |= {isolation: read_as(path, isolation) for isolation in ISOLATIONS}
    told["from the first byte"] = from_the_first_byte(path, folder / "all" / NAME)
    save(folder / "crashed", path, told)
    log.close()
    save(folder / "clean", path, told)


def from_the_first_byte(path: Path, target: Path) -> dict[str, Any]:
    """What is read, by isolation, when nobody knows where the log began."""
    copy_folder(path, target)
    (target / META).unlink()
    return {isolation: read_as(target, isolation) for isolation in ISOLATIONS}


def read_as(path: Path, isolation: str) -> list[Any]:
    with fastlog.PartitionLog.open(path, durability="os", isolation=isolation) as log:
        return [plain(record) for record in log.records()]


def save(target: Path, root: Path, told: dict[str, Any]) -> None:
    recorded = Record([])
    look_at_folder(root, recorded, {})
    save_record(recorded, target)
    (target / "told.json").write_text(json.dumps(told))


# --- stores, and what lies beside -------------------------------------------------------------------------------------


def make_store(folder: Path) -> None:
    """Topics of every kind, transactions, groups, dead letters; nothing is left open."""
    told: list[dict[str, Any]] = []
    life = Life(folder, 11, durability="os", tell=lambda what, **facts: told.append(facts))
    life.open()
    for _ in range(3):
        life.create(f"t{life.name}-{len(life.topics)}", 2)
    life.some(14, life.send, life.send, life.transact, life.commit)
    life.some(4, life.move)
    life.redrive()
    life.compact()
    life.trim()
    life.transact()
    life.commit()
    life.leave()
    content = store_content(life.store)
    save(folder / "crashed", folder / STORE, content)
    life.close()
    save(folder / "clean", folder / STORE, content)


def store_content(store: fastlog.Store) -> dict[str, Any]:
    """What is in an open store, as JSON has it."""
    topics: dict[str, Any] = {}
    for name in store.topics():
        topic = store.topic(name)
        partitions = [partition_content(store, name, number) for number in range(topic.partitions)]
        topics[name] = {"id": topic.topic_id, "options": topic.config, "partitions": partitions}
    offsets = OffsetStore(store.directory)
    groups = {
        group: sorted([*where, at.offset] for where, at in offsets.all_committed(group).items()) for group in GROUPS
    }
    return {"topics": topics, "groups": groups}


def partition_content(store: fastlog.Store, name: str, number: int) -> list[list[Any]]:
    """Offsets and values of a partition, in order."""
    if not store.directory.is_created(name, number):
        return []
    found: list[list[Any]] = []
    with store.directory.lease(name, number) as lease:
        for batch in lease.log.batches():
            for offset, value in zip(batch.offsets.tolist(), batch.values.to_list(), strict=True):
                found.append([offset, None if value is None else value.hex()])
    return found


def make_ids(folder: Path) -> None:
    """The file in which a group remembers what it has finished, open and closed."""
    (folder / "root").mkdir()
    memory = Deduplicator(path=folder / "root" / "ids.sqlite").open(str(folder), "mail")
    for begin in range(0, len(IDS), 20):
        memory.remember(IDS[begin : begin + 20], SOME_TIME + begin)
    save(folder / "crashed", folder / "root", {})
    memory.close()
    save(folder / "clean", folder / "root", {})


# --- all of them ------------------------------------------------------------------------------------------------------


def make_all(folder: Path) -> None:
    """Make every specimen below a folder."""
    for name in (*PARTITIONS, "store", "ids"):
        (folder / name).mkdir()
        if name in PARTITIONS:
            make_partition(name, folder / name)
        else:
            (make_store if name == "store" else make_ids)(folder / name)


def load_all(folder: Path) -> Iterator[Specimen]:
    """Every specimen, of every kind."""
    for name in (*PARTITIONS, "store", "ids"):
        for kind in ("clean", "crashed"):
            place = folder / name / kind
            disk = Replayer(load_record(place)).disk(0, {})
            specimen = Specimen(name, kind, disk, json.loads((place / "told.json").read_text()))
            yield specimen
        if name != "ids":
            # as made by ``cp -r`` while it was open: no folder is the one that it was
            yield replace(specimen, kind="copied", disk=replace(disk, inodes=dict.fromkeys(disk.inodes, 1)))
