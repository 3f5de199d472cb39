"""What of a demand goes to other nodes, and what of strangers' demands is declined. Pure.

    owner ─ LeaseDemand ─▶ its own node ── resources are not free here, but seem to be there ──┐
      ▲                                                                                        │
      └──────────────── LeaseSpill(count, that node): the owner asks there ◀───────────────────┘
    owner ─ LeaseDemand ─▶ that node ── grants, or LeaseDecline(count): the owner asks at home again

The own node packs first and spills what lacks resources here; a demand that this node may not or can never
hold (affinity, labels, a resource that it does not have) goes away whole, to be held in a queue there. A
stranger's demand that finds nothing free is declined at once, unless it is to be held: its own node knows
better where else to go. What was refused and what the owner has heard of it are counted for ever, so that
messages may cross.

Part of node.leases, which calls it when demands come and when some lack resources. Invariants: what is spilled
is wanted here no more; nothing is spilled for actors (the GCS places these) or for strangers.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from minray._base.labels import describe_selector, matches
from minray.node.demands import Demand, DemandKey
from minray.node.pressure import fit_count
from minray.node.view import LOOKED_AT, NodeRow, View
from minray.node.worker_pool import Effect
from minray.wire.messages import LeaseDecline, LeaseDemand, LeaseSpill

if TYPE_CHECKING:
    from minray.node.leases import LeaseTable

AFFINITY, LABELS, SPREAD = "affinity", "labels", "SPREAD"


class Spillover:
    """The way from one LeaseTable to the other nodes in ``view``."""

    def __init__(self, table: LeaseTable, view: View, labels: dict[str, str]) -> None:
        self._table = table
        self.view = view
        self._labels = labels
        self.strangers: set[bytes] = set()  # owners whose node is another
        self._refused: dict[bytes, dict[DemandKey, int]] = {}  # owner → key → workers, in all
        self._turns: dict[tuple[bytes, DemandKey], int] = {}  # of SPREAD demands: units placed so far

    # -- what owners say ---------------------------------------------------------------------------

    def wanted_here(self, owner: bytes, msg: LeaseDemand) -> int:
        """What ``msg`` asks of this node, less what was refused when the owner had not heard of it."""
        total = self._refused.get(owner, {}).get(msg.key, 0)
        return max(0, msg.wanted - max(0, total - msg.refused))

    def owner_gone(self, owner: bytes) -> None:
        """Forget what it has been told."""
        self.strangers.discard(owner)
        for key in self._refused.pop(owner, ()):
            self._turns.pop((owner, key), None)
        for place in [place for place in self._turns if place[0] == owner]:
            del self._turns[place]

    # -- where a demand may go -----------------------------------------------------------------------

    def route(self, demand: Demand) -> tuple[bool, list[Effect]]:
        """Send away what is not for this node. Whether the rest may be queued here, and the effects."""
        if demand.owner in self.strangers:
            if demand.hold or self._table.book.feasible(demand.resources):
                return True, []
            return False, self._decline(demand, demand.missing)
        strategy = demand.strategy
        if isinstance(strategy, tuple) and strategy[0] == AFFINITY:
            return self._to_one(demand, strategy)
        if not self.may_run_here(demand):
            return self._away(demand)
        if strategy == SPREAD and self.view.nodes:
            return True, self._spread(demand)
        return True, []

    def may_run_here(self, demand: Demand) -> bool:
        """Whether this node has the labels and, idle, the resources."""
        hard = _hard(demand.strategy)
        return self._table.book.feasible(demand.resources) and (not hard or matches(self._labels, hard))

    def _to_one(self, demand: Demand, strategy: tuple[Any, ...]) -> tuple[bool, list[Effect]]:
        _, node_id, soft = strategy
        here = self.may_run_here(demand)
        if node_id == self._table.node_id and (here or not soft):
            return True, []
        row = self.view.nodes.get(node_id)
        if row is not None and (not soft or fit_count(row.totals, demand.resources)):
            return False, self._spill(demand, row, demand.missing, hold=True)
        if soft:
            return (True, []) if here else self._away(demand)
        text = f"{demand.description} must run on node {node_id.hex()}, which is not alive"
        return False, self._table.fail(demand, text)

    def _away(self, demand: Demand) -> tuple[bool, list[Effect]]:
        """It cannot run here: to whoever seems free, the rest to be held where it could run."""
        effects = self.relieve(demand, demand.missing)
        rows = self._first(demand)
        for i, row in enumerate(rows):
            share = -(-demand.missing // (len(rows) - i))
            effects += self._spill(demand, row, share, hold=True)
        return demand.missing > 0, effects

    def _spread(self, demand: Demand) -> list[Effect]:
        """One here, one there, in turn, over the nodes that seem to have room."""
        place = (demand.owner, demand.key)
        turn = self._turns.get(place, 0)
        rows = [row for row in self._first(demand) if row.fits(demand.resources)]
        shares = [0] * (len(rows) + 1)
        for _ in range(demand.missing):
            shares[turn % len(shares)] += 1
            turn += 1
        self._turns[place] = turn
        effects: list[Effect] = []
        for row, share in zip(rows, shares[1:], strict=True):
            effects += self._spill(demand, row, share)
        return effects

    def _first(self, demand: Demand) -> list[NodeRow]:
        rows = []
        for row in self.view.candidates(demand.resources, _hard(demand.strategy)):
            rows.append(row)
            if len(rows) == LOOKED_AT:
                break
        return rows

    def describe(self, demand: Demand) -> str:
        """What its strategy demands besides, for a message."""
        hard = _hard(demand.strategy)
        return f" on a node with {describe_selector(hard)}" if hard else ""

    # -- when resources lack -------------------------------------------------------------------------

    def relieve(self, demand: Demand, lacking: int) -> list[Effect]:
        """``lacking`` workers of a demand find no resources here: spill or decline what can be."""
        if demand.actor is not None or demand.hold or _pinned(demand.strategy):
            return []
        if demand.owner in self.strangers:
            return self._decline(demand, lacking)
        effects: list[Effect] = []
        while lacking > 0 and self.view.nodes:
            row = self.view.free(demand.resources, _hard(demand.strategy))
            if row is None:
                break
            count = min(lacking, max(1, fit_count(row.available, demand.resources)))
            effects += self._spill(demand, row, count)
            lacking -= count
        return effects

    def _spill(self, demand: Demand, row: NodeRow, count: int, *, hold: bool = False) -> list[Effect]:
        count = min(count, demand.missing)
        if count <= 0:
            return []
        assert isinstance(demand.key, int)
        self.view.book(row.node_id, demand.resources, count)
        message = LeaseSpill(demand.key, count, row.node_id, row.endpoint, hold)
        self._give_up(demand, count)
        return [("send", demand.owner, message)]

    def _decline(self, demand: Demand, count: int) -> list[Effect]:
        assert isinstance(demand.key, int)
        self._give_up(demand, count)
        return [("send", demand.owner, LeaseDecline(demand.key, count))]

    def _give_up(self, demand: Demand, count: int) -> None:
        counts = self._refused.setdefault(demand.owner, {})
        counts[demand.key] = counts.get(demand.key, 0) + count
        self._table.give_up(demand, count)


def _hard(strategy: Any) -> Any:
    return strategy[1] if isinstance(strategy, tuple) and strategy[0] == LABELS else None


def _pinned(strategy: Any) -> bool:
    return isinstance(strategy, tuple) and strategy[0] == AFFINITY and not strategy[2]
