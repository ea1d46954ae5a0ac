"""The checker and the driver find what they are there to find.

A good history is built by hand and spoilt in one way at a time: exactly that has to be found. Then the whole harness,
with processes and kills, runs on a toy log that has one planted mistake at a time.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.histories.checker import KINDS, check
from tests.histories.driver import Crowd, WorkerEnded
from tests.histories.events import (
    Append,
    AppendId,
    Handle,
    History,
    Notebook,
    Read,
    Run,
    decode_value,
    encode_values,
    key_of,
    read_lines,
    runs_of,
)
from tests.histories.nursery import Nursery
from tests.histories.toy import MISTAKES

COUNTS = [1, 3, 2, 1, 4, 2, 3, 1]
# appends of the good history, by the name that the spoilers know them by
ONE, TWO, THREE, FOUR, FIVE, SIX, SEVEN, EIGHT = (
    AppendId(writer, thread, sequence)
    for writer, thread, sequence in [
        (0, 0, 0), (1, 0, 0), (0, 1, 0), (0, 0, 1), (1, 0, 1), (0, 1, 1), (1, 1, 0), (0, 0, 2),
    ]
)  # fmt: skip
ORDER = [ONE, TWO, THREE, FOUR, FIVE, SIX, SEVEN, EIGHT]
BASES = {which: sum(COUNTS[:n]) for n, which in enumerate(ORDER)}
END = sum(COUNTS)
FAILED = AppendId(1, 1, 1)
DEAD = AppendId(2, 0, 0)  # its process died in it, and it is not there


def good_history() -> History:
    """Two writers of two threads, a third one that dies, a reader; append n takes from 100 n to 100 n + 150."""
    history = History(end_offset=END)
    for n, (which, count) in enumerate(zip(ORDER, COUNTS, strict=True)):
        begun = 100 * n + 100
        history.appends[which] = Append(which, count, begun, BASES[which], begun + 150)
        history.final.append(Run(BASES[which], which, 0, count, count))
        end = BASES[which] + count
        first = max(0, n - 1)  # each read sees the last two appends
        runs = tuple(history.final[first:])
        history.reads.append(Read("r.1", begun + 151, begun + 155, runs[0].offset, end, end, end, runs))
        history.reads.append(Read("0.1", begun + 156, begun + 160, 0, end, end, end))
    history.appends[FAILED] = Append(FAILED, 2, 500, None, 510, "FencedError")
    history.appends[DEAD] = Append(DEAD, 2, 520)
    for name, begun, gone in (("0.1", 0, 5000), ("1.1", 20, 4000), ("2.1", 30, 530)):
        history.handles[name] = Handle(name, True, begun, begun + 10, gone, gone + 20 if name == "2.1" else None)
    history.handles["r.1"] = Handle("r.1", False, 60, 70, 4500)
    return history


def test_a_good_history_is_good() -> None:
    assert check(good_history(), durable_levels=True) == []


SPOILERS: list[tuple[str, str, Callable[[History], object]]] = []


def spoils(kind: str) -> Callable[[Callable[[History], object]], Callable[[History], object]]:
    def note(function: Callable[[History], object]) -> Callable[[History], object]:
        SPOILERS.append((kind, function.__name__, function))
        return function

    return note


def rewrite(history: History, order: list[tuple[AppendId, int, int]]) -> None:
    """Another final state: (append, first index, records), and no reads that could notice."""
    history.final.clear()
    history.reads.clear()
    at = 0
    for which, index, records in order:
        history.final.append(Run(at, which, index, records, history.appends[which].count))
        at += records
    history.end_offset = at


def whole(order: list[AppendId], history: History) -> list[tuple[AppendId, int, int]]:
    return [(which, 0, history.appends[which].count) for which in order]


def everything_is_acked_late(history: History) -> None:
    for which in ORDER:
        history.appends[which].ended = 10_000


def unacked(history: History, which: AppendId) -> None:
    append = history.appends[which]
    append.base = append.ended = None


@spoils("lost")
def an_acked_append_is_not_there(history: History) -> None:
    rewrite(history, whole(ORDER[:-1], history))


@spoils("lost")
def an_ack_named_another_offset(history: History) -> None:
    history.appends[FIVE].base = BASES[FIVE] + 1
    history.reads.clear()


@spoils("doubled")
def an_append_is_there_twice(history: History) -> None:
    rewrite(history, [*whole(ORDER, history), (EIGHT, 0, 1)])


@spoils("doubled")
def an_append_without_an_ack_is_there_twice(history: History) -> None:
    unacked(history, EIGHT)
    rewrite(history, [*whole(ORDER, history), (EIGHT, 0, 1)])


@spoils("reordered")
def appends_of_a_thread_changed_places(history: History) -> None:
    history.appends[DEAD].begun = 50
    later = AppendId(2, 0, 1)
    history.appends[later] = Append(later, 1, 51)
    rewrite(history, whole([later, DEAD], history))
    for which in ORDER:
        del history.appends[which]


@spoils("reordered")
def an_append_lies_before_one_that_was_acked_when_it_began(history: History) -> None:
    for which in (ONE, TWO, THREE, FIVE, SIX, SEVEN, EIGHT):
        del history.appends[which]
    history.appends[FOUR].base = 2
    history.appends[DEAD].begun = 1000
    rewrite(history, whole([DEAD, FOUR], history))


@spoils("torn")
def only_the_beginning_of_an_append_is_there(history: History) -> None:
    unacked(history, EIGHT)
    history.appends[EIGHT].count = 3
    history.appends[EIGHT].begun = 3000
    rewrite(history, [*whole(ORDER[:-1], history), (EIGHT, 0, 2)])


@spoils("torn")
def only_the_end_of_an_append_is_there_after_the_death_of_all(history: History) -> None:
    unacked(history, EIGHT)
    history.appends[EIGHT].count = 3
    for handle in history.handles.values():
        handle.gone, handle.dead_by = 1000, 1010
    rewrite(history, [*whole(ORDER[:-1], history), (EIGHT, 1, 2)])


@spoils("torn")
def another_append_lies_within(history: History) -> None:
    unacked(history, SEVEN)
    unacked(history, EIGHT)
    rewrite(history, [*whole(ORDER[:-2], history), (SEVEN, 0, 2), (EIGHT, 0, 1), (SEVEN, 2, 1)])


@spoils("torn")
def somebody_saw_an_end_within_an_append(history: History) -> None:
    history.reads = [Read("r.1", 71, 72, 0, 3, 3, 1)]
    everything_is_acked_late(history)


@spoils("torn")
def a_durable_offset_within_an_append(history: History) -> None:
    history.reads = [Read("r.1", 71, 72, 0, 4, 4, 3)]
    everything_is_acked_late(history)


@spoils("hole")
def offsets_are_left_out(history: History) -> None:
    history.reads.clear()
    history.final = [*history.final[:-1], history.final[-1]._replace(offset=END)]
    history.end_offset = END + 1
    history.appends[EIGHT].base = END


@spoils("hole")
def the_end_is_beyond_the_records(history: History) -> None:
    history.end_offset += 1


@spoils("hole")
def a_read_left_out_offsets(history: History) -> None:
    read = history.reads[-2]
    read.runs = read.runs[1:]


@spoils("beyond")
def a_read_passed_the_end(history: History) -> None:
    read = next(read for read in history.reads if read.handle == "r.1" and read.runs[-1].append == TWO)
    read.readable_offset = BASES[TWO]


@spoils("beyond")
def a_durable_offset_beyond_the_end(history: History) -> None:
    history.reads[-1].durable_offset += 1


@spoils("changed")
def what_was_seen_vanished(history: History) -> None:
    unacked(history, EIGHT)
    reads = history.reads[:-1]
    rewrite(history, whole(ORDER[:-1], history))
    history.reads = reads


@spoils("changed")
def an_offset_was_used_twice(history: History) -> None:
    read = history.reads[-2]
    read.runs = (Run(BASES[SEVEN], DEAD, 0, 2, 2), Run(BASES[SEVEN] + 2, SEVEN, 2, 1, 3), read.runs[1])


@spoils("changed")
def two_readers_saw_different_records_that_were_deleted(history: History) -> None:
    history.start_offset = BASES[EIGHT]
    history.final = history.final[-1:]
    read = history.reads[-1]
    read.runs = (Run(BASES[SEVEN], DEAD, 0, 2, 2),)
    read.start = BASES[SEVEN]


@spoils("early")
def a_record_was_seen_before_its_append(history: History) -> None:
    for which in ORDER:
        if which != EIGHT:
            history.appends[which].begun = 1
    unacked(history, EIGHT)
    history.appends[EIGHT].begun = 2000
    history.handles["0.1"].gone = 2000


@spoils("stranger")
def a_record_that_nobody_appended(history: History) -> None:
    history.reads.clear()
    history.final.append(Run(END, AppendId(9, 9, 9), 0, 1, 1))
    history.end_offset += 1


@spoils("failed")
def a_failed_append_is_there(history: History) -> None:
    history.appends[FAILED].begun = 2000
    history.appends[FAILED].ended = 2010
    rewrite(history, whole([*ORDER, FAILED], history))


@spoils("backwards")
def a_handle_saw_the_end_go_back(history: History) -> None:
    history.handles["r.1"].begun = -10
    for read in history.reads[-2:]:
        read.end_offset = read.readable_offset = read.durable_offset = BASES[EIGHT]
    history.reads[-2].runs = history.reads[-2].runs[:1]
    history.reads.append(Read("r.1", 5000, 5001, 0, BASES[SEVEN], BASES[SEVEN], BASES[SEVEN]))
    for which in (SEVEN, EIGHT):
        history.appends[which].ended = 6000


@spoils("backwards")
def a_handle_saw_an_older_end_than_another_handle_before(history: History) -> None:
    for which in ORDER:
        history.appends[which].ended = 6000
    history.reads.append(Read("1.1", 3000, 3001, 0, BASES[FIVE], BASES[FIVE], BASES[FIVE]))


@spoils("stale")
def an_ack_was_not_seen(history: History) -> None:
    history.reads.clear()
    history.reads.append(Read("1.1", 3000, 3001, 0, BASES[FIVE], BASES[FIVE], BASES[FIVE]))


@spoils("undurable")
def a_record_was_seen_before_it_was_durable(history: History) -> None:
    read = history.reads[0]
    read.durable_offset = 0
    history.appends[ONE].ended = 10_000


@spoils("undurable")
def an_ack_was_not_durable(history: History) -> None:
    history.reads = history.reads[:1]
    history.reads.append(Read("1.1", 3000, 3001, 0, END, END, BASES[EIGHT]))


@spoils("complaint")
def a_process_met_an_error(history: History) -> None:
    history.complaints.append("SystemError")


@pytest.mark.parametrize(("kind", "name", "spoil"), SPOILERS, ids=[name for _, name, _ in SPOILERS])
def test_each_anomaly_is_found(kind: str, name: str, spoil: Callable[[History], object]) -> None:
    history = good_history().copy()
    spoil(history)
    found = check(history, durable_levels=True)
    assert {anomaly.kind for anomaly in found} == {kind}, found


def test_every_kind_has_a_bad_history() -> None:
    assert {kind for kind, _, _ in SPOILERS} == set(KINDS)


def test_what_a_death_allows_is_no_anomaly() -> None:
    """An append whose process died: absent, whole, or its first part when nobody was left to take over."""
    for records, gone in ((0, None), (4, None), (2, 600)):
        history = good_history()
        append = history.appends[DEAD]
        append.count, append.begun = 4, 550
        for handle in history.handles.values():
            if gone is not None:
                handle.gone, handle.dead_by = gone, gone + 10
        rewrite(history, [*whole(ORDER, history), *([(DEAD, 0, records)] if records else [])])
        for which in ORDER:  # so that the end may have been theirs
            history.appends[which].begun = 1
        assert check(history) == []


def test_an_unsure_error_allows_both() -> None:
    history = good_history()
    a_failed_append_is_there(history)
    assert check(history, unsure={"FencedError"}) == []
    assert check(good_history(), unsure={"FencedError"}) == []


def test_compaction_may_remove_what_a_later_record_replaces() -> None:
    history = good_history()
    of_key: dict[bytes, tuple[AppendId, int]] = {}
    for number in range(100):
        which = AppendId(5, 0, number)
        previous = of_key.get(key_of(which, 0))
        history.appends[which] = Append(which, 1, 2000 + number, END + number, 2000 + number)
        history.final.append(Run(END + number, which, 0, 1, 1))
        of_key[key_of(which, 0)] = (which, END + number)
        if previous is not None:
            history.final = [run for run in history.final if run.append != previous[0]]
    history.end_offset = END + 100
    history.reads.clear()
    assert len(history.final) < 100
    assert check(history, compacted=True) == []
    assert {anomaly.kind for anomaly in check(history)} == {"hole", "lost"}
    kept = history.final.pop()
    assert {anomaly.kind for anomaly in check(history, compacted=True)} == {"lost"}
    history.final.append(kept._replace(offset=kept.offset - 1))
    assert "lost" in {anomaly.kind for anomaly in check(history, compacted=True)}


# --- notes ----------------------------------------------------------------------------------------------------------


def test_notes_come_back(tmp_path: Path) -> None:
    class Log:
        end_offset, readable_offset, durable_offset = 9, 8, 7

    notebook = Notebook(tmp_path / "notes")
    notebook.opened("1.1", True, 5)
    notebook.attempt(ONE, 3)
    notebook.acked(ONE, 4)
    notebook.attempt(TWO, 2)
    notebook.failed(TWO, ValueError("no"))
    notebook.attempt(THREE, 2)
    notebook.read("1.1", 6, 4, Log(), [Run(4, ONE, 0, 3, 3), Run(7, TWO, 1, 1, 2)])
    notebook.read("1.1", 7, 0, Log(), [])
    notebook.complain("something\nwith lines")
    notebook.closing("1.1")
    (tmp_path / "notes").open("a").write("T 1 2")  # a kill in the middle of a line
    history = History()
    history.add(read_lines(tmp_path / "notes"))
    assert [(a.id, a.count, a.base, a.error) for a in history.appends.values()] == [
        (ONE, 3, 4, None),
        (TWO, 2, None, "ValueError"),
        (THREE, 2, None, None),
    ]
    assert history.appends[THREE].ended is None
    assert history.reads[0].runs == (Run(4, ONE, 0, 3, 3), Run(7, TWO, 1, 1, 2))
    assert (history.reads[1].start, history.reads[1].end_offset, history.reads[1].durable_offset) == (0, 9, 7)
    assert history.reads[1].runs == ()
    assert history.complaints == ["something | with lines"]
    handle = history.handles["1.1"]
    assert handle.writable and handle.begun == 5 < handle.opened <= (handle.gone or 0)


def test_values_tell_who_wrote_them() -> None:
    values = encode_values(FIVE, [b"", b"x", b"yy"])
    assert [decode_value(value) for value in values] == [(FIVE, 0, 3), (FIVE, 1, 3), (FIVE, 2, 3)]
    for value in values:
        for at in range(len(value)):
            with pytest.raises(ValueError, match="value"):
                decode_value(value[:at] + bytes([value[at] ^ 1]) + value[at + 1 :])
        with pytest.raises(ValueError, match="value"):
            decode_value(value[:-1])
    runs = runs_of([(7, values[0]), (8, values[1]), (10, values[2])])
    assert runs == [Run(7, FIVE, 0, 2, 3), Run(10, FIVE, 2, 1, 3)]


# --- the whole harness ----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def nursery() -> Iterator[Nursery]:
    with Nursery() as server:
        yield server


def run_toy(nursery: Nursery, folder: Path, seed: int, mistake: str) -> set[str]:
    options = {"mistake": mistake, "durability": "os", "pace": 0.001}
    with Crowd(nursery, folder, seed, options) as crowd:
        victims = [crowd.start("write", sizes=[1, 3, 20]) for _ in range(3)]
        readers = [crowd.start("follow", kind=kind) for kind in ("read", "wait", "reopen")]
        try:
            for worker in (*victims, *readers):
                crowd.settled(worker)
            for victim in victims[:2]:
                crowd.kill(victim)
                crowd.settled(crowd.start("write", sizes=[1, 3, 20]))
                crowd.goes_on(victims[2], after=victim.child.signalled_at)
        except WorkerEnded:
            pass  # with a complaint in its notes
        found = crowd.check(durable_levels=True)
        print(found[:3])
        return {anomaly.kind for anomaly in found}


TOY_KINDS = {
    "acks first": "lost",
    "no lock": "lost",
    "no takeover": "torn",
    "publishes each record": "torn",
    "publishes first": "complaint",
    "retries": "doubled",
    "fails after publishing": "failed",
    "forgets the end": "backwards",
}


def test_the_harness_passes_a_log_without_mistakes(nursery: Nursery, folder: Path, seed: int) -> None:
    assert run_toy(nursery, folder, seed, "") == set()


@pytest.mark.parametrize("mistake", MISTAKES)
def test_the_harness_finds_each_planted_mistake(nursery: Nursery, folder: Path, seed: int, mistake: str) -> None:
    """Chance has several tries: what goes wrong depends on who runs when."""
    found: set[str] = set()
    for attempt in range(40):
        (where := folder / str(attempt)).mkdir()
        found |= run_toy(nursery, where, seed + attempt, mistake)
        if TOY_KINDS[mistake] in found:
            return
    pytest.fail(f"{MISTAKES[mistake]}: only {found or 'nothing'} was found")
