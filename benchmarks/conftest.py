"""pytest's side of the measurements: turns, rounds, work folder, progress. The rules are in ``contest.py``."""

from __future__ import annotations

import gc
import importlib.util
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from statistics import median
from typing import Any

import pytest

from benchmarks import machine
from benchmarks.contest import Contest, Contestant, Work
from benchmarks.figures import rate_text
from benchmarks.kafka import OracleUnavailable, running_broker
from benchmarks.workload import MEBIBYTE, Datasets, Sizes, Stage

_NEEDED = {"fastlog": "make, or pip install -e .", "lmdb": "pip install lmdb", "rocksdict": "pip install rocksdict",
           "pyarrow": "pip install pyarrow", "cramjam": "pip install cramjam",
           "confluent_kafka": "pip install confluent-kafka"}  # fmt: skip
_PRETOUCHED_BYTES = 512 * MEBIBYTE


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--quick", action="store_true", help="smaller sizes: a look, not figures to publish")


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "contest(contest): the work that a bench function measures")
    for module, remedy in _NEEDED.items():
        if importlib.util.find_spec(module) is None:
            raise pytest.UsageError(f"the benchmarks need {module}, which is not installed: {remedy}")


def _sizes(config: pytest.Config) -> Sizes:
    return Sizes.quick() if config.getoption("--quick") else Sizes.full()


def _contest_of(definition: Any) -> Contest:
    found: Contest = definition.get_closest_marker("contest").args[0]
    return found


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    contest = _contest_of(metafunc.definition)
    # nothing to take turns for when nothing is timed
    turns = 1 if metafunc.config.getoption("benchmark_disable") else contest.turns(_sizes(metafunc.config))
    plays = [
        pytest.param(turn, contestant, id=f"turn {turn}: {contestant.name}")
        for turn in range(1, turns + 1)
        for contestant in contest.contestants
    ]
    metafunc.parametrize(("turn", "contestant"), plays)


@pytest.fixture(scope="session")
def sizes(pytestconfig: pytest.Config) -> Sizes:
    return _sizes(pytestconfig)


def _work_root() -> Path:
    return Path(os.environ.get("FASTLOG_BENCH_DIR", Path(__file__).parent / ".work"))


@pytest.fixture(scope="session")
def work_directory(sizes: Sizes, pytestconfig: pytest.Config) -> Iterator[Path]:
    """A folder of this run, on the disk to be measured, deleted at the end."""
    directory = _work_root() / f"run-{os.getpid()}"
    directory.mkdir(parents=True)
    _remove_leftovers(directory)
    free, wanted = shutil.disk_usage(directory).free, sizes.large_log_bytes * 11 // 10 + (4 << 30)
    if free < wanted:
        directory.rmdir()
        pytest.exit(
            f"the benchmarks may need {wanted >> 30} GiB of disk and {free >> 30} are free: set FASTLOG_BENCH_DIR to a "
            f"folder elsewhere, or FASTLOG_BENCH_LOG_BYTES to a smaller size of the large log",
            returncode=2,
        )
    try:
        if not pytestconfig.getoption("benchmark_disable"):
            _pretouch(directory / "pretouch")
        yield directory
    finally:
        shutil.rmtree(directory)


def _remove_leftovers(own: Path) -> None:
    """What runs that were killed have left behind."""
    for directory in own.parent.glob("run-*"):
        if directory != own and not _is_running(int(directory.name.removeprefix("run-"))):
            shutil.rmtree(directory)


def _is_running(process_id: int) -> bool:
    try:
        os.kill(process_id, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def _pretouch(path: Path) -> None:
    """Have memory for the page cache handed to this machine now: on a virtual one, the first touch is slow."""
    block = bytes(MEBIBYTE)
    with path.open("wb", buffering=0) as file:
        for _ in range(_PRETOUCHED_BYTES // len(block)):
            file.write(block)
    path.unlink()


@pytest.fixture(scope="session")
def datasets(work_directory: Path) -> Datasets:
    return Datasets(work_directory / "datasets")


@pytest.fixture(scope="module")
def kafka(work_directory: Path) -> Iterator[str]:
    """The address of a broker of its own, in the work folder. It is gone before the next module measures."""
    folder = work_directory / "kafka"
    folder.mkdir()
    try:
        with running_broker(folder) as address:
            yield address
    except OracleUnavailable as problem:
        if os.environ.get("CI", "").lower() in {"1", "true"}:
            pytest.fail(f"Kafka has to be there under CI: {problem}")
        pytest.skip(f"no Kafka to measure beside: {problem}")
    finally:
        shutil.rmtree(folder)


@pytest.fixture
def play(
    benchmark: Any,
    request: pytest.FixtureRequest,
    contestant: Contestant,
    turn: int,
    sizes: Sizes,
    datasets: Datasets,
    work_directory: Path,
) -> Iterator[Callable[[], None]]:
    """One turn of one contestant."""
    contest = _contest_of(request.node)
    directory = work_directory / "round"
    details: dict[str, float] = {}
    address = request.getfixturevalue("kafka") if contestant.needs_kafka else ""
    samples: list[list[float]] = []  # of each round, those to warm up among them
    with ExitStack() as last_round:

        def set_up() -> tuple[tuple[Work], dict[str, Any]]:
            directory.mkdir()
            last_round.callback(shutil.rmtree, directory)
            samples.append([])
            stage = Stage(sizes, directory, datasets, details, samples[-1], address)
            work = last_round.enter_context(contestant.prepare(stage))
            gc.collect()
            return (work,), {}

        def tear_down(work: Work) -> None:
            last_round.close()

        def run() -> None:
            benchmark.group = contest.title
            units = benchmark.pedantic(
                lambda work: work(),
                setup=set_up,
                teardown=tear_down,
                rounds=contest.rounds_per_turn(sizes),
                warmup_rounds=contest.warm_up_rounds,
            )
            if benchmark.enabled:
                del samples[: contest.warm_up_rounds]
            taken = [float(f"{seconds:.4g}") for of_round in samples for seconds in of_round]
            benchmark.extra_info.update(
                contest=contest.name,
                title=contest.title,
                unit=contest.unit,
                contestant=contestant.name,
                builds=contestant.builds,
                turn=turn,
                units=1 if taken else units,
                details=details,
                samples=taken,
            )
            if benchmark.enabled:
                seconds = median(taken or benchmark.stats.stats.sorted_data)
                rate = rate_text(1 if taken else units, seconds, contest.unit)
                request.node.user_properties.append(("rate", rate))

        yield run


def pytest_report_teststatus(report: pytest.TestReport) -> tuple[str, str, str] | None:
    """Show the rate of each play beside its name (with -v)."""
    rate = dict(report.user_properties).get("rate")
    if report.when != "call" or not report.passed or rate is None:
        return None
    return "passed", ".", str(rate)


@pytest.hookimpl(optionalhook=True)
def pytest_benchmark_update_machine_info(config: pytest.Config, machine_info: dict[str, object]) -> None:
    """Replace what pytest-benchmark collects: it holds the name of the host."""
    root = _work_root()
    root.mkdir(parents=True, exist_ok=True)
    machine_info.clear()
    machine_info.update(machine.describe(root))
    machine_info["sizes"] = {name: getattr(_sizes(config), name) for name in Sizes.__slots__}
    machine_info["quick"] = bool(config.getoption("--quick"))
