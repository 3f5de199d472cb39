"""What placement groups hold of each node, and so what is left for the next one. Pure.

Nodes say what is free there a little late; what groups were given since is known here at once. So the room of a
node is the smaller of two numbers: what it said is free, less what it was just asked for and has not confirmed;
and what it has in all, less what groups hold. What is taken by tasks and actors may become free, what other groups
hold will not by itself: the *prospect* of a node leaves only the latter out.

In a large cluster ``place`` looks at SAMPLE nodes first (more for groups of many bundles), and for the best that there
is: all bundles on one node for the packing strategies, each on its own for the others. Only if these cannot give
that, all nodes are looked at.

Owned by ``placement_groups``. Invariants: nothing is negative; a node's account is empty when no group holds
anything there.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping

from minray.gcs.bundle_placement import NodeRoom, Placement, Question, Resources, add, choose, choose_best

Available = Callable[[bytes], Resources]

SAMPLE = 15  # nodes


class Ledger:
    """The living nodes and what groups hold of them. ``available``: what is free on a node, as it said last."""

    def __init__(self, available: Available) -> None:
        self._available = available
        self._totals: dict[bytes, Resources] = {}
        self._nodes: list[bytes] = []  # the same nodes
        self._next = 0  # the place in it where the next sample begins
        self._labels: dict[bytes, Mapping[str, str]] = {}
        self._held: dict[bytes, dict[str, int]] = {}
        self._asked: dict[bytes, dict[str, int]] = {}  # the part of it that is not confirmed

    def __contains__(self, node_id: bytes) -> bool:
        return node_id in self._totals

    def __len__(self) -> int:
        return len(self._totals)

    def join(self, node_id: bytes, totals: Resources, labels: Mapping[str, str]) -> None:
        """A node is there."""
        if node_id not in self._totals:
            self._nodes.append(node_id)
        self._totals[node_id] = dict(totals)
        self._labels[node_id] = dict(labels)

    def leave(self, node_id: bytes) -> None:
        """It is lost. What groups held there is given back by the groups."""
        if self._totals.pop(node_id, None) is not None:
            self._nodes.remove(node_id)
        self._labels.pop(node_id, None)

    # -- accounts ------------------------------------------------------------------------------------

    def hold(self, node_id: bytes, bundles: Iterable[Resources], *, asked: bool) -> None:
        """A group has these bundles there; ``asked``: the node has not said yes yet."""
        for account in (self._held, self._asked) if asked else (self._held,):
            total = account.setdefault(node_id, {})
            for bundle in bundles:
                add(total, bundle)

    def confirm(self, node_id: bytes, bundles: Iterable[Resources]) -> None:
        """The node has said yes."""
        self._take_off(self._asked, node_id, bundles)

    def release(self, node_id: bytes, bundles: Iterable[Resources], *, asked: bool) -> None:
        """A group has these no more."""
        for account in (self._held, self._asked) if asked else (self._held,):
            self._take_off(account, node_id, bundles)

    @staticmethod
    def _take_off(account: dict[bytes, dict[str, int]], node_id: bytes, bundles: Iterable[Resources]) -> None:
        total = account[node_id]
        for bundle in bundles:
            add(total, bundle, -1)
        for name in [name for name, amount in total.items() if not amount]:
            del total[name]
        if not total:
            del account[node_id]

    # -- placing -------------------------------------------------------------------------------------

    def place(self, question: Question, without: Collection[bytes] = ()) -> Placement | None:
        """The nodes that have room for it at once, as far as is known."""
        count, size = len(self._nodes), max(SAMPLE, 2 * len(question.bundles))
        if count > 2 * size and not question.settled and question.preferred is None:
            some = [self._nodes[(self._next + i) % count] for i in range(size)]
            found = choose_best(question, self.rooms(without, among=some))
            if found is None or question.strategy in ("SPREAD", "STRICT_SPREAD"):  # packing comes back to them
                self._next = (self._next + size) % count
            if found is not None:
                return found
        return choose(question, self.rooms(without))

    # -- rooms ---------------------------------------------------------------------------------------

    def rooms(
        self,
        without: Collection[bytes] = (),
        given_back: Mapping[bytes, Resources] | None = None,
        among: Iterable[bytes] | None = None,
    ) -> list[NodeRoom]:
        """What each node (or each of ``among``) can give at once, as far as is known. ``given_back``: and if it had
        this, too."""
        found = []
        for node_id in self._totals if among is None else among:
            if node_id not in without:
                totals = self._totals[node_id]
                said, back = self._available(node_id), (given_back or {}).get(node_id, {})
                held, asked = self._held.get(node_id, {}), self._asked.get(node_id, {})
                free = {
                    name: min(said.get(name, 0) - asked.get(name, 0), n - held.get(name, 0)) + back.get(name, 0)
                    for name, n in totals.items()
                }
                found.append(NodeRoom(node_id, free, self._labels[node_id]))
        return found

    def prospects(
        self, without: Collection[bytes] = (), given_back: Mapping[bytes, Resources] | None = None
    ) -> list[NodeRoom]:
        """What each node could give if its tasks and actors were gone."""
        found = []
        for node_id, totals in self._totals.items():
            if node_id not in without:
                held, back = self._held.get(node_id, {}), (given_back or {}).get(node_id, {})
                free = {name: n - held.get(name, 0) + back.get(name, 0) for name, n in totals.items()}
                found.append(NodeRoom(node_id, free, self._labels[node_id]))
        return found

    def empty(self) -> list[NodeRoom]:
        """What each node has in all."""
        return [NodeRoom(node_id, totals, self._labels[node_id]) for node_id, totals in self._totals.items()]

    def check_invariants(self, held: Mapping[bytes, Resources]) -> None:
        """``held``: what the groups say that they hold."""
        assert sorted(self._nodes) == sorted(self._totals), "the list of nodes is wrong"
        counted = {node_id: {n: a for n, a in total.items() if a} for node_id, total in held.items()}
        assert self._held == {node_id: total for node_id, total in counted.items() if total}, "the ledger is wrong"
        for node_id, asked in self._asked.items():
            for name, amount in asked.items():
                assert 0 < amount <= self._held[node_id][name], f"{name} is asked for and not held"
