"""Results of texts, in SQLite: what the workers write and the web application reads.

To keep a result twice keeps it once. That makes a handler that may be called again as good as one that is not.
"""

import json
import os
import sqlite3
from contextlib import closing

PATH = os.environ.get("RESULTS", "results.sqlite")


def connect() -> sqlite3.Connection:
    connection = sqlite3.connect(PATH, timeout=30, isolation_level=None)
    connection.execute("CREATE TABLE IF NOT EXISTS results (id TEXT PRIMARY KEY, result TEXT NOT NULL)")
    return connection


def keep(name: str, result: dict[str, object]) -> None:
    """Keep the result of a text."""
    with closing(connect()) as connection:
        connection.execute("INSERT OR REPLACE INTO results VALUES (?, ?)", (name, json.dumps(result)))


def find(name: str) -> object | None:
    """The result of a text; None when there is none (yet)."""
    with closing(connect()) as connection:
        row = connection.execute("SELECT result FROM results WHERE id = ?", (name,)).fetchone()
    return None if row is None else json.loads(row[0])
