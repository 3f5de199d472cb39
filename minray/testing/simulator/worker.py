"""A simulated worker: takes tasks from a real TaskQueue and runs them, until it becomes an actor.

It does what worker.executor and worker.calling do: results are gathered and leave in batches, the arguments'
references are accounted for in the reply, a wait gives tasks and CPUs away, a cancelled task is interrupted or
swallows it, a generator waits for its consumer. ``actor.py`` has the rest.
"""

from __future__ import annotations

from collections.abc import Generator
from typing import TYPE_CHECKING, Any

from minray.testing.simulator.actor import ActorRole
from minray.testing.simulator.ledger import Location, SimulationError
from minray.testing.simulator.process import Process
from minray.testing.simulator.user import Frame
from minray.wire.messages import (
    CALLS,
    RESULTS,
    TASKS,
    Address,
    Cancel,
    CreateActor,
    ExitWorker,
    LeaseConfirm,
    LeaseRevoke,
    Message,
    Register,
    Steal,
    StreamAck,
    unpack,
)
from minray.worker.references import ERROR, INLINE, PENDING
from minray.worker.task_queue import TaskQueue
from minray.worker.tasks import END, ITEM, MULTI, RETRY, STORED, STREAMING

if TYPE_CHECKING:
    from minray.testing.simulator.node import Node
    from minray.testing.simulator.world import World

Steps = Generator[None, None, None]
ACTIONS = (0, 0, 0, 1, 2, 4)  # of a task or call, before it ends
RAISES = 0.07
EXEC_NS = 300_000  # of every task: so that several are in flight per worker


class Interrupt(Exception):
    """A cancelled task's KeyboardInterrupt."""


class Call(Frame):
    """A task or an actor's call at its worker."""

    def __init__(self, worker: Worker, owner: Address, spec: tuple[Any, ...], meta: dict[str, Any]) -> None:
        super().__init__(worker)
        self.worker = worker
        self.owner = owner
        self.seq, self.attempt, _, self.payload, extra = spec
        self.extra: dict[str, Any] = extra or {}
        self.meta = meta
        self.scope: list[bytes] = []
        self.begun = False
        self.producing = False  # waits for the consumer of its items
        self.script: Steps = self.run()

    def step(self) -> bool:
        """Go on. False: it has ended."""
        try:
            interruptible = self.cancelled and self.begun and not self.meta.get("actor")
            if interruptible and self.rng.random() < 0.3:
                self.cancelled = False
                self.waiting = None
                self.sim.ledger.seen["interrupt"] += 1
                self.script.throw(Interrupt())
            else:
                next(self.script)
        except StopIteration:
            return False
        return True

    def run(self) -> Steps:
        """From arguments to result."""
        self.begun = True
        try:
            error = yield from self.arguments_arrive()
            yield
            if error is None:
                if self.handles and self.rng.random() < 0.4:
                    yield from self.get()
                for _ in range(self.rng.choice(ACTIONS)):
                    yield from self.act()
                status, value = yield from self._outcome()
            else:
                status, value = ERROR, error
        except Interrupt:
            status, value = ERROR, ("cancelled", "f")
        self.waiting = None
        self.close(keeps=0.15)
        retained = self.core.refs.end_scope(self.scope) if self.scope else None
        self.worker.answer(self, (self.seq, self.attempt, status, value, EXEC_NS, retained))

    def arguments_arrive(self) -> Generator[None, None, Any]:
        """See worker.calling. Returns an error, if one of them cannot be had."""
        error = None
        if type(self.payload) is tuple:
            self.scope += [r[0] for r in self.payload[2]]
            self.take(self.payload[2])
        for _, status, value, object_id, owner in self.extra.get("top", ()):
            if status == PENDING:
                raise SimulationError(f"{self.worker} is sent argument {object_id.hex()} without its value")
            if status == STORED:  # a view of it
                self.scope.append(object_id)
                error = (yield from self._open_stored(object_id, value, owner)) or error
            elif type(value) is not bytes:
                self.scope += [r[0] for r in value[2]]
                self.take(value[2])
        self.core.refs.begin_scope(self.scope)
        return error

    def _open_stored(self, object_id: bytes, value: Any, owner: Address) -> Generator[None, None, Any]:
        """Bring it here; if it is lost, have it made again."""
        refs = self.core.refs
        if owner[1] == self.worker.worker_id and object_id not in self.core.objects:
            if object_id not in self.sim.ledger.tainted:
                raise SimulationError(f"{object_id.hex()} comes home to {self.worker} after its end")
            return ("task", b"")  # whoever has sent it is dead
        record = refs.hold(object_id, owner)
        try:
            location = value[0]
            while location is not None and not self.is_here(location):
                if self.is_lost(location):
                    assert self.core.lineage is not None
                    self.core.lineage.on_unreadable(object_id, location, "its node is gone")
                    yield from self.until(lambda: self._ready((object_id, owner)))
                    location = record.value[0] if record.status == STORED else None
                else:
                    yield
            if record.status == ERROR:
                return record.value
            if record.status == PENDING:  # the wait was ended
                return ("task", b"")
            final = value if location == value[0] else record.value
            store = self.process.store
            if store is not None:
                there = yield from store.read(self, object_id, location)
                if not there:
                    return ("task", b"")
            if type(final) is not bytes:
                self.scope += [r[0] for r in final[2]]
                self.take(final[2])
            refs.borrow(object_id, owner)
            self.handles.append((object_id, owner))
            return None
        finally:
            refs.unhold(object_id)

    def _outcome(self) -> Generator[None, None, tuple[int, Any]]:
        """What it returns, raises or yields."""
        n = self.meta["n"]
        object_id = self._object_id
        if n == STREAMING and not (yield from self._stream()):
            return self._raised()
        if self.cancelled:  # decided before references are given away with a value
            return ERROR, ("cancelled", "m")
        if self.rng.random() < RAISES:
            return self._raised()
        if n == STREAMING:
            return END, 0
        values = yield from self._outgoing([object_id(1 + i) for i in range(n)])
        if values is None:
            return self._raised()
        return values[0] if n == 1 else (MULTI, values)

    def _raised(self) -> tuple[int, Any]:
        return (RETRY if self.meta["retry"] else ERROR), ("task", b"")

    def _object_id(self, index: int) -> bytes:
        prefix, job_id = self.owner[1][:12], self.worker.job_id
        return bytes(prefix + self.seq.to_bytes(8, "big") + job_id + index.to_bytes(4, "little"))

    def _outgoing(self, ids: list[bytes]) -> Generator[None, None, list[tuple[int, Any]] | None]:
        """Values on their way to the owner, with the grants for the references inside them. None: there is no room for
        one of them, and nobody hears of the others. See worker.calling."""
        written: list[Location | None] = []
        complete = False
        try:
            for object_id in ids:
                location = None
                if self.rng.random() < (0.7 if self.process.store is None else 0.4):
                    location = yield from self.store(object_id)
                    if location is None:
                        return None
                    self._report(object_id, location)
                written.append(location)
            complete = True
        finally:
            if not complete and self.process.store is not None:
                told = [(i, location) for i, location in zip(ids, written, strict=False) if location is not None]
                self.process.store.client.free(told)
        return [self._give(object_id, location) for object_id, location in zip(ids, written, strict=True)]

    def _report(self, object_id: bytes, location: Location) -> None:
        if self.process.store is not None:
            self.process.store.client.report([(object_id, location)], self.owner[1])
            self.sim.network.is_sure((self.worker.worker_id, self.worker.node.node_id))

    def _give(self, object_id: bytes, location: Location | None) -> tuple[int, Any]:
        handles = self.sim.ledger.allowed(object_id, self.pick(2))
        refs = [(i, o, i not in self.scope and self.core.refs.give(i, self.owner)) for i, o in handles]
        if location is not None:
            return STORED, (location, 1, refs)
        return INLINE, (b"", [], refs) if refs else b""

    def _stream(self) -> Generator[None, None, bool]:
        """Its items. False: there was no room for one."""
        limit = self.meta["backpressure"]
        for index in range(self.rng.randint(0, 4)):
            values = yield from self._outgoing([self._object_id(2 + index)])
            if values is None:
                return False
            item = (index, *values[0])
            self.worker.outbox_add(self.owner, (self.seq, self.attempt, ITEM, item, -1, None))
            self.worker.flush()
            yield
            if limit:
                self.waiting, self.producing = self._consumer_is_near(index + 1, limit), True
                while self.waiting is not None and not self.waiting():
                    yield
                self.waiting, self.producing = None, False
            if self.rng.random() < 0.3:
                yield from self.act()
        return True

    def _consumer_is_near(self, produced: int, limit: int) -> Any:
        return lambda: produced - self.consumed < limit or self.cancelled


class Worker(Process):
    """See the file's head."""

    is_driver = False

    def __init__(self, sim: World, node: Node, worker_id: bytes, job_id: bytes, number: int) -> None:
        super().__init__(sim, node, worker_id, job_id)
        self.number = number
        self.queue = TaskQueue(self.core.effects, self.flush)
        self.call: Call | None = None
        self.actor: ActorRole | None = None
        self.page = (-1, -1, -1)  # the status page: lease, seq and attempt started last
        self.retiring = False
        self._outbox: dict[bytes, tuple[Address, list[tuple[Any, ...]]]] = {}
        self._functions: dict[tuple[bytes, int], dict[str, Any]] = {}

    def register(self) -> None:
        """Its first word."""
        self.tell_node(Register(False, self.number, {}))

    # -- results -------------------------------------------------------------------------------------

    def outbox_add(self, owner: Address, result: tuple[Any, ...]) -> None:
        """A result that waits for its batch."""
        self._outbox.setdefault(owner[1], (owner, []))[1].append(result)

    def flush(self) -> None:
        """Send them."""
        waiting, self._outbox = self._outbox, {}
        for owner, results in waiting.values():
            self.core.effects.append(("send", owner, (RESULTS, results)))

    def answer(self, call: Call, result: tuple[Any, ...]) -> None:
        """A call has ended."""
        if self.actor is not None:
            self.actor.answer(call, result)
            return
        queue = self.queue
        self.outbox_add(call.owner, result)
        if result[2] == RETRY:
            self.sim.ledger.unordered.add((call.owner[1], call.seq))
        if call.meta["once"] or not queue.queue:
            self.flush()
        if call.meta["max_calls"]:
            self.flush()
            queue.end()
        self.call = None
        queue.finish()

    # -- running -------------------------------------------------------------------------------------

    def could_act(self) -> bool:
        """Whether it is worth asking: ``step`` may still find nothing to do."""
        if self.actor is not None:
            return bool(self._outbox or self.actor.queue or self.actor.calls or self.actor.stopping)
        return bool(self._outbox or self.call is not None or self.queue.queue or self.retiring)

    def step(self) -> bool:
        """Some progress; False if there is nothing to do."""
        if self._outbox and self.sim.rng.random() < 0.3:
            self.flush()
            return True
        if self.actor is not None:
            return self.actor.step()
        if self.call is None:
            return self._start_next()
        if self.call.blocked() and not self.call.cancelled:
            if self.call.for_memory:
                if not self._outbox:
                    return False
                self.flush()  # what the results let go of may be the room
                return True
            if not self.queue.blocked and self.sim.rng.random() < 0.5:
                self.flush()
                self.queue.block()
                return not self.queue.ended
            return False
        if self.queue.blocked:
            self.queue.unblock()
        self.call.step()
        return True

    def _start_next(self) -> bool:
        spec = self.queue.start()
        if spec is None:
            return self._maybe_exit()
        owner = self.queue.owner
        assert owner is not None
        meta = self._functions.get((owner[1], spec[2]))
        if meta is None:
            raise SimulationError(f"{self} was never sent function {spec[2]} of {owner[1].hex()[:8]}")
        if meta["once"]:
            self.flush()
        self.depth = meta["depth"]
        self.page = (self.queue.lease_no, spec[0], spec[1])
        self.sim.judge.task_starts(self, owner, spec)
        self.sim.ledger.started(owner[1], spec[0], spec[1])
        self.call = Call(self, owner, spec, meta)
        return True

    def frames(self) -> list[Call]:
        """What runs here."""
        if self.actor is not None:
            return self.actor.calls
        return [self.call] if self.call is not None else []

    def _maybe_exit(self) -> bool:
        """Retired: it stays as long as somebody needs what it owns."""
        core = self.core
        if not self.retiring or core.owner.tasks or core.calls.tasks:
            return False
        if any(record.owner is None for record in core.objects.values()):
            return False
        self.sim.exit(self)
        return True

    # -- messages ------------------------------------------------------------------------------------

    def receive_from_peer(self, source: Address, raw: tuple[Any, ...]) -> None:
        """TASKS and CALLS are a worker's, too."""
        if raw[0] == TASKS:
            for function_id, (_, meta) in (raw[3] or {}).items():
                self._functions[(source[1], function_id)] = meta
            self.queue.on_tasks(source, raw[1], raw[2])
        elif raw[0] == CALLS:
            if self.actor is not None:
                self.actor.on_calls(source, raw[1], raw[2])
        elif raw[0] == Cancel.TAG:
            self._on_cancel(source, unpack(raw))
        elif raw[0] == StreamAck.TAG:
            self._on_stream_ack(source, unpack(raw))
        else:
            super().receive_from_peer(source, raw)

    def receive_control(self, source: Address, msg: Message) -> None:
        """What the node and owners of leases say."""
        queue = self.queue
        if isinstance(msg, LeaseConfirm):
            queue.on_confirm(msg)
        elif isinstance(msg, Steal):
            queue.on_steal(msg.lease_no, msg.count)
        elif isinstance(msg, LeaseRevoke):
            queue.on_revoke(msg.lease_no)
        elif isinstance(msg, CreateActor):
            self.actor = ActorRole(self, msg)
        elif isinstance(msg, ExitWorker):
            self._on_exit(msg)
        else:
            super().receive_control(source, msg)

    def _on_exit(self, msg: ExitWorker) -> None:
        if self.actor is not None:
            self.actor.stop(msg.reason)
        else:
            self.retiring = True

    def _on_cancel(self, owner: Address, msg: Any) -> None:
        if self.actor is not None and self.actor.remove(owner, msg.seq, msg.attempt):
            self.sim.ledger.seen["call cancelled before its start"] += 1
            self.outbox_add(owner, (msg.seq, msg.attempt, ERROR, ("cancelled", "m"), -1, None))
            self.flush()
            return
        if self.queue.remove(msg.seq, msg.attempt, owner[1]) is not None:
            self.sim.ledger.seen["task cancelled before its start"] += 1
            self.outbox_add(owner, (msg.seq, msg.attempt, ERROR, ("cancelled", "f"), -1, None))
            self.flush()
            return
        for call in self.frames():
            if (call.owner[1], call.seq, call.attempt) == (owner[1], msg.seq, msg.attempt):
                call.cancelled = True
                if msg.recursive:
                    self._cancel_children(call)

    def _cancel_children(self, call: Call) -> None:
        for task in [*self.core.owner.tasks.values(), *self.core.calls.tasks.values()]:
            if task.parent is call:
                self.core.cancel_task(task, force=False, recursive=True)

    def _on_stream_ack(self, owner: Address, msg: Any) -> None:
        for call in self.frames():
            if (call.owner[1], call.seq, call.attempt) == (owner[1], msg.seq, msg.attempt):
                call.consumed = msg.consumed

    def tell_node(self, msg: Message) -> None:
        """A control message to the node."""
        self.sim.network.send(self.worker_id, self.node.node_id, msg)
