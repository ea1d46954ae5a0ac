"""Random lookups, by offset and by timestamp, in batches as small as 16 records and as large as 1000."""

from __future__ import annotations

from collections.abc import Callable

from benchmarks import ours, peers
from benchmarks.contest import Contestant, contest
from benchmarks.workload import SMALL_BATCH, VALUES_PER_CALL

_VALUE = "the value as bytes"
_OFFSET = "the offset as int"
_OFFSET_KEY = "the offset as bytes"


@contest(
    "lookup-offset",
    "Random lookup by offset",
    Contestant("fastlog, batches of 16", _VALUE, ours.look_up_value(SMALL_BATCH)),
    Contestant("fastlog, batches of 1000", _VALUE, ours.look_up_value(VALUES_PER_CALL)),
    Contestant("LMDB get", _VALUE, peers.lmdb_get()),
    Contestant("RocksDB get", _VALUE, peers.rocksdb_get()),
    Contestant("SQLite SELECT", "the value as bytes in a tuple", peers.sqlite_get()),
    unit="lookups",
)
def bench_look_up_by_offset(play: Callable[[], None]) -> None:
    play()


@contest(
    "lookup-time",
    "Random lookup by timestamp",
    Contestant("fastlog, batches of 16", _OFFSET, ours.look_up_time(SMALL_BATCH)),
    Contestant("fastlog, batches of 1000", _OFFSET, ours.look_up_time(VALUES_PER_CALL)),
    Contestant("LMDB get", "the value as bytes, by the offset of the same record", peers.lmdb_get()),
    Contestant("LMDB set_range", _OFFSET_KEY, peers.lmdb_set_range()),
    unit="lookups",
)
def bench_look_up_by_timestamp(play: Callable[[], None]) -> None:
    play()
