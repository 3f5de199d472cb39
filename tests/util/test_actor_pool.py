"""ActorPool: order, timeouts, what waits for a free actor, actors that die."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from ..conformance.target import Gate, exceptions, minray_only, needs_concurrency, needs_processes, ray, util

INIT = {"num_cpus": 2}


@ray.remote(num_cpus=0)
class Worker:
    def double(self, value: int) -> int:
        return 2 * value

    def fail(self, value: int) -> int:
        raise KeyError(value)

    def pass_gate(self, gate: Gate, key: str) -> str:
        gate.wait(key)
        return key

    def pair(self, value: int) -> tuple[int, int]:
        return value, -value


def double(actor: Any, value: int) -> Any:
    return actor.double.remote(value)


@pytest.fixture
def actors(runtime: Any) -> Iterator[list[Any]]:
    yield [Worker.remote(), Worker.remote()]


def test_map_keeps_the_order_and_uses_all(actors: list[Any]) -> None:
    pool = util.ActorPool(actors)
    assert list(pool.map(double, range(20))) == [2 * i for i in range(20)]
    assert not pool.has_next()
    assert pool.has_free()


def test_map_unordered_yields_every_result(actors: list[Any]) -> None:
    pool = util.ActorPool(actors)
    assert sorted(pool.map_unordered(double, range(20))) == [2 * i for i in range(20)]


@needs_concurrency
def test_map_unordered_yields_what_is_ready_first(actors: list[Any], gate: Gate) -> None:
    pool = util.ActorPool(actors)
    gate.open("b")
    results = pool.map_unordered(lambda a, key: a.pass_gate.remote(gate, key), ["a", "b"])
    assert next(results) == "b"
    gate.open("a")
    assert list(results) == ["a"]


@needs_concurrency
def test_calls_wait_for_a_free_actor(actors: list[Any], gate: Gate) -> None:
    pool = util.ActorPool(actors)
    for key in ("a", "b", "c"):
        pool.submit(lambda a, key: a.pass_gate.remote(gate, key), key)
    assert not pool.has_free()
    assert pool.pop_idle() is None
    gate.arrivals("a", 1)
    gate.arrivals("b", 1)
    assert gate.count("c") == 0
    for key in ("a", "b", "c"):
        gate.open(key)
    assert [pool.get_next() for _ in range(3)] == ["a", "b", "c"]


def test_nothing_to_fetch_is_stop_iteration(actors: list[Any]) -> None:
    pool = util.ActorPool(actors)
    for fetch in (pool.get_next, pool.get_next_unordered):
        with pytest.raises(StopIteration, match="No more results to get"):
            fetch()


@needs_concurrency
def test_a_timeout_leaves_the_result_for_later(actors: list[Any], gate: Gate) -> None:
    pool = util.ActorPool(actors)
    pool.submit(lambda a, key: a.pass_gate.remote(gate, key), "a")
    for fetch in (pool.get_next, pool.get_next_unordered):
        with pytest.raises(TimeoutError, match="Timed out waiting for result"):
            fetch(timeout=0.01)
    gate.open("a")
    assert pool.get_next() == "a"


@needs_concurrency
@pytest.mark.parametrize("fetch", ["get_next", "get_next_unordered"])
def test_an_ignored_timeout_gives_the_result_up(actors: list[Any], gate: Gate, fetch: str) -> None:
    if fetch == "get_next_unordered" and ray.__name__ == "ray":
        pytest.skip("Ray 2.60 stumbles over its own unset variable here")
    pool = util.ActorPool(actors)
    pool.submit(lambda a, key: a.pass_gate.remote(gate, key), "a")
    with pytest.raises(TimeoutError, match="has been ignored"):
        getattr(pool, fetch)(timeout=0.01, ignore_if_timedout=True)
    assert not pool.has_next()
    assert pool.has_free()


def test_an_error_leaves_the_actor_in_the_pool(actors: list[Any]) -> None:
    pool = util.ActorPool(actors[:1])
    pool.submit(lambda a, v: a.fail.remote(v), 1)
    pool.submit(double, 2)
    with pytest.raises(KeyError):
        pool.get_next()
    assert pool.get_next() == 4


@needs_processes
def test_a_dead_actor_leaves_the_pool(actors: list[Any]) -> None:
    pool = util.ActorPool(actors)
    ray.kill(actors[1])
    pool.submit(double, 1)  # the last one in is the first one out
    with pytest.raises(exceptions.ActorDiedError):
        pool.get_next()
    assert list(pool.map(double, [2, 3])) == [4, 6]


@needs_processes
@minray_only("it forgets what waits")
def test_what_waits_for_a_pool_without_actors_is_an_error(actors: list[Any]) -> None:
    pool = util.ActorPool(actors[:1])
    ray.kill(actors[0])
    pool.submit(double, 1)
    pool.submit(double, 2)
    with pytest.raises(exceptions.ActorDiedError):
        pool.get_next()
    assert pool.has_next()
    with pytest.raises(ValueError, match=r"1 submitted calls wait.*push"):
        pool.get_next()
    pool.push(actors[1])
    assert pool.get_next() == 4


def test_push_and_pop(actors: list[Any]) -> None:
    pool = util.ActorPool(actors[:1])
    with pytest.raises(ValueError, match="already belongs"):
        pool.push(actors[0])
    pool.push(actors[1])
    popped = {pool.pop_idle(), pool.pop_idle()}
    assert popped == set(actors)
    assert pool.pop_idle() is None


def test_map_forgets_what_nobody_fetched(actors: list[Any]) -> None:
    pool = util.ActorPool(actors)
    for value in range(5):
        pool.submit(double, value)
    assert list(pool.map(double, [100])) == [200]


def test_several_return_values(actors: list[Any]) -> None:
    pool = util.ActorPool(actors)
    pairs = pool.map(lambda a, v: a.pair.options(num_returns=2).remote(v), [1, 2])
    assert list(pairs) == [[1, -1], [2, -2]]


@minray_only("a repr of its own")
def test_repr_counts(actors: list[Any]) -> None:
    assert repr(util.ActorPool(actors)) == "ActorPool(idle=2, running=0, waiting=0)"
