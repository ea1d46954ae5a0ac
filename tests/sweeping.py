"""Opens thousands of damaged copies of a small log, in a process of its own: ``python -m tests.sweeping``.

Standard input is a JSON object::

    {"pristine": FOLDER, "scratch": FOLDER, "kind": "clean" | "crashed" | "crashed-state", "damages": [[file, how, a, b], ...]}

``pristine/expected.json`` lists the records that were appended, ``pristine/log`` is the folder to damage. Each damage
is applied to a fresh copy, which is then opened and read in every way. The outcome is judged here, and one JSON line
per bad outcome goes to standard output, then ``{"cases": N, "outcomes": {...}}``. A hang ends the process after some
seconds with a traceback, a crash ends it by itself: the parent sees both.
"""

from __future__ import annotations

import faulthandler
import json
import os
import shutil
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
        assert len(batch) and batch.offsets[0] == offset, f"read({offset}) skipped records silently"
    for time in times:
        right = next((o for o, record in expected.items() if log.start_offset <= o < end and record[1] >= time), None)
        try:
            answer = log.offset_for_time(time)
        except fastlog.Error as error:
            errors.add(type(error).__name__)
        else:
            assert answer == right, f"offset_for_time({time}) is {answer}, expected {right}"
    return found, errors


def plain(record: Any) -> list[Any]:
    r = as_reference(record)
    pairs = [[name, None if value is None else value.hex()] for name, value in r.headers]
    return [r.offset, r.timestamp, None if r.key is None else r.key.hex(), r.value and r.value.hex(), pairs]


def judge(folder: Path, kind: str, expected: list[list[Any]], durable: int, damaged: str) -> str:
    """The name of an acceptable outcome; raises AssertionError for all others."""
    by_offset = {record[0]: record for record in expected}
    times = sorted({record[1] for record in expected})
    log_before = {file.name: file.read_bytes() for file in folder.glob("*.log")}
    try:
        log = fastlog.PartitionLog.open(folder, durability="os")
    except fastlog.Error as error:
        assert str(folder) in str(error), f"the error does not name the file: {error}"
        after = {file.name: file.read_bytes() for file in folder.glob("*.log")}
        assert after == log_before, "a refused log was changed"
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
            assert kind.startswith("crashed"), f"{len(expected) - len(found)} records are missing, and no error"
            assert len(found) >= durable, f"{durable} records were durable, {len(found)} are left, and no error"
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
    if damaged.endswith(".log") and not report.cut and not report.moved_aside:
        # cut at the end of a batch: nothing was left to cut, as after a power loss
        assert log_before[damaged] == (folder / damaged).read_bytes(), "cut without a report"
        return
    assert report.cut or report.moved_aside, "records are missing, and nothing was cut"
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
    pristine, scratch = Path(order["pristine"]), Path(order["scratch"])
    expected = json.loads((pristine / "expected.json").read_text())
    files = {file.name: file.read_bytes() for file in (pristine / "log").iterdir()}
    outcomes: Counter[str] = Counter()
    folder = scratch / "events-0"
    for file, how, a, b in order["damages"]:
        faulthandler.dump_traceback_later(HANG_SECONDS, exit=True)
        if folder.exists():
            shutil.rmtree(folder)
        folder.mkdir()
        for name, content in files.items():
            damaged = apply(content, how, a, b) if name == file else content
            if damaged is not None:
                (folder / name).write_bytes(damaged)
        try:
            outcomes[judge(folder, order["kind"], expected["records"], expected["durable"], file)] += 1
        except BaseException as problem:  # noqa: BLE001 - whatever it is, it belongs to this damage
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
