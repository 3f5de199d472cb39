"""What a node knows of the others: who there is, what they have, what of it was free lately. Pure.

Fed with the GCS's ClusterViews by ``node.membership``; read by whoever has to choose another node
(``policy``, ``actor_placement``) or to name them all in an error. It is always a little late: who acts on
it must be able to hear no. What was just asked of a node is booked here (``book``) until that node's next word,
so that a burst does not go to one place; or for ``BOOKED_S``, since a node whose use has not changed says nothing.

Invariants: the own node is never in it; the index holds exactly the nodes.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import islice

from minray._base.groups import of_users
from minray._base.labels import Labels, Selector
from minray._base.node_index import NodeIndex
from minray._base.resources import describe
from minray.wire.messages import ClusterView, Resources

LOOKED_AT = 8  # candidates per question: a sample, so that the price does not grow with the cluster
REMEMBERED = 1000  # nodes that are gone
NAMED = 3  # of nodes that have the same, in an error
BOOKED_S = 1.0  # a node that has granted something has said so by then


@dataclass(slots=True, eq=False)
class NodeRow:
    """One other node. Resources in wire units."""

    node_id: bytes
    endpoint: str
    address: str
    totals: Resources
    available: Resources  # as it said last (``said``), less what was booked here since
    labels: dict[str, str]
    load: int  # workers that are wanted there and not granted
    said: Resources

    def fits(self, request: Mapping[str, int]) -> bool:
        """Whether this was free there, as far as is known."""
        return all(amount <= self.available.get(name, 0) for name, amount in request.items() if amount > 0)


class View:
    """The other nodes of the cluster; empty in a session of one node."""

    def __init__(self, own: bytes) -> None:
        self.own = own
        self.nodes: dict[bytes, NodeRow] = {}
        self.left: dict[bytes, None] = {}  # the last nodes that are gone
        self._booked: dict[bytes, float | None] = {}  # node → since when, as far as ``expire`` has seen it
        self._index = NodeIndex()
        self._turn = int.from_bytes(own[-4:], "big")  # or all nodes would ask the same ones first

    def __len__(self) -> int:
        return len(self.nodes)

    def apply(self, message: ClusterView) -> bool:
        """Take over what has changed. Whether somebody has joined, or has more than before in all: what
        nobody could hold may be possible now."""
        more = False
        for node_id, endpoint, address, totals, available, labels, load in message.nodes:
            if node_id == self.own:
                continue
            row = self.nodes.get(node_id)
            if row is None:
                if endpoint is None:  # news of a node that was never introduced: it is gone again
                    continue
                row = NodeRow(node_id, endpoint, address, totals, available, labels, load, available)
                self.nodes[node_id] = row
                self._index.put(node_id, totals, labels)
                more = True
                continue
            row.available, row.said, row.load = available, available, load
            self._booked.pop(node_id, None)
            other = totals is not None and totals != row.totals
            if other:
                row.totals = totals
            if endpoint is not None:
                other = other or labels != row.labels
                row.endpoint, row.address, row.labels = endpoint, address, labels
            if other:
                self._index.put(node_id, row.totals, row.labels)
                more = True
        for node_id in message.gone:
            if self.nodes.pop(node_id, None) is not None:
                self._index.drop(node_id)
                self._booked.pop(node_id, None)
            self.left[node_id] = None
            if len(self.left) > REMEMBERED:
                del self.left[next(iter(self.left))]
        return more

    def candidates(self, request: Mapping[str, int], hard: Selector | None = None) -> Iterator[NodeRow]:
        """The others that could hold the request and have these labels, from another one on each time. Lazy."""
        for looked, node_id in enumerate(self._index.candidates(request, self._turn, hard)):
            # Who asks next begins with the last one that this one has seen: so all are seen, and none is always first.
            self._turn += looked != 1
            yield self.nodes[node_id]

    def sample(self, request: Mapping[str, int], hard: Selector | None = None, least: int = 0) -> list[NodeRow]:
        """The first few of ``candidates``, or ``least`` of them if that is more."""
        return list(islice(self.candidates(request, hard), max(LOOKED_AT, least)))

    def feasible(self, request: Mapping[str, int], hard: Selector | None = None) -> bool:
        """Whether another node could ever hold it."""
        return next(self.candidates(request, hard), None) is not None

    def free(self, request: Mapping[str, int], hard: Selector | None = None) -> NodeRow | None:
        """A node, of the first few that could hold it, where it seems to be free now."""
        for row in islice(self.candidates(request, hard), LOOKED_AT):
            if row.fits(request):
                return row
        return None

    def book(self, node_id: bytes, request: Mapping[str, int], count: int = 1) -> None:
        """So much was just asked of that node; its next report says what became of it."""
        row = self.nodes.get(node_id)
        if row is not None:
            self._booked[node_id] = None
            row.available = dict(row.available)
            for name, amount in request.items():
                row.available[name] = row.available.get(name, 0) - amount * count

    def expire(self, now: float) -> float | None:
        """Forget what was booked long ago: whoever has said nothing since has granted nothing. When to come again."""
        due = None
        for node_id, since in list(self._booked.items()):
            if since is None:
                since = self._booked[node_id] = now
            if now >= since + BOOKED_S:
                del self._booked[node_id]
                self.nodes[node_id].available = self.nodes[node_id].said
            else:
                due = since + BOOKED_S if due is None else min(due, since + BOOKED_S)
        return due

    def describe_totals(self, labels: Iterable[str] = (), limit: int = 10) -> str:
        """Every other node's totals, and what it has of these labels, for an error. Nodes that have the same are
        named together."""
        names = list(labels)
        alike: dict[str, list[str]] = {}
        for row in self.nodes.values():
            alike.setdefault(describe_node(row.totals, row.labels, names), []).append(row.node_id.hex()[:8])
        texts = []
        for text, ids in list(alike.items())[:limit]:
            more = f" and {len(ids) - NAMED} more" if len(ids) > NAMED else ""
            several = f"{len(ids)} nodes ({', '.join(ids[:NAMED])}{more}) have {text} each"
            texts.append(several if len(ids) > 1 else f"node {ids[0]} has {text}")
        if len(alike) > limit:
            texts.append(f"and {sum(len(ids) for ids in list(alike.values())[limit:])} more nodes")
        return "; ".join(texts)

    def check_invariants(self) -> None:
        """Raise AssertionError where the index is not that of the nodes."""
        assert self.own not in self.nodes
        self._index.check_invariants()
        assert len(self._index) == len(self.nodes)
        for node_id, row in self.nodes.items():
            assert row.node_id == node_id and self._index.holds(node_id, row.totals)
            assert row.available == row.said or node_id in self._booked
        assert self._booked.keys() <= self.nodes.keys()


def describe_node(totals: Resources, has: Labels, labels: Iterable[str]) -> str:
    """``CPU: 4, memory: 8 GB, zone=a``: what an error says that a node has; of its labels only the named ones."""
    said = [f"{name}={has[name]}" if name in has else f"no label {name}" for name in labels]
    return ", ".join([describe(of_users(totals)), *said])
