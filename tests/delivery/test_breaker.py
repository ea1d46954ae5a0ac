"""The circuit breaker: closed, open, probing. Time is a number that the tests move."""

from __future__ import annotations

import random
from typing import Any

import pytest

import fastlog
from fastlog.delivery.policy import BreakerState

PAUSE = 30_000


def make(failures: int = 3, pause: Any = "30s") -> BreakerState:
    return BreakerState(fastlog.Breaker(failures, pause=pause))


def call(state: BreakerState, now: int, fails: bool) -> object:
    """One call from its begin to its end; it must be allowed."""
    this = object()
    assert state.allowed(now, 4)
    state.begun(this)
    if fails:
        state.failed(this, now)
    else:
        state.succeeded(this)
    return this


def opened(now: int = 0) -> BreakerState:
    state = make()
    for _ in range(3):
        call(state, now, fails=True)
    assert state.state == "open"
    return state


def test_closed_lets_everything_through() -> None:
    state = make()
    assert state.allowed(0, 16) == 16
    assert state.allowed(0, 0) == 0
    assert state.next_change() is None


def test_only_failures_in_a_row_count() -> None:
    state = make(failures=3)
    for fails in (True, True, False, True, True):
        call(state, 0, fails)
    assert (state.state, state.failures_in_a_row) == ("closed", 2)
    call(state, 0, fails=True)
    assert (state.state, state.failures_in_a_row, state.pauses) == ("open", 3, 1)


def test_nothing_is_called_in_the_pause_and_one_call_behind_it() -> None:
    state = opened(now=1000)
    assert state.next_change() == 1000 + PAUSE
    assert state.allowed(1000, 16) == 0
    assert state.allowed(999 + PAUSE, 16) == 0
    assert state.allowed(1000 + PAUSE, 16) == 1
    assert state.state == "probing" and state.next_change() is None
    assert state.allowed(1000 + PAUSE, 0) == 0
    state.begun("probe")
    assert state.allowed(1000 + 10 * PAUSE, 16) == 0


def test_a_probe_that_was_allowed_and_found_nothing_to_call_is_allowed_again() -> None:
    state = opened()
    assert state.allowed(PAUSE, 16) == 1
    assert state.allowed(PAUSE, 16) == 1


def test_a_good_probe_closes() -> None:
    state = opened()
    call(state, PAUSE, fails=False)
    assert (state.state, state.failures_in_a_row) == ("closed", 0)
    assert state.allowed(PAUSE, 16) == 16
    call(state, PAUSE, fails=True)
    assert state.state == "closed"


def test_a_bad_probe_begins_the_next_pause() -> None:
    state = opened()
    call(state, PAUSE + 5, fails=True)
    assert (state.state, state.next_change(), state.pauses) == ("open", 2 * PAUSE + 5, 2)
    assert state.allowed(2 * PAUSE + 4, 16) == 0
    assert state.allowed(2 * PAUSE + 5, 16) == 1


def test_calls_from_before_the_pause_decide_nothing() -> None:
    state = make()
    early = [object() for _ in range(3)]
    for this in early:
        state.begun(this)
    for _ in range(3):
        call(state, 0, fails=True)
    state.succeeded(early[0])
    state.failed(early[1], 7)
    assert (state.state, state.next_change(), state.pauses) == ("open", PAUSE, 1)
    assert state.allowed(PAUSE, 16) == 1
    state.begun("probe")
    state.failed(early[2], PAUSE)
    assert state.state == "probing"
    state.succeeded("probe")
    assert state.state == "closed"


def test_the_probe_is_known_by_identity() -> None:
    state = opened()
    assert state.allowed(PAUSE, 16) == 1
    probe, equal = [1], [1]
    state.begun(probe)
    state.succeeded(equal)
    assert state.state == "probing"
    state.succeeded(probe)
    assert state.state == "closed"


def test_a_dropped_probe_makes_room_for_another() -> None:
    state = opened()
    assert state.allowed(PAUSE, 16) == 1
    state.begun("probe")
    state.dropped("another")
    assert state.allowed(PAUSE, 16) == 0
    state.dropped("probe")
    assert state.allowed(PAUSE, 16) == 1


def test_any_sequence_of_calls_keeps_the_rules(seed: int) -> None:
    """Against a plain count: never a call in a pause, never two probes, open exactly after so many in a row."""
    chance = random.Random(seed)
    for _ in range(200):
        failures, pause = chance.randint(1, 4), chance.randint(1, 50)
        state = make(failures, pause / 1000)
        in_hand: list[tuple[object, int]] = []
        now = in_a_row = 0
        pause_ends: int | None = None
        for _ in range(200):
            now += chance.choice((0, 1, 10))
            allowed = state.allowed(now, 4)
            if pause_ends is not None:
                probes = sum(begun >= pause_ends for _, begun in in_hand)
                assert allowed == (1 if now >= pause_ends and not probes else 0)
            else:
                assert allowed == 4
            if allowed and chance.random() < 0.6:
                in_hand.append((this := object(), now))
                state.begun(this)
            if in_hand and chance.random() < 0.6:
                this, begun = in_hand.pop(chance.randrange(len(in_hand)))
                fails = chance.random() < 0.6
                if fails:
                    state.failed(this, now)
                else:
                    state.succeeded(this)
                if pause_ends is None:
                    in_a_row = in_a_row + 1 if fails else 0
                    if in_a_row == failures:
                        pause_ends = now + pause
                        in_hand = [(this, -1) for this, _ in in_hand]
                elif begun >= pause_ends:
                    in_a_row, pause_ends = (in_a_row + 1, now + pause) if fails else (0, None)
                    in_hand = [(this, -1) for this, _ in in_hand]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"failures": 0}, "Breaker.failures=0: expected the number of failed calls in a row, from 1"),
        ({"failures": True}, "Breaker.failures=True"),
        ({"failures": 1.5}, r"Breaker.failures=1\.5"),
        ({"pause": 0}, "Breaker.pause=0 is too short: expected at least 1 ms"),
        ({"pause": -1}, "Breaker.pause=-1 is too short"),
        ({"pause": "a while"}, "Breaker.pause='a while' is not a duration"),
    ],
)
def test_what_makes_no_sense_is_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(fastlog.ConfigError, match=message):
        fastlog.Breaker(**options)


def test_a_breaker_does_not_change() -> None:
    breaker = fastlog.Breaker()
    assert (breaker.failures, breaker.pause_ms) == (10, PAUSE)
    with pytest.raises(AttributeError):
        breaker.failures = 3  # type: ignore[misc]
