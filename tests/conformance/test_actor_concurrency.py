"""Asyncio actors, threaded actors and concurrency groups: B26."""

from __future__ import annotations

import asyncio
import threading

import pytest

from .target import USAGE_ERRORS, exceptions, needs_concurrency, needs_processes, ray


@ray.remote
def echo(value):
    return value


# --- B26 ----------------------------------------------------------------------------------------


@ray.remote
class Async:
    def __init__(self):
        self.event = asyncio.Event()

    async def wait(self):
        await self.event.wait()
        return "woken"

    async def wake(self):
        self.event.set()

    def plain(self):
        return threading.current_thread().name, asyncio.get_running_loop() is not None

    async def same_loop(self):
        return id(asyncio.get_running_loop())

    async def fail(self):
        raise ValueError("async error")


@needs_concurrency
def test_b26_one_async_method_makes_the_whole_actor_asyncio():
    actor = Async.remote()
    waiting = [actor.wait.remote() for _ in range(50)]
    ray.get(actor.wake.remote())
    assert ray.get(waiting) == ["woken"] * 50


@needs_processes
def test_b26_its_plain_methods_run_on_the_loop_too():
    actor = Async.remote()
    _, on_loop = ray.get(actor.plain.remote())
    assert on_loop


def test_b26_its_methods_share_one_loop():
    actor = Async.remote()
    assert len(set(ray.get([actor.same_loop.remote() for _ in range(3)]))) == 1


def test_b26_its_errors_arrive_like_any_other():
    with pytest.raises(ValueError, match="async error"):
        ray.get(Async.remote().fail.remote())


@needs_concurrency
def test_b26_asyncio_actors_run_out_of_order(gate):
    @ray.remote
    class Late:
        async def take(self, value):
            return value

    late = Late.remote()
    first = late.take.remote(gate.ref())
    assert ray.get(late.take.remote("overtakes"), timeout=30) == "overtakes"
    gate.open()
    ray.get(first)


@needs_concurrency
def test_b26_threaded_actors_run_out_of_order(gate):
    @ray.remote(max_concurrency=2)
    class Threaded:
        def block(self, gate):
            gate.wait()
            return "blocked"

        def quick(self):
            return "overtakes"

    actor = Threaded.remote()
    first = actor.block.remote(gate)
    assert ray.get(actor.quick.remote(), timeout=30) == "overtakes"
    gate.open()
    assert ray.get(first) == "blocked"


@needs_concurrency
def test_b26_max_concurrency_bounds_an_asyncio_actor(gate):
    @ray.remote(max_concurrency=2)
    class Two:
        def __init__(self):
            self.inside = self.peak = 0
            self.free = asyncio.Event()

        async def enter(self):
            self.inside += 1
            self.peak = max(self.peak, self.inside)
            await asyncio.sleep(0.005)
            self.inside -= 1
            return self.peak

    actor = Two.remote()
    assert max(ray.get([actor.enter.remote() for _ in range(12)])) == 2


@needs_concurrency
def test_b26_an_asyncio_actor_takes_a_thousand_calls_at_once():
    @ray.remote
    class Many:
        def __init__(self):
            self.inside = 0
            self.all_in = asyncio.Event()

        async def enter(self, target):
            self.inside += 1
            if self.inside == target:
                self.all_in.set()
            await self.all_in.wait()
            return self.inside

    assert set(ray.get([Many.remote().enter.remote(1)])) == {1}
    actor = Many.remote()
    assert set(ray.get([actor.enter.remote(1000) for _ in range(1000)])) == {1000}


@needs_concurrency
def test_b26_threads_run_beside_each_other(gate):
    @ray.remote(max_concurrency=3)
    class Meeting:
        def __init__(self):
            self.barrier = threading.Barrier(3)

        def meet(self):
            self.barrier.wait(timeout=30)
            return threading.get_ident()

    meeting = Meeting.remote()
    assert len(set(ray.get([meeting.meet.remote() for _ in range(3)]))) == 3


@needs_concurrency
def test_b26_concurrency_groups_do_not_hold_each_other_back(gate):
    @ray.remote(concurrency_groups={"io": 1, "compute": 1})
    class Grouped:
        @ray.method(concurrency_group="io")
        def read(self, gate):
            gate.wait()
            return "io"

        @ray.method(concurrency_group="compute")
        def compute(self):
            return "compute"

        def default(self):
            return "default"

    actor = Grouped.remote()
    blocked = actor.read.remote(gate)
    assert ray.get(actor.compute.remote(), timeout=30) == "compute"
    assert ray.get(actor.default.remote(), timeout=30) == "default"
    also_blocked = actor.compute.options(concurrency_group="io").remote()
    assert ray.wait([also_blocked], timeout=0.1) == ([], [also_blocked])
    gate.open()
    assert ray.get([blocked, also_blocked]) == ["io", "compute"]


@needs_concurrency
def test_b26_async_concurrency_groups():
    @ray.remote(concurrency_groups={"one": 1, "two": 2})
    class Grouped:
        def __init__(self):
            self.inside = {"one": 0, "two": 0}
            self.peak = {"one": 0, "two": 0}

        async def visit(self, group):
            self.inside[group] += 1
            self.peak[group] = max(self.peak[group], self.inside[group])
            await asyncio.sleep(0.005)
            self.inside[group] -= 1

        @ray.method(concurrency_group="one")
        async def one(self):
            await self.visit("one")

        @ray.method(concurrency_group="two")
        async def two(self):
            await self.visit("two")

        async def peaks(self):
            return self.peak

    actor = Grouped.remote()
    ray.get([actor.one.remote() for _ in range(6)] + [actor.two.remote() for _ in range(6)])
    assert ray.get(actor.peaks.remote()) == {"one": 1, "two": 2}


def test_b26_an_unknown_concurrency_group_is_an_error():
    @ray.remote
    class Plain:
        def method(self):
            return 1

    actor = Plain.remote()
    with pytest.raises((exceptions.RayError, *USAGE_ERRORS)):
        ray.get(actor.method.options(concurrency_group="absent").remote(), timeout=30)


@needs_concurrency
def test_b26_awaiting_refs_inside_an_asyncio_actor(gate):
    @ray.remote
    class Waiter:
        async def add(self, refs):
            return sum(await asyncio.gather(*refs))

        async def each(self, refs):
            return [await ref for ref in refs]

    actor = Waiter.remote()
    refs = [echo.remote(i) for i in range(5)]
    assert ray.get(actor.add.remote(refs)) == 10
    assert ray.get(actor.each.remote(refs)) == [0, 1, 2, 3, 4]
