"""Local mode: what is particular to it. (What it shares with real sessions is in tests/conformance.)"""

from __future__ import annotations

import asyncio
import gc
import logging
import os
import signal
import threading
import traceback
from typing import Any

import numpy as np
import pytest

import minray as ray
from minray import exceptions
from minray.util.testing import wait_for_condition
from minray.worker.local import core


@ray.remote
def add(x: int, y: int = 1) -> int:
    return x + y


@ray.remote
class Switch:
    """An asyncio actor whose ``wait`` ends when ``turn_on`` was called."""

    def __init__(self) -> None:
        self.event = asyncio.Event()

    async def wait(self) -> str:
        await self.event.wait()
        return "on"

    async def turn_on(self) -> None:
        self.event.set()


@ray.remote
class Recorder:
    def __init__(self) -> None:
        self.seen: list[Any] = []

    def note(self, item: Any) -> int:
        self.seen.append(item)
        return len(self.seen)

    def all(self) -> list[Any]:
        return self.seen

    def stream(self, n: int) -> Any:
        for i in range(n):
            self.seen.append(f"item {i}")
            yield i


# --- one thing at a time, on one stack ------------------------------------------------------------


def test_a_task_runs_inside_remote_on_the_callers_stack(local: Any) -> None:
    @ray.remote
    def where() -> tuple[int, list[str]]:
        return threading.get_ident(), [frame.name for frame in traceback.extract_stack()]

    ident, names = ray.get(where.remote())
    assert ident == threading.get_ident()
    assert "test_a_task_runs_inside_remote_on_the_callers_stack" in names


def test_nothing_is_started(local: Any) -> None:
    before = threading.active_count()
    assert ray.get([add.remote(i) for i in range(10)]) == list(range(1, 11))
    counter = Recorder.remote()
    assert ray.get(counter.note.remote(1)) == 1
    assert threading.active_count() == before and local.session["dir"] is None


def test_nested_tasks_go_deep(local: Any) -> None:
    @ray.remote
    def dive(n: int) -> int:
        return n if n == 0 else ray.get(dive.remote(n - 1))

    assert ray.get(dive.remote(300)) == 0


# --- values are copies, as between processes ------------------------------------------------------


def test_values_do_not_change_behind_anybodys_back(local: Any) -> None:
    mine = [1]
    ref = ray.put(mine)
    mine.append(2)
    got = ray.get(ref)
    got.append(3)
    assert ray.get(ref) == [1]

    @ray.remote
    def spoil(items: list[int]) -> None:
        items.append(4)

    ray.get(spoil.remote(mine))
    assert mine == [1, 2]


def test_arrays_are_read_only_and_independent_of_the_original(local: Any) -> None:
    array = np.zeros(100_000)
    ref = ray.put(array)
    array[0] = 1
    got = ray.get(ref)
    assert got[0] == 0 and not got.flags.writeable


def test_what_cannot_be_pickled_is_refused_as_elsewhere(local: Any) -> None:
    with pytest.raises(TypeError, match="lock"):
        add.remote(threading.Lock())
    lock = threading.Lock()

    @ray.remote
    def captures() -> Any:
        return lock

    with pytest.raises(TypeError, match="lock"):
        captures.remote()


def test_objects_go_when_their_refs_go(local: Any) -> None:
    before = len(local.objects)
    inner = ray.put(1)
    outer = ray.put([inner])
    del inner
    assert ray.get(ray.get(outer)[0]) == 1
    del outer
    gc.collect()
    local.collect()
    local.collect()  # what the outer one held was released by its end
    assert len(local.objects) == before


def test_looking_at_captured_refs_does_not_pin_them(local: Any) -> None:
    before = len(local.objects)
    ref = ray.put(5)

    @ray.remote
    def read() -> Any:
        return ray.get(ref)

    assert ray.get(read.remote()) == 5
    del read
    ref = None
    gc.collect()
    local.collect()
    assert len(local.objects) == before


# --- deferred calls ---------------------------------------------------------------------------------


def test_a_task_whose_argument_is_pending_runs_when_it_is_there(local: Any) -> None:
    switch = Switch.remote()
    late = add.options(name="late").remote(switch.wait.remote(), "!")
    later = add.remote(late, "?")
    assert ray.wait([later, late], num_returns=2, timeout=0) == ([], [later, late])
    ray.get(switch.turn_on.remote())
    assert ray.get([late, later]) == ["on!", "on!?"]


def test_b25_a_pending_argument_holds_back_later_calls_of_the_actor(local: Any) -> None:
    switch, recorder = Switch.remote(), Recorder.remote()
    first = recorder.note.remote(switch.wait.remote())
    second = recorder.note.remote("second")
    assert ray.wait([second], timeout=0)[0] == []
    ray.get(switch.turn_on.remote())
    assert ray.get([second, first]) == [2, 1]
    assert ray.get(recorder.all.remote()) == ["on", "second"]


def test_a_deferred_task_can_be_awaited(local: Any) -> None:
    switch = Switch.remote()

    async def drive() -> Any:
        late = add.remote(switch.wait.remote(), "!")
        asyncio.get_running_loop().call_soon(switch.turn_on.remote)
        return await late

    assert asyncio.run(drive()) == "on!"


def test_a_deferred_task_can_be_cancelled(local: Any) -> None:
    switch = Switch.remote()
    late = add.remote(switch.wait.remote(), "!")
    ray.cancel(late)
    with pytest.raises(exceptions.TaskCancelledError):
        ray.get(late)
    ray.get(switch.turn_on.remote())


def test_who_waits_long_says_on_what(
    local: Any, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(core, "SAY_AFTER_S", 0.0)
    switch = Switch.remote()
    with (
        caplog.at_level(logging.WARNING, logger="minray"),
        pytest.raises(exceptions.GetTimeoutError) as caught,
    ):
        ray.get(switch.wait.remote(), timeout=0.01)
    assert "Switch.wait" in caplog.text and "local mode" in caplog.text
    assert "Switch.wait" in str(caught.value)


# --- streams ----------------------------------------------------------------------------------------


def test_a_generator_runs_as_far_as_it_is_read(local: Any) -> None:
    made: list[int] = []

    @ray.remote
    def endless() -> Any:
        n = 0
        while True:
            made.append(n)
            yield n
            n += 1

    stream = endless.remote()
    assert [ray.get(next(stream)) for _ in range(3)] == [0, 1, 2]
    assert made == [0, 1, 2]
    ray.cancel(stream)
    with pytest.raises(exceptions.TaskCancelledError):
        ray.get(next(stream))
    assert list(stream) == [] and stream.is_finished()


def test_dropping_a_generator_closes_it(local: Any) -> None:
    closed: list[bool] = []

    @ray.remote
    def guarded() -> Any:
        try:
            while True:
                yield 1
        finally:
            closed.append(True)

    stream = guarded.remote()
    next(stream)
    del stream
    gc.collect()
    ray.put(1)
    assert closed == [True]


def test_the_next_call_of_an_actor_comes_after_its_stream(local: Any) -> None:
    recorder = Recorder.remote()
    stream = recorder.stream.remote(3)
    assert ray.get(next(stream)) == 0
    assert ray.get(recorder.note.remote("after")) == 4
    assert ray.get(recorder.all.remote()) == ["item 0", "item 1", "item 2", "after"]
    assert [ray.get(ref) for ref in stream] == [1, 2]


@pytest.mark.parametrize("kind", ["asyncio", "threads"])
def test_backpressure_holds_back_a_fed_stream(local: Any, kind: str) -> None:
    made: list[int] = []

    def produce() -> Any:
        for n in range(10):
            made.append(n)
            yield n

    class Producer:
        def run(self) -> Any:
            return (yield from produce())

        async def run_async(self) -> Any:
            for n in produce():
                yield n

    class Threaded:
        def run(self) -> Any:
            return (yield from produce())

    if kind == "asyncio":
        method = ray.remote(Producer).remote().run_async
    else:
        method = ray.remote(max_concurrency=2)(Threaded).remote().run
    stream = method.options(_generator_backpressure_num_objects=2).remote()
    assert ray.get(next(stream)) == 0
    wait_for_condition(lambda: len(made) >= 3)
    assert len(made) == 3
    assert [ray.get(ref) for ref in stream] == list(range(1, 10))


# --- actors -----------------------------------------------------------------------------------------


def test_b27_an_actor_ends_with_its_last_handle_and_its_hook_runs(local: Any) -> None:
    ended: list[str] = []

    class Named:
        def ping(self) -> str:
            return "pong"

        def __ray_shutdown__(self) -> None:
            ended.append("hook")

    actor_class = ray.remote(Named)
    assert ray.get(actor_class.remote().ping.remote()) == "pong"
    handle = actor_class.options(name="it").remote()
    weak = ray.get_actor("it")
    del handle
    with pytest.raises(exceptions.ActorDiedError):
        ray.get(weak.ping.remote())
    with pytest.raises(ValueError, match="it"):
        ray.get_actor("it")
    assert ended == ["hook", "hook"]


def test_b30_b31_a_killed_actor_restarts_without_its_state(local: Any) -> None:
    recorder = ray.remote(max_restarts=1)(Recorder.__ray_actor_class__).remote()
    ray.get(recorder.note.remote(1))
    ray.kill(recorder, no_restart=False)
    assert ray.get(recorder.all.remote()) == []
    ray.kill(recorder, no_restart=False)
    with pytest.raises(exceptions.ActorDiedError, match="kill"):
        ray.get(recorder.all.remote())


@pytest.mark.parametrize("concurrency", [{}, {"max_concurrency": 2}])
def test_b13_a_failed_init_is_told_by_each_call(local: Any, concurrency: dict[str, int]) -> None:
    class Broken:
        def __init__(self) -> None:
            raise KeyError("no luck")

        def ping(self) -> None: ...

    actor = ray.remote(Broken).options(**concurrency).remote()
    for _ in range(2):
        with pytest.raises(exceptions.ActorDiedError, match="no luck"):
            ray.get(actor.ping.remote())


def test_an_actor_that_calls_itself_queues_the_call(local: Any) -> None:
    @ray.remote
    class Loop:
        def __init__(self) -> None:
            self.order: list[str] = []

        def outer(self, me: Any) -> Any:
            ref = me.inner.remote()
            self.order.append("outer")
            return [ref]

        def inner(self) -> list[str]:
            self.order.append("inner")
            return self.order

    actor = Loop.remote()
    assert ray.get(ray.get(actor.outer.remote(actor))[0]) == ["outer", "inner"]


def test_a_threaded_actor_really_runs_beside_itself(local: Any) -> None:
    class Pair:
        def __init__(self) -> None:
            self.both = threading.Barrier(2)

        def meet(self) -> int:
            return self.both.wait(30)

    pair = ray.remote(max_concurrency=2)(Pair).remote()
    assert sorted(ray.get([pair.meet.remote(), pair.meet.remote()])) == [0, 1]


def test_killing_an_asyncio_actor_answers_what_it_was_doing(local: Any) -> None:
    switch = Switch.remote()
    pending = switch.wait.remote()
    ray.kill(switch)
    with pytest.raises(exceptions.ActorDiedError, match="kill"):
        ray.get(pending)


def test_pending_calls_are_limited(local: Any) -> None:
    switch = Switch.options(max_pending_calls=1).remote()
    pending = switch.wait.remote()
    with pytest.raises(exceptions.PendingCallsLimitExceeded, match="max_pending_calls=1"):
        switch.turn_on.remote()
    ray.cancel(pending)
    with pytest.raises(exceptions.TaskCancelledError):
        ray.get(pending)


# --- interrupts, environment, errors ----------------------------------------------------------------


def test_ctrl_c_reaches_the_driver_and_a_raise_statement_does_not(local: Any) -> None:
    @ray.remote
    def raises() -> None:
        raise KeyboardInterrupt

    with pytest.raises(exceptions.TaskCancelledError):
        ray.get(raises.remote())

    @ray.remote
    def interrupted() -> None:
        os.kill(os.getpid(), signal.SIGINT)
        while True:
            pass

    with pytest.raises(KeyboardInterrupt):
        interrupted.remote()
    assert ray.get(add.remote(1)) == 2


def test_leaving_the_debugger_ends_the_program_and_not_just_the_task(local: Any) -> None:
    import bdb

    @ray.remote
    def debugged() -> None:
        raise bdb.BdbQuit

    with pytest.raises(bdb.BdbQuit):
        debugged.remote()


def test_the_environment_of_a_task_is_put_back(local: Any) -> None:
    @ray.remote(num_gpus=2, runtime_env={"env_vars": {"MINRAY_TEST_LOCAL": "yes"}})
    def look() -> tuple[Any, Any]:
        return os.environ.get("MINRAY_TEST_LOCAL"), os.environ.get("CUDA_VISIBLE_DEVICES")

    before = os.environ.get("CUDA_VISIBLE_DEVICES")
    assert ray.get(look.remote()) == ("yes", "0,1")
    assert (os.environ.get("MINRAY_TEST_LOCAL"), os.environ.get("CUDA_VISIBLE_DEVICES")) == (None, before)


def test_error_info_tells_of_failed_tasks(local: Any) -> None:
    @ray.remote
    def fails() -> None:
        raise ValueError("told")

    fails.remote()
    (entry,) = ray.error_info()
    assert entry["type"] == "task" and "fails failed with" in entry["message"] and "told" in entry["message"]


def test_b08_infeasible_requests_are_errors_at_once(local: Any) -> None:
    with pytest.raises(exceptions.TaskUnschedulableError, match="99"):
        ray.get(add.options(num_cpus=99).remote(1))
    with pytest.raises(exceptions.ActorUnschedulableError, match="99"):
        ray.get(Recorder.options(num_gpus=99).remote().all.remote())


def test_resources_are_accounted(local: Any) -> None:
    @ray.remote(num_cpus=3)
    def left() -> float:
        return ray.available_resources().get("CPU", 0)

    assert ray.get(left.remote()) == 1
    keep = Recorder.options(num_cpus=2).remote()
    assert ray.available_resources()["CPU"] == 2
    ray.kill(keep)
    assert ray.available_resources()["CPU"] == 4


def test_after_shutdown_everything_says_so() -> None:
    with ray.init(local_mode=True):
        ref, recorder = ray.put(1), Recorder.remote()
        switch = Switch.remote()
        pending = switch.wait.remote().future()
    assert isinstance(pending.exception(timeout=30), exceptions.RayError)
    with ray.init(local_mode=True):
        with pytest.raises(ValueError, match="owner is unknown"):
            ray.get(ref)
        with pytest.raises(exceptions.ActorHandleNotFoundError):
            recorder.all.remote()
        assert ray.get(add.remote(1)) == 2
