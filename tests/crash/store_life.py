"""What applications do with a store, told before and after each call; and short lives made of it, which are recorded.

What is told are marks (``workloads.mark``); ``store_history.StoreHistory`` reads them:

==============================  =======================================================================================
``begin N KIND …``              call N is about to be made; which one, and with what
``sending N TOPIC_ID …``        call N, a transaction, is about to send these
``offsets N GROUP …``           ... or to commit these offsets of a group
``handling N IDS``              ... or to send back, or give up, these dead letters
``deciding N COMMIT``           ... or to be committed, or taken back
``end N …``                     call N returned this
``failed N ERROR …``            it raised this, and had returned that much
==============================  =======================================================================================

Numbers of calls are those of their life, times ``CALLS``, and rise. A record's value begins with an id, the number of
the call that first sent it and its place there: ``make_value`` makes the rest of it.
"""

from __future__ import annotations

import gc
import hashlib
import os
import random
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, NamedTuple

import fastlog
from fastlog import OffsetAndMetadata, TopicPartition
from fastlog._native import oscalls
from fastlog.delivery.dead_letters import DeadLetters
from fastlog.delivery.items import Failure, Item, Move
from fastlog.delivery.moving import Mover, Route
from fastlog.delivery.naming import DEAD_LETTER, RETRY, Kind, require_topic
from tests.crash.workloads import in_processes, mark
from tests.kill_server import DURABLE

STORE = "store"
CALLS = 100_000
MOST_PARTITIONS = 3
SHAPE: dict[str, Any] = {"index.interval.bytes": 300, "max.message.bytes": 3_000, "segment.bytes": 4_000}
COMPACTED: dict[str, Any] = {**SHAPE, "cleanup.policy": "compact", "min.cleanable.dirty.ratio": 0.0}
KEYED = "keyed"  # the topic that is compacted
ORDERS, MAIL = "orders", "mail"  # the topic and the group that have dead letters
LONGEST_WAIT = 30.0

Ids = Sequence[str]


class Known(NamedTuple):
    """A topic that the life has made, or found."""

    topic_id: str
    partitions: int


def make_value(identity: str) -> bytes:
    """The value of the record with this id."""
    digest = hashlib.blake2b(identity.encode(), digest_size=16).digest()
    return identity.encode() + b" " + digest * (digest[0] % 24)


def identity_of(value: bytes | None) -> str | None:
    """The id in a value that ``make_value`` made; None when it is none of these."""
    identity = (value or b"").partition(b" ")[0].decode("ascii", "replace")
    return identity if value == make_value(identity) else None


class Life:
    """One process that uses a store, at random.

    ``tell`` takes what is told. Errors of ``forgives`` are told, and the life goes on. Lives of one store have
    different numbers. Those that are not ``alone`` have topics, groups and transactional ids of their own, the others
    those of whoever was there before.
    """

    def __init__(
        self,
        folder: Path,
        seed: int,
        number: int = 0,
        *,
        durability: str = "group",
        alone: bool = True,
        tell: Callable[..., None] = mark,
        forgives: tuple[type[BaseException], ...] = (),
        wait_for: Callable[[Any], Any] = lambda delivery: delivery.result(LONGEST_WAIT),
        delivery_timeout: str = "120s",
    ) -> None:
        self.folder = folder
        self.number = number
        self.alone = alone
        self.name = "any" if alone else str(number)
        self.durability = durability
        self.tell = tell
        self.forgives = forgives
        self.wait_for = wait_for
        self.delivery_timeout = delivery_timeout
        self.chance = random.Random(f"{seed} life {number}")
        self.calls = 0
        self.topics: dict[str, Known] = {}
        self.store: Any = None
        self.producer: Any = None
        self.transactional: Any = None
        self.consumer: Any = None
        self.mailer: Any = None
        self.mover: Mover | None = None

    @property
    def is_durable(self) -> bool:
        """Whether what is acknowledged survives power loss."""
        return self.durability in DURABLE

    @contextmanager
    def call(self, kind: str, **facts: Any) -> Iterator[tuple[int, dict[str, Any]]]:
        """A call that is told of: its number, and what it returns."""
        number = self.number * CALLS + self.calls
        self.calls += 1
        self.tell("begin", n=number, kind=kind, **facts)
        answer: dict[str, Any] = {}
        try:
            yield number, answer
        except self.forgives as problem:
            self.tell("failed", n=number, error=f"{type(problem).__name__}: {problem}", **answer)
        else:
            self.tell("end", n=number, **answer)

    # --- the store ----------------------------------------------------------------------------------------------------

    def open(self) -> None:
        with self.call("open", durability=self.durability):
            # an interval that is never over: what is synced was asked for
            interval = 3600 if self.durability == "interval" else None
            self.store = fastlog.open(self.folder / STORE, durability=self.durability, flush_interval=interval)
            self.look()

    def look(self) -> None:
        """Use the topics that are there."""
        for name in self.store.topics():
            topic = self.store.topic(name)
            if name not in self.topics and (self.alone or name.startswith(f"t{self.name}-")):
                self.topics[name] = Known(topic.topic_id, topic.partitions)

    def close(self) -> None:
        with self.call("close"):
            self.producer = self.transactional = self.consumer = self.mailer = self.mover = None
            store, self.store = self.store, None
            if store is not None:
                store.close()

    def drop(self) -> None:
        """Close what is open, whatever it says."""
        for _ in range(2):
            with suppress(Exception):
                if self.store is not None:
                    self.store.close()
        self.store = None
        gc.collect()  # a log that could not be closed is held until nobody has it

    @property
    def plain(self) -> list[str]:
        """Topics that anything is sent to."""
        own = [KEYED, ORDERS]
        return [name for name in self.topics if name not in own and not name.startswith(f"{ORDERS}.")]

    def create(self, name: str | None = None, partitions: int | None = None, **options: Any) -> str:
        chance = self.chance
        name = name or chance.choice([f"t{self.name}-{index}" for index in range(4)])
        if name in self.topics:
            return name
        partitions = partitions or chance.randint(1, MOST_PARTITIONS)
        options = options or {**SHAPE, "retention.ms": chance.choice([-1, 1 << 40])}
        with self.call("create", topic=name, partitions=partitions, options=options) as (_, answer):
            topic = self.store.create_topic(name, partitions, config=options)
            answer["id"] = topic.topic_id
            self.topics[name] = Known(topic.topic_id, partitions)
        return name

    def some_topic(self) -> str | None:
        plain = self.plain
        if not plain:
            self.create()
            plain = self.plain
        return self.chance.choice(plain) if plain else None

    def alter(self) -> None:
        name = self.some_topic()
        if name is None:
            return
        changes = {"retention.ms": self.chance.randint(1 << 40, 1 << 41)}
        with self.call("alter", topic=name, changes=changes):
            self.store.alter_topic(name, changes)

    def grow(self) -> None:
        name = self.some_topic()
        if name is None or self.topics[name].partitions == MOST_PARTITIONS:
            return
        total = self.topics[name].partitions + 1
        with self.call("grow", topic=name, partitions=total):
            self.store.add_partitions(name, total)
            self.topics[name] = self.topics[name]._replace(partitions=total)

    def delete(self) -> None:
        name = self.some_topic()
        if name is None:
            return
        known = self.topics.pop(name)
        with self.call("delete", topic=name, topic_id=known.topic_id):
            self.store.delete_topic(name)

    # --- records ------------------------------------------------------------------------------------------------------

    def send(self, name: str | None = None, count: int | None = None) -> None:
        name = name or self.some_topic()
        if name is None:
            return
        known = self.topics[name]
        number = self.number * CALLS + self.calls
        ids = [f"{number}.{index}" for index in range(count or self.chance.choice([1, 1, 2, 5, 12]))]
        keys = [self.chance.choice("abcdef") for _ in ids] if name == KEYED else None
        partition = self.chance.randrange(known.partitions)
        facts = {"topic": name, "topic_id": known.topic_id, "partition": partition, "ids": ids, "keys": keys}
        with self.call("send", durable=self.is_durable, **facts) as (_, answer):
            if self.producer is None or self.producer.closed:
                codec = self.chance.choice([None, "lz4"])
                self.producer = self.store.producer(compression=codec, delivery_timeout=self.delivery_timeout)
            self.deliver(self.producer, name, partition, ids, keys, answer)

    def deliver(
        self, sender: Any, topic: str, partition: int, ids: Ids, keys: Sequence[str] | None, answer: dict[str, Any]
    ) -> None:
        """Send, and wait for it: the answer has the offsets of what was delivered."""
        offsets: list[int | None] = []
        answer["offsets"] = offsets
        sent = [
            sender.send(topic, make_value(each), None if keys is None else keys[at].encode(), partition=partition)
            for at, each in enumerate(ids)
        ]
        problem: BaseException | None = None
        for delivery in sent:
            try:
                offsets.append(self.wait_for(delivery).offset)
            except Exception as error:  # noqa: BLE001 - told of by whoever called
                offsets.append(None)
                problem = problem or error
        if problem is not None:
            raise problem

    def trim(self) -> None:
        name = self.some_topic()
        if name is None:
            return
        known = self.topics[name]
        partition = self.chance.randrange(known.partitions)
        log = None
        with self.call("look", topic=name):
            log = self.store.topic(name).partition(partition)
        if log is None:
            return
        before = self.chance.randint(log.start_offset, max(log.start_offset, log.readable_offset))
        with self.call("trim", topic=name, topic_id=known.topic_id, partition=partition, before=before):
            log.delete_records(before)

    def compact(self) -> None:
        """Fill a topic that is compacted, and compact it."""
        self.create(KEYED, 1, **COMPACTED)
        for _ in range(self.chance.randint(2, 6)):
            if KEYED in self.topics:
                self.send(KEYED, 12)
        with self.call("maintain"):
            self.store.maintain()

    # --- transactions and groups --------------------------------------------------------------------------------------

    def transact(self) -> None:
        """Records for two topics, and often the offsets of a consumer; most are committed."""
        first, second = self.some_topic(), self.some_topic()
        if first is None or second is None:
            return
        commits = self.chance.random() < 0.75
        with self.call("transaction") as (number, answer):
            if self.transactional is None or self.transactional.closed:
                name = f"pay-{self.name}"
                self.transactional = self.store.producer(
                    transactional_id=name, transaction_timeout="1h", delivery_timeout=self.delivery_timeout
                )
            consumer = self.member() if self.chance.random() < 0.6 else None
            places: list[dict[str, Any]] = []
            answer["places"] = places
            transaction = self.transactional.transaction(consumer)
            try:
                with transaction:
                    at = 0
                    for topic in (first, second)[: self.chance.choice([1, 2, 2, 2])]:
                        known = self.topics[topic]
                        partition = self.chance.randrange(known.partitions)
                        count = self.chance.choice([1, 2, 6])
                        ids = [f"{number}.{index}" for index in range(at, at + count)]
                        at += count
                        facts = {"topic": topic, "topic_id": known.topic_id, "partition": partition, "ids": ids}
                        self.tell("sending", n=number, **facts)
                        places.append(dict(facts))
                        self.deliver(transaction, topic, partition, ids, None, places[-1])
                    if consumer is not None:
                        offsets = self.read_some(consumer)
                        if offsets:
                            self.tell("offsets", n=number, group=f"group-{self.name}", offsets=self.told(offsets))
                            transaction.commit_offsets(offsets)
                    self.tell("deciding", n=number, commit=commits)
                    (transaction.commit if commits else transaction.abort)()
            except BaseException:
                self.transactional = None  # whoever opens the id anew ends what it has open
                raise
            finally:
                answer["outcome"] = transaction.outcome

    def member(self) -> Any:
        if self.consumer is None or self.consumer.closed:
            self.consumer = self.store.consumer(
                self.plain, group=f"group-{self.name}", start="earliest", auto_commit=False
            )
        return self.consumer

    def read_some(self, consumer: Any) -> dict[TopicPartition, int]:
        """Records that a member is handed, as offsets to commit."""
        records = consumer.poll(self.chance.choice([1, 4, 20]), timeout=0)
        offsets = {TopicPartition(record.topic, record.partition): record.offset + 1 for record in records}
        return {one: at for one, at in offsets.items() if one.topic in self.topics}

    def told(self, offsets: dict[TopicPartition, int]) -> list[list[Any]]:
        """Offsets with the id of each topic, as they are told."""
        return [[one.topic, self.topics[one.topic].topic_id, one.partition, at] for one, at in offsets.items()]

    def commit(self) -> None:
        """A member of a group reads on, and commits."""
        if not self.plain:
            return
        group = f"group-{self.name}"
        offsets: dict[TopicPartition, int] = {}
        with self.call("poll", group=group), self.or_another_member():
            offsets = self.read_some(self.member())
        if not offsets:
            return
        with (
            self.call("commit", group=group, offsets=self.told(offsets), durable=self.is_durable),
            self.or_another_member(),
        ):
            self.member().commit(offsets)

    @contextmanager
    def or_another_member(self) -> Iterator[None]:
        """After an error another member of the group takes over."""
        try:
            yield
        except BaseException:
            consumer, self.consumer = self.consumer, None
            if consumer is not None:
                with suppress(fastlog.Error):
                    consumer.close()
            raise

    def leave(self) -> None:
        """Leave the group; another member comes later."""
        consumer, self.consumer = self.consumer, None
        if consumer is not None:
            with self.call("leave"):
                consumer.close()

    # --- dead letters -------------------------------------------------------------------------------------------------

    def prepare_letters(self) -> bool:
        """The topics of a group that cannot handle everything; whether they are there."""
        names = (ORDERS, f"{ORDERS}.{MAIL}.retry", f"{ORDERS}.{MAIL}.dlq")
        if all(name in self.topics for name in names):
            return True
        if ORDERS not in self.topics:
            self.create(ORDERS, 1, **SHAPE)
        kinds: tuple[tuple[Kind, str], ...] = ((RETRY, "retry"), (DEAD_LETTER, "dlq"))
        for kind, suffix in kinds:
            name = f"{ORDERS}.{MAIL}.{suffix}"
            if ORDERS not in self.topics or name in self.topics:
                continue
            with self.call("create", topic=name, partitions=1, options=None) as (_, answer):
                info = require_topic(self.store.directory, ORDERS, MAIL, kind)
                answer["id"] = info.topic_id
                self.topics[name] = Known(info.topic_id, 1)
        return all(name in self.topics for name in names)

    def move(self) -> None:
        """Records that a handler gave up are moved, in one transaction with the offset of their source."""
        if not self.prepare_letters():
            return
        self.send(ORDERS, self.chance.choice([1, 3]))
        source, retry = TopicPartition(ORDERS, 0), TopicPartition(f"{ORDERS}.{MAIL}.retry", 0)
        dead = TopicPartition(f"{ORDERS}.{MAIL}.dlq", 0)
        with self.call("transaction") as (number, answer):
            if self.mailer is None or self.mailer.closed:
                self.mailer = self.store.consumer(ORDERS, group=MAIL, start="earliest", auto_commit=False)
            records = self.mailer.poll(4, timeout=0)
            if not records:
                answer["outcome"] = "aborted"  # nothing was begun
                return
            if self.mover is None:
                self.mover = Mover(self.store.directory, Route(MAIL, source, retry, dead))
            failure = Failure.of(ValueError("no"), 5_000)
            to = ["dead_letter" if self.chance.random() < 0.6 else "retry" for _ in records]
            moves: list[Move] = []
            for record, where in zip(records, to, strict=True):
                moves.append(Move(Item.of_source(record, record), where, 1, 6_000, "head", failure))  # type: ignore[arg-type]
            for target, word in ((retry, "retry"), (dead, "dead_letter")):
                ids = [identity_of(one.value) for one, where in zip(records, to, strict=True) if where == word]
                if ids:
                    self.tell("sending", n=number, topic=target.topic, partition=0, ids=ids,
                              topic_id=self.topics[target.topic].topic_id)  # fmt: skip
            offsets = {source: records[-1].offset + 1}
            self.tell("offsets", n=number, group=MAIL, offsets=self.told(offsets))
            self.tell("deciding", n=number, commit=True)
            epoch = self.mailer.epochs_of([source]).get(source)
            positions = {where: OffsetAndMetadata(at) for where, at in offsets.items()}
            try:
                self.mover.move(moves, positions, self.mailer.membership, epoch)
            except BaseException:
                self.mover.close()
                self.mover = None
                raise
            answer["outcome"] = "committed"

    def redrive(self) -> None:
        """Somebody sends the dead letters back to where they are tried again, or gives them up."""
        if not self.prepare_letters():
            return
        retry = f"{ORDERS}.{MAIL}.retry"
        again = self.chance.random() < 0.6
        with self.call("transaction") as (number, answer):
            letters = DeadLetters.open(self.store, ORDERS, MAIL, by="life")
            ids = [identity_of(letter.value) for letter in letters.list()]
            if not ids:
                answer["outcome"] = "aborted"
                return
            self.tell("handling", n=number, ids=ids)
            if again:
                facts = {"topic": retry, "topic_id": self.topics[retry].topic_id, "partition": 0}
                self.tell("sending", n=number, ids=ids, **facts)
            self.tell("deciding", n=number, commit=True)
            report = letters.redrive() if again else letters.discard()
            # where calls fail, an older transaction may hide letters from the list that are there when it is over
            assert self.forgives or report.letters == len(ids), f"{report}, expected {ids}"
            answer["outcome"] = "committed"

    # --- copies -------------------------------------------------------------------------------------------------------

    def backup(self) -> None:
        """A copy of the store as it is now."""
        target = f"backup-{self.number * CALLS + self.calls}"
        with self.call("backup", target=target):
            self.store.backup(self.folder / target)

    def some(self, times: int, *actions: Callable[[], object]) -> None:
        """Do things at random."""
        for _ in range(times):
            self.chance.choice(actions)()


# --- lives that are recorded ------------------------------------------------------------------------------------------


def level_of(seed: int, *levels: str) -> str:
    return random.Random(f"level {seed}").choice(levels)


def store_topics(folder: Path, seed: int) -> None:
    """Topics come, change and go, with records in them."""
    life = Life(folder, seed, durability=level_of(seed, "group", "batch", "interval", "os"))
    for _ in range(2):
        life.open()
        life.some(18, life.create, life.send, life.send, life.alter, life.grow, life.delete, life.delete)
        life.close()


def store_records(folder: Path, seed: int) -> None:
    """Producers, old records deleted, a topic compacted; the store is opened and closed in between."""
    life = Life(folder, seed, durability=level_of(seed, "group", "batch", "interval", "os"))
    for _ in range(3):
        life.open()
        life.some(12, life.send, life.send, life.send, life.trim, life.compact)
        life.close()


def store_transactions(folder: Path, seed: int) -> None:
    """Transactions over two topics with the offsets of a consumer, between records without."""
    life = Life(folder, seed, durability=level_of(seed, "group", "batch", "interval"))
    for _ in range(2):
        life.open()
        life.some(12, life.transact, life.transact, life.transact, life.send, life.commit, life.leave)
        life.close()


def store_groups(folder: Path, seed: int) -> None:
    """A group commits while topics come and go."""
    life = Life(folder, seed, durability=level_of(seed, "group", "batch", "interval", "os"))
    for _ in range(2):
        life.open()
        life.some(20, life.send, life.send, life.commit, life.commit, life.leave, life.delete)
        life.close()


def store_letters(folder: Path, seed: int) -> None:
    """Records are moved to where they wait and to the dead letters, which are sent back or given up."""
    life = Life(folder, seed, durability=level_of(seed, "group", "batch", "interval"))
    life.open()
    life.some(10, life.move, life.move, life.move, life.redrive, life.send)
    life.close()


def store_backups(folder: Path, seed: int) -> None:
    """Copies of a store in use."""
    life = Life(folder, seed, durability=level_of(seed, "group", "batch"))
    life.open()
    for _ in range(2):
        life.some(10, life.send, life.send, life.transact, life.commit, life.create)
        life.backup()
    life.some(3, life.send, life.transact)
    life.close()


def store_deaths(folder: Path, seed: int) -> None:
    """Processes that die without closing, some at a named step; the next one goes on."""
    level = level_of(seed, "group", "batch", "interval")
    for number in range(4):
        in_processes([lambda number=number: one_death(folder, seed, number, level)], may_die=True)  # type: ignore[misc]
    life = Life(folder, seed, 8, durability=level)
    life.open()
    life.some(3, life.send, life.transact)
    life.close()


PLACES = [
    *("store.topic_written", "store.topic_altering", "store.topic_altered", "store.topic_deleting"),
    *("store.partition_made", "store.partition_named", "store.partition_renamed", "store.topic_forgotten"),
    *("transaction.opened", "transaction.entered", "transaction.synced", "transaction.decided", "transaction.marked"),
    *("transaction.completed", "backup.linked", "backup.copied", "backup.finished", "append.batch_written"),
    *("append.written", "append.published", "roll.begun", "roll.created", "sync.locked", "sync.synced"),
    *("store.closing", "store.checkpoints_written", "store.marked", "group.seated", "group.published"),
]


def one_death(folder: Path, seed: int, number: int, level: str, *, alone: bool = True) -> None:
    life = Life(folder, seed, number, durability=level, alone=alone)
    place = life.chance.choice(PLACES)
    oscalls.arm(place, "kill", life.chance.randint(1, 4))
    live(life, 10)
    if life.chance.random() < 0.5:
        life.close()
    os._exit(0)


def live(life: Life, times: int) -> None:
    """A bit of everything."""
    life.open()
    actions: list[Callable[[], object]] = [
        life.create,
        life.send,
        life.send,
        life.send,
        life.transact,
        life.transact,
        life.commit,
        life.commit,
    ]
    life.some(times, *actions, life.alter, life.grow, life.delete, life.trim, life.leave, life.backup)


def store_crowd(folder: Path, seed: int) -> None:
    """Several processes at once; one of them dies."""
    level = level_of(seed, "group", "batch", "interval")
    first = Life(folder, seed, durability=level)
    first.open()
    first.close()
    lives = [lambda number=number: among_others(folder, seed, number, level) for number in (1, 2)]
    in_processes([*lives, lambda: one_death(folder, seed, 3, level, alone=False)], may_die=True)
    in_processes([lambda: among_others(folder, seed, 4, level)])


def among_others(folder: Path, seed: int, number: int, level: str) -> None:
    life = Life(folder, seed, number, durability=level, alone=False)
    live(life, 8)
    life.close()


def store_recovery(folder: Path, seed: int) -> None:
    """Opening what power loss left, and going on.

    A group may have committed offsets of records that were not synced, and are lost: it is told so.
    """
    level = level_of(seed, "group", "interval")
    life = Life(folder, seed, 50, durability=level, forgives=(fastlog.OffsetOutOfRangeError,))
    life.open()
    life.some(4, life.send, life.transact, life.commit, life.create)
    life.close()


STORES = [
    *("store_topics", "store_records", "store_transactions", "store_groups", "store_letters", "store_backups"),
    *("store_deaths", "store_crowd"),
]
STORE_LIVES: dict[str, Callable[[Path, int], None]] = {
    function.__name__: function
    for function in (
        store_topics, store_records, store_transactions, store_groups, store_letters, store_backups, store_deaths,
        store_crowd, store_recovery,
    )
}  # fmt: skip
