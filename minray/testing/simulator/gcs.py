"""The simulated GCS: the ``GcsService`` of production, with doors that lead into the simulated network.

It is told apart from the head's node by its id on the network, although in production they are one process: so
messages between the two, and between each of them and the workers, may come in any order.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, cast

from minray.gcs.effects import Row
from minray.gcs.group_record import Group
from minray.gcs.service import GcsService
from minray.testing.simulator.clock import Reactor
from minray.testing.simulator.ledger import SimulationError
from minray.testing.simulator.node import CONFIG, Conn, Node
from minray.testing.simulator.process import EOF, GCS_ID
from minray.wire.messages import ActorUpdate, Request, unpack

if TYPE_CHECKING:
    from minray.testing.simulator.world import World


class Disk:
    """Tables as the service knows them, in a dict."""

    durable = True
    dirty = False

    def __init__(self) -> None:
        self.rows: dict[str, dict[bytes, Row]] = {}

    def save(self, table: str, key: bytes, row: Row | None) -> None:
        """One row; None forgets the key."""
        if row is None:
            self.rows.get(table, {}).pop(key, None)
        else:
            self.rows.setdefault(table, {})[key] = row

    def commit(self) -> None:
        """It is written already."""

    def load(self, table: str) -> list[tuple[bytes, Row]]:
        """All rows, in the order of their keys."""
        return sorted(self.rows.get(table, {}).items())


class Door(Conn):
    """The GCS's end of a connection; sees what actors are said to be."""

    def send(self, raw: tuple[Any, ...]) -> None:
        """One message, packed."""
        message = unpack(raw)
        if isinstance(message, ActorUpdate):
            self._world.gcs.told(message)
        super().send(raw)


class Gcs:
    """The whole GCS. ``head``: the node of its machine."""

    def __init__(self, sim: World, head: Node) -> None:
        self.sim = sim
        self._head = head.node_id
        self._reactor = Reactor(sim.clock, GCS_ID)
        self.service = GcsService(
            self._reactor,
            cast(Any, Disk()),
            wall=lambda: sim.clock.now,
            make_namespace=lambda: "space",
            available=lambda: [head.available()],
            config=CONFIG,
            now=lambda: sim.clock.now,
            balance=lambda: head.table.book.available,
        )
        self.service.attach_node(head.node_id, lambda message: sim.network.send(GCS_ID, head.node_id, message))
        self._doors: dict[bytes, Door] = {}
        self._states: dict[bytes, str] = {}  # of actors, as announced last

    def receive(self, source: bytes, message: Any) -> None:
        """A report of a node, or a request of a core worker."""
        if source == self._head:
            self.service.on_node(source, message)
        elif source in self.sim.machines:
            self._from_node(source, message)
        else:
            self._from_process(source, message)
        self.end_turn()

    def end_turn(self) -> None:
        """Let out what has gathered."""
        self._reactor.end_turn()

    def _from_node(self, node_id: bytes, message: Any) -> None:
        door = self._doors.get(node_id)
        if message is EOF:
            if door is not None:
                del self._doors[node_id]
                door.closed = True
                self.service.node_closed(node_id, door, "its connection to the head has ended")
        elif isinstance(message, Request) and message.method == "add_node":
            door = self._doors[node_id] = Door(self.sim, GCS_ID, node_id)
            self.service.admit_node(node_id, door, message)
        elif door is not None and not door.closed:
            self.service.on_node(node_id, message)

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
        if message.method == "create_actor" and self.sim.is_dead(message.args[0]["owner"][1]):
            return  # its death may be known already: then nothing would end the actor but the end of the job
        if message.method == "create_placement_group" and message.args[0]["job_id"] in self.sim.ended_jobs():
            return  # the same
        self.service.on_request(door, message)

    def _check_request(self, request: Request) -> None:
        early = request.method == "actor_out_of_scope" and self.service._actors.state_of(request.args[0]) == "PENDING"
        if early:
            raise SimulationError("an actor is out of scope before its constructor has run")

    def told(self, update: ActorUpdate) -> None:
        """An actor that ends before its constructor does may find that its arguments are gone."""
        if update.state == "DEAD" and self._states.get(update.actor_id) != "ALIVE":
            ledger = self.sim.ledger
            for facts in ledger.actors.values():
                if facts.actor_id == update.actor_id:
                    ledger.taint(ledger.contents[facts.handle_id])
        self._states[update.actor_id] = update.state

    def is_member(self, node_id: bytes) -> bool:
        """Whether that machine counts as alive."""
        return self.service._nodes.is_alive(node_id)

    # -- what must hold --------------------------------------------------------------------------------

    def check_invariants(self) -> None:
        """The tables agree with themselves and with the connections."""
        self.service.check_invariants()

    def check_quiet(self) -> None:
        """Nothing is in flight: whatever counts as reserved is reserved, and nothing else."""
        groups = self.service._groups._groups
        here = {node.node_id: dict.fromkeys(node.table.bundles.held()) for node in self.sim.nodes.values()}
        for group in groups.values():
            for index, (node_id, attempt) in group.places.items():
                if node_id not in here and self.is_member(node_id):
                    continue  # it froze, and nobody knows it yet
                if node_id not in here:
                    raise SimulationError(f"bundle {index} counts as there on a machine that is lost")
                if not self.sim.nodes[node_id].has_open(group.group_id, attempt):
                    name = self.sim.name_of(node_id)
                    raise SimulationError(f"bundle {index} is not open on {name}, where the GCS has put it")
        for node_id, held in here.items():
            for group_id, attempt in held:
                if not _is_wanted(groups.get(group_id), node_id, attempt):
                    raise SimulationError(f"{self.sim.name_of(node_id)} keeps attempt {attempt} of a group for nobody")

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
