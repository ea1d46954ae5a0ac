"""What transactions leave behind: markers, the entries of ``.txnindex``, and what a reader has to know of them."""

from __future__ import annotations

import os
import random
import signal
import struct
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest

import fastlog
from fastlog._core import encode_batch as encode_core_batch
from fastlog._native import oscalls
from fastlog._native.transactions import (
    TransactionIndex,
    aborted_ranges,
    check_entries,
    end_transaction_marker,
    pack_entries,
    read_marker,
    unpack_entries,
)
from fastlog.partition import files, recovery, snapshots
from tests.reference import producers as model
from tests.reference.batch import CONTROL, Record, decode_batch, encode_batch, fix_crc, make_batch, seal
from tests.reference.producers import Producers, marker
from tests.test_producers import encoded, names_in, random_log, write_segments

Entry = tuple[int, int, int, int]

# --- markers --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("commit", [True, False])
@pytest.mark.parametrize(("epoch", "coordinator", "timestamp"), [(0, 0, 0), (32767, 2**31 - 1, 2**60), (3, -1, -1)])
def test_a_marker_is_kafkas_to_the_byte(commit: bool, epoch: int, coordinator: int, timestamp: int) -> None:
    batch = end_transaction_marker(2**40, epoch, coordinator, commit, timestamp)
    expected = replace(marker(0, 2**40, epoch, coordinator, commit=commit, timestamp=timestamp), leader_epoch=-1)
    assert batch == encode_batch(expected)
    assert len(batch) == 78
    assert read_marker(batch) == (commit, coordinator)


def control(key: bytes | None, value: bytes | None) -> bytes:
    return encode_batch(replace(marker(5, 7, 0, 3, commit=True), records=(Record(5, 1000, key, value),)))


COMMIT_KEY, VALUE = struct.pack(">hh", 0, 1), struct.pack(">hi", 0, 3)


@pytest.mark.parametrize(
    ("batch", "expected"),
    [
        (control(COMMIT_KEY, VALUE), (True, 3)),
        (control(struct.pack(">hh", 0, 0), VALUE), (False, 3)),
        (control(struct.pack(">hh", 4, 1) + b"more", struct.pack(">hi", 9, 3) + b"more"), (True, 3)),  # newer versions
        (control(struct.pack(">hh", 0, 2), b""), None),  # leader change
        (control(struct.pack(">hh", 0, 6), None), None),
        (control(struct.pack(">hh", 0, -1), None), None),
        (control(struct.pack(">hh", -1, 1), VALUE), "bad"),
        (control(COMMIT_KEY, struct.pack(">hi", -1, 3)), "bad"),
        (control(COMMIT_KEY[:3], VALUE), "bad"),
        (control(None, VALUE), "bad"),
        (control(b"", VALUE), "bad"),
        (control(COMMIT_KEY, None), "bad"),
        (control(COMMIT_KEY, VALUE[:5]), "bad"),
        (encode_batch(replace(marker(5, 7, 0, 3, commit=True), producer_id=-1)), "bad"),
        (encode_batch(replace(marker(5, 7, 0, 3, commit=True), attributes=CONTROL)), "bad"),
        (encode_batch(replace(marker(5, 7, 0, 3, commit=True), attributes=0x10)), "bad"),  # no control batch
        (encode_batch(replace(marker(5, 7, 0, 3, commit=True), attributes=0x34)), "bad"),  # compressed
        (seal(marker(5, 7, 0, 3, commit=True), b"", count=0), None),  # emptied by compaction
    ],
)
def test_what_a_control_batch_says(batch: bytes, expected: object) -> None:
    if expected == "bad":
        with pytest.raises(fastlog.CorruptRecordError):
            read_marker(batch)
    else:
        assert read_marker(batch) == expected


def test_I13_every_flipped_bit_of_a_marker_is_judged() -> None:
    """The CRC is made right again: every answer is a whole one, or a CorruptRecordError."""
    batch = end_transaction_marker(7, 0, 3, True, 1000)
    outcomes = []
    for at in range(8 * len(batch)):
        changed = bytearray(batch)
        changed[at // 8] ^= 1 << at % 8
        try:
            outcomes.append(read_marker(fix_crc(bytes(changed))))
        except fastlog.CorruptRecordError:
            outcomes.append("refused")
    assert {outcome for outcome in outcomes if isinstance(outcome, tuple)} >= {(True, 3), (False, 3), (True, 2)}
    assert outcomes.count("refused") > 100
    for size in range(len(batch)):
        with pytest.raises(fastlog.CorruptRecordError):
            read_marker(batch[:size])


# --- entries --------------------------------------------------------------------------------------------------------

ENTRIES: list[Entry] = [(7, 100, 110, 105), (8, 105, 111, 112), (2**62, 120, 130, 131)]


def test_an_entry_is_kafkas_to_the_byte() -> None:
    assert pack_entries(ENTRIES) == model.pack_transactions(ENTRIES)
    assert unpack_entries(pack_entries(ENTRIES)) == ENTRIES
    assert len(pack_entries(ENTRIES)) == 3 * 34
    assert pack_entries([]) == b""


@pytest.mark.parametrize(
    ("index", "field", "value", "reason"),
    [
        (0, 0, -1, "producer id"), (0, 1, -1, "begins at"), (0, 1, 110, "begins at"), (0, 2, 99, "ends at"),
        (1, 2, 110, "ends at"), (2, 2, 111, "ends at"), (2, 2, 140, "ends at"), (0, 3, -1, "last stable"),
        (0, 3, 112, "last stable"),
    ],
)  # fmt: skip
def test_entries_that_nobody_writes_are_refused(index: int, field: int, value: int, reason: str) -> None:
    assert check_entries(pack_entries(ENTRIES), 100, 140) is None
    entries = [list(entry) for entry in ENTRIES]
    entries[index][field] = value
    problem = check_entries(model.pack_transactions(tuple(entry) for entry in entries), 100, 140)  # type: ignore[misc]
    assert problem is not None
    assert reason in problem
    assert f"entry {index}" in problem


def test_every_cut_and_every_wrong_version_is_noticed() -> None:
    content = pack_entries(ENTRIES)
    for size in range(len(content)):
        assert (check_entries(content[:size], 100, 140) is None) == (size % 34 == 0)
    for at in (0, 1, 34, 35, 68, 69):
        for bit in range(8):
            changed = bytearray(content)
            changed[at] ^= 1 << bit
            problem = check_entries(bytes(changed), 100, 140)
            assert problem is not None
            assert "version" in problem


def relevant(entries: list[Entry], first: int, end: int) -> set[tuple[int, int, int]]:
    return {entry[:3] for entry in entries if entry[2] >= first and entry[1] < end}


@pytest.mark.parametrize("_round", range(20))
def test_a_reader_learns_of_every_aborted_transaction_it_may_meet(seed: int, _round: int) -> None:
    chance = random.Random(f"{seed} {_round}")
    log = Producers(random_log(chance, 40))
    entries: list[Entry] = log.aborted()
    bases = sorted({0, *(batch.base_offset for batch in chance.sample(log.batches, 4))})
    stable = log.last_stable_offset()
    for first in range(stable):
        for end in (first + 1, min(first + 5, stable), stable):
            behind = [base for base in bases if base > first]
            starts = [max(base for base in bases if base <= first), *behind]
            segments = [
                pack_entries([e for e in entries if base <= e[2] < after])
                for base, after in zip(starts, [*starts[1:], 2**62], strict=True)
            ]
            found = aborted_ranges(segments, first, end)
            assert relevant(entries, first, end) == set(found)
            assert found == sorted(found, key=lambda entry: entry[1])


def test_later_segments_are_not_asked_without_need() -> None:
    """An entry with a stable offset at or behind the end of the range says that no later one can matter."""
    later = pack_entries([(9, 90, 200, 201)])
    assert aborted_ranges([pack_entries([(7, 100, 110, 111)]), later], 100, 111) == [(7, 100, 110)]
    assert aborted_ranges([pack_entries([(7, 100, 110, 90)]), later], 100, 111) == [(9, 90, 200), (7, 100, 110)]
    assert aborted_ranges([b"", b"", later], 100, 111) == [(9, 90, 200)]
    assert aborted_ranges([], 0, 10) == []


# --- the file -------------------------------------------------------------------------------------------------------


def test_the_file_is_made_by_its_first_entry(folder: Path) -> None:
    path = folder / f"{100:020d}.txnindex"
    index = TransactionIndex(str(path), 100)
    assert index.entries(0) == b""
    assert not path.exists()
    count = index.write(0, pack_entries(ENTRIES[:1]))
    count = index.write(count, pack_entries(ENTRIES[1:]))
    assert count == 3
    assert path.read_bytes() == pack_entries(ENTRIES)
    assert [unpack_entries(index.entries(i)) for i in range(4)] == [ENTRIES[:i] for i in range(4)]
    assert [index.count_below(index.entries(3), offset) for offset in (0, 110, 111, 112, 130, 131)] == [
        0,
        0,
        1,
        2,
        2,
        3,
    ]


def test_another_handle_sees_what_was_published(folder: Path) -> None:
    path = str(folder / f"{100:020d}.txnindex")
    writer, reader = TransactionIndex(path, 100), TransactionIndex(path, 100)
    writer.write(0, pack_entries(ENTRIES[:1]))
    assert unpack_entries(reader.entries(1)) == ENTRIES[:1]
    writer.write(1, pack_entries(ENTRIES[1:2]))
    # the writer dies, and another writes something else in that place: it was never published
    other = TransactionIndex(path, 100)
    other.write(1, pack_entries(ENTRIES[2:]))
    assert unpack_entries(reader.entries(2)) == [ENTRIES[0], ENTRIES[2]]
    assert unpack_entries(reader.entries(1)) == ENTRIES[:1]


def test_cutting_and_replacing(folder: Path) -> None:
    path = folder / f"{100:020d}.txnindex"
    index = TransactionIndex(str(path), 100)
    index.write(0, pack_entries(ENTRIES))
    index.truncate(2)
    assert path.read_bytes() == pack_entries(ENTRIES[:2])
    index.truncate(2)
    index.truncate(0)
    assert not path.exists()
    index.truncate(0)
    assert index.replace(pack_entries(ENTRIES)) == 3
    assert path.read_bytes() == pack_entries(ENTRIES)
    assert index.replace(b"") == 0
    assert not path.exists()
    assert names_in(folder) == []


def test_a_missing_entry_is_an_error_and_never_silence(folder: Path) -> None:
    path = folder / f"{100:020d}.txnindex"
    TransactionIndex(str(path), 100).write(0, pack_entries(ENTRIES))
    path.write_bytes(pack_entries(ENTRIES)[:-1])
    with pytest.raises(fastlog.CorruptRecordError, match="101 bytes where 3 aborted transactions need 102") as caught:
        TransactionIndex(str(path), 100).entries(3)
    assert caught.value.path == str(path)
    path.unlink()
    with pytest.raises(fastlog.CorruptRecordError):
        TransactionIndex(str(path), 100).entries(1)


@pytest.mark.parametrize("call", ["open", "pwrite", "fstat"])
def test_a_failed_write_changes_nothing_that_counts(folder: Path, call: str) -> None:
    path = folder / f"{100:020d}.txnindex"
    index = TransactionIndex(str(path), 100)
    index.write(0, pack_entries(ENTRIES[:1]))
    fresh = TransactionIndex(str(path), 100)
    oscalls.inject(call, errno=28, sticky=True)
    with pytest.raises(fastlog.StorageFullError):
        fresh.write(1, pack_entries(ENTRIES[1:]))
    oscalls.clear()
    assert unpack_entries(fresh.entries(1)) == ENTRIES[:1]
    assert fresh.write(1, pack_entries(ENTRIES[1:])) == 3
    assert unpack_entries(fresh.entries(3)) == ENTRIES


def test_every_flipped_bit_of_an_index_is_found_by_its_check_or_by_the_log(folder: Path, seed: int) -> None:
    """There is no checksum in the file: what cannot be right is refused, the rest differs from what the log tells."""
    chance = random.Random(seed)
    log = Producers(random_log(chance, 60))
    while len(log.aborted()) < 2:
        log = Producers(random_log(chance, 60))
    [(base, size)] = write_segments(folder, log.batches, len(log.batches))
    entries = pack_entries(log.aborted())
    told = snapshots.rebuild(str(folder), names_in(folder), [(base, size)], log.end_offset).transactions[0]
    assert told == entries
    refused, count = 0, min(len(entries) // 34, 4)
    index = folder / f"{0:020d}.txnindex"
    for at in range(8 * 34 * count):
        changed = bytearray(entries)
        changed[at // 8] ^= 1 << at % 8
        index.write_bytes(changed)
        found = snapshots.read_transaction_index(str(folder / f"{0:020d}.log"), 0, log.end_offset)
        assert found != told
        refused += found is None
    # versions, signs, offsets beyond the log: most of the bits
    assert refused > 8 * 34 * count // 2
    index.unlink()
    assert snapshots.read_transaction_index(str(folder / f"{0:020d}.log"), 0, log.end_offset) == b""


def test_markers_that_were_built_here_end_transactions(folder: Path) -> None:
    batches = [model.data_batch(0, 3, 7, 2, 0, transactional=True)]
    segment = folder / f"{0:020d}.log"
    stamped = struct.pack(">q", 3) + end_transaction_marker(7, 2, 5, False, 1000)[8:]
    segment.write_bytes(encoded(batches) + stamped)
    rebuilt = snapshots.rebuild(str(folder), names_in(folder), [(0, segment.stat().st_size)], 4)
    assert unpack_entries(rebuilt.transactions[0]) == [(7, 0, 3, 4)]
    assert decode_batch(stamped)[0].base_offset == 3


def test_ctrl_c_while_a_marker_is_indexed_shows_nothing_that_is_aborted(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The marker is not written then, and the interrupt is raised behind the append."""

    def interrupted(_path: str) -> str:
        raise KeyboardInterrupt

    with fastlog.PartitionLog.open(folder / "log", durability="os") as log:
        batch = encode_core_batch([b"x"], producer_id=7, producer_epoch=0, base_sequence=0, transactional=True)
        log.append_batch(batch)
        with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
            patch.setattr(files, "transaction_index_path", interrupted)
            with pytest.raises(fastlog.StorageError):
                log.end_transaction(7, 0, commit=False)
            time.sleep(10)
        assert log.end_offset == 1 and len(log.open_transactions()) == 1
        assert log.end_transaction(7, 0, commit=False) == 1
        assert list(log.records()) == [] and log.last_stable_offset == 2


def test_nobody_vouches_for_an_index_that_has_grown_since_opening(folder: Path) -> None:
    """A segment is opened with nothing aborted in it, gets an aborted transaction and is closed: power loss may leave
    its index empty, and what opening said of that must not make it believed."""
    path = folder / "log-0"
    config = fastlog.LogConfig(segment_bytes=2000, max_message_bytes=1500)
    now = int(time.time() * 1000)
    batch = encode_batch(model.data_batch(0, 3, 7, 0, 0, transactional=True, timestamp=now))
    with fastlog.PartitionLog.open(path, config=config) as log:
        log.append_batch(batch)
    pid = os.fork()
    if pid == 0:
        log = fastlog.PartitionLog.open(path)
        log.end_transaction(7, 0, commit=False)
        for _ in range(6):
            log.append([b"x" * 900])
        # the background has said what it knows of the closed segment
        while 0 not in files.read_index_checksums(str(path)):
            time.sleep(0.01)
        os._exit(0)
    assert os.waitpid(pid, 0)[1] == 0
    index = path / f"{0:020}.txnindex"
    assert index.stat().st_size == 34
    index.write_bytes(b"")
    with fastlog.PartitionLog.open(path, read_only=True) as log:
        assert [record.value for record in log.records()] == [b"x" * 900] * 6


def batch_of(producer_id: int, sequence: int, value: bytes, offset: int = 0) -> bytes:
    """One record of an idempotent producer, encoded."""
    moment = int(time.time() * 1000)
    plain = make_batch([Record(offset, moment, None, value)])
    return encode_batch(replace(plain, producer_id=producer_id, producer_epoch=0, base_sequence=sequence))


def test_I6_a_snapshot_beyond_the_end_is_not_believed_later(folder: Path) -> None:
    """It tells of records that were cut. Other records take their offsets: it must be gone by then."""
    path = folder / "events-0"
    with fastlog.PartitionLog.open(path, durability="os") as log:
        for sequence in range(3):
            log.append_batch(batch_of(7, sequence, b"kept"))
    beyond = snapshots.rebuild(str(path), os.listdir(path), [(0, (path / f"{0:020}.log").stat().st_size)], 3).states
    beyond.append(batch_of(7, 3, b"cut", offset=3))
    assert beyond.end_offset == 4
    snapshots.write_snapshot(str(path), beyond)
    (path / ".fastlog-clean").unlink()
    with fastlog.PartitionLog.open(path, durability="os") as log:
        assert not (path / f"{4:020}.snapshot").exists()
        # with the stale state this would be taken for a repetition
        assert log.append_batch(batch_of(7, 3, b"new")) == 3
        assert log.append_batch(batch_of(7, 3, b"new")) == 3
        assert [record.value for record in log.records()] == [b"kept", b"kept", b"kept", b"new"]


def test_a_segment_moved_aside_leaves_no_index_for_its_successor(folder: Path) -> None:
    """A segment made anew at the same offset would be believed to have aborted transactions."""
    path = Path(files.segment_path(str(folder), 7))
    for beside in (path, *map(Path, files.segment_files(str(path)))):
        beside.write_bytes(b"x")
    findings = recovery._Findings()
    recovery.move_aside([7], str(folder), findings, read_only=False)
    assert [entry.name for entry in folder.iterdir()] == [f"{path.name}.torn-0"]
    assert findings.moved_aside == [str(folder / f"{path.name}.torn-0")]


# --- deaths in a row ------------------------------------------------------------------------------------------------

DIE_OPEN = """
import os, signal, sys
import fastlog
from fastlog._core import encode_batch
log = fastlog.PartitionLog.open(sys.argv[1], durability="os")
if sys.argv[2] == "writes":
    first = dict(producer_epoch=0, base_sequence=0, transactional=True)
    log.append_batch(encode_batch([b"taken back"], producer_id=1 << 40, **first))
    log.end_transaction(1 << 40, 0, commit=False)
    log.append_batch(encode_batch([b"open"], producer_id=1 << 41, **first))
os.kill(os.getpid(), signal.SIGKILL)
"""


def test_a_second_death_does_not_make_recovery_forget_transactions(folder: Path) -> None:
    """The recovery after the first one moves the recovery point behind all batches: the next one does not see them."""
    path = folder / "events-0"
    for does in ("writes", "nothing", "nothing"):
        died = subprocess.run([sys.executable, "-c", DIE_OPEN, str(path), does], check=False)
        assert died.returncode == -signal.SIGKILL
    with fastlog.PartitionLog.open(path, durability="os") as log:
        assert log.read(0).values.to_list() == []
        assert [found.producer_id for found in log.open_transactions()] == [1 << 41]
        # and a batch that is sent again is known
        again = encode_core_batch([b"open"], producer_id=1 << 41, producer_epoch=0, base_sequence=0, transactional=True)
        assert log.append_batch(again) == 2
        assert log.end_offset == 3
