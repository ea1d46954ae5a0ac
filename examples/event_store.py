"""An event store in a page: accounts whose state is the fold of their events, rebuilt from the log when it opens.

The log is the truth; the balances in memory are only derived from it. One process at a time has the log open for
writing, so what a decision was based on cannot change before its event is appended.

Run: python examples/event_store.py [folder]
"""

import json
import sys
from collections import defaultdict
from types import TracebackType
from typing import Self

import fastlog


class Accounts:
    """Balances by account, kept as events ``{"type": ..., "amount": ...}`` whose key is the account."""

    def __init__(self, path: str) -> None:
        self.log = fastlog.PartitionLog.open(path)
        self.balances: defaultdict[str, int] = defaultdict(int)
        for record in self.log.records():
            self._apply(record.key.decode(), json.loads(record.value))

    def deposit(self, account: str, amount: int) -> None:
        self._commit(account, {"type": "deposited", "amount": amount})

    def withdraw(self, account: str, amount: int) -> None:
        if amount > self.balances[account]:
            raise ValueError(f"{account} has {self.balances[account]}, not {amount}")
        self._commit(account, {"type": "withdrawn", "amount": amount})

    def _commit(self, account: str, event: dict[str, str | int]) -> None:
        # Durable first: state that a power cut could take back is never shown.
        self.log.append([json.dumps(event).encode()], keys=[account.encode()])
        self._apply(account, event)

    def _apply(self, account: str, event: dict[str, str | int]) -> None:
        sign = 1 if event["type"] == "deposited" else -1
        self.balances[account] += sign * int(event["amount"])

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.log.close()


path = sys.argv[1] if len(sys.argv) > 1 else "example-accounts-0"

with Accounts(path) as accounts:
    if accounts.balances["alice"]:  # an earlier run left something
        accounts.withdraw("alice", accounts.balances["alice"])
    accounts.deposit("alice", 100)
    accounts.withdraw("alice", 30)
    try:
        accounts.withdraw("alice", 1000)
    except ValueError as error:
        print(f"refused: {error}")

with Accounts(path) as accounts:  # as after a restart: nothing but the log is left
    print(f"balance of account alice: {accounts.balances['alice']} after {accounts.log.end_offset} events")
