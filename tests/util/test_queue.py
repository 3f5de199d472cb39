"""Queue: order, bounds, blocking, timeouts, batches, sharing, the end."""

from __future__ import annotations

import asyncio
import queue as standard
from collections.abc import Iterator
from typing import Any

import pytest

from ..conformance.target import (
    exceptions,
    minray_only,
    needs_concurrency,
    needs_processes,
    ray,
    submodule,
)

INIT = {"num_cpus": 2}
module: Any = submodule("util.queue")
Queue, Empty, Full = module.Queue, module.Empty, module.Full


@pytest.fixture
def queue(runtime: Any) -> Iterator[Any]:
    queue = Queue(maxsize=2)
    yield queue
    queue.shutdown(force=True)


def test_the_exceptions_are_the_standard_ones_too() -> None:
    assert issubclass(Empty, standard.Empty)
    assert issubclass(Full, standard.Full)


def test_first_in_first_out(queue: Any) -> None:
    assert queue.empty()
    queue.put(1)
    queue.put([2])
    assert (queue.full(), queue.size(), queue.qsize(), len(queue)) == (True, 2, 2, 2)
    assert [queue.get(), queue.get()] == [1, [2]]
    assert queue.empty()


def test_full_and_empty_at_once(queue: Any) -> None:
    for fetch in (queue.get_nowait, lambda: queue.get(block=False), lambda: queue.get(timeout=0.01)):
        with pytest.raises(Empty):
            fetch()
    queue.put_nowait_batch("ab")
    for put in (queue.put_nowait, lambda x: queue.put(x, block=False), lambda x: queue.put(x, timeout=0.01)):
        with pytest.raises(Full):
            put("c")
    assert queue.get_nowait_batch(2) == ["a", "b"]


@minray_only("a remote traceback comes along when a timeout has passed")
def test_full_and_empty_are_plain(queue: Any) -> None:
    with pytest.raises(Empty) as empty:
        queue.get(timeout=0)
    assert type(empty.value) is Empty
    assert empty.value.__cause__ is None


def test_negative_timeouts(queue: Any) -> None:
    with pytest.raises(ValueError, match="non-negative"):
        queue.put(1, timeout=-1)
    with pytest.raises(ValueError, match="non-negative"):
        queue.get(timeout=-1)


def test_batches_go_whole_or_not_at_all(queue: Any) -> None:
    with pytest.raises(Full):
        queue.put_nowait_batch([1, 2, 3])
    assert queue.empty()
    queue.put_nowait_batch([1, 2])
    with pytest.raises(Empty):
        queue.get_nowait_batch(3)
    assert queue.get_nowait_batch(2) == [1, 2]
    assert queue.get_nowait_batch(0) == []


def test_wrong_batches(queue: Any) -> None:
    with pytest.raises(TypeError, match="items"):
        queue.put_nowait_batch(5)
    with pytest.raises(TypeError, match="num_items"):
        queue.get_nowait_batch("2")
    with pytest.raises(ValueError, match="num_items"):
        queue.get_nowait_batch(-1)


@minray_only("it sends the iterable itself")
def test_a_batch_may_be_any_iterable(queue: Any) -> None:
    queue.put_nowait_batch(i for i in range(2))
    assert queue.get_nowait_batch(2) == [0, 1]


def test_unbounded() -> None:
    queue = Queue()
    queue.put_nowait_batch(list(range(500)))
    assert not queue.full()
    assert queue.get_nowait_batch(500) == list(range(500))
    assert repr(queue)


@needs_concurrency
def test_a_blocked_get_and_a_blocked_put_go_on(queue: Any) -> None:
    @ray.remote(num_cpus=0)
    def take(source: Any) -> Any:
        return source.get()

    @ray.remote(num_cpus=0)
    def give(target: Any, item: Any) -> None:
        target.put(item)

    taken = take.remote(queue)
    queue.put("x")
    assert ray.get(taken) == "x"
    queue.put_nowait_batch([1, 2])
    given = give.remote(queue, 3)
    assert [queue.get() for _ in range(3)] == [1, 2, 3]
    ray.get(given)


@needs_concurrency
def test_producers_and_consumers_lose_nothing(queue: Any) -> None:
    @ray.remote(num_cpus=0)
    def produce(target: Any, start: int) -> None:
        for item in range(start, start + 20):
            target.put(item)

    @ray.remote(num_cpus=0)
    def consume(source: Any) -> list[int]:
        return [source.get() for _ in range(20)]

    produced = [produce.remote(queue, start) for start in (0, 20)]
    consumed = ray.get([consume.remote(queue) for _ in range(2)])
    ray.get(produced)
    assert sorted(item for items in consumed for item in items) == list(range(40))


def test_coroutines(queue: Any) -> None:
    async def use() -> Any:
        await queue.put_async(7)
        first = await queue.get_async()
        with pytest.raises(Empty):
            await queue.get_async(block=False)
        with pytest.raises(ValueError, match="non-negative"):
            await queue.put_async(1, timeout=-1)
        return first

    assert asyncio.run(use()) == 7


@needs_processes
def test_the_end() -> None:
    queue = Queue()
    queue.put(1)
    queue.shutdown()
    queue.shutdown()
    with pytest.raises((AttributeError, exceptions.ActorDiedError)):
        queue.put(2)


@needs_processes
def test_actor_options_reach_the_actor() -> None:
    queue = Queue(actor_options={"name": "jobs of the test", "num_cpus": 1})
    queue.put(1)
    assert ray.get(ray.get_actor("jobs of the test").qsize.remote()) == 1
