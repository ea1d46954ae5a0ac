"""Processes of tests are forked by a server that has imported everything and opened nothing.

Importing takes a hundred times as long as forking. A process that was forked so is no child of the test: it cannot be
waited for by its id.
"""

from __future__ import annotations

import multiprocessing
import time
from pathlib import Path

__all__ = ["SERVER", "wait_until_stopped"]

SERVER = multiprocessing.get_context("forkserver")
SERVER.set_forkserver_preload(
    ["fastlog.delivery.app", "fastlog.delivery.dead_letters", "tests.delivery.worker", "tests.messaging.puppets"]
)


def wait_until_stopped(pid: int, timeout: float = 30) -> None:
    """Wait until a process has stopped itself, by the kernel's word."""
    limit = time.monotonic() + timeout
    while Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "T":
        assert time.monotonic() < limit, f"process {pid} did not stop"
        time.sleep(0.002)
