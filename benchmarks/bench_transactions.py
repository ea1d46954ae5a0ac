"""Transactions of 100 records, beside Kafka's."""

from __future__ import annotations

from collections.abc import Callable

from benchmarks import kafka, messaging
from benchmarks.contest import Contestant, contest, twice


@contest(
    "transactions",
    "Transactions of 100 x 100 B, one partition, no key, one after the other",
    Contestant("fastlog send", "takes 100 bytes objects", messaging.transactions(many=False)),
    Contestant("fastlog send_many", "takes a list of 100 bytes objects", messaging.transactions(many=True)),
    Contestant("Kafka", "takes 100 bytes objects", kafka.transactions, needs_kafka=True),
    unit="transactions",
    turns=twice,
)
def bench_transactions(play: Callable[[], None]) -> None:
    play()
