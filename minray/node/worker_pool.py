"""Which worker processes to start, reuse and end. Pure.

A worker serves one job (and one set of env_vars) for life. It is STARTING from the order until it has
registered, then IDLE, LEASED or ACTOR, and LEAVING once it was told to end; it is forgotten when its
parent has reaped it. Numbers identify a worker before it has said anything.

Called by node.leases (which decides who gets a worker) and node.service (which reports what happened).
Effects: ``("start", number, worker_id, WorkerClass)``, ``("exit", number, graceful, reason)``.

Invariants: an idle list holds exactly the IDLE workers of its class; a worker that is not IDLE is never
given out; more than ``hard`` task workers never live at once (actors' workers are not counted: whoever
asks for a thousand actors gets a thousand processes).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from minray.node.demands import WorkerClass

Effect = tuple[Any, ...]
STARTING, IDLE, LEASED, ACTOR, LEAVING = "STARTING", "IDLE", "LEASED", "ACTOR", "LEAVING"
STATES = (STARTING, IDLE, LEASED, ACTOR, LEAVING)
MAX_FAILED_STARTS = 3
PAUSE_S = 2.0  # after so many failures while others of the class live: the system's limit, probably

# {(state, event): state}
TRANSITIONS: dict[tuple[str, str], str] = {
    (STARTING, "registered"): IDLE,
    (IDLE, "lease"): LEASED,
    (IDLE, "actor"): ACTOR,
    (LEASED, "release"): IDLE,
    (STARTING, "leave"): LEAVING,
    (IDLE, "leave"): LEAVING,
    (LEASED, "leave"): LEAVING,
    (ACTOR, "leave"): LEAVING,
    (LEAVING, "leave"): LEAVING,
    (LEAVING, "registered"): LEAVING,
}


@dataclass(slots=True, eq=False)
class PoolWorker:
    """One worker process, as the pool knows it."""

    number: int
    worker_id: bytes
    worker_class: WorkerClass
    state: str
    since: float  # when the state began
    lease_no: int = 0  # of the current lease or actor placement; 0: none


class WorkerPool:
    """The workers of one node."""

    def __init__(
        self,
        *,
        cpus: int,
        new_worker_id: Callable[[], bytes],
        soft: int | None = None,
        hard: int | None = None,
        idle_s: float = 60.0,
        start_s: float = 60.0,
        max_starting: int | None = None,
    ) -> None:
        self.cpus = max(1, cpus)
        self.soft = soft if soft is not None else max(32, 4 * self.cpus)
        self.hard = hard if hard is not None else max(512, 16 * self.cpus, self.soft)
        self.max_starting = max_starting if max_starting is not None else max(4, 2 * self.cpus)
        self.workers: dict[int, PoolWorker] = {}
        self.by_id: dict[bytes, PoolWorker] = {}
        self.failed_starts: dict[WorkerClass, int] = {}  # in a row
        self._new_worker_id = new_worker_id
        self._idle_s = idle_s
        self._start_s = start_s
        self._last_number = 0
        self._idle: dict[WorkerClass, dict[int, None]] = {}  # most recently used last
        self._idle_order: dict[int, None] = {}  # of all classes, longest idle first
        self._starting: dict[WorkerClass, dict[int, None]] = {}
        self._paused: dict[WorkerClass, float] = {}  # until when none is started
        self._count = dict.fromkeys(STATES, 0)

    # -- questions ---------------------------------------------------------------------------------

    def has_idle(self) -> bool:
        """Whether any worker of any class is idle."""
        return bool(self._idle_order)

    def idle(self, worker_class: WorkerClass) -> int:
        """Idle workers of this class."""
        return len(self._idle.get(worker_class, ()))

    def starting(self, worker_class: WorkerClass) -> int:
        """Workers of this class on their way."""
        return len(self._starting.get(worker_class, ()))

    def count(self, state: str) -> int:
        """Workers in that state."""
        return self._count[state]

    @property
    def task_workers(self) -> int:
        """Live workers that count towards the caps."""
        return self._count[STARTING] + self._count[IDLE] + self._count[LEASED]

    def start_room(self) -> int:
        """How many more may be on their way at once: a flood of processes serves nobody sooner."""
        return max(0, self.max_starting - self._count[STARTING])

    def paused(self, worker_class: WorkerClass, now: float) -> bool:
        """Whether it is too early to try another start."""
        return now < self._paused.get(worker_class, now)

    # -- life --------------------------------------------------------------------------------------

    def start(self, worker_class: WorkerClass, count: int, now: float) -> list[Effect]:
        """Order ``count`` workers."""
        effects: list[Effect] = []
        for _ in range(count):
            self._last_number += 1
            number = self._last_number
            worker = PoolWorker(number, self._new_worker_id(), worker_class, STARTING, now)
            self.workers[number] = worker
            self.by_id[worker.worker_id] = worker
            self._starting.setdefault(worker_class, {})[number] = None
            self._count[STARTING] += 1
            effects.append(("start", number, worker.worker_id, worker_class))
        return effects

    def prestart(self, worker_class: WorkerClass, count: int, now: float) -> list[Effect]:
        """A driver came: have ``count`` workers for it, the idle and the coming ones included."""
        have = self.idle(worker_class) + self.starting(worker_class)
        room = max(0, self.soft - self.task_workers)
        return self.start(worker_class, max(0, min(count - have, room)), now)

    def registered(self, number: int, now: float) -> PoolWorker | None:
        """It has connected and is ready. None: nobody ordered it."""
        worker = self.workers.get(number)
        if worker is None:
            return None
        self.failed_starts.pop(worker.worker_class, None)
        self._move(worker, "registered", now)
        return worker

    def take(self, worker_class: WorkerClass, event: str, lease_no: int, now: float) -> PoolWorker | None:
        """Give out the idle worker that worked last (its caches are warm). ``event``: lease or actor."""
        idle = self._idle.get(worker_class)
        if not idle:
            return None
        worker = self.workers[next(reversed(idle))]
        self._move(worker, event, now)
        worker.lease_no = lease_no
        return worker

    def release(self, number: int, now: float) -> None:
        """Its lease is over: idle again, unless it is leaving."""
        worker = self.workers.get(number)
        if worker is not None and worker.state == LEASED:
            worker.lease_no = 0
            self._move(worker, "release", now)

    def leave(self, number: int, now: float, *, graceful: bool, reason: str) -> list[Effect]:
        """End it. Twice is harmless: by force after gracefully, for instance."""
        worker = self.workers.get(number)
        if worker is None:
            return []
        self._move(worker, "leave", now)
        return [("exit", number, graceful, reason)]

    def exited(self, number: int) -> PoolWorker | None:
        """Its parent has reaped it. None: unknown."""
        worker = self.workers.pop(number, None)
        if worker is None:
            return None
        del self.by_id[worker.worker_id]
        if worker.state == STARTING:
            failed = self.failed_starts
            failed[worker.worker_class] = failed.get(worker.worker_class, 0) + 1
        self._leave_lists(worker)
        self._count[worker.state] -= 1
        return worker

    def gave_up(self, worker_class: WorkerClass, now: float) -> bool:
        """After too many failed starts in a row: True if nobody of the class lives, so that there is no
        hope. Else whoever waits gets a worker when one is free, and starts are paused for a while."""
        if self.failed_starts.get(worker_class, 0) < MAX_FAILED_STARTS:
            return False
        del self.failed_starts[worker_class]
        if any(w.worker_class == worker_class and w.state in (IDLE, LEASED) for w in self.workers.values()):
            self._paused[worker_class] = now + PAUSE_S
            return False
        return True

    def job_gone(self, job_id: bytes) -> None:
        """Forget what was learnt about a job's workers."""
        self._paused = {c: until for c, until in self._paused.items() if c.job_id != job_id}
        for worker_class in [c for c in self.failed_starts if c.job_id == job_id]:
            del self.failed_starts[worker_class]

    # -- time --------------------------------------------------------------------------------------

    def tick(self, now: float) -> list[Effect]:
        """Retire who is idle for too long, give up on who never arrived."""
        effects: list[Effect] = []
        self._paused = {c: until for c, until in self._paused.items() if until > now}
        while len(self._idle_order) > self.cpus:
            worker = self.workers[next(iter(self._idle_order))]
            if now < worker.since + self._idle_s:
                break
            effects += self.leave(worker.number, now, graceful=True, reason="idle")
        for worker in [self.workers[n] for group in self._starting.values() for n in group]:
            if now >= worker.since + self._start_s:
                self.failed_starts[worker.worker_class] = self.failed_starts.get(worker.worker_class, 0) + 1
                reason = f"it had not registered after {self._start_s:g} s (MINRAY_WORKER_START_S)"
                effects += self.leave(worker.number, now, graceful=False, reason=reason)
        return effects

    def make_room(self, now: float, wanted: WorkerClass) -> list[Effect]:
        """At the cap: end the longest idle worker that ``wanted`` cannot use."""
        for number in self._idle_order:
            if self.workers[number].worker_class != wanted:
                return self.leave(number, now, graceful=True, reason="another kind of worker is needed")
        return []

    def dismiss_idle(self, now: float, reason: str) -> list[Effect]:
        """End all that nobody uses."""
        effects: list[Effect] = []
        for number in list(self._idle_order):
            effects += self.leave(number, now, graceful=True, reason=reason)
        return effects

    def next_deadline(self) -> float | None:
        """When ``tick`` has something to do next."""
        moments = list(self._paused.values())
        if len(self._idle_order) > self.cpus:
            moments.append(self.workers[next(iter(self._idle_order))].since + self._idle_s)
        moments += [self.workers[next(iter(g))].since + self._start_s for g in self._starting.values() if g]
        return min(moments, default=None)

    # -- the table ---------------------------------------------------------------------------------

    def _move(self, worker: PoolWorker, event: str, now: float) -> None:
        new = TRANSITIONS.get((worker.state, event))
        if new is None:
            raise ValueError(f"worker {worker.number} is {worker.state}: {event!r} is impossible now")
        if new == worker.state:
            return
        self._leave_lists(worker)
        self._count[worker.state] -= 1
        self._count[new] += 1
        worker.state = new
        worker.since = now
        if new == IDLE:
            self._idle.setdefault(worker.worker_class, {})[worker.number] = None
            self._idle_order[worker.number] = None

    def _leave_lists(self, worker: PoolWorker) -> None:
        if worker.state == IDLE:
            _drop(self._idle, worker)
            del self._idle_order[worker.number]
        elif worker.state == STARTING:
            _drop(self._starting, worker)

    def check_invariants(self) -> None:
        """Lists, counters and states agree."""
        states = dict.fromkeys(self._count, 0)
        for number, worker in self.workers.items():
            assert worker.number == number and self.by_id[worker.worker_id] is worker
            states[worker.state] += 1
            listed = number in self._idle.get(worker.worker_class, ())
            assert listed == (worker.state == IDLE) == (number in self._idle_order), worker
            starting = number in self._starting.get(worker.worker_class, ())
            assert starting == (worker.state == STARTING), worker
            assert bool(worker.lease_no) or worker.state not in (LEASED, ACTOR), worker
        assert states == self._count, f"{states} by list, {self._count} by count"
        assert len(self.by_id) == len(self.workers)
        assert sum(map(len, self._idle.values())) == len(self._idle_order)


def _drop(groups: dict[WorkerClass, dict[int, None]], worker: PoolWorker) -> None:
    group = groups[worker.worker_class]
    del group[worker.number]
    if not group:
        del groups[worker.worker_class]
