"""Custom serializers: how instances of one class travel.

A serializer is registered with cloudpickle's table of reducers, for this process only and for the class
itself, not its subclasses. What it returns travels with the deserializer, so the receiving process needs
no registration (and to send such objects on, one of its own).
"""

from __future__ import annotations

from collections.abc import Callable, MutableMapping
from typing import Any, TypeVar

_T = TypeVar("_T")


def register_serializer(
    cls: type[_T], *, serializer: Callable[[_T], Any], deserializer: Callable[[Any], _T]
) -> None:
    """Send instances of ``cls`` as ``serializer(instance)``; rebuild them by ``deserializer`` of that.

    :param serializer: returns something that can be pickled.
    :param deserializer: must itself be picklable (a lambda is).
    :raises TypeError: ``cls`` is not a class, or one of the functions cannot be called.
    """
    if not isinstance(cls, type):
        raise TypeError(f"register_serializer needs a class, not {cls!r}")
    for name, function in (("serializer", serializer), ("deserializer", deserializer)):
        if not callable(function):
            raise TypeError(f"{name} must be callable: {function!r}")

    def reduce(instance: _T) -> tuple[Callable[[Any], _T], tuple[Any]]:
        return deserializer, (serializer(instance),)

    _reducers()[cls] = reduce


def deregister_serializer(cls: type) -> None:
    """Forget the serializer of ``cls``; nothing happens if it has none."""
    _reducers().pop(cls, None)


def _reducers() -> MutableMapping[type, Any]:
    import cloudpickle  # here: importing minray.util must not load it

    # The first map of cloudpickle's ChainMap: its own and its users' reducers, before copyreg's.
    table: MutableMapping[type, Any] = cloudpickle.Pickler.dispatch_table
    return table
