"""Random operations against the model of a log: what is read, and what lies on disk after each close."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path
from typing import Any

import hypothesis.strategies as st
import pytest
from hypothesis import settings
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

import fastlog
from fastlog._native import oscalls  # type: ignore[attr-defined]
from tests.folders import MEMORY
from tests.foreign import as_reference, read_all
from tests.reference.batch import Record
from tests.reference.log import ModelConfig, ModelError, ModelLog
from tests.strategies import SOME_TIME, content, headers, records, timestamps

configs = st.builds(
    ModelConfig,
    segment_bytes=st.sampled_from([1500, 4096, 20_000, 1 << 20]),
    segment_ms=st.sampled_from([300, 7 * 24 * 3600 * 1000]),
    segment_index_bytes=st.sampled_from([96, 240, 10 << 20]),
    index_interval_bytes=st.sampled_from([1, 100, 700, 4096]),
    max_message_bytes=st.sampled_from([400, 1400, 1_048_588]),
)


class LogMachine(RuleBasedStateMachine):
    """The same calls go to a ``PartitionLog`` and to the model."""

    @initialize(config=configs, durability=st.sampled_from(["os", "batch"]), mmap=st.booleans())
    def create(self, config: ModelConfig, durability: str, mmap: bool) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="fastlog-model-", dir=MEMORY))
        self.path = self.folder / "events-3"
        self.now = SOME_TIME
        oscalls.set_clock(self.now)
        self.config = fastlog.LogConfig(
            segment_bytes=config.segment_bytes,
            segment_ms=config.segment_ms,
            segment_index_bytes=config.segment_index_bytes,
            index_interval_bytes=config.index_interval_bytes,
            max_message_bytes=config.max_message_bytes,
            mmap=mmap,
        )
        self.durability = durability
        self.model = ModelLog(config, self.now)
        self.log: Any = self.open()

    def open(self, read_only: bool = False) -> Any:
        config = None if read_only else self.config
        return fastlog.PartitionLog.open(self.path, durability=self.durability, config=config, read_only=read_only)

    def teardown(self) -> None:
        if hasattr(self, "log"):
            try:
                assert self.log.verify().ok
                self.log.close()
                self.compare_files()
            finally:
                self.log.close()
        if hasattr(self, "folder"):
            shutil.rmtree(self.folder)
        oscalls.set_clock(None)

    @rule(drawn=records(max_size=8))
    def append(self, drawn: list[Record]) -> None:
        arguments: dict[str, Any] = {
            "keys": [record.key for record in drawn],
            "timestamps": [record.timestamp for record in drawn],
            "headers": [record.headers for record in drawn],
        }
        self.append_to_both(drawn, [record.value for record in drawn], arguments)

    @rule(count=st.integers(0, 200), value=content, shared=headers, timestamp=timestamps)
    def append_alike(self, count: int, value: bytes | None, shared: Any, timestamp: int) -> None:
        drawn = [Record(0, timestamp, None, value, shared)] * count
        self.append_to_both(drawn, [value] * count, {"timestamps": timestamp, "headers": shared or None})

    @rule(count=st.integers(1, 5))
    def append_now(self, count: int) -> None:
        self.append_to_both([Record(0, self.now, None, b"now")] * count, [b"now"] * count, {})

    def append_to_both(self, drawn: list[Record], values: list[bytes | None], arguments: dict[str, Any]) -> None:
        try:
            expected = self.model.append(drawn, self.now)
        except ModelError:
            before = self.log.end_offset
            with pytest.raises(fastlog.RecordTooLargeError):
                self.log.append(values, **arguments)
            assert self.log.end_offset == before
        else:
            assert self.log.append(values, **arguments) == expected

    @rule(passed=st.sampled_from([1, 100, 1000]))
    def let_time_pass(self, passed: int) -> None:
        self.now += passed
        oscalls.set_clock(self.now)

    @rule(fraction=st.floats(0, 1), max_bytes=st.sampled_from([1, 100, 1000, 1 << 20]))
    def read(self, fraction: float, max_bytes: int) -> None:
        span = self.model.end_offset - self.model.start_offset
        offset = self.model.start_offset + round(fraction * span)
        expected, next_offset = self.model.read(offset, max_bytes)
        batch = self.log.read(offset, max_bytes)
        assert [as_reference(record) for record in batch] == expected
        assert batch.next_offset == next_offset
        assert batch.offsets.tolist() == [record.offset for record in expected]
        assert batch.timestamps.tolist() == [record.timestamp for record in expected]
        assert batch.keys.to_list() == [record.key for record in expected]
        assert batch.values.to_list() == [record.value for record in expected]
        sizes = [-1 if record.value is None else len(record.value) for record in expected]
        assert batch.values.sizes.tolist() == sizes

    @rule(outside=st.sampled_from([-1, 1, 1000]))
    def read_outside(self, outside: int) -> None:
        offset = self.model.start_offset - 1 if outside < 0 else self.model.end_offset + outside
        with pytest.raises(fastlog.OffsetOutOfRangeError) as caught:
            self.log.read(offset)
        assert caught.value.offset == offset
        assert caught.value.start_offset == self.model.start_offset

    @rule(timestamp=timestamps)
    def search_by_time(self, timestamp: int) -> None:
        assert self.log.offset_for_time(timestamp) == self.model.offset_for_time(timestamp)

    @rule(bounds=st.tuples(st.floats(0, 1), st.floats(0, 1)))
    def iterate(self, bounds: tuple[float, float]) -> None:
        span = self.model.end_offset - self.model.start_offset
        start, stop = sorted(self.model.start_offset + round(bound * span) for bound in bounds)
        expected = [record for record in self.model.records if start <= record.offset < stop]
        assert [as_reference(record) for record in self.log.records(start, stop)] == expected
        batches = self.log.batches(start, stop, max_bytes=500)
        assert [as_reference(record) for batch in batches for record in batch] == expected

    @rule(fraction=st.floats(0, 1))
    def delete_records(self, fraction: float) -> None:
        span = self.model.end_offset - self.model.start_offset
        before = self.model.start_offset + round(fraction * fraction * span)
        assert self.log.delete_records(before=before) == self.model.delete_records(before)

    @rule()
    def flush(self) -> None:
        assert self.log.flush() == self.model.end_offset
        assert self.log.durable_offset == self.model.end_offset

    @rule(read_only_first=st.booleans())
    def reopen(self, read_only_first: bool) -> None:
        self.log.close()
        self.compare_files()
        if read_only_first:
            with self.open(read_only=True) as log:
                assert log.recovery is None
                assert read_all(log) == self.model.records
        self.log = self.open()
        assert self.log.recovery is None

    @precondition(lambda self: hasattr(self, "log"))
    @invariant()
    def extent_is_equal(self) -> None:
        assert (self.log.start_offset, self.log.end_offset) == (self.model.start_offset, self.model.end_offset)
        assert self.log.readable_offset == self.model.end_offset
        assert self.log.durable_offset <= self.model.end_offset
        if self.durability == "batch":
            assert self.log.durable_offset == self.model.end_offset

    def compare_files(self) -> None:
        """Every file of every segment, byte by byte."""
        self.model.close()
        names = {file.name for file in self.path.iterdir() if file.suffix in {".log", ".index", ".timeindex"}}
        for segment in self.model.segments:
            stem = f"{segment.base_offset:020}"
            assert (self.path / f"{stem}.log").read_bytes() == segment.log_file
            assert (self.path / f"{stem}.index").read_bytes() == segment.indexes.index_file
            assert (self.path / f"{stem}.timeindex").read_bytes() == segment.indexes.time_index_file
            names -= {f"{stem}{suffix}" for suffix in (".log", ".index", ".timeindex")}
        assert not names, f"segments that the model does not have: {names}"


TestLogMachine = LogMachine.TestCase
TestLogMachine.settings = settings(stateful_step_count=40)
TestLogMachine = pytest.mark.slow(TestLogMachine)
