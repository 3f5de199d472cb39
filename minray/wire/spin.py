"""Whether a leader spins before it sleeps. Pure: durations in, durations out.

Spinning (polling without sleeping for some tens of µs) saves the wake-up of the waiting process, and takes a
CPU from whoever else could run. Which of the two counts depends on where the kernel puts the processes: on a
2-core VM a round trip that sleeps takes 24 µs when both ends share a core, and 150 µs when they do not;
spinning pulls them apart, and takes 45 or 110. No rule foretells it, so it is measured: waits come in epochs,
an epoch spins or sleeps throughout, the better way is used, and the other is tried again now and then. An
epoch's first waits do not count: the kernel has to find the places first. Spinning has to be clearly better
to be chosen, and is not even tried while waits are much longer than it could shorten.

Called by the reactor around each wait that leads.
"""

from __future__ import annotations

EPOCH = 32  # waits
SETTLE = 8  # of which so many do not count
RETRY = 24  # epochs until the other way is tried again
BETTER = 0.9  # spinning must take at most this part of what sleeping takes
LONG = 4.0  # waits longer than so many times the spin are not worth it, and count as this long


class SpinPolicy:
    """See the file's head. ``spin_s`` 0: never spins."""

    __slots__ = ("_count", "_limit", "_mean_sleep", "_mean_spin", "_retry", "_spin_s", "_total", "spinning")

    def __init__(self, spin_s: float) -> None:
        self.spinning = False
        self._spin_s = spin_s
        self._limit = LONG * spin_s
        self._mean_sleep = 0.0  # the mean wait of the last epoch that slept, and of the last that spun
        self._mean_spin = 0.0
        self._retry = 1
        self._count = 0
        self._total = 0.0

    def begin(self) -> float:
        """Seconds to spin in the wait that begins."""
        return self._spin_s if self.spinning else 0.0

    def ended(self, took: float) -> None:
        """A wait is over after ``took`` seconds."""
        self._count = count = self._count + 1
        if count > SETTLE:
            self._total += took if took < self._limit else self._limit
            if count == EPOCH:
                self._decide(self._total / (EPOCH - SETTLE))

    def _decide(self, mean: float) -> None:
        self._count, self._total = 0, 0.0
        if not self._spin_s:
            return
        if self.spinning:
            self._mean_spin = mean
        else:
            self._mean_sleep = mean
        self._retry -= 1
        if self._retry <= 0:
            self._retry = RETRY
            if self.spinning or mean < self._limit * BETTER:
                self.spinning = not self.spinning
        else:
            self.spinning = 0.0 < self._mean_spin < BETTER * self._mean_sleep
