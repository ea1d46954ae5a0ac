"""The engine ``fuzz``: hostile bytes into everything that parses, led by what they reach.

A turn is one process of libFuzzer on one target: it takes the kept inputs and those that earlier turns on this machine
found to be new, then so many changed ones as the target's turn has. Executions are counted as libFuzzer reports them,
less those of inputs that earlier turns have tried.
A crash, a report of a sanitizer, an input that takes seconds, an allocation that the bytes do not justify, and an
exception that is none of fastlog's end the run; the input is kept in ``build/evidence/fuzz/found``, and whatever lies
there is what the next turn of its target begins with.
"""

from __future__ import annotations

import contextlib
import functools
import importlib.util
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from tests.evidence.fuzz import FOLDER, TARGETS, Driver, Target, building
from tests.evidence.fuzz.corpus import CORPUS, FOUND, GROWN
from tests.evidence.run import PLANTED, ROOT, NotHere, Scenario, Turn, environment

SECONDS_EACH: Final = 30  # that one input may take, also where others want the processor
MOST_MEMORY: Final = 1500  # MiB of the process
MOST_ALLOCATED: Final = 140  # MiB at once: a frame of zstd may ask for a window of 128
WORDS: Final = ROOT / "tests" / "evidence" / "fuzz"
PATIENCE: Final = 300  # seconds that a turn may take


class Found(Exception):
    """libFuzzer has ended on an input."""


def command(target: Target, *options: str) -> list[str]:
    """What runs libFuzzer on a target; ``options`` are further options of libFuzzer's, and folders of inputs."""
    own = [f"-max_len={target.most_bytes}"]
    if target.words is not None:
        own.append(f"-dict={WORDS / target.words}.dict")
    limits = [f"-timeout={SECONDS_EACH}", f"-rss_limit_mb={MOST_MEMORY}", f"-malloc_limit_mb={MOST_ALLOCATED}"]
    return [sys.executable, "-m", "tests.evidence.fuzz", target.name, *own, *limits, *options]


def variables(target: Target, clang: building.Clang, folder: Path) -> dict[str, str]:
    """Its environment; ``folder`` is where it may write."""
    if target.driver is Driver.PYTHON:
        return environment(**{FOLDER: str(folder)})
    return building.environment(clang, folder)


def take(turn: Turn, target: Target, clang: building.Clang) -> None:
    """One process of libFuzzer."""
    folders = [GROWN / target.name, FOUND / target.name, CORPUS / target.name]
    for folder in folders[:2]:
        folder.mkdir(parents=True, exist_ok=True)
    scratch, artifacts = turn.folder / "scratch", turn.folder / "artifacts"
    scratch.mkdir()
    artifacts.mkdir()
    grown, *known = (len(list(folder.iterdir())) for folder in folders)
    runs = grown + sum(known) + target.runs
    options = [
        f"-seed={turn.seed % (1 << 32) or 1}", f"-runs={runs}", f"-artifact_prefix={artifacts}/",
        # what compared bytes have in common leads too, at a price; others write into the folders only between turns
        f"-use_value_profile={int(turn.chance.random() < 0.25)}", "-reload=0", "-print_final_stats=1",
    ]  # fmt: skip
    said = run(command(target, *options, *map(str, folders)), variables(target, clang, scratch), turn.folder / "log")
    shutil.rmtree(scratch, ignore_errors=True)
    told = re.search(r"stat::number_of_executed_units:\s*(\d+)", said)
    executions = max(0, int(told[1]) - grown) if told else 0  # what earlier turns tried counts there
    turn.count("executions", executions)
    turn.count(f"of {target.name}", executions)
    kept = [FOUND / target.name / file.name for file in sorted(artifacts.iterdir())]
    if not os.environ.get(PLANTED):  # what a mistake has let through is no news
        for file in kept:
            shutil.copyfile(artifacts / file.name, file)
    ended = re.search(r"^# ended with (-?\d+)$", said, re.MULTILINE)
    if kept or told is None or ended is None or ended[1] != "0":
        where = ", ".join(str(file.relative_to(ROOT)) for file in kept) or "no input was kept"
        raise Found(f"{reason(said)} ({where})")


def run(arguments: list[str], variables: dict[str, str], log: Path) -> str:
    """Run to the end; what was said, with the exit status in the last line."""
    with log.open("w") as file:
        process = subprocess.Popen(arguments, cwd=ROOT, env=variables, stdout=file, stderr=subprocess.STDOUT)
        try:
            status = str(process.wait(PATIENCE))
        except subprocess.TimeoutExpired:
            status = f"SIGKILL, after {PATIENCE} s"
        finally:
            process.kill()
            process.wait()
        file.write(f"\n# ended with {status}\n")
    return log.read_text(errors="replace")


REASONS: Final = (
    r"SUMMARY: .*", r"^.*runtime error: .*", r"ERROR: \w+Sanitizer: .*", r"==\d+== ERROR: libFuzzer: .*",
    r"^[\w.]*(?:Error|Exception|Wrong)\b.*",
)  # fmt: skip


def reason(said: str) -> str:
    """What libFuzzer, a sanitizer or Python says was wrong: the most telling line of it."""
    found = [match[0].strip() for match in (re.search(one, said, re.MULTILINE) for one in reversed(REASONS)) if match]
    return found[0] if found else f"nothing was said: {said[-300:]!r}"


def merge(name: str, into: Path, source: Path) -> None:
    """Add to a folder of inputs the fewest of another one that lead where these do not."""
    source.mkdir(parents=True, exist_ok=True)
    target = TARGETS[name]
    clang = building.find_clang() if target.driver is Driver.PYTHON else building.build_instrumented()
    scratch = into.parent / f"{into.name}-scratch"
    scratch.mkdir()
    try:
        said = run(
            command(target, "-merge=1", str(into), str(source)), variables(target, clang, scratch), scratch / "log"
        )
        assert "# ended with 0" in said, said[-2000:]
    finally:
        shutil.rmtree(scratch)


@contextlib.contextmanager
def fuzz() -> Iterator[list[Scenario]]:
    """A scenario for each target."""
    if importlib.util.find_spec("atheris") is None:
        raise NotHere("targets in Python want Atheris, which has wheels for Linux on x86-64: pip install -e '.[fuzz]'")
    clang = building.build_instrumented()
    yield [Scenario(target.name, functools.partial(take, target=target, clang=clang)) for target in TARGETS.values()]
