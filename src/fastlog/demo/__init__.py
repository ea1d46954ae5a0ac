"""The demonstration behind ``fastlog demo``: real events in, the same events and right answers out.

Two rooms: ``flights`` knows the data (where it is, what an event looks like, what the answers must be) and nothing of
logs; ``job`` knows the log (append, read, look up, query, verify) and nothing of flights. They meet in ``Dataset``.
"""

from __future__ import annotations

from fastlog.demo.dataset import Dataset, Landmark, Question
from fastlog.demo.flights import find_flights, load_flights
from fastlog.demo.job import Answer, Check, DemoReport, Lookup, Step, prepare_folder, require_duckdb, run

__all__ = [
    "Answer",
    "Check",
    "Dataset",
    "DemoReport",
    "Landmark",
    "Lookup",
    "Question",
    "Step",
    "find_flights",
    "load_flights",
    "prepare_folder",
    "require_duckdb",
    "run",
]
