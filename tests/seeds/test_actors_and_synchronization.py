"""Async and threaded actors, FileLock, SignalActor, Queue, custom resources by ``.options``, cancel,
timeouts, zero-copy arrays."""

from __future__ import annotations

import asyncio
import os
import time

import numpy as np
import pytest
from filelock import FileLock

from ..conformance.target import (
    exceptions,
    needs_concurrency,
    needs_processes,
    not_local,
    ray,
    submodule,
)

INIT = {"num_cpus": 6, "resources": {"Custom1": 1, "Custom2": 1, "Custom3": 1}}


@needs_concurrency
def test_an_async_actor(tmp_path):
    @ray.remote
    class AsyncActor:
        def __init__(self):
            self.started = 0
            self.all_started = asyncio.Event()

        async def run_concurrent(self):
            self.started += 1
            if self.started == 4:
                self.all_started.set()
            await self.all_started.wait()  # the document sleeps here; this proves that all four are inside
            return "finished"

    actor = AsyncActor.remote()
    assert ray.get([actor.run_concurrent.remote() for _ in range(4)]) == ["finished"] * 4

    async def main():
        return await actor.run_concurrent.remote()

    assert asyncio.run(main()) == "finished"


@needs_processes
def test_a_threaded_actor():
    @ray.remote
    class ThreadedActor:
        def task_1(self):
            return "I'm running in a thread!"

        def task_2(self):
            return "I'm running in another thread!"

    a = ThreadedActor.options(max_concurrency=2).remote()
    assert ray.get([a.task_1.remote(), a.task_2.remote()]) == [
        "I'm running in a thread!",
        "I'm running in another thread!",
    ]


def test_a_file_behind_a_lock(tmp_path):
    path = tmp_path / "my_data.txt"

    @ray.remote
    def write_to_file(text):
        with FileLock(f"{path}.lock"):
            with open(path, "a") as f:
                f.write(text)

    ray.get([write_to_file.remote("hi there!\n") for _ in range(3)])
    assert path.read_text() == "hi there!\n" * 3


def test_tasks_run_in_the_drivers_folder():
    @ray.remote
    def where():
        return os.getcwd()

    assert ray.get(where.remote()) == os.getcwd()


@needs_concurrency
def test_a_signal_releases_all_who_wait():
    @ray.remote(num_cpus=0)
    class SignalActor:
        def __init__(self):
            self.ready_event = asyncio.Event()

        def send(self, clear=False):
            self.ready_event.set()
            if clear:
                self.ready_event.clear()

        async def wait(self, should_wait=True):
            if should_wait:
                await self.ready_event.wait()

    @ray.remote
    def wait_and_go(signal):
        ray.get(signal.wait.remote())
        return "go!"

    signal = SignalActor.remote()
    tasks = [wait_and_go.remote(signal) for _ in range(8)]
    assert ray.wait(tasks, timeout=0.1)[0] == []
    ray.get(signal.send.remote())
    assert ray.get(tasks) == ["go!"] * 8


@needs_concurrency
def test_a_queue_between_tasks():
    queue = submodule("util.queue").Queue(maxsize=100)

    @ray.remote
    def consumer(queue):
        return [queue.get(block=True) for _ in range(5)]

    consumers = [consumer.remote(queue) for _ in range(2)]
    [queue.put(i) for i in range(10)]
    assert sorted(item for taken in ray.get(consumers) for item in taken) == list(range(10))
    queue.shutdown()


def test_custom_resources_by_options():
    @ray.remote(num_cpus=4)
    class Counter(object):  # noqa: UP004
        def __init__(self):
            self.value = 0

        def increment(self):
            self.value += 1
            return self.value

        def given(self):
            return ray.get_runtime_context().get_assigned_resources()

    a1 = Counter.options(num_cpus=1, resources={"Custom1": 1}).remote()
    a2 = Counter.options(num_cpus=2, resources={"Custom2": 1}).remote()
    a3 = Counter.options(num_cpus=3, resources={"Custom3": 1}).remote()
    assert ray.get([a.increment.remote() for a in (a1, a2, a3)]) == [1, 1, 1]
    assert ray.get(a2.given.remote()) == {"CPU": 2, "Custom2": 1}


@needs_concurrency
def test_cancel_a_task():
    @ray.remote
    def blocking_operation():
        while True:
            time.sleep(0.005)

    obj_ref = blocking_operation.remote()
    ray.cancel(obj_ref)
    with pytest.raises(exceptions.TaskCancelledError):
        ray.get(obj_ref)


@needs_concurrency
def test_get_with_a_timeout(gate):
    @ray.remote
    def long_running_function(gate):
        gate.wait()

    obj_ref = long_running_function.remote(gate)
    with pytest.raises(exceptions.GetTimeoutError):
        ray.get(obj_ref, timeout=0.05)
    gate.open()
    assert ray.get(obj_ref, timeout=30) is None


@not_local("objects stay in this process's heap")
def test_arrays_are_shared_without_a_copy():
    array_id = ray.put(np.arange(1_000_000))
    one, two = ray.get(array_id), ray.get(array_id)
    assert one.ctypes.data == two.ctypes.data
    with pytest.raises(ValueError, match="read-only"):
        one[0] = 1

    @ray.remote
    def total(array):
        return int(array.sum()), array.flags.writeable

    assert ray.get([total.remote(array_id) for _ in range(2)]) == [(499999500000, False)] * 2


def test_methods_of_one_actor_in_order_of_several_in_parallel():
    @ray.remote
    class Log:
        def __init__(self):
            self.lines = []

        def write(self, line):
            self.lines.append(line)
            return list(self.lines)

    one, two = Log.remote(), Log.remote()
    refs = [log.write.remote(i) for i in range(3) for log in (one, two)]
    assert ray.get(refs)[-2:] == [[0, 1, 2], [0, 1, 2]]
