"""Leases: which worker serves which owner, and what it may use. Pure.

An owner asks with an absolute ``LeaseDemand`` per scheduling key; the table answers with grants as long as
resources and workers last, asks the pool for more workers, takes idle or overlong leases back when
somebody else waits (``pressure.py``), and places actors by the same rules from the same book.

    demand ──► queue ──(resources fit, worker idle)──► lease ──► returned │ ended │ worker exited
                 ▲                                                     │
                 └───────────── still missing workers ◄────────────────┘

Called by node.service with messages and ``now``. Effects: ``("send", process, Message)``,
``("start"|"exit", …)`` of the pool, ``("gcs", Message)``, ``("warn", job_id, text)``.

Invariants: lease numbers grow over the whole node; a worker serves at most one lease; the book holds
exactly what the leases hold; what an owner says counts only for its own leases, what a worker says only
for the lease that it serves now.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from minray._base.groups import plain
from minray._base.resources import describe
from minray.node import pressure
from minray.node.actor_placement import ActorPlacements
from minray.node.book import ResourceBook, ResourceIds, cpus_of
from minray.node.bundles import Bundles
from minray.node.demands import Demand, DemandKey, DemandQueue, WorkerClass
from minray.node.job_ends import JobEnds
from minray.node.spillover import Spillover
from minray.node.view import View, describe_node
from minray.node.worker_pool import IDLE, LEASED, LEAVING, MAX_FAILED_STARTS, STARTING, Effect, PoolWorker, WorkerPool
from minray.wire.messages import (
    Address,
    CreateActor,
    Died,
    LeaseConfirm,
    LeaseDemand,
    LeaseGrant,
    LeaseInfeasible,
    LeaseRevoke,
    Resources,
    StartActor,
)

OWNER_GONE_GRACE_S = 1.0  # what a worker gets to stop serving an owner that has died


@dataclass(slots=True, eq=False)
class Lease:
    """One worker lent to one owner, or dedicated to one actor."""

    no: int
    demand: Demand
    number: int  # of the worker
    worker_id: bytes
    held: Resources
    ids: ResourceIds
    since: float
    lent: Resources = field(default_factory=dict)  # CPUs given to others while the worker is blocked
    blocked: bool = False
    revoked: bool = False
    kill_at: float | None = None  # the owner is gone: when patience ends

    def booked(self) -> Resources:
        """What it holds at this moment."""
        return {name: n for name, n in self.held.items() if name not in self.lent} if self.lent else self.held


class LeaseTable:
    """All demands and leases of one node."""

    def __init__(
        self,
        node_id: bytes,
        totals: Resources,
        pool: WorkerPool,
        *,
        view: View | None = None,
        labels: dict[str, str] | None = None,
        first_no: int = 0,
        infeasible_grace_s: float = 10.0,
        quantum_s: float = 0.05,
        cap_patience_s: float = 1.0,
    ) -> None:
        self.node_id = node_id
        self.pool = pool
        self.book = ResourceBook(totals)
        self.queue = DemandQueue()
        self.leases: dict[int, Lease] = {}
        self.demands: dict[tuple[bytes, DemandKey], Demand] = {}
        self.addresses: dict[bytes, Address] = {}  # of everybody who has registered
        self.actors = ActorPlacements(self)
        self.bundles = Bundles(self)
        self.job_ends = JobEnds(self)
        self.away = Spillover(self, view if view is not None else View(node_id), labels or {})
        self.infeasible: dict[tuple[bytes, DemandKey], Demand] = {}
        self.quantum_s = quantum_s
        self.cap_patience_s = cap_patience_s
        self.capped_since: float | None = None  # task workers are at the soft cap and somebody waits
        self.reserved: Demand | None = None  # others are held back for it
        self.stall_at: float | None = None  # when somebody has waited for too long
        self.wake_at: float | None = None  # when a lease becomes old enough to be revoked
        self.memory_hold: float | None = None  # memory has run out: until then nothing begins beside what runs
        self.last_start_failure = ""
        self.homes: dict[bytes, WorkerClass] = {}  # of drivers, and of jobs
        self._doomed: dict[int, Lease] = {}  # whose owners are gone: they have a kill_at
        self.grace_s = infeasible_grace_s
        self._last_no = first_no  # unique in the cluster: each node begins elsewhere

    # -- who there is ------------------------------------------------------------------------------

    def driver_joined(self, driver: bytes, address: Address, job: WorkerClass) -> None:
        """A driver has registered: ``job`` is what its plain tasks run in."""
        self.addresses[driver] = address
        self.homes[driver] = job
        self.homes[job.job_id] = job

    def stranger_joined(self, owner: bytes, address: Address, job: WorkerClass) -> None:
        """An owner of another node asks for workers here: plain tasks of it run in ``job``."""
        self.addresses[owner] = address
        self.homes[owner] = job
        self.away.strangers.add(owner)

    def home(self, owner: bytes, job_id: bytes = b"") -> WorkerClass:
        """What the plain tasks of ``owner`` run in: the environment of the owner itself, or of its job."""
        worker = self.pool.by_id.get(owner)
        if worker is not None:
            return worker.worker_class
        return self.homes.get(owner) or self.homes.get(job_id) or WorkerClass(job_id)

    # -- what owners say ---------------------------------------------------------------------------

    def demand(self, owner: bytes, msg: LeaseDemand, now: float) -> list[Effect]:
        """An owner states how many workers it wants for a key."""
        place = (owner, msg.key)
        demand = self.demands.get(place)
        if owner not in self.addresses:
            return []  # it has left, or its job has ended: a last wish must not start workers
        wanted = self.away.wanted_here(owner, msg)
        if demand is None:
            if wanted <= 0:
                return []
            worker_class = self.home(owner).with_env(msg.env_vars)
            demand = Demand(owner, msg.key, worker_class, 0, msg.resources, msg.depth, msg.description)
            self.demands[place] = demand
        if demand.missing <= 0:
            demand.since = now
        demand.kept = max(0, demand.missing)
        demand.wanted = wanted
        demand.depth, demand.resources = msg.depth, msg.resources
        demand.strategy, demand.hold, demand.again = msg.strategy, msg.hold, msg.again
        if demand.missing > 0 or (wanted > 0 and self.bundles.closes(demand)):
            return self.admit(demand, now) + self.schedule(now)
        self._settle(demand)
        # fewer wanted: what is granted beyond that may be revoked for somebody else
        return self.schedule(now) if self.queue else self.job_ends.sweep(now)

    def view_changed(self, now: float) -> list[Effect]:
        """Other nodes have joined, left, or have other resources free."""
        effects: list[Effect] = []
        for demand in list(self.infeasible.values()):
            if demand.actor is None:
                effects += self.admit(demand, now)
        return effects + (self.schedule(now) if self.queue else self.job_ends.sweep(now))

    def returned(self, owner: bytes, lease_no: int, retire: bool, now: float) -> list[Effect]:
        """An owner needs a lease no more."""
        lease = self.leases.get(lease_no)
        if lease is None or lease.demand.owner != owner or lease.demand.actor is not None:
            return []  # it crossed with the end of that lease
        self.end(lease)
        effects: list[Effect] = []
        if retire:
            effects = self.pool.leave(lease.number, now, graceful=True, reason="max_calls is reached")
        else:
            self.pool.release(lease.number, now)
        return effects + self.schedule(now)

    def kill(self, owner: bytes, lease_no: int, now: float) -> list[Effect]:
        """An owner wants the worker of its lease ended by force."""
        lease = self.leases.get(lease_no)
        if lease is None or lease.demand.owner != owner:
            return []
        reason = "its owner cancelled the task by force"
        return self.pool.leave(lease.number, now, graceful=False, reason=reason)

    def owner_gone(self, owner: bytes, now: float) -> list[Effect]:
        """An owner has died or left: nothing is granted to it, and what runs for it is stopped."""
        effects: list[Effect] = []
        self.addresses.pop(owner, None)
        self.homes.pop(owner, None)
        self.away.owner_gone(owner)
        for demand in [d for d in self.demands.values() if d.owner == owner and d.actor is None]:
            self.withdraw(demand)
            for no in sorted(demand.leases):
                lease = self.leases[no]
                if lease.kill_at is None:
                    lease.kill_at = now + OWNER_GONE_GRACE_S
                    self._doomed[no] = lease
                    effects += self.revoke(lease)
        return effects + self.schedule(now)

    # -- what workers say --------------------------------------------------------------------------

    def registered(self, number: int, address: Address, now: float) -> list[Effect]:
        """A worker is ready."""
        worker = self.pool.registered(number, now)
        if worker is None:
            return []
        if worker.state == LEAVING:
            return self.pool.leave(number, now, graceful=True, reason="it is not needed any more")
        self.addresses[worker.worker_id] = address
        self.job_ends.loosen(worker.worker_class.job_id)
        return self.schedule(now)

    def ended(self, worker_id: bytes, lease_no: int, now: float) -> list[Effect]:
        """A worker has stopped serving a revoked lease."""
        lease = self._lease_of(worker_id, lease_no)
        if lease is None or lease.demand.actor is not None:
            return []  # its owner returned it meanwhile
        self.end(lease)
        self.pool.release(lease.number, now)
        return self.schedule(now)

    def blocked(self, worker_id: bytes, lease_no: int, now: float) -> list[Effect]:
        """User code there waits for the runtime: its CPUs (nothing else) may be lent."""
        lease = self._lease_of(worker_id, lease_no)
        if lease is None or lease.blocked:
            return []
        lease.blocked = True
        lease.lent = cpus_of(lease.held)
        self.book.lend(lease.lent)
        return self.schedule(now)

    def unblocked(self, worker_id: bytes, lease_no: int, now: float) -> list[Effect]:
        """It goes on, at once; the balance may be negative for a while."""
        lease = self._lease_of(worker_id, lease_no)
        if lease is None or not lease.blocked:
            return []
        self.book.retake(lease.lent)
        lease.blocked, lease.lent = False, {}
        return []

    def connection_lost(self, number: int, now: float) -> None:
        """A worker does not answer any more: it is given to nobody until its parent says how it ended."""
        worker = self.pool.workers.get(number)
        if worker is not None and worker.state in (IDLE, LEASED):
            self.pool.leave(number, now, graceful=False, reason="")

    def _lease_of(self, worker_id: bytes, lease_no: int) -> Lease | None:
        worker = self.pool.by_id.get(worker_id)
        if worker is None or not worker.lease_no:
            return None
        lease = self.leases.get(worker.lease_no)
        if lease is None or lease_no != (lease.no if lease.demand.actor is None else -1):
            return None
        return lease

    def exited(
        self, number: int, cause: dict[str, Any], running: tuple[int, int, int], now: float
    ) -> tuple[PoolWorker | None, list[Effect]]:
        """A worker's parent has reaped it. ``running``: lease, seq and attempt of the task that it started
        last."""
        worker = self.pool.exited(number)
        if worker is None:
            return None, []
        effects: list[Effect] = []
        lease = self.leases.get(worker.lease_no)
        if lease is not None:
            self.end(lease)
            actor = lease.demand.actor
            if actor is not None:
                effects += self.actors.ended(actor, cause)
            else:
                seq, attempt = running[1:] if running[0] == lease.no else (-1, -1)
                died = Died(worker.worker_id, lease.no, seq, attempt, cause)
                effects.append(("send", lease.demand.owner, died))
        if self.pool.failed_starts.get(worker.worker_class):
            self.last_start_failure = str(cause.get("text", ""))
            effects += self._fail_class(worker.worker_class, now)
        return worker, effects + self.owner_gone(worker.worker_id, now)

    # -- what the GCS and drivers say --------------------------------------------------------------

    def start_actor(self, msg: StartActor, now: float) -> list[Effect]:
        """Dedicate a worker to an actor, once per incarnation."""
        return self.actors.place(msg, now)

    def stop_actor(
        self, actor_id: bytes, incarnation: int, now: float, *, graceful: bool, reason: str
    ) -> list[Effect]:
        """End an actor's worker, or its wait for one."""
        return self.actors.stop(actor_id, incarnation, now, graceful=graceful, reason=reason)

    def prestart(self, job_id: bytes, count: int, now: float) -> list[Effect]:
        """A driver came: have workers ready for it."""
        return self.pool.prestart(self.home(b"", job_id), count, now)

    # -- granting ----------------------------------------------------------------------------------

    def admit(self, demand: Demand, now: float) -> list[Effect]:
        """Queue a demand, let other nodes have it, or complain that nothing can ever satisfy it."""
        place = (demand.owner, demand.key)
        parked = self.bundles.screen(demand)
        if parked is not None:
            return parked
        effects: list[Effect] = []
        if demand.actor is None:
            self.away.expire(now)
            here, effects = self.away.route(demand)
            if demand.missing <= 0 or not here:
                return effects
        if self.away.may_run_here(demand):
            self.infeasible.pop(place, None)
            demand.fatal_at = None
            self.queue.add(demand)
            return effects
        if place in self.infeasible:
            return effects
        demand.fatal_at = now + self.grace_s
        self.infeasible[place] = demand
        if demand.actor is not None:
            return [*effects, ("warn", demand.worker_class.job_id, self._infeasible_text(demand))]
        assert isinstance(demand.key, int)
        warning = LeaseInfeasible(demand.key, False, self._infeasible_text(demand))
        return [*effects, ("send", demand.owner, warning)]

    def _infeasible_text(self, demand: Demand) -> str:
        labels = self.away.labels_of(demand)
        here = describe_node(self.book.totals, self.away.labels, labels)
        others = self.away.view.describe_totals(labels)
        return (
            f"{demand.description} asks for {describe(plain(demand.resources))}{self.away.describe(demand)}, and no "
            f"node has {'these labels and ' if labels else ''}that much: "
            f"node {self.node_id.hex()[:8]} has {here} in all"
            f"{'; ' + others if others else ''}. Ask for less, or start a node that has it."
        )

    def park(self, demand: Demand, fatal_at: float) -> None:
        """It can run nowhere now; if that does not change until then, it fails."""
        demand.fatal_at = fatal_at
        self.queue.discard(demand)
        self.infeasible[(demand.owner, demand.key)] = demand

    def fail(self, demand: Demand, text: str) -> list[Effect]:
        """Tell whoever asked that this demand will never be satisfied."""
        self.withdraw(demand)
        if demand.actor is not None:
            return self.actors.ended(demand.actor, {"text": text, "unschedulable": True, "expected": False})
        assert isinstance(demand.key, int)
        return [("send", demand.owner, LeaseInfeasible(demand.key, True, text))]

    def give_up(self, demand: Demand, count: int) -> None:
        """So many of its workers are not to be granted here."""
        demand.wanted -= count
        self._settle(demand)

    def withdraw(self, demand: Demand) -> None:
        """Nothing more is to be granted to it."""
        demand.wanted = 0
        self._settle(demand)

    def schedule(self, now: float) -> list[Effect]:
        """Grant what can be granted, then start workers and revoke leases for those who still wait."""
        effects = self.job_ends.sweep(now)
        pressure.let_go(self, now)
        before = self.reserved
        effects += self._serve(now)
        if before is not None and self.reserved is not before:
            effects += self._serve(now)  # those who were held back for it
        return effects

    def _serve(self, now: float) -> list[Effect]:
        effects: list[Effect] = []
        if self.queue and (self.pool.has_idle() or self.bundles.waiting):
            self.queue.serve(lambda demand: self._grant(demand, now, effects))
        self.wake_at = None
        if not self.queue:
            self.capped_since = self.reserved = self.stall_at = self.away.decline_at = self.away.booked_until = None
            return effects
        effects += pressure.order_starts(self, now)
        self.away.expire(now)
        return effects

    def _grant(self, demand: Demand, now: float, effects: list[Effect]) -> bool:
        if demand.bundles:
            return not pressure.held_back(self, demand) and self.bundles.grant(demand, now, effects)
        if not self.pool.idle(demand.worker_class) or not self.book.fits(demand.resources):
            return False
        if pressure.held_back(self, demand) or pressure.short_of_memory(self, now):
            return False
        actor = demand.actor
        no = self._last_no + 1
        worker = self.pool.take(demand.worker_class, "actor" if actor else "lease", no, now)
        assert worker is not None
        self._last_no = no
        held = actor.lifetime_resources if actor is not None else demand.resources
        ids = self.book.take(held)
        lease = Lease(no, demand, worker.number, worker.worker_id, held, ids, now)
        self.leases[no] = lease
        demand.leases.add(no)
        demand.since = now
        demand.reserved_at = None
        demand.warned = False
        if self.reserved is demand:
            self.reserved = None
        if actor is not None:
            order = CreateActor(actor.actor_id, actor.incarnation, actor.spec, ids)
            effects.append(("send", worker.worker_id, order))
            return True
        owner = self.addresses.get(demand.owner, (self.node_id, demand.owner, ""))
        confirm = LeaseConfirm(no, owner, demand.worker_class.job_id, held, ids)
        effects.append(("send", worker.worker_id, confirm))
        assert isinstance(demand.key, int)
        grant = LeaseGrant(demand.key, no, self.addresses[worker.worker_id], ids)
        effects.append(("send", demand.owner, grant))
        return True

    def revoke(self, lease: Lease) -> list[Effect]:
        """Ask the worker to end a lease, once."""
        if lease.revoked:
            return []
        lease.revoked = True
        return [("send", lease.worker_id, LeaseRevoke(lease.no))]

    def end(self, lease: Lease) -> None:
        """Forget a lease and give back what it holds."""
        del self.leases[lease.no]
        self._doomed.pop(lease.no, None)
        self.book.give(lease.booked(), lease.ids)
        demand = lease.demand
        if self.bundles.closing:
            self.bundles.lease_ended(lease)
        demand.leases.discard(lease.no)
        if demand.actor is not None:
            demand.wanted = 0
        self._settle(demand)
        worker = self.pool.workers.get(lease.number)
        if worker is not None and worker.state == LEAVING:
            worker.lease_no = 0

    def _settle(self, demand: Demand) -> None:
        """Put a demand where it belongs after its numbers have changed."""
        place = (demand.owner, demand.key)
        if demand.missing > 0:
            if place not in self.infeasible:
                self.queue.add(demand)
            return
        self.queue.discard(demand)
        self.infeasible.pop(place, None)
        demand.fatal_at = None
        if demand.wanted == 0 and not demand.leases:
            self.demands.pop(place, None)
            self.job_ends.loosen(demand.worker_class.job_id)

    # -- time --------------------------------------------------------------------------------------

    def tick(self, now: float) -> list[Effect]:
        """What a moment that ``next_deadline`` named brings."""
        effects = self.pool.tick(now)
        self.away.expire(now)
        for demand in [d for d in self.infeasible.values() if d.fatal_at is not None and d.fatal_at <= now]:
            effects += self.fail(demand, self.away.why_not(demand) or self._infeasible_text(demand))
        for lease in list(self._doomed.values()):
            if lease.kill_at is not None and lease.kill_at <= now:
                del self._doomed[lease.no]
                effects += self.pool.leave(lease.number, now, graceful=False, reason="its owner has died")
        for worker_class in list(self.pool.failed_starts):
            effects += self._fail_class(worker_class, now)
        return effects + self.schedule(now)

    def _fail_class(self, worker_class: WorkerClass, now: float) -> list[Effect]:
        """If workers of this class die again and again before they can work, whoever waits hears it now."""
        if not self.pool.gave_up(worker_class, now):
            return []
        waiting = [d for d in self.queue if d.worker_class == worker_class]
        effects: list[Effect] = []
        for demand in waiting:
            text = (
                f"{demand.description} has no worker to run on: {MAX_FAILED_STARTS} in a row ended before "
                f"they could work; the last one: {self.last_start_failure or 'unknown'}"
            )
            effects += self.fail(demand, text)
        return effects

    def next_deadline(self) -> float | None:
        """When ``tick`` should be called next; None: not before something happens."""
        moments = [d.fatal_at for d in self.infeasible.values() if d.fatal_at is not None]
        moments += [x.kill_at for x in self._doomed.values() if x.kill_at is not None]
        if self.reserved is not None and self.reserved.reserved_at is not None:
            moments.append(self.reserved.reserved_at + pressure.RESERVE_S)
        if self.stall_at is not None:
            moments.append(self.stall_at)
        if self.wake_at is not None:
            moments.append(self.wake_at)
        moments += [moment for moment in (self.away.decline_at, self.away.booked_until) if moment is not None]
        if self.memory_hold is not None and self.queue:
            moments.append(self.memory_hold)
        pool_full = self.pool.task_workers >= self.pool.hard or self.pool.count(STARTING)
        if self.capped_since is not None and not pool_full:
            moments.append(self.capped_since + self.cap_patience_s)
        pool = self.pool.next_deadline()
        if pool is not None:
            moments.append(pool)
        return min(moments, default=None)

    def check_invariants(self) -> None:
        """Book, leases, demands and pool tell the same story."""
        self.pool.check_invariants()
        self.queue.check_invariants()
        self.bundles.check_invariants()
        self.book.check_invariants([*self.bundles.holdings(), *(x.booked() for x in self.leases.values())])
        served: set[int] = set()
        for no, lease in self.leases.items():
            assert lease.no == no <= self._last_no
            assert lease.number not in served, f"worker {lease.number} serves two leases"
            served.add(lease.number)
            worker = self.pool.workers[lease.number]
            assert worker.lease_no == no and worker.worker_id == lease.worker_id, (worker, lease)
            assert no in lease.demand.leases
            assert not lease.lent or lease.blocked
        assert self._doomed.keys() <= self.leases.keys()
        for place, demand in self.demands.items():
            assert place == (demand.owner, demand.key)
            assert demand.leases <= self.leases.keys(), demand
            assert demand.wanted or demand.leases, f"{demand} is over but kept"
            waits = demand in self.queue
            assert waits == (demand.missing > 0 and place not in self.infeasible), demand
        for demand in self.queue:
            assert self.demands[(demand.owner, demand.key)] is demand
        self.actors.check_invariants()
