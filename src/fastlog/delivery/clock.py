"""What time it is, for whatever compares due times: the machine's clocks, or one that a test turns by hand."""

from __future__ import annotations

from typing import Protocol

from fastlog._native import oscalls

__all__ = ["Clock", "SystemClock"]


class Clock(Protocol):
    """Two readings of the time. Called from any thread."""

    def wall(self) -> int:
        """Milliseconds since the epoch; may jump. Due times that are stored are of this clock."""

    def steady(self) -> int:
        """Milliseconds since some moment; never goes back. For time-outs and pauses of this process."""


class SystemClock:
    """The clocks of the machine."""

    __slots__ = ()

    def wall(self) -> int:
        """Milliseconds since the epoch."""
        return oscalls.wall_clock()

    def steady(self) -> int:
        """Milliseconds since some moment; never goes back."""
        return oscalls.steady_clock()
