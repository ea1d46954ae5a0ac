"""An operator in a process of its own: redrives or discards dead letters in portions of five; tests kill and stop it.

Run as ``python -m tests.delivery.operator_worker STORE DURABILITY NAME ACTION FAILPOINT WHAT NTH [BYTES]``: with BYTES,
no file may grow beyond that. It waits for a line on its standard input before it acts, and prints how many letters it
handled, or the class of what hindered it.
"""

from __future__ import annotations

import resource
import sys

import fastlog
from fastlog._native import oscalls
from fastlog.delivery import dead_letters
from fastlog.delivery.dead_letters import DeadLetters
from tests.delivery.lettering import DLQ

PORTION = 5


def act(letters: DeadLetters, action: str) -> int:
    if action == "discard":
        return letters.discard().letters
    return letters.redrive(to="source" if action == "source" else "retry").letters


def main(
    path: str, durability: str, name: str, action: str, failpoint: str, what: str, nth: str, most: str = ""
) -> None:
    if most:
        resource.setrlimit(resource.RLIMIT_FSIZE, (int(most), resource.RLIM_INFINITY))
    dead_letters.MOST_AT_ONCE = PORTION  # type: ignore[misc]
    with fastlog.open(path, durability=durability) as store:
        letters = DeadLetters.open(store, DLQ, by=name)
        print("ready", flush=True)
        sys.stdin.readline()
        if failpoint:
            oscalls.arm(failpoint, what, int(nth))
        try:
            print(act(letters, action), flush=True)
        except fastlog.Error as error:
            print(type(error).__name__, flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
