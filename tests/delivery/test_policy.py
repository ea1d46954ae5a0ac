"""``Retry``, ``RetryLater`` and ``BatchError``: what is accepted, how long is waited, when it is given up."""

from __future__ import annotations

import math
import random
from datetime import timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

import fastlog

SECOND = 1000
MINUTE = 60 * SECOND


# --- waits -----------------------------------------------------------------------------------------------------------


def test_waits_grow_by_the_factor_up_to_the_longest() -> None:
    retry = fastlog.Retry(9, backoff=("1s", "1m"), factor=3, jitter=False)
    waits = [retry.delay(attempts, random.Random(1)) for attempts in range(1, 7)]
    assert waits == [1 * SECOND, 3 * SECOND, 9 * SECOND, 27 * SECOND, 1 * MINUTE, 1 * MINUTE]


def test_defaults_are_five_attempts_from_a_second_to_five_minutes() -> None:
    retry = fastlog.Retry()
    assert (retry.attempts, retry.least_ms, retry.most_ms, retry.give_up_on) == (5, SECOND, 5 * MINUTE, ())
    assert retry.jitter is True


@pytest.mark.parametrize("backoff", ["250ms", 0.25, timedelta(milliseconds=250), ("250ms", 0.25)])
def test_one_wait_for_all(backoff: Any) -> None:
    retry = fastlog.Retry(3, backoff=backoff)
    assert {retry.delay(attempts, random.Random(1)) for attempts in range(1, 50)} == {250}


def test_jitter_spreads_the_first_wait_and_the_longest(seed: int) -> None:
    """What failed together, at the first attempt or while a service was down for long, comes back spread."""
    retry, chance = fastlog.Retry(5, backoff=("1s", "5m")), random.Random(seed)
    first = [retry.delay(1, chance) for _ in range(500)]
    longest = [retry.delay(40, chance) for _ in range(500)]
    assert SECOND <= min(first) < 1.1 * SECOND and 1.4 * SECOND < max(first) <= 1.5 * SECOND
    assert 2.5 * MINUTE <= min(longest) < 2.6 * MINUTE and 4.9 * MINUTE < max(longest) <= 5 * MINUTE


@given(
    st.integers(0, 10**12), st.integers(0, 10**12), st.floats(1, 1e308), st.booleans(),
    st.integers(1, 2**31 - 1), st.integers(0, 2**32),
)  # fmt: skip
def test_a_wait_is_within_the_bounds_and_near_what_was_planned(
    one: int, other: int, factor: float, jitter: bool, attempts: int, chance: int
) -> None:
    least, most = sorted((min(one, 10**11), min(other, 10**11)))
    backoff = (timedelta(milliseconds=least), timedelta(milliseconds=most))
    retry = fastlog.Retry(backoff=backoff, factor=factor, jitter=jitter)
    wait = retry.delay(attempts, random.Random(chance))
    assert isinstance(wait, int)
    assert least <= wait <= most
    if attempts == 1:
        assert wait <= 1.5 * least + 1
    if not jitter:
        after = retry.delay(attempts + 1, random.Random(chance))
        assert after >= wait
        assert after in (most, pytest.approx(wait * factor, rel=1e-6, abs=factor))


def test_the_same_chance_gives_the_same_waits() -> None:
    retry = fastlog.Retry(backoff=("1s", "5m"))
    one, other = random.Random(7), random.Random(7)
    assert [retry.delay(n, one) for n in range(1, 9)] == [retry.delay(n, other) for n in range(1, 9)]


# --- giving up -------------------------------------------------------------------------------------------------------


def test_gives_up_on_the_classes_and_what_is_below_them() -> None:
    retry = fastlog.Retry(give_up_on=(ValueError, LookupError))
    assert retry.gives_up(ValueError())
    assert retry.gives_up(UnicodeDecodeError("utf-8", b"", 0, 1, ""))
    assert retry.gives_up(KeyError())
    assert not retry.gives_up(OSError())
    assert not fastlog.Retry().gives_up(ValueError())


@pytest.mark.parametrize("given", [ValueError, [ValueError], (ValueError,), {ValueError}, iter([ValueError])])
def test_one_class_or_several(given: Any) -> None:
    retry = fastlog.Retry(give_up_on=given)
    assert retry.give_up_on == (ValueError,)
    assert retry.gives_up(ValueError()) and not retry.gives_up(KeyError())


def test_never_gives_up_on_a_wish_to_be_called_again() -> None:
    retry = fastlog.Retry(give_up_on=Exception)
    assert not retry.gives_up(fastlog.RetryLater("1s"))
    assert not retry.gives_up(fastlog.BatchError(0, fastlog.RetryLater("1s")))
    assert retry.gives_up(fastlog.HandlerTimeoutError("late"))


def test_of_a_batch_error_the_cause_counts() -> None:
    retry = fastlog.Retry(give_up_on=ValueError)
    assert retry.gives_up(fastlog.BatchError(2, ValueError()))
    assert not retry.gives_up(fastlog.BatchError(2, KeyError()))
    assert not retry.gives_up(fastlog.BatchError(2))
    assert fastlog.Retry(give_up_on=fastlog.BatchError).gives_up(fastlog.BatchError(2))


# --- what is refused -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"attempts": 0}, "Retry.attempts=0: expected the number of calls in all, from 1"),
        ({"attempts": -1}, "Retry.attempts=-1"),
        ({"attempts": True}, "Retry.attempts=True"),
        ({"attempts": 2.0}, r"Retry.attempts=2\.0"),
        ({"attempts": "3"}, "Retry.attempts='3'"),
        ({"attempts": 2**31}, "Retry.attempts=2147483648"),
        ({"backoff": "soon"}, "Retry.backoff='soon' is not a duration"),
        ({"backoff": -1}, "Retry.backoff=-1 is too short: expected at least 0 s"),
        ({"backoff": True}, "Retry.backoff=True is not a duration"),
        ({"backoff": None}, "Retry.backoff=None is not a duration"),
        ({"backoff": math.inf}, "Retry.backoff=inf is no duration that can be counted"),
        ({"backoff": math.nan}, "Retry.backoff=nan is no duration that can be counted"),
        ({"backoff": ("1s",)}, "the shortest and the longest wait"),
        ({"backoff": ("1s", "2s", "3s")}, "the shortest and the longest wait"),
        ({"backoff": ("5m", "1s")}, "the shortest wait exceeds the longest one"),
        ({"backoff": ("1s", timedelta(seconds=-1))}, "is too short"),
        ({"factor": 0.5}, r"Retry.factor=0\.5: expected a number from 1"),
        ({"factor": math.inf}, "Retry.factor=inf"),
        ({"factor": math.nan}, "Retry.factor=nan"),
        ({"factor": "2"}, "Retry.factor='2'"),
        ({"factor": True}, "Retry.factor=True"),
        ({"jitter": 1}, "Retry.jitter=1: expected True or False"),
        ({"give_up_on": "ValueError"}, "'V' is no exception class"),
        ({"give_up_on": ValueError()}, r"ValueError\(\) is no exception class"),
        ({"give_up_on": (ValueError, int)}, "<class 'int'> is no exception class"),
        ({"give_up_on": KeyboardInterrupt}, "is no exception class"),
        ({"give_up_on": None}, "None is no exception class"),
    ],
)
def test_what_makes_no_sense_is_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(fastlog.ConfigError, match=message):
        fastlog.Retry(**options)


def test_a_retry_does_not_change_and_can_be_shared() -> None:
    retry = fastlog.Retry(3, backoff=("1s", "2s"), give_up_on=[ValueError])
    with pytest.raises(AttributeError):
        retry.attempts = 4  # type: ignore[misc]
    same = fastlog.Retry(3, backoff=("1s", "2s"), give_up_on=(ValueError,))
    assert retry == same and hash(retry) == hash(same)
    assert repr(retry).startswith("Retry(attempts=3, backoff=('1s', '2s'), factor=2, jitter=True")
    with pytest.raises(TypeError):
        fastlog.Retry(3, ("1s", "2s"))  # type: ignore[misc]


# --- what handlers raise ---------------------------------------------------------------------------------------------


def test_retry_later_says_when() -> None:
    assert fastlog.RetryLater("30s").delay_ms == 30 * SECOND
    assert fastlog.RetryLater(timedelta(minutes=1)).delay_ms == MINUTE
    assert fastlog.RetryLater(0.25).delay_ms == 250
    assert fastlog.RetryLater(0).delay_ms == 0
    assert str(fastlog.RetryLater("1500ms")) == "asked to be called again in 1.5 s"
    assert str(fastlog.RetryLater("20ms")) == "asked to be called again in 20 ms"
    assert str(fastlog.RetryLater(1, "the bank sleeps")) == "the bank sleeps"
    for delay in (-1, "later", None, True):
        with pytest.raises(fastlog.ConfigError, match="RetryLater.delay"):
            fastlog.RetryLater(delay)  # type: ignore[arg-type]


def test_batch_error_knows_its_cause_either_way() -> None:
    cause = KeyError("x")
    assert fastlog.BatchError(3, cause).cause is cause
    with pytest.raises(fastlog.BatchError) as caught:
        raise fastlog.BatchError(3) from cause
    assert caught.value.cause is cause and caught.value.index == 3
    alone = fastlog.BatchError(0)
    assert alone.cause is alone
    assert str(fastlog.BatchError(3, cause)) == "record 3 of the batch failed: KeyError('x')"
    with pytest.raises(fastlog.BatchError) as caught:
        try:
            raise cause
        except KeyError:
            raise fastlog.BatchError(1)  # noqa: B904  # a handler may forget the cause
    assert caught.value.__context__ is cause and not caught.value.__suppress_context__


@pytest.mark.parametrize(
    ("arguments", "message"),
    [((-1,), "index=-1"), ((True,), "index=True"), (("1",), "index='1'"), ((1, "bad"), "cause='bad'")],
)
def test_batch_error_is_checked(arguments: tuple[Any, ...], message: str) -> None:
    with pytest.raises(fastlog.ConfigError, match=message):
        fastlog.BatchError(*arguments)


def test_place_in_the_tree_of_errors() -> None:
    for cls in (fastlog.RetryLater, fastlog.BatchError, fastlog.HandlerTimeoutError):
        assert issubclass(cls, fastlog.Error)
    assert issubclass(fastlog.HandlerTimeoutError, TimeoutError)
    assert fastlog.RetryLater.retriable and fastlog.HandlerTimeoutError.retriable
