"""What has to be true of a group when everything is quiet, whoever died before."""

from __future__ import annotations

from collections.abc import Iterator

from fastlog.groups.formats import OffsetKey, decode_key, decode_value
from fastlog.groups.membership import Membership
from fastlog.groups.offsets import OffsetAndMetadata, OffsetStore
from fastlog.groups.table import peek
from fastlog.store.directory import Directory

__all__ = ["check_epochs", "check_table", "commits", "turn"]


def turn(member: Membership) -> None:
    """One poll, and what it asks for is let go of."""
    changes = member.poll()
    if changes is not None:
        member.release(changes.revoked)


def check_table(directory: Directory, group: str = "g") -> None:
    """Words and document agree once everything is quiet."""
    view = peek(directory, group)
    assert view is not None
    table = view.table
    rows = {member.row: member.number for member in table.living}
    for row in range(table.rows):
        assert view.page.load(8 + 2 * row) == rows.get(row, 0)
    owned = {one: view.owner_value(one) >> 32 for one in table.indexes}
    assert owned == {one: number for number, held in table.targets.items() for one in held}
    used = {table.owner_word(one) for one in table.indexes}
    assert not any(view.page.load(word) for word in range(table.owners_word, view.page.words) if word not in used)
    view.page.close()


def commits(directory: Directory, group: str = "g") -> Iterator[tuple[OffsetKey, OffsetAndMetadata]]:
    """Every commit in the log, in the order in which they took effect."""
    for batch in OffsetStore(directory).log(group).replay():
        for key, value in zip(batch.keys(), batch.values(), strict=True):
            assert key is not None and value is not None
            subject = decode_key(key)
            assert subject is not None
            if subject.group == group:
                yield subject, decode_value(value).position


def check_epochs(directory: Directory, group: str = "g") -> int:
    """Every commit in the log was made by the owner of that moment, whose epoch it names: an epoch that another one
    followed never comes back. Returns how many epochs there were."""
    epochs: dict[OffsetKey, list[str]] = {}
    for subject, position in commits(directory, group):
        seen = epochs.setdefault(subject, [])
        epoch = position.metadata
        if not seen or seen[-1] != epoch:
            assert epoch not in seen, f"{subject}: {epoch} committed after {seen[seen.index(epoch) + 1 :]}"
            seen.append(epoch)
    return sum(map(len, epochs.values()))
