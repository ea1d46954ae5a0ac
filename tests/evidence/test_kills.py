"""The kill and freeze loop comes by every failpoint that there is."""

from __future__ import annotations

from fastlog._native import oscalls
from tests.evidence.kills import KINDS, Killer, failpoints


def test_every_failpoint_is_killed_at() -> None:
    assert failpoints() == set(oscalls.FAILPOINTS)


def test_every_scenario_is_there() -> None:
    assert [kind.name for kind in KINDS if not callable(getattr(Killer, f"kill_{kind.name}", None))] == []
