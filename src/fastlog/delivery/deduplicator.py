"""Ids of events that a group has finished, so that its handlers run once per id. Kept in SQLite.

What is kept of an id is a digest of 16 bytes, mixed with the name of the group: so any ids are of one size, none can be
read back, and groups may share a file. Marks of a call of ``remember`` are one transaction; what it returned from
survives ``kill -9``, and at the durability levels ``group`` and ``batch`` a power cut too. Any number of processes may
have a file open (write-ahead log, on a local file system); who finds it busy waits.
"""

from __future__ import annotations

import hashlib
import os
import sqlite3
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import KW_ONLY, dataclass, field
from typing import TYPE_CHECKING, Any, Final

from fastlog._native import oscalls
from fastlog.errors import (
    ClosedError,
    ConfigError,
    CorruptLogError,
    Error,
    ForkedHandleError,
    LockedError,
    NotSupportedError,
    StorageError,
    StorageFullError,
    UnsupportedFormatError,
)

from .policy import Duration, least_duration

if TYPE_CHECKING:
    from fastlog._core import Record

__all__ = ["Deduplicator", "Memory"]

FOLDER: Final = "deduplication"
SUFFIX: Final = ".sqlite"
ID_HEADERS: Final = ("id", "ce_id")
DIGEST_BYTES: Final = 16
APPLICATION_ID: Final = 0x666C6F67  # "flog": tells our files from other SQLite files
FORMAT_VERSION: Final = 1
BUSY_SECONDS: Final = 30.0
LONGEST_NAME: Final = 200
MOST_VARIABLES: Final = 500
# what is forgotten in one step: more than is added, so that a backlog shrinks, and never so much that others wait
LEAST_FORGOTTEN: Final = 100
FORGOTTEN_PER_ID: Final = 2

_SCHEMA: Final = (
    "CREATE TABLE finished (id BLOB PRIMARY KEY, at INTEGER NOT NULL) WITHOUT ROWID",
    "CREATE INDEX finished_at ON finished (at)",
    f"PRAGMA application_id = {APPLICATION_ID}",
    f"PRAGMA user_version = {FORMAT_VERSION}",
)


@dataclass(frozen=True, slots=True)
class Deduplicator:
    """Remembers the ids of events that a group has finished: a handler runs once per id. Immutable.

    An id counts as known once its handler has succeeded. A record with a known id is finished without a call. A crash
    inside of a handler, or between its end and the mark, repeats it: what a handler does outside has to bear that. Two
    records of one id that are in hand at the same moment both run; with the id as the key, or ``order_by="partition"``,
    they never are. Where two topics of a group use the same ids for different events, put the topic into the id.
    A backup of the store does not have the ids; without them events that come again run again.

    Args:
        ttl: how long an id is remembered; by the wall clock, from 1 ms.
        id: gives the id of a record, ``bytes`` or ``str``; None: this record is always handled. Default: the header
            ``id``, else ``ce_id`` (CloudEvents), else topic, partition and offset of the record's origin. What it
            raises counts as a failure of the record.
        path: the SQLite file, in a folder that exists; groups may share it. Default: a file per group in the folder
            ``deduplication`` of the store.

    Raises:
        ConfigError: one of them is malformed or out of range.
    """

    _: KW_ONLY
    ttl: Duration = "7d"
    id: Callable[[Record], bytes | str | None] | None = None
    path: str | os.PathLike[str] | None = None
    ttl_ms: int = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        ttl_ms = least_duration(self.ttl, "Deduplicator.ttl", 1)
        if self.id is not None and not callable(self.id):
            raise ConfigError(f"Deduplicator.id={self.id!r}: expected a function that gives the id of a record")
        if self.path is not None and not isinstance(self.path, (str, os.PathLike)):
            raise ConfigError(f"Deduplicator.path={self.path!r}: expected the path of a file")
        object.__setattr__(self, "ttl_ms", ttl_ms)

    def id_of(self, record: Record) -> bytes | None:
        """The id of a record as it was written; None: handle it in any case. Raises ConfigError for what is no id, and
        what ``id`` raises.
        """
        if self.id is None:
            return default_id(record)
        found = self.id(record)
        if isinstance(found, str):
            return found.encode("utf-8", "surrogatepass")
        if found is not None and not isinstance(found, bytes):
            raise ConfigError(
                f"Deduplicator.id gave {type(found).__name__} for {record.topic}-{record.partition} at offset "
                f"{record.offset}: expected bytes or str, or None to handle the record in any case"
            )
        return found

    def open(self, store_root: str, group: str, durability: str = "group") -> Memory:
        """What ``group`` has finished, in its file, which is made when it is not there.

        Args:
            store_root: folder of the store.
            group: name of the consumer group.
            durability: that of the store: what a mark has to survive.

        Raises:
            CorruptLogError: the file is damaged.
            UnsupportedFormatError: a newer fastlog wrote it, or it is somebody else's.
            LockedError: others kept it busy for 30 seconds.
            NotSupportedError: the file system there cannot share it between processes.
            StorageError: the operating system refused.
        """
        return Memory(self._file(store_root, group), group, self.ttl_ms, durability)

    def _file(self, store_root: str, group: str) -> str:
        if self.path is not None:
            return os.path.abspath(os.fspath(self.path))
        folder = os.path.join(store_root, FOLDER)
        oscalls.create_directory(folder)
        return os.path.join(folder, file_name(group))


def default_id(record: Record) -> bytes:
    """The header ``id``, else ``ce_id``, else where the record came from. An empty or null header is none."""
    for name in ID_HEADERS:
        found = record.headers.get(name)
        if found:
            return found
    return f"{record.topic}-{record.partition}-{record.offset}".encode()


def file_name(group: str) -> str:
    """Name of the file of a group, short enough for what SQLite puts beside it."""
    if len(group) <= LONGEST_NAME:
        return group + SUFFIX
    return f"{group[:LONGEST_NAME]}-{hashlib.blake2b(group.encode(), digest_size=8).hexdigest()}{SUFFIX}"


class Memory:
    """Finished ids of one group. One connection; calls of several threads take turns. Not for forked children."""

    def __init__(self, path: str, group: str, ttl_ms: int, durability: str = "group") -> None:
        self.path = path
        self._ttl_ms = ttl_ms
        self._group = hashlib.blake2b(group.encode(), digest_size=DIGEST_BYTES).digest()
        self._lock = threading.Lock()
        self._forks = oscalls.forks()
        self._closed = False
        with translated(path, "open"):
            self._connection = connect(path, durability)

    def known(self, ids: Sequence[bytes], now: int | None = None) -> set[bytes]:
        """Which of ``ids`` are finished. With ``now``, wall milliseconds, those that are too old do not count, even if
        they are still stored.

        Raises CorruptLogError, LockedError, StorageError, ClosedError, ForkedHandleError.
        """
        oldest = -(2**63) if now is None else now - self._ttl_ms
        by_digest: dict[bytes, set[bytes]] = {}
        for each in ids:
            by_digest.setdefault(self._digest(each), set()).add(each)
        digests = list(by_digest)
        found: set[bytes] = set()
        with self._working("read") as connection:
            for start in range(0, len(digests), MOST_VARIABLES):
                some = digests[start : start + MOST_VARIABLES]
                marks = ",".join("?" * len(some))
                rows = connection.execute(
                    f"SELECT id FROM finished WHERE at > ? AND id IN ({marks})", (oldest, *some)
                ).fetchall()
                for (digest,) in rows:
                    if digest not in by_digest:
                        raise damaged(self.path, "it answered with an id that was not asked for")
                    found |= by_digest[digest]
        return found

    def remember(self, ids: Sequence[bytes], now: int) -> None:
        """Mark ``ids`` as finished at ``now``, wall milliseconds: all of them or none. Forgets some that are too old.

        Raises CorruptLogError, LockedError, StorageFullError, StorageError, ClosedError, ForkedHandleError.
        """
        if not ids:
            return
        rows = [(self._digest(each), now) for each in ids]
        with self._working("write") as connection, transaction(connection):
            connection.executemany(
                "INSERT INTO finished (id, at) VALUES (?, ?) ON CONFLICT (id) DO UPDATE SET at = max(at, excluded.at)",
                rows,
            )
            connection.execute(
                "DELETE FROM finished WHERE id IN (SELECT id FROM finished WHERE at <= ? ORDER BY at LIMIT ?)",
                (now - self._ttl_ms, max(LEAST_FORGOTTEN, FORGOTTEN_PER_ID * len(rows))),
            )

    def count(self) -> int:
        """How many ids the file holds, of all groups that share it; those to be forgotten included."""
        with self._working("read") as connection:
            return int(connection.execute("SELECT count(*) FROM finished").fetchone()[0])

    def close(self) -> None:
        """Close the file. Idempotent; the last one to close it folds its write-ahead log into it."""
        with self._lock:
            if not self._closed and self._forks == oscalls.forks():
                self._closed = True
                with translated(self.path, "close"):
                    self._connection.close()

    def _digest(self, id_: bytes) -> bytes:
        return hashlib.blake2b(id_, digest_size=DIGEST_BYTES, key=self._group).digest()

    @contextmanager
    def _working(self, action: str) -> Iterator[sqlite3.Connection]:
        if self._forks != oscalls.forks():
            raise ForkedHandleError(f"{self.path} was opened before a fork: open it again in this process")
        with self._lock, translated(self.path, action):
            if self._closed:
                raise ClosedError(f"{self.path} is closed: no ids can be looked up or marked any more")
            yield self._connection


# --- SQLite ----------------------------------------------------------------------------------------------------------


def connect(path: str, durability: str) -> sqlite3.Connection:
    """A connection to our file, made when it is not there. Raises our errors and SQLite's."""
    connection = sqlite3.connect(path, timeout=BUSY_SECONDS, isolation_level=None, check_same_thread=False)
    try:
        prepare(connection, path)
        mode = connection.execute("PRAGMA journal_mode = WAL").fetchone()[0]
        if mode != "wal":
            raise NotSupportedError(
                f"{path}: its file system cannot share a write-ahead log (SQLite answered {mode!r}): put it on a local "
                f"one, by Deduplicator(path=...)"
            )
        level = "FULL" if durability in ("group", "batch") else "NORMAL"
        connection.execute(f"PRAGMA synchronous = {level}")
    except BaseException:
        connection.close()
        raise
    return connection


def prepare(connection: sqlite3.Connection, path: str) -> None:
    """Check whose file it is, and make the tables in a new one."""
    # alone: what stands in the head and which tables there are has to be of one moment
    with transaction(connection):
        if not is_ours(connection, path):
            for statement in _SCHEMA:
                connection.execute(statement)


def is_ours(connection: sqlite3.Connection, path: str) -> bool:
    """Whether the file has our tables; False: it is empty. Raises UnsupportedFormatError."""
    application = pragma(connection, "application_id")
    version = pragma(connection, "user_version")
    if application == APPLICATION_ID:
        if version > FORMAT_VERSION:
            raise UnsupportedFormatError(
                f"{path} has format {version}, this fastlog reads up to {FORMAT_VERSION}: nothing was touched; upgrade "
                f"with `pip install --upgrade fastlog-engine`"
            )
        return True
    with closing(connection.execute("SELECT count(*) FROM sqlite_master")) as cursor:
        tables = cursor.fetchone()[0]
    if application or version or tables:
        raise UnsupportedFormatError(
            f"{path} is an SQLite file of another program ({tables} tables and indexes, application id "
            f"{application:#x}): nothing was touched; name another file by Deduplicator(path=...)"
        )
    return False


def pragma(connection: sqlite3.Connection, name: str) -> int:
    """The value of a number that stands in the head of the file."""
    return int(connection.execute(f"PRAGMA {name}").fetchone()[0])


@contextmanager
def transaction(connection: sqlite3.Connection) -> Iterator[None]:
    """Write alone from the beginning on, so that waiting for others cannot fail in the middle."""
    connection.execute("BEGIN IMMEDIATE")
    try:
        yield
        connection.execute("COMMIT")
    except BaseException:
        if connection.in_transaction:
            connection.execute("ROLLBACK")
        raise


@contextmanager
def translated(path: str, action: str) -> Iterator[None]:
    """Errors of SQLite as ours."""
    try:
        yield
    except sqlite3.Error as error:
        raise as_error(error, path, action) from error
    except UnicodeDecodeError as error:
        # what SQLite says of a damaged table may quote its damage
        raise damaged(path, error) from error


def as_error(error: sqlite3.Error, path: str, action: str) -> Error:
    """What an error of SQLite means for the caller, and what to do."""
    code: Any = getattr(error, "sqlite_errorcode", None)
    kind = code & 0xFF if isinstance(code, int) else -1
    if kind in (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB, sqlite3.SQLITE_ERROR, sqlite3.SQLITE_SCHEMA):
        return damaged(path, error)
    if kind in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED):
        return LockedError(f"{path} was kept busy by others for {BUSY_SECONDS:g} s ({error}): nothing was changed")
    if kind == sqlite3.SQLITE_FULL:
        return StorageFullError(f"cannot {action} {path}: no space is left; nothing was changed")
    if kind in (sqlite3.SQLITE_READONLY, sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_PERM, sqlite3.SQLITE_AUTH):
        return StorageError(
            f"cannot {action} {path} ({error}): finished ids have to be written there. Check that the folder exists "
            f"and may be written, or name another file by Deduplicator(path=...)"
        )
    return StorageError(f"cannot {action} {path}: {error}; nothing was changed")


def damaged(path: str, reason: object) -> CorruptLogError:
    """The error for a file that cannot be believed."""
    return CorruptLogError(
        f"{path} is damaged ({reason}): nothing was changed. Bring it back from a backup, or remove it together "
        f"with its -wal and -shm files: then events that come again run again",
        path,
        0,
    )
