"""Compaction interrupted: by death before any of its system calls, by power loss, and by errors.

Whatever is found then, every record is there once, old or compacted, and each index belongs to its segment.
"""

from __future__ import annotations

import os
import random
import shutil
import signal
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

import fastlog
from fastlog._native import oscalls
from fastlog.errors import CorruptLogError, StorageError
from fastlog.partition import compaction
from fastlog.partition.files import SLOT_BYTES
from tests.compacting import Writer, compact_folder, read_segments, write_segments
from tests.dying import dies_at_change
from tests.reference.batch import Record, decode_log, encode_batch, make_batch
from tests.reference.compaction import Segment
from tests.strategies import SOME_TIME

INDEXES = (".index", ".timeindex", ".txnindex")
Names = dict[str, int]  # names of a folder, and the file of each
Step = tuple[str, str, str]


class Died(BaseException):
    """The process is gone: nothing it would do after that happens."""


class Machine:
    """Stands between compaction and the system calls.

    It counts those that change something, remembers what a power cut could forget, and lets the process die before one.
    """

    CHANGES = (
        "open_file",
        "truncate",
        "write_at",
        "sync_data",
        "sync_directory",
        "rename",
        "link",
        "remove",
        "set_modified",
    )

    def __init__(self, folder: Path, dies_before: int = 1 << 30) -> None:
        self.folder = folder
        self.dies_before = dies_before
        self.calls = 0
        self.synced = self.look()
        self.steps: list[Step] = []  # since the directory was synced
        self.contents: dict[int, bytes] = {}  # of files that have lost a name
        self.room = SimpleNamespace(**{name: getattr(oscalls, name) for name in dir(oscalls) if name[0] != "_"})
        for name in self.CHANGES:
            setattr(self.room, name, self.watched(name))

    def look(self) -> Names:
        with os.scandir(self.folder) as entries:
            return {entry.name: entry.inode() for entry in entries}

    def watched(self, name: str) -> Any:
        def call(*arguments: Any, **options: Any) -> Any:
            self.calls += 1
            if self.calls > self.dies_before:
                raise Died
            before = self.look()
            words = [os.path.basename(argument) for argument in arguments if isinstance(argument, str)]
            for victim in words[-1:] if name in ("rename", "remove") else []:
                if victim in before:
                    self.contents[before[victim]] = (self.folder / victim).read_bytes()
            result = getattr(oscalls, name)(*arguments, **options)
            if name == "sync_directory":
                self.synced, self.steps = self.look(), []
            elif name in ("rename", "link"):
                self.steps.append((name, words[0], words[1]))
            elif name == "remove" and words[0] in before:
                self.steps.append((name, words[0], ""))
            else:
                # files of CleaningRound come by here too: their names appear
                self.steps += [("create", new, str(inode)) for new, inode in self.look().items() - before.items()]
            return result

        return call

    def cut_power(self, chance: random.Random, target: Path) -> None:
        """Make a folder as the disk may have it: as of the last sync of the directory, and any of the steps since."""
        names = dict(self.synced)
        alive = self.look()
        for name in alive.keys() - names.keys():
            if name.endswith(".log.cleaned") and chance.random() < 0.5:
                names[name] = alive[name]  # made by CleaningRound, unseen here
        likely = chance.choice([0.1, 0.5, 0.9])
        for kind, first, second in self.steps:
            if chance.random() > likely:
                continue
            if kind == "create":
                names[first] = int(second)
            elif kind == "remove":
                names.pop(first, None)
            elif first in names:
                if kind == "rename" and names.get(second) == names[first]:
                    continue  # two names of one file: nothing happens
                names[second] = names[first] if kind == "link" else names.pop(first)
        contents = self.contents | {inode: (self.folder / name).read_bytes() for name, inode in alive.items()}
        shutil.rmtree(target, ignore_errors=True)
        target.mkdir()
        made: dict[int, str] = {}
        for name, inode in names.items():
            if inode in made:
                os.link(target / made[inode], target / name)
                continue
            content = contents[inode]
            if name.endswith(".cleaned"):
                content = content[: chance.randint(0, len(content))]  # nobody has promised a byte of it
            (target / name).write_bytes(content)
            made[inode] = name


@pytest.fixture
def machines(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Makes a Machine and puts it between."""

    def make(folder: Path, dies_before: int = 1 << 30) -> Machine:
        machine = Machine(folder, dies_before)
        monkeypatch.setattr(compaction, "oscalls", machine.room)
        return machine

    return make


class Story:
    """A log of three groups of segments, each with indexes that can be told apart, and what it may look like."""

    def __init__(self, folder: Path, chance: random.Random) -> None:
        self.folder = folder
        folder.mkdir()
        self.writer = Writer(chance, keys=4, codecs=(0,))
        segments = []
        for _ in range(chance.choice([3, 4, 5])):
            base = self.writer.offset
            segments.append(Segment(base, tuple(self.writer.batches(chance.choice([2, 4])))))
        write_segments(folder, segments)
        for segment in segments:
            for suffix in (*INDEXES, ".snapshot"):
                (folder / f"{segment.base_offset:020}{suffix}").write_bytes(b"old %d" % segment.base_offset)
        (folder / f"{self.writer.offset:020}.log").write_bytes(b"")  # the active one
        self.old = {segment.base_offset: segment for segment in segments}
        self.segment_bytes = chance.choice([500, 3000])
        # once without disturbance, to know what is right
        quiet = folder.parent / "quiet"
        shutil.copytree(folder, quiet)
        self.groups: list[compaction.Replacement] = []
        original = compaction.swap

        def noting(replacement: compaction.Replacement, *rest: Any) -> None:
            self.groups.append(replacement)
            original(replacement, *rest)

        compaction.swap = noting  # type: ignore[assignment]
        try:
            self.run(quiet)
        finally:
            compaction.swap = original
        self.new = {segment.base_offset: segment for segment in read_segments(quiet)}
        self.quiet = quiet

    def run(self, folder: Path, reach: compaction.Reach = compaction.nothing) -> None:
        compact_folder(
            folder,
            upper_bound=self.writer.offset,
            now=SOME_TIME,
            horizon=SOME_TIME + 1000,
            segment_bytes=self.segment_bytes,
            aborted=self.writer.aborted,
            reach=reach,
        )

    def check(self, found: dict[int, Path], folder: Path | None = None) -> int:
        """The segments found are those of the log with the first groups swapped in: how many.

        ``folder``: nothing else is in it, and every other file belongs to its segment.
        """
        contents = {base: [batch for _, batch in decode_log(path.read_bytes())] for base, path in found.items()}
        for swapped in range(len(self.groups), -1, -1):
            expected = dict(self.old)
            for group in self.groups[:swapped]:
                for base in group.sources:
                    del expected[base]
                expected[group.base_offset] = self.new[group.base_offset]
            expected[self.writer.offset] = Segment(self.writer.offset, ())
            if contents == {base: list(segment.batches) for base, segment in expected.items()}:
                break
        else:
            pytest.fail(f"neither old nor new: {sorted(contents)}")
        if folder is not None:
            self.check_files(folder, swapped)
        return swapped

    def check_files(self, folder: Path, swapped: int) -> None:
        names = {path.name: path for path in folder.iterdir()}
        assert not [name for name in names if name.endswith((".swap", ".cleaned", ".deleted"))]
        gone = {base for group in self.groups[:swapped] for base in group.sources[1:]}
        replaced = {group.base_offset for group in self.groups[:swapped]}
        for base in self.old:
            for suffix in (*INDEXES, ".snapshot"):
                name = f"{base:020}{suffix}"
                if base in gone:
                    assert name not in names
                elif base in replaced and suffix != ".snapshot":
                    assert names[name].read_bytes() == (self.quiet / name).read_bytes(), name
                else:
                    assert names[name].read_bytes() == b"old %d" % base


def segments_by_name(folder: Path) -> dict[int, Path]:
    return {int(path.stem): path for path in folder.glob("*.log")}


def calls_of(story: Story, machines: Any) -> int:
    """How many system calls a round makes that change something."""
    rehearsal = story.folder.parent / "rehearsal"
    shutil.copytree(story.folder, rehearsal)
    machine = machines(rehearsal)
    story.run(rehearsal)
    return int(machine.calls)


def test_I4_death_before_each_system_call(folder: Path, seed: int, machines: Any) -> None:
    story = Story(folder / "log", random.Random(seed))
    assert story.groups
    total = calls_of(story, machines)
    assert total > 20
    start = folder / "start"
    shutil.copytree(story.folder, start)
    seen = set()
    for n in range(total + 1):
        shutil.rmtree(story.folder)
        shutil.copytree(start, story.folder)
        machine = machines(story.folder, n)
        try:
            story.run(story.folder)
        except Died:
            assert machine.calls > n
        # readers that do not finish anything see all of it
        machines(story.folder)
        shown = compaction.current_segments(str(story.folder))
        as_read = story.check({base: Path(path) for base, path in shown.items()})
        # so does whoever owns the log next, who may die as often as it likes
        for dies in (n % 7, n % 5, n % 3, 1 << 30):
            machines(story.folder, dies)
            try:
                compaction.finish_swaps(str(story.folder))
                break
            except Died:
                continue
        swapped = story.check(segments_by_name(story.folder), story.folder)
        assert swapped == as_read
        seen.add(swapped)
        if n % 10:
            continue
        # and the log can be compacted on
        machines(story.folder)
        story.run(story.folder)
        assert read_segments(story.folder)[-1].base_offset == story.writer.offset
    assert seen == set(range(len(story.groups) + 1))


@pytest.mark.parametrize("_round", range(3))
def test_I5_power_loss_at_any_moment(folder: Path, seed: int, _round: int, machines: Any) -> None:
    chance = random.Random(f"{seed} {_round}")
    story = Story(folder / "log", chance)
    total = calls_of(story, machines)
    start = folder / "start"
    shutil.copytree(story.folder, start)
    for n in sorted(chance.sample(range(total + 1), min(40, total))):
        shutil.rmtree(story.folder)
        shutil.copytree(start, story.folder)
        machine = machines(story.folder, n)
        try:
            story.run(story.folder)
        except Died:
            pass
        image, again = folder / "image", folder / "again"
        for _ in range(3):
            machine.cut_power(chance, image)
            owner = machines(image, chance.choice([*range(1, 16), 1 << 30]))
            try:
                compaction.finish_swaps(str(image))
            except Died:
                owner.cut_power(chance, again)
                machines(again)
                compaction.finish_swaps(str(again))
                image, again = again, image
            story.check(segments_by_name(image), image)


def kafkas_rule(folder: Path) -> None:
    """What a Kafka broker does about files with these suffixes when it loads a log."""

    def base_of(path: Path) -> int:
        return int(path.name[:20])

    for path in folder.glob("*.deleted"):
        path.unlink()
    cleaned = [base_of(path) for path in folder.glob("*.cleaned")]
    if cleaned:
        for path in folder.glob("*.swap"):
            if base_of(path) >= min(cleaned):
                path.unlink()
        for path in folder.glob("*.cleaned"):
            path.unlink()
    covered = [
        (
            base_of(path),
            max((batch.last_offset + 1 for _, batch in decode_log(path.read_bytes())), default=base_of(path)),
        )
        for path in folder.glob("*.log.swap")
    ]
    if covered:
        low, high = min(low for low, _ in covered), max(high for _, high in covered)
        for path in list(folder.iterdir()):
            if path.suffix != ".swap" and low <= base_of(path) < high:
                path.unlink()
    for path in folder.glob("*.swap"):
        path.rename(path.with_suffix(""))
        path.unlink(missing_ok=True)


def test_a_broker_finishes_what_we_left(folder: Path, seed: int, machines: Any) -> None:
    story = Story(folder / "log", random.Random(seed))
    total = calls_of(story, machines)
    start = folder / "start"
    shutil.copytree(story.folder, start)
    for n in range(total + 1):
        shutil.rmtree(story.folder)
        shutil.copytree(start, story.folder)
        machines(story.folder, n)
        try:
            story.run(story.folder)
        except Died:
            pass
        kafkas_rule(story.folder)
        story.check(segments_by_name(story.folder))


@pytest.mark.parametrize("sticky", [False, True], ids=["once", "sticky"])
@pytest.mark.parametrize(
    "call", ["open", "pread", "pwrite", "ftruncate", "fdatasync", "fsync", "rename", "unlink", "fstat", "link"]
)
def test_I9_every_call_may_fail(folder: Path, seed: int, call: str, sticky: bool) -> None:
    """An error leaves the old segments or the new ones, and nothing that `finish_swaps` could not clear away."""
    story = Story(folder / "log", random.Random(seed))
    start = folder / "start"
    shutil.copytree(story.folder, start)
    for nth in range(1, 400):
        shutil.rmtree(story.folder)
        shutil.copytree(start, story.folder)
        oscalls.inject(call, 28 if call == "pwrite" else 5, nth, sticky)
        try:
            story.run(story.folder)
            failed = False
        except StorageError:
            failed = True
        finally:
            oscalls.clear()
        compaction.finish_swaps(str(story.folder))
        swapped = story.check(segments_by_name(story.folder), story.folder)
        if not failed:
            assert swapped == len(story.groups)
            break
    assert nth > 1


# --- what others left -------------------------------------------------------------------------------------------------


def put(folder: Path, name: str, offsets: range) -> None:
    batch = make_batch([Record(offset, SOME_TIME, b"k%d" % offset, b"v") for offset in offsets]) if offsets else None
    content = b"" if batch is None else encode_batch(batch)
    (folder / name).write_bytes(content)


def stem(base: int) -> str:
    return f"{base:020}"


def test_a_folder_without_leftovers_is_not_touched(folder: Path) -> None:
    put(folder, f"{stem(0)}.log", range(3))
    (folder / "leader-epoch-checkpoint").write_bytes(b"0\n0\n")
    (folder / "notes.deleted").write_bytes(b"somebody's")
    assert not compaction.unfinished(os.listdir(folder))
    assert compaction.finish_swaps(str(folder)) == []
    assert len(list(folder.iterdir())) == 3


def test_a_brokers_interrupted_swap_is_finished(folder: Path) -> None:
    put(folder, f"{stem(0)}.log.swap", range(7))
    put(folder, f"{stem(0)}.index.swap", range(0))
    put(folder, f"{stem(0)}.log.deleted", range(3))
    put(folder, f"{stem(3)}.log", range(3, 6))
    put(folder, f"{stem(3)}.txnindex", range(0))
    put(folder, f"{stem(6)}.log", range(6, 7))
    put(folder, f"{stem(7)}.log", range(7, 9))
    assert compaction.finish_swaps(str(folder)) == [(0, 7)]
    assert sorted(os.listdir(folder)) == [f"{stem(0)}.index", f"{stem(0)}.log", f"{stem(7)}.log"]


def test_a_brokers_interrupted_split_is_finished(folder: Path) -> None:
    put(folder, f"{stem(0)}.log", range(9))
    for base, offsets in ((0, range(5)), (5, range(5, 9))):
        put(folder, f"{stem(base)}.log.swap", offsets)
    assert compaction.finish_swaps(str(folder)) == [(0, 5), (5, 9)]
    assert [segment.base_offset for segment in read_segments(folder)] == [0, 5]


def test_a_brokers_incomplete_split_is_discarded(folder: Path) -> None:
    put(folder, f"{stem(0)}.log", range(9))
    put(folder, f"{stem(0)}.log.cleaned", range(4))
    put(folder, f"{stem(5)}.log.swap", range(5, 9))
    put(folder, f"{stem(5)}.index.swap", range(0))
    assert compaction.finish_swaps(str(folder)) == []
    assert os.listdir(folder) == [f"{stem(0)}.log"]


def test_I5_what_was_discarded_does_not_come_back(folder: Path, seed: int, machines: Any) -> None:
    """Power fails while an incomplete replacement is cleared away: it looks complete if the last trace goes first."""
    chance = random.Random(seed)
    log, image = folder / "log", folder / "image"
    log.mkdir()
    put(log, f"{stem(0)}.log", range(9))
    put(log, f"{stem(0)}.log.swap", range(8, 9))
    put(log, f"{stem(0)}.txnindex.cleaned", range(0))
    for n in [*range(6)] * 20:
        shutil.rmtree(image, ignore_errors=True)
        shutil.copytree(log, image)
        machine = machines(image, n)
        try:
            compaction.finish_swaps(str(image))
        except Died:
            machine.cut_power(chance, folder / "again")
            machines(folder / "again")
            compaction.finish_swaps(str(folder / "again"))
            assert (folder / "again" / f"{stem(0)}.log").read_bytes() == (log / f"{stem(0)}.log").read_bytes()


def test_an_index_that_a_broker_has_not_renamed_yet(folder: Path) -> None:
    put(folder, f"{stem(0)}.log", range(3))
    (folder / f"{stem(0)}.txnindex.swap").write_bytes(b"entries")
    (folder / f"{stem(9)}.index.swap").write_bytes(b"of no segment")
    compaction.finish_swaps(str(folder))
    assert sorted(os.listdir(folder)) == [f"{stem(0)}.log", f"{stem(0)}.txnindex"]


def test_I11_an_empty_swap_file_replaces_nothing(folder: Path) -> None:
    put(folder, f"{stem(0)}.log", range(3))
    put(folder, f"{stem(0)}.log.swap", range(0))
    assert compaction.finish_swaps(str(folder)) == []
    assert len(read_segments(folder)[0].batches) == 1
    assert os.listdir(folder) == [f"{stem(0)}.log"]


def test_I6_a_damaged_swap_file_is_an_error_and_nothing_is_touched(folder: Path) -> None:
    put(folder, f"{stem(0)}.log", range(3))
    put(folder, f"{stem(3)}.log", range(3, 6))
    put(folder, f"{stem(0)}.log.swap", range(6))
    put(folder, f"{stem(0)}.log.deleted", range(6))
    path = folder / f"{stem(0)}.log.swap"
    content = bytearray(path.read_bytes())
    content[-3] ^= 1
    path.write_bytes(content)
    before = sorted(os.listdir(folder))
    with pytest.raises(CorruptLogError, match="still there"):
        compaction.finish_swaps(str(folder))
    assert sorted(os.listdir(folder)) == before


def test_readers_go_on_when_a_swap_vanishes(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Between listing the folder and looking into a ``.swap`` file somebody may finish it."""
    put(folder, f"{stem(0)}.log", range(3))
    put(folder, f"{stem(3)}.log", range(3, 6))
    put(folder, f"{stem(0)}.log.swap", range(6))
    original = compaction.swap_end

    def finished_meanwhile(path: str, base: int) -> int:
        monkeypatch.setattr(compaction, "swap_end", original)
        compaction.finish_swaps(str(folder))
        return original(path, base)

    monkeypatch.setattr(compaction, "swap_end", finished_meanwhile)
    assert compaction.current_segments(str(folder)) == {0: f"{folder}/{stem(0)}.log"}


def test_failpoints_are_reached_in_order_and_names_cover_the_log(folder: Path, seed: int) -> None:
    """Live readers go by the ordinary names: at each step a source is there, or the new segment that replaces it."""
    story = Story(folder / "log", random.Random(seed))
    reached: list[str] = []
    new = {group.base_offset: (story.quiet / f"{stem(group.base_offset)}.log").read_bytes() for group in story.groups}

    def look(name: str) -> None:
        reached.append(name)
        for group in story.groups:
            content = (story.folder / f"{stem(group.base_offset)}.log").read_bytes()
            for base in group.sources[1:]:
                assert (story.folder / f"{stem(base)}.log").exists() or content == new[group.base_offset], name

    original = oscalls.remove

    def looking(path: str) -> bool:
        removed = original(path)
        look("")
        return removed

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(compaction.oscalls, "remove", looking)
        story.run(story.folder, look)
    steps = (
        "swapped", "odd", "indexes_unlinked", "moved", "sources_unlinked", "indexes_installed", "swap_unlinked", "even",
    )  # fmt: skip
    assert [name for name in reached if name] == [f"compaction.{step}" for step in steps] * len(story.groups)


SWAPPING = ["swapped", "indexes_unlinked", "moved", "sources_unlinked", "indexes_installed"]
COMPACTED = fastlog.LogConfig(
    cleanup_policy="compact", min_cleanable_dirty_ratio=0, segment_bytes=6000, max_message_bytes=5000
)


def log_to_compact(path: Path) -> tuple[str, str]:
    """A log whose next compaction makes one segment of several; the first two of these."""
    with fastlog.PartitionLog.open(path, config=COMPACTED, durability="os") as log:
        for number in range(40):
            log.append([b"%d" % number, b"x" * 400], keys=[b"key %d" % number, b"same"])
            if number == 30:
                log.maintain()  # what is left of them is small and becomes one segment with the next round
        first, second = (segment.path for segment in log.segments()[:2])
    return first, second


def compact_until(path: Path, step: str) -> None:
    """A process that compacts dies at this step."""
    pid = os.fork()
    if pid == 0:
        try:
            log = fastlog.PartitionLog.open(path, config=COMPACTED)
            oscalls.arm(f"compaction.{step}", "kill")
            log.maintain()
        finally:
            os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == -signal.SIGKILL


@pytest.mark.parametrize("step", SWAPPING)
@pytest.mark.parametrize("forgets", [False, True])
def test_a_reader_alone_sees_the_whole_log_in_the_middle_of_a_swap(folder: Path, step: str, forgets: bool) -> None:
    """The one who compacts is killed; nobody opens the log for writing. Or power is lost: a source is gone, and that
    the new segment took the place of the first one is forgotten."""
    path = folder / "log-0"
    first, second = log_to_compact(path)
    old = Path(first).read_bytes()
    compact_until(path, step)
    if forgets:
        Path(second).unlink(missing_ok=True)
        Path(first).unlink()
        Path(first).write_bytes(old)
    before = sorted(os.listdir(path))
    with fastlog.PartitionLog.open(path, read_only=True) as log:
        found = [(record.offset, record.key, record.value) for record in log.records()]
        damages = log.verify().damages
    assert sorted(os.listdir(path)) == before
    assert not damages
    offsets = [offset for offset, _, _ in found]
    assert offsets == sorted(set(offsets))
    assert [value for _, key, value in found if key != b"same"] == [b"%d" % number for number in range(40)]
    assert found[-1] == (79, b"same", b"x" * 400)
    with fastlog.PartitionLog.open(path, config=COMPACTED) as log:
        assert set(found) >= {(record.offset, record.key, record.value) for record in log.records()}
        assert log.verify().ok


@pytest.mark.parametrize("step", SWAPPING)
@pytest.mark.parametrize("has_read", [False, True])
def test_a_reader_among_others_sees_the_whole_log_in_the_middle_of_a_swap(
    folder: Path, step: str, has_read: bool
) -> None:
    """The new segment has its place already, and reaches beyond the next one, which is still there."""
    path = folder / "log-0"
    log_to_compact(path)
    with fastlog.PartitionLog.open(path, config=COMPACTED, durability="os") as log:
        if has_read:
            assert len(list(log.records())) > 40
        compact_until(path, step)
        found = {record.offset: record.value for record in log.records()}
        assert list(found) == sorted(found)
        assert {value for value in found.values() if value != b"x" * 400} == {b"%d" % number for number in range(40)}
        assert {log.read(offset)[0].offset for offset in found} == set(found)
        assert log.verify().ok


@pytest.mark.parametrize("meta", [None, b"", bytes(2 * SLOT_BYTES)], ids=["whole", "empty", "damaged"])
def test_I4_a_swap_beside_a_clean_marker_is_finished_by_who_may_die(folder: Path, meta: bytes | None) -> None:
    """The one who compacts is killed, the others close the log cleanly; the next one dies in opening it."""
    path, kept = folder / "log-0", folder / "kept"
    log_to_compact(path)
    with fastlog.PartitionLog.open(path, config=COMPACTED, durability="os"):
        compact_until(path, "swapped")
    assert (path / ".fastlog-clean").exists() and list(path.glob("*.log.swap"))
    if meta is not None:
        (path / ".fastlog-meta").write_bytes(meta)
    shutil.copytree(path, kept)
    wanted = {b"%d" % number for number in range(40)}
    for nth in range(1, 200):
        alive = not dies_at_change(nth, partial(open_and_close, path))
        with fastlog.PartitionLog.open(path, config=COMPACTED, durability="os") as log:
            assert {record.value for record in log.records()} - {b"x" * 400} == wanted, f"after call {nth}"
            assert log.verify().ok and not list(path.glob("*.swap"))
        if alive:
            break
        for left in path.iterdir():  # the folder itself stays: another one would be a copy
            left.unlink()
        for file in kept.iterdir():
            shutil.copy(file, path)
    assert alive and nth > 20


def open_and_close(path: Path) -> None:
    fastlog.PartitionLog.open(path, config=COMPACTED, durability="os").close()


def test_I6_a_batch_that_lies_about_its_end_makes_no_hole(folder: Path) -> None:
    """Offsets may be missing where a log was compacted, but not those that the batch in front of them had."""
    path = folder / "log-0"
    first, _ = log_to_compact(path)
    with fastlog.PartitionLog.open(path, config=COMPACTED, durability="os") as log:
        log.maintain()
        one = next(found for found in fastlog.scan_segment(first) if found.last_offset > found.base_offset)
        assert log.read(one.last_offset).base_offset >= one.last_offset
    with open(first, "r+b") as file:
        file.seek(one.position + 23)
        file.write((0).to_bytes(4, "big"))
    with fastlog.PartitionLog.open(path, config=COMPACTED, durability="os") as log:
        with pytest.raises(fastlog.CorruptLogError, match="the CRC-32C does not match"):
            log.read(one.last_offset)
        assert not log.verify().ok
