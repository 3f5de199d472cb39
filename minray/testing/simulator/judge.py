"""What must hold in every simulated cluster. After each step the cheap part; all of it now and then, and at rest.

Nothing here changes anything. A broken promise raises SimulationError.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from minray.node.worker_pool import MAX_FAILED_STARTS
from minray.store.holds import Gone
from minray.testing.simulator.ledger import ActorFacts, SimulationError
from minray.testing.simulator.network import GCS_ID
from minray.testing.simulator.process import Process
from minray.testing.simulator.worker import Worker
from minray.wire.messages import Address
from minray.worker.references import ERROR, PENDING, ObjectRecord
from minray.worker.tasks import ITEM, Task

if TYPE_CHECKING:
    from minray.testing.simulator.world import World

LAST_WORDS_S = 0.4  # what was answered counts, if the answer does not take longer than that to arrive


class Judge:
    """Of one world."""

    def __init__(self, world: World) -> None:
        self.world = world

    # -- while things happen -------------------------------------------------------------------------

    def task_starts(self, worker: Worker, owner: Address, spec: tuple[Any, ...]) -> None:
        """Does its owner still want this attempt?"""
        process = self._hears(worker, owner)
        if process is not None:
            task = process.core.owner.tasks.get(spec[0])
            if task is None or task.attempt != spec[1] or task.lease is None:
                raise SimulationError(f"{worker} starts task {spec[0]}, attempt {spec[1]}, which is given up")

    def call_starts(self, worker: Worker, caller: Address, spec: tuple[Any, ...]) -> None:
        """Is it in flight at its caller? (If that has heard that this incarnation is over, it has given it up.)"""
        process = self._hears(worker, caller)
        if process is not None and not self._counts_as_over(worker):
            task = process.core.calls.tasks.get(spec[0])
            if task is None or task.attempt != spec[1] or spec[0] not in task.actor.inflight:
                raise SimulationError(f"{worker} starts call {spec[0]}, attempt {spec[1]}, which is given up")

    def _hears(self, worker: Worker, owner: Address) -> Process | None:
        """The owner, if it lives and the worker's machine does not count as dead."""
        return self.world.processes.get(owner[1]) if self.world.is_member(worker.worker_id) else None

    def answers_arrive(self, process: Process, source: Address, results: list[tuple[Any, ...]]) -> None:
        """What has been answered counts, also if its sender is dead by now."""
        world = self.world
        if world.clock.now - self._over_since(source[1]) > LAST_WORDS_S:
            return
        if not world.is_member(source[1]) or not world.is_member(process.worker_id):
            return
        core = process.core
        for seq, attempt, status, *_ in results:
            task = core.owner.tasks.get(seq) or core.calls.tasks.get(seq)
            if status != ITEM and (task is None or task.attempt != attempt):
                raise SimulationError(f"{process} has given up attempt {attempt} of {seq}, and here is its answer")

    def _over_since(self, worker_id: bytes) -> float:
        """Since when others may know that it is dead, or, an incarnation that is over, as good as."""
        world = self.world
        died = world.died_at.get(worker_id, world.clock.now)
        if worker_id not in world.ledger.roles:
            return died
        facts, incarnation = world.ledger.roles[worker_id]
        return min(died, facts.over.get(incarnation, died))

    def _counts_as_over(self, process: Process) -> bool:
        """Whether nobody waits for its last words any more."""
        return self.world.clock.now - self._over_since(process.worker_id) > LAST_WORDS_S

    def get_ends(self, process: Process, object_id: bytes, error: tuple[Any, ...]) -> None:
        """A get ends in an error: only in one for which there is a reason."""
        world, seen = self.world, self.world.ledger.seen
        while error[0] == "dependency":
            error = error[2]
        kind = error[0]
        deaths = len(world.died_at) > 0
        reasons = {
            "task": True,  # its body raised
            "end_of_stream": True,
            "cancelled": seen["cancel"] > 0,
            "crashed": deaths,
            "actor_died": True,  # killed, out of scope, its constructor raised …
            "actor_unavailable": deaths,
            "unschedulable": seen["hopeless task"] > 0 or self._may_be_unschedulable(),
            "unmade": len(world.nodes) < len(world.machines),
            "owner_died": kind == "owner_died" and world.is_dead(error[2][1]),
            "freed": kind == "freed" and error[1] in world.ledger.tainted,
        }
        seen[f"error {kind}"] += 1
        if kind not in reasons:
            raise SimulationError(f"{process}: a get ends in an error that nobody knows: {error}")
        if not reasons[kind]:
            if kind == "freed":
                raise SimulationError(f"{process} references {object_id.hex()}, which its owner has freed")
            raise SimulationError(f"{process}: a get ends in {error}, and there is no reason for it")

    def call_fails(self, process: Process, task: Task, error: tuple[Any, ...]) -> None:
        """A call ends without an answer: only if its actor is over, or if all that it was allowed is used up."""
        ledger = self.world.ledger
        kind = error[0]
        if kind == "actor_died":
            if self.world.gcs.said_of(task.actor.actor_id) != "DEAD":
                raise SimulationError(f"call {task.seq} of {process} fails as if its actor were dead")
        elif kind == "actor_unavailable":
            name = (process.worker_id, task.seq)
            allowed, sent = ledger.limits[name], ledger.sent[name]
            if allowed < 0 or sent < allowed:
                raise SimulationError(f"call {task.seq} of {process} is given up after {sent} of {allowed} attempts")
        elif kind == "cancelled":
            if not task.cancelled:
                raise SimulationError(f"call {task.seq} of {process} counts as cancelled, and nobody did")
        elif kind != "dependency":
            raise SimulationError(f"call {task.seq} of {process} ends in {error}")

    def actor_ends(self, facts: ActorFacts, cause: dict[str, Any]) -> None:
        """The GCS says that an actor is over: is there a reason?"""
        world, kind = self.world, cause.get("kind")
        limit = facts.options["max_restarts"]
        used_up = 0 <= limit < facts.restarts()
        owner = facts.owner[1]
        job_over = facts.actor_id[12:] in world.ended_jobs() or not world.is_member(self._driver(facts))
        reasons = {
            "killed": True in facts.kills or (bool(facts.kills) and (used_up or facts.released)),
            "out_of_scope": facts.released,
            "creation_failed": facts.options["fails"] or bool(world.died_at),
            "exited": facts.exits or bool(facts.kills) or facts.released or job_over or bool(world.ledger.groups),
            "owner_died": world.is_dead(owner) or not world.is_member(owner),
            "job_finished": job_over,
            "unschedulable": self._may_be_unschedulable(),
            "worker_died": used_up,
            "node_died": used_up,
            "unknown": not facts.created,
        }
        world.ledger.seen[f"end of an actor: {kind}"] += 1
        if not reasons.get(str(kind), False):
            raise SimulationError(
                f"an actor ends for no reason: {cause}; max_restarts={limit}, broken {sorted(facts.broken)}, "
                f"killed {facts.kills}"
            )

    def _may_be_unschedulable(self) -> bool:
        """What was bound to a machine or a group that is no more; or too many workers died before they could work."""
        world = self.world
        hopeless = world.ledger.failed_starts >= MAX_FAILED_STARTS
        return hopeless or len(world.machines) > 1 or bool(world.ledger.groups)

    def _driver(self, facts: ActorFacts) -> bytes:
        return self.world.driver_of(facts.actor_id[12:])[1]

    def unreadable(self, process: Process, object_id: bytes, gone: Gone) -> None:
        """The store does not give an object to who references it: has the disk lost it, or its owner's death?"""
        world = self.world
        world.ledger.seen[f"unreadable: {gone.kind}"] += 1
        if gone.kind == "full" or (gone.kind == "lost" and world.ledger.seen["lost on disk"]):
            return
        lives = any(other[:12] == object_id[:12] for other in world.processes)
        if lives and object_id not in world.ledger.tainted:
            raise SimulationError(f"{process} references {object_id.hex()}, and cannot read it: {gone}")

    # -- after each step -----------------------------------------------------------------------------

    def step(self, *, everything: bool) -> None:
        """Who has been touched agrees with itself, and nobody uses what is freed."""
        world, touched = self.world, self.world.touched
        for node_id, node in world.nodes.items():
            if everything or node_id in touched:
                node.check_invariants()
        if everything or GCS_ID in touched:
            world.gcs.check_invariants()
        for worker_id, process in world.processes.items():
            if everything or worker_id in touched:
                process.core.check_invariants()
                if process.store is not None:
                    process.store.check_invariants()
                if isinstance(process, Worker):
                    process.queue.check_invariants()
        if everything:
            checked = list(world.processes.values())
        else:
            checked = [world.processes[one] for one in touched if one in world.processes]
        for process in checked:
            self._references(process)
        if not everything:
            self._freed_here(touched)
        touched.clear()

    def _references(self, process: Process) -> None:
        """What it uses is not freed at its owner (unless a dead process had it in its hands)."""
        world, tainted = self.world, self.world.ledger.tainted
        for object_id, record in process.core.objects.items():
            if record.owner is None:
                homeless = record.status == ERROR and record.value == ("freed", object_id)
                if homeless and object_id not in tainted and not self._is_late(process, object_id, record):
                    raise SimulationError(f"{object_id.hex()} comes home to {process} after its end")
            elif record.in_use() and object_id not in tainted:
                owner = world.processes.get(record.owner[1])
                freed = owner is not None and object_id not in owner.core.objects
                if freed and not self._is_late(process, object_id, record):
                    raise SimulationError(f"{process} uses {object_id.hex()}, which {owner} has freed")

    def _freed_here(self, touched: set[bytes]) -> None:
        """What a touched process has freed is used nowhere else."""
        world, tainted = self.world, self.world.ledger.tainted
        freed: list[bytes] = []
        for process in map(world.processes.get, touched):
            if process is not None:
                freed += [i for i in process.freed if i not in tainted and i not in process.core.objects]
        for process in world.processes.values() if freed else ():
            for object_id in freed:
                record = process.core.objects.get(object_id)
                used = record is not None and record.owner is not None and record.in_use()
                if used and not self._is_late(process, object_id, record):
                    raise SimulationError(f"{process} uses {object_id.hex()}, which its owner has freed")
        for one in touched:
            if one in world.processes:
                world.processes[one].freed.clear()

    def _is_late(self, process: Process, object_id: bytes, record: ObjectRecord | None) -> bool:
        """Whether an incarnation that is over, and has not heard of it yet, has it only through its calls: their
        callers do not wait for it for ever. Whoever gets it from there may find it freed, too."""
        late = self._counts_as_over(process) and record is not None and not record.entitled
        if late:
            self.world.ledger.taint(object_id)
        return late

    def call_ends(self, worker: Worker, retained: list[tuple[bytes, Address]] | None) -> None:
        """What it keeps of its arguments its caller answers for; if that has given the call up, nobody does."""
        if self._counts_as_over(worker):
            self.world.ledger.taint(retained)

    # -- when all is quiet -----------------------------------------------------------------------------

    def quiet(self) -> None:
        """Nothing is in flight and nobody can go on: then nobody waits for what is there, or for an answer."""
        world = self.world
        for node in world.nodes.values():
            node.check_progress()
        world.gcs.check_quiet()
        for process in world.processes.values():
            for lease in process.core.owner.leases.values():
                if lease.stealing and lease.worker[1] in world.processes:
                    raise SimulationError(f"{process} never hears what lease {lease.lease_no} had to give back")

    def rest(self) -> None:
        """All is quiet and nobody references anything: nothing may be left."""
        world = self.world
        self.step(everything=True)
        for process in world.processes.values():
            self._empty(process)
        for node in world.nodes.values():
            node.check_rest()
        ended = world.ended_jobs()
        for worker in world.workers():
            if worker.job_id in ended:
                raise SimulationError(f"{worker} has outlived its job")
        for process in world.processes.values():
            if process.asked:
                raise SimulationError(f"{process} has no answer to its requests {sorted(process.asked)}")
        world.gcs.check_rest()

    def _describe(self, record: ObjectRecord) -> dict[str, Any]:
        shown = {name: getattr(record, name) for name in record.__slots__ if getattr(record, name)}
        for name in ("borrowers",):
            if name in shown:
                shown[name] = {self._who(one): count for one, count in shown[name].items()}
        return shown

    def _who(self, one: bytes) -> str:
        world = self.world
        state = "" if one in world.processes else " (dead)"
        return world.name_of(one) + state

    def _empty(self, process: Process) -> None:
        core = process.core
        unfinished = [*core.owner.tasks, *core.calls.tasks]
        if unfinished:
            raise SimulationError(f"{process}: unfinished tasks {unfinished}")
        if core.objects:
            pending = [i for i, r in core.objects.items() if r.status == PENDING]
            first = next(iter(core.objects))
            raise SimulationError(
                f"{process}: {len(core.objects)} objects are left, {len(pending)} pending, e.g. "
                f"{first.hex()} ({self._describe(core.objects[first])})"
            )
        if core.streams:
            raise SimulationError(f"{process}: generators are left: {list(core.streams)}")
        if core.lineage is not None and core.lineage.bytes:
            raise SimulationError(f"{process}: {core.lineage.bytes} bytes of lineage are left")
        mine = [i for i in self.world.ledger.copies if i[:12] == process.worker_id[:12]]
        if mine:
            raise SimulationError(f"{process}: {mine[0].hex()} is still in the store")
