"""Targets of the fuzzer: everything of fastlog that parses bytes nobody vouches for, and what is fed to it.

=================  ====================================================================================================
``native.pyx``     targets beside the compiled core; compiled for tests only
``plain``          targets that are Python
``building``       the instrumented build: clang, libFuzzer, AddressSanitizer, UndefinedBehaviorSanitizer
``corpus``         the kept inputs: made by fastlog's own writers, grown and minimised by runs, replayed by a test
``__main__``       one fuzzer's process
=================  ====================================================================================================

libFuzzer drives all of them. Targets of C get their bytes from it without a Python object in between; Python's targets
are instrumented and driven by Atheris.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass
from typing import Final

__all__ = ["FOLDER", "TARGETS", "Driver", "Target"]

FOLDER: Final = "FASTLOG_FUZZ_FOLDER"  # names where a fuzzer's process may write


class Driver(enum.Enum):
    """What calls a target, and what it sees of where its inputs lead."""

    COMPILED = "a function of native.pyx, on the instrumented core"
    CORE = "a function of plain.py, on the instrumented core"
    PYTHON = "a function of plain.py, instrumented by Atheris"


@dataclass(frozen=True)
class Target:
    """``runs`` inputs are a turn, and take a few seconds; none has more than ``most_bytes``."""

    name: str
    what: str
    runs: int
    most_bytes: int
    driver: Driver = Driver.COMPILED
    words: str | None = None  # libFuzzer's dictionary: ``WORDS.dict`` beside this file


TARGETS: Final = {
    target.name: target
    for target in (
        Target("decoder", "record batches that are read", 150_000, 2048, words="batches"),
        Target("validator", "record batches that are appended as they come", 300_000, 2048, words="batches"),
        Target("producers", "batches of producers and transactions", 40_000, 2048, words="batches"),
        Target("codecs", "the framings of gzip, snappy, lz4 and zstd", 250_000, 2048),
        Target("markers", "markers that end transactions", 250_000, 256, words="batches"),
        Target("snapshot", "snapshots of producers", 300_000, 1024),
        Target("txnindex", "indexes of aborted transactions", 250_000, 1024),
        Target("indexes", "offset and time indexes", 6_000, 1024),
        Target("segments", "segment files, scanned, replayed, compacted", 20_000, 2048, words="batches"),
        Target("pages", "pages and bells that processes share", 80_000, 8192),
        Target("arrow", "Arrow arrays whose producers lie", 120_000, 512),
        Target("logs", "a folder with a file of somebody else", 800, 4096, Driver.CORE, words="batches"),
        Target("offsets", "records of __consumer_offsets", 30_000, 512, Driver.PYTHON),
        Target("transactions", "records of __transaction_state", 30_000, 512, Driver.PYTHON),
        Target("headers", "headers of moved records", 10_000, 1024, Driver.PYTHON),
        Target("finished", "metadata of committed offsets", 30_000, 1024, Driver.PYTHON),
        Target("audits", "audit records of dead letters", 20_000, 1024, Driver.PYTHON, words="json"),
        Target("state", "state files of a partition", 10_000, 4096, Driver.PYTHON, words="json"),
        Target("store", "files of a store, ours and Kafka's", 10_000, 2048, Driver.PYTHON, words="json"),
    )
}
