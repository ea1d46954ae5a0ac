"""Stand-in for ``fastlog.diagnose``: the same keys, found by what Python alone can ask. Goes when the engine tells."""

from __future__ import annotations

import ctypes
import json
import os
import re
import sys
from pathlib import Path
from typing import Any

import fastlog

__all__ = ["diagnose"]

# Several processes may share a log there: locks and maps are known to mean what they say.
ALLOWED = {
    0xEF53: "ext4", 0x58465342: "xfs", 0x9123683E: "btrfs", 0xF2F52010: "f2fs", 0x2FC12FC1: "zfs", 0x01021994: "tmpfs",
    0x794C7630: "overlayfs",
}  # fmt: skip
OTHERS = {0x6969: "nfs", 0x01021997: "9p", 0x65735546: "fuse", 0xFF534D42: "cifs", 0x6A656A63: "virtiofs"}
SEGMENT_NAME = re.compile(r"\d{20}\.log")


def diagnose(path: str | os.PathLike[str] | None = None) -> dict[str, Any]:
    """What this platform gives and, for the folder of a partition, the state it is in."""
    checksum = sys.modules["fastlog._native.checksum"]
    oscalls = sys.modules["fastlog._native.oscalls"]
    return {
        "fastlog": fastlog.__version__,
        "crc32c": checksum.IMPLEMENTATION,
        "has_futex": sys.platform == "linux",
        "boot_id": _boot_id(),
        "system_calls": oscalls.call_counts(),
        "file_system": None if path is None else _file_system(os.fspath(path)),
        "partition": None if path is None else _partition(Path(path)),
    }


def _boot_id() -> str | None:
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return None


def _file_system(path: str) -> dict[str, Any] | None:
    if sys.platform != "linux":
        return None
    library = ctypes.CDLL(None, use_errno=True)
    status = (ctypes.c_long * 32)()
    if library.statfs(os.fsencode(path), status) != 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()), path)
    magic = status[0] & 0xFFFFFFFF
    name = ALLOWED.get(magic) or OTHERS.get(magic) or "unknown"
    return {"magic": magic, "name": name, "is_allowed": magic in ALLOWED}


def _partition(folder: Path) -> dict[str, Any] | None:
    names = {entry.name for entry in folder.iterdir()} if folder.is_dir() else set[str]()
    if ".fastlog-meta" not in names and not any(map(SEGMENT_NAME.fullmatch, names)):
        return None
    clean, meta = _sealed(folder / ".fastlog-clean"), _sealed(folder / ".fastlog-meta")
    control = _sealed(folder / ".fastlog-control")
    end = None if clean is None else clean.get("end_offset")
    pids = _lock_holders(folder)
    return {
        "is_open": None if pids is None else bool(pids),
        "pids": pids or [],
        "control": None if control is None or not pids else {"pid": control.get("pid")},
        "is_clean": clean is not None,
        "is_poisoned": ".fastlog-poisoned" in names,
        "start_offset": None if meta is None else meta.get("start_offset"),
        "end_offset": end,
        "durable_offset": end if end is not None else None if meta is None else meta.get("recovery_point"),
    }


def _sealed(path: Path) -> dict[str, Any] | None:
    try:
        found = json.loads(path.read_bytes().split(b"\n")[0][9:])
    except (OSError, ValueError):
        return None
    return found if isinstance(found, dict) else None


def _lock_holders(folder: Path) -> list[int] | None:
    try:
        lines = Path("/proc/locks").read_text().splitlines()
    except OSError:
        return None
    inode = str(folder.stat().st_ino)
    held = [line.split() for line in lines if "FLOCK" in line and "->" not in line]
    return sorted({int(words[4]) for words in held if words[5].rpartition(":")[2] == inode})
