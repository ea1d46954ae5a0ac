"""The source tree, as the tests of the house read it."""

from __future__ import annotations

import re
import shutil
import subprocess
from functools import cache
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
SOURCE = ROOT / "src"

_NOT_OURS = {"build", "dist", "wheelhouse", "data", "demo-log", "__pycache__", ".git"}
_CODE_OR_TEXT = re.compile(
    r"""
    (?P<text>(?P<quotes>\"{3}|'{3})(?:\\.|(?!(?P=quotes)).)*(?P=quotes))    # triple quotes: docstrings, verbatim C
    | (?P<string>"(?:\\.|[^"\\\n])*"|'(?:\\.|[^'\\\n])*')
    | (?P<comment>\#[^\n]*)
    """,
    re.VERBOSE | re.DOTALL,
)


@cache
def read(path: Path) -> str:
    """Text of a file of the repository."""
    return path.read_text(encoding="utf-8")


def place(path: Path) -> str:
    """How messages name a file: its path in the repository."""
    return path.relative_to(ROOT).as_posix()


@cache
def source_files(*suffixes: str) -> tuple[Path, ...]:
    """Files of the package with one of ``suffixes``."""
    return tuple(sorted(path for path in (SOURCE / "fastlog").rglob("*") if path.suffix in suffixes))


@cache
def repository_files() -> tuple[Path, ...]:
    """Every file that belongs to the repository: what git tracks or would track, else what an sdist unpacks to."""
    if (ROOT / ".git").exists() and shutil.which("git"):
        listing = subprocess.run(
            ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
            cwd=ROOT,
            capture_output=True,
            check=True,
        ).stdout
        found = [ROOT / name for name in listing.decode().split("\0") if name]
    else:
        found = [
            path
            for path in ROOT.rglob("*")
            if not any(part in _NOT_OURS or part.endswith(".egg-info") for part in path.relative_to(ROOT).parts)
            and not path.relative_to(ROOT).parts[0].startswith((".venv", ".cache", ".hypothesis", ".pytest", ".mypy"))
        ]
    return tuple(sorted(path for path in found if path.is_file() and path.suffix not in (".so", ".pyc", ".c")))


@cache
def without_prose(path: Path, keep_strings: bool = False) -> str:
    """Code of a Python or Cython file with comments and docstrings blanked out, line numbers kept."""

    def blank(match: re.Match[str]) -> str:
        if match["string"] is not None:
            return match[0] if keep_strings else match[0][0] + match[0][-1]
        return "\n" * match[0].count("\n")

    return _CODE_OR_TEXT.sub(blank, read(path))


def module_name(path: Path) -> str:
    """Dotted name of the module that a source file belongs to (a ``.pxd`` is part of its ``.pyx``)."""
    parts = path.relative_to(SOURCE).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def line_of(text: str, position: int) -> int:
    """Line number of a position in ``text``, from 1."""
    return text.count("\n", 0, position) + 1
