"""The demo's pipeline: what each of its processes does, exactly once, whoever dies when.

```text
  events file ──► 3 ingesters ──► topic flights ──► group delays ──► topic delays     minutes of delay per carrier
                  (source=)       keyed by aircraft └► group turnarounds ─► topic turnarounds   hours between departures
```

Each ingester owns the aircraft whose hash mod 3 is its own and sends them in the order of events, so that an aircraft's
departures stay in order whatever airport it leaves from. The position in the file is committed in the transaction of
the records that it covers. A worker of a group commits its results and the offsets behind them in one transaction. The
state of the second group is its result: who takes a partition over first reads that partition of ``turnarounds``.
"""

from __future__ import annotations

import json
import logging
import zlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import fastlog

__all__ = [
    "DELAYS",
    "EVENTS",
    "GROUPS",
    "INGESTERS",
    "PARTITIONS",
    "TOPICS",
    "TURNAROUNDS",
    "Event",
    "add_delays",
    "add_turnarounds",
    "create_topics",
    "ingest",
    "owner_of",
    "read_events",
    "write_events",
]

logger = logging.getLogger("fastlog.demo")

EVENTS = "flights"
DELAYS = "delays"
TURNAROUNDS = "turnarounds"
TOPICS = (EVENTS, DELAYS, TURNAROUNDS)
GROUPS = {DELAYS: "mean delay per carrier", TURNAROUNDS: "hours between an aircraft's departures"}
PARTITIONS = 6
INGESTERS = 3
EVENTS_PER_TRANSACTION = 2000
IDLE = 0.2
PATIENCE = 60.0
HOUR_MS = 3_600_000

Stop = Callable[[], bool]


@dataclass(frozen=True, slots=True)
class Event:
    """A line of the events file; ``end`` is the position in the file behind it."""

    timestamp: int
    key: bytes | None
    value: bytes
    end: int


def create_topics(store: fastlog.Store) -> None:
    """The topics of the pipeline; results lie in the partition of what they come from."""
    for topic in TOPICS:
        store.create_topic(topic, partitions=PARTITIONS, exist_ok=True)


# --- the source --------------------------------------------------------------------------------------


def write_events(path: Path, timestamps: list[int], keys: list[bytes | None], values: list[bytes]) -> None:
    """One line per event: timestamp, key, value, with tabs in between; a null key is empty."""
    with path.open("wb") as file:
        file.writelines(
            b"%d\t%s\t%s\n" % (timestamp, key or b"", value)
            for timestamp, key, value in zip(timestamps, keys, values, strict=True)
        )


def read_events(path: Path, position: int) -> Iterator[Event]:
    """The events behind ``position``, in order."""
    with path.open("rb") as file:
        file.seek(position)
        for line in file:
            position += len(line)
            timestamp, key, value = line.rstrip(b"\n").split(b"\t", 2)
            yield Event(int(timestamp), key or None, value, position)


def owner_of(key: bytes | None) -> int:
    """Which ingester an aircraft belongs to; flights without a tail number belong to the first."""
    return 0 if key is None else zlib.crc32(key) % INGESTERS


def ingest(store: fastlog.Store, path: Path, number: int, stop: Stop) -> int:
    """Send the events of ingester ``number`` that are not in the log yet; how many."""
    sent = 0
    with store.producer(source=f"{path.name}-{number}") as producer:
        begin = int(producer.source_position() or b"0")
        for events, position in parts(read_events(path, begin), number):
            if stop():
                break
            with producer.transaction() as transaction:
                if events:
                    transaction.send_many(
                        EVENTS,
                        [event.value for event in events],
                        keys=[event.key for event in events],
                        timestamps=[event.timestamp for event in events],
                    )
                transaction.commit_source(b"%d" % position)
            sent += len(events)
    return sent


def parts(events: Iterable[Event], number: int) -> Iterator[tuple[list[Event], int]]:
    """The events of one ingester in parts of a transaction, each with the position in the file behind it."""
    own: list[Event] = []
    position = -1
    for event in events:
        position = event.end
        if owner_of(event.key) == number:
            own.append(event)
            if len(own) == EVENTS_PER_TRANSACTION:
                yield own, position
                own, position = [], -1
    if position >= 0:
        yield own, position


# --- minutes of delay per carrier ------------------------------------------------------------------------


def add_delays(store: fastlog.Store, name: str, stop: Stop) -> None:
    """A member of the group ``delays``: of each batch, departures and minutes of delay per carrier."""
    with (
        store.producer(transactional_id=f"{DELAYS}-{name}") as producer,
        store.consumer(EVENTS, group=DELAYS, start="earliest", auto_commit=False) as consumer,
    ):
        for batch in batches(consumer, stop):
            departed: Counter[str] = Counter()
            minutes: Counter[str] = Counter()
            for value in batch.values.to_list():
                event = json.loads(value or b"")
                if event["departure_delay"] is not None:
                    departed[event["carrier"]] += 1
                    minutes[event["carrier"]] += event["departure_delay"]
            with producer.transaction(consumer) as transaction:
                for carrier, count in departed.items():
                    result = json.dumps({"departed": count, "minutes": minutes[carrier]}).encode()
                    transaction.send(DELAYS, result, key=carrier.encode(), partition=batch.partition)
                transaction.commit_offsets()


# --- hours between an aircraft's departures ----------------------------------------------------------------


def add_turnarounds(store: fastlog.Store, name: str, stop: Stop) -> None:
    """A member of the group ``turnarounds``: each departure, and the hours since the aircraft's last one."""
    last: dict[int, dict[bytes, int]] = {}

    def take(partitions: Iterable[fastlog.TopicPartition]) -> None:
        for _, partition in partitions:
            last[partition] = last_departures(store.topic(TURNAROUNDS).partition(partition))

    def give_up(partitions: Iterable[fastlog.TopicPartition]) -> None:
        for _, partition in partitions:
            last.pop(partition, None)

    with (
        store.producer(transactional_id=f"{TURNAROUNDS}-{name}") as producer,
        store.consumer(
            EVENTS, group=TURNAROUNDS, start="earliest", auto_commit=False,
            on_assigned=take, on_revoked=give_up, on_lost=give_up,
        ) as consumer,
    ):  # fmt: skip
        for batch in batches(consumer, stop):
            known = last[batch.partition]
            news: dict[bytes, int] = {}
            results, keys, departures = [], [], []
            rows = zip(batch.keys.to_list(), batch.values.to_list(), batch.timestamps.tolist(), strict=True)
            for key, value, departure in rows:
                if key is None or json.loads(value or b"")["departure_delay"] is None:
                    continue
                before = news.get(key, known.get(key))
                hours = None if before is None else (departure - before) / HOUR_MS
                results.append(json.dumps({"hours": hours}).encode())
                keys.append(key)
                departures.append(departure)
                news[key] = departure
            with producer.transaction(consumer) as transaction:
                if results:
                    transaction.send_many(
                        TURNAROUNDS, results, keys=keys, timestamps=departures, partition=batch.partition
                    )
                transaction.commit_offsets()
            known.update(news)


def last_departures(results: fastlog.PartitionLog) -> dict[bytes, int]:
    """When each aircraft left last, as the results of a partition tell; once nobody's transaction is open there."""
    end = results.end_offset
    if end and not results.wait(end - 1, timeout=PATIENCE):
        raise fastlog.TransactionError(f"a transaction in {results.path} was still open after {PATIENCE:.0f} s")
    found: dict[bytes, int] = {}
    for batch in results.batches():
        rows = zip(batch.keys.to_list(), batch.timestamps.tolist(), strict=True)
        found.update({key: departure for key, departure in rows if key is not None})
    return found


def batches(consumer: fastlog.Consumer, stop: Stop) -> Iterator[fastlog.RecordBatch]:
    """Batches until told to stop."""
    while not stop():
        for batch in consumer.batches(timeout=IDLE):
            yield batch
            if stop():
                return
