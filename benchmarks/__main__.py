"""``python -m benchmarks``: measure, then write JSON, table and pictures into ``benchmarks/results``."""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from pathlib import Path

import pytest

from benchmarks import report

_HERE = Path(__file__).parent


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="small sizes: a look in about a minute")
    parser.add_argument("--only", metavar="WORDS", help="the contests whose functions match, as with pytest -k")
    parser.add_argument("--name", help='name of the files in results/ (default: "full", or "quick" with --quick)')
    arguments = parser.parse_args()
    name = arguments.name or ("quick" if arguments.quick else "full")
    began = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="fastlog-bench-") as scratch:
        raw = Path(scratch) / "raw.json"
        options = [str(_HERE), "-v", "--tb=short", "--benchmark-quiet", f"--benchmark-json={raw}"]
        options += ["--quick"] if arguments.quick else []
        options += ["-k", arguments.only] if arguments.only else []
        status = pytest.main(options)
        if status != pytest.ExitCode.OK:
            print("nothing written: a measurement failed", file=sys.stderr)
            return int(status)
        written = report.write(raw, name)
        print(report.summary(raw))
    print(f"{time.monotonic() - began:.0f} s; benchmarks/results: {', '.join(path.name for path in written)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
