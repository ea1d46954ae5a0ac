#!/usr/bin/env python
"""Check every stub of the package against the module that was compiled (mypy's stubtest).

``scripts/stubtest.py`` checks the fastlog that this interpreter imports. Exceptions, each with its reason, stand in
``tests/house/stubtest-allowlist.txt``.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
ALLOWLIST = ROOT / "tests" / "house" / "stubtest-allowlist.txt"


def stubbed_modules() -> list[str]:
    """Dotted names of the modules that have a ``.pyi`` beside them."""
    source = ROOT / "src"
    return sorted(".".join(stub.relative_to(source).with_suffix("").parts) for stub in source.glob("fastlog/**/*.pyi"))


def main() -> int:
    modules = stubbed_modules()
    if not modules:
        print("no .pyi file below src/fastlog: nothing to check", file=sys.stderr)
        return 1
    # every compiled class is a "disjoint base": so Python lays it out in memory, which is no promise of the interface
    command = [sys.executable, "-m", "mypy.stubtest", "--concise", "--ignore-disjoint-bases", *modules]
    if ALLOWLIST.exists():
        command += ["--allowlist", str(ALLOWLIST)]
    return subprocess.run(command, cwd=ROOT, check=False).returncode


if __name__ == "__main__":
    sys.exit(main())
