"""What tests of dead letters share: a topic with letters in it, as a group's moves leave them, and sums over topics."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any

import fastlog
from fastlog import Headers, Record
from fastlog.delivery.dead_letters import DeadLetters
from fastlog.delivery.headers import dead_letter_headers, item_of_retry
from fastlog.delivery.items import Failure, Item, Move
from fastlog.delivery.naming import DEAD_LETTER, RETRY, require_topic

SOURCE, GROUP = "orders", "mail"
DLQ, AGAIN = "orders.mail.dlq", "orders.mail.retry"
START = 1_700_000_000_000


def prepare(store: fastlog.Store, partitions: int = 2) -> DeadLetters:
    """Source, retry and dead-letter topic; nothing in them."""
    store.create_topic(SOURCE, partitions=partitions, exist_ok=True)
    for kind in (RETRY, DEAD_LETTER):
        require_topic(store.directory, SOURCE, GROUP, kind)
    return DeadLetters.open(store, SOURCE, GROUP, by="tester")


def letter_pairs(raw: Record, failure: Failure, attempts: int = 5) -> list[tuple[str, bytes | None]]:
    item = Item(raw, raw, False, raw.offset, raw.topic, raw.partition, raw.offset, raw.key, attempts=attempts)
    return dead_letter_headers(item, Move(item, "dead_letter", attempts, 0, "head", failure), GROUP)


def raw_of(number: int, partition: int, **fields: Any) -> Record:
    """Record ``number`` of a partition of the source: four keys and null, four values, a header now and then."""
    named: dict[str, Any] = {
        "key": None if number % 5 == 4 else b"key-%d" % (number % 5),
        "value": b"value-%d-%d" % (partition, number),
        "headers": Headers([("h", b"%d" % number), ("n", None)] if number % 3 == 0 else []),
    }
    named.update(fields)
    return Record(SOURCE, partition, number, START + number, named["key"], named["value"], named["headers"])


def failure_of(number: int) -> Failure:
    kind = ("ValueError", "shop.errors.NoStock", "TimeoutError")[number % 3]
    return Failure(kind, f"order {number} failed", f"Traceback\n{kind}: order {number} failed", START + number + 500)


def fill(store: fastlog.Store, count: int, partition: int = 0, first: int = 0, **fields: Any) -> list[Record]:
    """Put letters of records ``first``, ``first + 1``, … into the dead-letter topic; what they were."""
    raws = [raw_of(number, partition, **fields) for number in range(first, first + count)]
    put(store, raws, [letter_pairs(raw, failure_of(raw.offset)) for raw in raws])
    return raws


def put(store: fastlog.Store, raws: Sequence[Record], headers: Iterable[Any], topic: str = DLQ) -> None:
    with store.producer() as producer:
        producer.send_many(
            topic,
            [raw.value for raw in raws],
            keys=[raw.key for raw in raws],
            timestamps=[START + 1000 + raw.offset for raw in raws],
            headers=list(headers),
            partition=raws[0].partition,
        )


def content(store: fastlog.Store, topic: str) -> list[Record]:
    """Committed records of a topic, partition by partition."""
    found = []
    for number in range(store.topic(topic).partitions):
        if store.directory.is_created(topic, number):
            with store.directory.lease(topic, number) as lease:
                found += list(lease.log.records())
    return found


def values_of(records: Iterable[Any]) -> Counter[bytes | None]:
    return Counter(record.value for record in records)


def exact_sum(store: fastlog.Store, letters: DeadLetters) -> Counter[bytes | None]:
    """Every record that there is: open letters, what was sent back for another try, and what is in the source."""
    found = values_of(letters.list())
    for topic in (AGAIN, SOURCE):
        found += values_of(content(store, topic))
    return found


def check_each_once(count: int, store: fastlog.Store, *, done: bool) -> int:
    """Each of so many records is somewhere once, and the audits say so; how many letters were handled.

    ``done``: all of them are.
    """
    letters = DeadLetters.open(store, DLQ)
    handled = [letter.value for letter in letters.list(state="handled")]
    audited = [at for one in letters.audits() for first, length in one.offsets for at in range(first, first + length)]
    assert len(audited) == len(set(audited)) == len(handled)
    discarded = values_of(one for one in letters.list(state="handled") if one.state == "discarded")
    assert exact_sum(store, letters) + discarded == Counter(raw_of(number, 0).value for number in range(count))
    for record in content(store, AGAIN):
        raw = item_of_retry(record).raw
        assert raw == raw_of(raw.offset, 0) and raw.headers == raw_of(raw.offset, 0).headers
    if done:
        assert letters.count() == 0 and len(handled) == count
    return len(handled)
