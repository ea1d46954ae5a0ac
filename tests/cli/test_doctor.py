"""``fastlog doctor``: every fact is there, what is missing is named, nothing is touched."""

from __future__ import annotations

import importlib
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import fastlog
from tests.cli.support import contents, make_log, run, run_on_terminal

DOCTOR: Any = importlib.import_module("fastlog.cli.doctor")  # the module: its name in the package is the command
LOCKS_ARE_LISTED = Path("/proc/locks").exists()
ALLOWED = {"ext4", "xfs", "btrfs", "f2fs", "zfs", "tmpfs", "overlayfs", "apfs"}


def examined(path: Path | str, exit_code: int | None = None) -> dict[str, Any]:
    result = run("doctor", path, "--json")
    assert result.exit_code in (0, 1) if exit_code is None else result.exit_code == exit_code, result.output
    found: dict[str, Any] = json.loads(result.stdout)
    assert found["ok"] is (result.exit_code == 0)
    return found


def pretend(monkeypatch: pytest.MonkeyPatch, **changes: Any) -> None:
    """Have ``fastlog.diagnose`` find something else."""
    real = fastlog.diagnose
    monkeypatch.setattr(fastlog, "diagnose", lambda path=None: {**real(path), **changes})


def test_doctor_has_every_fact(folder: Path) -> None:
    found = examined(folder)
    assert found["versions"]["python"].startswith(".".join(map(str, sys.version_info[:3])))
    assert found["versions"]["fastlog"].startswith(fastlog.__version__)
    assert found["versions"]["numpy"]
    assert found["crc32c"]
    assert isinstance(found["futex"], bool)
    assert found["locks"]["flock"] is True
    assert found["partition"] is None
    assert len(found["sync"]["seconds"]) > 5
    assert 0 < min(found["sync"]["seconds"]) <= found["sync"]["median_seconds"] <= max(found["sync"]["seconds"])
    if sys.platform == "linux":
        assert found["futex"] is found["ofd_locks"] is True
        assert found["locks"]["open_file_description"] is True
        assert found["boot_id"] == Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    assert list(folder.iterdir()) == []


@pytest.mark.skipif(sys.platform != "linux", reason="df tells the kind of a file system on Linux")
@pytest.mark.parametrize("place", ["/dev/shm", ".", "/proc"])
def test_the_file_system_is_the_one_that_df_names(place: str) -> None:
    names = subprocess.run(["stat", "-f", "-c", "%t %T", place], capture_output=True, text=True, check=False)
    if names.returncode != 0:
        pytest.skip(f"no {place} here")
    magic = int(names.stdout.split()[0], 16)
    found = fastlog.diagnose(place)
    assert found["file_system_magic"] == magic
    assert found["is_allowed"] is (found["file_system"] in ALLOWED)
    assert (found["file_system"] == "tmpfs") is (magic == 0x01021994)


def test_doctor_prints_what_it_found(folder: Path) -> None:
    result = run("doctor", folder)
    for expected in ("python", "numpy", str(folder), "file system", "boot id", "CRC-32C", "flock: in force", "4 KiB"):
        assert expected in result.stdout
    assert run("doctor", folder, "--quiet").stdout == ""
    assert run("doctor", folder / "nowhere").exit_code == 2
    assert run("doctor", folder, "extra").exit_code == 2


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"crc32c": "software"}, "by tables"),
        ({"futex": False}, "poll"),
        ({"file_system": "nfs", "file_system_magic": 0x6969, "is_allowed": False}, "nfs (0x6969)"),
    ],
)
def test_what_is_missing_is_named_and_exit_code_1(
    folder: Path, monkeypatch: pytest.MonkeyPatch, changes: dict[str, Any], named: str
) -> None:
    pretend(monkeypatch, **changes)
    found = examined(folder, exit_code=1)
    assert [problem for problem in found["problems"] if named in problem]
    shown = run("doctor", folder)
    assert shown.exit_code == 1
    assert [line for line in shown.stdout.splitlines() if "PROBLEM" in line and named in line]


def test_locks_that_do_not_hold_are_seen(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(DOCTOR.fcntl, "flock", lambda *arguments: None)
    found = examined(folder, exit_code=1)
    assert found["locks"]["flock"] is False
    monkeypatch.setattr(DOCTOR.fcntl, "fcntl", lambda file, command, argument: argument)
    assert examined(folder, exit_code=1)["locks"]["open_file_description"] is False


def test_a_file_system_in_memory_is_noted(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pretend(monkeypatch, file_system="tmpfs", file_system_magic=0x01021994, is_allowed=True)
    assert [note for note in examined(folder)["notes"] if "nothing there survives" in note]


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_that_cannot_be_written_is_noted(folder: Path) -> None:
    folder.chmod(0o500)
    found = examined(folder)
    assert found["sync"]["obstacle"]
    assert found["locks"]["flock"] is None


def test_no_file_to_try_with_is_a_note(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*arguments: object, **options: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(DOCTOR.tempfile, "NamedTemporaryFile", refuse)
    found = examined(folder)
    assert found["sync"]["median_seconds"] is None
    assert "Permission denied" in found["sync"]["obstacle"]
    assert [note for note in found["notes"] if "not tried" in note]


# --- partitions -----------------------------------------------------------------------------------


def test_a_closed_partition(folder: Path) -> None:
    path = make_log(folder / "events-0")
    before = contents(path)
    found = examined(path)["partition"]
    assert found["is_clean"] is True
    assert found["is_poisoned"] is False
    assert found["is_open"] in (False, None)
    assert found["pids"] == []
    assert (found["start_offset"], found["end_offset"], found["durable_offset"]) == (0, 30, 30)
    assert contents(path) == before
    assert sorted(entry.name for entry in folder.iterdir()) == ["events-0"]
    shown = run("doctor", path).stdout
    assert "closed cleanly" in shown
    assert "30" in shown


def test_a_partition_in_use(folder: Path) -> None:
    """Examining it needs no lock, gives none away, and says who has it and where it ends."""
    path = folder / "events-0"
    with fastlog.PartitionLog.open(path, durability="os") as log:
        log.append([b"a", b"secret payload"])
        log.flush()
        log.append([b"b"])
        found = examined(path)["partition"]
        assert found["is_clean"] is False
        assert found["is_open"] in (True, None)
        assert (found["start_offset"], found["end_offset"], found["durable_offset"]) == (0, 3, 2)
        assert found["page"]["opener_pid"] == os.getpid()
        assert found["page"]["is_dirty"] is False
        assert len(found["page"]["instance_id"]) == 32
        if LOCKS_ARE_LISTED:
            assert found["pids"] == [os.getpid()]
        for options in ([], ["--json"]):
            shown = run("doctor", path, *options).stdout
            assert found["page"]["instance_id"] in shown
            assert "secret" not in shown
        log.append([b"c"])
    assert examined(path)["partition"]["is_open"] in (False, None)


def test_a_page_that_nobody_is_attached_to_is_not_believed(folder: Path) -> None:
    path = folder / "events-0"
    with fastlog.PartitionLog.open(path, durability="os") as log:
        log.append([b"a"])
        page = (path / ".fastlog-control").read_bytes()
    (path / ".fastlog-control").write_bytes(page)
    found = examined(path)["partition"]
    if sys.platform == "linux":
        assert found["is_open"] is False
        assert found["page"] is None
        assert found["pids"] == []


def test_a_partition_that_is_open_exclusively(folder: Path) -> None:
    path = folder / "events-0"
    with fastlog.PartitionLog.open(path, durability="os", exclusive=True):
        found = examined(path)["partition"]
        assert found["is_open"] in (True, None)
        assert found["page"]["is_exclusive"] is True


def test_an_unclean_stop_is_a_note(folder: Path) -> None:
    path = make_log(folder / "events-0")
    (path / ".fastlog-clean").unlink()
    found = examined(path)
    assert found["partition"]["is_clean"] is False
    if found["partition"]["is_open"] is False:
        assert [note for note in found["notes"] if "not closed cleanly" in note]


def test_a_failed_sync_is_a_problem(folder: Path) -> None:
    path = make_log(folder / "events-0")
    (path / ".fastlog-poisoned").touch()
    found = examined(path, exit_code=1)
    assert found["partition"]["is_poisoned"] is True
    assert [problem for problem in found["problems"] if "sync" in problem]


@pytest.mark.parametrize("name", [".fastlog-control", ".fastlog-meta", ".fastlog-clean"])
@pytest.mark.parametrize("content", [b"", b"\0" * 4096, b"\xff" * 5000, b"00000000 {}\n", b'deadbeef {"meta": 1}\n'])
def test_damaged_state_files_stop_nothing(folder: Path, name: str, content: bytes) -> None:
    path = make_log(folder / "events-0")
    (path / name).write_bytes(content)
    assert examined(path)["partition"] is not None


def test_a_terminal_gets_colours(folder: Path) -> None:
    code, shown = run_on_terminal("doctor", folder)
    assert code in (0, 1)
    assert "\x1b[32mok" in shown
