"""A worker that has become an actor: its instance, and the calls that it serves.

Three ways to run calls, one per kind of actor:

* **ordinary**: one after another in the main thread, in the order of arrival;
* **threaded** (``max_concurrency`` > 1, or concurrency groups): a fixed number of threads per group;
* **asyncio** (at least one ``async def``): all on one event loop in the main thread, which also reads the
  sockets; as many at once per group as the group allows.

Called by worker.main after the node's CreateActor. Calls arrive on the reactor's thread (``on_calls``).
Invariant: each accepted call gets one result, unless the actor ends first; then the GCS tells its callers.
"""

from __future__ import annotations

import asyncio
import inspect
import pickle
import queue
import threading
from collections import deque
from collections.abc import Callable
from time import perf_counter_ns
from typing import Any

from minray.wire.asyncio_selector import ReactorEventLoop
from minray.wire.messages import ActorStarted, Address, Cancel, CreateActor, StreamAck, pack
from minray.wire.reactor import Waiter
from minray.worker.calling import Caller, Outbox
from minray.worker.contract import CALL_METHOD, READY_METHOD, SHUTDOWN_HOOK, TERMINATE_METHOD
from minray.worker.executor import announce_name, flush_stdio
from minray.worker.functions import loads_function
from minray.worker.groups import captured_by
from minray.worker.running import RUNNING, Running
from minray.worker.tasks import END, ERROR, STREAMING

DEFAULT_GROUP = ""
Call = tuple[Address, tuple[Any, ...]]  # caller, spec


class ActorExit(BaseException):
    """Raised by exit_actor(); not an Exception, so that ``except Exception`` does not hold it up."""


class ActorExecutor:
    """One actor. ``rt`` is the WorkerRuntime, whose ``actor`` this is."""

    def __init__(self, rt: Any, order: CreateActor, page: Any) -> None:
        self.rt = rt
        self.order = order
        self.page = page
        self.actor_id = order.actor_id
        self.spec = order.spec
        self.options: dict[str, Any] = order.spec["options"]
        self.incarnation = order.incarnation
        self.instance: Any = None
        self.outbox = Outbox(rt)
        self.caller = Caller(rt, self.outbox)
        self.exiting: str | None = None
        self.running: dict[tuple[bytes, int, int], Running] = {}
        self._queue: deque[Call] = deque()
        self._started = False
        self._waiter: Waiter | None = None
        self._mode: _Mode | None = None
        self._meta = {"name": self.spec["class_name"], "n": 1, "depth": self.options.get("depth", 1)}
        self._main = threading.main_thread().ident
        self._blocked = False
        rt.handle(Cancel, lambda c, m: self._on_cancel(c.tag, m))
        rt.handle(StreamAck, lambda c, m: self._on_stream_ack(c.tag, m))

    # -- birth ---------------------------------------------------------------------------------------

    def run(self) -> None:
        """In the main thread, until the actor ends."""
        rt = self.rt
        rt.depth = self._meta["depth"]
        rt.enter_scope(captured_by(self.spec.get("placement_group")))
        announce_name(rt, self.spec["class_name"])
        error = self._create()
        if error is not None:
            self._announce(error)
            rt.exit_process(0, "its __init__ raised")
        if self.exiting is not None:
            rt.exit_actor_process(self.exiting)
        groups = {DEFAULT_GROUP: self.options["max_concurrency"], **self.options["concurrency_groups"]}
        if self.options["is_async"]:
            self._mode = _AsyncioMode(self, groups)
        elif self.options["max_concurrency"] > 1 or self.options["concurrency_groups"]:
            self._mode = _ThreadedMode(self, groups)
        else:
            self._mode = _OrdinaryMode(self)
        self._announce(None)
        self._mode.run()

    def _announce(self, error: Any) -> None:
        rt = self.rt
        rt.node.send(pack(ActorStarted(self.actor_id, self.incarnation, rt.core.me, error)))

    def _create(self) -> Any:
        """Run ``__init__``; the error value of what it raised, or None."""
        rt = self.rt
        running = Running(self.spec["owner"], -1, 0, self._meta, "__init__", None)
        token = RUNNING.set(running)
        self.page.start(-1, -1, self.incarnation)
        try:
            cls = loads_function(self.spec["class_blob"])
            args, kwargs, scope = self.caller.arguments(self.spec["args"], None)
            args, kwargs = self._resolve(*args)  # the spec's payload is (args, kwargs)
            self.instance = cls.__new__(cls)
            self.instance.__init__(*args, **kwargs)
            args = kwargs = None  # type: ignore[assignment]
            with rt.lock:
                rt.drain()
                rt.core.refs.adopt_scope(scope)
                rt.leave()
        except ActorExit:
            pass
        except BaseException as error:
            return self.caller.failure(running, error)[1]
        finally:
            RUNNING.reset(token)
        return None

    def _resolve(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        """Top-level references of the constructor's arguments become their values."""
        from minray.object_ref import ObjectRef

        values = [self.rt.get([a], None)[0] if isinstance(a, ObjectRef) else a for a in args]
        named = {k: self.rt.get([v], None)[0] if isinstance(v, ObjectRef) else v for k, v in kwargs.items()}
        return values, named

    # -- from the reactor, under the lock ------------------------------------------------------------

    def on_calls(self, conn: Any, raw: tuple[Any, ...]) -> None:
        """CALLS from a caller."""
        _, incarnation, specs, _ = raw
        if incarnation != self.incarnation or self.exiting is not None:
            return  # the caller will hear from the GCS what became of us
        caller: Address = conn.tag
        if self._mode is None:
            self._queue.extend((caller, spec) for spec in specs)
        else:
            self._mode.add([(caller, spec) for spec in specs])

    def take_queued(self) -> list[Call]:
        """What came while ``__init__`` ran."""
        early = list(self._queue)
        self._queue.clear()
        return early

    def _on_cancel(self, caller: Address, msg: Cancel) -> None:
        running = self.running.get((caller[1], msg.seq, msg.attempt))
        if running is not None:
            running.cancelled = True
            if msg.recursive:
                self.rt.cancel_children(running)
            if running.task is not None:
                running.task.get_loop().call_soon_threadsafe(running.task.cancel)
            if running.waiter is not None:
                self.rt.reactor.notify(running.waiter)
        elif self._mode is not None and self._mode.remove(caller, msg.seq, msg.attempt):
            value = ("cancelled", self._meta["name"])
            self.outbox.add(caller, (msg.seq, msg.attempt, ERROR, value, -1, None))
            self.outbox.flush()

    def _on_stream_ack(self, caller: Address, msg: StreamAck) -> None:
        running = self.running.get((caller[1], msg.seq, msg.attempt))
        if running is not None:
            running.consumed = msg.consumed
            if running.waiter is not None:
                self.rt.reactor.notify(running.waiter)

    # -- one call ------------------------------------------------------------------------------------

    def begin(self, call: Call) -> tuple[Running, Any]:
        """Note that it runs; returns it and the function to call."""
        caller, (seq, attempt, method, _, extra) = call
        running = Running(caller, seq, attempt, self._meta, method, extra)
        self.running[(caller[1], seq, attempt)] = running
        return running, self._function(method)

    def _function(self, method: str) -> Any:
        if method == READY_METHOD:
            return lambda: True
        if method == CALL_METHOD:
            return lambda fn, *args, **kwargs: fn(self.instance, *args, **kwargs)
        if method == TERMINATE_METHOD:
            return lambda: self.request_exit("__ray_terminate__ was called")
        return getattr(self.instance, method)

    def run_sync(self, call: Call) -> None:
        """A call of an ordinary method, from arguments to result, on this thread."""
        caller, (seq, attempt, _, payload, extra) = call
        running, function = self.begin(call)
        token = RUNNING.set(running)
        scope: list[bytes] = []
        start = perf_counter_ns()
        try:
            if payload == b"" and (extra is None or "top" not in extra):
                value = function()
            else:
                args, kwargs, scope = self.caller.arguments(payload, extra)
                value = function(*args, **kwargs)
                args = kwargs = None  # type: ignore[assignment]
            if running.num_returns == STREAMING:
                status, value = self.caller.stream(running, value, scope)
            else:
                status, value = self.caller.result(running, value, scope)
        except ActorExit:
            pass
        except SystemExit as error:
            self.exiting = self.exiting or f"a method called sys.exit({error.code!r})"
        except BaseException as error:
            status, value = self.caller.failure(running, error)
        args = kwargs = None  # type: ignore[assignment]
        RUNNING.reset(token)
        flush_stdio()
        if running.cancelled and self.exiting is None:
            status, value = ERROR, ("cancelled", self.caller.name(running))
        with self.rt.lock:
            del self.running[(caller[1], seq, attempt)]
            if self.exiting is None:
                self.caller.finish(running, status, value, perf_counter_ns() - start, scope)
        value = None

    # -- the end -------------------------------------------------------------------------------------

    def request_exit(self, why: str) -> None:
        """exit_actor(): after this call, whatever user code does with the exception."""
        self.exiting = why
        raise ActorExit(why)

    def shutdown_hook(self) -> None:
        """``__ray_shutdown__``, on a graceful end."""
        hook = getattr(self.instance, SHUTDOWN_HOOK, None)
        if callable(hook):
            hook()

    def stop_soon(self, why: str) -> None:
        """The actor went out of scope: its calls are all answered. Under the lock."""
        self.exiting = self.exiting or why
        if self._mode is not None:
            self._mode.wake()
        elif self._waiter is not None:
            self.rt.reactor.notify(self._waiter)

    # -- waiting inside user code ----------------------------------------------------------------------

    def wait(self, wait: Callable[..., bool], waiter: Waiter, timeout: float | None) -> bool:
        """A wait of user code. One call at a time: its CPUs may be lent meanwhile."""
        alone = self._mode is None or isinstance(self._mode, _OrdinaryMode)
        if threading.get_ident() != self._main or not alone:
            return wait(waiter, timeout)
        try:
            return wait(waiter, timeout, on_block=self._block)
        finally:
            if self._blocked:
                self._blocked = False
                self.rt.tell_unblocked()

    def _block(self) -> None:
        self._blocked = True
        self.flush()
        self.rt.tell_blocked()

    def flush(self) -> None:
        """Send the results that have not been sent."""
        with self.rt.lock:
            self.outbox.flush()
            self.rt.leave()


class _Mode:
    """How calls are run. ``add``, ``remove`` and ``wake`` are called under the runtime's lock."""

    def __init__(self, actor: ActorExecutor) -> None:
        self.actor = actor
        self.rt = actor.rt

    def add(self, calls: list[Call]) -> None:
        raise NotImplementedError

    def remove(self, caller: Address, seq: int, attempt: int) -> bool:
        raise NotImplementedError

    def wake(self) -> None:
        raise NotImplementedError

    def run(self) -> None:
        raise NotImplementedError


class _OrdinaryMode(_Mode):
    def __init__(self, actor: ActorExecutor) -> None:
        super().__init__(actor)
        self._calls: deque[Call] = deque()
        self._waiter: Waiter | None = None

    def add(self, calls: list[Call]) -> None:
        self._calls.extend(calls)
        self.wake()

    def remove(self, caller: Address, seq: int, attempt: int) -> bool:
        return _remove(self._calls, caller, seq, attempt)

    def wake(self) -> None:
        waiter, self._waiter = self._waiter, None
        if waiter is not None:
            self.rt.reactor.notify(waiter)

    def run(self) -> None:
        actor, rt, calls = self.actor, self.rt, self._calls
        with rt.lock:
            calls.extendleft(reversed(actor.take_queued()))
        while True:
            waiter = None
            with rt.lock:
                if actor.exiting is not None:
                    actor.outbox.flush()
                elif calls:
                    call = calls.popleft()
                    actor.outbox.flush_old()
                else:
                    actor.outbox.flush()
                    waiter = self._waiter = Waiter()
                rt.leave()
            if waiter is not None:
                rt.reactor.wait(waiter, None)
            elif actor.exiting is not None:
                rt.exit_actor_process(actor.exiting)
            else:
                actor.page.start(-1, call[1][0], call[1][1])
                actor.run_sync(call)


class _ThreadedMode(_Mode):
    def __init__(self, actor: ActorExecutor, groups: dict[str, int]) -> None:
        super().__init__(actor)
        self._queues: dict[str, queue.SimpleQueue[Call | None]] = {g: queue.SimpleQueue() for g in groups}
        self._cancelled: set[tuple[bytes, int, int]] = set()
        self._group_of = _group_finder(actor)
        self._waiter = Waiter()
        for group, count in groups.items():
            for i in range(count):
                name = f"actor-{group or 'default'}-{i}"
                threading.Thread(
                    target=self._serve, args=(self._queues[group],), name=name, daemon=True
                ).start()

    def add(self, calls: list[Call]) -> None:
        for call in calls:
            self._queues[self._group_of(call)].put(call)

    def remove(self, caller: Address, seq: int, attempt: int) -> bool:
        self._cancelled.add((caller[1], seq, attempt))
        return False

    def wake(self) -> None:
        self.rt.reactor.notify(self._waiter)

    def _serve(self, calls: queue.SimpleQueue[Call | None]) -> None:
        actor, rt = self.actor, self.rt
        while True:
            call = calls.get()
            if call is None or actor.exiting is not None:
                return
            caller, spec = call
            name = (caller[1], spec[0], spec[1])
            if name in self._cancelled:
                with rt.lock:
                    self._cancelled.discard(name)
                    value = ("cancelled", actor.spec["class_name"])
                    actor.outbox.add(caller, (spec[0], spec[1], ERROR, value, -1, None))
            else:
                actor.run_sync(call)
            with rt.lock:
                actor.outbox.flush()
                rt.leave()
                if actor.exiting is not None:
                    self.wake()

    def run(self) -> None:
        actor, rt = self.actor, self.rt
        with rt.lock:
            self.add(actor.take_queued())
        while actor.exiting is None:
            rt.reactor.wait(self._waiter, None)
        for calls in self._queues.values():
            calls.put(None)
        rt.exit_actor_process(actor.exiting)


class _AsyncioMode(_Mode):
    def __init__(self, actor: ActorExecutor, groups: dict[str, int]) -> None:
        super().__init__(actor)
        self._free = dict(groups)
        self._waiting: dict[str, deque[Call]] = {g: deque() for g in groups}
        self._group_of = _group_finder(actor)
        self._loop = ReactorEventLoop(self.rt.reactor)
        self._flush_due = False
        self._arrived: deque[Call] = deque()
        self._told = False

    def add(self, calls: list[Call]) -> None:
        self._arrived.extend(calls)
        if not self._told:
            self._told = True
            if threading.get_ident() == self.actor._main and self._loop.is_running():
                self._loop.call_soon(self._start_arrived)
            else:
                self._loop.call_soon_threadsafe(self._start_arrived)

    def remove(self, caller: Address, seq: int, attempt: int) -> bool:
        if _remove(self._arrived, caller, seq, attempt):
            return True
        return any(_remove(waiting, caller, seq, attempt) for waiting in self._waiting.values())

    def wake(self) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)

    def _start_arrived(self) -> None:
        self._told = False
        arrived = self._arrived
        while arrived:
            call = arrived.popleft()
            group = self._group_of(call)
            if self._free[group] > 0:
                self._free[group] -= 1
                self._start(call, group)
            else:
                self._waiting[group].append(call)

    def _start(self, call: Call, group: str) -> None:
        running, function = self.actor.begin(call)
        running.task = self._loop.create_task(self._serve(call, group, running, function))

    async def _serve(self, call: Call, group: str, running: Running, function: Any) -> None:
        actor = self.actor
        caller, (seq, attempt, _, payload, extra) = call
        RUNNING.set(running)
        scope: list[bytes] = []
        status, value = ERROR, None
        start = perf_counter_ns()
        try:
            args, kwargs, scope = actor.caller.arguments(payload, extra)
            value = function(*args, **kwargs)
            if inspect.isawaitable(value):
                value = await value
            args = kwargs = None  # type: ignore[assignment]
            if running.num_returns == STREAMING:
                status, value = await self._stream(running, value, scope)
            else:
                status, value = actor.caller.result(running, value, scope)
        except asyncio.CancelledError:
            status, value = ERROR, ("cancelled", actor.caller.name(running))
        except ActorExit:
            pass
        except SystemExit as error:
            actor.exiting = actor.exiting or f"a method called sys.exit({error.code!r})"
        except BaseException as error:
            status, value = actor.caller.failure(running, error)
        args = kwargs = None  # type: ignore[assignment]
        with self.rt.lock:
            actor.running.pop((caller[1], seq, attempt), None)
            if actor.exiting is None:
                actor.caller.finish(running, status, value, perf_counter_ns() - start, scope)
        if not self._flush_due:
            self._flush_due = True
            self._loop.call_soon(self._flush)
        self._free[group] += 1
        if self._waiting[group]:
            self._free[group] -= 1
            self._start(self._waiting[group].popleft(), group)
        if actor.exiting is not None:
            self._loop.stop()

    async def _stream(self, running: Running, items: Any, scope: list[bytes]) -> tuple[int, Any]:
        """Send the items of a generator as they come."""
        if not hasattr(items, "__aiter__"):
            return self.actor.caller.stream(running, items, scope)
        index = 0
        limit = int(running.extra.get("backpressure") or 0)
        async for item in items:
            self.actor.caller.send_item(running, index, item, scope)
            index += 1
            while limit > 0 and index - running.consumed >= limit:
                await asyncio.sleep(0.001)
        return END, index

    def _flush(self) -> None:
        self._flush_due = False
        flush_stdio()
        self.actor.flush()

    def run(self) -> None:
        actor, rt, loop = self.actor, self.rt, self._loop
        asyncio.set_event_loop(loop)
        with rt.lock:
            self._arrived.extendleft(reversed(actor.take_queued()))
            self._told = True
        loop.call_soon(self._start_arrived)
        while actor.exiting is None:
            loop.run_forever()
        rt.exit_actor_process(actor.exiting)


def _remove(calls: deque[Call], caller: Address, seq: int, attempt: int) -> bool:
    for i, (other, spec) in enumerate(calls):
        if other[1] == caller[1] and spec[0] == seq and spec[1] == attempt:
            del calls[i]
            return True
    return False


def _group_finder(actor: ActorExecutor) -> Callable[[Call], str]:
    """Which group a call runs in: as its caller says, else as the method's declaration does."""
    declared: dict[str, str] = {}
    for name, meta in pickle.loads(actor.spec["method_meta"]).items():
        group = meta.declared.get("concurrency_group")
        if group is not None:
            declared[name] = group

    def find(call: Call) -> str:
        _, (_, _, method, _, extra) = call
        group = extra.get("group") if extra else None
        return group or declared.get(method, DEFAULT_GROUP)

    return find
