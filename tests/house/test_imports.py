"""``import fastlog`` is light: no command-line library, no Arrow library, nothing that only some calls need."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

HEAVY = ("click", "rich", "pyarrow", "polars", "pandas", "duckdb", "asyncio", "multiprocessing", "importlib.metadata")


def modules_after(statement: str) -> list[str]:
    """Modules that a fresh interpreter has loaded after ``statement``, beyond those of ``import numpy``."""
    script = f"import json, sys, numpy; before = set(sys.modules); {statement}; "
    script += "print(json.dumps(sorted(set(sys.modules) - before)))"
    run = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    loaded: list[str] = json.loads(run.stdout.splitlines()[-1])
    return loaded


@pytest.mark.parametrize(
    ("statement", "heavy"),
    [
        ("import fastlog", HEAVY),
        ("import fastlog.cli", tuple(name for name in HEAVY if name != "click")),
    ],
)
def test_loads_nothing_heavy(statement: str, heavy: tuple[str, ...]) -> None:
    loaded = modules_after(statement)
    assert "fastlog._core" in loaded
    found = [name for name in loaded if name in heavy or name.startswith(tuple(f"{name}." for name in heavy))]
    assert not found, f"{statement} loads {found}"


def test_a_fresh_import_starts_no_thread_and_opens_no_file() -> None:
    script = (
        "import numpy, os, threading; "
        "count = lambda: (threading.active_count(), len(os.listdir('/dev/fd'))); "
        "before = count(); import fastlog; after = count(); "
        "assert before == after, (before, after)"
    )
    subprocess.run([sys.executable, "-c", script], check=True)
