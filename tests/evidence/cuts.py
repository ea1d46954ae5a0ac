"""Power cuts for real, on three file systems, under whatever fastlog does: see ``tests/power.py``.

The disks are kept from turn to turn, since making and mounting one takes longer than a cut; each turn begins with an
empty one. In a turn power is cut several times under the same files.
"""

from __future__ import annotations

import contextlib
import shutil
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import fastlog
from fastlog.delivery.dead_letters import DeadLetters
from tests.crash.checker import History, Promise, quiet
from tests.crash.failures import AnyHistory, history_of
from tests.crash.recording import marks_after_a_cut
from tests.crash.store_history import StoreHistory
from tests.crash.store_life import STORES
from tests.crash.workloads import WORKLOADS
from tests.delivery.apps import is_read, send
from tests.delivery.fleet import PATIENCE, Fleet, everything, until
from tests.delivery.lettering import DLQ, fill, prepare
from tests.delivery.operators import LETTERS, Operator, check, finish
from tests.evidence import backing_up
from tests.evidence.run import NotHere, Scenario, Turn
from tests.folders import MEMORY
from tests.histories.nursery import Nursery
from tests.histories_messaging.driver import MORE_POSTS, POSTS, Gang
from tests.power import FILE_SYSTEMS, CannotMount, Disk, check_after_cut, mounted, run_until_cut
from tests.victims import Victims, Witness

__all__ = ["cuts"]

UPKEEP = ("retention", "compaction", "compaction_deaths", "deletions")
WORK = tuple(name for name in WORKLOADS if name not in (*UPKEEP, "recovery"))
OTHERS = ("transactions", "member a", "seeker", "reader", "async transformer", "async member", "gardener")


@dataclass
class Ground:
    """What the turns on one file system share."""

    disk: Disk
    nursery: Nursery
    victims: Victims
    errors: Path  # what all of them write to standard error

    def run_until_cut(self, role: str, seconds: float, said: Path, **arguments: Any) -> int:
        """One process, or a tree of them, until power is cut. Returns how many bytes of what it says were told by then.

        ``said`` is the file that it writes that to.
        """
        already = self.errors.stat().st_size
        child = self.nursery.start(role, **arguments)
        time.sleep(seconds)
        told = said.stat().st_size if said.exists() else 0
        ended = child.status if not child.alive else None
        if ended not in (None, 0):
            words = self.errors.read_bytes()[already:].decode(errors="replace")
            raise AssertionError(f"{role} {arguments} ended with {ended} before the cut:\n{words}")
        self.disk.cut_power()
        child.kill()
        self.disk.restore_power()
        return told


# --- one partition ----------------------------------------------------------------------------------------------------


def writer(ground: Ground, turn: Turn) -> None:
    """One writer, cut off again and again; each of them goes on where the one before was cut."""
    durability = turn.chance.choice(["batch", "group", "os", "interval"])
    path, witness = ground.disk.place / "events-0", Witness()
    for cycle in range(3):
        seconds = turn.chance.choice([0.02, 0.1, 0.3]) * turn.chance.random()
        promised = run_until_cut(ground.victims, ground.disk, path, durability, turn.seed + cycle, seconds, witness)
        ground.disk.restore_power()
        lost = check_after_cut(path, durability, witness, promised)
        turn.count("cuts")
        if lost:
            turn.count("cuts with losses")


def workload(names: tuple[str, ...], longest: float, ground: Ground, turn: Turn) -> None:
    """What is recorded for the crash states (``tests/crash``), on a real disk; then a recovery that is cut off, too.

    ``longest`` is how many seconds it may get.
    """
    for cycle in range(2):
        name = turn.chance.choice(names)
        root = ground.disk.folder(str(cycle))
        history, at = work(ground, turn, name, root, turn.chance.random() ** 2 * longest)
        cuts = 1
        if turn.chance.random() < 0.5 and (left := left_to_recover(history, at)) is not None:
            recovery = "store_recovery" if isinstance(history, StoreHistory) else "recovery"
            history, at = work(ground, turn, recovery, root, turn.chance.random() ** 2 * longest / 4, *left)
            cuts = 2
        history.check(root, at, turn.seed)
        turn.count("cuts", cuts)


def left_to_recover(history: AnyHistory, at: int) -> tuple[AnyHistory, Any] | None:
    """What the history of a recovery begins with: that of the folder, and what is left of it. None: there is none."""
    if isinstance(history, StoreHistory):
        return history, at
    if type(history) is not History:
        return None
    promise = history.promise(at)
    return history, Promise(promise.end, promise.starts | {0}, 0)


def work(ground: Ground, turn: Turn, name: str, root: Path, seconds: float, *left: Any) -> tuple[AnyHistory, int]:
    """One workload until power is cut: its history, and how much of that there is."""
    marks = turn.folder / f"marks-{root.name}-{name}"
    seed = turn.chance.randrange(1 << 20)
    told = ground.run_until_cut(
        "tests.crash.workloads:run_marking", seconds, marks,
        workload=name, folder=str(root), seed=seed, marks=str(marks),
    )  # fmt: skip
    recorded = marks_after_a_cut(marks, told)
    history = type(left[0])(recorded, seed, *left) if left else history_of(name, recorded, seed)
    return history, len(recorded.entries)


# --- a store ----------------------------------------------------------------------------------------------------------


def store(ground: Ground, turn: Turn) -> None:
    """Producers, transactions, members of groups and readers at a level that lasts; at the end, the whole history.

    Whatever was told before a cut is there: records, transactions with their offsets, commits. Nobody has read what was
    lost.
    """
    durability = turn.chance.choice(["group", "group", "batch"])
    place = ground.disk.folder("gang")
    with Gang(ground.nursery, turn.folder, turn.seed, place=place, durability=durability) as gang:
        posts = {**POSTS, **MORE_POSTS}
        gang.posts = {name: posts[name] for name in ("producer", "transformer a", *turn.chance.sample(OTHERS, 3))}
        for _ in range(2):
            seconds = 0.3 + turn.chance.random()
            gang.run(1 << 30, most=seconds, calm=turn.chance.random() < 0.5)
            gang.lose_power(ground.disk.cut_power)
            ground.disk.restore_power()
        anomalies = gang.check()
        assert not anomalies, "\n".join(f"{one.kind}: {one.text}" for one in anomalies[:20])
    turn.count("cuts", 2)
    turn.count("operations", gang.operations())


def backup(ground: Ground, turn: Turn) -> None:
    """Backups while records and transactions come in: those that were made are whole, others do not open."""
    place = ground.disk.folder("backed-up")
    for cycle in range(2):
        notes = turn.folder / f"notes-{cycle}"
        told = ground.run_until_cut(
            "tests.evidence.backing_up:live", 0.2 + turn.chance.random(), notes,
            place=str(place), notes=str(notes), cycle=cycle,
        )  # fmt: skip
        turn.count("backups", backing_up.check(place, notes, told, cycle))
        turn.count("cuts")


def moves(ground: Ground, turn: Turn) -> None:
    """Apps whose handlers fail: every record is handled, or a dead letter exactly once."""
    fleet = Fleet(turn.folder, ground.disk.folder("apps") / "store")
    options: dict[str, Any] = {"durability": "group", "retry": {"attempts": 2, "backoff": "20ms"}, "concurrency": 2}
    values = [b"%s-%d" % (turn.chance.choice([b"good", b"good", b"bad", b"once"]), number) for number in range(60)]
    cycles = 2
    try:
        give_orders(fleet.store, values)
        for _ in range(cycles):
            for _ in range(turn.chance.choice([1, 2])):
                fleet.start(**options)
            time.sleep(turn.chance.random() * 0.4)
            ground.disk.cut_power()
            fleet.kill()
            ground.disk.restore_power()
        last = fleet.start(**options)
        ends = wait_for_the_end(fleet)
        last.end(PATIENCE)
    finally:
        fleet.kill()
    names = {value.decode() for value in values}
    assert set(ends) == names, f"never came to an end: {names - set(ends)}; unknown: {set(ends) - names}"
    twice = {name: count for name, count in ends.items() if name.startswith("bad") and count > 1}
    assert not twice, f"dead letters that are there twice: {twice}"
    # what was handled within the last second before a cut comes again
    assert max(ends.values()) <= 1 + cycles
    turn.count("cuts", cycles)


# A store that was closed keeps its files mapped until nobody knows it any more: hence a function for each.


def give_orders(path: Path, values: list[bytes]) -> None:
    with fastlog.open(path) as opened:
        opened.create_topic("orders", 2)
        send(opened, "orders", values, [b"k%d" % (number % 6) for number in range(len(values))])


def wait_for_the_end(fleet: Fleet) -> Counter[str]:
    with fastlog.open(fleet.store) as opened:
        until(lambda: is_read(opened), "everything is read")
        return everything(opened, fleet)


def redrives(ground: Ground, turn: Turn) -> None:
    """Operators that send dead letters back: each letter is handled once, and the audits say so."""
    path = ground.disk.folder("letters") / "store"
    give_letters(path)
    action = turn.chance.choice(["retry", "retry", "source", "discard"])
    for cycle in range(2):
        operator = Operator(path, f"operator {cycle}", action, durability="group")
        try:
            operator.go()
            time.sleep(turn.chance.random() ** 2 * 0.3)
            ground.disk.cut_power()
        finally:
            operator.close()
        ground.disk.restore_power()
        check_letters(path, action, done=cycle == 1)
        turn.count("cuts")


def give_letters(path: Path) -> None:
    with fastlog.open(path) as opened:
        prepare(opened)
        fill(opened, LETTERS)


def check_letters(path: Path, action: str, *, done: bool) -> None:
    with fastlog.open(path) as opened:
        # ends what the one before has left
        DeadLetters.open(opened, DLQ).redrive(limit=1)
        check(opened, done=False)
        if done:
            finish(opened, action)
            check(opened, done=True)


# --- the engine -------------------------------------------------------------------------------------------------------

KINDS: dict[str, tuple[Callable[[Ground, Turn], None], int]] = {
    "writer": (writer, 2),
    "partition": (partial(workload, WORK, 0.4), 2),
    "upkeep": (partial(workload, UPKEEP, 0.4), 1),
    "lives": (partial(workload, tuple(STORES), 1.0), 1),
    "store": (store, 1),
    "backup": (backup, 1),
    "moves": (moves, 1),
    "redrives": (redrives, 1),
}


def on_an_empty_disk(ground: Ground, take: Callable[[Ground, Turn], None], turn: Turn) -> None:
    """One turn; what is on the disk when it fails is kept with the rest."""
    ground.disk.clear()
    try:
        take(ground, turn)
    except BaseException:
        with contextlib.suppress(OSError):
            shutil.copytree(ground.disk.place, turn.folder / "disk", symlinks=True, dirs_exist_ok=True)
        raise


@contextlib.contextmanager
def cuts() -> Iterator[list[Scenario]]:
    """The engine: each kind of turn on each file system."""
    with contextlib.ExitStack() as stack:
        stack.enter_context(quiet())
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="fastlog-cuts-", dir=MEMORY)))
        errors = folder / "errors"
        nursery = stack.enter_context(Nursery(errors=errors))
        victims = stack.enter_context(contextlib.closing(Victims(errors)))
        scenarios = []
        for kind in FILE_SYSTEMS.values():
            try:
                disk = stack.enter_context(mounted(kind, folder))
            except CannotMount as problem:
                reason = f"cutting power wants {kind.name} mounted from a file, which needs root: {problem}"
                raise NotHere(reason) from problem
            if not disk.loses_what_is_not_synced():
                raise NotHere(f"{kind.name} keeps what no sync has brought to the disk: its power cannot be cut here")
            ground = Ground(disk, nursery, victims, errors)
            for name, (take, weight) in KINDS.items():
                scenarios.append(Scenario(f"{kind.name}-{name}", partial(on_an_empty_disk, ground, take), weight))
        yield scenarios
