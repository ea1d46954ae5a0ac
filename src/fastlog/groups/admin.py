"""Groups from outside: who is in them, how far they have come, and moving them elsewhere while nobody is at work."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from datetime import datetime
from typing import Any, NamedTuple

from fastlog._native import oscalls
from fastlog.errors import ConfigError, FencedError, GroupError, UnknownTopicError
from fastlog.groups.formats import OffsetAndMetadata, checked_offsets
from fastlog.groups.offsets import Condition, OffsetStore
from fastlog.groups.table import NUMBER_SHIFT, GroupTable, Member, View, live_groups, peek
from fastlog.records import TopicPartition, is_offset, list_of, named_partition
from fastlog.store import naming
from fastlog.store.directory import Directory
from fastlog.store.places import is_place, offset_of, readable_end

__all__ = [
    "GroupDescription",
    "MemberDescription",
    "delete_group",
    "describe",
    "list_groups",
    "require_known",
    "reset_offsets",
]

Target = str | int | datetime | Mapping[TopicPartition, int]


class MemberDescription(NamedTuple):
    """One member: ``partitions`` is what it owns now; ``last_poll_age`` is in seconds, None for a static member that is
    gone and waited for."""

    member_id: str
    instance_id: str | None
    client_id: str
    pid: int | None
    partitions: list[TopicPartition]
    last_poll_age: float | None


class GroupDescription(NamedTuple):
    """One group. ``state`` is ``"Stable"``, ``"Reconciling"`` while partitions are on their way to other members,
    ``"Empty"`` without members, ``"Dead"`` when it has neither members nor offsets."""

    name: str
    state: str
    generation: int
    assignor: str | None
    members: list[MemberDescription]
    offsets: dict[TopicPartition, OffsetAndMetadata]


def describe(directory: Directory, group: str) -> GroupDescription:
    """What there is to know of a group now. Changes nothing."""
    offsets = OffsetStore(directory).all_committed(group)
    view = peek(directory, group)
    if view is None:
        return GroupDescription(group, "Empty" if offsets else "Dead", 0, None, [], offsets)
    try:
        return describe_table(view, offsets)
    finally:
        view.page.close()


def describe_table(view: View, offsets: dict[TopicPartition, OffsetAndMetadata]) -> GroupDescription:
    """What the table says."""
    table = view.table
    owners = {one: view.owner_value(one) >> NUMBER_SHIFT for one in table.indexes}
    members = [
        describe_member(view, member, sorted(one for one, number in owners.items() if number == member.number))
        for member in table.members.values()
    ]
    if not table.living:
        state = "Empty" if offsets or members else "Dead"
    elif all(owners[one] == member.number for member in table.living for one in table.targets[member.number]):
        state = "Stable"
    else:
        state = "Reconciling"
    return GroupDescription(table.group, state, table.generation, table.assignor or None, members, offsets)


def describe_member(view: View, member: Member, partitions: list[TopicPartition]) -> MemberDescription:
    """One row of the table."""
    age = None if member.is_reserved else (oscalls.steady_clock() - view.page.load(member.stamp_word)) / 1000
    pid = None if member.is_reserved else member.identity.get("pid")
    return MemberDescription(member.member_id, member.instance_id, member.client_id, pid, partitions, age)


def require_known(directory: Directory, group: str) -> GroupDescription:
    """What there is to know of a group. GroupError when it has neither members nor offsets, which names the nearest."""
    found = describe(directory, group)
    if found.state == "Dead":
        raise unknown_group(group, list_groups(directory))
    return found


def unknown_group(name: str, names: Iterable[str]) -> GroupError:
    """The error for a group that is not there; it names the nearest one."""
    hint = naming.nearest_of(name, names) or "no group has members or offsets"
    return GroupError(f"there is no group {name!r}: {hint}")


def list_groups(directory: Directory) -> list[str]:
    """Names of all groups that have offsets or members, sorted."""
    return sorted({*OffsetStore(directory).groups(), *live_groups(directory)})


def reset_offsets(
    directory: Directory,
    group: str,
    partitions: Iterable[TopicPartition] | Iterable[str] | None = None,
    *,
    to: Target,
    only_unowned: bool = False,
) -> dict[TopicPartition, OffsetAndMetadata]:
    """Commit other positions for a group that nobody works in; answers with them.

    Args:
        partitions: partitions or names of topics; None: all that the group has an offset for.
        to: ``"earliest"``, ``"latest"``, an offset (bounded by what the partition has), an aware datetime (the first
            record of that time or later, else the end), a span before now such as ``"-10m"``, or offsets by partition,
            which then are all.
        only_unowned: partitions that nobody owns may be reset although the group has members.

    GroupError when the group has members, or a partition has an owner, or when there is no such group and no partition
    is named: nothing is committed then. UnknownTopicError for a topic that there is not.
    """
    store = OffsetStore(directory)
    named = checked_target(to)
    wanted = wanted_partitions(directory, store, group, partitions if named is None else named)
    if not wanted and partitions is None and named is None:
        require_known(directory, group)
    positions = {
        one: OffsetAndMetadata(offset_for(directory, one, to) if named is None else named[one]) for one in wanted
    }
    change_idle(directory, group, wanted, only_unowned, lambda holds: store.commit(group, positions, holds))
    return positions


def delete_group(
    directory: Directory, group: str, partitions: Iterable[TopicPartition] | None = None, *, only_unowned: bool = False
) -> list[TopicPartition]:
    """Forget the offsets of a group that nobody works in, all or those of these partitions; answers whose.

    GroupError as in ``reset_offsets``, and when there is no such group.
    """
    require_known(directory, group)
    store = OffsetStore(directory)
    wanted = None if partitions is None else [TopicPartition(*one) for one in partitions]
    forgotten: list[TopicPartition] = []
    named = sorted(store.all_committed(group)) if wanted is None else wanted
    change_idle(
        directory, group, named, only_unowned, lambda holds: forgotten.extend(store.forget(group, wanted, holds))
    )
    return forgotten


def change_idle(
    directory: Directory,
    group: str,
    partitions: Iterable[TopicPartition],
    only_unowned: bool,
    change: Callable[[list[Condition]], object],
) -> None:
    """Call ``change`` with conditions that nobody owns these partitions, while nobody can join."""
    table = GroupTable.share(directory, group)
    try:
        table.update()  # who is dead is no member
        with table.locked() as view:
            living = view.table.living
            if living and not only_unowned:
                names = ", ".join(member.member_id for member in living)
                raise GroupError(f"group {group!r} has members: close them before its offsets are changed ({names})")
            known = [one for one in partitions if one in view.table.indexes]
            try:
                change([(view.page, view.table.owner_word(one), 0) for one in known])
            except FencedError:
                owned = ", ".join(f"{one.topic}-{one.partition}" for one in known if view.owner_value(one))
                raise GroupError(f"members of group {group!r} own {owned}: nothing was changed") from None
    finally:
        table.release()


def wanted_partitions(
    directory: Directory,
    store: OffsetStore,
    group: str,
    partitions: Iterable[TopicPartition] | Iterable[str] | None,
) -> list[TopicPartition]:
    """Names of topics become all their partitions; nothing becomes all that have an offset."""
    if partitions is None:
        return sorted(store.all_committed(group))
    found: list[TopicPartition] = []
    for one in list_of(partitions, "topics", "names of topics, or partitions, or None for all that have offsets"):
        topic, number = (one, None) if isinstance(one, str) else named_partition(one)
        count = directory.topic(topic).partitions
        if number is None:
            found += [TopicPartition(topic, each) for each in range(count)]
        elif 0 <= number < count:
            found.append(TopicPartition(topic, number))
        else:
            raise UnknownTopicError(f"topic {topic!r} has partitions 0 to {count - 1}, found {number}", topic, number)
    return found


def checked_target(to: object) -> dict[TopicPartition, int] | None:
    """``to=`` as a caller passed it: offsets by partition, or None when it names a place in any of them. Raises
    ConfigError.
    """
    if isinstance(to, Mapping):
        return {one: position.offset for one, position in checked_offsets(to).items()}
    if not is_offset(to) and not is_place(to, "to"):
        raise ConfigError(
            f'to={to!r}: expected "earliest", "latest", an offset, an aware datetime, a span such as "-10m", or '
            f"offsets by partition"
        )
    return None


def offset_for(directory: Directory, partition: TopicPartition, to: Any) -> int:
    """The offset that ``to`` means in one partition."""
    with directory.lease(*partition) as lease:
        return min(max(offset_of(lease.log, to, "to"), lease.log.start_offset), readable_end(lease.log))
