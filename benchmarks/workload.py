"""What is measured: how many records, how large, how often. Every contestant of a contest gets the same."""

from __future__ import annotations

import os
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import cache
from itertools import cycle, islice
from pathlib import Path

import numpy as np

SEED = 20_26
VALUES_PER_CALL = 1000
VALUE_BYTES = 100
LARGE_VALUE_BYTES = 1000
SMALL_BATCH = 16
DISTINCT_CALLS = 10
FIRST_TIMESTAMP_MS = 1_700_000_000_000
MEBIBYTE = 1 << 20
KEYED_PARTITIONS = 6
RECORDS_PER_TRANSACTION = 100
IDLE_TOPIC = "idle"

# No zero byte: a NumPy "S" column drops those at the end of a value, so its records would be shorter than the others'.
_NO_ZERO_BYTE = bytes(byte or 1 for byte in range(256))


@dataclass(frozen=True, slots=True)
class Sizes:
    """How much one run measures. Bytes where the name says so, else counts."""

    turns: int
    rounds_per_turn: int
    append_records: int
    append_large_value_records: int
    column_rows: int
    stored_records: int
    lookups: int
    large_log_bytes: int
    small_log_bytes: int
    large_log_append_calls: int
    import_turns: int
    single_appends: int
    durable_appends: int
    wake_ups: int
    shared_calls: int
    takeovers: int
    codec_records: int
    compacted_bytes: int
    compacted_keys: int
    sent_records: int
    consumed_records: int
    deliveries: int
    transactions: int
    commits: int
    group_takeovers: int
    members: int
    group_partitions: int
    rebalances: int
    handled_records: int
    slept_records: int
    dead_letters: int
    waiting_records: int
    due_records: int
    idle_partitions: int
    used_partitions: int

    @classmethod
    def full(cls) -> Sizes:
        return cls(
            turns=4,
            rounds_per_turn=2,
            append_records=500_000,
            append_large_value_records=100_000,
            column_rows=1_000_000,
            stored_records=1_000_000,
            lookups=50_000,
            large_log_bytes=_bytes_from_environment("FASTLOG_BENCH_LOG_BYTES", 10 << 30),
            small_log_bytes=100 << 20,
            large_log_append_calls=50,
            import_turns=15,
            single_appends=100_000,
            durable_appends=4000,
            wake_ups=1000,
            shared_calls=10_000,
            takeovers=25,
            codec_records=500_000,
            compacted_bytes=1 << 30,
            compacted_keys=1_000_000,
            sent_records=500_000,
            consumed_records=1_000_000,
            deliveries=500,
            transactions=300,
            commits=20_000,
            group_takeovers=25,
            members=50,
            group_partitions=200,
            rebalances=25,
            handled_records=200_000,
            slept_records=2000,
            dead_letters=100_000,
            waiting_records=100_000,
            due_records=1000,
            idle_partitions=10_000,
            used_partitions=2000,
        )

    @classmethod
    def quick(cls) -> Sizes:
        return cls(
            turns=2,
            rounds_per_turn=3,
            append_records=200_000,
            append_large_value_records=40_000,
            column_rows=200_000,
            stored_records=320_000,
            lookups=10_000,
            large_log_bytes=_bytes_from_environment("FASTLOG_BENCH_LOG_BYTES", 1 << 30),
            small_log_bytes=100 << 20,
            large_log_append_calls=25,
            import_turns=7,
            single_appends=10_000,
            durable_appends=240,
            wake_ups=40,
            shared_calls=500,
            takeovers=3,
            codec_records=50_000,
            compacted_bytes=64 << 20,
            compacted_keys=50_000,
            sent_records=100_000,
            consumed_records=200_000,
            deliveries=40,
            transactions=30,
            commits=1000,
            group_takeovers=3,
            members=6,
            group_partitions=24,
            rebalances=3,
            handled_records=20_000,
            slept_records=300,
            dead_letters=10_000,
            waiting_records=10_000,
            due_records=100,
            idle_partitions=10_000,
            used_partitions=50,
        )


def _bytes_from_environment(name: str, default: int) -> int:
    text = os.environ.get(name)
    if text is None:
        return default
    if not text.isdigit() or int(text) < 1 << 20:
        raise SystemExit(f"{name} is {text!r}: expected a number of bytes, at least {1 << 20} (1 MiB)")
    return int(text)


@cache
def value_lists(value_bytes: int) -> list[list[bytes]]:
    """Ten different lists of 1000 different values; the calls of a round take them in turn."""
    source = random.Random(SEED)
    return [
        [source.randbytes(value_bytes).translate(_NO_ZERO_BYTE) for _ in range(VALUES_PER_CALL)]
        for _ in range(DISTINCT_CALLS)
    ]


def calls(records: int, value_bytes: int) -> Iterator[list[bytes]]:
    """The value lists of ``records`` records, 1000 to a call."""
    return islice(cycle(value_lists(value_bytes)), records // VALUES_PER_CALL)


@cache
def keys() -> list[bytes]:
    """A key for each value of a call: 8 bytes, all different."""
    return [b"%08d" % number for number in range(VALUES_PER_CALL)]


@cache
def text_calls(records: int) -> list[list[bytes]]:
    """Lists of 1000 values of 100 bytes in which a codec finds something: orders as JSON, all different."""
    source = random.Random(SEED)
    states, notes = ("created", "paid", "packed", "shipped", "returned"), ("fragile", "gift", "none", "call first")
    lists = []
    for start in range(0, records, VALUES_PER_CALL):
        values = []
        for number in range(start, start + VALUES_PER_CALL):
            text = (
                f'{{"order":{number},"customer":{source.randrange(10**6)},"state":"{source.choice(states)}",'
                f'"cents":{source.randrange(10**6)},"note":"{source.choice(notes)}"}}'
            )
            values.append(text.ljust(VALUE_BYTES)[:VALUE_BYTES].encode())
        lists.append(values)
    return lists


def offset_keys(start: int, count: int) -> list[bytes]:
    """Offsets as 8-byte big-endian keys for a key-value store, made in the quickest way Python has (17 ns a key)."""
    keys: list[bytes] = np.arange(start, start + count, dtype=">u8").view("V8").tolist()
    return keys


@cache
def looked_up_offsets(sizes: Sizes) -> tuple[int, ...]:
    """Random offsets of stored records, the same for every contestant."""
    source = random.Random(SEED)
    return tuple(source.randrange(sizes.stored_records) for _ in range(sizes.lookups))


@dataclass(slots=True)
class Datasets:
    """Folders filled once per run and read by many rounds."""

    directory: Path
    _ready: set[str] = field(default_factory=set)

    def path(self, name: str, build: Callable[[Path], None]) -> Path:
        """The folder of the dataset ``name``, filled by ``build`` when it is asked for the first time."""
        path = self.directory / name
        if name not in self._ready:
            path.mkdir(parents=True)
            build(path)
            os.sync()  # so that its write-back does not run beside somebody's timed part
            self._ready.add(name)
        return path


@dataclass(frozen=True, slots=True)
class Stage:
    """What a contestant finds at the start of a round: sizes, an empty folder of its own, the shared datasets.

    ``details`` takes figures that are not times; the report keeps those of the last round. A contestant whose work has
    pauses in it times each step itself and puts its seconds into ``samples``: they then count instead of the round.
    ``kafka`` is the address of the broker, for those that need it.
    """

    sizes: Sizes
    directory: Path
    datasets: Datasets
    details: dict[str, float]
    samples: list[float] = field(default_factory=list)
    kafka: str = ""
