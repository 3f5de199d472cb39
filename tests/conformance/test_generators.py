"""Generators: B37 to B39, and the rest of ObjectRefGenerator's surface."""

# ruff: noqa: UP028 -- Ray cannot stream a bare `yield from`
from __future__ import annotations

import asyncio
import os
import signal

import pytest

from .target import (
    eventually,
    exceptions,
    minray_only,
    needs_concurrency,
    needs_processes,
    ray,
)


@ray.remote
def count(n):
    for i in range(n):
        yield i


@ray.remote
def count_then_fail(n):
    for i in range(n):
        yield i
    raise ValueError("after the last")


def values(stream):
    return [ray.get(ref) for ref in stream]


# --- B37 ----------------------------------------------------------------------------------------


def test_b37_a_generator_function_streams_by_default():
    stream = count.remote(3)
    assert isinstance(stream, ray.ObjectRefGenerator)
    assert values(stream) == [0, 1, 2]
    with pytest.raises(StopIteration):
        next(stream)


def test_b37_each_item_is_a_ref():
    stream = count.remote(2)
    first = next(stream)
    assert isinstance(first, ray.ObjectRef)
    assert ray.get(first) == 0
    assert ray.get(list(stream)) == [1]


@needs_concurrency
def test_b37_items_arrive_before_the_task_ends(gate):
    @ray.remote
    def slow(gate):
        yield "at once"
        gate.wait()
        yield "later"

    stream = slow.remote(gate)
    assert ray.get(next(stream)) == "at once"
    gate.open()
    assert values(stream) == ["later"]


def test_b37_streaming_can_be_asked_for():
    assert values(count.options(num_returns="streaming").remote(2)) == [0, 1]


@pytest.mark.parametrize("kind", ["streaming", "dynamic"])
def test_b37_streaming_needs_a_generator(kind):
    def plain():
        return 5

    with pytest.raises(ValueError, match="generator"):
        ray.remote(num_returns=kind)(plain)
    with pytest.raises(ValueError, match="generator"):
        ray.remote(plain).options(num_returns=kind).remote()


def test_b37_dynamic_gives_one_ref_to_a_generator_of_refs():
    ref = count.options(num_returns="dynamic").remote(3)
    assert isinstance(ref, ray.ObjectRef)
    generator = ray.get(ref)
    assert isinstance(generator, ray.DynamicObjectRefGenerator)
    assert len(generator) == 3
    assert ray.get(list(generator)) == [0, 1, 2]


def test_b37_methods_stream_too():
    @ray.remote
    class Source:
        def count(self, n):
            for i in range(n):
                yield i * 10

        @ray.method(num_returns="streaming")
        def marked(self):
            yield "marked"

    source = Source.remote()
    assert values(source.count.options(num_returns="streaming").remote(3)) == [0, 10, 20]
    assert values(source.marked.remote()) == ["marked"]
    assert values(source.count.remote(2)) == [0, 10]


def test_b37_async_generators_of_asyncio_actors_stream():
    @ray.remote
    class Source:
        async def count(self, n):
            for i in range(n):
                await asyncio.sleep(0)
                yield i

    assert values(Source.remote().count.remote(3)) == [0, 1, 2]


@minray_only("yield from over something without send fails there")
def test_b37_yield_from_works():
    @ray.remote
    def delegate():
        yield from range(3)
        yield from [7]

    assert values(delegate.remote()) == [0, 1, 2, 7]


def test_b37_an_empty_stream():
    assert values(count.remote(0)) == []


def test_b37_large_items():
    import numpy as np

    @ray.remote
    def arrays():
        for i in range(3):
            yield np.full(200_000, i)

    assert [int(ray.get(ref).sum()) for ref in arrays.remote()] == [0, 200_000, 400_000]


def test_b37_an_item_can_be_the_argument_of_a_task():
    @ray.remote
    def double(n):
        return 2 * n

    assert ray.get([double.remote(ref) for ref in count.remote(3)]) == [0, 2, 4]


def test_b37_async_iteration():
    async def consume():
        return [await ref async for ref in count.remote(3)]

    assert asyncio.run(consume()) == [0, 1, 2]


def test_b37_completed_becomes_ready_when_the_task_ends():
    stream = count.remote(2)
    ready, _ = ray.wait([stream.completed()], timeout=30)
    assert len(ready) == 1
    assert values(stream) == [0, 1]


def test_b37_completed_is_none_even_if_the_body_raised():
    stream = count_then_fail.remote(1)
    assert ray.get(stream.completed(), timeout=30) is None
    assert len(list(stream)) == 2


@needs_processes
def test_b37_completed_raises_when_the_worker_was_lost():
    @ray.remote(max_retries=0)
    def crash():
        yield "a"
        os.kill(os.getpid(), signal.SIGKILL)

    with pytest.raises(exceptions.WorkerCrashedError):
        ray.get(crash.remote().completed(), timeout=30)


def test_b37_is_finished_and_next_ready():
    stream = count.remote(1)
    eventually(stream.next_ready, "the first item is there")
    assert not stream.is_finished()
    next(stream)
    with pytest.raises(StopIteration):
        next(stream)
    assert stream.is_finished()


@needs_concurrency
def test_b37_next_ready_is_false_while_nothing_is_there(gate):
    @ray.remote
    def wait_first(gate):
        gate.wait()
        yield 1

    stream = wait_first.remote(gate)
    assert not stream.next_ready()
    gate.open()
    assert values(stream) == [1]


@needs_concurrency
def test_b37_wait_takes_a_generator(gate):
    @ray.remote
    def wait_first(gate):
        gate.wait()
        yield 1

    stream = wait_first.remote(gate)
    assert ray.wait([stream], timeout=0.05) == ([], [stream])
    gate.open()
    ready, rest = ray.wait([stream], timeout=30)
    assert ready == [stream]
    assert rest == []
    assert values(stream) == [1]


@needs_concurrency
def test_b37_several_streams_at_once():
    streams = [count.remote(5) for _ in range(4)]
    assert [values(stream) for stream in streams] == [[0, 1, 2, 3, 4]] * 4


def test_b37_a_generator_cannot_be_pickled():
    @ray.remote
    def take(value):
        return value

    with pytest.raises(TypeError):
        take.remote([count.remote(1)])


@needs_processes
def test_b37_a_stream_that_is_dropped_leaves_nothing_running():
    stream = count.remote(10_000)
    next(stream)
    del stream
    assert ray.get(count.options(num_returns="dynamic", num_cpus=4).remote(0), timeout=30) is not None


# --- B38 ----------------------------------------------------------------------------------------


def test_b38_an_exception_arrives_as_one_extra_ref():
    stream = count_then_fail.remote(2)
    assert ray.get(next(stream)) == 0
    assert ray.get(next(stream)) == 1
    failed = next(stream)
    with pytest.raises(ValueError, match="after the last"):
        ray.get(failed)
    with pytest.raises(StopIteration):
        next(stream)


def test_b38_an_exception_before_the_first_item():
    stream = count_then_fail.remote(0)
    with pytest.raises(ValueError, match="after the last"):
        ray.get(next(stream))
    with pytest.raises(StopIteration):
        next(stream)


def test_b38_a_failed_argument_is_the_one_item():
    @ray.remote
    def fail():
        raise KeyError("argument")

    stream = count.remote(fail.remote())
    with pytest.raises(KeyError):
        ray.get(next(stream))
    with pytest.raises(StopIteration):
        next(stream)


def test_b38_async_iteration_ends_after_the_error():
    async def consume():
        seen = []
        async for ref in count_then_fail.remote(1):
            try:
                seen.append(await ref)
            except ValueError as error:
                seen.append(type(error.cause))
        return seen

    assert asyncio.run(consume()) == [0, ValueError]


@needs_processes
def test_b38_a_crash_is_retried_and_the_stream_goes_on(tmp_path):
    @ray.remote(max_retries=2)
    def crash_once():
        yield "a"
        if not (tmp_path / "crashed").exists():
            (tmp_path / "crashed").touch()
            os.kill(os.getpid(), signal.SIGKILL)
        yield "b"

    assert values(crash_once.remote()) == ["a", "b"]


@needs_processes
def test_b38_a_crash_without_retries_is_an_error():
    @ray.remote(max_retries=0)
    def crash():
        yield "a"
        os.kill(os.getpid(), signal.SIGKILL)
        yield "b"

    with pytest.raises(exceptions.WorkerCrashedError):
        values(crash.remote())


# --- B39 ----------------------------------------------------------------------------------------


def test_b39_backpressure_zero_is_a_value_error():
    with pytest.raises(ValueError):
        count.options(_generator_backpressure_num_objects=0)
    with pytest.raises(ValueError):
        ray.remote(_generator_backpressure_num_objects=0)(lambda: (yield))


@needs_concurrency
def test_b39_backpressure_holds_the_producer(gate):
    @ray.remote(_generator_backpressure_num_objects=2)
    def produce(gate, n):
        for i in range(n):
            gate.arrive("made")
            yield i

    stream = produce.remote(gate, 8)
    gate.arrivals("made", 2)
    ray.wait([stream], timeout=5)
    assert ray.get(next(stream)) == 0
    # One was taken: two may be waiting and one in the making.
    eventually(lambda: gate.count("made") >= 3, "the producer went on")
    assert ray.wait([gate.arrivals_ref("made", 5)], timeout=0.1)[0] == []
    assert values(stream) == list(range(1, 8))


def test_b39_minus_one_means_no_limit():
    assert values(count.options(_generator_backpressure_num_objects=-1).remote(5)) == [0, 1, 2, 3, 4]


@needs_concurrency
def test_b39_backpressure_of_a_method():
    @ray.remote
    class Source:
        @ray.method(num_returns="streaming", _generator_backpressure_num_objects=1)
        def count(self, n):
            for i in range(n):
                yield i

    assert values(Source.remote().count.remote(6)) == list(range(6))
