"""Backups of a store that is written to, killed in the middle: refused, or whole; and the source is unharmed."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import fastlog
from fastlog.store.directory import Directory
from fastlog.transactions import Coordinator
from tests.histories.nursery import stopping
from tests.killing import transactions
from tests.killing.lives import Desk, Life, calls
from tests.messaging.transacting import open_store

POINTS = ["backup.linked", "backup.copied", "backup.finished"]

TOPIC = "p"
PARTITIONS = 2
OPTIONS = {"segment.bytes": 3000, "retention.bytes": 20_000}


def write(number: int, notes: str, seed: int, failpoint: list[Any] | None, path: str, durability: str = "os") -> None:
    """To each partition its next offset as a value; old segments are deleted meanwhile."""
    desk = Desk(number, notes, seed, failpoint)
    with Directory.open(path, durability=durability) as directory:
        logs = [directory.partition_log(TOPIC, partition) for partition in range(PARTITIONS)]
        while not stopping.is_set():
            partition = desk.chance.randrange(PARTITIONS)
            log = logs[partition]
            with desk.call("append", partition=partition, offset=log.end_offset):
                log.append([b"%d" % log.end_offset])
            if desk.chance.random() < 0.02:
                with desk.call("maintain"):
                    log.maintain()
            stopping.rest(0.0005)


def back_up(
    number: int, notes: str, seed: int, failpoint: list[Any] | None, path: str, target: str, durability: str = "os"
) -> None:
    """One backup."""
    with Directory.open(path, durability=durability) as directory:
        desk = Desk(number, notes, seed, failpoint)
        with desk.call("backup"):
            directory.backup(target)


def prepare(path: Path) -> None:
    """A store with what is written to, and with something in it."""
    with open_store(path) as directory:
        directory.create_topic(TOPIC, PARTITIONS, options=OPTIONS)
        for partition in range(PARTITIONS):
            log = directory.partition_log(TOPIC, partition)
            for number in range(40):
                log.append([b"%d" % number])


def ends(directory: Directory) -> list[int]:
    """Where the partitions end now."""
    found = []
    for partition in range(PARTITIONS):
        with directory.lease(TOPIC, partition) as lease:
            found.append(lease.log.end_offset)
    return found


def acknowledged(lives: Iterable[Life]) -> list[int]:
    """Up to where those who wrote were told that it is there."""
    found = [0] * PARTITIONS
    for life in lives:
        for event, end in calls(life.events()):
            if event["op"] == "append" and end is not None:
                assert end["k"] == "o", f"{life.child.name}: {event}: {end}"
                found[event["partition"]] = max(found[event["partition"]], event["offset"] + 1)
    return found


def check_numbers(directory: Directory, least: list[int]) -> None:
    """Every partition is what was written to it, and reaches at least so far."""
    for partition, end in enumerate(least):
        with directory.lease(TOPIC, partition) as lease:
            log = lease.log
            assert not log.verify().damages
            found = [int(record.value or b"-1") for record in log.records()]
            assert found == list(range(log.start_offset, log.end_offset)), f"{TOPIC}-{partition}: {found[:3]}"
            assert log.end_offset >= end, f"{TOPIC}-{partition} ends at {log.end_offset}, expected {end} or more"


def check_backup(target: Path, least: list[int]) -> bool:
    """What a backup left is a whole store, or is refused and left alone; whether it is the former."""
    if not target.exists() or not any(target.iterdir()):
        return False  # it had not begun
    before = sorted(target.rglob("*"))
    if not (target / "fastlog.json").exists():
        for read_only in (True, False):
            try:
                Directory.open(target, read_only=read_only, durability="os").close()
            except fastlog.UnsupportedFormatError:
                continue
            raise AssertionError(f"half a backup opens: {[str(path.relative_to(target)) for path in before]}")
        assert sorted(target.rglob("*")) == before
        return False
    with Directory.open(target, durability="os") as copy:
        check_numbers(copy, least)
        Coordinator.of(copy).attach()
        transactions.check_whole(copy)
    assert not (target / "backup.unfinished").exists()
    return True
