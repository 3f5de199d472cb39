"""Which nodes take the bundles of a placement group. Pure: all or nothing, and nothing is changed.

    STRICT_PACK    all on one node                       SPREAD   on as many nodes as can be
    PACK           on as few nodes as can be             STRICT_SPREAD   each on a node of its own

For each strategy a quick rule finds a placement in the ordinary case: PACK fills the node that takes the most
bundles, then the next; SPREAD gives each bundle to the node with the fewest; STRICT_SPREAD is a matching of
bundles and nodes, which is exact. Where the quick rules of PACK and SPREAD fail, a search with a bounded number of
steps decides, so that a small cluster never refuses what it could hold.

Among equals the node with the least to spare is chosen (large holes stay for large groups), and one without
devices (GPUs) that the group does not ask for.

Called by ``placement_groups``. Invariants: a placement covers every bundle asked for; what a node is given
together fits into what it had free; a node that a bundle's selector refuses never gets that bundle.
"""

from __future__ import annotations

import heapq
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from minray._base.labels import Selector, matches
from minray._base.resources import CPU, MEMORY, STORE_MEMORY

Resources = Mapping[str, int]
Placement = dict[int, bytes]  # bundle's index → node

SEARCH_STEPS = 50_000
_ORDINARY = frozenset({CPU, MEMORY, STORE_MEMORY})


@dataclass(frozen=True, slots=True)
class NodeRoom:
    """A node as placement sees it."""

    node_id: bytes
    free: Resources
    labels: Mapping[str, str]


@dataclass(slots=True)
class Question:
    """What is to be placed.

    Args:
        bundles: index → what it holds.
        strategy: one of _base.groups.STRATEGIES.
        selectors: index → the labels that its node must have; those without one may be missing.
        settled: nodes that have bundles of this group already → how many.
        preferred: for STRICT_PACK, the node to try first.
    """

    bundles: Mapping[int, Resources]
    strategy: str
    selectors: Mapping[int, Selector] = field(default_factory=dict)
    settled: Mapping[bytes, int] = field(default_factory=dict)
    preferred: bytes | None = None


def choose(question: Question, rooms: Sequence[NodeRoom]) -> Placement | None:
    """A node for each bundle, or None if they cannot all be placed."""
    solver = _Solver(question, rooms)
    strategy = question.strategy
    if strategy == "STRICT_PACK":
        return solver.on_one()
    if strategy == "STRICT_SPREAD":
        return solver.match()
    if strategy == "SPREAD":
        return solver.spread() or solver.search()
    return solver.on_one() or solver.pack() or solver.search()


def choose_best(question: Question, rooms: Sequence[NodeRoom]) -> Placement | None:
    """A placement that more nodes could not better: on one for the packing strategies, each on its own for the
    others. None if a quick look finds none."""
    solver = _Solver(question, rooms)
    if question.strategy == "STRICT_SPREAD":
        return solver.match()
    if question.strategy == "SPREAD":
        placed = solver.spread()
        return placed if placed is not None and len(set(placed.values())) == len(placed) else None
    return solver.on_one()


def fits(free: Resources, need: Resources) -> bool:
    """Whether ``need`` can be taken out of ``free``."""
    return all(free.get(name, 0) >= amount for name, amount in need.items())


def add(total: dict[str, int], more: Resources, sign: int = 1) -> None:
    """Add up."""
    for name, amount in more.items():
        total[name] = total.get(name, 0) + sign * amount


@dataclass(slots=True)
class _Kind:
    """Bundles of a group that are alike."""

    need: Resources
    selector: Selector
    indices: list[int]


class _Solver:
    """One question, one answer. Bundles that are alike are looked at once."""

    def __init__(self, question: Question, rooms: Sequence[NodeRoom]) -> None:
        self._q = question
        self._free = {room.node_id: room.free for room in rooms}
        self._labels = {room.node_id: room.labels for room in rooms}
        self._kinds = _kinds(question)
        asked = {name for kind in self._kinds for name in kind.need}
        self._waste = {
            room.node_id: sum(name not in asked for name, amount in room.free.items() if _is_device(name, amount))
            for room in rooms
        }

    def _takes(self, node_id: bytes, kind: _Kind, free: Resources) -> bool:
        return fits(free, kind.need) and (not kind.selector or matches(self._labels[node_id], kind.selector))

    def _spare(self, node_id: bytes) -> tuple[int, int, int]:
        """How much would be wasted there: the less, the better."""
        free = self._free[node_id]
        rare = sum(amount for name, amount in free.items() if _is_device(name, amount))
        return (self._waste[node_id], rare, free.get(CPU, 0))

    def _impossible(self) -> bool:
        """Some bundle fits nowhere, or the sum of all is more than there is."""
        need: dict[str, int] = {}
        for kind in self._kinds:
            if not any(self._takes(node_id, kind, free) for node_id, free in self._free.items()):
                return True
            for name, amount in kind.need.items():
                need[name] = need.get(name, 0) + amount * len(kind.indices)
        there = {name: sum(max(0, free.get(name, 0)) for free in self._free.values()) for name in need}
        return not fits(there, need)

    # -- all on one ----------------------------------------------------------------------------------

    def on_one(self) -> Placement | None:
        """STRICT_PACK, and the best of PACK."""
        total: dict[str, int] = {}
        for bundle in self._q.bundles.values():
            add(total, bundle)
        settled = self._q.settled
        if len(settled) > 1:
            return None
        able = [
            node_id
            for node_id in settled or self._free
            if node_id in self._free
            and fits(self._free[node_id], total)
            and all(self._takes(node_id, kind, self._free[node_id]) for kind in self._kinds)
        ]
        if not able:
            return None
        best = self._q.preferred if self._q.preferred in able else min(able, key=self._spare)
        assert best is not None
        return dict.fromkeys(self._q.bundles, best)

    # -- on few ----------------------------------------------------------------------------------------

    def pack(self) -> Placement | None:
        """Fill node after node: always the one that takes the most of what is left. Of nodes that are alike one
        is looked at."""
        alike: dict[object, list[bytes]] = {}
        for node_id, free in self._free.items():
            labels = tuple(sorted(self._labels[node_id].items())) if self._q.selectors else ()
            own = node_id if node_id in self._q.settled else b""
            alike.setdefault((own, labels, tuple(sorted(free.items()))), []).append(node_id)
        left = [list(kind.indices) for kind in self._kinds]
        placed: Placement = {}
        while any(left):
            best: tuple[tuple[bool, int, tuple[int, int, int]], list[bytes], list[int]] | None = None
            for nodes in alike.values():
                counts = self._filled(nodes[0], left) if nodes else []
                if any(counts):
                    rank = (nodes[0] not in self._q.settled, -sum(counts), self._spare(nodes[0]))
                    if best is None or rank < best[0]:
                        best = (rank, nodes, counts)
            if best is None:
                return None
            _, nodes, counts = best
            node_id = nodes.pop(0)
            for indices, count in zip(left, counts, strict=True):
                placed.update(dict.fromkeys(indices[:count], node_id))
                del indices[:count]
        return placed

    def _filled(self, node_id: bytes, left: list[list[int]]) -> list[int]:
        """How many of each kind this node takes together, the large ones first."""
        free = dict(self._free[node_id])
        counts = []
        for kind, indices in zip(self._kinds, left, strict=True):
            count = 0
            if indices and self._takes(node_id, kind, free):
                count = min([len(indices), *(free[name] // n for name, n in kind.need.items() if n > 0)])
                for name, amount in kind.need.items():
                    free[name] -= amount * count
            counts.append(count)
        return counts

    # -- on many ---------------------------------------------------------------------------------------

    def spread(self) -> Placement | None:
        """Each to the node that has the fewest; among equals to the one with the most to spare."""
        free = {node_id: dict(amounts) for node_id, amounts in self._free.items()}
        settled, waste = self._q.settled, self._waste
        heap = [(settled.get(n, 0), waste[n], -amounts.get(CPU, 0), n) for n, amounts in free.items()]
        heapq.heapify(heap)
        placed: Placement = {}
        for kind in self._kinds:
            unfit = []  # these take no bundle of this kind, now or later
            for index in kind.indices:
                while heap and not self._takes(heap[0][3], kind, free[heap[0][3]]):
                    unfit.append(heapq.heappop(heap))
                if not heap:
                    return None
                count, rank, _, node_id = heap[0]
                add(free[node_id], kind.need, -1)
                placed[index] = node_id
                heapq.heapreplace(heap, (count + 1, rank, -free[node_id].get(CPU, 0), node_id))
            for entry in unfit:
                heapq.heappush(heap, entry)
        return placed

    def match(self) -> Placement | None:
        """STRICT_SPREAD: bundles and nodes in pairs, by augmenting paths (Kuhn). Exact."""
        nodes = sorted((n for n in self._free if n not in self._q.settled), key=self._spare)
        if len(nodes) < len(self._q.bundles):
            return None
        holder: dict[bytes, int] = {}
        able: dict[int, list[bytes]] = {}
        for kind in self._kinds:
            takers = [n for n in nodes if self._takes(n, kind, self._free[n])]
            able.update(dict.fromkeys(kind.indices, takers))
            unheld = iter(takers)
            for index in kind.indices:
                node_id = next((n for n in unheld if n not in holder), None)
                if node_id is not None:
                    holder[node_id] = index
                elif not _augment(index, able, holder):
                    return None
        return {index: node_id for node_id, index in holder.items()}

    # -- the search ------------------------------------------------------------------------------------

    def search(self) -> Placement | None:
        """Any placement at all, by trying; gives up after SEARCH_STEPS looks at a node."""
        if self._impossible():
            return None
        free = {node_id: dict(amounts) for node_id, amounts in self._free.items()}
        todo = [(kind, index) for kind in self._kinds for index in kind.indices]
        path: list[bytes] = []
        tries: list[list[bytes]] = []  # for each bundle placed so far and the next: the nodes not tried yet
        for _ in range(max(1, SEARCH_STEPS // len(free))):
            depth = len(path)
            if depth == len(todo):
                return {index: node_id for (_, index), node_id in zip(todo, path, strict=True)}
            if len(tries) == depth:
                tries.append(self._worth_trying(todo[depth][0], free))
            if tries[depth]:
                path.append(tries[depth].pop())
                add(free[path[-1]], todo[depth][0].need, -1)
            elif depth == 0:
                return None
            else:
                tries.pop()
                add(free[path.pop()], todo[depth - 1][0].need)
        return None

    def _worth_trying(self, kind: _Kind, free: dict[bytes, dict[str, int]]) -> list[bytes]:
        """The nodes for one bundle, of equal ones a single one, the tightest last."""
        seen: dict[object, bytes] = {}
        for node_id, amounts in free.items():
            if self._takes(node_id, kind, amounts):
                labels = node_id if self._q.selectors else b""
                seen.setdefault((labels, tuple(sorted(amounts.items()))), node_id)
        return sorted(seen.values(), key=lambda n: (free[n].get(CPU, 0), n), reverse=True)


def _kinds(question: Question) -> list[_Kind]:
    """The bundles by kind: rare resources first, then much of the ordinary ones."""
    kinds: dict[object, _Kind] = {}
    for index, bundle in question.bundles.items():
        selector = question.selectors.get(index, {})
        key = (tuple(sorted(bundle.items())), tuple(sorted((k, op, *v) for k, (op, v) in selector.items())))
        kinds.setdefault(key, _Kind(bundle, selector, [])).indices.append(index)

    def size(kind: _Kind) -> tuple[int, int, int]:
        rare = sum(amount for name, amount in kind.need.items() if name not in _ORDINARY)
        return (rare, kind.need.get(CPU, 0), kind.need.get(MEMORY, 0))

    return sorted(kinds.values(), key=size, reverse=True)


def _augment(start: int, able: dict[int, list[bytes]], holder: dict[bytes, int]) -> bool:
    """Find a free node for ``start``, moving others along; a loop, for groups deeper than the stack."""
    came: dict[bytes, int] = {}  # node → the bundle that wants it
    queue = [start]
    for index in queue:
        for node_id in able[index]:
            if node_id in came:
                continue
            came[node_id] = index
            if node_id in holder:
                queue.append(holder[node_id])
                continue
            while True:  # walk back: each bundle on the path moves to the node that it found
                wants = came[node_id]
                previous = next((n for n, i in holder.items() if i == wants), None)
                holder[node_id] = wants
                if wants == start or previous is None:
                    return True
                node_id = previous
    return False


def _is_device(name: str, amount: int) -> bool:
    """Whether it is something that others may need this very node for."""
    return amount > 0 and name not in _ORDINARY and not name.startswith("node:")
