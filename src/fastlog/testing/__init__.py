"""For tests of handlers: a clock that is turned by hand, and a harness that runs an App in the calling thread.

from fastlog.testing import Harness

with Harness(app) as running:
    running.send("orders", b"one", key=b"customer-1")
    running.run_until_idle()
    running.assert_no_dead_letters()

With pytest it comes as fixtures: ``fastlog_app``, ``fastlog_store``, ``fastlog_clock``. Nothing here sleeps.
"""

from .clock import TestClock
from .harness import HandlerFailure, Harness
from .stores import temporary_store

__all__ = ["HandlerFailure", "Harness", "TestClock", "temporary_store"]
