"""Compacting a log in which every key was written about ten times, beside copying the files that are compacted."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np

import fastlog
from benchmarks.contest import Contestant, Prepare, Work, contest, expect
from benchmarks.workload import SEED, VALUE_BYTES, VALUES_PER_CALL, Sizes, Stage, value_lists

_SEGMENTS = 8


def _compacted(sizes: Sizes) -> fastlog.LogConfig:
    return fastlog.LogConfig(
        segment_bytes=sizes.compacted_bytes // _SEGMENTS,
        cleanup_policy="compact",
        min_cleanable_dirty_ratio=0,
    )


def _fill(path: Path, sizes: Sizes) -> int:
    """Records with keys drawn at random, until there are so many bytes; how many bytes lie in finished segments."""
    source = np.random.default_rng(SEED)
    keys = [b"key-%08d" % number for number in range(sizes.compacted_keys)]
    with fastlog.PartitionLog.open(path, durability="os", config=_compacted(sizes)) as log:
        appended = number = 0
        while appended < sizes.compacted_bytes:
            values = value_lists(VALUE_BYTES)[number % 10]
            drawn = source.integers(0, len(keys), VALUES_PER_CALL).tolist()
            log.append(values, keys=[keys[key] for key in drawn])
            appended += VALUES_PER_CALL * (VALUE_BYTES + 20)
            number += 1
        return sum(segment.size for segment in log.segments()[:-1])


def _maintain() -> Prepare:
    @contextmanager
    def prepare(stage: Stage) -> Iterator[Work]:
        path = stage.directory / "log-0"
        size = _fill(path, stage.sizes)
        os.sync()
        with fastlog.PartitionLog.open(path, durability="os", config=_compacted(stage.sizes)) as log:
            before = log.end_offset

            def work() -> int:
                log.maintain()
                return size

            yield work
            after = sum(segment.size for segment in log.segments()[:-1])
            expect(after < size, after, f"less than {size}", "bytes after compaction")
            expect(log.end_offset == before, log.end_offset, before, "end offset after compaction")
            stage.details["bytes_after"] = after

    return prepare


def _copy(synced: bool) -> Prepare:
    @contextmanager
    def prepare(stage: Stage) -> Iterator[Work]:
        path, target = stage.directory / "log-0", stage.directory / "copy"
        size = _fill(path, stage.sizes)
        os.sync()
        segments = sorted(path.glob("*.log"))[:-1]

        def work() -> int:
            with open(target, "wb", buffering=0) as into:
                for segment in segments:
                    with open(segment, "rb", buffering=0) as source:
                        shutil.copyfileobj(source, into, 1 << 20)
                if synced:
                    os.fsync(into.fileno())
            return size

        yield work
        expect(target.stat().st_size == size, target.stat().st_size, size, "bytes of the copy")

    return prepare


@contest(
    "compaction",
    "Compact a log of many keys",
    Contestant("fastlog", "none", _maintain()),
    Contestant("copy", "none", _copy(synced=False)),
    Contestant("copy and sync", "none", _copy(synced=True)),
    unit="bytes",
    turns=lambda sizes: 3 if sizes.compacted_bytes > 1 << 29 else 2,
    rounds_per_turn=lambda sizes: 1,
    warm_up_rounds=1,
)
def bench_compact(play: Callable[[], None]) -> None:
    play()
