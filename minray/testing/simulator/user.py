"""What simulated user code does: everything a program can do with references, tasks, actors and generators.

A ``Frame`` is one piece of user code with its local variables: a driver's program, a task, a call of an actor. Its
actions are generators: at each ``yield`` somebody else may act. ``wait`` ends when its condition holds, when the
dice say that the timeout is over, or when the simulation ends a wait that nobody would ever end.
"""

from __future__ import annotations

from collections.abc import Callable, Generator
from typing import Any

from minray.store.holds import Hold
from minray.testing.simulator.groups import GroupActions, Steps
from minray.testing.simulator.ledger import ActorFacts, Handle, Location, SimulationError, make_id
from minray.testing.simulator.process import CPU, Process
from minray.wire.messages import Reply
from minray.worker.references import ERROR, INLINE, PENDING
from minray.worker.tasks import STORED, STREAMING, Function, Stream, Task

MAX_DEPTH = 3  # of nested tasks
RETRIES = (0, 0, 1, 3, -1)
BURSTS = (1, 1, 2, 3, 5, 8)  # tasks that are submitted in one go
GETS = (1, 1, 3, 6)
CALLS_IN_A_ROW = (1, 2, 3, 6)
TOO_MUCH = 99  # CPUs that no node has


class Frame(GroupActions):
    """One piece of user code. ``open`` until it has ended."""

    def __init__(self, process: Process) -> None:
        super().__init__(process)
        self.core = process.core
        self.handles: list[Handle] = []
        self.streams: list[Stream] = []
        self.weak: list[bytes] = []  # hidden ids of actors found by name
        self.views: list[Hold] = []  # of stored objects
        self.open = True
        self.cancelled = False
        self.consumed = 0  # of the stream that it produces
        self.waiting: Callable[[], bool] | None = None
        self.for_memory = False  # it waits for that, or for the disk: which comes, or is refused

    # -- references ----------------------------------------------------------------------------------

    def take(self, refs: list[tuple[bytes, Any, bool]]) -> None:
        """Unpickle a value: one more local reference for each one inside."""
        for object_id, owner, _ in refs:
            self.core.refs.borrow(object_id, owner)
            self.handles.append((object_id, owner))

    def in_hand(self) -> list[Handle]:
        """Local and global variables."""
        return self.handles + self.process.kept

    def pick(self, most: int) -> list[Handle]:
        """Some of the references in hand."""
        everything = self.in_hand()
        if self.rng.random() < 0.5:
            everything = self.handles[-4:]  # what is new is interesting
        return self.rng.sample(everything, min(len(everything), self.rng.randint(0, most)))

    def drop(self, handles: list[Handle], index: int) -> None:
        """Let go of one."""
        object_id, _ = handles.pop(index)
        self.core.refs.drop(object_id)

    def close(self, *, keeps: float) -> None:
        """The end of the local variables; each reference may have found its way to a global one."""
        self.open = False
        for stream in self.streams:
            self.core.release_stream(stream.seq)
        self.streams.clear()
        self.weak.clear()
        while self.views:
            self.views.pop().release()
        while self.handles:
            if self.rng.random() < keeps:
                self.process.kept.append(self.handles.pop())
            else:
                self.drop(self.handles, -1)

    # -- waiting -------------------------------------------------------------------------------------

    def wait(self, done: Callable[[], bool]) -> Steps:
        """Until ``done()``; or no longer (see the file's head)."""
        self.waiting = done
        while self.waiting is not None and not done() and self.rng.random() > 0.02:
            yield
        self.waiting = None

    def until(self, done: Callable[[], bool]) -> Steps:
        """Until ``done()``, however long it takes."""
        self.waiting = done
        while self.waiting is not None and not done():
            self.waiting = done
            yield
        self.waiting = None

    def until_memory(self, done: Callable[[], bool]) -> Steps:
        """The same; nobody else may have the CPU meanwhile, and the wait ends by itself."""
        self.for_memory = True
        try:
            yield from self.until(done)
        finally:
            self.for_memory = False

    def blocked(self) -> bool:
        """Whether it waits for something that is not there."""
        return self.waiting is not None and not self.waiting()

    # -- actions -------------------------------------------------------------------------------------

    def act(self) -> Steps:
        """One random thing."""
        actors = self.sim.full_of_actors
        actions = [self.put, self.get, self.forget, self.consume, self.look_up, self.cancel]
        weights = [5, 15, 8, 5, 3, 4] if actors else [20, 25, 20, 15, 3, 8]
        if self.process.store is not None:  # what fills it, and what reads it
            weights[:2] = [60, 60]
        elif len(self.sim.machines) > 1:
            weights[1] *= 2
        if self.sim.budget > 0:
            actions.append(self.call)
            weights.append(60 if actors else 25)
            if self.process.depth < MAX_DEPTH:
                actions += [self.submit, self.pass_on, self.create, self.kill, self.group, self.remove_group]
                weights += [5, 3, 10, 12, 2, 1] if actors else [30, 10, 8, 4, 3, 2]
        (action,) = self.rng.choices(actions, weights)
        return action()

    def put(self) -> Steps:
        """An object with some references inside."""
        core, rng = self.core, self.rng
        object_id = core.object_id(core.next_seq(), 0)
        location = None
        if rng.random() < 0.5:
            location = yield from self.store(object_id)
            if location is None:  # there is no room: it raises
                return
        inner = self.sim.ledger.allowed(object_id, self.pick(2))
        record = core.refs.own(object_id)
        refs = [(i, o, False) for i, o in inner]
        if location is None:
            record.status, record.value = INLINE, (b"", [], refs)
        else:
            record.status, record.value = STORED, (location, 1, refs)
            self.sim.ledger.heard_of(object_id, location)
        core.refs.set_contains(record, tuple(i for i, _ in inner))
        self.handles.append((object_id, self.process.address))
        yield

    def store(self, object_id: bytes) -> Generator[None, None, Location | None]:
        """A large value is written, for this process alone as yet. None: there is no room for it."""
        store = self.process.store
        if store is None:
            return self.sim.ledger.location(self.process.node.node_id)
        return (yield from store.write(self, object_id))

    def get(self) -> Steps:
        """The values of some objects, one after the other, and with them the references inside."""
        newest = 0.5 if self.process.store is None else 0.1  # what is older may be on disk
        everything = self.handles[-2:] if self.rng.random() < newest else self.in_hand()
        for handle in self.rng.sample(everything, min(len(everything), self.rng.choice(GETS))):
            if handle not in self.in_hand():
                continue  # a neighbour has dropped it meanwhile
            # It may be dropped by a neighbour while we wait: what waits keeps its own reference.
            self.core.refs.borrow(*handle)
            self.handles.append(handle)
            yield from self.wait(lambda handle=handle: self._ready(handle))  # type: ignore[misc]
            if self._ready(handle):
                yield from self._open(handle)
        yield

    def look_at(self, handles: list[Handle]) -> None:
        """The values that are there, if that takes no time; the others are asked for."""
        for handle in dict.fromkeys(handles):
            if self._ready(handle) and self.process.store is None:
                for _ in self._open(handle):
                    raise SimulationError(f"{self.process} waits for {handle[0].hex()}, which is there")

    def _ready(self, handle: Handle) -> bool:
        record = self.core.objects.get(handle[0])
        if record is None:
            raise SimulationError(f"{self.process}: {handle[0].hex()} is referenced but unknown here")
        if record.status == STORED and self.is_lost(record.value[0]):
            assert self.core.lineage is not None
            self.core.lineage.on_unreadable(handle[0], record.value[0], "its node is gone")
        if record.status == PENDING and record.waiters is None:
            self.core.when_ready(handle[0], record, _NOBODY)
        return record.status != PENDING and (record.status != STORED or self.is_here(record.value[0]))

    def is_here(self, location: Location) -> bool:
        """Whether its node has it and can be asked for it."""
        here = self.process.node.node_id
        return location[0] in self.sim.nodes and (location[0], here) not in self.sim.network.cuts

    def is_lost(self, location: Location) -> bool:
        """Whether what lay there is gone, and this process can know it."""
        return location[0] not in self.sim.nodes and not self.sim.believed(self.process.worker_id, location[0])

    def _open(self, handle: Handle) -> Steps:
        record, store = self.core.objects[handle[0]], self.process.store
        value = record.value
        if record.status == ERROR:
            self.sim.judge.get_ends(self.process, handle[0], value)
            return
        if record.status == STORED and store is not None:
            there = yield from store.read(self, handle[0], value[0])
            if not there:
                return
        if type(value) is not bytes:
            self.take(value[2])

    def forget(self) -> Steps:
        """Drop a reference, a generator, or an array."""
        if self.views and self.rng.random() < 0.3:
            self.views.pop(self.rng.randrange(len(self.views))).release()
        elif self.streams and self.rng.random() < 0.2:
            stream = self.streams.pop(self.rng.randrange(len(self.streams)))
            self.core.release_stream(stream.seq)
        elif self.handles:
            self.drop(self.handles, self.rng.randrange(len(self.handles)))
        elif self.process.kept and self.rng.random() < 0.5:
            self.drop(self.process.kept, self.rng.randrange(len(self.process.kept)))
        yield

    def cancel(self) -> Steps:
        """Cancel some unfinished tasks or calls of this process."""
        core, rng = self.core, self.rng
        self.sim.ledger.seen["cancel"] += 1
        for _ in range(rng.choice((1, 1, 3))):
            tasks = [*core.owner.tasks.values(), *core.calls.tasks.values()]
            if not tasks:
                break
            task = rng.choice(tasks)
            force = task.actor is None and rng.random() < 0.3
            core.cancel_task(task, force=force, recursive=rng.random() < 0.5)
        yield

    # -- tasks ---------------------------------------------------------------------------------------

    def submit(self) -> Steps:
        """A task of some kind, or some of them."""
        functions = [f for f in self.process.functions if f.key.depth == self.process.depth]
        function = self.rng.choice(functions) if functions and self.rng.random() < 0.6 else self._define()
        for _ in range(self.rng.choice(BURSTS)):
            seq = self.core.next_seq()
            self._send(Task(seq, function, b"", None, function.num_returns, function.max_retries))
        yield

    def pass_on(self) -> Steps:
        """Something in a new object, and that to a task or an actor: who looks inside gets it from us."""
        yield from self.put()
        chosen = self._some_actor()
        if chosen is not None and self.rng.random() < 0.5:
            self.call_once(chosen[0], counted=chosen[1])
        else:
            yield from self.submit()
            yield from self.get()

    def _define(self) -> Function:
        """A remote function under some options."""
        rng, process = self.rng, self.process
        retires = rng.random() < 0.1
        units = rng.choices((CPU, 0, TOO_MUCH * CPU), (90, 9, 1))[0]
        self.sim.ledger.seen["hopeless task"] += units > CPU
        resources, strategy = self._where({"CPU": units})
        retries = rng.choice(RETRIES)
        n = rng.choices((1, 2, 0, STREAMING), (75, 7, 3, 15))[0]
        meta = {
            "n": n,
            "depth": process.depth + 1,
            "max_calls": int(retires),
            "once": retries == 0,
            "retry": rng.random() < 0.2,
            "backpressure": rng.choice((0, 0, 1, 2)),
        }
        function = Function(
            len(process.functions), b"", "f", process.key(resources, strategy, retires=retires),
            num_returns=n, max_retries=retries, max_calls=int(retires), meta=meta,
        )  # fmt: skip
        process.functions.append(function)
        return function

    def _send(self, task: Task, *, handle: tuple[bytes, ...] = ()) -> None:
        """Arguments, and what comes back. ``handle``: of the actor, if it is counted."""
        self._arguments(task)
        task.nested += handle
        task.parent = self
        sim, process = self.sim, self.process
        sim.budget -= 1
        sim.ledger.submitted(process.worker_id, task.seq, task.retries)
        ids = self.core.submit(task, sim.clock.now)
        self.handles += [(i, process.address) for i in ids]
        if task.stream is not None:
            self.streams.append(task.stream)

    def _arguments(self, task: Task) -> None:
        nested = list(dict.fromkeys(self.pick(2)))
        if nested:
            task.payload = (b"", [], [(i, o, False) for i, o in nested])
            task.nested = tuple(i for i, _ in nested)
        top = self.pick(2)
        if top:
            task.top = [(position, handle[0]) for position, handle in enumerate(top)]

    # -- generators ----------------------------------------------------------------------------------

    def consume(self) -> Steps:
        """next() of a generator, a peek, or completed()."""
        if not self.streams:
            return
        stream = self.rng.choice(self.streams)
        if self.rng.random() < 0.2:
            self._peek(stream, 1 if self.rng.random() < 0.3 else 2 + stream.consumed)
        else:
            yield from self.wait(lambda: stream.produced > stream.consumed or stream.ended())
            if self.open and stream in self.streams:
                self.next_item(stream)
        yield

    def next_item(self, stream: Stream) -> bool:
        """Take one item, if there is one."""
        object_id = self.core.stream_take(stream)
        if object_id is not None:
            self.handles.append((object_id, self.process.address))
        return object_id is not None

    def _peek(self, stream: Stream, index: int) -> None:
        """A reference to what may come, as worker.streams makes it."""
        core = self.core
        object_id = core.object_id(stream.seq, index)
        record = core.objects.get(object_id)
        if record is None:
            if stream.ended() or stream.outcome is not None:
                return
            record = core.refs.own(object_id, local=0)
            record.task = core.owner.tasks.get(stream.seq) or core.calls.tasks.get(stream.seq)
        record.local += 1
        self.handles.append((object_id, self.process.address))

    # -- actors --------------------------------------------------------------------------------------

    def create(self) -> Steps:
        """An actor. Its handle is there when the GCS has answered."""
        core, rng, process = self.core, self.rng, self.process
        handle_id = core.object_id(core.next_seq(), 0)
        inner = self.sim.ledger.allowed(handle_id, self.pick(1))
        record = core.refs.own(handle_id)
        record.status, record.value, record.task = INLINE, b"", "actor"
        core.refs.set_contains(record, tuple(i for i, _ in inner))
        actor_id = make_id(handle_id.hex(), 12) + process.job_id
        options = {
            "max_restarts": rng.choice((1, 2, 3, -1) if self.sim.full_of_actors else (0, 1, 2, -1)),
            "max_task_retries": rng.choice((0, 1, 2, -1)),
            "concurrency": rng.choice((1, 1, 3)),
            "fails": rng.random() < 0.05,
        }
        spec = {
            "actor_id": actor_id,
            "job_id": process.job_id,
            "owner": process.address,
            "class_name": "A",
            "method_meta": b"",
            "options": options,
            "depth": process.depth + 1,
            "args": (b"", [], [(i, o, False) for i, o in inner]),
            "handle_id": handle_id,
            "name": rng.choice((None, None, None, "a", "b")),
            "namespace": "space",
            "placement_resources": {"CPU": CPU},
            "lifetime_resources": rng.choice(({}, {"CPU": CPU})),
        }
        self._place(spec)
        self.sim.ledger.new_actor(ActorFacts(actor_id, handle_id, options, process.address))
        process.new_client(actor_id, options)
        answers: list[Reply] = []

        def created(reply: Reply) -> None:
            self._created(reply, actor_id, handle_id)
            answers.append(reply)

        process.ask_gcs("create_actor", spec, then=created)
        yield from self.until(lambda: bool(answers))
        yield from self.call()

    def _created(self, reply: Reply, actor_id: bytes, handle_id: bytes) -> None:
        """The GCS has our actor: the handle exists from now on."""
        core = self.core
        if not reply.ok:  # its name is taken
            self.sim.ledger.seen["name taken"] += 1
            core.calls.actors.pop(actor_id, None)
            core.refs.drop(handle_id)
            return
        self.sim.ledger.actors[handle_id].created = True
        self.process.actor_refs[handle_id] = actor_id
        core.hold_creation(actor_id, handle_id)
        if self.open:
            self.handles.append((handle_id, self.process.address))
        else:
            core.refs.drop(handle_id)

    def _some_actor(self) -> tuple[ActorFacts, bool] | None:
        """An actor whose handle we have, and whether it is counted."""
        known = self.sim.ledger.actors
        strong = [h[0] for h in self.in_hand() if h[0] in known]
        everything = strong + self.weak
        if not everything:
            return None
        index = self.rng.randrange(len(everything))
        return known[everything[index]], index < len(strong)

    def call(self) -> Steps:
        """Some calls of an actor in a row; what is left for a batch leaves at the next turn of the reactor."""
        chosen = self._some_actor()
        if chosen is None:
            return
        facts, counted = chosen
        for _ in range(self.rng.choice(CALLS_IN_A_ROW)):
            if counted and facts.handle_id not in [h[0] for h in self.in_hand()]:
                return
            self.call_once(facts, counted=counted)
            if self.rng.random() < 0.3:
                yield
        yield

    def call_once(self, facts: ActorFacts, *, counted: bool) -> None:
        """One call."""
        process, rng = self.process, self.rng
        n = rng.choices((1, 2, STREAMING), (80, 8, 12))[0]
        extra = {"n": n, "retry": rng.random() < 0.1, "backpressure": rng.choice((0, 0, 1, 2))}
        retries = facts.options["max_task_retries"]
        task = Task(self.core.next_seq(), "m", b"", extra, n, retries)
        task.actor = process.client(facts.actor_id, facts.options)
        self.sim.ledger.numbered(process.worker_id, task.seq)
        self._send(task, handle=(facts.handle_id,) if counted else ())

    def look_up(self) -> Steps:
        """get_actor(): a handle that does not count."""
        known = [a for a in self.sim.ledger.actors.values() if a.created]
        mine = [a for a in known if a.actor_id[12:] == self.process.job_id]
        if mine:
            facts = self.rng.choice(mine)
            self.weak.append(facts.handle_id)
            self.process.client(facts.actor_id, facts.options)
        yield

    def kill(self) -> Steps:
        """kill(): with or without a restart."""
        chosen = self._some_actor()
        if chosen is not None:
            facts, for_good = chosen[0], self.rng.random() < (0.2 if self.sim.full_of_actors else 0.5)
            facts.kills.append(for_good)
            self.process.ask_gcs("kill_actor", facts.actor_id, for_good)
        yield


class Program(Frame):
    """What a driver does: one action after another."""

    def __init__(self, process: Process) -> None:
        super().__init__(process)
        self._script = self._run()

    def _run(self) -> Steps:
        while self.open:
            yield from self.act()
            yield

    def step(self) -> None:
        """Go on, if it does not wait."""
        next(self._script)


class _Nobody:
    def ready(self, _id: Any, _record: Any) -> None:
        """The simulated user code looks again by itself."""


_NOBODY = _Nobody()
