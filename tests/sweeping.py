"""Opens thousands of damaged copies of a small log, in a process of its own: ``python -m tests.sweeping``.

Standard input is a JSON object::

    {"pristine": FOLDER, "place": FOLDER, "kind": "clean" | "crashed" | "copied", "damages": [[file, how, a, b], ...]}

``pristine/expected.json`` lists the records that were appended and how many of them lie below the recovery point on
disk; ``pristine/log`` is the folder to damage. For each damage ``place`` is filled anew and opened, and read in every
way. (It is the same folder each time: fastlog remembers its inode, so as to know a copy.) The outcome is judged here.
One JSON line per bad outcome goes to standard output, then ``{"cases": N, "outcomes": {...}}``. A hang ends the
process after some seconds with a traceback, a crash ends it by itself: the parent sees both.
"""

from __future__ import annotations

import faulthandler
import json
import os
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import fastlog
from tests.foreign import as_reference

HANG_SECONDS = 20


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
        changed[b : b + 512] = changed[a : a + 512]
    elif how == "swap":
        changed[a : a + 512], changed[b : b + 512] = changed[b : b + 512], changed[a : a + 512]
    elif how == "extend":
        changed += bytes([b]) * a
    elif how == "delete":
        return None
    else:
        raise ValueError(how)
    return bytes(changed)


def read_in_every_way(log: Any, expected: dict[int, list[Any]], times: list[int]) -> tuple[list[Any], set[str]]:
    """What a full pass delivers before it ends or fails, and the kinds of errors met; wrong records raise."""
    errors: set[str] = set()
    found: list[Any] = []
    try:
        found += [plain(record) for record in log.records()]
    except fastlog.Error as error:
        errors.add(type(error).__name__)
    end = log.end_offset
    for offset in range(log.start_offset, end):
        try:
            batch = log.read(offset, 1)
        except fastlog.Error as error:
            errors.add(type(error).__name__)
            continue
        for record in batch:
            assert plain(record) == expected.get(record.offset), f"a wrong record at {record.offset}"
        assert len(batch) > 0, f"read({offset}) is empty"
        assert batch.offsets[0] == offset, f"read({offset}) skipped records silently"
    for time in times:
        right = next((o for o, record in expected.items() if log.start_offset <= o < end and record[1] >= time), None)
        try:
            answer = log.offset_for_time(time)
        except fastlog.Error as error:
            errors.add(type(error).__name__)
        else:
            assert answer == right, f"offset_for_time({time}) is {answer}, expected {right}"
    return found, errors


def hexed(content: bytes | None) -> str | None:
    return None if content is None else content.hex()


def plain(record: Any) -> list[Any]:
    """A record as JSON has it."""
    r = as_reference(record)
    return [r.offset, r.timestamp, hexed(r.key), hexed(r.value), [[name, hexed(value)] for name, value in r.headers]]


def judge(folder: Path, kind: str, expected: list[list[Any]], durable: int, damaged: str) -> str:
    """The name of an acceptable outcome; raises AssertionError for all others."""
    by_offset = {record[0]: record for record in expected}
    times = sorted({record[1] for record in expected})
    log_before = {file.name: file.read_bytes() for file in folder.glob("*.log")}
    try:
        log = fastlog.PartitionLog.open(folder, durability="os")
    except fastlog.Error as error:
        if str(folder) not in str(error):
            raise AssertionError("the error does not name the file") from error
        after = {file.name: file.read_bytes() for file in folder.glob("*.log")}
        if after != log_before:
            raise AssertionError("a refused log was changed") from error
        return f"open: {type(error).__name__}"
    with log:
        found, errors = read_in_every_way(log, by_offset, times)
        if found == expected and not errors:
            outcome = "same"
        elif errors:
            assert found == expected[: len(found)], "other records before the error"
            outcome = f"read: {'+'.join(sorted(errors))}"
        else:
            assert found == expected[: len(found)], "other records, and no error"
            assert kind != "clean", f"{len(expected) - len(found)} records are missing, and no error"
            assert kind == "copied" or len(found) >= durable, (
                f"{durable} records lie below the recovery point, {len(found)} are left, and no error"
            )
            check_cut(log, folder, log_before, damaged)
            outcome = "cut and reported"
        if not errors:
            report = log.verify()
            assert not report.damages, f"verify finds {report.damages}"
    return outcome


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
    files = {file.name: file.read_bytes() for file in (pristine / "log").iterdir()}
    outcomes: Counter[str] = Counter()
    for file, how, a, b in order["damages"]:
        faulthandler.dump_traceback_later(HANG_SECONDS, exit=True)
        for entry in folder.iterdir():
            entry.unlink()
        for name, content in files.items():
            damaged = apply(content, how, a, b) if name == file else content
            if damaged is not None:
                (folder / name).write_bytes(damaged)
        try:
            outcomes[judge(folder, order["kind"], expected["records"], expected["durable"], file)] += 1
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
