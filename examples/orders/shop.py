"""The handlers of the shop: an order is paid, and a paid order is confirmed by e-mail.

Run: fastlog run shop:app --workers 2

What a handler sends, it sends with the id of the order, and waits until it is stored: then the record that it was
called with is finished. If the process dies in between, the handler is called again and sends again, and the next one
knows the id. So every step is taken once, although nobody has promised to call it only once.
"""

import json
import os
from typing import Any

import bank
import post

import fastlog

store = fastlog.open(os.environ.get("FASTLOG_STORE", "data"))
for topic in ("orders", "payments"):
    store.create_topic(topic, partitions=4, exist_ok=True)
producer = store.producer()
app = fastlog.App(store)

# Four attempts: at once, after 0.2 s, 0.4 s and 0.8 s (more or less). A card that is blocked does not get better by
# waiting: that order goes to the dead letters at once.
patience = fastlog.Retry(4, backoff=("200ms", "10s"), give_up_on=bank.CardBlocked)


@app.subscriber(
    "orders", group="payment", concurrency=8, order_by="key", retry=patience, deduplicate=fastlog.Deduplicator(),
    value_deserializer=json.loads,
)  # fmt: skip
def pay(record: fastlog.Record[bytes, dict[str, Any]]) -> None:
    """The orders of a customer (the key) are paid one after the other, those of eight customers at once."""
    order = record.value
    receipt = bank.charge(order["card"], order["amount"], order["id"])
    paid = json.dumps({**order, "receipt": receipt}).encode()
    producer.send("payments", paid, key=record.key, headers={"id": order["id"].encode()}).result(timeout=10)


@app.subscriber(
    "payments", group="e-mail", concurrency=4, order_by="key", retry=patience, deduplicate=fastlog.Deduplicator(),
    value_deserializer=json.loads,
)  # fmt: skip
def confirm(record: fastlog.Record[bytes, dict[str, Any]]) -> None:
    """A customer's confirmations leave in the order of the payments."""
    order = record.value
    post.send(order["customer"], f"{order['id']}: {order['amount']} paid, receipt {order['receipt']}")


@app.middleware
def noting(call: Any, proceed: Any) -> Any:
    """Around every call: what a log, a trace or a metric needs."""
    if call.attempt > 1:
        print(f"{call.subscriber}: order {call.record.value['id']}, attempt {call.attempt}", flush=True)
    return proceed()
