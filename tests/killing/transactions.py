"""Transactions whose owners die and freeze, and those who end what they left, too.

Each transaction writes its name to two partitions and into the offsets of its owner's group: readers see each name
everywhere, or nowhere.
"""

from __future__ import annotations

import random
import time
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from fastlog.errors import ProducerFencedError, TransactionError
from fastlog.groups.offsets import OffsetAndMetadata, OffsetStore
from fastlog.records import TopicPartition
from fastlog.store.directory import Directory
from fastlog.store.internal import CONSUMER_OFFSETS
from fastlog.transactions import Coordinator
from tests.histories.nursery import stopping
from tests.killing.lives import Desk, Life, calls
from tests.messaging.transacting import Writer, is_settled, open_store, visible

BEFORE = ["transaction.opened", "transaction.entered", "transaction.synced"]  # nothing is decided yet
AFTER = ["transaction.decided", "transaction.marked", "transaction.completed"]
ENDING = ["transaction.decided", "transaction.marked", "transaction.completed"]  # of who ends what others left

NAMES = ("p", "q")  # transactional ids
PLACES = [("a", 0), ("b", 1)]
HERE = TopicPartition("a", 0)  # whose offset moves with each transaction
TIMEOUT_MS = 60_000


class Owner(Writer):
    """A writer whose transactions move offsets, too."""

    def move_offset(self, offset: int, name: str) -> None:
        store = OffsetStore(self.directory)
        group = self.id.transactional_id
        keys, values = store.encode_commit(group, {HERE: OffsetAndMetadata(offset, name)}, {})
        self.id.append_records(TopicPartition(CONSUMER_OFFSETS, store.partition_of(group)), keys, values)


def passing(chance: random.Random, name: str) -> int:
    """At which passing of a failpoint to end: an owner opens its id once."""
    return 1 if name == "transaction.opened" else chance.choice([1, 1, 2, 4])


# --- processes --------------------------------------------------------------------------------------------------------


def transact(
    number: int, notes: str, seed: int, failpoint: list[Any] | None, path: str, transactional_id: str,
    ends: tuple[str, ...] = ("commit", "commit", "abort"), timeout_ms: int = TIMEOUT_MS, durability: str = "os",
    pace: float = 0.002,
) -> None:  # fmt: skip
    """One transaction after the other, ``pace`` seconds between them; a new owner when it was taken for dead."""
    desk = Desk(number, notes, seed, failpoint)
    with open_store(Path(path), durability=durability) as directory:
        owner: Owner | None = None
        while not stopping.is_set():
            if owner is None:
                with desk.call("open"):
                    owner = Owner(directory, transactional_id, timeout_ms)
            try:
                one_transaction(desk, owner, desk.chance.choice(ends))
            except (ProducerFencedError, TransactionError):
                owner.close()
                owner = None
            stopping.rest(pace)
        if owner is not None:
            owner.close()


def one_transaction(desk: Desk, owner: Owner, end: str) -> None:
    value = f"{owner.id.transactional_id} {desk.number} {desk.notes.calls}"
    with desk.call("transaction", value=value, end=end):
        owner.begin()
        for topic, partition in PLACES:
            owner.send(topic, [value.encode()], partition)
        owner.move_offset(desk.notes.calls, value)
        if end == "commit":
            owner.id.commit()
        else:
            owner.id.abort()


def attend(number: int, notes: str, seed: int, failpoint: list[Any] | None, path: str, stay: bool = False) -> None:
    """Ends what others have left; with ``stay`` also what they will leave."""
    desk = Desk(number, notes, seed, failpoint)
    with Directory.open(path, durability="os") as directory:
        with desk.call("attach"):
            Coordinator.of(directory).attach()
        while stay and not stopping.is_set():
            time.sleep(0.002)


# --- what has to be there ---------------------------------------------------------------------------------------------


def is_quiet(directory: Directory) -> bool:
    """Whether no transaction is open anywhere."""
    coordinator = Coordinator.of(directory)
    states = [coordinator.log_of(name).state(name) for name in NAMES]
    return not any(state is not None and state.is_open for state in states) and all(
        is_settled(directory, *place) for place in PLACES
    )


def is_empty(directory: Directory) -> bool:
    """Whether nothing is left of anybody who is gone, either."""
    return is_quiet(directory) and not Coordinator.of(directory).registry.running()


def check(directory: Directory, lives: Iterable[Life]) -> int:
    """All or nothing, and as it was told; how many transactions there were. Nobody is in the middle of one."""
    there = set(check_whole(directory))
    begun: set[str] = set()
    for life in lives:
        for event, end in calls(life.events()):
            if event["op"] != "transaction":
                continue
            value = event["value"]
            begun.add(value)
            if end is not None and end["k"] == "o":
                assert (value in there) == (event["end"] == "commit"), f"{value} was told {event['end']}"
            elif end is not None or event["end"] == "abort":
                # fenced is aborted, and an error that does not know how it ended is none of these
                assert value not in there, f"{event} is there, and was told {end}"
                assert end is None or end["outcome"] != "unknown", f"{event}: {end}"
    assert there <= begun, sorted(there - begun)[:5]
    return len(begun)


def check_whole(directory: Directory) -> list[str]:
    """What readers see: each name in both places once, and in the offset of its group when it is the last one."""
    shown = [[value.decode() for value in visible(directory, *place)] for place in PLACES]
    counted = Counter(shown[0])
    assert set(counted.values()) <= {1}, f"doubled: {counted.most_common(3)}"
    assert Counter(shown[1]) == counted, f"only in one place: {sorted(set(shown[0]) ^ set(shown[1]))[:5]}"
    store = OffsetStore(directory)
    for group, value in {value.split()[0]: value for value in shown[0]}.items():
        found = store.committed(group, [HERE])[HERE]
        assert found is not None and found.metadata == value, f"group {group} is at {found}, its last record is {value}"
    return shown[0]
