"""The embedded stores that a Python program could use instead, each in the fastest way its documentation offers.

Durability is that of ``durability="os"``: what a call has written survives the death of the process, not that of the
machine. What each peer is spared is said where it is spared.
"""

from __future__ import annotations

import os
import sqlite3
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, ExitStack, closing, contextmanager, nullcontext
from pathlib import Path
from threading import Lock
from typing import Any

import lmdb
import rocksdict

from benchmarks.contest import Prepare, Work, expect
from benchmarks.sharing import batch_bytes, in_threads, single_values
from benchmarks.workload import (
    FIRST_TIMESTAMP_MS,
    VALUE_BYTES,
    VALUES_PER_CALL,
    Sizes,
    Stage,
    calls,
    looked_up_offsets,
    offset_keys,
)


def consume(items: Any) -> None:
    """Take everything from an iterator at the speed of C, keeping nothing."""
    deque(items, maxlen=0)


# --- LMDB -------------------------------------------------------------------------------------------------------------
# No sync at commit; writemap off, because with it the same work measured slower here (4.6 against 7.6 M records/s).


def open_lmdb(path: Path, records: int, value_bytes: int) -> Any:
    map_bytes = (256 << 20) + 3 * records * (value_bytes + 64)
    return lmdb.open(str(path), map_size=map_bytes, sync=False, metasync=False)


def fill_lmdb(environment: Any, batches: Iterable[tuple[Iterable[bytes], list[bytes]]]) -> None:
    """One transaction per batch of keys and values."""
    for keys, values in batches:
        with environment.begin(write=True) as transaction:
            transaction.cursor().putmulti(zip(keys, values, strict=True), append=True)


def keyed_calls(records: int, value_bytes: int) -> Iterator[tuple[list[bytes], list[bytes]]]:
    """The values of each call with keys made from their offsets: a key-value store does not number records itself."""
    start = 0
    for values in calls(records, value_bytes):
        yield offset_keys(start, len(values)), values
        start += len(values)


def lmdb_append(records: Callable[[Sizes], int], value_bytes: int, *, keys_are_ready: bool = False) -> Prepare:
    @contextmanager
    def prepare(stage: Stage) -> Iterator[Work]:
        total = records(stage.sizes)
        ready = list(keyed_calls(total, value_bytes)) if keys_are_ready else None
        with closing(open_lmdb(stage.directory, total, value_bytes)) as environment:

            def work() -> int:
                fill_lmdb(environment, ready or keyed_calls(total, value_bytes))
                return total

            yield work
            entries = environment.stat()["entries"]
            expect(entries == total, entries, total, "LMDB entries after the round")

    return prepare


def _lmdb_dataset(stage: Stage) -> Path:
    def build(path: Path) -> None:
        with closing(open_lmdb(path, stage.sizes.stored_records, VALUE_BYTES)) as environment:
            fill_lmdb(environment, keyed_calls(stage.sizes.stored_records, VALUE_BYTES))

    return stage.datasets.path("lmdb", build)


def lmdb_read(read: Callable[[Any], None]) -> Prepare:
    """``read`` gets a cursor before the first record of a read transaction."""

    @contextmanager
    def prepare(stage: Stage) -> Iterator[Work]:
        total = stage.sizes.stored_records
        with closing(open_lmdb(_lmdb_dataset(stage), total, VALUE_BYTES)) as environment:

            def work() -> int:
                with environment.begin() as transaction:
                    read(transaction.cursor())
                return total

            yield work

    return prepare


def lmdb_get() -> Prepare:
    """One read transaction for all lookups and keys encoded beforehand, both untimed."""

    @contextmanager
    def prepare(stage: Stage) -> Iterator[Work]:
        total = stage.sizes.stored_records
        keys = [offset.to_bytes(8, "big") for offset in looked_up_offsets(stage.sizes)]
        path = _lmdb_dataset(stage)
        with closing(open_lmdb(path, total, VALUE_BYTES)) as environment, environment.begin() as transaction:

            def work() -> int:
                get = transaction.get
                for key in keys:
                    get(key)
                return len(keys)

            yield work
            found = transaction.get(keys[0])
            expect(len(found) == VALUE_BYTES, len(found), VALUE_BYTES, "bytes of a value from LMDB")

    return prepare


def lmdb_set_range() -> Prepare:
    """A second database, timestamp -> offset, as a user of LMDB would keep it; keys encoded beforehand, untimed."""

    @contextmanager
    def prepare(stage: Stage) -> Iterator[Work]:
        total = stage.sizes.stored_records
        offsets = looked_up_offsets(stage.sizes)
        keys = [(FIRST_TIMESTAMP_MS + offset).to_bytes(8, "big") for offset in offsets]

        def build(path: Path) -> None:
            with closing(open_lmdb(path, total, 8)) as environment:
                for start in range(0, total, VALUES_PER_CALL):
                    times = offset_keys(FIRST_TIMESTAMP_MS + start, VALUES_PER_CALL)
                    with environment.begin(write=True) as transaction:
                        pairs = zip(times, offset_keys(start, VALUES_PER_CALL), strict=True)
                        transaction.cursor().putmulti(pairs, append=True)

        path = stage.datasets.path("lmdb-times", build)
        with closing(open_lmdb(path, total, 8)) as environment, environment.begin() as transaction:
            cursor = transaction.cursor()

            def work() -> int:
                set_range, value = cursor.set_range, cursor.value
                for key in keys:
                    set_range(key)
                    value()
                return len(keys)

            yield work
            cursor.set_range(keys[0])
            found = int.from_bytes(cursor.value(), "big")
            expect(found == offsets[0], found, offsets[0], "offset from LMDB")

    return prepare


# --- RocksDB ----------------------------------------------------------------------------------------------------------
# Write-ahead log on, not synced; raw mode, so that rocksdict encodes nothing.


def open_rocksdb(path: Path) -> Any:
    options = rocksdict.Options(raw_mode=True)
    options.create_if_missing(True)
    return rocksdict.Rdict(str(path / "rocksdb"), options=options)


def fill_rocksdb(database: Any, records: int, value_bytes: int) -> None:
    for keys, values in keyed_calls(records, value_bytes):
        batch = rocksdict.WriteBatch(raw_mode=True)
        consume(map(batch.put, keys, values))
        database.write(batch)


def rocksdb_append(records: Callable[[Sizes], int], value_bytes: int) -> Prepare:
    @contextmanager
    def prepare(stage: Stage) -> Iterator[Work]:
        total = records(stage.sizes)
        with closing(open_rocksdb(stage.directory)) as database:

            def work() -> int:
                fill_rocksdb(database, total, value_bytes)
                return total

            yield work
            last = database.get(offset_keys(total - 1, 1)[0])
            expect(last is not None and len(last) == value_bytes, last, "a value", "last record in RocksDB")

    return prepare


def _rocksdb_dataset(stage: Stage) -> Path:
    def build(path: Path) -> None:
        with closing(open_rocksdb(path)) as database:
            fill_rocksdb(database, stage.sizes.stored_records, VALUE_BYTES)
            database.flush()
            database.compact_range(None, None)

    return stage.datasets.path("rocksdb", build)


def rocksdb_read() -> Prepare:
    @contextmanager
    def prepare(stage: Stage) -> Iterator[Work]:
        total = stage.sizes.stored_records
        with closing(open_rocksdb(_rocksdb_dataset(stage))) as database:

            def work() -> int:
                consume(database.items())
                return total

            yield work

    return prepare


def rocksdb_get() -> Prepare:
    @contextmanager
    def prepare(stage: Stage) -> Iterator[Work]:
        keys = [offset.to_bytes(8, "big") for offset in looked_up_offsets(stage.sizes)]
        with closing(open_rocksdb(_rocksdb_dataset(stage))) as database:

            def work() -> int:
                get = database.get
                for key in keys:
                    get(key)
                return len(keys)

            yield work

    return prepare


# --- SQLite -----------------------------------------------------------------------------------------------------------
# WAL, synchronous=off; 32 KiB pages, because they measured a little faster than the default of 4 KiB.

_APPEND = "INSERT INTO log (value) VALUES (?)"
_COUNT = "SELECT count(*) FROM log"
_READ = "SELECT offset, value FROM log ORDER BY offset"
_GET = "SELECT value FROM log WHERE offset = ?"


def open_sqlite(path: Path) -> sqlite3.Connection:
    connection = sqlite3.connect(path / "log.sqlite", isolation_level=None)
    connection.execute("PRAGMA page_size = 32768")
    connection.execute("PRAGMA journal_mode = wal")
    connection.execute("PRAGMA synchronous = off")
    connection.execute("CREATE TABLE IF NOT EXISTS log (offset INTEGER PRIMARY KEY, value BLOB)")
    return connection


def fill_sqlite(connection: sqlite3.Connection, records: int, value_bytes: int) -> None:
    """One transaction per 1000 records; SQLite numbers the rows itself, from 1."""
    for values in calls(records, value_bytes):
        connection.execute("BEGIN")
        connection.executemany(_APPEND, zip(values, strict=True))
        connection.execute("COMMIT")


def sqlite_append(records: Callable[[Sizes], int], value_bytes: int) -> Prepare:
    @contextmanager
    def prepare(stage: Stage) -> Iterator[Work]:
        total = records(stage.sizes)
        with closing(open_sqlite(stage.directory)) as connection:

            def work() -> int:
                fill_sqlite(connection, total, value_bytes)
                return total

            yield work
            rows = connection.execute(_COUNT).fetchone()[0]
            expect(rows == total, rows, total, "SQLite rows after the round")

    return prepare


def open_sqlite_durable(path: Path) -> sqlite3.Connection:
    """WAL, synchronous=full; pages of 4 KiB, the default, because a transaction of one row writes whole pages."""
    connection = sqlite3.connect(path / "log.sqlite", isolation_level=None, timeout=60, check_same_thread=False)
    connection.execute("PRAGMA journal_mode = wal")
    connection.execute("PRAGMA synchronous = full")
    connection.execute("CREATE TABLE IF NOT EXISTS log (offset INTEGER PRIMARY KEY, value BLOB)")
    return connection


def sqlite_append_durable(threads: int, *, one_connection: bool = False) -> Prepare:
    """One row per transaction. Threads have a connection each, and SQLite's own waiting; or one, and a lock of ours."""

    @contextmanager
    def prepare(stage: Stage) -> Iterator[Work]:
        values, total = single_values(), stage.sizes.durable_appends
        with ExitStack() as stack:
            connections = [
                stack.enter_context(closing(open_sqlite_durable(stage.directory)))
                for _ in range(1 if one_connection else threads)
            ]
            lock: AbstractContextManager[Any] = Lock() if one_connection and threads > 1 else nullcontext()
            connections[0].execute(_APPEND, values[0])

            def run(number: int) -> None:
                connection = connections[number % len(connections)]
                for call in range(total // threads):
                    with lock:
                        connection.execute(_APPEND, values[(number + call) % len(values)])

            def work() -> int:
                in_threads(threads, run)
                return total

            yield work
            rows = connections[0].execute(_COUNT).fetchone()[0]
            expect(rows == total + 1, rows, total + 1, "SQLite rows after the round")

    return prepare


def _sqlite_dataset(stage: Stage) -> Path:
    def build(path: Path) -> None:
        with closing(open_sqlite(path)) as connection:
            fill_sqlite(connection, stage.sizes.stored_records, VALUE_BYTES)

    return stage.datasets.path("sqlite", build)


def sqlite_read() -> Prepare:
    @contextmanager
    def prepare(stage: Stage) -> Iterator[Work]:
        total = stage.sizes.stored_records
        with closing(open_sqlite(_sqlite_dataset(stage))) as connection:

            def work() -> int:
                consume(connection.execute(_READ))
                return total

            yield work

    return prepare


def sqlite_get() -> Prepare:
    @contextmanager
    def prepare(stage: Stage) -> Iterator[Work]:
        offsets = looked_up_offsets(stage.sizes)
        with closing(open_sqlite(_sqlite_dataset(stage))) as connection:

            def work() -> int:
                execute = connection.execute
                for offset in offsets:
                    execute(_GET, (offset + 1,)).fetchone()
                return len(offsets)

            yield work

    return prepare


# --- a bare file ------------------------------------------------------------------------------------------------------


def file_append(records: Callable[[Sizes], int], value_bytes: int) -> Prepare:
    """The floor: the bytes alone, without offsets, lengths, timestamps or checksums."""

    @contextmanager
    def prepare(stage: Stage) -> Iterator[Work]:
        total = records(stage.sizes)
        descriptor = os.open(stage.directory / "bare", os.O_WRONLY | os.O_CREAT)

        def work() -> int:
            write = os.write
            for values in calls(total, value_bytes):
                write(descriptor, b"".join(values))
            return total

        try:
            yield work
            size = os.fstat(descriptor).st_size
            expect(size == total * value_bytes, size, total * value_bytes, "bytes in the bare file")
        finally:
            os.close(descriptor)

    return prepare


def file_append_single() -> Prepare:
    """One write per record, of as many bytes as fastlog's batch of one record has."""

    @contextmanager
    def prepare(stage: Stage) -> Iterator[Work]:
        size, total = batch_bytes(stage.directory), stage.sizes.single_appends
        content = [os.urandom(size) for _ in single_values()]
        rounds = total // len(content)
        descriptor = os.open(stage.directory / "bare", os.O_WRONLY | os.O_CREAT)

        def work() -> int:
            write = os.write
            for _ in range(rounds):
                for one in content:
                    write(descriptor, one)
            return total

        try:
            yield work
            stage.details["bytes_per_write"] = size
            written = os.fstat(descriptor).st_size
            expect(written == total * size, written, total * size, "bytes in the bare file")
        finally:
            os.close(descriptor)

    return prepare
