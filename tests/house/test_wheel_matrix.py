"""The wheels that a release has: asked of cibuildwheel itself, which builds nothing here."""

from __future__ import annotations

import os
import subprocess
import sys
import tomllib

import pytest

from tests.house.sources import ROOT, read

PYTHONS = ("cp311", "cp312", "cp313", "cp314")
EXPECTED = {
    "linux": {
        f"{python}-{libc}_{machine}"
        for python in PYTHONS
        for libc in ("manylinux", "musllinux")
        for machine in ("x86_64", "aarch64")
    },
    "macos": {f"{python}-macosx_{machine}" for python in PYTHONS for machine in ("x86_64", "arm64")},
}


@pytest.mark.parametrize("platform", EXPECTED)
def test_identifiers(platform: str) -> None:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("CIBW_")}
    run = subprocess.run(
        [sys.executable, "-m", "cibuildwheel", "--platform", platform, "--print-build-identifiers", str(ROOT)],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 0, run.stderr
    identifiers = run.stdout.split()
    assert len(identifiers) == len(set(identifiers))
    assert set(identifiers) == EXPECTED[platform]


def test_wheels_stand_on_the_promised_systems() -> None:
    settings = tomllib.loads(read(ROOT / "pyproject.toml"))["tool"]["cibuildwheel"]
    images = {name: image for name, image in settings["linux"].items() if name.endswith("-image")}
    assert images == {
        f"{libc}-{machine}-image": image
        for libc, image in (("manylinux", "manylinux_2_28"), ("musllinux", "musllinux_1_2"))
        for machine in ("x86_64", "aarch64")
    }
    assert "pytest" in settings["test-command"], "every wheel has the suite run in it"


def test_metadata_names_the_same_pythons() -> None:
    project = tomllib.loads(read(ROOT / "pyproject.toml"))["project"]
    prefix = "Programming Language :: Python :: 3."
    named = {f"cp3{line.removeprefix(prefix)}" for line in project["classifiers"] if line.startswith(prefix)}
    assert named == set(PYTHONS)
    assert project["requires-python"] == ">=3.11"
