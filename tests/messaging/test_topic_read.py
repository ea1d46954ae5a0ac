"""A topic as a table: Arrow streams over all partitions, chosen columns, places by offset and time."""

from __future__ import annotations

import time
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

import fastlog

pyarrow = pytest.importorskip("pyarrow")


@pytest.fixture
def store(tmp_path: Path) -> Iterator[fastlog.Store]:
    with fastlog.open(tmp_path / "store", durability="os") as opened:
        yield opened


def table(read: Any) -> Any:
    return pyarrow.table(read)


@pytest.fixture
def orders(store: fastlog.Store) -> fastlog.Topic:
    """Three partitions of ten records, one minute apart, the last one of each now."""
    now = int(time.time() * 1000)
    topic = store.create_topic("orders", partitions=3)
    for number in range(3):
        topic.partition(number).append(
            [f"{number}:{i}, and a value that is too long to lie in a view".encode() for i in range(10)],
            keys=[None if i % 2 else f"k{i}".encode() for i in range(10)],
            timestamps=[now - 60_000 * (9 - i) for i in range(10)],
            headers=[{"h": b"1"} if i == 3 else None for i in range(10)],
        )
    return topic


def test_all_partitions_with_their_number(orders: fastlog.Topic) -> None:
    found = table(orders.read())
    assert found.column_names == ["partition", "offset", "timestamp", "key", "value", "headers"]
    assert found.schema.field("partition").type == pyarrow.int32()
    assert found["partition"].to_pylist() == [0] * 10 + [1] * 10 + [2] * 10
    assert found["offset"].to_pylist() == list(range(10)) * 3
    assert found["value"].to_pylist()[13].startswith(b"1:3, and")
    assert found["key"].to_pylist()[:2] == [b"k0", None]
    assert found["headers"].to_pylist()[3] == [{"key": "h", "value": b"1"}]
    for batch in found.to_batches():
        batch.validate(full=True)


def test_a_single_partition_needs_no_number(store: fastlog.Store) -> None:
    topic = store.create_topic("one")
    topic.partition(0).append([b"x"])
    assert table(topic.read()).column_names == ["offset", "timestamp", "key", "value", "headers"]
    assert table(topic.read(columns=["partition"])).to_pydict() == {"partition": [0]}


@pytest.mark.parametrize(
    "columns",
    [["value"], ["headers", "offset"], ["key", "value", "partition"], ["timestamp"], ["offset", "key", "value"]],
)
def test_chosen_columns_in_order(orders: fastlog.Topic, columns: list[str]) -> None:
    found, everything = table(orders.read(columns=columns)), table(orders.read())
    assert found.column_names == columns
    for name in columns:
        assert found[name].to_pylist() == everything[name].to_pylist()
    found.validate(full=True)
    assert pyarrow.schema(orders.read(columns=columns)) == found.schema


def test_wrong_columns_are_refused(orders: fastlog.Topic) -> None:
    for wrong in (["values"], [], ["key", "key"]):
        with pytest.raises(fastlog.ConfigError, match="columns"):
            orders.read(columns=wrong)


def test_places(orders: fastlog.Topic) -> None:
    def offsets(*places: Any, **options: Any) -> list[int]:
        found: list[int] = table(orders.read(*places, columns=["offset"], **options))["offset"].to_pylist()
        return found

    assert offsets(8) == [8, 9] * 3
    assert offsets(None, 2) == [0, 1] * 3
    assert offsets(3, 5) == [3, 4] * 3
    assert offsets(20) == [] and offsets(5, 3) == []
    assert offsets("-90s") == [8, 9] * 3
    assert offsets("-5m", "-90s") == [5, 6, 7] * 3
    moment = datetime.fromtimestamp(time.time() - 90, UTC)
    assert offsets(moment) == [8, 9] * 3
    assert offsets(None, moment, partitions=[2]) == list(range(8))
    for wrong in ("soon", "1h", -1, datetime(2024, 1, 1), 1.5):
        with pytest.raises(fastlog.ConfigError):
            orders.read(wrong)  # type: ignore[arg-type]
    with pytest.raises(fastlog.UnknownTopicError):
        orders.read(partitions=[3])


def test_each_use_reads_anew_and_lazily(orders: fastlog.Topic) -> None:
    read = orders.read(columns=["offset"])
    assert table(read).num_rows == 30
    orders.partition(1).append([b"more"])
    assert table(read).num_rows == 31
    assert sum(len(batch) for batch in read) == 31
    stream = pyarrow.RecordBatchReader.from_stream(read)
    assert stream.read_next_batch().num_rows == 10


def test_requested_types(orders: fastlog.Topic) -> None:
    wanted = pyarrow.schema([("value", pyarrow.large_binary()), ("partition", pyarrow.int32())])
    stream = pyarrow.RecordBatchReader.from_stream(orders.read(columns=["value", "partition"]), schema=wanted)
    assert stream.schema.field("value").type == pyarrow.large_binary()
    assert stream.read_all()["partition"].to_pylist()[-1] == 2


def test_uncommitted_and_deleted(store: fastlog.Store) -> None:
    from fastlog._core import encode_batch

    topic = store.create_topic("t")
    log = topic.partition(0)
    log.append([b"a", b"b"])
    log.append_batch(encode_batch([b"t"], producer_id=7, producer_epoch=0, base_sequence=0, transactional=True))
    assert table(topic.read(columns=["offset"]))["offset"].to_pylist() == [0, 1]
    assert table(topic.read(columns=["offset"], isolation="read_uncommitted"))["offset"].to_pylist() == [0, 1, 2]
    log.delete_records(before=1)
    assert table(topic.read(columns=["offset"]))["offset"].to_pylist() == [1]
    assert table(topic.read(0, columns=["offset"]))["offset"].to_pylist() == [1]


def test_an_empty_topic_is_an_empty_table(store: fastlog.Store) -> None:
    found = table(store.create_topic("t", 2).read())
    assert found.num_rows == 0 and found.num_columns == 6


def test_duckdb_and_polars(orders: fastlog.Topic) -> None:
    duckdb, polars = pytest.importorskip("duckdb"), pytest.importorskip("polars")
    read = orders.read(columns=["partition", "offset", "value"])
    database = duckdb.connect()
    database.register("orders", pyarrow.RecordBatchReader.from_stream(read))
    counted = database.sql("select partition, count(*) from orders group by 1 order by 1").fetchall()
    assert counted == [(0, 10), (1, 10), (2, 10)]
    assert polars.DataFrame(read).height == 30
