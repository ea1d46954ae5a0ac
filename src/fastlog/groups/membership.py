"""One consumer's place in its group: what it owns, what it has to let go of, and commits that only an owner can make.

A member acts when it is polled, never by itself: ``poll`` tells what to let go of and what it took. Between letting go
in the table and taking there is the consumer: it commits, runs its callbacks, and calls ``release``. Others look after
a member by the lock of its slot (free: dead) and by the time of its last poll; see ``table`` for who may change what.
"""

from __future__ import annotations

import logging
import re
import threading
import weakref
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import NamedTuple

from fastlog._native import oscalls
from fastlog.errors import (
    ClosedError,
    CommitFailedError,
    ConfigError,
    FencedError,
    GroupError,
    LockedError,
    StorageError,
    UnknownTopicError,
)
from fastlog.groups.assignors import check_assignor
from fastlog.groups.formats import OffsetAndMetadata, check_group
from fastlog.groups.offsets import Condition
from fastlog.groups.table import NUMBER_SHIFT, RETIRED, GroupTable, Member, Table, View
from fastlog.records import TopicPartition
from fastlog.store.directory import Directory

__all__ = ["Changes", "Membership", "OwnerEpoch"]

logger = logging.getLogger("fastlog.groups")


class Changes(NamedTuple):
    """What a poll found.

    Attributes:
        revoked: to be let go of: commit, then ``release`` them. Still owned until then.
        lost: owned by this member no more; nothing can be committed for them.
        assigned: owned from now on. Where to begin is what ``OffsetStore.committed`` says from now on. One
            that is in ``lost``, too, was taken anew: forget it first.
    """

    revoked: list[TopicPartition]
    lost: list[TopicPartition]
    assigned: list[TopicPartition]


class OwnerEpoch(NamedTuple):
    """By what a member owns a partition: the value of its word, never equal again, and the topic's id."""

    value: int
    topic_id: str


class Membership:
    """A member of a consumer group, from making it until ``leave``.

    Args:
        topics: names, or a compiled expression that matches whole names of topics; those that do not exist yet count
            from when they do.
        instance_id: makes it a static member: when it is gone, its partitions are kept for ``session_timeout_ms``. A
            second one of the same id takes its place.
        assignor: one for the whole group; GroupError when the others use another one.
        session_timeout_ms, max_poll_interval_ms: how long partitions of a static member are kept; how long it may take
            from one poll to the next before the others take its partitions.

    Attributes:
        member_id: of this membership; changes when it was put out and came back.
        generation: of the group, as this member has seen it.
        bell: the store's bell that rings when ``poll`` may have something to say.
        fatal: why it cannot go on, or None.

    One thread at a time polls and releases; ``commit``, ``conditions`` and ``leave`` may be called from others too.
    """

    def __init__(
        self,
        directory: Directory,
        group: str,
        *,
        topics: Sequence[str] | re.Pattern[str],
        instance_id: str | None = None,
        assignor: str = "cooperative-sticky",
        session_timeout_ms: int = 45_000,
        max_poll_interval_ms: int = 300_000,
        client_id: str = "",
    ) -> None:
        self.directory = directory
        self.group = check_group(group)
        self.instance_id = instance_id
        self.client_id = client_id
        self.fatal: GroupError | None = None
        self.generation = 0
        self.member_id = ""
        self._assignor = check_assignor(assignor)
        self._pattern = (topics.pattern, topics.flags) if isinstance(topics, re.Pattern) else None
        self._topics = () if isinstance(topics, re.Pattern) else check_topics(topics)
        self._session_timeout_ms = session_timeout_ms
        self._max_poll_interval_ms = max_poll_interval_ms
        self._lock = threading.RLock()
        self._is_left = False
        self._wake: Callable[[], object] | None = None
        self._owned: dict[TopicPartition, OwnerEpoch] = {}
        self._told: dict[TopicPartition, OwnerEpoch] = {}
        self._revoking: set[TopicPartition] = set()
        self._releasing: set[TopicPartition] = set()
        self._is_waiting = False
        self._is_in_doubt = False
        self._taken = 0
        self._seen_version = -1
        self._slot = directory.slots.enter()
        try:
            self._table = GroupTable.share(directory, group)
            # it comes wherever any thread is: it only notes that this one is gone
            self._dropping = weakref.finalize(self, self._table.dropped.append, None)
            self._dropping.atexit = False
            try:
                self._join()
                self._table.start_watching()
            except BaseException:
                self._release_table()
                raise
        except BaseException:
            self._slot.leave()
            raise
        self._table.seats.add(self)
        self.bell = self._table.bell

    # --- joining and leaving ---------------------------------------------------------------------------------------

    def _join(self) -> None:
        """Get a number and a row, and with them a share at the next poll."""
        self.member_id = f"{self.client_id or 'consumer'}-{oscalls.random_bytes(16).hex()}"
        joined: list[Member] = []
        view = self._table.update(lambda draft, view: joined.append(self._enter(draft, view)))
        self._number = joined[-1].number
        self._number_word = joined[-1].number_word
        self._taken = 0
        self._follow_page(view)
        self._seen_version = -1

    def _enter(self, draft: Table, view: View) -> Member:
        """Put this member into a draft, in the place of an older one of the same instance, and of what an attempt to
        join has left that was cut off."""
        if draft.members and draft.assignor != self._assignor:
            raise GroupError(
                f"group {self.group!r} uses the assignor {draft.assignor!r}, found {self._assignor!r}: "
                "let all members use the same"
            )
        draft.assignor = self._assignor
        number = draft.next_number
        draft.next_number += 1
        before = next((one for one in draft.members.values() if self._is_own(one)), None)
        held = [] if before is None else draft.targets[before.number]
        if before is not None:
            draft.remove(before, 0, for_good=True)
        member = Member(
            number=number,
            row=self._table.free_row(draft, view),
            member_id=self.member_id,
            instance_id=self.instance_id,
            client_id=self.client_id,
            slot=self._slot.number,
            identity=dict(self._slot.identity),
            topics=self._topics,
            pattern=self._pattern,
            session_timeout_ms=self._session_timeout_ms,
            max_poll_interval_ms=self._max_poll_interval_ms,
        )
        if before is not None and not before.is_reserved:
            # its number and its partitions go now: two of one instance never own anything at the same time
            self._table.strip(view, {one.number for one in draft.living})
        draft.members[number] = member
        draft.targets[number] = held
        return member

    def _is_own(self, member: Member) -> bool:
        """Whether it has the slot of this one, which nobody else has, or is of the same instance."""
        return member.slot == self._slot.number or (
            self.instance_id is not None and member.instance_id == self.instance_id
        )

    def leave(self) -> None:
        """Leave the group and give up everything. May be repeated.

        Who cannot tell the others is found to be gone by them. What a static member has stays reserved for it.
        """
        with self._lock:
            if self._is_left:
                return
            self._is_left = True
            self._owned = {}
            try:
                self._table.update(self._exit)
            except (LockedError, StorageError, ClosedError) as error:
                logger.warning("group %r: member %s left without a word: %s", self.group, self.member_id, error)
            finally:
                self._table.seats.discard(self)
                self._slot.leave()
                self._release_table()

    def _release_table(self) -> None:
        self._dropping.detach()
        self._table.release()

    def _exit(self, draft: Table, view: View) -> None:
        member = draft.members.get(self._number)
        if member is not None and not member.is_reserved:
            draft.remove(member, oscalls.steady_clock())
            self._table.strip(view, {one.number for one in draft.living})

    # --- polling ---------------------------------------------------------------------------------------------------

    def poll(self) -> Changes | None:
        """Tell the others that this member is at work, and what has changed for it: None when nothing has.

        Never waits for other members. GroupError when a newer member of the same instance has taken its place;
        ClosedError after ``leave``.
        """
        if self.is_settled:
            self.stamp()
            return None
        with self._lock:
            return self._follow()

    @property
    def is_settled(self) -> bool:
        """Whether ``poll`` would find nothing new: some words are looked at, nothing is waited for."""
        page = self._page
        return (
            not self._is_left
            and page.version == self._seen_version
            and not self._is_waiting
            and self._told is self._owned
            and self.directory.topics_version == self._table.topics_version
            and not page.replaced
            and page.load(self._number_word) == self._number
        )

    def stamp(self) -> None:
        """Tell the others that this member is at work. Only while it ``is_settled``."""
        self._page.store(self._stamp_word, oscalls.steady_clock())

    def _follow(self) -> Changes | None:
        """Bring the own partitions to where the newest table wants them, as far as it goes now.

        Changes are what differs from what was told before: what an exception keeps from being told is told by the next
        poll.
        """
        self._require_usable()
        if self._releasing:
            self._let_go_of_all()
        view = self._table.view()
        if self.directory.topics_version != self._table.topics_version:
            view = self._recompute(view)
        if not self._is_member(view):
            self._owned, self._revoking = {}, set()
            self._rejoin(view)
            view = self._table.view()
        self._follow_page(view)
        view.page.store(self._stamp_word, oscalls.steady_clock())
        if self._is_in_doubt:
            self._owned = self._owned_by_words(view)
            self._is_in_doubt = False
        self._drop_lost(view, self._owned)
        target = set(view.table.targets.get(self._number, ()))
        self._take(view, target)
        self.generation = view.table.generation
        self._seen_version = view.version
        return self._tell(target)

    def _tell(self, target: Collection[TopicPartition]) -> Changes | None:
        """What the consumer does not know yet; it does from now on."""
        told, owned = self._told, self._owned
        revoked = [one for one in owned if one not in target and one not in self._revoking]
        lost = [one for one, epoch in told.items() if owned.get(one) != epoch]
        assigned = [one for one, epoch in owned.items() if told.get(one) != epoch]
        self._revoking.update(revoked)
        self._told = owned
        if revoked or lost or assigned:
            return Changes(sorted(revoked), sorted(lost), sorted(assigned))
        return None

    def tell_anew(self, known: Mapping[TopicPartition, OwnerEpoch]) -> None:
        """What was told may not have arrived: who polls knows of these only. The next poll tells what differs."""
        with self._lock:
            self._told = dict(known)
            self._revoking = set()

    def _recompute(self, view: View) -> View:
        """Have the table repaired and the targets computed, unless somebody else is at it and takes long."""
        try:
            return self._table.update(timeout_ms=100)
        except LockedError:
            return view

    def _follow_page(self, view: View) -> None:
        """Remember where the own words are: a larger page has them elsewhere."""
        member = view.table.members.get(self._number)
        self._page = view.page
        if member is not None:
            self._number_word, self._stamp_word = member.number_word, member.stamp_word

    def _is_member(self, view: View) -> bool:
        member = view.table.members.get(self._number)
        # a retired page says nothing: the next one will
        return (
            member is not None
            and not member.is_reserved
            and view.page.load(member.number_word) in (self._number, RETIRED)
        )

    def _rejoin(self, view: View) -> None:
        """Put out, for too long without a poll: come back as a new member. Unless somebody is there in its place."""
        if self.instance_id is not None:
            there = view.table.member_of_instance(self.instance_id)
            if there is not None and there.slot != self._slot.number:
                self.fatal = GroupError(
                    f"a newer member of group {self.group!r} has the instance id {self.instance_id!r}: "
                    f"close this one, or give each its own (the newer is {there.member_id})"
                )
                raise self.fatal
        logger.warning(
            "group %r: member %s was put out, as it did not poll for %d ms; it joins again",
            *(self.group, self.member_id, self._max_poll_interval_ms),
        )
        self._join()

    def _drop_lost(self, view: View, among: Iterable[TopicPartition]) -> None:
        """Forget what is owned by this member no more: its topic is gone, or was made again."""
        table = view.table
        lost = [
            one
            for one in among
            if table.topic_ids.get(one.topic) != self._owned[one].topic_id
            or one not in table.indexes
            or view.owner_value(one) not in (self._owned[one].value, RETIRED)
        ]
        self._owned = {one: epoch for one, epoch in self._owned.items() if one not in lost}
        self._revoking.difference_update(lost)

    def _owned_by_words(self, view: View) -> dict[TopicPartition, OwnerEpoch]:
        """What is owned, with what was taken when nobody could note it any more."""
        found = {one: OwnerEpoch(view.owner_value(one), view.table.topic_ids[one.topic]) for one in view.table.indexes}
        return {one: epoch for one, epoch in found.items() if epoch.value >> NUMBER_SHIFT == self._number} | self._owned

    def _take(self, view: View, target: Collection[TopicPartition]) -> None:
        """Become the owner of what the target gives, where nobody is; the rest is waited for."""
        missing = sorted(one for one in target if one not in self._owned)
        self._is_waiting = bool(missing)
        free = [one for one in missing if view.owner_value(one) == 0]
        if not free:
            return
        table, page = view.table, view.page
        epochs = {}
        for one in free:
            self._taken += 1
            epochs[one] = OwnerEpoch(self._number << NUMBER_SHIFT | self._taken, table.topic_ids[one.topic])
        words = [(page, table.owner_word(one), epoch.value) for one, epoch in epochs.items()]
        member = (page, self._number_word, self._number)
        self._is_in_doubt = True  # until it is noted what became of it
        try:
            self._table.offsets.log(self.group).exchange(
                [view.live, view.placed, member, *((page, word, 0) for _, word, _ in words)], words
            )
        except FencedError:
            # put out meanwhile, or somebody else took one, or words have gone to other partitions, or the page is being
            # replaced, perhaps by one who died in it
            self._recompute(view)
            self._is_waiting = True
            return
        oscalls.reach_failpoint("group.taken")
        self._owned = {**self._owned, **epochs}
        self._is_in_doubt = False
        self._is_waiting = len(free) < len(missing)

    # --- letting go ------------------------------------------------------------------------------------------------

    def release(self, partitions: Iterable[TopicPartition]) -> None:
        """Let go of partitions, so that others may take them: after what was to be committed is.

        Those that are not owned are passed over. When it fails, the next poll goes on with it: nothing more is told of
        them.
        """
        with self._lock:
            named = set(partitions)
            self._releasing.update(one for one in named if one in self._owned)
            self._told = {one: epoch for one, epoch in self._told.items() if one not in named}
            self._let_go_of_all()

    def _let_go_of_all(self) -> None:
        """Let go of everything that is to be released."""
        while going := [one for one in self._releasing if one in self._owned]:
            self._let_go(going)
        self._releasing.clear()
        self._table.ring()

    def _let_go(self, partitions: Sequence[TopicPartition]) -> None:
        """Let go of them. What is owned after that is to be tried again: the page was replaced."""
        view = self._table.view()
        self._drop_lost(view, partitions)
        going = [one for one in partitions if one in self._owned]
        words = [(view.page, view.table.owner_word(one), self._owned[one].value) for one in going]
        try:
            self._table.offsets.log(self.group).exchange(
                [view.live, *words], [(page, word, 0) for page, word, _ in words]
            )
        except FencedError:
            self._table.update()  # waits for who replaces the page, and repairs what a dead one left
            return
        oscalls.reach_failpoint("group.released")
        self._owned = {one: epoch for one, epoch in self._owned.items() if one not in going}
        self._revoking.difference_update(going)
        self._is_waiting = True

    # --- commits ---------------------------------------------------------------------------------------------------

    def owned(self) -> dict[TopicPartition, OwnerEpoch]:
        """The partitions of this member, those being revoked included."""
        return dict(self._owned)

    def conditions(
        self, partitions: Iterable[TopicPartition], epochs: Mapping[TopicPartition, OwnerEpoch] | None = None
    ) -> list[Condition]:
        """What has to hold for a commit: that this member owns each of these, now as when it took them.

        For ``OffsetStore.commit`` and for transactions. ``epochs`` are those under which the positions were read; None:
        those of now. CommitFailedError when it does not own one of them, or took it anew since. When an append fails
        with FencedError and ``is_page_replaced``, ask again: the group got a larger page.
        """
        owned = self._owned
        page, _, table = self._table.view()
        indexes, first = table.indexes, table.owners_word
        found = []
        for one in partitions:
            epoch = owned.get(one)
            if epoch is None or one not in indexes or (epochs is not None and epochs.get(one) != epoch):
                raise self._not_owned([one])
            found.append((page, first + indexes[one], epoch.value))
        return found

    def is_page_replaced(self, conditions: Sequence[Condition]) -> bool:
        """Whether conditions failed only because the group has got a larger page since: ask for new ones."""
        return any(page.replaced or page.load(word) == RETIRED for page, word, _ in conditions)

    def commit(
        self,
        offsets: Mapping[TopicPartition, OffsetAndMetadata],
        epochs: Mapping[TopicPartition, OwnerEpoch] | None = None,
        owners: Collection[TopicPartition] | None = None,
    ) -> None:
        """Commit offsets of own partitions, all or none; as durable as the directory's level when it returns.

        ``epochs`` are the entries of ``owned()`` under which the positions were read: one of an earlier epoch never
        counts in a later one. None: those of now. ``owners``: offsets of any partitions, by the right of owning these;
        None: the partitions themselves.

        CommitFailedError when a partition belongs to somebody else by now, or was lost and taken anew, or its topic was
        deleted: what was handled since the last commit will be handled again there. Nothing is written then.
        """
        self._require_usable()
        if epochs is None:
            epochs = self._owned
        if owners is None:
            owners = offsets.keys()
        while offsets:
            conditions = self.conditions(owners, epochs)
            topic_ids = {one[0]: epochs[one].topic_id for one in owners}
            try:
                self._table.offsets.commit(self.group, offsets, conditions, topic_ids)
            except FencedError:
                if not self.is_page_replaced(conditions):
                    raise self._not_owned(owners) from None
            except UnknownTopicError as error:
                raise CommitFailedError(f"nothing was committed, as a topic was deleted: {error}") from None
            else:
                return

    def _not_owned(self, partitions: Iterable[TopicPartition]) -> CommitFailedError:
        names = ", ".join(f"{topic}-{number}" for topic, number in partitions)
        return CommitFailedError(
            f"member {self.member_id} of group {self.group!r} does not own {names} any more: it did not poll for "
            f"{self._max_poll_interval_ms} ms, or the group was rebalanced. What it handled since its last commit "
            "comes again"
        )

    # --- waking ----------------------------------------------------------------------------------------------------

    def set_wake(self, wake: Callable[[], object] | None) -> None:
        """Have ``wake`` called, from any thread, when this process has changed the table. Others ring ``bell``."""
        self._wake = wake

    def wake(self) -> None:
        """Call what ``set_wake`` was given."""
        wake = self._wake
        if wake is not None:
            wake()

    def _require_usable(self) -> None:
        if self._is_left:
            raise ClosedError(f"member {self.member_id} has left group {self.group!r}")
        if self.fatal is not None:
            raise self.fatal


def check_topics(topics: Sequence[str]) -> tuple[str, ...]:
    """Names without repetition, in order. ConfigError for a bare str or no topic at all."""
    if isinstance(topics, str) or not topics:
        raise ConfigError(f"a subscription is a list of topics or a compiled expression, found {topics!r}")
    return tuple(sorted(set(topics)))
