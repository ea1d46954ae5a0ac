"""Corners of the compiled core: what hardly anybody meets, one situation per test."""

from __future__ import annotations

import ctypes
import errno
import gzip
import importlib
import logging
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import fastlog
from fastlog._core import arrow_stream, scan_segment
from fastlog._native import oscalls
from fastlog._native.cleaner import CleaningRound
from fastlog.clients.producer import DirectoryCatalog, Producer, partition_for_key
from fastlog.errors import (
    CorruptLogError,
    CorruptRecordError,
    DeliveryTimeoutError,
    RecordTooLargeError,
    StorageError,
    TransactionError,
    UnknownTopicError,
)
from fastlog.groups import lag
from fastlog.store.directory import Directory
from tests.compacting import Writer, aborted_for, compact_folder, read_segments, write_segments
from tests.histories.nursery import Nursery
from tests.histories.puppet import Puppet, open_small
from tests.reference.batch import (
    HEADER_SIZE,
    TRANSACTIONAL,
    Batch,
    Record,
    control_batch,
    encode_batch,
    fix_crc,
    make_batch,
)
from tests.reference.compaction import Aborted, Segment, compact
from tests.reference.compaction import Producer as ActiveProducer
from tests.small_logs import SMALL, VALUE, fill, open_log, segments
from tests.strategies import SOME_TIME
from tests.test_columns_in import refused

pytestmark = pytest.mark.timeout(120)


def wait_until(condition: Callable[[], object]) -> None:
    """Wait for what another thread does: a failure after ten seconds."""
    until = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < until, "it never came to that"
        time.sleep(0.002)


# --- compaction -------------------------------------------------------------------------------------------------------


def path_of(folder: Path) -> str:
    return str(folder / f"{0:020}.log")


def rewritten(work: CleaningRound, path: str, target: Path, base_offset: int) -> tuple[bytes, bytes, bytes, bytes]:
    """What a round makes of one segment: the batches and the three indexes."""
    made = work.rewrite(
        [(path, Path(path).stat().st_size)], str(target), base_offset=base_offset, index_bytes=1 << 12, interval=0
    )
    return target.read_bytes(), made.offset_index, made.time_index, made.transaction_index


def test_a_group_that_is_tried_again_finds_the_transactions_as_they_were(folder: Path) -> None:
    """Some were open when it began; without going back their markers would have lost their batches."""

    def sent(offset: int, producer_id: int) -> Batch:
        batch = make_batch([Record(offset, SOME_TIME, b"%d" % offset, b"v")])
        return replace(batch, attributes=TRANSACTIONAL, producer_id=producer_id, producer_epoch=0, base_sequence=0)

    first = Segment(0, (sent(0, 1), sent(1, 2), sent(2, 3)))
    ends = (
        control_batch(3, SOME_TIME, commit=True, producer_id=1),
        control_batch(4, SOME_TIME, commit=False, producer_id=2),
        control_batch(5, SOME_TIME, commit=False, producer_id=3),
    )
    write_segments(folder, [first, Segment(3, ends)])
    aborted = [Aborted(2, 1, 4), Aborted(3, 2, 5)]
    paths = [str(folder / f"{base:020}.log") for base in (0, 3)]
    work = CleaningRound(now=0, horizon=SOME_TIME, upper_bound=6, aborted=aborted_for(aborted))
    for path, base, after in zip(paths, (0, 3), (3, 6), strict=True):
        work.map_segment(path, Path(path).stat().st_size, base, after)
    rewritten(work, paths[0], folder / "first", 0)
    before = work.save_transactions()
    once = rewritten(work, paths[1], folder / "once", 3)
    assert once[0] == b"".join(map(encode_batch, ends))
    assert once[3] == b"".join(entry for *_, entry in aborted_for(aborted))
    work.restore_transactions(before)
    assert rewritten(work, paths[1], folder / "again", 3) == once
    assert rewritten(work, paths[1], folder / "too late", 3) != once


def test_many_producers_with_open_transactions(folder: Path, seed: int) -> None:
    """They end in another order than they began in."""
    chance = random.Random(seed)
    writer = Writer(chance, keys=200, codecs=(0,))
    batches: list[Batch] = []
    for _ in range(4):
        producers = chance.sample(range(1000), 60)
        batches += [writer.data(producer_id, transactional=True) for producer_id in producers]
        chance.shuffle(producers)
        batches += [writer.marker(producer_id) for producer_id in producers]
    segments = [Segment(0, tuple(batches))]
    write_segments(folder, segments)
    now, horizon = SOME_TIME + 10**7, SOME_TIME + 10**8
    compact_folder(folder, upper_bound=writer.offset, now=now, horizon=horizon, aborted=writer.aborted)
    expected = compact(
        segments,
        first_dirty=0,
        groups=[[0]],
        upper_bound=writer.offset,
        now=now,
        horizon=horizon,
        aborted=writer.aborted,
    )
    assert read_segments(folder) == expected.groups


def test_a_segment_whose_end_was_cut_off_ends_the_round(folder: Path) -> None:
    write_segments(folder, [Segment(0, (make_batch([Record(0, SOME_TIME, b"k", b"v")]),))])
    path = path_of(folder)
    size = Path(path).stat().st_size
    work = CleaningRound(now=0, horizon=0, upper_bound=1)
    with pytest.raises(CorruptLogError, match=f"has {size} bytes where {size + 5} were written") as caught:
        work.map_segment(path, size + 5, 0, 1)
    assert (caught.value.path, caught.value.position) == (path, size)
    assert not work.map_segment(path, size, 0, 1)


def test_aborted_transactions_are_told_in_order() -> None:
    with pytest.raises(ValueError, match="must rise by their first offset"):
        CleaningRound(now=0, horizon=0, upper_bound=9, aborted=[(1, 5, 6, b""), (2, 4, 7, b"")])


def with_area(batch: Batch, area: bytes) -> bytes:
    """The batch with other bytes in the place of its records."""
    encoded = encode_batch(batch)[:HEADER_SIZE] + area
    length = (len(encoded) - 12).to_bytes(4, "big")
    return fix_crc(encoded[:8] + length + encoded[12:])


@pytest.mark.parametrize("codec", [1, 2, 3, 4])
def test_content_without_any_structure_ends_the_round(folder: Path, codec: int) -> None:
    batch = replace(make_batch([Record(0, SOME_TIME, b"k", b"v")]), attributes=codec)
    path = Path(path_of(folder))
    path.write_bytes(with_area(batch, b"\xff" * 7))
    work = CleaningRound(now=0, horizon=0, upper_bound=1)
    with pytest.raises(CorruptLogError, match="The log is not compacted and nothing was changed"):
        work.map_segment(str(path), path.stat().st_size, 0, 1)


def test_a_marker_that_is_compressed_ends_the_round(folder: Path) -> None:
    marker = control_batch(0, SOME_TIME, commit=True)
    path = Path(path_of(folder))
    path.write_bytes(encode_batch(replace(marker, attributes=marker.attributes | 1)))
    work = CleaningRound(now=0, horizon=0, upper_bound=1)
    with pytest.raises(CorruptLogError, match="the control batch is not one uncompressed record"):
        work.map_segment(str(path), path.stat().st_size, 0, 1)


def test_content_of_several_gzip_members(folder: Path) -> None:
    """The last one says how much it holds, and says nothing of the others."""
    records = [Record(i, SOME_TIME, b"key-%d" % (i % 3), b"v" * 1000) for i in range(30)]
    plain = encode_batch(make_batch(records))[HEADER_SIZE:]
    batch = replace(make_batch(records), attributes=1)
    path = Path(path_of(folder))
    path.write_bytes(with_area(batch, gzip.compress(plain[:-10]) + gzip.compress(plain[-10:])))
    work = CleaningRound(now=0, horizon=0, upper_bound=30)
    assert not work.map_segment(str(path), path.stat().st_size, 0, 30)
    assert [work.map.get(b"key-%d" % i) for i in range(3)] == [27, 28, 29]


def test_markers_that_say_nothing_known_stay(folder: Path) -> None:
    """One of a later version, and one that is too short: whatever they are, they end no transaction."""
    later = control_batch(0, SOME_TIME, commit=True)
    later = replace(later, records=(replace(later.records[0], key=b"\0\0\0\x09"),))
    short = control_batch(1, SOME_TIME, commit=True)
    short = replace(short, records=(replace(short.records[0], key=b"\0"),))
    batch = make_batch([Record(2, SOME_TIME, b"k", b"v")])
    segments = [Segment(0, (later, short, batch))]
    write_segments(folder, segments)
    compact_folder(folder, upper_bound=3, now=SOME_TIME, horizon=SOME_TIME + 1)
    assert read_segments(folder) == segments


def test_a_producer_that_is_known_by_its_marker_keeps_no_data(folder: Path) -> None:
    old = replace(make_batch([Record(0, SOME_TIME, b"k", b"old")]), producer_id=7, producer_epoch=0, base_sequence=0)
    new = make_batch([Record(1, SOME_TIME, b"k", b"new")])
    write_segments(folder, [Segment(0, (old, new))])
    compact_folder(folder, upper_bound=2, now=0, producers=[ActiveProducer(7, 0, None)])
    assert read_segments(folder) == [Segment(0, (new,))]


def test_a_large_segment_is_written_in_several_pieces(folder: Path) -> None:
    batches = [make_batch([Record(i, SOME_TIME, b"%d" % (i // 2), bytes(300_000))]) for i in range(12)]
    write_segments(folder, [Segment(0, tuple(batches))])
    compact_folder(folder, upper_bound=12, now=0, segment_bytes=1 << 30)
    assert read_segments(folder) == [Segment(0, tuple(batches[1::2]))]


# --- Arrow ------------------------------------------------------------------------------------------------------------


@pytest.fixture
def log(folder: Path) -> Iterator[Any]:
    with fastlog.PartitionLog.open(folder / "orders-3", durability="os") as opened:
        yield opened


@pytest.fixture
def arrow() -> Any:
    """The helpers of the tests of Arrow, which need pyarrow."""
    return pytest.importorskip("tests.test_arrow")


def child_of(arrow: Any, struct: Any, number: int = 0) -> Any:
    """A child of a schema or an array."""
    width = ctypes.sizeof(ctypes.c_void_p)
    return type(struct).from_address(ctypes.c_void_p.from_address(struct.children + number * width).value)


@pytest.mark.parametrize(
    ("of_child", "fields", "words"),
    [
        (False, {"length": 2}, "the Arrow struct is longer than its column"),
        (False, {"n_children": 0}, "the Arrow struct has 0 children, its schema has 1"),
        (False, {"length": 0, "offset": 5}, "the Arrow struct is longer than its column"),
        (True, {"dictionary": 8}, "a dictionary that its schema does not have"),
    ],
)
def test_a_struct_that_is_not_its_column_is_refused(
    log: Any, arrow: Any, of_child: bool, fields: dict[str, int], words: str
) -> None:
    import pyarrow as pa

    producer = arrow.OneShot(pa.record_batch({"only": pa.array([b"a"])}))
    array = arrow.struct_of(producer)
    arrow.release_nothing(array)
    for name, value in fields.items():
        setattr(child_of(arrow, array) if of_child else array, name, value)
    refused(log, words, producer)


class ArrowStreamStruct(ctypes.Structure):
    _fields_ = [(name, ctypes.c_void_p) for name in ("get_schema", "get_next", "get_last_error", "release", "data")]


FILL_IN = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p)


def streamed(arrow: Any, **given: Any) -> Any:
    """An Arrow stream of one column; functions of the C interface that are given take the place of its own."""
    import pyarrow as pa

    capsule = pa.table({"only": pa.array([b"a"])}).__arrow_c_stream__()

    class Source:
        def __arrow_c_stream__(self, requested_schema: object = None) -> Any:
            return capsule

    stream = ArrowStreamStruct.from_address(arrow.address_of(capsule, b"arrow_array_stream"))
    for name, function in given.items():
        arrow.KEPT.append(function)
        setattr(stream, name, ctypes.cast(function, ctypes.c_void_p).value)
    return Source()


def test_a_stream_that_is_over_stays_over(log: Any, arrow: Any) -> None:
    log.append([b"v"])
    capsule = log.read(0).__arrow_c_stream__()
    stream = ArrowStreamStruct.from_address(arrow.address_of(capsule, b"arrow_array_stream"))
    array = arrow.ArrowArrayStruct()
    release = ctypes.CFUNCTYPE(None, ctypes.c_void_p)
    for length in (1, 0, 0, 0):
        assert FILL_IN(stream.get_next)(ctypes.addressof(stream), ctypes.addressof(array)) == 0
        assert (array.length, array.release is not None) == (length, length == 1)
        if array.release is not None:
            release(array.release)(ctypes.addressof(array))


def test_a_stream_that_fails_at_once_and_says_nothing(log: Any, arrow: Any) -> None:
    """The number of the error is told then."""
    fail = FILL_IN(lambda _stream, _schema: errno.EPERM)
    silent = ctypes.CFUNCTYPE(ctypes.c_void_p, ctypes.c_void_p)(lambda _stream: None)
    source = streamed(arrow, get_schema=fail, get_last_error=silent)
    refused(log, f"the Arrow stream failed: {os.strerror(errno.EPERM)}", source)


def test_arrays_that_are_too_long_together(log: Any, arrow: Any) -> None:
    """Of nulls, which need no memory."""
    import pyarrow as pa

    kept = [arrow.OneShot(pa.nulls(1)) for _ in range(2)]
    left = []
    for producer in kept:
        array = arrow.struct_of(producer)
        arrow.release_nothing(array)
        array.length, array.null_count = 2**62 + 1, 2**62 + 1
        left.append(array)

    def hand_out(_stream: int, place: int) -> int:
        array = left.pop()
        ctypes.memmove(place, ctypes.addressof(array), ctypes.sizeof(arrow.ArrowArrayStruct))
        array.release = None  # moved: its capsule must not call what may be gone when the interpreter ends
        return 0

    def describe(_stream: int, place: int) -> int:
        schema = arrow.schema_of(kept[0])
        ctypes.memmove(place, ctypes.addressof(schema), ctypes.sizeof(arrow.ArrowSchemaStruct))
        schema.release = None
        return 0

    source = streamed(arrow, get_schema=FILL_IN(describe), get_next=FILL_IN(hand_out))
    refused(log, "the lengths of the Arrow arrays overflow", source)


def test_requests_that_name_no_columns_are_passed_over(log: Any, arrow: Any) -> None:
    import pyarrow as pa

    log.append([b"value"], keys=[b"key"])
    batch = log.read(0)
    plain = pa.record_batch(batch)
    for wanted in (pa.binary(), pa.struct([("value", pa.binary()), ("key", pa.binary())])):
        schema = wanted.__arrow_c_schema__()
        struct = arrow.ArrowSchemaStruct.from_address(arrow.address_of(schema, b"arrow_schema"))
        if struct.n_children:
            child_of(arrow, struct).name = None
        found = pa.RecordBatch._import_from_c_capsule(*batch.__arrow_c_array__(schema))
        assert found.schema.field("value").type == pa.binary_view()
        assert found.schema.field("key").type == (pa.binary() if struct.n_children else pa.binary_view())
        assert found.column("value").to_pylist() == plain.column("value").to_pylist()


@pytest.mark.parametrize("place", [0, 4], ids=["name", "value"])
def test_headers_that_are_overwritten_while_somebody_reads(folder: Path, place: int) -> None:
    """Mapped bytes are those of the file: what was whole when the batch was decoded may be no header any more."""
    pa = pytest.importorskip("pyarrow")
    with fastlog.PartitionLog.open(folder / "orders-0", durability="os") as log:
        log.append([b"first"])
        log.append([b"second"], headers={"abc": b"12345"})
        batch = log.read(1)
        assert pa.record_batch(batch).column("headers").to_pylist() == [[{"key": "abc", "value": b"12345"}]]
        path = next((folder / "orders-0").glob("*.log"))
        content = path.read_bytes()
        at = content.index(b"\x06abc\x0a12345") + place
        with path.open("r+b") as file:
            file.seek(at)
            file.write(b"\x03")  # a length below zero
        with pytest.raises(CorruptRecordError, match="the headers of the record at offset 1 run beyond their batch"):
            batch.__arrow_c_array__()
        with path.open("r+b") as file:
            file.write(content)
        assert pa.record_batch(batch).column("value").to_pylist() == [b"second"]


class UnspeakableError(Exception):
    def __str__(self) -> str:
        raise RuntimeError("it cannot be said")


def test_errors_of_a_stream_are_told_by_their_type(log: Any) -> None:
    pa = pytest.importorskip("pyarrow")
    log.append([b"v"])

    def failing() -> Iterator[Any]:
        yield log.read(0)
        raise UnspeakableError

    class Source:
        def __init__(self, batches: Any) -> None:
            self.batches = batches

        def __arrow_c_stream__(self, requested_schema: object = None) -> Any:
            return arrow_stream(self.batches, ("offset", "value"), requested_schema)

    for batches, words in (
        (failing(), "UnspeakableError"),
        ([log.read(0), 5], "TypeError: expected batches in an Arrow"),
    ):
        reader = pa.RecordBatchReader.from_stream(Source(batches))
        assert reader.read_next_batch().column("value").to_pylist() == [b"v"]
        with pytest.raises(OSError, match=words):
            reader.read_next_batch()


# --- appending --------------------------------------------------------------------------------------------------------


@pytest.fixture
def path(folder: Path) -> Iterator[str]:
    yield str(folder / "events-0")
    oscalls.clear()
    oscalls.set_clock(None)


def values_of(path: str) -> list[bytes | None]:
    """Everything in the log, which verifies."""
    with fastlog.PartitionLog.open(path, durability="os") as log:
        assert log.verify().ok
        return [record.value for record in log.records()]


def test_a_file_in_the_way_of_a_new_segment_is_named_and_kept(path: str, folder: Path) -> None:
    with open_log(str(folder / "like-0")) as like:
        fill(like, 2)
        base = like.end_offset - 1
    with open_log(path) as log:
        log.append([VALUE])
        strange = Path(path) / f"{base:020}.log"
        strange.write_bytes(b"what somebody wants to keep")
        for _ in range(base - 1):
            log.append([VALUE])
        for _ in range(2):
            with pytest.raises(StorageError, match=f"{strange} is in the way of a new segment: move it out of the fo"):
                log.append([VALUE])
        assert (log.end_offset, strange.read_bytes()) == (base, b"what somebody wants to keep")
        strange.unlink()
        assert log.append([VALUE]) == base
    assert values_of(path) == [VALUE] * (base + 1)


def test_records_without_times_are_as_old_as_their_segment(path: str) -> None:
    config = fastlog.LogConfig(segment_ms="1h")
    oscalls.set_clock(SOME_TIME)
    with open_log(path, config=config) as log:
        log.append([b"first"], timestamps=-1)
        oscalls.set_clock(SOME_TIME + 3_600_000)
        log.append([b"an hour later"], timestamps=-1)
        assert len(segments(path)) == 1
        oscalls.set_clock(SOME_TIME + 3_600_001)
        log.append([b"too late"], timestamps=-1)
        assert segments(path) == [f"{0:020}.log", f"{2:020}.log"]


def test_whoever_appends_keeps_the_interval_that_another_asked_for(path: str) -> None:
    """Also when that one opened the log later, and is gone."""
    with open_log(path) as log:
        other = open_log(path, durability="interval", config=replace(SMALL, flush_interval="20ms"))
        log.append([b"v"])
        wait_until(lambda: log.durable_offset == 1)
        other.close()
        log.append([b"w"])
        wait_until(lambda: log.durable_offset == 2)


def transactional(producer_id: int) -> bytes:
    batch = make_batch([Record(0, 0, None, b"v")])
    return encode_batch(
        replace(batch, attributes=TRANSACTIONAL, producer_id=producer_id, producer_epoch=0, base_sequence=0)
    )


def test_an_abort_that_cannot_be_indexed_is_not_written(path: str, caplog: pytest.LogCaptureFixture) -> None:
    """A reader that sees the marker has to know what it takes back."""
    with open_log(path) as log:
        log.append_batch(transactional(7))
        log.end_transaction(7, 0, commit=False)
        log.append_batch(transactional(8))
        end = log.end_offset
        index = next(Path(path).glob("*.txnindex"))
        entries = index.read_bytes()
        index.write_bytes(entries[:10])
        with caplog.at_level(logging.ERROR, "fastlog.log"), pytest.raises(StorageError, match="could not append to"):
            log.end_transaction(8, 0, commit=False)
        assert f"aborted transactions of {path} could not be indexed" in caplog.text
        assert log.end_offset == end
        index.write_bytes(entries)
        log.end_transaction(8, 0, commit=False)
        log.append([b"last"])
        assert index.read_bytes()[: len(entries)] == entries
    assert values_of(path) == [b"last"]


def test_offsets_that_are_too_far_apart_for_one_segment(path: str) -> None:
    """In what an index can tell; a log that was compacted elsewhere may come near to that."""
    far = 2**31 - 3
    Path(path).mkdir()
    batches = [make_batch([Record(offset, SOME_TIME, b"k", b"v")]) for offset in (0, far)]
    write_segments(Path(path), [Segment(0, tuple(batches))])
    with open_log(path) as log:
        assert log.append([b"w"], timestamps=SOME_TIME) == far + 1
        assert len(segments(path)) == 1
        assert log.append([b"x"] * 2, timestamps=SOME_TIME) == far + 2
        assert segments(path) == [f"{0:020}.log", f"{far + 2:020}.log"]
    assert values_of(path) == [b"v", b"v", b"w", b"x", b"x"]


def test_a_roll_that_can_neither_complete_indexes_nor_remove_them(
    path: str, folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """It rolls all the same; that they are not whole is found when they are used."""
    with open_log(str(folder / "like-0")) as like:
        fill(like, 2)
        base = like.end_offset - 1
    with open_log(path) as log:
        for number in range(base):
            if number == 3:
                oscalls.inject("pwrite", errno=errno.ENOSPC, nth=2)  # an entry of an index is lost
            log.append([VALUE], timestamps=SOME_TIME + number)
        assert oscalls.injected() == 1
        oscalls.inject("pwrite", errno=errno.EIO, sticky=True)
        oscalls.inject("unlink", errno=errno.EIO, sticky=True)
        with caplog.at_level(logging.WARNING, "fastlog.log"), pytest.raises(StorageError, match="could not append to"):
            log.append([VALUE])
        oscalls.clear()
        assert segments(path) == [f"{0:020}.log", f"{base:020}.log"]
        told = [record.getMessage() for record in caplog.records]
        assert any("could not be completed" in message for message in told), told
        assert any(message.endswith("may be incomplete") for message in told), told
        assert log.append([b"next"]) == base
        assert [log.offset_for_time(SOME_TIME + number) for number in range(base)] == list(range(base))
    assert values_of(path) == [*[VALUE] * base, b"next"]


# --- syncing ----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def nursery() -> Iterator[Nursery]:
    with Nursery() as server:
        yield server


@pytest.fixture
def puppets(nursery: Nursery) -> Iterator[Callable[[str], Puppet]]:
    """Makes puppets, and ends them when the test is over."""
    made: list[Puppet] = []

    def make(name: str) -> Puppet:
        made.append(Puppet(nursery, name))
        return made[-1]

    yield make
    for puppet in made:
        puppet.signal(signal.SIGCONT)
        puppet.kill()


def test_what_a_dead_process_was_syncing_is_written_again(
    puppets: Callable[[str], Puppet], path: str, caplog: pytest.LogCaptureFixture
) -> None:
    """Had its sync failed, nobody would know: the kernel tells of it once."""
    with open_small(path, durability="group") as log:
        while len(segments(path)) < 3:
            log.append([VALUE])
        wait_until(lambda: log.durable_offset == log.end_offset)
        dead = puppets("dead")
        dead.do("threading.Thread.start = lambda thread: None")  # nothing is synced after a roll
        dead.do("log = open_log(path, durability='os')", path=path)
        dead.do("for _ in range(60): log.append([b'y' * 1000])")
        dead.do("oscalls.arm('sync.synced', 'kill')")
        dead.begin("log.flush()", expression=True)
        dead.wait_until_gone()
        written = oscalls.call_counts()["pwrite"]
        with caplog.at_level(logging.WARNING, "fastlog.log"):
            end = log.append([b"mine"]) + 1
        assert f"a sync of {path} was cut short" in caplog.text
        assert oscalls.call_counts()["pwrite"] - written > 3  # those of an append, and one for each segment
        assert log.durable_offset == end
        caplog.clear()
        log.append([b"next"])
        assert "was cut short" not in caplog.text
    assert values_of(path)[-62:] == [*[b"y" * 1000] * 60, b"mine", b"next"]


def test_what_a_dead_process_left_in_a_segment_that_it_began_is_kept(
    puppets: Callable[[str], Puppet], path: str
) -> None:
    """A new segment is empty until it is published: bytes in it are somebody's, and go to a side file."""
    with open_small(path, durability="os") as log:
        log.append([VALUE])
        dead = puppets("dead")
        dead.do("log = open_log(path, durability='os')", path=path)
        dead.do("oscalls.arm('roll.created', 'kill')")
        dead.begin("while True: log.append([b'y' * 1000])")
        dead.wait_until_gone()
        unborn = Path(path) / segments(path)[-1]
        unborn.write_bytes(b"somebody's")
        end = log.append([b"mine"])
        assert int(unborn.stem) == end
        kept = [found for found in Path(path).iterdir() if found.name.startswith(unborn.name) and found != unborn]
        assert [found.read_bytes() for found in kept] == [b"somebody's"]
    assert values_of(path) == [VALUE, *[b"y" * 1000] * (end - 1), b"mine"]


def test_a_recovery_point_that_cannot_be_written_keeps_no_promise_back(
    path: str, caplog: pytest.LogCaptureFixture
) -> None:
    large = [bytes(1_000_000)] * 70  # so many that the recovery point is not left as far behind
    with open_log(path, durability="group", config=None) as log:
        meta = Path(path) / ".fastlog-meta"
        content = meta.read_bytes()
        meta.write_bytes(b"{}" * 100)
        with caplog.at_level(logging.WARNING, "fastlog.log"):
            log.append(large)
        assert log.durable_offset == 70
        assert f"the recovery point of {path} could not be written" in caplog.text
        meta.write_bytes(content)
    assert values_of(path) == large


def test_a_flush_interval_that_cannot_be_kept_is_told(path: str, caplog: pytest.LogCaptureFixture) -> None:
    log = open_log(path, durability="interval", config=replace(SMALL, flush_interval="20ms"))
    oscalls.inject("fdatasync", errno=errno.EIO)
    with caplog.at_level(logging.WARNING, "fastlog.log"):
        log.append([b"v"])
        wait_until(lambda: f"the flush interval of {path} could not be kept" in caplog.text)
    oscalls.clear()
    with pytest.raises(StorageError, match="what was not durable then may be lost"):
        log.append([b"w"])
    # nothing is left to do until it is opened again
    assert importlib.import_module("fastlog._native.syncing").flush_if_due(log) == 0
    log.close()
    assert values_of(path) == [b"v"]


def test_a_sync_that_fails_for_a_reader_leaves_no_mark(path: str) -> None:
    """It stops everybody, but a reader writes nothing into the folder."""
    log = open_log(path)
    reader = open_log(path, durability="group", read_only=True)
    log.append([b"v"])
    before = sorted(os.listdir(path))
    oscalls.inject("fdatasync", errno=errno.EIO)
    assert not reader.wait(0, timeout=0)
    assert oscalls.injected() == 1
    oscalls.clear()
    with pytest.raises(StorageError, match="what was not durable then may be lost"):
        log.append([b"w"])
    assert sorted(os.listdir(path)) == before
    reader.close()
    log.close()
    assert values_of(path) == [b"v"]


ENDLESS = """
import errno, sys
import fastlog
from fastlog._native import oscalls

log = fastlog.PartitionLog.open(sys.argv[1], durability="os")
log.append([b"durable"])
log.flush()
log.append([b"lost"])
batches = iter(log.batches(max_bytes=1))
assert len(next(batches)) == 1
oscalls.inject("fdatasync", errno=errno.EIO)
try:
    log.flush()
except fastlog.StorageError:
    oscalls.clear()
assert log.readable_offset == 1
print(len(list(batches)))
"""


def test_an_iteration_ends_where_a_failed_sync_has_put_the_end(path: str) -> None:
    """It began when more could be read. In a process of its own: without an end it lets nobody interrupt it."""
    command = [sys.executable, "-c", ENDLESS, path]
    said = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert (said.returncode, said.stdout) == (0, "0\n"), said.stderr


def test_the_lag_behind_a_failed_sync_is_counted_to_its_end(path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    log = open_log(path, durability="os")
    log.append([b"durable"])
    log.flush()
    log.append([b"lost"])
    oscalls.inject("fdatasync", errno=errno.EIO)
    with pytest.raises(StorageError):
        log.flush()
    oscalls.clear()
    # as if it had failed just after that
    monkeypatch.setattr(lag, "readable_end", lambda _: 2)
    assert lag.lag_at(log, 1) == (0, 0.0)
    log.close()


def test_a_roll_without_a_thread_to_sync_in(
    path: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def refuse(_thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    with open_log(path) as log:
        with monkeypatch.context() as patched, caplog.at_level(logging.WARNING, "fastlog.log"):
            patched.setattr(threading.Thread, "start", refuse)
            fill(log, 2)
        assert f"closed segments of {path} are not synced yet: can't start new thread" in caplog.text
        assert log.durable_offset == 0
        fill(log, 3)
        wait_until(lambda: log.durable_offset >= int(segments(path)[2][:20]))


# --- producers --------------------------------------------------------------------------------------------------------


@pytest.fixture
def store(folder: Path) -> Iterator[Directory]:
    with Directory.open(folder / "store", durability="os") as opened:
        opened.create_topic("orders")
        opened.create_topic("other")
        yield opened


def stored(store: Directory, topic: str, partition: int = 0) -> list[bytes | None]:
    return [record.value for record in store.partition_log(topic, partition).records()]


class Held:
    """The thread of a producer waits in a callback, until the block ends."""

    def __init__(self, producer: Producer) -> None:
        self.producer = producer
        self.has_begun, self.may_end = threading.Event(), threading.Event()
        self.own, self.is_late = threading.get_ident(), False

    def wait(self, _: object) -> None:
        if threading.get_ident() == self.own:
            self.is_late = True  # the record was there before the callback
            return
        self.has_begun.set()
        self.may_end.wait(10)

    def __enter__(self) -> Held:
        self.is_late = True
        while self.is_late:
            self.is_late = False
            self.producer.send("other", b"held").add_done_callback(self.wait)
        assert self.has_begun.wait(10)
        return self

    def __exit__(self, *exception: object) -> None:
        self.may_end.set()


def test_a_topic_that_was_made_anew_is_sent_to_by_its_number(store: Directory) -> None:
    with Producer(store) as producer:
        producer.send("orders", b"old", partition=0).result(5)
        store.delete_topic("orders")
        store.create_topic("orders", partitions=2)
        assert producer.send("orders", b"new", partition=0).result(5).offset == 0
    assert stored(store, "orders") == [b"new"]


class Sender(threading.Thread):
    """Sends one record, for which there is no room yet."""

    def __init__(self, producer: Producer, **arguments: Any) -> None:
        super().__init__()
        self.producer = producer
        self.arguments = arguments
        self.delivery: Any = None
        self.error: Exception | None = None
        self.start()

    def run(self) -> None:
        try:
            self.delivery = self.producer.send("orders", b"w" * 3000, **self.arguments)
        except Exception as error:  # noqa: BLE001 - looked at by the test
            self.error = error


@pytest.mark.parametrize("partition", [None, 0])
def test_a_topic_is_made_anew_while_somebody_waits_for_memory(store: Directory, partition: int | None) -> None:
    with Producer(store, buffer_memory=4096) as producer:
        with Held(producer):
            full = producer.send("other", b"f" * 3000)
            sender = Sender(producer, partition=partition)
            time.sleep(0.05)
            store.delete_topic("orders")
            store.create_topic("orders")
            assert sender.is_alive()
        sender.join(10)
        assert sender.delivery.result(5).offset == 0
        assert full.result(5).offset >= 1
    assert stored(store, "orders") == [b"w" * 3000]


def test_a_transaction_that_ends_while_somebody_waits_for_memory(store: Directory) -> None:
    """The record belongs to no transaction then, and is not sent."""
    with Producer(store, transactional_id="t", buffer_memory=4096) as producer:
        transaction = producer.transaction()
        transaction.__enter__()
        with Held(producer):
            full = producer.send("other", b"f" * 3000)
            sender = Sender(producer)
            time.sleep(0.05)
            aborting = threading.Thread(target=transaction.abort)
            aborting.start()
            time.sleep(0.05)
            assert sender.is_alive()
        sender.join(10)
        aborting.join(10)
        assert isinstance(sender.error, TransactionError)
        assert "no transaction is open" in str(sender.error)
        with pytest.raises(TransactionError, match="the transaction that the record was sent in has ended"):
            full.result(5)
        with producer.transaction():
            producer.send("orders", b"next")
    assert stored(store, "orders") == [b"next"]


def test_transactions_of_one_producer_come_one_after_the_other(store: Directory) -> None:
    with Producer(store, transactional_id="t") as producer:
        with producer.transaction():
            with pytest.raises(TransactionError, match="end it first"):
                producer.begin_transactional()
            first = producer.send("orders", b"v")
            with Held(producer):
                second = producer.send("orders", b"w")
                with pytest.raises(DeliveryTimeoutError):
                    producer.drain_transaction(0.01)
        assert (first.result(0).offset, second.result(0).offset) == (0, 1)
    assert stored(store, "orders") == [b"v", b"w"]


def test_room_that_is_there_is_told_at_once(store: Directory) -> None:
    with Producer(store) as producer:
        told: list[int] = []
        producer._when_room(lambda: told.append(threading.get_ident()))
        assert told == [threading.get_ident()]


def test_the_record_that_is_too_large_is_named(store: Directory) -> None:
    with Producer(store) as producer:
        many: dict[str, Any] = {"values": [b"v"] * 5, "headers": [{"h": b"1"}] * 5}
        with pytest.raises(RecordTooLargeError, match="record 3: the record takes a batch of"):
            producer.send_many("orders", keys=[b"k", None, b"k", bytes(2_000_000), None], **many)
        many["headers"][1] = {"h": bytes(2_000_000)}
        with pytest.raises(RecordTooLargeError, match="record 1: the record takes a batch of"):
            producer.send_many("orders", keys=[b"k"] * 5, **many)
    assert stored(store, "orders") == []


def test_many_records_are_spread_by_their_keys(store: Directory) -> None:
    store.create_topic("many", partitions=3)
    keys = [b"%d" % (i % 100) for i in range(12_000)]
    values = [b"%d" % i for i in range(12_000)]
    with Producer(store) as producer:
        producer.send_many("many", values, keys=keys).result(10)
    found = [stored(store, "many", number) for number in range(3)]
    assert sum(map(len, found)) == 12_000
    for number, some in enumerate(found):
        assert some == [v for v, k in zip(values, keys, strict=True) if partition_for_key(k, 3) == number]


def test_the_end_of_a_block_tells_of_a_failure(store: Directory) -> None:
    with pytest.raises(StorageError, match="could not append to"), Producer(store) as producer:
        producer.send("orders", b"v").result(5)
        oscalls.inject("pwrite", errno=errno.EIO)
        producer.send("orders", b"w")
    oscalls.clear()
    assert stored(store, "orders") == [b"v"]


@pytest.mark.parametrize(("failing", "left"), [(3, b"abd"), (4, b"abc")])
def test_a_failure_behind_records_that_wait_for_their_sync(folder: Path, failing: int, left: bytes) -> None:
    """It fails alone: those before it are delivered, and so are those behind it."""
    with Directory.open(folder / "store", durability="group") as store:
        store.create_topic("orders")
        store.create_topic("other")
        with Producer(store) as producer:
            producer.send("orders", b"first").result(5)
            with Held(producer):
                oscalls.inject("pwrite", errno=errno.EIO, nth=failing)
                deliveries = [producer.send_many("orders", [bytes([value])]) for value in b"abcd"]
            errors = [delivery.exception(5) for delivery in deliveries]
            assert [error is None for error in errors] == [value in left for value in b"abcd"]
            assert isinstance(errors[failing - 1], StorageError)
            producer.send("orders", b"last").result(5)
        assert stored(store, "orders") == [b"first", *(bytes([value]) for value in left), b"last"]


def test_a_producer_that_syncs_each_append_by_itself(folder: Path) -> None:
    with Directory.open(folder / "store", durability="batch") as store:
        store.create_topic("orders")
        with Producer(store) as producer:
            for offset in range(3):
                before = oscalls.call_counts()["fdatasync"]
                assert producer.send("orders", b"v").result(5).offset == offset
                assert oscalls.call_counts()["fdatasync"] > before
                assert store.partition_log("orders", 0).durable_offset == offset + 1


def test_a_look_at_the_topics_that_fails_stops_no_delivery(
    store: Directory, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(_catalog: DirectoryCatalog, topic: str) -> Any:
        raise StorageError(f"{topic} cannot be read")

    with Producer(store) as producer, caplog.at_level(logging.WARNING, "fastlog.producer"):
        with Held(producer):
            delivery = producer.send("orders", b"v")
            monkeypatch.setattr(DirectoryCatalog, "describe", fail)
            store.create_topic("third")
        assert delivery.result(5).offset == 0
        assert "what topics there are cannot be told: " in caplog.text


def test_a_topic_that_is_deleted_while_it_is_written_is_let_go(store: Directory) -> None:
    with Producer(store) as producer:
        again = Held(producer)
        with Held(producer):
            first = producer.send("orders", b"v")
            first.add_done_callback(again.wait)
            second = producer.send_many("orders", [b"w"])
        assert again.has_begun.wait(10)
        store.delete_topic("orders")
        producer.send("other", b"looks at the topics")
        again.may_end.set()
        assert first.result(5).offset == 0
        with pytest.raises(UnknownTopicError, match="was deleted before the record was appended"):
            second.result(5)
        producer.flush(5)
        with pytest.raises(UnknownTopicError):
            producer.send("orders", b"v")


def test_partitions_keep_the_size_of_their_segments(store: Directory) -> None:
    """What fits into those of the topic, but not of this partition, is told by the delivery, then by the call."""
    store.create_topic("small", options={"segment.bytes": 1000})
    store.partition_log("small", 0).append([b"first"])
    store.alter_topic("small", {"segment.bytes": 100_000})
    with Producer(store) as producer:
        delivery = producer.send("small", bytes(2000))
        with pytest.raises(RecordTooLargeError, match=r"more than segment\.bytes=1000 of .*; they were not sent"):
            delivery.result(5)
        with pytest.raises(RecordTooLargeError, match="more than the 1000 that max.message.bytes"):
            producer.send("small", bytes(2000))
        producer.send("small", b"last").result(5)
    assert stored(store, "small") == [b"first", b"last"]


def test_a_segment_that_cannot_be_opened_for_want_of_files_is_tried_again(store: Directory) -> None:
    store.create_topic("small", options={"segment.bytes": 1000})
    with Producer(store) as producer:
        for _ in range(4):
            producer.send("small", bytes(400)).result(5)
        wait_until(lambda: all(thread.name != "fastlog-sync" for thread in threading.enumerate()))
        oscalls.inject("open", errno=errno.EMFILE)
        assert producer.send("small", bytes(400)).result(5).offset == 4
        assert oscalls.injected() == 1
        oscalls.clear()
    assert stored(store, "small") == [bytes(400)] * 5


def test_a_producer_whose_epochs_are_used_up_goes_on_as_another_one(store: Directory) -> None:
    """An epoch ends with each failure of which it is not known what it left. The first thousand failures are told."""
    store.create_topic("small", options={"segment.bytes": 256})
    log = store.partition_log("small", 0)
    failures = 1 << 15
    logger = logging.getLogger("fastlog.producer")
    with Producer(store) as producer:
        producer.send("small", b"first").result(5)
        logger.setLevel(logging.CRITICAL)
        oscalls.inject("pwrite", errno=errno.EIO, sticky=True)
        try:
            producer.send_many("small", np.full(failures, b"v" * 150), partition=0)
            with pytest.raises(StorageError, match="could not append to") as caught:
                producer.flush(60)
        finally:
            oscalls.clear()
            logger.setLevel(logging.NOTSET)
        assert any(note.startswith("999 more appends failed") for note in caught.value.__notes__)
        producer.send("small", b"last").result(5)
    assert stored(store, "small") == [b"first", b"last"]
    first, last = (batch for path in segments(log.path) for batch in scan_segment(f"{log.path}/{path}"))
    assert (first.producer_epoch, last.producer_epoch) == (0, 0)
    assert first.producer_id != last.producer_id
