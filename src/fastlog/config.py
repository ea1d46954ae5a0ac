"""Every option of a partition, once: its unit, default, limits and meaning.

Names are Kafka's own, with underscores for dots; Kafka's dotted form is accepted by ``LogConfig.from_options``. Sizes
are integers in bytes or strings such as ``"64MiB"``. Durations are ``timedelta`` or strings such as ``"5s"``; a bare
number is seconds — except for options whose Kafka name ends in ``.ms``, where it is milliseconds, as in Kafka.
"""

from __future__ import annotations

import difflib
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, Final

from fastlog.errors import ConfigError

__all__ = ["DURABILITY_LEVELS", "LogConfig", "parse_duration_ms", "parse_size"]

DURABILITY_LEVELS: Final = ("group", "batch", "interval", "os")
DEFAULT_DURABILITY: Final = "group"
CODECS: Final = ("none", "gzip", "snappy", "lz4", "zstd")  # by number, as in the attributes of a batch
ISOLATION_LEVELS: Final = ("read_committed", "read_uncommitted")

KIB: Final = 1024
MIB: Final = 1024 * KIB
GIB: Final = 1024 * MIB
SECOND_MS: Final = 1000
HOUR_MS: Final = 3600 * SECOND_MS
DAY_MS: Final = 24 * HOUR_MS
MOST_SIZE: Final = 2**63 - 1
LONGEST_MS: Final = 280 * 365 * DAY_MS  # in nanoseconds it fits into 64 bits

DEFAULT_MAX_DECOMPRESSED_BYTES: Final = 64 * MIB
MOST_MAX_DECOMPRESSED_BYTES: Final = GIB

_SIZE_UNITS: Final = {
    "": 1, "b": 1, "kib": KIB, "mib": MIB, "gib": GIB, "kb": 1000, "mb": 1000**2, "gb": 1000**3,
    "k": KIB, "m": MIB, "g": GIB,
}  # fmt: skip
_DURATION_UNITS: Final = {"ms": 1, "s": SECOND_MS, "m": 60 * SECOND_MS, "h": HOUR_MS, "d": DAY_MS, "w": 7 * DAY_MS}
_QUANTITY: Final = re.compile(r"\s*(\d+(?:\.\d+)?)\s*([a-zA-Z]*)\s*")


def parse_size(value: int | str, name: str) -> int:
    """Bytes, at most 2**63 - 1, from an integer or a string such as ``"64MiB"``. Raises ConfigError."""
    size = exact_size(value, name)
    if size > MOST_SIZE:
        raise ConfigError(f"{name}={value!r} is more than can be counted: expected at most 2**63 - 1 bytes")
    return int(size)


def exact_size(value: int | str, name: str) -> float:
    """Bytes, maybe with a fraction; maybe more than can be counted."""
    if isinstance(value, int) and not isinstance(value, bool):
        return value
    match = _QUANTITY.fullmatch(value) if isinstance(value, str) else None
    unit = _SIZE_UNITS.get(match[2].lower()) if match else None
    if match is None or unit is None:
        raise ConfigError(f'{name}={value!r} is not a size: expected an integer in bytes, or a string such as "64MiB"')
    return float(match[1]) * unit


def parse_duration_ms(value: float | str | timedelta, name: str) -> int:
    """Milliseconds from a timedelta, a string such as ``"5s"``, or a number.

    A bare number is milliseconds when ``name`` ends in ``_ms`` and seconds otherwise. Raises ConfigError.
    """
    milliseconds = exact_duration_ms(value, name)
    if not math.isfinite(milliseconds) or (abs(milliseconds) > LONGEST_MS and not name.endswith("_ms")):
        raise ConfigError(f"{name}={value!r} is no duration that can be counted: expected less than 280 years")
    return round(milliseconds)


def exact_duration_ms(value: float | str | timedelta, name: str) -> float:
    """Milliseconds, maybe with a fraction; maybe none that can be counted."""
    if isinstance(value, timedelta):
        return round(value / timedelta(milliseconds=1))
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        if name.endswith("_ms"):
            return math.trunc(value) if math.isfinite(value) else value
        return value * SECOND_MS
    match = _QUANTITY.fullmatch(value) if isinstance(value, str) else None
    unit = _DURATION_UNITS.get(match[2].lower()) if match else None
    if match is None or unit is None:
        raise ConfigError(f'{name}={value!r} is not a duration: expected a timedelta or a string such as "5s" or "7d"')
    return float(match[1]) * unit


def parse_cleanup_policy(value: str | None) -> str:
    """``"delete"``, ``"compact"`` or ``"compact,delete"``, as Kafka writes them. Raises ConfigError."""
    if value is None:
        return "delete"
    parts = {part.strip() for part in value.split(",")} if isinstance(value, str) else set()
    if not parts or not parts <= {"compact", "delete"}:
        raise ConfigError(f'cleanup_policy={value!r}: expected "delete", "compact" or "compact,delete"')
    return ",".join(sorted(parts))


def parse_ratio(value: float | None) -> float:
    """``min_cleanable_dirty_ratio``, a number from 0 to 1. Raises ConfigError."""
    if value is None:
        return 0.5
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value <= 1:
        raise ConfigError(f"min_cleanable_dirty_ratio={value!r}: expected a number from 0 to 1")
    return float(value)


@dataclass(frozen=True, slots=True, kw_only=True)
class LogConfig:
    """Options of a partition. ``None`` means: as stored with the partition, else the default.

    The first three shape the files. They are stored when the partition is created, and opening it later with another
    value is a ConfigError; the others hold for the handle that was opened with them.

    Attributes:
        segment_bytes: roll to a new segment before one grows beyond this. Default 1 GiB; 256 B to 2 GiB - 1.
        segment_index_bytes: size at which an index is full, and its segment rolls. Default 10 MiB; 24 B to 1 GiB.
        index_interval_bytes: bytes of batches between two index entries. Default 4096; from 0.
        segment_ms: roll when a record is so much younger than the first batch of the segment. Default 7 days; from 1.
        max_message_bytes: largest encoded batch, and so largest record. Default 1,048,588; 100 B to 1 GiB.
        message_timestamp_after_max_ms: refuse timestamps so far in the future. Default 1 hour; from 0.
        flush_interval: how long at most records wait for a sync with ``durability="interval"``. Default 1 second; from
            1 ms.
        lock_timeout: how long to wait for a lock that another process holds, before a LockedError. Default 30 seconds;
            from 0.
        retention_ms: delete segments older than this. Default -1: never; else from 0.
        retention_bytes: delete the oldest segments while at least this much is left. Default -1: never; else from 0.
        cleanup_policy: what ``maintain`` does with old records: "delete" (default) by age and size, "compact" keeps the
            latest record of each key, "compact,delete" does both.
        delete_retention_ms: how long compaction keeps tombstones and transaction markers. Default 1 day; from 0.
        min_cleanable_dirty_ratio: compact when more than this part of the log is new since the last time. Default 0.5;
            0 to 1.
        min_compaction_lag_ms: leave records alone that are younger. Default 0.
        max_compaction_lag_ms: compact at the latest when a record is so old. Default: no limit; from 1.
        max_decompressed_bytes: refuse to read a compressed batch with more content than this, which bounds the memory
            that a read takes; batches are not written larger either. Default 64 MiB; 1 KiB to 1 GiB.
        mmap: read through memory maps (default). False reads by ``pread`` into memory of our own: slower, but safe
            where somebody else may truncate the files while they are open.
    """

    segment_bytes: int | str | None = None
    segment_index_bytes: int | str | None = None
    index_interval_bytes: int | str | None = None
    segment_ms: int | str | timedelta | None = None
    max_message_bytes: int | str | None = None
    message_timestamp_after_max_ms: int | str | timedelta | None = None
    flush_interval: float | str | timedelta | None = None
    lock_timeout: float | str | timedelta | None = None
    retention_ms: int | str | timedelta | None = None
    retention_bytes: int | str | None = None
    cleanup_policy: str | None = None
    delete_retention_ms: int | str | timedelta | None = None
    min_cleanable_dirty_ratio: float | None = None
    min_compaction_lag_ms: int | str | timedelta | None = None
    max_compaction_lag_ms: int | str | timedelta | None = None
    max_decompressed_bytes: int | str | None = None
    mmap: bool | None = None

    @classmethod
    def from_options(cls, options: Mapping[str, Any]) -> LogConfig:
        """Build a LogConfig from names as Kafka spells them (``segment.bytes``) or as we do (``segment_bytes``).

        Raises ConfigError for an unknown name, and names the nearest one.
        """
        known = list(cls.__slots__)
        arguments: dict[str, Any] = {}
        for name, value in options.items():
            plain = name.replace(".", "_").replace("-", "_")
            if plain not in known:
                near = difflib.get_close_matches(plain, known, n=1)
                hint = f"; did you mean {near[0]!r}?" if near else "."
                raise ConfigError(f"unknown option {name!r}{hint} Known options: {', '.join(known)}")
            arguments[plain] = value
        return cls(**arguments)

    def resolve(self, stored: Mapping[str, int] | None = None) -> ResolvedConfig:
        """Fill in stored values and defaults, and check every limit. Raises ConfigError."""
        values: dict[str, Any] = {}
        for name, (default, low, high) in _LIMITS.items():
            given = getattr(self, name)
            if given is not None:
                parse = parse_size if name.endswith("_bytes") else parse_duration_ms
                value = parse(given, name)
                if not low <= value <= high:
                    raise ConfigError(f"{name}={given!r} is out of range: expected {low} to {high}")
                if stored is not None and name in stored and stored[name] != value:
                    raise ConfigError(
                        f"{name}={given!r} differs from the {stored[name]} that this partition was created with: "
                        f"leave the option out to use the stored value"
                    )
            else:
                value = stored[name] if stored is not None and name in stored else default
            values[name] = value
        if self.mmap is not None and not isinstance(self.mmap, bool):
            raise ConfigError(f"mmap={self.mmap!r}: expected True or False")
        if values["min_compaction_lag_ms"] > values["max_compaction_lag_ms"]:
            raise ConfigError(
                f"min_compaction_lag_ms={self.min_compaction_lag_ms!r} exceeds max_compaction_lag_ms="
                f"{self.max_compaction_lag_ms!r}: records cannot be too young and too old at once"
            )
        return ResolvedConfig(
            mmap=self.mmap is not False,
            cleanup_policy=parse_cleanup_policy(self.cleanup_policy),
            min_cleanable_dirty_ratio=parse_ratio(self.min_cleanable_dirty_ratio),
            **values,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class ResolvedConfig:
    """A LogConfig with every value known: bytes and milliseconds."""

    segment_bytes: int
    segment_index_bytes: int
    index_interval_bytes: int
    segment_ms: int
    max_message_bytes: int
    message_timestamp_after_max_ms: int
    flush_interval: int
    lock_timeout: int
    retention_ms: int
    retention_bytes: int
    cleanup_policy: str
    delete_retention_ms: int
    min_cleanable_dirty_ratio: float
    min_compaction_lag_ms: int
    max_compaction_lag_ms: int
    max_decompressed_bytes: int
    mmap: bool

    @property
    def compacts(self) -> bool:
        """Whether ``maintain`` keeps only the latest record of each key."""
        return "compact" in self.cleanup_policy

    @property
    def deletes(self) -> bool:
        """Whether ``maintain`` deletes by age and size."""
        return "delete" in self.cleanup_policy

    def layout(self) -> dict[str, int]:
        """The options that are stored with the partition."""
        return {name: getattr(self, name) for name in _LAYOUT}


def is_layout(stored: Mapping[Any, Any]) -> bool:
    """Whether these are options as they are stored with a partition, each within its limits."""
    return set(stored) == set(_LAYOUT) and all(
        isinstance(value, int) and not isinstance(value, bool) and _LIMITS[name][1] <= value <= _LIMITS[name][2]
        for name, value in stored.items()
    )


_LAYOUT: Final = ("segment_bytes", "segment_index_bytes", "index_interval_bytes")
_LIMITS: Final = {
    # name: (default, least, most)
    "segment_bytes": (GIB, 256, 2 * GIB - 1),
    "segment_index_bytes": (10 * MIB, 24, GIB),
    "index_interval_bytes": (4096, 0, 2 * GIB - 1),
    "segment_ms": (7 * DAY_MS, 1, 2**63 - 1),
    "max_message_bytes": (1_048_588, 100, GIB),
    "message_timestamp_after_max_ms": (HOUR_MS, 0, 2**63 - 1),
    "flush_interval": (SECOND_MS, 1, DAY_MS),
    "lock_timeout": (30 * SECOND_MS, 0, DAY_MS),
    "retention_ms": (-1, -1, 2**63 - 1),
    "retention_bytes": (-1, -1, 2**63 - 1),
    "delete_retention_ms": (DAY_MS, 0, 2**63 - 1),
    "min_compaction_lag_ms": (0, 0, 2**63 - 1),
    "max_compaction_lag_ms": (2**63 - 1, 1, 2**63 - 1),
    "max_decompressed_bytes": (DEFAULT_MAX_DECOMPRESSED_BYTES, KIB, MOST_MAX_DECOMPRESSED_BYTES),
}
