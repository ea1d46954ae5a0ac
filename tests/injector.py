"""Allocations that fail, and the places where system calls and allocations are made: ``injector.c`` as Python has it.

For processes that were started with that library (``environment``).
"""

from __future__ import annotations

import ctypes
import re
import subprocess
from bisect import bisect_right
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

from fastlog._native import oscalls

SOURCE = Path(__file__).with_suffix(".c")
PRODUCT = "/fastlog/"
NEVER = 1 << 60
NATIVE, PYTHON = 1, 2
ALLOCATION = "malloc"  # as a call has a name
NATIVE_CALL = 31
DEPTH, NAME, MOST_NOTED = 10, 200, 20_000
ALL, FAILED = 1, 2
SHOWN = 3  # functions of a place
_SYMBOL = re.compile(r"__pyx_(?:f|pf|pw|gb|getprop|setprop|mdef)_+")
_WRAPPERS = ("__Pyx", "_init", "_fini", "__pyx_tp_new")
_OWN = ("oscalls.armed_fault", "oscalls.checked")  # what lets calls fail


def environment(library: Path) -> dict[str, str]:
    """What a process needs to be started with."""
    return {"LD_PRELOAD": str(library), "FASTLOG_INJECT_INTO": PRODUCT}


@dataclass
class Pressure:
    """How many allocations were asked for, and made to fail."""

    asked: int = 0
    failed: int = 0


@dataclass(frozen=True)
class Places:
    """Where calls were made: ``of`` has the place of each, in order, by the name of the call."""

    names: list[str]
    of: Mapping[str, list[int]] = field(default_factory=dict)

    def different(self) -> list[tuple[str, int]]:
        """Each call with each of its places, once."""
        return [(call, place) for call, numbers in self.of.items() for place in sorted(set(numbers))]

    def nths(self, call: str, place: int) -> list[int]:
        """Which of those calls were made there, counted from 1."""
        return [nth for nth, number in enumerate(self.of[call], 1) if number == place]

    def seen(self) -> dict[str, int]:
        """How many calls there were of each, at each place that has a name of its own."""
        found: dict[str, int] = {}
        for call, numbers in self.of.items():
            for number in numbers:
                name = f"{call} in {self.names[number]}"
                found[name] = found.get(name, 0) + 1
        return found


class Injector:
    """The library that this process was started with."""

    def __init__(self) -> None:
        library = ctypes.CDLL(None)
        self._library = library
        library.fastlog_arm_allocations.argtypes = [ctypes.c_int, ctypes.c_int64, ctypes.c_int64]
        library.fastlog_arm_allocations.restype = None
        for function in ("disarm", "count", "failed", "held"):
            getattr(library, f"fastlog_{function}_allocations").restype = ctypes.c_int64
        assert library.fastlog_watch_python() == 1, "Python's allocators are not to be had"

    def during(self, action: Callable[[], Any], kind: int, nth: int, count: int, met: Pressure) -> Any:
        """Do something while ``count`` allocations fail, from the nth on; ``nth`` is NEVER for none."""
        try:
            self._library.fastlog_arm_allocations(kind, nth, count)
            return action()
        finally:
            met.failed = self._library.fastlog_disarm_allocations()
            met.asked = self._library.fastlog_count_allocations()

    def failed(self) -> int:
        """How many allocations were made to fail since ``during`` began."""
        return int(self._library.fastlog_failed_allocations())

    def held(self) -> int:
        """How many allocations of the compiled modules that ``during`` saw are still there."""
        return int(self._library.fastlog_held_allocations())

    def note(self, which: int) -> None:
        """Begin to note places: of ALL calls and allocations, or of those that FAILED."""
        self._library.fastlog_note_places(which)
        address = ctypes.cast(self._library.fastlog_note_call, ctypes.c_void_p).value
        oscalls.observe(address or 0)

    def noted(self) -> Places:
        """What was noted; no more is."""
        oscalls.observe(0)
        self._library.fastlog_note_places(0)
        frames, python = (ctypes.c_size_t * DEPTH)(), ctypes.create_string_buffer(NAME)
        names = []
        for number in range(self._library.fastlog_place_count()):
            self._library.fastlog_place(number, frames, python)
            names.append(name_of([frame for frame in frames if frame], python.value.decode(errors="replace")))
        numbers = (ctypes.c_uint16 * MOST_NOTED)()
        of = {}
        for call, name in [*enumerate(oscalls.CALL_NAMES), (NATIVE_CALL, ALLOCATION)]:
            count = self._library.fastlog_noted(call, numbers, MOST_NOTED)
            assert count < MOST_NOTED, f"more than {count} calls of {name}"
            if count:
                of[name] = list(numbers[:count])
        return Places(names, of)


# --- names of places --------------------------------------------------------------------------------------------------


def name_of(frames: list[int], python: str) -> str:
    """The innermost functions of the compiled modules, and the Python function that called them where it is known."""
    functions: list[str] = []
    for frame in frames:
        function = function_at(frame)
        if function and function not in (*_OWN, *functions[-1:]):
            functions.append(function)
    file, _, line = python.partition(":")
    inside = file.rpartition(PRODUCT)[2] if PRODUCT in file else ""
    return " < ".join([*functions[:SHOWN], *([f"{inside}:{line}"] if inside else [])])


def prepare() -> None:
    """Find out what has a name, for processes that are forked later."""
    for *_, path in loaded():
        symbols_of(path)


@cache
def function_at(address: int) -> str:
    """The function with this return address; nothing for what only wraps another one."""
    for begin, end, offset, path in loaded():
        if begin <= address < end:
            addresses, names = symbols_of(path)
            at = bisect_right(addresses, address - begin + offset - 1) - 1
            return names[at] if at >= 0 else ""
    return ""


@cache
def loaded() -> list[tuple[int, int, int, str]]:
    """(begin, end, position in the file, path) of the code of the compiled modules."""
    found = []
    for line in Path("/proc/self/maps").read_text().splitlines():
        where, rights, offset, _, _, *path = line.split(maxsplit=5)
        if path and PRODUCT in path[0] and "x" in rights:
            begin, _, end = where.partition("-")
            found.append((int(begin, 16), int(end, 16), int(offset, 16), path[0]))
    return found


@cache
def symbols_of(path: str) -> tuple[list[int], list[str]]:
    """Where the functions of a library begin, and what Cython's source calls them."""
    result = subprocess.run(["nm", "-n", path], check=True, capture_output=True, text=True)
    addresses, names = [], []
    for line in result.stdout.splitlines():
        address, _, rest = line.partition(" ")
        kind, _, symbol = rest.partition(" ")
        if address and kind in "tT":
            addresses.append(int(address, 16))
            names.append(plain_name(symbol))
    return addresses, names


def plain_name(symbol: str) -> str:
    """``segment.Segment.map_log`` of ``__pyx_f_7fastlog_7_native_7segment_7Segment_map_log``."""
    symbol = symbol.partition(".")[0]
    if symbol.startswith(_WRAPPERS):
        return ""
    match = _SYMBOL.match(symbol)
    if match is None:
        return symbol.removeprefix("fastlog_")
    rest, parts = symbol[match.end() :], []
    while found := re.match(r"(\d+)(.*)", rest):
        size = int(found[1])
        if len(found[2]) <= size or not found[2][size:].startswith("_"):
            rest = found[2]  # the number of a function, not a length
            break
        parts.append(found[2][:size])
        rest = found[2][size + 1 :]
    parts.append(rest)
    return ".".join(part for part in parts if part not in ("fastlog", "_native"))
