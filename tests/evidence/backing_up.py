"""A store that is backed up while records and transactions come in: its processes, and what has to be in each copy."""

from __future__ import annotations

import shutil
import time
from pathlib import Path

import fastlog
from tests.crash.workloads import in_child
from tests.histories_messaging.notes import Event, Notes, read_notes

PAIRS, SUMS = "pairs", "sums"
PARTITIONS = {PAIRS: 2, SUMS: 3}
PATIENCE = 15.0


def live(place: str, notes: str, cycle: int) -> None:
    """One process appends, one makes transactions, this one makes one backup after the other."""
    path = f"{place}/store"
    with fastlog.open(path) as store:
        for topic, partitions in PARTITIONS.items():
            store.create_topic(topic, partitions, config={"segment.bytes": 3000}, exist_ok=True)
    in_child(append, path, notes)
    in_child(transact, path, notes)
    diary, number = Notes(notes), 0
    with fastlog.open(path) as store:
        while True:
            name = f"copy-{cycle}-{number}"
            diary.say("backing up", name=name)
            store.backup(f"{place}/{name}")
            diary.say("backed up", name=name)
            number += 1
            time.sleep(0.1)  # each has to be checked


def append(path: str, notes: str) -> None:
    """First to the one partition, then to the other: each record is its own offset."""
    diary = Notes(notes)
    with fastlog.open(path) as store:
        first, second = (store.topic(PAIRS).partition(number) for number in range(2))
        while True:
            number = second.end_offset
            if first.end_offset == number:
                first.append([b"%d" % number])
            second.append([b"%d" % number])
            diary.say(PAIRS, number=number)


def transact(path: str, notes: str) -> None:
    """Transactions that put one number into three partitions."""
    diary = Notes(notes)
    with fastlog.open(path) as store, store.producer(transactional_id=SUMS) as producer:
        number = len(values(store, SUMS, 0))
        while True:
            with producer.transaction() as transaction:
                for partition in range(PARTITIONS[SUMS]):
                    transaction.send(SUMS, b"%d" % number, partition=partition)
            diary.say(SUMS, number=number)
            number += 1


def values(store: fastlog.Store, topic: str, partition: int) -> list[bytes | None]:
    """What can be read, as soon as what nobody knows to be open has been ended: power may have taken the state of a
    transaction, and left a record of it."""
    log = store.topic(topic).partition(partition)
    deadline = time.monotonic() + PATIENCE
    while log.readable_offset < log.end_offset:
        assert time.monotonic() < deadline, f"{log}: {log.readable_offset} can be read, the end is {log.end_offset}"
        time.sleep(0.02)
    return [record.value for record in log.records()]


def check(place: Path, notes: Path, told: int, cycle: int) -> int:
    """The store and its copies after a power cut; how many copies were whole. ``told``: bytes of the notes that count.

    Raises AssertionError, or what fastlog raises.
    """
    events, heard = read_notes(notes), read_notes(notes, told)
    begun = {event["name"]: event for event in events if event["what"] == "backing up"}
    done = {event["name"] for event in heard if event["what"] == "backed up"}
    whole = 0
    for path in sorted(place.glob(f"copy-{cycle}-*")):
        before = [event for event in heard if event["t"] < begun[path.name]["t"]]
        if path.name in done or (path / "fastlog.json").exists():
            check_store(path, before)
            whole += 1
        else:
            refuse(path)
        shutil.rmtree(path)
    assert whole >= len(done), f"of the backups {done} not all are there"
    check_store(place / "store", heard)
    with fastlog.open(place / "store") as store:
        store.backup(place / f"afterwards-{cycle}")  # the next cut may bring back what is removed here
    check_store(place / f"afterwards-{cycle}", heard)
    shutil.rmtree(place / f"afterwards-{cycle}")
    return whole


def refuse(path: Path) -> None:
    """Half a backup does not open."""
    try:
        fastlog.open(path, read_only=True).close()
    except (fastlog.UnsupportedFormatError, fastlog.StorageError):
        return
    raise AssertionError(f"half a backup opens: {path}")


def check_store(path: Path, events: list[Event]) -> None:
    """Everything that was told is there, each partition is a prefix, and no transaction is there by halves."""
    promised = {
        topic: max((event["number"] + 1 for event in events if event["what"] == topic), default=0)
        for topic in PARTITIONS
    }
    with fastlog.open(path, durability="os") as store:
        for topic, partitions in PARTITIONS.items():
            if topic not in store.topics():
                assert not promised[topic], f"{path}: {topic} is not there"
                continue
            if topic == SUMS:
                store.producer(transactional_id=SUMS).close()  # ends what was decided, and what was not
            found = [values(store, topic, number) for number in range(partitions)]
            for number, records in enumerate(found):
                where = f"{path}: {topic}-{number}"
                assert records == [b"%d" % each for each in range(len(records))], f"{where}: {records}"
                assert len(records) >= promised[topic], f"{where}: {len(records)} of {promised[topic]}"
                report = store.topic(topic).partition(number).verify()
                assert report.ok, f"{where}: {report.damages} {report.index_problems}"
            if topic == SUMS:
                assert found[0] == found[1] == found[2], f"{path}: a transaction by halves: {list(map(len, found))}"
