"""Customers order: so many orders go into the topic, each under an id that it keeps on its way.

Run: python checkout.py [orders]
"""

import json
import os
import random
import sys

import fastlog

CUSTOMERS = ("alice", "bob", "carol", "dave", "erin", "frank")
CARDS = {name: f"card-of-{name}" for name in CUSTOMERS}
CARDS["frank"] = "stolen"  # see bank.py

count = int(sys.argv[1]) if len(sys.argv) > 1 else 60

with fastlog.open(os.environ.get("FASTLOG_STORE", "data")) as store:
    store.create_topic("orders", partitions=4, exist_ok=True)
    first = sum(store.topic("orders").partition(number).end_offset for number in range(4))
    with store.producer() as producer:
        for number in range(first, first + count):
            customer = random.choice(CUSTOMERS)
            order = {"id": f"order-{number}", "customer": customer, "card": CARDS[customer], "amount": 5 + number % 50}
            producer.send(
                "orders", json.dumps(order).encode(), key=customer.encode(), headers={"id": order["id"].encode()}
            )
    # leaving the block has waited until all of them are stored
print(f"{count} orders, from order-{first}")
