"""Assignors: everything has one owner, shares are even, little moves, and every process finds the same."""

from __future__ import annotations

import random
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fastlog.errors import ConfigError
from fastlog.groups.assignors import ASSIGNORS, Assignment, Subscriber, assign
from fastlog.records import TopicPartition

TOPICS = ["a", "b", "c", "d"]
counts = st.dictionaries(st.sampled_from(TOPICS), st.integers(1, 9))
subscriptions = st.dictionaries(
    st.text("mnopq", min_size=1, max_size=3), st.frozensets(st.sampled_from(TOPICS)), min_size=1, max_size=7
)
names = st.sampled_from(sorted(ASSIGNORS))


def fresh(wanted: dict[str, frozenset[str]]) -> dict[str, Subscriber]:
    return {name: Subscriber(topics) for name, topics in wanted.items()}


def again(wanted: dict[str, frozenset[str]], assignment: Assignment) -> dict[str, Subscriber]:
    return {name: Subscriber(topics, tuple(assignment.get(name, ()))) for name, topics in wanted.items()}


def check_whole(members: dict[str, Subscriber], partitions: dict[str, int], assignment: Assignment) -> None:
    """Each wanted partition has one owner, who wants it; nothing else is assigned; everybody is in the answer."""
    assert set(assignment) == set(members)
    owners = Counter(owned for held in assignment.values() for owned in held)
    wanted = {
        TopicPartition(topic, number)
        for topic, count in partitions.items()
        if any(topic in member.topics for member in members.values())
        for number in range(count)
    }
    assert owners == Counter(wanted)
    assert all(owned.topic in members[name].topics for name, held in assignment.items() for owned in held)
    assert all(held == sorted(held) for held in assignment.values())


def check_even(members: dict[str, Subscriber], assignment: Assignment) -> None:
    """No member has two more than another who could have one of them."""
    for name, held in assignment.items():
        for other, member in members.items():
            if any(owned.topic in member.topics for owned in held):
                assert len(held) - len(assignment[other]) < 2, (name, other)


@given(name=names, wanted=subscriptions, partitions=counts)
def test_every_partition_has_one_owner_who_wants_it(
    name: str, wanted: dict[str, frozenset[str]], partitions: dict[str, int]
) -> None:
    members = fresh(wanted)
    check_whole(members, partitions, assign(name, members, partitions))


@given(name=names, wanted=subscriptions, partitions=counts, seed=st.integers())
def test_the_order_of_members_does_not_matter(
    name: str, wanted: dict[str, frozenset[str]], partitions: dict[str, int], seed: int
) -> None:
    members = fresh(wanted)
    shuffled = list(members)
    random.Random(seed).shuffle(shuffled)
    expected = assign(name, members, partitions)
    assert assign(name, {one: members[one] for one in shuffled}, dict(sorted(partitions.items()))) == expected


@given(first=subscriptions, second=subscriptions, partitions=counts, more=counts)
def test_sticky_is_whole_and_even_after_any_change(
    first: dict[str, frozenset[str]],
    second: dict[str, frozenset[str]],
    partitions: dict[str, int],
    more: dict[str, int],
) -> None:
    before = assign("cooperative-sticky", fresh(first), partitions)
    check_even(fresh(first), before)
    members = again(second, before)
    after = assign("cooperative-sticky", members, more)
    check_whole(members, more, after)
    check_even(members, after)


@given(wanted=subscriptions, partitions=counts)
def test_sticky_moves_nothing_without_a_reason(wanted: dict[str, frozenset[str]], partitions: dict[str, int]) -> None:
    before = assign("cooperative-sticky", fresh(wanted), partitions)
    assert assign("cooperative-sticky", again(wanted, before), partitions) == before


@given(size=st.integers(1, 12), total=st.integers(1, 60), leaving=st.integers(0, 11))
def test_sticky_moves_only_what_a_leaving_member_had(size: int, total: int, leaving: int) -> None:
    wanted = {f"m{number:02}": frozenset("a") for number in range(size + 1)}
    before = assign("cooperative-sticky", fresh(wanted), {"a": total})
    del wanted[sorted(wanted)[leaving % (size + 1)]]
    after = assign("cooperative-sticky", again(wanted, before), {"a": total})
    for name in wanted:
        assert set(before[name]) <= set(after[name])


@given(size=st.integers(1, 12), total=st.integers(1, 60))
def test_sticky_moves_only_what_a_joining_member_gets(size: int, total: int) -> None:
    wanted = {f"m{number:02}": frozenset("a") for number in range(size)}
    before = assign("cooperative-sticky", fresh(wanted), {"a": total})
    wanted["m00-new"] = frozenset("a")
    after = assign("cooperative-sticky", again(wanted, before), {"a": total})
    assert len(after["m00-new"]) == total // (size + 1) or size >= total
    for name in before:
        assert set(after[name]) <= set(before[name])


def test_sticky_passes_on_through_a_member_between() -> None:
    """a1 could give to nobody but both, both could give to b1: the chain makes room."""
    members = {
        "a1": Subscriber(frozenset("a"), tuple(TopicPartition("a", number) for number in range(4))),
        "both": Subscriber(frozenset("ab"), tuple(TopicPartition("b", number) for number in range(3))),
        "b1": Subscriber(frozenset("b"), (TopicPartition("b", 3),)),
    }
    after = assign("cooperative-sticky", members, {"a": 4, "b": 4})
    assert sorted(map(len, after.values())) == [2, 3, 3]


def test_range_gives_runs_that_meet_across_topics() -> None:
    members = fresh({"x": frozenset("ab"), "y": frozenset("ab")})
    assignment = assign("range", members, {"a": 3, "b": 3})
    assert assignment["x"] == [TopicPartition(topic, number) for topic in "ab" for number in (0, 1)]
    assert assignment["y"] == [TopicPartition("a", 2), TopicPartition("b", 2)]


def test_round_robin_passes_over_who_does_not_subscribe() -> None:
    members = fresh({"x": frozenset("ab"), "y": frozenset("b")})
    assignment = assign("round-robin", members, {"a": 1, "b": 3})
    assert assignment["x"] == [TopicPartition("a", 0), TopicPartition("b", 1)]
    assert assignment["y"] == [TopicPartition("b", 0), TopicPartition("b", 2)]


@pytest.mark.parametrize("name", sorted(ASSIGNORS))
def test_more_members_than_partitions_leaves_some_idle(name: str) -> None:
    members = fresh({f"m{number}": frozenset("a") for number in range(5)})
    assert sorted(map(len, assign(name, members, {"a": 2}).values())) == [0, 0, 0, 1, 1]


def test_unknown_assignor_is_refused_by_name() -> None:
    with pytest.raises(ConfigError, match="cooperative-sticky, range, round-robin, found 'sticky'"):
        assign("sticky", {}, {})
