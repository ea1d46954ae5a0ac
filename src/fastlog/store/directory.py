"""One opened store: its topics, and its partitions, opened when they are needed."""

from __future__ import annotations

import contextlib
import logging
import os
import threading
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from datetime import timedelta
from types import TracebackType
from typing import Any, Final

from fastlog._core import Bells, PartitionLog, SharedPage, bell_of
from fastlog._native import oscalls
from fastlog.config import DEFAULT_DURABILITY, DURABILITY_LEVELS, ISOLATION_LEVELS, parse_duration_ms
from fastlog.errors import (
    ClosedError,
    ConfigError,
    Error,
    ForkedHandleError,
    InvalidTopicError,
    LockedError,
    NotSupportedError,
    StorageError,
    TopicExistsError,
    UnknownTopicError,
    UnsupportedFormatError,
)
from fastlog.liveness import Slots, Watcher
from fastlog.partition import files as partition_files
from fastlog.records import TopicPartition, list_of
from fastlog.reports import MaintenanceReport
from fastlog.store import backup, catalog, deleting, files, handover, naming, options, setup
from fastlog.store.backup import BackupReport
from fastlog.store.catalog import Catalog, TopicInfo, TopicOwner
from fastlog.store.internal import INTERNAL_OPTIONS, INTERNAL_PARTITIONS, INTERNAL_TOPICS
from fastlog.store.leases import Key, Lease, LogPool
from fastlog.store.maintenance import Maintainer, needs_upkeep

logger = logging.getLogger("fastlog.store")

DEFAULT_LOCK_TIMEOUT: Final = 30_000
DEFAULT_MAINTENANCE_INTERVAL: Final = "5m"
FOLLOW_SECONDS: Final = 1.0
# somebody may have died between changing a topic and saying so
LOOK_MS: Final = 100
# words of the store's own page
PAGE: Final = "store"
BELLS: Final = "bells"
BELL_COUNT: Final = 64
PAGE_WORDS: Final = 8
VERSION_WORD: Final = 0


class Directory:
    """A directory of topics, opened with ``Directory.open``: a context manager, or call ``close``. Thread-safe.

    Any number of processes may have a store open at once. What one of them creates, changes or deletes the others see
    at their next call. Partitions are opened when they are first leased, and their folders created then.

    Attributes:
        root: the folder, absolute.
        durability: the level at which partitions are opened; see ``PartitionLog.append``.
        read_only: whether the handle may change anything.
        lock_timeout: milliseconds to wait for a lock that another process holds.
        cluster_id: 22 characters, made when the store was made.
        control: the folder of shared pages, wiped when nobody has the store open.
        companions: what rooms above keep for this one store, by their own keys; it goes with the store.
        making: held while one of them is made, looked for or given back.
    """

    def __init__(self) -> None:
        raise TypeError("use Directory.open(path)")

    # --- opening and closing -----------------------------------------------------------------------------------------

    @staticmethod
    def open(
        path: str | os.PathLike[str],
        *,
        durability: str = DEFAULT_DURABILITY,
        read_only: bool = False,
        flush_interval: float | str | timedelta | None = None,
        lock_timeout: float | str | timedelta | None = None,
        maintenance_interval: float | str | timedelta | None = DEFAULT_MAINTENANCE_INTERVAL,
    ) -> Directory:
        """Open the store in the folder ``path``; a writer creates it when it is not there.

        Args:
            path: the folder.
            durability: ``"group"`` (default), ``"batch"``, ``"interval"`` or ``"os"``, for every partition.
            read_only: write nothing at all. Beside writers it sees what they create and append.
            flush_interval: for ``durability="interval"``; default one second.
            lock_timeout: how long to wait for locks that other processes hold; default 30 seconds.
            maintenance_interval: how often one process of all that have the store open deletes and compacts what is
                due, as soon as this one has a watcher; default 5 minutes, None = this process never does.

        Raises:
            LockedError: a Kafka broker uses the folder; or a lock was not to be had in time.
            UnsupportedFormatError: the folder holds something else, or a newer format. Nothing was touched.
            NotSupportedError: the file system is not known to hold locks.
            CorruptLogError: ``fastlog.json`` is damaged.
            ConfigError, StorageError: an option is wrong; the operating system refused.
        """
        if not isinstance(durability, str) or durability not in DURABILITY_LEVELS:
            raise ConfigError(f"durability={durability!r}: expected one of {', '.join(map(repr, DURABILITY_LEVELS))}")
        directory = object.__new__(Directory)
        directory.root = partition_files.absolute_path(path, "path")
        directory.durability = durability
        directory.read_only = read_only
        directory.control = f"{directory.root}/{files.CONTROL}"
        directory._topics = f"{directory.root}/{files.TOPICS}"
        directory._config = f"{directory.root}/{files.CONFIG}"
        directory._flush_interval = (
            None if flush_interval is None else parse_duration_ms(flush_interval, "flush_interval")
        )
        directory.lock_timeout = (
            DEFAULT_LOCK_TIMEOUT if lock_timeout is None else parse_duration_ms(lock_timeout, "lock_timeout")
        )
        options.log_config(
            {}, keeps_layout=True, flush_interval=directory._flush_interval, lock_timeout=directory.lock_timeout
        ).resolve()
        directory._forks = oscalls.forks()
        directory._mutex = threading.RLock()
        directory._following = threading.RLock()
        directory._closers = []
        directory.companions = {}
        directory.making = threading.Lock()
        directory._held = {}
        directory._bells = directory._page = None
        directory._slots = directory._watcher = directory._maintainer = None
        directory._maintenance_interval = (
            None if maintenance_interval is None else parse_duration_ms(maintenance_interval, "maintenance_interval")
        )
        if directory._maintenance_interval is not None and directory._maintenance_interval <= 0:
            raise ConfigError(
                f"maintenance_interval={maintenance_interval!r}: expected a duration above 0, or None for never"
            )
        directory._seen = -1
        directory._looked_at = 0
        directory._version = directory._followed = 1
        directory._is_closed = False
        directory._broker_lock = directory._presence = -1
        directory._catalog = Catalog(directory._config)
        directory._pool = LogPool(directory._open_log)
        partition_files.require_folder(directory.root, "a store", read_only=read_only)
        try:
            if read_only:
                directory._join_as_reader()
            else:
                directory._join_as_writer()
            directory._catalog.read()
        except BaseException:
            directory._let_go()
            raise
        return directory

    root: str
    durability: str
    read_only: bool
    lock_timeout: int
    cluster_id: str
    control: str
    _topics: str
    _config: str
    _flush_interval: int | None
    _forks: int
    _mutex: threading.RLock
    _following: threading.RLock
    _closers: list[Callable[[], object]]
    companions: dict[object, Any]
    making: threading.Lock
    _held: dict[Key, Lease]
    _bells: Bells | None
    _slots: Slots | None
    _watcher: Watcher | None
    _maintainer: Maintainer | None
    _maintenance_interval: int | None
    _page: SharedPage | None
    _seen: int
    _looked_at: int
    _version: int
    _followed: int
    _is_closed: bool
    _broker_lock: int
    _presence: int
    _catalog: Catalog
    _pool: LogPool

    def _join_as_reader(self) -> None:
        cluster_id = setup.read_store(self.root)
        if cluster_id is None:
            raise UnsupportedFormatError(
                f"{self.root} is no store: it has no {files.STORE}; open it for writing once, or check the path"
            )
        self.cluster_id = cluster_id
        self._broker_lock = setup.keep_brokers_out(self.root, read_only=True)

    def _join_as_writer(self) -> None:
        """Become one of those who have the store open; who is alone tidies up first. The root's lock makes it one
        step."""
        setup.require_local(self.root)
        with files.locked_folder(self.root, self.lock_timeout, "is opening or closing the store"):
            self.cluster_id = setup.set_up(self.root)
            self._broker_lock = setup.keep_brokers_out(self.root, read_only=False)
            self._presence = oscalls.open_directory(self.control)
            if oscalls.try_lock(self._presence):
                self._tidy_up()
            files.wait_for_lock(
                self._presence, self.control, self.lock_timeout, "is opening or closing the store", shared=True
            )
            self._page = SharedPage.ensure(f"{self.control}/{PAGE}", PAGE_WORDS, 0)

    def _tidy_up(self) -> None:
        """Nobody else has the store open: nothing in ``control`` is believed, what the dead began is finished."""
        files.empty_folder(self.control)
        if oscalls.remove(f"{self._topics}/{files.CLEAN_SHUTDOWN}"):
            oscalls.sync_directory(self._topics)
        oscalls.remove(f"{self.root}/{files.UNFINISHED_BACKUP}")
        for path in (self.root, self._topics, self._config):
            deleting.remove_temporary_files(path)
        self._catalog.read()
        for info in list(self._catalog.deleting.values()):
            deleting.delete_partitions(self._topics, self._config, info, self.lock_timeout)
        deleting.purge(self._topics)
        for path in (self.root, self._topics, self._config):
            # who renamed a file may have died before the rename was durable
            oscalls.sync_directory(path)

    def close(self) -> None:
        """Let go of everything. Idempotent. Raises the first error, when all is closed.

        The last process to close a store whose partitions are all clean leaves it so that Kafka can take it over at
        once.
        In a forked child it only lets go of the handle: the store belongs to the parent.
        """
        if self.closed:
            return
        if self._forks != oscalls.forks():
            self._is_closed = True
            return
        errors: list[BaseException] = []
        while self._closers:
            try:
                closer = self._closers.pop()
            except IndexError:
                break
            try:
                closer()
            except Exception as error:
                errors.append(error)
        with self._mutex:
            if self._is_closed:
                return
            self._is_closed = True
            self._held.clear()
            watcher = self._watcher
        steps: list[Callable[[], object]] = [
            *(each.close for each in (watcher, self._maintainer) if each is not None),
            lambda: errors.extend(self._pool.close()),
        ]
        if self._presence >= 0:
            steps.append(self._leave)
        for step in steps:
            try:
                step()
            except Exception as error:  # no more than memory may be missing: nobody else can close the rest
                errors.append(error)
        self._let_go()
        if errors:
            raise errors[0]

    def _leave(self) -> None:
        """Give up presence; the last one says what state the partitions are in."""
        with files.locked_folder(self.root, self.lock_timeout, "is opening or closing the store"):
            # asking for it alone gives up the share of it first
            if oscalls.try_lock(self._presence):
                oscalls.reach_failpoint("store.closing")
                deleting.purge(self._topics)
                files.empty_folder(self.control)
                handover.try_to_write_clean_state(self._topics)
            oscalls.close_file(self._presence)
            self._presence = -1

    def _let_go(self) -> None:
        self._is_closed = True
        for fd in (self._presence, self._broker_lock):
            if fd >= 0:
                oscalls.close_file(fd)
        self._presence = self._broker_lock = -1
        for shared in (self._bells, self._page, self._slots):
            if shared is not None:
                shared.close()
        self._bells = self._page = self._slots = None

    @property
    def closed(self) -> bool:
        """Whether ``close`` was called."""
        return self._is_closed

    def add_closer(self, closer: Callable[[], object]) -> None:
        """Have something called by ``close``, before partitions are closed; the last one added is called first."""
        self._require_open()
        self._closers.append(closer)

    def remove_closer(self, closer: Callable[[], object]) -> None:
        """Do not call it any more: what it closes is closed. One that is not there is passed over."""
        with contextlib.suppress(ValueError):  # ``close`` may take it out meanwhile
            self._closers.remove(closer)

    def __enter__(self) -> Directory:
        self._require_open()
        return self

    def __exit__(
        self,
        exception_type: type[BaseException] | None,
        exception: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def __del__(self) -> None:
        if not getattr(self, "_is_closed", True) and self._forks == oscalls.forks():
            self._let_go()

    def __repr__(self) -> str:
        return f"<Directory {self.root!r}{', closed' if self._is_closed else ''}>"

    def _require_open(self) -> None:
        if self._is_closed:
            raise ClosedError(f"the store {self.root} was closed: open it again")
        if self._forks != oscalls.forks():
            raise ForkedHandleError(
                f"the store {self.root} was opened before a fork and belongs to the parent process: open it after the "
                "fork "
                f"instead"
            )

    def _require_writable(self) -> None:
        self._require_open()
        if self.read_only:
            raise NotSupportedError(
                f"the store {self.root} was opened with read_only=True: open it without to change it"
            )

    # --- topics ------------------------------------------------------------------------------------------------------

    @property
    def topics_version(self) -> int:
        """A number that changes when any process creates, changes or deletes a topic. Cheap: compare it at every
        poll."""
        self._require_open()
        self._refresh()
        return self._version

    def topics(self, internal: bool = False) -> list[str]:
        """Names of the topics, sorted; with ``internal`` those too that fastlog keeps for itself."""
        self._require_open()
        self._refresh()
        with self._mutex:
            return sorted(name for name, info in self._catalog.topics.items() if internal or not info.internal)

    def owned_topics(self) -> dict[str, TopicOwner]:
        """The retry and dead-letter topics, and whose they are. A pattern of topics never means one of them."""
        self._require_open()
        self._refresh()
        with self._mutex:
            return {name: info.owner for name, info in self._catalog.topics.items() if info.owner is not None}

    def topic(self, name: str) -> TopicInfo:
        """What is known of a topic. Raises UnknownTopicError, which names the nearest; CorruptLogError when its file
        is damaged."""
        self._require_open()
        naming.check_type(name)
        self._refresh()
        with self._mutex:
            info = self._catalog.topics.get(name)
            if info is None:
                self._catalog.require_sound(name)
                raise naming.unknown_topic(name, self._catalog.topics)
            return info

    def create_topic(
        self,
        name: str,
        partitions: int = 1,
        *,
        options: Mapping[str, Any] | None = None,
        exist_ok: bool = False,
        internal: bool = False,
        owner: TopicOwner | None = None,
    ) -> TopicInfo:
        """Create a topic. It costs one small file, however many partitions it has.

        Args:
            name: 1 to 249 letters and digits of ASCII, ``.``, ``_`` and ``-``, as Kafka has it.
            partitions: how many; they can be added later, never taken away.
            options: by Kafka's names (``"retention.ms"``), ours (``retention_ms``), or ``retention="7d"``.
            exist_ok: return a topic of that name as it is, whatever its partitions and options.
            internal: for fastlog's own use.
            owner: for whom a retry or dead-letter topic is kept. One that is there already is not given to it.

        Raises:
            TopicExistsError: there is one, or one of this owner by another name.
            InvalidTopicError: Kafka would not take the name or the number.
            ConfigError: an option is unknown (the nearest is named) or out of range.
        """
        self._require_writable()
        naming.check_name(name)
        naming.check_partitions(partitions)
        if name in INTERNAL_TOPICS and not internal:
            raise InvalidTopicError(f"the topic {name!r} is fastlog's own: choose another name")
        wanted = options_of({} if options is None else options)
        with files.locked_folder(self._config, self.lock_timeout, "is changing topics"):
            self._read_catalog()
            if name in self._catalog.topics:
                if exist_ok:
                    self._keep_topics()
                    return self._catalog.topics[name]
                raise TopicExistsError(
                    f"the topic {name!r} is there already, with {self._catalog.topics[name].partitions} partitions: "
                    "use it, or "
                    f"delete it first; exist_ok=True takes it as it is"
                )
            self._catalog.require_sound(name)
            self._require_no_other(name, owner)
            naming.check_collision(name, self._catalog.topics)
            if name in self._catalog.deleting:
                self._delete(self._catalog.deleting[name])
            if oscalls.entry_kind(catalog.topic_path(self._config, name)) is not None:
                raise InvalidTopicError(
                    f"the topic name {name!r} cannot be told from another topic's on this file system: choose another "
                    "name"
                )
            self._refuse_strange_folders(name, 0, partitions)
            info = TopicInfo(name, naming.new_id(), partitions, wanted, internal, owner)
            catalog.write_topic(self._config, info)
            oscalls.reach_failpoint("store.topic_written")
            self._changed()
        return info

    def alter_topic(self, name: str, changes: Mapping[str, Any]) -> TopicInfo:
        """Change options of a topic; None puts one back to its default.

        Open partitions follow, in every process, at its next call that asks for a topic. ``segment.bytes``,
        ``segment.index.bytes`` and ``index.interval.bytes`` shape files: partitions that exist keep theirs, later ones
        get the
        new ones.
        Raises ConfigError, UnknownTopicError.
        """
        return self._change(name, lambda info: replace(info, options=options.merge(info.options, changes)))

    def own_topic(self, name: str, owner: TopicOwner) -> TopicInfo:
        """Keep a topic that belongs to nobody for an owner, from now on.

        Raises TopicExistsError when it belongs to another one, or this one has another topic of the kind;
        UnknownTopicError.
        """

        def give(info: TopicInfo) -> TopicInfo:
            if info.owner not in (None, owner):
                raise TopicExistsError(f"the topic {name!r} is kept for {info.owner}, not for {owner}")
            self._require_no_other(name, owner)
            return replace(info, owner=owner)

        return self._change(name, give)

    def _require_no_other(self, name: str, owner: TopicOwner | None) -> None:
        """An owner has one topic of a kind. Under the lock of ``config``."""
        for other in self._catalog.topics.values():
            if owner is not None and other.owner == owner and other.name != name:
                raise TopicExistsError(
                    f"the {owner.kind} topic of topic {owner.topic!r} and group {owner.group!r} is {other.name!r}: go "
                    f"on with that one, or delete it before {name!r} takes its place"
                )

    def add_partitions(self, name: str, total: int) -> TopicInfo:
        """Let a topic have ``total`` partitions, more than before. Keys may go to other partitions from then on.

        Raises InvalidTopicError when it has as many or more, UnknownTopicError.
        """
        naming.check_partitions(total)

        def grow(info: TopicInfo) -> TopicInfo:
            if info.internal:
                raise InvalidTopicError(f"the topic {name!r} is fastlog's own: its partitions are as Kafka counts them")
            if total <= info.partitions:
                raise InvalidTopicError(
                    f"the topic {name!r} has {info.partitions} partitions, {total} would not be more: partitions are "
                    "never taken "
                    f"away; nothing was changed"
                )
            self._refuse_strange_folders(name, info.partitions, total)
            return replace(info, partitions=total)

        return self._change(name, grow)

    def _change(self, name: str, change: Callable[[TopicInfo], TopicInfo]) -> TopicInfo:
        self._require_writable()
        with files.locked_folder(self._config, self.lock_timeout, "is changing topics"):
            self._read_catalog()
            info = self.topic(name)
            changed = change(info)
            if changed == info:
                self._keep_topics()
                return info
            path = catalog.topic_path(self._config, name)
            with files.locked_file(path, self.lock_timeout, f"is opening a partition of {name!r}", shared=False):
                oscalls.reach_failpoint("store.topic_altering")
                catalog.write_topic(self._config, changed)
                oscalls.reach_failpoint("store.topic_altered")
            self._changed()
        return changed

    def delete_topic(self, name: str) -> None:
        """Delete a topic and its records. Whoever has one of its partitions open gets UnknownTopicError from then on.

        Its folders get the names that Kafka gives to deleted ones, then they are removed; who dies in between leaves
        the rest
        to the next who opens the store. Raises UnknownTopicError, and InvalidTopicError for topics of fastlog's own.
        """
        self._require_writable()
        naming.check_type(name)
        with files.locked_folder(self._config, self.lock_timeout, "is changing topics"):
            self._read_catalog()
            if name in self._catalog.deleting:
                self._delete(self._catalog.deleting[name])
                return
            info = self.topic(name)
            if info.internal:
                raise InvalidTopicError(f"the topic {name!r} is fastlog's own and cannot be deleted")
            self._delete(info)

    def _delete(self, info: TopicInfo) -> None:
        """Under the lock of ``config``."""
        path = catalog.topic_path(self._config, info.name)
        with files.locked_file(path, self.lock_timeout, f"is opening a partition of {info.name!r}", shared=False):
            catalog.write_topic(self._config, info, deleting=True)
            oscalls.reach_failpoint("store.topic_deleting")
            self._changed()
            removed = deleting.delete_partitions(self._topics, self._config, info, self.lock_timeout)
        self._changed()
        for folder in removed:
            deleting.remove_renamed(folder)

    def _refuse_strange_folders(self, name: str, first: int, stop: int) -> None:
        """Folders of partitions that belong to no topic are somebody's data."""
        for partition in range(first, stop):
            folder = f"{self._topics}/{naming.folder_name(name, partition)}"
            if oscalls.entry_kind(folder) is not None:
                raise TopicExistsError(
                    f"{folder} is there already, and belongs to no topic: move it away first; nothing was changed"
                )

    def _keep_topics(self) -> None:
        """Make durable what topics there are: who wrote what is found may have died, or failed, before the sync."""
        oscalls.sync_directory(self._config)

    def _looks_changed(self) -> bool:
        """Whether ``_refresh`` would find something; one system call."""
        page = self._page
        return (page is not None and page.load(VERSION_WORD) != self._seen) or self._catalog.looks_changed()

    def _refresh(self) -> None:
        """Follow what other processes changed."""
        if self._page is not None:
            word, now = self._page.load(VERSION_WORD), oscalls.steady_clock()
            if word == self._seen and now - self._looked_at < LOOK_MS:
                return
            if word != self._seen or self._followed != self._version or self._catalog.looks_changed():
                self._read_catalog()
            # the word from before: what changes while the folder is read is seen next time
            self._seen, self._looked_at = word, now
        elif self._catalog.looks_changed():
            self._read_catalog()

    def _read_catalog(self) -> None:
        with self._mutex:
            self._version += self._catalog.read()
            if self._version == self._followed:
                return
            known = dict(self._catalog.topics)
            for key in [key for key in self._held if not is_current(key, known)]:
                self._held.pop(key).release()
        self._pool.drop(lambda key: not is_current(key, known))
        self._follow_topics()

    def _follow_topics(self) -> None:
        """Let open partitions go on with the options of their topics. By one thread after the other, each with what is
        known by then: none puts back what another has followed."""
        with self._following:
            with self._mutex:
                version, known = self._version, dict(self._catalog.topics)
            for key, log in self._pool.each_open():
                if is_current(key, known) and not self.read_only:
                    self._follow_options(log, known[key.topic])
            self._followed = version

    def _follow_options(self, log: PartitionLog, info: TopicInfo) -> None:
        """Let an open partition go on with the options that its topic has by now."""
        try:
            log.reconfigure(self._log_config(info, keeps_layout=True))
        except Error:
            logger.warning("%s goes on with the options that it was opened with", log.path, exc_info=True)

    def _changed(self) -> None:
        """This handle has changed a topic. It is done: what fails here takes nothing of it back."""
        if self._page is not None:
            self._page.add(VERSION_WORD, 1)
        try:
            if oscalls.entry_kind(f"{self.control}/{BELLS}") is not None:
                # who sleeps until something is appended shall look at the topics too
                for bell in range(BELL_COUNT):
                    self.bells.ring(bell)
            self._read_catalog()
        except StorageError:
            logger.warning("topics of %s changed, which is noticed a little later", self.root, exc_info=True)

    # --- what all who have the store open share -----------------------------------------------------------------------

    @property
    def bells(self) -> Bells:
        """The bells of the store: who sleeps on them is woken by appends. Raises NotSupportedError with
        ``read_only=True``."""
        self._require_writable()
        with self._mutex:
            if self._bells is None:
                self._bells = Bells.open(f"{self.control}/{BELLS}")
            return self._bells

    @property
    def slots(self) -> Slots:
        """Locked bytes that tell who lives. Raises NotSupportedError with ``read_only=True``."""
        self._require_writable()
        with self._mutex:
            if self._slots is None:
                self._slots = Slots.open(f"{self.control}/slots")
            return self._slots

    @property
    def watcher(self) -> Watcher:
        """Tells of owners of slots that died. Raises NotSupportedError with ``read_only=True``."""
        slots = self.slots
        with self._mutex:
            if self._watcher is None:
                self._require_open()
                watcher = Watcher(slots)
                watcher.every(FOLLOW_SECONDS, self._follow, aside=True, when=self._has_to_follow)
                # its thread runs: one that could not be started is made anew by the next who needs it
                self._watcher = watcher
                if self._maintenance_interval is not None:
                    self._maintainer = Maintainer(self.control, self._background_round)
                    self._watcher.every(self._maintenance_interval / 1000, self._maintainer.tick, aside=True)
            return self._watcher

    def _has_to_follow(self) -> bool:
        return bool(self._pool.dropped) or self._looks_changed()

    def _follow(self) -> None:
        """Let open partitions follow what others changed, though nobody asks for a topic; take back what was leased by
        those who are gone."""
        self._pool.collect()
        try:
            self._refresh()
        except ClosedError:
            pass

    def is_same_store(self, other: Directory) -> bool:
        """Whether the other handle is one of the same store, by whatever path it was opened."""
        return self is other or (
            self.cluster_id == other.cluster_id and oscalls.inode(self.root) == oscalls.inode(other.root)
        )

    def open_logs(self) -> list[tuple[TopicPartition, PartitionLog]]:
        """The partitions that are open here now; not to be closed by the caller, maybe closed meanwhile."""
        return [(TopicPartition(key.topic, key.partition), log) for key, log in self._pool.each_open()]

    # --- partitions --------------------------------------------------------------------------------------------------

    def internal_topic(self, name: str) -> TopicInfo:
        """``__consumer_offsets`` or ``__transaction_state``, created when it is not there yet."""
        with self._mutex:
            info = self._catalog.topics.get(name)
        if info is not None or self.read_only:
            try:
                return self.topic(name)
            except UnknownTopicError:
                path = catalog.topic_path(self._config, name)
                raise UnknownTopicError(f"{path} is not there: a writer makes it when it is needed", name) from None
        return self.create_topic(name, INTERNAL_PARTITIONS, options=INTERNAL_OPTIONS, exist_ok=True, internal=True)

    def lease(self, topic: str, partition: int, isolation: str = "read_committed") -> Lease:
        """Open a partition, or use a handle that is open: ``.log`` is its PartitionLog until the lease is released.

        Raises UnknownTopicError, LockedError, CorruptLogError, StorageError, as ``PartitionLog.open``.
        """
        self._require_open()
        if isolation not in ISOLATION_LEVELS:
            raise ConfigError(f"isolation={isolation!r}: expected one of {', '.join(map(repr, ISOLATION_LEVELS))}")
        info = self.internal_topic(topic) if topic in INTERNAL_TOPICS else self.topic(topic)
        require_partition(info, partition)
        version = self._version
        lease = self._pool.lease(Key(topic, info.topic_id, partition, isolation))
        if self._version != version:
            # who followed a change meanwhile may have missed the partition that was being opened
            self._follow_topics()
        return lease

    def partition_log(self, topic: str, partition: int, isolation: str = "read_committed") -> PartitionLog:
        """A partition that stays open until the store is closed."""
        info = self.topic(topic)
        require_partition(info, partition)
        key = Key(topic, info.topic_id, partition, isolation)
        with self._mutex:
            held = self._held.get(key)
        if held is None:
            lease = self.lease(topic, partition, isolation)
            with self._mutex:
                held = self._held.setdefault(lease.key, lease)
            if held is not lease:
                lease.release()
        return held.log

    def let_go_of(self, log: PartitionLog) -> None:
        """Keep a partition of ``partition_log`` no longer: a sync of it failed, and it has to be opened anew."""
        with self._mutex:
            held = [self._held.pop(key) for key in [key for key, held in self._held.items() if held.log is log]]
        for lease in held:
            lease.release()

    def is_created(self, topic: str, partition: int) -> bool:
        """Whether the partition has files: it has from when it is first opened for writing, or when a broker made it.
        Until then a handle with ``read_only=True`` cannot open it, and it is empty."""
        self._require_open()
        folder = f"{self._topics}/{naming.folder_name(topic, partition)}"
        return oscalls.entry_kind(folder) == "directory" and partition_files.holds_log(folder)

    def maintain(self, topics: Iterable[str] | None = None) -> dict[TopicPartition, MaintenanceReport]:
        """Delete and compact what is due, now, in the given topics or in all; what was done in each partition that has
        files.

        A partition that another process is at just now is left to it. Raises UnknownTopicError, StorageError.
        """
        self._require_writable()
        if topics is None:
            return self._upkeep(backup.topics_of(self))
        return self._upkeep([self.topic(name) for name in list_of(topics, "topics", "names of topics")])

    def backup(self, target: str | os.PathLike[str]) -> BackupReport:
        """Copy everything that is in the store now into a new or empty folder, which then opens as a store of its own.

        Others go on appending meanwhile. Each partition ends at one offset, and no transaction is in it by halves.
        Closed segments are hard links where the file system allows it: the copy takes little space and time, and
        shares their bytes with the original; a copy on another disk survives the loss of this one. The copy is durable
        when this returns. When it fails nothing is left; what a crash leaves behind does not open.
        Raises UnsupportedFormatError for a target that holds something, StorageError, StorageFullError.
        """
        self._require_open()
        return backup.back_up(self, partition_files.absolute_path(target, "target"), self.lock_timeout)

    def _upkeep(self, infos: Iterable[TopicInfo]) -> dict[TopicPartition, MaintenanceReport]:
        reports = {}
        for info in infos:
            for partition in range(info.partitions):
                if not self.is_created(info.name, partition):
                    continue
                try:
                    with self.lease(info.name, partition) as lease:
                        reports[TopicPartition(info.name, partition)] = lease.log.maintain()
                except UnknownTopicError:
                    break  # deleted meanwhile
        return reports

    def _background_round(self) -> None:
        """What the elected process does now and then."""
        for info in filter(needs_upkeep, backup.topics_of(self)):
            try:
                self._upkeep([info])
            except Error:
                logger.warning("the upkeep of the topic %r failed and is tried again later", info.name, exc_info=True)

    def _open_log(self, key: Key) -> PartitionLog:
        """Open a partition, with its folder made first. Nobody deletes or changes the topic meanwhile."""
        if self.read_only:
            return self._open_folder(key, self.topic(key.topic))
        path = catalog.topic_path(self._config, key.topic)
        with files.locked_file(
            path, self.lock_timeout, f"is changing the topic {key.topic!r}", shared=True
        ) as is_there:
            found = catalog.read_topic(self._config, key.topic) if is_there else None
            if found is None or found[1] or found[0].topic_id != key.topic_id:
                raise deleting.deleted_error(key.topic, key.partition)
            self._make_folder(key)
            return self._open_folder(key, found[0])

    def _make_folder(self, key: Key) -> None:
        """The folder of a partition, which says durably whose it is before anything is written to it."""
        folder = self._folder(key)
        if oscalls.create_directory(folder):
            oscalls.reach_failpoint("store.partition_made")
        files.require_folder(folder)
        topic_id = files.read_partition_topic_id(folder)
        if topic_id is None:
            files.write_partition_metadata(folder, key.topic_id)
            oscalls.reach_failpoint("store.partition_named")
        elif topic_id != key.topic_id:
            raise UnsupportedFormatError(
                f"{folder} belongs to a topic with the id {topic_id}, but {key.topic!r} has the id {key.topic_id}: "
                "nothing was "
                f"touched; move the folder away"
            )
        if not oscalls.file_size(f"{folder}/{partition_files.META}"):
            # whatever is appended here shall be found again: who made the topic or the folder may have died before a
            # sync
            for path in (self._config, self._topics):
                oscalls.sync_directory(path)

    def _open_folder(self, key: Key, info: TopicInfo) -> PartitionLog:
        folder = self._folder(key)
        if self.read_only and oscalls.entry_kind(folder) is None:
            raise StorageError(
                f"{folder} does not exist: nothing was written to this partition yet, and read_only=True creates "
                "nothing",
                2,
            )
        files.require_folder(folder)
        # an empty file says nothing yet: who made it died
        keeps_layout = self.read_only or any(
            oscalls.file_size(f"{folder}/{name}") for name in (partition_files.META, partition_files.CLEAN)
        )
        return PartitionLog.open(
            folder,
            durability=self.durability,
            read_only=self.read_only,
            isolation=key.isolation,
            bells=None if self.read_only else self.bells,
            bell=bell_of(key.topic, key.partition),
            config=self._log_config(info, keeps_layout=keeps_layout),
        )

    def _log_config(self, info: TopicInfo, *, keeps_layout: bool) -> Any:
        return options.log_config(
            info.options,
            keeps_layout=keeps_layout,
            flush_interval=self._flush_interval,
            lock_timeout=self.lock_timeout,
        )

    def _folder(self, key: Key) -> str:
        return f"{self._topics}/{naming.folder_name(key.topic, key.partition)}"


def require_partition(info: TopicInfo, number: int) -> None:
    """Raise UnknownTopicError when the topic has no partition of this number."""
    if isinstance(number, bool) or not isinstance(number, int) or not 0 <= number < info.partitions:
        raise UnknownTopicError(
            f"the topic {info.name!r} has no partition {number!r}: it has {info.partitions}, numbered from 0",
            info.name,
            number,
        )


def is_current(key: Key, known: Mapping[str, TopicInfo]) -> bool:
    """Whether the topic of an open partition is still the one that it was opened for."""
    info = known.get(key.topic)
    return info is not None and info.topic_id == key.topic_id


def options_of(given: Mapping[str, Any]) -> Mapping[str, Any]:
    """Options of a new topic, as stored."""
    return options.merge({}, given)


__all__ = ["Directory", "Lease", "LockedError", "TopicInfo", "TopicOwner"]
