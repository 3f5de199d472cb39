"""Actors on this node: waiting for a worker, running in one, ended. Pure.

An actor is placed like a lease demand for one worker: what ``placement_resources`` name must be free at
that moment, and only ``lifetime_resources`` stay booked (a default actor needs a CPU to be placed and none
to live). The orders of the GCS are idempotent by (actor_id, incarnation).

Where there are other nodes, an actor does not wait here for what another seems to have free: after a patience
that doubles each time it is *bounced* (ActorEnded with the cause ``bounced``), and the GCS places it anew.

An order for an incarnation that is known here already comes from a head that has lost what we said: it is told
again what became of it. How the latest actors ended is remembered for such a head, too.

Called by node.leases, of whose table it is a part; ``node.service`` asks for deadlines. Invariant: an incarnation
is placed at most once (but for bounces), and an ActorEnded follows each order.
"""

from __future__ import annotations

import heapq
from typing import TYPE_CHECKING, Any

from minray.node.demands import ActorPlacement, Demand, DemandKey
from minray.node.worker_pool import Effect
from minray.wire.messages import ActorEnded, ActorStarted, StartActor

if TYPE_CHECKING:
    from minray.node.leases import Lease, LeaseTable

PATIENCE_S = 0.5  # how long an actor waits here, the first time, if it could run elsewhere
DOUBLINGS = 5
REMEMBERED = 10_000  # actors whose last incarnation is kept, to recognise a repeated order
ENDS = 500  # of these, how many with the cause of their end


def _key(actor_id: bytes, incarnation: int) -> DemandKey:
    return ("actor", actor_id, incarnation)


class ActorPlacements:
    """The actors of one LeaseTable."""

    def __init__(self, table: LeaseTable) -> None:
        self._table = table
        self._demands: dict[tuple[bytes, int], Demand] = {}  # waiting or running
        self._seen: dict[bytes, int] = {}  # actor → newest incarnation ever ordered
        self._ended: dict[bytes, tuple[int, dict[str, Any]]] = {}  # actor → its latest incarnation that ended, and how
        self._checks: list[tuple[float, bytes, int]] = []  # a heap: when to ask whether it had better go
        self._checked: set[tuple[bytes, int]] = set()  # who is in there
        self._parked = False  # somebody waits unchecked: there was no other node

    def place(self, msg: StartActor, now: float) -> list[Effect]:
        """An order of the GCS."""
        if self._seen.get(msg.actor_id, -1) >= msg.incarnation:
            return self._told_again(msg.actor_id, msg.incarnation)
        self._seen.pop(msg.actor_id, None)
        self._ended.pop(msg.actor_id, None)
        self._seen[msg.actor_id] = msg.incarnation
        if len(self._seen) > REMEMBERED:
            del self._seen[next(iter(self._seen))]
        spec = msg.spec
        owner: bytes = spec["owner"][1]
        lifetime = dict(spec.get("lifetime_resources") or {})
        actor = ActorPlacement(msg.actor_id, msg.incarnation, spec, lifetime)
        demand = Demand(
            owner,
            _key(msg.actor_id, msg.incarnation),
            self._table.home(owner, spec["job_id"]).with_env(spec.get("env_vars") or {}),
            1,
            dict(spec.get("placement_resources") or {}),
            0,
            f"actor {spec.get('class_name', '')}",
            actor=actor,
            strategy=spec.get("strategy"),
            since=now,
        )
        self._demands[(msg.actor_id, msg.incarnation)] = demand
        table = self._table
        table.demands[(owner, demand.key)] = demand
        effects = table.admit(demand, now)
        effects += table.schedule(now)
        if not demand.leases and demand.missing > 0:
            self._check_later(actor, now)
        return effects

    def _told_again(self, actor_id: bytes, incarnation: int) -> list[Effect]:
        """What became of an order that was obeyed before."""
        demand = self._demands.get((actor_id, incarnation))
        if demand is None:
            no, cause = self._ended.get(actor_id, (-1, {}))
            known = cause if no == incarnation else {"text": "it ended here before this order came"}
            return [("gcs", ActorEnded(actor_id, incarnation, known))]
        assert demand.actor is not None
        if demand.actor.started is None:
            return []
        return [("gcs", ActorStarted(actor_id, incarnation, *demand.actor.started))]

    def view_changed(self, now: float) -> None:
        """If this is not the only node any more, those that wait may have somewhere to go."""
        if self._parked and self._table.away.view.nodes:
            self._parked = False
            for demand in self._demands.values():
                if demand.actor is not None and not demand.leases:
                    self._check_later(demand.actor, now)

    def _check_later(self, actor: ActorPlacement, now: float) -> None:
        key = (actor.actor_id, actor.incarnation)
        if not self._table.away.view.nodes:
            self._parked = True
        if self._parked or key in self._checked:
            return
        self._checked.add(key)
        patience = PATIENCE_S * 2 ** min(DOUBLINGS, actor.spec.get("bounces", 0))
        heapq.heappush(self._checks, (now + patience, *key))

    def next_deadline(self) -> float | None:
        """When ``tick`` should be called next."""
        return self._checks[0][0] if self._checks else None

    def tick(self, now: float) -> list[Effect]:
        """Let go of those that wait here and seem to have room elsewhere."""
        effects: list[Effect] = []
        while self._checks and self._checks[0][0] <= now:
            _, actor_id, incarnation = heapq.heappop(self._checks)
            self._checked.discard((actor_id, incarnation))
            demand = self._demands.get((actor_id, incarnation))
            if demand is None or demand.actor is None or demand.leases:
                continue
            if self._better_elsewhere(demand):
                effects += self._bounce(demand, demand.actor)
            else:
                self._check_later(demand.actor, now)
        return effects + (self._table.schedule(now) if effects else [])

    def _better_elsewhere(self, demand: Demand) -> bool:
        table, strategy = self._table, demand.strategy
        kind = strategy[0] if isinstance(strategy, tuple) else strategy
        if kind == "affinity" and not strategy[2]:
            return False
        hard = strategy[1] if kind == "labels" else None
        if not table.away.may_run_here(demand):
            return table.away.view.feasible(demand.resources, hard)
        if kind == "affinity" or table.book.fits(demand.resources):
            return False  # it only waits for a worker to start
        return table.away.view.free(demand.resources, hard) is not None

    def _bounce(self, demand: Demand, actor: ActorPlacement) -> list[Effect]:
        self._table.withdraw(demand)
        del self._demands[(actor.actor_id, actor.incarnation)]
        self._seen[actor.actor_id] = actor.incarnation - 1  # it may be sent here again
        cause = {"text": "what it needs is free on another node", "bounced": True}
        self._remember(actor.actor_id, actor.incarnation, cause)
        return [("gcs", ActorEnded(actor.actor_id, actor.incarnation, cause))]

    def stop(
        self, actor_id: bytes, incarnation: int, now: float, *, graceful: bool, reason: str
    ) -> list[Effect]:
        """An order of the GCS, or the end of a job."""
        demand = self._demands.get((actor_id, incarnation))
        if demand is None:
            if self._seen.get(actor_id, -1) < incarnation:
                self._seen[actor_id] = incarnation  # the start that may still come is void
                self._remember(actor_id, incarnation, {"text": reason, "intended": True})
            return []
        lease = self.lease(demand)
        if lease is not None:
            return self._table.pool.leave(lease.number, now, graceful=graceful, reason=reason)
        assert demand.actor is not None
        self._table.withdraw(demand)
        effects = self.ended(demand.actor, {"text": reason, "expected": True})
        return effects + self._table.schedule(now)

    def lease(self, demand: Demand) -> Lease | None:
        """The lease of a placed actor."""
        for no in demand.leases:
            return self._table.leases[no]
        return None

    def ended(self, actor: ActorPlacement, cause: dict[str, Any]) -> list[Effect]:
        """Its worker is gone, or it could never be placed."""
        if self._demands.pop((actor.actor_id, actor.incarnation), None) is None:
            return []
        cause = {**cause, "intended": bool(cause.get("expected"))}
        raised = actor.started[1] if actor.started is not None else None
        kept = cause if raised is None else {**cause, "creation_error": raised}
        self._remember(actor.actor_id, actor.incarnation, kept)
        return [("gcs", ActorEnded(actor.actor_id, actor.incarnation, cause))]

    def _remember(self, actor_id: bytes, incarnation: int, cause: dict[str, Any]) -> None:
        self._ended.pop(actor_id, None)
        self._ended[actor_id] = (incarnation, cause)
        if len(self._ended) > ENDS:
            del self._ended[next(iter(self._ended))]

    def started(self, message: ActorStarted) -> None:
        """Its ``__init__`` has run, or raised."""
        demand = self._demands.get((message.actor_id, message.incarnation))
        actor = demand.actor if demand is not None else None
        if actor is not None:
            actor.started = (message.address, message.error)

    def living(self) -> list[tuple[bytes, int, tuple[Any, Any] | None]]:
        """(actor_id, incarnation, what it said when it had started) of those that wait or run here."""
        found = ((key, demand.actor) for key, demand in self._demands.items())
        return [(*key, actor.started) for key, actor in found if actor is not None]

    def lately_ended(self) -> list[tuple[bytes, int, dict[str, Any]]]:
        """(actor_id, incarnation, cause) of the latest ends, one per actor."""
        return [(actor_id, no, cause) for actor_id, (no, cause) in self._ended.items()]

    def running(self) -> dict[bytes, bytes]:
        """actor_id → worker_id of those that have a worker."""
        found = {}
        for (actor_id, _), demand in self._demands.items():
            lease = self.lease(demand)
            if lease is not None:
                found[actor_id] = lease.worker_id
        return found

    def detached_workers(self, job_id: bytes) -> set[bytes]:
        """Workers of a job that outlive it."""
        found = set()
        for demand in self._demands.values():
            lease = self.lease(demand)
            if lease is not None and demand.worker_class.job_id == job_id and is_detached(demand):
                found.add(lease.worker_id)
        return found

    def job_gone(self, job_id: bytes, spared: set[bytes]) -> list[Effect]:
        """Actors of a job that still wait for a worker end, unless they are detached or their owner lives."""
        effects: list[Effect] = []
        for demand in list(self._demands.values()):
            actor = demand.actor
            assert actor is not None
            if demand.worker_class.job_id != job_id or demand.leases or is_detached(demand):
                continue
            if demand.owner not in spared:
                self._table.withdraw(demand)
                effects += self.ended(actor, {"text": "its job has ended", "expected": True})
        return effects

    def check_invariants(self) -> None:
        """What is kept here is waiting or running, and known to the table."""
        assert self._checked == {check[1:] for check in self._checks} and len(self._checked) == len(self._checks)
        for (actor_id, incarnation), demand in self._demands.items():
            assert demand.key == _key(actor_id, incarnation)
            assert self._table.demands[(demand.owner, demand.key)] is demand
            assert demand.wanted == 1 and len(demand.leases) <= 1, demand
            assert self._seen.get(actor_id, incarnation) >= incarnation


def is_detached(demand: Demand) -> bool:
    """Whether the actor outlives its job."""
    return demand.actor is not None and demand.actor.spec.get("lifetime") == "detached"
