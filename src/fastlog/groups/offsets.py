"""How far each group has come: offsets that are appended to ``__consumer_offsets``, and read by replaying it.

A group's offsets lie in one of 50 partitions, found by the hash of its name. A commit is one append there; with
conditions it is compared with the owners of the group's partitions under the same writer lock under which owners change
(``table``), so who is no owner any more cannot commit.

What a process knows of a partition is kept and carried on from where it ended: the latest value of each key, undecoded,
and, of transactions that are open, what they will say once their marker is there. An offset that was committed later
than the record of a transaction is not undone by that transaction's end, as in Kafka.

When a sync of a partition failed, nothing can be appended to it before everybody has closed it: whoever notices lets go
of it, and opens it anew when it is used next. What was not durable may be gone then, so it is replayed from the start.

Every offset that is written carries the id of the topic; one of another life of the topic is none. Offsets without an
id, which an older broker has written, belong to any life.
"""

from __future__ import annotations

import contextlib
import functools
import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import NamedTuple

from fastlog._core import PartitionLog, SharedPage
from fastlog._native import oscalls
from fastlog.errors import FencedError, StorageError, UnknownTopicError
from fastlog.groups import formats
from fastlog.groups.formats import CommittedOffset, OffsetAndMetadata, OffsetKey
from fastlog.records import TopicPartition
from fastlog.store.directory import Directory
from fastlog.store.internal import CONSUMER_OFFSETS, INTERNAL_PARTITIONS, partition_for_name

__all__ = ["Condition", "OffsetAndMetadata", "OffsetStore"]

TOMBSTONES = 1000  # at most so many in one append
PATIENCE = 5  # how often an append may be overtaken by others

Condition = tuple[SharedPage, int, int]
decode_key = functools.lru_cache(1 << 16)(formats.decode_key)
encode_key = functools.lru_cache(1 << 16)(formats.encode_key)


class Stored(NamedTuple):
    """A value as it lies in the log, and the offset of its record."""

    offset: int
    value: bytes


class OffsetsReplay:
    """What one partition of ``__consumer_offsets`` says, as far as it was replayed. Guarded by ``lock``."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.log: PartitionLog | None = None
        self.replayed: PartitionLog | None = None
        self.next_offset: int | None = None
        self.committed: dict[str, dict[TopicPartition, Stored]] = {}
        # by producer id; a null value takes the offset back
        self.pending: dict[int, dict[OffsetKey, tuple[int, bytes | None]]] = {}

    def catch_up(self, log: PartitionLog) -> None:
        """Read what was appended since the last time; all of a log that was opened anew. The caller has ``lock``."""
        if log is not self.replayed:
            self.replayed, self.next_offset = log, None
            self.committed.clear()
            self.pending.clear()
        if self.next_offset is not None and self.next_offset >= log.end_offset:
            return
        for batch in log.replay(self.next_offset):
            if batch.is_control:
                if batch.commits is not None:
                    self.end_transaction(batch.producer_id, batch.commits)
            else:
                records = zip(batch.offsets, batch.keys(), batch.values(), strict=True)
                if batch.is_transactional:
                    self.remember(self.pending.setdefault(batch.producer_id, {}), records)
                else:
                    self.take_over(records)
            self.next_offset = batch.last_offset + 1

    def take_over(self, records: Iterable[tuple[int, bytes | None, bytes | None]]) -> None:
        """Offsets that count at once."""
        for offset, key, value in records:
            subject = decode_key(key) if key is not None else None
            if subject is not None:
                self.put(subject, offset, value)

    def remember(
        self,
        pending: dict[OffsetKey, tuple[int, bytes | None]],
        records: Iterable[tuple[int, bytes | None, bytes | None]],
    ) -> None:
        """Offsets that count once their transaction is committed."""
        for offset, key, value in records:
            subject = decode_key(key) if key is not None else None
            if subject is not None:
                pending[subject] = (offset, value)

    def end_transaction(self, producer_id: int, commits: bool) -> None:
        for subject, (offset, value) in self.pending.pop(producer_id, {}).items():
            known = self.committed.get(subject.group, {}).get(subject.topic_partition)
            if commits and (known is None or known.offset < offset):
                self.put(subject, offset, value)

    def put(self, subject: OffsetKey, offset: int, value: bytes | None) -> None:
        if value is not None:
            self.committed.setdefault(subject.group, {})[subject.topic_partition] = Stored(offset, value)
        elif (of_group := self.committed.get(subject.group)) is not None:
            of_group.pop(subject.topic_partition, None)
            if not of_group:
                del self.committed[subject.group]


class Known:
    """What is kept of a directory: its replayed partitions by number, and the ids of topics as of some version."""

    def __init__(self) -> None:
        self.replays: dict[int, OffsetsReplay] = {}
        self.topic_ids: tuple[int, dict[str, str | None]] = (-1, {})


class OffsetStore:
    """The committed offsets of all groups of a directory. Costs nothing to make; what was read is kept per directory.

    Every method may be called from any thread. A commit is as durable as the directory's level says when it returns.
    """

    def __init__(self, directory: Directory) -> None:
        self.directory = directory
        self._known: Known = directory.companions.setdefault(Known, Known())

    def partition_of(self, group: str) -> int:
        """The partition of ``__consumer_offsets`` that keeps this group."""
        return partition_for_name(formats.check_group(group))

    def log(self, group: str) -> PartitionLog:
        """The log that keeps this group, for appends; stays open as long as the directory, unless a sync of it fails.
        Made at its first use.
        """
        return self._log(self.partition_of(group))

    def is_poisoned(self, group: str) -> bool:
        """Whether the log that keeps this group has to be opened anew, as a sync of it failed."""
        log = self._replay(self.partition_of(group)).log
        return log is not None and log.is_poisoned

    def _log(self, number: int) -> PartitionLog:
        log = self._opened(number)
        if log.is_poisoned:
            self._let_go_of(number, log)
            log = self._opened(number)
        if log.is_poisoned:
            self._let_go_of(number, log)
            raise StorageError(
                f"a sync of {log.path} failed, and others have it open still: nothing can be appended until they have "
                "closed it, which members of groups do within a second; try again then"
            )
        return log

    def _let_go_of(self, number: int, log: PartitionLog) -> None:
        """Close the log everybody has to close."""
        self._replay(number).log = None
        self.directory.let_go_of(log)

    def _opened(self, number: int) -> PartitionLog:
        replay = self._replay(number)
        log = replay.log
        if log is None:
            self.directory.internal_topic(CONSUMER_OFFSETS)
            log = replay.log = self.directory.partition_log(CONSUMER_OFFSETS, number)
        return log

    @contextlib.contextmanager
    def _caught_up(self, number: int) -> Iterator[OffsetsReplay]:
        """Everything that a partition says now, locked."""
        replay = self._replay(number)
        with replay.lock:
            # who may only read cannot make the partition: as long as nobody has, it is empty
            if replay.log is not None or not self.directory.read_only or self._exists(number):
                log = self._opened(number)
                replay.catch_up(log)
                if log.is_poisoned:  # what is durable was read
                    self._let_go_of(number, log)
            yield replay

    # --- reading ---------------------------------------------------------------------------------------------------

    def committed(
        self, group: str, partitions: Iterable[TopicPartition]
    ) -> dict[TopicPartition, OffsetAndMetadata | None]:
        """Where the group stands in these partitions, by all that is committed now; None where it has no offset."""
        found = self._of_group(group)
        return {one: position_of(found.get(one), self.topic_id(one.topic)) for one in map(as_partition, partitions)}

    def all_committed(self, group: str) -> dict[TopicPartition, OffsetAndMetadata]:
        """Where the group stands in every partition that it has an offset for. Topics that are gone are left out."""
        positions = self.committed(group, self._of_group(group))
        return {one: position for one, position in sorted(positions.items()) if position is not None}

    def pending(self, group: str) -> dict[TopicPartition, int]:
        """Partitions that an open transaction has an offset for, with the id of its producer.

        Who becomes the owner of one has to let that transaction be ended before it asks for ``committed``.
        """
        with self._caught_up(self.partition_of(group)) as replay:
            return {
                subject.topic_partition: producer_id
                for producer_id, subjects in replay.pending.items()
                for subject in subjects
                if subject.group == group
            }

    def groups(self) -> list[str]:
        """Names of the groups that have offsets, sorted. Reads all of ``__consumer_offsets``."""
        found: set[str] = set()
        for number in range(INTERNAL_PARTITIONS):
            if self._exists(number):
                with self._caught_up(number) as replay:
                    found.update(replay.committed)
        return sorted(found)

    # --- writing ---------------------------------------------------------------------------------------------------

    def commit(
        self,
        group: str,
        offsets: Mapping[TopicPartition, OffsetAndMetadata],
        conditions: Sequence[Condition] = (),
        topic_ids: Mapping[str, str] | None = None,
    ) -> None:
        """Append these offsets, all of them or none, if the conditions hold. ``topic_ids`` as for ``encode_commit``.

        FencedError when one does not. ConfigError for offsets that cannot be committed, UnknownTopicError for a topic
        that there is not.
        """
        if offsets:
            keys, values = self.encode_commit(group, offsets, topic_ids)
            self.log(group).append(values, keys=keys, conditions=conditions)

    def encode_commit(
        self,
        group: str,
        offsets: Mapping[TopicPartition, OffsetAndMetadata],
        topic_ids: Mapping[str, str] | None = None,
    ) -> tuple[list[bytes], list[bytes]]:
        """Keys and values of the records that commit these offsets, for who appends them as part of a transaction.

        ``topic_ids`` say in which lives of their topics the positions were read; a topic without one: in that of now.
        UnknownTopicError when there is no such topic, or this life of it has ended; when it ends after that, the
        offsets are none of the next one's.
        """
        now = oscalls.wall_clock()
        keys, values = [], []
        for (topic, partition), position in offsets.items():
            topic_id = self.topic_id(topic)
            if topic_id is None or (topic_ids is not None and topic_ids.get(topic, topic_id) != topic_id):
                raise UnknownTopicError(f"there is no topic {topic!r} to commit an offset for", topic, partition)
            keys.append(encode_key(group, topic, partition))
            values.append(formats.encode_value(position, topic_id, position.timestamp or now))
        return keys, values

    def forget(
        self, group: str, partitions: Iterable[TopicPartition] | None = None, conditions: Sequence[Condition] = ()
    ) -> list[TopicPartition]:
        """Take back the offsets of these partitions, or of all that the group has; answers which had one.

        FencedError when a condition does not hold.
        """
        known = self._of_group(group)
        wanted = sorted(known) if partitions is None else [one for one in map(as_partition, partitions) if one in known]
        if wanted:
            keys = [encode_key(group, topic, partition) for topic, partition in wanted]
            self.log(group).append([None] * len(keys), keys=keys, conditions=conditions)
        return wanted

    def forget_topic(self, topic: str) -> None:
        """Take back what groups have for lives of this topic that have ended, with what an older broker wrote for it.

        Reads all of ``__consumer_offsets``. What others commit meanwhile is never taken back; a partition in which that
        does not end soon is left as it is: its old offsets are none anyway.
        """
        for number in range(INTERNAL_PARTITIONS):
            if self._exists(number):
                self._forget_ended(number, topic)

    def _forget_ended(self, number: int, topic: str) -> None:
        overtaken = 0
        while overtaken < PATIENCE:
            keys, end_offset = self._ended(number, topic)
            if not keys:
                return
            try:
                self._log(number).append([None] * len(keys), keys=keys, expected_end_offset=end_offset)
            except FencedError:
                overtaken += 1

    def _ended(self, number: int, topic: str) -> tuple[list[bytes], int | None]:
        """Keys of some offsets that belong to no life of the topic any more, and up to where that is known.

        Left out is what an open transaction has an offset for: its record is older than a tombstone would be, and the
        cleaner keeps the newer.
        """
        with self._caught_up(number) as replay:
            present = self.topic_id(topic)  # after catching up: of a life that began since there is no offset
            pending = {subject for subjects in replay.pending.values() for subject in subjects}
            subjects = (
                OffsetKey(group, *one)
                for group, found in replay.committed.items()
                for one, stored in found.items()
                if one.topic == topic and (present is None or position_of(stored, present) is None)
            )
            keys = [encode_key(*subject) for subject in subjects if subject not in pending]
            return keys[:TOMBSTONES], replay.next_offset

    # --- inside ----------------------------------------------------------------------------------------------------

    def topic_id(self, topic: str) -> str | None:
        """The id of the topic's present life; None when there is no such topic."""
        version = self.directory.topics_version
        known_version, ids = self._known.topic_ids
        if known_version != version:
            ids = {}
            self._known.topic_ids = (version, ids)
        try:
            return ids[topic]
        except KeyError:
            pass
        try:
            ids[topic] = self.directory.topic(topic).topic_id
        except UnknownTopicError:
            ids[topic] = None
        return ids[topic]

    def _of_group(self, group: str) -> dict[TopicPartition, Stored]:
        with self._caught_up(self.partition_of(group)) as replay:
            return dict(replay.committed.get(group, {}))

    def _replay(self, number: int) -> OffsetsReplay:
        replays = self._known.replays
        replay = replays.get(number)
        return replay if replay is not None else replays.setdefault(number, OffsetsReplay())

    def _exists(self, number: int) -> bool:
        """Whether the partition was ever used: looking must not make 50 folders."""
        return self.directory.is_created(CONSUMER_OFFSETS, number)


def as_partition(partition: tuple[str, int]) -> TopicPartition:
    return TopicPartition(*partition)


def position_of(stored: Stored | None, topic_id: str | None) -> OffsetAndMetadata | None:
    """What a value says, if it belongs to this life of the topic."""
    if stored is None or topic_id is None:
        return None
    decoded: CommittedOffset = formats.decode_value(stored.value)
    return decoded.position if decoded.topic_id in (None, topic_id) else None
