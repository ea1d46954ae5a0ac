"""Row 22 of the failure catalogue, I13: batches that lie about their lengths and counts, with a CRC that is right.

Each one has to be refused by an error of fastlog's; a crash ends the whole test process and is thus seen.
"""

from __future__ import annotations

import random
import struct
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

import fastlog
from fastlog._native import oscalls
from tests.foreign import write_foreign_log
from tests.reference.batch import (
    HEADER_SIZE,
    Batch,
    FormatError,
    Record,
    decode_batch,
    encode_batch,
    fix_crc,
    make_batch,
    seal,
)
from tests.reference.varint import write_varint
from tests.strategies import SOME_TIME

v = write_varint
PLAIN = make_batch([Record(0, SOME_TIME, b"key", b"value", (("h", b"x"),)), Record(1, SOME_TIME + 1, None, b"w")])
GOOD = encode_batch(PLAIN)
REFUSALS = (fastlog.CorruptLogError, fastlog.CorruptRecordError, fastlog.UnsupportedFormatError)


def patch(at: int, layout: str, value: int) -> bytes:
    """The good batch with one header field changed and the CRC made right again."""
    encoded = bytearray(GOOD)
    struct.pack_into(">" + layout, encoded, at, value)
    return fix_crc(bytes(encoded))


def body(*parts: bytes, size: int | None = None) -> bytes:
    """A batch of one record with this body; ``size`` lies about the record's length."""
    content = b"".join(parts)
    one = replace(PLAIN, last_offset=0)
    return seal(one, v(len(content) if size is None else size) + content, count=1)


def area(content: bytes, count: int = 1) -> bytes:
    return seal(replace(PLAIN, last_offset=max(count - 1, 0)), content, count=count)


START = b"\0" + v(0) + v(0)  # attributes, timestamp delta, offset delta
PLAIN_BODY = START + v(-1) + v(1) + b"v" + v(0)
HUGE = b"\xff" * 9 + b"\x01"
ENDLESS = b"\xff" * 40

CORRUPTIONS: dict[str, bytes] = {
    # the header
    "negative count": patch(57, "i", -1),
    "smallest count": patch(57, "i", -(2**31)),
    "count one too large": patch(57, "i", 3),
    "count one too small": patch(57, "i", 1),
    "huge count": patch(57, "i", 2**31 - 1),
    "no records counted": patch(57, "i", 0),
    "negative last offset delta": patch(23, "i", -1),
    "smallest last offset delta": patch(23, "i", -(2**31)),
    "last offset delta below the count": patch(23, "i", 0),
    "length negative": patch(8, "i", -1),
    "length smallest": patch(8, "i", -(2**31)),
    "length zero": patch(8, "i", 0),
    "length below the header": patch(8, "i", 48),
    "length one too short": patch(8, "i", len(GOOD) - 13),
    "length only the header": patch(8, "i", 49),
    "length largest": patch(8, "i", 2**31 - 1),
    "magic 0": patch(16, "b", 0),
    "magic 1": patch(16, "b", 1),
    "magic 3": patch(16, "b", 3),
    "magic -1": patch(16, "b", -1),
    "unknown attribute bit 7": patch(21, "h", 0x80),
    "unknown attribute bit 15": patch(21, "H", 0x8000),
    "unknown codec 5": patch(21, "h", 5),
    "unknown codec 7": patch(21, "h", 7),
    "negative base offset": patch(0, "q", -1),
    "smallest base offset": patch(0, "q", -(2**63)),
    "offset overflow": patch(0, "q", 2**63 - 1),
    "offset overflow behind the batch": patch(0, "q", 2**63 - 2),
    "negative base timestamp": patch(27, "q", -2),
    "smallest base timestamp": patch(27, "q", -(2**63)),
    "timestamps beyond the largest": patch(35, "q", SOME_TIME),
    "negative max timestamp": patch(35, "q", -2),
    "control batch of two": patch(21, "h", 0x30),
    # the record's own length
    "record length negative": body(PLAIN_BODY, size=-1),
    "record length smallest": body(PLAIN_BODY, size=-(2**31)),
    "record length zero": body(PLAIN_BODY, size=0),
    "record length one too long": body(PLAIN_BODY, size=len(PLAIN_BODY) + 1),
    "record length one too short": body(PLAIN_BODY, size=len(PLAIN_BODY) - 1),
    "record length huge": body(PLAIN_BODY, size=2**31 - 1),
    "record length over 32 bits": area(HUGE + PLAIN_BODY),
    "record length endless": area(ENDLESS),
    "record length six bytes": area(b"\x80\x80\x80\x80\x80\x01" + PLAIN_BODY),
    "record without a body": area(v(0)),
    "record area empty": area(b""),
    "trailing bytes in a record": body(PLAIN_BODY, b"\0"),
    "trailing bytes behind the records": area(v(len(PLAIN_BODY)) + PLAIN_BODY + b"\0"),
    "trailing record": area((v(len(PLAIN_BODY)) + PLAIN_BODY) * 2),
    "missing record": area(v(len(PLAIN_BODY)) + PLAIN_BODY, count=2),
    # numbers in a record
    "timestamp below zero": body(b"\0", v(-SOME_TIME - 2), v(0), v(-1), v(-1), v(0)),
    "timestamp overflows": body(b"\0", v(2**63 - 1), v(0), v(-1), v(-1), v(0)),
    "timestamp delta smallest": body(b"\0", v(-(2**63)), v(0), v(-1), v(-1), v(0)),
    "timestamp delta endless": body(b"\0", ENDLESS),
    "timestamp delta eleven bytes": body(b"\0", b"\xff" * 10 + b"\x01", v(0), v(-1), v(-1), v(0)),
    "offset delta beyond the batch": body(b"\0", v(0), v(1), v(-1), v(-1), v(0)),
    "offset delta negative": body(b"\0", v(0), v(-1), v(-1), v(-1), v(0)),
    "offset delta huge": body(b"\0", v(0), v(2**31 - 1), v(-1), v(-1), v(0)),
    "offset delta over 32 bits": body(b"\0", v(0), v(2**40), v(-1), v(-1), v(0)),
    "key length beyond the record": body(START, v(100), b"k", v(-1), v(0)),
    "key length one beyond the record": body(START, v(2), b"k"),
    "key length -2": body(START, v(-2), v(-1), v(0)),
    "key length smallest": body(START, v(-(2**31)), v(-1), v(0)),
    "key length largest": body(START, v(2**31 - 1), v(-1), v(0)),
    "key length endless": body(START, ENDLESS),
    "key length cut off": body(START, b"\x80"),
    "no value length": body(START, v(-1)),
    "value length beyond the record": body(START, v(-1), v(10), b"v", v(0)),
    "value length -2": body(START, v(-1), v(-2), v(0)),
    "value length largest": body(START, v(-1), v(2**31 - 1), b"v", v(0)),
    "value swallows the headers count": body(START, v(-1), v(2), b"v", v(0)),
    # headers
    "no headers count": body(START, v(-1), v(-1)),
    "headers count negative": body(START, v(-1), v(-1), v(-1)),
    "headers count smallest": body(START, v(-1), v(-1), v(-(2**31))),
    "headers count beyond the record": body(START, v(-1), v(-1), v(1)),
    "headers count huge": body(START, v(-1), v(-1), v(2**31 - 1), b"\0\0"),
    "headers count one too large": body(START, v(-1), v(-1), v(2), v(1), b"h", v(-1)),
    "headers count one too small": body(START, v(-1), v(-1), v(0), v(1), b"h", v(-1)),
    "header key null": body(START, v(-1), v(-1), v(1), v(-1), v(-1)),
    "header key length -2": body(START, v(-1), v(-1), v(1), v(-2), v(-1)),
    "header key beyond the record": body(START, v(-1), v(-1), v(1), v(50), b"h", v(-1)),
    "header key largest": body(START, v(-1), v(-1), v(1), v(2**31 - 1), b"h"),
    "header value missing": body(START, v(-1), v(-1), v(1), v(1), b"h"),
    "header value -2": body(START, v(-1), v(-1), v(1), v(1), b"h", v(-2)),
    "header value beyond the record": body(START, v(-1), v(-1), v(1), v(1), b"h", v(9), b"x"),
    "header value largest": body(START, v(-1), v(-1), v(1), v(1), b"h", v(2**31 - 1), b"x"),
    "horizon below all timestamps": seal(
        replace(PLAIN, last_offset=0, attributes=0x40, base_timestamp=-(2**63)),
        v(15) + b"\0" + v(-(2**63)) + v(0) + v(-1) + v(-1) + v(0),
        count=1,
    ),
    # two records
    "offsets not rising": area(
        b"".join(v(len(b_)) + b_ for b_ in (b"\0" + v(0) + v(1) + v(-1) + v(-1) + v(0),) * 2), count=2
    ),
    "sum of lengths overflows": area(v(2**31 - 1) + PLAIN_BODY + v(2**31 - 1) + PLAIN_BODY, count=2),
}


def consume(path: Path) -> None:
    """Touch all that a batch can offer."""
    with fastlog.PartitionLog.open(path.parent, durability="os") as log:
        offset = log.start_offset
        while offset < log.readable_offset:
            batch = log.read(offset)
            batch.keys.to_list(), batch.values.to_list(), batch.timestamps.tolist()
            for record in batch:
                list(record.headers)
            for headers in batch.headers:
                list(headers)
            batch.__arrow_c_array__()
            offset = batch.next_offset


@pytest.mark.parametrize("encoded", [GOOD])
def test_the_undamaged_batch_is_accepted(folder: Path, encoded: bytes) -> None:
    path = write_foreign_log(folder / "t-0", [encoded])
    assert [info.is_valid for info in fastlog.scan_segment(path)] == [True]
    consume(path)


@pytest.mark.parametrize("name", list(CORRUPTIONS))
def test_the_reference_refuses(name: str) -> None:
    with pytest.raises(FormatError):
        decode_batch(CORRUPTIONS[name])


@pytest.mark.parametrize("name", list(CORRUPTIONS))
def test_I13_scan_segment_reports_a_hostile_batch(folder: Path, name: str) -> None:
    path = write_foreign_log(folder / "t-0", [CORRUPTIONS[name]])
    infos = list(fastlog.scan_segment(path))
    assert not all(info.is_valid for info in infos), f"{name} passed as valid"
    assert all(info.problem for info in infos if not info.is_valid)


@pytest.mark.parametrize("name", list(CORRUPTIONS))
@pytest.mark.parametrize("place", ["alone", "in front"])
def test_I13_reading_refuses_a_hostile_batch(folder: Path, name: str, place: str) -> None:
    good = [encode_batch(make_batch([Record(10 + i, SOME_TIME, b"k", b"v")])) for i in range(2)]
    path = write_foreign_log(folder / "t-0", [CORRUPTIONS[name], *(good if place == "in front" else [])])
    content = path.read_bytes()
    with pytest.raises(REFUSALS):
        consume(path)
    assert path.read_bytes() == content, "somebody else's file was changed"


@pytest.mark.parametrize("name", list(CORRUPTIONS))
def test_I13_a_hostile_batch_at_the_end_is_refused_or_cut_and_kept(folder: Path, name: str) -> None:
    """Where the header is wrong it cannot be told from a torn tail; the records of a good header have to be refused."""
    before = encode_batch(make_batch([Record(0, SOME_TIME, b"k", b"v")]))
    hostile = bytearray(CORRUPTIONS[name])
    if not any(hostile[:8]):
        hostile[:8] = (1).to_bytes(8, "big")  # the base offset is outside the CRC
    path = write_foreign_log(folder / "t-0", [before, bytes(hostile)])
    content = path.read_bytes()
    try:
        consume(path)
    except REFUSALS:
        assert path.read_bytes() == content
    else:
        [side_file] = path.parent.glob("*.torn-*")
        assert side_file.read_bytes() == bytes(hostile)
        assert path.read_bytes() == before


@pytest.mark.parametrize("mmap", [True, False])
@pytest.mark.parametrize("length", [2**31 - 1, 2**31 - 12, -1, -(2**31), 0, 48])
def test_I13_a_length_that_lies_in_our_own_log_is_named(folder: Path, length: int, mmap: bool) -> None:
    """A clean log is not scanned: what reads it first is what looks at the length."""
    path = folder / "t-0"
    with fastlog.PartitionLog.open(path) as log:
        for value in (b"first", b"second"):
            log.append([value])
    [segment] = path.glob("*.log")
    second = list(fastlog.scan_segment(segment))[1].position
    with segment.open("r+b") as file:
        file.seek(second + 8)
        file.write(struct.pack(">i", length))
    with fastlog.PartitionLog.open(path, config=fastlog.LogConfig(mmap=mmap)) as log:
        assert log.recovery is None
        assert log.get(0).value == b"first"
        with pytest.raises(fastlog.CorruptLogError):
            log.get(1)


@dataclass(frozen=True)
class Mutation:
    """One random change of a valid batch's record area, CRC made right."""

    name: str
    apply: Callable[[bytearray, random.Random], None]


def flip(data: bytearray, chance: random.Random) -> None:
    at = chance.randrange(21, len(data))
    data[at] ^= 1 << chance.randrange(8)


def overwrite(data: bytearray, chance: random.Random) -> None:
    at = chance.randrange(HEADER_SIZE, len(data))
    data[at] = chance.choice([0x00, 0x01, 0x7F, 0x80, 0xFE, 0xFF])


def remove(data: bytearray, chance: random.Random) -> None:
    del data[chance.randrange(HEADER_SIZE, len(data))]


def insert(data: bytearray, chance: random.Random) -> None:
    data.insert(chance.randrange(HEADER_SIZE, len(data)), chance.randrange(256))


def mutate(chance: random.Random) -> bytes:
    records = [
        Record(i, SOME_TIME + chance.randint(-99, 99), chance.choice([None, b"k"]), chance.choice([None, b"", b"val"]))
        for i in range(chance.randint(1, 3))
    ]
    headers = tuple(("h" * chance.randint(0, 2), chance.choice([None, b"x"])) for _ in range(chance.randint(0, 2)))
    records[0] = replace(records[0], headers=headers)
    data = bytearray(encode_batch(make_batch(records)))
    for _ in range(chance.randint(1, 3)):
        chance.choice([flip, overwrite, remove, insert])(data, chance)
    struct.pack_into(">i", data, 8, len(data) - 12)
    return fix_crc(bytes(data))


def test_I13_random_lies_are_judged_as_the_reference_judges_them(folder: Path, seed: int) -> None:
    chance = random.Random(seed)
    accepted = refused = 0
    for number in range(3000):
        encoded = mutate(chance)
        try:
            expected: Batch | None = decode_batch(encoded)[0]
        except FormatError as problem:
            expected = None
            if "UTF-8" in str(problem):
                continue  # refused, if at all, only when the records are asked for
        path = write_foreign_log(folder / f"t-{number}", [encoded])
        [info, *rest] = fastlog.scan_segment(path)
        assert not rest
        assert info.is_valid == (expected is not None), f"{encoded.hex()}: {info.problem}"
        accepted += info.is_valid
        refused += not info.is_valid
        path.unlink()
    assert accepted > 100 and refused > 500


def test_I13_what_looks_like_batches_everywhere_is_read_once(folder: Path) -> None:
    """Each byte of the values could be the magic byte of the next batch, where it is looked for behind damage."""
    with fastlog.PartitionLog.open(folder / "log-0", durability="os") as log:
        for _ in range(3):
            log.append([b"\2" * 900_000])
        (segment,) = (Path(one.path) for one in log.segments())
    content = bytearray(segment.read_bytes())
    content[100] ^= 1
    segment.write_bytes(content)
    with fastlog.PartitionLog.open(folder / "log-0", durability="os") as log:
        before = oscalls.call_counts()["pread"]
        with pytest.raises(fastlog.CorruptLogError, match="reading can go on at offset 1"):
            log.read(0)
        assert not log.verify().ok
        assert oscalls.call_counts()["pread"] - before < 100
