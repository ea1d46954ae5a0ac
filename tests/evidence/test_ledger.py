"""The page of evidence says what its lines add up to."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Any

import pytest

from tests.evidence import ledger
from tests.evidence.run import ROOT, commit, is_of_this_history


def line(**changes: Any) -> dict[str, Any]:
    made = {
        "engine": "kills", "unit": "kills", "seed": 7, "turns": 3, "counts": {"kills": 12, "freezes": 2},
        "measures": {}, "began": "2026-11-21T10:00:00+00:00", "seconds": 3600.0, "scenario": None, "planted": None,
        "failure": None, "commit": "0123456789ab", "machine": {},
    }  # fmt: skip
    return {**made, **changes}


@pytest.fixture
def published(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where lines are published: into files of the test; every commit without ``+`` is one of the history."""
    for name, file in (("PUBLISHED", "runs"), ("TRIALS", "planted"), ("PEERS", "peers")):
        monkeypatch.setattr(ledger, name, tmp_path / f"{file}.jsonl")
    monkeypatch.setattr(ledger, "is_of_this_history", lambda name: not name.endswith("+"))
    return tmp_path


def test_the_page_is_what_its_lines_add_up_to() -> None:
    page = ledger.PAGE.read_text()
    assert ledger.written(page) == page, "run: python -m tests.evidence ledger"


def test_runs_are_added_up(published: Path) -> None:
    added, left_out = ledger.publish(
        [
            line(),
            line(seed=8, counts={"kills": 5}, failure={"problem": "lost in /dev/shm/x", "scenario": "one", "seed": 9}),
            line(seed=9, commit="0123456789ab+"),  # of files that differ from their commit
            line(seed=10, planted="no sync"),  # not of the product
        ]
    )
    assert added == 2
    assert [one["failure"] for one in ledger.read(ledger.PUBLISHED)] == [None, {"scenario": "one", "seed": 9}]
    assert len(left_out) == 1 and "0123456789ab+" in left_out[0]
    assert ledger.publish([line()]) == (0, []), "a run counts once"
    [row] = [row for row in ledger.runs_table() if row.startswith("| `kills`")]
    assert "| 12 kills<br>and 5 in runs that ended with a finding<br>2 freezes |" in row
    assert row.endswith("| 0 | 20,000 | 2 | 2.0 | 1 |")


def test_runs_of_this_history_stand_apart(published: Path) -> None:
    assert ledger.publish([line(), line(seed=8, began="2026-11-23T10:00:00+00:00", counts={"kills": 5})]) == (2, [])
    [row] = [row for row in ledger.runs_table() if row.startswith("| `kills`")]
    assert row.endswith("| 17 kills<br>2 freezes | 5 | 20,000 | 2 | 2.0 | 0 |")


def test_only_commits_of_this_history_are_of_it() -> None:
    here = commit().rstrip("+")
    assert is_of_this_history(here) == (here != "unknown"), "of an archive without history none is"
    assert not is_of_this_history("0123456789ab")
    assert not is_of_this_history(f"{here}+")
    assert not is_of_this_history("HEAD")


def test_lines_that_are_published_name_no_path(published: Path) -> None:
    told = {"refused": "OSError: /dev/shm/peers-x/store.db is gone, see docs/evidence.md"}
    assert ledger.publish([line(engine="peers lmdb damage", peer="lmdb", said=told)]) == (1, [])
    [found] = ledger.read(ledger.PEERS)
    assert found["said"] == {"refused": "OSError: …/store.db is gone, see docs/evidence.md"}


def test_what_was_measured_most_often_is_told(published: Path) -> None:
    for n, median in ((3, 0.5), (200, 0.25), (20, 0.125)):
        measured = {"n": n, "median": median, "p99": 0.75, "max": 2 + (n == 3)}
        ledger.append(line(seed=n, measures={"seconds to open": measured}), ledger.PUBLISHED)
    [row] = [row for row in ledger.runs_table() if row.startswith("| `kills`")]
    assert "<br>seconds to open: median 0.25, p99 0.75 (the 200 of one run), largest of all 223: 3 |" in row


def test_trials_of_planted_mistakes_are_added_up(published: Path) -> None:
    caught, survived = {"mistakes": 1, "caught": 1}, {"mistakes": 1, "caught": 0}
    trial = line(
        engine="planted", planted="acked_before_synced", scenario="disks:durable_appends", counts=caught, seconds=4.2,
        problem="lost in /dev/shm/x",
    )  # fmt: skip
    trials = [
        trial,
        {**trial, "seed": 8, "seconds": 6.2},
        {**trial, "seed": 9, "seconds": 30.0, "counts": survived},
        {**trial, "planted": "crc_skipped"},
        {**trial, "seed": 10, "scenario": "kills:steps"},  # another engine had to find it then
        {**trial, "planted": "none", "counts": {}},  # the same build without a mistake
    ]
    assert ledger.publish(trials) == (5, [])
    assert ledger.publish(trials) == (0, [])
    added, left_out = ledger.publish([{**trial, "seed": 11, "turns": 0, "counts": survived}])
    assert added == 0 and "no turn of it came to its end" in left_out[0]
    assert "/dev/shm" not in ledger.TRIALS.read_text()
    [row] = [row for row in ledger.planted_table() if row.startswith("| `acked_before_synced`")]
    assert row.endswith(" | 5 s | 2 of 3 |")
    assert ledger.add_up(ledger.read(ledger.PUBLISHED)) == {}


def test_bugs_name_tests_that_are_there() -> None:
    for bug in tomllib.loads(ledger.BUGS.read_text())["bug"]:
        assert set(bug) == {"what", "engine", "command", "fixed"}
        file, _, name = bug["command"].partition("::")
        if file.startswith("tests/"):
            assert f"def {name}(" in (ROOT / file).read_text() if name else (ROOT / file).exists(), bug["command"]
