"""Actors on this node: waiting for a worker, running in one, ended. Pure.

An actor is placed like a lease demand for one worker: what ``placement_resources`` name must be free at
that moment, and only ``lifetime_resources`` stay booked (a default actor needs a CPU to be placed and none
to live). The orders of the GCS are idempotent by (actor_id, incarnation).

Called by node.leases, of whose table it is a part. Invariant: an incarnation is placed at most once, and
exactly one ActorEnded follows each that was ever ordered.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from minray.node.demands import ActorPlacement, Demand, DemandKey
from minray.node.worker_pool import Effect
from minray.wire.messages import ActorEnded, StartActor

if TYPE_CHECKING:
    from minray.node.leases import Lease, LeaseTable

REMEMBERED = 10_000  # actors whose last incarnation is kept, to recognise a repeated order


def _key(actor_id: bytes, incarnation: int) -> DemandKey:
    return ("actor", actor_id, incarnation)


class ActorPlacements:
    """The actors of one LeaseTable."""

    def __init__(self, table: LeaseTable) -> None:
        self._table = table
        self._demands: dict[tuple[bytes, int], Demand] = {}  # waiting or running
        self._seen: dict[bytes, int] = {}  # actor → newest incarnation ever ordered

    def place(self, msg: StartActor, now: float) -> list[Effect]:
        """An order of the GCS."""
        if self._seen.get(msg.actor_id, -1) >= msg.incarnation:
            return []
        self._seen.pop(msg.actor_id, None)
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
            since=now,
        )
        self._demands[(msg.actor_id, msg.incarnation)] = demand
        table = self._table
        table.demands[(owner, demand.key)] = demand
        effects = table.admit(demand, spec.get("strategy"), now)
        return effects + table.schedule(now)

    def stop(
        self, actor_id: bytes, incarnation: int, now: float, *, graceful: bool, reason: str
    ) -> list[Effect]:
        """An order of the GCS, or the end of a job."""
        demand = self._demands.get((actor_id, incarnation))
        if demand is None:
            if self._seen.get(actor_id, -1) < incarnation:
                self._seen[actor_id] = incarnation  # the start that may still come is void
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
        return [("gcs", ActorEnded(actor.actor_id, actor.incarnation, cause))]

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
        for (actor_id, incarnation), demand in self._demands.items():
            assert demand.key == _key(actor_id, incarnation)
            assert self._table.demands[(demand.owner, demand.key)] is demand
            assert demand.wanted == 1 and len(demand.leases) <= 1, demand
            assert self._seen.get(actor_id, incarnation) >= incarnation


def is_detached(demand: Demand) -> bool:
    """Whether the actor outlives its job."""
    return demand.actor is not None and demand.actor.spec.get("lifetime") == "detached"
