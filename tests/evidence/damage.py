"""E4: files damaged: bits flipped, files cut, blocks zeroed, doubled and moved, files extended and deleted.

Any file of a partition, of a store, or of a deduplicator's memory, one damage at a time, in a fresh copy
(``specimens``); what may come of it is judged by ``sweeping``. The small log is swept bit by bit in
``tests/test_sweeps.py``, and at random here.

The shared pages below ``control`` are damaged while nobody has the store open: while somebody has, they are memory that
processes share, and writing into it is as much out of contract as into their heaps.
"""

from __future__ import annotations

import contextlib
import faulthandler
import functools
import itertools
import random
import signal
import struct
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from tests.crash.checker import quiet
from tests.crash.replayer import Disk, Place
from tests.evidence.guarded import Tell, guarded
from tests.evidence.run import Scenario, Turn
from tests.folders import MEMORY
from tests.reference.batch import LENGTH_EXCLUDES
from tests.specimens import ISOLATIONS, META, Specimen, load_all, make_all
from tests.sweeping import HANG_SECONDS, Content, Damage, apply, judge, random_damage
from tests.sweeping_stores import StoreJudge, judge_ids

INPUTS = {"producers": 400, "store": 60, "ids": 500}  # the first has 50 files, the second many logs
OF_A_PARTITION = 800
SECONDS = 300.0
# what the ledger calls an outcome; all others are errors
WORDS = {"same": "harmless", "cut and reported": "cut", "unseen": "wrong where no bytes can tell"}
BASE_AND_LENGTH = struct.Struct(">qi")
LAST_OFFSET_DELTA = struct.Struct(">i")
LAST_OFFSET_DELTA_AT = 23


@contextlib.contextmanager
def damage() -> Iterator[list[Scenario]]:
    """One scenario for each kind of thing that is damaged; it was closed, open, or copied while it was open."""
    with tempfile.TemporaryDirectory(prefix="fastlog-damage-", dir=MEMORY) as name:
        setting_up = Turn(0, Path(name))
        guarded(setting_up, lambda tell: make_all(setting_up.folder), SECONDS)
        specimens: dict[str, list[Specimen]] = {}
        for specimen in load_all(setting_up.folder):
            specimens.setdefault(specimen.name, []).append(specimen)
        yield [Scenario(kind, functools.partial(take, found)) for kind, found in specimens.items()]


def take(specimens: list[Specimen], turn: Turn) -> None:
    """Some hundreds of damages of one specimen."""
    guarded(turn, functools.partial(sweep, turn.chance.choice(specimens), turn), SECONDS)


def sweep(specimen: Specimen, turn: Turn, tell: Tell) -> None:
    chance = turn.chance
    (turn.folder / "events-0").mkdir()
    place = Place(turn.folder / "events-0")
    # a thread that watches, as faulthandler has for such ends, would take longer than what it watches
    faulthandler.register(signal.SIGALRM, chain=True)
    names = [name for name in specimen.disk.names for _ in range(3 if name.endswith(".log") else 1)]
    with place.believed(), quiet():
        for _ in range(INPUTS.get(specimen.name, OF_A_PARTITION)):
            name = chance.choice(names)
            content = specimen.disk.contents[specimen.disk.names[name]]
            found = random_damage(name, content, chance)
            signal.alarm(HANG_SECONDS)
            try:
                outcome = judge_one(specimen, found, place, chance)
            except BaseException as problem:
                raise AssertionError(f"{specimen.name}, {specimen.kind}, {found}: {problem!r}") from problem
            tell("inputs", 1)
            tell(WORDS.get(outcome, "noticed"), 1)


def judge_one(specimen: Specimen, found: Damage, place: Place, chance: random.Random) -> str:
    """Damage a fresh copy, and judge what comes of it. ``"unseen"``: other records, and nothing in the files says so:
    what ``docs/durability.md`` names as beyond notice.
    """
    name, how, a, b = found
    before = specimen.disk.contents[specimen.disk.names[name]]
    after = apply(before, how, a, b)
    place.put(damaged(specimen.disk, name, after))
    if specimen.name == "store":
        return StoreJudge(place.root, specimen.told, specimen.kind, name).judge(chance)
    if specimen.name == "ids":
        return judge_ids(place.root, chance)
    content = whole = specimen.content(chance.choice(ISOLATIONS))
    bases = sorted(int(other[:20]) for other in specimen.disk.names if other.endswith(".log"))
    following = next((base for base in bases if name.endswith(".log") and base > int(name[:20])), None)
    is_noticed_late = False
    if content.gaps and following is not None:  # the last segment is never compacted
        content, is_noticed_late = as_far_as_noticed(content, before, after or b"", int(name[:20]), following)
    if name == META and not after and content.kind != "clean":
        # without it, and its copy in the marker of a clean close, nobody knows where the log began
        content = replace(content, records=specimen.told["from the first byte"][content.isolation])
    outcome = judge(place.root, content, name, chance)
    assert not is_noticed_late or "Error" in outcome, "offsets beyond those of the next batch, and no error"
    return "unseen" if outcome == "same" and content.records != whole.records else outcome


def as_far_as_noticed(
    content: Content, before: bytes, after: bytes, start: int, following: int
) -> tuple[Content, bool]:
    """What is read from a damaged segment in which offsets may skip: it has those from ``start`` to ``following``.

    A wrong base offset that still rises cannot be noticed there, nor, while there is no marker of a clean close to tell
    its size, that it ends after another batch. One that reaches beyond the next batch is noticed when that one is read:
    then the second value is true.
    """
    is_noticed_late = False
    records = content.records
    position, previous, is_lost = 0, start - 1, content.kind != "clean"
    limits = dict(itertools.pairwise([*(base for _, base, _ in batches_of(before)), following]))
    if not before.startswith(after):
        is_lost = False
    for position, base, size in batches_of(before):
        (last,) = LAST_OFFSET_DELTA.unpack_from(before, position + LAST_OFFSET_DELTA_AT)
        within = range(base, base + last + 1)
        if is_lost and len(after) == position:
            kept = [one for one in records if one[0] < base or one[0] >= end_of(before)]
            return replace(content, records=kept), is_noticed_late
        if after[position + 8 : position + size] == before[position + 8 : position + size]:
            now, _ = BASE_AND_LENGTH.unpack_from(after, position)
            if now != base and previous < now and now + last < following:
                is_noticed_late = now + last >= limits[base]
                records = [[one[0] + now - base, *one[1:]] if one[0] in within else one for one in records]
        previous = within[-1]
    return replace(content, records=records), is_noticed_late


def batches_of(data: bytes) -> Iterator[tuple[int, int, int]]:
    """Position, base offset and size of each batch of an undamaged segment."""
    position = 0
    while position < len(data):
        base, length = BASE_AND_LENGTH.unpack_from(data, position)
        yield position, base, length + LENGTH_EXCLUDES
        position += length + LENGTH_EXCLUDES


def end_of(data: bytes) -> int:
    """The offset behind the last batch."""
    position, base, _ = list(batches_of(data))[-1]
    (last,) = LAST_OFFSET_DELTA.unpack_from(data, position + LAST_OFFSET_DELTA_AT)
    return int(base + last + 1)


def damaged(disk: Disk, name: str, content: bytes | None) -> Disk:
    """The disk with another content of one file, or without it."""
    if content is None:
        return replace(disk, names={other: file for other, file in disk.names.items() if other != name})
    return replace(disk, contents={**disk.contents, disk.names[name]: content})
