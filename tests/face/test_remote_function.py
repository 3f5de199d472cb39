"""RemoteFunction: what is done once, what is done per call, and what is refused where it is written."""

from __future__ import annotations

import functools
import inspect

import cloudpickle
import pytest

import minray
from minray._base import current

from .conftest import FakeRuntime


@minray.remote
def plain(x: int, y: int = 2) -> int:
    """Add."""
    return x + y


def test_the_runtime_prepares_once_per_options(rt: FakeRuntime) -> None:
    more = plain.options(num_cpus=2)
    for _ in range(3):
        plain.remote(1)
        more.remote(1, y=3)
    assert [question[0] for question in rt.asked].count("prepare_task") == 2
    definitions = {id(question[1]) for question in rt.asked if question[0] == "prepare_task"}
    assert len(definitions) == 1, "variants share the definition, so that the code is pickled once"


def test_another_session_prepares_again(rt: FakeRuntime) -> None:
    plain.remote(1)
    other = FakeRuntime()
    current.set(other)
    plain.remote(1)
    assert [question[0] for question in other.asked] == ["prepare_task", "submit_task"]


def test_a_wrong_call_reaches_no_runtime(rt: FakeRuntime) -> None:
    for args, kwargs in (((), {}), ((1, 2, 3), {}), ((1,), {"q": 1}), ((1,), {"x": 1})):
        with pytest.raises(TypeError):
            plain.remote(*args, **kwargs)
    assert not any(question[0] == "submit_task" for question in rt.asked)


def test_it_looks_like_its_function() -> None:
    assert (plain.__name__, plain.__doc__, plain.__module__) == ("plain", "Add.", __name__)
    assert str(inspect.signature(plain)) == "(x: 'int', y: 'int' = 2) -> 'int'"
    assert plain._function(1) == 3


def test_b18_options_merge_per_key_and_change_nothing(rt: FakeRuntime) -> None:
    base = plain.options(num_cpus=2, resources={"a": 1})
    base.options(num_cpus=3)
    assert base._options.given == {"num_cpus": 2, "resources": {"a": 1}}
    assert base.options(num_cpus=3)._options.given == {"num_cpus": 3, "resources": {"a": 1}}
    with pytest.raises(ValueError, match="zz"):
        plain.options(zz=1)


def test_b21_calling_it_names_remote() -> None:
    with pytest.raises(TypeError, match=r"plain\.remote\(\)"):
        plain(1)


@pytest.mark.parametrize("target", [5, print, functools.partial(print), "text"])
def test_b21_only_functions_and_classes_can_be_remote(target: object) -> None:
    with pytest.raises(TypeError, match="function or a class"):
        minray.remote(target)  # type: ignore[call-overload]


def test_misuse_of_the_decorator() -> None:
    with pytest.raises(TypeError, match="no parentheses"):
        minray.remote()
    with pytest.raises(TypeError, match="no parentheses"):
        minray.remote(1, 2)  # type: ignore[call-overload]
    with pytest.raises(TypeError, match="already"):
        minray.remote(plain)
    with pytest.raises(ValueError, match="num_cpu"):
        minray.remote(num_cpu=1)
    with pytest.raises(ValueError, match="num_cpus"):
        minray.remote(num_cpus=-1)


def test_a_coroutine_function_is_refused_with_advice() -> None:
    async def coroutine() -> None: ...

    with pytest.raises(ValueError, match=r"asyncio\.run"):
        minray.remote(coroutine)


def test_b37_streaming_needs_a_generator_function() -> None:
    with pytest.raises(ValueError, match="generator"):
        plain.options(num_returns="streaming")


def test_a_recursive_remote_function_pickles() -> None:
    @minray.remote(num_cpus=2)
    def factorial(n: int) -> int:
        return 1 if n == 0 else n * minray.get(factorial.remote(n - 1))

    again = cloudpickle.loads(cloudpickle.dumps(factorial))
    assert again._options.given == {"num_cpus": 2}
    inner = inspect.getclosurevars(again._function).nonlocals["factorial"]
    assert type(inner) is type(again)
    assert again._definition.shape == factorial._definition.shape
