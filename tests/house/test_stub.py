"""The stubs equal the binary: mypy's stubtest finds no difference."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import fastlog
from tests.house.sources import ROOT, place, source_files


def test_the_public_compiled_module_has_a_stub() -> None:
    assert "src/fastlog/_core.pyi" in {place(path) for path in source_files(".pyi")}
    assert Path(fastlog.__file__).with_name("_core.pyi").exists(), "the stub is not installed beside the module"
    assert Path(fastlog.__file__).with_name("py.typed").exists()


def test_stub_equals_binary() -> None:
    run = subprocess.run(
        [sys.executable, str(ROOT / "scripts" / "stubtest.py")], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert run.returncode == 0, run.stdout + run.stderr
