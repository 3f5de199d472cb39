"""``get``, ``put``, ``wait``, ``cancel``, ``kill``, ``get_actor``: objects and actors, checked and passed on.

Each function says who may be wrong (types, counts, a handle of another session) and leaves the work to the
process's runtime. All of them start a session if there is none.

Invariant: nothing here knows what kind of runtime it talks to.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeVar, overload

from minray._base import current
from minray.actor import ActorHandle, runtime_of
from minray.object_ref import ObjectRef, ObjectRefGenerator
from minray.worker.init_options import check_namespace

T = TypeVar("T")

# The slot's own getter: as fast as an attribute, and a TypeError for anything that is not an ObjectRef.
_id_of = ObjectRef.__dict__["_id"].__get__


@overload
def get(object_refs: ObjectRef[T], *, timeout: float | None = None) -> T: ...
@overload
def get(object_refs: ObjectRefGenerator[T], *, timeout: float | None = None) -> ObjectRefGenerator[T]: ...
@overload
def get(object_refs: Sequence[ObjectRef[T]], *, timeout: float | None = None) -> list[T]: ...


def get(object_refs: Any, *, timeout: float | None = None) -> Any:
    """The value of a ref, or the list of values of a list of refs; waits until they are there.

    Args:
        object_refs: an ObjectRef or a list of them (a streaming generator comes back unchanged).
        timeout: seconds to wait at most; 0 polls; None waits for ever.

    Raises:
        GetTimeoutError: not all values were there in time.
        RayTaskError: what the task raised; also an instance of the class of what it raised. Of a list, the
            first error met, without waiting for the others.
        RayError: a subclass that says why there is no value (see minray.exceptions).
        ValueError, TypeError: not a ref, nor a list of refs.
    """
    rt = current.get()
    if rt is None:
        rt = current.ensure()
    if type(object_refs) is ObjectRef:
        return rt.get([object_refs], timeout)[0]
    if timeout is not None and not isinstance(timeout, (int, float)):
        raise TypeError(f"get(timeout=…) must be a number of seconds or None, got {timeout!r}")
    if isinstance(object_refs, list):
        for ref in object_refs:
            if type(ref) is not ObjectRef and not isinstance(ref, ObjectRef):
                raise TypeError(
                    f"Attempting to call `get` on the value {ref!r}, which is not a minray.ObjectRef"
                    + (": iterate over it, and get its items" if isinstance(ref, ObjectRefGenerator) else "")
                )
        return rt.get(object_refs, timeout)
    if isinstance(object_refs, ObjectRefGenerator):
        return object_refs
    if isinstance(object_refs, ObjectRef):
        return rt.get([object_refs], timeout)[0]
    raise ValueError(
        f"Invalid type of object refs, {type(object_refs)}, is given: {object_refs!r}. get() takes an "
        "ObjectRef or a list of ObjectRefs."
    )


def put(value: T) -> ObjectRef[T]:
    """Store ``value`` and return a ref to it. It lives as long as somebody references it.

    Raises:
        TypeError: ``value`` is an ObjectRef (wrap it in a list), or cannot be pickled.
        ObjectStoreFullError: there is no room, even after a while.
    """
    rt = current.get()
    if rt is None:
        rt = current.ensure()
    if isinstance(value, ObjectRef):
        raise TypeError(
            "Calling 'put' on an ObjectRef is not allowed: it names an object already. If you really want "
            "to, wrap the ObjectRef in a list and call 'put' on that."
        )
    ref: ObjectRef[T] = rt.put(value)
    return ref


def wait(
    ray_waitables: list[Any],
    *,
    num_returns: int = 1,
    timeout: float | None = None,
    fetch_local: bool = True,
) -> tuple[list[Any], list[Any]]:
    """Wait until ``num_returns`` of the refs are ready; (ready, rest), both in the order of the input.

    Exactly ``num_returns`` come back as ready even if more are, fewer only after the timeout. An object whose
    task failed is ready. A streaming generator is ready when its next item is.

    Args:
        ray_waitables: a list of distinct ObjectRefs and ObjectRefGenerators.
        num_returns: how many to wait for, from 1 to the number of refs.
        timeout: seconds to wait at most; 0 polls; None waits for ever.
        fetch_local: whether an object counts only once it is on this machine.

    Raises:
        TypeError: not a list, or something else than a ref in it.
        ValueError: duplicates, a bad ``num_returns``, a negative ``timeout``.
    """
    rt = current.get()
    if rt is None:
        rt = current.ensure()
    if not isinstance(ray_waitables, list):
        raise TypeError(_wait_needs_a_list(ray_waitables))
    if timeout is not None and timeout < 0:
        raise ValueError(f"The 'timeout' argument must be nonnegative. Received {timeout!r}")
    streams = None
    try:
        distinct = len(set(map(_id_of, ray_waitables)))
    except TypeError:  # generators among them, or a mistake
        streams = _check_waitables(ray_waitables)
        distinct = len(set(ray_waitables))
    if not ray_waitables:
        return [], []
    if distinct < len(ray_waitables):
        raise ValueError("wait() requires a list of unique refs: the list contains one of them twice")
    if not isinstance(num_returns, int):
        raise TypeError(f"wait(num_returns=…) must be an int, got {num_returns!r}")
    if num_returns <= 0:
        raise ValueError(f"Invalid number of objects to return {num_returns}: it must be at least 1")
    if num_returns > len(ray_waitables):
        raise ValueError(
            f"num_returns cannot be greater than the number of refs provided to wait: {num_returns} of "
            f"{len(ray_waitables)}"
        )
    if streams is None:
        result: tuple[list[Any], list[Any]] = rt.wait(ray_waitables, num_returns, timeout, fetch_local)
        return result
    ready, _ = rt.wait(streams, num_returns, timeout, fetch_local)
    ready_ids = set(map(id, ready))
    are_ready = [id(stand_in) in ready_ids for stand_in in streams]
    return (
        [item for item, is_ready in zip(ray_waitables, are_ready, strict=True) if is_ready],
        [item for item, is_ready in zip(ray_waitables, are_ready, strict=True) if not is_ready],
    )


def _check_waitables(items: list[Any]) -> list[ObjectRef[Any]]:
    """Per item the ref to wait for: itself, or a generator's next."""
    stand_ins: list[ObjectRef[Any]] = []
    for item in items:
        if isinstance(item, ObjectRef):
            stand_ins.append(item)
        elif isinstance(item, ObjectRefGenerator):
            stand_ins.append(item._peek())
        else:
            raise TypeError(
                "wait() expected a list of ObjectRef or ObjectRefGenerator, got list containing "
                f"{type(item)}: {item!r}"
            )
    return stand_ins


def _wait_needs_a_list(given: Any) -> str:
    if isinstance(given, (ObjectRef, ObjectRefGenerator)):
        return (
            "wait() expected a list of ObjectRef or ObjectRefGenerator, got a single one: "
            f"{given!r}. Use wait([ref])."
        )
    return f"wait() expected a list of ObjectRef or ObjectRefGenerator, got {type(given)}: {given!r}"


def cancel(ref: Any, *, force: bool = False, recursive: bool = True) -> None:
    """Cancel the task that makes ``ref``. One that has finished is left alone.

    A task that has not started never runs; a running one gets KeyboardInterrupt, or with ``force`` its
    process is killed. Of actors, coroutines are cancelled; other methods only see ``is_canceled()`` of the
    runtime context. ``get`` of a cancelled task raises TaskCancelledError (after ``force``,
    WorkerCrashedError).

    Args:
        ref: what ``.remote()`` returned: an ObjectRef or an ObjectRefGenerator.
        force: kill the process that runs it.
        recursive: cancel the tasks that it submitted, too.

    Raises:
        TypeError: not a ref.
        ValueError: ``force`` for a task of an actor.
    """
    rt = current.ensure()
    if isinstance(ref, ObjectRefGenerator):
        ref = ref.completed()
    if not isinstance(ref, ObjectRef):
        raise TypeError(
            f"cancel() only supported for object refs. For actors, try kill(). Got: {type(ref)}: {ref!r}"
        )
    rt.cancel(ref, bool(force), bool(recursive))


def kill(actor: Any, *, no_restart: bool = True) -> None:
    """End an actor at once: nothing of it runs any more, not even ``atexit``. Pending calls fail.

    Args:
        actor: an ActorHandle.
        no_restart: False lets it restart, if its ``max_restarts`` allow.

    Raises:
        ValueError: not an actor handle.
        ActorHandleNotFoundError: a handle of an earlier session.
    """
    rt = current.ensure()
    if not isinstance(actor, ActorHandle):
        raise ValueError(
            f"kill() only supported for actors. For tasks, try cancel(). Got: {type(actor)}: {actor!r}"
        )
    runtime_of(actor._record)
    rt.kill_actor(actor._record.actor_id, bool(no_restart))


def get_actor(name: str, namespace: str | None = None) -> ActorHandle:
    """A handle to a named actor. It does not keep the actor alive.

    Args:
        name: as given by ``.options(name=…)``.
        namespace: where the name was given; None: this job's namespace.

    Raises:
        ValueError: nobody has that name, or it is empty.
        TypeError: a name or namespace that is not a str.
    """
    rt = current.ensure()
    if not isinstance(name, str):
        raise TypeError(f"get_actor() expects the actor's name as a str, got {name!r}")
    if not name:
        raise ValueError("Please supply a non-empty value to get_actor")
    check_namespace(namespace)
    return ActorHandle(rt.get_actor(name, namespace))


def list_named_actors(all_namespaces: bool = False) -> list[Any]:
    """The names of the living named actors.

    Args:
        all_namespaces: False: a list of names, of this job's namespace; True: a list of
            {"name": str, "namespace": str}.
    """
    rt = current.ensure()
    found: list[dict[str, str]] = rt.gcs("list_named_actors", bool(all_namespaces), rt.namespace)
    return found if all_namespaces else [actor["name"] for actor in found]
