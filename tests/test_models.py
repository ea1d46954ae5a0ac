"""The models of the sharing protocol in docs/models, checked exhaustively by spin; their planted mistakes, each found.

A model that passes says little by itself: it could be blind. So each of the mistakes that ``#ifdef BUG_...`` plants in
it has to be found, by the property that is there to find it. A property is the number in the comment beside an
assertion of the model (``/* P3 */``); a state from which nobody goes on is P9. docs/models/README.md lists both.

Without spin (Debian: ``spin``) the tests are skipped with that reason; under CI on Linux that is a failure.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.conftest import UNDER_CI

MODELS = Path(__file__).resolve().parents[1] / "docs" / "models"
MEMORY_MIB = 1500
STUCK = "P9"

# how far each model is driven: name of the run -> bounds
RUNS = {
    "presence": {
        "three handles": "HANDLES=3 DEATHS=1 APPENDS=1 CUTS=0 DELETIONS=0",
        "power cut": "HANDLES=2 DEATHS=1 APPENDS=2 CUTS=1 DELETIONS=0",
        "page deleted": "HANDLES=2 DEATHS=2 APPENDS=1 CUTS=0 DELETIONS=1",
        "progress": "HANDLES=2 DEATHS=2 APPENDS=1 CUTS=0 DELETIONS=0 PROGRESS",
    },
    "append": {
        "failed write": "WRITERS=2 READERS=1 DEATHS=1 CUTS=0 FAILURES=1",
        "two deaths": "WRITERS=2 READERS=1 DEATHS=2 CUTS=0 FAILURES=0",
        "power cut": "WRITERS=2 READERS=0 DEATHS=1 CUTS=1 FAILURES=0",
        "power cut, failed write": "WRITERS=1 READERS=0 DEATHS=1 CUTS=1 FAILURES=1",
    },
    "group_commit": {
        "failed sync": "HANDLES=2 APPENDS=3 DEATHS=1 FAILURES=1",
        "three handles": "HANDLES=3 APPENDS=2 DEATHS=1 FAILURES=0",
        "bells alone": "HANDLES=2 APPENDS=3 DEATHS=0 FAILURES=1 NO_SLICES",
        "bells alone, three handles": "HANDLES=3 APPENDS=3 DEATHS=0 FAILURES=0 NO_SLICES",
    },
    "handover": {
        "put out and dead": "MEMBERS=2 DEATHS=1 EVICTIONS=1 LEAVES=0",
        "leaving and dead": "MEMBERS=2 DEATHS=1 EVICTIONS=0 LEAVES=1",
        "put out twice": "MEMBERS=2 DEATHS=0 EVICTIONS=2 LEAVES=1",
    },
    "fenced_commit": {
        "larger page": "EVICTIONS=1 GROWTHS=1 DEATHS=1 RECORDS=1",
        "late commits": "EVICTIONS=3 GROWTHS=0 DEATHS=0 RECORDS=2",
    },
    "transaction": {
        "time-outs": "TRANSACTIONS=2 INSTANCES=1 COMPLETERS=2 TAKEOVERS=2 DEATHS=1 CUTS=0",
        "second instance": "TRANSACTIONS=1 INSTANCES=2 COMPLETERS=1 TAKEOVERS=1 DEATHS=0 CUTS=0",
        "partition that waits": "TRANSACTIONS=2 INSTANCES=1 COMPLETERS=1 TAKEOVERS=2 DEATHS=1 CUTS=0 RESOLVES",
        "power lost": "TRANSACTIONS=2 INSTANCES=1 COMPLETERS=1 TAKEOVERS=1 DEATHS=0 CUTS=1",
        "opened after power was lost": "TRANSACTIONS=1 INSTANCES=2 COMPLETERS=1 TAKEOVERS=0 DEATHS=0 CUTS=1",
    },
}

# planted mistake -> the run that finds it, and the property that it breaks
MISTAKES = {
    "presence": {
        "BUG_ATTACHED_WITHOUT_EVIDENCE": ("power cut", "P4"),
        "BUG_CLOSER_DOES_NOT_RECHECK": ("power cut", "P6"),
        "BUG_CLOSER_IGNORES_DIRTY": ("power cut", "P6"),
        "BUG_EVIDENCE_AFTER_OWN_LOCK": ("power cut", "P4"),
        "BUG_MARKED_BEFORE_SYNC": ("power cut", "P6"),
        "BUG_MARKED_BEFORE_UNLINKED": ("power cut", "P6"),
        "BUG_MARKED_WITHOUT_EXCLUSIVE": ("power cut", "P6"),
        "BUG_MISSING_PAGE_IS_MADE": ("page deleted", "P2"),
        "BUG_NO_RECHECK_AFTER_SHARED": ("power cut", "P2"),
        "BUG_OLD_PAGE_BELIEVED": ("power cut", "P4"),
        "BUG_PAGE_READ_BEFORE_SHARED": ("three handles", "P2"),
        "BUG_PRESENCE_KEPT_WHILE_WAITING": ("progress", STUCK),
        "BUG_RECOVERY_DOES_NOT_SYNC": ("power cut", "P6"),
    },
    "append": {
        "BUG_CLOSER_IGNORES_DIRTY": ("power cut, failed write", "P6"),
        "BUG_DIRTY_AFTER_FIRST_BYTE": ("failed write", "P6"),
        "BUG_DIRTY_CLEARED_BEFORE_PUBLISHED": ("failed write", "P6"),
        "BUG_DIRTY_NOT_LOOKED_AT": ("power cut, failed write", "P5"),
        "BUG_FAILED_APPEND_DOES_NOT_CUT": ("power cut, failed write", "P6"),
        "BUG_MARKED_BEFORE_SYNC": ("power cut, failed write", "P6"),
        "BUG_PUBLISHED_IN_ONE_SLOT": ("failed write", "P5"),
        "BUG_READER_DOES_NOT_RECHECK": ("failed write", "P5"),
        "BUG_TAKEOVER_DOES_NOT_CUT": ("power cut, failed write", "P5"),
        "BUG_TAKEOVER_DOES_NOT_SYNC": ("power cut, failed write", "P5"),
        "BUG_VERSION_BEFORE_SLOT": ("failed write", "P5"),
    },
    "group_commit": {
        "BUG_ACKNOWLEDGED_BEFORE_SYNC": ("failed sync", "P3"),
        "BUG_BELL_BEFORE_UNLOCK": ("bells alone", STUCK),
        "BUG_DEAD_LEADER_BELIEVED": ("failed sync", "P3"),
        "BUG_DIRECTORY_NOT_SYNCED": ("failed sync", "P3"),
        "BUG_DURABLE_BEFORE_SYNC": ("failed sync", "P3"),
        "BUG_END_READ_AFTER_SYNC": ("failed sync", "P3"),
        "BUG_FLAG_NOT_SET_AGAIN": ("bells alone", STUCK),
        "BUG_FLAG_SET_AFTER_LOOKING": ("bells alone", STUCK),
        "BUG_NO_BELL": ("bells alone", STUCK),
        "BUG_ONLY_ACTIVE_SEGMENT_SYNCED": ("failed sync", "P3"),
        "BUG_POISON_AFTER_UNLOCK": ("failed sync", "P3"),
        "BUG_POISON_NOT_SHARED": ("failed sync", "P3"),
        "BUG_RECOVERY_BELIEVES_THE_CACHE": ("failed sync", "P3"),
        "BUG_RECOVERY_DOES_NOT_SYNC": ("failed sync", "P3"),
        "NO_SLICES": ("failed sync", STUCK),
    },
    "handover": {
        "BUG_COMMIT_NOT_COMPARED": ("put out and dead", "P11"),
        "BUG_DOCUMENT_BEFORE_WORDS": ("leaving and dead", STUCK),
        "BUG_NO_GROUP_LOCK": ("put out and dead", "P10"),
        "BUG_OWNERS_STRIPPED_BEFORE_NUMBERS": ("put out and dead", STUCK),
        "BUG_RELEASE_NOT_COMPARED": ("put out and dead", "P10"),
        "BUG_TAKER_COMPARES_BEFORE_LOCKED": ("put out and dead", "P10"),
        "BUG_TAKER_DOES_NOT_COMPARE_OWN_NUMBER": ("put out and dead", "P10"),
        "BUG_WAITS_FOR_THE_NEXT_DOCUMENT": ("put out and dead", STUCK),
    },
    "fenced_commit": {
        "BUG_COMPARED_BEFORE_LOCKED": ("late commits", "P11"),
        "BUG_COPIED_BEFORE_MOVING": ("larger page", "P10"),
        "BUG_EPOCH_GIVEN_AGAIN": ("late commits", "P12"),
        "BUG_EXCHANGE_IGNORES_MOVING": ("larger page", "P10"),
        "BUG_OLD_PAGE_NOT_RETIRED": ("larger page", STUCK),
        "BUG_OWNER_CHANGED_WITHOUT_LOCK": ("late commits", "P11"),
        "BUG_POSITION_KEPT_WHEN_LOST": ("late commits", "P12"),
        "BUG_POSITION_READ_BEFORE_TAKEN": ("late commits", "P12"),
        "BUG_RENAMED_BEFORE_RETIRED": ("larger page", STUCK),
        "BUG_REPLACEMENT_NOT_FINISHED": ("larger page", STUCK),
    },
    "transaction": {
        "BUG_COMPLETED_BEFORE_MARKED": ("time-outs", STUCK),
        "BUG_COMPLETED_BEFORE_MARKERS_SYNCED": ("power lost", "P15"),
        "BUG_DATA_BEFORE_ENTERED": ("second instance", "P16"),
        "BUG_DATA_NOT_SYNCED": ("power lost", "P15"),
        "BUG_DECISION_IS_CHANGED": ("time-outs", "P13"),
        "BUG_LEFTOVERS_CLEARED_WITH_THEIR_EPOCH": ("second instance", "P16"),
        "BUG_LEFTOVERS_NOT_CLEARED": ("opened after power was lost", "P17"),
        "BUG_MARKED_BEFORE_DECISION_SYNCED": ("power lost", "P15"),
        "BUG_OLD_EPOCH_NOT_REFUSED": ("time-outs", STUCK),
        "BUG_ONGOING_NOT_SYNCED": ("power lost", "P16"),
        "BUG_OPENED_WITH_THE_SAME_EPOCH": ("second instance", "P17"),
        "BUG_RESOLVER_DOES_NOT_COMPARE": ("partition that waits", "P16"),
        "BUG_STATE_APPENDED_UNCONDITIONALLY": ("time-outs", "P13"),
        "BUG_TAKEN_OVER_WITH_THE_SAME_EPOCH": ("time-outs", "P16"),
    },
}

LEFT_UNFINISHED = ("max search depth too small", "out of memory", "memory limit", "error:", "Segmentation")


@dataclass
class Verdict:
    """What spin found: ``broken`` is empty, or the property that does not hold."""

    broken: str
    states: int
    output: str


@pytest.fixture(scope="session")
def spin() -> str:
    found = shutil.which("spin")
    compiler = shutil.which("cc") or shutil.which("gcc")
    if found and compiler:
        return found
    missing = "spin (Debian: apt-get install spin)" if not found else "a C compiler"
    if UNDER_CI and sys.platform == "linux":
        pytest.fail(f"the models have to be checked under CI: {missing} is missing")
    pytest.skip(f"the models are not checked: {missing} is missing")


def call(command: list[str], place: Path) -> str:
    # what runs under sanitizers is fastlog, not spin
    environment = {name: value for name, value in os.environ.items() if name != "LD_PRELOAD"}
    done = subprocess.run(command, cwd=place, env=environment, capture_output=True, text=True, timeout=280, check=False)
    if done.returncode:
        raise AssertionError(f"{' '.join(command)} ended with {done.returncode}:\n{done.stdout}{done.stderr}")
    return done.stdout + done.stderr


def check(model: str, defines: list[str], place: Path, optimise: str) -> Verdict:
    """Search all states of a model with these preprocessor definitions."""
    name = f"{model}.pml"
    source = (MODELS / name).read_text(encoding="utf-8")
    (place / name).write_text(source, encoding="utf-8")
    options = [f"-D{define}" for define in defines]
    call(["spin", "-a", *options, name], place)
    compiler = shutil.which("cc") or "gcc"
    call([compiler, optimise, "-w", "-DSAFETY", "-DCOLLAPSE", f"-DMEMLIM={MEMORY_MIB}", "-o", "pan", "pan.c"], place)
    output = call(["./pan", "-m200000", "-w22", "-c1"], place)
    assert not any(sign in output for sign in LEFT_UNFINISHED), output
    assert "Search not completed" not in output or "errors: 0" not in output, output
    states = int(re.search(r"(\d+) states, stored", output)[1])
    if "errors: 0" in output:
        return Verdict("", states, output)
    if "invalid end state" in output.partition("(Spin Version")[0]:
        return Verdict(STUCK, states, output)
    trail = subprocess.run(
        ["spin", "-t", *options, name], cwd=place, capture_output=True, text=True, timeout=280, check=False
    )
    output += trail.stdout + trail.stderr
    at = re.search(rf"{model}\.pml:(\d+), Error: assertion violated", output)
    assert at, output
    line = source.splitlines()[int(at[1]) - 1]
    property_ = re.search(r"/\* (P\d+)", line)
    assert property_, f"an assertion without a property: {line}"
    return Verdict(property_[1], states, output)


@pytest.mark.parametrize(("model", "run"), [(model, run) for model, runs in RUNS.items() for run in runs])
def test_model_holds(model: str, run: str, spin: str, tmp_path: Path) -> None:
    verdict = check(model, RUNS[model][run].split(), tmp_path, "-O1")
    print(f"{model}, {run}: {verdict.states} states")
    assert not verdict.broken, f"{verdict.broken} does not hold:\n{verdict.output}"
    assert verdict.states > 10_000, "a model that goes nowhere proves nothing"


@pytest.mark.parametrize(
    ("model", "mistake"), [(model, mistake) for model, mistakes in MISTAKES.items() for mistake in mistakes]
)
def test_planted_mistake_is_found(model: str, mistake: str, spin: str, tmp_path: Path) -> None:
    run, expected = MISTAKES[model][mistake]
    verdict = check(model, [*RUNS[model][run].split(), mistake], tmp_path, "-O0")
    assert verdict.broken == expected, f"{mistake} breaks {verdict.broken or 'nothing'}, expected {expected}"


@pytest.mark.parametrize("model", RUNS)
def test_every_planted_mistake_is_tried_and_told(model: str) -> None:
    planted = set(re.findall(r"\bBUG_\w+", (MODELS / f"{model}.pml").read_text(encoding="utf-8")))
    assert planted == {mistake for mistake in MISTAKES[model] if mistake.startswith("BUG_")}
    told = (MODELS / "README.md").read_text(encoding="utf-8")
    assert not [mistake for mistake in planted if f"`{mistake}`" not in told]
    assert not [run for run in RUNS[model] if run not in told]


def test_all_models_are_checked() -> None:
    assert {path.stem for path in MODELS.glob("*.pml")} == set(RUNS) == set(MISTAKES)
