"""``fastlog demo pipeline``: processes that are killed, results that equal the source, and checks that can fail."""

from __future__ import annotations

import json
import os
import random
from pathlib import Path

import pytest

import fastlog
from fastlog.demo import flights, pipeline, supervisor
from tests.cli.support import run, run_process, write_flights

ROWS = 6000
SEEDS = int(os.environ.get("FASTLOG_DEMO_SEEDS", "3"))


@pytest.fixture
def table(folder: Path, seed: int) -> Path:
    return write_flights(folder / "flights.csv", ROWS, random.Random(seed))


@pytest.mark.timeout(300)
@pytest.mark.parametrize("attempt", range(SEEDS))
def test_results_equal_the_source_whoever_dies(table: Path, folder: Path, seed: int, attempt: int) -> None:
    arguments = ("--data", table, "--keep", folder / "kept", "--seed", seed + attempt, "--kills", 6, "--json")
    result = run_process("demo", "pipeline", *arguments)
    assert result.returncode == 0, result.stdout + result.stderr
    found = json.loads(result.stdout)
    assert found["ok"]
    assert found["events"] == ROWS
    assert 1 <= found["killed"] <= 6  # what is over early is not killed any more
    assert [check["name"] for check in found["checks"] if not check["ok"]] == []
    assert len(found["checks"]) == 6
    listed = json.loads(run("groups", "list", "--store", found["store"], "--json").stdout)["groups"]
    assert {group["name"]: (group["lag"], group["members"]) for group in listed} == {
        "delays": (0, 0),
        "turnarounds": (0, 0),
    }


def test_plain_lines_where_there_is_no_terminal(table: Path, folder: Path) -> None:
    result = run_process("demo", "pipeline", "--data", table, "--keep", folder / "kept", "--kills", 0, "--events", 500)
    assert result.returncode == 0, result.stdout + result.stderr
    assert "\x1b" not in result.stdout
    for words in ("500 flights", "seed", "every event once", "in order per aircraft", "lag 0", "fastlog topics list"):
        assert words in result.stdout


# --- the checks can fail --------------------------------------------------------------------------


def test_checks_see_what_is_lost_doubled_or_out_of_order(table: Path, folder: Path) -> None:
    data = flights.load_flights(table).first(300)
    with fastlog.open(folder / "store", durability="os") as store:
        pipeline.create_topics(store)
        with store.producer() as producer:
            producer.send_many(pipeline.EVENTS, data.values, keys=data.keys, timestamps=data.timestamps)
        assert [check.ok for check in supervisor.check_source(store, data)] == [True, True]
        assert not any(check.ok for check in supervisor.check_lag(store))
        assert not any(check.ok for check in supervisor.check_delays(store, data))
        assert not any(check.ok for check in supervisor.check_turnarounds(store, data))
        missing = data.first(299)
        assert [check.ok for check in supervisor.check_source(store, missing)] == [False, True]
        late = next(number for number, key in enumerate(data.keys) if key is not None)
        with store.producer() as producer:
            producer.send(pipeline.EVENTS, data.values[late], key=data.keys[late], timestamp=data.timestamps[late] - 1)
        assert [check.ok for check in supervisor.check_source(store, data)] == [False, False]


def test_each_aircraft_has_one_ingester(table: Path, folder: Path) -> None:
    data = flights.load_flights(table)
    path = folder / "events"
    pipeline.write_events(path, data.timestamps, data.keys, data.values)
    events = list(pipeline.read_events(path, 0))
    assert [(event.timestamp, event.key, event.value) for event in events] == list(
        zip(data.timestamps, data.keys, data.values, strict=True)
    )
    assert list(pipeline.read_events(path, events[99].end)) == events[100:]
    shares = [
        [event for part, _ in pipeline.parts(events, number) for event in part] for number in range(pipeline.INGESTERS)
    ]
    assert sum(map(len, shares)) == len(events)
    keys = [{event.key for event in share} for share in shares]
    assert not keys[0] & keys[1]
    assert not keys[1] & keys[2]
    assert all(len(share) > ROWS // 6 for share in shares)
