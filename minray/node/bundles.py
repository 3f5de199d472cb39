"""The bundles of placement groups on this node: reserved, opened, given back. Pure.

    PrepareBundles ──▶ waits ──(resources fit)──▶ reserved ──CommitBundles──▶ open ──ReleaseBundles──▶ closing ──▶ gone
                         └───────────────── ReleaseBundles (this attempt is over) ──▶ forgotten

The GCS reserves on all of a group's nodes before it opens any. What does not fit now waits in the node's queue
like a demand for leases, so that warm and overlong leases are taken back for it; it holds nothing meanwhile. A
bundle that is open adds its names (see _base.groups) to the book, and tasks and actors take it by these. When a
group is released, what runs in it is killed and what waits for it fails; its resources are free when the last
of its processes has ended.

Demands for a group that is not open anywhere, as far as is known here, are *parked*: they sit among the table's
infeasible ones without a deadline, and the GCS is asked to say when the group is there, or gone.

Called by node.leases, of whose table it is a part. Effects: those of the table, ``("gcs", BundlesPrepared)``, and
``("group", group_id)``: ask the GCS and call ``known`` with its answer.

Invariants: an attempt is reserved as a whole or not at all, and once; what is reserved is held in the book until
nothing runs in it any more; nothing is granted in a group that is closing.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from minray._base.groups import GONE, group_of, in_any, offered
from minray._base.ids import JOB_ID_SIZE
from minray.node.book import ResourceIds
from minray.node.demands import Demand, WorkerClass
from minray.node.worker_pool import Effect
from minray.wire.messages import BundlesPrepared, CommitBundles, Message, PrepareBundles, ReleaseBundles, Resources

if TYPE_CHECKING:
    from minray.node.leases import Lease, LeaseTable

WHOLE_GROUP = -1  # in place of an attempt: all of the group's bundles here
REMEMBERED = 10_000  # groups that are gone, to refuse who still asks for them
EXAMINED = 8
OWNER = b""  # of the demands by which attempts wait
ORDERS = (PrepareBundles, CommitBundles, ReleaseBundles)


@dataclass(slots=True, eq=False)
class Attempt:
    """The bundles of one attempt: waiting, reserved (``ids`` of each), or open."""

    group_id: bytes
    no: int
    bundles: list[tuple[int, Resources]]
    ids: list[ResourceIds] = field(default_factory=list)
    reserved: bool = False
    is_open: bool = False

    def total(self) -> Resources:
        """All of it together."""
        total: Resources = {}
        for _, bundle in self.bundles:
            for name, amount in bundle.items():
                total[name] = total.get(name, 0) + amount
        return total


@dataclass(slots=True, eq=False)
class Group:
    """What this node knows of a group that it has a part of."""

    attempts: dict[int, Attempt] = field(default_factory=dict)
    names: Resources = field(default_factory=dict)  # what the open ones offer
    left: int = -1  # leases that still run in it, once it is closing

    @property
    def closing(self) -> bool:
        """Whether it is released, and waits for the end of its processes."""
        return self.left >= 0


class Bundles:
    """The placement groups of one LeaseTable."""

    def __init__(self, table: LeaseTable) -> None:
        self._table = table
        self._groups: dict[bytes, Group] = {}
        self._waiting: dict[tuple[tuple[str, int], ...], tuple[Demand, list[Attempt]]] = {}  # by what they need
        self._gone: dict[bytes, str] = {}  # group → why
        self._asked: dict[bytes, bool] = {}  # group → whether the GCS's answer is still to come
        self.closing: set[bytes] = set()
        self._count = 0

    # -- orders of the GCS -------------------------------------------------------------------------

    def order(self, message: Message, now: float) -> list[Effect]:
        """One of ORDERS."""
        if isinstance(message, PrepareBundles):
            return self._prepare(message, now)
        if isinstance(message, CommitBundles):
            return self._commit(message, now)
        assert isinstance(message, ReleaseBundles), message
        return self._release(message, now)

    def _prepare(self, message: PrepareBundles, now: float) -> list[Effect]:
        group_id, no = message.group_id, message.attempt
        if group_id in self._gone:
            return [self._answer(group_id, no, False)]
        group = self._groups.setdefault(group_id, Group())
        attempt = group.attempts.get(no)
        if attempt is not None:  # said again
            return [self._answer(group_id, no, True)] if attempt.reserved else []
        attempt = Attempt(group_id, no, [(index, dict(bundle)) for index, bundle in message.bundles])
        if group.closing or not self._table.book.could_hold(bundle for _, bundle in attempt.bundles):
            self._forget(group_id, group)
            return [self._answer(group_id, no, False)]
        group.attempts[no] = attempt
        self._queue(attempt, attempt.total(), now)
        return self._table.schedule(now)

    def _queue(self, attempt: Attempt, total: Resources, now: float) -> None:
        """Let it wait, in one demand with all that need the same."""
        need = tuple(sorted(total.items()))
        known = self._waiting.get(need)
        if known is not None:
            demand, attempts = known
            attempts.append(attempt)
            demand.wanted += 1
            return
        self._count += 1
        job = WorkerClass(attempt.group_id[-JOB_ID_SIZE:], (("", "bundles"),))  # no worker is ever of this class
        text = f"placement group {attempt.group_id.hex()}"
        demand = Demand(OWNER, ("bundles", b"", self._count), job, 1, total, 0, text, since=now)
        demand.bundles = demand.hold = True
        self._waiting[need] = (demand, [attempt])
        self._table.demands[(OWNER, demand.key)] = demand
        self._table.queue.add(demand)

    def _unqueue(self, attempt: Attempt) -> None:
        """It waits no more: given up."""
        demand, attempts = self._waiting[tuple(sorted(attempt.total().items()))]
        attempts.remove(attempt)
        self._served(demand, attempts)
        self._table.give_up(demand, 1)

    def _served(self, demand: Demand, attempts: list[Attempt]) -> None:
        demand.reserved_at = None
        demand.warned = False
        if attempts:
            head = attempts[0].group_id
            demand.worker_class = WorkerClass(head[-JOB_ID_SIZE:], demand.worker_class.env_vars)
            demand.description = f"placement group {head.hex()}"
        else:
            del self._waiting[tuple(sorted(demand.resources.items()))]

    @property
    def waiting(self) -> bool:
        """Whether an attempt waits for resources."""
        return bool(self._waiting)

    def grant(self, demand: Demand, now: float, effects: list[Effect]) -> bool:
        """Give one of the attempts behind this demand what it needs, the first if possible."""
        book = self._table.book
        if not book.covers(demand.resources):
            return False
        _, attempts = self._waiting[tuple(sorted(demand.resources.items()))]
        for attempt in attempts[:EXAMINED]:  # equal sums are not always equal parts of devices
            ids = book.take_all(bundle for _, bundle in attempt.bundles)
            if ids is not None:
                break
        else:
            return False
        attempt.ids = ids
        attempt.reserved = True
        attempts.remove(attempt)
        demand.wanted -= 1
        demand.since = now
        self._served(demand, attempts)
        if not demand.wanted:
            del self._table.demands[(OWNER, demand.key)]
        if self._table.reserved is demand:
            self._table.reserved = None
        effects.append(self._answer(attempt.group_id, attempt.no, True))
        return True

    def _give_back(self, attempt: Attempt) -> None:
        for (_, bundle), ids in zip(attempt.bundles, attempt.ids, strict=False):
            self._table.book.give(bundle, ids)
        attempt.ids.clear()
        attempt.reserved = False

    def _commit(self, message: CommitBundles, now: float) -> list[Effect]:
        group = self._groups.get(message.group_id)
        attempt = group.attempts.get(message.attempt) if group is not None else None
        if group is None or attempt is None or attempt.is_open or not attempt.reserved:
            return []
        attempt.is_open = True
        shares: dict[str, list[tuple[int, int]]] = {}
        for (index, bundle), ids in zip(attempt.bundles, attempt.ids, strict=True):
            names = offered(message.group_id, index, bundle)
            some = {in_any(name, message.group_id): taken for name, taken in ids.items()}
            self._table.book.open(names, some)
            for name, amount in names.items():
                group.names[name] = group.names.get(name, 0) + amount
            for name, taken in some.items():
                shares.setdefault(name, []).extend(taken)
        return self._readmit(message.group_id, now) + self._table.schedule(now)

    def _release(self, message: ReleaseBundles, now: float) -> list[Effect]:
        group = self._groups.get(message.group_id)
        if message.attempt != WHOLE_GROUP:
            attempt = group.attempts.get(message.attempt) if group is not None else None
            if group is None or attempt is None or attempt.is_open:
                return []
            self._drop(group, attempt)
            self._forget(message.group_id, group)
            return self._table.schedule(now)
        effects = self._lost(message.group_id, message.reason)
        if group is not None and not group.closing:
            for attempt in [a for a in group.attempts.values() if not a.is_open]:
                self._drop(group, attempt)
            inside = [x for x in self._table.leases.values() if group_of(x.demand.resources) == message.group_id]
            for lease in inside:
                effects += self._table.pool.leave(lease.number, now, graceful=False, reason=message.reason)
            group.left = len(inside)
            self.closing.add(message.group_id)
            if not inside:
                self._close(message.group_id, group)
        return effects + self._table.schedule(now)

    def _drop(self, group: Group, attempt: Attempt) -> None:
        """An attempt that is not open is over."""
        del group.attempts[attempt.no]
        if attempt.reserved:
            self._give_back(attempt)
        else:
            self._unqueue(attempt)

    def _forget(self, group_id: bytes, group: Group) -> None:
        if not group.attempts:
            del self._groups[group_id]

    def _answer(self, group_id: bytes, attempt: int, ok: bool) -> Effect:
        return ("gcs", BundlesPrepared(group_id, attempt, ok, self._table.node_id))

    # -- the end of a group --------------------------------------------------------------------------

    def _lost(self, group_id: bytes, reason: str) -> list[Effect]:
        """Nobody gets anything there any more."""
        self._gone.pop(group_id, None)
        self._gone[group_id] = reason
        self._asked.pop(group_id, None)
        if len(self._gone) > REMEMBERED:
            del self._gone[next(iter(self._gone))]
        effects: list[Effect] = []
        for demand in self._demands_of(group_id):
            if demand.actor is None or not demand.leases:  # an actor that runs ends with its process
                effects += self._table.fail(demand, f"{GONE}: {reason}")
        return effects

    def lease_ended(self, lease: Lease) -> None:
        """It may have been the last one of a group that is closing."""
        group_id = group_of(lease.demand.resources)
        if group_id in self.closing:
            group = self._groups[group_id]
            group.left -= 1
            if not group.left:
                self._close(group_id, group)

    def _close(self, group_id: bytes, group: Group) -> None:
        self._table.book.close(group.names)
        for attempt in group.attempts.values():
            self._give_back(attempt)
        del self._groups[group_id]
        self.closing.discard(group_id)

    # -- demands in groups -----------------------------------------------------------------------------

    def screen(self, demand: Demand) -> list[Effect] | None:
        """What becomes of a demand in a group that is gone, or not there yet. None: it is like any other."""
        group_id = group_of(demand.resources)
        if group_id is None:
            return None
        reason = self._gone.get(group_id)
        if reason is not None:
            return self._table.fail(demand, f"{GONE}: {reason}")
        elsewhere = demand.actor is None and self._table.away.view.feasible(demand.resources)
        if self._table.book.feasible(demand.resources) or elsewhere:
            return None
        demand.fatal_at = None
        self._table.infeasible[(demand.owner, demand.key)] = demand
        if self._asked.get(group_id):
            return []
        self._asked[group_id] = True
        return [("group", group_id)]

    def closes(self, demand: Demand) -> bool:
        """Whether its group is closing: what ends there must not be granted anew."""
        return bool(self.closing) and group_of(demand.resources) in self.closing

    def known(self, group_id: bytes, reason: str | None, now: float) -> list[Effect]:
        """The GCS's answer: the group is there (here, or the news of it are on their way), or gone for ``reason``."""
        if group_id not in self._asked:
            return []
        if reason is not None:
            return self._lost(group_id, reason) + self._table.schedule(now)
        effects = self._readmit(group_id, now)  # who is parked again does not ask again at once
        if any(d.missing > 0 and (d.owner, d.key) in self._table.infeasible for d in self._demands_of(group_id)):
            self._asked[group_id] = False
        else:
            self._asked.pop(group_id, None)
        return effects + self._table.schedule(now)

    def _readmit(self, group_id: bytes, now: float) -> list[Effect]:
        effects: list[Effect] = []
        for demand in self._demands_of(group_id):
            if (demand.owner, demand.key) in self._table.infeasible:
                effects += self._table.admit(demand, now)
        return effects

    def _demands_of(self, group_id: bytes) -> list[Demand]:
        return [d for d in self._table.demands.values() if group_of(d.resources) == group_id]

    # -- for others ------------------------------------------------------------------------------------

    def held(self) -> list[tuple[bytes, int]]:
        """(group, attempt) of all that is reserved or open here, for a GCS that has lost its memory."""
        return [(i, no) for i, g in self._groups.items() if not g.closing for no, a in g.attempts.items() if a.reserved]

    def holdings(self) -> Iterator[Resources]:
        """What the book holds for bundles."""
        for group in self._groups.values():
            for attempt in group.attempts.values():
                if attempt.reserved:
                    yield from (bundle for _, bundle in attempt.bundles)

    def holders(self, names: list[str]) -> list[str]:
        """The groups that hold some of these resources, for a message to who waits for them."""
        return [
            f"placement group {group_id.hex()}"
            for group_id, group in self._groups.items()
            for attempt in group.attempts.values()
            if attempt.reserved and any(bundle.get(name) for _, bundle in attempt.bundles for name in names)
        ]

    def check_invariants(self) -> None:
        """Groups, attempts, queue and book tell the same story."""
        queued = 0
        for need, (demand, attempts) in self._waiting.items():
            assert demand in self._table.queue and demand.wanted == len(attempts) > 0, demand
            assert tuple(sorted(demand.resources.items())) == need
            for attempt in attempts:
                assert self._groups[attempt.group_id].attempts[attempt.no] is attempt
                assert not attempt.reserved and not attempt.ids
            queued += len(attempts)
        names: Resources = {}
        for group_id, group in self._groups.items():
            assert group.attempts or group.closing, f"{group_id.hex()} is kept for nothing"
            closes = (group_id in self._gone, group.closing, group_id in self.closing)
            assert len(set(closes)) == 1, f"does group {group_id.hex()} close? {closes}"
            inside = sum(group_of(x.demand.resources) == group_id for x in self._table.leases.values())
            assert not group.closing or group.left == inside > 0, (
                f"group {group_id.hex()} waits for {group.left} leases to end, and has {inside}"
            )
            for attempt in group.attempts.values():
                assert attempt.reserved or (attempt.group_id, attempt.is_open) == (group_id, False)
                queued -= not attempt.reserved
            for name, amount in group.names.items():
                assert self._table.book.totals[name] == amount, name
            names.update(group.names)
        assert queued == 0, "an attempt waits outside the queue"
        offered_here = {name for name in self._table.book.totals if group_of({name: 1}) is not None}
        assert offered_here <= names.keys(), "a group that is gone is still offered"
