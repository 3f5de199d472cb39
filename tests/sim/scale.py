"""A cluster of any size in one thread: real owners, lease tables, task queues, GCS tables; simulated time.

    driver (TaskManager) ── LeaseDemand ─▶ LeaseTable of its node ── LeaseSpill ─▶ driver ── LeaseDemand ─▶ another
       │ ▲                                    │ report                                                        │
       ▼ │ tasks, results                     ▼                                                               │
    workers (TaskQueue) ◀── LeaseGrant ── NodeTable, NodeLinks: ClusterView ─▶ nodes on which drivers live ◀──┘

One event after the other from a heap, each message ``LATENCY_S`` under way, tasks as long as their seed says. What is
left out: user code, objects, bytes; and the views of nodes on which nobody asks for workers (they would be fed and
never read; what it costs the GCS to send them is counted).

``ops`` counts what a decision looks at: nodes in an index, rows, demands in a queue, leases and demands that are
gone through, one for each bisection, and one for each message that a lease table handles. Used by ``test_scale.py``.
"""

from __future__ import annotations

import heapq
import itertools
import random
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

from minray._base.node_index import NodeIndex
from minray.gcs.links import NodeLinks
from minray.gcs.nodes import NodeTable
from minray.node.demands import Demand, DemandQueue, WorkerClass
from minray.node.leases import LeaseTable
from minray.node.membership import load_of, report_pause
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
    NodeReport,
    Ready,
    Steal,
    unpack,
)
from minray.worker.owner import TaskManager
from minray.worker.task_queue import TaskQueue
from minray.worker.tasks import Function, SchedulingKey, Task

LATENCY_S = 0.0005
CPU = 10_000
CPUS = 4  # per node
RACK = 5  # nodes
DECISIONS = ("LeaseGrant", "LeaseSpill", "LeaseDecline")


class Ops:
    """How much was looked at."""

    def __init__(self) -> None:
        self.count = 0.0


class CountedIndex(NodeIndex):
    ops: Ops

    def holds(self, node_id: bytes, request: Any) -> bool:
        self.ops.count += 1
        return super().holds(node_id, request)

    def candidates(self, request: Any, start: int, labels: Any = None) -> Iterator[bytes]:
        self.ops.count += len(request) + len(labels or ())  # bisections, and what is looked up
        yield from super().candidates(request, start, labels)


class CountedQueue(DemandQueue):
    ops: Ops

    def __iter__(self) -> Iterator[Demand]:
        for demand in super().__iter__():
            self.ops.count += 1
            yield demand

    def serve(self, grant_one: Callable[[Demand], bool]) -> None:
        def counted(demand: Demand) -> bool:
            self.ops.count += 1
            return grant_one(demand)

        super().serve(counted)


class CountedDict(dict[Any, Any]):
    ops: Ops

    def values(self) -> Any:
        self.ops.count += len(self)
        return super().values()

    def items(self) -> Any:
        self.ops.count += len(self)
        return super().items()


def counted(cls: Any, ops: Ops) -> Any:
    made = cls()
    made.ops = ops
    return made


class Worker:
    def __init__(self, world: World, node: Node, number: int, worker_id: bytes) -> None:
        self.world, self.node, self.number = world, node, number
        self.address = (node.node_id, worker_id, "")
        self.effects: list[tuple[Any, ...]] = []
        self.queue = TaskQueue(self.effects, lambda: None)

    def receive(self, source: bytes, message: Any) -> None:
        queue = self.queue
        if isinstance(message, LeaseConfirm):
            queue.on_confirm(message)
        elif isinstance(message, LeaseRevoke):
            queue.on_revoke(message.lease_no)
        elif isinstance(message, Steal):
            queue.on_steal(message.lease_no, message.count)
        else:
            queue.on_tasks(self.world.owners[source].address, message[1], message[2])
        self._go_on()

    def _go_on(self) -> None:
        queue = self.queue
        if queue.running is None and queue.start() is not None:
            assert queue.running is not None and queue.owner is not None
            duration = self.world.owners[queue.owner[1]].durations[queue.running[0]]
            self.world.after(duration, self._done)
        world, me = self.world, self.address[1]
        for effect in self.effects:
            if effect[0] == "node":
                world.send(me, self.node, effect[1])
            else:
                world.send(me, world.owners[effect[1][1]], unpack(effect[2]))
        self.effects.clear()

    def _done(self) -> None:
        queue = self.queue
        assert queue.running is not None and queue.owner is not None
        self.world.send(self.address[1], self.world.owners[queue.owner[1]], queue.running[:2])
        queue.finish()
        self._go_on()


class Node:
    def __init__(self, world: World, number: int) -> None:
        self.world = world
        self.node_id = (number + 1).to_bytes(28, "big")
        self.totals = {"CPU": CPUS * CPU}
        self.labels = {
            "ray.io/node-id": self.node_id.hex(),
            "rack": str(number // RACK),
            "disk": "ssd" if number % 10 == 7 else "hdd",
        }
        ids = (self.node_id[:24] + made.to_bytes(4, "big") for made in itertools.count(1))
        pool = WorkerPool(cpus=CPUS, new_worker_id=lambda: next(ids))
        view = View(self.node_id)
        view._index = counted(CountedIndex, world.ops)
        table = self.table = LeaseTable(
            self.node_id, self.totals, pool, view=view, labels=self.labels, first_no=number << 32
        )
        table.queue = counted(CountedQueue, world.ops)
        table.leases, table.demands = counted(CountedDict, world.ops), counted(CountedDict, world.ops)
        self.sees = False  # whether an owner lives here
        self.workers: dict[bytes, Worker] = {}
        self._told: Any = None
        self._told_at = float("-inf")
        self._report_due = False
        self._tick_at: float | None = None

    def receive(self, source: bytes, message: Any) -> None:
        table, now, world = self.table, self.world.now, self.world
        world.ops.count += 1
        if isinstance(message, ClusterView):
            if self.sees:
                table.away.view.apply(message)
                self.do(table.view_changed(now))
            return
        if isinstance(message, LeaseDemand):
            if source not in table.addresses:
                table.stranger_joined(source, world.owners[source].address, WorkerClass(source[:4]))
            self.do(table.demand(source, message, now))
        elif isinstance(message, LeaseReturn):
            self.do(table.returned(source, message.lease_no, message.retire, now))
        else:
            assert isinstance(message, LeaseEnded)
            self.do(table.ended(source, message.lease_no, now))

    def do(self, effects: list[tuple[Any, ...]]) -> None:
        world = self.world
        for kind, *rest in effects:
            if kind == "send":
                name = type(rest[1]).__name__
                world.seen[name] += 1
                target = self.workers.get(rest[0]) or world.owners[rest[0]]
                world.send(self.node_id, target, rest[1])
            elif kind == "start":
                world.after(0.01, self._registered, rest[0])
            else:
                assert kind == "exit", kind
                world.after(0.01, self._reaped, rest[0])
        self._look()

    def _registered(self, number: int) -> None:
        pooled = self.table.pool.workers.get(number)
        if pooled is not None:
            worker = self.workers[pooled.worker_id] = Worker(self.world, self, number, pooled.worker_id)
            self.do(self.table.registered(number, worker.address, self.world.now))

    def _reaped(self, number: int) -> None:
        worker, effects = self.table.exited(number, {"text": "idle"}, (-1, -1, -1), self.world.now)
        if worker is not None:
            self.workers.pop(worker.worker_id, None)
            self.do(effects)

    # what node.service and node.membership do after each step

    def _look(self) -> None:
        now = self.world.now
        due = self.table.next_deadline()
        if due is not None and (self._tick_at is None or due < self._tick_at or self._tick_at < now):
            self._tick_at = max(now, due)
            self.world.after(self._tick_at - now, self._tick)
        if not self._report_due and self._state() != self._told:
            self._report_due = True
            pause = report_pause(len(self.world.nodes) - 1)
            self.world.after(max(0.0, self._told_at + pause - now), self._report)

    def _tick(self) -> None:
        if self._tick_at is not None and self._tick_at <= self.world.now:
            self._tick_at = None
            self.world.ops.count += 1
            self.do(self.table.tick(self.world.now))

    def _state(self) -> Any:
        ops, before = self.world.ops, self.world.ops.count
        load = load_of(self.table.queue)
        ops.count = before  # this is reporting, not deciding
        return self.table.book.available, load

    def _report(self) -> None:
        self._report_due = False
        available, load = self._state()
        self._told, self._told_at = (dict(available), load), self.world.now
        free = {name: max(0, amount) for name, amount in available.items()}
        self.world.send(self.node_id, self.world.gcs, (self.node_id, NodeReport(free, self.totals, load, [])))


class Owner:
    """A driver on a node; its tasks."""

    def __init__(self, world: World, number: int, node: Node) -> None:
        self.world, self.node = world, node
        node.sees = True
        self.owner_id = b"o" + number.to_bytes(27, "big")
        self.address = (node.node_id, self.owner_id, "")
        node.table.driver_joined(self.owner_id, self.address, WorkerClass(self.owner_id[:4]))
        self.effects: list[tuple[Any, ...]] = []
        self.tasks = TaskManager(self.effects, self._failed, home=node.node_id, max_pipeline=64, lease_idle_s=0.2)
        self.tasks.clustered = True
        self.durations: dict[int, float] = {}
        self.submitted: dict[int, float] = {}
        self.slowest = 0.0  # of its tasks, from submission to result
        self.done = 0
        self.last = 0.0  # when
        self.worked = 0.0  # CPU seconds
        self.on_idle: Callable[[], None] | None = None

    def key(self, resources: dict[str, int], strategy: Any = None) -> Function:
        number = len(self.tasks.keys) + 1
        key = SchedulingKey(number, resources, strategy, {}, 0, f"task f{number}", pipelined=True)
        self.tasks.keys[number] = key
        return Function(number, b"", f"f{number}", key, num_returns=1, max_retries=0, max_calls=0, meta={})

    def submit(self, function: Function, durations: list[float]) -> None:
        for duration in durations:
            seq = next(self.world.numbers)
            self.durations[seq], self.submitted[seq] = duration, self.world.now
            task = Task(seq, function, b"", None, 1, 0)
            self.tasks.add(task)
            self.tasks.enqueue(task)
        self.perform()

    def _failed(self, task: Task, error: Any) -> None:
        raise AssertionError(f"{task.name} failed: {error}")

    def receive(self, source: bytes, message: Any) -> None:
        tasks, now = self.tasks, self.world.now
        if type(message) is tuple:
            seq, attempt = message
            self.slowest = max(self.slowest, now - self.submitted.pop(seq))
            duration = self.durations.pop(seq)
            task = tasks.take(seq, attempt, int(duration * 1e9), now)
            assert task is not None, "an answer to an attempt that was given up"
            self.done, self.last = self.done + 1, now
            self.world.done += 1
            self.worked += duration * task.function.key.resources["CPU"] / CPU
            tasks.pump(task.function.key)
        elif isinstance(message, LeaseGrant):
            tasks.on_grant(message, now)
        elif isinstance(message, LeaseSpill):
            tasks.on_spill(message)
        elif isinstance(message, LeaseDecline):
            tasks.on_decline(source, message)
        elif isinstance(message, GiveBack):
            tasks.on_give_back(message, now)
        elif isinstance(message, Ready):
            tasks.on_ready(message.lease_no)
        else:
            assert isinstance(message, LeaseInfeasible)
            raise AssertionError(message.text)
        self.perform()
        if not tasks.tasks and self.on_idle is not None:
            self.on_idle()

    def perform(self) -> None:
        world = self.world
        for effect in self.effects:
            kind = effect[0]
            if kind == "node":
                world.seen[type(effect[1]).__name__] += 1
                world.send(self.owner_id, self.node, effect[1])
            elif kind == "at":
                world.seen[type(effect[3]).__name__] += 1
                world.send(self.owner_id, world.nodes[effect[1]], effect[3])
            elif kind == "send":
                raw = effect[2]
                target = world.nodes[effect[1][0]].workers.get(effect[1][1])
                assert target is not None, "nobody dies here while he has a lease"
                world.send(self.owner_id, target, raw if raw[0] == TASKS else unpack(raw))
            else:
                assert kind == "timer", kind
                world.after(effect[1], self._timer, effect[2], effect[3])
        self.effects.clear()

    def _timer(self, what: str, number: int) -> None:
        self.tasks.on_timer(what, number, self.world.now)
        self.perform()


class Gcs:
    """The GCS's table of nodes and its doors to them."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.table = NodeTable()
        self.table._index = counted(CountedIndex, world.ops)
        self.links = NodeLinks(self, self.table, now=lambda: world.now, timeout_s=1e9, lost=_nobody_is_lost)
        self.reports = self.views = self.rows = 0

    def call_soon(self, fn: Callable[[], None]) -> None:
        self.world.after(0.0, fn)

    def call_later(self, delay_s: float, fn: Callable[[], None]) -> None:
        self.world.after(delay_s, fn)

    def join(self, node: Node) -> None:
        info = {"node_id": node.node_id, "endpoint": "tcp:x:1", "resources": node.totals, "labels": node.labels}
        self.table.add(info, 0.0)

        def deliver(message: Any) -> None:
            self.views += 1
            self.rows += len(message.nodes)
            self.world.send(b"gcs", node, message)

        self.links.attach(node.node_id, deliver)
        self.links.joined(node.node_id)

    def receive(self, _source: bytes, message: tuple[bytes, NodeReport]) -> None:
        self.reports += 1
        changed, bigger = self.table.report(*message)
        if changed:
            self.links.changed(message[0], bigger)


def _nobody_is_lost(node_id: bytes, reason: str) -> None:
    raise AssertionError(f"{node_id.hex()}: {reason}")


class World:
    """See the file's head."""

    def __init__(self, nodes: int, seed: int = 0) -> None:
        self.rng = random.Random(seed)
        self.now = 0.0
        self.ops = Ops()
        self.seen: Counter[str] = Counter()  # messages of owners and nodes
        self.done = 0  # tasks, of all drivers
        self.numbers = itertools.count(1)
        self._events: list[tuple[float, int, Callable[..., None], tuple[Any, ...]]] = []
        self._order = itertools.count()
        self.nodes: dict[bytes, Node] = {}
        self.owners: dict[bytes, Owner] = {}
        self.gcs = Gcs(self)
        for number in range(nodes):
            node = Node(self, number)
            self.nodes[node.node_id] = node
        for node in self.nodes.values():
            self.gcs.join(node)

    def driver(self, node: int) -> Owner:
        """One more driver, on the node of that number."""
        made = Owner(self, len(self.owners), list(self.nodes.values())[node])
        self.owners[made.owner_id] = made
        return made

    def after(self, delay_s: float, fn: Callable[..., None], *args: Any) -> None:
        heapq.heappush(self._events, (self.now + delay_s, next(self._order), fn, args))

    def send(self, source: bytes, target: Any, message: Any) -> None:
        """In the order of sending, since all take as long."""
        heapq.heappush(self._events, (self.now + LATENCY_S, next(self._order), target.receive, (source, message)))

    def run(self, until: Callable[[], bool] = lambda: False, limit_s: float = float("inf")) -> None:
        """Event by event, until nothing is left to happen."""
        events = self._events
        while events and not until():
            if events[0][0] > limit_s:
                return
            self.now, _, fn, args = heapq.heappop(events)
            fn(*args)

    def decisions(self) -> int:
        return sum(self.seen[name] for name in DECISIONS)

    def check_rest(self) -> None:
        """All has run and nothing is held."""
        for owner in self.owners.values():
            owner.tasks.check_invariants()
            assert not owner.tasks.tasks and not owner.tasks.leases
        for node in self.nodes.values():
            node.table.check_invariants()
            assert not dict.__len__(node.table.leases) and not node.table.queue, f"{node.node_id.hex()} is not at rest"
            if node.sees:
                node.table.away.view.check_invariants()
        self.gcs.table.check_invariants()
        self.gcs.links.check_invariants()
