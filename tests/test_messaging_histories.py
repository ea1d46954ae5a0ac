"""I5 to I9 with several processes on a store: kills, freezes, zombies, forks, and then the history of it all.

Producers, transactions, members of groups and readers work through the public API until 10,000 calls are made; what
each of them did is checked as a whole (``tests/histories_messaging``). ``FASTLOG_HISTORIES`` is how many histories.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.histories.nursery import Nursery
from tests.histories_messaging.checker import kinds
from tests.histories_messaging.driver import Gang
from tests.histories_messaging.mutants import MUTANTS

HISTORIES = int(os.environ.get("FASTLOG_HISTORIES", "3"))
OPERATIONS = 10_000  # calls in a history, at least
SECONDS = 10.0  # so that enough befalls them
# what has to be found of each mistake: one of these
WANTED = {
    "commits_without_conditions": {"foreign-commit", "commit-back", "effect-twice", "torn-transaction"},
    "marker_skipped": {"hanging", "torn-transaction", "unexpected-error"},
    "commits_before_hand_out": {"group-skip"},
    "epoch_not_bumped": {"torn-transaction", "unexpected-error", "effect-twice", "hanging", "aborted-read"},
    "abort_commits": {"torn-transaction"},
    "offsets_outside_of_transactions": {"effect-lost", "torn-transaction"},
    "no_rewind": {"effect-lost", "poll-skip"},
    "isolation_ignored": {"aborted-read", "precommitted-read"},
    "sends_twice": {"duplicate"},
    "takes_what_others_own": {"two-owners", "foreign-commit", "unowned-read"},
}
ALWAYS = ("abort_commits", "commits_before_hand_out", "no_rewind")  # the others are found in the long runs

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]


@pytest.fixture(scope="module")
def nursery() -> Iterator[Nursery]:
    with Nursery() as server:
        yield server


def keep(folder: Path, seed: int, request: pytest.FixtureRequest) -> str:
    """Everything of a history that is not right: its notes and its store; how to run it again."""
    kept = Path(os.environ.get("FASTLOG_KEEP", "build")) / f"history-{seed}"
    shutil.copytree(folder, kept, dirs_exist_ok=True)
    return f"FASTLOG_SEED={seed} python -m pytest '{request.node.nodeid}'; notes and store are in {kept.absolute()}"


@pytest.mark.parametrize("turn", range(HISTORIES))
def test_I5_to_I9_a_history_of_ten_thousand_calls(
    nursery: Nursery, folder: Path, seed: int, turn: int, request: pytest.FixtureRequest
) -> None:
    with Gang(nursery, folder, seed) as gang:
        gang.run(OPERATIONS, least=SECONDS, most=120)
        anomalies = gang.check()
    print(gang.summary)
    assert not anomalies, "\n".join(
        [keep(folder, seed, request), *(f"{one.kind}: {one.text}" for one in anomalies[:20])]
    )
    assert gang.operations() >= OPERATIONS, f"the machine is too slow for this: {gang.summary}"


@pytest.mark.parametrize("name", [name for name in WANTED if name in ALWAYS or HISTORIES > 3])
def test_a_mistake_in_the_product_is_found(nursery: Nursery, folder: Path, seed: int, name: str) -> None:
    """The mistake is in every process of the gang; a few short histories have to show it."""
    found: set[str] = set()
    for attempt in range(6):
        where = folder / f"{attempt}"
        where.mkdir()
        with Gang(nursery, where, seed + attempt, {"mutant": name}, wait_seconds=6) as gang:
            gang.run(2000, least=5, most=25)
            found |= kinds(gang.check())
        if found & WANTED[name]:
            return
    pytest.fail(f"{name} was not found: {found}; FASTLOG_SEED={seed}")


def test_every_mistake_has_its_anomalies() -> None:
    assert set(WANTED) | {"does_not_wait_for_pending"} == set(MUTANTS)
