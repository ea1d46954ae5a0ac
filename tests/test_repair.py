"""Repair that is cut short, by death, a full disk or a power cut, and what a repaired log remembers."""

from __future__ import annotations

import errno
import os
import random
import shutil
import signal
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import fastlog
from fastlog._core import encode_batch
from fastlog._native import oscalls
from fastlog.errors import CorruptLogError, OutOfOrderSequenceError, StorageError
from fastlog.partition import files
from tests.crash.recording import record_run
from tests.crash.replayer import Place, Replayer, choose_disks
from tests.dying import dies_at_change

SMALL: dict[str, Any] = {"segment_bytes": 1000, "max_message_bytes": 900, "index_interval_bytes": 100}


def open_log(path: Path, **options: Any) -> fastlog.PartitionLog:
    return fastlog.PartitionLog.open(path, durability="os", config=fastlog.LogConfig(**SMALL), **options)


def repair(path: Path) -> fastlog.RepairReport:
    return fastlog.PartitionLog.repair(path)


def batches(path: Path) -> dict[int, tuple[Path, Any]]:
    """Every batch of a log, by its base offset, and the file that it lies in."""
    return {one.base_offset: (name, one) for name in sorted(path.glob("*.log")) for one in fastlog.scan_segment(name)}


def damage(path: Path, offset: int) -> None:
    """Flip a bit of the batch that begins at this offset."""
    name, batch = batches(path)[offset]
    position = batch.position + batch.size - 1
    overwrite(name, position, bytes([name.read_bytes()[position] ^ 1]))


def misplace(path: Path, offset: int) -> None:
    """Let the batch that begins at this offset say that it begins at the next one: no checksum covers that."""
    name, batch = batches(path)[offset]
    overwrite(name, batch.position, (offset + 1).to_bytes(8, "big"))


def overwrite(name: Path, position: int, content: bytes) -> None:
    fd = os.open(name, os.O_WRONLY)
    os.pwrite(fd, content, position)
    os.close(fd)


def found_in(path: Path, **options: Any) -> dict[int, bytes]:
    """Every record that can be read, by its offset."""
    found: dict[int, bytes] = {}
    with open_log(path, **options) as log:
        offset = log.start_offset
        while offset < log.end_offset:
            try:
                for record in log.records(offset):
                    found[record.offset] = bytes(record.value or b"")
                break
            except CorruptLogError as error:
                offset = error.next_offset or log.end_offset
    return found


def put_back(path: Path, copy: Path) -> None:
    """The folder stays: another one would be a copy of the log."""
    for file in path.iterdir():
        file.unlink()
    for file in copy.iterdir():
        shutil.copy(file, path)


class Damaged:
    """A log with damage in finished segments and in the last one; ``sound`` is what can be read of it.

    It was closed, or ``closes`` is False: whoever wrote it was killed.
    """

    def __init__(self, path: Path, copy: Path, *, closes: bool = True) -> None:
        self.path, self.copy = path, copy
        pid = os.fork()
        if not pid:
            with open_log(path) as log:
                for number in range(9):
                    log.append([b"%d" % number + bytes(200)])
                log.delete_records(1)
                if not closes:
                    os.kill(os.getpid(), signal.SIGKILL)
            os._exit(0)
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == (0 if closes else -signal.SIGKILL)
        assert [int(name.stem) for name in sorted(path.glob("*.log"))] == [0, 3, 6]
        damage(path, 1)
        misplace(path, 4)
        damage(path, 7)
        self.sound = {number: b"%d" % number + bytes(200) for number in (2, 3, 5, 6, 8)}
        shutil.copytree(self.path, self.copy)

    def check(self, *, opens: bool = True) -> None:
        """Nothing is missing, nothing is where it was not, after an opening and a second repair."""
        for read_only in (True, False) if opens else ():
            assert found_in(self.path, read_only=read_only) == self.sound
        repair(self.path)
        assert found_in(self.path) == self.sound
        with open_log(self.path) as log:
            assert log.verify().ok
            assert (log.start_offset, log.append([b"next"])) == (1, 9)
        assert not list(self.path.glob("*.tmp"))


@pytest.fixture
def damaged(folder: Path) -> Damaged:
    return Damaged(folder / "log-0", folder / "copy")


# --- cut short --------------------------------------------------------------------------------------------------------


def die_everywhere(damaged: Damaged, *, opens: bool) -> None:
    """At every change of the disk in turn, and look at what is left."""
    for nth in range(1, 500):
        died = dies_at_change(nth, lambda: repair(damaged.path))
        damaged.check(opens=opens)
        if not died:
            break
        put_back(damaged.path, damaged.copy)
    assert not died and nth > 20


@pytest.mark.parametrize("closes", [True, False])
def test_I6_a_repair_that_dies_anywhere_keeps_every_sound_batch(folder: Path, closes: bool) -> None:
    """Of a log that was not closed an opening keeps what lies in front of the damage: that is for the repair."""
    die_everywhere(Damaged(folder / "log-0", folder / "copy", closes=closes), opens=closes)


def test_I11_a_repair_that_dies_anywhere_keeps_the_copy_of_a_damaged_meta_file(damaged: Damaged) -> None:
    """It alone knows where the log begins."""
    for where in (damaged.path, damaged.copy):
        (where / files.META).write_bytes(bytes(2 * files.SLOT_BYTES))
    die_everywhere(damaged, opens=True)


@pytest.mark.parametrize(
    ("call", "code"),
    [
        ("open", errno.ENOSPC),
        ("pwrite", errno.ENOSPC),
        ("fdatasync", errno.EIO),
        ("fsync", errno.EIO),
        ("ftruncate", errno.EIO),
        ("rename", errno.ENOSPC),
        ("unlink", errno.EIO),
    ],
)
@pytest.mark.parametrize("sticky", [False, True])
def test_I6_a_repair_in_which_a_call_fails_keeps_every_sound_batch(
    damaged: Damaged, call: str, code: int, sticky: bool
) -> None:
    failed = True
    for nth in range(1, 500):
        oscalls.inject(call, errno=code, nth=nth, sticky=sticky)
        try:
            repair(damaged.path)
        except StorageError:
            pass
        finally:
            failed = oscalls.injected() > 0
            oscalls.clear()
        damaged.check()
        if not failed:
            break
        put_back(damaged.path, damaged.copy)
    assert not failed and nth > 1


# --- power cuts -------------------------------------------------------------------------------------------------------


def test_I5_power_is_lost_while_a_closed_log_is_repaired(folder: Path, library: Path, seed: int) -> None:
    (folder / "root").mkdir()
    damaged = Damaged(folder / "root" / "log-0", folder / "copy")
    program = ["-c", "import sys, fastlog; fastlog.PartitionLog.repair(sys.argv[1])", str(damaged.path)]
    recorded = record_run(library, folder / "root", folder / "trace", program)
    place = Place(folder / "root")
    with place.believed():
        for _, _, disk in choose_disks(Replayer(recorded), 200, random.Random(seed)):
            place.put(disk)
            damaged.check()


def test_I5_what_a_repair_has_kept_survives_a_power_cut(folder: Path, library: Path, seed: int) -> None:
    """Who wrote it had synced nothing, and was killed."""
    (folder / "root").mkdir()
    path = folder / "root" / "log-0"
    program = ["-c", "import sys, tests.test_repair; tests.test_repair.live_and_repair(sys.argv[1])", str(path)]
    replayer = Replayer(record_run(library, folder / "root", folder / "trace", program))
    last = len(replayer.entries)
    place = Place(folder / "root")
    with place.believed():
        for _, _, disk in choose_disks(replayer, 50, random.Random(seed), at_least=last):
            place.put(disk)
            assert found_in(path) == {number: b"%d" % number + bytes(200) for number in (0, 2, 3, 4)}


def live_and_repair(path: str) -> None:
    """Recorded."""
    write_and_end(Path(path), append_five, closes=False)
    damage(Path(path), 1)
    repair(Path(path))


def append_five(log: fastlog.PartitionLog) -> None:
    for number in range(5):
        log.append([b"%d" % number + bytes(200)])


# --- producers --------------------------------------------------------------------------------------------------------


def send(log: fastlog.PartitionLog, sequence: int, producer: int = 5, *, transactional: bool = False) -> int:
    batch = encode_batch(
        [b"%d" % sequence + bytes(100)],
        producer_id=producer,
        producer_epoch=0,
        base_sequence=sequence,
        transactional=transactional,
    )
    return log.append_batch(batch)


def write_and_end(path: Path, write: Callable[[fastlog.PartitionLog], object], *, closes: bool) -> None:
    """In another process, which closes the log or is killed."""
    pid = os.fork()
    if not pid:
        with open_log(path) as log:
            write(log)
            if not closes:
                os.kill(os.getpid(), signal.SIGKILL)
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == (0 if closes else -signal.SIGKILL)


def send_three(log: fastlog.PartitionLog) -> None:
    log.append([b"plain"])
    for sequence in range(3):
        send(log, sequence)


def require_known(path: Path) -> None:
    """Its producer has sent sequence number 2 last, at offset 3."""
    with fastlog.PartitionLog.open(path, durability="os") as log:
        end = log.end_offset
        assert send(log, 2) == 3, "sent before"
        assert log.end_offset == end
        with pytest.raises(OutOfOrderSequenceError):
            send(log, 4)
        assert send(log, 3) == end
        assert log.verify().ok


@pytest.mark.parametrize("closes", [True, False])
@pytest.mark.parametrize("loses", ["a record", "the meta files"])
def test_a_repaired_log_knows_its_producers(folder: Path, closes: bool, loses: str) -> None:
    path = folder / "log-0"
    write_and_end(path, send_three, closes=closes)
    if loses == "a record":
        damage(path, 0)
    else:
        (path / files.META).write_bytes(bytes(2 * files.SLOT_BYTES))
        (path / files.CLEAN).unlink(missing_ok=True)
    repair(path)
    require_known(path)


# --- what a broker reads ----------------------------------------------------------------------------------------------


def placed(values: list[bytes], *, offset: int, epoch: int) -> bytes:
    """A batch as a broker wrote it."""
    batch = bytearray(encode_batch(values))
    struct.pack_into(">q", batch, 0, offset)
    struct.pack_into(">i", batch, 12, epoch)  # no checksum covers the two
    return bytes(batch)


@pytest.fixture
def from_broker(folder: Path) -> Path:
    """A log of ten records that a broker, leader of epochs 5 and 7, has gone on with."""
    path = folder / "log-0"
    with open_log(path) as log:
        for number in range(10):
            log.append([b"%d" % number])
        log.delete_records(1)
    files.write_epochs(str(path), [(0, 0), (5, 10), (7, 12)])
    with (path / f"{0:020}.log").open("ab") as file:
        file.write(placed([b"10"], offset=10, epoch=5))
        file.write(placed([b"11"], offset=11, epoch=5))
        file.write(placed([b"12"], offset=12, epoch=7))
    return path


def test_a_repair_keeps_what_a_broker_has_appended(from_broker: Path) -> None:
    damage(from_broker, 3)
    report = repair(from_broker)
    assert [one.first_offset for one in report.damages] == [3]
    assert found_in(from_broker) == {number: b"%d" % number for number in range(1, 13) if number != 3}
    assert files.read_epochs(str(from_broker)) == [(0, 0), (5, 10), (7, 12)]
    with open_log(from_broker) as log:
        assert (log.start_offset, log.append([b"next"])) == (1, 13)
    assert batches(from_broker)[13][1].leader_epoch == 7


@pytest.mark.parametrize("content", [None, b"0\n1\n0 "])
def test_a_repair_tells_the_epochs_of_what_is_there(from_broker: Path, content: bytes | None) -> None:
    """Neither the list of epochs nor the meta file is left to go by."""
    for name in (files.EPOCHS, files.META, files.CLEAN):
        (from_broker / name).unlink()
    if content is not None:
        (from_broker / files.EPOCHS).write_bytes(content)
    damage(from_broker, 3)
    repair(from_broker)
    assert files.read_epochs(str(from_broker)) == [(0, 0), (5, 10), (7, 12)]
    with fastlog.PartitionLog.open(from_broker) as log:
        assert log.append([b"next"]) == 13
        assert log.verify().ok
    assert batches(from_broker)[13][1].leader_epoch == 7


def test_a_repair_tells_the_epoch_of_a_log_that_has_lost_everything(folder: Path) -> None:
    path = folder / "log-0"
    with open_log(path) as log:
        log.append([b"a", b"b"])
    for name in (files.EPOCHS, f"{0:020}.log"):
        (path / name).unlink()
    repair(path)
    assert files.read_epochs(str(path)) == [(0, 2)]
    with open_log(path) as log:
        assert log.append([b"next"]) == 2


# --- transactions -----------------------------------------------------------------------------------------------------


def abort_two(log: fastlog.PartitionLog) -> None:
    """Offsets 0 and 1 are taken back at 2, offset 3 at 4; 5 is committed at 6."""
    send(log, 0, transactional=True)
    send(log, 1, transactional=True)
    log.end_transaction(5, 0, commit=False)
    send(log, 2, transactional=True)
    log.end_transaction(5, 0, commit=False)
    send(log, 3, transactional=True)
    log.end_transaction(5, 0, commit=True)


def abort_and_go_on(log: fastlog.PartitionLog) -> None:
    """Until two more segments have come."""
    abort_two(log)
    for _ in range(6):
        log.append([bytes(200)])


CLOSED, KILLED, RECOVERED = "closed", "killed", "recovered, then closed"


@pytest.mark.parametrize(
    ("write", "how", "marker"),
    [
        *((abort_two, CLOSED, marker) for marker in (2, 4, 6)),
        *((abort_and_go_on, CLOSED, marker) for marker in (2, 4, 6)),
        *((abort_and_go_on, RECOVERED, marker) for marker in (2, 4, 6)),
        # that the last transaction has ended nobody else may know yet
        *((abort_and_go_on, KILLED, marker) for marker in (2, 4)),
    ],
)
def test_a_repair_remembers_what_a_damaged_marker_said(
    folder: Path, write: Callable[[fastlog.PartitionLog], None], how: str, marker: int
) -> None:
    """Which transactions were taken back is told by the file beside the segment, that they have ended by a snapshot."""
    path = folder / "log-0"
    write_and_end(path, write, closes=how == CLOSED)
    shown = list(found_in(path, read_only=how != RECOVERED))
    assert shown == [5, *range(7, 7 + 6 * (write is abort_and_go_on))]
    if how == RECOVERED:
        # whoever was killed may have died before he wrote them
        for snapshot in sorted(path.glob("*.snapshot"))[:-1]:
            snapshot.unlink()
    damage(path, marker)
    repair(path)
    for read_only in (True, False):
        assert list(found_in(path, read_only=read_only)) == shown
    with open_log(path) as log:
        assert log.verify().ok


def test_a_commit_whose_marker_is_damaged_is_not_taken_back_with_the_next_transaction(folder: Path) -> None:
    """In the log the two are one, which was aborted in the end."""
    path = folder / "log-0"
    with open_log(path) as log:
        for sequence, commits in enumerate((True, False)):
            send(log, sequence, transactional=True)
            log.end_transaction(5, 0, commit=commits)
    damage(path, 1)
    repair(path)
    assert list(found_in(path)) == [0]


def test_a_repair_that_dies_shows_nothing_that_was_taken_back(folder: Path) -> None:
    path = folder / "log-0"
    with open_log(path) as log:
        abort_and_go_on(log)
    shown = list(found_in(path))
    damage(path, 4)
    shutil.copytree(path, folder / "copy")
    died, nth = True, 0
    while died:
        nth += 1
        died = dies_at_change(nth, lambda: repair(path))
        assert set(found_in(path)) <= set(shown)
        repair(path)
        assert list(found_in(path)) == shown
        put_back(path, folder / "copy")
    assert nth > 20


def test_a_last_segment_of_rubbish_is_emptied(folder: Path) -> None:
    path = folder / "log-0"
    write_and_end(path, send_three, closes=False)
    (path / f"{4:020}.log").write_bytes(b"rubbish")
    damage(path, 1)
    repair(path)
    assert list(found_in(path)) == [0, 2, 3]
    with open_log(path) as log:
        assert log.append([b"next"]) == 4


@pytest.mark.parametrize("content", [None, b"rubbish"])
def test_a_repair_goes_by_the_log_where_the_file_of_aborted_transactions_is_lost(
    folder: Path, content: bytes | None
) -> None:
    path = folder / "log-0"
    with open_log(path) as log:
        abort_and_go_on(log)
    index = path / f"{0:020}.txnindex"
    before = index.read_bytes()
    index.unlink()
    if content is not None:
        index.write_bytes(content)
    damage(path, 5)
    repair(path)
    assert index.read_bytes() == before
    assert list(found_in(path)) == list(range(7, 13))
