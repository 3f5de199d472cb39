"""Local mode's calls: one submitted call, from its encoded arguments to its results.

A ``Call`` knows its arguments, where its results go, and how failure is told; who runs it (``.remote()``
itself, an actor's loop or threads) is decided elsewhere. ``run_inline`` runs a plain one to its end.

Invariants: each call settles all of its results once, whatever happens; user code runs under no lock.
"""

from __future__ import annotations

import bdb
import dis
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

from minray import exceptions
from minray._base.config import apply_env_vars, child_environ
from minray.object_ref import DynamicObjectRefGenerator, ObjectRef
from minray.worker import errors
from minray.worker.contract import TaskContext
from minray.worker.local.objects import ERROR, VALUE, Encoded, decode, encode

CONTEXT: ContextVar[TaskContext | None] = ContextVar("minray_local_context", default=None)
NONE: Encoded = encode(None)
INDEX_SIZE = 4


class ActorExit(BaseException):
    """What ``exit_actor()`` raises: leaves the actor's code, whatever it catches."""


class Failed(Exception):
    """The call fails with the error value in ``args[0]``; its body does not run (any more)."""


def result_id(task_id: bytes, index: int) -> bytes:
    """The id of the object with this index of a task: returns from 1, stream items from 2."""
    return task_id + index.to_bytes(INDEX_SIZE, "little")


class Call:
    """One submitted call of a function or method."""

    __slots__ = (
        "actor_id",
        "actor_repr",
        "asyncio_task",
        "context",
        "done",
        "failure",
        "group",
        "hold",
        "method",
        "name",
        "num_returns",
        "on_exit",
        "payload",
        "retries",
        "rt",
        "stream",
        "task_id",
        "top",
        "wants_retry",
    )

    def __init__(self, rt: Any, context: TaskContext, name: str, num_returns: int | str) -> None:
        assert context.task_id is not None
        self.rt = rt
        self.task_id = context.task_id
        self.context = context
        self.name = name  # as messages say it: "f" or "A.m"
        self.method = ""
        self.group: str | None = None
        self.num_returns = num_returns
        self.payload: Encoded | None = None
        self.top: list[tuple[int | str, ObjectRef[Any]]] = []  # refs in place of values: position or name
        self.hold: Any = None  # the actor's hidden reference, until the call is answered
        self.retries = 0
        self.wants_retry: Callable[[BaseException], bool] = lambda error: False
        self.actor_id: bytes | None = context.actor_id
        self.actor_repr: Callable[[], str] | None = None
        self.on_exit: Callable[[], tuple[Any, ...]] | None = None  # the actor ends: what the caller is told
        self.asyncio_task: Any = None
        self.stream: Any = None  # where its items go, if it is a streaming generator
        self.done = False
        self.failure: tuple[Any, ...] | None = None  # the error value it failed with

    # --- arguments --------------------------------------------------------------------------------

    def take_arguments(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Keep them as they are now. TypeError if they cannot be pickled."""
        if not args and not kwargs:
            return
        top = self.top
        top += [(i, value) for i, value in enumerate(args) if isinstance(value, ObjectRef)]
        top += [(name, value) for name, value in kwargs.items() if isinstance(value, ObjectRef)]
        for _, ref in top:
            self.rt.objects.find(ref)
        plain = [None if isinstance(value, ObjectRef) else value for value in args]
        named = {name: None if isinstance(value, ObjectRef) else value for name, value in kwargs.items()}
        self.payload = encode((plain, named))

    def arguments(self) -> tuple[list[Any], dict[str, Any]]:
        """Fresh copies, the values of references put in. Raises Failed."""
        args, kwargs = ([], {}) if self.payload is None else decode(self.payload)
        for where, ref in self.top:
            found = self.rt.objects.find(ref)
            if found.status == ERROR:
                raise Failed(("dependency", self.name, found.value))
            value = decode(found.value)
            if isinstance(where, int):
                args[where] = value
            else:
                kwargs[where] = value
        return args, kwargs

    def ready(self) -> bool:
        """Whether the references among the arguments have their values."""
        return all(self.rt.objects.find(ref).status for _, ref in self.top)

    # --- results ----------------------------------------------------------------------------------

    def result_ids(self) -> list[bytes]:
        """The objects that this call makes (a stream's items excepted: its index 1 is its end)."""
        count = self.num_returns if isinstance(self.num_returns, int) else 1
        return [result_id(self.task_id, 1 + i) for i in range(count)]

    def encode_result(self, value: Any) -> list[Encoded]:
        """What goes into ``result_ids``. Raises what makes the call fail."""
        count = self.num_returns
        if count == 1:
            return [encode(value)]
        if count == 0:
            return []
        if count == "dynamic":
            return [encode(DynamicObjectRefGenerator([self.rt.put(item) for item in value]))]
        try:
            values = list(value)
        except TypeError:
            raise ValueError(
                f"{self.name} has num_returns={count} but returned one {type(value).__name__}: return "
                f"{count} values"
            ) from None
        if len(values) != count:
            raise ValueError(
                f"Task returned {len(values)} objects, but num_returns={count}: {self.name} must return "
                f"exactly {count} values"
            )
        return [encode(item) for item in values]

    def succeed(self, encoded: list[Encoded]) -> None:
        """Settle the results."""
        if self.stream is not None:
            self.stream.end()
            return
        self.finish()
        for object_id, value in zip(self.result_ids(), encoded, strict=True):
            self.rt.objects.settle(object_id, VALUE, value)

    def fail(self, error_value: tuple[Any, ...]) -> None:
        """Settle the results with an error value."""
        self.failure = error_value
        if self.stream is not None:
            self.stream.end(error_value)
            return
        self.finish()
        self.rt.note_error(error_value, self.name)
        for object_id in self.result_ids():
            self.rt.objects.settle(object_id, ERROR, error_value)

    def finish(self) -> None:
        """It is answered: let go of what it needed."""
        self.done = True
        self.rt.forget_call(self)
        self.payload = None
        self.top = []
        self.hold = None

    # --- failure ----------------------------------------------------------------------------------

    def error_value(self, error: BaseException) -> tuple[Any, ...]:
        """The error value for what user code (or the way to it) raised."""
        if isinstance(error, Failed):
            value: tuple[Any, ...] = error.args[0]
            return value
        if self.on_exit is not None and isinstance(error, (ActorExit, SystemExit)):
            return self.on_exit()
        if isinstance(error, KeyboardInterrupt):
            return ("cancelled", self.name)
        if isinstance(error, exceptions.TaskCancelledError) and self.context.canceled:
            return ("cancelled", self.name)
        if isinstance(error, SystemExit):
            text = f"the task called sys.exit({error.code!r})"
            return ("crashed", self.name, {"text": text, "exit_code": _exit_code(error), "expected": True})
        return errors.from_exception(
            error,
            self.name,
            proctitle=f"ray::{self.name}()",
            actor_repr=self.actor_repr() if self.actor_repr is not None else None,
            actor_id=self.actor_id.hex() if self.actor_id is not None else None,
        )

    def should_retry(self, error: BaseException) -> bool:
        """Whether to run it once more; counts the attempt."""
        if self.retries == 0 or self.context.canceled or isinstance(error, Failed):
            return False
        if not self.wants_retry(error):
            return False
        if self.retries > 0:
            self.retries -= 1
        self.context.attempt += 1
        return True


def run_inline(call: Call, function: Callable[..., Any]) -> None:
    """Run a call to its end on this thread.

    Raises KeyboardInterrupt for a real Ctrl-C (no ``raise`` statement made it), and the debugger's BdbQuit.
    """
    while True:
        token = CONTEXT.set(call.context)
        try:
            args, kwargs = call.arguments()
            with environment(call.context):
                encoded = call.encode_result(function(*args, **kwargs))
        except bdb.BdbQuit as error:  # the user leaves the debugger: end the program, not the task
            call.fail(call.error_value(error))
            raise
        except BaseException as error:  # all that user code raises is the task's outcome
            if isinstance(error, KeyboardInterrupt) and not was_raised_by_code(error):
                call.fail(("cancelled", call.name))
                raise
            if call.should_retry(error):
                continue
            call.fail(call.error_value(error))
            return
        finally:
            CONTEXT.reset(token)
        call.succeed(encoded)
        return


def was_raised_by_code(error: BaseException) -> bool:
    """Whether a ``raise`` statement raised it, rather than a signal between two instructions."""
    trace = error.__traceback__
    if trace is None:
        return False
    while trace.tb_next is not None:
        trace = trace.tb_next
    opcode = trace.tb_frame.f_code.co_code[trace.tb_lasti]
    return dis.opname[opcode] == "RAISE_VARARGS"


@contextmanager
def environment(context: TaskContext) -> Iterator[None]:
    """Run with the call's environment variables (its runtime_env, its GPUs), and put the old ones back."""
    env_vars = context.env_vars
    if context.gpu_ids:
        env_vars = {**env_vars, "CUDA_VISIBLE_DEVICES": ",".join(map(str, context.gpu_ids))}
    if not env_vars:
        yield
        return
    before = child_environ()
    apply_env_vars(env_vars)
    try:
        yield
    finally:
        apply_env_vars({name: before.get(name) for name in env_vars})


def _exit_code(error: SystemExit) -> int:
    if isinstance(error.code, int):
        return error.code
    return 0 if error.code is None else 1


class ErrorReport:
    """An entry of ``error_info()``, put into words when somebody asks."""

    __slots__ = ("_at", "_name", "_value")

    def __init__(self, error_value: tuple[Any, ...], name: str) -> None:
        self._value = error_value
        self._name = name
        self._at = time.time()

    def tell(self) -> dict[str, Any]:
        """As users see it."""
        error = errors.to_exception(self._value)
        return {"type": "task", "message": f"{self._name} failed with:\n\n{error}", "timestamp": self._at}
