"""A simulated process: a real core, and what performs its effects. Drivers and workers are made of it.

``Process`` receives messages for its core as worker.link does, and sends what the core wants sent, in the same
order as worker.link; its line to the GCS is production's. What its user code does is in ``user.py``; what executes in
workers, in ``worker.py``.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any, cast

from minray.testing.simulator.ledger import Handle, SimulationError
from minray.testing.simulator.network import EOF, GCS_ID
from minray.testing.simulator.store import ProcessStore
from minray.testing.simulator.ways import FOREVER_S, Way
from minray.wire.errors import ConnectionLost
from minray.wire.messages import (
    BORROWS,
    CALLS,
    FETCH,
    RELEASES,
    RESULTS,
    VALUES,
    ActorUpdate,
    Address,
    Died,
    GiveBack,
    Introduce,
    LeaseDecline,
    LeaseGrant,
    LeaseInfeasible,
    LeaseSpill,
    LeftBehind,
    Message,
    NodeGone,
    ObjectLost,
    Ready,
    Registered,
    Reply,
    Watch,
    unpack,
)
from minray.worker.actor_calls import ActorClient
from minray.worker.core import Core
from minray.worker.gcs_line import GcsLine
from minray.worker.link import AWAY_S
from minray.worker.owner import TaskManager
from minray.worker.tasks import END, ERROR, INLINE, ITEM, MULTI, RETRY, STORED, Function, Lease, SchedulingKey, Task

if TYPE_CHECKING:
    from minray.testing.simulator.node import Node
    from minray.testing.simulator.world import World

CPU = 10_000
STATUS = {
    INLINE: "INLINE", STORED: "STORED", ERROR: "ERROR", MULTI: "MULTI", RETRY: "RETRY", ITEM: "ITEM", END: "END",
}  # fmt: skip
MAX_PIPELINE = 8
LEASE_IDLE_S = 0.2


class Process:
    """See the file's head."""

    is_driver = True

    def __init__(self, sim: World, node: Node, worker_id: bytes, job_id: bytes) -> None:
        self.sim = sim
        self.node = node
        self.worker_id = worker_id
        self.job_id = job_id
        self.address: Address = (node.node_id, worker_id, f"tcp:{sim.name_of(worker_id)}:1")
        self.core = Core(
            self.address,
            job_id,
            worker_id[:12],
            max_pipeline=MAX_PIPELINE,
            lease_idle_s=LEASE_IDLE_S,
            lineage_bytes=sim.lineage_bytes,
        )
        self.core.owner.clustered = sim.lineage_bytes is not None
        self.core.owner._bury = self._bury  # type: ignore[method-assign]
        self.core.calls._finish = self._call_fails
        self.freed: list[bytes] = []  # objects of its own, since the last check
        self.kept: list[Handle] = []  # references in global variables
        self.depth = 0
        self.asked: dict[int, Callable[[Reply], None]] = {}  # requests to the GCS
        self.entered: dict[bytes, None] = {}  # other nodes that we have a connection to
        self.actor_refs: dict[bytes, bytes] = {}  # hidden object → actor, where we created it
        self.functions: list[Function] = []
        self._keys: dict[tuple[Any, ...], SchedulingKey] = {}
        self._requests = 0
        self.store = ProcessStore(self) if sim.memory else None
        if node.is_head:
            self.line = GcsLine(self, self.dial_gcs(""), None, FOREVER_S)
        else:
            self.line = GcsLine(self, cast(Any, None), node.gcs_endpoint, FOREVER_S, lambda: sim.clock.now)

    @property
    def alive(self) -> bool:
        """Whether it has not been killed."""
        return self.sim.processes.get(self.worker_id) is self

    # -- what the line to the GCS needs: see worker.link -----------------------------------------------

    @property
    def closed(self) -> bool:
        """The line has nobody to speak for any more."""
        return not self.alive

    def dial_gcs(self, endpoint: str) -> Any:
        """A connection to the head."""
        return Way(self.sim, self.worker_id)

    def call_later(self, delay_s: float, fn: Callable[[], None]) -> None:
        """``fn`` after so many seconds, if it lives then."""
        self.sim.clock.later(delay_s, self.worker_id, fn)

    def subscriptions(self) -> list[bytes]:
        """The actors whose fate it wants to hear of."""
        return [actor.actor_id for actor in self.core.calls.actors.values() if actor.state != "DEAD"]

    def give_up_on(self, numbers: list[int], text: str) -> None:
        """Nobody's patience ends."""
        raise SimulationError(f"{self} gives up on the head: {text}")

    # -- what the public face would make -------------------------------------------------------------

    def key(self, resources: dict[str, int], strategy: Any, *, retires: bool) -> SchedulingKey:
        """The scheduling key of what is submitted here now."""
        name = (tuple(resources.items()), repr(strategy), retires, self.depth)
        key = self._keys.get(name)
        if key is None:
            key = SchedulingKey(
                len(self.core.owner.keys) + 1,
                resources,
                strategy,
                {},
                self.depth,
                "task f",
                pipelined=not retires,
                retires=retires,
            )
            self._keys[name] = self.core.owner.keys[key.number] = key
        return key

    def client(self, actor_id: bytes, options: dict[str, Any]) -> ActorClient:
        """What this process knows of an actor; asks the GCS the first time."""
        if actor_id not in self.core.calls.actors:
            self.ask_gcs("subscribe_actor", actor_id)
        return self.new_client(actor_id, options)

    def new_client(self, actor_id: bytes, options: dict[str, Any]) -> ActorClient:
        """The same, without asking: the GCS subscribes an actor's creator by itself."""
        return self.core.calls.client(actor_id, "A", max_pending=-1, eager=options["concurrency"] > 1)

    def ask_gcs(self, method: str, *args: Any, then: Callable[[Reply], None] | None = None) -> int:
        """A request; its number."""
        self._requests += 1
        self.asked[self._requests] = then or _expect_yes
        self.line.ask(self._requests, method, args)
        return self._requests

    def _on_reply(self, reply: Reply) -> None:
        self.line.answered(reply.request_id)
        self.line.on_reply()
        if reply.request_id:
            then = self.asked.pop(reply.request_id, None)
            if then is None:
                raise SimulationError(f"{self} hears an answer twice: {reply}")
            then(reply)
        else:  # to what the line has asked by itself
            _expect_yes(reply)

    def _call_fails(self, task: Task, error: Any) -> None:
        """A call ends without an answer."""
        self.sim.judge.call_fails(self, task, error)
        self.core.fail(task, error)

    def _bury(self, lease: Lease) -> None:
        """A leased worker is dead: only attempts that have started may be charged for it."""
        assert lease.death is not None
        running = lease.death[0]
        batch = [(task, task.attempt, task.retries) for task in lease.inflight.values()]
        tasks = self.core.owner.tasks
        TaskManager._bury(self.core.owner, lease)
        for task, attempt, retries in batch:
            charged = task.retries != retries or (task.seq not in tasks and not task.cancelled)
            started = (self.worker_id, task.seq, attempt) in self.sim.ledger.attempts
            if charged and not started and running is not None:  # else the node could not say
                raise SimulationError(f"task {task.seq} of {self} is charged for a crash, but never started")

    # -- in ------------------------------------------------------------------------------------------

    def receive(self, source: bytes, message: Any) -> None:
        """One message, from another core worker, a node or the GCS."""
        if message is EOF:
            self._connection_ended(source)
        elif isinstance(message, Message):
            self.receive_control((source, source, ""), message)
        else:
            self.receive_from_peer(*message)

    def _connection_ended(self, source: bytes) -> None:
        """What worker.link does when a connection has closed."""
        if source == self.node.node_id:
            self.sim.kill(self.worker_id)  # without its node a process has no session
        elif source == GCS_ID:
            self.line.conn.close()
            self.line.on_close(ConnectionLost("the head is gone"))
        elif source in self.entered:
            del self.entered[source]
            self.core.owner.on_node_lost(source)
        else:
            self.core.on_peer_lost(source)

    def _on_node_gone(self, node_id: bytes) -> None:
        """A machine counts as dead: our connections to it end now."""
        sim = self.sim
        for other in [*sim.connected.get(self.worker_id, ())]:
            if sim.network.machine_of[other] == node_id:
                sim.disconnect(self.worker_id, other)
        if node_id in self.entered:
            sim.network.forget((node_id, self.worker_id))
            if sim.reaches(self.worker_id, node_id):
                sim.network.send(self.worker_id, node_id, EOF)
            self._connection_ended(node_id)

    def receive_from_peer(self, source: Address, raw: tuple[Any, ...]) -> None:
        """A message of another core worker."""
        core, tag = self.core, raw[0]
        if tag == RESULTS:
            self.hear_of(source, raw[1])
            self.sim.judge.answers_arrive(self, source, raw[1])
            core.on_results(source, raw[1], self.sim.clock.now)
        elif tag == RELEASES:
            core.refs.on_releases(source[1], raw[1])
        elif tag == BORROWS:
            core.refs.on_borrows(raw[1])
        elif tag == FETCH:
            core.on_fetch(source, raw[1])
        elif tag == VALUES:
            core.on_values(raw[1])
        else:
            self.receive_control(source, unpack(raw))

    def receive_control(self, source: Address, msg: Message) -> None:
        """A control message; workers know more of them."""
        core, now = self.core, self.sim.clock.now
        if isinstance(msg, LeaseGrant):
            core.on_grant(msg, now)
        elif isinstance(msg, GiveBack):
            core.on_give_back(msg, now)
        elif isinstance(msg, Ready):
            core.on_ready(msg, now)
        elif isinstance(msg, Died):
            core.on_died(msg, now)
        elif isinstance(msg, LeaseInfeasible):
            core.on_infeasible(msg)
        elif isinstance(msg, ActorUpdate):
            core.on_actor_update(msg)
        elif isinstance(msg, LeaseSpill):
            core.owner.on_spill(msg)
        elif isinstance(msg, LeaseDecline):
            core.owner.on_decline(source[0], msg)
        elif isinstance(msg, ObjectLost):
            if core.lineage is not None:
                core.lineage.on_lost(msg.object_id, msg.location, msg.reason)
        elif isinstance(msg, LeftBehind):
            self.sim.ledger.seen["left behind"] += len(msg.objects)
            core.strays.left_behind(msg.node_id, msg.objects)
        elif isinstance(msg, NodeGone):
            self._on_node_gone(msg.node_id)
        elif isinstance(msg, Reply):
            self._on_reply(msg)
        elif not isinstance(msg, Registered) and not (self.store is not None and self.store.takes(msg)):
            raise SimulationError(f"{self} has no use for {msg}")

    def hear_of(self, source: Address, results: list[tuple[Any, ...]]) -> None:
        """Stored results: their owner knows from now on that they have to be freed."""
        ledger, object_id = self.sim.ledger, self.core.object_id
        for seq, _, status, value, _, retained in results:
            ledger.seen["answer " + STATUS[status]] += 1
            if status not in (ITEM, RETRY):
                ledger.answered.add((self.worker_id, seq))
            stream = self.core.streams.get(seq)
            ledger.seen["item said twice"] += status == ITEM and stream is not None and value[0] < stream.produced
            for _, taker in retained or ():
                ledger.seen["argument kept" if taker == source else "argument promised to others"] += 1
            if status == STORED:
                self._stored(object_id(seq, 1), value)
            elif status == ITEM and value[1] == STORED:
                self._stored(object_id(seq, 2 + value[0]), value[2])
            elif status == MULTI:
                for i, (one, stored) in enumerate(value):
                    if one == STORED:
                        self._stored(object_id(seq, 1 + i), stored)

    def _stored(self, object_id: bytes, value: Any) -> None:
        if value[0][0] in self.sim.nodes:
            self.sim.ledger.heard_of(object_id, value[0])

    # -- out -----------------------------------------------------------------------------------------

    def perform(self) -> None:
        """Carry out the core's effects, as worker.link does."""
        self.sim.touched.add(self.worker_id)
        effects = self.core.effects
        while effects:
            if any(effect[0] == "release" for effect in effects):
                self.flush()  # a result may name what is released now: its owner has to see that first
            batch = effects[:]
            effects.clear()
            releases: dict[bytes, list[tuple[bytes, int]]] = {}
            for effect in batch:
                if effect[0] == "release":
                    releases.setdefault(effect[1][1], []).append((effect[2], effect[3]))
                else:
                    self._perform_one(effect)
            for owner, items in releases.items():
                if owner not in self.core.dead:
                    self.send(owner, (RELEASES, items))
        if self.store is not None:
            self.store.client.drain()

    def flush(self) -> None:
        """Send the results that wait for a batch, if it is a worker."""

    def send(self, target: bytes, raw: tuple[Any, ...]) -> None:
        """To another core worker."""
        if raw[0] == CALLS:
            self.sim.ledger.sent_calls(self.worker_id, raw[2])
        if self.sim.connect(self.worker_id, target):
            self.sim.network.send(self.worker_id, target, (self.address, raw))

    def _tell_node(self, node_id: bytes, msg: Message) -> None:
        """To another node that we want workers of; the first time it hears who we are."""
        sim = self.sim
        if node_id not in self.entered:
            self.entered[node_id] = None
            if node_id not in sim.nodes and not sim.believed(self.worker_id, node_id):
                sim.network.send(node_id, self.worker_id, EOF)
            elif sim.reaches(self.worker_id, node_id):
                config = {"driver": sim.driver_of(self.job_id)}
                sim.network.send(self.worker_id, node_id, Introduce(self.job_id, config))
        if sim.reaches(self.worker_id, node_id):
            sim.network.send(self.worker_id, node_id, msg)

    def _perform_one(self, effect: tuple[Any, ...]) -> None:
        kind = effect[0]
        if kind == "send":
            self.send(effect[1][1], effect[2])
        elif kind == "node":
            self.sim.network.send(self.worker_id, self.node.node_id, effect[1])
        elif kind == "at":
            self._tell_node(effect[1], effect[3])
        elif kind == "watch":
            self.sim.network.send(self.worker_id, self.node.node_id, Watch(effect[1][1], effect[1][0]))
        elif kind == "borrow":
            self.send(effect[1][1], (BORROWS, [effect[2:4]]))
        elif kind == "timer":
            self.sim.clock.later(effect[1], self.worker_id, partial(self._on_timer, effect[2], effect[3]))
        elif kind == "freed":
            self._freed(effect[1], effect[2])
        elif kind == "report":
            if self.store is not None:
                self.store.client.report([effect[1:3]])
        else:
            raise SimulationError(f"unknown effect {effect}")

    def _on_timer(self, what: str, number: int) -> None:
        if what == "actor" and self.line.away:  # what became of it, only the head can say
            self.sim.clock.later(AWAY_S, self.worker_id, partial(self._on_timer, what, number))
        else:
            self.core.on_timer(what, number, self.sim.clock.now)

    def _freed(self, object_id: bytes, record: Any) -> None:
        if record.owner is None:
            self.freed.append(object_id)
        actor_id = self.actor_refs.pop(object_id, None)
        if actor_id is not None:
            # Nobody calls it any more: what its constructor has kept is not waited for.
            self.sim.ledger.taint(self.sim.ledger.contents[object_id])
            self.sim.ledger.actors[object_id].released = True
            self.ask_gcs("actor_out_of_scope", actor_id)
        elif record.status == STORED and record.owner is None:
            self.sim.ledger.freed(object_id, record.value[0][0])
            if self.store is not None:
                self.store.client.free([(object_id, record.value[0])])

    def __repr__(self) -> str:
        return self.sim.name_of(self.worker_id)


def _expect_yes(reply: Reply) -> None:
    if not reply.ok:
        raise SimulationError(f"the GCS refuses a request: {reply.value}")
