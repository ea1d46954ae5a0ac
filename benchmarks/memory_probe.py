"""Read the log at the path given, batch by batch, and print how much private memory that took, as JSON.

Private memory is ``RssAnon`` of the process (the mapped file is the page cache's and is not in it), looked at after
each batch while the batch and its columns are alive.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import fastlog

_STATUS = Path("/proc/self/status")


def private_bytes() -> int:
    for line in _STATUS.read_text().splitlines():
        if line.startswith("RssAnon:"):
            return int(line.split()[1]) << 10
    raise SystemExit("/proc/self/status has no RssAnon: this measurement needs Linux")


def main(path: str) -> None:
    at_start = peak = private_bytes()
    records = total_bytes = 0
    with fastlog.PartitionLog.open(path, durability="os") as log:
        for batch in log.batches():
            columns = batch.offsets, batch.timestamps, batch.values.sizes
            peak = max(peak, private_bytes())
            records += len(columns[0])
            total_bytes += int(columns[2].sum())
    print(json.dumps({"peak_bytes": peak, "start_bytes": at_start, "records": records, "bytes": total_bytes}))


if __name__ == "__main__":
    main(sys.argv[1])
