"""What a figure was measured on: hardware, kernel, file system, versions. Never a host name, user or path."""

from __future__ import annotations

import os
import platform
import sqlite3
from importlib import metadata
from pathlib import Path

# The instructions that matter to a log: checksums, wide copies.
_INTERESTING_FLAGS = ("sse4_2", "pclmulqdq", "vpclmulqdq", "avx2", "avx512f", "avx512vl", "crc32", "pmull", "sve")
_DISTRIBUTIONS = ("numpy", "pyarrow", "lmdb", "rocksdict", "cramjam", "confluent-kafka", "Cython", "pytest-benchmark")


def _cpu() -> tuple[str, list[str]]:
    model, flags = platform.machine(), set[str]()
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return model, []
    for line in lines:
        key, _, text = line.partition(":")
        match key.strip():
            case "model name":
                model = text.strip()
            case "flags" | "Features":
                flags = set(text.split())
    return model, [flag for flag in _INTERESTING_FLAGS if flag in flags]


def _memory_gibibytes() -> float:
    return round(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / (1 << 30), 1)


def file_system(directory: Path) -> str:
    """Kind of the file system that holds ``directory``, "unknown" where /proc does not tell."""
    device = directory.stat().st_dev
    wanted = f"{os.major(device)}:{os.minor(device)}"
    try:
        lines = Path("/proc/self/mountinfo").read_text().splitlines()
    except OSError:
        return "unknown"
    for line in lines:
        mount, _, kind = line.partition(" - ")
        if mount.split()[2] == wanted:
            return kind.split()[0]
    return "unknown"


def _version(distribution: str) -> str:
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return "not installed"


def _fastlog_version() -> str:
    import fastlog

    found = getattr(fastlog, "__version__", None) or _version("fastlog-engine")
    return "source tree" if found == "not installed" else str(found)


def describe(work_directory: Path) -> dict[str, object]:
    model, flags = _cpu()
    versions = {"python": platform.python_version(), "fastlog": _fastlog_version(), "sqlite": sqlite3.sqlite_version}
    return {
        "cpu": model,
        "cpu_flags": flags,
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "memory_gib": _memory_gibibytes(),
        "kernel": f"{platform.system()} {platform.release()}",
        "file_system": file_system(work_directory),
        "versions": versions | {name.lower(): _version(name) for name in _DISTRIBUTIONS},
    }
