"""Fixtures of the whole suite: folders in memory, logs that are checked at the end, Kafka as the oracle, seeds."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, settings

from tests.crash.recording import RecorderUnavailable, build_library, build_recorder
from tests.folders import MEMORY
from tests.injector import SOURCE, environment
from tests.oracle.broker import KafkaBroker, KafkaClients
from tests.oracle.kafka import KafkaOracle, OracleUnavailable

UNDER_CI = os.environ.get("CI", "").lower() in {"1", "true"}

slow_to_draw = [HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.function_scoped_fixture]
settings.register_profile("dev", max_examples=50, deadline=None, print_blob=True, suppress_health_check=slow_to_draw)
settings.register_profile(
    "ci", max_examples=150, deadline=None, print_blob=True, derandomize=False, suppress_health_check=slow_to_draw
)
settings.register_profile("nightly", settings.get_profile("ci"), max_examples=1000)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "ci" if UNDER_CI else "dev"))


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "slow: takes more than a few seconds; sized by environment variables")


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """Tests with the broker go to one worker, for it takes seconds to start; others to whichever is free.

    The mark ``xdist_group`` would say so too, but pytest-xdist 3.8 does not see it under pytest 9.2.
    """
    from xdist.scheduler import LoadScopeScheduling

    class OneBroker(LoadScopeScheduling):
        def _split_scope(self, nodeid: str) -> str:
            file = nodeid.partition("::")[0]
            return file if file.endswith(("test_kafka_broker.py", "test_kafka_store.py")) else nodeid

    return OneBroker(config, log) if config.getoption("dist") == "loadgroup" else None


@pytest.fixture
def folder() -> Iterator[Path]:
    """A fresh directory in memory where there is such a thing; removed at the end."""
    with tempfile.TemporaryDirectory(prefix="fastlog-test-", dir=MEMORY, ignore_cleanup_errors=True) as name:
        yield Path(name)


@pytest.fixture(scope="session")
def library() -> Iterator[Path]:
    """The recorder, compiled. Where it cannot be, tests are skipped; under CI on Linux that is a failure."""
    with tempfile.TemporaryDirectory(prefix="fastlog-recorder-") as name:
        try:
            yield build_recorder(Path(name))
        except RecorderUnavailable as problem:
            if UNDER_CI and sys.platform == "linux":
                pytest.fail(f"the recorder has to be there under CI: {problem}")
            pytest.skip(str(problem))


@pytest.fixture
def run_injected(folder: Path) -> Callable[..., list[Any]]:
    """Runs ``python …`` with the library of ``tests.injector``; every line of JSON that it prints."""
    try:
        library = build_library(SOURCE, folder)
    except RecorderUnavailable as problem:
        if UNDER_CI and sys.platform == "linux":
            pytest.fail(f"the library has to be there under CI: {problem}")
        pytest.skip(str(problem))
    if os.environ.get("FASTLOG_SANITIZED"):
        pytest.skip("a sanitizer stands in front of the allocators")
    path = os.pathsep.join(path or os.getcwd() for path in sys.path)
    preloaded = {**os.environ, "PYTHONPATH": path, **environment(library)}

    def run(*arguments: str) -> list[Any]:
        command = [sys.executable, "-X", "faulthandler", *arguments]
        result = subprocess.run(command, check=False, capture_output=True, text=True, env=preloaded)
        said = f"{result.stdout[-500:]}\n{result.stderr[-3000:]}"
        assert result.returncode == 0, f"ended with {result.returncode}:\n{said}"
        return [json.loads(line) for line in result.stdout.splitlines()]

    return run


@pytest.fixture
def seed(request: pytest.FixtureRequest) -> int:
    """A new seed for each run, or the one in FASTLOG_SEED. It is shown when the test fails."""
    chosen = int(os.environ.get("FASTLOG_SEED", random.SystemRandom().randrange(1 << 32)))
    print(f"FASTLOG_SEED={chosen}  ({request.node.nodeid})")
    return chosen


@pytest.fixture(scope="session")
def kafka() -> Iterator[KafkaOracle]:
    """Kafka's own tools. Missing Java or Maven skips the test with the reason; under CI it is a failure."""
    try:
        oracle = KafkaOracle()
    except OracleUnavailable as problem:
        if UNDER_CI:
            pytest.fail(f"the Kafka oracle has to be there under CI: {problem}")
        pytest.skip(f"no Kafka oracle: {problem}")
    with oracle:
        yield oracle


@pytest.fixture(scope="session")
def started_broker(kafka: KafkaOracle) -> Iterator[KafkaBroker]:
    """A broker for the whole session, of which tests get ``broker``. They share one worker.

    It needs what ``kafka`` needs, and skips or fails with it.
    """
    with (
        tempfile.TemporaryDirectory(prefix="fastlog-broker-", dir=MEMORY, ignore_cleanup_errors=True) as name,
        KafkaBroker(Path(name)) as broker,
    ):
        yield broker


@pytest.fixture
def broker(started_broker: KafkaBroker) -> KafkaBroker:
    """A real Kafka broker that is running, however the test before it left it."""
    if not started_broker.is_running:
        started_broker.start()
    return started_broker


@pytest.fixture(scope="session")
def clients(kafka: KafkaOracle, started_broker: KafkaBroker) -> Iterator[KafkaClients]:
    """Kafka's own clients for ``broker``."""
    clients = KafkaClients(kafka, started_broker)
    yield clients
    clients.forget()


@pytest.fixture
def checked_log(folder: Path) -> Iterator[Callable[..., Any]]:
    """Opens partitions (default: one of a fixed name); each one is checked as a whole when the test is over.

    The check: ``verify`` finds nothing, the clean close needs no recovery, and the reopened log has the same extent
    and again nothing that ``verify`` finds.
    """
    import fastlog

    opened: dict[Path, Any] = {}

    def open_log(path: Path | None = None, **options: Any) -> Any:
        where = path or folder / "events-0"
        options.setdefault("durability", "os")
        opened[where] = log = fastlog.PartitionLog.open(where, **options)
        return log

    yield open_log
    for path, log in opened.items():
        if not path.exists():
            continue
        if log.closed:
            log = fastlog.PartitionLog.open(path, durability="os")
        check_whole_log(log)
        extent = (log.start_offset, log.end_offset)
        log.close()
        with fastlog.PartitionLog.open(path, read_only=True) as again:
            assert again.recovery is None
            assert (again.start_offset, again.end_offset) == extent
            check_whole_log(again)


def check_whole_log(log: Any) -> None:
    report = log.verify()
    assert report.ok, f"{report.damages} {report.index_problems}"
    assert (report.start_offset, report.end_offset) == (log.start_offset, log.end_offset)


@pytest.fixture(autouse=True)
def no_faults_left() -> Iterator[None]:
    """A test that fails in the middle must not leave its faults, or its clock, to the next one."""
    yield
    oscalls = sys.modules.get("fastlog._native.oscalls")
    if oscalls is not None:
        oscalls.clear()
        oscalls.set_clock(None)
