"""A simulated node: the ``NodeService`` of production, without sockets, processes and memory.

    drivers, workers, strangers ──▶ receive ──▶ node.dispatch.HANDLERS ────┐
    GCS ──▶ receive ──▶ GcsLink (but in the head) ──▶ node.orders.ORDERS ──┴▶ LeaseTable, Bundles, DeathBook, View …

What forks and kills workers, and the store, are ours (``Workers``, ``Store``); everything else is what runs in
production: the service's own methods, the jobs, the strangers, the membership, the link to the head.
"""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING, Any, cast

from minray._base.config import Config
from minray.node.deaths import DeathBook
from minray.node.demands import WorkerClass
from minray.node.dispatch import HANDLERS, Peer
from minray.node.gcs_link import GcsLink
from minray.node.inventory import inventory
from minray.node.jobs import Jobs
from minray.node.leases import LeaseTable
from minray.node.membership import Membership
from minray.node.pressure import held_back
from minray.node.service import NodeService
from minray.node.strangers import Strangers
from minray.node.view import View
from minray.node.worker_pool import WorkerPool
from minray.testing.simulator.ledger import SimulationError, make_id
from minray.testing.simulator.network import EOF, GCS_ID
from minray.testing.simulator.process import CPU, Process
from minray.testing.simulator.store import NodeStore
from minray.testing.simulator.ways import FOREVER_S, HEAD, DiallingReactor
from minray.wire.codec import decode
from minray.wire.errors import ConnectionLost
from minray.wire.messages import CreateActor, Hello, Introduce, Message, Register, StopActor, pack, unpack

if TYPE_CHECKING:
    from minray.testing.simulator.world import World

CONFIG = Config(heartbeat_s=1.0, node_timeout_s=5.0, shutdown_grace_s=2.0, infeasible_grace_s=3.0, worker_idle_s=5.0)
HEADER = 4  # bytes before a frame


class Conn:
    """A connection as a service sees it: the way to one process."""

    closed = False

    def __init__(self, world: World, here: bytes, there: bytes, hello: Hello | None = None) -> None:
        self._world = world
        self._here = here
        self._there = there
        self.hello = hello

    def send(self, raw: tuple[Any, ...]) -> None:
        """One message, packed."""
        if self.closed:
            return
        message = unpack(raw)
        if self._world.reaches(self._here, self._there):
            self._world.network.send(self._here, self._there, message)
        elif isinstance(message, CreateActor):  # to a worker that is dead, which nobody knows yet
            self._world.ledger.broken(message.actor_id, message.incarnation)

    def send_frame(self, frame: bytes) -> None:
        """One message, encoded for many."""
        self.send(decode(frame[HEADER:]))

    def cork(self) -> bool:
        """Here messages never leave in one piece: nothing to undo."""
        return False

    def uncork(self) -> None:
        """See ``cork``."""

    def read_rest(self) -> None:
        """The other one is dead: what it had still said, and the end."""
        pair = (self._there, self._here)
        network, node = self._world.network, self._world.nodes[self._here]
        while not self.closed and pair in network.queues:
            node.receive(self._there, network.take(pair))

    def close(self) -> None:
        """What is on its way to us is lost; what we said arrives, and then the end."""
        if not self.closed:
            self.closed = True
            network = self._world.network
            network.forget((self._there, self._here))
            if self._world.reaches(self._here, self._there):
                network.send(self._here, self._there, EOF)


class Workers:
    """What forks, kills and reaps: each worker is a process of the simulation."""

    def __init__(self, node: Node) -> None:
        self._node = node
        self._ids: dict[int, bytes] = {}
        self.expected: set[int] = set()

    def start(self, number: int, worker_id: bytes, worker_class: WorkerClass) -> None:
        """Fork."""
        self._ids[number] = worker_id
        self._node.sim.start_worker(self._node, number, worker_id, worker_class.job_id)

    def registered(self, number: int, pid: int) -> None:
        """It has connected."""

    def expect_end(self, number: int, reason: str) -> None:
        """Its end is no accident."""
        self.expected.add(number)

    def kill(self, number: int, suspicion: str = "") -> None:
        """SIGKILL."""
        self._node.sim.kill(self._ids[number], ordered=number in self.expected)


class Extents:
    """Nothing of it is ever on disk."""

    def moved(self) -> dict[str, int]:
        """What the GCS is to hear of it: nothing."""
        return {}


class Store:
    """The object store's authority: here the ledger knows what lies where."""

    table = Extents()

    def process_died(self, worker_id: bytes, now: float) -> None:
        """Nothing of it is left in the store."""

    def next_deadline(self) -> None:
        """It never waits for time."""

    def tick(self, now: float) -> None:
        """See ``next_deadline``."""


class Memory:
    """There is always enough."""

    def on_work(self) -> None:
        """Somebody works."""


class Logs:
    """Nobody prints."""

    def driver_gone(self, job_id: bytes) -> None:
        """A driver has ended."""


class Node(NodeService):
    """One machine. ``clustered``: there are, or may be, others; ``is_head``: its process is that of the GCS, too."""

    def __init__(
        self,
        sim: World,
        name: str,
        totals: dict[str, int],
        labels: dict[str, str],
        *,
        clustered: bool,
        is_head: bool,
    ) -> None:
        self.sim = sim
        self.name = name
        self.node_id = make_id(name)
        self.is_head = is_head
        self.endpoint = f"tcp:{name}:1"
        self.gcs_endpoint = HEAD
        self.reactor = cast(Any, DiallingReactor(sim, self.node_id))
        self.config = CONFIG
        self.peers: dict[bytes, Peer] = {}
        self.jobs = Jobs(self, [])
        self.strangers = Strangers(self)
        self._link = None if is_head else self._make_link()
        self._gcs_send = self._tell_own_gcs if self._link is None else self._link.send
        self._gcs_join = None if self._link is None else self._link.join
        self._requests = {}
        self._numbers = itertools.count(1)
        self._timer = self._timer_at = self.ending = self.transfers = None
        self.address = name
        self.totals = totals
        self.labels = labels
        self.view = View(self.node_id)
        self.membership = Membership(self) if clustered else None
        self.table = self._make_lease_table(int(name[1:]) << 32)
        self.deaths = DeathBook()
        self.store = cast(Any, NodeStore(self, sim.memory) if sim.memory else Store())
        self.logs = cast(Any, Logs())
        self.public_session = {"node_name": name}
        self.workers = cast(Any, Workers(self))
        self.memory = cast(Any, Memory())
        self.conns: dict[bytes, Peer] = {}  # by who is at the other end

    def _make_link(self) -> GcsLink:
        """As daemon.RemoteGcs has it."""
        life = (0, 0.0)
        return GcsLink(
            self.reactor,
            self.gcs_endpoint,
            Hello("node", self.node_id, self.node_id, b"", *life, self.endpoint),
            patience_s=FOREVER_S,
            silence_s=CONFIG.node_timeout_s,
            deliver=self.on_gcs,
            joined=self.joined,
            lost=lambda reason: self.sim.lose_machine(self, silent=False),
            inventory=lambda: inventory(self),
            now=self.now,
        )

    def _tell_own_gcs(self, message: Message) -> None:
        if self.sim.reaches(self.node_id, GCS_ID):
            self.sim.network.send(self.node_id, GCS_ID, message)

    def _make_lease_table(self, first_no: int) -> LeaseTable:
        made = itertools.count(1)
        pool = WorkerPool(
            cpus=max(1, self.totals.get("CPU", 0) // CPU),
            new_worker_id=lambda: self.sim.name_process(f"{self.name}w{next(made)}", self.node_id),
            idle_s=CONFIG.worker_idle_s,
        )
        return LeaseTable(
            self.node_id, self.totals, pool, view=self.view, labels=self.labels, first_no=first_no,
            infeasible_grace_s=CONFIG.infeasible_grace_s,
        )  # fmt: skip

    # -- in ------------------------------------------------------------------------------------------

    def introduction(self) -> dict[str, Any]:
        """What the GCS is to know of this node."""
        return {
            "node_id": self.node_id, "endpoint": self.endpoint, "address": self.name, "resources": self.totals,
            "labels": self.labels, "is_head": self.is_head,
        }  # fmt: skip

    def join(self) -> None:
        """Go to the GCS."""
        if self._gcs_join is not None:
            self._gcs_join(self.introduction())
        else:
            self.ask_gcs("add_node", self.introduction(), then=lambda reply: self.joined(reply.value))

    def has_joined(self) -> bool:
        """Whether the head that lives has let it in."""
        return self._link is None or self._link.joined

    def driver_joined(self, driver: Process) -> None:
        """A driver has registered, and the GCS has made its job: see node.jobs."""
        config = self.jobs._make({"driver": driver.address}, "space")
        self.jobs._configs[driver.job_id] = config
        self.jobs.drivers[driver.job_id] = driver.worker_id
        peer = self._connect(driver.worker_id)
        peer.admit(driver.worker_id, driver.job_id, -1)
        self.peers[driver.worker_id] = peer
        self.table.driver_joined(driver.worker_id, driver.address, WorkerClass(driver.job_id))
        self.deaths.born(driver.worker_id)
        self.do(self.table.prestart(driver.job_id, self.table.pool.cpus, self.now()))
        self.settle()

    def receive(self, source: bytes, message: Any) -> None:
        """One message of a worker, a driver, an owner of another node, or the GCS."""
        if source == GCS_ID:
            self._from_gcs(message)
        elif message is EOF:
            peer = self.conns.pop(source, None)
            if peer is not None:
                cast(Any, peer.conn).closed = True
                peer.on_close(peer.conn, None)
        elif type(message) is tuple and message[0] == "exited":
            self._reaped(source, message[1], message[2])
        else:
            self._from_peer(source, message)

    def _from_gcs(self, message: Any) -> None:
        if isinstance(message, StopActor) and "out of scope" in message.reason and not message.graceful:
            raise SimulationError("an actor is killed, not asked to end, because it is out of scope")
        link = self._link
        if link is None:
            self.on_gcs(message)
        elif link._conn is not None:
            conn = link._conn
            if message is EOF:
                conn.close()
                link.on_close(conn, ConnectionLost("the head is gone"))
            else:
                link.on_messages(conn, [pack(message)])

    def _from_peer(self, source: bytes, message: Message) -> None:
        peer = self.conns.get(source)
        if peer is None or peer.conn.closed:
            if not isinstance(message, Register | Introduce):
                return  # it was said over a connection that we have closed
            peer = self._connect(source)
        HANDLERS[type(message)](self, peer, message)
        self.settle()

    def _connect(self, source: bytes) -> Peer:
        hello = self.sim.hello_of(source)
        peer = self.conns[source] = Peer(self, cast(Any, Conn(self.sim, self.node_id, source, hello)))
        return peer

    def _reaped(self, worker_id: bytes, number: int, page: tuple[int, int, int]) -> None:
        """Its parent has reaped it."""
        self._hear_out(number)
        self.conns.pop(worker_id, None)
        self.sim.network.forget((worker_id, self.node_id))
        cause = {"text": "exit code -9", "expected": number in cast(Any, self.workers).expected}
        self._worker_ended(number, cause, page)

    # -- production's methods, here ------------------------------------------------------------------

    def now(self) -> float:
        """The simulation's clock."""
        return self.sim.clock.now

    def _warn(self, job_id: bytes, text: str) -> None:
        """Nobody reads."""

    # -- what must hold --------------------------------------------------------------------------------

    def check_invariants(self) -> None:
        """The tables agree with themselves; resources add up: free, leased and reserved are all there is."""
        self.table.check_invariants()
        self.deaths.check_invariants()
        self.view.check_invariants()
        if self.sim.memory:
            self.store.table.check_invariants()

    def has_open(self, group_id: bytes, attempt: int) -> bool:
        """Whether that part of a group is open here."""
        group = self.table.bundles._groups.get(group_id)
        return group is not None and attempt in group.attempts and group.attempts[attempt].is_open

    def check_progress(self) -> None:
        """All is quiet: nobody waits for what is there."""
        for demand in self.table.queue:
            if demand.bundles:
                idle = self.table.book.covers(demand.resources)
            else:
                free = self.table.book.fits(demand.resources)
                idle = free and self.table.pool.idle(demand.worker_class) > 0
            if idle and not held_back(self.table, demand):
                raise SimulationError(f"{self.name} has what it takes, and yet there waits {demand}")

    def check_rest(self) -> None:
        """Nobody uses anything: everything is free, and nothing is remembered."""
        table = self.table
        if table.leases:
            raise SimulationError(f"{self.name}: leases are left: {list(table.leases.values())}")
        if table.demands:
            raise SimulationError(f"{self.name}: demands are left: {list(table.demands.values())}")
        free = {name: amount for name, amount in table.book.available.items() if amount}
        if table.book.totals != self.totals or free != self.totals:
            raise SimulationError(f"{self.name} has {self.totals}, and at rest {free} is free")
        if table.bundles.held():
            raise SimulationError(f"{self.name}: bundles are left: {table.bundles.held()}")
        if self.sim.memory:
            cast(NodeStore, self.store).check_rest()
