"""Stores that last as long as a test."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Final

import fastlog

if TYPE_CHECKING:
    from fastlog import Store

__all__ = ["temporary_store"]

MEMORY: Final = "/dev/shm"
LEAST_ROOM: Final = 32 * 1024 * 1024


@contextmanager
def temporary_store() -> Iterator[Store]:
    """An empty store, in memory where there is such a folder; removed at the end.

    A store syncs when topics are made and when it is closed, at every durability level: on a disk that would be most of
    what a test takes. In memory it is milliseconds.
    """
    with (
        tempfile.TemporaryDirectory(prefix="fastlog-", dir=folder_in_memory(), ignore_cleanup_errors=True) as folder,
        fastlog.open(folder, durability="os") as store,
    ):
        yield store


def folder_in_memory() -> str | None:
    """A folder whose files are in memory; None, that of ``tempfile``, where there is none, or no room in it."""
    try:
        room = os.statvfs(MEMORY)
    except OSError:
        return None
    has_room = room.f_bavail * room.f_frsize >= LEAST_ROOM
    return MEMORY if has_room and os.access(MEMORY, os.W_OK | os.X_OK) else None
