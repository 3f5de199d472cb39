"""as_completed and map_unordered: order, laziness, bounds, errors."""

from __future__ import annotations

import itertools
from typing import Any

import pytest

from ..conformance.target import USAGE_ERRORS, Gate, minray_only, needs_concurrency, ray, util

INIT = {"num_cpus": 2}


@ray.remote
def identity(value: Any) -> Any:
    return value


@ray.remote
def fail(value: Any) -> Any:
    raise ValueError(f"no {value}")


@ray.remote(num_cpus=0)
def pass_gate(gate: Gate, key: str) -> str:
    gate.wait(key)
    return key


@ray.remote(num_cpus=0)
class Doubler:
    def double(self, value: int) -> int:
        return 2 * value


@needs_concurrency
def test_as_completed_yields_what_is_ready_before_what_was_asked_first(gate: Gate) -> None:
    gate.open("second")
    results = util.as_completed([pass_gate.remote(gate, key) for key in ("first", "second")], chunk_size=1)
    assert next(results) == "second"
    gate.open("first")
    assert next(results) == "first"
    assert list(results) == []


@needs_concurrency
@minray_only("a result waits there until its chunk is complete")
def test_as_completed_never_holds_a_result_back_for_its_chunk(gate: Gate) -> None:
    results = util.as_completed([identity.remote(1), pass_gate.remote(gate, "late")], chunk_size=10)
    assert next(results) == 1
    gate.open("late")
    assert next(results) == "late"


def test_as_completed_of_nothing_is_empty() -> None:
    assert list(util.as_completed([])) == []


def test_as_completed_can_yield_references() -> None:
    ref = identity.remote(5)
    assert list(util.as_completed([ref], yield_obj_refs=True)) == [ref]


def test_as_completed_raises_a_task_s_error() -> None:
    with pytest.raises(ValueError, match="no 7"):
        list(util.as_completed([fail.remote(7)]))


@minray_only("it raises at the first next()")
def test_as_completed_checks_its_arguments_at_the_call() -> None:
    with pytest.raises(ValueError, match="chunk_size"):
        util.as_completed([], chunk_size=0)
    with pytest.raises(TypeError, match="colour"):
        util.as_completed([], colour="red")


def test_as_completed_takes_references_only_and_each_once() -> None:
    with pytest.raises(TypeError):
        list(util.as_completed([1]))
    ref = identity.remote(1)
    with pytest.raises(ValueError):
        list(util.as_completed([ref, ref]))


@minray_only("it takes a sequence only")
def test_as_completed_takes_any_iterable() -> None:
    assert sorted(util.as_completed(identity.remote(i) for i in range(5))) == list(range(5))


def test_as_completed_of_many() -> None:
    assert sorted(util.as_completed([identity.remote(i) for i in range(200)])) == list(range(200))


def test_map_unordered_maps_functions_and_methods() -> None:
    assert sorted(util.map_unordered(identity, range(50), backpressure_size=7)) == list(range(50))
    actor = Doubler.remote()
    assert sorted(util.map_unordered(actor.double, [1, 2, 3])) == [2, 4, 6]


def test_map_unordered_takes_an_endless_iterable_lazily() -> None:
    taken: list[int] = []

    def numbers() -> Any:
        for number in itertools.count():
            taken.append(number)
            yield number

    results = util.map_unordered(identity, numbers(), backpressure_size=5, chunk_size=1)
    got = {next(results) for _ in range(20)}
    assert len(got) == 20
    assert len(taken) <= 20 + 5


def test_map_unordered_without_a_limit() -> None:
    assert sorted(util.map_unordered(identity, range(30), backpressure_size=None)) == list(range(30))


@needs_concurrency
def test_map_unordered_yields_what_is_ready_first(gate: Gate) -> None:
    call = ray.remote(num_cpus=0)(lambda key: gate.wait(key) or key)
    gate.open("b")
    results = util.map_unordered(call, ["a", "b"], chunk_size=1, backpressure_size=2)
    assert next(results) == "b"
    gate.open("a")
    assert list(results) == ["a"]


def test_map_unordered_can_yield_references() -> None:
    refs = list(util.map_unordered(identity, [3], yield_obj_refs=True))
    assert ray.get(refs) == [3]


def test_map_unordered_raises_a_task_s_error() -> None:
    with pytest.raises(ValueError, match="no 1"):
        list(util.map_unordered(fail, [1]))


def test_map_unordered_checks_its_arguments() -> None:
    with pytest.raises(USAGE_ERRORS):
        list(util.map_unordered(abs, [1]))
    with pytest.raises(ValueError, match="backpressure_size"):
        list(util.map_unordered(identity, [1], backpressure_size=0))
    with pytest.raises(ValueError, match="chunk_size"):
        list(util.map_unordered(identity, [1], chunk_size=0))
