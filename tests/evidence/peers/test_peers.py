"""Every peer goes through every engine once; and the judge that decides about all of them can tell right from wrong."""

from __future__ import annotations

import importlib.util
import os
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.evidence.peers import table
from tests.evidence.peers.engines import PEER_ENGINES, Ground, cell, damage_one, engine, ground_of
from tests.evidence.peers.peers import PEERS
from tests.evidence.peers.workload import StuckError, Told, Verdict, judge, value_of, values
from tests.evidence.run import NotHere, Run, Turn

REQUIRED = os.environ.get("FASTLOG_REQUIRE_BENCHMARKS") == "1"
MOUNTING_REQUIRED = bool(os.environ.get("FASTLOG_REQUIRE_POWER_CUTS"))
UNDER_CI = os.environ.get("CI", "").lower() in {"1", "true"}
TURNS = {"kills": 1, "cuts": 1, "damage": 4, "recovery": 1}
RECORDS = 2000
OUTCOMES = ("same", "refused", "missing", "wrong", "crashed", "hung")
SEED = 5
TOLD = Told([(0, 10), (12, 20)], 25)  # 10 and 11 were never acknowledged, nor 20 and what follows


def stored(*numbers: int) -> list[tuple[int, bytes]]:
    return [(position, value_of(SEED, number)) for position, number in enumerate(numbers)]


def judged(records: Any, told: Told = TOLD, positions: list[int] | None = None) -> tuple[str, int, int, int]:
    verdict = judge(records, SEED, told, positions)
    return verdict.outcome(), verdict.lost, verdict.holes, verdict.wrong


def test_a_judge_accepts_what_was_acknowledged_with_and_without_the_rest() -> None:
    assert judged(stored(*range(10), *range(12, 20))) == ("same", 0, 0, 0)
    assert judged(stored(*range(25))) == ("same", 0, 0, 0)
    assert judged(stored(*range(11), *range(12, 20), 23)) == ("same", 0, 0, 0)


def test_a_judge_misses_each_acknowledged_record() -> None:
    assert judged(stored(*range(10), *range(12, 19))) == ("missing", 1, 0, 0)
    assert judged(stored(*range(5), *range(6, 20))) == ("missing", 1, 1, 0)
    assert judged([]) == ("missing", 18, 0, 0)


@pytest.mark.parametrize(
    "strange",
    [
        b"",
        value_of(SEED, 19)[:-1],
        value_of(SEED + 1, 20),
        value_of(SEED, 25),  # which nobody appended
        value_of(SEED, 20)[:50] + b"\0" + value_of(SEED, 20)[51:],
        value_of(SEED, 7),  # again
        None,
    ],
    ids=["empty", "short", "of another seed", "beyond the end", "altered", "again", "none"],
)
def test_a_judge_sees_what_was_never_appended(strange: Any) -> None:
    records = stored(*range(20))
    assert judged([*records, (20, strange)]) == ("wrong", 0, 0, 1)


def test_a_judge_sees_order_and_positions() -> None:
    records = stored(*range(20))
    assert judged([records[1], records[0], *records[2:]]) == ("wrong", 1, 1, 1)
    assert judged([*records[:-1], (18, records[19][1])])[3] == 1
    assert judged(records, positions=list(range(20))) == ("same", 0, 0, 0)
    assert judged(records, positions=[*range(19), 20])[0] == "wrong"


def test_a_judge_hears_errors() -> None:
    def failing(problem: Exception) -> Iterator[tuple[int, bytes]]:
        yield from stored(*range(8))
        raise problem

    assert judged(failing(OSError("broken"))) == ("refused", 0, 0, 0)
    assert judged(failing(StuckError("no answer"))) == ("hung", 0, 0, 0)
    assert judge(failing(OSError("broken")), SEED, TOLD).error == "OSError: broken"


def test_a_judge_comes_to_an_end() -> None:
    def endless() -> Iterator[tuple[int, bytes]]:
        while True:
            yield 0, b""

    assert judged(endless())[0] == "wrong"


def test_values_are_their_numbers_alone() -> None:
    assert values(1, 3, 2) == [value_of(1, 3), value_of(1, 4)]
    assert len(set(values(1, 0, 500)) | set(values(2, 0, 500))) == 1000
    assert {len(value) for value in values(1, 0, 100)} == {100}


def test_what_was_told_is_added_up() -> None:
    told = Told.of(["pid 7", "open", "try 0 100", "ack 0 100", "try 100 1", "ack 100 1", "try 101 100"])
    assert (told.acked, told.end, told.count()) == ([(0, 101)], 201, 101)
    told.hear("try 201 1")
    told.hear("ack 201 1")
    assert (told.acked, told.count()) == ([(0, 101), (201, 202)], 102)


def test_damage_changes_one_file_in_one_place(folder: Path) -> None:
    content = bytes(range(256)) * 20
    for seed in range(60):
        (folder / "a.log").write_bytes(content)
        (folder / "other").write_bytes(content)
        how = damage_one(folder, ("*.log",), Turn(seed, folder))
        found = (folder / "a.log").read_bytes()
        changed = [index for index, (old, new) in enumerate(zip(content, found, strict=False)) if old != new]
        if how == "cut":
            assert len(found) < len(content) and not changed
        elif how == "flip":
            assert len(changed) == 1 and len(found) == len(content)
            assert (content[changed[0]] ^ found[changed[0]]).bit_count() == 1
        else:
            assert len(found) == len(content) and changed[0] // 512 == changed[-1] // 512
            assert not any(found[changed[0] : changed[-1]])
        assert (folder / "other").read_bytes() == content


def run_engine(ground: Ground, name: str) -> dict[str, Any]:
    """A few turns of an engine on a peer; its line."""
    peer = ground.peer.name
    run = Run(f"peers {peer} {name}", PEER_ENGINES[name].unit, 1, turns_wanted=TURNS[name])
    with engine(ground, name, RECORDS) as scenarios:
        run.go(scenarios)
    assert run.failure is None, run.failure
    assert run.turns == TURNS[name]
    return {**run.line(), **cell(peer, name, RECORDS, ground.said)}


def check(line: dict[str, Any]) -> None:
    """What has to hold for every peer, and what has to hold for fastlog."""
    peer, name, counts = line["peer"], line["cell"], Counter(line["counts"])
    assert counts[PEER_ENGINES[name].unit] >= TURNS[name]
    if name == "damage":
        assert sum(counts[outcome] for outcome in OUTCOMES) == counts["inputs"], line
    else:
        assert counts["acked"] > 0, line
    if name == "recovery":
        assert counts["acked"] >= RECORDS
        assert line["measures"]["recovery s"]["n"] == 1, line
    if peer.startswith("fastlog"):
        assert not any(counts[what] for what in ("wrong", "wrong records", "holes", "crashed", "hung")), line
        if name != "damage":
            assert not counts["refused"], line
            assert not counts["lost"] or (peer, name) == ("fastlog-os", "cuts"), line


@pytest.mark.skipif(bool(os.environ.get("FASTLOG_SANITIZED")), reason="other people's libraries under sanitizers")
@pytest.mark.parametrize("peer", PEERS)
def test_every_peer_goes_through_every_engine(peer: str) -> None:
    module = PEERS[peer].module
    if importlib.util.find_spec(module) is None:
        assert not REQUIRED, f"{module} has to be there"
        pytest.skip(f"not installed: {module}")
    missing = ""
    with ground_of(peer) as ground:
        for name in PEER_ENGINES:
            try:
                line = run_engine(ground, name)
            except NotHere as problem:
                assert not (MOUNTING_REQUIRED if name == "cuts" else UNDER_CI), problem
                missing = str(problem)
            else:
                check(line)
                assert PEERS[peer].title in "\n".join(table.tables([line]))
    if missing:
        pytest.skip(missing)


def a_line(peer: str, name: str, counts: dict[str, int], **more: Any) -> dict[str, Any]:
    return {
        "engine": f"peers {peer} {name}", "peer": peer, "cell": name, "version": "1", "said": {}, "turns": 10,
        "seed": 4, "counts": counts, "measures": {}, "failure": None, "planted": None, **more,
    }  # fmt: skip


def test_the_table_adds_up_and_says_what_repeats_each_cell() -> None:
    measures = {"recovery s": {"n": 3, "median": 0.25, "p99": 2.0, "max": 2.0}}
    lines = [
        a_line("lmdb", "kills", {"kills": 20, "acked": 1000}),
        a_line("lmdb", "kills", {"kills": 5, "acked": 500, "lost": 7, "holes": 2, "missing": 1}),
        a_line("lmdb", "cuts", {"cuts": 10, "acked": 10, "refused": 2}),
        a_line("lmdb", "recovery", {"recoveries": 3, "acked": 9}, measures=measures, records=500),
        a_line(
            "lmdb", "damage", {"inputs": 9, "same": 3, "refused": 1, "refused late": 1, "wrong": 5, "flip: wrong": 5}
        ),
        a_line("diskcache", "kills", {"kills": 9, "acked": 100}, failure={"problem": "the harness"}),
        a_line("sqlite-full", "cuts", {"cuts": 2, "acked": 9, "lost": 1, "missing": 1}),
        a_line("sqlite-normal", "cuts", {"cuts": 2, "acked": 9, "lost": 1, "missing": 1}),
    ]
    text = "\n".join(table.tables(lines))
    kills = "**7 of 1,500, in 1 of 25 kills; 2 of them with later ones kept**"
    assert f"| LMDB | {kills} | 0 of 10, 10 cuts | yes |" in text
    assert "| **2 refused** | 0 | 250 ms (2 s), 500 records |" in text
    assert "| LMDB | 9 | 3 | 1 (1 after wrong records) | 0 | **5** | 0 | 0 | 5 / 0 / 0 |" in text
    assert "| diskcache, Deque | not run |" in text
    assert "| **1 of 9, in 1 of 2 cuts** | yes |" in text
    assert "| 1 of 9, in 1 of 2 cuts | no |" in text
    assert "python -m tests.evidence peers lmdb kills --turns 10 --seed 4\n" in text
    assert "python -m tests.evidence peers lmdb recovery --turns 10 --seed 4 --records 500\n" in text


def test_an_outcome_is_silent_only_where_nothing_was_said() -> None:
    assert Verdict(wrong=1, lost=1).outcome() == "wrong"
    assert Verdict(wrong=1, error="x").outcome() == "refused"
    assert Verdict(lost=1, error="x", is_stuck=True).outcome() == "hung"
    assert Verdict(lost=1).outcome() == "missing"
    assert Verdict().outcome() == "same"
