"""Why a value cannot be pickled: the path to the culprit, such as ``train → closure 'cfg' → .logger._lock``.

Called when pickling has failed, so time matters little, but the walk is bounded: it tries the parts of what
fails, and goes down into the first part that fails by itself, until none of the parts does.

Invariant: looking never pins a reference nor changes the value (apart from what ``__reduce__`` methods do).
"""

from __future__ import annotations

import copyreg
import dis
import types
from collections.abc import Iterator
from typing import Any

from minray.worker import pickling

_MAX_DEPTH = 30
_MAX_TRIES = 2000
_OPAQUE = (str, bytes, bytearray, int, float, complex, bool, type(None))


def explain_unpicklable(obj: Any, name: str = "") -> str:
    """The path from ``obj`` to the deepest part that cannot be pickled, and that part's type."""
    steps = [name or _name(obj)]
    seen: set[int] = set()
    tries = 0
    for _ in range(_MAX_DEPTH):
        seen.add(id(obj))
        for step, part in _parts(obj):
            if isinstance(part, _OPAQUE) or id(part) in seen:
                continue
            tries += 1
            if tries > _MAX_TRIES:
                break
            if not _pickles(part):
                steps.append(step)
                obj = part
                break
        else:
            break
        if tries > _MAX_TRIES:
            break
    return _join(steps) + (f" ({_type_name(obj)})" if len(steps) > 1 else "")


def _pickles(obj: Any) -> bool:
    collected = pickling.collect(0)
    try:
        pickling.full_pickler_class()(collected, collected.chunks).dump(obj)
    except Exception:  # whatever it is, it is what we are looking for
        return False
    return True


def _join(steps: list[str]) -> str:
    """``a → closure 'b' → .c.d[0]``: attributes and items stay together."""
    text = steps[0]
    joined = False
    for step in steps[1:]:
        accessor = step[0] in ".["
        text += step if accessor and joined else f" → {step}"
        joined = accessor
    return text


def _name(obj: Any) -> str:
    if isinstance(obj, (type, types.FunctionType, types.BuiltinFunctionType, types.ModuleType)):
        return obj.__name__
    return f"a {_type_name(obj)}"


def _type_name(obj: Any) -> str:
    cls = type(obj)
    plain = cls.__module__ in ("builtins", "__main__")
    return cls.__qualname__ if plain else f"{cls.__module__}.{cls.__qualname__}"


def _parts(obj: Any) -> Iterator[tuple[str, Any]]:
    """(how it is reached, part) for everything that a pickler would visit right below ``obj``."""
    if isinstance(obj, types.FunctionType):
        yield from _parts_of_function(obj)
    elif isinstance(obj, types.MethodType):
        yield ".__self__", obj.__self__
        yield ".__func__", obj.__func__
    elif isinstance(obj, type):
        for name, value in vars(obj).items():
            if name not in ("__dict__", "__weakref__", "__doc__", "__module__"):
                yield f".{name}", getattr(value, "__func__", value)
    elif isinstance(obj, dict):
        for key, value in obj.items():
            yield f"[{_short(key)}]", value
        for key in obj:
            yield f"key {_short(key)}", key
    elif isinstance(obj, (list, tuple)):
        for index, value in enumerate(obj):
            yield f"[{index}]", value
    elif isinstance(obj, (set, frozenset)):
        for value in obj:
            yield f"item {_short(value)}", value
    if not isinstance(obj, (type, types.FunctionType, types.ModuleType)):
        yield from _parts_of_instance(obj)


def _parts_of_function(function: types.FunctionType) -> Iterator[tuple[str, Any]]:
    for name, cell in zip(function.__code__.co_freevars, function.__closure__ or (), strict=False):
        try:
            yield f"closure {name!r}", cell.cell_contents
        except ValueError:  # an empty cell
            continue
    for name in sorted(_global_names(function.__code__)):
        if name in function.__globals__:
            yield f"global {name!r}", function.__globals__[name]
    for index, value in enumerate(function.__defaults__ or ()):
        yield f"default {index}", value
    for name, value in (function.__kwdefaults__ or {}).items():
        yield f"default {name!r}", value
    for name, value in vars(function).items():
        yield f".{name}", value


def _global_names(code: types.CodeType) -> set[str]:
    names = {i.argval for i in dis.get_instructions(code) if i.opname in ("LOAD_GLOBAL", "LOAD_NAME")}
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            names |= _global_names(constant)
    return names


def _parts_of_instance(obj: Any) -> Iterator[tuple[str, Any]]:
    attributes: Any = getattr(obj, "__dict__", None)
    if isinstance(attributes, dict):
        for name, value in attributes.items():
            yield f".{name}", value
    for name in copyreg._slotnames(type(obj)):  # type: ignore[attr-defined]
        if hasattr(obj, name):
            yield f".{name}", getattr(obj, name)
    if isinstance(obj, BaseException):
        for index, value in enumerate(obj.args):
            yield f".args[{index}]", value
    yield "its class", type(obj)


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 40 else text[:37] + "…"
