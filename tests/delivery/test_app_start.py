"""An app calls its handlers as soon as it has partitions, however long it would wait for more."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

import fastlog
from fastlog.delivery import runner as module


def test_the_first_call_waits_for_nothing(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "LONG_WAIT_MS", 20_000)
    with fastlog.open(folder, durability="os") as store:
        store.create_topic("orders", partitions=2)
        with store.producer() as producer:
            for number in range(10):
                producer.send("orders", b"order", key=b"%d" % number)
        app = fastlog.App(store)
        called: list[float] = []

        @app.subscriber("orders", group="mail")
        def mail(record: fastlog.Record) -> None:
            called.append(time.monotonic())
            if len(called) == 10:
                app.stop()

        begun = time.monotonic()
        app.run()
    assert len(called) == 10
    assert called[-1] - begun < 10
