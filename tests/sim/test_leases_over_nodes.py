"""One owner and the lease tables of several nodes, in every order that sockets allow.

The owner's TaskManager, each node's LeaseTable and each worker's TaskQueue are those of production; the network
between them keeps the order of each pair and nothing else, and what nodes know of each other is late. However
the messages cross: every task runs once, no node gives more than it has, and at rest nobody holds a lease.
"""

from __future__ import annotations

import os
import random
from collections import Counter, deque
from typing import Any

import pytest

from minray.node.demands import WorkerClass
from minray.node.leases import LeaseTable
from minray.node.view import View
from minray.node.worker_pool import WorkerPool
from minray.wire.messages import (
    TASKS,
    ClusterView,
    GiveBack,
    LeaseConfirm,
    LeaseDecline,
    LeaseDemand,
    LeaseEnded,
    LeaseGrant,
    LeaseInfeasible,
    LeaseReturn,
    LeaseRevoke,
    LeaseSpill,
    Ready,
    Steal,
    unpack,
)
from minray.worker.owner import TaskManager
from minray.worker.task_queue import TaskQueue
from minray.worker.tasks import Function, SchedulingKey, Task

SEEDS = int(os.environ.get("MINRAY_TEST_SEEDS", "60"))
OWNER = b"o" * 28
JOB = b"\x01\0\0\0"
CPU = 10_000
LONG = 300  # steps in which the world must have come to rest after the last submission, times ten


def node_name(number: int) -> bytes:
    return bytes([65 + number]) * 28


class Worker:
    def __init__(self, node: Node, number: int, worker_id: bytes) -> None:
        self.node = node
        self.number = number
        self.address = (node.node_id, worker_id, f"unix:/{worker_id.hex()[:6]}")
        self.effects: list[tuple[Any, ...]] = []
        self.queue = TaskQueue(self.effects, lambda: None)


class Node:
    def __init__(self, world: World, number: int, totals: dict[str, int], labels: dict[str, str]) -> None:
        self.world = world
        self.node_id = node_name(number)
        self.totals, self.labels = totals, labels
        made = iter(range(1, 10_000))
        pool = WorkerPool(
            cpus=max(1, totals.get("CPU", 0) // CPU),
            new_worker_id=lambda: self.node_id[:1] + next(made).to_bytes(27, "big"),
        )
        self.table = LeaseTable(
            self.node_id, totals, pool, view=View(self.node_id), labels=labels, first_no=number << 32
        )
        self.workers: dict[bytes, Worker] = {}

    def row(self) -> tuple[Any, ...]:
        free = {name: max(0, n) for name, n in self.table.book.available.items()}
        load = len(self.table.queue)
        return (self.node_id, f"tcp:{self.node_id[:1].decode()}:1", "", self.totals, free, self.labels, load)

    def do(self, effects: list[tuple[Any, ...]]) -> None:
        for kind, *rest in effects:
            if kind == "start":
                self.world.send(self.node_id, self.node_id, ("fork", rest[0]))
            elif kind == "send":
                self.world.send(self.node_id, rest[0], rest[1])
            else:
                assert kind == "exit", kind
                self.world.send(self.node_id, self.node_id, ("reaped", rest[0]))
        self.table.check_invariants()

    def receive(self, source: bytes, message: Any) -> None:
        table, now = self.table, self.world.now
        if isinstance(message, ClusterView):
            table.away.view.apply(message)
            self.do(table.view_changed(now))
        elif isinstance(message, LeaseDemand):
            if source == OWNER and OWNER not in table.addresses:
                table.stranger_joined(OWNER, self.world.address, WorkerClass(JOB))
            self.do(table.demand(source, message, now))
        elif isinstance(message, LeaseReturn):
            self.do(table.returned(source, message.lease_no, message.retire, now))
        elif isinstance(message, LeaseEnded):
            self.do(table.ended(source, message.lease_no, now))
        elif message[0] == "fork":
            pooled = table.pool.workers.get(message[1])
            if pooled is not None:
                worker = Worker(self, message[1], pooled.worker_id)
                self.workers[pooled.worker_id] = self.world.workers[pooled.worker_id] = worker
                self.do(table.registered(message[1], worker.address, now))
        else:
            pooled = table.pool.workers.get(message[1])
            if pooled is not None:
                self.world.workers.pop(pooled.worker_id, None)
                self.do(table.exited(message[1], {"text": "idle"}, (-1, -1, -1), now)[1])


class World:
    def __init__(self, seed: int) -> None:
        rng = self.rng = random.Random(seed)
        self.now = 100.0
        self.address = (node_name(0), OWNER, "unix:/owner")
        self.channels: dict[tuple[bytes, bytes], deque[Any]] = {}
        self.workers: dict[bytes, Worker] = {}
        self.timers: list[tuple[float, str, int]] = []
        self.nodes = {}
        for number in range(rng.randint(2, 5)):
            totals = {"CPU": rng.randint(0 if number else 1, 3) * CPU}
            if rng.random() < 0.5:
                totals["slot"] = rng.randint(1, 2) * CPU
            labels = {"zone": rng.choice("ab")}
            node = self.nodes[node_name(number)] = Node(self, number, totals, labels)
            if number == 0:
                node.table.driver_joined(OWNER, self.address, WorkerClass(JOB))
        self.effects: list[tuple[Any, ...]] = []
        self.owner = TaskManager(
            self.effects, self._failed, home=node_name(0), max_pipeline=4, lease_idle_s=1.0
        )
        self.owner.clustered = True
        self.keys = [self._make_key(number) for number in (1, 2, 3)]
        self.seq = 0
        self.ran: Counter[int] = Counter()
        self.failed: dict[int, Any] = {}
        self.seen: Counter[str] = Counter()
        self.where: Counter[bytes] = Counter()
        self._broadcast()

    def _make_key(self, number: int) -> SchedulingKey:
        anywhere: list[Any] = [None, None, "SPREAD", ("affinity", self.rng.choice(list(self.nodes)), True)]
        anywhere.append(("labels", {"zone": ("in", ("a", "b"))}, {}))
        anywhere.append(("labels", {}, {"zone": ("in", ("b",))}))
        anywhere.append(("near", self.rng.choice([*self.nodes, b"?" * 28])))
        resources = self.rng.choice([{"CPU": CPU}, {"CPU": CPU}, {"CPU": CPU // 2}, {}])
        some_slot = any("slot" in node.totals for node in self.nodes.values())
        if some_slot and self.rng.random() < 0.3:
            resources = {"slot": CPU}
        key = SchedulingKey(
            number, resources, self.rng.choice(anywhere), {}, 0, f"task f{number}", pipelined=True
        )
        self.owner.keys[number] = key
        return key

    def _failed(self, task: Task, error: Any) -> None:
        self.failed[task.seq] = error

    # -- the network -------------------------------------------------------------------------------

    def send(self, source: bytes, target: bytes, message: Any) -> None:
        self.seen[type(message).__name__] += 1
        self.channels.setdefault((source, target), deque()).append(message)

    def _broadcast(self) -> None:
        rows = [node.row() for node in self.nodes.values()]
        for node_id in self.nodes:
            self.send(b"gcs", node_id, ClusterView(rows, []))

    def perform(self) -> None:
        for effect in self.effects:
            if effect[0] == "node":
                self.send(OWNER, node_name(0), effect[1])
            elif effect[0] == "at":
                assert effect[2].startswith("tcp:")
                self.send(OWNER, effect[1], effect[3])
            elif effect[0] == "send":
                raw = effect[2]
                self.send(OWNER, effect[1][1], raw if raw[0] == TASKS else unpack(raw))
            else:
                assert effect[0] == "timer"
                self.timers.append((self.now + effect[1], effect[2], effect[3]))
        self.effects.clear()
        self.owner.check_invariants()

    def deliver(self, pair: tuple[bytes, bytes]) -> None:
        source, target = pair
        message = self.channels[pair].popleft()
        if not self.channels[pair]:
            del self.channels[pair]
        if target in self.nodes:
            self.nodes[target].receive(source, message)
        elif target == OWNER:
            self._to_owner(source, message)
        elif target in self.workers:
            self._to_worker(self.workers[target], message)

    def _to_owner(self, source: bytes, message: Any) -> None:
        owner = self.owner
        if isinstance(message, LeaseGrant):
            self.where[message.worker[0]] += 1
            owner.on_grant(message, self.now)
        elif isinstance(message, LeaseSpill):
            owner.on_spill(message)
        elif isinstance(message, LeaseDecline):
            owner.on_decline(source, message)
        elif isinstance(message, GiveBack):
            owner.on_give_back(message, self.now)
        elif isinstance(message, Ready):
            owner.on_ready(message.lease_no)
        elif isinstance(message, LeaseInfeasible):
            if message.fatal:
                owner.on_infeasible(message.key, message.text)
        else:
            seq, attempt = message
            task = owner.take(seq, attempt, self.rng.choice((1000, 10**9)), self.now)
            assert task is not None, "an answer to an attempt that was given up"
            owner.pump(task.function.key)
        self.perform()

    def _to_worker(self, worker: Worker, message: Any) -> None:
        queue = worker.queue
        if isinstance(message, LeaseConfirm):
            queue.on_confirm(message)
        elif isinstance(message, LeaseRevoke):
            queue.on_revoke(message.lease_no)
        elif isinstance(message, Steal):
            queue.on_steal(message.lease_no, message.count)
        else:
            queue.on_tasks(self.address, message[1], message[2])
        self._worker_says(worker)

    def _worker_says(self, worker: Worker) -> None:
        worker.queue.check_invariants()
        for effect in worker.effects:
            if effect[0] == "node":
                self.send(worker.address[1], worker.address[0], effect[1])
            else:
                self.send(worker.address[1], OWNER, unpack(effect[2]))
        worker.effects.clear()

    # -- steps -------------------------------------------------------------------------------------

    def submit(self) -> None:
        key = self.rng.choice(self.keys)
        function = Function(
            key.number, b"", f"f{key.number}", key, num_returns=1, max_retries=0, max_calls=0, meta={}
        )
        for _ in range(self.rng.choice((1, 1, 2, 7, 40))):
            self.seq += 1
            task = Task(self.seq, function, b"", None, 1, 0)
            self.owner.add(task)
            self.owner.enqueue(task)
        self.perform()

    def _work(self) -> bool:
        busy = [w for w in self.workers.values() if w.queue.running or w.queue.queue]
        if not busy:
            return False
        worker = self.rng.choice(busy)
        queue = worker.queue
        if queue.running is None:
            queue.start()
        else:
            seq, attempt = queue.running[:2]
            self.ran[seq] += 1
            self.send(worker.address[1], OWNER, (seq, attempt))
            queue.finish()
        self._worker_says(worker)
        return True

    def pass_time(self) -> None:
        moments = [timer[0] for timer in self.timers]
        moments += [m for node in self.nodes.values() if (m := node.table.next_deadline()) is not None]
        self.now = max(self.now, min([self.now + 0.1, *moments]))
        due = [timer for timer in self.timers if timer[0] <= self.now]
        self.timers = [timer for timer in self.timers if timer[0] > self.now]
        for _, what, number in due:
            self.owner.on_timer(what, number, self.now)
        self.perform()
        for node in self.nodes.values():
            node.do(node.table.tick(self.now))
        if self.rng.random() < 0.5:
            self._broadcast()

    def step(self) -> None:
        if self.channels and self.rng.random() < 0.7:
            self.deliver(self.rng.choice(list(self.channels)))
        elif self.rng.random() < 0.1 or not self._work():
            self.pass_time()

    def at_rest(self) -> bool:
        return not self.owner.tasks and not self.owner.leases and not any(n.table.leases for n in self.nodes.values())


def run(seed: int) -> World:
    world = World(seed)
    for _ in range(world.rng.randint(1, 6)):
        world.submit()
        for _ in range(world.rng.randint(0, 150)):
            world.step()
    for _ in range(LONG * 100):
        if world.at_rest():
            break
        world.step()
    assert not world.owner.tasks, f"seed {seed}: tasks {list(world.owner.tasks)[:5]} never ran"
    assert world.at_rest(), f"seed {seed}: leases are left"
    assert not world.failed, f"seed {seed}: {world.failed}"
    assert world.ran == Counter(range(1, world.seq + 1)), f"seed {seed}: a task ran twice or never"
    return world


@pytest.mark.sim
@pytest.mark.parametrize("block", range(10))
def test_every_task_runs_once_wherever_it_is_sent(block: int) -> None:
    for seed in range(block, SEEDS, 10):
        run(seed)


def test_the_seeds_see_what_there_is_to_see() -> None:
    seen: Counter[str] = Counter()
    elsewhere = 0
    for seed in range(40):
        world = run(seed)
        seen += world.seen
        elsewhere += sum(count for node_id, count in world.where.items() if node_id != node_name(0))
    assert min(seen[name] for name in ("LeaseSpill", "LeaseDecline", "LeaseRevoke", "GiveBack")) > 20, seen
    assert elsewhere > 100
