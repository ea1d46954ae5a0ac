"""fastlog for asyncio: the same names, awaited.

import fastlog

async with fastlog.aio.open("./data") as store:
    await store.create_topic("orders", partitions=4, exist_ok=True)
    async with store.producer() as producer:
        delivery = await producer.send("orders", b"created", key=b"order-1")
        print(await delivery)
    async with store.consumer("orders", group="mailer", start="earliest") as consumer:
        async for record in consumer:
            print(record.key, record.value)

What never waits for the disk is done in the event loop: sending, and handing out records that are there. One thread for
each open store listens for new records; a few do what has to wait for the disk, such as commits. Nothing costs a thread
for each record. An open store, and what was opened with it, belongs to one event loop.
"""

from .consumer import Consumer
from .producer import BatchDelivery, Delivery, Producer
from .store import Store
from .store import open_aio_store as open
from .topic import Topic, TopicRead
from .transaction import Transaction

__all__ = ["BatchDelivery", "Consumer", "Delivery", "Producer", "Store", "Topic", "TopicRead", "Transaction", "open"]
