"""Transactions over a power cut, where logs are not synced together: each may have lost its newest records."""

from __future__ import annotations

import os
import shutil
import struct
from pathlib import Path

import pytest

import fastlog
from fastlog._core import encode_batch
from fastlog.records import TopicPartition
from fastlog.store.directory import Directory
from fastlog.store.internal import TRANSACTION_STATE, partition_for_name
from fastlog.transactions import Coordinator, TransactionStatus
from tests.messaging.transacting import Writer, is_settled, open_store, visible

LEVELS = ["group", "batch", "interval"]
MEMORY = (".fastlog-control", ".fastlog-clean", ".fastlog-indexes")  # of one that runs, or ended cleanly


def open_unsynced(path: Path, durability: str) -> Directory:
    """A store whose interval is never over: what is synced was asked for."""
    return open_store(path, durability=durability, flush_interval=3600)


def cut_power(store: Directory, to: Path) -> Path:
    """What a power cut may leave at worst: of each log what is synced, and none of what shared pages and clean markers
    said. The store goes on.
    """
    kept = {
        f"{partition.topic}-{partition.partition}": log.durable_offset for partition, log in store.open_logs()
    }  # fmt: skip
    shutil.copytree(store.root, to)
    shutil.rmtree(to / "control")
    for folder in (to / "topics").iterdir():
        if folder.is_dir():
            leave(folder, kept[folder.name])
    return to


def leave(folder: Path, end: int) -> None:
    """Cut a partition of one segment off at an offset."""
    (log,) = folder.glob("*.log")
    data, position = log.read_bytes(), 0
    while position + 12 <= len(data):
        base, size = struct.unpack_from(">qi", data, position)
        if size <= 0 or base >= end:
            break
        position += 12 + size
    os.truncate(log, position)
    for path in folder.iterdir():
        if path.suffix in (".index", ".timeindex", ".snapshot", ".txnindex") or path.name in MEMORY:
            path.unlink()


@pytest.mark.parametrize("durability", LEVELS)
def test_records_of_the_next_transaction_do_not_get_the_last_ones_decision(folder: Path, durability: str) -> None:
    """The end of one transaction and the beginning of the next are lost, the records of the next are kept."""
    with open_unsynced(folder / "store", durability) as store:
        writer = Writer(store, "pay-1")
        writer.begin()
        writer.send("a", [b"first"])
        writer.send("b", [b"first"])
        writer.id.commit()
        writer.begin()
        writer.send("a", [b"undecided"])
        with store.lease("a", 0) as lease:
            lease.log.flush()
        left = cut_power(store, folder / "left")
    with open_store(left, durability=durability) as store:
        coordinator = Coordinator.of(store)
        coordinator.attach()
        for topic in ("a", "b"):
            with store.lease(topic, 0) as lease:
                coordinator.resolve_partition(TopicPartition(topic, 0), lease.log)
        assert (visible(store, "a"), visible(store, "b")) == ([b"first"], [b"first"])
        assert is_settled(store, "a")


@pytest.mark.parametrize("durability", LEVELS)
@pytest.mark.parametrize("by_owner", [True, False], ids=["owner", "completer"])
def test_a_commit_that_is_complete_keeps_its_markers(folder: Path, durability: str, *, by_owner: bool) -> None:
    """The record that all markers are there is kept: then so are they."""
    with open_unsynced(folder / "store", durability) as store:
        writer = Writer(store, "pay-1")
        writer.begin()
        writer.send("a", [b"1"])
        writer.send("b", [b"1"])
        coordinator = Coordinator.of(store)
        if by_owner:
            writer.id.commit()
        else:
            for partition in ("a", "b"):
                with store.lease(partition, 0) as lease:
                    lease.log.flush()
            coordinator.log_of("pay-1").change(
                "pay-1", lambda state: state and state.prepared(1, commit=True, by_owner=True)
            )
            assert coordinator.settle("pay-1")
        with store.lease(TRANSACTION_STATE, partition_for_name("pay-1")) as lease:
            lease.log.flush()
        left = cut_power(store, folder / "left")
    with open_store(left, durability=durability) as store:
        coordinator = Coordinator.of(store)
        coordinator.attach()
        state = coordinator.log_of("pay-1").state("pay-1")
        assert state is not None
        assert state.status is TransactionStatus.COMPLETE_COMMIT
        for topic in ("a", "b"):
            with store.lease(topic, 0) as lease:
                coordinator.resolve_partition(TopicPartition(topic, 0), lease.log)
        assert (visible(store, "a"), visible(store, "b")) == ([b"1"], [b"1"])


def test_later_partitions_and_aborts_need_no_sync(folder: Path) -> None:
    with open_unsynced(folder / "store", "interval") as store:
        writer = Writer(store, "pay-1")
        writer.begin()
        with store.lease(TRANSACTION_STATE, partition_for_name("pay-1")) as states, store.lease("b", 0) as other:
            writer.send("a", [b"1"])
            assert states.log.durable_offset == states.log.end_offset
            writer.send("b", [b"1"])
            assert states.log.durable_offset == states.log.end_offset - 1
            writer.id.abort()
            assert other.log.durable_offset == 0
        # what power took of the later partition is ended as well
        writer.begin()
        writer.send("a", [b"2"])
        writer.send("b", [b"2"])
        with store.lease("b", 0) as lease:
            lease.log.flush()
        left = cut_power(store, folder / "left")
    with open_store(left, durability="interval") as store:
        coordinator = Coordinator.of(store)
        coordinator.attach()
        with store.lease("b", 0) as lease:
            assert coordinator.resolve_partition(TopicPartition("b", 0), lease.log)
        assert (visible(store, "a"), visible(store, "b")) == ([], [])
        assert is_settled(store, "a")


def test_the_level_os_syncs_nothing(folder: Path) -> None:
    with open_store(folder / "store") as store:
        writer = Writer(store, "pay-1")
        writer.begin()
        writer.send("a", [b"1"])
        writer.id.commit()
        with store.lease(TRANSACTION_STATE, partition_for_name("pay-1")) as states, store.lease("a", 0) as data:
            assert (states.log.durable_offset, data.log.durable_offset) == (0, 0)


# --- what nobody knows ----------------------------------------------------------------------------------------------


def leave_unknown(root: Path) -> None:
    """A store that ended uncleanly: an open transaction of a producer that no state tells of, committed records behind
    it.
    """
    with open_unsynced(root / "store", "interval") as store:
        Writer(store, "pay-1").transaction("b", [b"known"])
        lost = encode_batch([b"lost"], producer_id=77, producer_epoch=3, base_sequence=0, transactional=True)
        with store.lease("a", 0) as lease:
            lease.log.append_batch(lost)
            lease.log.append([b"behind it"])
            lease.log.flush()
        cut_power(store, root / "left")


def test_the_next_opener_finds_it_when_a_consumer_comes_by(folder: Path) -> None:
    leave_unknown(folder)
    with (
        fastlog.open(folder / "left", durability="interval") as store,
        store.consumer("a", start="earliest") as consumer,
    ):
        assert [record.value for record in consumer.poll(timeout=10)] == [b"behind it"]


def test_the_next_opener_finds_it_when_a_partition_is_opened(folder: Path) -> None:
    leave_unknown(folder)
    with fastlog.open(folder / "left", durability="interval") as store:
        log = store.topic("a").partition(0)
        assert log.wait(1, timeout="10s")
        assert [record.value for record in log.records()] == [b"behind it"]
