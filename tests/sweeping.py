"""A log or a store with one of its files damaged: the damage, and what may come of it.

Acceptable are the same records, an error of fastlog's that names a file, and, above the recovery point of what was not
closed cleanly, a shorter log whose lost bytes are reported and kept. Never other records, nor a loss of sound data.

``python -m tests.sweeping`` tries thousands of damages in a process of its own. Standard input is a JSON object::

    {"pristine": FOLDER, "place": FOLDER, "kind": "clean" | "crashed" | "copied", "damages": [[file, how, a, b], ...]}

``pristine/expected.json`` lists the records that were appended and how many of them lie below the recovery point on
disk; ``pristine/log`` is the folder to damage. For each damage ``place`` is filled anew and opened, and read in every
way. (It is the same folder each time: fastlog remembers its inode, so as to know a copy.) The outcome is judged here.
One JSON line per bad outcome goes to standard output, then ``{"cases": N, "outcomes": {...}}``. A hang ends the
process after some seconds with a traceback, a crash ends it by itself: the parent sees both.
"""

from __future__ import annotations

import bisect
import faulthandler
import json
import os
import random
import sys
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import fastlog
from tests.foreign import as_reference

HANG_SECONDS = 20
BLOCK = 512

Damage = list[Any]  # file, how, a, b
Plain = list[Any]


def apply(data: bytes, how: str, a: int, b: int) -> bytes | None:
    """The damaged content of a file; None when it is to be deleted. ``a`` and ``b`` are bits, bytes or blocks."""
    changed = bytearray(data)
    if how == "flip":
        changed[a // 8] ^= 1 << a % 8
    elif how == "cut":
        del changed[a:]
    elif how == "zero":
        changed[a:b] = bytes(b - a)
    elif how == "duplicate":  # the block at a also stands at b
        changed[b : b + BLOCK] = changed[a : a + BLOCK]
    elif how == "swap":
        changed[a : a + BLOCK], changed[b : b + BLOCK] = changed[b : b + BLOCK], changed[a : a + BLOCK]
    elif how == "extend":
        changed += bytes([b]) * a
    elif how == "delete":
        return None
    else:
        raise ValueError(how)
    return bytes(changed)


def random_damage(name: str, data: bytes, chance: random.Random) -> Damage:
    """One way to damage a file; it is always another one afterwards."""
    size = len(data)
    while True:
        how = chance.choice(["flip"] * 8 + ["cut"] * 3 + ["zero", "duplicate", "swap", "extend", "extend", "delete"])
        damage: Damage = [name, how, 0, 0]
        if how == "extend":
            damage[2:] = chance.choice([1, 11, 12, 61, BLOCK, 5000]), chance.choice([0, 2, 0xFF])
        elif how == "flip" and size:
            damage[2] = chance.randrange(8 * size)
        elif how == "cut" and size:
            damage[2] = chance.randrange(size)
        elif how == "zero" and size:
            begin = chance.randrange(0, size, 64)
            damage[2:] = begin, min(chance.choice([begin + 64, begin + BLOCK, size]), size)
        elif how in ("duplicate", "swap") and size >= 2 * BLOCK:
            damage[2:] = (chance.randrange(size // BLOCK) * BLOCK for _ in range(2))
        elif how != "delete":
            continue
        if apply(data, *damage[1:]) != data:
            return damage


@dataclass
class Content:
    """What is in a log.

    Attributes:
        records: all that a reader sees, in order.
        durable: offsets below it lie below the recovery point on disk.
        kind: ``"clean"``, ``"crashed"`` (a copy of the files while the log was open, in the same folder), ``"copied"``.
        gaps: offsets may skip.
        isolation: of the reader.
        is_all: these are all that there is, and no marker or aborted record lies between them.
    """

    records: list[Plain]
    durable: int
    kind: str
    gaps: bool = False
    isolation: str = "read_committed"
    is_all: bool = True
    offsets: list[int] = field(init=False)
    times: list[int] = field(init=False)

    def __post_init__(self) -> None:
        self.offsets = [record[0] for record in self.records]
        self.times = sorted({record[1] for record in self.records})

    def first_from(self, offset: int) -> int:
        """Place in ``records`` of the first one at or behind an offset."""
        return bisect.bisect_left(self.offsets, offset)


def check_reads(log: Any, content: Content, end: int, offsets: Iterable[int], errors: set[str]) -> None:
    """Reading from each of these offsets gives what is there, or an error; wrong records raise."""
    for offset in offsets:
        try:
            batch = log.read(offset, 1)
        except fastlog.Error as error:
            errors.add(type(error).__name__)
            continue
        found = plain_batch(batch)
        first = content.first_from(offset)
        assert found == content.records[first : first + len(found)], f"wrong records from {offset}"
        if not found:
            # there is none for a while: markers, and what was aborted
            assert batch.next_offset > offset, f"read({offset}) makes no progress"
            following = content.offsets[first] if first < len(content.offsets) else end
            assert following >= min(batch.next_offset, end), f"read({offset}) skipped records silently"


def check_times(log: Any, content: Content, end: int, times: Iterable[int], errors: set[str]) -> None:
    """Each of these times leads to the first record that is young enough, or to an error."""
    start = log.start_offset
    for time in times:
        right = next((one[0] for one in content.records if start <= one[0] < end and one[1] >= time), None)
        try:
            answer = log.offset_for_time(time)
        except fastlog.Error as error:
            errors.add(type(error).__name__)
        else:
            assert answer == right, f"offset_for_time({time}) is {answer}, expected {right}"


def read_in_every_way(log: Any, content: Content, chance: random.Random | None) -> tuple[list[Plain], set[str]]:
    """What a full pass delivers before it ends or fails, and the kinds of errors met; wrong records raise."""
    errors: set[str] = set()
    found: list[Plain] = []
    try:
        for batch in log.batches():
            found += plain_batch(batch)
    except fastlog.Error as error:
        errors.add(type(error).__name__)
    end = log.readable_offset
    offsets: Iterable[int] = range(log.start_offset, end)
    times = content.times
    if chance is not None:
        offsets = [chance.randrange(log.start_offset, end) for _ in range(3)] if end > log.start_offset else []
        times = chance.sample(times, min(2, len(times)))
    check_reads(log, content, end, offsets, errors)
    if content.is_all:
        check_times(log, content, end, times, errors)
    return found, errors


def hexed(content: bytes | None) -> str | None:
    return None if content is None else content.hex()


def plain(record: Any) -> Plain:
    """A record as JSON has it."""
    r = as_reference(record)
    return [r.offset, r.timestamp, hexed(r.key), hexed(r.value), [[name, hexed(value)] for name, value in r.headers]]


def plain_batch(batch: Any) -> list[Plain]:
    """Its records as JSON has them."""
    headers = ([[name, hexed(value)] for name, value in pairs] for pairs in batch.headers)
    keys, values = map(hexed, batch.keys.to_list()), map(hexed, batch.values.to_list())
    return list(map(list, zip(batch.offsets.tolist(), batch.timestamps.tolist(), keys, values, headers, strict=True)))


def judge(folder: Path, content: Content, damaged: str, chance: random.Random | None = None) -> str:
    """The name of an acceptable outcome; raises AssertionError for all others. ``chance``: not every offset is read."""
    log_before = log_files(folder)
    try:
        log = fastlog.PartitionLog.open(folder, durability="os", isolation=content.isolation)
    except fastlog.Error as error:
        if str(folder) not in str(error):
            raise AssertionError("the error does not name the file") from error
        if log_files(folder) != log_before:
            raise AssertionError("a refused log was changed") from error
        return f"open: {type(error).__name__}"
    with log:
        found, errors = read_in_every_way(log, content, chance)
        if found == content.records and not errors:
            outcome = "same"
        elif errors:
            assert found == content.records[: len(found)], "other records before the error"
            outcome = f"read: {'+'.join(sorted(errors))}"
        else:
            check_shorter(log, folder, content, found, log_before, damaged)
            outcome = "cut and reported"
        if not errors and content.is_all and (chance is None or chance.random() < 0.3):
            damages = log.verify().damages
            assert not damages, f"verify finds {damages}"
        report = log.recovery
    check_kept(folder, log_before, report)
    return outcome


def check_shorter(
    log: Any, folder: Path, content: Content, found: list[Plain], log_before: dict[str, bytes], damaged: str
) -> None:
    """A log may be shorter without an error where that looks like an interrupted write."""
    missing = len(content.records) - len(found)
    assert found == content.records[: len(found)], "other records, and no error"
    assert content.kind != "clean", f"{missing} records are missing, and no error"
    # what lies behind a transaction whose end was cut is out of sight
    durable = content.first_from(min(content.durable, log.last_stable_offset))
    assert content.kind == "copied" or len(found) >= durable, (
        f"{durable} records lie below the recovery point, {len(found)} are left, and no error"
    )
    check_cut(log, folder, log_before, damaged)


def log_files(folder: Path) -> dict[str, bytes]:
    return {name: content_of(f"{folder}/{name}") for name in os.listdir(folder) if name.endswith(".log")}


def content_of(path: str) -> bytes:
    """``Path.read_bytes`` takes three times as long, and this is done for every damage."""
    with open(path, "rb", buffering=0) as file:
        return file.read()


def check_kept(folder: Path, log_before: Mapping[str, bytes], report: Any) -> None:
    """Every segment is as it was found, but for what a report names."""
    cut = {Path(one.path).name for one in report.cut} if report is not None else set()
    moved = {Path(path).name.partition(".torn-")[0] for path in report.moved_aside} if report is not None else set()
    after = log_files(folder)
    for name, content in log_before.items():
        if name in cut or name in moved or not content:
            continue
        assert name in after, f"{name} was removed, and nothing tells of it"
        assert after[name][: len(content)] == content, f"{name} was changed, and nothing tells of it"


def check_cut(log: Any, folder: Path, log_before: dict[str, bytes], damaged: str) -> None:
    """What recovery removed from a segment is in the side file that it reports."""
    report = log.recovery
    assert report is not None, "records are missing, and no recovery took place"
    if not report.cut and not report.moved_aside:
        # cut between two batches, or a whole file gone: as after a power loss, there was nothing left to cut
        before = log_before.get(damaged, b"")
        assert damaged.endswith(".log"), "records are missing, and nothing was cut"
        assert not (folder / damaged).exists() or (folder / damaged).read_bytes() == before, "cut without a report"
        return
    for cut in report.cut:
        name = Path(cut.path).name
        removed = log_before[name][cut.position :]
        assert len(removed) == cut.size
        if cut.side_file is None:
            assert not any(removed), "bytes that are not zero were cut without a side file"
        else:
            assert (folder / Path(cut.side_file).name).read_bytes() == removed


def main() -> None:
    order = json.load(sys.stdin)
    pristine, folder = Path(order["pristine"]), Path(order["place"])
    expected = json.loads((pristine / "expected.json").read_text())
    content = Content(expected["records"], expected["durable"], order["kind"])
    files = {file.name: file.read_bytes() for file in (pristine / "log").iterdir()}
    outcomes: Counter[str] = Counter()
    for file, how, a, b in order["damages"]:
        faulthandler.dump_traceback_later(HANG_SECONDS, exit=True)
        for entry in folder.iterdir():
            entry.unlink()
        for name, found in files.items():
            damaged = apply(found, how, a, b) if name == file else found
            if damaged is not None:
                (folder / name).write_bytes(damaged)
        try:
            outcomes[judge(folder, content, file)] += 1
        except BaseException as problem:
            outcomes["bad"] += 1
            if outcomes["bad"] <= 20:
                print(json.dumps({"damage": [file, how, a, b], "problem": f"{type(problem).__name__}: {problem}"}))
                sys.stdout.flush()
    faulthandler.cancel_dump_traceback_later()
    print(json.dumps({"cases": sum(outcomes.values()), "outcomes": outcomes}))
    sys.stdout.flush()
    os._exit(0)


if __name__ == "__main__":
    main()
