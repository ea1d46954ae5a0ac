"""Planted mistakes apply to the sources as they are, and name what finds them."""

from __future__ import annotations

import re
from importlib.machinery import EXTENSION_SUFFIXES
from pathlib import Path
from typing import Any

import pytest

import fastlog
from tests.evidence import cuts
from tests.evidence.engines import BESIDE, ENGINES
from tests.evidence.fuzz import TARGETS
from tests.evidence.planted import MISTAKES, trial
from tests.evidence.planted.build import PACKAGE, DoesNotApplyError, edited, edited_sources
from tests.evidence.planted.mistake import SWITCH, Edit, Mistake
from tests.evidence.planted.trial import sample, seed_of_commit
from tests.evidence.run import PLANTED, ROOT, NotHere
from tests.evidence.suite import TESTS
from tests.power import FILE_SYSTEMS


def test_there_are_enough() -> None:
    assert len(MISTAKES) >= 40
    by_engine = [one.engine for one in MISTAKES.values()]
    assert {*ENGINES, "tests"} == set(by_engine), "an engine that no mistake was tried with has not shown that it bites"
    assert by_engine.count("tests") <= len(by_engine) * 2 // 3, "more of them for engines that look by themselves"


def test_every_mistake_applies() -> None:
    for file, text in edited_sources().items():
        assert SWITCH not in text.replace("FASTLOG_PLANTED", ""), file
        assert text != (PACKAGE / file).read_text()
        if file.endswith(".py"):
            compile(text, file, "exec")


@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake_is_told_and_switched(name: str) -> None:
    one = MISTAKES[name]
    assert re.fullmatch(r"[a-z0-9]+(?:_[a-z0-9]+)*", name)
    assert re.fullmatch(r"[A-Z].*[^.]\.", one.breaks) and len(one.breaks) < 110
    assert one.edits and 0 < one.budget <= 180
    assert any(SWITCH in edit.new for edit in one.edits)
    if one.engine == "tests":
        file, _, test = TESTS[one.scenario].partition("[")[0].partition("::")
        assert f"def {test}" in (ROOT / file).read_text()


def test_every_engine_and_scenario_is_there() -> None:
    wanted: dict[str, set[str]] = {}
    for one in MISTAKES.values():
        wanted.setdefault(one.engine, set()).add(one.scenario)
    # their scenarios are asked without making what they want: file systems, a build of clang's, a large log
    assert wanted.pop("cuts") <= {f"{system}-{kind}" for system in FILE_SYSTEMS for kind in cuts.KINDS}
    assert wanted.pop("fuzz") <= set(TARGETS)
    assert wanted.pop("reopen") <= {"group", "os"}
    for engine, scenarios in wanted.items():
        try:
            with (ENGINES | BESIDE)[engine].load()() as found:
                assert scenarios <= {scenario.name for scenario in found}, engine
        except NotHere as problem:
            print(f"{engine} was not looked at: {problem}")


def test_every_test_beside_the_engines_has_its_mistake() -> None:
    assert set(TESTS) == {one.scenario for one in MISTAKES.values() if one.engine == "tests"}


def test_what_does_not_apply_is_named() -> None:
    text = "first\nsecond\nsecond\nthird\n"

    def applied(*edits: tuple[str, str]) -> str:
        mistakes = [Mistake(f"m{i}", "", (Edit("a.pyx", *edit),), "", "", 1) for i, edit in enumerate(edits)]
        return edited("a.pyx", text, mistakes)

    with pytest.raises(DoesNotApplyError, match="m0: its old text occurs 0 times in a.pyx"):
        applied(("fourth", "PLANTED"))
    with pytest.raises(DoesNotApplyError, match="m0: its old text occurs 2 times in a.pyx"):
        applied(("second", "PLANTED"))
    with pytest.raises(DoesNotApplyError, match="m0 and m1 change the same text of a.pyx|m1 and m0"):
        applied(("first\nsecond", "PLANTED"), ("first", "PLANTED"))
    assert applied(("first", "if PLANTED"), ("third", "else PLANTED")).startswith(
        'if planted(b"m0")\nsecond\nsecond\nelse planted(b"m1")\n'
    )


def test_samples_bring_all_of_them() -> None:
    parts = -(-len(MISTAKES) // 10)
    samples = [sample(10, seed) for seed in range(parts)]
    assert {one.name for chosen in samples for one in chosen} == set(MISTAKES)
    assert all(len({one.name for one in chosen}) == 10 for chosen in samples)
    assert sample(10, 3 + 7 * parts) == samples[3]
    spent = [sum(one.budget for one in chosen) for chosen in samples]
    assert max(spent) < 1.5 * min(spent), "no part takes much longer than another"


def test_the_seed_is_that_of_the_commit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trial, "commit", lambda: "0123456789ab+")
    assert seed_of_commit() == 0x01234567
    monkeypatch.setattr(trial, "commit", lambda: "unknown")
    assert 20_000 < seed_of_commit() < 40_000, "days since 1970"


def test_the_product_has_no_switch() -> None:
    """Neither its sources nor what is imported here, be it built in place or from a wheel."""
    package = Path(fastlog.__file__).parent
    files = [file for folder in (PACKAGE, package) for file in folder.rglob("*") if file.is_file()]
    assert any(file.name.endswith(tuple(EXTENSION_SUFFIXES)) for file in files)
    assert not [str(file) for file in files if PLANTED.encode() in file.read_bytes()]
    assert not [str(file) for file in files if file.stem == "planted"]


def test_a_trial_tells_found_from_survived_and_from_no_result() -> None:
    one = next(iter(MISTAKES.values()))
    found, nothing = {"failure": {"problem": "lost"}}, {"failure": None}

    def is_right(mistake: Mistake | None, line: dict[str, Any] | None, status: int) -> bool:
        return trial.Outcome("kills", "writer", mistake, 1, 2.0, status, line, "").is_right

    assert is_right(one, found, 1)
    assert not is_right(one, nothing, 0)
    assert not is_right(one, None, -9)
    assert is_right(None, nothing, 0)
    assert not is_right(None, found, 1)
    assert not is_right(None, None, 2)
