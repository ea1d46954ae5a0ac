"""One process of ``fastlog run``: loads the app, runs it, and ends when its parent is gone.

It tells its parent in one line of JSON, over a pipe, whether the app was loaded. A second pipe says that the parent
lives: nothing comes through it, but it ends when the parent does, however that dies.
"""

from __future__ import annotations

import difflib
import importlib
import json
import logging
import os
import pkgutil
import signal
import sys
import sysconfig
import threading
import traceback
from types import ModuleType, TracebackType
from typing import Any, Final, Protocol

from fastlog._native import oscalls
from fastlog.errors import ConfigError, Error, HandlerTimeoutError

__all__ = ["EXIT_ERROR", "EXIT_REFUSED", "EXIT_SIGNALLED", "EXIT_STUCK", "Runnable", "load_app", "main"]

EXIT_REFUSED: Final = 2
EXIT_ERROR: Final = 3
EXIT_STUCK: Final = 75  # EX_TEMPFAIL: start me again
EXIT_SIGNALLED: Final = 128 + signal.SIGTERM

AGAIN_S: Final = 1.0
NEAR: Final = 0.6

logger = logging.getLogger("fastlog.delivery")


class Runnable(Protocol):
    """What is run: a ``fastlog.App``, or something that stands in for one."""

    def run(self) -> None:
        """Work until ``stop``, SIGTERM or SIGINT."""

    def stop(self) -> None:
        """Let ``run`` end; from any thread."""


# --- loading ---------------------------------------------------------------------------------------------------------


def load_app(target: str) -> Runnable:
    """The app that ``module:attribute`` names. The attribute may be dotted.

    Raises:
        ConfigError: there is no such module or attribute, or it is no App; the message names the nearest one.
        Exception: what the module raised while it was imported.
    """
    module_name, colon, attribute = target.partition(":")
    words = [*module_name.split("."), *attribute.split(".")]
    if not colon or module_name.endswith(".py") or not all(word.isidentifier() for word in words):
        raise ConfigError(f"{target!r} names no app: expected MODULE:APP{_meant(target)}")
    module = _import(module_name)
    found: Any = module
    for word in attribute.split("."):
        try:
            found = getattr(found, word)
        except AttributeError:
            raise ConfigError(
                f"module {module_name!r} ({_place(module)}) has no attribute {attribute!r}"
                f"{_nearest(word, dir(found))}{_apps(module)}"
            ) from None
    if not _is_app(found):
        raise ConfigError(
            f"{target!r} is {_kind(found)}, expected an App such as app = fastlog.App(...){_apps(module)}"
        )
    app: Runnable = found
    return app


def _import(name: str) -> ModuleType:
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        missing = error.name
        if missing is None or (name != missing and not name.startswith(f"{missing}.")):
            raise  # the module is there, and what it imports is not
        parent, _, last = missing.rpartition(".")
        raise ConfigError(
            f"there is no module {missing!r}{_nearest(last, _modules(parent))}: it was looked for in "
            f"{parent if parent else ', '.join(_folders())}"
        ) from None


def _folders() -> list[str]:
    """Where modules of the user's may lie: not where the interpreter keeps its own."""
    known = set(sysconfig.get_paths().values())
    return [path for path in sys.path if path not in known and not path.endswith((".zip", "lib-dynload"))][:4]


def _modules(package: str) -> list[str]:
    """Names of the modules in a package, or of those in the user's folders."""
    places = list(sys.modules[package].__path__) if package in sys.modules else _folders()
    return [found.name for found in pkgutil.iter_modules(places)]


def _meant(target: str) -> str:
    """A hint for what is written otherwise elsewhere."""
    path, _, attribute = target.partition(":")
    if path.endswith(".py") or "/" in path:
        module = path.removesuffix(".py").strip("./").replace("/", ".")
        return f", the module as in an import statement: {module}:{attribute or 'app'}"
    return f", such as {path.replace('-', '_')}:app" if ":" not in target else ""


def _nearest(name: str, names: list[str]) -> str:
    near = difflib.get_close_matches(name, names, n=1, cutoff=NEAR)
    return f"; did you mean {near[0]!r}?" if near else ""


def _apps(module: ModuleType) -> str:
    """Which apps a module has."""
    names = sorted(name for name, value in vars(module).items() if _is_app(value))
    return f"; apps in it: {', '.join(names)}" if names else "; it has no app"


def _is_app(value: object) -> bool:
    """By what it can do, so that something may stand in for an App. Modules and classes are none."""
    if isinstance(value, (type, ModuleType)):
        return False
    return callable(getattr(value, "run", None)) and callable(getattr(value, "stop", None))


def _kind(value: object) -> str:
    if isinstance(value, type):
        return f"the class {value.__name__} itself"
    if callable(value) and hasattr(value, "__name__"):
        return f"a function (call it in the module: app = {value.__name__}())"
    return f"of type {type(value).__name__}"


def _place(module: ModuleType) -> str:
    return getattr(module, "__file__", None) or "a package without a file"


# --- running ---------------------------------------------------------------------------------------------------------


def main(arguments: list[str]) -> int:
    """``TARGET NUMBER LIFE READY GRACE_MS LOG_LEVEL [STORE]``: the exit code.

    ``LIFE`` and ``READY`` are descriptors: the pipe that ends with the parent, and the one that takes our line.
    """
    target, number, life, ready, grace_ms, level, *store = arguments
    os.set_inheritable(int(life), False)
    os.set_inheritable(int(ready), False)
    folder = os.getcwd()
    if folder not in sys.path:
        sys.path.insert(0, folder)
    try:
        app = load_app(target)
        if store:
            use_store(app, target, store[0])
    except ConfigError as error:
        answer(int(ready), error=str(error), is_usage=True)
        return EXIT_REFUSED
    except Exception as error:
        traceback.print_exception(error.with_traceback(of_the_user(error.__traceback__)))
        answer(int(ready), error=f"{target!r} cannot be loaded: {type(error).__name__}: {error}", is_usage=False)
        return EXIT_ERROR
    set_up_logging(number, level)
    threading.Thread(
        target=end_with_parent, args=(app, oscalls.Descriptor(int(life)), int(grace_ms)), name="fastlog-parent",
        daemon=True,
    ).start()  # fmt: skip
    answer(int(ready))
    return run(app)


def of_the_user(trace: TracebackType | None) -> TracebackType | None:
    """A traceback from the first frame that is neither of this file nor of the import machinery."""
    while trace is not None and trace.tb_frame.f_code.co_filename.startswith(
        (__file__, importlib.__file__, "<frozen importlib")
    ):
        trace = trace.tb_next
    return trace


def use_store(app: Runnable, target: str, path: str) -> None:
    """Have the app work on another store than the one that it was made with. Raises ConfigError."""
    use = getattr(app, "use_store", None)
    if not callable(use):
        raise ConfigError(f"{target!r} cannot be given another store: run it without --store")
    use(path)


def run(app: Runnable) -> int:
    """Run the app: the exit code. What it ended with is logged."""
    signals = Signals()
    try:
        app.run()
    except HandlerTimeoutError as error:
        logger.error("%s", error)
        leave(EXIT_STUCK)  # the handler may be running still, and the interpreter would wait for its thread
    except Error as error:
        logger.error("the app ended: %s: %s", type(error).__name__, error)
        return EXIT_ERROR
    return EXIT_SIGNALLED if signals.came() else 0


class Signals:
    """Whether SIGTERM or SIGINT came, whoever handles them: tells an app that was stopped from one that ended."""

    def __init__(self) -> None:
        self._received, self._written = os.pipe()
        os.set_blocking(self._received, False)
        os.set_blocking(self._written, False)
        signal.set_wakeup_fd(self._written, warn_on_full_buffer=False)

    def came(self) -> bool:
        """From when this was made until now. May be asked once."""
        signal.set_wakeup_fd(-1)
        try:
            numbers = os.read(self._received, 1 << 16)
        except BlockingIOError:
            return False
        return signal.SIGTERM in numbers or signal.SIGINT in numbers


def answer(ready: int, **problem: object) -> None:
    """Tell the parent that the app was loaded, or why not."""
    line = json.dumps(problem).encode() + b"\n"
    try:
        os.write(ready, line)
    except OSError:
        pass  # there is no parent any more, which the other pipe tells too
    os.close(ready)


def set_up_logging(number: str, level: str) -> None:
    """Lines on stderr with the worker's number, unless the app has its own logging."""
    if not logging.getLogger().handlers:
        logging.basicConfig(level=level.upper(), format=f"worker {number}: %(levelname)s %(name)s: %(message)s")


def end_with_parent(app: Runnable, life: oscalls.Descriptor, grace_ms: int) -> None:
    """Wait until the parent is gone; then stop the app, and end in any case when the time for that is over."""
    while not oscalls.wait_for_files([life], -1):
        pass
    logger.error("the process that started this worker is gone: stopping")
    stop_at = oscalls.steady_clock() + grace_ms
    while oscalls.steady_clock() < stop_at:
        app.stop()  # again and again, for it may come before `run`
        oscalls.nap(min(AGAIN_S * 1000, max(stop_at - oscalls.steady_clock(), 0)))
    leave(EXIT_ERROR)


def leave(code: int) -> None:
    """End the process now, whatever its threads do."""
    logging.shutdown()
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except (OSError, ValueError):
            pass
    os._exit(code)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
