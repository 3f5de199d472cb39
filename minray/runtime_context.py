"""RuntimeContext: where the running code is, and as what.

A view: each property asks the runtime for what runs on the calling thread (or asyncio task) when it is read.
Ids are given as hexadecimal strings by ``get_…_id()``; None where there is none.
"""

from __future__ import annotations

from typing import Any

from minray._base import current
from minray._base.ids import ActorID, JobID, NodeID, PlacementGroupID, TaskID
from minray.worker.contract import TaskContext


class RuntimeContext:
    """See ``get_runtime_context()``."""

    __slots__ = ("_rt",)

    def __init__(self, rt: Any) -> None:
        self._rt = rt

    def get(self) -> dict[str, Any]:
        """job_id, node_id, namespace, and in a task its task_id and actor_id, as id objects. Deprecated."""
        context = self._context()
        known: dict[str, Any] = {
            "job_id": JobID(self._rt.job_id),
            "node_id": NodeID(self._rt.node_id),
            "namespace": self.namespace,
        }
        if self._in_task(context):
            known["task_id"] = TaskID(context.task_id or b"")
        if context.actor_id is not None:
            known["actor_id"] = ActorID(context.actor_id)
        return known

    # --- ids --------------------------------------------------------------------------------------

    def get_job_id(self) -> str:
        """Of the driver that this code works for: 8 hexadecimal digits."""
        return bytes(self._rt.job_id).hex()

    def get_node_id(self) -> str:
        """Of this machine: 56 hexadecimal digits."""
        return bytes(self._rt.node_id).hex()

    def get_worker_id(self) -> str:
        """Of this process: 56 hexadecimal digits."""
        return bytes(self._rt.worker_id).hex()

    def get_task_id(self) -> str | None:
        """Of the running task: 48 hexadecimal digits; None in a driver."""
        context = self._context()
        return context.task_id.hex() if self._in_task(context) and context.task_id else None

    def get_actor_id(self) -> str | None:
        """Of the actor that runs this code: 32 hexadecimal digits."""
        actor_id = self._context().actor_id
        return None if actor_id is None else actor_id.hex()

    def get_placement_group_id(self) -> str | None:
        """Of the placement group that this task or actor is in: 36 hexadecimal digits."""
        group = self._context().placement_group_id
        return None if group is None else group.hex()

    # --- the task and the actor -------------------------------------------------------------------

    def get_task_name(self) -> str | None:
        """The ``name`` option of the running task, else its function's name."""
        context = self._context()
        return context.task_name if self._in_task(context) else None

    def get_task_function_name(self) -> str | None:
        """The full name of the running function."""
        context = self._context()
        return context.function_name if self._in_task(context) else None

    def get_actor_name(self) -> str | None:
        """The name of the actor that runs this code; "" if it has none, None outside actors."""
        context = self._context()
        return None if context.actor_id is None else context.actor_name or ""

    def get_assigned_resources(self) -> dict[str, float]:
        """What this task or actor was given, e.g. {"CPU": 1.0}. RuntimeError in a driver."""
        return dict(self._task_context("get_assigned_resources").resources)

    def get_resource_ids(self) -> dict[str, list[str]]:
        """Which devices it was given, by kind. Deprecated name of ``get_accelerator_ids``."""
        return self.get_accelerator_ids()

    def get_accelerator_ids(self) -> dict[str, list[str]]:
        """Which devices it was given, by kind: {"GPU": ["0", "1"]}."""
        return {"GPU": [str(gpu) for gpu in self._context().gpu_ids]}

    def is_canceled(self) -> bool:
        """Whether somebody has cancelled the running task. RuntimeError in a driver.

        Threaded and ordinary actor methods, which are never interrupted, ask this now and then.
        """
        return self._task_context("is_canceled").canceled

    @property
    def was_current_actor_reconstructed(self) -> bool:
        """Whether the actor that runs this code was restarted. RuntimeError outside actors."""
        context = self._context()
        if context.actor_id is None:
            raise RuntimeError("was_current_actor_reconstructed is only available in an actor")
        return context.incarnation > 0

    @property
    def current_actor(self) -> Any:
        """A handle to the actor that runs this code. It does not keep the actor alive.

        Raises:
            RuntimeError: this code does not run in an actor.
        """
        context = self._context()
        if context.actor_id is None:
            raise RuntimeError("This method is only available in an actor.")
        from minray.actor import ActorHandle

        return ActorHandle(self._rt.current_actor())

    # --- the session ------------------------------------------------------------------------------

    @property
    def job_id(self) -> JobID:
        """Deprecated: ``get_job_id()``."""
        return JobID(self._rt.job_id)

    @property
    def node_id(self) -> NodeID:
        """Deprecated: ``get_node_id()``."""
        return NodeID(self._rt.node_id)

    @property
    def task_id(self) -> TaskID:
        """Deprecated: ``get_task_id()``. RuntimeError in a driver."""
        return TaskID(self._task_context("task_id").task_id or b"")

    @property
    def actor_id(self) -> ActorID:
        """Deprecated: ``get_actor_id()``; the nil id outside actors."""
        actor_id = self._context().actor_id
        return ActorID.nil() if actor_id is None else ActorID(actor_id)

    @property
    def namespace(self) -> str:
        """Of this job: where its named actors are."""
        return str(self._rt.namespace)

    @property
    def gcs_address(self) -> str:
        """Where the head is: host:port, as ``init(address=…)`` takes it; unix:/path in a session of one machine."""
        endpoint = str(self._rt.session.get("gcs_endpoint") or "")  # perhaps "unix:… tcp:…"
        return endpoint.rpartition(" ")[2].removeprefix("tcp:")

    @property
    def runtime_env(self) -> dict[str, Any]:
        """That of the running task or actor, else the job's."""
        env_vars = self._context().env_vars
        return {"env_vars": dict(env_vars)} if env_vars else {}

    def get_runtime_env_string(self) -> str:
        """``runtime_env`` as JSON."""
        import json

        return json.dumps(self.runtime_env)

    def get_node_labels(self) -> dict[str, str]:
        """Of this machine."""
        return dict(self._rt.session.get("labels") or {})

    def get_session_name(self) -> str:
        """The name of the session's folder."""
        return str(self._rt.session.get("name") or "")

    def get_temp_dir(self) -> str:
        """The folder of all sessions of this user."""
        return str(self._rt.session.get("temp_dir") or "")

    @property
    def current_placement_group_id(self) -> PlacementGroupID:
        """Of the placement group that this task or actor is in; the nil id if none."""
        group = self._context().placement_group_id
        return PlacementGroupID.nil() if group is None else PlacementGroupID(group)

    @property
    def should_capture_child_tasks_in_placement_group(self) -> bool:
        """Whether tasks submitted here go into the same placement group."""
        return self._context().capture_child_tasks

    # --- inside -----------------------------------------------------------------------------------

    def _context(self) -> TaskContext:
        context: TaskContext = self._rt.context()
        return context

    @staticmethod
    def _in_task(context: TaskContext) -> bool:
        return context.function_name is not None

    def _task_context(self, what: str) -> TaskContext:
        context = self._context()
        if not self._in_task(context):
            raise RuntimeError(f"{what} is only available in a task or an actor: this code runs in a driver")
        return context

    def __repr__(self) -> str:
        return f"RuntimeContext(job_id={self.get_job_id()}, node_id={self.get_node_id()})"


def get_runtime_context() -> RuntimeContext:
    """Where this code runs, and as what: ``get_runtime_context().get_task_id()`` and so on."""
    return RuntimeContext(current.ensure())
