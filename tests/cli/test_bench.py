"""``fastlog bench``: what it measures and prints, what it leaves; never how fast."""

from __future__ import annotations

import json
import resource
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import fastlog
from fastlog.config import DURABILITY_LEVELS
from tests.cli.support import contents, make_log, run, run_on_terminal, run_process

QUICK = ("--seconds", 0.05, "--records", 200)


def measured(*arguments: object) -> dict[str, Any]:
    result = run("bench", *arguments, "--json")
    assert result.exit_code == 0, result.output
    found: dict[str, Any] = json.loads(result.stdout)
    assert found["command"] == arguments[0]
    assert found["fastlog"] == fastlog.__version__
    return found


def check_calls(result: dict[str, Any]) -> None:
    times = result["call_seconds"]
    assert 0 < times["p50"] <= times["p99"] <= times["max"]


@pytest.mark.parametrize("durability", DURABILITY_LEVELS)
def test_append_at_each_level(folder: Path, durability: str) -> None:
    found = measured("append", folder, *QUICK, "--batch", 10, "--durability", durability)
    ours, floor = found["results"]
    assert ours["name"] == "fastlog"
    assert floor["name"] == ("bare write + sync" if durability in ("group", "batch") else "bare write")
    for result in (ours, floor):
        assert len(result["records_per_second_of_rounds"]) == found["rounds"]
        assert min(result["records_per_second_of_rounds"]) > 0
        assert 0 < result["calls"] <= found["rounds"] * 20
        check_calls(result)
    if durability == "batch":
        assert ours["records_per_sync"] == pytest.approx(10, rel=0.1)
    assert list(folder.iterdir()) == []


def test_append_with_threads(folder: Path) -> None:
    found = measured("append", folder, *QUICK, "--batch", 1, "--threads", 4, "--durability", "os", "--size", "1KiB")
    assert found["workload"]["threads"] == 4
    assert found["workload"]["size"] == 1024
    assert found["results"][0]["calls"] <= found["rounds"] * 200


def test_append_with_processes(folder: Path) -> None:
    found = measured("append", folder, *QUICK, "--batch", 10, "--processes", 2, "--durability", "os")
    assert found["results"][0]["calls"] <= found["rounds"] * 20


@pytest.mark.parametrize("options", [[], ["--threads", 2], ["--processes", 2]])
def test_read_of_a_log_made_for_it(folder: Path, options: list[object]) -> None:
    found = measured("read", folder, *QUICK, *options)
    assert [result["name"] for result in found["results"]] == ["columns", "lists", "records", "bytes"]
    for result in found["results"]:
        unit = "bytes" if result["name"] == "bytes" else "records"
        assert len(result[f"{unit}_per_second_of_rounds"]) == found["rounds"]
        assert min(result[f"{unit}_per_second_of_rounds"]) > 0
    assert list(folder.iterdir()) == []


def test_read_of_a_partition_changes_nothing(folder: Path) -> None:
    path = make_log(folder / "events-0")
    before = contents(path)
    found = measured("read", path, *QUICK)
    assert all(rate > 0 for rate in found["results"][0]["records_per_second_of_rounds"])
    assert contents(path) == before
    assert sorted(entry.name for entry in folder.iterdir()) == ["events-0"]


def test_latency(folder: Path) -> None:
    found = measured("latency", folder, *QUICK, "--durability", "os")
    assert [result["name"] for result in found["results"]] == [
        *("fastlog", "bare write"),
        *("append to wake-up", "byte through a pipe"),
    ]
    for result in found["results"]:
        check_calls(result)
    assert found["results"][2]["calls"] == found["results"][3]["calls"] == 200
    assert list(folder.iterdir()) == []


def test_latency_of_a_group_tells_records_per_sync(folder: Path) -> None:
    found = measured("latency", folder, *QUICK, "--threads", 4, "--durability", "group")
    assert found["results"][0]["records_per_sync"] >= 1


@pytest.mark.parametrize(
    "options", [[], ["--batch", 10], ["--processes", 2], ["--processes", 2, "--partitions", 6, "--compression", "lz4"]]
)
def test_pipeline(folder: Path, options: list[object]) -> None:
    found = measured("pipeline", folder, *QUICK, "--durability", "os", *options)
    assert [result["name"] for result in found["results"]] == ["sent", "consumed", "bytes through a pipe"]
    for result in found["results"]:
        unit = "bytes" if result["name"] == "bytes through a pipe" else "records"
        assert len(result[f"{unit}_per_second_of_rounds"]) == found["rounds"]
        assert min(result[f"{unit}_per_second_of_rounds"]) > 0
    assert found["partitions"] == (6 if "--partitions" in options else found["workload"]["processes"])
    assert list(folder.iterdir()) == []


def test_pipeline_at_the_default_level(folder: Path) -> None:
    shown = run("bench", "pipeline", folder, *QUICK).stdout
    for expected in ("pipeline: 1 process", "durability group, 1 partition", "sent", "consumed", "through a pipe"):
        assert expected in shown


def test_pipeline_shows_a_bar_on_a_terminal(folder: Path) -> None:
    code, shown = run_on_terminal("bench", "pipeline", folder, *QUICK, "--durability", "os")
    assert code == 0
    assert "measuring" in shown


def test_pipeline_tells_when_records_are_missing() -> None:
    from fastlog.cli.bench import _add_pipeline
    from fastlog.cli.workers import WorkerError

    with pytest.raises(WorkerError, match="3 records were sent, and 2 arrived"):
        _add_pipeline([{"records": 3, "began": 0, "ended": 1}], [{"records": 2, "ended": 1}], [])


def test_partitions_of_a_pipeline_are_shared_out_evenly(folder: Path) -> None:
    result = run("bench", "pipeline", folder, *QUICK, "--processes", 2, "--partitions", 3)
    assert result.exit_code == 2
    assert "multiple of the 2 processes" in result.stderr


@pytest.mark.parametrize("codec", ["gzip", "snappy", "lz4", "zstd"])
def test_codecs(folder: Path, codec: str) -> None:
    measured("append", folder, *QUICK, "--batch", 10, "--compression", codec, "--durability", "os")
    measured("read", folder, *QUICK, "--compression", codec)


def test_text_is_a_table(folder: Path) -> None:
    result = run("bench", "append", folder, *QUICK, "--durability", "os")
    assert result.exit_code == 0
    assert "1 process, 1 thread, 1,000 x 100 B per call, durability os" in result.stdout
    for expected in ("fastlog", "bare write", "records/s", "p99", "medians of 5 rounds"):
        assert expected in result.stdout
    shown = run("bench", "read", folder, *QUICK).stdout
    for expected in ("columns", "list[bytes]", "Record objects", "bare read"):
        assert expected in shown
    assert run("bench", "append", folder, *QUICK, "--quiet").stdout == ""


def test_text_of_latency(folder: Path) -> None:
    shown = run("bench", "latency", folder, *QUICK, "--durability", "os").stdout
    for expected in ("append to wake-up", "byte through a pipe", "p50", "p99", "max", "200 wake-ups"):
        assert expected in shown


def test_a_bar_on_a_terminal_only(folder: Path) -> None:
    result = run_process("bench", "append", folder, *QUICK)
    assert result.returncode == 0
    assert result.stderr == ""
    code, shown = run_on_terminal("bench", "append", folder, *QUICK)
    assert code == 0
    assert "measuring" in shown


def test_nothing_is_written_into_a_partition(folder: Path) -> None:
    path = make_log(folder / "events-0")
    before = contents(path)
    for verb in ("append", "latency", "pipeline"):
        result = run("bench", verb, path, *QUICK)
        assert result.exit_code == 2
        assert "is a partition" in result.stderr
    assert contents(path) == before


@pytest.mark.parametrize(
    "options",
    [
        *(["--batch", "0"], ["--size", "0"], ["--size", "many"], ["--size", "1GiB"], ["--durability", "maybe"]),
        *(
            ["--threads", "0"],
            ["--processes", "1000"],
            ["--compression", "zip"],
            ["--seconds", "0"],
            ["--records", "-1"],
        ),
    ],
)
def test_wrong_usage_is_exit_code_2(folder: Path, options: list[str]) -> None:
    assert run("bench", "append", folder, *options).exit_code == 2
    assert list(folder.iterdir()) == []


def test_an_error_of_a_worker_is_one_line_and_exit_code_3(folder: Path) -> None:
    """Its files may not grow as large as a round needs."""
    limit = 1 << 16
    result = run_process(
        "bench", "append", folder, *QUICK, "--size", "4KiB",
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit)),
    )  # fmt: skip
    assert result.returncode == 3
    assert result.stderr.startswith("fastlog: error: ")
    assert result.stderr.count("\n") == 1
    assert list(folder.iterdir()) == []


def test_an_empty_log_cannot_be_read(folder: Path) -> None:
    fastlog.PartitionLog.open(folder / "events-0").close()
    result = run("bench", "read", folder / "events-0", *QUICK)
    assert result.exit_code == 2
    assert "no record" in result.stderr


def test_an_interrupt_leaves_nothing(folder: Path) -> None:
    command = [sys.executable, "-m", "fastlog", "bench", "append", str(folder), "--seconds", "60"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        while not [path for path in folder.rglob("*.log") if path.stat().st_size]:
            assert process.poll() is None
        process.send_signal(signal.SIGINT)
        _, shown = process.communicate(timeout=60)
    assert process.returncode == 130
    assert shown == "fastlog: interrupted\n"
    assert list(folder.iterdir()) == []


def test_a_worker_that_dies_is_an_error() -> None:
    from fastlog.cli.workers import WorkerError, workers

    with workers(()) as (worker,):
        worker._process.kill()
        worker._process.wait()
        with pytest.raises(WorkerError, match="exit code -9"):
            worker.ask("close")


def test_values_are_as_asked_for() -> None:
    from fastlog.cli.workers import values_of

    for text in (False, True):
        values = values_of(100, 50, text)
        assert [len(value) for value in values] == [100] * 50
        assert len(set(values)) == 50
    assert values_of(1, 3, True) == [b"{"] * 3
