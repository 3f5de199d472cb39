"""The simulated GCS: the ``GcsService`` of production, with doors that lead into the simulated network.

It is told apart from the head's node by its id on the network, although in production they are one process: so
messages between the two, and between each of them and the workers, may come in any order. But they die together: a
``life`` ends between two turns of the reactor, in the middle of one before anything is committed, or while the
messages of one leave. The next one starts on the rows that were committed.
"""

from __future__ import annotations

import random
from typing import TYPE_CHECKING, Any, cast

from minray.daemon import NodeRouter
from minray.gcs.group_record import Group
from minray.gcs.service import GcsService
from minray.testing.simulator.clock import Reactor
from minray.testing.simulator.ledger import SimulationError
from minray.testing.simulator.network import EOF, GCS_ID
from minray.testing.simulator.node import CONFIG, Conn, Node
from minray.testing.simulator.tables import CommittedTables, Rows
from minray.wire.messages import ActorUpdate, Message, Request, pack, unpack

if TYPE_CHECKING:
    from minray.testing.simulator.world import World

UNREAD = (0, 1, 3, 6)  # so many messages has a head read and not acted on when it is killed
SAID = (0, 0, 1, 2)  # and so many of its last turn still leave


class Killed(BaseException):
    """SIGKILL, in the middle of what it does."""


class Door(Conn):
    """The GCS's end of a connection; sees what actors are said to be."""

    def send(self, raw: tuple[Any, ...]) -> None:
        """One message, packed."""
        gcs = self._world.gcs
        if self.closed:
            return
        gcs.about_to_say()
        message = unpack(raw)
        if isinstance(message, ActorUpdate):
            gcs.told(message)
        super().send(raw)


class Service(GcsService):
    """Production's; the simulation notes what it says of machines."""

    world: World

    def node_lost(self, node_id: bytes, reason: str, *, expected: bool = False) -> None:
        """What is there, or on its way there, has a reason to start anew."""
        for actor in self._actors.on_node(node_id):
            self.world.ledger.broken(actor.actor_id, actor.incarnation)
        super().node_lost(node_id, reason, expected=expected)


class _Nobody:
    """What another node says to the head's node does not come this way."""

    def on_messages(self, conn: Any, messages: list[Any]) -> None:
        raise SimulationError(f"no message for the GCS: {messages}")

    def on_close(self, conn: Any, error: Any) -> None:
        """See on_messages."""


class Gcs:
    """The whole GCS, all its lives."""

    def __init__(self, sim: World) -> None:
        self.sim = sim
        self.life = 0
        self.alive = False
        self.callers: dict[bytes, None] = {}  # who has dialled in this life
        self.service: Service  # of the latest life
        self._rows: Rows = {}
        self._tables: CommittedTables
        self._reactor: Reactor
        self._head = b""  # the node of its machine
        self._credit: int | None = None  # messages that still leave before it is dead
        self._doors: dict[bytes, Door] = {}
        self._routers: dict[bytes, NodeRouter] = {}
        self._states: dict[bytes, str] = {}  # of actors, as announced last

    # -- life and death ------------------------------------------------------------------------------

    def start(self, head: Node) -> None:
        """A head is started beside that node, on what is there."""
        sim = self.sim
        self.life += 1
        self.alive, self._credit, self._head = True, None, head.node_id
        self.callers, self._doors, self._routers = {}, {}, {}
        self._reactor = Reactor(sim.clock, GCS_ID)
        self._tables = CommittedTables(self._rows)
        self.service = Service(
            self._reactor,
            self._tables,
            wall=lambda: sim.clock.now,
            make_namespace=lambda: "space",
            available=lambda: [head.available()],
            config=CONFIG,
            now=lambda: sim.clock.now,
            balance=lambda: head.table.book.available,
        )
        self.service.world = sim
        self.service.recover()
        self.service.attach_node(head.node_id, self._tell_head)
        self.end_turn()

    def kill(self, rng: random.Random) -> None:
        """SIGKILL, perhaps in the middle of a turn."""
        network = self.sim.network
        for _ in range(rng.choice(UNREAD)):
            unread = [pair for pair in network.busy() if pair[1] == GCS_ID]
            if unread:
                pair = rng.choice(unread)
                self._hear(pair[0], network.take(pair))
        if rng.random() < 0.8:
            self._credit = rng.choice(SAID)
            try:
                self.end_turn()
            except Killed:
                self.sim.ledger.seen["death of the head within a turn"] += 1
        self.alive, self._credit = False, None
        self.sim.clock.forget(GCS_ID)

    def about_to_say(self) -> None:
        """One more message leaves, if its process is still there. Raises Killed."""
        if self._credit is not None:
            if not self._credit:
                raise Killed
            self._credit -= 1

    # -- messages ------------------------------------------------------------------------------------

    def receive(self, source: bytes, message: Any) -> None:
        """A report of a node, or a request of a core worker."""
        if self.alive:
            self._hear(source, message)
            self.end_turn()

    def _hear(self, source: bytes, message: Any) -> None:
        if source == self._head:
            if message is not EOF:
                self.service.on_node(source, message)
        elif source in self.sim.machines:
            self._from_node(source, message)
        else:
            self._from_process(source, message)

    def end_turn(self) -> None:
        """Commit, and let out what has gathered."""
        self._reactor.end_turn()

    def _tell_head(self, message: Message) -> None:
        self.about_to_say()
        self.sim.network.send(GCS_ID, self._head, message)

    def _from_node(self, node_id: bytes, message: Any) -> None:
        """See daemon.HeadGcs: its connection is made by its first message."""
        door = self._doors.get(node_id)
        if message is EOF:
            if door is not None:
                del self._doors[node_id]
                door.closed = True
                self._routers.pop(node_id).on_close(cast(Any, door), None)
            return
        if door is None:
            door = self._doors[node_id] = Door(self.sim, GCS_ID, node_id)
            self._routers[node_id] = NodeRouter(self.service, _Nobody(), node_id)
        if not door.closed:
            self._routers[node_id].on_messages(cast(Any, door), [pack(message)])

    def _from_process(self, source: bytes, message: Any) -> None:
        door = self._doors.get(source)
        if message is EOF:
            if door is not None:
                del self._doors[source]
                self.service.on_close(door)
            return
        if door is None:
            door = self._doors[source] = Door(self.sim, GCS_ID, source)
        assert isinstance(message, Request)
        self._check_request(message)
        self.service.on_request(door, message)

    def _check_request(self, request: Request) -> None:
        early = request.method == "actor_out_of_scope" and self.state_of(request.args[0]) == "PENDING"
        if early:
            raise SimulationError("an actor is out of scope before its constructor has run")

    def told(self, update: ActorUpdate) -> None:
        """An actor that ends before its constructor does may find that its arguments are gone."""
        facts = self.sim.ledger.actor(update.actor_id)
        if facts is not None and update.state in ("RESTARTING", "DEAD"):
            facts.over.setdefault(update.incarnation - (update.state == "RESTARTING"), self.sim.clock.now)
        if update.state == "DEAD" and facts is not None:
            if self._states.get(update.actor_id) != "ALIVE":
                self.sim.ledger.taint(self.sim.ledger.contents[facts.handle_id])
            self.sim.judge.actor_ends(facts, update.cause)
        self._states[update.actor_id] = update.state

    # -- questions -----------------------------------------------------------------------------------

    def is_member(self, node_id: bytes) -> bool:
        """Whether that machine counts as alive. A head that is away has not changed its mind."""
        nodes = self.service._nodes
        return nodes.is_alive(node_id) or nodes.is_expected(node_id)

    def state_of(self, actor_id: bytes) -> str | None:
        """As the table has it."""
        return self.service._actors.state_of(actor_id)

    def said_of(self, actor_id: bytes) -> str | None:
        """As somebody was told last."""
        return self._states.get(actor_id)

    # -- what must hold --------------------------------------------------------------------------------

    def check_invariants(self) -> None:
        """The tables agree with themselves and with the connections; a name has one holder that lives."""
        if not self.alive:
            return
        self.service.check_invariants()
        holders: dict[tuple[str, str], bytes] = {}
        for actor in self.service._actors._actors.values():
            if actor.name_key is not None and actor.state != "DEAD" and not actor.leaving:
                other = holders.setdefault(actor.name_key, actor.actor_id)
                if other != actor.actor_id:
                    raise SimulationError(f"two actors live under the name {actor.name_key}")

    def check_quiet(self) -> None:
        """Nothing is in flight: whatever counts as reserved is reserved, and nothing else; nothing is forgotten."""
        groups = self.service._groups._groups
        nodes = [node for node in self.sim.nodes.values() if node.has_joined()]  # the others will say what they have
        here = {node.node_id: dict.fromkeys(node.table.bundles.held()) for node in nodes}
        for group in groups.values():
            for index, (node_id, attempt) in group.places.items():
                if node_id not in here and self.is_member(node_id):
                    continue  # it froze, or was lost while there was no head, or has not dialled yet
                if node_id not in here:
                    raise SimulationError(f"bundle {index} counts as there on a machine that is lost")
                if not self.sim.nodes[node_id].has_open(group.group_id, attempt):
                    name = self.sim.name_of(node_id)
                    raise SimulationError(f"bundle {index} is not open on {name}, where the GCS has put it")
        for node_id, held in here.items():
            for group_id, attempt in held:
                if not _is_wanted(groups.get(group_id), node_id, attempt):
                    raise SimulationError(f"{self.sim.name_of(node_id)} keeps attempt {attempt} of a group for nobody")
        self._check_memory()

    def _check_memory(self) -> None:
        """What somebody was told that it is made is there, until somebody wants its end."""
        ended = self.sim.ended_jobs()
        known = self.service._groups._groups
        for facts in self.sim.ledger.groups.values():
            if facts.created and not facts.removed and facts.job_id not in ended:
                group = known.get(facts.group_id)
                if group is None or group.state == "REMOVED":
                    raise SimulationError(f"group {facts.group_id.hex()} was made, and is gone")
        for actor in self.sim.ledger.actors.values():
            if actor.created and self.state_of(actor.actor_id) is None:
                raise SimulationError(f"actor {actor.actor_id.hex()} was made, and is forgotten")

    def open_groups(self) -> list[bytes]:
        """The placement groups that are not removed."""
        return [group.group_id for group in self.service._groups._groups.values() if group.state != "REMOVED"]

    def check_rest(self) -> None:
        """All actors and groups are over."""
        alive = {state: n for state, n in self.service._actors.counts().items() if n and state != "DEAD"}
        if alive:
            raise SimulationError(f"actors are left: {alive}")
        groups = {state: n for state, n in self.service._groups.counts().items() if n and state != "REMOVED"}
        if groups:
            raise SimulationError(f"placement groups are left: {groups}")


def _is_wanted(group: Group | None, node_id: bytes, attempt: int) -> bool:
    """Whether that attempt is to hold something on that node."""
    if group is None:
        return False
    tried = group.trial is not None and attempt == group.attempt and node_id in group.trial.nodes
    return tried or (node_id, attempt) in group.places.values()
