"""The server of ``victims``: a warm interpreter that forks one writer per line on standard input.

A line is ``<folder> <durability> <seed> [<failpoint>:<nth>]``. The writer appends, flushes, deletes and reopens at
random until it is killed, and reports on standard output, one line each, written with a single ``write``:

====================  ======================================================================
``pid N``             the writer runs
``open``              the log is open, all that was acked before is behind it
``try N``             an append of N records is about to start
``ack BASE N CRC``    it returned BASE; CRC-32 of the records, see ``checksum``
``flushed END``       ``flush`` returned END
``deleting START``    ``delete_records(before=START)`` is about to start
``deleted START``     it returned
``done STATUS``       the writer is gone (from the server)
====================  ======================================================================
"""

from __future__ import annotations

import os
import random
import sys
import traceback
import zlib
from collections.abc import Iterable, Sequence
from typing import Any

import fastlog
from fastlog._native import oscalls

SOME_TIME = 1_700_000_000_000
CONFIG: dict[str, Any] = {"segment_bytes": 24_000, "index_interval_bytes": 500, "max_message_bytes": 4_000}
KEPT_RECORDS = 1500
DURABLE = ("group", "batch")  # levels at which what is acknowledged survives power loss


def report(line: str) -> None:
    os.write(1, (line + "\n").encode())


def checksum(records: Iterable[tuple[int, int, bytes | None, bytes | None, Sequence[Any]]]) -> int:
    """CRC-32 over offset, timestamp, key, value and headers of each record, null and empty told apart."""
    crc = 0
    for record in records:
        crc = zlib.crc32(repr(record).encode(), crc)
    return crc


def append(log: Any, chance: random.Random) -> None:
    count = chance.choice([1, 1, 2, 10, 60])
    values = [chance.choice([None, b"", chance.randbytes(chance.randint(1, 150))]) for _ in range(count)]
    if chance.random() < 0.02:
        values[0] = chance.randbytes(3500)
    keys = [chance.choice([None, b"", b"key"]) for _ in range(count)]
    timestamps = [SOME_TIME + chance.randint(-1000, 1000) for _ in range(count)]
    headers = [chance.choice([(), (("h", b"1"), ("h", None))]) for _ in range(count)]
    report(f"try {count}")
    codec = chance.choice([None, None, None, "gzip", "snappy", "lz4", "zstd"])
    base = log.append(values, keys=keys, timestamps=timestamps, headers=headers, compression=codec)
    crc = checksum(zip(range(base, base + count), timestamps, keys, values, headers, strict=True))
    report(f"ack {base} {count} {crc}")


def write_until_killed(folder: str, durability: str, seed: int) -> None:
    chance = random.Random(seed)
    config = fastlog.LogConfig(**CONFIG)
    log = fastlog.PartitionLog.open(folder, durability=durability, config=config)
    report("open")
    while True:
        dice = chance.random()
        if dice < 0.88:
            append(log, chance)
        elif dice < 0.92:
            report(f"flushed {log.flush()}")
        elif dice < 0.96:
            start = max(log.start_offset, log.end_offset - chance.randint(0, KEPT_RECORDS))
            report(f"deleting {start}")
            report(f"deleted {log.delete_records(before=start)}")
        else:
            log.close()
            log = fastlog.PartitionLog.open(folder, durability=durability, config=config)


def main() -> None:
    for line in sys.stdin:
        folder, durability, seed, *failpoint = line.split()
        pid = os.fork()
        if pid == 0:
            report(f"pid {os.getpid()}")
            try:
                for place in failpoint:
                    name, nth = place.split(":")
                    oscalls.arm(name, "kill", int(nth))
                write_until_killed(folder, durability, int(seed))
            except BaseException:  # noqa: BLE001 - a forked child must never return to its parent's loop
                traceback.print_exc()
                os._exit(3)
        report(f"done {os.waitpid(pid, 0)[1]}")


if __name__ == "__main__":
    main()
