"""Consumers: records, lists and columns, beside Kafka's client and the bare log; and from one process to another."""

from __future__ import annotations

from collections.abc import Callable

from benchmarks import kafka, messaging
from benchmarks.contest import Contestant, contest, twice


@contest(
    "consume",
    "Consume 100 B records, one thread, one partition, CRC checked",
    Contestant("fastlog iteration", "a Record, its value", messaging.consume(messaging.read_iterated)),
    Contestant("fastlog poll", "lists of 500 Records, their values", messaging.consume(messaging.read_lists)),
    Contestant(
        "Kafka consume(500)",
        "lists of 500 Messages, their values",
        kafka.consume(kafka.read_lists),
        needs_kafka=True,
    ),
    Contestant("Kafka poll()", "a Message, its value", kafka.consume(kafka.read_singly), needs_kafka=True),
    turns=twice,
)
def bench_consume(play: Callable[[], None]) -> None:
    play()


@contest(
    "consume-batches",
    "Consume columns of 100 B records",
    Contestant("Consumer.batches", "three NumPy arrays per MiB", messaging.consumer_batches),
    Contestant("PartitionLog.batches", "three NumPy arrays per MiB", messaging.log_batches),
)
def bench_consume_batches(play: Callable[[], None]) -> None:
    play()


@contest(
    "deliver",
    "From send in one process to the record in another, one 100 B record at a time",
    Contestant("fastlog", "takes a bytes object; a Record", messaging.deliver),
    Contestant("Kafka", "takes a bytes object; a Message", messaging.deliver_through_kafka, needs_kafka=True),
    unit="deliveries",
    turns=twice,
)
def bench_deliver(play: Callable[[], None]) -> None:
    play()
