"""The benchmarks run: every contestant does its work once, at the small sizes, and is checked; no time is asserted.

They need more packages than the suite (extra ``bench``). Where one is missing the test is skipped, unless
``FASTLOG_REQUIRE_BENCHMARKS=1`` says that it has to run.
"""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parent.parent
MODULES = sorted(path.stem for path in (ROOT / "benchmarks").glob("bench_*.py"))
NEEDED = ("lmdb", "rocksdict", "pyarrow", "pytest_benchmark", "matplotlib", "cramjam", "confluent_kafka")
MISSING = [name for name in NEEDED if importlib.util.find_spec(name) is None]
REQUIRED = os.environ.get("FASTLOG_REQUIRE_BENCHMARKS") == "1"
LARGE_LOG_BYTES = 8 << 20

pytestmark = [
    pytest.mark.skipif(bool(MISSING) and not REQUIRED, reason=f"not installed: {', '.join(MISSING)}"),
    pytest.mark.skipif(bool(os.environ.get("FASTLOG_SANITIZED")), reason="other people's libraries under sanitizers"),
]


def run_benchmarks(work: Path, *options: str) -> subprocess.CompletedProcess[str]:
    environment = {
        **os.environ,
        "FASTLOG_BENCH_DIR": str(work),
        "FASTLOG_BENCH_LOG_BYTES": str(LARGE_LOG_BYTES),
        "PYTHONPATH": os.pathsep.join(os.path.abspath(entry) for entry in sys.path),
    }
    for name in list(environment):
        if name.startswith("PYTEST_"):
            del environment[name]
    command = [sys.executable, "-m", "pytest", "--quick", "-q", "--tb=short", "-p", "no:xdist", *options]
    return subprocess.run(
        command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=280, check=False
    )  # fmt: skip


@pytest.mark.parametrize("module", MODULES)
def test_every_contestant_does_what_it_is_timed_for(module: str, tmp_path: Path) -> None:
    ran = run_benchmarks(tmp_path, f"benchmarks/{module}.py", "--benchmark-disable")
    assert ran.returncode == 0, ran.stdout[-5000:] + ran.stderr[-2000:]
    assert " passed" in ran.stdout
    assert [path.name for path in tmp_path.iterdir()] == []


def contests() -> dict[str, list[str]]:
    """Contest -> contestants. Asked of another process, whose pytest knows the mark that the benchmarks use."""
    script = """
        import importlib, json, sys
        found = {}
        for name in sys.argv[1:]:
            for function in vars(importlib.import_module(f"benchmarks.{name}")).values():
                for mark in getattr(function, "pytestmark", []):
                    found[mark.args[0].name] = [contestant.name for contestant in mark.args[0].contestants]
        print(json.dumps(found))
    """
    path = os.pathsep.join(os.path.abspath(entry) for entry in sys.path)
    command = [sys.executable, "-c", textwrap.dedent(script), *MODULES]
    environment = {**os.environ, "PYTHONPATH": path}
    found: dict[str, list[str]] = json.loads(subprocess.check_output(command, cwd=ROOT, env=environment))
    return found


def test_goals_are_about_contests_that_are_held() -> None:
    from benchmarks.goals import Kind, goals

    held = contests()
    assert len(held) > 10
    for goal in goals():
        assert {goal.ours, *goal.against} <= set(held[goal.contest]), goal.key
        assert bool(goal.against) is (goal.kind in (Kind.RATE, Kind.COST, Kind.P99_COST, Kind.EXTRA_MILLISECONDS)), (
            goal.key
        )
    keys = [goal.key for goal in goals()]
    assert len(keys) == len(set(keys))


def test_every_contest_has_its_picture() -> None:
    from benchmarks import plots

    drawn = [name for names in plots._PICTURES.values() for name in names]
    assert set(contests()) - set(drawn) == {"large-memory", "watcher", "idle-store"}  # one figure, and no time
    assert len(drawn) == len(set(drawn))


def test_a_run_becomes_a_report(tmp_path: Path) -> None:
    """Rates, single steps and details, through JSON, into the table, the judgement and the pictures."""
    from benchmarks import report

    def entry(contest: str, unit: str, contestant: str, seconds: float, **more: Any) -> dict[str, Any]:
        info = {"contest": contest, "title": contest.title(), "unit": unit, "contestant": contestant, "builds": "none"}
        info |= {"turn": 1, "units": more.pop("units", 1), "details": {}, "samples": []} | more
        return {"extra_info": info, "stats": {"data": [seconds, seconds * 1.5, seconds]}}

    measured = [
        entry("append-one", "records", "shared", 0.5, units=1_000_000),
        entry("append-one", "records", "exclusive", 0.25, units=1_000_000),
        entry("append-one", "records", "bare os.write", 0.2, units=1_000_000),
        entry("wake-up", "wake-ups", "waiting reader", 9.0, samples=[5e-6] * 98 + [1e-5, 3e-4]),
        entry("wake-up", "wake-ups", "pipe", 9.0, samples=[4e-6] * 100),
        entry("append-durable", "records", "group, 8 threads", 0.1, units=800, details={"records_per_sync": 5.25}),
        entry("append-durable", "records", "batch, 1 thread", 0.1, units=200),
        entry("compaction", "bytes", "fastlog", 4.0, units=1 << 30),
        entry("compaction", "bytes", "copy", 1.0, units=1 << 30),
        entry("compaction", "bytes", "copy and sync", 2.0, units=1 << 30),
    ]
    machine = {"cpu": "a processor", "cpu_flags": [], "cores": 2, "memory_gib": 1.0, "kernel": "a kernel"}
    machine |= {"file_system": "ext4", "versions": {}, "quick": True}
    machine["sizes"] = {"large_log_bytes": 1 << 30, "small_log_bytes": 1 << 20}
    raw = tmp_path / "raw.json"
    raw.write_text(
        json.dumps({"datetime": "2026-01-01T00:00", "commit_info": {}, "machine_info": machine, "benchmarks": measured})
    )
    written = {path.suffix: path for path in report.write(raw, "tried", tmp_path / "results")}
    goals = {goal["key"]: goal for goal in json.loads(written[".json"].read_text())["goals"]}
    found = {key: (goal["found"], goal["verdict"]) for key, goal in goals.items()}
    assert found == {
        "append-one-shared": (0.4, "reached"),
        "append-one-exclusive": (0.8, "reached"),
        "group-8-batch": (4.0, "reached"),
        "group-8-syncs": (5.25, "reached"),
        "wake-up-pipe": (1.25, "reached"),
        "wake-up-p99": (300.0, "falls short"),
        "compaction": (0.25, "falls short"),
    }
    table = written[".md"].read_text()
    for expected in ("2 M records/s", "5 µs, p99 300 µs", "268 MB/s", "8 k records/s", "≤ 200 µs", "5.2"):
        assert expected in table, expected
    assert "<svg" in written[".svg"].read_text()
