"""One process of the demo's pipeline: ``python -m fastlog.demo.worker ROLE STORE NAME [EVENTS]``.

SIGTERM ends it after the transaction in hand. It is spawned by the supervisor, which kills it, too.
"""

from __future__ import annotations

import logging
import os
import signal
import sys
import threading
from pathlib import Path

import fastlog
from fastlog.demo import pipeline

__all__ = ["main"]

ROLES = ("ingest", pipeline.DELAYS, pipeline.TURNAROUNDS)


def main(role: str, root: str, name: str, events: str = "") -> None:
    """Play a role until it is done, or until SIGTERM."""
    stopping = threading.Event()
    signal.signal(signal.SIGTERM, lambda number, frame: stopping.set())
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    # deaths are expected here: what is said of them is for those who look for it
    level = os.environ.get("FASTLOG_DEMO_LOG", "ERROR")
    logging.basicConfig(level=level, format=f"{role}-{name}: %(message)s")
    with fastlog.open(root, durability="os") as store:
        if role == "ingest":
            pipeline.ingest(store, Path(events), int(name), stopping.is_set)
        elif role == pipeline.DELAYS:
            pipeline.add_delays(store, name, stopping.is_set)
        elif role == pipeline.TURNAROUNDS:
            pipeline.add_turnarounds(store, name, stopping.is_set)
        else:
            raise fastlog.ConfigError(f"role {role!r}: expected one of {', '.join(ROLES)}")


if __name__ == "__main__":
    main(*sys.argv[1:])
