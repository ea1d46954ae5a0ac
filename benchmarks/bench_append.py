"""Appending: lists of values, call by call, beside the peers; whole columns beside lists."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pyarrow

from benchmarks import ours, peers
from benchmarks.contest import Contestant, contest
from benchmarks.workload import LARGE_VALUE_BYTES, VALUE_BYTES, Sizes, calls

_TAKES_BYTES = "takes a list of bytes that exist already"
_MAKES_KEYS = "takes the same list, makes a key of bytes per record"


def _records(sizes: Sizes) -> int:
    return sizes.append_records


def _large_records(sizes: Sizes) -> int:
    return sizes.append_large_value_records


def _rows(sizes: Sizes) -> int:
    return sizes.column_rows


@contest(
    "append-100",
    "Append 1000 x 100 B per call",
    Contestant("fastlog", _TAKES_BYTES, ours.append_calls(_records, VALUE_BYTES)),
    Contestant("bare os.write", "joins the list, writes the values alone", peers.file_append(_records, VALUE_BYTES)),
    Contestant("LMDB", _MAKES_KEYS, peers.lmdb_append(_records, VALUE_BYTES)),
    Contestant(
        "LMDB, keys ready",
        "takes lists of keys and values that exist already",
        peers.lmdb_append(_records, VALUE_BYTES, keys_are_ready=True),
    ),
    Contestant("RocksDB", _MAKES_KEYS, peers.rocksdb_append(_records, VALUE_BYTES)),
    Contestant("SQLite", "takes the same list, makes a tuple per record", peers.sqlite_append(_records, VALUE_BYTES)),
)
def bench_append_values_of_100_bytes(play: Callable[[], None]) -> None:
    play()


@contest(
    "append-1000",
    "Append 1000 x 1 KB per call",
    Contestant("fastlog", _TAKES_BYTES, ours.append_calls(_large_records, LARGE_VALUE_BYTES)),
    Contestant(
        "bare os.write",
        "joins the list, writes the values alone",
        peers.file_append(_large_records, LARGE_VALUE_BYTES),
    ),
    Contestant("LMDB", _MAKES_KEYS, peers.lmdb_append(_large_records, LARGE_VALUE_BYTES)),
)
def bench_append_values_of_1_kilobyte(play: Callable[[], None]) -> None:
    play()


def _values(sizes: Sizes) -> list[bytes]:
    return [value for values in calls(sizes.column_rows, VALUE_BYTES) for value in values]


def _separate_values(sizes: Sizes) -> list[bytes]:
    """As many different objects as rows, as in a list that a program has just made."""
    joined = b"".join(_values(sizes))
    return [joined[start : start + VALUE_BYTES] for start in range(0, len(joined), VALUE_BYTES)]


@contest(
    "append-column",
    "Append a column of 100 B values",
    Contestant(
        "Arrow binary", "none", ours.append_each(lambda sizes: [pyarrow.array(_values(sizes), pyarrow.binary())], _rows)
    ),
    Contestant(
        "NumPy S100", "none", ours.append_each(lambda sizes: [np.array(_values(sizes), f"S{VALUE_BYTES}")], _rows)
    ),
    Contestant(
        "NumPy V100", "none", ours.append_each(lambda sizes: [np.array(_values(sizes), f"V{VALUE_BYTES}")], _rows)
    ),
    Contestant(
        "list, one call",
        "takes a list of bytes that exist already, each its own object",
        ours.append_each(lambda sizes: [_separate_values(sizes)], _rows),
    ),
    Contestant(
        "list, 1000 per call",
        "takes slices of that list, made beforehand",
        ours.append_each(
            lambda sizes: [
                values[start : start + 1000]
                for values in [_separate_values(sizes)]
                for start in range(0, len(values), 1000)
            ],
            _rows,
        ),
    ),
)
def bench_append_a_column(play: Callable[[], None]) -> None:
    play()
