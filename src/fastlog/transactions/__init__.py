"""Transactions: a coordinator over ``__transaction_state`` in every process, which needs none of the others alive."""

from __future__ import annotations

from fastlog.transactions.coordinator import Coordinator
from fastlog.transactions.pending import resolve_pending
from fastlog.transactions.states import TransactionState, TransactionStatus
from fastlog.transactions.transactional_id import TransactionalId

__all__ = ["Coordinator", "TransactionState", "TransactionStatus", "TransactionalId", "resolve_pending"]
