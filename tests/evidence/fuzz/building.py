"""Builds for fuzzing: fastlog's core and the compiled targets, instrumented by clang; or the targets alone, plain."""

from __future__ import annotations

import contextlib
import fcntl
import importlib.util
import os
import platform
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from tests.evidence.fuzz import FOLDER
from tests.evidence.run import ROOT, NotHere

TARGETS_MODULE: Final = "fastlog_fuzz_targets"
SOURCE: Final = ROOT / "tests" / "evidence" / "fuzz" / "native.pyx"
INSTRUMENTED: Final = ROOT / "build" / "fuzz"
PLAIN: Final = ROOT / "build" / "fuzz-plain"
ADVICE: Final = (
    "the fuzzer wants Linux, clang with its runtime libraries, and a C++ standard library to link with; on Debian and "
    "Ubuntu: apt-get install clang libclang-rt-dev g++ (or clang-N and libclang-rt-N-dev)"
)

COMPILE_FLAGS: Final = [
    "-fsanitize=address,undefined,fuzzer-no-link", "-fno-sanitize-recover=undefined", "-fno-omit-frame-pointer",
    "-gline-tables-only", f"-fsanitize-coverage-allowlist={ROOT / 'tests/evidence/fuzz/functions.txt'}",
]  # fmt: skip
LINK_FLAGS: Final = ["-fsanitize=address,undefined", "-shared-libasan"]  # one copy for all modules, preloaded


@dataclass(frozen=True)
class Clang:
    """A compiler that has libFuzzer and AddressSanitizer with it."""

    compiler: str
    fuzzer: str  # static library, without a main function
    sanitizer: str  # shared library of AddressSanitizer


def find_clang() -> Clang:
    """The newest clang here that can do it. Raises NotHere."""
    if sys.platform != "linux":
        raise NotHere(ADVICE)
    machine = platform.machine()
    for compiler in sorted(clang_names(), key=lambda name: int(name.partition("-")[2] or 1000), reverse=True):
        fuzzer = library_of(compiler, f"libclang_rt.fuzzer_no_main-{machine}.a", "libclang_rt.fuzzer_no_main.a")
        sanitizer = library_of(compiler, f"libclang_rt.asan-{machine}.so", "libclang_rt.asan.so")
        if fuzzer and sanitizer:
            return Clang(compiler, fuzzer, sanitizer)
    raise NotHere(ADVICE)


def clang_names() -> set[str]:
    """``clang``, ``clang-14`` …, as far as they are in PATH."""
    folders = [Path(folder) for folder in os.environ.get("PATH", "").split(os.pathsep) if Path(folder).is_dir()]
    return {entry.name for folder in folders for entry in folder.iterdir() if re.fullmatch(r"clang(-\d+)?", entry.name)}


def library_of(compiler: str, *names: str) -> str | None:
    """The path of a library that comes with a compiler; the first name that it knows."""
    for name in names:
        found = subprocess.run(
            [compiler, f"-print-file-name={name}"], capture_output=True, text=True, check=False
        ).stdout.strip()
        if os.path.isabs(found) and os.path.exists(found):
            return found
    return None


@contextlib.contextmanager
def alone_in(folder: Path) -> Iterator[None]:
    """Whoever else builds there waits."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def run_build(command: list[str], **more: str) -> None:
    """Run one step of a build. Raises RuntimeError with its words when it fails."""
    done = subprocess.run(
        command, cwd=ROOT, env={**os.environ, **more}, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        check=False,
    )  # fmt: skip
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)} ended with {done.returncode}:\n{done.stdout[-3000:]}")


def build_instrumented() -> Clang:
    """Compile what changed: the core, the targets, and libFuzzer as a library to preload."""
    clang = find_clang()
    folders = ["--build-base", str(INSTRUMENTED), "--build-lib", str(INSTRUMENTED / "lib")]
    with alone_in(INSTRUMENTED):
        run_build([sys.executable, "setup.py", "--quiet", "build", *folders], FASTLOG_FUZZ="1", CC=clang.compiler)
        compile_targets(INSTRUMENTED, CC=clang.compiler, FASTLOG_FUZZ="1")
        link_driver(clang)
    return clang


def link_driver(clang: Clang) -> None:
    """Make a library of libFuzzer."""
    library = driver_library()
    if library.exists() and library.stat().st_mtime >= Path(clang.fuzzer).stat().st_mtime:
        return
    # what the interpreter compares is no hint of what our code compares
    hidden = INSTRUMENTED / "hidden.txt"
    hidden.write_text("{ global: *; local: __sanitizer_weak_hook_*; };\n")
    whole = ["-Wl,--whole-archive", clang.fuzzer, "-Wl,--no-whole-archive", f"-Wl,--version-script={hidden}"]
    run_build([clang.compiler, "-shared", "-o", str(library), *whole, "-lstdc++", "-lpthread", "-ldl", "-lm"])


def build_plain() -> Path:
    """Compile the targets beside the core that is imported, by whatever C compiler Python uses; where they are."""
    compiler = os.environ.get("CC", "cc").split()[-1]
    if shutil.which(compiler) is None:
        raise NotHere(f"the compiled targets of the fuzzer want a C compiler: there is no {compiler}")
    missing = [name for name in ("Cython", "setuptools") if importlib.util.find_spec(name) is None]
    if missing:
        raise NotHere(f"the compiled targets of the fuzzer want {' and '.join(missing)}: pip install -e '.[fuzz]'")
    with alone_in(PLAIN):
        compile_targets(PLAIN)
    return PLAIN / "lib"


def compile_targets(folder: Path, **environment: str) -> None:
    """Compile ``native.pyx`` into a module in ``folder/lib``, unless it is newer than everything that it stands on."""
    run_build([sys.executable, "-m", "tests.evidence.fuzz.building", str(folder)], **environment)


def driver_library() -> Path:
    """libFuzzer, as a library."""
    return INSTRUMENTED / "libfuzzer.so"


def environment(clang: Clang, folder: Path) -> dict[str, str]:
    """For a process in which libFuzzer and the sanitizers come before everything else."""
    standard = library_of(clang.compiler, "libstdc++.so.6")
    # first of all libFuzzer: the sanitizers' library has the hooks of coverage too, which keep nothing
    preloaded = [str(driver_library()), clang.sanitizer, *([standard] if standard else [])]
    return {
        **os.environ,
        "LD_PRELOAD": " ".join(preloaded),
        "PYTHONPATH": os.pathsep.join([str(INSTRUMENTED / "lib"), str(ROOT)]),
        # what the interpreter keeps until its end is no leak; its own allocator would hide overruns
        # more of freed memory held back, pages given back and more frames noted of each call: a third of the time
        "ASAN_OPTIONS": "verify_asan_link_order=0:detect_leaks=0:allocator_may_return_null=1:malloc_context_size=6"
        ":quarantine_size_mb=16:allocator_release_to_os_interval_ms=-1",
        "UBSAN_OPTIONS": "print_stacktrace=1:halt_on_error=1",
        "PYTHONMALLOC": "malloc",
        FOLDER: str(folder),
    }


def main(folder: str) -> None:
    """``python -m tests.evidence.fuzz.building FOLDER``: the targets into FOLDER/lib, with the switches of setup.py."""
    from Cython.Build import cythonize
    from setuptools import Distribution, Extension
    from setuptools.command.build_ext import build_ext

    flags = ["-std=gnu11", "-O1", "-g0", "-fno-strict-aliasing", "-Wno-unreachable-code"]
    is_fuzzed = bool(os.environ.get("FASTLOG_FUZZ"))
    compile_flags, link_flags = (COMPILE_FLAGS, LINK_FLAGS) if is_fuzzed else ([], [])
    extension = Extension(
        TARGETS_MODULE, [str(SOURCE)], include_dirs=["src/fastlog/_native"], extra_compile_args=flags + compile_flags,
        extra_link_args=link_flags,
    )  # fmt: skip
    directives = {"language_level": 3, "initializedcheck": False, "cdivision": True}
    compile_to_c: Any = cythonize
    modules = compile_to_c(
        [extension], compiler_directives=directives, include_path=["src"], build_dir=f"{folder}/cython", quiet=True
    )
    command = build_ext(Distribution({"name": TARGETS_MODULE, "ext_modules": modules, "packages": []}))
    command.build_lib, command.build_temp = f"{folder}/lib", f"{folder}/temp"
    command.ensure_finalized()
    command.run()


if __name__ == "__main__":
    main(sys.argv[1])
