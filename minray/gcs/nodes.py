"""The machines of a cluster: who they are, what they have, whether they live, who takes an actor. Pure.

Called by ``service`` when a node joins or is lost, and by ``ActorTable`` through ``place``. A node keeps its
row after its death, so that ``nodes()`` can show it; of the dead only the newest stay.

Placement looks at a sample, so that its price does not grow with the cluster: from a cursor that moves on,
the first few living nodes whose totals can hold the request, and of these the one with the fewest actors.

Invariants: the order of the ring is that of joining; a node is in the ring exactly while it lives.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from minray._base.resources import from_units
from minray.gcs.effects import Effects, Row, save

TABLE = "nodes"
KEEP_DEAD = 100
SAMPLE = 4


class Unplaceable(Exception):
    """No node can take it, now or later. The text says why."""


class NodeTable:
    """Every node that lives, and the last ones that died."""

    def __init__(self, keep_dead: int = KEEP_DEAD) -> None:
        self._keep_dead = keep_dead
        self._nodes: dict[bytes, dict[str, Any]] = {}
        self._ring: list[bytes] = []  # the living ones
        self._cursor = 0

    def restore(self, rows: list[tuple[bytes, Row]]) -> None:
        """Take over what an earlier life of the head had saved: nodes count as dead until they join again."""
        for node_id, (node,) in rows:
            self._nodes[node_id] = {**node, "alive": False, "death_reason": "has not joined this head again"}

    def add(self, info: dict[str, Any], now: float) -> Effects:
        """A node joins, or joins again."""
        node_id = info["node_id"]
        node = {
            "node_id": node_id,
            "endpoint": info.get("endpoint", ""),
            "address": info.get("address", "127.0.0.1"),
            "hostname": info.get("hostname", ""),
            "node_name": info.get("node_name") or "",
            "resources": dict(info.get("resources") or {}),
            "labels": dict(info.get("labels") or {}),
            "pid": info.get("pid", 0),
            "start_time": info.get("start_time", 0.0),
            "joined": now,
            "alive": True,
            "death_reason": "",
        }
        self._nodes[node_id] = node
        if node_id not in self._ring:
            self._ring.append(node_id)
        return [save(TABLE, node_id, (node,))]

    def lost(self, node_id: bytes, reason: str) -> tuple[bool, Effects]:
        """A node is gone. False if it was not alive."""
        if not self.is_alive(node_id):
            return False, []
        self._ring.remove(node_id)
        dead = {**self._nodes.pop(node_id), "alive": False, "death_reason": reason}
        self._nodes[node_id] = dead  # last in the order: the dead are forgotten in the order of their deaths
        effects = [save(TABLE, node_id, (dead,))]
        corpses = [key for key, node in self._nodes.items() if not node["alive"]]
        for oldest in corpses[: max(0, len(corpses) - self._keep_dead)]:
            del self._nodes[oldest]
            effects.append(save(TABLE, oldest, None))
        return True, effects

    def is_alive(self, node_id: bytes) -> bool:
        """Whether that node is known and lives."""
        node = self._nodes.get(node_id)
        return node is not None and bool(node["alive"])

    def place(self, spec: Mapping[str, Any], actors_per_node: Mapping[bytes, int]) -> bytes | None:
        """The node for an actor; None while there is no node at all.

        A request that no totals can hold goes to some node all the same: that node warns, waits its grace for
        machines that join, and then reports it unschedulable. Raises Unplaceable for a hard affinity to a
        node that does not live.
        """
        strategy = spec.get("strategy")
        if isinstance(strategy, tuple) and strategy and strategy[0] == "affinity":
            wanted, soft = strategy[1], strategy[2]
            if self.is_alive(wanted):
                return bytes(wanted)
            if not soft:
                raise Unplaceable(f"its scheduling strategy demands node {wanted.hex()}, which is not alive")
        if not self._ring:
            return None
        candidates = self._sample(spec.get("placement_resources") or {})
        return min(candidates, key=lambda node_id: actors_per_node.get(node_id, 0))

    def _sample(self, request: Mapping[str, int]) -> list[bytes]:
        size = len(self._ring)
        self._cursor = (self._cursor + 1) % size
        found: list[bytes] = []
        for step in range(size):
            node_id = self._ring[(self._cursor + step) % size]
            totals = self._nodes[node_id]["resources"]
            if all(totals.get(name, 0) >= amount for name, amount in request.items()):
                found.append(node_id)
                if len(found) == SAMPLE:
                    break
        return found or [self._ring[self._cursor]]

    def public(self) -> list[dict[str, Any]]:
        """Every known node under Ray's keys; memory in bytes, other resources in floats."""
        return [_public(node) for node in self._nodes.values()]

    def totals(self) -> dict[str, float]:
        """The living nodes' resources, added up."""
        return sum_resources(self._nodes[node_id]["resources"] for node_id in self._ring)

    def check_invariants(self) -> None:
        """Raise AssertionError where the table contradicts itself."""
        assert len(set(self._ring)) == len(self._ring), "a node is twice in the ring"
        living = {node_id for node_id, node in self._nodes.items() if node["alive"]}
        assert set(self._ring) == living, "the ring is not the living nodes"
        assert len(self._nodes) - len(living) <= self._keep_dead


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
