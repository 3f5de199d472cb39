"""Every control message survives the wire; what is none is a ProtocolError."""

from __future__ import annotations

import pytest

from minray.wire import control
from minray.wire import messages as m
from minray.wire.codec import decode, encode
from minray.wire.errors import ProtocolError

ALL = sorted(control._REGISTRY.items())


@pytest.mark.parametrize("cls", [cls for _, cls in ALL], ids=lambda cls: cls.__name__)
def test_round_trip(cls: type[m.Message]) -> None:
    message = cls(*(f"value {i}" for i in range(len(control._FIELDS[cls.TAG]))))
    assert m.unpack(decode(encode(m.pack(message)))) == message
    with pytest.raises(ProtocolError):
        m.unpack((*m.pack(message), "one too many"))
    with pytest.raises(AttributeError):
        message.anything = 5  # type: ignore[attr-defined]


def test_hot_tags_are_no_control_messages() -> None:
    hot = {m.TASKS, m.CALLS, m.RESULTS, m.RELEASES, m.BORROWS, m.FETCH, m.VALUES}
    assert len(hot) == 7
    assert not hot & set(dict(ALL))


def test_a_tag_is_given_once() -> None:
    tag = m.Hello.TAG
    with pytest.raises(AssertionError, match="Hello"):

        @m.message(tag)
        class Impostor(m.Message):
            pass


@pytest.mark.parametrize("raw", [(), (0,), (m.TASKS, 1), (-1,), ("x",), ([],), (None,), (20.0,), (True,)])
def test_what_is_no_control_message(raw: tuple[object, ...]) -> None:
    with pytest.raises(ProtocolError):
        m.unpack(raw)
