"""Headers of moved records: what goes in comes out, whatever the record's own headers are, and lies are found out."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

import fastlog
from fastlog import Headers, Record
from fastlog.delivery import headers as moved
from fastlog.delivery.headers import DeadLetter, dead_letter_headers, item_of_retry, letter_of, retry_headers
from fastlog.delivery.items import Failure, Item, Move
from fastlog.delivery.naming import HEADERS_ROOM

OUR_NAMES = [
    "fastlog.retry.topic", "fastlog.retry.due", "fastlog.retry.state", "fastlog.dlq.topic", "fastlog.dlq.id",
    "fastlog.dlq.audit", "fastlog.retry.", "fastlog.dlq.group",
]  # fmt: skip
PAIRS = st.tuples(
    st.sampled_from(["h", "trace", "", "ключ", *OUR_NAMES]) | st.text(st.characters(codec="utf-8"), max_size=5),
    st.none() | st.binary(max_size=8) | st.just(b"0"),
)
TEXT = st.text(max_size=30)
TIMES = st.none() | st.integers(0, (1 << 63) - 1)


@st.composite
def items(draw: st.DrawFn) -> Item:
    raw = Record(
        draw(st.sampled_from(["orders", "a.b-1", "x" * 249])),
        draw(st.integers(0, 99_999)),
        draw(st.integers(0, (1 << 63) - 1)),
        draw(TIMES),
        draw(st.none() | st.binary(max_size=5)),
        draw(st.none() | st.binary(max_size=5)),
        Headers(draw(st.lists(PAIRS, max_size=6))),
        draw(st.sampled_from(["create", "append"])),
    )
    return item_of(raw, first_failure=draw(TIMES))


def item_of(raw: Record, **fields: Any) -> Item:
    named: dict[str, Any] = {
        "record": raw, "raw": raw, "is_retry": False, "offset": raw.offset, "origin_topic": raw.topic,
        "origin_partition": raw.partition, "origin_offset": raw.offset, "key": raw.key, "attempts": 0, "due": 0,
        "first_failure": None, "is_follower": False, "is_suspect": False,
    }  # fmt: skip
    return Item(**{**named, **fields})


FAILURES = st.none() | st.builds(Failure, exception=TEXT, message=TEXT, traceback=TEXT, at=st.integers(0, 1 << 50))


def move_of(item: Item, failure: Failure | None = None, **fields: Any) -> Move:
    named: dict[str, Any] = {
        "item": item, "to": "retry", "attempts": 1, "due": 0, "state": "head", "failure": failure,
    }  # fmt: skip
    return Move(**{**named, **fields})


def stored(pairs: list[tuple[str, bytes | None]], item: Item, topic: str = "beside") -> Record:
    """The moved record as it is read again."""
    return Record(topic, item.origin_partition, 17, 1_700_000_000_000, item.raw.key, item.raw.value, Headers(pairs))


# --- round trips ------------------------------------------------------------------------------------------------------


@given(
    item=items(), failure=FAILURES, attempts=st.integers(0, (1 << 31) - 1), due=st.integers(0, (1 << 63) - 1),
    state=st.sampled_from(["head", "follower"]),
)  # fmt: skip
def test_what_waits_comes_back_as_it_was(
    item: Item, failure: Failure | None, attempts: int, due: int, state: Literal["head", "follower"]
) -> None:
    pairs = retry_headers(item, move_of(item, failure, attempts=attempts, due=due, state=state))
    back = item_of_retry(stored(pairs, item))
    assert back.raw == back.record == item.raw
    assert (back.raw.timestamp_type, back.raw.headers) == (item.raw.timestamp_type, item.raw.headers)
    assert (back.is_retry, back.offset, back.is_suspect) == (True, 17, False)
    assert (back.origin_topic, back.origin_partition, back.origin_offset) == (
        item.origin_topic, item.origin_partition, item.origin_offset,
    )  # fmt: skip
    assert (back.key, back.attempts, back.due, back.is_follower) == (item.key, attempts, due, state == "follower")
    first = item.first_failure if item.first_failure is not None else failure and failure.at
    assert back.first_failure == first
    assert back.failure == (failure and Failure(failure.exception, failure.message, "", failure.at))


@given(item=items(), failure=FAILURES, attempts=st.integers(0, (1 << 31) - 1), group=st.sampled_from(["mail", "a.b_c"]))
def test_a_letter_says_where_it_came_from(item: Item, failure: Failure | None, attempts: int, group: str) -> None:
    pairs = dead_letter_headers(item, move_of(item, failure, to="dead_letter", attempts=attempts), group)
    letter = letter_of(stored(pairs, item, "orders.mail.dlq"))
    assert letter.record == item.raw and letter.headers == item.raw.headers
    assert letter.timestamp_type == item.raw.timestamp_type
    assert (letter.topic, letter.partition, letter.offset) == ("orders.mail.dlq", item.origin_partition, 17)
    assert letter.id == f"{item.origin_topic}-{item.origin_partition}-{item.origin_offset}"
    assert (letter.group, letter.attempts) == (group, attempts)
    if failure is None:
        assert (letter.last_failure, letter.exception, letter.message, letter.traceback) == (None, "", "", "")
    else:
        assert (letter.last_failure, letter.exception) == (failure.at, failure.exception)
        assert (letter.message, letter.traceback) == (failure.message, failure.traceback)


@given(item=items(), failure=FAILURES)
def test_through_all_topics_and_back(item: Item, failure: Failure | None) -> None:
    """Source, retry, dead letters, retry again: key, value, headers and place are what they were."""
    waiting = item_of_retry(stored(retry_headers(item, move_of(item, failure)), item))
    dead = letter_of(stored(dead_letter_headers(waiting, move_of(waiting, failure, attempts=5), "mail"), item))
    again = item_of_retry(stored(moved.redriven_headers(dead), item))
    assert again.raw == dead.record == item.raw
    assert again.raw.headers == dead.headers == item.raw.headers
    assert (again.attempts, again.due, again.is_follower) == (0, 0, False)
    assert again.first_failure == dead.first_failure


def test_a_letter_of_a_dead_letter_topic_is_kept_whole() -> None:
    """A group may read another one's dead letters, and fail at them too."""
    raw = Record("orders", 0, 5, 1, b"k", b"v", Headers([("h", b"1")]))
    inner = stored(dead_letter_headers(item_of(raw), move_of(item_of(raw)), "mail"), item_of(raw), "orders.mail.dlq")
    outer = letter_of(
        stored(dead_letter_headers(item_of(inner), move_of(item_of(inner)), "fixers"), item_of(inner), "d")
    )
    assert (outer.group, outer.id, outer.headers) == ("fixers", "orders.mail.dlq-0-17", inner.headers)
    assert letter_of(outer.record).id == "orders-0-5"


def test_what_a_tool_appended_on_the_way_is_kept() -> None:
    raw = Record("orders", 0, 5, 1, b"k", b"v", Headers([("h", b"1")]))
    pairs = dead_letter_headers(item_of(raw), move_of(item_of(raw)), "mail")
    letter = letter_of(stored([*pairs, ("mirror.source", b"x")], item_of(raw)))
    assert list(letter.headers) == [("h", b"1"), ("mirror.source", b"x")]


# --- limits -----------------------------------------------------------------------------------------------------------


def test_long_texts_are_cut_and_find_room() -> None:
    raw = Record("x" * 249, 99_999, (1 << 63) - 1, 1, None, None)
    failure = Failure("E" * 9000, "\ud800" * 9000, "begin" + "\ud800" * 9000 + "end", 1 << 62)
    move = move_of(item_of(raw), failure)
    pairs = dead_letter_headers(item_of(raw), move, "g" * 200)
    assert sum(len(name) + len(value or b"") + 10 for name, value in pairs) < HEADERS_ROOM
    letter = letter_of(stored(pairs, item_of(raw)))
    assert len(letter.exception) == moved.MOST_EXCEPTION and letter.exception.endswith("E…")
    assert letter.message.startswith("\\ud800") and letter.message.endswith("…")
    assert letter.traceback.startswith("…") and letter.traceback.endswith("end") and "begin" not in letter.traceback
    assert sum(len(name) + len(value or b"") + 10 for name, value in retry_headers(item_of(raw), move)) < HEADERS_ROOM


def test_names_and_numbers_are_ascii() -> None:
    raw = Record("orders", 0, 5, 1, b"k", b"v")
    failure = Failure("ValueError", "größer", "…", 7)
    for pairs in (
        retry_headers(item_of(raw), move_of(item_of(raw), failure)),
        dead_letter_headers(item_of(raw), move_of(item_of(raw), failure), "mail"),
    ):
        for name, value in pairs:
            assert name.isascii()
            if not name.endswith(("message", "traceback")):
                assert value is not None and value.isascii()


# --- what others may have written -------------------------------------------------------------------------------------

RAW = Record("orders", 0, 5, 1, b"k", b"v", Headers([("h", b"1")]))
RETRY_PAIRS = retry_headers(item_of(RAW), move_of(item_of(RAW), Failure("E", "m", "t", 1)))
LETTER_PAIRS = dead_letter_headers(item_of(RAW), move_of(item_of(RAW), Failure("E", "m", "t", 1)), "mail")
CASES: list[tuple[Callable[[Record], object], list[tuple[str, bytes | None]]]] = [
    (item_of_retry, RETRY_PAIRS),
    (letter_of, LETTER_PAIRS),
]
LIES: list[tuple[str, bytes | None]] = [
    *[(name, value) for name in ("partition", "offset", "attempts") for value in (
        None, b"", b"x", b"-1", b"1e9", b" 1", b"1\n", b"0x1", b"9" * 20, b"9" * 10_000, "١".encode(), b"1.0",
    )],
    ("partition", b"100000"), ("attempts", b"2147483648"), ("offset", b"9223372036854775808"),
    ("timestamp", b"soon"), ("timestamp", b""), ("timestamp-type", b"logical"), ("timestamp-type", None),
    ("first-failure", b"yesterday"), ("topic", None), ("topic", b""), ("topic", b"../../etc"), ("topic", b"\xff"),
    ("topic", b"x" * 250),
]  # fmt: skip


@pytest.mark.parametrize("lie", LIES, ids=lambda lie: repr(lie)[:40])
@pytest.mark.parametrize("case", CASES, ids=lambda case: case[0].__name__)
def test_a_lie_is_an_error_that_names_place_and_header(case: Any, lie: tuple[str, bytes | None]) -> None:
    read, pairs = case
    name, value = lie
    wrong = [(key, value if key.endswith("." + name) else old) for key, old in pairs]
    assert wrong != pairs
    with pytest.raises(fastlog.InvalidRecordError, match=rf"beside-0, offset 17: .*{name}") as caught:
        read(stored(wrong, item_of(RAW)))
    assert (caught.value.topic, caught.value.partition, caught.value.offset) == ("beside", 0, 17)
    assert len(str(caught.value)) < 600
    missing = [pair for pair in pairs if not pair[0].endswith("." + name)]
    if name not in ("timestamp", "first-failure"):  # these may be unknown
        with pytest.raises(fastlog.InvalidRecordError):
            read(stored(missing, item_of(RAW)))


@pytest.mark.parametrize("lie", [("due", b"-1"), ("due", b"now"), ("state", b"tail"), ("state", None)])
def test_a_lie_about_waiting(lie: tuple[str, bytes | None]) -> None:
    wrong = [(key, lie[1] if key.endswith("." + lie[0]) else old) for key, old in RETRY_PAIRS]
    with pytest.raises(fastlog.InvalidRecordError, match=lie[0]):
        item_of_retry(stored(wrong, item_of(RAW)))


@given(pairs=st.lists(PAIRS, max_size=20), take=st.integers(0, 20), case=st.sampled_from(CASES))
def test_anything_else_is_an_error_or_a_record(pairs: list[tuple[str, bytes | None]], take: int, case: Any) -> None:
    read, ours = case
    try:
        found = read(stored([*ours[:take], *pairs], item_of(RAW)))
    except fastlog.InvalidRecordError:
        return
    assert isinstance(found, (Item, DeadLetter))


def test_decoding_is_the_callers() -> None:
    """Its errors come out; what it returns is what the handler sees, beside what is moved."""
    record = stored(RETRY_PAIRS, item_of(RAW))

    def shout(raw: Record) -> Record | None:
        return Record(raw.topic, raw.partition, raw.offset, raw.timestamp, raw.key, b"LOUD", raw.headers)

    item = item_of_retry(record, shout)
    assert item.record is not None and item.record.value == b"LOUD" and item.raw.value == b"v"
    assert item_of_retry(record, lambda raw: None).record is None

    def refuse(raw: Record) -> Record | None:
        raise ValueError("no JSON")

    with pytest.raises(ValueError, match="no JSON"):
        item_of_retry(record, refuse)
