"""When this node's memory runs out: one worker is ended, before the kernel ends whatever it likes.

    ── look ──▶ used ≤ limit × threshold ──▶ look again, sooner the less is left
                used > limit × threshold ──▶ end the idle workers; if there is none:
                                             end the worker that started last of those that can start again;
                                             of the others only if there is none; wait until it is gone

What has run for the shortest time loses least, and what can be repeated loses nothing else. Tasks come before
actors: an actor's state is lost even where the actor starts again. Then nothing begins here for a while, unless nothing
else is left here: or what was ended would fill the memory again at once. The pure part is ``Candidate``, ``choose`` and
``Brake``; the ``MemoryWatch`` looks, and only while somebody works here: an idle node is not woken by it.

Used by node.service. The limit is the machine's or its cgroup's (``_base.machine.memory_in_use``); with the setting
``memory_total`` it is that number of bytes, and what counts as used is what the node's workers use. Invariant: one
worker at a time.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from minray._base import log
from minray._base.machine import memory_in_use
from minray._base.process import private_memory

if TYPE_CHECKING:
    from minray._base.config import Config
    from minray.node.leases import LeaseTable
    from minray.node.worker_pool import Effect
    from minray.wire.reactor import Reactor, Timer

FILL_RATE = 4 << 30  # bytes per second: hardly anything fills memory faster
SOONEST_S, LATEST_S = 0.1, 2.0
FIRST_BRAKE_S, LONGEST_BRAKE_S, CALM = 1.0, 30.0, 2
GIB = 1 << 30


class Processes(Protocol):
    """What is needed of node.workers.WorkerProcesses."""

    def pid(self, number: int) -> int | None: ...
    def kill_for_memory(self, number: int, text: str, beside: int) -> None: ...


@dataclass(frozen=True, slots=True)
class Candidate:
    """A worker at work."""

    number: int
    since: float  # when its lease, or its actor, began
    again: bool  # what runs there is started again if it is ended
    actor: bool
    what: str


def choose(candidates: Iterable[Candidate]) -> Candidate | None:
    """Who has to go."""
    return max(candidates, key=lambda one: (one.again, not one.actor, one.since, one.number), default=None)


def candidates_of(table: LeaseTable) -> list[Candidate]:
    """Everybody who works here."""
    found = []
    for lease in table.leases.values():
        demand, actor = lease.demand, lease.demand.actor
        again = demand.again if actor is None else actor.spec["options"].get("max_restarts", 0) != 0
        found.append(Candidate(lease.number, lease.since, again, actor is not None, demand.description))
    return found


def pause(used: int, bound: float) -> float:
    """How long memory lasts at least."""
    return min(LATEST_S, max(SOONEST_S, (bound - used) / FILL_RATE))


class Brake:
    """How long nothing begins after a worker was ended: longer each time, until there was peace for a while."""

    def __init__(self) -> None:
        self._pause = 0.0
        self._last = 0.0

    def pull(self, now: float) -> float:
        """One was ended; until when the others are to be left alone."""
        calm = now - self._last > CALM * LONGEST_BRAKE_S
        self._pause = FIRST_BRAKE_S if calm or not self._pause else min(2 * self._pause, LONGEST_BRAKE_S)
        self._last = now
        return now + self._pause


class MemoryWatch:
    """See the file's head."""

    def __init__(
        self,
        reactor: Reactor,
        config: Config,
        table: LeaseTable,
        processes: Callable[[], Processes],
        now: Callable[[], float],
        do: Callable[[list[Effect]], None],
        measure: Callable[[], tuple[int, int]] = memory_in_use,
    ) -> None:
        self._reactor = reactor
        self._threshold = config.memory_threshold
        self._total = config.memory_total
        self._table = table
        self._processes = processes
        self._now = now
        self._do = do
        self._measure = measure
        self._brake = Brake()
        self._timer: Timer | None = None
        self._ending: int | None = None  # the worker that has to go
        self.ended = 0  # how many there were

    def on_work(self) -> None:
        """Somebody may have begun to work here."""
        if self._timer is None and self._threshold < 1.0 and self._table.leases:
            self._timer = self._reactor.call_later(SOONEST_S, self._look)

    def stop(self) -> None:
        """The node ends."""
        self._threshold = 1.0
        if self._timer is not None:
            self._timer.cancel()

    def _look(self) -> None:
        self._timer = None
        if self._threshold >= 1.0 or not self._table.leases:
            return
        used, total = self._in_use()
        bound = total * self._threshold
        if used > bound:
            self._relieve(used, total)
        self._timer = self._reactor.call_later(pause(used, bound), self._look)

    def _in_use(self) -> tuple[int, int]:
        if self._total is None:
            return self._measure()
        processes = self._processes()
        pids = (processes.pid(worker.number) for worker in self._table.pool.workers.values())
        return sum(private_memory(pid) for pid in pids if pid), self._total

    def _relieve(self, used: int, total: int) -> None:
        if self._ending is not None and self._ending in self._table.pool.workers:
            return  # what it holds is not free yet
        idle = self._table.pool.dismiss_idle(self._now(), "memory runs out")
        if idle:
            self._do(idle)
            return
        victim = choose(candidates_of(self._table))
        if victim is None:
            return
        self._ending = victim.number
        self.ended += 1
        again = "it is started again" if victim.again else "it cannot be started again"
        text = (
            f"ended by its node, because memory ran out: {used / GIB:.2f} of {total / GIB:.2f} GiB were in use (bound: "
            f"memory_threshold={self._threshold:g}), and of what ran there it was the last to begin; {again} if its "
            "retries allow. Use fewer workers at a time (num_cpus, memory=), or a machine with more memory"
        )
        log.warning("%s was %s", victim.what, text)
        self._table.memory_hold = self._brake.pull(self._now())
        self._processes().kill_for_memory(victim.number, text, beside=len(self._table.leases) - 1)
