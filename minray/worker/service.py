"""CoreWorker: the runtime of one process, a driver's or a worker's, behind the contract of the public face.

    user's threads ──▶ submission, objects, streams, actors ─┐
                                                             ├─ lock ─▶ core (pure) ─▶ effects ─▶ sockets
    reactor's thread ─▶ link.on_messages ────────────────────┘

The layers below it, bottom up: ``link`` (connections, lock, effects), ``objects`` (values), ``submission``,
``streams``, ``actors``. This file adds what a process is as a whole: its start at the node, its context, its
end. ``WorkerRuntime`` adds what executes; ``worker.connect`` makes drivers, ``worker.main`` workers.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from time import monotonic
from typing import Any

from minray._base.config import Config
from minray._base.groups import plain
from minray._base.resources import from_units
from minray.exceptions import RaySystemError
from minray.store import segments
from minray.store.client import IDLE_S, StoreClient
from minray.wire.errors import WireError
from minray.wire.messages import (
    CALLS,
    TASKS,
    Blocked,
    ExitWorker,
    Hello,
    Message,
    Registered,
    Unblocked,
    pack,
)
from minray.wire.reactor import Reactor, Waiter
from minray.worker import errors
from minray.worker.actors import ActorOps
from minray.worker.contract import ActorRecord, TaskContext
from minray.worker.core import Core
from minray.worker.gcs_line import GcsLine
from minray.worker.running import RUNNING, Running


class _Waits:
    """How the store's client waits: with the reactor's waiters."""

    def __init__(self, rt: CoreWorker) -> None:
        self._rt = rt

    def make(self) -> Waiter:
        return Waiter()

    def wait(self, waiter: Waiter, timeout: float | None) -> bool:
        return self._rt.wait_in_user_code(self._rt.reactor.wait, waiter, timeout)

    def notify(self, waiter: Waiter) -> None:
        self._rt.reactor.notify(waiter)


class _MemoryWaits(_Waits):
    """The same, for memory."""

    def wait(self, waiter: Waiter, timeout: float | None) -> bool:
        return self._rt.wait_for_memory(self._rt.reactor.wait, waiter, timeout)


class CoreWorker(ActorOps):
    """A process of the session that submits, owns and borrows. See contract.Runtime."""

    mode = "driver"

    def __init__(self, reactor: Reactor, config: Config, hello: Hello) -> None:
        super().__init__(reactor, config, hello)
        self.actor: Any = None
        self.session: dict[str, Any] = {}
        self._deeper = {}
        self._trim_due = False
        self._registered = Waiter()
        self._lost = Waiter()  # the node's connection is gone
        self._registration: Registered | None = None
        self._init_submission()
        self.handle(Registered, self._on_registered)

    # -- start ---------------------------------------------------------------------------------------

    def _on_registered(self, _conn: Any, msg: Registered) -> None:
        self._registration = msg
        self._start(msg)
        self.reactor.notify(self._registered)

    def await_registration(self, timeout: float) -> Registered:
        """Wait until the node has answered Register. RaySystemError if it does not."""
        self.reactor.wait(self._registered, timeout)
        if self._registration is None:
            what = "ended before it answered" if self.closed else f"did not answer within {timeout} s"
            raise RaySystemError(f"the node process {what}")
        return self._registration

    def _start(self, msg: Registered) -> None:
        self.node_id = msg.node_id
        self.job_id = msg.job_id
        self.job_config = msg.job_config
        self.session = {**msg.session, "node_address": msg.node_address, "gcs_endpoint": msg.gcs_endpoint}
        self.clustered = bool(msg.session.get("clustered"))
        self.namespace = str(msg.session.get("namespace") or "")
        me = (msg.node_id, self.worker_id, self.hello.endpoint)
        self.hello = Hello(
            self.hello.role, self.worker_id, msg.node_id, msg.job_id, self.hello.pid, self.hello.start_time,
            self.hello.endpoint,
        )  # fmt: skip
        config = self.config
        self.core = Core(
            me,
            msg.job_id,
            self.worker_id[:12],
            max_pipeline=config.max_pipeline,
            lease_idle_s=config.lease_idle_s,
            lineage_bytes=config.lineage_bytes if self.clustered else None,
        )
        self.core.owner.clustered = self.clustered
        elsewhere = msg.gcs_endpoint if msg.gcs_endpoint != self.node.endpoint else None
        self.gcs_line = GcsLine(self, self.node, elsewhere, config.gcs_reconnect_s)
        self.store = StoreClient(
            segments.from_spec(msg.session["segment_dir"]),
            node_id=msg.node_id,
            worker_id=self.worker_id,
            send=self.tell_node,
            waits=_Waits(self),
            memory_waits=_MemoryWaits(self),
            before_allocate=self._let_go,
            wake=lambda: self.post(self.store.drain),
        )
        for cls in self.store.messages:
            self.handle(cls, lambda _c, m: self.store.on_message(m))

    def tell_node(self, msg: Message) -> None:
        """A control message to the node."""
        self.node.send(pack(msg))

    def _let_go(self) -> None:
        """Before room is looked for in the store: what was dropped is free."""
        if not self.owned():
            with self.lock:
                self.leave()
                if not self._trim_due:
                    self._trim_due = True
                    self.reactor.call_later(IDLE_S, self._trim)

    def _trim(self) -> None:
        """Extents that were empty for a while go back to the node."""
        next_due = self.store.trim_idle()
        if next_due is None or self.closed:
            self._trim_due = False
        else:
            self.reactor.call_later(max(1.0, next_due - monotonic()), self._trim)

    # -- about itself ----------------------------------------------------------------------------------

    def current(self) -> Running | None:
        """What runs on this thread."""
        return RUNNING.get()

    def task_id_of(self, running: Running) -> bytes:
        """The id that its owner gave to a running task."""
        job_id: bytes = running.extra.get("job", self.job_id)
        return running.owner[1][:12] + running.seq.to_bytes(8, "big", signed=running.seq < 0) + job_id

    def context(self) -> TaskContext:
        """See the contract."""
        return TaskContext(task_id=self.worker_id[:12] + bytes(8) + self.job_id)

    def gcs(self, method: str, *args: Any) -> Any:
        """See the contract."""
        self.settle_removals()
        return self.ask_gcs(method, *args)

    def error_info(self) -> list[dict[str, Any]]:
        """See the contract."""
        with self.lock:
            failures = list(self.core.failures)
        return [
            {
                "type": "task",
                "message": f"Remote function {name} failed with:\n\n{errors.to_exception(value)}",
            }
            for name, value in failures
        ]

    def exit_actor(self) -> None:
        """See the contract."""
        raise TypeError("exit_actor() can only be called in an actor: this code does not run in one")

    def current_actor(self) -> ActorRecord:
        """See the contract."""
        raise RuntimeError("no actor runs in this process")

    def in_runtime(self) -> bool:
        """Whether the main thread must not be interrupted just now."""
        return bool(self.owned()) or self.reactor.main_waiting or self.reactor.inside()

    def cancel(self, ref: Any, force: bool, recursive: bool) -> None:
        """See the contract."""
        seq = self.core.seq_of(ref._id)
        if self.owned():
            self.must_not_wait("cancel")
        with self.lock:
            task = None
            if seq is not None:
                task = self.core.owner.tasks.get(seq) or self.core.calls.tasks.get(seq)
            if task is not None:
                if force and task.actor is not None:
                    raise ValueError("force=True is not supported for actor tasks: use kill(actor) instead")
                self.core.cancel_task(task, force=force, recursive=recursive)
            self.leave()

    # -- the end ---------------------------------------------------------------------------------------

    def on_node_lost(self, error: WireError | None) -> None:
        """The node process is gone: fail what waits."""
        super().on_node_lost(error)
        if not self.closed:
            self.closed = True
            self._fail_all()
            if self.store is not None:  # who waits there for a pin or an extent
                self.store.fail(errors.to_exception(("session_over",)))
        self.reactor.notify(self._registered)
        self.reactor.notify(self._lost)

    def _fail_all(self) -> None:
        """Wake everybody who waits for an object: they see that the session is over."""
        if self.core is None:
            return
        for object_id, record in list(self.core.objects.items()):
            if record.status == 0:
                self.core.complete(object_id, 3, ("session_over",))
        for stream in list(self.core.streams.values()):
            for waiter in stream.waiters:
                waiter.ready(None, stream)

    def close(self) -> None:
        """Let go of sockets, threads and mappings."""
        with self.lock:
            self.closed = True
            self._fail_all()
        self.store.close()
        self.reactor.close()

    def after_fork_child(self) -> None:
        """In a child that user code forked: nothing here may act any more."""
        self.closed = True
        self.reactor.after_fork_child()

    def shutdown(self, exiting: bool = False) -> None:
        """See the contract; a driver's is in worker.connect."""
        self.close()


class WorkerRuntime(CoreWorker):
    """The runtime of a worker: also executes."""

    mode = "worker"

    def __init__(self, reactor: Reactor, config: Config, hello: Hello) -> None:
        super().__init__(reactor, config, hello)
        self.executor: Any = None
        self.blas: Any = None  # main's
        self._resources: dict[str, int] = {}
        self._resource_ids: dict[str, list[tuple[int, int]]] = {}
        self._gpu_env: str | None = None
        self._retiring: str | None = None
        self.prepare_executor: Callable[[Registered], None] = lambda _msg: None  # main's: before any task
        self.handle(ExitWorker, self._on_exit_order)

    def _start(self, msg: Registered) -> None:
        super()._start(msg)
        self.prepare_executor(msg)

    def on_other(self, conn: Any, raw: tuple[Any, ...]) -> None:
        """Link: TASKS and CALLS are ours, too."""
        if raw[0] == TASKS:
            self.executor.on_tasks(conn, raw)
        elif raw[0] == CALLS:
            if self.actor is not None:
                self.actor.on_calls(conn, raw)
        else:
            super().on_other(conn, raw)

    # -- waiting ---------------------------------------------------------------------------------------

    def wait_in_user_code(self, wait: Callable[..., bool], waiter: Waiter, timeout: float | None) -> bool:
        """Objects: others may have our CPU meanwhile."""
        who = self.actor if self.actor is not None else self.executor
        if who is None:
            return wait(waiter, timeout)
        return bool(who.wait(wait, waiter, timeout))

    def wait_for_memory(self, wait: Callable[..., bool], waiter: Waiter, timeout: float | None) -> bool:
        """Objects: our CPU stays ours, but the results that are there leave: what they let go of may be the room."""
        who = self.actor if self.actor is not None else self.executor
        return wait(waiter, timeout) if who is None else wait(waiter, timeout, on_block=who.flush)

    def tell_blocked(self) -> None:
        """The actor waits inside the runtime."""
        self.tell_node(Blocked(-1))

    def tell_unblocked(self) -> None:
        """It goes on."""
        self.tell_node(Unblocked(-1))

    # -- about itself ------------------------------------------------------------------------------------

    def current(self) -> Running | None:
        running = RUNNING.get()
        if running is None and self.executor is not None:
            return self.executor.running  # type: ignore[no-any-return]
        return running

    def set_resources(self, resources: dict[str, int], ids: dict[str, list[tuple[int, int]]]) -> None:
        """What the node has given this worker for its lease or its life."""
        self._resources = plain(resources)
        self._resource_ids = plain(ids)
        self.blas.entitle(from_units(self._resources).get("CPU", 0.0))
        gpus = self._resource_ids.get("GPU")
        if gpus or self._gpu_env:
            self._gpu_env = ",".join(str(i) for i in self.gpu_ids())
            os.environ["CUDA_VISIBLE_DEVICES"] = self._gpu_env

    def gpu_ids(self) -> list[int | str]:
        """The GPUs of this worker, as the machine's CUDA_VISIBLE_DEVICES names them."""
        visible = self.config.cuda_visible_devices
        names = visible.split(",") if visible else None
        out: list[int | str] = []
        for index, _ in self._resource_ids.get("GPU", []):
            name = names[index].strip() if names and index < len(names) else str(index)
            out.append(int(name) if name.isdigit() else name)
        return out

    def context(self) -> TaskContext:
        """See the contract."""
        running = self.current()
        actor = self.actor
        made = TaskContext(
            resources=from_units(self._resources),
            resource_ids={k: [(i, n / 10000) for i, n in v] for k, v in self._resource_ids.items()},
            gpu_ids=self.gpu_ids(),
            env_vars=dict(self.env_vars),
            depth=self.depth,
        )
        if actor is not None:
            made.actor_id = actor.actor_id
            made.actor_name = actor.spec.get("name")
            made.class_name = actor.spec["class_name"]
            made.incarnation = actor.incarnation
        if running is not None:
            caller = (actor or self.executor).caller
            made.task_id = self.task_id_of(running)
            made.task_name = caller.name(running)
            made.function_name = running.meta.get("function", made.task_name)
            if running.method:
                made.function_name = f"{actor.options.get('module')}.{made.class_name}.{running.method}"
            made.attempt = running.attempt
            made.canceled = running.cancelled
        group = actor.spec.get("placement_group") if actor is not None else running and running.meta.get("group")
        if group:
            made.placement_group_id, made.capture_child_tasks = group[0], group[2]
        return made

    def exit_actor(self) -> None:
        """See the contract."""
        self.actor.request_exit("exit_actor() was called")

    def current_actor(self) -> ActorRecord:
        """See the contract."""
        spec = self.actor.spec
        return self._weak_record({**spec, "options": spec["options"]})

    def cancel_children(self, running: Running) -> None:
        """Cancel what the running task has submitted. Under the lock."""
        for task in [*self.core.owner.tasks.values(), *self.core.calls.tasks.values()]:
            if task.parent is running:
                self.core.cancel_task(task, force=False, recursive=True)

    # -- the end -----------------------------------------------------------------------------------------

    def _on_exit_order(self, _conn: Any, msg: ExitWorker) -> None:
        if not msg.graceful:
            os._exit(1)
        if self.actor is not None:
            self.actor.stop_soon(msg.reason)
        else:
            self.retire(msg.reason)

    def retire(self, why: str) -> None:
        """End this worker, once nobody needs what it owns. Under the lock."""
        self._retiring = why
        self._maybe_retire()

    def _maybe_retire(self) -> None:
        core = self.core
        if self._retiring is None or core.owner.tasks or core.calls.tasks:
            return
        if any(record.owner is None for record in core.objects.values()):
            return
        why = self._retiring
        self.executor.leave_loop(lambda: self.exit_process(0, why))

    def leave(self) -> None:
        super().leave()
        if self._retiring is not None:
            self._maybe_retire()

    def on_node_lost(self, error: WireError | None) -> None:
        """Without its node a worker has nobody to serve."""
        os._exit(1)

    def over(self) -> BaseException:
        """Also where user code notices it first: an error would be taken for the result of what runs here, and what
        is lost with its node has to be tried again."""
        if self.node.closed and not self.closed:
            os._exit(1)
        return super().over()

    def exit_actor_process(self, why: str) -> None:
        """A graceful end: the shutdown hook, atexit, and out."""
        from minray.wire.messages import ActorEnded

        actor = self.actor
        try:
            actor.shutdown_hook()
        except Exception:  # a user's hook must not keep the process alive
            sys.excepthook(*sys.exc_info())
        self.tell_node(ActorEnded(actor.actor_id, actor.incarnation, {"text": why, "intended": True}))
        self.exit_process(0, why)

    def exit_process(self, code: int, why: str = "") -> None:
        """Run atexit handlers, send what is unsent, and end. Does not return."""
        import atexit

        who = self.actor if self.actor is not None else self.executor
        who.flush()
        run_exit_functions = getattr(atexit, "_run_exitfuncs", None)
        if run_exit_functions is not None:
            try:
                run_exit_functions()
            except Exception:  # user code; the report is theirs
                sys.excepthook(*sys.exc_info())
        for stream in (sys.stdout, sys.stderr):
            try:
                stream.flush()
            except (OSError, ValueError):
                pass  # closed by user code
        done = Waiter()
        self.drain_sockets(done)
        os._exit(code)

    def drain_sockets(self, waiter: Waiter) -> None:
        """Give unsent bytes a moment to leave."""
        conns = [c for c in (self.node, *self._peers.values()) if c is not None]
        for _ in range(100):
            if not any(c.buffered for c in conns):
                return
            self.reactor.wait(waiter, 0.01)
