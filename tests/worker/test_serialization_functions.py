"""Functions as bytes: by value with what they use; size limits; references inside are pinned."""

from __future__ import annotations

import os
import threading
import warnings
from typing import Any

import pytest

from minray.object_ref import make_ref
from minray.worker import functions
from minray.worker.functions import dumps_function, loads_function
from tests.store.support import object_id

COUNTER = {"n": 0}


def plain(x: int) -> int:
    return x + 1


def decorated(function: Any) -> Any:
    """As a remote function hides the one that it decorates."""

    class Wrapper:
        def __init__(self) -> None:
            self.function = function

    return Wrapper()


@decorated
def hidden(x: int) -> int:
    return 0 if x == 0 else 1 + hidden.function(x - 1)


def test_a_function_that_workers_find_goes_by_name() -> None:
    blob = dumps_function(plain)
    assert loads_function(blob) is plain and len(blob) < 150


def test_a_decorated_function_goes_by_value_and_can_call_itself() -> None:
    made = loads_function(dumps_function(hidden.function))
    assert made is not hidden.function and made(5) == 5


def test_closures_and_defaults_are_as_they_were_when_pickled() -> None:
    factor = 2

    def multiply(x: int, y: int = 10) -> int:
        return x * factor + y

    blob = dumps_function(multiply)
    factor = 100
    assert loads_function(blob)(3) == 16


def test_classes_with_inheritance_and_super() -> None:
    class Base:
        def name(self) -> str:
            return "base"

    class Child(Base):
        kind = "child"

        def name(self) -> str:
            return super().name() + self.kind

        @classmethod
        def make(cls) -> Any:
            return cls()

        @property
        def upper(self) -> str:
            return self.name().upper()

    made = loads_function(dumps_function(Child))
    assert made.make().upper == "BASECHILD"


def test_generators_and_coroutines() -> None:
    def generate(n: int) -> Any:
        yield from range(n)

    async def wait() -> int:
        return 5

    assert list(loads_function(dumps_function(generate))(3)) == [0, 1, 2]
    coroutine = loads_function(dumps_function(wait))()
    with pytest.raises(StopIteration, match="5"):
        coroutine.send(None)


def test_what_cannot_be_pickled_is_named_with_its_path() -> None:
    class Logger:
        def __init__(self) -> None:
            self._lock = threading.Lock()

    class Config:
        def __init__(self) -> None:
            self.logger = Logger()

    cfg = Config()

    def train() -> Any:
        return cfg

    with pytest.raises(
        TypeError, match=r"cannot pickle train → closure 'cfg' → \.logger\._lock \(_thread\.lock\)"
    ):
        dumps_function(train)
    with pytest.raises(TypeError, match=r"cannot pickle my task → closure 'cfg'"):
        dumps_function(train, "my task")


def test_size_limits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(functions, "WARN_BYTES", 10_000)
    monkeypatch.setattr(functions, "MAX_BYTES", 50_000)
    data = os.urandom(20_000)

    def small() -> int:
        return 1

    def large() -> int:
        return len(data)

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        dumps_function(small)
    with pytest.warns(UserWarning, match="large is 0 MB when pickled: does it capture a large object"):
        dumps_function(large, "large")
    data = os.urandom(60_000)
    with pytest.raises(ValueError, match="more than the 0 MB allowed"):
        dumps_function(large)


def test_references_in_a_function_leave_out_of_band() -> None:
    pinned: list[Any] = []

    class Runtime:
        def release(self, oid: bytes) -> None: ...

        def pin_forever(self, ref: Any) -> None:
            pinned.append(ref._id)

    ref = make_ref(object_id(5), None, Runtime())
    made = loads_function(dumps_function(lambda: ref))
    assert pinned == [object_id(5)] and made() == ref


def test_exception_lists_for_retries() -> None:
    class Mine(Exception):
        pass

    made = loads_function(dumps_function([ValueError, Mine], "retry_exceptions"))
    assert made[0] is ValueError and made[1].__name__ == "Mine"
