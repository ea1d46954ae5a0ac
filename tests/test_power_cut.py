"""I5 (row 2 of the failure catalogue): power loss, for real, on file systems of our own (``tests/power.py``).

After the cut the log has to hold whatever ``durability="batch"`` acknowledged or ``flush`` covered, and behind it a
prefix. There are more kinds of cuts in ``python -m tests.evidence cuts``.

Mounting needs root. Elsewhere the tests are skipped with the reason, unless FASTLOG_REQUIRE_POWER_CUTS is set.
"""

from __future__ import annotations

import contextlib
import os
import random
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.power import FILE_SYSTEMS, CannotMount, Disk, check_after_cut, mounted, run_until_cut
from tests.victims import Victims, Witness

CUTS = int(os.environ.get("FASTLOG_CUTS", "10"))
REQUIRED = bool(os.environ.get("FASTLOG_REQUIRE_POWER_CUTS"))


@contextlib.contextmanager
def mounted_here(kind: str, folder: Path) -> Iterator[Disk]:
    try:
        with mounted(FILE_SYSTEMS[kind], folder) as made:
            yield made
    except CannotMount as problem:
        if REQUIRED:
            pytest.fail(str(problem))
        pytest.skip(str(problem))


@pytest.mark.parametrize("kind", FILE_SYSTEMS)
def test_a_cut_loses_what_is_not_synced(folder: Path, kind: str) -> None:
    with mounted_here(kind, folder) as disk:
        assert disk.loses_what_is_not_synced()


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("durability", ["batch", "os"])
def test_I5_power_cuts_keep_what_was_durable(folder: Path, durability: str, seed: int) -> None:
    chance = random.Random(seed)
    acked = lost = 0
    with mounted_here("ext4-ordered", folder) as disk, contextlib.closing(Victims(folder / "errors")) as victims:
        for cycle in range(CUTS):
            path = disk.place / f"events-{cycle}"
            seconds = chance.choice([0.05, 0.15, 0.3]) * chance.random()
            witness = Witness()
            promised = run_until_cut(victims, disk, path, durability, seed + cycle, seconds, witness)
            disk.restore_power()
            lost += check_after_cut(path, durability, witness, promised)
            acked += promised
            shutil.rmtree(path, ignore_errors=True)
    print(f"{CUTS} power cuts at {durability}, {acked} records promised before them, {lost} others lost")
    assert acked > 0
