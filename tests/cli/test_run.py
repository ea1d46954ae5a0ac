"""``fastlog run``: real processes, real signals. What is run here stands in for an App: it has ``run`` and ``stop``."""

from __future__ import annotations

import json
import os
import pty
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import fastlog
from fastlog.delivery.worker import load_app
from tests.cli.running import PACKAGE, PATIENCE, Running, is_alive, runners, until

STAND_IN = '''
import os, signal, sys, threading, time

class StandIn:
    """Writes what happens to it into files, which the tests read."""

    def __init__(self):
        self.ended = threading.Event()
        self.store = "its own"

    def write(self, word):
        with open("happened.txt", "a") as file:
            file.write(f"{word} {os.getpid()}\\n")

    def use_store(self, path):
        self.store = path

    def run(self):
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self.on_signal)
        with open("store.txt", "w") as file:
            file.write(str(self.store))
        self.write("runs")
        self.work()
        self.write("ends")

    def on_signal(self, number, frame):
        self.write(signal.Signals(number).name)
        self.stop()

    def work(self):
        self.ended.wait(60)

    def stop(self):
        self.ended.set()

class Stubborn(StandIn):
    def stop(self):
        self.write("ignores")

class Dying(StandIn):
    def work(self):
        self.ended.wait(0.05)
        sys.exit(7)

class Mixed(StandIn):
    """The first one takes a second to end, the others die."""
    def work(self):
        try:
            open("first.txt", "x").close()
        except FileExistsError:
            sys.exit(7)
        self.ended.wait(60)
        time.sleep(1)

class Brief(StandIn):
    def work(self):
        self.ended.wait(0.05)

class Hanging(StandIn):
    def work(self):
        import fastlog
        threading.Thread(target=time.sleep, args=(60,)).start()
        raise fastlog.HandlerTimeoutError("handler mail took longer than 1 s")

class Broken(StandIn):
    def work(self):
        import fastlog
        raise fastlog.UnknownTopicError("there is no topic 'orders'")

app, stubborn, dying, brief, hanging, broken = StandIn(), Stubborn(), Dying(), Brief(), Hanging(), Broken()
mixed = Mixed()

class Bare:
    def run(self): pass
    def stop(self): pass

bare = Bare()

def make_app(): return app

number = 5
'''


@pytest.fixture
def start(folder: Path) -> Iterator[Callable[..., Running]]:
    """Starts ``fastlog run`` where the stand-ins are."""
    (folder / "shop.py").write_text(STAND_IN)
    with runners(folder) as start:
        yield start


# --- stopping --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_stops_every_worker_once(start: Callable[..., Running], number: int) -> None:
    running = start("shop:app", "--workers", "3")
    pids = running.wait_for("runs", 3)
    assert len(set(pids)) == 3
    running.signal(number)
    code, errors = running.end()
    assert code == 0, errors
    assert sorted(running.happened("SIGTERM")) == sorted(pids)
    assert sorted(running.happened("ends")) == sorted(pids)
    assert not running.happened("SIGINT")
    assert f"fastlog run: {signal.Signals(number).name}: 3 workers are stopped, for at most 40 s" in errors
    assert errors.count("ended as a signal told it to") == 3


def test_ctrl_c_on_a_terminal_reaches_workers_once(start: Callable[..., Running], folder: Path) -> None:
    """The terminal signals the whole foreground group, in which workers are not."""
    master, slave = pty.openpty()
    environment = {**os.environ, "PYTHONPATH": PACKAGE, "TERM": "xterm"}
    environment.pop("NO_COLOR", None)
    process = subprocess.Popen(
        [sys.executable, "-c", "import os, pty, sys; os.login_tty(0); os.execv(sys.executable, sys.argv[1:])",
         sys.executable, "-m", "fastlog", "run", "shop:app", "-w", "2"],
        cwd=folder, env=environment, stdin=slave, stdout=slave, stderr=slave,
    )  # fmt: skip
    os.close(slave)
    happened = folder / "happened.txt"
    until(lambda: happened.exists() and happened.read_text().count("runs") == 2)
    os.write(master, b"\x03")
    shown = b""
    try:
        while piece := os.read(master, 1 << 16):
            shown += piece
    except OSError:  # what Linux says when the other end is closed
        pass
    os.close(master)
    text = shown.decode()
    assert process.wait(PATIENCE) == 0, text
    assert happened.read_text().count("SIGTERM") == 2
    assert "SIGINT " not in happened.read_text()
    assert "2 of 2 running; Ctrl-C stops" in text
    assert "\x1b[" in text


def test_the_second_signal_kills(start: Callable[..., Running]) -> None:
    running = start("shop:stubborn", "-w", "2")
    pids = running.wait_for("runs", 2)
    running.signal(signal.SIGINT)
    running.wait_for("ignores", 2)
    running.signal(signal.SIGINT)
    time.sleep(0.6)
    assert running.process.poll() is None  # what comes at once is the same signal, told twice
    running.signal(signal.SIGINT)
    code, errors = running.end()
    assert code == 1
    assert "SIGINT again: 2 workers are killed" in errors
    assert errors.count("was killed by SIGKILL") == 2
    assert sorted(running.happened("SIGTERM")) == sorted(pids)


def test_the_end_of_the_grace_period_kills(start: Callable[..., Running]) -> None:
    running = start("shop:stubborn", "--grace", "500ms")
    running.wait_for("runs", 1)
    begun = time.monotonic()
    running.signal(signal.SIGTERM)
    code, errors = running.end()
    assert code == 1
    assert time.monotonic() - begun >= 0.5
    assert "not all have ended within 0.5 s: the rest is killed" in errors


def test_workers_end_when_their_parent_is_killed(start: Callable[..., Running]) -> None:
    running = start("shop:app", "-w", "2")
    pids = running.wait_for("runs", 2)
    running.process.kill()
    until(lambda: not any(is_alive(pid) for pid in pids))
    assert len(running.happened("ends")) == 2


def test_stubborn_workers_end_too_when_their_parent_is_killed(start: Callable[..., Running]) -> None:
    running = start("shop:stubborn", "--grace", "300ms")
    (pid,) = running.wait_for("runs", 1)
    running.process.kill()
    until(lambda: not is_alive(pid))
    assert running.happened("ignores")


# --- dying -----------------------------------------------------------------------------------------------------------


def test_a_killed_worker_is_started_again_and_the_others_go_on(start: Callable[..., Running]) -> None:
    running = start("shop:app", "-w", "2")
    first, second = running.wait_for("runs", 2)
    os.kill(first, signal.SIGKILL)
    third = running.wait_for("runs", 3)[2]
    assert third not in (first, second)
    assert is_alive(second)
    running.signal(signal.SIGTERM)
    code, errors = running.end()
    assert code == 0
    assert re.search(rf"worker \d \(pid {first}\) was killed by SIGKILL after \d+\.\d s; it starts again", errors)
    assert sorted(running.happened("ends")) == sorted((second, third))


def test_a_worker_that_somebody_stops_is_started_again(start: Callable[..., Running]) -> None:
    running = start("shop:app", "-w", "2")
    first, _ = running.wait_for("runs", 2)
    os.kill(first, signal.SIGTERM)
    running.wait_for("runs", 3)
    running.signal(signal.SIGTERM)
    code, errors = running.end()
    assert code == 0
    assert re.search(rf"worker \d \(pid {first}\) ended as a signal told it to after .* it starts again", errors)
    assert len(running.happened("ends")) == 3


def test_it_goes_on_when_nobody_reads_what_it_tells(start: Callable[..., Running]) -> None:
    running = start("shop:app")
    (first,) = running.wait_for("runs", 1)
    assert running.process.stderr is not None
    running.process.stderr.close()
    running.process.stderr = None
    os.kill(first, signal.SIGKILL)
    running.wait_for("runs", 2)
    running.signal(signal.SIGTERM)
    assert running.process.wait(PATIENCE) == 0
    assert len(running.happened("ends")) == 1


def test_who_dies_again_and_again_is_started_later_and_later(start: Callable[..., Running]) -> None:
    running = start("shop:dying", "--json")
    running.wait_for("runs", 4)
    running.signal(signal.SIGTERM)
    code, errors = running.end()
    events = [json.loads(line) for line in errors.splitlines() if line.startswith("{")]
    delays = [event["delay_ms"] for event in events if event["event"] == "died"]
    for number, delay in enumerate(delays[:4]):
        assert 100 <= delay <= 1.5 * 100 * 2**number
        assert delay >= 0.5 * 100 * 2**number
    assert {event["code"] for event in events if event["event"] == "died"} == {7}
    assert code in (0, 1)  # the last one may have been stopped, or died by itself while stopping


def test_a_stop_while_a_worker_waits_for_its_next_start(start: Callable[..., Running]) -> None:
    running = start("shop:mixed", "-w", "2")
    for _ in range(3):
        running.read_until("it starts again")
    count = len(running.happened("runs"))
    running.signal(signal.SIGTERM)
    code, errors = running.end()
    assert code == 0
    assert "SIGTERM: 1 worker is stopped" in errors
    assert ") starts" not in errors
    assert len(running.happened("runs")) == count


def test_the_exit_code_of_who_died_is_told(start: Callable[..., Running]) -> None:
    running = start("shop:dying", "-q")
    running.wait_for("runs", 2)
    running.signal(signal.SIGTERM)
    errors = running.end()[1]
    assert "ended with exit code 7 after" in errors
    assert ") starts" not in errors


def test_a_worker_whose_app_ends_is_not_started_again(start: Callable[..., Running]) -> None:
    running = start("shop:brief", "-w", "2")
    code, errors = running.end()
    assert code == 0, errors
    assert len(running.happened("runs")) == 2
    assert errors.count("ended with exit code 0, by itself") == 2


def test_a_handler_that_hangs_costs_the_worker_its_life(start: Callable[..., Running]) -> None:
    """Although its thread goes on, which would keep an interpreter from ending."""
    running = start("shop:hanging")
    first, second = running.wait_for("runs", 2)[:2]
    assert first != second
    running.signal(signal.SIGTERM)
    errors = running.end()[1]
    assert "worker 1: ERROR fastlog.delivery: handler mail took longer than 1 s" in errors
    assert "ended because a handler did not (exit code 75)" in errors


def test_what_an_app_ends_with_is_told_in_one_line(start: Callable[..., Running]) -> None:
    running = start("shop:broken")
    running.wait_for("runs", 2)
    running.signal(signal.SIGTERM)
    errors = running.end()[1]
    assert "worker 1: ERROR fastlog.delivery: the app ended: UnknownTopicError: there is no topic 'orders'" in errors
    assert "Traceback" not in errors


def test_a_module_that_breaks_later_is_a_death_like_others(start: Callable[..., Running], folder: Path) -> None:
    running = start("shop:app")
    (first,) = running.wait_for("runs", 1)
    (folder / "shop.py").write_text("from somewhere import something\n")
    os.kill(first, signal.SIGKILL)
    told = running.read_until("ended with exit code 3 after")
    (folder / "shop.py").write_text(STAND_IN)
    second = running.wait_for("runs", 2)[1]
    os.kill(second, signal.SIGKILL)
    running.wait_for("runs", 3)
    running.signal(signal.SIGTERM)
    code, errors = running.end()
    assert code == 0
    assert "ModuleNotFoundError: No module named 'somewhere'; it starts again" in told
    last = [line for line in errors.splitlines() if "it starts again" in line][-1]
    assert "SIGKILL" in last and "Error" not in last


# --- loading ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("target", "expected"),
    [
        ("shop", "'shop' names no app: expected MODULE:APP, such as shop:app"),
        ("shop.py:app", "expected MODULE:APP, the module as in an import statement: shop:app"),
        ("./src/shop.py", "the module as in an import statement: src.shop:app"),
        (":app", "names no app"),
        ("shop:", "names no app"),
        ("shop:app()", "names no app"),
        ("shpo:app", "there is no module 'shpo'; did you mean 'shop'?: it was looked for in "),
        ("nothing_like_it:app", "there is no module 'nothing_like_it': it was looked for in "),
        ("pakage.handlers:app", "there is no module 'pakage'; did you mean 'package'?"),
        ("package.handler:app", "there is no module 'package.handler'; did you mean 'handlers'?: it was looked for in "
                                "package"),
        ("shop:ap", "has no attribute 'ap'; did you mean 'app'?; apps in it: app, bare, brief, broken, dying,"),
        ("shop:app.nothing", "has no attribute 'app.nothing'"),
        ("shop:number", "'shop:number' is of type int, expected an App such as app = fastlog.App(...); apps in it"),
        ("shop:StandIn", "is the class StandIn itself, expected an App"),
        ("shop:make_app", "is a function (call it in the module: app = make_app()), expected an App"),
        ("package:app", "has no attribute 'app'; it has no app"),
    ],
)  # fmt: skip
def test_what_cannot_be_found_is_named(
    folder: Path, monkeypatch: pytest.MonkeyPatch, target: str, expected: str
) -> None:
    (folder / "shop.py").write_text(STAND_IN)
    (folder / "package").mkdir()
    (folder / "package" / "__init__.py").touch()
    (folder / "package" / "handlers.py").touch()
    monkeypatch.syspath_prepend(folder)
    try:
        with pytest.raises(fastlog.ConfigError) as caught:
            load_app(target)
    finally:
        for name in ("shop", "package", "package.handlers"):
            sys.modules.pop(name, None)
    assert expected in str(caught.value)


def test_who_cannot_find_the_app_ends_at_once(start: Callable[..., Running]) -> None:
    code, errors = start("shop:ap", "-w", "4").end()
    assert code == 2
    assert "Usage: fastlog run" in errors and "did you mean 'app'?" in errors
    assert "Traceback" not in errors
    assert errors.count(") starts") == 1


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ("1 / 0", "'bad:app' cannot be loaded: ZeroDivisionError: division by zero"),
        (
            "import missing_library",
            "'bad:app' cannot be loaded: ModuleNotFoundError: No module named 'missing_library'",
        ),
        ("app = (", "'bad:app' cannot be loaded: SyntaxError: '(' was never closed"),
        (
            "import os; os._exit(9)",
            "ended with exit code 9 while it was loading 'bad:app': no other worker was started",
        ),
        ("raise SystemExit(4)", "ended with exit code 4 while it was loading 'bad:app'"),
        ("import os; os.kill(os.getpid(), 6)", "was killed by SIGABRT while it was loading 'bad:app'"),
    ],
)
def test_what_fails_while_it_is_loaded_is_told(
    start: Callable[..., Running], folder: Path, content: str, expected: str
) -> None:
    (folder / "bad.py").write_text(content)
    running = start("bad:app", "-w", "4")
    code, errors = running.end()
    assert code == 3
    assert expected in errors
    assert errors.count(") starts") == 1
    if "cannot be loaded" in expected:
        assert "bad.py" in errors
        assert "importlib" not in errors and "worker.py" not in errors


def test_a_dotted_attribute_and_a_package(start: Callable[..., Running], folder: Path) -> None:
    (folder / "package").mkdir()
    (folder / "package" / "__init__.py").write_text("import shop\nclass config:\n    app = shop.brief\n")
    assert start("package:config.app").end()[0] == 0
    # which keeps the current folder out of where modules are looked for
    assert start("package:config.app", variables={"PYTHONSAFEPATH": "1"}).end()[0] == 0


def test_ctrl_c_while_the_app_is_loaded(start: Callable[..., Running], folder: Path) -> None:
    (folder / "slow.py").write_text("open('begun.txt', 'w').close()\nimport time\ntime.sleep(60)\n")
    running = start("slow:app", "-w", "2")
    until((folder / "begun.txt").exists)
    running.signal(signal.SIGINT)
    code, errors = running.end()
    assert code == 0
    assert "Traceback" not in errors


# --- options ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("place", ["before", "after"])
def test_another_store(start: Callable[..., Running], folder: Path, place: str) -> None:
    if place == "after":
        assert start("shop:brief", "--store", "elsewhere").end()[0] == 0
    else:
        command = [sys.executable, "-m", "fastlog", "--store", "elsewhere", "run", "shop:brief"]
        environment = {**os.environ, "PYTHONPATH": PACKAGE}
        subprocess.run(command, cwd=folder, env=environment, check=True, capture_output=True, timeout=PATIENCE)
    assert (folder / "store.txt").read_text() == str(folder.resolve() / "elsewhere")


def test_its_own_store_unless_told(start: Callable[..., Running], folder: Path) -> None:
    assert start("shop:brief", variables={"FASTLOG_STORE": "elsewhere"}).end()[0] == 0
    assert (folder / "store.txt").read_text() == "its own"


def test_an_app_that_takes_no_other_store(start: Callable[..., Running]) -> None:
    code, errors = start("shop:bare", "--store", "elsewhere").end()
    assert code == 2
    assert "'shop:bare' cannot be given another store: run it without --store" in " ".join(errors.split())


def test_plain_lines_without_a_terminal(start: Callable[..., Running]) -> None:
    errors = start("shop:brief").end()[1]
    assert "\x1b" not in errors
    assert "Ctrl-C" not in errors
    assert all(line.startswith("fastlog run: worker 1 ") for line in errors.splitlines())


def test_json_lines(start: Callable[..., Running]) -> None:
    running = start("shop:brief", "--json")
    events = [json.loads(line) for line in running.end()[1].splitlines()]
    assert [event["event"] for event in events] == ["started", "loaded", "ended"]
    assert events[0]["worker"] == 1 and events[0]["alive"] == 1 and events[2]["code"] == 0
    assert len({event["pid"] for event in events}) == 1


@pytest.mark.parametrize("arguments", [("-w", "0"), ("-w", "x"), ("--grace", "soon"), ("--grace", "-1"), ("--nope",)])
def test_wrong_options(start: Callable[..., Running], arguments: tuple[str, ...]) -> None:
    code, errors = start("shop:app", *arguments).end()
    assert code == 2
    assert ") starts" not in errors


def test_stdout_belongs_to_the_app(start: Callable[..., Running], folder: Path) -> None:
    (folder / "talks.py").write_text("import shop\nprint('hello from the app')\napp = shop.brief\n")
    running = start("talks:app")
    output, errors = running.process.communicate(timeout=PATIENCE)
    assert output == "hello from the app\n"
    assert "fastlog run:" in errors
