"""Moves: all of a transaction or nothing, fenced by who owns the source partition, on a disk that may be full."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import fastlog
from fastlog import OffsetAndMetadata, TopicPartition
from fastlog._native import oscalls
from fastlog.clients.consumer import Consumer
from fastlog.delivery.headers import item_of_retry, letter_of
from fastlog.delivery.items import Failure, Item, Move
from fastlog.delivery.moving import Mover, Movers, Route, mover_id
from tests.delivery.apps import committed, records_of, send, values_of

SOURCE = TopicPartition("orders", 1)
RETRY = TopicPartition("orders.mail.retry", 1)
DEAD = TopicPartition("orders.mail.dlq", 1)


@pytest.fixture
def store(folder: Path) -> Iterator[fastlog.Store]:
    with fastlog.open(folder / "store", durability="os") as opened:
        for topic in ("orders", RETRY.topic, DEAD.topic):
            opened.create_topic(topic, 2)
        yield opened


@pytest.fixture
def consumer(store: fastlog.Store) -> Iterator[Consumer[Any, Any]]:
    with Consumer(store.directory, "orders", group="mail", auto_commit=False, start="earliest") as member:
        member.poll(timeout=0)
        yield member


def route_of(group: str = "mail") -> Route:
    return Route(group, SOURCE, RETRY, DEAD)


def moves_of(store: fastlog.Store, count: int, to: Any = "retry") -> list[Move]:
    send(store, "orders", [b"%d" % number for number in range(count)], partition=1, headers={"own": b"h"})
    found = []
    with store.consumer("orders", start="earliest", partitions=[1]) as reader:
        for record in list(reader.records(until="end"))[-count:]:
            item = Item.of_source(record, record)
            failure = Failure.of(ValueError("no"), 5_000)
            where = to if isinstance(to, str) else to(len(found))
            found.append(Move(item, where, 1, 6_000, "head", failure))
    return found


def offsets(source: int, retry: int = 0, note: str = "") -> dict[TopicPartition, OffsetAndMetadata]:
    return {SOURCE: OffsetAndMetadata(source, note), RETRY: OffsetAndMetadata(retry)}


def move(mover: Mover, consumer: Consumer[Any, Any], moves: list[Move], wanted: Any) -> None:
    membership = consumer.membership
    assert membership is not None
    mover.move(moves, wanted, membership, consumer.epochs_of([SOURCE]).get(SOURCE))


def test_records_go_where_they_belong_with_the_offsets(store: fastlog.Store, consumer: Consumer[Any, Any]) -> None:
    mover = Mover(store.directory, route_of())
    moves = moves_of(store, 10, lambda number: "dead_letter" if number % 3 == 0 else "retry")
    move(mover, consumer, moves, offsets(10, 0, "note"))
    assert values_of(store, RETRY.topic) == [b"1", b"2", b"4", b"5", b"7", b"8"]
    assert values_of(store, DEAD.topic) == [b"0", b"3", b"6", b"9"]
    waiting = [item_of_retry(record) for record in records_of(store, RETRY.topic)]
    assert [item.origin_offset for item in waiting] == [1, 2, 4, 5, 7, 8]
    assert {(item.attempts, item.due, item.first_failure) for item in waiting} == {(1, 6_000, 5_000)}
    assert all(item.record is not None and list(item.record.headers) == [("own", b"h")] for item in waiting)
    letter = letter_of(records_of(store, DEAD.topic)[1])
    assert (letter.id, letter.group, letter.exception, letter.message) == ("orders-1-3", "mail", "ValueError", "no")
    assert {record.partition for record in records_of(store, DEAD.topic)} == {1}
    known = committed(store, "mail")
    assert (known[SOURCE].offset, known[SOURCE].metadata, known[RETRY].offset) == (10, "note", 0)
    mover.close()


def test_what_is_too_large_for_one_batch_goes_in_several(store: fastlog.Store, consumer: Consumer[Any, Any]) -> None:
    store.alter_topic(RETRY.topic, {"max.message.bytes": 4096})
    mover = Mover(store.directory, route_of())
    moves = moves_of(store, 100)
    move(mover, consumer, moves, offsets(100))
    assert values_of(store, RETRY.topic) == [b"%d" % number for number in range(100)]
    store.alter_topic(RETRY.topic, {"max.message.bytes": 100})
    with pytest.raises(fastlog.RecordTooLargeError):
        move(mover, consumer, moves_of(store, 2), offsets(102))
    assert committed(store, "mail")[SOURCE].offset == 100
    assert len(values_of(store, RETRY.topic)) == 100
    mover.close()


def test_who_lost_the_partition_moves_nothing(store: fastlog.Store, consumer: Consumer[Any, Any]) -> None:
    mover = Mover(store.directory, route_of())
    moves = moves_of(store, 3)
    membership = consumer.membership
    assert membership is not None
    epoch = consumer.epochs_of([SOURCE])[SOURCE]
    consumer.close()
    with Consumer(store.directory, "orders", group="mail", auto_commit=False) as other:
        other.poll(timeout=0)
        with pytest.raises(fastlog.Error) as caught:
            mover.move(moves, offsets(3), membership, epoch)
        assert isinstance(caught.value, fastlog.CommitFailedError)
        assert not mover.is_in_doubt
        # one that has it again, but by another right
        mine = other.membership
        assert mine is not None
        with pytest.raises(fastlog.CommitFailedError):
            mover.move(moves, offsets(3), mine, epoch)
        assert not values_of(store, RETRY.topic)
        assert SOURCE not in committed(store, "mail")
        move(mover, other, moves, offsets(3))
    assert len(values_of(store, RETRY.topic)) == 3
    mover.close()


def test_the_next_owner_ends_what_the_one_before_has_open(store: fastlog.Store, consumer: Consumer[Any, Any]) -> None:
    old = Mover(store.directory, route_of())
    moves = moves_of(store, 3)
    old.fence()
    transactional = old._transactional
    assert transactional is not None
    transactional.begin()
    transactional.append_records(RETRY, [b"k"], [b"left open"])
    new = Mover(store.directory, route_of())
    new.fence()
    with store.directory.lease(*RETRY) as lease:
        assert lease.log.last_stable_offset == lease.log.end_offset
    with pytest.raises(fastlog.ProducerFencedError):
        transactional.commit()
    old.close()
    with pytest.raises(fastlog.Error):
        move(old, consumer, moves, {SOURCE: OffsetAndMetadata(-1)})
    assert not values_of(store, RETRY.topic)
    new.close()


@pytest.mark.parametrize("nth", range(1, 14))
def test_a_full_disk_moves_all_or_nothing(store: fastlog.Store, consumer: Consumer[Any, Any], nth: int) -> None:
    mover = Mover(store.directory, route_of())
    first = moves_of(store, 3)
    move(mover, consumer, first, offsets(3))
    moves = moves_of(store, 5, lambda number: "dead_letter" if number % 2 else "retry")
    oscalls.inject("pwrite", 28, nth=nth, sticky=True)
    failed: list[fastlog.Error] = []
    try:
        move(mover, consumer, moves, offsets(8))
    except fastlog.Error as error:
        failed.append(error)
        if mover.is_in_doubt:
            with pytest.raises(fastlog.Error):
                mover.settle()
    finally:
        oscalls.clear()
    is_committed = not failed
    if mover.is_in_doubt:
        is_committed = mover.settle()
    if not is_committed:
        move(mover, consumer, moves, offsets(8))
    assert len(values_of(store, RETRY.topic)) == 3 + 3
    assert len(values_of(store, DEAD.topic)) == 2
    assert committed(store, "mail")[SOURCE].offset == 8
    mover.close()


def test_few_movers_stay_open(store: fastlog.Store) -> None:
    movers = Movers(store.directory, most=2)
    routes = [Route("mail", TopicPartition("orders", number), RETRY, DEAD) for number in range(5)]
    for route in routes:
        movers.of(route).fence()
    assert [movers.of(route).is_open for route in routes] == [False, False, False, True, True]
    movers.close()
    assert mover_id("mail", SOURCE) == "fastlog-move-mail-orders-1"
