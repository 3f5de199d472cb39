"""Error values: what the core stores in place of a value, and the exceptions that users get for it.

An error value is a tuple of built-ins whose first item says which it is, so that owners can pass errors on
without unpickling anything:

    ("task", pickled RayTaskError)           user code raised (or the runtime, on its behalf)
    ("dependency", task name, error value)   an argument could not be computed; the body never ran
    ("cancelled", task name)                 ("crashed", task name, certificate)
    ("actor_died", class, actor_id, cause)   ("actor_unavailable", class, actor_id, cause)
    ("unschedulable", task name, text)       ("owner_died", object_id, owner address)
    ("unmade", object_id, reason, why)       lost, and cannot be made again
    ("freed", object_id)                     ("end_of_stream",)                ("session_over",)

Called by worker.objects (out) and worker.executor (in).
"""

from __future__ import annotations

import os
import pickle
from typing import Any

from minray import exceptions as exc
from minray._base.groups import GONE
from minray._base.task_errors import format_user_traceback

PACKAGE = os.path.dirname(os.path.dirname(os.path.abspath(__file__))) + os.sep
INTERNAL = tuple(
    PACKAGE + room
    for room in (
        "worker" + os.sep,
        "wire" + os.sep,
        "store" + os.sep,
        "remote_function.py",
        "actor.py",
        "api.py",
    )
)


def to_exception(value: Any) -> BaseException:
    """The exception to raise for an error value; a new one each time."""
    error = _plain(value)
    if isinstance(error, exc.RayTaskError):
        return error.as_instanceof_cause()
    return error


def _plain(value: Any) -> BaseException:
    kind = "freed" if value is None else value[0]
    if kind == "task":
        return _loads(value[1])
    if kind == "dependency":
        return _dependency(value[1], _plain(value[2]))
    if kind == "cancelled":
        return exc.TaskCancelledError(error_message=f"Task {value[1]} was cancelled")
    if kind == "crashed":
        cause = value[2]
        text = cause.get("text") or "the process ended unexpectedly"
        if cause.get("memory_ran_out"):
            return exc.OutOfMemoryError(f"The worker that executed task {value[1]} was {text}", cause)
        if cause.get("node_died"):
            return exc.NodeDiedError(f"Task {value[1]} was lost while it was executed: {text}", cause)
        return exc.WorkerCrashedError(f"The worker died while executing task {value[1]}: {text}", cause)
    if kind == "actor_died":
        return _actor_died(value[1], value[2], value[3])
    if kind == "actor_unavailable":
        text = value[3].get("text") or "its process ended"
        return exc.ActorUnavailableError(
            f"The actor {value[1]} is temporarily unavailable: {text}. The call may or may not have run; "
            "set max_task_retries to have such calls repeated",
            value[2].hex(),
            value[3],
        )
    if kind == "unschedulable" and value[2].startswith(GONE):
        return exc.TaskPlacementGroupRemoved(f"Task {value[1]} cannot run: {value[2]}")
    if kind == "unschedulable":
        return exc.TaskUnschedulableError(f"Task {value[1]} can never be scheduled. {value[2]}")
    if kind == "session_over":
        return exc.LocalRayletDiedError()
    if kind == "end_of_stream":
        return exc.ObjectRefStreamEndOfStreamError("the generator has ended")
    if kind == "owner_died":
        return exc.OwnerDiedError(
            value[1].hex(), None, "", f"its owner, worker {value[2][1].hex()[:8]}, is dead"
        )
    if kind == "unmade":
        return exc.ObjectReconstructionFailedError(value[1].hex(), None, "", f"{value[3]}. It was lost: {value[2]}")
    if kind == "freed":
        return exc.ObjectFreedError(
            value[1].hex() if value else "", None, "", "nobody referenced it any more, so its owner freed it"
        )
    return exc.RaySystemError(f"an object failed with an unknown error: {value!r}")


def _loads(data: bytes) -> BaseException:
    try:
        error = pickle.loads(data)
    except Exception as problem:  # the transport of the cause guards itself; this is the shell around it
        return exc.RaySystemError(f"an error of a task could not be unpickled here: {problem!r}")
    return error if isinstance(error, BaseException) else exc.RaySystemError(f"not an error: {error!r}")


def _dependency(name: str, failed: BaseException) -> BaseException:
    return exc.RayTaskError.for_failed_dependency(name, failed)


def _actor_died(class_name: str, actor_id: bytes, cause: dict[str, Any]) -> BaseException:
    created = cause.get("creation_error")
    if cause.get("unschedulable") and str(cause.get("text")).startswith(GONE):
        return exc.ActorPlacementGroupRemoved(f"The actor {class_name} cannot be placed: {cause['text']}")
    if cause.get("unschedulable"):
        return exc.ActorUnschedulableError(
            f"The actor {class_name} can never be scheduled. {cause.get('text', '')}"
        )
    if created is not None:
        story = _plain(created)
        text = f"The actor died because of an error raised in its creation task, {story}"
        return exc.ActorDiedError(text, actor_id.hex(), {"init_failed": True})
    text = cause.get("text") or "its process ended"
    return exc.ActorDiedError(f"The actor {class_name} is dead: {text}", actor_id.hex(), cause)


def from_exception(
    error: BaseException,
    function_name: str,
    *,
    proctitle: str | None = None,
    actor_repr: str | None = None,
    actor_id: str | None = None,
) -> tuple[Any, ...]:
    """The error value for what user code raised."""
    text = format_user_traceback(error, INTERNAL)
    if isinstance(error, ValueError) and "read-only" in str(error):
        text += (
            "(Arrays that come from the object store are shared and read-only: change a copy, a.copy().)\n"
        )
    wrapped = exc.RayTaskError(
        function_name, text, error, proctitle=proctitle, actor_repr=actor_repr, actor_id=actor_id
    )
    try:
        return ("task", pickle.dumps(wrapped, 5))
    except Exception as problem:  # state of a strange exception class: its text still arrives
        plain = exc.RayTaskError(
            function_name,
            text,
            exc.RayError(f"{type(error).__name__}: its exception could not be pickled ({problem!r})"),
            proctitle=proctitle,
            actor_repr=actor_repr,
            actor_id=actor_id,
        )
        return ("task", pickle.dumps(plain, 5))
