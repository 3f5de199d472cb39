"""``inspect_serializability``: what inside an object cannot be pickled, and by which path it is reached.

A depth-first walk: an object that pickles is fine; of one that does not, the parts are tried, and the
deepest part that still fails is the culprit. Parts are what a pickler would visit: a function's closure,
used globals and defaults, a container's items, an instance's reduced state, a class's own attributes.

It is a tool for people at a prompt: every level pickles its parts again, and references inside the
object are replaced by a placeholder, so looking does not pin them. Nothing else in minray calls it.
"""

from __future__ import annotations

import contextlib
import functools
import io
import types
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, TextIO

_SHOWN = 80


@dataclass(frozen=True, eq=False)
class FailureTuple:
    """One culprit: the object, the names that lead to it, and the object that holds it."""

    obj: Any
    path: tuple[str, ...]
    parent: Any

    def __repr__(self) -> str:
        name = self.path[-1] if self.path else "unknown"
        return f"FailTuple({name} [path={' -> '.join(self.path)}, obj={self.obj}, parent={self.parent}])"


def inspect_serializability(
    base_obj: Any, name: str | None = None, depth: int = 3, print_file: TextIO | None = None
) -> tuple[bool, set[FailureTuple]]:
    """Whether ``base_obj`` can be sent to another process, and if not, why.

    :param name: what to call it in the report (default: its own name or type).
    :param depth: how many levels to descend.
    :param print_file: where the report goes (default: standard output).
    :return: ``(True, set())``, or False and the culprits.
    """
    walk = _Walk(print_file)
    label = name if name is not None else getattr(base_obj, "__qualname__", type(base_obj).__name__)
    error = _why_not(base_obj)
    if error is None:
        walk.say(0, f"ok    {label}  {_short(base_obj)}")
        return True, set()
    walk.descend(base_obj, (label,), None, error, depth)
    walk.say(0, "cannot be serialized: " + "; ".join(" -> ".join(f.path) for f in walk.failures))
    walk.say(0, "make it inside the task, leave it out of what is sent, or register_serializer() its class")
    return False, set(walk.failures)


class _Walk:
    """One inspection: where it prints, what it found, and what it is inside of (cycles end there)."""

    def __init__(self, print_file: TextIO | None) -> None:
        self._file = print_file
        self._inside: set[int] = set()
        self.failures: list[FailureTuple] = []

    def say(self, level: int, text: str) -> None:
        print("    " * level + text, file=self._file)

    def descend(self, obj: Any, path: tuple[str, ...], parent: Any, error: str, depth: int) -> None:
        self.say(len(path) - 1, f"FAIL  {path[-1]}  {_short(obj)}: {error}")
        self._inside.add(id(obj))
        before = len(self.failures)
        if depth > 0:
            for label, part in _parts(obj):
                if id(part) in self._inside:
                    continue
                reason = _why_not(part)
                if reason is not None:
                    self.descend(part, (*path, label), obj, reason, depth - 1)
        self._inside.discard(id(obj))
        if len(self.failures) == before:
            self.failures.append(FailureTuple(obj, path, parent))


def _why_not(obj: Any) -> str | None:
    """The error that pickling ``obj`` gives, or None."""
    import cloudpickle

    import minray as ray

    class Pickler(cloudpickle.Pickler):  # type: ignore[misc]
        def reducer_override(self, inner: Any) -> Any:
            if isinstance(inner, ray.ObjectRef):
                return bytes, ()
            return super().reducer_override(inner)

    try:
        Pickler(io.BytesIO()).dump(obj)
    except Exception as error:  # whatever a user's __reduce__ raises is the answer
        return f"{type(error).__name__}: {error}"
    return None


def _parts(obj: Any) -> Iterator[tuple[str, Any]]:
    """``(name, object)`` of what a pickler would visit below ``obj``."""
    if isinstance(obj, types.FunctionType):
        yield from _function_parts(obj)
    elif isinstance(obj, types.MethodType):
        yield "__self__", obj.__self__
        yield "__func__", obj.__func__
    elif isinstance(obj, functools.partial):
        yield "func", obj.func
        yield from _item_parts(obj.args)
        yield from _item_parts(obj.keywords)
    elif isinstance(obj, type):
        yield from ((name, value) for name, value in vars(obj).items() if name not in _CLASS_NOISE)
    elif isinstance(obj, (dict, list, tuple, set, frozenset)):
        yield from _item_parts(obj)
        yield from getattr(obj, "__dict__", {}).items()
    else:
        yield from _reduced_parts(obj)


_CLASS_NOISE = {"__dict__", "__weakref__", "__doc__", "__module__", "__qualname__", "__annotations__"}


def _function_parts(function: types.FunctionType) -> Iterator[tuple[str, Any]]:
    for name, cell in zip(function.__code__.co_freevars, function.__closure__ or (), strict=True):
        with contextlib.suppress(ValueError):  # an empty cell: not assigned yet
            yield name, cell.cell_contents
    for name in sorted(_names(function.__code__)):
        if name in function.__globals__:
            yield name, function.__globals__[name]
    for index, default in enumerate(function.__defaults__ or ()):
        yield f"default {index}", default
    yield from (function.__kwdefaults__ or {}).items()
    yield from vars(function).items()


def _names(code: types.CodeType) -> set[str]:
    names = set(code.co_names)
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            names |= _names(constant)
    return names


def _item_parts(items: Any) -> Iterator[tuple[str, Any]]:
    if isinstance(items, dict):
        for key, value in items.items():
            yield f"key {_short(key)}", key
            yield f"[{_short(key)}]", value
    elif isinstance(items, (list, tuple)):
        for index, value in enumerate(items):
            yield f"[{index}]", value
    else:
        for value in items:
            yield f"{{{_short(value)}}}", value


def _reduced_parts(obj: Any) -> Iterator[tuple[str, Any]]:
    try:
        reduced = obj.__reduce_ex__(5)
    except Exception:  # a leaf: this object itself refuses
        return
    if not isinstance(reduced, tuple):
        return
    constructor, arguments, *rest = reduced
    yield "constructor", constructor
    for index, argument in enumerate(arguments):
        yield f"argument {index}", argument
    state = rest[0] if rest else None
    if isinstance(state, tuple) and len(state) == 2 and all(s is None or isinstance(s, dict) for s in state):
        state = {**(state[0] or {}), **(state[1] or {})}  # (__dict__, __slots__)
    if isinstance(state, dict):
        yield from ((str(name), value) for name, value in state.items())
    elif state is not None:
        yield "state", state


def _short(obj: Any) -> str:
    try:
        text = repr(obj)
    except Exception as error:  # a broken repr must not stop the inspection
        text = f"<{type(obj).__name__}, whose repr raised {type(error).__name__}>"
    return text if len(text) <= _SHOWN else text[: _SHOWN - 1] + "…"
