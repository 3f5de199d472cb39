"""Submitting: from a call of ``.remote()`` to a Task in the core, for functions and for actors' methods.

What can be known before the arguments are is made once (``prepare_task``, ``prepare_method``). Per call:
encode the arguments (outside the lock), number the task, hand it to the core (inside). A call made on a
thread that is inside the runtime already is left in the inbox, in order.
"""

from __future__ import annotations

from functools import partial
from time import monotonic
from typing import TYPE_CHECKING, Any

from minray._base.options import resolve_num_returns
from minray.exceptions import ActorHandleNotFoundError, PendingCallsLimitExceeded
from minray.object_ref import ObjectRef, make_generator, make_ref
from minray.worker.functions import dumps_function
from minray.worker.groups import GroupOps
from minray.worker.running import RUNNING
from minray.worker.serialization import Serialized, serialize
from minray.worker.tasks import DYNAMIC, STORED, STREAMING, Function, SchedulingKey, Task
from minray.worker.unpicklable import explain_unpicklable

if TYPE_CHECKING:
    from minray._base.options import MethodOptions, TaskOptions
    from minray.worker.contract import ActorRecord, FunctionDef, MethodMeta

NO_ARGUMENTS = b""
GPU = "GPU"


def wire_num_returns(num_returns: int | str) -> int:
    """A count, STREAMING or DYNAMIC."""
    if num_returns == "streaming":
        return STREAMING
    if num_returns == "dynamic":
        return DYNAMIC
    return int(num_returns)


class PreparedMethod:
    """One method of one actor under one set of options. Keeps no ActorRecord alive."""

    __slots__ = ("actor_id", "backpressure", "extra", "handle_id", "name", "num_returns", "retries")

    def __init__(
        self, actor_id: bytes, handle_id: bytes | None, name: str, num_returns: int, retries: int
    ) -> None:
        self.actor_id = actor_id
        self.handle_id = handle_id
        self.name = name
        self.num_returns = num_returns
        self.retries = retries
        self.extra: dict[str, Any] | None = None


class Submission(GroupOps):
    """prepare and submit."""

    depth = 0  # of the tasks that run here: 0 in a driver
    _function_count = 0

    def _init_submission(self) -> None:
        self._keys: dict[Any, SchedulingKey] = {}
        self.removed_groups = {}

    # -- tasks ---------------------------------------------------------------------------------------

    def prepare_task(self, definition: FunctionDef, options: TaskOptions) -> Function:
        """See the contract."""
        exported = definition.exported
        if exported is None or exported[0] != self.job_id:
            blob = dumps_function(definition.function, definition.name)
            exported = definition.exported = (self.job_id, blob)
        num_returns = wire_num_returns(
            resolve_num_returns(options.num_returns, definition.is_generator, repr(definition.name))
        )
        retry: Any = options.retry_exceptions
        meta = {
            "name": options.name or definition.name,
            "function": f"{definition.module}.{definition.name}",
            "n": num_returns,
            "retry": retry if isinstance(retry, bool) else dumps_function(retry, "retry_exceptions"),
            "once": options.max_retries == 0,
            "max_calls": options.max_calls,
            "backpressure": options.backpressure,
            "env_vars": dict(options.env_vars),
        }
        self.check_group(options.group, options.name or definition.name)
        return self._function(exported[1], options, meta, num_returns)

    def _function(
        self, blob: bytes, options: TaskOptions, meta: dict[str, Any], num_returns: int
    ) -> Function:
        with self.lock:
            key = self._key(options, meta["name"])
            self._function_count += 1
            return Function(
                self._function_count,
                blob,
                meta["name"],
                key,
                num_returns=num_returns,
                max_retries=options.max_retries,
                max_calls=options.max_calls,
                meta={**meta, "depth": key.depth + 1, "group": self.group_for(options.group)},
                options=options,
            )

    def _key(self, options: Any, description: str) -> SchedulingKey:
        name = (options.scheduling_key, self.depth)
        key = self._keys.get(name)
        if key is None:
            key = self._keys[name] = SchedulingKey(
                len(self.core.owner.keys) + 1,
                dict(options.resources),
                options.strategy,
                dict(options.env_vars),
                self.depth,
                f"task {description}",
                pipelined=options.max_calls == 0 and not options.plain_resources.get(GPU),
                retires=options.max_calls > 0,
                again=options.max_retries != 0,
            )
            self.core.owner.keys[key.number] = key
        return key

    def submit_task(self, function: Function, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """See the contract."""
        key = function.key
        if key.depth != self.depth or self.scoped:
            function = self._in_this_scope(function)
        payload: Any = NO_ARGUMENTS
        task = Task(self.core.next_seq(), function, payload, None, function.num_returns, function.max_retries)
        keep = self._encode_arguments(task, args, kwargs) if args or kwargs else None
        return self._submit(task, keep)

    def _in_this_scope(self, function: Function) -> Function:
        """The same function, submitted from a task that is nested elsewhere, or into its placement group."""
        self.check_group(function.options.group, function.name)
        if function.key.depth == self.depth and self.captured is None:
            return function
        name = (function.function_id, self.depth, self.captured)
        again = self._deeper.get(name)
        if again is None:
            options = function.options
            if self.captured is not None and options.inherits:
                options = options.within(self.captured, function.name)
            again = self._function(function.blob, options, function.meta, function.num_returns)
            self._deeper[name] = again
        return again

    def _submit(self, task: Task, keep: Any) -> Any:
        """Hand it to the core, and make what the caller gets. ``keep``: argument refs, alive until then."""
        core = self.core
        if self.depth:
            task.parent = RUNNING.get()
        if self.owned():
            self.inbox.append(partial(self._submit_late, task, keep))
            n = 1 if task.num_returns == DYNAMIC else task.num_returns
            ids = [core.object_id(task.seq, 1 + i) for i in range(n)]
        else:
            with self.lock:
                if self.closed:
                    raise self.over()
                ids = core.submit(task, monotonic())
                if core.effects or self.inbox:
                    self.leave()
                if core.calls.dirty and not self._flush_told:
                    self._flush_told = True
                    self.reactor.call_soon(self._flush_calls)
            if not task.seq & 63:
                self.reactor.poll()  # a long loop of submissions also reads: nobody else may have the time
        n = task.num_returns
        if n == 1:
            return make_ref(ids[0], None, self)
        if n == STREAMING:
            return make_generator(core.task_id(task.seq), self)
        if n == DYNAMIC:
            return make_ref(ids[0], None, self)
        return [make_ref(i, None, self) for i in ids] if ids else None

    _flush_told = False
    _deeper: dict[Any, Function]

    def _submit_late(self, task: Task, _keep: Any) -> None:
        self.core.submit(task, monotonic())

    def _flush_calls(self) -> None:
        with self.lock:
            self._flush_told = False
            self.core.calls.flush()
            self.leave()

    # -- arguments -----------------------------------------------------------------------------------

    def _encode_arguments(self, task: Task, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Into the task: payload, top-level references, nested ones. Returns what must stay alive."""
        top: list[tuple[Any, bytes]] | None = None
        keep: list[Any] | None = None
        for i, value in enumerate(args):
            if isinstance(value, ObjectRef):
                if top is None:
                    top, keep, args = [], [], tuple(args)
                top.append((i, self._checked(value)))
                keep.append(value)  # type: ignore[union-attr]
        if kwargs:
            for name, value in kwargs.items():
                if isinstance(value, ObjectRef):
                    if top is None:
                        top, keep = [], []
                    top.append((name, self._checked(value)))
                    keep.append(value)  # type: ignore[union-attr]
        if top is not None:
            args = tuple(None if isinstance(a, ObjectRef) else a for a in args)
            kwargs = {k: None if isinstance(v, ObjectRef) else v for k, v in kwargs.items()}
            task.top = top
        try:
            s = serialize([args, kwargs] if kwargs else args, self.config.inline_limit)
        except TypeError as error:
            raise _unpicklable_argument(task.name, args, kwargs) or error from None
        if s.total > self.config.inline_limit:
            return keep, self._store_arguments(task, s)
        if not s.buffers and not s.refs:
            task.payload = s.data
            return keep
        me = self.core.me
        refs = [(self._checked(r), r._owner or me, False) for r in s.refs]
        task.payload = (s.data, [bytes(b) for b in s.buffers], refs)
        task.nested = tuple(r[0] for r in refs)
        return keep, s.refs

    def _store_arguments(self, task: Task, s: Serialized) -> Any:
        """Large arguments: an object of their own in shared memory, which lives as long as the task."""
        core = self.core
        object_id = core.object_id(task.seq, 0)
        stored = self.write(s, object_id)
        me = core.me
        self.store.report([(object_id, stored[0])])
        refs = [(self._checked(r), r._owner or me, False) for r in s.refs]

        def own() -> None:
            record = core.refs.own(object_id)
            record.status = STORED
            record.value = (*stored, refs)
            record.shared = True
            core.refs.set_contains(record, tuple(r[0] for r in refs))

        if self.owned():
            self.inbox.append(own)
        else:
            with self.lock:
                own()
        task.payload = ("stored", (*stored, refs), object_id, me)
        task.nested = (object_id,)
        return make_ref(object_id, None, self), s.refs

    def _checked(self, ref: ObjectRef[Any]) -> bytes:
        if ref._id not in self.core.objects and not self.owned():
            with self.lock:
                self.drain()
            if ref._id not in self.core.objects:
                self._unknown(ref)
        return ref._id

    # -- actors' methods -----------------------------------------------------------------------------

    def prepare_method(
        self, actor: ActorRecord, method: str, options: MethodOptions, meta: MethodMeta
    ) -> PreparedMethod:
        """See the contract."""
        assert options.num_returns is not None
        num_returns = wire_num_returns(options.num_returns)
        retries = options.max_task_retries
        if retries is None:
            retries = actor.options.get("max_task_retries", 0)
        handle_id = actor.handle_ref._id if actor.handle_ref is not None else None
        prepared = PreparedMethod(actor.actor_id, handle_id, method, num_returns, retries)
        extra: dict[str, Any] = {}
        if num_returns != 1:
            extra["n"] = num_returns
        if options.concurrency_group is not None:
            extra["group"] = options.concurrency_group
        if options.name is not None:
            extra["name"] = options.name
        if options.retry_exceptions:
            retry: Any = options.retry_exceptions
            extra["retry"] = retry if isinstance(retry, bool) else dumps_function(retry, "retry_exceptions")
        if options.backpressure is not None and options.backpressure > 0:
            extra["backpressure"] = options.backpressure
        if actor.job_id != self.job_id:
            extra["job"] = self.job_id  # its results are objects of ours, though the actor's job is another
        prepared.extra = extra or None
        return prepared

    def submit_actor_task(
        self, prepared: PreparedMethod, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        """See the contract."""
        actor = self.core.calls.actors.get(prepared.actor_id)
        if actor is None:
            raise ActorHandleNotFoundError(f"actor {prepared.actor_id.hex()} is not of this session")
        if 0 < actor.max_pending <= actor.pending():
            raise PendingCallsLimitExceeded(
                f"{actor.class_name}.{prepared.name}: {actor.pending()} calls are pending, "
                f"max_pending_calls={actor.max_pending}"
            )
        task = Task(
            self.core.next_seq(),
            prepared.name,
            NO_ARGUMENTS,
            prepared.extra,
            prepared.num_returns,
            prepared.retries,
        )
        task.actor = actor
        keep = self._encode_arguments(task, args, kwargs) if args or kwargs else None
        if prepared.handle_id is not None:
            task.nested = (*task.nested, prepared.handle_id)
        return self._submit(task, keep)


def _unpicklable_argument(name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> TypeError | None:
    """The error for the argument of ``name`` that cannot be pickled, with the path to the culprit."""
    for label, value in [*enumerate(args), *kwargs.items()]:
        try:
            serialize(value)
        except TypeError as error:
            path = explain_unpicklable(value, f"argument {label!r}")
            return TypeError(f"{name}.remote(): cannot pickle {path}: {error.__cause__ or error}")
    return None
