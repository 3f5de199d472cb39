"""What a node knows of the others: who there is, what they have, what of it was free lately. Pure.

Fed with the GCS's ClusterViews by ``node.membership``; read by whoever has to choose another node
(``policy``, ``actor_placement``) or to name them all in an error. It is always a little late: who acts on
it must be able to hear no. What was just asked of a node is booked here (``book``) until that node's next word,
so that a burst does not go to one place.

Invariants: the own node is never in it; the index holds exactly the nodes.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from minray._base.groups import of_users
from minray._base.labels import Selector, matches
from minray._base.node_index import NodeIndex
from minray._base.resources import describe
from minray.wire.messages import ClusterView, Resources

LOOKED_AT = 8  # candidates per question: a sample, so that the price does not grow with the cluster


@dataclass(slots=True, eq=False)
class NodeRow:
    """One other node. Resources in wire units."""

    node_id: bytes
    endpoint: str
    address: str
    totals: Resources
    available: Resources  # as it said last, less what was booked here since
    labels: dict[str, str]
    load: int  # workers that are wanted there and not granted

    def fits(self, request: Mapping[str, int]) -> bool:
        """Whether this was free there, as far as is known."""
        return all(amount <= self.available.get(name, 0) for name, amount in request.items() if amount > 0)


class View:
    """The other nodes of the cluster; empty in a session of one node."""

    def __init__(self, own: bytes) -> None:
        self.own = own
        self.nodes: dict[bytes, NodeRow] = {}
        self._index = NodeIndex()
        self._turn = 0

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
                row = NodeRow(node_id, endpoint, address, totals, available, labels, load)
                self.nodes[node_id] = row
                self._index.put(node_id, totals)
                more = True
                continue
            row.available, row.load = available, load
            if totals is not None and totals != row.totals:
                row.totals = totals
                self._index.put(node_id, totals)
                more = True
            if endpoint is not None:
                row.endpoint, row.address, row.labels = endpoint, address, labels
        for node_id in message.gone:
            if self.nodes.pop(node_id, None) is not None:
                self._index.drop(node_id)
        return more

    def candidates(self, request: Mapping[str, int], hard: Selector | None = None) -> Iterator[NodeRow]:
        """The others that could hold the request and have these labels, from another one on each time. Lazy."""
        self._turn += 1
        for node_id in self._index.candidates(request, self._turn):
            row = self.nodes[node_id]
            if not hard or matches(row.labels, hard):
                yield row

    def feasible(self, request: Mapping[str, int], hard: Selector | None = None) -> bool:
        """Whether another node could ever hold it."""
        return next(self.candidates(request, hard), None) is not None

    def free(self, request: Mapping[str, int], hard: Selector | None = None) -> NodeRow | None:
        """A node, of the first few that could hold it, where it seems to be free now."""
        for looked, row in enumerate(self.candidates(request, hard)):
            if row.fits(request):
                return row
            if looked + 1 == LOOKED_AT:
                break
        return None

    def book(self, node_id: bytes, request: Mapping[str, int], count: int = 1) -> None:
        """So much was just asked of that node; its next report says what became of it."""
        row = self.nodes.get(node_id)
        if row is not None:
            row.available = dict(row.available)
            for name, amount in request.items():
                row.available[name] = row.available.get(name, 0) - amount * count

    def describe_totals(self, limit: int = 10) -> str:
        """Every other node's totals, for an error: what ``describe`` says of each."""
        texts = []
        for row in list(self.nodes.values())[:limit]:
            totals = of_users(row.totals)
            texts.append(f"node {row.node_id.hex()[:8]} has {describe(totals)}")
        if len(self.nodes) > limit:
            texts.append(f"and {len(self.nodes) - limit} more nodes")
        return "; ".join(texts)

    def check_invariants(self) -> None:
        """Raise AssertionError where the index is not that of the nodes."""
        assert self.own not in self.nodes
        self._index.check_invariants()
        assert len(self._index) == len(self.nodes)
        for node_id, row in self.nodes.items():
            assert row.node_id == node_id and self._index.holds(node_id, row.totals)
