"""The engines, and how much of each a tier wants."""

from __future__ import annotations

import importlib
from dataclasses import dataclass

from tests.evidence.run import Engine

# two processes of one of these at a time would disturb each other
ALONE = ("cuts", "fuzz", "limits", "reopen")


@dataclass(frozen=True)
class Entry:
    """One engine. ``unit`` is what its goals count; ``where`` is ``module:function`` below ``tests.evidence``.

    ``ci`` and ``long`` are the goals of the two tiers; ``ci_seconds`` is what the first may take at most, with what is
    compiled for it: who may take longest begins first.
    """

    name: str
    title: str
    unit: str
    where: str
    ci: int
    long: int
    ci_seconds: int

    def load(self) -> Engine:
        """The engine itself. Its module is imported only now: some need what not every machine has."""
        module, _, function = self.where.partition(":")
        found: Engine = getattr(importlib.import_module(f"tests.evidence.{module}"), function)
        return found


ENGINES = {
    entry.name: entry
    for entry in (
        Entry("kills", "killed and frozen at random and at failpoints", "kills", "kills:kills", 600, 20_000, 120),
        Entry("disks", "every disk that a power cut may leave", "disks", "disks:disks", 10_000, 500_000, 120),
        Entry("cuts", "real power cuts on ext4 and xfs", "cuts", "cuts:cuts", 60, 2_000, 120),
        Entry("damage", "bits flipped, files cut, blocks moved", "inputs", "damage:damage", 30_000, 2_000_000, 120),
        Entry("errors", "system calls and allocations that fail", "injections", "errors:errors", 3_000, 50_000, 180),
        Entry("fuzz", "hostile bytes into all that parses", "executions", "fuzzing:fuzz", 1_906_800, 200_000_000, 300),
        Entry("histories", "many processes, checked as a whole", "histories", "histories:histories", 10, 500, 180),
        Entry("limits", "small disks, few descriptors, little memory", "limits", "limits:limits", 56, 1_000, 60),
        Entry("reopen", "a 10 GiB log opened after a kill", "reopens", "reopen:reopen", 3, 200, 60),
    )
}

# no tier has it: it shows planted mistakes that the others cannot, by tests of the suite
BESIDE = {entry.name: entry for entry in (Entry("tests", "a test of the suite", "tests", "suite:suite", 0, 0, 0),)}
