"""Local mode's part of the contract that is about actors, names and the cluster's tables.

The middle part of the local runtime (``core`` ← this ← ``local``); knows the actors, while
``actors`` knows how each runs.

Invariants: a name belongs to one living actor; the hidden object behind an actor's handles is in ``_handles``
while the actor lives; dead actors stay known, so that their calls can say why.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

from minray._base import resources as res
from minray.exceptions import ActorAlreadyExistsError, ActorHandleNotFoundError, RaySystemError
from minray.object_ref import ObjectRef
from minray.worker.contract import ActorClassDef, ActorRecord, MethodMeta, Submitted
from minray.worker.local.actors import ALIVE, CREATION, DEAD, InlineActor, LocalActor, ThreadedActor
from minray.worker.local.calls import NONE, ActorExit, Call, result_id
from minray.worker.local.groups import LocalGroupOps
from minray.worker.local.objects import VALUE

if TYPE_CHECKING:
    from minray._base.options import ActorOptions, MethodOptions

ASYNC_CONCURRENCY = 1000


class _PreparedMethod:
    """A method of one actor under one set of options. Does not keep the actor in scope."""

    __slots__ = ("actor", "meta", "method", "num_returns", "options", "retries")

    def __init__(self, actor: LocalActor, method: str, options: MethodOptions, meta: MethodMeta) -> None:
        assert options.num_returns is not None
        self.actor = actor
        self.method = method
        self.meta = meta
        self.options = options
        self.num_returns = options.num_returns
        retries = options.max_task_retries
        self.retries: int = actor.options["max_task_retries"] if retries is None else retries


class LocalActorOps(LocalGroupOps):
    """create_actor, submit_actor_task … of the contract."""

    # what LocalRuntime adds
    namespace: str
    node_id: bytes
    session: dict[str, Any]

    def __init__(self, env_vars: dict[str, str]) -> None:
        super().__init__(env_vars)
        self._actors: dict[bytes, LocalActor] = {}
        self._names: dict[tuple[str, str], LocalActor] = {}
        self._handles: dict[bytes, LocalActor] = {}  # hidden object id → actor
        self._hidden: dict[bytes, bytes] = {}  # actor id → hidden object id
        self._kv: dict[tuple[bytes, bytes], bytes] = {}

    # --- creation ---------------------------------------------------------------------------------

    def create_actor(
        self, actor_class: ActorClassDef, options: ActorOptions, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> ActorRecord:
        """See the contract. Runs ``__init__``, too, if the actor is an ordinary one."""
        self.enter()
        options = self.placed_actor(options, actor_class.name)
        namespace = self.namespace if options.namespace is None else options.namespace
        holder = self._names.get((namespace, options.name)) if options.name is not None else None
        if holder is not None:
            if options.get_if_exists:
                return self._record(holder, None)
            raise ActorAlreadyExistsError(
                f"an actor named {options.name!r} already exists in namespace {namespace!r} (a "
                f"{holder.definition.name}): choose another name, or use get_if_exists=True"
            )
        self.check_portable(actor_class, actor_class.cls, actor_class.name)
        actor = self._make(actor_class, options, namespace)
        self.enter_group(actor.home, options.group)
        creation = self.new_actor_call(actor, CREATION, 0)
        creation.take_arguments(args, kwargs)
        self._actors[actor.actor_id] = actor
        if options.name is not None:
            self._names[(namespace, options.name)] = actor
        self._take_for(actor)
        handle_ref = None
        if not options.detached:
            handle_ref = self.objects.new(result_id(self.new_task_id(), 0))
            self.objects.settle(handle_ref._id, VALUE, NONE)
            self._handles[handle_ref._id] = actor
            self._hidden[actor.actor_id] = handle_ref._id
        record = self._record(actor, handle_ref)
        lacking = self.unplaceable(options, options.placement_resources)
        if lacking is None:
            actor.create(creation)
        else:
            actor.die({"unschedulable": True, "text": lacking})
        return record

    def _make(self, actor_class: ActorClassDef, options: ActorOptions, namespace: str) -> LocalActor:
        concurrency = options.max_concurrency
        if concurrency is None:
            concurrency = ASYNC_CONCURRENCY if actor_class.is_async else 1
        kept = {
            "name": options.name,
            "namespace": namespace,
            "lifetime": "detached" if options.detached else None,
            "max_restarts": options.max_restarts,
            "max_task_retries": options.max_task_retries,
            "max_pending_calls": options.max_pending_calls,
            "max_concurrency": concurrency,
            "concurrency_groups": dict(options.concurrency_groups),
            "is_async": actor_class.is_async,
            "allow_out_of_order_execution": options.allow_out_of_order_execution,
        }
        kind: type[LocalActor] = InlineActor
        if actor_class.is_async:
            from minray.worker.local.event_loop import AsyncioActor

            kind = AsyncioActor
        elif concurrency > 1 or options.concurrency_groups:
            kind = ThreadedActor
        env_vars = {**self.env_vars, **options.env_vars}
        actor = kind(self, os.urandom(12) + self.job_id, actor_class, kept, env_vars)
        actor.resources = dict(options.plain_resources[1])
        return actor

    def _take_for(self, actor: LocalActor, sign: int = 1) -> None:
        """Account for a living actor; in a placement group the group has done so."""
        if actor.home.placement_group_id is None:
            self.take_resources(actor.resources, sign)

    def _record(self, actor: LocalActor, handle_ref: ObjectRef[Any] | None) -> ActorRecord:
        record = ActorRecord(
            actor.actor_id,
            self.job_id,
            actor.definition.name,
            actor.definition.methods,
            actor.options,
            handle_ref,
            self,
        )
        record.private = actor
        return record

    def adopt_actor(
        self,
        actor_id: bytes,
        job_id: bytes,
        class_name: str,
        methods: dict[str, MethodMeta],
        options: dict[str, Any],
        handle_ref: ObjectRef[Any] | None,
    ) -> ActorRecord:
        """See the contract."""
        actor = self._actors.get(actor_id)
        if actor is not None:
            return self._record(actor, handle_ref)
        # of another session: it can be looked at; using it says what it is
        return ActorRecord(actor_id, job_id, class_name, methods, options, handle_ref, None)

    # --- calls ------------------------------------------------------------------------------------

    def prepare_method(
        self, actor: ActorRecord, method: str, options: MethodOptions, meta: MethodMeta
    ) -> _PreparedMethod:
        """See the contract."""
        return _PreparedMethod(actor.private, method, options, meta)

    def submit_actor_task(
        self, prepared: _PreparedMethod, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Submitted:
        """See the contract. Runs it, too, if the actor is an ordinary one."""
        self.enter()
        actor, options = prepared.actor, prepared.options
        call = self.new_actor_call(actor, prepared.method, prepared.num_returns)
        if options.name is not None:
            call.context.task_name = options.name
        call.group = options.concurrency_group
        call.retries = prepared.retries
        call.wants_retry = options.wants_retry
        call.take_arguments(args, kwargs)
        hidden = self._hidden.get(actor.actor_id)
        if hidden is not None:
            call.hold = self.objects.again(hidden)
        if prepared.num_returns == "streaming":
            return self._submit_stream(actor, call, options.backpressure or -1)
        refs = self.add_call(call)
        try:
            actor.submit(call)
        except BaseException:
            self.forget_call(call)
            raise
        return self.submitted(call, refs)

    def _submit_stream(self, actor: Any, call: Call, backpressure: int) -> Submitted:
        if isinstance(actor, InlineActor):
            return self.add_stream(actor.add_stream(call))
        generator = self.add_stream(actor.add_stream(call, backpressure))
        actor.submit(call)
        return generator

    def new_actor_call(self, actor: LocalActor, method: str, num_returns: int | str) -> Call:
        """A call of a method, with its context."""
        definition = actor.definition
        name = f"{definition.name}.{method}"
        context = self.new_context(name, f"{definition.module}.{name}", of_actor=True)
        context.actor_id = actor.actor_id
        context.actor_name = actor.options["name"]
        context.class_name = definition.name
        context.incarnation = actor.incarnation
        context.resources = res.from_units(actor.resources)
        context.gpu_ids = list(range(int(context.resources.get(res.GPU, 0) + 0.9999)))
        context.env_vars = actor.env_vars
        context.placement_group_id = actor.home.placement_group_id
        context.capture_child_tasks = actor.home.capture_child_tasks
        call = Call(self, context, name, num_returns)
        call.method = method
        return call

    def cancel_actor_call(self, call: Call) -> None:
        """Cancel what runs, or waits, in an actor."""
        actor = self._actors[call.context.actor_id or b""]
        if call.stream is not None:
            call.stream.cancel()
        actor.cancel(call)

    # --- names, life and death --------------------------------------------------------------------

    def get_actor(self, name: str, namespace: str | None) -> ActorRecord:
        """See the contract."""
        self.enter()
        space = self.namespace if namespace is None else namespace
        actor = self._names.get((space, name))
        if actor is None:
            raise ValueError(
                f"Failed to look up actor with name {name!r} in namespace {space!r}: it was never created, "
                "it has died, or it was created in another namespace"
            )
        return self._record(actor, None)

    def kill_actor(self, actor_id: bytes, no_restart: bool) -> None:
        """See the contract."""
        self.enter()
        actor = self._actors.get(actor_id)
        if actor is None:
            raise ActorHandleNotFoundError(f"actor {actor_id.hex()} is not of this session")
        actor.kill(no_restart)

    def exit_actor(self) -> None:
        """See the contract."""
        self._current().exiting = True
        raise ActorExit

    def current_actor(self) -> ActorRecord:
        """See the contract."""
        return self._record(self._current(), None)

    def _current(self) -> LocalActor:
        actor_id = self.context().actor_id
        assert actor_id is not None, "the face asks only in an actor"
        return self._actors[actor_id]

    def actor_died(self, actor: LocalActor) -> None:
        """Its name and resources are free."""
        key = (actor.options["namespace"], actor.options["name"])
        if self._names.get(key) is actor:
            del self._names[key]
        hidden = self._hidden.pop(actor.actor_id, None)
        if hidden is not None:
            self._handles.pop(hidden, None)
        if isinstance(actor, InlineActor):
            self.stalled.discard(actor)
        self._take_for(actor, -1)

    def group_removed(self, group_id: bytes, text: str) -> None:
        """Its actors die."""
        for actor in list(self._actors.values()):
            if actor.home.placement_group_id == group_id:
                actor.die({"text": text, "intended": True})

    def handle_gone(self, object_id: bytes) -> None:
        """An object is gone: it may be what counts an actor's handles."""
        actor = self._handles.pop(object_id, None)
        if actor is not None:
            self._hidden.pop(actor.actor_id, None)
            actor.out_of_scope()

    def end_actors(self) -> None:
        """The session ends."""
        for actor in list(self._actors.values()):
            actor.die({"text": "the session has ended", "intended": True})

    # --- tables -----------------------------------------------------------------------------------

    def gcs(self, method: str, *args: Any) -> Any:
        """See the contract."""
        handler = getattr(self, "_gcs_" + method, None)
        if self.closed or handler is None:
            raise RaySystemError(
                "the session has ended" if self.closed else f"local mode does not answer {method!r}"
            )
        self.collect()
        return handler(*args)

    def _gcs_nodes(self) -> list[dict[str, Any]]:
        session = self.session
        return [
            {
                "NodeID": self.node_id.hex(),
                "Alive": True,
                "NodeManagerAddress": session["node_address"],
                "NodeManagerHostname": "localhost",
                "NodeManagerPort": 0,
                "ObjectManagerPort": 0,
                "ObjectStoreSocketName": "",
                "RayletSocketName": "",
                "MetricsExportPort": 0,
                "NodeName": session["node_name"],
                "RuntimeEnvAgentPort": 0,
                "DeathReason": 0,
                "DeathReasonMessage": "",
                "alive": True,
                "Resources": dict(session["totals"]),
                "Labels": dict(session["labels"]),
            }
        ]

    def _gcs_cluster_resources(self) -> dict[str, float]:
        return {name: float(amount) for name, amount in self.session["totals"].items()}

    def _gcs_available_resources(self) -> dict[str, float]:
        left = res.to_units(self.session["totals"])
        for name, amount in self._taken.items():
            left[name] = left.get(name, 0) - amount
        return res.from_units({name: amount for name, amount in left.items() if amount > 0})

    def _gcs_list_named_actors(self, all_namespaces: bool, namespace: str) -> list[dict[str, str]]:
        return [
            {"name": name, "namespace": space}
            for (space, name), actor in self._names.items()
            if (all_namespaces or space == namespace) and actor.state != DEAD
        ]

    def _gcs_jobs(self) -> list[dict[str, Any]]:
        return [{"JobID": self.job_id.hex(), "DriverPid": os.getpid(), "IsDead": False}]

    def _gcs_kv_put(self, key: bytes, value: bytes, overwrite: bool, namespace: bytes) -> bool:
        existed = (namespace, key) in self._kv
        if overwrite or not existed:
            self._kv[(namespace, key)] = value
        return existed

    def _gcs_kv_get(self, key: bytes, namespace: bytes) -> bytes | None:
        return self._kv.get((namespace, key))

    def _gcs_kv_del(self, key: bytes, by_prefix: bool, namespace: bytes) -> int:
        doomed = [key] if not by_prefix else self._gcs_kv_keys(key, namespace)
        return sum(self._kv.pop((namespace, each), None) is not None for each in doomed)

    def _gcs_kv_exists(self, key: bytes, namespace: bytes) -> bool:
        return (namespace, key) in self._kv

    def _gcs_kv_keys(self, prefix: bytes, namespace: bytes) -> list[bytes]:
        return [key for space, key in self._kv if space == namespace and key.startswith(prefix)]

    def check_actors(self) -> None:
        """Raise AssertionError where the tables contradict each other."""
        for actor in self._names.values():
            assert actor.state != DEAD, f"{actor.options['name']} is dead but has its name"
        for hidden, actor in self._handles.items():
            assert self._hidden[actor.actor_id] == hidden
        assert all(actor.state != ALIVE or actor.instance is not None for actor in self._actors.values())
