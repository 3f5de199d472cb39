"""What a control message is: a frozen slotted class with a tag, and a tuple on the wire.

``messages`` and ``cluster_messages`` define them all; nothing else registers any. Invariant: a tag has one class, for
ever.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, ClassVar, TypeVar

from minray.wire.errors import ProtocolError

if TYPE_CHECKING:
    from typing_extensions import dataclass_transform
else:

    def dataclass_transform(**_):
        return lambda decorator: decorator


Address = tuple[bytes, bytes, str]
Location = tuple[bytes, int, int, int]
Resources = dict[str, int]

_REGISTRY: dict[int, type[Message]] = {}
_FIELDS: dict[int, tuple[str, ...]] = {}
_M = TypeVar("_M", bound="Message")
_set = object.__setattr__


class Message:
    """Base of the control messages: frozen, slotted, equal by type and values. ``@message`` sets ``TAG``.

    A dataclass in all but its making: ``dataclasses`` takes 0.5 ms per class and 14 ms to import, which would
    be most of the time in which a control process starts.
    """

    __slots__ = ()
    TAG: ClassVar[int] = 0

    if not TYPE_CHECKING:

        def __init__(self, *args: Any, **kwargs: Any) -> None:
            """The first message of its class in this process: compiling them all at once takes 2 ms."""
            cls = type(self)
            names, scope = _FIELDS[cls.TAG], {"_set": _set}
            body = "".join(f"\n    _set(self, {name!r}, {name})" for name in names) or "\n    pass"
            exec(f"def __init__(self{''.join(', ' + name for name in names)}):{body}", scope)
            cls.__init__ = scope["__init__"]
            cls.__init__.__qualname__ = f"{cls.__name__}.__init__"
            cls.__init__(self, *args, **kwargs)

    def __setattr__(self, name: str, value: Any) -> None:
        raise AttributeError(f"messages are frozen: cannot set {type(self).__name__}.{name}")

    def __delattr__(self, name: str) -> None:
        raise AttributeError(f"messages are frozen: cannot delete {type(self).__name__}.{name}")

    def __eq__(self, other: object) -> bool:
        return type(self) is type(other) and isinstance(other, Message) and pack(self) == pack(other)

    def __hash__(self) -> int:
        return hash(pack(self))

    def __repr__(self) -> str:
        shown = ", ".join(f"{name}={getattr(self, name)!r}" for name in _FIELDS[self.TAG])
        return f"{type(self).__name__}({shown})"

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), pack(self)[1:]


@dataclass_transform(frozen_default=True)
def message(tag: int) -> Callable[[type[_M]], type[_M]]:
    """Register a control message under ``tag``, once and for ever. Its fields are the class's annotations."""

    def register(cls: type[_M]) -> type[_M]:
        if tag in _REGISTRY:
            raise AssertionError(f"tag {tag} is taken by {_REGISTRY[tag].__name__}")
        names = tuple(cls.__annotations__)
        space = {key: value for key, value in vars(cls).items() if key not in ("__dict__", "__weakref__")}
        space.update(__slots__=names, __match_args__=names, TAG=tag)
        remake: Callable[..., type[_M]] = type(cls)  # slots are given at birth
        made = remake(cls.__name__, cls.__bases__, space)
        _REGISTRY[tag] = made
        _FIELDS[tag] = names
        return made

    return register


def pack(msg: Message) -> tuple[Any, ...]:
    """The tuple that travels for ``msg``."""
    return (msg.TAG, *(getattr(msg, name) for name in _FIELDS[msg.TAG]))


def unpack(raw: tuple[Any, ...]) -> Message:
    """The control message behind ``raw``. Raises ProtocolError for an unknown tag or a wrong arity."""
    cls = _REGISTRY.get(raw[0]) if raw and type(raw[0]) is int else None
    if cls is None or len(raw) - 1 != len(_FIELDS[raw[0]]):
        raise ProtocolError(f"not a message of this protocol: tag and arity {raw[:1]!r}, {len(raw)}")
    return cls(*raw[1:])
