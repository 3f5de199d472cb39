"""What may be unpickled: the program behind a message is read before it is run. Pure.

A pickle is a program for a little stack machine. The unpickler of ``codec`` makes built-in values only, so no
program runs code of a stranger's choice; but one can be written to hurt: ten bytes that make the machine's memo
gigabytes long, tuples nested so deep that hashing them overruns the C stack, or so often inside themselves that
hashing them takes for ever. Whoever knows the token has simpler ways to do harm; but a broken process on another
machine must not take this one with it. So what comes from other machines (``codec.decode_foreign``) passes here
first, and what passes takes time and memory in proportion to its length:

* only the instructions that our own encoder writes, and no number of bytes that are not there;
* as keys of dicts and members of sets, what is hashed at once: atoms, or short tuples of them;
* no deeper than ``MAX_DEPTH`` levels, where something is hashed or the message is long (a short one has no room
  for more levels than a stack bears).

Most messages are short and hash nothing: those pass by one regular expression that knows all instructions
without a long argument (``_skip_plain``). For the rest the ``_Walk`` follows the machine's stack. An item of it
is what an instruction needs to know of a value: ``_KEY`` for what may be a key, ``_FLAT`` for a short tuple of
those, else 1 + the number of levels (so an atom that may be no key counts as one level).
"""

from __future__ import annotations

import re
from collections.abc import Callable

from minray.wire.errors import ProtocolError

MAX_DEPTH = 100
PLAIN_MAX = 16 * 1024  # bytes of a short message
_KEY, _FLAT, _OTHER = 0, 1, 2
Data = bytes | bytearray | memoryview
_FLAT_MAX = 16  # items of a tuple that may be a key
_BEGIN = b"\x80\x05"
_STOP, _LONG_UNICODE, _LONG_BYTES = b".XB"
_RUN = 1000  # instructions per match: Python 3.10 keeps a record of each until the match is over
_plain: Callable[..., re.Match[bytes]] | None = None


def _make_plain() -> Callable[..., re.Match[bytes]]:
    """All instructions that neither hash nor have a length of 4 bytes. Made when it is needed: it takes some
    milliseconds."""
    global _plain
    counted = b"|".join(re.escape(bytes([size])) + b".{%d}" % size for size in range(256))
    numbers = b"|".join(b"\\x8a" + re.escape(bytes([size])) + b".{%d}" % size for size in range(9))
    _plain = re.compile(  # type: ignore[assignment]  # zero times always matches
        # constants, tuples, lists, memoize | bytes and strings | small numbers, memoized things | frames
        rb"(?s:[N\x88\x89)\x85-\x87t\]}ae(\x94]+|[C\x8c](?:%b)|[Kh].|M..|[Jj].{4}|G.{8}|%b|\x95.{8}){0,%d}"
        % (counted, numbers, _RUN)
    ).match
    assert _plain is not None
    return _plain


def _skip_plain(data: Data) -> int:
    """Where the message ends, if plain instructions are all that it has; else 0."""
    match = _plain or _make_plain()
    pos = len(_BEGIN)
    while True:
        stop = match(data, pos).end()
        op = data[stop]
        if op == _STOP:
            return stop + 1
        if op in (_LONG_UNICODE, _LONG_BYTES):
            pos = stop + 5 + int.from_bytes(data[stop + 1 : stop + 5], "little")
        elif stop == pos:
            return 0
        else:
            pos = stop


class _Walk:
    """Follows the stack, the marks and the memo of the machine, without values."""

    __slots__ = ("data", "marks", "memo", "stack")

    def __init__(self, data: Data) -> None:
        self.data = data
        self.stack: list[int] = []
        self.marks: list[int] = []
        self.memo: list[int] = []

    def run(self) -> int:
        """Where the message ends. Raises ProtocolError, or IndexError if it ends too soon."""
        data, push, pos = self.data, self.stack.append, len(_BEGIN)
        while True:
            op = data[pos]
            width = _FIXED[op]
            if width:
                push(_KEY)
                pos += width
            elif op == _STOP:
                return pos + 1
            else:
                act = _ACTS.get(op)
                if act is None:
                    raise ProtocolError(f"a message contains the instruction {op:#04x}, which minray never writes")
                pos = act(self, pos + 1)

    def number(self, pos: int, size: int) -> int:
        return int.from_bytes(self.data[pos : pos + size], "little")

    def short(self, pos: int) -> int:
        self.stack.append(_KEY)
        return pos + 1 + self.data[pos]

    def long(self, pos: int) -> int:
        self.stack.append(_KEY)
        return pos + 4 + self.number(pos, 4)

    def array(self, pos: int) -> int:
        self.stack.append(_OTHER)
        return pos + 8 + self.number(pos, 8)

    def integer(self, pos: int) -> int:  # many long ones have the same hash
        size = self.data[pos]
        self.stack.append(_KEY if size <= 8 else _OTHER)
        return pos + 1 + size

    def big_integer(self, pos: int) -> int:
        self.stack.append(_OTHER)
        return pos + 4 + self.number(pos, 4)

    def frame(self, pos: int) -> int:
        return pos + 8

    def memoize(self, pos: int) -> int:
        self.memo.append(self.stack[-1])
        return pos

    def get(self, pos: int) -> int:
        self.stack.append(self.memo[self.data[pos]])
        return pos + 1

    def long_get(self, pos: int) -> int:
        self.stack.append(self.memo[self.number(pos, 4)])
        return pos + 4

    def mark(self, pos: int) -> int:
        self.marks.append(len(self.stack))
        return pos

    def container(self, pos: int) -> int:
        self.stack.append(_OTHER)
        return pos

    def since_mark(self) -> list[int]:
        at = self.marks.pop()
        items = self.stack[at:]
        del self.stack[at:]
        return items

    def tuple(self, pos: int) -> int:
        self.push_tuple(self.since_mark())
        return pos

    def short_tuple(self, pos: int) -> int:
        size = self.data[pos - 1] - 0x84
        items = [self.stack.pop() for _ in range(size)]
        self.push_tuple(items)
        return pos

    def push_tuple(self, items: list[int]) -> None:
        inner = max(items, default=_KEY)
        if inner == _KEY:
            self.stack.append(_FLAT if len(items) <= _FLAT_MAX else _OTHER)
        else:
            self.stack.append(max(_OTHER, inner) + 1)
            self.check_depth(inner)

    def check_depth(self, inner: int) -> None:
        if inner > MAX_DEPTH:
            raise ProtocolError(f"a message is nested more than {MAX_DEPTH} levels deep")

    def grow(self, items: list[int]) -> None:
        """The list, dict or set on the stack takes ``items``."""
        inner = max(items, default=_KEY)
        self.check_depth(inner)
        if inner >= self.stack[-1]:
            self.stack[-1] = inner + 1

    def check_keys(self, keys: list[int]) -> None:
        if max(keys, default=_KEY) > _FLAT:
            raise ProtocolError("a message has a key of a dict, or a member of a set, that is no simple value")

    def append(self, pos: int) -> int:
        self.grow([self.stack.pop()])
        return pos

    def appends(self, pos: int) -> int:
        self.grow(self.since_mark())
        return pos

    def set_item(self, pos: int) -> int:
        value = self.stack.pop()
        self.check_keys([self.stack.pop()])
        self.grow([value])
        return pos

    def set_items(self, pos: int) -> int:
        items = self.since_mark()
        self.check_keys(items[::2])
        self.grow(items[1::2])
        return pos

    def add_items(self, pos: int) -> int:
        self.check_keys(self.since_mark())
        return pos

    def frozen_set(self, pos: int) -> int:
        self.check_keys(self.since_mark())
        self.stack.append(_OTHER)
        return pos


# None, True, False, ints of 4, 1 and 2 bytes, a float, the empty tuple: their lengths.
_FIXED = [0] * 256
for _op, _size in zip(b"N\x88\x89JKMG)", (1, 1, 1, 5, 2, 3, 9, 1), strict=True):
    _FIXED[_op] = _size
_ACTS: dict[int, Callable[[_Walk, int], int]] = {
    0x43: _Walk.short, 0x8C: _Walk.short, 0x42: _Walk.long, 0x58: _Walk.long, 0x96: _Walk.array,
    0x8A: _Walk.integer, 0x8B: _Walk.big_integer, 0x95: _Walk.frame,
    0x94: _Walk.memoize, 0x68: _Walk.get, 0x6A: _Walk.long_get,
    0x28: _Walk.mark, 0x74: _Walk.tuple, 0x85: _Walk.short_tuple, 0x86: _Walk.short_tuple, 0x87: _Walk.short_tuple,
    0x5D: _Walk.container, 0x7D: _Walk.container, 0x8F: _Walk.container,
    0x61: _Walk.append, 0x65: _Walk.appends, 0x73: _Walk.set_item, 0x75: _Walk.set_items,
    0x90: _Walk.add_items, 0x91: _Walk.frozen_set,
}  # fmt: skip


def check(data: Data) -> None:
    """Raise ProtocolError unless ``data`` may be unpickled."""
    try:
        if data[:2] != _BEGIN:
            raise ProtocolError(f"a message of {len(data)} bytes does not begin like one")
        end = _skip_plain(data) if len(data) <= PLAIN_MAX else 0
        if not end:
            end = _Walk(data).run()
    except IndexError:
        raise ProtocolError(f"a message of {len(data)} bytes ends too soon, or takes what it has not made") from None
    if end != len(data):
        raise ProtocolError(f"a message of {len(data)} bytes goes on behind its end at {end}")
