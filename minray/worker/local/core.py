"""Local mode's core: objects, streams, who runs now, and what a waiting thread does meanwhile.

The lower half of the local runtime, which ``actor_ops`` and ``local`` build on. A thread that waits
runs what was *deferred*: calls whose arguments were not there when they were submitted.

Invariants: whatever settles an object notifies ``objects.changed``, so no waiter oversleeps; a deferred call
is run by exactly one thread; user code runs under no lock.
"""

from __future__ import annotations

import itertools
import logging
import os
import threading
import time
from collections import deque
from collections.abc import Callable
from typing import Any, Protocol

from minray import object_ref
from minray._base import resources as res
from minray.exceptions import GetTimeoutError, RaySystemError
from minray.object_ref import ObjectRef, Owner, make_generator
from minray.worker import errors
from minray.worker.contract import Submitted, TaskContext
from minray.worker.functions import dumps_function
from minray.worker.local.calls import CONTEXT, Call, ErrorReport, result_id, run_inline
from minray.worker.local.objects import ERROR, PENDING, VALUE, LocalObject, ObjectTable, encode
from minray.worker.local.streams import LocalStream, PulledStream

log = logging.getLogger("minray")

JOB_ID = b"\x01\x00\x00\x00"
SAY_AFTER_S = 10.0  # a wait that takes this long says on what
KEEP_ERRORS = 100
ENDED = "the session has ended: minray.shutdown() was called"


class Stalled(Protocol):
    """An actor whose next call waits for its arguments."""

    def pump(self) -> None: ...

    def can_run(self) -> bool: ...


class LocalCore:
    """See contract.Runtime."""

    session: dict[str, Any]  # what LocalRuntime adds
    node_id: bytes  # this, too

    def __init__(self, env_vars: dict[str, str]) -> None:
        self.job_id = JOB_ID
        self.env_vars = env_vars
        self.only_looking = False  # code is pickled to see whether it can be: nothing leaves
        self.closed = False
        self.objects = ObjectTable(self)
        self.release: Callable[[bytes], None] = self.objects.released.append
        self._released_streams: deque[bytes] = deque()
        self.release_stream: Callable[[bytes], None] = self._released_streams.append
        self._prefix = os.urandom(12)
        self._actor_prefix = os.urandom(12)
        self._numbers = itertools.count(1)
        self._calls: dict[bytes, Call] = {}  # unanswered, by task id
        self._deferred: deque[tuple[Call, Callable[..., Any]]] = deque()
        self.stalled: set[Stalled] = set()
        self._streams: dict[bytes, LocalStream] = {}
        self._lazy: dict[bytes, PulledStream] = {}  # by the id of the object that tells its end
        self._errors: deque[ErrorReport] = deque(maxlen=KEEP_ERRORS)
        self._taken: dict[str, int] = {}  # resources in use, in units
        self._driver = TaskContext(task_id=self.new_task_id(), env_vars=self.env_vars)

    def handle_gone(self, object_id: bytes) -> None:
        """An object is gone. Overridden by who cares."""

    # --- calls ------------------------------------------------------------------------------------

    def _run(self, call: Call, function: Callable[..., Any]) -> None:
        # what runs in a placement group takes of what the group has taken
        taken = {} if call.context.placement_group_id else res.to_units(call.context.resources)
        self.take_resources(taken)
        try:
            run_inline(call, function)
        finally:
            self.take_resources(taken, -1)

    def context(self) -> TaskContext:
        """See the contract."""
        return CONTEXT.get() or self._driver

    def new_task_id(self, *, of_actor: bool = False) -> bytes:
        """The next one: 24 bytes. Calls of actors have a prefix of their own."""
        prefix = self._actor_prefix if of_actor else self._prefix
        return prefix + next(self._numbers).to_bytes(8, "big") + JOB_ID

    def new_context(self, name: str, function_name: str, *, of_actor: bool = False) -> TaskContext:
        """That of a call submitted here and now."""
        return TaskContext(
            task_id=self.new_task_id(of_actor=of_actor),
            task_name=name,
            function_name=function_name,
            depth=self.context().depth + 1,
        )

    def add_call(self, call: Call) -> list[ObjectRef[Any]]:
        """Note an unanswered call; refs of its results."""
        self._calls[call.task_id] = call
        return [self.objects.new(object_id) for object_id in call.result_ids()]

    def add_stream(self, stream: LocalStream) -> Submitted:
        """Note a stream; the generator over it."""
        self._streams[stream.call.task_id] = stream
        self._calls[stream.call.task_id] = stream.call
        if isinstance(stream, PulledStream):
            self._lazy[result_id(stream.call.task_id, 1)] = stream
        return make_generator(stream.call.task_id, self)

    def forget_call(self, call: Call) -> None:
        """It is answered."""
        self._calls.pop(call.task_id, None)

    @staticmethod
    def submitted(call: Call, refs: list[ObjectRef[Any]]) -> Submitted:
        """What ``.remote()`` returns."""
        if call.num_returns in (1, "dynamic"):
            return refs[0]
        return refs or None

    def note_error(self, error_value: tuple[Any, ...], name: str) -> None:
        """For ``error_info()``."""
        self._errors.append(ErrorReport(error_value, name))

    def take_resources(self, units: dict[str, int], sign: int = 1) -> None:
        """Account for what starts (or, with sign -1, ends)."""
        with self.objects.changed:
            for name, amount in units.items():
                self._taken[name] = self._taken.get(name, 0) + sign * amount

    def check_portable(self, definition: Any, code: Any, name: str) -> None:
        """Code runs here as it is, but what could not go to a worker is refused as it would be there."""
        if definition.exported is self:
            return
        self.only_looking = True
        try:
            dumps_function(code, name)
        finally:
            self.only_looking = False
        definition.exported = self

    def infeasible(self, units: dict[str, int]) -> str | None:
        """Why this machine can never satisfy a request; None if it can."""
        totals = res.to_units(self.session["totals"])
        if all(totals.get(name, 0) >= amount for name, amount in units.items()):
            return None
        return f"It needs {res.from_units(units)}, and this machine has {self.session['totals']} in all."

    # --- objects ----------------------------------------------------------------------------------

    def put(self, value: Any) -> ObjectRef[Any]:
        """See the contract."""
        self.enter()
        object_id = result_id(self.new_task_id(), 0)
        encoded = encode(value)
        ref = self.objects.new(object_id)
        self.objects.settle(object_id, VALUE, encoded)
        return ref

    def get(self, refs: list[ObjectRef[Any]], timeout: float | None) -> list[Any]:
        """See the contract."""
        self.enter()
        found = [self.objects.find(ref) for ref in refs]

        def done() -> bool:
            pending = False
            for each in found:
                if each.status == ERROR:
                    return True
                pending = pending or each.status == PENDING
            return not pending

        if not self.wait_until(done, timeout, refs):
            raise GetTimeoutError(
                f"get() timed out after {timeout} s: {sum(each.status == PENDING for each in found)} of "
                f"{len(refs)} objects are not ready, e.g. {self._describe(refs)}"
            )
        for each in found:
            if each.status == ERROR:
                raise errors.to_exception(each.value)
        return [self.objects.read(each) for each in found]

    def wait(
        self, refs: list[ObjectRef[Any]], num_returns: int, timeout: float | None, fetch_local: bool
    ) -> tuple[list[ObjectRef[Any]], list[ObjectRef[Any]]]:
        """See the contract."""
        self.enter()
        found = [self.objects.find(ref) for ref in refs]
        self.wait_until(lambda: sum(each.status != PENDING for each in found) >= num_returns, timeout, refs)
        ready: list[ObjectRef[Any]] = []
        rest: list[ObjectRef[Any]] = []
        for ref, each in zip(refs, found, strict=True):
            is_ready = each.status != PENDING and len(ready) < num_returns
            (ready if is_ready else rest).append(ref)
        return ready, rest

    def on_ready(self, ref: ObjectRef[Any], callback: Callable[[], None]) -> None:
        """See the contract."""
        found: LocalObject = self.objects.find(ref)
        if self.closed or not self.objects.when_settled(found, callback):
            callback()
        elif self._deferred or ref._id in self._lazy or self.stalled:
            # Nobody blocks who could run what was deferred: a thread does it.
            threading.Thread(
                target=self._see_to, args=(ref, found), name="minray-local-deferred", daemon=True
            ).start()

    def _see_to(self, ref: ObjectRef[Any], found: LocalObject) -> None:
        try:
            self.wait_until(lambda: found.status != PENDING, None, [ref])
        except RaySystemError:
            pass  # the session has ended, and shutdown has told the callback

    def pin_forever(self, ref: ObjectRef[Any]) -> Owner | None:
        """See the contract."""
        if not self.only_looking:
            self.objects.pin(ref._id)
        return None

    def adopt_ref(self, object_id: bytes, owner: Owner | None) -> ObjectRef[Any]:
        """See the contract."""
        try:
            return self.objects.again(object_id)
        except ValueError:  # of another session: a name that leads nowhere, as get() will say
            return object_ref.ObjectRef(object_id)

    def object_locations(self, refs: list[ObjectRef[Any]]) -> list[tuple[list[bytes], int | None, bool]]:
        """See the contract."""
        there: list[tuple[list[bytes], int | None, bool]] = []
        for ref in refs:
            found = self.objects.find(ref)
            if found.status == VALUE:
                data, buffers = found.value[:2]
                there.append(([self.node_id], len(data) + sum(map(len, buffers)), False))
            else:
                there.append(([], None, False))
        return there

    # --- streams ----------------------------------------------------------------------------------

    def stream_next(self, stream_id: bytes, timeout: float | None) -> ObjectRef[Any] | None:
        """See the contract."""
        self.enter()
        return self._streams[stream_id].take(timeout)

    def stream_peek(self, stream_id: bytes) -> ObjectRef[Any]:
        """See the contract."""
        self.enter()
        return self._streams[stream_id].peek()

    def stream_finished(self, stream_id: bytes) -> bool:
        """See the contract."""
        return self._streams[stream_id].finished()

    def stream_completed_ref(self, stream_id: bytes) -> ObjectRef[Any]:
        """See the contract."""
        return self._streams[stream_id].completed()

    # --- waiting and what is done meanwhile ---------------------------------------------------------

    def enter(self) -> None:
        """At each call of the user: apply releases, run what was deferred and can run now."""
        if self.closed:
            raise RaySystemError(ENDED)
        self.collect()
        if self._deferred or self.stalled:
            self.pump()

    def collect(self) -> None:
        """Let go of what ``__del__`` gave back: objects, streams, actors."""
        while self._released_streams:
            stream = self._streams.pop(self._released_streams.popleft(), None)
            if stream is not None:
                self._lazy.pop(result_id(stream.call.task_id, 1), None)
                stream.abandon()
        while self.objects.released:
            for object_id in self.objects.drain():
                self.handle_gone(object_id)

    def pump(self) -> None:
        """Run what was deferred and can run now, on this thread."""
        for actor in list(self.stalled):
            actor.pump()
        progress = True
        while progress:
            progress = False
            for _ in range(len(self._deferred)):
                try:
                    call, function = self._deferred.popleft()
                except IndexError:  # another thread was faster
                    break
                if call.ready():
                    self._run(call, function)
                    progress = True
                else:
                    self._deferred.append((call, function))

    def _can_run_more(self) -> bool:
        return any(call.ready() for call, _ in self._deferred) or any(
            actor.can_run() for actor in self.stalled
        )

    def wait_for_arguments(self, call: Call) -> None:
        """Until the references among a call's arguments have their values."""
        if call.top and not call.ready():
            self.wait_until(call.ready, None, [ref for _, ref in call.top])

    def notify_all(self) -> None:
        """Wake whoever waits for a change."""
        with self.objects.changed:
            self.objects.changed.notify_all()

    def wait_until(self, done: Callable[[], bool], timeout: float | None, refs: list[ObjectRef[Any]]) -> bool:
        """Wait for ``done()``, running what was deferred meanwhile. False after ``timeout`` seconds."""
        changed = self.objects.changed
        if done():
            return True
        self._run_lazy(refs)
        started = time.monotonic()
        told = False
        while True:
            self.pump()
            with changed:
                if done():
                    return True
                if self.closed:
                    raise RaySystemError(ENDED)
                if self._can_run_more():
                    continue
                waited = time.monotonic() - started
                left = None if timeout is None else timeout - waited
                if left is not None and left <= 0:
                    return False
                until_told = None if told else max(0.0, SAY_AFTER_S - waited)
                changed.wait(min((s for s in (left, until_told) if s is not None), default=None))
            if not told and time.monotonic() - started >= SAY_AFTER_S:
                told = True
                log.warning(
                    "waiting for over %.0f s for %s. In local mode tasks run inside .remote(): a task that "
                    "waits for a later call of its own caller never ends.",
                    SAY_AFTER_S,
                    self._describe(refs),
                )

    def _run_lazy(self, refs: list[ObjectRef[Any]]) -> None:
        if self._lazy:
            for ref in refs:
                stream = self._lazy.get(ref._id)
                if stream is not None:
                    stream.run_to_end()

    def _describe(self, refs: list[ObjectRef[Any]]) -> str:
        """The first of ``refs`` that is not ready, and what makes it."""
        for ref in refs:
            if self.objects.find(ref).status == PENDING:
                call = self._calls.get(ref._id[:24])
                return f"{ref} of {call.name}" if call is not None else repr(ref)
        return "nothing"
