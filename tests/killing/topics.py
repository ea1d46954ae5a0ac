"""Topics that are created, changed, grown and deleted, stores that are opened and closed: by processes that die in it.

Each post has topics of its own, where one process after the other goes on, and knows what there is to find; all posts
append to one more topic.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fastlog.store.directory import Directory
from tests.histories.nursery import stopping
from tests.histories_messaging.notes import Event
from tests.killing.lives import Desk, Life, calls

MAKING = ["store.folders_made", "store.made"]
CHANGING = [
    *("store.topic_written", "store.topic_altering", "store.topic_altered", "store.topic_deleting"),
    *("store.partition_made", "store.partition_named", "store.partition_renamed", "store.topic_forgotten"),
]
LEAVING = ["store.closing", "store.checkpoints_written", "store.marked"]

SHARED = "shared"
MOST_PARTITIONS = 4


def names_of(post: int) -> list[str]:
    """The topics of a post."""
    return [f"post{post}-{letter}" for letter in "abc"]


# --- the process ------------------------------------------------------------------------------------------------------


def live(
    number: int, notes: str, seed: int, failpoint: list[Any] | None, path: str, post: int, durability: str = "os"
) -> None:
    """Changes the topics of its post, and opens the store anew now and then."""
    desk = Desk(number, notes, seed, failpoint)
    while not stopping.is_set():
        with desk.call("open"):
            directory = Directory.open(path, durability=durability)
        for _ in range(desk.chance.choice([1, 4, 12])):
            if stopping.is_set():
                break
            change(desk, directory, desk.chance.choice(names_of(post)))
            append_shared(desk, directory)
        with desk.call("close"):
            directory.close()


def change(desk: Desk, directory: Directory, name: str) -> None:
    """One thing that may be done to a topic, or the topic made."""
    chance = desk.chance
    if name not in directory.topics():
        partitions, retention = chance.choice([1, 2]), chance.choice([None, 10**9])
        with desk.call("create", topic=name, partitions=partitions, retention=retention) as answer:
            options = None if retention is None else {"retention.ms": retention}
            answer["id"] = directory.create_topic(name, partitions, options=options).topic_id
        return
    info = directory.topic(name)
    what = chance.choice(["append", "append", "append", "alter", "grow", "delete"])
    if what == "alter":
        retention = chance.randrange(10**9, 10**10)
        with desk.call("alter", topic=name, retention=retention):
            directory.alter_topic(name, {"retention.ms": retention})
    elif what == "grow" and info.partitions < MOST_PARTITIONS:
        with desk.call("grow", topic=name, partitions=info.partitions + 1):
            directory.add_partitions(name, info.partitions + 1)
    elif what == "delete":
        with desk.call("delete", topic=name):
            directory.delete_topic(name)
    else:
        partition = chance.randrange(info.partitions)
        with directory.lease(name, partition) as lease:
            first, count = lease.log.end_offset, chance.choice([1, 3])
            values = [value_of(info.topic_id, first + at) for at in range(count)]
            with desk.call("append", topic=name, partition=partition, first=first, count=count):
                lease.log.append(values)


def value_of(topic_id: str, number: int) -> bytes:
    """A record that tells which life of its topic it belongs to."""
    return f"{topic_id} {number}".encode()


def append_shared(desk: Desk, directory: Directory) -> None:
    """To the topic of all posts, which is made by whoever comes first."""
    if SHARED not in directory.topics():
        with desk.call("create_shared"):
            directory.create_topic(SHARED, 2, exist_ok=True)
    value = f"{desk.number} {desk.notes.calls}"
    with desk.call("append_shared", value=value), directory.lease(SHARED, desk.chance.randrange(2)) as lease:
        lease.log.append([value.encode()])


# --- what has to be there ---------------------------------------------------------------------------------------------


@dataclass
class Known:
    """What is known of a topic: its id once somebody was told, and how many records each partition has."""

    partitions: int
    retention: int | None
    topic_id: str | None = None
    ends: Counter[int] = field(default_factory=Counter)

    def copy(self) -> Known:
        return Known(self.partitions, self.retention, self.topic_id, Counter(self.ends))


Topics = dict[str, Known]


def after(topics: Topics, event: Event, end: Event | None) -> Topics:
    """The topics of a post when a call has been made."""
    found = {name: known.copy() for name, known in topics.items()}
    op, name = event["op"], event.get("topic", "")
    if op == "create":
        found[name] = Known(event["partitions"], event["retention"], end["id"] if end else None)
    elif op == "alter":
        found[name].retention = event["retention"]
    elif op == "grow":
        found[name].partitions = event["partitions"]
    elif op == "delete":
        del found[name]
    elif op == "append":
        assert found[name].ends[event["partition"]] == event["first"], f"{event} with {found[name]}"
        found[name].ends[event["partition"]] += event["count"]
    return found


class Posts:
    """What the posts' topics have to look like, and what was appended to the shared one."""

    def __init__(self) -> None:
        self.topics: dict[int, Topics] = {}
        self.acked: set[str] = set()
        self.begun: set[str] = set()
        self.changes = 0

    def check(self, directory: Directory, post: int, life: Life) -> None:
        """The one who was at this post is gone: what it has done is there, and the call it died in, or not."""
        topics = self.topics.get(post, {})
        candidates = [topics]
        for event, end in calls(life.events()):
            assert end is None or end["k"] == "o", f"{life.child.name}: {event} failed: {end}"
            if event["op"] == "append_shared":
                self.begun.add(event["value"])
                if end is not None:
                    self.acked.add(event["value"])
            if end is None:
                candidates = [topics, after(topics, event, end)]
            else:
                topics = after(topics, event, end)
                candidates = [topics]
                self.changes += event["op"] != "append_shared"
        problems = [differences(directory, post, candidate) for candidate in candidates]
        assert [] in problems, f"{life.child.name} of post {post}: {problems}"
        self.topics[post] = candidates[problems.index([])]
        for name, known in self.topics[post].items():
            known.topic_id = directory.topic(name).topic_id

    def check_shared(self, directory: Directory) -> None:
        """Each record once, none that was acknowledged is missing."""
        if SHARED not in directory.topics():
            assert not self.acked
            return
        found: Counter[str] = Counter()
        for partition in range(directory.topic(SHARED).partitions):
            found.update(value.decode() for value in values_of(directory, SHARED, partition))
        assert set(found.values()) <= {1}, found.most_common(3)
        assert self.acked <= set(found), sorted(self.acked - set(found))[:5]
        assert set(found) <= self.begun, sorted(set(found) - self.begun)[:5]


def values_of(directory: Directory, topic: str, partition: int) -> list[bytes]:
    """Everything in a partition; the log is verified."""
    if not directory.is_created(topic, partition):
        return []
    with directory.lease(topic, partition) as lease:
        report = lease.log.verify()
        assert not report.damages, report.damages
        return [record.value or b"" for record in lease.log.records()]


def differences(directory: Directory, post: int, topics: Topics) -> list[str]:
    """What is otherwise than it has to be at a post."""
    found = []
    there = set(directory.topics()) & set(names_of(post))
    if there != set(topics):
        return [f"{sorted(there)} are there, expected {sorted(topics)}"]
    for name, known in topics.items():
        info = directory.topic(name)
        seen = (info.partitions, info.options.get("retention.ms"))
        if seen != (known.partitions, known.retention) or known.topic_id not in (None, info.topic_id):
            found.append(f"{info}, expected {known}")
        for partition in range(info.partitions):
            values = values_of(directory, name, partition)
            wanted = [value_of(info.topic_id, number) for number in range(known.ends[partition])]
            if values != wanted:
                found.append(f"{name}-{partition} has {values[-3:]}, expected {len(wanted)}: {wanted[-3:]}")
    return found


def check_folder(root: Path) -> None:
    """Everybody is gone: after one more life nothing half-made lies around, and Kafka is told that all is well."""
    with Directory.open(root, durability="os") as directory:
        for name in directory.topics():
            for partition in range(directory.topic(name).partitions):
                directory.partition_log(name, partition)
    left = [str(path.relative_to(root)) for path in root.rglob("*") if is_left(path.name)]
    assert not left, left
    assert (root / "topics/.kafka_cleanshutdown").exists()


def is_left(name: str) -> bool:
    # whether somebody writes the metadata of a partition just now nobody can tell: what is left of one stays
    is_temporary = name.endswith(".tmp") and not name.startswith("partition.metadata.")
    return is_temporary or name.endswith("-delete")


def all_points() -> Iterable[str]:
    """The failpoints that these lives come by."""
    return [*MAKING, *CHANGING, *LEAVING]
