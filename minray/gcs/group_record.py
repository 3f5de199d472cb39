"""A placement group as the GCS knows it: its record, its states, one attempt to reserve. Pure.

The picture, the rules and who changes what are in ``placement_groups``; this file is its nouns, and how a group is
shown to users. Invariant: only PlacementGroupTable changes a record.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import Any

from minray._base.groups import of_users
from minray._base.labels import describe_selector
from minray._base.resources import describe, from_units
from minray.gcs.bundle_placement import NodeRoom, Question, Resources
from minray.gcs.effects import Row

PENDING, PREPARING, CREATED = "PENDING", "PREPARING", "CREATED"
RESCHEDULING, REMOVED = "RESCHEDULING", "REMOVED"
TRIED, REFUSED, READY, LOST, OVER = "tried", "refused", "ready", "lost", "over"

NEXT: dict[tuple[str, str], str] = {
    (PENDING, TRIED): PREPARING,
    (PREPARING, REFUSED): PENDING,
    (PREPARING, READY): CREATED,
    (CREATED, LOST): RESCHEDULING,
    (RESCHEDULING, TRIED): RESCHEDULING,
    (RESCHEDULING, REFUSED): RESCHEDULING,
    (RESCHEDULING, LOST): RESCHEDULING,
    (RESCHEDULING, READY): CREATED,
    (PENDING, OVER): REMOVED,
    (PREPARING, OVER): REMOVED,
    (CREATED, OVER): REMOVED,
    (RESCHEDULING, OVER): REMOVED,
}

PATIENCE_S, MAX_PATIENCE_S = 1.0, 30.0  # of a trial on several nodes
OVERTAKEN = 4  # so often, before a group is guarded
GUARD_S, MAX_GUARD_S = 2.0, 60.0
NODES_NAMED = 10

Waiter = tuple[Any, ...]  # opaque: who asked


class Trial:
    """One attempt to reserve."""

    __slots__ = ("claims", "nodes", "unanswered", "until")

    def __init__(self, nodes: dict[bytes, list[int]], *, claims: bool, until: float | None) -> None:
        self.nodes = nodes  # node → the bundles that it is to take
        self.unanswered = set(nodes)
        self.claims = claims  # counted in the ledger; not, if it waits on one node for room
        self.until = until


class Group:
    """One group's record; only PlacementGroupTable changes it."""

    def __init__(self, spec: dict[str, Any], number: int, now: float) -> None:
        self.spec = spec
        self.group_id: bytes = spec["group_id"]
        self.number = number  # in the order of creation
        self.state = PENDING
        self.attempt = 0
        self.places: dict[int, tuple[bytes, int]] = {}  # bundle → node and attempt
        self.trial: Trial | None = None
        self.waiters: dict[Waiter, None] = {}
        self.patience = PATIENCE_S
        self.retry_at = 0.0
        self.refused: set[bytes] = set()  # nodes that said no
        self.overtaken = 0  # by younger groups, since it was last guarded
        self.tolerance = OVERTAKEN
        self.guard_s = GUARD_S
        self.guard: tuple[float, frozenset[bytes]] | None = None  # until when, which nodes
        self.made_at, self.tried_at, self.created_at = now, now, now

    @property
    def bundles(self) -> list[dict[str, int]]:
        return self.spec["bundles"]  # type: ignore[no-any-return]

    @property
    def detached(self) -> bool:
        return bool(self.spec.get("lifetime") == "detached")

    @property
    def name_key(self) -> tuple[str, str] | None:
        name = self.spec.get("name")
        return (self.spec.get("namespace") or "", name) if name else None

    def what(self) -> str:
        """As messages call it."""
        name = self.spec.get("name")
        return f"placement group {self.group_id.hex()}" + (f" ({name!r})" if name else "")

    def question(self) -> Question:
        """Where could what is missing go?"""
        missing = {i: bundle for i, bundle in enumerate(self.bundles) if i not in self.places}
        selectors = {i: s for i, s in enumerate(self.spec.get("selectors") or []) if s and i in missing}
        settled = Counter(node_id for node_id, _ in self.places.values())
        return Question(missing, self.spec["strategy"], selectors, settled, self.spec.get("soft_target"))

    def shape(self) -> Any:
        """Equal for groups whose questions have equal answers."""
        if self.places or self.refused or self.spec.get("selectors") or self.spec.get("soft_target"):
            return self.group_id
        return (self.spec["strategy"], *(tuple(sorted(bundle.items())) for bundle in self.bundles))

    def row(self) -> Row:
        return (self.spec, self.state, self.attempt, self.places, self.number)

    def holdings(self) -> Iterator[tuple[bytes, Resources]]:
        """What the ledger has for it: (node, bundle)."""
        for index, (node_id, _) in self.places.items():
            yield node_id, self.bundles[index]
        if self.trial is not None and self.trial.claims:
            for node_id, indices in self.trial.nodes.items():
                for index in indices:
                    yield node_id, self.bundles[index]

    def public(self) -> dict[str, Any]:
        """As users see it, under Ray's keys."""
        scheduling = {CREATED: "FINISHED", REMOVED: "REMOVED"}.get(self.state, "QUEUED")
        return {
            "placement_group_id": self.group_id.hex(),
            "name": self.spec.get("name") or "",
            "bundles": {i: from_units(bundle) for i, bundle in enumerate(self.bundles)},
            "bundles_to_node_id": {
                i: self.places[i][0].hex() if i in self.places else "" for i in range(len(self.bundles))
            },
            "strategy": self.spec["strategy"],
            "state": PENDING if self.state == PREPARING else self.state,
            "stats": {
                "end_to_end_creation_latency_ms": 1e3 * (self.created_at - self.made_at),
                "scheduling_latency_ms": 1e3 * max(0.0, self.created_at - self.tried_at),
                "scheduling_attempt": self.attempt,
                "highest_retry_delay_ms": 1e3 * self.patience if self.patience > PATIENCE_S else 0.0,
                "scheduling_state": scheduling,
            },
        }

    def asks(self) -> str:
        """Its bundles, those that are alike once."""
        selectors = self.spec.get("selectors") or [None] * len(self.bundles)
        bundles = Counter(
            describe(bundle) + (f" where {describe_selector(selector)}" if selector else "")
            for bundle, selector in zip(self.bundles, selectors, strict=True)
        )
        return " | ".join(f"{n} × ({text})" if n > 1 else f"({text})" for text, n in bundles.items())

    def waits(self, hopeless: bool) -> tuple[str, str, str]:
        """While it lacks a bundle: (which, what it asks for, why it waits)."""
        if self.trial is not None and self.trial.claims:
            why = "nodes are reserving it"
        elif hopeless:
            why = "the nodes that there are can never hold it"
        elif self.trial is not None:
            why = f"in use on node {next(iter(self.trial.nodes)).hex()[:8]}, where it waits"
        else:
            why = "in use on the nodes that could hold it"
        if self.places:
            why += f"; {len(self.places)} of its {len(self.bundles)} bundles have a node"
        return self.what(), f"{self.spec['strategy']} {self.asks()}", why

    def why_hopeless(self, rooms: list[NodeRoom]) -> str:
        """The warning for a group that not even the empty cluster could hold."""
        nodes = [f"node {room.node_id.hex()[:8]} has {describe(of_users(room.free))} in all" for room in rooms]
        shown = "; ".join(nodes[:NODES_NAMED]) + (" …" if len(nodes) > NODES_NAMED else "")
        return (
            f"{self.what()} asks for {self.asks()} with strategy {self.spec['strategy']}, and the cluster cannot hold "
            f"that: {shown or 'it has no node'}. It stays pending until nodes join that can; remove it by "
            "remove_placement_group(), or ask for less."
        )

    def __repr__(self) -> str:
        return f"Group({self.group_id.hex()}, {self.state}, {len(self.places)} of {len(self.bundles)} placed)"
