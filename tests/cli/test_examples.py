"""Every program in examples/ runs as it is, and says what its opening comment promises."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.cli.support import need

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
EXPECTED = {
    "append_and_replay.py": ("replayed 3 records", "first reading at or after"),
    "columnar_sql.py": ("sensor-1", "mean"),
    "event_store.py": ("balance of account alice: 70", "refused"),
    "follow.py": ("tick 0", "tick 9"),
}


def test_every_example_is_tried() -> None:
    assert sorted(path.name for path in EXAMPLES.glob("*.py")) == sorted(EXPECTED)


@pytest.mark.parametrize("name", sorted(EXPECTED))
def test_example(name: str, folder: Path) -> None:
    if name == "columnar_sql.py":
        need("duckdb")
    result = subprocess.run(
        [sys.executable, str(EXAMPLES / name), str(folder / "log-0")],
        capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    assert result.stderr == ""
    for expected in EXPECTED[name]:
        assert expected in result.stdout
