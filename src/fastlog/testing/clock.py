"""A clock that stands still until a test turns it."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

from fastlog._native import oscalls
from fastlog.config import parse_duration_ms
from fastlog.errors import ConfigError

__all__ = ["Duration", "TestClock"]

Duration = float | str | timedelta


class TestClock:
    """Retries, time-outs and pauses of an App go by this clock. It stands still until ``advance``.

    Args:
        start: what time it is at first, an aware datetime. Default: what the machine's clock says, so that times agree
            with those that the store writes.

    Any thread may read it; one at a time turns it.
    """

    __test__ = False  # pytest shall not collect it

    __slots__ = ("_skew_ms", "_steady_ms")

    def __init__(self, start: datetime | None = None) -> None:
        self._steady_ms = 0
        self._skew_ms = oscalls.wall_clock() if start is None else milliseconds_of(start)

    def wall(self) -> int:
        """Milliseconds since the epoch."""
        return self._steady_ms + self._skew_ms

    def steady(self) -> int:
        """Milliseconds since the clock was made."""
        return self._steady_ms

    @property
    def now(self) -> datetime:
        """What time it is, UTC."""
        return datetime.fromtimestamp(self.wall() / 1000, UTC)

    def advance(self, duration: Duration) -> None:
        """Turn it: ``"5m"``, a timedelta, or a number of seconds. Nothing is run by that: see ``Harness.advance``."""
        milliseconds = parse_duration_ms(duration, "duration")
        if milliseconds < 0:
            raise ConfigError(f"advance({duration!r}): time does not go back; jump() sets the wall clock alone")
        self.turn(milliseconds)

    def turn(self, milliseconds: int) -> None:
        """Turn it by so many milliseconds."""
        self._steady_ms += milliseconds

    def jump(self, duration: Duration) -> None:
        """Set the wall clock forward, or back (``timedelta(minutes=-5)``), as an administrator or a time server does.

        Time-outs and pauses do not notice; records that wait for a time of day do.
        """
        self._skew_ms += parse_duration_ms(duration, "duration")

    def __repr__(self) -> str:
        return f"<TestClock {self.now:%Y-%m-%d %H:%M:%S.%f}>"


def milliseconds_of(moment: datetime) -> int:
    if not isinstance(moment, datetime) or moment.tzinfo is None:
        raise ConfigError(
            f"TestClock(start={moment!r}): expected an aware datetime, such as datetime(2026, 1, 1, tzinfo=UTC)"
        )
    return round(moment.timestamp() * 1000)
