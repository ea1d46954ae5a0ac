"""Small disks, files that may not grow, few descriptors, little memory: see ``tests/evidence/under_limits.py``.

Each turn is the life of one process that meets one limit in one kind of work, twice. A small disk is a tmpfs of its
own, which wants root: without it the others are left, and that is said.
"""

from __future__ import annotations

import contextlib
import json
import subprocess
import tempfile
from collections.abc import Iterator
from functools import partial
from pathlib import Path

from tests.evidence.run import NotHere, Scenario, Turn
from tests.evidence.under_limits import LIMITS, WORKS
from tests.folders import MEMORY
from tests.histories.nursery import Nursery

__all__ = ["limits"]

DISK_BYTES = 24 << 20
PATIENCE = 120.0


def meet(nursery: Nursery, limit: str, work: str, small: Path | None, turn: Turn) -> None:
    """One life. It counts when the limit was met."""
    place = turn.folder if small is None else small / str(turn.seed)
    place = place / "work"
    place.mkdir(parents=True)
    result = turn.folder / "result"
    try:
        child = nursery.start(
            "tests.evidence.under_limits:live", f"{work} under {limit}",
            limit=limit, work=work, path=str(place), seed=turn.seed, result=str(result),
        )  # fmt: skip
        status = child.wait(PATIENCE)
        assert status == 0 and result.exists(), f"it ended with {status}"
        found = json.loads(result.read_text())
        assert found["problem"] is None, found["problem"]
        turn.count("limits" if found["errors"] else "limits that were not met")
        turn.count("refusals", sum(found["errors"].values()))
    finally:
        if small is not None:
            subprocess.run(["cp", "-a", str(place), str(turn.folder / "disk")], check=False, capture_output=True)
            subprocess.run(["rm", "-rf", str(place.parent), str(small / "ballast")], check=False)


@contextlib.contextmanager
def limits() -> Iterator[list[Scenario]]:
    """The engine: each limit in each kind of work."""
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="fastlog-limits-", dir=MEMORY)))
        nursery = stack.enter_context(Nursery(errors=folder / "errors", preloaded=["tests.evidence.under_limits"]))
        small = small_disk(folder, stack)
        yield [
            Scenario(f"{limit}-{work}", partial(meet, nursery, limit, work, small if limit == "disk" else None))
            for limit in LIMITS
            for work in WORKS
        ]


def small_disk(folder: Path, stack: contextlib.ExitStack) -> Path:
    """A small file system in memory, as long as the stack lasts. Raises NotHere where none can be mounted."""
    place = folder / "small"
    place.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", f"size={DISK_BYTES}", "fastlog-limits", str(place)]
    try:
        subprocess.run(command, check=True, capture_output=True, text=True)
    except (OSError, subprocess.CalledProcessError) as problem:
        reason = getattr(problem, "stderr", None) or problem
        raise NotHere(f"small disks have to be mounted, which needs root: {str(reason).strip()}") from problem
    stack.callback(subprocess.run, ["umount", "-l", str(place)], check=False, capture_output=True)
    return place
