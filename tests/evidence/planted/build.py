"""The build that has every planted mistake in it: made from the sources as they are, into ``build/planted``.

``src`` there holds the sources with the edits in them, of compiled modules only those that were edited; ``lib`` is what
is imported: edited modules compiled by ``setup.py``, the others copied from the build in place.
"""

from __future__ import annotations

import ast
import fcntl
import os
import shutil
import subprocess
import sys
from collections.abc import Iterable
from importlib.machinery import EXTENSION_SUFFIXES
from pathlib import Path

from tests.evidence.planted import MISTAKES
from tests.evidence.planted.mistake import SWITCH, Edit, Mistake
from tests.evidence.run import PLANTED, ROOT

SOURCE = ROOT / "src"
PACKAGE = SOURCE / "fastlog"
BUILD = ROOT / "build" / "planted"
LIBRARY = BUILD / "lib"
COMPILED = (".pyx", ".pxd", ".h")

HEADER = "_native/planted.h"
HEADER_TEXT = f"""\
/* Which mistake this process shall have. Any thread, with or without the GIL. */
#include <stdlib.h>
#include <string.h>
static inline int planted(const char *name) {{
    static const char *chosen = NULL;
    if (chosen == NULL) {{
        const char *found = getenv("{PLANTED}");
        chosen = found == NULL ? "" : found;
    }}
    return chosen[0] != 0 && strcmp(chosen, name) == 0;
}}
"""
DECLARATION = '\ncdef extern from "planted.h" nogil:\n    bint planted(const char* name)\n'

MODULE = "planted.py"
MODULE_TEXT = f'''\
"""Which mistake this process shall have."""

import os

NAMES = {{names}}
CHOSEN = os.environ.get("{PLANTED}", "")
if CHOSEN and CHOSEN not in NAMES:
    raise ValueError(f"{PLANTED}={{{{CHOSEN}}}}: this build has no such mistake in it")


def planted(name):
    return name == CHOSEN
'''
IMPORT = "from fastlog.planted import planted\n"


class DoesNotApplyError(Exception):
    """The text that a mistake is to be put in is not there, or not once: its message names mistake and file."""


def edited(file: str, text: str, mistakes: Iterable[Mistake]) -> str:
    """A source with every mistake in it that concerns it. Raises DoesNotApplyError."""
    places = sorted(
        (place_of(one, edit, text), one.name, edit) for one in mistakes for edit in one.edits if edit.file == file
    )
    pieces, end, before = [], 0, ""
    for start, name, edit in places:
        if start < end:
            raise DoesNotApplyError(f"{name} and {before} change the same text of {file}")
        asks = f'planted({"b" if file.endswith(".pyx") else ""}"{name}")'
        pieces += [text[end:start], edit.new.replace(SWITCH, asks)]
        end, before = start + len(edit.old), name
    whole = "".join([*pieces, text[end:]])
    return whole + DECLARATION if file.endswith(".pyx") else with_import(whole)


def place_of(one: Mistake, edit: Edit, text: str) -> int:
    """Where its old text begins."""
    found = text.count(edit.old)
    if found != 1:
        raise DoesNotApplyError(f"{one.name}: its old text occurs {found} times in {edit.file}, expected once")
    return text.index(edit.old)


def with_import(text: str) -> str:
    """A Python module that can ask, too: the import comes behind docstring and ``__future__``."""
    lines, behind = text.splitlines(keepends=True), 0
    for node in ast.parse(text).body:
        is_docstring = isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
        if not is_docstring and not (isinstance(node, ast.ImportFrom) and node.module == "__future__"):
            break
        behind = node.end_lineno or 0
    return "".join([*lines[:behind], IMPORT, *lines[behind:]])


def edited_sources(mistakes: Iterable[Mistake] = tuple(MISTAKES.values())) -> dict[str, str]:
    """Every file that is edited, as a path below the package, and its text. Raises DoesNotApplyError."""
    mistakes = list(mistakes)
    files = sorted({edit.file for one in mistakes for edit in one.edits})
    return {file: edited(file, (PACKAGE / file).read_text(), mistakes) for file in files}


def build() -> Path:
    """Make the build, as far as something has changed; the folder to import it from."""
    BUILD.mkdir(parents=True, exist_ok=True)
    with (BUILD / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        texts = edited_sources()
        lay_out(texts)
        # not optimised: it takes a third of the time to compile, and what is run with it is not slower to notice
        subprocess.run(
            [sys.executable, str(ROOT / "setup.py"), "--quiet", "build_ext", "--build-lib", str(LIBRARY)],
            cwd=BUILD, check=True, env={**os.environ, "FASTLOG_DEBUG": "1"},
        )  # fmt: skip
    return LIBRARY


def lay_out(texts: dict[str, str]) -> None:
    """Put every file in its place, and take away what has none."""
    sources, library = BUILD / "src" / "fastlog", LIBRARY / "fastlog"
    names = sorted(MISTAKES)
    kept = {sources / HEADER, library / MODULE, LIBRARY / "pytest_fastlog.py"}
    write(sources / HEADER, HEADER_TEXT)
    write(library / MODULE, MODULE_TEXT.format(names=names))
    copy(SOURCE / "pytest_fastlog.py", LIBRARY / "pytest_fastlog.py")
    for path in sorted(PACKAGE.rglob("*")):
        place = path.relative_to(PACKAGE).as_posix()
        if path.is_dir() or path.suffix in (".pyc", ".c"):
            continue
        if path.name.endswith(tuple(EXTENSION_SUFFIXES)):
            target = library / place
            if place.partition(".")[0] + ".pyx" not in texts:
                copy(path, target)
        elif path.suffix == ".pyx" and place not in texts:
            continue
        else:
            target = (sources if path.suffix in COMPILED else library) / place
            write(target, texts[place]) if place in texts else copy(path, target)
        kept.add(target)
    for path in (*sources.rglob("*"), *LIBRARY.rglob("*")):
        if path.is_file() and path not in kept and path.suffix != ".pyc":
            path.unlink()
    missing = [one for one in PACKAGE.rglob("*.pyx") if not list(one.parent.glob(f"{one.stem}.*.so"))]
    if missing:
        raise FileNotFoundError(f"{missing[0].relative_to(ROOT)} is not compiled in place: run make build first")


def write(path: Path, text: str) -> None:
    """A file of this text; one that has it already is not touched."""
    if not path.exists() or path.read_text() != text:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)


def copy(source: Path, target: Path) -> None:
    """Likewise, of what another file holds, with its time."""
    if not target.exists() or stamp(target) != stamp(source):
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(source, target)


def stamp(path: Path) -> tuple[int, int]:
    """Time of the last change, and size."""
    status = path.stat()
    return status.st_mtime_ns, status.st_size
