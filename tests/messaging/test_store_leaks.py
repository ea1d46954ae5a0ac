"""A closed store leaves nothing behind in memory."""

from __future__ import annotations

import gc
from collections import Counter
from pathlib import Path

import fastlog

KINDS = ("Directory", "Coordinator", "GroupTable", "PartitionLog", "Producer", "Consumer")


def alive() -> Counter[str]:
    gc.collect()
    return Counter(kind for kind in (type(found).__name__ for found in gc.get_objects()) if kind in KINDS)


def test_closed_stores_are_collected(tmp_path: Path) -> None:
    before = alive()
    for number in range(3):
        with fastlog.open(tmp_path / str(number), durability="os") as store:
            store.create_topic("orders")
            with store.consumer("orders", group="g", start="earliest") as consumer:
                with store.producer(transactional_id="t") as producer, producer.transaction(consumer) as transaction:
                    transaction.send("orders", b"x")
                    transaction.commit_offsets()
                consumer.poll(timeout=0)
    del store, consumer, producer, transaction
    assert alive() - before == Counter()
