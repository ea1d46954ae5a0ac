"""Apps that tests drive by hand: one thread, a clock that is turned, and what is in topics afterwards."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import fastlog
from fastlog.delivery.app import App
from fastlog.delivery.runner import Runner

FIRST_MOMENT = 1_700_000_000_000


class HandClock:
    """A clock that is turned by hand."""

    def __init__(self, now: int = FIRST_MOMENT) -> None:
        self.now = now
        self.error = 0

    def wall(self) -> int:
        return self.now + self.error

    def steady(self) -> int:
        return self.now

    def advance(self, milliseconds: int) -> None:
        self.now += milliseconds

    def jump(self, milliseconds: int) -> None:
        """Set the wall clock, as an administrator does."""
        self.error += milliseconds


class Driven:
    """An app that is stepped by hand."""

    def __init__(self, app: App, clock: HandClock) -> None:
        self.app = app
        self.clock = clock
        self.runners: list[Runner] = app.open(inline=True)

    def settle(self, most: int = 10_000) -> int:
        """Step until nothing happens any more; how many rounds something happened in."""
        for rounds in range(most):
            happened = [runner.step() for runner in self.runners]
            if not any(happened):
                return rounds
        raise AssertionError(f"something happened in each of {most} rounds")

    def advance(self, milliseconds: int) -> None:
        self.clock.advance(milliseconds)
        self.settle()

    def stats(self) -> Any:
        return self.app.stats()


@contextmanager
def driven(app: App, clock: HandClock) -> Iterator[Driven]:
    found = Driven(app, clock)
    try:
        found.settle()
        yield found
    finally:
        app.close()


def send(
    store: fastlog.Store, topic: str, values: list[bytes], keys: list[bytes | None] | None = None, **options: Any
) -> None:
    with store.producer() as producer:
        for at, value in enumerate(values):
            producer.send(topic, value, key=None if keys is None else keys[at], **options)


def records_of(store: fastlog.Store, topic: str) -> list[fastlog.Record]:
    """What readers see of a topic."""
    with store.consumer(topic, start="earliest") as consumer:
        return list(consumer.records(until="end"))


def values_of(store: fastlog.Store, topic: str) -> list[bytes | None]:
    return [record.value for record in records_of(store, topic)]


def is_read(store: fastlog.Store, group: str = "mail") -> bool:
    """Whether the group has nothing to come, neither in its topics nor in what waits."""
    topics = ["orders", f"orders.{group}.retry"]
    if topics[1] not in store.topics():
        return False
    if any(lag.records for lag in store.group_lag(group, topics).values()):
        return False
    # a move becomes visible partition by partition, that of the offsets first
    dead_letters = {f"orders.{group}.dlq"} & set(store.topics())
    places = [(topic, n) for topic in [*topics, *dead_letters] for n in range(store.topic(topic).partitions)]
    for place in places:
        with store.directory.lease(*place) as lease:
            if lease.log.last_stable_offset != lease.log.end_offset:
                return False
    return True


def committed(store: fastlog.Store, group: str) -> dict[fastlog.TopicPartition, fastlog.OffsetAndMetadata]:
    from fastlog.groups.offsets import OffsetStore

    return OffsetStore(store.directory).all_committed(group)


def counted(values: list[Any]) -> dict[Any, int]:
    return dict(Counter(values))
