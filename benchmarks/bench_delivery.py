"""Handlers: what an app costs for each record, what concurrency gives, dead letters, records that become due."""

from __future__ import annotations

from collections.abc import Callable

from benchmarks import handling
from benchmarks.contest import Contestant, contest, once, twice


@contest(
    "app",
    "Handle 100 B records with 1000 keys, ordered by key, one partition, by a handler that does nothing",
    Contestant("def", "a Record", handling.handle(is_async=False, concurrency=1)),
    Contestant("def, 16 threads", "a Record", handling.handle(is_async=False, concurrency=16)),
    Contestant("async def, 16 tasks", "a Record", handling.handle(is_async=True, concurrency=16)),
    turns=twice,
)
def bench_app(play: Callable[[], None]) -> None:
    play()


@contest(
    "app-concurrency",
    "Handle records with 1000 keys, ordered by key, one partition, by a handler that sleeps for 1 ms",
    Contestant("one at a time", "a Record", handling.handle_sleeping(1)),
    Contestant("16 threads", "a Record", handling.handle_sleeping(16)),
    turns=twice,
)
def bench_app_concurrency(play: Callable[[], None]) -> None:
    play()


@contest(
    "dead-letters",
    "Make dead letters of 100 B records with 1000 keys, at the first attempt, one partition",
    Contestant("handler that raises", "a Record; Failures", handling.fail()),
    Contestant("value that cannot be decoded", "Failures", handling.fail(undecodable=True)),
    turns=twice,
)
def bench_dead_letters(play: Callable[[], None]) -> None:
    play()


@contest(
    "due",
    "Begin records that become due, one each 5 ms, beside 100,000 that wait",
    Contestant("fastlog", "a Record", handling.become_due),
    unit="beginnings",
    turns=twice,
    rounds_per_turn=once,
    warm_up_rounds=0,
)
def bench_due(play: Callable[[], None]) -> None:
    play()
