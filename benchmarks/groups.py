"""Consumer groups as contestants: members that are killed, come and go, in processes of their own. At ``os``."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from time import monotonic, process_time, sleep
from typing import Any

import fastlog
from benchmarks.contest import Prepare, Work, expect
from benchmarks.messaging import TOPIC, open_store
from benchmarks.partners import GROUP, partner
from benchmarks.workload import Stage

_PATIENCE_SECONDS = 60
_IDLE_SECONDS = 3


# --- taking over from the dead ----------------------------------------------------------------------------------------


def take_over(*, inside_a_transaction: bool) -> Prepare:
    """From just before kill -9 of a member to when the other one is handed the record that the dead one had in hand."""

    @contextmanager
    def prepare(stage: Stage) -> Iterator[Work]:
        path = stage.directory / "store"
        with open_store(path) as store:
            store.create_topic(TOPIC, 2)
            store.create_topic("copies")
            with (
                partner("members", path) as nursery,
                store.consumer(TOPIC, group=GROUP, start="earliest", auto_commit=False) as survivor,
            ):
                survivor.poll(timeout=0.01)

                def work() -> int:
                    for number in range(stage.sizes.group_takeovers):
                        stage.samples.append(_one_takeover(store, survivor, nursery, number, inside_a_transaction))
                    return stage.sizes.group_takeovers

                yield work

    return prepare


def _one_takeover(store: fastlog.Store, survivor: Any, nursery: Any, number: int, inside_a_transaction: bool) -> float:
    nursery.say(json.dumps({"do": "hold", "number": number, "transaction": inside_a_transaction}))
    deadline = monotonic() + _PATIENCE_SECONDS
    while len(survivor.assignment()) != 1:  # lets go of the other one
        expect(not survivor.poll(timeout=0.01), "a record", "none", "before anything was appended")
        expect(monotonic() < deadline, "two", "one", "partitions of the one that will survive")
    (kept,) = survivor.assignment()
    place = fastlog.TopicPartition(TOPIC, 1 - kept.partition)
    store.topic(TOPIC).partition(place.partition).append([b"%d" % number])
    victim = int(nursery.hear())
    began = monotonic()
    os.kill(victim, signal.SIGKILL)
    (record,) = survivor.poll(timeout=_PATIENCE_SECONDS) or [None]
    taken = monotonic() - began
    expect(record is not None and record.value == b"%d" % number, record, number, "the record taken over")
    survivor.commit()
    nursery.hear()  # its process is gone
    return taken


# --- coming and going -------------------------------------------------------------------------------------------------


@contextmanager
def _crowd(stage: Stage, members: int) -> Iterator[tuple[fastlog.Store, Any]]:
    """A store, and so many members that poll, each in a process of its own, with all partitions shared out."""
    path = stage.directory / "store"
    with open_store(path) as store:
        store.create_topic(TOPIC, stage.sizes.group_partitions)
        with partner("members", path) as nursery:
            for number in range(members):
                nursery.say(json.dumps({"do": "poll", "number": number}))
                nursery.hear()
            _wait_until_stable(store, members)
            yield store, nursery


def _wait_until_stable(store: fastlog.Store, members: int, pause: float = 0.005) -> None:
    deadline = monotonic() + _PATIENCE_SECONDS
    while True:
        found = store.describe_group(GROUP)
        if found.state == "Stable" and len(found.members) == members:
            return
        expect(monotonic() < deadline, f"{found.state}, {len(found.members)} members", "Stable", "the group")
        sleep(pause)


def _poll_until_owning(consumer: fastlog.Consumer, share: int) -> None:
    deadline = monotonic() + _PATIENCE_SECONDS
    while len(consumer.assignment()) < share:
        consumer.poll(timeout=0.02)
        expect(monotonic() < deadline, "fewer", share, "partitions of who joined")


@contextmanager
def a_member_joins(stage: Stage) -> Iterator[Work]:
    """From just before it is opened to when it has all the partitions that it shall have."""
    members = stage.sizes.members
    share = stage.sizes.group_partitions // members
    with _crowd(stage, members - 1) as (store, _):

        def work() -> int:
            for _ in range(stage.sizes.rebalances):
                began = monotonic()
                with store.consumer(TOPIC, group=GROUP, start="earliest") as consumer:
                    _poll_until_owning(consumer, share)
                    stage.samples.append(monotonic() - began)
                    _wait_until_stable(store, members)
                _wait_until_stable(store, members - 1)
            return stage.sizes.rebalances

        yield work


@contextmanager
def a_member_leaves(stage: Stage) -> Iterator[Work]:
    """From just before it is closed to when others have taken all of its partitions, which is looked at each 2 ms."""
    members = stage.sizes.members
    share = stage.sizes.group_partitions // members
    with _crowd(stage, members - 1) as (store, _):

        def work() -> int:
            for _ in range(stage.sizes.rebalances):
                consumer = store.consumer(TOPIC, group=GROUP, start="earliest")
                _poll_until_owning(consumer, share)
                _wait_until_stable(store, members)
                began = monotonic()
                consumer.close()
                _wait_until_stable(store, members - 1, 0.002)
                stage.samples.append(monotonic() - began)
            return stage.sizes.rebalances

        yield work


@contextmanager
def watch(stage: Stage) -> Iterator[Work]:
    """What a member costs that sleeps beside others which sleep: processor time of its process."""
    members = stage.sizes.members
    with _crowd(stage, members - 1) as (store, _), store.consumer(TOPIC, group=GROUP, start="latest") as consumer:
        _poll_until_owning(consumer, stage.sizes.group_partitions // members)
        _wait_until_stable(store, members)

        def work() -> int:
            began, used = monotonic(), process_time()
            sleep(_IDLE_SECONDS)
            stage.details["share_of_a_core"] = (process_time() - used) / (monotonic() - began)
            return 1

        yield work
