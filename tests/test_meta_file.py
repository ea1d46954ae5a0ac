"""The file that a log is opened by: empty, damaged, behind a broker's session, in a copy."""

from __future__ import annotations

import os
import shutil
import signal
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest

import fastlog
from fastlog._core import encode_batch
from fastlog._native import oscalls
from fastlog.partition import files
from fastlog.store.directory import Directory
from fastlog.store.files import CLEAN_SHUTDOWN
from tests.dying import dies_at_change
from tests.foreign import write_foreign_log
from tests.reference.batch import Record, make_batch
from tests.reference.batch import encode_batch as encode_reference_batch
from tests.strategies import SOME_TIME

RECORDS = 10
START = 3


def open_log(path: Path, **options: Any) -> Any:
    return fastlog.PartitionLog.open(path, **{"durability": "batch", **options})


def make_log(path: Path, start: int = START) -> Path:
    """A log of ten records, of which the first ``start`` were deleted, closed; all lie in one segment."""
    with open_log(path) as log:
        for number in range(RECORDS):
            log.append([b"%d" % number])
        log.delete_records(start)
    return path


@pytest.fixture
def path(folder: Path) -> Path:
    return make_log(folder / "events-0")


def was_killed(path: Path) -> None:
    """As if nobody had closed it."""
    (path / files.CLEAN).unlink()


def killed_after(work: Callable[[], object]) -> None:
    """Let another process do it, and kill that: it closes nothing."""
    pid = os.fork()
    if not pid:
        try:
            work()
        finally:
            os.kill(os.getpid(), signal.SIGKILL)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == -signal.SIGKILL


def append(path: Path, *values: bytes) -> None:
    log = open_log(path)
    for value in values:
        log.append([value])


def values(log: Any) -> list[bytes]:
    return [record.value for record in log.records()]


def numbers(first: int, end: int = RECORDS) -> list[bytes]:
    return [b"%d" % number for number in range(first, end)]


# --- an empty file ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("read_only", [True, False])
def test_an_empty_meta_file_beside_segments_is_as_good_as_none(
    folder: Path, read_only: bool, caplog: pytest.LogCaptureFixture
) -> None:
    """Who made it died before he wrote to it: nothing was lost with it."""
    path = make_log(folder / "events-0", start=0)
    was_killed(path)
    meta = path / files.META
    meta.write_bytes(b"")
    with open_log(path, read_only=read_only) as log:
        assert values(log) == numbers(0)
        assert log.recovery.scanned_bytes == log.segments()[0].size, "nothing is known of it: all of it is checked"
        assert meta.stat().st_size == (0 if read_only else 2 * files.SLOT_BYTES)
    assert f"{meta} is empty" in caplog.text
    assert "all of the log is checked; it begins at its first segment, or where" in caplog.text
    caplog.clear()
    with open_log(path, read_only=read_only) as log:
        assert values(log) == numbers(0)
    assert ("is empty" in caplog.text) == read_only, "a writer makes it whole"


def test_an_empty_meta_file_beside_a_clean_marker_is_made_from_that(path: Path) -> None:
    (path / files.META).write_bytes(b"")
    for _ in range(2):
        with open_log(path) as log:
            assert (log.start_offset, log.recovery, values(log)) == (START, None, numbers(START))
        assert files.read_meta(str(path)) is not None


def test_an_empty_meta_file_alone_is_a_log_that_was_not_made(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = folder / "events-0"
    path.mkdir()
    (path / files.META).touch()
    with open_log(path) as log:
        assert log.append([b"first"]) == 0
    assert not caplog.text, "nothing was lost, and there is no copy to take it from"


def test_who_adopts_a_log_may_die_or_find_no_room_at_any_step(folder: Path) -> None:
    """Of what a broker has written: its meta file is made, and then written to."""
    records = [Record(number, SOME_TIME, b"k", b"%d" % number) for number in range(3)]
    sizes = set()
    for nth in range(1, 60):
        path = write_foreign_log(folder / f"t-{nth}", [make_batch(records)]).parent
        alive = not dies_at_change(nth, lambda path=path: open_log(path).append([b"ours"]))
        sizes.add(oscalls.file_size(f"{path}/{files.META}"))
        for _ in range(2):
            with open_log(path) as log:
                assert values(log)[:3] == numbers(0, 3), f"after call {nth}"
        if alive:
            break
    assert alive and sizes == {None, 0, files.SLOT_BYTES, 2 * files.SLOT_BYTES}


def test_a_partition_whose_maker_died_has_the_shape_of_its_topic(tmp_path: Path) -> None:
    """What an empty meta file leaves open is what the topic says."""
    with Directory.open(tmp_path / "store", durability="os") as store:
        store.create_topic("a", partitions=1, options={"segment.bytes": 1 << 20})
        made = tmp_path / "store/topics/a-0"
        made.mkdir()
        (made / files.META).touch()
        store.partition_log("a", 0).append([b"x"])
        meta = files.read_meta(str(made))
        assert meta is not None and meta.layout["segment_bytes"] == 1 << 20


def test_a_partition_whose_maker_died_in_its_meta_file_does_not_make_a_stop_unclean(tmp_path: Path) -> None:
    mark = tmp_path / "store/topics" / CLEAN_SHUTDOWN
    with Directory.open(tmp_path / "store", durability="os") as store:
        store.create_topic("a", partitions=2)
        store.partition_log("a", 0).append([b"x"])
    assert mark.exists()
    with Directory.open(tmp_path / "store", durability="os"):
        made = tmp_path / "store/topics/a-1"
        made.mkdir(exist_ok=True)
        (made / files.META).write_bytes(b"half of it")
    assert mark.exists(), "there is no log in it that could be unclean"


# --- both copies damaged ---------------------------------------------------------------------------------------------


def damage(path: Path) -> None:
    """As large as it was: both copies are of no use."""
    (path / files.META).write_bytes(bytes(2 * files.SLOT_BYTES))


def test_a_damaged_meta_file_beside_a_clean_marker_is_whole_before_the_marker_goes(
    path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    damage(path)
    killed_after(partial(append, path, b"10"))
    assert not (path / files.CLEAN).exists()
    with open_log(path) as log:
        assert (log.start_offset, values(log)) == (START, numbers(START, RECORDS + 1))
    damage(path)
    with open_log(path) as log, open_log(path) as company:
        assert (log.start_offset, company.start_offset) == (START, START)
        assert "is lost or damaged: its copy in .fastlog-clean is used" in caplog.text
        assert log.append([b"11"]) == RECORDS + 1
    with open_log(path) as log:
        assert (log.start_offset, values(log)) == (START, numbers(START, RECORDS + 2))


def test_a_damaged_meta_file_without_a_copy_is_refused_and_what_is_lost_with_it_is_told(path: Path) -> None:
    was_killed(path)
    damage(path)
    with pytest.raises(fastlog.CorruptLogError, match="records that were deleted and are still in there come back"):
        open_log(path)
    report = fastlog.PartitionLog.repair(path)
    [lost] = report.damages
    assert (lost.path, lost.size) == (str(path / files.META), 2 * files.SLOT_BYTES)
    assert "the log begins at its first segment, deleted records come back" in lost.reason
    [kept] = report.side_files
    assert Path(kept).read_bytes() == bytes(2 * files.SLOT_BYTES)
    with open_log(path) as log:
        assert values(log) == numbers(0)
        assert log.verify().ok


def test_a_repair_without_a_meta_file_asks_the_log_for_its_producers(folder: Path) -> None:
    """What was taken back stays so, and nothing is stored twice."""
    path = folder / "events-0"
    sent = encode_batch([b"taken back"], producer_id=7, producer_epoch=0, base_sequence=0, transactional=True)
    kept = encode_batch([b"kept"], producer_id=8, producer_epoch=0, base_sequence=0)
    with open_log(path) as log:
        log.append_batch(sent)
        log.end_transaction(7, 0, commit=False)
        assert log.append_batch(kept) == 2
        assert values(log) == [b"kept"]
    was_killed(path)
    damage(path)
    fastlog.PartitionLog.repair(path)
    for _ in range(2):
        with open_log(path) as log:
            assert values(log) == [b"kept"]
            assert log.append_batch(kept) == 2, "which is there already"


def test_who_repairs_a_damaged_meta_file_may_die_at_any_step(folder: Path) -> None:
    for nth in range(1, 60):
        path = make_log(folder / f"events-{nth}")
        damage(path)
        alive = not dies_at_change(nth, lambda path=path: fastlog.PartitionLog.repair(path))
        with open_log(path) as log:
            assert (log.start_offset, values(log)) == (START, numbers(START)), f"after call {nth}"
        if alive:
            break
    assert alive


def test_who_repairs_a_damaged_meta_file_without_a_copy_may_die_at_any_step(folder: Path) -> None:
    """Until the repair is through nobody takes the log for one that a broker has left."""
    outcomes = set()
    for nth in range(1, 60):
        path = make_log(folder / f"events-{nth}")
        was_killed(path)
        damage(path)
        alive = not dies_at_change(nth, lambda path=path: fastlog.PartitionLog.repair(path))
        try:
            open_log(path, read_only=True).close()
        except fastlog.CorruptLogError:
            outcomes.add("refused")
            assert fastlog.PartitionLog.repair(path).damages
        else:
            outcomes.add("repaired")
            assert (path / f"{files.META}.torn-0").exists()
        if alive:
            break
    assert alive and outcomes == {"refused", "repaired"}


# --- behind a broker -------------------------------------------------------------------------------------------------


def broker_was_here(path: Path, epoch: int, start: int, *theirs: bytes) -> None:
    """What a session of a broker leaves: an epoch, the start in both of its checkpoints, records, no word to us."""
    segment = path / f"{0:020}.log"
    last = list(fastlog.scan_segment(segment))[-1].last_offset
    records = [Record(last + 1 + number, SOME_TIME, b"k", value) for number, value in enumerate(theirs)]
    batches = [encode_reference_batch(replace(make_batch([record]), leader_epoch=epoch)) for record in records]
    segment.write_bytes(segment.read_bytes() + b"".join(batches))
    files.write_epochs(str(path), [(0, start), (epoch, last + 1)])
    (path.parent / files.LOG_STARTS).write_text(f"0\n2\n{path.name[:-2]} 0 {start}\nother-1 0 7\n")


@pytest.mark.parametrize("deleted_by", ["us", "the broker"])
@pytest.mark.parametrize("appends", [True, False])
def test_what_was_deleted_stays_so_behind_a_broker_in_every_later_opening(
    path: Path, deleted_by: str, appends: bool
) -> None:
    theirs = [b"10", b"11"] if appends else []
    broker_was_here(path, 5, START if deleted_by == "us" else START + 2, *theirs)
    if deleted_by == "us":
        (path.parent / files.LOG_STARTS).unlink()
    start, end = (START if deleted_by == "us" else START + 2), RECORDS + len(theirs)
    with open_log(path, read_only=True) as log:
        assert (log.start_offset, values(log)) == (start, numbers(start, end))
    killed_after(partial(open_log, path))
    for _ in range(2):
        with open_log(path) as log:
            assert (log.start_offset, values(log)) == (start, numbers(start, end))
    killed_after(partial(append, path, b"%d" % end))
    for _ in range(2):
        with open_log(path) as log:
            assert (log.start_offset, values(log)) == (start, numbers(start, end + 1))
            assert log.verify().ok


def test_who_opens_a_log_behind_a_broker_may_die_at_any_step(folder: Path) -> None:
    for nth in range(1, 60):
        (folder / f"{nth}").mkdir()
        path = make_log(folder / f"{nth}/events-0")
        broker_was_here(path, 5, START + 2, b"10")
        alive = not dies_at_change(nth, lambda path=path: open_log(path).close())
        with open_log(path) as log:
            assert (log.start_offset, values(log)) == (START + 2, numbers(START + 2, RECORDS + 1)), f"after call {nth}"
        if alive:
            break
    assert alive


def test_a_start_that_a_broker_names_beyond_the_end_is_of_another_log(path: Path) -> None:
    """Nothing is hidden, and then deleted, for the word of somebody who had other records."""
    broker_was_here(path, 5, RECORDS + 1)
    for _ in range(2):
        with open_log(path) as log:
            assert (log.start_offset, values(log)) == (START, numbers(START))


def test_a_log_that_lost_its_meta_file_begins_where_the_store_has_told_brokers(tmp_path: Path) -> None:
    """Its records, and those of the partition beside it."""
    with Directory.open(tmp_path / "store", durability="os") as store:
        store.create_topic("a", partitions=2)
        for number in range(2):
            log = store.partition_log("a", number)
            for value in numbers(0):
                log.append([value])
            log.delete_records(START + number)
    for number in range(2):
        path = tmp_path / f"store/topics/a-{number}"
        (path / files.META).write_bytes(b"")
        was_killed(path)
    for _ in range(2):
        with Directory.open(tmp_path / "store", durability="os") as store:
            for number in range(2):
                assert store.partition_log("a", number).start_offset == START + number


def test_a_start_beyond_the_end_is_the_end(path: Path) -> None:
    """Nobody writes such a file; who believed it would show a log that ends before it begins."""
    meta = files.read_meta(str(path))
    assert meta is not None
    meta.start_offset = RECORDS + 989
    files.write_meta(str(path), meta)
    with open_log(path) as log:
        assert (log.start_offset, log.end_offset) == (RECORDS, RECORDS)
        assert log.append([b"10"]) == RECORDS


def test_a_marker_whose_log_begins_behind_its_end_is_none(path: Path) -> None:
    marker = files.read_clean_marker(str(path))
    assert marker is not None
    marker.meta.start_offset = RECORDS + 1
    files.write_clean_marker(str(path), marker)
    assert files.read_clean_marker(str(path)) is None
    with open_log(path) as log:
        assert (log.start_offset, values(log)) == (START, numbers(START))


# --- copies ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def copy(path: Path, folder: Path) -> Path:
    """A plain copy of the closed log: other inodes, other times."""
    return Path(shutil.copytree(path, folder / "copy-0"))


def test_the_copy_of_a_closed_log_is_a_copy_up_to_its_first_opening_only(
    copy: Path, caplog: pytest.LogCaptureFixture
) -> None:
    before = (copy / files.META).read_bytes()
    with open_log(copy, read_only=True) as log:
        assert (log.start_offset, log.recovery) == (START, None)
    assert (copy / files.META).read_bytes() == before, "a reader writes nothing"
    killed_after(partial(append, copy, b"10"))
    with open_log(copy) as log:
        assert (log.start_offset, values(log)) == (START, numbers(START, RECORDS + 1))
        assert log.recovery.recovery_point == RECORDS, "what was durable is known"
        assert log.recovery.scanned_batches == 1
    killed_after(partial(append, copy, b"11"))
    with open_log(copy) as log:
        assert (log.recovery.recovery_point, log.recovery.scanned_batches) == (RECORDS + 1, 1)
    assert "is a copy" not in caplog.text


def test_a_copy_is_on_the_disk_before_its_recovery_point_is_believed(
    copy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Who copied it may not have synced it."""
    synced: list[str] = []

    def noting(name: str, real: Callable[[str], None], path: str) -> None:
        if files.read_meta(str(copy)).inode != oscalls.inode(str(copy)):
            synced.append(f"{name} {path}")
        real(path)

    for name in ("sync_file", "sync_directory", "sync_parents"):
        monkeypatch.setattr(oscalls, name, partial(noting, name, getattr(oscalls, name)))
    open_log(copy).close()
    wanted = {f"sync_file {copy}/{0:020}.log", f"sync_directory {copy}", f"sync_parents {copy}"}
    assert wanted <= set(synced)
    synced.clear()
    open_log(copy).close()
    assert not synced


def test_a_copy_whose_meta_file_is_newer_than_its_segments_goes_by_its_marker(path: Path, copy: Path) -> None:
    """It was made while somebody appended: the marker was copied before it went, the meta file after that."""
    with open_log(path) as log:
        log.append([b"later"])
    shutil.copy(path / files.META, copy)
    killed_after(partial(open_log, copy))
    for _ in range(2):
        was_killed(copy)
        with open_log(copy) as log:
            assert (log.recovery.recovery_point, values(log)) == (RECORDS, numbers(START))


def test_who_first_opens_a_copy_may_die_at_any_step(path: Path, folder: Path) -> None:
    for nth in range(1, 60):
        copy = Path(shutil.copytree(path, folder / f"copy-{nth}"))
        alive = not dies_at_change(nth, lambda copy=copy: append(copy, b"10"))
        with open_log(copy) as log:
            assert log.start_offset == START
            assert values(log)[: RECORDS - START] == numbers(START), f"after call {nth}"
            assert log.recovery is None or log.recovery.recovery_point == RECORDS
        if alive:
            break
    assert alive


@pytest.mark.parametrize("had_broker", [False, True])
def test_a_copy_that_lacks_its_segments_is_refused(copy: Path, had_broker: bool) -> None:
    was_killed(copy)
    if had_broker:
        broker_was_here(copy, 5, START)
    for segment in copy.glob("*.log"):
        segment.unlink()
    for read_only in (True, False):
        with pytest.raises(fastlog.CorruptLogError, match=r"00\.log is missing, but .* were durable"):
            open_log(copy, read_only=read_only)
