"""Compile every ``.pyx`` below ``src/fastlog`` into an extension of its own. Metadata lives in ``pyproject.toml``.

Switches, by environment variable (each flavour wants a build directory of its own, see ``scripts/sanitize``):

- ``FASTLOG_DEBUG=1``: debug symbols, no optimisation.
- ``FASTLOG_SANITIZE=1``: AddressSanitizer and UndefinedBehaviorSanitizer; the first report ends the process.
- ``FASTLOG_COVERAGE=1``: line tracing, for coverage.py with its Cython plug-in.
- ``FASTLOG_JOBS=n``: compilers at a time (default: one per core, at most 4).
- ``FASTLOG_INPLACE=1``: compile nothing; for an editable install beside ``build_ext --inplace``, which compiles only
  what changed (setuptools would compile everything again).
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

from Cython.Build import cythonize
from setuptools import Extension, setup

if sys.platform == "win32":
    sys.exit("fastlog does not run on Windows yet: it is tested on Linux and macOS only")

SOURCE = Path("src")
DEBUG, SANITIZE, COVERAGE, INPLACE = (
    bool(os.environ.get(f"FASTLOG_{name}")) for name in ("DEBUG", "SANITIZE", "COVERAGE", "INPLACE")
)
JOBS = int(os.environ.get("FASTLOG_JOBS") or min(4, os.cpu_count() or 1))
DIRECTIVES = {
    "language_level": 3,
    "initializedcheck": False,
    "cdivision": True,
    "embedsignature": False,
    "binding": True,
    "linetrace": COVERAGE,
}

# -march stays at the platform's baseline: what needs newer instructions asks the processor at run time
compile_flags = ["-std=gnu11", "-O3", "-fno-strict-aliasing", "-fvisibility=hidden", "-Wno-unreachable-code"]
link_flags: list[str] = []
if DEBUG:
    compile_flags += ["-O0", "-g"]
elif not SANITIZE:
    compile_flags += ["-g0"]  # Python's own flags ask for debug symbols; they are most of the size of a module
if SANITIZE:
    sanitizers = ["-fsanitize=address,undefined", "-fno-sanitize-recover=undefined"]
    compile_flags += [*sanitizers, "-fno-omit-frame-pointer", "-g", "-O1"]
    link_flags += sanitizers
if COVERAGE:
    compile_flags += ["-DCYTHON_TRACE_NOGIL=1", "-O1"]

GENERATED = Path("build/cython-coverage" if COVERAGE else "build/cython")


def settings_changed() -> bool:
    """Whether this file is newer than what it had generated: Cython watches the sources only."""
    written = Path(__file__).stat().st_mtime
    return any(file.stat().st_mtime < written for file in GENERATED.rglob("*.c"))


def extension(source: Path) -> Extension:
    """One extension per room. Cython finds out which .pxd files it stands on; headers are few, all count for all."""
    return Extension(
        ".".join(source.relative_to(SOURCE).with_suffix("").parts),
        [str(source)],
        include_dirs=["src/fastlog/_native"],
        depends=[str(header) for header in sorted(SOURCE.glob("fastlog/**/*.h"))],
        extra_compile_args=compile_flags,
        extra_link_args=link_flags,
    )


setup(
    ext_modules=[]
    if INPLACE
    else cythonize(
        [extension(source) for source in sorted(SOURCE.glob("fastlog/**/*.pyx"))],
        compiler_directives=DIRECTIVES,
        include_path=["src"],
        build_dir=str(GENERATED),
        force=settings_changed() or None,
        quiet="--quiet" in sys.argv,
    ),
    options={"build_ext": {"parallel": JOBS}},
)
