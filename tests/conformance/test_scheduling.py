"""Resources and where things run: B19 (custom), B22, B23; B24 is in test_placement_groups.py."""

from __future__ import annotations

import os
import time

import pytest

from .target import (
    eventually,
    exceptions,
    minray_only,
    needs_concurrency,
    needs_processes,
    not_local,
    ray,
    submodule,
)

INIT = {"num_cpus": 2, "num_gpus": 2, "resources": {"thing": 2, "rare": 1}}


@ray.remote
def assigned():
    return ray.get_runtime_context().get_assigned_resources()


@ray.remote
def echo(value):
    return value


def available(name):
    return ray.available_resources().get(name, 0)


# --- B22 ----------------------------------------------------------------------------------------


@needs_processes
def test_b22_a_blocked_get_gives_its_cpu_back(gate):
    @ray.remote(num_cpus=2)
    def outer(gate):
        return ray.get(inner.remote(gate))

    @ray.remote(num_cpus=2)
    def inner(gate):
        return "both ran on the same two CPUs"

    assert ray.get(outer.remote(gate), timeout=30) == "both ran on the same two CPUs"


@needs_processes
def test_b22_a_blocked_wait_gives_its_cpu_back():
    @ray.remote(num_cpus=2)
    def inner():
        return 1

    @ray.remote(num_cpus=2)
    def outer():
        ready, _ = ray.wait([inner.remote()])
        return ray.get(ready)

    assert ray.get(outer.remote(), timeout=30) == [1]


@needs_processes
def test_b22_recursion_far_deeper_than_the_cpus():
    @ray.remote
    def depth(n):
        return 0 if n == 0 else 1 + ray.get(depth.remote(n - 1))

    assert ray.get(depth.remote(8), timeout=50) == 8


@not_local("nothing is ever in use between calls there")
def test_b22_a_blocked_task_gives_no_custom_resource_and_no_gpu_back(gate):
    @ray.remote(num_cpus=1, num_gpus=1, resources={"thing": 1})
    def block(gate):
        gate.wait()

    ref = block.remote(gate)
    gate.arrivals("go")
    eventually(lambda: available("CPU") == 2, "the CPU came back")
    assert available("thing") == 1
    assert available("GPU") == 1
    gate.open()
    ray.get(ref)


@needs_processes
def test_b22_nothing_is_given_back_if_the_objects_are_already_here():
    @ray.remote(num_cpus=1)
    def reads(ref):
        for _ in range(50):
            assert ray.get(ref[0]) == "here"
        return True

    ref = ray.put("here")
    assert all(ray.get([reads.remote([ref]) for _ in range(4)]))


# --- B23 ----------------------------------------------------------------------------------------


@ray.remote
class Resident:
    def resources(self):
        return ray.get_runtime_context().get_assigned_resources()

    def pid(self):
        return os.getpid()


def test_b23_a_default_actor_holds_nothing_while_it_lives():
    assert ray.get(Resident.remote().resources.remote()) == {}


@needs_processes
def test_b23_more_default_actors_than_cpus():
    actors = [Resident.remote() for _ in range(5)]
    pids = ray.get([actor.pid.remote() for actor in actors], timeout=50)
    assert len(set(pids)) == 5


def test_b23_an_explicit_resource_makes_the_cpu_default_to_one():
    actor = Resident.options(resources={"thing": 1}).remote()
    assert ray.get(actor.resources.remote()) == {"CPU": 1, "thing": 1}


def test_b23_an_explicit_gpu_makes_the_cpu_default_to_one():
    actor = Resident.options(num_gpus=1).remote()
    assert ray.get(actor.resources.remote()) == {"CPU": 1, "GPU": 1}


def test_b23_memory_alone_does_not():
    actor = Resident.options(memory=1024**2).remote()
    assert ray.get(actor.resources.remote()) == {"memory": 1024**2}


def test_b23_an_explicit_cpu_is_held_for_life():
    actor = Resident.options(num_cpus=1).remote()
    assert ray.get(actor.resources.remote()) == {"CPU": 1}
    if ray.get(actor.pid.remote()) != os.getpid():
        eventually(lambda: available("CPU") == 1, "one CPU is taken")
        del actor
        eventually(lambda: available("CPU") == 2, "the CPU came back")


def test_b23_an_actor_of_zero_cpus():
    actor = Resident.options(num_cpus=0).remote()
    assert ray.get(actor.resources.remote()) == {}


@not_local("nothing competes there")
def test_b23_an_actor_waits_until_its_resources_are_free():
    first = Resident.options(num_cpus=2).remote()
    ray.get(first.pid.remote())
    second = Resident.options(num_cpus=2).remote()
    ref = second.pid.remote()
    assert ray.wait([ref], timeout=0.1) == ([], [ref])
    del first
    assert ray.get(ref, timeout=30)


# --- resources in general -----------------------------------------------------------------------


def test_a_task_sees_what_it_was_given():
    assert ray.get(assigned.remote()) == {"CPU": 1}
    assert ray.get(assigned.options(num_cpus=0).remote()) == {}
    assert ray.get(assigned.options(num_cpus=0.5, resources={"rare": 0.25}).remote()) == {
        "CPU": 0.5,
        "rare": 0.25,
    }
    assert ray.get(assigned.options(num_gpus=1, memory=2**20).remote()) == {
        "CPU": 1,
        "GPU": 1,
        "memory": 2**20,
    }


@needs_concurrency
def test_custom_resources_limit_what_runs_at_once(gate):
    @ray.remote(num_cpus=0, resources={"thing": 1})
    def hold(gate):
        gate.arrive()
        gate.wait()

    refs = [hold.remote(gate) for _ in range(4)]
    gate.arrivals(at_least=2)
    assert ray.wait(refs, num_returns=1, timeout=0.1) == ([], refs)
    assert gate.count() == 2
    gate.open()
    ray.get(refs)
    assert gate.count() == 4


@needs_concurrency
def test_cpus_limit_what_runs_at_once(tmp_path):
    @ray.remote
    def enter(path):
        mine = path / f"{os.getpid()}-{time.monotonic_ns()}"
        mine.touch()
        inside = len(list(path.iterdir()))
        time.sleep(0.01)
        mine.unlink()
        return inside

    assert max(ray.get([enter.remote(tmp_path) for _ in range(20)])) <= 2


@needs_concurrency
def test_two_gpu_tasks_at_once_see_different_gpus(gate):
    @ray.remote(num_gpus=1)
    def mine(gate):
        gate.arrive()
        gate.wait()
        return ray.get_gpu_ids(), os.environ["CUDA_VISIBLE_DEVICES"]

    refs = [mine.remote(gate) for _ in range(2)]
    gate.arrivals(at_least=2)
    gate.open()
    (first, first_env), (second, second_env) = ray.get(refs)
    assert {str(gpu) for gpu in first + second} == {"0", "1"}
    assert {first_env, second_env} == {"0", "1"}


def test_a_task_without_gpus_sees_none():
    @ray.remote
    def gpus():
        return ray.get_gpu_ids()

    assert ray.get(gpus.remote()) == []


def test_an_actor_keeps_its_gpu():
    @ray.remote(num_gpus=1)
    class Holder:
        def gpus(self):
            return ray.get_gpu_ids(), ray.get_runtime_context().get_accelerator_ids()["GPU"]

    holder = Holder.remote()
    first, second = ray.get([holder.gpus.remote() for _ in range(2)])
    assert first == second
    assert [str(gpu) for gpu in first[0]] == first[1]
    assert len(first[0]) == 1


def test_cluster_resources_are_the_totals():
    totals = ray.cluster_resources()
    assert totals["CPU"] == 2
    assert totals["GPU"] == 2
    assert totals["thing"] == 2
    assert totals["rare"] == 1
    assert totals["memory"] > 0
    assert totals["object_store_memory"] > 0
    assert sum(name.startswith("node:") for name in totals) == 2
    assert totals["node:__internal_head__"] == 1


def test_available_resources_return_to_the_totals():
    def idle():
        now, totals = ray.available_resources(), ray.cluster_resources()
        return all(now.get(name) == totals[name] for name in ("CPU", "GPU", "thing", "rare"))

    ray.get([echo.remote(i) for i in range(5)])
    eventually(idle, "everything is free again")


@minray_only("an infeasible task hangs with a warning")
@pytest.mark.parametrize("request_", [{"num_cpus": 99}, {"num_gpus": 9}, {"resources": {"absent": 1}}], ids=str)
def test_an_infeasible_task_is_an_error_that_names_request_and_totals(request_, short_grace):
    with pytest.raises(exceptions.TaskUnschedulableError) as caught:
        ray.get(echo.options(**request_).remote(1))
    text = str(caught.value)
    assert "thing" in text
    assert any(word in text for word in ("99", "9", "absent"))


@minray_only("an infeasible actor hangs with a warning")
def test_an_infeasible_actor_is_an_error(short_grace):
    actor = Resident.options(num_cpus=99).remote()
    with pytest.raises(exceptions.ActorUnschedulableError, match="99"):
        ray.get(actor.pid.remote())


@pytest.fixture(scope="module")
def short_grace():
    """Restart the module's runtime with a grace that a test can wait for."""
    from .target import start, stop

    stop()
    patch = pytest.MonkeyPatch()
    patch.setenv("MINRAY_INFEASIBLE_GRACE_S", "0.2")
    start(**INIT)
    patch.undo()
    yield
    stop()
    start(**INIT)


def test_scheduling_strategies_of_one_machine_are_accepted():
    node_id = ray.get_runtime_context().get_node_id()
    strategies = submodule("util.scheduling_strategies")
    affinity = strategies.NodeAffinitySchedulingStrategy(node_id=node_id, soft=False)
    for strategy in ["DEFAULT", "SPREAD", affinity]:
        assert ray.get(echo.options(scheduling_strategy=strategy).remote(5)) == 5


@not_local("there is only this process")
def test_hard_affinity_to_an_unknown_node_is_unschedulable():
    strategies = submodule("util.scheduling_strategies")
    nowhere = strategies.NodeAffinitySchedulingStrategy(node_id=ray.NodeID.from_random().hex(), soft=False)
    with pytest.raises(exceptions.TaskUnschedulableError):
        ray.get(echo.options(scheduling_strategy=nowhere).remote(1), timeout=30)
    actor = Resident.options(scheduling_strategy=nowhere).remote()
    with pytest.raises(exceptions.ActorUnschedulableError):
        ray.get(actor.pid.remote(), timeout=30)
    gone_soft = strategies.NodeAffinitySchedulingStrategy(node_id=ray.NodeID.from_random().hex(), soft=True)
    assert ray.get(echo.options(scheduling_strategy=gone_soft).remote(1), timeout=30) == 1


def test_env_vars_of_a_runtime_env_reach_the_task():
    @ray.remote(runtime_env={"env_vars": {"B_TEST_VARIABLE": "set"}})
    def read():
        return os.environ.get("B_TEST_VARIABLE")

    assert ray.get(read.remote()) == "set"


@minray_only("these are built there")
@pytest.mark.parametrize("key", ["pip", "working_dir", "conda", "py_modules"])
def test_other_keys_of_runtime_env_say_that_they_are_not_built_yet(key):
    with pytest.raises(NotImplementedError, match=key):
        echo.options(runtime_env={key: ["something"]}).remote(1)


@minray_only("built there")
def test_the_timeline_says_that_it_is_not_built_yet():
    with pytest.raises(NotImplementedError, match="timeline"):
        ray.timeline()
