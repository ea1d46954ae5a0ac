"""Consumer groups: commits, taking over from the dead, members that come and go, what watching costs."""

from __future__ import annotations

from collections.abc import Callable

from benchmarks import groups, kafka, messaging
from benchmarks.contest import Contestant, contest, once, twice


@contest(
    "commit",
    "Commit the offset of one partition, one after the other",
    Contestant("fastlog", "takes a dict", messaging.commits),
    Contestant("Kafka", "takes a list", kafka.commits, needs_kafka=True),
    unit="commits",
    turns=twice,
)
def bench_commit(play: Callable[[], None]) -> None:
    play()


@contest(
    "group-takeover",
    "The next record after kill -9 of the member that had it in hand",
    Contestant("of a reader", "lists of Records", groups.take_over(inside_a_transaction=False)),
    Contestant("inside a transaction", "lists of Records", groups.take_over(inside_a_transaction=True)),
    unit="takeovers",
    turns=twice,
    rounds_per_turn=twice,
    warm_up_rounds=0,
)
def bench_take_over_in_a_group(play: Callable[[], None]) -> None:
    play()


@contest(
    "rebalance",
    "50 members, 200 partitions, all polling: one more comes, or goes",
    Contestant("a member joins", "none", groups.a_member_joins),
    Contestant("a member leaves", "none", groups.a_member_leaves),
    unit="rebalances",
    turns=twice,
    rounds_per_turn=once,
    warm_up_rounds=0,
)
def bench_rebalance(play: Callable[[], None]) -> None:
    play()


@contest(
    "watcher",
    "Sleep as one of 50 members, each in a process of its own",
    Contestant("a member", "none", groups.watch),
    unit="spans",
    turns=once,
    rounds_per_turn=once,
    warm_up_rounds=0,
)
def bench_watcher(play: Callable[[], None]) -> None:
    play()
