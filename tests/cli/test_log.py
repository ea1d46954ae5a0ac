"""``fastlog log``: what it prints, what it changes, how it exits."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

import fastlog
from tests.cli.support import (
    RECORDS,
    RECORDS_PER_BATCH,
    contents,
    flip_byte,
    make_log,
    run,
    run_on_terminal,
    run_process,
)

FIRST_SEGMENT = f"{0:020d}.log"


@pytest.fixture
def path(folder: Path) -> Path:
    return make_log(folder / "events-0")


def json_lines(text: str) -> list[dict[str, object]]:
    return [json.loads(line) for line in text.splitlines()]


def damage_second_batch(path: Path) -> int:
    """Flip one byte in the records of the second batch; return the position of that batch."""
    second = list(fastlog.scan_segment(path / FIRST_SEGMENT))[1]
    flip_byte(path / FIRST_SEGMENT, second.position + 80)
    return second.position


# --- dump -----------------------------------------------------------------------------------------


def test_dump_prints_every_batch(path: Path) -> None:
    result = run("log", "dump", path)
    assert result.exit_code == 0
    assert result.stdout.startswith(FIRST_SEGMENT)
    for batch in fastlog.scan_segment(path / FIRST_SEGMENT):
        line = next(line for line in result.stdout.splitlines() if line.split()[:1] == [str(batch.position)])
        assert f"{batch.base_offset}-{batch.last_offset}" in line
        assert line.split()[1] == str(batch.size)
        assert line.endswith("ok")
    assert "value-0" not in result.stdout


def test_dump_of_records_equals_the_log(path: Path) -> None:
    result = run("log", "dump", path, "--records", "--json")
    assert result.exit_code == 0
    lines = json_lines(result.stdout)
    assert [line["kind"] for line in lines[: RECORDS_PER_BATCH + 2]] == [
        "batch",
        *["record"] * RECORDS_PER_BATCH,
        "batch",
    ]
    printed = [line for line in lines if line["kind"] == "record"]
    with fastlog.PartitionLog.open(path, read_only=True) as log:
        expected = [
            {
                "kind": "record",
                "offset": record.offset,
                "timestamp": record.timestamp,
                "timestamp_type": "create",
                "key": None if record.key is None else record.key.decode(),
                "value": (record.value or b"").decode(),
                "headers": [["source", "test"]],
            }
            for record in log.records()
        ]
    assert printed == expected
    assert len(expected) == RECORDS


def test_dump_start_and_stop_choose_offsets(path: Path) -> None:
    lines = json_lines(run("log", "dump", path, "--records", "--json", "--start", 8, "--stop", 21).stdout)
    assert [line["offset"] for line in lines if line["kind"] == "record"] == list(range(8, 21))
    assert [line["base_offset"] for line in lines if line["kind"] == "batch"] == [0, 10, 20]
    assert json_lines(run("log", "dump", path, "--json", "--start", 10, "--stop", 10).stdout) == []
    assert run("log", "dump", path, "--start", 5, "--stop", 4).exit_code == 2


def test_dump_goes_from_segment_to_segment(folder: Path) -> None:
    path = make_log(folder / "events-0", segment_bytes=600)
    files = sorted(file.name for file in path.glob("*.log"))
    assert len(files) == RECORDS // RECORDS_PER_BATCH
    result = run("log", "dump", path)
    assert [line for line in result.stdout.splitlines() if line.endswith(".log")] == files
    lines = json_lines(run("log", "dump", path, "--records", "--json", "--start", 9, "--stop", 11).stdout)
    assert [line["offset"] for line in lines if line["kind"] == "record"] == [9, 10]


@pytest.mark.parametrize(
    ("form", "shown", "in_json"),
    [
        (
            "text",
            ["café", "<null>", "<empty>", "\\xff\\x00A", "line\\nbreak"],
            ["café", None, "", {"base64": "/wBB"}, "line\nbreak"],
        ),
        (
            "hex",
            ["636166c3a9", "<null>", "", "ff0041", "6c696e650a627265616b"],
            ["636166c3a9", None, "", "ff0041", "6c696e650a627265616b"],
        ),
        (
            "base64",
            ["Y2Fmw6k=", "<null>", "", "/wBB", "bGluZQpicmVhaw=="],
            ["Y2Fmw6k=", None, "", "/wBB", "bGluZQpicmVhaw=="],
        ),
    ],
)
def test_dump_formats_bytes(folder: Path, form: str, shown: list[str], in_json: list[object]) -> None:
    path = folder / "events-0"
    with fastlog.PartitionLog.open(path, durability="os") as log:
        values = ["café".encode(), None, b"", b"\xff\x00A", b"line\nbreak"]
        log.append(values, keys=[b"key"] * len(values), timestamps=1_700_000_000_000)
    plain = run("log", "dump", path, "--records", "--format", form).stdout
    key = {"text": "key", "hex": b"key".hex(), "base64": "a2V5"}[form]
    assert [line.partition(f"  {key}  ")[2] for line in plain.splitlines() if f"  {key}  " in line] == shown
    lines = json_lines(run("log", "dump", path, "--records", "--format", form, "--json").stdout)
    assert [line["value"] for line in lines if line["kind"] == "record"] == in_json


def test_dump_takes_a_file_alone(path: Path, folder: Path) -> None:
    copy = folder / FIRST_SEGMENT
    copy.write_bytes((path / FIRST_SEGMENT).read_bytes())
    assert run("log", "dump", copy, "--records").stdout == run("log", "dump", path, "--records").stdout
    assert run("log", "dump", path / "leader-epoch-checkpoint").exit_code == 2


def test_dump_prints_index_entries_that_point_at_batches(folder: Path) -> None:
    path = make_log(folder / "events-0", index_interval_bytes=1)
    batches = {batch.position: batch for batch in fastlog.scan_segment(path / FIRST_SEGMENT)}
    entries = json_lines(run("log", "dump", path / f"{0:020d}.index", "--json").stdout)
    assert len(entries) == len(batches) - 1
    for entry in entries:
        assert entry["kind"] == "index_entry"
        assert entry["offset"] == batches[entry["position"]].last_offset  # type: ignore[index]
    times = json_lines(run("log", "dump", path / f"{0:020d}.timeindex", "--json").stdout)
    by_last_offset = {batch.last_offset: batch.max_timestamp for batch in batches.values()}
    assert times
    assert all(by_last_offset[entry["offset"]] == entry["timestamp"] for entry in times)  # type: ignore[index]
    assert len(run("log", "dump", path / f"{0:020d}.index").stdout.splitlines()) == len(entries)
    assert run("log", "dump", path / f"{0:020d}.index", "--records").exit_code == 2


def test_dump_works_on_a_log_in_use(folder: Path) -> None:
    with fastlog.PartitionLog.open(folder / "events-0", durability="os") as log:
        log.append([b"a", b"b"])
        lines = json_lines(run("log", "dump", folder / "events-0", "--records", "--json").stdout)
    assert [line["value"] for line in lines if line["kind"] == "record"] == ["a", "b"]


def test_dump_shows_damage_and_goes_on(path: Path) -> None:
    position = damage_second_batch(path)
    result = run("log", "dump", path, "--records", "--json")
    assert result.exit_code == 1
    lines = json_lines(result.stdout)
    damaged = [line for line in lines if line["kind"] == "batch" and not line["is_valid"]]
    assert [line["position"] for line in damaged] == [position]
    offsets = [line["offset"] for line in lines if line["kind"] == "record"]
    assert offsets == [*range(10), *range(20, 30)]
    text = run("log", "dump", path)
    assert text.exit_code == 1
    assert "damaged" in text.stdout


def test_dump_into_a_closed_pipe_ends_quietly(folder: Path) -> None:
    with fastlog.PartitionLog.open(folder / "events-0", durability="os") as log:
        log.append([b"x" * 100] * 20_000)
    command = [sys.executable, "-m", "fastlog", "log", "dump", str(folder / "events-0"), "--records"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.readline()
        process.stdout.close()
        assert process.stderr.read() == b""
        assert process.wait(60) == 141


# --- verify and repair ----------------------------------------------------------------------------


def test_verify_of_a_sound_log(path: Path) -> None:
    before = contents(path)
    result = run("log", "verify", path)
    assert result.exit_code == 0
    assert "3 batches, 30 records" in result.stdout
    report = json.loads(run("log", "verify", path, "--json").stdout)
    assert report["ok"] is True
    assert (report["start_offset"], report["end_offset"], report["records"]) == (0, RECORDS, RECORDS)
    assert report["damages"] == report["index_problems"] == []
    assert report["recovery"] is None
    assert contents(path) == before


def test_i6_damage_is_named_and_only_a_confirmed_repair_changes_anything(path: Path) -> None:
    position = damage_second_batch(path)
    damaged = contents(path)
    size = list(fastlog.scan_segment(path / FIRST_SEGMENT))[1].size

    found = run("log", "verify", path)
    assert found.exit_code == 1
    assert str(path / FIRST_SEGMENT) in found.stdout
    assert f"position {position}" in found.stdout
    assert "offsets 10 to 19" in found.stdout
    assert f"fastlog log repair {path}" in found.stdout
    assert run("log", "verify", path, "--quiet").stdout == ""
    report = json.loads(run("log", "verify", path, "--json").stdout)
    assert report["ok"] is False
    assert [(damage["position"], damage["first_offset"], damage["next_offset"]) for damage in report["damages"]] == [
        (position, 10, 20)
    ]

    for options in ([], ["--json"], ["--quiet"]):
        plan = run("log", "repair", path, *options)
        assert plan.exit_code == 1
        assert "--yes" in plan.stderr
        assert contents(path) == damaged
    assert json.loads(run("log", "repair", path, "--json").stdout)["repaired"] is False
    assert f"position {position}" in run("log", "repair", path).stdout

    repaired = run("log", "repair", path, "--yes", "--json")
    assert repaired.exit_code == 0
    report = json.loads(repaired.stdout)
    assert report["repaired"] is True
    side_files = [Path(file) for file in report["report"]["side_files"]]
    assert damaged[FIRST_SEGMENT][position : position + size] in [file.read_bytes() for file in side_files]

    assert run("log", "verify", path).exit_code == 0
    with fastlog.PartitionLog.open(path, read_only=True) as log:
        assert [record.offset for record in log.records()] == [*range(10), *range(20, 30)]
    assert "nothing to repair" in run("log", "repair", path).stdout


def test_i6_a_log_that_cannot_be_opened_is_a_problem_that_repair_solves(folder: Path) -> None:
    path = make_log(folder / "events-0", segment_bytes=600)
    last = sorted(path.glob("*.log"))[-1]
    last.unlink()
    found = run("log", "verify", path)
    assert found.exit_code == 1
    assert "PROBLEM" in found.stdout
    assert str(path) in found.stdout
    report = json.loads(run("log", "verify", path, "--json").stdout)
    assert report["ok"] is False
    assert report["obstacle"]
    assert run("log", "repair", path).exit_code == 1
    assert not last.exists()
    assert run("log", "repair", path, "--yes").exit_code == 0
    assert run("log", "verify", path).exit_code == 0
    statistics = json.loads(run("log", "stats", path, "--json").stdout)
    assert statistics["gaps"] == [{"offset": 20, "next_offset": 30}]
    assert statistics["end_offset"] == RECORDS


def test_a_torn_tail_is_no_damage(folder: Path) -> None:
    path = make_log(folder / "events-0")
    (path / ".fastlog-clean").unlink()
    with open(path / FIRST_SEGMENT, "ab") as segment:
        segment.write(b"torn")
    for verb in ("verify", "repair"):
        result = run("log", verb, path)
        assert result.exit_code == 0
        assert "a torn tail of 4 bytes" in result.stdout


def test_repair_asks_on_a_terminal(path: Path) -> None:
    damage_second_batch(path)
    damaged = contents(path)
    code, shown = run_on_terminal("log", "repair", path, answer="n")
    assert code == 1
    assert "Go ahead? [y/N]" in shown
    assert contents(path) == damaged
    code, shown = run_on_terminal("log", "repair", path, answer="y")
    assert code == 0
    assert "kept the damaged bytes in" in shown
    assert run("log", "verify", path).exit_code == 0


def test_repair_prints_what_it_kept(path: Path) -> None:
    damage_second_batch(path)
    result = run("log", "repair", path, "--yes")
    assert result.exit_code == 0
    assert "kept the damaged bytes in" in result.stdout
    assert "repaired" in result.stdout


def test_i7_index_problems_exit_1_and_are_repaired(folder: Path) -> None:
    path = make_log(folder / "events-0", index_interval_bytes=1)
    flip_byte(path / f"{0:020d}.index", 7)
    result = run("log", "verify", path)
    assert result.exit_code == 1
    assert f"{0:020d}.index" in result.stdout
    assert "indexes are hints" in result.stdout
    assert run("log", "repair", path, "--yes").exit_code == 0
    assert run("log", "verify", path).exit_code == 0


# --- stats ----------------------------------------------------------------------------------------


def test_stats_count_what_is_there(folder: Path) -> None:
    path = make_log(folder / "events-0", segment_bytes=600, index_interval_bytes=1)
    report = json.loads(run("log", "stats", path, "--json").stdout)
    total = sum(file.stat().st_size for file in path.glob("*.log"))
    assert (report["start_offset"], report["end_offset"]) == (0, RECORDS)
    assert (report["records"], report["batches"], len(report["segments"])) == (RECORDS, 3, 3)
    assert report["bytes"] == total
    assert report["bytes_per_record"] == pytest.approx(total / RECORDS)
    assert report["first_timestamp"] == 1_700_000_000_000
    assert report["largest_timestamp"] == 1_700_000_029_000
    assert report["gaps"] == []
    assert [segment["base_offset"] for segment in report["segments"]] == [0, 10, 20]
    assert [segment["records"] for segment in report["segments"]] == [10, 10, 10]
    assert all(segment["time_index_entries"] >= 1 for segment in report["segments"])
    text = run("log", "stats", path).stdout
    for expected in ("0 to 30", "30 in 3 batches", "3 segments", "2023-11-14T22:13:20.000Z", "none (3)"):
        assert expected in text


def test_stats_show_gaps_and_damage(path: Path) -> None:
    damage_second_batch(path)
    assert json.loads(run("log", "stats", path, "--json").stdout)["damaged_bytes"] > 0
    assert "damaged" in run("log", "stats", path).stdout
    run("log", "repair", path, "--yes")
    report = json.loads(run("log", "stats", path, "--json").stdout)
    assert report["damaged_bytes"] == 0
    assert report["gaps"] == [{"offset": 10, "next_offset": 20}]
    assert "1 gap, 10 offsets missing: 10-19" in run("log", "stats", path).stdout


def test_stats_of_an_empty_log(folder: Path) -> None:
    fastlog.PartitionLog.open(folder / "events-0").close()
    report = json.loads(run("log", "stats", folder / "events-0", "--json").stdout)
    assert (report["records"], report["end_offset"], report["bytes_per_record"]) == (0, 0, None)
    assert run("log", "stats", folder / "events-0").exit_code == 0


# --- errors, exit codes, manners ------------------------------------------------------------------


@pytest.mark.parametrize("verb", ["dump", "verify", "repair", "stats"])
def test_a_foreign_folder_is_one_line_and_exit_code_3(folder: Path, verb: str) -> None:
    (folder / "notes.txt").write_text("mine")
    result = run_process("log", verb, folder)
    assert result.returncode == 3
    assert result.stdout == ""
    assert result.stderr.startswith("fastlog: error: ")
    assert str(folder) in result.stderr
    assert result.stderr.count("\n") == 1
    assert [file.name for file in folder.iterdir()] == ["notes.txt"]


@pytest.mark.parametrize("verb", ["dump", "verify", "repair", "stats"])
def test_wrong_usage_is_exit_code_2(folder: Path, verb: str) -> None:
    assert run("log", verb, folder / "nowhere").exit_code == 2
    assert run("log", verb).exit_code == 2
    assert run("log", verb, folder, "--no-such-option").exit_code == 2


def test_an_operating_system_error_is_one_line_and_exit_code_3(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*arguments: object, **options: object) -> None:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(fastlog, "scan_segment", refuse)
    result = run("log", "stats", path)
    assert result.exit_code == 3
    assert result.stderr == f"fastlog: error: {path}: Permission denied\n"


def test_repair_of_a_log_in_use_is_refused(folder: Path) -> None:
    with fastlog.PartitionLog.open(folder / "events-0", durability="os", exclusive=True) as log:
        log.append([b"a"])
        result = run_process("log", "repair", folder / "events-0", "--yes")
    assert result.returncode == 3
    assert str(os.getpid()) in result.stderr


def test_an_interrupt_is_exit_code_130(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(*arguments: object, **options: object) -> None:
        signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr(fastlog, "scan_segment", interrupt)
    # in the background of a shell it would be ignored
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        result = run("log", "stats", path)
    finally:
        signal.signal(signal.SIGINT, before)
    assert result.exit_code == 130
    assert result.stderr == "fastlog: interrupted\n"


def test_a_pipe_gets_plain_text(path: Path) -> None:
    damage_second_batch(path)
    for verb in ("dump", "verify", "stats", "repair"):
        result = run_process("log", verb, path, env={**os.environ, "FORCE_COLOR": ""})
        assert "\x1b" not in result.stdout + result.stderr


def test_a_terminal_gets_colours_unless_they_are_not_wanted(path: Path) -> None:
    _, shown = run_on_terminal("log", "verify", path)
    assert "\x1b[32mok" in shown
    _, shown = run_on_terminal("log", "verify", path, NO_COLOR="1")
    assert "\x1b[3" not in shown
    code, shown = run_on_terminal("log", "stats", path)
    assert code == 0
    assert FIRST_SEGMENT in shown


def test_version_and_help() -> None:
    result = run_process("--version")
    assert result.stdout == f"fastlog {fastlog.__version__}\n"
    assert run_process("log", "--help").stdout.startswith("Usage: fastlog log ")
    groups = [
        "",
        "log",
        "log dump",
        "log verify",
        "log repair",
        "log stats",
        "demo",
        "demo log",
        "demo pipeline",
        "doctor",
        "topics",
        "topics list",
        "produce",
        "consume",
        "groups",
        "groups reset",
        "run",
    ]
    for words in [*groups, "bench", "bench append", "bench read", "bench latency"]:
        result = run(*words.split(), "--help", prog_name="fastlog")
        assert result.exit_code == 0
        assert "Usage: fastlog" in result.stdout


def test_import_of_fastlog_loads_neither_click_nor_rich() -> None:
    code = "import sys, fastlog; print([name for name in ('click', 'rich', 'duckdb') if name in sys.modules])"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout == "[]\n"
