"""The contract between the public face and a runtime: what a core worker offers to ``minray.*``.

Two classes keep it: ``worker.service`` (processes, sockets, shared memory) and ``worker.local`` (local mode:
everything in this process, one thing at a time). The face finds the process's runtime in ``_base.current``
and calls nothing else. ``util`` and the CLI use the face alone.

Division of labour. The *face* validates: types, options, signatures, counts, "is this a ref"; it resolves
defaults, so that a runtime sees complete options. The *runtime* does the work, and raises what only it can
know: unpicklable arguments, taken names, PendingCallsLimitExceeded, a wait that may not block here.

Invariants that both keep:

* a ref handed out is counted once per ObjectRef made (``object_ref.make_ref``), and ``release`` takes one
  count back; an actor's handles are counted by a hidden reference, ``ActorRecord.handle_ref``, an
  ordinary counted object that the actor's creator owns: when nobody references it, the actor is out of scope;
* ``release`` and ``release_stream`` are called from ``__del__``, on any thread, inside any lock: they append
  to a queue and return;
* nothing that a runtime caches may be referenced *and* reference back an ActorRecord (a cycle would keep
  an actor alive until the next garbage collection).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

from minray.object_ref import ObjectRef, ObjectRefGenerator, Owner
from minray.worker.call_shape import CallShape

if TYPE_CHECKING:
    from minray._base.options import ActorOptions, MethodOptions, TaskOptions

Submitted = ObjectRef[Any] | list[ObjectRef[Any]] | ObjectRefGenerator[Any] | None
"""What a submission returns, by ``num_returns``: 1 → a ref; n > 1 → a list of n; 0 → None;
"dynamic" → a ref of a DynamicObjectRefGenerator; "streaming" → an ObjectRefGenerator."""


@dataclass(slots=True, eq=False)
class FunctionDef:
    """A remote function, one per decoration, shared by all that ``.options()`` makes of it."""

    function: Callable[..., Any]
    name: str  # as messages call it: the function's __qualname__ or __name__
    module: str
    shape: CallShape
    is_generator: bool  # a generator function: streams unless its options say otherwise
    exported: Any = None  # the runtime's own: e.g. (job, function id, pickled code), so that it pickles once


@dataclass(frozen=True, slots=True)
class MethodMeta:
    """What a handle knows of one method. Travels inside handles; pickles (by the runtime's pickler)."""

    name: str
    shape: CallShape  # without self
    declared: dict[str, Any] = field(default_factory=dict)  # what @method(...) said, as it was written
    is_async: bool = False  # coroutine function or async generator function
    is_generator: bool = False  # generator function or async generator function


@dataclass(slots=True, eq=False)
class ActorClassDef:
    """An actor class, one per decoration, shared by all that ``.options()`` makes of it."""

    cls: type
    name: str  # the class's __name__: messages, repr, log lines
    module: str
    shape: CallShape  # of __init__, without self
    methods: dict[str, MethodMeta]  # all that can be called, __init__ included, implicit ones not
    is_async: bool  # at least one method is a coroutine function or async generator function
    exported: Any = None  # the runtime's own cache


class ActorRecord:
    """What a handle is made of; ActorHandle and its methods share one. Compared by identity.

    ``options`` are built-in values: ``name``, ``namespace``, ``lifetime``, ``max_restarts``,
    ``max_task_retries``, ``max_pending_calls``, ``max_concurrency``, ``concurrency_groups``, ``is_async``,
    ``allow_out_of_order_execution``; a runtime may add its own.
    """

    __slots__ = (
        "__weakref__",
        "actor_id",
        "class_name",
        "handle_ref",
        "job_id",
        "methods",
        "options",
        "private",
        "runtime",
    )

    def __init__(
        self,
        actor_id: bytes,
        job_id: bytes,
        class_name: str,
        methods: dict[str, MethodMeta],
        options: dict[str, Any],
        handle_ref: ObjectRef[Any] | None,
        runtime: Any,
    ) -> None:
        self.actor_id = actor_id  # 16 bytes
        self.job_id = job_id  # 4 bytes: of the job that created it
        self.class_name = class_name
        self.methods = methods
        self.options = options
        self.handle_ref = handle_ref  # None: a weak handle (get_actor, the actor's own)
        self.runtime = runtime  # the Runtime that made this record; None if unpickled without one
        self.private: Any = None  # the runtime's own, e.g. its sending queue for this actor

    def __repr__(self) -> str:
        kind = "weak" if self.handle_ref is None else "counted"
        return f"ActorRecord({self.class_name}, {self.actor_id.hex()}, {kind})"


@dataclass(slots=True)
class TaskContext:
    """What runs on the asking thread (or asyncio task). Outside any task all is None or empty."""

    task_id: bytes | None = None  # 24 bytes; in a driver its driver task
    task_name: str | None = None  # option ``name`` or the function's name; "A.m" for a method
    function_name: str | None = None  # e.g. "module.f" or "module.A.m"
    actor_id: bytes | None = None
    actor_name: str | None = None
    class_name: str | None = None
    attempt: int = 0
    incarnation: int = 0  # of the actor: above 0 after a restart
    depth: int = 0  # nesting: 0 in a driver, 1 in a task that it submitted
    resources: dict[str, float] = field(default_factory=dict)  # assigned, in public units: {"CPU": 1.0}
    resource_ids: dict[str, list[tuple[int, float]]] = field(default_factory=dict)  # {"GPU": [(0, 1.0)]}
    gpu_ids: list[int | str] = field(default_factory=list)  # as CUDA_VISIBLE_DEVICES names them
    env_vars: dict[str, str] = field(default_factory=dict)  # runtime_env's
    placement_group_id: bytes | None = None
    capture_child_tasks: bool = False
    canceled: bool = False  # set by the runtime when this task is cancelled


class Runtime(Protocol):
    """One process's runtime. Thread-safe, but for what ``shutdown`` says.

    After ``shutdown`` each method raises RaySystemError at once (``release*`` do nothing), and waiters that
    were asleep are woken with the same error.
    """

    job_id: bytes  # 4 bytes
    worker_id: bytes  # 28 bytes
    node_id: bytes  # 28 bytes
    namespace: str
    mode: str  # "driver", "worker" or "local"
    session: dict[str, Any]
    """What Registered.session says (name, dir, temp_dir, log_dir, totals, labels, node_name, …) plus
    ``node_address`` (IP) and ``gcs_endpoint`` (host:port or unix:/path)."""

    # --- tasks ------------------------------------------------------------------------------------

    def prepare_task(self, function: FunctionDef, options: TaskOptions) -> Any:
        """All that can be known before the arguments are: an opaque value that the face keeps and hands to
        ``submit_task``. Called once per (function, options); must be cheap from the second options of
        one function on. Pickles the function (by value; TypeError with the path to what cannot be
        pickled; warns above 10 MB, ValueError above 100 MB)."""
        ...

    def submit_task(self, prepared: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Submitted:
        """Queue one call. Never blocks. Top-level ObjectRefs among args and kwargs are dependencies."""
        ...

    # --- actors -----------------------------------------------------------------------------------

    def create_actor(
        self,
        actor_class: ActorClassDef,
        options: ActorOptions,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
    ) -> ActorRecord:
        """Order a new actor. A name is claimed before this returns: ActorAlreadyExistsError if it is taken,
        or, with get_if_exists, the weak record of whoever has it."""
        ...

    def prepare_method(
        self, actor: ActorRecord, method: str, options: MethodOptions, meta: MethodMeta
    ) -> Any:
        """As ``prepare_task``, for one method of one actor. ``options`` is complete: num_returns is never
        None; max_task_retries and retry_exceptions may be None: then the actor's hold. ``method`` may be
        one of IMPLICIT_METHODS. Must not keep ``actor`` itself (see the invariants); its
        ``actor_id`` and ``private`` are what calls need, and the face keeps the record while it can call."""
        ...

    def submit_actor_task(self, prepared: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Submitted:
        """Queue one call. Never blocks; raises PendingCallsLimitExceeded. The actor's hidden reference is
        held until the call is answered, so that ``Foo.remote().m.remote()`` works."""
        ...

    def get_actor(self, name: str, namespace: str | None) -> ActorRecord:
        """A weak record. None: this job's namespace. ValueError if nobody has that name."""
        ...

    def adopt_actor(
        self,
        actor_id: bytes,
        job_id: bytes,
        class_name: str,
        methods: dict[str, MethodMeta],
        options: dict[str, Any],
        handle_ref: ObjectRef[Any] | None,
    ) -> ActorRecord:
        """The record of a handle that has just been unpickled here. ``handle_ref`` came with it, like
        any nested ref, and so is counted already."""
        ...

    def kill_actor(self, actor_id: bytes, no_restart: bool) -> None:
        """End it at once, without atexit. ActorHandleNotFoundError if this cluster never knew it."""
        ...

    def exit_actor(self) -> None:
        """Called on a thread or asyncio task of an actor (the face has checked): raises what ends it."""
        ...

    # --- objects ----------------------------------------------------------------------------------

    def put(self, value: Any) -> ObjectRef[Any]:
        """Store it; this process owns it. ObjectStoreFullError."""
        ...

    def get(self, refs: list[ObjectRef[Any]], timeout: float | None) -> list[Any]:
        """Their values, in order. Raises the first error met without waiting for the others;
        GetTimeoutError after ``timeout`` seconds (None: no limit; 0: poll, and a value that is there
        is returned). The same ref may occur more than once. ValueError for a ref of no known owner."""
        ...

    def wait(
        self, refs: list[ObjectRef[Any]], num_returns: int, timeout: float | None, fetch_local: bool
    ) -> tuple[list[ObjectRef[Any]], list[ObjectRef[Any]]]:
        """(ready, rest): at most ``num_returns`` are ready, both keep the order of ``refs``, and contain
        the very ObjectRefs given. The face has checked: no duplicates, 1 ≤ num_returns ≤ len(refs)."""
        ...

    def on_ready(self, ref: ObjectRef[Any], callback: Callable[[], None]) -> None:
        """Call ``callback()`` once, when ``get([ref], 0)`` would not raise GetTimeoutError any more; at once,
        in this call, if that is so now; also when the runtime shuts down. It may run on any thread,
        must not block, and raises nothing. ``await ref`` and ``ref.future()`` are built on it alone."""
        ...

    def object_locations(self, refs: list[ObjectRef[Any]]) -> list[tuple[list[bytes], int | None, bool]]:
        """For each: ids of the nodes that have it, as far as this process and its node know; its size in
        bytes; whether this node has it on disk. ([], None, False) while it is not there, or of an error."""
        ...

    def cancel(self, ref: ObjectRef[Any], force: bool, recursive: bool) -> None:
        """Cancel the task that makes ``ref`` (a generator's ``completed()`` names its task). Nothing if
        it is finished or was a put. ValueError for force=True on an actor's task."""
        ...

    def release(self, object_id: bytes) -> None:
        """One ObjectRef is gone (``__del__``): append to a queue, nothing else. May be an attribute."""
        ...

    def pin_forever(self, ref: ObjectRef[Any]) -> Owner | None:
        """``ref`` leaves by plain pickle: its object lives as long as its owner. The owner's address."""
        ...

    def adopt_ref(self, object_id: bytes, owner: Owner | None) -> ObjectRef[Any]:
        """The ref of a pinned object that came in by plain pickle. ``owner`` may be this process."""
        ...

    # --- streams ----------------------------------------------------------------------------------
    #
    # Item i of stream s is the object s + (i + 2) as 4 bytes little-endian; its end is the object of index 1.

    def stream_next(self, stream_id: bytes, timeout: float | None) -> ObjectRef[Any] | None:
        """Take the next item; its value (or error) is there. None: the stream has ended and all is taken.
        GetTimeoutError after ``timeout`` seconds. An error of the task is one last item. Taking an item
        is what backpressure counts."""
        ...

    def stream_peek(self, stream_id: bytes) -> ObjectRef[Any]:
        """The ref that the next ``stream_next`` will return, not taken. It becomes ready when the item, or
        the end, is there (its ``get`` then raises ObjectRefStreamEndOfStreamError)."""
        ...

    def stream_finished(self, stream_id: bytes) -> bool:
        """Whether the stream has ended and all was taken. Never blocks."""
        ...

    def stream_completed_ref(self, stream_id: bytes) -> ObjectRef[Any]:
        """The object of index 1: ready when the task has ended. None, also if the body raised; ``get`` raises
        if the task was cancelled, its process died, or an argument could not be computed."""
        ...

    def release_stream(self, stream_id: bytes) -> None:
        """The generator is gone: what was not taken may go. Append to a queue, nothing else."""
        ...

    # --- placement groups ---------------------------------------------------------------------------

    def create_group(self, spec: dict[str, Any]) -> Callable[[], None] | None:
        """Ask for a group (``spec``: see gcs.placement_groups). None: the cluster knows it. Else a function that
        waits until it does: call it before any other process can hear of the group. RaySystemError if a name is
        taken; what no node could ever hold is warned of."""
        ...

    def wait_for_group(self, group_id: bytes, timeout: float | None) -> bool:
        """Whether the group is there within ``timeout`` seconds (None: no limit). ValueError if it is removed,
        now or before, or was never known."""
        ...

    def remove_group(self, group_id: bytes, *, wait: bool) -> Callable[[], None] | None:
        """Give its resources back. Nothing if it is removed already, or was never known. Without ``wait`` it may be
        returned what waits until it is done: call that before another process hears of the group."""
        ...

    # --- about itself -----------------------------------------------------------------------------

    def context(self) -> TaskContext:
        """What runs on this thread, or in this asyncio task."""
        ...

    def current_actor(self) -> ActorRecord:
        """A weak record of the actor that runs on this thread (the face has checked that one does)."""
        ...

    def gcs(self, method: str, *args: Any) -> Any:
        """One request to the GCS (see gcs.service for the methods): its answer, or the error it names.
        Local mode answers: nodes, cluster_resources, available_resources, list_named_actors, kv_*, and those
        of placement groups."""
        ...

    def error_info(self) -> list[dict[str, Any]]:
        """The latest errors of this job's tasks, oldest first: {"type": "task", "message": str, …}."""
        ...

    def shutdown(self, exiting: bool = False) -> None:
        """End it: a driver's session, or this process's part in it. Idempotent; from any thread but one
        that runs a task. The face clears ``_base.current`` itself."""
        ...


READY_METHOD = "__ray_ready__"  # no arguments; True
CALL_METHOD = "__ray_call__"  # (function, *args, **kwargs): function(instance, *args, **kwargs)
TERMINATE_METHOD = "__ray_terminate__"  # no arguments; ends the actor gracefully after what is queued
IMPLICIT_METHODS: dict[str, MethodMeta] = {
    READY_METHOD: MethodMeta(READY_METHOD, CallShape((), 0, 0, False, (), False)),
    CALL_METHOD: MethodMeta(CALL_METHOD, CallShape(("fn",), 1, 1, True, (), True)),
    TERMINATE_METHOD: MethodMeta(TERMINATE_METHOD, CallShape((), 0, 0, False, (), False)),
}
SHUTDOWN_HOOK = "__ray_shutdown__"  # called on the instance on a graceful end, never on a kill
