"""What a store costs its process, in a process of its own: ``python -m benchmarks.store_probe WHAT PATH COUNT``.

``idle``: a store with one topic, a producer and a consumer, all at rest. ``partitions``: the store at the path, opened;
then a record to each of the first COUNT partitions, which makes their folders; then a consumer of these, started. The
answer is JSON. Private memory is as in ``memory_probe``.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from time import monotonic, process_time, sleep

import fastlog
from benchmarks.memory_probe import private_bytes
from benchmarks.workload import IDLE_TOPIC

_REST_SECONDS = 2


def idle(path: str, count: int) -> dict[str, float]:
    """Private memory and threads that are there when all is open, and the processor time of resting."""
    _ = fastlog.Store, fastlog.Producer  # importing is not the store's cost
    before, threads = private_bytes(), _native_threads()
    with fastlog.open(path, durability="os") as store:
        store.create_topic(IDLE_TOPIC, exist_ok=True)
        with store.producer() as producer, store.consumer(IDLE_TOPIC, group="idle", start="earliest") as consumer:
            producer.send(IDLE_TOPIC, b"a record").result()
            consumer.poll(timeout=1)
            consumer.commit()
            used, began = process_time(), monotonic()
            sleep(_REST_SECONDS)
            return {
                "peak_bytes": private_bytes() - before,
                "threads": _native_threads() - threads,
                "share_of_a_core": (process_time() - used) / (monotonic() - began),
            }


def _native_threads() -> int:
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) for line in status if line.startswith("Threads:"))


def partitions(path: str, count: int) -> dict[str, float]:
    """Seconds of opening the store, of the first record to each partition, and of a consumer of all of these."""
    _ = fastlog.Store, fastlog.Producer
    began = monotonic()
    with fastlog.open(path, durability="os") as store:
        _ = store.topic(IDLE_TOPIC).partitions
        opened = monotonic() - began
        before, began = private_bytes(), monotonic()
        with store.producer() as producer:
            for number in range(count):
                producer.send(IDLE_TOPIC, b"a record", partition=number)
            producer.flush()
            written = monotonic() - began
            each = (private_bytes() - before) / count
            began = monotonic()
            with store.consumer(IDLE_TOPIC, start="latest", partitions=range(count)) as consumer:
                consumer.poll(timeout=0)
                ready = monotonic() - began
    return {"open": opened, "written to once": written, "consumer": ready, "bytes_each": each}


ROLES: dict[str, Callable[[str, int], dict[str, float]]] = {"idle": idle, "partitions": partitions}

if __name__ == "__main__":
    print(json.dumps(ROLES[sys.argv[1]](sys.argv[2], int(sys.argv[3]))))
