"""Records for tests that need no store."""

from __future__ import annotations

import tempfile

import fastlog


def make_record(headers: dict[str, bytes | None] | None = None, key: bytes | None = b"k") -> fastlog.Record:
    """A record of partition 0 of ``orders`` at offset 0."""
    with tempfile.TemporaryDirectory() as folder, fastlog.open(folder, durability="os") as store:
        store.create_topic("orders")
        with store.producer() as producer:
            producer.send("orders", b"v", key=key, headers=headers or {})
        with store.consumer("orders", start="earliest") as consumer:
            return next(iter(consumer.records(until="end")))
