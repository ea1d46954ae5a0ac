"""Arrow, both ways: what ``append`` imports, and batches as pyarrow, Polars and DuckDB see them."""

from __future__ import annotations

import ctypes
import gc
import os
import random
import shutil
import threading
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import fastlog
from tests.conftest import UNDER_CI
from tests.reference.batch import Record, encode_batch, fix_crc, make_batch
from tests.strategies import SOME_TIME
from tests.test_columns_in import refused, stored_timestamps, stored_values

if not UNDER_CI or os.environ.get("AUDITWHEEL_PLAT", "").startswith("musllinux"):
    for library in ("pyarrow", "polars", "duckdb"):
        pytest.importorskip(library)

import duckdb
import polars as pl
import pyarrow as pa

OpenLog = Callable[..., Any]

BINARY_TYPES = [
    pa.binary(), pa.large_binary(), pa.binary_view(), pa.string(), pa.large_string(), pa.string_view()
]  # fmt: skip
LONG = b"longer than twelve bytes: "
MIXTURE: list[bytes | None] = [b"a", None, b"", LONG + b"1", b"exactly 12 b", b"thirteen byte", None, LONG * 50, b"z"]


class OneShot:
    """An Arrow producer that hands out the same capsules again and again."""

    def __init__(self, array: Any) -> None:
        self.capsules = array.__arrow_c_array__()

    def __arrow_c_array__(self, requested_schema: object = None) -> Any:
        return self.capsules


class Streamed:
    """Only the stream side of an Arrow producer."""

    def __init__(self, source: Any) -> None:
        self.source = source

    def __arrow_c_stream__(self, requested_schema: object = None) -> Any:
        return self.source.__arrow_c_stream__()


class ArrowSchemaStruct(ctypes.Structure):
    _fields_ = [
        ("format", ctypes.c_char_p),
        ("name", ctypes.c_char_p),
        ("metadata", ctypes.c_char_p),
        ("flags", ctypes.c_int64),
        ("n_children", ctypes.c_int64),
        ("children", ctypes.c_void_p),
        ("dictionary", ctypes.c_void_p),
        ("release", ctypes.c_void_p),
        ("private_data", ctypes.c_void_p),
    ]


class ArrowArrayStruct(ctypes.Structure):
    _fields_ = [
        ("length", ctypes.c_int64),
        ("null_count", ctypes.c_int64),
        ("offset", ctypes.c_int64),
        ("n_buffers", ctypes.c_int64),
        ("n_children", ctypes.c_int64),
        ("buffers", ctypes.c_void_p),
        ("children", ctypes.c_void_p),
        ("dictionary", ctypes.c_void_p),
        ("release", ctypes.c_void_p),
        ("private_data", ctypes.c_void_p),
    ]


def address_of(capsule: Any, name: bytes) -> int:
    pointer = ctypes.pythonapi.PyCapsule_GetPointer
    pointer.restype = ctypes.c_void_p
    pointer.argtypes = [ctypes.py_object, ctypes.c_char_p]
    found: int = pointer(capsule, name)
    return found


def struct_of(producer: OneShot) -> ArrowArrayStruct:
    return ArrowArrayStruct.from_address(address_of(producer.capsules[1], b"arrow_array"))


def schema_of(producer: OneShot) -> ArrowSchemaStruct:
    return ArrowSchemaStruct.from_address(address_of(producer.capsules[0], b"arrow_schema"))


def release_nothing(struct: Any) -> None:
    """Its own release would stumble over the nonsense: leave it out, and leak a little."""
    place = type(struct).release.offset
    harmless = ctypes.CFUNCTYPE(None, ctypes.c_void_p)(
        lambda address: ctypes.memset(address + place, 0, ctypes.sizeof(ctypes.c_void_p))
    )
    KEPT.append(harmless)
    struct.release = ctypes.cast(harmless, ctypes.c_void_p).value


KEPT: list[Any] = []  # callbacks that C may still call


DATA = pa.py_buffer(b"x" * 100)


# --- import ---


@pytest.mark.parametrize("kind", BINARY_TYPES, ids=str)
def test_arrow_columns_equal_the_list(checked_log: OpenLog, kind: Any) -> None:
    log = checked_log()
    array = pa.array(MIXTURE, kind)
    assert stored_values(log, array) == MIXTURE
    for start in range(len(MIXTURE) + 1):
        for length in (0, 1, 3, len(MIXTURE)):
            assert stored_values(log, array.slice(start, length)) == MIXTURE[start : start + length]
    present = [value for value in MIXTURE if value is not None]
    assert stored_values(log, pa.array(present, kind)) == present
    assert stored_values(log, pa.array([b"", b""], kind)) == [b"", b""]
    assert stored_values(log, pa.array([None, None], kind)) == [None, None]
    assert log.append(pa.array([], kind)) == log.end_offset


@pytest.mark.parametrize("kind", BINARY_TYPES, ids=str)
def test_arrow_chunks_streams_and_tables_equal_the_list(checked_log: OpenLog, kind: Any) -> None:
    log = checked_log()
    array = pa.array(MIXTURE, kind)
    chunked = pa.chunked_array([array[:2], array[2:2], array[2:7], array[7:]])
    assert stored_values(log, chunked) == MIXTURE
    assert stored_values(log, chunked.slice(1, 7)) == MIXTURE[1:8]
    assert stored_values(log, pa.chunked_array([array])) == MIXTURE
    assert log.append(pa.chunked_array([], kind)) == log.end_offset
    assert stored_values(log, pa.table({"only": chunked})) == MIXTURE
    assert stored_values(log, pa.record_batch({"only": array}).slice(3)) == MIXTURE[3:]
    assert stored_values(log, pa.StructArray.from_arrays([array[1:]], ["only"])[2:]) == MIXTURE[3:]
    assert stored_values(log, Streamed(pa.table({"only": chunked}))) == MIXTURE


def test_fixed_size_binary_and_null_arrays(checked_log: OpenLog) -> None:
    log = checked_log()
    fixed = pa.array([b"abc", None, b"d\0\0"], pa.binary(3))
    assert stored_values(log, fixed) == [b"abc", None, b"d\0\0"]
    assert stored_values(log, fixed[1:]) == [None, b"d\0\0"]
    assert stored_values(log, fixed[2:]) == [b"d\0\0"]
    assert stored_values(log, pa.array([b"", b""], pa.binary(0))) == [b"", b""]
    assert stored_values(log, pa.nulls(3)) == [None] * 3
    assert stored_values(log, pa.chunked_array([pa.nulls(1), pa.nulls(2)])) == [None] * 3


def test_random_arrow_columns_equal_the_list(checked_log: OpenLog, seed: int) -> None:
    random_ = random.Random(seed)
    log = checked_log()
    for _ in range(150):
        values: list[bytes | None] = [
            None if random_.random() < 0.2 else b"%x" % random_.getrandbits(random_.choice([1, 48, 49, 400]))
            for _ in range(random_.randrange(70))
        ]
        array = pa.array(values, random_.choice(BINARY_TYPES))
        start, stop = sorted(random_.choices(range(len(values) + 1), k=2))
        given: Any = array[start:stop]
        if random_.random() < 0.5:
            cuts = sorted(random_.choices(range(start, stop + 1), k=2))
            given = pa.chunked_array([array[start : cuts[0]], array[cuts[0] : cuts[1]], array[cuts[1] : stop]])
        assert stored_values(log, given) == values[start:stop]


def test_polars_and_duckdb_columns(checked_log: OpenLog) -> None:
    log = checked_log()
    series = pl.Series("value", MIXTURE, pl.Binary)
    assert stored_values(log, series) == MIXTURE
    assert stored_values(log, series.slice(2, 4)) == MIXTURE[2:6]
    assert stored_values(log, pl.DataFrame({"value": series})) == MIXTURE
    assert stored_values(log, pl.Series(["text", None])) == [b"text", None]
    assert stored_values(log, duckdb.sql("select unnest(['a', null, 'some longer text']) as word")) == [
        b"a",
        None,
        b"some longer text",
    ]


def test_arrow_keys_and_values_of_different_kinds(checked_log: OpenLog) -> None:
    log = checked_log()
    for kind in BINARY_TYPES:
        base = log.append(
            pa.array(MIXTURE, kind), keys=pa.chunked_array([pa.array(MIXTURE[:4]), pa.array(MIXTURE[4:])])
        )
        assert [(record.key, record.value) for record in log.records(base)] == [(value, value) for value in MIXTURE]
    refused(log, "9 values|1 keys", pa.array(MIXTURE), keys=pa.array([b"one"]))


def test_batch_of_a_log_is_appended_to_another(checked_log: OpenLog, folder: Path) -> None:
    log, other = checked_log(), checked_log(folder / "other-0")
    log.append(MIXTURE, keys=MIXTURE, timestamps=SOME_TIME)
    table = pa.table(log.batches())
    other.append(table["value"], keys=table["key"], timestamps=table["timestamp"])
    batch = log.read(0)
    other.append(batch.values, keys=batch.keys, timestamps=batch.timestamps)
    expected = [(value, value, SOME_TIME) for value in MIXTURE]
    assert [(record.key, record.value, record.timestamp) for record in other.records()] == expected * 2


def test_large_arrow_values_over_several_batches(checked_log: OpenLog) -> None:
    values = [bytes([i]) * (10_000 + i) for i in range(250)]
    log = checked_log()
    for kind in (pa.binary(), pa.binary_view()):
        assert stored_values(log, pa.array(values, kind)) == values


@pytest.mark.parametrize(
    ("column", "words"),
    [
        (pa.array([1, 2]), "Arrow data of format 'l'|cast"),
        (pa.array([1.5]), "Arrow data of format 'g'"),
        (pa.array([[b"a"]]), "Arrow data of format '+l'"),
        (pa.array([b"a", b"b"]).dictionary_encode(), "dictionary-encoded|'i'|dictionary_decode"),
        (pa.chunked_array([pa.array([b"a"]).dictionary_encode()]), "dictionary-encoded"),
        (pa.table({"a": [b"x"], "b": [b"y"]}), "Arrow table of 2 columns (a, b)"),
        (pa.record_batch({"a": [1]}), "Arrow data of format 'l'"),
        (pl.Series([1, 2]), "Arrow data of format 'l'"),
        (pa.StructArray.from_arrays([pa.array([b"a", b"b"])], ["x"], mask=pa.array([True, False])), "null rows"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_other_arrow_types_are_refused(checked_log: OpenLog, column: Any, words: str) -> None:
    log = checked_log()
    refused(log, f"values|{words}", column)
    refused(log, f"keys|{words}", [b"v"] * len(column), keys=column)


def binary_array(kind: Any, offsets: list[int], *, has_data: bool = True) -> Any:
    """An array with any offsets. pyarrow looks at them (and at the data) when it makes one, so they come later."""
    width = np.int32 if kind == pa.binary() else np.int64
    memory = np.zeros(len(offsets), width)
    array = pa.Array.from_buffers(kind, len(offsets) - 1, [None, pa.py_buffer(memory), DATA])
    memory[:] = offsets
    if has_data:
        return array
    producer = OneShot(array)
    ctypes.c_void_p.from_address(struct_of(producer).buffers + 2 * ctypes.sizeof(ctypes.c_void_p)).value = None
    return producer


def view_array(views: Any, *, has_data: bool = True) -> Any:
    return pa.Array.from_buffers(pa.binary_view(), 3, [None, views, DATA] if has_data else [None, views])


def views_of(*views: tuple[int, bytes, int, int]) -> Any:
    return pa.py_buffer(
        b"".join(
            size.to_bytes(4, "little", signed=True)
            + prefix.ljust(4, b"\0")
            + index.to_bytes(4, "little", signed=True)
            + offset.to_bytes(4, "little", signed=True)
            for size, prefix, index, offset in views
        )
    )


A = (1, b"a", 0, 0)


@pytest.mark.parametrize(
    ("make", "entry"),
    [
        (lambda: binary_array(pa.binary(), [0, 5, 3, 9]), 1),
        (lambda: binary_array(pa.binary(), [0, 1, 2, 1]), 2),
        (lambda: binary_array(pa.binary(), [-1, 1, 2, 3]), 0),
        (lambda: binary_array(pa.binary(), [0, 0, 1, 1], has_data=False), 1),
        (lambda: binary_array(pa.large_binary(), [0, 5, 3, 9]), 1),
        (lambda: binary_array(pa.large_binary(), [-(2**40), 1, 2, 3]), 0),
        (lambda: binary_array(pa.large_binary(), [0, 0, 0, 1], has_data=False), 2),
        (lambda: view_array(views_of(A, (13, b"xxxx", 1, 0), A)), 1),
        (lambda: view_array(views_of((13, b"xxxx", -1, 0), A, A)), 0),
        (lambda: view_array(views_of((13, b"xxxx", 0, 88), A, A)), 0),
        (lambda: view_array(views_of((13, b"xxxx", 0, -1), A, A)), 0),
        (lambda: view_array(views_of((2**31 - 1, b"xxxx", 0, 2**31 - 1), A, A)), 0),
        (lambda: view_array(views_of(A, A, (-1, b"", 0, 0))), 2),
        (lambda: view_array(views_of(A, A, (20, b"xxxx", 0, 0)), has_data=False), 2),
    ],
    ids=[*(f"binary-{i}" for i in range(7)), *(f"view-{i}" for i in range(7))],
)
def test_arrow_arrays_outside_their_buffers_are_refused(checked_log: OpenLog, make: Any, entry: int) -> None:
    log = checked_log()
    refused(log, f"values: entry {entry} of the Arrow array lies outside its buffers", make())
    broken = make()
    if isinstance(broken, OneShot):
        return
    refused(log, "lies outside its buffers", pa.chunked_array([pa.array([b"fine"], broken.type), broken]))
    if entry > 0:
        refused(log, f"entry {entry - 1} of", broken[1:])


def test_garbage_behind_null_views_is_never_followed(checked_log: OpenLog) -> None:
    validity = pa.py_buffer(bytes([0b101]))
    views = views_of((1, b"a", 0, 0), (-7, b"????", 99, -5), (13, b"xxxx", 0, 87))
    assert stored_values(checked_log(), pa.Array.from_buffers(pa.binary_view(), 3, [validity, views, DATA])) == [
        b"a",
        None,
        b"x" * 13,
    ]


def test_null_data_buffer_of_empty_strings(checked_log: OpenLog) -> None:
    log = checked_log()
    for kind in (pa.binary(), pa.large_binary()):
        assert stored_values(log, binary_array(kind, [0, 0, 0], has_data=False)) == [b"", b""]


@pytest.mark.parametrize(
    ("field", "value", "words"),
    [
        ("length", -1, "makes no sense (length -1"),
        ("length", 2**63 - 1, "makes no sense"),
        ("offset", -1, "makes no sense"),
        ("null_count", -2, "makes no sense"),
        ("n_buffers", 1, "has 1 buffers and 0 children, its type wants 3 and 0"),
        ("n_buffers", -1, "makes no sense"),
        ("n_children", 1, "has 3 buffers and 1 children"),
        ("buffers", 0, "makes no sense"),
    ],
)
def test_nonsense_in_an_arrow_array_is_refused(checked_log: OpenLog, field: str, value: int, words: str) -> None:
    producer = OneShot(pa.array([b"a", b"b"]))
    array = struct_of(producer)
    release_nothing(array)
    setattr(array, field, value)
    refused(checked_log(), words, producer)


@pytest.mark.parametrize("is_table", [False, True])
@pytest.mark.parametrize(
    ("field", "value", "words"),
    [
        ("format", None, "names no format"),
        ("format", b"w:99999999999999999999", "not binary or text"),
        ("n_children", -1, "has -1 children, and none is there"),
        ("n_children", 2, "has 2 children, and none is there"),
    ],
)
def test_nonsense_in_an_arrow_schema_is_refused(
    checked_log: OpenLog, field: str, value: Any, words: str, is_table: bool
) -> None:
    producer = OneShot(pa.record_batch({"only": pa.array([b"a"])}) if is_table else pa.array([b"a"]))
    schema = schema_of(producer)
    release_nothing(schema)
    if is_table:  # of the only column
        schema = ArrowSchemaStruct.from_address(ctypes.c_void_p.from_address(schema.children).value)
    setattr(schema, field, value)
    refused(checked_log(), words, producer)


@pytest.mark.parametrize(("place", "words"), [("children", "none is there"), ("child", "child 0 of the Arrow schema")])
def test_missing_columns_of_an_arrow_schema_are_refused(checked_log: OpenLog, place: str, words: str) -> None:
    producer = OneShot(pa.record_batch({"only": pa.array([b"a"])}))
    schema = schema_of(producer)
    release_nothing(schema)
    if place == "children":
        schema.children = None
    else:
        ctypes.c_void_p.from_address(schema.children).value = None
    refused(checked_log(), words, producer)


def test_arrow_lengths_that_nothing_stands_behind_are_refused(checked_log: OpenLog) -> None:
    """Before memory is asked for; nulls need none, but their number has to be one."""
    log = checked_log()
    table = OneShot(pa.record_batch({"only": pa.array([b"a"])}))
    array = struct_of(table)
    release_nothing(array)
    array.n_children, array.length = 0, 2**60

    class Plain:  # an array that is a struct, under a schema that is none
        def __arrow_c_array__(self, requested_schema: object = None) -> Any:
            return pa.array([], pa.binary(3)).__arrow_c_array__()[0], table.capsules[1]

    refused(log, "has 1 buffers and 0 children, its type wants 2 and 0", Plain())


def test_nulls_have_no_buffer_of_times(checked_log: OpenLog) -> None:
    producer = OneShot(pa.nulls(3))
    array = struct_of(producer)
    release_nothing(array)
    buffers = (ctypes.c_void_p * 2)(None, 8)  # of which nothing may be read
    array.n_buffers, array.buffers = 2, ctypes.addressof(buffers)
    log = checked_log()
    log.append([b"a", b"b", b"c"], timestamps=producer)
    assert [record.timestamp for record in log.read(0)] == [None] * 3


def test_consumed_arrow_capsules_are_refused(checked_log: OpenLog) -> None:
    log = checked_log()
    producer = OneShot(pa.array([b"a"]))
    assert stored_values(log, producer) == [b"a"]
    refused(log, "values|consumed before", producer)
    capsule = pa.table({"a": [b"x"]}).__arrow_c_stream__()

    class SameStream:
        def __arrow_c_stream__(self, requested_schema: object = None) -> Any:
            return capsule

    assert stored_values(log, SameStream()) == [b"x"]
    refused(log, "values|consumed before", SameStream())


class Memory(bytearray):
    """A bytearray that weak references can watch."""


@pytest.mark.parametrize("shape", ["array", "chunks", "stream", "refused"])
def test_imported_arrow_arrays_are_released_once_appended(checked_log: OpenLog, shape: str) -> None:
    log = checked_log()
    memories = [Memory(b"abcdef"), Memory(b"ghijkl")]
    alive = [weakref.ref(memory) for memory in memories]
    kind = pa.binary(2) if shape != "refused" else pa.float16()
    arrays = [pa.Array.from_buffers(kind, 3, [None, pa.py_buffer(memory)]) for memory in memories]
    given = arrays[0] if shape == "array" else pa.chunked_array(arrays)
    if shape == "stream":
        given = Streamed(pa.table({"only": given}))
    del memories, arrays
    if shape == "refused":
        refused(log, "format 'e'", given)
    else:
        log.append(given)
    del given
    gc.collect()  # the error refers to its own traceback
    assert [reference() for reference in alive] == [None, None]


def test_error_in_the_middle_of_an_imported_stream(checked_log: OpenLog) -> None:
    def failing() -> Iterator[Any]:
        yield pa.record_batch({"only": [b"a"]})
        raise RuntimeError("the source broke")

    reader = pa.RecordBatchReader.from_batches(pa.schema([("only", pa.binary())]), failing())
    refused(checked_log(), "values: the Arrow stream failed|the source broke", reader)


TIMES = [0, 5, None, SOME_TIME]


@pytest.mark.parametrize(
    "timestamps",
    [
        pa.array(TIMES),
        pa.array([9, *TIMES])[1:],
        pa.chunked_array([pa.array(TIMES[:1]), pa.array(TIMES[1:])]),
        pa.array(TIMES, pa.timestamp("ms")),
        pa.array(TIMES, pa.timestamp("ms", "Europe/Berlin")),
        pa.array([0, 5_999, None, SOME_TIME * 1000], pa.timestamp("us")),
        pa.array([0, 5_999_999, None, SOME_TIME * 1_000_000 + 1], pa.timestamp("ns", "UTC")),
        pa.table({"only": pa.array(TIMES, pa.timestamp("ms"))}),
        pl.Series(TIMES),
        pl.Series(TIMES).cast(pl.Datetime("ms")),
    ],
    ids=lambda value: f"{type(value).__name__}-{getattr(value, 'type', '')}",
)
def test_arrow_timestamps(checked_log: OpenLog, timestamps: Any) -> None:
    assert stored_timestamps(checked_log(), timestamps, 4) == TIMES


def test_arrow_timestamps_in_seconds_and_nulls(checked_log: OpenLog) -> None:
    log = checked_log()
    assert stored_timestamps(log, pa.array([1, None], pa.timestamp("s")), 2) == [1000, None]
    assert stored_timestamps(log, pa.nulls(2), 2) == [None, None]
    refused(log, "timestamps[1] is", [b"v"] * 2, timestamps=pa.array([1, 2**62], pa.timestamp("s")))
    refused(log, "timestamps[1] is -1|before 1970", [b"v"] * 2, timestamps=pa.array([1, -1], pa.timestamp("ms")))
    refused(log, "timestamps[1] is -2", [b"v"] * 2, timestamps=pa.chunked_array([[1], [-2]]))
    refused(log, "Arrow data of format 'i'", [b"v"], timestamps=pa.array([1], pa.int32()))
    refused(log, "2 entries for 1 values", [b"v"], timestamps=pa.array([1, 2]))


# --- export ---

SCHEMA = pa.schema(
    [
        pa.field("offset", pa.int64(), nullable=False),
        pa.field("timestamp", pa.timestamp("ms", "UTC")),
        pa.field("key", pa.binary_view()),
        pa.field("value", pa.binary_view()),
        pa.field(
            "headers",
            pa.list_(pa.struct([pa.field("key", pa.string(), nullable=False), pa.field("value", pa.binary())])),
        ),
    ]
)
HEADERS = [
    None,
    {"a": b"1"},
    [("ключ", None), ("k", b""), ("k", b"x" * 40)],
    {},
    None,
    {"b": b"2"},
    None,
    None,
    {"": b""},
]


def rows_of(records: Any) -> list[dict[str, Any]]:
    return [
        {
            "offset": record.offset,
            "timestamp": record.timestamp,
            "key": record.key,
            "value": record.value,
            "headers": [{"key": key, "value": value} for key, value in record.headers],
        }
        for record in records
    ]


def rows_in(table: Any) -> list[dict[str, Any]]:
    table.validate(full=True)
    plain = pa.schema([SCHEMA.field(0), pa.field("timestamp", pa.int64()), *table.schema][:2] + list(table.schema)[2:])
    rows: list[dict[str, Any]] = table.cast(plain).to_pylist()
    return rows


def fill(log: Any) -> None:
    """Batches with and without keys, headers, timestamps, nulls, and values beyond twelve bytes."""
    log.append(MIXTURE, keys=MIXTURE[::-1], headers=HEADERS, timestamps=[*range(8), -1])
    log.append([b"short", b""])
    log.append([None, None], timestamps=-1)
    log.append([LONG * i for i in range(30)], keys=[b"k%d" % i for i in range(30)], timestamps=SOME_TIME)


def test_schema(checked_log: OpenLog) -> None:
    log = checked_log()
    fill(log)
    assert pa.schema(log.batches()) == SCHEMA
    assert pa.schema(log.read(0)) == SCHEMA
    assert pa.table(log.batches()).schema == SCHEMA
    assert pa.record_batch(log.read(0)).schema == SCHEMA


def test_pyarrow_sees_the_records(checked_log: OpenLog) -> None:
    log = checked_log()
    fill(log)
    assert rows_in(pa.table(log.batches())) == rows_of(log.records())
    for batch in log.batches(max_bytes=1):
        assert rows_in(pa.record_batch(batch)) == rows_of(batch)
        assert rows_in(pa.table(batch)) == rows_of(batch)


def test_any_range_of_a_batch_is_seen(checked_log: OpenLog) -> None:
    log = checked_log()
    fill(log)
    records = list(log.records())
    for start in range(len(records)):
        for stop in (start + 1, start + 5, len(records)):
            assert rows_in(pa.table(log.batches(start, stop))) == rows_of(records[start:stop])


def test_random_batches_equal_their_records(checked_log: OpenLog, seed: int) -> None:
    random_ = random.Random(seed)
    log = checked_log()

    def draw() -> bytes | None:
        return None if random_.random() < 0.2 else random_.randbytes(random_.choice([0, 1, 3, 4, 7, 8, 11, 12, 13, 60]))

    for _ in range(60):
        count = random_.randrange(1, 40)
        headers = [[("h", draw()) for _ in range(random_.randrange(3))] for _ in range(count)]
        base = log.append(
            [draw() for _ in range(count)],
            keys=random_.choice([None, [draw() for _ in range(count)]]),
            headers=random_.choice([None, headers]),
            timestamps=random_.choice([None, [random_.choice([-1, SOME_TIME]) for _ in range(count)]]),
        )
        assert rows_in(pa.table(log.batches(base))) == rows_of(log.records(base))
    assert rows_in(pa.table(log.batches())) == rows_of(log.records())


def test_polars_sees_the_records(checked_log: OpenLog) -> None:
    log = checked_log()
    fill(log)
    expected = rows_of(log.records())
    for frame in (pl.DataFrame(log.batches()), pl.from_arrow(pa.table(log.batches()))):
        assert isinstance(frame, pl.DataFrame)
        assert frame.schema["timestamp"] == pl.Datetime("ms", "UTC")
        assert frame.with_columns(pl.col("timestamp").cast(pl.Int64)).to_dicts() == expected
    assert pl.DataFrame(log.read(0)).height == len(log.read(0))


def test_duckdb_sees_the_records(checked_log: OpenLog) -> None:
    log = checked_log()
    fill(log)
    batches = log.batches()  # noqa: F841  DuckDB finds it by name
    query = 'select "offset", epoch_ms(timestamp), key, value, len(headers) from batches order by "offset"'
    expected = [
        (row["offset"], row["timestamp"], row["key"], row["value"], len(row["headers"]))
        for row in rows_of(log.records())
    ]
    assert duckdb.sql(query).fetchall() == expected
    assert duckdb.sql(query).fetchall() == expected  # the same object again: a fresh stream
    sums = duckdb.sql("select count(*), count(key), sum(octet_length(value)) from batches where value is not null")
    present = [row for row in expected if row[3] is not None]
    assert sums.fetchall() == [
        (
            len(present),
            sum(row[2] is not None for row in present),
            sum(len(row[3]) for row in present),
        )
    ]


def test_every_stream_starts_afresh(checked_log: OpenLog) -> None:
    log = checked_log()
    fill(log)
    batches = log.batches()
    first, second = pa.RecordBatchReader.from_stream(batches), pa.RecordBatchReader.from_stream(batches)
    assert first.read_next_batch().equals(second.read_next_batch())
    assert first.read_all().equals(second.read_all())


@pytest.mark.parametrize("kind", [pa.binary(), pa.large_binary()], ids=str)
def test_requested_binary_types_are_copied(checked_log: OpenLog, kind: Any) -> None:
    log = checked_log()
    fill(log)
    wanted = SCHEMA.set(2, pa.field("key", kind)).set(3, pa.field("value", kind))
    for batch in log.batches(max_bytes=1):
        exported = pa.record_batch(batch, schema=wanted)
        assert exported.schema == wanted
        assert rows_in(exported) == rows_of(batch)
    table = pa.RecordBatchReader.from_stream(log.batches(), schema=wanted).read_all()
    assert table.schema == wanted
    assert rows_in(table) == rows_of(log.records())
    only_value = SCHEMA.set(3, pa.field("value", kind))
    assert pa.RecordBatchReader.from_stream(log.batches(), schema=only_value).read_all().schema == only_value


@pytest.mark.parametrize(
    "wanted",
    [
        pa.schema([("value", pa.int64()), ("key", pa.list_(pa.binary()))]),
        pa.schema([]),
        pa.schema([("something", pa.binary()), ("else", pa.large_binary())]),
        SCHEMA.set(3, pa.field("value", pa.large_string())),
    ],
    ids=["types", "empty", "names", "text"],
)
def test_other_requests_are_passed_over(checked_log: OpenLog, wanted: Any) -> None:
    log = checked_log()
    fill(log)
    for exported in (log.read(0).__arrow_c_array__, log.read(0).__arrow_c_stream__, log.batches().__arrow_c_stream__):
        capsules = exported(wanted.__arrow_c_schema__())

        class Producer:
            def __init__(self, capsules: Any) -> None:
                self.capsules = capsules

            def __arrow_c_array__(self, requested_schema: object = None) -> Any:
                return self.capsules

            def __arrow_c_stream__(self, requested_schema: object = None) -> Any:
                return self.capsules

        imported = (
            pa.record_batch(Producer(capsules))
            if isinstance(capsules, tuple)
            else pa.RecordBatchReader.from_stream(Producer(capsules)).read_all()
        )
        assert imported.schema == SCHEMA
    with pytest.raises((ValueError, TypeError)):
        log.read(0).__arrow_c_array__("no capsule")


def test_empty_batches_and_streams(checked_log: OpenLog) -> None:
    log = checked_log()
    for _ in range(2):  # an empty log, then the end of one with records
        empty = log.read(log.end_offset)
        assert len(empty) == 0
        for table in (pa.record_batch(empty), pa.table(empty), pa.table(log.batches(log.end_offset))):
            table.validate(full=True)
            assert (table.num_rows, table.schema) == (0, SCHEMA)
        large = SCHEMA.set(3, pa.field("value", pa.large_binary()))
        assert pa.record_batch(empty, schema=large).num_rows == 0
        assert pl.DataFrame(log.batches(log.end_offset)).height == 0
        batches = log.batches(log.end_offset)  # noqa: F841
        assert duckdb.sql("select count(*) from batches").fetchall() == [(0,)]
        fill(log)


def test_exported_buffers_span_only_their_column(checked_log: OpenLog) -> None:
    log = checked_log()
    log.append([b"x" * 100_000])
    log.append([b"short", LONG, None, LONG * 2])
    log.append([b"y" * 100_000])
    exported = pa.record_batch(next(iter(log.batches(1, 5))))
    buffers = exported["value"].buffers()
    assert len(buffers) == 3
    assert buffers[2].to_pybytes().startswith(LONG)
    assert buffers[2].to_pybytes().endswith(LONG * 2)
    assert len(buffers[2]) < 4 * len(LONG)
    assert len(pa.record_batch(next(iter(log.batches(1, 2))))["value"].buffers()) == 2  # everything fits into the view


def test_values_are_not_copied(checked_log: OpenLog) -> None:
    log = checked_log()
    log.append([LONG * 1000])
    batch = log.read(0)
    address = np.frombuffer(batch.values[0], np.uint8).ctypes.data
    assert pa.record_batch(batch)["value"].buffers()[2].address == address
    assert pa.record_batch(batch)["offset"].buffers()[1].address == batch.offsets.ctypes.data


def test_broken_utf8_in_header_keys_is_repaired(folder: Path) -> None:
    """Kafka stores any bytes as the key of a header; Arrow's consumers rely on UTF-8."""
    plain = encode_batch(make_batch([Record(0, SOME_TIME, None, b"v", (("k??", b"1"), ("ключ", None)))]))
    broken = fix_crc(plain.replace(b"k??", b"k\xff\xc3"))
    path = folder / "foreign-0"
    path.mkdir()
    (path / f"{0:020d}.log").write_bytes(broken)
    with fastlog.PartitionLog.open(path) as log:
        headers = pa.table(log.batches())["headers"].to_pylist()
    assert headers == [[{"key": "k\ufffd\ufffd", "value": b"1"}, {"key": "ключ", "value": None}]]


# --- lifetime ---


def test_i8_exported_arrays_outlive_the_log_and_its_files(folder: Path) -> None:
    path = folder / "events-0"
    log = fastlog.PartitionLog.open(path, durability="os")
    fill(log)
    expected = rows_of(log.records())
    batch = pa.record_batch(log.read(0))
    first = rows_of(log.read(0))
    table = pa.table(log.batches())
    reader = pa.RecordBatchReader.from_stream(log.read(0))
    log.close()
    shutil.rmtree(path)
    del log
    gc.collect()
    assert rows_in(table) == expected
    assert rows_in(batch) == first
    assert rows_in(reader.read_all()) == first
    values = batch["value"]  # a child moved out of its batch
    del batch
    gc.collect()
    values.validate(full=True)
    assert values.to_pylist() == [row["value"] for row in first]


def test_arrays_are_released_in_other_threads(checked_log: OpenLog) -> None:
    log = checked_log()
    fill(log)
    tables = [pa.table(log.batches()) for _ in range(50)] + [pa.record_batch(log.read(0)) for _ in range(50)]
    readers = [pa.RecordBatchReader.from_stream(log.batches()) for _ in range(50)]
    for reader in readers[::2]:
        reader.read_next_batch()

    def drop(kept: list[Any]) -> None:
        while kept:
            try:
                kept.pop()
            except IndexError:
                return

    threads = [threading.Thread(target=drop, args=(kept,)) for kept in (tables, readers) * 2]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert rows_in(pa.table(log.batches())) == rows_of(log.records())


def test_streams_are_read_in_other_threads(checked_log: OpenLog) -> None:
    log = checked_log()
    fill(log)
    expected = rows_of(log.records())
    results: list[bool] = []
    threads = [
        threading.Thread(target=lambda: results.append(rows_in(pa.table(log.batches())) == expected)) for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert results == [True] * 4


def test_abandoned_streams_let_go_of_the_log(folder: Path) -> None:
    path = folder / "events-0"
    log = fastlog.PartitionLog.open(path, durability="os")
    for _ in range(3):
        log.append(MIXTURE)  # no old timestamps: they would roll, and the background sync holds the log for a moment
    reader = pa.RecordBatchReader.from_stream(log.batches(max_bytes=1))
    reader.read_next_batch()
    capsule = log.batches().__arrow_c_stream__()
    box = [reader]
    thread = threading.Thread(target=box.clear)
    del reader
    thread.start()
    thread.join()
    del capsule, log
    gc.collect()  # pending calls run between two steps of the main thread
    with fastlog.PartitionLog.open(path) as again:  # not LockedError
        assert again.end_offset == 3 * len(MIXTURE)


@pytest.mark.skipif("FASTLOG_SANITIZED" in os.environ, reason="the sanitizer keeps freed memory back")
def test_memory_stays_when_exports_come_and_go(checked_log: OpenLog) -> None:
    log = checked_log()
    log.append([b"%0500d" % i for i in range(1000)], keys=[b"key%d" % i for i in range(1000)], headers={"h": b"x" * 50})
    wanted = SCHEMA.set(3, pa.field("value", pa.large_binary()))

    def cycle() -> None:
        batch = log.read(0)
        batch.__arrow_c_array__()
        batch.__arrow_c_stream__()
        batch.__arrow_c_schema__()
        pa.record_batch(batch)
        pa.record_batch(batch, schema=wanted)
        reader = pa.RecordBatchReader.from_stream(log.batches())
        reader.read_next_batch()
        log.batches().__arrow_c_stream__()

    def resident() -> int:
        gc.collect()
        return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")

    if not Path("/proc/self/statm").exists():
        pytest.skip("wants Linux' account of resident memory")
    for _ in range(100):
        cycle()
    before = resident()
    for _ in range(300):
        cycle()
    # every array built here takes about 100 KB or more, so a leak of one per cycle would show
    assert resident() - before < 16 << 20
    batch = log.read(0)
    before = resident()
    for _ in range(100_000):  # schemas and streams are small
        batch.__arrow_c_schema__()
        batch.__arrow_c_stream__()
    assert resident() - before < 4 << 20


def test_error_while_reading_surfaces_in_the_consumer(folder: Path) -> None:
    path = folder / "events-0"
    with fastlog.PartitionLog.open(path, durability="os") as log:
        for i in range(3):
            log.append([b"%d" % i * 100], timestamps=SOME_TIME)
        batches = log.batches(max_bytes=1)
        reader = pa.RecordBatchReader.from_stream(batches)
        reader.read_next_batch()
        segment = path / f"{0:020d}.log"
        content = bytearray(segment.read_bytes())
        content[-10] ^= 1
        with segment.open("r+b") as file:
            file.write(content)
        with pytest.raises(OSError, match=r"fastlog\.errors\.CorruptLogError: .*00000000000000000000\.log"):
            reader.read_all()
        with pytest.raises(pl.exceptions.ComputeError, match=r"fastlog\.errors\.CorruptLogError"):
            pl.DataFrame(batches)
        with pytest.raises(duckdb.Error, match=r"fastlog\.errors\.CorruptLogError"):
            duckdb.sql("select sum(octet_length(value)) from batches").fetchall()


def test_closed_log_surfaces_in_the_consumer(checked_log: OpenLog) -> None:
    log = checked_log()
    fill(log)
    reader = pa.RecordBatchReader.from_stream(log.batches(max_bytes=1))
    reader.read_next_batch()
    log.close()
    with pytest.raises(OSError, match=r"fastlog\.errors\.ClosedError"):
        reader.read_all()
