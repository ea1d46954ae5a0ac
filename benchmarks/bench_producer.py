"""Producers: one record per call without waiting, and lists of them, beside Kafka's client and the bare log."""

from __future__ import annotations

from collections.abc import Callable

from benchmarks import kafka, messaging, ours
from benchmarks.contest import Contestant, contest, twice
from benchmarks.workload import VALUE_BYTES

_ONE = "takes a bytes object; makes a Delivery"
_ONE_KEYED = "takes two bytes objects; makes a Delivery"


def _contestants(keyed: bool) -> tuple[Contestant, ...]:
    ours_takes, kafka_takes = (_ONE_KEYED, "takes two bytes objects") if keyed else (_ONE, "takes a bytes object")
    found = []
    for name, delivered in (("calls", False), ("delivered", True)):
        send, produce = (play(keyed=keyed, delivered=delivered) for play in (messaging.send, kafka.produce))
        found.append(Contestant(f"fastlog send, {name}", ours_takes, send))
        found.append(Contestant(f"Kafka produce, {name}", kafka_takes, produce, needs_kafka=True))
    return tuple(found)


@contest(
    "send",
    "Send 100 B records, one per call, one thread, one partition, no key",
    *_contestants(keyed=False),
    turns=twice,
)
def bench_send(play: Callable[[], None]) -> None:
    play()


@contest("send-keyed", "Send 100 B records with 8 B keys, one per call, one thread, 6 partitions",
         *_contestants(keyed=True), turns=twice)  # fmt: skip
def bench_send_keyed(play: Callable[[], None]) -> None:
    play()


@contest(
    "send-many",
    "Send 1000 x 100 B per call to one partition",
    Contestant("send_many", "takes a list of bytes", messaging.send_many),
    Contestant(
        "PartitionLog.append",
        "takes a list of bytes",
        ours.append_calls(lambda sizes: sizes.append_records, VALUE_BYTES),
    ),
)
def bench_send_many(play: Callable[[], None]) -> None:
    play()
