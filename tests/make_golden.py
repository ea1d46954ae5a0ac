"""``python -m tests.make_golden``: write the log directories that every later version has to read for ever.

Run once per release that changes the layout of a file, and committed. ``tests/golden/<version>/clean`` was closed,
``crashed`` was copied while it was open; ``expected.json`` lists the records of both. Never made again for a version
that is out.
"""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path
from typing import Any

import fastlog
from tests.foreign import copy_folder
from tests.strategies import SOME_TIME
from tests.sweeping import plain

GOLDEN = Path(__file__).parent / "golden"


def fill(log: Any) -> None:
    """A bit of everything: null and empty, keys, headers, unordered timestamps, several segments, deleted records."""
    for number in range(30):
        values = [b"value %d" % number, None, b"", bytes(range(256))[: number * 8]]
        keys = [b"key-%d" % (number % 5), None, b"", b"\x00\xff"]
        times = [SOME_TIME + number * 1000, SOME_TIME + number * 1000 - 5000, SOME_TIME, 0]
        headers = [{"trace": b"%d" % number, "none": None}, None, [("h", b""), ("h", b"2")], {"ключ": b"\xfe"}]
        log.append(values, keys=keys, timestamps=times, headers=headers)
        if number == 20:
            log.flush()
    log.delete_records(before=9)


def main() -> None:
    target = GOLDEN / ".".join(fastlog.__version__.split(".")[:2])
    if target.exists():
        sys.exit(f"{target} exists: golden directories are made once")
    with tempfile.TemporaryDirectory() as name:
        made = Path(name) / "events-0"
        config = fastlog.LogConfig(segment_bytes=3000, index_interval_bytes=300)
        log = fastlog.PartitionLog.open(made, durability="os", config=config)
        fill(log)
        copy_folder(made, target / "crashed" / "events-0")
        expected = {"start_offset": log.start_offset, "records": [plain(record) for record in log.records()]}
        log.close()
        copy_folder(made, target / "clean" / "events-0")
    (target / "expected.json").write_text(json.dumps(expected, indent=1, ensure_ascii=False) + "\n")


if __name__ == "__main__":
    main()
