"""The simulated cluster: machines, processes, connections, time, and everything that can befall them.

    machine n1 (the head):  node n1, GCS, drivers d1 …, workers n1w1, n1w2 …
    machine n2:             node n2, workers n2w1 …
    each pair of processes: one connection, in order (``network``)

What may happen to a process: it is killed, and with it goes what it had not sent. To a machine: it is *lost*, and
its connections end; or it *freezes* for good, and nobody hears anything, until the GCS counts it as dead. To the head:
it is killed, and with it all of its machine; later it is started again on the same tables, beside a new node. To a
link between machines: it is cut, in one direction or both, and healed.

Decisions are made elsewhere (``run``); what must hold is judged elsewhere (``judge``).
"""

from __future__ import annotations

import random
from typing import Any

from minray.node.worker_pool import STARTING
from minray.testing.simulator.clock import Clock
from minray.testing.simulator.gcs import Gcs
from minray.testing.simulator.judge import Judge
from minray.testing.simulator.ledger import Ledger, SimulationError, make_id
from minray.testing.simulator.network import EOF, GCS_ID, Network
from minray.testing.simulator.node import Node
from minray.testing.simulator.process import CPU, Process
from minray.testing.simulator.user import Program
from minray.testing.simulator.worker import Worker
from minray.wire.messages import Address, Hello, Request

BUDGET = 400  # tasks and calls of everybody: the world must end
SPINNING = 1000  # timers in one moment
SMALL_LINEAGE = 6000  # bytes: some tasks are given up


class World:
    """``nodes`` machines with ``cpus`` each (the head has at least one), ``drivers`` on the first of them; ``apart``:
    none of these is the head's. ``full_of_actors``: user code mostly makes, calls and kills them. ``memory``: bytes of
    the machine's store; 0: as much as anybody wants."""

    def __init__(
        self,
        *,
        nodes: int,
        cpus: int,
        drivers: int,
        little_lineage: bool = False,
        apart: bool = False,
        full_of_actors: bool = False,
        memory: int = 0,
    ) -> None:
        assert not memory or nodes == 1, "objects on their way from store to store are tested elsewhere"
        self.memory = memory
        self.full_of_actors = full_of_actors
        self.judge = Judge(self)
        self.rng = random.Random(0)  # sown anew for each event
        self.clock = Clock()
        self.network = Network()
        self.ledger = Ledger()
        self.budget = BUDGET
        self.clustered = nodes > 1 or drivers > 1  # what init() starts for itself has one driver
        self.lineage_bytes = None if not self.clustered else SMALL_LINEAGE if little_lineage else 1 << 20
        self.processes: dict[bytes, Process] = {}
        self.connected: dict[bytes, dict[bytes, None]] = {}  # in the order of connecting, on any day
        self.died_at: dict[bytes, float] = {}
        self.touched: set[bytes] = set()  # since the last check
        self.programs: list[Program] = []
        self.nodes: dict[bytes, Node] = {}  # machines that are not lost
        self.machines: dict[bytes, Node] = {}  # all there ever were
        self.frozen: dict[bytes, None] = {}  # those that are lost and closed no connection
        self._names: dict[str, bytes] = {}
        self._name_of: dict[bytes, str] = {}
        self._drivers: dict[bytes, Address] = {}  # job → its driver
        self._head_cpus = cpus
        self.gcs = Gcs(self)
        self.head = self._make_machine(cpus, clustered=self.clustered, is_head=True)
        for number in range(1, nodes):
            self._make_machine((cpus + number) % 3, clustered=True, is_head=False)
        self._start_gcs()
        for node in self.nodes.values():
            node.join()
        self._boot()
        homes = list(self.nodes.values())[int(apart and nodes > 1) :]
        for number in range(drivers):
            self._make_driver(number + 1, homes[number % len(homes)])

    def _make_machine(self, cpus: int, *, clustered: bool, is_head: bool) -> Node:
        number = len(self.machines) + 1
        name, labels = f"n{number}", {"zone": "ab"[number % 2]}
        node = Node(self, name, {"CPU": cpus * CPU} if cpus else {}, labels, clustered=clustered, is_head=is_head)
        self._name(name, node.node_id, node.node_id)
        self.nodes[node.node_id] = self.machines[node.node_id] = node
        return node

    def _start_gcs(self) -> None:
        self._name("gcs", GCS_ID, self.head.node_id)
        self.gcs.start(self.head)

    def _boot(self) -> None:
        """All machines have joined before the story begins."""
        while self.network.queues:
            self.deliver(next(iter(self.network.queues)))
            self.gcs.end_turn()

    def _make_driver(self, number: int, node: Node) -> None:
        worker_id = self.name_process(f"d{number}", node.node_id)
        job_id = number.to_bytes(4, "little")
        driver = Process(self, node, worker_id, job_id)
        self._drivers[job_id] = driver.address
        info: dict[str, Any] = {"driver_worker_id": worker_id, "node_id": node.node_id, "namespace": "space"}
        if self.clustered:
            info["config"] = {"driver": driver.address}
        self.gcs.service.on_node(node.node_id, Request(-1, "add_job", (info,)))
        self.gcs.end_turn()
        self.network.queues[(GCS_ID, node.node_id)].pop()  # its answer: job ids count from 1
        if not self.network.queues[(GCS_ID, node.node_id)]:
            del self.network.queues[(GCS_ID, node.node_id)]
        self.processes[worker_id] = driver
        node.driver_joined(driver)
        self.programs.append(Program(driver))

    # -- names ---------------------------------------------------------------------------------------

    def _name(self, name: str, one: bytes, machine: bytes) -> None:
        self._names[name] = one
        self._name_of[one] = name
        self.network.machine_of[one] = machine

    def name_process(self, name: str, machine: bytes) -> bytes:
        """The id of a new process on that machine."""
        worker_id = make_id(name)
        self._name(name, worker_id, machine)
        return worker_id

    def name_of(self, one: bytes) -> str:
        """What a process or machine is called in stories."""
        return self._name_of.get(one) or one.hex()[:8]

    def id_of(self, name: str) -> bytes:
        """Its id; b"" if there never was one of that name."""
        return self._names.get(name, b"")

    # -- who there is --------------------------------------------------------------------------------

    def workers(self) -> list[Worker]:
        """The living ones."""
        return [p for p in self.processes.values() if isinstance(p, Worker)]

    def driver_of(self, job_id: bytes) -> Address:
        """The driver of a job."""
        return self._drivers[job_id]

    def ended_jobs(self) -> set[bytes]:
        """The jobs whose drivers have ended."""
        return {job_id for job_id, driver in self._drivers.items() if driver[1] not in self.processes}

    def hello_of(self, one: bytes) -> Hello:
        """How that process introduces itself."""
        job_id = next((job_id for job_id, driver in self._drivers.items() if driver[1] == one), b"")
        machine = self.network.machine_of[one]
        return Hello("driver" if job_id else "worker", one, machine, job_id, -1, 0.0, f"tcp:{self.name_of(one)}:1")

    def is_dead(self, one: bytes) -> bool:
        """Whether that process has ended."""
        return one in self.died_at

    def is_member(self, one: bytes) -> bool:
        """Whether its machine counts as alive."""
        return self.gcs.is_member(self.network.machine_of[one])

    # -- connections -----------------------------------------------------------------------------------

    def reaches(self, source: bytes, target: bytes) -> bool:
        """Whether there is somebody at the other end."""
        return target in self.processes or target in self.nodes or (target == GCS_ID and self.gcs.alive)

    def believed(self, source: bytes, target: bytes) -> bool:
        """Whether ``source`` must take the dead ``target`` for alive: its machine froze, and that is not known yet."""
        here, there = self.network.machine_of[source], self.network.machine_of[target]
        return there in self.frozen and here in self.nodes and there in self.nodes[here].view.nodes

    def connect(self, source: bytes, target: bytes) -> bool:
        """A core worker is about to send to another: to a dead one, the connection fails."""
        if target in self.processes:
            self.connected.setdefault(source, {})[target] = None
            self.connected.setdefault(target, {})[source] = None
            return True
        if self.believed(source, target):
            self.connected.setdefault(source, {})[target] = None
        else:
            self.network.send(target, source, EOF)
        return False

    def disconnect(self, source: bytes, target: bytes) -> None:
        """A living process closes its connection to another one: what is on the way is lost."""
        self._lost([(target, m) for m in self.network.forget((source, target))])
        self._lost([(source, m) for m in self.network.forget((target, source))])
        for one, other in ((source, target), (target, source)):
            self.connected.get(one, {}).pop(other, None)
            if other in self.processes:
                self.network.send(one, other, EOF)

    def _lost(self, messages: list[tuple[bytes, Any]]) -> None:
        for target, message in messages:
            self.ledger.taint(message)
            self.ledger.lost(target, message)

    # -- birth and death -------------------------------------------------------------------------------

    def start_worker(self, node: Node, number: int, worker_id: bytes, job_id: bytes) -> None:
        """The node forks one."""
        worker = self.processes[worker_id] = Worker(self, node, worker_id, job_id, number)
        worker.register()

    def kill(self, worker_id: bytes, *, ordered: bool = False) -> None:
        """SIGKILL. ``ordered``: its node has said before that this is no accident."""
        process = self.processes.get(worker_id)
        if process is not None:
            if not ordered:
                self._note_accident(process)
            self._end(process, loses=True)

    def _note_accident(self, process: Process) -> None:
        """If it is an actor, or was to become one, that has a reason to be started again."""
        if isinstance(process, Worker):
            table = process.node.table
            worker = table.pool.workers.get(process.number)
            self.ledger.failed_starts += worker is not None and worker.state == STARTING
            lease = table.leases.get(worker.lease_no) if worker is not None else None
            actor = lease.demand.actor if lease is not None else None
            if process.actor is not None:
                self.ledger.broken(process.actor.actor_id, process.actor.incarnation)
            elif actor is not None:
                self.ledger.broken(actor.actor_id, actor.incarnation)

    def exit(self, worker: Worker) -> None:
        """An orderly end: everything that is to be said has been said."""
        worker.flush()
        worker.perform()
        if worker.alive:
            self._end(worker, loses=False)

    def _end(self, process: Process, *, loses: bool, alone: bool = True, silent: bool = False) -> None:
        """``alone``: its node sees it end. ``silent``: nobody does."""
        worker_id = process.worker_id
        del self.processes[worker_id]
        self.died_at[worker_id] = self.clock.now
        self.ledger.taint(list(process.core.objects))
        self.ledger.taint([m for p, queue in self.network.queues.items() if worker_id in p for m in queue])
        self._lost(self.network.die(worker_id, self.rng, loses=loses))
        if isinstance(process, Worker):
            self._lost([(owner[1], results) for owner, results in process._outbox.values()])
        else:
            self.programs = [p for p in self.programs if p.process is not process]
        peers = self.connected.pop(worker_id, {})
        if not silent:
            for other in (*peers, *process.entered, GCS_ID):
                if self.reaches(worker_id, other):
                    self.network.send(worker_id, other, EOF)
        if alone:
            self._tell_its_node(process, loses=loses)

    def _tell_its_node(self, process: Process, *, loses: bool) -> None:
        worker_id, node_id = process.worker_id, process.node.node_id
        self.network.send(worker_id, node_id, EOF)
        if isinstance(process, Worker):
            self.network.send(worker_id, node_id, ("exited", process.number, process.page))
            if loses and self.rng.random() < 0.5:  # its parent is quicker than its own last words
                self.network.queues[(worker_id, node_id)].rotate(1)

    def lose_machine(self, node: Node, *, silent: bool) -> None:
        """It is switched off; or, ``silent``, it freezes for good."""
        node_id = node.node_id
        if node_id not in self.nodes:
            return
        self.ledger.seen["machine frozen" if silent else "machine lost"] += 1
        del self.nodes[node_id]
        if silent:
            self.frozen[node_id] = None
        for process in [p for p in self.processes.values() if p.node is node]:
            self._end(process, loses=True, alone=False, silent=silent)
        self._lost(self.network.die(node_id, self.rng, loses=True))
        self.ledger.machine_lost(node_id)
        if not silent:
            for other in (*node.conns, GCS_ID):
                if self.reaches(node_id, other):
                    self.network.send(node_id, other, EOF)

    def kill_head(self) -> bool:
        """The process of the GCS and of its machine's node: all that is there ends. False: there is no head."""
        if not self.gcs.alive:
            return False
        self.ledger.seen["death of the head"] += 1
        self.gcs.kill(self.rng)
        self.network.die(GCS_ID, self.rng, loses=True)  # what has to be heard is asked, or said, again
        self.lose_machine(self.head, silent=False)
        for caller in self.gcs.callers:
            if self.reaches(GCS_ID, caller):
                self.network.send(GCS_ID, caller, EOF)
        return True

    def start_head(self) -> bool:
        """Another process takes the tables, beside a new node of the same machine. False: there is a head."""
        if self.gcs.alive:
            return False
        self.head = self._make_machine(self._head_cpus, clustered=True, is_head=True)
        self._start_gcs()
        self.head.join()
        return True

    # -- messages and time -----------------------------------------------------------------------------

    def deliver(self, pair: tuple[bytes, bytes]) -> None:
        """One message arrives."""
        source, target = pair
        message = self.network.take(pair)
        self.touched.add(target)
        node = self.nodes.get(target)
        if node is not None:
            node.receive(source, message)
        elif target == GCS_ID:
            self.gcs.receive(source, message)
        else:
            process = self.processes.get(target)
            if process is None:
                self.ledger.taint(message)
            else:
                process.receive(source, message)
                process.perform()

    def advance(self, limit: float, *, beats: bool = True) -> bool:
        """Time passes until the next timer, but no longer than ``limit`` seconds. False: nobody waits for time,
        or, without ``beats``, only for the next heartbeat."""
        clock = self.clock
        if clock.due(beats=beats) is None:
            return False
        moment = clock.due()
        assert moment is not None
        clock.now = max(clock.now, min(moment, clock.now + limit))
        self.fire()
        return True

    def fire(self) -> None:
        """All timers whose moment has come."""
        fired = 0
        while (timer := self.clock.pop()) is not None:
            fired += 1
            if fired > SPINNING:
                raise SimulationError(f"time stands still: a timer of {self.name_of(timer.who)} comes again and again")
            who = timer.who
            self.touched.add(who)
            if who == GCS_ID:
                timer.fn()
                self.gcs.end_turn()
            elif who in self.nodes:
                timer.fn()
            elif who in self.processes:
                timer.fn()
                self.processes[who].perform()
