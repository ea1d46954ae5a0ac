"""Compaction against its slow model, against Kafka's dump tool, and interrupted at every step."""

from __future__ import annotations

import itertools
import random
import re
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fastlog._native.cleaner import CleaningRound, OffsetMap
from fastlog.errors import CorruptLogError, NotSupportedError, StorageError
from fastlog.partition import compaction
from fastlog.partition.compaction import Source, group, measure
from tests.compacting import Writer, check_indexes, compact_folder, read_segments, sources_of, write_segments
from tests.oracle.kafka import KafkaOracle
from tests.reference.batch import DELETE_HORIZON, TRANSACTIONAL, Batch, Record, encode_batch, make_batch
from tests.reference.compaction import Aborted, Producer, Round, Segment, compact
from tests.strategies import SOME_TIME

DAY = 24 * 3600 * 1000
GAPS = re.compile(r"Non-consecutive offsets in|  \d+ is followed by \d+$")


def some_producers(chance: random.Random, segments: list[Segment]) -> list[Producer]:
    """Some of the producers that wrote to the log, as its state would tell of them."""
    last: dict[int, Producer] = {}
    for batch in (batch for segment in segments for batch in segment.batches):
        if batch.producer_id >= 0:
            before = last.get(batch.producer_id)
            offset = before.last_data_offset if before is not None else None
            if not batch.attributes & 0x20:
                offset = batch.last_offset
            last[batch.producer_id] = Producer(batch.producer_id, batch.producer_epoch, offset)
    return [producer for producer in last.values() if chance.random() < 0.6]


def expected_round(
    segments: list[Segment],
    sources: list[Source],
    *,
    first_dirty: int,
    end: int,
    segment_bytes: int,
    most_keys: int | None,
    **how: object,
) -> Round:
    """What the model makes of it. How segments are grouped is tested apart, so that it may be asked for here."""
    upper_bound: int = how["upper_bound"]  # type: ignore[assignment]
    parts = group(
        [source for source in sources if source.base_offset < end],
        segment_bytes=segment_bytes,
        index_bytes=1 << 20,
        first_uncleanable=upper_bound,
    )
    bases = [[source.base_offset for source in part] for part in parts]
    return compact(segments, first_dirty=first_dirty, groups=bases, most_keys=most_keys, **how)  # type: ignore[arg-type]


@given(st.integers(0, 2**32))
def test_every_round_is_that_of_the_model(tmp_path_factory: pytest.TempPathFactory, drawn: int) -> None:
    """Several rounds over one growing log: batches, headers, indexes and aborted transactions, byte for byte."""
    chance = random.Random(drawn)
    folder = tmp_path_factory.mktemp("log")
    writer = Writer(chance, keys=chance.choice([2, 6, 60]), codecs=chance.choice([(0,), (0, 0, 1, 2, 3, 4)]))
    segments: list[Segment] = []
    first_dirty = 0
    now = SOME_TIME + 10**7
    for _ in range(3):
        new = writer.segments(chance.choice([1, 2, 5]))
        write_segments(folder, new)
        segments += new
        now += chance.choice([0, DAY // 2, DAY, 3 * DAY])
        producers = some_producers(chance, segments)
        segment_bytes = chance.choice([400, 3000, 1 << 20])
        memory = chance.choice([1 << 20, 1 << 20, (1 << 13) + 200])
        sources = sources_of(folder)
        report = compact_folder(
            folder,
            upper_bound=writer.offset,
            first_dirty=first_dirty,
            now=now,
            horizon=now + DAY,
            segment_bytes=segment_bytes,
            aborted=writer.aborted,
            producers=producers,
            memory=memory,
        )
        is_full = report.cleaned_offset < writer.offset
        expected = expected_round(
            segments,
            sources,
            first_dirty=first_dirty,
            end=report.cleaned_offset,
            segment_bytes=segment_bytes,
            most_keys=report.keys if is_full else None,
            upper_bound=writer.offset,
            now=now,
            horizon=now + DAY,
            aborted=writer.aborted,
            producers=producers,
        )
        assert report.cleaned_offset == expected.cleaned_offset > first_dirty or not any(s.batches for s in new)
        assert report.keys == len(expected.latest)
        untouched = [segment for segment in segments if segment.base_offset >= report.cleaned_offset]
        found = read_segments(folder)
        assert found == [*expected.groups, *untouched]
        assert not [path.name for path in folder.iterdir() if path.suffix in (".swap", ".cleaned", ".deleted")]
        before = {segment.base_offset: segment for segment in segments}
        for segment, aborted in zip(expected.groups, expected.aborted, strict=True):
            if segment != before[segment.base_offset]:
                check_indexes(folder, segment, aborted)
                content = (folder / f"{segment.base_offset:020}.log").read_bytes()
                if not any(batch.attributes & 0x07 for batch in segment.batches):
                    assert content == b"".join(map(encode_batch, segment.batches))
        # what a later round knows of aborted transactions is what the indexes still tell
        segments = found
        first_dirty = report.cleaned_offset


@pytest.mark.parametrize("_round", range(4))
def test_I12_kafka_accepts_what_is_compacted(folder: Path, kafka: KafkaOracle, seed: int, _round: int) -> None:
    chance = random.Random(f"{seed} {_round}")
    writer = Writer(chance, keys=30)
    now = SOME_TIME + 10**7
    for number in range(3):
        write_segments(folder, [*writer.segments(2), Segment(writer.offset, tuple(writer.batches(20)))])
        compact_folder(
            folder,
            upper_bound=writer.offset,
            now=now + number * 2 * DAY,
            horizon=now + (number * 2 + 1) * DAY,
            segment_bytes=chance.choice([3000, 1 << 20]),
            aborted=writer.aborted,
        )
        found = read_segments(folder)
        rewritten = {path.stem for path in folder.glob("*.index")}
        paths = [path for path in sorted(folder.iterdir()) if path.stem in rewritten]
        transactions = [path for path in paths if path.suffix == ".txnindex" and path.stat().st_size]
        dumped, problems = kafka.check([path for path in paths if path.suffix != ".txnindex"])
        # gaps are what compaction makes; the tool names them and has nothing against them
        assert [line for line in problems if not GAPS.match(line)] == []
        assert kafka.dump(transactions)[1] == [] if transactions else True
        for segment in found:
            name = str(folder / f"{segment.base_offset:020}.log")
            if name not in dumped:
                continue
            batches = dumped[name]
            assert [int(batch.fields["baseOffset"]) for batch in batches] == [b.base_offset for b in segment.batches]
            assert [int(batch.fields["lastOffset"]) for batch in batches] == [b.last_offset for b in segment.batches]
            assert {batch.fields["isvalid"] for batch in batches} <= {"true"}
            horizons = [batch.fields["deleteHorizonMs"] for batch in batches]
            expected = [
                f"OptionalLong[{b.base_timestamp}]" if b.attributes & DELETE_HORIZON else "OptionalLong.empty"
                for b in segment.batches
            ]
            assert horizons == expected
            shown = [
                Record(record.offset, record.timestamp, record.key, record.value, record.headers)
                for record in kafka.records(name)
            ]
            assert shown == [record for batch in segment.batches for record in batch.records]


def test_tombstones_go_when_their_horizon_has_passed(folder: Path) -> None:
    first = make_batch([Record(0, SOME_TIME, b"a", b"1"), Record(1, SOME_TIME, b"b", b"2")])
    second = make_batch([Record(2, SOME_TIME, b"a", None), Record(3, SOME_TIME + 5, b"c", b"3")])
    last = make_batch([Record(4, SOME_TIME, b"d", b"4")])
    write_segments(folder, [Segment(0, (first, second, last))])

    def offsets() -> list[int]:
        return [record.offset for segment in read_segments(folder) for b in segment.batches for record in b.records]

    compact_folder(folder, upper_bound=5, now=100, horizon=200)
    assert offsets() == [1, 2, 3, 4]
    marked = read_segments(folder)[0].batches[1]
    assert (marked.attributes, marked.base_timestamp, marked.max_timestamp) == (DELETE_HORIZON, 200, SOME_TIME + 5)
    assert [record.timestamp for record in marked.records] == [SOME_TIME, SOME_TIME + 5]
    before = (folder / f"{0:020}.log").read_bytes()
    compact_folder(folder, upper_bound=5, now=199, horizon=10**6)
    assert (folder / f"{0:020}.log").read_bytes() == before
    compact_folder(folder, upper_bound=5, now=200, horizon=10**6)
    assert offsets() == [1, 3, 4]
    # the horizon stays with its batch, though no tombstone is left in it
    assert read_segments(folder)[0].batches[1].attributes == DELETE_HORIZON


def test_a_full_map_ends_the_round_early_and_the_next_goes_on(folder: Path) -> None:
    keys = [b"%05d" % (i % 3000) for i in range(9000)]
    batches = [
        make_batch([Record(i + j, SOME_TIME, keys[i + j], b"v") for j in range(10)]) for i in range(0, len(keys), 10)
    ]
    write_segments(folder, [Segment(i, tuple(batches[i // 10 : i // 10 + 300])) for i in range(0, len(keys), 3000)])
    first_dirty = rounds = 0
    while first_dirty < 9000:
        report = compact_folder(
            folder, upper_bound=9000, first_dirty=first_dirty, now=0, horizon=0, memory=60_000, segment_bytes=1 << 20
        )
        assert report.cleaned_offset > first_dirty
        first_dirty = report.cleaned_offset
        rounds += 1
    assert rounds > 2
    left = [record for segment in read_segments(folder) for batch in segment.batches for record in batch.records]
    assert [record.offset for record in left] == list(range(6000, 9000))


def test_one_key_finds_room_however_long_it_is(folder: Path) -> None:
    records = [Record(i, SOME_TIME, b"%d" % i * 30_000, b"v") for i in range(3)]
    write_segments(folder, [Segment(0, tuple(make_batch([record]) for record in records))])
    report = compact_folder(folder, upper_bound=3, now=0, horizon=0, memory=10_000)
    assert (report.keys, report.cleaned_offset) == (1, 1)


def test_offsets_far_apart(folder: Path) -> None:
    """More offsets than bits have room for: records of the mapped part are looked up like the others."""
    far = 10**9
    batches = [make_batch([Record(offset, SOME_TIME, b"k", b"v")]) for offset in (0, 5, far, far + 1)]
    other = make_batch([Record(far + 2, SOME_TIME, b"other", b"v")])
    write_segments(folder, [Segment(0, (*batches, other))])
    compact_folder(folder, upper_bound=far + 3, now=0, horizon=0, memory=1 << 20)
    assert [batch.base_offset for batch in read_segments(folder)[0].batches] == [far + 1, far + 2]


def test_an_aborted_transaction_without_its_marker_ends_all_the_same(folder: Path) -> None:
    """Its producer goes on: what follows is committed, or belongs to its next aborted transaction."""

    def sent(offset: int) -> Batch:
        batch = make_batch([Record(offset, SOME_TIME, b"%d" % offset, b"v")])
        return replace(batch, attributes=TRANSACTIONAL, producer_id=7, producer_epoch=0, base_sequence=offset)

    last = make_batch([Record(9, SOME_TIME, b"z", b"v")])
    for aborted, kept in (([(0, 1)], [2, 4, 9]), ([(0, 1), (4, 5)], [2, 9]), ([(0, 1), (2, 5)], [9])):
        write_segments(folder, [Segment(0, (sent(0), sent(2), sent(4), last))])
        found = [Aborted(7, *offsets) for offsets in aborted]
        compact_folder(folder, upper_bound=10, now=0, horizon=0, aborted=found)
        assert [batch.base_offset for batch in read_segments(folder)[0].batches] == kept


def test_keys_are_compared_as_a_whole(folder: Path) -> None:
    """Keys that differ in one byte, are prefixes of each other, or empty, stay apart: 4,000 of them."""
    keys = [b"", *(b"k" * n for n in range(1, 2000)), *(b"\0" * n for n in range(1, 2000))]
    batch = make_batch([Record(i, SOME_TIME, key, b"v") for i, key in enumerate(keys)])
    again = make_batch([Record(len(keys) + i, SOME_TIME, key, b"v") for i, key in enumerate(keys[:10])])
    write_segments(folder, [Segment(0, (batch, again))])
    work = CleaningRound(now=0, horizon=0, upper_bound=len(keys) + 10)
    path = str(folder / f"{0:020}.log")
    assert not work.map_segment(path, Path(path).stat().st_size, 0, len(keys) + 10)
    assert work.map.count == len(keys)
    assert [work.map.get(key) for key in keys] == [len(keys) + i if i < 10 else i for i in range(len(keys))]
    assert work.map.get(b"not there") is None
    assert OffsetMap().get(b"") is None


def test_a_segment_that_would_not_change_is_left_alone(folder: Path) -> None:
    batch = make_batch([Record(i, SOME_TIME, b"%d" % i, b"v") for i in range(10)])
    write_segments(folder, [Segment(0, (batch,))])
    inode = (folder / f"{0:020}.log").stat().st_ino
    report = compact_folder(folder, upper_bound=10, now=0, horizon=0)
    assert (report.segments_replaced, report.cleaned_offset) == (0, 10)
    assert (folder / f"{0:020}.log").stat().st_ino == inode
    assert len(list(folder.iterdir())) == 1


def test_a_segment_keeps_the_time_of_its_last_source(folder: Path) -> None:
    """Kafka measures the age of records without timestamps by it."""
    import os

    batch = make_batch([Record(0, -1, b"a", b"v"), Record(1, -1, b"a", b"w")])
    later = make_batch([Record(2, -1, b"b", b"v")])
    write_segments(folder, [Segment(0, (batch,)), Segment(2, (later,))])
    os.utime(folder / f"{2:020}.log", (1000, 1000))
    compact_folder(folder, upper_bound=3, now=0, horizon=0)
    assert [path.stat().st_mtime for path in folder.glob("*.log")] == [1000]


def test_I6_damage_ends_the_round_and_nothing_is_changed(folder: Path, seed: int) -> None:
    chance = random.Random(seed)
    writer = Writer(chance)
    segments = [Segment(0, tuple(writer.batches(12))), Segment(writer.offset, tuple(writer.batches(12)))]
    write_segments(folder, segments)
    which = chance.randrange(2)
    victim = sorted(folder.glob("*.log"))[which]
    content = bytearray(victim.read_bytes())
    starts = list(itertools.accumulate((len(encode_batch(batch)) for batch in segments[which].batches), initial=0))
    assert starts.pop() == len(content)
    # not the base offset, which cannot be told from a gap, and not the leader epoch: no checksum covers them
    uncovered = {start + at for start in starts for at in (*range(8), *range(12, 16))}
    at = chance.choice([place for place in range(len(content)) if place not in uncovered])
    content[at] ^= 1 << chance.randrange(8)
    victim.write_bytes(content)
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    sources = [Source(int(path.stem), path.stat().st_size) for path in sorted(folder.glob("*.log"))]
    with pytest.raises(CorruptLogError) as caught:
        compaction.compact(
            str(folder),
            sources,
            compaction.Dirt(0, writer.offset, 0, 1, True),
            lambda _: pytest.fail("damaged segments were swapped in"),
            segment_bytes=1 << 20,
            index_bytes=1 << 20,
            interval=4096,
            now=0,
            horizon=0,
        )
    assert caught.value.path == str(victim)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before


def test_I13_random_lies_are_refused(folder: Path, seed: int) -> None:
    """Batches whose checksum holds and whose lengths lie: an error, or what the decoder accepts, and never a crash."""
    from tests.reference.batch import fix_crc

    chance = random.Random(seed)
    refused = 0
    for number in range(400):
        batch = make_batch([Record(i, SOME_TIME, b"key", b"value") for i in range(4)])
        content = bytearray(encode_batch(batch))
        for _ in range(chance.choice([1, 1, 3])):
            content[chance.randrange(21, len(content))] = chance.choice([0, 1, 0x7F, 0x80, 0xFF, chance.randrange(256)])
        path = folder / f"{number:020}.log"
        path.write_bytes(fix_crc(bytes(content)))
        work = CleaningRound(now=0, horizon=0, upper_bound=1000)
        try:
            work.map_segment(str(path), path.stat().st_size, 0, 1000)
            work.rewrite(
                [(str(path), path.stat().st_size)], f"{path}.cleaned", base_offset=0, index_bytes=1000, interval=0
            )
        except (CorruptLogError, NotSupportedError, StorageError):
            refused += 1
    assert refused > 100


def test_more_content_than_allowed_ends_the_round(folder: Path) -> None:
    batch = make_batch([Record(i, SOME_TIME, b"k", bytes(10_000)) for i in range(10)])
    write_segments(folder, [Segment(0, (replace(batch, attributes=4),))])
    path = folder / f"{0:020}.log"
    for most, fits in ((90_000, False), (101_000, True)):
        work = CleaningRound(now=0, horizon=0, upper_bound=10, max_decompressed_bytes=most)
        if fits:
            work.map_segment(str(path), path.stat().st_size, 0, 10)
            assert work.map.get(b"k") == 9
        else:
            with pytest.raises(NotSupportedError, match="max_decompressed_bytes"):
                work.map_segment(str(path), path.stat().st_size, 0, 10)


# --- picking ----------------------------------------------------------------------------------------------------------


def dirt_of(sources: list[Source], **changes: object) -> compaction.Dirt:
    how: dict[str, object] = {
        "cleaned_offset": 0, "start_offset": 0, "active_base": 400, "end_offset": 450, "limit": 450, "now": 10_000,
        "min_ratio": 0.5, "min_lag_ms": 0, "max_lag_ms": 2**63 - 1,
    }  # fmt: skip
    return measure(sources, **(how | changes))  # type: ignore[arg-type]


FOUR = [Source(base, 100, max_timestamp=base, first_timestamp=base + 1) for base in (0, 100, 200, 300)]


def test_picking_follows_kafka() -> None:
    assert dirt_of(FOUR) == compaction.Dirt(0, 400, 0, 400, True)
    assert dirt_of(FOUR, cleaned_offset=200) == compaction.Dirt(200, 400, 200, 200, False)  # not more than half
    assert dirt_of(FOUR, cleaned_offset=200, min_ratio=0.49).is_due
    assert dirt_of(FOUR, cleaned_offset=400) == compaction.Dirt(400, 400, 400, 0, False)
    # the segment that an earlier round ended in is clean and dirty
    assert dirt_of(FOUR, cleaned_offset=150) == compaction.Dirt(150, 400, 200, 300, True)
    # out of range: from the start of the log
    assert dirt_of(FOUR, cleaned_offset=451).first_dirty == 0
    assert dirt_of(FOUR, cleaned_offset=50, start_offset=100).first_dirty == 100
    # an open transaction, or records not yet durable, in the third segment
    assert dirt_of(FOUR, limit=250) == compaction.Dirt(0, 200, 0, 200, True)
    assert dirt_of(FOUR, limit=200).first_uncleanable == 200
    # the third is too young
    assert dirt_of(FOUR, min_lag_ms=9_801) == compaction.Dirt(0, 200, 0, 200, True)
    assert dirt_of(FOUR, min_lag_ms=9_800).first_uncleanable == 300
    # old enough to be due, however little there is
    assert not dirt_of(FOUR, cleaned_offset=300, max_lag_ms=9_699).is_due
    assert dirt_of(FOUR, cleaned_offset=300, max_lag_ms=9_698).is_due
    assert not dirt_of([], active_base=0).is_due
    assert not dirt_of(FOUR, limit=0).is_due


def test_grouping_keeps_within_the_limits() -> None:
    def bases(sources: list[Source], **changes: int) -> list[list[int]]:
        how = {"segment_bytes": 1000, "index_bytes": 1000, "first_uncleanable": 400} | changes
        return [[source.base_offset for source in part] for part in group(sources, **how)]

    assert bases(FOUR) == [[0, 100, 200, 300]]
    assert bases(FOUR, segment_bytes=299) == [[0, 100], [200, 300]]
    assert bases(FOUR, segment_bytes=50) == [[0], [100], [200], [300]]
    indexed = [replace(source, index_bytes=60, time_index_bytes=40) for source in FOUR]
    assert bases(indexed, index_bytes=120) == [[0, 100], [200, 300]]
    far = [Source(0, 10), Source(5, 10), Source(2**31 - 10, 10)]
    assert bases(far, first_uncleanable=2**31) == [[0, 5, 2**31 - 10]]
    assert bases(far, first_uncleanable=2**31 + 1) == [[0, 5], [2**31 - 10]]
    # an empty segment has no offset that could be too far away
    assert bases([*far[:2], Source(2**31 - 10, 0)], first_uncleanable=2**40) == [[0, 5, 2**31 - 10]]


def test_transactions_and_sources_in_the_open(folder: Path) -> None:
    """The helper that the other tests stand on sees what was written."""
    writer = Writer(random.Random(1))
    segments = [Segment(0, tuple(writer.batches(5)))]
    write_segments(folder, segments)
    assert read_segments(folder) == segments
    assert isinstance(segments[0].batches[0], Batch)
    assert sources_of(folder)[0].size == sum(len(encode_batch(batch)) for batch in segments[0].batches)
