"""One partition of ``__transaction_state`` as this process knows it: the latest state of each id, and conditional
changes.
"""

from __future__ import annotations

import threading
from collections.abc import Callable

from fastlog._core import PartitionLog, encode_batch
from fastlog.errors import FencedError
from fastlog.transactions.records import decode_key, decode_value, encode_key, encode_value
from fastlog.transactions.states import TransactionState, TransactionStatus

__all__ = ["StateLog"]

Decide = Callable[[TransactionState | None], TransactionState | None]


class StateLog:
    """Reads on from where it was: one look at the page when nobody else has written. Any thread.

    Attributes:
        log: the partition. Its records are keyed by transactional id; the last one of each counts.
    """

    def __init__(self, log: PartitionLog) -> None:
        self.log = log
        self._states: dict[str, TransactionState] = {}
        self._position: int | None = None  # the next offset to replay
        self._lock = threading.Lock()

    def states(self) -> dict[str, TransactionState]:
        """Every id's state, as the log stands now; a copy."""
        with self._lock:
            self._refresh()
            return dict(self._states)

    def state(self, transactional_id: str) -> TransactionState | None:
        """One id's state, as the log stands now; None when nothing is known of it."""
        with self._lock:
            self._refresh()
            return self._states.get(transactional_id)

    def change(
        self, transactional_id: str, decide: Decide, *, durable: bool = False
    ) -> tuple[TransactionState | None, bool]:
        """Write what ``decide`` makes of the latest state, provided that nobody writes in between; else ask it again.

        Args:
            decide: gets the state (None: nothing is known), returns the next one, or None for no change. May raise.
            durable: return only when the record survives power loss.

        Returns:
            the state, and whether it was written here.

        Raises:
            StorageError: it could not be written, or, when ``durable``, not be synced: then it may be there.
        """
        key = encode_key(transactional_id)
        with self._lock:
            while True:
                position = self._refresh()
                before = self._states.get(transactional_id)
                after = decide(before)
                if after is None:
                    return before, False
                batch = encode_batch([encode_value(after)], [key])
                try:
                    base = self.log.append_batch(batch, expected_end_offset=position, durable=False)
                except FencedError:
                    continue
                self._position = base + 1
                self._states[transactional_id] = after
                break
        if durable:
            self.log.flush_until(base + 1)
        return after, True

    def first_decision(
        self, transactional_id: str, start: int, producer_id: int, producer_epoch: int
    ) -> TransactionState | None:
        """The first record at or behind offset ``start`` that says what was decided of the transaction that this
        producer had open there; None when it was compacted away.

        Whoever decides or takes over bumps the epoch by one at most, the next instance once more: a decision with a
        later epoch may be that of another transaction.
        """
        key = encode_key(transactional_id)
        for batch in self.log.replay(max(start, self.log.start_offset)):
            if batch.is_control:
                continue
            for offset, found, value in zip(batch.offsets, batch.keys(), batch.values(), strict=True):
                if found == key and offset >= start and value is not None:
                    state = decode_value(value)
                    if not state.is_ongoing:
                        is_its = state.producer_id == producer_id and state.producer_epoch <= producer_epoch + 1
                        return state if is_its and state.status is not TransactionStatus.EMPTY else None
        return None

    def _refresh(self) -> int:
        """Take notice of what others appended; the end offset up to which everything is known. Under the lock."""
        end = self.log.end_offset
        position = self._position
        if position is None:
            position = self.log.start_offset
        if position < end:
            for batch in self.log.replay(position):
                if not batch.is_control:
                    self._notice(batch.keys(), batch.values())
                position = max(position, batch.last_offset + 1)
            # compaction leaves gaps, at the end too
            position = max(position, end)
        self._position = position
        return position

    def _notice(self, keys: list[bytes | None], values: list[bytes | None]) -> None:
        for key, value in zip(keys, values, strict=True):
            transactional_id = decode_key(key)
            if transactional_id is None:
                continue
            if value is None:
                self._states.pop(transactional_id, None)
            else:
                self._states[transactional_id] = decode_value(value)
