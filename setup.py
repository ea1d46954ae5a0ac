"""Compile every ``.pyx`` below ``src/fastlog`` into an extension of its own. Metadata lives in ``pyproject.toml``.

Switches, by environment variable (each flavour wants a build directory of its own, see ``scripts/sanitize``):

- ``FASTLOG_DEBUG=1``: debug symbols, no optimisation.
- ``FASTLOG_SANITIZE=1``: AddressSanitizer and UndefinedBehaviorSanitizer; the first report ends the process.
- ``FASTLOG_SANITIZE=thread``: ThreadSanitizer.
- ``FASTLOG_FUZZ=1``: the same by clang, and the hooks of libFuzzer; see ``tests/evidence/fuzz``.
- ``FASTLOG_COVERAGE=1``: every line that is reached leaves a mark below ``build/lines``, see ``scripts/coverage``.
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
DEBUG, SANITIZE, FUZZ, COVERAGE, INPLACE = (
    bool(os.environ.get(f"FASTLOG_{name}")) for name in ("DEBUG", "SANITIZE", "FUZZ", "COVERAGE", "INPLACE")
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
    if os.environ["FASTLOG_SANITIZE"] == "thread":
        sanitizers = ["-fsanitize=thread"]
    compile_flags += [*sanitizers, "-fno-omit-frame-pointer", "-g", "-O1"]
    link_flags += sanitizers
if COVERAGE:
    compile_flags += ["-DCYTHON_PROFILE=0", "-O1", "-Wno-unused-label"]

# rooms that read bytes of others; after every input the fuzzer looks at every counter, so the rest has none
FUZZED = (
    "arrow", "arrow_import", "batch", "checksum", "cleaner", "codecs", "columns", "decoder", "encoder", "index",
    "inspect", "memory", "producers", "scanner", "segment", "shared", "transactions", "validator",
)  # fmt: skip
if FUZZ:
    sys.path.insert(0, ".")
    from tests.evidence.fuzz.building import COMPILE_FLAGS, LINK_FLAGS

    compile_flags += ["-O1"]

GENERATED = Path("build/cython-coverage" if COVERAGE else "build/cython")


def settings_changed(sources: list[Path]) -> bool:
    """Whether this file is newer than the C that it had made: Cython watches the sources only."""
    written = Path(__file__).stat().st_mtime
    made = [GENERATED / source.with_suffix(".c") for source in sources]
    return any(file.exists() and file.stat().st_mtime < written for file in made)


def extension(source: Path) -> Extension:
    """One extension per room. Cython finds out which .pxd files it stands on; headers are few, all count for all."""
    is_fuzzed = FUZZ and source.stem in FUZZED
    return Extension(
        ".".join(source.relative_to(SOURCE).with_suffix("").parts),
        [str(source)],
        include_dirs=["src/fastlog/_native"],
        depends=[str(header) for header in sorted(SOURCE.glob("fastlog/**/*.h"))],
        extra_compile_args=compile_flags + (COMPILE_FLAGS if is_fuzzed else []),
        extra_link_args=link_flags + (LINK_FLAGS if is_fuzzed else []),
    )


SOURCES = sorted(SOURCE.glob("fastlog/**/*.pyx"))
EXTENSIONS = (
    []
    if INPLACE
    else cythonize(
        [extension(source) for source in SOURCES],
        compiler_directives=DIRECTIVES,
        include_path=["src"],
        build_dir=str(GENERATED),
        force=settings_changed(SOURCES) or None,
        quiet="--quiet" in sys.argv,
    )
)
if COVERAGE:
    sys.path.insert(0, ".")
    from tests.evidence.lines.marking import mark_lines

    mark_lines([Path(made.sources[0]) for made in EXTENSIONS], Path("build/lines"))
setup(
    ext_modules=EXTENSIONS,
    options={"build_ext": {"parallel": JOBS}},
)
