"""The peers that live in the process of their user, and fastlog itself: one small adapter each.

An adapter does what a program would that keeps its events in that store: it numbers records itself where the store
does not, and hands a batch over as one call or transaction where the store has such a thing. How a peer is configured,
and what its documentation says of that, stands beside it, for the table.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import re
import sqlite3
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

import fastlog
from tests.evidence.run import NotHere

MAP_BYTES = 4 << 30  # LMDB wants to know beforehand; the file grows only as far as it is written
KEY_BYTES = 8


class Store(Protocol):
    """A store that is open."""

    def append(self, values: list[bytes]) -> None:
        """Returns when all of them are acknowledged, as this configuration means it."""

    def read_all(self) -> Iterator[tuple[int, bytes]]:
        """Every record from front to back, with its position."""

    def close(self) -> None:
        """A clean close."""


@dataclass(frozen=True)
class Peer:
    """A store in one configuration.

    ``keeps`` is what its documentation promises of an acknowledged record when power fails. ``holds`` are the files
    that have the records in them after a clean close: those are damaged.
    """

    name: str
    title: str
    configured: str
    source: str
    keeps: Literal["yes", "no", "not said"]
    open: Callable[[str], Store]
    holds: tuple[str, ...]
    package: str
    module: str
    version: Callable[[], str]

    def require(self) -> None:
        """Raises NotHere without the package of the peer."""
        if importlib.util.find_spec(self.module) is None:
            raise NotHere(f"{self.name} needs the package {self.package}: pip install -e '.[peers]'")


def package_version(package: str) -> str:
    return f"{package} {importlib.metadata.version(package)}"


def key_of(number: int) -> bytes:
    """A key that sorts as its number does."""
    return number.to_bytes(KEY_BYTES, "big")


# --- fastlog ----------------------------------------------------------------------------------------------------------


class Fastlog:
    """``PartitionLog``; it numbers the records itself."""

    def __init__(self, place: str, durability: str) -> None:
        Path(place).mkdir(parents=True, exist_ok=True)
        self.log = fastlog.PartitionLog.open(Path(place) / "events-0", durability=durability)

    def append(self, values: list[bytes]) -> None:
        self.log.append(values)

    def read_all(self) -> Iterator[tuple[int, bytes]]:
        for batch in self.log.batches():
            yield from zip(batch.offsets.tolist(), batch.values.to_list(), strict=True)

    def close(self) -> None:
        self.log.close()


def fastlog_version() -> str:
    return f"fastlog {fastlog.__version__}"


# --- SQLite -----------------------------------------------------------------------------------------------------------


class Sqlite:
    """A table whose rows SQLite numbers; one transaction per append."""

    def __init__(self, place: str, synchronous: str) -> None:
        Path(place).mkdir(parents=True, exist_ok=True)
        self.connection = sqlite3.connect(Path(place) / "log.sqlite", isolation_level=None)
        self.connection.execute("PRAGMA journal_mode = wal")
        self.connection.execute(f"PRAGMA synchronous = {synchronous}")
        self.connection.execute("CREATE TABLE IF NOT EXISTS log (offset INTEGER PRIMARY KEY, value BLOB)")

    def append(self, values: list[bytes]) -> None:
        self.connection.execute("BEGIN")
        self.connection.executemany("INSERT INTO log (value) VALUES (?)", [(value,) for value in values])
        self.connection.execute("COMMIT")

    def read_all(self) -> Iterator[tuple[int, bytes]]:
        yield from self.connection.execute("SELECT offset, value FROM log ORDER BY offset")

    def close(self) -> None:
        self.connection.close()


def sqlite_version() -> str:
    return f"SQLite {sqlite3.sqlite_version}"


# --- LMDB -------------------------------------------------------------------------------------------------------------


class Lmdb:
    """Keys in the order of the records; one transaction per append. With ``verify`` the file is walked first."""

    def __init__(self, place: str, *, verify: bool) -> None:
        import lmdb

        Path(place).mkdir(parents=True, exist_ok=True)
        if verify and (Path(place) / "data.mdb").exists():
            import lmdb.verify

            walk: Any = lmdb.verify.verify
            problems = walk(place)
            if problems:
                raise lmdb.CorruptedError(f"lmdb.verify: {problems[0]}")
        self.environment: Any = lmdb.open(place, map_size=MAP_BYTES)
        with self.environment.begin() as transaction:
            cursor = transaction.cursor()
            self.next = int.from_bytes(cursor.key(), "big") + 1 if cursor.last() else 0

    def append(self, values: list[bytes]) -> None:
        with self.environment.begin(write=True) as transaction:
            pairs = [(key_of(self.next + index), value) for index, value in enumerate(values)]
            transaction.cursor().putmulti(pairs, append=True)
        self.next += len(values)

    def read_all(self) -> Iterator[tuple[int, bytes]]:
        with self.environment.begin() as transaction:
            for key, value in transaction.cursor():
                yield int.from_bytes(key, "big"), value

    def close(self) -> None:
        self.environment.close()


def lmdb_version() -> str:
    import lmdb

    return f"LMDB {'.'.join(map(str, lmdb.version()))}, {package_version('lmdb')}"


# --- RocksDB ----------------------------------------------------------------------------------------------------------


class Rocksdb:
    """Keys in the order of the records, in raw mode; one write batch per append."""

    def __init__(self, place: str, *, sync: bool) -> None:
        import rocksdict

        options: Any = rocksdict.Options(raw_mode=True)
        options.create_if_missing(True)
        self.library: Any = rocksdict
        self.database: Any = rocksdict.Rdict(place, options=options)
        self.write_options: Any = rocksdict.WriteOptions()
        self.write_options.sync = sync
        iterator = self.database.iter()
        iterator.seek_to_last()
        iterator.status()
        self.next = int.from_bytes(iterator.key(), "big") + 1 if iterator.valid() else 0

    def append(self, values: list[bytes]) -> None:
        batch = self.library.WriteBatch(raw_mode=True)
        for index, value in enumerate(values):
            batch.put(key_of(self.next + index), value)
        self.database.write(batch, self.write_options)
        self.next += len(values)

    def read_all(self) -> Iterator[tuple[int, bytes]]:
        iterator = self.database.iter()
        iterator.seek_to_first()
        while iterator.valid():
            yield int.from_bytes(iterator.key(), "big"), iterator.value()
            iterator.next()
        iterator.status()  # an iterator that met damage just ends; this says so

    def close(self) -> None:
        self.database.close()


def rocksdb_version() -> str:
    """RocksDB tells its version in the log that it writes of itself."""
    with tempfile.TemporaryDirectory() as place:
        Rocksdb(place, sync=False).close()
        told = re.search(r"RocksDB version: (\S+)", (Path(place) / "LOG").read_text())
    return f"RocksDB {told[1] if told else 'unknown'}, {package_version('rocksdict')}"


# --- persist-queue ----------------------------------------------------------------------------------------------------


class AckQueue:
    """``SQLiteAckQueue``; it has no call for several records. Read by ``queue``, which takes nothing out."""

    def __init__(self, place: str) -> None:
        import persistqueue

        self.queue: Any = persistqueue.SQLiteAckQueue(place)

    def append(self, values: list[bytes]) -> None:
        for value in values:
            self.queue.put(value)

    def read_all(self) -> Iterator[tuple[int, bytes]]:
        for item in self.queue.queue():
            yield item["id"], item["data"]

    def close(self) -> None:
        self.queue.close()


class FileQueue:
    """``Queue``, of files. Read by ``get`` without ``task_done``: what was got is there again at the next opening."""

    def __init__(self, place: str) -> None:
        import persistqueue

        Path(place).mkdir(parents=True, exist_ok=True)
        self.queue: Any = persistqueue.Queue(place, tempdir=place)

    def append(self, values: list[bytes]) -> None:
        for value in values:
            self.queue.put(value)

    def read_all(self) -> Iterator[tuple[int, bytes]]:
        position = 0
        while self.queue.qsize():
            yield position, self.queue.get(block=False)
            position += 1

    def close(self) -> None:
        del self.queue


# --- diskcache --------------------------------------------------------------------------------------------------------


class Diskcache:
    """``Deque``, which never evicts; one transaction per append."""

    def __init__(self, place: str) -> None:
        import diskcache

        self.deque: Any = diskcache.Deque(directory=place)

    def append(self, values: list[bytes]) -> None:
        with self.deque.transact():
            for value in values:
                self.deque.append(value)

    def read_all(self) -> Iterator[tuple[int, bytes]]:
        yield from enumerate(self.deque)

    def close(self) -> None:
        self.deque.cache.close()


# --- the table --------------------------------------------------------------------------------------------------------

EMBEDDED = (
    Peer(
        "fastlog-group", "fastlog, `group`",
        "`durability=\"group\"`, the default: an append returns after a sync that covers it",
        "docs/durability.md", "yes", lambda place: Fastlog(place, "group"),
        ("events-0/*.log",), "fastlog-engine", "fastlog", fastlog_version,
    ),
    Peer(
        "fastlog-os", "fastlog, `os`",
        "`durability=\"os\"`: an append returns when the operating system has the bytes",
        "docs/durability.md", "no", lambda place: Fastlog(place, "os"),
        ("events-0/*.log",), "fastlog-engine", "fastlog", fastlog_version,
    ),
    Peer(
        "sqlite-full", "SQLite, WAL, FULL",
        "`journal_mode=wal`, `synchronous=full`, which its documentation asks for where a commit has to survive power "
        "loss; pages have no checksums, for the extension `cksumvfs` is not built into Python's SQLite",
        "https://www.sqlite.org/pragma.html#pragma_synchronous", "yes", lambda place: Sqlite(place, "full"),
        ("log.sqlite",), "sqlite3 (of Python)", "sqlite3", sqlite_version,
    ),
    Peer(
        "sqlite-normal", "SQLite, WAL, NORMAL",
        "`journal_mode=wal`, `synchronous=normal`: consistent after power loss, but the last commits may roll back, "
        "its documentation says",
        "https://www.sqlite.org/pragma.html#pragma_synchronous", "no", lambda place: Sqlite(place, "normal"),
        ("log.sqlite",), "sqlite3 (of Python)", "sqlite3", sqlite_version,
    ),
    Peer(
        "lmdb", "LMDB",
        "the defaults, which are the durable ones: `sync=True`, `metasync=True`, `writemap=False`; py-lmdb offers no "
        "checksums of pages",
        "https://lmdb.readthedocs.io/en/release/#environment-class", "yes", lambda place: Lmdb(place, verify=False),
        ("data.mdb",), "lmdb", "lmdb", lmdb_version,
    ),
    Peer(
        "lmdb-verified", "LMDB, verified first",
        "as LMDB, and `lmdb.verify` walks the file before each opening, which py-lmdb asks for where a file may not be "
        "trusted",
        "https://lmdb.readthedocs.io/en/release/", "yes", lambda place: Lmdb(place, verify=True),
        ("data.mdb",), "lmdb", "lmdb", lmdb_version,
    ),
    Peer(
        "rocksdb", "RocksDB",
        "the defaults: write-ahead log, `WriteOptions.sync=false`: survives the death of the process, not that of the "
        "machine, its documentation says; checksums are verified",
        "https://github.com/facebook/rocksdb/wiki/WAL-Performance", "no", lambda place: Rocksdb(place, sync=False),
        ("*.sst", "*.log"), "rocksdict", "rocksdict", rocksdb_version,
    ),
    Peer(
        "rocksdb-sync", "RocksDB, sync",
        "write-ahead log, `WriteOptions.sync=true`, which its documentation asks for where a write has to survive a "
        "crash of the machine; checksums are verified",
        "https://github.com/facebook/rocksdb/wiki/WAL-Performance", "yes", lambda place: Rocksdb(place, sync=True),
        ("*.sst", "*.log"), "rocksdict", "rocksdict", rocksdb_version,
    ),
    Peer(
        "persist-queue-sqlite", "persist-queue, SQLiteAckQueue",
        "the defaults (`auto_commit=True`); every `put` is a transaction",
        "https://github.com/peter-wangxu/persist-queue#readme", "not said", AckQueue,
        ("data.db",), "persist-queue", "persistqueue",
        lambda: f"{package_version('persist-queue')}, {sqlite_version()}",
    ),
    Peer(
        "persist-queue-file", "persist-queue, Queue",
        "the defaults, and `tempdir` on the disk of the queue, as its documentation asks for",
        "https://github.com/peter-wangxu/persist-queue#readme", "not said", FileQueue,
        ("q*",), "persist-queue", "persistqueue", lambda: package_version("persist-queue"),
    ),
    Peer(
        "diskcache", "diskcache, Deque",
        "the defaults (`sqlite_synchronous=1`, NORMAL), several records in `transact()`",
        "https://grantjenks.com/docs/diskcache/tutorial.html#settings", "not said", Diskcache,
        ("cache.db",), "diskcache", "diskcache", lambda: f"{package_version('diskcache')}, {sqlite_version()}",
    ),
)  # fmt: skip
