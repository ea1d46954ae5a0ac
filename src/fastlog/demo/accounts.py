"""Whether each flight is accounted for: the demo of handlers, compared with the source.

What the guarantees give is what is checked, and no more is claimed:

* Moves are exactly once. So in the retry topic each attempt of a flight is there once, in the dead-letter topic each
  flight that never departed is there once; every record counts.
* Handlers are at least once: what a process had in hand, or had not committed yet, when it was killed is called again.
  So an effect belongs to its flight, and is to be there for every flight, the same one each time. How many were
  repeated is counted, and each of them has to be explained by a process that was killed.
"""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from collections.abc import Container, Iterable
from pathlib import Path
from typing import NamedTuple

import fastlog
from fastlog.delivery.headers import item_of_retry
from fastlog.delivery.naming import dead_letter_topic_name, retry_topic_name
from fastlog.demo import handlers
from fastlog.demo.dataset import Dataset
from fastlog.demo.handlers import AIRPORTS, ATTEMPTS, CANCELLED, DELAYS, EVENTS, GROUPS
from fastlog.demo.job import Check
from fastlog.demo.supervisor import records_of

__all__ = ["DEAD_LETTER_TOPIC", "RETRY_TOPIC", "check_all", "lag_of"]

RETRY_TOPIC = retry_topic_name(EVENTS, DELAYS)
DEAD_LETTER_TOPIC = dead_letter_topic_name(EVENTS, DELAYS)
# An app commits a partition when so many of its records are finished, or after a second, whatever comes first; and it
# looks whether it has to when it has called the handler so often.
MOST_NOT_COMMITTED = 1000 + 500
LONGEST_NOT_COMMITTED_NS = 2_000_000_000
EXCEPTION, DIED = "TypeError", "WorkerDied"

Diaries = dict[str, tuple[list[tuple[int, int, str]], bool]]


class Effect(NamedTuple):
    """A line of a diary. ``age``: how many of its process came later, and ``left`` for how many nanoseconds;
    ``was_killed``: how that process ended.
    """

    when: int
    flight: int
    found: str
    age: int
    left: int
    was_killed: bool


def check_all(store: fastlog.Store, folder: Path, dataset: Dataset) -> list[Check]:
    """Every check. ``folder`` has the diaries."""
    events = [json.loads(value) for value in dataset.values]
    diaries = {path.name: handlers.read_diary(path) for path in sorted(folder.iterdir())}
    killed = {name.split("-")[1] for name, (_, has_ended) in diaries.items() if not has_ended}
    letters = list(fastlog.DeadLetters.open(store, EVENTS, DELAYS).list(state="all"))
    given_up = Counter(flight_of(letter.record) for letter in letters)
    delays = effects_of(diaries, DELAYS)
    airports = effects_of(diaries, AIRPORTS)
    partitions = store.topic(EVENTS).partitions
    failing = cancelled(events)
    return [
        check_source(store, dataset),
        check_effects(DELAYS, delays, [expected_delay(event) for event in events]),
        check_carriers(delays, events),
        check_order(delays, dataset, given_up),
        check_effects(AIRPORTS, airports, [f"{event['origin']} {event['hour']}" for event in events]),
        check_repeats(DELAYS, delays, partitions),
        check_repeats(AIRPORTS, airports, partitions),
        check_retries(store, dataset, failing, given_up, len(killed)),
        check_dead_letters(letters, dataset, failing, len(killed) * partitions),
        check_no_dead_letters(store, AIRPORTS),
        check_nothing_waits(store),
    ]


# --- the source ----------------------------------------------------------------------------------------


def flight_of(record: fastlog.Record) -> int:
    """The number of its row in the source."""
    return int(record.headers["id"] or b"-1")


def check_source(store: fastlog.Store, dataset: Dataset) -> Check:
    """The topic has each flight once."""
    topic = store.topic(EVENTS)
    times = [0] * len(dataset)
    strange = 0
    for batch in (batch for number in range(topic.partitions) for batch in topic.partition(number).batches()):
        rows = zip(batch.timestamps.tolist(), batch.keys.to_list(), batch.values.to_list(), strict=True)
        for headers, row in zip(batch.headers, rows, strict=True):
            flight = int(headers["id"] or b"-1")
            if 0 <= flight < len(dataset) and row == row_of(dataset, flight):
                times[flight] += 1
            else:
                strange += 1
    ok = not strange and times.count(1) == len(dataset)
    detail = f"{sum(times) + strange:,} records, {len(dataset):,} flights in the source"
    return Check(f"topic {EVENTS}", ok, detail)


def row_of(dataset: Dataset, flight: int) -> tuple[int, bytes | None, bytes]:
    return dataset.timestamps[flight], dataset.keys[flight], dataset.values[flight]


def is_cancelled(event: dict[str, object]) -> bool:
    return event["departure_delay"] is None


def cancelled(events: list[dict[str, object]]) -> Counter[int]:
    """Each flight that never departed, once."""
    return Counter(number for number, event in enumerate(events) if is_cancelled(event))


# --- effects -------------------------------------------------------------------------------------------


def effects_of(diaries: Diaries, group: str) -> list[Effect]:
    """Every effect of a group, in the order of time."""
    found = []
    for name, (lines, has_ended) in diaries.items():
        if name.startswith(f"{group}-"):
            ages = range(len(lines) - 1, -1, -1)
            end = lines[-1][0] if lines else 0
            found += [Effect(*line, age, end - line[0], not has_ended) for line, age in zip(lines, ages, strict=True)]
    found.sort()
    return found


def expected_delay(event: dict[str, object]) -> str:
    return f"{event['carrier']} {CANCELLED if is_cancelled(event) else event['departure_delay']}"


def check_effects(group: str, effects: Iterable[Effect], expected: list[str]) -> Check:
    """Every flight has an effect, and all that it has are what the source says."""
    wrong = 0
    seen: set[int] = set()
    for effect in effects:
        seen.add(effect.flight)
        wrong += not 0 <= effect.flight < len(expected) or expected[effect.flight] != effect.found
    missing = len(expected) - len(seen.intersection(range(len(expected))))
    detail = f"{len(seen):,} of {len(expected):,} flights"
    if missing or wrong:
        detail += f"; {missing:,} are missing, {wrong:,} effects are not what the source says"
    return Check(f"group {group}: an effect of every flight", not missing and not wrong, detail)


def check_carriers(effects: Iterable[Effect], events: list[dict[str, object]]) -> Check:
    """Departures, minutes of delay and cancelled flights per carrier are those of the source."""
    expected = per_carrier(expected_delay(event) for event in events)
    found = per_carrier({effect.flight: effect.found for effect in effects}.values())
    departed, missing = sum(row[0] for row in found.values()), sum(row[2] for row in found.values())
    detail = f"{len(found)} carriers, {departed:,} departures, {missing:,} cancelled flights, each flight counted once"
    return Check(f"group {DELAYS}: delay per carrier", found == expected, detail)


def per_carrier(found: Iterable[str]) -> dict[str, list[int]]:
    """Departures, minutes, cancelled flights."""
    rows: dict[str, list[int]] = defaultdict(lambda: [0, 0, 0])
    for carrier, what in map(str.split, found):
        row = rows[carrier]
        if what == CANCELLED:
            row[2] += 1
        else:
            row[0] += 1
            row[1] += int(what)
    return rows


def check_order(effects: Iterable[Effect], dataset: Dataset, given_up: Container[int]) -> Check:
    """Departures of an aircraft have their effects in the order of the source. Flights that were given up and redriven
    have not: that is what giving up means.
    """
    last: dict[bytes, int] = {}
    done: set[int] = set()
    early = 0
    for effect in effects:
        key = dataset.keys[effect.flight] if effect.flight < len(dataset) else None
        if key is None or effect.flight in done or effect.flight in given_up:
            continue
        done.add(effect.flight)
        early += effect.flight < last.get(key, -1)
        last[key] = effect.flight
    detail = f"{len(done):,} departures of {len(last):,} aircraft" + (f"; {early:,} came too late" if early else "")
    return Check(f"group {DELAYS}: in order per aircraft", not early, detail)


def check_repeats(group: str, effects: list[Effect], partitions: int) -> Check:
    """Whoever was called again was with a process when that was killed."""
    latest = {effect.flight: effect.when for effect in effects}
    repeated = [effect for effect in effects if effect.when != latest[effect.flight]]
    most = MOST_NOT_COMMITTED * partitions
    unexplained = sum(
        not effect.was_killed or (effect.age >= most and effect.left > LONGEST_NOT_COMMITTED_NS) for effect in repeated
    )
    detail = f"{len(effects):,} effects: {len(repeated):,} repeated, not committed yet when their processes were killed"
    if unexplained:
        detail += f"; {unexplained:,} of them were not theirs"
    return Check(f"group {group}: repeated effects", not unexplained, detail)


# --- what was moved --------------------------------------------------------------------------------------


def check_retries(
    store: fastlog.Store, dataset: Dataset, failing: Counter[int], given_up: Counter[int], deaths: int
) -> Check:
    """In the retry topic: each failed attempt but the last once, each redriven flight once, whoever queued once."""
    records = records_of(store, RETRY_TOPIC)
    items = [item_of_retry(record) for record in records]
    whats = [(flight_of(item.raw), "queued" if item.is_follower else item.attempts) for item in items]
    # who waits for long is carried on to the end of the topic, as it is; a redriven flight is not, it is due at once
    distinct = Counter(what for what, _ in dict.fromkeys(zip(whats, map(headers_of, records), strict=True)))
    redriven = Counter(flight for flight, what in whats if what == 0)
    attempts = Counter(flight for flight, what in distinct.elements() if isinstance(what, int) and what > 0)
    queued = sum(what == "queued" for _, what in distinct)
    repeated = distinct.total() - len(distinct)
    carried = len(items) - distinct.total()
    strange = sum((attempts - Counter(dict.fromkeys(failing, ATTEMPTS - 1))).values())
    # an attempt is counted before a suspect is called, so one that dies on the way leaves no record
    unmoved = len(failing) * (ATTEMPTS - 1) - attempts.total()
    ok = not repeated and not strange and unmoved <= deaths * store.topic(EVENTS).partitions
    ok = ok and redriven == Counter(set(given_up))
    ok = ok and all(is_untouched(item.raw, dataset) for item in items)
    detail = f"{attempts.total():,} failed attempts, {queued:,} behind one of their aircraft, "
    detail += f"{redriven.total():,} redriven" + (f", {carried:,} carried on" if carried else "")
    if not ok:
        detail += (
            f"; {repeated:,} of these are there twice, {strange:,} should not be there, {unmoved:,} attempts are "
            f"missing, {len(given_up):,} should be redriven"
        )
    return Check(f"topic {RETRY_TOPIC}: each move once", ok, detail)


def headers_of(record: fastlog.Record) -> tuple[tuple[str, bytes | None], ...]:
    return tuple(record.headers)


def is_untouched(record: fastlog.Record, dataset: Dataset) -> bool:
    """Whether key, value and headers are those of the source."""
    flight = flight_of(record)
    return (
        0 <= flight < len(dataset)
        and (record.key, record.value) == (dataset.keys[flight], dataset.values[flight])
        and len(record.headers) == 1
    )


def check_dead_letters(
    letters: list[fastlog.DeadLetter], dataset: Dataset, failing: Counter[int], most_died: int
) -> Check:
    """Each flight that never departed was a dead letter once, after all of its attempts, and was redriven.

    When processes are killed again and again in an attempt, that they died is what is known of it. So may flights be
    given up that would have departed; as many as may have been in hand.
    """
    found = Counter(flight_of(letter.record) for letter in letters)
    open_ones = sum(letter.state == "open" for letter in letters)
    died = {flight_of(letter.record) for letter in letters if letter.exception == DIED}
    ok = not open_ones and not failing - found and set(found - failing) <= died and len(died) <= most_died
    ok = ok and max(found.values(), default=1) == 1
    ok = ok and all(
        (letter.attempts, letter.state) == (ATTEMPTS, "redriven")
        and letter.exception in (EXCEPTION, DIED)
        and is_untouched(letter.record, dataset)
        and letter.origin_timestamp == dataset.timestamps[flight_of(letter.record)]
        for letter in letters
    )
    detail = f"{len(letters):,} dead letters, {len(failing):,} flights that never departed; {open_ones:,} open"
    if died:
        detail += f"; of {len(died):,} the last that is known is that their process died"
    return Check(f"topic {DEAD_LETTER_TOPIC}: each once", ok, detail)


def check_no_dead_letters(store: fastlog.Store, group: str) -> Check:
    """A group that does not fail has none."""
    letters = fastlog.DeadLetters.open(store, EVENTS, group)
    count = letters.survey().letters
    return Check(f"topic {letters.topic}: empty", not count, f"{count:,} dead letters")


def lag_of(store: fastlog.Store, group: str) -> int:
    """Records that a group has not finished: flights, and what waits to be tried again."""
    retry = retry_topic_name(EVENTS, group)
    topics = [EVENTS, retry] if retry in store.topics() else [EVENTS]
    return sum(lag.records for lag in store.group_lag(group, topics=topics).values())


def check_nothing_waits(store: fastlog.Store) -> Check:
    behind = {group: lag_of(store, group) for group in GROUPS}
    ok = not any(behind.values())
    detail = "lag 0, retry topics included" if ok else ", ".join(f"{group}: {lag:,}" for group, lag in behind.items())
    return Check("both groups are at the end", ok, detail)
