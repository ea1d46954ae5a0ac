"""Dead letters: found by what one knows of them, sent back once, discarded once, and nothing else is touched."""

from __future__ import annotations

import itertools
import json
import random
import threading
import time
from collections import Counter
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

import fastlog
from fastlog import Headers
from fastlog.delivery.audits import AUDIT_PAIRS, Handled, audit_value, runs_of
from fastlog.delivery.dead_letters import DeadLetters
from fastlog.delivery.headers import item_of_retry
from tests.delivery import lettering
from tests.delivery.lettering import AGAIN, DLQ, GROUP, SOURCE, START, content, exact_sum, fill, prepare, values_of


@pytest.fixture
def store(folder: Path) -> Iterator[fastlog.Store]:
    with fastlog.open(folder / "store", durability="os") as store:
        yield store


@pytest.fixture
def letters(store: fastlog.Store) -> DeadLetters:
    """Ten letters in partition 0, four in partition 1."""
    letters = prepare(store)
    fill(store, 10)
    fill(store, 4, partition=1)
    return letters


def ids(found: Any) -> list[str]:
    return [letter.id.removeprefix("orders-") for letter in found]


# --- opening ----------------------------------------------------------------------------------------------------------


def test_opened_by_either_name(store: fastlog.Store, letters: DeadLetters) -> None:
    for opened in (DeadLetters.open(store, DLQ), DeadLetters.open(store, SOURCE, GROUP), letters):
        assert (opened.topic, opened.source, opened.group) == (DLQ, SOURCE, GROUP)
        assert opened.count() == len(list(opened.list())) == 14
    assert DeadLetters.topics(store) == {DLQ: (SOURCE, GROUP)}
    assert DeadLetters.open(store, DLQ).by.startswith("process ")
    assert fastlog.DeadLetters is DeadLetters


def test_what_is_no_dead_letter_topic_is_named(store: fastlog.Store, letters: DeadLetters) -> None:
    with pytest.raises(fastlog.UnknownTopicError, match=r"no dead-letter topic.*'orders\.mail\.dlq'"):
        DeadLetters.open(store, SOURCE)
    with pytest.raises(fastlog.UnknownTopicError, match="no dead-letter topic"):
        DeadLetters.open(store, AGAIN)
    with pytest.raises(fastlog.UnknownTopicError, match="group 'ship' has no dead-letter topic"):
        DeadLetters.open(store, SOURCE, "ship")
    with pytest.raises(fastlog.UnknownTopicError, match="did you mean"):
        DeadLetters.open(store, "order", GROUP)


def test_an_own_name_is_found(store: fastlog.Store) -> None:
    store.create_topic("bills")
    lettering.require_topic(store.directory, "bills", "ship", lettering.DEAD_LETTER, "failed")
    assert DeadLetters.open(store, "bills", "ship").topic == "failed"
    assert list(DeadLetters.open(store, "failed").list()) == []


# --- listing ----------------------------------------------------------------------------------------------------------


def test_a_letter_tells_everything(store: fastlog.Store, letters: DeadLetters) -> None:
    letter = next(letters.list(ids="orders-0-3"))
    raw = lettering.raw_of(3, 0)
    assert letter.record == raw and letter.headers == raw.headers == Headers([("h", b"3"), ("n", None)])
    assert (letter.topic, letter.partition, letter.offset) == (DLQ, 0, 3)
    assert (letter.attempts, letter.group, letter.exception) == (5, GROUP, "ValueError")
    assert (letter.first_failure, letter.last_failure) == (START + 503, START + 503)
    assert letter.timestamp == START + 1003 and letter.origin_timestamp == START + 3
    assert letter.message == "order 3 failed" and letter.traceback.startswith("Traceback")
    assert letters.show("orders-0-3") == letter


FILTERS: list[tuple[dict[str, Any], list[str]]] = [
    ({}, [*(f"0-{n}" for n in range(10)), *(f"1-{n}" for n in range(4))]),
    ({"partition": 1}, ["1-0", "1-1", "1-2", "1-3"]),
    ({"partition": [1, 0], "offsets": range(2, 4)}, ["0-2", "0-3", "1-2", "1-3"]),
    ({"offsets": [3, 9, 77]}, ["0-3", "0-9", "1-3"]),
    ({"offsets": range(0, 10, 4)}, ["0-0", "0-4", "0-8", "1-0"]),
    ({"offsets": []}, []),
    ({"ids": ["orders-0-3", "orders-1-1", "orders-1-99", "nonsense"]}, ["0-3", "1-1"]),
    ({"ids": "orders-0-3"}, ["0-3"]),
    ({"key": b"key-1"}, ["0-1", "0-6", "1-1"]),
    ({"key": b"key-"}, []),
    ({"exception": "ValueError"}, ["0-0", "0-3", "0-6", "0-9", "1-0", "1-3"]),
    ({"exception": ValueError, "partition": 1}, ["1-0", "1-3"]),
    ({"exception": "NoStock", "partition": 0}, ["0-1", "0-4", "0-7"]),
    ({"exception": "shop.errors.NoStock", "partition": 1}, ["1-1"]),
    ({"exception": "Stock"}, []),
    ({"message": "order 2"}, ["0-2", "1-2"]),
    ({"message": "failed", "exception": TimeoutError, "key": b"key-2"}, ["0-2", "1-2"]),
    ({"since": START + 1008}, ["0-8", "0-9"]),
    ({"since": START + 1002, "until": START + 1004}, ["0-2", "0-3", "1-2", "1-3"]),
    ({"until": datetime.fromtimestamp((START + 1001) / 1000, UTC)}, ["0-0", "1-0"]),
    ({"since": "-1h"}, []),
    ({"until": timedelta(hours=-1), "partition": 1, "offsets": range(3)}, ["1-0", "1-1", "1-2"]),
]


@pytest.mark.parametrize("case", FILTERS, ids=lambda case: str(case[0])[:50])
def test_filters(letters: DeadLetters, case: tuple[dict[str, Any], list[str]]) -> None:
    filters, expected = case
    assert ids(letters.list(**filters)) == expected
    survey = letters.survey(**filters)
    assert survey.letters == len(expected) == sum(survey.exceptions.values()) == sum(survey.partitions.values())


def test_a_survey_says_what_there_is(letters: DeadLetters) -> None:
    survey = letters.survey()
    assert survey.exceptions == {"ValueError": 6, "shop.errors.NoStock": 4, "TimeoutError": 4}
    assert next(iter(survey.exceptions)) == "ValueError" and survey.partitions == {0: 10, 1: 4}
    assert (survey.oldest, survey.newest) == (START + 1000, START + 1009) and survey.ends == {0: 10, 1: 4}


WRONG: list[dict[str, Any]] = [
    {"partition": True}, {"partition": ["a"]}, {"offsets": [-1]}, {"offsets": ["1"]}, {"offsets": [1 << 63]},
    {"ids": [3]}, {"key": "text"}, {"exception": int}, {"exception": 3}, {"message": b"bytes"},
    {"since": datetime(2026, 1, 1)}, {"since": "1h"}, {"until": "-1 fortnight"}, {"until": 1.5}, {"state": "closed"},
]  # fmt: skip


@pytest.mark.parametrize("filters", WRONG, ids=str)
def test_filters_that_cannot_be(letters: DeadLetters, filters: dict[str, Any]) -> None:
    with pytest.raises(fastlog.ConfigError):
        letters.list(**filters)


def test_there_is_no_such_letter(letters: DeadLetters) -> None:
    with pytest.raises(fastlog.ConfigError, match="no dead letter 'orders-0-77'"):
        letters.show("orders-0-77")
    with pytest.raises(fastlog.UnknownTopicError, match="it has 2, numbered from 0"):
        letters.list(partition=2)
    with pytest.raises(TypeError):
        letters.list(colour="red")  # type: ignore[call-arg]


def test_read_only_stores_show_them(folder: Path, store: fastlog.Store, letters: DeadLetters) -> None:
    with fastlog.open(folder / "store", read_only=True) as other:
        seen = DeadLetters.open(other, DLQ)
        assert ids(seen.list(partition=1)) == ["1-0", "1-1", "1-2", "1-3"] and seen.survey().letters == 14
        for act in (seen.redrive, seen.discard):
            with pytest.raises(fastlog.NotSupportedError, match="read_only"):
                act()


# --- redriving --------------------------------------------------------------------------------------------------------


def test_back_to_the_retry_topic(store: fastlog.Store, letters: DeadLetters) -> None:
    before = exact_sum(store, letters)
    report = letters.redrive(exception="ValueError")
    assert (report.action, report.topic, report.target, report.letters) == ("redrive", DLQ, AGAIN, 6)
    assert ids(letters.list(exception="ValueError")) == [] and letters.count() == 8
    assert exact_sum(store, letters) == before
    moved = [item_of_retry(record) for record in content(store, AGAIN)]
    assert [(item.origin_partition, item.origin_offset) for item in moved] == [
        (0, 0), (0, 3), (0, 6), (0, 9), (1, 0), (1, 3),
    ]  # fmt: skip
    for item in moved:
        raw = lettering.raw_of(item.origin_offset, item.origin_partition)
        assert item.raw == raw and item.raw.headers == raw.headers
        assert (item.attempts, item.due, item.is_follower) == (0, 0, False)
    assert content(store, SOURCE) == []


def test_back_to_the_source_as_they_were(store: fastlog.Store, letters: DeadLetters) -> None:
    report = letters.redrive(to="source", partition=1)
    assert (report.target, report.letters, report.transactions) == (SOURCE, 4, 1)
    for number, record in enumerate(content(store, SOURCE)):
        raw = lettering.raw_of(number, 1)
        assert (record.partition, record.key, record.value, record.timestamp) == (1, raw.key, raw.value, raw.timestamp)
        assert record.headers == raw.headers
    assert letters.redrive(to="source", partition=1).letters == 0


def test_whatever_a_record_holds_it_goes_through(store: fastlog.Store) -> None:
    """Nulls, nothing, a megabyte, names of headers that are no UTF-8."""
    letters = prepare(store)
    own = Headers([("\udcff", b"\x00"), ("", None), ("fastlog.retry.topic", b"x"), ("fastlog.dlq.id", None)])
    cases: list[dict[str, Any]] = [
        {"key": None, "value": None}, {"key": b"", "value": b""}, {"value": bytes(3_000_000)}, {"headers": own},
    ]  # fmt: skip
    for number, case in enumerate(cases):
        fill(store, 1, first=number, **case)
    wanted = [lettering.raw_of(number, 0, **case) for number, case in enumerate(cases)]
    assert [letter.record for letter in letters.list()] == wanted
    assert letters.redrive().letters == 4
    back = [item_of_retry(record).raw for record in content(store, AGAIN)]
    assert back == wanted and [raw.headers for raw in back] == [raw.headers for raw in wanted]


def test_again_does_nothing(store: fastlog.Store, letters: DeadLetters) -> None:
    assert letters.redrive().letters == 14
    end = store.topic(DLQ).partition(0).end_offset
    for _ in range(2):
        assert (letters.redrive().letters, letters.discard().letters) == (0, 0)
    assert store.topic(DLQ).partition(0).end_offset == end
    assert len(content(store, AGAIN)) == 14 and letters.count() == 0


def test_the_retry_topic_is_made_when_it_is_missing(store: fastlog.Store, letters: DeadLetters) -> None:
    store.delete_topic(AGAIN)
    assert letters.redrive().letters == 14 and len(content(store, AGAIN)) == 14
    assert store.topic(AGAIN).owner == (SOURCE, GROUP, "retry")


def test_the_retry_topic_may_have_any_name(store: fastlog.Store, letters: DeadLetters) -> None:
    store.delete_topic(AGAIN)
    lettering.require_topic(store.directory, SOURCE, GROUP, lettering.RETRY, "again")
    assert letters.redrive().target == "again" and len(content(store, "again")) == 14


def test_without_a_source_there_is_nowhere_to_go(store: fastlog.Store, letters: DeadLetters) -> None:
    store.delete_topic(SOURCE)
    for to in ("retry", "source"):
        with pytest.raises(fastlog.UnknownTopicError):
            letters.redrive(to=to)  # type: ignore[arg-type]
    store.create_topic(SOURCE, partitions=1)
    with pytest.raises(fastlog.ConfigError, match="has 1 partitions by now"):
        letters.redrive(to="source", partition=1)
    assert letters.count() == 14 and letters.discard().letters == 14


def test_limits(store: fastlog.Store, letters: DeadLetters) -> None:
    assert letters.redrive(limit=3).letters == 3
    assert ids(letters.list(partition=0)) == [f"0-{n}" for n in range(3, 10)]
    assert letters.redrive(limit=9).letters == 9 and ids(letters.list()) == ["1-2", "1-3"]
    assert letters.redrive(limit=9).letters == 2


def test_portions_are_limited_by_number_and_bytes(store: fastlog.Store, monkeypatch: pytest.MonkeyPatch) -> None:
    letters = prepare(store)
    fill(store, 1100)
    seen: list[int] = []
    report = letters.redrive(progress=seen.append)
    assert (report.letters, report.transactions, seen) == (1100, 3, [500, 1000, 1100])
    fill(store, 10, first=2000)
    monkeypatch.setattr("fastlog.delivery.dead_letters.MOST_BYTES_AT_ONCE", 40)
    assert letters.redrive().transactions == 4


def test_only_what_was_surveyed(store: fastlog.Store, letters: DeadLetters) -> None:
    survey = letters.survey(message="order 1")
    fill(store, 3, first=11)
    assert letters.redrive(before=survey.ends, message="order 1").letters == survey.letters == 2
    assert ids(letters.list(message="order 1")) == ["0-11", "0-12", "0-13"]


def test_what_fails_again_at_once_is_not_redriven_for_ever(store: fastlog.Store, letters: DeadLetters) -> None:
    """Each portion is followed by a new letter of the same record, as by a group that is quick to fail."""

    def fail_again(done: int) -> None:
        fill(store, 1, first=done - 1)

    assert letters.redrive(partition=0, rate=4, limit=3, progress=fail_again).letters == 3
    assert letters.redrive(partition=0, progress=fail_again).letters == 10


def test_a_letter_that_died_again_has_its_id_again(store: fastlog.Store, letters: DeadLetters) -> None:
    letters.redrive(ids="orders-0-3")
    handled = letters.show("orders-0-3")
    assert (handled.offset, handled.state) == (3, "redriven")
    fill(store, 1, first=3)
    again = letters.show("orders-0-3")
    assert again.state == "open" and again.offset > 3
    assert [one.offset for one in letters.list(ids="orders-0-3", state="all")] == [3, again.offset]
    assert letters.redrive(ids="orders-0-3").letters == 1
    assert letters.show("orders-0-3").offset == again.offset


def test_a_rate_is_kept(store: fastlog.Store) -> None:
    letters = prepare(store)
    fill(store, 60)
    times: list[float] = []
    began = time.monotonic()
    report = letters.redrive(rate=100, progress=lambda done: times.append(time.monotonic() - began))
    assert report.transactions == 3  # 25, 25, 10: the last one begins after 0.5 s
    assert times[-1] >= 0.49


@pytest.mark.parametrize("options", [{"rate": 0}, {"rate": -1}, {"rate": "9/s"}, {"limit": 0}, {"limit": 1.5}], ids=str)
def test_options_that_cannot_be(letters: DeadLetters, options: dict[str, Any]) -> None:
    with pytest.raises(fastlog.ConfigError):
        letters.redrive(**options)
    with pytest.raises(fastlog.ConfigError, match="'retry', 'source'"):
        letters.redrive(to="orders")  # type: ignore[arg-type]
    assert letters.count() == 14


# --- discarding and audits --------------------------------------------------------------------------------------------


def test_discarded_letters_stay_where_they_are(store: fastlog.Store, letters: DeadLetters) -> None:
    report = letters.discard(key=b"key-2")
    assert (report.action, report.target, report.letters) == ("discard", None, 3)
    assert ids(letters.list(key=b"key-2")) == []
    assert ids(letters.list(key=b"key-2", state="handled")) == ["0-2", "0-7", "1-2"]
    assert {letter.state for letter in letters.list(state="handled")} == {"discarded"}
    assert len(list(letters.list(state="all"))) == 14 and letters.count() == 11
    assert letters.redrive(key=b"key-2").letters == 0 and content(store, AGAIN) == []


def test_what_was_done_is_told(store: fastlog.Store, letters: DeadLetters) -> None:
    began = int(time.time() * 1000)
    letters.redrive(partition=0, offsets=[1, 2, 3, 7])
    DeadLetters.open(store, DLQ, by="zoë").discard(partition=1, limit=1)
    first, second = letters.audits()
    assert (first.action, first.target, first.by, first.offsets) == ("redrive", AGAIN, "tester", ((1, 3), (7, 1)))
    assert (first.topic, first.partition, first.letters) == (DLQ, 0, 4) and began <= first.at
    assert (second.action, second.target, second.by, second.offsets) == ("discard", None, "zoë", ((0, 1),))
    (record,) = [
        one for one in content(store, DLQ) if one.partition == 1 and one.headers.keys() == ("fastlog.dlq.audit",)
    ]
    assert record.key is None and json.loads(record.value or b"")["by"] == "zoë"


def test_no_record_passes_for_an_audit(store: fastlog.Store) -> None:
    """A producer of the source may send what an audit looks like; as a dead letter it is one more letter."""
    letters = prepare(store)
    forged = audit_value("discard", None, range(50), 1, "nobody")
    fill(store, 3, key=None, value=forged, headers=Headers(AUDIT_PAIRS))
    assert letters.count() == 3 and len(list(letters.list())) == 3 and list(letters.audits()) == []
    assert letters.redrive().letters == 3
    assert {item_of_retry(one).raw.headers for one in content(store, AGAIN)} == {Headers(AUDIT_PAIRS)}


AUDIT = {"action": "redrive", "to": AGAIN, "offsets": [[0, 1]], "at": 1, "by": "me"}


@pytest.mark.parametrize(
    "change",
    [
        {"offsets": 7}, {"offsets": [[1]]}, {"offsets": [[-1, 1]]}, {"offsets": [["0", 1]]},
        {"offsets": [[2**63 - 1, 1]]}, {"at": None},
        {"by": 7}, {"to": 7},
    ],
    ids=str,
)  # fmt: skip
def test_an_unreadable_audit_is_an_error(store: fastlog.Store, letters: DeadLetters, change: dict[str, Any]) -> None:
    """Else what it tells of would be sent twice."""
    with store.producer() as producer:
        producer.send(DLQ, json.dumps({**AUDIT, **change}).encode(), headers=AUDIT_PAIRS, partition=0)
    for act in (letters.count, letters.redrive, lambda: list(letters.list())):
        with pytest.raises(fastlog.InvalidRecordError, match="offset 10: this audit record cannot be read"):
            act()
    assert content(store, AGAIN) == []
    assert letters.redrive(partition=1).letters == 4


def test_an_audit_may_tell_of_anything(store: fastlog.Store, letters: DeadLetters) -> None:
    """Runs are not taken apart, so a run of any length costs nothing."""
    with store.producer() as producer:
        told = {**AUDIT, "offsets": [[4, 1 << 62], [2, 1]], "more": "than we know"}
        producer.send(DLQ, json.dumps(told).encode(), headers=AUDIT_PAIRS, partition=0)
    assert ids(letters.list(partition=0)) == ["0-0", "0-1", "0-3"]


def test_runs(seed: int) -> None:
    chance = random.Random(seed)
    for _ in range(200):
        offsets = sorted(chance.sample(range(60), chance.randrange(60)))
        runs = runs_of(offsets)
        assert [one for first, length in runs for one in range(first, first + length)] == offsets
        assert all(a + b < c for (a, b), (c, _) in itertools.pairwise(runs))


def test_handled_is_the_union_of_all_runs(seed: int) -> None:
    import numpy

    from fastlog.delivery.audits import Audit

    chance = random.Random(seed)
    for _ in range(200):
        runs = [(chance.randrange(50), chance.randrange(1, 9)) for _ in range(chance.randrange(6))]
        handled = Handled([Audit(DLQ, 0, 100 + at, "discard", None, (run,), 1, "") for at, run in enumerate(runs)])
        union = {one for first, length in runs for one in range(first, first + length)}
        offsets = numpy.arange(70, dtype=numpy.int64)
        assert set(offsets[handled.mask(offsets)].tolist()) == union
        assert {one for one in range(70) if handled.action_at(one)} == union
        assert handled.audit_mask(numpy.arange(99, 110)).sum() == len(runs)


# --- what does not belong there ---------------------------------------------------------------------------------------


def test_what_is_no_letter_of_the_group_is_passed_over(
    store: fastlog.Store, letters: DeadLetters, caplog: pytest.LogCaptureFixture
) -> None:
    other = fastlog.Record("bills", 0, 1, START, b"k", b"v")
    with store.producer() as producer:
        producer.send(DLQ, b"by hand", partition=0)
        producer.send(DLQ, b"other", headers=lettering.letter_pairs(other, lettering.failure_of(1)), partition=0)
    with caplog.at_level("WARNING", "fastlog.delivery"):
        assert letters.redrive(partition=0).letters == 10
    assert "has 2 records that are no dead letters of its group" in caplog.text and "by hand" not in caplog.text
    assert values_of(content(store, AGAIN))[b"by hand"] == 0


def test_retention_takes_letters_and_the_rest_is_handled(store: fastlog.Store, letters: DeadLetters) -> None:
    letters.redrive(partition=0, offsets=range(4))
    store.topic(DLQ).partition(0).delete_records(before=7)
    assert ids(letters.list(partition=0)) == ["0-7", "0-8", "0-9"]
    assert letters.redrive(partition=0).letters == 3 and letters.count() == 4


def test_open_moves_are_waited_for_and_aborted_ones_not_seen(store: fastlog.Store, letters: DeadLetters) -> None:
    """A group's move that is open hides what lies behind it, audits too: who redrives waits for its end."""
    assert letters.redrive(partition=0, limit=2).letters == 2
    raw = lettering.raw_of(50, 0)
    mover = store.producer(transactional_id="fastlog-move")
    transaction = mover.transaction()
    transaction.__enter__()
    pairs = lettering.letter_pairs(raw, lettering.failure_of(50))
    transaction.send(DLQ, raw.value, key=raw.key, headers=pairs, partition=0).result(10)
    done: list[int] = []
    behind = threading.Thread(target=lambda: done.append(letters.redrive(partition=0, limit=3).letters))
    behind.start()
    behind.join(0.3)
    assert behind.is_alive() and not done
    transaction.abort()
    behind.join(30)
    assert done == [3] and ids(letters.list(partition=0)) == [f"0-{n}" for n in range(5, 10)]
    assert letters.redrive().letters == 9
    assert max(Counter(item_of_retry(one).raw.value for one in content(store, AGAIN)).values()) == 1


def test_letters_behind_an_open_transaction_are_not_passed_over(store: fastlog.Store) -> None:
    """Nothing can be seen yet, but something is there."""
    letters = prepare(store)
    mover = store.producer(transactional_id="fastlog-move")
    transaction = mover.transaction()
    transaction.__enter__()
    transaction.send(DLQ, b"open", partition=0).result(10)
    fill(store, 3)
    assert letters.count() == 0
    done: list[int] = []
    behind = threading.Thread(target=lambda: done.append(letters.redrive().letters))
    behind.start()
    behind.join(0.3)
    assert behind.is_alive()
    transaction.abort()
    behind.join(30)
    assert done == [3] and len(content(store, AGAIN)) == 3


# --- two operators ----------------------------------------------------------------------------------------------------


def test_who_was_there_first_is_fenced(store: fastlog.Store) -> None:
    letters = prepare(store)
    fill(store, 1200)
    before = exact_sum(store, letters)
    other = DeadLetters.open(store, DLQ, by="other")
    reports = []

    def interfere(done: int) -> None:
        reports.append(other.redrive(limit=100, message="failed"))

    with pytest.raises(fastlog.ProducerFencedError, match="500 dead letters were handled before"):
        letters.redrive(progress=interfere)
    assert [report.letters for report in reports] == [100]
    assert letters.count() == 600 and exact_sum(store, letters) == before
    assert letters.redrive().letters == 600 and exact_sum(store, letters) == before
    assert {audit.by for audit in letters.audits()} == {"tester", "other"}


def test_a_crowd_of_operators_moves_each_letter_once(folder: Path, store: fastlog.Store) -> None:
    letters = prepare(store)
    fill(store, 3000)
    before = exact_sum(store, letters)
    problems: list[str] = []

    def operate(number: int) -> None:
        with fastlog.open(folder / "store", durability="os") as mine:
            own = DeadLetters.open(mine, DLQ, by=f"operator {number}")
            for _ in range(4):
                try:
                    (own.discard if number == 3 else own.redrive)(limit=700)
                except (fastlog.ProducerFencedError, fastlog.TransactionError) as error:
                    problems.append(str(error))

    crowd = [threading.Thread(target=operate, args=(number,)) for number in range(4)]
    for thread in crowd:
        thread.start()
    for thread in crowd:
        thread.join(120)
    discarded = values_of(one for one in letters.list(state="handled") if one.state == "discarded")
    assert exact_sum(store, letters) + discarded == before
    letters.redrive()
    assert exact_sum(store, letters) + discarded == before and letters.count() == 0


# --- many -------------------------------------------------------------------------------------------------------------


def test_many_letters_are_no_pain(store: fastlog.Store) -> None:
    """Columns tell what they can; no object is made for a letter that they rule out."""
    letters = prepare(store, partitions=1)
    for first in range(0, 30_000, 10_000):
        fill(store, 10_000, first=first)
    letters.redrive(offsets=range(0, 30_000, 2))
    began = time.process_time()
    assert letters.count() == 15_000
    assert len(list(letters.list(key=b"key-1", offsets=range(15_000, 15_100)))) == 10
    assert letters.show("orders-0-29999").offset == 29_999
    assert time.process_time() - began < 5
