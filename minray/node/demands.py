"""Who waits for workers, and who is served next. Pure.

An owner states, per scheduling key, how many workers it wants in all (``Demand.wanted``, absolute). The
demands that are not satisfied wait here. Order: deeper tasks first (somebody above waits for them), then
the owners in turn, then the keys of an owner in turn. Actors to be placed wait in the same queue, as a
demand for one worker each.

Called by node.leases. Invariant: a demand is in the queue exactly once or not at all; the turn of an
owner or a key moves on only when it was served, here or by another node.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

from minray.wire.messages import Resources

# A key of an owner: its own number, or ("actor", actor_id, incarnation).
DemandKey = int | tuple[str, bytes, int]


@dataclass(frozen=True, slots=True)
class WorkerClass:
    """What a worker was started for: only equals share it."""

    job_id: bytes
    env_vars: tuple[tuple[str, str], ...] = ()

    def with_env(self, env_vars: dict[str, str]) -> WorkerClass:
        """What a child asks for on top of what its parent has."""
        if not env_vars:
            return self
        return WorkerClass(self.job_id, tuple(sorted({**dict(self.env_vars), **env_vars}.items())))


@dataclass(slots=True, eq=False)
class ActorPlacement:
    """What a demand carries that places an actor instead of asking for a lease."""

    actor_id: bytes
    incarnation: int
    spec: dict[str, Any]
    lifetime_resources: Resources
    started: tuple[Any, Any] | None = None  # its address, or what __init__ raised, once it has said so


@dataclass(slots=True, eq=False)
class Demand:
    """One owner's wish for workers of one kind."""

    owner: bytes
    key: DemandKey
    worker_class: WorkerClass
    wanted: int
    resources: Resources  # what must be free for a grant
    depth: int
    description: str
    actor: ActorPlacement | None = None
    strategy: Any = None  # see _base.options.Strategy
    again: bool = True  # its tasks are tried again if their worker dies
    hold: bool = False  # a stranger's, to be queued here and not to be declined
    bundles: bool = False  # of placement groups, that wait for resources but for no worker (see bundles)
    leases: set[int] = field(default_factory=set)
    since: float = 0.0  # waiting since
    fatal_at: float | None = None  # infeasible: when the grace ends
    reserved_at: float | None = None  # since when others are held back for it
    warned: bool = False  # its user knows that it waits for actors
    kept: int = 0  # of what is missing: what SPREAD has left here already

    @property
    def missing(self) -> int:
        """How many workers are still to be granted."""
        return self.wanted - len(self.leases)

    @property
    def excess(self) -> int:
        """How many granted workers its owner did not ask to keep."""
        return len(self.leases) - self.wanted


class DemandQueue:
    """The waiting demands in the order of service."""

    def __init__(self) -> None:
        # depth → owner → key → demand; dicts keep the order of turns
        self._levels: dict[int, dict[bytes, dict[DemandKey, Demand]]] = {}
        self._where: dict[tuple[bytes, DemandKey], int] = {}

    def __len__(self) -> int:
        return len(self._where)

    def __contains__(self, demand: Demand) -> bool:
        return (demand.owner, demand.key) in self._where

    def add(self, demand: Demand) -> None:
        """Let it wait; no effect if it does already (its depth may have changed, though)."""
        place = (demand.owner, demand.key)
        depth = self._where.get(place)
        if depth is not None:
            if depth == demand.depth:
                self._levels[depth][demand.owner][demand.key] = demand
                return
            self._remove(place, depth)
        self._where[place] = demand.depth
        self._levels.setdefault(demand.depth, {}).setdefault(demand.owner, {})[demand.key] = demand

    def discard(self, demand: Demand) -> None:
        """It does not wait any more."""
        place = (demand.owner, demand.key)
        depth = self._where.get(place)
        if depth is not None:
            self._remove(place, depth)

    def _remove(self, place: tuple[bytes, DemandKey], depth: int) -> None:
        del self._where[place]
        level = self._levels[depth]
        owner = level[place[0]]
        del owner[place[1]]
        if not owner:
            del level[place[0]]
            if not level:
                del self._levels[depth]

    def __iter__(self) -> Iterator[Demand]:
        """All of them, in the order of the first turn; the queue must not change meanwhile."""
        for depth in sorted(self._levels, reverse=True):
            for keys in self._levels[depth].values():
                yield from keys.values()

    def serve(self, grant_one: Callable[[Demand], bool]) -> None:
        """Offer turns until nobody can be served.

        Args:
            grant_one: gives the demand one worker if that is possible now and says whether it did; it
                must not change the queue. A demand that misses nothing any more leaves the queue here.
        """
        for depth in sorted(self._levels, reverse=True):
            served = True
            while served:
                served = False
                for owner in list(self._levels.get(depth, ())):
                    served |= self._serve_owner(depth, owner, grant_one)

    def _serve_owner(self, depth: int, owner: bytes, grant_one: Callable[[Demand], bool]) -> bool:
        level = self._levels[depth]
        keys = level[owner]
        demand = next((d for d in keys.values() if grant_one(d)), None)
        if demand is None:
            return False
        self.turn_over(demand)
        if demand.missing <= 0:
            self._remove((owner, demand.key), depth)
        return True

    def turn_over(self, demand: Demand) -> None:
        """It was served: behind the others with it, as owner and as key."""
        depth = self._where.get((demand.owner, demand.key))
        if depth is not None:
            level = self._levels[depth]
            keys = level[demand.owner] = level.pop(demand.owner)
            keys[demand.key] = keys.pop(demand.key)

    def check_invariants(self) -> None:
        """The index and the levels agree, and everybody here misses something."""
        count = 0
        for depth, level in self._levels.items():
            assert level, f"level {depth} is empty"
            for owner, keys in level.items():
                assert keys, f"owner {owner.hex()} waits for nothing"
                for key, demand in keys.items():
                    assert (demand.owner, demand.key, demand.depth) == (owner, key, depth), demand
                    assert self._where.get((owner, key)) == depth, demand
                    assert demand.missing > 0, f"{demand} is satisfied but waits"
                    count += 1
        assert count == len(self._where), "the index has more than the levels"
