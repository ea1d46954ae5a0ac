"""Row 25: log directories written by released versions are read for ever."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import fastlog
from tests.foreign import copy_folder, read_all
from tests.make_golden import GOLDEN
from tests.oracle.kafka import KafkaOracle
from tests.strategies import SOME_TIME
from tests.sweeping import plain

VERSIONS = sorted(path.name for path in GOLDEN.iterdir() if path.is_dir())


def test_there_is_a_golden_directory() -> None:
    assert "0.1" in VERSIONS


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("state", ["clean", "crashed"])
@pytest.mark.parametrize("read_only", [True, False])
def test_row25_older_directories_are_read(folder: Path, version: str, state: str, read_only: bool) -> None:
    expected = json.loads((GOLDEN / version / "expected.json").read_text())
    path = copy_folder(GOLDEN / version / state / "events-0", folder / "events-0")
    with fastlog.PartitionLog.open(path, read_only=read_only) as log:
        assert (log.recovery is None) == (state == "clean")
        assert log.start_offset == expected["start_offset"]
        records = [plain(record) for record in log.records()]
        assert records == expected["records"]
        assert log.verify().ok
        for _, timestamp, *_rest in expected["records"]:
            first = next(record[0] for record in records if record[1] >= timestamp)
            assert log.offset_for_time(timestamp) == first
        if not read_only:
            assert log.append([b"today"], timestamps=SOME_TIME) == records[-1][0] + 1
            assert log.verify().ok


@pytest.mark.parametrize("version", VERSIONS)
def test_row25_kafka_reads_older_directories(kafka: KafkaOracle, folder: Path, version: str) -> None:
    path = copy_folder(GOLDEN / version / "clean" / "events-0", folder / "events-0")
    files = sorted(file for file in path.iterdir() if file.suffix in {".log", ".index", ".timeindex"})
    dumped, problems = kafka.check(files)
    assert problems == []
    with fastlog.PartitionLog.open(path, read_only=True) as log:
        ours = [(r.offset, r.timestamp, r.key, r.value) for r in read_all(log)]
    shown = [(r.offset, r.timestamp, r.key, r.value) for f in sorted(dumped) for b in dumped[f] for r in b.records]
    assert [cells for cells in shown if cells[0] >= ours[0][0]] == ours
