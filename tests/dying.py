"""A process that dies at one of its system calls, whichever it is."""

from __future__ import annotations

import ctypes
import os
from collections.abc import Callable

from fastlog._native import oscalls

__all__ = ["dies_at_change"]

CHANGES = ("open", "pwrite", "pwritev", "ftruncate", "rename", "link", "unlink", "mkdir")
DIED = 7


def dies_at_change(nth: int, work: Callable[[], object]) -> bool:
    """Do ``work`` in a forked child that dies when it comes to the nth call that may change a file or a folder.

    False when it makes fewer of them; then all of it was done.
    """
    pid = os.fork()
    if pid:
        status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        assert status in (0, DIED), f"the process ended with {status}"
        return status == DIED
    calls = 0

    def observe(call: int, error: int) -> None:
        nonlocal calls
        calls += oscalls.CALL_NAMES[call] in CHANGES
        if calls == nth:
            os._exit(DIED)

    try:
        watch = ctypes.CFUNCTYPE(None, ctypes.c_int, ctypes.c_int)(observe)
        oscalls.observe(ctypes.cast(watch, ctypes.c_void_p).value or 0)
        work()
        os._exit(0)
    finally:
        os._exit(1)
