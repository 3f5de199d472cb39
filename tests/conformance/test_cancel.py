"""Cancelling: B34 to B36."""

from __future__ import annotations

import asyncio
import os
import time

import pytest

from .target import (
    IS_RAY,
    eventually,
    exceptions,
    minray_only,
    needs_concurrency,
    needs_processes,
    ray,
)

INIT = {"num_cpus": 2}


@ray.remote
def echo(value):
    return value


@ray.remote
def block(gate):
    gate.arrive()
    gate.wait()
    return "opened"


@ray.remote
def nap(gate):
    """Run until cancelled, in short sleeps: Ray interrupts between bytecodes only."""
    gate.arrive()
    while True:
        time.sleep(0.005)


def cancel_for_sure(ref):
    """Cancel and check it; what survives must not keep its CPU from the tests that follow."""
    ray.cancel(ref)
    try:
        with pytest.raises(exceptions.TaskCancelledError):
            ray.get(ref, timeout=10)
    except exceptions.GetTimeoutError:
        ray.cancel(ref, force=True)
        raise


# --- B34 ----------------------------------------------------------------------------------------


@needs_concurrency
def test_b34_a_pending_task_never_runs(gate, tmp_path):
    @ray.remote
    def touch(value):
        (tmp_path / "ran").touch()

    pending = touch.remote(gate.ref())
    ray.cancel(pending)
    with pytest.raises(exceptions.TaskCancelledError):
        ray.get(pending)
    gate.open()
    assert ray.get(echo.remote(1)) == 1
    assert not (tmp_path / "ran").exists()


@needs_concurrency
def test_b34_a_queued_task_never_runs(gate, tmp_path):
    @ray.remote(num_cpus=2)
    def occupy(gate):
        gate.arrive("busy")
        while not (tmp_path / "end").exists():
            time.sleep(0.005)

    @ray.remote
    def touch():
        (tmp_path / "ran").touch()

    busy = occupy.remote(gate)
    gate.arrivals("busy")
    queued = touch.remote()
    ray.cancel(queued)
    with pytest.raises(exceptions.TaskCancelledError):
        ray.get(queued)
    (tmp_path / "end").touch()
    ray.get(busy)
    assert ray.get(echo.remote(1)) == 1
    assert not (tmp_path / "ran").exists()


@needs_concurrency
def test_b34_a_running_task_gets_a_keyboard_interrupt(gate, tmp_path):
    @ray.remote
    def catch(gate):
        try:
            gate.arrive()
            while True:
                time.sleep(0.01)
        except KeyboardInterrupt:
            (tmp_path / "interrupted").touch()
            raise

    ref = catch.remote(gate)
    gate.arrivals()
    ray.cancel(ref)
    with pytest.raises(exceptions.TaskCancelledError):
        ray.get(ref)
    assert (tmp_path / "interrupted").exists()


@needs_concurrency
@minray_only("it waits for the sleep to end")
def test_b34_a_task_in_one_long_sleep_is_cancelled(gate):
    @ray.remote
    def sleep(gate):
        gate.arrive()
        time.sleep(999)

    ref = sleep.remote(gate)
    gate.arrivals()
    ray.cancel(ref)
    with pytest.raises(exceptions.TaskCancelledError):
        ray.get(ref, timeout=30)


@needs_concurrency
def test_b34_a_busy_loop_is_cancelled(gate):
    @ray.remote
    def spin(gate):
        gate.arrive()
        while True:
            sum(range(100))

    ref = spin.remote(gate)
    gate.arrivals()
    ray.cancel(ref)
    with pytest.raises(exceptions.TaskCancelledError):
        ray.get(ref, timeout=30)


@needs_concurrency
@minray_only("now and then it loses such a cancel, and the task runs on")
def test_b34_a_cancel_just_after_a_get_is_not_lost(gate):
    """The driver hears of the arrival while the task may still be on its way out of ``get``."""
    for i in range(1, 16):
        ref = nap.remote(gate)
        gate.arrivals(at_least=i)
        cancel_for_sure(ref)


@needs_concurrency
def test_b34_a_task_that_is_busy_in_the_api_is_cancelled(gate):
    """The interrupt mostly finds this task inside the runtime, where it may not be raised at once."""

    @ray.remote
    def submit(gate):
        gate.arrive()
        while True:
            ray.put(1)

    refs = [submit.remote(gate) for _ in range(2)]
    gate.arrivals(at_least=2)
    for ref in refs:
        cancel_for_sure(ref)


@needs_concurrency
def test_b34_a_task_blocked_in_get_is_cancelled(gate):
    ref = block.remote(gate)
    gate.arrivals("go")
    ray.cancel(ref)
    with pytest.raises(exceptions.TaskCancelledError):
        ray.get(ref, timeout=30)


@needs_processes
def test_b34_force_kills_the_worker(gate, tmp_path):
    @ray.remote
    def stubborn(gate):
        (tmp_path / "pid").write_text(str(os.getpid()))
        gate.arrive()
        while True:
            try:
                time.sleep(0.005)
            except KeyboardInterrupt:
                pass

    ref = stubborn.remote(gate)
    gate.arrivals()
    ray.cancel(ref, force=True)
    with pytest.raises(exceptions.TaskCancelledError):
        ray.get(ref, timeout=30)
    pid = int((tmp_path / "pid").read_text())

    def gone():
        try:
            os.kill(pid, 0)
        except ProcessLookupError:
            return True
        return False

    eventually(gone, "the worker was killed")


def test_b34_cancelling_what_has_finished_does_nothing():
    ref = echo.remote("done")
    ray.wait([ref])
    ray.cancel(ref)
    ray.cancel(ref, force=True)
    assert ray.get(ref) == "done"
    assert ray.get(echo.remote(2)) == 2


@pytest.mark.parametrize("thing", [5, "text", None, [1]], ids=repr)
def test_b34_cancelling_something_else_is_a_type_error(thing):
    with pytest.raises(TypeError):
        ray.cancel(thing)


def test_b34_cancelling_an_actor_is_a_type_error_that_names_kill():
    @ray.remote
    class Plain:
        pass

    with pytest.raises(TypeError, match="kill"):
        ray.cancel(Plain.remote())


def test_b34_cancelling_a_put_object_does_nothing():
    ref = ray.put(5)
    ray.cancel(ref)
    assert ray.get(ref) == 5


@needs_concurrency
def test_b34_the_neighbours_of_a_cancelled_task_are_unharmed(gate):
    victim = nap.remote(gate)
    gate.arrivals()
    neighbours = [echo.remote(i) for i in range(30)]
    ray.cancel(victim)
    assert ray.get(neighbours) == list(range(30))
    with pytest.raises(exceptions.TaskCancelledError):
        ray.get(victim)


@needs_concurrency
def test_b34_cancelling_twice_is_once(gate):
    ref = nap.remote(gate)
    gate.arrivals()
    ray.cancel(ref)
    ray.cancel(ref)
    with pytest.raises(exceptions.TaskCancelledError):
        ray.get(ref)


@needs_concurrency
def test_b34_a_task_that_needs_a_cancelled_one_fails(gate):
    victim = nap.remote(gate)
    dependent = echo.remote(victim)
    gate.arrivals()
    ray.cancel(victim)
    with pytest.raises(exceptions.TaskCancelledError) as caught:
        ray.get(dependent)
    assert isinstance(caught.value, exceptions.RayTaskError)


@needs_concurrency
def test_b34_a_streaming_task_is_cancelled_by_its_generator(gate):
    @ray.remote
    def stream(gate):
        yield 1
        gate.arrive()
        while True:
            time.sleep(0.005)
        yield 2

    generator = stream.remote(gate)
    assert ray.get(next(generator)) == 1
    gate.arrivals()
    ray.cancel(generator)
    with pytest.raises((exceptions.TaskCancelledError, StopIteration)):
        ray.get(next(generator))


@needs_concurrency
def test_b34_is_canceled_is_false_in_an_ordinary_task():
    @ray.remote
    def ask():
        return ray.get_runtime_context().is_canceled()

    assert ray.get(ask.remote()) is False


# --- B35 ----------------------------------------------------------------------------------------


@ray.remote
class Worker:
    def wait_until_cancelled(self, gate):
        gate.arrive()
        while not ray.get_runtime_context().is_canceled():
            time.sleep(0.005)
        return "saw it"

    def block(self, gate):
        gate.wait()
        return "opened"

    def echo(self, value):
        return value


def test_b35_force_is_a_value_error_for_actor_tasks():
    ref = Worker.remote().echo.remote(1)
    with pytest.raises(ValueError, match="force"):
        ray.cancel(ref, force=True)
    assert ray.get(ref) == 1


@needs_concurrency
@pytest.mark.parametrize("max_concurrency", [1, 2], ids=["sync", "threaded"])
def test_b35_sync_and_threaded_actors_only_see_is_canceled(gate, max_concurrency):
    actor = Worker.options(max_concurrency=max_concurrency).remote()
    ref = actor.wait_until_cancelled.remote(gate)
    gate.arrivals()
    ray.cancel(ref)
    with pytest.raises(exceptions.TaskCancelledError):
        ray.get(ref, timeout=30)
    assert ray.get(actor.echo.remote("alive")) == "alive"


@needs_concurrency
def test_b35_a_queued_actor_task_never_runs(gate):
    actor = Worker.remote()
    running = actor.block.remote(gate)
    gate.arrivals("go")
    queued = actor.echo.remote("never")
    ray.cancel(queued)
    gate.open()
    assert ray.get(running) == "opened"
    with pytest.raises(exceptions.TaskCancelledError):
        ray.get(queued)
    if not IS_RAY:  # which may lose count of the calls and fail this one after 30 seconds
        assert ray.get(actor.echo.remote("later")) == "later"


@ray.remote
class AsyncWorker:
    def __init__(self):
        self.cancelled = False

    async def sleep(self, gate):
        try:
            await gate.arrive_ref()  # the gate opens before this returns: the cancel may come here already
            await asyncio.sleep(999)
        except asyncio.CancelledError:
            self.cancelled = True
            raise

    async def was_cancelled(self):
        return self.cancelled


@needs_concurrency
def test_b35_asyncio_actors_get_asyncio_cancellation(gate):
    actor = AsyncWorker.remote()
    ref = actor.sleep.remote(gate)
    gate.arrivals()
    ray.cancel(ref)
    with pytest.raises(exceptions.TaskCancelledError):
        ray.get(ref, timeout=30)
    assert eventually(lambda: ray.get(actor.was_cancelled.remote()), "the coroutine saw it")


@needs_concurrency
def test_b35_recursive_is_the_default(gate):
    @ray.remote
    def parent(gate):
        child = nap.remote(gate)
        ray.get(child)

    ref = parent.remote(gate)
    gate.arrivals()
    ray.cancel(ref)
    with pytest.raises(exceptions.TaskCancelledError):
        ray.get(ref, timeout=30)
    # The child is cancelled too: two CPUs are free again, or this would wait for 999 seconds.
    assert ray.get(echo.options(num_cpus=2).remote("both free"), timeout=30) == "both free"


@needs_concurrency
def test_b35_without_recursive_the_children_go_on(gate, tmp_path):
    @ray.remote
    def child(gate):
        gate.wait()
        (tmp_path / "child").touch()

    @ray.remote
    def parent(gate):
        ray.get(child.remote(gate))

    ref = parent.remote(gate)
    gate.arrivals("go")
    ray.cancel(ref, recursive=False)
    with pytest.raises(exceptions.TaskCancelledError):
        ray.get(ref, timeout=30)
    gate.open()
    eventually((tmp_path / "child").exists, "the child ran to its end")


# --- B36 ----------------------------------------------------------------------------------------


@needs_concurrency
def test_b36_cancelling_the_asyncio_future_does_not_cancel_the_task(gate):
    ref = block.remote(gate)

    async def wait_a_little():
        with pytest.raises(asyncio.TimeoutError):
            await asyncio.wait_for(ref, timeout=0.05)

    asyncio.run(wait_a_little())
    gate.open()
    assert ray.get(ref, timeout=30) == "opened"


@needs_concurrency
def test_b36_cancelling_the_concurrent_future_does_not_cancel_the_task(gate):
    ref = block.remote(gate)
    future = ref.future()
    future.cancel()
    gate.open()
    assert ray.get(ref, timeout=30) == "opened"
