"""The work of the web application: count the words of texts.

Run: fastlog run workers:app --workers 2
"""

import asyncio
import os
from collections import Counter

import results

import fastlog

app = fastlog.App(os.environ.get("FASTLOG_STORE", "data"))


@app.subscriber(
    "texts", group="count-words", concurrency=16, order_by="key", timeout="5s",
    retry=fastlog.Retry(3, backoff=("100ms", "5s"), give_up_on=UnicodeDecodeError),
    deduplicate=fastlog.Deduplicator(),
    breaker=fastlog.Breaker(failures=20, pause="10s"),
)  # fmt: skip
async def count_words(record: fastlog.Record) -> None:
    """Called for sixteen texts at once. One that is no UTF-8 is nobody's fault but its own: a dead letter."""
    words = Counter(record.value.decode("utf-8").lower().split())
    await asyncio.sleep(0.01)  # what stands for the model, the picture, the other service
    results.keep(record.headers["id"].decode(), {"words": sum(words.values()), "most": words.most_common(3)})
