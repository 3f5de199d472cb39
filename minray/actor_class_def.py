"""Reads a class and says what an actor of it offers: its methods, their signatures, whether it is asyncio.

Called once per decorated class (and where a pickled actor class is loaded again). Pure: looks at the class,
changes nothing. What ``@method(…)`` wrote is found on the functions under ``METHOD_OPTIONS``.

Invariant: one coroutine function or async generator function among the methods, inherited ones included,
makes the whole actor asyncio.
"""

from __future__ import annotations

import inspect
from types import FunctionType, MethodType
from typing import Any

from minray.worker.call_shape import CallShape
from minray.worker.contract import ActorClassDef, MethodMeta

METHOD_OPTIONS = "__minray_method_options__"


def define_actor_class(cls: type) -> ActorClassDef:
    """The definition behind an actor class."""
    methods: dict[str, MethodMeta] = {}
    for name in dir(cls):
        found = inspect.getattr_static(cls, name)
        # dir() also lists what ``object`` has, which is not written in Python: not callable from afar
        value = getattr(cls, name, None)
        if _is_method(value):
            is_static = isinstance(found, (staticmethod, classmethod))
            methods[name] = _describe(name, value, skip_self=not is_static)
    init = methods.get("__init__")
    return ActorClassDef(
        cls=cls,
        name=cls.__name__,
        module=cls.__module__,
        shape=init.shape if init is not None else _shape_without_init(cls),
        methods=methods,
        is_async=any(meta.is_async for meta in methods.values()),
    )


def _is_method(value: Any) -> bool:
    return (
        isinstance(value, (FunctionType, MethodType)) or type(value).__name__ == "cython_function_or_method"
    )


def _describe(name: str, function: Any, *, skip_self: bool) -> MethodMeta:
    return MethodMeta(
        name=name,
        shape=CallShape.of(function, skip_self=skip_self),
        declared=dict(getattr(function, METHOD_OPTIONS, {})),
        is_async=inspect.iscoroutinefunction(function) or inspect.isasyncgenfunction(function),
        is_generator=inspect.isgeneratorfunction(function) or inspect.isasyncgenfunction(function),
    )


def _shape_without_init(cls: type) -> CallShape:
    """No ``__init__`` in Python: nothing is taken by a plain class; a built-in base judges for itself."""
    if "__init__" not in _defined(cls) and "__new__" not in _defined(cls):
        return CallShape((), 0, 0, False, (), False)
    return CallShape.of(cls)


def _defined(cls: type) -> set[str]:
    return {name for base in cls.__mro__ if base is not object for name in vars(base)}
