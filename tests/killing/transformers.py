"""Consume, transform, produce: members of a group with a transactional id each, killed; every input has one output."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import fastlog
from fastlog.errors import Error
from tests.histories.nursery import stopping
from tests.killing.lives import Desk

IN, OUT, GROUP = "in", "out", "eos"
PARTITIONS = 3
POINTS = [
    *("transaction.opened", "transaction.entered", "transaction.synced", "transaction.decided", "transaction.marked"),
    *("transaction.completed", "group.taken", "group.seated", "exchange.stored", "append.written", "append.published"),
]


def fill(store: fastlog.Store, first: int, count: int) -> None:
    """More input: the numbers from ``first`` on."""
    with store.producer() as producer:
        for number in range(first, first + count):
            producer.send(IN, b"%d" % number, partition=number % PARTITIONS)


def transform(
    number: int, notes: str, seed: int, failpoint: list[Any] | None, path: str, transactional_id: str,
    durability: str = "os", drains: bool = False,
) -> None:  # fmt: skip
    """Takes records, and sends what it makes of them, until it is asked to stop or, when it ``drains``, all is done."""
    desk = Desk(number, notes, seed, failpoint)
    with fastlog.open(path, durability=durability) as store:
        while not stopping.is_set():
            with (
                store.consumer(IN, group=GROUP, start="earliest", auto_commit=False) as consumer,
                store.producer(transactional_id=transactional_id, transaction_timeout=60) as producer,
            ):
                try:
                    while not stopping.is_set():
                        one_transaction(desk, consumer, producer)
                        if drains and not any(lag.records for lag in store.group_lag(GROUP, [IN]).values()):
                            return
                except Error:
                    continue  # a partition was lost, or this id was opened by somebody else: as a new member, again


def one_transaction(desk: Desk, consumer: Any, producer: Any) -> None:
    with desk.call("transaction") as answer, producer.transaction(consumer) as transaction:
        records = consumer.poll(max_records=desk.chance.choice([1, 3, 10]), timeout=0.02)
        for record in records:
            transaction.send(OUT, b"%d %d <%s>" % (record.partition, record.offset, record.value), partition=0)
        if records:
            transaction.commit_offsets()
        answer["records"] = len(records)


def prepare(path: Path) -> None:
    """A store with both topics."""
    with fastlog.open(path, durability="os") as store:
        store.create_topic(IN, PARTITIONS)
        store.create_topic(OUT, 1)


def check(store: fastlog.Store, count: int) -> None:
    """Each of the inputs has exactly one output, whoever made it."""
    with store.consumer(OUT, start="earliest") as consumer:
        found = Counter((record.value or b"").decode() for record in consumer.records(until="end"))
    wanted = {f"{number % PARTITIONS} {number // PARTITIONS} <{number}>" for number in range(count)}
    assert set(found.values()) <= {1}, f"made twice: {[one for one in found.most_common(5) if one[1] > 1]}"
    assert set(found) == wanted, f"{sorted(set(found) ^ wanted)[:5]} of {count}"
