"""Which nodes could hold a request and have its labels, without looking at each: an index. Pure.

    CPU   [(1, d), (4, a), (8, b), (8, c)]       requests of 4 CPUs: a tail of the list, found by bisection
    GPU   [(1, b)]                               … and of a GPU: this one is shorter, so it is the one to read
    zone in (a)   [a, c]                         … on a node of zone a: as long as the other, any of them will do

Per resource, the nodes stand in the order of how much of it they have. Per label and value there is a list of
the nodes that have it; other conditions on labels (``notin``, ``absent``, several values) get a list when they are
first asked for, which is kept true from then on; the last ``REMEMBERED`` such lists stay. A request is looked
up by the shortest list that it names, and that is read from a place that the caller chooses, so that equal nodes take
turns. A request for nothing is looked up among all nodes.

Used by ``gcs.nodes`` and ``node.view``; both keep for themselves what is free. Invariant: each node stands once
in the list of every resource and label that it has, and of every remembered condition that it satisfies, with what was
last given to ``put``.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Iterator, Mapping
from typing import Any

from minray._base.labels import Labels, Selector, agrees, matches

Entry = tuple[int, bytes]  # how much, and who; of labels: 0
Condition = tuple[str, str, tuple[str, ...]]  # label, operator, values

REMEMBERED = 128  # conditions that are no plain "label is value"
_ALL = ""  # the list of all nodes: everybody has nothing of it


class NodeIndex:
    """node_id → totals and labels, searchable."""

    def __init__(self) -> None:
        self._totals: dict[bytes, Mapping[str, int]] = {}
        self._labels: dict[bytes, Labels] = {}
        self._lists: dict[str, list[Entry]] = {}
        self._holders: dict[tuple[str, str], list[Entry]] = {}  # (label, value) → who has it
        self._conditions: dict[Condition, list[Entry]] = {}  # the one asked for last is the last

    def __len__(self) -> int:
        return len(self._totals)

    def put(self, node_id: bytes, totals: Mapping[str, int], labels: Labels | None = None) -> None:
        """A node has joined, or has other totals or labels now. ``labels`` None: those it had."""
        old = self._totals.get(node_id)
        if old != totals:
            if old is not None:
                self._drop_totals(node_id, old)
            self._totals[node_id] = dict(totals)
            for name, amount in {**totals, _ALL: 0}.items():
                insort(self._lists.setdefault(name, []), (amount, node_id))
        had = self._labels.get(node_id)
        if had is None or (labels is not None and labels != had):
            if had is not None:
                self._drop_labels(node_id, had)
            self._put_labels(node_id, dict(labels or {}))

    def _put_labels(self, node_id: bytes, labels: Labels) -> None:
        self._labels[node_id] = labels
        for pair in labels.items():
            insort(self._holders.setdefault(pair, []), (0, node_id))
        for condition, entries in self._conditions.items():
            if agrees(labels, *condition):
                insort(entries, (0, node_id))

    def drop(self, node_id: bytes) -> None:
        """A node is gone."""
        totals = self._totals.pop(node_id, None)
        if totals is not None:
            self._drop_totals(node_id, totals)
            self._drop_labels(node_id, self._labels.pop(node_id))

    def _drop_totals(self, node_id: bytes, totals: Mapping[str, int]) -> None:
        for name, amount in {**totals, _ALL: 0}.items():
            _remove(self._lists, name, (amount, node_id))

    def _drop_labels(self, node_id: bytes, labels: Labels) -> None:
        for pair in labels.items():
            _remove(self._holders, pair, (0, node_id))
        for condition, entries in self._conditions.items():
            if agrees(labels, *condition):
                del entries[bisect_left(entries, (0, node_id))]

    def holds(self, node_id: bytes, request: Mapping[str, int]) -> bool:
        """Whether that node, idle, could hold the request."""
        totals = self._totals[node_id]
        return all(amount <= totals.get(name, 0) for name, amount in request.items())

    def candidates(
        self, request: Mapping[str, int], start: int, labels: Selector | None = None
    ) -> Iterator[bytes]:
        """The nodes that could hold the request and satisfy ``labels``, from the ``start``-th on, round to where it
        began. Lazy: who takes four of them pays for about four. The index must not change meanwhile."""
        best = self._lists.get(_ALL, [])
        low = 0
        for name, amount in request.items():
            if amount <= 0:
                continue
            entries = self._lists.get(name, [])
            first = bisect_left(entries, (amount, b""))
            if len(entries) - first < len(best) - low:
                best, low = entries, first
        for name, (op, values) in (labels or {}).items():
            entries = self._satisfying((name, op, tuple(values)))
            if len(entries) < len(best) - low:
                best, low = entries, 0
        size = len(best) - low
        for step in range(size):
            node_id = best[low + (start + step) % size][1]
            if self.holds(node_id, request) and (not labels or matches(self._labels[node_id], labels)):
                yield node_id

    def _satisfying(self, condition: Condition) -> list[Entry]:
        name, op, values = condition
        if op == "in" and len(values) == 1:
            return self._holders.get((name, values[0]), [])
        entries = self._conditions.pop(condition, None)
        if entries is None:
            entries = sorted((0, node_id) for node_id, has in self._labels.items() if agrees(has, *condition))
            if len(self._conditions) >= REMEMBERED:
                del self._conditions[next(iter(self._conditions))]
        self._conditions[condition] = entries
        return entries

    def feasible(self, request: Mapping[str, int], labels: Selector | None = None) -> bool:
        """Whether any node could hold it."""
        return next(self.candidates(request, 0, labels), None) is not None

    def check_invariants(self) -> None:
        """Raise AssertionError where lists, totals and labels disagree."""
        lists: dict[str, list[Entry]] = {}
        holders: dict[tuple[str, str], list[Entry]] = {}
        assert self._totals.keys() == self._labels.keys()
        for node_id, totals in self._totals.items():
            for name, amount in {**totals, _ALL: 0}.items():
                lists.setdefault(name, []).append((amount, node_id))
            for pair in self._labels[node_id].items():
                holders.setdefault(pair, []).append((0, node_id))
        assert self._lists == {name: sorted(entries) for name, entries in lists.items()}
        assert self._holders == {pair: sorted(entries) for pair, entries in holders.items()}
        assert len(self._conditions) <= REMEMBERED
        for condition, entries in self._conditions.items():
            assert entries == sorted((0, n) for n, has in self._labels.items() if agrees(has, *condition))


def _remove(lists: dict[Any, list[Entry]], key: Any, entry: Entry) -> None:
    entries = lists[key]
    del entries[bisect_left(entries, entry)]
    if not entries:
        del lists[key]
