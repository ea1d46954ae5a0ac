"""Taken in by every interpreter that ``scripts/sanitize`` starts under AddressSanitizer: it forks in quiet moments.

A child inherits the locks of the sanitizer's allocator as they are: the libasan of gcc 12 does not see to them at a
fork, as libc sees to its own. When another thread has one in that moment, the child waits for it for ever.
"""

import os
import threading
import time

_LONGEST_WAIT = 2.0  # seconds; a thread that is never at rest shall not hold up the test that starts it


def _others_rest() -> bool:
    """Whether every other thread of this process sleeps, by the kernel's word: so it is not in the allocator."""
    own = str(threading.get_native_id())
    for thread in os.listdir("/proc/self/task"):
        try:
            with open(f"/proc/self/task/{thread}/stat") as stat:
                state = stat.read().rpartition(")")[2].split()[0]
        except (FileNotFoundError, ProcessLookupError):
            continue  # it has ended
        if state in "RD" and thread != own:
            return False
    return True


def _wait_for_rest() -> None:
    until = time.monotonic() + _LONGEST_WAIT
    while not _others_rest() and time.monotonic() < until:
        time.sleep(0.0005)


# what is registered first is called last, after what fastlog itself does before a fork
os.register_at_fork(before=_wait_for_rest)
