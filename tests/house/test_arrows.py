"""Arrows of the house: a room imports and cimports only rooms below its own.

The table is the law. A new module takes its place in it; a room that has to look up wants to be two rooms.
"""

from __future__ import annotations

import ast
import re
import sys
from pathlib import Path

import pytest

from tests.house.sources import ROOT, line_of, module_name, place, read, source_files, without_prose

# From the ground up. Rooms of one row do not know each other; a package is one room, and orders itself inside.
ROWS: tuple[tuple[str, ...], ...] = (
    ("fastlog.errors", "fastlog._native"),
    ("fastlog.config", "fastlog.records"),
    ("fastlog.reports",),
    ("fastlog._native.layout", "fastlog._native.varint", "fastlog._native.arrow_abi", "fastlog._native.published"),
    (
        "fastlog._native.checksum",
        "fastlog._native.codecs",
        "fastlog._native.memory",
        "fastlog._native.oscalls",
        "fastlog._native.arrow_import",
    ),
    ("fastlog._native.columns",),
    ("fastlog._native.decoder", "fastlog._native.encoder", "fastlog._native.index"),
    (
        "fastlog._native.arrow",
        "fastlog._native.scanner",
        "fastlog._native.transactions",
        "fastlog._native.control",
        "fastlog._native.partitioning",
    ),
    (
        "fastlog._native.shared",
        "fastlog._native.batch",
        "fastlog._native.cleaner",
        "fastlog._native.segment",
        "fastlog._native.producers",
        "fastlog._native.validator",
    ),
    ("fastlog._native.inspect",),
    ("fastlog.partition",),
    ("fastlog._native.handle",),
    ("fastlog._native.syncing", "fastlog._native.pending"),
    ("fastlog._native.appending", "fastlog._native.reading", "fastlog._native.deliveries"),
    ("fastlog._native.maintaining", "fastlog._native.replaying", "fastlog._native.drain"),
    ("fastlog._native.accumulator",),
    ("fastlog._core",),
    ("fastlog.liveness",),
    ("fastlog.store",),
    ("fastlog.groups",),
    ("fastlog.transactions",),
    ("fastlog.clients",),
    ("fastlog.aio",),
    ("fastlog.delivery",),
    ("fastlog",),
    ("fastlog.demo", "fastlog.testing"),
    ("fastlog.cli",),
    ("fastlog.__main__",),
)
PACKAGES = {
    *("fastlog.partition", "fastlog.demo", "fastlog.cli"),
    *("fastlog.liveness", "fastlog.store", "fastlog.groups", "fastlog.transactions", "fastlog.clients", "fastlog.aio"),
    *("fastlog.delivery", "fastlog.testing"),
}
LEVEL = {room: level for level, row in enumerate(ROWS) for room in row}

# What else a room may stand on, besides the standard library. Everything else stays an option of the user.
LIBRARIES = {
    "fastlog.clients": {"numpy", "typing_extensions"},  # the second for type checkers alone, which bring it
    "fastlog.cli": {"click", "rich"},
    "fastlog.demo": {"numpy", "duckdb"},
    "fastlog": set[str](),
}
LIBRARIES_OF_THE_ENGINE = {"numpy", "crc32c", "cramjam"}
# of Cython itself: the C library, the C API of Python
DECLARATIONS = {"cython", "libc", "cpython", "posix"}

_IMPORT = re.compile(
    r"^[ \t]*(?:from[ \t]+(?P<base>[\w.]+)[ \t]+c?import[ \t]+(?P<names>\([^)]*\)|[^\n;]+)"
    r"|c?import[ \t]+(?P<modules>[\w., \t]+))",
    re.MULTILINE,
)


def room_of(module: str) -> str | None:
    """The room that a module belongs to, None when the table does not have it."""
    if module in LEVEL:
        return module
    return next((package for package in PACKAGES if module.startswith(package + ".")), None)


def python_imports(path: Path) -> list[tuple[int, str]]:
    """(line, dotted name) of every import, those inside functions included."""
    package = module_name(path) if path.stem == "__init__" else module_name(path).rpartition(".")[0]
    found: list[tuple[int, str]] = []
    for node in ast.walk(ast.parse(read(path))):
        if isinstance(node, ast.Import):
            found += [(node.lineno, alias.name) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                parts = package.split(".")
                base = ".".join([*parts[: len(parts) - node.level + 1], *([base] if base else [])])
            found += [(node.lineno, f"{base}.{alias.name}") for alias in node.names]
    return found


def cython_imports(path: Path) -> list[tuple[int, str]]:
    """(line, dotted name) of every import and cimport."""
    code = without_prose(path)
    found: list[tuple[int, str]] = []
    for match in _IMPORT.finditer(code):
        line = line_of(code, match.start())
        if match["base"]:
            names = match["names"].strip("()").split(",")
            found += [(line, f"{match['base']}.{name.split()[0]}") for name in names if name.split()]
        else:
            found += [(line, name.split()[0]) for name in match["modules"].split(",") if name.split()]
    return found


MODULES = {module_name(path) for path in source_files(".py", ".pyx", ".pxd")}


def target_of(name: str) -> str:
    """The module that an imported dotted name stands for: itself, or what it is taken from."""
    return name if name in MODULES else name.rpartition(".")[0]


FILES = source_files(".py", ".pyx", ".pxd")
EDGES = [
    (path, line, name)
    for path in FILES
    for line, name in (python_imports(path) if path.suffix == ".py" else cython_imports(path))
]


def test_every_module_has_its_place() -> None:
    homeless = sorted({place(path) for path in FILES if room_of(module_name(path)) is None})
    assert not homeless, f"put these into ROWS of {place(Path(__file__))}: {homeless}"


def test_the_parser_sees_imports() -> None:
    """An empty list of arrows would pass everything: the ones that must be there are there."""
    seen = {(module_name(path), target_of(name)) for path, _, name in EDGES}
    assert ("fastlog._native.memory", "libc.stdlib") in seen
    assert ("fastlog._native.arrow", "fastlog._native.memory") in seen
    assert ("fastlog", "fastlog._core") in seen
    assert ("fastlog.__main__", "fastlog.cli") in seen


def test_arrows_point_down() -> None:
    upward = []
    for path, line, name in EDGES:
        if name.split(".")[0] != "fastlog":
            continue
        here, there = room_of(module_name(path)), room_of(target_of(name))
        if here is None or here == there:
            continue
        if there is None:
            upward.append(f"{place(path)}:{line}: {name} is no module of the table")
        elif LEVEL[there] >= LEVEL[here]:
            upward.append(f"{place(path)}:{line}: {here} (row {LEVEL[here]}) imports {there} (row {LEVEL[there]})")
    assert not upward, "\n".join(upward)


def test_a_room_stands_on_its_own_libraries_only() -> None:
    foreign = []
    for path, line, name in EDGES:
        top = name.split(".")[0]
        if top == "fastlog" or top in sys.stdlib_module_names:
            continue
        if path.suffix in (".pyx", ".pxd") and top in DECLARATIONS:
            continue
        allowed = LIBRARIES.get(room_of(module_name(path)) or "", LIBRARIES_OF_THE_ENGINE)
        if top not in allowed:
            foreign.append(f"{place(path)}:{line}: imports {top}")
    assert not foreign, "\n".join(foreign)


@pytest.mark.parametrize("folder", ["src/fastlog/cli", "src/fastlog/demo", "examples", "benchmarks"])
def test_users_of_the_engine_see_its_public_face_only(folder: str) -> None:
    """Command line, demo, examples and benchmarks import ``fastlog`` or ``fastlog._core``, no room behind it."""
    private = []
    for path in sorted((ROOT / folder).rglob("*.py")):
        for node in ast.walk(ast.parse(read(path))):
            names = (
                [alias.name for alias in node.names]
                if isinstance(node, ast.Import)
                else [f"{node.module}.{alias.name}" for alias in node.names]
                if isinstance(node, ast.ImportFrom) and not node.level
                else []
            )
            private += [
                f"{place(path)}:{node.lineno}: imports {name}"  # type: ignore[attr-defined]
                for name in names
                if name.startswith(("fastlog._native", "fastlog.partition"))
            ]
    assert not private, "\n".join(private)
