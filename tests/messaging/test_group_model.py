"""A group against a simple model: members join, leave, die, freeze, poll, let go and commit in any order.

The model knows who was told to own what. Nobody is told to own what another one, who is alive and polls, was told and
has not let go of; a commit counts only from who was told last; once all is quiet everything has an owner.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any
from unittest import mock

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, invariant, rule

from fastlog._native import oscalls
from fastlog.errors import CommitFailedError, GroupError
from fastlog.groups.membership import Membership
from fastlog.groups.offsets import OffsetAndMetadata, OffsetStore
from fastlog.groups.table import GroupTable
from fastlog.records import TopicPartition
from fastlog.store.directory import Directory
from tests.folders import MEMORY
from tests.messaging.test_group_faults import check_table

MOST_IDLE = 1000
SESSION = 3000
TOPICS = ["a", "b"]


class Clock:
    """The steady clock of this machine, which only the rules move."""

    def __init__(self) -> None:
        self.now = 1_000_000

    def __call__(self) -> int:
        return self.now


class Group(RuleBasedStateMachine):
    members = Bundle("members")

    def __init__(self) -> None:
        super().__init__()
        self.clock = Clock()
        self.patches = [
            mock.patch.object(oscalls, "steady_clock", self.clock),
            mock.patch.object(GroupTable, "start_watching"),
        ]
        for patch in self.patches:
            patch.start()
        self.folder = tempfile.TemporaryDirectory(prefix="fastlog-groups-", dir=MEMORY, ignore_cleanup_errors=True)
        self.directory = Directory.open(Path(self.folder.name) / "store", durability="os")
        self.counts = {"a": 4}
        self.directory.create_topic("a", 4)
        self.table = GroupTable.share(self.directory, "g")
        self.alive: list[Membership] = []
        self.holder: dict[TopicPartition, Membership] = {}
        self.polled: dict[int, int] = {}
        self.revoked: dict[int, list[TopicPartition]] = {}
        self.committed: dict[TopicPartition, int] = {}
        self.offset = 0

    def teardown(self) -> None:
        try:
            self.quiet()
            for member in self.alive:
                member.leave()
            self.table.release()
            self.directory.close()
        finally:
            for patch in self.patches:
                patch.stop()
            self.folder.cleanup()

    # --- what happens ------------------------------------------------------------------------------------------------

    @rule(
        target=members,
        topics=st.sampled_from([["a"], ["b"], ["a", "b"]]),
        instance=st.sampled_from([None, None, None, "one", "two"]),
    )
    def join(self, topics: list[str], instance: str | None) -> Membership:
        member = Membership(
            self.directory,
            "g",
            topics=topics,
            instance_id=instance,
            max_poll_interval_ms=MOST_IDLE,
            session_timeout_ms=SESSION,
        )
        if instance is not None:
            # it takes the place of who is there
            for older in self.alive:
                if older.instance_id == instance:
                    self.forget(older)
        self.alive.append(member)
        self.polled[id(member)] = self.clock.now
        self.revoked[id(member)] = []
        return member

    @rule(member=consumes(members))
    def leave(self, member: Membership) -> None:
        member.leave()
        self.forget(member)
        if member in self.alive:
            self.alive.remove(member)

    @rule(member=consumes(members))
    def die(self, member: Membership) -> None:
        """Its lock is free; nothing else says so."""
        member._slot.leave()
        member._table.release()
        self.forget(member)
        if member in self.alive:
            self.alive.remove(member)

    @rule(member=members, lets_go=st.booleans())
    def poll(self, member: Membership, lets_go: bool) -> Any:
        try:
            changes = member.poll()
        except GroupError:
            # somebody has its place: one that came later, or one that came back while this one was late
            assert member.instance_id is not None
            assert member not in self.holder.values() or self.is_late(member)
            self.forget(member)
            if member in self.alive:
                self.alive.remove(member)
            return
        if changes is not None:
            for one in changes.lost:
                if self.holder.get(one) is member:
                    assert self.is_late(member) or one.topic not in self.counts
                    del self.holder[one]
            self.revoked[id(member)] = [one for one in self.revoked[id(member)] if one not in changes.lost]
            for one in changes.assigned:
                before = self.holder.get(one)
                assert before is None or self.is_late(before), f"{one} is {before}'s"
                self.holder[one] = member
            assert all(self.holder[one] is member for one in changes.revoked)
            self.revoked[id(member)] += changes.revoked
        self.polled[id(member)] = self.clock.now
        if lets_go:
            self.let_go(member)

    @rule(member=members)
    def let_go(self, member: Membership) -> None:
        going = self.revoked[id(member)]
        self.revoked[id(member)] = []
        member.release(going)
        for one in going:
            if self.holder.get(one) is member:
                del self.holder[one]

    @rule(member=members, topic=st.sampled_from(TOPICS), partition=st.integers(0, 5))
    def commit(self, member: Membership, topic: str, partition: int) -> None:
        one = TopicPartition(topic, partition)
        self.offset += 1
        try:
            member.commit({one: OffsetAndMetadata(self.offset)})
        except CommitFailedError:
            assert self.holder.get(one) is not member or self.is_late(member)
        except GroupError:
            assert member not in self.alive
        else:
            assert self.holder.get(one) is member
            self.committed[one] = self.offset

    @rule(milliseconds=st.sampled_from([1, 400, 1001, 3001]))
    def pass_time(self, milliseconds: int) -> None:
        self.clock.now += milliseconds
        self.table.tick()
        if self.table._is_due:
            self.table._update_patiently()

    @rule(topic=st.sampled_from(TOPICS), more=st.sampled_from([1, 1, 1, 40]))
    def add_partitions(self, topic: str, more: int) -> None:
        if topic not in self.counts:
            self.counts[topic] = more
            self.directory.create_topic(topic, more)
        elif self.counts[topic] < 200:
            self.counts[topic] += more
            self.directory.add_partitions(topic, self.counts[topic])

    @rule()
    def look_after(self) -> None:
        self.table.update()

    # --- what holds --------------------------------------------------------------------------------------------------

    def is_late(self, member: Membership) -> bool:
        return self.clock.now - self.polled[id(member)] > MOST_IDLE

    def forget(self, member: Membership) -> None:
        self.holder = {one: holder for one, holder in self.holder.items() if holder is not member}

    @invariant()
    def committed_offsets_are_the_last_ones_that_counted(self) -> None:
        known = OffsetStore(self.directory).all_committed("g")
        assert {one: position.offset for one, position in known.items()} == self.committed

    def quiet(self) -> None:
        """Everybody polls, what was reserved is over: all is owned once, and shared evenly."""
        self.table.update()
        self.clock.now += SESSION + 1
        for _ in range(20):
            self.table.update()
            before = self.table.view().version
            for member in list(self.alive):
                self.poll(member, True)
            if self.table.view().version == before and not any(member._is_waiting for member in self.alive):
                break
        else:
            raise AssertionError("never quiet")
        for member in self.alive:
            assert {one for one, holder in self.holder.items() if holder is member} == set(member.owned())
        wanted = {topic for member in self.alive for topic in member._topics if topic in self.counts}
        assert set(self.holder) == {TopicPartition(one, number) for one in wanted for number in range(self.counts[one])}
        check_table(self.directory)


TestGroup = Group.TestCase
TestGroup.settings = settings(stateful_step_count=40, max_examples=2 * settings().max_examples)
