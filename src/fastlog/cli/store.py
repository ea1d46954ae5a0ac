"""What the nouns that work on a store share: ``--store``, opening it, moments and offsets as people write them.

The store is named by ``--store PATH``, before or after the noun, else by ``FASTLOG_STORE``, else it is ``./data``.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import click

import fastlog
from fastlog.config import parse_duration_ms
from fastlog.errors import ConfigError

__all__ = ["DEFAULT_STORE", "Moment", "MomentType", "StorePath", "open_store", "store_option"]

DEFAULT_STORE = "data"
STORE_VARIABLE = "FASTLOG_STORE"
STORE_FILE = "fastlog.json"


class StorePath(click.Path):
    """A folder; whether it holds a store is found out when it is opened."""

    def __init__(self) -> None:
        super().__init__(file_okay=False, path_type=Path)


def given_store(own: Path | None) -> Path | None:
    """``--store`` of the command itself, else that of the command line before the noun; None when there is neither."""
    return own or click.get_current_context().find_root().params.get("store")


def store_option(function: Callable[..., None]) -> Callable[..., None]:
    """``--store``, handed to the command as ``store``: its own, else that of the command line before the noun."""

    @click.option("--store", "store", type=StorePath(), metavar="PATH",
                  help=f"Folder of the store. Default: ${STORE_VARIABLE}, else ./{DEFAULT_STORE}.")  # fmt: skip
    @functools.wraps(function)
    def command(*args: Any, store: Path | None, **kwargs: Any) -> None:
        function(*args, store=Path(given_store(store) or os.environ.get(STORE_VARIABLE) or DEFAULT_STORE), **kwargs)

    return command


def open_store(path: Path, *, read_only: bool = False, create: bool = False, **options: Any) -> fastlog.Store:
    """The store at ``path``; unless it may be created, a folder without one is a usage error that says what to do."""
    if not create and not (path / STORE_FILE).is_file():
        raise click.UsageError(
            f"there is no store in {path}: name one with --store or {STORE_VARIABLE}, "
            f"or make one with: fastlog topics create NAME --store {path}"
        )
    return fastlog.open(path, read_only=read_only, **options)


@dataclass(frozen=True, slots=True)
class Moment:
    """Where to begin in a topic: exactly one of them is set.

    Attributes:
        name: "earliest" or "latest".
        time: an instant; the first record at or after it.
        offset: the same offset in every partition that is read.
    """

    name: str | None = None
    time: datetime | None = None
    offset: int | None = None

    def __str__(self) -> str:
        if self.offset is not None:
            return f"@{self.offset}"
        return self.name or (self.time.isoformat() if self.time else "")


class MomentType(click.ParamType):  # type: ignore[type-arg]  # generic only in newer versions of click
    """``earliest``, ``latest``, ``-10m``, ``@offset`` or an ISO time (UTC where it names no zone)."""

    name = "moment"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Moment:
        if isinstance(value, Moment):
            return value
        if value in ("earliest", "latest"):
            return Moment(name=value)
        if value.startswith("@") and value[1:].isdigit():
            return Moment(offset=int(value[1:]))
        try:
            if value.startswith("-"):
                return Moment(time=datetime.now(UTC) - timedelta(milliseconds=parse_duration_ms(value[1:], "age")))
            time = datetime.fromisoformat(value)
        except (ValueError, ConfigError):
            self.fail(
                f"{value!r} is no place to begin: expected earliest, latest, an age such as -10m, an offset such as "
                f"@42, or a time such as 2026-01-31T12:00:00Z",
                param,
                ctx,
            )
        return Moment(time=time if time.tzinfo else time.replace(tzinfo=UTC))
