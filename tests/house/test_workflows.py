"""The workflows: pinned, with the least rights, and calling what exists."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.house.sources import ROOT, place, read

WORKFLOWS = sorted((ROOT / ".github" / "workflows").glob("*.yml"))
NAMES = [path.name for path in WORKFLOWS]


def load(path: Path) -> dict[str, Any]:
    content = yaml.safe_load(read(path))
    assert isinstance(content, dict)
    return content


def steps(content: dict[str, Any]) -> list[dict[str, Any]]:
    return [step for job in content["jobs"].values() for step in job["steps"]]


def test_the_three_are_there() -> None:
    assert NAMES == ["nightly.yml", "tests.yml", "wheels.yml"]


@pytest.mark.parametrize("path", WORKFLOWS, ids=NAMES)
def test_every_action_is_pinned(path: Path) -> None:
    """A tag can be moved; a commit cannot. The tag stands beside it, for people."""
    used = [step["uses"] for step in steps(load(path)) if "uses" in step]
    lines = re.findall(r"uses:\s*(\S+)(.*)", read(path))
    assert used
    assert sorted(used) == sorted(name for name, _ in lines)
    for name, rest in lines:
        assert re.fullmatch(r"[\w.-]+/[\w./-]+@[0-9a-f]{40}", name), f"{place(path)}: {name} is not pinned by a commit"
        assert re.fullmatch(r"\s+# v\d+\.\d+\.\d+", rest), f"{place(path)}: say which tag {name} is"


@pytest.mark.parametrize("path", WORKFLOWS, ids=NAMES)
def test_least_rights(path: Path) -> None:
    content = load(path)
    assert content["permissions"] == {"contents": "read"}
    for name, job in content["jobs"].items():
        granted = job.get("permissions", {})
        writes = {right for right, level in granted.items() if level == "write"}
        allowed = {"id-token", "attestations"} if (path.name, name) == ("wheels.yml", "publish") else set[str]()
        assert writes <= allowed, f"{place(path)}, job {name}: may write {sorted(writes - allowed)}"
    for step in steps(content):
        if step.get("uses", "").startswith("actions/checkout@"):
            assert step["with"]["persist-credentials"] is False


@pytest.mark.parametrize("path", WORKFLOWS, ids=NAMES)
def test_no_job_runs_for_ever(path: Path) -> None:
    for name, job in load(path)["jobs"].items():
        assert "timeout-minutes" in job, f"{place(path)}, job {name}"


def test_publishing_wants_a_tag_and_every_wheel() -> None:
    publish = load(ROOT / ".github" / "workflows" / "wheels.yml")["jobs"]["publish"]
    assert publish["if"] == "startsWith(github.ref, 'refs/tags/v')"
    assert set(publish["needs"]) == {"sdist", "wheels"}
    assert publish["environment"] == "pypi"
    assert "secrets." not in read(ROOT / ".github" / "workflows" / "wheels.yml")


def test_every_python_is_tested() -> None:
    matrix = load(ROOT / ".github" / "workflows" / "tests.yml")["jobs"]["matrix"]["strategy"]["matrix"]
    assert matrix["python"] == ["3.11", "3.12", "3.13", "3.14"]
    assert {system.split("-")[0] for system in matrix["system"]} == {"ubuntu", "macos"}


def test_every_make_target_that_is_named_exists() -> None:
    targets = set(re.findall(r"^([a-z]+):", read(ROOT / "Makefile"), re.MULTILINE))
    assert {"demo", "test", "bench", "lint", "wheel", "nightly", "clean", "help"} <= targets
    called: list[tuple[str, str]] = []
    for path in [*WORKFLOWS, ROOT / ".ci" / "run"]:
        called += [(place(path), name) for name in re.findall(r"\bmake ([a-z]+)\b", read(path))]
    for path in [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("**/*.md"))]:
        called += [(place(path), name) for name in re.findall(r"(?:^|`)make ([a-z]+)\b", read(path), re.MULTILINE)]
    missing = [f"{where}: make {name}" for where, name in called if name not in targets]
    assert not missing, "\n".join(missing)
    assert (".ci/run", "test") in called
