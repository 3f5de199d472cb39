"""The machines of a cluster: who they are, what they have, whether they live, who takes an actor. Pure.

    unknown ──add──▶ ALIVE ──lost (connection, silence, leave)──▶ DEAD: fenced for ever
                       ▲                                            ▲
    expected (of an earlier life of the head) ──add──┘ ──silence────┘

Called by ``service`` when a node joins, reports or is lost, and by ``ActorTable`` through ``place``. A node keeps
its row after its death, so that ``nodes()`` can show it; of the dead only the newest stay.

Placement looks at a sample, so that its price does not grow with the cluster: from a place that moves on, the
first few living nodes whose totals can hold the request (``NodeIndex``); of these it prefers one where that is
free by its latest report, less what was placed there since, and then the one with the fewest actors.

Invariants: the index holds exactly the living nodes; a node that was declared dead never lives again; dicts that
were handed out (to the view, to the node of this process) are never changed.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import chain
from typing import Any

from minray._base.labels import Selector, matches
from minray._base.node_index import NodeIndex
from minray._base.resources import from_units
from minray.gcs.effects import Effects, Row, save
from minray.wire.messages import NodeReport, Resources

TABLE = "nodes"
KEEP_DEAD = 100
SAMPLE = 4


class Unplaceable(Exception):
    """No node can take it, now or later. The text says why."""


@dataclass(slots=True, eq=False)
class Live:
    """What is known of a living node besides its row."""

    totals: Resources
    available: Resources  # as it said last
    free: Resources  # the same, less what was placed there since
    load: int = 0
    waiting: list[tuple[str, Resources, int]] = field(default_factory=list)
    store: dict[str, int] = field(default_factory=dict)


class NodeTable:
    """Every node that lives, and the last ones that died."""

    def __init__(self, keep_dead: int = KEEP_DEAD) -> None:
        self._keep_dead = keep_dead
        self._nodes: dict[bytes, dict[str, Any]] = {}
        self._live: dict[bytes, Live] = {}  # in the order of joining
        self._index = NodeIndex()
        self._expected: set[bytes] = set()  # those who lived when an earlier life of the head ended
        self._heard: dict[bytes, float] = {}  # of those with a deadline; the longest silent first
        self._turn = 0

    def restore(self, rows: list[tuple[bytes, Row]]) -> None:
        """Take over what an earlier life of the head had saved: nodes are expected until they join again."""
        for node_id, (node,) in rows:
            if node["alive"]:
                node = {**node, "alive": False, "death_reason": "has not joined this head again"}
                self._expected.add(node_id)
            self._nodes[node_id] = node

    def expected(self) -> list[bytes]:
        """Those who lived when an earlier life of the head ended, and have not been heard of since."""
        return sorted(self._expected)

    def is_expected(self, node_id: bytes) -> bool:
        """Whether it is one of those."""
        return node_id in self._expected

    def was_head(self, node_id: bytes) -> bool:
        """Whether it lived in the process of the head: then it has ended with that."""
        return bool(self._nodes[node_id].get("is_head"))

    def strangers(self, seen: list[bytes]) -> list[bytes]:
        """Those of them that neither live nor are expected."""
        return [node_id for node_id in seen if node_id not in self._live and node_id not in self._expected]

    # --- joining, reporting, dying ----------------------------------------------------------------

    def add(self, info: dict[str, Any], now: float) -> Effects:
        """A node joins. ``now``: seconds since the epoch."""
        node_id = info["node_id"]
        node = {
            "node_id": node_id,
            "endpoint": info.get("endpoint", ""),
            "address": info.get("address", "127.0.0.1"),
            "hostname": info.get("hostname", ""),
            "node_name": info.get("node_name") or "",
            "resources": dict(info.get("resources") or {}),
            "labels": dict(info.get("labels") or {}),
            "is_head": bool(info.get("is_head")),
            "pid": info.get("pid", 0),
            "start_time": info.get("start_time", 0.0),
            "joined": now,
            "alive": True,
            "death_reason": "",
        }
        self._expected.discard(node_id)
        self._nodes.pop(node_id, None)
        self._nodes[node_id] = node
        self._live[node_id] = Live(node["resources"], node["resources"], node["resources"])
        self._index.put(node_id, node["resources"], node["labels"])
        return [save(TABLE, node_id, (node,))]

    def why_fenced(self, node_id: bytes, again: bool = False) -> str | None:
        """The reason for which a node that wants to join counts as dead; None if it is welcome.

        ``again``: it says that it has been let in before. If it is a stranger here, that was by another head.
        """
        node = self._nodes.get(node_id)
        if node is None and again:
            return "this head does not know it: it is another one than the one that the node had joined"
        if node is None or node["alive"] or node_id in self._expected:
            return None
        return str(node["death_reason"])

    def report(self, node_id: bytes, message: NodeReport) -> tuple[bool, bool]:
        """What a living node says of itself: (whether others should hear of it, whether its totals changed)."""
        live = self._live[node_id]
        bigger = message.totals != live.totals
        changed = bigger or message.available != live.available or message.load != live.load
        live.available = live.free = message.available
        live.load, live.waiting = message.load, message.waiting
        if bigger:
            live.totals = message.totals
            self._index.put(node_id, message.totals)
        return changed, bigger

    def report_store(self, node_id: bytes, store: dict[str, int]) -> None:
        """How much of a living node's objects is on disk."""
        self._live[node_id].store = store

    def lost(self, node_id: bytes, reason: str) -> tuple[bool, Effects]:
        """A node is gone, or has not come again. False if it was neither alive nor expected."""
        if node_id in self._live:
            del self._live[node_id]
            self._index.drop(node_id)
        elif node_id in self._expected:
            self._expected.discard(node_id)
        else:
            return False, []
        self._heard.pop(node_id, None)
        dead = {**self._nodes.pop(node_id), "alive": False, "death_reason": reason}
        self._nodes[node_id] = dead  # last in the order: the dead are forgotten in the order of their deaths
        effects = [save(TABLE, node_id, (dead,))]
        corpses = [key for key, node in self._nodes.items() if not node["alive"] and key not in self._expected]
        for oldest in corpses[: max(0, len(corpses) - self._keep_dead)]:
            del self._nodes[oldest]
            effects.append(save(TABLE, oldest, None))
        return True, effects

    def is_alive(self, node_id: bytes) -> bool:
        """Whether that node is known and lives."""
        return node_id in self._live

    def has_died(self, node_id: bytes) -> bool:
        """Whether that node is known, and counts as dead."""
        return node_id in self._nodes and not self.is_alive(node_id) and not self.is_expected(node_id)

    def death_of(self, node_id: bytes) -> str:
        """Why a node does not live."""
        node = self._nodes.get(node_id)
        return str(node["death_reason"]) if node is not None else "this cluster does not know it"

    # --- deadlines --------------------------------------------------------------------------------

    def heard(self, node_id: bytes, now: float) -> None:
        """It has said something, at ``now`` of the monotonic clock: from now on it has a deadline."""
        self._heard.pop(node_id, None)
        self._heard[node_id] = now

    def overdue(self, now: float, timeout_s: float) -> list[bytes]:
        """Who has been silent for so long."""
        found = []
        for node_id, at in self._heard.items():
            if at + timeout_s > now:
                break
            found.append(node_id)
        return found

    def next_deadline(self, timeout_s: float) -> float | None:
        """When the next node becomes overdue if it stays silent; None if nobody has a deadline."""
        first = next(iter(self._heard.values()), None)
        return None if first is None else first + timeout_s

    def pardon(self, now: float) -> None:
        """It was this process that slept: everybody gets a whole period from now."""
        self._heard = dict.fromkeys(self._heard, now)

    # --- placement --------------------------------------------------------------------------------

    def place(
        self, spec: Mapping[str, Any], actors_per_node: Mapping[bytes, int], avoid: bytes | None = None
    ) -> bytes | None:
        """The node for an actor; None while there is no node at all, or only one that is expected may have it.
        ``avoid``: where it was just refused.

        What no node can ever hold, or has the labels for, goes to its owner's node (or some other) all the same:
        that node warns, waits its grace for machines that join, and then reports it unschedulable. Raises
        Unplaceable for a hard affinity to a node that does not live.
        """
        strategy: Any = spec.get("strategy")
        request = spec.get("placement_resources") or {}
        kind = strategy[0] if isinstance(strategy, tuple) and strategy else strategy
        hard: Selector = {}
        soft: Selector = {}
        if kind == "affinity":
            wanted, is_soft = strategy[1], strategy[2]
            if wanted in self._live and (not is_soft or self._index.holds(wanted, request)):
                return self._booked(bytes(wanted), request)
            if not is_soft and wanted in self._expected:
                return None
            if not is_soft:
                raise Unplaceable(f"its scheduling strategy demands node {wanted.hex()}, which is not alive")
        elif kind == "labels":
            hard, soft = strategy[1] or {}, strategy[2] or {}
        if len(self._live) <= 1 and not self._expected:
            return next(iter(self._live), None)
        chosen = self._choose(request, hard, soft, actors_per_node, avoid)
        if chosen is None and self._expected:
            return None
        if chosen is None:
            home: bytes = spec["owner"][0]
            return home if home in self._live else next(iter(self._live))
        return self._booked(chosen, request)

    def _choose(
        self,
        request: Resources,
        hard: Selector,
        soft: Selector,
        actors_per_node: Mapping[bytes, int],
        avoid: bytes | None,
    ) -> bytes | None:
        best: tuple[tuple[bool, bool, bool, int], bytes] | None = None
        preferred = self._index.candidates(request, self._turn, {**soft, **hard}) if soft else ()
        others = self._index.candidates(request, self._turn, hard)
        for looked, node_id in enumerate(chain(preferred, others)):
            # Who asks next begins with the last one that this one has seen: so all are seen, and none is always first.
            self._turn += looked != 1
            free = self._live[node_id].free
            rank = (
                node_id == avoid,
                any(amount > free.get(name, 0) for name, amount in request.items()),
                bool(soft) and not matches(self._nodes[node_id]["labels"], soft),
                actors_per_node.get(node_id, 0),
            )
            if best is None or rank < best[0]:
                best = (rank, node_id)
            if (looked + 1 == SAMPLE and not best[0][1]) or looked + 1 == 2 * SAMPLE:
                break
        return None if best is None else best[1]

    def _booked(self, node_id: bytes, request: Resources) -> bytes:
        live = self._live[node_id]
        if request:
            live.free = dict(live.free)
            for name, amount in request.items():
                live.free[name] = live.free.get(name, 0) - amount
        return node_id

    # --- what is shown ----------------------------------------------------------------------------

    def living(self) -> list[bytes]:
        """The living nodes, in the order of joining."""
        return list(self._live)

    def row(self, node_id: bytes) -> tuple[Any, ...]:
        """A living node as a row of a ClusterView."""
        node, live = self._nodes[node_id], self._live[node_id]
        return (
            node_id, node["endpoint"], node["address"], live.totals, live.available, node["labels"], live.load,
        )  # fmt: skip

    def public(self) -> list[dict[str, Any]]:
        """Every known node under Ray's keys; memory in bytes, other resources in floats."""
        return [_public(node) for node in self._nodes.values()]

    def status(self) -> list[dict[str, Any]]:
        """Every known node with its use and what waits there, for tools; quantities as users read them."""
        found = []
        for node_id, node in self._nodes.items():
            live = self._live.get(node_id)
            shown = {key: node[key] for key in ("node_name", "address", "hostname", "alive", "death_reason")}
            shown |= {"node_id": node_id.hex(), "labels": node["labels"], "totals": {}, "available": {}}
            shown |= {"load": 0, "waiting": [], "store": {}}
            if live is not None:
                shown["totals"], shown["available"] = from_units(live.totals), from_units(live.available)
                shown["load"], shown["store"] = live.load, live.store
                shown["waiting"] = [(text, from_units(request), n) for text, request, n in live.waiting]
            found.append(shown)
        return found

    def totals(self) -> dict[str, float]:
        """The living nodes' resources, added up."""
        return sum_resources(live.totals for live in self._live.values())

    def available(self, besides: bytes) -> list[Resources]:
        """What is free on each living node by its latest report, ``besides`` excepted."""
        return [live.available for node_id, live in self._live.items() if node_id != besides]

    def check_invariants(self) -> None:
        """Raise AssertionError where the table contradicts itself."""
        living = {node_id for node_id, node in self._nodes.items() if node["alive"]}
        assert self._live.keys() == living, "the rows and the living nodes disagree"
        self._index.check_invariants()
        assert len(self._index) == len(living)
        for node_id, live in self._live.items():
            assert self._index.holds(node_id, live.totals)
        assert self._heard.keys() <= living | self._expected, "a dead node has a deadline"
        assert list(self._heard.values()) == sorted(self._heard.values()), "deadlines are out of order"
        assert self._expected <= self._nodes.keys() - living
        assert len(self._nodes) - len(living) - len(self._expected) <= self._keep_dead


def sum_resources(parts: Any) -> dict[str, float]:
    """Resources in wire units, added up by name, as users read them."""
    total: dict[str, int] = {}
    for part in parts:
        for name, amount in part.items():
            total[name] = total.get(name, 0) + amount
    return from_units(total)


def _public(node: dict[str, Any]) -> dict[str, Any]:
    return {
        "NodeID": node["node_id"].hex(),
        "Alive": node["alive"],
        "NodeManagerAddress": node["address"],
        "NodeManagerHostname": node["hostname"],
        "NodeManagerPort": 0,
        "ObjectManagerPort": 0,
        "ObjectStoreSocketName": node["endpoint"],
        "RayletSocketName": node["endpoint"],
        "MetricsExportPort": 0,
        "NodeName": node["node_name"] or node["address"],
        "RuntimeEnvAgentPort": 0,
        "DeathReason": 0 if node["alive"] else 1,
        "DeathReasonMessage": node["death_reason"],
        "alive": node["alive"],
        "Resources": from_units(node["resources"]) if node["alive"] else {},
        "Labels": node["labels"],
    }
