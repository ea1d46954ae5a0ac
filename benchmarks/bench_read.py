"""Reading a whole log of 100-byte values, every CRC checked and every length read, beside cursors over the same."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from benchmarks import ours, peers
from benchmarks.contest import Contestant, contest


def _keys_and_values(cursor: Any) -> None:
    for _key, _value in cursor:
        pass


def _values(cursor: Any) -> None:
    peers.consume(cursor.iternext(keys=False))


@contest(
    "read",
    "Read a log of 100 B values, batches of 1000",
    Contestant("fastlog columns", "three NumPy arrays per MiB", ours.read(ours.read_columns)),
    Contestant("fastlog to Arrow", "one pyarrow.RecordBatch per MiB", ours.read(ours.read_arrow)),
    Contestant("fastlog list[bytes]", "a bytes object per value", ours.read(ours.read_lists)),
    Contestant("fastlog records", "a Record and its value's bytes, one by one", ours.read(ours.read_records)),
    Contestant(
        "LMDB cursor",
        "a bytes object per key, one per value, a tuple",
        peers.lmdb_read(_keys_and_values),
    ),
    Contestant("LMDB cursor, values only", "a bytes object per value", peers.lmdb_read(_values)),
    Contestant("RocksDB iterator", "a bytes object per key, one per value, a tuple", peers.rocksdb_read()),
    Contestant("SQLite SELECT", "an int, a bytes object, a tuple per row", peers.sqlite_read()),
)
def bench_read_everything(play: Callable[[], None]) -> None:
    play()
