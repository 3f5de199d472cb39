"""The main thread of a worker: takes tasks from the queue and runs them, until the worker becomes an actor.

The reactor's thread (this one while it waits, a background thread while user code runs) fills the queue,
answers Steal and Revoke, and interrupts a cancelled task by a signal. A signal raises only while user code
of the named attempt runs: never in the runtime, never in the next task.

    idle ── TASKS ──▶ start (page says which) ──▶ arguments ──▶ user code ──▶ result ──▶ outbox ─▶ owner

Called by worker.main. Invariant: each task that ``start`` returned gets exactly one result, or the process
ends.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Callable
from time import perf_counter_ns
from typing import Any

from minray._base.log_marker import marker
from minray.wire.messages import (
    Address,
    Cancel,
    LeaseConfirm,
    LeaseRevoke,
    Steal,
    StreamAck,
    WorkerName,
    pack,
)
from minray.wire.reactor import Waiter
from minray.worker.calling import Caller, Outbox
from minray.worker.functions import loads_function
from minray.worker.groups import captured_by
from minray.worker.running import RUNNING, Running
from minray.worker.task_queue import TaskQueue
from minray.worker.tasks import ERROR, STREAMING

CANCEL_SIGNAL = signal.SIGINT
INTERRUPT_AGAIN_S = 0.01


class Executor:
    """Runs the tasks of one worker. ``rt`` is its WorkerRuntime."""

    def __init__(self, rt: Any, page: Any) -> None:
        self.rt = rt
        self.page = page  # status page: ``start(lease_no, seq, attempt)`` before each task
        self.outbox = Outbox(rt)
        self.queue = TaskQueue(rt.core.effects, self.outbox.flush)
        self.caller = Caller(rt, self.outbox)
        self.running: Running | None = None
        self._functions: dict[tuple[bytes, int], tuple[Any, dict[str, Any]]] = {}
        self._calls: dict[tuple[bytes, int], int] = {}  # of functions with max_calls
        self._interruptible: tuple[int, int] | None = None  # (seq, attempt) while user code runs
        self._cancel: tuple[int, int] | None = None
        self._waiter: Waiter | None = None
        self._name = ""
        self._leave: Callable[[], None] | None = None  # what to do instead of the next task
        for cls, handler in (
            (LeaseConfirm, lambda _c, m: self._confirmed(m)),
            (LeaseRevoke, lambda _c, m: self.queue.on_revoke(m.lease_no)),
            (Steal, lambda _c, m: self.queue.on_steal(m.lease_no, m.count)),
            (Cancel, lambda c, m: self._on_cancel(c.tag, m)),
            (StreamAck, lambda c, m: self._on_stream_ack(c.tag, m)),
        ):
            rt.handle(cls, handler)

    # -- from the reactor, under the lock ------------------------------------------------------------

    def on_tasks(self, conn: Any, raw: tuple[Any, ...]) -> None:
        """TASKS from an owner."""
        _, lease_no, specs, functions = raw
        owner: Address = conn.tag
        if functions:
            for function_id, loaded in functions.items():
                self._functions[(owner[1], function_id)] = loaded
        self.queue.on_tasks(owner, lease_no, specs)
        self._wake()

    def _confirmed(self, msg: LeaseConfirm) -> None:
        self.queue.on_confirm(msg)
        self.rt.set_resources(msg.resources, msg.resource_ids)
        self._wake()

    def _wake(self) -> None:
        waiter = self._waiter
        if waiter is not None and (self.queue.queue or self._leave is not None):
            self._waiter = None
            self.rt.reactor.notify(waiter)

    def _on_cancel(self, owner: Address, msg: Cancel) -> None:
        spec = self.queue.remove(msg.seq, msg.attempt, owner[1])
        if spec is not None:
            meta = self._functions.get((owner[1], spec[2]), (None, {"name": "?"}))[1]
            result = (msg.seq, msg.attempt, ERROR, ("cancelled", meta["name"]), -1, None)
            self.outbox.add(owner, result)
            self.outbox.flush()
            return
        running = self.running
        if running is not None and _is(running, owner, msg):
            running.cancelled = True
            self._cancel = (msg.seq, msg.attempt)
            if msg.recursive:
                self.rt.cancel_children(running)
            if running.waiter is not None:
                self.rt.reactor.notify(running.waiter)
            self._interrupt(running)

    def _on_stream_ack(self, owner: Address, msg: StreamAck) -> None:
        """The consumer of a stream is further on."""
        running = self.running
        if running is not None and _is(running, owner, msg):
            running.consumed = msg.consumed
            if running.waiter is not None:
                self.rt.reactor.notify(running.waiter)

    def leave_loop(self, instead: Callable[[], None]) -> None:
        """Do this in the main thread, instead of the next task (become an actor, exit)."""
        self._leave = instead
        self._wake()

    # -- signals -------------------------------------------------------------------------------------

    def install_signals(self) -> None:
        """In the main thread."""
        signal.signal(CANCEL_SIGNAL, self._on_signal)

    def _on_signal(self, _number: int, frame: Any) -> None:
        target = self._interruptible
        if target is None or target != self._cancel:
            return  # nothing of ours runs, or the wrong one does
        if self.rt.in_runtime():
            self.rt.reactor.set_interrupt()  # raised where a wait declares it; else ``_interrupt`` comes again
        elif not _in_finalizer(frame):  # there Python would ignore it
            self._cancel = None
            raise KeyboardInterrupt

    def _interrupt(self, running: Running) -> None:
        """Interrupt the cancelled task, once: again and again until it is hit outside of the runtime."""
        if self.running is running and self._cancel == (running.seq, running.attempt):
            interrupt_main_thread()
            self.rt.reactor.call_later(INTERRUPT_AGAIN_S, lambda: self._interrupt(running))

    # -- the loop ------------------------------------------------------------------------------------

    def run(self) -> None:
        """Until the process ends."""
        rt, queue = self.rt, self.queue
        while True:
            waiter = None
            with rt.lock:
                spec = queue.start() if self._leave is None else None
                if spec is None:
                    self.outbox.flush()
                    if self._leave is None:
                        waiter = self._waiter = Waiter()
                rt.leave()
            if spec is not None:
                self.execute(spec, queue.owner)
            elif waiter is not None:
                flush_stdio()
                rt.reactor.wait(waiter, None)
            else:
                assert self._leave is not None
                self._leave()

    def execute(self, spec: Any, owner: Any) -> None:
        """One task."""
        rt = self.rt
        seq, attempt, function_id, payload, extra = spec
        loaded, meta = self._functions[(owner[1], function_id)]
        running = self.running = Running(owner, seq, attempt, meta, "", extra)
        once = meta["once"]
        with rt.lock:
            if once:
                self.outbox.flush()
            else:
                self.outbox.flush_old()
            rt.leave()
        self.page.start(self.queue.lease_no, seq, attempt)
        rt.depth = meta["depth"]
        if meta["name"] != self._name:
            self._set_name(meta["name"])
        token = RUNNING.set(running)
        scope: list[bytes] = []
        exec_ns = -1
        try:
            if type(loaded) is bytes:
                loaded = loads_function(loaded)
                meta["captured"] = captured_by(meta.get("group"))
                self._functions[(owner[1], function_id)] = (loaded, meta)
            captured = meta.get("captured")
            if captured is not rt.captured:
                rt.enter_scope(captured)
            if payload == b"" and extra is None:
                args: Any = ()
                kwargs: dict[str, Any] = {}
            else:
                args, kwargs, scope = self.caller.arguments(payload, extra)
            start = perf_counter_ns()
            status, value = self._call(running, loaded, args, kwargs, scope)
            exec_ns = perf_counter_ns() - start
        except SystemExit as error:
            status, value = self._exiting(running, error)
        except BaseException as error:
            status, value = self.caller.failure(running, error)
        args = kwargs = None  # type: ignore[assignment]
        RUNNING.reset(token)
        flush_stdio()  # an unfinished line must not be behind the result
        with rt.lock:
            self.caller.finish(running, status, value, exec_ns, scope)
            self.running = None
            self.queue.unblock()  # a thread that the task has left behind may still wait
            if once:
                self.outbox.flush()
            if queue_must_flush(self.queue):
                self.outbox.flush()
            if meta["max_calls"]:
                self._count_call((owner[1], function_id), meta["max_calls"])
            self.queue.finish()
            rt.leave()

    def _call(
        self, running: Running, function: Any, args: Any, kwargs: dict[str, Any], scope: list[bytes]
    ) -> tuple[int, Any]:
        name = (running.seq, running.attempt)
        self._interruptible = name
        try:
            if running.cancelled:
                raise KeyboardInterrupt
            value = function(*args, **kwargs)
            if running.num_returns == STREAMING:
                return self.caller.stream(running, value, scope)
        finally:
            self._interruptible = None
            if running.cancelled:
                self.rt.reactor.clear_interrupt()  # it came too late for this task, and is not for the next
        return self.caller.result(running, value, scope)

    def _exiting(self, running: Running, error: SystemExit) -> tuple[int, Any]:
        """SystemExit in a task: the caller sees a crash, and this process ends."""
        code = error.code if isinstance(error.code, int) else (0 if error.code is None else 1)
        self.leave_loop(lambda: self.rt.exit_process(code))
        name = self.caller.name(running)
        text = f"the task called sys.exit({error.code!r})"
        return ERROR, ("crashed", name, {"text": text, "exit_code": code, "expected": True})

    def _count_call(self, function: tuple[bytes, int], limit: int) -> None:
        count = self._calls.get(function, 0) + 1
        self._calls[function] = count
        if count >= limit:
            self.queue.end()

    def _set_name(self, name: str) -> None:
        self._name = name
        announce_name(self.rt, name)

    # -- waiting inside user code ----------------------------------------------------------------------

    def wait(self, wait: Callable[..., bool], waiter: Waiter, timeout: float | None) -> bool:
        """A wait of user code: give tasks and CPUs away if it takes longer than about a millisecond."""
        running = self.running
        if running is None:
            return wait(waiter, timeout)
        blocked = False

        def block() -> None:
            nonlocal blocked
            with self.rt.lock:
                if self.running is running:
                    blocked = True
                    running.blocked_threads += 1
                    self.outbox.flush()
                    self.queue.block()
                    self.rt.leave()

        try:
            return wait(waiter, timeout, on_block=block)
        except KeyboardInterrupt:
            self._cancel = None  # it has been told
            raise
        finally:
            if blocked:
                with self.rt.lock:
                    running.blocked_threads -= 1
                    if self.running is running and running.blocked_threads == 0:
                        self.queue.unblock()
                        self.rt.leave()

    def flush(self) -> None:
        """Reactor, when its background thread takes over: user code is busy, results must not wait."""
        with self.rt.lock:
            self.outbox.flush()
            self.rt.leave()


def _is(running: Running, owner: Address, msg: Cancel | StreamAck) -> bool:
    """Whether that owner means this task. Its number alone could be another owner's."""
    return (running.owner[1], running.seq, running.attempt) == (owner[1], msg.seq, msg.attempt)


def queue_must_flush(queue: TaskQueue) -> bool:
    """Nothing else is to do, or the lease is about to end."""
    return not queue.queue or queue._revoked


def _in_finalizer(frame: Any) -> bool:
    """Whether an exception raised here would be swallowed by a ``__del__``."""
    while frame is not None:
        if frame.f_code.co_name == "__del__":
            return True
        frame = frame.f_back
    return False


def interrupt_main_thread() -> None:
    """Make the main thread look at its signals, even in the middle of a sleep."""
    if hasattr(signal, "pthread_kill"):
        signal.pthread_kill(threading.main_thread().ident or 0, CANCEL_SIGNAL)
    else:
        import _thread

        _thread.interrupt_main()


def announce_name(rt: Any, name: str) -> None:
    """Whose lines follow: inside the output, so that each line is attributed exactly; and to the node."""
    flush_stdio()
    mark = marker(name)
    for fd in (1, 2):
        try:
            os.write(fd, mark)
        except OSError:
            pass  # user code closed it
    rt.node.send(pack(WorkerName(name)))


def flush_stdio() -> None:
    """Let go of unfinished lines."""
    for stream in (sys.stdout, sys.stderr):
        try:
            if stream is not None:
                stream.flush()
        except (OSError, ValueError):
            pass  # user code closed it, or its reader is gone: prints are lost, results are not
