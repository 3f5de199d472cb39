"""A GCS and several nodes in one thread, by a seed: actors come, crash and are killed, nodes join and are lost.

Everything is the real thing but the processes and the sockets: messages wait in one queue per direction and
node, workers register and start actors when the dice say so. After each step all invariants hold; at rest each
actor that is not dead runs in exactly one place, or nowhere, and then no living node has room for it.
"""

from __future__ import annotations

import itertools
import os
import random
from collections import deque
from contextlib import closing
from typing import Any

import pytest

from minray._base.config import Config
from minray.gcs.actor_record import ALIVE, DEAD
from minray.gcs.service import GcsService
from minray.gcs.tables import Tables
from minray.node.demands import WorkerClass
from minray.node.leases import LeaseTable
from minray.node.view import View
from minray.node.worker_pool import WorkerPool
from minray.wire.codec import decode
from minray.wire.messages import (
    ActorStarted,
    ClusterView,
    CreateActor,
    Died,
    Message,
    NodeReport,
    Request,
    StartActor,
    StopActor,
    unpack,
)
from tests.gcs.support import JOB, OWNER
from tests.gcs.test_links import Clock

SEEDS = int(os.environ.get("MINRAY_TEST_SEEDS", "30"))
CPU = 10_000


class SimNode:
    """One machine: its lease table, and workers that do what the dice say."""

    def __init__(self, sim: Sim, number: int, cpus: int, **totals: int) -> None:
        self.sim = sim
        self.node_id = bytes([number]) * 28
        self.view = View(self.node_id)
        ids = itertools.count(1)
        pool = WorkerPool(
            cpus=cpus, new_worker_id=lambda: bytes([number]) + next(ids).to_bytes(27, "big"), idle_s=1.0
        )
        self.table = LeaseTable(
            self.node_id, {"CPU": cpus * CPU, **totals}, pool, view=self.view, infeasible_grace_s=1000.0
        )
        self.ordered: list[int] = []
        self.orders: dict[bytes, CreateActor] = {}  # worker → what it is to become
        self.running: dict[tuple[bytes, int], bytes] = {}  # actor that has started → worker
        self.told: Any = None
        self.told_at = 0.0
        self.inbox: deque[Message] = deque()
        self.outbox: deque[Message] = deque()
        self.closed = False

    # -- the GCS's side of the connection

    def send(self, message: tuple[Any, ...]) -> None:
        self.inbox.append(unpack(message))

    def send_frame(self, frame: bytes) -> None:
        self.send(decode(frame[4:]))

    def close(self) -> None:
        self.closed = True

    # -- what happens

    def hear(self) -> None:
        """One message of the GCS."""
        message, now, table = self.inbox.popleft(), self.sim.clock.now, self.table
        if isinstance(message, StartActor):
            self.do(table.start_actor(message, now))
        elif isinstance(message, StopActor):
            stop = message.actor_id, message.incarnation, now
            self.do(table.stop_actor(*stop, graceful=message.graceful, reason=message.reason))
        elif isinstance(message, ClusterView):
            self.view.apply(message)
            table.actors.view_changed(now)
            self.do(table.view_changed(now))

    def do(self, effects: list[Any]) -> None:
        for kind, *rest in effects:
            if kind == "start":
                self.ordered.append(rest[0])
            elif kind == "send" and isinstance(rest[1], CreateActor):
                self.orders[rest[0]] = rest[1]
            elif kind == "exit":
                self.exit(rest[0], {"text": "it was told to", "expected": True})
            elif kind == "gcs":
                self.outbox.append(rest[0])
        self.table.check_invariants()
        self.table.actors.check_invariants()
        self.view.check_invariants()

    def exit(self, number: int, cause: dict[str, Any]) -> None:
        worker = self.table.pool.workers.get(number)
        if worker is None:
            return
        if number in self.ordered:
            self.ordered.remove(number)
        self.orders.pop(worker.worker_id, None)
        self.running = {key: who for key, who in self.running.items() if who != worker.worker_id}
        _, effects = self.table.exited(number, cause, (-1, -1, -1), self.sim.clock.now)
        self.do(effects)
        self.outbox.append(Died(worker.worker_id, -1, -1, -1, cause))

    def register(self, which: int) -> None:
        number = self.ordered.pop(which % len(self.ordered))
        worker = self.table.pool.workers[number]
        address = (self.node_id, worker.worker_id, "unix:/w")
        self.do(self.table.registered(number, address, self.sim.clock.now))

    def start(self, which: int) -> None:
        """A worker has run ``__init__``."""
        worker_id = sorted(self.orders)[which % len(self.orders)]
        order = self.orders.pop(worker_id)
        key = (order.actor_id, order.incarnation)
        self.running[key] = worker_id
        address = (self.node_id, worker_id, "unix:/w")
        self.outbox.append(ActorStarted(*key, address, None))

    def tick(self) -> None:
        now = self.sim.clock.now
        self.do(self.table.tick(now))
        self.do(self.table.actors.tick(now))
        state = (dict(self.table.book.available), len(self.table.queue))
        if state != self.told or now >= self.told_at + 1.0:
            self.told, self.told_at = state, now
            free = {name: max(0, amount) for name, amount in state[0].items()}
            self.outbox.append(NodeReport(free, dict(self.table.book.totals), state[1], []))

    @property
    def busy(self) -> bool:
        return bool(self.inbox or self.outbox or self.ordered or self.orders)

    def crash(self, which: int) -> None:
        workers = sorted(self.table.pool.workers)
        if workers:
            self.exit(workers[which % len(workers)], {"text": "signal 9"})


class Sim:
    """The cluster."""

    def __init__(self, seed: int) -> None:
        self.dice = random.Random(seed)
        self.clock = Clock()
        self.gcs = GcsService(
            self.clock,
            Tables(),
            wall=lambda: 1.0,
            make_namespace=lambda: "n",
            config=Config(node_timeout_s=1e6),
            now=lambda: self.clock.now,
        )
        self.nodes: dict[bytes, SimNode] = {}
        self.numbers = itertools.count(1)
        self.actors: dict[bytes, dict[str, Any]] = {}
        self.home = self.join(2)
        for _ in range(2):
            self.join(self.dice.randrange(1, 4))

    def join(self, cpus: int, **totals: int) -> SimNode:
        node = SimNode(self, next(self.numbers), cpus, **totals)
        self.nodes[node.node_id] = node
        info = {"node_id": node.node_id, "resources": dict(node.table.book.totals), "endpoint": "tcp:x:1"}
        assert self.gcs.admit_node(node.node_id, node, Request(0, "add_node", (info,)))
        job = WorkerClass(JOB)
        node.table.driver_joined(OWNER, (node.node_id, OWNER, "unix:/d"), job)
        return node

    def lose(self) -> None:
        """The machine is gone, with what was on its way."""
        others = [node for node in self.nodes.values() if node is not self.home]
        if others:
            node = self.dice.choice(others)
            del self.nodes[node.node_id]
            self.gcs.node_closed(node.node_id, node, "its connection has ended")

    def create(self) -> None:
        number = next(self.numbers)
        request = self.dice.choice([{"CPU": CPU}, {"CPU": 2 * CPU}, {}, {"CPU": CPU, "x": 1}])
        keeps = self.dice.random() < 0.6
        spec = {
            "actor_id": number.to_bytes(12, "big") + JOB,
            "job_id": JOB,
            "owner": (self.home.node_id, OWNER, "unix:/d"),
            "class_name": "A",
            "method_meta": b"",
            "options": {"max_restarts": self.dice.choice([0, 1, -1])},
            "strategy": self.dice.choice([None, "SPREAD"]),
            "placement_resources": request,
            "lifetime_resources": request if keeps else {},
        }
        self.actors[spec["actor_id"]] = spec
        self.ask("create_actor", spec)

    def ask(self, method: str, *args: Any) -> None:
        class Nobody:
            def send(self, message: tuple[Any, ...]) -> None:
                pass

            def cork(self) -> bool:
                return False

        self.gcs.on_request(Nobody(), Request(1, method, args))
        self.clock.turn()

    def kill(self) -> None:
        if self.actors:
            self.ask("kill_actor", self.dice.choice(list(self.actors)), self.dice.random() < 0.5)

    def deliver(self, node: SimNode) -> None:
        """One message, of one direction."""
        if node.outbox and (not node.inbox or self.dice.random() < 0.5):
            self.gcs.on_node(node.node_id, node.outbox.popleft())
            self.clock.turn()
        elif node.inbox:
            node.hear()

    def step(self) -> None:
        dice, node = self.dice, self.dice.choice(list(self.nodes.values()))
        what = dice.random()
        if what < 0.45:
            self.deliver(node)
        elif what < 0.6 and node.ordered:
            node.register(dice.randrange(100))
        elif what < 0.7 and node.orders:
            node.start(dice.randrange(100))
        elif what < 0.8:
            self.create()
        elif what < 0.84:
            self.kill()
        elif what < 0.87:
            node.crash(dice.randrange(100))
        elif what < 0.88:
            self.lose()
        elif what < 0.89 and len(self.nodes) < 6:
            self.join(dice.randrange(1, 4), **({"x": 3} if dice.random() < 0.5 else {}))
        else:
            self.pass_time(dice.choice([0.01, 0.1, 0.6]))
        self.gcs.check_invariants()

    def pass_time(self, seconds: float) -> None:
        self.clock.pass_time(seconds)
        for node in self.nodes.values():
            node.tick()

    def rest(self) -> None:
        """No more accidents: everything that can happen happens."""
        quiet, before = 0, None
        for _ in range(1000):
            for _ in range(5000):
                busy = [node for node in self.nodes.values() if node.busy]
                if not busy:
                    break
                node = self.dice.choice(busy)
                if node.inbox or node.outbox:
                    self.deliver(node)
                elif node.ordered:
                    node.register(0)
                else:
                    node.start(0)
            quiet, before = quiet + 1 if before == self.picture() else 0, self.picture()
            if quiet == 40:  # patience doubles up to 16 s
                return
            self.pass_time(1.0)
        raise AssertionError("it does not come to rest")

    def picture(self) -> Any:
        actors = self.gcs._actors._actors
        return {aid: (actors[aid].state, actors[aid].node_id, actors[aid].bounces) for aid in self.actors}

    def check_at_rest(self) -> None:
        found: dict[tuple[bytes, int], list[bytes]] = {}
        for node in self.nodes.values():
            for key in node.running:
                found.setdefault(key, []).append(node.node_id)
        for aid, spec in self.actors.items():
            actor = self.gcs._actors._actors[aid]
            here = [where for (who, _), where in found.items() if who == aid]
            if actor.state == DEAD:
                assert not here, f"{actor} is dead and runs"
            elif actor.state == ALIVE:
                assert found[aid, actor.incarnation] == [actor.node_id] and len(here) == 1
            else:
                assert not here, f"{actor} runs, and the GCS does not know"
                request = spec["placement_resources"]
                room = [n for n in self.nodes.values() if n.table.book.fits(request)]
                assert not room, f"{actor} waits, and node {room[0].node_id[0]} has room"


@pytest.mark.sim
@pytest.mark.parametrize("seed", range(SEEDS))
def test_actors_among_nodes(seed: int) -> None:
    sim = Sim(seed)
    with closing(sim.gcs):
        for _ in range(250):
            sim.step()
        sim.rest()
        sim.check_at_rest()
