"""Mistakes to plant into the product, inside of one process: what a history has to find."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import fastlog.clients.consumer
from fastlog.clients.consumer import Consumer
from fastlog.clients.producer import Producer
from fastlog.clients.transaction import Transaction
from fastlog.groups.formats import checked_offsets
from fastlog.groups.membership import Membership
from fastlog.store.directory import Directory
from fastlog.transactions import coordinator
from fastlog.transactions.states import TransactionState


def commits_without_conditions() -> None:
    """Whoever lost a partition commits for it all the same."""
    Membership.conditions = lambda *_, **__: []  # type: ignore[method-assign]


def marker_skipped() -> None:
    """Now and then a partition of a committed transaction gets no marker."""
    chance, write = random.Random(), coordinator.write_marker

    def skipping(log: Any, *arguments: Any, **options: Any) -> int:
        if options["commit"] and chance.random() < 0.05:
            return int(log.end_offset)
        return write(log, *arguments, **options)

    coordinator.write_marker = skipping


def commits_before_hand_out() -> None:
    """An automatic commit covers what was fetched, but not handed out yet."""
    commit = Consumer._commit_finished

    def early(self: Any) -> None:
        for found in self._fetcher:
            reads = self._cursor is not None and self._reading is found
            found.finished = self._cursor.batch.next_offset if reads else found.position
        commit(self)

    Consumer._commit_finished = early  # type: ignore[method-assign]


def epoch_not_bumped() -> None:
    """A new instance of a transactional id has the epoch of the one before."""
    opened, prepared = TransactionState.opened, TransactionState.prepared

    def same(self: TransactionState, *arguments: Any, **options: Any) -> TransactionState:
        return replace(opened(self, *arguments, **options), producer_id=self.producer_id, producer_epoch=5)

    def decided(self: TransactionState, *arguments: Any, **options: Any) -> TransactionState:
        return replace(prepared(self, *arguments, **options), producer_epoch=self.producer_epoch)

    TransactionState.opened = same  # type: ignore[method-assign]
    TransactionState.prepared = decided  # type: ignore[method-assign]


def abort_commits() -> None:
    """An abort is written down as a commit now and then."""
    chance, prepared = random.Random(), TransactionState.prepared

    def wrong(self: TransactionState, now: int, *, commit: bool, by_owner: bool) -> TransactionState:
        return prepared(self, now, commit=commit or chance.random() < 0.2, by_owner=by_owner)

    TransactionState.prepared = wrong  # type: ignore[method-assign]


def offsets_outside_of_transactions() -> None:
    """The offsets of a transaction are committed at once, whatever becomes of it."""

    def outside(self: Any, offsets: Any = None) -> None:
        self._require_open()
        wanted = self._consumer.offsets_in_hand() if offsets is None else checked_offsets(offsets)
        self._consumer.membership.commit(wanted)

    Transaction.commit_offsets = outside  # type: ignore[method-assign]


def no_rewind() -> None:
    """An aborted transaction does not bring its consumer back."""
    Consumer.rewind = lambda self: None  # type: ignore[method-assign]


def isolation_ignored() -> None:
    """Readers see what is not committed."""
    lease = Directory.lease
    Directory.lease = lambda self, topic, partition, isolation="": lease(  # type: ignore[method-assign]
        self, topic, partition, "read_uncommitted"
    )


def sends_twice() -> None:
    """Some records are appended twice."""
    chance, send = random.Random(), Producer.send

    def twice(self: Any, *arguments: Any, **options: Any) -> Any:
        if chance.random() < 0.01:
            send(self, *arguments, **options)
        return send(self, *arguments, **options)

    Producer.send = twice  # type: ignore[method-assign]


def takes_what_others_own() -> None:
    """A member takes what the table gives it without waiting for the one before."""
    take = Membership._take

    class Free:
        """A view in which nobody owns anything."""

        def __init__(self, view: Any) -> None:
            self.view = view

        def __getattr__(self, name: str) -> Any:
            return getattr(self.view, name)

        def owner_value(self, _: Any) -> int:
            return 0

    def grab(self: Any, view: Any, target: Any) -> Any:
        for one in target:
            if one not in self._owned and one in view.table.indexes:
                view.page.store(view.table.owner_word(one), 0)
        return take(self, Free(view), target)  # type: ignore[arg-type]

    Membership._take = grab  # type: ignore[method-assign]


def does_not_wait_for_pending() -> None:
    """A new owner reads committed offsets while an open transaction may move them."""
    fastlog.clients.consumer.resolve_pending = lambda *_, **__: True  # type: ignore[attr-defined]


MUTANTS: dict[str, Callable[[], None]] = {
    mutant.__name__: mutant
    for mutant in (
        *(commits_without_conditions, marker_skipped, commits_before_hand_out, epoch_not_bumped, abort_commits),
        *(offsets_outside_of_transactions, no_rewind, isolation_ignored, sends_twice, takes_what_others_own),
        does_not_wait_for_pending,
    )
}
