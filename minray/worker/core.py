"""One process as an owner, borrower and submitter: the pure heart of a core worker.

It puts the machines together: references (who needs an object), owner (ordinary tasks), actor_calls,
streams; and keeps the memory store: the value of each object that this process knows is in its
ObjectRecord. Messages and calls come in; ``effects`` (one list, in order) come out and are performed
by worker.service, or by the simulator:

    ("send", address, tuple)   ("node", Message)   ("gcs", method, args)   ("timer", s, what, number)
    ("release", owner, id, n)  ("borrow", owner, id, taker)  ("watch", address)  ("freed", id, record)
    ("report", id, location): this process's own stored object is about to be heard of elsewhere

An error value is a tuple of built-ins whose first item says which (see worker.errors); nothing here
unpickles anything. A payload is ``bytes``, or ``(data, buffers, refs)`` with refs =
``[(id, owner, granted)]``; a stored value is ``(location, size, refs)``.
"""

from __future__ import annotations

import itertools
from collections import deque
from typing import Any

from minray.wire.messages import (
    FETCH,
    VALUES,
    ActorUpdate,
    Address,
    Died,
    GiveBack,
    LeaseGrant,
    LeaseInfeasible,
    Ready,
    StreamAck,
    pack,
)
from minray.worker.actor_calls import ActorCalls
from minray.worker.lineage import Lineage
from minray.worker.owner import TaskManager
from minray.worker.references import PENDING, ObjectRecord, ReferenceTable
from minray.worker.strays import Strays
from minray.worker.tasks import (
    DYNAMIC,
    ERROR,
    INLINE,
    ITEM,
    MULTI,
    RETRY,
    STORED,
    STREAMING,
    Function,
    Stream,
    Task,
    failed_dependency,
)

FIRST_RETURN = (1).to_bytes(4, "little")
FAILURES_KEPT = 100
PICKLED_NONE = b"\x80\x05N."
END_OF_STREAM = ("end_of_stream",)


class Core:
    """The state of one process. Not thread-safe: its user holds a lock around every call."""

    def __init__(
        self,
        me: Address,
        job_id: bytes,
        prefix: bytes,
        *,
        max_pipeline: int,
        lease_idle_s: float,
        lineage_bytes: int | None = None,
    ) -> None:
        self.me = me
        self.job_id = job_id
        self.effects: list[tuple[Any, ...]] = []
        self.refs = ReferenceTable(me, self.effects)
        self.objects = self.refs.objects
        self.owner = TaskManager(
            self.effects, self.fail, home=me[0], max_pipeline=max_pipeline, lease_idle_s=lease_idle_s
        )
        self.calls = ActorCalls(self.effects, self.fail)
        self.lineage = None if lineage_bytes is None else Lineage(self, lineage_bytes)  # None: of one node
        self.strays = Strays(self)
        self.streams: dict[int, Stream] = {}
        self._prefix = prefix
        self._count = itertools.count(1)
        self._first = job_id + FIRST_RETURN
        self.dead: set[bytes] = set()  # processes whose death has been announced
        self.failures: deque[tuple[str, Any]] = deque(maxlen=FAILURES_KEPT)  # (task name, error value)
        self._served: deque[Task] = deque()  # one of their arguments has come
        self._serving = False

    # -- ids ---------------------------------------------------------------------------------------

    def next_seq(self) -> int:
        """A number for a new task, or put object, of this process."""
        return next(self._count)

    def task_id(self, seq: int) -> bytes:
        """The 24 bytes of a task of this process."""
        return self._prefix + seq.to_bytes(8, "big") + self.job_id

    def object_id(self, seq: int, index: int) -> bytes:
        """The 28 bytes of one of its objects: 0 put, from 1 returns, from 2 stream items."""
        return self._prefix + seq.to_bytes(8, "big") + self.job_id + index.to_bytes(4, "little")

    def seq_of(self, object_id: bytes) -> int | None:
        """The task number behind an object of this process; None for another's."""
        if object_id[:12] != self._prefix:
            return None
        return int.from_bytes(object_id[12:20], "big")

    # -- submission --------------------------------------------------------------------------------

    def submit(self, task: Task, now: float, ids: list[bytes] | None = None) -> list[bytes]:
        """A new task; its returns become objects of this process, with one local reference each. ``ids``: they
        are there already, because it runs once more."""
        if ids is None:
            ids = self._make_returns(task)
        self._hold_arguments(task)
        if task.actor is None:
            self.owner.add(task)
            if not task.unresolved:
                self._resolved(task)
            return ids
        if not task.unresolved and task.top is not None:
            self._fill_top(task)
        if task.error is None:
            self.calls.submit(task.actor, task)
        else:
            self.fail(task, task.error)
        return ids

    def _make_returns(self, task: Task) -> list[bytes]:
        own = self.refs.own
        n = task.num_returns
        seq = task.seq
        if n == 1:
            first = self._prefix + seq.to_bytes(8, "big") + self._first
            own(first).task = task
            return [first]
        if n == STREAMING:
            task.stream = self.streams[seq] = Stream(seq)
            return []
        ids = [self.object_id(seq, 1 + i) for i in range(1 if n == DYNAMIC else n)]
        for object_id in ids:
            own(object_id).task = task
        return ids

    def _hold_arguments(self, task: Task) -> None:
        for object_id in task.nested:
            self.refs.hold(object_id)
        if task.top is not None:
            for _, object_id in task.top:
                record = self.refs.hold(object_id)
                if record.status == PENDING:
                    task.unresolved += 1
                    self.when_ready(object_id, record, _Dependency(self, task))

    def _on_argument(self, task: Task) -> None:
        """An argument is there. A loop, not recursion: the end of one task may be the end of those that wait
        for it, in a chain longer than the stack."""
        self._served.append(task)
        if self._serving:
            return
        self._serving = True
        try:
            while self._served:
                self._count_argument(self._served.popleft())
        finally:
            self._serving = False

    def _count_argument(self, task: Task) -> None:
        task.unresolved -= 1
        waiting = self.owner.tasks if task.actor is None else self.calls.tasks
        if task.unresolved or task.seq not in waiting:
            return
        if self.lineage is not None and self.lineage.await_lost(task, _Dependency(self, task)):
            return  # something was there, and is not any more
        if task.actor is None:
            self._resolved(task)
        else:
            self._fill_top(task)
            self.calls.on_resolved(task)

    def _resolved(self, task: Task) -> None:
        """All arguments of an ordinary task are there."""
        if task.top is not None:
            self._fill_top(task)
            if task.error is not None:
                self.owner.tasks.pop(task.seq, None)
                self.fail(task, task.error)
                return
            if self.owner.clustered and task.function.key.strategy is None:
                self.owner.go_near(task)
        self.owner.enqueue(task)

    def _fill_top(self, task: Task) -> None:
        """Put the values (or locations) of the top-level references into the spec."""
        top: list[Any] = []
        for where, object_id in task.top or ():
            record = self.objects[object_id]
            if record.status == ERROR:
                task.error = failed_dependency(task.name, record.value)
                return
            self._share(object_id, record)
            top.append((where, record.status, record.value, object_id, record.owner or self.me))
        extra = dict(task.extra) if task.extra else {}
        extra["top"] = top
        task.extra = extra

    # -- outcomes ------------------------------------------------------------------------------------

    def on_results(self, worker: Address, results: list[tuple[Any, ...]], now: float) -> None:
        """Answers of a leased worker or an actor."""
        ordinary = self.owner.tasks
        objects = self.objects
        prefix, first = self._prefix, self._first
        touched = None
        for seq, attempt, status, value, exec_ns, retained in results:
            if retained:
                self.refs.on_retained(retained)
            if status == ITEM:
                self._on_item(seq, attempt, value)
                continue
            if seq in ordinary:
                task = self.owner.take(seq, attempt, exec_ns, now)
            else:
                task = self.calls.take(seq, attempt)
            if task is None:
                self._reject(seq, status, value)
                continue
            if task.actor is None and task.function.key is not touched:
                if touched is not None:
                    self.owner.pump(touched)
                touched = task.function.key
            if status == RETRY:
                if task.retries != 0 and not task.cancelled:
                    task.retries -= task.retries > 0
                    if task.actor is None:
                        self.owner.retry(task)
                    else:
                        self.calls.retry(task)
                    continue
                status = ERROR
            if status == INLINE and task.num_returns == 1 and type(value) is bytes:
                object_id = prefix + seq.to_bytes(8, "big") + first
                record = objects.get(object_id)
                if record is not None:
                    record.status = INLINE
                    record.value = value
                    record.task = None
                    if record.waiters is not None or record.fetchers is not None:
                        self._announce(object_id, record)
            else:
                self._outcome(task, status, value)
            if task.nested or task.top is not None:
                self._unhold_arguments(task)
        if touched is not None:
            self.owner.pump(touched)
        if self.strays.kept:
            self.strays.tidy()

    def _outcome(self, task: Task, status: int, value: Any) -> None:
        if status == ERROR:
            self.failures.append((task.name, value))
        if task.stream is not None:
            self._end_stream(task, status, value)
        elif status == MULTI:
            for i, (one_status, one_value) in enumerate(value):
                self.complete(self.object_id(task.seq, 1 + i), one_status, one_value)
        else:
            n = max(1, task.num_returns) if status == ERROR else 1
            for i in range(n):
                self.complete(self.object_id(task.seq, 1 + i), status, value)
        if self.lineage is not None:
            self.lineage.on_outcome(task)
        self.strays.task_over(task.seq)

    def _unhold_arguments(self, task: Task) -> None:
        for object_id in task.nested:
            self.refs.unhold(object_id)
        task.nested = ()
        if task.top is not None:
            for _, object_id in task.top:
                self.refs.unhold(object_id)
            task.top = None

    def fail(self, task: Task, error: Any) -> None:
        """A task ends without an answer from its worker."""
        self._outcome(task, ERROR, error)
        self._unhold_arguments(task)

    def complete(self, object_id: bytes, status: int, value: Any) -> None:
        """The object's value (or location, or error) is here."""
        record = self.objects.get(object_id)
        if record is None or record.status != PENDING:  # a task that runs once more makes all of its results
            self._discard(object_id, status, value)
            return
        inner = self._receive(status, value)
        record.status = status
        record.value = value
        record.task = None
        if inner:
            self.refs.set_contains(record, inner)
        self._announce(object_id, record)

    def _reject(self, seq: int, status: int, value: Any) -> None:
        """An answer to an attempt that was given up, or that nobody waits for: let go of what it brings."""
        if status == ITEM:
            index, status, value = value
            self._discard(self.object_id(seq, 2 + index), status, value)
        elif status == MULTI:
            for i, (one_status, one_value) in enumerate(value):
                self._discard(self.object_id(seq, 1 + i), one_status, one_value)
        elif status in (INLINE, STORED):
            self._discard(self.object_id(seq, 1), status, value)

    def _discard(self, object_id: bytes, status: int, value: Any) -> None:
        """A value of an object of ours that is not wanted."""
        self._let_go_of(status, value)
        if status == STORED:
            self.strays.found(object_id, value[0])

    def _let_go_of(self, status: int, value: Any) -> None:
        """The references inside a value that is not wanted."""
        inner = self._receive(status, value)
        for object_id in inner:
            self.refs.hold(object_id)
        for object_id in inner:
            self.refs.unhold(object_id)

    def _receive(self, status: int, value: Any) -> tuple[bytes, ...]:
        if status == ERROR or type(value) is bytes:
            return ()
        refs = value[2]
        return self.refs.receive(refs) if refs else ()

    def _announce(self, object_id: bytes, record: ObjectRecord) -> None:
        waiters, record.waiters = record.waiters, None
        if waiters:
            for waiter in waiters:
                waiter.ready(object_id, record)
        fetchers, record.fetchers = record.fetchers, None
        if fetchers:
            for taker in fetchers:
                self._send_value(object_id, record, taker)

    def when_ready(self, object_id: bytes, record: ObjectRecord, waiter: Any) -> None:
        """Call ``waiter.ready(object_id, record)`` once it stops being PENDING; fetch a borrowed one."""
        if record.waiters is None:
            record.waiters = [waiter]
            if record.owner is not None and record.task is None:
                self.fetch(object_id, record)
        else:
            record.waiters.append(waiter)

    # -- borrowing -----------------------------------------------------------------------------------

    def fetch(self, object_id: bytes, record: ObjectRecord) -> None:
        """Ask the owner for the value of a borrowed object, once."""
        owner = record.owner
        assert owner is not None
        if owner[1] in self.dead:
            self.complete(object_id, ERROR, ("owner_died", object_id, owner))
            return
        record.task = True
        self.effects.append(("send", owner, (FETCH, [object_id])))

    def on_fetch(self, taker: Address, ids: list[bytes]) -> None:
        """Owner: a borrower wants these."""
        for object_id in ids:
            record = self.objects.get(object_id)
            if record is None:
                answer = (object_id, ERROR, ("freed", object_id))
                self.effects.append(("send", taker, (VALUES, [answer])))
            elif record.status == PENDING:
                if record.fetchers is None:
                    record.fetchers = []
                record.fetchers.append(taker)
            else:
                self._send_value(object_id, record, taker)

    def _send_value(self, object_id: bytes, record: ObjectRecord, taker: Address) -> None:
        value = record.value
        if record.status != ERROR and type(value) is not bytes:
            self._share(object_id, record)
            value = (value[0], value[1], self.give_all(record.contains, taker))
        self.effects.append(("send", taker, (VALUES, [(object_id, record.status, value)])))

    def _share(self, object_id: bytes, record: ObjectRecord) -> None:
        """Its value goes to another process; a location must be known to the node before."""
        if record.status == STORED and record.owner is None and not record.shared:
            record.shared = True
            self.effects.append(("report", object_id, record.value[0]))

    def give_all(self, ids: tuple[bytes, ...], taker: Address) -> list[tuple[bytes, Address, bool]]:
        """The references of a value that goes to ``taker``, as they travel."""
        out = []
        for object_id in ids:
            record = self.objects[object_id]
            out.append((object_id, record.owner or self.me, self.refs.give(object_id, taker)))
        return out

    def on_values(self, values: list[tuple[bytes, int, Any]]) -> None:
        """Borrower: the owner's answers."""
        for object_id, status, value in values:
            record = self.objects.get(object_id)
            if record is None or record.status != PENDING:
                self._let_go_of(status, value)
            else:
                self.complete(object_id, status, value)

    # -- streams -------------------------------------------------------------------------------------

    def _on_item(self, seq: int, attempt: int, value: tuple[int, int, Any]) -> None:
        stream = self.streams.get(seq)
        task = self.owner.tasks.get(seq) or self.calls.tasks.get(seq)
        index, status, item = value
        if task is None or task.attempt != attempt or stream is None or index < stream.produced:
            self._reject(seq, ITEM, value)
            if stream is not None and task is not None and task.attempt == attempt:
                self._acknowledge(stream, task)  # a retried generator repeats itself, and must not wait
            return
        self._make_item(stream, status, item)
        if stream.abandoned:
            self._discard_items(stream)
        self._wake_stream(stream)

    def _make_item(self, stream: Stream, status: int, value: Any) -> None:
        object_id = self.object_id(stream.seq, 2 + stream.produced)
        record = self.objects.get(object_id)  # there already if somebody peeked
        if record is None:
            record = self.refs.own(object_id, local=0)
        record.held += 1  # by the stream, until the user takes it
        stream.produced += 1
        self.complete(object_id, status, value)

    def _end_stream(self, task: Task, status: int, value: Any) -> None:
        stream = task.stream
        assert stream is not None
        if status == ERROR:  # one extra reference, whose get raises
            self._make_item(stream, ERROR, value)
            raised = value[0] == "task"  # by the body: the task itself was completed
            stream.outcome = (INLINE, PICKLED_NONE) if raised else (ERROR, value)
        else:
            stream.outcome = (INLINE, PICKLED_NONE)
        stream.total = stream.produced
        for index in (1, 2 + stream.produced):  # completed(), and a peek beyond the last item
            object_id = self.object_id(task.seq, index)
            if object_id in self.objects:
                self.complete(object_id, *(stream.outcome if index == 1 else (ERROR, END_OF_STREAM)))
        self._wake_stream(stream)
        if stream.abandoned:
            self._drop_stream(stream)

    def _wake_stream(self, stream: Stream) -> None:
        waiters, stream.waiters = stream.waiters, []
        for waiter in waiters:
            waiter.ready(None, stream)

    def stream_take(self, stream: Stream) -> bytes | None:
        """The next item's id, with one local reference; None: not there yet, or at the end."""
        if stream.consumed >= stream.produced:
            return None
        object_id = self.object_id(stream.seq, 2 + stream.consumed)
        record = self.objects[object_id]
        record.local += 1
        record.held -= 1
        stream.consumed += 1
        task = self.owner.tasks.get(stream.seq) or self.calls.tasks.get(stream.seq)
        if task is not None:
            self._acknowledge(stream, task)
        return object_id

    def _acknowledge(self, stream: Stream, task: Task) -> None:
        """Tell the producer how far the consumer is."""
        if not self._has_backpressure(task):
            return
        target = task.lease.worker if task.lease is not None else None
        if task.actor is not None:
            target = task.actor.address
        if target is not None:
            ack = pack(StreamAck(stream.seq, task.attempt, stream.consumed))
            self.effects.append(("send", target, ack))

    @staticmethod
    def _has_backpressure(task: Task) -> bool:
        """An actor's call says it in its extras, a task in its function's description."""
        if task.extra is not None and task.extra.get("backpressure", 0) > 0:
            return True
        return isinstance(task.function, Function) and task.function.meta["backpressure"] > 0

    def release_stream(self, seq: int) -> None:
        """The ObjectRefGenerator is gone: nobody will take the rest. The task goes on, as in Ray: what it
        does besides may be what it is for."""
        stream = self.streams.get(seq)
        if stream is None:
            return
        stream.abandoned = True
        if stream.total is not None:
            self._drop_stream(stream)
        else:
            self._discard_items(stream)

    def _discard_items(self, stream: Stream) -> None:
        """Take what is there (which lets a producer under backpressure go on), and drop it."""
        while (object_id := self.stream_take(stream)) is not None:
            self.refs.drop(object_id)

    def _drop_stream(self, stream: Stream) -> None:
        self.streams.pop(stream.seq, None)
        for i in range(stream.consumed, stream.produced):
            self.refs.unhold(self.object_id(stream.seq, 2 + i))

    # -- the rest of the messages --------------------------------------------------------------------

    def cancel_task(self, task: Task, *, force: bool, recursive: bool) -> None:
        """Cancel an unfinished task or call of ours."""
        if task.actor is None:
            self.owner.cancel(task, force=force, recursive=recursive)
        else:
            self.calls.cancel(task, recursive=recursive)

    def on_grant(self, msg: LeaseGrant, now: float) -> None:
        self.owner.on_grant(msg, now)

    def on_give_back(self, msg: GiveBack, now: float) -> None:
        self.owner.on_give_back(msg, now)

    def on_ready(self, msg: Ready, now: float) -> None:
        self.owner.on_ready(msg.lease_no)

    def on_infeasible(self, msg: LeaseInfeasible) -> None:
        if msg.fatal:
            self.owner.on_infeasible(msg.key, msg.text)

    def hold_creation(self, actor_id: bytes, handle_id: bytes) -> None:
        """The creator holds an actor, and what its constructor was given, until ``__init__`` has run, also if
        the handle goes at once: the constructor counts as a first call."""
        actor = self.calls.actors[actor_id]
        if actor.state == "PENDING":
            self.refs.hold(handle_id)
            actor.creation = handle_id

    def on_actor_update(self, msg: ActorUpdate) -> None:
        self.calls.on_update(msg)
        actor = self.calls.actors.get(msg.actor_id)
        if actor is not None and actor.creation is not None and actor.state in ("ALIVE", "DEAD"):
            handle_id, actor.creation = actor.creation, None
            self.refs.unhold(handle_id)

    def on_peer_lost(self, worker_id: bytes) -> None:
        """The connection to that process is gone."""
        self.owner.on_peer_lost(worker_id)
        self.calls.on_peer_lost(worker_id)

    def on_timer(self, what: str, number: int, now: float) -> None:
        """A timer that an effect asked for."""
        if what == "actor":
            self.calls.on_timer(number)
        else:
            self.owner.on_timer(what, number, now)

    def on_died(self, msg: Died, now: float) -> None:
        """A process that we watch, or whose lease we hold, is gone."""
        if msg.lease_no >= 0:
            self.owner.on_worker_died(msg.lease_no, (msg.running_seq, msg.running_attempt), msg.cause, now)
        self.owner.on_death(msg.worker_id, msg.cause, now)
        self.dead.add(msg.worker_id)
        for object_id in self.refs.on_death(msg.worker_id):
            record = self.objects.get(object_id)  # the failure of one may be the end of another
            if record is not None and record.status == PENDING:
                self.complete(object_id, ERROR, ("owner_died", object_id, record.owner))

    def check_invariants(self) -> None:
        """All machines, and what must hold between them."""
        for machine in (self.refs, self.owner, self.calls, self.strays):
            machine.check_invariants()
        if self.lineage is not None:
            self.lineage.check_invariants()
        for task in itertools.chain(self.owner.tasks.values(), self.calls.tasks.values()):
            for object_id in task.nested:
                assert object_id in self.objects, f"argument {object_id.hex()} of {task.name} is freed"


class _Dependency:
    """A task waits for one of its arguments. (If it is cancelled, and later made again, that is another wait.)"""

    __slots__ = ("attempt", "core", "task")

    def __init__(self, core: Core, task: Task) -> None:
        self.core, self.task, self.attempt = core, task, task.attempt

    def ready(self, _id: bytes, _record: ObjectRecord) -> None:
        if self.task.attempt == self.attempt:
            self.core._on_argument(self.task)
