"""Local mode: the contract kept in one process, one thing at a time. ``init(local_mode=True)``.

A task runs inside its ``.remote()``, on the caller's thread: breakpoints, tracebacks and profilers see user
code and what called it on one stack. Values are pickled and unpickled as between processes (see
``objects``); functions and actors are the live objects. A task whose arguments are not there yet (the
pending call of an asyncio actor) is *deferred* and runs as soon as somebody waits, or calls again.

What serial running cannot do: a task that waits for a later call of its own caller never ends. Whoever waits
long says on what.

Resources are accounted; only a request beyond the machine's totals is refused, at once. To debug here what
needs eight GPUs elsewhere, say ``init(local_mode=True, num_gpus=8)``.

Invariants: each call is answered; user code runs under no lock; nothing survives ``shutdown`` but values that
the user holds.
"""

from __future__ import annotations

import os
import sys
import uuid
from typing import TYPE_CHECKING, Any

from minray._base import resources as res
from minray._base.options import resolve_num_returns
from minray.object_ref import ObjectRef
from minray.worker.contract import FunctionDef, Submitted
from minray.worker.init_options import InitOptions
from minray.worker.local.actor_ops import LocalActorOps
from minray.worker.local.calls import Call
from minray.worker.local.streams import PulledStream

if TYPE_CHECKING:
    from minray._base.options import TaskOptions

RECURSION_LIMIT = 10_000  # nested tasks nest on one stack here


class _PreparedTask:
    """A function under one set of options."""

    __slots__ = ("definition", "num_returns", "options", "resources")

    def __init__(self, definition: FunctionDef, options: TaskOptions) -> None:
        self.definition = definition
        self.options = options
        self.num_returns = resolve_num_returns(
            options.num_returns, definition.is_generator, repr(definition.name)
        )
        self.resources = res.from_units(options.plain_resources)


class LocalRuntime(LocalActorOps):
    """See contract.Runtime."""

    mode = "local"

    def __init__(self, options: InitOptions) -> None:
        super().__init__(dict(options.env_vars))
        self.worker_id = os.urandom(28)
        self.node_id = os.urandom(28)
        self.namespace = options.namespace or str(uuid.uuid4())
        self.session = _session(options, self.node_id)
        self._recursion_limit = sys.getrecursionlimit()
        sys.setrecursionlimit(max(self._recursion_limit, RECURSION_LIMIT))

    # --- tasks ------------------------------------------------------------------------------------

    def prepare_task(self, function: FunctionDef, options: TaskOptions) -> _PreparedTask:
        """See the contract."""
        self.check_portable(function, function.function, function.name)
        return _PreparedTask(function, options)

    def submit_task(
        self, prepared: _PreparedTask, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Submitted:
        """See the contract. Runs it, too."""
        self.enter()
        definition = prepared.definition
        options = self.placed_task(prepared.options, definition.name)
        name = options.name or definition.name
        context = self.new_context(name, f"{definition.module}.{definition.name}")
        self.enter_group(context, options.group)
        context.resources = dict(prepared.resources)
        context.gpu_ids, context.resource_ids = _gpus(prepared.resources)
        context.env_vars = {**self.env_vars, **options.env_vars}
        call = Call(self, context, name, prepared.num_returns)
        call.retries = options.max_retries
        call.wants_retry = options.wants_retry
        call.take_arguments(args, kwargs)
        if prepared.num_returns == "streaming":
            return self.add_stream(PulledStream(call, definition.function))
        refs = self.add_call(call)
        lacking = self.unplaceable(options, options.resources)
        if lacking is not None:
            call.fail(("unschedulable", name, lacking))
        elif call.ready():
            self._run(call, definition.function)
        else:
            self._deferred.append((call, definition.function))
        return self.submitted(call, refs)

    def cancel(self, ref: ObjectRef[Any], force: bool, recursive: bool) -> None:
        """See the contract."""
        self.enter()
        of_actor = ref._id.startswith(self._actor_prefix)
        if force and of_actor:
            raise ValueError(f"force=True is not supported for actor tasks: {ref}")
        call = self._calls.get(ref._id[:24])
        if call is None or call.done:
            return
        if of_actor:
            self.cancel_actor_call(call)
            return
        call.context.canceled = True
        if call.stream is not None:
            call.stream.cancel()
            return
        waiting = [entry for entry in self._deferred if entry[0] is call]
        for entry in waiting:
            self._deferred.remove(entry)
            call.fail(("cancelled", call.name))

    # --- about itself -----------------------------------------------------------------------------

    def error_info(self) -> list[dict[str, Any]]:
        """See the contract."""
        return [report.tell() for report in list(self._errors)]

    def shutdown(self, exiting: bool = False) -> None:
        """See the contract."""
        if self.closed:
            return
        self.closed = True
        self.end_actors()
        for stream in list(self._streams.values()):
            stream.abandon()
        self.objects.settle_all(("owner_died", b"\xff" * 28, (self.node_id, self.worker_id, "local")))
        self.notify_all()
        self._deferred.clear()
        self._calls.clear()
        self._streams.clear()
        self._lazy.clear()
        sys.setrecursionlimit(self._recursion_limit)

    def after_fork_child(self) -> None:
        """In a forked child of user code: this session is the parent's."""
        self.closed = True

    def check_invariants(self) -> None:
        """Raise AssertionError where the state contradicts itself."""
        self.objects.check_invariants()
        self.check_actors()
        for task_id, call in self._calls.items():
            assert call.task_id == task_id and not call.done, f"{call.name} is answered but not forgotten"


def start_local(options: InitOptions) -> LocalRuntime:
    """A local runtime. Starts no process and no thread; makes no file."""
    return LocalRuntime(options)


def _session(options: InitOptions, node_id: bytes) -> dict[str, Any]:
    totals = res.detect_totals(
        options.config,
        num_cpus=options.num_cpus,
        num_gpus=options.num_gpus,
        memory=options.memory,
        object_store_memory=options.object_store_memory,
        resources=options.resources,
    )
    address = options.node_ip_address or "127.0.0.1"
    totals = {**totals, f"node:{address}": 1.0, "node:__internal_head__": 1.0}
    return {
        "name": f"session_local_{os.getpid()}",
        "dir": None,
        "temp_dir": options.config.temp_root(),
        "log_dir": None,
        "segment_dir": None,
        "totals": totals,
        "labels": {**options.labels, "ray.io/node-id": node_id.hex()},
        "node_name": options.node_name or "local",
        "node_address": address,
        "gcs_endpoint": "local",
    }


def _gpus(resources: dict[str, float]) -> tuple[list[int | str], dict[str, list[tuple[int, float]]]]:
    """Pretend ids: the first ones."""
    wanted = resources.get(res.GPU, 0.0)
    if not wanted:
        return [], {}
    if wanted < 1:
        return [0], {res.GPU: [(0, wanted)]}
    return list(range(int(wanted))), {res.GPU: [(i, 1.0) for i in range(int(wanted))]}
