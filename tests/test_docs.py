"""README and docs/ say what is so: their Python runs, its output is the one printed there, links and tables are whole.

Every block marked ``python`` of a page is executed, in order, in one name space and one empty directory. A block marked
``text`` right behind it is what it has to print; ``...`` stands for anything, as in a doctest.
"""

from __future__ import annotations

import contextlib
import doctest
import importlib.util
import io
import json
import os
import re
import sys
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest

import fastlog

ROOT = Path(__file__).resolve().parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
OPTIONAL = ("duckdb", "polars", "pyarrow")

BLOCK = re.compile(r"^```(?P<kind>\w*)\n(?P<body>.*?)^```$", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"\]\((?!https?://)(?P<file>[^)#\s]*)(?:#(?P<anchor>[^)\s]+))?\)")
HEADING = re.compile(r"^#+ +(.+)$", re.MULTILINE)


def blocks(text: str) -> list[tuple[int, str, str | None]]:
    """(line, code, expected output or None) of every Python block."""
    found = []
    matches = list(BLOCK.finditer(text))
    for match, following in zip(matches, [*matches[1:], None], strict=True):
        if match["kind"] != "python":
            continue
        expected = None
        if following is not None and following["kind"] == "text" and not text[match.end() : following.start()].strip():
            expected = following["body"]
        found.append((text.count("\n", 0, match.start("body")), match["body"], expected))
    return found


def a_few_flights(folder: Path) -> None:
    """What the page about the command line takes for granted: the log that the demo leaves."""
    with fastlog.PartitionLog.open(folder / "demo-log" / "flights-0") as log:
        log.append([json.dumps({"carrier": carrier}).encode() for carrier in ("UA", "UA", "B6")])


PREPARATIONS: dict[str, Callable[[Path], None]] = {"cli.md": a_few_flights}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_python_of_the_page_does_what_the_page_says(page: Path, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = page.read_text(encoding="utf-8")
    code = "\n".join(body for _, body, _ in blocks(text))
    for library in OPTIONAL:
        if re.search(rf"\b{library}\b", code) and importlib.util.find_spec(library) is None:
            pytest.skip(f"{page.name} uses {library}, which is not installed here")
    PREPARATIONS.get(page.name, lambda _: None)(folder)
    # programs that a block starts find the same fastlog
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(os.path.abspath(entry) for entry in sys.path))
    monkeypatch.chdir(folder)
    names: dict[str, Any] = {"__name__": "__main__"}
    for line, body, expected in blocks(text):
        printed = io.StringIO()
        with contextlib.redirect_stdout(printed):
            exec(compile("\n" * line + body, str(page), "exec"), names)
        if expected is not None:
            agrees = doctest.OutputChecker().check_output(expected, printed.getvalue(), doctest.ELLIPSIS)
            assert agrees, (
                f"{page.name}, line {line}: expected\n{expected}\nbut the block printed\n{printed.getvalue()}"
            )
    for value in names.values():
        if isinstance(value, fastlog.PartitionLog):
            value.close()


def test_the_pages_have_code_and_output() -> None:
    """Finding no block would pass everything."""
    found = [block for page in PAGES for block in blocks(page.read_text(encoding="utf-8"))]
    assert len(found) > 20
    assert sum(expected is not None for _, _, expected in found) > 10
    wrong = "```python\nprint(1)\n```\n\n```text\n2\n```\n"
    assert blocks(wrong) == [(1, "print(1)\n", "2\n")]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path) -> None:
    dead = []
    for match in LINK.finditer(BLOCK.sub("", page.read_text(encoding="utf-8"))):
        target = page.parent / match["file"] if match["file"] else page
        if not target.exists() or (match["anchor"] and match["anchor"] not in anchors(target)):
            dead.append(match[0])
    assert not dead, f"{page.name}: {dead}"


def anchors(page: Path) -> set[str]:
    text = BLOCK.sub("", page.read_text(encoding="utf-8"))
    return {re.sub(r"[^\w\- ]", "", heading).strip().lower().replace(" ", "-") for heading in HEADING.findall(text)}


def test_architecture_has_a_line_for_every_file() -> None:
    text = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    sources = ROOT / "src" / "fastlog"
    if not sources.is_dir():
        pytest.skip("the sources are not here")
    missing = {
        path.name
        for path in sources.rglob("*")
        if path.suffix in {".py", ".pyx", ".pxd", ".h"} and not path.name.startswith("__init__")
        if not re.search(rf"`(?:\w+/)*{re.escape(path.stem)}(?:\.\w+)?`", text)
    }
    assert not missing, f"docs/architecture.md does not mention {sorted(missing)}"


def test_architecture_names_tests_that_exist() -> None:
    text = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    named = set(re.findall(r"`(test_\w+)`", text))
    tests = "\n".join(path.read_text(encoding="utf-8") for path in (ROOT / "tests").rglob("test_*.py"))
    modules = {path.stem for path in (ROOT / "tests").rglob("test_*.py")}
    assert len(named) > 10
    assert not {name for name in named if name not in modules and f"def {name}(" not in tests}


def test_guide_has_every_error_and_every_option() -> None:
    text = (ROOT / "docs" / "guide.md").read_text(encoding="utf-8")
    names = [name for name in fastlog.__all__ if name.endswith("Error") and name != "Error"]
    names += [option.name for option in fields(fastlog.LogConfig)]
    assert not [name for name in names if f"| `{name}` |" not in text]
