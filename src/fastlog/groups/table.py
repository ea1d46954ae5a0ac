"""A group's table: its members, what each should have, and who owns which partition; in one page that processes share.

In a folder of the group under ``control/groups/`` lie a ``lock`` and a ``table``. The table is a page
(``SharedPage``)::

    word 0                 STATE: LIVE, or MOVING while the page is replaced by a larger one
    word 1                 LAYOUT: which layout of the owner words is in use; a document says of which one it is
    words 8 ...            a row for each member: its NUMBER while it is a member, and when it polled last (steady ms)
    words 8 + 2 * rows ... an owner for each partition: 0, or number << 32 | a count of that member: its OWNER EPOCH
    document               who has which number and row, what everybody subscribes to, what everybody SHOULD have (the
                           target), and which word belongs to which partition, as JSON; one document is one generation

Numbers are never given twice, and no member counts the same twice: a word that was somebody's is never equal again.

**Who may change what.** The document changes under the group's lock (a ``flock``, held for a moment, never while code
of users runs). Numbers and owners change only under the writer lock of the group's partition of ``__consumer_offsets``,
by ``PartitionLog.exchange``, which compares before it stores; a commit is an append that compares the same words under
the same lock. So whoever lost a partition cannot commit for it, however late it wakes up, and nobody can become an
owner by what it read before it was put out: taking compares the own number, too.

**Why words and document never disagree harmfully.** The words are the truth about who owns; the document only says who
a number is, and what should be. Every change of both is ordered so that a process may die between any two steps:

- putting a member out: first its number and its owner words go (in one exchange; any part of it may be missing), then
  the document without it. In between the document names a member whose number is gone: it can own nothing new, and the
  next one to hold the group's lock puts it out again, from the start.
- joining: first the number is stored in a row, then the document with the member. In between the row has a number that
  the document does not know; nobody has ever read a target for it. The next one to hold the lock clears it.
- an owner word whose number is no member's is cleared by the next one to hold the lock. None can be stored again, as
  taking compares the number of the taker.
- an owner word that a partition loses: first LAYOUT grows, then the document without the partition is published, which
  has the new LAYOUT; a later one may give the word away. Taking compares LAYOUT with that of the document it acts by:
  so by an old document nobody becomes the owner of a word that meanwhile belongs to another partition, however long it
  was stopped in between. What was stored before LAYOUT grew is seen: a word is only given away while it is 0, and one
  that no partition has is cleared by the next one to hold the lock. When who made LAYOUT grow dies before publishing,
  nobody can take by the old document, and the next one to hold the lock publishes one with the new LAYOUT: who failed
  to take asks for that at once.
- a larger page: STATE becomes MOVING by an exchange (every other one compares it: words stand still from here; commits
  go on), an exact copy with more room is made as ``table.next``, the old page is retired (no condition on it holds any
  more), and the copy gets the name ``table``. The next one to hold the lock finds MOVING, and goes on: with a copy from
  retiring, without one back to LIVE.

Members act by the document they read, whatever its age: they let go of what the target takes from them, and take what
the target gives them once its word is 0. Two may take by different generations: the word decides, and who has it
against the target of the newest generation gives it back at its next poll.

A page is gone with the last process that has the directory open; so is everything in it, and nothing is lost by that.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import json
import logging
import os
import re
import threading
import weakref
from collections import deque
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass, field, replace
from typing import NamedTuple, Protocol

from fastlog._core import SharedPage, bell_of
from fastlog._native import oscalls
from fastlog.errors import ClosedError, Error, FencedError, LockedError, UnsupportedFormatError
from fastlog.groups.assignors import Subscriber, assign
from fastlog.groups.offsets import Condition, OffsetStore
from fastlog.liveness import Timer
from fastlog.records import TopicPartition
from fastlog.store import files
from fastlog.store.directory import Directory

__all__ = ["GroupTable", "Member", "Table", "View"]

logger = logging.getLogger("fastlog.groups")

STATE = 0
LAYOUT = 1
LIVE = 0
MOVING = 1
HEADER_WORDS = 8
NUMBER_SHIFT = 32
RETIRED = -(1 << 63)  # every word of a page that was retired, STATE first

FORMAT = 1
FIRST_ROWS = 16
FIRST_OWNERS = 128
FIRST_DOCUMENT = 16384

TICK = 0.25  # seconds between two looks for members that stopped to poll
PATIENCE = 500  # milliseconds that who looks after others waits for the group's lock: it comes back


@dataclass(frozen=True, slots=True)
class Member:
    """One consumer in the group, as the document has it.

    ``until`` is None while it is there; else it is a static member that is gone, and whose partitions are kept for it
    until this time (steady ms). ``pattern`` is (regular expression, flags) for who subscribes to all topics that match.
    """

    number: int
    row: int
    member_id: str
    instance_id: str | None
    client_id: str
    slot: int
    identity: dict[str, int]
    topics: tuple[str, ...]
    pattern: tuple[str, int] | None
    session_timeout_ms: int
    max_poll_interval_ms: int
    until: int | None = None

    @property
    def is_reserved(self) -> bool:
        return self.until is not None

    def wants(self, topics: Collection[str], owned: Collection[str]) -> frozenset[str]:
        """Which of these topics it subscribes to; a pattern never means the ``owned`` ones."""
        if self.pattern is None:
            return frozenset(topics).intersection(self.topics)
        expression = re.compile(*self.pattern)
        return frozenset(topic for topic in topics if topic not in owned and expression.fullmatch(topic))

    @property
    def number_word(self) -> int:
        return HEADER_WORDS + 2 * self.row

    @property
    def stamp_word(self) -> int:
        return HEADER_WORDS + 2 * self.row + 1


@dataclass(slots=True)
class Table:
    """The document of a page. One that was published is not changed any more; a draft is a ``copy``."""

    group: str
    generation: int = 0
    assignor: str = ""
    next_number: int = 1
    rows: int = FIRST_ROWS
    layout: int = 0
    members: dict[int, Member] = field(default_factory=dict)
    topic_ids: dict[str, str] = field(default_factory=dict)
    indexes: dict[TopicPartition, int] = field(default_factory=dict)
    targets: dict[int, list[TopicPartition]] = field(default_factory=dict)

    def copy(self) -> Table:
        return replace(
            self,
            members=dict(self.members),
            topic_ids=dict(self.topic_ids),
            indexes=dict(self.indexes),
            targets={number: list(held) for number, held in self.targets.items()},
        )

    @property
    def living(self) -> list[Member]:
        return [member for member in self.members.values() if not member.is_reserved]

    @property
    def owners_word(self) -> int:
        return HEADER_WORDS + 2 * self.rows

    def owner_word(self, partition: TopicPartition) -> int:
        return self.owners_word + self.indexes[partition]

    def member_of_instance(self, instance_id: str) -> Member | None:
        return next((one for one in self.members.values() if one.instance_id == instance_id), None)

    # --- as JSON ---------------------------------------------------------------------------------------------------

    def encode(self) -> bytes:
        holders = {partition: number for number, held in self.targets.items() for partition in held}
        topics: dict[str, tuple[str, list[int], list[int]]] = {
            topic: (topic_id, [], []) for topic, topic_id in self.topic_ids.items()
        }
        for partition in sorted(self.indexes):
            _, indexes, targets = topics[partition.topic]
            indexes.append(self.indexes[partition])
            targets.append(holders.get(partition, 0))
        members = [
            [
                *(one.number, one.row, one.member_id, one.instance_id, one.client_id, one.slot, one.identity),
                *(one.topics, one.pattern, one.session_timeout_ms, one.max_poll_interval_ms, one.until),
            ]
            for one in self.members.values()
        ]
        document = {
            "format": FORMAT,
            "group": self.group,
            "generation": self.generation,
            "assignor": self.assignor,
            "next_number": self.next_number,
            "rows": self.rows,
            "layout": self.layout,
            "members": members,
            "topics": topics,
        }
        return json.dumps(document, separators=(",", ":")).encode()

    @classmethod
    def decode(cls, data: bytes) -> Table:
        document = json.loads(data)
        if document["format"] != FORMAT:
            raise UnsupportedFormatError(
                f"the table of a group has format {document['format']}, this fastlog knows {FORMAT}: "
                "let all processes use one version"
            )
        table = cls(*(document[name] for name in ("group", "generation", "assignor", "next_number", "rows", "layout")))
        for fields in document["members"]:
            number, row, name, instance_id, client_id, slot, identity, topics, pattern, *limits = fields
            expression = None if pattern is None else (pattern[0], pattern[1])
            table.members[number] = Member(
                number, row, name, instance_id, client_id, slot, identity, tuple(topics), expression, *limits
            )
            table.targets[number] = []
        for topic, (topic_id, indexes, targets) in document["topics"].items():
            table.topic_ids[topic] = topic_id
            for partition, (index, number) in enumerate(zip(indexes, targets, strict=True)):
                one = TopicPartition(topic, partition)
                table.indexes[one] = index
                if number:
                    table.targets[number].append(one)
        return table

    # --- drafts ----------------------------------------------------------------------------------------------------

    def remove(self, member: Member, now: int, for_good: bool = False) -> None:
        """Take a member out; a static one is only reserved for, unless ``for_good``."""
        if member.instance_id is not None and not for_good and not member.is_reserved:
            self.members[member.number] = replace(member, until=now + member.session_timeout_ms)
        else:
            del self.members[member.number]
            del self.targets[member.number]

    def follow_topics(self, directory: Directory, free_index: Iterator[int]) -> None:
        """Give a word to each partition that somebody wants, and drop those that are gone or wanted no more."""
        counts: dict[str, int] = {}
        names, owned = directory.topics(), directory.owned_topics()
        for topic in sorted(frozenset[str]().union(*(one.wants(names, owned) for one in self.members.values()))):
            try:
                info = directory.topic(topic)
            except Error:
                continue  # deleted this moment: its version will move
            if self.topic_ids.get(topic) != info.topic_id:
                self.drop_topic(topic)
                self.topic_ids[topic] = info.topic_id
            counts[topic] = info.partitions
            for number in range(info.partitions):
                partition = TopicPartition(topic, number)
                if partition not in self.indexes:
                    self.indexes[partition] = next(free_index)
        for topic in set(self.topic_ids) - set(counts):
            self.drop_topic(topic)

    def drop_topic(self, topic: str) -> None:
        if self.topic_ids.pop(topic, None) is not None:
            self.indexes = {one: index for one, index in self.indexes.items() if one.topic != topic}
            self.targets = {
                number: [one for one in held if one.topic != topic] for number, held in self.targets.items()
            }

    def compute_targets(self, owned: Collection[str]) -> None:
        """What everybody should have, by the group's assignor; ``owned`` are topics that no pattern means."""
        counts: dict[str, int] = {}
        for partition in self.indexes:
            counts[partition.topic] = max(counts.get(partition.topic, 0), partition.partition + 1)
        # by number is by age, the same in every process
        names = {f"{number:010}": number for number in self.members}
        subscribers = {
            name: Subscriber(self.members[number].wants(counts, owned), tuple(self.targets.get(number, ())))
            for name, number in names.items()
        }
        self.targets = (
            {names[name]: held for name, held in assign(self.assignor, subscribers, counts).items()} if names else {}
        )


class Seat(Protocol):
    """A member of this process, as its table knows it."""

    def wake(self) -> object:
        """The table has changed."""

    def leave(self) -> None:
        """The directory is being closed."""


class View(NamedTuple):
    """A page and the document of it that was read last."""

    page: SharedPage
    version: int
    table: Table

    def owner_value(self, partition: TopicPartition) -> int:
        """The owner epoch of a partition of the table, 0 when it has no owner."""
        return int(self.page.load(self.table.owner_word(partition)))

    @property
    def live(self) -> Condition:
        """What every exchange has to compare: that this page is the one in use."""
        return (self.page, STATE, LIVE)

    @property
    def placed(self) -> Condition:
        """What taking has to compare: that the owner words are still those of the partitions in this document."""
        return (self.page, LAYOUT, self.table.layout)


class GroupTable:
    """The table of one group, shared by all its members in this process: ``GroupTable.share`` it, and ``release`` it.

    Attributes:
        directory, group: whose it is.
        bell: the bell that rings when the table has changed or a partition was let go of.
        seats: the members of this process.
        dropped: an entry for each user that is gone without ``release``; a tick does it instead.
        topics_version: of the directory, when the table last followed its topics; each process has its own.

    Every method may be called from any thread.
    """

    def __init__(self, directory: Directory, group: str) -> None:
        self.directory = directory
        self.group = group
        self.offsets = OffsetStore(directory)
        self.folder = folder_of(directory, group)
        self.path = os.path.join(self.folder, "table")
        self.next_path = os.path.join(self.folder, "table.next")
        self.bell = bell_of(f"group:{group}", 0)
        self.users = 0
        self.dropped: deque[None] = deque()
        self.topics_version = -1
        # weak: a consumer that nobody refers to any more is gone, and its slot with it
        self.seats: weakref.WeakSet[Seat] = weakref.WeakSet()
        oscalls.make_directory(self.folder)
        self._lock_path = os.path.join(self.folder, "lock")
        self._changes = f"is changing the group {group!r}"
        self._lock_file: oscalls.Descriptor | None = oscalls.Descriptor(
            oscalls.open_file(self._lock_path, writable=True, create=True)
        )
        self._mutex = threading.Lock()
        self._view: View | None = None
        self._watched: dict[int, int] = {}
        self._watch_lock = threading.Lock()
        self._timer: Timer | None = None
        self._is_due = False
        self._updater: threading.Thread | None = None

    # --- life in this process --------------------------------------------------------------------------------------

    @classmethod
    def share(cls, directory: Directory, group: str) -> GroupTable:
        """The one of this process; it stays until as many ``release`` were called."""
        with directory.making:
            of_directory: dict[str, GroupTable] | None = directory.companions.get(cls)
            if of_directory is None:
                of_directory = directory.companions[cls] = {}
                directory.add_closer(functools.partial(close_all, of_directory))
            table = of_directory.get(group)
            if table is None:
                table = of_directory[group] = cls(directory, group)
            table.users += 1
            return table

    def release(self) -> None:
        """One user less. The last one lets go of files and watches."""
        with self.directory.making:
            self.users -= 1
            if self.users:
                return
            self.directory.companions.get(GroupTable, {}).pop(self.group, None)
        self._stop_watching()
        with self._mutex:
            if self._view is not None:
                self._view.page.close()
                self._view = None
            self._lock_file = None  # closes it

    def release_dropped(self) -> None:
        """For users that nobody refers to any more."""
        while True:
            try:
                self.dropped.popleft()
            except IndexError:
                return
            self.release()

    def wake_local(self) -> None:
        """Tell the members of this process."""
        for seat in list(self.seats):
            seat.wake()

    def ring(self) -> None:
        """Wake whoever sleeps for this group, in any process."""
        self.directory.bells.ring(self.bell)

    # --- reading ---------------------------------------------------------------------------------------------------

    def view(self, timeout_ms: float | None = None) -> View:
        """The page in use and its document, decoded once for each version and process.

        Waits for the group's lock only while the page is being replaced: LockedError when that takes too long.
        """
        view = self._view
        if view is None or is_retired(view.page):
            view = self._reopen()
            if view is None or is_retired(view.page):
                # whoever was replacing the page is at it, or dead: with the lock nobody is
                return self.update(timeout_ms=timeout_ms)
        if view.page.version != view.version:
            view = self._read(view.page)
            self._watch(view.table)
        return view

    def _read(self, page: SharedPage) -> View:
        version, data = page.read()
        self._view = view = View(page, version, Table.decode(data))
        return view

    def _reopen(self) -> View | None:
        """Map what lies at the path; None when there is nothing."""
        if oscalls.identity(self.path) is None:
            return None
        return self._read(SharedPage.open(self.path))

    # --- changing --------------------------------------------------------------------------------------------------

    @contextlib.contextmanager
    def locked(self, timeout_ms: float | None = None) -> Iterator[View]:
        """The group's lock, with everything repaired that a dead owner left: who is gone is put out first.

        ``timeout_ms``: None = the ``lock_timeout`` of the store.
        """
        if timeout_ms is None:
            timeout_ms = self.directory.lock_timeout
        if not self._mutex.acquire(timeout=timeout_ms / 1000):
            raise files.still_locked(self._lock_path, timeout_ms, self._changes)
        try:
            file = self._lock_file
            if file is None:
                raise ClosedError(f"nobody in this process is a member of group {self.group!r} any more")
            files.wait_for_lock(file.fd, self._lock_path, timeout_ms, self._changes)
            try:
                yield self._settled()
            finally:
                oscalls.unlock(file.fd)
        finally:
            self._mutex.release()

    def update(self, change: Callable[[Table, View], object] | None = None, timeout_ms: float | None = None) -> View:
        """Put out who is gone, follow the topics, apply ``change`` to the draft, and publish what became of it.

        ``change`` gets a draft, and what is published now. Without anything to publish nothing is. LockedError when the
        lock is not free for too long, StorageError when a larger page cannot be made: then the group is as it was.
        """
        with self.locked(timeout_ms) as before:
            self._is_due = False
            try:
                view = self._renew(before, change)
            except BaseException:
                self._is_due = True  # nobody is told of a death twice: the next tick tries again
                raise
        if view is not before:
            self.ring()
            self.wake_local()
            self._watch(view.table)
        return view

    def _renew(self, view: View, change: Callable[[Table, View], object] | None) -> View:
        """``update``, with the lock: what is published then; the view itself when nothing had to be."""
        draft = view.table.copy()
        draft.layout = view.page.load(LAYOUT)  # ahead of the document when its writer died in between
        self._bury(view, draft)
        if change is not None:
            change(draft, view)
        topics_version = self.directory.topics_version
        if draft.members != view.table.members or topics_version != self.topics_version:
            draft.follow_topics(self.directory, self._free_indexes(view, draft))
        if draft != view.table:
            view = self._install(view, draft)
        self.topics_version = topics_version
        return view

    def _bury(self, view: View, draft: Table) -> None:
        """Put out the dead, those who stopped to poll, and reservations that are over; clear what belongs to nobody."""
        now = oscalls.steady_clock()
        for member in list(draft.members.values()):
            reason = self._why_gone(view.page, member, now)
            if reason is not None:
                logger.info("group %r: member %s %s", self.group, member.member_id, reason)
                draft.remove(member, now)
        self.strip(view, {member.number for member in draft.living})

    def _why_gone(self, page: SharedPage, member: Member, now: int) -> str | None:
        if member.until is not None:
            return "did not come back" if now >= member.until else None
        if page.load(member.number_word) != member.number:
            return "was put out"
        if not self.directory.slots.is_alive(member.slot):
            return "died"
        idle = now - page.load(member.stamp_word)
        return f"did not poll for {idle} ms" if idle > member.max_poll_interval_ms else None

    def strip(self, view: View, keep: Collection[int]) -> None:
        """Take rows and partitions from everybody but these numbers, and partitions that are wanted no more. The caller
        has the lock."""
        page, first_owner = view.page, view.table.owners_word
        wanted = {first_owner + index for index in view.table.indexes.values()}
        log = self.offsets.log(self.group)
        while True:
            words = page.load_many(0, page.words)
            rows = [(at, words[at]) for at in range(HEADER_WORDS, first_owner, 2)]
            owners = [(at, words[at]) for at in range(first_owner, len(words))]
            void = [(page, at, value) for at, value in rows if value and value not in keep]
            void += [
                (page, at, value)
                for at, value in owners
                if value and (at not in wanted or value >> NUMBER_SHIFT not in keep)
            ]
            if not void:
                return
            try:
                log.exchange([view.live, *void], [(page, at, 0) for _, at, _ in void])
                oscalls.reach_failpoint("group.stripped")
                return
            except FencedError:
                continue  # somebody let go of a partition, or took one: look again

    def _free_indexes(self, view: View, draft: Table) -> Iterator[int]:
        """Words for owners that no partition of old or new has, and nobody owns; beyond the page when it is full."""
        first_owner = view.table.owners_word
        used = {*view.table.indexes.values(), *draft.indexes.values()}
        owners = view.page.load_many(first_owner, view.page.words - first_owner)
        for index, value in enumerate(owners):
            if value == 0 and index not in used:
                yield index
        index = max(len(owners), *used) if used else len(owners)
        while True:
            if index not in used:
                yield index
            index += 1

    def _install(self, view: View, draft: Table) -> View:
        """Publish the draft, in a larger page if it has to be; new members are in their rows before that."""
        old = view.table
        if (old.members, old.indexes) != (draft.members, draft.indexes):
            draft.generation += 1
            draft.compute_targets(self.directory.owned_topics())
        if any(draft.indexes.get(one) != index for one, index in old.indexes.items()):
            draft.layout += 1
        rows = max((member.row + 1 for member in draft.members.values()), default=0)
        owners = max(draft.indexes.values(), default=-1) + 1
        data = draft.encode()
        if (
            rows > old.rows
            or owners > view.page.words - old.owners_word
            or len(data) + 32 > view.page.capacity  # the number of rows may get longer
        ):
            view = self._grow(view, rows, owners, len(data))
            draft.rows = view.table.rows
            data = draft.encode()
        self._let_words_go(view, draft)
        self._seat(view, [one for one in draft.living if one.number not in old.members])
        self._view = published = View(view.page, view.page.publish(data), draft)
        oscalls.reach_failpoint("group.published")
        return published

    def _let_words_go(self, view: View, draft: Table) -> None:
        """From here on nobody takes by a document that still has the words which the draft has not."""
        if draft.layout != view.page.load(LAYOUT):
            self.offsets.log(self.group).exchange([view.live], [(view.page, LAYOUT, draft.layout)])
            oscalls.reach_failpoint("group.layout")

    def _seat(self, view: View, joining: list[Member]) -> None:
        """Store the numbers of new members in their rows."""
        page = view.page
        for member in joining:
            page.store(member.stamp_word, oscalls.steady_clock())
            self.offsets.log(self.group).exchange(
                [view.live, (page, member.number_word, 0)], [(page, member.number_word, member.number)]
            )
            oscalls.reach_failpoint("group.seated")

    def free_row(self, draft: Table, view: View) -> int:
        """A row that nobody has, the first one beyond the page when all are taken."""
        used = {member.row for member in draft.members.values()}
        return next(
            row
            for row in range(len(used) + draft.rows + 1)
            if row not in used and (row >= draft.rows or view.page.load(HEADER_WORDS + 2 * row) == 0)
        )

    # --- the page --------------------------------------------------------------------------------------------------

    def _settled(self) -> View:
        """The page in use, made when there is none; a replacement that was not finished is. The caller has the lock."""
        view = self._view
        if view is None or is_retired(view.page) or not view.page.is_current():
            view = self._reopen()
        if view is None:
            words = HEADER_WORDS + 2 * FIRST_ROWS + FIRST_OWNERS
            blank = Table(self.group).encode()
            return self._read(SharedPage.create(self.path, words, FIRST_DOCUMENT, document=blank, version=1))
        if view.page.load(STATE) != LIVE:
            if oscalls.identity(self.next_path) is not None:
                view = self._move_in(view.page)
            else:
                self.offsets.log(self.group).exchange([(view.page, STATE, MOVING)], [(view.page, STATE, LIVE)])
        return view if view.page.version == view.version else self._read(view.page)

    def _grow(self, view: View, rows: int, owners: int, document: int) -> View:
        """An exact copy of the page that has room for so many rows and owners, and such a document, in its place."""
        page, old = view.page, view.table
        log = self.offsets.log(self.group)
        new = replace(old, rows=old.rows if rows <= old.rows else max(2 * old.rows, rows))
        old_owners = page.words - old.owners_word
        owners = old_owners if owners <= old_owners else max(2 * old_owners, owners)
        oscalls.remove(self.next_path)
        log.exchange([view.live], [(page, STATE, MOVING)])
        oscalls.reach_failpoint("group.moving")
        try:
            words = page.load_many(0, page.words)
            rows_now = words[HEADER_WORDS : old.owners_word] + [0] * (2 * (new.rows - old.rows))
            values = [LIVE, *words[1:HEADER_WORDS], *rows_now, *words[old.owners_word :]]
            SharedPage.create(
                self.next_path,
                HEADER_WORDS + 2 * new.rows + owners,
                max(page.capacity, 2 * document),
                values=values,
                document=new.encode(),
                version=page.version + 1,
            ).close()
        except BaseException:
            oscalls.remove(self.next_path)
            log.exchange([(page, STATE, MOVING)], [(page, STATE, LIVE)])
            raise
        oscalls.reach_failpoint("group.copied")
        return self._move_in(page)

    def _move_in(self, page: SharedPage) -> View:
        """The copy takes the place of the page."""
        page.retire()
        oscalls.reach_failpoint("group.retired")
        oscalls.rename(self.next_path, self.path)
        return self._read(SharedPage.open(self.path))

    # --- looking after the others ----------------------------------------------------------------------------------

    def start_watching(self) -> None:
        """Look after all members from now on: those who die, stop to poll, or do not come back."""
        with self._watch_lock:
            if self._timer is None:
                self._timer = self.directory.watcher.every(TICK, self.tick)
        self._watch(self.view().table)

    def _stop_watching(self) -> None:
        with self._watch_lock:
            if self._timer is not None:
                self._timer.cancel()
                self._timer = None
            updater, self._updater = self._updater, None
            for slot in self._watched:
                self.directory.watcher.unwatch(slot, self._on_death)
            self._watched.clear()
        if updater is not None and updater is not threading.current_thread():
            updater.join()  # it finds that nobody needs it, or has something to end

    def _watch(self, table: Table) -> None:
        """Watch the slots of everybody in the table, and of nobody else."""
        with self._watch_lock:
            if self._timer is None:
                return
            there = {member.slot: member for member in table.living}
            for slot in [slot for slot, number in self._watched.items() if number_in(there, slot) != number]:
                self.directory.watcher.unwatch(slot, self._on_death)
                del self._watched[slot]
            for slot, member in there.items():
                if slot not in self._watched:
                    self.directory.watcher.watch(slot, member.identity, self._on_death)
                    self._watched[slot] = member.number

    def _on_death(self, slot: int) -> None:
        self._update_aside()

    def _update_aside(self) -> None:
        """Have somebody put out, in a thread of its own: the watcher's has others to look after."""
        self._is_due = True
        with self._watch_lock:
            if self._timer is not None and (self._updater is None or not self._updater.is_alive()):
                updater = threading.Thread(target=self._update_patiently, name="fastlog-group", daemon=True)
                updater.start()
                self._updater = updater

    def _update_patiently(self) -> None:
        """What cannot be done now is done at the next tick."""
        try:
            while self._is_due:
                self.update(timeout_ms=PATIENCE)
        except ClosedError:
            pass  # the last member of this process has left meanwhile
        except Error as error:
            logger.warning("group %r: cannot look after its members now: %s", self.group, error)
        self.release_dropped()

    def tick(self) -> None:
        """See whether somebody has to be put out; called every ``TICK`` seconds by the watcher."""
        try:
            view = self.view(PATIENCE)
        except Error as error:
            if self.users:
                logger.warning("group %r: cannot read its table now: %s", self.group, error)
            return
        self._watch(view.table)
        now = oscalls.steady_clock()
        is_due = self._is_due or self.dropped or self.offsets.is_poisoned(self.group)
        if is_due or any(is_over(view.page, member, now) for member in view.table.members.values()):
            self._update_aside()


def close_all(tables: dict[str, GroupTable]) -> None:
    """The directory is being closed: whoever is still a member leaves."""
    for table in list(tables.values()):
        for seat in list(table.seats):
            seat.leave()
        table.release_dropped()


def is_over(page: SharedPage, member: Member, now: int) -> bool:
    """Whether a member's time is up: since its last poll, or that it is waited for."""
    if member.until is not None:
        return now >= member.until
    return bool(now - page.load(member.stamp_word) > member.max_poll_interval_ms)


def is_retired(page: SharedPage) -> bool:
    """Whether another page has its place, or will have in a moment: its words say nothing any more."""
    return page.replaced or page.load(STATE) == RETIRED


def number_in(there: dict[int, Member], slot: int) -> int | None:
    return there[slot].number if slot in there else None


def folder_of(directory: Directory, group: str) -> str:
    """Where a group's lock and table are; any name does, as it is hashed."""
    return os.path.join(directory.control, "groups", hashlib.sha256(group.encode()).hexdigest()[:32])


def peek(directory: Directory, group: str) -> View | None:
    """A group's table as it is now, for looking only; None when it has none. The caller closes the page."""
    path = os.path.join(folder_of(directory, group), "table")
    for _ in range(100):
        if oscalls.identity(path) is None:
            return None
        page = SharedPage.open(path, writable=False)
        version, data = page.read()
        if not is_retired(page):
            return View(page, version, Table.decode(data))
        page.close()
        threading.Event().wait(0.005)  # somebody is putting a larger one in its place
    raise LockedError(f"the table of group {group!r} ({path}) is being replaced, and its process does not go on")


def live_groups(directory: Directory) -> list[str]:
    """Names of the groups that have members now, those included that died this moment."""
    folder = os.path.join(directory.control, "groups")
    found = []
    for name in oscalls.list_directory(folder) if oscalls.is_directory(folder) else ():
        path = os.path.join(folder, name, "table")
        if oscalls.identity(path) is not None:
            page = SharedPage.open(path, writable=False)
            table = Table.decode(page.read()[1])
            page.close()
            if table.living:
                found.append(table.group)
    return found
