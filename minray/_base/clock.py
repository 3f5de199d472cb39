"""Time, as an argument.

Pure machines take ``now`` with each message and never ask for the time. Services that feed them own a
``Clock``: ``SystemClock`` in a process, ``ManualClock`` in tests and in the simulator. Times are seconds
as float on a monotonic scale whose zero means nothing.

Invariant: a clock never goes back.
"""

from __future__ import annotations

import time
from typing import Protocol


class Clock(Protocol):
    """Where a service gets its ``now`` from."""

    def monotonic(self) -> float:
        """Seconds on a scale that never goes back."""


class SystemClock:
    """The machine's monotonic clock."""

    __slots__ = ()

    def monotonic(self) -> float:
        """Seconds since some moment in the past."""
        return time.monotonic()


class ManualClock:
    """A clock that stands until it is told to move."""

    __slots__ = ("_now",)

    def __init__(self, now: float = 0.0) -> None:
        self._now = now

    def monotonic(self) -> float:
        """The time it was last told."""
        return self._now

    def advance(self, seconds: float) -> float:
        """Move forward by ``seconds`` and return the new time."""
        if seconds < 0:
            raise ValueError(f"a clock never goes back: advance({seconds!r})")
        self._now += seconds
        return self._now

    def advance_to(self, moment: float) -> float:
        """Move forward to ``moment`` and return it."""
        return self.advance(moment - self._now)
