"""One fuzzer's process: ``python -m tests.evidence.fuzz TARGET [options of libFuzzer, folders of inputs]``.

Started by the engine ``fuzz``, with libFuzzer preloaded where the target is compiled; see ``building.environment``.
"""

from __future__ import annotations

import ctypes
import importlib
import logging
import shlex
import sys
from typing import Any

from tests.evidence.fuzz import TARGETS, Driver


def own_command(name: str) -> str:
    """Its first argument: libFuzzer starts itself again with it, through a shell, when it merges folders of inputs."""
    return f"{shlex.quote(sys.executable)} -m tests.evidence.fuzz {name}"


def drive_compiled(name: str, arguments: list[str]) -> None:
    """Hand a function of C to the preloaded libFuzzer. Does not return."""
    native: Any = importlib.import_module("fastlog_fuzz_targets")
    function: Any = name
    if TARGETS[name].driver is Driver.CORE:
        from tests.evidence.fuzz import plain

        function = plain.TARGETS[name]
    if name == "indexes":
        from tests.evidence.fuzz.corpus import small_segment

        native.use_pristine(small_segment())
    encoded = [argument.encode() for argument in (own_command(name), *arguments)]
    pointers = (ctypes.c_char_p * (len(encoded) + 1))(*encoded, None)
    count, first = ctypes.c_int(len(encoded)), ctypes.cast(pointers, ctypes.c_void_p)
    driver = ctypes.PyDLL(None).LLVMFuzzerRunDriver  # the lock stays with this thread: targets take none
    driver(ctypes.byref(count), ctypes.byref(first), ctypes.c_void_p(native.entry_point(function)))


def drive_python(name: str, arguments: list[str]) -> None:
    """Instrument fastlog's Python, and hand a function of Python to Atheris. Does not return."""
    import atheris

    with atheris.instrument_imports(include=["fastlog", "tests.evidence.fuzz.plain"], enable_loader_override=False):
        from tests.evidence.fuzz import plain

    from fastlog.errors import Error

    target = plain.TARGETS[name]

    def one_input(data: bytes) -> None:
        try:
            target(data)
        except Error:
            pass

    atheris.Setup([own_command(name), *arguments], one_input)
    atheris.Fuzz()


def main() -> None:
    name, *arguments = sys.argv[1:]
    logging.disable(logging.CRITICAL)
    if TARGETS[name].driver is Driver.PYTHON:
        drive_python(name, arguments)
    else:
        drive_compiled(name, arguments)


if __name__ == "__main__":
    main()
