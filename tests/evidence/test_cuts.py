"""What counts as promised when power is cut: what was told before it, and nothing that was told later."""

from __future__ import annotations

from pathlib import Path

from tests.crash.checker import History
from tests.crash.recording import marks_after_a_cut
from tests.histories_messaging.checker import History as StoreHistory
from tests.histories_messaging.checker import Stored
from tests.histories_messaging.driver import untold


def test_marks_behind_the_cut_promise_nothing(tmp_path: Path) -> None:
    lines = [
        b'7 {"what": "try", "writer": 0, "number": 0, "count": 1}',
        b'7 {"what": "ack", "writer": 0, "number": 0, "base": 0, "durable": true}',
        b'7 {"what": "deleting", "before": 1}',
        b'7 {"what": "try", "writer": 0, "number": 1, "count": 1}',
        b'7 {"what": "ack", "writer": 0, "number": 1, "base": 60, "durable": true}',
        b'7 {"what": "durable", "end": 61}',
        b'7 {"what": "deleted", "start": 1}',
        b'7 {"what": "tr',
    ]
    marks = tmp_path / "marks"
    marks.write_bytes(b"\n".join(lines))
    heard = sum(len(line) + 1 for line in lines[:3])
    history = History(marks_after_a_cut(marks, heard), 1)
    promise = history.promise(len(history.recorded.entries))
    assert promise.end == len(history.records_of((0, 0)))
    assert promise.starts == {0, 1} and promise.tries == 2
    whole = History(marks_after_a_cut(marks, marks.stat().st_size), 1)
    assert whole.promise(len(whole.recorded.entries)).end == 61
    assert marks_after_a_cut(tmp_path / "never written", 0).entries == []


def test_answers_behind_the_cut_promise_nothing() -> None:
    begun = [
        {"k": "i", "t": 1, "n": 1, "op": "poll", "c": 1},
        {"k": "i", "t": 1, "n": 2, "op": "transaction"},
        {"k": "i", "t": 1, "n": 3, "op": "commit", "c": 1},
        {"k": "i", "t": 1, "n": 4, "op": "transaction"},
        {"k": "i", "t": 1, "n": 5, "op": "seek", "c": 1},
        {"k": "i", "t": 1, "n": 6, "op": "flush"},
    ]
    later = [
        {"k": "o", "t": 2, "n": 1, "records": [["in", 0, 0, "kept"], ["in", 0, 1, "lost"]]},
        {"k": "o", "t": 2, "n": 2, "outcome": "committed"},
        {"k": "o", "t": 2, "n": 3},
        {"k": "f", "t": 2, "n": 4, "error": "StorageError", "text": "", "outcome": "unknown"},
        {"k": "f", "t": 2, "n": 5, "error": "StorageError", "text": ""},
        {"k": "f", "t": 2, "n": 6, "error": "StorageError", "text": ""},
        {"k": "s", "t": 2, "what": "deliveries", "acked": [["lost", "in", 0, 1]], "refused": []},
        {"k": "s", "t": 2, "what": "assigned", "c": 1, "names": []},
        {"k": "i", "t": 2, "n": 7, "op": "send", "values": ["x"]},
    ]
    history = StoreHistory(stored={("in", 0): [Stored(0, "kept", True)]})
    left = list(untold([*begun, *later], len(begun), history))
    assert left == [
        {"k": "o", "t": 2, "n": 1, "records": [["in", 0, 0, "kept"]]},
        {"k": "o", "t": 2, "n": 2, "outcome": None},
        {"k": "o", "t": 2, "n": 4, "outcome": None},
        {"k": "o", "t": 2, "n": 5},
        later[-2],
        later[-1],
    ]
