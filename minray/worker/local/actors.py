"""Local mode's actors: objects of this process.

    ordinary   runs a call inside its ``.remote()``, on the caller's thread, one at a time
    threaded   (max_concurrency > 1, concurrency groups) daemon threads, as many as the option says
    asyncio    one daemon thread with an event loop of its own

All three keep the rules of real ones: calls of one actor start in order, a call whose arguments are not there
holds back the later ones (ordinary actors), ``__init__`` comes first, a dead actor says why.

Called by ``worker.local``. State that several threads touch is under ``ObjectTable.changed``.

Invariants: each submitted call is answered once: with its result, or with why the actor cannot; no user code
of an ordinary actor runs beside other code of it.
"""

from __future__ import annotations

import queue
import threading
from collections import deque
from collections.abc import Callable
from typing import Any

from minray.exceptions import PendingCallsLimitExceeded
from minray.worker.contract import (
    CALL_METHOD,
    READY_METHOD,
    SHUTDOWN_HOOK,
    TERMINATE_METHOD,
    ActorClassDef,
    TaskContext,
)
from minray.worker.local.calls import CONTEXT, Call, Failed, run_inline
from minray.worker.local.objects import VALUE, encode
from minray.worker.local.streams import LocalStream, PulledStream

PENDING, ALIVE, DEAD = "PENDING", "ALIVE", "DEAD"
CREATION = "__init__"


class LocalActor:
    """What all kinds share: identity, life and death."""

    def __init__(
        self,
        rt: Any,
        actor_id: bytes,
        definition: ActorClassDef,
        options: dict[str, Any],
        env_vars: dict[str, str],
    ) -> None:
        self.rt = rt
        self.actor_id = actor_id
        self.definition = definition
        self.options = options
        self.env_vars = env_vars
        self.resources: dict[str, int] = {}  # units, taken while it lives
        self.home = TaskContext()  # says in which placement group it lives
        self.instance: Any = None
        self.state = PENDING
        self.cause: dict[str, Any] = {}
        self.incarnation = 0
        self.ending = False  # no more calls will come: end after the last one
        self.exiting = False  # exit_actor() was called: end after this one
        self.unanswered: dict[bytes, Call] = {}
        self._restarts_left = options["max_restarts"]
        self._creation: Call | None = None  # what a restart repeats

    # --- life -------------------------------------------------------------------------------------

    def create(self, creation: Call) -> None:
        """Start with this call of ``__init__``."""
        self._creation = creation
        self._boot(self._again(creation))

    def _boot(self, creation: Call) -> None:
        raise NotImplementedError

    def _again(self, creation: Call) -> Call:
        copy = self.rt.new_actor_call(self, CREATION, 0)
        copy.payload, copy.top = creation.payload, list(creation.top)
        return self._owned(copy)

    def construct(self, /, *args: Any, **kwargs: Any) -> None:
        """What the creation call runs."""
        self.instance = self.definition.cls(*args, **kwargs)
        self.state = ALIVE

    def created(self, creation: Call) -> None:
        """``__init__`` has returned or raised."""
        if creation.failure is not None:
            if self.exiting:
                self.die({"text": "it called exit_actor() in its __init__", "intended": True})
            else:
                self.die({"creation_error": creation.failure})

    def die(self, cause: dict[str, Any]) -> None:
        """It is gone for good; whoever waits for it is told."""
        with self.rt.objects.changed:
            if self.state == DEAD:
                return
            self.state, self.cause = DEAD, cause
            waiting = list(self.unanswered.values())
            self.unanswered.clear()
        self.instance = None
        self._creation = None
        self.rt.actor_died(self)
        for call in waiting:
            call.fail(self.death_of(call))

    def kill(self, no_restart: bool) -> None:
        """End it at once; start again if that is allowed."""
        if self.state == DEAD:
            return
        creation = self._creation
        if no_restart or self._restarts_left == 0 or creation is None:
            self.die({"text": "it was killed by kill()", "intended": True})
            return
        self._restarts_left -= 1 if self._restarts_left > 0 else 0
        with self.rt.objects.changed:
            waiting = list(self.unanswered.values())
            self.unanswered.clear()
        for call in waiting:
            call.fail(("actor_unavailable", self.definition.name, self.actor_id, {"text": "it was killed"}))
        self.instance, self.state = None, PENDING
        self.incarnation += 1
        self._stop_serving()
        self._boot(self._again(creation))

    def out_of_scope(self) -> None:
        """Nobody has a handle any more: end after what is queued."""
        self.ending = True
        self.end_if_idle()

    def end_if_idle(self) -> None:
        """End gracefully if that is due."""
        if self.state == ALIVE and (self.exiting or (self.ending and not self.unanswered)):
            text = "exit_actor() was called" if self.exiting else "all handles to it went out of scope"
            self._end_gracefully({"text": text, "intended": True})

    def _end_gracefully(self, cause: dict[str, Any]) -> None:
        hook = getattr(self.instance, SHUTDOWN_HOOK, None)
        if callable(hook):
            try:
                hook()
            except Exception as error:  # nobody waits for it
                call = self.rt.new_actor_call(self, SHUTDOWN_HOOK, 0)
                self.rt.note_error(call.error_value(error), call.name)
        self.die(cause)

    def _stop_serving(self) -> None:
        """Let go of threads."""

    def death_of(self, call: Call) -> tuple[Any, ...]:
        """The error value of a call that this actor, now dead, cannot answer."""
        return ("actor_died", self.definition.name, self.actor_id, self.cause)

    # --- calls ------------------------------------------------------------------------------------

    def submit(self, call: Call) -> None:
        """Take a call. PendingCallsLimitExceeded."""
        limit = self.options["max_pending_calls"]
        if 0 < limit <= len(self.unanswered):
            raise PendingCallsLimitExceeded(
                f"{call.name}: {len(self.unanswered)} calls are pending, max_pending_calls={limit}"
            )
        self._owned(call)
        with self.rt.objects.changed:
            if self.state != DEAD:
                self.unanswered[call.task_id] = call
        if self.state == DEAD:
            call.fail(self.death_of(call))
        else:
            self._take(call)

    def _owned(self, call: Call) -> Call:
        call.actor_repr = self._repr
        call.on_exit = self._exits
        return call

    def _repr(self) -> str:
        try:
            return repr(self.instance)
        except Exception as error:  # a user's __repr__
            return f"<{self.definition.name}, whose repr raised {type(error).__name__}>"

    def _exits(self) -> tuple[Any, ...]:
        self.exiting = True
        cause = {"text": "exit_actor() was called", "intended": True}
        return ("actor_died", self.definition.name, self.actor_id, cause)

    def _take(self, call: Call) -> None:
        raise NotImplementedError

    def answered(self, call: Call) -> None:
        """Its results are settled."""
        with self.rt.objects.changed:
            self.unanswered.pop(call.task_id, None)
        self.end_if_idle()

    def function(self, method: str) -> Callable[..., Any]:
        """What a call of ``method`` runs. Raises Failed if the actor is dead."""
        if self.state == DEAD:
            raise Failed(("actor_died", self.definition.name, self.actor_id, self.cause))
        if method == CREATION and self.state == PENDING:
            return self.construct
        if method == READY_METHOD:
            return lambda: True
        if method == TERMINATE_METHOD:
            return self.terminate
        if method == CALL_METHOD:
            return lambda fn, /, *args, **kwargs: fn(self.instance, *args, **kwargs)
        found: Callable[..., Any] = getattr(self.instance, method)
        return found

    def terminate(self) -> None:
        """``__ray_terminate__``."""
        self.ending = True

    def cancel(self, call: Call) -> None:
        """Tell a call in progress; overridden where more can be done."""
        call.context.canceled = True

    def pump(self) -> None:
        """Run what has become runnable, where that is the caller's business."""


class InlineActor(LocalActor):
    """An ordinary actor."""

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self._queue: deque[Call] = deque()
        self._busy = False
        self._streams: list[PulledStream] = []

    def _boot(self, creation: Call) -> None:
        self._queue.appendleft(creation)
        self.pump()

    def _take(self, call: Call) -> None:
        self._queue.append(call)
        self.pump()

    def add_stream(self, call: Call) -> LocalStream:
        """A generator method: its items are made when somebody asks for them."""

        def start(*args: Any, **kwargs: Any) -> Any:
            self.pump()
            return self.function(call.method)(*args, **kwargs)

        stream = PulledStream(self._owned(call), start)
        self._streams.append(stream)

        def exhausted() -> None:
            self._streams.remove(stream)
            if self.exiting and not self._busy:
                self.end_if_idle()

        stream.exhausted = exhausted
        return stream

    def pump(self) -> None:
        """Run queued calls while their arguments are there."""
        changed = self.rt.objects.changed
        while True:
            with changed:
                if self._busy or not self._queue:
                    return
                call = self._queue[0]
                if not call.done and not call.ready():
                    self.rt.stalled.add(self)
                    return
                self.rt.stalled.discard(self)
                self._queue.popleft()
                self._busy = True
            try:
                if not call.done:
                    self._run(call)
            finally:
                self._busy = False
            self.answered(call)

    def can_run(self) -> bool:
        """Whether ``pump`` would run something."""
        return not self._busy and bool(self._queue) and (self._queue[0].done or self._queue[0].ready())

    def _run(self, call: Call) -> None:
        for stream in list(self._streams):
            stream.run_to_end()
        if call.method != CREATION or self.state != PENDING:
            run_inline(call, lambda *args, **kwargs: self.function(call.method)(*args, **kwargs))
            return
        run_inline(call, self.construct)
        self.created(call)

    def end_if_idle(self) -> None:
        """As in the base class, but never between two statements of user code."""
        if not self._busy and (self.exiting or not self._queue):
            super().end_if_idle()

    def die(self, cause: dict[str, Any]) -> None:
        """As in the base class."""
        super().die(cause)
        self._queue.clear()


class _Threads:
    """Daemon threads that run jobs in order; started as they are needed, up to a number."""

    def __init__(self, name: str, size: int) -> None:
        self._name = name
        self._size = size
        self._started = 0
        self._idle = 0
        self._lock = threading.Lock()
        self._jobs: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()

    def run(self, job: Callable[[], None]) -> None:
        with self._lock:
            if self._idle > 0:
                self._idle -= 1
            elif self._started < self._size:
                self._started += 1
                threading.Thread(
                    target=self._serve, name=f"{self._name}-{self._started}", daemon=True
                ).start()
            self._jobs.put(job)

    def stop(self) -> None:
        with self._lock:
            for _ in range(self._started):
                self._jobs.put(None)

    def _serve(self) -> None:
        while True:
            job = self._jobs.get()
            if job is None:
                return
            job()
            with self._lock:
                if self._jobs.empty():
                    self._idle += 1


class ThreadedActor(LocalActor):
    """Calls run beside each other in threads; each concurrency group has its own."""

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self._threads: dict[str | None, _Threads] = {}
        self._is_created = threading.Event()

    def _boot(self, creation: Call) -> None:
        name = f"minray-{self.definition.name}"
        sizes: dict[str | None, int] = {
            None: self.options["max_concurrency"],
            **self.options["concurrency_groups"],
        }
        self._threads = {group: _Threads(f"{name}-{group or 'main'}", size) for group, size in sizes.items()}
        self._is_created = is_created = threading.Event()

        def run() -> None:
            try:
                self.rt.wait_for_arguments(creation)
                run_inline(creation, self.construct)
                self.created(creation)
            finally:
                is_created.set()
            self.end_if_idle()

        # Not in a pool: with a single thread there, calls that wait for it would starve it.
        threading.Thread(target=run, name=f"{name}-init", daemon=True).start()

    def _take(self, call: Call) -> None:
        is_created = self._is_created

        def job() -> None:
            is_created.wait()
            if not call.done:
                try:
                    self.rt.wait_for_arguments(call)
                    self._run(call)
                except BaseException as error:  # a debugger's quit, the end of the session
                    call.fail(call.error_value(error))
            self.answered(call)

        self._threads[call.group].run(job)

    def _run(self, call: Call) -> None:
        if call.stream is None:
            run_inline(call, lambda *args, **kwargs: self.function(call.method)(*args, **kwargs))
            return
        stream: LocalStream = call.stream
        token = CONTEXT.set(call.context)
        try:
            args, kwargs = call.arguments()
            for item in self.function(call.method)(*args, **kwargs):
                stream.add(VALUE, encode(item))
                with self.rt.objects.changed:
                    while stream.full() and not stream.ended and not stream.abandoned:
                        self.rt.objects.changed.wait()
                if stream.ended or stream.abandoned or call.context.canceled:
                    break
        except BaseException as error:  # all that user code raises is the call's outcome
            stream.end(call.error_value(error))
        else:
            stream.end()
        finally:
            CONTEXT.reset(token)

    def add_stream(self, call: Call, backpressure: int) -> LocalStream:
        """A generator method: fed from its thread."""
        stream = LocalStream(call, backpressure)
        stream.on_taken = self.rt.notify_all
        return stream

    def die(self, cause: dict[str, Any]) -> None:
        """As in the base class."""
        super().die(cause)
        self._stop_serving()

    def _stop_serving(self) -> None:
        for threads in self._threads.values():
            threads.stop()
