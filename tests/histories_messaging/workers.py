"""The processes of a gang: producers, transactions, members of groups, readers. All of it through the public API.

Each works until it is asked to stop, and writes down every call. Values of records tell where they are from:
``p<worker>.<producer>.<number>``, or ``x<worker>.<transaction>.<number>`` with what was read before behind a ``|``.
"""

from __future__ import annotations

import gc
import os
import random
import re
import signal
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from functools import partial
from typing import Any

import fastlog
from fastlog._native import oscalls
from tests.histories.nursery import stopping
from tests.histories_messaging import awaited
from tests.histories_messaging.mutants import MUTANTS
from tests.histories_messaging.notes import Notes

IN, OUT = "in", "out"
TopicPartition = fastlog.TopicPartition
EOS_GROUP = "eos"


class Desk:
    """What every worker has: a store, its notes, its dice."""

    def __init__(self, number: int, notes: str, path: str, seed: int, options: dict[str, Any]) -> None:
        self.number, self.path = number, path
        self.notes = Notes(notes)
        self.chance = random.Random(seed * 1000 + number)
        self.options = options
        self.rest_seconds = options.get("rest", 0.002)
        if options.get("mutant"):
            MUTANTS[options["mutant"]]()
        self.store = self.open()
        if options.get("failpoint"):
            oscalls.arm(*options["failpoint"])

    def open(self) -> Any:
        """The store, or one for asyncio behind the same face."""
        options = {"durability": self.options.get("durability", "os"), "lock_timeout": 20}
        number = self.notes.begin("open_store")
        if self.options.get("asynchronous"):
            store = awaited.open_store(self.path, random.Random(self.chance.random()), **options)
        else:
            store = fastlog.open(self.path, **options)
        self.notes.ok(number)
        return store

    def call(self, op: str, **facts: Any) -> AbstractContextManager[dict[str, Any]]:
        """A call of the product, noted: ``Notes.call``."""
        return self.notes.call(op, **facts)

    def rest(self) -> None:
        stopping.rest(self.chance.random() * self.rest_seconds)

    def dice(self) -> float:
        return self.chance.random()

    def fork(self, **handles: Callable[[], object]) -> None:
        """A child tries handles of this process: each has to refuse. It ends without cleaning up, or after it."""
        if not self.options.get("forks", True) or self.options.get("asynchronous"):
            return  # a loop, and its thread, stay behind in the parent
        number = self.notes.begin("fork")
        pid = os.fork()
        if pid == 0:
            signal.alarm(10)
            try:
                answers = {name: self._try(call) for name, call in handles.items()}
                gc.collect()
                self.notes.say("child", answers=answers)
            finally:
                os._exit(0)
        _, status = os.waitpid(pid, 0)
        self.notes.ok(number, status=status)

    def _try(self, call: Callable[[], object]) -> str:
        try:
            call()
        except BaseException as error:  # noqa: BLE001 - whatever it is, it is the answer
            return type(error).__name__
        return "ok"

    def close_store(self) -> None:
        try:
            with self.call("close_store"):
                self.store.close()
        except fastlog.Error:
            pass


# --- producers ------------------------------------------------------------------------------------------------------


class Sent:
    """Deliveries that are under way; those that are decided are noted now and then."""

    def __init__(self, desk: Desk) -> None:
        self.desk = desk
        self.waiting: deque[tuple[Any, list[str]]] = deque()

    def add(self, delivery: Any, values: list[str]) -> None:
        self.waiting.append((delivery, values))

    def note(self) -> None:
        acknowledged: list[Any] = []
        refused: list[Any] = []
        while self.waiting and self.waiting[0][0].done():
            delivery, values = self.waiting.popleft()
            error = delivery.exception(0)
            if error is not None:
                refused += [[value, type(error).__name__, str(error)[:200]] for value in values]
            elif len(values) == 1 and not hasattr(delivery, "__len__"):
                found = delivery.result(0)
                acknowledged.append([values[0], found.topic, found.partition, found.offset])
            else:
                found = delivery.result(0)
                acknowledged += [
                    [value, one.topic, one.partition, one.offset] for value, one in zip(values, found, strict=True)
                ]
        if acknowledged or refused:
            self.desk.notes.say("deliveries", acked=acknowledged, refused=refused)


def produce(number: int, notes: str, path: str, seed: int, **options: Any) -> None:
    """A producer without transactions, opened anew now and then."""
    desk = Desk(number, notes, path, seed, options)
    opened = 0
    while not stopping.is_set():
        opened += 1
        if desk.dice() < 0.2:
            desk.close_store()
            desk.store = desk.open()
        with desk.call("open_producer", p=opened):
            producer = desk.store.producer(
                linger=desk.chance.choice([0, 0, 0.002]), compression=desk.chance.choice([None, None, "lz4"])
            )
        sent = Sent(desk)
        _send_some(desk, producer, sent, opened)
        try:
            with desk.call("close_producer", p=opened):
                producer.close()
        except fastlog.Error:
            pass
        sent.note()
    desk.close_store()


def _send_some(desk: Desk, producer: Any, sent: Sent, opened: int) -> None:
    counter = 0
    for _ in range(desk.chance.choice([50, 200, 1000])):
        if stopping.is_set():
            return
        dice = desk.dice()
        topic = desk.chance.choice(desk.options.get("topics", [IN]))
        place: dict[str, Any] = {"key": desk.chance.choice(["a", "b", "c", "d", "e", None]), "partition": None}
        if dice < 0.3:
            place = {"key": None, "partition": desk.chance.randrange(3)}
        try:
            if dice > 0.9:
                values = [f"p{desk.number}.{opened}.{counter + i}" for i in range(desk.chance.randrange(2, 12))]
                counter += len(values)
                with desk.call("send_many", p=opened, topic=topic, values=values, **place):
                    keys = None if place["key"] is None else [str(place["key"]).encode()] * len(values)
                    batch = producer.send_many(
                        topic, [value.encode() for value in values], keys=keys, partition=place["partition"]
                    )
                sent.add(batch, values)
            elif dice > 0.86:
                with desk.call("flush", p=opened):
                    producer.flush()
            else:
                value = f"p{desk.number}.{opened}.{counter}"
                counter += 1
                key = None if place["key"] is None else str(place["key"]).encode()
                with desk.call("send", p=opened, topic=topic, values=[value], **place):
                    delivery = producer.send(topic, value.encode(), key=key, partition=place["partition"])
                sent.add(delivery, [value])
                if dice > 0.8:
                    delivery.exception(30)
            if dice < 0.002:
                desk.fork(
                    send=lambda: producer.send(IN, b"child"),
                    flush=producer.flush,
                    open=desk.store.producer,
                    create=lambda: desk.store.create_topic("child"),
                )
        except fastlog.Error:
            if producer.closed:
                return
        sent.note()
        desk.rest()


# --- transactions ---------------------------------------------------------------------------------------------------


def transact(number: int, notes: str, path: str, seed: int, transactional_id: str = "tx", **options: Any) -> None:
    """Transactions that only send."""
    desk = Desk(number, notes, path, seed, options)
    while not stopping.is_set():
        with _transactional(desk, transactional_id) as producer:
            while producer is not None and not stopping.is_set() and _transaction(desk, producer, None, []):
                desk.rest()
                if desk.dice() < 0.01:
                    break
    desk.close_store()


def transform(number: int, notes: str, path: str, seed: int, transactional_id: str = "eos", **options: Any) -> None:
    """Read, transform, write, commit the offsets: each in one transaction. Ends by itself when ``drains``."""
    desk = Desk(number, notes, path, seed, options)
    opened = 0
    while not stopping.is_set():
        opened += 1
        member = Member(desk, opened, group=EOS_GROUP, topics=[IN], auto_commit=desk.dice() < 0.5)
        if not member.is_open:
            stopping.rest(0.05)
            continue
        with _transactional(desk, transactional_id) as producer:
            while producer is not None and not stopping.is_set():
                records = member.poll(desk.chance.choice([1, 3, 10, 50]), 0.1)
                if records is None:
                    break
                if not records:
                    if options.get("drains") and member.is_drained():
                        stopping.set()
                    continue
                if not _transaction(desk, producer, member, records) or desk.dice() < 0.01:
                    break
                if desk.dice() < 0.004:
                    consumer = member.consumer
                    desk.fork(
                        poll=partial(consumer.poll, timeout=0),
                        commit=consumer.commit,
                        send=partial(producer.send, OUT, b"child"),
                        transaction=producer.transaction().__enter__,
                    )
                desk.rest()
        member.close()
    desk.close_store()


@contextmanager
def _transactional(desk: Desk, name: str) -> Iterator[Any]:
    """A transactional producer; None when it was not to be had."""
    producer = None
    try:
        with desk.call("open_producer", id=name):
            producer = desk.store.producer(
                transactional_id=name, transaction_timeout=desk.options.get("transaction_timeout", 1.0)
            )
    except fastlog.Error:
        stopping.rest(0.05)
    try:
        yield producer
    finally:
        if producer is not None:
            try:
                with desk.call("close_producer", id=name):
                    producer.close()
            except fastlog.Error:
                pass


class GiveUp(Exception):
    """What a handler might raise in a transaction."""


def _transaction(desk: Desk, producer: Any, member: Member | None, records: list[Any]) -> bool:
    """One transaction. Whether the producer (and the member) may go on."""
    dice = desk.dice()
    consumer = None if member is None else member.consumer
    number = desk.notes.begin("transaction", c=None if member is None else member.number)
    sent = Sent(desk)
    transaction = producer.transaction(consumer)
    try:
        with transaction as tx:
            desk.notes.say("began", tx=number)
            if member is None:
                for at in range(desk.chance.randrange(1, 8)):
                    topic, value = desk.chance.choice([IN, OUT, OUT]), f"x{desk.number}.{number}.{at}"
                    key = desk.chance.choice(["a", "b", "c", "d"]).encode()
                    with desk.call("send", tx=number, topic=topic, values=[value]):
                        sent.add(tx.send(topic, value.encode(), key), [value])
                    if desk.dice() < 0.1:
                        stopping.rest(0.01)
            else:
                _answer(desk, tx, number, records, sent)
                with desk.call("tx_offsets", tx=number, c=member.number, offsets=member.offsets()):
                    if dice < 0.3:
                        tx.commit_offsets()
                    else:
                        tx.commit_offsets(member.marked_offsets())
            if dice < 0.08:
                raise GiveUp
            with desk.call("tx_commit" if dice > 0.16 else "tx_abort", tx=number) as answer:
                try:
                    (tx.commit if dice > 0.16 else tx.abort)()
                finally:
                    answer["outcome"] = tx.outcome
    except GiveUp:
        desk.notes.ok(number, outcome=transaction.outcome)
        _aborted(member, transaction.outcome)
        return bool(transaction.outcome == "aborted")
    except fastlog.Error as error:
        desk.notes.failed(number, error, seen=transaction.outcome)
        return False
    sent.note()
    desk.notes.ok(number, outcome=transaction.outcome)
    _aborted(member, transaction.outcome)
    return True


def _aborted(member: Member | None, outcome: str | None) -> None:
    if member is not None and outcome != "committed":
        member.rewound()


def _answer(desk: Desk, tx: Any, number: int, records: list[Any], sent: Sent) -> None:
    """One record out for each in."""
    if desk.dice() < 0.2:
        values = [
            f"x{desk.number}.{number}.{at}|{one.topic}|{one.partition}|{one.offset}|{text(one.value)}"
            for at, one in enumerate(records)
        ]
        with desk.call("send_many", tx=number, topic=OUT, values=values):
            sent.add(tx.send_many(OUT, [value.encode() for value in values], partition=0), values)
        return
    for at, one in enumerate(records):
        value = f"x{desk.number}.{number}.{at}|{one.topic}|{one.partition}|{one.offset}|{text(one.value)}"
        with desk.call("send", tx=number, topic=OUT, values=[value]):
            sent.add(tx.send(OUT, value.encode(), one.key), [value])


def text(value: bytes | None) -> str:
    return (value or b"").decode()


# --- members of groups, and readers ---------------------------------------------------------------------------------


class Member:
    """A consumer whose calls and callbacks are noted."""

    def __init__(self, desk: Desk, number: int, **options: Any) -> None:
        self.desk, self.number = desk, number
        self.group = options.get("group")
        self.next: dict[Any, int] = {}  # behind what was handed out
        self.epochs: dict[Any, int] = {}  # how often each partition was assigned
        self.consumer: Any = None
        settings: dict[str, Any] = {"start": "earliest", "auto_commit_interval": 0.05}
        if self.group is not None:
            settings |= {
                "max_poll_interval": desk.options.get("max_poll_interval", 1.0),
                "session_timeout": 1.0,
                "on_assigned": lambda names: self.told("assigned", names),
                "on_revoked": lambda names: self.told("revoked", names),
                "on_lost": lambda names: self.told("lost", names),
            }
        settings |= options
        topics = settings.pop("topics")
        try:
            with desk.call("open_consumer", c=number, **options):
                self.consumer = desk.store.consumer(topics, **settings)
        except fastlog.Error:
            pass

    @property
    def is_open(self) -> bool:
        return self.consumer is not None

    def told(self, what: str, names: list[Any]) -> None:
        for name in names:
            self.next.pop(name, None)
            if what == "assigned":
                self.epochs[name] = self.epochs.get(name, 0) + 1
        self.desk.notes.say(what, c=self.number, names=[[*name, self.epochs.get(name, 0)] for name in names])

    def rewound(self) -> None:
        self.next.clear()

    def took(self, records: list[Any]) -> None:
        for one in records:
            self.next[TopicPartition(one.topic, one.partition)] = one.offset + 1

    def offsets(self) -> list[Any]:
        return [[*name, offset] for name, offset in self.next.items()]

    def marked_offsets(self) -> dict[Any, Any]:
        """Offsets that say who has written them, and in which of its assignments."""
        return {
            name: fastlog.OffsetAndMetadata(offset, f"{self.desk.number}:{self.number}:{self.epochs.get(name, 0)}")
            for name, offset in self.next.items()
        }

    def poll(self, most: int, timeout: float) -> list[Any] | None:
        """None when this consumer is of no use any more."""
        try:
            with self.desk.call("poll", c=self.number) as answer:
                records: list[Any] = self.consumer.poll(max_records=most, timeout=timeout)
                answer["records"] = [[one.topic, one.partition, one.offset, text(one.value)] for one in records]
        except fastlog.Error as error:
            return None if isinstance(error, (fastlog.GroupError, fastlog.ClosedError)) else []
        self.took(records)
        return records

    def iterate(self, most: int) -> None:
        records = iter(self.consumer.records(until=None, idle_timeout=0.05))
        for _ in range(most):
            with self.desk.call("next", c=self.number) as answer:
                found = next(records, None)
                answer["records"] = (
                    [] if found is None else [[found.topic, found.partition, found.offset, text(found.value)]]
                )
            if found is None:
                return
            self.took([found])

    def batches(self, most: int) -> None:
        batches = iter(self.consumer.batches(timeout=0.05))
        for _ in range(most):
            with self.desk.call("batch", c=self.number) as answer:
                found = next(batches, None)
                answer["records"] = (
                    []
                    if found is None
                    else [[one.topic, one.partition, one.offset, text(one.value)] for one in list(found)]
                )
            if found is None:
                return
            self.next[TopicPartition(found.topic, found.partition)] = found.next_offset

    def commit(self) -> None:
        marked = self.marked_offsets()
        facts: dict[str, Any] = {"offsets": [[*name, one.offset] for name, one in marked.items()]}
        if self.desk.dice() < 0.7:
            with self.desk.call("commit", c=self.number, marked=True, **facts):
                self.consumer.commit(marked)
        else:
            with self.desk.call("commit", c=self.number, marked=False, **facts):
                self.consumer.commit()

    def seek(self) -> None:
        names = [name for name, offset in self.next.items() if offset > 0]
        if not names:
            return
        name = self.desk.chance.choice(names)
        target = max(self.next[name] - self.desk.chance.randrange(1, 30), 0)
        with self.desk.call("seek", c=self.number, topic=name.topic, partition=name.partition, offset=target):
            self.consumer.seek(name.topic, name.partition, offset=target)
        self.next.pop(name, None)

    def pause(self) -> None:
        names = self.consumer.assignment()
        if names:
            name = self.desk.chance.choice(names)
            with self.desk.call("pause", c=self.number, names=[list(name)]):
                self.consumer.pause(name)
        with self.desk.call("resume", c=self.number):
            for name in self.consumer.paused()[self.desk.chance.randrange(2) :]:
                self.consumer.resume(name)

    def is_drained(self) -> bool:
        """Everything of all partitions was read, and a little later there is not more."""
        with self.desk.call("lag", c=self.number) as answer:
            lags = self.consumer.lag()
            wanted = [(topic, n) for topic in self.desk.options["drained"] for n in range(self.partitions(topic))]
            answer["lag"] = [[*name, lag.records] for name, lag in lags.items()]
        drained = len(lags) == len(wanted) and all(lag.records == 0 for lag in lags.values())
        if drained:
            for name in lags:
                log = self.desk.store.topic(name.topic).partition(name.partition)
                drained = drained and log.readable_offset == log.end_offset
        return drained

    def partitions(self, topic: str) -> int:
        return int(self.desk.store.topic(topic).partitions)

    def close(self) -> None:
        try:
            with self.desk.call("close_consumer", c=self.number):
                self.consumer.close()
        except fastlog.Error:
            pass


def consume(
    number: int,
    notes: str,
    path: str,
    seed: int,
    group: str = "plain",
    instance_id: str | None = None,
    **options: Any,
) -> None:
    """A member of a group, in all its ways. Ends by itself when ``drains``."""
    desk = Desk(number, notes, path, seed, options)
    opened = 0
    while not stopping.is_set():
        opened += 1
        # both would be fatal to each other for ever: only the first of a process has the name
        name = instance_id if opened == 1 or desk.dice() < 0.5 else None
        member = Member(
            desk,
            opened,
            group=group,
            topics=[IN, OUT],
            instance_id=name,
            auto_commit=bool(options.get("drains")) or desk.dice() < 0.6,
            isolation=options.get("isolation", "read_committed"),
            fetch_bytes=desk.chance.choice([2000, 20000, 1 << 20]),
        )
        if not member.is_open:
            stopping.rest(0.05)
            continue
        turns = 1 << 30 if options.get("drains") else desk.chance.choice([100, 300, 1000])
        for _ in range(turns):
            if stopping.is_set():
                break
            try:
                if not _consume_some(desk, member, options):
                    break
            except (fastlog.GroupError, fastlog.ClosedError):
                break
            except fastlog.Error:
                pass
            desk.rest()
        if desk.dice() < 0.1 and not stopping.is_set():
            with desk.call("close_consumer", c=member.number):
                del member.consumer
                gc.collect()
        else:
            member.close()
    desk.close_store()


def _consume_some(desk: Desk, member: Member, options: dict[str, Any]) -> bool:
    """Whether the member is still of use."""
    dice = desk.dice()
    if options.get("drains"):
        records = member.poll(500, 0.1)
        if records is not None and not records and member.is_drained():
            stopping.set()
        return records is not None
    if dice < 0.6:
        return member.poll(desk.chance.choice([1, 5, 20, 100]), desk.chance.choice([0, 0.02, 0.1])) is not None
    if dice < 0.75:
        member.iterate(desk.chance.randrange(1, 40))
    elif dice < 0.85:
        member.batches(desk.chance.randrange(1, 4))
    elif dice < 0.94:
        member.commit()
    elif dice < 0.96:
        if options.get("seeks"):
            member.seek()
    elif dice < 0.985:
        member.pause()
    elif dice < 0.99:
        consumer = member.consumer
        desk.fork(
            poll=lambda: consumer.poll(timeout=0),
            commit=consumer.commit,
            assignment=consumer.assignment,
            open=lambda: desk.store.consumer(IN, group="child"),
        )
    elif dice > 0.9985:
        # a handler that takes too long: the others take its partitions, and what it commits then counts nothing
        time.sleep(member.desk.options.get("max_poll_interval", 1.0) * 1.3)
        member.commit()
    return True


def follow(number: int, notes: str, path: str, seed: int, **options: Any) -> None:
    """A reader without a group."""
    desk = Desk(number, notes, path, seed, options)
    opened = 0
    while not stopping.is_set():
        opened += 1
        member = Member(
            desk,
            opened,
            topics=[IN, OUT],
            isolation=options.get("isolation", "read_committed"),
            fetch_bytes=desk.chance.choice([500, 5000, 1 << 20]),
        )
        for _ in range(desk.chance.choice([50, 300, 1000])):
            if stopping.is_set():
                break
            dice = desk.dice()
            try:
                if dice < 0.6:
                    member.poll(desk.chance.choice([1, 10, 200]), desk.chance.choice([0, 0.02]))
                elif dice < 0.8:
                    member.iterate(desk.chance.randrange(1, 40))
                elif dice < 0.97:
                    member.batches(desk.chance.randrange(1, 4))
                else:
                    member.seek()
            except fastlog.Error:
                pass
            desk.rest()
        member.close()
    desk.close_store()


# --- topics that come and go ----------------------------------------------------------------------------------------

COMMON = "garden.common"  # of all gardeners, who get into each other's way there


def garden(number: int, notes: str, path: str, seed: int, **options: Any) -> None:
    """Creates topics, fills, reads and deletes them, beside everything that the others do."""
    desk = Desk(number, notes, path, seed, options)
    lives = 0
    while not stopping.is_set():
        lives += 1
        try:
            values = [b"%d" % at for at in range(desk.chance.randrange(30))]
            _raise_topic(desk, f"garden.{number}.{lives}", values)
            # a name may be used again: nothing of the last life is there
            _raise_topic(desk, f"garden.{number}.{lives}", values[::-1])
            with desk.call("create_topic", topic=COMMON):
                desk.store.create_topic(COMMON, 2, exist_ok=desk.dice() < 0.7)
            with desk.call("append_common"), desk.store.producer() as producer:
                producer.send(COMMON, b"common", partition=desk.chance.randrange(2)).result(20)
            if desk.dice() < 0.5:
                with desk.call("delete_topic", topic=COMMON):
                    desk.store.delete_topic(COMMON)
        except fastlog.Error:
            pass  # noted
        desk.rest()
    desk.close_store()


def _raise_topic(desk: Desk, name: str, values: list[bytes]) -> None:
    """The whole life of a topic that nobody else touches; what is not as it has to be is noted."""
    partitions = desk.chance.choice([1, 1, 3])
    with desk.call("create_own", topic=name):
        desk.store.create_topic(name, partitions)
    with desk.call("fill_own", topic=name), desk.store.producer() as producer:
        sent = producer.send_many(name, values, partition=partitions - 1) if values else None
        if sent is not None:
            sent.result(20)
    with (
        desk.call("read_own", topic=name),
        desk.store.consumer(re.compile(re.escape(name)), start="earliest") as consumer,
    ):
        found = [record.value for record in consumer.records(until="end")]
    if found != values:
        desk.notes.say("complaint", text=f"{name} was given {values} and has {found}")
    with desk.call("delete_own", topic=name):
        desk.store.delete_topic(name)
    if name in desk.store.topics():
        desk.notes.say("complaint", text=f"{name} was deleted, and is there")


__all__ = ["consume", "follow", "garden", "produce", "transact", "transform"]
