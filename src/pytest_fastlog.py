"""Fixtures for tests of fastlog handlers. Installed with fastlog, pytest finds them by itself.

Every run of pytest in that environment loads this file, whatever it tests: so it imports nothing of fastlog until a
fixture is asked for. ``pytest -p no:pytest_fastlog`` does without.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from fastlog import App, Store
    from fastlog.testing import Harness, TestClock


@pytest.fixture
def fastlog_clock() -> TestClock:
    """A clock that stands still until the test turns it; ``fastlog_app`` goes by it."""
    from fastlog.testing import TestClock

    return TestClock()


@pytest.fixture
def fastlog_store() -> Iterator[Store]:
    """An empty store, in memory where there is such a folder, at durability ``"os"``: nothing waits for a disk."""
    from fastlog.testing import temporary_store

    with temporary_store() as store:
        yield store


@pytest.fixture
def fastlog_app(fastlog_store: Store, fastlog_clock: TestClock) -> Iterator[Callable[..., Harness]]:
    """Runs Apps for this test: ``fastlog_app(app)`` gives a ``fastlog.testing.Harness``.

    The App itself stays as it is, with its own store: the harness runs a copy of it, with the same handlers, in
    ``fastlog_store`` and by ``fastlog_clock``. Topics that are not there are made, with ``partitions=`` partitions.
    """
    from fastlog.testing import Harness

    running: list[Harness] = []

    def run(app: App, *, partitions: int = 1) -> Harness:
        harness = Harness(app, store=fastlog_store, clock=fastlog_clock, partitions=partitions)
        running.append(harness)
        return harness

    yield run
    for harness in reversed(running):
        harness.close()
