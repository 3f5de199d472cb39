"""What of an ended job may stay on this node, and for how long. Pure.

    its driver is gone ──▶ detached actors, whoever works for them, owners on other nodes  ──▶ stay
                           all others: demands, actors that wait, workers                  ──▶ end
    then, whenever a demand of the job is over or a worker of it registers ──▶ does anybody want workers yet?
                                                                               no: the idle ones end

Called by node.leases, of whose table it is a part, and by node.jobs. Invariant: after ``sweep``, no worker of an ended
job is idle while no demand of that job is left.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from minray.node.worker_pool import IDLE, Effect

if TYPE_CHECKING:
    from minray.node.leases import LeaseTable

ENDED = "its job has ended"


class JobEnds:
    """The ended jobs of one LeaseTable."""

    def __init__(self, table: LeaseTable) -> None:
        self._table = table
        self._over: set[bytes] = set()  # may have something left here
        self._loose: dict[bytes, None] = {}  # of these: whose workers may have become superfluous

    def gone(self, job_id: bytes, now: float, driver: bytes = b"") -> list[Effect]:
        """A driver is gone: its workers end, except detached actors and whoever works for them. Owners on other
        nodes may be, or work for, such actors: the driver excepted, their own ends decide."""
        table = self._table
        spared = table.actors.detached_workers(job_id) | self._owners_elsewhere(job_id) - {driver}
        frontier = set(spared)
        while frontier:
            frontier = {x.worker_id for x in table.leases.values() if x.demand.owner in frontier} - spared
            spared |= frontier
        effects = table.actors.job_gone(job_id, spared)
        table.pool.job_gone(job_id)
        self._over.add(job_id)
        if not spared:
            table.homes.pop(job_id, None)
        for demand in list(table.demands.values()):
            plain = demand.actor is None and not demand.bundles
            if plain and demand.worker_class.job_id == job_id and demand.owner not in spared:
                table.withdraw(demand)
        for worker in list(table.pool.workers.values()):
            if worker.worker_class.job_id == job_id and worker.worker_id not in spared:
                lease = table.leases.get(worker.lease_no)
                graceful = lease is None or lease.demand.actor is not None
                table.addresses.pop(worker.worker_id, None)
                effects += table.pool.leave(worker.number, now, graceful=graceful, reason=ENDED)
        return effects + table.schedule(now)

    def _owners_elsewhere(self, job_id: bytes) -> set[bytes]:
        """The processes on other nodes, of that job, for which something runs or waits here."""
        table = self._table
        found = set()
        for demand in (*table.demands.values(), *(lease.demand for lease in table.leases.values())):
            if demand.worker_class.job_id != job_id:
                continue
            if demand.actor is not None:
                home, owner, _ = demand.actor.spec["owner"]
                if home != table.node_id:
                    found.add(owner)
            elif demand.owner in table.away.strangers:
                found.add(demand.owner)
        return found

    def over(self, job_id: bytes) -> None:
        """It had ended before anything of it came here: what serves its detached actors goes with them."""
        self._over.add(job_id)

    def loosen(self, job_id: bytes) -> None:
        """If that job has ended, ``sweep`` is to see whether anybody works or waits for it yet."""
        if job_id in self._over:
            self._loose[job_id] = None

    def sweep(self, now: float) -> list[Effect]:
        """A job that has ended, and for which nobody works or waits here any more, needs no idle workers."""
        effects: list[Effect] = []
        table = self._table
        while self._loose:
            job_id, _ = self._loose.popitem()
            if any(demand.worker_class.job_id == job_id for demand in table.demands.values()):
                continue
            workers = [w for w in table.pool.workers.values() if w.worker_class.job_id == job_id]
            for worker in [w for w in workers if w.state == IDLE]:
                table.addresses.pop(worker.worker_id, None)
                effects += table.pool.leave(worker.number, now, graceful=True, reason=ENDED)
        return effects

    def anything_left(self, job_id: bytes) -> bool:
        """Whether something of that job runs or waits here."""
        table = self._table
        if any(worker.worker_class.job_id == job_id for worker in table.pool.workers.values()):
            return True
        return any(demand.worker_class.job_id == job_id for demand in table.demands.values())

    def forget(self, job_id: bytes) -> None:
        """It is over, and nothing of it is here."""
        self._table.homes.pop(job_id, None)
        self._over.discard(job_id)
        self._loose.pop(job_id, None)
