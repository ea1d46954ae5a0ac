"""Folders that fastlog did not write: segment files made by the reference model, and nothing else beside them."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from tests.reference.batch import Batch, Record, encode_batch

__all__ = ["as_reference", "copy_folder", "read_all", "write_foreign_log"]


def write_foreign_log(folder: Path, batches: Iterable[Batch | bytes], base_offset: int = 0) -> Path:
    """Create a partition folder that holds one ``.log`` file and no index and no file of fastlog's own."""
    folder.mkdir(parents=True, exist_ok=True)
    parts = [encode_batch(batch) if isinstance(batch, Batch) else batch for batch in batches]
    path = folder / f"{base_offset:020}.log"
    path.write_bytes(b"".join(parts))
    return path


def as_reference(record: Any) -> Record:
    """A fastlog record in the reference model's terms: timestamp -1 for none, bytes for views."""
    return Record(
        offset=record.offset,
        timestamp=-1 if record.timestamp is None else record.timestamp,
        key=None if record.key is None else bytes(record.key),
        value=None if record.value is None else bytes(record.value),
        headers=tuple(record.headers),
    )


def read_all(log: Any, start: int | None = None, max_bytes: int = 1 << 20) -> list[Record]:
    """Everything from ``start`` to the readable end, by ``read`` and ``next_offset``, in the model's terms."""
    found: list[Record] = []
    offset = log.start_offset if start is None else start
    while offset < log.readable_offset:
        batch = log.read(offset, max_bytes)
        if batch.next_offset == offset >= log.readable_offset:
            break  # a sync has failed since: readers are back at what is durable
        assert batch.next_offset > offset, "a read made no progress"
        found += [as_reference(record) for record in batch]
        offset = batch.next_offset
    return found


def copy_folder(source: Path, target: Path) -> Path:
    """A copy of a flat directory, as ``cp`` makes it."""
    target.mkdir(parents=True)
    for entry in source.iterdir():
        # a writer may be about to give a new file its name
        with contextlib.suppress(FileNotFoundError) if entry.suffix == ".tmp" else contextlib.nullcontext():
            shutil.copyfile(entry, target / entry.name)
    return target
