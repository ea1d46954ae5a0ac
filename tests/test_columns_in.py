"""What ``append`` takes: every kind of column ends as the same records as a plain list, or as an error that helps."""

from __future__ import annotations

import random
import sys
import threading
from collections import deque
from collections.abc import Callable
from datetime import UTC, datetime, timedelta, timezone
from typing import Any

import numpy as np
import pytest

import fastlog
from tests.strategies import SOME_TIME

OpenLog = Callable[..., Any]
Column = list[bytes | None]


def stored_values(log: Any, values: Any) -> Column:
    base = log.append(values)
    return [record.value for record in log.records(base)]


def stored_timestamps(log: Any, timestamps: Any, count: int) -> list[int | None]:
    base = log.append([b"v"] * count, timestamps=timestamps)
    return [record.timestamp for record in log.records(base)]


def stored_headers(log: Any, headers: Any, count: int) -> list[list[tuple[str, bytes | None]]]:
    base = log.append([b"v"] * count, headers=headers)
    return [list(record.headers) for record in log.records(base)]


def refused(log: Any, words: str, values: Any, **others: Any) -> None:
    """The append fails with every one of `words` in the message, and nothing was written."""
    end = log.end_offset
    with pytest.raises(fastlog.InvalidRecordError) as caught:
        log.append(values, **others)
    for word in words.split("|"):
        assert word in str(caught.value)
    assert log.end_offset == end


# --- lists ---


class Text(bytes):
    pass


def test_every_buffer_of_bytes_is_a_value(checked_log: OpenLog) -> None:
    items = [
        b"a",
        None,
        bytearray(b"bb"),
        memoryview(b"ccc"),
        Text(b"dddd"),
        np.bytes_(b"e"),
        np.void(b"f"),
        b"",
        bytearray(),
    ]
    assert stored_values(checked_log(), items) == [b"a", None, b"bb", b"ccc", b"dddd", b"e", b"f", b"", b""]


@pytest.mark.parametrize("count", [0, 1, 7, 8, 9, 16, 17, 1000])
def test_any_length_of_list_and_tuple(checked_log: OpenLog, count: int) -> None:
    values: Column = [None if i % 5 == 3 else b"%d" % i for i in range(count)]
    log = checked_log()
    assert stored_values(log, values) == values
    assert stored_values(log, tuple(values)) == values
    assert stored_values(log, deque(values)) == values


def test_random_mixtures_of_buffers_equal_their_bytes(checked_log: OpenLog, seed: int) -> None:
    random_ = random.Random(seed)
    kinds: list[Callable[[bytes], Any]] = [
        bytes,
        bytearray,
        memoryview,
        lambda value: memoryview(bytearray(value)),
        Text,
    ]
    log = checked_log()
    for _ in range(50):
        expected: Column = [
            None if random_.random() < 0.1 else random_.randbytes(random_.choice([0, 1, 50, 3000]))
            for _ in range(random_.randrange(40))
        ]
        given = [None if value is None else random_.choice(kinds)(value) for value in expected]
        assert stored_values(log, given) == expected


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ("text", "values is one str|[value]"),
        (b"bytes", "values is one bytes|[value]"),
        (bytearray(b"x"), "values is one bytearray"),
        (memoryview(b"x"), "values is one memoryview"),
        ([b"a", "text"], "values[1] is a str|encode"),
        ([b"a", b"b", 5], "values[2] is a int"),
        ([np.int64(5)], "values[0] is a numpy.int64"),
        ([1.5], "values[0] is a float"),
        ([memoryview(b"abcdef")[::2]], "values[0] is a memoryview|contiguous|bytes(value)"),
        ([np.array([object()])], "values[0] is a numpy.ndarray of Python objects"),
        ((b"x" for _ in range(2)), "values is a generator|list(values)"),
        ({b"a"}, "values is a set"),
        ({b"a": b"b"}, "values is a dict"),
        (5, "values is a int"),
        (None, "values is a NoneType"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_is_no_column_is_refused(checked_log: OpenLog, values: Any, words: str) -> None:
    log = checked_log()
    log.append([b"before"])
    refused(log, words, values)
    if values is not None and isinstance(values, (list, str, bytes, set)):
        refused(log, words.replace("values", "keys"), [b"v"] * len(values), keys=values)


class Unasked:
    """Has items, and no memory left to be asked what else it is."""

    def __len__(self) -> int:
        return 1

    def __getitem__(self, index: int) -> bytes:
        return b"a"

    @property
    def __class__(self) -> Any:  # type: ignore[override]
        raise MemoryError


def test_an_error_while_it_is_asked_what_values_are_is_that_error(checked_log: OpenLog) -> None:
    with pytest.raises(MemoryError):
        checked_log().append(Unasked())


def test_released_memoryview_is_refused(checked_log: OpenLog) -> None:
    view = memoryview(b"gone")
    view.release()
    refused(checked_log(), "values[0] is a memoryview|released", [view])


def test_references_are_balanced(checked_log: OpenLog) -> None:
    items: list[Any] = [bytes([65 + i]) * 100 for i in range(20)] + [bytearray(b"x"), None]
    log = checked_log()
    before = [sys.getrefcount(item) for item in items[:-1]]
    for _ in range(50):
        log.append(items, keys=tuple(items))
        with pytest.raises(fastlog.InvalidRecordError):
            log.append([*items, 5])
    assert [sys.getrefcount(item) for item in items[:-1]] == before


def test_list_emptied_by_another_thread_while_it_is_appended(checked_log: OpenLog) -> None:
    log = checked_log()
    shared: Column = []
    stop = threading.Event()

    def keep_changing() -> None:
        while not stop.is_set():
            shared[:] = [bytes([i % 256]) * 2000 for i in range(64)]
            shared.clear()

    thread = threading.Thread(target=keep_changing)
    thread.start()
    try:
        for _ in range(300):
            base = log.append(shared)
            for record in log.records(base):
                assert record.value == bytes([record.value[0]]) * 2000
    finally:
        stop.set()
        thread.join()


# --- NumPy ---


@pytest.mark.parametrize("kind", ["S", "V", "O"])
@pytest.mark.parametrize(
    "cut", [slice(None), slice(None, None, 3), slice(None, None, -1), slice(5, 6), slice(3, 3)], ids=str
)
def test_numpy_columns_equal_their_items(checked_log: OpenLog, kind: str, cut: slice) -> None:
    items = np.array([b"%d" % (i * i * i) for i in range(50)])
    array = items.view(f"V{items.itemsize}") if kind == "V" else items.astype(kind)
    array = array[cut]
    expected = [bytes(item) for item in array.tolist()]
    log = checked_log()
    assert stored_values(log, array) == expected
    array.flags.writeable = False
    assert stored_values(log, array) == expected


def test_numpy_bytes_lose_trailing_zeros_only_where_numpy_does(checked_log: OpenLog) -> None:
    array = np.array([b"a\0b\0", b"\0\0\0\0", b"abcd"], dtype="S4")
    log = checked_log()
    assert stored_values(log, array) == [b"a\0b", b"", b"abcd"]
    assert stored_values(log, array.view("V4")) == [b"a\0b\0", b"\0\0\0\0", b"abcd"]


def test_numpy_odd_strides_and_sizes(checked_log: OpenLog) -> None:
    log = checked_log()
    assert stored_values(log, np.broadcast_to(np.array([b"same"]), (5,))) == [b"same"] * 5
    assert stored_values(log, np.zeros(3, dtype="V0")) == [b""] * 3
    assert log.append(np.zeros(0, dtype="S9")) == log.end_offset
    table = np.array([(1, b"abc"), (2, b"de")], dtype=[("number", "i1"), ("name", "S3")])
    assert stored_values(log, table["name"]) == [b"abc", b"de"]
    assert stored_values(log, np.array([b"x", None, bytearray(b"y")], dtype=object)) == [b"x", None, b"y"]


def test_numpy_large_items_are_copied_before_they_can_change(checked_log: OpenLog) -> None:
    array = np.array([b"a" * 50_000, b"b" * 50_000])
    log = checked_log()
    log.append(array)
    array[:] = b"changed"
    assert [record.value for record in log.records()] == [b"a" * 50_000, b"b" * 50_000]


@pytest.mark.parametrize(
    ("array", "words"),
    [
        (np.array(["text"]), "NumPy array of <U4|encode"),
        (np.array(["text"], dtype=np.dtypes.StringDType()), "NumPy array of StringDType|encode"),
        (np.array([1, 2]), "NumPy array of int64|view('V8')"),
        (np.array([[b"a"], [b"b"]]), "shape (2, 1)|one dimension"),
        (np.array(b"a"), "shape ()"),
        (np.zeros(2, dtype=[("a", "i4"), ("b", "S4")]), "NumPy array of [('a'|view('V8')"),
        (np.ma.array([b"a", b"b"], mask=[True, False]), "masked|tolist()"),
        (np.array([b"a", "text"], dtype=object), "values[1] is a str"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_other_numpy_arrays_are_refused(checked_log: OpenLog, array: Any, words: str) -> None:
    refused(checked_log(), words, array)


# --- headers ---

PAIRS: list[tuple[str, bytes | None]] = [("k", b"1"), ("k", None), ("ключ", b""), ("", b"x" * 300)]


@pytest.mark.parametrize(
    "headers",
    [PAIRS, tuple(PAIRS), [list(pair) for pair in PAIRS], fastlog.Headers(PAIRS)],
    ids=["list", "tuple", "lists", "Headers"],
)
def test_pairs_are_the_headers_of_every_record(checked_log: OpenLog, headers: Any) -> None:
    log = checked_log()
    assert stored_headers(log, headers, 3) == [PAIRS] * 3
    assert stored_headers(log, headers, len(PAIRS)) == [PAIRS] * len(PAIRS)


def test_mapping_is_the_headers_of_every_record(checked_log: OpenLog) -> None:
    assert stored_headers(checked_log(), dict(PAIRS[1:]), 2) == [PAIRS[1:]] * 2


@pytest.mark.parametrize("nothing", [None, {}, [], (), fastlog.Headers()], ids=repr)
def test_no_headers_for_any_record(checked_log: OpenLog, nothing: Any) -> None:
    assert stored_headers(checked_log(), nothing, 2) == [[], []]


def test_one_entry_of_headers_per_record(checked_log: OpenLog) -> None:
    entries = [None, dict(PAIRS[1:]), PAIRS, tuple(PAIRS), fastlog.Headers(PAIRS), [], {}, [("b", bytearray(b"y"))]]
    log = checked_log()
    expected = [[], PAIRS[1:], PAIRS, PAIRS, PAIRS, [], [], [("b", b"y")]]
    assert stored_headers(log, entries, 8) == expected
    assert stored_headers(log, tuple(entries), 8) == expected
    assert stored_headers(log, next(iter(log.batches(0, 8))).headers, 8) == expected
    assert stored_headers(log, [{}], 1) == [[]]
    assert stored_headers(log, [PAIRS], 1) == [PAIRS]
    assert stored_headers(log, [[("a", b"1"), ("b", b"2")]], 1) == [[("a", b"1"), ("b", b"2")]]


def test_names_of_other_writers_that_are_no_utf8_go_on_as_they_were(checked_log: OpenLog) -> None:
    """So that a record can be moved from one topic to another, whoever wrote it."""
    log = checked_log()
    for name in ("\udcff", "a\udc80\udcfe", "\udcc3"):
        log.append([b"v"], headers=[(name, b"1"), ("k", None)])
        read = log.get(log.end_offset - 1)
        assert list(read.headers) == [(name, b"1"), ("k", None)]
        log.append([b"v"], headers=[read.headers])
        assert log.get(log.end_offset - 1).headers == read.headers


@pytest.mark.parametrize(
    ("headers", "count", "words"),
    [
        ([None], 2, "headers has 1 entries for 2 values"),
        ([None] * 3, 2, "headers has 3 entries for 2 values"),
        ([None, [("k", "text")]], 2, "headers[1] has a str as the value of 'k'|encode"),
        ({"k": 5}, 1, "headers has a int as the value of 'k'"),
        ({"k": np.int64(5)}, 1, "headers has a numpy.int64"),
        ({b"k": b"v"}, 1, "headers has the key b'k', a bytes"),
        ([(b"k", b"v")], 1, "headers has the key b'k', a bytes"),
        ([{"\ud800": b"v"}], 1, "headers[0] has the key '\\ud800'|surrogates"),
        ([[("a", b"1", b"2")]], 1, "headers[0] has a tuple where a (str, bytes) pair"),
        ([None, "ab"], 2, "headers[1] is a str"),
        ([None, 5], 2, "headers[1] is a int"),
        ("text", 1, "headers is a str"),
        (b"bytes", 5, "headers is a bytes"),
        (5, 1, "headers is a int"),
        ((pair for pair in PAIRS), 1, "headers is a generator"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_are_no_headers_is_refused(checked_log: OpenLog, headers: Any, count: int, words: str) -> None:
    refused(checked_log(), words, [b"v"] * count, headers=headers)


# --- timestamps ---


@pytest.mark.parametrize(
    "timestamps",
    [
        [0, 5, -1, SOME_TIME],
        (0, 5, None, SOME_TIME),
        deque([0, 5, -1, SOME_TIME]),
        np.array([0, 5, -1, SOME_TIME]),
        np.array([SOME_TIME, -1, 5, 0])[::-1],
        np.array([0, 9, 5, 9, -1, 9, SOME_TIME])[::2],
        np.array([0, 5, -1, SOME_TIME], dtype=">i8"),
        np.array([0, 5, -1, SOME_TIME], dtype=object),
        np.array([0, 5, "NaT", SOME_TIME], dtype="M8[ms]"),
        np.array([0, 5_999, "NaT", SOME_TIME * 1000], dtype="M8[us]"),
        np.array([0, 5_999_999, "NaT", SOME_TIME * 1_000_000], dtype=">M8[ns]"),
        [np.int64(0), np.uint8(5), np.datetime64("NaT"), np.datetime64(SOME_TIME, "ms")],
        [
            datetime.fromtimestamp(0, UTC),
            5,
            None,
            datetime.fromtimestamp(SOME_TIME // 1000, timezone(timedelta(hours=5))),
        ],
    ],
    ids=lambda value: f"{type(value).__name__}-{getattr(value, 'dtype', '')}",
)
def test_one_timestamp_per_record(checked_log: OpenLog, timestamps: Any) -> None:
    assert stored_timestamps(checked_log(), timestamps, 4) == [0, 5, None, SOME_TIME]


@pytest.mark.parametrize(
    ("timestamp", "expected"),
    [
        (5, 5),
        (-1, None),
        (np.int32(7), 7),
        (np.array(7), 7),
        (np.datetime64("2023-11-14T22:13:20"), 1_700_000_000_000),
        (datetime(1970, 1, 1, 0, 0, 1, 999, tzinfo=UTC), 1000),
        (datetime(1970, 1, 1, 2, tzinfo=timezone(timedelta(hours=1))), 3_600_000),
    ],
    ids=repr,
)
def test_one_timestamp_for_all_records(checked_log: OpenLog, timestamp: Any, expected: int | None) -> None:
    assert stored_timestamps(checked_log(), timestamp, 3) == [expected] * 3


@pytest.mark.parametrize(
    ("unit", "milliseconds"), [("s", 1000), ("m", 60_000), ("h", 3_600_000), ("D", 86_400_000), ("W", 604_800_000)]
)
def test_coarse_units_of_datetime64(checked_log: OpenLog, unit: str, milliseconds: int) -> None:
    log = checked_log()
    assert stored_timestamps(log, np.array([0, 2, "NaT"], dtype=f"M8[{unit}]"), 3) == [0, 2 * milliseconds, None]
    assert stored_timestamps(log, np.array([1, 2], dtype=f"M8[3{unit}]"), 2) == [3 * milliseconds, 6 * milliseconds]
    refused(log, "timestamps[1] is", [b"v"] * 2, timestamps=np.array([1, 2**62], dtype=f"M8[{unit}]"))


@pytest.mark.parametrize(
    ("timestamps", "count", "words"),
    [
        ([1, 2], 3, "timestamps has 2 entries for 3 values"),
        (np.array([1, 2, 3]), 2, "timestamps has 3 entries for 2 values"),
        ([], 1, "timestamps has 0 entries for 1 values"),
        (-2, 1, "timestamps is -2"),
        (2**63, 1, "timestamps is 9223372036854775808"),
        ([1, -2], 2, "timestamps[1] is -2"),
        ([1, 2**70], 2, "timestamps[1] is 1180591620717411303424"),
        (np.array([1, -5]), 2, "timestamps[1] is -5"),
        (np.array([1, 2**64 - 1], dtype="u8"), 2, "timestamps[1] is 18446744073709551615"),
        (True, 1, "timestamps is True, a bool"),
        ([1, False], 2, "timestamps[1] is False, a bool"),
        (1.5, 1, "timestamps is 1.5, a float"),
        (np.array([1.5]), 1, "NumPy array of float64"),
        (np.array([True]), 1, "NumPy array of bool"),
        (np.array([[1]]), 1, "shape (1, 1)"),
        (np.ma.array([1, 2], mask=[0, 1]), 2, "masked"),
        (np.array([1], dtype="m8[ms]"), 1, "NumPy array of timedelta64[ms]"),
        (np.array([-1], dtype="M8[ms]"), 1, "timestamps[0] is 1969-12-31T23:59:59.999|before 1970"),
        (["2023-11-14"], 1, "timestamps[0] is '2023-11-14', a str"),
        ("2023-11-14", 1, "timestamps is '2023-11-14', a str"),
        ({0: 5}, 1, "timestamps is {0: 5}, a dict"),
        (datetime(2023, 1, 1), 1, "timestamps is datetime.datetime(2023, 1, 1, 0, 0) without a time zone"),
        ([datetime(1969, 1, 1, tzinfo=UTC)], 1, "timestamps[0] is 1969-01-01 00:00:00+00:00, before 1970"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_are_no_timestamps_is_refused(checked_log: OpenLog, timestamps: Any, count: int, words: str) -> None:
    refused(checked_log(), words, [b"v"] * count, timestamps=timestamps)


def test_array_of_timestamps_may_change_after_the_append(checked_log: OpenLog) -> None:
    array = np.array([1, 2, 3])
    log = checked_log()
    log.append([b"v"] * 3, timestamps=array)
    array[:] = 9
    assert [record.timestamp for record in log.records()] == [1, 2, 3]
