"""Any order of calls, of two instances of an id and of whoever takes them for dead, against a model of a few lines."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

from hypothesis import settings
from hypothesis import strategies as draw
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

import fastlog
from fastlog.transactions import Coordinator
from tests.folders import MEMORY
from tests.messaging.transacting import Writer, is_settled, open_store, visible

PARTITIONS = (0, 1)
NAMES = ("x", "y")


class Transactions(RuleBasedStateMachine):
    """The model: of each id its newest instance, what that has sent since it began, and what is committed where."""

    def __init__(self) -> None:
        super().__init__()
        self.folder = tempfile.TemporaryDirectory(prefix="fastlog-test-", dir=MEMORY, ignore_cleanup_errors=True)
        self.store = open_store(Path(self.folder.name) / "store")
        self.instances: dict[str, list[Writer]] = {name: [] for name in NAMES}
        self.sent: dict[str, list[tuple[int, int, bytes]] | None] = dict.fromkeys(NAMES)
        self.fenced: set[int] = set()
        self.committed: dict[int, dict[int, bytes]] = {partition: {} for partition in PARTITIONS}
        self.count = 0

    def newest(self, name: str) -> Writer | None:
        instances = self.instances[name]
        return instances[-1] if instances and id(instances[-1]) not in self.fenced else None

    @rule(name=draw.sampled_from(NAMES))
    def open(self, name: str) -> None:
        self.fenced.update(id(instance) for instance in self.instances[name])
        self.instances[name].append(Writer(self.store, name))
        self.sent[name] = None

    @rule(name=draw.sampled_from(NAMES), partition=draw.sampled_from(PARTITIONS), many=draw.integers(1, 3))
    def send(self, name: str, partition: int, many: int) -> None:
        writer = self.newest(name)
        if writer is None:
            return
        sent = self.sent[name]
        if sent is None:
            writer.begin()
            sent = self.sent[name] = []
        values = [b"%d" % (self.count + number) for number in range(many)]
        self.count += many
        base = writer.send("a", values, partition)
        sent += [(partition, base + number, value) for number, value in enumerate(values)]

    @rule(name=draw.sampled_from(NAMES), commit=draw.booleans())
    def end(self, name: str, commit: bool) -> None:
        writer, sent = self.newest(name), self.sent[name]
        if writer is None or sent is None:
            return
        (writer.id.commit if commit else writer.id.abort)()
        for partition, offset, value in sent if commit else ():
            self.committed[partition][offset] = value
        self.sent[name] = None

    @precondition(lambda self: any(self.sent[name] for name in NAMES))
    @rule(name=draw.sampled_from(NAMES))
    def take_for_dead(self, name: str) -> None:
        if self.sent[name]:
            assert Coordinator.of(self.store).settle(name)
            self.fenced.add(id(self.instances[name][-1]))
            self.sent[name] = None

    @rule(
        name=draw.sampled_from(NAMES),
        partition=draw.sampled_from(PARTITIONS),
        what=draw.sampled_from(["send", "commit"]),
    )
    def a_replaced_instance_tries(self, name: str, partition: int, what: str) -> None:
        for instance in self.instances[name]:
            if id(instance) in self.fenced:
                call: Any = instance.id.commit
                if what == "send":
                    try:
                        instance.send("a", [b"late"], partition)
                    except (fastlog.ProducerFencedError, fastlog.TransactionError):
                        continue
                    raise AssertionError("a replaced instance has sent")
                try:
                    call()
                except (fastlog.ProducerFencedError, fastlog.TransactionError):
                    continue
                raise AssertionError("a replaced instance has committed")

    @rule()
    def reopen(self) -> None:
        """The process ends and another one begins."""
        path = self.store.root
        self.store.close()
        self.store = open_store(Path(path))
        Coordinator.of(self.store).attach()
        self.instances = {name: [] for name in NAMES}
        self.sent = dict.fromkeys(NAMES)
        self.fenced = set()

    @invariant()
    def readers_see_a_prefix_of_what_is_committed(self) -> None:
        for partition, expected in self.committed.items():
            found = visible(self.store, "a", partition)
            whole = [expected[offset] for offset in sorted(expected)]
            assert found == whole[: len(found)]
            if not any(self.sent.values()):
                assert found == whole
                assert is_settled(self.store, "a", partition)

    def teardown(self) -> None:
        self.store.close()
        self.folder.cleanup()


TestTransactions = Transactions.TestCase
TestTransactions.settings = settings(max_examples=25, stateful_step_count=30, deadline=None)
