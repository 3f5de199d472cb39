"""Every error that minray raises on purpose.

The hierarchy is Ray's: ``RayError`` at the top, with classes that also derive from the standard exception
that fits (``GetTimeoutError`` is a TimeoutError). What user code raised in a task arrives as a
``RayTaskError`` made on the fly that is also of the user's own class: see ``_base/task_errors.py``, which
owns its mechanics. Errors that report a death carry a certificate in ``.cause_info`` (exit code or signal,
memory, last output, stack) and print it.

Raised by the public face, the owner and the executor; pickled between processes.

Invariants: all pickle with their attributes, whatever their constructor takes (they are rebuilt without
calling it); nothing here imports another room than ``_base``.
"""

from __future__ import annotations

import os
from typing import Any

from minray._base.certificates import certificate_text
from minray._base.task_errors import (
    cause_from_transport,
    cause_to_transport,
    make_dual_exception,
    rebuild_exception,
    task_error_text,
)

__all__ = [
    "ActorAlreadyExistsError",
    "ActorDiedError",
    "ActorHandleNotFoundError",
    "ActorPlacementGroupRemoved",
    "ActorUnavailableError",
    "ActorUnschedulableError",
    "AsyncioActorExit",
    "AuthenticationError",
    "GetTimeoutError",
    "LocalRayletDiedError",
    "NodeDiedError",
    "ObjectFetchTimedOutError",
    "ObjectFreedError",
    "ObjectLostError",
    "ObjectReconstructionFailedError",
    "ObjectRefStreamEndOfStreamError",
    "ObjectStoreFullError",
    "OutOfDiskError",
    "OutOfMemoryError",
    "OwnerDiedError",
    "PendingCallsLimitExceeded",
    "RayActorError",
    "RayError",
    "RaySystemError",
    "RayTaskError",
    "ReferenceCountingAssertionError",
    "RpcError",
    "RuntimeEnvSetupError",
    "TaskCancelledError",
    "TaskPlacementGroupRemoved",
    "TaskUnschedulableError",
    "UnserializableException",
    "UserCodeException",
    "WorkerCrashedError",
]


class RayError(Exception):
    """Base of all errors of minray."""

    def __reduce__(self) -> tuple[Any, ...]:
        return (rebuild_exception, (type(self), self.args, dict(self.__dict__)))


class RayTaskError(RayError):
    """What a task raised, with the traceback of the process where it ran.

    ``get`` raises ``as_instanceof_cause()`` of it: an error that is a RayTaskError and of the cause's class.

    Attributes:
        function_name: of the task, or ``Class.method``.
        traceback_str: the remote traceback, internal frames stripped.
        cause: what user code raised; for a failed dependency, what that dependency raised.
        pid, ip: where it ran.
        actor_repr, actor_id: of the actor (id in hexadecimal), or None.
        proctitle: what the text calls the task.
    """

    def __init__(
        self,
        function_name: str,
        traceback_str: str,
        cause: BaseException,
        *,
        proctitle: str | None = None,
        pid: int | None = None,
        ip: str = "127.0.0.1",
        actor_repr: str | None = None,
        actor_id: str | None = None,
    ) -> None:
        # An error of a nested task is told once: the innermost cause counts, the text keeps the whole story.
        inner = cause.cause if isinstance(cause, RayTaskError) else cause
        super().__init__(function_name, traceback_str, inner)
        self.function_name = function_name
        self.traceback_str = traceback_str
        self.cause: BaseException = inner
        self.proctitle = f"ray::{function_name}()" if proctitle is None else proctitle
        self.pid = os.getpid() if pid is None else pid
        self.ip = ip
        self.actor_repr = actor_repr
        self.actor_id = actor_id

    @classmethod
    def for_failed_dependency(cls, function_name: str, failed: BaseException, **where: Any) -> RayTaskError:
        """The error of a task that never ran because an argument could not be computed.

        Args:
            function_name: of the task that did not run.
            failed: the argument's error; a RayTaskError is flattened: its cause becomes this one's.
            where: the other keywords of the constructor.
        """
        story = (
            "  At least one of the input arguments for this task could not be computed:\n"
            f"{type(failed).__name__ + ': ' if not isinstance(failed, RayTaskError) else ''}{failed}"
        )
        return cls(function_name, story, failed, **where)

    @property
    def actor_name(self) -> str | None:
        """The actor's class, if the task was an actor's."""
        return self.function_name.rpartition(".")[0] or None if self.actor_id is not None else None

    def as_instanceof_cause(self) -> RayTaskError:
        """This error as a subclass of the cause's class too; itself where that is not possible (warns)."""
        dual: RayTaskError = make_dual_exception(self, RayTaskError)
        return dual

    # The class that make_dual_exception mixes in may define these (a frozen or comparable dataclass does):
    # an error is equal to itself only.
    __eq__ = object.__eq__
    __hash__ = object.__hash__

    def __str__(self) -> str:
        return task_error_text(self)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.cause!r})"

    def __reduce__(self) -> tuple[Any, ...]:
        state = {name: value for name, value in self.__dict__.items() if name != "cause"}
        return (_restore_task_error, (state, cause_to_transport(self.cause, RayError)))


def _restore_task_error(state: dict[str, Any], cause: Any) -> RayTaskError:
    error = RayTaskError.__new__(RayTaskError)
    error.__dict__.update(state)
    error.cause = cause_from_transport(cause, RayError)
    error.args = (error.function_name, error.traceback_str, error.cause)
    return error


class TaskCancelledError(RayError):
    """The task was cancelled, before or while it ran.

    Attributes:
        task_id: hexadecimal, or None.
        error_message: the text.
    """

    def __init__(self, task_id: str | None = None, error_message: str | None = None) -> None:
        self.task_id = task_id
        if error_message is None:
            subject = "This task or its dependency" if task_id is None else f"Task {task_id}"
            error_message = f"{subject} was cancelled"
        self.error_message = error_message
        super().__init__(error_message)


class LocalRayletDiedError(RayError):
    """The node process of this machine is gone: nothing can be scheduled any more."""

    def __init__(self, message: str = "The node process of this machine died unexpectedly.") -> None:
        super().__init__(message)


class _Death(RayError):
    """Base of the errors that carry a death certificate."""

    cause_info: dict[str, Any]
    _what = ""  # the text, where none is given

    def __init__(self, message: str = "", cause_info: dict[str, Any] | None = None) -> None:
        super().__init__(message or self._what)
        self.cause_info = dict(cause_info or {})

    def __str__(self) -> str:
        text = str(self.args[0]) if self.args else ""
        certificate = certificate_text(self.cause_info)
        return f"{text}\n{certificate}" if certificate else text


class WorkerCrashedError(_Death):
    """The process that ran the task died, more often than ``max_retries`` allows.

    Attributes:
        cause_info: the certificate: text, exit_code, signal, oom, peak_rss, log_tail, stack … as known.
    """

    _what = "The worker died unexpectedly while executing this task."


def _the_actor(actor_id_hex: str | None) -> str:
    return f"The actor {actor_id_hex}" if actor_id_hex else "The actor"


class RayActorError(_Death):
    """The actor cannot serve this call.

    Attributes:
        actor_id: hexadecimal, or None.
        cause_info: the certificate of its process, as far as known.
    """

    def __init__(
        self,
        message: str = "",
        actor_id_hex: str | None = None,
        cause_info: dict[str, Any] | None = None,
    ) -> None:
        super().__init__(message or self._default_message(actor_id_hex), cause_info)
        self.actor_id = actor_id_hex

    @staticmethod
    def _default_message(actor_id_hex: str | None) -> str:
        return f"{_the_actor(actor_id_hex)} cannot serve this call."

    @property
    def error_msg(self) -> str:
        """The text without the certificate."""
        return str(self.args[0])

    @property
    def actor_init_failed(self) -> bool:
        """Whether its ``__init__`` raised."""
        return bool(self.cause_info.get("init_failed"))


class ActorDiedError(RayActorError):
    """The actor is dead for good: killed, exited, crashed too often, or its ``__init__`` raised."""

    @staticmethod
    def _default_message(actor_id_hex: str | None) -> str:
        return f"{_the_actor(actor_id_hex)} died unexpectedly before finishing this task."


class ActorUnavailableError(RayActorError):
    """The actor is restarting or unreachable, and this call was in flight: it may or may not have run."""

    @staticmethod
    def _default_message(actor_id_hex: str | None) -> str:
        return f"{_the_actor(actor_id_hex)} is temporarily unavailable. The call may or may not have run."


class RaySystemError(RayError):
    """Something inside minray, or the way to the cluster, is broken."""

    def __init__(self, client_exc: Any, traceback_str: str | None = None) -> None:
        super().__init__(str(client_exc))
        self.client_exc = client_exc
        self.traceback_str = traceback_str

    def __str__(self) -> str:
        text = f"System error: {self.client_exc}"
        return f"{text}\ntraceback: {self.traceback_str}" if self.traceback_str else text


class AuthenticationError(RayError):
    """The cluster's token is missing or wrong."""


class UserCodeException(RayError):
    """User code failed outside a task's own body."""


class ObjectStoreFullError(RayError):
    """No room for an object, though the store waited for frees.

    Attributes:
        info: how full the store is, and with what.
    """

    def __init__(
        self, message: str = "The object store is full.", info: dict[str, Any] | None = None
    ) -> None:
        super().__init__(message)
        self.info = dict(info or {})


class OutOfDiskError(RayError):
    """No room on the disk for the files of the session."""


class OutOfMemoryError(_Death):
    """A process was ended because the machine ran out of memory.

    Attributes:
        cause_info: the certificate of the process, as far as known.
    """

    _what = "The machine ran out of memory."


class NodeDiedError(_Death):
    """The node that ran the task died, or was out of reach for too long, more often than ``max_retries`` allows.

    Attributes:
        cause_info: text says which node, and how that was noticed.
    """

    _what = "The node that was to serve this is dead."


class RpcError(RayError):
    """A request to another process failed.

    Attributes:
        rpc_code: what kind of failure, or None.
    """

    def __init__(self, message: str, rpc_code: Any = None) -> None:
        super().__init__(message)
        self.rpc_code = rpc_code


class AsyncioActorExit(RayError):
    """Raised inside an asyncio actor by ``exit_actor()``."""


class RuntimeEnvSetupError(RayError):
    """A worker's environment could not be prepared.

    Attributes:
        error_message: why.
    """

    def __init__(self, error_message: str | None = None) -> None:
        self.error_message = error_message
        why = f"\n{error_message}" if error_message else ""
        super().__init__(f"Failed to set up runtime environment.{why}")


class TaskPlacementGroupRemoved(RayError):
    """The task's placement group was removed before the task could run."""

    def __init__(self, message: str = "The placement group of this task has been removed.") -> None:
        super().__init__(message)


class ActorPlacementGroupRemoved(RayError):
    """The actor's placement group was removed before the actor could start."""

    def __init__(self, message: str = "The placement group of this actor has been removed.") -> None:
        super().__init__(message)


class PendingCallsLimitExceeded(RayError):
    """More calls wait for this actor than ``max_pending_calls``."""


class TaskUnschedulableError(RayError):
    """No node can ever run the task.

    Attributes:
        error_message: the request and every node's totals.
    """

    def __init__(self, error_message: str) -> None:
        super().__init__(f"The task is not schedulable: {error_message}")
        self.error_message = error_message


class ActorUnschedulableError(RayError):
    """No node can ever hold the actor.

    Attributes:
        error_message: the request and every node's totals.
    """

    def __init__(self, error_message: str) -> None:
        super().__init__(f"The actor is not schedulable: {error_message}")
        self.error_message = error_message


class ObjectRefStreamEndOfStreamError(RayError):
    """A streaming generator has no more items."""


class UnserializableException(RayError):
    """Stands for an exception that could not travel."""

    def __init__(self, original_stack_trace: str) -> None:
        super().__init__(f"Failed to deserialize exception. Original stack trace:\n{original_stack_trace}")
        self.original_stack_trace = original_stack_trace


class GetTimeoutError(RayError, TimeoutError):
    """``get`` did not have all values within its timeout."""


class ObjectLostError(RayError):
    """Every copy of the object is gone.

    Attributes:
        object_ref_hex: the object's id.
        owner_address: the process that owns (or owned) it, or None.
        call_site: where it was made, if recorded.
        reason: why it is lost.
    """

    _what = "was lost: every copy of it is gone"

    def __init__(
        self,
        object_id_hex: str,
        owner_address: Any = None,
        call_site: str = "",
        reason: str = "",
    ) -> None:
        self.object_ref_hex = object_id_hex
        self.owner_address = owner_address
        self.call_site = call_site
        self.reason = reason
        super().__init__(object_id_hex)

    def __str__(self) -> str:
        text = f"Object {self.object_ref_hex} {self._what}"
        if self.reason:
            text += f" ({self.reason})"
        if self.call_site:
            text += f"\nThe object was made at {self.call_site}"
        return text


class ObjectFetchTimedOutError(ObjectLostError):
    """Fetching the object from where it should be took too long."""

    _what = "could not be fetched in time"


class ReferenceCountingAssertionError(ObjectLostError, AssertionError):
    """The object was deleted although references to it exist: an error in minray."""

    _what = "was deleted while references to it exist; this is an error in minray"


class ObjectFreedError(ObjectLostError):
    """The object was freed by hand."""

    _what = "was freed manually, so it cannot be read any more"


class OwnerDiedError(ObjectLostError):
    """The process that made the object's first reference is dead."""

    _what = "cannot be read: the process that owns it has died"


class ObjectReconstructionFailedError(ObjectLostError):
    """The object is lost and cannot be made again: made by ``put``, or by a task without retries left."""

    _what = "was lost and cannot be made again"


class ActorAlreadyExistsError(ValueError, RayError):
    """An actor of that name lives in the namespace."""

    __reduce__ = RayError.__reduce__


class ActorHandleNotFoundError(ValueError, RayError):
    """The actor handle belongs to another session."""

    __reduce__ = RayError.__reduce__
