"""Lines that are not reached are told, and reasons that do not hold any more."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import pytest

from tests.evidence.lines import judging
from tests.evidence.lines.judging import Listed, problems, read_reasons
from tests.evidence.lines.marking import mark_exits, mark_lines, reached_lines

NAME = "src/room.pyx"
LINES = {NAME: {1: True, 2: False, 3: False}}


@pytest.fixture
def source(tmp_path: Path) -> Path:
    (tmp_path / "src").mkdir()
    (tmp_path / NAME).write_text("first\n    raise MemoryError()\n    raise MemoryError()\n")
    return tmp_path


def listed(count: int, text: str = "raise MemoryError()") -> Listed:
    return Listed(Counter({(NAME, text): count}), Counter())


def test_every_line_is_reached_or_listed(source: Path) -> None:
    assert problems(LINES, listed(2), source) == []
    [problem] = problems(LINES, listed(1), source)
    assert problem.startswith(f"{NAME}:2, 3: not reached (2 of 2, 1 listed)")
    [problem] = problems(LINES, Listed(), source)
    assert "0 listed" in problem


def test_a_reason_that_does_not_hold_any_more_is_told(source: Path) -> None:
    [problem] = problems(LINES, listed(3), source)
    assert "listed, but reached (2 of 3)" in problem
    assert any("listed, but gone" in one for one in problems(LINES, listed(1, "raise KeyError()"), source))
    [problem] = problems({NAME: {1: True}}, listed(1, "first"), source)
    assert "listed, but reached (0 of 1)" in problem


def test_what_is_reached_now_and_then_may_be_either(source: Path) -> None:
    sometimes = Listed(Counter(), Counter({(NAME, "raise MemoryError()"): 2}))
    for reached in (False, True):
        assert problems({NAME: {2: reached, 3: False}}, sometimes, source) == []
    [problem] = problems({NAME: {1: True}}, sometimes, source)
    assert "gone" in problem


def test_figures_below_the_goals_are_a_problem(source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (source / "reasons.toml").write_text("reason = []\n")
    monkeypatch.setattr(judging, "REASONS", source / "reasons.toml")
    home = source / "build" / "lines"
    home.mkdir(parents=True)
    (home / "room.json").write_text(json.dumps([[NAME, 1], [NAME, 2]]))
    (home / "room.marks").write_bytes(b"\1\0")
    assert reached_lines(home) == {NAME: {1: True, 2: False}}
    (source / "coverage.json").write_text(json.dumps({"files": {}}))
    figures, wrong = judging.judge(source)
    assert figures["compiled core"] == {"reached": 1, "lines": 2}
    assert any("the goal is 98 %" in one for one in wrong)


def test_reasons_are_read() -> None:
    assert isinstance(read_reasons(), Listed)


C_FILE = """
static const char* const __pyx_f[] = {
  "src/room.pyx",
};
  __Pyx_TraceLine(7,0,0,__PYX_ERR(0, 7, __pyx_L1_error))
  __Pyx_TraceLine(9,2,1,__PYX_ERR(0, 9, __pyx_L1_error))
  /*finally:*/ {
    /*normal exit:*/{ one("}"); }
    /*exception exit:*/{ /* { */ two(); if (x) { y(); } }
  }
"""


def test_every_trace_point_becomes_a_mark(tmp_path: Path) -> None:
    generated = tmp_path / "room.c"
    generated.write_text(C_FILE)
    mark_lines([generated], tmp_path / "lines")
    assert json.loads((tmp_path / "lines" / "src.room.pyx.json").read_text()) == [[NAME, 7], [NAME, 9]]
    code = generated.read_text()
    assert "__Pyx_TraceLine" not in code
    assert code.count("fastlog_marks[0] = 1;") == 1
    assert code.count("fastlog_marks[1] = 1;") == 3, "before the block, and in both of its copies"
    assert "fastlog_no_marks[2]" in code
    mark_lines([generated], tmp_path / "lines")
    assert generated.read_text() == code, "marked twice"


def test_a_block_without_copies_stays() -> None:
    assert mark_exits("no block here {}") == "no block here {}"
