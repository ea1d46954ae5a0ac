"""Corners of a partition's folder: what others left in it, what recovery puts aside, and moments between two steps."""

from __future__ import annotations

import errno
import os
import struct
from pathlib import Path
from typing import Any

import pytest

import fastlog
from fastlog._core import encode_batch
from fastlog._native import oscalls
from fastlog._native.producers import ProducerStates
from fastlog.errors import ClosedError, ConfigError, StorageError, UnsupportedFormatError
from fastlog.partition import compaction, files, snapshots
from fastlog.partition.compaction import Dirt, Source
from fastlog.store.directory import Directory
from tests.strategies import SOME_TIME

DAY = 86_400_000
SMALL: dict[str, Any] = {"segment_bytes": 1000, "max_message_bytes": 900, "index_interval_bytes": 100}


def open_log(path: Path, *, read_only: bool = False, **config: Any) -> Any:
    return fastlog.PartitionLog.open(
        path, durability="os", read_only=read_only, config=fastlog.LogConfig(**{**SMALL, **config})
    )


@pytest.fixture
def path(folder: Path) -> Path:
    """A log of ten records in one segment, closed."""
    path = folder / "events-0"
    with open_log(path) as log:
        log.append([b"%d" % number for number in range(10)])
    return path


@pytest.fixture
def rolled(folder: Path) -> Path:
    """A log of several segments, closed; a record each."""
    path = folder / "rolled-0"
    with open_log(path) as log:
        for number in range(6):
            log.append([b"%d" % number + bytes(600)])
    return path


def segment(path: Path, base: int) -> Path:
    return path / f"{base:020}.log"


def bases(path: Path) -> list[int]:
    return sorted(int(name.stem) for name in path.glob("*.log"))


def values(path: Path, *, read_only: bool = True) -> list[bytes]:
    with open_log(path, read_only=read_only) as log:
        return [record.value[:1] for record in log.records()]


def was_killed(path: Path) -> None:
    """As if its writer had not closed it."""
    (path / files.CLEAN).unlink()


def placed(values: list[bytes], *, offset: int, epoch: int) -> bytes:
    """A batch as somebody else wrote it."""
    batch = bytearray(encode_batch(values))
    struct.pack_into(">q", batch, 0, offset)
    struct.pack_into(">i", batch, 12, epoch)  # no checksum covers the two
    return bytes(batch)


# --- recovery --------------------------------------------------------------------------------------------------------


def test_a_log_that_a_broker_had_is_checked_as_a_whole_and_keeps_its_start(
    path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with open_log(path) as log:
        log.delete_records(3)
        whole = log.segments()[0].size
    was_killed(path)
    files.write_epochs(str(path), [(0, 0), (5, 10)])
    with segment(path, 0).open("ab") as file:
        file.write(placed([b"theirs"], offset=10, epoch=5))
    with open_log(path) as log:
        assert log.recovery.scanned_bytes > whole, "not from the recovery point on"
        assert (log.start_offset, log.end_offset) == (3, 11)
        assert log.append([b"ours"]) == 11
    assert "was written by a leader of epoch 5: all of it is checked" in caplog.text


def test_an_empty_segment_of_a_roll_that_failed_goes(path: Path) -> None:
    was_killed(path)
    segment(path, 5).touch()
    assert len(values(path)) == 10
    assert bases(path) == [0, 5], "a reader removes nothing"
    assert len(values(path, read_only=False)) == 10
    assert bases(path) == [0]


def test_segments_behind_a_hole_are_put_aside_under_free_names(path: Path, caplog: pytest.LogCaptureFixture) -> None:
    for number in (1, 2):
        was_killed(path)
        stranger = segment(path, 100)
        stranger.write_bytes(placed([b"stranger"], offset=100, epoch=0))
        lone_index = path / f"{200:020}.txnindex"
        lone_index.write_bytes(bytes(34))
        with open_log(path, read_only=True) as log:
            assert log.recovery.moved_aside == (str(stranger),)
            assert log.end_offset == 10
        assert stranger.exists() and lone_index.exists(), "a reader moves nothing"
        with open_log(path) as log:
            target = f"{stranger}.torn-0" + (".2" if number == 2 else "")
            assert log.recovery.moved_aside == (target,)
            assert log.end_offset == 10
        assert not stranger.exists() and not lone_index.exists()
        assert f"moved a segment beyond the end of the log aside: {target}" in caplog.text
    assert sorted(name.name for name in path.glob("*.torn-*")) == [
        f"{stranger.name}.torn-0",
        f"{stranger.name}.torn-0.2",
    ]


def test_a_reader_is_told_what_is_no_log_yet(folder: Path) -> None:
    (folder / "empty-0").mkdir()
    with pytest.raises(StorageError, match="holds no log yet: open it for writing once"):
        open_log(folder / "empty-0", read_only=True)
    (folder / "notes-0").mkdir()
    (folder / "notes-0" / "notes.txt").write_text("x")
    for read_only in (True, False):
        with pytest.raises(UnsupportedFormatError, match=r"is not a log.*'notes\.txt'"):
            open_log(folder / "notes-0", read_only=read_only)
    assert os.listdir(folder / "notes-0") == ["notes.txt"]


def test_a_compaction_of_a_broker_that_was_not_finished_is_not_read(path: Path) -> None:
    for name in path.glob(".fastlog*"):
        name.unlink()
    segment(path, 0).rename(f"{segment(path, 0)}.swap")
    names = sorted(os.listdir(path))
    with pytest.raises(UnsupportedFormatError, match=r"an unfinished compaction \(0{20}\.log\.swap\): open it"):
        open_log(path, read_only=True)
    assert sorted(os.listdir(path)) == names
    assert len(values(path, read_only=False)) == 10


# --- repair and verify -----------------------------------------------------------------------------------------------


def test_repair_of_a_log_whose_first_segment_is_gone_begins_behind_it(rolled: Path) -> None:
    before = bases(rolled)
    segment(rolled, 0).unlink()
    report = fastlog.PartitionLog.repair(rolled)
    assert [(damage.path, damage.first_offset, damage.next_offset) for damage in report.damages] == [
        (str(segment(rolled, before[1])), 0, before[1])
    ]
    with open_log(rolled) as log:
        assert (log.start_offset, log.end_offset) == (before[1], 6)
        assert log.verify().ok


def test_repair_goes_by_the_copy_of_a_damaged_meta_file(rolled: Path) -> None:
    with open_log(rolled) as log:
        log.delete_records(2)
    (rolled / files.META).write_bytes(b"x" * 8192)
    report = fastlog.PartitionLog.repair(rolled)
    assert [Path(name).name for name in report.side_files] == [f"{files.META}.torn-0"]
    with open_log(rolled) as log:
        assert (log.start_offset, log.end_offset) == (2, 6), "the start is in no segment"


def test_verify_tells_how_far_it_is(rolled: Path) -> None:
    told: list[tuple[int, int]] = []
    with open_log(rolled) as log:
        sizes = [one.size for one in log.segments()]
        assert log.verify(progress=lambda done, total: told.append((done, total))).ok
    assert told == [(sum(sizes[: number + 1]), sum(sizes)) for number in range(len(sizes))]


# --- the files beside segments ---------------------------------------------------------------------------------------


def test_a_partition_whose_meta_file_is_newer_has_files(folder: Path) -> None:
    """It is not taken for one that nobody has written to."""
    with Directory.open(folder / "store", durability="os") as store:
        store.create_topic("a")
        where = folder / "store" / "topics" / "a-0"
        where.mkdir()
        assert not store.is_created("a", 0)
        newer = files.sealed({"format": files.FORMAT_VERSION + 1})
        (where / files.META).write_bytes(newer.ljust(files.SLOT_BYTES) * 2)
        assert store.is_created("a", 0)
        with pytest.raises(UnsupportedFormatError, match="upgrade"):
            store.lease("a", 0)


def test_a_meta_file_that_another_thread_closed_is_not_written(folder: Path) -> None:
    meta_file = files.MetaFile(str(folder))
    meta_file.close()
    with pytest.raises(ClosedError, match="was closed by another thread"):
        meta_file.write(files.Meta({}))
    assert (folder / files.META).stat().st_size == 0


def test_gaps_of_many_places_are_joined_from_the_oldest_on() -> None:
    meta = files.Meta({})
    for number in range(files.MOST_GAP_RANGES + 2):
        meta.allow_gaps(10 * number, 10 * number + 1)
    assert len(meta.gap_ranges) == files.MOST_GAP_RANGES
    assert meta.gap_ranges[:2] == [[0, 21], [30, 31]]
    assert meta.allows_gaps(15) and not meta.allows_gaps(25)


def test_options_have_known_names_and_the_nearest_is_told() -> None:
    assert fastlog.LogConfig.from_options({"segment.bytes": 5000}).segment_bytes == 5000
    with pytest.raises(ConfigError, match=r"unknown option 'segment\.byte'; did you mean 'segment_bytes'\?"):
        fastlog.LogConfig.from_options({"segment.byte": 5000})
    with pytest.raises(ConfigError, match="unknown option 'x'.*Known options: segment_bytes, "):
        fastlog.LogConfig.from_options({"x": 5000})


# --- snapshots of producers ------------------------------------------------------------------------------------------


def test_a_snapshot_that_went_meanwhile_is_passed_over(folder: Path) -> None:
    states = ProducerStates()
    snapshots.write_snapshot(str(folder), states)
    names = [f"{0:020}.snapshot", f"{7:020}.snapshot"]
    assert snapshots.load_newest(str(folder), names, 10, states) == 0
    assert snapshots.load_newest(str(folder), names[1:], 10, states) is None


def test_producers_of_files_that_nobody_touched_for_a_day_are_forgotten(folder: Path) -> None:
    def known(path: Path) -> int:
        """How many producers the newest snapshot of the log has."""
        states = ProducerStates()
        assert snapshots.load_newest(str(path), os.listdir(path), 100, states) is not None
        return len(states)

    for number, (idle, expected) in enumerate([(0, 1), (2 * DAY, 0)]):
        path = folder / f"events-{number}"
        with open_log(path, max_message_bytes=1000) as log:
            log.append_batch(
                encode_batch([b"a"], timestamps=SOME_TIME, producer_id=7, producer_epoch=0, base_sequence=0)
            )
            log.append([bytes(880)], timestamps=SOME_TIME)
            assert len(log.segments()) == 2
            seconds = (oscalls.wall_clock() - idle) / 1000
            os.utime(segment(path, 0), (seconds, seconds))
        assert known(path) == expected


# --- compaction ------------------------------------------------------------------------------------------------------


def test_a_compaction_ends_when_its_segments_have_gone_meanwhile(rolled: Path) -> None:
    sources = [Source(base, segment(rolled, base).stat().st_size) for base in bases(rolled)[:-1]]
    before = {name: name.read_bytes() for name in rolled.iterdir()}
    asked: list[int] = []

    def refuse(replacement: compaction.Replacement) -> bool:
        asked.append(replacement.base_offset)
        return False

    report = compaction.compact(
        str(rolled),
        sources,
        Dirt(0, sources[-1].base_offset, 0, 1, True),
        refuse,
        segment_bytes=1500,
        index_bytes=1 << 20,
        interval=100,
        now=0,
        horizon=0,
    )
    assert asked == [0], "the first one was refused, and no other one was made"
    assert (report.segments_replaced, report.cleaned_offset) == (0, 0)
    assert {name: name.read_bytes() for name in rolled.iterdir()} == before


def test_a_reader_passes_over_the_empty_swap_of_a_segment_that_is_there(path: Path) -> None:
    Path(f"{segment(path, 0)}.swap").touch()
    assert compaction.current_segments(str(path)) == {0: str(segment(path, 0))}


def test_a_reader_looks_again_while_segments_are_swapped_but_not_for_ever(path: Path) -> None:
    Path(f"{segment(path, 0)}.swap").write_bytes(segment(path, 0).read_bytes())
    oscalls.inject("open", errno=errno.ENOENT)
    assert compaction.current_segments(str(path)) == {0: f"{segment(path, 0)}.swap"}
    oscalls.clear()
    oscalls.inject("open", errno=errno.ENOENT, sticky=True)
    with pytest.raises(StorageError, match="changed while it was looked at, again and again") as caught:
        compaction.current_segments(str(path))
    oscalls.clear()
    assert caught.value.errno == errno.EAGAIN
    oscalls.inject("open", errno=errno.EACCES)
    with pytest.raises(StorageError) as caught:
        compaction.current_segments(str(path))
    assert caught.value.errno == errno.EACCES
