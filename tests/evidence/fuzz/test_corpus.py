"""The kept inputs of the fuzzer, taken again without it: whatever was found once is not there any more."""

from __future__ import annotations

import importlib
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from tests.evidence.engines import ENGINES
from tests.evidence.fuzz import FOLDER, TARGETS, Driver, building, corpus, plain
from tests.evidence.fuzz.corpus import CORPUS
from tests.evidence.run import NotHere
from tests.folders import MEMORY

MOST_BYTES = 300_000


@pytest.fixture(autouse=True)
def folder(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    name = tempfile.mkdtemp(prefix="fastlog-corpus-", dir=MEMORY)
    monkeypatch.setenv(FOLDER, name)
    yield name
    shutil.rmtree(name)


@pytest.fixture(scope="session")
def native() -> Any:
    """The compiled targets, beside the fastlog that is tested."""
    try:
        place = str(building.build_plain())
    except NotHere as problem:
        pytest.skip(str(problem))
    sys.path.insert(0, place)
    try:
        return importlib.import_module(building.TARGETS_MODULE)
    finally:
        sys.path.remove(place)


def takes(name: str, native: Any) -> Callable[[bytes], None]:
    if TARGETS[name].driver is not Driver.COMPILED:
        return lambda content: plain.take_input(name, content)
    if name == "indexes":
        native.use_pristine(corpus.small_segment())
    return lambda content: native.take_input(name, content)


@pytest.mark.parametrize("name", TARGETS)
def test_kept_inputs_are_answered(name: str, native: Any) -> None:
    take = takes(name, native)
    inputs = corpus.kept(name)
    assert inputs
    for file in inputs:
        try:
            take(file.read_bytes())
        except BaseException as problem:
            problem.add_note(f"the input is {file}")
            raise


@pytest.mark.parametrize("name", TARGETS)
def test_what_our_writers_make_today_is_answered(name: str, native: Any) -> None:
    """And as many were kept: else ``python -m tests.evidence.fuzz.corpus make``."""
    made = corpus.made(name)
    assert len(made) == sum(file.name.startswith("made-") for file in corpus.kept(name))
    take = takes(name, native)
    for content in made:
        take(content)


def test_the_corpus_stays_small() -> None:
    assert {folder.name for folder in CORPUS.iterdir()} == set(TARGETS)
    assert sum(file.stat().st_size for file in CORPUS.rglob("*")) < MOST_BYTES


def test_the_short_tier_comes_to_every_target() -> None:
    turns = [target.runs for target in TARGETS.values()]
    inputs = sum(len(corpus.kept(name)) for name in TARGETS)
    assert sum(turns) - min(turns) + inputs < ENGINES["fuzz"].ci <= sum(turns)


def test_a_wrong_answer_is_noticed(native: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a target raises that is none of fastlog's comes out."""
    monkeypatch.setattr(native, "scan", lambda *arguments, **options: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        native.take_input("segments", corpus.kept("segments")[0].read_bytes())
    monkeypatch.setitem(plain.TARGETS, "finished", lambda data: None if data else 1 / 0)
    with pytest.raises(ZeroDivisionError):
        plain.take_input("finished", b"")
