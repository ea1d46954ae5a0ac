"""Members that die, freeze and wake up, at every step: nothing is owned twice, everything is owned in the end."""

from __future__ import annotations

import errno
import random
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from fastlog._native import oscalls
from fastlog.errors import FencedError
from fastlog.groups.admin import describe
from fastlog.groups.membership import Membership
from fastlog.groups.offsets import OffsetAndMetadata, OffsetStore
from fastlog.records import TopicPartition
from fastlog.store.directory import Directory
from tests.messaging.grouping import check_epochs, check_table, turn
from tests.messaging.puppets import Puppet, PuppetError

Start = Callable[[], Puppet]


@pytest.fixture
def store(folder: Path) -> Path:
    return folder / "store"


@pytest.fixture
def directory(store: Path) -> Iterator[Directory]:
    with Directory.open(store, durability="os") as opened:
        yield opened


@pytest.fixture
def start(store: Path) -> Iterator[Start]:
    puppets: list[Puppet] = []

    def start_one() -> Puppet:
        puppets.append(Puppet(store))
        return puppets[-1]

    yield start_one
    for puppet in puppets:
        puppet.end()


def until(condition: Callable[[], Any], seconds: float = 10) -> None:
    stop = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < stop, f"not within {seconds} s"
        time.sleep(0.005)


def owns_all(member: Membership, count: int) -> Callable[[], bool]:
    def look() -> bool:
        turn(member)
        return len(member.owned()) == count

    return look


# --- death ----------------------------------------------------------------------------------------------------------


def test_I4_partitions_of_a_killed_process_are_taken_over(directory: Directory, start: Start) -> None:
    directory.create_topic("t", 6)
    member, other = Membership(directory, "g", topics=["t"]), start()
    other.join()
    other.join()
    for _ in range(4):
        turn(member)
        other.poll()
    assert [len(member.owned()), *map(len, other.owned())] == [2, 2, 2]
    theirs = other.owned()[0]
    other.commit(theirs, 17)
    other.kill()
    killed = time.monotonic()
    until(owns_all(member, 6))
    print(f"taken over after {(time.monotonic() - killed) * 1000:.0f} ms")
    offsets = OffsetStore(directory).committed("g", theirs)
    assert {position.offset for position in offsets.values() if position} == {17}
    member.leave()


def test_I4_all_members_die_at_once(directory: Directory, start: Start) -> None:
    directory.create_topic("t", 4)
    puppets = [start() for _ in range(3)]
    for puppet in puppets:
        puppet.join()
    for _ in range(3):
        for puppet in puppets:
            puppet.poll()
    for puppet in puppets:
        puppet.signal(signal.SIGKILL)
    member = Membership(directory, "g", topics=["t"])
    until(owns_all(member, 4))
    member.leave()
    assert describe(directory, "g").members == []


def test_a_process_that_closes_without_leaving_is_dead(directory: Directory, start: Start) -> None:
    directory.create_topic("t", 2)
    member, other = Membership(directory, "g", topics=["t"]), start()
    other.join()
    for _ in range(3):
        turn(member)
        other.poll()
    other.pipe.close()  # it comes to its end without a word
    until(owns_all(member, 2))
    member.leave()


def test_I4_a_dead_member_that_could_not_be_put_out_is_put_out_soon(directory: Directory, start: Start) -> None:
    """Its words could not be cleared when its death was told, and it is told only once."""
    directory.create_topic("t", 4)
    member, other = Membership(directory, "g", topics=["t"]), start()
    other.join()
    for _ in range(3):
        turn(member)
        other.poll()
    try:
        oscalls.inject("flock", errno=errno.EIO, nth=2)  # after the group's lock comes that of the offsets
        other.kill()
        until(oscalls.injected)
    finally:
        oscalls.clear()
    until(owns_all(member, 4))
    member.leave()


STEPS = {
    "group.seated": "join",
    "group.published": "join",
    "group.taken": "poll",
    "group.released": "poll",
    "group.stripped": "leave",
    "group.layout": "topics",
    "group.moving": "grow",
    "group.copied": "grow",
    "group.retired": "grow",
    "page.retiring": "grow",
    "page.filled": "join",
}


@pytest.mark.parametrize(("failpoint", "step"), sorted(STEPS.items()))
def test_I4_death_at_every_step(directory: Directory, start: Start, failpoint: str, step: str) -> None:
    """Whoever is left goes on: it owns everything at the end, commits, and the next one can join."""
    directory.create_topic("t", 4)
    if step == "topics":
        directory.create_topic("gone", 1)
    member, victim = Membership(directory, "g", topics=["t", "gone"]), start()
    turn(member)
    if step != "join":
        victim.join()
        turn(member)
        if failpoint == "group.released":
            victim.poll()
            turn(member)
            joiner = Membership(directory, "g", topics=["t"])
    victim.arm(failpoint)
    if step == "topics":
        directory.delete_topic("gone")
        victim.start_poll()
    elif step == "grow":
        directory.create_topic("u", 1000)
        victim.start_join("t", "u")
    else:
        {"join": victim.start_join, "poll": victim.start_poll, "leave": victim.start_leave}[step]()
    with pytest.raises((EOFError, ConnectionResetError)):
        victim.answer()
    if failpoint == "group.released":
        joiner.leave()
    until(owns_all(member, 4))
    member.commit(dict.fromkeys(member.owned(), OffsetAndMetadata(1)))
    third = start()
    third.join()
    until(lambda: third.poll() == [None] and turn(member) is None and len(third.owned()[0]) == 2)
    check_table(directory)
    member.leave()
    third.close()
    assert describe(directory, "g").members == []


def commit_all(member: Membership) -> None:
    member.commit({one: OffsetAndMetadata(1, str(epoch.value)) for one, epoch in member.owned().items()})


def test_only_owners_commit_whoever_freezes(directory: Directory, start: Start, seed: int) -> None:
    """Members that commit as fast as they can are stopped anywhere, and put out: none overtakes its successor."""
    directory.create_topic("t", 6)
    chance = random.Random(seed)
    puppets = [start() for _ in range(3)]
    for puppet in puppets:
        puppet.join(max_poll_interval_ms=100)
        puppet.start_work(2.0)
    stop = time.monotonic() + 1.5
    while time.monotonic() < stop:
        frozen = chance.choice(puppets)
        frozen.signal(signal.SIGSTOP)
        time.sleep(chance.choice([0.01, 0.15, 0.4]))
        frozen.signal(signal.SIGCONT)
        time.sleep(chance.uniform(0, 0.1))
    commits = [puppet.answer() for puppet in puppets]
    failures = [puppet.failed() for puppet in puppets]
    epochs = check_epochs(directory)
    print(f"{commits} commits, {failures} refused, {epochs} epochs")
    assert all(commits) and epochs > 3
    check_table(directory)


def test_I4_random_kills(directory: Directory, start: Start, seed: int) -> None:
    """Processes that work are killed wherever they are; the survivor owns all, and only owners have committed."""
    directory.create_topic("t", 8)
    chance = random.Random(seed)
    member = Membership(directory, "g", topics=["t"])
    for _ in range(2):
        puppets = [start() for _ in range(2)]
        for puppet in puppets:
            puppet.join()
            puppet.start_work(30)
        stop = time.monotonic() + chance.uniform(0.02, 0.3)
        while time.monotonic() < stop:
            turn(member)
        for puppet in puppets:
            puppet.signal(signal.SIGKILL)
        until(owns_all(member, 8))
        commit_all(member)
    assert check_epochs(directory) > 2
    check_table(directory)
    member.leave()


# --- freezing -------------------------------------------------------------------------------------------------------


def test_a_frozen_member_is_put_out_and_comes_back(directory: Directory, start: Start) -> None:
    directory.create_topic("t", 4)
    member, other = Membership(directory, "g", topics=["t"]), start()
    other.join(max_poll_interval_ms=1000)
    for _ in range(3):
        turn(member)
        other.poll()
    (theirs,) = other.owned()
    assert len(theirs) == 2
    other.signal(signal.SIGSTOP)
    other.start_commit(theirs, 99)
    until(owns_all(member, 4))
    member.commit(dict.fromkeys(theirs, OffsetAndMetadata(5)))
    other.signal(signal.SIGCONT)
    with pytest.raises(PuppetError, match="CommitFailedError"):
        other.answer()
    assert {one and one.offset for one in OffsetStore(directory).committed("g", theirs).values()} == {5}
    (changes,) = other.poll()
    assert changes.lost == theirs
    until(lambda: turn(member) is None and other.poll() == [None] and len(other.owned()[0]) == 2)
    member.leave()


@pytest.mark.parametrize("failpoint", ["append.locked", "append.dirty", "append.written", "append.published"])
def test_a_commit_that_began_before_its_member_was_put_out_counts(
    directory: Directory, start: Start, failpoint: str
) -> None:
    """Frozen inside of the writer lock, the commit comes before whatever puts its member out; nobody overtakes it."""
    directory.create_topic("t", 2)
    member, other = Membership(directory, "g", topics=["t"]), start()
    other.join(max_poll_interval_ms=1000)
    for _ in range(3):
        turn(member)
        other.poll()
    (theirs,) = other.owned()
    other.arm(failpoint, "stop")
    other.start_commit(theirs, 7)
    stop = time.monotonic() + 1
    while time.monotonic() < stop:
        turn(member)
    assert len(member.owned()) == 1, "its owner can not be changed while the lock is held"
    other.signal(signal.SIGCONT)
    other.answer()
    until(owns_all(member, 2))
    assert {one and one.offset for one in OffsetStore(directory).committed("g", theirs).values()} == {7}
    member.leave()


def test_a_commit_that_was_frozen_before_the_lock_fails(directory: Directory, start: Start) -> None:
    """Its conditions were read, and the member put out before they are compared."""
    directory.create_topic("t", 2)
    member = Membership(directory, "g", topics=["t"], max_poll_interval_ms=200)
    member.poll()
    conditions = member.conditions(member.owned())
    other = start()
    other.join()
    until(lambda: other.poll() and len(other.owned()[0]) == 2)
    with pytest.raises(FencedError):
        OffsetStore(directory).commit("g", dict.fromkeys(member.owned(), OffsetAndMetadata(9)), conditions)
    member.leave()


def test_two_processes_with_one_instance_id(directory: Directory, start: Start) -> None:
    directory.create_topic("t", 4)
    older, newer = start(), start()
    older.join(instance_id="one")
    older.poll()
    mine = older.owned()[0]
    assert len(mine) == 4
    newer.join(instance_id="one")
    with pytest.raises(PuppetError, match="CommitFailedError"):
        older.commit(mine, 1)
    (changes,) = newer.poll()
    assert changes.assigned == mine
    for _ in range(2):
        with pytest.raises(PuppetError, match="GroupError"):
            older.poll()
    older.close()
    assert newer.poll() == [None]
    newer.close()


def test_partitions_of_a_killed_static_member_wait_for_it(directory: Directory, start: Start) -> None:
    directory.create_topic("t", 4)
    member, static = Membership(directory, "g", topics=["t"]), start()
    static.join(instance_id="one", session_timeout_ms=10_000)
    for _ in range(3):
        turn(member)
        static.poll()
    (mine,) = static.owned()
    static.kill()
    until(lambda: any(one.last_poll_age is None for one in describe(directory, "g").members))
    turn(member)
    assert len(member.owned()) == 2
    again = start()
    again.join(instance_id="one", session_timeout_ms=500)
    (changes,) = again.poll()
    assert changes.assigned == mine
    again.kill()
    until(owns_all(member, 4))
    member.leave()


def test_work_goes_on_while_pages_grow(directory: Directory, start: Start) -> None:
    """Members in other processes commit without a failure while the page is replaced again and again."""
    directory.create_topic("t", 4)
    puppets = [start() for _ in range(2)]
    for puppet in puppets:
        puppet.join()
        puppet.start_work(2.0)
    members: list[Membership] = []
    for number in range(5):
        directory.create_topic(f"u{number}", 100 << number)
        members.append(Membership(directory, "g", topics=[f"u{number}"]))
        time.sleep(0.1)
    for puppet in puppets:
        assert puppet.answer() > 0
    for one in members:
        one.leave()


def test_forked_children_do_not_hold_a_place(directory: Directory) -> None:
    import os

    directory.create_topic("t", 1)
    member = Membership(directory, "g", topics=["t"])
    member.poll()
    child = os.fork()
    if child == 0:
        try:
            member.poll()
        except BaseException as error:
            os._exit(0 if type(error).__name__ == "ForkedHandleError" else 1)
        os._exit(2)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    member.commit({TopicPartition("t", 0): OffsetAndMetadata(1)})
    member.leave()
