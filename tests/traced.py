"""Every system call that lives make on their files, as ``strace`` sees it, beside those that can be made to fail.

``python -m tests.traced FOLDER SEED`` lives the life of a log and that of a store between two marks, and says what
``oscalls`` has counted.
"""

from __future__ import annotations

import json
import logging
import os
import re
import subprocess
import sys
from collections import Counter
from collections.abc import Mapping
from pathlib import Path

from fastlog._native import oscalls
from tests.trials import StoreTrial, Trial

TRACER = ("strace", "-f", "-y", "-qq", "-o")
BEGIN, END = "lives-begin-here", "lives-end-here"
LEVEL = "group"
PROC = '"/proc/'  # where it is asked who lives
# what `strace` calls a call that `oscalls` counts
NAMES = {
    "openat": "open", "pread64": "pread", "pwrite64": "pwrite", "newfstatat": "fstat", "unlinkat": "unlink",
    "rmdir": "unlink", "pipe2": "pipe",
}  # fmt: skip
# nobody could answer the failure of these
HARMLESS = {"close", "munmap", "fadvise64", "madvise", "read", "lseek", "ioctl", "readlink"}
_LINE = re.compile(r"\d+ +(\w+)\((.*)")


def live(folder: Path, seed: int) -> None:
    """The lives, from opening to closing."""
    Trial(folder / "log", LEVEL).live()
    store = StoreTrial(folder, seed, LEVEL)
    store.live()
    store.life.drop()


def seen_in(trace: Path, folder: Path) -> Counter[str]:
    """The system calls between the marks that were made on a path below the folder, or on a file there."""
    seen: Counter[str] = Counter()
    inside = False
    listing: set[str] = set()  # threads that have just opened a directory
    for line in trace.read_text(errors="replace").splitlines():
        if BEGIN in line or END in line:
            inside = BEGIN in line
            continue
        match = _LINE.match(line)
        if not inside or match is None:
            continue
        name, arguments = match[1], match[2]
        name = NAMES.get(name, name)
        if name in ("poll", "pipe", "pidfd_open"):
            seen[name] += 1
            continue
        is_above = name == "fsync" and any(f"<{path}>" in arguments for path in folder.parents)
        if name in HARMLESS or not (str(folder) in arguments or PROC in arguments or is_above):
            continue
        if name == "open" and "O_NONBLOCK" in arguments:  # opendir, which looks at what it has opened
            seen["getdents"] += 1
            listing.add(line.split()[0])
        elif name == "getdents64":
            continue
        elif name == "fstat" and line.split()[0] in listing:  # it need not say of what: another thread may cut in
            listing.remove(line.split()[0])
        elif "LOCK_UN" in arguments or ("F_UNLCK" in arguments and "SETLK" in arguments):
            continue  # letting go
        else:
            seen[name] += 1
    return seen


def require_all_injectable(folder: Path, seed: int, environment: Mapping[str, str]) -> int:
    """Live the lives under ``strace``: what they call on their files is what ``oscalls`` counts; how many calls."""
    trace, lives = folder / "trace.txt", folder / "lives"
    lives.mkdir()
    command = [*TRACER, str(trace), sys.executable, "-m", "tests.traced", str(lives), str(seed)]
    result = subprocess.run(command, check=False, capture_output=True, text=True, env=environment, timeout=300)
    assert result.returncode == 0, result.stderr[-5000:]
    counted = Counter(json.loads(result.stdout))
    seen = seen_in(trace, lives)
    names = [name for name in seen | counted if seen[name] != counted[name]]
    differ = [f"{name}: {seen[name]} seen, {counted[name]} counted" for name in names]
    assert not differ, f"system calls beside the room that makes them: {differ}"
    return seen.total()


def main() -> None:
    folder, seed = Path(sys.argv[1]), int(sys.argv[2])
    logging.getLogger("fastlog").setLevel(logging.CRITICAL)
    before = oscalls.call_counts()
    os.access(BEGIN, os.F_OK)
    live(folder, seed)
    os.access(END, os.F_OK)
    print(json.dumps({name: number - before[name] for name, number in oscalls.call_counts().items()}))


if __name__ == "__main__":
    main()
