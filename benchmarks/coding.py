"""Codecs: fastlog with compressed batches, and cramjam, which it uses, alone on the same bytes.

The same bytes are the records areas of the batches: what fastlog hands to the codec when it appends, and what it finds
in the files when it reads.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import cramjam

import fastlog
from benchmarks.contest import Prepare, Work, expect
from benchmarks.ours import open_log, read_columns
from benchmarks.workload import Stage, text_calls

_HEADER_BYTES = 61
_LZ4_BLOCK_BYTES = 64 << 10
# more than any of these codecs makes of a batch, or out of it
_ROOM = 4 << 20


def _fill(log: fastlog.PartitionLog, records: int, codec: str | None) -> None:
    for values in text_calls(records):
        log.append(values, compression=codec)


def _dataset(stage: Stage, codec: str | None) -> Path:
    def build(path: Path) -> None:
        with open_log(path / "log-0") as log:
            _fill(log, stage.sizes.codec_records, codec)

    return stage.datasets.path(f"fastlog-text-{codec}", build) / "log-0"


def _areas(stage: Stage, codec: str | None) -> list[bytes]:
    """The records area of every batch of a stored log."""
    areas = []
    for segment in sorted(_dataset(stage, codec).glob("*.log")):
        content = segment.read_bytes()
        for batch in fastlog.scan_segment(segment):
            expect(batch.codec == (codec or "none"), batch.codec, codec, "the codec of a batch")
            areas.append(content[batch.position + _HEADER_BYTES : batch.position + batch.size])
    return areas


# --- fastlog ----------------------------------------------------------------------------------------------------------


def append_compressed(codec: str) -> Prepare:
    @contextmanager
    def prepare(stage: Stage) -> Iterator[Work]:
        total = stage.sizes.codec_records
        text_calls(total)
        with open_log(stage.directory / "log-0") as log:

            def work() -> int:
                _fill(log, total, codec)
                return total

            yield work
            expect(log.end_offset == total, log.end_offset, total, "end offset after the round")
            stage.details["stored_bytes"] = sum(segment.size for segment in log.segments())

    return prepare


def read_compressed(codec: str) -> Prepare:
    @contextmanager
    def prepare(stage: Stage) -> Iterator[Work]:
        total = stage.sizes.codec_records
        with open_log(_dataset(stage, codec)) as log:
            yield lambda: read_columns(log)
            first = log.read(0)[0].value
            expect(first == text_calls(total)[0][0], first, text_calls(total)[0][0], "the first value")
            rows = read_columns(log)
            expect(rows == total, rows, total, "rows of a compressed log")

    return prepare


# --- the codec alone --------------------------------------------------------------------------------------------------


def _compress_lz4(area: bytes, target: Any) -> int:
    """As Kafka wants it: blocks of 64 KiB that do not refer to each other."""
    view, made = memoryview(area), 0
    for start in range(0, len(area), _LZ4_BLOCK_BYTES):
        block = view[start : start + _LZ4_BLOCK_BYTES]
        made += cramjam.lz4.compress_block_into(block, target, store_size=False)
    return made


_COMPRESS: dict[str, Callable[[bytes, Any], int]] = {"zstd": cramjam.zstd.compress_into, "lz4": _compress_lz4}
_DECOMPRESS: dict[str, Callable[[bytes, Any], int]] = {
    "zstd": cramjam.zstd.decompress_into,
    "lz4": cramjam.lz4.decompress_into,
}


def _run(stage: Stage, codec: str | None, call: Callable[[bytes, Any], int]) -> Work:
    areas, target = _areas(stage, codec), bytearray(_ROOM)
    expect(call(areas[0], target) > 0, 0, "bytes", "what the codec makes")

    def work() -> int:
        for area in areas:
            call(area, target)
        return stage.sizes.codec_records

    return work


def compress(codec: str) -> Prepare:
    """Into memory that is there already."""

    @contextmanager
    def prepare(stage: Stage) -> Iterator[Work]:
        yield _run(stage, None, _COMPRESS[codec])

    return prepare


def decompress(codec: str) -> Prepare:
    """Into memory that is there already."""

    @contextmanager
    def prepare(stage: Stage) -> Iterator[Work]:
        yield _run(stage, codec, _DECOMPRESS[codec])

    return prepare
