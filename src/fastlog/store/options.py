"""Options of topics: Kafka's dotted names, checked and normalised to what is stored.

Stored are integers (bytes, milliseconds), a ratio and Kafka's words, each under Kafka's own name. Three of them shape
the
files of a partition; a partition keeps those it was created with, new values shape partitions that are created later.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping
from typing import Any, Final

from fastlog.config import LogConfig, parse_duration_ms
from fastlog.errors import ConfigError

TOPIC_OPTIONS: Final = (
    "cleanup.policy",
    "delete.retention.ms",
    "index.interval.bytes",
    "max.compaction.lag.ms",
    "max.message.bytes",
    "message.timestamp.after.max.ms",
    "min.cleanable.dirty.ratio",
    "min.compaction.lag.ms",
    "retention.bytes",
    "retention.ms",
    "segment.bytes",
    "segment.index.bytes",
    "segment.ms",
)
LAYOUT_OPTIONS: Final = ("segment.bytes", "segment.index.bytes", "index.interval.bytes")
# without "_ms": a bare number is seconds
DURATIONS: Final = {
    "retention": "retention.ms",
    "delete_retention": "delete.retention.ms",
    "min_compaction_lag": "min.compaction.lag.ms",
    "max_compaction_lag": "max.compaction.lag.ms",
}
_NUMBER: Final = re.compile(r"-?\d+")


def checked(options: object) -> Mapping[str, Any]:
    """Options as a caller passed them. Raises ConfigError for what is no mapping of names."""
    if not isinstance(options, Mapping) or not all(isinstance(name, str) for name in options):
        raise ConfigError(f'config={options!r}: expected options by name, such as {{"cleanup.policy": "compact"}}')
    return options


def kafka_name(name: str) -> str:
    """The dotted name of a topic option. Raises ConfigError for an unknown one, and names the nearest."""
    dotted = DURATIONS.get(name.replace(".", "_"), name.replace("_", ".").replace("-", "."))
    if dotted not in TOPIC_OPTIONS:
        near = difflib.get_close_matches(dotted, [*TOPIC_OPTIONS, *DURATIONS], n=1)
        hint = f"; did you mean {near[0]!r}?" if near else "."
        raise ConfigError(f"unknown topic option {name!r}{hint} Known options: {', '.join(TOPIC_OPTIONS)}")
    return dotted


def normalise(options: Mapping[str, Any]) -> dict[str, Any]:
    """Options as they are stored; None stays None: it asks for the default.

    Takes Kafka's dotted names, ours with underscores, and ``retention`` and the like for durations. Raises ConfigError
    for
    unknown names, values out of range, and the same option given twice.
    """
    found: dict[str, Any] = {}
    for name, value in checked(options).items():
        dotted = kafka_name(name)
        if dotted in found:
            raise ConfigError(f"the option {dotted} is given twice: {name!r} is another name of it")
        if value is not None and name.replace(".", "_") in DURATIONS:
            value = parse_duration_ms(value, name.replace(".", "_"))
        found[dotted] = _plain(dotted, value)
    given = {name: value for name, value in found.items() if value is not None}
    resolved = LogConfig.from_options(given).resolve()
    return {name: None if value is None else _resolved(resolved, name) for name, value in found.items()}


def _plain(name: str, value: Any) -> Any:
    """Kafka's tools write every value as text."""
    if not isinstance(value, str):
        return value
    if name.endswith((".ms", ".bytes")) and _NUMBER.fullmatch(value):
        return int(value)
    if name == "min.cleanable.dirty.ratio":
        try:
            return float(value)
        except ValueError:
            raise ConfigError(f"{name}={value!r}: expected a number from 0 to 1") from None
    return value


def _resolved(resolved: Any, name: str) -> Any:
    return getattr(resolved, name.replace(".", "_"))


def merge(stored: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """Stored options with changes applied; an option that is changed to None goes back to its default."""
    merged = {**stored, **normalise(changes)}
    kept = {name: value for name, value in sorted(merged.items()) if value is not None}
    LogConfig.from_options(kept).resolve()
    return kept


def log_config(
    options: Mapping[str, Any], *, keeps_layout: bool, flush_interval: int | None, lock_timeout: int | None
) -> LogConfig:
    """What a partition of a topic with these options is opened with.

    ``keeps_layout``: the partition is there already, and its files stay shaped as they are.
    ``flush_interval``, ``lock_timeout``: milliseconds, of the store's handle.
    """
    names = [name for name in options if not (keeps_layout and name in LAYOUT_OPTIONS)]
    arguments = {name: options[name] for name in names if name in TOPIC_OPTIONS}
    if flush_interval is not None:
        arguments["flush_interval"] = f"{flush_interval}ms"
    if lock_timeout is not None:
        arguments["lock_timeout"] = f"{lock_timeout}ms"
    return LogConfig.from_options(arguments)
