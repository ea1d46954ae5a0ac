"""Assignors: which member of a group should have which partition. Pure functions, the same answer in every process.

All of them get every member with the topics that it subscribes to and the partitions that it has by the last
assignment, and the number of partitions of each topic; they return the partitions of every member, sorted. A partition
of a topic that somebody subscribes to has exactly one member; members may get none.

``range``
    Per topic: its subscribers in order of their names share its partitions in runs; the first few get one more.
    Partitions with the same number of topics with as many partitions meet at the same member.
``round-robin``
    All partitions in order are dealt out to the members in order, passing over those that do not subscribe.
``cooperative-sticky`` (default)
    As even as it can be, and from there as few moves as possible: as long as a member has two partitions more than
    another who could have one of them, directly or by passing on through others, one moves.
"""

from __future__ import annotations

import itertools
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from typing import NamedTuple

from fastlog.errors import ConfigError
from fastlog.records import TopicPartition

__all__ = ["ASSIGNORS", "Subscriber", "assign", "check_assignor"]

Assignment = dict[str, list[TopicPartition]]


class Subscriber(NamedTuple):
    """What an assignor knows of a member: the topics it wants, and what it has by the last assignment."""

    topics: frozenset[str]
    owned: tuple[TopicPartition, ...] = ()


def check_assignor(name: str) -> str:
    """The name itself. ConfigError when there is no such assignor."""
    if not isinstance(name, str) or name not in ASSIGNORS:
        raise ConfigError(f"assignor is one of {', '.join(sorted(ASSIGNORS))}, found {name!r}")
    return name


def assign(name: str, members: Mapping[str, Subscriber], partitions: Mapping[str, int]) -> Assignment:
    """The partitions of every member by the assignor of this name.

    ``members`` by an identity that sorts the same everywhere; ``partitions`` is the count of each topic that exists:
    subscriptions to others wait until it does. Every member is in the answer. Deterministic.
    """
    assignment = ASSIGNORS[check_assignor(name)](members, partitions)
    for owned in assignment.values():
        owned.sort()
    return assignment


def subscribers(members: Mapping[str, Subscriber], partitions: Mapping[str, int]) -> dict[str, list[str]]:
    """The members of each topic that exists and is wanted, in order; topics in order."""
    found: dict[str, list[str]] = {}
    for name in sorted(members):
        for topic in members[name].topics:
            if topic in partitions:
                found.setdefault(topic, []).append(name)
    return {topic: found[topic] for topic in sorted(found)}


def assign_ranges(members: Mapping[str, Subscriber], partitions: Mapping[str, int]) -> Assignment:
    """Runs of partitions per topic."""
    assignment: Assignment = {name: [] for name in members}
    for topic, names in subscribers(members, partitions).items():
        share, more = divmod(partitions[topic], len(names))
        first = 0
        for place, name in enumerate(names):
            count = share + (place < more)
            assignment[name] += [TopicPartition(topic, number) for number in range(first, first + count)]
            first += count
    return assignment


def assign_in_turn(members: Mapping[str, Subscriber], partitions: Mapping[str, int]) -> Assignment:
    """One partition after the other to one member after the other."""
    assignment: Assignment = {name: [] for name in members}
    order = sorted(members)
    turn = 0
    for topic in subscribers(members, partitions):
        for number in range(partitions[topic]):
            while topic not in members[order[turn % len(order)]].topics:
                turn += 1
            assignment[order[turn % len(order)]].append(TopicPartition(topic, number))
            turn += 1
    return assignment


def assign_sticky(members: Mapping[str, Subscriber], partitions: Mapping[str, int]) -> Assignment:
    """Even first, then whatever stays with whom had it."""
    by_topic = subscribers(members, partitions)
    assignment, unassigned = keep_owned(members, partitions, by_topic)
    if len(set(map(tuple, by_topic.values()))) <= 1:
        for names in list(by_topic.values())[:1]:
            share_evenly(assignment, names, unassigned)
        return assignment
    # those whom few may have come first, so that they meet members who are still free
    for wanted in sorted(unassigned, key=lambda one: (len(by_topic[one.topic]), one)):
        least = min(by_topic[wanted.topic], key=lambda name: (len(assignment[name]), name))
        assignment[least].append(wanted)
    while (path := path_downhill(assignment, by_topic)) is not None:
        pass_on(assignment, members, path)
    return assignment


def keep_owned(
    members: Mapping[str, Subscriber], partitions: Mapping[str, int], by_topic: Mapping[str, list[str]]
) -> tuple[Assignment, list[TopicPartition]]:
    """What members may keep, and what is left. Of two who claim one partition the first by name has it."""
    assignment: Assignment = {name: [] for name in members}
    left = {TopicPartition(topic, number): None for topic in by_topic for number in range(partitions[topic])}
    for name in sorted(members):
        topics = members[name].topics
        for owned in members[name].owned:
            if owned in left and owned.topic in topics:
                del left[owned]
                assignment[name].append(owned)
    return assignment, list(left)


def share_evenly(assignment: Assignment, names: list[str], unassigned: list[TopicPartition]) -> None:
    """All want the same: whoever has most keeps the larger share, what is beyond a share goes to who has less."""
    total = len(unassigned) + sum(len(assignment[name]) for name in names)
    share, more = divmod(total, len(names))
    ranked = sorted(names, key=lambda name: (-len(assignment[name]), name))
    limits = {name: share + (rank < more) for rank, name in enumerate(ranked)}
    for name in names:
        kept = sorted(assignment[name])
        unassigned += kept[limits[name] :]
        assignment[name] = kept[: limits[name]]
    unassigned.sort(reverse=True)
    for name in sorted(names):
        while len(assignment[name]) < limits[name]:
            assignment[name].append(unassigned.pop())


def path_downhill(assignment: Assignment, by_topic: Mapping[str, list[str]]) -> list[str] | None:
    """The shortest chain of members along which a partition each can be passed on, from one with at least two more than
    the last. None when there is none: then no assignment is more even.
    """
    loads = {name: len(owned) for name, owned in assignment.items()}
    for start in sorted(loads, key=lambda name: (-loads[name], name)):
        if loads[start] < 2:
            return None
        before: dict[str, str | None] = {start: None}
        waiting = deque([start])
        topics_seen: set[str] = set()
        while waiting:
            here = waiting.popleft()
            if loads[here] <= loads[start] - 2:
                return chain(before, here)
            for topic in sorted({owned.topic for owned in assignment[here]} - topics_seen):
                topics_seen.add(topic)
                for there in sorted(by_topic[topic], key=lambda name: (loads[name], name)):
                    if there not in before:
                        before[there] = here
                        waiting.append(there)
    return None


def chain(before: Mapping[str, str | None], last: str) -> list[str]:
    """The way from the start to ``last``."""
    path = [last]
    while (previous := before[path[-1]]) is not None:
        path.append(previous)
    return path[::-1]


def pass_on(assignment: Assignment, members: Mapping[str, Subscriber], path: Iterable[str]) -> None:
    """Move a partition along each step of the chain: one that comes home, or was not at home, if there is one."""
    steps = list(path)
    moves = []
    for giver, taker in itertools.pairwise(steps):
        at_home, other_home = set(members[giver].owned), set(members[taker].owned)
        candidates = [owned for owned in assignment[giver] if owned.topic in members[taker].topics]
        moves.append((giver, taker, min(candidates, key=lambda one: (one not in other_home, one in at_home, one))))
    for giver, taker, moved in moves:
        assignment[giver].remove(moved)
        assignment[taker].append(moved)


ASSIGNORS: dict[str, Callable[[Mapping[str, Subscriber], Mapping[str, int]], Assignment]] = {
    "cooperative-sticky": assign_sticky,
    "range": assign_ranges,
    "round-robin": assign_in_turn,
}
