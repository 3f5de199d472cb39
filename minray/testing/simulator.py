"""A whole node in one thread: the machines that run in production, on a network and a clock that are ours.

    driver and workers: worker.core.Core, worker.task_queue.TaskQueue
    node:               node.leases.LeaseTable, node.worker_pool.WorkerPool

A seed decides everything: what each task does with its references, which message arrives next (in order per
connection, in any order between connections), who is killed when. After each step the machines' own
invariants hold, and these:

* what a living process references is not freed at its owner (unless a dead process had it in its hands);
* a task that may not be retried runs at most once;
* at rest, when all references are dropped: no object, task, lease or count is left anywhere.

Called by tests/sim and ``tox -e sim``. A failing seed replays exactly: ``run(seed)``.
"""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Iterator
from typing import Any

from minray.node.leases import LeaseTable
from minray.node.worker_pool import WorkerPool
from minray.wire.messages import (
    BORROWS,
    FETCH,
    RELEASES,
    RESULTS,
    TASKS,
    VALUES,
    Address,
    Blocked,
    Cancel,
    Died,
    ExitWorker,
    GiveBack,
    KillWorker,
    LeaseConfirm,
    LeaseDemand,
    LeaseEnded,
    LeaseGrant,
    LeaseReturn,
    LeaseRevoke,
    Message,
    Ready,
    Steal,
    Unblocked,
    Watch,
    pack,
    unpack,
)
from minray.worker.core import Core
from minray.worker.references import ERROR, INLINE, PENDING
from minray.worker.task_queue import TaskQueue
from minray.worker.tasks import STORED, Function, SchedulingKey, Task

JOB = b"job1"
NODE_ID = b"n" * 28
CPU = 10_000
EOF = ("eof",)  # the connection of a dead process, after what it had sent
Handle = tuple[bytes, Address]  # one local reference


class SimulationError(AssertionError):
    """An invariant is broken; the text says after which step of which seed."""


class Network:
    """Messages in flight: in order per pair of processes, in any order between pairs."""

    def __init__(self) -> None:
        self.pairs: dict[tuple[bytes, bytes], deque[Any]] = {}

    def send(self, source: bytes, target: bytes, message: Any) -> None:
        """Queue one."""
        self.pairs.setdefault((source, target), deque()).append(message)

    def busy(self) -> list[tuple[bytes, bytes]]:
        """Pairs with something in flight."""
        return [pair for pair, queue in self.pairs.items() if queue]

    def lose(self, process: bytes, rng: random.Random) -> None:
        """A process died: what it had sent arrives up to some point; what was sent to it is lost."""
        for (source, target), queue in self.pairs.items():
            if target == process:
                queue.clear()
            elif source == process:
                while queue and rng.random() < 0.3:
                    queue.pop()


class Process:
    """A driver or a worker: its core, and the references that its user code holds."""

    def __init__(self, sim: Simulation, worker_id: bytes, *, is_driver: bool) -> None:
        self.sim = sim
        self.worker_id = worker_id
        self.address: Address = (NODE_ID, worker_id, "sim:" + worker_id.hex()[:8])
        self.core = Core(self.address, JOB, worker_id[:12], max_pipeline=8, lease_idle_s=0.2)
        self.handles: list[Handle] = []
        self.is_driver = is_driver
        self.queue: TaskQueue | None = None if is_driver else TaskQueue(self.core.effects)
        self.script: Iterator[None] | None = None
        self.running: Any = None
        self.waits_for: bytes | None = None
        self.depth = 0
        self.number = -1
        self.functions = 0
        self.page = (-1, -1, -1)  # the status page: lease, seq and attempt started last

    # -- references of user code -----------------------------------------------------------------

    def take(self, refs: list[tuple[bytes, Address, bool]]) -> None:
        """User code unpickles a value: one more local reference for each one inside."""
        for object_id, owner, _ in refs:
            self.core.refs.borrow(object_id, owner)
            self.handles.append((object_id, owner))

    def drop(self, index: int) -> None:
        """User code lets go of one."""
        object_id, _ = self.handles.pop(index)
        self.core.refs.drop(object_id)

    def some_handles(self, most: int) -> list[Handle]:
        """Some of the references in hand."""
        count = min(len(self.handles), self.sim.rng.randint(0, most))
        return self.sim.rng.sample(self.handles, count)

    # -- what user code may do ---------------------------------------------------------------------

    def put(self) -> None:
        """An object with some references inside."""
        core = self.core
        object_id = core.object_id(core.next_seq(), 0)
        nested = list(dict.fromkeys(self.some_handles(2)))
        self.sim.note_birth(self.worker_id, core.seq_of(object_id) or 0)
        record = core.refs.own(object_id)
        record.status = self.sim.rng.choice((INLINE, STORED))
        record.value = (b"", [], [(i, o, False) for i, o in nested])
        core.refs.set_contains(record, tuple(i for i, _ in nested))
        self.handles.append((object_id, self.address))

    def submit(self, retries: int) -> None:
        """A task that takes some references, nested and at the top."""
        core = self.core
        key = self.sim.key_of(self)
        self.functions += 1
        function = Function(
            self.functions, b"", "f", key, num_returns=1, max_retries=retries, max_calls=0, meta={"depth": self.depth + 1}
        )
        task = Task(core.next_seq(), function, b"", None, 1, retries)
        nested = list(dict.fromkeys(self.some_handles(2)))
        if nested:
            task.payload = (b"", [], [(i, o, False) for i, o in nested])
            task.nested = tuple(i for i, _ in nested)
        top = self.some_handles(1)
        if top:
            task.top = [(0, top[0][0])]
        self.sim.note_birth(self.worker_id, task.seq)
        (object_id,) = core.submit(task, self.sim.now)
        self.handles.append((object_id, self.address))

    def cancel(self) -> None:
        """Cancel some unfinished task."""
        tasks = list(self.core.owner.tasks.values())
        if tasks:
            self.core.cancel_task(self.sim.rng.choice(tasks), force=self.sim.rng.random() < 0.3, recursive=False)

    def look(self, handle: Handle) -> bool:
        """get(): True if the value was there (and its references are in hand now)."""
        record = self.core.objects.get(handle[0])
        if record is None:
            raise SimulationError(f"{self}: {handle[0].hex()} is referenced but unknown here")
        if record.status == PENDING:
            self.core.when_ready(handle[0], record, _Ignore())
            return False
        if record.status != ERROR and type(record.value) is not bytes:
            self.take(record.value[2])
        return True

    # -- running a task ------------------------------------------------------------------------------

    def start_next(self) -> None:
        """The executor's thread takes a task."""
        assert self.queue is not None
        spec = self.queue.start()
        if spec is None:
            return
        owner = self.queue.owner
        self.page = (self.queue.lease_no, spec[0], spec[1])
        self.sim.note_start(owner, spec)
        self.running = (owner, spec)
        self.script = self.user_code(owner, spec)

    def user_code(self, owner: Any, spec: Any) -> Iterator[None]:
        """What a task does, one step at a time; ends with its result."""
        sim, rng = self.sim, self.sim.rng
        before = len(self.handles)
        scope: list[bytes] = []
        seq, attempt, _, payload, extra = spec
        if type(payload) is tuple:
            scope += [r[0] for r in payload[2]]
            self.take(payload[2])
        for _, status, value, object_id, top_owner in (extra or {}).get("top", ()):
            if status == STORED:
                scope.append(object_id)
                self.core.refs.borrow(object_id, top_owner)
                self.handles.append((object_id, top_owner))
            if type(value) is not bytes:
                scope += [r[0] for r in value[2]]
                self.take(value[2])
        yield
        for _ in range(rng.randint(0, 3)):
            choice = rng.random()
            if choice < 0.25:
                self.put()
            elif choice < 0.45 and self.depth < 2:
                self.submit(rng.choice((0, 3)))
            elif choice < 0.75 and self.handles:
                handle = rng.choice(self.handles)
                self.waits_for = handle[0]
                while self.waits_for is not None and not self.look(handle):
                    yield
                self.waits_for = None
            elif self.handles and len(self.handles) > before:
                self.drop(rng.randrange(before, len(self.handles)))
            yield
        result: Any = b""
        status = INLINE
        born = sim.born[(owner[1], seq)]
        # Only what is older than the result itself: rings of objects are never freed, here as in Ray.
        out = [h for h in dict.fromkeys(self.some_handles(2)) if sim.age_of(h) < born]
        if out:
            refs = [(i, o, i not in scope and self.core.refs.give(i, owner)) for i, o in out]
            result = (b"", [], refs)
            status = rng.choice((INLINE, STORED))
        while len(self.handles) > before and rng.random() < 0.85:  # the rest stays in a global variable
            self.drop(len(self.handles) - 1)
        retained = self.core.refs.end_scope(scope) if scope else None
        results = [(seq, attempt, status, result, 1000, retained)]
        self.core.effects.append(("send", owner, (RESULTS, results)))
        assert self.queue is not None
        self.running = None
        self.queue.finish()
        sim.note_finish(owner, spec)

    def step(self) -> bool:
        """One step of user code; False if there is nothing to do."""
        if self.queue is None:
            return False
        if self.script is None:
            self.start_next()
            return self.script is not None
        if self.waits_for is not None:
            record = self.core.objects.get(self.waits_for)
            if record is not None and record.status == PENDING:
                if not self.queue.blocked and self.sim.rng.random() < 0.5:
                    self.queue.block()
                    return True
                return False
        if self.queue.blocked:
            self.queue.unblock()
        try:
            next(self.script)
        except StopIteration:
            self.script = None
        return True

    # -- messages ------------------------------------------------------------------------------------

    def receive(self, source: Address, message: Any) -> None:
        """One message from another process."""
        core, now, tag = self.core, self.sim.now, message[0]
        if tag == RESULTS:
            core.on_results(source, message[1], now)
        elif tag == RELEASES:
            core.refs.on_releases(source[1], message[1])
        elif tag == BORROWS:
            core.refs.on_borrows(message[1])
        elif tag == FETCH:
            core.on_fetch(source, message[1])
        elif tag == VALUES:
            core.on_values(message[1])
        elif tag == TASKS:
            assert self.queue is not None
            self.queue.on_tasks(source, message[1], message[2])
        else:
            self.receive_control(source, unpack(message))

    def receive_control(self, source: Address, msg: Message) -> None:
        """The rarer ones."""
        core, now, queue = self.core, self.sim.now, self.queue
        if isinstance(msg, LeaseGrant):
            core.on_grant(msg, now)
        elif isinstance(msg, GiveBack):
            core.on_give_back(msg, now)
        elif isinstance(msg, Ready):
            core.on_ready(msg, now)
        elif isinstance(msg, Died):
            core.on_died(msg, now)
            if queue is not None and queue.on_owner_died(msg.worker_id):
                self.sim.kill(self.worker_id)
        elif queue is None:
            raise SimulationError(f"{self} has no use for {msg}")
        elif isinstance(msg, LeaseConfirm):
            queue.on_confirm(msg)
            self.depth = self.sim.depth_of(msg.owner[1]) + 1
        elif isinstance(msg, Steal):
            queue.on_steal(msg.lease_no, msg.count)
        elif isinstance(msg, LeaseRevoke):
            queue.on_revoke(msg.lease_no)
        elif isinstance(msg, Cancel):
            self.on_cancel(source, msg)
        elif isinstance(msg, ExitWorker):
            self.sim.kill(self.worker_id)
        else:
            raise SimulationError(f"{self} has no use for {msg}")

    def on_cancel(self, owner: Address, msg: Cancel) -> None:
        """Not started: answered at once. Running: it goes on here, as code that swallows the interrupt."""
        assert self.queue is not None
        if self.queue.remove(msg.seq, msg.attempt) is not None:
            result = (msg.seq, msg.attempt, ERROR, ("cancelled", "f"), -1, None)
            self.core.effects.append(("send", owner, (RESULTS, [result])))

    def __repr__(self) -> str:
        return f"{'driver' if self.is_driver else 'worker'} {self.worker_id.hex()[:8]}"


class _Ignore:
    def ready(self, _id: Any, _record: Any) -> None:
        """Nobody is told: the simulated user code looks again."""


class Simulation:
    """One driver, one node, some workers, one seed."""

    def __init__(self, seed: int, *, cpus: int = 2, kills: int = 0) -> None:
        self.seed = seed
        self.rng = random.Random(seed)
        self.now = 0.0
        self.steps = 0
        self.kills_left = kills
        self.network = Network()
        self.processes: dict[bytes, Process] = {}
        self.pool = WorkerPool(cpus=cpus, new_worker_id=lambda: self.rng.randbytes(28))
        self.table = LeaseTable(NODE_ID, {"CPU": cpus * CPU}, self.pool)
        self.driver = self._join(self.rng.randbytes(28), is_driver=True)
        self.table.addresses[self.driver.worker_id] = self.driver.address
        self.timers: list[tuple[float, Process, str, int]] = []
        self.watchers: dict[bytes, set[bytes]] = {}
        self.dead: dict[bytes, Died] = {}
        self.tainted: set[bytes] = set()  # objects that a killed process had in its hands
        self.starts: dict[tuple[bytes, int], int] = {}
        self._keys: dict[tuple[bytes, int], SchedulingKey] = {}
        self.born: dict[tuple[bytes, int], int] = {}  # (owner, seq) → order of creation

    # -- the world -----------------------------------------------------------------------------------

    def _join(self, worker_id: bytes, *, is_driver: bool) -> Process:
        process = self.processes[worker_id] = Process(self, worker_id, is_driver=is_driver)
        return process

    def key_of(self, process: Process) -> SchedulingKey:
        """The scheduling key of what this process submits now."""
        name = (process.worker_id, process.depth)
        key = self._keys.get(name)
        if key is None:
            number = len(self._keys) + 1
            key = SchedulingKey(number, {"CPU": CPU}, None, {}, process.depth, "task f", pipelined=True)
            self._keys[name] = process.core.owner.keys[number] = key
        return key

    def note_birth(self, owner: bytes, seq: int) -> None:
        """An object, or a task and its results, comes into the world."""
        self.born[(owner, seq)] = len(self.born)

    def age_of(self, handle: Handle) -> int:
        """When that object was created."""
        return self.born[(handle[1][1], int.from_bytes(handle[0][12:20], "big"))]

    def depth_of(self, worker_id: bytes) -> int:
        """How deeply nested the tasks that this process runs are."""
        process = self.processes.get(worker_id)
        return process.depth if process is not None else 0

    def note_start(self, owner: Address, spec: Any) -> None:
        """A task starts: may it?"""
        name = (owner[1], spec[0])
        self.starts[name] = self.starts.get(name, 0) + 1
        process = self.processes.get(owner[1])
        task = process.core.owner.tasks.get(spec[0]) if process is not None else None
        if task is not None and task.function.max_retries == 0 and self.starts[name] > 1:
            raise SimulationError(f"task {spec[0]} has max_retries=0 and starts a second time")

    def note_finish(self, owner: Address, spec: Any) -> None:
        """A task has ended at its worker."""

    def perform(self, process: Process) -> None:
        """Carry out the effects of one process."""
        effects = process.core.effects
        while effects:
            batch = effects[:]
            effects.clear()
            for effect in batch:
                self._perform_one(process, effect)

    def _perform_one(self, process: Process, effect: tuple[Any, ...]) -> None:
        kind, me = effect[0], process.worker_id
        if kind == "send":
            self.network.send(me, effect[1][1], (process.address, effect[2]))
        elif kind == "node":
            self.network.send(me, NODE_ID, effect[1])
        elif kind == "watch":
            self.network.send(me, NODE_ID, Watch(effect[1]))
        elif kind == "release":
            self.network.send(me, effect[1][1], (process.address, (RELEASES, [effect[2:4]])))
        elif kind == "borrow":
            self.network.send(me, effect[1][1], (process.address, (BORROWS, [effect[2:4]])))
        elif kind == "timer":
            self.timers.append((self.now + effect[1], process, effect[2], effect[3]))

    # -- the node ------------------------------------------------------------------------------------

    def node_receives(self, source: bytes, msg: Any) -> None:
        """One message to the node."""
        table, now = self.table, self.now
        if isinstance(msg, Watch):
            if msg.worker_id in self.dead:
                self.network.send(NODE_ID, source, self.dead[msg.worker_id])
            else:
                self.watchers.setdefault(msg.worker_id, set()).add(source)
            return
        if source in self.dead:
            return
        if isinstance(msg, LeaseDemand):
            effects = table.demand(source, JOB, msg, now)
        elif isinstance(msg, LeaseReturn):
            effects = table.returned(source, msg.lease_no, msg.retire, now)
        elif isinstance(msg, LeaseEnded):
            effects = table.ended(source, msg.lease_no, now)
        elif isinstance(msg, Blocked):
            effects = table.blocked(source, msg.lease_no, now)
        elif isinstance(msg, Unblocked):
            effects = table.unblocked(source, msg.lease_no, now)
        elif isinstance(msg, KillWorker):
            effects = table.kill(source, msg.lease_no, now)
        else:
            raise SimulationError(f"the node has no use for {msg}")
        self.node_performs(effects)

    def node_performs(self, effects: list[Any]) -> None:
        """Carry out the node's effects."""
        for effect in effects:
            if effect[0] == "send":
                self.network.send(NODE_ID, effect[1], effect[2])
            elif effect[0] == "start":
                _, number, worker_id, _ = effect
                worker = self._join(worker_id, is_driver=False)
                worker.number = number
                self.network.send(worker_id, NODE_ID, ("register", number))
            elif effect[0] == "exit":
                worker_id = self.pool.workers[effect[1]].worker_id
                if effect[2]:
                    self.network.send(NODE_ID, worker_id, ExitWorker(True, effect[3]))
                else:
                    self.kill(worker_id)

    def kill(self, worker_id: bytes) -> None:
        """SIGKILL; its parent reaps it later."""
        process = self.processes.pop(worker_id, None)
        if process is None:
            return
        self.tainted.update(process.core.objects)
        for pair, queue in self.network.pairs.items():
            for item in queue:
                if pair[1] == worker_id and type(item) is tuple:
                    self.tainted.update(_ids_in(item))
        self.network.lose(worker_id, self.rng)
        self.network.send(worker_id, NODE_ID, ("exited", process.number, process.page))
        for other in self.processes:
            self.network.send(worker_id, other, EOF)

    def node_hears_exit(self, worker_id: bytes, number: int, page: tuple[int, int, int]) -> None:
        """The zygote has reaped a worker. The lease's owner hears first: it is told what had started."""
        died = Died(worker_id, -1, -1, -1, {})
        self.dead[worker_id] = died
        worker = self.pool.workers.get(number)
        served = worker is not None and worker.lease_no == page[0]
        _, effects = self.table.exited(number, {}, page[1:] if served else (-1, -1), self.now)
        self.node_performs(effects)
        for watcher in self.watchers.pop(worker_id, ()):
            self.network.send(NODE_ID, watcher, died)

    # -- steps ---------------------------------------------------------------------------------------

    def deliver(self, pair: tuple[bytes, bytes]) -> None:
        """One message arrives."""
        source, target = pair
        message = self.network.pairs[pair].popleft()
        if target == NODE_ID:
            if type(message) is tuple and message[0] == "register":
                if source in self.processes:
                    address = self.processes[source].address
                    self.node_performs(self.table.registered(message[1], address, self.now))
            elif type(message) is tuple and message[0] == "exited":
                self.node_hears_exit(source, message[1], message[2])
            else:
                self.node_receives(source, message)
            return
        process = self.processes.get(target)
        if process is None:
            if type(message) is tuple:
                self.tainted.update(_ids_in(message))
            return
        if message is EOF:
            process.core.owner.on_peer_lost(source)
        elif source == NODE_ID:
            process.receive((NODE_ID, NODE_ID, ""), pack(message))
        else:
            process.receive(*message)
        self.perform(process)

    def advance(self) -> bool:
        """Time passes until the next timer. False: nobody waits for time."""
        moments = [t[0] for t in self.timers]
        deadline = self.table.next_deadline()
        if deadline is not None:
            moments.append(deadline)
        if not moments:
            return False
        self.now = max(self.now, min(moments))
        due = [t for t in self.timers if t[0] <= self.now]
        self.timers = [t for t in self.timers if t[0] > self.now]
        for _, process, what, number in due:
            if process.worker_id in self.processes:
                if what == "idle":
                    process.core.owner.on_idle_timer(number, self.now)
                else:
                    process.core.owner.on_steal_timer(number)
                self.perform(process)
        self.node_performs(self.table.tick(self.now))
        return True

    def step(self) -> bool:
        """Something happens. False: nothing can, without the driver or time."""
        self.steps += 1
        rng = self.rng
        busy = self.network.busy()
        workers = [p for p in self.processes.values() if not p.is_driver]
        if self.kills_left and workers and rng.random() < 0.02:
            self.kills_left -= 1
            self.kill(rng.choice(workers).worker_id)
            return True
        if busy and (rng.random() < 0.6 or not workers):
            self.deliver(rng.choice(busy))
            return True
        rng.shuffle(workers)
        for worker in workers:
            if worker.step():
                self.perform(worker)
                return True
        if busy:
            self.deliver(rng.choice(busy))
            return True
        return False

    def drive(self) -> None:
        """The driver's program does one thing."""
        driver, choice = self.driver, self.rng.random()
        if choice < 0.25:
            driver.put()
        elif choice < 0.65:
            driver.submit(self.rng.choice((0, 3, 3)))
        elif choice < 0.75 and driver.handles:
            driver.look(self.rng.choice(driver.handles))
        elif choice < 0.8:
            driver.cancel()
        elif driver.handles:
            driver.drop(self.rng.randrange(len(driver.handles)))
        self.perform(driver)

    # -- invariants ------------------------------------------------------------------------------------

    def check(self) -> None:
        """After each step."""
        self.table.check_invariants()
        for process in self.processes.values():
            process.core.check_invariants()
            if process.queue is not None:
                process.queue.check_invariants()
            for object_id, owner in process.handles:
                holder = self.processes.get(owner[1])
                if holder is None or object_id in self.tainted:
                    continue
                if object_id not in holder.core.objects:
                    raise SimulationError(f"{process} references {object_id.hex()}, which {holder} has freed")

    def settle(self) -> None:
        """Let everything finish that can."""
        for _ in range(200_000):
            if not self.step() and not self.advance() and not self.give_up_a_wait():
                return
            self.check()
        raise SimulationError("it does not come to rest")

    def give_up_a_wait(self) -> bool:
        """Tasks may wait for each other in a ring, or for themselves: then somebody's get times out."""
        for process in self.processes.values():
            if process.waits_for is not None:
                process.waits_for = None
                return True
        return False

    def check_rest(self) -> None:
        """All is quiet and nobody references anything: nothing may be left."""
        for process in self.processes.values():
            if process.core.owner.tasks:
                raise SimulationError(f"{process}: unfinished tasks {list(process.core.owner.tasks)}")
            left = [i for i in process.core.objects if i not in self.tainted]
            if left:
                raise SimulationError(f"{process}: {len(left)} objects are left, e.g. {left[0].hex()}")
        if self.table.leases:
            raise SimulationError(f"leases are left: {list(self.table.leases)}")


def _ids_in(item: Any) -> set[bytes]:
    """Object ids anywhere inside a message."""
    found: set[bytes] = set()
    stack = [item]
    while stack:
        one = stack.pop()
        if type(one) in (tuple, list):
            stack.extend(one)
        elif type(one) is dict:
            stack.extend(one.values())
        elif type(one) is bytes and len(one) == 28:
            found.add(one)
    return found


def run(seed: int, *, steps: int = 200, kills: int = 0) -> Simulation:
    """One schedule: the driver works for ``steps`` steps, then everybody lets go. Raises SimulationError."""
    sim = Simulation(seed, cpus=1 + seed % 3, kills=kills)
    try:
        for _ in range(steps):
            if sim.rng.random() < 0.3:
                sim.drive()
            else:
                sim.step()
            sim.check()
        sim.settle()
        while any(p.handles for p in sim.processes.values()):
            for process in list(sim.processes.values()):
                while process.handles and process.worker_id in sim.processes:
                    process.drop(len(process.handles) - 1)
                sim.perform(process)
            sim.settle()
        sim.check_rest()
    except AssertionError as error:
        raise SimulationError(f"seed {seed}, kills {kills}, step {sim.steps}: {error}") from error
    return sim
