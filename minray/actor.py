"""Actors as users see them: ActorClass (what ``@remote`` makes of a class), ActorHandle, ActorMethod.

A handle is a thin shell over an ``ActorRecord``. What keeps the actor alive is the record's hidden reference:
handle and methods share the record, so an actor is in scope while any of them is, and the shell can be
pickled as its parts (the hidden reference among them, which the runtime's pickler finds and counts like any
nested ref). Handles of ``get_actor`` and the actor's own have none: they are weak.

Methods are cached in the handle's ``__dict__`` by ``__getattr__``, so the second look-up costs nothing.
They refer to the record, never to the handle: a cycle would keep the actor alive until the next collection.

Invariants: handles are equal when their actor ids are; attribute look-up never talks to the cluster.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable
from typing import Any, Generic, NoReturn, ParamSpec, TypeVar, overload

from minray._base import current
from minray._base.ids import ActorID
from minray._base.options import (
    ActorOptions,
    MethodOptions,
    resolve_num_returns,
    validate_actor_options,
    validate_method_options,
)
from minray.actor_class_def import define_actor_class
from minray.exceptions import ActorHandleNotFoundError
from minray.object_ref import ObjectRef
from minray.worker.contract import IMPLICIT_METHODS, ActorClassDef, ActorRecord, MethodMeta

P = ParamSpec("P")
T = TypeVar("T")


class ActorClassInheritanceException(TypeError):
    """A class was derived from an actor class; derive from the plain class instead."""


class ActorMethod:
    """One method of one actor: ``handle.method``. ``.remote(…)`` calls it."""

    __slots__ = ("__weakref__", "_bound", "_high", "_low", "_meta", "_options", "_record")

    def __init__(self, record: ActorRecord, meta: MethodMeta, options: MethodOptions) -> None:
        what = f"{record.class_name}.{meta.name}"
        resolve_num_returns(options.num_returns, meta.is_generator, f"{what!r}")
        self._record = record
        self._meta = meta
        self._options = options
        self._low = meta.shape.low
        self._high = meta.shape.high
        self._bound: tuple[Any, Callable[..., Any], Any] | None = None  # runtime, its submit, prepared

    def remote(self, /, *args: Any, **kwargs: Any) -> Any:
        """Queue one call and return at once; calls of one caller run in order.

        Returns an ObjectRef; a list of N for ``num_returns=N``; None for 0; an ObjectRefGenerator for a
        generator method. Arguments that are ObjectRefs are replaced by their values before it runs.

        Raises:
            TypeError: the arguments do not fit the signature, or one cannot be pickled.
            PendingCallsLimitExceeded: the actor's max_pending_calls of this caller are unanswered.
            ActorHandleNotFoundError: the handle is of an earlier session.
        """
        bound = self._bound
        if bound is None or bound[0] is not current.get():
            bound = self._bind()
        if kwargs or not self._low <= len(args) <= self._high:
            self._meta.shape.check(args, kwargs)
        return bound[1](bound[2], args, kwargs)

    def options(self, **options: Any) -> ActorMethod:
        """The same method with these options laid over its own: ``name``, ``num_returns``,
        ``concurrency_group``, ``max_task_retries``, ``retry_exceptions``, ``enable_task_events``,
        ``_generator_backpressure_num_objects``. TypeError or ValueError if one is unknown or wrong."""
        merged = self._options.merged(options)
        _check_group(merged, self._record.options.get("concurrency_groups") or {}, self._record.class_name)
        return ActorMethod(self._record, self._meta, merged)

    def _bind(self) -> tuple[Any, Callable[..., Any], Any]:
        record, meta = self._record, self._meta
        rt = runtime_of(record)
        name = meta.name
        options = with_num_returns(self._options, meta)
        self._bound = bound = (rt, rt.submit_actor_task, rt.prepare_method(record, name, options, meta))
        return bound

    def __call__(self, /, *args: Any, **kwargs: Any) -> NoReturn:
        name = self._meta.name
        raise TypeError(
            f"Actor methods cannot be called directly. Instead of running 'object.{name}()', "
            f"try 'object.{name}.remote()'."
        )

    def __repr__(self) -> str:
        return f"ActorMethod({self._record.class_name}.{self._meta.name}, {self._record.actor_id.hex()})"

    def __reduce__(self) -> tuple[Any, ...]:
        return _rebuild_method, (ActorHandle(self._record), self._meta.name, self._options.given)


class ActorHandle:
    """A reference to an actor: call its methods by ``handle.method.remote(…)``.

    It can be passed to tasks and other actors. When the last handle is gone, the actor ends after its queued
    calls (unless it is detached). Handles compare and hash by the actor's id.
    """

    def __init__(self, record: ActorRecord) -> None:
        self._record = record

    def __getattr__(self, name: str) -> Any:
        if name == "_record":  # only before __init__ has run
            raise AttributeError(name)
        record = self._record
        meta = record.methods.get(name) or IMPLICIT_METHODS.get(name)
        if meta is None:
            raise AttributeError(
                f"'ActorHandle' object has no attribute {name!r}: {record.class_name} has no such method"
                + _suggestion(name, record.methods)
            )
        method = ActorMethod(record, meta, validate_method_options(meta.declared))
        self.__dict__[name] = method
        return method

    @property
    def _actor_id(self) -> ActorID:
        return ActorID(self._record.actor_id)

    @property
    def _ray_actor_id(self) -> ActorID:
        return ActorID(self._record.actor_id)

    def __eq__(self, other: object) -> bool:
        if isinstance(other, ActorHandle):
            return self._record.actor_id == other._record.actor_id
        return NotImplemented

    def __hash__(self) -> int:
        return hash(self._record.actor_id)

    def __repr__(self) -> str:
        return f"Actor({self._record.class_name}, {self._record.actor_id.hex()})"

    def __dir__(self) -> list[str]:
        return sorted({*self._record.methods, *IMPLICIT_METHODS})

    def __copy__(self) -> ActorHandle:
        return self

    def __deepcopy__(self, memo: dict[int, Any]) -> ActorHandle:
        return self

    def __reduce__(self) -> tuple[Any, ...]:
        record = self._record
        return _rebuild_handle, (
            record.actor_id,
            record.job_id,
            record.class_name,
            record.methods,
            record.options,
            record.handle_ref,
        )


class ActorClass(Generic[P, T]):
    """A class whose instances are actors. Made by ``@minray.remote``."""

    _definition: ActorClassDef
    _options: ActorOptions

    def __init__(self, definition: ActorClassDef, options: ActorOptions) -> None:
        self._definition = definition
        self._options = options
        self.__name__ = definition.name
        self.__qualname__ = definition.cls.__qualname__
        self.__module__ = definition.module
        self.__doc__ = definition.cls.__doc__

    @overload
    def remote(self, /, *args: P.args, **kwargs: P.kwargs) -> Any: ...
    @overload
    def remote(self, /, *args: Any, **kwargs: Any) -> Any: ...  # refs in place of values

    def remote(self, /, *args: Any, **kwargs: Any) -> Any:
        """Order a new actor and return its ActorHandle at once; ``__init__`` runs with these arguments.

        Raises:
            TypeError: the arguments do not fit ``__init__``, or one cannot be pickled.
            ActorAlreadyExistsError: the name is taken (unless ``get_if_exists=True``).
        """
        definition = self._definition
        rt = current.ensure()
        definition.shape.check(args, kwargs)
        return ActorHandle(rt.create_actor(definition, self._options, args, kwargs))

    def options(self, **options: Any) -> ActorClass[P, T]:
        """The same class with these options laid over its own, per key. This one does not change.

        Raises:
            TypeError, ValueError: an option is unknown or wrong.
            NotImplementedError: an option that minray does not have yet.
        """
        return ActorClass(self._definition, self._options.merged(options))

    @property
    def __ray_actor_class__(self) -> type:
        """The class itself."""
        return self._definition.cls

    def __call__(self, /, *args: Any, **kwargs: Any) -> NoReturn:
        name = self._definition.name
        raise TypeError(
            f"Actors cannot be instantiated directly. Instead of '{name}()', use '{name}.remote()'."
        )

    def __mro_entries__(self, bases: tuple[Any, ...]) -> NoReturn:
        name = self._definition.name
        raise ActorClassInheritanceException(
            f"Inheriting from the actor class {name!r} is not supported. Derive from a plain class, and make "
            "the derived class an actor class (with @minray.remote)."
        )

    def __getattr__(self, name: str) -> Any:
        if name in ("_definition", "_options"):  # only before __init__ has run
            raise AttributeError(name)
        definition = self._definition
        try:
            return getattr(definition.cls, name)
        except AttributeError:
            raise AttributeError(
                f"'ActorClass({definition.name})' object has no attribute {name!r}"
            ) from None

    def __repr__(self) -> str:
        return f"ActorClass({self._definition.name})"

    # As a state, not as arguments: a class whose methods make more of its kind refers to its ActorClass.

    def __getstate__(self) -> dict[str, Any]:
        return {"cls": self._definition.cls, "options": self._options.given}

    def __setstate__(self, state: dict[str, Any]) -> None:
        cls, options = state["cls"], validate_actor_options(state["options"])
        ActorClass.__init__(self, define_actor_class(cls), options)


def make_actor_class(cls: type[T], options: dict[str, Any]) -> ActorClass[..., T]:
    """Decorate ``cls``. Raises as ``ActorClass.options`` does."""
    validated = validate_actor_options(options)
    definition = define_actor_class(cls)
    for meta in definition.methods.values():
        declared = validate_method_options(meta.declared)
        what = f"{definition.name}.{meta.name}"
        resolve_num_returns(declared.num_returns, meta.is_generator, f"{what!r}")
        _check_group(declared, validated.concurrency_groups, what)
    return ActorClass(definition, validated)


def exit_actor() -> None:
    """End the actor that runs this code, after the current call; calls queued behind it fail.

    Works also in ``__init__`` and where user code swallows exceptions. ``atexit`` handlers run.

    Raises:
        TypeError: this code does not run in an actor.
    """
    rt = current.get()
    if rt is None or rt.context().actor_id is None:
        raise TypeError("exit_actor() can only be called in an actor: this code does not run in one")
    rt.exit_actor()


def _check_group(options: MethodOptions, groups: Any, what: str) -> None:
    group = options.concurrency_group
    if group is not None and group not in groups:
        raise ValueError(
            f"{what}: there is no concurrency_group={group!r}; the class has "
            f"{', '.join(sorted(groups)) or 'none'}: write @remote(concurrency_groups={{{group!r}: …}})"
        )


def with_num_returns(options: MethodOptions, meta: MethodMeta) -> MethodOptions:
    """``options`` with num_returns resolved for this method."""
    if options.num_returns is not None:
        return options
    return options.merged({"num_returns": resolve_num_returns(None, meta.is_generator, meta.name)})


def runtime_of(record: ActorRecord) -> Any:
    """The running runtime, if the record belongs to it.

    Raises:
        ActorHandleNotFoundError: the record is of an earlier session.
    """
    rt = current.ensure()
    if record.runtime is not rt:
        raise ActorHandleNotFoundError(
            "ActorHandle objects are not valid across sessions: the handle of "
            f"{record.class_name} ({record.actor_id.hex()}) was made in another session than this. "
            "Create the actor again, or look it up by get_actor()."
        )
    return rt


def _rebuild_handle(
    actor_id: bytes,
    job_id: bytes,
    class_name: str,
    methods: dict[str, MethodMeta],
    options: dict[str, Any],
    handle_ref: ObjectRef[Any] | None,
) -> ActorHandle:
    rt = current.get()
    if rt is None:  # unpickled where nothing runs: it can be looked at and passed on
        return ActorHandle(ActorRecord(actor_id, job_id, class_name, methods, options, handle_ref, None))
    return ActorHandle(rt.adopt_actor(actor_id, job_id, class_name, methods, options, handle_ref))


def _rebuild_method(handle: ActorHandle, name: str, options: dict[str, Any]) -> ActorMethod:
    method: ActorMethod = getattr(handle, name)
    return method.options(**options)


def _suggestion(name: str, methods: dict[str, MethodMeta]) -> str:
    close = difflib.get_close_matches(name, methods, n=1)
    return f" (did you mean {close[0]!r}?)" if close else ""
