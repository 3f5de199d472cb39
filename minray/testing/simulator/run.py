"""The simulation: the world, its steps, and what must hold.

A seed decides everything: what each piece of user code does, which message arrives next, when time passes, who is
killed when. ``run(seed)`` lets drivers work for some steps, then everybody lets go, and nothing may be left.
"""

from __future__ import annotations

import random
from typing import Any

from minray.testing.simulator.ledger import Ledger, SimulationError
from minray.testing.simulator.network import Network, Pair
from minray.testing.simulator.node import Gcs, Node
from minray.testing.simulator.process import EOF, GCS_ID, NODE_ID, Process
from minray.testing.simulator.user import Frame
from minray.testing.simulator.worker import Call, Worker
from minray.wire.messages import Address
from minray.worker.references import ERROR, PENDING
from minray.worker.tasks import ITEM

BUDGET = 400  # tasks and calls of everybody: the world must end
REST_STEPS = 20_000
FULL_CHECK = 20  # steps
FOREVER_S = 60.0  # idle workers may retire, nothing else happens by itself


class Program(Frame):
    """What a driver does: one action after another."""

    def __init__(self, process: Process) -> None:
        super().__init__(process)
        self._script = self._run()

    def _run(self) -> Any:
        while self.open:
            yield from self.act()
            yield

    def step(self) -> None:
        """Go on, if it does not wait."""
        next(self._script)


class Simulation:
    """One node, one or two drivers, some workers, one seed."""

    def __init__(self, seed: int, *, cpus: int = 2, drivers: int = 1, kills: int = 0) -> None:
        self.seed = seed
        self.rng = random.Random(seed)
        self.now = 0.0
        self.steps = 0
        self.kills_left = kills
        self.budget = BUDGET
        self.network = Network()
        self.slow: Pair | None = None  # nothing arrives there while there is something else
        self.ledger = Ledger()
        self.processes: dict[bytes, Process] = {}
        self.connected: dict[bytes, dict[bytes, None]] = {}  # in the order of connecting, on any day
        self.died_at: dict[bytes, float] = {}
        self.touched: set[bytes] = set()  # since the last check
        self.timers: list[tuple[float, Process, str, int]] = []
        self.job_of: dict[bytes, bytes] = {}  # of drivers
        self.programs: list[Program] = []
        self.node = Node(self, cpus)
        self.gcs = Gcs(self)
        for number in range(drivers):
            self._join_driver((number + 1).to_bytes(4, "little"))

    # -- the world -----------------------------------------------------------------------------------

    def _join_driver(self, job_id: bytes) -> None:
        driver = Process(self, self.rng.randbytes(28), job_id)
        self.processes[driver.worker_id] = driver
        self.job_of[driver.worker_id] = job_id
        self.node.driver_joined(driver)
        self.programs.append(Program(driver))

    def start_worker(self, number: int, worker_id: bytes, job_id: bytes) -> None:
        """The node forks one."""
        self.processes[worker_id] = Worker(self, worker_id, job_id, number)
        self.network.send(worker_id, NODE_ID, ("register", number))

    def workers(self) -> list[Worker]:
        """The living ones."""
        return [p for p in self.processes.values() if isinstance(p, Worker)]

    def is_dead(self, process: bytes) -> bool:
        """Whether it has ended."""
        return process in self.died_at

    def connect(self, source: bytes, target: bytes) -> None:
        """Somebody is about to send: to a dead process, the connection fails."""
        if target in self.processes:
            self.connected.setdefault(source, {})[target] = None
            self.connected.setdefault(target, {})[source] = None
        else:
            self.network.send(target, source, EOF)

    def kill(self, worker_id: bytes) -> None:
        """SIGKILL."""
        process = self.processes.get(worker_id)
        if process is not None:
            self._end(process, loses=True)

    def exit(self, worker: Worker) -> None:
        """An orderly end: everything that is to be said has been said."""
        worker.flush()
        worker.perform()
        self._end(worker, loses=False)

    def _end(self, process: Process, *, loses: bool) -> None:
        worker_id = process.worker_id
        del self.processes[worker_id]
        self.died_at[worker_id] = self.now
        self.ledger.taint(list(process.core.objects))
        self.ledger.taint([m for p, queue in self.network.queues.items() if worker_id in p for m in queue])
        lost = self.network.die(worker_id, self.rng, loses=loses)
        if isinstance(process, Worker):
            lost += [(owner[1], results) for owner, results in process._outbox.values()]
        for target, message in lost:
            self.ledger.taint(message)
            self.ledger.lost(target, message)
        for other in (*self.connected.pop(worker_id, ()), GCS_ID):
            if other in self.processes or other == GCS_ID:
                self.network.send(worker_id, other, EOF)
        if isinstance(process, Worker):
            report = ("exited", process.number, process.page)
            self.network.send(worker_id, NODE_ID, report)
            if loses and self.rng.random() < 0.5:  # its parent is quicker than its own last words
                self.network.queues[(worker_id, NODE_ID)].rotate(1)
        else:
            self.network.send(worker_id, NODE_ID, EOF)
            self.programs = [p for p in self.programs if p.process is not process]

    # -- what the machines must not do -----------------------------------------------------------------

    def check_start(self, worker: Worker, owner: Address, spec: tuple[Any, ...]) -> None:
        """A task starts: does its owner still want this attempt?"""
        process = self.processes.get(owner[1])
        if process is not None:
            task = process.core.owner.tasks.get(spec[0])
            if task is None or task.attempt != spec[1] or task.lease is None:
                raise SimulationError(f"{worker} starts task {spec[0]}, attempt {spec[1]}, which is given up")

    def check_call(self, worker: Worker, caller: Address, spec: tuple[Any, ...]) -> None:
        """A call starts: is it in flight at its caller?"""
        process = self.processes.get(caller[1])
        if process is not None:
            task = process.core.calls.tasks.get(spec[0])
            if task is None or task.attempt != spec[1] or spec[0] not in task.actor.inflight:
                raise SimulationError(f"{worker} starts call {spec[0]}, attempt {spec[1]}, which is given up")

    def check_answers(self, process: Process, source: Address, results: list[tuple[Any, ...]]) -> None:
        """What has been answered counts, also if its sender is dead by now (and the answer did not take ages)."""
        if self.now - self.died_at.get(source[1], self.now) > 0.4:
            return
        core = process.core
        for seq, attempt, status, *_ in results:
            task = core.owner.tasks.get(seq) or core.calls.tasks.get(seq)
            if status != ITEM and (task is None or task.attempt != attempt):
                raise SimulationError(f"{process} has given up attempt {attempt} of {seq}, and here is its answer")

    def check_lost(self, process: Process, object_id: bytes) -> None:
        """A get finds an object freed: only if somebody died with it in its hands."""
        if object_id not in self.ledger.tainted:
            raise SimulationError(f"{process} references {object_id.hex()}, which its owner has freed")

    def check(self) -> None:
        """After each step: who has been touched agrees with itself, and nobody uses what is freed."""
        everything = self.steps % FULL_CHECK == 0
        if everything or NODE_ID in self.touched or GCS_ID in self.touched:
            self.node.check_invariants()
            self.gcs.actors.check_invariants()
        for process in self.processes.values():
            if everything or process.worker_id in self.touched:
                process.core.check_invariants()
                if isinstance(process, Worker):
                    process.queue.check_invariants()
        self.touched.clear()
        tainted = self.ledger.tainted
        for process in self.processes.values():
            for object_id, record in process.core.objects.items():
                if object_id in tainted:
                    continue
                if record.owner is None:
                    if record.status == ERROR and record.value == ("freed", object_id):
                        raise SimulationError(f"{object_id.hex()} comes home to {process} after its end")
                elif record.in_use():
                    owner = self.processes.get(record.owner[1])
                    if owner is not None and object_id not in owner.core.objects:
                        raise SimulationError(f"{process} uses {object_id.hex()}, which {owner} has freed")

    # -- steps ---------------------------------------------------------------------------------------

    def _next_pair(self, busy: list[Pair]) -> Pair:
        """Any of them; but now and then one connection is slow for a while, and much happens meanwhile."""
        rng = self.rng
        if rng.random() < 0.04:
            self.slow = rng.choice(busy) if rng.random() < 0.7 else None
        fast = [pair for pair in busy if pair != self.slow]
        return rng.choice(fast or busy)

    def deliver(self, pair: Pair) -> Process | None:
        """One message arrives."""
        source, target = pair
        message = self.network.take(pair)
        self.touched.add(target)
        if target == NODE_ID:
            self.node.receive(source, message)
            return None
        if target == GCS_ID:
            self.gcs.receive(source, message)
            return None
        process = self.processes.get(target)
        if process is None:
            self.ledger.taint(message)
            return None
        process.receive(source, message)
        process.perform()
        return process

    def _due(self) -> float | None:
        moments = [timer[0] for timer in self.timers]
        deadline = self.node.next_deadline()
        if deadline is not None:
            moments.append(deadline)
        return min(moments, default=None)

    def advance(self, limit: float = FOREVER_S) -> bool:
        """Time passes until the next timer, but no longer than ``limit``. False: nobody waits for time."""
        moment = self._due()
        if moment is None:
            return False
        self.now = max(self.now, min(moment, self.now + limit))
        due = [timer for timer in self.timers if timer[0] <= self.now]
        self.timers = [timer for timer in self.timers if timer[0] > self.now]
        for _, process, what, number in due:
            if process.alive:
                process.core.on_timer(what, number, self.now)
                process.perform()
        self.touched.add(NODE_ID)
        self.node.tick()
        return True

    def step(self, *, user_code: bool = True) -> bool:
        """Something happens. False: nothing can, unless time passes."""
        self.steps += 1
        rng = self.rng
        if self.kills_left and rng.random() < 0.02 and self._kill_somebody():
            return True
        if rng.random() < 0.02:
            self.advance(0.12)
        busy = self.network.busy()
        if busy and rng.random() < 0.6:
            self.deliver(self._next_pair(busy))
            return True
        if user_code and self.programs and rng.random() < 0.4:
            program = rng.choice(self.programs)
            program.step()
            program.process.perform()
            return True
        if self._some_worker_acts():
            return True
        if busy:
            self.deliver(rng.choice(busy))
        return bool(busy)

    def _some_worker_acts(self) -> bool:
        workers = self.workers()
        self.rng.shuffle(workers)
        for worker in workers:
            acted = worker.step()
            if worker.alive:
                worker.perform()
            if acted:
                return True
        for process in self.processes.values():
            if process.core.calls.dirty:  # the reactor's turn
                process.core.calls.flush()
                process.perform()
                return True
        return False

    def _kill_somebody(self) -> bool:
        workers = self.workers()
        actors = [worker for worker in workers if worker.actor is not None]
        victims: list[Process] = list(actors if actors and self.rng.random() < 0.4 else workers)
        if len(self.programs) > 1 and self.rng.random() < 0.2:
            victims = [self.programs[-1].process]
        if not victims:
            return False
        self.kills_left -= 1
        victim = self.rng.choice(victims)
        actor = isinstance(victim, Worker) and victim.actor is not None
        self.ledger.seen["death of " + ("a driver" if victim.is_driver else "an actor" if actor else "a worker")] += 1
        self.kill(victim.worker_id)
        return True

    # -- rest ----------------------------------------------------------------------------------------

    def settle(self) -> None:
        """Let everything finish that can."""
        for _ in range(REST_STEPS):
            if not self.step(user_code=False):
                self._check_quiet()
                if not self.advance() and not self._end_a_wait():
                    return
            self.check()
        raise SimulationError("it does not come to rest")

    def _check_quiet(self) -> None:
        """Nothing is in flight and nobody can go on: then nobody waits for what is there, or for an answer."""
        self.node.check_progress()
        for process in self.processes.values():
            for lease in process.core.owner.leases.values():
                if lease.stealing and lease.worker[1] in self.processes:
                    raise SimulationError(f"{process} never hears what lease {lease.lease_no} had to give back")

    def _frames(self) -> list[Frame]:
        frames: list[Frame] = list(self.programs)
        for worker in self.workers():
            frames += worker.frames()
        return frames

    def _end_a_wait(self) -> bool:
        """Pieces of user code may wait for each other in a ring, or for an item that a generator does not
        yield before its consumer goes on: then some timeout ends."""
        frames = self._frames()
        for frame in frames:
            for stream in frame.streams:
                if frame.next_item(stream):
                    frame.process.perform()
                    return True
        for frame in frames:
            if frame.waiting is not None and not frame.process.is_driver:
                self._check_stuck(frame)
                frame.waiting = None
                return True
        return False

    def _check_stuck(self, frame: Frame) -> None:
        """A producer waits for its consumer although that has everything: both would wait for ever."""
        if isinstance(frame, Call) and frame.producing:
            owner = self.processes.get(frame.owner[1])
            stream = owner.core.streams.get(frame.seq) if owner is not None else None
            if stream is not None and stream.consumed == stream.produced:
                raise SimulationError(f"generator {frame.seq} and its consumer wait for each other")

    def let_go(self) -> bool:
        """Everybody drops everything; False if there was nothing."""
        found = False
        for program in self.programs:
            found |= bool(program.handles or program.streams)
            program.close(keeps=0.0)
        for process in list(self.processes.values()):
            found |= bool(process.kept)
            while process.kept:
                object_id, _ = process.kept.pop()
                process.core.refs.drop(object_id)
            process.perform()
        return found or self._free_resources() or self._return_lost_grants()

    def _return_lost_grants(self) -> bool:
        """A giver died after it had told the owner, and before it told the taker: that counts as long as the taker
        lives (see docs/ownership.md). Here it is taken back, so that nothing else can hide behind it."""
        found = False
        for (object_id, taker), grants in self.ledger.lost_grants.items():
            for process in self.processes.values():
                record = process.core.objects.get(object_id)
                if record is not None and record.owner is None and (record.borrowers or {}).get(taker, 0) > 0:
                    count = min(grants, (record.borrowers or {})[taker])
                    process.core.refs.on_releases(taker, [(object_id, count)])
                    process.perform()
                    found = True
        return found

    def _free_resources(self) -> bool:
        """What waits for a CPU may hold the handle of the actor that has it, for life: kill that."""
        waiting = any(p.core.objects for p in self.processes.values())
        holders = [x.demand.actor for x in self.node.table.leases.values() if x.demand.actor is not None]
        if waiting and self.programs:
            for actor in holders:
                if actor is not None:
                    self.programs[0].process.ask_gcs("kill_actor", actor.actor_id, True)
        return waiting and bool(holders)

    def check_rest(self) -> None:
        """All is quiet and nobody references anything: nothing may be left."""
        for process in self.processes.values():
            core = process.core
            unfinished = [*core.owner.tasks, *core.calls.tasks]
            if unfinished:
                raise SimulationError(f"{process}: unfinished tasks {unfinished}")
            pending = [i for i, r in core.objects.items() if r.status == PENDING]
            if core.objects:
                first = next(iter(core.objects))
                raise SimulationError(
                    f"{process}: {len(core.objects)} objects are left, {len(pending)} pending, e.g. "
                    f"{first.hex()} ({vars_of(core.objects[first])})"
                )
            if core.streams:
                raise SimulationError(f"{process}: generators are left: {list(core.streams)}")
            mine = [i for i in self.ledger.copies if i[:12] == process.worker_id[:12]]
            if mine:
                raise SimulationError(f"{process}: {mine[0].hex()} is still in the store")
        if self.node.table.leases:
            raise SimulationError(f"leases are left: {list(self.node.table.leases.values())}")
        living = {job for driver, job in self.job_of.items() if driver in self.processes}
        for worker in self.workers():
            if worker.job_id not in living:
                raise SimulationError(f"{worker} has outlived its job")
        alive = {state: n for state, n in self.gcs.actors.counts().items() if n and state != "DEAD"}
        if alive:
            raise SimulationError(f"actors are left: {alive}")


def vars_of(record: Any) -> dict[str, Any]:
    """A record's slots, for messages."""
    return {name: getattr(record, name) for name in record.__slots__}


def run(seed: int, *, steps: int = 300, kills: int = 0) -> Simulation:
    """One schedule: drivers work for ``steps`` steps, then everybody lets go. Raises SimulationError."""
    sim = Simulation(seed, cpus=1 + seed % 3, drivers=1 + (seed % 5 == 0), kills=kills)
    try:
        for _ in range(steps):
            sim.step()
            sim.check()
        sim.settle()
        while sim.let_go():
            sim.settle()
        sim.check_rest()
    except Exception as error:  # also what a machine raises: none of it may happen
        what = "" if isinstance(error, AssertionError) else f"{type(error).__name__}: "
        raise SimulationError(f"seed {seed}, kills {kills}, step {sim.steps}: {what}{error}") from error
    return sim
