"""Mistakes that are put into a build of their own, one at a time, to see that the engines find them.

Each is a small change of the product's text that is made while that build is made, and switched on by the name in
``FASTLOG_PLANTED``; the product itself knows nothing of them. ``python -m tests.evidence planted`` runs the engine of
each against it; one that is not found within its budget has survived, and that is a failure.

=============  ========================================================================================================
``mistake``    what a planted mistake is
``partition``  mistakes of one partition: durability, recovery, locks, formats, indexes, retention, compaction
``messaging``  mistakes of producers, groups, transactions and of the store
``delivery``   mistakes of handlers, retries, dead letters and deduplication
``build``      the sources with all of them in it, compiled
``trial``      the engines against them
=============  ========================================================================================================
"""

from __future__ import annotations

from tests.evidence.planted.delivery import DELIVERY
from tests.evidence.planted.messaging import MESSAGING
from tests.evidence.planted.mistake import Mistake
from tests.evidence.planted.partition import PARTITION

__all__ = ["MISTAKES"]

MISTAKES: dict[str, Mistake] = {one.name: one for one in (*PARTITION, *MESSAGING, *DELIVERY)}
