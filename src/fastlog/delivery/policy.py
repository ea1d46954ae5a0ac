"""What becomes of a record whose handler fails: options, the errors that handlers raise, and the circuit breaker.

Everything here is pure: no clock, no file. Whoever calls hands in the time and the source of chance.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import KW_ONLY, dataclass, field
from datetime import timedelta
from typing import TYPE_CHECKING, Any, Final, Literal

from fastlog.config import parse_duration_ms
from fastlog.errors import ConfigError, Error

if TYPE_CHECKING:
    from random import Random

__all__ = ["BatchError", "Breaker", "BreakerState", "Duration", "Retry", "RetryLater"]

Duration = float | str | timedelta
"""A ``timedelta``, a string such as ``"5s"``, or a number of seconds."""

MOST_ATTEMPTS: Final = 2**31 - 1
JITTER_PART: Final = 0.5


# --- what handlers raise ---------------------------------------------------------------------------------------------


class RetryLater(Error):
    """Raised by a handler: not now, call me with this record again when ``delay`` is over.

    It counts as an attempt, and the delay takes the place of the backoff. Without attempts left the record goes the
    way of every other failure. ``give_up_on`` does not see it, whatever classes it lists.

    Attributes:
        delay_ms: milliseconds until the next attempt, at least 0.
    """

    retriable = True

    def __init__(self, delay: Duration, message: str | None = None) -> None:
        self.delay_ms = least_duration(delay, "RetryLater.delay", 0)
        super().__init__(message if message is not None else f"asked to be called again in {_told(self.delay_ms)}")


class BatchError(Error):
    """Raised by a handler of batches: the records before ``index`` are finished, this one failed.

    Those behind it are handed in again, at once and without counting an attempt. ``raise BatchError(index) from error``
    does as well as ``BatchError(index, error)``.

    Attributes:
        index: position of the failed record in the list that the handler was given, from 0.
    """

    def __init__(self, index: int, cause: BaseException | None = None) -> None:
        if isinstance(index, bool) or not isinstance(index, int) or index < 0:
            raise ConfigError(f"BatchError.index={index!r}: expected the position of a record in the batch, from 0")
        if cause is not None and not isinstance(cause, BaseException):
            raise ConfigError(f"BatchError.cause={cause!r}: expected the exception that the record failed with")
        super().__init__(f"record {index} of the batch failed" + (f": {cause!r}" if cause is not None else ""))
        self.index = index
        if cause is not None:
            self.__cause__ = cause

    @property
    def cause(self) -> BaseException:
        """What the record failed with: as passed, or as chained with ``from``; else this error itself."""
        return self.__cause__ or self


# --- trying again ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Retry:
    """How often a failing record is tried, and how long it waits in between. Immutable; may be shared.

    The waits are ``backoff[0]``, then ``factor`` times as long after each further attempt, up to ``backoff[1]``. With
    ``jitter`` each is drawn from half as long to half as long again, but never outside of ``backoff``: what failed
    together is not tried again together.

    Args:
        attempts: calls of the handler in all, the first one included; from 1.
        backoff: shortest and longest wait, or one duration for both; from 0.
        factor: by how much a wait exceeds the one before it; from 1.
        jitter: whether waits are spread.
        give_up_on: an exception class, or several: a record that fails with one of them is not tried again.

    Raises:
        ConfigError: one of them is malformed or out of range.
    """

    attempts: int = 5
    _: KW_ONLY
    backoff: Duration | Sequence[Duration] = ("1s", "5m")
    factor: float = 2
    jitter: bool = True
    give_up_on: type[Exception] | Iterable[type[Exception]] = ()
    least_ms: int = field(init=False, repr=False, compare=False)
    most_ms: int = field(init=False, repr=False, compare=False)
    classes: tuple[type[Exception], ...] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        attempts = _whole(self.attempts, "Retry.attempts", "the number of calls in all")
        least, most = _bounds(self.backoff)
        if (
            isinstance(self.factor, bool)
            or not isinstance(self.factor, (int, float))
            or not 1 <= self.factor < math.inf
        ):
            raise ConfigError(f"Retry.factor={self.factor!r}: expected a number from 1")
        if not isinstance(self.jitter, bool):
            raise ConfigError(f"Retry.jitter={self.jitter!r}: expected True or False")
        parsed: dict[str, object] = {
            "attempts": attempts,
            "least_ms": least,
            "most_ms": most,
        }
        parsed["give_up_on"] = parsed["classes"] = _classes(self.give_up_on)
        for name, value in parsed.items():
            object.__setattr__(self, name, value)

    def delay(self, attempts: int, random: Random) -> int:
        """Milliseconds to wait after ``attempts`` calls (from 1) before the next one."""
        planned = self._planned(attempts)
        if self.jitter:
            low = max(self.least_ms, planned * (1 - JITTER_PART))
            high = min(self.most_ms, planned * (1 + JITTER_PART))
            planned = random.uniform(low, high)
        return round(planned)

    def _planned(self, attempts: int) -> float:
        try:
            return min(self.least_ms * float(self.factor) ** (attempts - 1), self.most_ms)
        except OverflowError:
            return self.most_ms if self.least_ms else 0

    def gives_up(self, error: BaseException) -> bool:
        """Whether a record that failed with ``error`` is not tried again, however many attempts are left.

        Of a ``BatchError`` the cause counts. ``RetryLater`` is a wish to be called again, and so never.
        """
        if isinstance(error, BatchError) and error.cause is not error:
            return self.gives_up(error.cause)
        return not isinstance(error, RetryLater) and isinstance(error, self.classes)


# --- pausing ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Breaker:
    """A circuit breaker: when what handlers need is down, they are not called for a while. Immutable; may be shared.

    After ``failures`` failed calls in a row nothing is called for ``pause``; then one record is the probe. When it
    succeeds everything goes on, when it fails the next pause begins. Records whose call was not begun wait where they
    are and use up no attempts. Each subscriber of each process has a breaker of its own.

    Args:
        failures: failed calls in a row; from 1.
        pause: how long nothing is called; more than 0.

    Raises:
        ConfigError: one of them is malformed or out of range.
    """

    failures: int = 10
    _: KW_ONLY
    pause: Duration = "30s"
    pause_ms: int = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        _whole(self.failures, "Breaker.failures", "the number of failed calls in a row")
        object.__setattr__(self, "pause_ms", least_duration(self.pause, "Breaker.pause", 1))


class BreakerState:
    """What a breaker knows: ``closed`` (calls go on), ``open`` (pause) or ``probing`` (one call may show the way).

    Used by one thread. ``now`` is milliseconds of a steady clock; a call is named by any object, compared by identity.
    What was called before the pause began may end in it, or beside the probe: that decides nothing any more.

    Attributes:
        state: ``"closed"``, ``"open"`` or ``"probing"``.
        failures_in_a_row: failed calls since the last one that succeeded.
        pauses: how often a pause began.
    """

    __slots__ = ("_options", "_probe", "_until", "failures_in_a_row", "pauses", "state")

    def __init__(self, options: Breaker) -> None:
        self._options = options
        self._probe: object | None = None
        self._until = 0
        self.state: Literal["closed", "open", "probing"] = "closed"
        self.failures_in_a_row = 0
        self.pauses = 0

    def allowed(self, now: int, free: int) -> int:
        """How many calls may be begun, at most ``free``. Ends a pause that is over."""
        if self.state == "open" and now >= self._until:
            self.state = "probing"
        if self.state == "closed":
            return free
        return min(free, 1) if self.state == "probing" and self._probe is None else 0

    def begun(self, call: object) -> None:
        """``call`` was begun; while probing it is the probe."""
        if self.state == "probing" and self._probe is None:
            self._probe = call

    def succeeded(self, call: object) -> None:
        """``call`` came back without an error."""
        if self.state == "closed":
            self.failures_in_a_row = 0
        elif call is self._probe:
            self.state, self._probe, self.failures_in_a_row = "closed", None, 0

    def failed(self, call: object, now: int) -> None:
        """``call`` failed. A failure that only the record is to blame for (``give_up_on``) is none of the breaker's:
        pass it to ``dropped``.
        """
        if self.state == "closed":
            self.failures_in_a_row += 1
            if self.failures_in_a_row >= self._options.failures:
                self._open(now)
        elif call is self._probe:
            self.failures_in_a_row += 1
            self._open(now)

    def dropped(self, call: object) -> None:
        """What became of ``call`` says nothing, such as after a rebalance: if it was the probe, another takes its
        place.
        """
        if call is self._probe:
            self._probe = None

    def next_change(self) -> int | None:
        """Steady milliseconds at which calls may be begun again; None when no pause is on."""
        return self._until if self.state == "open" else None

    def _open(self, now: int) -> None:
        self.state, self._probe = "open", None
        self._until = now + self._options.pause_ms
        self.pauses += 1


# --- checking --------------------------------------------------------------------------------------------------------


def _whole(value: object, name: str, meaning: str) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= MOST_ATTEMPTS:
        raise ConfigError(f"{name}={value!r}: expected {meaning}, from 1")
    return value


def least_duration(value: object, name: str, least_ms: int) -> int:
    """Milliseconds, at least so many. Raises ConfigError."""
    milliseconds = parse_duration_ms(value, name)  # type: ignore[arg-type]  # it checks what it is given
    if milliseconds < least_ms:
        raise ConfigError(f"{name}={value!r} is too short: expected at least {_told(least_ms)}")
    return milliseconds


def _bounds(backoff: object) -> tuple[int, int]:
    """Shortest and longest wait in milliseconds. Raises ConfigError."""
    pair = backoff if isinstance(backoff, (tuple, list)) else (backoff, backoff)
    if len(pair) != 2:
        raise ConfigError(
            f'Retry.backoff={backoff!r}: expected the shortest and the longest wait, such as ("1s", "5m"), or one '
            f"duration for both"
        )
    least, most = (least_duration(value, "Retry.backoff", 0) for value in pair)
    if least > most:
        raise ConfigError(f"Retry.backoff={backoff!r}: the shortest wait exceeds the longest one, turn them round")
    return least, most


def _classes(give_up_on: object) -> tuple[type[Exception], ...]:
    """The classes of ``give_up_on``. Raises ConfigError."""
    several = isinstance(give_up_on, Iterable) and not isinstance(give_up_on, type)
    found: tuple[Any, ...] = tuple(give_up_on) if several else (give_up_on,)  # type: ignore[arg-type]
    for cls in found:
        if not (isinstance(cls, type) and issubclass(cls, Exception)):
            raise ConfigError(
                f"Retry.give_up_on={give_up_on!r}: {cls!r} is no exception class; expected one, or a tuple of them, "
                f"such as (ValueError, KeyError)"
            )
    return found


def _told(milliseconds: int) -> str:
    return f"{milliseconds / 1000:g} s" if milliseconds >= 1000 or not milliseconds else f"{milliseconds} ms"
