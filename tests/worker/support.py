"""What the tests of the worker's machines share: names, and worlds that drive one machine each.

A world keeps the clock and the timers, sorts the effects (``did``, ``take``), and checks the machine's invariants
after every step.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

from minray.wire.messages import (
    CALLS,
    TASKS,
    ActorUpdate,
    Address,
    GiveBack,
    LeaseDemand,
    LeaseGrant,
    Message,
    unpack,
)
from minray.worker.actor_calls import ActorCalls
from minray.worker.core import Core
from minray.worker.owner import TaskManager
from minray.worker.tasks import Function, Lease, SchedulingKey, Task

NODE = b"n" * 28
JOB = b"\x01\0\0\0"
CPU1 = {"CPU": 10_000}
CAUSE = {"text": "signal 11"}
ACTOR = b"actor" + bytes(7) + JOB
HOT = 20  # tags below it are of hot messages: plain tuples
M = TypeVar("M", bound=Message)


def address(name: str) -> Address:
    """Where the process of that name listens."""
    return (NODE, name.encode().ljust(28, b"."), f"unix:/{name}")


ME = address("me")


def name_of(where: Address) -> str:
    return where[2].removeprefix("unix:/")


def spec_names(specs: list[tuple[Any, ...]]) -> list[Any]:
    """The number of each spec; number and attempt of those that are sent once more."""
    return [spec[0] if spec[1] == 0 else spec[:2] for spec in specs]


class World:
    """See the file's head."""

    def __init__(self) -> None:
        self.now = 100.0
        self.effects: list[tuple[Any, ...]] = []
        self.timers: list[tuple[float, str, int]] = []
        self.last_freed: Any = None  # the record of the last ``freed``
        self._log: list[Any] = []
        self._last_seq = 0

    def check(self) -> None:
        raise NotImplementedError

    def on_timer(self, what: str, number: int) -> None:
        raise NotImplementedError

    def do(self, call: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """One step of the machine."""
        result = call(*args, **kwargs)
        self.gather()
        self.check()
        return result

    def gather(self) -> None:
        for effect in self.effects:
            kind = effect[0]
            if kind == "timer":
                self.timers.append((self.now + effect[1], effect[2], effect[3]))
            elif kind == "send":
                raw = effect[2]
                self._log.append((name_of(effect[1]), raw if raw[0] < HOT else unpack(raw)))
            elif kind == "freed":
                self._log.append(effect[:2])
                self.last_freed = effect[2]
            else:
                self._log.append(effect)
        self.effects.clear()

    def did(self) -> list[Any]:
        """All effects since the last look: ``(name of the process, message)``, ``("node", message)``, others."""
        made = self._log[:]
        self._log.clear()
        return made

    def take(self, cls: type[M]) -> list[M]:
        """The control messages of that class since the last look, whoever they are for."""
        found = [entry[1] for entry in self._log if isinstance(entry[1], cls)]
        self._log = [entry for entry in self._log if not isinstance(entry[1], cls)]
        return found

    def take_hot(self, tag: int) -> list[tuple[str, tuple[Any, ...]]]:
        """The hot messages of that tag, and for whom."""
        found = [entry for entry in self._log if type(entry[1]) is tuple and entry[1][0] == tag]
        self._log = [entry for entry in self._log if type(entry[1]) is not tuple or entry[1][0] != tag]
        return found

    def batches(self) -> list[tuple[int, list[Any]]]:
        """The batches of tasks that went out: lease, and specs as ``spec_names`` tells them."""
        return [(raw[1], spec_names(raw[2])) for _, raw in self.take_hot(TASKS)]

    def pass_time(self, seconds: float) -> None:
        """Let the clock run, and the timers fire on their way."""
        end = self.now + seconds
        while self.timers and min(self.timers)[0] <= end:
            due = min(self.timers)
            self.timers.remove(due)
            self.now = due[0]
            self.do(self.on_timer, due[1], due[2])
        self.now = end

    def next_seq(self) -> int:
        self._last_seq += 1
        return self._last_seq


# -- ordinary tasks --------------------------------------------------------------------------------


def make_key(number: int = 1, *, pipelined: bool = True, retires: bool = False) -> SchedulingKey:
    return SchedulingKey(number, CPU1, None, {}, 0, f"task f{number}", pipelined=pipelined, retires=retires)


def make_function(
    number: int, key: SchedulingKey, *, num_returns: int = 1, max_retries: int = 3, backpressure: int = 0
) -> Function:
    name = f"f{number}"
    meta = {"name": name, "backpressure": backpressure}
    return Function(
        number, b"code of " + name.encode(), name, key,
        num_returns=num_returns, max_retries=max_retries, max_calls=0, meta=meta,
    )  # fmt: skip


class OwnerWorld(World):
    """A TaskManager with one key and one function. ``pipeline``: how many tasks a worker may have."""

    def __init__(self, *, pipeline: int = 0, **key: Any) -> None:
        super().__init__()
        self.finished: list[tuple[int, Any]] = []
        self.owner = TaskManager(self.effects, self._finish, home=NODE, max_pipeline=pipeline or 32, lease_idle_s=1.0)
        self.key = self.add_key(make_key(**key))
        self.f = make_function(1, self.key)
        if pipeline:
            self.key.avg_ns = 0.0
        self._last_lease = 0

    def _finish(self, task: Task, error: Any) -> None:
        self.finished.append((task.seq, error))

    def check(self) -> None:
        self.owner.check_invariants()

    def on_timer(self, what: str, number: int) -> None:
        self.owner.on_timer(what, number, self.now)

    def add_key(self, key: SchedulingKey) -> SchedulingKey:
        self.owner.keys[key.number] = key
        return key

    # -- what happens ------------------------------------------------------------------------------

    def make(self, *, retries: int = 3, unresolved: int = 0, function: Function | None = None) -> Task:
        """A task that is known, but not in the queue yet."""
        task = Task(self.next_seq(), function or self.f, b"", None, 1, retries)
        task.unresolved = unresolved
        self.owner.add(task)
        return task

    def submit(self, count: int = 1, **fields: Any) -> list[Task]:
        """Tasks whose arguments are there."""
        tasks = []
        for _ in range(count):
            tasks.append(self.make(**fields))
            self.owner.enqueue(tasks[-1])
        self.do(lambda: None)
        return tasks

    def grant(self, key: SchedulingKey | None = None, worker: Address | None = None) -> Lease:
        self._last_lease += 1
        number = self._last_lease
        grant = LeaseGrant((key or self.key).number, number, worker or address(f"w{number}"), {})
        self.do(self.owner.on_grant, grant, self.now)
        return self.owner.leases[number]

    def answer(self, *tasks: Task, exec_ns: int = -1) -> None:
        """Results of these, in one message."""

        def take() -> None:
            for task in tasks:
                assert self.owner.take(task.seq, task.attempt, exec_ns, self.now) is task
            self.owner.pump(tasks[0].function.key)

        self.do(take)

    def give_back(self, lease: Lease, *tasks: Task, ended: bool = False, blocked: bool = False) -> None:
        named = [(task.seq, task.attempt) for task in tasks]
        self.do(self.owner.on_give_back, GiveBack(lease.lease_no, named, ended, blocked), self.now)

    def ready(self, lease: Lease) -> None:
        self.do(self.owner.on_ready, lease.lease_no)

    def died(self, lease: Lease, running: Task | None = None) -> None:
        """The node says so. ``running``: what the worker started last; None: nobody knows."""
        last = None if running is None else (running.seq, running.attempt)
        self.do(self.owner.on_worker_died, lease.lease_no, last, CAUSE, self.now)

    def lost(self, lease: Lease) -> None:
        """The connection to its worker is gone."""
        self.do(self.owner.on_peer_lost, lease.worker[1])

    def cancel(self, task: Task, *, force: bool = False, recursive: bool = False) -> None:
        self.do(self.owner.cancel, task, force=force, recursive=recursive)

    # -- what came of it ---------------------------------------------------------------------------

    def wanted(self) -> list[int]:
        """What the node was told."""
        return [demand.wanted for demand in self.take(LeaseDemand)]

    def queued(self) -> list[int]:
        return [task.seq for task in self.key.queue]


# -- calls of actors -------------------------------------------------------------------------------


class ActorWorld(World):
    """The ActorCalls of a process, and one actor."""

    def __init__(self, *, eager: bool = False) -> None:
        super().__init__()
        self.finished: list[tuple[int, Any]] = []
        self.calls = ActorCalls(self.effects, self._finish)
        self.actor = self.calls.client(ACTOR, "Counter", max_pending=-1, eager=eager)
        self.left: list[bool] = []  # what ``submit`` returned

    def _finish(self, task: Task, error: Any) -> None:
        self.finished.append((task.seq, error))

    def check(self) -> None:
        self.calls.check_invariants()

    def on_timer(self, what: str, number: int) -> None:
        assert what == "actor"
        self.calls.on_timer(number)

    # -- what happens ------------------------------------------------------------------------------

    def call(self, *, retries: int = 0, unresolved: int = 0) -> Task:
        task = Task(self.next_seq(), "add", b"", None, 1, retries)
        task.unresolved = unresolved
        self.left.append(self.do(self.calls.submit, self.actor, task))
        return task

    def resolve(self, task: Task, error: Any = None) -> None:
        """Its last argument is there, or has failed."""
        task.unresolved = 0
        task.error = error
        self.do(self.calls.on_resolved, task)

    def update(self, state: str, incarnation: int = 0, cause: dict[str, Any] | None = None) -> None:
        """The GCS tells. The worker of incarnation 3 is called a3."""
        where = address(f"a{incarnation}") if state == "ALIVE" else None
        self.do(self.calls.on_update, ActorUpdate(ACTOR, state, incarnation, where, cause or {}))

    def answer(self, task: Task) -> None:
        assert self.do(self.calls.take, task.seq, task.attempt) is task

    def lost(self, name: str) -> None:
        """The connection to the worker of that name is gone."""
        self.do(self.calls.on_peer_lost, address(name)[1])

    def cancel(self, task: Task, *, recursive: bool = False) -> None:
        self.do(self.calls.cancel, task, recursive=recursive)

    # -- what came of it ---------------------------------------------------------------------------

    def sent(self) -> list[tuple[str, int, list[Any]]]:
        """The batches that went out: worker, incarnation, calls as ``spec_names`` tells them."""
        return [(name, raw[1], spec_names(raw[2])) for name, raw in self.take_hot(CALLS)]


BAD: Any = ("dependency", "add", ("freed", b""))  # why a call's argument failed


def alive(*, eager: bool = False) -> ActorWorld:
    """An actor that has started."""
    world = ActorWorld(eager=eager)
    world.update("ALIVE")
    return world


def unavailable(*numbers: int, cause: dict[str, Any] = CAUSE) -> list[tuple[int, Any]]:
    """How calls that were in flight end."""
    return [(n, ("actor_unavailable", "Counter", ACTOR, cause)) for n in numbers]


def died(*numbers: int, cause: dict[str, Any] = CAUSE) -> list[tuple[int, Any]]:
    """How calls of a dead actor end."""
    return [(n, ("actor_died", "Counter", ACTOR, cause)) for n in numbers]


def busy(*, retries: int = 0, calls: int = 2) -> tuple[ActorWorld, list[Task]]:
    """An actor with calls in flight."""
    world = alive()
    tasks = [world.call(retries=retries) for _ in range(calls)]
    world.do(world.calls.flush)
    world.did()
    return world, tasks


# -- a whole process -------------------------------------------------------------------------------


THEIRS = b"theirs".ljust(28, b".")  # an object of another process
LOCATION = (NODE, 3, 0, 100)
RAISED: Any = ("task", b"pickled")  # the error value of an exception in user code


def stored(*refs: tuple[bytes, Address, bool]) -> tuple[Any, ...]:
    """A stored value, with references inside."""
    return (LOCATION, 100, list(refs))


class Asker:
    """Waits for objects or for a stream."""

    def __init__(self) -> None:
        self.heard: list[Any] = []

    def ready(self, object_id: bytes | None, _what: Any) -> None:
        self.heard.append(object_id)


class CoreWorld(World):
    """A Core with one leased worker, w1, and one function."""

    def __init__(self, *, worker: bool = True, pipeline: int = 8, lineage_bytes: int | None = None) -> None:
        super().__init__()
        self.core = Core(
            ME, JOB, ME[1][:12], max_pipeline=pipeline, lease_idle_s=60.0, lineage_bytes=lineage_bytes
        )
        self.effects = self.core.effects
        self.key = make_key()
        self.key.avg_ns = 0.0
        self.core.owner.keys[1] = self.key
        self.f = make_function(1, self.key)
        if worker:
            self.do(self.core.on_grant, LeaseGrant(1, 1, address("w1"), {}), self.now)

    def check(self) -> None:
        self.core.check_invariants()

    def on_timer(self, what: str, number: int) -> None:
        self.core.on_timer(what, number, self.now)

    # -- what happens ------------------------------------------------------------------------------

    def submit(
        self,
        *,
        n: int = 1,
        retries: int = 3,
        top: list[tuple[Any, bytes]] | None = None,
        nested: tuple[bytes, ...] = (),
        backpressure: int = 0,
    ) -> tuple[Task, list[bytes]]:
        """A task, and the ids of what it returns."""
        function = self.f
        if backpressure:
            function = make_function(2, self.key, backpressure=backpressure)
        task = Task(self.core.next_seq(), function, b"", None, n, retries)
        task.top, task.nested = top, nested
        return task, self.do(self.core.submit, task, self.now)

    def call(
        self,
        *,
        n: int = 1,
        retries: int = 0,
        top: list[tuple[Any, bytes]] | None = None,
        extra: dict[str, Any] | None = None,
    ) -> tuple[Task, list[bytes]]:
        """A call of the actor."""
        task = Task(self.core.next_seq(), "add", b"", extra, n, retries)
        task.top, task.actor = top, self.actor()
        return task, self.do(self.core.submit, task, self.now)

    def actor(self) -> Any:
        return self.core.calls.client(ACTOR, "Counter", max_pending=-1, eager=False)

    def actor_is(self, state: str, incarnation: int = 0) -> None:
        where = address(f"a{incarnation}") if state == "ALIVE" else None
        self.actor()
        self.do(self.core.on_actor_update, ActorUpdate(ACTOR, state, incarnation, where, {}))

    def answer(self, task: Task, status: int, value: Any, *, attempt: int | None = None, retained: Any = None) -> None:
        result = (task.seq, task.attempt if attempt is None else attempt, status, value, 1000, retained)
        self.do(self.core.on_results, address("w1"), [result], self.now)

    def put(self, status: int = 1, value: Any = b"v") -> bytes:
        """An object of this process, with one reference."""
        object_id = self.core.object_id(self.core.next_seq(), 0)
        record = self.core.refs.own(object_id)
        record.status, record.value = status, value
        return object_id

    def borrow(self, object_id: bytes, owner: Address) -> bytes:
        """A reference to somebody else's object, which came inside a value."""
        self.core.refs.receive([(object_id, owner, True)])
        self.do(self.core.refs.borrow, object_id, owner)
        return object_id

    def drop(self, object_id: bytes) -> None:
        """One reference less."""
        self.do(self.core.refs.drop, object_id)

    def ask(self, object_id: bytes) -> Asker:
        """Somebody waits for it."""
        asker = Asker()
        self.do(self.core.when_ready, object_id, self.core.objects[object_id], asker)
        return asker

    # -- what came of it ---------------------------------------------------------------------------

    def holds(self, object_id: bytes) -> tuple[int, Any]:
        """Status and value."""
        record = self.core.objects[object_id]
        return record.status, record.value
