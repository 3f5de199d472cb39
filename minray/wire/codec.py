"""Frame ↔ tuple of built-in values. Pure.

The encoding is pickle protocol 5, read by an unpickler that can only make built-in values: every road to a
class, a function or a persistent object raises. What does not decode to a tuple is a ProtocolError, whatever
went wrong inside. The framing bounds what arrives, and ``auth`` says from whom, before anything comes here.
What came over a network is looked through before it is unpickled (``decode_foreign``, see ``guard``); a process
of this user on this machine needs no message to do us harm, so its frames go without (``decode``).

Values are copied out of the frame, so its buffer may be reused at once.
"""

from __future__ import annotations

import io
import pickle
from typing import Any, NoReturn

from minray.wire import guard
from minray.wire.errors import ProtocolError
from minray.wire.framing import HEADER

_dumps = pickle.dumps
_pack_header = HEADER.pack
_BytesIO = io.BytesIO
_VIEW_MIN = 16 * 1024  # from here on the copy that BytesIO makes costs more than a reader in Python


class _BuiltinsOnly(pickle.Unpickler):
    __slots__ = ()

    def find_class(self, module_name: str, global_name: str) -> NoReturn:
        raise ProtocolError(
            f"{module_name[:80]}.{global_name[:80]} is not a built-in value: only None, bool, int, float, str, bytes "
            "and tuples, lists, dicts, sets of them cross the wire"
        )

    def persistent_load(self, pid: Any) -> NoReturn:
        raise ProtocolError(f"a persistent id ({type(pid).__name__}) has no meaning on the wire")


class _ViewReader:
    """A read-only file over a buffer that is not copied first."""

    __slots__ = ("_pos", "_view")

    def __init__(self, view: memoryview) -> None:
        self._view = view
        self._pos = 0

    def read(self, size: int = -1) -> bytes:
        stop = len(self._view) if size < 0 else self._pos + size
        data = bytes(self._view[self._pos : stop])
        self._pos += len(data)
        return data

    def readinto(self, target: Any) -> int:
        source = self._view[self._pos : self._pos + len(target)]
        target[: len(source)] = source
        self._pos += len(source)
        return len(source)

    def readline(self) -> bytes:
        rest = bytes(self._view[self._pos : self._pos + 4096])
        line = rest[: rest.find(b"\n") + 1] or rest
        self._pos += len(line)
        return line


def encode(message: tuple[Any, ...]) -> bytes:
    """The bytes of one message."""
    return _dumps(message, 5)


def encode_framed(message: tuple[Any, ...]) -> bytes:
    """The bytes of one message with their length in front: what goes to the socket."""
    data = _dumps(message, 5)
    return _pack_header(len(data)) + data


def decode(data: bytes | bytearray | memoryview) -> tuple[Any, ...]:
    """The message behind ``data``. Raises ProtocolError for anything that is not a tuple of built-ins."""
    try:
        if len(data) < _VIEW_MIN or type(data) is bytes:
            message = _BuiltinsOnly(_BytesIO(data)).load()
        else:
            message = _BuiltinsOnly(_ViewReader(memoryview(data))).load()
    except ProtocolError:
        raise
    except Exception as error:  # truncated, garbage, absurd sizes: all the same to the caller
        problem = f"{type(error).__name__}: {str(error)[:200]}"
    else:
        if type(message) is tuple:
            return message
        problem = f"a message is a tuple, the peer sent {type(message).__name__}"
    # Not inside the handler: the error may hold all of the data, and would be held by ours.
    raise ProtocolError(f"undecodable frame of {len(data)} bytes: {problem}")


def decode_foreign(data: bytes | bytearray | memoryview) -> tuple[Any, ...]:
    """The same for what another machine may have sent: in time and memory in proportion to its length."""
    guard.check(data)
    return decode(data)
