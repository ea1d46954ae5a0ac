#!/usr/bin/env python
"""Check what an sdist and a wheel carry: ``scripts/check_distributions.py dist/x.tar.gz dist/x.whl``.

The sdist builds without any generated C; the wheel carries compiled modules and stubs, and no source of them.
"""

from __future__ import annotations

import sys
import tarfile
import zipfile
from pathlib import Path, PurePosixPath

ROOT = Path(__file__).resolve().parent.parent

OURS = {"fastlog", "pytest_fastlog.py"}


def sdist_problems(path: Path) -> list[str]:
    with tarfile.open(path) as archive:
        names = {str(PurePosixPath(*PurePosixPath(name).parts[1:])) for name in archive.getnames()}
    wanted = {
        str(source.relative_to(ROOT))
        for suffix in ("py", "pyi", "pyx", "pxd", "h", "typed")
        for source in (ROOT / "src").rglob(f"*.{suffix}")
    }
    wanted |= {str(test.relative_to(ROOT)) for test in (ROOT / "tests").rglob("*.py")}
    wanted |= {"LICENSE", "Makefile", "pyproject.toml", "setup.py", ".github/workflows/wheels.yml"}
    problems = [f"the sdist lacks {name}" for name in sorted(wanted - names)]
    problems += [f"the sdist carries {name}" for name in sorted(names) if name.endswith((".so", ".c", ".pyc"))]
    return problems


def wheel_problems(path: Path) -> list[str]:
    with zipfile.ZipFile(path) as archive:
        names = set(archive.namelist())
    problems = [f"the wheel carries {name}" for name in sorted(names) if name.endswith((".c", ".pyx", ".pxd", ".h"))]
    stray = {PurePosixPath(name).parts[0] for name in names if ".dist-info/" not in name} - OURS
    problems += [f"the wheel installs {name} beside fastlog" for name in sorted(stray)]
    for source in (ROOT / "src").rglob("*.pyx"):
        module = source.relative_to(ROOT / "src").with_suffix("").as_posix()
        if not any(name.startswith(f"{module}.") and name.endswith(".so") for name in names):
            problems.append(f"the wheel lacks the compiled {module}")
    stubs = [str(stub.relative_to(ROOT / "src")) for stub in (ROOT / "src").rglob("*.pyi")]
    for name in ["fastlog/py.typed", "pytest_fastlog.py", *stubs]:
        if name not in names:
            problems.append(f"the wheel lacks {name}")
    return problems


def main() -> int:
    sdist, wheel = (Path(argument) for argument in sys.argv[1:3])
    problems = sdist_problems(sdist) + wheel_problems(wheel)
    for problem in problems:
        print(problem, file=sys.stderr)
    if not problems:
        for path in (sdist, wheel):
            print(f"{path.name}: {path.stat().st_size:,} bytes, contents are right")
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
