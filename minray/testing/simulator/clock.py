"""Time in the simulation: one clock for all, timers in the order of their moments, and a reactor made of it.

Time passes only when the simulation says so (``World.advance``). A process of production asks its reactor for two
things that are left here: a turn soon (``call_soon``), and a call later.

*Beats* are timers that never end by themselves: heartbeats, and the deadline after them. They do not keep a
simulation from being at rest.
"""

from __future__ import annotations

import heapq
import itertools
from collections.abc import Callable

BEATS = ("_beat", "_check")  # node.membership's heartbeat, gcs.links' deadline


class Timer:
    """One call that is due some time. ``who``: the process or service that asked for it."""

    __slots__ = ("cancelled", "fn", "when", "who")

    def __init__(self, when: float, who: bytes, fn: Callable[[], None]) -> None:
        self.when = when
        self.who = who
        self.fn = fn
        self.cancelled = False

    def cancel(self) -> None:
        """Forget it."""
        self.cancelled = True


Heap = list[tuple[float, int, Timer]]


class Clock:
    """The time, in seconds since the beginning."""

    def __init__(self) -> None:
        self.now = 0.0
        self._timers: Heap = []
        self._beats: Heap = []
        self._count = itertools.count()

    def later(self, delay: float, who: bytes, fn: Callable[[], None]) -> Timer:
        """``fn()`` in ``delay`` seconds."""
        timer = Timer(self.now + delay, who, fn)
        heap = self._beats if getattr(fn, "__name__", "") in BEATS else self._timers
        heapq.heappush(heap, (timer.when, next(self._count), timer))
        return timer

    def forget(self, who: bytes) -> None:
        """It is dead, and its name will be another's."""
        for heap in (self._timers, self._beats):
            for _, _, timer in heap:
                if timer.who == who:
                    timer.cancel()

    def due(self, *, beats: bool = True) -> float | None:
        """The moment of the next timer; None if nobody waits for time."""
        moments = [moment for heap in (self._timers, self._beats)[: 1 + beats] if (moment := _first(heap)) is not None]
        return min(moments, default=None)

    def pop(self) -> Timer | None:
        """The next timer whose moment has come."""
        if self.due() is None:
            return None
        heap = min((h for h in (self._timers, self._beats) if h), key=lambda h: h[0])
        return heapq.heappop(heap)[2] if heap[0][0] <= self.now else None


def _first(heap: Heap) -> float | None:
    while heap and heap[0][2].cancelled:
        heapq.heappop(heap)
    return heap[0][0] if heap else None


class Reactor:
    """What a service of production takes for its reactor."""

    def __init__(self, clock: Clock, who: bytes) -> None:
        self._clock = clock
        self._who = who
        self._soon: list[Callable[[], None]] = []

    def call_soon(self, fn: Callable[[], None]) -> None:
        """At the end of this turn."""
        self._soon.append(fn)

    def call_later(self, delay_s: float, fn: Callable[[], None]) -> Timer:
        """In so many seconds."""
        return self._clock.later(delay_s, self._who, fn)

    def end_turn(self) -> None:
        """All that has arrived is dealt with."""
        while self._soon:
            soon, self._soon = self._soon, []
            for fn in soon:
                fn()
