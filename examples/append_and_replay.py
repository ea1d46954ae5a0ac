"""Append records, close, open again and replay them: by offset, and from a moment on.

Run: python examples/append_and_replay.py [folder]
"""

import sys
from datetime import UTC, datetime

import fastlog

path = sys.argv[1] if len(sys.argv) > 1 else "example-readings-0"

# Every append is on disk before it returns: durability="batch" is the default.
with fastlog.PartitionLog.open(path) as log:
    first = log.append(
        [b"21.5", b"21.7", None],  # None is a tombstone: it says that the key has no value any more
        keys=[b"kitchen", b"kitchen", b"cellar"],
        timestamps=[1_700_000_000_000, 1_700_000_060_000, 1_700_000_120_000],
        headers={"unit": b"celsius"},
    )
    print(f"appended at offset {first}, the log ends at {log.end_offset}")

with fastlog.PartitionLog.open(path, read_only=True) as log:
    count = 0
    for record in log.records(start=first):
        value = "removed" if record.value is None else record.value.decode()
        print(f"  {record.offset}  {record.datetime:%H:%M:%S}  {record.key.decode()}: {value}")
        count += 1
    print(f"replayed {count} records")

    moment = datetime(2023, 11, 14, 22, 14, tzinfo=UTC)
    offset = log.offset_for_time(moment)
    print(f"first reading at or after {moment:%H:%M:%S} has offset {offset}")
