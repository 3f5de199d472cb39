"""Hard cases that must work: recursion on one CPU, threads, finalizers, forks, closures, handles."""

from __future__ import annotations

import gc
import os
import subprocess
import sys
import threading
import time
import weakref

import numpy as np
import pytest

from .target import (
    IS_RAY,
    eventually,
    exceptions,
    minray_only,
    needs_concurrency,
    needs_processes,
    not_local,
    ray,
)

INIT = {"num_cpus": 1}


@ray.remote
def echo(value):
    return value


@ray.remote
class Counter:
    def __init__(self):
        self.n = 0

    def add(self):
        self.n += 1
        return self.n


# --- recursion on one CPU -----------------------------------------------------------------------


@ray.remote
def fibonacci(n):
    if n < 2:
        return n
    return sum(ray.get([fibonacci.remote(n - 1), fibonacci.remote(n - 2)]))


def test_recursive_tasks_on_one_cpu():
    assert ray.get(fibonacci.remote(5)) == 5


@ray.remote
def is_even(n):
    return True if n == 0 else ray.get(is_odd.remote(n - 1))


@ray.remote
def is_odd(n):
    return False if n == 0 else ray.get(is_even.remote(n - 1))


def test_recursion_between_remote_functions():
    assert ray.get(is_even.remote(5)) is False


def test_a_task_that_returns_refs_of_its_own_tasks():
    @ray.remote
    def spread(n):
        return [echo.remote(i) for i in range(n)]

    assert ray.get(ray.get(spread.remote(4))) == [0, 1, 2, 3]


def test_a_task_that_returns_its_childs_ref_without_waiting():
    @ray.remote
    def chain(n):
        return chain.remote(n - 1) if n else "end"

    value = chain.remote(4)
    while isinstance(value, ray.ObjectRef):
        value = ray.get(value)
    assert value == "end"


@needs_concurrency
def test_a_long_task_in_front_of_short_ones(gate):
    @ray.remote
    def long(gate):
        gate.wait()

    first = long.remote(gate)
    assert ray.get([echo.remote(i) for i in range(20)], timeout=30) == list(range(20))
    gate.open()
    ray.get(first)


@needs_processes
def test_nested_waits_on_one_cpu():
    @ray.remote
    def outer(depth):
        if depth == 0:
            return 1
        refs = [outer.remote(depth - 1) for _ in range(2)]
        total = 0
        while refs:
            ready, refs = ray.wait(refs)
            total += ray.get(ready[0])
        return total

    assert ray.get(outer.remote(3), timeout=50) == 8


# --- references and handles ---------------------------------------------------------------------


def test_refs_inside_containers_of_every_kind():
    @ray.remote
    def sum_of(box):
        return sum(ray.get([*box["tuple"], box["dict"]["deep"], *box["set"]]))

    p = ray.put
    assert ray.get(sum_of.remote({"tuple": (p(1), p(2)), "dict": {"deep": p(3)}, "set": {p(4)}})) == 10


def test_refs_inside_objects_of_classes():
    class Holder:
        def __init__(self, ref):
            self.ref = ref

    @ray.remote
    def open_(holder):
        return ray.get(holder.ref)

    assert ray.get(open_.remote(Holder(ray.put("held")))) == "held"


def test_refs_in_a_closure():
    ref = ray.put("captured")

    @ray.remote
    def read():
        return ray.get(ref)

    assert ray.get(read.remote()) == "captured"
    assert ray.get(read.remote()) == "captured"


def test_an_actor_handle_in_a_closure():
    counter = Counter.remote()

    @ray.remote
    def add():
        return ray.get(counter.add.remote())

    assert sorted(ray.get([add.remote() for _ in range(3)])) == [1, 2, 3]


def test_an_actor_handle_passed_through_tasks_and_actors():
    @ray.remote
    class Middle:
        def __init__(self, counter):
            self.counter = counter

        def give(self):
            return self.counter

    @ray.remote
    def add(counter):
        return ray.get(counter.add.remote())

    middle = Middle.remote(Counter.remote())
    handle = ray.get(middle.give.remote())
    del middle
    gc.collect()
    assert ray.get(add.remote(handle)) == 1
    assert ray.get(handle.add.remote()) == 2


def test_closures_over_large_data():
    data = np.arange(300_000)

    @ray.remote
    def total(i):
        return int(data.sum()) + i

    expected = int(data.sum())
    assert ray.get([total.remote(i) for i in range(5)]) == [expected + i for i in range(5)]


def test_the_same_large_argument_many_times():
    data = np.arange(300_000)
    ref = ray.put(data)

    @ray.remote
    def total(array, i):
        return int(array[-1]) + i

    assert ray.get([total.remote(ref, i) for i in range(10)]) == [299_999 + i for i in range(10)]


def test_many_arguments():
    @ray.remote
    def total(*args, **kwargs):
        return sum(args) + sum(kwargs.values())

    refs = [ray.put(i) for i in range(100)]
    assert ray.get(total.remote(*refs, **{f"k{i}": i for i in range(100)})) == 9900


def test_several_thousand_tasks():
    assert ray.get([echo.remote(i) for i in range(3000)]) == list(range(3000))


# --- threads ------------------------------------------------------------------------------------


def test_many_threads_submit_and_get_at_once():
    results, errors = {}, []
    counter = Counter.remote()

    def work(name):
        try:
            for i in range(10):
                assert ray.get(echo.remote((name, i))) == (name, i)
                ray.get(counter.add.remote())
                assert ray.get(ray.put(i)) == i
                ready, _ = ray.wait([echo.remote(i)], timeout=30)
                assert ready
            results[name] = True
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=work, args=(name,)) for name in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=50)
    assert not errors
    assert len(results) == 8
    assert ray.get(counter.add.remote()) == 81


@needs_concurrency
def test_one_thread_waits_while_another_submits(gate):
    got = []
    ref = gate.ref()
    thread = threading.Thread(target=lambda: got.append(ray.get(ref)))
    thread.start()
    assert ray.get([echo.remote(i) for i in range(20)]) == list(range(20))
    assert not got
    gate.open()
    thread.join(timeout=30)
    assert len(got) == 1


def test_a_ref_may_be_gotten_by_several_threads():
    ref = echo.remote(np.arange(200_000))
    sums = []
    threads = [threading.Thread(target=lambda: sums.append(int(ray.get(ref).sum()))) for _ in range(5)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=30)
    assert sums == [19999900000] * 5


@needs_processes
@minray_only("on one CPU it deadlocks as soon as one of the threads has its answer")
def test_threads_inside_a_task():
    @ray.remote
    def threaded():
        import concurrent.futures

        with concurrent.futures.ThreadPoolExecutor(4) as pool:
            return sorted(pool.map(lambda i: ray.get(echo.remote(i)), range(8)))

    assert ray.get(threaded.remote(), timeout=50) == list(range(8))


# --- finalizers ---------------------------------------------------------------------------------


@not_local("nothing to wait for there")
def test_get_inside_del_outside_the_runtimes_own_sections():
    seen = []

    class Finalized:
        def __init__(self, ref):
            self.ref = ref

        def __del__(self):
            seen.append(ray.get(self.ref))

    thing = Finalized(echo.remote("from del"))
    del thing
    gc.collect()
    assert seen == ["from del"]


def test_get_inside_a_weakref_finalizer():
    class Thing:
        pass

    seen = []
    thing = Thing()
    weakref.finalize(thing, lambda: seen.append(ray.get(ray.put("finalized"))))
    del thing
    gc.collect()
    assert seen == ["finalized"]


@needs_processes
def test_api_calls_in_finalizers_never_deadlock():
    """Garbage that calls the API is collected wherever the collector happens to run: in the runtime too."""
    outcomes = []

    class Cyclic:
        def __init__(self):
            self.me = self

        def __del__(self):
            try:
                outcomes.append(ray.get(echo.remote(1)))
            except Exception as error:
                outcomes.append(error)

    threshold = gc.get_threshold()
    gc.set_threshold(5)
    try:
        for _ in range(40):
            Cyclic()
            ray.get(echo.remote([1, 2]))
    finally:
        gc.set_threshold(*threshold)
    gc.collect()
    assert len(outcomes) == 40
    if not IS_RAY:
        wrong = [value for value in outcomes if value != 1 and not isinstance(value, exceptions.RayError)]
        assert not wrong, wrong


def test_a_ref_whose_last_holder_is_a_cycle_is_freed_without_harm():
    class Cyclic:
        def __init__(self, ref):
            self.me, self.ref = self, ref

    for i in range(20):
        Cyclic(ray.put(np.full(100_000, i)))
    gc.collect()
    assert ray.get(echo.remote("fine")) == "fine"


# --- processes inside tasks ---------------------------------------------------------------------


@needs_processes
def test_a_task_that_starts_subprocesses():
    @ray.remote
    def run():
        return subprocess.run([sys.executable, "-c", "print(6 * 7)"], capture_output=True, text=True, check=True).stdout

    assert ray.get([run.remote() for _ in range(2)]) == ["42\n", "42\n"]


@needs_processes
@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs os.fork")
def test_a_task_that_forks():
    @ray.remote
    def fork():
        read, write = os.pipe()
        pid = os.fork()
        if pid == 0:
            os.write(write, b"from the child")
            os._exit(0)
        os.close(write)
        data = os.read(read, 100)
        os.waitpid(pid, 0)
        return data

    assert ray.get(fork.remote()) == b"from the child"
    assert ray.get(echo.remote("still alive")) == "still alive"


@needs_processes
@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs os.fork")
@minray_only("its forked children inherit live connections")
def test_the_api_in_a_forked_child_is_a_clear_error():
    read, write = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            ray.get(ray.put(1))
            os.write(write, b"no error")
        except BaseException as error:
            os.write(write, f"{type(error).__name__}: {error}".encode())
        finally:
            os._exit(0)
    os.close(write)
    message = os.read(read, 1000).decode()
    os.close(read)
    os.waitpid(pid, 0)
    assert "fork" in message
    assert ray.get(echo.remote("the parent is unharmed")) == "the parent is unharmed"


@needs_processes
@pytest.mark.filterwarnings("ignore")
def test_a_multiprocessing_pool_inside_a_task():
    @ray.remote
    def pool():
        import multiprocessing

        with multiprocessing.get_context("fork").Pool(2) as pool:
            return pool.map(abs, [-1, -2, -3])

    assert ray.get(pool.remote()) == [1, 2, 3]


@needs_processes
def test_a_worker_that_fills_stdout():
    @ray.remote
    def chatter(n):
        for i in range(n):
            print("x" * 100, i)
        sys.stdout.flush()
        return n

    assert ray.get(chatter.remote(20_000), timeout=50) == 20_000


@needs_processes
def test_a_task_may_change_its_process():
    @ray.remote
    def rude():
        os.chdir("/")
        os.environ["RUDE"] = "1"
        sys.stdout = None
        sys.setrecursionlimit(5000)
        return 1

    assert ray.get(rude.remote()) == 1
    assert ray.get(echo.remote(2)) == 2


@needs_processes
def test_a_task_may_run_its_own_event_loop():
    @ray.remote
    def loop():
        import asyncio

        async def main():
            # No CPU: a loop that awaits is not a blocked get, so this task keeps the only one.
            return await echo.options(num_cpus=0).remote("awaited in a task")

        return asyncio.run(main())

    assert ray.get(loop.remote(), timeout=30) == "awaited in a task"


@needs_processes
def test_random_numbers_differ_between_workers():
    @ray.remote(num_cpus=0)
    class Dice:
        def roll(self):
            import random

            return random.random(), float(np.random.random())

    rolls = ray.get([Dice.remote().roll.remote() for _ in range(3)])
    assert len({one for one, _ in rolls}) == 3
    assert len({two for _, two in rolls}) == 3


# --- sizes --------------------------------------------------------------------------------------


@pytest.mark.slow
@not_local("objects stay in this process's heap")
@pytest.mark.skipif("MINRAY_TEST_ARRAY_GB" not in os.environ, reason="set MINRAY_TEST_ARRAY_GB=2 to run")
def test_a_two_gigabyte_array():
    size = int(float(os.environ["MINRAY_TEST_ARRAY_GB"]) * 2**30)
    array = np.zeros(size // 8)
    array[-1] = 7
    ref = ray.put(array)
    del array

    @ray.remote
    def last(value):
        return value.nbytes, float(value[-1])

    assert ray.get(last.remote(ref)) == (size // 8 * 8, 7.0)
    assert ray.get(ref)[-1] == 7


def test_results_just_around_the_inline_limit():
    @ray.remote
    def make(n):
        return b"x" * n

    sizes = [0, 1, 100 * 1024 - 200, 100 * 1024, 100 * 1024 + 1, 1024 * 1024]
    assert [len(value) for value in ray.get([make.remote(n) for n in sizes])] == sizes


@needs_processes
def test_an_idle_runtime_answers_after_a_pause():
    assert ray.get(echo.remote(1)) == 1
    time.sleep(0.3)
    assert ray.get(echo.remote(2)) == 2


@needs_processes
def test_dropped_results_do_not_keep_resources():
    for i in range(50):
        echo.remote(i)
    eventually(lambda: ray.available_resources().get("CPU", 0) == 1, "the CPU is free again")
