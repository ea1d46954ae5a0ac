"""The compiled code is what ran: no Python twin, no left-over of a room that is gone."""

from __future__ import annotations

import importlib
from importlib.machinery import EXTENSION_SUFFIXES, ExtensionFileLoader
from pathlib import Path

import pytest

import fastlog
from tests.house.sources import module_name, source_files

ROOMS = [module_name(path) for path in source_files(".pyx")]


@pytest.mark.parametrize("name", ROOMS)
def test_room_is_compiled(name: str) -> None:
    module = importlib.import_module(name)
    assert module.__file__ is not None
    assert module.__file__.endswith(tuple(EXTENSION_SUFFIXES)), f"{name} ran from {module.__file__}"
    assert module.__spec__ is not None
    assert isinstance(module.__spec__.loader, ExtensionFileLoader)
    stem = Path(module.__file__).name.split(".")[0]
    assert not Path(module.__file__).with_name(f"{stem}.py").exists(), f"{name} has a Python twin"


def test_the_public_classes_are_the_compiled_ones() -> None:
    for owner in (fastlog.PartitionLog, fastlog.RecordBatch):
        assert importlib.import_module(owner.__module__).__file__.endswith(tuple(EXTENSION_SUFFIXES))  # type: ignore[union-attr]
    assert type(fastlog.PartitionLog.append).__name__ == "cython_function_or_method"


def test_all_rooms_come_from_one_build() -> None:
    """One folder for all: not some from the source tree and some from an installed wheel."""
    home = Path(fastlog.__file__).resolve().parent
    for name in ROOMS:
        found = Path(importlib.import_module(name).__file__ or "").resolve()
        assert found.parent == home.joinpath(*name.split(".")[1:-1]), f"{name} comes from {found}"


def test_no_compiled_module_without_a_source() -> None:
    home = Path(fastlog.__file__).resolve().parent
    orphans = [
        path.name
        for path in home.rglob("*.so")
        if ".".join(("fastlog", *path.relative_to(home).parts))[: -len("".join(path.suffixes))] not in ROOMS
    ]
    assert not orphans, f"left over from sources that are gone (make clean): {orphans}"
