"""Members of groups: who owns what, when it changes hands, and that nobody else can commit."""

from __future__ import annotations

import errno
import gc
import random
import re
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from fastlog._native import oscalls
from fastlog.errors import ClosedError, CommitFailedError, ConfigError, GroupError, StorageError
from fastlog.groups.admin import delete_group, describe, list_groups, reset_offsets
from fastlog.groups.membership import Changes, Membership
from fastlog.groups.offsets import OffsetAndMetadata, OffsetStore
from fastlog.groups.table import LAYOUT, GroupTable, peek
from fastlog.records import TopicPartition
from fastlog.store.directory import Directory
from tests.messaging.grouping import check_table

Members = list[Membership]


@pytest.fixture
def directory(folder: Path) -> Iterator[Directory]:
    with Directory.open(folder / "store", durability="os") as opened:
        yield opened


class Clock:
    """The steady clock, moved by hand from where it was."""

    def __init__(self) -> None:
        self.now = oscalls.steady_clock()

    def __call__(self) -> int:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(oscalls, "steady_clock", clock)
    return clock


def join(directory: Directory, *topics: str, **options: Any) -> Membership:
    return Membership(directory, options.pop("group", "g"), topics=topics or ["t"], **options)


def turn(member: Membership) -> Changes | None:
    """What a consumer does when it is polled: let go of what it has to."""
    changes = member.poll()
    if changes is not None:
        member.release(changes.revoked)
    return changes


def settle(members: Members, turns: int = 50) -> None:
    """Poll everybody until nobody has anything to do."""
    for _ in range(turns):
        if not [one for one in members if turn(one) is not None]:
            return
    raise AssertionError(f"not settled after {turns} turns")


def partitions(topic: str, count: int) -> list[TopicPartition]:
    return [TopicPartition(topic, number) for number in range(count)]


def check_shared(members: Members, wanted: list[TopicPartition]) -> None:
    """Everything wanted is owned once."""
    assert sorted(one for member in members for one in member.owned()) == sorted(wanted)


# --- joining and leaving --------------------------------------------------------------------------------------------


def test_a_single_member_owns_everything_at_its_first_poll(directory: Directory) -> None:
    directory.create_topic("t", 3)
    member = join(directory)
    assert member.owned() == {}
    assert member.poll() == Changes([], [], partitions("t", 3))
    assert member.poll() is None
    assert list(member.owned()) == partitions("t", 3)
    member.leave()
    member.leave()
    with pytest.raises(ClosedError, match="has left group 'g'"):
        member.poll()


def test_a_partition_is_taken_when_its_owner_has_let_go(directory: Directory) -> None:
    directory.create_topic("t", 4)
    first, second = join(directory), join(directory)
    assert first.poll() == Changes([], [], partitions("t", 2))
    second.leave()
    assert first.poll() == Changes([], [], partitions("t", 4)[2:])
    third = join(directory)
    assert third.poll() is None
    changes = first.poll()
    assert changes is not None
    assert len(changes.revoked) == 2 and not changes.lost and not changes.assigned
    assert third.poll() is None, "nobody has let go yet"
    assert set(changes.revoked) <= set(first.owned()), "still the owner, who may commit"
    first.commit(dict.fromkeys(changes.revoked, OffsetAndMetadata(5)))
    first.release(changes.revoked)
    taken = third.poll()
    assert taken == Changes([], [], changes.revoked)
    assert OffsetStore(directory).committed("g", changes.revoked).keys() == set(changes.revoked)
    for member in (first, third):
        member.leave()


def test_closing_the_directory_leaves(folder: Path) -> None:
    with Directory.open(folder / "store", durability="os") as other:
        other.create_topic("t", 2)
        with Directory.open(folder / "store", durability="os") as directory:
            member = join(directory)
            member.poll()
        assert describe(other, "g").members == []
        with pytest.raises(ClosedError):
            member.poll()


def test_a_member_that_nobody_refers_to_is_gone(directory: Directory) -> None:
    directory.create_topic("t", 2)
    member, other = join(directory), join(directory)
    settle([member, other])
    other.set_wake(other.poll)
    slot = other._slot.number
    del other
    gc.collect()
    assert not directory.slots.is_alive(slot)
    member._table.update()
    settle([member])
    assert len(member.owned()) == 2
    member.leave()


def test_members_beyond_the_partitions_are_idle(directory: Directory) -> None:
    directory.create_topic("t", 2)
    members = [join(directory) for _ in range(4)]
    settle(members)
    assert sorted(len(one.owned()) for one in members) == [0, 0, 1, 1]
    check_shared(members, partitions("t", 2))
    for one in members:
        one.leave()


def test_members_may_subscribe_to_different_topics(directory: Directory) -> None:
    directory.create_topic("a", 3)
    directory.create_topic("b", 3)
    both, only = join(directory, "a", "b"), join(directory, "b")
    settle([both, only])
    check_shared([both, only], partitions("a", 3) + partitions("b", 3))
    assert len(both.owned()) == 3
    assert set(only.owned()) <= set(partitions("b", 3))
    only.leave()
    both.leave()


def test_groups_do_not_see_each_other(directory: Directory) -> None:
    directory.create_topic("t", 2)
    first, second = join(directory), join(directory, group="other")
    settle([first, second])
    assert list(first.owned()) == list(second.owned()) == partitions("t", 2)
    first.leave()
    second.leave()


def test_one_assignor_for_the_group(directory: Directory) -> None:
    directory.create_topic("t", 4)
    first = join(directory, assignor="range")
    with pytest.raises(GroupError, match="uses the assignor 'range', found 'round-robin'"):
        join(directory, assignor="round-robin")
    second = join(directory, assignor="range")
    settle([first, second])
    assert list(first.owned()) == partitions("t", 2)
    first.leave()
    second.leave()


def test_names_are_checked(directory: Directory) -> None:
    with pytest.raises(GroupError, match="at least one character"):
        join(directory, group="")
    with pytest.raises(ConfigError, match="a list of topics or a compiled expression, found 't'"):
        Membership(directory, "g", topics="t")
    with pytest.raises(ConfigError, match="assignor is one of"):
        join(directory, assignor="fair")


# --- topics ---------------------------------------------------------------------------------------------------------


def test_new_partitions_and_topics_are_taken(directory: Directory) -> None:
    member = Membership(directory, "g", topics=re.compile("t.*"))
    assert member.poll() is None
    directory.create_topic("t1", 1)
    directory.create_topic("other", 1)
    assert member.poll() == Changes([], [], partitions("t1", 1))
    directory.add_partitions("t1", 3)
    assert member.poll() == Changes([], [], partitions("t1", 3)[1:])
    directory.create_topic("t2", 1)
    assert member.poll() == Changes([], [], partitions("t2", 1))
    member.leave()


def test_a_deleted_topic_is_lost_and_a_new_one_of_its_name_starts_anew(directory: Directory) -> None:
    directory.create_topic("t", 1)
    member = join(directory)
    member.poll()
    (one,) = member.owned()
    member.commit({one: OffsetAndMetadata(7)})
    directory.delete_topic("t")
    with pytest.raises(CommitFailedError, match="a topic was deleted"):
        member.commit({one: OffsetAndMetadata(8)})
    assert member.poll() == Changes([], [one], [])
    with pytest.raises(CommitFailedError, match="does not own t-0"):
        member.commit({one: OffsetAndMetadata(8)})
    directory.create_topic("t", 1)
    assert member.poll() == Changes([], [], [one])
    assert OffsetStore(directory).committed("g", [one]) == {one: None}, "that was another topic's offset"
    member.commit({one: OffsetAndMetadata(3)})
    assert OffsetStore(directory).committed("g", [one])[one] is not None
    member.leave()


def test_a_topic_that_is_made_again_between_two_polls_changes_hands(directory: Directory) -> None:
    directory.create_topic("t", 1)
    member = join(directory)
    member.poll()
    directory.delete_topic("t")
    directory.create_topic("t", 1)
    assert member.poll() == Changes([], partitions("t", 1), partitions("t", 1))
    member.leave()


def test_a_position_of_an_earlier_life_of_a_topic_is_not_committed_for_the_next(directory: Directory) -> None:
    directory.create_topic("t", 1)
    member = join(directory)
    member.poll()
    (one,) = member.owned()
    directory.delete_topic("t")
    directory.create_topic("t", 1)
    with pytest.raises(CommitFailedError, match="a topic was deleted"):
        member.commit({one: OffsetAndMetadata(7)})
    assert OffsetStore(directory).committed("g", [one]) == {one: None}
    member.leave()


class Pause:
    """The offsets of a table, with something that happens once between reading the table and an exchange."""

    def __init__(self, member: Membership, happens: Callable[[], object]) -> None:
        self._offsets = member._table.offsets
        self._happens: Callable[[], object] | None = happens
        member._table.offsets = self  # type: ignore[assignment]

    def log(self, group: str) -> Any:
        happens, self._happens = self._happens, None
        if happens is not None:
            happens()
        return self._offsets.log(group)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._offsets, name)


@pytest.mark.parametrize("is_given_away", [True, False], ids=["given away", "free"])
def test_a_word_of_another_partition_is_not_taken_by_an_old_document(folder: Path, is_given_away: bool) -> None:
    with Directory.open(folder / "store", durability="os") as one, Directory.open(folder / "store") as two:
        one.create_topic("a", 1)
        one.create_topic("z", 1)
        late = Membership(one, "g", topics=re.compile(".*"))
        other = Membership(two, "g", topics=["none yet"])
        index = late._table.view().table.indexes[TopicPartition("a", 0)]

        def change() -> None:
            two.delete_topic("a")
            other._table.update()
            if is_given_away:
                two.create_topic("c", 1)
                view = other._table.update()
                assert view.table.indexes[TopicPartition("c", 0)] == index, "the word has another partition now"

        Pause(late, change)
        assert late.poll() is None, "by the document that it read it may take nothing any more"
        view = other._table.view()
        assert view.page.load_many(view.table.owners_word, 3) == [0, 0, 0]
        settle([late, other])
        wanted = partitions("c", int(is_given_away)) + partitions("z", 1)
        check_shared([late, other], wanted)
        view = other._table.view()
        assert [view.owner_value(partition) for partition in wanted] == [
            late.owned()[partition].value for partition in wanted
        ]
        late.leave()
        other.leave()


def test_a_layout_whose_writer_died_before_publishing_is_published_by_the_next(directory: Directory) -> None:
    directory.create_topic("t", 1)
    member = join(directory)
    page, _, table = member._table.view()
    OffsetStore(directory).log("g").exchange([(page, LAYOUT, table.layout)], [(page, LAYOUT, table.layout + 1)])
    assert member.poll() is None, "nobody takes by a document of another layout"
    assert member.poll() == Changes([], [], partitions("t", 1))
    assert member._table.view().table.layout == page.load(LAYOUT)
    member.leave()


@pytest.mark.parametrize("instance_id", [None, "one"])
def test_who_was_interrupted_while_it_joined_again_joins_again(
    directory: Directory, clock: Clock, instance_id: str | None
) -> None:
    """It is in the table already, and does not know it."""
    directory.create_topic("t", 4)
    member = join(directory, max_poll_interval_ms=1000, instance_id=instance_id)
    other = join(directory, max_poll_interval_ms=10**6)
    settle([member, other])
    clock.now += 2000
    other._table.update()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(member._table, "ring", raising(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            member.poll()
    settle([member, other])
    assert len(describe(directory, "g").members) == 2
    check_shared([member, other], partitions("t", 4))
    check_table(directory)
    member.leave()
    other.leave()


def raising(error: type[BaseException]) -> Callable[[], None]:
    def call() -> None:
        raise error

    return call


def test_a_poll_that_fails_half_way_loses_no_changes(directory: Directory) -> None:
    directory.create_topic("t", 4)
    directory.create_topic("u", 1)
    first = join(directory, "t", "u")
    first.poll()
    directory.delete_topic("u")
    directory.create_topic("u", 1)
    second = join(directory, "t")

    def fail() -> None:
        raise StorageError("no room")

    first._table.update()
    Pause(first, fail)
    with pytest.raises(StorageError):
        first.poll()
    changes = first.poll()
    assert changes is not None
    assert changes.lost == changes.assigned == partitions("u", 1)
    assert len(changes.revoked) == 2
    first.release(changes.revoked)
    settle([first, second])
    check_shared([first, second], partitions("t", 4) + partitions("u", 1))
    first.leave()
    second.leave()


def test_a_release_that_failed_is_tried_again_by_the_next_poll(directory: Directory) -> None:
    directory.create_topic("t", 4)
    first = join(directory)
    first.poll()
    second = join(directory)
    changes = first.poll()
    assert changes is not None and len(changes.revoked) == 2
    try:
        oscalls.inject("flock", errno=errno.EIO, sticky=True)
        for release in (lambda: first.release(changes.revoked), first.poll):
            with pytest.raises(StorageError):
                release()
    finally:
        oscalls.clear()
    assert not first.is_settled
    assert first.poll() is None, "who has let go of them need not be told"
    assert len(first.owned()) == 2
    settle([first, second])
    check_shared([first, second], partitions("t", 4))
    first.leave()
    second.leave()


@pytest.mark.parametrize("step", ["group.taken", "group.released"])
def test_who_was_interrupted_before_it_noted_what_it_owns_finds_out(
    directory: Directory, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    directory.create_topic("t", 4)
    first = join(directory)
    first.poll()
    second = join(directory)
    reached = []

    def interrupt(name: str) -> None:
        if name == step:
            reached.append(name)
            monkeypatch.undo()
            raise KeyboardInterrupt

    monkeypatch.setattr(oscalls, "reach_failpoint", interrupt)
    with pytest.raises(KeyboardInterrupt):
        settle([first, second])
    assert reached
    changes = [turn(first), turn(second)]
    assert all(one is None or not one.lost for one in changes), "nothing was taken from them"
    settle([first, second])
    check_shared([first, second], partitions("t", 4))
    assert [len(first.owned()), len(second.owned())] == [2, 2]
    check_table(directory)
    for one in (first, second):
        one.commit(dict.fromkeys(one.owned(), OffsetAndMetadata(1)))
        one.leave()


def test_a_position_counts_under_the_epoch_it_was_read_under_only(directory: Directory, clock: Clock) -> None:
    """A member that was put out and has everything back: what it read before says nothing about where the group is."""
    directory.create_topic("t", 2)
    idle, busy = join(directory, max_poll_interval_ms=1000), join(directory, max_poll_interval_ms=10**6)
    settle([idle, busy])
    (one,) = idle.owned()
    before = idle.owned()
    clock.now += 1001
    busy._table.update()
    busy.poll()
    busy.commit({one: OffsetAndMetadata(9)})
    busy.leave()
    changes = idle.poll()
    assert changes == Changes([], [one], partitions("t", 2))
    with pytest.raises(CommitFailedError, match=f"does not own {one.topic}-{one.partition} any more"):
        idle.commit({one: OffsetAndMetadata(3)}, before)
    with pytest.raises(CommitFailedError):
        idle.conditions([one], before)
    stored = OffsetStore(directory).committed("g", [one])[one]
    assert stored is not None and stored.offset == 9
    idle.commit({one: OffsetAndMetadata(10)}, idle.owned())
    idle.leave()


# --- members that stop to poll --------------------------------------------------------------------------------------


def test_who_does_not_poll_is_put_out_and_cannot_commit(directory: Directory, clock: Clock) -> None:
    directory.create_topic("t", 2)
    idle, busy = join(directory, max_poll_interval_ms=1000), join(directory)
    settle([idle, busy])
    mine = list(idle.owned())
    conditions = idle.conditions(mine)
    clock.now += 1001
    busy._table.update()
    assert busy.poll() == Changes([], [], mine)
    with pytest.raises(CommitFailedError, match="What it handled since its last commit comes again"):
        idle.commit(dict.fromkeys(mine, OffsetAndMetadata(99)))
    assert any(page.load(word) != value for page, word, value in conditions)
    busy.commit(dict.fromkeys(mine, OffsetAndMetadata(1)))
    before = idle.member_id
    changes = idle.poll()
    assert changes is not None
    assert changes.lost == mine
    assert idle.member_id != before
    settle([idle, busy])
    check_shared([idle, busy], partitions("t", 2))
    stored = OffsetStore(directory).committed("g", mine)[mine[0]]
    assert stored is not None and stored.offset == 1
    idle.leave()
    busy.leave()


def test_who_was_put_out_cannot_take(directory: Directory, clock: Clock) -> None:
    """It read a target before it was put out, and acts by it after."""
    directory.create_topic("t", 1)
    idle = join(directory, max_poll_interval_ms=1000)
    view = idle._table.view()
    clock.now += 1001
    GroupTable.share(directory, "g").update()
    idle._take(view, {TopicPartition("t", 0)})
    assert idle.owned() == {}
    assert view.owner_value(TopicPartition("t", 0)) == 0
    idle.leave()
    idle._table.release()


def test_owner_epochs_are_never_equal_again(directory: Directory) -> None:
    directory.create_topic("t", 1)
    member = join(directory)
    (one,) = partitions("t", 1)
    seen = set()
    for _ in range(5):
        member.poll()
        seen.add(member.owned()[one].value)
        member.release([one])
    assert len(seen) == 5
    member.leave()


# --- static members -------------------------------------------------------------------------------------------------


def test_partitions_of_a_static_member_wait_for_it(directory: Directory, clock: Clock) -> None:
    directory.create_topic("t", 4)
    static, other = join(directory, instance_id="one", session_timeout_ms=5000), join(directory)
    settle([static, other])
    mine = sorted(static.owned())
    static.leave()
    settle([other])
    assert len(other.owned()) == 2, "the rest is reserved"
    again = join(directory, instance_id="one", session_timeout_ms=5000)
    assert again.poll() == Changes([], [], mine)
    again.leave()
    clock.now += 4999
    other._table.update()
    settle([other])
    assert len(other.owned()) == 2
    clock.now += 1
    other._table.update()
    settle([other])
    assert len(other.owned()) == 4
    other.leave()


def test_the_newer_of_one_instance_wins(directory: Directory) -> None:
    directory.create_topic("t", 4)
    older = join(directory, instance_id="one")
    settle([older])
    newer = join(directory, instance_id="one")
    with pytest.raises(CommitFailedError):
        older.commit({TopicPartition("t", 0): OffsetAndMetadata(1)})
    assert newer.poll() == Changes([], [], partitions("t", 4))
    for _ in range(2):
        with pytest.raises(GroupError, match="a newer member of group 'g' has the instance id 'one'"):
            older.poll()
    assert older.fatal is not None
    older.leave()
    settle([newer])
    assert len(newer.owned()) == 4, "the older one's leaving takes nothing away"
    newer.leave()


# --- larger pages ---------------------------------------------------------------------------------------------------


def test_the_page_grows_and_owners_stay(directory: Directory) -> None:
    directory.create_topic("t", 2)
    member = join(directory)
    member.poll()
    held = member.owned()
    old = member.conditions(held)
    directory.create_topic("u", 1000)
    other = join(directory, "t", "u")
    assert old[0][0].replaced
    assert member.is_page_replaced(old)
    member.commit(dict.fromkeys(held, OffsetAndMetadata(4)))
    assert member.owned() == held
    settle([member, other])
    check_shared([member, other], partitions("t", 2) + partitions("u", 1000))
    member.leave()
    other.leave()


def test_commits_go_on_while_the_page_grows(directory: Directory, seed: int) -> None:
    """Every commit of an owner succeeds, whenever the page is replaced."""
    directory.create_topic("t", 1)
    chance = random.Random(seed)
    member = join(directory)
    member.poll()
    (one,) = member.owned()
    failures: list[BaseException] = []
    done = threading.Event()

    def commit() -> None:
        offset = 0
        try:
            while not done.is_set():
                offset += 1
                member.commit({one: OffsetAndMetadata(offset)})
        except BaseException as error:
            failures.append(error)

    thread = threading.Thread(target=commit)
    thread.start()
    others = []
    for number in range(6):
        directory.create_topic(f"more{number}", 1 << (number + 6))
        others.append(join(directory, f"more{number}", client_id="x" * chance.randrange(3000)))
    done.set()
    thread.join()
    assert not failures, failures
    for each in [member, *others]:
        each.leave()


# --- from outside ---------------------------------------------------------------------------------------------------


def test_describe_tells_members_and_offsets(directory: Directory) -> None:
    directory.create_topic("t", 2)
    assert describe(directory, "g").state == "Dead"
    member = join(directory, client_id="c")
    assert describe(directory, "g").state == "Reconciling"
    member.poll()
    member.commit({TopicPartition("t", 1): OffsetAndMetadata(3, "note")})
    found = describe(directory, "g")
    assert (found.state, found.assignor, found.generation) == ("Stable", "cooperative-sticky", member.generation)
    (told,) = found.members
    assert told.member_id == member.member_id and told.client_id == "c"
    assert told.pid == oscalls.process_id()
    assert told.partitions == partitions("t", 2)
    assert told.last_poll_age is not None and 0 <= told.last_poll_age < 10
    assert found.offsets[TopicPartition("t", 1)].metadata == "note"
    assert list_groups(directory) == ["g"]
    member.leave()
    assert describe(directory, "g").state == "Empty"
    assert list_groups(directory) == ["g"]


def test_offsets_are_reset_only_while_nobody_works(directory: Directory) -> None:
    directory.create_topic("t", 2)
    directory.partition_log("t", 0).append([b"x"] * 10)
    member = join(directory)
    member.poll()
    one, two = partitions("t", 2)
    member.commit({one: OffsetAndMetadata(5), two: OffsetAndMetadata(0)})
    with pytest.raises(GroupError, match="has members: close them before"):
        reset_offsets(directory, "g", to="earliest")
    with pytest.raises(GroupError, match="own t-0: nothing was changed"):
        reset_offsets(directory, "g", [one], to="earliest", only_unowned=True)
    with pytest.raises(GroupError):
        delete_group(directory, "g")
    member.release([one])
    assert reset_offsets(directory, "g", [one], to=2, only_unowned=True)[one].offset == 2
    member.leave()
    assert {each.offset for each in reset_offsets(directory, "g", ["t"], to="latest").values()} == {10, 0}
    assert reset_offsets(directory, "g", to={one: 3}) == {one: OffsetAndMetadata(3)}
    assert reset_offsets(directory, "g", [one], to=99)[one].offset == 10
    store = OffsetStore(directory)
    assert store.all_committed("g")[one].offset == 10
    assert delete_group(directory, "g") == [one, two]
    assert store.all_committed("g") == {}
    assert store.groups() == []


def test_a_page_of_nobody_is_left_out(directory: Directory) -> None:
    directory.create_topic("t", 2)
    assert peek(directory, "g") is None
    join(directory).leave()
    view = peek(directory, "g")
    assert view is not None and not view.table.members
    view.page.close()


# --- many -----------------------------------------------------------------------------------------------------------


def test_50_members_and_200_partitions_settle(directory: Directory) -> None:
    directory.create_topic("t", 200)
    members = [join(directory) for _ in range(50)]
    settle(members)
    assert {len(one.owned()) for one in members} == {4}
    check_shared(members, partitions("t", 200))
    for one in members[:10]:
        one.leave()
    settle(members[10:])
    assert {len(one.owned()) for one in members[10:]} == {5}
    for one in members[10:]:
        one.leave()


def test_threads_that_poll_on_their_own_settle(directory: Directory) -> None:
    directory.create_topic("t", 40)
    stop = threading.Event()
    members: Members = []
    failures: list[BaseException] = []
    wake: Callable[[], None] = lambda: None  # noqa: E731

    def work() -> None:
        try:
            member = join(directory)
            members.append(member)
            member.set_wake(wake)
            while not stop.wait(0.001):
                changes = turn(member)
                if changes is not None and changes.assigned:
                    member.commit(dict.fromkeys(changes.assigned, OffsetAndMetadata(1)))
        except CommitFailedError:
            pass
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=work) for _ in range(10)]
    for thread in threads:
        thread.start()
    for _ in range(1000):
        if len(members) == 10 and all(len(one.owned()) == 4 for one in members):
            break
        stop.wait(0.01)
    stop.set()
    for thread in threads:
        thread.join()
    assert not failures, failures
    check_shared(members, partitions("t", 40))
    for one in members:
        one.leave()
