"""The simulated node and GCS: the real tables, and what node.service and gcs.service do around them.

The two are told apart by their ids on the network, although in a session of one machine they are one process:
so messages between them, and between each of them and the workers, may come in any order.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from minray.gcs.actors import ActorError, ActorTable
from minray.gcs.nodes import NodeTable
from minray.node.deaths import DeathBook
from minray.node.demands import WorkerClass
from minray.node.leases import LeaseTable
from minray.node.pressure import held_back
from minray.node.worker_pool import LEAVING, WorkerPool
from minray.testing.simulator.ledger import SimulationError
from minray.testing.simulator.process import CPU, EOF, GCS_ID, NODE_ID, Process
from minray.wire.messages import (
    ActorEnded,
    ActorStarted,
    ActorUpdate,
    Blocked,
    Died,
    ExitWorker,
    KillWorker,
    LeaseDemand,
    LeaseEnded,
    LeaseReturn,
    Message,
    StartActor,
    StopActor,
    Unblocked,
    Watch,
)

if TYPE_CHECKING:
    from minray.testing.simulator.run import Simulation

SHUTDOWN_GRACE_S = 2.0


class Node:
    """One node: leases, workers, deaths."""

    def __init__(self, sim: Simulation, cpus: int) -> None:
        self.sim = sim
        self.pool = WorkerPool(cpus=cpus, new_worker_id=lambda: sim.rng.randbytes(28), idle_s=5.0)
        self.table = LeaseTable(NODE_ID, {"CPU": cpus * CPU}, self.pool, infeasible_grace_s=3.0)
        self.deaths = DeathBook()
        self.registered: set[bytes] = set()
        self.expected: set[int] = set()  # workers that were told to end
        self._rest_of: list[tuple[float, bytes]] = []  # jobs that have ended: when their workers are killed

    # -- in ------------------------------------------------------------------------------------------

    def driver_joined(self, driver: Process) -> None:
        """A driver has registered."""
        self.registered.add(driver.worker_id)
        self.table.driver_joined(driver.worker_id, driver.address, WorkerClass(driver.job_id))
        self.deaths.born(driver.worker_id)
        self.do(self.table.prestart(driver.job_id, self.pool.cpus, self.sim.now))

    def receive(self, source: bytes, message: Any) -> None:
        """One message of a worker, a driver, or the GCS."""
        if source == GCS_ID:
            self._on_gcs(message)
        elif type(message) is tuple and message[0] == "register":
            self._register(source, message[1])
        elif type(message) is tuple and message[0] == "exited":
            self._worker_ended(source, message[1], message[2])
        elif message is EOF:
            self._driver_gone(source)
        elif source in self.registered:  # else its connection is closed already
            self._on_message(source, message)

    def _on_message(self, source: bytes, msg: Message) -> None:
        table, now = self.table, self.sim.now
        if isinstance(msg, Watch):
            self.do(self.deaths.watch(source, msg.worker_id))
        elif isinstance(msg, LeaseDemand):
            self.do(table.demand(source, msg, now))
        elif isinstance(msg, LeaseReturn):
            self.do(table.returned(source, msg.lease_no, msg.retire, now))
        elif isinstance(msg, LeaseEnded):
            self.do(table.ended(source, msg.lease_no, now))
        elif isinstance(msg, Blocked):
            self.do(table.blocked(source, msg.lease_no, now))
        elif isinstance(msg, Unblocked):
            self.do(table.unblocked(source, msg.lease_no, now))
        elif isinstance(msg, KillWorker):
            self.do(table.kill(source, msg.lease_no, now))
        elif isinstance(msg, ActorStarted):
            if msg.error is not None:
                self.expected.add(self.pool.by_id[source].number)
            self.tell_gcs(msg)
        elif isinstance(msg, ActorEnded):
            self.expected.add(self.pool.by_id[source].number)
        else:
            raise SimulationError(f"the node has no use for {msg}")

    def _on_gcs(self, msg: Message) -> None:
        now = self.sim.now
        if isinstance(msg, StartActor):
            self.do(self.table.start_actor(msg, now))
        elif isinstance(msg, StopActor):
            if "out of scope" in msg.reason and not msg.graceful:
                raise SimulationError("an actor is killed, not asked to end, because it is out of scope")
            effects = self.table.stop_actor(
                msg.actor_id, msg.incarnation, now, graceful=msg.graceful, reason=msg.reason
            )
            self.do(effects)
        else:
            raise SimulationError(f"the GCS sends no {msg}")

    def _register(self, worker_id: bytes, number: int) -> None:
        process = self.sim.processes.get(worker_id)
        if process is not None:
            self.registered.add(worker_id)
            self.deaths.born(worker_id)
            self.do(self.table.registered(number, process.address, self.sim.now))

    def _worker_ended(self, worker_id: bytes, number: int, page: tuple[int, int, int]) -> None:
        """Its parent has reaped it; what it had said and is not read yet is lost."""
        self.registered.discard(worker_id)
        self.sim.network.forget((worker_id, NODE_ID))
        cause = {"text": "exit code -9", "expected": number in self.expected}
        worker = self.pool.workers.get(number)
        lease = self.table.leases.get(worker.lease_no) if worker is not None else None
        owner = lease.demand.owner if lease is not None and lease.demand.actor is None else b""
        worker, effects = self.table.exited(number, cause, page, self.sim.now)
        self.do(effects)
        if worker is not None:
            self.do(self.deaths.died(worker_id, cause, page[1:], told=owner))
            self.tell_gcs(Died(worker_id, -1, -1, -1, cause))

    def _driver_gone(self, driver: bytes) -> None:
        if driver not in self.registered:
            return
        self.registered.discard(driver)
        job_id, now = self.sim.job_of[driver], self.sim.now
        self.do(self.table.owner_gone(driver, now))
        self.do(self.table.job_gone(job_id, now))
        cause = {"text": "the driver is gone", "expected": True}
        self.do(self.deaths.died(driver, cause))
        self.tell_gcs(Died(driver, -1, -1, -1, cause))
        self._rest_of.append((now + SHUTDOWN_GRACE_S, job_id))

    # -- out -----------------------------------------------------------------------------------------

    def tell_gcs(self, msg: Message) -> None:
        """A report."""
        self.sim.network.send(NODE_ID, GCS_ID, msg)

    def do(self, effects: list[Any]) -> None:
        """Perform what the tables want, in order."""
        for effect in effects:
            kind = effect[0]
            if kind == "send":
                if effect[1] in self.registered:
                    self.sim.network.send(NODE_ID, effect[1], effect[2])
            elif kind == "start":
                self.sim.start_worker(effect[1], effect[2], effect[3].job_id)
            elif kind == "exit":
                self._exit(effect[1], effect[2], effect[3])
            elif kind == "gcs":
                self.tell_gcs(effect[1])
            elif kind != "warn":
                raise SimulationError(f"unknown effect {effect}")

    def _exit(self, number: int, graceful: bool, reason: str) -> None:
        worker = self.pool.workers.get(number)
        if worker is None:
            return
        self.expected.add(number)
        if graceful and worker.worker_id in self.registered:
            self.sim.network.send(NODE_ID, worker.worker_id, ExitWorker(True, reason))
        else:
            self.sim.kill(worker.worker_id)

    # -- time ----------------------------------------------------------------------------------------

    def next_deadline(self) -> float | None:
        """When ``tick`` has something to do."""
        moments = [moment for moment, _ in self._rest_of]
        due = self.table.next_deadline()
        if due is not None:
            moments.append(due)
        return min(moments, default=None)

    def tick(self) -> None:
        """Time has passed."""
        now = self.sim.now
        self.do(self.table.tick(now))
        for entry in [e for e in self._rest_of if e[0] <= now]:
            self._rest_of.remove(entry)
            for worker in list(self.pool.workers.values()):
                if worker.worker_class.job_id == entry[1] and worker.state == LEAVING:
                    self.sim.kill(worker.worker_id)

    def check_invariants(self) -> None:
        """The tables agree with themselves."""
        self.table.check_invariants()
        self.deaths.check_invariants()

    def check_progress(self) -> None:
        """All is quiet: nobody waits for what is there."""
        for demand in self.table.queue:
            fits = self.pool.idle(demand.worker_class) and self.table.book.fits(demand.resources)
            if fits and not held_back(self.table, demand):
                raise SimulationError(f"a worker is idle, and yet there waits {demand}")


class Gcs:
    """The GCS, as far as actors go."""

    def __init__(self, sim: Simulation) -> None:
        self.sim = sim
        self.nodes = NodeTable()
        self.nodes.add({"node_id": NODE_ID, "resources": {"CPU": 64 * CPU}}, 0.0)
        self.actors = ActorTable(self.nodes.place)
        self._numbers: dict[bytes, int] = {}  # connections
        self._peers: dict[int, bytes] = {}
        self._states: dict[bytes, str] = {}  # of actors, as announced last

    def receive(self, source: bytes, message: Any) -> None:
        """A report of the node, or a request of a core worker."""
        if message is EOF:
            number = self._numbers.pop(source, None)
            if number is not None:
                del self._peers[number]
                self.actors.subscriber_gone(number)
        elif source == NODE_ID:
            self._on_node(message)
        else:
            self._on_request(source, *message)

    def _on_node(self, msg: Message) -> None:
        if isinstance(msg, ActorStarted):
            self._do(self.actors.started(NODE_ID, msg))
        elif isinstance(msg, ActorEnded):
            self._do(self.actors.ended(NODE_ID, msg))
        elif isinstance(msg, Died):
            job_id = self.sim.job_of.get(msg.worker_id)
            if job_id is not None:
                self._do(self.actors.job_finished(job_id))
            self._do(self.actors.owner_died(msg.worker_id, "its process ended"))
        else:
            raise SimulationError(f"a node sends no {msg}")

    def _number(self, source: bytes) -> int:
        number = self._numbers.get(source)
        if number is None:
            number = self._numbers[source] = len(self._peers) + len(self._numbers) + self.sim.rng.randrange(10**9)
            self._peers[number] = source
        return number

    def _on_request(self, source: bytes, request: int, method: str, args: tuple[Any, ...]) -> None:
        actors, number = self.actors, self._number(source)
        if method == "create_actor":
            if self.sim.is_dead(args[0]["owner"][1]):
                return  # gcs.service learns of the death before or after: its actors end with it
            answer, effects = actors.create(args[0], number)
            self._do(effects)
            self.sim.ledger.actors[args[0]["handle_id"]].created = True
            self.sim.network.send(GCS_ID, source, ("created", request, answer["actor_id"]))
        elif method == "subscribe_actor":
            self._do(actors.subscribe(args[0], number))
        elif method == "kill_actor":
            try:
                self._do(actors.kill(*args))
            except ActorError as error:
                raise SimulationError(str(error)) from error
        else:
            assert method == "actor_out_of_scope", method
            if actors.state_of(args[0]) == "PENDING":
                raise SimulationError("an actor is out of scope before its constructor has run")
            self._do(actors.out_of_scope(*args))

    def _told(self, update: ActorUpdate) -> None:
        """An actor that ends before its constructor does may find that its arguments are gone."""
        if update.state == "DEAD" and self._states.get(update.actor_id) != "ALIVE":
            self._taint_arguments(update.actor_id)
        self._states[update.actor_id] = update.state

    def _taint_arguments(self, actor_id: bytes) -> None:
        ledger = self.sim.ledger
        for facts in ledger.actors.values():
            if facts.actor_id == actor_id:
                ledger.taint(ledger.contents[facts.handle_id])

    def _do(self, effects: list[Any]) -> None:
        for kind, *rest in effects:
            if kind == "order":
                self.sim.network.send(GCS_ID, NODE_ID, rest[1])
            elif kind == "notify":
                self._told(rest[1])
                self.sim.network.send(GCS_ID, self._peers[rest[0]], rest[1])
            elif kind != "save":
                raise SimulationError(f"unknown effect {kind}")
