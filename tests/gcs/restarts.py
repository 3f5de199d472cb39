"""A head that is killed and started again, in one thread: the real GCS, the real line of its clients, the real links
and tables of the nodes, on a network of queues. See ``test_restarts``.

    Client ── GcsLine ── Pipe ── HeadRouter's part ──┐
    Machine ─ GcsLink ── Pipe ── NodeRouter ─────────┴─ GcsService ── Disk (what was committed)
       └ LeaseTable (actors, bundles), DeathBook; workers that register, start, fail and die when the seed says so

A kill drops what was not committed, what is on the way, and, if it strikes while a turn's messages leave, the rest of
them. What a killed head had sent may arrive in part.
"""

from __future__ import annotations

import heapq
import itertools
import random
from collections import deque
from collections.abc import Callable, Iterable
from types import SimpleNamespace
from typing import Any

from minray._base.config import Config
from minray.daemon import NodeRouter
from minray.gcs.service import GcsService
from minray.node.deaths import DeathBook
from minray.node.gcs_link import GcsLink
from minray.node.inventory import inventory
from minray.node.orders import ORDERS
from minray.testing.simulator.tables import CommittedTables, Rows
from minray.wire.codec import decode, encode
from minray.wire.errors import ConnectionLost
from minray.wire.messages import (
    ActorStarted,
    ActorUpdate,
    ClusterView,
    CreateActor,
    Died,
    Hello,
    Introduce,
    Message,
    NodeReport,
    Reply,
    Request,
    Watch,
    unpack,
)
from minray.worker.gcs_line import GcsLine
from tests.gcs.support import spec
from tests.node.support import World

CPU = 10_000
PATIENCE_S = 20.0


class Clock:
    """The reactor of everybody."""

    def __init__(self) -> None:
        self.now = 1000.0
        self.later: list[tuple[float, int, Callable[[], None]]] = []
        self._count = itertools.count()

    def call_later(self, delay_s: float, fn: Callable[[], None]) -> Any:
        heapq.heappush(self.later, (self.now + delay_s, next(self._count), fn))

    def pass_time(self, seconds: float) -> None:
        end = self.now + seconds
        while self.later and self.later[0][0] <= end:
            due, _, fn = heapq.heappop(self.later)
            self.now = max(self.now, due)
            fn()
        self.now = end


class Pipe:
    """Both ends of one connection to the head; ``up`` and ``down`` are on the way."""

    def __init__(self, sim: Sim, owner: Any, handler: Any, hello: Hello | None) -> None:
        self.sim, self.owner, self.handler, self.hello = sim, owner, handler, hello
        self.up: deque[tuple[Any, ...]] = deque()
        self.down: deque[tuple[Any, ...]] = deque()
        self.closed = False
        self.router: Any = None
        self.head: Head | None = None

    # the dialling side

    def send(self, raw: tuple[Any, ...]) -> None:
        if not self.closed:
            self.up.append(decode(encode(raw)))

    def send_many(self, raws: Iterable[tuple[Any, ...]]) -> None:
        for raw in raws:
            self.send(raw)

    def limit_silence(self, seconds: float) -> None:
        pass

    def close(self) -> None:
        self.closed = True

    def lose(self) -> None:
        """The dialling side hears that it has ended."""
        if not self.closed:
            self.closed = True
            self.handler.on_close(self, ConnectionLost("gone"))


class Answering:
    """The accepting side of a Pipe, as the head has it."""

    def __init__(self, pipe: Pipe) -> None:
        self.pipe = pipe
        self.closed = False

    def send(self, raw: tuple[Any, ...]) -> None:
        head = self.pipe.head
        if head is not None and head.may_send() and not self.closed:
            self.pipe.down.append(decode(encode(raw)))

    def send_frame(self, frame: bytes) -> None:
        self.send(decode(frame[4:]))

    def close(self) -> None:
        self.closed = True

    def cork(self) -> bool:
        return False

    def uncork(self) -> None:
        raise AssertionError("it was not corked")


class Head:
    """One life of the head. ``credit``: how many messages still leave before it is dead."""

    def __init__(self, sim: Sim) -> None:
        self.sim = sim
        self.alive = True
        self.credit: int | None = None
        self.soon: list[Callable[[], None]] = []
        self.gcs = GcsService(
            self,
            CommittedTables(sim.rows),
            wall=lambda: sim.clock.now,
            make_namespace=lambda: "made up",
            config=Config(node_timeout_s=PATIENCE_S),
            now=lambda: sim.clock.now,
        )
        self.gcs.recover()

    def call_soon(self, fn: Callable[[], None]) -> None:
        self.soon.append(fn)

    def call_later(self, delay_s: float, fn: Callable[[], None]) -> Any:
        def call() -> None:
            if self.alive:
                fn()
                self.turn()

        self.sim.clock.call_later(delay_s, call)

    def may_send(self) -> bool:
        if self.credit is None:
            return self.alive
        self.credit -= 1
        return self.credit >= 0

    def turn(self) -> None:
        while self.soon:
            self.soon.pop(0)()
        self.gcs.check_invariants()


class Machine:
    """A node: its tables, its workers, its link."""

    def __init__(self, sim: Sim, number: int) -> None:
        self.sim = sim
        self.node_id = number.to_bytes(28, "big")
        self.driver = b"d" + self.node_id[1:]
        self.world = World(cpus=4, totals={"CPU": 4 * CPU}, soft=64, hard=128)
        self.table = self.world.table
        self.table.node_id = self.node_id
        self.view = self.table.away.view
        self.deaths = DeathBook()
        self.deaths.born(self.driver)
        self.actors: dict[int, CreateActor] = {}  # worker's number → what runs there
        self.starting: deque[tuple[int, CreateActor]] = deque()
        self.watched: set[bytes] = set()  # processes elsewhere whose end we want to hear of
        self.requests: dict[int, Callable[[Any], None]] = {}
        self.numbers = itertools.count(1)
        self.link = GcsLink(
            sim,  # type: ignore[arg-type]
            "tcp:head:1",
            Hello("node", self.node_id, self.node_id, b"", 1, 1.0, ""),
            patience_s=1e9,
            silence_s=1.0,
            deliver=self.on_gcs,
            joined=self.on_joined,
            lost=self.on_lost,
            inventory=lambda: inventory(self),  # type: ignore[arg-type]
        )
        self.jobs = SimpleNamespace(foreign_env=lambda job_id: {}, introduce=lambda job_id, config: None)
        self.membership = None
        self.link.join({"node_id": self.node_id, "resources": {"CPU": 4 * CPU}, "endpoint": "tcp:n:1"})

    def now(self) -> float:
        return self.world.now

    def ask(self, method: str, *args: Any, then: Callable[[Any], None] = lambda value: None) -> None:
        number = next(self.numbers)
        self.requests[number] = then
        self.link.send(Request(number, method, args))

    def on_joined(self, terms: dict[str, Any]) -> None:
        if terms.get("gone"):
            self.view.apply(ClusterView([], terms["gone"]))

    def on_lost(self, reason: str) -> None:
        raise AssertionError(f"node {self.node_id.hex()[-2:]} is sent away: {reason}")

    def on_gcs(self, message: Message) -> None:
        if isinstance(message, Reply):
            self.requests.pop(message.request_id)(message.value)
        elif isinstance(message, Died):
            assert message.worker_id in self.watched
            self.watched.discard(message.worker_id)
            self.deaths.told(message)
        elif isinstance(message, Watch):
            died = self.deaths.ask(message.worker_id)
            if died is not None:
                self.link.send(died)
        elif isinstance(message, ClusterView):
            self.view.apply(message)
        elif not isinstance(message, Introduce):
            ORDERS[type(message)](self, message)  # type: ignore[arg-type]
        self.work()

    def do(self, effects: list[tuple[Any, ...]]) -> None:
        self.world.do(effects)

    def watch(self, worker_id: bytes, node_id: bytes) -> None:
        if self.deaths.watch_elsewhere(self.driver, worker_id, node_id):
            self.watched.add(worker_id)
            self.link.send(Watch(worker_id, node_id))

    def work(self) -> None:
        """What leaves at once: orders to workers, reports to the head."""
        world = self.world
        while world.ordered:
            number = world.ordered.pop(0)
            if number in world.pool.workers:
                self.deaths.born(world.pool.workers[number].worker_id)
                world.register(number)
        for message in world.take(CreateActor):
            worker = next(w for w in world.pool.workers.values() if self.runs(w.number, message))
            assert worker.number not in self.actors
            self.actors[worker.number] = message
            self.starting.append((worker.number, message))
            self.sim.begun(message, self)
        world.sent.clear()
        said, world.to_gcs[:] = list(world.to_gcs), []
        for report in said:
            self.link.send(report)
        for group_id in world.asked:
            self.ask("wait_placement_group", group_id)
        world.asked.clear()

    def runs(self, number: int, message: CreateActor) -> bool:
        worker = self.world.pool.workers[number]
        lease = self.table.leases.get(worker.lease_no)
        actor = lease.demand.actor if lease is not None else None
        return actor is not None and (actor.actor_id, actor.incarnation) == (message.actor_id, message.incarnation)

    def start_one(self) -> None:
        """An ``__init__`` ends."""
        number, message = self.starting.popleft()
        if number not in self.actors:
            return
        error = b"error" if message.spec["fails"] else None
        address = None if error else (self.node_id, self.world.pool.workers[number].worker_id, "tcp:w:1")
        said = ActorStarted(message.actor_id, message.incarnation, address, error)
        self.table.actors.started(said)
        self.link.send(said)
        self.work()

    def exit_ordered(self) -> None:
        """Workers end that were told to."""
        for number in list(dict.fromkeys(number for number, _, _ in self.world.exits)):
            if number in self.world.pool.workers:
                self.end_worker(number, expected=True)
        self.world.exits.clear()

    def end_worker(self, number: int, *, expected: bool) -> None:
        worker_id = self.world.pool.workers[number].worker_id
        self.actors.pop(number, None)
        cause = {"text": "exit code 1", "expected": expected}
        self.world.exit(number, **cause)
        self.deaths.died(worker_id, cause)
        self.link.send(Died(worker_id, -1, -1, -1, cause))
        self.work()


class Client:
    """A driver's line, and what it was answered."""

    def __init__(self, sim: Sim, home: Machine) -> None:
        self.sim, self.home = sim, home
        self.worker_id = home.driver
        self.closed = False
        self.answers: dict[int, Reply] = {}
        self.asked: dict[int, tuple[str, tuple[Any, ...]]] = {}
        self.told: dict[bytes, ActorUpdate] = {}
        self.number = 0
        self.line = GcsLine(self, None, "tcp:head:1", 1e9)  # type: ignore[arg-type]

    def dial_gcs(self, endpoint: str) -> Any:
        return self.sim.dial(endpoint, None, self)

    def call_later(self, delay_s: float, fn: Callable[[], None]) -> None:
        self.sim.call_later(delay_s, fn)

    def subscriptions(self) -> list[bytes]:
        return [actor_id for actor_id, update in self.told.items() if update.state != "DEAD"]

    def give_up_on(self, numbers: list[int], text: str) -> None:
        raise AssertionError(text)

    def ask(self, method: str, *args: Any) -> int:
        self.number += 1
        self.asked[self.number] = (method, args)
        self.line.ask(self.number, method, args)
        return self.number

    def on_messages(self, pipe: Pipe, messages: list[tuple[Any, ...]]) -> None:
        for raw in messages:
            message = unpack(raw)
            if isinstance(message, ActorUpdate):
                before = self.told.get(message.actor_id)
                assert before is None or before.state != "DEAD" or message.state == "DEAD"
                self.told[message.actor_id] = message
            elif message.request_id:  # type: ignore[attr-defined]
                assert isinstance(message, Reply) and message.request_id not in self.answers, "answered twice"
                self.line.answered(message.request_id)
                self.line.on_reply()
                self.answers[message.request_id] = message

    def on_close(self, pipe: Pipe, error: Any) -> None:
        if pipe is self.line.conn:
            self.line.on_close(error)


class Sim:
    """Everything, driven by one seed."""

    def __init__(self, seed: int, machines: int = 3) -> None:
        self.rng = random.Random(seed)
        self.clock = Clock()
        self.call_later = self.clock.call_later
        self.rows: Rows = {}
        self.pipes: list[Pipe] = []
        self.lives: dict[bytes, int] = {}  # actor → workers that were given to it
        self.made: dict[bytes, dict[str, Any]] = {}
        self.faults: dict[bytes, int] = {}  # actor → what may have cost it an incarnation
        self.doomed: set[bytes] = set()  # actors that were killed, dropped, or failed
        self.groups: dict[bytes, bool] = {}  # whether it is still wanted
        self.kills = 0
        self.head: Head | None = Head(self)
        self.machines = [Machine(self, number + 1) for number in range(machines)]
        self.drain()
        self.clients: list[Client] = []
        for machine in self.machines:
            machine.ask("add_job", self.job_of(machine), then=lambda job, m=machine: self.got_job(m, job["job_id"]))
        self.drain()

    def job_of(self, machine: Machine) -> dict[str, Any]:
        return {"driver_worker_id": machine.driver, "node_id": machine.node_id, "namespace": "ns"}

    def got_job(self, machine: Machine, job_id: bytes) -> None:
        machine.job_id = job_id  # type: ignore[attr-defined]
        self.clients.append(Client(self, machine))

    # --- the network --------------------------------------------------------------------------------

    def dial(self, endpoint: str, hello: Hello | None, handler: Any) -> Pipe:
        pipe = Pipe(self, handler, handler, hello)
        self.pipes.append(pipe)
        if self.head is None:
            self.call_later(0.001, pipe.lose)
        else:
            pipe.head = self.head
            end = Answering(pipe)
            if hello is not None:
                pipe.router = (NodeRouter(self.head.gcs, handler, hello.worker_id), end)
            else:
                pipe.router = (None, end)
        return pipe

    def up_one(self, pipe: Pipe) -> None:
        """The head reads one message; a turn may have more than one."""
        self.read_one(pipe)
        if self.head is not None and self.rng.random() < 0.5:
            self.head.turn()

    def read_one(self, pipe: Pipe) -> None:
        head, raw = self.head, pipe.up.popleft()
        assert head is not None and pipe.head is head
        router, end = pipe.router
        if router is not None:
            router.on_messages(end, [raw])
        else:
            request = unpack(raw)
            assert isinstance(request, Request)
            head.gcs.on_request(end, request)

    def down_one(self, pipe: Pipe) -> None:
        pipe.handler.on_messages(pipe, [pipe.down.popleft()])

    def kill_head(self) -> None:
        """Between two messages, or while those of a turn leave; perhaps before what was asked is committed."""
        head = self.head
        assert head is not None
        self.kills += 1
        for pipe in [pipe for pipe in self.pipes if pipe.up and pipe.head is head][: self.rng.randrange(3)]:
            self.read_one(pipe)
        if head.soon and self.rng.random() < 0.7:
            head.credit = self.rng.randrange(4)
            head.turn()
        head.alive = False
        self.head = None
        pipes, self.pipes = self.pipes, []
        for pipe in pipes:
            pipe.head = None
            if pipe.closed:
                continue
            for _ in range(self.rng.randrange(len(pipe.down) + 1)):  # what the kernel had already
                self.down_one(pipe)
            pipe.lose()

    def start_head(self) -> None:
        self.head = Head(self)
        self.head.turn()

    def lose_machine(self, machine: Machine) -> None:
        """Its power is gone. A head that runs notices; one that is away finds it missing."""
        machine.link._over = True  # it dials no more
        self.machines.remove(machine)
        client = next(client for client in self.clients if client.home is machine)
        client.closed = True
        self.clients.remove(client)
        there = {actor_id for actor_id, _, _ in machine.table.actors.living()}
        there |= {actor_id for actor_id, row in CommittedTables(self.rows).load("actors") if row[3] == machine.node_id}
        if self.head is not None:
            there |= {actor.actor_id for actor in self.head.gcs._actors.on_node(machine.node_id)}
        for actor_id in there:
            self.faults[actor_id] = self.faults.get(actor_id, 0) + 1
        owned = {a for a, made in self.made.items() if made["owner"][0] == machine.node_id}
        self.doomed |= {actor_id for actor_id in owned if not self.made[actor_id]["lifetime"]}
        for pipe in [p for p in self.pipes if p.handler in (machine.link, client)]:
            self.pipes.remove(pipe)
            pipe.closed = True
            router, end = pipe.router or (None, None)
            if self.head is not None and pipe.head is self.head:
                if router is not None and router.admitted:
                    self.head.gcs.node_closed(machine.node_id, end, "its power is gone")
                elif router is None:
                    self.head.gcs.on_close(end)
                self.head.turn()

    # --- what happens -------------------------------------------------------------------------------

    def begun(self, message: CreateActor, machine: Machine) -> None:
        """A worker becomes an actor: never beside another one of it, and never twice the same incarnation."""
        key = message.actor_id
        others = [
            (other.node_id, found)
            for other in self.machines
            for found in other.actors.values()
            if found.actor_id == key and found is not message
        ]
        assert not others, f"two of one actor: {message.incarnation} and {others}"
        self.lives[key] = self.lives.get(key, 0) + 1

    def step(self) -> None:
        rng, kind = self.rng, self.rng.random()
        busy = [pipe for pipe in self.pipes if (pipe.up and pipe.head is not None) or pipe.down]
        client = rng.choice(self.clients) if self.clients else None
        machine = rng.choice(self.machines)
        if kind < 0.45 and busy:
            pipe = rng.choice(busy)
            if pipe.up and pipe.head is not None and (not pipe.down or rng.random() < 0.5):
                self.up_one(pipe)
            elif pipe.down:
                self.down_one(pipe)
        elif kind < 0.60:
            if machine.starting:
                machine.start_one()
            machine.exit_ordered()
        elif kind < 0.75 and client is not None:
            self.ask_something(client)
        elif kind < 0.80:
            self.a_worker_dies(machine)
        elif kind < 0.83 and len(self.machines) > 1:
            other = rng.choice(self.machines)
            if other is not machine and other.actors:
                worker = other.world.pool.workers[rng.choice(list(other.actors))]
                machine.watch(worker.worker_id, other.node_id)
        elif kind < 0.87:
            if self.head is None:
                self.start_head()
            elif rng.random() < 0.5:
                self.kill_head()
        elif kind < 0.872 and len(self.machines) > 2:
            self.lose_machine(machine)
        else:
            self.pass_time(rng.choice((0.01, 0.1, 0.3)))
        if self.head is not None and rng.random() < 0.5:
            self.head.turn()

    def ask_something(self, client: Client) -> None:
        rng, what = self.rng, self.rng.random()
        living = sorted(self.made)
        if what < 0.4:
            self.create(client)
        elif what < 0.55 and living:
            actor_id, gentle = rng.choice(living), rng.random() < 0.6
            self.faults[actor_id] = self.faults.get(actor_id, 0) + 1
            if not gentle or self.made[actor_id]["options"]["max_restarts"] < self.faults[actor_id]:
                self.doomed.add(actor_id)
            client.ask("kill_actor", actor_id, not gentle)
        elif what < 0.6 and living:
            actor_id = rng.choice(living)
            if not self.made[actor_id]["lifetime"]:
                self.doomed.add(actor_id)
            client.ask("actor_out_of_scope", actor_id)
        elif what < 0.8:
            client.ask("kv_put", b"key%d" % rng.randrange(8), client.worker_id, False, b"")
        elif what < 0.9:
            group_id = (len(self.groups) + 1).to_bytes(14, "big") + client.home.job_id  # type: ignore[attr-defined]
            self.groups[group_id] = True
            bundles = [{"CPU": CPU}] * rng.randint(1, 3)
            strategy = rng.choice(("PACK", "SPREAD", "STRICT_PACK"))
            made = {"group_id": group_id, "job_id": client.home.job_id, "strategy": strategy, "bundles": bundles}  # type: ignore[attr-defined]
            client.ask("create_placement_group", {**made, "lifetime": "detached"})
        else:
            own = [group_id for group_id in sorted(self.groups) if group_id.endswith(client.home.job_id)]  # type: ignore[attr-defined]
            if own:
                group_id = rng.choice(own)
                self.groups[group_id] = False
                client.ask("remove_placement_group", group_id)

    def create(self, client: Client) -> None:
        rng = self.rng
        made = spec(
            len(self.made) + 1,
            job_id=client.home.job_id,  # type: ignore[attr-defined]
            owner=(client.home.node_id, client.worker_id, "tcp:d:1"),
            name=f"name{rng.randrange(4)}" if rng.random() < 0.3 else None,
            lifetime="detached" if rng.random() < 0.3 else None,
            options={"max_restarts": rng.choice((0, 1, 3, 1000))},
            placement_resources={},
            fails=rng.random() < 0.1,
        )
        self.made[made["actor_id"]] = made
        if made["fails"]:
            self.doomed.add(made["actor_id"])
        client.ask("create_actor", made)

    def a_worker_dies(self, machine: Machine) -> None:
        if machine.actors:
            number = self.rng.choice(list(machine.actors))
            actor_id = machine.actors[number].actor_id
            self.faults[actor_id] = self.faults.get(actor_id, 0) + 1
            if self.made[actor_id]["options"]["max_restarts"] < self.faults[actor_id]:
                self.doomed.add(actor_id)
            machine.end_worker(number, expected=False)

    # --- rest ---------------------------------------------------------------------------------------

    def drain(self) -> None:
        """All that is on the way arrives, and what follows from it."""
        assert self.head is not None
        moved = True
        while moved:
            moved = False
            for pipe in list(self.pipes):
                while pipe.up and pipe.head is not None:
                    self.up_one(pipe)
                    moved = True
                self.head.turn()
                while pipe.down:
                    self.down_one(pipe)
                    moved = True
            for machine in self.machines:
                moved = moved or bool(machine.starting or machine.world.exits)
                while machine.starting:
                    machine.start_one()
                machine.exit_ordered()

    def pass_time(self, seconds: float) -> None:
        """Everybody says meanwhile that it is there."""
        for machine in self.machines:
            book = machine.table.book
            machine.link.send(NodeReport(dict(book.available), dict(book.totals), 0, []))
        self.clock.pass_time(seconds)

    def settle(self) -> None:
        if self.head is None:
            self.start_head()
        for _ in range(60):
            self.drain()
            self.pass_time(0.5)
        self.drain()

    def check_rest(self) -> None:
        assert self.head is not None
        gcs = self.head.gcs
        running: dict[bytes, tuple[bytes, int]] = {}
        for machine in self.machines:
            for number, found in machine.actors.items():
                assert found.actor_id not in running, "two of one actor"
                assert machine.runs(number, found)
                running[found.actor_id] = (machine.node_id, found.incarnation)
            assert {key[0] for key in machine.table.actors.living()} == {a.actor_id for a in machine.actors.values()}
            dead = [w for w in machine.watched if not any(w in m.deaths.living() for m in self.machines)]
            assert not dead, "somebody waits for the news of a death that is past"
        for client in self.clients:
            assert client.answers.keys() == client.asked.keys(), "a request has no answer"
            for actor_id, update in client.told.items():
                assert update.state == gcs._actors.state_of(actor_id), "a subscriber has missed something"
        for actor_id, made in self.made.items():
            self.check_actor(actor_id, made, gcs, running.pop(actor_id, None))
        assert not running, "somebody runs whom nobody has made"
        self.check_answers(gcs)
        self.check_groups(gcs)

    def check_actor(self, actor_id: bytes, made: dict[str, Any], gcs: Any, where: tuple[bytes, int] | None) -> None:
        state = gcs._actors.state_of(actor_id)
        if state != "ALIVE":
            assert state in (None, "DEAD"), f"{state}: it hangs"
            assert where is None, "the dead walk"
            refused = made["name"] is not None
            gone = made["owner"][0] not in {machine.node_id for machine in self.machines}
            lost = self.faults.get(actor_id, 0) > made["options"]["max_restarts"]
            assert actor_id in self.doomed or refused or gone or lost, f"{actor_id.hex()} was lost"
            return
        record = gcs._actors._actors[actor_id]
        assert where == (record.node_id, record.incarnation), f"{record} is at {where}"
        assert record.incarnation <= self.faults.get(actor_id, 0), "it was restarted for nothing"

    def check_answers(self, gcs: Any) -> None:
        first: dict[bytes, list[bytes]] = {}
        for client in self.clients:
            for number, (method, args) in client.asked.items():
                if method == "kv_put" and client.answers[number].value is False:
                    first.setdefault(args[0], []).append(client.worker_id)
        for key, winners in first.items():
            assert len(winners) == 1, f"{key!r} was put first by {winners}"
            assert gcs._kv.get(b"", key) == winners[0]

    def check_groups(self, gcs: Any) -> None:
        opened: dict[bytes, int] = {}
        for machine in self.machines:
            for group_id, group in machine.table.bundles._groups.items():
                parts = sum(len(a.bundles) for a in group.attempts.values() if a.is_open)
                opened[group_id] = opened.get(group_id, 0) + parts
        for group_id, wanted in self.groups.items():
            record = gcs._groups._groups.get(group_id)
            there = opened.pop(group_id, 0)
            if record is None or record.state == "REMOVED":
                assert not there, "bundles of a group that is removed"
            else:
                assert there == len(record.places), f"{record}: {there} bundles are open"
                asked = any(group_id.endswith(client.home.job_id) for client in self.clients)  # type: ignore[attr-defined]
                assert wanted or not asked, f"{record}: it was to be removed"
        assert not any(opened.values())

