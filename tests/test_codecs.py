"""Compressed batches: written and read by every codec, by us, by other writers and by Kafka, and the ones that lie."""

from __future__ import annotations

import gzip
import io
import itertools
import os
import random
import struct
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import lz4.block
import lz4.frame
import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st

import fastlog
from fastlog._native.inspect import decode
from tests.folders import MEMORY
from tests.foreign import as_reference, read_all, write_foreign_log
from tests.oracle.kafka import KafkaOracle
from tests.reference import codecs as reference
from tests.reference.batch import (
    CODEC_MASK,
    CONTROL,
    HEADER_SIZE,
    LOG_APPEND_TIME,
    TRANSACTIONAL,
    Batch,
    FormatError,
    Record,
    control_batch,
    decode_batch,
    decode_log,
    encode_batch,
    encode_record,
    make_batch,
    seal,
)
from tests.strategies import SOME_TIME, records

OpenLog = Callable[..., Any]

CODECS = reference.CODEC_NAMES
NUMBERS = {name: number for number, name in CODECS.items()}
each_codec = pytest.mark.parametrize("codec", list(NUMBERS))
ENVIRONMENT = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
REFUSALS = (fastlog.CorruptLogError, fastlog.RecordTooLargeError)


def append(log: Any, drawn: list[Record], codec: str | None) -> int:
    return int(
        log.append(
            [record.value for record in drawn],
            keys=[record.key for record in drawn],
            timestamps=[record.timestamp for record in drawn],
            headers=[record.headers for record in drawn],
            compression=codec,
        )
    )


def area_of(batch: Batch) -> bytes:
    return b"".join(encode_record(record, batch.base_offset, batch.base_timestamp) for record in batch.records)


def sealed(batch: Batch, codec: int, stream: bytes, count: int | None = None) -> bytes:
    """A batch around any stream at all, with lengths and CRC made right."""
    return seal(replace(batch, attributes=batch.attributes & ~CODEC_MASK | codec), stream, count=count)


def some_records(count: int, first: int = 0, size: int = 40) -> list[Record]:
    return [Record(first + i, SOME_TIME + i, b"k%d" % (i % 7), b"%07d " % i * (size // 8)) for i in range(count)]


def segments_of(log: Any) -> list[Path]:
    return sorted(Path(log.path).glob("*.log"))


# --- written and read by us -------------------------------------------------------------------------------------------


@each_codec
@given(drawn=st.lists(records(), min_size=1, max_size=4))
def test_records_survive_and_the_reference_reads_them(codec: str, drawn: list[list[Record]]) -> None:
    expected: list[Record] = []
    with (
        tempfile.TemporaryDirectory(dir=MEMORY) as name,
        fastlog.PartitionLog.open(Path(name) / "t-0", durability="os") as log,
    ):
        for part in drawn:
            append(log, part, codec)
            expected += [replace(record, offset=len(expected) + i) for i, record in enumerate(part)]
        assert read_all(log) == expected
        assert log.verify().ok
        stored = [batch for path in segments_of(log) for _, batch in decode_log(path.read_bytes())]
    assert [record for batch in stored for record in batch.records] == expected
    assert {batch.attributes for batch in stored} == {NUMBERS[codec]}


@pytest.mark.parametrize("mmap", [True, False])
def test_plain_and_compressed_batches_side_by_side(folder: Path, seed: int, mmap: bool, checked_log: OpenLog) -> None:
    chance = random.Random(seed)
    config = fastlog.LogConfig(max_message_bytes=700, segment_bytes=20_000, index_interval_bytes=300, mmap=mmap)
    log = checked_log(folder / "t-0", config=config)
    expected: list[Record] = []
    for _ in range(150):
        drawn = some_records(chance.randint(1, 40), len(expected), chance.choice([8, 40, 200]))
        append(log, drawn, chance.choice([None, *NUMBERS]))
        expected += drawn
    assert len(segments_of(log)) > 3
    assert {info.codec for path in segments_of(log) for info in fastlog.scan_segment(path)} == {"none", *NUMBERS}
    for max_bytes in (1, 500, 3000, 1 << 20):
        assert read_all(log, max_bytes=max_bytes) == expected
    for _ in range(200):
        record = chance.choice(expected)
        assert as_reference(log.get(record.offset)) == record
        assert as_reference(log.read(record.offset)[0]) == record
        stop = chance.randint(record.offset, len(expected))
        found = [as_reference(r) for r in log.records(record.offset, stop)]
        assert found == expected[record.offset : stop]
        moment = SOME_TIME + chance.randint(-2, 45)
        first = next((r.offset for r in expected if r.timestamp >= moment), None)
        assert log.offset_for_time(moment) == first


@each_codec
def test_time_is_looked_up_inside_a_batch(checked_log: OpenLog, codec: str) -> None:
    log = checked_log()
    moments = [SOME_TIME + (i * 37) % 1000 for i in range(1000)]
    log.append([b"v"] * 1000, timestamps=moments, compression=codec)
    for wanted in (0, SOME_TIME, SOME_TIME + 1, SOME_TIME + 500, SOME_TIME + 999, SOME_TIME + 1000):
        assert log.offset_for_time(wanted) == next((i for i, moment in enumerate(moments) if moment >= wanted), None)


@each_codec
def test_a_result_is_of_one_kind_and_as_large_as_asked_for(checked_log: OpenLog, codec: str) -> None:
    log = checked_log(config=fastlog.LogConfig(max_message_bytes=10_000))
    for kind in (None, codec, codec, None):
        log.append([bytes(90)] * 500, compression=kind)
    ends = []
    offset = 0
    while offset < log.end_offset:
        batch = log.read(offset, max_bytes=25_000)
        assert batch.values.nbytes <= 25_000
        offset = batch.next_offset
        ends.append(offset)
    assert {500, 1500, 2000} <= set(ends), "a result holds plain and compressed batches"
    assert max(b - a for a, b in itertools.pairwise(ends)) > 120, "a result holds one batch only"


def test_views_of_compressed_batches_outlive_the_log(folder: Path) -> None:
    with fastlog.PartitionLog.open(folder / "t-0", durability="os") as log:
        log.append([b"first", b"second"], compression="zstd")
        batch = log.read(0)
        log.append([b"third"] * 1000, compression="zstd")
    value = batch.values[1]
    del batch, log
    assert bytes(value) == b"second"


@each_codec
def test_what_does_not_shrink_keeps_its_codec(checked_log: OpenLog, codec: str, seed: int) -> None:
    log = checked_log()
    values = [random.Random(seed).randbytes(size) for size in (0, 1, 100, 70_000)]
    for value in values:
        log.append([value], compression=codec)
    [path] = segments_of(log)
    assert {info.codec for info in fastlog.scan_segment(path)} == {codec}
    assert [record.value for record in log.records()] == values


@each_codec
def test_no_batch_exceeds_max_message_bytes(checked_log: OpenLog, codec: str, seed: int) -> None:
    chance = random.Random(seed)
    log = checked_log(config=fastlog.LogConfig(max_message_bytes=2000))
    values = [chance.randbytes(chance.choice([1, 50, 400, 900])) for _ in range(200)]
    log.append(values, compression=codec)
    assert log.read(0).values.to_list() + [r.value for r in log.records(log.read(0).next_offset)] == values
    infos = [info for path in segments_of(log) for info in fastlog.scan_segment(path)]
    assert max(info.size for info in infos) <= 2000
    assert sum(info.size for info in infos) < 1.3 * sum(map(len, values)), "batches got small"


@each_codec
def test_a_large_record_may_fit_by_compression_alone(checked_log: OpenLog, codec: str, seed: int) -> None:
    log = checked_log(config=fastlog.LogConfig(max_message_bytes=20_000, max_decompressed_bytes=300_000))
    assert log.append([b"before", bytes(200_000), b"after"], compression=codec) == 0
    assert [record.value for record in log.records()] == [b"before", bytes(200_000), b"after"]
    with pytest.raises(fastlog.RecordTooLargeError, match=r"record 1 .*max_message_bytes=20000"):
        log.append([b"fine", random.Random(seed).randbytes(30_000)], compression=codec)
    with pytest.raises(fastlog.RecordTooLargeError, match="max_decompressed_bytes=300000"):
        log.append([bytes(400_000)], compression=codec)
    with pytest.raises(fastlog.RecordTooLargeError):
        log.append([bytes(200_000)])
    assert log.end_offset == 3


def test_batches_are_not_larger_than_we_would_read(checked_log: OpenLog) -> None:
    log = checked_log(config=fastlog.LogConfig(max_decompressed_bytes=5000))
    log.append([bytes(100)] * 1000, compression="zstd")
    assert sum(1 for _ in log.records()) == 1000
    assert len(list(fastlog.scan_segment(segments_of(log)[0]))) > 20


def test_an_append_larger_than_a_segment_is_judged_by_its_compressed_size(checked_log: OpenLog, seed: int) -> None:
    log = checked_log(config=fastlog.LogConfig(segment_bytes=50_000))
    assert log.append([bytes(1000)] * 500, compression="zstd") == 0
    with pytest.raises(fastlog.RecordTooLargeError, match="segment_bytes"):
        log.append([random.Random(seed).randbytes(60_000)], compression="zstd")
    assert log.end_offset == 500


def test_cramjam_is_imported_when_it_is_needed() -> None:
    script = """if True:
        import sys, tempfile, fastlog
        with tempfile.TemporaryDirectory() as name, fastlog.PartitionLog.open(name + "/t-0", durability="os") as log:
            log.append([b"v"])
            assert log.read(0)[0].value == b"v" and log.verify().ok
            assert "cramjam" not in sys.modules
            log.append([b"v"], compression="lz4")
            assert "cramjam" in sys.modules
    """
    subprocess.run([sys.executable, "-c", script], check=True, env=ENVIRONMENT)


def test_threads_append_and_read_compressed_batches(checked_log: OpenLog) -> None:
    log = checked_log(config=fastlog.LogConfig(segment_bytes=200_000))
    failures: list[BaseException] = []

    def write(codec: str) -> None:
        for number in range(60):
            log.append([b"%s %d" % (codec.encode(), number)] * 50, compression=codec)

    def read() -> None:
        offset = 0
        while offset < 60 * 50 * len(NUMBERS):
            batch = log.read(offset)
            assert batch.offsets.tolist() == list(range(offset, batch.next_offset))
            offset = batch.next_offset

    def guarded(work: Callable[..., None], *arguments: str) -> None:
        try:
            work(*arguments)
        except BaseException as failure:  # noqa: BLE001
            failures.append(failure)

    threads = [threading.Thread(target=guarded, args=(write, codec)) for codec in NUMBERS]
    threads += [threading.Thread(target=guarded, args=(read,)) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures
    values = log.read(0, max_bytes=1 << 30).values.to_list()
    assert len(values) > 0 and log.end_offset == 60 * 50 * len(NUMBERS)


# --- written by others ------------------------------------------------------------------------------------------------

BATCH = make_batch([Record(i, SOME_TIME + i, None, b"value %d " % i * (i % 50)) for i in range(400)])
AREA = area_of(BATCH)
SKIPPABLE = struct.pack("<II", 0x184D2A53, 5) + b"12345"


def gzip_with_everything(content: bytes) -> bytes:
    out = io.BytesIO()
    with gzip.GzipFile("a name", "wb", 9, out, mtime=12345) as file:
        file.write(content)
    return out.getvalue()


def zstd_stream(content: bytes, pieces: int, **options: Any) -> bytes:
    stream = zstandard.ZstdCompressor(**options).compressobj()
    out = b""
    size = len(content) // pieces + 1
    for at in range(0, len(content), size):
        out += stream.compress(content[at : at + size]) + stream.flush(zstandard.COMPRESSOBJ_FLUSH_BLOCK)
    return out + stream.flush()


def zstd_window(log2: int) -> zstandard.ZstdCompressionParameters:
    return zstandard.ZstdCompressionParameters.from_level(3, window_log=log2, write_content_size=0)


STREAMS: dict[str, tuple[int, bytes]] = {
    "gzip level 1": (1, gzip.compress(AREA, 1)),
    "gzip stored": (1, gzip.compress(AREA, 0)),
    "gzip with a name and a time": (1, gzip_with_everything(AREA)),
    "gzip of several members": (1, gzip.compress(AREA[:-100]) + gzip.compress(b"") + gzip.compress(AREA[-100:])),
    "gzip of many members": (1, b"".join(gzip.compress(AREA[at : at + 50]) for at in range(0, len(AREA), 50))),
    "xerial": (2, reference.xerial(AREA)),
    "xerial in small chunks": (2, reference.xerial(AREA, 100)),
    "xerial in one chunk": (2, reference.xerial(AREA, 1 << 20)),
    "xerial twice": (2, reference.xerial(AREA[:5000]) + reference.xerial(AREA[5000:])),
    "snappy without framing": (2, reference.snappy_block(AREA)),
    "lz4 linked": (3, lz4.frame.compress(AREA, block_linked=True, block_size=4)),
    "lz4 independent": (3, lz4.frame.compress(AREA, block_linked=False, store_size=False, block_size=4)),
    "lz4 with its size": (3, lz4.frame.compress(AREA, store_size=True)),
    "lz4 with checksums": (3, lz4.frame.compress(AREA, content_checksum=True, block_checksum=True)),
    "lz4 in blocks of 4 MiB": (3, lz4.frame.compress(AREA, block_size=7)),
    "lz4 high compression": (3, lz4.frame.compress(AREA, compression_level=12)),
    "lz4 in two frames": (3, lz4.frame.compress(AREA[:77]) + lz4.frame.compress(AREA[77:])),
    "lz4 behind a skippable frame": (3, SKIPPABLE + lz4.frame.compress(AREA) + SKIPPABLE),
    "zstd with its size": (4, zstandard.ZstdCompressor().compress(AREA)),
    "zstd without its size": (4, zstd_stream(AREA, 1, write_content_size=False)),
    "zstd in many blocks": (4, zstd_stream(AREA, 300, write_content_size=False)),
    "zstd with a checksum": (4, zstandard.ZstdCompressor(write_checksum=True).compress(AREA)),
    "zstd level 22": (4, zstandard.ZstdCompressor(level=22).compress(AREA)),
    "zstd level -5": (4, zstandard.ZstdCompressor(level=-5).compress(AREA)),
    "zstd with a window of 128 MiB": (4, zstd_stream(AREA, 3, compression_params=zstd_window(27))),
    "zstd in two frames": (4, b"".join(map(zstandard.ZstdCompressor().compress, (AREA[:9], AREA[9:])))),
    "zstd behind a skippable frame": (4, SKIPPABLE + zstandard.ZstdCompressor().compress(AREA) + SKIPPABLE),
}


def read_everywhere(path: Path) -> list[Record]:
    """Records by every way there is; they have to agree. Raises what reading raises."""
    with fastlog.PartitionLog.open(path.parent, read_only=True) as log:
        report = log.verify()
        infos = list(fastlog.scan_segment(path))
        assert (not report.damages) == all(info.is_valid for info in infos)
        found = read_all(log)
        assert not report.damages, "read, but not verified"
        assert [as_reference(r) for info in infos for r in fastlog.read_batch(path, info.position)] == found
        wanted = max((record.timestamp for record in found), default=0)
        assert log.offset_for_time(wanted) == next((r.offset for r in found if r.timestamp >= wanted), None)
    return found


@pytest.mark.parametrize("name", list(STREAMS))
def test_streams_of_other_writers_are_read(folder: Path, name: str) -> None:
    codec, stream = STREAMS[name]
    encoded = sealed(BATCH, codec, stream)
    assert decode_batch(encoded)[0].records == BATCH.records
    following = encode_batch(make_batch(some_records(3, 400)))
    path = write_foreign_log(folder / "t-0", [encoded, following])
    assert read_everywhere(path) == [*BATCH.records, *some_records(3, 400)]


def test_every_kind_of_batch_compressed(folder: Path) -> None:
    gaps = Batch(
        5, 9, SOME_TIME, SOME_TIME + 2, (Record(6, SOME_TIME + 2, b"k", b"v"), Record(8, SOME_TIME, None, None))
    )
    stamped = replace(make_batch([Record(10, 77, None, b"v")]), attributes=LOG_APPEND_TIME, max_timestamp=SOME_TIME)
    batches = []
    for batch in (make_batch(some_records(5)), gaps, stamped):
        for codec in (0, *CODECS):
            shift = 20 * len(batches)
            moved = tuple(replace(r, offset=r.offset + shift) for r in batch.records)
            batches.append(
                replace(
                    batch,
                    base_offset=batch.base_offset + shift,
                    last_offset=batch.last_offset + shift,
                    records=moved,
                    attributes=batch.attributes | codec,
                )
            )
        batches.append(Batch(20 * len(batches), 20 * len(batches) + 3, -1, SOME_TIME, attributes=4))
    path = write_foreign_log(folder / "t-0", batches)
    expected = [record for batch in map(encode_batch, batches) for record in decode_batch(batch)[0].records]
    assert read_everywhere(path) == expected


@each_codec
def test_kafka_accepts_what_we_write_and_we_what_kafka_writes(
    folder: Path, kafka: KafkaOracle, codec: str, seed: int
) -> None:
    chance = random.Random(seed)
    config = fastlog.LogConfig(segment_bytes=310_000, index_interval_bytes=1000)
    expected: list[Record] = []
    with fastlog.PartitionLog.open(folder / "t-0", durability="os", config=config) as log:
        for size in [1, 1, 2, 10, 100, 3000, 1, 5]:
            headers = (("h", None), ("h", b"")) if size < 10 else ()
            drawn = [
                Record(
                    len(expected) + i,
                    SOME_TIME + chance.randint(0, 99),
                    chance.choice([None, b"", b"k"]),
                    chance.choice([None, b"", b"compressible " * 20, chance.randbytes(100)]),
                    headers,
                )
                for i in range(size)
            ]
            append(log, drawn, codec)
            expected += drawn
        expected += [Record(len(expected), SOME_TIME, None, chance.randbytes(300_000))]
        append(log, expected[-1:], codec)
    paths = sorted((folder / "t-0").glob("*.log"))
    assert len(paths) > 1
    dumped, problems = kafka.check(sorted((folder / "t-0").glob("0*")))
    assert problems == []
    found = [batch for path in sorted(dumped) for batch in dumped[path]]
    assert {batch.fields["compresscodec"] for batch in found} == {codec}
    shown = [(r.offset, r.timestamp, r.key, r.value) for batch in found for r in batch.records]
    assert shown == [(r.offset, r.timestamp, r.key, r.value) for r in expected]
    assert [
        Record(r.offset, r.timestamp, r.key, r.value, r.headers) for path in paths for r in kafka.records(path)
    ] == expected
    # and the other way round: the same records, written by Kafka
    theirs = folder / "theirs-0"
    theirs.mkdir()
    for path in paths:
        kafka.recompress(path, theirs / path.name, codec)
    assert {info.codec for path in theirs.glob("*.log") for info in fastlog.scan_segment(path)} == {codec}
    with fastlog.PartitionLog.open(theirs, durability="os") as log:
        assert log.verify().ok
        assert read_all(log) == expected


def test_kafka_refuses_linked_blocks_which_we_read_but_never_write(folder: Path, kafka: KafkaOracle) -> None:
    stream = lz4.frame.compress(b"".join([AREA] * 1), block_linked=True, block_size=4)
    path = write_foreign_log(folder / "t-0", [sealed(BATCH, 3, stream)])
    with pytest.raises(ValueError, match=r"[Dd]ependent block stream is unsupported"):
        kafka.records(path)
    assert read_everywhere(path) == list(BATCH.records)


# --- transactions -----------------------------------------------------------------------------------------------------


def transactional(offset: int, producer_id: int, codec: int = 0, count: int = 2) -> Batch:
    batch = make_batch([Record(offset + i, SOME_TIME, b"%d" % producer_id, b"v") for i in range(count)])
    return replace(batch, attributes=TRANSACTIONAL | codec, producer_id=producer_id, producer_epoch=0, base_sequence=0)


def marker(offset: int, producer_id: int, *, commit: bool) -> Batch:
    return control_batch(offset, SOME_TIME, commit=commit, producer_id=producer_id)


@pytest.mark.parametrize("codec", [0, *CODECS])
def test_aborted_transactions_are_left_out(codec: int) -> None:
    batches = [
        transactional(0, 7, codec), transactional(2, 8, codec), transactional(4, 7, codec),
        marker(6, 7, commit=False), transactional(7, 7, codec), marker(9, 8, commit=True),
        make_batch(some_records(2, 10)), transactional(12, 8, codec), marker(14, 7, commit=True),
        marker(15, 8, commit=False), replace(transactional(16, 7, codec), attributes=codec),
    ]  # fmt: skip
    data = b"".join(map(encode_batch, batches))

    def offsets(*aborted: tuple[int, int, int]) -> list[int]:
        found: list[int] = []
        start = 0
        rest = data
        while rest:
            batch = decode(rest, start_offset=start, aborted=aborted)
            found += batch.offsets.tolist()
            assert batch.next_offset > start
            start = batch.next_offset
            rest = b"".join(encode_batch(b) for b in batches if b.base_offset >= start)
        return found

    everything = [0, 1, 2, 3, 4, 5, 7, 8, 10, 11, 12, 13, 16, 17]
    assert offsets() == everything
    assert offsets((7, 0, 6)) == [2, 3, 7, 8, 10, 11, 12, 13, 16, 17]
    assert offsets((7, 0, 6), (8, 12, 15)) == [2, 3, 7, 8, 10, 11, 16, 17]
    assert offsets((7, 0, 6), (8, 2, 15)) == [7, 8, 10, 11, 16, 17]
    assert offsets((7, 0, 100)) == [2, 3, 10, 11, 12, 13, 16, 17], "a batch outside of transactions is always shown"
    assert offsets((9, 0, 100)) == everything
    assert offsets((7, 1, 3), (7, 5, 6)) == everything
    assert offsets((7, 7, 7)) == [0, 1, 2, 3, 4, 5, 10, 11, 12, 13, 16, 17]


def test_aborted_batches_still_have_to_check_out() -> None:
    good = encode_batch(transactional(0, 7, 4))
    following = encode_batch(make_batch(some_records(1, 2)))
    assert decode(good + following, aborted=((7, 0, 2),)).offsets.tolist() == [2]
    damaged = good[:-1] + bytes([good[-1] ^ 1])
    with pytest.raises(fastlog.CorruptRecordError, match="CRC"):
        decode(damaged + following, aborted=((7, 0, 2),))


def test_transactions_of_others_are_read_without_their_markers(folder: Path) -> None:
    batches = [transactional(0, 7, 4), marker(2, 7, commit=True), transactional(3, 8), marker(5, 8, commit=True)]
    path = write_foreign_log(folder / "t-0", batches)
    with fastlog.PartitionLog.open(path.parent, durability="os") as log:
        assert [record.offset for record in read_all(log)] == [0, 1, 3, 4]


def test_a_compressed_control_batch_is_refused(folder: Path) -> None:
    batch = replace(marker(0, 7, commit=True), attributes=TRANSACTIONAL | CONTROL | 4)
    path = write_foreign_log(folder / "t-0", [encode_batch(batch)])
    with pytest.raises(fastlog.CorruptLogError, match="control"):
        read_everywhere(path)


# --- lies -------------------------------------------------------------------------------------------------------------


def outcome(path: Path, encoded: bytes) -> list[Record] | None:
    """What reading says: the records, or None when it refuses; anything else but an error of ours fails the test."""
    path.write_bytes(encoded)
    try:
        return read_everywhere(path)
    except REFUSALS:
        return None


def judged(encoded: bytes) -> list[Record] | None:
    try:
        return list(decode_batch(encoded)[0].records)
    except FormatError:
        return None


SMALL = make_batch([Record(0, SOME_TIME, b"key", b"value " * 20), Record(1, SOME_TIME + 1, None, bytes(50))])
SMALL_STREAMS = {
    "gzip": (1, reference.compress(1, area_of(SMALL))),
    "xerial": (2, reference.compress(2, area_of(SMALL))),
    "snappy": (2, reference.snappy_block(area_of(SMALL))),
    "lz4": (3, reference.compress(3, area_of(SMALL))),
    "lz4 with checksums": (3, lz4.frame.compress(area_of(SMALL), content_checksum=True, block_checksum=True)),
    "zstd": (4, reference.compress(4, area_of(SMALL))),
    "zstd with a checksum": (4, zstandard.ZstdCompressor(write_checksum=True).compress(area_of(SMALL))),
}


@pytest.mark.parametrize("name", list(SMALL_STREAMS))
def test_every_cut_of_a_stream_is_refused(folder: Path, name: str) -> None:
    codec, stream = SMALL_STREAMS[name]
    path = write_foreign_log(folder / "t-0", [SMALL])
    for size in range(len(stream)):
        assert outcome(path, sealed(SMALL, codec, stream[:size])) is None, f"cut at {size} of {len(stream)}"
    assert outcome(path, sealed(SMALL, codec, stream)) == list(SMALL.records)


@pytest.mark.parametrize("name", list(SMALL_STREAMS))
def test_every_flipped_bit_of_a_stream_is_judged_as_by_the_reference(folder: Path, name: str) -> None:
    """The CRC is repaired: only the codec and the records can tell. Never a crash, never other records."""
    codec, stream = SMALL_STREAMS[name]
    path = write_foreign_log(folder / "t-0", [SMALL])
    different = []
    for bit in range(len(stream) * 8):
        changed = bytearray(stream)
        changed[bit // 8] ^= 1 << bit % 8
        encoded = sealed(SMALL, codec, bytes(changed))
        ours, theirs = outcome(path, encoded), judged(encoded)
        if ours != theirs:
            assert ours is None or theirs is None, f"bit {bit}: other records than the reference's"
            different.append(bit)
    # flags in headers that one reader minds and another does not
    assert len(different) <= 40, different


@pytest.mark.parametrize("name", list(SMALL_STREAMS))
@pytest.mark.parametrize(
    "junk", [b"\0", b"\0" * 64, b"junk", b"\xff" * 9, b"\x1f\x8b", b"\x28\xb5\x2f\xfd", b"\x04\x22\x4d\x18"]
)
def test_bytes_behind_a_stream_are_refused(folder: Path, name: str, junk: bytes) -> None:
    codec, stream = SMALL_STREAMS[name]
    path = write_foreign_log(folder / "t-0", [SMALL])
    assert outcome(path, sealed(SMALL, codec, stream + junk)) is None


@pytest.mark.parametrize("name", list(SMALL_STREAMS))
def test_another_codec_in_the_attributes_is_refused(folder: Path, name: str) -> None:
    codec, stream = SMALL_STREAMS[name]
    path = write_foreign_log(folder / "t-0", [SMALL])
    for other in (0, *CODECS):
        assert other == codec or outcome(path, sealed(SMALL, other, stream)) is None


def random_mutations(chance: random.Random, stream: bytes) -> bytes:
    changed = bytearray(stream)
    for _ in range(chance.randint(1, 6)):
        at = chance.randrange(len(changed))
        kind = chance.randrange(4)
        if kind == 0:
            changed[at] = chance.choice([0, 1, 0x7F, 0x80, 0xFF, chance.randrange(256)])
        elif kind == 1:
            changed[at : at + chance.randint(1, 8)] = b""
        elif kind == 2:
            changed[at:at] = chance.randbytes(chance.randint(1, 8))
        else:
            other = chance.randrange(len(changed))
            changed[at : at + 4] = changed[other : other + 4]
        if not changed:
            return b"\0"
    return bytes(changed)


def test_random_streams_never_crash_and_never_show_other_records(folder: Path, seed: int) -> None:
    chance = random.Random(seed)
    path = write_foreign_log(folder / "t-0", [SMALL])
    streams = [
        *SMALL_STREAMS.values(),
        *((codec, stream) for codec, stream in STREAMS.values() if len(stream) < 20_000),
    ]
    refused = 0
    for _ in range(1500):
        codec, stream = chance.choice(streams)
        encoded = sealed(SMALL, codec, random_mutations(chance, stream))
        ours, theirs = outcome(path, encoded), judged(encoded)
        assert ours is None or theirs is None or ours == theirs, encoded.hex()
        refused += ours is None
    assert refused > 1000


def lying(records_: list[Record], **fields: Any) -> Batch:
    return replace(make_batch(records_), **fields)


LIES: dict[str, tuple[Batch, bytes, int]] = {
    # name: (header, area, count)
    "count one too large": (lying(some_records(3), last_offset=3), area_of(make_batch(some_records(3))), 4),
    "count one too small": (lying(some_records(3)), area_of(make_batch(some_records(3))), 2),
    "count huge": (lying(some_records(3), last_offset=2**31 - 2), area_of(make_batch(some_records(3))), 2**31 - 1),
    "count of nothing": (lying(some_records(3)), b"", 3),
    "offset beyond the batch": (lying(some_records(3), last_offset=1), area_of(make_batch(some_records(3))), 2),
    "offsets that do not rise": (lying(some_records(2)), area_of(make_batch(some_records(1))) * 2, 2),
    "trailing record": (lying(some_records(2)), area_of(make_batch(some_records(3))), 2),
    "trailing byte": (lying(some_records(2)), area_of(make_batch(some_records(2))) + b"\0", 2),
    "record cut off": (lying(some_records(2)), area_of(make_batch(some_records(2)))[:-1], 2),
    "timestamps beyond the largest": (
        lying(some_records(2), max_timestamp=SOME_TIME),
        area_of(make_batch(some_records(2))),
        2,
    ),
    "record attributes": (lying(some_records(1)), b"\x0e\x01" + b"\0\0\x01\x01\0\0", 1),
}


@each_codec
@pytest.mark.parametrize("name", list(LIES))
def test_lies_inside_a_stream_are_refused(folder: Path, codec: str, name: str) -> None:
    batch, area, count = LIES[name]
    number = NUMBERS[codec]
    encoded = sealed(batch, number, reference.compress(number, area), count)
    assert judged(encoded) is None
    following = encode_batch(make_batch(some_records(2, batch.last_offset + 1)))
    path = write_foreign_log(folder / "t-0", [encoded, following])
    with fastlog.PartitionLog.open(path.parent, read_only=True) as log:
        with pytest.raises(fastlog.CorruptLogError, match=r"position 0, offset 0: ") as caught:
            log.read(0)
        assert (caught.value.position, caught.value.first_offset) == (0, 0)
        assert caught.value.next_offset == batch.last_offset + 1
        assert len(log.read(caught.value.next_offset)) == 2
        assert [damage.position for damage in log.verify().damages] == [0]
    with pytest.raises(fastlog.CorruptRecordError):
        fastlog.read_batch(path, 0)


@each_codec
@pytest.mark.parametrize("fault", ["cut off", "huge count", "checksum", "records"])
def test_good_batches_before_a_bad_one_are_shown_first(folder: Path, codec: str, fault: str) -> None:
    number = NUMBERS[codec]
    good = [encode_batch(replace(make_batch(some_records(3, 3 * i)), attributes=number)) for i in range(4)]
    third = make_batch(some_records(3, 6))
    huge = replace(third, last_offset=2**31 + 4)
    bad = {
        "cut off": sealed(third, number, good[2][HEADER_SIZE:-3]),
        "huge count": sealed(huge, number, good[2][HEADER_SIZE:], 2**31 - 1),
        "checksum": good[2][:17] + bytes([good[2][17] ^ 1]) + good[2][18:],
        "records": sealed(third, number, reference.compress(number, area_of(third) + b"?")),
    }[fault]
    following = huge.last_offset + 1 if fault == "huge count" else 9
    good[3] = encode_batch(replace(make_batch(some_records(3, following)), attributes=number))
    # a checksum that fails is found when somebody else's log is opened: it comes later
    third_at_first = good[2] if fault == "checksum" else bad
    path = write_foreign_log(folder / "t-0", [good[0], good[1], third_at_first, good[3]])
    with fastlog.PartitionLog.open(path.parent, read_only=True) as log:
        with path.open("r+b") as file:
            file.seek(len(good[0]) + len(good[1]))
            file.write(bad)
        first = log.read(0)
        assert first.next_offset == 6 and len(first) == 6
        with pytest.raises(fastlog.CorruptLogError, match="offset 6") as caught:
            log.read(6)
        assert caught.value.position == len(good[0]) + len(good[1])
        assert caught.value.next_offset == following
        assert [as_reference(record) for record in log.read(following)] == some_records(3, following)


# --- bombs ------------------------------------------------------------------------------------------------------------


def bomb(codec: str, size: int) -> bytes:
    """A short stream with `size` zeros in it."""
    if codec == "gzip":
        return gzip.compress(bytes(size))
    if codec == "zstd":
        return zstandard.ZstdCompressor(level=1).compress(bytes(size))
    if codec == "lz4":
        return bytes(lz4.frame.compress(bytes(size)))
    return reference.xerial(bytes(size), 1 << 20)


LIARS: dict[str, tuple[int, bytes]] = {
    "gzip that states little": (1, gzip.compress(bytes(3 << 20))[:-4] + bytes(4)),
    "gzip that ends in a small member": (1, gzip.compress(bytes(3 << 20)) + gzip.compress(b"x")),
    "gzip that states much": (1, gzip.compress(b"x")[:-4] + b"\xff\xff\xff\xff"),
    "snappy that states much": (2, b"\xff\xff\xff\xff\x0f" + reference.snappy_block(b"x")[1:]),
    "xerial that states much": (2, reference.xerial(b"") + struct.pack(">i", 7) + b"\xff\xff\xff\xff\x0f\x00x"),
    "xerial with a negative chunk": (2, reference.xerial(b"") + struct.pack(">i", -5) + b"12345"),
    "xerial of version 0": (2, reference.XERIAL_MAGIC + struct.pack(">ii", 0, 0) + reference.xerial(b"x")[16:]),
    "lz4 that states much": (3, lz4.frame.compress(b"x").replace(b"\1" + bytes(7), b"\xff" * 7 + b"\x7f")),
    "lz4 with a dictionary": (3, b"\x04\x22\x4d\x18\x61\x40" + bytes(5) + struct.pack("<I", 0)),
    "zstd that states much": (4, b"\x28\xb5\x2f\xfd\xe0" + b"\xff" * 8 + struct.pack("<I", 1 | 1 << 3)[:3] + b"x"),
    "zstd with a window of 256 MiB": (4, zstd_stream(AREA, 1, compression_params=zstd_window(28))),
    "zstd with a dictionary": (4, b"\x28\xb5\x2f\xfd\x21\x07\x01" + struct.pack("<I", 1 | 1 << 3)[:3] + b"x"),
    "zstd without an end": (4, b"\x28\xb5\x2f\xfd\x20\x01" + struct.pack("<I", 1 << 3)[:3] + b"x"),
    "zstd of reserved blocks": (4, b"\x28\xb5\x2f\xfd\x20\x01" + struct.pack("<I", 1 | 3 << 1 | 1 << 3)[:3] + b"x"),
    "only a skippable frame": (4, SKIPPABLE),
    "only a skippable lz4 frame": (3, SKIPPABLE),
    "a skippable frame without an end": (4, struct.pack("<II", 0x184D2A50, 2**32 - 1)),
}  # fmt: skip


@pytest.mark.parametrize("name", list(LIARS))
def test_streams_that_lie_about_themselves_are_refused(folder: Path, name: str) -> None:
    codec, stream = LIARS[name]
    path = write_foreign_log(folder / "t-0", [SMALL])
    assert outcome(path, sealed(SMALL, codec, stream)) is None


@each_codec
def test_a_bomb_is_refused_by_the_name_of_the_option(folder: Path, codec: str) -> None:
    number = NUMBERS[codec]
    one = make_batch([Record(0, SOME_TIME, None, bytes(3 << 20))])
    encoded = sealed(one, number, reference.compress(number, area_of(one)))
    path = write_foreign_log(folder / "t-0", [encoded, encode_batch(make_batch(some_records(2, 1)))])
    config = fastlog.LogConfig(max_decompressed_bytes="1MiB")
    with fastlog.PartitionLog.open(path.parent, read_only=True, config=config) as log:
        for attempt in (lambda: log.read(0), lambda: log.get(0), lambda: log.offset_for_time(SOME_TIME)):
            with pytest.raises(
                fastlog.RecordTooLargeError, match=r"position 0, offset 0: .*max_decompressed_bytes .*offset 1"
            ):
                attempt()
        assert len(log.read(1)) == 2
        [damage] = log.verify().damages
        assert "max_decompressed_bytes" in damage.reason
    with pytest.raises(fastlog.RecordTooLargeError, match="max_decompressed_bytes"):
        fastlog.read_batch(path, 0, max_decompressed_bytes=1 << 20)
    assert [info.is_valid for info in fastlog.scan_segment(path, max_decompressed_bytes=1 << 20)] == [False, True]
    # somebody who allows more can read it, so that repair must not take it away
    fastlog.PartitionLog.repair(path.parent)
    with fastlog.PartitionLog.open(path.parent, read_only=True) as log:
        assert not log.verify().damages
        assert [len(record.value or b"") for record in log.records()] == [3 << 20, 40, 40]


@each_codec
def test_content_of_exactly_the_limit_is_read(folder: Path, codec: str) -> None:
    number = NUMBERS[codec]
    size = len(area_of(make_batch([Record(0, SOME_TIME, None, bytes(100_000))])))
    one = make_batch([Record(0, SOME_TIME, None, bytes(100_000))])
    path = write_foreign_log(folder / "t-0", [sealed(one, number, reference.compress(number, area_of(one)))])
    assert len(fastlog.read_batch(path, 0, max_decompressed_bytes=size)) == 1
    with pytest.raises(fastlog.RecordTooLargeError):
        fastlog.read_batch(path, 0, max_decompressed_bytes=size - 1)


BOMB_SCRIPT = """
import resource, sys, fastlog
path = sys.argv[1]
kinds = (fastlog.RecordTooLargeError, fastlog.CorruptLogError)
# a small segment: what a log maps is no memory, but counts as address space
config = fastlog.LogConfig(max_decompressed_bytes="16MiB", segment_bytes="4MiB", mmap=False)
import cramjam
used = int(next(line for line in open("/proc/self/status") if line.startswith("VmSize")).split()[1]) * 1024
resource.setrlimit(resource.RLIMIT_AS, (used + (200 << 20),) * 2)
with fastlog.PartitionLog.open(path, read_only=True, config=config) as log:
    for attempt in (lambda: log.read(0), lambda: log.offset_for_time(1), log.verify):
        try:
            attempt()
        except kinds as error:
            print(type(error).__name__)
"""


@pytest.mark.skipif(
    sys.platform != "linux" or "FASTLOG_SANITIZED" in os.environ, reason="limits its address space by what /proc says"
)
@pytest.mark.parametrize("codec", ["gzip", "lz4", "zstd"])
def test_a_bomb_takes_no_more_memory_than_it_is_allowed(folder: Path, codec: str) -> None:
    stream = bomb(codec, 320 << 20)
    assert len(stream) < 3 << 20
    path = write_foreign_log(folder / "t-0", [sealed(SMALL, NUMBERS[codec], stream)])
    command = [sys.executable, "-c", BOMB_SCRIPT, str(path.parent)]
    result = subprocess.run(command, check=True, capture_output=True, text=True, env=ENVIRONMENT)
    assert result.stdout.split() == ["RecordTooLargeError"] * 2
