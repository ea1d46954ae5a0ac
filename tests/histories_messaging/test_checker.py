"""The checker itself: a good history has nothing wrong with it, and every anomaly that is planted into it is found."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest

from tests.histories.checker import Anomaly
from tests.histories_messaging.checker import KINDS, History, Process, Stored, check, kinds
from tests.histories_messaging.notes import Event

MS = 1_000_000


class Script:
    """Notes of several processes, written in the order in which things happen."""

    def __init__(self) -> None:
        self.now = 1000 * MS
        self.events: dict[int, list[Event]] = {}
        self.calls = 0

    def note(self, process: int, kind: str, **facts: Any) -> Event:
        self.now += 10 * MS
        event = {"k": kind, "t": self.now, **facts}
        self.events.setdefault(process, []).append(event)
        return event

    def begin(self, process: int, op: str, **facts: Any) -> int:
        self.calls += 1
        self.note(process, "i", n=self.calls, op=op, **facts)
        return self.calls

    def call(self, process: int, op: str, answer: dict[str, Any] | None = None, **facts: Any) -> None:
        self.note(process, "o", n=self.begin(process, op, **facts), **(answer or {}))

    def say(self, process: int, what: str, **facts: Any) -> None:
        self.note(process, "s", what=what, **facts)


def good() -> History:
    """A producer; a transformer with a committed and an aborted transaction; two members, one after the other; a
    reader. Offset 2 of ``out`` is aborted, 1, 3 and 5 are markers."""
    script = Script()
    values = [f"p0.1.{number}" for number in range(4)]
    for value in values:
        script.call(0, "send", p=1, topic="in", values=[value])
    script.say(0, "deliveries", acked=[[value, "in", 0, at] for at, value in enumerate(values)], refused=[])
    script.call(0, "fork", {"status": 0})
    script.say(0, "child", answers={"send": "ForkedHandleError"})
    # consume, transform, produce
    script.call(1, "open_consumer", c=1, group="eos")
    poll = script.begin(1, "poll", c=1)
    script.say(1, "assigned", c=1, names=[["in", 0, 1]])
    script.note(1, "o", n=poll, records=[["in", 0, 0, values[0]], ["in", 0, 1, values[1]]])
    outputs = [f"x1.{{}}.{at}|in|0|{at}|{value}" for at, value in enumerate(values)]
    for first, outcome in ((0, "committed"), (2, "aborted"), (2, "committed")):
        if first:
            records = [["in", 0, at, values[at]] for at in (2, 3)]
            script.call(1, "poll", {"records": records}, c=1)
        number = script.begin(1, "transaction", c=1)
        sent = [outputs[at].format(number) for at in (first, first + 1)]
        script.call(1, "send_many", tx=number, topic="out", values=sent)
        script.call(1, "tx_offsets", tx=number, c=1, offsets=[["in", 0, first + 2]])
        script.call(1, "tx_commit" if outcome == "committed" else "tx_abort", tx=number)
        script.note(1, "o", n=number, outcome=outcome)
    sends = [event["values"] for event in script.events[1] if event.get("op") == "send_many"]
    out = [*sends[0], None, *sends[1], None, *sends[2], None]
    # a group: the first member leaves, the second one goes on
    handed = [[["in", 0, at, values[at]] for at in (0, 1)], [["in", 0, at, values[at]] for at in (2, 3)]]
    for process in (2, 3):
        script.call(process, "open_consumer", c=1, group="plain")
        poll = script.begin(process, "poll", c=1)
        script.say(process, "assigned", c=1, names=[["in", 0, 1]])
        script.note(process, "o", n=poll, records=handed[process - 2])
        script.call(process, "commit", c=1, marked=True, offsets=[["in", 0, 2 * process - 2]])
        close = script.begin(process, "close_consumer", c=1)
        script.say(process, "revoked", c=1, names=[["in", 0, 1]])
        script.note(process, "o", n=close)
    script.call(4, "open_consumer", c=1)
    script.call(4, "poll", {"records": [["in", 0, at, value] for at, value in enumerate(values)]}, c=1)
    seen = [["out", 0, at, value] for at, value in enumerate(out) if value and at not in (3, 4)]
    script.call(4, "next", {"records": seen[:1]}, c=1)
    script.call(4, "batch", {"records": seen[1:]}, c=1)
    return History(
        processes=[Process(number, "role", events) for number, events in sorted(script.events.items())],
        stored={
            ("in", 0): [Stored(at, value, True) for at, value in enumerate(values)],
            ("out", 0): [Stored(at, value, at not in (3, 4)) for at, value in enumerate(out) if value],
        },
        ends={("in", 0): (4, 4), ("out", 0): (len(out), len(out))},
        commits={
            ("eos", ("in", 0)): [(2, "1:1:1"), (4, "1:1:1")],
            ("plain", ("in", 0)): [(2, "2:1:1"), (4, "3:1:1")],
            ("plain", ("out", 0)): [],
        },
    )


def only_in(history: History) -> History:
    """The group ``plain`` of the good history does not read ``out``."""
    history.commits["plain", ("out", 0)] = [(9, "")]
    for at in (0, 1, 6, 7):
        value = next(one.value for one in history.stored["out", 0] if one.offset == at)
        poll = next(event for event in history.processes[3].events if "records" in event)
        poll["records"].append(["out", 0, at, value])
    assigned = next(event for event in history.processes[3].events if event.get("what") == "assigned")
    assigned["names"].append(["out", 0, 1])
    return history


def events(history: History, process: int, **facts: Any) -> list[Event]:
    found = history.processes[process].events
    return [one for one in found if all(one.get(name) == value for name, value in facts.items())]


def reads(history: History, process: int) -> list[Event]:
    return [one for one in history.processes[process].events if "records" in one]


def drop(history: History, topic: str, offset: int) -> None:
    history.stored[topic, 0] = [one for one in history.stored[topic, 0] if one.offset != offset]


def lost_write(history: History) -> None:
    drop(history, "in", 3)


def read_and_gone(history: History) -> None:
    events(history, 0, what="deliveries")[0]["acked"].pop()
    drop(history, "in", 3)


def duplicate(history: History) -> None:
    history.stored["in", 0].append(Stored(4, "p0.1.3", True))


def elsewhere(history: History) -> None:
    records = history.stored["in", 0]
    records[3] = Stored(7, records[3].value, True)


def phantom(history: History) -> None:
    history.stored["in", 0].append(Stored(4, "p9.9.9", True))


def reorder(history: History) -> None:
    records = history.stored["in", 0]
    records[0].value, records[1].value = records[1].value, records[0].value


def aborted_read(history: History) -> None:
    one = history.stored["out", 0][2]
    reads(history, 4)[2]["records"].insert(1, ["out", 0, one.offset, one.value])


def precommitted_read(history: History) -> None:
    events(history, 1, op="tx_commit")[-1]["t"] = history.processes[4].events[-1]["t"] + MS


def torn(history: History) -> None:
    history.stored["out", 0][1].committed = False


def torn_unasked(history: History) -> None:
    """The owner of a transaction was killed before it asked for the commit."""
    found = history.processes[1].events
    last = max(at for at, one in enumerate(found) if one.get("op") == "tx_commit")
    del found[last:]


def torn_offsets(history: History) -> None:
    history.commits["eos", ("in", 0)].pop()


def internal_skip(history: History) -> None:
    del reads(history, 4)[0]["records"][1]


def external_skip(history: History) -> None:
    del reads(history, 4)[2]["records"][0]


def skip_at_the_start(history: History) -> None:
    del reads(history, 4)[0]["records"][0]


def back(history: History) -> None:
    reads(history, 4)[2]["records"].insert(0, reads(history, 4)[1]["records"][0])


def unowned(history: History) -> None:
    told = events(history, 3, what="assigned")[0]
    told["names"] = told["names"][1:]


def group_skip(history: History) -> None:
    del reads(history, 3)[0]["records"][0]


def two_owners(history: History) -> None:
    """The first member polls on, and the second one has the partition all the same."""
    first, second = history.processes[2].events, history.processes[3].events
    poll = [event for event in first if event.get("op") == "poll" or "records" in event]
    moved = copy.deepcopy(poll)
    for event in moved:
        event["n"], event["t"] = 900, second[0]["t"] + (1 if event["k"] == "i" else 2)
        if "records" in event:
            event["records"] = []
    first[-3:-3] = moved
    for event in first[-3:]:
        event["t"] += 10_000 * MS
    second[2:2] = []


def zombie(history: History) -> None:
    history.commits["plain", ("in", 0)].append((4, "2:1:1"))


def zombie_by_time(history: History) -> None:
    """The first member is frozen, and its commit goes through when it wakes up."""
    late = history.processes[3].events[-1]["t"]
    for event in history.processes[2].events[5:]:
        event["t"] += late


def commit_back(history: History) -> None:
    history.commits["plain", ("in", 0)][1:1] = [(1, "")]


def lost_commit(history: History) -> None:
    history.commits["plain", ("in", 0)] = [(1, "")]


def effect_lost(history: History) -> None:
    drop(history, "out", 6)


def effect_twice(history: History) -> None:
    records = history.stored["out", 0]
    records.append(Stored(20, records[0].value.replace("x1.", "x7."), True))


def open_end(history: History) -> None:
    history.ends["out", 0] = (6, 9)


def open_transaction(history: History) -> None:
    history.stored["out", 0][-1].committed = None


def behind(history: History) -> None:
    history.commits["plain", ("in", 0)].pop()


def child_worked(history: History) -> None:
    events(history, 0, what="child")[0]["answers"]["send"] = "ok"


def child_died(history: History) -> None:
    events(history, 0, status=0)[0]["status"] = 14


def raised(history: History) -> None:
    begun = events(history, 4, op="batch")[0]
    history.processes[4].events.append(
        {"k": "f", "t": begun["t"], "n": begun["n"], "error": "CorruptLogError", "text": ""}
    )


def complaint(history: History) -> None:
    history.complaints.append(Anomaly("damage", "told by the driver"))


PLANTED: list[tuple[str, Callable[[History], None]]] = [
    ("lost-write", lost_write),
    ("lost-write", read_and_gone),
    ("duplicate", duplicate),
    ("inconsistent-offset", elsewhere),
    ("inconsistent-offset", reorder),
    ("phantom", phantom),
    ("reorder", reorder),
    ("aborted-read", aborted_read),
    ("precommitted-read", precommitted_read),
    ("torn-transaction", torn),
    ("torn-transaction", torn_unasked),
    ("torn-transaction", torn_offsets),
    ("poll-skip", internal_skip),
    ("poll-skip", external_skip),
    ("poll-skip", skip_at_the_start),
    ("nonmonotonic-poll", back),
    ("unowned-read", unowned),
    ("group-skip", group_skip),
    ("two-owners", two_owners),
    ("foreign-commit", zombie),
    ("foreign-commit", zombie_by_time),
    ("commit-back", commit_back),
    ("lost-commit", lost_commit),
    ("effect-lost", effect_lost),
    ("effect-twice", effect_twice),
    ("hanging", open_end),
    ("hanging", open_transaction),
    ("hanging", behind),
    ("fork", child_worked),
    ("fork", child_died),
    ("unexpected-error", raised),
    ("damage", complaint),
]


def test_a_good_history_is_good() -> None:
    assert check(only_in(good())) == []


@pytest.mark.parametrize(("kind", "plant"), PLANTED, ids=lambda one: getattr(one, "__name__", one))
def test_a_planted_anomaly_is_found(kind: str, plant: Callable[[History], None]) -> None:
    history = only_in(good())
    plant(history)
    found = check(history)
    assert kind in kinds(found), found


def test_every_kind_is_planted() -> None:
    assert {kind for kind, _ in PLANTED} == set(KINDS)


def test_a_frozen_member_may_tell_late_of_what_it_took() -> None:
    """on_assigned of a member that was put out before its callback ran: no second owner, and nothing it commits."""
    history = only_in(good())
    first, second = history.processes[2].events, history.processes[3].events
    poll = next(event for event in second if event.get("records"))
    poll["records"][:0] = [["in", 0, at, f"p0.1.{at}"] for at in (0, 1)]
    del first[4:]  # it took the partition, was frozen, and killed after its callback
    first[3]["t"] = next(event for event in second if event.get("op") == "commit")["t"] - MS
    history.commits["plain", ("in", 0)] = [(4, "3:1:1")]
    assert check(history) == []
