"""Compile every ``.pyx`` below ``src/fastlog`` into an extension of its own. Metadata lives in ``pyproject.toml``.

Two switches, by environment variable: ``FASTLOG_SANITIZE=1`` builds with AddressSanitizer and
UndefinedBehaviorSanitizer, ``FASTLOG_DEBUG=1`` with debug symbols and without optimisation.
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
DIRECTIVES = {
    "language_level": 3,
    "initializedcheck": False,
    "cdivision": True,
    "embedsignature": False,
    "binding": True,
}

compile_flags = ["-std=gnu11", "-O3", "-fno-strict-aliasing", "-fvisibility=hidden", "-Wno-unreachable-code"]
link_flags: list[str] = []
if os.environ.get("FASTLOG_DEBUG"):
    compile_flags += ["-O0", "-g"]
if os.environ.get("FASTLOG_SANITIZE"):
    sanitizers = ["-fsanitize=address,undefined", "-fno-omit-frame-pointer", "-g", "-O1"]
    compile_flags += sanitizers
    link_flags += sanitizers


def extension(source: Path) -> Extension:
    name = ".".join(source.relative_to(SOURCE).with_suffix("").parts)
    return Extension(
        name,
        [str(source)],
        include_dirs=["src/fastlog/_native"],
        depends=[str(header) for header in sorted(Path("src/fastlog/_native").glob("*.h"))],
        extra_compile_args=compile_flags,
        extra_link_args=link_flags,
    )


setup(
    ext_modules=cythonize(
        [extension(source) for source in sorted(SOURCE.glob("fastlog/**/*.pyx"))],
        compiler_directives=DIRECTIVES,
        include_path=["src"],
        nthreads=0,
    )
)
