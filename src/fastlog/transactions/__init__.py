"""Transactions: a coordinator over ``__transaction_state`` that lives in every process, and needs none of them alive."""
