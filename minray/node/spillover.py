"""What of a demand goes to other nodes, and what of strangers' demands is declined. Pure.

    owner ─ LeaseDemand ─▶ its own node ── resources are not free here, but seem to be there ──┐
      ▲                                                                                        │
      └──────────────── LeaseSpill(count, that node): the owner asks there ◀───────────────────┘
    owner ─ LeaseDemand ─▶ that node ── grants, or soon LeaseDecline(count): the owner asks at home again

A demand that says nothing is packed on this node until half of what it asks for is in use here (``HALF``); then it
goes to nodes below half, and then wherever least is in use. ``SPREAD`` takes turns. ``("near", node)`` asks that node
first: most of the bytes of these tasks' arguments are there. A demand that this node may not or can never hold
(affinity, labels, a resource that it does not have) goes away whole, to be held in a queue there. What was kept and
then finds no room goes wherever something seems to be free. All this looks at a few nodes (``view.LOOKED_AT``), however
many there are.

A stranger's demand that finds nothing free waits for a moment, in which leases that their owners do not need are taken
back for it, and is declined then, unless it is to be held: its own node knows better where else to go. What is held is
declined when another node has room. What was refused and what the owner has heard of it are counted for ever, so that
messages may cross.

Part of node.leases, which calls it when demands come and when some lack resources. Invariants: what is spilled
is wanted here no more; nothing is spilled for actors (the GCS places these) or for strangers.
"""

from __future__ import annotations

import heapq
from itertools import islice
from typing import TYPE_CHECKING, Any

from minray._base.groups import of_users, plain
from minray._base.labels import Selector, describe_selector, matches
from minray._base.resources import describe
from minray.node.demands import Demand, DemandKey
from minray.node.pressure import EXAMINED, fit_count
from minray.node.view import NodeRow, View
from minray.node.worker_pool import Effect
from minray.wire.messages import LeaseDecline, LeaseDemand, LeaseSpill, Resources

if TYPE_CHECKING:
    from minray.node.leases import LeaseTable

AFFINITY, LABELS, SPREAD, NEAR = "affinity", "labels", "SPREAD", "near"
HALF = 0.5  # of a node is filled before others are looked at
PATIENCE_S = 0.05  # how long a stranger's demand waits here, for leases that nobody needs
UNKNOWN_S = 1.0  # how long a node that nobody has heard of may take to be heard of: it may just have joined
EACH = 4  # workers, at least, that a node is asked for where many wait for room that nobody has


class Spillover:
    """The way from one LeaseTable to the other nodes in ``view``."""

    def __init__(self, table: LeaseTable, view: View, labels: dict[str, str]) -> None:
        self._table = table
        self.view = view
        self.labels = labels
        self.strangers: set[bytes] = set()  # owners whose node is another
        self.decline_at: float | None = None  # when the next of them has waited long enough
        self.booked_until: float | None = None  # when another node may have room, though it has said nothing
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

    def expire(self, now: float) -> None:
        """Somebody waits: do not believe for ever that what was asked of others was granted."""
        self.booked_until = self.view.expire(now)

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
        if not self.view.nodes:
            return True, []
        if strategy == SPREAD:
            return True, self._spread(demand)
        if isinstance(strategy, tuple) and strategy[0] == NEAR:
            return True, self._near(demand, strategy[1]) + self._balance(demand)
        soft = _soft(strategy)
        if soft and not matches(self.labels, soft):
            return True, self._to_those(demand, soft) + self._balance(demand)
        return True, self._balance(demand)

    def passes_by(self, demand: Demand) -> bool:
        """Whether it is a stranger's, who does not wait here for long."""
        return demand.owner in self.strangers and not demand.hold and demand.actor is None

    def may_run_here(self, demand: Demand) -> bool:
        """Whether this node has the labels and, idle, the resources."""
        hard = _hard(demand.strategy)
        return self._table.book.feasible(demand.resources) and (not hard or matches(self.labels, hard))

    def _to_one(self, demand: Demand, strategy: tuple[Any, ...]) -> tuple[bool, list[Effect]]:
        _, node_id, soft = strategy
        here = self.may_run_here(demand)
        row = self.view.nodes.get(node_id)
        if here and node_id == self._table.node_id:
            return True, []
        if row is not None and fit_count(row.totals, demand.resources):
            return False, self._spill(demand, row, demand.missing, hold=True)
        if soft:
            return (True, []) if here else self._away(demand)
        known = row is not None or node_id == self._table.node_id or node_id in self.view.left
        if not known and self.view.nodes:
            if demand.fatal_at is None:
                self._table.park(demand, demand.since + UNKNOWN_S)
            return False, []
        text = self.why_not(demand)
        assert text is not None
        return False, self._table.fail(demand, text)

    def why_not(self, demand: Demand) -> str | None:
        """Why its hard affinity cannot be; None if it has none."""
        if not _pinned(demand.strategy):
            return None
        node_id = demand.strategy[1]
        row = self.view.nodes.get(node_id)
        what = "not alive"
        if row is not None or node_id == self._table.node_id:
            has = self._table.book.totals if row is None else row.totals
            what = f"too small for {describe(plain(demand.resources))}: it has {describe(of_users(has))} in all"
        return f"{demand.description} must run on node {node_id.hex()}, which is {what}"

    def _away(self, demand: Demand) -> tuple[bool, list[Effect]]:
        """It cannot run here: to whoever seems free, the rest to be held where it could run."""
        effects: list[Effect] = []
        while demand.missing > 0 and (spilled := self.relieve(demand, demand.missing, demand.since)):
            effects += spilled
        rows = self.view.sample(demand.resources, _hard(demand.strategy), demand.missing // EACH)
        for i, row in enumerate(rows):
            share = -(-demand.missing // (len(rows) - i))
            effects += self._spill(demand, row, share, hold=True)
        return demand.missing > 0, effects

    def _near(self, demand: Demand, node_id: bytes) -> list[Effect]:
        """To the node that has the arguments, as far as it seems to have room."""
        row = self.view.nodes.get(node_id)
        return [] if row is None else self._spill(demand, row, fit_count(row.available, demand.resources))

    def _to_those(self, demand: Demand, soft: Selector) -> list[Effect]:
        """To nodes with the labels that it had better have, as far as they seem to have room."""
        effects: list[Effect] = []
        for row in self.view.sample(demand.resources, {**soft, **_hard(demand.strategy)}):
            if matches(row.labels, soft):
                effects += self._spill(demand, row, fit_count(row.available, demand.resources))
        return effects

    def _balance(self, demand: Demand) -> list[Effect]:
        """Pack here to half, then on others to half, then where least is in use. Who finds no room stays here."""
        request, book = demand.resources, self._table.book
        free = self._left_by_others(demand)
        if demand.missing <= 0 or _use_after(free, book.totals, request, demand.missing - 1) < HALF:
            return []
        rows = [row for row in self._sample(demand) if row.fits(request)]
        if not rows:
            return []
        places = [(free, book.totals), *((row.available, row.totals) for row in rows)]
        room = [fit_count(has, request) for has, _ in places]
        heap = [(_score(*place, request, 0), i) for i, place in enumerate(places) if room[i]]
        heapq.heapify(heap)
        shares = [0] * len(places)
        for _ in range(demand.missing):
            if not heap:
                break
            i = heap[0][1]
            shares[i] += 1
            if shares[i] < room[i]:
                heapq.heapreplace(heap, (_score(*places[i], request, shares[i]), i))
            else:
                heapq.heappop(heap)
        return self._share_out(demand, rows, shares)

    def _spread(self, demand: Demand) -> list[Effect]:
        """One here, one there, in turn, over the nodes that seem to have room. Who finds none stays here, and has had
        its turn: a demand that grows spreads only what is new."""
        place = (demand.owner, demand.key)
        rows = [row for row in self._sample(demand) if row.fits(demand.resources)]
        rows.sort(key=_by_id)  # so that few nodes stand in the same order each time
        room = [max(0, fit_count(self._left_by_others(demand), demand.resources) - demand.kept)]
        room += [fit_count(row.available, demand.resources) for row in rows]
        turn = self._turns.get(place, 0)
        shares = [0] * len(room)
        for _ in range(min(demand.missing - demand.kept, sum(room))):
            while shares[turn % len(room)] >= room[turn % len(room)]:
                turn += 1
            shares[turn % len(room)] += 1
            turn += 1
        self._turns[place] = turn
        effects = self._share_out(demand, rows, shares)
        demand.kept = demand.missing
        return effects

    def _share_out(self, demand: Demand, rows: list[NodeRow], shares: list[int]) -> list[Effect]:
        """``shares[0]`` and what is in no share stay here."""
        effects: list[Effect] = []
        for row, share in zip(rows, shares[1:], strict=True):
            effects += self._spill(demand, row, share)
        return effects

    def _left_by_others(self, demand: Demand) -> Resources:
        """What is free here when the first of those that wait have what they want."""
        free = dict(self._table.book.available)
        for other in islice(self._table.queue, EXAMINED):
            if other is not demand:
                for name, amount in other.resources.items():
                    free[name] = free.get(name, 0) - amount * other.missing
        return free

    def _sample(self, demand: Demand) -> list[NodeRow]:
        """A few other nodes that could hold it; of a demand that had better have some labels, such nodes."""
        hard, soft = _hard(demand.strategy), _soft(demand.strategy)
        rows = self.view.sample(demand.resources, {**soft, **hard}) if soft else []
        return rows or self.view.sample(demand.resources, hard)

    def labels_of(self, demand: Demand) -> list[str]:
        """The names of the labels that it demands."""
        return list(_hard(demand.strategy))

    def describe(self, demand: Demand) -> str:
        """What its strategy demands besides, for a message."""
        hard = _hard(demand.strategy)
        return f" on a node with {describe_selector(hard)}" if hard else ""

    # -- when resources lack -------------------------------------------------------------------------

    def relieve(self, demand: Demand, lacking: int, now: float) -> list[Effect]:
        """``lacking`` workers of a demand find no resources here: spill what seems to find them on one other node;
        of a stranger's decline them all, after a while; of one that is to be held, what finds room elsewhere now."""
        if demand.actor is not None or demand.bundles or _pinned(demand.strategy):
            return []
        if demand.hold:
            if demand.strategy is not None and demand.strategy[0] == AFFINITY:
                return []
            row = self._free(demand) if now >= demand.since + PATIENCE_S else None
            if row is None:
                return []
            count = min(lacking, fit_count(row.available, demand.resources))
            self.view.book(row.node_id, demand.resources, count)
            return self._decline(demand, count)
        if demand.owner in self.strangers:
            due = demand.since + PATIENCE_S
            if now >= due:
                return self._decline(demand, lacking)
            self.decline_at = due if self.decline_at is None else min(due, self.decline_at)
            return []
        row = self._free(demand) if self.view.nodes else None
        if row is None:
            return []
        return self._spill(demand, row, min(lacking, fit_count(row.available, demand.resources)))

    def _free(self, demand: Demand) -> NodeRow | None:
        hard, soft = _hard(demand.strategy), _soft(demand.strategy)
        row = self.view.free(demand.resources, {**soft, **hard}) if soft else None
        return row or self.view.free(demand.resources, hard)

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


def _hard(strategy: Any) -> Selector:
    return strategy[1] or {} if isinstance(strategy, tuple) and strategy[0] == LABELS else {}


def _soft(strategy: Any) -> Selector:
    return strategy[2] or {} if isinstance(strategy, tuple) and strategy[0] == LABELS else {}


def _pinned(strategy: Any) -> bool:
    return isinstance(strategy, tuple) and strategy[0] == AFFINITY and not strategy[2]


def _by_id(row: NodeRow) -> bytes:
    return row.node_id


def _use_after(free: Resources, totals: Resources, request: Resources, count: int) -> float:
    """The share of what ``request`` names that is in use when ``count`` more of it are placed: of the scarcest."""
    use = 0.0
    for name, amount in request.items():
        if amount > 0:
            use = max(use, 1.0 - (free.get(name, 0) - amount * count) / totals.get(name, amount))
    return use


def _score(free: Resources, totals: Resources, request: Resources, count: int) -> float:
    """The lower, the better: all nodes below half are equal."""
    use = _use_after(free, totals, request, count)
    return 0.0 if use < HALF else use
