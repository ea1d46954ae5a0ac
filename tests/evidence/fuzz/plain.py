"""Targets of the fuzzer that are Python: what the engine's cold code and the layers above read.

Each is a function of bytes. An error of fastlog's is an answer, everything else that comes out is a finding. Bytes in
front that are not part of what is read say what a caller, or another file, would.
"""

from __future__ import annotations

import contextlib
import io
import itertools
import logging
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Final

import numpy

import fastlog
from fastlog._native.checksum import crc32c
from fastlog.delivery import audits as audit_records
from fastlog.delivery import headers as moved
from fastlog.delivery.finished import Finished, Progress, decode_metadata
from fastlog.errors import Error
from fastlog.groups import formats
from fastlog.partition import files
from fastlog.records import Headers
from fastlog.store import catalog, naming
from fastlog.store import files as store_files
from fastlog.transactions import records as transaction_records
from fastlog.transactions.states import TransactionStatus
from tests.evidence.fuzz import FOLDER
from tests.evidence.fuzz.corpus import SOME_TIME, log_parts, made_log

NAMES: Final = ("topic", "partition", "offset", "timestamp", "timestamp-type", "attempts", "due", "state", "group")


Record = fastlog.Record[bytes | None, bytes | None]


def own_folder(name: str) -> Path:
    """A folder in memory for the one input that is being looked at; who starts a fuzzer removes it."""
    folder = Path(os.environ[FOLDER], name)
    folder.mkdir(exist_ok=True)
    return folder


# --- records of internal topics ------------------------------------------------------------------------------------


def offsets(data: bytes) -> None:
    """Records of ``__consumer_offsets``."""
    kind, content = data[:1], data[1:]
    if kind < b"\x80":
        key = formats.decode_key(content)
        if key is not None:
            assert content[2:].startswith(formats.encode_key(*key)[2:])  # behind the version
        return
    value = formats.decode_value(content)
    again = formats.encode_value(value.position, value.topic_id)
    assert formats.decode_value(again) == value
    assert content.startswith(again) or content[:2] != b"\0\3"  # other versions can say the same in several ways


def transactions(data: bytes) -> None:
    """Records of ``__transaction_state``."""
    kind, content = data[:1], data[1:]
    if kind < b"\x80":
        name = transaction_records.decode_key(content)
        if name is not None:
            assert content.startswith(transaction_records.encode_key(name))
        return
    state = transaction_records.decode_value(content)
    again = transaction_records.decode_value(transaction_records.encode_value(state))
    expected = () if state.status is TransactionStatus.EMPTY else tuple(sorted(state.partitions))
    assert replace(again, partitions=tuple(sorted(again.partitions))) == replace(state, partitions=expected)


# --- what handlers leave in records and commits ----------------------------------------------------------------------


def headers(data: bytes) -> None:
    """Headers of moved records, a line each: ``name=value``, or a name alone (null); two digits are a name of ours."""
    prefixes = (moved.RETRY_PREFIX, moved.DEAD_LETTER_PREFIX)
    pairs: list[tuple[str, bytes | None]] = []
    for line in data.split(b"\n"):
        name, equals, value = line.partition(b"=")
        text = name.decode("utf-8", "surrogateescape")
        if text[:1] in "01" and text[1:2].isdigit():
            text = prefixes[int(text[0])] + NAMES[int(text[1]) % len(NAMES)]
        pairs.append((text, value if equals else None))
    record = Record("letters", 0, 5, 7, b"key", b"value", Headers(pairs))
    with contextlib.suppress(Error):
        item = moved.item_of_retry(record)
        assert (item.origin_topic, item.raw.key, item.raw.value) == (item.raw.topic, b"key", b"value")
    letter = moved.letter_of(record)
    back = Record("retries", 0, 5, 7, letter.key, letter.value, Headers(moved.redriven_headers(letter)))
    raw = moved.item_of_retry(back).raw
    assert (raw.topic, raw.partition, raw.offset) == (
        letter.origin_topic,
        letter.origin_partition,
        letter.origin_offset,
    )
    assert (raw.timestamp, raw.timestamp_type) == (letter.origin_timestamp, letter.timestamp_type)
    assert list(raw.headers) == list(letter.headers)


def finished(data: bytes) -> None:
    """The metadata of a group's committed offset."""
    offset = int.from_bytes(data[:2], "big") << (data[2] & 63) if len(data) > 2 else 0
    metadata = data[3:].decode("utf-8", "replace")
    Finished.decode(offset, metadata)
    try:
        told = decode_metadata(offset, metadata)
    except ValueError:
        return
    assert Finished.decode(offset, told.encode()) == told
    bounds = [told.prefix, *(bound for run in told.runs for bound in run)]
    assert all(before < after for before, after in itertools.pairwise(bounds))
    assert Progress(told).runs() == told.runs


def audits(data: bytes) -> None:
    """What became of dead letters, as records of their topic tell."""
    told = [
        audit_records.audit_of(Record("letters", 0, number, None, None, line, Headers()))
        for number, line in enumerate(data.split(b"\n"))
    ]
    handled = audit_records.Handled(told)
    places = numpy.array([0, 1, 5, 2**62, 2**63 - 1], dtype=numpy.int64)
    for place, is_handled in zip(places.tolist(), handled.mask(places).tolist(), strict=True):
        inside = any(first <= place < first + length for audit in told for first, length in audit.offsets)
        assert is_handled == inside
        handled.action_at(place)


# --- files of a partition and of a store -----------------------------------------------------------------------------


def sealed(content: bytes) -> bytes:
    """A line with the checksum of what it says, as the files of a partition have it."""
    line = content[9:].rstrip(b" ").removesuffix(b"\n")
    return b"%08x %s\n" % (crc32c(line), line)


STATE_FILES: Final = (files.META, files.CLEAN, files.INDEXES, files.EPOCHS)


def state(data: bytes) -> None:
    """The state files beside the segments of a partition."""
    if not data:
        return
    kind, content = data[0], data[1:]
    folder = own_folder("state")
    name = STATE_FILES[kind & 3]
    (folder / name).write_bytes(sealed(content) if kind & 4 else content)
    where = str(folder)
    if name == files.META:
        meta = files.read_meta(where)
        assert (meta is None) == ((folder / name).stat().st_size == 0)
        if meta is not None:
            check_meta(meta)
    elif name == files.CLEAN:
        marker = files.read_clean_marker(where)
        if marker is not None:
            check_meta(marker.meta)
            assert marker.end_offset >= 0
            assert all(isinstance(size, int) for size in marker.files.values())
    elif name == files.INDEXES:
        known = files.read_index_checksums(where)
        for base in known:
            for size in (0, 100):
                files.checksums_of(known, base, size, is_clean=bool(kind & 8))
    else:
        epochs = files.read_epochs(where)
        if epochs is not None:
            files.write_epochs(where, epochs)
            assert files.read_epochs(where) == epochs


def check_meta(meta: files.Meta) -> None:
    """What is read can be worked with: compared, changed, written."""
    assert meta.start_offset >= 0
    assert meta.recovery_point >= 0
    assert meta.recovery_position >= 0
    meta.allow_gaps(3, 5)
    assert meta.allows_gaps(4)
    assert files.Meta.from_payload("again", meta.to_payload()) == meta


def store(data: bytes) -> None:
    """The small files of a store, ours and Kafka's."""
    if not data:
        return
    kind, content = data[0], data[1:]
    folder = own_folder("store")
    path = str(folder / ("events.json" if kind & 3 == 0 else "file"))
    Path(path).write_bytes(content)
    if kind & 3 == 0:
        found = catalog.read_topic(str(folder), "events")
        assert found is not None
        info, deleting = found
        assert (info.name, 1 <= info.partitions <= naming.MOST_PARTITIONS) == ("events", True)
        catalog.write_topic(str(folder), info, deleting=deleting)
        assert catalog.read_topic(str(folder), "events") == found
    elif kind & 3 == 1:
        entries = store_files.read_checkpoint(path)
        store_files.write_checkpoint(path, entries)
        assert store_files.read_checkpoint(path) == entries or any(map(unwritable, entries))
    elif kind & 3 == 2:
        store_files.read_properties(path)
        (folder / store_files.PARTITION_METADATA).write_bytes(content)
        store_files.read_partition_topic_id(str(folder))
    else:
        store_files.read_json(path)
        name = content.decode("utf-8", "replace")
        known = naming.parse_folder(name)
        if known is not None:
            assert naming.folder_name(*known) == name
        naming.is_deleted_name(name)
        naming.is_id(name)
        naming.check_name(name)


def unwritable(entry: tuple[str, int]) -> bool:
    """Whether the name has a break in it: it takes a line of its own, which no topic's does."""
    return len(entry[0].splitlines()) != 1


# --- a whole log -----------------------------------------------------------------------------------------------------

MADE: dict[str, dict[str, bytes]] = {}  # the log that a file is put into: made once


def logs(data: bytes) -> None:
    """A folder with one file that somebody else made: it opens and can be read, or an error says why not."""
    if len(data) < 2:
        return
    if not MADE:
        MADE.update(made_log(own_folder("events-0")))
    how, content = data[1], data[2:]
    pristine = MADE["clean" if how & 1 else "crashed"]
    parts = log_parts(MADE["clean"])
    name = parts[data[0] % len(parts)]
    # the folder that it was made in, or one that it is a copy in
    folder = own_folder("copied-0" if how & 32 else "events-0")
    for entry in folder.iterdir():
        entry.unlink()
    for other, found in pristine.items():
        (folder / other).write_bytes(found)
    if how & 2 and name in pristine:  # only what follows a place is another
        content = pristine[name][: int.from_bytes(content[:2], "big")] + content[2:]
    (folder / name).write_bytes(sealed(content) if how & 4 and name.startswith(".fastlog-") else content)
    with fastlog.PartitionLog.open(
        folder, read_only=bool(how & 16), config=fastlog.LogConfig(mmap=not how & 8), durability="os"
    ) as log:
        read_everywhere(log)


def read_everywhere(log: fastlog.PartitionLog) -> None:
    """Read from several offsets and times; what comes lies where it was asked for."""
    start, end = log.start_offset, log.end_offset
    assert 0 <= start <= end
    for offset in range(start, end, max(1, (end - start) // 20)):
        with contextlib.suppress(Error):
            batch = log.read(offset, 4096)
            assert all(offset <= record.offset < end for record in batch)
            assert batch.next_offset >= offset
    for time in (0, 1, SOME_TIME, 2**62):
        with contextlib.suppress(Error):
            found = log.offset_for_time(time)
            assert found is None or start <= found < end
    log.verify()


TARGETS: Final[dict[str, Callable[[bytes], None]]] = {
    target.__name__: target for target in (offsets, transactions, headers, finished, audits, state, store, logs)
}


def take_input(name: str, content: bytes) -> None:
    """One input, outside of a fuzzer. Errors of fastlog are answers; everything else comes out."""
    logging.disable(logging.CRITICAL)
    try:
        with contextlib.suppress(Error), contextlib.redirect_stderr(io.StringIO()):
            TARGETS[name](content)
    finally:
        logging.disable(logging.NOTSET)
