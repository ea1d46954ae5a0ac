"""Small partition logs of a few segments."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import fastlog

SMALL = fastlog.LogConfig(segment_bytes=1 << 14, index_interval_bytes=256, segment_index_bytes=1 << 12)
VALUE = b"x" * 1000


def open_log(path: str, **options: Any) -> fastlog.PartitionLog:
    return fastlog.PartitionLog.open(path, **{"durability": "os", "config": SMALL, **options})


def segments(path: str) -> list[str]:
    return sorted(name.name for name in Path(path).glob("*.log"))


def fill(log: fastlog.PartitionLog, count: int) -> None:
    """Append until there are ``count`` segments."""
    while len(segments(log.path)) < count:
        log.append([VALUE])
