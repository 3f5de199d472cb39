"""Only tuples of built-in values decode; nothing that arrives can run code."""

from __future__ import annotations

import copyreg
import os
import pickle
from collections import OrderedDict
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from minray.wire.codec import decode, decode_foreign, encode, encode_framed
from minray.wire.errors import ProtocolError
from minray.wire.framing import FrameDecoder

atoms = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text() | st.binary()
values = st.recursive(
    atoms, lambda inner: st.lists(inner) | st.tuples(inner, inner) | st.dictionaries(st.text(), inner)
)


@given(st.lists(values).map(tuple))
def test_round_trip(message: tuple[Any, ...]) -> None:
    assert decode(encode(message)) == decode_foreign(encode(message)) == message
    (frame,) = FrameDecoder(1 << 20).feed(encode_framed(message))
    assert decode(frame) == message


@pytest.mark.parametrize("size", [10, 20_000, 300_000])
@pytest.mark.parametrize("kind", [bytes, bytearray, memoryview])
def test_large_values_are_copies(size: int, kind: type) -> None:
    message = (3, [(7, os.urandom(size), bytearray(b"y" * size), {"a": {1, 2}, "b": frozenset()})])
    buffer = bytearray(encode(message))
    decoded = decode(kind(buffer))
    buffer[:] = bytes(len(buffer))
    assert decoded == message


class Betrayer:
    """Would make a file if anything unpickled it."""

    def __init__(self, path: str) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return (os.mkdir, (self.path,))


@pytest.mark.parametrize("padding", [0, 50_000])
def test_a_planted_payload_does_not_run(tmp_path: Any, padding: int) -> None:
    path = str(tmp_path / "betrayed")
    with pytest.raises(ProtocolError, match=r"mkdir is not a built-in value"):
        decode(bytearray(pickle.dumps((1, b"x" * padding, Betrayer(path)), 5)))
    assert not os.path.exists(path)


@pytest.mark.parametrize("protocol", range(6))
def test_classes_of_any_protocol_are_refused(protocol: int) -> None:
    with pytest.raises(ProtocolError):
        decode(pickle.dumps((OrderedDict(a=1),), protocol))


def test_extension_codes_are_refused() -> None:
    copyreg.add_extension("collections", "OrderedDict", 240)
    try:
        with pytest.raises(ProtocolError):
            decode(pickle.dumps((OrderedDict,), 5))
    finally:
        copyreg.remove_extension("collections", "OrderedDict", 240)


def test_an_error_does_not_hold_what_it_is_about() -> None:
    text = b"\xff" * 1_000_000
    with pytest.raises(ProtocolError) as raised:
        decode(b"\x80\x05X" + len(text).to_bytes(4, "little") + text + b"\x85.")
    assert "UnicodeDecodeError" in str(raised.value)
    assert len(str(raised.value)) < 400
    assert raised.value.__context__ is raised.value.__cause__ is None
    name = b"x" * 1_000_000
    with pytest.raises(ProtocolError) as raised:
        decode(b"c" + name + b"\n" + name + b"\n.")
    assert len(str(raised.value)) < 400


def test_persistent_ids_are_refused() -> None:
    with pytest.raises(ProtocolError, match="persistent"):
        decode(b"\x80\x05\x8c\x01aQ.")


GARBAGE = [
    b"",
    b".",
    b"\x80\x05",
    b"garbage",
    b"\x80\x05]\x94.",  # a list
    b"\x80\x05K\x01.",  # an int
    b"\x80\x05N)R.",  # calling None
    b"\x80\x05\x8e" + b"\xff" * 8 + b".",  # bytes of 2**64 - 1
    b"\x80\x05\x8e" + (1 << 45).to_bytes(8, "little") + b".",
    b"\x80\x05(((((",
    b"\x80\x050.",
    b"\x80\x05h\x07.",  # a memo entry that is not there
    b"\x80\x63K\x01\x85.",  # protocol 99
    b"\x80\x05\x97.",  # an out-of-band buffer
]


@pytest.mark.parametrize("data", GARBAGE)
@pytest.mark.parametrize("padding", [0, 20_000])
@pytest.mark.parametrize("decode", [decode, decode_foreign])
def test_garbage_is_a_protocol_error(decode: Callable[..., Any], data: bytes, padding: int) -> None:
    with pytest.raises(ProtocolError):
        decode(bytearray(data[:-1] + data[-1:] + bytes(padding)) if not data.endswith(b".") else data)


@given(st.binary(max_size=200))
def test_random_bytes_give_a_tuple_or_a_protocol_error(data: bytes) -> None:
    try:
        assert type(decode_foreign(data)) is tuple
    except ProtocolError:
        pass


@given(st.lists(values).map(tuple), st.data())
def test_damaged_messages_give_a_tuple_or_a_protocol_error(
    message: tuple[Any, ...], data: st.DataObject
) -> None:
    damaged = bytearray(encode(message))
    damaged[data.draw(st.integers(0, len(damaged) - 1))] = data.draw(st.integers(0, 255))
    try:
        assert type(decode_foreign(damaged)) is tuple
    except ProtocolError:
        pass
