"""Which nodes could hold a request, without looking at each: an index by resource and amount. Pure.

Per resource, the nodes stand in the order of how much of it they have; those that have enough are a tail of
that list, found by bisection. A request is looked up by its rarest resource (the shortest tail), and the
tail is read from a place that the caller chooses, so that equal nodes take turns. A request for nothing is
looked up among all nodes.

Used by ``gcs.nodes`` and ``node.view``; both keep for themselves what is free. Invariant: each node stands once
in the list of every resource that it has, with the amount last given to ``put``.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Iterator, Mapping

_ALL = ""  # the list of all nodes: everybody has nothing of it


class NodeIndex:
    """node_id → totals, searchable."""

    def __init__(self) -> None:
        self._totals: dict[bytes, Mapping[str, int]] = {}
        self._lists: dict[str, list[tuple[int, bytes]]] = {}

    def __len__(self) -> int:
        return len(self._totals)

    def put(self, node_id: bytes, totals: Mapping[str, int]) -> None:
        """A node has joined, or has other totals now."""
        old = self._totals.get(node_id)
        if old == totals:
            return
        if old is not None:
            self.drop(node_id)
        self._totals[node_id] = dict(totals)
        for name, amount in {**totals, _ALL: 0}.items():
            insort(self._lists.setdefault(name, []), (amount, node_id))

    def drop(self, node_id: bytes) -> None:
        """A node is gone."""
        totals = self._totals.pop(node_id, None)
        if totals is None:
            return
        for name, amount in {**totals, _ALL: 0}.items():
            entries = self._lists[name]
            del entries[bisect_left(entries, (amount, node_id))]
            if not entries:
                del self._lists[name]

    def holds(self, node_id: bytes, request: Mapping[str, int]) -> bool:
        """Whether that node, idle, could hold the request."""
        totals = self._totals[node_id]
        return all(amount <= totals.get(name, 0) for name, amount in request.items())

    def candidates(self, request: Mapping[str, int], start: int) -> Iterator[bytes]:
        """The nodes that could hold the request, from the ``start``-th on, round to where it began. Lazy: who
        takes four of them pays for about four. The index must not change meanwhile."""
        best = self._lists.get(_ALL, [])
        low = 0
        for name, amount in request.items():
            if amount <= 0:
                continue
            entries = self._lists.get(name, [])
            first = bisect_left(entries, (amount, b""))
            if len(entries) - first < len(best) - low:
                best, low = entries, first
        size = len(best) - low
        for step in range(size):
            node_id = best[low + (start + step) % size][1]
            if self.holds(node_id, request):
                yield node_id

    def feasible(self, request: Mapping[str, int]) -> bool:
        """Whether any node could hold it."""
        return next(self.candidates(request, 0), None) is not None

    def check_invariants(self) -> None:
        """Raise AssertionError where lists and totals disagree."""
        expected: dict[str, list[tuple[int, bytes]]] = {}
        for node_id, totals in self._totals.items():
            for name, amount in {**totals, _ALL: 0}.items():
                expected.setdefault(name, []).append((amount, node_id))
        assert self._lists == {name: sorted(entries) for name, entries in expected.items()}
