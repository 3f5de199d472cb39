"""The path to what cannot be pickled."""

from __future__ import annotations

import socket
import sys
import threading
from typing import Any

import pytest

from minray.object_ref import make_ref
from minray.worker.serialization import serialize
from minray.worker.unpicklable import explain_unpicklable
from tests.store.support import object_id

LOCK = threading.Lock()


class Box:
    def __init__(self, **attributes: Any) -> None:
        self.__dict__.update(attributes)

    def method(self) -> None: ...


class Slots:
    __slots__ = ("content",)

    def __init__(self, content: Any) -> None:
        self.content = content


class Refuses:
    def __reduce__(self) -> Any:
        raise ValueError("not me")


@pytest.mark.parametrize(
    ("value", "path"),
    [
        (LOCK, "a _thread.lock"),
        ([1, "x", {"k": (LOCK,)}], "a list → [2]['k'][0] (_thread.lock)"),
        (
            Box(a=1, deep=Box(lock=LOCK)),
            "a tests.worker.test_serialization_unpicklable.Box → .deep.lock (_thread.lock)",
        ),
        (Slots([LOCK]), "a tests.worker.test_serialization_unpicklable.Slots → .content[0] (_thread.lock)"),
        ({1: Refuses()}, "a dict → [1] (tests.worker.test_serialization_unpicklable.Refuses)"),
        ({frozenset([Refuses()]): 1}, None),
        (Box(m=Box(lock=LOCK).method), None),
        (ValueError("x", LOCK), "a ValueError → .args[1] (_thread.lock)"),
        ((i for i in range(3)), "a generator"),
        (sys._getframe(), "a frame"),
    ],
    ids=str,
)
def test_paths(value: Any, path: str | None) -> None:
    found = explain_unpicklable(value)
    if path is None:
        assert "Refuses" in found or found.endswith("(_thread.lock)"), found
    else:
        assert found.replace("_thread.LockType", "_thread.lock") == path


def test_globals_and_defaults_of_functions() -> None:
    def uses_global() -> Any:
        return [LOCK for _ in range(3)]

    uses_global.__module__ = "__main__"
    assert explain_unpicklable(uses_global) == "uses_global → global 'LOCK' (_thread.lock)"

    def with_default(x: Any = LOCK) -> Any:
        return x

    assert "with_default → default 0" in explain_unpicklable(with_default)


def test_classes() -> None:
    class Holder:
        shared = LOCK

        def fine(self) -> None: ...

    assert explain_unpicklable(Holder()).endswith("its class → .shared (_thread.lock)")
    assert explain_unpicklable([Holder]) == "a list → [0].shared (_thread.lock)"


def test_cycles_and_wide_values_end() -> None:
    loop: list[Any] = []
    loop.append(loop)
    loop.append(LOCK)
    assert explain_unpicklable(loop) == "a list → [1] (_thread.lock)"
    assert explain_unpicklable([list(range(10)) for _ in range(5000)] + [LOCK]).startswith("a list")


def test_serialize_says_where_and_why() -> None:
    with socket.socket() as connection:
        with pytest.raises(
            TypeError, match=r"cannot pickle a dict → \['conn'\] \(socket\.socket\): cannot pickle 'socket'"
        ):
            serialize({"conn": connection})
    with pytest.raises(TypeError, match="Refuses\\): not me") as caught:
        serialize([Refuses()])
    assert isinstance(caught.value.__cause__, ValueError)


def test_looking_pins_no_reference() -> None:
    class Runtime:
        def release(self, oid: bytes) -> None: ...

        def pin_forever(self, ref: Any) -> None:
            raise AssertionError("pinned")

    ref = make_ref(object_id(1), None, Runtime())
    assert explain_unpicklable([ref, {"r": ref}, LOCK]) == "a list → [2] (_thread.lock)"
