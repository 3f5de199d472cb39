"""ActorClass, ActorHandle, ActorMethod: what keeps an actor alive, what pickles, what is refused."""

from __future__ import annotations

import copy
import weakref
from typing import Any

import cloudpickle
import pytest

import minray
from minray._base import current
from minray.actor import ActorClassInheritanceException
from minray.exceptions import ActorHandleNotFoundError

from .conftest import FakeRuntime


@minray.remote
class Counter:
    step = 1

    def __init__(self, start: int = 0) -> None:
        self.value = start

    def add(self, by: int = 1) -> int:
        self.value += by
        return self.value

    @minray.method(num_returns=2)
    def two(self) -> tuple[int, int]:
        return 1, 2

    def items(self) -> Any:
        yield 1

    @staticmethod
    def fixed(x: int) -> int:
        return x

    @classmethod
    def made(cls, x: int) -> int:
        return x


def test_the_hidden_reference_is_counted_by_handle_and_methods_together(rt: FakeRuntime) -> None:
    handle = Counter.remote()
    method = handle.add
    hidden = handle._record.handle_ref.binary()
    gone = weakref.ref(handle)
    del handle
    assert gone() is None, "handle and its cached methods must not form a cycle"
    assert rt.released == []
    del method
    assert rt.released == [hidden]


def test_calls_are_prepared_once_per_method(rt: FakeRuntime) -> None:
    handle = Counter.remote(1)
    for _ in range(3):
        handle.add.remote(1)
    assert [question[0] for question in rt.asked].count("prepare_method") == 1
    assert handle.add is handle.add


def test_options_of_a_method_come_from_its_decorator_and_its_kind(rt: FakeRuntime) -> None:
    handle = Counter.remote()
    handle.two.remote()
    handle.items.remote()
    handle.add.options(num_returns=0, name="n").remote()
    prepared = [question[2] for question in rt.asked if question[0] == "prepare_method"]
    assert [options.num_returns for options in prepared] == [2, "streaming", 0]
    assert prepared[2].name == "n"


def test_b16_signatures_are_checked_in_the_caller(rt: FakeRuntime) -> None:
    with pytest.raises(TypeError, match="too many"):
        Counter.remote(1, 2)
    handle = Counter.remote()
    with pytest.raises(TypeError, match="'zz'"):
        handle.add.remote(zz=1)
    with pytest.raises(TypeError, match="'x'"):
        handle.fixed.remote()
    handle.made.remote(1)
    with pytest.raises(TypeError, match="too many"):
        handle.__ray_ready__.remote(1)


def test_b21_misuse(rt: FakeRuntime) -> None:
    handle = Counter.remote()
    with pytest.raises(TypeError, match=r"Counter\.remote\(\)"):
        Counter()
    with pytest.raises(TypeError, match=r"add\.remote\(\)"):
        handle.add()
    with pytest.raises(AttributeError, match="did you mean 'add'"):
        handle.addd
    with pytest.raises(ActorClassInheritanceException, match="Counter"):

        class Derived(Counter):  # type: ignore[misc]
            pass

    with pytest.raises(AttributeError, match="nothing"):
        Counter.nothing
    assert Counter.step == 1


def test_b33_handles_compare_and_hash_by_id(rt: FakeRuntime) -> None:
    one, other = Counter.remote(), Counter.remote()
    assert one == other and hash(one) == hash(other) and one != 5
    assert repr(one) == f"Actor(Counter, {one._actor_id.hex()})"
    assert copy.deepcopy(one) is one
    assert {"add", "__ray_ready__"} <= set(dir(one))


def test_a_handle_travels_with_its_hidden_reference(rt: FakeRuntime) -> None:
    handle = Counter.remote()
    again = cloudpickle.loads(cloudpickle.dumps(handle))
    assert again == handle and again._record.class_name == "Counter"
    assert again._record.handle_ref == handle._record.handle_ref
    assert set(again._record.methods) == set(handle._record.methods)
    method = cloudpickle.loads(cloudpickle.dumps(handle.add.options(num_returns=3)))
    assert method._options.num_returns == 3


def test_a_handle_of_an_earlier_session_says_so(rt: FakeRuntime) -> None:
    handle = Counter.remote()
    method = handle.add
    method.remote()
    current.set(FakeRuntime())
    with pytest.raises(ActorHandleNotFoundError, match="Counter"):
        method.remote()
    with pytest.raises(ActorHandleNotFoundError, match="session"):
        minray.kill(handle)


def test_wrong_methods_are_refused_where_the_class_is_decorated() -> None:
    class Bad:
        @minray.method(concurrency_group="io")
        def read(self) -> None: ...

    with pytest.raises(ValueError, match="io"):
        minray.remote(Bad)
    minray.remote(concurrency_groups={"io": 1})(Bad)

    class NotAGenerator:
        @minray.method(num_returns="streaming")
        def read(self) -> None: ...

    with pytest.raises(ValueError, match="read"):
        minray.remote(NotAGenerator)


@pytest.mark.parametrize("wrong", [{"zz": 1}, {"name": "x"}, {"num_cpus": 1}])
def test_method_refuses_what_it_does_not_know(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(wrong))):
        minray.method(**wrong)


def test_method_decorates_functions_only() -> None:
    with pytest.raises(TypeError, match="keywords"):
        minray.method(5)  # type: ignore[call-overload]


def test_asyncio_is_told_by_one_coroutine_function_even_inherited() -> None:
    class Base:
        async def wait(self) -> None: ...

    @minray.remote
    class Derived(Base):
        def now(self) -> None: ...

    assert Derived._definition.is_async and not Counter._definition.is_async


def test_a_class_that_makes_more_of_its_kind_pickles() -> None:
    @minray.remote(num_cpus=0)
    class Node:
        def child(self) -> Any:
            return Node.remote()

    again = cloudpickle.loads(cloudpickle.dumps(Node))
    assert again._options.given == {"num_cpus": 0} and again._definition.name == "Node"


def test_b29_exit_actor_outside_an_actor_is_a_type_error(rt: FakeRuntime) -> None:
    with pytest.raises(TypeError, match="actor"):
        minray.actor.exit_actor()
