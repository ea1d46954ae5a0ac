"""I6, I7, I11 (rows 3 to 6 of the failure catalogue): every flipped bit, every cut, every lost or misplaced block.

A small log is damaged in one place at a time, each time in a fresh copy. Acceptable is what ``tests/sweeping.py``
accepts: the same records, an error of fastlog's, or - above the recovery point of a log that was not closed cleanly -
a shorter log whose lost bytes are reported and kept. Never other records, a signal, or a hang.

FASTLOG_FLIPS is the share of the flipped bits that is tried, drawn anew in each run; the nightly one tries them all.
"""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

import fastlog
from tests.folders import MEMORY
from tests.foreign import copy_folder, read_all
from tests.specimens import KINDS, compacted, producers, recovery_point_of, small_log
from tests.strategies import SOME_TIME
from tests.sweeping import Damage, plain

SEGMENT_SUFFIXES = (".log", ".index", ".timeindex")
FLIPS = float(os.environ.get("FASTLOG_FLIPS", "0.25"))
STATE_FILES = (".fastlog-meta", ".fastlog-clean", ".fastlog-indexes", "leader-epoch-checkpoint")


@dataclass
class Pristine:
    """The undamaged folders, and a place where damaged ones are tried: its own, or one where it is a copy."""

    root: Path

    def folder(self, kind: str) -> Path:
        return self.root / ("clean" if kind == "clean" else "crashed")

    def place(self, kind: str) -> Path:
        return self.root / ("elsewhere" if kind == "copied" else "made") / "events-0"


@pytest.fixture(scope="module")
def pristine() -> Iterator[Pristine]:
    """One log, closed cleanly, and copied while it was open; one of its two segments lies below the recovery point."""
    with tempfile.TemporaryDirectory(prefix="fastlog-sweep-", dir=MEMORY) as name:
        made = Pristine(Path(name))
        made.place("copied").mkdir(parents=True)
        log = small_log(made.place("clean"), 11)
        records = [plain(record) for record in log.records()]
        copy_folder(made.place("clean"), made.folder("crashed") / "log")
        log.close()
        copy_folder(made.place("clean"), made.folder("clean") / "log")
        for kind in ("clean", "crashed"):
            recovery_point = recovery_point_of(made.folder(kind) / "log")
            assert 0 < recovery_point <= len(records)
            expected = {"records": records, "durable": recovery_point}
            (made.folder(kind) / "expected.json").write_text(json.dumps(expected))
        assert (made.folder("clean") / "log" / ".fastlog-clean").exists()
        assert not (made.folder("crashed") / "log" / ".fastlog-clean").exists()
        yield made


def sweep(pristine: Pristine, kind: str, damages: list[Damage]) -> dict[str, int]:
    """Run one sweep in a guarded process; return how often each outcome came."""
    assert damages
    order = {
        "pristine": str(pristine.folder(kind)), "place": str(pristine.place(kind)), "kind": kind, "damages": damages,
    }  # fmt: skip
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)}
    result = subprocess.run(
        [sys.executable, "-m", "tests.sweeping"],
        input=json.dumps(order), capture_output=True, text=True, check=False,
        cwd=Path(__file__).parent.parent, env=environment,
    )  # fmt: skip
    assert result.returncode == 0, f"the process died with {result.returncode}:\n{result.stderr[-3000:]}"
    *bad, last = map(json.loads, result.stdout.splitlines())
    print(last["outcomes"])
    assert not bad, "\n".join(map(str, bad))
    assert last["cases"] == len(damages)
    outcomes: dict[str, int] = last["outcomes"]
    return outcomes


def drawn(damages: list[Damage], seed: int) -> list[Damage]:
    """As many of them as FASTLOG_FLIPS says."""
    return random.Random(seed).sample(damages, max(1, int(FLIPS * len(damages))))


def sized_files(folder: Path, *suffixes: str) -> list[tuple[str, int]]:
    files = sorted(file for file in (folder / "log").iterdir() if file.suffix in suffixes or file.name in suffixes)
    return [(file.name, file.stat().st_size) for file in files]


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("suffix", SEGMENT_SUFFIXES)
def test_I6_every_flipped_bit_of_a_segment(pristine: Pristine, kind: str, suffix: str, seed: int) -> None:
    folder = pristine.folder(kind)
    damages = [[name, "flip", bit, 0] for name, size in sized_files(folder, suffix) for bit in range(8 * size)]
    outcomes = sweep(pristine, kind, drawn(damages, seed))
    if suffix != ".log":
        assert set(outcomes) == {"same"}, "an index is only a hint"
    elif kind == "clean":
        assert "cut and reported" not in outcomes


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("suffix", SEGMENT_SUFFIXES)
def test_I6_every_cut_of_a_segment(pristine: Pristine, kind: str, suffix: str) -> None:
    folder = pristine.folder(kind)
    damages = [[name, "cut", at, 0] for name, size in sized_files(folder, suffix) for at in range(size)]
    outcomes = sweep(pristine, kind, damages)
    if suffix != ".log":
        assert set(outcomes) == {"same"}, "an index is only a hint"
    elif kind == "clean":
        assert not {"cut and reported", "same"} & set(outcomes)


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", STATE_FILES)
def test_I11_every_flipped_bit_of_a_state_file(pristine: Pristine, kind: str, name: str, seed: int) -> None:
    folder = pristine.folder(kind)
    files = sized_files(folder, name)
    if kind != "clean" and name == ".fastlog-clean":
        assert not files
        return
    [(_, size)] = files
    content = (folder / "log" / name).read_bytes()
    # padding: one bit a byte is enough
    bits = [bit for bit in range(8 * size) if content[bit // 8] != 0x20 or bit % 64 == 5]
    outcomes = sweep(pristine, kind, drawn([[name, "flip", bit, 0] for bit in bits], seed))
    if name != "leader-epoch-checkpoint":
        assert set(outcomes) == {"same"}, "one of two copies is left, or the file can be done without"


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", STATE_FILES)
def test_I11_every_cut_of_a_state_file(pristine: Pristine, kind: str, name: str) -> None:
    folder = pristine.folder(kind)
    damages = [
        [file, "cut", at, 0]
        for file, size in sized_files(folder, name)
        for at in range(0, size, 1 if size < 2000 else 13)
    ]
    if kind != "clean" and name == ".fastlog-clean":
        assert not damages
        return
    sweep(pristine, kind, damages)


@pytest.mark.parametrize("kind", KINDS)
def test_I6_blocks_zeroed_duplicated_and_swapped(pristine: Pristine, kind: str) -> None:
    folder = pristine.folder(kind)
    damages: list[Damage] = []
    for name, size in sized_files(folder, *SEGMENT_SUFFIXES, *STATE_FILES):
        blocks = range(0, size, 512)
        damages += [[name, "zero", at, min(at + 512, size)] for at in blocks]
        damages += [[name, "zero", at, size] for at in range(0, size, 64)]
        damages += [[name, "duplicate", a, b] for a in blocks for b in blocks if a != b and b + 512 <= size]
        damages += [[name, "swap", a, b] for a in blocks for b in blocks if a < b and b + 512 <= size]
        damages += [[name, "extend", count, byte] for count in (1, 11, 12, 61, 512, 5000) for byte in (0, 2, 0xFF)]
    sweep(pristine, kind, damages)


@pytest.mark.parametrize("kind", KINDS)
def test_I11_each_file_deleted(pristine: Pristine, kind: str) -> None:
    folder = pristine.folder(kind)
    hints = sized_files(folder, ".index", ".timeindex", *STATE_FILES)
    outcomes = sweep(pristine, kind, [[name, "delete", 0, 0] for name, _ in hints])
    assert set(outcomes) == {"same"}, "only the segments are truth"
    first, last = sized_files(folder, ".log")
    outcomes = sweep(pristine, kind, [[first[0], "delete", 0, 0]])
    assert set(outcomes) <= {"read: CorruptLogError", "open: CorruptLogError"}
    outcomes = sweep(pristine, kind, [[last[0], "delete", 0, 0]])
    assert set(outcomes) == {"cut and reported" if kind == "copied" else "open: CorruptLogError"}


def test_I6_damage_is_named_and_the_rest_stays_readable(pristine: Pristine, folder: Path) -> None:
    """Break, prove broken, repair, append, read again."""
    copy_folder(pristine.folder("clean") / "log", folder / "events-0")
    path = folder / "events-0"
    segment = min(path.glob("*.log"))
    infos = list(fastlog.scan_segment(segment))
    victim = infos[2]
    data = bytearray(segment.read_bytes())
    data[victim.position + 70] ^= 0xFF
    segment.write_bytes(data)
    with fastlog.PartitionLog.open(path, durability="os") as log:
        end = log.end_offset
        with pytest.raises(fastlog.CorruptLogError) as caught:
            log.read(victim.base_offset)
        assert caught.value.path == str(segment)
        assert caught.value.position == victim.position
        assert caught.value.first_offset == victim.base_offset
        assert caught.value.next_offset == victim.last_offset + 1
        assert [record.offset for record in log.read(0, max_bytes=1)] == [0, 1]
        rest = [record.offset for record in log.records(start=victim.last_offset + 1)]
        assert rest == list(range(victim.last_offset + 1, end))
        report = log.verify()
        assert [(d.position, d.first_offset, d.next_offset) for d in report.damages] == [
            (victim.position, victim.base_offset, victim.last_offset + 1)
        ]
    assert segment.read_bytes() == bytes(data), "damage is never cut away without being asked"
    repaired = fastlog.PartitionLog.repair(path)
    assert [(damage.position, damage.first_offset) for damage in repaired.damages] == [
        (victim.position, victim.base_offset)
    ]
    kept = b"".join((path / Path(name).name).read_bytes() for name in repaired.side_files)
    assert bytes(data[victim.position : victim.position + victim.size]) in kept
    with fastlog.PartitionLog.open(path, durability="os") as log:
        assert log.verify().ok
        assert log.append([b"after"], timestamps=SOME_TIME) == end
        offsets = [record.offset for record in read_all(log)]
        assert offsets == [o for o in range(end + 1) if not victim.base_offset <= o <= victim.last_offset]
        assert log.verify().ok


def test_I6_an_all_zero_tail_is_the_end(pristine: Pristine, folder: Path) -> None:
    copy_folder(pristine.folder("crashed") / "log", folder / "events-0")
    segment = max((folder / "events-0").glob("*.log"))
    with segment.open("ab") as file:
        file.write(bytes(5000))
    with fastlog.PartitionLog.open(folder / "events-0", durability="os") as log:
        assert log.recovery is not None
        [cut] = log.recovery.cut
        assert (cut.size, cut.side_file) == (5000, None)
        assert log.end_offset == 22
        assert log.verify().ok
    assert not list((folder / "events-0").glob("*.torn-*"))


def test_I11_both_copies_of_the_meta_file_damaged(pristine: Pristine, folder: Path) -> None:
    """Nothing is deleted for want of metadata: the copy in the clean marker serves, else a repair makes it anew."""
    for kind in KINDS:
        path = copy_folder(pristine.folder(kind) / "log", folder / kind / "events-0")
        content = (path / ".fastlog-meta").read_bytes()
        (path / ".fastlog-meta").write_bytes(bytes(len(content)))
        if kind == "clean":
            with fastlog.PartitionLog.open(path, durability="os", read_only=True) as log:
                assert log.end_offset == 22
            (path / ".fastlog-clean").unlink()
        before = {file.name: file.read_bytes() for file in path.glob("*.log")}
        with pytest.raises(fastlog.CorruptLogError, match=r"\.fastlog-meta"):
            fastlog.PartitionLog.open(path, durability="os")
        fastlog.PartitionLog.repair(path)
        with fastlog.PartitionLog.open(path, durability="os") as log:
            assert log.end_offset == 22
            assert log.verify().ok
        assert {file.name: file.read_bytes() for file in path.glob("*.log")} == before


# --- where offsets may skip -------------------------------------------------------------------------------------------


@pytest.fixture
def compacted_log(folder: Path) -> Path:
    """A log whose first two segments were compacted, closed."""
    path = folder / "events-0"
    compacted(path).close()
    assert len(list(path.glob("*.log"))) == 3
    return path


@pytest.mark.parametrize("left", [None, 0, -1])
def test_I6_a_compacted_segment_that_is_missing_or_short_is_noticed(compacted_log: Path, left: int | None) -> None:
    """Its neighbours do not tell: nobody knows how many offsets compaction has left out between them."""
    victim = sorted(compacted_log.glob("*.log"))[1]
    if left is None:
        victim.unlink()
    else:
        os.truncate(victim, list(fastlog.scan_segment(victim))[left].position)
    before = {file.name: file.read_bytes() for file in compacted_log.iterdir()}
    for read_only in (True, False):
        with pytest.raises(fastlog.CorruptLogError, match=victim.name) as caught:
            fastlog.PartitionLog.open(compacted_log, read_only=read_only)
        assert caught.value.path == str(victim)
    assert {file.name: file.read_bytes() for file in compacted_log.iterdir()} == before
    fastlog.PartitionLog.repair(compacted_log)
    with fastlog.PartitionLog.open(compacted_log, durability="os") as log:
        assert list(log.records()) and log.verify().ok


@pytest.mark.parametrize("bit", [0, 16, 33, 41])
def test_I6_an_offset_behind_the_next_segment_is_noticed(compacted_log: Path, bit: int) -> None:
    """A base offset that rises may skip offsets, but not those of the next segment: the rest would be out of sight."""
    first = min(compacted_log.glob("*.log"))
    data = bytearray(first.read_bytes())
    data[bit // 8] ^= 1 << bit % 8
    first.write_bytes(data)
    with fastlog.PartitionLog.open(compacted_log, durability="os") as log:
        with pytest.raises(fastlog.CorruptLogError, match=first.name):
            list(log.records())
        with pytest.raises(fastlog.CorruptLogError, match=first.name):
            list(log.replay())
        with pytest.raises(fastlog.CorruptLogError):
            log.offset_for_time(SOME_TIME - 10_000)
        assert log.verify().damages
        rest = [record.offset for record in log.records(log.segments()[1].base_offset)]
        assert rest and rest == sorted(rest)


@pytest.mark.parametrize("missing", [False, True], ids=["cut", "missing"])
def test_I6_damage_does_not_bring_back_what_was_aborted(folder: Path, missing: bool) -> None:
    """The markers of some transactions are lost with the segment: nobody may take them for committed."""
    path = folder / "events-0"
    log = producers(path)
    visible = {record.offset for record in log.records()}
    victim = next(file for file in sorted(path.glob("*.txnindex")) if file.stem != max(path.glob("*.log")).stem)
    log.close()
    segment = path / f"{victim.stem}.log"
    if missing:
        segment.unlink()
    else:
        os.truncate(segment, list(fastlog.scan_segment(segment))[-1].position)
    with fastlog.PartitionLog.open(path, durability="os") as log:
        found = set()
        with pytest.raises(fastlog.CorruptLogError, match=victim.stem):
            for offset in range(log.end_offset):
                found |= {record.offset for record in log.read(offset, 1)}
        assert found <= visible
    with fastlog.PartitionLog.open(path, durability="os", isolation="read_uncommitted") as log:
        assert next(log.records()).offset == 0
