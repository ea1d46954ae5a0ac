"""Each of these lives in one file: byte offsets in ``layout.pxd``, system calls and clocks in ``oscalls`` (I14)."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

from tests.house.sources import line_of, module_name, place, read, source_files, without_prose

LAYOUT = "src/fastlog/_native/layout.pxd"
# the records of internal topics are formats of their own, each in one file, and what both are made of in a third
RECORD_FORMATS = {
    *("src/fastlog/groups/formats.py", "src/fastlog/transactions/records.py", "src/fastlog/store/internal.py"),
}
OSCALLS = ("src/fastlog/_native/oscalls.pyx", "src/fastlog/_native/oscalls.pxd")
# They read and write what their user named, start processes, send and catch signals, make event loops for handlers, and
# never touch a file of a log.
USERS = (
    *("fastlog.cli", "fastlog.demo", "fastlog.testing", "fastlog.__main__", "fastlog.delivery.worker"),
    *("fastlog.delivery.app", "fastlog.delivery.calling"),
)

CYTHON = source_files(".pyx", ".pxd", ".h")
ENGINE = [path for path in source_files(".py", ".pyx", ".pxd") if not module_name(path).startswith(USERS)]


def hits(paths: list[Path], pattern: str, keep_strings: bool = False) -> list[str]:
    """Lines of code that match: comments and docstrings do not count."""
    expression = re.compile(pattern)
    found = []
    for path in paths:
        code = without_prose(path, keep_strings) if path.suffix != ".h" else read(path)
        lines = code.splitlines()
        for match in expression.finditer(code):
            number = line_of(code, match.start())
            found.append(f"{place(path)}:{number}: {lines[number - 1].strip()}")
    return found


# --- byte offsets ---------------------------------------------------------------------------------------------------


def test_byte_order_is_known_to_layout_only() -> None:
    others = [path for path in [*ENGINE, *CYTHON] if place(path) not in {LAYOUT, *RECORD_FORMATS}]
    found = hits(others, r"\bbswap\d*\b|__builtin_bswap|\b(?:hton|ntoh|htobe|be\d\dtoh|htole|le\d\dtoh)\w*\(")
    found += hits(others, r"\bimport struct\b|\bfrom struct\b|\b(?:from|to)_bytes\(")
    found += hits(others, r"""["'][<>!=][iuf]\d["']""", keep_strings=True)
    assert not found, "\n".join(found)


def test_positions_in_a_batch_are_named() -> None:
    """``load_int32(at + 8)`` would be a byte offset outside of layout; so would the number 61."""
    others = [path for path in ENGINE if place(path) != LAYOUT]
    found = hits(others, r"\b(?:load|store)_u?int\d\d\([^(),\n]*\+\s*\d+\s*[,)]")
    found += hits(others, r"\b(?:load|store)_u?int\d\d\(\s*&?\w+\[\s*\d+\s*\]")
    found += hits(others, r"(?<![\w.])61(?![\w.])")
    found += hits(others, r"^\s*[A-Z][A-Z_]*_AT\s*=\s*\d+")
    assert not found, "\n".join(found)


def test_internal_topics_are_named_in_one_room() -> None:
    others = [path for path in source_files(".py", ".pyx", ".pxd") if place(path) != "src/fastlog/store/internal.py"]
    found = hits(others, r"__consumer_offsets|__transaction_state", keep_strings=True)
    assert not found, "\n".join(found)


# --- system calls ---------------------------------------------------------------------------------------------------

SYSTEM_HEADER = (
    r"<(?:unistd|fcntl|stdio|dirent|poll|signal|spawn|aio|pthread|time"
    r"|linux/\w+|sys/(?!auxv|sysctl|types|cdefs)\w+)\.h>"  # what the processor can do may be asked anywhere
)
SYSTEM_MODULES = {
    *("fcntl", "mmap", "shutil", "tempfile", "glob", "subprocess", "socket", "select", "selectors", "signal"),
    *("ctypes", "_posixsubprocess", "posix", "pty", "resource", "io"),
}
# pure functions and constants: no call into the kernel
PURE_OS = {"fspath", "fsencode", "fsdecode", "PathLike", "strerror", "sep", "path", "register_at_fork"}
PURE_PATH = {"join", "basename", "dirname", "split", "splitext", "normpath", "isabs", "abspath", "commonpath"}
PATH_METHODS = (
    "exists|is_file|is_dir|is_symlink|iterdir|rglob|mkdir|rmdir|unlink|stat|lstat|touch|read_bytes|read_text"
    "|write_bytes|write_text|samefile|symlink_to|hardlink_to"
)


def test_I14_C_system_calls_in_one_room() -> None:
    found = []
    for path in CYTHON:
        if place(path) in OSCALLS:
            continue
        text = read(path)
        found += [
            f"{place(path)}:{line_of(text, match.start())}: {match[0]}"
            for match in re.finditer(SYSTEM_HEADER, text)
            # a view may be released by any thread at any time: munmap is the one call outside of the room
            if not (place(path) == "src/fastlog/_native/memory.pyx" and match[0] == "<sys/mman.h>")
        ]
        if path.suffix != ".h":
            found += hits([path], r"\b(?:from|cimport)[ \t]+(?:posix\b|libc\.(?:stdio|time|signal)\b)")
    assert not found, "\n".join(found)


def test_I14_memory_unmaps_and_calls_nothing_else() -> None:
    text = read(Path(__file__).parents[2] / "src/fastlog/_native/memory.pyx")
    block = re.search(r'cdef extern from "<sys/mman\.h>"[^\n]*:\n((?:[ \t]+[^\n]*\n)+)', text)
    assert block is not None
    assert re.findall(r"(\w+)\(", block[1]) == ["munmap"]


def python_calls(path: Path) -> Iterator[tuple[int, str]]:
    """(line, what) of everything in a Python file that reaches the kernel."""
    for node in ast.walk(ast.parse(read(path))):
        if isinstance(node, ast.Import):
            for alias in node.names:
                if alias.name.split(".")[0] in SYSTEM_MODULES:
                    yield node.lineno, f"import {alias.name}"
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            top = node.module.split(".")[0]
            if top in SYSTEM_MODULES:
                yield node.lineno, f"from {node.module} import ..."
            for alias in node.names:
                if (node.module == "os" and alias.name not in PURE_OS) or (
                    node.module == "os.path" and alias.name not in PURE_PATH
                ):
                    yield node.lineno, f"from {node.module} import {alias.name}"
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "open":
            yield node.lineno, "open(...)"
        elif isinstance(node, ast.Attribute):
            owner = ast.unparse(node.value)
            if owner != "oscalls" and re.fullmatch(PATH_METHODS, node.attr):
                yield node.lineno, f".{node.attr}"
            if (owner == "os" and node.attr not in PURE_OS) or (owner == "os.path" and node.attr not in PURE_PATH):
                yield node.lineno, f"{owner}.{node.attr}"


def test_I14_python_system_calls_in_one_room() -> None:
    found = [
        f"{place(path)}:{line}: {what}" for path in ENGINE if path.suffix == ".py" for line, what in python_calls(path)
    ]
    cython = [path for path in ENGINE if path.suffix != ".py" and place(path) not in OSCALLS]
    found += hits(cython, r"(?<![\w.])(?!def )open\(")
    found += hits(cython, rf"\bos\.(?!path\b)(?!(?:{'|'.join(PURE_OS)})\b)\w+")
    found += hits(cython, rf"\bos\.path\.(?!(?:{'|'.join(PURE_PATH)})\b)\w+")
    found += hits(cython, rf"(?<!oscalls)\.(?:{PATH_METHODS})\(")
    found += hits(cython, rf"^\s*(?:import|from)\s+(?:{'|'.join(SYSTEM_MODULES)})\b")
    found = [line for line in found if not re.search(r":\s*(?:c?p?def|cdef)\s.*\bopen\(", line)]
    assert not found, "\n".join(found)


# --- clocks ---------------------------------------------------------------------------------------------------------


def test_I14_clocks_in_one_room() -> None:
    clock = (
        r"\bclock_gettime\b|\bgettimeofday\b|\b(?:import|from) time\b|\btime\.(?!sleep)\w+\(|\.(?:utcnow|now|today)\("
    )
    found = hits([path for path in [*ENGINE, *CYTHON] if place(path) not in OSCALLS], clock)
    # the command line measures how long things take, but what time it is the log tells
    users = [path for path in source_files(".py") if path not in ENGINE]
    found += hits(users, r"\btime\.(?:time|time_ns|gmtime|localtime)\(|\bimport (?:time|time_ns)$|\.(?:utcnow|today)\(")
    assert not found, "\n".join(found)
