"""I9, row 23 of the failure catalogue: what fails anywhere is an error of fastlog's, or a MemoryError.

Nothing is lost by it, no signal comes, nothing stays open, and later calls work. ``python -m tests.evidence errors``
tries many more.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest


@pytest.mark.parametrize(("kind", "count"), [("log", 80), ("python", 60), ("store", 12)])
def test_I9_anything_may_fail_at_any_place(
    folder: Path, seed: int, kind: str, count: int, run_injected: Callable[..., list[Any]]
) -> None:
    (folder / "lives").mkdir()
    failed = sum(run_injected("-m", "tests.faults", str(folder / "lives"), str(seed % 1000), kind, str(count)))
    assert failed > count // 2
