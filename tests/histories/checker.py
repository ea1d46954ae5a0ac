"""What is wrong with a history of several processes on one log. It knows nothing of files, only of what was noted.

The last state of the log is the truth that every acknowledgement and every read is held against. An append whose
process died in it may be there or not; all others have no choice.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Iterator
from dataclasses import dataclass, field
from itertools import accumulate, pairwise
from operator import attrgetter

from tests.histories.events import Append, AppendId, History, Read, Run, key_of

_FOREVER = 1 << 63

__all__ = ["KINDS", "Anomaly", "check"]

KINDS = {
    "backwards": "an end offset that was seen is not there for a later look",
    "beyond": "a read returned records that the readable end, looked at afterwards, does not cover",
    "changed": "a record that was read is not in the log, or another one has its offset",
    "complaint": "a process met something that must not happen",
    "doubled": "an append is in the log twice",
    "early": "a record was read before its append began",
    "failed": "an append raised an error and is there anyway",
    "hole": "offsets without records",
    "lost": "an acknowledged append is not where the acknowledgement said",
    "reordered": "offsets in another order than the appends: of one thread, or of an ack and what began after it",
    "stale": "an end offset, looked at after an acknowledgement, does not cover it",
    "stranger": "a record that nobody appended",
    "torn": "a part of an append, in the log or as an end offset within it",
    "undurable": "a handle that reads durably saw a record, or acknowledged one, beyond the durable offset",
}


@dataclass(frozen=True, slots=True)
class Anomaly:
    """Something that the protocol forbids: one of ``KINDS``, and what exactly."""

    kind: str
    text: str


@dataclass(slots=True)
class Case:
    """A history with what all checks need."""

    history: History
    unsure: Collection[str]
    compacted: bool
    durable_levels: bool
    found: list[Anomaly] = field(default_factory=list)
    where: dict[AppendId, list[Run]] = field(default_factory=dict)
    recovered: list[int] = field(default_factory=list)
    doubled: set[AppendId] = field(default_factory=set)
    attached: set[str] = field(default_factory=set)  # names of the handles that surely share the published state

    def __post_init__(self) -> None:
        self.recovered = recoveries(self.history)
        alone = moments_alone(self.history)
        for handle in self.history.handles.values():
            if handle.writable or not any(a < handle.opened and handle.begun < b for a, b in alone):
                self.attached.add(handle.name)
        where = defaultdict(list)
        for run in self.history.final:
            where[run.append].append(run)
        self.where = dict(where)

    def report(self, kind: str, text: str) -> None:
        assert kind in KINDS
        self.found.append(Anomaly(kind, text))

    @property
    def acked(self) -> Iterator[Append]:
        return (append for append in self.history.appends.values() if append.base is not None)


def check(
    history: History,
    *,
    unsure: Collection[str] = (),
    compacted: bool = False,
    durable_levels: bool = False,
) -> list[Anomaly]:
    """Everything that is wrong, in no order that matters.

    Args:
        unsure: errors that do not say whether the records are there (a sync that failed behind the write).
        compacted: the log was compacted, so a record may be gone when a later one has its key.
        durable_levels: every handle was at ``group`` or ``batch``: an ack and a read mean that it is durable.
    """
    case = Case(history, unsure, compacted, durable_levels)
    for text in history.complaints:
        case.report("complaint", text)
    for step in CHECKS:
        step(case)
    return case.found


# --- the final state ------------------------------------------------------------------------------------------------


def final_has_no_holes(case: Case) -> None:
    history = case.history
    if case.compacted:
        for run, following in pairwise(history.final):
            if following.offset < run.offset + run.records:
                case.report("hole", f"{following} follows {run}")
        return
    at = history.start_offset
    for run in history.final:
        if run.offset != at:
            case.report("hole", f"offset {at} was expected, {run} was found")
        at = run.offset + run.records
    if at != history.end_offset:
        case.report("hole", f"records reach to {at}, the end offset is {history.end_offset}")


def final_knows_its_appends(case: Case) -> None:
    for which, runs in case.where.items():
        append = case.history.appends.get(which)
        if append is None or any(run.count != append.count for run in runs):
            case.report("stranger", f"{runs} of {append}")


def final_has_each_append_once(case: Case) -> None:
    for which, runs in case.where.items():
        numbers = [index for run in runs for index in range(run.index, run.index + run.records)]
        if len(numbers) != len(set(numbers)):
            case.report("doubled", f"{which}: {runs}")
            case.doubled.add(which)


def final_has_what_was_acked(case: Case) -> None:
    history = case.history
    last_of_key: dict[bytes, int] = {}
    if case.compacted:
        for run in history.final:
            for index in range(run.index, run.index + run.records):
                last_of_key[key_of(run.append, index)] = run.offset + index - run.index
    for append in case.acked:
        assert append.base is not None
        there = {
            run.offset + number
            for run in case.where.get(append.id, ())
            for number in range(run.records)
            if run.offset - run.index == append.base
        }
        for index in range(append.count):
            offset = append.base + index
            if offset in there or offset < history.start_offset:
                continue
            if case.compacted and last_of_key.get(key_of(append.id, index), -1) > offset:
                continue
            case.report("lost", f"record {index} of {append}; the log has {case.where.get(append.id)}")
            break


def final_has_appends_whole(case: Case) -> None:
    """All of an append, unless it was cut by the death of everybody: then a part from its beginning."""
    if case.compacted:
        return
    history = case.history
    for which, runs in case.where.items():
        if which in case.doubled:
            continue
        first = runs[0]
        begins = first.index == 0 or first.offset == history.start_offset
        joined = all(
            (after.offset, after.index) == (run.offset + run.records, run.index + run.records)
            for run, after in pairwise(runs)
        )
        whole = runs[-1].index + runs[-1].records == first.count
        append = history.appends.get(which)
        may_be_cut = (
            append is not None and append.ended is None and any(moment > append.begun for moment in case.recovered)
        )
        if not begins or not joined or not (whole or may_be_cut):
            case.report("torn", f"{runs} of {append}")


def moments_alone(history: History) -> list[tuple[int, int]]:
    """Stretches of time in which perhaps no writer had the log open."""
    spans = sorted((handle.opened, handle.gone) for handle in history.handles.values() if handle.writable)
    gaps = []
    covered = 0
    for opened, gone in [*spans, (_FOREVER, _FOREVER)]:
        if opened > covered:
            gaps.append((covered, opened))
        covered = max(covered, gone)
    return gaps


def recoveries(history: History) -> list[int]:
    """Moments after which a recovery from the files alone may have run: somebody died and nobody closed after that."""
    writers = [handle for handle in history.handles.values() if handle.writable]
    found = []
    for begin, end in moments_alone(history):
        deaths = [handle.dead_by for handle in writers if handle.gone <= begin and handle.dead_by is not None]
        closings = [handle.gone for handle in writers if handle.gone <= begin and handle.dead_by is None]
        if deaths and max(deaths) > max(closings, default=0):
            found.append(end)
    return found


def final_has_no_failed_append(case: Case) -> None:
    for append in case.history.appends.values():
        if append.error is not None and append.error not in case.unsure and append.id in case.where:
            case.report("failed", f"{append} is at {case.where[append.id]}")


# --- order ----------------------------------------------------------------------------------------------------------


def order_within_threads(case: Case) -> None:
    of_thread = defaultdict(list)
    for which, runs in case.where.items():
        of_thread[which.writer, which.thread].append((which.sequence, runs[0].offset))
    for thread, appends in of_thread.items():
        for (before, left), (after, right) in pairwise(sorted(appends)):
            if left > right:
                case.report("reordered", f"thread {thread}: append {before} at {left}, append {after} at {right}")


def order_in_real_time(case: Case) -> None:
    """An append that began after the acknowledgement of another one lies behind it."""
    acks = Largest((append.ended or 0, append.base or 0) for append in case.acked)
    for append in case.history.appends.values():
        base = append.base
        if base is None and append.id in case.where:
            base = case.where[append.id][0].offset - case.where[append.id][0].index
        before = acks.before(append.begun)
        if base is not None and before is not None and before >= base:
            case.report("reordered", f"{append} at {base} began after an append at {before} was acknowledged")


class Largest:
    """The largest of the values that were there before a moment."""

    def __init__(self, pairs: Iterable[tuple[int, int]]) -> None:
        ordered = sorted(pairs)
        self.times = [time for time, _ in ordered]
        self.values = list(accumulate((value for _, value in ordered), max))

    def before(self, time: int) -> int | None:
        at = bisect_left(self.times, time)
        return self.values[at - 1] if at else None


# --- reads ----------------------------------------------------------------------------------------------------------


def reads_agree_with_the_log(case: Case) -> None:
    history = case.history
    offsets = [run.offset for run in history.final]
    gone: dict[int, tuple[AppendId, int]] = {}  # below the start offset the first reader is believed
    for read in history.reads:
        for run in read.runs:
            done = 0
            while done < run.records:
                offset, index = run.offset + done, run.index + done
                if offset < history.start_offset:
                    if gone.setdefault(offset, (run.append, index)) != (run.append, index):
                        case.report("changed", f"{read.handle} saw {run}, another one {gone[offset]}")
                    done += 1
                    continue
                at = bisect_right(offsets, offset) - 1
                kept = history.final[at] if at >= 0 else None
                if kept is None or offset >= kept.offset + kept.records:
                    if not (case.compacted and superseded(case, run.append, index, offset)):
                        case.report("changed", f"{read.handle} saw {run}, the log has nothing at {offset}")
                    done += 1
                    continue
                if (run.append, index) != (kept.append, kept.index + offset - kept.offset):
                    case.report("changed", f"{read.handle} saw {run}, the log has {kept}")
                    break
                done += kept.offset + kept.records - offset


def superseded(case: Case, which: AppendId, index: int, offset: int) -> bool:
    key = key_of(which, index)
    return any(
        key_of(run.append, run.index + number) == key
        for run in case.history.final
        if run.offset + run.records > offset
        for number in range(run.records)
        if run.offset + number > offset
    )


def reads_have_no_holes(case: Case) -> None:
    if case.compacted:
        return
    for read in case.history.reads:
        at = read.start
        for run in read.runs:
            if run.offset != at:
                case.report("hole", f"{read.handle} read {run} where offset {at} was expected")
            at = run.offset + run.records


def reads_stay_below_the_end(case: Case) -> None:
    for read in case.history.reads:
        last = max((run.offset + run.records for run in read.runs), default=0)
        if last > read.readable_offset or last > read.end_offset:
            case.report("beyond", f"{read} reaches to {last}")
        if not read.durable_offset <= read.end_offset or not read.readable_offset <= read.end_offset:
            case.report("beyond", f"{read}: an offset beyond the end")
        if case.durable_levels and last > read.durable_offset:
            case.report("undurable", f"{read} reaches to {last}")


def reads_see_what_was_appended(case: Case) -> None:
    for read in case.history.reads:
        for run in read.runs:
            append = case.history.appends.get(run.append)
            if append is None or run.count != append.count:
                case.report("stranger", f"{read.handle} saw {run} of {append}")
            elif read.ended < append.begun:
                case.report("early", f"{read.handle} saw {run} before {append}")


def ends_lie_between_appends(case: Case) -> None:
    """A live reader sees all of an append or nothing: no end offset that anybody saw lies inside of one."""
    if case.compacted:
        return
    spans = {append.base: append.count for append in case.acked}
    for runs in case.where.values():
        if runs[0].index == 0:
            spans[runs[0].offset] = sum(run.records for run in runs)
    bases = sorted(base for base in spans if base is not None)
    for read in case.history.reads:
        for name in ("end_offset", "readable_offset", "durable_offset"):
            end = getattr(read, name)
            at = bisect_left(bases, end) - 1
            if at >= 0 and bases[at] < end < bases[at] + spans[bases[at]]:
                case.report("torn", f"{read.handle} had {name} {end} inside of an append at {bases[at]}")


def ends_never_go_back(case: Case) -> None:
    of_handle: dict[str, list[Read]] = defaultdict(list)
    for read in case.history.reads:
        of_handle[read.handle].append(read)
    for name in ("end_offset", "readable_offset", "durable_offset"):
        value: Callable[[Read], int] = attrgetter(name)
        for handle, reads in of_handle.items():
            for before, after in pairwise(sorted(reads, key=attrgetter("ended"))):
                if before.ended < after.begun and value(after) < value(before):
                    case.report("backwards", f"{handle}: {name} was {value(before)}, then {value(after)}")
        if name == "readable_offset":
            continue  # it depends on the handle's level
        shared = [read for read in case.history.reads if read.handle in case.attached]
        seen = Largest((read.ended, value(read)) for read in shared)
        for read in shared:
            before_it = seen.before(read.begun)
            if before_it is not None and before_it > value(read):
                case.report("backwards", f"{read.handle}: {name} is {value(read)}, somebody had seen {before_it}")


def ends_cover_what_was_acked(case: Case) -> None:
    acks = Largest((append.ended or 0, (append.base or 0) + append.count) for append in case.acked)
    for read in case.history.reads:
        before = acks.before(read.begun)
        if before is None or read.handle not in case.attached:
            continue
        if read.end_offset < before:
            case.report("stale", f"{read} does not reach to {before}, which was acknowledged")
        elif case.durable_levels and read.durable_offset < before:
            case.report("undurable", f"{read} has not {before}, which was acknowledged")


CHECKS: tuple[Callable[[Case], None], ...] = (
    final_has_no_holes,
    final_knows_its_appends,
    final_has_each_append_once,
    final_has_what_was_acked,
    final_has_appends_whole,
    final_has_no_failed_append,
    order_within_threads,
    order_in_real_time,
    reads_agree_with_the_log,
    reads_have_no_holes,
    reads_stay_below_the_end,
    reads_see_what_was_appended,
    ends_lie_between_appends,
    ends_never_go_back,
    ends_cover_what_was_acked,
)
