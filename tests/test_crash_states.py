"""I5, I4, I6 (row 2 of the failure catalogue): every disk that a power cut may leave, at any moment of a log's life.

Workloads run under a recorder of system calls; a replayer makes disks from the record by the rules of what a sync keeps
(``tests/crash``), and each one is opened, read-only and for writing, compared with what was promised by then, and used
again. Nothing is mounted and no root is needed: Linux, glibc and a C compiler.

FASTLOG_DISKS is the number of disks of a whole run. A failure names its seed and a folder in which the disk is kept;
``python -m tests.crash <folder>`` makes it again and checks it.
"""

from __future__ import annotations

import dataclasses
import os
import random
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from fastlog._native import oscalls
from fastlog.partition import compaction
from tests.crash.checker import History, Promise, quiet
from tests.crash.failures import history_of
from tests.crash.recording import Entry, Kind, Record, record_run
from tests.crash.replayer import Place, Replayer, all_losses, choose_disks
from tests.crash.running import Run, record, record_again
from tests.crash.workloads import ALONE, SHARED

DISKS = int(os.environ.get("FASTLOG_DISKS", "5700"))
TWICE = ["retention", "compaction", "transactions", "compaction_deaths"]  # of these there are twice as many disks
RECOVERIES = 6  # disks on which the recovery itself is recorded
SHARE = DISKS // (len(ALONE) + len(SHARED) + len(TWICE) + 1) + 1
BITES = 1500  # disks in which a planted bug has to be seen
MOST_RECORDS = 5  # of which it has to be seen in one


def make_folder(path: Path) -> Path:
    path.mkdir()
    return path


# --- the promises -----------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.timeout(3000)
@pytest.mark.parametrize("name", [*ALONE, *SHARED])
def test_I5_every_disk_keeps_what_was_promised(library: Path, folder: Path, name: str, seed: int) -> None:
    run = record(library, folder, name, seed)
    with quiet():
        share = SHARE * 2 if name in TWICE else SHARE
        checked = run.check_disks(share, random.Random(seed))
    print(f"{name}: {checked} disks from {len(run.recorded.entries)} entries")
    # some lives are so short that there are no more disks that differ
    assert checked >= min(share, 3000) * 7 // 10


@pytest.mark.slow
@pytest.mark.timeout(3000)
def test_I5_power_may_be_lost_again_while_recovering(library: Path, folder: Path, seed: int) -> None:
    """Disks that a power cut left are opened under the recorder: each recovery is cut off in turn."""
    chance = random.Random(seed)
    first = record(library, folder, "lazy_appends", seed)
    replayer = Replayer(first.recorded)
    checked = 0
    for _ in range(RECOVERIES):
        # one with something to recover: several operations were lost, or torn
        disks = choose_disks(replayer, 200, chance, at_least=len(first.recorded.entries) // 3)
        at, _, disk = max(disks, key=lambda found: len(found[1]) * chance.random())
        first.place.put(disk)
        second = record_again(library, first.place, "recovery", chance.randrange(1000), folder / "trace")
        promise = first.history.promise(at)
        second.history = History(
            second.recorded, second.seed, first.history, Promise(promise.end, promise.starts | {0}, 0)
        )
        with quiet():
            checked += second.check_disks(SHARE // RECOVERIES + 1, chance)
    print(f"{checked} disks from {RECOVERIES} recoveries")


# --- the harness bites ------------------------------------------------------------------------------------------------


def without_syncs(recorded: Record, forgotten: Callable[[Entry], bool]) -> Record:
    """The record of an engine that does not make these syncs."""
    kept = [entry for entry in recorded.entries if not (entry.kind == Kind.SYNC_END and forgotten(entry))]
    return dataclasses.replace(recorded, entries=kept)


def acknowledged_early(recorded: Record) -> Record:
    """The record of an engine that acknowledges before it syncs: right after the write."""
    entries: list[Entry] = []
    waiting: list[Entry] = []
    for entry in recorded.entries:
        if entry.kind == Kind.SYNC_BEGIN and not entry.is_directory and waiting:
            # up to here the append has written; its acknowledgement follows somewhere behind
            acks = [later for later in waiting if later.number > entry.number]
            if acks:
                entries.append(acks[0])
                waiting.remove(acks[0])
        if entry.kind == Kind.MARK and b'"ack"' in entry.data:
            if entry not in waiting:
                continue
            waiting.remove(entry)
        entries.append(entry)
        if entry.kind == Kind.MARK and b'"try"' in entry.data:
            following = recorded.entries[entry.number + 1 :]
            waiting.append(next(later for later in following if later.kind == Kind.MARK and b'"ack"' in later.data))
    return dataclasses.replace(recorded, entries=entries)


def acknowledged_by_a_sync_under_way(recorded: Record) -> Record:
    """The record of an engine whose writers believe a sync that began before they wrote."""
    begins: dict[int, int] = {}  # thread -> where the append under way was written
    early: dict[int, list[Entry]] = {}  # a sync's end -> acknowledgements that follow it at once
    ends: list[Entry] = []
    for entry in recorded.entries:
        if entry.kind == Kind.WRITE and entry.path.endswith(".log"):
            begins[entry.thread] = entry.number
        elif entry.kind == Kind.SYNC_END and entry.path.endswith(".log"):
            ends.append(entry)
        elif entry.kind == Kind.MARK and b'"ack"' in entry.data:
            written = begins[entry.thread]
            for end in ends:
                if end.position < written < end.number:
                    early.setdefault(end.number, []).append(entry)
                    break
    moved = {entry.number for entries in early.values() for entry in entries}
    kept: list[Entry] = []
    for entry in recorded.entries:
        if entry.number not in moved:
            kept += [entry, *early.get(entry.number, [])]
    return dataclasses.replace(recorded, entries=kept)


def without_syncs_before(recorded: Record, mark: bytes, suffix: str) -> Record:
    """The record of an engine that leaves out syncs of some files in what ends with a mark."""
    following = b""
    forgotten: set[int] = set()
    for entry in reversed(recorded.entries):
        if entry.kind == Kind.MARK:
            following = entry.data
        elif mark in following and entry.path.endswith(suffix):
            forgotten.add(entry.number)
    return without_syncs(recorded, lambda entry: entry.number in forgotten)


def swapped_without_sync(recorded: Record) -> Record:
    """The record of an engine that removes ``.swap`` names while the move of what they stand for may be forgotten."""
    following = ""
    forgotten: set[int] = set()
    for entry in reversed(recorded.entries):
        if entry.kind == Kind.SYNC_END and entry.is_directory and following.endswith(".log.swap"):
            forgotten.add(entry.number)
        elif entry.kind not in (Kind.SYNC_BEGIN, Kind.MARK, Kind.PAGE):
            following = entry.path if entry.kind == Kind.UNLINK else ""
    return without_syncs(recorded, lambda entry: entry.number in forgotten)


PLANTED: dict[str, tuple[str, Callable[[Record], Record]]] = {
    "no fdatasync of segments": (
        "durable_appends",
        lambda recorded: without_syncs(recorded, lambda entry: entry.path.endswith(".log")),
    ),
    "no sync of the directory": (
        "durable_appends",
        lambda recorded: without_syncs(recorded, lambda entry: entry.is_directory and entry.path != ""),
    ),
    "no sync of a new segment's name": (
        "durable_appends",
        lambda recorded: without_syncs(recorded, lambda entry: entry.is_directory and entry.number > 60),
    ),
    "no sync between the two copies of the meta file": (
        "clean_closes",
        lambda recorded: without_syncs(recorded, lambda entry: entry.path.endswith(".fastlog-meta")),
    ),
    "acknowledged before the sync": ("durable_appends", acknowledged_early),
    "acknowledged by a sync under way": ("group_threads", acknowledged_by_a_sync_under_way),
    "shared appends without a sync": (
        "group_processes",
        lambda recorded: without_syncs(recorded, lambda entry: entry.path.endswith(".log")),
    ),
    "a new page without a sync of what was recovered": (
        "group_deaths",
        lambda recorded: without_syncs_before(recorded, b'"durable"', ".log"),
    ),
    "a flush without a sync": (
        "lazy_appends",
        lambda recorded: without_syncs_before(recorded, b'"durable"', ".log"),
    ),
    "a close without a sync": (
        "clean_closes",
        lambda recorded: without_syncs_before(recorded, b'"durable"', ".log"),
    ),
    "a recovery without a sync": ("deaths", lambda recorded: without_syncs_before(recorded, b'"durable"', ".log")),
    "files deleted before the start is synced": (
        "deletions",
        lambda recorded: without_syncs_before(recorded, b'"deleted"', ".fastlog-meta"),
    ),
    "expired files deleted before the start is synced": (
        "retention",
        lambda recorded: without_syncs(recorded, lambda entry: entry.path.endswith(".fastlog-meta")),
    ),
    "a swap without a sync of the directory": ("compaction", swapped_without_sync),
    "a compacted segment without a sync": (
        "compaction",
        lambda recorded: without_syncs(recorded, lambda entry: entry.path.endswith(".cleaned")),
    ),
    "transactions without a sync": (
        "transactions",
        lambda recorded: without_syncs_before(recorded, b'"ack"', ".log"),
    ),
}

# bugs of what opens a disk: workload, module, name, what takes its place
PLANTED_IN_OPENING: dict[str, tuple[str, object, str, Callable[..., object]]] = {
    "a writer does not finish swaps": ("compaction", compaction, "finish_swaps", lambda *_: []),
}


@pytest.mark.slow
@pytest.mark.parametrize("bug", PLANTED)
def test_a_planted_bug_is_seen(
    library: Path, folder: Path, bug: str, seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A record from which syncs are left out is that of an engine without them: it has to fail."""
    monkeypatch.setenv("FASTLOG_FAILURES", str(folder / "failures"))
    name, plant = PLANTED[bug]
    # what happens to lie between two syncs differs: now and then a record has nothing to lose there
    for attempt in range(MOST_RECORDS):
        run = record(library, make_folder(folder / str(attempt)), name, seed + attempt)
        planted = plant(run.recorded)
        if planted.entries == run.recorded.entries:
            continue
        bugged = Run(name, seed + attempt, run.place, planted, history_of(name, planted, seed + attempt))
        try:
            with quiet():
                bugged.check_disks(BITES, random.Random(seed + attempt))
        except AssertionError as error:
            assert "python -m tests.crash" in str(error)
            return
    pytest.fail(f"not seen in any of {MOST_RECORDS} records")


@pytest.mark.slow
@pytest.mark.parametrize("bug", PLANTED_IN_OPENING)
def test_a_planted_bug_of_opening_is_seen(
    library: Path, folder: Path, bug: str, seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FASTLOG_FAILURES", str(folder / "failures"))
    name, module, attribute, instead = PLANTED_IN_OPENING[bug]
    run = record(library, folder, name, seed)
    monkeypatch.setattr(module, attribute, instead)
    with quiet(), pytest.raises(AssertionError, match="python -m tests.crash"):
        run.check_disks(BITES, random.Random(seed))


def test_a_failure_can_be_seen_again(library: Path, folder: Path, seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """The folder that a failure names holds all it takes."""
    monkeypatch.setenv("FASTLOG_FAILURES", str(folder / "failures"))
    name, plant = PLANTED["no fdatasync of segments"]
    run = record(library, folder, name, seed)
    planted = plant(run.recorded)
    bugged = Run(name, seed, run.place, planted, history_of(name, planted, seed))
    with quiet(), pytest.raises(AssertionError) as caught:
        bugged.check_disks(BITES, random.Random(seed))
    kept = str(caught.value).rpartition("python -m tests.crash ")[2].split()[0]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(entry for entry in sys.path if entry)}
    command = [sys.executable, "-m", "tests.crash", kept]
    again = subprocess.run(command, check=False, capture_output=True, text=True, env=environment)
    problem = caught.value.__cause__
    assert again.returncode == 1, again.stderr
    # which folder it is said of is another one
    assert f"{type(problem).__name__}: {without_folders(str(problem).splitlines()[0])[:40]}" in without_folders(
        again.stdout
    )


def without_folders(text: str) -> str:
    return re.sub(r"/\S*/", "", text)


# --- the recorder and the replayer themselves -------------------------------------------------------------------------

SCRIPT = """
import ctypes, os, sys, threading
os.chdir(sys.argv[1])
mark = ctypes.CDLL(None).fastlog_mark
def say(text): mark(text, len(text))
os.mkdir("d")
fd = os.open("d/a", os.O_CREAT | os.O_RDWR, 0o600)
os.pwrite(fd, b"x" * 5000, 100)
os.pwritev(fd, [b"1" * 10, b"2" * 10], 0)
os.lseek(fd, 0, os.SEEK_END); os.write(fd, b"tail"); os.writev(fd, [b"more"])
os.ftruncate(fd, 5100)
say(b'{"what": "durable", "end": 1}')
os.fdatasync(fd)
os.close(fd)
with open("d/b", "w") as file: file.write("text")
with open("d/b", "a") as file: file.write(" and more")
os.rename("d/b", "d/c"); os.link("d/c", "d/e"); os.replace("d/c", "d/f")
here = os.open("d", os.O_RDONLY)
with open("g", "wb", opener=lambda name, flags: os.open(name, flags, dir_fd=here)) as file: file.write(b"dir_fd")
os.rename("g", "h", src_dir_fd=here, dst_dir_fd=here)
os.fsync(here)
os.mkdir("d/gone"); os.rmdir("d/gone"); os.unlink("d/a")
if os.fork() == 0:
    with open("d/child", "wb") as file: file.write(b"c" * 100)
    os._exit(0)
os.wait()
def work(number):
    with open(f"d/thread-{number}", "wb") as file:
        for i in range(50): file.write(b"%d" % i); file.flush()
threads = [threading.Thread(target=work, args=(i,)) for i in range(4)]
for thread in threads: thread.start()
for thread in threads: thread.join()
"""


def run_script(library: Path, folder: Path, script: str) -> tuple[Path, Record]:
    root = make_folder(folder / "root")
    return root, record_run(library, root, folder / "trace", ["-c", script, str(root)])


def test_the_record_is_complete(library: Path, folder: Path) -> None:
    """With nothing lost the replayed disk is what the program left."""
    root, recorded = run_script(library, folder, SCRIPT)
    disk = Replayer(recorded).disk(len(recorded.entries), {})
    found = {file.relative_to(root).as_posix(): file.read_bytes() for file in root.rglob("*") if file.is_file()}
    assert disk.files() == found
    assert found["d/e"] == b"text and more"
    kinds = {entry.kind for entry in recorded.entries}
    assert kinds == set(Kind) - {Kind.PAGE, Kind.UNSUPPORTED}
    assert len({entry.process for entry in recorded.entries}) == 2
    assert len({entry.thread for entry in recorded.entries}) == 6


@pytest.mark.parametrize("name", [*ALONE, *SHARED])
def test_the_record_of_a_log_is_complete(library: Path, folder: Path, name: str, seed: int) -> None:
    run = record(library, folder, name, seed)
    replayer = Replayer(run.recorded)
    disk = replayer.disk(len(run.recorded.entries), {})
    # what was mapped for writing may have changed after the last mark
    mapped = {name for name, file in disk.names.items() if file in replayer.moments[-1].pages}
    root = run.place.root
    found = {file.relative_to(root).as_posix(): file.read_bytes() for file in root.rglob("*") if file.is_file()}
    assert set(disk.files()) == set(found)
    assert {name for name, content in disk.files().items() if content != found[name]} <= mapped


def test_what_cannot_be_replayed_is_refused(library: Path, folder: Path) -> None:
    script = "import os, sys; os.chdir(sys.argv[1]); open('a', 'wb').close(); os.truncate('a', 5)"
    with pytest.raises(AssertionError, match="truncate of"):
        run_script(library, folder, script)


def entry(number: int, kind: Kind, path: str = "", position: int = 0, data: bytes = b"", **more: object) -> Entry:
    target = str(more.get("target", ""))
    inode = int(more.get("inode", 1))  # type: ignore[call-overload]
    return Entry(number, kind, 1, 1, inode, position, path, target, data, bool(more.get("is_directory")))


def possible(entries: list[Entry]) -> set[frozenset[tuple[str, bytes]]]:
    """Every disk after all entries, as whole operations are lost."""
    replayer = Replayer(Record(entries))
    at = len(entries)
    return {frozenset(replayer.disk(at, losses).files().items()) for losses in all_losses(replayer.moments[at])}


def disks(*each: dict[str, bytes]) -> set[frozenset[tuple[str, bytes]]]:
    return {frozenset(files.items()) for files in each}


def test_a_sync_keeps_content_or_names_but_not_both() -> None:
    written = [entry(0, Kind.CREATE, "a"), entry(1, Kind.WRITE, "a", 0, b"xy")]
    assert possible(written) == disks({}, {"a": b""}, {"a": b"xy"})
    synced = [*written, entry(2, Kind.SYNC_BEGIN, "a"), entry(3, Kind.SYNC_END, "a", 2)]
    assert possible(synced) == disks({}, {"a": b"xy"})
    named = [
        *written,
        entry(2, Kind.SYNC_BEGIN, "", is_directory=True),
        entry(3, Kind.SYNC_END, "", 2, is_directory=True),
    ]
    assert possible(named) == disks({"a": b""}, {"a": b"xy"})


def test_a_sync_speaks_for_what_was_there_when_it_began() -> None:
    entries = [
        entry(0, Kind.CREATE, "a"),
        entry(1, Kind.SYNC_BEGIN, "", is_directory=True),
        entry(2, Kind.SYNC_END, "", 1, is_directory=True),
        entry(3, Kind.WRITE, "a", 0, b"x"),
        entry(4, Kind.SYNC_BEGIN, "a"),
        entry(5, Kind.WRITE, "a", 1, b"y"),
    ]
    assert possible(entries) == disks({"a": b""}, {"a": b"x"}, {"a": b"\0y"}, {"a": b"xy"})
    assert possible([*entries, entry(6, Kind.SYNC_END, "a", 4)]) == disks({"a": b"x"}, {"a": b"xy"})


def test_names_move_at_once_or_not_at_all() -> None:
    entries = [
        entry(0, Kind.CREATE, "old", inode=1),
        entry(1, Kind.CREATE, "new", inode=2),
        entry(2, Kind.WRITE, "new", 0, b"n", inode=2),
        entry(3, Kind.SYNC_BEGIN, "new", inode=2),
        entry(4, Kind.SYNC_END, "new", 3, inode=2),
        entry(5, Kind.SYNC_BEGIN, "", is_directory=True),
        entry(6, Kind.SYNC_END, "", 5, is_directory=True),
        entry(7, Kind.RENAME, "new", target="old", inode=2),
    ]
    assert possible(entries) == disks({"old": b"", "new": b"n"}, {"old": b"n"})
    entries.append(entry(8, Kind.UNLINK, "old", inode=2))
    # a name may be gone while the earlier move is not known
    assert possible(entries) == disks({"old": b"", "new": b"n"}, {"old": b"n"}, {"new": b"n"}, {})


def test_a_file_is_lost_with_its_folder() -> None:
    entries = [
        entry(0, Kind.MKDIR, "d", is_directory=True),
        entry(1, Kind.CREATE, "d/a"),
        entry(2, Kind.SYNC_BEGIN, "d", is_directory=True),
        entry(3, Kind.SYNC_END, "d", 2, is_directory=True),
    ]
    assert possible(entries) == disks({}, {"d/a": b""})


def test_a_folder_that_is_renamed_takes_along_what_is_in_it() -> None:
    entries = [
        entry(0, Kind.MKDIR, "d", is_directory=True, inode=2),
        entry(1, Kind.CREATE, "d/a"),
        entry(2, Kind.SYNC_BEGIN, "d", is_directory=True, inode=2),
        entry(3, Kind.SYNC_END, "d", 2, is_directory=True, inode=2),
        entry(4, Kind.SYNC_BEGIN, "", is_directory=True),
        entry(5, Kind.SYNC_END, "", 4, is_directory=True),
        entry(6, Kind.RENAME, "d", target="e", is_directory=True, inode=2),
        entry(7, Kind.CREATE, "e/b", inode=3),
    ]
    assert possible(entries) == disks({"d/a": b""}, {"e/a": b""}, {"d/a": b"", "d/b": b""}, {"e/a": b"", "e/b": b""})
    # a sync of the folder keeps what is in it, wherever it is found
    entries += [
        entry(8, Kind.SYNC_BEGIN, "e", is_directory=True, inode=2),
        entry(9, Kind.SYNC_END, "e", 8, is_directory=True, inode=2),
    ]
    assert possible(entries) == disks({"d/a": b"", "d/b": b""}, {"e/a": b"", "e/b": b""})
    entries += [entry(10, Kind.UNLINK, "e/a"), entry(11, Kind.UNLINK, "e/b", inode=3), entry(12, Kind.RMDIR, "e")]
    entries += [entry(13, Kind.MKDIR, "d", is_directory=True, inode=9), entry(14, Kind.CREATE, "d/new", inode=8)]
    replayer = Replayer(Record(entries))
    assert replayer.disk(15, {}).files() == {"d/new": b""}
    # another folder of the same name
    assert replayer.disk(15, {14: "lost"}).files() == {}
    assert replayer.disk(15, dict.fromkeys((12, 13, 14), "lost")).files() == {}
    assert replayer.disk(15, dict.fromkeys((10, 12, 13, 14), "lost")).files() == {"e/a": b""}


def test_torn_writes() -> None:
    data = bytes(range(1, 251)) * 8  # 2000 bytes at 300: five sectors
    entries = [entry(0, Kind.CREATE, "a"), entry(1, Kind.WRITE, "a", 300, data)]
    replayer = Replayer(Record(entries))

    def content(outcome: str) -> bytes:
        return replayer.disk(2, {1: outcome}).files()["a"]

    whole = bytes(300) + data
    assert content("") == whole
    assert content("lost") == b""
    assert content("size") == bytes(2300)
    assert content("512:11000") == whole[:1024]
    assert content("512:11000+") == whole[:1024] + bytes(2300 - 1024)
    assert content("512:00001") == bytes(2048) + whole[2048:]
    assert content("512:01010") == bytes(512) + whole[512:1024] + bytes(512) + whole[1536:2048]
    assert content("4096:0+") == bytes(2300)
    assert len(content("garbage:1")) == 2300


def test_a_disk_is_put_into_the_folders_that_it_was_recorded_in(folder: Path) -> None:
    """A log knows the inode of its folder: whatever folder a disk is put into has to look like that one."""
    root = make_folder(folder / "root")
    place = Place(root)
    entries = [entry(0, Kind.MKDIR, "d", is_directory=True, inode=7), entry(1, Kind.CREATE, "d/a")]
    entries.append(entry(2, Kind.RENAME, "d", target="e", is_directory=True))
    replayer = Replayer(Record(entries))
    with place.believed():
        place.put(replayer.disk(2, {0: "lost"}))
        assert list(root.iterdir()) == []
        make_folder(root / "d").joinpath("left").touch()
        for losses, name in (({2: "lost"}, "d"), ({}, "e")):
            place.put(replayer.disk(3, losses))
            assert [path.relative_to(root).as_posix() for path in root.rglob("*")] == [name, f"{name}/a"]
            assert oscalls.inode(str(root / name)) == 7
    assert oscalls.inode(str(root / "e")) == (root / "e").stat().st_ino


def test_mapped_memory_may_be_anything_that_it_was(library: Path, folder: Path) -> None:
    script = """
import ctypes, mmap, os, sys
os.chdir(sys.argv[1])
mark = ctypes.CDLL(None).fastlog_mark
fd = os.open("page", os.O_CREAT | os.O_RDWR)
os.pwrite(fd, b"0" * 4096, 0)
os.fdatasync(fd)
page = mmap.mmap(fd, 4096)
for digit in b"123":
    page[:] = bytes([digit]) * 4096
    if os.fork() == 0:
        page[512:1024] = b"child" * 102 + b"..."[:2]
        mark(b"{}", 2)
        os._exit(0)
    os.wait()
"""
    root, recorded = run_script(library, folder, script)
    replayer = Replayer(recorded)
    end = len(recorded.entries)
    pages = next(iter(replayer.moments[-1].pages.values()))
    assert len(pages) == 4, "the first, and one after each change"
    assert replayer.disk(end, {}).files() == {"page": (root / "page").read_bytes()}

    def content(outcome: str) -> bytes:
        return replayer.disk(end, {-1: outcome}).files()["page"]

    assert content("page:0") == b"0" * 4096
    assert content("page:1")[:515] == b"1" * 512 + b"chi"
    assert content("zeros") == bytes(4096)
    assert len(content("random:5")) == 4096
    assert set(content("mixed:3")) >= {ord("1"), ord("3")}
    assert replayer.disk(end, {-1: "absent"}).files() == {}
