"""Like ``tail -f``: one thread appends, another follows the end of the log and prints what is new.

``read`` never waits: at the end it returns an empty batch. ``wait`` sleeps until somebody appends, in this process or
in another.

Run: python examples/follow.py [folder]
"""

import sys
import threading
import time
from collections.abc import Iterator

import fastlog

path = sys.argv[1] if len(sys.argv) > 1 else "example-ticks-0"
ticks = 10


def follow(log: fastlog.PartitionLog, offset: int) -> Iterator[fastlog.Record]:
    """Every record from ``offset`` on, for ever: those that are there, then new ones as they come."""
    while True:
        log.wait(offset)
        batch = log.read(offset)
        yield from batch
        offset = batch.next_offset


def produce(log: fastlog.PartitionLog) -> None:
    for number in range(ticks):
        log.append([f"tick {number}".encode()])
        time.sleep(0.01)


with fastlog.PartitionLog.open(path, durability="os") as log:
    start = log.end_offset
    producer = threading.Thread(target=produce, args=(log,))
    producer.start()
    for record in follow(log, start):
        print(f"{record.offset}  {record.value.decode()}")
        if record.offset == start + ticks - 1:
            break
    producer.join()
