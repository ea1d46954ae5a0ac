"""Kills, power cuts, damage and recovery: what befalls every peer alike, and what is counted of it.

Besides what was done, a turn counts ``acked`` records that were acknowledged and looked for; ``lost`` of them, in
silence, and ``holes``, those of the lost ones before something that was there; ``wrong records``; and how often
something was ``missing`` or ``wrong`` at all, or the store was ``refused`` (opening or reading it is an error),
``crashed`` (the process died of a signal) or ``hung``. Of damage it counts inputs by what became of them; ``refused
late`` are errors that came after wrong records had been read.
"""

from __future__ import annotations

import contextlib
import json
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from tests import power
from tests.evidence.peers.broker import Beside
from tests.evidence.peers.forks import Ended, Forks
from tests.evidence.peers.peers import PEERS, beside
from tests.evidence.peers.stores import Peer
from tests.evidence.peers.workload import Told, Verdict
from tests.evidence.run import NotHere, Scenario, Turn
from tests.folders import MEMORY

# room for a broker, whose indexes have 10 MiB each while it runs; the file is sparse
FILE_SYSTEM = replace(power.FILE_SYSTEMS["ext4-ordered"], image_bytes=512 << 20)
MOMENTS = (0.02, 0.1, 0.3)  # seconds that a writer lives on, at most, after its first acknowledgement
AT_ONCE = 0.2  # so many writers live on after their opening alone
EARLIER_RECORDS = 300  # in a store that was there before the power failed
DAMAGED_RECORDS = 2000
RECOVERED_RECORDS = 1_000_000
KEPT_SEED = 1  # of the records in stores that many turns begin with
BLOCK = 512
LIMIT_S = 60.0
LARGE_LIMIT_S = 3600.0


@dataclass(frozen=True)
class Finding:
    """What reading a store came to: the outcome in a word, an example for it, and the judge's numbers."""

    outcome: str
    why: str
    verdict: Verdict


@dataclass
class Ground:
    """What the turns of one run share. ``said`` has an example of each way to go wrong."""

    peer: Peer
    forks: Forks
    folder: Path
    said: dict[str, str] = field(default_factory=dict)

    @contextlib.contextmanager
    def store(self, files: Path, scratch: Path) -> Iterator[Beside]:
        """What stands beside a store with these files; gone in the end."""
        found = beside(self.peer, files, scratch)
        try:
            yield found
        finally:
            self.forks.end()
            found.kill()

    def write(
        self, place: str, seed: int, first: int, count: int | None = None, *, large: bool = False, go_on: bool = False
    ) -> None:
        """Begin to append the records from ``first`` on: ``count`` of them, or until the writer is killed."""
        self.forks.begin(
            {"do": "write", "place": place, "seed": seed, "first": first, "count": count, "large": large,
             "go_on": go_on}
        )  # fmt: skip

    def fill(self, place: str, seed: int, count: int) -> Told:
        """Append so many records, and close."""
        self.write(place, seed, 0, count)
        ended = self.forks.ended()
        assert ended.told("closed") is not None, f"{self.peer.name} could not be filled: {self.forks.complaints()}"
        return Told.of(ended.lines)

    def judge(self, place: str, seed: int, told: Told, positions: list[int] | None = None) -> Finding:
        """Read a store from front to back."""
        order = {"do": "judge", "place": place, "seed": seed, **told.as_json(), "positions": positions}
        return self.finding(self.forks.ask(order, LIMIT_S))

    def finding(self, ended: Ended) -> Finding:
        """What became of a judge."""
        if ended.status is None:
            return Finding("hung", "no answer", Verdict())
        if ended.signal:
            return Finding("crashed", f"signal {ended.signal} {self.forks.last_words()}".strip(), Verdict())
        answer = ended.told("verdict")
        assert answer is not None, f"no verdict on {self.peer.name}: {self.forks.complaints()}"
        verdict = Verdict(**json.loads(answer))
        return Finding(verdict.outcome(), verdict.error or verdict.example, verdict)

    def start(self, it: Beside) -> Finding | None:
        """Start what stands beside the store again; what was found when it does not come up."""
        try:
            it.start()
        except (RuntimeError, OSError) as problem:
            it.kill()
            return Finding("refused", " ".join(str(problem).partition("; the end of its log")[0].split()), Verdict())
        return None

    def count(self, turn: Turn, found: Finding) -> None:
        """Count what is not as it should be."""
        for what, number in (("lost", found.verdict.lost), ("holes", found.verdict.holes)):
            if number:
                turn.count(what, number)
        if found.verdict.wrong:
            turn.count("wrong records", found.verdict.wrong)
        if found.outcome != "same":
            turn.count(found.outcome)
            self.note(found.outcome, found.why)

    def note(self, what: str, why: str) -> None:
        """Keep the first example of something."""
        self.said.setdefault(what, why.replace(str(self.folder), "").replace("//", "/")[:200])


# --- kill -9 ----------------------------------------------------------------------------------------------------------


def kill(ground: Ground, turn: Turn) -> None:
    """A store whose writer, or whose broker, is killed up to three times."""
    told = Told()
    with ground.store(turn.folder / "store", turn.folder / "beside") as it:
        it.begin()
        for _ in range(turn.chance.randint(1, 3)):
            write_until(ground, turn, it, told)
            turn.count("kills")
            found = ground.start(it) or ground.judge(it.place, turn.seed, told)
            ground.count(turn, found)
            if found.outcome != "same":
                break
    turn.count("acked", told.count())


def write_until(ground: Ground, turn: Turn, it: Beside, told: Told, befall: Callable[[], None] | None = None) -> None:
    """One writer from its fork to its death, or that of its broker.

    What is heard after ``befall``, a moment before that, was promised to nobody.
    """
    ground.write(it.place, turn.seed, told.end)
    moment = turn.chance.choice(MOMENTS) * turn.chance.random()
    heard = ground.forks.lines(time.monotonic() + LIMIT_S, "open" if turn.chance.random() < AT_ONCE else "ack")
    heard += ground.forks.lines(time.monotonic() + moment)
    assert "open" in heard and not any(line.startswith("done") for line in heard), ground.forks.complaints()
    before = len(heard)
    if befall is not None:
        befall()
    if not it.is_writer:
        it.kill()
    ground.forks.kill()
    heard += ground.forks.ended().lines
    for number, line in enumerate(heard):
        if befall is None or number < before or line.startswith("try"):
            told.hear(line)


# --- power cuts -------------------------------------------------------------------------------------------------------


def cut(ground: Ground, disk: power.Disk, turn: Turn) -> None:
    """A store whose disk loses power. Half of the stores were there before, and on the disk; a broker always was."""
    told = Told()
    with ground.store(disk.place / "store", turn.folder / "beside") as it:
        it.begin()
        if turn.chance.random() < 0.5:
            told = ground.fill(it.place, turn.seed, EARLIER_RECORDS)
        if told.end or not it.is_writer:
            subprocess.run(["sync", "-f", str(disk.place)], check=True)
        write_until(ground, turn, it, told, disk.cut_power)
        disk.restore_power()
        turn.count("cuts")
        ground.count(turn, ground.start(it) or ground.judge(it.place, turn.seed, told))
    turn.count("acked", told.count())
    disk.clear()


# --- damage -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Kept:
    """A store that turns begin with: its files, what its writer was told, and where its records are."""

    files: Path
    told: Told
    positions: list[int] = field(default_factory=list)

    def restore(self, files: Path) -> None:
        """Put the files back where the store was. Its folders stay what they are: a store that finds itself in another
        one knows that it was copied, and does more than after a crash."""
        for path in sorted(files.rglob("*"), reverse=True):
            if not path.is_dir() or path.is_symlink():
                path.unlink()
            elif not (self.files / path.relative_to(files)).is_dir():
                path.rmdir()
        shutil.copytree(self.files, files, dirs_exist_ok=True)


def keep_closed(ground: Ground, it: Beside, files: Path) -> Kept:
    """Fill a store, and close it."""
    it.begin()
    told = ground.fill(it.place, KEPT_SEED, DAMAGED_RECORDS)
    answer = ground.forks.ask({"do": "positions", "place": it.place}).told("positions")
    assert answer is not None, f"{ground.peer.name} cannot be read: {ground.forks.complaints()}"
    it.stop()
    kept = ground.folder / "closed"
    shutil.copytree(files, kept)
    return Kept(kept, told, json.loads(answer))


def damage(ground: Ground, it: Beside, files: Path, closed: Kept, turn: Turn) -> None:
    """One bit flipped, one block zeroed, or the end cut off, of a file that has records in it."""
    closed.restore(files)
    how = damage_one(files, ground.peer.holds, turn)
    turn.count("inputs")
    found = ground.start(it)
    if found is None:
        found = ground.judge(it.place, KEPT_SEED, closed.told, closed.positions)
        try:
            it.stop()
        except (RuntimeError, OSError):
            it.kill()
    turn.count(found.outcome)
    turn.count(f"{how}: {found.outcome}")
    if found.outcome == "refused" and found.verdict.wrong:
        turn.count("refused late")
    if found.outcome != "same":
        ground.note(f"{how}: {found.outcome}", found.why)


def damage_one(files: Path, holds: tuple[str, ...], turn: Turn) -> str:
    """Damage a place that is drawn from all bytes of the files that hold records; how, in a word."""
    found = sorted({file for pattern in holds for file in files.glob(pattern) if file.stat().st_size})
    assert found, f"nothing to damage in {sorted(path.name for path in files.rglob('*'))}"
    (file,) = turn.chance.choices(found, [one.stat().st_size for one in found])
    before = file.read_bytes()
    how = turn.chance.choice(["flip", "zero", "cut"])
    content = bytearray(before)
    while content == before:  # a block may be zero already
        position = turn.chance.randrange(len(content))
        if how == "flip":
            content[position] ^= 1 << turn.chance.randrange(8)
        elif how == "zero":
            begin = position // BLOCK * BLOCK
            content[begin : begin + BLOCK] = bytes(len(content[begin : begin + BLOCK]))
        else:
            del content[position:]
    file.write_bytes(content)
    return how


# --- recovery ---------------------------------------------------------------------------------------------------------


def keep_killed(ground: Ground, it: Beside, files: Path, records: int) -> Kept:
    """A store of so many records whose writer, or whose broker, was killed while it went on appending."""
    it.begin()
    ground.write(it.place, KEPT_SEED, 0, records, large=True, go_on=True)
    heard = ground.forks.lines(time.monotonic() + LARGE_LIMIT_S, word="filled")
    heard += ground.forks.lines(time.monotonic() + MOMENTS[-1])
    assert "filled" in heard and not any(line.startswith("done") for line in heard), ground.forks.complaints()
    it.kill()
    ground.forks.kill()
    heard += ground.forks.ended().lines
    kept = ground.folder / "killed"
    shutil.copytree(files, kept)
    return Kept(kept, Told.of(heard))


def recover(ground: Ground, it: Beside, files: Path, killed: Kept, turn: Turn, *, judge: bool) -> None:
    """From the start of whatever has to be started to the first record that is acknowledged."""
    killed.restore(files)
    began = time.perf_counter()
    found = ground.start(it)
    started = 0.0 if it.is_writer else time.perf_counter() - began
    if found is None:
        order = {"do": "recover", "place": it.place, "seed": KEPT_SEED, "judge": judge, **killed.told.as_json()}
        ended = ground.forks.ask(order, LARGE_LIMIT_S)
        took = ended.told("took")
        if took is not None:
            turn.measure("recovery s", started + float(took))
        if judge or took is None:
            found = ground.finding(ended)
            turn.count("acked", killed.told.count())
    it.kill()
    turn.count("recoveries")
    if found is not None:
        ground.count(turn, found)


# --- together ---------------------------------------------------------------------------------------------------------

Take = Callable[[Turn], None]


@contextlib.contextmanager
def kills(ground: Ground, records: int) -> Iterator[Take]:
    yield lambda turn: kill(ground, turn)


@contextlib.contextmanager
def cuts(ground: Ground, records: int) -> Iterator[Take]:
    with contextlib.ExitStack() as stack:
        try:
            disk = stack.enter_context(power.mounted(FILE_SYSTEM, ground.folder))
        except power.CannotMount as problem:
            raise NotHere(f"no file system can be mounted here: {problem}") from problem
        assert disk.loses_what_is_not_synced(), "a power cut takes nothing away here"
        yield lambda turn: cut(ground, disk, turn)


@contextlib.contextmanager
def damages(ground: Ground, records: int) -> Iterator[Take]:
    files = ground.folder / "store"
    with ground.store(files, ground.folder / "beside") as it:
        closed = keep_closed(ground, it, files)
        yield lambda turn: damage(ground, it, files, closed, turn)


@contextlib.contextmanager
def recoveries(ground: Ground, records: int) -> Iterator[Take]:
    files = ground.folder / "store"
    with ground.store(files, ground.folder / "beside") as it:
        killed = keep_killed(ground, it, files, records)
        # all turns open the same files: one of them reads what is there, the others are only timed
        first = iter([True])
        yield lambda turn: recover(ground, it, files, killed, turn, judge=next(first, False))


@dataclass(frozen=True)
class PeerEngine:
    """One engine; ``unit`` is what its turns count."""

    title: str
    unit: str
    prepare: Callable[[Ground, int], AbstractContextManager[Take]]


PEER_ENGINES = {
    "kills": PeerEngine("kill -9 while it appends", "kills", kills),
    "cuts": PeerEngine("a power cut while it appends", "cuts", cuts),
    "damage": PeerEngine("damage after a clean close", "inputs", damages),
    "recovery": PeerEngine("opened again after a kill", "recoveries", recoveries),
}


@contextlib.contextmanager
def ground_of(peer: str, said: dict[str, str] | None = None) -> Iterator[Ground]:
    """Where engines run on a peer; ``said`` gets examples of what went wrong. Raises NotHere."""
    PEERS[peer].require()
    with tempfile.TemporaryDirectory(prefix=f"fastlog-peers-{peer}-", dir=MEMORY, ignore_cleanup_errors=True) as made:
        folder = Path(made)
        with Forks(peer, folder / f"{peer}.errors") as forks:
            yield Ground(PEERS[peer], forks, folder, {} if said is None else said)


@contextlib.contextmanager
def engine(ground: Ground, name: str, records: int = RECOVERED_RECORDS) -> Iterator[list[Scenario]]:
    """One engine; ``records`` are in the store that is recovered. Raises NotHere."""
    work = ground.folder / name
    work.mkdir()
    with PEER_ENGINES[name].prepare(replace(ground, folder=work), records) as take:
        yield [Scenario("all", take)]


def cell(peer: str, name: str, records: int, said: dict[str, str]) -> dict[str, Any]:
    """What a JSON line says besides: which cell of the table it belongs to, and what was measured."""
    found: dict[str, Any] = {"peer": peer, "cell": name, "version": PEERS[peer].version(), "said": said}
    return {**found, "records": records} if name == "recovery" else found
