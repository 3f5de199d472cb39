"""What to do for those who still wait after granting: start workers, take leases back. Pure.

Three reasons to wait, three answers:

* resources are free but no worker is idle: order workers, a few at a time, up to the soft cap; above it
  one at a time and only while nobody runs (all are blocked) or patience has ended; at the hard cap the
  newest request fails with the chain of who waits for whom;
* resources are leased to somebody who does not need them (an excess lease), or who has had its turn while
  others have nothing (a quantum has passed): revoke, at the worker itself, so that a busy owner cannot
  hold the machine;
* resources are coming but smaller requests would snatch them: reserve.

Called by node.leases with its LeaseTable. Invariant: a lease is revoked only if what is revoked, together
with what is free or coming, satisfies the demand that it is revoked for.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from minray._base.groups import plain
from minray._base.resources import describe
from minray.node.demands import Demand, WorkerClass
from minray.node.worker_pool import STARTING, Effect
from minray.wire.messages import Resources

if TYPE_CHECKING:
    from minray.node.leases import Lease, LeaseTable

EXAMINED = 8  # waiting demands per pass for which leases are taken back
GENEROSITY = 4  # which excess lease is idle only its owner knows: take more than one
RESERVE_S = 5.0  # how long others are held back for a demand whose resources are coming
PLENTY = 1 << 30


@dataclass(slots=True)
class Plan:
    """One look at the queue."""

    free: Resources  # what is left after everybody who only lacks a worker
    tasks: dict[WorkerClass, int] = field(default_factory=dict)  # workers lacking
    actors: dict[WorkerClass, int] = field(default_factory=dict)
    unmet: list[tuple[Demand, int]] = field(default_factory=list)  # who lacks resources, for how many workers


def fit_count(free: Resources, request: Resources) -> int:
    """How many times ``request`` can be taken out of ``free``."""
    count = PLENTY
    for name, amount in request.items():
        if amount > 0:
            count = min(count, max(0, free.get(name, 0)) // amount)
    return count


def _take(free: Resources, request: Resources, count: int) -> None:
    for name, amount in request.items():
        free[name] = free.get(name, 0) - amount * count


def order_starts(table: LeaseTable, now: float) -> list[Effect]:
    """Start workers and revoke leases for the demands in the queue."""
    if short_of_memory(table, now):
        table.reserved = table.stall_at = table.away.decline_at = None
        return _send_away(table, Plan({}, unmet=[(d, d.missing) for d in table.queue if not d.bundles]), now)
    plan = _look(table)
    effects = _start(table, plan, now)
    table.reserved = table.stall_at = table.away.decline_at = None
    if plan.unmet:
        effects += _send_away(table, plan, now)
        effects += _relieve(table, plan, now)
        effects += _warn_stalled(table, plan, now)
    return effects


def _look(table: LeaseTable) -> Plan:
    plan = Plan(dict(table.book.available))
    left = table.pool.max_starting
    for demand in table.queue:
        if held_back(table, demand):
            continue
        fits = fit_count(plan.free, demand.resources)
        count = min(demand.missing, fits, left)
        if demand.bundles:
            _take(plan.free, demand.resources, count)
        elif count > 0:
            lacking = plan.actors if demand.actor is not None else plan.tasks
            lacking[demand.worker_class] = lacking.get(demand.worker_class, 0) + count
            held = demand.actor.lifetime_resources if demand.actor is not None else demand.resources
            _take(plan.free, held, count)
            left -= count
        if fits < demand.missing:
            plan.unmet.append((demand, demand.missing - fits))
        if left <= 0:
            break
    return plan


def _start(table: LeaseTable, plan: Plan, now: float) -> list[Effect]:
    pool = table.pool
    effects: list[Effect] = []
    room = pool.start_room()
    # actors' workers do not count towards the cap, but until they are given out nobody knows which these are
    for_actors = min(pool.count(STARTING), sum(plan.actors.values()))
    spare = max(0, pool.soft - (pool.task_workers - for_actors))
    capped: WorkerClass | None = None
    for worker_class in {**plan.actors, **plan.tasks}:
        if pool.paused(worker_class, now):
            continue
        have = pool.idle(worker_class) + pool.starting(worker_class)
        actors, tasks = plan.actors.get(worker_class, 0), plan.tasks.get(worker_class, 0)
        for_them = min(room, max(0, actors - have))
        room -= for_them
        lacking = max(0, tasks - max(0, have - actors))
        for_tasks = min(room, lacking, spare)
        room -= for_tasks
        spare -= for_tasks
        effects += pool.start(worker_class, for_them + for_tasks, now)
        if lacking > for_tasks and spare == 0 and capped is None:
            capped = worker_class
    if capped is None:
        table.capped_since = None
        return effects
    return effects + _at_cap(table, capped, now)


# -- caps ------------------------------------------------------------------------------------------


def _at_cap(table: LeaseTable, worker_class: WorkerClass, now: float) -> list[Effect]:
    """Somebody has resources but no worker, and the soft cap is reached."""
    pool = table.pool
    if table.capped_since is None:
        table.capped_since = now
    effects = pool.make_room(now, worker_class)
    if effects:
        return effects + pool.start(worker_class, 1, now)
    if pool.count(STARTING):
        return []
    stuck = all(x.blocked or x.demand.actor is not None for x in table.leases.values())
    if stuck or now >= table.capped_since + table.cap_patience_s:
        if pool.task_workers < pool.hard:
            table.capped_since = now
            return pool.start(worker_class, 1, now)
        if stuck:
            return _fail_newest(table)
    return _revoke_some(table, _excess(table, None)[:GENEROSITY])


def _fail_newest(table: LeaseTable) -> list[Effect]:
    waiting = [d for d in table.queue if d.actor is None and not d.bundles]
    waiting = [d for d in waiting if fit_count(table.book.available, d.resources)]
    demand = max(waiting, key=lambda d: d.since)
    text = (
        f"{demand.description} has no worker to run on: all {table.pool.hard} workers that may live at once "
        f"(MINRAY_MAX_WORKERS_HARD) are blocked, each waiting for the next: {chain(table, demand.owner)} → "
        f"{demand.description}. Break the recursion, or raise the limit."
    )
    table.capped_since = None
    return table.fail(demand, text)


def chain(table: LeaseTable, owner: bytes) -> str:
    """Who waits for whom, from the first to ``owner``: shortened in the middle."""
    names: list[str] = []
    seen: set[bytes] = set()
    while owner not in seen:
        seen.add(owner)
        worker = table.pool.by_id.get(owner)
        lease = table.leases.get(worker.lease_no) if worker is not None else None
        if lease is None:
            names.append("driver" if worker is None else f"worker {worker.number}")
            break
        names.append(f"{lease.demand.description} (worker {lease.number})")
        owner = lease.demand.owner
    names.reverse()
    if len(names) > 9:
        names[4:-4] = [f"… {len(names) - 8} more …"]
    return " → ".join(names)


# -- waits that nobody can shorten -----------------------------------------------------------------


def _warn_stalled(table: LeaseTable, plan: Plan, now: float) -> list[Effect]:
    """Who has waited for long, for what only actors and placement groups hold, is told so once: that may last
    for ever."""
    effects: list[Effect] = []
    for demand, _ in plan.unmet[:EXAMINED]:
        if demand.warned or demand.leases:
            continue
        short = [n for n, amount in demand.resources.items() if amount > table.book.available.get(n, 0)]
        holders = [x for x in table.leases.values() if any(x.held.get(n, 0) > 0 for n in short)]
        groups = table.bundles.holders(short)
        if not (holders or groups) or any(x.demand.actor is None for x in holders):
            continue
        due = demand.since + table.grace_s
        if now < due:
            table.stall_at = due if table.stall_at is None else min(due, table.stall_at)
            continue
        demand.warned = True
        names = Counter([*(x.demand.description for x in holders), *groups])
        held = ", ".join(f"{count} × {name}" for name, count in names.most_common(5))
        books = (table.book.available, table.book.totals)
        free, totals = (plain({name: book.get(name, 0) for name in short}) for book in books)
        text = (
            f"{demand.description} has waited {table.grace_s:g} s for {describe(plain(demand.resources))}: only "
            f"{describe(free)} of {describe(totals)} is free, and {_who(holders, groups)} hold the rest for as "
            f"long as they live ({held})."
        )
        effects.append(("warn", demand.worker_class.job_id, text))
    return effects


def _who(actors: list[Lease], groups: list[str]) -> str:
    return " and ".join([*["actors"] * bool(actors), *["placement groups"] * bool(groups)])


# -- taking leases back ----------------------------------------------------------------------------


def _send_away(table: LeaseTable, plan: Plan, now: float) -> list[Effect]:
    """Other nodes may have what is lacking here; what remains stays in the plan. Those who lack it take turns at the
    nodes with room, so that who lacks the most does not get it all."""
    effects: list[Effect] = []
    waiting, left = plan.unmet[:EXAMINED], plan.unmet[EXAMINED:]
    while waiting:
        again: list[tuple[Demand, int]] = []
        for demand, lacking in waiting:
            before = demand.missing
            effects += table.away.relieve(demand, lacking, now)
            gone = before - demand.missing
            if not gone:
                left.append((demand, lacking))
                continue
            table.queue.turn_over(demand)
            if lacking > gone:
                again.append((demand, lacking - gone))
        waiting = again
    plan.unmet = left
    return effects


def _relieve(table: LeaseTable, plan: Plan, now: float) -> list[Effect]:
    effects: list[Effect] = []
    coming = plan.free
    for lease in table.leases.values():
        if lease.revoked:
            _take(coming, lease.booked(), -1)
    for demand, lacking in plan.unmet[:EXAMINED]:
        helped = 0
        while helped < lacking:
            fits = min(lacking - helped, fit_count(coming, demand.resources))
            if fits:
                _take(coming, demand.resources, fits)
                helped += fits
                _reserve(table, demand, now)
                continue
            victims = _victims(table, demand, coming, len(demand.leases) + helped, now)
            if not victims:
                break
            effects += _revoke_some(table, victims)
            for lease in victims:
                _take(coming, lease.booked(), -1)
    return effects


def _reserve(table: LeaseTable, demand: Demand, now: float) -> None:
    if table.reserved is None and not table.away.passes_by(demand):
        if demand.reserved_at is None:
            demand.reserved_at = now
        if now < demand.reserved_at + RESERVE_S:
            table.reserved = demand


def let_go(table: LeaseTable, now: float) -> None:
    """End a reservation that has lasted too long."""
    reserved = table.reserved
    if reserved is not None and (reserved.reserved_at is None or now >= reserved.reserved_at + RESERVE_S):
        table.reserved = None


def short_of_memory(table: LeaseTable, now: float) -> bool:
    """Whether nothing may begin here now: memory has run out, and something runs that may be what fills it."""
    if table.memory_hold is not None and now >= table.memory_hold:
        table.memory_hold = None
    return table.memory_hold is not None and bool(table.leases)


def held_back(table: LeaseTable, demand: Demand) -> bool:
    """Whether granting ``demand`` would take what is coming together for another."""
    reserved = table.reserved
    if reserved is None or reserved is demand or demand.depth > reserved.depth or reserved not in table.queue:
        return False
    wants = demand.resources
    short = [n for n, amount in reserved.resources.items() if amount > 0 and wants.get(n, 0) > 0]
    available = table.book.available
    return any(available.get(n, 0) - wants[n] < reserved.resources[n] for n in short)


def _excess(table: LeaseTable, waiter: Demand | None) -> list[Lease]:
    """Leases that their owners did not ask to keep, oldest first per owner."""
    found: list[Lease] = []
    for demand in table.demands.values():
        if demand is waiter or demand.excess <= 0 or demand.actor is not None:
            continue
        leases = [table.leases[no] for no in sorted(demand.leases)]
        over = demand.excess - sum(x.revoked for x in leases)
        found += [x for x in leases if not x.revoked and not x.blocked][: max(0, over)]
    return found


def _overlong(table: LeaseTable, waiter: Demand, has: int, now: float) -> list[Lease]:
    """Leases whose owner has had its turn, while ``waiter`` has ``has`` workers or hopes of one."""
    found: list[Lease] = []
    for demand in table.demands.values():
        if demand is waiter or demand.actor is not None or demand.depth > waiter.depth:
            continue
        leases = [x for x in (table.leases[no] for no in demand.leases) if not x.revoked]
        over = len(leases) - has - 1 if has else len(leases)
        usable = sorted((x for x in leases if not x.blocked), key=lambda x: x.since)
        for lease in usable[: max(0, over)]:
            if lease.since + table.quantum_s <= now:
                found.append(lease)
            elif table.wake_at is None or lease.since + table.quantum_s < table.wake_at:
                table.wake_at = lease.since + table.quantum_s
    return sorted(found, key=lambda x: x.since)


def _victims(table: LeaseTable, waiter: Demand, coming: Resources, has: int, now: float) -> list[Lease]:
    """Leases whose end makes room for one more worker of ``waiter``; empty if that is not to be had."""
    short = {n for n, amount in waiter.resources.items() if amount > coming.get(n, 0)}
    hope = dict(coming)
    chosen: list[Lease] = []
    enough = 0
    for lease in _excess(table, waiter):
        if any(lease.held.get(name, 0) > 0 for name in short):
            chosen.append(lease)
            _take(hope, lease.booked(), -1)
            enough += fit_count(hope, waiter.resources) > 0
            if enough >= GENEROSITY:
                break
    if enough or table.away.passes_by(waiter):
        return chosen if enough else []
    taken = {lease.no for lease in chosen}
    for lease in _overlong(table, waiter, has, now):
        if lease.no not in taken and any(lease.held.get(name, 0) > 0 for name in short):
            chosen.append(lease)
            _take(hope, lease.booked(), -1)
            if fit_count(hope, waiter.resources) > 0:
                return chosen
    return []


def _revoke_some(table: LeaseTable, leases: list[Lease]) -> list[Effect]:
    effects: list[Effect] = []
    for lease in leases:
        effects += table.revoke(lease)
    return effects


