"""What retention may delete: its three rules, and the clock that is not believed at once."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fastlog import ConfigError, LogConfig
from fastlog.partition.retention import Candidate, Clock, Decision, decide, grace_of, look

HOUR = 3_600_000
DAY = 24 * HOUR
NOW = 1_700_000_000_000
LAST = 2**63 - 1

sizes = st.sampled_from([0, 1, 100, 2**31 - 1])
moments = st.one_of(
    st.integers(NOW - 10 * DAY, NOW + 10 * DAY),
    st.sampled_from([-1, 0, 1, NOW, LAST, LAST - 1]),
    st.integers(-(2**63), LAST),
)
limits = st.one_of(st.sampled_from([-1, 0, 1, 50, 100, DAY, 7 * DAY, LAST]), st.integers(0, 1000))


@st.composite
def candidates(draw: st.DrawFn) -> list[Candidate]:
    found = []
    base = draw(st.sampled_from([0, 5, LAST - 10**6]))
    for _ in range(draw(st.integers(1, 6))):
        end = base + draw(st.integers(0, 100))
        found.append(Candidate(base, end, draw(sizes), draw(moments), draw(moments)))
        base = end
    return found


def decision(found: list[Candidate], **changes: object) -> Decision:
    how: dict[str, object] = {
        "start_offset": found[0].base_offset, "keep_from": LAST, "clock": Clock(NOW, NOW), "now": NOW,
        "retention_ms": -1, "retention_bytes": -1, "deletes": True,
    }  # fmt: skip
    return decide(found, **(how | changes))  # type: ignore[arg-type]


@given(candidates(), st.integers(0, LAST), st.integers(0, LAST), moments, limits, limits, st.booleans())
def test_only_what_a_rule_names_goes(
    found: list[Candidate], start: int, keep_from: int, now: int, age: int, size: int, deletes: bool
) -> None:
    """Each rule by itself, said in other words: for every number of segments, whether so many may go."""
    clock = Clock(now, now)
    result = decision(
        found, start_offset=start, keep_from=keep_from, clock=clock, now=now, retention_ms=age, retention_bytes=size,
        deletes=deletes,
    )  # fmt: skip

    def may_go(count: int) -> bool:
        gone, left = found[:count], found[count:]
        by_start = count < len(found) and all(item.end_offset <= start for item in gone)
        by_age = deletes and age >= 0 and now != -1
        by_age = by_age and all(now - item.max_timestamp > age and now - item.appended > age for item in gone)
        by_size = deletes and size >= 0 and sum(item.size for item in left) >= size
        return (by_start or by_age or by_size) and all(item.end_offset <= keep_from for item in gone)

    most = max((count for count in range(1, len(found) + 1) if may_go(count)), default=0)
    if most == len(found) and not found[-1].size:
        most -= 1
    assert result.segments == most
    assert result.bytes == sum(item.size for item in found[: result.segments])
    assert result.is_all == (most == len(found))
    assert result.start_offset == (max(start, found[most - 1].end_offset) if most else start)


def test_nothing_goes_by_default() -> None:
    config = LogConfig().resolve()
    assert (config.retention_ms, config.retention_bytes, config.deletes, config.compacts) == (-1, -1, True, False)
    ancient = [Candidate(0, 10, 2**31 - 1, 0, 0), Candidate(10, 20, 2**31 - 1, 0, 0)]
    assert decision(ancient).segments == 0


def test_an_old_event_time_does_not_delete_early() -> None:
    found = [Candidate(0, 10, 100, 0, NOW - HOUR), Candidate(10, 20, 100, NOW, NOW)]
    assert decision(found, retention_ms=DAY).segments == 0
    assert decision(found, retention_ms=DAY, clock=Clock(NOW + DAY, NOW + DAY)).segments == 1


def test_a_slow_clock_at_writing_does_not_delete_early() -> None:
    """The file was written when the clock said 1970; its records carry the time they had where they came from."""
    assert decision([Candidate(0, 10, 100, NOW - HOUR, 1000)], retention_ms=DAY).segments == 0


def test_a_time_in_the_future_holds_back_and_is_reported() -> None:
    found = [Candidate(0, 10, 100, 0, 0), Candidate(10, 20, 100, LAST, 0), Candidate(20, 30, 100, 0, 0)]
    assert decision(found, retention_ms=DAY) == Decision(1, 100, 10, False, 10)
    assert decision(found, retention_ms=DAY, retention_bytes=0) == Decision(3, 300, 30, True, 10)
    assert decision(found[:1], retention_ms=DAY).held_back is None


def test_the_active_segment_goes_only_when_it_holds_something() -> None:
    found = [Candidate(0, 10, 100, 0, 0), Candidate(10, 20, 50, 0, 0)]
    assert decision(found, retention_ms=0) == Decision(2, 150, 20, True, None)
    empty = [found[0], Candidate(10, 10, 0, -1, 0)]
    assert decision(empty, retention_ms=0) == Decision(1, 100, 10, False, None)
    assert decision(empty[1:], retention_ms=0).segments == 0


def test_what_is_not_durable_stays() -> None:
    found = [Candidate(0, 10, 100, 0, 0), Candidate(10, 20, 100, 0, 0), Candidate(20, 30, 100, 0, 0)]
    assert decision(found, retention_ms=0, keep_from=29).segments == 2
    assert decision(found, retention_ms=0, keep_from=20).segments == 2
    assert decision(found, retention_bytes=0, keep_from=19).segments == 1


def test_a_policy_without_delete_leaves_only_what_was_given_up() -> None:
    found = [Candidate(0, 10, 100, 0, 0), Candidate(10, 20, 100, 0, 0), Candidate(20, 30, 100, 0, 0)]
    assert decision(found, retention_ms=0, retention_bytes=0, deletes=False, start_offset=15).segments == 1
    assert decision(found, deletes=False, start_offset=20).segments == 2
    assert decision(found, deletes=False, start_offset=30).segments == 2  # the active one stays


# --- the clock --------------------------------------------------------------------------------------------------------


def test_I11_a_clock_that_jumps_ahead_deletes_nothing_at_once() -> None:
    found = [Candidate(0, 10, 100, NOW - HOUR, NOW - HOUR), Candidate(10, 20, 100, NOW, NOW)]
    clock = look(Clock(), NOW - 5 * HOUR, HOUR)
    clock = look(clock, NOW, HOUR)
    assert clock == Clock(NOW - 5 * HOUR, NOW)
    wrong = NOW + 30 * 365 * DAY
    for minutes in range(0, 59, 5):
        clock = look(clock, wrong + minutes * 60_000, HOUR)
        assert decision(found, clock=clock, now=wrong, retention_ms=DAY).segments == 0
    # set right again: it never happened
    clock = look(clock, NOW + HOUR, HOUR)
    for hours in range(2, 20):
        clock = look(clock, NOW + hours * HOUR, HOUR)
        assert decision(found, clock=clock, now=NOW, retention_ms=DAY).segments == 0


def test_a_job_that_comes_once_a_day_deletes_one_day_late() -> None:
    clock = Clock()
    found = [Candidate(0, 10, 100, NOW, NOW), Candidate(10, 20, 100, LAST, NOW)]
    gone = []
    for day in range(12):
        clock = look(clock, NOW + day * DAY + 1, HOUR)
        gone.append(decision(found, clock=clock, retention_ms=7 * DAY).segments)
    assert gone == [0] * 8 + [1] * 4


@given(st.lists(moments.filter(lambda moment: moment >= 0), max_size=20), st.integers(0, HOUR))
def test_time_is_believed_only_after_the_grace(readings: list[int], grace: int) -> None:
    clock = Clock()
    earlier: list[int] = []
    for now in readings:
        clock = look(clock, now, grace)
        if clock.confirmed not in (-1, now):
            # an earlier look saw it, and no reading since then was below it
            assert clock.confirmed in earlier
            assert clock.confirmed <= now
        if clock.confirmed != -1 and earlier and now >= max(earlier):
            assert now - clock.confirmed >= grace or clock.confirmed == min(readings)
        earlier.append(now)


def test_the_grace_follows_short_retention() -> None:
    assert [grace_of(ms) for ms in (-1, 0, 60_000, HOUR, DAY, LAST)] == [HOUR, 0, 60_000, HOUR, HOUR, HOUR]


# --- options ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "options",
    [
        {"retention_ms": -2},
        {"retention_bytes": "many"},
        {"cleanup_policy": ""},
        {"cleanup_policy": "compact,shred"},
        {"cleanup_policy": 3},
        {"min_cleanable_dirty_ratio": 1.1},
        {"min_cleanable_dirty_ratio": -0.1},
        {"min_cleanable_dirty_ratio": True},
        {"min_cleanable_dirty_ratio": "half"},
        {"min_cleanable_dirty_ratio": float("nan")},
        {"delete_retention_ms": -1},
        {"min_compaction_lag_ms": -1},
        {"max_compaction_lag_ms": 0},
        {"min_compaction_lag_ms": "2d", "max_compaction_lag_ms": "1d"},
    ],
    ids=repr,
)
def test_options_out_of_range(options: dict[str, object]) -> None:
    with pytest.raises(ConfigError, match=next(iter(options))):
        LogConfig(**options).resolve()  # type: ignore[arg-type]


def test_options_as_kafka_spells_them() -> None:
    config = LogConfig.from_options(
        {
            "retention.ms": "7d",
            "retention.bytes": "1GiB",
            "cleanup.policy": "delete, compact",
            "min.cleanable.dirty.ratio": 0,
        }
    ).resolve()
    assert (config.retention_ms, config.retention_bytes) == (7 * DAY, 2**30)
    assert (config.cleanup_policy, config.compacts, config.deletes) == ("compact,delete", True, True)
    assert config.min_cleanable_dirty_ratio == 0.0
    assert "retention_ms" not in config.layout()
